"""The audit of evictions: who had to go, for whom, and why."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctcore.errors import ConfigError
from ctcore.nat_rules import NatRule, Range
from ctcore.types import Dir, EvictedFor
from datapath import craft
from pcap_tests.scene import SERVER, START, Scene, established, events, udp
from pcap_tests.test_ctcore.test_equality import EXAMPLES, CrowdPlay, config, run, series
from pcap_tests.test_ctcore.twins import Twins

ONE = 1  # bucket: everything is near everything


def test_nobody_is_evicted_from_a_table_with_room(make_tracker):
    tracker = make_tracker(max=4, buckets=ONE)
    for n in range(4):
        udp(tracker, port=(n, 53)).orig()
    assert len(tracker.evictions()) == 0


def test_who_for_whom_and_why(make_tracker):
    tracker = make_tracker(max=2, buckets=ONE)
    scene = Scene(tracker)
    established(tracker, scene=scene)
    victim = udp(tracker, scene=scene, zone=3, port=(1000, 53))
    victim.orig(b"four")
    victim.reply(b"answer")
    entry = victim.entry
    scene.wait(5)
    newcomer = udp(tracker, scene=scene, zone=4, port=(9, 53))
    newcomer.orig().is_("new", conn=2)
    (row,) = tracker.evictions()
    assert (int(row["conn"]), int(row["time"]), int(row["why"])) == (1, START + 5 * 10**9, EvictedFor.FOR_TABLE)
    assert row["key"].tobytes() == entry["flow"]["key"][0].tobytes()
    assert row["newcomer"].tobytes() == newcomer.entry["flow"]["key"][0].tobytes()
    assert row["packets"].tolist() == [1, 1]
    assert row["bytes"].tolist() == entry["flow"]["bytes"].tolist()
    assert int(row["status"]) == int(entry["status"])


def test_a_bucket_that_goes_for_one_newcomer(make_tracker):
    tracker = make_tracker(max=4, buckets=ONE, events=frozenset({"destroy"}))
    scene = Scene(tracker)
    for n in range(5):
        udp(tracker, scene=scene, port=(n, 53)).orig()
    rows = tracker.evictions()
    assert sorted(rows["conn"].tolist()) == sorted(event.conn for event in events(tracker)) == [0, 1, 2, 3]
    assert len({row["newcomer"].tobytes() for row in rows}) == 1
    assert tracker.counters()["early_drop"] == 4


def test_even_a_packet_that_turns_out_invalid_is_named(make_tracker):
    tracker = make_tracker(max=1, buckets=ONE)
    scene = Scene(tracker)
    udp(tracker, scene=scene).orig()
    scene.send(craft.tcp("10.0.0.1", "10.0.0.2", 5, 6, "FA")).is_("invalid")
    (row,) = tracker.evictions()
    assert (int(row["newcomer"]["sport"]), int(row["newcomer"]["dport"])) == (5, 6)


def test_they_are_told_once_and_what_does_not_fit_is_counted(make_tracker):
    tracker = make_tracker(max=1, buckets=ONE, eviction_buffer=3)
    scene = Scene(tracker)
    for n in range(6):
        udp(tracker, scene=scene, port=(n, 53)).orig()
    assert tracker.evictions_lost == tracker.counters()["evictions_lost"] == 2
    assert tracker.evictions()["conn"].tolist() == [0, 1, 2]
    assert len(tracker.evictions()) == 0
    udp(tracker, scene=scene, port=(99, 53)).orig()
    assert tracker.evictions()["conn"].tolist() == [5]
    assert tracker.evictions_lost == 2


def test_a_connection_that_is_flushed_or_replaced_was_not_evicted(make_tracker):
    tracker = make_tracker(max=1, buckets=ONE)
    conn = established(tracker)
    conn.orig("R")
    conn.orig("S", seq=5000).is_("new", reason="tcp_reopened")
    tracker.flush()
    assert len(tracker.evictions()) == 0


def test_a_buffer_of_nothing_is_refused(make_tracker):
    with pytest.raises(ConfigError, match="eviction_buffer = 0: expected 1 to"):
        make_tracker(eviction_buffer=0)


@given(config(max=st.sampled_from([4, 16]), buckets=st.sampled_from([1, 2, 30]), eviction_buffer=st.sampled_from([2, 10, 1000])), series)
@EXAMPLES
def test_engine_and_model_agree(config, data):
    crowd = CrowdPlay()

    def play(twins: Twins, step: bytes) -> None:
        crowd(twins, step)
        if step[-1] & 15 == 0:
            twins.take_evictions()

    run(config, data, play)


def test_a_closed_connection_that_gives_its_translated_tuple_to_a_newer_syn(make_tracker):
    """Two ports for three clients of one server: the third one's SYN takes the port of a connection that is over"""
    public, low = ip_address("192.0.2.1"), 5000
    tracker = make_tracker(nat=(NatRule("snat", Range(public, public, (low, low + 1))),), events=frozenset({"destroy"}))
    scene = Scene(tracker)
    for n in range(2):
        client = f"10.0.0.{n + 1}"
        scene.send(craft.tcp(client, SERVER, 1000, 80, "S", seq=100)).is_("new", conn=n)
        port = int(tracker.conn(n)["flow"]["key"][0, Dir.REPLY]["dport"])
        scene.send(craft.tcp(SERVER, str(public), 80, port, "SA", seq=500, ack=101)).is_("established", conn=n)
        scene.send(craft.tcp(client, SERVER, 1000, 80, "R", seq=101)).is_("established", l4state="CLOSE")
    scene.send(craft.tcp("10.0.0.9", SERVER, 1000, 80, "S", seq=9000)).is_("new", conn=2)
    (row,) = tracker.evictions()
    (event,) = events(tracker)
    assert (int(row["conn"]), int(row["why"])) == (event.conn, EvictedFor.FOR_TUPLE)
    assert bytes(row["newcomer"]["src"][:4]) == bytes([10, 0, 0, 9])
