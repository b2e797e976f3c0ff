"""Helpers given by `ct` actions: when they read, what they announce, and who takes what was announced.

Not here: what helpers look for (test_helpers).
"""

from __future__ import annotations

import pytest

from ctcore.ct_action import BARE_NAT
from ctcore.filter import Filter
from ctcore.nat_rules import HelperRule
from ctcore.types import Dir
from datapath import craft
from pcap_tests.acting import Did, Hand, Walker
from pcap_tests.router import Through, snat
from pcap_tests.test_ctcore.test_helpers import sip_messages
from pcap_tests.test_ctcore.test_helpers.sip_messages import call

ORIG, REPLY = Dir.ORIG, Dir.REPLY
CLIENT, SERVER, PUBLIC = "10.0.0.1", "198.51.100.7", "192.0.2.1"
CONTROL = "10.0.0.1:40000 > 198.51.100.7:21"
PORT = b"PORT 10,0,0,1,7,208\r\n"


def helped(packet: Hand) -> Did:
    """`-trk: ct`; `+trk+new: ct commit helper ftp`."""
    did = packet.ct()
    return packet.ct(commit=True, helper="ftp") if did.state == "new" and did.conn is None else did


@pytest.fixture
def net(make_tracker):
    return Walker(make_tracker(helper_actions=True), helped)


def session(net: Walker) -> Through:
    """A control connection in which both sides have said a line."""
    conn = net.tcp(CONTROL).establish()
    conn.reply("PA", payload=b"220 hello\r\n").is_("established", verdict="accept", has={"helper"})
    conn.orig("PA", payload=b"USER anonymous\r\n").is_("established", verdict="accept")
    return conn


def expected(net: Walker) -> list[tuple]:
    return [(row.src, row.dst, row.proto, row.dport, row.zone) for row in net.tracker.expectations()]


def data(**fields) -> bytes:
    """The server connects for data."""
    return craft.tcp(SERVER, CLIENT, 20, 2000, "S", seq=1, **fields)


# --- who reads, and when -----------------------------------------------------------------------------------------------------------------


def test_a_helper_is_given_by_the_commit(net):
    conn = session(net)
    assert int(conn.entry["helper"]) == 1
    conn.orig("PA", payload=PORT).is_("established", has={"helper"}, verdict="accept")
    assert expected(net) == [(SERVER, CLIENT, 6, 2000, 0)]


def test_no_helper_without_a_commit(net):
    frame = craft.tcp(CLIENT, SERVER, 40000, 21, "S")
    net.look(frame, helper="ftp").is_("new", conn=None)
    net.look(frame, commit=True).is_("new", conn=0, lacks={"helper"})
    net.look(frame, commit=True, helper="ftp").is_("new", conn=0, lacks={"helper"})
    assert int(net.entry(0)["helper"]) == 0


def test_ports_have_no_say(make_tracker):
    """Rules of the tracker are for those who advance; an action gives a helper on any port, and none on its own."""
    net = Walker(make_tracker(helpers=(HelperRule("ftp", 6, 21),)), helped)
    net.send(craft.tcp(CLIENT, SERVER, 40000, 2121, "S")).is_("new", conn=0, has={"helper"})
    net.look(craft.tcp(CLIENT, SERVER, 40001, 21, "S"), commit=True).is_("new", conn=1, lacks={"helper"})


def test_a_first_packet_that_already_announces(make_tracker):
    """TFTP's request: its helper reads it in the action that commits, and not where nothing comes of it."""
    net = Walker(make_tracker(helper_actions=True))
    request = craft.udp(CLIENT, SERVER, 40000, 69, b"\0\1file\0octet\0")
    net.look(request, helper="tftp").is_("new", conn=None)
    assert expected(net) == []
    net.look(request, commit=True, helper="tftp").is_("new", conn=0)
    assert [(row.src, row.dst, row.dport) for row in net.tracker.expectations()] == [(SERVER, CLIENT, 40000)]


