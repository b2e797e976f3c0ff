"""Translation by `ct` actions: whom a mapping is made for, and which packets are translated by it.

A mapping is the connection's, made by the action that commits it; applying it is each action's own business. What an action changes is carried out at
once, so that the next one sees the packet as it is then.
Not here: which tuple is chosen of a range (test_nat_source, test_nat_choice), bytes (datapath).
"""

from __future__ import annotations

import pytest

from ctcore.ct_action import BARE_NAT
from ctcore.types import Dir
from datapath import craft
from datapath.craft import icmp_error
from pcap_tests.acting import Did, Hand, Walker, classic, lookup
from pcap_tests.router import ANY, Router, dnat, snat

ORIG, REPLY = Dir.ORIG, Dir.REPLY
CLIENT, SERVER, PUBLIC, INSIDE = "10.0.0.1", "198.51.100.7", "192.0.2.1", "10.0.0.7"
OUT, LEFT = "10.0.0.1:40000 > 198.51.100.7:53", "192.0.2.1:40000 > 198.51.100.7:53"
BACK, HOME = "198.51.100.7:53 > 192.0.2.1:40000", "198.51.100.7:53 > 10.0.0.1:40000"
IN, INTO = "198.51.100.7:40000 > 192.0.2.1:80", "198.51.100.7:40000 > 10.0.0.7:80"
DONE = {"src-nat-done", "dst-nat-done"}


@pytest.fixture
def walker(make_tracker):
    """walker(snat(...)): the classic pipeline, whose new connections are translated by the first rule."""
    return lambda *rules, pipeline=classic, **settings: Walker(make_tracker(nat=rules, nat_actions=True, **settings), pipeline)


# --- source, destination, both -----------------------------------------------------------------------------------------------------------


def test_a_source(walker):
    talk = walker(snat(PUBLIC)).udp(OUT)
    talk.orig().leaves(LEFT).is_("new", conn=0, has={"src-nat", "src-nat-done"}, lacks={"dst-nat", "dst-nat-done"})
    talk.reply().leaves(HOME).is_("established", dir="reply")
    talk.orig().leaves(LEFT).is_("established", dir="original")


def test_a_destination(walker):
    talk = walker(dnat(INSIDE)).udp(IN)
    talk.orig().leaves(INTO).is_("new", conn=0, has={"dst-nat", *DONE}, lacks={"src-nat"})
    talk.reply().leaves("192.0.2.1:80 > 198.51.100.7:40000").is_("established", dir="reply")
    talk.orig().leaves(INTO)


def test_tcp_through_its_whole_life(walker):
    conn = walker(snat(PUBLIC)).tcp("10.0.0.1:40000 > 198.51.100.7:80").establish()
    conn.orig("PA", payload=b"GET /").leaves("192.0.2.1:40000 > 198.51.100.7:80")
    conn.reply("PA", payload=b"200 OK").leaves("198.51.100.7:80 > 10.0.0.1:40000")
    conn.close()


def test_ipv6(walker):
    talk = walker(snat("2001:db8:9::1")).udp("[2001:db8:1::1]:40000 > [2001:db8:2::7]:53")
    talk.orig().leaves("[2001:db8:9::1]:40000 > [2001:db8:2::7]:53")
    talk.reply().leaves("[2001:db8:2::7]:53 > [2001:db8:1::1]:40000")


@pytest.mark.parametrize("make", [Router.udplite, Router.sctp, Router.gre, Router.generic, Router.ping])
def test_every_protocol(walker, make):
    ends = OUT if make in (Router.udplite, Router.sctp) else "10.0.0.1 > 198.51.100.7"
    passed = make(walker(snat(PUBLIC)), ends).orig().is_("new", conn=0)
    assert passed.left.src[:4] == bytes([192, 0, 2, 1])


def test_a_rules_match_is_not_looked_at(walker):
    """The pipeline's own rule has matched."""
    walker(snat(PUBLIC, src="172.16.0.0/12", proto=craft.TCP)).udp(OUT).orig().leaves(LEFT)


def test_both_halves(walker):
    """The destination as asked, and the source by a null binding, since its tuple would be another one's: who came to the inside by its own name."""
    net = walker(dnat(INSIDE))
    net.look(craft.udp(SERVER, INSIDE, 40000, 80), commit=True).is_("new", conn=0)
    talk = net.udp(IN)
    first = talk.orig().is_("new", conn=1, has={"src-nat", "dst-nat", *DONE})
    assert first.left.dst[:4] == bytes([10, 0, 0, 7]) and first.left.src == first.key.src
    assert first.left.sport in range(1024, 65536) and first.left.sport != 40000
    talk.reply().leaves("192.0.2.1:80 > 198.51.100.7:40000").is_("established", dir="reply", conn=1)
    again = talk.orig().is_("established", conn=1)
    assert again.left == first.left


