"""UDP, UDP-Lite, ICMP and ICMPv6 requests, and protocols nobody tracks: timeouts, assured, what opens a connection."""

from __future__ import annotations

import pytest

from ctcore.types import Dir
from datapath import craft
from pcap_tests.scene import CLIENT, CLIENT6, CPORT, SERVER, SERVER6, Exchange, Scene, udp

HOSTS = {4: (CLIENT, SERVER), 6: (CLIENT6, SERVER6)}


def udplite(tracker) -> Exchange:
    """Linux takes only those with UDP's protocol number in their sum for correct."""
    return Exchange(Scene(tracker), lambda *ends, **fields: craft.udplite(*ends, sum_proto=craft.UDP, **fields))


def icmp(tracker, family: int = 4) -> Exchange:
    return Exchange(Scene(tracker), craft.icmp, address=HOSTS[family], port=None)


def raw(tracker, proto: int, family: int = 4) -> Exchange:
    return Exchange(Scene(tracker), lambda src, dst, payload=b"": craft.frame(src, dst, proto, payload), address=HOSTS[family], port=None)


# --- UDP -------------------------------------------------------------------------------------------------------------------------------


def test_udp_question_and_answer(tracker):
    conn = udp(tracker)
    conn.orig().is_("new", reason="ok", conn=0, dir="original", timeout=30, status={"confirmed"}, l4state=None)
    conn.wait(1).orig().is_("new", timeout=30)
    conn.reply().is_("established", dir="reply", timeout=30, status={"confirmed", "seen-reply"})
    conn.orig().is_("established", dir="original", timeout=30, lacks={"assured"})
    assert conn.packets == [3, 1]


def test_udp_becomes_a_stream_after_more_than_two_seconds(tracker):
    conn = udp(tracker)
    conn.orig()
    conn.reply()
    conn.wait(2).orig().is_("established", timeout=30, lacks={"assured"})
    conn.wait(0.004).orig().is_("established", timeout=120, has={"assured"})
    conn.reply().is_("established", timeout=120)


def test_udp_first_answer_never_makes_a_stream(tracker):
    conn = udp(tracker)
    conn.orig()
    conn.wait(20).reply().is_("established", timeout=30, lacks={"assured"})
    conn.reply().is_("established", timeout=120, has={"assured"})


def test_udp_remembers_when_it_may_become_a_stream(tracker):
    conn = udp(tracker)
    conn.orig()
    assert conn.entry["stream_ts"] == conn.scene.now // 4_000_000 + 500


def test_udp_expires(tracker):
    conn = udp(tracker)
    conn.orig()
    conn.wait(29.996).orig().is_("new", conn=0)
    conn.wait(30).orig().is_("new", conn=1)


def test_udp_timeouts_are_settings(make_tracker):
    conn = udp(make_tracker(timeouts={"udp_timeout": 7, "udp_timeout_stream": 9}))
    conn.orig().is_("new", timeout=7)
    conn.wait(3).reply().is_("established", timeout=7)
    conn.orig().is_("established", timeout=9)


UDP_FAULTS = [
    ({"udp_length": 7}, "udp_length"),
    ({"udp_length": 13}, "udp_length"),
    ({"l4_checksum": 1}, "udp_checksum"),
    ({"l4_checksum": 0}, "ok"),
    ({"udp_length": 8, "l4_checksum": 0}, "ok"),
]


@pytest.mark.parametrize(("fault", "reason"), UDP_FAULTS)
@pytest.mark.parametrize("family", [4, 6])
def test_udp_header(tracker, family, fault, reason):
    """8 <= length <= bytes present; a checksum of 0 is none, also over IPv6."""
    conn = udp(tracker, address=HOSTS[family])
    conn.orig(b"1234", **fault).is_("new" if reason == "ok" else "invalid", reason=reason, conn=0 if reason == "ok" else None)


def test_the_udp_checksum_covers_all_bytes_present(tracker):
    """... and not only those the UDP length speaks of."""
    short = craft.udp_segment(CLIENT, SERVER, CPORT, 53, b"1234")
    conn = raw(tracker, craft.UDP)
    conn.orig(short + b"\0\1").is_("invalid", reason="udp_checksum")


def test_udp_too_short(tracker):
    conn = raw(tracker, craft.UDP)
    conn.orig(bytes(7)).is_("invalid", reason="udp_short")
    conn.orig(bytes(3)).is_("invalid", reason="tuple_short")


