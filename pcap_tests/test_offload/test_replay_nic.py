"""replay --nic from end to end: one connection of TCP, its handshake in software, its data in hardware, its end in software again."""

from __future__ import annotations

import numpy as np
import pytest

from datapath import craft
from datapath.frame import frames_of
from datapath.sink import PcapSink
from pcap_tests.test_datapath.command import records, run

CLIENT, SERVER, PUBLIC = "10.0.0.2", "198.51.100.1", "192.0.2.7"
MS, START = 10**6, 1_700_000_000 * 10**9
SNAT = """
tc filter add dev lan ingress protocol ip prio 1 chain 0 flower ct_state -trk action ct nat pipe action goto chain 1
tc filter add dev lan ingress protocol ip prio 1 chain 1 flower ct_state +trk+new \\
    action ct commit nat src addr 192.0.2.7 pipe action mirred egress redirect dev wan
tc filter add dev lan ingress protocol ip prio 2 chain 1 flower ct_state +trk+est action mirred egress redirect dev wan
"""


def segment(back: bool, flags: str, seq: int, ack: int, payload: bytes = b"") -> bytes:
    ends = (SERVER, CLIENT, 80, 40000) if back else (CLIENT, SERVER, 40000, 80)
    return craft.tcp(*ends, flags, seq=seq, ack=ack, payload=payload)


TALK = [
    segment(False, "S", 100, 0),
    segment(True, "SA", 500, 101),
    segment(False, "A", 101, 501),
    segment(False, "PA", 101, 501, b"question"),
    segment(True, "PA", 501, 109, b"answer"),
    segment(False, "A", 109, 507),
    segment(False, "FA", 109, 507),
    segment(True, "FA", 507, 110),
    segment(False, "A", 110, 508),
]
NOT_YET, SOFT, HARD = "not:tcp_state", "software", "hardware"
# The last one passes in hardware all the same: a rule lives until the flow table's round (contract A7.57).
WHERE = [NOT_YET, NOT_YET, SOFT, HARD, HARD, HARD, "not:teardown_fin", NOT_YET, HARD]


@pytest.fixture
def capture(tmp_path):
    """A packet each 10 ms."""
    path = tmp_path / "talk.pcap"
    with PcapSink(str(path)) as sink:
        memory, frames = frames_of(TALK)
        frames["ts"] = START + 10 * MS * np.arange(len(TALK), dtype=np.int64)
        sink.write(memory, frames)
    return path


def test_records_say_who_has_had_each_packet(capfd, capture):
    code, out, err = run(capfd, "replay", capture, "--nic", "perfect", "--packets", "-", "-q")
    assert (code, err) == (0, "")
    found = records(out)
    plain = records(run(capfd, "replay", capture, "--packets", "-", "-q")[1])
    assert [one["offload"] for one in found] == WHERE
    for name in ("i", "state", "dir", "conn", "proto", "verdict", "reason", "src", "dst", "sport", "dport"):
        assert [one[name] for one in found] == [one[name] for one in plain], name
    assert "hw-offload" in found[3]["status"]


def test_packets_in_hardware_that_are_of_no_connection_are_told_apart(capfd, tmp_path):
    who_has = craft.eth(bytes.fromhex("0001080006040001020000000001c0000201000000000000c0000202"), 0x0806)
    with PcapSink(str(tmp_path / "arp.pcap")) as sink:
        memory, frames = frames_of([who_has, *TALK])
        frames["ts"] = START + 10 * MS * np.arange(len(frames), dtype=np.int64)
        sink.write(memory, frames)
    code, out, _ = run(capfd, "replay", tmp_path / "arp.pcap", "--nic", "perfect")
    assert code == 0 and "NIC perfect: 5 of 10 packets (50.0%) in hardware" in out
    assert "of these 1 packet without a connection, as ARP: rules alone sent them on" in out
    assert "counters of hardware: 4 packets told to their connections" in out


def test_the_summary_counts_all_packets_and_tells_the_nic_s_share(capfd, capture):
    code, out, err = run(capfd, "replay", capture, "--nic", "perfect")
    assert (code, err) == (0, "")
    assert "9 packets" in out
    assert "NIC perfect: 4 of 9 packets (44.4%) in hardware" in out
    assert "to software: 2 packets: FIN or RST: only software ends connections" in out


def test_what_to_type_next_knows_of_the_nic(capfd, capture):
    """Behind a NIC `explain` would tell of another replay."""
    told = f"  ctmirror offload why {capture} --conn 0 --nic perfect"
    for more in ((), ("--checksum", "0")):
        code, out, err = run(capfd, "replay", capture, "--nic", "perfect", *more)
        said = " ".join((told, *more))
        assert (code, err) == (0, "") and said in out.splitlines() and "explain" not in out
        code, out, err = run(capfd, *said.split()[1:])
        assert (code, err) == (0, "") and "4 packets forwarded in hardware" in out
    for argv in ((capture, capture), (capture, "--nic-policy", "by-rate")):
        assert "offload why" not in run(capfd, "replay", *argv, "--nic", "perfect")[1], "which has no such options"


def test_sentences_that_are_wrapped_stand_further_in(capfd, capture, monkeypatch):
    monkeypatch.setenv("COLUMNS", "50")
    _, out, _ = run(capfd, "replay", capture, "--nic", "perfect")
    assert "  to software: 2 packets: FIN or RST: only\n      software ends connections\n" in out
    assert "%)" in out and " %" not in out


@pytest.mark.parametrize(("nic", "there"), [("perfect", [True, False, True]), ("none", [False] * 3)])
def test_records_of_rules_say_which_are_in_hardware(capfd, capture, tmp_path, nic, there):
    rules = tmp_path / "rules.tc"
    rules.write_text(SNAT.replace("ct commit nat", "ct commit mark 7 nat"))  # which changes the connection, and no NIC can
    options = ("--rules", rules, "--device", "lan:ingress", "--checksum", "0")
    code, out, err = run(capfd, "replay", capture, *options, "--nic", nic, "--rule-counters", "-", "-q")
    assert (code, err) == (0, "")
    assert [one["in_hw"] for one in records(out)] == there


def test_hardware_translates_as_software_does(capfd, capture, tmp_path):
    rules = tmp_path / "snat.tc"
    rules.write_text(SNAT)
    there = [frame for frame in TALK if frame[26:30] == bytes((10, 0, 0, 2))]
    assert len(there) == 6
    options = ("--rules", rules, "--device", "lan:ingress", "--checksum", "0")
    names = [tmp_path / name for name in ("alone.pcap", "nic.pcap")]
    for name, more in zip(names, ((), ("--nic", "perfect")), strict=True):
        code, _, err = run(capfd, "replay", capture, *options, *more, "-w", name, "-q")
        assert (code, err) == (0, "")
    assert names[0].read_bytes() == names[1].read_bytes()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ("--nic", "none-such"),
            "none-such: no such NIC: expected one of connectx-6dx-sw, connectx-7-hw, none, perfect, tiny, or a file that ends in .toml",
        ),
        (("--nic", "{rules}"), "expected one of"),
        (("--nic", "tiny", "--rules", "{rules}", "--no-flowtable"), "NIC: expected a flow table: connections are offloaded from it"),
        (("--nic-policy", "by-rate"), "--nic-policy: expected --nic with it"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(capfd, capture, tmp_path, options, said):
    rules = tmp_path / "rules.tc"
    rules.write_text(SNAT)
    code, out, err = run(capfd, "replay", capture, *(option.format(rules=rules) for option in options))
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1
