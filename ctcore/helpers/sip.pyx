"""SIP (RFC 3261): messages, and the signalling that a REGISTER announces.

Theory of operation: a contact that is registered is where calls will come from the registrar: expected for good, but only from the registrar's
answer on, and as long as that says. The sender must name its own address, and calls come from the other end of this connection only (Linux:
sip_direct_signalling=1).
INVITE, UPDATE, PRACK, ACK, and answers to the first three may hold a session description, which announces media. An INVITE begins anew, a BYE and a refusal end all media. Packets with data keep the connection for an hour (sip_timeout).
Over TCP messages are found by their content length, several in a segment; what a segment cuts off is let through and not looked at.
Not supported: such a phone as sip_nat.redirect serves, over TCP; external media; signalling or media from elsewhere (those three settings of Linux).
Invariant: without translation the payload is looked at where it is; under it, in a copy that the changes are made in.
Not here: reading (sip_text), what a description announces (sip_media), changing (sip_nat).
"""

from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from ctcore.engine cimport set_deadline
from ctcore.expectations cimport Expectation, expect_remove
from ctcore.helpers.helper cimport HELPER_SIP, KIND_SIGNALLING, Aid, announce_or_drop, draft_new, translated
from ctcore.helpers.payload_nat cimport move_sequence
from ctcore.helpers.sip_media cimport describe, names_sender
from ctcore.helpers.sip_nat cimport edit_headers, expect_signalling, say_edits
from ctcore.helpers.sip_text cimport *
from ctcore.helpers.text cimport Text, byte_at, bytes_at, word_at
from ctcore.types cimport *

cdef enum:
    LIFETIME = 3600             # seconds that a packet with data gives the connection
    SHORTEST = 11               # "SIP/2.0 200"
    N_METHODS = 6

# What a method asks for, and what an answer to it does.
cdef enum Act:
    NOTHING
    INVITE
    DESCRIBE
    HANG_UP
    REGISTER

ctypedef struct Method:
    const char *name
    uint32_t size
    Act request
    Act response

cdef Method[N_METHODS] METHODS
METHODS[0] = Method(b"INVITE", 6, INVITE, DESCRIBE)
METHODS[1] = Method(b"UPDATE", 6, DESCRIBE, DESCRIBE)
METHODS[2] = Method(b"ACK", 3, DESCRIBE, NOTHING)
METHODS[3] = Method(b"PRACK", 5, DESCRIBE, DESCRIBE)
METHODS[4] = Method(b"BYE", 3, HANG_UP, NOTHING)
METHODS[5] = Method(b"REGISTER", 8, REGISTER, REGISTER)

cdef void flush(Aid *aid, bint media) noexcept nogil:
    """What this connection expects of media, or of signalling, is expected no more."""
    cdef uint32_t row = aid.ext.youngest, older
    while row != NO_CONN:
        older = aid.ct.expect.row[row].older
        if (aid.ct.expect.row[row].kind != KIND_SIGNALLING) == media:
            expect_remove(&aid.ct.expect, row)
        row = older


# --- registration -----------------------------------------------------------------------------------------------------------------------


cdef bint same_transport(const Aid *aid, const Message *m, uint32_t at) noexcept nogil:
    """transport= (RFC 3261 19.1.1) of a contact, if it is there, is this connection's."""
    cdef Text part
    cdef uint32_t start
    if not find_param(m, at, b"transport=", 10, &part, &start):
        return True
    return word_at(&m.text, start, <const char *>b"TCP" if aid.p.key.proto == PROTO_TCP else <const char *>b"UDP", 3)


cdef inline uint32_t expires(const Message *m) noexcept nogil:
    """Seconds; 0 if the header is not there."""
    cdef Span span
    cdef uint32_t value = 0
    if find_header(m, 0, HEADER_EXPIRES, &span) == FOUND:
        read_number(&m.text, span.at, &value)
    return value


