"""TCP's window check: each inequality at its bound, what a packet teaches, retransmissions, liberal tracking.

If nothing else is said, both ends offer 8192 bytes without scaling; after the handshake (client_isn=100, server_isn=500) this is known:
    client   end 101   maxend 8293   maxwin 8192        server   end 501   maxend 8693   maxwin 8192
"""

from __future__ import annotations

import pytest

from ctcore.types import Dir, TcpFlag
from pcap_tests.scene import conversation, established, options, sack, syn_recv, syn_sent, syn_sent2

SCALE, SACK_PERM, LIBERAL = TcpFlag.TF_WINDOW_SCALE, TcpFlag.TF_SACK_PERM, TcpFlag.TF_BE_LIBERAL
UNACKED, MAXACK_SET = TcpFlag.TF_DATA_UNACKED, TcpFlag.TF_MAXACK_SET


def with_options(tracker, *, client: dict, server: dict, **ends):
    """An open connection whose SYN and SYN/ACK offered something."""
    return established(tracker, syn={"options": options(**client)}, synack={"options": options(**server)}, **ends)


def with_sack(tracker):
    return with_options(tracker, client={"sack_perm": True}, server={"sack_perm": True})


def test_after_the_handshake(tracker):
    conn = established(tracker)
    assert conn.side(0) == {"end": 101, "maxend": 8293, "maxwin": 8192, "maxack": 501, "scale": 0, "flags": MAXACK_SET}
    assert conn.side(1) == {"end": 501, "maxend": 8693, "maxwin": 8192, "maxack": 101, "scale": 0, "flags": MAXACK_SET}


# --- the inequalities ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seq", "reason"),
    [(8293, "ok"), (8294, "tcp_overshoot"), (8293 + 8191, "tcp_overshoot"), (8293 + 8192, "tcp_seq_over"), (101 + (1 << 31) - 1, "tcp_seq_over")],
)
def test_1_seq_is_at_most_what_the_receiver_allowed(tracker, seq, reason):
    """A little more, no more than the receiver's window, is tolerated but ignored."""
    conn = established(tracker)
    conn.orig("A", seq=seq).is_("invalid" if reason == "tcp_seq_over" else "established", reason=reason, l4state="ESTABLISHED")


@pytest.mark.parametrize(
    ("ack", "reason"), [(501, "tcp_overshoot"), (502, "tcp_seq_over"), (501 - 66000, "tcp_overshoot"), (501 - 66001, "tcp_seq_over")]
)
def test_1_overshoot_needs_a_fitting_ack(tracker, ack, reason):
    assert established(tracker).orig("A", seq=8294, ack=ack & 0xFFFFFFFF).reason == reason


def test_1_overshoot_needs_a_receiver_that_has_spoken(tracker):
    syn_sent(tracker).orig("R", seq=102).is_("invalid", reason="tcp_seq_over", l4state="SYN_SENT")


def test_1_overshoot_moves_the_senders_end_even_backwards(tracker):
    conn = established(tracker)
    conn.orig("A", seq=16000)
    assert (conn.side(0)["end"], conn.side(0)["flags"]) == (16000, MAXACK_SET | UNACKED)
    conn.orig("A", seq=8294).is_("established", reason="tcp_overshoot")
    assert conn.side(0)["end"] == 8294


@pytest.mark.parametrize(("end", "reason"), [(101 - 8192, "ok"), (101 - 8193, "tcp_seq_under")])
@pytest.mark.parametrize("length", [0, 10])
def test_2_end_is_at_most_a_window_behind(tracker, end, length, reason):
    """Retransmissions older than that are ignored, not invalid."""
    conn = established(tracker)
    conn.orig("A", seq=(end - length) & 0xFFFFFFFF, payload=bytes(length)).is_("established", reason=reason)


