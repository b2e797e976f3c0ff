"""The table of what was announced: each hash as often as it is wanted, if there is place; a tracker enters what it expects."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctcore.config import Config
from ctcore.errors import ConfigError
from ctcore.strays import StrayTable
from ctcore.tracker import Tracker
from datapath import craft
from datapath.frame import frames_of
from datapath.live.steer import course_of
from datapath.wire import parse_batch

A, B = "10.0.0.1", "198.51.100.7"


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 30)), max_size=200))
def test_a_hash_is_there_as_long_as_somebody_wants_it(steps):
    table, wanted = StrayTable(), Counter()
    for add, number in steps:
        value = (number << 41 | number << 1) & (1 << 64) - 1
        if add:
            table.add(value)
            wanted[value] += 1
        elif wanted[value]:
            table.drop(value)
            wanted[value] -= 1
        else:
            table.drop(value)
    assert len(table) == sum(count > 0 for count in wanted.values()) and table.full == 0
    assert all(table.has(value) == (count > 0) for value, count in wanted.items())


def test_a_bucket_that_is_full_turns_hashes_away():
    table = StrayTable()
    for i in range(10):
        table.add(i << 1)
    assert (len(table), table.full) == (8, 2)
    table.drop(9 << 1)
    assert len(table) == 8 and not table.has(9 << 1) and table.has(0)


def batch(*frames: bytes, at: int = 0):
    return parse_batch(*frames_of(list(frames), ts=np.full(len(frames), at, dtype=np.int64)))


def announcing() -> tuple[Tracker, StrayTable]:
    """The first one's table, with a connection that announces another one to port 5000."""
    tracker, strays = Tracker(Config(share=(0, 8))), StrayTable()
    tracker.tell_strays(strays)
    tracker.advance(batch(craft.tcp(A, B, 40000, 21, "S")))
    tracker.expect(0, B, A, 6, 5000)
    return tracker, strays


def test_what_is_announced_comes_to_the_first_tracker_and_so_do_its_answers():
    tracker, strays = announcing()
    come, answer = craft.tcp(B, A, 20, 5000, "S"), craft.tcp(A, B, 5000, 20, "SA")
    assert course_of(come, 8) == course_of(answer, 8) != (0, None)
    assert course_of(come, 8, strays) == (0, None) and len(strays) == 1
    assert course_of(answer, 8, strays) != (0, None), "nobody has said that it comes"
    tracker.advance(batch(come))
    for frame in (come, answer, craft.icmp_error("192.0.2.1", B, 3, 1, come), craft.icmp_error("192.0.2.1", A, 3, 1, answer)):
        assert course_of(frame, 8, strays) == (0, None)
    assert course_of(craft.tcp(B, A, 21000, 5000, "S"), 8, strays) == course_of(craft.tcp(B, A, 21000, 5000, "S"), 8), "it has come true"
    tracker.check()


@pytest.mark.parametrize("how", ["flush", "expire"])
def test_with_the_connections_the_table_is_empty_again(how):
    tracker, strays = announcing()
    tracker.advance(batch(craft.tcp(B, A, 20, 5000, "S")))
    tracker.expect(0, B, A, 6, 5001)
    assert len(strays) == 2, "a tuple, which its answers share, and what is expected"
    tracker.flush() if how == "flush" else tracker.expire(10**15)
    assert len(strays) == 0 and tracker.expectations() == []


def test_a_restored_connection_is_known_again():
    tracker, _ = announcing()
    tracker.advance(batch(craft.tcp(B, A, 20, 5000, "S")))
    tracker.expect(0, B, A, 6, 5001)
    after, strays = Tracker(Config(share=(0, 8))), StrayTable()
    after.tell_strays(strays)
    after.restore(tracker.save())
    assert len(strays) == 2 and course_of(craft.tcp(A, B, 5000, 20, "A"), 8, strays) == (0, None)
    after.flush()
    assert len(strays) == 0


def test_only_an_empty_first_tracker_tells():
    for tracker in (Tracker(Config(share=(1, 2))), announcing()[0]):
        with pytest.raises(ConfigError, match="strays: expected an empty tracker"):
            tracker.tell_strays(StrayTable())