def test_what_was_announced_with_a_helper_is_read_when_it_is_committed(make_tracker):
    """SIP's signalling to where a registration said; a call through it announces media."""
    net = Walker(make_tracker(helper_actions=True))
    contact = f"Contact: <sip:a@{CLIENT}:5070>;expires=300"
    net.look(craft.udp(CLIENT, SERVER, 5060, 5060, call(f"REGISTER sip:{SERVER} SIP/2.0", contact, "CSeq: 1 REGISTER")), commit=True, helper="sip")
    net.look(craft.udp(SERVER, CLIENT, 5060, 5060, call("SIP/2.0 200 OK", contact, "CSeq: 1 REGISTER"))).is_("established", verdict="accept")
    body = sip_messages.session(SERVER, "m=audio 4000 RTP/AVP 0")
    invite = craft.udp(SERVER, CLIENT, 5060, 5070, call(f"INVITE sip:a@{CLIENT}:5070 SIP/2.0", "CSeq: 7 INVITE", body=body))
    before = net.known()
    net.look(invite).is_("related", conn=None)
    assert net.known() == before
    net.look(invite, commit=True).is_("related", conn=1)
    announced = [(row.dst, row.dport) for row in net.tracker.expectations()]
    assert announced == [(CLIENT, 5070), (SERVER, 4000), (SERVER, 4001)], "signalling is expected as long as it was registered"


def test_a_packet_is_read_once(net):
    """Where it is tracked, and not where it keeps what it has."""
    conn = session(net)
    net.pipeline = lambda packet: [packet.ct() for _ in range(3)][-1]
    conn.orig("PA", payload=PORT)
    assert net.tracker.counters()["expect_create"] == 1


def test_what_a_helper_refuses_is_dropped(net):
    conn = session(net)
    conn.orig("PA", payload=b"PASV\r\n")
    did = conn.reply("PA", payload=b"227 Entering Passive Mode (198,51,100,7,195,")
    assert not did.goes_on
    did.is_("established", reason="helper_partial", verdict="drop", conn=0, dir="reply")


def test_a_helper_of_another_protocol_has_nothing_to_read(make_tracker):
    """Linux attaches it and never asks it."""
    net = Walker(make_tracker(helper_actions=True))
    net.look(craft.udp(CLIENT, SERVER, 40000, 21, PORT), commit=True, helper="ftp").is_("new", conn=0, has={"helper"})
    net.look(craft.udp(SERVER, CLIENT, 21, 40000, PORT)).is_("established", verdict="accept")
    net.look(craft.tcp("2001:db8::1", "2001:db8::2", 40000, 6667, "S"), commit=True, helper="irc").is_("new", conn=1, verdict="accept")
    assert expected(net) == []


def test_a_tunnel_that_is_given_its_own_helper_ends_alone(make_tracker):
    """It is no control connection: when it ends, no call does."""
    net = Walker(make_tracker(helper_actions=True))
    net.look(craft.gre(CLIENT, SERVER), commit=True, helper="pptp").is_("new", conn=0, has={"helper"})
    net.look(craft.tcp("2001:db8::1", "2001:db8::2", 40000, 1723, "S"), commit=True, helper="pptp").is_("new", conn=1)
    net.look(craft.gre("2001:db8::1", "2001:db8::2"), commit=True).is_("new", conn=2)
    net.tracker.delete(Filter(proto=6))
    assert net.ordinals() == [0, 2]
    net.tracker.delete(Filter(src=CLIENT))
    assert net.ordinals() == [2]


def test_more_than_may_have_one_go_without(make_tracker):
    net = Walker(make_tracker(helper_actions=True, helper_max=1))
    for sport, has in ((1, True), (2, False)):
        did = net.look(craft.tcp(CLIENT, SERVER, sport, 21, "S"), commit=True, helper="ftp").is_("new", verdict="accept")
        assert ("helper" in did.status) == has
    assert net.tracker.counters()["helper_unassigned"] == 1


