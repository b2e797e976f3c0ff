// SPDX-License-Identifier: GPL-2.0
/*
 * A NIC's eswitch that is none, for tests only: platform/feigned_functions, with an uplink and scalable functions.
 *
 * Part of a kernel like the other module here, so GPL-2.0: built into no wheel, runs nowhere but in the guest of pcap_tests/vm.
 *
 * Theory of operation: netdevsim has VFs, but neither scalable functions nor anything to be set of a function. This one
 * has just that, with the habits of drivers: functions are made in mode switchdev only, each has an interface that stands
 * for it and drops whatever is sent, its address is set while it is inactive, and it is attached as soon as it is active.
 * What it is asked comes from the kernel's devlink, which has checked it.
 */
#include <linux/etherdevice.h>
#include <linux/list.h>
#include <linux/module.h>
#include <linux/netdevice.h>
#include <linux/platform_device.h>
#include <linux/slab.h>
#include <net/devlink.h>

#define UPLINK 65535		/* index of its port; those of functions follow from their numbers */
#define FIRST 32768
#define MOST 64			/* numbers of functions */

struct function {
	struct list_head list;
	struct devlink_port port;
	struct net_device *dev;
	u8 mac[ETH_ALEN];
	bool active;
};

static struct platform_device *device;
static struct devlink *nic;
static struct function uplink;
static u16 mode = DEVLINK_ESWITCH_MODE_LEGACY;
static const struct netdev_phys_item_id switch_id = { .id = { 0xfe, 0x16, 0xed }, .id_len = 3 };
static LIST_HEAD(functions);	/* under devlink's lock, which whoever asks for something holds */

/* --- interfaces --- */

static netdev_tx_t dropped(struct sk_buff *skb, struct net_device *dev)
{
	dev_kfree_skb(skb);
	return NETDEV_TX_OK;
}

static struct devlink_port *port_of(struct net_device *dev)
{
	struct function **function = netdev_priv(dev);

	return &(*function)->port;
}

static const struct net_device_ops operations = {
	.ndo_start_xmit = dropped,
	.ndo_get_devlink_port = port_of,
};

static int plugged_in(struct function *function, unsigned int index)
{
	int error = devl_port_register(nic, &function->port, index);

	if (error)
		return error;
	function->dev = alloc_etherdev(sizeof(struct function *));
	if (!function->dev) {
		error = -ENOMEM;
		goto unplug;
	}
	*(struct function **)netdev_priv(function->dev) = function;
	function->dev->netdev_ops = &operations;
	SET_NETDEV_DEV(function->dev, &device->dev);
	eth_hw_addr_random(function->dev);
	error = register_netdev(function->dev);
	if (error)
		goto free;
	devlink_port_type_eth_set(&function->port, function->dev);
	return 0;
free:
	free_netdev(function->dev);
unplug:
	devl_port_unregister(&function->port);
	return error;
}

static void unplugged(struct function *function)
{
	devlink_port_type_clear(&function->port);
	unregister_netdev(function->dev);
	free_netdev(function->dev);
	devl_port_unregister(&function->port);
}

/* --- what devlink asks --- */

static int eswitch_get(struct devlink *devlink, u16 *found)
{
	*found = mode;
	return 0;
}

static int eswitch_set(struct devlink *devlink, u16 wanted, struct netlink_ext_ack *extack)
{
	if (wanted != DEVLINK_ESWITCH_MODE_SWITCHDEV && !list_empty(&functions)) {
		NL_SET_ERR_MSG_MOD(extack, "there are scalable functions");
		return -EBUSY;
	}
	mode = wanted;
	return 0;
}

static bool is_taken(u32 number)
{
	struct function *function;

	list_for_each_entry(function, &functions, list)
		if (function->port.attrs.pci_sf.sf == number)
			return true;
	return false;
}

static int function_add(struct devlink *devlink, const struct devlink_port_new_attrs *attrs,
			struct netlink_ext_ack *extack, unsigned int *index)
{
	struct devlink_port_attrs port = { .flavour = DEVLINK_PORT_FLAVOUR_PCI_SF, .switch_id = switch_id };
	struct function *function;
	u32 number = attrs->sfnum_valid ? attrs->sfnum : 0;
	int error = 0;

