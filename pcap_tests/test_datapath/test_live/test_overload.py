"""More comes in than can be tracked: what the flow table knows goes first, what opens connections is shed, and nothing is lost without a counter."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from bench.flood import measured, told
from ctcore.config import Config
from ctcore.errors import ConfigError
from ctcore.types import Reason, Status
from datapath import craft
from datapath.commands.offload_live import simulated
from datapath.frame import frames_of
from datapath.live.config import parse as parse_config
from datapath.live.drivers import Wanted, open_interface
from datapath.live.loop import Loop
from datapath.live.null import Null
from datapath.live.settings import XskSettings
from datapath.live.umem import Umem
from datapath.live.xdp_filter import EVERYTHING, Filter
from datapath.pipeline.findings import Findings
from datapath.pipeline.rules import Hook
from datapath.pipeline.rules_file import parse
from datapath.ruled import RulePipeline
from offload.simnic import profile
from pcap_tests.test_datapath.test_live.test_xdp_filter import steering
from pcap_tests.test_datapath.test_live.wires import until

A, B, A6, B6 = "10.0.0.1", "10.0.0.2", "2001:db8::1", "2001:db8::2"
COMMIT = "tc filter add dev near ingress protocol ip prio 1 flower action ct commit pipe action mirred egress redirect dev out\n"
ARP = craft.eth(bytes(46), 0x0806)
RING = 1024
LEAST = 1000  # of syn_rate: two in a window of 1.05 ms


def knowing(flowtable: bool, rules: str = COMMIT) -> RulePipeline:
    """A pipeline with one established connection of UDP, port 1."""
    pipeline = RulePipeline(parse(rules, "rules", Findings()), Config(max=4096), devices=("near", "out"), flowtable=flowtable)
    pipeline.arrive([Hook("near"), Hook("out")])
    now = time.time_ns()
    for ago, frame in ((9, craft.udp(A, B, 1, 53)), (8, craft.udp(B, A, 53, 1)), (5, craft.udp(A, B, 1, 53)), (1, craft.udp(A, B, 1, 53))):
        pipeline.process(*frames_of([frame], np.array([now - ago * 10**9])))
    assert pipeline.tracker.conns()["status"][0] & Status.ASSURED
    return pipeline


def crowded(wire, pipeline: RulePipeline, **more: Any) -> dict[str, int]:
    """A ring full of frames, each eighth of the known connection or ARP, through a loop: its counters. more: options of the loop."""
    umem = Umem(8192)
    with wire.here.entered(), open_interface(umem, wire.near, Wanted(filter=EVERYTHING, xsk=XskSettings(ring=RING))) as opened:
        (iface,) = opened.ifaces
        loop = Loop(pipeline, [iface, Null(umem, "out", ordinal=1)], **more)
        iface.tidy_up()
        with wire.end() as far:
            for i in range(RING):
                far.send({0: craft.udp(A, B, 1, 53), 4: ARP}.get(i % 8) or craft.udp(A, B, 1000 + i, 53))
        loop.run(0.05)
        until(lambda: loop.run(0.01) == 0, "an empty ring")
        counts = loop.counters()
    umem.check()
    return counts


@pytest.mark.parametrize("flowtable", [True, False])
def test_of_a_full_ring_the_flow_table_s_packets_go_first(wire, flowtable):
    """1,024 frames wait, each eighth of a known connection or ARP. When the first 256 have been taken, the ring is three quarters full: 128 may walk,
    and of 192 that would have to, 64 are dropped. Behind the second 256 it is half full, and everything walks. Without a flow table none is first."""
    pipeline = knowing(flowtable)
    counts = crowded(wire, pipeline)
    turned_away = pipeline.count(Reason.R_OVERLOAD)
    assert counts["frames"] == RING
    assert turned_away == (64 if flowtable else 0)
    assert counts["sent"] == RING - RING // 8 - turned_away
    assert pipeline.summary()["dropped"] == turned_away


@pytest.mark.parametrize("first", ["", "csum ip4h pipe action "], ids=["at once", "behind another action"])
def test_behind_a_nic_what_it_knows_goes_first(wire, first):
    """The same with a NIC that has the known connection: of those that it misses, wherever in a rule, no more may walk."""
    pipeline = knowing(True, COMMIT.replace("action ct", f"action {first}ct"))
    offload = simulated(profile.load("perfect"), "first-come")(pipeline, 0, 1)
    offload.turn(time.time_ns())
    assert offload.figures()["flows"] == {"wanted": 1, "installed": 1}
    counts = crowded(wire, pipeline, front=offload.front, turn=offload.turn)
    assert counts["frames"] == RING and offload.figures()["packets"]["hardware"] >= RING // 8
    assert pipeline.count(Reason.R_OVERLOAD) == 64
    assert counts["sent"] == RING - RING // 8 - 64


def opening(v6: bool = False, **more: object) -> bytes:
    return craft.tcp(A6 if v6 else A, B6 if v6 else B, 1000, 80, "S", **more)


@pytest.mark.parametrize("frame", [opening(), opening(True), opening(options=b"\1\1\1\1"), craft.tcp(A, B, 1, 2, "SEC")])
def test_openings_beyond_the_rate_are_dropped_and_counted(interfaces, frame):
    with steering(Filter(syn_rate=LEAST)) as made:
        start = time.monotonic()
        taken = sum(made.test(frame) for _ in range(2000))
        windows = (time.monotonic() - start) / (1 << 20) * 1e9
        assert 2 <= taken <= 2 * (windows + 2) < 2000
        assert made.guard.dropped(0) == 2000 - taken


def test_options_of_ip_hide_nothing(interfaces):
    """A header of every length there is."""
    with steering(Filter(syn_rate=LEAST)) as made:
        for words in range(5, 16):
            frame = craft.eth(craft.ipv4(A, B, 6, opening()[34:], options=b"\1" * 4 * (words - 5)))
            taken = sum(made.test(frame) for _ in range(1000))
            assert 2 <= taken < 1000, words


@pytest.mark.parametrize(
    "frame",
    [
        *(craft.tcp(A, B, 1, 2, flags) for flags in ("SA", "A", "FA", "R")),
        craft.tcp(A6, B6, 1, 2, "SA"),
        craft.udp(A, B, 1, 2, bytes(20)),
        craft.udp(A6, B6, 1, 2, b"\0" * 5 + b"\2" * 20),
        craft.eth(craft.ipv4(A, B, 6, opening()[34:], frag=100)),
        craft.eth(craft.ipv4(A, B, 6, opening()[34:46])),
    ],
)
def test_what_opens_nothing_passes(interfaces, frame):
    with steering(Filter(syn_rate=LEAST)) as made:
        assert all(made.test(frame) for _ in range(500))
        assert made.guard.dropped(0) == 0


def test_an_interface_counts_what_was_shed_in_front_of_it(wire):
    with wire.here.entered(), open_interface(Umem(4096), wire.near, Wanted(filter=Filter(syn_rate=LEAST))) as opened:
        with wire.end() as far:
            for _ in range(500):
                far.send(opening())
        counts = opened.ifaces[0].statistics
        until(lambda: opened.ifaces[0].receive_batch(64) is not None and counts()["rx"] + counts()["rx_shed"] == 500, "all openings")
        assert counts()["rx_shed"] > 400
        opened.close()
        assert counts()["rx_shed"] > 400


def test_the_rate_has_bounds_and_a_node_has_one_without_being_asked():
    with pytest.raises(ConfigError, match="syn_rate: 5: expected 0, or 1000 to 1000000000"):
        Filter(syn_rate=5)
    head = 'rules = "r"\n[[iface]]\nname = "eth0"\n'
    assert parse_config(head, "n").iface[0].wanted(0).filter.syn_rate == 200_000
    assert parse_config(head + "filter = { all = true, syn_rate = 0 }\n", "n").iface[0].wanted(0).filter == EVERYTHING


def test_connections_go_on_in_a_flood_and_the_table_keeps_its_bounds(interfaces):
    """Three seconds of it; bench.flood goes on for as long as one likes."""
    most = 20_000
    seen, stats = measured(most, 1000, 3)
    figures = told(seen, stats, most)
    assert figures["broken"] == 0 and figures["answers"] > 8, figures
    assert figures["most_connections"] <= most and stats["tracker"]["early_drop"] > 1000, figures
    assert figures["not_received"]["rx_shed"] > 100_000, figures
