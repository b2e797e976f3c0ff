"""Saved states: what is in them, into which trackers they go, and that nothing a stranger writes into one leads anywhere but to an error.

Not here: that traffic goes on as if nothing had happened (test_state_equality).
"""

from __future__ import annotations

import struct
from ipaddress import ip_address

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctcore.config import Config
from ctcore.errors import ConfigError, StateError
from ctcore.nat_rules import HelperRule
from ctcore.tracker import Tracker
from datapath import craft
from datapath.frame import frames_of
from datapath.wire import parse_batch
from pcap_tests.conftest import examples
from pcap_tests.router import masquerade, snat
from pcap_tests.scene import CLIENT, CLIENT6, SECOND, SERVER, SERVER6, START
from pcap_tests.test_ctcore.test_helpers.test_tftp_irc_pptp import OUT_REPLY, OUT_REQUEST, START_REPLY, START_REQUEST

HEADER, CHECKSUM = 80, 24
HELPERS = tuple(HelperRule(name, proto, port) for name, proto, port in (("ftp", 6, 21), ("pptp", 6, 1723), ("sip", 17, 5060)))
FULL = Config(max=1000, nat=(snat("192.0.2.1", ports=(5000, 6000)), masquerade("192.0.2.9")), helpers=HELPERS, expect_max=50)


def say(tracker: Tracker, *frames: bytes, at: float = 0, zone: int = 0) -> np.ndarray:
    times = np.full(len(frames), START + round(at * SECOND), dtype=np.int64)
    return tracker.advance(parse_batch(*frames_of(list(frames), ts=times), zone=zone))


def talk(tracker: Tracker, port: int, *said: tuple[int, bytes]) -> None:
    """A TCP connection, and what its client (0) and server (1) say; the server to where it sees the client."""
    say(tracker, craft.tcp(CLIENT, SERVER, 40000, port, "S", seq=100))
    seen = tracker.conns()[-1]["flow"][1]["key"]
    ends = (CLIENT, SERVER, 40000, port), (SERVER, str(ip_address(seen["dst"][:4].tobytes())), port, int(seen["dport"]))
    following = [101, 501]
    frames = [craft.tcp(*ends[1], "SA", seq=500, ack=101), craft.tcp(*ends[0], "A", seq=101, ack=501)]
    for d, payload in said:
        frames.append(craft.tcp(*ends[d], "PA", seq=following[d], ack=following[1 - d], payload=payload))
        following[d] += len(payload)
    say(tracker, *frames)


def everything(config: Config = FULL) -> Tracker:
    """Connections of all protocols, a data connection of FTP that is expected, a PPTP call and its tunnels."""
    tracker = Tracker(config)
    talk(tracker, 21, (0, b"NOOP\r\n"), (1, b"200 ok\r\n"), (0, b"PORT 10,0,0,1,7,208\r\n"))
    talk(tracker, 1723, (0, START_REQUEST), (1, START_REPLY), (0, OUT_REQUEST), (1, OUT_REPLY))
    say(tracker, craft.udp(CLIENT, SERVER, 1000, 53), craft.udp(CLIENT6, SERVER6, 1000, 53), craft.icmp(CLIENT, SERVER, 8, 0, ident=7))
    say(tracker, craft.sctp(CLIENT, SERVER, 5, 6, 0, craft.sctp_init(7)), craft.gre(CLIENT, SERVER, version=0, proto=0x880B, call=0))
    say(tracker, craft.udp(CLIENT, SERVER, 1001, 53), at=1, zone=9)
    tracker.set_mark(0, 0xABCD)
    tracker.set_label(1, 1 << 100)
    tracker.expect(2, CLIENT, SERVER, 17, 4000, sport=9, timeout=20)
    return tracker


def resealed(state: bytearray) -> bytearray:
    """With the checksum that it should have; the engine itself is asked for it."""
    if len(state) < HEADER:
        return state
    struct.pack_into("<Q", state, CHECKSUM, 0)
    with pytest.raises(StateError) as error:
        Tracker(FULL).restore(state)
    text = str(error.value)
    if "checksum" in text:
        struct.pack_into("<Q", state, CHECKSUM, int(text.split("checksum ")[1][:16], 16))
    return state


def taken_up(state, config: Config = FULL, **how) -> Tracker:
    tracker = Tracker(config)
    tracker.restore(state, **how)
    tracker.check()
    return tracker


def test_everything_comes_back():
    before = everything()
    state = before.save()
    after = taken_up(state)
    assert after.conns().tobytes() == before.conns().tobytes()
    assert after.expectations() == before.expectations() and len(after.expectations()) >= 2
    assert after.zone_counts() == before.zone_counts()
    assert (after.now, after.count) == (before.now, before.count)
    assert [pool.in_use for pool in after.nat_pools()] == [pool.in_use for pool in before.nat_pools()]
    assert after.save() == state and before.save() == state