	if (mode != DEVLINK_ESWITCH_MODE_SWITCHDEV) {
		NL_SET_ERR_MSG_MOD(extack, "functions are added in mode switchdev only");
		return -EOPNOTSUPP;
	}
	if (attrs->flavour != DEVLINK_PORT_FLAVOUR_PCI_SF || attrs->pfnum) {
		NL_SET_ERR_MSG_MOD(extack, "only scalable functions of PF 0 are added");
		return -EOPNOTSUPP;
	}
	while (!attrs->sfnum_valid && is_taken(number))
		number++;
	if (is_taken(number))
		error = -EEXIST;
	if (number >= MOST)
		error = -ENOSPC;
	function = error ? NULL : kzalloc(sizeof(*function), GFP_KERNEL);
	if (!error && !function)
		error = -ENOMEM;
	if (!error) {
		*index = attrs->port_index_valid ? attrs->port_index : FIRST + number;
		devlink_port_attrs_set(&function->port, &port);
		devlink_port_attrs_pci_sf_set(&function->port, 0, 0, number, false);
		error = plugged_in(function, *index);
		if (error)
			kfree(function);
		else
			list_add_tail(&function->list, &functions);
	}
	if (error == -EEXIST)
		NL_SET_ERR_MSG_MOD(extack, "there is such a function");
	if (error == -ENOSPC)
		NL_SET_ERR_MSG_MOD(extack, "no room for this function");
	return error;
}

static int function_delete(struct devlink *devlink, unsigned int index, struct netlink_ext_ack *extack)
{
	struct function *function, *next;
	int error = -EOPNOTSUPP;

	list_for_each_entry_safe(function, next, &functions, list)
		if (function->port.index == index) {
			list_del(&function->list);
			unplugged(function);
			kfree(function);
			error = 0;
		}
	if (error)
		NL_SET_ERR_MSG_MOD(extack, "this is no scalable function");
	return error;
}

static int address_get(struct devlink_port *port, u8 *address, int *length, struct netlink_ext_ack *extack)
{
	if (port == &uplink.port)
		return -EOPNOTSUPP;
	ether_addr_copy(address, container_of(port, struct function, port)->mac);
	*length = ETH_ALEN;
	return 0;
}

static int address_set(struct devlink_port *port, const u8 *address, int length, struct netlink_ext_ack *extack)
{
	struct function *function = container_of(port, struct function, port);

	if (port == &uplink.port)
		return -EOPNOTSUPP;
	if (function->active) {
		NL_SET_ERR_MSG_MOD(extack, "the function is active");
		return -EBUSY;
	}
	ether_addr_copy(function->mac, address);
	return 0;
}

static int state_get(struct devlink_port *port, enum devlink_port_fn_state *state,
		     enum devlink_port_fn_opstate *opstate, struct netlink_ext_ack *extack)
{
	bool active = container_of(port, struct function, port)->active;

	if (port == &uplink.port)
		return -EOPNOTSUPP;
	*state = active ? DEVLINK_PORT_FN_STATE_ACTIVE : DEVLINK_PORT_FN_STATE_INACTIVE;
	*opstate = active ? DEVLINK_PORT_FN_OPSTATE_ATTACHED : DEVLINK_PORT_FN_OPSTATE_DETACHED;
	return 0;
}

static int state_set(struct devlink_port *port, enum devlink_port_fn_state state, struct netlink_ext_ack *extack)
{
	if (port == &uplink.port)
		return -EOPNOTSUPP;
	container_of(port, struct function, port)->active = state == DEVLINK_PORT_FN_STATE_ACTIVE;
	return 0;
}

static const struct devlink_ops devlink_operations = {
	.eswitch_mode_get = eswitch_get,
	.eswitch_mode_set = eswitch_set,
	.port_new = function_add,
	.port_del = function_delete,
	.port_function_hw_addr_get = address_get,
	.port_function_hw_addr_set = address_set,
	.port_fn_state_get = state_get,
	.port_fn_state_set = state_set,
};

/* --- the module --- */

static int __init begin(void)
{
	struct devlink_port_attrs port = { .flavour = DEVLINK_PORT_FLAVOUR_PHYSICAL, .switch_id = switch_id };
	int error;

	device = platform_device_register_simple("feigned_functions", PLATFORM_DEVID_NONE, NULL, 0);
	if (IS_ERR(device))
		return PTR_ERR(device);
	nic = devlink_alloc(&devlink_operations, 0, &device->dev);
	if (!nic) {
		platform_device_unregister(device);
		return -ENOMEM;
	}
	devlink_port_attrs_set(&uplink.port, &port);
	devl_lock(nic);
	error = plugged_in(&uplink, UPLINK);
	devl_unlock(nic);
	if (error) {
		devlink_free(nic);
		platform_device_unregister(device);
		return error;
	}
	devlink_register(nic);
	return 0;
}

static void __exit end(void)
{
	struct function *function, *next;

	devlink_unregister(nic);
	devl_lock(nic);
	list_for_each_entry_safe(function, next, &functions, list) {
		unplugged(function);
		kfree(function);
	}
	unplugged(&uplink);
	devl_unlock(nic);
	devlink_free(nic);
	platform_device_unregister(device);
}

module_init(begin);
module_exit(end);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("An eswitch with scalable functions, feigned for tests");
