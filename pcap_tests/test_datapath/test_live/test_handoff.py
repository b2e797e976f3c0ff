"""Frames from worker to worker: none is lost without a counter, no chunk at all, and what belongs together comes in its order."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from random import Random

import numpy as np
import pytest

from ctcore.config import Config
from ctcore.types import Reason
from datapath import craft
from datapath.frame import frames_of
from datapath.live.capture_iface import CaptureIface
from datapath.live.handoff import Exchange
from datapath.live.loop import Loop
from datapath.live.null import Null
from datapath.live.steer import course_of
from datapath.live.umem import Umem
from datapath.pipeline.findings import Findings
from datapath.pipeline.rules_file import parse
from datapath.ruled import RulePipeline
from datapath.sink import PcapSink
from pcap_tests.test_datapath.test_live.test_loop import REDIRECT, bytes_in
from pcap_tests.test_datapath.test_live.test_steer import V4, V6, pieces

COMMITS = "tc filter add dev in ingress protocol {} prio {} chain 0 flower action ct commit pipe action mirred egress redirect dev out\n"
TRACKED = COMMITS.format("ip", 1) + COMMITS.format("ipv6", 2) + REDIRECT


def capture(path: Path, frames: list[bytes]) -> str:
    """They come now: fragments wait by the clock that the loop has."""
    memory, rows = frames_of(frames, ts=np.full(len(frames), time.time_ns(), dtype=np.int64))
    with PcapSink(str(path)) as sink:
        sink.write(memory, rows)
    return str(path)


class Rig:
    """Loops of several workers, each with captures of its own to read and to write."""

    def __init__(self, folder: Path, frames: list[list[bytes]], rules: str = REDIRECT, *, chunks: int = 2048) -> None:
        self.n, self.chunks = len(frames), chunks
        self.umem = Umem(chunks, workers=self.n)
        self.exchange = Exchange(self.umem)
        self.outs = [str(folder / f"out{i}.pcap") for i in range(self.n)]
        self.sources, self.loops, self.sinks = [], [], []
        for i, mine in enumerate(frames):
            source = (
                CaptureIface(self.umem, "in", source=capture(folder / f"in{i}.pcap", mine), worker=i) if mine else Null(self.umem, "in", worker=i)
            )
            sink = CaptureIface(self.umem, "out", sink=self.outs[i], worker=i, ordinal=1)
            found = Findings()
            pipeline = RulePipeline(parse(rules, "rules", found), Config(seed=7, share=(i, self.n)), devices=("in", "out"))
            assert not found.errors
            self.sources.append(source)
            self.sinks.append(sink)
            self.loops.append(Loop(pipeline, [source, sink], handoff=self.exchange.ends[i]))

    def run(self, *, together: bool = True) -> list[list[bytes]]:
        """What leaves by each worker, when all has been read and nothing is under way."""
        if together:
            ended = threading.Event()
            threads = [threading.Thread(target=self._work, args=(loop, ended)) for loop in self.loops]
            for thread in threads:
                thread.start()
            end = time.monotonic() + 20
            while not all(getattr(source, "ended", True) for source in self.sources) and time.monotonic() < end:
                time.sleep(0.01)
            time.sleep(0.1)
            ended.set()
            for thread in threads:
                thread.join(10)
        else:
            while not all(getattr(source, "ended", True) for source in self.sources):
                for loop in self.loops:
                    loop.run(0.005)
        for _ in range(5):
            for loop in self.loops:
                loop.run(0.002)
        self.umem.check()
        return self.finish()

    @staticmethod
    def _work(loop: Loop, ended: threading.Event) -> None:
        while not ended.is_set():
            loop.run(0.02)

    def finish(self) -> list[list[bytes]]:
        self.exchange.close()
        self.exchange.close()
        self.umem.check()
        assert self.umem.places() == {"free": self.chunks * self.n}
        for iface in (*self.sources, *self.sinks):
            iface.close()
        return [bytes_in(out) for out in self.outs]

    def shed(self) -> int:
        """Frames that did not walk, since their lane was more than half full."""
        return sum(loop.pipeline.count(Reason.R_OVERLOAD) for loop in self.loops)

    def counters(self) -> dict[str, int]:
        every = [loop.counters() for loop in self.loops]
        return {name: sum(one[name] for one in every) for name in every[0]}


def numbered(random: Random, n: int) -> list[bytes]:
    """Datagrams of few conversations, each with its number; some that are no IP."""
    arp = craft.eth(bytes(46), 0x0806)
    return [
        craft.udp(*(V4 if random.random() < 0.5 else V6), random.randrange(1000, 1032), 53, i.to_bytes(4, "big")) if random.random() < 0.95 else arp
        for i in range(n)
    ]


@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("rules", [REDIRECT, TRACKED], ids=["plain", "tracked"])
def test_nothing_is_lost_between_threads(tmp_path, workers, rules):
    """Every frame leaves by the worker that owns it, and those of a conversation that came by one queue leave in their order."""
    frames = [numbered(Random(i), 3000) for i in range(workers)]
    rig = Rig(tmp_path, frames, rules)
    left = rig.run()
    counters = rig.counters()
    lost = counters["lane_full"] + rig.shed()
    assert sum(map(len, left)) == 3000 * workers - lost and counters["handed"] == counters["taken"] > 1000
    for number, gone in enumerate(left):
        courses = [course_of(frame, workers) for frame in gone]
        assert {course[0] for course in courses if course is not None} == {number}
    if not lost:
        assert sorted(frame for gone in left for frame in gone) == sorted(frame for mine in frames for frame in mine)


def test_those_of_a_conversation_stay_in_order(tmp_path):
    frames = numbered(Random(9), 4000)
    rig = Rig(tmp_path, [frames, []])
    left = rig.run()
    for port in range(1000, 1032):
        for version in (b"\x08\x00", b"\x86\xdd"):
            told = [frame for frame in frames if frame[12:14] == version and ports_of(frame)[0] == port]
            came = [frame for gone in left for frame in gone if frame[12:14] == version and ports_of(frame)[0] == port]
            assert came == told or rig.counters()["lane_full"] or rig.shed()


def ports_of(frame: bytes) -> tuple[int, int]:
    at = 14 + (20 if frame[12:14] == b"\x08\x00" else 40)
    return int.from_bytes(frame[at : at + 2], "big"), int.from_bytes(frame[at + 2 : at + 4], "big")


def test_chunks_come_back_to_who_gave_them(tmp_path):
    """One worker receives ten times as many frames as it has chunks, all of them another one's."""
    frame = next(frame for port in range(100) if course_of(frame := craft.udp(*V4, port, 53), 2) == (1, None))
    rig = Rig(tmp_path, [[frame] * 5000, []], chunks=500)
    left = rig.run(together=False)
    counters = rig.counters()
    assert len(left[0]) == 0 and len(left[1]) + counters["lane_full"] + rig.shed() == 5000 and len(left[1]) > 1000


