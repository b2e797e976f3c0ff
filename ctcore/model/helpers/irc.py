"""IRC in the model: the direct connections (DCC) that a client offers to another one by a message through its server.

Only what the client sends is looked at, and in each packet the first message that could be an offer. The address in it is a number; it has to be
the client's, or the one it is seen by from the other side. Who will connect is not known.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from ctcore.model.conn import MASK32
from ctcore.model.helpers.aid import Aid
from ctcore.types import Dir, Proto, Reason, State

SEARCHED = 4095  # bytes of a payload
SHORTEST = len(b" :\1DCC SENT t AAAAAAAA P\1\n")
COMMANDS = (b"SEND ", b"CHAT ", b"MOVE ", b"TSEND ", b"SCHAT ")
BLANKS = re.compile(rb"[ \r\n]*")
PLACE = re.compile(rb"([0-9]*) *([0-9]*)")


class Offer(NamedTuple):
    """The span that names a place, and the place."""

    start: int
    end: int
    address: int
    port: int


def help(aid: Aid) -> int:
    """One packet."""
    if aid.dir == Dir.REPLY or aid.state != State.ESTABLISHED:
        return Reason.R_OK
    own = {int.from_bytes(aid.conn.key[d].src[:4] if d == Dir.ORIG else aid.conn.key[d].dst[:4], "big") for d in Dir}
    offer = find(aid.payload[:SEARCHED], own)
    return expect(aid, offer) if offer else Reason.R_OK


def find(text: bytes, own: set[int]) -> Offer | None:
    """The first offer of one of these addresses."""
    at = min(BLANKS.match(text).end(), max(0, len(text) - 10))  # type: ignore[union-attr]
    if at < len(text) - 10:
        if text[at : at + 8].upper() != b"PRIVMSG ":
            return None
        at += 8
    while at < len(text) - SHORTEST:
        if text[at : at + 2] != b" :":
            at += 1
            continue
        at += 2
        if text[at : at + 5] != b"\1DCC ":
            return None
        at += 5
        for command in COMMANDS:
            if text.startswith(command, at):
                at += len(command)
                offer = read(text, at)
                if offer and offer.address in own and offer.port:
                    return offer
    return None


def read(text: bytes, at: int) -> Offer | None:
    """Behind the command: a word, the address, the port, and somewhere the end of the line."""
    blank = text.find(b" ", at)
    # Where a word has ended by the time twelve bytes are left, nothing sensible can follow.
    if blank < 0 or (blank > at and blank + 12 > len(text)) or b"\n" not in text[blank + 1 :]:
        return None
    place = PLACE.match(text, blank + 1)
    assert place
    address, port = (int(digits or b"0") for digits in place.groups())
    return Offer(place.start(), place.end(), address & MASK32, port & 0xFFFF)


def expect(aid: Aid, offer: Offer) -> int:
    """Anybody may connect to the place offered."""
    client = aid.conn.key[Dir.REPLY].dst
    draft = aid.draft(None, client, Proto.PROTO_TCP, offer.port)
    if not aid.translated:
        return aid.announce_or_drop(draft)
    announced = aid.announce_at_port(aid.followed(draft, Dir.REPLY, offer.port))
    if not announced:
        return Reason.R_HELPER_REFUSED
    text = f"{int.from_bytes(client[:4], 'big')} {announced.key.dport}".encode()
    if not aid.edit(offer.start, offer.end - offer.start, text):
        aid.office.withdraw(aid.conn, announced)
        return Reason.R_HELPER_REFUSED
    aid.move_sequence(len(text) - (offer.end - offer.start))
    return Reason.R_OK
