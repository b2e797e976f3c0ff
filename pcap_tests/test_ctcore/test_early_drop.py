"""A full table: early drop evicts what is not assured and lies near in the kernel's table; if nothing does, the packet is dropped.

Near is told by the kernel's number of buckets, not by how many connections there may be: FEW buckets hold few connections as densely as the usual
262,144 hold as many.
"""

from __future__ import annotations

import numpy as np
import pytest

from ctcore.hashing import key_hash
from datapath import craft
from pcap_tests.scene import CLIENT, SERVER, Scene, conversation, established, events, udp

NEAR = 8
FEW = 8


def home(tracker, record_key: np.void) -> int:
    """The bucket of a tuple in the kernel's table."""
    return key_hash(record_key.tobytes(), tracker.config.seed) * tracker.config.buckets >> 32


def fill(tracker, number: int) -> Scene:
    scene = Scene(tracker)
    for n in range(number):
        udp(tracker, scene=scene, port=(1000 + n, 53)).orig().is_("new", conn=n)
    return scene


def test_below_the_limit_nothing_is_evicted(make_tracker):
    tracker = make_tracker(max=4, buckets=FEW)
    fill(tracker, 4)
    assert tracker.count == 4
    assert tracker.counters()["early_drop"] == 0


def test_one_too_many_evicts(make_tracker):
    tracker = make_tracker(max=4, buckets=FEW, events=frozenset({"destroy"}))
    scene = fill(tracker, 4)
    udp(tracker, scene=scene, port=(9, 53)).orig().is_("new", conn=4)
    evicted = events(tracker)
    assert evicted
    assert {event.end for event in evicted} == {"evicted"}
    assert tracker.count == 5 - len(evicted)
    assert tracker.counters()["early_drop"] == len(evicted)


@pytest.mark.parametrize("capacity, buckets, seed", [(4, 8, 0), (16, 8, 0), (64, 20, 0), (100, 100, 34), (1000, 9, 3), (1000, 1, 0), (2000, 7, 1)])
def test_only_one_buckets_worth_goes_and_the_nearest(make_tracker, capacity, buckets, seed):
    """Also those that did not find room where they are at home in our own table: a bucket of a kernel that has few of them is many of ours."""
    tracker = make_tracker(max=capacity, buckets=buckets, seed=seed, events=frozenset({"destroy"}))
    fill(tracker, capacity)
    places = {int(c["flow"]["id"][0]): {home(tracker, c["flow"]["key"][d]) for d in range(2)} for c in tracker.conns()}
    probe = udp(make_tracker(seed=tracker.config.seed), port=(9, 53))
    probe.orig()
    start = home(tracker, probe.entry["flow"]["key"][0])
    udp(tracker, port=(9, 53)).orig().is_("new", conn=capacity)
    evicted = {event.conn for event in events(tracker)}
    chosen = next((start + i) % buckets for i in range(NEAR) if any((start + i) % buckets in at for at in places.values()))
    assert evicted == {conn for conn, at in places.items() if chosen in at}
    tracker.check()


def test_where_buckets_are_many_and_connections_few_there_is_no_victim(make_tracker):
    """Linux looks at eight buckets of 262,144, in which none of four connections lies: the packet is dropped, and all four stay."""
    tracker = make_tracker(max=4)
    scene = fill(tracker, 4)
    udp(tracker, scene=scene, port=(9, 53)).orig().is_("not-seen", reason="table_full", verdict="drop")
    assert (tracker.count, tracker.counters()["early_drop"], tracker.counters()["drop"]) == (4, 0, 1)


def test_our_own_table_does_not_matter(make_tracker):
    """The same connections and the same kernel buckets, in tables of ours of different sizes: the same ones are evicted."""

    def evicted(capacity: int, spared: int) -> set[int]:
        tracker = make_tracker(max=capacity, buckets=50, seed=5, events=frozenset({"destroy"}))
        scene = Scene(tracker)
        for n in range(spared):  # assured, so that they only take room
            established(tracker, scene=scene, port=(2000 + n, 80))
        for n in range(capacity - spared):
            udp(tracker, scene=scene, port=(1000 + n, 53)).orig()
        udp(tracker, scene=scene, port=(9, 53)).orig()
        return {event.conn - spared for event in events(tracker)}

    assert evicted(60, 0) == evicted(300, 240) == evicted(800, 740) != set()


def test_assured_connections_are_spared(make_tracker):
    tracker = make_tracker(max=4, buckets=FEW)
    scene = Scene(tracker)
    for n in range(4):
        established(tracker, scene=scene, port=(1000 + n, 80))
    udp(tracker, scene=scene).orig().is_("not-seen", reason="table_full", verdict="drop", conn=None, dir=None, timeout=None)
    assert tracker.count == 4
    assert (tracker.counters()["drop"], tracker.counters()["early_drop"]) == (1, 0)


def test_known_connections_are_served_while_the_table_is_full(make_tracker):
    tracker = make_tracker(max=1)
    conn = established(tracker)
    udp(tracker, scene=conn.scene).orig().is_("not-seen", reason="table_full")
    conn.reply("A").is_("established")


def test_room_is_made_by_expiry_first(make_tracker):
    tracker = make_tracker(max=4)
    scene = fill(tracker, 4)
    scene.wait(30)
    udp(tracker, scene=scene, port=(9, 53)).orig().is_("new")
    assert (tracker.count, tracker.counters()["early_drop"]) == (1, 0)


def test_even_an_invalid_packet_evicts(make_tracker):
    """Linux allocates, and so evicts, before the protocol looks at the packet."""
    tracker = make_tracker(max=4, buckets=FEW)
    scene = fill(tracker, 4)
    conversation(tracker, scene=scene).orig("FA").is_("invalid", reason="tcp_not_opening")
    assert tracker.count < 4
    assert tracker.counters()["early_drop"] == 4 - tracker.count


WITHOUT_TUPLE = {
    "uninvertible": craft.icmp(CLIENT, SERVER, 9),
    "no IP header": craft.udp(CLIENT, SERVER, 1, 2)[:14],
    "ICMP checksum": craft.icmp(CLIENT, SERVER, 8, l4_checksum=1),
}


@pytest.mark.parametrize("frame", WITHOUT_TUPLE.values(), ids=WITHOUT_TUPLE)
def test_what_never_gets_a_tuple_does_not(make_tracker, frame):
    tracker = make_tracker(max=4, buckets=FEW)
    fill(tracker, 4).send(frame)
    assert tracker.count == 4


def test_reopening_needs_no_room(make_tracker):
    tracker = make_tracker(max=1)
    conn = established(tracker)
    conn.orig("R").is_("established", l4state="CLOSE")
    conn.orig("S", seq=5000).is_("new", reason="tcp_reopened", conn=1)
    assert tracker.counters()["early_drop"] == 0


def test_no_limit_but_capacity(make_tracker):
    tracker = make_tracker(max=0)
    assert tracker.config.capacity == 1 << 22
    fill(tracker, 50)
    assert tracker.count == 50


@pytest.mark.parametrize("seed", [0, 1, 0xFFFFFFFFFFFFFFFF])
def test_the_same_seed_evicts_the_same(make_tracker, seed):
    def run() -> list[int]:
        tracker = make_tracker(max=8, buckets=FEW, seed=seed)
        scene = Scene(tracker)
        for n in range(100):
            udp(tracker, scene=scene, port=(n, 53)).orig()
        return scene.ordinals()

    assert run() == run()
