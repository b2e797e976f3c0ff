"""SIP (RFC 3261): the signalling that a REGISTER announces, and the media that session descriptions (SDP, RFC 4566) do.

Theory of operation: a contact that is registered is where calls will come from the registrar: expected for good, but only from the registrar's
answer on, and as long as that says. A description in an INVITE, UPDATE, PRACK, ACK, or an answer to the first three names where its sender
receives media: RTP at an even port and RTCP at the next one. Its sender's own address must be named in both cases; what is
expected comes from the other end of this connection (Linux: sip_direct_signalling=1, sip_direct_media=1, sip_external_media=0).
An INVITE begins anew, a BYE and a refusal end all media. Packets with data keep the connection for an hour (sip_timeout).
Over TCP messages are found by their content length, several in a segment; what a segment cuts off is let through and not looked at.
Invariant: without translation the payload is looked at where it is; under it, in a copy that the changes are made in.
Not here: reading (sip_text), changing (sip_nat).
"""

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from ctcore.engine cimport set_deadline
from ctcore.expectations cimport ANNOUNCED, EXPECT_ALREADY, Announced, Expectation, expect_match, expect_remove, expect_same
from ctcore.extensions cimport SipMemory
from ctcore.helpers.helper cimport (
    HELPER_SIP,
    KIND_AUDIO,
    KIND_IMAGE,
    KIND_SIGNALLING,
    KIND_VIDEO,
    Aid,
    announce,
    announce_or_drop,
    draft_new,
    translated,
)
from ctcore.helpers.nat_text cimport move_sequence
from ctcore.helpers.sip_nat cimport edit_headers, edit_media_address, edit_media_port, edit_session, expect_media, expect_signalling, say_edits
from ctcore.helpers.sip_text cimport *
from ctcore.helpers.text cimport Text, byte_at, bytes_at, word_at
from ctcore.types cimport *

cdef enum:
    LIFETIME = 3600             # seconds that a packet with data gives the connection
    SHORTEST = 11               # "SIP/2.0 200"
    LEAST_PORT = 1024
    LAST_PORT = 65535
    MEDIA_LOOKED_AT = 3         # of a description
    N_MEDIA = 3
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

ctypedef struct Media:
    const char *name
    uint8_t kind

cdef Media[N_MEDIA] MEDIA
MEDIA[0] = Media(b"audio ", KIND_AUDIO)
MEDIA[1] = Media(b"video ", KIND_VIDEO)
MEDIA[2] = Media(b"image ", KIND_IMAGE)

cdef enum:
    MEDIA_WORD = 6


cdef inline bint names_sender(const Aid *aid, const uint8_t *address) noexcept nogil:
    return memcmp(aid.entry.flow[aid.dir].key.src, address, 16) == 0


cdef void flush(Aid *aid, bint media) noexcept nogil:
    """What this connection expects of media, or of signalling, is expected no more."""
    cdef uint32_t row = aid.ext.youngest, older
    while row != NO_CONN:
        older = aid.ct.expect.row[row].older
        if (aid.ct.expect.row[row].kind != KIND_SIGNALLING) == media:
            expect_remove(&aid.ct.expect, row)
        row = older


# --- media ------------------------------------------------------------------------------------------------------------------------------


cdef int kind_of_media(const Message *m, const Span *media) noexcept nogil:
    """Of the words that are known, case and all; -1: another one."""
    cdef int k
    for k in range(N_MEDIA):
        if media.size >= MEDIA_WORD and bytes_at(&m.text, media.at, MEDIA[k].name, MEDIA_WORD):
            return MEDIA[k].kind
    return -1


cdef bint seek_direct(Aid *aid, Expectation *draft, bint *direct) noexcept nogil:
    """Is this media expected by another call already? True: then by that one only.

    direct: it is, and both calls are translated, so that their ends may reach each other without us: the draft becomes the place inside.
    """
    cdef const Expectation *other
    cdef Key key = draft.key
    cdef uint32_t row
    key.sport = 0
    direct[0] = False
    while True:
        row = expect_match(&aid.ct.expect, &key)
        if row == NO_CONN:
            return False
        other = &aid.ct.expect.row[row]
        if other.master == draft.master or other.kind != draft.kind or not other.owner or aid.ct.ext.row[other.owner].helper != HELPER_SIP:
            return False
        if direct[0] or not translated(aid) or (memcmp(other.saved, other.key.dst, 16) == 0 and other.saved_port == other.key.dport):
            return True
        memcpy(key.dst, other.saved, 16)
        key.dport = other.saved_port
        memcpy(draft.key.dst, key.dst, 16)
        draft.key.dport = key.dport
        direct[0] = True


