"""What a NIC says of a frame: verdict, why, where software goes on, and what left.

Invariant: a frame that missed has been counted by no rule at or behind the place where software goes on, and has left nowhere but as copies of
mirrors before that place.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

import numpy as np

NO_RULE = 0xFFFFFFFF
NO_CONN = -1


class Verdict(IntEnum):
    """forwarded: left at an iface; passed: a rule gave it to the host, and no other rule is to see it; missed: software goes on with it."""

    FORWARDED = 1
    PASSED = 2
    DROPPED = 3
    MISSED = 4


class Why(IntEnum):
    """Of what was dropped, and of what missed. The sentences are in WHY."""

    NONE = 0
    # dropped
    RULE = 1
    POLICED = 2
    # missed at the parser, before any rule
    LINK = 10
    TRUNCATED = 11
    TAGS = 12
    IP_HEADER = 13
    IP_LENGTH = 14
    IP_OPTIONS = 15
    IP6_EXTENSION = 16
    FRAGMENT = 17
    TRANSPORT = 18
    # missed in a chain
    NO_RULE = 30
    IN_SOFTWARE = 31
    CHAINS = 32
    COPIES = 33
    TAG_ROOM = 34
    SUM = 35
    FIELD = 36
    # missed in a CT table
    CT_PROTO = 50
    CT_CLOSING = 51
    CT_MISS = 52
    CT_TABLE = 53


WHY: dict[Why, str] = {
    Why.NONE: "it was forwarded, or given to the host",
    Why.RULE: "a rule in hardware drops it",
    Why.POLICED: "a policer in hardware had no token",
    Why.LINK: "it is no Ethernet frame",
    Why.TRUNCATED: "a header is cut short",
    Why.TAGS: "it has more than two VLAN tags",
    Why.IP_HEADER: "its IP header's version or length is wrong",
    Why.IP_LENGTH: "its IP header tells a length that the frame does not have",
    Why.IP_OPTIONS: "its IPv4 header has options",
    Why.IP6_EXTENSION: "its IPv6 header has extensions",
    Why.FRAGMENT: "it is a fragment",
    Why.TRANSPORT: "its TCP header's length is wrong",
    Why.NO_RULE: "no rule of its chain in hardware matches",
    Why.IN_SOFTWARE: "its rule is in software only",
    Why.CHAINS: "it has been through as many chains as hardware goes through",
    Why.COPIES: "it has been mirrored as often as hardware does",
    Why.TAG_ROOM: "it has been given as many VLAN tags as hardware has room for",
    Why.SUM: "its checksum cannot be made in hardware: it was captured in part, or its lengths disagree",
    Why.FIELD: "it does not have the header that is to be changed",
    Why.CT_PROTO: "only TCP, UDP and plain GRE are in the CT tables",
    Why.CT_CLOSING: "FIN or RST: only software ends connections",
    Why.CT_MISS: "its connection is not in the CT table",
    Why.CT_TABLE: "its connection is in the CT_NAT table only, and the rule asks for no translation",
}
assert set(WHY) == set(Why)


class Flag(IntFlag):
    """changed: its bytes lie in the NIC's memory; ct: a CT table served it; syn: it was a SYN, forwarded as if established (contract A4.27)."""

    CHANGED = 1
    CT = 2
    SYN = 4


# A row for each frame. chain, rule, action: of what missed, where software goes on: the chain's number, a rule of the ruleset, or NO_RULE: from the
# chain's beginning, and one of its actions; else the rule that decided. ct_state, zone, mark, labels, zone_restore, conn: the registers;
# skb_mark, priority: of skbedit. offset, caplen, length: the frame as it is now; first_output, n_outputs: its rows of OUTPUT_DTYPE.
RESULT_DTYPE = np.dtype(
    [
        ("offset", "i8"), ("conn", "i8"), ("caplen", "u4"), ("length", "u4"), ("chain", "u4"), ("rule", "u4"), ("mark", "u4"), ("labels", "u4"),
        ("skb_mark", "u4"), ("priority", "u4"), ("first_output", "u4"), ("zone", "u2"), ("zone_restore", "u2"), ("action", "u2"), ("iface", "u2"),
        ("group", "u2"), ("n_outputs", "u1"), ("verdict", "u1"), ("why", "u1"), ("flags", "u1"), ("ct_state", "u1"), ("chains", "u1"),
    ],
    align=True,
)  # fmt: skip


class OutputFlag(IntFlag):
    CHANGED = 1
    COPY = 2


# What left: frame: its row. flags: OutputFlag; changed: the bytes lie in the NIC's memory. egress 0: the host receives it.
OUTPUT_DTYPE = np.dtype(
    [
        ("offset", "i8"), ("frame", "u4"), ("caplen", "u4"), ("length", "u4"), ("mark", "u4"), ("priority", "u4"), ("iface", "u2"), ("egress", "u1"),
        ("flags", "u1"),
    ],
    align=True,
)  # fmt: skip

# By rule of the ruleset, as software counts: bytes on the wire; last: ns, -1: never.
COUNT_DTYPE = np.dtype([("packets", "i8"), ("bytes", "i8"), ("last", "i8"), ("drops", "i8"), ("overlimits", "i8")])
