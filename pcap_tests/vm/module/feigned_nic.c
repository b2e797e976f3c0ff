// SPDX-License-Identifier: GPL-2.0
/*
 * A NIC that is none, for tests only: every veth looks as if its hardware took TC's rules and connections.
 *
 * The only code of this project that is not under its own licence: it is part of a kernel, so it is GPL-2.0, is built
 * into no wheel, and runs nowhere but in the guest of pcap_tests/vm.
 *
 * Theory of operation: a veth gets a copy of its driver's operations with one for TC, and the feature hw-tc-offload. Rules
 * that TC hands over are kept in one table, connections that act_ct's flow tables hand over in another, and nothing is
 * ever forwarded: what is in a table counts what a test writes into it. So a rule with skip_sw matches no packet.
 *
 * /sys/kernel/debug/feigned_nic/
 *   rules, conns   one line each: COOKIE packets N bytes N, device, chain, prio, and what it matches and does;
 *                  written "COOKIE PACKETS BYTES": hardware has seen so many more
 *   calls          how often each command came
 * Parameters, all writable at any time:
 *   fail_next      so many commands that add a rule or a connection fail, with fail_errno (28, no space)
 *   rule_room, conn_room    most of each
 *   takes_ct       0: no `ct` action and no ct key
 *   slow_us        how long adding takes
 */
#include <linux/debugfs.h>
#include <linux/delay.h>
#include <linux/list.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/netdevice.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <net/flow_offload.h>
#include <net/netfilter/nf_flow_table.h>
#include <net/pkt_cls.h>
#include <net/rtnetlink.h>

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
static int slow_us;
module_param(slow_us, int, 0644);

#define TOLD 400		/* bytes of a description */
#define MOST_TABLES 4		/* flow tables that one rule can hand connections over by */

struct table {
	const char *name;
	struct list_head entries;
	int count;
	int *room;
	unsigned long added, removed, asked;
};

struct entry {
	struct list_head list;
	unsigned long cookie;
	char told[TOLD];
	u64 packets, bytes;			/* seen by "hardware" */
	u64 packets_said, bytes_said;		/* and already told to the kernel */
	u64 used;				/* jiffies */
	struct nf_flowtable *flow_tables[MOST_TABLES];
	int n_flow_tables;
};

/* What a device's hook is bound by; the first member is what a callback is given. */
struct binding {
	struct net_device *dev;
	struct list_head list;
	enum tc_setup_type type;
	void *block;
};

/* A flow table that connections come by, as long as rules name it. */
struct source {
	struct list_head list;
	struct nf_flowtable *flow_table;
	int users;
};

static struct table rules = { "rules", LIST_HEAD_INIT(rules.entries), 0, &rule_room };
static struct table conns = { "conns", LIST_HEAD_INIT(conns.entries), 0, &conn_room };
static LIST_HEAD(bindings);		/* under the rtnl lock */
static LIST_HEAD(block_list);		/* as flow_block_offload wants one of each driver */
static LIST_HEAD(sources);
static unsigned long templates_made, templates_gone;
static DEFINE_MUTEX(tables_lock);
static DEFINE_MUTEX(sources_lock);

