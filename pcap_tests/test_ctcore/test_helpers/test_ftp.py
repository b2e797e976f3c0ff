"""FTP: which data connections its commands announce, where commands are looked for, and what is dropped. Every test runs on engine and model."""

from __future__ import annotations

import pytest

from ctcore.nat_rules import HelperRule
from pcap_tests.scene import CLIENT, CLIENT6, SERVER, SERVER6, conversation, established

CONTROL = (40000, 21)
FTP = HelperRule("ftp", 6, 21)
FAMILIES = {4: (CLIENT, SERVER), 6: (CLIENT6, SERVER6)}


@pytest.fixture
def server(make_tracker):
    """Engine or model that helps FTP on port 21."""
    return make_tracker(helpers=(FTP,))


def session(tracker, family: int = 4, **where):
    """A control connection in which both sides have said a line."""
    conn = established(tracker, address=FAMILIES[family], port=CONTROL, **where)
    conn.reply("PA", payload=b"220 hello\r\n").is_("established", verdict="accept")
    conn.orig("PA", payload=b"USER anonymous\r\n").is_("established", verdict="accept")
    conn.reply("PA", payload=b"331 password\r\n").is_("established")
    return conn


def expected(tracker):
    return [(row.src, row.dst, row.proto, row.sport, row.dport) for row in tracker.expectations()]


def data(conn, src: str, dst: str, dport: int, sport: int = 20):
    return conversation(conn.scene.tracker, scene=conn.scene, address=(src, dst), port=(sport, dport), zone=conn.zone)


def test_active(server):
    conn = session(server)
    server.set_mark(0, 5)
    conn.orig("PA", payload=b"PORT 10,0,0,1,7,208\r\n").is_("established", verdict="accept", has={"helper"})
    assert expected(server) == [(SERVER, CLIENT, 6, 0, 2000)]
    assert server.expectations()[0].timeout == 300
    child = data(conn, SERVER, CLIENT, 2000)
    child.orig("S").is_("related", has={"expected"}, lacks={"helper"}, mark=5)
    assert int(child.entry["master"]) == 0 and int(child.entry["helper"]) == 0 and int(conn.entry["helper"]) == 1
    child.reply("SA").is_("established")
    assert expected(server) == []


def test_passive(server):
    conn = session(server)
    conn.orig("PA", payload=b"PASV\r\n")
    conn.reply("PA", payload=b"227 Entering Passive Mode (10,0,0,2,195,80).\r\n").is_("established", verdict="accept")
    assert expected(server) == [(CLIENT, SERVER, 6, 0, 50000)]


@pytest.mark.parametrize("answer", [b"227 =10,0,0,2,195,80\r\n", b"227 10,0,0,2,195,80 \r\n", b"227 ok, to 10,0,0,2,195,80;"])
def test_passive_without_parentheses(server, answer):
    conn = session(server)
    conn.reply("PA", payload=answer).is_("established", verdict="accept")
    assert expected(server) == [(CLIENT, SERVER, 6, 0, 50000)]


@pytest.mark.parametrize("family, command", [
    (4, b"EPRT |1|10.0.0.1|2000|\r\n"),
    (4, b"eprt !1!10.0.0.1!2000!"),
    (6, b"EPRT |2|2001:db8::1|2000|\r\n"),
    (6, b"EPRT   |2|2001:0DB8:0:0:00::000001|2000|\r\n"),
])  # fmt: skip
def test_extended_active(server, family, command):
    conn = session(server, family)
    seen = conn.orig("PA", payload=command)
    if command.count(b" ") > 1:  # only one space is skipped
        assert (seen.verdict, seen.reason) == ("drop", "helper_partial")
        return
    client, there = FAMILIES[family]
    assert seen.verdict == "accept" and expected(server) == [(there, client, 6, 0, 2000)]


@pytest.mark.parametrize("family", FAMILIES)
def test_extended_passive(server, family):
    conn = session(server, family)
    conn.reply("PA", payload=b"229 Extended Passive Mode (|||50000|)\r\n").is_("established", verdict="accept")
    client, there = FAMILIES[family]
    assert expected(server) == [(client, there, 6, 0, 50000)]


def test_the_first_command_is_never_seen(server):
    conn = established(server, port=CONTROL)
    conn.orig("PA", payload=b"PORT 10,0,0,1,7,208\r\n").is_("established", verdict="accept")
    assert expected(server) == []
    conn.orig("PA", payload=b"PORT 10,0,0,1,7,209\r\n")
    assert expected(server) == [(SERVER, CLIENT, 6, 0, 2001)]


