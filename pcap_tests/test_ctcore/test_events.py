"""Events: what is told, when, how often, and what is in it; marks and labels, whose change is told, too."""

from __future__ import annotations

import numpy as np
import pytest

from ctcore.errors import ConfigError
from ctcore.types import Change
from pcap_tests.scene import START, Scene, established, events, syn_sent, udp

REPLY, ASSURED, L4STATE, MARK, LABEL = (
    Change.CHANGE_REPLY, Change.CHANGE_ASSURED, Change.CHANGE_L4STATE, Change.CHANGE_MARK, Change.CHANGE_LABEL,
)  # fmt: skip
ALL = frozenset({"new", "update", "destroy"})


def told(tracker) -> list[tuple[str, int]]:
    return [(event.kind, int(event.record["changes"])) for event in events(tracker)]


def test_a_connections_life(make_tracker):
    tracker = make_tracker(events=ALL)
    conn = established(tracker)
    assert told(tracker) == [("new", 0), ("update", REPLY | L4STATE), ("update", ASSURED | L4STATE)]
    conn.orig("A")
    conn.reply("A")
    assert told(tracker) == []
    conn.orig("FA")
    assert told(tracker) == [("update", L4STATE)]
    conn.reply("R")
    conn.wait(10)
    tracker.expire(conn.scene.now)
    assert told(tracker) == [("update", L4STATE), ("destroy", 0)]


def test_udp_tells_of_reply_and_assured(make_tracker):
    tracker = make_tracker(events=ALL)
    conn = udp(tracker)
    conn.orig()
    conn.reply()
    conn.wait(3).orig()
    conn.orig()
    assert told(tracker) == [("new", 0), ("update", REPLY), ("update", ASSURED)]


def test_an_ignored_reply_is_a_reply(make_tracker):
    tracker = make_tracker(events=ALL)
    syn_sent(tracker).reply("A").is_("established", reason="tcp_ignored")
    assert told(tracker) == [("new", 0), ("update", REPLY)]


def test_resynchronisation_is_told(make_tracker):
    tracker = make_tracker(events=ALL)
    conn = established(tracker)
    tracker.events()
    conn.orig("S", seq=70000)
    conn.reply("SA", seq=9, ack=70001)
    assert told(tracker) == [("update", L4STATE)]


def test_invalid_packets_tell_nothing(make_tracker):
    tracker = make_tracker(events=ALL)
    conn = established(tracker)
    tracker.events()
    conn.orig("A", seq=0x70000000).is_("invalid")
    udp(tracker).orig(b"", l4_checksum=1).is_("invalid")
    assert told(tracker) == []


@pytest.mark.parametrize("kinds", [(), ("new",), ("update",), ("destroy",), ("new", "destroy")])
def test_only_what_is_wanted(make_tracker, kinds):
    tracker = make_tracker(events=frozenset(kinds))
    conn = established(tracker)
    tracker.flush()
    assert {event.kind for event in events(tracker)} == set(kinds)
    assert conn.scene.tracker.events_lost == 0


def test_events_are_told_once(make_tracker):
    tracker = make_tracker(events=ALL)
    udp(tracker).orig()
    assert len(tracker.events()) == 1
    assert len(tracker.events()) == 0


# --- what is in them -------------------------------------------------------------------------------------------------------------------


def test_the_connection_as_it_was_after_the_packet(make_tracker):
    tracker = make_tracker(events=ALL)
    conn = udp(tracker)
    conn.orig()
    (new,) = events(tracker)
    assert (new.record["time"], new.left, new.status, new.conn) == (START, 30, {"confirmed"}, 0)
    assert int(new.record["conn"]["timeout"]) == 30 * 250
    assert new.record["conn"]["flow"]["packets"].tolist() == [1, 0]
    conn.wait(4).reply()
    (update,) = events(tracker)
    assert (update.record["time"], update.left, update.status) == (START + 4_000_000_000, 30, {"confirmed", "seen-reply"})
    assert update.record["conn"].tobytes() != new.record["conn"].tobytes()
    assert np.array_equal(update.record["conn"]["flow"], conn.entry["flow"])