cdef uint8_t register(Aid *aid, Message *m, uint32_t cseq) noexcept nogil:
    """A contact is announced: calls to it will come from the registrar, once that agrees. No contact, or 0 seconds: nothing is."""
    cdef Expectation draft
    cdef Uri contact
    cdef Span span
    cdef uint32_t seconds = expires(m), end
    cdef uint8_t reason = R_OK
    cdef int found
    if aid.entry.status & EXPECTED:
        return R_OK
    found = find_uri(m, HEADER_CONTACT, &contact)
    if found != FOUND:
        return R_HELPER_PARTIAL if found == MISREAD else R_OK
    end = contact.span.at + contact.span.size
    if not names_sender(aid, contact.address) or not same_transport(aid, m, end):
        return R_OK
    if number_param(m, end, b"expires=", 8, &span, &seconds) == MISREAD:
        return R_HELPER_PARTIAL
    if seconds:
        draft_new(aid, &draft, KIND_SIGNALLING, aid.p.key.proto)
        memcpy(draft.key.src, aid.entry.flow[1 - aid.dir].key.src, 16)
        memcpy(draft.key.dst, contact.address, 16)
        draft.key.dport = contact.port
        draft.helper = HELPER_SIP
        draft.permanent = draft.inactive = 1
        reason = expect_signalling(aid, m, &draft, &contact) if translated(aid) else announce_or_drop(aid, &draft)
    if reason == R_OK:
        aid.ext.memory.sip.register_cseq = cseq
    return reason


