"""FTP (RFC 959, RFC 2428): the data connections that PORT, EPRT and the answers to PASV and EPSV announce.

Theory of operation: commands are looked for at the start of a line only, and that is known from an earlier segment which ended in a newline. Two
such places are remembered of each direction, so that a retransmission between them is still understood. The very first command is never looked at.
A command that is not whole, or makes no sense, drops its segment: the sender will bring it again, with the rest of it.
Invariant: a place is remembered only if its segment was let through.
Not here: how text is replaced, and at which port the connection is expected then (payload_nat).
"""

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memcmp, memcpy

from ctcore.expectations cimport FOLLOW_MASTER, Expectation, expect_remove, expect_same
from ctcore.extensions cimport FtpMemory
from ctcore.helpers.helper cimport KIND_DEFAULT, Aid, announce_or_drop, draft_new, translated
from ctcore.helpers.payload_nat cimport Line, add_byte, add_ip4, add_ip6, add_number, add_text, announce_at_port, edit, move_sequence
from ctcore.helpers.text cimport NO_CHARACTER, Text, byte_at, is_digit, read_ip6, word_at
from ctcore.types cimport ESTABLISHED, Key, PROTO_TCP, R_HELPER_PARTIAL, R_HELPER_REFUSED, R_OK

cdef enum:
    ABSENT
    PARTIAL                     # cut off, or nothing that can be understood
    FOUND

# How a command or an answer goes on.
cdef enum Form:
    NUMBERS                     # h1,h2,h3,h4,p1,p2 and the end of the line
    NUMBERS_ANYWHERE            # the same, from the first digit on, whatever follows (RFC 1123 4.1.2.6)
    EXTENDED                    # |1|address|port|
    PORT_ALONE                  # |||port|

ctypedef struct Command:
    const char *word
    int skip                    # the character in front of what is to be read, NO_CHARACTER: the word itself
    Form form

# What an announcement says.
ctypedef struct Announcement:
    uint32_t at                 # of the text that names the place, in the payload
    uint32_t size
    uint8_t address[16]         # the sender's own, unless another one is named
    uint16_t port
    Form form

cdef Command[2][2] COMMANDS
COMMANDS[0][0] = Command(b"PORT", c' ', NUMBERS)
COMMANDS[0][1] = Command(b"EPRT", c' ', EXTENDED)
COMMANDS[1][0] = Command(b"227 ", NO_CHARACTER, NUMBERS_ANYWHERE)
COMMANDS[1][1] = Command(b"229 ", c'(', PORT_ALONE)

cdef enum:
    WORD = 4                    # characters of each


# --- numbers and places -----------------------------------------------------------------------------------------------------------------


cdef uint32_t read_numbers(const Text *t, uint32_t i, int n, int separator, int end, uint32_t *number) noexcept nogil:
    """n numbers and then `end` (NO_CHARACTER: anything). Where they end, or 0. They may overflow, as they always did."""
    cdef uint32_t start = i
    cdef int k = 0, c
    number[0] = 0
    while i < t.size and k < n:
        c = byte_at(t, i)
        if is_digit(c):
            number[k] = number[k] * 10 + <uint32_t>(c - 48)
        elif c == separator:
            k += 1
            if k < n:
                number[k] = 0
        elif k == n - 1 and (c == end or end == NO_CHARACTER) and i > start:
            return i
        else:
            return 0
        i += 1
    return 0


cdef uint32_t read_place(const Text *t, uint32_t i, int end, Announcement *a) noexcept nogil:
    """h1,h2,h3,h4,p1,p2. Where it ends, or 0."""
    cdef uint32_t number[6]
    cdef uint32_t address
    cdef uint32_t stop = read_numbers(t, i, 6, c',', end, number)
    if stop == 0:
        return 0
    address = number[0] << 24 | number[1] << 16 | number[2] << 8 | number[3]
    write_ip4(address, a.address)
    a.port = <uint16_t>(number[4] << 8 | number[5])
    return stop


