"""Whatever packets come in whatever order, engine and model agree: on every decision, every event, and every field of every connection.

Each example is a string of bytes that is read as a series of steps (so that shrinking removes steps): mostly packets that nearly fit, from few
tuples, so that they meet; now and then a jump of time, or what a caller may do. The steps reach both trackers in batches of random size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ctcore.tracker
from ctcore.config import Config
from ctcore.errors import ConfigError
from ctcore.model import ModelTracker
from ctcore.tracker import Tracker
from datapath.frame import frames_of
from datapath.wire import parse_batch
from pcap_tests import traffic
from pcap_tests.scene import SECOND, START, options, sack

STEP = 8  # bytes
EXAMPLES = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
series = st.binary(min_size=STEP * 48, max_size=STEP * 96)  # long enough to get somewhere: a short minimum would make nearly all of them short

WAITS = (0, 0, 0, 0, 0, 0.001, 0.004, 0.5, 1, 1.999, 2.004, 3, 10, 30, 60, 119.996, 120, 300, -1, 500000)
FLAGS = ("S", "S", "SA", "SA", "A", "A", "A", "A", "PA", "FA", "FA", "R", "RA", "R", "SU", "FAU", "SAU", "F", "", "SR", "SF")
OFFSETS = (0, 0, 0, 0, 0, 0, 1, -1, 2, 99, -100, 8191, 8192, 8193, -8192, -8193, 65535, -65999, -66000, -66001, -66002, 70000, 1 << 31, (1 << 31) - 1)
WINDOWS = (8192, 8192, 0, 1, 65535)
PAYLOADS = (0, 0, 0, 1, 100, 1400)


def config(**fixed) -> st.SearchStrategy[Config]:
    """Any settings; short timeouts now and then."""
    names = st.sampled_from(["tcp_timeout_established", "tcp_timeout_unacknowledged", "tcp_timeout_max_retrans", "tcp_timeout_close", "udp_timeout"])
    drawn = {
        "tcp_liberal": st.booleans(),
        "tcp_loose": st.booleans(),
        "tcp_max_retrans": st.sampled_from([0, 1, 3]),
        "tcp_ignore_invalid_rst": st.booleans(),
        "acct": st.booleans(),
        "max": st.sampled_from([4, 16, 64, 1000]),
        "hz": st.sampled_from([1, 100, 250, 1000]),
        "seed": st.integers(0, 3),
        "events": st.sampled_from([frozenset({"new", "update", "destroy"}), frozenset({"destroy"}), frozenset({"new", "update"}), frozenset()]),
        "timeouts": st.dictionaries(names, st.sampled_from([1, 2, 60, 119, 300, 1000]), max_size=2),
    }
    return st.builds(Config, **{name: strategy for name, strategy in drawn.items() if name not in fixed}, **{k: st.just(v) for k, v in fixed.items()})


class Twins:
    """Engine and model, given the same, compared in everything that can be seen of them."""

    def __init__(self, config: Config):
        self.engine, self.model = Tracker(config), ModelTracker(config)
        self.now = START
        self.frames: list[tuple[bytes, int]] = []

    def wait(self, seconds: float) -> None:
        self.now += round(seconds * SECOND)

    def packet(self, frame: bytes) -> None:
        self.frames.append((frame, self.now))

    def flush_batch(self) -> None:
        """Everything that waits goes into both trackers as one batch."""
        if not self.frames:
            return
        frames, times = zip(*self.frames, strict=True)
        self.frames = []
        decisions = [tracker.advance(parse_batch(*frames_of(frames, ts=np.array(times)))) for tracker in (self.engine, self.model)]
        same(*decisions, "decisions")
        self.compare()

    def call(self, method: str, *arguments, **named) -> None:
        """The same call to both; ConfigError from both or from neither."""
        self.flush_batch()
        outcomes = []
        for tracker in (self.engine, self.model):
            try:
                outcomes.append(getattr(tracker, method)(*arguments, **named))
            except ConfigError:
                outcomes.append(ConfigError)
        assert outcomes[0] == outcomes[1], (method, arguments)
        self.compare()

    def compare(self) -> None:
        same(self.engine.conns(), self.model.conns(), "conns")
        same(in_order(self.engine.events()), in_order(self.model.events()), "events")
        ours, theirs = self.engine.counters(), self.model.counters()
        assert {name: ours[name] for name in theirs} == theirs
        assert self.engine.expectations() == self.model.expectations()
        assert (self.engine.now, self.engine.count) == (self.model.now, self.model.count)
        self.engine.check()
        self.model.check()


def same(engine: np.ndarray, model: np.ndarray, what: str) -> None:
    assert len(engine) == len(model), what
    for (field, ours), (_, theirs) in zip(leaves(engine, what), leaves(model, what), strict=True):
        assert ours.tolist() == theirs.tolist(), field


def leaves(array: np.ndarray, name: str) -> Iterator[tuple[str, np.ndarray]]:
    """The plain arrays that a structured one consists of, with their names."""
    if not array.dtype.names:
        yield name, array
    for part in array.dtype.names or ():
        yield from leaves(array[part], f"{name}.{part}")


def in_order(events: np.ndarray) -> np.ndarray:
    """By time; the order within one sweep of expiry is nobody's business."""
    return events[np.lexsort((events["conn"]["flow"]["id"][:, 0], events["time"]))]