def test_both_halves_of_what_rules_have_translated(make_tracker):
    """advance() has made the mapping, by the tracker's own rules; `ct nat` applies all of it."""
    tracker = make_tracker(nat=(dnat(INSIDE), snat("172.16.0.1")))
    rules, net = Router(tracker), Walker(tracker, lookup)
    talk = rules.udp(IN)
    talk.orig().leaves("172.16.0.1:40000 > 10.0.0.7:80")
    net.send(talk.frame(REPLY)).leaves("192.0.2.1:80 > 198.51.100.7:40000").is_("established")
    net.send(talk.frame(ORIG)).leaves("172.16.0.1:40000 > 10.0.0.7:80").is_("established")


# --- who is translated, and who is not ---------------------------------------------------------------------------------------------------


def test_without_nat_a_packet_stays_as_it_is(walker):
    net = walker(snat(PUBLIC))
    talk = net.udp(OUT)
    talk.orig().leaves(LEFT)
    net.look(talk.frame(REPLY)).unchanged().is_("established", conn=0)
    net.look(talk.frame(REPLY), commit=True).unchanged()


def test_a_mapping_can_be_applied_in_a_later_action(walker):
    net = walker(snat(PUBLIC))
    talk = net.udp(OUT)
    talk.orig()
    packet = net.take(talk.frame(REPLY))
    packet.ct().unchanged().is_("established", dir="reply")
    packet.ct(nat=BARE_NAT).leaves(HOME).is_("established", dir="reply")
    packet.ct(nat=BARE_NAT).leaves(HOME)
    packet.over()


def test_bare_nat_makes_no_mapping(walker):
    net = walker(snat(PUBLIC))
    net.look(craft.udp(CLIENT, SERVER, 40000, 53), nat=BARE_NAT, commit=True).unchanged().is_("new", conn=0, lacks={"src-nat", "src-nat-done"})


def test_an_unanswered_connection_needs_its_rule_again(walker):
    """As in Linux, where `ct nat` alone leaves what is new alone, mapping or not."""
    net = walker(snat(PUBLIC))
    talk = net.udp(OUT)
    talk.orig()
    net.look(talk.frame(ORIG), nat=BARE_NAT).unchanged().is_("new", conn=0)
    net.look(talk.frame(ORIG), nat=0).leaves(LEFT).is_("new", conn=0)
    talk.reply()
    net.look(talk.frame(ORIG), nat=BARE_NAT).leaves(LEFT).is_("established", conn=0)


def test_later_ranges_are_ignored(walker):
    net = walker(snat(PUBLIC), snat("192.0.2.99", ports=7), dnat("10.9.9.9"))
    talk = net.udp(OUT)
    talk.orig().leaves(LEFT)
    for later in (1, 0):
        net.look(talk.frame(ORIG), nat=later, commit=True).leaves(LEFT).is_("new", conn=0)
    net.look(talk.frame(ORIG), nat=2, commit=True).unchanged().is_("new", conn=0, lacks={"dst-nat"})
    talk.reply()
    for later in (1, 2):
        net.look(talk.frame(ORIG), nat=later, commit=True).leaves(LEFT).is_("established")
        net.look(talk.frame(REPLY), nat=later).leaves(HOME)
    assert [row.in_use for row in net.tracker.nat_pools()] == [1, 0, 0]


def test_what_was_committed_without_a_mapping_never_gets_one(walker):
    net = walker(snat(PUBLIC))
    talk = net.udp(OUT)
    net.pipeline = lambda packet: packet.ct(commit=True)
    talk.orig().unchanged().is_("new", conn=0)
    net.look(talk.frame(ORIG), nat=0, commit=True).unchanged().is_("new", conn=0, lacks={"src-nat"})
    talk.reply()
    net.look(talk.frame(ORIG), nat=0, commit=True).unchanged().is_("established")
    assert net.pool() == (0, 0, 0)


def test_a_mapping_that_is_not_committed_is_none(walker):
    """The packet is translated, and nothing remembers it."""
    net = walker(snat(PUBLIC))
    before = net.known()
    net.look(craft.udp(CLIENT, SERVER, 40000, 53), nat=0).leaves(LEFT).is_("new", conn=None, has={"src-nat"})
    assert net.known() == before
    net.look(craft.udp(SERVER, PUBLIC, 53, 40000)).is_("new", conn=None)


