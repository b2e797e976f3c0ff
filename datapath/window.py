"""The TCP window check with its numbers, for people: what was compared with what, and what held.

Computed from a connection as it was before the packet, with the names of the specification. For explain only: engine and model decide, this shows.
Invariant: all numbers are modulo 2^32, and compared by the sign of their difference, as TCP does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ctcore.types import Dir, TcpFlag, TcpState
from datapath.dissect import first_sack

FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10
MIN_ACK_WINDOW = 66000
MASK = 0xFFFFFFFF
CLOSING = (TcpState.FIN_WAIT, TcpState.CLOSE_WAIT, TcpState.LAST_ACK, TcpState.TIME_WAIT, TcpState.CLOSE)


@dataclass
class Side:
    """One side of the connection as the window check sees it."""

    end: int
    maxend: int
    maxwin: int
    scale: int
    flags: int

    def text(self) -> str:
        return f"end {self.end}, maxend {self.maxend}, maxwin {self.maxwin}, scale {self.scale}"


@dataclass(frozen=True)
class Bound:
    """One inequality: its number, its names, its numbers, whether it holds, and what it means if it does not."""

    number: str
    names: str
    numbers: str
    holds: bool
    otherwise: str


@dataclass(frozen=True)
class Window:
    """The check of one packet. note: why it was not made, or what was set before it."""

    seq: int
    end: int
    ack: int
    sack: int
    sender: Side
    receiver: Side
    bounds: tuple[Bound, ...]
    note: str


def before(a: int, b: int) -> bool:
    """Whether a comes before b in the sequence space."""
    return ((a - b) & MASK) >> 31 == 1


def after(a: int, b: int) -> bool:
    return before(b, a)


def near(a: int, b: int) -> int:
    """a as the number next to b that it stands for: below 0 or above 2^32 where the sequence space wraps between them."""
    distance = (a - b) & MASK
    return b + (distance - (1 << 32) if distance >> 31 else distance)


def sides_of(tcp: np.void | None, direction: int) -> tuple[Side, Side]:
    """Sender and receiver before the packet; zeros where there is no connection yet."""
    if tcp is None:
        return Side(0, 0, 0, 0, 0), Side(0, 0, 0, 0, 0)
    both = []
    for d in (direction, 1 - direction):
        side = tcp["side"][d]
        both.append(Side(int(side["end"]), int(side["maxend"]), int(side["maxwin"]), int(tcp["scale"][d]), int(tcp["flags"][d])))
    return both[0], both[1]


def window_of(packet: np.void, l4: bytes, tcp: np.void | None, direction: int) -> Window:
    """The window check of a packet.

    packet: PACKET_DTYPE; l4: its transport header; tcp: TCP_DTYPE as it was before the packet, None for a new connection; direction: Dir.
    """
    flags, seq, ack, win = int(packet["tcp_flags"]), int(packet["seq"]), int(packet["ack"]), int(packet["win"])
    end = (seq + int(packet["l4_len"]) - int(packet["doff"]) + bool(flags & SYN) + bool(flags & FIN)) & MASK
    state = TcpState.TCP_NONE if tcp is None else TcpState(int(tcp["state"]))
    sender, receiver = sides_of(tcp, direction)
    if tcp is None:
        _open(sender, receiver, flags, end, win)
    sack = _sack(ack, l4, receiver)
    if flags & RST and state in CLOSING:
        return Window(seq, end, ack, sack, sender, receiver, (), f"a RST in {state.name} is not checked")
    note = _first_of_side(sender, receiver, state, (flags, seq, end, sack, win), direction)
    if note.endswith("accepted at once"):
        return Window(seq, end, ack, sack, sender, receiver, (), note)
    if not flags & ACK or (flags & RST and ack == 0):
        ack = sack = receiver.end
    if flags & RST and seq == 0 and state == TcpState.SYN_SENT:
        seq = end = sender.end
    return Window(seq, end, ack, sack, sender, receiver, _bounds(seq, end, sack, sender, receiver), note)


def _open(sender: Side, receiver: Side, flags: int, end: int, win: int) -> None:
    """What a new connection knows of its first packet, whose side alone is known."""
    sender.end, sender.maxwin = end, win or 1
    sender.maxend = end if flags & SYN else (end + sender.maxwin) & MASK
    if not flags & SYN:
        sender.flags = receiver.flags = TcpFlag.TF_SACK_PERM | TcpFlag.TF_BE_LIBERAL


def _sack(ack: int, l4: bytes, receiver: Side) -> int:
    """The highest number acknowledged: by ack, or selectively if the receiver agreed to it."""
    sack = ack
    if receiver.flags & TcpFlag.TF_SACK_PERM:
        for _, right in first_sack(l4):
            sack = right if after(right, sack) else sack
    return sack


def _first_of_side(sender: Side, receiver: Side, state: TcpState, packet: tuple[int, int, int, int, int], direction: int) -> str:
    """What the first packet of a side sets before the check; changes both sides."""
    flags, _, end, sack, win = packet
    again = flags & SYN and after(end, sender.end) and state in (TcpState.SYN_SENT, TcpState.SYN_RECV)
    if sender.maxwin and not again:
        return ""
    if flags & SYN:
        sender.end = sender.maxend = end
        sender.maxwin = win or 1
        alone = not flags & ACK and (direction == Dir.REPLY or not again)
        return "the sender's SYN sets its window" + (": accepted at once" if alone else "")
    sender.end, sender.maxwin = end, (win << sender.scale) or 1
    sender.maxend = (end + sender.maxwin) & MASK
    if receiver.maxwin == 0:
        receiver.end = receiver.maxend = sack
    elif sack == (receiver.end + 1) & MASK:
        receiver.end = sack
    return "the first packet seen of this side sets its window"


def _bounds(seq: int, end: int, sack: int, sender: Side, receiver: Side) -> tuple[Bound, ...]:
    ackwindow = max(sender.maxwin, MIN_ACK_WINDOW)
    low, oldest = (sender.end - receiver.maxwin - 1) & MASK, (receiver.end - ackwindow - 1) & MASK
    overshoot = (end - sender.maxend + 1) & MASK
    over = before(seq, (sender.maxend + 1) & MASK)
    two = not receiver.maxwin or after(end, low)
    return (
        Bound("I", "seq <= sender.maxend", f"{seq} <= {near(sender.maxend, seq)}", over,
              f"SEQ over: invalid, unless the overshoot, {overshoot}, is at most receiver.maxwin, {receiver.maxwin}, and II to IV hold"),
        Bound("II", "end > sender.end - receiver.maxwin - 1", f"{end} > {near(low, end)}" if receiver.maxwin else "receiver's window not known", two,
              "SEQ under: an old retransmission, ignored"),
        Bound("III", "sack <= receiver.end", f"{sack} <= {near(receiver.end, sack)}", before(sack, (receiver.end + 1) & MASK), "ACK over: invalid"),
        Bound("IV", "sack > receiver.end - max(sender.maxwin, 66000) - 1", f"{sack} > {near(oldest, sack)}", after(sack, oldest),
              "ACK under: an old acknowledgement, ignored"),
    )  # fmt: skip
