"""The language of scenarios: what is read is what was written, and whatever cannot be read is one line that says where and what was expected."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ctcore.config import Config
from ctcore.nat_rules import HelperRule, Match, NatRule, Range
from datapath.scenario.build import build
from datapath.scenario.steps import Expect, Icmp, Ip, Option, Packet, Raw, Scenario, ScenarioError, Sctp, Step, Tcp
from datapath.scenario.text import config_of, format, packet_text, parse
from pcap_tests.test_datapath.made_scenarios import scenarios

OPEN = """\
# client opens

S = 192.0.2.1
set tcp_liberal 1
set timeout tcp_timeout_close 3

# the first packet
syn: +0.000  A:40000 > S:80     S seq 100 mss 1460 wscale 7  => new SYN_SENT 120
     +0.010  S:80    > A:40000  SA seq 500 ack 101           => established SYN_RECV 60 reply  # in time
     +0.500  B > A icmp unreachable code 3 about syn quote 28
"""


ZONES = """\
set zone 5:original
set zone-limit 10
set zone-limit 7=0
set zone-reserve 5=2

+0.000  A:1 > B:2  udp zone 6  => new
"""


RULES = """\
set snat ip_proto tcp src_ip 10.0.0.0/8 => 192.0.2.1:1024-65535,random
set redirect 192.0.2.1:3128
set helper ftp:tcp:21

