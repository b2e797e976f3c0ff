"""TCP's guards: what overrules the state table. One section each, by the names of the model's functions.

Cells, timeouts and the rest are in test_tcp, the window check is in test_tcp_window.
"""

from __future__ import annotations

import pytest

from ctcore import spec
from ctcore.types import Dir, TcpFlag, TcpIndex
from datapath import craft
from pcap_tests import scene
from pcap_tests.scene import (
    close,
    close_wait,
    conversation,
    established,
    events,
    fin_wait,
    last_ack,
    options,
    sack,
    syn_recv,
    syn_sent,
    syn_sent2,
    time_wait,
)  # fmt: skip

# --- guard: reopen -------------------------------------------------------------------------------------------------------------------


def test_client_reopens_after_a_proper_close(make_tracker):
    tracker = make_tracker(events=frozenset({"new", "destroy"}))
    conn = time_wait(tracker)
    tracker.events()
    conn.orig("S", seq=5000).is_("new", reason="tcp_reopened", conn=1, dir="original", l4state="SYN_SENT", timeout=120, status={"confirmed"})
    old, new = events(tracker)
    assert (old.kind, old.conn, old.end) == ("destroy", 0, "replaced")
    assert (new.kind, new.conn) == ("new", 1)
    assert "dying" in old.status
    assert old.left == 120


def test_server_reopens_after_a_proper_close(tracker):
    conn = time_wait(tracker)
    conn.reply("S").is_("new", reason="tcp_reopened", conn=1, dir="original")
    assert bytes(conn.entry["flow"][0]["key"]["src"][:4]) == craft.address(scene.SERVER)


def test_syn_after_the_same_sides_rst_reopens(tracker):
    conn = established(tracker)
    conn.orig("R").is_("established", l4state="CLOSE")
    conn.orig("S", seq=9000).is_("new", reason="tcp_reopened", conn=1, l4state="SYN_SENT")


def test_syn_after_the_other_sides_rst_is_ignored(tracker):
    conn = close(tracker)
    conn.wait(3).orig("S", seq=9000).is_("established", reason="tcp_ignored", conn=0, l4state="CLOSE", timeout=7)


def test_syn_after_the_other_sides_rst_reopens_if_a_fin_was_seen(tracker):
    conn = fin_wait(tracker)
    conn.reply("R").is_("established", l4state="CLOSE")
    conn.orig("S", seq=9000).is_("new", reason="tcp_reopened", conn=1)


def test_reopening_forgets_assured_and_counters(tracker):
    conn = time_wait(tracker)
    conn.orig("S", seq=9000)
    assert conn.status == {"confirmed"}
    assert conn.entry["flow"]["packets"].tolist() == [1, 0]
    assert tracker.count == 1


# --- guard: resynchronise ------------------------------------------------------------------------------------------------------------


def rebooted(tracker, **syn):
    """The client has sent a SYN, with number 70000, on a connection that was open."""
    conn = established(tracker)
    conn.orig("S", seq=70000, **syn).is_("established", reason="tcp_ignored", l4state="ESTABLISHED")
    return conn


def test_synack_that_answers_the_ignored_syn(tracker):
    conn = rebooted(tracker, win=300, options=options(wscale=3))
    conn.reply("SA", seq=90000, ack=70001, win=400).is_(
        "established", reason="tcp_resync", l4state="SYN_RECV", timeout=60, has={"assured", "seen-reply"}
    )
    # The scale is lost again, since the SYN/ACK does not offer one; what the client once acknowledged stays.
    assert conn.side(0) == {"end": 70001, "maxend": 70401, "maxwin": 300, "maxack": 501, "scale": 0, "flags": TcpFlag.TF_WINDOW_SCALE}
    assert conn.side(1) == {"end": 90001, "maxend": 90001, "maxwin": 400, "maxack": 70001, "scale": 0, "flags": TcpFlag.TF_MAXACK_SET}
    conn.orig("A", seq=70001, ack=90001).is_("established", reason="ok", l4state="ESTABLISHED", timeout=432000)


