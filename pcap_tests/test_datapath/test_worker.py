"""The straight line: Pipeline counts what it decides, whatever is asked of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ctcore import Config, ConfigError
from ctcore.errors import CaptureError
from ctcore.reasons import NAMES
from ctcore.types import State
from datapath import Pipeline, craft, frames_of
from pcap_tests.capture_files import enhanced, interface, opened, section, simple

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


# --- from a source ---------------------------------------------------------------------------------------------------------------------

BLOCKS = [enhanced(packet, stamp) for stamp, packet in enumerate(PACKETS)] + [interface(), section() + interface(), simple(PACKETS[0])]


def drained(source, read):
    """What read() hands out until the source ends, and the damage it ends with, or None."""
    found = []
    try:
        while len((got := read(source))[1]):
            found.append((got[0][got[1]["offset"]].tolist(), got[1].tolist()))
    except CaptureError as damage:
        return found, str(damage)
    return found, None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    picked=st.lists(st.sampled_from(BLOCKS), max_size=300), n=st.sampled_from([1, 63, 64, 65, 128, 1000]), window=st.sampled_from([None, 7, 4096]),
    cut=st.integers(0, 40), clock=st.sampled_from(["capture", "wall"]),
)  # fmt: skip
def test_a_source_replayed_is_a_source_read_and_its_frames_processed(tmp_path, picked, n, window, cut, clock):
    """The same frames call by call, the same damage behind them, the same counts and connections, wherever the capture breaks off."""
    data = section() + interface() + b"".join(picked)
    data = data[: max(len(section() + interface()), len(data) - cut)]
    ours, theirs = Pipeline(clock=clock), Pipeline(clock=clock)

    def both(source):
        memory, frames = source.read(n)
        theirs.process(memory, frames, decisions=False)
        return memory, frames

    with opened(tmp_path, data, window) as source:
        replayed = drained(source, lambda source: ours.replay(source, n))
    with opened(tmp_path, data, window) as source:
        assert drained(source, both) == replayed
    assert str(ours.summary()) == str(theirs.summary())
    if clock == "capture":
        assert ours.tracker.now == theirs.tracker.now
        assert ours.tracker.conns().tobytes() == theirs.tracker.conns().tobytes()
    ours.process(*frames_of(PACKETS))  # neither is left busy


def test_what_cannot_be_replayed_takes_no_packet(tmp_path):
    class Bare(Pipeline):
        def __init__(self):
            pass

    pipeline = Pipeline()
    with opened(tmp_path, section() + interface() + BLOCKS[0]) as source:
        with pytest.raises(ValueError, match="n = 0: expected at least 1"):
            pipeline.replay(source, 0)
        with pytest.raises(ValueError, match="was never set up"):
            Bare().replay(source, 1)
        with pytest.raises(TypeError):
            pipeline.replay(None, 1)
        assert len(pipeline.replay(source, 9)[1]) == source.packets == pipeline.summary()["total_packets"] == 1
    with pytest.raises(CaptureError, match=r"test.pcap: is closed"):
        pipeline.replay(source, 1)


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
