"""What explain says is what replay decided, stage by stage, with the right numbers."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctcore.config import Config
from ctcore.errors import CtmirrorError
from ctcore.model.conn import MASK32
from ctcore.model.protocols import ask
from ctcore.model.tcp_window import after, before
from ctcore.reasons import NAMES
from ctcore.types import Reason, State
from datapath import app, dissect, explain, narrate, stages
from datapath.craft import eth, gre, icmp, icmp_error, ipv4, ipv6, mpls, pppoe, sctp, sctp_chunk, sctp_init, tcp, udp, udp_segment
from datapath.window import near, window_of
from pcap_tests import stories
from pcap_tests.capture_files import pcap
from pcap_tests.stories import CLIENT, MS, SERVER

HANDSHAKE = stories.closed_by_client()[:3]


def lines_of(tmp_path, story, number, **settings):
    """An explained packet as a list of (label, text)."""
    capture = stories.write(tmp_path / "story.pcap", story)
    return list(narrate.packet_lines(explain.explain_packet([capture], number, app.Tracking(Config(**settings)))))


def said(lines, label):
    """The text of the first line with a label, and of those under it."""
    at = next(i for i, (name, _) in enumerate(lines) if name == label)
    texts = [lines[at][1]]
    for name, text in lines[at + 1 :]:
        if name:
            break
        texts.append(text)
    return texts


@pytest.fixture(scope="module")
def office(tmp_path_factory):
    return stories.write(tmp_path_factory.mktemp("explain") / "office.pcap", stories.office())


@pytest.mark.parametrize("number", range(len(stories.office())))
def test_explain_tells_what_replay_decided(office, tmp_path, number):
    app.replay([office], app.Tracking(), app.Outputs(packets=str(tmp_path / "p.jsonl")))
    record = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()][number]
    lines = list(narrate.packet_lines(explain.explain_packet([office], number, app.Tracking())))
    result = said(lines, "result")[0]
    assert result.startswith(record["state"])
    assert result.endswith(f"verdict {record['verdict']}")
    assert said(lines, "reason")[0].startswith(f"{record['reason']}: ")
    if record["timeout"] is not None:
        assert said(lines, "timeout")[0].startswith(f"{record['timeout']:g} s left")
    if record["conn"] is not None:
        assert f"conn {record['conn']}" in result


def test_the_third_packet_of_a_handshake(tmp_path):
    lines = lines_of(tmp_path, HANDSHAKE, 2)
    assert said(lines, "ip") == ["IPv4 10.0.0.1 > 10.0.0.2, 40 bytes, TTL 64, carries tcp"]
    assert said(lines, "tcp") == ["40000 > 80, ACK, seq 101, ack 501, win 8192, 0 bytes of payload"]
    assert said(lines, "lookup")[0].startswith("original direction of conn 0: 10.0.0.1 > 10.0.0.2 sport 40000 dport 80, SYN_RECV, ")
    assert said(lines, "table") == ["SYN_RECV, original ack -> ESTABLISHED"]
    window = said(lines, "window")
    assert window[0] == "seq 101, end 101, ack 501"
    assert window[1] == "sender   (original): end 101, maxend 8293, maxwin 8192, scale 0"
    assert [line.split()[-1] for line in window[3:]] == ["holds"] * 4
    assert said(lines, "timeout") == ["432000 s left, from tcp_timeout_established"]
    assert said(lines, "changed")[:2] == ["status: now assured", "state: SYN_RECV -> ESTABLISHED"]


def test_a_contested_cell_says_why(tmp_path):
    lines = lines_of(tmp_path, [*HANDSHAKE, (9 * MS, tcp(CLIENT, SERVER, 40000, 80, "S", seq=900))], 3)
    assert said(lines, "table")[0] == "ESTABLISHED, original syn -> ignore"
    assert "a new life we do not see" in said(lines, "table")[1]
    assert said(lines, "timeout")[0].endswith("not renewed by this packet")


def test_the_time_left_is_that_when_the_packet_came(tmp_path):
    story = [*HANDSHAKE, (2002 * MS, tcp(CLIENT, SERVER, 40000, 80, "S", seq=900))]
    lines = lines_of(tmp_path, story, 3)
    assert said(lines, "lookup")[0].endswith(", 431998 s left")
    assert said(lines, "timeout") == ["431998 s left, not renewed by this packet"]


@pytest.mark.parametrize(("story", "reason"), [
    ([(0, tcp(CLIENT, SERVER, 1, 2, "S", seq=9)), (0, tcp(CLIENT, SERVER, 1, 2, "S", seq=9))], "tcp_syn_again"),
    ([(0, tcp(CLIENT, SERVER, 1, 2, "S", seq=9)), (0, tcp(SERVER, CLIENT, 2, 1, "A", seq=9, ack=77))], "tcp_ignored"),
    ([*HANDSHAKE, (2 * MS, tcp(SERVER, CLIENT, 80, 40000, "SA", seq=500, ack=101))], "tcp_ignored"),
])  # fmt: skip
def test_what_renews_nothing_is_not_said_to_renew_even_if_no_time_has_passed(tmp_path, story, reason):
    lines = lines_of(tmp_path, story, len(story) - 1)
    assert said(lines, "reason")[0].startswith(reason)
    assert said(lines, "timeout")[0].endswith("s left, not renewed by this packet")


@pytest.mark.parametrize("direction", ["original", "reply"])
def test_an_error_shows_the_packet_it_quotes(tmp_path, direction):
    question, answer = (data for _, data in stories.question())
    about, to = (question, CLIENT) if direction == "original" else (answer, SERVER)
    story = [(0, question), (MS, answer), (1000 * MS, icmp_error(stories.ROUTER, to, 3, 1, about))]
    lines = lines_of(tmp_path, story, 2)
    ports = "10.0.0.1 > 10.0.0.2 sport 5353 dport 53" if direction == "original" else "10.0.0.2 > 10.0.0.1 sport 53 dport 5353"
    assert said(lines, "quoted") == [f"udp {ports}"]
    assert said(lines, "lookup")[0].startswith(f"the quoted packet went in the {direction} direction of conn 0: ")
    assert said(lines, "lookup")[0].endswith(", 29 s left")
    assert said(lines, "timeout")[0].endswith("not renewed by this packet")


def test_an_error_about_nothing_known_says_so(tmp_path):
    lines = lines_of(tmp_path, [(0, icmp_error(stories.ROUTER, CLIENT, 3, 1, stories.question()[0][1]))], 0)
    assert said(lines, "quoted") == ["udp 10.0.0.1 > 10.0.0.2 sport 5353 dport 53"]
    assert said(lines, "lookup") == ["no connection has the quoted packet's tuple"]
    assert said(lines, "reason")[0].startswith("icmp_no_conn")


@pytest.mark.parametrize(
    ("seq", "ack", "reason", "bound"),
    [
        (101 + 70000, 501, "tcp_seq_over", "I "),
        (101, 502, "tcp_ack_over", "III"),
        (101 - 9000, 501, "tcp_seq_under", "II "),
        (101, 501 - 67000, "tcp_ack_under", "IV "),
    ],
)
def test_the_bound_that_fails_is_the_reason(tmp_path, seq, ack, reason, bound):
    lines = lines_of(tmp_path, [*HANDSHAKE, (9 * MS, tcp(CLIENT, SERVER, 40000, 80, "A", seq=seq, ack=ack))], 3)
    assert said(lines, "reason")[0].startswith(reason)
    failing = [line for line in said(lines, "window") if "does not hold" in line]
    assert failing[0].startswith(bound)


@pytest.mark.parametrize(("story", "settings", "why"), [
    ([*HANDSHAKE, (9 * MS, tcp(SERVER, CLIENT, 80, 40000, "A", seq=501, ack=90_000_000))], {"tcp_liberal": True}, "--tcp-liberal 1"),
    ([(0, tcp(CLIENT, SERVER, 40000, 80, "A", seq=7, ack=9)), (MS, tcp(SERVER, CLIENT, 80, 40000, "A", seq=9, ack=7)),
      (2 * MS, tcp(SERVER, CLIENT, 80, 40000, "A", seq=9, ack=90_000_000))], {}, "picked up in mid-stream"),
])  # fmt: skip
def test_what_is_tracked_liberally_is_not_called_invalid(tmp_path, story, settings, why):
    lines = lines_of(tmp_path, story, len(story) - 1, **settings)
    assert said(lines, "reason")[0].startswith("tcp_liberal")
    window = said(lines, "window")
    assert [line for line in window if "does not hold" in line] == [next(line for line in window if line.endswith("does not hold: ACK over"))]
    assert window[-1] == f"tracked liberally ({why}): accepted all the same"


# Which of I, II, III, IV fails, by the reason: the first in the order in which they are applied (I, III, II, IV).
FAILING = {"tcp_seq_over": "I", "tcp_overshoot": "I", "tcp_ack_over": "III", "tcp_seq_under": "II", "tcp_ack_under": "IV"}
around = st.sampled_from([-67000, -66000, -8193, -8192, -1, 0, 1, 8191, 8192, 8193, 16384, 70000, 1 << 31])


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(["A", "PA", "FA", "R", "RA"]), around, around, st.booleans(), st.sampled_from([0, 1, 8192]))
def test_what_is_shown_to_fail_is_what_the_engine_refused(tmp_path_factory, flags, seq, ack, reply, win):
    """The inequality that is shown to fail first is the one the engine names; where it accepts, none fails."""
    path = tmp_path_factory.mktemp("window")
    ends = (SERVER, CLIENT, 80, 40000) if reply else (CLIENT, SERVER, 40000, 80)
    mine, other = (501, 101) if reply else (101, 501)
    packet = tcp(*ends, flags, seq=(mine + seq) & MASK32, ack=(other + ack) & MASK32, win=win)
    lines = lines_of(path, [*HANDSHAKE, (9 * MS, packet)], 3)
    reason = said(lines, "reason")[0].partition(":")[0]
    if not any(label == "window" for label, _ in lines):
        assert reason == "tcp_rst_below_maxack"
        return
    failing = [line.split()[0] for line in said(lines, "window") if "does not hold" in line]
    assert next((number for number in ("I", "III", "II", "IV") if number in failing), None) == FAILING.get(reason)


def test_a_rst_that_is_believed_shows_no_window_check(tmp_path):
    story = [*HANDSHAKE, (3 * MS, tcp(CLIENT, SERVER, 40000, 80, "FA", seq=101, ack=501)), (4 * MS, tcp(SERVER, CLIENT, 80, 40000, "R", seq=9))]
    lines = lines_of(tmp_path, story, 4)
    assert said(lines, "window")[-1] == "this RST is believed without the check, in FIN_WAIT"
    assert said(lines, "result")[0].startswith("established")


def test_a_rst_shows_what_it_is_compared_with(tmp_path):
    lines = lines_of(tmp_path, [*HANDSHAKE, (8 * MS, tcp(SERVER, CLIENT, 80, 40000, "R", seq=400))], 3)
    assert said(lines, "reason")[0].startswith("tcp_rst_below_maxack")
    assert said(lines, "guard")[1] == "seq 400, the peer has acknowledged 501"


def test_a_reopened_connection_names_the_old_one(tmp_path):
    story = [*stories.closed_by_client(), (10**9, tcp(CLIENT, SERVER, 40000, 80, "S", seq=7))]
    lines = lines_of(tmp_path, story, 8)
    assert "TIME_WAIT" in said(lines, "lookup")[0]
    assert said(lines, "lookup")[1] == "which is replaced by now: conn 1 takes its place"
    assert said(lines, "table")[0] == "TIME_WAIT, original syn -> SYN_SENT"
    assert said(lines, "guard")[0].startswith("reopen")


def test_an_expired_connection_is_not_met(tmp_path):
    story = [*stories.question(), *[(100 * 10**9 + at, data) for at, data in stories.question()]]
    assert "conn 1" in said(lines_of(tmp_path, story, 2), "result")[0]


@pytest.mark.parametrize(("frame", "found"), [
    (icmp(CLIENT, SERVER, 8, l4_checksum=1), "checksum"),
    (tcp(CLIENT, SERVER, 1, 2, l4_checksum=1), "checksum"),
    (eth(b"", 0x0806), "not an IP packet"),
    (tcp(CLIENT, SERVER, 1, 2), "headers sound"),
])  # fmt: skip
def test_checks_tell_what_parsing_found(tmp_path, frame, found):
    assert found in said(lines_of(tmp_path, [(0, frame)], 0), "checks")[0]


def test_sctp_chunks_go_through_the_table(tmp_path):
    story = [(0, sctp(CLIENT, SERVER, 5, 6, 0, sctp_init(77))), (MS, sctp(SERVER, CLIENT, 6, 5, 77, sctp_init(88, ack=True)))]
    lines = lines_of(tmp_path, story, 1)
    assert said(lines, "sctp") == ["6 > 5, tag 0x0000004d, INIT_ACK"]
    assert said(lines, "table") == ["CLOSED, reply init_ack -> COOKIE_WAIT"]


def test_packets_are_counted_in_the_last_capture(tmp_path):
    first = stories.write(tmp_path / "a.pcap", HANDSHAKE)
    second = stories.write(tmp_path / "b.pcap", stories.closed_by_client()[3:])
    assert explain.explain_packet([first, second], 0, app.Tracking()).decision["conn"] == 0
    with pytest.raises(CtmirrorError, match=r"b\.pcap: no packet 5: expected 0 to 4"):
        explain.explain_packet([first, second], 5, app.Tracking())


def test_an_empty_capture_has_nothing_to_explain(tmp_path):
    with pytest.raises(CtmirrorError, match="has no packets"):
        explain.explain_packet([stories.write(tmp_path / "empty.pcap", [])], 0, app.Tracking())


def test_chunks_do_not_matter(office, monkeypatch):
    whole = list(narrate.packet_lines(explain.explain_packet([office], 13, app.Tracking())))
    monkeypatch.setattr(explain, "CHUNK", 4)
    assert list(narrate.packet_lines(explain.explain_packet([office], 13, app.Tracking()))) == whole


# --- which rule, and no stage that was not reached -------------------------------------------------------------------------------------

ONE_SECOND = dict.fromkeys(("tcp_timeout_established", "tcp_timeout_syn_sent", "tcp_timeout_syn_recv", "tcp_timeout_close"), 1)
RETRANSMITTED = (tcp(CLIENT, SERVER, 40000, 80, "A", seq=101, ack=501, payload=b"x"),) * 4


@pytest.mark.parametrize(("story", "timeouts", "name"), [
    (HANDSHAKE[:1], ONE_SECOND, "tcp_timeout_syn_sent"),
    (HANDSHAKE, ONE_SECOND, "tcp_timeout_established"),
    ([*HANDSHAKE, (9 * MS, RETRANSMITTED[0])], {}, "tcp_timeout_unacknowledged"),
    ([*HANDSHAKE, *((9 * MS, again) for again in RETRANSMITTED)], {}, "tcp_timeout_max_retrans"),
    ([(0, tcp(CLIENT, SERVER, 1, 2, "A", seq=7, ack=9))], {"tcp_timeout_established": 300}, "tcp_timeout_established"),
    ([(0, tcp(CLIENT, SERVER, 1, 2, "A", seq=7, ack=9, win=0))], {}, "tcp_timeout_max_retrans"),
    ([*HANDSHAKE, (9 * MS, tcp(CLIENT, SERVER, 40000, 80, "R", seq=101))], {"tcp_timeout_close": 300}, "tcp_timeout_close"),
    (stories.question(), {"udp_timeout_stream": 30}, "udp_timeout"),
    ([*stories.question(), (5000 * MS, stories.question()[0][1])], {"udp_timeout_stream": 30}, "udp_timeout_stream"),
    ([(0, icmp(CLIENT, SERVER, 8))], {"generic_timeout": 30}, "icmp_timeout"),
])  # fmt: skip
def test_the_timeout_is_named_by_the_rule_that_applied(tmp_path, story, timeouts, name):
    """Not by its value, which others may share: unacknowledged and max_retrans are 300 s both."""
    lines = lines_of(tmp_path, story, len(story) - 1, timeouts=timeouts)
    assert said(lines, "timeout")[0].endswith(f" s left, from {name}")


def test_a_timeout_without_a_setting_is_not_given_one(tmp_path):
    syn, other = tcp(CLIENT, SERVER, 1, 2, "S"), tcp(SERVER, CLIENT, 2, 1, "S")
    lines = lines_of(tmp_path, [(0, syn), (MS, other), (2 * MS, syn)], 2)
    assert said(lines, "timeout") == ["120 s left, which is fixed: there is no setting for it"]


@pytest.mark.parametrize("number", range(len(stories.office())))
def test_the_model_gives_the_answer_that_the_engine_gave(office, number):
    """Which is why its rule may be named."""
    it = explain.explain_packet([office], number, app.Tracking())
    if visit := it.visit():
        answer = ask(visit)
        assert (answer.reason, answer.valid) == (it.decision["reason"], it.decision["state"] != State.INVALID)
        assert answer.timeout in (None, it.decision["timeout"])


def labels_of(lines):
    return {label for label, _ in lines if label}


LATER_FRAGMENTS = (
    ipv4(CLIENT, SERVER, 17, bytes(64), frag=0x2008, ident=9), ipv6("::1", "::2", 44, bytes((17, 0, 0, 65)) + bytes(4) + b"\x01" * 64),
)  # fmt: skip


@pytest.mark.parametrize("packet", LATER_FRAGMENTS)
def test_the_middle_of_a_datagram_has_no_transport_header(tmp_path, packet):
    lines = lines_of(tmp_path, [(0, eth(packet, 0x0800 if packet[0] >> 4 == 4 else 0x86DD))], 0)
    assert said(lines, "udp") == ["no header in this fragment: its bytes begin at 64 of what the datagram carries"]
    assert said(lines, "reason")[0].startswith("fragment: ")


@pytest.mark.parametrize("keep", [10, 20, 33])
def test_a_header_that_was_not_captured_is_not_described(tmp_path, keep):
    frame = tcp(CLIENT, SERVER, 1, 2, "S")
    (tmp_path / "snapped.pcap").write_bytes(pcap((0, 0, frame[:keep], keep, len(frame))))
    lines = list(narrate.packet_lines(explain.explain_packet([str(tmp_path / "snapped.pcap")], 0, app.Tracking())))
    assert not {"ip", "tcp"} & labels_of(lines)
    assert said(lines, "reason")[0].startswith("snapped")


STRAY_QUOTES = {
    "too short: 19 bytes of an IPv4 header of 20": icmp_error(stories.ROUTER, CLIENT, 3, 1, eth(ipv4(CLIENT, SERVER, 17)), quote=19),
    "too short: 3 of the 4 bytes of its ports": icmp_error(stories.ROUTER, CLIENT, 3, 1, eth(ipv4(CLIENT, SERVER, 17, bytes(3)))),
    "a fragment, from byte 64 of its datagram on": icmp_error(stories.ROUTER, CLIENT, 3, 1, eth(ipv4(CLIENT, SERVER, 17, bytes(8), frag=8))),
}


@pytest.mark.parametrize(("fault", "frame"), STRAY_QUOTES.items())
def test_an_error_with_an_unusable_quote_says_what_is_wrong_with_it_and_looks_nothing_up(tmp_path, fault, frame):
    lines = lines_of(tmp_path, [(0, frame)], 0)
    assert said(lines, "reason")[0].startswith("icmp_inner: ")
    assert said(lines, "quoted")[1].startswith(fault)
    assert "lookup" not in labels_of(lines)


@pytest.mark.parametrize("frame", [
    eth(ipv4(CLIENT, SERVER, 6, bytes(3)), 0x0800), eth(ipv4(CLIENT, SERVER, 1, bytes(7)), 0x0800), icmp(CLIENT, SERVER, 8, l4_checksum=1),
])  # fmt: skip
def test_what_has_no_tuple_looks_nothing_up(tmp_path, frame):
    assert "lookup" not in labels_of(lines_of(tmp_path, [(0, frame)], 0))


INIT = sctp(CLIENT, SERVER, 5, 6, 0, sctp_init(77))
INIT_ACK = sctp(SERVER, CLIENT, 6, 5, 77, sctp_init(88, ack=True))


def test_a_bad_sum_is_shown_no_state_table(tmp_path):
    bad = INIT_ACK[:-1] + bytes((INIT_ACK[-1] ^ 1,))
    lines = lines_of(tmp_path, [(0, INIT), (MS, bad)], 1)
    assert said(lines, "reason")[0].startswith("sctp_checksum")
    assert not {"table", "guard", "tag"} & labels_of(lines)


def test_a_wrong_tag_is_shown_beside_the_right_one_and_stops_there(tmp_path):
    story = [(0, INIT), (MS, INIT_ACK), (2 * MS, sctp(CLIENT, SERVER, 5, 6, 99, sctp_chunk(10) + sctp_chunk(0)))]
    lines = lines_of(tmp_path, story, 2)
    assert said(lines, "reason")[0].startswith("sctp_tag")
    assert said(lines, "tag") == ["0x00000063, expected 0x00000058"]
    assert "table" not in labels_of(lines)


def test_what_begins_no_association_is_named(tmp_path):
    assert said(lines_of(tmp_path, [(0, sctp(CLIENT, SERVER, 5, 6, 9, sctp_chunk(6)))], 0), "guard") == ["abort never begins an association"]
    assert said(lines_of(tmp_path, [(0, sctp(CLIENT, SERVER, 5, 6, 9, sctp_chunk(0)))], 0), "table") == ["NONE, original other -> NONE"]


# --- numbers ---------------------------------------------------------------------------------------------------------------------------


def test_a_bad_checksum_is_shown_beside_the_right_one(tmp_path):
    good = tcp(CLIENT, SERVER, 1, 2)
    right = good[50:52].hex()
    lines = lines_of(tmp_path, [(0, tcp(CLIENT, SERVER, 1, 2, l4_checksum=1))], 0)
    assert said(lines, "checks")[1] == f"found 0x0001, expected 0x{right}; that is not what offload leaves: it is really bad"
    lines = lines_of(tmp_path, [(0, tcp(CLIENT, SERVER, 1, 2, l4_checksum=0))], 0)
    assert said(lines, "checks")[1].startswith(f"found 0x0000, expected 0x{right}; that is what a host leaves")


@pytest.mark.parametrize(("good", "at", "size"), [
    (tcp("2001:db8::1", "2001:db8::2", 1, 2), 70, 2), (udp(CLIENT, SERVER, 1, 2, payload=b"odd"), 40, 2), (icmp(CLIENT, SERVER, 8), 36, 2),
    (icmp("2001:db8::1", "2001:db8::2", 128), 56, 2), (INIT, 42, 4), (tcp(CLIENT, SERVER, 1, 2), 24, 2),
])  # fmt: skip
def test_the_expected_checksum_is_the_one_of_the_sound_packet(tmp_path, good, at, size):
    """Of every protocol, and the IPv4 header's."""
    bad = good[:at] + bytes(byte ^ 0x5A for byte in good[at : at + size]) + good[at + size :]
    order = "little" if size == 4 else "big"
    found, expected = (int.from_bytes(data[at : at + size], order) for data in (bad, good))
    text = said(lines_of(tmp_path, [(0, bad)], 0), "checks")[1]
    assert text.startswith(f"found {found:#0{2 * size + 2}x}, expected {expected:#0{2 * size + 2}x}")