def test_a_state_is_bytes_that_nobody_can_write_to():
    state = everything().save()
    assert state.readonly and state.format == "B" and taken_up(bytes(state)).count == taken_up(bytearray(state)).count
    assert taken_up((b"x" + bytes(state))[1:]).count and taken_up(memoryview(b"x" + bytes(state))[1:]).count, "wherever it lies"


def test_an_empty_tracker_is_saved_as_well():
    assert taken_up(Tracker().save(), Config()).count == 0


def test_ordinals_go_on():
    after = taken_up(everything().save())
    last = int(after.conns()["flow"]["id"].max())
    assert say(after, craft.udp("10.9.9.9", SERVER, 1, 2))["conn"][0] == last + 1


def test_the_time_in_between_counts_once_the_clock_is_moved_on():
    before = Tracker()
    say(before, craft.udp(CLIENT, SERVER, 1000, 53))
    state = before.save()
    after = taken_up(state, Config())
    assert after.conns()["timeout"].tolist() == [30 * 250]
    after.expire(START + 29 * SECOND)
    assert after.conns()["timeout"].tolist() == [250]
    after.expire(START + 30 * SECOND)
    assert after.count == 0


def test_or_it_does_not_count():
    before = Tracker()
    say(before, craft.udp(CLIENT, SERVER, 1000, 53))
    after = taken_up(before.save(), Config(), now=START + 3600 * SECOND)
    assert after.conns()["timeout"].tolist() == [30 * 250] and after.now == START + 3600 * SECOND


def test_counters_events_and_evictions_begin_anew():
    config = Config(events=frozenset({"new"}))
    before = Tracker(config)
    say(before, craft.udp(CLIENT, SERVER, 1000, 53))
    after = taken_up(before.save(), config)
    assert after.events_waiting == 0 and after.counters()["new"] == 0 and before.events_waiting == 1


def test_another_seed_is_welcome():
    before = everything()
    after = taken_up(before.save(), Config(**{**vars(FULL), "seed": 77}))
    assert after.conns().tobytes() == before.conns().tobytes() and after.expectations() == before.expectations()


def test_rules_are_known_again_by_what_they_say():
    before = everything()
    assert before.nat_pools()[0].in_use > 0
    moved = taken_up(before.save(), Config(**{**vars(FULL), "nat": FULL.nat[::-1]}))
    assert moved.nat_pools()[1].in_use == before.nat_pools()[0].in_use and moved.nat_pools()[0].in_use == 0
    gone = taken_up(before.save(), Config(**{**vars(FULL), "nat": FULL.nat[1:]}))
    assert gone.nat_pools()[0].in_use == 0 and gone.count == before.count


# --- where it does not fit --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"max": 3}, "connections: expected 3 at most (max)"),
        ({"hz": 100}, "hz: 250: expected 100"),
        ({"zone_dir": "reply"}, "zone_dir"),
        ({"helpers": ()}, "with a helper: expected 0 at most"),
        ({"helper_max": 1}, "with a helper: expected 1 at most"),
        ({"expect_max": 1}, "expectations: expected 1 at most"),
        ({"nat": ()}, "expected a tracker that translates"),
        ({"max": 1000, "zone_reserves": {5: 995}}, "places that are reserved"),
    ],
)
def test_settings_it_does_not_fit(settings, said):
    tracker = Tracker(Config(**{**vars(FULL), **settings}))
    with pytest.raises(StateError) as error:
        tracker.restore(everything().save())
    assert said in str(error.value)
    untouched(tracker)


def untouched(tracker: Tracker) -> None:
    assert tracker.count == 0 and tracker.now == 0 and tracker.expectations() == [] and not any(tracker.counters().values())
    assert not any(pool.in_use or pool.high_water for pool in tracker.nat_pools())
    tracker.check()


def test_only_an_empty_tracker():
    state = everything().save()
    tracker = everything()
    with pytest.raises(StateError, match="expected an empty one"):
        tracker.restore(state)
    tracker.flush()
    tracker.restore(state)
    tracker.check()
    assert tracker.save() == state


def test_time_does_not_go_back():
    tracker = Tracker(FULL)
    tracker.expire(START + 10**12)
    with pytest.raises(StateError, match="where this tracker's clock stands"):
        tracker.restore(everything().save())
    tracker.restore(everything().save(), now=tracker.now)
    with pytest.raises(ConfigError, match="now"):
        tracker.restore(b"", now=-1)


def words_of_three(config: Config) -> tuple[bytearray, list[int], int]:
    """A state of three connections that take equally many bytes; where each begins, and where in it its ordinal stands."""
    before = Tracker(config)
    say(before, craft.udp("10.7.7.7", SERVER, 1, 53))
    before.flush()
    say(before, *(craft.udp(CLIENT, SERVER, 1000 + i, 53) for i in range(3)))
    state = bytearray(before.save())
    width = (len(state) - HEADER - 8 * len(config.nat)) // 3
    there = struct.unpack_from("<I", state, HEADER)[0]
    return state, [HEADER + i * width for i in range(3)], 8 * (1 + (there & (1 << 14) - 1).bit_count())


