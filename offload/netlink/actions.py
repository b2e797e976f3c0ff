"""What a filter does, as attributes: one function for each kind of action, of plain numbers.

Each gives an action's kind and options; `listed` puts several one after the other, with a cookie and what counters are wanted. What follows an action
is a number: PASS, PIPE, ..., or goto(chain).
Source: linux/tc_act/*.h, and what tc of iproute2 6.1 sends. Not here: which actions there are in a rules file (datapath.pipeline.rules).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from struct import Struct
from typing import NamedTuple

from offload.netlink.attributes import (
    ACTION,
    CSUM,
    CSUM_RECORD,
    CT,
    GACT,
    GEN,
    MIRRED,
    MIRRED_RECORD,
    MOST_ACTIONS,
    PEDIT,
    PEDIT_KEY,
    PEDIT_KEY_EX,
    POLICE,
    POLICE_RECORD,
    SKBEDIT,
    VLAN,
    VLAN_RECORD,
)
from offload.netlink.pack import NESTED, attribute, nested, text, u8, u16, u32, u64

# What follows (TC_ACT_*). CONTINUE is "unspecified": the next filter is tried.
CONTINUE, PASS, RECLASSIFY, DROP, PIPE, STOLEN = -1, 0, 1, 2, 3, 4
GOTO = 0x20000000
MOST_CHAIN = (1 << 28) - 1

COMMIT, FORCE, CLEAR, NAT, NAT_SRC, NAT_DST = (1 << bit for bit in range(6))  # TCA_CT_ACT_*
EGRESS_REDIRECT, EGRESS_MIRROR, INGRESS_REDIRECT, INGRESS_MIRROR = 1, 2, 3, 4  # TCA_*GRESS_*
NETWORK, ETH, IP4, IP6, TCP, UDP = range(6)  # TCA_PEDIT_KEY_EX_HDR_TYPE_*
SET, ADD = 0, 1  # TCA_PEDIT_KEY_EX_CMD_*
POP, PUSH, MODIFY = 1, 2, 3  # TCA_VLAN_ACT_*
SUMS = {"ip4h": 1, "icmp": 2, "igmp": 4, "tcp": 8, "udp": 16, "udplite": 32, "sctp": 64}  # TCA_CSUM_UPDATE_FLAG_*

PEDIT_SELECTOR = Struct("=IIiiiBBxx")  # struct tc_pedit_sel without keys: tc_gen, nkeys, flags
PEDIT_WORD = Struct(">II")  # of struct tc_pedit_key: the mask of what stays, and the value, as in the packet
PEDIT_PLACE = Struct("=IIII")  # off, at, offmask, shift
MOST_WORDS = 128  # words of one pedit that tc sends


class Packed(NamedTuple):
    """An action: its kind and its options."""

    kind: str
    options: bytes


def goto(chain: int) -> int:
    return GOTO | chain


def listed(actions: Iterable[Packed], cookie: bytes = b"", hw_stats: int = 0) -> bytes:
    """The payload of TCA_FLOWER_ACT. cookie: of up to 16 bytes, for each of them; hw_stats: TCA_ACT_HW_STATS_* (1 immediate, 2 delayed), 0: any.

    Raises ValueError for more than MOST_ACTIONS.
    """
    parts = []
    for number, (kind, options) in enumerate(actions, 1):
        if number > MOST_ACTIONS:
            raise ValueError(f"more than {MOST_ACTIONS} actions")
        one = [_kind(kind), attribute(_OPTIONS, options)]
        if cookie:
            one.append(attribute(_COOKIE, cookie))
        if hw_stats:
            one.append(attribute(_HW_STATS, _BITFIELD.pack(hw_stats, hw_stats)))
        parts.append(attribute(number, b"".join(one)))
    return b"".join(parts)


_OPTIONS, _COOKIE, _HW_STATS = ACTION.numbers["OPTIONS"] | NESTED, ACTION.numbers["COOKIE"], ACTION.numbers["HW_STATS"]
_BITFIELD = Struct("=II")


@lru_cache
def _kind(kind: str) -> bytes:
    return text(ACTION.numbers["KIND"], kind)


def _gen(number: int, control: int) -> bytes:
    return attribute(number, GEN.layout.pack(0, 0, control, 0, 0))


# --- one for each kind --------------------------------------------------------------------------------------------------------------------


def gact(control: int) -> Packed:
    return Packed("gact", _gen(GACT.numbers["PARMS"], control))


class Nat(NamedTuple):
    """kind: NAT_SRC, NAT_DST, or 0 to apply what the connection has. low, high: addresses of `version`; ports: both ends, or none."""

    kind: int = 0
    version: int = 4
    low: int = 0
    high: int = 0
    ports: tuple[int, int] | None = None


def ct(
    control: int, flags: int = 0, zone: int = 0, mark: tuple[int, int] | None = None, label: tuple[int, int] | None = None,
    nat: Nat | None = None, helper: tuple[str, int, int] | None = None,
) -> Packed:  # fmt: skip
    """flags: COMMIT, FORCE, CLEAR; mark, label: value and mask; helper: name, family (4 or 6), protocol."""
    of, parts = CT.numbers, []
    if nat is not None:
        flags |= NAT | nat.kind
        if nat.kind:
            size, name = (4, "NAT_IPV4") if nat.version == 4 else (16, "NAT_IPV6")
            for end, number in (("MIN", nat.low), ("MAX", nat.high)):
                parts.append(attribute(of[f"{name}_{end}"], number.to_bytes(size, "big")))
            for end, number in zip(("MIN", "MAX"), nat.ports or (), strict=False):
                parts.append(attribute(of[f"NAT_PORT_{end}"], number.to_bytes(2, "big")))
    if zone:
        parts.append(u16(of["ZONE"], zone))
    if mark is not None:
        parts += [u32(of["MARK"], mark[0]), u32(of["MARK_MASK"], mark[1])]
    if label is not None:
        parts += [attribute(of["LABELS"], label[0].to_bytes(16, "little")), attribute(of["LABELS_MASK"], label[1].to_bytes(16, "little"))]
    if helper is not None:
        family = {4: 2, 6: 10}[helper[1]]  # AF_INET, AF_INET6
        parts += [text(of["HELPER_NAME"], helper[0]), u8(of["HELPER_FAMILY"], family), u8(of["HELPER_PROTO"], helper[2])]
    parts += [u16(of["ACTION"], flags), _gen(of["PARMS"], control)]
    return Packed("ct", b"".join(parts))


def mirred(control: int, how: int, ifindex: int) -> Packed:
    """how: EGRESS_REDIRECT, ...; of a redirect the kernel wants STOLEN."""
    return Packed("mirred", attribute(MIRRED.numbers["PARMS"], MIRRED_RECORD.layout.pack(0, 0, control, 0, 0, how, ifindex)))


class Word(NamedTuple):
    """One word of 4 bytes that pedit changes: at an offset from the start of a header; value and mask of what changes, as numbers of the packet's
    order.

    command SET: (old & ~mask) | value; ADD: the field under the mask, plus the value.
    """

    header: int
    offset: int
    value: int
    mask: int
    command: int = SET


def pedit(control: int, words: Sequence[Word]) -> Packed:
    """Raises ValueError for more words than one action has."""
    if not 0 < len(words) <= MOST_WORDS:
        raise ValueError(f"{len(words)} words: expected 1 to {MOST_WORDS} in one pedit")
    selector, places = [PEDIT_SELECTOR.pack(0, 0, control, 0, 0, len(words), 0)], []
    for word in words:
        selector.append(PEDIT_WORD.pack(word.mask ^ 0xFFFFFFFF, word.value) + PEDIT_PLACE.pack(word.offset, 0, 0, 0))
        places.append(_place(word.header, word.command))
    return Packed("pedit", attribute(PEDIT.numbers["PARMS_EX"], b"".join(selector)) + nested(PEDIT.numbers["KEYS_EX"], *places))


@lru_cache
def _place(header: int, command: int) -> bytes:
    return nested(PEDIT_KEY_EX, u16(PEDIT_KEY.numbers["HTYPE"], header), u16(PEDIT_KEY.numbers["CMD"], command))


def csum(control: int, of: Iterable[str]) -> Packed:
    """of: names of SUMS."""
    return Packed("csum", attribute(CSUM.numbers["PARMS"], CSUM_RECORD.layout.pack(0, 0, control, 0, 0, sum(SUMS[name] for name in of))))


def skbedit(control: int, mark: tuple[int, int] | None, priority: int | None, queue: int | None, ptype: int | None) -> Packed:
    """ptype: PACKET_*, 0 to 3. A mask of all bits is left out, as tc does."""
    of, parts = SKBEDIT.numbers, [_gen(SKBEDIT.numbers["PARMS"], control)]
    if queue is not None:
        parts.append(u16(of["QUEUE_MAPPING"], queue))
    if priority is not None:
        parts.append(u32(of["PRIORITY"], priority))
    if mark is not None:
        parts.append(u32(of["MARK"], mark[0]))
        if mark[1] != 0xFFFFFFFF:
            parts.append(u32(of["MASK"], mark[1]))
    if ptype is not None:
        parts.append(u16(of["PTYPE"], ptype))
    return Packed("skbedit", b"".join(parts))


def vlan(control: int, how: int, id: int | None = None, protocol: int | None = None, priority: int | None = None) -> Packed:
    """how: POP, PUSH, MODIFY."""
    of, parts = VLAN.numbers, [attribute(VLAN.numbers["PARMS"], VLAN_RECORD.layout.pack(0, 0, control, 0, 0, how))]
    if id is not None:
        parts.append(u16(of["PUSH_VLAN_ID"], id))
    if protocol is not None:
        parts.append(attribute(of["PUSH_VLAN_PROTOCOL"], protocol.to_bytes(2, "big")))
    if priority is not None:
        parts.append(u8(of["PUSH_VLAN_PRIORITY"], priority))
    return Packed("vlan", b"".join(parts))


# --- policers -----------------------------------------------------------------------------------------------------------------------------

TICKS = 15.625  # of the kernel's packet scheduler in a microsecond: one is 64 ns (PSCHED_SHIFT)
CELLS, USUAL_MTU, ETHERNET = 256, 2047, 1  # of a table of times; what tc makes it for without an mtu; TC_LINKLAYER_ETHERNET
U32_MAX = 0xFFFFFFFF
MOST_SECONDS = int(U32_MAX / TICKS / 1_000_000)  # of a burst: the kernel has 32 bits for its ticks


def ticks(amount: int, rate: int) -> int:
    """How long so many bytes or packets take at a rate a second, as tc says it to the kernel: whole microseconds, in ticks."""
    return int(int(1_000_000 * (amount / rate)) * TICKS)  # in tc's order, whose rounding is this


def police(control: int, exceed: int, rate: int = 0, burst: int = 0, mtu: int = 0, packet_rate: int = 0, packet_burst: int = 0) -> Packed:
    """rate: bytes a second; burst, mtu: bytes; or packets. exceed: what follows for what has no token; control: for the rest, where PASS goes
    unsaid.

    Raises ValueError for a burst that takes longer than the kernel can say; tc sends a shorter one.
    """
    of, parts = POLICE.numbers, []
    if rate and ticks(burst, rate) > U32_MAX:
        raise ValueError(f"a burst of {burst} bytes takes {burst / rate:.0f} s at {rate} bytes a second: expected at most {MOST_SECONDS}")
    cell_log, linklayer = _cells(mtu) if rate else 0, ETHERNET if rate else 0
    spec = (cell_log, linklayer, 0, -1 if rate else 0, 0, min(rate, U32_MAX))
    parts.append(attribute(of["TBF"], POLICE_RECORD.layout.pack(
        0, exceed, 0, ticks(burst, rate) if rate else 0, mtu, *spec, 0, 0, 0, 0, 0, 0, 0, 0, 0
    )))  # fmt: skip
    if rate:
        parts.append(attribute(of["RATE"], _times(rate, cell_log)))
        if rate > U32_MAX:
            parts.append(u64(of["RATE64"], rate))
    if packet_rate:
        parts += [u64(of["PKTRATE64"], packet_rate), u64(of["PKTBURST64"], ticks(packet_burst, packet_rate))]
    if control != PASS:
        parts.append(u32(of["RESULT"], control & U32_MAX))
    return Packed("police", b"".join(parts))


def _cells(mtu: int) -> int:
    """How many bits of a packet's length one cell of the table is wide: as few as the longest packet allows, and one at least, or the kernel takes no
    such table (of an mtu below 256 tc sends one that it does not take)."""
    return next(bits for bits in range(1, 32) if (mtu or USUAL_MTU) >> bits < CELLS)


@lru_cache(256)
def _times(rate: int, cell_log: int) -> bytes:
    """How long packets of each length take, 0: too long to say. The kernel looks at its size only since it has rates of its own, and takes none
    without."""
    took = [ticks(cell + 1 << cell_log, rate) for cell in range(CELLS)]
    return Struct(f"={CELLS}I").pack(*(each if each <= U32_MAX else 0 for each in took))
