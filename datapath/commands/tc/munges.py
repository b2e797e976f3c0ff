"""Changes of header fields as words that pedit changes, and back.

pedit knows words of four bytes in the packet's order, from the start of a header. A field is one word or a part of one, or, of a MAC or IPv6 address,
several. Back: what changes the same bits gets the name of the smallest field that has them, so that a change may come back under another name, and
never as another change (`ip df set 0x80 retain 0x80` as `ip ce set 0x80`). Not here: what a change does (munge, draft).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from datapath.pipeline.header_fields import HEADER_FIELDS, HeaderField
from datapath.pipeline.rules import Munge
from offload.netlink.actions import ADD, ETH, IP4, IP6, SET, TCP, UDP, Word

HEADERS = {"eth": ETH, "ip": IP4, "ip6": IP6, "tcp": TCP, "udp": UDP}
HEADER_NAMES = {number: name for name, number in HEADERS.items()}
OPERATIONS = {"set": SET, "add": ADD}
OPERATION_NAMES = {number: name for name, number in OPERATIONS.items()}
WORD = 4


def words_of(munge: Munge) -> list[Word]:
    field = HEADER_FIELDS[munge.header, munge.field]
    start, end = field.offset // WORD * WORD, -(-(field.offset + field.size) // WORD) * WORD
    up = (end - field.offset - field.size) * 8 + field.shift
    full = (1 << field.bits) - 1
    value, mask = ((each & full) << up for each in (munge.value, munge.mask))
    header, command = HEADERS[munge.header], OPERATIONS[munge.op]
    places = range(start, end, WORD)
    return [
        Word(header, at, value >> down & 0xFFFFFFFF, mask >> down & 0xFFFFFFFF, command) for at, down in zip(places, _downs(start, end), strict=True)
    ]


def _downs(start: int, end: int) -> Iterator[int]:
    """By how many bits each word is to be moved down."""
    return iter(range((end - start - WORD) * 8, -1, -WORD * 8))


def munges_of(words: Sequence[Word]) -> list[Munge]:
    """The changes that words are. Raises KeyError for a word that lies in no field."""
    found, at = [], 0
    while at < len(words):
        munge, count = _several(words[at:]) or (_single(words[at]), 1)
        found.append(munge)
        at += count
    return found


def _several(words: Sequence[Word]) -> tuple[Munge, int] | None:
    """A field of several words that begins with the first one, and how many those are."""
    for name, field in _fields(words[0].header):
        if not field.whole:
            continue
        munge = Munge(HEADER_NAMES[words[0].header], name, "set", 0, field.mask)
        shape = words_of(munge)
        mine = words[: len(shape)]
        if [word._replace(value=0) for word in mine] == shape:
            value = 0
            for word in mine:
                value = value << WORD * 8 | word.value
            end = -(-(field.offset + field.size) // WORD) * WORD
            return Munge(munge.header, name, "set", value >> (end - field.offset - field.size) * 8, field.mask), len(shape)
    return None


def _single(word: Word) -> Munge:
    """The field whose own mask this is, or else the smallest one that has all bits."""
    best: tuple[bool, int, Munge] | None = None
    for name, field in _fields(word.header):
        if field.whole or field.offset // WORD * WORD != word.offset or (word.command == ADD and not field.addable):
            continue
        up = (word.offset + WORD - field.offset - field.size) * 8 + field.shift
        full = (1 << field.bits) - 1
        if word.mask & ~(full << up) or word.value & ~(full << up):
            continue
        munge = Munge(HEADER_NAMES[word.header], name, OPERATION_NAMES[word.command], word.value >> up, word.mask >> up)
        rank = (munge.mask != field.mask, field.bits, munge)
        if best is None or rank[:2] < best[:2]:
            best = rank
    if best is None:
        raise KeyError(f"bits {word.mask:#010x} at byte {word.offset} of header {word.header}")
    return best[2]


def _fields(header: int) -> Iterator[tuple[str, HeaderField]]:
    name = HEADER_NAMES.get(header)
    return ((field, where) for (of, field), where in HEADER_FIELDS.items() if of == name)
