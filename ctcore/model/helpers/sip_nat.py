"""SIP under address translation, in the model: what a message says of its connection's ends becomes what they are on the other side.

A Message is text that changes; every search sees what the change before made of it, as Linux's searches do in the packet. What a payload has
become is told as edits of the part that differs. Refused: it cannot be changed, so it does not leave.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, replace

from ctcore.model.expectations import Announced, Expectation, Follow
from ctcore.model.helpers import sip_text as read
from ctcore.model.helpers.aid import LARGEST_PACKET, Aid, Edit
from ctcore.types import Dir, Proto

PIECE = 64  # bytes of an edit


class Refused(Exception):
    """The message cannot say what it would have to."""


@dataclass
class Memory:
    """What a SIP connection remembers: the CSeq of the last REGISTER and INVITE, and at which port a client listens if it sends from another."""

    register_cseq: int = 0
    invite_cseq: int = 0
    answer_port: int = 0
    redirect: int = 0  # the port that the packet at hand is sent to instead


@dataclass
class Message:
    """One message and its connection."""

    aid: Aid
    text: bytes
    memory: Memory

    def __post_init__(self) -> None:
        self.family = self.aid.packet.key.family
        self.here, self.there = self.aid.conn.key[self.aid.dir], self.aid.conn.key[1 - self.aid.dir]

    def put(self, span: read.Span, text: str) -> None:
        by = len(text) - (span.end - span.start)
        if by > 0 and self.aid.packet.ip_len + self.aid.grown + by > LARGEST_PACKET:
            raise Refused
        self.aid.grown += by
        self.text = self.text[: span.start] + text.encode() + self.text[span.end :]

    def put_address(self, span: read.Span, address: bytes, *, brackets: bool = False) -> None:
        self.put(span, address_text(address, self.family, brackets=brackets))

    def put_place(self, span: read.Span, address: bytes, port: int) -> None:
        self.put(span, f"{address_text(address, self.family, brackets=True)}:{port}")

    # --- session descriptions ---------------------------------------------------------------------------------------------------------

    def find_line(self, at: int, name: bytes, stop: bytes | None = None) -> read.Span | None:
        return read.find_line(self.text, at, name, stop, self.family)

    def edit_length(self) -> None:
        """The content's length becomes the description's."""
        version = self.find_line(0, b"v=")
        length = find_header(self, read.LENGTH)
        if not version or not length:
            raise Refused
        self.put(length, str(len(self.text) - version.start + 2))

    def edit_port(self, media: read.Span, port: int) -> None:
        self.put(media, str(port))
        self.edit_length()

    def edit_media_address(self, at: int, address: bytes) -> None:
        span = self.find_line(at, b"c=", b"m=")
        if not span:
            raise Refused
        self.put_address(span, address)
        self.edit_length()

    def edit_session(self, at: int, address: bytes) -> None:
        """The owner's address, and the session's if there is one."""
        owner = self.find_line(at, b"o=", b"m=")
        if not owner:
            raise Refused
        self.put_address(owner, address)
        session = self.find_line(at, b"c=", b"m=")
        if session:
            self.put_address(session, address)
        self.edit_length()

    # --- headers ----------------------------------------------------------------------------------------------------------------------

    def edit_uri(self, uri: read.Uri | None) -> None:
        place = (uri.address, uri.port) if uri else None
        if place == (self.here.src, self.here.sport):
            outside = self.there.dst, self.there.dport
        elif place == (self.here.dst, self.here.dport):
            outside = self.there.src, self.memory.answer_port or self.there.sport
        else:
            return
        if uri and outside != place:
            self.put_place(uri.span, *outside)

    def edit_headers(self) -> None:
        request = self.text[:7].lower() != b"sip/2.0"
        if request:
            self.edit_uri(read.request_uri(self.text, self.family))
        self.edit_via(request)
        walk = read.Walk(read.CONTACT, self.family)
        while uri := quietly(walk, self.text):
            self.edit_uri(uri)
        for header in (read.FROM, read.TO):
            self.edit_uri(find_uri(self, header))
        if self.aid.dir == Dir.REPLY and self.aid.packet.key.proto == Proto.PROTO_UDP:
            self.memory.redirect = self.memory.answer_port

    def edit_via(self, request: bool) -> None:
        """The topmost one, if it names who asks, seen from either end of this connection."""
        uri, here, there = find_uri(self, read.VIA[self.aid.packet.key.proto]), self.here, self.there
        if not uri or (uri.address, uri.port) != ((here.src, here.sport) if request else (here.dst, here.dport)):
            return
        size = len(self.text)
        self.edit_uri(uri)
        end = uri.span.end + len(self.text) - size
        for name, inside, outside, brackets in ((b"maddr=", here.src, there.dst, True), (b"received=", here.dst, there.src, False)):
            found = read.address_param(self.text, end, name, self.family, brackets)
            if found and found[0] == inside != outside:
                self.put_address(found[1], outside, brackets=brackets)
        try:
            rport = read.number_param(self.text, end, b"rport=")
        except read.Misread:
            return
        if rport and rport[0] & 0xFFFF == here.dport != there.sport:
            self.put(rport[1], str(there.sport))


def quietly(walk: read.Walk, text: bytes) -> read.Uri | None:
    try:
        return walk.next(text)
    except read.Misread:
        return None


def find_uri(message: Message, header: read.Header) -> read.Uri | None:
    """The first one, if it can be read."""
    return quietly(read.Walk(header, message.family), message.text)


def find_header(message: Message, header: read.Header) -> read.Span | None:
    """The value of the first one, if it can be read."""
    try:
        return read.find_header(message.text, 0, header, message.family)
    except read.Misread:
        return None


def address_text(address: bytes, family: int, *, brackets: bool) -> str:
    if family == 4:
        return ".".join(map(str, address[:4]))
    # An IPv4 address in disguise (RFC 4291 2.5.5.2), or of an ISATAP interface (RFC 5214 6.1), shows.
    disguised = address[:12] == bytes(10) + b"\xff\xff" or (address[8:12] in (b"\0\0\x5e\xfe", b"\2\0\x5e\xfe"))
    text = ipaddress.IPv6Address(address).compressed
    if disguised:
        # A group of letters stands for the last two, so that they are in no gap.
        head = ipaddress.IPv6Address(address[:12] + b"\xff\xff\xff\xff").compressed.removesuffix("ffff:ffff")
        text = head + ".".join(map(str, address[12:]))
    return f"[{text}]" if brackets else text


# --- expectations ----------------------------------------------------------------------------------------------------------------------


def outside(message: Message, draft: Expectation) -> Expectation:
    """Where the sender is seen from the other side; what comes there is sent to where it said."""
    address = draft.key.dst if message.here.src == message.there.dst else message.there.dst
    saved = draft.key.dst, draft.key.dport
    return replace(draft, key=draft.key._replace(dst=address), saved=saved, dir=1 - message.aid.dir, follow=Follow.SIP)


def expect_signalling(message: Message, draft: Expectation, contact: read.Uri) -> None:
    """At the port that the connection has outside, if the contact names the one it has inside."""
    aid, moved = message.aid, outside(message, draft)
    if contact.port == (message.memory.answer_port or message.here.sport):
        moved = replace(moved, key=moved.key._replace(dport=message.there.dport))
    announced = aid.announce_at_port(moved)
    if not announced:
        raise Refused
    place = announced.key.dst, announced.key.dport
    if place != announced.saved:
        try:
            message.put_place(contact.span, *place)
        except Refused:
            aid.office.withdraw(aid.conn, announced)
            raise


def expect_media(message: Message, draft: Expectation, media: read.Span) -> bytes:
    """RTP and RTCP at two free ports in a row, which the message then names. The address where they are expected."""
    aid, rtp = message.aid, outside(message, draft)
    rtcp = outside(message, replace(draft, key=draft.key._replace(dport=draft.key.dport + 1)))
    for port in range(rtp.key.dport, 65536, 2):
        first, second = (replace(e, key=e.key._replace(dport=port + i)) for i, e in enumerate((rtp, rtcp)))
        outcome = aid.announce(first)
        if outcome is Announced.YES:
            outcome = aid.announce(second)
            if outcome is not Announced.YES:
                aid.office.withdraw(aid.conn, first)
        if outcome is not Announced.BUSY:
            break
    if outcome is not Announced.YES:
        raise Refused
    if port != rtp.saved[1]:
        try:
            message.edit_port(media, port)
        except Refused:
            aid.office.withdraw(aid.conn, first)
            aid.office.withdraw(aid.conn, second)
            raise
    return rtp.key.dst


def edits_of(old: bytes, new: bytes, at: int) -> list[Edit]:
    """The edits that make one text the other: what lies between their first and last difference, in pieces. at: of the text in the packet."""
    if old == new:
        return []
    most = min(len(old), len(new))
    head = next((i for i in range(most) if old[i] != new[i]), most)
    tail = next((i for i in range(most - head) if old[-1 - i] != new[-1 - i]), most - head)
    middle, size = new[head : len(new) - tail], len(old) - tail - head
    pieces = [middle[i : i + PIECE] for i in range(0, len(middle), PIECE)] or [b""]
    return [Edit(at + head + (size if i else 0), 0 if i else size, piece) for i, piece in enumerate(pieces)]
