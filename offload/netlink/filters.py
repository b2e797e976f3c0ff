"""Whole messages of TC: filters, chains with templates, qdiscs; for one place where chains hang.

A message is header and body, its sequence number nought: the channel numbers what it asks. Not here: keys, actions.
"""

from __future__ import annotations

import socket
from struct import Struct
from typing import NamedTuple

from offload.netlink.attributes import TC
from offload.netlink.flower import ACT, FLAGS
from offload.netlink.pack import attribute, text, u32

MESSAGE = Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
TCMSG = Struct("=BxxxiIII")  # struct tcmsg: family, ifindex, handle, parent, info
NEW_QDISC, DELETE_QDISC, GET_QDISC, NEW_FILTER, DELETE_FILTER, GET_FILTER = 36, 37, 38, 44, 45, 46  # RTM_*
NEW_CHAIN, DELETE_CHAIN, GET_CHAIN = 100, 101, 102
REQUEST, ACK, ECHO, EXCLUSIVE, CREATE, DUMP = 0x1, 0x4, 0x8, 0x200, 0x400, 0x300  # NLM_F_*
INGRESS_PARENT, EGRESS_PARENT = 0xFFFFFFF2, 0xFFFFFFF3  # ffff:fff2, ffff:fff3 of clsact
CLSACT_PARENT, CLSACT_HANDLE = 0xFFFFFFF1, 0xFFFF0000
BLOCK_IFINDEX = -1  # TCM_IFINDEX_MAGIC_BLOCK
KIND, OPTIONS, CHAIN, DUMP_FLAGS = (TC.numbers[name] for name in ("KIND", "OPTIONS", "CHAIN", "DUMP_FLAGS"))
_FLOWER = text(KIND, "flower")
_BITFIELD = Struct("=II")
TERSE = 1  # TCA_DUMP_FLAGS_TERSE


class Where(NamedTuple):
    """Where chains hang: an interface's ingress or egress, or a shared block (then ifindex is BLOCK_IFINDEX and parent its number)."""

    ifindex: int
    parent: int = INGRESS_PARENT


def block(number: int) -> Where:
    return Where(BLOCK_IFINDEX, number)


class Name(NamedTuple):
    """What tells a filter from others of one place. prio 0, handle 0: any, or as the kernel gives them."""

    chain: int
    prio: int
    protocol: int
    handle: int = 0


def message(kind: int, flags: int, body: bytes) -> bytes:
    return MESSAGE.pack(MESSAGE.size + len(body), kind, REQUEST | flags, 0, 0) + body


def _head(where: Where, name: Name) -> bytes:
    return TCMSG.pack(0, where.ifindex, name.handle, where.parent, name.prio << 16 | socket.htons(name.protocol)) + u32(CHAIN, name.chain)


def filter_options(keys: bytes, actions: bytes, flags: int) -> bytes:
    """keys: of flower.keys; actions: of actions.listed; flags: SKIP_SW, SKIP_HW."""
    return keys + (attribute(ACT, actions) if actions else b"") + u32(FLAGS, flags)


def new_filter(where: Where, name: Name, options: bytes, *, replace: bool = False, echo: bool = False) -> bytes:
    """Make a filter; replace: or change the one of that name. echo: the answer has the filter as the kernel made it."""
    flags = CREATE | ACK | (0 if replace else EXCLUSIVE) | (ECHO if echo else 0)
    return message(NEW_FILTER, flags, _head(where, name) + _FLOWER + attribute(OPTIONS, options))


def delete_filter(where: Where, name: Name) -> bytes:
    """One filter, or without a handle all of a priority."""
    return message(DELETE_FILTER, ACK, _head(where, name) + (_FLOWER if name.handle else b""))


def get_filter(where: Where, name: Name) -> bytes:
    return message(GET_FILTER, ACK, _head(where, name) + _FLOWER)


def dump_filters(where: Where, chain: int | None = None, prio: int = 0, *, terse: bool = False) -> bytes:
    """All filters of a place, or of one of its chains, or of a priority. terse: without keys and options of actions, for counters of many."""
    body = TCMSG.pack(0, where.ifindex, 0, where.parent, prio << 16) + (u32(CHAIN, chain) if chain is not None else b"")
    if terse:
        body += attribute(DUMP_FLAGS, _BITFIELD.pack(TERSE, TERSE))
    return message(GET_FILTER, DUMP, body)


# --- chains, qdiscs -----------------------------------------------------------------------------------------------------------------------


def new_chain(where: Where, chain: int, protocol: int = 0, keys: bytes | None = None) -> bytes:
    """A chain, with a template if keys are given."""
    body = TCMSG.pack(0, where.ifindex, 0, where.parent, socket.htons(protocol)) + u32(CHAIN, chain)
    if keys is not None:
        body += _FLOWER + attribute(OPTIONS, keys + u32(FLAGS, 0))
    return message(NEW_CHAIN, CREATE | EXCLUSIVE | ACK, body)


def delete_chain(where: Where, chain: int) -> bytes:
    """The chain with all that is in it."""
    return message(DELETE_CHAIN, ACK, TCMSG.pack(0, where.ifindex, 0, where.parent, 0) + u32(CHAIN, chain))


def dump_chains(where: Where) -> bytes:
    return message(GET_CHAIN, DUMP, TCMSG.pack(0, where.ifindex, 0, where.parent, 0))


def new_qdisc(ifindex: int, kind: str = "clsact", ingress_block: int | None = None, egress_block: int | None = None) -> bytes:
    """The qdisc that an interface's hooks belong to: clsact or ingress."""
    body = TCMSG.pack(0, ifindex, CLSACT_HANDLE, CLSACT_PARENT, 0) + text(KIND, kind)
    blocks = (("INGRESS_BLOCK", ingress_block), ("EGRESS_BLOCK", egress_block))
    body += b"".join(u32(TC.numbers[name], number) for name, number in blocks if number is not None)
    return message(NEW_QDISC, CREATE | EXCLUSIVE | ACK, body)


def delete_qdisc(ifindex: int) -> bytes:
    """With all filters that hang there."""
    return message(DELETE_QDISC, ACK, TCMSG.pack(0, ifindex, CLSACT_HANDLE, CLSACT_PARENT, 0))


def dump_qdiscs(ifindex: int = 0) -> bytes:
    return message(GET_QDISC, DUMP, TCMSG.pack(0, ifindex, 0, 0, 0))