cdef uint8_t announce_both(Aid *aid, Expectation *rtp, Expectation *rtcp) noexcept nogil:
    """Whoever announced them, even as another kind of media, they are expected."""
    cdef Announced first = announce(aid, rtp), second
    if first != ANNOUNCED and first != EXPECT_ALREADY:
        return R_HELPER_REFUSED
    second = announce(aid, rtcp)
    if second == ANNOUNCED or second == EXPECT_ALREADY:
        return R_OK
    if first == ANNOUNCED:
        expect_remove(&aid.ct.expect, expect_same(&aid.ct.expect, rtp))
    return R_HELPER_REFUSED


cdef uint8_t expect_stream(Aid *aid, Message *m, uint8_t *address, uint16_t port, uint8_t kind, const Span *media) noexcept nogil:
    """RTP and RTCP. Only to the sender itself. address: becomes the one that the message is to name; media: the span of the port in it."""
    cdef Expectation rtp, rtcp
    cdef bint direct, known
    cdef uint8_t reason
    if not names_sender(aid, address):
        return R_OK
    draft_new(aid, &rtp, kind, PROTO_UDP)
    memcpy(rtp.key.src, aid.entry.flow[1 - aid.dir].key.src, 16)
    memcpy(rtp.key.dst, address, 16)
    rtp.key.dport = port
    rtp.shared = 1
    known = seek_direct(aid, &rtp, &direct)
    rtp.key.dport &= <uint16_t>~1
    if direct:
        memcpy(address, rtp.key.dst, 16)
        reason = edit_media_port(aid, m, media, rtp.key.dport)
        if reason != R_OK:
            return reason
    if known:
        return R_OK
    rtcp = rtp
    rtcp.key.dport += 1
    if direct or not translated(aid):
        return announce_both(aid, &rtp, &rtcp)
    reason = expect_media(aid, m, &rtp, &rtcp, media)
    memcpy(address, rtp.key.dst, 16)
    return reason


cdef uint8_t media_stream(Aid *aid, Message *m, Span *media, uint8_t kind, const uint8_t *session, uint8_t *address) noexcept nogil:
    """One m= line with a port. session: the description's own address, or NULL; address: becomes what the message is to name."""
    cdef Span span
    cdef uint32_t port
    cdef uint8_t reason
    cdef bint own
    read_number(&m.text, media.at, &port)
    if port < LEAST_PORT or port > LAST_PORT:
        return R_HELPER_PARTIAL
    own = find_line(m, media.at, SDP_CONNECTION, SDP_MEDIA, &span) == FOUND
    if own:
        read_address(&m.text, span.at, m.family, False, address)
    elif session != NULL:
        memcpy(address, session, 16)
    else:
        return R_HELPER_PARTIAL
    reason = expect_stream(aid, m, address, <uint16_t>port, kind, media)
    if reason == R_OK and own and translated(aid):
        reason = edit_media_address(aid, m, media.at, address)
    return reason


cdef uint8_t describe(Aid *aid, Message *m) noexcept nogil:
    """A session description, if there is one: the first three streams that are active. A media's own address counts more than the session's."""
    cdef uint8_t session[16]
    cdef uint8_t address[16]
    cdef Span span, media
    cdef uint32_t start, port
    cdef uint8_t reason
    cdef int kind, n = 0
    cdef bint has_session
    if find_line(m, 0, SDP_VERSION, SDP_NONE, &span) != FOUND:
        return R_OK
    start = media.at = span.at
    memset(address, 0, 16)
    has_session = find_line(m, start, SDP_CONNECTION, SDP_MEDIA, &span) == FOUND
    if has_session:
        read_address(&m.text, span.at, m.family, False, session)
    while n < MEDIA_LOOKED_AT and find_line(m, media.at, SDP_MEDIA, SDP_NONE, &media) == FOUND:
        kind = kind_of_media(m, &media)
        if kind < 0:
            media.at += media.size
            continue
        media.at += MEDIA_WORD
        media.size -= MEDIA_WORD
        read_number(&m.text, media.at, &port)
        if port == 0:
            continue
        reason = media_stream(aid, m, &media, <uint8_t>kind, <const uint8_t *>session if has_session else NULL, address)
        if reason != R_OK:
            return reason
        n += 1
    return edit_session(aid, m, start, address) if n and translated(aid) else R_OK


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
    """A packet with data keeps its connection, if its lifetime is not fixed. aid.payload is not looked at."""
    cdef const Packet *p = aid.p
    cdef uint32_t hz = <uint32_t>(1_000_000_000 // aid.ct.set.tick_ns)
    cdef bint tcp = p.key.proto == PROTO_TCP
    if p.l4_len > (p.doff if tcp else 8) and not (tcp and aid.state != ESTABLISHED) and not aid.entry.status & FIXED_TIMEOUT:
        set_deadline(aid.ct, aid.entry, LIFETIME * hz)


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