@pytest.mark.parametrize(("ack", "reason"), [(501, "ok"), (502, "tcp_ack_over")])
def test_3_ack_is_at_most_what_was_sent(tracker, ack, reason):
    established(tracker).orig("A", ack=ack).is_("established" if reason == "ok" else "invalid", reason=reason, l4state="ESTABLISHED")


@pytest.mark.parametrize(("ack", "reason"), [(501 - 66000, "ok"), (501 - 66001, "tcp_ack_under")])
def test_4_ack_is_at_most_66000_behind(tracker, ack, reason):
    established(tracker).orig("A", ack=ack & 0xFFFFFFFF).is_("established", reason=reason)


@pytest.mark.parametrize(("behind", "reason"), [(65535 << 2, "ok"), ((65535 << 2) + 1, "tcp_ack_under")])
def test_4_ack_may_be_a_large_window_behind(tracker, behind, reason):
    conn = with_options(tracker, client={"wscale": 2}, server={"wscale": 0})
    conn.orig("A", win=65535)
    conn.orig("A", ack=(501 - behind) & 0xFFFFFFFF).is_("established", reason=reason)


def test_across_the_end_of_the_number_circle(tracker):
    conn = established(tracker, client_isn=0xFFFFFFF0, server_isn=0xFFFFFFFF)
    conn.orig("A", payload=bytes(100)).is_("established", reason="ok")
    assert conn.side(0)["end"] == (0xFFFFFFF1 + 100) & 0xFFFFFFFF
    conn.reply("A", payload=bytes(10)).is_("established", reason="ok")
    conn.orig("A", seq=0x80000000).is_("invalid")


@pytest.mark.parametrize("packet", [{"seq": 8294}, {"seq": 101 - 8193}, {"ack": 501 - 66001}])
def test_what_is_ignored_changes_nothing(tracker, packet):
    conn = established(tracker)
    before = conn.entry
    conn.wait(60).orig("A", **{name: value & 0xFFFFFFFF for name, value in packet.items()}).is_("established", timeout=432000 - 60)
    after = conn.entry
    assert after["flow"]["packets"].tolist() == before["flow"]["packets"].tolist()
    for field in ("last_index", "last_dir", "last_seq", "last_ack", "last_end", "last_win", "retrans", "state"):
        assert after["tcp"][field] == before["tcp"][field]


# --- liberal ---------------------------------------------------------------------------------------------------------------------------

OUTSIDE = [{"seq": 0x70000000}, {"seq": 101 - 8193}, {"ack": 502}, {"ack": 501 - 66001}]


@pytest.mark.parametrize("packet", OUTSIDE)
def test_liberal_accepts_but_learns_nothing(make_tracker, packet):
    conn = established(make_tracker(tcp_liberal=True))
    before = [conn.side(d) for d in Dir]
    conn.wait(9).orig("A", win=60000, **{name: value & 0xFFFFFFFF for name, value in packet.items()}).is_(
        "established", reason="tcp_liberal", timeout=432000
    )
    assert [conn.side(d) for d in Dir] == before
    assert conn.entry["flow"]["packets"][0] == 3


def test_liberal_overshoot_is_noted_all_the_same(make_tracker):
    conn = established(make_tracker(tcp_liberal=True))
    conn.orig("A", seq=8294).is_("established", reason="tcp_liberal", timeout=300)
    assert (conn.side(0)["end"], conn.side(0)["flags"]) == (8294, MAXACK_SET | UNACKED)


def test_liberal_packets_move_the_state(make_tracker):
    conn = established(make_tracker(tcp_liberal=True))
    conn.orig("FA", seq=0x70000000).is_("established", reason="tcp_liberal", l4state="FIN_WAIT", timeout=120)


def test_both_ends_of_what_was_picked_up_are_liberal(tracker):
    conn = conversation(tracker)
    conn.orig("A", ack=500)
    conn.reply("A", ack=100)
    conn.orig("A", seq=0x70000000).is_("established", reason="tcp_liberal")
    conn.reply("A", seq=0x70000000, ack=100).is_("established", reason="tcp_liberal")


