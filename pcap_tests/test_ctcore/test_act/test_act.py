"""`ct` actions: what is looked up, what is kept from one action to the next, what a commit does, and what is left behind without one.

Not here: several packets at a time (test_act_carried), translation (test_act_nat), helpers and what they announce (test_act_helpers).
"""

from __future__ import annotations

import pytest

from datapath import craft
from pcap_tests.acting import Walker
from pcap_tests.scene import CLIENT, CLIENT6, SERVER, SERVER6, events

QUESTION = "10.0.0.1:40000 > 10.0.0.2:53"


@pytest.fixture
def net(tracker):
    return Walker(tracker)


def question(**fields) -> bytes:
    return craft.udp(CLIENT, SERVER, 40000, 53, **fields)


def answer(**fields) -> bytes:
    return craft.udp(SERVER, CLIENT, 53, 40000, **fields)


# --- lookup and commit -----------------------------------------------------------------------------------------------------------------


def test_what_is_only_looked_up_leaves_nothing_behind(make_tracker):
    net = Walker(make_tracker(events={"new", "update", "destroy"}))
    before = net.known()
    for frame in (question(), craft.tcp(CLIENT, SERVER, 1, 80, "S"), craft.icmp(CLIENT, SERVER, 8, ident=7), craft.gre(CLIENT, SERVER)):
        net.look(frame).is_("new", conn=None, reason="ok", verdict="accept", dir="original", lacks={"confirmed"})
    assert net.known() == before and len(net.tracker.events()) == 0


def test_commit_makes_a_connection(net):
    packet = net.take(question())
    packet.ct().is_("new", conn=None, timeout=30)
    packet.ct(commit=True).is_("new", conn=0, timeout=30, has={"confirmed"})
    packet.over()
    assert net.ordinals() == [0]
    net.look(answer()).is_("established", conn=0, dir="reply")


def test_lookup_and_commit_in_one_action(net):
    net.look(question(), commit=True).is_("new", conn=0)
    net.look(question()).is_("new", conn=0)


def test_tcp_through_its_whole_life(net):
    conn = net.tcp("10.0.0.1:40000 > 10.0.0.2:80").establish()
    conn.orig("PA", payload=b"GET /").is_("established", l4state="ESTABLISHED", dir="original", conn=0)
    conn.reply("PA", payload=b"200 OK").is_("established", dir="reply")
    conn.close()
    assert conn.status >= {"seen-reply", "assured", "confirmed"}


def test_an_unanswered_connection_stays_new(net):
    talk = net.udp(QUESTION)
    assert [talk.orig().is_("new").conn for _ in range(3)] == [0, 0, 0]
    talk.reply()
    talk.orig().is_("established", dir="original")


@pytest.mark.parametrize(("client", "server"), [(CLIENT, SERVER), (CLIENT6, SERVER6)])
def test_errors_are_related(net, client, server):
    asked = craft.udp(client, server, 40000, 53)
    net.send(asked)
    kind = (3, 3) if client == CLIENT else (1, 4)
    net.look(craft.icmp_error(server, client, *kind, asked)).is_("related", conn=0, dir="reply")
    net.look(craft.icmp_error(server, client, *kind, craft.udp(client, server, 40000, 54))).lost(reason="icmp_no_conn")


def test_a_closed_connection_gives_way_to_a_syn(make_tracker):
    """Even if nobody commits the new one: the lookup is Linux's whole tracking."""
    net = Walker(make_tracker(events={"destroy"}))
    conn = net.tcp("10.0.0.1:40000 > 10.0.0.2:80").establish()
    conn.close()
    net.look(craft.tcp(CLIENT, SERVER, 40000, 80, "S", seq=9_000_000)).is_("new", conn=None, reason="tcp_reopened")
    assert net.ordinals() == [] and [told.end for told in events(net.tracker)] == ["replaced"]


