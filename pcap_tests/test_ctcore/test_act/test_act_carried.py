"""What packets carry between two actions, as the engine keeps it: slots that are in no table, which are taken and given back, and never mistaken.

Not here: what actions do (test_act and its neighbours), of which the model knows as much.
"""

from __future__ import annotations

import gc

import pytest

from ctcore import Config, Tracker
from ctcore.config import CAPACITY_LIMIT
from ctcore.ct_action import BARE_NAT, NO_ASSOCIATION, Association, CtAction, Outcome
from ctcore.errors import ConfigError
from ctcore.model import ModelTracker
from ctcore.nat_rules import HelperRule
from datapath import craft
from pcap_tests.acting import Walker
from pcap_tests.router import Router, snat
from pcap_tests.scene import CLIENT, SERVER, established, udp

MOST = 256  # carried at a time


@pytest.fixture
def net():
    """The engine. Scenes and hands prove its invariants at each step; slots that leak break them."""
    return Walker(Tracker(Config(max=8)))


def question(sport: int = 40000) -> bytes:
    return craft.udp(CLIENT, SERVER, sport, 53)


# --- slots -------------------------------------------------------------------------------------------------------------------------------


def test_a_carried_slot_is_nobody_elses(net):
    """Others come and go meanwhile, through every slot that there is."""
    packet = net.take(question())
    packet.ct().is_("new", conn=None)
    for sport in range(20):
        net.look(question(sport), commit=True)
    packet.ct().is_("new", conn=None, timeout=30)
    net.tracker.flush()
    packet.ct(commit=True).is_("new", conn=8)
    packet.over()
    assert net.entry(8)["flow"]["key"]["sport"][0] == 40000


def test_carried_connections_take_no_place_from_confirmed_ones(net):
    hands = [net.take(question(sport)) for sport in range(50)]
    for packet in hands:
        packet.ct().is_("new", conn=None)
    for sport in range(100, 108):
        net.look(question(sport), commit=True).is_("new", verdict="accept")
    assert net.tracker.count == 8 and net.tracker.zone_counts() == {0: 8}
    net.look(question(108), commit=True).is_("not-seen", reason="table_full")
    for packet in hands:
        packet.over()


def test_what_is_carried_on_top_is_dropped(net):
    """A packet that nobody declared over holds its slot; all others go on."""
    hands = [net.take(question(sport)) for sport in range(MOST)]
    for packet in hands:
        assert packet.ct().goes_on
    did = net.look(question(60000))
    assert not did.goes_on
    did.is_("not-seen", reason="table_full", conn=None)
    assert net.tracker.counters()["drop"] == 1
    net.look(question(60000), commit=True).is_("new", conn=0)
    net.look(question(60000)).is_("new", conn=0)
    udp(net.tracker, port=(60001, 53)).orig().is_("new", conn=1)
    hands.pop().over()
    assert net.look(question(60002)).goes_on
    for packet in hands:
        packet.over()


def test_the_largest_table_leaves_room_for_what_is_carried():
    """Slots have names of 26 bits."""
    assert CAPACITY_LIMIT + MOST + 1 <= 1 << 26


def test_a_connection_that_its_packet_has_ended_is_carried_to_the_end(net):
    """A RST as the only answer: its slot is nobody else's until the packet is over, and what is set on it is told nobody."""
    net = Walker(Tracker(Config(max=8, events=frozenset({"update"}))))
    net.send(craft.tcp(CLIENT, SERVER, 40000, 80, "S", seq=1))
    packet = net.take(craft.tcp(SERVER, CLIENT, 80, 40000, "RA", ack=2))
    packet.ct().is_("established", conn=0, reason="tcp_rst_killed")
    for sport in range(20):
        net.look(question(sport), commit=True)
    packet.ct(commit=True, mark=(7, 0xFF)).is_("established", conn=0, dir="reply", mark=7)
    assert len(net.tracker.events()) == 0 and 0 not in net.ordinals()
    net.tracker.flush()
    packet.ct(force=True, commit=True).lost(reason="tcp_not_opening")
    packet.over()


def test_a_tracker_may_go_before_its_packets():
    tracker = Tracker(Config(max=8))
    net = Walker(tracker)
    hands = [net.take(question(sport)) for sport in range(5)]
    carried = [packet.ct().association for packet in hands]
    hands[0].net = net = tracker = None
    del hands, net, tracker
    gc.collect()
    other = Tracker(Config(max=8))
    for association in carried:
        with pytest.raises(ConfigError, match="of this tracker"):
            other.leave(association)


# --- associations ------------------------------------------------------------------------------------------------------------------------


def test_an_association_is_good_for_one_action(net):
    """Also where the connection is kept, and where it is confirmed."""
    packet = net.take(question())
    first = packet.ct().association
    second = packet.ct().association
    third = packet.ct(commit=True).association
    packet.ct()
    for spent in (first, second, third):
        with pytest.raises(ConfigError, match="spent"):
            net.tracker.act(net.batch([question()]), CtAction(), spent)
    packet.over()


