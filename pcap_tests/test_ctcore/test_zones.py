"""Zones: of both directions they keep whole connections apart; of one direction only its tuples, while those of the other one meet in zone 0.

The second is for networks with overlapping addresses behind one address: what they send lies in zones of their own, and what is answered comes back
without a zone.
"""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctcore.config import Config
from ctcore.errors import ConfigError
from ctcore.nat_rules import NatRule, Range
from ctcore.types import KEY_DTYPE, Dir
from datapath import craft
from pcap_tests.scene import CLIENT, SERVER, Exchange, Scene, conversation, established, udp
from pcap_tests.test_ctcore.test_equality import EXAMPLES, CrowdPlay, DatagramPlay, SctpPlay, TcpPlay, config, pick, run, series
from pcap_tests.test_ctcore.twins import Twins


def in_zone(exchange: Exchange, zone: int) -> Exchange:
    exchange.zone = zone
    return exchange


def zones_of(tracker, ordinal: int = 0) -> list[int]:
    return tracker.conn(ordinal)["flow"]["key"]["zone"][0].tolist()


# --- of both directions ----------------------------------------------------------------------------------------------------------------


def test_equal_tuples_in_zones_of_their_own(tracker):
    scene = Scene(tracker)
    for zone in (0, 1, 65535):
        udp(tracker, scene=scene, zone=zone).orig().is_("new", zone=zone)
    assert tracker.zone_counts() == {0: 1, 1: 1, 65535: 1}


def test_an_answer_from_another_zone_is_no_answer(tracker):
    talk = udp(tracker, zone=1)
    talk.orig().is_("new", conn=0)
    in_zone(talk, 2).reply().is_("new", conn=1)


# --- of the original direction ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zone", [0, 5, 7])
def test_answers_come_from_any_zone_if_zones_are_of_the_original_direction(make_tracker, zone):
    """Linux looks in the packet's own zone, finds nothing, and looks where zones do not count."""
    tracker = make_tracker(zone_dir="original")
    talk = udp(tracker, zone=5)
    talk.orig().is_("new", conn=0, zone=5)
    in_zone(talk, zone).reply().is_("established", conn=0, dir="reply", zone=zone)
    assert zones_of(tracker) == [5, 0]


@pytest.mark.parametrize("zone", [0, 7])
def test_questions_from_another_zone_are_others(make_tracker, zone):
    tracker = make_tracker(zone_dir="original")
    talk = udp(tracker, zone=5, port=(40000, 53))
    talk.orig().is_("new", conn=0)
    talk.reply()
    in_zone(talk, 5).orig().is_("established", conn=0, dir="original")
    in_zone(talk, zone).orig().is_("not-seen", reason="clash", verdict="drop")


def test_two_zones_that_are_answered_at_one_address_clash(make_tracker):
    """Nothing but address translation can tell their answers apart."""
    tracker = make_tracker(zone_dir="original")
    scene = Scene(tracker)
    conversation(tracker, scene=scene, zone=1).orig("S").is_("new", conn=0)
    conversation(tracker, scene=scene, zone=2).orig("S").is_("not-seen", reason="clash", verdict="drop", conn=None)
    assert tracker.counters()["insert_failed"] == 1
    assert tracker.zone_counts() == {1: 1}


def test_a_connection_of_another_zone_is_not_met_by_its_question(make_tracker):
    """The tuple of the second lookup belongs to a question in zone 0: to a packet of zone 5 that is a stranger."""
    tracker = make_tracker(zone_dir="original")
    scene = Scene(tracker)
    udp(tracker, scene=scene, zone=0).orig().is_("new", conn=0)
    udp(tracker, scene=scene, zone=5).orig().is_("not-seen", reason="clash")
    udp(tracker, scene=scene, zone=5).reply().is_("established", conn=0, dir="reply")


# --- of the reply direction ------------------------------------------------------------------------------------------------------------


def test_questions_come_from_any_zone_if_zones_are_of_the_reply_direction(make_tracker):
    tracker = make_tracker(zone_dir="reply")
    talk = udp(tracker, zone=5)
    talk.orig().is_("new", conn=0, zone=5)
    assert zones_of(tracker) == [0, 5]
    in_zone(talk, 7).orig().is_("new", conn=0)
    in_zone(talk, 5).reply().is_("established", conn=0, dir="reply")
    in_zone(talk, 7).reply().is_("new", conn=1, dir="original")


def test_the_original_direction_is_looked_up_first(make_tracker):
    """Two connections know the tuple: one sent it (its zone does not count there), to the other one it is the answer in zone 6."""
    tracker = make_tracker(zone_dir="reply")
    scene = Scene(tracker)
    talk = udp(tracker, scene=scene, zone=5, port=(1000, 2000))
    talk.orig().is_("new", conn=0)
    in_zone(talk, 6).reply().is_("new", conn=1)
    in_zone(talk, 6).orig().is_("new", conn=0, dir="original")


def test_a_tuple_is_taken_whoever_has_it(make_tracker):
    """Where Linux would let a second connection hide the first one's answers, the packet is dropped."""
    tracker = make_tracker(zone_dir="reply")
    scene = Scene(tracker)
    udp(tracker, scene=scene, zone=0).orig().is_("new", conn=0)
    udp(tracker, scene=scene, zone=5).reply().is_("not-seen", reason="clash", verdict="drop")
    udp(tracker, scene=scene, zone=0).reply().is_("established", conn=0, dir="reply")


