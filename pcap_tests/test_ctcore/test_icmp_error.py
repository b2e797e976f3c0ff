"""ICMP errors: related to the connection whose packet they quote, and without effect on it."""

from __future__ import annotations

import pytest

from ctcore.types import TcpState
from datapath import craft
from datapath.craft import icmp_error
from pcap_tests import scene
from pcap_tests.scene import CLIENT, CLIENT6, SERVER, SERVER6, Exchange, Scene, established, udp

ROUTER, ROUTER6, LINK_LOCAL = "192.0.2.1", "2001:db8:ffff::1", "fe80::1"
HOSTS = {4: (CLIENT, SERVER), 6: (CLIENT6, SERVER6)}


@pytest.mark.parametrize("kind", [3, 4, 5, 11, 12])
@pytest.mark.parametrize("code", [0, 1, 200])
def test_error_about_the_clients_packet(tracker, kind, code):
    conn = udp(tracker)
    conn.orig()
    conn.wait(10)
    seen = conn.scene.send(icmp_error(ROUTER, CLIENT, kind, code, conn.frame(0)))
    seen.is_("related", reason="ok", verdict="accept", conn=0, dir="reply", timeout=20, status={"confirmed"})
    assert conn.packets == [1, 0]
    assert conn.left == 20


def test_error_about_the_servers_packet(tracker):
    conn = established(tracker)
    about = craft.tcp(SERVER, CLIENT, scene.SPORT, scene.CPORT, "A", seq=501, ack=101)
    conn.scene.send(icmp_error(ROUTER, SERVER, 3, 4, about)).is_("related", dir="original", timeout=432000)


def test_error_shows_the_state_of_its_connection(tracker):
    conn = established(tracker)
    about = craft.tcp(CLIENT, SERVER, scene.CPORT, scene.SPORT, "A")
    seen = conn.scene.send(icmp_error(ROUTER, CLIENT, 3, 4, about)).is_("related", has={"assured"})
    assert seen.record["l4state"] == TcpState.TCP_ESTABLISHED


@pytest.mark.parametrize("kind", [0, 1, 2, 3, 4, 5, 127])
def test_icmpv6_errors_are_all_types_below_128(tracker, kind):
    conn = udp(tracker, address=HOSTS[6])
    conn.orig()
    conn.scene.send(icmp_error(ROUTER6, CLIENT6, kind, 0, conn.frame(0))).is_("related", conn=0, dir="reply")


def test_error_about_a_ping(tracker):
    ping = Exchange(Scene(tracker), craft.icmp, port=None)
    ping.orig(8, ident=7)
    ping.scene.send(icmp_error(ROUTER, CLIENT, 11, 0, ping.frame(0, 8, ident=7))).is_("related", conn=0, dir="reply")
    ping.scene.send(icmp_error(ROUTER, CLIENT, 11, 0, ping.frame(0, 8, ident=8))).is_("invalid", reason="icmp_no_conn")


def test_error_about_the_answer_to_a_ping(tracker):
    ping = Exchange(Scene(tracker), craft.icmp, port=None)
    ping.orig(8, ident=7)
    ping.scene.send(icmp_error(ROUTER, SERVER, 3, 1, ping.frame(1, 0, ident=7))).is_("related", conn=0, dir="original")


def test_nobody_is_told_of_an_expired_connection(tracker):
    conn = udp(tracker)
    conn.orig()
    conn.wait(30)
    conn.scene.send(icmp_error(ROUTER, CLIENT, 3, 1, conn.frame(0))).is_("invalid", reason="icmp_no_conn")


# --- what is not believed --------------------------------------------------------------------------------------------------------------


def test_unknown_connection(tracker):
    conn = udp(tracker)
    conn.scene.send(icmp_error(ROUTER, CLIENT, 3, 1, conn.frame(0))).is_("invalid", reason="icmp_no_conn", conn=None, l4state=None)


def test_another_zone(tracker):
    conn = udp(tracker, zone=1)
    conn.orig()
    conn.scene.send(icmp_error(ROUTER, CLIENT, 3, 1, conn.frame(0)), zone=2).is_("invalid", reason="icmp_no_conn")
    conn.scene.send(icmp_error(ROUTER, CLIENT, 3, 1, conn.frame(0)), zone=1).is_("related")


@pytest.mark.parametrize("addressee", [SERVER, "10.0.0.9"])
def test_not_addressed_to_the_sender_of_what_is_quoted(tracker, addressee):
    conn = udp(tracker)
    conn.orig()
    conn.scene.send(icmp_error(ROUTER, addressee, 3, 1, conn.frame(0))).is_("invalid", reason="icmp_outer")


