"""Limits of zones: how many connections each may have, and places that no flood in another zone can take."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctcore.config import Config
from ctcore.errors import ConfigError
from ctcore.types import EvictedFor
from datapath import craft
from pcap_tests.scene import Scene, established, events, udp
from pcap_tests.test_ctcore.test_equality import EXAMPLES, CrowdPlay, config, run, series
from pcap_tests.test_ctcore.twins import Twins

ONE = 1  # bucket: everything is near everything


def flood(scene: Scene, number: int, *, zone: int, first: int = 1000) -> list[str]:
    """So many questions, each of a connection of its own. Returns what became of each: its reason."""
    return [udp(scene.tracker, scene=scene, zone=zone, port=(first + n, 53)).orig().reason for n in range(number)]


def assured(scene: Scene, number: int, *, zone: int) -> None:
    for n in range(number):
        established(scene.tracker, scene=scene, zone=zone, port=(20000 + n, 80))


# --- limits ----------------------------------------------------------------------------------------------------------------------------


def test_a_limit_holds_for_each_zone_and_evicts_nobody(make_tracker):
    tracker = make_tracker(zone_limit=3, buckets=ONE)
    scene = Scene(tracker)
    assert flood(scene, 5, zone=1) == ["ok"] * 3 + ["zone_limit"] * 2
    assert flood(scene, 2, zone=2) == ["ok"] * 2
    assert tracker.zone_counts() == {1: 3, 2: 2}
    counters = tracker.counters()
    assert (counters["zone_limit"], counters["drop"], counters["early_drop"], counters["new"]) == (2, 0, 0, 5)
    udp(tracker, scene=scene, zone=1, port=(9, 53)).orig().is_("not-seen", reason="zone_limit", verdict="drop", conn=None, zone=1)


def test_a_zones_own_limit_goes_before_that_of_all(make_tracker):
    tracker = make_tracker(zone_limit=2, zone_limits={1: 4, 2: 0})
    scene = Scene(tracker)
    for zone, passed in ((0, 2), (1, 4), (2, 10)):
        assert flood(scene, 10, zone=zone).count("ok") == passed


def test_known_connections_of_a_full_zone_are_served(make_tracker):
    tracker = make_tracker(zone_limits={1: 1})
    conn = established(tracker, zone=1)
    udp(tracker, scene=conn.scene, zone=1).orig().is_("not-seen", reason="zone_limit")
    conn.reply("A").is_("established", conn=0)


def test_what_ends_makes_room(make_tracker):
    tracker = make_tracker(zone_limits={1: 2})
    scene = Scene(tracker)
    flood(scene, 2, zone=1)
    scene.wait(30)
    assert flood(scene, 3, zone=1) == ["ok", "ok", "zone_limit"]
    tracker.flush()
    assert tracker.zone_counts() == {}


def test_reopening_needs_no_room_in_its_zone(make_tracker):
    tracker = make_tracker(zone_limits={1: 1})
    conn = established(tracker, zone=1)
    conn.orig("R").is_("established", l4state="CLOSE")
    conn.orig("S", seq=5000).is_("new", reason="tcp_reopened", conn=1)


def test_an_invalid_packet_takes_no_place(make_tracker):
    tracker = make_tracker(zone_limits={1: 1})
    scene = Scene(tracker)
    scene.send(craft.tcp("10.0.0.1", "10.0.0.2", 1, 2, "FA"), zone=1).is_("invalid", reason="tcp_not_opening")
    assert flood(scene, 1, zone=1) == ["ok"]


@pytest.mark.parametrize("zone_dir", ["original", "reply"])
def test_a_zone_of_one_direction_counts_like_any(make_tracker, zone_dir):
    tracker = make_tracker(zone_dir=zone_dir, zone_limits={5: 2})
    assert flood(Scene(tracker), 3, zone=5) == ["ok", "ok", "zone_limit"]


# --- reserves --------------------------------------------------------------------------------------------------------------------------


def test_a_flood_cannot_take_what_is_reserved(make_tracker):
    """Ten places, four of them zone 7's: all others have six, whether the connections there may be evicted or not."""
    tracker = make_tracker(max=10, buckets=ONE, zone_reserves={7: 4})
    scene = Scene(tracker)
    assured(scene, 6, zone=1)
    assert flood(scene, 20, zone=1) == ["table_full"] * 20
    assert flood(scene, 4, zone=7) == ["ok"] * 4
    assert tracker.zone_counts() == {1: 6, 7: 4}
    assert tracker.counters()["early_drop"] == 0


def test_beyond_its_reserve_a_zone_is_as_others_are(make_tracker):
    tracker = make_tracker(max=10, buckets=ONE, zone_reserves={7: 4})
    scene = Scene(tracker)
    assured(scene, 9, zone=7)
    assert flood(scene, 5, zone=1) == ["ok"] * 5
    assert tracker.zone_counts() == {1: 1, 7: 9}, "the flood gets the one shared place that is left, and takes it from itself from then on"
    assert tracker.counters()["early_drop"] == 4


def test_what_lies_within_a_reserve_is_not_evicted(make_tracker):
    """Zone 7's connections are not assured, and yet the flood has to evict its own."""
    tracker = make_tracker(max=10, buckets=ONE, zone_reserves={7: 4}, events=frozenset({"destroy"}))
    scene = Scene(tracker)
    flood(scene, 4, zone=7)
    assert flood(scene, 50, zone=1) == ["ok"] * 50
    assert tracker.zone_counts() == {1: 6, 7: 4}
    assert {int(event.record["conn"]["flow"]["key"]["zone"][0]) for event in events(tracker)} == {1}


