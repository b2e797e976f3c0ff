"""Whole pipelines with connection tracking: rules as people write them, conversations through them, and the bytes that leave.

Not here: fragments (test_reference_fragments), what a single `ct` action does to connections (pcap_tests/test_ctcore/test_act), rules without
tracking (test_interpret).
"""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from ctcore.config import Config
from ctcore.errors import ConfigError
from ctcore.nat_rules import NatRule, Range
from datapath import craft
from datapath.pipeline.ct_settings import settings_of
from datapath.pipeline.interpret import Interpreter
from datapath.pipeline.reference import RuleTracker
from datapath.pipeline.rules import Hook
from pcap_tests.conftest import TRACKERS
from pcap_tests.scene import START
from pcap_tests.test_datapath.test_pipeline.laboratory import (
    CLASSIC,
    CLIENT,
    CLIENT6,
    INSIDE,
    PUBLIC,
    SERVER,
    SERVER6,
    SNAT,
    left,
    row,
    ruleset_of,
    udp,
)

# --- the classic pipeline ----------------------------------------------------------------------------------------------------------------


def test_a_connection_from_inside(lab):
    net = lab(CLASSIC)
    handshake = ("client", "S"), ("server", "SA"), ("client", "A"), ("server", "A"), ("client", "FA"), ("server", "FA"), ("client", "A")
    assert set(net.tcp(*handshake)) == {"redirect"} and net.conns == 1


def test_nobody_comes_in_from_outside(lab):
    net = lab(CLASSIC)
    assert net.tcp(("server", "S"), ("server", "SA")) == ["drop", "drop"]
    assert net.verdict(udp(SERVER, CLIENT, 53, 40000), "out0") == "drop" and net.conns == 0


def test_an_answer_and_an_error_come_in(lab):
    net = lab(CLASSIC)
    asked = udp(CLIENT, SERVER, 40000, 53)
    assert net.through(asked) == asked
    assert net.verdict(craft.icmp_error(SERVER, CLIENT, 3, 3, asked), "out0") == "redirect"
    assert net.verdict(udp(SERVER, CLIENT, 53, 40000), "out0") == "redirect"
    assert net.verdict(craft.icmp_error(SERVER, CLIENT, 3, 3, udp(CLIENT, SERVER, 40000, 54)), "out0") == "drop"


def test_what_is_invalid_matches_neither(lab):
    net = lab(CLASSIC)
    walk = net.send(udp(CLIENT, SERVER, 40000, 53, l4_checksum=1))
    assert (walk.verdict, walk.tracked.state, net.conns) == ("drop", 0x18, 0)


def test_bits_of_a_conversation(lab):
    """trk is 8; new 1, est 2, rel 4, inv 16, rpl 32 (pkt_cls.h)."""
    rules = "".join(f"tc filter add dev {device} ingress prio 1 protocol all flower action ct commit zone 7 mark 5\n" for device in ("in0", "out0"))
    net = lab(rules)
    asked, answer = udp(CLIENT, SERVER, 40000, 53), udp(SERVER, CLIENT, 53, 40000)
    error = craft.icmp_error(SERVER, CLIENT, 3, 3, asked)
    seen = [net.send(frame).tracked for frame in (asked, asked, error, answer, asked, craft.icmp(CLIENT6, SERVER6, 135, payload=bytes(20), ttl=255))]
    assert [each.state for each in seen] == [9, 9, 8 | 4 | 32, 8 | 2 | 32, 8 | 2, 8 | 16]
    assert {(each.zone, each.mark) for each in seen[:-1]} == {(7, 5)} and (seen[-1].zone, seen[-1].mark) == (7, 0)


def test_labels_are_matched(lab):
    rules = """
tc filter add dev in0 ingress chain 0 prio 1 protocol ip flower action ct commit label 01000000000000000000000000000080 pipe action goto chain 1
tc filter add dev in0 ingress chain 1 prio 1 protocol ip flower ct_label 00000000000000000000000000000080/00000000000000000000000000000080 action drop
"""
    walk = lab(rules).send(udp(CLIENT, SERVER, 40000, 53))
    assert (walk.verdict, walk.tracked.label) == ("drop", 1 | 1 << 127)


def test_without_a_commit_everything_stays_new(lab):
    net = lab("tc filter add dev in0 ingress prio 1 protocol ip flower action ct")
    assert [net.send(udp(CLIENT, SERVER, 40000, 53)).tracked.state for _ in range(3)] == [9, 9, 9] and net.conns == 0


def test_clear_makes_untracked_again(lab):
    rules = """
tc filter add dev in0 ingress chain 0 prio 1 protocol ip flower action ct commit mark 3 pipe action ct clear pipe action goto chain 1
tc filter add dev in0 ingress chain 1 prio 1 protocol ip flower ct_state -trk action drop
"""
    net = lab(rules)
    walk = net.send(udp(CLIENT, SERVER, 40000, 53))
    assert (walk.verdict, walk.tracked) == ("drop", walk.tracked._replace(state=0, zone=0, mark=0, label=0)) and net.conns == 1