def test_expiry_is_told_with_the_instant_of_the_deadline(make_tracker):
    tracker = make_tracker(events=ALL)
    scene = Scene(tracker)
    scene.wait(0.0011)
    conn = udp(tracker, scene=scene)
    conn.orig()
    scene.wait(1000)
    tracker.expire(scene.now)
    destroy = events(tracker)[-1]
    assert (destroy.kind, destroy.end, destroy.left) == ("destroy", "timeout", 0)
    assert destroy.record["time"] == START + 30_000_000_000
    assert destroy.record["conn"]["timeout"] == 0
    assert "dying" in destroy.status


def test_flush_is_told(make_tracker):
    tracker = make_tracker(events=ALL)
    conn = udp(tracker)
    conn.orig()
    conn.wait(3)
    tracker.expire(conn.scene.now)
    tracker.flush()
    destroy = events(tracker)[-1]
    assert (destroy.end, destroy.left, destroy.record["time"]) == ("flushed", 27, conn.scene.now)
    assert tracker.count == 0
    conn.orig().is_("new", conn=1)


def test_expiry_comes_before_the_packet_that_shows_the_time(make_tracker):
    tracker = make_tracker(events=ALL)
    conn = udp(tracker)
    conn.orig()
    conn.wait(100).orig().is_("new", conn=1)
    assert [(event.kind, event.conn) for event in events(tracker)] == [("new", 0), ("destroy", 0), ("new", 1)]


# --- too many --------------------------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_lost_and_counted(make_tracker):
    tracker = make_tracker(events=frozenset({"new"}), event_buffer=16)
    scene = Scene(tracker)
    for n in range(20):
        udp(tracker, scene=scene, port=(n, 53)).orig()
    assert tracker.events_lost == tracker.counters()["events_lost"] == 4
    assert [event.conn for event in events(tracker)] == list(range(16))
    udp(tracker, scene=scene, port=(99, 53)).orig()
    assert [event.conn for event in events(tracker)] == [20]
    assert tracker.events_lost == 4


def test_taken_events_make_room_for_as_many(make_tracker):
    tracker = make_tracker(events=frozenset({"new"}), event_buffer=16)
    scene = Scene(tracker)
    for start in range(0, 100, 10):
        for n in range(start, start + 10):
            udp(tracker, scene=scene, port=(n, 53)).orig()
        assert [event.conn for event in events(tracker)] == list(range(start, start + 10))


# --- marks and labels ------------------------------------------------------------------------------------------------------------------


def test_mark(make_tracker):
    tracker = make_tracker(events=ALL)
    conn = udp(tracker)
    conn.orig().is_("new", mark=0)
    tracker.events()
    tracker.set_mark(0, 0xFFFFFFFF)
    tracker.set_mark(0, 0xFFFFFFFF)
    assert told(tracker) == [("update", MARK)]
    conn.reply().is_("established", mark=0xFFFFFFFF)
    assert conn.entry["mark"] == 0xFFFFFFFF
    tracker.set_mark(0, 0)
    conn.reply().is_("established", mark=0)


def test_label(make_tracker):
    tracker = make_tracker(events=ALL)
    conn = udp(tracker)
    conn.orig()
    tracker.events()
    tracker.set_label(0, 5 << 64 | 7)
    tracker.set_label(0, 5 << 64 | 7)
    assert told(tracker) == [("update", LABEL)]
    assert conn.entry["label"].tolist() == [7, 5]
    tracker.set_label(0, (1 << 128) - 1)
    assert conn.entry["label"].tolist() == [(1 << 64) - 1] * 2


@pytest.mark.parametrize("label", [-1, 1 << 128])
def test_label_that_does_not_fit(tracker, label):
    udp(tracker).orig()
    with pytest.raises(ConfigError, match="label"):
        tracker.set_label(0, label)


def test_marks_and_labels_of_nobody(tracker):
    with pytest.raises(ConfigError, match="connection 3: expected"):
        tracker.set_mark(3, 1)
    with pytest.raises(ConfigError, match="connection 3: expected"):
        tracker.set_label(3, 1)