def test_a_command_cut_off_is_dropped_and_comes_again(server):
    conn = session(server)
    seq = conn.next[0]
    conn.orig("A", payload=b"PORT 10,0,0,1,7").is_("established", verdict="drop", reason="helper_partial", conn=0)
    conn.orig("A", seq=seq, payload=b"PO").is_("established", verdict="drop", reason="helper_partial")
    conn.orig("A", seq=seq, payload=b"PORT 10,0,0,1,7,208\r\n").is_("established", verdict="accept", reason="ok")
    assert expected(server) == [(SERVER, CLIENT, 6, 0, 2000)]


def test_a_continued_line_is_not_looked_at(server):
    conn = session(server)
    conn.orig("A", payload=b"NOOP ")
    conn.orig("A", payload=b"PORT 10,0,0,1,7,208\r\n").is_("established", verdict="accept")
    assert expected(server) == []
    conn.orig("A", payload=b"PORT 10,0,0,1,7,208\r\n")
    assert expected(server) == [(SERVER, CLIENT, 6, 0, 2000)]


def test_retransmitted(server):
    conn = session(server)
    seq = conn.next[0]
    for _ in range(2):
        conn.orig("A", seq=seq, payload=b"PORT 10,0,0,1,7,208\r\n").is_("established", verdict="accept")
        assert expected(server) == [(SERVER, CLIENT, 6, 0, 2000)]
    assert server.counters()["expect_create"] == 2 and server.counters()["expect_delete"] == 1


@pytest.mark.parametrize("back, known", [(12, False), (6, True), (0, True)])
def test_two_beginnings_of_lines_are_remembered(server, back, known):
    conn = session(server)
    conn.orig("A", payload=b"NOOP\r\n")
    conn.orig("A", payload=b"NOOP\r\n")
    conn.orig("A", seq=conn.next[0] - back, payload=b"PORT 10,0,0,1,7,208\r\n").is_("established", verdict="accept")
    assert bool(expected(server)) == known


@pytest.mark.parametrize("command", [b"PORT 10,0,0,9,7,208\r\n", b"EPRT |1|10.0.0.2|2000|\r\n"])
def test_to_another_address_nothing_is_expected(server, command):
    conn = session(server)
    conn.orig("PA", payload=command).is_("established", verdict="accept", reason="ok")
    assert expected(server) == []


@pytest.mark.parametrize("command", [
    b"PORT 10,0,0,1,7,208", b"PORT 10,0,0,1,7,208\n", b"PORT 10,0,0,1,7\r\n", b"PORT x\r\n", b"PORT", b"P", b"PORT,", b"PORT 1,2,3,4,5,6,\r\n",
    b"EPRT |2|10.0.0.1|2000|\r\n", b"EPRT |1|10.0.0.1|0|\r\n", b"EPRT 11110.0.0.1120001", b"EPRT |1|10.0.0.1|2000", b"EPRT .1.10.0.0.1.2000.",
    b"EPRT |1|10.0.0|2000|\r\n",
])  # fmt: skip
def test_nonsense_is_dropped(server, command):
    conn = session(server)
    conn.orig("PA", payload=command).is_("established", verdict="drop", reason="helper_partial")
    assert expected(server) == []


def test_numbers_overflow_as_in_linux(server):
    conn = session(server)
    conn.orig("PA", payload=b"PORT 10,0,0,1,4294967303,208\r\n").is_("established", verdict="accept")
    conn.reply("PA", payload=b"229 (|||65537|)\r\n")
    assert expected(server) == [(CLIENT, SERVER, 6, 0, 1)]  # of a master one is enough: the later one


def test_commands_belong_to_a_direction(server):
    conn = session(server)
    conn.reply("PA", payload=b"PORT 10,0,0,2,7,208\r\n").is_("established", verdict="accept")
    conn.orig("PA", payload=b"227 (10,0,0,1,195,80)\r\n").is_("established", verdict="accept")
    assert expected(server) == []


def test_one_expectation_of_a_connection(server):
    conn = session(server)
    conn.orig("PA", payload=b"PORT 10,0,0,1,7,208\r\n")
    conn.orig("PA", payload=b"PORT 10,0,0,1,7,209\r\n").is_("established", verdict="accept")
    assert expected(server) == [(SERVER, CLIENT, 6, 0, 2001)]


