"""Strangers who know the hash's key: tuples made to collide cost their own connections, and nothing else.

The search tries ports until a tuple's hash names the wanted bucket, for which it needs the seed. Whatever collides: every connection that was
accepted is found, each tuple as itself; what would lie too far from its bucket is refused and counted; all others are served as before.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from typing import NamedTuple

import numpy as np
import pytest

from ctcore import Config, Tracker, reasons
from ctcore.hashing import key_hash
from ctcore.types import Dir, State, Verdict
from datapath import craft
from datapath.frame import frames_of
from datapath.wire import parse_batch
from pcap_tests.scene import SECOND, START
from pcap_tests.test_ctcore.twins import Twins

SEED, MAX = 7, 2000
BUCKETS, SLOTS, REACH = -(-2 * MAX // 7), 10, 64
VICTIM = 540  # the bucket where all go; 64 buckets from there go round the end of the table
A, B = "10.0.0.1", "10.0.0.2"
KEY = struct.Struct("=16s16sHHHBB")  # of ctcore.types.KEY_DTYPE


class Talk(NamedTuple):
    """What UDP connections to B differ in."""

    sport: int
    dport: int
    src: str = A

    def ends(self, d: int) -> tuple[tuple[str, int], tuple[str, int]]:
        ends = (self.src, self.sport), (B, self.dport)
        return ends[d], ends[1 - d]


def hash_of(talk: Talk, d: int = Dir.ORIG) -> int:
    (src, sport), (dst, dport) = talk.ends(d)
    return key_hash(KEY.pack(craft.address(src), craft.address(dst), sport, dport, 0, craft.UDP, 4), SEED)


def bucket_of(talk: Talk, d: int = Dir.ORIG) -> int:
    return hash_of(talk, d) * BUCKETS >> 32


def in_reach(bucket: int) -> bool:
    """Whether it is one of those that flows of the victim bucket may lie in."""
    return (bucket - VICTIM) % BUCKETS < REACH


@lru_cache
def colliding(number: int, d: int = Dir.ORIG) -> tuple[Talk, ...]:
    """Connections whose tuple in direction d belongs into the victim bucket."""
    return tuple(islice((talk for talk in every_port() if bucket_of(talk, d) == VICTIM), number))


def every_port() -> Iterator[Talk]:
    return (Talk(sport, dport) for dport in range(1, 100) for sport in range(1024, 1 << 16))


@lru_cache
def harmless(number: int) -> tuple[Talk, ...]:
    """Connections whose tuples both have their home outside of the 64 buckets."""
    return tuple(islice((talk for talk in every_port() if not any(in_reach(bucket_of(talk, d)) for d in Dir)), number))


def frame(talk: Talk, d: int = Dir.ORIG) -> bytes:
    (src, sport), (dst, dport) = talk.ends(d)
    return craft.udp(src, dst, sport, dport)


def send(tracker, flows: list[Talk] | tuple[Talk, ...], d: int = Dir.ORIG, seconds: float = 0) -> np.ndarray:
    return tracker.advance(parse_batch(*frames_of([frame(talk, d) for talk in flows], ts=START + round(seconds * SECOND))))


def collide(make_tracker, **settings):
    return make_tracker(max=MAX, seed=SEED, **settings)


# --- one bucket ------------------------------------------------------------------------------------------------------------------------


def test_hundreds_of_connections_in_one_bucket_are_all_found(make_tracker):
    tracker = collide(make_tracker)
    flows = colliding(500)
    assert {bucket_of(talk) for talk in flows} == {VICTIM}
    opened = send(tracker, flows)
    assert opened["conn"].tolist() == list(range(500))
    for d in (Dir.ORIG, Dir.REPLY, Dir.ORIG):
        found = send(tracker, flows, d)
        assert found["conn"].tolist() == list(range(500))
        assert set(found["dir"]) == {d}
    tracker.check()


def test_connections_of_the_very_same_hash_are_told_apart(make_tracker):
    """Same bucket, same tag: only the tuples differ."""
    pairs = same_hash(8)
    tracker = collide(make_tracker)
    flows = [talk for pair in pairs for talk in pair]
    assert send(tracker, flows)["conn"].tolist() == list(range(16))
    assert send(tracker, flows[::-1])["conn"].tolist() == list(range(16))[::-1]
    assert send(tracker, flows, Dir.REPLY)["conn"].tolist() == list(range(16))


@lru_cache
def same_hash(number: int) -> tuple[tuple[Talk, Talk], ...]:
    """Pairs of connections whose tuples have one hash: by the birthday paradox the first of them come among 200,000."""
    rng = np.random.default_rng(1)
    seen: dict[int, Talk] = {}
    pairs = []
    while len(pairs) < number:
        a, b, c, sport = rng.integers(1, 255, 4).tolist()
        talk = Talk(sport, 53, f"10.{a}.{b}.{c}")
        other = seen.setdefault(hash_of(talk), talk)
        if other != talk:
            pairs.append((other, talk))
    return tuple(pairs)


def test_the_crowd_dies_in_any_order_and_leaves_nothing_behind(make_tracker):
    """Every third one is kept alive; the rest expires from the middle of the chain of buckets; then new ones take the holes."""
    tracker = collide(make_tracker)
    flows = colliding(500)
    send(tracker, flows)
    kept = flows[::3]
    send(tracker, kept, seconds=20)
    tracker.expire(START + 31 * SECOND)
    assert tracker.count == len(kept)
    tracker.check()
    assert send(tracker, kept, Dir.REPLY, 32)["conn"].tolist() == list(range(0, 500, 3))
    again = send(tracker, [talk for talk in flows if talk not in set(kept)], seconds=33)
    assert again["conn"].tolist() == list(range(500, 500 + len(again)))
    tracker.flush()
    tracker.check()
    assert tracker.count == 0
    assert send(tracker, flows, seconds=34)["state"].tolist() == [State.NEW] * 500


# --- the bound -------------------------------------------------------------------------------------------------------------------------


def test_what_finds_its_64_buckets_full_is_dropped_and_counted(make_tracker):
    tracker = collide(make_tracker, events=frozenset({"new", "destroy"}))
    flows = colliding(SLOTS * REACH + 20)
    decisions = send(tracker, flows)
    refused = decisions["conn"] < 0
    stray = sum(in_reach(bucket_of(talk, Dir.REPLY)) for talk, no in zip(flows, refused, strict=True) if not no)
    assert 20 <= refused.sum() <= 20 + stray, "the slots within reach take the crowd and those of its own answers that belong there"
    assert {reasons.NAMES[r] for r in decisions["reason"][refused]} == {"table_full"}
    assert set(decisions["state"][refused]) == {State.NOT_SEEN} and set(decisions["verdict"][refused]) == {Verdict.DROP}
    counters = tracker.counters()
    assert (counters["drop"], counters["early_drop"], counters["new"]) == (refused.sum(), 0, (~refused).sum())
    assert len(tracker.events()) == tracker.count == (~refused).sum()
    tracker.check()


def test_a_refused_connection_leaves_no_trace(make_tracker):
    """Refused again, and accepted as soon as there is room."""
    tracker = collide(make_tracker)
    flows = colliding(SLOTS * REACH + 20)
    last = flows[-1:]
    for seconds in (0, 1, 2):
        assert reasons.NAMES[send(tracker, flows, seconds=seconds)["reason"][-1]] == "table_full"
    before = tracker.conns().tobytes()
    send(tracker, last, seconds=2)
    assert tracker.conns().tobytes() == before
    assert send(tracker, last, seconds=33)["state"].tolist() == [State.NEW]
    assert tracker.count == 1


def test_an_answer_without_room_takes_the_question_with_it(make_tracker):
    """The original tuple has room; its reply's home is in the crowd. The original must not stay in the table alone."""
    tracker = collide(make_tracker)
    send(tracker, colliding(SLOTS * REACH + 20))
    answers = [talk for talk in colliding(40, Dir.REPLY) if not in_reach(bucket_of(talk))]
    assert answers
    count = tracker.count
    for d in (Dir.ORIG, Dir.REPLY):
        decisions = send(tracker, answers, d)
        assert {reasons.NAMES[r] for r in decisions["reason"]} == {"table_full"}
        assert tracker.count == count
        tracker.check()


