"""The TCP window check with its numbers, for people: what was compared with what, and what held.

The readable model of the engine makes the comparisons, on a connection as it was before the packet; here they are put into words. For explain only.
Invariant: nothing is decided or calculated here but how a number is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ctcore.config import Config
from ctcore.model.conn import Packet
from ctcore.model.protocols import recall
from ctcore.model.seqadj import SeqAdjust
from ctcore.model.tcp import Belief, acknowledged_offset, open_first, validate_rst
from ctcore.model.tcp_window import ACK, RST, SYN, Bounds, Numbers, Segment, Side, Tcp, bounds_of, numbers_of, overshoot_of
from ctcore.types import TcpFlag, TcpIndex, TcpState

# Number, inequality, its sign, and what its failure is called and means, in the order of the model's Bounds.
INEQUALITIES = (
    (
        "I",
        "seq <= sender.maxend",
        "<=",
        "SEQ over",
        "invalid; ignored if {overshoot} beyond fits receiver.maxwin, {maxwin}, and II to IV hold",
    ),
    ("II", "end > sender.end - receiver.maxwin - 1", ">", "SEQ under", "an old retransmission, ignored"),
    ("III", "sack <= receiver.end", "<=", "ACK over", "invalid"),
    ("IV", "sack > receiver.end - max(sender.maxwin, 66000) - 1", ">", "ACK under", "an old acknowledgement, ignored"),
)


@dataclass(frozen=True)
class Inequality:
    """One of the four in words, and with its numbers. failure and effect: what its failure is called and means; holds: whether there is none."""

    number: str
    names: str
    numbers: str
    holds: bool
    failure: str
    effect: str


@dataclass(frozen=True)
class Window:
    """The check of one packet, with both sides as it saw them.

    note: why it was not made, or what was set before it; liberal: why the packet is accepted all the same, or empty; added: bytes that a helper has
    added to what the packet acknowledges, which are not in `numbers`; its own sequence numbers are those of its sender.
    """

    numbers: Numbers
    sender: Side
    receiver: Side
    inequalities: tuple[Inequality, ...] = ()
    note: str = ""
    liberal: str = ""
    added: int = 0


def near(a: int, b: int) -> int:
    """a as the number next to b that it stands for: below 0 or above 2^32 where the sequence space wraps between them."""
    distance = (a - b) & 0xFFFFFFFF
    return b + (distance - (1 << 32) if distance >> 31 else distance)


def window_of(packet: np.void, l4: bytes, had: np.void | None, direction: int, config: Config, moved: Sequence[SeqAdjust] = ()) -> Window:
    """The window check of a packet.

    packet: PACKET_DTYPE; l4: its transport header; had: CONN_DTYPE as it was before the packet, None for a new connection; direction: Dir; moved: by
    how much numbers of each direction were, or nothing.
    """
    segment = Segment.of(Packet.of(packet, l4))
    added = acknowledged_offset(moved, segment, direction)
    conn = None if had is None else recall(had, 0)
    tcp = Tcp() if conn is None else conn.l4
    if conn is None:
        open_first(tcp, segment)
    sender, receiver = tcp.side[direction], tcp.side[1 - direction]
    plain = Numbers(segment.seq, segment.end, segment.ack, segment.ack)
    if conn is not None and segment.index == TcpIndex.TCP_RST and validate_rst(conn, segment, direction, config)[0] is Belief.FULL:
        return Window(plain, sender, receiver, note=f"this RST is believed without the check, in {TcpState(tcp.state).name}")
    before = replace(sender)
    numbers = numbers_of(tcp, segment, direction, added)
    if numbers is None:
        return Window(plain, sender, receiver, note="the sender's SYN sets its window: accepted at once")
    met = "the sender's SYN sets its window" if segment.flags & SYN else "the first packet seen of this side sets its window"
    found = _in_words(bounds_of(sender, receiver, numbers), sender, receiver, numbers)
    liberal = _liberal(sender, config) if not all(one.holds for one in found) else ""
    said = bool(segment.flags & ACK) and not (segment.flags & RST and segment.ack == added)  # whether the packet's own ack was compared
    return Window(numbers, sender, receiver, found, met if sender != before else "", liberal, added if said else 0)


def _liberal(sender: Side, config: Config) -> str:
    if config.tcp_liberal:
        return "--tcp-liberal 1"
    return "picked up in mid-stream" if sender.flags & TcpFlag.TF_BE_LIBERAL else ""


def _in_words(bounds: Bounds, sender: Side, receiver: Side, numbers: Numbers) -> tuple[Inequality, ...]:
    found = []
    for (number, names, sign, failure, effect), bound in zip(INEQUALITIES, bounds, strict=True):
        wraps = " (mod 2^32)" if near(bound.limit, bound.number) != bound.limit else ""
        text = f"{bound.number} {sign} {bound.limit}{wraps}"
        if bound is bounds.seq_under and not receiver.maxwin:
            text = "receiver's window not known"
        effect = effect.format(overshoot=overshoot_of(sender, numbers.end), maxwin=receiver.maxwin)
        found.append(Inequality(number, names, text, not bound.fails, failure, effect))
    return tuple(found)