def test_a_full_table_shows_its_numbers(tmp_path):
    story = [(n * MS, udp(CLIENT, SERVER, 1000 + n, 53)) for n in range(5)]
    text = said(lines_of(tmp_path, story, 4, max=4), "table")[0]
    assert re.fullmatch(
        r"full: 4 of 4 connections \(--max\); looked into bucket [\d,]+ and the next 7 of 262,144 \(--buckets\): nobody there .*", text
    )
    lines = lines_of(tmp_path, story, 4, max=4, buckets=1)
    assert said(lines, "table")[0].endswith(": 4 not assured found there and evicted")
    assert [text.partition(": ")[2][:6] for text in said(lines, "table")[1:]] == ["conn 0", "conn 1", "conn 2", "conn 3"]


def test_the_window_is_shown_in_32_bits(tmp_path):
    """The numbers of a comparison that goes round the end are those of the packets, and it says that it does."""
    syn, answer = tcp(CLIENT, SERVER, 1, 2, "S", seq=MASK32), tcp(SERVER, CLIENT, 2, 1, "SA", seq=MASK32 - 1, ack=0)
    lines = lines_of(tmp_path, [(0, syn), (MS, answer), (2 * MS, tcp(CLIENT, SERVER, 1, 2, "A", seq=0, ack=MASK32))], 2)
    window = said(lines, "window")
    assert any("(mod 2^32): holds" in line for line in window)
    assert all(0 <= int(number) <= MASK32 for line in window[3:] for number in re.findall(r"-?\d+(?= \(mod| *:)", line.partition(">")[2]))
    assert not re.search(r"[<>=] -\d", " ".join(window))


