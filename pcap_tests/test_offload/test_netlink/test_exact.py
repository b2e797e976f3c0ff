"""Exact filters as messages: what is filled in is what is made part by part, and comes back as the flow that it is of; what is less than a flow's
filter is refused. What a kernel makes of them is in pcap_tests/vm."""

from __future__ import annotations

import time
from contextlib import suppress
from itertools import product
from random import Random
from struct import pack

import pytest

from datapath.commands.tc.decode import Decoder
from datapath.pipeline import tc_print
from offload.netlink import actions, flower
from offload.netlink.counters import counters_of
from offload.netlink.exact import (
    ETHERTYPES,
    FIN_OR_RST,
    FRAGMENT,
    SIZES,
    Course,
    Exact,
    Key,
    Prios,
    Shape,
    Strange,
    cookie_in,
    exact_of,
    filling_of,
    form_of,
    whole,
)
from offload.netlink.filters import MESSAGE, Name, Where, filter_options, new_filter
from offload.netlink.pack import attribute
from offload.netlink.read import Malformed

TCP, UDP, GRE = 6, 17, 47
LEAST_RATE = 10_000  # filters a second
COURSES = (Course(Where(3), 7, skip_sw=True), Course(Where(3), 7, chain=9))


def some_tuple(random: Random, family: int) -> tuple[bytes, bytes, int, int]:
    src, dst = (random.randbytes(SIZES[family]).ljust(16, b"\0") for _ in range(2))
    return src, dst, random.choice((0, 1, 0xFFFF, random.randrange(1 << 16))), random.randrange(1 << 16)


def shapes() -> list[Shape]:
    return [
        Shape(course, Prios(4, 9), family, proto, written)
        for course, family, proto in product(COURSES, (4, 6), (TCP, UDP, GRE))
        for written in range(1 if proto == GRE else 16)
    ]


@pytest.mark.parametrize("shape", shapes(), ids=lambda shape: f"{shape.family}-{shape.proto}-{shape.written}-{shape.course.chain}")
def test_what_is_filled_in_is_what_is_made_and_comes_back(shape):
    random = Random(8)
    for _ in range(20):
        handle, cookie = random.randrange(1, 1 << 32), random.getrandbits(64)
        match, other = some_tuple(random, shape.family), some_tuple(random, shape.family)
        if shape.proto == GRE:
            match = (*match[:2], 0, 0)
        to = tuple(theirs if shape.written >> bit & 1 else own for bit, (own, theirs) in enumerate(zip(match, other, strict=True)))
        filling = filling_of(handle, cookie, match, to, SIZES[shape.family])
        message = bytes(form_of(shape).filled(filling))
        assert message == whole(shape, filling)
        course = shape.course
        goes = (0, course.chain) if course.chain is not None else (course.out, None)
        assert exact_of(message[MESSAGE.size :]) == Exact(cookie, shape.family, shape.proto, match, to, *goes)
        assert cookie_in(message[MESSAGE.size :]) == cookie


def test_a_filter_in_the_words_of_tc():
    src, dst = bytes([10, 1, 0, 7]).ljust(16, b"\0"), bytes([192, 0, 2, 9]).ljust(16, b"\0")
    to = bytes([203, 0, 113, 5]).ljust(16, b"\0")
    filling = filling_of(5, 4, (src, dst, 40_000, 80), (src, to, 40_000, 8080), 4)
    message = bytes(form_of(Shape(COURSES[0], Prios(), 4, TCP, 2 | 8)).filled(filling))
    (rule,) = [Decoder({3: "eth0", 7: "vf0"}.__getitem__).rule(message[MESSAGE.size :]).rule]
    assert tc_print.rule_line(rule) == (
        "tc filter add dev eth0 ingress protocol ip prio 1 chain 0 handle 0x5 flower ip_proto tcp dst_ip 192.0.2.9 src_ip 10.1.0.7 dst_port 80 "
        "src_port 40000 tcp_flags 0x0/0x5 ip_flags nofrag skip_sw action pedit ex munge ip dst set 203.0.113.5 munge tcp dport set 0x1f90 pipe "
        "action csum ip4h tcp pipe action mirred egress redirect dev vf0"
    )


def test_what_is_translated_and_has_no_ports_is_none():
    with pytest.raises(ValueError, match=r"only TCP and UDP are translated in hardware \(A4.32\)"):
        form_of(Shape(COURSES[0], Prios(), 4, GRE, 1))


def test_messages_are_made_fast_enough():
    """By the encoder; measured loosely, since others run here as well."""
    shape, match = Shape(COURSES[0], Prios(), 6, TCP, 15), some_tuple(Random(1), 6)
    to = some_tuple(Random(2), 6)
    count = 20_000
    begun = time.perf_counter()
    for number in range(count):
        form_of(shape).filled(filling_of(number + 1, number, match, to, 16))
    assert count / (time.perf_counter() - begun) > LEAST_RATE


