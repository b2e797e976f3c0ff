"""Addresses in payload, as Linux reads them, in the model: expressions with as many zeros in front as one likes.

Not here: what may follow an address in a protocol; each of these gives where it ends, or None.
"""

from __future__ import annotations

import re

OCTET = rb"0*(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
IP4 = re.compile(rb"(%b)\.(%b)\.(%b)\.(%b)(?![0-9])" % (OCTET, OCTET, OCTET, OCTET))
GROUP = rb"0*[0-9A-Fa-f]{1,4}"
MIXED = re.compile(rb"((?:[0-9A-Fa-f]*:)+)(?=[0-9]+\.)")  # in front of an IPv4 address


def read_ip4(text: bytes, at: int, end: bytes | None) -> tuple[bytes, int] | None:
    """Four octets, and then `end`, a colon, or the end of the text. The address as a Key has it, and where it ends."""
    match = IP4.match(text, at)
    if not match:
        return None
    following = text[match.end() : match.end() + 1]
    if not _ends(following, end) and following != b":":
        return None
    return bytes(map(int, match.groups())).ljust(16, b"\0"), match.end()


def read_ip6(text: bytes, at: int, end: bytes | None) -> tuple[bytes, int] | None:
    """Eight groups; or fewer (eight at most) with one gap; an IPv4 address in place of the last two. It may then end before a colon."""
    if end == b":":
        return None
    stop = _upto(text, at, end)
    words, tail = text[at:stop], b""
    mixed = MIXED.match(words)
    if mixed:
        last = read_ip4(text, at + mixed.end(), end)
        if last is None:
            return None
        words, tail, stop = mixed.group(1), last[0][:4], last[1]
    halves = _halves(words.removesuffix(b":") if mixed and not words.endswith(b"::") else words)
    if halves is None:
        return None
    before, after = halves
    if after is None:
        return (before + tail, stop) if len(before + tail) == 16 else None
    if len(before + after + tail) > 16 or len(before) == 16:
        return None
    return before + (after + tail).rjust(16 - len(before), b"\0"), stop


def _halves(words: bytes) -> tuple[bytes, bytes | None] | None:
    """The groups before and behind the gap, as bytes; behind is None without a gap. None if that is no address."""
    found = []
    for half in words.split(b"::"):
        groups = half.split(b":") if half or b"::" not in words else []
        if not all(re.fullmatch(GROUP, each) for each in groups):
            return None
        found.append(b"".join(int(each, 16).to_bytes(2, "big") for each in groups))
    if len(found) > 2:
        return None
    return found[0], found[1] if len(found) == 2 else None


def _upto(text: bytes, at: int, end: bytes | None) -> int:
    """Where an address must end at the latest."""
    pattern = rb"[^0-9A-Fa-f:.]" if end is None else rb"[\0%b]" % re.escape(end)
    match = re.compile(pattern, re.DOTALL).search(text, at)
    return match.start() if match else len(text)


def _ends(following: bytes, end: bytes | None) -> bool:
    if following in (b"", b"\0"):
        return True
    return following == end if end is not None else not re.match(rb"[0-9A-Fa-f:.]", following)
