"""TCP: the state machine around the table of spec/tcp.txt.

tcp_packet() takes one packet of one connection: read the table, let the guards that are no cells speak (reopen, resynchronise, challenge ACK,
simultaneous open, RST validation), check the window, then move on, renew the timeout and count.
All sequence arithmetic is modulo 2^32 (RFC 9293 3.4): before(a, b) is the sign of a - b.
Not here: the window check (tcp_window), L4 header and checksum faults (wire), lookup and confirmation (tracker).
Source of the rules: Linux nf_conntrack_proto_tcp, observed.
"""

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memset

from ctcore.engine cimport ACCEPTED, REJECTED, REPEAT, Engine, Outcome, account, refresh, set_deadline, ticks_left
from ctcore.lowlevel cimport unlikely
from ctcore.tcp_options cimport read_syn_options
from ctcore.tcp_window cimport *
from ctcore.types cimport *

# What the guards before the window check decide.
cdef enum Guard:
    CHECK_WINDOW
    SKIP_WINDOW
    STOP_ACCEPTED
    STOP_REJECTED
    STOP_REPEAT


cdef inline uint8_t index_of(uint8_t flags) noexcept nogil:
    """The table's column: RST > SYN > FIN > ACK > none."""
    if flags & RST:
        return TCP_RST
    if flags & SYN:
        return TCP_SYNACK if flags & ACK else TCP_SYN
    if flags & FIN:
        return TCP_FIN
    return TCP_ACK if flags & ACK else TCP_NO_FLAG


cdef inline uint32_t end_of(const Packet *p) noexcept nogil:
    """SYN and FIN take a number each (RFC 9293 3.4)."""
    return p.seq + p.l4_len - p.doff + ((p.tcp_flags >> 1) & 1) + (p.tcp_flags & FIN)


# --- guards: what is no cell of the table -----------------------------------------------------------------------------------------------


cdef bint reopen(const Step *step) noexcept nogil:
    """A SYN on a closed connection starts a new one if the old was closed properly, or if this same side has just reset it."""
    cdef const Tcp *t = &step.entry.l4.tcp
    return (t.flags[ORIG] | t.flags[REPLY]) & TF_CLOSE_INIT or (t.last_dir == step.dir and t.last_index == TCP_RST)


cdef bint resynchronise(Step *step) noexcept nogil:
    """A SYN/ACK that answers a SYN we ignored: both ends are in step with each other, so the entry takes over what that SYN said."""
    cdef Tcp *t = &step.entry.l4.tcp
    cdef TcpSide *asker = &t.side[1 - step.dir]
    if step.index != TCP_SYNACK or t.last_index != TCP_SYN or t.last_dir == step.dir or step.p.ack != t.last_end:
        return False
    step.old = SYN_SENT
    step.new = SYN_RECV
    asker.end = t.last_end
    asker.maxend = t.last_end
    asker.maxwin = t.last_win if t.last_win else 1
    t.scale[1 - step.dir] = t.last_wscale
    t.last_flags &= <uint8_t>~TF_EXP_CHALLENGE_ACK
    t.flags[1 - step.dir] = t.last_flags
    memset(&t.side[step.dir], 0, sizeof(TcpSide))
    t.scale[step.dir] = 0
    t.flags[step.dir] &= TF_BE_LIBERAL
    step.note = R_TCP_RESYNC
    return True


cdef void remember_ignored(Step *step) noexcept nogil:
    """The packet passes unjudged; the answer to it will tell what it was."""
    cdef Tcp *t = &step.entry.l4.tcp
    cdef uint8_t flags = 0, scale = 0
    t.last_index = step.index
    t.last_dir = step.dir
    t.last_seq = step.p.seq
    t.last_end = step.end
    t.last_win = step.p.win
    if step.index == TCP_SYN and step.dir == ORIG:
        read_syn_options(step.p, &scale, &flags)
        t.last_flags = flags
        t.last_wscale = scale
        if step.old == LAST_ACK:
            t.last_flags |= TF_EXP_CHALLENGE_ACK
    if step.old == SYN_SENT and step.index == TCP_ACK and step.dir == REPLY:
        t.last_ack = step.p.ack


cdef bint challenge_ack(const Step *step) noexcept nogil:
    """In LAST_ACK, the answer to a stray SYN is not the ACK of the last FIN (RFC 5961 4.2)."""
    cdef Tcp *t = &step.entry.l4.tcp
    if step.old != LAST_ACK or step.index != TCP_ACK or t.last_dir == step.dir or t.last_index != TCP_SYN:
        return False
    if not t.last_flags & TF_EXP_CHALLENGE_ACK:
        return False
    t.last_flags &= <uint8_t>~TF_EXP_CHALLENGE_ACK
    return True


