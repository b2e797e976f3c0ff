// SPDX-License-Identifier: GPL-2.0
/*
 * What was handed over to the NIC that is none, described in a line each, and the files in debugfs by which tests see it and say what hardware has
 * counted. Part of devices.c, which tells more.
 */
#include <linux/debugfs.h>
#include <linux/module.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <net/flow_offload.h>
#include <net/pkt_cls.h>

#include "tables.h"

static int fail_next;
module_param(fail_next, int, 0644);
static int fail_errno = ENOSPC;
module_param(fail_errno, int, 0644);
static int rule_room = 1 << 20;
module_param(rule_room, int, 0644);
static int conn_room = 1 << 20;
module_param(conn_room, int, 0644);
static int takes_ct = 1;
module_param(takes_ct, int, 0644);

struct table rules = { "rules", LIST_HEAD_INIT(rules.entries), 0, &rule_room };
struct table conns = { "conns", LIST_HEAD_INIT(conns.entries), 0, &conn_room };
unsigned long templates_made, templates_gone;
DEFINE_MUTEX(tables_lock);

static struct entry *lookup(struct table *t, unsigned long cookie)
{
	struct entry *e;

	list_for_each_entry(e, &t->entries, list)
		if (e->cookie == cookie)
			return e;
	return NULL;
}

struct text {
	char *to;
	int at;
};

static __printf(2, 3) void say(struct text *t, const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	t->at += vscnprintf(t->to + t->at, TOLD - t->at, format, arguments);
	va_end(arguments);
}

static int tell_keys(struct text *t, const struct flow_rule *rule, struct netlink_ext_ack *extack)
{
	u16 addr_type = 0;

	if (flow_rule_match_key(rule, FLOW_DISSECTOR_KEY_CT)) {
		struct flow_match_ct ct;

		if (!takes_ct) {
			NL_SET_ERR_MSG_MOD(extack, "this NIC matches no conntrack");
			return -EOPNOTSUPP;
		}
		flow_rule_match_ct(rule, &ct);
		say(t, " ct_state %#x/%#x ct_zone %u/%#x ct_mark %#x/%#x", ct.key->ct_state, ct.mask->ct_state,
		    ct.key->ct_zone, ct.mask->ct_zone, ct.key->ct_mark, ct.mask->ct_mark);
	}
	/* Both kinds of addresses have one place, so that of each rule with any both are "there". */
	if (flow_rule_match_key(rule, FLOW_DISSECTOR_KEY_CONTROL)) {
		struct flow_match_control control;

		flow_rule_match_control(rule, &control);
		addr_type = control.key->addr_type;
		if (control.mask->flags)
			say(t, " flags %#x/%#x", control.key->flags, control.mask->flags);
	}
	if (addr_type == FLOW_DISSECTOR_KEY_IPV4_ADDRS) {
		struct flow_match_ipv4_addrs addresses;

		flow_rule_match_ipv4_addrs(rule, &addresses);
		say(t, " src_ip %pI4 dst_ip %pI4", &addresses.key->src, &addresses.key->dst);
	}
	if (addr_type == FLOW_DISSECTOR_KEY_IPV6_ADDRS) {
		struct flow_match_ipv6_addrs addresses;

		flow_rule_match_ipv6_addrs(rule, &addresses);
		say(t, " src_ip %pI6c dst_ip %pI6c", &addresses.key->src, &addresses.key->dst);
	}
	if (flow_rule_match_key(rule, FLOW_DISSECTOR_KEY_PORTS)) {
		struct flow_match_ports ports;

		flow_rule_match_ports(rule, &ports);
		say(t, " src_port %u dst_port %u", ntohs(ports.key->src), ntohs(ports.key->dst));
	}
	if (flow_rule_match_key(rule, FLOW_DISSECTOR_KEY_TCP)) {
		struct flow_match_tcp tcp;

		flow_rule_match_tcp(rule, &tcp);
		say(t, " tcp_flags %#x/%#x", ntohs(tcp.key->flags), ntohs(tcp.mask->flags));
	}
	return 0;
}

static int tell_action(struct text *t, const struct flow_action_entry *a, struct netlink_ext_ack *extack)
{
	switch (a->id) {
	case FLOW_ACTION_CT:
		if (!takes_ct) {
			NL_SET_ERR_MSG_MOD(extack, "this NIC has no conntrack");
			return -EOPNOTSUPP;
		}
		say(t, " ct(%#x zone %u)", a->ct.action, a->ct.zone);
		break;
	case FLOW_ACTION_CT_METADATA:
		say(t, " metadata(mark %#x labels %16phN %s ctinfo %lu)", a->ct_metadata.mark, a->ct_metadata.labels,
		    a->ct_metadata.orig_dir ? "original" : "reply", a->ct_metadata.cookie & NFCT_INFOMASK);
		break;
	case FLOW_ACTION_GOTO:
		say(t, " goto(%u)", a->chain_index);
		break;
	case FLOW_ACTION_REDIRECT:
		say(t, " redirect(%s)", a->dev ? a->dev->name : "");
		break;
	case FLOW_ACTION_MIRRED:
		say(t, " mirror(%s)", a->dev ? a->dev->name : "");
		break;
	case FLOW_ACTION_MANGLE:
		say(t, " mangle(%d %u %08x/%08x)", a->mangle.htype, a->mangle.offset, a->mangle.val, a->mangle.mask);
		break;
	case FLOW_ACTION_CSUM:
		say(t, " csum(%#x)", a->csum_flags);
		break;
	case FLOW_ACTION_DROP:
		say(t, " drop");
		break;
	case FLOW_ACTION_ACCEPT:
		say(t, " pass");
		break;
	default:
		say(t, " action(%d)", a->id);
	}
	return 0;
}