def test_a_refused_connection_ends_at_once(net):
    """A RST as the only reply. The packet itself keeps what it belongs to, to the end of its way."""
    net.send(craft.tcp(CLIENT, SERVER, 40000, 80, "S", seq=1))
    packet = net.take(craft.tcp(SERVER, CLIENT, 80, 40000, "RA", ack=2))
    packet.ct().is_("established", dir="reply", conn=0, reason="tcp_rst_killed")
    assert net.ordinals() == []
    packet.ct(commit=True, mark=(5, 0xFF)).is_("established", dir="reply", conn=0, mark=5)
    packet.over()


# --- what goes on without a connection ---------------------------------------------------------------------------------------------------


def test_what_is_invalid_goes_on_and_cannot_be_committed(net):
    packet = net.take(craft.tcp(CLIENT, SERVER, 40000, 80, "SF"))
    packet.ct(zone=3).lost(reason="tcp_flags", zone=3)
    packet.ct(zone=3, commit=True, mark=(1, 1)).lost(reason="tcp_flags")
    assert net.tracker.counters()["invalid"] == 2 and net.ordinals() == []


def test_what_has_no_tuple_is_invalid(net):
    """Its header ends before its ports: parsing has decided that."""
    net.look(craft.frame(CLIENT, SERVER, craft.UDP, b"\0\1"), commit=True).lost(reason="tuple_short")


def test_an_invalid_packet_lets_go_of_what_it_had(net):
    packet = net.take(question())
    packet.ct(commit=True).is_("new", conn=0)
    packet.frame = question(l4_checksum=0x1234)
    packet.ct(zone=1).lost(reason="udp_checksum")
    packet.over()
    assert net.ordinals() == [0]


@pytest.mark.parametrize("kind", [135, 136, 143])
def test_neighbour_discovery_is_not_tracked(net, kind):
    """For rules it is as good as invalid."""
    net.look(craft.icmp(CLIENT6, SERVER6, kind, payload=bytes(20), ttl=255), commit=True).lost("untracked", reason="icmp6_untracked")
    assert net.ordinals() == [] and net.tracker.counters()["invalid"] == 0


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (craft.eth(bytes(46), 0x0806), "not_ip"),
        (craft.eth(craft.ipv4(CLIENT, SERVER, 17, bytes(8), ip_checksum=1)), "ip_checksum"),
        (craft.eth(craft.ipv4(CLIENT, SERVER, 17, bytes(8), ihl=4)), "ip_header"),
        (craft.eth(craft.ipv4(CLIENT, SERVER, 17, bytes(8), length=2000)), "ip_truncated"),
        (craft.eth(craft.ipv6(CLIENT6, SERVER6, 17, bytes(8))[:20], 0x86DD), "ip_header"),
    ],
    ids=("arp", "checksum", "header", "truncated", "ipv6"),
)
def test_what_is_not_ip_is_dropped(net, frame, reason):
    did = net.look(frame, commit=True)
    assert not did.goes_on
    did.is_("not-seen", verdict="drop", reason=reason, conn=None)


def test_a_full_table_drops(make_tracker):
    net = Walker(make_tracker(max=1))
    conn = net.tcp("10.0.0.1:40000 > 10.0.0.2:80").establish()
    did = net.look(question())
    assert not did.goes_on
    did.is_("not-seen", reason="table_full", verdict="drop", conn=None)
    assert conn.state == "ESTABLISHED" and net.tracker.counters()["drop"] == 1


def test_a_full_zone_drops(make_tracker):
    net = Walker(make_tracker(zone_limits={4: 1}))
    net.look(question(), zone=4, commit=True)
    did = net.look(craft.udp(CLIENT, SERVER, 40001, 53), zone=4)
    assert not did.goes_on
    did.is_("not-seen", reason="zone_limit", verdict="drop")
    net.look(craft.udp(CLIENT, SERVER, 40001, 53), zone=5).is_("new")