# --- what has changed ------------------------------------------------------------------------------------------------------------------


def test_a_rst_before_any_reply_shows_what_it_did(tmp_path):
    lines = lines_of(tmp_path, [HANDSHAKE[0], (MS, tcp(SERVER, CLIENT, 80, 40000, "RA", seq=0, ack=101))], 1)
    changed = said(lines, "changed")
    assert changed[0] == "status: now seen-reply, dying"
    assert changed[1] == "state: SYN_SENT -> CLOSE"
    assert "reply side: maxwin 0 -> 8192, maxack 0 -> 101, + maxack-set" in changed
    assert any(line.startswith("remembered of this packet: index syn -> rst, dir original -> reply") for line in changed)


def test_what_an_ignored_packet_leaves_behind_is_shown(tmp_path):
    lines = lines_of(tmp_path, [*HANDSHAKE, (9 * MS, tcp(CLIENT, SERVER, 40000, 80, "S", seq=900))], 3)
    assert said(lines, "reason")[0].startswith("tcp_ignored")
    assert said(lines, "changed") == ["remembered of this packet: index ack -> syn, seq 101 -> 900, end 101 -> 901"]


def test_an_association_shows_its_changes(tmp_path):
    lines = lines_of(tmp_path, [(0, INIT), (MS, INIT_ACK)], 1)
    assert said(lines, "changed") == [
        "status: now seen-reply", "state: CLOSED -> COOKIE_WAIT", "original side: tag 0x00000000 -> 0x00000058",
    ]  # fmt: skip