static int tell(struct entry *e, const char *device, struct flow_cls_offload *f)
{
	const struct flow_rule *rule = flow_cls_offload_flow_rule(f);
	const struct flow_action_entry *action;
	struct text t = { e->told };
	int i, err;

	say(&t, "%s chain %u prio %u protocol %#06x", device, f->common.chain_index, f->common.prio, ntohs(f->common.protocol));
	err = tell_keys(&t, rule, f->common.extack);
	flow_action_for_each(i, action, &rule->action)
		if (!err)
			err = tell_action(&t, action, f->common.extack);
	return err;
}

int put(struct table *t, const char *device, struct flow_cls_offload *f, struct entry **made)
{
	struct entry *e;
	int err;

	t->added++;
	if (fail_next > 0) {
		fail_next--;
		NL_SET_ERR_MSG_MOD(f->common.extack, "told to fail");
		return -fail_errno;
	}
	e = lookup(t, f->cookie);
	if (e)		/* a connection that has become established is told again */
		return t == &conns ? tell(e, device, f) : -EEXIST;
	if (t->count >= *t->room) {
		NL_SET_ERR_MSG_MOD(f->common.extack, "no room in hardware");
		return -ENOSPC;
	}
	e = kzalloc(sizeof(*e), GFP_KERNEL);
	if (!e)
		return -ENOMEM;
	e->cookie = f->cookie;
	e->used = get_jiffies_64();
	err = tell(e, device, f);
	if (err) {
		kfree(e);
		return err;
	}
	list_add_tail(&e->list, &t->entries);
	t->count++;
	if (made)
		*made = e;
	return 0;
}

struct entry *take(struct table *t, unsigned long cookie)
{
	struct entry *e = lookup(t, cookie);

	t->removed++;
	if (e) {
		list_del(&e->list);
		t->count--;
	}
	return e;
}

void forget(const void *source)
{
	struct entry *e, *next;

	list_for_each_entry_safe(e, next, &conns.entries, list)
		if (e->source == source) {
			list_del(&e->list);
			conns.count--;
			kfree(e);
		}
}

int stats(struct table *t, struct flow_cls_offload *f)
{
	struct entry *e = lookup(t, f->cookie);

	t->asked++;
	if (!e)
		return -ENOENT;
	flow_stats_update(&f->stats, e->bytes - e->bytes_said, e->packets - e->packets_said, 0, e->used,
			  FLOW_ACTION_HW_STATS_DELAYED);
	e->bytes_said = e->bytes;
	e->packets_said = e->packets;
	return 0;
}

/* --- debugfs ---------------------------------------------------------------------------------------------------------- */

static int table_show(struct seq_file *s, void *unused)
{
	struct table *t = s->private;
	struct entry *e;

	mutex_lock(&tables_lock);
	list_for_each_entry(e, &t->entries, list)
		seq_printf(s, "%lx packets %llu bytes %llu %s\n", e->cookie, e->packets, e->bytes, e->told);
	mutex_unlock(&tables_lock);
	return 0;
}

static ssize_t table_write(struct file *file, const char __user *from, size_t length, loff_t *at)
{
	struct table *t = ((struct seq_file *)file->private_data)->private;
	unsigned long cookie;
	u64 packets, bytes;
	struct entry *e;
	char line[80];

	if (length >= sizeof(line) || copy_from_user(line, from, length))
		return -EFAULT;
	line[length] = 0;
	if (sscanf(line, "%lx %llu %llu", &cookie, &packets, &bytes) != 3)
		return -EINVAL;
	mutex_lock(&tables_lock);
	e = lookup(t, cookie);
	if (e) {
		e->packets += packets;
		e->bytes += bytes;
		e->used = get_jiffies_64();
	}
	mutex_unlock(&tables_lock);
	return e ? length : -ENOENT;
}

static int table_open(struct inode *inode, struct file *file)
{
	return single_open(file, table_show, inode->i_private);
}

static const struct file_operations table_file = {
	.owner = THIS_MODULE, .open = table_open, .read = seq_read, .write = table_write, .llseek = seq_lseek, .release = single_release,
};

static int calls_show(struct seq_file *s, void *unused)
{
	const struct table *of[] = { &rules, &conns };
	int i;

	for (i = 0; i < ARRAY_SIZE(of); i++)
		seq_printf(s, "%s %d added %lu removed %lu asked %lu\n", of[i]->name, of[i]->count, of[i]->added, of[i]->removed, of[i]->asked);
	seq_printf(s, "templates %lu removed %lu\n", templates_made, templates_gone);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(calls);

static struct dentry *folder;

void tables_show(void)
{
	folder = debugfs_create_dir("feigned_nic", NULL);
	debugfs_create_file("rules", 0600, folder, &rules, &table_file);
	debugfs_create_file("conns", 0600, folder, &conns, &table_file);
	debugfs_create_file("calls", 0400, folder, NULL, &calls_fops);
}

void tables_hide(void)
{
	debugfs_remove_recursive(folder);
}
