"""TFTP, IRC and PPTP without translation, on engine and model."""

from __future__ import annotations

import pytest

from ctcore.nat_rules import HelperRule
from datapath import craft
from pcap_tests.scene import CLIENT, CLIENT6, SERVER, SERVER6, Exchange, established, udp

TFTP, IRC, PPTP = HelperRule("tftp", 17, 69), HelperRule("irc", 6, 6667), HelperRule("pptp", 6, 1723)


def expected(tracker):
    return [(row.src, row.dst, row.proto, row.sport, row.dport) for row in tracker.expectations()]


# --- TFTP ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_", [b"\0\1f\0octet\0", b"\0\2f\0octet\0"])
@pytest.mark.parametrize("address", [(CLIENT, SERVER), (CLIENT6, SERVER6)])
def test_tftp(make_tracker, request_, address):
    tracker = make_tracker(helpers=(TFTP,))
    conn = udp(tracker, address=address, port=(1069, 69))
    conn.orig(payload=request_).is_("new", has={"helper"})
    assert expected(tracker) == [(address[1], address[0], 17, 0, 1069)]
    child = udp(tracker, scene=conn.scene, address=address[::-1], port=(3333, 1069))
    child.orig(payload=b"\0\3\0\1").is_("related", has={"expected"}, conn=1)
    child.reply(payload=b"\0\4\0\1").is_("established")
    assert expected(tracker) == []


@pytest.mark.parametrize("payload", [b"", b"\0", b"\0\3", b"\1\1", b"\0\5\0\0no\0"])
def test_tftp_only_requests(make_tracker, payload):
    tracker = make_tracker(helpers=(TFTP,))
    udp(tracker, port=(1069, 69)).orig(payload=payload).is_("new")
    assert expected(tracker) == []


def test_tftp_refused_packet_leaves_nothing(make_tracker):
    """Two connections of one client port to two ports of a server would wait for the same answer."""
    tracker = make_tracker(helpers=(TFTP, HelperRule("tftp", 17, 70)))
    first = udp(tracker, port=(1069, 69))
    first.orig(payload=b"\0\1f\0")
    second = udp(tracker, scene=first.scene, port=(1069, 70))
    second.orig(payload=b"\0\1f\0").is_("not-seen", verdict="drop", reason="helper_refused", conn=None)
    assert tracker.count == 1 and len(expected(tracker)) == 1
    second.orig(payload=b"").is_("new", conn=1)
    second.orig(payload=b"\0\1f\0").is_("new", verdict="drop", reason="helper_refused", conn=1)


# --- IRC -------------------------------------------------------------------------------------------------------------------------------


def irc(make_tracker, **settings):
    tracker = make_tracker(helpers=(IRC,), **settings)
    return tracker, established(tracker, port=(40000, 6667))


@pytest.mark.parametrize("message", [
    b"PRIVMSG x :\1DCC SEND t 167772161 2000\1\n", b"\r\n privmsg x :\1DCC CHAT chat 167772161 2000\1\n",
    b"PRIVMSG x :\1DCC SCHAT chat 167772161   2000 9\1\r\nmore", b"PRIVMSG x :\1DCC TSEND  4462739457 67536\1\n",
])  # fmt: skip
def test_irc(make_tracker, message):
    tracker, conn = irc(make_tracker)
    conn.orig("PA", payload=message).is_("established", verdict="accept")
    where = [("any", CLIENT, 6, 0, 2000)]
    assert expected(tracker) == where


ELSEWHERE, TO_PORT_0 = b"PRIVMSG x :\1DCC SEND t 167772162 2000\1\n\n\n", b"PRIVMSG x :\1DCC SEND t 167772161 0\1\n\n\n\n\n\n"


@pytest.mark.parametrize("message", [
    ELSEWHERE, TO_PORT_0, b"NOTICE x :\1DCC SEND t 167772161 2000\1\n", b"PRIVMSG x :hello\1DCC SEND t 167772161 2000\1\n",
    b"PRIVMSG x :\1DCC SEND t 167772161 2000\1 no newline", b"PRIVMSG x :\1DCC GET t 167772161 2000\1\n", b"", b" ", b"PRIVMSG ",
])  # fmt: skip
def test_irc_nothing_offered(make_tracker, message):
    tracker, conn = irc(make_tracker)
    conn.orig("PA", payload=message).is_("established", verdict="accept")
    conn.reply("PA", payload=b"PRIVMSG x :\1DCC SEND t 167772162 2000\1\n").is_("established")
    assert expected(tracker) == []


def test_irc_eight_offers(make_tracker):
    tracker, conn = irc(make_tracker)
    for port in range(2000, 2010):
        conn.orig("PA", payload=b"PRIVMSG x :\1DCC SEND t 167772161 %d\1\n" % port)
    assert [row[4] for row in expected(tracker)] == list(range(2002, 2010))


def test_irc_and_pptp_are_for_ipv4(make_tracker):
    tracker = make_tracker(helpers=(IRC, PPTP))
    conn = established(tracker, address=(CLIENT6, SERVER6), port=(40000, 6667))
    assert "helper" not in conn.status


# --- PPTP ------------------------------------------------------------------------------------------------------------------------------


def control(kind: int, body: bytes, size: int) -> bytes:
    body = body.ljust(size, b"\0")
    return (12 + size).to_bytes(2, "big") + b"\0\1\x1a\x2b\x3c\x4d" + kind.to_bytes(2, "big") + b"\0\0" + body