def test_synack_with_another_ack_is_ignored(tracker):
    conn = rebooted(tracker)
    conn.reply("SA", seq=90000, ack=70002).is_("established", reason="tcp_ignored", l4state="ESTABLISHED")


def test_synack_when_something_else_was_ignored_last(tracker):
    conn = established(tracker)
    conn.reply("SA", seq=500, ack=101).is_("established", reason="tcp_ignored", l4state="ESTABLISHED")


def test_resynchronised_with_window_0(tracker):
    conn = rebooted(tracker, win=0)
    conn.reply("SA", seq=90000, ack=70001, win=0)
    assert conn.side(0)["maxwin"] == 1


def test_resynchronised_opener_is_tracked_strictly_again(tracker):
    conn = conversation(tracker)
    conn.orig("A", ack=500)
    conn.reply("A", ack=100)
    conn.orig("S", seq=70000, options=options(wscale=2, sack_perm=True)).is_("established", reason="tcp_ignored")
    conn.reply("SA", seq=90000, ack=70001, options=options(wscale=5)).is_("established", reason="tcp_resync")
    liberal = [bool(conn.side(d)["flags"] & TcpFlag.TF_BE_LIBERAL) for d in Dir]
    assert liberal == [False, True]
    assert [conn.side(d)["scale"] for d in Dir] == [2, 5]


def test_resynchronising_expects_no_challenge_ack_any_more(tracker):
    conn = last_ack(tracker)
    conn.orig("S", seq=70000)
    assert conn.tcp["last_flags"] == TcpFlag.TF_EXP_CHALLENGE_ACK
    conn.reply("SA", seq=90000, ack=70001).is_("established", reason="tcp_resync", l4state="SYN_RECV")
    assert (conn.tcp["last_flags"], conn.side(0)["flags"]) == (0, 0)


# --- what an ignored packet leaves behind --------------------------------------------------------------------------------------------


def test_ignored_syn_is_remembered(tracker):
    conn = established(tracker)
    conn.orig("S", seq=70000, win=123, options=options(wscale=6, sack_perm=True), payload=b"hi")
    tcp = conn.tcp
    assert (tcp["last_index"], tcp["last_dir"], tcp["last_seq"], tcp["last_end"], tcp["last_win"]) == (0, 0, 70000, 70003, 123)
    assert (tcp["last_flags"], tcp["last_wscale"]) == (TcpFlag.TF_WINDOW_SCALE | TcpFlag.TF_SACK_PERM, 6)


def test_ignored_syn_of_the_reply_side_leaves_the_options_remembered(tracker):
    """In TIME_WAIT it is ignored only if nobody is known to have closed. That is forgotten by a SYN/ACK which answers an ignored SYN, and then
    fails the window check by its SACK block."""
    conn = last_ack(tracker)
    conn.orig("S", seq=70000, options=options(sack_perm=True)).is_("established", reason="tcp_ignored")
    conn.reply("SA", seq=90000, ack=70001, options=sack((80000, 80100))).is_("invalid", reason="tcp_ack_over", l4state="LAST_ACK")
    conn.orig("A", seq=70001, ack=90001).is_("established", reason="ok", l4state="TIME_WAIT")
    conn.reply("S", seq=95000, options=options(wscale=6)).is_("established", reason="tcp_ignored", l4state="TIME_WAIT")
    tcp = conn.tcp
    assert (tcp["last_index"], tcp["last_dir"], tcp["last_seq"]) == (0, 1, 95000)
    assert (tcp["last_flags"], tcp["last_wscale"]) == (TcpFlag.TF_SACK_PERM, 0)


