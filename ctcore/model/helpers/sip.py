"""SIP in the model (RFC 3261): signalling that a REGISTER announces, and media that session descriptions (SDP, RFC 4566) do.

As Linux does by default: only what names its sender's own address is expected, and only from the other end of this connection.
"""

from __future__ import annotations

import re
from dataclasses import replace

from ctcore.model.expectations import SIGNALLING, Announced, Expectation, Kind
from ctcore.model.helpers import sip_text as read
from ctcore.model.helpers.aid import Aid
from ctcore.model.helpers.sip_nat import Memory, Message, Refused, edits_of, expect_media, expect_signalling, find_header, find_uri
from ctcore.types import Proto, Reason, State, Status

LIFETIME = 3600  # seconds that a packet with data gives the connection
SHORTEST = len("SIP/2.0 200")
KINDS = {b"audio ": Kind.AUDIO, b"video ": Kind.VIDEO, b"image ": Kind.IMAGE}
MEDIA_LOOKED_AT = 3
DESCRIBING = ("INVITE", "UPDATE", "ACK", "PRACK")
ANSWERED = ("INVITE", "UPDATE", "PRACK", "REGISTER")  # methods whose answers matter
METHODS = ("INVITE", "UPDATE", "ACK", "PRACK", "BYE", "REGISTER")


def help(aid: Aid) -> int:
    """One packet."""
    memory = aid.ext.memory = aid.ext.memory or Memory()
    memory.redirect = 0
    tcp = aid.packet.key.proto == Proto.PROTO_TCP
    if len(aid.payload) < SHORTEST or (tcp and aid.state != State.ESTABLISHED):
        return Reason.R_OK
    try:
        text = segment(aid) if tcp else one(aid, aid.payload)
    except read.Misread:
        return Reason.R_HELPER_PARTIAL
    except Refused:
        return Reason.R_HELPER_REFUSED
    for edit in edits_of(aid.payload, text, aid.packet.l4_len - len(aid.payload)):
        aid.office.edit(edit)
    return Reason.R_OK


def segment(aid: Aid) -> bytes:
    """All messages of a TCP segment; with the last one cut off, later numbers are not moved, as in Linux."""
    done, rest = b"", aid.payload
    while size := message_size(aid, rest):
        if size > len(rest):
            return done + rest
        done, rest = done + one(aid, rest[:size]), rest[size:]
    aid.move_sequence(aid.grown)
    return done + rest


def message_size(aid: Aid, text: bytes) -> int:
    """Of the message that a stream begins with, by its content length (RFC 3261 18.3); 0: it cannot be told."""
    length = find_header(Message(aid, text, aid.ext.memory), read.LENGTH)
    end = text.find(b"\r\n\r\n", length.end) if length else -1
    return end + 4 + read.number_at(text, length.start) if length and end >= 0 else 0


def one(aid: Aid, text: bytes) -> bytes:
    """One message, and what becomes of it."""
    message = Message(aid, text, aid.ext.memory)
    if text[:8].lower() == b"sip/2.0 ":
        respond(message)
    else:
        request(message)
    if aid.translated:
        message.edit_headers()
    return message.text


def request(m: Message) -> None:
    via = find_uri(m, read.VIA[Proto.PROTO_UDP])
    if via and via.address == m.here.src and via.port != m.here.sport:  # a phone that listens elsewhere
        m.memory.answer_port = via.port
    method = next((name for name in METHODS if re.match(rb"(?i:%b) [%b]" % (name.encode(), read.LETTER), m.text)), None)
    if not method:
        return
    cseq, _ = read_cseq(m)
    if method == "REGISTER":
        register(m, cseq)
    if method in ("INVITE", "BYE"):
        m.aid.office.expect_no_more(m.aid.conn, media=True)
    if method in DESCRIBING:
        describe(m)
    if method == "INVITE":
        m.memory.invite_cseq = cseq


def respond(m: Message) -> None:
    if len(m.text) < SHORTEST:
        return
    code = read.number_at(m.text, 8)
    if not code:
        raise read.Misread
    cseq, end = read_cseq(m)
    method = next((name for name in ANSWERED if m.text[end + 1 : end + 1 + len(name)].upper() == name.encode()), None)
    if method == "REGISTER":
        registered(m, cseq, code)
    elif method and 100 <= code <= 299:
        describe(m)
    elif method and m.memory.invite_cseq == cseq:
        m.aid.office.expect_no_more(m.aid.conn, media=True)


def read_cseq(m: Message) -> tuple[int, int]:
    """CSeq (RFC 3261 20.16), and where its number ends. Raises Misread."""
    span = find_header(m, read.CSEQ)
    if not span:
        raise read.Misread
    cseq = read.number_at(m.text, span.start)
    if not cseq and m.text[span.start] != ord("0"):
        raise read.Misread
    return cseq, span.end


# --- registration ----------------------------------------------------------------------------------------------------------------------


def expires(m: Message) -> int:
    span = find_header(m, read.EXPIRES)
    return read.number_at(m.text, span.start) if span else 0


