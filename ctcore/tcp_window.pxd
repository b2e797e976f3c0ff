# The TCP window check: is a segment what the other side can be waiting for?
#
# I    seq  <= s.maxend                                    else SEQ over the upper bound (small overshoots are ignored)
# II   end  >  s.end - r.maxwin - 1                        else SEQ under: ignored, an old retransmission
# III  sack <= r.end                                       else ACK over the upper bound
# IV   sack >  r.end - max(s.maxwin, 66000) - 1            else ACK under: ignored
# s, r: sending and receiving side as seen so far; sack: the ACK, or the highest selective ACK (RFC 2018) if r offered SACK.
#
# Inline, for it is on every packet's way; only tcp.pyx uses it. Not here: states and guards (tcp), options (tcp_options).
# Source of the model: van Rooij, "Real Stateful TCP Packet Filtering in IP Filter", as Linux has refined it.

from libc.stdint cimport int32_t, uint8_t, uint32_t

from ctcore.engine cimport Engine
from ctcore.lowlevel cimport unlikely
from ctcore.seqadj cimport offset_at
from ctcore.tcp_options cimport highest_sack, read_syn_options
from ctcore.types cimport *

cdef enum:
    MAX_ACK_WINDOW = 66000      # an ACK may lag behind by at least this much, however small the window

# What the window check finds.
cdef enum Window:
    IN_WINDOW
    SYN_ALONE                   # a side's first SYN: nothing to compare with yet
    OUTSIDE_LIBERAL             # outside, but accepted without learning from it
    OUTSIDE_IGNORED
    OUTSIDE_INVALID

# One packet on its way through the state machine.
ctypedef struct Step:
    Engine *ct
    Entry *entry
    Packet *p
    uint32_t end                # sequence number behind the segment
    uint8_t dir
    uint8_t index
    uint8_t old
    uint8_t new
    uint8_t note                # reason to give if the packet is accepted


cdef inline bint before(uint32_t a, uint32_t b) noexcept nogil:
    return <int32_t>(a - b) < 0


cdef inline bint after(uint32_t a, uint32_t b) noexcept nogil:
    return <int32_t>(b - a) < 0


cdef inline void start_side(Tcp *t, const Packet *p, int dir, uint32_t end) noexcept nogil:
    """A side sends its SYN: everything about it starts here. Scaling holds only if both offer it (RFC 7323 2.2)."""
    cdef TcpSide *s = &t.side[dir]
    s.end = end
    s.maxend = end
    s.maxwin = p.win if p.win else 1
    read_syn_options(p, &t.scale[dir], &t.flags[dir])
    if dir == REPLY and not (t.flags[ORIG] & t.flags[REPLY] & TF_WINDOW_SCALE):
        t.scale[ORIG] = 0
        t.scale[REPLY] = 0


cdef inline void join_side(Tcp *t, const Packet *p, int dir, uint32_t end, uint32_t sack) noexcept nogil:
    """A side is heard of for the first time, in mid-stream: believe its packet."""
    cdef TcpSide *s = &t.side[dir]
    cdef TcpSide *r = &t.side[1 - dir]
    cdef uint32_t win = <uint32_t>p.win << t.scale[dir]
    s.end = end
    s.maxwin = win if win else 1
    s.maxend = end + s.maxwin
    if r.maxwin == 0:
        r.end = sack
        r.maxend = sack
    elif sack == r.end + 1:
        r.end += 1


cdef inline Window outside(const Step *step, uint8_t reason, Window verdict) noexcept nogil:
    """Outside the window; a liberally tracked side, or the sysctl, turns that into acceptance."""
    if step.entry.l4.tcp.flags[step.dir] & TF_BE_LIBERAL or step.ct.set.tcp_liberal:
        return OUTSIDE_LIBERAL
    step.p.reason = reason
    return verdict


cdef inline void remember_ack(Tcp *t, const Step *step, uint32_t ack) noexcept nogil:
    """Count retransmissions of the same pure ACK segment: too many, and the connection hangs (max_retrans)."""
    cdef const Packet *p = step.p
    if t.last_dir == step.dir and t.last_seq == p.seq and t.last_ack == ack and t.last_end == step.end and t.last_win == p.win:
        t.retrans += 1
        return
    t.last_dir = step.dir
    t.last_seq = p.seq
    t.last_ack = ack
    t.last_end = step.end
    t.last_win = p.win
    t.retrans = 0