def test_what_is_translated_and_not_committed_is_tracked_as_it_is_then(walker):
    """Each action sees the packet as the one before has left it."""
    net = walker(snat(PUBLIC))
    packet = net.take(craft.udp(CLIENT, SERVER, 40000, 53))
    packet.ct(nat=0).leaves(LEFT)
    packet.ct(commit=True).unchanged().is_("new", conn=0, lacks={"src-nat"})
    packet.over()
    net.look(craft.udp(SERVER, PUBLIC, 53, 40000)).is_("established", conn=0, dir="reply")


def test_a_range_of_ports_alone_is_none(walker):
    """Linux makes a mapping only where there are addresses; the source is then bound to what it is."""
    net = walker(snat(ANY, ports=(7, 9)), snat("0.0.0.0", ports=(7, 9)))
    for rule, sport in ((0, 40000), (1, 40001)):
        did = net.look(craft.udp(CLIENT, SERVER, sport, 53), commit=True, nat=rule)
        did.unchanged().is_("new", has={"src-nat-done"}, lacks={"src-nat"})
    assert [row.in_use for row in net.tracker.nat_pools()] == [0, 0]


def test_translation_in_one_zone_is_none_in_another(walker):
    """The client's zone translates; the server's sees who the client has become, and both know their own answers."""
    net = walker(snat(PUBLIC))
    packet = net.take(craft.udp(CLIENT, SERVER, 40000, 53))
    packet.ct(zone=1, commit=True, nat=0).leaves(LEFT)
    packet.ct(zone=2, commit=True).unchanged().is_("new", conn=1)
    packet.over()
    packet = net.take(craft.udp(SERVER, PUBLIC, 53, 40000))
    packet.ct(zone=2).unchanged().is_("established", conn=1, dir="reply")
    packet.ct(zone=1, nat=BARE_NAT).leaves(HOME).is_("established", conn=0, dir="reply")
    packet.over()


def test_force_under_translation(walker):
    """What begins anew in the reply's direction gets a mapping of its own."""
    net = walker(snat(PUBLIC), snat("203.0.113.1"))
    talk = net.udp(OUT)
    talk.orig()
    packet = net.take(talk.frame(REPLY))
    packet.ct().is_("established", dir="reply")
    packet.ct(commit=True, force=True, nat=1).leaves("203.0.113.1:53 > 192.0.2.1:40000").is_("new", conn=1, dir="original")
    packet.over()
    assert [row.in_use for row in net.tracker.nat_pools()] == [0, 1]


# --- errors ------------------------------------------------------------------------------------------------------------------------------


def complaint(talk, **fields) -> bytes:
    """The server's, about the client's packet as it arrived there."""
    return icmp_error(SERVER, PUBLIC, 3, 3, talk.arrived(), **fields)


def test_an_error_is_translated_outside_and_inside(walker):
    net = walker(snat(PUBLIC))
    talk = net.udp(OUT)
    talk.orig()
    did = net.send(complaint(talk)).leaves("198.51.100.7 > 10.0.0.1").quotes(OUT).is_("related", dir="reply", conn=0)
    assert did.frame[14 + 20 + 8 :] == craft.udp(CLIENT, SERVER, 40000, 53)[14:]


def test_an_error_in_a_later_action(walker):
    net = walker(snat(PUBLIC))
    talk = net.udp(OUT)
    talk.orig()
    packet = net.take(complaint(talk))
    packet.ct().unchanged().is_("related", conn=0)
    packet.ct(nat=BARE_NAT).leaves("198.51.100.7 > 10.0.0.1").quotes(OUT)
    packet.over()


def test_an_error_in_the_original_direction_is_translated_when_it_is_committed(walker):
    """Linux takes it for something that begins (IP_CT_RELATED); or a rule asks for it."""
    net = walker(snat(PUBLIC))
    talk = net.udp(OUT)
    talk.orig()
    talk.reply()
    error = icmp_error(CLIENT, SERVER, 3, 3, craft.udp(SERVER, CLIENT, 53, 40000))
    net.look(error, nat=BARE_NAT).unchanged().is_("related", dir="original", conn=0)
    for action in ({"nat": BARE_NAT, "commit": True}, {"nat": 0}):
        net.look(error, **action).leaves("192.0.2.1 > 198.51.100.7").quotes(BACK).is_("related", conn=0)


