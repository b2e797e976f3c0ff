"""AF_XDP between two namespaces: frames go both ways, chunks come back, and whatever fails is counted and ends nothing."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest

import datapath.live.xsk
from ctcore.errors import ConfigError
from datapath import craft
from datapath.errors import KernelError
from datapath.live.interfaces import queues_of
from datapath.live.rows import SEND_DTYPE
from datapath.live.settings import XskSettings
from datapath.live.umem import Umem
from datapath.live.xdp_filter import EVERYTHING, Filter, Steering
from datapath.live.xsk import Xsk
from pcap_tests.test_datapath.test_live.wires import Wire, received, sent, sound, until

A, B = "10.0.0.1", "10.0.0.2"
SMALL = XskSettings(ring=64, tx_budget=32)


def numbered(n: int) -> list[bytes]:
    return [craft.udp(A, B, 1000, 53, i.to_bytes(4, "big") * 5) for i in range(n)]


@contextmanager
def opened(umem: Umem, wire: Wire, mode: str = "native", wanted: Filter = EVERYTHING, **options) -> Iterator[Xsk]:
    """An iface at the near end, that takes everything unless told otherwise."""
    with ExitStack() as stack, wire.here.entered():
        xsk = stack.enter_context(Xsk(umem, wire.near, **options))
        steering = Steering(wanted)
        stack.callback(steering.close)
        steering.put(xsk.queue, xsk.fd)
        steering.attach(wire.near, mode)
        yield xsk


def test_the_compiled_module_is_loaded():
    assert datapath.live.xsk.__file__.endswith(".so")


@pytest.mark.parametrize("mode", ["native", "generic"])
@pytest.mark.parametrize("chunk_size", [2048, 4096])
def test_frames_come_and_go_as_they_are(wire, mode, chunk_size):
    umem = Umem(4096, chunk_size=chunk_size)
    frames = [*numbered(150), craft.udp(A, B, 1, 2, bytes(range(256)) * 5)]
    with opened(umem, wire, mode) as xsk, wire.end() as far:
        for frame in frames:
            far.send(frame)
        assert received(xsk, len(frames)) == frames
        assert sent(xsk, frames) == len(frames)
        assert [far.recv(2048) for _ in frames] == frames
        until(lambda: xsk.tidy_up() or umem.places().get("near:0 sending", 0) == 0, "chunks of what was sent")
        sound(umem, xsk)
        counts = xsk.statistics()
        assert (counts["rx"], counts["tx"]) == (len(frames),) * 2
        assert counts["rx_bytes"] == counts["tx_bytes"] == sum(map(len, frames))
    assert umem.places() == {"free": 4096}
    sound(umem)


def test_rows_say_where_when_and_whence(wire):
    umem = Umem(4096)
    with opened(umem, wire, ordinal=3, settings=XskSettings(headroom=128)) as xsk, wire.end() as far:
        before = time.time_ns()
        far.send(numbered(1)[0])
        found: list = []
        until(lambda: found.extend(xsk.receive_batch()) or found, "a frame")
        (row,) = found
        assert (row["len"], row["caplen"], row["link"], row["iface"]) == (62, 62, 1, 3)
        assert row["offset"] % 2048 == 256 + 128
        assert before <= row["ts"] <= time.time_ns()
        umem.give([row["offset"]])


def test_without_a_filter_the_host_has_everything(wire):
    umem = Umem(4096)
    with wire.here.entered(), Xsk(umem, wire.near) as xsk, wire.end() as far:
        far.send(numbered(1)[0])
        time.sleep(0.05)
        assert len(xsk.receive_batch()) == 0


def test_one_memory_for_two_interfaces_so_that_nothing_is_copied(wires):
    umem = Umem(8192)
    left, right = wires("left"), wires("right")
    frames = numbered(100)
    with opened(umem, left) as a, opened(umem, right, ordinal=1) as b, left.end() as client, right.end() as server:
        for frame in frames:
            client.send(frame)
        moved = 0
        while moved < len(frames):
            rows = a.receive_batch()
            sends = as_sends(rows)
            assert b.send_batch(sends) == len(sends)
            b.tidy_up()
            a.tidy_up()
            moved += len(sends)
        assert [server.recv(2048) for _ in frames] == frames
        sound(umem, a, b)
    assert umem.places() == {"free": 8192}


def as_sends(rows: np.ndarray) -> np.ndarray:
    sends = np.zeros(len(rows), dtype=SEND_DTYPE)
    sends["offset"], sends["len"] = rows["offset"], rows["caplen"]
    return sends


def test_the_first_sharer_may_go_before_the_second(wires):
    """The registration is whoever's is left; when nobody is, the next one makes it anew."""
    umem = Umem(8192)
    left, right, third = wires("left"), wires("right"), wires("third")
    with ExitStack() as later:
        with opened(umem, left):
            b = later.enter_context(opened(umem, right))
        with opened(umem, third) as c, third.end() as far:
            far.send(numbered(1)[0])
            assert received(c, 1) == numbered(1)
            sound(umem, b, c)
    with opened(umem, left) as a, left.end() as far:
        far.send(numbered(1)[0])
        assert received(a, 1) == numbered(1)
    sound(umem)