def test_an_unassured_one_gives_way(make_tracker):
    """Room is made when the packet is tracked, be it committed or not."""
    net = Walker(make_tracker(max=1, buckets=1))
    net.send(question())
    net.look(craft.udp(CLIENT, SERVER, 40001, 53)).is_("new", conn=None)
    assert net.ordinals() == [] and net.tracker.counters()["early_drop"] == 1


# --- from one action to the next ---------------------------------------------------------------------------------------------------------


def test_a_packet_is_tracked_once_in_a_zone(net):
    """It is not looked up again, nor counted again, and stays what it was."""
    talk = net.udp(QUESTION)
    talk.orig()
    found = net.tracker.counters()["found"]
    packet = net.take(answer())
    for action in ({}, {"commit": True}, {"nat": None}):
        packet.ct(**action).is_("established", dir="reply", conn=0)
    packet.over()
    assert net.tracker.counters()["found"] == found + 1 and net.entry(0)["flow"]["packets"].tolist() == [1, 1]


def test_what_is_committed_stays_new_to_the_end_of_its_way(net):
    packet = net.take(question())
    packet.ct(commit=True).is_("new", conn=0)
    packet.ct().is_("new", conn=0)
    packet.ct(commit=True, mark=(7, 0xFF)).is_("new", conn=0, mark=7)
    packet.over()
    assert net.entry(0)["flow"]["packets"].tolist() == [1, 0]


def test_what_is_looked_up_twice_is_one_connection(net):
    packet = net.take(question())
    packet.ct().is_("new", conn=None)
    packet.ct().is_("new", conn=None)
    packet.ct(commit=True).is_("new", conn=0)
    packet.over()
    assert net.entry(0)["flow"]["packets"].tolist() == [1, 0]


def test_another_zone_is_another_connection(net):
    packet = net.take(question())
    packet.ct(zone=1, commit=True, mark=(1, 0xFF)).is_("new", conn=0, mark=1, zone=1)
    packet.ct(zone=2).is_("new", conn=None, mark=0, zone=2)
    packet.ct(zone=2, commit=True).is_("new", conn=1, zone=2)
    packet.ct(zone=1).is_("new", conn=0, mark=1)
    packet.over()
    assert net.tracker.zone_counts() == {1: 1, 2: 1}
    assert net.entry(0)["flow"]["packets"].tolist() == [2, 0], "tracked anew in the zone it came back to"


def test_a_zone_left_without_a_commit_is_left_for_good(net):
    packet = net.take(question())
    packet.ct(zone=1)
    packet.ct(zone=2, commit=True).is_("new", conn=0)
    packet.over()
    assert net.tracker.zone_counts() == {2: 1}


def test_a_zone_for_each_direction(make_tracker):
    """As if each side had its own: the answer is looked up in the server's zone, and is no answer in the client's."""
    net = Walker(make_tracker())
    packet = net.take(question())
    packet.ct(zone=1, commit=True)
    packet.ct(zone=2, commit=True)
    packet.over()
    packet = net.take(answer())
    packet.ct(zone=2).is_("established", dir="reply", conn=1)
    packet.ct(zone=1).is_("established", dir="reply", conn=0)
    packet.ct(zone=3).is_("new", dir="original", conn=None)
    packet.over()


def test_clear_takes_away_what_was_said(net):
    packet = net.take(question())
    packet.ct(zone=1, commit=True, mark=(3, 0xFF))
    packet.ct(clear=True).untracked()
    packet.ct(zone=1).is_("new", conn=0, mark=3)
    packet.over()
    assert net.entry(0)["flow"]["packets"].tolist() == [2, 0]


def test_clear_drops_what_is_not_committed_and_ignores_all_else(net):
    packet = net.take(question())
    packet.ct(zone=1)
    packet.ct(clear=True, zone=1, commit=True, mark=(3, 0xFF)).untracked()
    assert net.ordinals() == []
    packet.over()
    assert net.take(craft.eth(bytes(46), 0x0806)).ct(clear=True).untracked().goes_on


