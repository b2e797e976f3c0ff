"""The engine as a whole: compiled, deterministic, and indifferent to how packets are cut into batches."""

from __future__ import annotations

import random
import threading

import numpy as np
import pytest

import ctcore.tcp
import ctcore.tracker
from ctcore import Config, ConfigError, Tracker
from datapath import craft
from datapath.frame import frames_of
from datapath.wire import parse_batch

SECOND = 1_000_000_000


def mixed_traffic(n: int, seed: int) -> tuple:
    """n packets of many protocols between few hosts, much of it nonsense, over a few minutes."""
    rng = random.Random(seed)
    hosts = ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
    frames = []
    for _ in range(n):
        src, dst = rng.sample(hosts, 2)
        ports = rng.choice([1000, 1001]), rng.choice([1000, 1001, 53])
        kind = rng.randrange(6)
        if kind < 3:
            frames.append(craft.tcp(src, dst, *ports, rng.choice(["S", "SA", "A", "FA", "R", "RA"]), seq=rng.randrange(300), ack=rng.randrange(300)))
        elif kind == 3:
            frames.append(craft.udp(src, dst, *ports, payload=b"x" * rng.randrange(20)))
        elif kind == 4:
            frames.append(craft.icmp(src, dst, rng.choice([0, 8, 13]), ident=rng.randrange(3)))
        else:
            frames.append(rng.randbytes(rng.randrange(90)))
    return frames_of(frames, ts=np.cumsum([rng.randrange(SECOND // 2) for _ in range(n)]))


def run(memory, frames, batch: int, **settings):
    """Everything a tracker says: decisions, events and what is left, as bytes."""
    tracker = Tracker(Config(events=frozenset({"new", "update", "destroy"}), **settings))
    said = [tracker.advance(parse_batch(memory, frames[i : i + batch])) for i in range(0, len(frames), batch)]
    tracker.check()
    return np.concatenate(said).tobytes(), tracker.events().tobytes(), tracker.conns().tobytes(), str(tracker.counters())


def test_the_engine_is_compiled():
    assert ctcore.tracker.__file__.endswith(".so") and ctcore.tcp.__file__.endswith(".so")


def test_two_runs_are_byte_identical():
    traffic_ = mixed_traffic(3000, 1)
    assert run(*traffic_, 128) == run(*traffic_, 128)


@pytest.mark.parametrize("batch", [1, 7, 127, 129, 3000])
def test_batches_do_not_matter(batch):
    traffic_ = mixed_traffic(3000, 2)
    assert run(*traffic_, batch, max=12) == run(*traffic_, 128, max=12)


def test_the_seed_changes_no_decision():
    traffic_ = mixed_traffic(3000, 3)
    assert run(*traffic_, 128, seed=1)[0] == run(*traffic_, 128, seed=2)[0]


def test_time_never_goes_back():
    tracker = Tracker()
    packets = [craft.udp("10.0.0.1", "10.0.0.2", 1000, 53)] * 2
    tracker.advance(parse_batch(*frames_of(packets, ts=[100 * SECOND, 50 * SECOND])))
    assert tracker.now == 100 * SECOND
    assert tracker.conns()["timeout"] == 30 * 250


def test_an_empty_batch_is_nothing():
    tracker = Tracker()
    assert len(tracker.advance(parse_batch(*frames_of([])))) == 0
    assert tracker.count == 0 and tracker.now == 0


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda t: Tracker(3), "config = 3: expected a Config"),
        (lambda t: t.set_mark(0, 1), "connection 0: expected the ordinal of a live connection"),
        (lambda t: t.expect(5, "10.0.0.1", "10.0.0.2", 6, 21), "connection 5: expected the ordinal of a live connection"),
    ],
)
def test_mistakes_of_the_caller_are_named(call, message):
    with pytest.raises(ConfigError, match=message):
        call(Tracker())


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"tcp_loose": 5}, "tcp_loose = 5: expected 0 to 1"),
        ({"hz": 3}, "hz = 3: expected a divisor of 1,000,000,000"),
        ({"tcp_max_retrans": 256}, "tcp_max_retrans = 256: expected 0 to 255"),
        ({"events": frozenset({"birth"})}, "events: 'birth': expected new, update, destroy"),
        ({"timeouts": {"tcp_timeout": 1}}, "timeouts: 'tcp_timeout': expected one of"),
        ({"timeouts": {"udp_timeout": 1.5}}, "timeouts: udp_timeout = 1.5: expected 0 to 8589934 whole seconds"),
        ({"timeouts": {"udp_timeout": "30"}}, "timeouts: udp_timeout = '30': expected 0 to 8589934 whole seconds"),
        ({"buckets": 0}, "buckets = 0: expected 1 to 67108864"),
        ({"timeouts": {"udp_timeout": 1 << 40}}, "timeouts: udp_timeout = 1099511627776: expected 0 to 8589934 whole seconds"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Config(**settings)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda t: t.set_mark(0, -1), "mark -1: expected 0 to 4294967295"),
        (lambda t: t.set_mark(0, 1 << 32), "mark 4294967296: expected 0 to 4294967295"),
        (lambda t: t.set_mark(0, "1"), "mark '1': expected"),
        (lambda t: t.set_mark(1 << 63, 1), "connection 9223372036854775808: expected"),
        (lambda t: t.set_label(0, -1), "label -1: expected"),
        (lambda t: t.set_label(0, 1.5), "label 1.5: expected"),
        (lambda t: t.expire(1 << 63), "now: 9223372036854775808: expected -9223372036854775808 to 9223372036854775807 ns"),
        (lambda t: t.expire(-(1 << 63) - 1), "now: -9223372036854775809: expected"),
        (lambda t: t.expire(1.5), "now: 1.5: expected"),
        (lambda t: t.conn(-1), "connection -1: expected"),
        (lambda t: t.conn("0"), "connection '0': expected"),
        (lambda t: t.expect(0, "10.0.0.1", "10.0.0.2", 1 << 40, 21), "proto = 1099511627776: expected 0 to 255"),
        (lambda t: t.expect(0, "10.0.0.1", "10.0.0.2", 6, 2.5), "dport = 2.5: expected 0 to 65535"),
    ],
)
def test_numbers_that_do_not_fit_are_refused_and_change_nothing(make_tracker, call, message):
    tracker = make_tracker()
    tracker.advance(parse_batch(*frames_of([craft.udp("10.0.0.1", "10.0.0.2", 1000, 53)], ts=5 * SECOND)))
    before = tracker.conns().tobytes()
    with pytest.raises(ConfigError, match=message):
        call(tracker)
    assert (tracker.conns().tobytes(), tracker.now, tracker.expectations()) == (before, 5 * SECOND, [])