def test_syn_in_last_ack_expects_a_challenge_ack(tracker):
    conn = last_ack(tracker)
    conn.orig("S", seq=70000)
    assert conn.tcp["last_flags"] == TcpFlag.TF_EXP_CHALLENGE_ACK


def test_reply_ack_before_synack_is_remembered(tracker):
    conn = syn_sent(tracker)
    conn.reply("A", seq=40, ack=7777).is_("established", reason="tcp_ignored", l4state="SYN_SENT", has={"seen-reply"}, timeout=120)
    assert conn.tcp["last_ack"] == 7777
    # The client finds it strange and resets what it takes for an old connection.
    conn.orig("R", seq=7777).is_("established", reason="ok", l4state="CLOSE", timeout=10)


def test_ignored_packets_do_not_count(tracker):
    conn = established(tracker)
    counted = conn.entry["flow"]["packets"].tolist()
    conn.wait(100).orig("S", seq=70000).is_("established", reason="tcp_ignored", timeout=432000 - 100)
    assert conn.entry["flow"]["packets"].tolist() == counted == [2, 1]


# --- guard: challenge ACK ------------------------------------------------------------------------------------------------------------


def test_challenge_ack_is_not_the_ack_of_the_last_fin(tracker):
    conn = last_ack(tracker)
    conn.wait(5).orig("S", seq=70000).is_("established", reason="tcp_ignored", l4state="LAST_ACK")
    conn.reply("A", ack=102).is_("established", reason="tcp_challenge_ack", l4state="LAST_ACK", timeout=25)
    conn.reply("A", ack=102).is_("established", reason="ok", l4state="TIME_WAIT", timeout=120)


def test_ack_of_the_syns_own_side_is_none(tracker):
    conn = last_ack(tracker)
    conn.orig("S", seq=70000)
    conn.orig("A", seq=102, ack=502).is_("established", reason="ok", l4state="TIME_WAIT")


# --- guard: simultaneous open --------------------------------------------------------------------------------------------------------


def test_simultaneous_open(tracker):
    """RFC 9293 3.5, figure 8."""
    conn = syn_sent2(tracker)
    assert conn.tcp["last_flags"] & TcpFlag.TF_SIMULTANEOUS_OPEN
    assert conn.left == 120
    conn.orig("SA", seq=100, ack=501).is_("established", reason="ok", l4state="SYN_RECV", timeout=60)
    conn.reply("A", seq=501, ack=101).is_("established", reason="ok", l4state="ESTABLISHED", has={"assured"})


def test_reply_ack_without_simultaneous_open_changes_nothing(tracker):
    conn = syn_recv(tracker)
    conn.reply("A", seq=501, ack=101).is_("established", reason="ok", l4state="SYN_RECV", timeout=60)


# --- guard: RST validation -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("closing", [fin_wait, close_wait, last_ack, time_wait, close])
def test_rst_while_closing_needs_no_window(tracker, closing):
    closing(tracker).orig("R", seq=0x7FFFFFFF).is_("established", reason="ok", l4state="CLOSE", timeout=10)


def test_rst_at_the_acknowledged_number(tracker):
    established(tracker).reply("R", seq=501).is_("established", reason="ok", l4state="CLOSE", timeout=10)


def test_rst_below_what_is_acknowledged(tracker):
    conn = established(tracker)
    conn.reply("R", seq=500).is_("invalid", reason="tcp_rst_below_maxack", l4state="ESTABLISHED")


def test_rst_below_what_is_acknowledged_if_that_is_not_minded(make_tracker):
    conn = established(make_tracker(tcp_ignore_invalid_rst=True))
    conn.reply("R", seq=500).is_("established", reason="tcp_rst_challenged", l4state="ESTABLISHED", timeout=10)


def test_rst_beyond_the_acknowledged_number_is_challenged(tracker):
    conn = established(tracker)
    conn.reply("R", seq=510).is_("established", reason="tcp_rst_challenged", l4state="ESTABLISHED", timeout=10)
    assert conn.tcp["last_index"] == 4
    conn.orig("A").is_("established", reason="ok", l4state="ESTABLISHED", timeout=432000)


