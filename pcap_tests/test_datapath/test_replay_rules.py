"""replay --rules from end to end: captures of a NIC's uplink and of a VM's representor go in; records, what leaves, and a summary come out."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pyarrow.parquet
import pytest
from scapy.layers.inet import IP
from scapy.layers.l2 import Ether
from scapy.utils import PcapNgReader

from datapath import craft
from datapath.capture import PcapSource
from datapath.frame import frames_of
from datapath.sink import PcapSink
from pcap_tests.test_datapath.command import records, run

EXAMPLE = Path(__file__).parents[2] / "examples" / "vm-behind-vf"
RULES, CAPTURE = EXAMPLE / "rules.tc", EXAMPLE / "traffic.pcapng"
CLIENT, SERVER, PUBLIC = "10.0.0.2", "198.51.100.1", "192.0.2.7"
MS, START = 10**6, 1_700_000_000 * 10**9
SNAT = """
tc qdisc add dev in0 ingress
tc qdisc add dev out0 ingress
tc filter add dev in0 ingress protocol ip prio 1 flower action ct commit nat src addr 192.0.2.7 pipe action mirred egress redirect dev out0
tc filter add dev out0 ingress protocol ip prio 1 chain 0 flower ct_state -trk action ct nat pipe action goto chain 1
tc filter add dev out0 ingress protocol ip prio 1 chain 1 flower ct_state +trk+est action mirred egress redirect dev in0
tc filter add dev out0 ingress protocol ip prio 2 chain 1 flower action drop
"""


def packets(capfd, *argv):
    code, out, err = run(capfd, "replay", *argv, "--packets", "-", "-q")
    assert (code, err) == (0, "")
    return records(out)


@pytest.fixture
def both_ways(tmp_path):
    """A UDP question from inside, its answer, and a stranger's packet, at their two interfaces."""
    said = [
        (0, craft.udp(CLIENT, SERVER, 5353, 53, b"who?")),
        (1, craft.udp(SERVER, PUBLIC, 53, 5353, b"you!")),
        (1, craft.udp("203.0.113.9", PUBLIC, 53, 5353, b"me!")),
    ]
    memory, frames = frames_of([frame for _, frame in said])
    frames["ts"], frames["iface"] = [START + i * MS for i in range(3)], [iface for iface, _ in said]
    path = tmp_path / "nat.pcapng"
    with PcapSink(path, ifaces={0: "in0", 1: "out0"}) as sink:
        sink.write(memory, frames)
    (tmp_path / "nat.tc").write_text(SNAT)
    return path, tmp_path / "nat.tc"


def test_every_packet_has_its_rule_and_where_it_went(capfd):
    seen = packets(capfd, CAPTURE, "--rules", RULES)
    assert Counter((each["verdict"], each["to"]) for each in seen) == {("accept", "eth0_0"): 17, ("accept", "eth0"): 36, ("drop", None): 2}
    refused = [(each["src"], each["dport"], each["rule"].rpartition(":")[2]) for each in seen if each["verdict"] == "drop"]
    assert refused == [("198.51.100.10", 80, "22"), ("192.0.2.10", 22, "16")]
    assert all(each["reason"] == "rule_drop" and each["conn"] is None for each in seen if each["verdict"] == "drop")


def test_the_flow_table_serves_a_connection_between_its_handshake_and_its_end(capfd):
    seen = [each for each in packets(capfd, CAPTURE, "--rules", RULES) if each["conn"] == 0]
    said = [each["offload"] for each in seen]
    assert said[:3] == ["not:tcp_state", "not:tcp_state", "software"]
    assert said[-3:] == ["not:teardown_fin", "not:tcp_state", "not:tcp_state"]
    assert set(said[2:-3]) == {"software"}


def test_without_a_flow_table_the_same_packets_go_the_same_way(capfd):
    told = ("i", "state", "dir", "conn", "l4state", "verdict", "reason", "to", "rule")
    with_it, without = (packets(capfd, CAPTURE, "--rules", RULES, *flag) for flag in ([], ["--no-flowtable"]))
    assert [[each[name] for name in told] for each in with_it] == [[each[name] for name in told] for each in without]
    assert {each["offload"] for each in without} == {None}


def test_rules_in_yaml_are_the_same_rules(capfd):
    told = ("i", "verdict", "to", "state")
    tc, yaml = (packets(capfd, CAPTURE, "--rules", EXAMPLE / name) for name in ("rules.tc", "rules.yaml"))
    assert [[each[name] for name in told] for each in tc] == [[each[name] for name in told] for each in yaml]


