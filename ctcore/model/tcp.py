"""TCP as Linux conntrack sees it, for reading: the order of events, the state table with its guards, timeouts.

Theory of operation: track() is the order of events. The table (spec/tcp.txt) proposes a new state; the guards named beside it may overrule
it; the window check then decides whether the packet belongs to the connection at all; whatever passes moves the state and renews the timeout.
Invariant: a packet that is invalid or ignored leaves the state alone, and the timeout too but for the two hopeless FIN or RST of hopeless().
Not here: the window check (tcp_window); seen-reply, accounting, lookup (tracker); checksums and header lengths (wire).
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto

from ctcore import spec
from ctcore.config import Config
from ctcore.model.conn import MASK32, Answer, Conn, Visit, ignored, invalid, renewed, ticks_of
from ctcore.model.seqadj import SeqAdjust
from ctcore.model.tcp_window import ACK, FIN, RST, SYN, URG, Segment, Side, Tcp, Window, before, check_window, read_options
from ctcore.types import Change, Dir, Reason, Status
from ctcore.types import TcpFlag as F
from ctcore.types import TcpIndex as I
from ctcore.types import TcpState as S

TABLE = spec.tcp()
JUDGED = FIN | SYN | RST | ACK | URG  # PSH, ECE, CWR and the reserved bits say nothing about the state
SENSIBLE = {SYN, SYN | URG, SYN | ACK, RST, RST | ACK, FIN | ACK, FIN | ACK | URG, ACK, ACK | URG}
CLOSING = {S.FIN_WAIT, S.CLOSE_WAIT, S.LAST_ACK, S.TIME_WAIT, S.CLOSE}
MAX_RETRANS, UNACKNOWLEDGED = "tcp_timeout_max_retrans", "tcp_timeout_unacknowledged"
LONG_LEFT = 120  # seconds; what hopeless() finds worth shortening


# --- the order of events ---------------------------------------------------------------------------------------------------------------


def track(visit: Visit) -> Answer:
    """One packet whose header and checksum are fine."""
    packet, conn, d, _, config = visit
    segment = Segment.of(packet)
    if segment.flags & JUDGED not in SENSIBLE:
        return invalid(Reason.R_TCP_FLAGS)
    tcp: Tcp = conn.l4
    note: int = Reason.R_OK
    if not conn.confirmed:
        if refusal := refuse_first(segment, config):
            return invalid(refusal)
        note = open_first(tcp, segment)

    old, new = tcp.state, TABLE.cells[d][segment.index][tcp.state]
    if new == S.SYN_SENT and old >= S.TIME_WAIT:
        if reopen(tcp, d):
            return Answer(repeat=True)
        new = S.TCP_IGNORE
    if new == S.TCP_INVALID:
        return invalid(Reason.R_TCP_STATE)
    if new == S.TCP_IGNORE:
        if not resynchronise(tcp, segment, d):
            remember_ignored(tcp, segment, d)
            return ignored(Reason.R_TCP_IGNORED)
        old, new, note = S.SYN_SENT, S.SYN_RECV, Reason.R_TCP_RESYNC
    if old == S.LAST_ACK and new == S.TIME_WAIT and challenge_ack(tcp, segment, d):
        return ignored(Reason.R_TCP_CHALLENGE_ACK)
    new = simultaneous_open(tcp, segment, d, new)

    if segment.index == I.TCP_RST:
        belief, challenged = validate_rst(conn, segment, d, config)
        if belief is Belief.NONE:
            return invalid(Reason.R_TCP_RST_BELOW_MAXACK)
        if challenged:
            new, note = old, Reason.R_TCP_RST_CHALLENGED
        if belief is Belief.FULL:
            return move_on(visit, segment, old, new, note)

    window, reason = check_window(tcp, segment, d, config, acknowledged_offset(conn.ext.adjust if conn.ext else (), segment, d))
    if window is Window.INVALID:
        hopeless(visit, segment)
        return invalid(reason)
    if window is Window.IGNORE:
        return ignored(reason)
    return move_on(visit, segment, old, new, note or reason)


def acknowledged_offset(moved: Sequence[SeqAdjust], segment: Segment, d: int) -> int:
    """What a helper has added to the numbers that a segment acknowledges. moved: of each direction, or nothing."""
    return moved[1 - d].at((segment.ack - 1) & MASK32) if moved else 0


def refuse_first(segment: Segment, config: Config) -> int:
    """Why this packet cannot open a connection, or R_OK."""
    new = TABLE.cells[Dir.ORIG][segment.index][S.TCP_NONE]
    if new == S.TCP_INVALID:
        return Reason.R_TCP_NOT_OPENING
    if new != S.SYN_SENT and not config.tcp_loose:
        return Reason.R_TCP_NOT_LOOSE
    return Reason.R_OK


def open_first(tcp: Tcp, segment: Segment) -> int:
    """What the first packet says of its sender. The window check still follows."""
    side = tcp.side[Dir.ORIG]
    side.end = segment.end
    side.maxwin = segment.win or 1
    if segment.index == I.TCP_SYN:
        side.maxend = side.end
        read_options(side, segment.options)
        return Reason.R_OK
    # Picked up: scale and history are unknown, so the window is tracked liberally. SACK may have been agreed on.
    side.maxend = (side.end + side.maxwin) & MASK32
    for side in tcp.side:
        side.flags = F.TF_SACK_PERM | F.TF_BE_LIBERAL
    return Reason.R_TCP_PICKED_UP


def move_on(visit: Visit, segment: Segment, old: int, new: int, note: int) -> Answer:
    """The packet is believed: state, timeout, assured."""
    conn, d = visit.conn, visit.dir
    tcp: Tcp = conn.l4
    tcp.last_index, tcp.last_dir = segment.index, d
    tcp.state = new
    if new != old:
        conn.changes |= Change.CHANGE_L4STATE
        if new == S.FIN_WAIT:
            tcp.side[d].flags |= F.TF_CLOSE_INIT

    setting = timeout_after(tcp, segment, new, visit.config)
    if not conn.has(Status.SEEN_REPLY):
        if segment.index == I.TCP_RST:
            return Answer(Reason.R_TCP_RST_KILLED, kill=True)
        if segment.index == I.TCP_SYN and old == S.SYN_SENT:
            return ignored(Reason.R_TCP_SYN_AGAIN)
        if new == S.TCP_ESTABLISHED:
            setting = min(setting, UNACKNOWLEDGED, key=lambda name: ticks_of(visit.config, name))
    elif old in (S.SYN_RECV, S.TCP_ESTABLISHED) and new == S.TCP_ESTABLISHED:
        conn.assure()
    return renewed(visit.config, setting, note)


def timeout_after(tcp: Tcp, segment: Segment, new: int, config: Config) -> str:
    """Which setting the timeout is; the first case that applies."""
    usual = state_timeout(new)
    ticks = ticks_of(config, usual)
    if tcp.retrans >= config.tcp_max_retrans and ticks > config.ticks(MAX_RETRANS):
        return MAX_RETRANS
    if segment.index == I.TCP_RST:
        return state_timeout(S.CLOSE)
    if (tcp.side[0].flags | tcp.side[1].flags) & F.TF_DATA_UNACKED and ticks > config.ticks(UNACKNOWLEDGED):
        return UNACKNOWLEDGED
    if tcp.last_win == 0 and ticks > config.ticks(MAX_RETRANS):
        return MAX_RETRANS
    return usual


def state_timeout(state: int) -> str:
    """The setting of a state. The table names a sysctl, or seconds where there is none."""
    name = TABLE.timeouts[state]
    return name if name.isdigit() else "tcp_timeout_" + name


# --- the guards beside the table -------------------------------------------------------------------------------------------------------


def reopen(tcp: Tcp, d: int) -> bool:
    """May this SYN replace the closed connection? (RFC 9293 3.6.1)

    Yes after a proper close, from whichever side, and after a RST of its own sender. A SYN after the other side's RST is ignored.
    """
    closed_properly = (tcp.side[0].flags | tcp.side[1].flags) & F.TF_CLOSE_INIT
    own_rst = tcp.last_index == I.TCP_RST and tcp.last_dir == d
    return bool(closed_properly or own_rst)


def resynchronise(tcp: Tcp, segment: Segment, d: int) -> bool:
    """Does this SYN/ACK answer the SYN that was ignored last? Then both ends have begun anew, and so does the entry.

    Assured and seen-reply stay. The SYN's side loses be-liberal, the other one keeps it.
    """
    answers = tcp.last_index == I.TCP_SYN and tcp.last_dir != d and segment.ack == tcp.last_end
    if segment.index != I.TCP_SYNACK or not answers:
        return False
    tcp.last_flags &= ~F.TF_EXP_CHALLENGE_ACK
    opener, answerer = tcp.side[1 - d], tcp.side[d]
    opener.end = opener.maxend = tcp.last_end
    opener.maxwin = tcp.last_win or 1
    opener.scale = tcp.last_wscale
    opener.flags = tcp.last_flags
    tcp.side[d] = Side(flags=answerer.flags & F.TF_BE_LIBERAL)
    return True


def remember_ignored(tcp: Tcp, segment: Segment, d: int) -> None:
    """The packet passes without effect, but its answer has to be recognised: a SYN/ACK, a challenge ACK, or a RST."""
    state = tcp.state
    tcp.last_index, tcp.last_dir = segment.index, d
    tcp.last_seq, tcp.last_end, tcp.last_win = segment.seq, segment.end, segment.win
    if segment.index == I.TCP_SYN and d == Dir.ORIG:
        options = Side()
        read_options(options, segment.options)
        tcp.last_flags, tcp.last_wscale = options.flags, options.scale
        if state == S.LAST_ACK:
            tcp.last_flags |= F.TF_EXP_CHALLENGE_ACK
    if segment.index == I.TCP_ACK and d == Dir.REPLY and state == S.SYN_SENT:
        tcp.last_ack = segment.ack


def challenge_ack(tcp: Tcp, segment: Segment, d: int) -> bool:
    """In LAST_ACK: is this the challenge ACK that a SYN provoked (RFC 5961 4.2), and not the ACK of the last FIN?"""
    provoked = tcp.last_index == I.TCP_SYN and tcp.last_dir != d and tcp.last_flags & F.TF_EXP_CHALLENGE_ACK
    if segment.index != I.TCP_ACK or not provoked:
        return False
    tcp.last_flags &= ~F.TF_EXP_CHALLENGE_ACK
    return True


def simultaneous_open(tcp: Tcp, segment: Segment, d: int, new: int) -> int:
    """Both sides sent SYN (RFC 9293 3.5): remember it, since the ACK of the reply side then completes the handshake."""
    if new == S.SYN_SENT2:
        tcp.last_flags |= F.TF_SIMULTANEOUS_OPEN
    completes = d == Dir.REPLY and segment.index == I.TCP_ACK and tcp.last_flags & F.TF_SIMULTANEOUS_OPEN
    return S.TCP_ESTABLISHED if new == S.SYN_RECV and completes else new


class Belief(Enum):
    """What a RST deserves."""

    NONE = auto()  # invalid
    CHECK = auto()  # the window check decides
    FULL = auto()  # no window check


def validate_rst(conn: Conn, segment: Segment, d: int, config: Config) -> tuple[Belief, bool]:
    """Is the RST believed, and is it challenged, that is: is the old state kept since a challenge ACK may follow (RFC 5961 3.2)?"""
    tcp: Tcp = conn.l4
    if tcp.state in CLOSING:  # the tuple may be in use again already; what is remembered says nothing
        return Belief.FULL, False
    peer = tcp.side[1 - d]
    challenged = False
    if peer.flags & F.TF_MAXACK_SET and tcp.last_index != I.TCP_SYN:
        established = tcp.state == S.TCP_ESTABLISHED and conn.has(Status.ASSURED)
        if segment.seq == 0 and not established:
            return Belief.CHECK, False
        if before(segment.seq, peer.maxack) and not config.tcp_ignore_invalid_rst:
            return Belief.NONE, False
        of_a_train = tcp.last_index == I.TCP_ACK and tcp.last_dir == d and segment.seq == tcp.last_end
        if not established or segment.seq == peer.maxack or of_a_train:
            return Belief.CHECK, False
        challenged = True
    return Belief.FULL if answers_let_through(conn, segment, d) else Belief.CHECK, challenged


def answers_let_through(conn: Conn, segment: Segment, d: int) -> bool:
    """Is it the RST that answers a SYN or ACK which passed without being tracked?"""
    tcp: Tcp = conn.l4
    after_syn = conn.has(Status.SEEN_REPLY) and tcp.last_index == I.TCP_SYN and tcp.last_dir != d
    after_ack = not conn.has(Status.ASSURED) and tcp.last_index == I.TCP_ACK
    if (after_syn or after_ack) and segment.ack == tcp.last_end:
        return True
    half_open_ack = tcp.state == S.SYN_SENT and tcp.last_index == I.TCP_ACK and tcp.last_dir == Dir.REPLY
    return half_open_ack and segment.seq == tcp.last_ack


def hopeless(visit: Visit, segment: Segment) -> None:
    """A FIN or RST out of the window. When both sides sent one, the entry is stuck: shorten its life."""
    conn, d, config = visit.conn, visit.dir, visit.config
    tcp: Tcp = conn.l4
    ending = (I.TCP_FIN, I.TCP_RST)
    if segment.index not in ending or not conn.has(Status.ASSURED) or conn.has(Status.FIXED_TIMEOUT):
        return
    if tcp.last_dir == d or tcp.last_index not in ending:
        tcp.last_index, tcp.last_dir = segment.index, d
        return
    left = conn.deadline - visit.tick
    unacknowledged = config.ticks(UNACKNOWLEDGED)
    if left >= LONG_LEFT * config.hz and left > unacknowledged:
        conn.deadline = visit.tick + unacknowledged