cdef bint prolong(Aid *aid, const Uri *contact, uint32_t seconds) noexcept nogil:
    """Signalling is expected from now on, and for so long. False if it was not announced."""
    cdef uint32_t row = aid.ext.youngest
    cdef uint32_t hz = <uint32_t>(1_000_000_000 // aid.ct.set.tick_ns)
    cdef Expectation *e
    while row != NO_CONN:
        e = &aid.ct.expect.row[row]
        if (e.kind == KIND_SIGNALLING and memcmp(e.key.dst, contact.address, 16) == 0 and e.key.proto == aid.p.key.proto
                and e.key.dport == contact.port):
            # As in Linux, ticks are counted modulo 2^32.
            e.deadline = aid.ct.tick + <uint32_t>(seconds * hz)
            e.inactive = 0
            aid.ct.expect.next_due = min(aid.ct.expect.next_due, e.deadline)
            return True
        row = e.older
    return False


cdef uint8_t registered(Aid *aid, Message *m, uint32_t cseq, uint32_t code) noexcept nogil:
    """The registrar's answer to the last REGISTER names all contacts it knows of; is ours not among them, or refused, it is forgotten."""
    cdef Walk walk = Walk(0, False)
    cdef Uri contact
    cdef Span span
    cdef uint32_t least, seconds, end
    cdef int found
    if aid.ext.memory.sip.register_cseq != cseq or (code >= 100 and code <= 199):
        return R_OK
    least = expires(m)
    while code >= 200 and code <= 299:
        seconds = least
        found = next_uri(m, HEADER_CONTACT, &walk, &contact)
        if found == MISREAD:
            return R_HELPER_PARTIAL
        if found == ABSENT:
            break
        end = contact.span.at + contact.span.size
        if memcmp(aid.entry.flow[aid.dir].key.dst, contact.address, 16) != 0 or not same_transport(aid, m, end):
            continue
        if number_param(m, end, b"expires=", 8, &span, &seconds) == MISREAD:
            return R_HELPER_PARTIAL
        if seconds == 0:
            break
        if prolong(aid, &contact, seconds):
            return R_OK
    flush(aid, False)
    return R_OK


# --- one packet -------------------------------------------------------------------------------------------------------------------------


cdef bint read_cseq(const Message *m, Span *span, uint32_t *cseq) noexcept nogil:
    if find_header(m, 0, HEADER_CSEQ, span) != FOUND:
        return False
    read_number(&m.text, span.at, cseq)
    return cseq[0] != 0 or byte_at(&m.text, span.at) == c'0'


cdef uint8_t respond(Aid *aid, Message *m) noexcept nogil:
    """An answer; CSeq (RFC 3261 20.16) says to what."""
    cdef Span span
    cdef uint32_t code, cseq, at
    cdef int k
    if m.text.size < SHORTEST:
        return R_OK
    read_number(&m.text, 8, &code)
    if code == 0 or not read_cseq(m, &span, &cseq):
        return R_HELPER_PARTIAL
    at = span.at + span.size + 1
    for k in range(N_METHODS):
        if METHODS[k].response == NOTHING or not word_at(&m.text, at, METHODS[k].name, METHODS[k].size):
            continue
        if METHODS[k].response == REGISTER:
            return registered(aid, m, cseq, code)
        if code >= 100 and code <= 299:
            return describe(aid, m)
        if aid.ext.memory.sip.invite_cseq == cseq:
            flush(aid, True)
        return R_OK
    return R_OK


cdef uint8_t act(Aid *aid, Message *m, Act what, uint32_t cseq) noexcept nogil:
    cdef uint8_t reason
    if what == REGISTER:
        return register(aid, m, cseq)
    if what == INVITE or what == HANG_UP:
        flush(aid, True)
    if what == HANG_UP:
        return R_OK
    reason = describe(aid, m)
    if reason == R_OK and what == INVITE:
        aid.ext.memory.sip.invite_cseq = cseq
    return reason


cdef uint8_t request(Aid *aid, Message *m) noexcept nogil:
    """A question. Some phones listen at another port than they ask from, and say so in their Via."""
    cdef const Key *sender = &aid.entry.flow[aid.dir].key
    cdef const Text *t = &m.text
    cdef uint32_t n, cseq
    cdef Span span
    cdef Uri via
    cdef int k
    if find_uri(m, HEADER_VIA_UDP, &via) == FOUND and via.port != sender.sport and names_sender(aid, via.address):
        aid.ext.memory.sip.answer_port = via.port
    for k in range(N_METHODS):
        n = METHODS[k].size
        if not word_at(t, 0, METHODS[k].name, n) or byte_at(t, n) != c' ' or count_letters(t, n + 1) == 0:
            continue
        return act(aid, m, METHODS[k].request, cseq) if read_cseq(m, &span, &cseq) else R_HELPER_PARTIAL
    return R_OK


cdef uint8_t message(Aid *aid, Message *m) noexcept nogil:
    cdef uint8_t reason = respond(aid, m) if word_at(&m.text, 0, b"SIP/2.0 ", 8) else request(aid, m)
    return edit_headers(aid, m) if reason == R_OK and translated(aid) else reason


cdef uint64_t measure_message(const Message *m) noexcept nogil:
    """Bytes of the message that a stream begins with (RFC 3261 18.3), or 0: it cannot be told. It may be longer than what is there."""
    cdef const Text *t = &m.text
    cdef Span span
    cdef uint32_t i, length
    if find_header(m, 0, HEADER_LENGTH, &span) != FOUND:
        return 0
    i = read_number(t, span.at, &length)
    while i + 4 <= t.size:
        if bytes_at(t, i, b"\r\n\r\n", 4):
            return <uint64_t>i + 4 + length
        i += 1
    return 0


cdef uint8_t stream(Aid *aid, Message *m) noexcept nogil:
    """All messages of a segment. m becomes what is behind the last one that was looked at.

    What is added moves later sequence numbers; not so, as in Linux, if the last message is cut off.
    """
    cdef uint32_t left
    cdef uint64_t size
    cdef uint8_t reason
    while True:
        size = measure_message(m)
        if size == 0:
            break
        if size > m.text.size:
            return R_OK
        left = m.text.size - <uint32_t>size
        m.text.size = <uint32_t>size
        m.rest = left
        reason = message(aid, m)
        if reason != R_OK:
            return reason
        m.text.at += m.text.size
        m.text.size = left
        m.rest = 0
    move_sequence(aid, aid.grown)
    return R_OK


cdef void keep_signalling(Aid *aid) noexcept nogil:
    """A packet with data keeps its connection. aid.payload is not looked at."""
    cdef const Packet *p = aid.p
    cdef bint tcp = p.key.proto == PROTO_TCP
    if p.l4_len > (p.doff if tcp else 8) and not (tcp and aid.state != ESTABLISHED):
        keep_connection(aid.ct, aid.entry)


cdef void keep_connection(Engine *ct, Entry *entry) noexcept nogil:
    """For an hour, if its lifetime is not fixed."""
    if not entry.status & FIXED_TIMEOUT:
        set_deadline(ct, entry, LIFETIME * <uint32_t>(1_000_000_000 // ct.set.tick_ns))


cdef uint8_t sip(Aid *aid) noexcept nogil:
    """One packet.   Writes: the extension's memory, expectations, edits."""
    cdef bint tcp = aid.p.key.proto == PROTO_TCP
    cdef bint copied = translated(aid)
    cdef uint8_t reason
    cdef Message m
    aid.ext.memory.sip.redirect = 0
    if aid.payload.size < SHORTEST or (tcp and aid.state != ESTABLISHED):
        return R_OK
    m.text = aid.payload
    m.rest = 0
    m.family = aid.p.key.family
    if copied:
        memcpy(aid.ct.scratch, aid.payload.at, aid.payload.size)
        m.text.at = aid.ct.scratch
    reason = stream(aid, &m) if tcp else message(aid, &m)
    if reason == R_OK and copied:
        reason = say_edits(aid, aid.ct.scratch, <uint32_t>(<int32_t>aid.payload.size + aid.grown))
    return reason