def test_an_error_about_a_translated_destination(walker):
    net = walker(dnat(INSIDE))
    talk = net.udp(IN)
    talk.orig()
    net.send(icmp_error(INSIDE, SERVER, 3, 3, talk.arrived())).leaves("192.0.2.1 > 198.51.100.7").quotes(IN).is_("related", dir="reply")


def test_an_error_that_cannot_be_translated_is_dropped(walker):
    """Its checksum is wrong; it is a redirect, which names addresses that nobody translates; it quotes less than what changes."""
    net = walker(snat(PUBLIC), checksum=False)
    net.checksum = False
    talk = net.udp(OUT)
    talk.orig()
    redirect = icmp_error(SERVER, PUBLIC, 5, 1, talk.arrived(), rest=1)
    for error in (complaint(talk, l4_checksum=0x1234), redirect, complaint(talk, quote=24)):
        did = net.look(error, nat=BARE_NAT)
        assert not did.goes_on
        did.dropped("nat_icmp").is_("related", conn=0)
    net.look(redirect).unchanged().is_("related", conn=0)


def test_an_error_about_what_is_not_translated(walker):
    net = walker(snat(PUBLIC))
    net.look(craft.udp(CLIENT, SERVER, 40000, 53), commit=True)
    error = icmp_error(SERVER, CLIENT, 3, 3, craft.udp(CLIENT, SERVER, 40000, 53))
    net.look(error, nat=BARE_NAT, commit=True).unchanged().is_("related")


# --- nothing free ------------------------------------------------------------------------------------------------------------------------


def test_what_finds_nothing_free_is_dropped(walker):
    net = walker(snat(PUBLIC, ports=(7, 8)))
    for sport in (1000, 1001):
        net.send(craft.udp(CLIENT, SERVER, sport, 53)).is_("new", verdict="accept")
    did = net.send(craft.udp(CLIENT, SERVER, 1002, 53)).dropped("nat_exhausted").is_("not-seen", conn=None)
    assert not did.goes_on and net.pool() == (2, 2, 1)
    counters = net.tracker.counters()
    assert (counters["nat_exhausted"], counters["insert_failed"], counters["new"]) == (1, 1, 2)


def test_nothing_free_without_a_commit(walker):
    """Never is a tuple shared, be it for one packet."""
    net = walker(snat(PUBLIC, ports=7))
    net.send(craft.udp(CLIENT, SERVER, 1000, 53))
    did = net.look(craft.udp(CLIENT, SERVER, 1001, 53), nat=0)
    assert not did.goes_on
    did.dropped("nat_exhausted")
    assert net.tracker.counters()["nat_exhausted"] == 1


def test_an_untranslated_connection_whose_answers_are_anothers(walker):
    """Nothing was to be found for it: a clash, and no fault of a range."""
    net = walker(snat(PUBLIC, ports=7))
    net.send(craft.udp(CLIENT, SERVER, 1000, 53)).leaves("192.0.2.1:7 > 198.51.100.7:53")
    packet = net.take(craft.udp(PUBLIC, SERVER, 7, 53))
    packet.ct().is_("new", conn=None)
    did = packet.ct(commit=True).dropped("clash")
    assert not did.goes_on and net.pool() == (1, 1, 0)


def test_gre_that_cannot_be_translated_is_dropped(walker):
    net = walker(dnat(INSIDE))
    did = net.look(craft.gre(SERVER, PUBLIC, version=2, payload=bytes(20)), nat=0, commit=True)
    assert not did.goes_on and did.reason == "nat_gre" and net.ordinals() == []


# --- whatever the order ------------------------------------------------------------------------------------------------------------------


def through_both(packet: Hand) -> Did:
    """A zone on either side of a translator."""
    did = packet.ct(zone=1, nat=BARE_NAT)
    if did.state == "new":
        packet.ct(zone=1, commit=True, nat=0)
    return packet.ct(zone=2, commit=True)


def test_a_pipeline_of_two_zones(walker):
    net = walker(snat(PUBLIC), pipeline=through_both)
    talk = net.udp(OUT)
    for _ in range(2):
        talk.orig().is_("new", zone=2, conn=1)
    assert net.tracker.zone_counts() == {1: 1, 2: 1}
    reply = net.take(craft.udp(SERVER, PUBLIC, 53, 40000))
    reply.ct(zone=2).is_("established", dir="reply")
    reply.ct(zone=1, nat=BARE_NAT).leaves(HOME).is_("established", dir="reply")
    reply.over()