def test_numbers_of_numpy_are_numbers(make_tracker):
    tracker = make_tracker(timeouts={"udp_timeout": np.int64(7)})
    tracker.advance(parse_batch(*frames_of([craft.udp("10.0.0.1", "10.0.0.2", 1000, 53)], ts=5 * SECOND)))
    tracker.set_mark(np.int64(0), np.uint32(5))
    tracker.expire(np.int64(6 * SECOND))
    assert (tracker.conn(np.int64(0))["mark"], tracker.conns()["timeout"]) == (5, 6 * 250)


def test_a_batch_passes_once():
    tracker, batch = Tracker(), parse_batch(*frames_of([craft.udp("10.0.0.1", "10.0.0.2", 1000, 53)]))
    tracker.advance(batch)
    with pytest.raises(ValueError, match="expected a newly parsed one"):
        tracker.advance(batch)


def test_threads_are_kept_apart():
    """While one thread is at work without the GIL, another one gets an error instead of a torn table."""
    tracker = Tracker(Config(max=100_000))
    memory, frames = mixed_traffic(20_000, 4)
    batches = [parse_batch(memory, np.tile(frames, 20)) for _ in range(3)]
    refused = []

    def look():
        while worker.is_alive():
            try:
                tracker.conns()
            except RuntimeError as error:
                refused.append(str(error))

    worker = threading.Thread(target=lambda: [tracker.advance(batch) for batch in batches])
    observer = threading.Thread(target=look)
    worker.start()
    observer.start()
    worker.join()
    observer.join()
    assert set(refused) <= {"tracker: another thread is at work with it: expected one at a time"}
    tracker.check()


def test_nobody_else_may_work_meanwhile():
    """The observer cannot miss a run that lasts longer than its own look."""
    tracker = Tracker()
    memory, frames = mixed_traffic(20_000, 5)
    batch = parse_batch(memory, np.tile(frames, 100))
    outcomes = []
    worker = threading.Thread(target=tracker.advance, args=(batch,))
    worker.start()
    while worker.is_alive() and not outcomes:
        try:
            tracker.expire(0)
        except RuntimeError as error:
            outcomes.append(error)
    worker.join()
    assert outcomes


def test_the_rows_of_a_batch_cannot_be_written():
    """What l4 points to is read: nobody but the parser may say where that is."""
    batch = parse_batch(*frames_of([craft.udp("10.0.0.1", "10.0.0.2", 1000, 53)]))
    with pytest.raises(ValueError, match="read-only"):
        batch.array["l4"] = 1
