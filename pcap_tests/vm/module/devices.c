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
#include <linux/delay.h>
#include <linux/list.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/netdevice.h>
#include <linux/slab.h>
#include <net/flow_offload.h>
#include <net/netfilter/nf_flow_table.h>
#include <net/pkt_cls.h>
#include <net/rtnetlink.h>

#include "tables.h"

static int slow_us;
module_param(slow_us, int, 0644);

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

static LIST_HEAD(bindings);		/* under the rtnl lock */
static LIST_HEAD(block_list);		/* as flow_block_offload wants one of each driver */
static LIST_HEAD(sources);
static DEFINE_MUTEX(sources_lock);

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
	struct entry *made = NULL, *gone = NULL;
	int err = 0;

	if (type != TC_SETUP_CLSFLOWER)
		return -EOPNOTSUPP;
	if (f->command == FLOW_CLS_REPLACE)
		be_slow();
	mutex_lock(&tables_lock);
	switch (f->command) {
	case FLOW_CLS_REPLACE:
		err = put(&conns, "conn", f, &made);
		if (made)
			made->source = priv;
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
			/* Nobody is going to say that its connections are gone. */
			mutex_lock(&tables_lock);
			forget(s);
			mutex_unlock(&tables_lock);
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

/* --- the module ------------------------------------------------------------------------------------------------------- */

static int __init feigned_init(void)
{
	int err = register_netdevice_notifier(&notifier);

	if (!err)
		tables_show();
	return err;
}

static void __exit feigned_exit(void)
{
	tables_hide();
	unregister_netdevice_notifier(&notifier);
}

module_init(feigned_init);
module_exit(feigned_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("test only: veths that accept TC offload and forward nothing");
