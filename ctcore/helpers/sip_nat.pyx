"""SIP under address translation: a message says outside what is true outside.

Theory of operation: changes overlap and depend on each other (a content length on the description's, a header on one in front of it), so they are
made in a copy of the payload, as Linux makes them in the packet, and each search sees what the last change made of the text. In the end that
part of the payload which differs becomes the packet's edits.
What is changed: the address of a request, the topmost Via with maddr=, received= and rport=, every Contact, the first From and To; of a session
description each media's port and address, the owner's and the session's address, and the message's content length.
Invariants: the copy never outgrows the longest packet; an expectation is withdrawn if its message cannot say where it is.
Not here: where things are in the text (sip_text), what is to be expected (sip), the translation of what comes (payload_nat.follow).
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memcmp, memcpy, memmove

from ctcore.engine cimport Engine
from ctcore.expectations cimport ANNOUNCED, EXPECT_BUSY, FOLLOW_SIP, Announced, Expectation, expect_remove, expect_same
from ctcore.extensions cimport SipMemory
from ctcore.helpers.helper cimport HELPER_SIP, Aid, announce
from ctcore.helpers.payload_nat cimport (
    LARGEST_PACKET,
    Line,
    add_byte,
    add_edit,
    add_ip4,
    add_ip6_short,
    add_number,
    announce_at_port,
)
from ctcore.helpers.sip_text cimport *
from ctcore.helpers.text cimport Text, word_at
from ctcore.types cimport *


# --- text -------------------------------------------------------------------------------------------------------------------------------


cdef bint put(Aid *aid, Message *m, const Span *span, const Line *line) noexcept nogil:
    """Replace a span of the copy. False if the packet would become too large."""
    cdef int32_t by = <int32_t>line.size - <int32_t>span.size
    cdef uint8_t *text = <uint8_t *>m.text.at
    cdef uint32_t end = span.at + span.size
    if by > 0 and <int64_t>aid.p.ip_len + aid.grown + by > LARGEST_PACKET:
        return False
    memmove(text + span.at + line.size, text + end, m.text.size - end + m.rest)
    memcpy(text + span.at, line.text, line.size)
    m.text.size = <uint32_t>(<int32_t>m.text.size + by)
    aid.grown += by
    return True


cdef void add_address(Line *line, int family, const uint8_t *address, bint brackets) noexcept nogil:
    if family == 4:
        add_ip4(line, address, c'.')
        return
    if brackets:
        add_byte(line, c'[')
    add_ip6_short(line, address)
    if brackets:
        add_byte(line, c']')


cdef bint put_place(Aid *aid, Message *m, const Span *span, const uint8_t *address, uint16_t port) noexcept nogil:
    cdef Line line
    line.size = 0
    add_address(&line, m.family, address, True)
    add_byte(&line, c':')
    add_number(&line, port)
    return put(aid, m, span, &line)


cdef bint put_address(Aid *aid, Message *m, const Span *span, const uint8_t *address, bint brackets) noexcept nogil:
    cdef Line line
    line.size = 0
    add_address(&line, m.family, address, brackets)
    return put(aid, m, span, &line)


cdef bint put_number(Aid *aid, Message *m, const Span *span, uint32_t value) noexcept nogil:
    cdef Line line
    line.size = 0
    add_number(&line, value)
    return put(aid, m, span, &line)


cdef uint8_t say_edits(Aid *aid, const uint8_t *text, uint32_t size) noexcept nogil:
    """The payload has become this text: what lies between the first and the last difference is replaced, in pieces of an edit's size."""
    cdef const Text *old = &aid.payload
    cdef uint32_t most = min(old.size, size), head = 0, tail = 0, at, n
    cdef uint32_t at_l4 = <uint32_t>(old.at - aid.p.l4)
    cdef Line line
    while head < most and old.at[head] == text[head]:
        head += 1
    while tail < most - head and old.at[old.size - 1 - tail] == text[size - 1 - tail]:
        tail += 1
    at = head
    while at < size - tail or (at == head and old.size > head + tail):
        n = min(size - tail - at, <uint32_t>sizeof(line.text))
        if not add_edit(aid.ct, at_l4 + (head if at == head else old.size - tail), old.size - tail - head if at == head else 0, text + at, n):
            return R_HELPER_REFUSED
        if n == 0:
            break
        at += n
    return R_OK


