"""Records are a contract: their fields, the order of these, and what stands in them."""

from __future__ import annotations

import numpy as np
import pytest

from ctcore.config import Config
from ctcore.types import CONN_DTYPE, DECISION_DTYPE, KEY_DTYPE, Reason, State, Status
from datapath import craft, fields
from datapath.craft import icmp
from datapath.frame import FRAME_DTYPE, frames_of
from datapath.worker import Pipeline
from pcap_tests import stories
from pcap_tests.stories import CLIENT, SERVER

HZ = 250
EVERYTHING = Config(events=frozenset(("new", "update", "destroy")))


def tracked(story, config=EVERYTHING):
    """A pipeline that has seen a story, and the packets' records."""
    memory, frames = frames_of([data for _, data in story], [stories.T + at for at, _ in story])
    pipeline = Pipeline(config)
    decisions, keys = pipeline.process(memory, frames, keys=True)
    return pipeline, list(fields.packet_records(frames, decisions, keys, 0, HZ))


@pytest.fixture(scope="module")
def office():
    return tracked(stories.office())


def test_the_first_packet_of_a_connection_as_the_contract_writes_it(office):
    assert office[1][0] == {
        "i": 0, "ts": 1700000000000000000, "len": 54, "state": "new", "dir": "original", "status": ("confirmed",), "zone": 0, "mark": 0,
        "conn": 0, "proto": "tcp", "l4state": "SYN_SENT", "timeout": 120.0, "verdict": "accept", "reason": "ok", "offload": None,
        "src": "10.0.0.1", "dst": "10.0.0.2", "sport": 40000, "dport": 80, "out": None,
    }  # fmt: skip


def test_fields_stand_in_the_contract_s_order(office):
    order = ["i", "ts", "len", "state", "dir", "status", "zone", "mark", "conn", "proto", "l4state", "timeout", "verdict", "reason", "offload"]
    for record in office[1]:
        names = list(record)
        assert names[: len(order)] == order
        assert names[len(order) : len(order) + 2] == ["src", "dst"]
        assert names[-1] == "out"


def test_the_file_is_named_where_there_are_several():
    frames, decisions, keys = (np.zeros(1, dtype) for dtype in (FRAME_DTYPE, DECISION_DTYPE, KEY_DTYPE))
    record = next(fields.packet_records(frames, decisions, keys, 7, HZ, "b.pcap"))
    assert list(record)[:3] == ["i", "file", "ts"]
    assert (record["i"], record["file"]) == (7, "b.pcap")


def test_what_stands_for_ports(office):
    records = office[1]
    assert [records[10][name] for name in ("type", "code", "id")] == [8, 0, 77]
    assert [records[11][name] for name in ("type", "code", "id")] == [0, 0, 77]
    assert records[18]["key"] == 9
    assert "sport" not in records[10]
    assert "sport" not in records[18]


@pytest.mark.parametrize(("i", "reason", "src"), [(16, "not_ip", None), (17, "fragment", "10.0.0.1")])
def test_a_packet_without_tuple_has_no_ports(office, i, reason, src):
    record = office[1][i]
    assert (record["reason"], record["src"], record["sport"], record["dport"]) == (reason, src, None, None)
    assert (record["state"], record["dir"], record["conn"], record["l4state"], record["timeout"]) == ("not-seen", None, None, None, None)


def test_an_invalid_packet_has_its_connection_s_l4state_but_no_connection():
    story = [*stories.closed_by_client()[:3], (9, craft.tcp(stories.CLIENT, stories.SERVER, 40000, 80, "SFR"))]
    record = tracked(story)[1][3]
    assert (record["state"], record["conn"], record["dir"], record["l4state"]) == ("invalid", None, None, "ESTABLISHED")


@pytest.mark.parametrize(
    ("proto", "name"), [(6, "tcp"), (17, "udp"), (1, "icmp"), (58, "icmpv6"), (132, "sctp"), (47, "gre"), (136, "udplite"), (4, "ipip"), (253, "253")]
)
def test_protocols_have_names_or_numbers(proto, name):
    assert fields.proto_name(proto) == name


def test_status_bits_have_ctnetlink_s_names_lowest_first():
    every = sum(Status)
    assert fields.status_names(every) == (
        "expected", "seen-reply", "assured", "confirmed", "snat", "dnat", "seq-adjust", "snat-done", "dnat-done", "dying", "fixed-timeout",
        "nat-clash", "helper", "offload", "hw-offload",
    )  # fmt: skip