cdef inline void write_ip4(uint32_t value, uint8_t *address) noexcept nogil:
    cdef int k
    for k in range(4):
        address[k] = <uint8_t>(value >> (24 - 8 * k))


cdef uint32_t read_port(const Text *t, uint32_t i, int delimiter, uint16_t *port) noexcept nogil:
    """A port that is not 0, and the delimiter behind it. The place behind that, or 0."""
    cdef uint16_t value = 0
    while is_digit(byte_at(t, i)):
        value = <uint16_t>(value * 10 + (byte_at(t, i) - 48))
        i += 1
    if byte_at(t, i) != delimiter or value == 0:
        return 0
    port[0] = value
    return i + 1


cdef inline bint is_delimiter(int c) noexcept nogil:
    """RFC 2428 2: 33 to 126, but no digit."""
    return c >= 33 and c <= 126 and not is_digit(c)


cdef uint32_t read_extended(const Text *t, uint32_t i, int family, Announcement *a) noexcept nogil:
    """|1|132.235.1.2|6275| or |2|1080::8:800:200C:417A|5282| (RFC 2428 2), of the connection's own family. Where it ends, or 0."""
    cdef int delimiter = byte_at(t, i)
    cdef uint32_t number[4]
    cdef uint32_t stop
    if i + 3 >= t.size or not is_delimiter(delimiter) or byte_at(t, i + 2) != delimiter:
        return 0
    if byte_at(t, i + 1) != (c'1' if family == 4 else c'2'):
        return 0
    if family == 4:
        stop = read_numbers(t, i + 3, 4, c'.', delimiter, number)
        if stop:
            write_ip4(number[0] << 24 | number[1] << 16 | number[2] << 8 | number[3], a.address)
    else:
        stop = read_ip6(t, i + 3, delimiter, a.address)
    return read_port(t, stop + 1, delimiter, &a.port) if stop else 0


cdef uint32_t read_port_alone(const Text *t, uint32_t i, Announcement *a) noexcept nogil:
    """|||6446| (RFC 2428 3). Where it ends, or 0."""
    cdef int delimiter = byte_at(t, i)
    if i + 3 >= t.size or not is_delimiter(delimiter) or byte_at(t, i + 1) != delimiter or byte_at(t, i + 2) != delimiter:
        return 0
    return read_port(t, i + 3, delimiter, &a.port)


# --- lines ------------------------------------------------------------------------------------------------------------------------------


cdef int find_command(const Text *t, const Command *command, int family, Announcement *a) noexcept nogil:
    """Is the payload this command? FOUND fills in the announcement."""
    cdef uint32_t i = WORD, stop
    if t.size <= WORD:
        return PARTIAL if word_at(t, 0, command.word, t.size) else ABSENT
    if not word_at(t, 0, command.word, WORD):
        return ABSENT
    if command.skip != NO_CHARACTER:
        while i < t.size and byte_at(t, i) != command.skip:
            i += 1
        i += 1
    elif command.form == NUMBERS_ANYWHERE:
        while i < t.size and not is_digit(byte_at(t, i)):
            i += 1
    if command.form == EXTENDED:
        stop = read_extended(t, i, family, a)
    elif command.form == PORT_ALONE:
        stop = read_port_alone(t, i, a)
    else:
        stop = read_place(t, i, NO_CHARACTER if command.form == NUMBERS_ANYWHERE else c'\r', a)
    a.at = i
    a.size = stop - i
    a.form = command.form
    return FOUND if stop else PARTIAL


cdef inline bint line_begins(const FtpMemory *m, int dir, uint32_t seq) noexcept nogil:
    cdef int k
    for k in range(m.known[dir]):
        if m.line[dir][k] == seq:
            return True
    return False


