"""What leaves, where fragments are among it: whole datagrams are translated, and leave in pieces as they came."""

from __future__ import annotations

import numpy as np
import pytest

from ctcore.config import Config
from datapath import Pipeline, app, craft, frames_of
from datapath.nat_text import parse_rule
from pcap_tests import stories
from pcap_tests.test_datapath.test_nat_replay import read

INSIDE, OUTSIDE, SERVER = "10.0.0.2", "192.0.2.1", "198.51.100.1"
INSIDE6, OUTSIDE6, SERVER6 = "2001:db8:1::2", "2001:db8:3::1", "2001:db8:2::1"
PAIRS = pytest.mark.parametrize(("near", "outside", "far"), [(INSIDE, OUTSIDE, SERVER), (INSIDE6, OUTSIDE6, SERVER6)], ids=["IPv4", "IPv6"])


def datagram(src: str, dst: str, step: int = 24, size: int = 100, **fields: int) -> list[bytes]:
    """A UDP datagram in fragments."""
    whole = craft.udp_segment(src, dst, 5000, 53, bytes(range(size)), **fields)
    frames = []
    for at in range(0, len(whole), step):
        more = at + step < len(whole)
        how = {"ext": ((craft.FRAGMENT, craft.fragment6(at, more)),)} if ":" in src else {"frag": at // 8 | more << 13}
        frames.append(craft.frame(src, dst, craft.UDP, whole[at : at + step], **how))
    return frames


def left(frames: list[bytes], *rules: tuple[str, str]) -> tuple[list[bytes], list[int]]:
    """What leaves because of frames, and which of them each is of."""
    pipeline = Pipeline(Config(nat=tuple(parse_rule(*rule) for rule in rules)))
    memory, rows = frames_of(frames, ts=list(range(len(frames))))
    decisions, _, rewrites = pipeline.process(memory, rows, keys=True, rewrites=True)
    memory, laid, numbers = pipeline.leaving(memory, rows, decisions, rewrites)
    assert laid["ts"].tolist() == numbers.tolist()
    return [memory[f["offset"] : f["offset"] + f["caplen"]].tobytes() for f in laid], numbers.tolist()


@PAIRS
def test_fragments_leave_as_they_came(near, outside, far):
    frames = datagram(near, far)
    assert left(frames) == (frames, [4] * 5)


@PAIRS
def test_a_translated_datagram_leaves_in_the_fragments_of_a_datagram_from_outside(near, outside, far):
    assert left(datagram(near, far), ("snat", outside)) == (datagram(outside, far), [4] * 5)


def test_fragments_in_any_order_leave_between_the_packets_they_came_between():
    first, second, third, *rest = datagram(INSIDE, SERVER, 40)
    before, after = craft.udp(INSIDE, SERVER, 1, 2), craft.udp(INSIDE, SERVER, 3, 4)
    out, numbers = left([third, before, first, second, *rest, after], ("snat", OUTSIDE))
    assert out == [craft.udp(OUTSIDE, SERVER, 1, 2), *datagram(OUTSIDE, SERVER, 40), craft.udp(OUTSIDE, SERVER, 3, 4)]
    assert numbers == [1, 3, 3, 3, 4]


def test_what_is_not_whole_does_not_leave():
    assert left(datagram(INSIDE, SERVER)[:-1]) == ([], [])


def test_a_datagram_that_is_dropped_does_not_leave():
    taken = craft.udp("10.0.0.3", SERVER, 5000, 53)
    assert left([taken, *datagram(INSIDE, SERVER)], ("snat", f"{OUTSIDE}:5000"))[1] == [0]


def test_frames_that_stay_as_they_are_are_not_copied():
    pipeline = Pipeline(Config(nat=(parse_rule("snat", "src_ip 10.0.0.0/8 => 192.0.2.1"),)))
    memory, frames = frames_of([craft.udp("172.16.0.1", SERVER, 1, 2)])
    decisions, _, rewrites = pipeline.process(memory, frames, keys=True, rewrites=True)
    out = pipeline.leaving(memory, frames, decisions, rewrites)
    assert np.shares_memory(out.memory, memory) and out.frames.tolist() == frames.tolist()


def test_a_capture_with_fragments_is_written_translated(tmp_path):
    story = [(i, frame) for i, frame in enumerate(datagram(INSIDE, SERVER))]
    out = str(tmp_path / "out.pcapng")
    rules = app.Tracking(Config(nat=(parse_rule("snat", OUTSIDE),)))
    result = app.replay([stories.write(tmp_path / "in.pcap", story)], rules, app.Outputs(forwarded=out))
    assert read(out) == datagram(OUTSIDE, SERVER)
    assert result.forwarded == (out, 5) and result.stats["translated"] == 1
    assert result.stats["held"] == result.gathered == 4, "none of them was left out"


def test_in_place_a_datagram_of_fragments_is_left_alone():
    """It lies nowhere in the memory of the frames."""
    memory, frames = frames_of(datagram(INSIDE, SERVER))
    writable = memory.copy()
    Pipeline(Config(nat=(parse_rule("snat", OUTSIDE),))).forward(writable, frames)
    assert np.array_equal(writable, memory)