+0.000  A:40000 > B:80  S  => new !helper out.src=192.0.2.1 reply.dst=192.0.2.1 helper=none
"""


def step(line: str) -> Step:
    return parse(line).steps[0]


def refused(text: str) -> str:
    with pytest.raises(ScenarioError) as error:
        build(parse(text, "my.ct"))
    return str(error.value)


@given(scenarios())
def test_what_is_written_is_read_back(scenario):
    assert parse(format(scenario), scenario.name) == scenario


@given(scenarios())
def test_written_text_is_settled(scenario):
    """Formatting what was read of a formatted text changes nothing."""
    text = format(scenario)
    assert format(parse(text)) == text


def test_zones_and_what_they_may_have():
    read = parse(ZONES)
    assert format(read) == ZONES
    assert (read.zone, read.zone_limit, read.zone_limits, read.zone_reserves) == ((5, "original"), 10, {7: 0}, {5: 2})
    assert read.steps[0].packet.ip.zone == 6


def test_rules_and_what_they_are_expected_to_do():
    read = parse(RULES)
    assert format(read) == RULES
    assert [rule.kind for rule in read.nat] == ["snat", "redirect"]
    assert read.nat[0].match == Match(proto=6, src=ip_network("10.0.0.0/8"))
    assert read.helpers == (HelperRule("ftp", 6, 21),)
    assert read.steps[0].expect.variables == (("out.src", "192.0.2.1"), ("reply.dst", "192.0.2.1"), ("helper", "none"))
    assert read.steps[0].expect.lacks == {"helper"}


def test_rules_of_a_scenario_come_behind_those_that_are_given():
    base = Config(nat=(NatRule("snat", Range(ports=(1, 2))),))
    config = config_of(parse(RULES), base)
    assert config.nat == (*base.nat, *parse(RULES).nat)


def test_a_scenario_is_what_it_says():
    read = parse(OPEN, "open.ct")
    syn, synack, error = read.steps
    assert (read.comments, read.hosts, read.settings) == (("client opens",), {"S": "192.0.2.1"}, {"tcp_liberal": 1})
    assert read.timeouts == {"tcp_timeout_close": 3}
    assert syn.packet == Packet("A", "S", Tcp("S", seq=100, options=(Option("mss", (1460,)), Option("wscale", (7,)))), 40000, 80)
    assert syn.comments == ("the first packet",)
    assert syn.expect == Expect("new", "SYN_SENT", 120.0)
    assert (synack.wait, synack.remark, synack.line) == (0.01, "in time", 9)
    assert error.packet == Packet("B", "A", Icmp(3, 3, about="syn", quote=28))
    assert error.expect is None


def test_the_writer_aligns():
    assert format(parse(OPEN)).splitlines()[7:] == [
        "syn: +0.000  A:40000 > S:80     S seq 100 mss 1460 wscale 7  => new SYN_SENT 120",
        "+0.010       S:80    > A:40000  SA seq 500 ack 101           => established SYN_RECV 60 reply  # in time",
        "+0.500       B       > A        icmp unreachable code 3 about syn quote 28",
    ]


def test_a_comment_above_the_first_step_is_the_steps_and_behind_a_blank_line_the_scenarios():
    read = parse("# all\n\n# step\n+0 raw 45\n# end\n")
    assert (read.comments, read.steps[0].comments, read.ending) == (("all",), ("step",), ("end",))
    assert parse("# nothing but this\n") == Scenario((), "scenario", comments=("nothing but this",))


def test_chunks_take_the_words_behind_them():
    packet = step("+0 A:1 > B:2 sctp tag 7 init itag 99 abort T data len 8 badsum ttl 3").packet
    assert isinstance(packet.l4, Sctp)
    assert [(chunk.type, chunk.tag, chunk.flags, chunk.body) for chunk in packet.l4.chunks] == [(1, 99, 0, 0), (6, None, 1, 0), (0, None, 0, 8)]
    assert (packet.l4.checksum, packet.ip) == ("bad", Ip(ttl=3))


def test_texts_may_be_quoted():
    assert step(r'+0 A:1 > B:21 A data "PORT 1,2\r\n\"\\"').packet.l4.data == b'PORT 1,2\r\n"\\'
    assert packet_text(step("+0 A:1 > B:2 A data 0d0a41").packet) == r'A:1 > B:2 A data "\r\nA"'
    assert step('+0 A:1 > B:2 A data "=> # no comment"').packet.l4.data == b"=> # no comment"


def test_addresses_may_stand_for_themselves():
    packet = step("+0 [2001:db8::9]:5 > 2.2.2.2:6 udp").packet
    assert (packet.src, packet.sport, packet.dst, packet.dport) == ("2001:db8::9", 5, "2.2.2.2", 6)


def test_raw_bytes():
    assert step("+1.5 raw 45000014").packet == Raw(bytes.fromhex("45000014"))


@pytest.mark.parametrize(
    "line, complaint",
    [
        ("+0 A:1 > B:2 X", "my.ct:1:14: 'X': expected TCP flags"),
        ("+0 A:1 > B:2 SS", "my.ct:1:14: 'SS': expected TCP flags"),
        ("+0 A:1 > B:2 S seq", "my.ct:1:19: the line ends here: expected a number from 0 to 4294967295"),
        ("+0 A:1 > B:2 S seq 4294967296", "my.ct:1:20: '4294967296': expected a number from 0 to 4294967295"),
        ("+0 A:1 > B:2 S seq 1 seq 2", "my.ct:1:22: 'seq': expected seq to be given once"),
        ("+0 A:1 > B:2 S itag 1", "my.ct:1:16: 'itag': expected one of seq ack win"),
        ("+0 A:1 > D:2 S", "my.ct:1:10: 'D:2': expected a host"),
        ("+0 A:1 > B:70000 S", "my.ct:1:10: 'B:70000': expected a port up to 65535"),
        ("+0 A > B S", "my.ct:1:8: 'B': expected ports on both sides"),
        ("+0 A:1 > B:2 icmp echo", "my.ct:1:10: 'B:2': expected no ports"),
        ("+0 A < B", "my.ct:1:6: '<': expected > and the destination"),
        ("+x A > B", "my.ct:1:1: '+x': expected seconds"),
        ("+2000000000 A > B", "my.ct:1:1: '+2000000000': expected seconds"),
        ("+600000000 raw 45\n+600000000 raw 45", "my.ct:2:1: '+600000000': expected at most 1,000,000,000 seconds in all"),
        ("A:1 > B:2 S", "my.ct:1:1: 'A:1': expected a step"),
        ("x: +0 raw 45\nx: +0 raw 45", "my.ct:2:1: 'x:': expected a new label"),
        ("+0 raw 4", "my.ct:1:8: '4': expected bytes as hexadecimal digits"),
        ('+0 A:1 > B:2 A data "open', "my.ct:1:21: '\"open': expected bytes"),
        ("+0 raw 45 =>", "my.ct:1:13: the line ends here: expected a state"),
        ("+0 raw 45 => gone", "my.ct:1:14: 'gone': expected a state"),
        ("+0 raw 45 => new new", "my.ct:1:18: 'new': expected state to be given once"),
        ("+0 raw 45 => new reason because", "my.ct:1:25: 'because': expected a reason"),
        ("+0 raw 45 => status[assured", "my.ct:1:14: 'status[assured': expected status[...]"),
        ("+0 raw 45 => tcp.original.start=1", "my.ct:1:14: 'tcp.original.start=1': expected a variable"),
        ("+0 raw 45 new", "my.ct:1:11: 'new': expected => and what is expected"),
        ("A = 1.2.3", "my.ct:1:5: '1.2.3': expected an IPv4 or IPv6 address"),
        ("A = 1.2.3.4 5", "my.ct:1:13: '5': expected the line to end here"),
        ("1 = 1.2.3.4", "my.ct:1:1: '1': expected a new host's name"),
        ("+0 raw 45\nA = 1.2.3.4", "my.ct:2:1: 'A': expected hosts and settings before the first step"),
        ("set tcp_window 1", "my.ct:1:5: 'tcp_window': expected a setting"),
        ("set tcp_liberal 2", "my.ct:1:17: tcp_liberal = 2: expected 0 to 1"),
        ("set snat", "my.ct:1:9: the line ends here: expected a NAT rule"),
        ("set snat 192.0.2.300", "my.ct:1:10: snat '192.0.2.300': column 1, '192.0.2.300': expected an address"),
        ("set masquerade 192.0.2.1-192.0.2.2", "my.ct:1:16: masquerade '192.0.2.1-192.0.2.2': column 1"),
        ("set helper ftp:tcp", "my.ct:1:12: helper 'ftp:tcp': column 1, 'ftp:tcp': expected NAME:PROTO:PORT"),
        ("+0 raw 45 => out.port=1", "my.ct:1:14: 'out.port=1': expected a variable"),
        ("set timeout udp 2", "my.ct:1:13: 'udp': expected a timeout"),
        ("set zone 65536", "my.ct:1:10: '65536': expected a zone from 0 to 65535, with :original or :reply"),
        ("set zone 5:both", "my.ct:1:10: '5:both': expected a zone"),
        ("set zone 5\nset zone 6", "my.ct:2:5: 'zone': expected the zone once"),
        (
            "set zone-limit 5:original=1",
            "my.ct:1:16: '5:original=1': expected ZONE=N, a zone up to 65535 and a number of connections, as in 5=1000, or N for each",
        ),
        ("set zone-limit 5\nset zone-limit 6", "my.ct:2:16: '6': expected ZONE=N"),
        ("set zone-reserve 5", "my.ct:1:18: '5': expected ZONE=N, a zone up to 65535 and a number of connections, as in 5=1000, each once"),
        ("set max 3\nset zone-reserve 5=4", "my.ct:2:18: zone_reserves: 4 in all: expected at most max, 3"),
        ("+0 A:1 > B:2 udp zone 65536", "my.ct:1:23: '65536': expected a number from 0 to 65535"),
        ("+0 A > B icmp 256", "my.ct:1:15: '256': expected a type"),
        ("+0 A > B icmp unreachable about 3", "my.ct:1:33: '3': expected the step that is quoted"),
        ("+0 A:1 > B:2 S sack 1-2-3", "my.ct:1:21: '1-2-3': expected blocks"),
        ("+0 A:1 > B:2 udp frag 3+", "my.ct:1:23: '3+': expected a slice"),
        ("+0 A6 > B6 proto 9 ext 43:0", "my.ct:1:24: '43:0': expected an extension header"),
        # what can be written but not built
        ("+0 A > B icmp unreachable about #0", "my.ct:1: about #0: expected an earlier step"),
        ("+0 A > B icmp unreachable about syn", "my.ct:1: about syn: expected an earlier step"),
        ("+0 A:1 > B6:2 S", "my.ct:1: 10.0.0.1 and 2001:db8::2: expected addresses of one family"),
        ("+0 A:1 > B:2 udp len 65001", "my.ct:1:22: '65001': expected a number from 0 to 65000"),
        ("+0 A:1 > B:2 sctp data len 60000 data len 60000", "my.ct:1: 120,020 bytes above IP: expected at most 65,400"),
        ("+0 A > B proto 9 ext routing", "my.ct:1: ext: expected IPv6 addresses"),
        ("+0 A6 > B6 proto 9 df", "my.ct:1: df: expected IPv4 addresses"),
    ],
)
def test_mistakes_are_named_with_their_place(line, complaint):
    text = refused(line)
    assert text.startswith(complaint), text
    assert "\n" not in text


MORE_WORDS = '=> sctp init itag gre v1 frag 8+ ext 43:00 " status[ conn none tcp. \0 ٣ +0 #1'
WORDS = [*OPEN.split(), *MORE_WORDS.split(), "\n"]


@given(st.text(max_size=200) | st.lists(st.sampled_from(WORDS) | st.text(max_size=6), max_size=40).map(" ".join))
@example("+0 A:1 > B:2 S seq " + "9" * 5000)
@example("+" + "9" * 400 + " raw 45")
@example("set seed 18446744073709551616")
@example("\ufeff+0 raw 45")
def test_any_text_is_a_scenario_or_one_line(text):
    """Hostile text ends in a scenario or in a ScenarioError of one line."""
    try:
        build(parse(text, "hostile.ct"))
    except ScenarioError as error:
        assert str(error).startswith("hostile.ct:")
        assert len(str(error).splitlines()) == 1


@given(scenarios())
def test_every_scenario_can_be_built_or_says_why_not(scenario):
    try:
        frames = build(scenario)
    except ScenarioError as error:
        assert str(error).startswith("made: step ")
    else:
        assert len(frames) == len(scenario.steps)
