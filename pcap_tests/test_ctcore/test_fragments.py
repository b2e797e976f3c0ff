"""Reassembly by engine and model: what becomes of fragments, in which order they may come, what they may cost.

Sizes, offsets and payloads are chosen so that fragments meet. The rules in words and in traffic: pcap_tests/scenarios/fragments.
"""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctcore.config import Config
from ctcore.errors import ConfigError
from ctcore.fragment_values import Answer, Fragment
from ctcore.fragments import Reassembler
from ctcore.model.fragments import ModelReassembler, joint_ecn, read
from ctcore.types import Reason
from datapath import craft
from pcap_tests.conftest import examples
from pcap_tests.scene import SECOND, START

A, B, C = "10.0.0.1", "10.0.0.2", "10.0.0.3"
A6, B6 = "2001:db8::1", "2001:db8::2"
PAYLOAD = bytes(range(256)) * 8


def fragment(offset: int, size: int, *, last: bool = False, ident: int = 1, src: str = A, zone: int = 0, number: int = 0, **fields) -> Fragment:
    """Bytes `offset` to `offset + size` of PAYLOAD as a fragment; fields: as of craft.ip()."""
    dst, piece = (B6 if ":" in src else B), PAYLOAD[offset % 256 : offset % 256 + size]
    if ":" in src:
        fields["ext"] = (*fields.get("ext", ()), (craft.FRAGMENT, craft.fragment6(offset, not last, ident)))
    else:
        fields |= {"ident": ident, "frag": offset // 8 | (not last) << 13 | fields.pop("df", False) << 14}
    packet = craft.ip(src, dst, craft.UDP, piece, **fields)
    found = read(packet, len(packet), zone, number)
    assert found is not None
    return found


@pytest.fixture(params=[Reassembler, ModelReassembler], ids=["engine", "model"])
def make(request):
    return request.param


def outcomes(reassembler, *fragments: Fragment, now: int = START) -> list[str]:
    """What becomes of each: its outcome, or why it was dropped."""
    answers = [reassembler.add(one, now) for one in fragments]
    reassembler.check()
    return [Reason(answer.reason).name.removeprefix("R_FRAGMENT_").lower() if answer.reason else answer.outcome for answer in answers]


@pytest.mark.parametrize("src", [A, A6])
def test_every_order_gives_the_same_datagram(make, src):
    parts = [fragment(0, 24, src=src, number=7), fragment(24, 16, src=src, number=8), fragment(40, 5, last=True, src=src, number=9)]
    found = set()
    for order in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)):
        reassembler = make()
        *held, whole = (reassembler.add(parts[i], START) for i in order)
        assert [answer.outcome for answer in held] == ["held", "held"]
        found.add(whole)
    (whole,) = found
    assert whole.outcome == "whole" and whole.parts == ((7, 0, 24), (8, 24, 16), (9, 40, 5))
    assert whole.data == craft.ip(src, B6 if src == A6 else B, craft.UDP, PAYLOAD[:24] + PAYLOAD[24:40] + PAYLOAD[40:45])


def test_the_header_is_the_first_fragments(make):
    """Its options, its TTL, its type of service; the lengths and the checksum are the datagram's."""
    reassembler = make()
    reassembler.add(fragment(24, 8, last=True, ttl=9), START)
    whole = reassembler.add(fragment(0, 24, ttl=5, tos=0x20, options=b"\1\1\1\1"), START)
    assert whole.data == craft.ipv4(A, B, craft.UDP, PAYLOAD[:32], ttl=5, tos=0x20, options=b"\1\1\1\1")
    assert (whole.length, whole.largest) == (56, 48)


def test_the_fragment_header_goes_and_names_what_was_behind_it(make):
    reassembler, ext = make(), ((craft.HOP_BY_HOP, craft.options6()),)
    reassembler.add(fragment(0, 24, src=A6, ext=ext), START)
    whole = reassembler.add(fragment(24, 8, src=A6, last=True), START)
    assert whole.data == craft.ipv6(A6, B6, craft.UDP, PAYLOAD[:32], ext=ext)


def test_df_stays_if_the_largest_fragment_had_it(make):
    reassembler = make()
    reassembler.add(fragment(0, 24, df=True), START)
    whole = reassembler.add(fragment(24, 8, last=True), START)
    assert whole.dont and whole.data[6:8] == b"\x40\0"
    reassembler.add(fragment(0, 24), START)
    assert not reassembler.add(fragment(24, 8, last=True, df=True), START).dont


@pytest.mark.parametrize(
    ("seen", "joint"), [({0}, 0), ({1}, 0), ({2}, 0), ({3}, 0), ({1, 2}, 0), ({2, 3}, 3), ({1, 3}, 3), ({1, 2, 3}, 3), ({0, 2}, None), ({0, 3}, None)]
)
def test_congestion_experienced_by_one_is_experienced_by_all(make, seen, joint):
    """RFC 3168 5.3; that not all are capable of saying so cannot be."""
    assert joint_ecn(seen) == joint
    reassembler, values = make(), [min(seen), *sorted(seen)]
    for at, ecn in enumerate(values):
        answer = reassembler.add(fragment(8 * at, 8, last=at == len(values) - 1, tos=ecn), START)
    assert answer.outcome == ("dropped" if joint is None else "whole")
    assert answer.outcome == "dropped" or answer.data[1] & 3 == values[0] | joint