# --- a connection's life ---------------------------------------------------------------------------------------------------------------


def life(tmp_path, story, ordinal, **settings):
    capture = stories.write(tmp_path / "life.pcap", story)
    found = explain.explain_conn([capture], ordinal, app.Tracking(Config(**settings)))
    return found, list(narrate.life_lines(found, 250))


def test_a_life_has_every_packet_of_the_connection(tmp_path):
    found, lines = life(tmp_path, stories.office(), 0)
    assert [step.number for step in found.steps] == list(range(8))
    assert [label for label, _ in lines] == ["conn", "began", *[f"#{i}" for i in range(8)], "end"]
    assert lines[-1][1] == "alive at the end of the capture, in TIME_WAIT"


def test_a_life_includes_invalid_packets_and_errors_about_it(tmp_path):
    story = [*HANDSHAKE, (9 * MS, tcp(CLIENT, SERVER, 40000, 80, "SF")), (10 * MS, tcp(SERVER, CLIENT, 80, 40000, "FR"))]
    assert [step.number for step in life(tmp_path, story, 0)[0].steps] == [0, 1, 2, 3, 4]
    assert [step.number for step in life(tmp_path, stories.office(), 3)[0].steps] == [12, 13]


def test_a_life_shows_numbers_and_arrows_of_invalid_packets_too(tmp_path):
    story = [*HANDSHAKE, (9 * MS, tcp(SERVER, CLIENT, 80, 40000, "PA", seq=501, ack=9_000_000, payload=b"xyz"))]
    lines = dict(life(tmp_path, story, 0)[1])
    assert "-> SYN seq 100 len 0 " in lines["#0"]
    assert "<- SYN ACK seq 500 ack 101 len 0 " in lines["#1"]
    assert "<- ACK PSH seq 501 ack 9000000 len 3 invalid " in lines["#3"]