# --- expectations -----------------------------------------------------------------------------------------------------------------------


cdef inline const uint8_t *own_outside(const Aid *aid, const Expectation *draft) noexcept nogil:
    """The address by which the other side knows who sends this packet, or what was announced, if that is not changed."""
    cdef const Key *sender = &aid.entry.flow[aid.dir].key
    cdef const Key *back = &aid.entry.flow[1 - aid.dir].key
    return <const uint8_t *>draft.key.dst if memcmp(sender.src, back.dst, 16) == 0 else <const uint8_t *>back.dst


cdef void move_outside(Aid *aid, Expectation *draft) noexcept nogil:
    """Expected where the sender is seen from the other side, and sent to where it said."""
    cdef const uint8_t *address = own_outside(aid, draft)
    memcpy(draft.saved, draft.key.dst, 16)
    draft.saved_port = draft.key.dport
    memmove(draft.key.dst, address, 16)
    draft.dir = 1 - aid.dir
    draft.follow = FOLLOW_SIP


cdef void withdraw(Aid *aid, const Expectation *draft) noexcept nogil:
    cdef uint32_t row = expect_same(&aid.ct.expect, draft)
    if row != NO_CONN:
        expect_remove(&aid.ct.expect, row)


cdef uint8_t expect_signalling(Aid *aid, Message *m, Expectation *draft, const Uri *contact) noexcept nogil:
    """Of a REGISTER's contact: at the port that the connection has outside, if it names the one it has inside."""
    cdef const Key *sender = &aid.entry.flow[aid.dir].key
    cdef uint16_t listens = aid.ext.memory.sip.answer_port
    cdef uint16_t port = draft.key.dport
    if port == (listens if listens else sender.sport):
        port = aid.entry.flow[1 - aid.dir].key.dport
    move_outside(aid, draft)
    port = announce_at_port(aid, draft, port)
    if port == 0:
        return R_HELPER_REFUSED
    if port == draft.saved_port and memcmp(draft.saved, draft.key.dst, 16) == 0:
        return R_OK
    if put_place(aid, m, &contact.span, <const uint8_t *>draft.key.dst, port):
        return R_OK
    withdraw(aid, draft)
    return R_HELPER_REFUSED


cdef uint16_t announce_pair(Aid *aid, Expectation *rtp, Expectation *rtcp) noexcept nogil:
    """At two ports in a row, the first ones from that of the draft on that are free. The first, or 0."""
    cdef uint32_t port = rtp.key.dport
    cdef Announced outcome
    while port < 65535:
        rtp.key.dport = <uint16_t>port
        outcome = announce(aid, rtp)
        if outcome == ANNOUNCED:
            rtcp.key.dport = <uint16_t>(port + 1)
            outcome = announce(aid, rtcp)
            if outcome == ANNOUNCED:
                return <uint16_t>port
            withdraw(aid, rtp)
        if outcome != EXPECT_BUSY:
            return 0
        port += 2
    return 0


cdef uint8_t expect_media(Aid *aid, Message *m, Expectation *rtp, Expectation *rtcp, const Span *media) noexcept nogil:
    """RTP and RTCP, at ports that the message is then changed to name. media: the span of its port."""
    cdef uint16_t port
    cdef uint8_t reason = R_OK
    move_outside(aid, rtp)
    move_outside(aid, rtcp)
    port = announce_pair(aid, rtp, rtcp)
    if port == 0:
        return R_HELPER_REFUSED
    if port != rtp.saved_port:
        reason = edit_media_port(aid, m, media, port)
    if reason != R_OK:
        withdraw(aid, rtp)
        withdraw(aid, rtcp)
    return reason