def test_zones_identifications_and_ipv4_protocols_keep_datagrams_apart(make):
    others = (fragment(24, 8, last=True, ident=2), fragment(24, 8, last=True, zone=1), fragment(24, 8, last=True, src=C))
    assert outcomes(make(), fragment(0, 24), *others, fragment(24, 8, last=True)._replace(proto=6)) == ["held"] * 5
    assert outcomes(make(), fragment(0, 24, src=A6), fragment(24, 8, last=True, src=A6)) == ["held", "whole"]


def test_a_time_that_goes_back_counts_as_the_latest(make):
    reassembler = make(Config(timeouts={"ipfrag_time": 1}))
    assert outcomes(reassembler, fragment(0, 24)) == ["held"]
    assert outcomes(reassembler, fragment(0, 24, src=A6), now=START + SECOND - 1) == ["held"]
    assert outcomes(reassembler, fragment(24, 8, last=True), now=0) == ["whole"]


def test_a_datagram_lives_for_its_timeout_and_no_longer(make):
    reassembler = make(Config(timeouts={"ipfrag_time": 2, "frag6_timeout": 3}))
    reassembler.add(fragment(0, 24), START)
    reassembler.add(fragment(0, 24, src=A6), START)
    reassembler.expire(START + 2 * SECOND - 1)
    assert reassembler.waiting() == (1, 1)
    reassembler.expire(START + 2 * SECOND)
    assert reassembler.waiting() == (0, 1) and reassembler.counters()["died_timeout"] == reassembler.counters()["lost"] == 1
    reassembler.expire(START + 3 * SECOND)
    assert reassembler.waiting() == (0, 0) and reassembler.charged() == (0, 0)


def test_beyond_the_limit_everything_is_refused_and_nothing_evicted(make):
    """The limit is passed by one fragment, as in Linux; then those of datagrams that wait are refused, too, until something dies."""
    reassembler = make(Config(ipfrag_high_thresh=2000, timeouts={"ipfrag_time": 1}))
    assert outcomes(reassembler, *(fragment(0, 24, ident=i) for i in range(4))) == ["held"] * 3 + ["memory"]
    assert outcomes(reassembler, fragment(24, 8, last=True, ident=0)) == ["memory"]
    assert outcomes(reassembler, fragment(0, 24, src=A6)) == ["held"], "IPv6 has a limit of its own"
    assert outcomes(reassembler, fragment(0, 24, ident=9), now=START + SECOND) == ["held"]


def test_fragments_of_others_do_not_wear_out_a_datagram(make):
    far = [fragment(0, 8, ident=i) for i in range(2, 6)]
    assert outcomes(make(Config(ipfrag_max_dist=3)), fragment(0, 24), *far[:3], fragment(24, 8, last=True))[-1] == "held"
    assert outcomes(make(Config(ipfrag_max_dist=3)), fragment(0, 24), *far[:2], fragment(24, 8, last=True))[-1] == "whole"
    assert outcomes(make(Config(ipfrag_max_dist=0)), fragment(0, 24), *far, fragment(24, 8, last=True))[-1] == "whole"


def test_what_was_not_captured_ends_the_datagrams_beginning(make):
    reassembler = make()
    cut = fragment(24, 16)
    reassembler.add(cut._replace(payload=cut.payload[:3]), START)
    reassembler.add(fragment(40, 8, last=True), START)
    whole = reassembler.add(fragment(0, 24), START)
    assert (whole.length, len(whole.data)) == (20 + 48, 20 + 24 + 3)


def test_the_largest_datagrams(make):
    for first, total in ((fragment(0, 1024), 65535), (fragment(0, 1024, src=A6), 40 + 65535)):
        reassembler, src = make(), A if len(first.src) == 4 else A6
        header = 20 if src == A else 40
        for offset in range(0, 64512, 1024):
            reassembler.add(fragment(offset, 1024, src=src), START)
        whole = reassembler.add(fragment(64512, total - header - 64512, last=True, src=src), START)
        assert (whole.outcome, whole.length, len(whole.data)) == ("whole", total, total)
        assert whole.data[header : header + 2048] == PAYLOAD[:1024] * 2


def test_what_cannot_be_a_fragment_is_an_error():
    for wrong in ({"src": b"abc"}, {"dst": bytes(16)}, {"offset": 12}, {"offset": 65536}, {"length": 1}, {"size": 10}, {"head": b""}, {"ecn": 4}):
        with pytest.raises(ConfigError, match="fragment: "):
            Reassembler().add(fragment(0, 24)._replace(**wrong), START)


# --- engine and model ----------------------------------------------------------------------------------------------------------------------

SIZES = st.sampled_from((0, 5, 8, 8, 12, 16, 16, 24, 600, 1200))


