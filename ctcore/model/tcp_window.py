"""TCP's numbers in the model: sequence arithmetic, what is remembered of each side, options, and the window check.

The check's inequalities stand first; the code follows in their order, with one name for each failure. `side` is indexed by direction: side[d]
is what is known of the sender of direction d. What is compared with what (numbers_of, bounds_of) can be had without the verdict, for display.
Invariant: a packet that is not accepted changes nothing here, but for the overshoot, which moves its sender's end.
Not here: states, guards, timeouts (tcp).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NamedTuple

import numpy as np

from ctcore.config import Config
from ctcore.model.conn import L4, MASK32, Packet
from ctcore.types import Dir, Reason
from ctcore.types import TcpFlag as F
from ctcore.types import TcpIndex as I
from ctcore.types import TcpState as S

FIN, SYN, RST, ACK, URG = 0x01, 0x02, 0x04, 0x10, 0x20
LEAST_ACK_WINDOW = 66000  # how far an acknowledgement may lie behind when the window was small
MOST_SCALE = 14  # RFC 7323 2.3
OPT_END, OPT_NOP, OPT_WINDOW, OPT_SACK_PERM, OPT_SACK = 0, 1, 3, 4, 5


def before(a: int, b: int) -> bool:
    """a < b on the circle of sequence numbers (RFC 9293 3.4)."""
    return (a - b) & MASK32 >= 1 << 31


def after(a: int, b: int) -> bool:
    return before(b, a)


@dataclass
class Side:
    """The sender of one direction."""

    end: int = 0  # highest sequence number sent, plus length
    maxend: int = 0  # highest end the receiver allowed
    maxwin: int = 0  # largest window it announced, scaled; 0: nothing seen of it yet
    maxack: int = 0  # highest acknowledgement it sent
    scale: int = 0
    flags: int = 0


REMEMBERED = ("state", "last_index", "last_dir", "last_seq", "last_ack", "last_end", "last_win", "last_wscale", "last_flags", "retrans")


@dataclass
class Tcp(L4):
    """A connection's memory. last_* tell of the latest packet of their kind, and let the guards recognise its answer."""

    side: list[Side] = field(default_factory=lambda: [Side(), Side()])
    state: int = S.TCP_NONE
    last_index: int = I.TCP_NO_FLAG
    last_dir: int = 0
    last_seq: int = 0
    last_ack: int = 0
    last_end: int = 0
    last_win: int = 0
    last_wscale: int = 0
    last_flags: int = 0
    retrans: int = 0

    def store(self, record: np.void) -> None:
        tcp = record["tcp"]
        for d in Dir:
            side = self.side[d]
            tcp["side"][d] = side.end, side.maxend, side.maxwin, side.maxack
            tcp["scale"][d], tcp["flags"][d] = side.scale, side.flags
        for name in REMEMBERED:
            tcp[name] = getattr(self, name)

    @classmethod
    def of(cls, tcp: np.void) -> Tcp:
        """The memory that a record of TCP_DTYPE holds: what store() wrote, or the engine."""
        sides = [Side(*tcp["side"][d].item(), *(int(tcp[name][d]) for name in ("scale", "flags"))) for d in Dir]
        return cls(sides, **{name: int(tcp[name]) for name in REMEMBERED})


@dataclass(frozen=True)
class Segment:
    """The packet in TCP's terms."""

    seq: int
    end: int  # the sequence number behind it: payload, SYN and FIN count
    ack: int
    win: int
    flags: int
    index: int
    options: bytes

    @classmethod
    def of(cls, packet: Packet) -> Segment:
        flags = packet.tcp_flags
        length = packet.l4_len - packet.doff + bool(flags & SYN) + bool(flags & FIN)
        end = (packet.seq + length) & MASK32
        return cls(packet.seq, end, packet.ack, packet.win, flags, index_of(flags), packet.l4[20 : packet.doff])


def index_of(flags: int) -> int:
    """The table's column: the first flag that applies."""
    if flags & RST:
        return I.TCP_RST
    if flags & SYN:
        return I.TCP_SYNACK if flags & ACK else I.TCP_SYN
    if flags & FIN:
        return I.TCP_FIN
    return I.TCP_ACK if flags & ACK else I.TCP_NO_FLAG


# --- options (RFC 9293 3.1, RFC 7323 2.2, RFC 2018) -------------------------------------------------------------------------------------


def options_of(area: bytes) -> Iterator[tuple[int, bytes]]:
    """Kind and value of each option, up to the end, to kind 0, or to the first one whose length cannot be."""
    at = 0
    while at < len(area) and area[at] != OPT_END:
        if area[at] == OPT_NOP:
            at += 1
            continue
        length = area[at + 1] if at + 1 < len(area) else 0
        if length < 2 or at + length > len(area):
            return
        yield area[at], area[at + 2 : at + length]
        at += length