def test_challenged_rst_out_of_the_window_is_invalid(tracker):
    established(tracker).reply("R", seq=501 + 100000).is_("invalid", reason="tcp_seq_over", l4state="ESTABLISHED")


def test_rst_behind_its_own_data(tracker):
    conn = established(tracker)
    conn.reply("A", payload=b"x" * 19)
    conn.reply("R", seq=501 + 19).is_("established", reason="ok", l4state="CLOSE")


def test_rst_behind_the_other_sides_packet_is_no_train(tracker):
    conn = established(tracker)
    conn.reply("A", payload=b"x" * 19)
    conn.orig("A", ack=501)
    conn.reply("R", seq=501 + 19).is_("established", reason="tcp_rst_challenged", l4state="ESTABLISHED")


@pytest.mark.parametrize(("seq", "reason"), [(101, "ok"), (110, "ok"), (0x70000000, "tcp_seq_over"), (100, "tcp_rst_below_maxack")])
def test_rst_before_assured_is_not_challenged_but_checked(tracker, seq, reason):
    """The server has acknowledged 101 and allows 8192 more."""
    conn = syn_recv(tracker)
    conn.orig("R", seq=seq)
    assert conn.state == ("CLOSE" if reason == "ok" else "SYN_RECV")
    syn_recv(tracker, port=(1, 2)).orig("R", seq=seq).is_("established" if reason == "ok" else "invalid", reason=reason)


def test_rst_with_number_0_before_established_is_not_below_anything(tracker):
    syn_recv(tracker).orig("R", seq=0).is_("established", reason="ok", l4state="CLOSE")
    syn_recv(tracker, port=(1, 2)).orig("R", seq=1).is_("invalid", reason="tcp_rst_below_maxack")
    established(tracker, port=(3, 4)).orig("R", seq=0).is_("invalid", reason="tcp_rst_below_maxack")


def test_rst_below_an_acknowledged_0(tracker):
    """Whether something was acknowledged is a flag: 0 is a number like any other."""
    conn = established(tracker, client_isn=0xFFFFFFFF)
    assert conn.side(1)["maxack"] == 0
    conn.orig("R", seq=0xFFFFFFFF).is_("invalid", reason="tcp_rst_below_maxack", l4state="ESTABLISHED")


def test_rst_that_answers_an_ignored_syn(tracker):
    conn = rebooted(tracker)
    conn.reply("RA", seq=0, ack=70001).is_("established", reason="ok", l4state="CLOSE")


def test_rst_of_the_ignored_syns_own_side_is_checked(tracker):
    conn = rebooted(tracker)
    conn.orig("RA", seq=70001 + 100000, ack=70001).is_("invalid", l4state="ESTABLISHED")


def test_rst_after_an_ignored_syn_does_not_mind_the_acknowledged_number(tracker):
    conn = rebooted(tracker)
    conn.reply("R", seq=400, ack=0).is_("established", reason="ok", l4state="CLOSE")


def test_rst_that_answers_an_ack_before_assured(tracker):
    """Picked up, so that nothing is known of what the client acknowledged; the RST's ack is the end of the last ACK."""
    for ack, reason in ((505, "ok"), (506, "tcp_liberal")):
        conn = conversation(tracker, port=(ack, 80))
        conn.orig("A", ack=500)
        conn.reply("A", ack=100, payload=b"hello")
        conn.reply("RA", seq=0x7F000000, ack=ack).is_("established", reason=reason)


def test_rst_that_answers_an_ack_once_assured_is_checked(tracker):
    conn = established(tracker)
    conn.orig("A").is_("established", has={"assured"})
    assert (conn.tcp["last_index"], conn.tcp["last_end"]) == (TcpIndex.TCP_ACK, 101)
    conn.reply("RA", seq=501 + 100000, ack=101).is_("invalid", reason="tcp_seq_over", l4state="ESTABLISHED")


