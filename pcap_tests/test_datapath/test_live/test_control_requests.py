"""What a node is asked of its connections, and what is changed: by the protocol, beneath the commands."""

from __future__ import annotations

import logging
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctcore.config import Config
from ctcore.errors import ConfigError
from ctcore.filter import Filter
from ctcore.tracker import Tracker
from ctcore.types import Status
from datapath import craft
from datapath.frame import frames_of
from datapath.live import requests
from datapath.live.message import RequestError
from datapath.live.wanted import Wanted
from datapath.pipeline.findings import Findings
from datapath.pipeline.rules_file import parse
from datapath.ruled import RulePipeline
from datapath.worker import Pipeline
from pcap_tests.test_datapath.test_live.noded import running

A, B = "10.0.0.1", "10.0.0.2"


@pytest.fixture
def rig(tmp_path):
    with running(tmp_path) as rig:
        rig.send(craft.tcp(A, B, 40000, 80, "S", seq=1), craft.udp(A, B, 4000, 53, b"?"), craft.icmp(A, B, 8, ident=7, sequence=1))
        rig.send(craft.tcp(B, A, 80, 40000, "SA", seq=1, ack=2))
        rig.send(craft.udp("2001:db8::1", "2001:db8::2", 4000, 53, b"?"), iface=1)
        yield rig


def listed(rig, **which):
    with rig.client() as client:
        found = [record["conn"] for record in client.conns("list", which=which)]
        assert client.end["count"] == len(found)
    return found


def refused(rig, do, **arguments):
    with rig.client() as client, pytest.raises(RequestError) as caught:
        client.ask(do, **arguments)
    return str(caught.value)


def test_a_listing_has_what_fits(rig):
    assert listed(rig) == [0, 1, 2, 3]
    assert listed(rig, proto=17) == [1, 3]
    assert listed(rig, family=6) == [3]
    assert listed(rig, zone=5) == [3]
    assert listed(rig, src="10.0.0.0/8", dport=80) == [0]
    assert listed(rig, reply_src=B, reply_dport=40000) == [0]
    assert listed(rig, not_status=["seen-reply"]) == [1, 2, 3]
    assert listed(rig, l4state="SYN_RECV") == [0]
    assert listed(rig, l4state="ESTABLISHED") == listed(rig, translated="any") == listed(rig, mark=1) == []


@pytest.mark.parametrize(
    ("which", "said"),
    [
        ({"colour": 1}, "which: 'colour': expected"),
        ({"src": "nowhere"}, "filter: src = 'nowhere': expected an address"),
        ({"src": 5}, "which: src: expected text"),
        ({"sport": "80"}, "which: sport: expected a whole number"),
        ({"zone": True}, "which: zone: expected a whole number"),
        ({"zone": 65536}, "filter: zone = 65536: expected 0 to 65535"),
        ({"label": "12"}, "which: label: expected '0x'"),
        ({"label": "0x" + "f" * 33}, "which: label: expected '0x'"),
        ({"status": ["open"]}, "which: status: expected a list of expected, seen-reply"),
        ({"status": ["assured"], "not_status": ["assured"]}, "is to be set and not set"),
        ({"translated": "10.0.0.0/8"}, "which: translated: expected an address, or 'any'"),
        ({"l4state": "OPEN"}, "which: l4state: expected one of"),
        (["src"], "which: expected an object"),
    ],
)
def test_what_cannot_be_asked_for_is_said_in_one_line(rig, which, said):
    assert said in refused(rig, "list", which=which)


def test_deleting_tells_what_is_gone(rig):
    with rig.client() as client:
        assert [record["conn"] for record in client.conns("delete", which={"proto": 17})] == [1, 3]
        assert [record["conn"] for record in client.conns("delete", which={"l4state": "SYN_RECV"})] == [0]
        assert client.ask("delete", which={"proto": 17}) == {"count": 0}
    assert listed(rig) == [2]


def test_flushing_tells_how_many(rig):
    with rig.client() as client:
        assert client.ask("flush", which={"family": 6}) == {"count": 1}
        assert client.ask("flush") == {"count": 3}
        assert client.ask("count")["count"] == 0
    assert "delete knows them" in refused(rig, "flush", which={"translated": "any"})


def test_changes_are_told_as_they_are_then(rig):
    with rig.client() as client:
        (record,) = client.conns("update", which={"proto": 6}, change={"mark": 0x12, "mark_mask": 0xFF, "timeout": 500, "status": ["assured"]})
        assert (record["mark"], record["timeout"], record["status"]) == (0x12, 500.0, ["seen-reply", "assured", "confirmed"])
        (record,) = client.conns("update", which={"mark": 0x12}, change={"mark": 1, "label": "0x" + "8" + "0" * 31, "label_mask": "0x8" + "0" * 31})
        assert (record["mark"], record["labels"]) == (1, hex(1 << 127))  # although it does not fit any more