def test_what_another_connection_expects_is_refused(server):
    first = session(server)
    first.orig("PA", payload=b"PORT 10,0,0,1,7,208\r\n")
    second = established(server, scene=first.scene, port=(40001, 21))
    second.orig("PA", payload=b"NOOP\r\n")
    second.orig("PA", payload=b"PORT 10,0,0,1,7,208\r\n").is_("established", verdict="drop", reason="helper_refused", conn=1)
    assert [row.master for row in server.expectations()] == [0]


def test_all_expectations_are_counted(make_tracker):
    tracker = make_tracker(helpers=(FTP,), expect_max=1)
    first = session(tracker)
    first.orig("PA", payload=b"PORT 10,0,0,1,7,208\r\n")
    second = established(tracker, scene=first.scene, port=(40001, 21))
    second.orig("PA", payload=b"NOOP\r\n")
    second.orig("PA", payload=b"PORT 10,0,0,1,7,209\r\n").is_("established", verdict="drop", reason="helper_refused")


def test_expectations_end(server):
    conn = session(server)
    conn.orig("PA", payload=b"PORT 10,0,0,1,7,208\r\n")
    conn.wait(299.99)
    conn.orig("A")
    assert expected(server)
    conn.wait(0.02)
    conn.orig("A")
    assert expected(server) == []
    conn.orig("PA", payload=b"PORT 10,0,0,1,7,208\r\n")
    conn.orig("R")
    conn.wait(10)
    server.expire(conn.scene.now)
    assert expected(server) == [] and server.count == 0


def test_in_a_zone(server):
    conn = session(server, zone=7)
    conn.orig("PA", payload=b"PORT 10,0,0,1,7,208\r\n")
    other = data(conn, SERVER, CLIENT, 2000)
    other.zone = 8
    other.orig("S").is_("new")
    data(conn, SERVER, CLIENT, 2000).orig("S").is_("related")


def test_only_by_rule(make_tracker):
    tracker = make_tracker(helpers=(HelperRule("ftp", 6, 2121), HelperRule("ftp", 17, 21)))
    conn = session(tracker)
    conn.orig("PA", payload=b"PORT 10,0,0,1,7,208\r\n").is_("established", lacks={"helper"})
    assert expected(tracker) == []


def test_an_expected_connection_has_no_helper_of_its_own(server):
    conn = session(server)
    conn.orig("PA", payload=b"PORT 10,0,0,1,0,21\r\n")
    data(conn, SERVER, CLIENT, 21).orig("S").is_("related", lacks={"helper"})


def test_without_room_a_connection_goes_without_help(make_tracker):
    tracker = make_tracker(helpers=(FTP,), helper_max=1)
    first = session(tracker)
    second = established(tracker, scene=first.scene, port=(40001, 21))
    assert "helper" in first.status and "helper" not in second.status
    assert tracker.counters()["helper_unassigned"] == 1
    first.reply("RA")
    first.wait(10)
    third = established(tracker, scene=first.scene, port=(40002, 21))
    assert "helper" in third.status


def test_a_dropped_packet_is_told_of_with_the_next_one(make_tracker):
    tracker = make_tracker(helpers=(FTP,), events=frozenset({"update"}))
    conn = session(tracker)
    tracker.events()
    conn.orig("FA", payload=b"PORT 1").is_("established", verdict="drop", l4state="FIN_WAIT")
    assert len(tracker.events()) == 0
    conn.orig("A", seq=conn.next[0]).is_("established", verdict="accept")
    (event,) = tracker.events()
    assert int(event["changes"]) == 4  # l4state


def test_a_snapped_payload_is_not_looked_at(server):
    """Half a command is worse than none."""
    from datapath import craft
    from datapath.frame import frames_of
    from datapath.wire import parse_batch

    conn = session(server)
    frame = craft.tcp(CLIENT, SERVER, *CONTROL, "PA", seq=conn.next[0], ack=conn.next[1], payload=b"PORT 10,0,0,1,7,208\r\n")
    memory, frames = frames_of([frame], ts=conn.scene.now)
    frames["caplen"] -= 4
    decision = server.advance(parse_batch(memory, frames))[0]
    assert decision["verdict"] == 1 and decision["reason"] == 0 and expected(server) == []
