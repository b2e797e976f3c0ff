"""`ctmirror conntrack` before a running node: conntrack(8)'s options, lines, summaries and exit codes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from ctcore.errors import CtmirrorError
from datapath import craft
from datapath.live import conntrack_words
from pcap_tests.test_datapath.command import records, run
from pcap_tests.test_datapath.test_live.noded import running

A, B = "10.0.0.1", "10.0.0.2"
RULES = """tc qdisc add dev eth0 clsact
tc filter add dev eth0 ingress prio 1 protocol ip flower ip_proto udp dst_port 54 action ct commit nat src addr 192.0.2.1 pipe action pass
tc filter add dev eth0 ingress prio 2 protocol ip flower ip_proto udp dst_port 55 action ct commit nat dst addr 192.0.2.2 pipe action pass
tc filter add dev eth0 ingress prio 3 protocol all flower action ct commit pipe action pass
tc qdisc add dev eth1 clsact
tc filter add dev eth1 ingress prio 1 protocol all flower action ct commit zone 5 pipe action pass
"""
TCP = (
    "tcp      6 LEFT SYN_RECV src=10.0.0.1 dst=10.0.0.2 sport=40000 dport=80 packets=1 bytes=40 "
    "src=10.0.0.2 dst=10.0.0.1 sport=80 dport=40000 packets=1 bytes=40 mark=0 use=1\n"
)
PING = (
    "icmp     1 LEFT src=10.0.0.1 dst=10.0.0.2 type=8 code=0 id=7 packets=1 bytes=28 [UNREPLIED] "
    "src=10.0.0.2 dst=10.0.0.1 type=0 code=0 id=7 packets=0 bytes=0 mark=0 use=1\n"
)
UDP6 = (
    "udp      17 LEFT src=2001:db8::1 dst=2001:db8::2 sport=4000 dport=53 packets=1 bytes=49 [UNREPLIED] "
    "src=2001:db8::2 dst=2001:db8::1 sport=53 dport=4000 packets=0 bytes=0 mark=0 zone=5 use=1\n"
)
SUMMARY = "ctmirror v0.1.0 (conntrack): {} flow entries have been {}.\n"


@pytest.fixture
def rig(tmp_path):
    """Four connections: TCP, ping, UDP over IPv6 in zone 5; without a flow table, so that all have their timeouts."""
    with running(tmp_path, RULES, flowtable=False) as rig:
        rig.send(craft.tcp(A, B, 40000, 80, "S", seq=1), craft.icmp(A, B, 8, ident=7, sequence=1))
        rig.send(craft.tcp(B, A, 80, 40000, "SA", seq=1, ack=2))
        rig.send(craft.udp("2001:db8::1", "2001:db8::2", 4000, 53, b"?"), iface=1)
        yield rig


def timeless(lines):
    """conntrack's lines with LEFT for the seconds that are left, for these go on."""
    return re.sub(r"^((?:ipv\d +\d+ )?\w+ +\d+) \d+ ", r"\1 LEFT ", lines, flags=re.MULTILINE)


@pytest.fixture
def conntrack(rig, capfd):
    """conntrack(...) -> exit code, stdout, stderr."""

    def call(*argv):
        code, out, err = run(capfd, "conntrack", *argv, "--socket", rig.path)
        return code, timeless(out), err

    return call


def test_the_list_is_conntracks(conntrack):
    assert conntrack("-L") == (0, TCP + PING + UDP6, SUMMARY.format(3, "shown"))
    assert conntrack("-L", "conntrack", "--quiet") == (0, TCP + PING + UDP6, "")


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (["-p", "tcp"], TCP), (["-p", "6"], TCP), (["-p", "ICMP"], PING), (["-f", "ipv6"], UDP6), (["-w", "5"], UDP6), (["-w", "0"], TCP + PING),
        (["-s", "10.0.0.0/30", "--dport", "80"], TCP), (["-d", "2001:db8::/32"], UDP6), (["-r", B, "-q", A, "--reply-port-dst", "40000"], TCP),
        (["-u", "UNREPLIED"], PING + UDP6), (["-u", "seen_reply"], TCP), (["-u", "ASSURED"], ""), (["--state", "SYN_RECV"], TCP), 
        (["-m", "0"], TCP + PING + UDP6),
        (["-m", "0x10/0x10"], ""), (["-n"], ""), (["-g"], ""), (["-j"], ""), (["-l", "3"], ""), (["--sport", "4000"], UDP6),
    ],
)  # fmt: skip
def test_options_choose(conntrack, options, found):
    assert conntrack("-L", *options) == (0, found, SUMMARY.format(found.count("\n"), "shown"))


