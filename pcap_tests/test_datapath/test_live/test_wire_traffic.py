"""What benchmarks of interfaces are fed with: whole packets of as many flows as were asked for, and a sink that counts each once."""

from __future__ import annotations

import numpy as np
import pytest

from bench.wire_traffic import Generator, Sink, flows_of, frame_of
from ctcore.types import Reason
from datapath.frame import frames_of
from datapath.live.drivers import Wanted, open_interface
from datapath.live.umem import Umem
from datapath.live.xdp_filter import EVERYTHING
from datapath.wire import parse_batch
from pcap_tests.test_datapath.test_live.wires import until


@pytest.mark.parametrize("size", [64, 1518])
def test_generated_frames_are_whole_and_of_all_flows(wire, size):
    umem = Umem(4096)
    with wire.here.entered(), open_interface(umem, wire.near, Wanted(filter=EVERYTHING)) as opened:
        (iface,) = opened.ifaces
        with wire.there.entered():
            generator = Generator(wire.far, frame_of(size), flows_of(4))
        found: list[bytes] = []

        def look() -> bool:
            rows = iface.receive_batch(256)
            found.extend(umem.memory[int(row["offset"]) :][: int(row["caplen"])].tobytes() for row in rows)
            umem.give(rows["offset"])
            iface.tidy_up()
            return len(found) >= 1000

        try:
            until(look, "a thousand frames")
        finally:
            generator.stop()
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
