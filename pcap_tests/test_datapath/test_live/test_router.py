"""The router: which way a frame goes, what is changed in it, and what its sender is told."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datapath import craft
from datapath.live.neighbour_table import NeighbourState
from datapath.live.router import Way, pieces_of
from pcap_tests.test_datapath.test_live.routing import (
    CLIENT,
    FAMILIES,
    FAR,
    GATEWAY,
    HOST,
    LAN,
    NEAR,
    NEXT,
    SERVER,
    WAN,
    addressed,
    header_sum,
    router,
    udp,
)  # fmt: skip

HOP = {4: 22, 6: 21}  # where a frame has its TTL
SUM = slice(24, 26)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_packet_goes_to_the_gateway_one_hop_less(family):
    frame = udp(family, ttl=9)
    way, out, (left,) = router().route_frame(frame, "lan")
    assert (way, out) == (Way.WAY_ON, "wan")
    assert left[:12] == GATEWAY + WAN
    assert left[HOP[family]] == 8
    assert family == 6 or header_sum(left[14:]) == 0
    same = [i for i in range(12, len(frame)) if i != HOP[family] and (family == 6 or i not in (24, 25))]
    assert all(left[i] == frame[i] for i in same)


@given(st.integers(2, 255), st.integers(0, 65535), st.integers(0, 255))
def test_the_checksum_stays_right_whatever_the_header_says(ttl, ident, tos):
    _, _, (left,) = router().route_frame(udp(ttl=ttl, ident=ident, tos=tos), "lan")
    assert header_sum(left[14:]) == 0
    assert left[22] == ttl - 1


@given(st.binary(max_size=200), st.booleans(), st.sampled_from([b"\x08\x00", b"\x86\xdd", b"\x81\x00"]))
def test_no_bytes_do_any_harm(data, ours, kind):
    """Each has one way, which is counted once; what goes on is as long as its header says."""
    one = router()
    frame = (LAN + HOST + kind if ours else b"") + data
    way, _, left = one.route_frame(frame, "lan")
    counts = list(one.counters().values())[:17]
    assert sum(counts) == 1 and counts[way] == 1
    if way == Way.WAY_ON:
        assert len(left[0]) <= len(frame)


@given(st.data(), st.sampled_from(FAMILIES))
def test_headers_with_flipped_bytes_do_no_harm(data, family):
    """A packet that gets an error gets a right one, whatever it says."""
    frame = bytearray(udp(family, size=40))
    for _ in range(data.draw(st.integers(1, 4))):
        frame[data.draw(st.integers(12, len(frame) - 1))] = data.draw(st.integers(0, 255))
    if frame[14] >> 4 == 4 and len(frame) > 34:
        head = 14 + (frame[14] & 15) * 4
        frame[24:26] = b"\0\0"
        frame[24:26] = craft.checksum(bytes(frame[14:head])).to_bytes(2, "big")
    way, _, left = router(mtu=68).route_frame(bytes(frame), "lan")
    for one in left:
        assert len(one) <= 14 + (68 if way <= Way.WAY_CUT else 1280)
        assert one[12:14] != b"\x08\x00" or header_sum(one[14:]) == 0


def test_padding_of_the_link_stays_behind():
    _, _, (left,) = router().route_frame(udp(size=1).ljust(60, b"\xee"), "lan")
    assert len(left) == 14 + 20 + 8 + 1


@pytest.mark.parametrize(
    ("frame", "way"),
    [
        (udp(dst=FAR[4]), Way.WAY_OWN),
        (udp(6, dst=NEAR[6]), Way.WAY_OWN),
        (udp(dst="10.1.0.255"), Way.WAY_GROUP),
        (udp(dst="224.0.0.5"), Way.WAY_GROUP),
        (udp(6, dst="ff02::5"), Way.WAY_GROUP),
        (udp(dst="255.255.255.255"), Way.WAY_GROUP),
        (addressed(udp(), b"\xff" * 6), Way.WAY_GROUP),
        (addressed(udp(), bytes.fromhex("02000000cc01")), Way.WAY_OTHER_MAC),
        (addressed(udp(), WAN), Way.WAY_ON),
        (udp(src="127.0.0.1"), Way.WAY_MARTIAN),
        (udp(src="0.0.0.0"), Way.WAY_MARTIAN),
        (udp(src="224.0.0.1"), Way.WAY_MARTIAN),
        (udp(dst="127.0.0.1"), Way.WAY_MARTIAN),
        (udp(6, src="::"), Way.WAY_MARTIAN),
        (udp(6, src="fe80::9"), Way.WAY_MARTIAN),
        (udp(6, dst="fe80::9"), Way.WAY_MARTIAN),
        (udp(6, src="::ffff:10.0.0.1"), Way.WAY_MARTIAN),
        (udp(6, src="ff02::1"), Way.WAY_MARTIAN),
        (udp(6, src="fec0::1"), Way.WAY_ON),
        (udp(src="240.0.0.1"), Way.WAY_ON),
        (udp(dst="10.68.0.1"), Way.WAY_BLACKHOLE),
        (udp(options=b"\x83\x07\x04\x0a\x00\x00\x01\x00"), Way.WAY_SOURCE_ROUTED),
        (udp(options=b"\x01\x89\x07\x04\x0a\x00\x00\x01"), Way.WAY_SOURCE_ROUTED),
        (udp(options=b"\x94\x04\x00\x00"), Way.WAY_ON),
        (udp(ip_checksum=1), Way.WAY_MALFORMED),
        (udp(length=400), Way.WAY_MALFORMED),
        (udp(length=19), Way.WAY_MALFORMED),
        (udp(ihl=4), Way.WAY_MALFORMED),
        (udp()[:30], Way.WAY_MALFORMED),
        (udp(6)[:50], Way.WAY_MALFORMED),
        (udp()[:12] + b"\x08\x06" + bytes(28), Way.WAY_NOT_IP),
        (udp()[:12] + b"\x81\x00\x00\x05" + udp()[12:], Way.WAY_NOT_IP),
        (b"", Way.WAY_MALFORMED),
    ],
)
def test_what_is_not_forwarded_is_counted_and_nobody_is_told(frame, way):
    one = router()
    got, _, left = one.route_frame(frame, "lan")
    assert got == way
    assert way == Way.WAY_ON or left == []
    assert list(one.counters().values())[way] == 1
    assert one.counters()["errors"] == one.counters()["errors_no_way"] == 0


# --- errors -----------------------------------------------------------------------------------------------------------------------------


def told(frame: bytes, family: int, *, mtu: int = 1500) -> tuple[Way, bytes]:
    """The way, and the error's ICMP part, of which all around is checked."""
    way, out, left = router(mtu=mtu).route_frame(frame, "lan")
    assert len(left) == 1, way
    error, packet = left[0], left[0][14:]
    assert out == "lan" and error[:12] == HOST + LAN
    if family == 4:
        assert header_sum(packet) == 0
        assert packet[8:10] == bytes([64, 1]) and packet[1] & 0xC0 == 0xC0
        assert packet[12:20] == craft.address(NEAR[4]) + craft.address(CLIENT[4])
        assert len(packet) == int.from_bytes(packet[2:4], "big") <= 576
        assert craft.checksum(packet[20:]) == 0
        return way, packet[20:]
    assert packet[6:8] == bytes([58, 64])
    assert packet[8:40] == craft.address(NEAR[6]) + craft.address(CLIENT[6])
    assert len(packet) == 40 + int.from_bytes(packet[4:6], "big") <= 1280
    assert craft.checksum(craft.pseudo(NEAR[6], CLIENT[6], 58, len(packet) - 40) + packet[40:]) == 0
    return way, packet[40:]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("hops", [0, 1])
