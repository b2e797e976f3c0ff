"""A loop with somebody before the rules: what leaves is what leaves without, no chunk is lost whatever that one does, and it has its turns."""

from __future__ import annotations

import time
from random import Random

import numpy as np
import pytest

from datapath import craft
from datapath.commands.offload_live import simulated
from datapath.live.capture_iface import CaptureIface
from datapath.live.loop import Loop
from datapath.live.null import Null
from datapath.live.umem import Umem
from datapath.pipeline.outputs import OUTPUT_DTYPE
from datapath.pipeline.rules import Hook
from offload.simnic import profile
from pcap_tests.test_datapath.test_live.test_loop import REDIRECT, TRACKED, A, B, bytes_in, capture, expected, ruled, talk


def opened() -> list[bytes]:
    """The handshakes of what talk() goes on with."""
    frames = []
    for port in range(1000, 1008):
        frames += [craft.tcp(A, B, port, 80, "S", seq=100), craft.tcp(B, "192.0.2.1", 80, port, "SA", seq=100, ack=101)]
        frames += [craft.tcp(A, B, port, 80, "A", seq=101, ack=101)]
    return frames


def ends(frame: bytes) -> bool:
    """A TCP segment with SYN, FIN or RST."""
    return frame[23:24] == b"\x06" and frame[12:14] == b"\x08\x00" and frame[47] & 7 != 0


@pytest.mark.parametrize("text", [REDIRECT, TRACKED + REDIRECT], ids=["plain", "tracked"])
def test_behind_a_nic_the_same_leaves(text, tmp_path):
    """Untouched where they lie, translated by the NIC, or by rules. Nobody ends a connection: a NIC would go on for a second."""
    frames, umem = opened() + [frame for frame in talk(Random(3), 3000) if not ends(frame)], Umem(4096)
    source = CaptureIface(umem, "in", source=capture(tmp_path / "in.pcap", frames))
    sink = CaptureIface(umem, "out", sink=tmp_path / "out.pcap", ordinal=1)
    pipeline = ruled(text)
    offload = simulated(profile.load("perfect"), "first-come")(pipeline, 0, 1)
    loop = Loop(pipeline, [source, sink], front=offload.front, turn=offload.turn)
    while not source.ended:
        loop.run(0.01)
    umem.check()
    assert umem.places() == {"free": 4096}
    source.close()
    sink.close()
    assert bytes_in(str(tmp_path / "out.pcap")) == expected(text, frames)
    assert offload.figures()["packets"]["hardware"] > 100


class Fixed:
    """A front that says that the same rows leave, whatever comes."""

    def __init__(self, rows: list[tuple[int, ...]], data: bytes = b"", error: Exception | None = None) -> None:
        self.rows, self.data, self.error = rows, data, error
        self.came = 0

    def arrive(self, hooks) -> None:
        self.hooks = list(hooks)

    def process(self, memory, frames, *, decisions, outputs):
        assert outputs and not decisions
        self.came += len(frames)
        if self.error:
            raise self.error

    def outputs(self):
        rows = np.zeros(len(self.rows), dtype=OUTPUT_DTYPE)
        for row, (frame, offset, caplen, flags) in zip(rows, self.rows, strict=True):
            row["frame"], row["offset"], row["caplen"], row["length"], row["flags"] = frame, offset, caplen, caplen, flags
            row["device"], row["egress"] = 2, 1
        return rows, np.frombuffer(self.data, dtype=np.uint8)


def with_front(front: Fixed, tmp_path, n: int = 3, **more) -> tuple[Umem, Loop, list]:
    umem = Umem(64)
    source = CaptureIface(umem, "in", source=capture(tmp_path / "in.pcap", talk(Random(1), n)))
    ifaces = [source, Null(umem, "out", ordinal=1)]
    return umem, Loop(ruled(REDIRECT), ifaces, front=front, **more), ifaces


def test_changed_bytes_and_copies_get_chunks(tmp_path):
    """Two from the same frame, one of them changed: one takes the frame's own chunk, the other a new one."""
    front = Fixed([(1, 0, 60, 1), (1, 4, 10, 1)], bytes(range(64)))
    umem, loop, _ = with_front(front, tmp_path)
    loop.run(0.01)
    assert front.came == 3 and front.hooks == [Hook("in"), Hook("out")]
    assert loop.counters()["sent"] == 2 and umem.places() == {"free": 64}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([(3, 0, 60, 0)], "row 0: expected one of 3 frames"),
        ([(0, 0, 60, 0), (0, 64 * 2048 - 10, 60, 0)], "row 1: expected one of 3 frames, within 131072 bytes"),
        ([(0, 0, 11, 1)], "row 0: expected one of 3 frames, within 10 bytes"),
    ],
    ids=["frame", "memory", "changed"],
)
def test_nonsense_of_a_front_is_an_error_and_no_chunk_is_lost(tmp_path, rows, said):
    umem, loop, _ = with_front(Fixed(rows, bytes(10)), tmp_path)
    with pytest.raises(ValueError, match=said):
        loop.run(1.0)
    assert umem.places() == {"free": 64} and loop.counters()["sent"] == 0


def test_what_a_front_or_a_turn_raises_ends_the_run_and_frees_the_tracker(tmp_path):
    umem, loop, _ = with_front(Fixed([], error=KeyError("broken")), tmp_path)
    with pytest.raises(KeyError, match="broken"):
        loop.run(1.0)
    loop.pipeline.tracker.check()
    loop.run(0.001)
    assert umem.places() == {"free": 64}

    def turn(now: int) -> int:
        raise RuntimeError("no turn")

    _, loop, _ = with_front(Fixed([]), tmp_path, turn=turn)
    with pytest.raises(RuntimeError, match="no turn"):
        loop.run(1.0)


@pytest.mark.parametrize(("ms", "least", "most"), [(0, 10, 60), (20, 2, 4), (10_000, 1, 2)], ids=["soon", "later", "quiet"])
def test_turns_come_when_they_are_wanted_and_soon_after_frames(tmp_path, ms, least, most):
    """No more than one each millisecond; on a machine with other work, fewer."""
    times: list[int] = []

    def turn(now: int) -> int:
        times.append(now)
        loop.pipeline.tracker.check()  # nobody is at work with it
        return now + ms * 10**6

    _, loop, _ = with_front(Fixed([]), tmp_path, turn=turn)
    start = time.time_ns()
    loop.run(0.06)
    assert least <= len(times) <= most and times == sorted(times)
    assert start <= times[0] and times[-1] <= time.time_ns()


def test_a_turn_is_due_at_once_when_a_run_begins(tmp_path):
    times: list[int] = []
    _, loop, _ = with_front(Fixed([]), tmp_path, turn=lambda now: times.append(now) or now)
    for _ in range(5):
        loop.run(0)
    assert len(times) == 5
