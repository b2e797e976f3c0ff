"""pedit, csum and vlan, against scapy where it has an opinion."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import Dot1Q, Ether

from datapath import craft
from datapath.pipeline.header_fields import HEADER_FIELDS
from datapath.pipeline.munge import csum, modify, pedit, pop, push
from datapath.pipeline.rules import ETH_QINQ, ETH_VLAN, Csum, Munge, Pedit, Vlan

ALL = Csum(("ip4h", "icmp", "igmp", "tcp", "udp", "udplite", "sctp"))
A, B, A6, B6 = "192.0.2.1", "198.51.100.1", "2001:db8::1", "2001:db8::2"
FRAMES = {
    "tcp": craft.tcp(A, B, 40000, 80, "PA", payload=b"odd"),
    "udp": craft.udp(A, B, 5000, 53, b"?"),
    "icmp": craft.icmp(A, B, 8, ident=7, sequence=1, payload=b"ping"),
    "tcp6": craft.tcp(A6, B6, 40000, 80, "PA", payload=b"odd"),
    "udp6": craft.udp(A6, B6, 5000, 53, b"?"),
    "icmp6": craft.icmp(A6, B6, 128, ident=7, sequence=1, payload=b"ping"),
    "sctp": craft.sctp(A, B, 9000, 9001, 0, craft.sctp_init(7)),
    "udplite": craft.udplite(A, B, 70, 80, b"xyz", coverage=11),
}

OPTIONS = craft.options6(1)
AH_24 = bytes([4, 0, 0]) + bytes(20)  # RFC 4302: 4 + 2 words of 4 bytes
CHAINS = {
    "hop-by-hop": ((craft.HOP_BY_HOP, OPTIONS),),
    "destination": ((craft.DESTINATION, craft.options6()),),
    "routing": ((craft.ROUTING, bytes([2, 0, 0]) + bytes(20)),),
    "AH": ((craft.AH, AH_24),),
    "first fragment": ((craft.FRAGMENT, craft.fragment6(0, True)),),
    "all": tuple(zip((craft.HOP_BY_HOP, craft.ROUTING, craft.FRAGMENT, craft.AH, craft.DESTINATION),
                     (OPTIONS, bytes([0, 0, 0]) + bytes(4), craft.fragment6(), AH_24, OPTIONS), strict=True)),
}  # fmt: skip


def munge(header: str, field: str, value: int, *, op: str = "set", mask: int = (1 << 128) - 1) -> Pedit:
    return Pedit((Munge(header, field, op, value, mask),))


def summed(frame: bytes) -> bytes:
    """What csum goes on with."""
    made = csum(frame, ALL)
    assert made is not None
    return made


def sum_at(frame: bytes, at: int) -> int:
    """The checksum in an IPv4 packet's transport header."""
    return int.from_bytes(frame[34 + at : 36 + at], "big")


@pytest.mark.parametrize("name", FRAMES)
def test_csum_of_a_sound_packet_changes_nothing(name: str) -> None:
    assert csum(FRAMES[name], ALL) == FRAMES[name]


@given(name=st.sampled_from(sorted(FRAMES)), at=st.integers(0, 1000), byte=st.integers(1, 255))
def test_csum_makes_a_broken_sum_good(name: str, at: int, byte: int) -> None:
    """Whatever of the addresses, the ports or the payload was changed, what comes out has the checksum that scapy would give it."""
    frame = bytearray(FRAMES[name])
    start = 26 if len(name.rstrip("6")) == len(name) else 22
    choices = [*range(start, start + 8), len(frame) - 1]
    frame[choices[at % len(choices)]] ^= byte
    done = Ether(summed(bytes(frame)))
    for layer, field in ((IP, "chksum"), (TCP, "chksum"), (UDP, "chksum"), (ICMP, "chksum"), (ICMPv6EchoRequest, "cksum")):
        if layer in done and name != "udplite":
            again = done.copy()
            delattr(again[layer], field)
            assert getattr(Ether(bytes(again))[layer], field) == getattr(done[layer], field)


def test_only_what_is_asked_for_is_made_anew() -> None:
    broken = bytearray(FRAMES["tcp"])
    broken[26] ^= 1
    assert csum(bytes(broken), Csum(("udp",))) == bytes(broken)
    assert csum(bytes(broken), Csum(("ip4h",)))[34:] == broken[34:]


