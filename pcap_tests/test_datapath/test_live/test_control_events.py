"""Events to whoever listens: numbered, and what is lost is told."""

from __future__ import annotations

import itertools
import socket

import pytest

from ctcore.config import Config
from datapath import craft
from datapath.frame import frames_of
from datapath.live import control as controls
from datapath.live import feed
from datapath.live.feed import KINDS, Listener, Tap
from datapath.live.message import RequestError, packed
from datapath.live.wanted import Wanted, wanted_of
from datapath.worker import Pipeline
from pcap_tests.test_datapath.test_live.noded import running

EVENTS = frozenset({"new", "update", "destroy"})


@pytest.fixture
def rig(tmp_path):
    with running(tmp_path) as rig:
        yield rig


def question(i):
    return craft.udp(f"10.0.{i >> 8}.{i & 255}", "10.9.9.9", 1000, 53, b"?")


def next_events(parts, n):
    """The next n events of a stream without losses."""
    found = []
    while len(found) < n:
        found += next(parts)["events"]
    return found


# --- the tap, without a node ----------------------------------------------------------------------------------------------------------------


class Tapped:
    """A tracker whose buffer holds 16 events, and its tap."""

    def __init__(self):
        self.pipeline, self.tap, self.fresh = Pipeline(Config(events=EVENTS, event_buffer=16)), Tap(), itertools.count()

    def begin(self, n):
        """n new connections, an event each."""
        frames, times = [question(next(self.fresh)) for _ in range(n)], [self.pipeline.tracker.now + 1 + i for i in range(n)]
        self.pipeline.process(*frames_of(frames, times))
        return self

    def take(self):
        return self.tap.take([self.pipeline.tracker])

    def open(self):
        return self.tap.open([self.pipeline.tracker])


def test_numbers_go_on_over_what_is_lost():
    tapped = Tapped()
    assert tapped.open() == 0
    taken = tapped.begin(10).take()
    assert (taken.seq, len(taken.events), taken.lost) == (0, 10, 0)
    taken = tapped.begin(20).take()
    assert (taken.seq, len(taken.events), taken.lost) == (10, 16, 4)
    taken = tapped.begin(1).take()
    assert (taken.seq, len(taken.events), taken.lost) == (30, 1, 0)
    assert tapped.tap.counters([tapped.pipeline.tracker], True) == {"events": 31, "lost": 4, "unheard": 0}


def test_what_nobody_listened_to_is_unheard_and_not_lost():
    tapped = Tapped().begin(20)
    assert tapped.tap.counters([tapped.pipeline.tracker], False) == {"events": 20, "lost": 0, "unheard": 20}
    assert tapped.open() == 20
    taken = tapped.begin(3).take()
    assert (taken.seq, len(taken.events), taken.lost) == (20, 3, 0)
    tapped.begin(30)
    assert tapped.open() == 53
    assert tapped.tap.counters([tapped.pipeline.tracker], True) == {"events": 53, "lost": 0, "unheard": 50}


def told(listener):
    """What a listener is told, without the records: (first number, how many) or (first number, behind the last, lost)."""
    parts = listener.messages(250, True)
    return [(p["seq"], p["past"], p["lost"]) if "lost" in p else (p["events"][0]["seq"], len(p["events"])) for p in parts]


def test_a_full_queue_loses_whole_batches_and_says_which(monkeypatch):
    monkeypatch.setattr(feed, "QUEUE", 20)
    tapped, listener = Tapped(), Listener()
    tapped.open()
    for n in (12, 12, 12, 5, 16 + 4):
        listener.put(tapped.begin(n).take())
    # 12 wait; two batches of 12 find no room; 5 do; of the last 20 the tracker has lost 4, and for its 16 there is no room again
    assert (listener.waiting, listener.lost) == (17, 44)
    assert told(listener) == [(0, 12), (12, 36, 24), (36, 5), (41, 61, 20)]
    assert listener.waiting == 0
    listener.put(tapped.begin(3).take())
    assert told(listener) == [(61, 3)]


def test_a_batch_larger_than_the_queue_is_taken_if_nothing_waits(monkeypatch):
    monkeypatch.setattr(feed, "QUEUE", 4)
    tapped, listener = Tapped(), Listener()
    tapped.open()
    listener.put(tapped.begin(10).take())
    assert told(listener) == [(0, 10)]


def test_a_listener_hears_what_it_wants_with_the_numbers_of_all():
    tapped, listener = Tapped(), Listener(wanted_of({"src": "10.0.0.2"}), KINDS["new"])
    tapped.open()
    listener.put(tapped.begin(5).take())
    (part,) = listener.messages(250, True)
    assert [(event["seq"], event["original"]["src"]) for event in part["events"]] == [(2, "10.0.0.2")]
    deaf = Listener(Wanted(), KINDS["destroy"])
    deaf.put(tapped.begin(5).take())
    assert not deaf.queue


# --- to clients -----------------------------------------------------------------------------------------------------------------------------


