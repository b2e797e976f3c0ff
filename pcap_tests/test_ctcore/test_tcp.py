"""TCP: every cell of the state table driven by traffic, every guard, timeouts, assured, what is counted.

The window check has its own file. The state before each packet is reached by real packets, too (scene).
"""

from __future__ import annotations

import itertools

import pytest

from ctcore import spec
from ctcore.types import Dir, TcpFlag
from datapath import craft
from pcap_tests import scene
from pcap_tests.scene import (
    STATES,
    Scene,
    close_wait,
    conversation,
    established,
    options,
    syn_recv,
    syn_sent,
)  # fmt: skip
from pcap_tests.test_ctcore import expected_tables

TABLE = spec.tcp()
SECONDS = {
    state: int(name) if name.isdigit() else spec.timeouts().get("tcp_timeout_" + name)
    for state, name in zip(TABLE.states, TABLE.timeouts, strict=True)
}
FLAGS = {"syn": "S", "synack": "SA", "fin": "FA", "ack": "A", "rst": "R", "none": ""}

# Cells that a guard overrules: what happens instead, and how it is called. A reset conversation was reset by its server.
GUARDED = {
    (Dir.ORIG, "syn", "SYN_SENT"): ("SYN_SENT", "tcp_syn_again"),
    (Dir.REPLY, "syn", "SYN_SENT"): ("SYN_SENT2", "tcp_syn_again"),
    (Dir.ORIG, "rst", "SYN_SENT"): ("CLOSE", "tcp_rst_killed"),
    (Dir.REPLY, "rst", "SYN_SENT"): ("CLOSE", "tcp_rst_killed"),
    (Dir.ORIG, "syn", "TIME_WAIT"): ("SYN_SENT", "tcp_reopened"),
    (Dir.REPLY, "syn", "TIME_WAIT"): ("SYN_SENT", "tcp_reopened"),
    (Dir.ORIG, "syn", "CLOSE"): ("CLOSE", "tcp_ignored"),
    (Dir.ORIG, "ack", "NONE"): ("ESTABLISHED", "tcp_picked_up"),
}


@pytest.mark.parametrize("state", TABLE.states)
@pytest.mark.parametrize("event", TABLE.events)
@pytest.mark.parametrize("d", Dir, ids=spec.DIRS)
def test_cell(tracker, d, event, state):
    conn = STATES[state](tracker)
    before = conn.left if conn.ordinal is not None else None
    seen = conn.send(d, FLAGS[event])
    # Without a connection there is no reply direction: whoever speaks first is the original one.
    d = Dir.ORIG if state == "NONE" else d
    cell = expected_tables.TCP[d, event, state]
    if event == "none":
        seen.is_("invalid", reason="tcp_flags")
    elif cell == "invalid":
        refusal, kept = ("tcp_not_opening", None) if state == "NONE" else ("tcp_state", state)
        seen.is_("invalid", reason=refusal, l4state=kept, conn=None)
    elif cell == "ignore":
        seen.is_(seen.state, verdict="accept", reason="tcp_ignored", l4state=state, timeout=before)
    else:
        after, reason = GUARDED.get((d, event, state), (cell, "ok"))
        seen.is_(seen.state, verdict="accept", reason=reason, l4state=after)
        if reason == "ok" and after != "ESTABLISHED":
            assert seen.timeout == (10 if event == "rst" else SECONDS[after])


# --- flags ---------------------------------------------------------------------------------------------------------------------------

SENSIBLE = {"S", "SU", "SA", "R", "RA", "FA", "FAU", "A", "AU"}
COMBINATIONS = ["".join(letter for letter, on in zip("FSRAU", bits, strict=True) if on) for bits in itertools.product((0, 1), repeat=5)]


@pytest.mark.parametrize("flags", COMBINATIONS)
def test_flags_some_stack_sends(tracker, flags):
    conn = established(tracker)
    seen = conn.orig(flags)
    assert (seen.reason == "tcp_flags") == (set(flags) not in map(set, SENSIBLE))


