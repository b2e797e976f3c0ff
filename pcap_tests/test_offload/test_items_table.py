"""The contract's items of objects, admission and look-up (A1, A2, A5), of a flow table with a mirror behind it; in plain Python: test_contract."""

from __future__ import annotations

from typing import Any

import pytest

from ctcore.filter import Filter
from ctcore.types import Status, TcpFlag
from datapath import craft
from pcap_tests.test_datapath.tabled import ANY, COMMITS, DAY, FTP, IN, OUT, SECOND, Tcp, udp
from pcap_tests.test_datapath.test_pipeline.laboratory import CLIENT, CLIENT6, PUBLIC, SERVER, SERVER6, SNAT, ruleset_of
from pcap_tests.test_offload.fake_nic import FakeNic
from pcap_tests.test_offload.mirrored import Rig

TRACKS = "tc filter add dev {dev} ingress prio {zone} protocol ip flower ip_proto {proto} action ct commit zone {zone} pipe action pass\n"
ZONED = [TRACKS.format(dev=dev, proto=proto, zone=zone) for dev in ("in0", "out0") for proto, zone in (("udp", 1), ("tcp", 2))]
PPP = 0x880B  # the only protocol that conntrack takes GRE of version 1 with
MARKED = COMMITS.replace("ct commit", "ct commit zone 7 mark 0xdeadbeef label 123456789abcdef00fedcba987654321")


def address(key: Any, end: str) -> str:
    return ".".join(map(str, key[end][:4]))


def gre(rig: Rig, side: int = IN, **fields: Any) -> Any:
    ends = (CLIENT, SERVER) if side == IN else (SERVER, CLIENT)
    return rig.send(craft.gre(*ends, payload=b"12345678", **fields), side)


# --- objects (A1) ----------------------------------------------------------------------------------------------------------------------


def test_a1_1_rules_carry_a_connections_tuples_zone_mark_and_labels() -> None:
    rig = Rig(MARKED)
    Tcp(rig).opened()
    conn, rules = rig.conn(), [rule for _, rule in sorted(rig.nic.rules.items())]
    for rule, flow in zip(rules, conn["flow"], strict=True):
        assert [rule["match"][name].tolist() for name in ("src", "dst", "sport", "dport")] == [
            flow["key"][name].tolist() for name in ("src", "dst", "sport", "dport")
        ]
        assert (int(rule["mark"]), int(rule["match"]["zone"])) == (0xDEADBEEF, 7)
        assert rule["label"].tobytes() == bytes.fromhex("123456789abcdef00fedcba987654321")


def test_a1_1_the_reply_tuple_answers_what_leaves() -> None:
    rig = Rig(SNAT)
    rig.send(craft.udp(CLIENT, SERVER, 40000, 53))
    orig, reply = (flow["key"] for flow in rig.conn()["flow"])
    assert (address(orig, "src"), address(orig, "dst"), int(orig["sport"])) == (CLIENT, SERVER, 40000)
    assert (address(reply, "src"), address(reply, "dst"), int(reply["dport"])) == (SERVER, PUBLIC, 40000)


def test_a1_3_each_zone_has_its_flows_and_equal_tuples_of_two_are_two() -> None:
    rig = Rig("".join(TRACKS.format(dev=dev, proto="udp", zone=zone) for dev, zone in (("in0", 1), ("out0", 3))))
    udp(rig)
    rig.send(craft.udp(CLIENT, SERVER, 40000, 53), OUT)
    assert sorted(int(rule["match"]["zone"]) for rule in rig.nic.rules.values()) == [1, 3]
    assert len({rule["match"]["src"].tobytes() for rule in rig.nic.rules.values()}) == 1


def test_a1_3_the_flows_of_a_zone_live_as_long_as_one_rule_tracks_in_it() -> None:
    """Two devices track in either zone. One of them is enough; with the last one its flows leave, and those of the other zone stay."""
    rig = Rig("".join(ZONED))
    udp(rig)
    Tcp(rig).opened()
    assert len(rig.nic.rules) == 3
    for left, rules in ((ZONED[:3], 3), (ZONED[:1], 1)):
        rig.pipeline.load(ruleset_of("".join(left)))
        rig.pump()
        assert len(rig.nic.rules) == rules
    assert {int(rule["match"]["proto"]) for rule in rig.nic.rules.values()} == {17}