# --- what is not one of ours ------------------------------------------------------------------------------------------------------------------


def listed(keys: list[Key], does: list[actions.Packed], family: int = 4, cookie: bytes = b"ctm/flow" + bytes(8)) -> bytes:
    """A filter as somebody may have made it with our cookie."""
    options = filter_options(flower.keys(ETHERTYPES[family], keys), actions.listed(does, cookie), 0)
    return new_filter(Where(3), Name(0, 1, ETHERTYPES[family], 1), options)[MESSAGE.size :]


FULL = 0xFFFFFFFF
WHOLE = [
    Key("ip_proto", TCP, 0xFF), Key("ip_flags", 0, FRAGMENT), Key("src_ip", 1, FULL), Key("dst_ip", 2, FULL), Key("src_port", 3, 0xFFFF),
    Key("dst_port", 4, 0xFFFF), Key("tcp_flags", 0, FIN_OR_RST),
]  # fmt: skip
SEND = actions.mirred(actions.STOLEN, actions.EGRESS_REDIRECT, 7)


def but(name: str, *instead: Key) -> list[Key]:
    return [*(key for key in WHOLE if key.name != name), *instead]


def test_the_whole_filter_is_one():
    found = exact_of(listed(WHOLE, [SEND]))
    assert found is not None and (found.match.sport, found.match.dport, found.out) == (3, 4, 7)


@pytest.mark.parametrize(
    ("keys", "does", "message"),
    [
        (but("src_ip"), [SEND], "a filter without the whole src_ip"),
        (but("dst_ip", Key("dst_ip", 0, 0xFFFFFF00)), [SEND], "a filter without the whole dst_ip"),
        (but("src_port"), [SEND], "a filter without the whole src_port"),
        (but("dst_port", Key("dst_port", 0, 0xFF00)), [SEND], "a filter without the whole dst_port"),
        (but("tcp_flags"), [SEND], "matches other packets than a flow's"),
        (but("tcp_flags", Key("tcp_flags", 0, 0x07)), [SEND], "matches other packets than a flow's"),
        (but("ip_flags"), [SEND], "matches other packets than a flow's"),
        ([*WHOLE, Key("ip_tos", 4, 0xFF)], [SEND], "matches other packets than a flow's"),
        (WHOLE, [actions.pedit(actions.PIPE, [actions.Word(actions.IP4, 8, 0, 0xFF000000)]), SEND], "byte 8 of header 2 is written"),
        (WHOLE, [actions.pedit(actions.PIPE, [actions.Word(actions.ETH, 0, 0, FULL)]), SEND], "byte 0 of header 1 is written"),
    ],
)
def test_a_filter_with_our_cookie_that_is_none_of_a_flow(keys, does, message):
    with pytest.raises(Strange, match=message):
        exact_of(listed(keys, does))


@pytest.mark.parametrize("cookie", [b"", b"ctm/flow", b"ctm/rule" + bytes(8), bytes(16)])
def test_a_cookie_of_others_is_none_of_ours(cookie):
    data = listed(WHOLE, [SEND], cookie=cookie)
    assert exact_of(data) is None and cookie_in(data) is None


def test_a_filter_without_actions_counts_nothing_and_is_nobodys():
    data = listed(WHOLE, [])
    assert exact_of(data) is None and counters_of(data) == (0, 0, 0, 0)


def test_bytes_that_no_kernel_sends_are_an_error_and_nothing_else():
    random, data = Random(3), listed(WHOLE, [actions.pedit(actions.PIPE, [actions.Word(actions.IP4, 12, 9, FULL)]), SEND])
    for _ in range(3000):
        broken = bytearray(data)
        for _ in range(random.randrange(1, 4)):
            broken[random.randrange(20, len(broken))] = random.randrange(256)
        for read in (exact_of, cookie_in, counters_of):
            with suppress(Strange, Malformed):
                read(bytes(broken[: random.randrange(20, len(broken) + 1)]))


def test_counters_are_those_of_the_first_action():
    def action(number: int, *parts: bytes) -> bytes:
        return attribute(number, b"".join(parts))

    def stats(octets: int, packets: int, hardware: int) -> bytes:
        basic, more = pack("=QIxxxx", octets, packets & 0xFFFFFFFF), attribute(8, pack("=Q", packets))
        return attribute(4, attribute(1, basic) + attribute(7, pack("=QIxxxx", 0, hardware)) + more)

    times = attribute(2, attribute(1, pack("=QQQQ", 900, 25, 0, 0)))
    first = action(1, attribute(1, b"mirred\0"), times, stats(700, (1 << 32) + 7, 5))
    data = bytes(20) + attribute(2, attribute(3, first + action(2, stats(1, 1, 1))))
    assert counters_of(data) == ((1 << 32) + 7, 700, 5, 250_000_000)