def test_others_are_served_as_before(make_tracker):
    tracker = collide(make_tracker)
    send(tracker, colliding(SLOTS * REACH + 20))
    count, drops = tracker.count, tracker.counters()["drop"]
    for d in Dir:
        assert send(tracker, harmless(300), d)["conn"].tolist() == list(range(count, count + 300))
    assert tracker.counters()["drop"] == drops


def test_one_shot_expectations_are_spent_on_a_refused_connection(make_tracker):
    """The announced connection came; that it found no room does not announce the next one."""
    tracker = collide(make_tracker)
    *crowd, last = colliding(SLOTS * REACH + 20)
    master = int(send(tracker, crowd)["conn"][0])
    tracker.expect(master, A, B, craft.UDP, last[1], sport=last[0])
    assert reasons.NAMES[send(tracker, [last])["reason"][0]] == "table_full"
    assert tracker.expectations() == []


# --- both, and fast --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("buckets", [3, BUCKETS, 262144])
@pytest.mark.parametrize("others", [300, 1500])
def test_engine_and_model_agree_on_a_crowd(others, buckets):
    """Also on holes that are filled again; with 1,500 others, the table itself is full, too, and early drop goes through the crowd."""
    rng = np.random.default_rng(1)
    talks = [*colliding(SLOTS * REACH + 20), *colliding(40, Dir.REPLY), *harmless(others)]
    twins = Twins(Config(max=MAX, buckets=buckets, seed=SEED, events=frozenset({"new", "destroy"}), event_buffer=1000))
    for wait in (0.0, 3.0, 20.0, 31.0, 0.0):
        for i in rng.permutation(len(talks)):
            twins.packet(frame(talks[i], int(rng.integers(0, 5)) == 0))
        twins.flush_batch()
        twins.take_events()
        twins.wait(wait)
    counters = twins.engine.counters()
    assert counters["drop"] > 0 and (counters["early_drop"] > 0) == (others == 1500)