def test_every_state_verdict_and_reason_has_a_name():
    assert set(fields.STATE_NAMES) == set(range(State.N_STATES))
    assert len(fields.REASON_NAMES) == Reason.N_REASONS


@pytest.mark.parametrize(("ticks", "text"), [(0, "0"), (250, "1"), (1, "0.004"), (108000000, "432000"), (375, "1.5")])
def test_seconds_are_written_without_needless_digits(ticks, text):
    assert fields.seconds_text(ticks, HZ) == text


def test_ipv6_addresses_are_text():
    assert fields.address(craft.address("2001:db8::1"), 6) == "2001:db8::1"


def test_a_connection_as_the_contract_writes_it(office):
    record = next(fields.conn_records(office[0].tracker.conns(), HZ, True))
    assert list(record) == [
        "conn", "zone", "proto", "original", "reply", "l4state", "status", "timeout", "mark", "labels", "helper", "master", "start", "stop", "end",
        "tcp",
    ]  # fmt: skip
    assert record["original"] == {"src": "10.0.0.1", "dst": "10.0.0.2", "sport": 40000, "dport": 80, "packets": 5, "bytes": 203}
    assert record["reply"] == {"src": "10.0.0.2", "dst": "10.0.0.1", "sport": 80, "dport": 40000, "packets": 3, "bytes": 220}
    assert (record["l4state"], record["end"], record["start"], record["stop"]) == ("TIME_WAIT", "alive", stories.T, None)
    assert (record["labels"], record["helper"], record["master"]) == ("0x0", None, None)
    tcp = record["tcp"]
    assert list(tcp) == ["original", "reply", "last_dir", "last_index", "retrans"]
    assert list(tcp["original"]) == ["end", "maxend", "maxwin", "maxack", "scale", "flags"]
    assert (tcp["original"]["end"], tcp["original"]["maxack"], tcp["last_dir"], tcp["last_index"]) == (105, 602, "original", "ack")
    assert "close-init" in tcp["original"]["flags"]


def test_only_tcp_has_tcp(office):
    assert [record["tcp"] is None for record in fields.conn_records(office[0].tracker.conns(), HZ, True)] == [False, True, True, True, True]


def test_counters_that_were_not_kept_are_null(office):
    assert next(fields.conn_records(office[0].tracker.conns(), HZ, False))["original"]["bytes"] is None


def test_labels_are_128_bits_and_the_master_is_named():
    conns = np.zeros(1, CONN_DTYPE)
    conns["label"] = [[5, 1]]
    conns["master"] = 3
    record = next(fields.conn_records(conns, HZ, True))
    assert (record["labels"], record["master"]) == ("0x10000000000000005", 3)


def test_a_connection_s_life_in_events():
    pipeline, _ = tracked(stories.closed_by_client())
    pipeline.tracker.expire(stories.T + 10**12)
    events = list(fields.event_records(pipeline.tracker.events(), HZ, True))
    assert [event["event"] for event in events] == ["new", *["update"] * 5, "destroy"]
    assert [event["changes"] for event in events[1:3]] == [("reply", "l4state"), ("assured", "l4state")]
    assert [event["l4state"] for event in events] == [
        "SYN_SENT", "SYN_RECV", "ESTABLISHED", "FIN_WAIT", "LAST_ACK", "TIME_WAIT", "TIME_WAIT",
    ]  # fmt: skip
    assert [event["end"] for event in events] == ["alive"] * 6 + ["timeout"]
    assert [event["stop"] is None for event in events] == [True] * 6 + [False]
    assert events[-1]["original"]["packets"] == 5


def test_the_same_arrays_give_the_same_records(office):
    assert tracked(stories.office())[1] == office[1]


@pytest.mark.parametrize(("frame", "ident"), [
    (icmp(CLIENT, SERVER, 8, ident=77), 77), (icmp(CLIENT, SERVER, 13, ident=77), 77), (icmp(CLIENT, SERVER, 3, ident=77), None),
    (icmp(CLIENT, SERVER, 9, ident=77), None), (icmp("::1", "::2", 128, ident=77), 77), (icmp("::1", "::2", 2, ident=77), None),
    (icmp("::1", "::2", 135, ident=77), None),
])  # fmt: skip
def test_only_icmp_types_with_an_identifier_have_one(frame, ident):
    memory, frames = frames_of([frame])
    decisions, keys = Pipeline().process(memory, frames, keys=True)
    (record,) = fields.packet_records(frames, decisions, keys, 0, 250)
    assert record["id"] == ident
    assert list(record)[-3:] == ["code", "id", "out"]
