"""`ctmirror conntrack -L expect`: what helpers of a running node expect, as conntrack(8) lists it."""

from __future__ import annotations

import re

import pytest

from datapath import craft
from datapath.live.expected import expect_line
from pcap_tests.test_datapath.command import records, run
from pcap_tests.test_datapath.test_live.noded import running

ENDS = (("10.0.0.1", "10.0.0.2", b"PORT 10,0,0,1,156,65\r\n"), ("2001:db8::1", "2001:db8::2", b"EPRT |2|2001:db8::1|40001|\r\n"))
RULES = """tc qdisc add dev eth0 clsact
tc filter add dev eth0 ingress prio 1 protocol ip flower ip_proto tcp action ct commit helper ipv4-tcp-ftp pipe action pass
tc filter add dev eth0 ingress prio 2 protocol ipv6 flower ip_proto tcp action ct commit zone 7 helper ipv6-tcp-ftp pipe action pass
"""
# Printed by conntrack 1.4.7 for the same IPv4 conversation before Linux 6.18.
LINE4 = (
    "LEFT proto=6 src=10.0.0.2 dst=10.0.0.1 sport=0 dport=40001 mask-src=255.255.255.255 mask-dst=255.255.255.255 sport=0 dport=65535 "
    "master-src=10.0.0.1 master-dst=10.0.0.2 sport=40000 dport=21 class=0 helper=ftp"
)
FULL6 = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
LINE6 = (
    f"LEFT proto=6 src=2001:db8::2 dst=2001:db8::1 sport=0 dport=40001 mask-src={FULL6} mask-dst={FULL6} sport=0 dport=65535 "
    "master-src=2001:db8::1 master-dst=2001:db8::2 sport=40000 dport=21 zone=7 class=0 helper=ftp"
)


@pytest.fixture
def rig(tmp_path):
    with running(tmp_path, RULES, flowtable=False) as rig:
        for client, server, command in ENDS:
            rig.send(craft.tcp(client, server, 40000, 21, "S", seq=100))
            rig.send(craft.tcp(server, client, 21, 40000, "SA", seq=500, ack=101))
            rig.send(craft.tcp(client, server, 40000, 21, "A", seq=101, ack=501))
            rig.send(craft.tcp(server, client, 21, 40000, "PA", seq=501, ack=101, payload=b"220 hi\r\n"))
            rig.send(craft.tcp(client, server, 40000, 21, "PA", seq=101, ack=509, payload=b"USER x\r\n"))
            rig.send(craft.tcp(client, server, 40000, 21, "PA", seq=109, ack=509, payload=command))
        yield rig


@pytest.fixture
def conntrack(rig, capfd):
    return lambda *argv: run(capfd, "conntrack", *argv, "--socket", rig.path)


def test_lines_are_conntrack_s(conntrack):
    code, out, err = conntrack("-L", "expect")
    assert code == 0 and err == "ctmirror v0.1.0 (conntrack): 2 expectations have been shown.\n"
    assert sorted(re.sub(r"^\d+ ", "LEFT ", line) for line in out.splitlines()) == sorted([LINE4, LINE6])
    assert all(290 <= int(line.split(" ")[0]) <= 300 for line in out.splitlines())
    assert conntrack("-C", "expect") == (0, "2\n", "")


def test_records(conntrack):
    four, six = sorted(records(conntrack("-L", "expect", "-o", "json")[1]), key=lambda record: record["master"])
    assert (four["proto"], four["src"], four["dst"], four["sport"], four["dport"], four["zone"]) == ("tcp", "10.0.0.2", "10.0.0.1", None, 40001, 0)
    assert (four["flags"], four["class"], four["helper"], four["master"], four["original"]["dport"]) == ([], 0, "ftp", 0, 21)
    assert (six["src"], six["zone"], six["master"]) == ("2001:db8::2", 7, 1)


def test_what_is_expected_goes_when_it_has_come(rig, conntrack):
    rig.send(craft.tcp("10.0.0.2", "10.0.0.1", 20, 40001, "S", seq=1))
    assert conntrack("-C", "expect")[1] == "1\n"
    conntrack("-F")
    assert conntrack("-L", "expect")[:2] == (0, "")


def test_any_source_any_port_and_what_stays():
    record = {
        "timeout": 179, "proto": "udp", "src": None, "dst": "10.0.0.1", "sport": 5060, "dport": 5060, "zone": 0, "flags": ["permanent", "inactive"],
        "class": 1, "helper": None, "master": 4, "original": {"src": "10.0.0.1", "dst": "10.0.0.2", "sport": 1, "dport": 2},
    }  # fmt: skip
    assert expect_line(record) == (
        "179 proto=17 src=0.0.0.0 dst=10.0.0.1 sport=5060 dport=5060 mask-src=0.0.0.0 mask-dst=255.255.255.255 sport=65535 dport=65535 "
        "master-src=10.0.0.1 master-dst=10.0.0.2 sport=1 dport=2 PERMANENT,INACTIVE class=1"
    )


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["-D", "expect"], "-D expect: expected -L or -C"),
        (["-L", "expect", "-p", "tcp"], "-L: takes no --proto"),
        (["-C", "expect", "-o", "json"], "-C: takes no --output"),
        (["-L", "expect", "-o", "timestamp"], "-L expect -o timestamp: expected json, or nothing"),
        (["-L", "dying"], "dying: expected the table conntrack or expect"),
    ],
)
def test_what_means_nothing_is_an_error(conntrack, argv, said):
    code, out, err = conntrack(*argv)
    assert (code, out) == (2, "") and err.startswith(f"ctmirror: {said}")


def test_many_come_in_parts(rig):
    def expect(node):
        for port in range(1000):
            node.pipeline.tracker.expect(0, "10.0.0.2", "10.0.0.1", 17, 1000 + port)

    rig.job(expect)
    with rig.client() as client:
        parts = [part["expectations"] for part in client.parts("expectations")]
    assert sum(map(len, parts)) == client.end["count"] == 1002 and max(map(len, parts)) <= 256
    assert len({(record["proto"], record["dst"], record["dport"]) for part in parts for record in part}) == 1002
