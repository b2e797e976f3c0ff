"""What leaves, where fragments are among it: whole datagrams are translated, and leave in pieces as they came."""

from __future__ import annotations

import numpy as np
import pytest

from ctcore.config import Config
from datapath import Pipeline, app, craft, frames_of
from datapath.rule_text import parse_rule
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


@PAIRS
def test_fragments_that_were_captured_in_part_leave_so(near, outside, far):
    """Nothing is made up for what is missing. The first fragment has the ports and the checksum."""
    frames = datagram(near, far, 64)
    memory, rows = frames_of([frames[0], frames[1][:-20]])
    rows["len"] = [len(frame) for frame in frames]
    pipeline = Pipeline(Config(nat=(parse_rule("snat", outside),)))
    decisions, _, rewrites = pipeline.process(memory, rows, keys=True, rewrites=True)
    out = pipeline.leaving(memory, rows, decisions, rewrites)
    wanted = datagram(outside, far, 64)
    assert out.memory.tobytes() == wanted[0] + wanted[1][:-20] and out.frames["len"].tolist() == rows["len"].tolist()


def test_a_fragment_that_reassembly_passes_on_leaves_translated():
    """IPv6, odd length and not the last: it is tracked as it is."""

    def passed(src: str) -> list[bytes]:
        data = craft.udp_segment(src, SERVER6, 5000, 53, bytes(9))
        return [craft.frame(src, SERVER6, craft.UDP, data, ext=((craft.FRAGMENT, craft.fragment6(0, True)),))]

    assert left(passed(INSIDE6), ("snat", OUTSIDE6)) == (passed(OUTSIDE6), [0])


def test_a_datagram_in_pppoe_leaves_translated():
    """Its link header is that of a fragment, and says how long that one was."""

    def session(frames: list[bytes]) -> list[bytes]:
        return [craft.eth(craft.pppoe(frame[14:]), 0x8864) for frame in frames]

    assert left(session(datagram(INSIDE, SERVER)), ("snat", OUTSIDE)) == (session(datagram(OUTSIDE, SERVER)), [4] * 5)


def ended_headers(*pieces: bytes, ident: int = 9) -> list[bytes]:
    """IPv6 fragments whose extension headers reach beyond the first of them. pieces: of a datagram that begins with destination options."""
    frames, at = [], 0
    for i, piece in enumerate(pieces):
        ext = ((craft.FRAGMENT, craft.fragment6(at, i + 1 < len(pieces), ident)),)
        frames.append(craft.frame(INSIDE6, SERVER6, craft.DESTINATION, piece, ext=ext))
        at += len(piece)
    return frames


LONG_OPTIONS = bytes([craft.DESTINATION, 255, 1, 4, 0, 0, 0, 0])  # 2,048 bytes, and options again behind them
LAST_OPTIONS = bytes([craft.UDP, 0, 1, 4, 0, 0, 0, 0])


@pytest.mark.parametrize("pieces", [
    (LONG_OPTIONS, *[bytes(8)] * 255, LAST_OPTIONS, bytes(8)),  # longer than any fragment may become
    (bytes([craft.DESTINATION, 9, 1, 4, 0, 0, 0, 0]), bytes(8), bytes(1300)),  # with no end
    (bytes([craft.DESTINATION, 167, 1, 4, 0, 0, 0, 0]), *[bytes(8)] * 167),  # with nothing behind them
])  # fmt: skip
@pytest.mark.parametrize("rules", [(), (("snat", OUTSIDE6),)])
def test_datagrams_that_cannot_be_cut_up_again_do_not_leave_and_are_counted(pieces, rules, tmp_path):
    story = list(enumerate([*ended_headers(*pieces), craft.udp(INSIDE6, SERVER6, 1, 2)]))
    tracking = app.Tracking(Config(nat=tuple(parse_rule(*rule) for rule in rules)))
    result = app.replay([stories.write(tmp_path / "in.pcap", story)], tracking, app.Outputs(forwarded=str(tmp_path / "out.pcap")))
    assert result.forwarded == (str(tmp_path / "out.pcap"), 1) and result.stuck == 1 and result.gathered == 0


def test_headers_that_reach_into_later_fragments_have_no_borders_to_keep():
    pieces = (bytes([craft.DESTINATION, 1, 1, 12, 0, 0, 0, 0]), bytes(8), LAST_OPTIONS + craft.udp_segment(INSIDE6, SERVER6, 1, 2, bytes(1400)))
    frames, _ = left(ended_headers(*pieces))
    assert [len(frame) - 14 for frame in frames] == [1464, 88] and left(frames)[0] == frames


def test_in_place_a_datagram_of_fragments_is_left_alone():
    """It lies nowhere in the memory of the frames."""
    memory, frames = frames_of(datagram(INSIDE, SERVER))
    writable = memory.copy()
    Pipeline(Config(nat=(parse_rule("snat", OUTSIDE),))).forward(writable, frames)
    assert np.array_equal(writable, memory)