cdef Guard validate_rst(Step *step) noexcept nogil:
    """Is this RST to be believed, and does the window say anything about it? (RFC 5961 3.2)"""
    cdef Tcp *t = &step.entry.l4.tcp
    cdef Entry *entry = step.entry
    cdef uint32_t maxack = t.side[1 - step.dir].maxack
    cdef uint32_t seq = step.p.seq
    cdef bint established = t.state == TCP_ESTABLISHED and entry.status & ASSURED
    if FIN_WAIT <= t.state <= CLOSE:
        return SKIP_WINDOW      # the tuple may be in use again already: the numbers remembered say nothing
    if t.flags[1 - step.dir] & TF_MAXACK_SET and t.last_index != TCP_SYN:
        if seq == 0 and not established:
            return CHECK_WINDOW
        if before(seq, maxack) and not step.ct.set.tcp_ignore_invalid_rst:
            step.p.reason = R_TCP_RST_BELOW_MAXACK
            return STOP_REJECTED
        if not established or seq == maxack:
            return CHECK_WINDOW
        if t.last_index == TCP_ACK and t.last_dir == step.dir and seq == t.last_end:
            return CHECK_WINDOW # the last of a train of data and RST
        step.new = step.old
        step.note = R_TCP_RST_CHALLENGED
    return answers_ignored(step)


cdef Guard answers_ignored(const Step *step) noexcept nogil:
    """A RST may answer a SYN or an ACK that was let through unjudged: then the window knows nothing of it."""
    cdef const Tcp *t = &step.entry.l4.tcp
    cdef bint to_syn = step.entry.status & SEEN_REPLY and t.last_index == TCP_SYN and t.last_dir != step.dir
    cdef bint to_ack = not step.entry.status & ASSURED and t.last_index == TCP_ACK
    if (to_syn or to_ack) and step.p.ack == t.last_end:
        return SKIP_WINDOW
    if step.old == SYN_SENT and t.last_index == TCP_ACK and t.last_dir == REPLY and step.p.seq == t.last_ack:
        return SKIP_WINDOW
    return CHECK_WINDOW


cdef Guard guards(Step *step) noexcept nogil:
    """All that can happen between the table and the window check; only cells that call for it come here."""
    cdef Tcp *t = &step.entry.l4.tcp
    cdef bint reopening = step.new == SYN_SENT and step.old >= TIME_WAIT
    if reopening and reopen(step):
        return STOP_REPEAT
    if reopening or step.new == TCP_IGNORE:
        if resynchronise(step):
            return CHECK_WINDOW
        remember_ignored(step)
        step.p.reason = R_TCP_IGNORED
        return STOP_ACCEPTED
    if step.new == TCP_INVALID:
        step.p.reason = R_TCP_STATE
        return STOP_REJECTED
    if step.new == TIME_WAIT and challenge_ack(step):
        step.p.reason = R_TCP_CHALLENGE_ACK
        return STOP_ACCEPTED
    if step.new == SYN_SENT2:
        t.last_flags |= TF_SIMULTANEOUS_OPEN
    elif step.new == SYN_RECV and step.dir == REPLY and step.index == TCP_ACK and t.last_flags & TF_SIMULTANEOUS_OPEN:
        step.new = TCP_ESTABLISHED
    elif step.new == CLOSE and step.index == TCP_RST:
        return validate_rst(step)
    return CHECK_WINDOW


# --- one packet -------------------------------------------------------------------------------------------------------------------------


cdef bint open_tcp(Step *step) noexcept nogil:
    """The first packet of a connection: a SYN, or, if loose, any ACK, whose connection is then tracked liberally."""
    cdef Tcp *t = &step.entry.l4.tcp
    cdef TcpSide *s = &t.side[ORIG]
    if step.new == TCP_INVALID:
        step.p.reason = R_TCP_NOT_OPENING
        return False
    if step.new != SYN_SENT and not step.ct.set.tcp_loose:
        step.p.reason = R_TCP_NOT_LOOSE
        return False
    if step.new == SYN_SENT:
        start_side(t, step.p, ORIG, step.end)
    else:
        s.end = step.end
        s.maxwin = step.p.win if step.p.win else 1
        s.maxend = s.end + s.maxwin
        t.flags[ORIG] = TF_SACK_PERM | TF_BE_LIBERAL
        t.flags[REPLY] = TF_SACK_PERM | TF_BE_LIBERAL
        step.note = R_TCP_PICKED_UP
    t.last_index = TCP_NO_FLAG
    return True


