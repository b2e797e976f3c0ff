"""The timer wheel against a naive heap: connections leave at the very tick their last decision promised, however they were refreshed."""

from __future__ import annotations

import heapq

from hypothesis import given, settings
from hypothesis import strategies as st

from ctcore import Config, Tracker
from ctcore.types import End
from datapath import craft
from datapath.frame import frames_of
from datapath.wire import parse_batch
from pcap_tests.conftest import examples

SECOND = 1_000_000_000
HOUR = 3600 * SECOND
START = 1_700_000_000 * SECOND
FLOWS = 12


class NaiveHeap:
    """What the wheel has to equal: every deadline ever given, and which of them is the connection's last."""

    def __init__(self) -> None:
        self.heap: list[tuple[int, int]] = []
        self.last: dict[int, int] = {}

    def set(self, conn: int, tick: int) -> None:
        self.last[conn] = tick
        heapq.heappush(self.heap, (tick, conn))

    def due(self, tick: int) -> set[tuple[int, int]]:
        """(tick, connection) of all that expire by now."""
        gone = set()
        while self.heap and self.heap[0][0] <= tick:
            when, conn = heapq.heappop(self.heap)
            if self.last.get(conn) == when:
                del self.last[conn]
                gone.add((when, conn))
        return gone


def packet(kind: str, flow: int) -> bytes:
    """udp: a refresh to a stream's timeout; syn .. rst: timeouts that grow and shrink by days."""
    client, server = f"10.0.0.{flow}", "10.0.1.1"
    if kind in ("udp", "answer"):
        ends = (client, server, 5000, 53) if kind == "udp" else (server, client, 53, 5000)
        return craft.udp(*ends, payload=b"x")
    ends = (client, server, 4000, 80) if kind != "synack" else (server, client, 80, 4000)
    seq, ack = (500, 101) if kind == "synack" else (100 + (kind != "syn"), 0 if kind == "syn" else 501)
    flags = {"syn": "S", "synack": "SA", "ack": "A", "data": "A", "fin": "FA", "rst": "R"}[kind]
    return craft.tcp(*ends, flags, seq=seq, ack=ack, payload=b"data" if kind == "data" else b"")


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["udp", "answer", "syn", "synack", "ack", "data", "fin", "rst"]),
        st.integers(1, FLOWS),
        st.one_of(st.just(0), st.integers(0, 3 * SECOND), st.integers(0, 400 * SECOND), st.integers(0, 200 * HOUR)),
    ),
    max_size=60,
)


def compare_destroyed(tracker: Tracker, heap: NaiveHeap, tick_ns: int) -> None:
    """Whatever was destroyed since the last time is what the heap says, or was reset or replaced by its own packet."""
    expected = heap.due(tracker.now // tick_ns)
    got = set()
    for event in tracker.events():
        conn = int(event["conn"]["flow"]["id"][0])
        if event["end"] == End.END_TIMEOUT:
            got.add((int(event["time"]) // tick_ns, conn))
        else:
            heap.last.pop(conn)
    assert got == expected


@settings(max_examples=examples(150))
@given(STEPS, st.sampled_from([1, 100, 250, 1000]), st.integers(1, 100_000))
def test_the_wheel_equals_a_heap(steps, hz, udp_timeout):
    """Expiry happens at the tick of the last deadline, neither earlier nor later, over refreshes, cuts and silences of days."""
    tracker = Tracker(Config(hz=hz, events=frozenset({"destroy"}), timeouts={"udp_timeout": udp_timeout, "tcp_timeout_close": 7}))
    heap, now, tick_ns = NaiveHeap(), START, SECOND // hz
    for kind, flow, pause in steps:
        now += pause
        tracker.expire(now)
        compare_destroyed(tracker, heap, tick_ns)
        decision = tracker.advance(parse_batch(*frames_of([packet(kind, flow)], ts=now)))[0]
        compare_destroyed(tracker, heap, tick_ns)
        if decision["conn"] >= 0 and not decision["status"] & 0x200:
            heap.set(int(decision["conn"]), now // tick_ns + int(decision["timeout"]))
        tracker.check()
    tracker.expire(now + 2000 * HOUR)
    compare_destroyed(tracker, heap, tick_ns)
    assert tracker.count == 0 and not heap.last


def test_a_leap_of_centuries_is_quick_and_complete():
    tracker = Tracker(Config(events=frozenset({"destroy"})))
    frames = [craft.udp("10.0.0.1", "10.0.0.2", port, 53) for port in range(1, 500)]
    tracker.advance(parse_batch(*frames_of(frames, ts=START)))
    tracker.expire((1 << 63) - 1)
    assert tracker.count == 0
    assert set(tracker.events()["time"]) == {START + 30 * SECOND}
    tracker.check()


def test_events_that_find_the_ring_full_are_counted_and_nothing_else_changes():
    tracker = Tracker(Config(events=frozenset({"destroy"}), event_buffer=64))
    frames = [craft.udp("10.0.0.1", "10.0.0.2", port, 53) for port in range(1, 501)]
    tracker.advance(parse_batch(*frames_of(frames, ts=START)))
    tracker.expire(START + 40 * SECOND)
    assert tracker.count == 0 and tracker.counters()["expired"] == 500
    assert len(tracker.events()) == 64 and tracker.events_lost == 436
    tracker.check()


def test_a_timeout_of_zero_lasts_for_its_packet_only():
    tracker = Tracker(Config(timeouts={"udp_timeout": 0}))
    packets = [craft.udp("10.0.0.1", "10.0.0.2", 1000, 53), craft.udp("10.0.0.2", "10.0.0.1", 53, 1000)]
    decisions = tracker.advance(parse_batch(*frames_of(packets, ts=START)))
    assert list(decisions["state"]) == [1, 1] and list(decisions["conn"]) == [0, 1] and list(decisions["timeout"]) == [0, 0]
    tracker.check()
