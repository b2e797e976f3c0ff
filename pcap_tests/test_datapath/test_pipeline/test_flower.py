"""What rules see of frames whose checksums and lengths are wrong: all that the flow dissector of Linux sees, which looks at neither.

Not here: rules on sound frames (test_walk, test_interpret).
"""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datapath import craft
from datapath.frame import LINK_RAW, frames_of
from datapath.pipeline import rules_file
from datapath.pipeline.findings import Findings
from datapath.pipeline.flower import flower_keys
from datapath.pipeline.rules import Hook, Ruleset
from pcap_tests.test_datapath.test_pipeline.walked import BARE, Coming, Said, Sides, compared

A, B, A6, B6 = "10.0.0.1", "192.0.2.9", "2001:db8::1", "2001:db8::9"
IN = "tc filter add dev eth0 ingress "
WEB = IN + "protocol ip prio 1 flower ip_proto tcp dst_port 80 action mirred egress redirect dev eth1\n"


def ruleset_of(text: str) -> Ruleset:
    found = Findings()
    ruleset = rules_file.parse(text, "rules.tc", found)
    assert [str(error) for error in found.errors] == []
    return ruleset


def sent(rules: str, *frames: bytes) -> list[Said]:
    """What walk and interpreter say of frames a millisecond apart, since that is the same."""
    return compared(ruleset_of(rules), [Coming(frame, Hook("eth0"), 10**9 + i * 10**6) for i, frame in enumerate(frames)])


def seen(frame: bytes, link: int = 1):
    return flower_keys(*frames_of([frame], link=link))[0]


# --- headers that were left wrong -------------------------------------------------------------------------------------------------------


def test_after_pedit_without_csum_the_next_chain_still_sees_ports() -> None:
    rules = (
        IN + "chain 0 protocol ip prio 1 flower action pedit ex munge ip ttl set 9 pipe action goto chain 1\n"
        + IN + "chain 1 protocol ip prio 1 flower ip_proto tcp dst_port 80 tcp_flags 0x2/0x2 ip_ttl 9 action mirred egress redirect dev eth1\n"
        + IN + "chain 1 protocol ip prio 2 flower action drop\n"
    )  # fmt: skip
    (said,) = sent(rules, craft.tcp(A, B, 40000, 80, "S"))
    assert (said.verdict, said.device) == ("accept", "eth1")


@pytest.mark.parametrize("wrong", [{"ip_checksum": 1}, {"l4_checksum": 1}, {"ip_checksum": 0, "l4_checksum": 0}, {"length": 24}, {"length": 65000}])
def test_a_frame_with_a_wrong_sum_or_length_is_matched_by_its_ports(wrong: dict[str, int]) -> None:
    (said,) = sent(WEB, craft.tcp(A, B, 40000, 80, "S", **wrong))
    assert (said.verdict, said.device) == ("accept", "eth1")


def test_connection_tracking_looks_at_the_transport_checksum_and_with_it_at_the_header_s() -> None:
    rules = (
        IN + "chain 0 protocol ip prio 1 flower ct_state -trk action ct pipe action goto chain 1\n"
        + IN + "chain 1 protocol ip prio 1 flower ct_state +trk+new action ct commit pipe action mirred egress redirect dev eth1\n"
        + IN + "chain 1 protocol ip prio 2 flower ct_state +trk+inv ip_proto tcp dst_port 80 action mirred egress redirect dev eth2\n"
    )  # fmt: skip
    frames = [craft.tcp(A, B, port, 80, "S", **wrong) for port, wrong in ((1, {}), (2, {"ip_checksum": 1}), (3, {"l4_checksum": 1}))]
    assert [said.device for said in sent(rules, *frames)] == ["eth1", "eth2", "eth2"]


def test_translation_leaves_a_wrong_header_checksum_as_wrong_as_it_was() -> None:
    rules = IN + f"protocol ip prio 1 flower ct_state -trk action ct commit nat src addr {B} pipe action mirred egress redirect dev eth1\n"
    right, wrong = craft.udp(A, "192.0.2.7", 5000, 53), craft.udp(A, "192.0.2.7", 5001, 53, l4_checksum=0, ip_checksum=0x1234)
    lefts = [said.left[0].frame for said in sent(rules, right, wrong)]
    off = [craft.checksum(frame[14:34]) for frame in (wrong, lefts[1])]
    assert lefts[0][26:30] == lefts[1][26:30] == craft.address(B)
    assert craft.checksum(lefts[0][14:34]) == 0 and off[0] == off[1] != 0


# --- what is there of a header ----------------------------------------------------------------------------------------------------------


def test_half_a_tcp_header_has_ports_and_no_flags() -> None:
    key = seen(craft.eth(craft.ipv4(A, B, craft.TCP, struct.pack("!HHIIBB", 5, 80, 1, 0, 0x50, 2))))
    assert (key["src_port"], key["dst_port"], key["tcp_flags"]) == (5, 80, 0)