def test_later_fragments_keep_their_sums_and_the_first_one_does_not() -> None:
    """tcf_csum_ipv4 asks for the offset only: what is summed of the first one is as much as there is, and good for nobody."""
    later, first = (craft.frame(A, B, craft.TCP, bytes(40), frag=frag) for frag in (0x2003, 0x2000))
    assert csum(later, ALL) == later
    assert sum_at(summed(first), 16) == craft.checksum(craft.pseudo(A, B, craft.TCP, 40) + bytes(40))
    for frame in (craft.frame(A6, B6, craft.TCP, bytes(40), ext=((craft.FRAGMENT, craft.fragment6(at, True)),)) for at in (0, 8)):
        assert csum(frame, ALL) == frame


def test_udp_without_a_sum_stays_without_over_ipv4() -> None:
    frame = craft.udp(A, B, 5000, 53, b"?", l4_checksum=0)
    assert csum(frame, ALL) == frame
    assert csum(craft.udp(A6, B6, 5000, 53, b"?", l4_checksum=0), ALL) == craft.udp(A6, B6, 5000, 53, b"?")  # RFC 8200 8.1: there it has one


@pytest.mark.parametrize("length", [8, 10, 200])
@pytest.mark.parametrize("src", [A, A6])
def test_udp_that_tells_another_length_loses_its_sum(src: str, length: int) -> None:
    """tcf_csum_ipv4_udp takes the old sum out before it looks at the length, and leaves it at that."""
    dst = B6 if ":" in src else B
    frame = craft.udp(src, dst, 5000, 53, b"?", length=None)
    at = len(frame) - 9
    frame = frame[: at + 4] + length.to_bytes(2, "big") + frame[at + 6 :]
    assert csum(frame, ALL) == frame[: at + 6] + b"\0\0" + frame[at + 8 :]


@pytest.mark.parametrize("coverage", [0, 8, 10, 20])
def test_udplite_is_summed_as_linux_does_it(coverage: int) -> None:
    """Its pseudo-header has the coverage where RFC 3828 3.1 has the length, so that only sums over all of it are good."""
    frame = craft.udplite(A, B, 70, 80, b"xyz", coverage=coverage)
    covered = frame[34:40] + b"\0\0" + frame[42:]
    value = 0 if coverage == 20 else craft.checksum(craft.pseudo(A, B, craft.UDPLITE, coverage) + covered[: coverage or 11])
    assert sum_at(summed(frame), 6) == value


def test_sctp_is_summed_to_the_end_of_the_frame() -> None:
    frame = craft.sctp(A, B, 9000, 9001, 0, craft.sctp_chunk(11))
    padded = frame.ljust(60, b"\0")
    wanted = craft.crc32c(frame[34:42] + bytes(4) + padded[46:]).to_bytes(4, "little")
    assert csum(padded, ALL) == padded[:42] + wanted + padded[46:]


STEPPED = ("hop-by-hop", "destination", "routing")


@pytest.mark.parametrize("name", STEPPED)
@pytest.mark.parametrize("make", [partial(craft.tcp, A6, B6, 1, 80, "S"), partial(craft.udp, A6, B6, 1, 53, b"?"), partial(craft.icmp, A6, B6, 128)])
def test_sums_behind_headers_of_ipv6_are_made_anew(make: Callable[..., bytes], name: str) -> None:
    assert csum(make(ext=CHAINS[name], l4_checksum=7), ALL) == make(ext=CHAINS[name])


def test_behind_ipsec_and_in_fragments_of_ipv6_no_sum_is_made() -> None:
    for name in set(CHAINS) - set(STEPPED):
        frame = craft.tcp(A6, B6, 1, 80, "S", ext=CHAINS[name], l4_checksum=7)
        assert csum(frame, ALL) == frame


def test_protocols_of_the_other_family_are_not_summed() -> None:
    for frame in (craft.frame(A6, B6, craft.ICMP, bytes(20)), craft.frame(A6, B6, 2, bytes(20)), craft.frame(A, B, craft.ICMPV6, bytes(20))):
        assert csum(frame, Csum(("icmp", "igmp"))) == frame


