"""The attributes of TC's netlink messages: names, numbers and forms, level by level. One table, for reader, packer and pyroute2's classes.

A number of a form is a whole number here, in whichever byte order it travels: addresses and labels as well. Names are the kernel's without what all
of a level begin with (TCA_FLOWER_KEY_CT_STATE of the level FLOWER is KEY_CT_STATE). Levels of Many hold one kind of thing several times.
Source: linux/pkt_cls.h, rtnetlink.h, gen_stats.h and tc_act/*.h of Linux 6.18. Not here: what they mean (flower, actions), bytes (read, pack).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from struct import Struct
from typing import NamedTuple


class Form(NamedTuple):
    """A value of so many bytes in an order; pyroute2: its name there."""

    name: str
    size: int
    order: str
    pyroute2: str


class Record(NamedTuple):
    """A C struct: fields by name, in the machine's order. tail: whether older kernels may send less of it, and newer ones more."""

    name: str
    layout: Struct
    fields: tuple[str, ...]
    tail: bool = False


@dataclass(frozen=True)
class Level:
    """Attributes by number. prefix: of their names in the kernel's headers; numbers: by name."""

    name: str
    prefix: str
    attributes: Mapping[int, tuple[str, Kind]]
    numbers: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "numbers", {name: number for number, (name, _) in self.attributes.items()})


@dataclass(frozen=True)
class Many:
    """Attributes that are all of one level, in the order in which they come. number: of each, None: 1, 2, ..."""

    level: Level
    number: int | None = None


@dataclass(frozen=True)
class Choice:
    """The level hangs on the text of another attribute beside it."""

    by: str
    levels: Mapping[str, Level]


Kind = Form | Record | Level | Many | Choice | str  # str: TEXT, BYTES, FLAG

_HOST = sys.byteorder
TEXT, BYTES, FLAG = "text", "bytes", "flag"
U8, U16, U32, U64 = (Form(f"u{size * 8}", size, _HOST, f"uint{size * 8}") for size in (1, 2, 4, 8))
S32 = Form("s32", 4, _HOST, "int32")
BE16, BE32 = Form("be16", 2, "big", "be16"), Form("be32", 4, "big", "be32")
IP4, IP6, MAC = Form("ip4", 4, "big", "ip4addr"), Form("ip6", 16, "big", "ip6addr"), Form("mac", 6, "big", "l2addr")
LABEL = Form("label", 16, "little", "cdata")  # bytes in memory, the lowest first, on every machine

TC_GEN = ("index", "capab", "action", "refcnt", "bindcnt")
GEN = Record("tc_gen", Struct("=IIiii"), TC_GEN)
TIMES = Record("tcf_t", Struct("=QQQQ"), ("install", "lastuse", "expires", "firstuse"), tail=True)
BITFIELD = Record("bitfield32", Struct("=II"), ("bits", "selector"))
BASIC = Record("gnet_stats_basic", Struct("=QI"), ("bytes", "packets"), tail=True)  # and 4 bytes that fill it up
QUEUE = Record("gnet_stats_queue", Struct("=IIIII"), ("qlen", "backlog", "drops", "requeues", "overlimits"))
MIRRED_RECORD = Record("tc_mirred", Struct("=IIiiiiI"), (*TC_GEN, "eaction", "ifindex"))
CSUM_RECORD = Record("tc_csum", Struct("=IIiiiI"), (*TC_GEN, "update_flags"))
VLAN_RECORD = Record("tc_vlan", Struct("=IIiiii"), (*TC_GEN, "v_action"))
_RATE = ("cell_log", "linklayer", "overhead", "cell_align", "mpu", "rate")
POLICE_RECORD = Record(
    "tc_police",
    Struct("=IiIII" + "BBHhHI" * 2 + "iiI"),
    ("index", "action", "limit", "burst", "mtu", *_RATE, *(f"peak_{name}" for name in _RATE), "refcnt", "bindcnt", "capab"),
)

STATS = Level("stats", "TCA_STATS_", {
    1: ("BASIC", BASIC), 2: ("RATE_EST", BYTES), 3: ("QUEUE", QUEUE), 4: ("APP", BYTES), 5: ("RATE_EST64", BYTES), 6: ("PAD", BYTES),
    7: ("BASIC_HW", BASIC), 8: ("PKT64", U64),
})  # fmt: skip

# --- options of actions -----------------------------------------------------------------------------------------------------------------