# --- force -------------------------------------------------------------------------------------------------------------------------------


def test_force_begins_anew_in_the_replys_direction(make_tracker):
    net = Walker(make_tracker(events={"new", "destroy"}))
    net.send(question())
    packet = net.take(answer())
    packet.ct().is_("established", dir="reply", conn=0)
    packet.ct(commit=True, force=True).is_("new", dir="original", conn=1)
    packet.over()
    assert [(told.kind, told.conn, told.end) for told in events(net.tracker)] == [
        ("new", 0, "alive"),
        ("destroy", 0, "replaced"),
        ("new", 1, "alive"),
    ]
    net.look(question()).is_("established", dir="reply", conn=1)


def test_force_leaves_the_original_direction_alone(net):
    net.send(question())
    packet = net.take(question())
    packet.ct()
    packet.ct(commit=True, force=True).is_("new", dir="original", conn=0)
    packet.over()


def test_force_is_about_a_packet_that_has_been_tracked(net):
    """On its own it changes nothing."""
    net.send(question())
    net.look(answer(), commit=True, force=True).is_("established", dir="reply", conn=0)


def test_force_without_commit(net):
    net.send(question())
    packet = net.take(answer())
    packet.ct()
    packet.ct(force=True).is_("new", dir="original", conn=None)
    packet.over()
    assert net.ordinals() == []


# --- mark and label ----------------------------------------------------------------------------------------------------------------------

LABEL = 1 << 127 | 1


def test_marks_and_labels_of_a_new_connection(make_tracker):
    net = Walker(make_tracker(events={"new", "update"}))
    did = net.look(question(), commit=True, mark=(0x12, 0xFF), label=(LABEL, LABEL)).is_("new", mark=0x12)
    assert did.association.label == LABEL
    (told,) = net.tracker.events()
    assert told["conn"]["mark"] == 0x12 and told["conn"]["label"].tolist() == [1, 1 << 63]


def test_masks(make_tracker):
    """value | old & ~mask; a bit of the value outside of the mask is set as well."""
    net = Walker(make_tracker(events={"update"}))
    net.look(question(), commit=True, mark=(0xFFFF, 0xFFFFFFFF), label=(0xFF00, 0xFFFF))
    did = net.look(answer(), commit=True, mark=(0x10012, 0xFF), label=(LABEL, 0xF000)).is_("established", mark=0x1FF12, conn=0)
    assert did.association.label == LABEL | 0x0F00
    (told,) = events(net.tracker)
    assert told.record["conn"]["mark"] == 0x1FF12


def test_what_stays_as_it_is_is_no_event(make_tracker):
    net = Walker(make_tracker(events={"update"}))
    net.look(question(), commit=True, mark=(5, 0xFF))
    net.look(question(), commit=True, mark=(5, 0xFF))
    assert len(net.tracker.events()) == 0


def test_marks_need_a_commit(net):
    net.look(question(), mark=(5, 0xFF), label=(1, 1)).is_("new", mark=0)
    net.send(question())
    did = net.look(question(), mark=(5, 0xFF), label=(1, 1)).is_("new", mark=0, conn=0)
    assert did.association.label == 0 and net.entry(0)["mark"] == 0


def test_a_mark_is_carried_as_it_is_now(net):
    """Set by an administrator between two actions."""
    packet = net.take(question())
    packet.ct(commit=True)
    net.tracker.set_mark(0, 9)
    packet.ct().is_("new", mark=9)
    packet.over()


def test_an_error_may_mark_the_connection_it_is_about(net):
    net.send(question())
    net.look(craft.icmp_error(SERVER, CLIENT, 3, 3, question()), commit=True, mark=(4, 0xF)).is_("related", mark=4, conn=0)
    assert net.entry(0)["mark"] == 4 and net.ordinals() == [0]