def test_a_life_names_chunks_and_icmp_types(tmp_path):
    story = [(0, sctp(CLIENT, SERVER, 5, 6, 0, sctp_init(77))), (MS, sctp(SERVER, CLIENT, 6, 5, 77, sctp_init(88, ack=True)))]
    lines = dict(life(tmp_path, story, 0)[1])
    assert "-> INIT     new " in lines["#0"]
    assert "<- INIT_ACK established " in lines["#1"]
    lines = dict(life(tmp_path, stories.office(), 2)[1])
    assert "-> echo request (8), code 0, id 77, seq 1 " in lines["#10"]
    lines = dict(life(tmp_path, stories.office(), 3)[1])
    assert "-> len 7 " in lines["#12"]
    assert "<- destination unreachable (3), code 1 related " in lines["#13"]


def test_a_life_ends(tmp_path):
    found, lines = life(tmp_path, [*stories.question(), (100 * 10**9, tcp(CLIENT, SERVER, 1, 2))], 0)
    assert len(found.steps) == 2
    assert lines[-1][1].startswith("timeout, 30.")


def test_a_life_has_one_clock(tmp_path):
    """A packet captured late, or with an earlier time stamp, comes when the one before it came, as for the tracker."""
    story = [(50 * MS, udp(CLIENT, SERVER, 9, 9)), *((20 * MS, data) for _, data in HANDSHAKE[:2]), (60 * MS, HANDSHAKE[2][1])]
    found, lines = life(tmp_path, story, 1)
    assert [step.ts - int(found.conn["start"]) for step in found.steps] == [0, 0, 10 * MS]
    assert [text.split()[0] for label, text in lines if label.startswith("#")] == ["+0.000000", "+0.000000", "+0.010000"]