def pick(choices, byte: int):
    return choices[byte % len(choices)]


def steps(data: bytes) -> Iterator[bytes]:
    return (data[i : i + STEP] for i in range(0, len(data) - STEP + 1, STEP))


def run(config: Config, data: bytes, play: Callable[[Twins, bytes], None]) -> None:
    """The last byte of a step also says how long to wait, and, by its top bit, whether the batch ends."""
    twins = Twins(config)
    for step in steps(data):
        twins.wait(pick(WAITS, step[-1] & 0x7F))
        play(twins, step)
        if step[-1] & 0x80:
            twins.flush_batch()
    twins.flush_batch()
    twins.call("expire", twins.now + 10**15)
    twins.call("flush")


def test_the_engine_is_the_compiled_one():
    assert ctcore.tracker.__file__.endswith(".so")
    assert Tracker is not ModelTracker


# --- TCP -------------------------------------------------------------------------------------------------------------------------------

ENDS = (
    (("10.0.0.1", 40000), ("10.0.0.2", 80)),
    (("10.0.0.1", 40000), ("10.0.0.2", 80)),
    (("10.0.0.1", 40001), ("10.0.0.2", 80)),
    (("2001:db8::1", 40000), ("2001:db8::2", 80)),
    (("10.0.0.3", 7), ("10.0.0.3", 7)),
)
TCP_OPTIONS = (
    b"",
    b"",
    options(wscale=7, sack_perm=True),
    options(wscale=15),
    options(sack_perm=True),
    b"\2\4\5\xb4",
    b"\3\3\2\0",
    b"\3\4\1\1",
    b"\5\12\0\0",
)
HANDSHAKE = (("S", 0), ("SA", 1), ("A", 0))
GOODBYE = (("FA", 0), ("A", 1), ("FA", 1), ("A", 0))


class TcpPlay:
    """The numbers both ends of each pair would use next; every step deviates a little, or not at all."""

    def __init__(self):
        self.next = [[100, 0xFFFFFF00] for _ in ENDS]

    def __call__(self, twins: Twins, step: bytes) -> None:
        pair, what = step[0] % len(ENDS), step[0] >> 4
        if what == 0:
            for flags, d in HANDSHAKE:
                self.say(twins, pair, d, flags, bytes(STEP))
        elif what == 1:
            for flags, d in GOODBYE:
                self.say(twins, pair, d, flags, bytes(STEP))
        else:
            self.say(twins, pair, what & 1, pick(FLAGS, step[1]), step)

    def say(self, twins: Twins, pair: int, d: int, flags: str, step: bytes) -> None:
        own, peer = self.next[pair][d], self.next[pair][1 - d]
        seq = pick((own, own, own, own, peer, 0), step[2] >> 5) + pick(OFFSETS, step[2])
        ack = pick((peer, peer, peer, peer, own, 0), step[3] >> 5) + pick(OFFSETS, step[3])
        seq, ack = seq & 0xFFFFFFFF, ack & 0xFFFFFFFF
        area = pick((*TCP_OPTIONS, sack((ack + 10, ack + 20), (ack + 1, ack + 8000))), step[4])
        payload = bytes(pick(PAYLOADS, step[5]))
        (src, sport), (dst, dport) = ENDS[pair][d], ENDS[pair][1 - d]
        window = pick(WINDOWS, step[6])
        twins.packet(traffic.tcp(src, dst, sport, dport, flags, seq=seq, ack=ack, win=window, options=area, payload=payload))
        if step[2] % len(OFFSETS) < 6:  # an honest sender goes on from here
            self.next[pair][d] = (seq + len(payload) + ("S" in flags) + ("F" in flags)) & 0xFFFFFFFF


@given(config(), series)
@EXAMPLES
def test_tcp(config, data):
    run(config, data, TcpPlay())