def test_a_fixed_timeout_stays_and_is_not_told_as_changed(rig):
    with rig.client() as client:
        client.ask("update", which={"proto": 6}, change={"status": ["fixed-timeout"]})
        assert client.ask("update", which={"proto": 6}, change={"timeout": 9}) == {"count": 0}
        assert client.ask("update", which={"proto": 1}, change={"timeout": 0}) == {"count": 1}
    assert listed(rig) == [0, 1, 3]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (None, "change: expected an object"),
        ({}, "change: expected an object"),
        ({"mark": -1}, "change: mark: expected a whole number from 0"),
        ({"mark": 1.5}, "change: mark: expected a whole number"),
        ({"colour": 1}, "change: 'colour': expected mark"),
        ({"status": ["confirmed"]}, "Linux lets no others be set"),
        ({"label": 1}, "change: label: expected '0x'"),
        ({"timeout": 1 << 31}, "timeout"),
    ],
)
def test_changes_that_cannot_be_change_nothing(rig, change, said):
    assert said in refused(rig, "update", which={}, change=change)


def test_who_changes_something_is_in_the_log(rig, caplog):
    logging.getLogger("ctmirror").propagate = True
    with caplog.at_level("INFO", "ctmirror"), rig.client() as client:
        client.ask("list")
        client.ask("delete", which={"proto": 1})
    (record,) = [record for record in caplog.records if record.message.startswith("control:")]
    assert record.message == f"control: delete: connections 1, pid {os.getpid()}, uid {os.getuid()}, gid {os.getgid()}"
    assert (record.pid, record.uid, record.gid, record.connections) == (os.getpid(), os.getuid(), os.getgid(), 1)


def test_a_large_table_is_gone_through_in_many_jobs(rig, monkeypatch):
    monkeypatch.setattr(requests, "SLOTS", 2)
    asked = []
    worker = rig.node.workers[0]
    put = worker.put
    monkeypatch.setattr(worker, "put", lambda work: asked.append(work) or put(work))
    assert listed(rig) == [0, 1, 2, 3]
    assert len(asked) == 1 + 2  # the number of the next event, then two slots each


def test_what_is_not_there_cannot_be_done(rig):
    assert "expected one of events, list" in refused(rig, "dance")
    assert "level: expected one of debug" in refused(rig, "log", level="loud")
    assert "most: expected 1 to 1000" in refused(rig, "top", most=0)
    assert "by: expected packets or bytes" in refused(rig, "top", by="age")


def test_rates_are_of_what_came_since(rig):
    with rig.client() as client:
        client.ask("top", seconds=0.1)
        rig.send(*(craft.udp(A, B, 4000, 53, b"x" * 72) for _ in range(50)))
        rig.until(lambda: rig.control.desk.rates.age() > 0.1)
        told = client.ask("top", seconds=0.1, most=1)
    (busiest,) = told["top"]
    assert (busiest["conn"], told["connections"]) == (1, 4)
    assert round(busiest["packet_rate"] * told["seconds"]) == 50
    assert round(busiest["byte_rate"] * told["seconds"]) == 50 * 100
    assert told["byte_rate"] == busiest["byte_rate"]


def test_the_busiest_of_those_that_are_meant(rig):
    with rig.client() as client:
        client.ask("top", seconds=0.1)
        rig.send(*(craft.udp(A, B, 4000, 53, b"x" * 72) for _ in range(50)), craft.icmp(A, B, 8, ident=7, sequence=2))
        rig.until(lambda: rig.control.desk.rates.age() > 0.1)
        told = client.ask("top", seconds=0.1, most=2, which={"not_status": ["offload"]})
    assert [record["proto"] for record in told["top"]] == ["icmp", "tcp"]
    assert (told["connections"], told["byte_rate"] > 10 * told["top"][0]["byte_rate"] > 0) == (4, True)


def test_rates_need_accounting(tmp_path):
    with running(tmp_path, conntrack={"acct": False}) as rig:
        assert "expected conntrack.acct = true" in refused(rig, "top")


# --- ranges of slots ----------------------------------------------------------------------------------------------------------------------


def tracked(n=40, **settings):
    """n connections of UDP, every other one answered, every third with a mark."""
    pipeline = Pipeline(Config(**settings))
    frames = [craft.udp(f"10.0.0.{i}", B, 1000 + i, 53, b"?") for i in range(n)] + [
        craft.udp(B, f"10.0.0.{i}", 53, 1000 + i, b"!") for i in range(0, n, 2)
    ]
    memory, rows = frames_of(frames, np.arange(len(frames)) * 1000)
    pipeline.process(memory, rows)
    tracker = pipeline.tracker
    for i in range(0, n, 3):
        tracker.set_mark(i, i)
        tracker.set_label(i, 1 << 3 * i)
    return tracker


