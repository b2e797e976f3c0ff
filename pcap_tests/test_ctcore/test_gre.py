"""GRE: one connection for each pair of addresses, or for each call id of version 1."""

from __future__ import annotations

import pytest

from datapath import craft
from pcap_tests.scene import CLIENT, SERVER, Exchange, Scene

PPP = 0x880B


def gre(tracker) -> Exchange:
    return Exchange(Scene(tracker), craft.gre, port=None)


def keys(conn) -> list[list[int]]:
    key = conn.entry["flow"]["key"]
    return [key["sport"].tolist(), key["dport"].tolist()]


def test_version_0(tracker):
    conn = gre(tracker)
    conn.orig().is_("new", reason="ok", timeout=30)
    conn.reply().is_("established", timeout=30, lacks={"assured"})
    conn.orig().is_("established", timeout=180, has={"assured"})
    assert keys(conn) == [[0, 0], [0, 0]]


def test_timeouts_are_settings(make_tracker):
    conn = gre(make_tracker(timeouts={"gre_timeout": 3, "gre_timeout_stream": 4}))
    conn.orig().is_("new", timeout=3)
    conn.reply().is_("established", timeout=3)
    conn.orig().is_("established", timeout=4)


def test_both_calls_of_version_1_are_apart(tracker):
    """Nobody knows which call ids belong together without the PPTP helper."""
    conn = gre(tracker)
    conn.orig(version=1, proto=PPP, call=5).is_("new", conn=0)
    assert keys(conn) == [[0, 5], [5, 0]]
    conn.reply(version=1, proto=PPP, call=6).is_("new", conn=1)
    conn.orig(version=1, proto=PPP, call=5).is_("new", conn=0, timeout=30)
    conn.orig(version=1, proto=PPP, call=7).is_("new", conn=2)


def test_version_1_carries_ppp(tracker):
    gre(tracker).orig(version=1, proto=0x0800).is_("invalid", reason="gre_not_ppp")
    assert tracker.count == 0


@pytest.mark.parametrize("header", [b"", b"\x20\1\x88", b"\x20\1\x88\x0b", b"\x20\1\x08\x00\0\0\0", b"\0\2\x08\x00"])
def test_what_is_too_short_or_too_new_has_no_keys(tracker, header):
    conn = Exchange(Scene(tracker), lambda src, dst: craft.frame(src, dst, craft.GRE, header), port=None)
    conn.orig().is_("new", reason="ok")
    assert keys(conn) == [[0, 0], [0, 0]]


def test_an_error_about_a_call(tracker):
    conn = gre(tracker)
    conn.orig(version=1, proto=PPP, call=5)
    about = conn.frame(0, version=1, proto=PPP, call=5)
    conn.scene.send(craft.icmp_error(SERVER, CLIENT, 3, 2, about)).is_("related", conn=0, dir="reply")
    conn.scene.send(craft.icmp_error(SERVER, CLIENT, 3, 2, conn.frame(0, version=1, call=5))).is_("invalid", reason="icmp_inner")


def test_an_error_that_quotes_version_0_is_not_about_a_call(tracker):
    """Whatever lies where version 1 has its call id."""
    conn = gre(tracker)
    conn.orig(version=1, proto=PPP, call=5).is_("new", conn=0)
    quoted = conn.frame(0, version=0, proto=PPP, payload=b"\0\0\0\5")
    conn.scene.send(craft.icmp_error(SERVER, CLIENT, 3, 2, quoted)).is_("invalid", reason="icmp_no_conn")
    conn.orig(version=0).is_("new", conn=1)
    conn.scene.send(craft.icmp_error(SERVER, CLIENT, 3, 2, quoted)).is_("related", conn=1, dir="reply")
