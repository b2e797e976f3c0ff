"""What benchmarks of interfaces are fed with: whole packets of as many flows as were asked for, and a sink that counts each once."""

from __future__ import annotations

import time

import numpy as np
import pytest

from bench.topology import kernels
from bench.wire_traffic import Clock, Generator, Sink, flood, flood_frame, flows_of, frame_of, stamped
from ctcore.types import Reason
from datapath import bpf
from datapath.frame import frames_of
from datapath.live.drivers import Wanted, open_interface
from datapath.live.iface import Iface
from datapath.live.umem import Umem
from datapath.live.xdp_filter import EVERYTHING
from datapath.wire import parse_batch
from pcap_tests.test_datapath.test_live.wires import until


def a_thousand(iface: Iface, generator: Generator) -> list[bytes]:
    """Frames, one thousand at least, and the end of the generator."""
    found: list[bytes] = []

    def look() -> bool:
        rows = iface.receive_batch(256)
        found.extend(iface.umem.memory[int(row["offset"]) :][: int(row["caplen"])].tobytes() for row in rows)
        iface.umem.give(rows["offset"])
        iface.tidy_up()
        return len(found) >= 1000

    try:
        until(look, "a thousand frames")
    finally:
        generator.stop()
    return found


@pytest.mark.parametrize("size", [64, 1518])
def test_generated_frames_are_whole_and_of_all_flows(wire, size):
    umem = Umem(4096)
    with wire.here.entered(), open_interface(umem, wire.near, Wanted(filter=EVERYTHING)) as opened:
        (iface,) = opened.ifaces
        with wire.there.entered():
            generator = Generator(wire.far, frame_of(size), flows_of(4))
        found = a_thousand(iface, generator)
        assert {len(frame) for frame in found} == {size - 4}
        packets = parse_batch(*frames_of(found)).array
        assert (packets["reason"] == Reason.R_OK).all() and (packets["l4_reason"] == Reason.R_OK).all()
        assert np.unique(packets["key"]["sport"]).tolist() == [1024, 1025, 1026, 1027]


def test_the_sink_counts_each_frame_once(wire):
    with wire.here.entered():
        sink = Sink(wire.near)
    with wire.end() as far:
        for _ in range(100):
            far.send(frame_of(64))
        until(lambda: sink.packets == 100, "a hundred frames")
    sink.close()


def test_stamped_frames_come_at_their_rate_and_the_clock_tells_their_way(wire):
    """20,000 a second through a cable for a tenth of a second and more; on a machine with other work, fewer, as none is made up for."""
    state = bpf.Map(bpf.ARRAY, 4, 8, 1, "next")
    with wire.here.entered():
        clock = Clock(wire.near)
    start = time.monotonic()  # reading a histogram takes its time, too, in which frames come
    with wire.there.entered():
        generator = Generator(wire.far, frame_of(64), stamped(4, 20_000, state), batch=8)
    try:
        until(lambda: sum(clock.histogram()) > 0, "the first frame")
        time.sleep(0.1)
        counts = clock.histogram()
        spent = time.monotonic() - start
    finally:
        generator.stop()
        clock.close()
        state.close()
    assert 10 < sum(counts) <= 20_000 * spent + 10
    assert sum(counts[:1000]) > 0.5 * sum(counts), "a cable takes microseconds"


def test_a_flood_s_frames_are_whole_and_each_another(wire):
    umem = Umem(4096)
    with wire.here.entered(), open_interface(umem, wire.near, Wanted(filter=EVERYTHING)) as opened:
        (iface,) = opened.ifaces
        with wire.there.entered():
            generator = Generator(wire.far, flood_frame(), flood)
        found = a_thousand(iface, generator)
    packets = parse_batch(*frames_of(found)).array
    assert (packets["reason"] == Reason.R_OK).all() and (packets["l4_reason"] == Reason.R_OK).all()
    assert len({(row["key"]["src"].tobytes(), int(row["key"]["sport"])) for row in packets}) > 0.99 * len(found)


def test_frames_come_back_from_a_kernel_as_they_were():
    """It writes its own addresses and a lower TTL into pages that are used again: without each frame's own header, nearly nothing is forwarded."""
    with kernels(Sink) as (there, sink):
        with there.entered():
            generator = Generator("gen", frame_of(64), flows_of(4))
        try:
            until(lambda: sink.packets > 50_000, "what is forwarded: more than each page of the generator's a hundred times")
        finally:
            generator.stop()
