"""What a node measures, and what Prometheus gets of it: names, labels, sums over workers, and a number of series that traffic cannot drive up."""

from __future__ import annotations

import socket
import urllib.request
from collections import Counter
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open_metrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from ctcore.config import Config
from ctcore.types import Proto
from datapath import craft
from datapath.live import exposition, figures
from datapath.live.metrics import LOST, MENDED, METRICS, OTHER, OWN, SYSCALLS, ZoneNames, buckets, counted, gathered
from datapath.live.metrics_server import MetricsServer, bound
from datapath.live.rows import COUNTERS, RING_DROPS
from datapath.worker import Pipeline
from pcap_tests.test_datapath.test_live.noded import COMMIT, running

A, B = "10.0.0.1", "10.0.0.2"
LABELS = {f"ctmirror_{metric.name}": metric.labels for metric in METRICS if metric.labels}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def measured(folder, zones: int = 32, **sections):
    """A node, and where its metrics are."""
    port = free_port()
    with (
        running(folder, sections.pop("rules", COMMIT), **sections) as rig,
        MetricsServer(rig.node, bound(f"127.0.0.1:{port}"), zones=zones) as server,
    ):
        yield rig, server, f"http://127.0.0.1:{port}"


def got(url: str, accept: str = "") -> tuple[str, str]:
    """Content type and body."""
    with urllib.request.urlopen(urllib.request.Request(url, headers={"Accept": accept}), timeout=10) as answer:
        return answer.headers["Content-Type"], answer.read().decode()