/* --- tables ------------------------------------------------------------------------------------------------------- */

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
	if (flow_rule_match_key(rule, FLOW_DISSECTOR_KEY_IPV4_ADDRS)) {
		struct flow_match_ipv4_addrs addresses;

		flow_rule_match_ipv4_addrs(rule, &addresses);
		say(t, " src_ip %pI4 dst_ip %pI4", &addresses.key->src, &addresses.key->dst);
	}
	if (flow_rule_match_key(rule, FLOW_DISSECTOR_KEY_IPV6_ADDRS)) {
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

static int put(struct table *t, const char *device, struct flow_cls_offload *f, struct entry **made)
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

static struct entry *take(struct table *t, unsigned long cookie)
{
	struct entry *e = lookup(t, cookie);

	t->removed++;
	if (e) {
		list_del(&e->list);
		t->count--;
	}
	return e;
}

static int stats(struct table *t, struct flow_cls_offload *f)
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

static void be_slow(void)
{
	int us = slow_us;

	if (us > 0)
		usleep_range(us, us + us / 8 + 1);
}

/* --- connections, by the flow tables of act_ct ------------------------------------------------------------------------ */

static int conn_command(enum tc_setup_type type, void *data, void *priv)
{
	struct flow_cls_offload *f = data;
	struct entry *gone = NULL;
	int err = 0;

	if (type != TC_SETUP_CLSFLOWER)
		return -EOPNOTSUPP;
	if (f->command == FLOW_CLS_REPLACE)
		be_slow();
	mutex_lock(&tables_lock);
	switch (f->command) {
	case FLOW_CLS_REPLACE:
		err = put(&conns, "conn", f, NULL);
		break;
	case FLOW_CLS_DESTROY:
		gone = take(&conns, f->cookie);
		break;
	case FLOW_CLS_STATS:
		err = stats(&conns, f);
		break;
	default:
		err = -EOPNOTSUPP;
	}
	mutex_unlock(&tables_lock);
	kfree(gone);
	return err;
}

static int hear(struct nf_flowtable *flow_table)
{
	struct source *s;
	int err = 0;

	mutex_lock(&sources_lock);
	list_for_each_entry(s, &sources, list)
		if (s->flow_table == flow_table) {
			s->users++;
			goto out;
		}
	s = kzalloc(sizeof(*s), GFP_KERNEL);
	if (!s) {
		err = -ENOMEM;
		goto out;
	}
	s->flow_table = flow_table;
	s->users = 1;
	err = nf_flow_table_offload_add_cb(flow_table, conn_command, s);
	if (err)
		kfree(s);
	else
		list_add(&s->list, &sources);
out:
	mutex_unlock(&sources_lock);
	return err;
}

static void unhear(struct nf_flowtable *flow_table)
{
	struct source *s;

	mutex_lock(&sources_lock);
	list_for_each_entry(s, &sources, list) {
		if (s->flow_table != flow_table)
			continue;
		if (!--s->users) {
			list_del(&s->list);
			nf_flow_table_offload_del_cb(flow_table, conn_command, s);
			kfree(s);
		}
		break;
	}
	mutex_unlock(&sources_lock);
}

/* --- rules ------------------------------------------------------------------------------------------------------------ */

static int add_rule(struct net_device *dev, struct flow_cls_offload *f)
{
	const struct flow_rule *rule = flow_cls_offload_flow_rule(f);
	const struct flow_action_entry *action;
	struct entry *e = NULL;
	int i, err;

	if (!tc_can_offload(dev))
		return -EOPNOTSUPP;
	be_slow();
	mutex_lock(&tables_lock);
	err = put(&rules, dev->name, f, &e);
	mutex_unlock(&tables_lock);
	if (err)
		return err;
	flow_action_for_each(i, action, &rule->action)
		if (action->id == FLOW_ACTION_CT && action->ct.flow_table && e->n_flow_tables < MOST_TABLES &&
		    !hear(action->ct.flow_table))
			e->flow_tables[e->n_flow_tables++] = action->ct.flow_table;
	return 0;
}

static void remove_rule(struct flow_cls_offload *f)
{
	struct entry *e;
	int i;

	mutex_lock(&tables_lock);
	e = take(&rules, f->cookie);
	mutex_unlock(&tables_lock);
	if (!e)
		return;
	for (i = 0; i < e->n_flow_tables; i++)
		unhear(e->flow_tables[i]);
	kfree(e);
}

static int rule_command(enum tc_setup_type type, void *data, void *priv)
{
	struct flow_cls_offload *f = data;
	struct binding *b = priv;
	int err;

	if (type != TC_SETUP_CLSFLOWER)
		return -EOPNOTSUPP;
	switch (f->command) {
	case FLOW_CLS_REPLACE:
		return add_rule(b->dev, f);
	case FLOW_CLS_DESTROY:
		remove_rule(f);
		return 0;
	case FLOW_CLS_STATS:
		mutex_lock(&tables_lock);
		err = stats(&rules, f);
		mutex_unlock(&tables_lock);
		return err;
	case FLOW_CLS_TMPLT_CREATE:
		templates_made++;
		return 0;
	case FLOW_CLS_TMPLT_DESTROY:
		templates_gone++;
		return 0;
	}
	return -EOPNOTSUPP;
}

/* --- devices ---------------------------------------------------------------------------------------------------------- */

static void unbound(void *priv)
{
	struct binding *b = priv;

	list_del(&b->list);
	kfree(b);
}

static struct binding *bound(struct net_device *dev, enum tc_setup_type type, void *block)
{
	struct binding *b;

	list_for_each_entry(b, &bindings, list)
		if (b->dev == dev && b->type == type && b->block == block)
			return b;
	return NULL;
}

static int bind_block(struct net_device *dev, enum tc_setup_type type, flow_setup_cb_t *command, struct flow_block_offload *f)
{
	struct flow_block_cb *cb;
	struct binding *b;

	if (bound(dev, type, f->block))
		return -EBUSY;
	b = kzalloc(sizeof(*b), GFP_KERNEL);
	if (!b)
		return -ENOMEM;
	b->dev = dev;
	b->type = type;
	b->block = f->block;
	list_add(&b->list, &bindings);
	cb = flow_block_cb_alloc(command, b, b, unbound);
	if (IS_ERR(cb)) {
		unbound(b);
		return PTR_ERR(cb);
	}
	flow_block_cb_add(cb, f);
	list_add_tail(&cb->driver_list, &block_list);
	return 0;
}

static int unbind_block(struct net_device *dev, enum tc_setup_type type, flow_setup_cb_t *command, struct flow_block_offload *f)
{
	struct binding *b = bound(dev, type, f->block);
	struct flow_block_cb *cb = b ? flow_block_cb_lookup(f->block, command, b) : NULL;

	if (!cb)
		return -ENOENT;
	flow_block_cb_remove(cb, f);
	list_del(&cb->driver_list);
	return 0;
}

static int setup_tc(struct net_device *dev, enum tc_setup_type type, void *data)
{
	flow_setup_cb_t *command = type == TC_SETUP_FT ? conn_command : rule_command;
	struct flow_block_offload *f = data;

	if (type != TC_SETUP_BLOCK && type != TC_SETUP_FT)
		return -EOPNOTSUPP;
	if (type == TC_SETUP_BLOCK && f->binder_type != FLOW_BLOCK_BINDER_TYPE_CLSACT_INGRESS)
		return -EOPNOTSUPP;
	f->driver_block_list = &block_list;
	switch (f->command) {
	case FLOW_BLOCK_BIND:
		return bind_block(dev, type, command, f);
	case FLOW_BLOCK_UNBIND:
		return unbind_block(dev, type, command, f);
	}
	return -EOPNOTSUPP;
}

static const struct net_device_ops *drivers_ops;
static struct net_device_ops our_ops;

static int device_event(struct notifier_block *nb, unsigned long event, void *data)
{
	struct net_device *dev = netdev_notifier_info_to_dev(data);

	if (!dev->rtnl_link_ops || strcmp(dev->rtnl_link_ops->kind, "veth"))
		return NOTIFY_DONE;
	if (event == NETDEV_REGISTER && dev->netdev_ops != &our_ops) {
		if (!drivers_ops) {
			drivers_ops = dev->netdev_ops;
			our_ops = *drivers_ops;
			our_ops.ndo_setup_tc = setup_tc;
		}
		if (dev->netdev_ops != drivers_ops)
			return NOTIFY_DONE;
		dev->netdev_ops = &our_ops;
		dev->hw_features |= NETIF_F_HW_TC;
		dev->wanted_features |= NETIF_F_HW_TC;
		dev->features |= NETIF_F_HW_TC;
		__module_get(THIS_MODULE);	/* as long as a device has our operations */
	} else if (event == NETDEV_UNREGISTER && dev->netdev_ops == &our_ops && dev->reg_state == NETREG_UNREGISTERING) {
		/* A device that goes into another namespace is unregistered as well, but not for good. */
		module_put(THIS_MODULE);
	}
	return NOTIFY_DONE;
}

static struct notifier_block notifier = { .notifier_call = device_event };

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

static int __init feigned_init(void)
{
	int err = register_netdevice_notifier(&notifier);

	if (err)
		return err;
	folder = debugfs_create_dir("feigned_nic", NULL);
	debugfs_create_file("rules", 0600, folder, &rules, &table_file);
	debugfs_create_file("conns", 0600, folder, &conns, &table_file);
	debugfs_create_file("calls", 0400, folder, NULL, &calls_fops);
	return 0;
}

static void __exit feigned_exit(void)
{
	debugfs_remove_recursive(folder);
	unregister_netdevice_notifier(&notifier);
}

module_init(feigned_init);
module_exit(feigned_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("test only: veths that accept TC offload and forward nothing");