def test_what_leaves_is_written_with_its_device(capfd, tmp_path, both_ways):
    capture, rules = both_ways
    out = tmp_path / "out.pcapng"
    assert run(capfd, "replay", capture, "--rules", rules, "-q", "-w", out)[0] == 0
    with PcapSource(out) as source:
        _, frames = source.read(10)
        assert [source.ifaces[i] for i in frames["iface"]] == ["out0", "in0"]
    left = list(PcapNgReader(str(out)))
    assert [(each[Ether][IP].src, each[Ether][IP].dst) for each in left] == [(PUBLIC, SERVER), (SERVER, CLIENT)]
    assert [each.comment.decode().rpartition(" to ")[2] for each in left] == ["out0", "in0"]


def test_a_record_says_what_its_packet_leaves_as(capfd, both_ways):
    capture, rules = both_ways
    question, answer, stranger = packets(capfd, capture, "--rules", rules)
    assert question["out"] == {"src": PUBLIC, "dst": SERVER, "sport": 5353, "dport": 53}
    assert answer["out"] == {"src": SERVER, "dst": CLIENT, "sport": 53, "dport": 5353}
    assert (stranger["out"], stranger["verdict"], stranger["state"]) == (None, "drop", "new")


def test_the_summary_has_the_rules_and_the_flow_table(capfd):
    code, out, err = run(capfd, "replay", CAPTURE, "--rules", RULES)
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert ["rules.tc:21", "35"] in [line[:2] for line in lines] and ["rules.tc:22", "1"] in [line[:2] for line in lines]
    assert "2 rules matched nothing" in out
    assert out.rstrip().endswith(f"ctmirror explain {CAPTURE} --conn 0 --rules {RULES}"), "what to type next"
    assert "flow table: 1 connection admitted, 45 packets served" in out and "torn down: FIN 1" in out
    assert "durations are unknown: the flow table sets deadlines of its own" in out and "duration  " not in out
    alone = run(capfd, "replay", CAPTURE, "--rules", RULES, "--no-flowtable")[1]
    assert "flow table" not in alone and "duration  " in alone


def test_rule_counters_have_a_record_for_each_rule_in_the_order_of_the_file(capfd):
    code, out, err = run(capfd, "replay", CAPTURE, "--rules", RULES, "--rule-counters", "-", "-q")
    assert (code, err) == (0, "")
    rules, seen = records(out), packets(capfd, CAPTURE, "--rules", RULES)
    lines = [int(each["rule"].rpartition(":")[2]) for each in rules]
    assert lines == sorted(lines)
    by_line = dict(zip(lines, rules, strict=True))
    dropped = by_line[22]
    (last,) = (each["ts"] for each in seen if each["rule"].endswith(":22"))
    assert {name: dropped[name] for name in ("device", "direction", "block", "packets", "last", "in_hw", "skip_sw")} == {
        "device": "eth0_0", "direction": "ingress", "block": None, "packets": 1, "last": last, "in_hw": False, "skip_sw": False,
    }  # fmt: skip
    assert dropped["tc"].startswith(f"tc filter add dev eth0_0 ingress protocol ip prio {dropped['prio']} chain {dropped['chain']} handle 0x1 flower")
    assert dropped["bytes"] == next(each["len"] for each in seen if each["rule"].endswith(":22"))
    silent = [each for each in rules if not each["packets"]]
    assert len(silent) == 2 and all((each["bytes"], each["last"]) == (0, None) for each in silent)
    # What decided a packet is the last rule that it matched.
    for line, number in Counter(int(each["rule"].rpartition(":")[2]) for each in seen).items():
        assert by_line[line]["packets"] >= number


def test_rule_counters_are_the_same_without_a_flow_table_and_in_every_format(capfd, tmp_path):
    told = []
    for name, more in (("with.jsonl", ()), ("without.jsonl", ("--no-flowtable",)), ("rules.csv", ()), ("rules.parquet", ())):
        assert run(capfd, "replay", CAPTURE, "--rules", RULES, "--rule-counters", tmp_path / name, "-q", *more)[0] == 0
        told.append((tmp_path / name).read_bytes())
    assert told[0] == told[1]
    rules = records(told[0].decode())
    rows = list(csv.DictReader(told[2].decode().splitlines()))
    plain = {None: "", False: "false", True: "true"}
    assert rows == [
        {name: str(plain[value] if value is None or isinstance(value, bool) else value) for name, value in each.items()} for each in rules
    ]
    assert pyarrow.parquet.read_table(tmp_path / "rules.parquet").to_pylist() == rules


def test_rule_counters_of_a_shared_block_have_no_device(capfd, tmp_path):
    (tmp_path / "block.tc").write_text(
        "tc qdisc add dev eth0 ingress_block 7 clsact\ntc filter add block 7 protocol ip prio 1 flower skip_hw action pass\n"
    )
    _, out, _ = run(capfd, "replay", CAPTURE, "--rules", tmp_path / "block.tc", "--device", "eth0", "--rule-counters", "-", "-q")
    (only,) = records(out)
    assert (only["device"], only["direction"], only["block"], only["skip_hw"], only["in_hw"]) == (None, None, 7, True, False)


