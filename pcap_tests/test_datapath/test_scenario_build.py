"""What the words say is in the frames: read back by scapy and by our own parser, which know nothing of scenarios."""

from __future__ import annotations

import pytest
from hypothesis import given
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6ND_Redirect, IPv6, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop
from scapy.layers.l2 import GRE, Ether
from scapy.layers.sctp import SCTP, SCTPChunkAbort, SCTPChunkInit

from ctcore.types import Reason
from datapath.frame import frames_of
from datapath.scenario.build import Builder, build
from datapath.scenario.steps import Ip, Packet, ScenarioError, Step, Tcp, Udp
from datapath.scenario.text import parse
from datapath.wire import parse_batch
from pcap_tests.test_datapath.made_scenarios import scenarios


def frames(*lines: str) -> list[bytes]:
    return build(parse("\n".join(f"+0 {line}" for line in lines)))


def seen(*lines: str):
    """The last line's packet, as scapy reads it."""
    return Ether(frames(*lines)[-1])


def reason(line: str) -> str:
    """What our own parser says of it: of the packet, or else of its transport header."""
    row = parse_batch(*frames_of(frames(line))).array[0]
    return Reason(int(row["reason"]) or int(row["l4_reason"])).name


def test_tcp_has_every_field_that_is_named():
    packet = seen("A:40000 > B:80 SAU seq 100 ack 4294967295 win 77 urg 5 mss 1460 sackok wscale 7 nop timestamp 1 2 len 3")
    assert (packet[IP].src, packet[IP].dst, packet[TCP].sport, packet[TCP].dport) == ("10.0.0.1", "10.0.0.2", 40000, 80)
    assert (packet[TCP].flags, packet[TCP].seq, packet[TCP].ack, packet[TCP].window, packet[TCP].urgptr) == ("SAU", 100, 4294967295, 77, 5)
    options = packet[TCP].options
    assert options[:5] == [("MSS", 1460), ("SAckOK", b""), ("WScale", 7), ("NOP", None), ("Timestamp", (1, 2))]
    assert bytes(packet[TCP].payload) == bytes(3)


def test_sack_blocks_and_raw_options():
    assert seen("A:1 > B:2 A nop nop sack 501-601,701-801").getlayer(TCP).options[2] == ("SAck", (501, 601, 701, 801))
    assert frames("A:1 > B:2 S opt 030307")[0][54:58].hex() == "03030700"


@pytest.mark.parametrize(
    "line, sound, broken",
    [
        ("A:1 > B:2 S", "R_OK", "R_TCP_CHECKSUM"),
        ("A6:1 > B6:2 S len 5", "R_OK", "R_TCP_CHECKSUM"),
        ("A:1 > B:2 udp len 5", "R_OK", "R_UDP_CHECKSUM"),
        ("A:1 > B:2 udplite len 5 udpsum", "R_OK", ""),
        ("A:1 > B:2 udplite len 5", "R_UDP_CHECKSUM", ""),
        ("A > B icmp echo id 7 len 5", "R_OK", "R_ICMP_CHECKSUM"),
        ("A6 > B6 icmpv6 echo id 7 len 5", "R_OK", "R_ICMP_CHECKSUM"),
        ("A:1 > B:2 sctp init itag 5", "R_OK", "R_SCTP_CHECKSUM"),
    ],
)
def test_checksums_are_right_unless_they_shall_not_be(line, sound, broken):
    assert reason(line) == sound
    assert not broken or reason(f"{line} badsum") == broken


def test_a_checksum_may_be_any_number():
    assert seen("A:1 > B:2 udp sum 0")[UDP].chksum == 0
    assert seen("A:1 > B:2 S sum 0x1234")[TCP].chksum == 0x1234


@pytest.mark.parametrize("value", range(0, 65536, 771))
def test_a_bad_checksum_is_bad_whatever_the_right_one_is(value):
    """Also where the right one is the value that usually stands for a wrong one."""
    assert reason(f"A:{value} > B:2 S badsum") == "R_TCP_CHECKSUM"


def test_a_wrong_sum_is_found_even_if_it_were_the_usual_one():
    crafted = (seen("A:1 > B:2 S")[TCP].chksum - 0x1234) % 0xFFFF  # what added to the sum leaves 0x1234
    assert seen(f"A:1 > B:2 S seq {crafted}")[TCP].chksum == 0x1234
    assert reason(f"A:1 > B:2 S seq {crafted} badsum") == "R_TCP_CHECKSUM"


def test_icmp_errors_quote_an_earlier_packet():
    syn = "A:40000 > B:80 S seq 100"
    error = seen(syn, "B > A icmp unreachable code 3 about #0 quote 28")
    assert (error[ICMP].type, error[ICMP].code) == (3, 3)
    assert bytes(error[ICMP].payload) == frames(syn)[0][14:42]
    labelled = build(parse(f"syn: +0 {syn}\n+0 raw 45\n+0 B > A icmp time-exceeded about syn"))
    assert labelled[2][42:] == labelled[0][14:]