def test_what_is_borrowed_is_given_back(make_tracker):
    """Zone 7 had more than its reserve; of that the others may evict, until it has no more than its own."""
    tracker = make_tracker(max=10, buckets=ONE, zone_reserves={7: 4})
    scene = Scene(tracker)
    flood(scene, 10, zone=7)
    assured(scene, 6, zone=1)
    assert tracker.zone_counts() == {1: 6, 7: 4}
    assert flood(scene, 1, zone=1, first=5000) == ["table_full"]


def test_one_goes_for_one_and_it_is_the_oldest(make_tracker):
    tracker = make_tracker(max=10, buckets=ONE, zone_reserves={7: 1})
    scene = Scene(tracker)
    flood(scene, 9, zone=1)
    flood(scene, 2, zone=1, first=5000)
    assert scene.ordinals() == list(range(2, 11))
    assert {int(row["why"]) for row in tracker.evictions()} == {EvictedFor.FOR_ZONE}, "there is a place left, but it is zone 7's"


def test_a_reserve_of_the_whole_table(make_tracker):
    tracker = make_tracker(max=4, buckets=ONE, zone_reserves={7: 4})
    scene = Scene(tracker)
    assert flood(scene, 3, zone=1) == ["table_full"] * 3
    assert flood(scene, 6, zone=7) == ["ok"] * 6
    assert tracker.zone_counts() == {7: 4}


def test_without_reserves_early_drop_is_the_kernels(make_tracker):
    """A limit that nobody reaches changes nothing: a bucket's worth goes."""
    for settings in ({}, {"zone_limit": 100}):
        tracker = make_tracker(max=4, buckets=ONE, **settings)
        assert flood(Scene(tracker), 5, zone=1) == ["ok"] * 5
        assert tracker.count == 1


# --- what cannot be --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"max": 10, "zone_reserves": {1: 6, 2: 5}}, "zone_reserves: 11 in all: expected at most max, 10"),
        ({"zone_limits": {1: 5}, "zone_reserves": {1: 6}}, "zone_reserves: zone 1: 6: expected at most its limit, 5"),
        ({"zone_limit": 5, "zone_reserves": {1: 6}}, "zone_reserves: zone 1: 6: expected at most its limit, 5"),
        ({"zone_limits": {65536: 5}}, "zone_limits: zone 65536: expected 0 to 65535"),
        ({"zone_reserves": {1: -1}}, "zone_reserves: zone 1: -1: expected 0 to 67107840 connections"),
        ({"zone_limit": -1}, "zone_limit = -1: expected 0 to 67107840"),
    ],
)
def test_limits_that_cannot_be(make_tracker, settings, message):
    with pytest.raises(ConfigError, match=message):
        make_tracker(**settings)


# --- engine and model, and the promise ---------------------------------------------------------------------------------------------------

CAPACITY = 16
RESERVES = st.sampled_from([{}, {1: 3}, {0: 2, 1: 5}, {65535: 16}, {0: 1, 1: 1, 65535: 1}])
LIMITS = st.sampled_from([{}, {1: 6}, {0: 0, 65535: 20}])


SETTINGS = {
    "max": st.just(CAPACITY),
    "buckets": st.sampled_from([1, 2, 30]),
    "zone_limit": st.sampled_from([0, 16]),
    "zone_limits": LIMITS,
    "zone_reserves": RESERVES,
    "zone_dir": st.sampled_from(["both", "original"]),
    "eviction_buffer": st.sampled_from([1, 10, 1000]),
}


@given(config(**SETTINGS), series)
@EXAMPLES
def test_engine_and_model_agree(config, data):
    crowd = CrowdPlay()

    def play(twins: Twins, step: bytes) -> None:
        crowd(twins, step)
        if step[-1] & 7 == 0:
            twins.take_evictions()

    run(config, data, play)


@given(st.lists(st.tuples(st.sampled_from([0, 1, 2]), st.integers(0, 40), st.sampled_from(["ask", "answer", "wait"])), max_size=120))
@EXAMPLES
def test_no_zone_ever_loses_its_reserve_to_another(steps):
    """While a zone has no more connections than its reserve, a newcomer of it is let in, and none of its own is evicted for another zone's."""
    reserves = {1: 3, 2: 4}
    twins = Twins(Config(max=10, buckets=ONE, zone_reserves=reserves))
    for zone, port, what in steps:
        twins.wait(5 if what == "wait" else 0)
        twins.zone = zone
        d = int(what == "answer")
        ends = (("10.0.0.1", 1000 + port), ("10.0.0.2", 53))
        (src, sport), (dst, dport) = ends[d], ends[1 - d]
        before = twins.engine.zone_counts()
        twins.packet(craft.udp(src, dst, sport, dport))
        reasons = twins.flush_batch()["reason"]
        evicted = twins.engine.evictions()
        twins.model.evictions()
        if before.get(zone, 0) < reserves.get(zone, 0):
            assert reasons[0] == 0 and not len(evicted)
        for row in evicted:
            own = int(row["key"]["zone"])
            assert own == zone or before[own] > reserves.get(own, 0)
