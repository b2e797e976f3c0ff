"""What `explain --packet N --rules` says of `ct` and `police`: the numbers that the packet was judged by.

Not here: which rules it met (test_explain_rules), the same stages without rules (test_explain).
"""

from __future__ import annotations

import pytest

from datapath import craft
from pcap_tests import stories
from pcap_tests.test_datapath.command import run

CLIENT, SERVER = "10.0.0.2", "198.51.100.1"
FIREWALL = """
tc filter add dev eth0 ingress protocol ip prio 1 chain 0 flower ct_state -trk action ct zone 4 pipe action goto chain 1
tc filter add dev eth0 ingress protocol ip prio 1 chain 1 flower ct_state +trk+inv action drop
tc filter add dev eth0 ingress protocol ip prio 2 chain 1 flower ct_state +trk action ct commit zone 4 pipe action pass
"""
POLICE = "tc filter add dev eth0 ingress protocol ip prio 1 flower ip_proto udp action police {} conform-exceed drop/pass\n"


@pytest.fixture
def explain(capfd, tmp_path):
    """A packet of frames, a millisecond apart, through rules: what is said of it, in lines without their labels' columns."""

    def through(rules: str, frames: list[bytes], number: int, *more: str) -> list[str]:
        (tmp_path / "rules.tc").write_text(rules)
        capture = stories.write(tmp_path / "some.pcap", [(i * stories.MS, frame) for i, frame in enumerate(frames)])
        code, out, err = run(capfd, "explain", capture, "--packet", number, "--rules", tmp_path / "rules.tc", "-q", *more)
        assert (code, err) == (0, "")
        return [" ".join(line.split()) for line in out.splitlines()]

    return through


def syn(sport: int = 40000) -> bytes:
    return craft.tcp(CLIENT, SERVER, sport, 80, "S", seq=100)


def handshake() -> list[bytes]:
    answer = craft.tcp(SERVER, CLIENT, 80, 40000, "SA", seq=500, ack=101)
    return [syn(), answer, craft.tcp(CLIENT, SERVER, 40000, 80, "A", seq=101, ack=501)]


def test_a_segment_beyond_the_window_shows_the_bound_that_it_missed(explain):
    far = craft.tcp(CLIENT, SERVER, 40000, 80, "A", seq=5_000_101, ack=501)
    lines = explain(FIREWALL, [*handshake(), far], 3, "--no-flowtable")
    assert "lookup original direction of conn 0: 10.0.0.2 > 198.51.100.1 sport 40000 dport 80, ESTABLISHED" in " ".join(lines)
    assert any(line.startswith("window seq 5000101,") for line in lines)
    (failed,) = (line for line in lines if "does not hold" in line)
    assert failed.startswith("I seq <= sender.maxend 5000101 <= ") and "SEQ over" in failed


def test_an_invalid_packet_is_said_to_be_of_the_connection_that_explain_conn_shows_it_in(explain):
    early = craft.tcp(CLIENT, SERVER, 40000, 80, "A", seq=101, ack=501)
    lines = explain(FIREWALL, [syn(), early], 1)
    assert "invalid, so not attached; it is a packet of conn 0, in SYN_SENT" in lines
    assert "table SYN_SENT, original ack -> invalid" in lines and "no connection" not in lines


def test_a_stranger_is_no_packet_of_any(explain):
    lines = explain(FIREWALL, [syn(), craft.tcp(CLIENT, SERVER, 40001, 80, "SR")], 1)
    assert "invalid, so not attached to a connection" in lines


def test_a_packet_tracked_twice_in_a_zone_is_shown_once(explain):
    lines = explain(FIREWALL, handshake(), 2)
    assert sum(line.startswith("lookup ") for line in lines) == 1
    assert "changed status: now assured" in lines and "state: SYN_RECV -> ESTABLISHED" in lines


def test_a_bad_checksum_is_told_with_what_it_should_be(explain):
    lines = explain(FIREWALL, [craft.tcp(CLIENT, SERVER, 40001, 80, "S", l4_checksum=0x1234)], 0)
    assert any("0x1234" in line for line in lines)