def test_a_queue_has_one_socket(wire):
    with opened(Umem(4096), wire), pytest.raises(KernelError, match=r"near: queue 0: .*another AF_XDP socket has this queue") as refused:
        Xsk(Umem(4096), wire.near, settings=XskSettings(patience=0.05))
    assert refused.value.number in (errno.EBUSY, errno.EINVAL)


def test_a_queue_can_be_taken_again_at_once(wire):
    """The kernel lets go of it some 20 ms after it was closed."""
    umem = Umem(4096)
    for _ in range(5):
        with opened(umem, wire) as xsk, wire.end() as far:
            far.send(numbered(1)[0])
            assert received(xsk, 1) == numbered(1)
    assert umem.places() == {"free": 4096}


def test_each_queue_is_a_workers(wires):
    umem = Umem(4096, workers=2)
    wire = wires(queues=2)
    with ExitStack() as stack, wire.here.entered():
        assert queues_of(wire.near) == 2
        both = [stack.enter_context(Xsk(umem, wire.near, queue=queue, worker=queue)) for queue in range(2)]
        steering = Steering(EVERYTHING)
        stack.callback(steering.close)
        for xsk in both:
            steering.put(xsk.queue, xsk.fd)
        steering.attach(wire.near)
        with wire.end() as far:
            for frame in numbered(10):
                far.send(frame)
        until(lambda: give_back(umem, both) or sum(one.statistics()["rx"] for one in both) == 10, "all frames")
        with pytest.raises(KernelError, match=r"queue 2: .*expected a queue that the interface has"):
            Xsk(umem, wire.near, queue=2)
        sound(umem, *both)
    assert [umem.free(worker) for worker in range(2)] == [4096, 4096]


def give_back(umem: Umem, ifaces: list[Xsk]) -> None:
    for xsk in ifaces:
        umem.give(xsk.receive_batch()["offset"], worker=xsk.worker)


def test_a_full_ring_refuses_and_counts(wire):
    """While the link is down nothing leaves the ring."""
    umem = Umem(1024)
    with opened(umem, wire, settings=SMALL) as xsk:
        wire.set(wire.here, wire.near, state="down")
        assert sent(xsk, numbered(100)) == 64
        counts = xsk.statistics()
        assert (counts["tx"], counts["tx_ring_full"], xsk.condition) == (64, 36, "down")
        assert counts["kick_down"] >= 1
        sound(umem, xsk)
    assert umem.places() == {"free": 1024}


def test_down_and_up_again(wire):
    umem = Umem(1024)
    with opened(umem, wire, settings=SMALL) as xsk, wire.end() as far:
        wire.set(wire.here, wire.near, state="down")
        assert sent(xsk, numbered(3)) == 3
        assert xsk.look() == "down"
        wire.set(wire.here, wire.near, state="up")
        xsk.tidy_up()
        assert [far.recv(2048) for _ in range(3)] == numbered(3)
        assert xsk.look() == "up"
        far.send(numbered(1)[0])
        assert received(xsk, 1) == numbered(1)
        sound(umem, xsk)


def test_no_carrier_is_a_refusal(wire):
    """The other end is down: the kernel takes the frames and nobody gets them."""
    umem = Umem(1024)
    with opened(umem, wire, settings=SMALL) as xsk:
        wire.set(wire.there, wire.far, state="down")
        assert sent(xsk, numbered(5)) == 5
        until(lambda: xsk.tidy_up() or umem.places().get("near:0 sending", 0) == 0, "chunks")
        assert xsk.statistics()["tx_refused"] == 5
        sound(umem, xsk)