@pytest.mark.parametrize("noise", ["P", "E", "C", "PEC"])
def test_psh_ece_cwr_say_nothing(tracker, noise):
    syn_sent(tracker)
    conn = conversation(tracker, port=(5, 6))
    conn.orig("S" + noise).is_("new", reason="ok", l4state="SYN_SENT")
    conn.orig(noise).is_("invalid", reason="tcp_flags")


def test_bad_flags_leave_the_connection_alone(tracker):
    conn = established(tracker)
    before = conn.entry
    conn.wait(7).orig("SR").is_("invalid", reason="tcp_flags", l4state="ESTABLISHED", conn=None, dir=None, timeout=None, status=set())
    assert conn.tcp == before["tcp"]
    assert conn.left == 432000 - 7


# --- the first packet ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", ["SA", "FA", "R", "RA"])
def test_what_opens_nothing(tracker, flags):
    conversation(tracker).orig(flags).is_("invalid", reason="tcp_not_opening", l4state=None, conn=None)
    assert tracker.count == 0


def test_syn_opens(tracker):
    conn = conversation(tracker, client_isn=1000)
    conn.orig("S", win=500, options=options(wscale=7, sack_perm=True)).is_(
        "new", reason="ok", conn=0, dir="original", l4state="SYN_SENT", timeout=120, status={"confirmed"}
    )
    flags = TcpFlag.TF_WINDOW_SCALE | TcpFlag.TF_SACK_PERM
    assert conn.side(0) == {"end": 1001, "maxend": 1001, "maxwin": 500, "maxack": 0, "scale": 7, "flags": flags}


def test_syn_with_window_0(tracker):
    conn = syn_sent(tracker, syn={"win": 0})
    assert conn.side(0)["maxwin"] == 1


def test_ack_is_picked_up(tracker):
    conn = conversation(tracker, client_isn=1000)
    conn.orig("A", ack=77, win=500, payload=b"x" * 10).is_("new", reason="tcp_picked_up", l4state="ESTABLISHED", timeout=300)
    liberal = TcpFlag.TF_SACK_PERM | TcpFlag.TF_BE_LIBERAL
    assert conn.side(0) == {"end": 1010, "maxend": 1510, "maxwin": 500, "maxack": 0, "scale": 0, "flags": liberal}
    assert conn.side(1)["flags"] == liberal


def test_ack_is_not_picked_up_if_not_loose(make_tracker):
    tracker = make_tracker(tcp_loose=False)
    conversation(tracker).orig("A").is_("invalid", reason="tcp_not_loose", conn=None)
    conversation(tracker).orig("FA").is_("invalid", reason="tcp_not_opening")
    assert tracker.count == 0


def test_an_invalid_packet_keeps_its_connection_in_the_record(tracker):
    conn = syn_recv(tracker)
    conn.reply("S").is_("invalid", reason="tcp_state", conn=None, dir=None, l4state="SYN_RECV")


# --- timeouts: the first that applies ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [state for state in TABLE.states if state != "NONE"])
def test_timeout_of_each_state(tracker, state):
    assert STATES[state](tracker).left == SECONDS[state]


def test_timeouts_are_settings(make_tracker):
    conn = established(make_tracker(timeouts={"tcp_timeout_established": 7000, "tcp_timeout_fin_wait": 5}))
    assert conn.left == 7000
    conn.orig("FA").is_("established", timeout=5)


def test_syn_again_does_not_refresh(tracker):
    conn = syn_sent(tracker)
    conn.wait(3).orig("S", seq=100).is_("new", reason="tcp_syn_again", l4state="SYN_SENT", timeout=117)
    assert conn.entry["flow"]["packets"].tolist() == [1, 0]


def test_three_retransmissions(tracker):
    conn = established(tracker)
    for expected in (432000, 432000, 300):
        conn.orig("A", seq=101, ack=501).is_("established", timeout=expected)
    conn.orig("A", seq=101, ack=501, win=5000).is_("established", timeout=432000)
    assert conn.tcp["retrans"] == 0


def test_retransmissions_of_a_state_that_is_shorter_anyway(tracker):
    conn = close_wait(tracker)
    for _ in range(5):
        conn.orig("A", seq=102, ack=501)
    assert conn.left == 60