# --- of one direction, whichever -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zone_dir", ["both", "original", "reply"])
def test_one_zone_for_all_packets_is_as_good_as_none(make_tracker, zone_dir):
    tracker = make_tracker(zone_dir=zone_dir)
    conn = established(tracker, zone=9)
    conn.orig("A").is_("established", zone=9, dir="original")
    conn.reply("FA").is_("established", zone=9, dir="reply", l4state="FIN_WAIT")
    assert tracker.zone_counts() == {9: 1}


@pytest.mark.parametrize(
    "zone_dir, zone, found", [("both", 5, True), ("both", 0, False), ("original", 0, True), ("reply", 5, True), ("reply", 0, False)]
)
def test_errors_about_a_question_are_looked_up_alike(make_tracker, zone_dir, zone, found):
    """An error about what the client sent travels the way the answers do."""
    tracker = make_tracker(zone_dir=zone_dir)
    talk = udp(tracker, zone=5)
    talk.orig()
    error = craft.icmp_error("10.0.0.9", CLIENT, 3, 1, talk.frame(Dir.ORIG))
    seen = talk.scene.send(error, zone=zone)
    if found:
        seen.is_("related", conn=0, dir="reply", zone=zone)
    else:
        seen.is_("invalid", reason="icmp_no_conn")


@pytest.mark.parametrize("zone_dir", ["original", "reply"])
def test_expectations_go_by_the_packets_zone(make_tracker, zone_dir):
    tracker = make_tracker(zone_dir=zone_dir)
    talk = udp(tracker, zone=5)
    talk.orig()
    tracker.expect(0, CLIENT, SERVER, craft.TCP, 20, zone=5)
    conversation(tracker, scene=talk.scene, zone=6, port=(4, 20)).orig("S").is_("new", lacks={"expected"})
    conversation(tracker, scene=talk.scene, zone=5, port=(5, 20)).orig("S").is_("related", has={"expected"})


@pytest.mark.parametrize("zone_dir", ["original", "reply"])
def test_a_tuple_is_found_as_a_packet_shows_it_and_as_a_record_has_it(make_tracker, zone_dir):
    tracker = make_tracker(zone_dir=zone_dir)
    udp(tracker, zone=5).orig()
    for key in tracker.conn(0)["flow"]["key"][0]:
        assert tracker.find(key.tobytes())["flow"]["id"][0, 0] == 0
        shown = key.copy().reshape(1).view(KEY_DTYPE)
        shown["zone"] = 5
        assert tracker.find(shown.tobytes())["flow"]["id"][0, 0] == 0


def test_a_timeout_of_0_does_not_hide_the_other_lookup(make_tracker):
    """What has expired within this tick is no connection, in either lookup."""
    tracker = make_tracker(zone_dir="reply", timeouts={"udp_timeout": 0})
    talk = udp(tracker, zone=5)
    talk.orig().is_("new", conn=0)
    talk.orig().is_("new", conn=1)
    talk.reply().is_("new", conn=2)


def test_other_directions_are_refused(make_tracker):
    with pytest.raises(ConfigError, match="zone_dir = 'forward': expected both, original, reply"):
        make_tracker(zone_dir="forward")


def test_overlapping_networks_behind_one_address(make_tracker):
    """The same client twice, in two zones: translated to one public address they get own ports, and answers find their way."""
    public = ip_address("192.0.2.1")
    tracker = make_tracker(zone_dir="original", nat=(NatRule("snat", Range(public, public)),))
    scene = Scene(tracker)
    for zone in (1, 2):
        conversation(tracker, scene=scene, zone=zone).orig("S").is_("new", conn=zone - 1, has={"src-nat"})
    answers = tracker.conns()["flow"]["key"][:, Dir.REPLY]
    assert len(set(answers["dport"].tolist())) == 2 and answers["zone"].tolist() == [0, 0]
    for conn, port in enumerate(answers["dport"].tolist()):
        scene.send(craft.tcp(SERVER, str(public), 80, port, "SA", seq=500, ack=101)).is_("established", conn=conn, dir="reply", zone=0)
    assert tracker.zone_counts() == {1: 1, 2: 1}


def test_a_place_that_is_another_connections_by_now_is_not_believed_to_have_answers():
    """Who talks to himself has one tuple both ways. His second connection takes the place of the first within a batch that was looked up before."""
    twins = Twins(Config(zone_dir="reply", max=16))
    twins.packet(craft.tcp(CLIENT, CLIENT, 7, 7, "S"))
    twins.flush_batch()
    twins.zone = 1
    twins.wait(30 * 86400)
    for flags in ("FA", "A", "FA", "A"):
        twins.packet(craft.tcp(CLIENT, CLIENT, 7, 7, flags, seq=1, ack=1))
    decisions = twins.flush_batch()
    assert decisions["conn"].tolist() == [-1, 1, 1, 1] and decisions["dir"][1:].tolist() == [Dir.ORIG] * 3


PLAYS = {"tcp": TcpPlay, "sctp": SctpPlay, "datagrams": DatagramPlay, "crowd": CrowdPlay}


@given(config(zone_dir=st.sampled_from(["original", "reply"]), max=st.sampled_from([16, 1000])), series)
@EXAMPLES
def test_engine_and_model_agree(config, data):
    plays = tuple(play() for play in PLAYS.values())
    run(config, data, lambda twins, step: pick(plays, step[1] >> 4)(twins, step))