GACT = Level("gact", "TCA_GACT_", {1: ("TM", TIMES), 2: ("PARMS", GEN), 3: ("PROB", BYTES), 4: ("PAD", BYTES)})
MIRRED = Level("mirred", "TCA_MIRRED_", {1: ("TM", TIMES), 2: ("PARMS", MIRRED_RECORD), 3: ("PAD", BYTES), 4: ("BLOCKID", U32)})
CSUM = Level("csum", "TCA_CSUM_", {1: ("PARMS", CSUM_RECORD), 2: ("TM", TIMES), 3: ("PAD", BYTES)})
CT = Level("ct", "TCA_CT_", {
    1: ("PARMS", GEN), 2: ("TM", TIMES), 3: ("ACTION", U16), 4: ("ZONE", U16), 5: ("MARK", U32), 6: ("MARK_MASK", U32), 7: ("LABELS", LABEL),
    8: ("LABELS_MASK", LABEL), 9: ("NAT_IPV4_MIN", IP4), 10: ("NAT_IPV4_MAX", IP4), 11: ("NAT_IPV6_MIN", IP6), 12: ("NAT_IPV6_MAX", IP6),
    13: ("NAT_PORT_MIN", BE16), 14: ("NAT_PORT_MAX", BE16), 15: ("PAD", BYTES), 16: ("HELPER_NAME", TEXT), 17: ("HELPER_FAMILY", U8),
    18: ("HELPER_PROTO", U8),
})  # fmt: skip
PEDIT_KEY = Level("pedit key", "TCA_PEDIT_KEY_EX_", {1: ("HTYPE", U16), 2: ("CMD", U16)})
PEDIT_KEY_EX = 6
PEDIT = Level("pedit", "TCA_PEDIT_", {
    1: ("TM", TIMES), 2: ("PARMS", BYTES), 3: ("PAD", BYTES), 4: ("PARMS_EX", BYTES), 5: ("KEYS_EX", Many(PEDIT_KEY, PEDIT_KEY_EX)),
})  # fmt: skip
SKBEDIT = Level("skbedit", "TCA_SKBEDIT_", {
    1: ("TM", TIMES), 2: ("PARMS", GEN), 3: ("PRIORITY", U32), 4: ("QUEUE_MAPPING", U16), 5: ("MARK", U32), 6: ("PAD", BYTES), 7: ("PTYPE", U16),
    8: ("MASK", U32), 9: ("FLAGS", U64), 10: ("QUEUE_MAPPING_MAX", U16),
})  # fmt: skip
VLAN = Level("vlan", "TCA_VLAN_", {
    1: ("TM", TIMES), 2: ("PARMS", VLAN_RECORD), 3: ("PUSH_VLAN_ID", U16), 4: ("PUSH_VLAN_PROTOCOL", BE16), 5: ("PAD", BYTES),
    6: ("PUSH_VLAN_PRIORITY", U8), 7: ("PUSH_ETH_DST", MAC), 8: ("PUSH_ETH_SRC", MAC),
})  # fmt: skip
POLICE = Level("police", "TCA_POLICE_", {
    1: ("TBF", POLICE_RECORD), 2: ("RATE", BYTES), 3: ("PEAKRATE", BYTES), 4: ("AVRATE", U32), 5: ("RESULT", S32), 6: ("TM", TIMES),
    7: ("PAD", BYTES), 8: ("RATE64", U64), 9: ("PEAKRATE64", U64), 10: ("PKTRATE64", U64), 11: ("PKTBURST64", U64),
})  # fmt: skip
OPTIONS = {each.name: each for each in (GACT, MIRRED, CSUM, CT, PEDIT, SKBEDIT, VLAN, POLICE)}
MOST_ACTIONS = 32  # TCA_ACT_MAX_PRIO

ACTION = Level("action", "TCA_ACT_", {
    1: ("KIND", TEXT), 2: ("OPTIONS", Choice("KIND", OPTIONS)), 3: ("INDEX", U32), 4: ("STATS", STATS), 5: ("PAD", BYTES), 6: ("COOKIE", BYTES),
    7: ("FLAGS", BITFIELD), 8: ("HW_STATS", BITFIELD), 9: ("USED_HW_STATS", BITFIELD), 10: ("IN_HW_COUNT", U32), 11: ("EXT_WARN_MSG", TEXT),
})  # fmt: skip

# --- flower -----------------------------------------------------------------------------------------------------------------------------


def _pair(number: int, name: str, form: Form) -> dict[int, tuple[str, Kind]]:
    """A key and its mask behind it."""
    return {number: (f"KEY_{name}", form), number + 1: (f"KEY_{name}_MASK", form)}