def test_a_lane_that_is_full_drops_and_counts(tmp_path):
    """Nobody takes anything until the end."""
    frame = next(frame for port in range(100) if course_of(frame := craft.udp(*V4, port, 53), 2) == (1, None))
    rig = Rig(tmp_path, [[frame] * 1500, []])
    while not rig.sources[0].ended:
        rig.loops[0].run(0.005)
    assert rig.loops[0].counters()["handed"] == 1024 and rig.loops[0].counters()["lane_full"] == 1500 - 1024
    rig.loops[1].run(0.05)
    rig.loops[0].run(0.01)
    rig.umem.check()
    assert len(rig.finish()[1]) + rig.shed() == 1024


def test_what_is_in_lanes_at_the_end_is_found_again(tmp_path):
    rig = Rig(tmp_path, [numbered(Random(1), 500), []])
    while not rig.sources[0].ended:
        rig.loops[0].run(0.005)
    assert rig.umem.places()["from worker 0 to 1"] > 100
    rig.finish()


def test_a_worker_that_sleeps_is_woken(tmp_path):
    """Sent one by one with pauses, so that the other one sleeps; it takes each at once, though it would sleep for 4 ms by itself."""
    rig = Rig(tmp_path, [[], []])
    umem, took = rig.umem, []
    frame = next(frame for port in range(100) if course_of(frame := craft.udp(*V4, port, 53), 2) == (1, None))
    (tmp_path / "pauses").mkdir()
    ended = threading.Event()
    thread = threading.Thread(target=rig._work, args=(rig.loops[1], ended))
    thread.start()
    for i in range(50):
        time.sleep(0.006)
        one = CaptureIface(umem, "in", source=capture(tmp_path / "pauses" / f"{i}.pcap", [frame]), worker=0)
        loop = Loop(rig.loops[0].pipeline, [one, rig.sinks[0]], handoff=rig.exchange.ends[0])
        before = rig.loops[1].counters()["taken"]
        start = time.perf_counter()
        loop.run(0.0)
        while rig.loops[1].counters()["taken"] == before and time.perf_counter() - start < 1:
            time.sleep(0.0001)
        took.append(time.perf_counter() - start)
        loop.run(0.001)
        one.close()
    ended.set()
    thread.join(10)
    assert rig.loops[1].counters()["taken"] == 50
    assert np.median(took) < 0.003
    rig.finish()


