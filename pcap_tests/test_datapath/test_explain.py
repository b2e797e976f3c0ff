"""What explain says is what replay decided, stage by stage, with the right numbers."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctcore.config import Config
from ctcore.errors import CtmirrorError
from ctcore.model.conn import MASK32
from ctcore.model.protocols import ask
from ctcore.types import State
from datapath import app, explain, narrate
from datapath.craft import eth, icmp, icmp_error, ipv4, ipv6, sctp, sctp_chunk, sctp_init, tcp, udp
from pcap_tests import stories
from pcap_tests.capture_files import pcap
from pcap_tests.conftest import examples
from pcap_tests.stories import CLIENT, MS, SERVER
from pcap_tests.test_datapath.explained import INIT, INIT_ACK, lines_of, said

HANDSHAKE = stories.closed_by_client()[:3]


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
    assert said(lines, "timeout")[0].endswith("not renewed by this packet, nor is it counted")


def test_the_time_left_is_that_when_the_packet_came(tmp_path):
    story = [*HANDSHAKE, (2002 * MS, tcp(CLIENT, SERVER, 40000, 80, "S", seq=900))]
    lines = lines_of(tmp_path, story, 3)
    assert said(lines, "lookup")[0].endswith(", 431998 s left")
    assert said(lines, "timeout") == ["431998 s left, not renewed by this packet, nor is it counted"]


@pytest.mark.parametrize(("story", "reason"), [
    ([(0, tcp(CLIENT, SERVER, 1, 2, "S", seq=9)), (0, tcp(CLIENT, SERVER, 1, 2, "S", seq=9))], "tcp_syn_again"),
    ([(0, tcp(CLIENT, SERVER, 1, 2, "S", seq=9)), (0, tcp(SERVER, CLIENT, 2, 1, "A", seq=9, ack=77))], "tcp_ignored"),
    ([*HANDSHAKE, (2 * MS, tcp(SERVER, CLIENT, 80, 40000, "SA", seq=500, ack=101))], "tcp_ignored"),
])  # fmt: skip
def test_what_renews_nothing_is_not_said_to_renew_even_if_no_time_has_passed(tmp_path, story, reason):
    lines = lines_of(tmp_path, story, len(story) - 1)
    assert said(lines, "reason")[0].startswith(reason)
    assert said(lines, "timeout")[0].endswith("s left, not renewed by this packet, nor is it counted")


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
    assert said(lines, "timeout")[0].endswith("not renewed by this packet, nor is it counted")


def test_an_error_about_nothing_known_says_so(tmp_path):
    lines = lines_of(tmp_path, [(0, icmp_error(stories.ROUTER, CLIENT, 3, 1, stories.question()[0][1]))], 0)
    assert said(lines, "quoted") == ["udp 10.0.0.1 > 10.0.0.2 sport 5353 dport 53"]
    assert said(lines, "lookup") == ["no connection has the quoted packet's tuple"]
    assert said(lines, "reason")[0].startswith("icmp_no_conn")


@pytest.mark.parametrize("zone_dir", ["original", "reply"])
def test_an_error_is_about_a_connection_whose_tuples_lie_in_two_zones(tmp_path, zone_dir):
    question = stories.question()[0]
    capture = stories.write(tmp_path / "zones.pcap", [question, (MS, icmp_error(stories.ROUTER, CLIENT, 3, 1, question[1]))])
    lines = list(narrate.packet_lines(explain.explain_packet([capture], 1, app.Tracking(Config(zone_dir=zone_dir), 5))))
    assert said(lines, "result") == ["related, reply, conn 0; verdict accept"]
    assert said(lines, "lookup")[0].startswith("the quoted packet went in the original direction of conn 0: ")


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


@settings(max_examples=examples(200), deadline=None)
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