def test_an_action_with_another_helper_tracks_anew(net):
    conn = session(net)
    found = net.tracker.counters()["found"]
    for helper, more in ((None, 1), ("ftp", 1), ("irc", 2)):
        packet = net.take(craft.tcp(SERVER, CLIENT, 21, 40000, "A", seq=conn.next[1], ack=conn.next[0]))
        packet.ct().is_("established", conn=0)
        packet.ct(helper=helper).is_("established", conn=0)
        packet.over()
        found += more
        assert net.tracker.counters()["found"] == found


# --- who takes what was announced --------------------------------------------------------------------------------------------------------


def announced(net: Walker, **mark) -> Through:
    conn = session(net)
    net.look(craft.tcp(SERVER, CLIENT, 21, 40000, "A", seq=conn.next[1], ack=conn.next[0]), commit=True, **mark)
    conn.orig("PA", payload=PORT)
    return conn


def test_related_connections_need_a_commit_of_their_own(net):
    announced(net, mark=(6, 0xFF))
    packet = net.take(data())
    packet.ct().is_("related", conn=None, mark=6, dir="original", has={"expected"})
    packet.ct(commit=True).is_("related", conn=1, mark=6)
    packet.over()
    assert int(net.entry(1)["master"]) == 0 and expected(net) == []
    net.look(craft.tcp(CLIENT, SERVER, 2000, 20, "SA", seq=1, ack=2)).is_("established", conn=1, dir="reply")


def test_a_lookup_uses_nothing_up(net):
    announced(net)
    before = net.known()
    for _ in range(2):
        net.look(data()).is_("related", conn=None)
    assert net.known() == before
    net.look(data(), commit=True).is_("related", conn=1)
    net.look(data()).is_("related", conn=1, has={"confirmed"})
    assert expected(net) == []


def test_a_commit_that_fails_has_used_it_up(make_tracker):
    """As in Linux: by then somebody has come for it."""
    net = Walker(make_tracker(helper_actions=True, zone_dir="original"), helped)
    announced(net)
    net.look(craft.tcp(SERVER, CLIENT, 20, 2000, "S", seq=1), zone=9, commit=True).is_("new", conn=1)
    did = net.look(data(), commit=True)
    assert not did.goes_on and did.reason == "clash" and expected(net) == []


def test_expectations_are_of_a_zone(net):
    announced(net)
    net.look(data(), zone=1, commit=True).is_("new", conn=1)
    assert len(expected(net)) == 1


def test_expectations_end_with_their_master(net):
    announced(net)
    packet = net.take(data())
    packet.ct().is_("related", conn=None)
    net.tracker.flush()
    packet.ct(commit=True).is_("new", conn=1)
    packet.over()


def test_what_a_caller_expects(make_tracker):
    """A permanent one is never used up."""
    net = Walker(make_tracker())
    net.look(craft.udp(CLIENT, SERVER, 1, 2), commit=True)
    net.tracker.expect(0, SERVER, CLIENT, craft.UDP, 5060, permanent=True)
    for sport in (7, 8):
        net.look(craft.udp(SERVER, CLIENT, sport, 5060), commit=True).is_("related")
    assert len(expected(net)) == 1 and net.tracker.counters()["expect_new"] == 2


# --- under translation -------------------------------------------------------------------------------------------------------------------


def client(flags: str, seq: int, ack: int = 0, payload: bytes = b"") -> bytes:
    return craft.tcp(CLIENT, SERVER, 40000, 21, flags, seq=seq, ack=ack, payload=payload)


def server(flags: str, seq: int, ack: int, payload: bytes = b"") -> bytes:
    return craft.tcp(SERVER, PUBLIC, 21, 40000, flags, seq=seq, ack=ack, payload=payload)