def test_a_life_keeps_its_columns_where_states_have_long_names(tmp_path):
    tag, other = 77, 88
    story = [(0, INIT), (MS, INIT_ACK)]
    story += [((2 + n) * MS, sctp(*ends, vtag, sctp_chunk(kind))) for n, (ends, vtag, kind) in enumerate([
        ((CLIENT, SERVER, 5, 6), other, 10), ((SERVER, CLIENT, 6, 5), tag, 11), ((CLIENT, SERVER, 5, 6), other, 7),
        ((SERVER, CLIENT, 6, 5), tag, 8),
    ])]  # fmt: skip
    lines = [text for label, text in life(tmp_path, story, 0)[1] if label.startswith("#")]
    assert "SHUTDOWN_ACK_SENT" in lines[-1]
    assert len({re.search(r" \d+ s", line).end() for line in lines}) == 1


def test_a_life_that_is_not_there(tmp_path):
    with pytest.raises(CtmirrorError, match="no connection 99"):
        life(tmp_path, stories.office(), 99)


def test_a_packet_by_its_number_in_wireshark(capfd, office):
    from datapath.cli import main

    assert main(["explain", office, "--frame", "15"]) == 0
    by_frame = capfd.readouterr().out
    assert main(["explain", office, "--packet", "14"]) == 0
    assert capfd.readouterr().out == by_frame
    assert by_frame.startswith(f"packet  #14 (frame 15 in Wireshark) of {office}, ")
    assert main(["explain", office, "--frame", "20"]) == 2
    assert "expected 0 to 18 (frames 1 to 19)" in capfd.readouterr().err