def test_translated_connections_are_found(rig, conntrack):
    rig.send(craft.udp(A, B, 1, 54, b"?"), craft.udp(A, B, 2, 55, b"?"))

    def ports(*options):
        return [record["original"]["sport"] for record in records(conntrack("-L", "-o", "json", *options)[1])]

    assert ports("-n") == ports("-n", "192.0.2.1") == ports("--src-nat=192.0.2.1") == [1]
    assert ports("-g") == ports("-g", "192.0.2.2") == [2]
    assert ports("-j") == [1, 2]
    assert ports("-j", "192.0.2.2") == [2]
    assert ports("-n", "192.0.2.9") == []
    assert conntrack("-D", "-j", "192.0.2.1")[0] == 0
    assert ports("-j") == [2]


def test_offloaded_connections_are_marked(tmp_path, capfd):
    with running(tmp_path) as rig:
        rig.send(craft.udp(A, B, 4000, 53, b"?"))
        out = run(capfd, "conntrack", "-L", "--socket", rig.path)[1]
    assert out == (
        "udp      17 src=10.0.0.1 dst=10.0.0.2 sport=4000 dport=53 packets=1 bytes=29 [UNREPLIED] "
        "src=10.0.0.2 dst=10.0.0.1 sport=53 dport=4000 packets=0 bytes=0 [OFFLOAD] mark=0 use=1\n"
    )


def test_states_may_be_written_small(conntrack):
    assert conntrack("-L", "--state", "syn_recv")[1] == conntrack("-L", "--state", "SYN_RECV")[1] == TCP


def test_forms_of_output(conntrack):
    assert conntrack("-L", "-p", "tcp", "-o", "extended,id")[1] == f"ipv4     2 {TCP[:-1]} id=0\n"
    assert conntrack("-L", "-w", "5", "-o", "extended", "-o", "id")[1] == f"ipv6     10 {UDP6[:-1]} id=2\n"
    (record,) = records(conntrack("-L", "-p", "tcp", "-o", "json")[1])
    assert (record["conn"], record["l4state"], record["original"]["dport"], record["end"]) == (0, "SYN_RECV", 80, "alive")


def test_labels_by_number_and_by_name(conntrack, monkeypatch, tmp_path):
    monkeypatch.setattr(conntrack_words, "LABEL_NAMES", tmp_path / "connlabel.conf")
    assert conntrack("-U", "-p", "tcp", "--label-add", "1,127")[0] == 0
    assert conntrack("-L", "-l", "127", "-o", "labels")[1] == f"{TCP[:-1]} labels=1,127\n"
    (tmp_path / "connlabel.conf").write_text("# bits\n1 web\n127 far-away\n300 none\n")
    assert conntrack("-L", "-l", "web", "-o", "labels")[1] == f"{TCP[:-1]} labels=web,far-away\n"
    assert conntrack("-U", "-p", "tcp", "--label-del", "far-away")[0] == 0
    assert conntrack("-L", "-l", "web,far-away")[1] == ""
    assert conntrack("-U", "-p", "tcp", "--label-del")[0] == 0
    assert conntrack("-L", "-l", "web")[1] == ""


def test_counting(conntrack):
    assert conntrack("-C") == (0, "3\n", "")
    code, out, _ = conntrack("-S")
    assert code == 0 and out.startswith("cpu=0   \tfound=1 new=3 invalid=0 ")


def test_one_is_shown_or_it_does_not_exist(conntrack):
    whole = ["-s", A, "-d", B, "-p", "tcp", "--sport", "40000"]
    assert conntrack("-G", *whole, "--dport", "80") == (0, TCP, SUMMARY.format(1, "shown"))
    assert conntrack("-G", *whole, "--dport", "81") == (1, "", "ctmirror: Operation failed: such conntrack doesn't exist\n")


def test_deleting(conntrack):
    assert conntrack("-D", "-s", "10.0.0.0/8", "-p", "tcp") == (0, TCP, SUMMARY.format(1, "deleted"))
    assert conntrack("-D", "-p", "tcp") == (1, "", SUMMARY.format(0, "deleted"))
    assert conntrack("-D", "-s", A)[:2] == (0, PING)