# --- the first packet of a side --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("client", "server", "scales"), [(7, 3, [7, 3]), (7, None, [0, 0]), (None, 3, [0, 0]), (0, 0, [0, 0])])
def test_scaling_needs_both_offers(tracker, client, server, scales):
    conn = with_options(tracker, client={"wscale": client}, server={"wscale": server})
    assert [conn.side(d)["scale"] for d in Dir] == scales
    assert [bool(conn.side(d)["flags"] & SCALE) for d in Dir] == [client is not None, server is not None]


def test_synack_starts_its_side(tracker):
    conn = syn_recv(tracker, synack={"win": 0, "options": options(sack_perm=True)})
    assert conn.side(1) == {"end": 501, "maxend": 501, "maxwin": 1, "maxack": 101, "scale": 0, "flags": SACK_PERM | MAXACK_SET}


def test_syn_of_the_reply_side_teaches_nothing_of_the_other(tracker):
    conn = syn_sent(tracker)
    before = conn.side(0)
    conn.reply("S", win=77)
    assert conn.side(0) == before
    assert conn.side(1) == {"end": 501, "maxend": 501, "maxwin": 77, "maxack": 0, "scale": 0, "flags": 0}


def test_joining_in_mid_stream(tracker):
    conn = conversation(tracker)
    conn.orig("A", ack=500)
    conn.reply("A", seq=500, ack=100, win=300, payload=bytes(10)).is_("established", reason="ok")
    assert conn.side(1) == {"end": 510, "maxend": 810, "maxwin": 300, "maxack": 100, "scale": 0, "flags": SACK_PERM | LIBERAL | MAXACK_SET}


def test_joining_with_window_0(tracker):
    conn = conversation(tracker)
    conn.orig("A", ack=500)
    conn.reply("A", seq=500, ack=100, win=0)
    assert (conn.side(1)["maxwin"], conn.side(1)["maxend"]) == (1, 501)


@pytest.mark.parametrize(("ack", "reason"), [(100, "ok"), (101, "ok"), (102, "tcp_liberal")])
def test_joining_with_the_answer_to_a_keepalive(tracker, ack, reason):
    """It acknowledges one byte more than was seen."""
    conn = conversation(tracker)
    conn.orig("A", ack=500)
    conn.reply("A", seq=500, ack=ack).is_("established", reason=reason)
    assert conn.side(0)["end"] == (101 if ack == 101 else 100)


@pytest.mark.parametrize(("isn", "end"), [(200, 201), (100, 101), (50, 101)])
def test_syn_again_with_a_higher_number_starts_over(tracker, isn, end):
    conn = syn_sent(tracker, syn={"options": options(wscale=7)})
    conn.orig("S", seq=isn, options=options(wscale=4)).is_("new", reason="tcp_syn_again")
    assert conn.side(0)["end"] == end
    assert conn.side(0)["scale"] == (4 if isn == 200 else 7)


def test_syn_again_with_a_higher_number_is_checked_and_learnt_from_in_the_original_direction(tracker):
    """Its window is what the server may send, as of any packet; only a reply's bare SYN ends the check before that."""
    conn = syn_sent(tracker, syn={"win": 100})
    assert conn.side(1)["maxend"] == 100
    conn.orig("S", seq=200, win=9000).is_("new", reason="tcp_syn_again")
    assert conn.side(1)["maxend"] == 9000


def test_synack_again_with_a_higher_number_starts_over(tracker):
    conn = syn_sent2(tracker)
    conn.orig("SA", seq=100, ack=501, options=options(wscale=1))
    conn.orig("SA", seq=300, ack=501, options=options(wscale=9)).is_("established", l4state="SYN_RECV")
    assert (conn.side(0)["end"], conn.side(0)["scale"]) == (301, 9)