START_REQUEST, START_REPLY = control(1, b"\1\0", 144), control(2, b"\1\0\1\0", 144)
OUT_REQUEST, OUT_REPLY = control(7, b"\0\7", 156), control(8, b"\0\x63\0\7\1", 20)
IN_REQUEST, IN_REPLY, IN_CONNECTED = control(9, b"\0\x63", 208), control(10, b"\0\7\0\x63\1", 12), control(11, b"\0\7", 16)
CLEAR, DISCONNECT = control(12, b"\0\7", 4), control(13, b"\0\x63", 136)


def call(make_tracker, *said: tuple[int, bytes]):
    tracker = make_tracker(helpers=(PPTP,))
    conn = established(tracker, port=(40000, 1723))
    for d, message in ((0, START_REQUEST), (1, START_REPLY), *said):
        conn.send(d, "PA", payload=message).is_("established", verdict="accept")
    return tracker, conn


def gre(conn, call_id: int, *, back: bool = False):
    make = lambda src, dst, **fields: craft.gre(src, dst, version=1, proto=0x880B, call=call_id, payload=b"x" * 8, **fields)  # noqa: E731
    address = (SERVER, CLIENT) if back else (CLIENT, SERVER)
    return Exchange(conn.scene, make, address=address, port=None).orig()


OUT = ((0, OUT_REQUEST), (1, OUT_REPLY))
BOTH = [(CLIENT, SERVER, 47, 7, 99), (SERVER, CLIENT, 47, 99, 7)]


@pytest.mark.parametrize("said", [OUT, ((1, IN_REQUEST), (0, IN_REPLY), (1, IN_CONNECTED))])
def test_pptp_one_connection_for_both_directions(make_tracker, said):
    tracker, conn = call(make_tracker, *said)
    assert expected(tracker) == BOTH
    gre(conn, 99).is_("related", conn=1, dir="original", has={"expected"}, timeout=30)
    assert expected(tracker) == []
    gre(conn, 7, back=True).is_("established", conn=1, dir="reply")
    gre(conn, 98).is_("new", conn=2)


def test_pptp_an_error_about_the_tunnel_is_related_to_it(make_tracker):
    """Its quote names one end's id only, as every packet of the tunnel does."""
    _, conn = call(make_tracker, *OUT)
    gre(conn, 99)

    def about(call_id: int, version: int = 1):
        sent = craft.gre(CLIENT, SERVER, version=version, proto=0x880B, call=call_id, payload=b"x" * 8)
        return conn.scene.send(craft.icmp_error("10.9.9.9", CLIENT, 3, 4, sent))

    assert (about(99).state, about(99).conn) == ("related", 1)
    assert [about(*other).reason for other in ((98,), (0,), (99, 0))] == ["icmp_no_conn"] * 3


def test_pptp_begun_by_the_server(make_tracker):
    tracker, conn = call(make_tracker, *OUT)
    gre(conn, 7, back=True).is_("related", conn=1, dir="original")
    gre(conn, 99).is_("established", conn=1, dir="reply")
    assert expected(tracker) == []


OTHER_CALL, NOT_GOOD = control(8, b"\0\x63\0\x08\1", 20), control(8, b"\0\x63\0\7\2", 20)


@pytest.mark.parametrize("said", [
    ((1, OUT_REPLY),), ((0, OUT_REQUEST), (1, OTHER_CALL)), ((0, OUT_REQUEST), (1, NOT_GOOD)), ((0, OUT_REQUEST), (1, OUT_REPLY[:31])),
    ((1, IN_REQUEST), (1, IN_CONNECTED)), ((0, OUT_REQUEST), (1, OUT_REPLY.replace(b"\x1a\x2b", b"\x1a\x2c"))),
])  # fmt: skip
def test_pptp_no_call(make_tracker, said):
    tracker, conn = call(make_tracker, *said)
    assert expected(tracker) == []
    gre(conn, 99).is_("new")
    gre(conn, 7, back=True).is_("new")


def test_pptp_hang_up(make_tracker):
    tracker, conn = call(make_tracker, *OUT)
    gre(conn, 99)
    conn.reply("PA", payload=DISCONNECT).is_("established")
    assert tracker.count == 1
    gre(conn, 99).is_("new")
    tracker, conn = call(make_tracker, *OUT, (1, DISCONNECT))
    assert expected(tracker) == []


def test_pptp_the_tunnel_dies_with_its_master(make_tracker):
    tracker, conn = call(make_tracker, *OUT)
    gre(conn, 99)
    conn.orig("R")
    for _ in range(3):
        conn.wait(4)
        gre(conn, 99)
    assert [(int(c["flow"]["key"]["proto"][0]), int(c["flow"]["id"][0])) for c in tracker.conns()] == [(47, 2)], "a tunnel of nobody's"
    assert expected(tracker) == []


def test_pptp_when_the_tunnel_ends_its_ids_are_forgotten(make_tracker):
    tracker, conn = call(make_tracker, *OUT)
    gre(conn, 99)
    conn.wait(31)
    gre(conn, 99).is_("new", conn=2)
    gre(conn, 7, back=True).is_("new", conn=3)
    conn.reply("PA", payload=OUT_REPLY)
    assert expected(tracker) == BOTH