def test_a_loop_through_ct_ends(lab):
    net = lab("tc filter add dev in0 ingress prio 1 protocol ip flower action ct reclassify")
    assert (net.verdict(udp(CLIENT, SERVER, 40000, 53)), net.conns) == ("drop", 0)


@pytest.mark.parametrize(
    "frame",
    [
        craft.eth(bytes(46), 0x0806),
        craft.eth(craft.pppoe(craft.ipv4(CLIENT, SERVER, 17, bytes(8))), 0x8864),
        craft.eth(craft.mpls(craft.ipv4(CLIENT, SERVER, 17, bytes(8)), 16), 0x8847),
        craft.eth(craft.ipv4(CLIENT, SERVER, 17, bytes(8)), 0x86DD),
        craft.eth(craft.ipv4(CLIENT, SERVER, 17, bytes(8), ihl=3)),
        b"\x02" * 12 + b"\x08",
        b"",
    ],
    ids=("arp", "pppoe", "mpls", "mislabelled", "header", "short", "empty"),
)
def test_what_is_not_ip_is_dropped_by_ct(lab, frame):
    net = lab("tc filter add dev in0 ingress prio 1 protocol all flower action ct")
    walk = net.send(frame)
    assert walk.verdict == "drop" and walk.reason in ("not_ip", "ip_header", "frame_short", "ip_version")


def test_tags_are_no_hindrance(lab):
    net = lab("tc filter add dev in0 ingress prio 1 protocol all flower action ct commit pipe action mirred egress redirect dev out0")
    tagged = craft.eth(udp(CLIENT, SERVER, 40000, 53)[14:], vlan=(5,))
    assert net.through(tagged) == tagged and net.conns == 1


def test_what_lies_behind_the_packet_goes(lab):
    net = lab(CLASSIC)
    asked = udp(CLIENT, SERVER, 40000, 53, b"?")
    assert len(asked) < 60 and net.through(asked.ljust(60, b"\x55")) == asked
    asked = udp(CLIENT6, SERVER6, 40000, 53, b"?")
    net = lab("tc filter add dev in0 ingress prio 1 protocol ipv6 flower action ct")
    assert left(net.send(asked + b"trailer")) == [asked]


# --- zones -------------------------------------------------------------------------------------------------------------------------------

ZONES = r"""
tc filter add dev in0 ingress chain 0 prio 1 protocol ip flower ct_state -trk action ct zone 1 pipe action goto chain 1
tc filter add dev in0 ingress chain 1 prio 1 protocol ip flower ct_state +trk+new ct_zone 1 \
    action ct commit zone 1 pipe action ct zone 2 pipe action goto chain 2
tc filter add dev in0 ingress chain 1 prio 2 protocol ip flower ct_state +trk+est ct_zone 1 action ct zone 2 pipe action goto chain 2
tc filter add dev in0 ingress chain 2 prio 1 protocol ip flower ct_state +trk+new ct_zone 2 \
    action ct commit zone 2 pipe action mirred egress redirect dev out0
tc filter add dev in0 ingress chain 2 prio 2 protocol ip flower ct_state +trk+est ct_zone 2 action mirred egress redirect dev out0
tc filter add dev out0 ingress chain 0 prio 1 protocol ip flower action ct zone 2 pipe action goto chain 1
tc filter add dev out0 ingress chain 1 prio 1 protocol ip flower ct_state +trk+est+rpl ct_zone 2 action ct zone 1 pipe action goto chain 2
tc filter add dev out0 ingress chain 2 prio 1 protocol ip flower ct_state +trk+est+rpl ct_zone 1 action mirred egress redirect dev in0
tc filter add dev out0 ingress chain 2 prio 2 protocol all flower action drop
"""


def test_a_zone_on_each_side(lab):
    net = lab(ZONES)
    asked, answer = udp(CLIENT, SERVER, 40000, 53), udp(SERVER, CLIENT, 53, 40000)
    assert net.verdict(answer, "out0") == "pass", "no rule for what is new there"
    for _ in range(2):
        assert net.through(asked) == asked
    assert net.through(answer, "out0") == answer and net.through(asked) == asked
    assert net.tracker.zone_counts() == {1: 1, 2: 1}


# --- translation -------------------------------------------------------------------------------------------------------------------------