@pytest.mark.parametrize("argv", [[], ["--packet", "1", "--conn", "1"], ["--packet", "1", "--frame", "2"]])
def test_explain_wants_one_thing(capfd, office, argv):
    from datapath.cli import main

    assert main(["explain", office, *argv]) == 2
    assert "expected one of --packet N, --frame N and --conn N" in capfd.readouterr().err


# --- frames in words -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        (eth(b"", 0x0806), "Ethernet 02:00:00:00:00:01 > 02:00:00:00:00:02, ARP"),
        (eth(b"", 0x0800, vlan=(5, 7)), "VLAN 5, VLAN 7, IPv4"),
        (eth(mpls(b"", 3), 0x8847), "MPLS"),
        (eth(pppoe(b""), 0x8864), "PPPoE session"),
        (eth(b"", 60), "802.3 frame of 60 bytes"),
        (bytes(5), "cut short"),
    ],
)
def test_link_layers(frame, text):
    assert text in dissect.link_line(frame, 1)


def test_other_link_types_have_names():
    assert dissect.link_line(b"", 113).startswith("Linux cooked")


@pytest.mark.parametrize(
    ("packet", "text"),
    [
        (ipv4("1.2.3.4", "5.6.7.8", 50, bytes(4), frag=0x2001, ident=9), "fragment of datagram 0x0009 at byte 8, more follow, carries esp"),
        (ipv4("1.2.3.4", "5.6.7.8", 6, options=bytes(4)), "header of 24 bytes"),
        (ipv6("2001:db8::1", "::2", 17, bytes(8), ttl=3), "IPv6 2001:db8::1 > ::2, 8 bytes of payload, hop limit 3, next header udp"),
        (ipv4("1.2.3.4", "5.6.7.8", 4), "carries ipip"),
        (ipv6("::1", "::2", 0), "next header hopopt"),
        (ipv6("::1", "::2", 44), "next header frag"),
        (ipv6("::1", "::2", 0, bytes((60, 0)) + bytes(6) + bytes((44, 1)) + bytes(14) + bytes((17, 0)) + bytes(14)), "hopopt, dstopts, frag, udp"),
        (ipv6("::1", "::2", 44, bytes((17, 0, 0, 8)) + bytes(20)), "next header frag"),
        (ipv6("::1", "::2", 253), "next header 253"),
        (b"\x90", "version 9, neither 4 nor 6"),
        (b"\x45\x00", "cut short"),
        (b"", "cut short"),
    ],
)
def test_ip_headers(packet, text):
    assert text in dissect.ip_line(packet)