FLOWER = Level("flower", "TCA_FLOWER_", {
    1: ("CLASSID", U32), 2: ("INDEV", TEXT), 3: ("ACT", Many(ACTION)), **_pair(4, "ETH_DST", MAC), **_pair(6, "ETH_SRC", MAC),
    8: ("KEY_ETH_TYPE", BE16), 9: ("KEY_IP_PROTO", U8), **_pair(10, "IPV4_SRC", IP4), **_pair(12, "IPV4_DST", IP4), **_pair(14, "IPV6_SRC", IP6),
    **_pair(16, "IPV6_DST", IP6),
    18: ("KEY_TCP_SRC", BE16), 19: ("KEY_TCP_DST", BE16), 20: ("KEY_UDP_SRC", BE16), 21: ("KEY_UDP_DST", BE16), 22: ("FLAGS", U32),
    23: ("KEY_VLAN_ID", U16), 24: ("KEY_VLAN_PRIO", U8), 25: ("KEY_VLAN_ETH_TYPE", BE16), 26: ("KEY_ENC_KEY_ID", BE32),
    **_pair(27, "ENC_IPV4_SRC", IP4), **_pair(29, "ENC_IPV4_DST", IP4), **_pair(31, "ENC_IPV6_SRC", IP6), **_pair(33, "ENC_IPV6_DST", IP6),
    35: ("KEY_TCP_SRC_MASK", BE16), 36: ("KEY_TCP_DST_MASK", BE16), 37: ("KEY_UDP_SRC_MASK", BE16), 38: ("KEY_UDP_DST_MASK", BE16),
    39: ("KEY_SCTP_SRC_MASK", BE16), 40: ("KEY_SCTP_DST_MASK", BE16), 41: ("KEY_SCTP_SRC", BE16), 42: ("KEY_SCTP_DST", BE16),
    **_pair(43, "ENC_UDP_SRC_PORT", BE16), **_pair(45, "ENC_UDP_DST_PORT", BE16), **_pair(47, "FLAGS", BE32), **_pair(49, "ICMPV4_CODE", U8),
    **_pair(51, "ICMPV4_TYPE", U8), **_pair(53, "ICMPV6_CODE", U8), **_pair(55, "ICMPV6_TYPE", U8), **_pair(57, "ARP_SIP", IP4),
    **_pair(59, "ARP_TIP", IP4), **_pair(61, "ARP_OP", U8), **_pair(63, "ARP_SHA", MAC), **_pair(65, "ARP_THA", MAC), 67: ("KEY_MPLS_TTL", U8),
    68: ("KEY_MPLS_BOS", U8), 69: ("KEY_MPLS_TC", U8), 70: ("KEY_MPLS_LABEL", U32), **_pair(71, "TCP_FLAGS", BE16), **_pair(73, "IP_TOS", U8),
    **_pair(75, "IP_TTL", U8), 77: ("KEY_CVLAN_ID", U16), 78: ("KEY_CVLAN_PRIO", U8), 79: ("KEY_CVLAN_ETH_TYPE", BE16), **_pair(80, "ENC_IP_TOS", U8),
    **_pair(82, "ENC_IP_TTL", U8), 84: ("KEY_ENC_OPTS", BYTES), 85: ("KEY_ENC_OPTS_MASK", BYTES), 86: ("IN_HW_COUNT", U32),
    87: ("KEY_PORT_SRC_MIN", BE16), 88: ("KEY_PORT_SRC_MAX", BE16), 89: ("KEY_PORT_DST_MIN", BE16), 90: ("KEY_PORT_DST_MAX", BE16),
    **_pair(91, "CT_STATE", U16), **_pair(93, "CT_ZONE", U16), **_pair(95, "CT_MARK", U32), **_pair(97, "CT_LABELS", LABEL),
    99: ("KEY_MPLS_OPTS", BYTES), **_pair(100, "HASH", U32), 102: ("KEY_NUM_OF_VLANS", U8), 103: ("KEY_PPPOE_SID", BE16),
    104: ("KEY_PPP_PROTO", BE16), 105: ("KEY_L2TPV3_SID", BE32), 106: ("L2_MISS", U8), 107: ("KEY_CFM", BYTES), **_pair(108, "SPI", BE32),
    **_pair(110, "ENC_FLAGS", BE32),
})  # fmt: skip

# --- messages ---------------------------------------------------------------------------------------------------------------------------

TC = Level("tc", "TCA_", {
    1: ("KIND", TEXT), 2: ("OPTIONS", Choice("KIND", {"flower": FLOWER})), 3: ("STATS", BYTES), 4: ("XSTATS", BYTES), 5: ("RATE", BYTES),
    6: ("FCNT", U32), 7: ("STATS2", STATS), 8: ("STAB", BYTES), 9: ("PAD", BYTES), 10: ("DUMP_INVISIBLE", FLAG), 11: ("CHAIN", U32),
    12: ("HW_OFFLOAD", U8), 13: ("INGRESS_BLOCK", U32), 14: ("EGRESS_BLOCK", U32), 15: ("DUMP_FLAGS", BITFIELD), 16: ("EXT_WARN_MSG", TEXT),
})  # fmt: skip
EXTACK = Level("extack", "NLMSGERR_ATTR_", {
    1: ("MSG", TEXT), 2: ("OFFS", U32), 3: ("COOKIE", BYTES), 4: ("POLICY", BYTES), 5: ("MISS_TYPE", U32), 6: ("MISS_NEST", U32),
})  # fmt: skip