def test_the_last_hop_is_told_with_what_was_sent(family, hops):
    frame = udp(family, size=333, ttl=hops)
    way, error = told(frame, family)
    assert way == Way.WAY_TTL
    assert error[:8][0:2] == (b"\x0b\x00" if family == 4 else b"\x03\x00")
    assert error[4:8] == bytes(4)
    assert error[8:] == frame[14:], "quoted as it came, its hop limit included"


@pytest.mark.parametrize("family", FAMILIES)
def test_an_error_quotes_as_much_as_fits(family):
    frame = udp(family, size=1400, ttl=1)
    _, error = told(frame, family)
    assert len(error) == (576 - 20 if family == 4 else 1280 - 40)
    assert error[8:] == frame[14:][: len(error) - 8]


@pytest.mark.parametrize(
    ("dst", "way", "said"),
    [
        ("10.66.0.1", Way.WAY_NO_ROUTE, (3, 0)),
        ("10.67.0.1", Way.WAY_PROHIBITED, (3, 13)),
        ("fd66::1", Way.WAY_NO_ROUTE, (1, 0)),
    ],
)  # fmt: skip
def test_unreachable_networks_are_told(dst, way, said):
    family = 6 if ":" in dst else 4
    got, error = told(udp(family, dst=dst), family)
    assert (got, tuple(error[:2])) == (way, said)