def hop_by_hop(options: str) -> tuple[tuple[int, bytes]]:
    return ((craft.HOP_BY_HOP, bytes([0]) + bytes.fromhex(options)),)


def test_a_jumbo_payload_says_how_long_the_packet_is() -> None:
    """RFC 2675 2: the fixed header has 0 then."""
    jumbo = hop_by_hop("c204 0000001c")
    assert csum(craft.tcp(A6, B6, 1, 80, "S", ext=jumbo, length=0, l4_checksum=7), ALL) == craft.tcp(A6, B6, 1, 80, "S", ext=jumbo, length=0)
    for wrong in ("c203 00001c 00", "00 c204 00001c", "c204 0000001d"):
        assert csum(craft.tcp(A6, B6, 1, 80, "S", ext=hop_by_hop(wrong), length=0), ALL) is None


SHORT = {
    "half an IPv4 header": craft.eth(bytes(19)),
    "half an IPv6 header": craft.eth(bytes(39), craft.ETH_IPV6),
    "half a TCP header": craft.frame(A, B, craft.TCP, bytes(10)),
    "half a TCP header of IPv6": craft.frame(A6, B6, craft.TCP, bytes(19)),
    "more TCP than there is": craft.tcp(A, B, 1, 80, "S", length=41),
    "more UDP than there is": craft.udp(A6, B6, 1, 53, bytes(4)).replace(b"\x00\x0c\x11", b"\x00\x0d\x11", 1),
    "options beyond the end": craft.frame(A6, B6, craft.HOP_BY_HOP, bytes([craft.TCP, 9]) + bytes(6)),
    "no byte of the options": craft.frame(A6, B6, craft.DESTINATION),
}


@pytest.mark.parametrize("name", SHORT)
def test_csum_drops_what_is_shorter_than_it_says(name: str) -> None:
    """Unless the rest was there and not captured: then it stays as it is."""
    assert csum(SHORT[name], ALL) is None
    if name not in ("half a TCP header", "half a TCP header of IPv6"):
        assert csum(SHORT[name], Csum(("tcp", "udp")), 2000) == SHORT[name]


def test_csum_drops_nothing_that_it_was_not_asked_to_sum() -> None:
    for name in ("half a TCP header", "more TCP than there is"):
        assert csum(SHORT[name], Csum(("udp",))) == SHORT[name]


@pytest.mark.parametrize(
    ("action", "layer", "field", "value"),
    [
        (munge("ip", "ttl", 9), IP, "ttl", 9),
        (munge("ip", "ttl", 255, op="add"), IP, "ttl", 63),
        (munge("ip", "dst", 0x0A000001), IP, "dst", "10.0.0.1"),
        (munge("ip", "src", 0x0A000000, mask=0xFF000000), IP, "src", "10.0.2.1"),
        (munge("ip", "tos", 0x10, mask=0xFC), IP, "tos", 0x10),
        (munge("tcp", "dport", 8080), TCP, "dport", 8080),
        (munge("eth", "dst", 0x020000000009), Ether, "dst", "02:00:00:00:00:09"),
    ],
)
def test_pedit_sets_fields(action: Pedit, layer: type, field: str, value: object) -> None:
    frame = pedit(FRAMES["tcp"], action)
    assert getattr(Ether(frame)[layer], field) == value and len(frame) == len(FRAMES["tcp"])


def test_a_type_is_the_one_behind_the_outermost_tag() -> None:
    """In Linux that tag lies beside a packet."""
    frame = FRAMES["tcp"]
    tagged = frame[:12] + bytes.fromhex("8100000588a80006") + frame[12:]
    assert pedit(tagged, munge("eth", "type", 0x86DD)) == tagged[:16] + b"\x86\xdd" + tagged[18:]


def test_pedit_of_ipv6() -> None:
    frame = pedit(FRAMES["udp6"], Pedit((Munge("ip6", "traffic_class", "set", 0xB8, 0xFF), Munge("udp", "sport", "set", 7, 0xFFFF))))
    assert (Ether(frame)[IPv6].tc, Ether(frame)[IPv6].version, Ether(frame)[UDP].sport) == (0xB8, 6, 7)