def test_changing(conntrack):
    changed = TCP.replace("mark=0", "[ASSURED] mark=18")
    assert conntrack("-U", "-p", "tcp", "-m", "0x12/0xff", "-t", "1000", "-u", "ASSURED") == (0, changed, SUMMARY.format(1, "updated"))
    (record,) = records(conntrack("-L", "-p", "tcp", "-o", "json")[1])
    assert 900 < record["timeout"] <= 1000
    assert conntrack("-U", "-p", "sctp", "-t", "9") == (1, "", SUMMARY.format(0, "updated"))


def test_flushing(conntrack):
    said = "ctmirror v0.1.0 (conntrack): connection tracking table has been emptied.\n"
    assert conntrack("-F", "-f", "ipv6") == (0, "", said)
    assert conntrack("-C")[1] == "2\n"
    assert conntrack("-F") == (0, "", said)
    assert conntrack("-C")[1] == "0\n"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "expected one of -L, -G, -D, -U, -E, -F, -S, -C"),
        (["-L", "-D"], "expected one of -L, -G, -D, -U, -E, -F, -S, -C"),
        (["-L", "-t", "5"], "-L: takes no --timeout"),
        (["-L", "-e", "NEW"], "-L: takes no --event-mask"),
        (["-C", "-p", "tcp"], "-C: takes no --proto"),
        (["-F", "-s", A], "-F: takes no --src"),
        (["-G", "-s", A], "-G: expected -d, -p"),
        (["-G", "-s", A, "-d", B, "-p", "tcp", "--sport", "4000"], "-G -p tcp: expected --dport"),
        (["-L", "-o", "xml"], "-o xml: xml is not made here: expected json"),
        (["-L", "-o", "yaml"], "-o yaml: expected json, extended, timestamp, id, labels"),
        (["-L", "-p", "quic"], "-p quic: expected a protocol"),
        (["-L", "-p", "256"], "-p 256: expected a protocol"),
        (["-L", "-s", "10.0.0.1/8"], "-s 10.0.0.1/8: expected an address, or a network without bits"),
        (["-L", "-s", A, "-d", "::1"], "addresses of both families"),
        (["-L", "-m", "1/2/3"], "-m 2/3: expected a whole number"),
        (["-L", "-m", "-1"], "-m -1: expected a whole number from 0 to 4294967295"),
        (["-L", "-u", "OPEN"], "-u OPEN: expected ASSURED"),
        (["-L", "-l", "128"], "-l 128: expected bits from 0 to 127"),
        (["-L", "-n", "192.0.2.1", "-q", "192.0.2.2"], "--src-nat 192.0.2.1: contradicts --reply-dst 192.0.2.2"),
        (["-L", "-j", "home"], "which: translated: expected an address, or 'any'"),
        (["-U", "-p", "tcp"], "-U: nothing to change"),
        (["-U", "-m", "3/1"], "-m 3/1: expected a value without bits outside of its mask"),
        (["-U", "-u", "CONFIRMED"], "-u CONFIRMED: Linux lets it not be set"),
        (["-E", "-e", "OLD"], "-e OLD: expected NEW, UPDATES, DESTROY, ALL"),
        (["-L", "--zone", "65536"], "65536"),
        (["-L", "--state", "OPEN"], "which: l4state: expected one of"),
    ],
)
def test_what_makes_no_sense_is_one_line_and_two(conntrack, argv, said):
    code, out, err = conntrack(*argv)
    assert (code, out) == (2, "")
    assert said in err and err.startswith("ctmirror: ") and err.count("\n") == 1


def test_without_a_node_there_is_one_line(capfd, tmp_path):
    code, out, err = run(capfd, "conntrack", "-L", "--socket", str(tmp_path / "none"))
    assert (code, out) == (2, "")
    assert err == f"ctmirror: {tmp_path}/none: no node is running there: expected one started by `ctmirror run`, or --socket PATH\n"


# --- events ---------------------------------------------------------------------------------------------------------------------------------


class Following:
    """`ctmirror conntrack -E` in a process of its own."""

    def __init__(self, rig, *options):
        command = [sys.executable, "-m", "datapath", "conntrack", "-E", *options, "--socket", rig.path]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
        )
        rig.until(lambda: rig.control.listeners())

    def lines(self, n):
        return [self.process.stdout.readline() for _ in range(n)]

    def end(self):
        """What it says at last."""
        self.process.send_signal(signal.SIGINT)
        out, err = self.process.communicate(timeout=30)
        assert self.process.returncode == 0
        return out, err