def helped_and_translated(packet: Hand) -> Did:
    did = packet.ct(nat=BARE_NAT)
    return packet.ct(commit=True, nat=0, helper="ftp") if did.state == "new" and did.conn is None else did


def translated_session(make_tracker) -> Walker:
    """An FTP session through SNAT; each side numbers its own bytes."""
    net = Walker(make_tracker(nat=(snat(PUBLIC),), nat_actions=True, helper_actions=True), helped_and_translated)
    net.send(client("S", 93)).is_("new", conn=0)
    net.send(server("SA", 499, 94)).is_("established", conn=0)
    net.send(client("PA", 94, 500, b"NOOP\r\n")).is_("established", conn=0, verdict="accept")
    return net


def test_the_payload_names_the_outer_address_and_numbers_follow(make_tracker):
    net = translated_session(make_tracker)
    did = net.send(client("PA", 100, 500, PORT)).is_("established", conn=0)
    assert did.frame.endswith(b"PORT 192,0,2,1,7,208\r\n") and len(did.frame) == 14 + 40 + len(PORT) + 1
    did = net.send(server("PA", 500, 100 + len(PORT) + 1, b"200 fine\r\n"))
    assert int.from_bytes(did.frame[14 + 28 : 14 + 32], "big") == 100 + len(PORT), "the acknowledgement is for what the client has sent"
    did = net.send(client("A", 100 + len(PORT), 510))
    assert int.from_bytes(did.frame[14 + 24 : 14 + 28], "big") == 100 + len(PORT) + 1


def test_the_payload_is_changed_where_it_is_tracked_and_the_address_where_it_is_asked(make_tracker):
    """In a first action the helper reads, in a second one the packet is translated; and the numbers are moved once."""
    net = translated_session(make_tracker)
    net.send(client("PA", 100, 500, PORT))
    packet = net.take(client("PA", 100 + len(PORT), 500, b"NOOP\r\n"))
    first = packet.ct()
    assert first.frame[14 + 12 : 14 + 16] == bytes([10, 0, 0, 1]) and int.from_bytes(first.frame[14 + 24 : 14 + 28], "big") == 101 + len(PORT)
    second = packet.ct(nat=BARE_NAT)
    assert second.frame[14 + 12 : 14 + 16] == bytes([192, 0, 2, 1]) and second.frame[14 + 24 : 14 + 28] == first.frame[14 + 24 : 14 + 28]
    packet.over()


def test_a_child_is_translated_as_its_master(make_tracker):
    """By the mapping that it was announced with, whatever range its own commit names."""
    net = translated_session(make_tracker)
    net.send(client("PA", 100, 500, PORT))
    child = craft.tcp(SERVER, PUBLIC, 20, 2000, "S", seq=1)
    net.look(child, nat=BARE_NAT).unchanged().is_("related", conn=None)
    net.look(child, nat=BARE_NAT, commit=True).leaves("198.51.100.7:20 > 10.0.0.1:2000").is_("related", conn=1)
    net.look(child, nat=BARE_NAT).unchanged().is_("related", conn=1)
    answer = craft.tcp(CLIENT, SERVER, 2000, 20, "SA", seq=1, ack=2)
    net.look(answer, nat=BARE_NAT).leaves("192.0.2.1:2000 > 198.51.100.7:20").is_("established", conn=1, dir="reply")
    net.look(child, nat=BARE_NAT).leaves("198.51.100.7:20 > 10.0.0.1:2000")


def test_a_child_that_a_rule_translates(make_tracker):
    net = translated_session(make_tracker)
    net.send(client("PA", 100, 500, PORT))
    child = craft.tcp(SERVER, PUBLIC, 20, 2000, "S", seq=1)
    net.look(child, nat=0, commit=True).leaves("198.51.100.7:20 > 10.0.0.1:2000").is_("related", conn=1)
    assert net.pool() == (1, 1, 0)