@pytest.mark.parametrize("config", [Config(), Config(nat=FULL.nat)])
def test_two_connections_with_one_tuple(config):
    """All that were entered before are taken back."""
    state, (_, second, third), ordinal = words_of_three(config)
    kept = state[third + ordinal :][:8]
    state[third : third + ordinal] = state[second : second + ordinal]
    assert kept == (3).to_bytes(8, "little")
    tracker = Tracker(config)
    with pytest.raises(StateError) as error:
        tracker.restore(resealed(state))
    assert str(error.value) == "state: connection 2: its tuple is another one's"
    untouched(tracker)


def test_ordinals_out_of_order():
    state, (_, second, _), ordinal = words_of_three(Config())
    struct.pack_into("<Q", state, second + ordinal, 1)
    with pytest.raises(StateError) as error:
        Tracker().restore(resealed(state))
    assert str(error.value) == "state: connection 1: ordinal: expected them in order, below the next one"


# --- strangers --------------------------------------------------------------------------------------------------------------------------

STATE = bytes(everything().save())
PLAIN = Config(**{**vars(FULL), "nat": ()})  # untranslated, the call of PPTP has tunnels
STATES = ((FULL, STATE), (PLAIN, bytes(everything(PLAIN).save())))
places = st.tuples(st.sampled_from(STATES), st.floats(0, 1, exclude_max=True))


def test_the_second_one_has_tunnels():
    assert sum(row.proto == 47 for row in everything(PLAIN).expectations()) == 2


@pytest.mark.parametrize(
    "state, said",
    [
        (b"", "0 bytes: expected 80 at least"),
        (STATE[:79], "79 bytes"),
        (b"x" + STATE[1:], "does not begin as a saved state does"),
        (STATE[:8] + b"\2" + STATE[9:], "version 2: expected 1"),
        (STATE[:-8], f"expected {len(STATE)}, as it says itself"),
        (STATE + bytes(8), f"expected {len(STATE)}, as it says itself"),
        (STATE[:-1] + bytes([STATE[-1] ^ 1]), "damaged: checksum"),
    ],
)
def test_what_is_no_state(state, said):
    tracker = Tracker(FULL)
    with pytest.raises(StateError) as error:
        tracker.restore(state)
    assert said in str(error.value) and "\n" not in str(error.value)
    untouched(tracker)


@given(places, st.integers(0, 7))
@settings(max_examples=examples(400))
def test_a_bit_that_flips_is_found(place, bit):
    (config, whole), where = place
    state = bytearray(whole)
    state[int(where * len(state))] ^= 1 << bit
    tracker = Tracker(config)
    with pytest.raises(StateError):
        tracker.restore(state)
    untouched(tracker)


def probe(config: Config, state: bytearray) -> None:
    """All or nothing; and a tracker that took it lives on."""
    tracker = Tracker(config)
    try:
        tracker.restore(state)
    except StateError as error:
        assert "\n" not in str(error)
        untouched(tracker)
        return
    tracker.check()
    ends = (CLIENT, SERVER, 40000, 21)
    command = craft.tcp(*ends, "PA", seq=110, ack=509, payload=b"PORT 10,0,0,1,7,209\r\n")
    say(tracker, command, craft.gre(CLIENT, SERVER, version=1, proto=0x880B, call=7))
    say(tracker, craft.tcp(SERVER, CLIENT, 20, 2000, "S"), craft.icmp_error(SERVER, CLIENT, 3, 3, craft.udp(CLIENT, SERVER, 1000, 53)))
    tracker.check()
    again = Tracker(config)
    again.restore(tracker.save())
    again.check()
    tracker.expire(tracker.now + 10**15)
    tracker.flush()
    tracker.check()


@given(st.sampled_from(STATES), st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6))
@settings(max_examples=examples(1000))
def test_whatever_bytes_a_sealed_state_has(pair, changes):
    config, whole = pair
    state = bytearray(whole)
    for where, value in changes:
        state[8 + int(where * (len(state) - 8))] = value
    probe(config, resealed(state))


words = st.one_of(st.integers(0, (1 << 64) - 1), st.sampled_from([0, 1, 255, (1 << 64) - 1, 1 << 63]))


@given(places, words)
@settings(max_examples=examples(1000))
def test_whatever_words_a_sealed_state_has(place, value):
    (config, whole), where = place
    state = bytearray(whole)
    struct.pack_into("<Q", state, 8 * (1 + int(where * (len(state) // 8 - 1))), value)
    probe(config, resealed(state))


@given(places, st.binary(max_size=64))
@settings(max_examples=examples(400))
def test_whatever_length_a_sealed_state_has(place, more):
    (config, whole), where = place
    state = bytearray(whole[: int(where * len(whole)) & ~7] + more)
    if len(state) >= HEADER:
        struct.pack_into("<Q", state, 16, len(state))
    probe(config, resealed(state))