def read_options(side: Side, area: bytes) -> None:
    """Window scale and SACK-permitted of a SYN. No option area at all leaves what was known."""
    if not area:
        return
    side.scale = 0
    side.flags &= F.TF_BE_LIBERAL
    for kind, value in options_of(area):
        if kind == OPT_SACK_PERM and len(value) == 0:
            side.flags |= F.TF_SACK_PERM
        if kind == OPT_WINDOW and len(value) == 1:
            side.flags |= F.TF_WINDOW_SCALE
            side.scale = min(value[0], MOST_SCALE)


def highest_sack(segment: Segment) -> int:
    """The highest right edge in the first SACK option, if that is after the acknowledgement."""
    highest = segment.ack
    for kind, value in options_of(segment.options):
        if kind == OPT_SACK and value and len(value) % 8 == 0:
            edges = (int.from_bytes(value[i + 4 : i + 8], "big") for i in range(0, len(value), 8))
            for edge in edges:
                highest = edge if after(edge, highest) else highest
            return highest
    return highest


# --- the window check ------------------------------------------------------------------------------------------------------------------
#
# s is the sender, r the receiver; end is the sequence number behind the packet; sack is the highest acknowledgement it carries.
#
#   I    seq   <=  s.maxend                                  else tcp_seq_over    invalid    beyond what r allowed
#        or a little more, with II, III and IV fulfilled     then tcp_overshoot   ignored
#   III  sack  <=  r.end                                     else tcp_ack_over    invalid    acknowledges what was never sent
#   II   end   >=  s.end - r.maxwin                          else tcp_seq_under   ignored    an old retransmission
#   IV   sack  >=  r.end - max(s.maxwin, 66000)              else tcp_ack_under   ignored    an old acknowledgement
#
# Where s is tracked liberally each failure is accepted, but nothing is learnt from the packet.


class Window(Enum):
    ACCEPT = auto()
    IGNORE = auto()
    INVALID = auto()


class Numbers(NamedTuple):
    """The packet's numbers as the check sees them."""

    seq: int
    end: int
    ack: int
    sack: int


class Bound(NamedTuple):
    """One inequality: a number of the packet, what it is compared with, and whether it fails."""

    number: int
    limit: int
    fails: bool


class Bounds(NamedTuple):
    """The four inequalities by the names of their failures. over: number <= limit is expected; under: number > limit."""

    seq_over: Bound
    seq_under: Bound
    ack_over: Bound
    ack_under: Bound


def check_window(tcp: Tcp, segment: Segment, d: int, config: Config, added: int = 0) -> tuple[Window, int]:
    """Does the packet lie where its sender may send? Learns the windows from it if so. added: by us to the numbers it acknowledges (seqadj)."""
    numbers = numbers_of(tcp, segment, d, added)
    if numbers is None:
        return Window.ACCEPT, Reason.R_OK
    s, r = tcp.side[d], tcp.side[1 - d]
    window, reason = judge(s, r, numbers)
    if window is Window.ACCEPT:
        learn(tcp, segment, numbers, d)
    elif config.tcp_liberal or s.flags & F.TF_BE_LIBERAL:
        return Window.ACCEPT, Reason.R_TCP_LIBERAL
    return window, reason


def numbers_of(tcp: Tcp, segment: Segment, d: int, added: int = 0) -> Numbers | None:
    """What is to be compared, once the sender has been met. None: a SYN that there is nothing to compare to."""
    s, r = tcp.side[d], tcp.side[1 - d]
    sack = highest_sack(segment) if r.flags & F.TF_SACK_PERM else segment.ack
    ack, sack = (segment.ack - added) & MASK32, (sack - added) & MASK32
    if meet_sender(tcp, segment, sack, d):
        return None
    seq, end = segment.seq, segment.end
    if not segment.flags & ACK or (segment.flags & RST and ack == 0):  # nothing acknowledged; some stacks set ACK in a RST without meaning it
        ack = sack = r.end
    if segment.flags & RST and seq == 0 and tcp.state == S.SYN_SENT:  # the RST that answers a SYN
        seq = end = s.end
    return Numbers(seq, end, ack, sack)


def bounds_of(s: Side, r: Side, numbers: Numbers) -> Bounds:
    """The four inequalities. II says nothing while the receiver's window is not known."""
    oldest = (s.end - r.maxwin - 1) & MASK32
    oldest_ack = (r.end - max(s.maxwin, LEAST_ACK_WINDOW) - 1) & MASK32
    return Bounds(
        seq_over=Bound(numbers.seq, s.maxend, not before(numbers.seq, s.maxend + 1)),
        seq_under=Bound(numbers.end, oldest, r.maxwin != 0 and not after(numbers.end, oldest)),
        ack_over=Bound(numbers.sack, r.end, not before(numbers.sack, r.end + 1)),
        ack_under=Bound(numbers.sack, oldest_ack, not after(numbers.sack, oldest_ack)),
    )