cdef void remember_line(FtpMemory *m, int dir, uint32_t seq) noexcept nogil:
    """A line begins at seq. Of three places the earliest is forgotten, unless it is this one."""
    cdef int older
    if line_begins(m, dir, seq):
        return
    if m.known[dir] < 2:
        m.line[dir][m.known[dir]] = seq
        m.known[dir] += 1
        return
    older = 0 if <int32_t>(m.line[dir][0] - m.line[dir][1]) < 0 else 1
    if <int32_t>(m.line[dir][older] - seq) < 0:
        m.line[dir][older] = seq


# --- one packet -------------------------------------------------------------------------------------------------------------------------


cdef uint8_t expect_data(Aid *aid, const Announcement *a) noexcept nogil:
    """A data connection is announced. Only to the sender itself: another address would open a way to a third party."""
    cdef Expectation draft
    cdef const Key *sender = &aid.entry.flow[aid.dir].key
    cdef const Key *back = &aid.entry.flow[1 - aid.dir].key
    if memcmp(a.address, sender.src, 16) != 0:
        return R_OK
    draft_new(aid, &draft, KIND_DEFAULT, PROTO_TCP)
    memcpy(draft.key.src, back.src, 16)
    memcpy(draft.key.dst, back.dst, 16)
    draft.key.dport = a.port
    return rewrite_place(aid, a, &draft) if translated(aid) else announce_or_drop(aid, &draft)


cdef uint8_t rewrite_place(Aid *aid, const Announcement *a, Expectation *draft) noexcept nogil:
    """Expect the connection where the sender is seen from the other side, and say so in its form."""
    cdef Line line
    cdef uint16_t port
    cdef const uint8_t *address = <const uint8_t *>aid.entry.flow[1 - aid.dir].key.dst
    draft.saved_port = a.port
    draft.dir = 1 - aid.dir
    draft.follow = FOLLOW_MASTER
    port = announce_at_port(aid, draft, a.port)
    if port == 0:
        return R_HELPER_REFUSED
    line.size = 0
    if a.form == NUMBERS or a.form == NUMBERS_ANYWHERE:
        add_ip4(&line, address, c',')
        add_byte(&line, c',')
        add_number(&line, port >> 8)
        add_byte(&line, c',')
        add_number(&line, port & 0xFF)
    else:
        add_text(&line, b"|||" if a.form == PORT_ALONE else b"|1|" if aid.p.key.family == 4 else b"|2|")
        if a.form == EXTENDED:
            if aid.p.key.family == 4:
                add_ip4(&line, address, c'.')
            else:
                add_ip6(&line, address)
            add_byte(&line, c'|')
        add_number(&line, port)
        add_byte(&line, c'|')
    if not edit(aid, a.at, a.size, &line):
        expect_remove(&aid.ct.expect, expect_same(&aid.ct.expect, draft))
        return R_HELPER_REFUSED
    move_sequence(aid, <int32_t>line.size - <int32_t>a.size)
    return R_OK


cdef uint8_t ftp(Aid *aid) noexcept nogil:
    """One packet.   Writes: the extension's memory, expectations."""
    cdef FtpMemory *m = &aid.ext.memory.ftp
    cdef const Text *t = &aid.payload
    cdef Announcement a
    cdef int found = ABSENT, k
    cdef uint8_t reason = R_OK
    if aid.state != ESTABLISHED or t.size == 0:
        return R_OK
    if line_begins(m, aid.dir, aid.p.seq):
        memcpy(a.address, aid.entry.flow[aid.dir].key.src, 16)
        for k in range(2):
            found = find_command(t, &COMMANDS[aid.dir][k], aid.p.key.family, &a)
            if found != ABSENT:
                break
        if found == PARTIAL:
            return R_HELPER_PARTIAL
        if found == FOUND:
            reason = expect_data(aid, &a)
    if byte_at(t, t.size - 1) == c'\n':
        remember_line(m, aid.dir, aid.p.seq + t.size)
    return reason
