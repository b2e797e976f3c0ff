"""Connections chosen by what they have: read, changed, deleted, as conntrack(8) -L, -U and -D do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctcore import Filter
from ctcore.errors import ConfigError
from ctcore.types import KEY_DTYPE, Change, Dir, Status
from datapath import craft
from pcap_tests.scene import CLIENT, CLIENT6, SERVER, SERVER6, Scene, established, events, udp
from pcap_tests.test_ctcore.test_equality import EXAMPLES, ZONES, CrowdPlay, DatagramPlay, config, pick, run, series
from pcap_tests.test_ctcore.twins import Twins, same

ALL = frozenset({"new", "update", "destroy"})
FIXED = Status.FIXED_TIMEOUT


def crowd(tracker) -> Scene:
    """Nine connections, by ordinal: 0-3 UDP from ports 1000-1003, 4 another client, 5 TCP, 6 IPv6, 7 ICMP, 8 in zone 5."""
    scene = Scene(tracker)
    for n in range(4):
        udp(tracker, scene=scene, port=(1000 + n, 53)).orig()
    udp(tracker, scene=scene, address=("10.0.9.1", SERVER), port=(1000, 53)).orig()
    established(tracker, scene=scene)
    udp(tracker, scene=scene, address=(CLIENT6, SERVER6), port=(1000, 53)).orig()
    scene.send(craft.icmp(CLIENT, SERVER, 8, ident=77))
    udp(tracker, scene=scene, zone=5, port=(1000, 53)).orig()
    return scene


def chosen(tracker, filter: Filter) -> list[int]:
    return tracker.select(filter)["flow"]["id"][:, 0].tolist()


# --- select ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields, ordinals",
    [
        ({}, [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        ({"family": 6}, [6]),
        ({"proto": 6}, [5]),
        ({"proto": 17, "family": 4}, [0, 1, 2, 3, 4, 8]),
        ({"src": CLIENT, "proto": 17}, [0, 1, 2, 3, 8]),
        ({"src": "10.0.9.0/24"}, [4]),
        ({"src": "10.0.0.0/16", "sport": 1000}, [0, 4, 8]),
        ({"src": "0.0.0.0/0"}, [0, 1, 2, 3, 4, 5, 7, 8]),
        ({"dst": "2001:db8::/32"}, [6]),
        ({"dport": 80}, [5]),
        ({"sport": 77, "dport": 8 << 8}, [7]),
        ({"reply_src": SERVER, "reply_dport": 1001}, [1]),
        ({"reply_dst": "10.0.9.1"}, [4]),
        ({"reply_sport": 53, "reply_dport": 1000, "family": 6}, [6]),
        ({"zone": 5}, [8]),
        ({"zone": 0, "sport": 1000}, [0, 4, 6]),
        ({"status": Status.ASSURED}, [5]),
        ({"status": Status.CONFIRMED, "not_status": Status.SEEN_REPLY, "proto": 17, "sport": 1003}, [3]),
        ({"src": SERVER}, []),
    ],
)
def test_each_field_chooses(tracker, fields, ordinals):
    crowd(tracker)
    assert chosen(tracker, Filter(**fields)) == ordinals


@pytest.mark.parametrize("zone_dir", ["both", "original", "reply"])
def test_a_zone_is_the_connections_whatever_direction_it_is_of(make_tracker, zone_dir):
    tracker = make_tracker(zone_dir=zone_dir)
    scene = Scene(tracker)
    udp(tracker, scene=scene, zone=5, port=(1, 2)).orig()
    udp(tracker, scene=scene, zone=6, port=(3, 4)).orig()
    assert chosen(tracker, Filter(zone=5)) == [0]
    whole = {"proto": 17, "src": CLIENT, "dst": SERVER, "sport": 1, "dport": 2}
    assert (chosen(tracker, Filter(**whole, zone=5)), chosen(tracker, Filter(**whole, zone=6))) == ([0], [])


def test_a_whole_tuple_of_either_direction(tracker):
    crowd(tracker)
    original, reply = tracker.conn(2)["flow"]["key"][0]
    assert chosen(tracker, Filter(original=original.tobytes())) == [2]
    assert chosen(tracker, Filter(reply=reply.tobytes())) == [2]
    assert chosen(tracker, Filter(original=original.tobytes(), sport=1002, zone=0)) == [2]
    assert chosen(tracker, Filter(original=original.tobytes(), status=Status.ASSURED)) == []
    assert chosen(tracker, Filter(original=reply.tobytes())) == [], "that tuple is no original one"


def test_a_host_that_speaks_to_itself(tracker):
    """Its connection lies in the table by its reply only."""
    udp(tracker, address=(CLIENT, CLIENT), port=(7, 7)).orig()
    assert chosen(tracker, Filter(original=tracker.conn(0)["flow"]["key"][0, Dir.ORIG].tobytes())) == [0]


def test_a_selection_shows_connections_as_they_are(tracker):
    scene = crowd(tracker)
    scene.wait(3)
    tracker.expire(scene.now)
    everything, some = tracker.conns(), tracker.select(Filter(sport=1000))
    same(some, everything[[0, 4, 6, 8]], "conns")
    assert (some["timeout"] == 27 * 250).all()


def test_marks_and_labels_under_masks(tracker):
    crowd(tracker)
    for n in range(4):
        tracker.set_mark(n, n << 8 | 0xF0)
        tracker.set_label(n, n << 100)
    assert chosen(tracker, Filter(mark=0x2F0)) == [2]
    assert chosen(tracker, Filter(mark=0xF0, mark_mask=0xFF)) == [0, 1, 2, 3]
    assert chosen(tracker, Filter(mark=0x1FFFF, mark_mask=0x100)) == [1, 3]
    assert chosen(tracker, Filter(label=3 << 100)) == [3]
    assert chosen(tracker, Filter(label=2 << 100, label_mask=2 << 100)) == [2, 3]


# --- delete and flush ------------------------------------------------------------------------------------------------------------------


def test_delete_tells_how_many_and_of_each(make_tracker):
    tracker = make_tracker(events=frozenset({"destroy"}))
    crowd(tracker)
    assert tracker.delete(Filter(proto=17, family=4, zone=0)) == 5
    assert sorted(event.conn for event in events(tracker)) == [0, 1, 2, 3, 4]
    assert tracker.delete(Filter(proto=17, family=4, zone=0)) == 0
    assert tracker.count == 4
    assert tracker.flush(Filter(zone=5)) == 1
    assert tracker.flush() == 3
    assert {event.end for event in events(tracker)} == {"flushed"}


def test_what_a_deleted_connection_expected_goes_with_it(tracker):
    crowd(tracker)
    tracker.expect(0, CLIENT, SERVER, craft.TCP, 20)
    assert tracker.delete(Filter(sport=1000, zone=0, family=4, src=CLIENT)) == 1
    assert tracker.expectations() == []


# --- update ----------------------------------------------------------------------------------------------------------------------------


def test_a_mark_changes_under_its_mask(make_tracker):
    tracker = make_tracker(events=ALL)
    crowd(tracker)
    tracker.set_mark(0, 0xABCD)
    tracker.events()
    assert tracker.update(Filter(proto=17, family=4, src=CLIENT, zone=0), mark=0x0012, mark_mask=0x00FF) == 4
    assert [int(tracker.conn(n)["mark"][0]) for n in range(4)] == [0xAB12, 0x12, 0x12, 0x12]
    told = events(tracker)
    assert {(event.kind, int(event.record["changes"])) for event in told} == {("update", Change.CHANGE_MARK)}
    assert tracker.update(Filter(mark=0xAB12), mark=0xAB12) == 1
    assert events(tracker) == [], "nothing has changed"


@pytest.mark.parametrize("old, value, mask, new", [(0xFF, 0, 0x0F, 0xF0), (0xF0, 0x01, 0xFFFFFFFF, 0x01), (0x0F, 0xF0, 0, 0xFF), (1, 3, 1, 3)])
def test_new_is_value_or_old_without_mask(tracker, old, value, mask, new):
    udp(tracker).orig()
    tracker.set_mark(0, old)
    tracker.set_mark(0, value, mask)
    assert tracker.conn(0)["mark"][0] == new
    tracker.set_label(0, old << 64 | old)
    tracker.set_label(0, value << 64, mask << 64)
    assert tracker.conn(0)["label"][0].tolist() == [old, new]


def test_a_marked_connection_shows_it_in_its_packets(tracker):
    talk = udp(tracker)
    talk.orig()
    tracker.update(Filter(), mark=7)
    talk.reply().is_("established", mark=7)


def test_a_timeout_is_set_from_now(make_tracker):
    tracker = make_tracker(events=ALL)
    talk = udp(tracker)
    talk.orig()
    tracker.events()
    talk.wait(10)
    tracker.expire(talk.scene.now)
    assert tracker.update(Filter(), timeout=100) == 1
    assert talk.left == 100
    assert [(event.left, int(event.record["changes"])) for event in events(tracker)] == [(100, Change.CHANGE_TIMEOUT)]
    talk.orig().is_("new", timeout=30)


@pytest.mark.parametrize("seconds", [1, 29, 31, 1000])
def test_it_expires_when_that_says(tracker, seconds):
    talk = udp(tracker)
    talk.orig()
    tracker.update(Filter(), timeout=seconds)
    tracker.expire(talk.scene.now + seconds * 10**9 - 4_000_000)
    assert tracker.count == 1
    tracker.expire(talk.scene.now + seconds * 10**9)
    assert tracker.count == 0


def test_a_timeout_of_0_ends_it(make_tracker):
    tracker = make_tracker(events=ALL)
    talk = udp(tracker)
    talk.orig()
    tracker.events()
    assert tracker.update(Filter(), timeout=0) == 1
    assert [(event.kind, event.end, event.left) for event in events(tracker)] == [("destroy", "timeout", 0)]
    assert (tracker.count, tracker.counters()["expired"]) == (0, 1)


def test_a_fixed_timeout_stays(make_tracker):
    """Of packets and of administrators alike (ctnetlink: EPERM); nothing of that connection changes then."""
    tracker = make_tracker(events=ALL)
    talk = udp(tracker)
    talk.orig()
    tracker.events()
    assert tracker.update(Filter(), timeout=600, status=FIXED) == 1
    assert [int(event.record["changes"]) for event in events(tracker)] == [Change.CHANGE_TIMEOUT]
    talk.wait(60).reply().is_("established", timeout=540, has={"fixed-timeout"})
    assert tracker.update(Filter(), timeout=5, mark=9) == 0
    assert (talk.left, int(talk.entry["mark"])) == (540, 0)
    assert tracker.update(Filter(), mark=9) == 1


def test_assured_and_seen_reply_can_be_set(make_tracker):
    tracker = make_tracker(events=ALL, max=1, buckets=1)
    talk = udp(tracker)
    talk.orig()
    tracker.events()
    assert tracker.update(Filter(), status=Status.ASSURED | Status.SEEN_REPLY | Status.ASSURED) == 1
    (update,) = events(tracker)
    assert int(update.record["changes"]) == Change.CHANGE_ASSURED | Change.CHANGE_REPLY
    talk.orig().is_("established", dir="original", has={"assured", "seen-reply"})
    udp(tracker, scene=talk.scene, port=(9, 53)).orig().is_("not-seen", reason="table_full")


@pytest.mark.parametrize("bit", [Status.CONFIRMED, Status.EXPECTED, Status.DYING, Status.SRC_NAT, Status.SRC_NAT_DONE, Status.OFFLOAD, 1 << 16])
def test_other_bits_are_refused_and_nothing_changes(tracker, bit):
    udp(tracker).orig()
    with pytest.raises(ConfigError, match="status"):
        tracker.update(Filter(), mark=3, status=bit)
    assert tracker.conn(0)["mark"][0] == 0


@pytest.mark.parametrize(
    "change, message",
    [
        ({"mark": -1}, "mark -1: expected 0 to 4294967295"),
        ({"mark": 1, "mark_mask": 1 << 32}, "mark_mask 4294967296: expected"),
        ({"label": 1 << 128}, "label 3402"),
        ({"timeout": -1}, "timeout -1: expected 0 to 8589934 whole seconds"),
        ({"timeout": 1.5}, "timeout 1.5: expected"),
    ],
)
def test_changes_that_cannot_be(tracker, change, message):
    udp(tracker).orig()
    before = tracker.conns().tobytes()
    with pytest.raises(ConfigError, match=message):
        tracker.update(Filter(), **change)
    assert tracker.conns().tobytes() == before


# --- filters that cannot be --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"family": 5}, "filter: family = 5: expected 4 or 6"),
        ({"proto": 256}, "filter: proto = 256: expected 0 to 255"),
        ({"src": "10.0.0.1/8"}, "filter: src = '10.0.0.1/8': expected an address, or a network without bits behind its prefix"),
        ({"reply_dst": "host"}, "filter: reply_dst = 'host': expected an address"),
        ({"src": CLIENT, "dst": SERVER6}, "expected one family"),
        ({"src": CLIENT, "family": 6}, "expected one family"),
        ({"sport": 65536}, "filter: sport = 65536: expected 0 to 65535"),
        ({"reply_dport": -1}, "filter: reply_dport = -1: expected 0 to 65535"),
        ({"zone": 65536}, "filter: zone = 65536: expected 0 to 65535"),
        ({"mark": 1 << 32}, "filter: mark = 4294967296: expected 0 to 4294967295"),
        ({"label_mask": 1 << 128}, "filter: label_mask"),
        ({"status": 6, "not_status": 4}, "filter: status 0x4 is to be set and not set"),
        ({"original": bytes(39)}, "filter: original: expected the 40 bytes of a KEY_DTYPE, found 39"),
        ({"reply": bytes(40), "reply_sport": 5}, "filter: reply: contradicts the other fields"),
    ],
)
def test_filters_that_cannot_be(fields, message):
    with pytest.raises(ConfigError, match=message):
        Filter(**fields)


def test_only_filters_are_taken(tracker):
    for call in (tracker.select, tracker.delete, tracker.update):
        with pytest.raises(ConfigError, match="expected a Filter"):
            call({"proto": 6})


# --- engine and model ------------------------------------------------------------------------------------------------------------------

ADDRESSES = (None, None, "10.0.0.1", "10.0.0.2", "10.0.0.0/30", "0.0.0.0/0", "2001:db8::/64", "fe80::1")
PORTS = (None, None, None, 80, 81, 53, 40000, 40001, 1000)
TIMEOUTS = (None, 0, 1, 30, 100, 500000)
STATUSES = (0, 0, 0, Status.ASSURED, Status.SEEN_REPLY, FIXED, Status.SEEN_REPLY | Status.ASSURED)


def filter_of(step: bytes) -> Filter | None:
    """A filter that steps' connections may fit; None if its fields contradict each other."""
    directions = ("", "reply_")
    prefix = directions[step[0] & 1]
    fields = {
        f"{prefix}src": pick(ADDRESSES, step[1]),
        f"{prefix}dst": pick(ADDRESSES, step[2]),
        f"{prefix}sport": pick(PORTS, step[3]),
        f"{prefix}dport": pick(PORTS, step[4]),
        "proto": pick((None, None, 6, 17, 1), step[5]),
        "zone": pick((None, None, *ZONES), step[6]),
        "mark": pick((None, None, 0, 1), step[7]),
        "mark_mask": pick((1, 0xFFFFFFFF), step[7] >> 4),
        "not_status": pick(STATUSES, step[0] >> 3),
    }
    try:
        return Filter(**fields)
    except ConfigError:
        return None