cdef void hopeless(Step *step) noexcept nogil:
    """An invalid FIN or RST of an assured connection: after one from each side the entry is out of step, and must not live on for days."""
    cdef Entry *entry = step.entry
    cdef Tcp *t = &entry.l4.tcp
    cdef uint32_t unacked = step.ct.set.tcp_timeout[TIMEOUT_UNACK]
    cdef uint32_t left = ticks_left(step.ct, entry)
    if not entry.status & ASSURED or entry.status & FIXED_TIMEOUT or (step.index != TCP_FIN and step.index != TCP_RST):
        return
    if t.last_dir != step.dir and (t.last_index == TCP_FIN or t.last_index == TCP_RST):
        if left >= step.ct.set.hopeless_after and left > unacked:
            set_deadline(step.ct, entry, unacked)
        return
    t.last_index = step.index
    t.last_dir = step.dir


cdef inline uint32_t timeout_of(const Step *step) noexcept nogil:
    """The new state's timeout, or a shorter one, first match: hanging, reset, unacknowledged data, zero window."""
    cdef const Tcp *t = &step.entry.l4.tcp
    cdef const uint32_t *table = step.ct.set.tcp_timeout
    cdef uint32_t timeout = table[step.new]
    if t.retrans >= step.ct.set.tcp_max_retrans and timeout > table[TIMEOUT_RETRANS]:
        return table[TIMEOUT_RETRANS]
    if step.index == TCP_RST:
        return table[CLOSE]
    if (t.flags[ORIG] | t.flags[REPLY]) & TF_DATA_UNACKED and timeout > table[TIMEOUT_UNACK]:
        return table[TIMEOUT_UNACK]
    if t.last_win == 0 and timeout > table[TIMEOUT_RETRANS]:
        return table[TIMEOUT_RETRANS]
    return timeout


cdef inline Outcome advance(Step *step) noexcept nogil:
    """The packet is believed: new state, new timeout, seen-reply's absence and assured minded."""
    cdef Entry *entry = step.entry
    cdef Tcp *t = &entry.l4.tcp
    cdef Engine *ct = step.ct
    cdef uint32_t timeout
    t.last_index = step.index
    t.last_dir = step.dir
    t.state = step.new
    step.p.reason = step.note
    if step.old != step.new:
        ct.changes |= CHANGE_L4STATE
        if step.new == FIN_WAIT:
            t.flags[step.dir] |= TF_CLOSE_INIT
    timeout = timeout_of(step)
    if not entry.status & SEEN_REPLY:
        if step.index == TCP_RST:
            account(ct, entry, step.p, step.dir)
            entry.status |= DYING
            step.p.reason = R_TCP_RST_KILLED
            return ACCEPTED
        if step.index == TCP_SYN and step.old == SYN_SENT:
            step.p.reason = R_TCP_SYN_AGAIN
            return ACCEPTED
        if step.new == TCP_ESTABLISHED and timeout > ct.set.tcp_timeout[TIMEOUT_UNACK]:
            timeout = ct.set.tcp_timeout[TIMEOUT_UNACK]
    elif not entry.status & ASSURED and step.new == TCP_ESTABLISHED and (step.old == SYN_RECV or step.old == TCP_ESTABLISHED):
        entry.status |= ASSURED
        ct.changes |= CHANGE_ASSURED
    refresh(ct, entry, step.p, step.dir, timeout)
    return ACCEPTED


cdef Outcome tcp_packet(Engine *ct, Entry *entry, Packet *p, int dir, bint fresh) noexcept nogil:
    """One TCP packet.   Writes: the entry, ct.changes, p.reason. A connection that is to die leaves with DYING set.

    fresh: the entry was made for this packet. REPEAT: the entry must be deleted and the packet looked up again.
    """
    cdef Step step
    cdef Guard guard
    cdef Window window
    step.ct = ct
    step.entry = entry
    step.p = p
    step.dir = <uint8_t>dir
    step.index = index_of(p.tcp_flags)
    step.end = end_of(p)
    step.old = entry.l4.tcp.state
    step.new = ct.set.tcp_table[dir][step.index][step.old]
    step.note = R_OK
    if unlikely(fresh) and not open_tcp(&step):
        return REJECTED
    # Only ESTABLISHED staying ESTABLISHED, nearly every packet there is, needs no guard.
    if unlikely(step.new != TCP_ESTABLISHED or step.old != TCP_ESTABLISHED):
        guard = guards(&step)
        if guard == STOP_ACCEPTED:
            return ACCEPTED
        if guard == STOP_REJECTED:
            return REJECTED
        if guard == STOP_REPEAT:
            return REPEAT
        if guard == SKIP_WINDOW:
            return advance(&step)
    window = check_window(&step)
    if unlikely(window == OUTSIDE_INVALID):
        hopeless(&step)
        return REJECTED
    if unlikely(window == OUTSIDE_IGNORED):
        return ACCEPTED
    if unlikely(window == OUTSIDE_LIBERAL) and step.note == R_OK:
        step.note = R_TCP_LIBERAL
    return advance(&step)
