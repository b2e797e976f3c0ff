"""Session descriptions (SDP, RFC 4566): the media that a SIP message announces.

Theory of operation: a description names where its sender receives each stream: RTP at an even port and RTCP at the next one. Only its sender's own
address counts, and streams come from the other end of this connection only (Linux: sip_direct_media=1, sip_external_media=0). What another call
expects already is not expected twice.
Not here: which messages hold a description that counts (sip), reading (sip_text), changing (sip_nat).
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcmp, memcpy, memset

from ctcore.expectations cimport ANNOUNCED, EXPECT_ALREADY, Announced, Expectation, expect_match, expect_remove, expect_same
from ctcore.helpers.helper cimport HELPER_SIP, KIND_AUDIO, KIND_IMAGE, KIND_VIDEO, Aid, announce, draft_new, translated
from ctcore.helpers.sip_nat cimport edit_media_address, edit_media_port, edit_session, expect_media
from ctcore.helpers.sip_text cimport *
from ctcore.helpers.text cimport bytes_at
from ctcore.types cimport *

cdef enum:
    LEAST_PORT = 1024
    LAST_PORT = 65535
    MEDIA_LOOKED_AT = 3         # of a description
    N_MEDIA = 3

ctypedef struct Media:
    const char *name
    uint8_t kind

cdef Media[N_MEDIA] MEDIA
MEDIA[0] = Media(b"audio ", KIND_AUDIO)
MEDIA[1] = Media(b"video ", KIND_VIDEO)
MEDIA[2] = Media(b"image ", KIND_IMAGE)

cdef enum:
    MEDIA_WORD = 6


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
        memcpy(address, session, 16)
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
    return edit_session(aid, m, start, address) if (n or has_session) and translated(aid) else R_OK
