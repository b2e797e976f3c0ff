"""What ctnetlink says of expectations, taken apart, and what differs from the engine's: without a kernel, by bytes as it writes them."""

from __future__ import annotations

import struct

import pytest

from ctcore.model.conn import Key
from datapath.oracle import expected
from datapath.oracle.expected import Expected, Watch, theirs_of

HZ = 250
NESTED = 0x8000


def attribute(kind: int, *parts: bytes) -> bytes:
    data = b"".join(parts)
    return struct.pack("=HH", 4 + len(data), kind | (NESTED if len(parts) > 1 else 0)) + data + bytes(-len(data) % 4)


def ends(kind: int, src: bytes, dst: bytes, sport: int, dport: int, proto: int) -> bytes:
    """A tuple; the address family by the addresses' length."""
    six = len(src) == 16
    ip = attribute(1, attribute(3 if six else 1, src), attribute(4 if six else 2, dst))
    ports = (attribute(2 + i, port.to_bytes(2, "big")) for i, port in enumerate((sport, dport)))
    return attribute(kind, ip, attribute(2, attribute(1, bytes([proto])), *ports))


A, B, OUT, ANY, ALL = bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2]), bytes([192, 0, 2, 1]), bytes(4), b"\xff" * 4
MASTER = ends(expected.MASTER, A, B, 40000, 21, 6)


def message(*, mask: bytes = ALL, sport_mask: int = 0, dport: int = 2000, kind: int = 0, flags: int = 0, left: int = 300, nat: bool = True) -> bytes:
    numbers = {expected.TIMEOUT: left, expected.FLAGS: flags, expected.CLASS: kind}
    saved = attribute(expected.NAT, attribute(1, (1).to_bytes(4, "big")), ends(2, ANY, ANY, 2000, 0, 6))
    texts = {expected.HELP_NAME: b"ftp\0", **({expected.FUNCTION: b"nat-follow-master\0"} if nat else {})}
    return b"".join([
        MASTER, ends(expected.TUPLE, B, OUT, 0, dport, 6), ends(expected.MASK, mask, ALL, sport_mask, 0xFFFF, 6),
        *(attribute(number, value.to_bytes(4, "big")) for number, value in numbers.items()),
        *(attribute(number, value) for number, value in texts.items()), saved if nat else b"",
    ])  # fmt: skip


ONE = Expected(
    ("10.0.0.1", "10.0.0.2", 40000, 21, 6), "10.0.0.2", "192.0.2.1", 6, None, 2000, 0, "ftp", False, False, "nat-follow-master", (1, "0.0.0.0", 2000)
)


@pytest.mark.parametrize(
    ("fields", "changes"),
    [
        ({}, {}), ({"mask": ANY}, {"src": None}), ({"sport_mask": 0xFFFF}, {"sport": 0}), ({"kind": 2}, {"kind": 2}),
        ({"flags": 1}, {"permanent": True}), ({"flags": 2}, {"inactive": True}), ({"nat": False}, {"nat": None, "follow": None}),
    ],
)  # fmt: skip
def test_messages_are_taken_apart(fields: dict, changes: dict) -> None:
    assert theirs_of(message(**fields)) == (ONE._replace(**changes), 300)


def test_ipv6() -> None:
    six = ends(expected.TUPLE, bytes(15) + b"\1", b"\x20\1" + bytes(13) + b"\2", 7, 99, 47)
    assert expected.ends_of(expected.attributes(six)[expected.TUPLE]) == ("::1", "2001::2", 7, 99, 47)


@pytest.mark.parametrize("data", [b"", b"\0", bytes(8), b"\x04\0\x01\0" * 3, b"\xff\xff\1\0ab"])
def test_odd_attributes_end(data: bytes) -> None:
    assert isinstance(expected.attributes(data), dict)


def test_what_differs_is_told_from_both_sides() -> None:
    watch = Watch(HZ)
    watch.hear([message(), message(dport=2001)], 0)
    assert watch.unlike({ONE: 300.0, ONE._replace(dport=2001): 300.0}, 0) == {}
    found = watch.unlike({ONE: 300.0, ONE._replace(dport=2002): 300.0}, 0)
    ours, theirs = found["expectations"]
    assert ([one["dport"] for one in ours], [one["dport"] for one in theirs]) == ([2002], [2001])


@pytest.mark.parametrize(
    ("left", "slack", "passed", "seconds", "same"),
    [
        (300.0, 0, 0, 300, True), (300.0, 0, 0, 299, False), (300.0, 0, 0, 301, False), (299.996, 0, 0, 299, True), (299.996, 0, 0, 300, False),
        (299.996, 1, 0, 300, True), (300.0, 0, 1, 299, True), (300.0, 0, 1, 298, False), (0.004, 0, 5, 0, True), (0.0, 0, 5, 0, True),
    ],
)  # fmt: skip
def test_time_is_compared_by_the_seconds_it_is_told_in(left: float, slack: int, passed: int, seconds: int, same: bool) -> None:
    """slack: ticks that passed while a packet was judged; passed: since this one was."""
    watch = Watch(HZ)
    watch.hear([message(left=seconds)], slack)
    assert watch.unlike({ONE: left}, passed) == ({} if same else {"expectation.timeout": (left, seconds)})


def test_a_port_is_drawn_for_what_is_new_and_of_the_first_class() -> None:
    watch = Watch(HZ)
    assert watch.drawn() is None
    watch.hear([message(dport=2001)], 0)
    assert watch.drawn() == 2001
    watch.hear([message(dport=2001)], 0)
    assert watch.drawn() is None
    watch.hear([message(dport=2001, left=299), message(dport=4000, kind=1)], 0)
    assert watch.drawn() is None
    watch.hear([message(dport=3000), message(dport=4000, kind=1)], 0)
    assert watch.drawn() == 3000


@pytest.mark.parametrize(
    ("key", "parts"),
    [
        (Key(A.ljust(16, b"\0"), B.ljust(16, b"\0"), 1000, 53, 5, 17, 4), {1: b"\x11", 2: b"\x03\xe8", 3: b"\0\x35"}),
        (Key(A.ljust(16, b"\0"), B.ljust(16, b"\0"), 7, 8 << 8 | 3, 0, 1, 4), {1: b"\1", 4: b"\0\7", 5: b"\x08", 6: b"\3"}),
        (Key(b"\x20" * 16, bytes(15) + b"\1", 7, 128 << 8, 0, 58, 6), {1: b"\x3a", 7: b"\0\7", 8: b"\x80", 9: b"\0"}),
    ],
)  # fmt: skip
def test_a_tuple_is_written_as_it_is_read(key: Key, parts: dict[int, bytes]) -> None:
    written = expected.attributes(expected.tuple_of(key))
    assert expected.attributes(written[expected.PROTO]) == parts
    size = 4 if key.family == 4 else 16
    assert list(expected.attributes(written[expected.IP]).values()) == [key.src[:size], key.dst[:size]]