@pytest.mark.parametrize(("quote", "state"), [(24, "related"), (23, "invalid"), (20, "invalid"), (19, "invalid"), (0, "invalid")])
def test_four_bytes_of_ports_are_enough(tracker, quote, state):
    conn = udp(tracker)
    conn.orig()
    seen = conn.scene.send(icmp_error(ROUTER, CLIENT, 3, 1, conn.frame(0), quote=quote))
    seen.is_(state, reason="ok" if state == "related" else "icmp_inner")


@pytest.mark.parametrize(("quote", "state"), [(28, "related"), (27, "invalid")])
def test_of_a_ping_eight(tracker, quote, state):
    ping = Exchange(Scene(tracker), craft.icmp, port=None)
    ping.orig(8, ident=7)
    ping.scene.send(icmp_error(ROUTER, CLIENT, 3, 1, ping.frame(0, 8, ident=7), quote=quote)).is_(state)


@pytest.mark.parametrize(("frag", "state"), [(0, "related"), (0x2000, "related"), (0x4000, "related"), (1, "invalid"), (0x1FFF, "invalid")])
def test_quoted_fragment(tracker, frag, state):
    """The first fragment has the ports; the others do not."""
    conn = udp(tracker)
    conn.orig()
    conn.scene.send(icmp_error(ROUTER, CLIENT, 11, 1, conn.frame(0, frag=frag))).is_(state)


def test_quoted_options_are_skipped(tracker):
    conn = udp(tracker)
    conn.orig()
    conn.scene.send(icmp_error(ROUTER, CLIENT, 3, 1, conn.frame(0, options=bytes(40)))).is_("related")
    conn.scene.send(icmp_error(ROUTER, CLIENT, 3, 1, conn.frame(0, options=bytes(40)), quote=59)).is_("invalid", reason="icmp_inner")


@pytest.mark.parametrize("kind", [3, 11, 9])
def test_an_error_about_an_error(tracker, kind):
    about = craft.icmp(CLIENT, SERVER, kind)
    Scene(tracker).send(icmp_error(ROUTER, CLIENT, 3, 1, about)).is_("invalid", reason="icmp_inner_error")


@pytest.mark.parametrize(
    ("ext", "state"),
    [
        (((craft.HOP_BY_HOP, craft.options6()), (craft.DESTINATION, craft.options6(2))), "related"),
        (((craft.FRAGMENT, craft.fragment6(more=True)),), "related"),
        (((craft.FRAGMENT, craft.fragment6(offset=8)),), "invalid"),
        (((craft.AH, bytes([4]) + bytes(22)),), "related"),
    ],
)
def test_quoted_extension_headers(tracker, ext, state):
    conn = udp(tracker, address=HOSTS[6])
    conn.orig()
    conn.scene.send(icmp_error(ROUTER6, CLIENT6, 1, 0, conn.frame(0, ext=ext))).is_(state)


def test_quoted_chain_without_an_end(tracker):
    about = craft.frame(CLIENT6, SERVER6, craft.NO_NEXT)
    Scene(tracker).send(icmp_error(ROUTER6, CLIENT6, 1, 0, about)).is_("invalid", reason="icmp_inner")


# --- ICMPv6 redirects ------------------------------------------------------------------------------------------------------------------


def redirect(about: bytes, *, option: bytes = b"\4\1", src: str = LINK_LOCAL, ttl: int = 255, code: int = 0, length: int | None = None) -> bytes:
    """RFC 4861 4.5: target, destination, and the option that quotes a packet."""
    body = (bytes(32) + option + bytes(6) + about[14:])[:length]
    return craft.frame(src, CLIENT6, craft.ICMPV6, craft.icmp_message(src, CLIENT6, 137, code, payload=body), ttl=ttl)


def test_redirect(tracker):
    conn = udp(tracker, address=HOSTS[6])
    conn.orig()
    conn.scene.send(redirect(conn.frame(0))).is_("related", conn=0, dir="reply")


@pytest.mark.parametrize(
    "fault", [{"ttl": 254}, {"code": 1}, {"src": ROUTER6}, {"option": b"\1\1"}, {"option": b"\4\0"}, {"length": 33}, {"length": 10}]
)
def test_redirect_that_is_not_believed(tracker, fault):
    conn = udp(tracker, address=HOSTS[6])
    conn.orig()
    conn.scene.send(redirect(conn.frame(0), **fault)).is_("invalid", reason="icmp6_redirect")