@pytest.mark.parametrize("name", CHAINS)
def test_pedit_finds_a_header_behind_those_of_ipv6(name: str) -> None:
    """ipv6_find_hdr: options are stepped over and left alone."""
    tcp, udp = craft.tcp_segment(A6, B6, 1000, 80, "S", l4_checksum=7), craft.udp_segment(A6, B6, 1000, 53, b"?", l4_checksum=7)
    changed = tcp[:2] + (8080).to_bytes(2, "big") + tcp[4:]
    assert pedit(craft.frame(A6, B6, craft.TCP, tcp, ext=CHAINS[name]), munge("tcp", "dport", 8080)) == craft.frame(
        A6, B6, craft.TCP, changed, ext=CHAINS[name]
    )
    changed = (7).to_bytes(2, "big") + udp[2:]
    assert pedit(craft.frame(A6, B6, craft.UDP, udp, ext=CHAINS[name]), munge("udp", "sport", 7)) == craft.frame(
        A6, B6, craft.UDP, changed, ext=CHAINS[name]
    )


NO_TCP = {
    "udp": craft.udp(A6, B6, 1000, 53, bytes(40)),
    "icmp": craft.icmp(A6, B6, 128, payload=bytes(40)),
    "nothing": craft.frame(A6, B6, craft.NO_NEXT, bytes(40)),
    "esp": craft.frame(A6, B6, craft.ESP, bytes(40)),
    "later fragment": craft.frame(A6, B6, craft.TCP, bytes(40), ext=((craft.FRAGMENT, craft.fragment6(8, True)),)),
    "options beyond the end": craft.frame(A6, B6, craft.TCP, bytes(40), ext=((craft.HOP_BY_HOP, bytes([9, 1, 4]) + bytes(4)),)),
    "half a header": craft.frame(A6, B6, craft.HOP_BY_HOP, bytes([craft.TCP])),
    "half a fragment header": craft.frame(A6, B6, craft.FRAGMENT, bytes([craft.TCP, 0])),
}


@pytest.mark.parametrize("name", NO_TCP)
def test_pedit_of_tcp_changes_no_other_ipv6_packet(name: str) -> None:
    assert pedit(NO_TCP[name], munge("tcp", "dport", 8080)) == NO_TCP[name]


def test_pedit_of_tcp_does_not_ask_what_ipv4_carries() -> None:
    """Nor which fragment it is: pedit_l4_skb_offset takes the header's length and goes there."""
    for frame in (craft.udp(A, B, 1000, 53, bytes(40)), craft.frame(A, B, craft.TCP, bytes(40), frag=3)):
        changed = pedit(frame, munge("tcp", "dport", 8080))
        assert changed == frame[:36] + (8080).to_bytes(2, "big") + frame[38:]


def test_pedit_of_what_is_not_there() -> None:
    """The frame stays, and munges before the one that found nothing are done; those behind it are not."""
    short, other = FRAMES["tcp"][:37], craft.eth(b"", 0x88CC)
    assert pedit(short, munge("tcp", "dport", 1)) == short
    assert pedit(other, munge("ip", "ttl", 1)) == other
    ttl, port, tos = (munge(*which).munges[0] for which in (("ip", "ttl", 9), ("tcp", "dport", 1), ("ip", "tos", 4)))
    assert pedit(short, Pedit((ttl, port, tos))) == short[:22] + b"\x09" + short[23:]


def test_pedit_changes_whole_words_of_four_bytes() -> None:
    """As tc sends an address, and as Linux looks for each word of it: two of MAC_B's bytes are in a word of their own."""
    frame = craft.eth(b"")[:6]
    assert pedit(frame, munge("eth", "dst", 0xA1A2A3A4A5A6)) == bytes.fromhex("a1a2a3a4") + frame[4:]
    assert pedit(frame + b"\1\2", munge("eth", "dst", 0xA1A2A3A4A5A6)) == bytes.fromhex("a1a2a3a4a5a6 0102")