# --- session descriptions ---------------------------------------------------------------------------------------------------------------


cdef uint8_t edit_length(Aid *aid, Message *m) noexcept nogil:
    """The content's length, which is the description's. A message without one cannot be changed."""
    cdef Span version, length
    if find_line(m, 0, SDP_VERSION, SDP_NONE, &version) != FOUND or find_header(m, 0, HEADER_LENGTH, &length) != FOUND:
        return R_HELPER_REFUSED
    return R_OK if put_number(aid, m, &length, m.text.size - version.at + 2) else R_HELPER_REFUSED


cdef uint8_t edit_media_port(Aid *aid, Message *m, const Span *media, uint32_t port) noexcept nogil:
    return edit_length(aid, m) if put_number(aid, m, media, port) else R_HELPER_REFUSED


cdef uint8_t edit_media_address(Aid *aid, Message *m, uint32_t at, const uint8_t *address) noexcept nogil:
    """In the media's own c= line; at: its m= line."""
    cdef Span span
    if find_line(m, at, SDP_CONNECTION, SDP_MEDIA, &span) != FOUND or not put_address(aid, m, &span, address, False):
        return R_HELPER_REFUSED
    return edit_length(aid, m)


cdef uint8_t edit_session(Aid *aid, Message *m, uint32_t at, const uint8_t *address) noexcept nogil:
    """The owner's address, which there must be, and the session's; at: the description's first line."""
    cdef Span span
    if find_line(m, at, SDP_OWNER, SDP_MEDIA, &span) != FOUND or not put_address(aid, m, &span, address, False):
        return R_HELPER_REFUSED
    if find_line(m, at, SDP_CONNECTION, SDP_MEDIA, &span) == FOUND and not put_address(aid, m, &span, address, False):
        return R_HELPER_REFUSED
    return edit_length(aid, m)


# --- headers ----------------------------------------------------------------------------------------------------------------------------


cdef inline bint is_end(const uint64_t *address, uint16_t port, const Uri *uri) noexcept nogil:
    return memcmp(address, uri.address, 16) == 0 and port == uri.port


cdef bint edit_uri(Aid *aid, Message *m, const Uri *uri) noexcept nogil:
    """An end of this connection becomes what it is on the other side; any other place stays. False if there is no room."""
    cdef const Key *here = &aid.entry.flow[aid.dir].key
    cdef const Key *there = &aid.entry.flow[1 - aid.dir].key
    cdef uint16_t listens = aid.ext.memory.sip.answer_port
    cdef const uint64_t *address
    cdef uint16_t port
    if is_end(here.src, here.sport, uri):
        address = &there.dst[0]
        port = there.dport
    elif is_end(here.dst, here.dport, uri):
        address = &there.src[0]
        port = listens if listens else there.sport
    else:
        return True
    return is_end(address, port, uri) or put_place(aid, m, &uri.span, <const uint8_t *>address, port)


cdef bint edit_address_param(Aid *aid, Message *m, uint32_t at, bint received) noexcept nogil:
    """maddr= (RFC 3261 18.1.1) names who sends, received= (RFC 3261 18.2.1) to whom a response goes; the latter without brackets."""
    cdef const Key *here = &aid.entry.flow[aid.dir].key
    cdef const Key *there = &aid.entry.flow[1 - aid.dir].key
    cdef const uint64_t *inside = <const uint64_t *>here.dst if received else <const uint64_t *>here.src
    cdef const uint64_t *outside = <const uint64_t *>there.src if received else <const uint64_t *>there.dst
    cdef uint8_t address[16]
    cdef Text part
    cdef Span span
    cdef uint32_t end
    if not find_param(m, at, <const char *>b"received=" if received else <const char *>b"maddr=", 9 if received else 6, &part, &span.at):
        return True
    end = read_address(&part, span.at, m.family, not received, address)
    if end == 0 or memcmp(address, inside, 16) != 0 or memcmp(address, outside, 16) == 0:
        return True
    span.size = end - span.at
    return put_address(aid, m, &span, <const uint8_t *>outside, not received)