def test_verbose_tells_when_rules_matched_last(capfd):
    _, out, _ = run(capfd, "replay", CAPTURE, "--rules", RULES, "-v")
    assert "last used" in out and "at the end" in out and " ago " in out
    assert "last used" not in run(capfd, "replay", CAPTURE, "--rules", RULES)[1]


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        (["--device", "eth0"], "--device: expected --rules with it"),
        (["--no-flowtable"], "--no-flowtable: expected --rules with it"),
        (["--rule-counters", "-"], "--rule-counters: expected --rules with it"),
        (["--rules", RULES, "--rule-counters", "-", "--packets", "-"], "-: expected a file of its own for each output"),
        (["--rules", RULES, "--rule-counters", "x.conntrack"], "--rule-counters x.conntrack: conntrack's lines are about connections"),
        (["--rules", RULES, "--rules", RULES], "--rules: is there 2 times: expected it once; tc lines of several files may be put together by cat"),
        (["--rules", RULES, "--device", "eth0", "--device", "eth0_0"], "--device: is there 2 times: expected it once"),
        (["--rules", RULES, "--zone", "4"], "--zone: not with --rules, where actions say it: expected `ct zone N` in the rules"),
        (["--rules", RULES, "--snat", "192.0.2.1"], "--snat: not with --rules, where actions say it: expected `ct commit nat src addr A`"),
        (["--rules", RULES, "--clock", "wall"], "--clock wall: expected it without --rules: rules go by the packets' own time"),
        (["--rules", RULES, "--device", ":egress"], "--device ':egress': expected DEVICE, or DEVICE:egress"),
        (["--rules", "/nowhere.tc"], "/nowhere.tc: cannot be read: No such file or directory"),
    ],
)
def test_options_that_do_not_go_together(capfd, argv, error):
    code, out, err = run(capfd, "replay", CAPTURE, *argv)
    assert (code, out) == (2, "")
    assert err.startswith(f"ctmirror: {error}") and err.count("\n") == 1


def test_a_capture_that_does_not_say_where_its_packets_arrive(capfd, tmp_path):
    path = tmp_path / "plain.pcap"
    with PcapSink(path) as sink:
        sink.write(*frames_of([craft.tcp("192.0.2.10", "198.51.100.10", 40000, 80, "S")]))
    code, _, err = run(capfd, "replay", path, "--rules", RULES, "-q")
    assert (code, err) == (2, f"ctmirror: {path}: it does not say at which device its packets arrived: expected --device eth0 or eth0_0\n")
    (only,) = packets(capfd, path, "--rules", RULES, "--device", "eth0")
    assert (only["state"], only["to"]) == ("new", "eth0_0")
    (other,) = packets(capfd, path, "--rules", RULES, "--device", "eth0_0")
    assert (other["verdict"], other["reason"]) == ("drop", "rule_drop")


TRACK_ALL = "tc filter add dev eth0 ingress protocol all prio 1 flower action ct commit zone 4 pipe action mirred egress redirect dev eth1\n"


@pytest.mark.parametrize("more", [(), ("--no-flowtable",)])
def test_what_no_tracker_saw_has_nobody_elses_connection(capfd, tmp_path, more):
    """A fragment that is held, and what is no IP packet, right behind a packet of a connection."""
    (tmp_path / "all.tc").write_text(TRACK_ALL)
    frames = [craft.udp(CLIENT, SERVER, 5353, 53), craft.frame(CLIENT, SERVER, craft.UDP, bytes(16), frag=0x2000), craft.eth(bytes(28), 0x0806)]
    with PcapSink(tmp_path / "some.pcap") as sink:
        sink.write(*frames_of(frames, ts=START))
    first, held, arp = packets(capfd, tmp_path / "some.pcap", "--rules", tmp_path / "all.tc", *more)
    assert (first["conn"], first["state"]) == (0, "new")
    for record, verdict, reason in ((held, "held", "fragment"), (arp, "drop", "not_ip")):
        assert (record["verdict"], record["reason"], record["state"]) == (verdict, reason, "not-seen")
        assert [record[name] for name in ("conn", "dir", "timeout", "offload", "status")] == [None, None, None, None, []]


def test_what_leaves_is_told_by_its_headers_whatever_their_checksums(capfd, tmp_path):
    change = "action pedit ex munge ip dst set 192.0.2.99 pipe action mirred egress redirect dev eth1"
    (tmp_path / "ttl.tc").write_text(f"tc filter add dev eth0 ingress protocol ip prio 1 flower {change}\n")
    with PcapSink(tmp_path / "some.pcap") as sink:
        sink.write(*frames_of([craft.udp(CLIENT, SERVER, 5353, 53)], ts=START))
    (record,) = packets(capfd, tmp_path / "some.pcap", "--rules", tmp_path / "ttl.tc")
    assert record["out"] == {"src": CLIENT, "dst": "192.0.2.99", "sport": 5353, "dport": 53}