class AdminPlay:
    """Traffic, and an administrator at work in it."""

    def __init__(self):
        self.traffic = CrowdPlay(), DatagramPlay()

    def __call__(self, twins: Twins, step: bytes) -> None:
        what = step[0] % 10
        if what >= 4:
            self.traffic[what & 1](twins, step[1:] + step[:1])
            return
        filter = self.whole(twins, step) if step[1] & 3 == 0 else filter_of(step[::-1])
        if filter is None:
            return
        twins.select(filter)
        if what == 0:
            twins.call("delete", filter)
        elif what < 3:
            twins.call("update", filter, mark=step[2] & 3, mark_mask=pick((1, 2, 0xFFFFFFFF), step[3]), timeout=pick(TIMEOUTS, step[4]),
                       status=pick(STATUSES, step[5]), label=pick((None, 1 << 100, 5), step[6]), label_mask=pick((7, 1 << 100), step[6]))  # fmt: skip

    def whole(self, twins: Twins, step: bytes) -> Filter | None:
        """By the tuple of a connection that is there."""
        twins.flush_batch()
        conns = twins.engine.conns()
        if not len(conns):
            return None
        d = step[2] & 1
        key = conns["flow"]["key"][step[3] % len(conns), d].tobytes()
        assert len(key) == KEY_DTYPE.itemsize
        return Filter(**{("original", "reply")[d]: key})


@given(config(zone_dir=st.sampled_from(["both", "both", "original", "reply"])), series)
@EXAMPLES
def test_engine_and_model_agree(config, data):
    run(config, data, AdminPlay())
