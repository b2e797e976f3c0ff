"""`ctmirror replay`: what its options do, and the packets it forwards."""

from __future__ import annotations

from datapath.capture import PcapSource
from datapath.craft import tcp
from pcap_tests import stories
from pcap_tests.stories import CLIENT, MS, SERVER
from pcap_tests.test_datapath.command import records, run

# --- what the options do ---------------------------------------------------------------------------------------------------------------


def packets(capfd, *argv):
    return records(run(capfd, "replay", *argv, "--packets", "-", "--quiet")[1])


def test_checksums_need_not_be_verified(capfd, office):
    assert packets(capfd, office)[14]["reason"] == "tcp_checksum"
    assert packets(capfd, office, "--checksum", 0)[14]["state"] == "new"


def test_picking_up_can_be_switched_off(capfd, tmp_path):
    capture = stories.write(tmp_path / "mid.pcap", [(0, tcp(CLIENT, SERVER, 1, 2, "A", seq=1, ack=2))])
    assert packets(capfd, capture)[0]["reason"] == "tcp_picked_up"
    assert packets(capfd, capture, "--tcp-loose", 0)[0]["reason"] == "tcp_not_loose"


def test_zone_timeouts_and_acct_reach_the_engine(capfd, office):
    found = packets(capfd, office, "--zone", 9, "--timeouts", "nf_conntrack_udp_timeout=7,icmp_timeout=9", "--timeouts", "icmp_timeout=8")
    assert (found[8]["zone"], found[8]["timeout"], found[10]["timeout"]) == (9, 7.0, 8.0)
    _, out, _ = run(capfd, "replay", office, "--acct", 0, "--conns", "-", "--quiet")
    assert records(out)[0]["original"]["packets"] is None


def test_max_limits_connections(capfd, tmp_path):
    capture = stories.write(tmp_path / "scan.pcap", [(i, tcp(CLIENT, SERVER, 1000 + i, 80)) for i in range(40)])
    reasons = [record["reason"] for record in packets(capfd, capture, "--max", 4)]
    _, out, _ = run(capfd, "replay", capture, "--max", 4, "--conns", "-", "--quiet")
    ends = [record["end"] for record in records(out)]
    assert ends.count("evicted") + reasons.count("table_full") == 36
    assert ends.count("alive") <= 5


def test_liberal_tracking_accepts_what_the_window_check_would_not(capfd, tmp_path):
    story = [*stories.closed_by_client()[:3], (9 * MS, tcp(SERVER, CLIENT, 80, 40000, "A", seq=500, ack=90_000_000))]
    capture = stories.write(tmp_path / "far.pcap", story)
    assert packets(capfd, capture)[3]["reason"] == "tcp_ack_over"
    assert packets(capfd, capture, "--tcp-liberal", 1)[3]["reason"] == "tcp_liberal"


def test_the_wall_clock_ignores_timestamps(capfd, tmp_path):
    story = [*stories.question(), *[(10**12 + at, data) for at, data in stories.question()]]
    capture = stories.write(tmp_path / "later.pcap", story)
    assert [record["conn"] for record in packets(capfd, capture)] == [0, 0, 1, 1]
    assert [record["conn"] for record in packets(capfd, capture, "--clock", "wall")] == [0, 0, 0, 0]


def test_several_captures_continue_one_another(capfd, tmp_path):
    story = stories.closed_by_client()
    first, second = (stories.write(tmp_path / f"{n}.pcap", part) for n, part in enumerate((story[:4], story[4:])))
    found = packets(capfd, first, second)
    assert [(record["file"], record["i"]) for record in found] == [(first, i) for i in range(4)] + [(second, i) for i in range(4)]
    assert [record["conn"] for record in found] == [0] * 8
    assert found[-1]["l4state"] == "TIME_WAIT"


def test_two_replays_give_the_same_bytes(capfd, office, tmp_path):
    for n in range(2):
        argv = ["--packets", tmp_path / f"p{n}", "--conns", tmp_path / f"c{n}", "--events", tmp_path / f"e{n}", "-w", tmp_path / f"w{n}.pcapng"]
        assert run(capfd, "replay", office, *argv, "--quiet")[0] == 0
    for name in "pce":
        assert (tmp_path / f"{name}0").read_bytes() == (tmp_path / f"{name}1").read_bytes()
    assert (tmp_path / "w0.pcapng").read_bytes() == (tmp_path / "w1.pcapng").read_bytes()


# --- forwarded packets -----------------------------------------------------------------------------------------------------------------


def test_forwarded_packets_are_those_accepted(capfd, office, tmp_path):
    run(capfd, "replay", office, "-w", tmp_path / "out.pcap", "--quiet")
    with PcapSource(tmp_path / "out.pcap") as source:
        _, frames = source.read(100)
        assert len(frames) == 18
        assert stories.T + 51 * MS not in frames["ts"].tolist()


def test_a_pcapng_file_carries_each_decision_as_a_comment(capfd, office, tmp_path):
    run(capfd, "replay", office, "-w", tmp_path / "out.pcapng", "--quiet")
    written = (tmp_path / "out.pcapng").read_bytes()
    for comment in (
        b"#0 ct new original SYN_SENT 120s conn 0 [confirmed] reason ok",
        b"#2 ct established original ESTABLISHED 432000s conn 0 [seen-reply assured confirmed] reason ok",
        b"#14 ct invalid reason tcp_checksum",
        b"#16 ct not-seen reason not_ip",
        b"#18 ct new original",  # the fragment before it is not there
    ):
        assert comment in written


def test_what_was_left_out_of_the_forwarded_packets_is_told(capfd, office, tmp_path):
    _, out, _ = run(capfd, "replay", office, "-w", tmp_path / "out.pcap")
    assert f"wrote {tmp_path / 'out.pcap'}: 18 of 19 packets; 1 held or dropped was left out\n" in out
    whole = stories.write(tmp_path / "whole.pcap", stories.closed_by_client())
    _, _, err = run(capfd, "replay", whole, "-w", "-")
    assert "wrote stdout: 8 of 8 packets\n" in err


def test_comments_on_packets_of_several_captures_name_theirs(capfd, office, tmp_path):
    run(capfd, "replay", office, office, "-w", tmp_path / "out.pcapng", "--quiet")
    assert (tmp_path / "out.pcapng").read_bytes().count(f"#14 of {office} ct invalid reason tcp_checksum".encode()) == 2