def test_a_header_length_below_the_least_hides_all_but_ethernet() -> None:
    key = seen(craft.tcp(A, B, 5, 80, "S", ihl=4))
    assert key["eth_type"] == 0x0800 and not key["ip_proto"] and not key["dst_ip"].any() and not key["dst_port"]


def test_no_fragment_has_ports_and_ipsec_is_not_stepped_over() -> None:
    assert seen(craft.tcp(A, B, 5, 80, "S", frag=0x2000))["dst_port"] == 0
    atomic = seen(craft.eth(craft.ipv6(A6, B6, craft.UDP, bytes(8), ext=((craft.FRAGMENT, bytes(7)),)), craft.ETH_IPV6))
    assert (atomic["ip_proto"], atomic["ip_flags"], atomic["dst_port"]) == (craft.UDP, 3, 0)
    hidden = seen(craft.eth(craft.ipv6(A6, B6, craft.UDP, bytes([0, 7, 0, 8]), ext=((craft.AH, bytes([1]) + bytes(10)),)), craft.ETH_IPV6))
    assert (hidden["ip_proto"], hidden["dst_port"]) == (craft.AH, 0)
    options = seen(craft.eth(craft.ipv6(A6, B6, craft.UDP, bytes([0, 7, 0, 8]), ext=((craft.DESTINATION, b"\0" + bytes(6)),)), craft.ETH_IPV6))
    assert (options["ip_proto"], options["dst_port"]) == (craft.UDP, 8)


@given(st.binary(max_size=80), st.sampled_from([0x40, 0x60, 0x45, 0x46]), st.booleans())
def test_any_bytes_are_read_within_the_frame_and_checksums_change_nothing(body: bytes, first: int, ethernet: bool) -> None:
    packet = bytes([first]) + body
    head = bytes(12) + (b"\x08\x00" if first >> 4 == 4 else b"\x86\xdd") if ethernet else b""
    link = 1 if ethernet else LINK_RAW
    one = seen(head + packet, link)
    if first >> 4 == 4 and len(packet) >= 20:
        other = packet[:10] + bytes([packet[10] ^ 0xFF, packet[11]]) + packet[12:]
        assert seen(head + other, link) == one


# --- ARP --------------------------------------------------------------------------------------------------------------------------------


def arp(head: str, *, kind: int = 0x0806) -> bytes:
    """From 10.0.0.1, for 10.0.0.2. head: hardware, protocol, their lengths and the operation."""
    return craft.eth(bytes.fromhex(head) + craft.MAC_A + craft.address(A) + craft.MAC_B + craft.address("10.0.0.2"), kind)


ARP_FIELDS = ("arp_op", "arp_sip", "arp_tip", "arp_sha", "arp_tha")


@pytest.mark.parametrize("kind", [0x0806, 0x8035])
@pytest.mark.parametrize("operation", [1, 2])
def test_requests_and_replies_have_fields(operation: int, kind: int) -> None:
    key = seen(arp(f"0001 0800 06 04 {operation:04x}", kind=kind))
    assert (key["arp_op"], key["arp_sip"].tobytes(), key["arp_tip"].tobytes()) == (operation, craft.address(A), craft.address("10.0.0.2"))
    assert (key["arp_sha"].tobytes(), key["arp_tha"].tobytes()) == (craft.MAC_A, craft.MAC_B)


@pytest.mark.parametrize(
    "head",
    [*(f"0001 0800 06 04 {operation:04x}" for operation in (0, 3, 4, 8, 9, 0x101, 0x102, 0xFFFF)), "0006 0800 06 04 0001", "0001 86dd 06 04 0001",
     "0001 0800 08 04 0001", "0001 0800 06 06 0001"],
)  # fmt: skip
def test_other_arp_has_none(head: str) -> None:
    """Other operations, and requests for other than IPv4 on other than Ethernet: what looks at none of these fields still matches."""
    frame = arp(head)
    key = seen(frame)
    assert key["eth_type"] == 0x0806 and not any(np.any(key[name]) for name in ARP_FIELDS)
    (said,) = sent(IN + f"protocol arp prio 1 flower arp_sip {A} action drop\n" + IN + "protocol arp prio 2 flower action pass\n", frame)
    assert (said.verdict, said.rule) == ("accept", 1)


@pytest.mark.parametrize(("size", "there"), [(28, True), (27, False), (7, False), (0, False)])
def test_half_an_arp_packet_has_no_fields(size: int, there: bool) -> None:
    key = seen(arp("0001 0800 06 04 0001")[: 14 + size])
    assert all(np.any(key[name]) for name in ARP_FIELDS) == any(np.any(key[name]) for name in ARP_FIELDS) == there


# --- frames without Ethernet ------------------------------------------------------------------------------------------------------------

CHANGE = (
    IN + "chain 0 protocol ip prio 1 flower ip_proto tcp action pedit ex munge ip ttl set 9 munge tcp dport set 8080 pipe "
    "action csum ip4h and tcp pipe action goto chain 1\n"
    + IN + "chain 1 protocol ip prio 1 flower ip_proto tcp dst_port 8080 ip_ttl 9 action mirred egress redirect dev eth1\n"
    + IN + "chain 1 protocol ip prio 2 flower action drop\n"
)  # fmt: skip