# --- numbers that stand for something else ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("flags", "ack", "reason"), [("R", 77, "ok"), ("RA", 0, "ok"), ("RA", 77, "tcp_ack_under")])
def test_rst_that_acknowledges_nothing(tracker, flags, ack, reason):
    conn = established(tracker, client_isn=0x40000000)
    conn.reply(flags, seq=501, ack=ack).is_("established", reason=reason)


@pytest.mark.parametrize(("seq", "state", "reason"), [(0, "new", "tcp_rst_killed"), (1, "invalid", "tcp_seq_over")])
def test_rst_with_number_0_after_a_syn(tracker, seq, state, reason):
    syn_sent(tracker, client_isn=0xC0000000).orig("R", seq=seq).is_(state, reason=reason)


def test_rst_with_number_0_after_a_syn_ends_where_its_sender_is(tracker):
    """Not at its own 0, which lies after the client's numbers: then it would move their end."""
    conn = syn_sent(tracker, client_isn=0xF0000000)
    conn.reply("A", seq=40, ack=7777).is_("established", reason="tcp_ignored", has={"seen-reply"})
    conn.orig("R", seq=0).is_("established", reason="ok", l4state="CLOSE")
    assert (conn.side(0)["end"], conn.side(0)["flags"]) == (0xF0000001, 0)


# --- what a packet teaches -------------------------------------------------------------------------------------------------------------


def test_windows_are_scaled(tracker):
    conn = with_options(tracker, client={"wscale": 7}, server={"wscale": 2})
    conn.orig("A", win=100)
    assert (conn.side(0)["maxwin"], conn.side(1)["maxend"]) == (8192 << 7, 501 + (8192 << 7))
    conn.reply("A", win=60000)
    assert (conn.side(1)["maxwin"], conn.side(0)["maxend"]) == (60000 << 2, 101 + (60000 << 2))


def test_the_window_of_a_syn_is_not(tracker):
    conn = syn_recv(tracker, syn={"options": options(wscale=7)}, synack={"options": options(wscale=7)})
    assert [conn.side(d)["maxwin"] for d in Dir] == [8192, 8192]
    assert conn.side(0)["maxend"] == 101 + 8192


def test_the_largest_window_stays(tracker):
    conn = established(tracker)
    conn.orig("A", win=9000)
    conn.orig("A", win=100)
    assert conn.side(0)["maxwin"] == 9000


def test_sack_widens_the_window(tracker):
    conn = with_sack(tracker)
    conn.reply("A", payload=bytes(1000))
    conn.orig("A", ack=501, options=sack((1001, 1501)))
    assert conn.side(0)["maxwin"] == 8192 + 1000


def test_new_data_is_unacknowledged_until_all_of_it_is_acknowledged(tracker):
    conn = established(tracker)
    conn.orig("A", payload=bytes(100))
    assert (conn.side(0)["end"], conn.side(0)["flags"]) == (201, MAXACK_SET | UNACKED)
    conn.reply("A", ack=200)
    assert conn.side(0)["flags"] & UNACKED
    conn.reply("A", ack=201)
    assert not conn.side(0)["flags"] & UNACKED


def test_fin_counts_as_one(tracker):
    conn = established(tracker)
    conn.orig("FA", payload=bytes(10))
    assert conn.side(0)["end"] == 112


def test_old_data_moves_nothing(tracker):
    conn = established(tracker)
    conn.orig("A", payload=bytes(100))
    conn.orig("A", seq=101, payload=bytes(50)).is_("established", reason="ok")
    assert conn.side(0)["end"] == 201


def test_the_highest_ack_stays(tracker):
    conn = established(tracker)
    conn.reply("A", payload=bytes(100))
    conn.orig("A", ack=601)
    conn.orig("A", ack=550).is_("established", reason="ok")
    assert conn.side(0)["maxack"] == 601


def test_the_first_ack_counts_even_if_it_is_before_0(tracker):
    conn = syn_recv(tracker, client_isn=0xF0000000)
    assert (conn.side(1)["maxack"], conn.side(1)["flags"]) == (0xF0000001, MAXACK_SET)