def test_an_action_that_cannot_be_leaves_the_association_good(net):
    packet = net.take(question())
    carried = packet.ct().association
    with pytest.raises(ConfigError, match="nat_actions"):
        net.tracker.act(net.batch([question()]), CtAction(nat=BARE_NAT), carried)
    with pytest.raises(ConfigError, match="expected one"):
        net.tracker.act(net.batch([question(), question()]), CtAction(), carried)
    packet.ct(commit=True).is_("new", conn=0)
    packet.over()


def test_what_is_no_association_of_the_engine(net):
    for wrong in (None, (True, 0), Association(True, 0, object()), Association(True, 0, 7)):
        with pytest.raises(ConfigError, match="association"):
            net.tracker.leave(wrong)
    model = ModelTracker(Config())
    theirs = Walker(model).take(question()).ct().association
    with pytest.raises(ConfigError, match="of this tracker"):
        net.tracker.leave(theirs)


def test_without_a_connection_there_is_nothing_to_leave(net):
    did = net.look(craft.tcp(CLIENT, SERVER, 40000, 80, "SF"), zone=4).lost()
    for _ in range(2):
        net.tracker.leave(did.association)
        net.tracker.leave(NO_ASSOCIATION)
    assert did.acted.outcome == Outcome.ON


def test_a_batch_that_has_been_through_advance(net):
    batch = net.batch([question()])
    net.tracker.advance(batch)
    with pytest.raises(ValueError, match="batch"):
        net.tracker.act(batch, CtAction())


# --- settings that make room -------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=[Tracker, ModelTracker], ids=["engine", "model"])
def kind(request):
    return request.param


def test_room_for_translation_makes_null_bindings(kind):
    """As rules do of which none matches: advance() finds another port where a tuple's answers are somebody else's."""
    net = Router(kind(Config(nat_actions=True)))
    talk = net.udp("10.0.0.1:40000 > 198.51.100.7:53")
    talk.orig().unchanged().is_("new", has={"src-nat-done", "dst-nat-done"}, lacks={"src-nat", "dst-nat"})
    assert net.tracker.nat_pools() == []


def test_bare_nat_needs_no_rule(kind):
    tracker = kind(Config(nat_actions=True))
    net = Walker(tracker)
    net.look(question(), nat=BARE_NAT, commit=True).unchanged().is_("new", conn=0, lacks={"src-nat-done"})
    with pytest.raises(ValueError, match="nat"):
        net.look(question(), nat=0)


def test_room_for_helpers_gives_none_by_port(kind):
    tracker = kind(Config(helper_actions=True))
    established(tracker, port=(40000, 21)).orig("PA", payload=b"PORT 10,0,0,1,7,208\r\n").is_("established", lacks={"helper"})
    assert tracker.expectations() == []


def test_a_helper_that_an_action_gave_reads_in_batches_too(kind):
    net = Walker(kind(Config(helper_actions=True, helpers=(HelperRule("irc", 6, 6667),))))
    request = craft.tcp(CLIENT, SERVER, 40000, 2121, "S", seq=99)
    net.look(request, commit=True, helper="ftp").is_("new", conn=0, has={"helper"})
    net.tracker.advance(net.batch([craft.tcp(SERVER, CLIENT, 2121, 40000, "SA", seq=499, ack=100)]))
    said = craft.tcp(CLIENT, SERVER, 40000, 2121, "PA", seq=100, ack=500, payload=b"NOOP\r\n")
    port = craft.tcp(CLIENT, SERVER, 40000, 2121, "PA", seq=106, ack=500, payload=b"PORT 10,0,0,1,7,208\r\n")
    net.tracker.advance(net.batch([said, port]))
    assert [(row.src, row.dport) for row in net.tracker.expectations()] == [(SERVER, 2000)]


def test_a_redirect_about_half_a_mapping_is_dropped(kind):
    """An action binds the source alone; Linux translates no redirect until both halves are decided, be there anything to translate or not."""
    net = Walker(kind(Config(nat=(snat("198.51.100.1-198.51.100.9"),), nat_actions=True)))
    net.look(craft.udp("198.51.100.1", SERVER, 40000, 53), nat=0, commit=True).unchanged().is_("new", has={"src-nat-done"}, lacks={"dst-nat-done"})
    redirect = craft.icmp_error(SERVER, "198.51.100.1", 5, 1, craft.udp("198.51.100.1", SERVER, 40000, 53), rest=1)
    Router(net.tracker).send(redirect).is_("related", verdict="drop", reason="nat_icmp", conn=0)
    net.look(redirect, nat=0).is_("related", verdict="drop", reason="nat_icmp")
    net.look(redirect, nat=BARE_NAT).is_("related", verdict="accept", dir="reply")