def bare(rules: str, packet: bytes, link: int, head: bytes) -> tuple[Said, list[bytes]]:
    """An IP packet behind another link header, through both; what leaves, from the IP header on."""
    sides = Sides(ruleset_of(rules))
    kind = b"\x08\x00" if packet[0] >> 4 == 4 else b"\x86\xdd"
    (said,) = sides.send([Coming(bytes(12) + kind + packet, Hook("eth0"), 10**9, 0, link, head)])
    sides.check()
    return said, [left.frame[14:] for left in said.left]


@pytest.mark.parametrize(("link", "head"), BARE)
def test_fields_from_the_ip_header_on_are_changed_behind_any_link_header(link: int, head: bytes) -> None:
    said, left = bare(CHANGE, craft.tcp(A, B, 40000, 80, "S")[14:], link, head)
    assert said.device == "eth1"
    assert left == [craft.tcp(A, B, 40000, 8080, "S", ttl=9)[14:]]


@pytest.mark.parametrize(("link", "head"), BARE)
def test_what_ethernet_has_is_not_there(link: int, head: bytes) -> None:
    packet = craft.tcp(A, B, 40000, 80, "S")[14:]
    said, left = bare(IN + "protocol ip prio 1 flower action vlan push id 5 pipe action mirred egress redirect dev eth1\n", packet, link, head)
    assert (said.verdict, said.reason, left) == ("drop", "rule_field", [])
    for action in ("vlan pop pipe", "vlan modify id 5 pipe", "pedit ex munge eth dst set 02:00:00:00:00:09 munge ip ttl set 9 pipe"):
        said, left = bare(IN + f"protocol ip prio 1 flower action {action} action mirred egress redirect dev eth1\n", packet, link, head)
        assert left == [packet]


@pytest.mark.parametrize("link", [1, LINK_RAW])
def test_a_port_behind_ipv6_options_is_changed_and_the_options_are_not(link: int) -> None:
    rules = (
        IN + "protocol ipv6 prio 1 flower ip_proto tcp dst_port 80 action pedit ex munge tcp dport set 8080 pipe action csum tcp pipe "
        "action mirred egress redirect dev eth1\n"
    )
    chain = ((craft.HOP_BY_HOP, craft.options6()), (craft.DESTINATION, craft.options6(2)))
    came, wanted = (craft.tcp(A6, B6, 1000, port, "S", ext=chain, l4_checksum=5) for port in (80, 8080))
    left = [each.frame for each in sent(rules, came)[0].left] if link == 1 else [came[:14] + each for each in bare(rules, came[14:], link, b"")[1]]
    assert [frame[:-4] + frame[-2:] for frame in left] == [wanted[:-4] + wanted[-2:]]  # but for the checksum


def test_ipv6_without_ethernet() -> None:
    rules = (
        IN + "protocol ipv6 prio 1 flower action pedit ex munge ip6 hoplimit set 3 pipe action csum udp pipe action mirred egress redirect dev eth1\n"
    )
    wrong = craft.udp(A6, B6, 5000, 53, b"?", l4_checksum=7)[14:]
    assert bare(rules, wrong, LINK_RAW, b"")[1] == [craft.udp(A6, B6, 5000, 53, b"?", ttl=3)[14:]]


@pytest.mark.parametrize("first", [0x55, 0x65, 0x05])
def test_the_type_says_what_a_header_is_and_not_its_version(first):
    """The dissector asks IPv4's header for its length only."""
    frame = bytearray(craft.tcp(A, B, 1000, 80, "S"))
    frame[14] = first
    (key,) = (seen(bytes(frame)),)
    assert (key["eth_type"], key["ip_proto"], key["dst_port"]) == (0x0800, 6, 80)
    (said,) = sent(WEB, bytes(frame))
    assert said.verdict == "accept"


@pytest.mark.parametrize("bare", BARE)
def test_a_frame_stays_of_its_kind_whatever_is_written_to_its_first_byte(bare):
    """What is behind a link header other than Ethernet's has been told by that, or by the version as it came."""
    frame = craft.tcp(A, B, 1000, 80, "S")
    rules = (
        IN + "protocol all prio 1 flower action pedit ex munge ip ihl set 0x20 retain 0x60 pipe action goto chain 1\n"
        + IN + "protocol ip prio 1 chain 1 flower action drop\n"
    )  # fmt: skip
    for link, header in ((1, None), bare):
        coming = Coming(frame, Hook("eth0"), 10**9) if header is None else Coming(frame, Hook("eth0"), 10**9, 0, link, header)
        assert compared(ruleset_of(rules), [coming])[0].verdict == "drop", link


@pytest.mark.parametrize("link", [1, LINK_RAW])
def test_a_frame_of_no_bytes_has_no_fields(link):
    """Nor is there a first byte to point at, where bounds are checked (make asan)."""
    fields = seen(b"", link)
    assert not any(np.any(fields[name]) for name in fields.dtype.names)