DNAT = r"""
tc filter add dev out0 ingress chain 0 prio 1 protocol ip flower action ct nat pipe action goto chain 1
tc filter add dev out0 ingress chain 1 prio 1 protocol ip flower ct_state +trk+new dst_ip 192.0.2.1 ip_proto tcp dst_port 80 \
    action ct commit nat dst addr 10.0.0.7 port 8080 pipe action goto chain 2
tc filter add dev out0 ingress chain 1 prio 2 protocol ip flower ct_state +trk+est action goto chain 2
tc filter add dev out0 ingress chain 1 prio 3 protocol all flower action drop
tc filter add dev out0 ingress chain 2 prio 1 protocol ip flower dst_ip 10.0.0.7 ip_proto tcp dst_port 8080 action mirred egress redirect dev in0
tc filter add dev out0 ingress chain 2 prio 2 protocol all flower action drop
tc filter add dev in0 ingress chain 0 prio 1 protocol ip flower action ct nat pipe action goto chain 1
tc filter add dev in0 ingress chain 1 prio 1 protocol ip flower ct_state +trk+est+rpl src_ip 192.0.2.1 action mirred egress redirect dev out0
tc filter add dev in0 ingress chain 1 prio 2 protocol all flower action drop
"""


def test_a_source_is_translated_there_and_back_to_the_byte(lab):
    net = lab(SNAT)
    assert net.through(udp(CLIENT, SERVER, 40000, 53)) == udp(PUBLIC, SERVER, 40000, 53)
    assert net.through(udp(SERVER, PUBLIC, 53, 40000, b"answer"), "out0") == udp(SERVER, CLIENT, 53, 40000, b"answer")
    assert net.through(udp(CLIENT, SERVER, 40000, 53)) == udp(PUBLIC, SERVER, 40000, 53)
    complaint = craft.icmp_error(SERVER, PUBLIC, 3, 3, udp(PUBLIC, SERVER, 40000, 53))
    assert net.through(complaint, "out0") == craft.icmp_error(SERVER, CLIENT, 3, 3, udp(CLIENT, SERVER, 40000, 53))
    assert net.verdict(udp(SERVER, PUBLIC, 53, 40001), "out0") == "drop"


def test_two_of_one_port_get_two(lab):
    net = lab(SNAT)
    first, second = (net.through(udp(client, SERVER, 40000, 53)) for client in (CLIENT, "10.0.0.2"))
    assert first == udp(PUBLIC, SERVER, 40000, 53)
    sport = int(row(second)["key"]["sport"])
    assert sport != 40000 and second == udp(PUBLIC, SERVER, sport, 53)
    assert net.through(udp(SERVER, PUBLIC, 53, sport, b"answer"), "out0") == udp(SERVER, "10.0.0.2", 53, 40000, b"answer")


def test_later_rules_see_the_translated_destination(lab):
    net = lab(DNAT)
    assert net.through(craft.tcp(SERVER, PUBLIC, 40000, 80, "S", seq=1), "out0") == craft.tcp(SERVER, INSIDE, 40000, 8080, "S", seq=1)
    answer = craft.tcp(INSIDE, SERVER, 8080, 40000, "SA", seq=7, ack=2)
    assert net.through(answer) == craft.tcp(PUBLIC, SERVER, 80, 40000, "SA", seq=7, ack=2)
    third = net.through(craft.tcp(SERVER, PUBLIC, 40000, 80, "A", seq=2, ack=8), "out0")
    assert third == craft.tcp(SERVER, INSIDE, 40000, 8080, "A", seq=2, ack=8)


def test_ipv6(lab):
    net = lab(SNAT.replace("protocol ip ", "protocol ipv6 ").replace("192.0.2.1", "2001:db8:9::1"))
    assert net.through(udp(CLIENT6, SERVER6, 40000, 53)) == udp("2001:db8:9::1", SERVER6, 40000, 53)
    assert net.through(udp(SERVER6, "2001:db8:9::1", 53, 40000), "out0") == udp(SERVER6, CLIENT6, 53, 40000)


def test_an_exhausted_range_drops(lab):
    net = lab(SNAT.replace("addr 192.0.2.1", "addr 192.0.2.1 port 7"))
    assert net.through(udp(CLIENT, SERVER, 1, 53)) == udp(PUBLIC, SERVER, 7, 53)
    walk = net.send(udp(CLIENT, SERVER, 2, 53))
    assert (walk.verdict, walk.reason) == ("drop", "nat_exhausted")
    assert [(pool.in_use, pool.exhausted) for pool in net.tracker.nat_pools()] == [(1, 1)]


def test_ranges_are_collected_once():
    rules = "".join(
        f"tc filter add dev in0 ingress prio {i} protocol ip flower ip_proto udp dst_port {i} action ct commit nat {nat}\n"
        for i, nat in enumerate(("src addr 192.0.2.1", "dst addr 192.0.2.1", "src addr 192.0.2.1", "src addr 192.0.2.1 port 7-9"), 1)
    )
    ours = NatRule("snat", Range(ip_address(SERVER), ip_address(SERVER)))
    config = settings_of(ruleset_of(rules), Config(nat=(ours,)))
    assert [(rule.kind, rule.range.ports) for rule in config.nat] == [("snat", None), ("snat", None), ("dnat", None), ("snat", (7, 9))]
    assert (config.nat[0], config.nat_actions, config.helper_actions) == (ours, True, False)
    plain = settings_of(ruleset_of("tc filter add dev in0 ingress prio 1 protocol ip flower action ct commit helper ipv4-tcp-ftp\n"), Config())
    assert (plain.nat, plain.nat_actions, plain.helper_actions) == ((), False, True)