def piece(offset: int, size: int, last: bool, src: str, ident: int, zone: int) -> Fragment:
    """The first and last of IPv4 would be no fragment."""
    return fragment(offset, size, last=last and (offset > 0 or src == A6), src=src, ident=ident, zone=zone)


PIECES = st.builds(
    piece,
    st.integers(0, 6).map(lambda n: 8 * n) | st.sampled_from((600, 1200, 65528)),
    SIZES,
    st.sampled_from((False, False, True)),
    st.sampled_from((A, A, C, A6, A6)),
    st.integers(1, 3),
    st.sampled_from((0, 0, 0, 1)),
)
TIMED = st.lists(st.tuples(PIECES, st.sampled_from((0, 0, 0, SECOND // 10, SECOND)), st.integers(0, 9), st.integers(0, 3)), max_size=60)
CONFIGS = st.builds(
    Config, ipfrag_high_thresh=st.sampled_from((4 << 20, 4000, 0)), frag6_high_thresh=st.sampled_from((4 << 20, 3000)),
    ipfrag_max_dist=st.sampled_from((64, 2, 0)), timeouts=st.just({"ipfrag_time": 1, "frag6_timeout": 1}), seed=st.integers(0, 9),
)  # fmt: skip


@settings(max_examples=examples(300))
@given(TIMED, CONFIGS)
def test_engine_and_model_agree(timed, config):
    """Invariant: whatever fragments come, engine and model give the same answers, counters and charges, and their invariants hold."""
    engine, model, now = Reassembler(config), ModelReassembler(config), START
    for number, (piece, wait, missing, ecn) in enumerate(timed):
        now += wait
        piece = piece._replace(number=number, ecn=ecn if missing == 1 else 2, payload=piece.payload[: -missing or None if missing < 3 else None])
        assert engine.add(piece, now) == model.add(piece, now)
        assert engine.counters() == model.counters()
        assert (engine.waiting(), engine.charged()) == (model.waiting(), model.charged())
        engine.check()
        model.check()


@settings(max_examples=examples(100))
@given(st.data(), st.sampled_from((A, A6)))
def test_whatever_the_cut_and_the_order_it_becomes_whole_once(data, src):
    """Invariant: fragments that cover a datagram without overlap give it back, byte for byte, with the last of them to come."""
    size = data.draw(st.integers(9, 1500))
    cuts = sorted(data.draw(st.sets(st.integers(1, (size - 1) // 8), max_size=30)))
    borders = [0, *(8 * cut for cut in cuts), size]
    whole = craft.ip(src, B6 if src == A6 else B, craft.UDP, bytes(i % 251 for i in range(size)))
    head = len(whole) - size
    pieces = []
    for start, end in pairwise(borders):
        base = fragment(0, 8, src=src)._replace(offset=start, more=end < size, payload=whole[head + start : head + end], length=end - start)
        pieces.append(base._replace(size=len(base.head) + (8 if src == A6 else 0) + base.length))
    order = data.draw(st.permutations(pieces))
    reassembler = Reassembler()
    answers = [reassembler.add(piece, START) for piece in order]
    assert [answer.outcome for answer in answers] == ["held"] * (len(pieces) - 1) + ["whole"]
    assert answers[-1].data == whole
    assert reassembler.waiting() == (0, 0) and reassembler.charged() == (0, 0)


# --- floods -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("src", [A, A6])
def test_a_flood_of_first_fragments_takes_the_limit_and_no_more(src):
    reassembler, flood = Reassembler(), fragment(0, 1200, src=src)
    answers = [reassembler.add(flood._replace(ident=i), START).outcome for i in range(100_000)]
    held = answers.count("held")
    charge = 576 + 256 + flood.size
    assert held == (4 << 20) // charge + 1 and answers[:held] == ["held"] * held
    assert reassembler.counters()["memory"] == 100_000 - held
    reassembler.check()
    reassembler.expire(START + 60 * SECOND)
    assert reassembler.charged() == (0, 0) and reassembler.counters()["lost"] == held
    assert reassembler.add(flood, START).outcome == "held"


def seconds_for(order: list[int]) -> float:
    """For one datagram's fragments of 8 bytes, in that order: the best of three."""
    base = fragment(0, 8)
    pieces = [base._replace(offset=8 * i) for i in order]
    best = float("inf")
    for _ in range(3):
        reassembler, start = Reassembler(), time.perf_counter()
        for piece in pieces:
            reassembler.add(piece, START)
        best = min(best, time.perf_counter() - start)
        assert reassembler.waiting() == (1, 0)
    return best


def test_no_order_of_fragments_is_dear():
    """Backwards, from both ends to the middle, every other one first: nothing costs much more than in order."""
    n = 5000
    usual = seconds_for(list(range(n)))
    ends = [i // 2 if i % 2 else n - i // 2 for i in range(n)]
    for order in (list(range(n, 0, -1)), ends, [*range(0, n, 2), *range(1, n, 2)]):
        assert seconds_for(order) < 3 * usual + 0.02


def test_an_answer_without_a_datagram_is_empty():
    assert Answer("held") == ("held", 0, b"", 0, 0, False, ())