def test_a_device_that_vanishes_is_noticed_and_costs_nothing(wire):
    umem = Umem(1024)
    with opened(umem, wire, settings=SMALL) as xsk:
        wire.remove()
        assert xsk.look() == "gone"
        assert sent(xsk, numbered(5)) == 0
        kicks = xsk.statistics()["kicks"]
        for _ in range(100):
            assert xsk.tidy_up() == 0
            assert len(xsk.receive_batch()) == 0
        counts = xsk.statistics()
        assert (counts["tx_down"], counts["kicks"]) == (5, kicks)
        sound(umem, xsk)
    assert umem.places() == {"free": 1024}


def test_a_device_that_vanishes_under_way(wire):
    """It is found out by sending, without look(); chunks that were on their way are free when the iface is closed."""
    umem = Umem(1024)
    with opened(umem, wire, settings=SMALL) as xsk:
        wire.set(wire.here, wire.near, state="down")
        assert sent(xsk, numbered(10)) == 10
        wire.remove()
        xsk.tidy_up()
        assert xsk.condition == "gone"
        assert xsk.statistics()["kick_gone"] == 1
        assert umem.places()["near:0 sending"] == 10
        sound(umem, xsk)
    assert umem.places() == {"free": 1024}


def test_no_chunks_no_frames_until_there_are_some(wire):
    """A worker that holds all its chunks leaves the kernel none; what comes meanwhile is counted."""
    umem = Umem(96)
    with opened(umem, wire, settings=SMALL) as xsk, wire.end() as far:
        held = umem.put([b""] * 32)
        for frame in numbered(80):
            far.send(frame)
        until(lambda: xsk.statistics()["rx_fill_empty"] == 16, "frames without a chunk")
        assert xsk.statistics()["rx_dropped"] == 0  # each is counted once
        rows = xsk.receive_batch(64)
        assert len(rows) == 64
        assert xsk.tidy_up() == 0
        sound(umem, xsk)
        umem.give(rows["offset"])
        umem.give(held["offset"])
        xsk.tidy_up()
        far.send(numbered(1)[0])
        assert received(xsk, 1) == numbered(1)
        sound(umem, xsk)


def test_frames_that_are_none_are_refused_by_the_device(wire):
    umem = Umem(1024)
    with opened(umem, wire, settings=SMALL) as xsk:
        assert sent(xsk, [b"short", bytes(1700), *numbered(1)]) == 3
        until(lambda: xsk.tidy_up() or umem.places().get("near:0 sending", 0) == 0, "chunks")
        assert xsk.statistics()["tx_refused"] + xsk.statistics()["tx_invalid"] == 2
        sound(umem, xsk)


def test_busy_polling(wire):
    umem = Umem(4096)
    with opened(umem, wire, settings=XskSettings(busy_poll=20)) as xsk, wire.end() as far:
        for frame in numbered(100):
            far.send(frame)
        assert received(xsk, 100) == numbered(100)
        before = xsk.statistics()["wakes"]
        assert len(xsk.receive_batch()) == 0
        assert xsk.statistics()["wakes"] == before + 1  # whoever polls asks the device each time that nothing is there


def test_what_cannot_be_says_what_was_expected(wire):
    umem = Umem(64)
    with wire.here.entered():
        with pytest.raises(KernelError, match=r"nowhere: .*no such interface in this network namespace"):
            Xsk(umem, "nowhere")
        with pytest.raises(KernelError, match=r"near: queue 0: .*expected a driver that can do zero-copy"):
            Xsk(umem, wire.near, settings=XskSettings(zero_copy=True))
        wire.set(wire.here, wire.near, mtu=1800)
        with pytest.raises(
            KernelError, match=r"near: MTU 1800: expected at most 1774 .*\(multi-buffer\) are not supported: .* mtu 1774, or \[memory\] chunk = 4096$"
        ):
            Xsk(umem, wire.near)
    assert umem.places() == {"free": 64}
    with pytest.raises(ConfigError, match="ring = 100: expected a power of two"):
        XskSettings(ring=100)
    with pytest.raises(ConfigError, match="tx_budget = 4096: expected 32 to 2048"):
        XskSettings(tx_budget=4096)


def test_a_closed_iface_is_none(wire):
    with opened(Umem(64), wire) as xsk:
        pass
    xsk.close()
    for call in (xsk.receive_batch, xsk.tidy_up, xsk.look):
        with pytest.raises(RuntimeError, match="near: is closed"):
            call()
    assert xsk.statistics()["rx"] == 0