cdef bint edit_rport(Aid *aid, Message *m, uint32_t at) noexcept nogil:
    """rport= (RFC 3581 4): the port to which a response goes."""
    cdef uint16_t inside = aid.entry.flow[aid.dir].key.dport
    cdef uint16_t outside = aid.entry.flow[1 - aid.dir].key.sport
    cdef uint32_t port
    cdef Span span
    if number_param(m, at, b"rport=", 6, &span, &port) != FOUND or <uint16_t>port != inside or inside == outside:
        return True
    return put_number(aid, m, &span, outside)


cdef bint edit_via(Aid *aid, Message *m, bint request) noexcept nogil:
    """The topmost Via, if it is about this connection: about who asks, seen from either end."""
    cdef const Key *here = &aid.entry.flow[aid.dir].key
    cdef uint32_t size = m.text.size, end
    cdef Uri uri
    if find_uri(m, HEADER_VIA_TCP if aid.p.key.proto == PROTO_TCP else HEADER_VIA_UDP, &uri) != FOUND:
        return True
    if not (is_end(here.src, here.sport, &uri) if request else is_end(here.dst, here.dport, &uri)):
        return True
    if not edit_uri(aid, m, &uri):
        return False
    end = uri.span.at + uri.span.size + m.text.size - size
    return edit_address_param(aid, m, end, False) and edit_address_param(aid, m, end, True) and edit_rport(aid, m, end)


cdef bint edit_contacts(Aid *aid, Message *m) noexcept nogil:
    """All of them. The search for the next one goes on where the last one ended before it was changed, as in Linux."""
    cdef Walk walk = Walk(0, False)
    cdef Uri uri
    while next_uri(m, HEADER_CONTACT, &walk, &uri) == FOUND:
        if not edit_uri(aid, m, &uri):
            return False
    return True


cdef uint8_t edit_headers(Aid *aid, Message *m) noexcept nogil:
    """What is said of this connection's ends in a message's headers."""
    cdef bint request = not word_at(&m.text, 0, b"SIP/2.0", 7)
    cdef SipMemory *memory = &aid.ext.memory.sip
    cdef Uri uri
    if request and find_request_uri(m, &uri) == FOUND and not edit_uri(aid, m, &uri):
        return R_HELPER_REFUSED
    if not edit_via(aid, m, request) or not edit_contacts(aid, m):
        return R_HELPER_REFUSED
    if find_uri(m, HEADER_FROM, &uri) == FOUND and not edit_uri(aid, m, &uri):
        return R_HELPER_REFUSED
    if find_uri(m, HEADER_TO, &uri) == FOUND and not edit_uri(aid, m, &uri):
        return R_HELPER_REFUSED
    memory.redirect = aid.dir == REPLY and memory.answer_port != 0 and aid.p.key.proto == PROTO_UDP
    return R_OK


cdef void redirect(Engine *ct, const Entry *entry, int dir) noexcept nogil:
    """The packet at hand leaves to the port at which its receiver listens, if that is not where it sends from.   Writes: ct.rewrite."""
    cdef SipMemory *memory = &ct.ext.row[entry.extension & EXTENSION_ROW].memory.sip
    if ct.ext.row[entry.extension & EXTENSION_ROW].helper != HELPER_SIP or dir != REPLY or not memory.redirect:
        return
    memory.redirect = 0
    if ct.rewrite != NULL and ct.rewrite.to.dport != memory.answer_port:
        ct.rewrite.to.dport = memory.answer_port
        ct.rewrite.flags |= REWRITE_DST
