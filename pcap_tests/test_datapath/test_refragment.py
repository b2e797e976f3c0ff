"""Cutting datagrams up again: the old borders where they fit, new ones where not, and nothing lost either way."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctcore.config import Config
from ctcore.nat_rules import NatRule, Range
from datapath import Pipeline, craft
from datapath.defragment import Gatherer
from datapath.frame import frames_of
from datapath.refragment import Datagram, refragment, wire_length

A, B, A6, B6 = "10.0.0.1", "10.0.0.2", "2001:db8::1", "2001:db8::2"
WAN = IPv4Address("192.0.2.1")
RR, ROUTER_ALERT = b"\x07\x04\x05\x00", b"\x94\x04\x00\x00"


def cut(payload: bytes, borders: list[int], *, six: bool = False, ext: tuple = (), df: bool = False, options: bytes = b"") -> list[bytes]:
    """The fragments of a datagram, as frames. borders: where they begin, the first at 0."""
    ends = [*borders[1:], len(payload)]
    frames = []
    for start, end in zip(borders, ends, strict=True):
        more = end < len(payload)
        if six:
            fields = {"ext": (*ext, (craft.FRAGMENT, craft.fragment6(start, more, 77)))}
        else:
            fields = {"ident": 77, "frag": start // 8 | more << 13 | df << 14, "options": options if start == 0 else b""}
        frames.append(craft.frame(A6 if six else A, B6 if six else B, craft.UDP, payload[start:end], **fields))
    return frames


def gathered(frames: list[bytes]) -> Datagram:
    """What these fragments make."""
    gatherer = Gatherer()
    gatherer.parse(*frames_of(frames))
    (datagram,) = gatherer.datagrams
    return datagram


PAYLOAD = bytes(i % 253 for i in range(4000))


@pytest.mark.parametrize("six", [False, True])
@pytest.mark.parametrize("borders", [[0, 1480, 2960], [0, 8, 16, 1400], [0, 2000]])
def test_fragments_leave_as_they_came(six, borders):
    frames = cut(PAYLOAD, borders, six=six)
    for order in (frames, frames[::-1]):
        datagram = gathered(order)
        assert refragment(datagram.frame, datagram) == frames


def test_behind_extension_headers_too():
    frames = cut(PAYLOAD, [0, 1400], six=True, ext=((craft.HOP_BY_HOP, craft.options6()), (craft.ROUTING, b"\0" * 7)))
    datagram = gathered(frames)
    assert refragment(datagram.frame, datagram) == frames


def test_what_no_longer_fits_is_cut_at_the_largest_there_was():
    """A helper has made the payload longer: 20 bytes behind the last border of 1,480 are no reason for a larger fragment."""
    datagram = gathered(cut(PAYLOAD[:2960], [0, 1480], df=True))
    longer = datagram.frame[:14] + craft.ipv4(A, B, craft.UDP, PAYLOAD[:2980], ident=77, frag=0x4000)
    frames = refragment(longer, datagram)
    assert [len(frame) - 34 for frame in frames] == [1480, 1480, 20]
    assert [frame[20] >> 5 for frame in frames] == [3, 3, 2], "DF, since the largest one had it; MF but for the last"
    assert gathered(frames).frame[34:] == PAYLOAD[:2980]


@pytest.mark.parametrize("six", [False, True])
def test_cut_anew_only_the_last_one_has_any_length(six):
    """Fragments of 23 and 16 bytes at most would be three if all but the first were cut to a multiple of 8."""
    size = 1300 - 48 if six else 23
    datagram = gathered(cut(PAYLOAD[: size + 16], [0, 16], six=six))
    one_piece = datagram._replace(parts=((0, 0, size + 16),))
    left = [len(frame) - datagram.l3 - (48 if six else 20) for frame in refragment(datagram.frame, one_piece)]
    assert left == [size - size % 8, 16 + size % 8]


def test_a_smaller_way_out_makes_smaller_fragments():
    datagram = gathered(cut(PAYLOAD, [0, 1480, 2960]))
    frames = refragment(datagram.frame, datagram, mtu=600)
    assert max(len(frame) - 14 for frame in frames) <= 600
    assert gathered(frames).frame == datagram.frame


def test_ipv6_leaves_whole_what_is_no_larger_than_a_fragment_was():
    frames = cut(PAYLOAD[:1008], [0, 1000], six=True)
    datagram = gathered(frames)
    assert [len(frame) for frame in refragment(datagram.frame, datagram)] == [14 + 40 + 1008]


def test_options_that_are_not_to_be_copied_stay_in_the_first():
    datagram = gathered(cut(PAYLOAD, [0, 1480], options=RR + ROUTER_ALERT))
    first, *later = (frame[34:42] for frame in refragment(datagram.frame, datagram))
    assert first == RR + ROUTER_ALERT and set(later) == {b"\1\1\1\1" + ROUTER_ALERT}


def test_pppoe_counts_its_bytes():
    def link(ip: bytes, kind: int) -> bytes:
        return craft.eth(craft.pppoe(ip), 0x8864)

    frames = [link(frame[14:], 0) for frame in cut(PAYLOAD, [0, 1400])]
    datagram = gathered(frames)
    assert refragment(datagram.frame, datagram) == frames


@pytest.mark.parametrize("six", [False, True])
@pytest.mark.parametrize("captured", [3990, 2400, 1500, 40])
def test_what_was_not_captured_is_not_made_up(six, captured):
    """The first byte that is missing ends what is known of the datagram: `captured` bytes of its payload."""
    frames = cut(PAYLOAD, [0, 2000], six=six)
    head = len(frames[0]) - 2000
    caught = [frames[0][: head + captured], frames[1][: head + max(0, captured - 2000)]]
    memory, rows = frames_of(caught)
    rows["len"] = [len(frame) for frame in frames]
    gatherer = Gatherer()
    gatherer.parse(memory, rows)
    (datagram,) = gatherer.datagrams
    out = refragment(datagram.frame, datagram)
    assert out == caught and [wire_length(frame, datagram) for frame in out] == [len(frame) for frame in frames]


def test_no_room_for_payload_is_an_error():
    datagram = gathered(cut(PAYLOAD, [0, 8]))
    with pytest.raises(ValueError, match="no room for any payload"):
        refragment(datagram.frame, datagram, mtu=24)


@given(st.data(), st.booleans(), st.integers(16, 3000), st.integers(1300, 1500))
def test_put_together_again_it_is_the_same(data, six, size, mtu):
    """Invariant: whatever the cut and the way out, refragmented and reassembled a datagram is what it was, but for DF where borders were kept."""
    payload = data.draw(st.binary(min_size=8, max_size=64)) * (size // 8)
    places = data.draw(st.sets(st.integers(1, (len(payload) - 1) // 8), min_size=1, max_size=12))
    ext = data.draw(st.sampled_from(((), ((craft.HOP_BY_HOP, craft.options6()),), ((craft.DESTINATION, craft.options6(2)),))))
    options = data.draw(st.sampled_from((b"", ROUTER_ALERT)))
    datagram = gathered(cut(payload, [0, *sorted(8 * place for place in places)], six=six, ext=ext, options=options))
    frames = refragment(datagram.frame, datagram, mtu)
    assert max(len(frame) for frame in frames) - 14 <= max(min(mtu, datagram.largest), 1280 if six else 0)
    if len(frames) == 1:
        assert frames == [datagram.frame]
    else:
        assert gathered(frames).frame == datagram.frame


def leaving(frames: list[bytes], **settings) -> list[bytes]:
    """What a pipeline lets out of these frames."""
    pipeline = Pipeline(Config(**settings))
    memory, rows = frames_of(frames)
    decisions, _, rewrites = pipeline.process(memory, rows, rewrites=True)
    memory, out, _ = pipeline.leaving(memory, rows, decisions, rewrites)
    return [memory[int(f["offset"]) : int(f["offset"]) + int(f["caplen"])].tobytes() for f in out]


UDP = craft.udp_segment(A, B, 5000, 53, PAYLOAD)


def test_a_pipeline_lets_fragments_out_when_their_datagram_is_whole():
    first, last, other = *cut(UDP, [0, 2000]), craft.udp(A, B, 1, 2, b"other")
    assert leaving([first, other, last, other]) == [other, first, last, other]
    assert leaving([first, other]) == [other]


def test_fragments_leave_translated_each_and_their_checksum_once():
    """The transport checksum is in the first one only, and right for all of the datagram."""
    rules = (NatRule("snat", Range(WAN, WAN)),)
    for step in (1480, 8, 2000):
        out = leaving(cut(UDP, list(range(0, len(UDP), step))), nat=rules)
        assert len(out) == -(-len(UDP) // step)
        assert gathered(out).frame == craft.udp("192.0.2.1", B, 5000, 53, PAYLOAD, ident=77)