def test_too_big_says_what_fits():
    way, error = told(udp(size=1400, frag=0x4000), 4, mtu=1000)
    assert way == Way.WAY_TOO_BIG
    assert error[:2] == b"\x03\x04" and error[4:8] == bytes([0, 0, 1000 >> 8, 1000 & 255])
    way, error = told(udp(6, size=1400), 6, mtu=1300)
    assert way == Way.WAY_TOO_BIG
    assert error[:2] == b"\x02\x00" and int.from_bytes(error[4:8], "big") == 1300
    way, error = told(udp(6, size=1400), 6, mtu=1000)
    assert int.from_bytes(error[4:8], "big") == 1280, "no IPv6 host takes less (RFC 8200 5)"


UNANSWERED = {
    "an ICMP error": craft.icmp(CLIENT[4], SERVER[4], 3, 1, payload=craft.udp(SERVER[4], CLIENT[4], 1, 2)[14:], ttl=1),
    "an unknown ICMP type": craft.icmp(CLIENT[4], SERVER[4], 200, 1, ttl=1),
    "ICMP without a type": craft.frame(CLIENT[4], SERVER[4], 1, b"", ttl=1),
    "a later fragment": udp(ttl=1, frag=5),
    "class E": udp(src="240.0.0.1", ttl=1),
    "an ICMPv6 error": craft.icmp(CLIENT[6], SERVER[6], 1, 0, payload=craft.udp(SERVER[6], CLIENT[6], 1, 2)[14:], ttl=1),
    "an ICMPv6 redirect": craft.icmp(CLIENT[6], SERVER[6], 137, 0, payload=bytes(32), ttl=1),
    "a later IPv6 fragment": craft.frame(CLIENT[6], SERVER[6], 17, bytes(16), ext=((44, craft.fragment6(80)),), ttl=1),
}


@pytest.mark.parametrize("what", UNANSWERED)
def test_errors_are_never_about(what):
    one = router()
    way, _, left = one.route_frame(addressed(UNANSWERED[what]), "lan")
    assert (way, left) == (Way.WAY_TTL, [])
    assert one.counters()["errors_not_allowed"] == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_echo_requests_and_first_fragments_are_answered(family):
    echo = craft.icmp(CLIENT[family], SERVER[family], 8 if family == 4 else 128, ttl=1)
    assert told(addressed(echo), family)[0] == Way.WAY_TTL
    if family == 4:
        assert told(udp(ttl=1, frag=0x2000), 4)[0] == Way.WAY_TTL


def test_an_error_about_a_translated_packet_quotes_what_its_sender_has_sent():
    came = udp(ttl=1)
    after = udp(src="192.0.2.1", ttl=1)
    way, out, (error,) = router().route_frame(after, "lan", came=came)
    assert (way, out) == (Way.WAY_TTL, "lan")
    assert error[30:34] == craft.address(CLIENT[4]) and error[42:] == came[14:]


# --- limits -----------------------------------------------------------------------------------------------------------------------------

SECOND = 10**9