def samples(text: str) -> dict[str, dict[tuple[str, ...], float]]:
    """By name: value by labels."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in parse_text(text):
        for sample in family.samples:
            order = LABELS.get(family.name, tuple(sample.labels))
            found.setdefault(sample.name, {})[tuple(sample.labels[label] for label in order if label in sample.labels)] = sample.value
    return found


def some_traffic(rig) -> None:
    rig.send(craft.tcp(A, B, 40000, 80, "S", seq=1), craft.tcp(A, B, 40001, 80, "S", l4_checksum=1), craft.udp(A, B, 4000, 53, b"?"))
    rig.send(craft.udp(B, A, 53, 4000, b"!"), craft.frame(A, B, 99, bytes(8)))
    rig.send(craft.udp("2001:db8::1", "2001:db8::2", 4000, 53, b"?"), iface=1)


def test_a_scrape_has_what_the_node_has_counted(tmp_path):
    with measured(tmp_path) as (rig, _, url):
        some_traffic(rig)
        kind, text = got(f"{url}/metrics")
    found = samples(text)
    assert kind == "text/plain; version=0.0.4; charset=utf-8"
    assert found["ctmirror_connections"] == {
        ("0", "tcp", "SYN_SENT"): 1, ("0", "udp", "replied"): 1, ("0", OTHER, "unreplied"): 1, ("5", "udp", "unreplied"): 1,
    }  # fmt: skip
    assert (found["ctmirror_table_connections"], found["ctmirror_table_capacity"]) == ({(): 4}, {(): 262144})
    assert found["ctmirror_packets_total"] == {("accept",): 6, ("drop",): 0, ("held",): 0}
    assert found["ctmirror_state_packets_total"][("new",)] == 4 and found["ctmirror_state_packets_total"][("invalid",)] == 1
    assert found["ctmirror_reason_packets_total"][("tcp_checksum",)] == 1
    assert found["ctmirror_tracker_events_total"][("new",)] == 4 and found["ctmirror_evictions_total"] == {(): 0}
    admissions = found["ctmirror_flowtable_admissions_total"]
    assert (admissions[("admitted",)], admissions[("tcp_state",)], admissions[("proto",)]) == (2, 1, 1)
    assert found["ctmirror_iface_up"] == {("eth0",): 1, ("eth1",): 1}
    assert found["ctmirror_ring_drops_total"][("eth0", "rx", "ring_full")] == 0
    assert found["ctmirror_rules"] == {(): 2}
    assert found["process_resident_memory_bytes"][()] > 1 << 20


def test_open_metrics_say_the_same(tmp_path):
    with measured(tmp_path) as (rig, _, url):
        some_traffic(rig)
        kind, text = got(f"{url}/metrics", "application/openmetrics-text; version=1.0.0, text/plain; q=0.5")
        plain = samples(got(f"{url}/metrics")[1])
    assert kind.startswith("application/openmetrics-text; version=")
    strict = {sample.name: sample.value for family in parse_open_metrics(text) for sample in family.samples if not sample.labels}
    assert strict["ctmirror_table_connections"] == plain["ctmirror_table_connections"][()] == 4


def test_every_metric_of_the_table_is_there_with_help_and_type(tmp_path):
    """But for those of parts that this node has not: translation, a router, hardware."""
    with measured(tmp_path) as (rig, _, url):
        some_traffic(rig)
        text = got(f"{url}/metrics")[1]
    families = {family.name: family for family in parse_text(text) if family.name.startswith("ctmirror_")}
    absent = {"nat_pool_size", "nat_pool_in_use", "nat_pool_exhausted", "router_events", "router_neighbours"}
    absent |= {metric.name for metric in METRICS if metric.name.startswith("offload_")}
    wanted = {f"ctmirror_{metric.name}": metric for metric in METRICS if metric.name not in absent}
    assert set(families) == set(wanted) | {name for name, *_ in OWN}
    for name, metric in wanted.items():
        assert (families[name].type, families[name].documentation) == (metric.kind, metric.help)
        assert all(set(sample.labels) - {"le"} == set(metric.labels) for sample in families[name].samples), name


def test_pools_and_a_router_are_measured_where_there_are_any(tmp_path):
    rules = (
        "tc qdisc add dev eth0 clsact\n"
        "tc filter add dev eth0 ingress prio 1 protocol ip flower action ct commit nat src addr 192.0.2.1 port 1000-1999 pipe action pass\n"
    )
    with measured(tmp_path, rules=rules) as (rig, _, url):
        rig.send(craft.udp(A, B, 4000, 53, b"?"))
        found = samples(got(f"{url}/metrics")[1])
        (labels,) = found["ctmirror_nat_pool_in_use"]
        assert labels[1:] == ("snat", "192.0.2.1:1000-1999"), "which range it is stands in its label"
        assert (labels[0], found["ctmirror_nat_pool_in_use"][labels], found["ctmirror_nat_pool_size"][labels]) == ("0", 1, 1000)
        assert found["ctmirror_nat_pool_exhausted_total"][labels] == 0
        router = {"router": {"forwarded": 3, "neighbours": 2}}
        events, neighbours = (next(metric for metric in METRICS if metric.name == name) for name in ("router_events", "router_neighbours"))
        assert gathered(events, [router, router], ZoneNames()) == {("forwarded",): 6}
        assert gathered(neighbours, [router], ZoneNames()) == {(): 2}


def test_scrapes_that_come_too_often_get_the_last_figures(tmp_path, monkeypatch):
    looked = []
    with measured(tmp_path) as (rig, server, url):
        monkeypatch.setattr(exposition, "look", lambda node: looked.append(1) or figures.look(node))
        first = got(f"{url}/metrics")[1]
        some_traffic(rig)
        assert all(got(f"{url}/metrics")[1] == first for _ in range(20)) and len(looked) == 1
        server._exposition.read_at -= exposition.FRESH
        assert samples(got(f"{url}/metrics")[1])["ctmirror_table_connections"] == {(): 4} and len(looked) == 2


def test_what_was_there_is_zero_afterwards(tmp_path):
    with measured(tmp_path) as (rig, server, url):
        some_traffic(rig)
        got(f"{url}/metrics")
        rig.job(lambda node: node.pipeline.tracker.flush())
        server._exposition.read_at -= exposition.FRESH
        found = samples(got(f"{url}/metrics")[1])["ctmirror_connections"]
    assert len(found) == 4 and set(found.values()) == {0}


def test_zones_beyond_the_limit_are_one(tmp_path):
    """A scan of zones cannot make series without end."""
    rules = "tc qdisc add dev eth0 clsact\n" + "".join(
        f"tc filter add dev eth0 ingress prio {zone} protocol ip flower ip_proto udp dst_port {zone} action ct commit zone {zone} pipe action pass\n"
        for zone in range(1, 9)
    )
    with measured(tmp_path, zones=3, rules=rules) as (rig, _, url):
        rig.send(*(craft.udp(A, B, 4000, zone, b"?") for zone in range(1, 9)))
        found = samples(got(f"{url}/metrics")[1])["ctmirror_connections"]
    assert found == {("1", "udp", "unreplied"): 1, ("2", "udp", "unreplied"): 1, ("3", "udp", "unreplied"): 1, (OTHER, "udp", "unreplied"): 5}


@given(st.lists(st.integers(0, 65535)), st.integers(0, 5))
def test_a_zone_keeps_its_label(zones, most):
    names = ZoneNames(most)
    first = {zone: names.name(zone) for zone in zones}
    assert {zone: names.name(zone) for zone in zones} == first
    assert len(set(first.values()) - {OTHER}) <= most and all(name in (str(zone), OTHER) for zone, name in first.items())


# --- figures ----------------------------------------------------------------------------------------------------------------------------------


@given(st.lists(st.lists(st.integers(0, 2**32 - 1), max_size=30), max_size=4))
def test_parts_of_a_census_are_one(parts):
    assert counted([np.array(part, dtype=np.uint32) for part in parts]) == Counter(code for part in parts for code in part)


def test_a_census_counts_what_select_finds():
    from ctcore.filter import Filter
    from datapath.frame import frames_of

    pipeline = Pipeline(Config())
    frames = [craft.tcp(A, B, 1000 + i, 80, "S", seq=1) for i in range(50)] + [craft.udp(A, B, 1000 + i, 53, b"?") for i in range(30)]
    frames += [craft.udp(B, A, 53, 1000 + i, b"!") for i in range(20)] + [craft.tcp(B, A, 80, 1000 + i, "SA", seq=1, ack=2) for i in range(10)]
    memory, rows = frames_of(frames, np.arange(len(frames), dtype=np.int64) + 10**18)
    pipeline.process(memory, rows)
    tracker = pipeline.tracker
    tracker.delete(Filter(proto=17, dport=53, sport=1029))
    codes = counted([tracker.census(slots=range(first, first + 7)) for first in range(0, tracker.slots, 7)])
    udp, tcp = int(Proto.PROTO_UDP) << 8, int(Proto.PROTO_TCP) << 8
    assert codes == {tcp | 1: 40, tcp | 2: 10, udp: 9, udp | 1: 20}
    assert sum(codes.values()) == tracker.count == len(tracker.census()) and len(tracker.census(slots=range(10**6, 10**7))) == 0


@given(st.lists(st.integers(0, 2**40), min_size=32, max_size=32))
def test_buckets_only_rise_and_the_last_one_has_all(numbers):
    found = buckets(np.array(numbers, dtype=np.uint64))
    bounds, counts = zip(*found, strict=True)
    assert list(counts) == sorted(counts) and counts[-1] == sum(numbers) and bounds[-1] == "+Inf"
    assert list(map(float, bounds)) == sorted(map(float, bounds)) and float(bounds[0]) == pytest.approx(1.024e-6)


def test_a_bucket_s_bound_is_that_of_the_loop_s_power_of_two():
    """Row i of the loop's histogram is 2^i to 2^(i+1) - 1 ns."""
    histogram = np.zeros(32, dtype=np.uint64)
    histogram[12] = 5
    assert [number for bound, number in buckets(histogram) if float(bound) == 4096e-9] == [0]
    assert [number for bound, number in buckets(histogram) if float(bound) == 8192e-9] == [5]