def test_icmpv6_errors_and_redirects():
    error = frames("A6:1 > B6:2 udp len 2000", "B6 > A6 icmpv6 unreachable code 4 about #0")[1]
    assert Ether(error)[ICMPv6DestUnreach].code == 4
    assert len(error) == 14 + 40 + 8 + 1232
    redirect = seen("A6:1 > B6:2 udp", "B6 > A6 icmpv6 redirect about #0 ttl 255")
    assert redirect[ICMPv6ND_Redirect].dst == "2001:db8::1"
    assert bytes(redirect)[14 + 40 + 40 :][:2] == bytes([4, 7])  # the redirected header's option, in units of 8 bytes
    assert bytes(redirect)[14 + 40 + 48 :] == frames("A6:1 > B6:2 udp")[0][14:]


def test_icmp_over_the_wrong_ip_version_keeps_its_own_checksum():
    assert frames("A6 > B6 icmp echo")[0][14 + 40 :] == frames("A > B icmp echo")[0][14 + 20 :]
    assert frames("A > B icmpv6 echo")[0][14 + 9] == 58


def test_sctp_chunks():
    packet = seen("A:1 > B:2 sctp tag 7 init itag 99 abort T body aabb chunk 193 flags 2 len 1 length 9 tail ff")
    assert (packet[SCTP].tag, packet[SCTPChunkInit].init_tag, packet[SCTPChunkInit].len) == (7, 99, 20)
    assert (packet[SCTPChunkAbort].TCB, packet[SCTPChunkAbort].len) == (1, 6)
    assert frames("A:1 > B:2 sctp tag 7 chunk 193 flags 2 len 1 length 9 tail ff")[0][46:].hex() == "c102000900000000ff"


def test_gre():
    assert frames("A > B gre v1 call 7 len 2")[0][34:].hex() == "2001880b000200070000"
    assert seen("A > B gre v0 proto 0x86dd")[GRE].proto == 0x86DD


def test_ip_fields():
    packet = seen("A > B proto 89 len 4 ttl 3 tos 8 ipid 77 df ipopt 01010101 pad 6")
    assert (packet[IP].proto, packet[IP].ttl, packet[IP].tos, packet[IP].id, packet[IP].flags, packet[IP].ihl) == (89, 3, 8, 77, "DF", 6)
    assert len(frames("A > B proto 89 len 4 pad 6")[0]) == 14 + 20 + 4 + 6
    assert reason("A:1 > B:2 S badipsum") == "R_IP_CHECKSUM"
    assert reason("A:1 > B:2 S iplen 100") == "R_IP_TRUNCATED"
    assert reason("A:1 > B:2 S ihl 4") == "R_IP_HEADER"
    assert reason("A:1 > B:2 S ipver 5") == "R_IP_VERSION"
    assert reason("A:1 > B:2 S cut 3") == "R_TUPLE_SHORT"


def test_fragments_put_together_are_the_datagram():
    whole = frames("A:1 > B:2 udp data 000102030405060708090a0b0c0d0e0f")[0]
    first, second = frames(*(f"A:1 > B:2 udp data 000102030405060708090a0b0c0d0e0f frag {piece}" for piece in ("0+16", "16+")))
    assert first[34:] + second[34:] == whole[34:]
    assert (Ether(first)[IP].flags, Ether(first)[IP].frag, Ether(second)[IP].flags, Ether(second)[IP].frag) == ("MF", 0, 0, 2)
    assert Ether(frames("A:1 > B:2 udp more")[0])[IP].flags == "MF"
    assert Ether(frames("A:1 > B:2 udp len 99 frag 0+8 last")[0])[IP].flags == 0


def test_ipv6_extension_headers_and_fragments():
    packet = seen("A6:1 > B6:2 udp len 99 ext hop-by-hop ext 60:00010400000000 ipid 5 frag 8+16")
    assert packet[IPv6ExtHdrHopByHop].nh == 60
    assert (packet[IPv6ExtHdrFragment].offset, packet[IPv6ExtHdrFragment].m, packet[IPv6ExtHdrFragment].id) == (1, 1, 5)
    assert packet[IPv6].plen == 8 + 8 + 8 + 16


def test_steps_may_be_made_without_text():
    builder = Builder("made up", {"A": "192.0.2.1"})
    frame = builder.frame(Step(Packet("A", "10.0.0.2", Udp(5), 1, 2)))
    assert Ether(frame)[IP].src == "192.0.2.1"
    assert builder.frames == [frame]
    for packet in (Packet("A", "B", Tcp("X"), 1, 2), Packet("A", "B", Udp(), 1, 70000), Packet("A", "nobody", Udp(), 1, 2)):
        with pytest.raises(ScenarioError, match="made up: step 1: "):
            builder.frame(Step(packet))
    with pytest.raises(ScenarioError, match="44 bytes of IP options: expected at most 40"):
        builder.frame(Step(Packet("A", "B", Udp(), 1, 2, Ip(options=bytes(41)))))


@given(scenarios())
def test_the_same_scenario_gives_the_same_frames(scenario):
    try:
        assert build(scenario) == build(scenario)
    except ScenarioError as error:
        assert str(error).startswith("made: step ")