def test_one_destination_gets_six_errors_at_once_and_one_a_second():
    one = router()
    start = 100 * SECOND
    sent = [len(one.route_frame(udp(ttl=1), "lan", now=start)[2]) for _ in range(10)]
    assert sent == [1] * 6 + [0] * 4
    assert [len(one.route_frame(udp(ttl=1), "lan", now=start + at)[2]) for at in (SECOND // 2, SECOND, SECOND + 1)] == [0, 1, 0]
    assert one.counters()["errors_peer_limited"] == 6


def test_time_that_goes_back_gives_nothing():
    one = router()
    for second in range(20, 0, -1):
        one.route_frame(udp(ttl=1), "lan", now=second * SECOND)
    assert one.counters()["errors"] == 6


def test_all_together_get_fifty_at_once_and_a_thousand_a_second():
    one = router(icmp_peer_rate=0)
    for _ in range(60):
        one.route_frame(udp(ttl=1), "lan", now=SECOND)
    assert one.counters()["errors"] == 50 and one.counters()["errors_limited"] == 10
    for i in range(2000):
        one.route_frame(udp(ttl=1), "lan", now=SECOND + i * SECOND // 2000)
    assert one.counters()["errors"] == 50 + 999


def test_path_mtu_discovery_waits_for_no_destination():
    one = router(mtu=1000)
    for _ in range(20):
        one.route_frame(udp(size=1400, frag=0x4000), "lan", now=SECOND)
    assert one.counters()["errors"] == 20


def test_none_at_all():
    one = router(icmp_rate=0)
    assert one.route_frame(udp(ttl=1), "lan", now=SECOND)[2] == []
    assert one.counters()["errors_limited"] == 1


# --- neighbours -------------------------------------------------------------------------------------------------------------------------


def test_a_neighbour_that_is_not_known_is_asked_for_and_then_found():
    one = router()
    one.neighbours.drop(1, ip_address(NEXT[4]))
    assert one.route_frame(udp(), "lan") == (Way.WAY_NO_NEIGHBOUR, None, [])
    assert one.neighbours.take_wanted() == [(1, ip_address(NEXT[4]))]
    one.neighbours.put(1, ip_address(NEXT[4]), GATEWAY)
    assert one.route_frame(udp(), "lan")[0] == Way.WAY_ON


def test_one_that_does_not_answer_is_asked_again_and_the_sender_is_told():
    one = router()
    one.neighbours.put(1, ip_address(NEXT[4]), None)
    way, _, (error,) = one.route_frame(udp(), "lan")
    assert way == Way.WAY_UNREACHABLE and error[34:36] == b"\x03\x01"
    assert one.neighbours.take_wanted() == [(1, ip_address(NEXT[4]))]


def test_one_that_is_stale_is_used_and_asked_for_once():
    one = router()
    one.neighbours.put(1, ip_address(NEXT[4]), GATEWAY, stale=True)
    for _ in range(3):
        assert one.route_frame(udp(), "lan")[0] == Way.WAY_ON
    assert one.neighbours.counters()["asked"] == 1
    assert one.neighbours.find(1, ip_address(NEXT[4]))[0] == NeighbourState.NEIGHBOUR_ASKED


def test_a_destination_in_our_network_is_a_neighbour_itself():
    one = router()
    other = bytes.fromhex("02000000dd01")
    one.neighbours.put(1, ip_address("10.2.0.77"), other)
    way, out, (left,) = one.route_frame(udp(dst="10.2.0.77"), "lan")
    assert (way, out, left[:6]) == (Way.WAY_ON, "wan", other)


def test_an_interface_that_is_down_takes_nothing():
    one = router()
    one.put_station("wan", WAN, up=False)
    way, _, (error,) = one.route_frame(udp(6), "lan")
    assert way == Way.WAY_DOWN and error[54:56] == b"\x01\x03"


# --- pieces -----------------------------------------------------------------------------------------------------------------------------


def put_together(pieces: list[bytes]) -> tuple[bytes, bool]:
    """What IPv4 fragments carry, and whether the last one says that more follow."""
    data, more = b"", True
    for piece in sorted(pieces, key=lambda one: int.from_bytes(one[20:22], "big") & 0x1FFF):
        packet = piece[14:]
        place, head = int.from_bytes(packet[6:8], "big"), (packet[0] & 15) * 4
        assert (place & 0x1FFF) * 8 == len(data) and header_sum(packet) == 0 and len(packet) == int.from_bytes(packet[2:4], "big")
        data, more = data + packet[head:], bool(place & 0x2000)
    return data, more


@given(st.integers(68, 1500), st.integers(0, 1472), st.booleans())
def test_pieces_put_together_are_the_packet(mtu, size, fragment):
    options = b"\x94\x04\x00\x00\x07\x07\x04\x00\x00\x00\x00\x00"  # router alert, which is copied; record route, which is not
    frame = udp(size=max(size - 12, 0), options=options, frag=0x2000 if fragment else 0)
    pieces = pieces_of(frame, mtu)
    assert all(len(piece) - 14 <= mtu for piece in pieces)
    assert put_together(pieces) == (frame[14 + 32 :], fragment)
    assert all(piece[34:38] == b"\x94\x04\x00\x00" for piece in pieces)
    assert [piece[14] & 15 for piece in pieces] == [8] + [6] * (len(pieces) - 1)


def test_a_packet_that_may_be_cut_is():
    way, out, left = router(mtu=1000).route_frame(udp(size=1400, ttl=9), "lan")
    assert (way, out) == (Way.WAY_CUT, "wan")
    assert len(left) == 2 and all(one[:12] == GATEWAY + WAN and one[22] == 8 for one in left)
    assert put_together(left)[0] == udp(size=1400)[34:]


def test_a_fragment_behind_all_packets_is_not_cut():
    assert router(mtu=1000).route_frame(udp(size=1400, frag=0x1FFE), "lan") == (Way.WAY_CUT, "wan", [])