def test_no_counter_is_left_out(tmp_path):
    """Of interfaces and of the loop, each is in a metric of its own; all others are labels as they are."""
    traffic = {"rx", "rx_bytes", "tx", "tx_bytes"}
    assert {*RING_DROPS, *MENDED, *SYSCALLS, *traffic} == set(COUNTERS)
    with running(tmp_path) as rig:
        look = rig.job(figures.look)
    assert {*LOST, "sent", "rounds", "waits", "frame_ns", "frames"} == set(look["loop"])
    named = {name.partition("_")[0] for name in look["flowtable"]}
    assert named == {"flows", "admitted", "served", "teardown", "refused"}


def test_several_workers_are_one_node(tmp_path):
    with running(tmp_path) as rig:
        some_traffic(rig)
        look = rig.job(figures.look) | {"census": {17 << 8: 2}}
    down = look | {"ifaces": [("eth0", "xdp", "down", look["ifaces"][0][3])]}

    def whole(name):
        return gathered(next(metric for metric in METRICS if metric.name == name), [look, down], ZoneNames())

    assert whole("connections") == {("0", "udp", "unreplied"): 4}
    assert whole("packets")[("accept",)] == 12 and whole("table_capacity") == {(): 2 * 262144}
    assert whole("iface_up") == {("eth0",): 0, ("eth1",): 1} and whole("rules") == {(): 2}