cdef inline void learn(Tcp *t, const Step *step, uint32_t end, uint32_t ack, uint32_t sack) noexcept nogil:
    """An in-window packet moves the bounds of both sides."""
    cdef const Packet *p = step.p
    cdef TcpSide *s = &t.side[step.dir]
    cdef TcpSide *r = &t.side[1 - step.dir]
    cdef uint32_t win = p.win if p.tcp_flags & SYN else <uint32_t>p.win << t.scale[step.dir]
    cdef uint32_t reach = win + (sack - ack)
    if s.maxwin < reach:
        s.maxwin = reach
    if after(end, s.end):
        s.end = end
        t.flags[step.dir] |= TF_DATA_UNACKED
    if p.tcp_flags & ACK:
        if not t.flags[step.dir] & TF_MAXACK_SET:
            s.maxack = ack
            t.flags[step.dir] |= TF_MAXACK_SET
        elif after(ack, s.maxack):
            s.maxack = ack
    if r.maxwin != 0 and after(end, s.maxend):
        r.maxwin += end - s.maxend
    if after(sack + win, r.maxend - 1):
        r.maxend = sack + win
        if win == 0:
            r.maxend += 1
    if ack == r.end:
        t.flags[1 - step.dir] &= <uint8_t>~TF_DATA_UNACKED
    if step.index == TCP_ACK:
        remember_ack(t, step, ack)


cdef inline Window overshoot(Tcp *t, const Step *step, uint32_t end, uint32_t sack, uint32_t ack_floor) noexcept nogil:
    """SEQ over the upper bound. A sender that exceeds the window by no more than the window, and is right otherwise, is let through, and what
    it sent is remembered, or the ACK of it would be over the upper bound next."""
    cdef TcpSide *s = &t.side[step.dir]
    cdef TcpSide *r = &t.side[1 - step.dir]
    cdef uint32_t excess = end - s.maxend + 1
    if not (r.maxwin and after(end, s.end - r.maxwin - 1) and after(sack, ack_floor) and excess <= r.maxwin and before(sack, r.end + 1)):
        return outside(step, R_TCP_SEQ_OVER, OUTSIDE_INVALID)
    s.end = end
    t.flags[step.dir] |= TF_DATA_UNACKED
    return outside(step, R_TCP_OVERSHOOT, OUTSIDE_IGNORED)


cdef inline Window check_window(Step *step) noexcept nogil:
    cdef Tcp *t = &step.entry.l4.tcp
    cdef const Packet *p = step.p
    cdef int dir = step.dir
    cdef TcpSide *s = &t.side[dir]
    cdef TcpSide *r = &t.side[1 - dir]
    cdef uint32_t seq = p.seq, end = step.end, ack = p.ack, sack = p.ack
    cdef uint32_t ack_floor, offset
    if t.flags[1 - dir] & TF_SACK_PERM and p.doff > 20:
        sack = highest_sack(p, ack)
    if unlikely(step.entry.cold & COLD_EXTENSION):
        offset = offset_at(&step.ct.ext.row[step.entry.extension & EXTENSION_ROW].adjust[1 - dir], ack - 1)
        ack -= offset
        sack -= offset
    if unlikely(s.maxwin == 0):
        if p.tcp_flags & SYN:
            start_side(t, p, dir, end)
            if not p.tcp_flags & ACK:
                return SYN_ALONE
        else:
            join_side(t, p, dir, end, sack)
    elif unlikely(p.tcp_flags & SYN) and after(end, s.end) and (t.state == SYN_SENT or t.state == SYN_RECV):
        # The side starts over with a new number before the handshake is done.
        start_side(t, p, dir, end)
        if dir == REPLY and not p.tcp_flags & ACK:
            return SYN_ALONE
    if not p.tcp_flags & ACK or (p.tcp_flags & RST and ack == 0):
        # No ACK to be checked; some stacks set the flag on a RST and leave the number 0.
        ack = r.end
        sack = r.end
    if p.tcp_flags & RST and seq == 0 and t.state == SYN_SENT:
        # A RST that answers a SYN carries number 0 (RFC 9293 3.10.7.1).
        seq = s.end
        end = s.end
    ack_floor = r.end - (s.maxwin if s.maxwin > MAX_ACK_WINDOW else MAX_ACK_WINDOW) - 1
    if unlikely(not before(seq, s.maxend + 1)):
        return overshoot(t, step, end, sack, ack_floor)
    if unlikely(not before(sack, r.end + 1)):
        return outside(step, R_TCP_ACK_OVER, OUTSIDE_INVALID)
    if unlikely(r.maxwin != 0 and not after(end, s.end - r.maxwin - 1)):
        return outside(step, R_TCP_SEQ_UNDER, OUTSIDE_IGNORED)
    if unlikely(not after(sack, ack_floor)):
        return outside(step, R_TCP_ACK_UNDER, OUTSIDE_IGNORED)
    learn(t, step, end, ack, sack)
    return IN_WINDOW