def test_a_bad_packet_leaves_the_connection_alone(tracker):
    conn = udp(tracker)
    conn.orig()
    conn.wait(10).reply(b"x", l4_checksum=1).is_("invalid", reason="udp_checksum", conn=None, l4state=None)
    assert conn.status == {"confirmed"}
    assert conn.left == 20
    assert conn.packets == [1, 0]


def test_zones_are_apart(tracker):
    udp(tracker, zone=1).orig().is_("new", conn=0, zone=1)
    udp(tracker, zone=2).orig().is_("new", conn=1, zone=2)
    udp(tracker, zone=2).reply().is_("established", conn=1)
    udp(tracker, zone=3).reply().is_("new", conn=2)


def test_a_host_that_speaks_to_itself(tracker):
    """Both tuples are the same: everything after the first packet is a reply."""
    conn = udp(tracker, address=(CLIENT, CLIENT), port=(7, 7))
    conn.orig().is_("new", dir="original")
    conn.orig().is_("established", dir="reply", conn=0, has={"seen-reply"})
    assert tracker.count == 1


# --- UDP-Lite --------------------------------------------------------------------------------------------------------------------------


def test_udplite_is_assured_after_the_first_reply(tracker):
    conn = udplite(tracker)
    conn.orig().is_("new", timeout=30)
    conn.reply().is_("established", timeout=30, lacks={"assured"})
    conn.orig().is_("established", timeout=120, has={"assured"})
    assert conn.entry["stream_ts"] == 0


@pytest.mark.parametrize(("coverage", "reason"), [(0, "ok"), (8, "ok"), (28, "ok"), (7, "udp_length"), (29, "udp_length")])
def test_udplite_coverage(tracker, coverage, reason):
    seen = udplite(tracker).orig(payload=bytes(20), coverage=coverage)
    assert seen.reason == reason


def test_correct_udplite_is_invalid_as_in_linux(tracker):
    conn = Exchange(Scene(tracker), craft.udplite)
    conn.orig().is_("invalid", reason="udp_checksum")


# --- ICMP and ICMPv6 -------------------------------------------------------------------------------------------------------------------

PAIRS = [(4, 8, 0), (4, 13, 14), (4, 15, 16), (4, 17, 18), (6, 128, 129), (6, 139, 140)]


@pytest.mark.parametrize(("family", "request_type", "reply_type"), PAIRS)
def test_icmp_request_and_reply(tracker, family, request_type, reply_type):
    conn = icmp(tracker, family)
    conn.orig(request_type, ident=9).is_("new", reason="ok", timeout=30)
    conn.wait(5).reply(reply_type, ident=9).is_("established", dir="reply", timeout=30, status={"confirmed", "seen-reply"})
    conn.wait(5).orig(request_type, ident=9, sequence=2).is_("established", dir="original", timeout=30, lacks={"assured"})
    key = conn.entry["flow"]["key"]
    assert key["sport"].tolist() == [9, 9]
    assert key["dport"].tolist() == [request_type << 8, reply_type << 8]


@pytest.mark.parametrize(("family", "request_type", "reply_type"), PAIRS)
def test_icmp_reply_without_a_request(tracker, family, request_type, reply_type):
    icmp(tracker, family).orig(reply_type).is_("invalid", reason="icmp_no_request")
    assert tracker.count == 0


@pytest.mark.parametrize("difference", [{"ident": 2}, {"code": 1}])
def test_icmp_reply_to_another_request(tracker, difference):
    conn = icmp(tracker)
    conn.orig(8, ident=1)
    conn.reply(0, **{"ident": 1, **difference}).is_("invalid", reason="icmp_no_request")


def test_icmp_timeouts_are_settings(make_tracker):
    tracker = make_tracker(timeouts={"icmp_timeout": 5, "icmpv6_timeout": 6})
    icmp(tracker, 4).orig(8).is_("new", timeout=5)
    icmp(tracker, 6).orig(128).is_("new", timeout=6)


@pytest.mark.parametrize(
    ("family", "kind"), [(4, kind) for kind in (1, 2, 6, 7, 9, 10, 19, 40, 255)] + [(6, kind) for kind in (138, 141, 144, 150, 255)]
)
def test_icmp_types_nobody_tracks(tracker, family, kind):
    icmp(tracker, family).orig(kind).is_("invalid", reason="icmp_type")


@pytest.mark.parametrize("kind", [*range(130, 137), 143, 151, 152])
def test_neighbour_and_listener_messages_are_untracked(tracker, kind):
    icmp(tracker, 6).orig(kind).is_("untracked", reason="icmp6_untracked", conn=None, verdict="accept", status=set())


