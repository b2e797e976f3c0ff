"""What the kernel has otherwise than it is meant, connection by connection and zone by zone. Filters: test_offload_drift; all: pcap_tests/vm."""

from __future__ import annotations

import numpy as np
import pytest

from ctcore.ctnetlink import Ask
from ctcore.types import CONN_DTYPE, Status
from offload.conntrack_entries import ConntrackEntries
from offload.drift import Drift, Entries, Finding, Zone, entries_of, of_connections, of_states, of_zones, zones_of
from offload.entry_lists import STATE_DTYPE
from offload.mirror import AUDIT_DTYPE, Found
from offload.netlink.conntrack import HW_OFFLOAD, OFFLOAD
from pcap_tests.test_datapath.tabled import Tcp
from pcap_tests.test_datapath.test_pipeline.laboratory import CLIENT
from pcap_tests.test_offload.entering import conntrack, told_to
from pcap_tests.test_offload.mirrored import QuickRig

ALL = int(Status.SEEN_REPLY | Status.ASSURED | Status.CONFIRMED)


def kinds(found) -> list[tuple[Drift, str]]:
    return [(finding.what, finding.about) for finding in found]


def drift(rig: QuickRig) -> list[tuple[Drift, str]]:
    return kinds(of_connections(rig.mirror.audit(rig.nic.held()), rig.nic.states()))


@pytest.fixture
def rig(place):
    with ConntrackEntries() as backend:
        yield QuickRig(nic=backend)


def test_what_is_as_it_is_meant_is_nothing(rig):
    Tcp(rig).opened()
    rig.settle()
    assert drift(rig) == []


def test_what_somebody_has_deleted_lacks_until_it_is_heard_of(rig):
    Tcp(rig).opened()
    Tcp(rig, port=40_001).opened()
    rig.settle()
    conntrack("-D", "-p", "tcp", "--orig-port-src", "40001")
    assert drift(rig) == [(Drift.ENTRY_MISSING, "flow 1, original direction"), (Drift.ENTRY_MISSING, "flow 1, reply direction")]
    conntrack("-F")
    assert len(drift(rig)) == 4
    rig.wait(2)
    rig.settle()
    assert drift(rig) == []


def test_a_mark_that_somebody_has_changed(rig):
    Tcp(rig).opened()
    rig.settle()
    conntrack("-U", "-p", "tcp", "-s", CLIENT, "--mark", "9")
    (finding,) = of_connections(rig.mirror.audit(rig.nic.held()), rig.nic.states())
    assert finding.drift and finding.told() == "mark changed: connection 0: 0x9, and was made with 0x0"


def test_words_for_what_an_audit_finds():
    audit, states = np.zeros(2, dtype=AUDIT_DTYPE), np.zeros(1, dtype=STATE_DTYPE)
    audit["cookie"], audit["dir"], audit["found"], audit["row"] = [6, 9], [0, 1], [Found.EXTRA, Found.DIFFERENT], [3, 4]
    states["cookie"], states["conn"] = 6, 77
    assert kinds(of_connections(audit, states)) == [
        (Drift.ENTRY_EXTRA, "connection 77, original direction"), (Drift.ENTRY_CHANGED, "flow 4, reply direction"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("counted", "packets", "status", "noted"),
    [(True, 5, 0, True), (True, 0, 0, False), (False, 5, 0, False), (True, 5, OFFLOAD, False), (True, 5, OFFLOAD | HW_OFFLOAD, False)],
)
def test_a_connection_that_no_flow_table_has_is_a_note(counted, packets, status, noted):
    states = np.zeros(1, dtype=STATE_DTYPE)
    states["counted"], states["packets"], states["status"] = counted, packets, status | ALL
    found = list(of_connections(np.zeros(0, dtype=AUDIT_DTYPE), states))
    assert [(finding.what, finding.drift) for finding in found] == [(Drift.NOT_OFFLOADED, False)] * noted


def test_of_many_entries_those_with_other_marks_come_first():
    states = np.zeros(4, dtype=STATE_DTYPE)
    states["conn"], states["mark"], states["meant"] = [0, 1, 2, 3], [1, 0, 1, 5], [1, 0, 1, 4]
    states["counted"], states["packets"], states["status"] = True, 5, [0, OFFLOAD, OFFLOAD | HW_OFFLOAD, 0]
    assert kinds(of_states(states)) == [
        (Drift.MARK_CHANGED, "connection 3"), (Drift.NOT_OFFLOADED, "connection 0"), (Drift.NOT_OFFLOADED, "connection 3"),
    ]  # fmt: skip
    assert entries_of(states) == Entries(4, 2, 1) and entries_of(states[:0]) == Entries(0, 0, 0)


def test_zones_are_counted():
    rows = np.zeros(6, dtype=CONN_DTYPE)
    key = rows["flow"]["key"]
    key["zone"] = np.array([5, 5, 5, 5, 0, 9])[:, None]
    key["proto"] = np.array([6, 6, 17, 1, 6, 47])[:, None]
    rows["tcp"]["state"] = [3, 0, 0, 0, 7, 0]
    status = np.array([ALL, ALL | OFFLOAD, ALL | OFFLOAD | HW_OFFLOAD, ALL, ALL, ALL | OFFLOAD], dtype=np.uint32)
    zones = zones_of(rows, status)
    assert zones == [Zone(0, 1, 0, 0, 0), Zone(5, 4, 3, 2, 1), Zone(9, 1, 1, 1, 0)]
    assert list(of_zones(zones, {5})) == [
        Finding(Drift.NOT_OFFLOADED, "zone 5", "1 of 3 established: none of their packets came lately, or none by a ct action"),
        Finding(Drift.OFFLOADED_ELSEWHERE, "zone 9", "1 of its connections, and no rule has this zone"),
    ]
    assert zones_of(rows[:0], status[:0]) == []


def test_zones_of_the_running_kernel(kernel):
    from pcap_tests.test_offload.commanded import Flow

    told_to(kernel, Ask.CREATE, Flow(1, zone=5), Flow(2, zone=5, dport=1), Flow(3))
    assert zones_of(*kernel.all()) == [Zone(0, 1, 1, 0, 0), Zone(5, 2, 2, 0, 0)]