def overshoot_of(s: Side, end: int) -> int:
    """How far the packet reaches beyond what its sender may send."""
    return (end - s.maxend + 1) & MASK32


def judge(s: Side, r: Side, numbers: Numbers) -> tuple[Window, int]:
    """The four inequalities, in the order in which they are applied."""
    seq_over, seq_under, ack_over, ack_under = (bound.fails for bound in bounds_of(s, r, numbers))
    if seq_over:
        if r.maxwin and not seq_under and not ack_under and not ack_over and overshoot_of(s, numbers.end) <= r.maxwin:
            s.end = numbers.end  # even backwards
            s.flags |= F.TF_DATA_UNACKED
            return Window.IGNORE, Reason.R_TCP_OVERSHOOT
        return Window.INVALID, Reason.R_TCP_SEQ_OVER
    if ack_over:
        return Window.INVALID, Reason.R_TCP_ACK_OVER
    if seq_under:
        return Window.IGNORE, Reason.R_TCP_SEQ_UNDER
    if ack_under:
        return Window.IGNORE, Reason.R_TCP_ACK_UNDER
    return Window.ACCEPT, Reason.R_OK


def meet_sender(tcp: Tcp, segment: Segment, sack: int, d: int) -> bool:
    """The first packet of a side, or its SYN once more with a higher number, says where it stands.

    True: it is a SYN without ACK, which is accepted with nothing to compare it to.
    """
    s, r = tcp.side[d], tcp.side[1 - d]
    syn, bare_syn = segment.flags & SYN, segment.flags & (SYN | ACK) == SYN
    if s.maxwin == 0 and syn:
        start_side(tcp, segment, d)
        return bare_syn
    if s.maxwin == 0:
        s.end = segment.end
        s.maxwin = segment.win << s.scale or 1
        s.maxend = (s.end + s.maxwin) & MASK32
        if r.maxwin == 0:
            r.end = r.maxend = sack
        elif sack == (r.end + 1) & MASK32:  # the answer to a keepalive, which acknowledges one byte more than it has
            r.end = sack
    elif syn and after(segment.end, s.end) and tcp.state in (S.SYN_SENT, S.SYN_RECV):
        start_side(tcp, segment, d)
        return bare_syn and d == Dir.REPLY
    return False


def start_side(tcp: Tcp, segment: Segment, d: int) -> None:
    """Take a SYN's word for its sender."""
    s, r = tcp.side[d], tcp.side[1 - d]
    s.end = s.maxend = segment.end
    s.maxwin = segment.win or 1
    read_options(s, segment.options)
    if d == Dir.REPLY and not s.flags & r.flags & F.TF_WINDOW_SCALE:  # both sides must offer it (RFC 7323 2.2)
        s.scale = r.scale = 0


def learn(tcp: Tcp, segment: Segment, numbers: Numbers, d: int) -> None:
    """Update both sides from a packet in the window.

    s.maxend stays: only the receiver's acknowledgements move it.
    """
    s, r = tcp.side[d], tcp.side[1 - d]
    seq, end, ack, sack = numbers
    win = segment.win if segment.flags & SYN else segment.win << s.scale  # a SYN's window is never scaled (RFC 7323 2.2)
    s.maxwin = max(s.maxwin, (win + sack - ack) & MASK32)
    if after(end, s.end):
        s.end = end
        s.flags |= F.TF_DATA_UNACKED
    if segment.flags & ACK:
        if not s.flags & F.TF_MAXACK_SET or after(ack, s.maxack):
            s.maxack = ack
        s.flags |= F.TF_MAXACK_SET
    if r.maxwin and after(end, s.maxend):
        r.maxwin = (r.maxwin + end - s.maxend) & MASK32
    if after(sack + win, r.maxend - 1):
        r.maxend = (sack + win + (win == 0)) & MASK32
    if ack == r.end:
        r.flags &= ~F.TF_DATA_UNACKED
    if segment.index == I.TCP_ACK:
        count_again(tcp, (d, seq, ack, end, segment.win))


def count_again(tcp: Tcp, pure: tuple[int, int, int, int, int]) -> None:
    """The same segment again, in all that matters, counts as a retransmission. pure: dir, seq, ack, end, window as sent."""
    if pure == (tcp.last_dir, tcp.last_seq, tcp.last_ack, tcp.last_end, tcp.last_win):
        tcp.retrans = (tcp.retrans + 1) & 0xFF
        return
    tcp.last_dir, tcp.last_seq, tcp.last_ack, tcp.last_end, tcp.last_win = pure
    tcp.retrans = 0