@pytest.mark.parametrize("limit", [0, 1, 2])
def test_the_number_of_retransmissions_is_a_setting(make_tracker, limit):
    conn = established(make_tracker(tcp_max_retrans=limit))
    for n in range(1, 5):
        conn.orig("A", seq=101, ack=501).is_("established", timeout=300 if n >= limit else 432000)


def test_unacknowledged_data(tracker):
    conn = established(tracker)
    conn.orig("A", payload=b"x").is_("established", timeout=300)
    conn.reply("A").is_("established", timeout=432000)


def test_window_0(tracker):
    conn = established(tracker)
    conn.orig("A", win=0).is_("established", timeout=300)
    conn.orig("A", win=1).is_("established", timeout=432000)


def test_established_before_a_reply_lives_300_s_at_most(make_tracker):
    tracker = make_tracker(timeouts={"tcp_timeout_established": 200})
    conversation(tracker).orig("A").is_("new", timeout=200)
    conversation(make_tracker(), port=(1, 2)).orig("A").is_("new", timeout=300)


def test_the_limit_before_a_reply_is_the_timeout_of_unacknowledged_data(make_tracker):
    tracker = make_tracker(timeouts={"tcp_timeout_unacknowledged": 77})
    conn = conversation(tracker)
    conn.orig("A", ack=500).is_("new", timeout=77)
    conn.reply("A", ack=100).is_("established", timeout=77)  # what it answers is judged before it
    conn.orig("A").is_("established", timeout=432000)


# --- assured -------------------------------------------------------------------------------------------------------------------------


def test_assured_on_the_third_packet(tracker):
    conn = syn_recv(tracker)
    assert conn.status == {"confirmed", "seen-reply"}
    conn.orig("A").is_("established", status={"confirmed", "seen-reply", "assured"})


def test_fin_instead_of_the_third_ack_is_never_assured(tracker):
    conn = syn_recv(tracker)
    conn.orig("FA").is_("established", l4state="FIN_WAIT", lacks={"assured"})
    conn.reply("A").is_("established", l4state="CLOSE_WAIT", lacks={"assured"})


@pytest.mark.parametrize("d", Dir, ids=spec.DIRS)
def test_picked_up_is_assured_by_the_packet_after_the_first_reply(tracker, d):
    conn = conversation(tracker)
    conn.orig("A", ack=500).is_("new", lacks={"assured"})
    conn.orig("A", ack=500).is_("new", lacks={"assured"})
    conn.reply("A", ack=100).is_("established", has={"seen-reply"}, lacks={"assured"})
    conn.send(d, "A").is_("established", has={"assured"})


# --- accounting ----------------------------------------------------------------------------------------------------------------------


def counters(conn):
    flow = conn.entry["flow"]
    return flow["packets"].tolist(), flow["bytes"].tolist()


def test_packets_and_ip_bytes_of_each_direction(tracker):
    conn = established(tracker)
    conn.reply("A", payload=b"x" * 100)
    assert counters(conn) == ([2, 2], [80, 180])


def test_padding_is_not_counted(tracker):
    conn = conversation(tracker)
    conn.scene.send(craft.tcp(scene.CLIENT, scene.SERVER, 1, 2, "S").ljust(60, b"\0"))
    conn.ordinal = 0
    assert counters(conn) == ([1, 0], [40, 0])


def test_invalid_packets_are_not_counted(tracker):
    conn = established(tracker)
    conn.orig("A", seq=0x7FFFFFFF).is_("invalid")
    assert counters(conn) == ([2, 1], [80, 40])


def test_no_accounting(make_tracker):
    assert counters(established(make_tracker(acct=False))) == ([0, 0], [0, 0])


# --- headers -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "reason"), [({"doff": 4}, "tcp_doff"), ({"doff": 15}, "tcp_doff"), ({"l4_checksum": 1}, "tcp_checksum")], ids=lambda x: str(x)
)
def test_a_bad_header_keeps_its_connection_in_the_record(tracker, fault, reason):
    conn = established(tracker)
    conn.orig("A", **fault).is_("invalid", reason=reason, l4state="ESTABLISHED", conn=None)
    assert conn.left == 432000


def test_checksums_may_be_left_alone(tracker):
    conn = conversation(tracker, scene=Scene(tracker, checksum=False))
    conn.orig("S", l4_checksum=1).is_("new", reason="ok")
