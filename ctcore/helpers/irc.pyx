"""IRC: the direct connections (DCC) that a client offers to another one by a message through its server.

    PRIVMSG nick :\1DCC SEND name 3232235777 2000\1\n

Only the client speaks of itself, so only what it sends is looked at, and in it the first message that begins with a DCC command. The address is
a number; it has to be the client's own, or what that is on the other side. Anybody may connect.
Not here: what the connection is for.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy

from ctcore.expectations cimport FOLLOW_MASTER, Expectation, expect_remove, expect_same
from ctcore.helpers.helper cimport KIND_DEFAULT, Aid, announce_or_drop, draft_new, translated
from ctcore.helpers.payload_nat cimport Line, add_byte, add_number, announce_at_port, edit, move_sequence
from ctcore.helpers.text cimport Text, byte_at, bytes_at, is_digit, word_at
from ctcore.lowlevel cimport be32
from ctcore.types cimport ESTABLISHED, ORIG, PROTO_TCP, REPLY, R_HELPER_REFUSED, R_OK

cdef enum:
    SEARCHED = 4095             # bytes of a payload
    SHORTEST = 26               # " :\1DCC SENT t AAAAAAAA P\1\n"
    SHORTEST_PLACE = 12         # "AAAAAAAA P\1\n"
    N_COMMANDS = 5

# What a message offers: the span that names the place, and the place.
ctypedef struct Offer:
    uint32_t at
    uint32_t size
    uint32_t address
    uint16_t port

cdef const char *COMMAND[N_COMMANDS]
COMMAND[0], COMMAND[1], COMMAND[2], COMMAND[3], COMMAND[4] = b"SEND ", b"CHAT ", b"MOVE ", b"TSEND ", b"SCHAT "


cdef uint32_t read_number(const Text *t, uint32_t *i) noexcept nogil:
    """Digits from i on, modulo 2^32; i moves behind them. No digits: 0."""
    cdef uint32_t value = 0
    while is_digit(byte_at(t, i[0])):
        value = value * 10 + <uint32_t>(byte_at(t, i[0]) - 48)
        i[0] += 1
    return value


cdef bint has_newline(const Text *t, uint32_t i) noexcept nogil:
    while i < t.size:
        if t.at[i] == c'\n':
            return True
        i += 1
    return False


cdef bint read_offer(const Text *t, uint32_t i, Offer *offer) noexcept nogil:
    """Behind the command: a word, the address, the port, and somewhere the end of the line."""
    while byte_at(t, i) != c' ':
        i += 1
        if i + SHORTEST_PLACE > t.size:
            return False
    i += 1
    if not has_newline(t, i):
        return False
    offer.at = i
    offer.address = read_number(t, &i)
    while byte_at(t, i) == c' ':
        i += 1
    offer.port = <uint16_t>read_number(t, &i)
    offer.size = i - offer.at
    return True


cdef inline bint is_own(const Aid *aid, const Offer *offer) noexcept nogil:
    """The client's address, or the one it is seen by."""
    cdef bint inside = be32(<const uint8_t *>aid.entry.flow[ORIG].key.src) == offer.address
    cdef bint outside = be32(<const uint8_t *>aid.entry.flow[REPLY].key.dst) == offer.address
    return (inside or outside) and offer.port != 0


cdef uint8_t expect_offer(Aid *aid, const Offer *offer) noexcept nogil:
    cdef Expectation draft
    cdef Line line
    cdef uint16_t port
    draft_new(aid, &draft, KIND_DEFAULT, PROTO_TCP)
    draft.any_src = 1
    memcpy(draft.key.dst, aid.entry.flow[REPLY].key.dst, 16)
    draft.key.dport = offer.port
    if not translated(aid):
        return announce_or_drop(aid, &draft)
    draft.saved_port = offer.port
    draft.dir = REPLY
    draft.follow = FOLLOW_MASTER
    port = announce_at_port(aid, &draft, offer.port)
    if port == 0:
        return R_HELPER_REFUSED
    line.size = 0
    add_number(&line, be32(<const uint8_t *>draft.key.dst))
    add_byte(&line, c' ')
    add_number(&line, port)
    if not edit(aid, offer.at, offer.size, &line):
        expect_remove(&aid.ct.expect, expect_same(&aid.ct.expect, &draft))
        return R_HELPER_REFUSED
    move_sequence(aid, <int>line.size - <int>offer.size)
    return R_OK


cdef int message_at(const Text *t) noexcept nogil:
    """Where behind PRIVMSG to look for a message, or -1 if the line is something else."""
    cdef uint32_t i = 0
    while i + 10 < t.size and (t.at[i] == c' ' or t.at[i] == c'\r' or t.at[i] == c'\n'):
        i += 1
    if i + 10 >= t.size:
        return <int>i
    return <int>i + 8 if word_at(t, i, b"PRIVMSG ", 8) else -1


cdef uint8_t irc(Aid *aid) noexcept nogil:
    """One packet.   Writes: expectations, edits."""
    cdef Text t = aid.payload
    cdef Offer offer
    cdef uint32_t i, n
    cdef int k, start
    if aid.dir == REPLY or aid.state != ESTABLISHED or t.size == 0:
        return R_OK
    t.size = min(t.size, <uint32_t>SEARCHED)
    start = message_at(&t)
    if start < 0:
        return R_OK
    i = <uint32_t>start
    while i + SHORTEST < t.size:
        if not bytes_at(&t, i, b" :", 2):
            i += 1
            continue
        i += 2
        if not bytes_at(&t, i, b"\1DCC ", 5):
            return R_OK
        i += 5
        for k in range(N_COMMANDS):
            n = 6 if k >= 3 else 5
            if bytes_at(&t, i, COMMAND[k], n):
                i += n
                if read_offer(&t, i, &offer) and is_own(aid, &offer):
                    return expect_offer(aid, &offer)
    return R_OK