# --- fragments --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
@pytest.mark.parametrize("ends", [V4, V6])
def test_fragments_meet_at_the_owner_in_any_order(tmp_path, ends, order):
    """Datagrams whose fragments come by different queues."""
    frames: list[list[bytes]] = [[], [], []]
    for ident in range(40):
        parts = pieces(ends, 1000 + ident, 53, ident)
        for queue, at in enumerate(order):
            frames[(queue + ident) % 3].append(parts[at])
    rig = Rig(tmp_path, frames, TRACKED)
    rig.run(together=False)
    assert [len(loop.pipeline.tracker.conns()) for loop in rig.loops] == [
        sum(course_of(craft.udp(*ends, 1000 + ident, 53), 3) == (worker, None) for ident in range(40)) for worker in range(3)
    ]
    counters = rig.counters()
    assert counters["fragments_late"] == counters["fragments_crowded"] == counters["fragments_untold"] == 0


def test_fragments_whose_first_one_never_comes(tmp_path):
    """No more wait than there are places for, and none for ever."""
    frames = [pieces(V4, 1000, 53, ident)[1] for ident in range(1000)]
    rig = Rig(tmp_path, [frames, []])
    while not rig.sources[0].ended:
        for loop in rig.loops:
            loop.run(0.005)
    rig.loops[1].run(0.01)
    counters = rig.counters()
    waiting = sum(end.gatherer.n for end in rig.exchange.ends)
    assert waiting == 2 * 128
    assert counters["fragments_crowded"] + counters["lane_full"] == 1000 - waiting
    end = time.monotonic() + 5
    while rig.counters()["fragments_late"] < waiting and time.monotonic() < end:
        for loop in rig.loops:
            loop.run(0.05)
    assert rig.counters()["fragments_late"] == waiting and sum(end.gatherer.n for end in rig.exchange.ends) == 0
    assert rig.finish() == [[], []]


def test_fragments_that_wait_at_the_end_are_found_again(tmp_path):
    rig = Rig(tmp_path, [[pieces(V4, 1000, 53, ident)[1] for ident in range(50)], []])
    while not rig.sources[0].ended:
        for loop in rig.loops:
            loop.run(0.005)
    assert sum(end.gatherer.n for end in rig.exchange.ends) > 0
    assert rig.finish() == [[], []]


def test_an_exchange_wants_several_workers():
    with pytest.raises(ValueError, match="workers = 1: expected 2 to 64"):
        Exchange(Umem(16))
