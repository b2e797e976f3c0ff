"""The straight line: Pipeline counts what it decides, whatever is asked of it."""

from __future__ import annotations

import numpy as np
import pytest

from ctcore import Config, ConfigError
from ctcore.reasons import NAMES
from ctcore.types import State
from datapath import Pipeline, craft, frames_of

SECOND = 1_000_000_000
PACKETS = [
    craft.tcp("10.0.0.1", "10.0.0.2", 4000, 80, "S", seq=1),
    craft.tcp("10.0.0.2", "10.0.0.1", 80, 4000, "SA", seq=9, ack=2),
    b"\xff" * 60,
    craft.tcp("10.0.0.1", "10.0.0.2", 4000, 80, "F", seq=2),
    craft.udp("2001:db8::1", "2001:db8::2", 1000, 53),
]


def test_the_summary_is_what_the_decisions_say():
    pipeline = Pipeline()
    memory, frames = frames_of(PACKETS * 100, ts=np.arange(500) * 1000)
    decisions, keys = pipeline.process(memory, frames, keys=True)
    summary = pipeline.summary()
    assert list(summary["packets"]) == list(np.bincount(decisions["state"], minlength=6))
    assert list(summary["reason_packets"]) == list(np.bincount(decisions["reason"], minlength=len(NAMES)))
    assert summary["reason_first"][NAMES.index("not_ip")] == 2
    assert summary["total_packets"] == 500 and summary["total_bytes"] == sum(map(len, PACKETS)) * 100
    assert summary["first_ts"] == 0 and summary["last_ts"] == 499_000
    assert list(keys[:5]["dport"]) == [80, 4000, 0, 80, 53]


@pytest.mark.parametrize("options", [{"decisions": False}, {"decisions": False, "keys": True}, {"keys": True}, {}])
def test_what_is_returned_changes_nothing(options):
    memory, frames = frames_of(PACKETS * 100)
    plain, other = Pipeline(), Pipeline()
    plain.process(memory, frames)
    other.process(memory, frames, **options)
    assert str(plain.summary()) == str(other.summary())
    assert plain.tracker.conns().tobytes() == other.tracker.conns().tobytes()


def test_the_zone_is_part_of_the_tuple():
    memory, frames = frames_of(PACKETS[:2])
    decisions = Pipeline(zone=7).process(memory, frames)
    assert set(decisions["zone"]) == {7}
    with pytest.raises(ConfigError, match="zone = 65536: expected 0 to 65535"):
        Pipeline(zone=65536)


def test_the_wall_clock_replaces_the_captures():
    pipeline = Pipeline(clock="wall")
    pipeline.process(*frames_of(PACKETS, ts=5))
    assert pipeline.tracker.now > 1_700_000_000 * SECOND
    assert pipeline.summary()["last_ts"] == 5


def test_checksums_can_be_left_alone():
    bad = craft.tcp("10.0.0.1", "10.0.0.2", 4000, 80, "S", l4_checksum=1)
    states = [Pipeline(Config(checksum=check)).process(*frames_of([bad]))["state"][0] for check in (True, False)]
    assert states == [State.INVALID, State.NEW]


def test_timestamps_that_go_back_are_counted():
    pipeline = Pipeline()
    pipeline.process(*frames_of(PACKETS, ts=[5, 4, 6, 1, 7]))
    assert pipeline.summary()["backwards"] == 2


@pytest.mark.parametrize("offset, caplen", [(0, 1000), (1 << 63, 10), ((1 << 64) - 5, 10), (55, 60)])
def test_frames_beyond_the_memory_are_refused(offset, caplen):
    memory, frames = frames_of([b"\0" * 60])
    frames["offset"], frames["caplen"] = offset, caplen
    with pytest.raises(ValueError, match=r"expected offset \+ caplen within the 60 bytes of memory"):
        Pipeline().process(memory, frames)


def test_the_first_and_the_last_time_stamp_are_the_earliest_and_the_latest():
    pipeline = Pipeline()
    pipeline.process(*frames_of(PACKETS, ts=[5, 4, 6, 1, 7]))
    assert (pipeline.summary()["first_ts"], pipeline.summary()["last_ts"]) == (1, 7)


# --- one thread, one set-up ------------------------------------------------------------------------------------------------------------


def test_a_subclass_that_was_not_set_up_is_told_so():
    class Bare(Pipeline):
        def __init__(self):
            pass

    with pytest.raises(ValueError, match="pipeline: was never set up: a subclass has to call"):
        Bare().process(*frames_of(PACKETS))
    assert Bare().summary()["total_packets"] == 0


def test_a_pipeline_is_set_up_once():
    """Its tracker and rows may be in use."""
    pipeline = Pipeline()
    with pytest.raises(RuntimeError, match="was set up already"):
        pipeline.__init__(batch=1024)
    assert len(pipeline.process(*frames_of(PACKETS))) == len(PACKETS)
