"""The attributes of the generic netlink family devlink, as far as eswitches, devlink ports and their functions go: names, numbers and forms.

pyroute2 0.9 has a list of its own, up to 148: it lacks what tells functions apart (controllers, numbers of SFs, whether they are another host's), and
reads what a function has as if it were a devlink port's. Words for numbers are those of devlink(8).
Source: linux/devlink.h of Linux 6.18. Not here: what they mean (model), bytes (offload.netlink.read), sockets (family).
"""

from __future__ import annotations

from collections.abc import Mapping

from offload.netlink.attributes import BITFIELD, BYTES, TEXT, U8, U16, U32, Level

DEVLINK, VERSION = "devlink", 1  # of the family
# DEVLINK_CMD_*
GET, PORT_GET, PORT_SET, PORT_NEW, PORT_DELETE, ESWITCH_GET, ESWITCH_SET = 1, 5, 6, 7, 8, 29, 30

FUNCTION = Level("function", "DEVLINK_PORT_FN_ATTR_", {
    1: ("HW_ADDR", BYTES), 2: ("STATE", U8), 3: ("OPSTATE", U8), 4: ("CAPS", BITFIELD), 5: ("DEVLINK", BYTES), 6: ("MAX_IO_EQS", U32),
})  # fmt: skip
DEVICE = Level("devlink", "DEVLINK_ATTR_", {
    1: ("BUS_NAME", TEXT), 2: ("DEV_NAME", TEXT), 3: ("PORT_INDEX", U32), 4: ("PORT_TYPE", U16), 5: ("PORT_DESIRED_TYPE", U16),
    6: ("PORT_NETDEV_IFINDEX", U32), 7: ("PORT_NETDEV_NAME", TEXT), 8: ("PORT_IBDEV_NAME", TEXT), 9: ("PORT_SPLIT_COUNT", U32),
    10: ("PORT_SPLIT_GROUP", U32), 25: ("ESWITCH_MODE", U16), 26: ("ESWITCH_INLINE_MODE", U8), 62: ("ESWITCH_ENCAP_MODE", U8),
    77: ("PORT_FLAVOUR", U16), 78: ("PORT_NUMBER", U32), 79: ("PORT_SPLIT_SUBPORT_NUMBER", U32), 127: ("PORT_PCI_PF_NUMBER", U16),
    128: ("PORT_PCI_VF_NUMBER", U16), 136: ("RELOAD_FAILED", U8), 145: ("PORT_FUNCTION", FUNCTION), 147: ("PORT_LANES", U32),
    148: ("PORT_SPLITTABLE", U8), 149: ("PORT_EXTERNAL", U8), 150: ("PORT_CONTROLLER_NUMBER", U32), 164: ("PORT_PCI_SF_NUMBER", U32),
    171: ("LINECARD_INDEX", U32),
})  # fmt: skip

PHYSICAL, PCI_PF, PCI_VF, PCI_SF = 0, 3, 4, 7  # DEVLINK_PORT_FLAVOUR_*
FLAVOURS = {PHYSICAL: "physical", 1: "cpu", 2: "dsa", PCI_PF: "pcipf", PCI_VF: "pcivf", 5: "virtual", 6: "unused", PCI_SF: "pcisf"}
TYPES = {0: "notset", 1: "auto", 2: "eth", 3: "ib"}
LEGACY, SWITCHDEV = "legacy", "switchdev"
MODES = {0: LEGACY, 1: SWITCHDEV}
INLINE_MODES = {0: "none", 1: "link", 2: "network", 3: "transport"}
ENCAP_MODES = {0: "none", 1: "basic"}
STATES = {0: "inactive", 1: "active"}
OPSTATES = {0: "detached", 1: "attached"}


def word(of: Mapping[int, str], number: int) -> str:
    """A number in words; of newer kernels there may be others, which stay numbers."""
    return of.get(number, f"#{number}")


def number(of: Mapping[int, str], said: str) -> int:
    """The reverse. Raises KeyError."""
    return {name: each for each, name in of.items()}[said]