def test_events_are_followed_until_ctrl_c(rig, conntrack):
    following = Following(rig, "-e", "NEW,DESTROY", "-o", "timestamp,extended", "-p", "udp")
    before = time.time()
    rig.send(craft.udp(A, B, 5000, 53, b"?"), craft.tcp(A, B, 5001, 80, "S", seq=1))
    conntrack("-D", "-s", A)
    new, gone = following.lines(2)
    stamp, _, text = new.partition("\t")
    assert before - 1 < float(stamp.strip("[]")) < time.time() + 1
    assert text == (
        "    [NEW] ipv4     2 udp      17 30 src=10.0.0.1 dst=10.0.0.2 sport=5000 dport=53 [UNREPLIED] "
        "src=10.0.0.2 dst=10.0.0.1 sport=53 dport=5000\n"
    )
    assert gone.partition("\t")[2].startswith("[DESTROY] ipv4     2 udp      17 ")
    assert following.end() == ("", "ctmirror v0.1.0 (conntrack): 2 flow events have been shown.\n")


def test_events_as_json_have_numbers(rig):
    following = Following(rig, "-o", "json")
    rig.send(craft.udp(A, B, 5000, 53, b"?"), craft.udp(A, B, 5001, 53, b"?"))
    first, second = (json.loads(line) for line in following.lines(2))
    assert (first["event"], second["event"], second["seq"]) == ("new", "new", first["seq"] + 1)
    following.end()


def test_a_listing_comes_first_and_after_a_loss_if_asked(tmp_path):
    with running(tmp_path, RULES, flowtable=False, conntrack={"event_buffer": 16}) as rig:
        rig.send(craft.udp("2001:db8::1", "2001:db8::2", 4000, 53, b"?"), iface=1)
        following = Following(rig, "--resync", "-p", "udp")
        assert timeless(following.lines(1)[0]) == UDP6
        rig.send(*(craft.udp(A, B, 6000 + i, 53, b"?") for i in range(50)))  # one batch of 50, for 16 of which there is room
        told = following.lines(16 + 51)
        assert [line.startswith("    [NEW] udp") for line in told] == [True] * 16 + [False] * 51
        assert UDP6.split(" src=")[1:] == told[16].split(" src=")[1:]
        said = [following.process.stderr.readline() for _ in range(3)]
        out, err = following.end()
    assert out == ""
    assert "".join(said) + err == (
        "ctmirror: 1 connections listed, as of event 1\n"
        "ctmirror: 34 events were lost (numbers 17 to 50)\n"
        "ctmirror: 51 connections listed, as of event 51\n"
        "ctmirror v0.1.0 (conntrack): 16 flow events have been shown.\n"
    )


def test_a_loss_is_told_with_what_to_do_about_it(tmp_path):
    with running(tmp_path, conntrack={"event_buffer": 16}) as rig:
        following = Following(rig, "-e", "NEW")
        rig.send(*(craft.udp(A, B, 6000 + i, 53, b"?") for i in range(20)))
        following.lines(16)
        said = following.process.stderr.readline()
        following.end()
    assert said[:-1] == "ctmirror: 4 events were lost (numbers 16 to 19); --resync lists what is there"


def test_a_node_that_ends_ends_the_events(tmp_path):
    with running(tmp_path) as rig:
        following = Following(rig)
        rig.send(craft.udp(A, B, 5000, 53, b"?"))
        assert "[NEW] udp" in following.lines(1)[0]
    out, err = following.process.communicate(timeout=30)
    assert (following.process.returncode, out) == (2, "")
    assert err == f"ctmirror: {rig.path}: the node has ended the connection; 1 events were shown\n"


def test_events_that_are_off_are_refused(tmp_path, capfd):
    with running(tmp_path, control={"events": False}) as rig:
        code, _, err = run(capfd, "conntrack", "-E", "--socket", rig.path)
    assert (code, err) == (2, "ctmirror: events: this node makes none: expected control.events = true\n")


def test_status_words_are_bits_of_both_kinds():
    assert conntrack_words.statuses("ASSURED,UNREPLIED") == (["assured"], ["seen-reply"])
    with pytest.raises(CtmirrorError):
        conntrack_words.statuses("")
