"""Fragments on their way through the pipeline: rows stay frames, and the completing one's decision is the datagram's."""

from __future__ import annotations

import itertools
import resource
import time
from pathlib import Path

import numpy as np
import pytest

from ctcore import Config, Tracker
from ctcore.types import Reason, State, Verdict
from datapath import Pipeline, craft, frames_of
from datapath.defragment import Gatherer
from pcap_tests.scene import SECOND, START
from pcap_tests.test_datapath.guarded import Guarded

A, B, A6, B6 = "10.0.0.1", "10.0.0.2", "2001:db8::1", "2001:db8::2"


def pieces(size: int = 40, step: int = 16, *, src: str = A, dst: str = B, ident: int = 1, sport: int = 5000, proto: str = "udp") -> list[bytes]:
    """A sound datagram in fragments."""
    l4 = craft.tcp_segment(src, dst, sport, 80, "S", payload=bytes(size)) if proto == "tcp" else craft.udp_segment(src, dst, sport, 53, bytes(size))
    number = craft.TCP if proto == "tcp" else craft.UDP
    frames = []
    for at in range(0, len(l4), step):
        more = at + step < len(l4)
        fields = {"ext": ((craft.FRAGMENT, craft.fragment6(at, more, ident)),)} if ":" in src else {"ident": ident, "frag": at // 8 | more << 13}
        frames.append(craft.frame(src, dst, number, l4[at : at + step], **fields))
    return frames


def decided(pipeline: Pipeline, frames: list[bytes], ts=START) -> np.ndarray:
    return pipeline.process(*frames_of(frames, ts=ts))


@pytest.mark.parametrize(("src", "dst"), [(A, B), (A6, B6)])
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_the_last_to_come_gets_the_decision(src, dst, order):
    frames = pieces(src=src, dst=dst)
    d = decided(Pipeline(), [frames[i] for i in order])
    assert d["state"].tolist() == [State.NOT_SEEN, State.NOT_SEEN, State.NEW]
    assert d["verdict"].tolist() == [Verdict.HELD, Verdict.HELD, Verdict.ACCEPT]
    assert d["reason"].tolist() == [Reason.R_FRAGMENT, Reason.R_FRAGMENT, Reason.R_OK]


def test_the_connection_counts_the_datagram_and_the_summary_the_frames():
    pipeline, frames = Pipeline(), pieces(64, 24)
    decided(pipeline, frames)
    assert pipeline.tracker.conns()["flow"]["bytes"].tolist() == [[20 + 8 + 64, 0]]
    summary = pipeline.summary()
    assert summary["total_bytes"] == sum(map(len, frames)) and summary["bytes"][State.NEW] == len(frames[-1])
    assert summary["held"] == 2 and summary["fragments"]["datagrams"] == 1


def test_keys_are_those_of_the_datagram():
    _, keys = Pipeline().process(*frames_of(pieces()[::-1]), keys=True)
    assert (int(keys["sport"][-1]), int(keys["dport"][-1])) == (5000, 53)


def test_calls_and_batches_may_fall_anywhere():
    frames = pieces(400, 24) + pieces(300, 40, src=A6, dst=B6, proto="tcp") + pieces(10, 8, ident=2)
    whole = decided(Pipeline(), frames)
    for batch in (1, 3, 7):
        assert decided(Pipeline(batch=batch), frames).tolist() == whole.tolist()
    pipeline = Pipeline()
    assert np.concatenate([decided(pipeline, [frame]) for frame in frames]).tolist() == whole.tolist()


def test_the_datagram_is_there_until_the_next_call():
    pipeline, frames = Pipeline(), pieces()
    decided(pipeline, [craft.udp(A, B, 1, 2), *frames[:2]])
    assert pipeline.datagrams() == []
    decided(pipeline, [craft.udp(A, B, 1, 2), frames[2]])
    (datagram,) = pipeline.datagrams()
    assert datagram.row == 1 and [number for number, _, _ in datagram.parts] == [1, 2, 4]
    assert datagram.frame == craft.udp(A, B, 5000, 53, bytes(40)) and datagram.l3 == 14
    decided(pipeline, [craft.udp(A, B, 1, 2)])
    assert pipeline.datagrams() == []


def test_zones_have_their_own_fragments():
    first, second = Gatherer(zone=1), Gatherer(zone=1)
    frames = pieces(40, 24)
    assert first.parse(*frames_of(frames)).array["key"]["zone"].tolist() == [1, 1]
    assert second.parse(*frames_of(frames[1:])).array["reason"].tolist() == [Reason.R_FRAGMENT]


def test_time_passes_by_all_packets():
    """The clock is that of all packets: one without fragments ages those that wait, and it never goes back."""
    pipeline, frames = Pipeline(Config(timeouts={"ipfrag_time": 1})), pieces(40, 24)
    others = [craft.udp(A, B, 1, 2)]
    d = decided(pipeline, [frames[0], *others, frames[1]], ts=[START, START + 2 * SECOND, START])
    assert d["state"].tolist() == [State.NOT_SEEN, State.NEW, State.NOT_SEEN]
    assert pipeline.fragments()["died_timeout"] == 1 and pipeline.fragments()["waiting"] == 1


def test_what_waited_for_too_long_is_counted_at_the_end():
    pipeline = Pipeline(Config(timeouts={"ipfrag_time": 1}))
    decided(pipeline, pieces()[:1])
    decided(pipeline, [craft.udp(A, B, 1, 2)], ts=START + 5 * SECOND)
    assert pipeline.summary()["fragments"] == {**dict.fromkeys(pipeline.fragments(), 0), "died_timeout": 1, "lost": 1}


def test_a_batch_of_any_tracker_keeps_its_datagrams():
    """Gatherer's batches stay whole when others follow."""
    gatherer, batches = Gatherer(), []
    for ident in range(20):
        gatherer_frames = pieces(3000, 1480, ident=ident, sport=ident + 1)
        batches.append(gatherer.parse(*frames_of(gatherer_frames)))
    tracker = Tracker()
    for batch in batches:
        assert tracker.advance(batch)["state"].tolist()[-1] == State.NEW
    assert tracker.count == 20


def test_snapped_fragments_are_tracked_by_what_is_there():
    memory, frames = frames_of([frame[:60] for frame in pieces(2000, 1000)])
    frames["len"] = [len(frame) for frame in pieces(2000, 1000)]
    assert Pipeline().process(memory, frames)["state"].tolist() == [State.NOT_SEEN, State.NOT_SEEN, State.NEW]
    memory, frames = frames_of([frame[:58] for frame in pieces(2000, 1000, src=A6, dst=B6)])
    frames["len"] = 1062
    assert set(Pipeline().process(memory, frames)["reason"].tolist()) == {Reason.R_SNAPPED}


@pytest.mark.parametrize("what", ["ihl", "length", "offset", "fragment header"])
def test_lying_lengths_read_nothing_behind_the_frame(what):
    """The frame ends where memory does (guard page), whatever its headers say."""
    guarded, pipeline = Guarded(), Pipeline(Config(checksum=False))
    for value in range(256):
        if what == "fragment header":
            frame = craft.frame(
                A6, B6, craft.UDP, bytes(value % 24), ext=((craft.HOP_BY_HOP, bytes([value % 5]) + bytes(6)), (44, bytes(7)[: value % 8]))
            )
        else:
            fields = {"ihl": {"ihl": value % 16}, "length": {"length": value}, "offset": {"frag": value << 8}}[what]
            frame = craft.frame(A, B, craft.UDP, bytes(40), **{"frag": 0x2000 | value % 8, **fields})
        pipeline.process(guarded.memory, guarded.at_end(frame))
        pipeline.datagrams()
    pipeline.reassembler.check()
    pipeline.tracker.check()


def test_an_unending_stream_of_datagrams_leaves_nothing_behind():
    pipeline = Pipeline()
    for start in range(0, 2000, 500):
        frames = [frame for ident in range(start, start + 500) for frame in pieces(60, 24, ident=ident, sport=ident + 1)]
        assert decided(pipeline, frames)["state"].tolist().count(State.NEW) == 500
        pipeline.reassembler.check()
    assert pipeline.fragments()["datagrams"] == 2000 and pipeline.fragments()["waiting"] == 0


def flood(n: int) -> tuple[np.ndarray, np.ndarray]:
    """First fragments of n datagrams."""
    frames = [craft.frame(f"10.{i >> 16 & 255}.{i >> 8 & 255}.{i & 255}", B, craft.UDP, bytes(24), frag=0x2000, ident=i & 0xFFFF) for i in range(n)]
    return frames_of(frames, ts=START)


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_a_flood_costs_the_same_for_each_packet_and_no_memory_beyond_the_limit():
    pipeline, (memory, frames) = Pipeline(), flood(100_000)
    seconds, before = [], resident()
    for half in (frames[:50_000], frames[50_000:]):
        start = time.perf_counter()
        pipeline.process(memory, half, decisions=False)
        seconds.append(time.perf_counter() - start)
    assert resident() - before < 16 << 20
    counters = pipeline.fragments()
    held = counters["waiting"]
    assert held == (4 << 20) // (576 + 256 + 44) + 1 and counters["memory"] == 100_000 - held
    assert seconds[1] < 3 * seconds[0] + 0.05
    assert pipeline.summary()["reason_packets"][Reason.R_FRAGMENT_MEMORY] == 100_000 - held