def test_an_acknowledged_0_is_the_highest_ack_like_any_other(tracker):
    """Whether something was acknowledged is a flag."""
    conn = syn_recv(tracker, client_isn=0xFFFFFFFF)
    conn.reply("A", ack=0xFFFFFFF0).is_("established", reason="ok")
    assert (conn.side(1)["maxack"], conn.side(1)["flags"]) == (0, MAXACK_SET)


def test_data_beyond_what_was_allowed_widens_the_receivers_window(tracker):
    conn = established(tracker)
    conn.orig("A", seq=8293, payload=bytes(100)).is_("established", reason="ok")
    assert conn.side(1)["maxwin"] == 8192 + 100
    assert conn.side(0)["maxend"] == 8293


def test_ack_and_window_allow_more(tracker):
    conn = established(tracker)
    conn.reply("A", payload=bytes(100))
    conn.orig("A", ack=601, win=9000)
    assert conn.side(1)["maxend"] == 9601
    conn.orig("A", ack=601, win=10)
    assert conn.side(1)["maxend"] == 9601


def test_a_closed_window_allows_one_byte(tracker):
    """The probe of a zero window (RFC 9293 3.8.6.1)."""
    conn = established(tracker)
    for _ in range(8):
        conn.reply("A", payload=bytes(1024))
    conn.orig("A", ack=8693, win=0)
    assert conn.side(1)["maxend"] == 8694


# --- retransmissions -------------------------------------------------------------------------------------------------------------------


def test_the_same_ack_again_is_counted(tracker):
    conn = established(tracker)
    for n in range(1, 4):
        conn.orig("A", seq=101, ack=501)
        assert conn.tcp["retrans"] == n


@pytest.mark.parametrize("difference", [{"win": 8191}, {"ack": 500}, {"seq": 100}, {"payload": b"x"}])
def test_another_ack_starts_the_count_anew(tracker, difference):
    conn = established(tracker)
    conn.orig("A", seq=101, ack=501)
    conn.orig("A", **{"seq": 101, "ack": 501, **difference})
    assert conn.tcp["retrans"] == 0


def test_the_other_sides_ack_starts_the_count_anew(tracker):
    conn = established(tracker)
    conn.orig("A", seq=101, ack=501)
    conn.reply("A")
    conn.orig("A", seq=101, ack=501)
    assert conn.tcp["retrans"] == 0


def test_only_acks_are_counted(tracker):
    conn = established(tracker)
    conn.orig("A", seq=101, ack=501)
    for _ in range(3):
        conn.orig("FA", seq=101, ack=501, win=77).is_("established", reason="ok")
    assert (conn.tcp["retrans"], conn.tcp["last_end"], conn.tcp["last_win"]) == (1, 101, 8192)


@pytest.mark.parametrize("rst", [{"seq": 501}, {"seq": 510}], ids=["believed", "challenged"])
def test_rst_is_not_remembered_as_an_ack(tracker, rst):
    conn = established(tracker)
    for _ in range(2):
        conn.reply("RA", ack=101, win=77, **rst)
    assert (conn.tcp["retrans"], conn.tcp["last_seq"], conn.tcp["last_win"]) == (0, 101, 8192)


def test_syn_and_synack_are_not_remembered_as_acks(tracker):
    conn = syn_recv(tracker)
    assert (conn.tcp["last_seq"], conn.tcp["last_ack"], conn.tcp["last_end"], conn.tcp["last_win"]) == (0, 0, 0, 0)


def test_the_count_has_8_bits(tracker):
    conn = established(tracker)
    for _ in range(256):
        conn.orig("A", seq=101, ack=501)
    assert conn.tcp["retrans"] == 0


def test_the_window_remembered_is_as_sent(tracker):
    conn = with_options(tracker, client={"wscale": 7}, server={"wscale": 7})
    conn.orig("A", win=33)
    assert conn.tcp["last_win"] == 33