def test_who_had_to_go_for_a_new_connection_is_told(explain):
    lines = explain(FIREWALL, [craft.udp(CLIENT, SERVER, port, 53) for port in (1, 2, 3)], 2, "--max", "2", "--buckets", "1")
    assert sum(line.startswith(("table full: 2 of 2 connections", "evicted: conn 0: ", "evicted: conn 1: ")) for line in lines) == 3


# --- translation ---------------------------------------------------------------------------------------------------------------------------


def snat(ports: str) -> str:
    return f"tc filter add dev eth0 ingress protocol ip prio 1 flower action ct commit nat src addr 192.0.2.7 port {ports} pipe action pass\n"


def test_a_chosen_port_is_explained_as_without_rules(explain):
    lines = explain(snat("30000-39999"), [craft.udp(CLIENT, SERVER, 5353, 53)], 0)
    (why,) = (line for line in lines if line.startswith("nat "))
    assert why.startswith("nat snat 192.0.2.7:30000-39999: 10.0.0.2:5353 -> 192.0.2.7:3")
    assert why.endswith(", the first free one of 30000-39999 from a random one on: port 5353 is not among them")


def test_an_exhausted_range_says_how_large_it_is_and_how_many_have_it(explain):
    lines = explain(snat("30000-30001"), [craft.udp(CLIENT, SERVER, port, 53) for port in (1, 2, 3)], 2)
    assert "nat snat 192.0.2.7:30000-30001: nothing free was found in it" in lines
    assert "it has 2 tuples for one destination; 2 connections use it" in lines


# --- policers ------------------------------------------------------------------------------------------------------------------------------


def test_a_packet_that_exceeds_is_told_how_many_tokens_there_were(explain):
    frames = [craft.udp(CLIENT, SERVER, 5353, 53, bytes(972))] * 3  # of 1,000 bytes behind the link header
    rules = POLICE.format("rate 8kbit burst 2000b")
    assert "it conforms: 2,000 bytes of tokens left, 1,000 needed" in explain(rules, frames, 0)
    lines = explain(rules, frames, 2)
    assert "it exceeds: 2 bytes of tokens left, 1,000 needed" in lines
    assert lines[-2].endswith(": rule_police: a policer has no token left for it")


def test_a_policer_of_packets_and_one_with_an_mtu(explain):
    small = [craft.udp(CLIENT, SERVER, 5353, 53)] * 2
    assert "it exceeds: 0.00 of a packet's token left, 1 needed" in explain(POLICE.format("pkts_rate 1 pkts_burst 1"), small, 1)
    large = [craft.udp(CLIENT, SERVER, 5353, 53, bytes(2042))]
    lines = explain(POLICE.format("rate 1gbit burst 100k"), large, 0)
    assert "it exceeds: 2,084 bytes, and none of more than 2,040 has a token (mtu)" in lines


def test_only_of_a_packet_that_meets_a_policer_is_said_that_it_counts(explain):
    frames = [craft.udp(CLIENT, SERVER, 5353, 53), syn()]
    told = "all packets before it have gone through the rules one by one, since policers count what comes before it"
    assert told in explain(POLICE.format("pkts_rate 1 pkts_burst 1"), frames, 0)
    assert told not in explain(POLICE.format("pkts_rate 1 pkts_burst 1"), frames, 1)


# --- timeouts ------------------------------------------------------------------------------------------------------------------------------


def test_the_flow_tables_deadline_is_told_apart_from_the_trackers(explain):
    again = craft.tcp(CLIENT, SERVER, 40000, 80, "A", seq=101, ack=501)
    lines = explain(FIREWALL, [*handshake(), again], 3)
    told = "s left is its deadline, and what records have: a day from its coming into it; above is the time without the flow table"
    assert lines[-1] == f"86400 {told}" and any("432000 s left" in line for line in lines)
    assert not any(told in line for line in explain(FIREWALL, [*handshake(), again], 3, "--no-flowtable"))


def test_so_it_is_in_a_connections_life(capfd, tmp_path, explain):
    explain(FIREWALL, handshake(), 2)
    _, out, _ = run(capfd, "explain", tmp_path / "some.pcap", "--conn", 0, "--rules", tmp_path / "rules.tc", "-q")
    assert "86400 s left, by the flow table: a day from its coming into it, and its own timeout again where a packet is tracked" in out