def test_pedit_goes_on_behind_what_was_not_captured() -> None:
    """It is there, as Linux saw it; what is done to it nobody sees."""
    short, rest = FRAMES["tcp"][:35], len(FRAMES["tcp"]) - 35
    both = Pedit((*munge("tcp", "sport", 0x1234).munges, *munge("ip", "ttl", 9).munges))
    assert pedit(short, both, rest) == short[:22] + b"\x09" + short[23:34] + b"\x12"
    assert pedit(short, both) == short


def test_pedit_of_ethernet_where_there_is_none() -> None:
    both = Pedit((*munge("ip", "ttl", 9).munges, *munge("eth", "dst", 1).munges, *munge("ip", "tos", 4).munges))
    assert pedit(FRAMES["tcp"], both, bare=True) == FRAMES["tcp"][:22] + b"\x09" + FRAMES["tcp"][23:]


def test_tags_are_pushed_popped_and_modified() -> None:
    once = push(FRAMES["tcp"], Vlan("push", id=5, priority=3))
    twice = push(once, Vlan("push", id=9, protocol=ETH_QINQ))
    assert (Ether(once)[Dot1Q].vlan, Ether(once)[Dot1Q].prio) == (5, 3) and twice[12:14] == b"\x88\xa8"
    assert pop(pop(twice, Vlan("pop")), Vlan("pop")) == FRAMES["tcp"] == pop(FRAMES["tcp"], Vlan("pop"))
    changed = modify(once, Vlan("modify", id=6))
    assert (Ether(changed)[Dot1Q].vlan, Ether(changed)[Dot1Q].prio) == (6, 3)
    assert modify(FRAMES["tcp"], Vlan("modify", id=6)) == FRAMES["tcp"]


@pytest.mark.parametrize(("protocol", "kind"), [(None, b"\x81\x00"), (ETH_VLAN, b"\x81\x00"), (ETH_QINQ, b"\x88\xa8")])
@pytest.mark.parametrize("before", [ETH_VLAN, ETH_QINQ])
def test_a_modified_tag_is_802_1q_unless_the_action_says_otherwise(before: int, protocol: int | None, kind: bytes) -> None:
    tagged = push(FRAMES["tcp"], Vlan("push", id=5, protocol=before, priority=3))
    assert modify(tagged, Vlan("modify", id=6, protocol=protocol)) == tagged[:12] + kind + b"\x60\x06" + FRAMES["tcp"][12:]


@pytest.mark.parametrize(
    ("change", "byte", "before", "after"),
    [
        (Munge("ip", "df", "set", 0x40, 0x40), 6, 0x20, 0x60),
        (Munge("ip", "mf", "set", 0, 0x20), 6, 0xFF, 0xDF),
        (Munge("ip", "ihl", "set", 5, 0x0F), 0, 0x4F, 0x45),
        (Munge("ip", "tos", "add", 3, 0x0F), 1, 0xBF, 0xB2),
        (Munge("ip", "nofrag", "set", 0, 0x3F), 6, 0xFF, 0xC0),
    ],
)
def test_pedit_changes_what_is_retained_for_it_and_no_more(change: Munge, byte: int, before: int, after: int) -> None:
    """The bits that `retain` leaves open, also of a sum."""
    frame = bytearray(FRAMES["tcp"])
    frame[14 + byte] = before
    changed = pedit(bytes(frame), Pedit((change,)))
    assert changed[14 + byte] == after
    assert changed[: 14 + byte] + changed[15 + byte :] == bytes(frame[: 14 + byte] + frame[15 + byte :])


def test_pedit_of_a_flow_label_leaves_version_and_class() -> None:
    frame = pedit(FRAMES["udp6"], Pedit((Munge("ip6", "flow_lbl", "set", 0xABCDE, 0xFFFFF),)))
    assert (Ether(frame)[IPv6].fl, Ether(frame)[IPv6].version, Ether(frame)[IPv6].tc) == (0xABCDE, 6, 0)


def test_every_field_that_rules_can_name_can_be_changed() -> None:
    for (header, name), field in HEADER_FIELDS.items():
        frame = FRAMES["udp6"] if header == "ip6" else FRAMES["udp" if header == "udp" else "tcp"]
        changed = [pedit(frame, Pedit((Munge(header, name, "set", value, field.mask),))) for value in (0, field.mask)]
        assert changed[0] != changed[1], (header, name)
