"""The hash table under stress: however connections come and go, table, wheel and slab agree (Tracker.check)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctcore import Config, ConfigError, Tracker
from ctcore.hashing import key_hash
from datapath import craft
from datapath.frame import frames_of
from datapath.wire import parse_batch
from pcap_tests.conftest import examples

SECOND = 1_000_000_000


def udp(flow: int) -> bytes:
    return craft.udp(f"10.1.{flow >> 8 & 255}.{flow & 255}", "10.2.0.1", 1000 + flow, 53)


@settings(max_examples=examples(60))
@given(st.data(), st.sampled_from([1, 3, 17, 200]), st.integers(0, 1 << 32))
def test_check_holds_after_random_inserts_erases_and_expiry(data, capacity, seed):
    """A table of any size, full or not, keeps its invariants through insertion, expiry, early drop and flush."""
    tracker = Tracker(Config(max=capacity, seed=seed))
    now = 0
    for _ in range(data.draw(st.integers(1, 12))):
        now += data.draw(st.sampled_from([0, SECOND, 20 * SECOND, 31 * SECOND]))
        flows = data.draw(st.lists(st.integers(0, 2 * capacity), max_size=3 * capacity))
        tracker.advance(parse_batch(*frames_of([udp(flow) for flow in flows], ts=now)))
        tracker.check()
        assert tracker.count <= capacity
        if data.draw(st.integers(0, 9)) == 0:
            tracker.flush()
            assert tracker.count == 0
            tracker.check()


def test_every_connection_is_found_again_when_the_table_is_full():
    tracker = Tracker(Config(max=5000))
    frames = frames_of([udp(flow) for flow in range(5000)])
    opened = tracker.advance(parse_batch(*frames))
    again = tracker.advance(parse_batch(*frames))
    assert np.array_equal(opened["conn"], np.arange(5000))
    assert np.array_equal(again["conn"], opened["conn"])
    tracker.check()


def test_slots_are_used_again_and_ordinals_never():
    tracker = Tracker(Config(max=10))
    for life in range(5):
        decisions = tracker.advance(parse_batch(*frames_of([udp(flow) for flow in range(10)], ts=life)))
        assert list(decisions["conn"]) == list(range(10 * life, 10 * life + 10))
        tracker.flush()
    tracker.check()


def test_hashes_are_spread_whatever_the_bit_that_differs():
    """Flipping one bit of a key changes about half of the hash, and its upper and lower half each."""
    rng = np.random.default_rng(7)
    for _ in range(20):
        key = rng.integers(0, 256, 40, dtype=np.uint8)
        base = key_hash(key.tobytes(), 1)
        flips = []
        for bit in range(320):
            other = key.copy()
            other[bit // 8] ^= 1 << bit % 8
            flips.append(key_hash(other.tobytes(), 1) ^ base)
        for mask in (0xFFFF, 0xFFFF0000):
            assert 7.5 < np.mean([(flip & mask).bit_count() for flip in flips]) < 8.5


def test_buckets_fill_evenly():
    """Sequential addresses and ports, as hosts give them out, land like random ones: the fullest of 1,000 buckets is not far from the mean."""
    keys = np.zeros((7000, 40), dtype=np.uint8)
    keys[:, 3] = np.arange(7000) & 255
    keys[:, 32] = np.arange(7000) >> 8
    counts = np.bincount([key_hash(key.tobytes(), 0) * 1000 >> 32 for key in keys], minlength=1000)
    assert counts.max() < 25 and counts.min() >= 0 and counts.var() < 10


def test_the_seed_decides_the_hash():
    key = bytes(range(40))
    assert key_hash(key, 1) == key_hash(key, 1) != key_hash(key, 2)
    with pytest.raises(ValueError, match="39 bytes: expected 40"):
        key_hash(bytes(39), 1)


def test_capacity_is_bounded():
    with pytest.raises(ConfigError, match="max = 100000000: expected 0 to 67107840"):
        Config(max=100_000_000)