def test_what_happens_to_connections_is_told_in_order(rig):
    with rig.client() as client, rig.client() as other:
        parts = client.events()
        assert next(parts) == {"id": 1, "listening": 0}
        rig.send(question(1), question(2))
        other.ask("update", which={"src": "10.0.0.1"}, change={"mark": 3})
        other.ask("delete", which={"src": "10.0.0.2"})
        told = [(event["seq"], event["event"], event["conn"], event["mark"], event["end"]) for event in next_events(parts, 4)]
    assert told == [(0, "new", 0, 0, "alive"), (1, "new", 1, 0, "alive"), (2, "update", 0, 3, "alive"), (3, "destroy", 1, 0, "flushed")]


def test_who_comes_later_hears_what_comes_later(rig):
    with rig.client() as first, rig.client() as second:
        parts = first.events()
        next(parts)
        rig.send(question(1))
        later = second.events()
        assert next(later)["listening"] == 1
        rig.send(question(2))
        assert [event["seq"] for event in next_events(parts, 2)] == [0, 1]
        assert [event["seq"] for event in next_events(later, 1)] == [1]


def test_a_listing_says_from_which_event_on_it_may_be_old(rig):
    rig.send(question(1))
    with rig.client() as client:
        parts = client.events()
        assert next(parts)["listening"] == 1
        rig.send(question(2))
        with rig.client() as other:
            assert [record["conn"] for record in other.conns("list")] == [0, 1]
            seq = other.end["seq"]
        rig.send(question(3))
        assert [event["conn"] for event in next_events(parts, 2) if event["seq"] >= seq] == [2]


def test_other_requests_go_on_between_events(rig):
    with rig.client() as client:
        parts = client.events()
        next(parts)
        rig.send(question(1))
        found = list(client.parts("list"))
        assert sorted(len(part.get("conns", part.get("events"))) for part in found) in ([1], [1, 1])
        assert client.end == {"count": 1, "seq": 1}
        with pytest.raises(RequestError, match="already asked for on this connection"):
            client.ask("events")


def test_nobody_is_told_of_kinds_that_are_none(rig):
    for kinds in ([], ["old"], "new", [1]):
        with rig.client() as client, pytest.raises(RequestError, match="kinds: expected a list of new, update, destroy"):
            next(client.events(kinds=kinds))


def test_without_events_nobody_can_listen(tmp_path):
    refused = pytest.raises(RequestError, match=r"expected control\.events = true")
    with running(tmp_path, control={"events": False}) as rig, rig.client() as client, refused:
        next(client.events())


def listening_and_silent(rig):
    """Somebody who asks for events, and reads no more than that it is heard."""
    made = socket.socket(socket.AF_UNIX)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    made.connect(rig.path)
    made.sendall(packed({"v": 1, "id": 1, "do": "events"}))
    assert made.recv(4)
    return made


def test_a_listener_that_does_not_read_is_dropped_and_the_others_lose_nothing(rig, monkeypatch):
    monkeypatch.setattr(controls, "LISTENER_PATIENCE", 0.5)
    with listening_and_silent(rig), rig.client() as client:
        parts = client.events()
        next(parts)
        for start in range(0, 4000, 200):
            rig.send(*(question(start + i) for i in range(200)))
            rig.job(lambda node: None)
        assert [event["seq"] for event in next_events(parts, 4000)] == list(range(4000))
        rig.until(lambda: rig.counts["stalled"] == 1)
        rig.until(lambda: len(rig.control.listeners()) == 1)


def test_a_slow_reader_learns_how_much_it_has_lost_and_can_start_again(tmp_path, monkeypatch):
    monkeypatch.setattr(feed, "QUEUE", 50)
    with running(tmp_path) as rig, rig.client() as client:
        parts = client.events()
        next(parts)
        while not (listeners := rig.control.listeners()) or not listeners[0].listener.lost:
            rig.send(*(question(i) for i in range(100)))
            with rig.client() as other:
                other.ask("flush")
        heard, lost, at = 0, 0, 0
        while not lost:
            part = next(parts)
            if "lost" in part:
                assert part["seq"] == at and part["past"] - part["seq"] >= part["lost"]
                lost, at = part["lost"], part["past"]
            else:
                assert [event["seq"] for event in part["events"]] == list(range(at, at + len(part["events"])))
                heard, at = heard + len(part["events"]), part["events"][-1]["seq"] + 1
        with rig.client() as other:
            listed = list(other.conns("list"))
            assert (listed, other.end["seq"] >= at) == ([], True)
    assert lost > 0


def test_while_nobody_listens_the_buffer_is_left_alone(rig):
    rig.send(question(1))
    for _ in range(3):
        rig.job(lambda node: None)
    assert rig.job(lambda node: node.pipeline.tracker.events_waiting) == 1
    with rig.client() as client:
        assert client.ask("stats")["events"] == {"events": 1, "lost": 0, "unheard": 1}
        next(client.events())
    rig.until(lambda: not rig.control.listeners())
    rig.send(question(2))
    with rig.client() as client:
        assert client.ask("stats")["events"] == {"events": 2, "lost": 0, "unheard": 2}