def ids(conns):
    return conns["flow"]["id"][:, 0].tolist()


@given(first=st.integers(0, 50), size=st.integers(0, 50))
def test_a_range_of_slots_has_its_part_of_the_whole(first, size):
    """Invariant: any cut of the slots into ranges has each connection once; so has deleting and changing."""
    tracker = tracked()
    cuts = [range(0, first), range(first, first + size), range(first + size, 1000)]
    assert sorted(each for cut in cuts for each in ids(tracker.select(Filter(), slots=cut))) == ids(tracker.conns())
    assert sum(tracker.update(Filter(not_status=Status.SEEN_REPLY), slots=cut, mark=7) for cut in cuts) == 20
    assert sum(tracker.delete(Filter(mark=7), slots=cut) for cut in cuts) == 20
    assert tracker.count == 20 and tracker.slots == 40
    tracker.check()


def test_a_whole_tuple_is_found_in_its_range_only():
    tracker = tracked(4)
    key = tracker.conns()["flow"]["key"][2, 0].tobytes()
    assert [len(tracker.select(Filter(original=key), slots=range(i, i + 1))) for i in range(4)] == [0, 0, 1, 0]


@pytest.mark.parametrize("slots", [5, range(0, 10, 2), range(-1, 3), range(0, 1 << 40)])
def test_slots_that_are_none_are_refused(slots):
    with pytest.raises(ConfigError, match="slots"):
        Tracker().select(Filter(), slots=slots)


# --- what fits, row by row ------------------------------------------------------------------------------------------------------------------

NAT = """tc qdisc add dev eth0 clsact
tc filter add dev eth0 ingress prio 1 protocol ip flower ip_proto udp action ct commit nat src addr 192.0.2.1 pipe action pass
tc filter add dev eth0 ingress prio 2 protocol ip flower ip_proto tcp action ct commit nat dst addr 192.0.2.2 pipe action pass
tc filter add dev eth0 ingress prio 3 protocol all flower action ct commit pipe action pass
"""


def translated():
    pipeline = RulePipeline(parse(NAT, "nat.tc", Findings()), Config(), devices=["eth0"])
    from datapath.pipeline.rules import Hook

    pipeline.arrive([Hook("eth0")])
    frames = [
        craft.udp(A, B, 1, 53, b"?"),
        craft.tcp(A, B, 2, 80, "S"),
        craft.icmp(A, B, 8, ident=3),
        craft.udp("2001:db8::1", "2001:db8::2", 4, 53, b"?"),
    ]
    pipeline.process(*frames_of(frames, np.arange(4)), decisions=False)
    return pipeline.tracker.conns()


@pytest.mark.parametrize(("to", "found"), [("any", [0, 1]), ("192.0.2.1", [0]), ("192.0.2.2", [1]), ("10.0.0.1", []), ("2001:db8::1", [])])
def test_translated_in_either_way(to, found):
    conns = translated()
    assert ids(conns[Wanted(translated=to).fits(conns)]) == found


FILTERS = st.fixed_dictionaries(
    {},
    optional={
        "family": st.sampled_from([4, 6]), "proto": st.sampled_from([6, 17]), "src": st.sampled_from(["10.0.0.3", "10.0.0.0/28", "10.0.0.0/8"]),
        "dst": st.just(B), "sport": st.integers(1000, 1005), "dport": st.sampled_from([53, 80]), 
        "reply_dst": st.sampled_from(["10.0.0.6", "10.0.0.0/29"]),
        "zone": st.sampled_from([0, 1]), "mark": st.integers(0, 9), "mark_mask": st.sampled_from([0, 1, 3, 0xFFFFFFFF]),
        "label": st.sampled_from([0, 1, 1 << 9, 1 << 117]), "label_mask": st.sampled_from([0, 1, 1 << 117, (1 << 128) - 1]),
        "status": st.sampled_from([0, Status.SEEN_REPLY, Status.ASSURED]), "not_status": st.sampled_from([0, Status.CONFIRMED]),
    },
)  # fmt: skip


@pytest.fixture(scope="module")
def forty():
    return tracked()


@given(fields=FILTERS)
def test_rows_fit_as_connections_do(forty, fields):
    """Invariant: what fits() says of rows is what the tracker says of connections."""
    try:
        chosen = Filter(**fields)
    except ConfigError:
        return
    conns = forty.conns()
    assert ids(conns[Wanted(chosen).fits(conns)]) == ids(forty.select(chosen))