def test_a_long_chain_of_headers_is_shortened():
    frags = bytes((44, 0)) + bytes(6)
    text = dissect.ip_line(ipv6("::1", "::2", 44, frags * 39 + bytes((17, 0)) + bytes(14)))
    assert text.endswith("next header frag (40 times), udp")
    mixed = (bytes((60, 0)) + bytes(6) + bytes((44, 0)) + bytes(6)) * 20
    text = dissect.ip_line(ipv6("::1", "::2", 44, mixed + bytes((17, 0)) + bytes(14)))
    assert text.endswith("next header frag, dstopts, frag, dstopts, frag, dstopts, frag, ... (42 headers), udp")
    assert len(text) < 200


def test_tcp_options_that_matter_have_values():
    syn = tcp(CLIENT, SERVER, 1, 2, "S", options=bytes.fromhex("020405b4 01030307 0402 0000"))[34:]
    assert list(dissect.tcp_options(syn)) == ["mss 1460", "window scale 7", "SACK permitted"]
    sack = tcp(CLIENT, SERVER, 1, 2, "A", options=bytes.fromhex("0101050a") + (5).to_bytes(4, "big") + (9).to_bytes(4, "big"))[34:]
    assert list(dissect.tcp_options(sack)) == ["SACK 5-9"]


@pytest.mark.parametrize("proto", [1, 6, 17, 47, 50, 58, 132, 136])
@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=80))
def test_any_bytes_can_be_described(proto, data):
    """No frame, however short or wrong, makes a description fail."""
    assert dissect.link_line(data, 1)
    assert dissect.ip_line(data)
    assert dissect.l4_line(proto, data, len(data))
    assert dissect.brief(proto, data, len(data))
    assert isinstance(dissect.sctp_chunks(data), list)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=120))
def test_any_packet_can_be_explained(tmp_path_factory, data):
    """Whatever bytes a frame has, explain answers with its reason."""
    path = tmp_path_factory.mktemp("any")
    story = [*HANDSHAKE, (9 * MS, (tcp(CLIENT, SERVER, 40000, 80, "A", seq=101, ack=501)[:34] + data)), (10 * MS, data)]
    for number in (3, 4):
        lines = lines_of(path, story, number)
        assert said(lines, "reason")[0].split(":")[0] in NAMES


@settings(max_examples=100, deadline=None)
@given(st.integers(0, MASK32), st.integers(0, MASK32))
def test_sequence_numbers_compare_by_distance(a, b):
    """Exactly one of before, after and equal holds, but where both are half the space apart; near() keeps the order."""
    if (a - b) & MASK32 != 1 << 31:
        assert before(a, b) + after(a, b) + (a == b) == 1
        assert (near(a, b) < b) == before(a, b)
    assert near(a, b) & MASK32 == a


def test_every_guard_names_a_reason():
    assert set(stages.GUARDS) <= set(Reason)


def test_the_window_of_a_first_packet_needs_no_connection():
    from datapath.frame import frames_of
    from datapath.wire import parse_batch

    memory, frames = frames_of([tcp(CLIENT, SERVER, 1, 2, "S", seq=10, win=99)])
    batch = parse_batch(memory, frames)
    window = window_of(batch.array[0], batch.l4_bytes(0), None, 0, Config())
    assert (window.sender.end, window.sender.maxwin, window.numbers.end) == (11, 99, 11)
    assert window.note.endswith("accepted at once") or all(one.holds for one in window.inequalities)
    assert np.all(batch.array["doff"] == 20)


def test_gre_and_udp_have_lines():
    assert dissect.l4_line(47, gre(CLIENT, SERVER, version=1, proto=0x880B, call=9)[34:], 8) == "version 1, carries 0x880b, call id 9"
    assert dissect.l4_line(17, udp(CLIENT, SERVER, 1, 2, l4_checksum=0)[34:], 8) == "1 > 2, 0 bytes of payload, no checksum"
    assert dissect.l4_line(17, udp(CLIENT, SERVER, 1, 2, payload=b"abc")[34:], 11) == "1 > 2, 3 bytes of payload"
    assert dissect.l4_line(17, udp_segment(CLIENT, SERVER, 1, 2, length=50), 8) == "1 > 2, 0 bytes of payload, its length says 42"
    assert dissect.sctp_chunks(sctp(CLIENT, SERVER, 1, 2, 3, sctp_chunk(10) + sctp_chunk(0))[34:]) == [10, 0]