def test_a1_4_a_flow_is_pending_in_hardware_dying_and_dead() -> None:
    rig = Rig(nic=FakeNic(latency=SECOND // 2))
    talk = Tcp(rig).opened()
    told = lambda: (rig.mirror.why(0) or {"job": "gone"})["job"]  # noqa: E731
    assert (told(), rig.in_hardware()) == ("add", False)
    rig.wait(0.6)
    assert (told(), rig.in_hardware(), rig.directions()) == (None, True, [0, 1])
    talk.say(IN, "FA")
    rig.wait(1)
    assert told() == "del"
    rig.wait(0.6)
    assert (told(), rig.in_hardware(), rig.flows.count) == ("gone", False, 0)


def test_a1_5_no_interface_is_in_the_key() -> None:
    """The client's packet is served wherever it comes in."""
    rig = Rig(COMMITS)
    talk = Tcp(rig).opened()
    assert rig.send(craft.tcp(CLIENT, SERVER, 40000, 80, "A", seq=talk.next[IN], ack=talk.next[OUT]), OUT).offload == "software"


def test_a1_5_gre_has_ports_0() -> None:
    rig = Rig(COMMITS)
    for side in (IN, OUT, IN):
        gre(rig, side)
    assert len(rig.nic.rules) == 2
    assert all((int(rule["match"]["sport"]), int(rule["match"]["dport"])) == (0, 0) for rule in rig.nic.rules.values())


@pytest.mark.parametrize("settings", [{}, {"flowtable_tcp_timeout": 10, "flowtable_udp_timeout": 10}])
@pytest.mark.parametrize("kind", ["tcp", "udp", "gre"])
def test_a1_6_idle_is_thirty_seconds_or_what_is_set(kind: str, settings: dict[str, int]) -> None:
    rig, idle = Rig(COMMITS, **settings), 10 if settings else 30
    if kind == "tcp":
        Tcp(rig).opened()
    else:
        for side in (IN, OUT, IN):
            udp(rig, side) if kind == "udp" else gre(rig, side)
    rig.wait(idle - 1)
    assert rig.nic.rules
    rig.wait(3)
    assert not rig.nic.rules and rig.flows.counters()["teardown_idle"] == 1


# --- admission (A2) --------------------------------------------------------------------------------------------------------------------


def test_a2_7_only_an_established_tcp_connection_gets_rules() -> None:
    """Of both directions; and none any more from its first FIN on."""
    rig = Rig()
    talk = Tcp(rig)
    assert [(talk.say(side, flags).offload, len(rig.nic.rules)) for side, flags in ((IN, "S"), (OUT, "SA"))] == [("not_tcp_state", 0)] * 2
    assert (talk.say(IN, "A").offload, rig.directions()) == ("software", [0, 1])
    talk.say(OUT, "FA")
    rig.wait(1)
    assert [(talk.say(side, flags).offload, len(rig.nic.rules)) for side, flags in ((IN, "A"), (IN, "FA"), (OUT, "A"))] == [("not_tcp_state", 0)] * 3


def test_a2_9_what_is_picked_up_gets_rules_with_the_packet_that_makes_it_assured() -> None:
    rig = Rig(COMMITS)
    talk = Tcp(rig)
    assert [(talk.say(side).offload, len(rig.nic.rules)) for side in (IN, OUT, IN)] == [("not_tcp_state", 0), ("not_assured", 0), ("software", 2)]


def test_a2_10_a_datagram_that_nobody_commits_gets_no_rules() -> None:
    rig = Rig("tc filter add dev in0 ingress protocol ip flower action ct pipe action pass\n")
    assert [udp(rig).offload for _ in range(2)] == ["not_unconfirmed"] * 2
    assert not rig.nic.log


def test_a2_10_before_it_is_assured_only_one_direction_has_a_rule() -> None:
    rig = Rig()
    udp(rig)
    for _ in range(3):
        udp(rig, OUT)
    assert rig.directions() == [0]


@pytest.mark.parametrize(("fields", "offload", "rules"), [({}, "software", 2), ({"version": 1, "proto": PPP, "call": 3}, "not_gre_key", 0)])
def test_a2_12_gre_gets_rules_without_a_key(fields: dict[str, int], offload: str, rules: int) -> None:
    rig = Rig(COMMITS)
    said = [gre(rig, side, **fields) for side in (IN, OUT) * 3]
    assert (said[-1].offload, len(rig.nic.rules)) == (offload, rules)


def test_a2_12_gre_that_is_translated_gets_none() -> None:
    rig = Rig(SNAT)
    gre(rig)
    assert [rig.send(craft.gre(SERVER, PUBLIC, payload=b"12345678"), OUT).offload for _ in range(2)] == ["not_gre_nat"] * 2
    assert not rig.nic.log


@pytest.mark.parametrize("kind", ["icmp", "sctp", "udplite"])
def test_a2_13_other_protocols_never_get_rules(kind: str) -> None:
    rig, said = Rig(COMMITS), []
    for side in (IN, OUT) * 3:
        ends = (CLIENT, SERVER, 40000, 7) if side == IN else (SERVER, CLIENT, 7, 40000)
        made = {
            "icmp": lambda ends=ends, side=side: craft.icmp(*ends[:2], 8 * (1 - side), ident=7, sequence=1),
            "sctp": lambda ends=ends: craft.sctp(*ends, 0, craft.sctp_init(7)),
            "udplite": lambda ends=ends: craft.udplite(*ends, b"datagram", sum_proto=craft.UDP),
        }
        said.append(rig.send(made[kind](), side))
        rig.wait(1)
    assert ({each.offload for each in said}, [each.state for each in said]) == ({"not_proto"}, ["new"] + ["established"] * 5)
    assert not rig.nic.log


def test_a2_14_what_a_helper_reads_gets_no_rules() -> None:
    rig = Rig(FTP)
    talk = Tcp(rig, server=21).opened()
    assert talk.say(OUT, "PA", b"220 hello\r\n").offload == "not_helper"
    assert not rig.nic.log


def test_a2_15_who_is_in_is_not_taken_in_again_and_who_failed_may_be() -> None:
    rig = Rig()
    talk = Tcp(rig).opened()
    for _ in range(3):
        talk.say(OUT, "PA", b"hello", ttl=1)  # not served, so that its `ct` ends like the first one's
    assert (rig.flows.counters()["admitted"], rig.mirror.counters()["commands_add"]) == (1, 2)
    rig.flows.flush()
    rig.wait(2)
    talk.say(OUT, "PA", b"hello")
    assert (rig.flows.counters()["admitted"], len(rig.nic.rules)) == (2, 2)


def test_a2_16_a_connection_that_is_ending_gets_no_rules() -> None:
    """It is deleted before anybody has come to its job."""
    rig = Rig()
    super(Rig, rig).send(craft.udp(CLIENT, SERVER, 40000, 53))
    rig.tracker.delete(Filter(proto=17))
    rig.pump()
    rig.wait(2)
    assert (rig.nic.log, rig.flows.count, rig.flows.counters()["teardown_dying"]) == ([], 0, 1)


def test_a2_17_tcp_stays_liberal_behind_its_teardown() -> None:
    rig = Rig()
    Tcp(rig).opened()
    rig.wait(35)
    assert (rig.flows.count, [bool(flags & TcpFlag.TF_BE_LIBERAL) for flags in rig.conn()["tcp"]["flags"].tolist()]) == (0, [True, True])


def test_a2_18_a_tuple_is_busy_until_its_old_rules_are_gone() -> None:
    """The next connection of the same tuple lives in software, and is tried again with each of its packets."""
    rig = Rig(nic=FakeNic(latency=3 * SECOND))
    udp(rig)
    rig.wait(4)
    rig.tracker.delete(Filter(proto=17))
    assert udp(rig).offload == "not_tuple_busy"
    rig.wait(2)
    assert (udp(rig).offload, bool(rig.conn(1)["status"] & Status.OFFLOAD)) == ("not_tuple_busy", False)
    rig.wait(6)
    assert udp(rig).offload == "software"
    rig.wait(4)
    assert {int(rule["conn"]) for rule in rig.nic.rules.values()} == {1}


def test_a2_19_who_is_taken_in_has_a_day_and_asks_for_its_rules() -> None:
    rig = Rig()
    udp(rig)
    assert (rig.left(), rig.flows.counters()["hw_asks"], rig.directions()) == (DAY, 1, [0])


# --- packets (A5) ----------------------------------------------------------------------------------------------------------------------

CUT = craft.udp_segment(CLIENT, SERVER, 40000, 53, bytes(40))
ENDS, ENDS6 = (CLIENT, SERVER, 40000, 53), (CLIENT6, SERVER6, 40000, 53)
SKIPPED = {
    "fragment": [craft.frame(CLIENT, SERVER, 17, CUT[:24], frag=0x2000, ident=7), craft.frame(CLIENT, SERVER, 17, CUT[24:], frag=3, ident=7)],
    "ip_options": [craft.frame(CLIENT, SERVER, 17, CUT, options=b"\1\1\1\0")],
    "ip_options, IPv6": [craft.udp(*ENDS6, b"datagram", ext=((craft.DESTINATION, craft.options6()),))],
    "ttl": [craft.udp(*ENDS, b"datagram", ttl=1)],
    "ttl, IPv6": [craft.udp(*ENDS6, b"datagram", ttl=1)],
}


@pytest.mark.parametrize("why", SKIPPED)
def test_a5_37_what_the_table_does_not_serve_is_tracked_and_refreshes_nothing(why: str) -> None:
    rig = Rig(ANY)
    ends = ENDS6 if "IPv6" in why else ENDS
    for side, seconds in ((IN, 2.5), (OUT, 0), (OUT, 0)):
        rig.send(craft.udp(*(ends if side == IN else (ends[1], ends[0], ends[3], ends[2])), b"datagram"), side)
        rig.wait(seconds)
    asked, served = rig.flows.counters()["hw_asks"], rig.flows.counters()["served"]
    rig.now += 2 * SECOND
    said = [super(Rig, rig).send(frame) for frame in SKIPPED[why]][-1]
    assert (said.offload, said.state) == (f"not_{why.split(',')[0]}", "established")
    assert (rig.flows.counters()["hw_asks"], rig.flows.counters()["served"]) == (asked, served)


def test_a5_37_only_gre_of_version_0_is_served() -> None:
    """A packet of version 1 whose key is 0 has the same tuple, and is tracked as of the same connection."""
    rig = Rig(COMMITS)
    assert [gre(rig, side).offload for side in (IN, OUT, IN)][-1] == "software"
    served = rig.flows.counters()["served"]
    said = gre(rig, version=1, proto=PPP)
    assert (said.state, said.conn, rig.flows.counters()["served"]) == ("established", 0, served)
    gre(rig)
    assert rig.flows.counters()["served"] == served + 1


def test_a5_38_who_is_not_in_the_table_is_missed() -> None:
    """A tuple that nobody has; one that is torn down, while hardware still has its rules; one whose connection was deleted."""
    rig = Rig(nic=FakeNic(latency=2 * SECOND))
    talk = Tcp(rig).opened()
    rig.wait(3)
    served = rig.flows.counters()["served"]
    assert Tcp(rig, port=40001).say(IN, "S").offload == "not_tcp_state"
    talk.say(IN, "FA")
    rig.wait(1)
    assert (talk.say(OUT).offload, len(rig.nic.rules), rig.flows.count) == ("not_tcp_state", 2, 1)
    udp(rig)
    rig.tracker.delete(Filter(proto=17))
    assert (udp(rig).state, rig.flows.counters()["served"]) == ("new", served)


@pytest.mark.parametrize(("flags", "why", "state"), [("FA", "teardown_fin", "FIN_WAIT"), ("RA", "teardown_rst", "CLOSE")])
def test_a5_40_fin_and_rst_tear_down_and_are_tracked(flags: str, why: str, state: str) -> None:
    rig = Rig()
    talk = Tcp(rig).opened()
    said = talk.say(OUT, flags)
    assert (said.offload, said.l4state, "offload" in said.status) == (f"not_{why}", state, False)
    rig.wait(1)
    assert (rig.flows.counters()[why], rig.nic.rules) == (1, {})


def test_a5_42_what_is_not_assured_is_tracked_so_that_it_becomes_so() -> None:
    """Although hardware has its rule: the packet that software gets refreshes it, too."""
    rig = Rig()
    udp(rig)
    udp(rig, OUT)
    assert (rig.in_hardware(), rig.flows.counters()["served"]) == (True, 0)
    rig.wait(2.5)
    said = udp(rig)
    assert (said.offload, "assured" in said.status) == ("not_assured", True)
    assert (udp(rig).offload, rig.flows.counters()["served"]) == ("software", 1)


def test_a5_43_what_is_served_has_its_connection_is_counted_and_translated() -> None:
    rig = Rig(SNAT)
    near, far = (CLIENT, SERVER, 40000, 53), (SERVER, PUBLIC, 53, 40000)
    for frame, side, seconds in ((craft.udp(*near), IN, 2.5), (craft.udp(*far), OUT, 0), (craft.udp(*far), OUT, 0)):
        rig.send(frame, side)
        rig.wait(seconds)
    before, admitted = rig.conn()["flow"]["packets"].tolist(), rig.flows.counters()["admitted"]
    for frame, side, leaves in (
        (craft.udp(*near, b"12345"), IN, craft.udp(PUBLIC, SERVER, 40000, 53, b"12345")),
        (craft.udp(*far, b"12345"), OUT, craft.udp(SERVER, CLIENT, 53, 40000, b"12345")),
    ):
        said = rig.send(frame, side, outputs=True)
        assert (said.offload, said.state, said.conn) == ("software", "established", 0)
        assert [each.frame for each in said.left] == [leaves]
    assert rig.conn()["flow"]["packets"].tolist() == [before[0] + 1, before[1] + 1]
    assert (rig.flows.counters()["admitted"], rig.flows.counters()["served"]) == (admitted, 2)
