"""Expectations: what a helper announces is related to its master, once, in time, and only if it fits."""

from __future__ import annotations

import pytest

from ctcore.errors import ConfigError
from datapath import craft
from pcap_tests.scene import CLIENT, CLIENT6, SERVER, SERVER6, conversation, established, syn_recv, udp


def expect(conn, dport: int = 2000, *, src: str = CLIENT, dst: str = SERVER, proto: int = craft.TCP, **options):
    conn.scene.tracker.expire(conn.scene.now)
    conn.scene.tracker.expect(conn.ordinal, src, dst, proto, dport, **options)


def data(tracker, conn, sport: int = 1234, dport: int = 2000, **where):
    """A connection that may be the announced one."""
    return conversation(tracker, scene=conn.scene, port=(sport, dport), **where)


def test_the_announced_connection(tracker):
    master = established(tracker)
    tracker.set_mark(0, 77)
    expect(master)
    child = data(tracker, master)
    child.orig("S").is_("related", reason="ok", conn=1, dir="original", status={"expected", "confirmed"}, mark=77)
    assert int(child.entry["master"]) == 0
    child.orig("S", seq=100).is_("related", reason="tcp_syn_again")
    child.reply("SA").is_("established", has={"expected", "seen-reply"})
    child.orig("A").is_("established", has={"expected", "assured"})
    assert tracker.expectations() == []
    counters = tracker.counters()
    assert (counters["expect_create"], counters["expect_new"], counters["expect_delete"]) == (1, 1, 1)


def test_what_is_expected_can_be_read(tracker):
    master = established(tracker)
    expect(master, 2000, sport=20, timeout=60.0, permanent=True)
    master.wait(1)
    tracker.expire(master.scene.now)
    (row,) = tracker.expectations()
    assert row._asdict() == {
        "master": 0, "src": CLIENT, "dst": SERVER, "proto": 6, "sport": 20, "dport": 2000, "zone": 0, "timeout": 59.0, "permanent": True,
        "kind": 0, "inactive": False, "follow": "", "dir": 0, "saved": "0.0.0.0", "saved_port": 0,
    }  # fmt: skip


def test_once_only(tracker):
    master = established(tracker)
    expect(master)
    data(tracker, master, 1).orig("S").is_("related")
    data(tracker, master, 2).orig("S").is_("new", status={"confirmed"})


def test_permanent_ones_stay(tracker):
    master = established(tracker)
    expect(master, permanent=True)
    data(tracker, master, 1).orig("S").is_("related")
    data(tracker, master, 2).orig("S").is_("related")
    assert len(tracker.expectations()) == 1


@pytest.mark.parametrize("difference", [{"dst": "10.0.0.9"}, {"src": "10.0.0.9"}, {"proto": 17}, {"dport": 2001}, {"zone": 1}, {"sport": 999}])
def test_it_must_fit(tracker, difference):
    master = established(tracker)
    expect(master, **{"dport": 2000, **difference})
    data(tracker, master).orig("S").is_("new")
    assert len(tracker.expectations()) == 1


def test_source_port_that_is_named(tracker):
    master = established(tracker)
    expect(master, sport=20)
    data(tracker, master, 21).orig("S").is_("new")
    data(tracker, master, 20).orig("S").is_("related")


def test_the_youngest_that_fits(tracker):
    first, second = established(tracker), established(tracker, port=(5, 6))
    expect(first)
    expect(second)
    assert int(data_master(tracker, first, 1)) == 1
    assert int(data_master(tracker, first, 2)) == 0


def data_master(tracker, conn, sport: int) -> int:
    child = data(tracker, conn, sport)
    child.orig("S").is_("related")
    return child.entry["master"]


def test_ipv6(tracker):
    master = established(tracker, address=(CLIENT6, SERVER6))
    expect(master, src=SERVER6, dst=CLIENT6)
    data(tracker, master, address=(SERVER6, CLIENT6)).orig("S").is_("related", conn=1)


def test_udp(tracker):
    master = established(tracker)
    expect(master, proto=craft.UDP)
    udp(tracker, scene=master.scene, port=(9, 2000)).orig().is_("related", status={"expected", "confirmed"})


def test_it_expires(tracker):
    master = established(tracker)
    expect(master, 2000, timeout=10.0)
    expect(master, 2001, timeout=10.0)
    master.wait(9.996)
    data(tracker, master).orig("S").is_("related")
    master.wait(0.004)
    data(tracker, master, dport=2001).orig("S").is_("new")
    assert tracker.expectations() == []
    assert tracker.counters()["expect_delete"] == 2


def test_it_goes_with_its_master(tracker):
    master = syn_recv(tracker)
    expect(master)
    master.wait(60)
    data(tracker, master).orig("S").is_("new")
    assert tracker.expectations() == []


def test_the_same_again_is_refreshed(tracker):
    master = established(tracker)
    expect(master, timeout=10.0)
    master.wait(5)
    expect(master, timeout=10.0)
    assert [row.timeout for row in tracker.expectations()] == [10.0]


def test_an_invalid_packet_uses_it_up(tracker):
    """Linux finds the expectation when it allocates, before the protocol has looked at the packet."""
    master = established(tracker)
    expect(master)
    data(tracker, master).orig("FA").is_("invalid", reason="tcp_not_opening")
    data(tracker, master).orig("S").is_("new")


def test_a_packet_of_a_known_connection_does_not(tracker):
    master = established(tracker)
    child = data(tracker, master)
    child.orig("S").is_("new")
    expect(master)
    child.orig("S", seq=100).is_("new")
    assert len(tracker.expectations()) == 1


def test_too_many(make_tracker):
    tracker = make_tracker(expect_max=2)
    master = established(tracker)
    expect(master, 1)
    expect(master, 2)
    with pytest.raises(ConfigError, match="expect_max"):
        expect(master, 3)
    expect(master, 2)
    assert len(tracker.expectations()) == 2


@pytest.mark.parametrize(
    "wrong",
    [{"src": "10.0.0"}, {"dst": "::1"}, {"dport": 65536}, {"sport": -1}, {"proto": 256}, {"zone": 70000}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_what_cannot_be(tracker, wrong):
    master = established(tracker)
    with pytest.raises(ConfigError, match="expected"):
        expect(master, **wrong)
    assert tracker.expectations() == []


def test_unknown_master(tracker):
    with pytest.raises(ConfigError, match="connection 5: expected"):
        tracker.expect(5, CLIENT, SERVER, 6, 2000)