@pytest.mark.parametrize(("family", "proto", "kind"), [(6, craft.ICMP, 8), (4, craft.ICMPV6, 128), (4, craft.ICMPV6, 1), (6, craft.ICMP, 3)])
def test_icmp_of_the_wrong_family(tracker, family, proto, kind):
    raw(tracker, proto, family).orig(bytes([kind]) + bytes(7)).is_("invalid", reason="icmp_family")
    assert tracker.count == 0


def test_icmp_header(tracker):
    icmp(tracker).orig(8, l4_checksum=1).is_("invalid", reason="icmp_checksum")
    raw(tracker, craft.ICMP).orig(bytes(7)).is_("invalid", reason="icmp_short")


# --- anything else ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("proto", [4, 33, 50, 89, 253])
@pytest.mark.parametrize("family", [4, 6])
def test_generic(tracker, proto, family):
    """Addresses and protocol only, any length; DCCP is one of these today."""
    conn = raw(tracker, proto, family)
    conn.orig(b"").is_("new", reason="ok", timeout=600)
    conn.wait(100).reply(b"x").is_("established", timeout=600)
    conn.wait(100).orig(bytes(500)).is_("established", timeout=600, lacks={"assured"})
    assert conn.entry["flow"]["key"]["sport"].tolist() == [0, 0]


def test_authentication_header(tracker):
    """Over IPv4 it is a protocol; over IPv6 an extension header of the UDP packet behind it."""
    raw(tracker, craft.AH, 4).orig(bytes(24)).is_("new", timeout=600)
    segment = craft.udp_segment(CLIENT6, SERVER6, CPORT, 53)
    ah = (craft.AH, bytes([4]) + bytes(22))
    Scene(tracker).send(craft.frame(CLIENT6, SERVER6, craft.UDP, segment, ext=(ah,))).is_("new", timeout=30)


def test_generic_timeout_is_a_setting(make_tracker):
    raw(make_tracker(timeouts={"generic_timeout": 1}), 50).orig().is_("new", timeout=1)


# --- the clock -------------------------------------------------------------------------------------------------------------------------


def test_time_does_not_go_back(tracker):
    conn = udp(tracker)
    conn.orig()
    conn.wait(20).orig()
    now = tracker.now
    conn.wait(-15).orig().is_("new", timeout=30)
    assert tracker.now == now


@pytest.mark.parametrize("hz", [1, 100, 250, 1000])
def test_time_passes_in_ticks(make_tracker, hz):
    conn = udp(make_tracker(hz=hz))
    conn.orig().is_("new", timeout=30)
    conn.wait(1.9995)
    assert conn.left == 30 - int(1.9995 * hz) / hz


def test_expire_without_a_packet(tracker):
    conn = udp(tracker)
    conn.orig()
    tracker.expire(conn.scene.now + 29_000_000_000)
    assert tracker.count == 1
    tracker.expire(conn.scene.now + 30_000_000_000)
    assert tracker.count == 0
    assert len(tracker.conns()) == 0


def test_conns_are_sorted_and_copied(tracker):
    for port in range(5):
        udp(tracker, port=(1000 + port, 53)).orig()
    conns = tracker.conns()
    assert conns["flow"]["id"].tolist() == [[i, i] for i in range(5)]
    assert conns["start"].tolist() == [tracker.now] * 5
    conns["mark"] = 9
    assert tracker.conns()["mark"].tolist() == [0] * 5


def test_ordinals_are_never_used_again(tracker):
    for n in range(3):
        udp(tracker, port=(n, 1)).orig().is_("new", conn=n)
        tracker.flush()
    assert tracker.count == 0


def test_packets_that_are_not_for_conntrack(tracker):
    scene = Scene(tracker)
    scene.send(craft.eth(bytes(28), 0x0806)).is_("not-seen", reason="not_ip", conn=None, dir=None, timeout=None)
    scene.send(craft.udp(CLIENT, SERVER, 1, 2, ip_checksum=1)).is_("not-seen", reason="ip_checksum", verdict="drop")
    assert tracker.count == 0


def test_dir_is_what_a_flow_is_not_who_sends(tracker):
    conn = udp(tracker)
    conn.reply().is_("new", dir="original")
    conn.orig().is_("established", dir="reply")
    assert conn.packets == [1, 1]
    assert int(conn.entry["flow"]["key"]["sport"][Dir.ORIG]) == 53