# --- RST before any reply ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", Dir, ids=spec.DIRS)
def test_rst_before_any_reply_kills(make_tracker, d):
    tracker = make_tracker(events=frozenset({"destroy"}))
    conn = syn_sent(tracker)
    seen = conn.send(d, "RA" if d else "R", seq=0 if d else 101)
    seen.is_(seen.state, reason="tcp_rst_killed", conn=0, l4state="CLOSE", has={"dying"}, timeout=120)
    assert seen.state == ("established" if d else "new")
    assert tracker.count == 0
    (event,) = events(tracker)
    assert (event.kind, event.end, event.conn) == ("destroy", "reset", 0)
    assert "dying" in event.status
    assert event.record["conn"]["flow"]["packets"].tolist() == [2 - d, d]


def test_rst_kills_what_was_picked_up(tracker):
    conn = conversation(tracker)
    conn.orig("A", ack=500)
    conn.reply("R", seq=500).is_("established", reason="tcp_rst_killed")
    conn.orig("S").is_("new", conn=1)


def test_rst_that_answers_a_syn_is_checked_before_any_reply_was_seen(make_tracker):
    """So its sender is met and is in the last record. Its ack is the end remembered, which no SYN that was accepted has set."""
    tracker = make_tracker(events=frozenset({"destroy"}))
    conn = syn_sent(tracker)
    conn.reply("RA", seq=5, ack=0, win=77).is_("established", reason="tcp_rst_killed")
    (event,) = events(tracker)
    assert event.record["conn"]["tcp"]["side"][1].tolist() == (5, 82, 77, 101)


# --- two hopeless packets ------------------------------------------------------------------------------------------------------------


def test_hopeless_fins_from_both_sides_shorten_the_life(tracker):
    conn = established(tracker)
    conn.orig("FA", seq=0x70000000).is_("invalid", reason="tcp_seq_over")
    assert conn.left == 432000
    conn.reply("FA", seq=0x70000000).is_("invalid", reason="tcp_seq_over")
    assert conn.left == 300
    assert conn.state == "ESTABLISHED"


def test_hopeless_fins_from_one_side_do_not(tracker):
    conn = established(tracker)
    conn.orig("FA", seq=0x70000000)
    conn.orig("R", seq=0x70000000)
    assert conn.left == 432000
    assert conn.tcp["last_index"] == 4


def test_hopeless_data_does_not(tracker):
    conn = established(tracker)
    conn.orig("FA", seq=0x70000000)
    conn.reply("A", seq=0x70000000).is_("invalid")
    assert conn.left == 432000


def test_what_ends_soon_anyway_is_not_shortened(make_tracker):
    conn = established(make_tracker(timeouts={"tcp_timeout_established": 119, "tcp_timeout_unacknowledged": 10}))
    conn.orig("FA", seq=0x70000000)
    conn.reply("FA", seq=0x70000000).is_("invalid")
    assert conn.left == 119


def test_what_ends_sooner_than_unacknowledged_data_would_is_not_prolonged(make_tracker):
    conn = established(make_tracker(timeouts={"tcp_timeout_established": 200}))
    conn.orig("FA", seq=0x70000000)
    conn.reply("FA", seq=0x70000000).is_("invalid")
    assert conn.left == 200


def test_what_is_not_assured_is_not_shortened(make_tracker):
    conn = syn_recv(make_tracker(timeouts={"tcp_timeout_syn_recv": 5000, "tcp_timeout_max_retrans": 6000}))
    conn.orig("FA", seq=0x70000000).is_("invalid", reason="tcp_seq_over")
    conn.reply("FA", seq=0x70000000).is_("invalid", reason="tcp_seq_over")
    assert conn.left == 5000
    assert conn.tcp["last_index"] == 1