@pytest.mark.parametrize("kind", TRACKERS)
def test_a_tracker_of_other_settings_is_refused(kind):
    ruleset = ruleset_of(SNAT)
    tracker = TRACKERS[kind](Config(nat_actions=True))
    interpreter = Interpreter(ruleset, RuleTracker(tracker))
    with pytest.raises(ConfigError, match="settings_of"):
        interpreter.run(udp(CLIENT, SERVER, 40000, 53), START, Hook("in0"))


# --- helpers -----------------------------------------------------------------------------------------------------------------------------

FTP = r"""
tc filter add dev in0 ingress chain 0 prio 1 protocol ip flower ct_state -trk action ct nat pipe action goto chain 1
tc filter add dev in0 ingress chain 1 prio 1 protocol ip flower ct_state +trk+new ip_proto tcp dst_port 21 \
    action ct commit nat src addr 192.0.2.1 helper ipv4-tcp-ftp pipe action mirred egress redirect dev out0
tc filter add dev in0 ingress chain 1 prio 2 protocol ip flower ct_state +trk+est action mirred egress redirect dev out0
tc filter add dev out0 ingress chain 0 prio 1 protocol ip flower ct_state -trk action ct nat pipe action goto chain 1
tc filter add dev out0 ingress chain 1 prio 1 protocol ip flower ct_state +trk+est action mirred egress redirect dev in0
tc filter add dev out0 ingress chain 1 prio 2 protocol ip flower ct_state +trk+rel \
    action ct commit nat src addr 192.0.2.1 pipe action mirred egress redirect dev in0
tc filter add dev out0 ingress chain 1 prio 3 protocol all flower action drop
"""
PORT, LONGER = b"PORT 10,0,0,1,7,208\r\n", b"PORT 192,0,2,1,7,208\r\n"


def test_ftp_through_a_translator(lab):
    """What is announced inside is known outside, a byte longer; numbers behind it follow; the server's connection for data comes in."""
    net = lab(FTP)
    control = CLIENT, SERVER, 40000, 21
    outside, back = (PUBLIC, SERVER, 40000, 21), (SERVER, PUBLIC, 21, 40000)
    net.through(craft.tcp(*control, "S", seq=93))
    net.through(craft.tcp(*back, "SA", seq=499, ack=94), "out0")
    net.through(craft.tcp(*control, "PA", seq=94, ack=500, payload=b"NOOP\r\n"))
    assert net.verdict(craft.tcp(SERVER, PUBLIC, 20, 2000, "S", seq=1), "out0") == "drop", "not announced yet"
    assert net.through(craft.tcp(*control, "PA", seq=100, ack=500, payload=PORT)) == craft.tcp(*outside, "PA", seq=100, ack=500, payload=LONGER)
    answer = net.through(craft.tcp(*back, "PA", seq=500, ack=100 + len(LONGER), payload=b"200 ok\r\n"), "out0")
    assert answer == craft.tcp(SERVER, CLIENT, 21, 40000, "PA", seq=500, ack=100 + len(PORT), payload=b"200 ok\r\n")
    after = net.through(craft.tcp(*control, "A", seq=100 + len(PORT), ack=508))
    assert after == craft.tcp(*outside, "A", seq=100 + len(LONGER), ack=508)
    for _ in range(2):
        data = net.through(craft.tcp(SERVER, PUBLIC, 20, 2000, "S", seq=1), "out0")
        assert data == craft.tcp(SERVER, CLIENT, 20, 2000, "S", seq=1)
    assert net.through(craft.tcp(CLIENT, SERVER, 2000, 20, "SA", seq=7, ack=2)) == craft.tcp(PUBLIC, SERVER, 2000, 20, "SA", seq=7, ack=2)
    assert net.conns == 2


def test_a_helper_is_for_its_own_protocol(lab):
    """A rule without ip_proto gives it to TCP only; of other connections none is kept from its way."""
    net = lab("tc filter add dev in0 ingress prio 1 protocol ip flower action ct commit helper ipv4-tcp-ftp")
    assert [net.verdict(frame) for frame in (craft.tcp(CLIENT, SERVER, 1, 21, "S"), udp(CLIENT, SERVER, 1, 21))] == ["pass", "pass"]
    assert net.tracker.conns()["helper"].tolist() == [1, 0]
