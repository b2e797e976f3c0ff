"""A tracker that is saved and taken up by another one, again and again in the middle of traffic, goes on as the model does, which never is.

Everything that test_equality and its kin compare is compared here as well. What a state does not hold is held by Relay: counters, and how full a pool
has been. Events and evictions are taken before each break, as a node does before it stops.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ctcore.config import Config
from ctcore.nat_rules import NatPool
from ctcore.tracker import Tracker
from pcap_tests.conftest import examples
from pcap_tests.test_ctcore import test_equality as plain
from pcap_tests.test_ctcore import test_nat_equality as nat
from pcap_tests.test_ctcore.test_equality import EXAMPLES, pick, series, steps
from pcap_tests.test_ctcore.test_helpers import test_helpers_agree as helpers
from pcap_tests.test_ctcore.twins import Twins


class Relay:
    """Trackers that follow each other, as one."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.tracker = Tracker(config)
        self.counted: dict[str, int] = dict.fromkeys(self.tracker.counters(), 0)
        self.lost = self.evictions_gone = 0
        self.pools = self.tracker.nat_pools()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tracker, name)

    def hand_over(self) -> None:
        assert not self.tracker.events_waiting
        self.pools = self.nat_pools()
        self.lost, self.evictions_gone = self.events_lost, self.evictions_lost
        self.counted = self.counters()
        before, after = self.tracker, Tracker(self.config)
        state = before.save()
        after.restore(state)
        assert after.save() == state
        assert after.conns().tobytes() == before.conns().tobytes()
        before.check()
        self.tracker = after

    def counters(self) -> dict[str, int]:
        return {name: self.counted[name] + count for name, count in self.tracker.counters().items()}

    @property
    def events_lost(self) -> int:
        return self.lost + self.tracker.events_lost

    @property
    def evictions_lost(self) -> int:
        return self.evictions_gone + self.tracker.evictions_lost

    def nat_pools(self) -> list[NatPool]:
        pairs = zip(self.pools, self.tracker.nat_pools(), strict=True)
        return [new._replace(high_water=max(old.high_water, new.high_water), exhausted=old.exhausted + new.exhausted) for old, new in pairs]


class Breaks(Twins):
    """Twins whose engine is replaced at each interrupt()."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.engine: Any = Relay(config)

    def advance(self, tracker, frames, times):
        return super().advance(tracker.tracker if isinstance(tracker, Relay) else tracker, frames, times)

    def interrupt(self) -> None:
        self.take_events()
        self.take_evictions()
        self.engine.hand_over()
        self.compare()


def run(config: Config, data: bytes, play) -> None:
    """As test_equality.run, with a break after some of the batches."""
    twins = Breaks(config)
    for step in steps(data):
        twins.wait(pick(plain.WAITS, step[-1] & 0x3F))
        play(twins, step[:-1])
        if step[-1] >= 0xC0:
            plain.end_batch(twins, step[-2])
        if step[-2] % 5 == 0:
            twins.interrupt()
    twins.interrupt()
    twins.call("expire", twins.now + 10**15)
    twins.take_events()


@given(plain.config(), series)
@EXAMPLES
def test_tcp(config, data):
    run(config, data, plain.TcpPlay())


@given(plain.config(), series)
@EXAMPLES
def test_sctp(config, data):
    run(config, data, plain.SctpPlay())


@given(plain.config(), series)
@EXAMPLES
def test_datagrams(config, data):
    run(config, data, plain.DatagramPlay())


@given(plain.config(max=st.sampled_from([4, 16, 64]), buckets=st.sampled_from(plain.BUCKETS), expect_max=st.sampled_from([1, 3, 100])), series)
@EXAMPLES
def test_a_full_table_expectations_and_marks(config, data):
    run(config, data, plain.CrowdPlay())


@given(plain.config(zone_dir=st.sampled_from(["original", "reply"])), series)
@EXAMPLES
def test_zones_of_one_direction(config, data):
    run(config, data, plain.CrowdPlay())


class NatPlay(nat.NatPlay):
    """Without preferred ports: they are a caller's word for the next search, and no state."""

    def __call__(self, twins: Twins, step: bytes) -> None:
        super().__call__(twins, bytes([step[0] - 2 if 250 <= step[0] < 252 else step[0]]) + step[1:])


@given(nat.translating, series)
@EXAMPLES
def test_translation(config, data):
    plays: dict[int, NatPlay] = {}
    run(config, data, lambda twins, step: plays.setdefault(0, NatPlay(twins.model))(twins, step))


class Helped(Breaks, helpers.Helped):
    """Twins with helpers, whose engine is replaced after every batch."""

    breaking = False

    def flush_batch(self, piece: int = 1 << 20) -> np.ndarray:
        decisions = super().flush_batch(piece)
        if not self.breaking:
            self.breaking = True
            self.interrupt()
            self.breaking = False
        return decisions


@settings(max_examples=examples(120), suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.sampled_from(sorted(helpers.PORTS)), st.integers(0, 1), st.booleans(), st.sampled_from([1, 2, 4096]), helpers.steps)
def test_helpers(helper, six, translated, expect_max, said):
    nat_rules = helpers.SNAT if translated else ()
    config = Config(helpers=helpers.RULES, nat=nat_rules, expect_max=expect_max, max=1000, events=frozenset({"new", "update", "destroy"}))
    twins = Helped(config)
    helpers.talk(twins, helper, six, translated, said)
    twins.flush_batch()
    twins.call("expire", twins.now + 10**15)
    twins.take_events()