def test_a_flood_of_collisions_is_bounded_work():
    """Each packet of it looks at 64 buckets at most: microseconds, where following the whole chain of a large crowd would take milliseconds."""
    tracker = Tracker(Config(max=MAX, seed=SEED))
    crowd = colliding(SLOTS * REACH + 20)
    send(tracker, crowd)
    batch = parse_batch(*frames_of([frame(talk) for talk in crowd[-20:]] * 1000, ts=START))
    begin = time.process_time()
    decisions = tracker.advance(batch)
    assert time.process_time() - begin < 1, "20,000 packets; what others take of the machine does not count"
    assert set(decisions["conn"]) == {-1}


# --- within a batch --------------------------------------------------------------------------------------------------------------------

SMALL, SMALL_BUCKETS = 16, 8  # a table so small that a stranger in the same bucket with the same tag is soon found
SELF = Talk(7, 7, B)  # a host that speaks to itself: its answers look like its questions


def place_of(talk: Talk) -> tuple[int, int]:
    """All that a lookup goes by before it compares keys, in the small table: bucket and tag."""
    number = hash_of(talk)
    return number * SMALL_BUCKETS >> 32, number & 0xFFFF


@pytest.mark.parametrize("cuts", [(3,), (1, 2), (2, 1), (1, 1, 1)], ids=str)
def test_how_a_batch_is_cut_changes_nothing(make_tracker, cuts):
    """The first row's time ends a stranger's connection, and one whose original tuple lies in no bucket gets its slot: what the rows behind it
    remember of the stranger must not lead them there."""
    stranger = next(talk for talk in every_port() if place_of(talk) == place_of(SELF))
    tracker = make_tracker(max=SMALL, seed=SEED)
    assert send(tracker, [stranger])["conn"].tolist() == [0]
    decisions = np.concatenate([send(tracker, [SELF] * rows, seconds=31) for rows in cuts])
    assert decisions["conn"].tolist() == [1, 1, 1]
    assert decisions["dir"].tolist() == [Dir.ORIG, Dir.REPLY, Dir.REPLY]
    assert decisions["state"].tolist() == [State.NEW, State.ESTABLISHED, State.ESTABLISHED]