def same_transport(m: Message, at: int) -> bool:
    found = read.find_param(m.text, at, b"transport=")
    wanted = b"TCP" if m.aid.packet.key.proto == Proto.PROTO_TCP else b"UDP"
    return not found or m.text[found[0] : found[0] + 3].upper() == wanted


def seconds_of(m: Message, contact: read.Uri, default: int) -> int:
    found = read.number_param(m.text, contact.span.end, b"expires=")
    return found[0] if found else default


def register(m: Message, cseq: int) -> None:
    """A contact of the sender's own is announced, and fits nothing until the registrar agrees."""
    aid = m.aid
    if aid.conn.has(Status.EXPECTED):
        return
    contact = read.find_uri(m.text, read.CONTACT, m.family)
    if not contact or contact.address != m.here.src or not same_transport(m, contact.span.end):
        return
    if seconds_of(m, contact, expires(m)):
        draft = aid.draft(m.there.src, contact.address, aid.packet.key.proto, contact.port, kind=SIGNALLING)
        draft = replace(draft, helper="sip", permanent=True, inactive=True)
        if aid.translated:
            expect_signalling(m, draft, contact)
        elif aid.announce(draft) is not Announced.YES:
            raise Refused
    m.memory.register_cseq = cseq


def registered(m: Message, cseq: int, code: int) -> None:
    """The answer names the contacts that the registrar knows of, with how long it will."""
    aid = m.aid
    if m.memory.register_cseq != cseq or 100 <= code <= 199:
        return
    walk, default = read.Walk(read.CONTACT, m.family), expires(m)
    while 200 <= code <= 299 and (contact := walk.next(m.text)):
        if contact.address != m.here.dst or not same_transport(m, contact.span.end):
            continue
        seconds = seconds_of(m, contact, default)
        if not seconds:
            break
        if aid.office.prolong(aid.conn, contact.address, contact.port, aid.packet.key.proto, seconds):
            return
    aid.office.expect_no_more(aid.conn, media=False)


# --- media -----------------------------------------------------------------------------------------------------------------------------


def describe(m: Message) -> None:
    """The first three streams that have a port."""
    version = m.find_line(0, b"v=")
    if not version:
        return
    session = address = address_in(m, version.start)
    at, n = version.start, 0
    while n < MEDIA_LOOKED_AT and (media := m.find_line(at, b"m=")):
        kind = KINDS.get(m.text[media.start : min(media.end, media.start + 6)])
        at = media.end if kind is None else media.start + 6
        if kind is None or not (port := read.number_at(m.text, at)):
            continue
        if port not in read.PORTS:
            raise read.Misread
        own = address_in(m, at)
        named = own or session
        if not named:
            raise read.Misread
        address = expect_stream(m, kind, named, port, read.Span(at, media.end))
        if own and m.aid.translated:
            m.edit_media_address(at, address)
        n += 1
    if address and m.aid.translated:
        m.edit_session(version.start, address)


def address_in(m: Message, at: int) -> bytes | None:
    """Of the c= line behind `at`, before the next m= line."""
    span = m.find_line(at, b"c=", b"m=")
    found = span and read.address_at(m.text, span.start, m.family, False)
    return found[0] if found else None


def expect_stream(m: Message, kind: Kind, address: bytes, port: int, media: read.Span) -> bytes:
    """RTP at an even port, RTCP at the next one. The address that the message is to name."""
    aid = m.aid
    if address != m.here.src:
        return address
    draft = replace(aid.draft(m.there.src, address, Proto.PROTO_UDP, port, kind=kind), shared=True)
    draft, known, direct = seek_direct(m, draft)
    draft = at_port(draft, draft.key.dport & ~1)
    if direct:
        m.edit_port(media, draft.key.dport)
    if known:
        return draft.key.dst
    if aid.translated and not direct:
        return expect_media(m, draft, media)
    first = aid.announce(draft)
    if first in (Announced.YES, Announced.ALREADY):
        if aid.announce(at_port(draft, draft.key.dport + 1)) in (Announced.YES, Announced.ALREADY):
            return draft.key.dst
        if first is Announced.YES:
            aid.office.withdraw(aid.conn, draft)
    raise Refused


def at_port(draft: Expectation, port: int) -> Expectation:
    return replace(draft, key=draft.key._replace(dport=port))


def seek_direct(m: Message, draft: Expectation) -> tuple[Expectation, bool, bool]:
    """What another call expects already needs not be expected again. If both are translated, their ends may reach each other without us.

    The draft, at the place inside if so; whether another call has it; whether it is the place inside.
    """
    direct = False
    while other := m.aid.office.expected_elsewhere(m.aid.conn, draft):
        if direct or not m.aid.translated or other.saved == (other.key.dst, other.key.dport):
            return draft, True, direct
        dst, port = other.saved
        draft, direct = replace(draft, key=draft.key._replace(dst=dst, dport=port)), True
    return draft, False, direct
