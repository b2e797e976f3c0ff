"""FTP and TFTP beside the running kernel, with and without translation: expected connections, edits, sequence numbers, and the bytes that leave.

Invariant of every test: engine and kernel agree.
"""

from __future__ import annotations

import time
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from ctcore.config import Config
from ctcore.nat_rules import HelperRule, Match, NatRule, Range
from ctcore.tracker import Tracker
from ctcore.types import State, Status, Verdict
from datapath import craft
from datapath.frame import frames_of
from datapath.oracle.compare import differences
from datapath.oracle.expected import ours_of
from datapath.oracle.lockstep import Compared, Lockstep
from datapath.oracle.oracle import Oracle

CLIENT, SERVER, PUBLIC = ("10.0.0.1", "2001:db8::1"), ("10.0.0.2", "2001:db8::2"), ("192.0.2.1", "2001:db8:9::1")
HELPERS = (HelperRule("ftp", 6, 21), HelperRule("tftp", 17, 69))
PORT, EPRT = b"PORT 10,0,0,1,156,65\r\n", b"EPRT |2|2001:db8::1|40001|\r\n"
PORT_LEFT, EPRT_LEFT = b"PORT 192,0,2,1,156,65\r\n", b"EPRT |2|2001:0db8:0009:0000:0000:0000:0000:0001|40001|\r\n"
PASV, EPSV = b"227 Entering Passive Mode (10,0,0,2,200,1)\r\n", b"229 Entering Extended Passive Mode (|||51201|)\r\n"


def judge(nat: tuple[NatRule, ...], *frames: bytes) -> Compared:
    with Oracle(Config(nat=nat, helpers=HELPERS)) as oracle:
        lockstep = Lockstep(oracle)
        compared = lockstep.run(*frames_of(frames))
        assert differences(compared, lockstep.config.hz) == []
        return compared


@pytest.mark.parametrize("translated", [False, True], ids=["plain", "snat"])
@pytest.mark.parametrize("v", [0, 1], ids=["ipv4", "ipv6"])
def test_ftp_active_and_passive(running_kernel: None, v: int, translated: bool) -> None:
    client, server = CLIENT[v], SERVER[v]
    seen = PUBLIC[v] if translated else client  # the client, as the server sees it
    command, left = (PORT, EPRT)[v], (PORT_LEFT, EPRT_LEFT)[v] if translated else (PORT, EPRT)[v]
    announced, acked = (PASV, EPSV)[v], 109 + len(left)
    rules = (NatRule("snat", Range(ip_address(PUBLIC[v]), ip_address(PUBLIC[v])), Match(src=ip_network(client))),) if translated else ()
    compared = judge(
        rules,
        craft.tcp(client, server, 40000, 21, "S", seq=100),
        craft.tcp(server, seen, 21, 40000, "SA", seq=500, ack=101),
        craft.tcp(client, server, 40000, 21, "A", seq=101, ack=501),
        craft.tcp(server, seen, 21, 40000, "PA", seq=501, ack=101, payload=b"220 hi\r\n"),
        craft.tcp(client, server, 40000, 21, "PA", seq=101, ack=509, payload=b"USER x\r\n"),
        craft.tcp(client, server, 40000, 21, "PA", seq=109, ack=509, payload=command),
        craft.tcp(client, server, 40000, 21, "PA", seq=109, ack=509, payload=command),  # once more
        craft.tcp(server, seen, 21, 40000, "A", seq=509, ack=acked),
        craft.tcp(server, seen, 20, 40001, "S", seq=900),
        craft.tcp(client, server, 40001, 20, "SA", seq=1900, ack=901),
        craft.tcp(client, server, 40000, 21, "PA", seq=109 + len(command), ack=509, payload=b"PASV\r\n"),
        craft.tcp(server, seen, 21, 40000, "PA", seq=509, ack=acked + 6, payload=announced),
        craft.tcp(client, server, 50000, 51201, "S", seq=77),
    )
    states, masters = compared.theirs.decisions["state"], compared.theirs.conns["master"]
    assert [int(states[i]) for i in (8, 12)] == [State.RELATED] * 2
    assert [int(masters[i]) for i in (0, 8, 12)] == [-1, 0, 0]
    assert bool(compared.theirs.decisions["status"][5] & Status.SEQ_ADJUST) == translated
    assert compared.theirs.out[5][0].endswith(left)


@pytest.mark.parametrize("translated", [False, True], ids=["plain", "snat"])
def test_tftp(running_kernel: None, translated: bool) -> None:
    """The file comes from a port that nobody asked."""
    rules = (NatRule("snat", Range(ip_address(PUBLIC[0]), ip_address(PUBLIC[0])), Match(src=ip_network(CLIENT[0]))),) if translated else ()
    seen = PUBLIC[0] if translated else CLIENT[0]
    asked, data = craft.udp(CLIENT[0], SERVER[0], 7777, 69, b"\0\1file\0octet\0"), craft.udp(SERVER[0], seen, 9999, 7777, b"\0\3\0\1data")
    compared = judge(rules, asked, data, craft.udp(CLIENT[0], SERVER[0], 7777, 9999, b"\0\4\0\1"))
    assert compared.theirs.decisions["state"].tolist() == [State.NEW, State.RELATED, State.ESTABLISHED]


START = 0xF0000000  # of the client: 0 is behind it


def error_about_an_answer(kind: str, address: str, port: int, ident: int) -> list[bytes]:
    """A client whose command, or whose server's answer, was changed, and its ICMP error about a packet of the server's, as it came to the client.

    kind: snat, with the client known as `address` and `port`; dnat: the server has the address, and is known by PUBLIC; ident: of the packet.
    """
    client, (known, sport) = CLIENT[0], (address, port) if kind == "snat" else (CLIENT[0], port)
    server, asked = (SERVER[0], SERVER[0]) if kind == "snat" else (address, PUBLIC[0])
    says = {"snat": (PORT, b""), "dnat": (b"PASV\r\n", b"227 (%s,200,1)\r\n" % address.replace(".", ",").encode())}[kind]
    own = 40000 if kind == "snat" else port
    return [
        craft.tcp(client, asked, own, 21, "S", seq=START),
        craft.tcp(server, known, 21, sport, "SA", seq=500, ack=START + 1),
        craft.tcp(client, asked, own, 21, "A", seq=START + 1, ack=501),
        craft.tcp(client, asked, own, 21, "PA", seq=START + 1, ack=501, payload=b"USER x\r\n"),
        craft.tcp(server, known, 21, sport, "PA", seq=501, ack=START + 9, payload=b"331 ok\r\n"),
        craft.tcp(client, asked, own, 21, "PA", seq=START + 9, ack=509, payload=says[0]),
        *([craft.tcp(server, known, 21, sport, "PA", seq=509, ack=START + 15, payload=says[1])] if says[1] else []),
        craft.icmp_error(client, asked, 3, 3, craft.tcp(asked, client, 21, own, "A", seq=509, ack=START + 9, ident=ident)),
    ]


NO_ACK, NO_OPTIONS, SIX_WORDS, EIGHT_WORDS = 0, 0x10, 0x6010, 0x8010
NOPS, SACK, LENGTH_0 = "1.1.1.1", "5.10.1.2", "10.0.7.7"


@pytest.mark.parametrize(
    ("kind", "address", "port", "ident", "verdict"),
    [
        ("snat", "192.0.2.100", 7000, NO_ACK, Verdict.ACCEPT),
        ("snat", "192.0.2.100", 7000, NO_OPTIONS, Verdict.ACCEPT),
        ("snat", "192.0.2.100", 7000, SIX_WORDS, Verdict.DROP),
        ("dnat", NOPS, 257, SIX_WORDS, Verdict.ACCEPT),
        ("dnat", LENGTH_0, 257, SIX_WORDS, Verdict.DROP),
        ("dnat", SACK, 257, EIGHT_WORDS, Verdict.ACCEPT),
        ("dnat", SACK, 7000, EIGHT_WORDS, Verdict.DROP),
    ],
)
def test_an_error_of_the_original_direction_is_moved_like_a_segment(
    running_kernel: None, kind: str, address: str, port: int, ident: int, verdict: Verdict
) -> None:
    """Linux takes it for a TCP header: the quoted identification for its length and flags, the quoted addresses and ports for its options.

    257 as a port is two NOPs.
    """
    ends = ip_address(address)
    rule = {
        "snat": NatRule("snat", Range(ends, ends, (port, port)), Match(src=ip_network(CLIENT[0]))),
        "dnat": NatRule("dnat", Range(ends, ends), Match(dst=ip_network(PUBLIC[0]))),
    }[kind]
    compared = judge((rule,), *error_about_an_answer(kind, address, port, ident))
    assert compared.theirs.decisions["state"][-1] == State.RELATED
    assert compared.theirs.decisions["verdict"][-1] == verdict
    assert compared.theirs.decisions["status"][-1] & Status.SEQ_ADJUST


def test_an_error_of_the_original_direction_is_moved_over_ipv6(running_kernel: None) -> None:
    """Its sum stays as it was before, and the quoted source address holds a part of what Linux takes for the sum."""
    rule = NatRule("snat", Range(ip_address(PUBLIC[1]), ip_address(PUBLIC[1])), Match(src=ip_network(CLIENT[1])))
    here, there = (CLIENT[1], SERVER[1], 40000, 21), (SERVER[1], PUBLIC[1], 21, 40000)
    arrived = craft.tcp(SERVER[1], CLIENT[1], 21, 40000, "A", seq=501, ack=START + 36)
    compared = judge(
        (rule,),
        craft.tcp(*here, "S", seq=START),
        craft.tcp(*there, "SA", seq=500, ack=START + 1),
        craft.tcp(*here, "PA", seq=START + 1, ack=501, payload=b"USER x\r\n"),
        craft.tcp(*here, "PA", seq=START + 9, ack=501, payload=EPRT),
        craft.icmp_error(CLIENT[1], SERVER[1], 1, 4, arrived),
    )
    moved = len(EPRT_LEFT) - len(EPRT)
    assert compared.theirs.out[-1][0][44:48] == moved.to_bytes(4, "big")


def test_ports_of_expectations_are_drawn_where_the_kernel_drew_them(running_kernel: None) -> None:
    """Two clients with one public address announce the same port; the second one's becomes another one, any above it (RFC 2663 4.1.2)."""
    rule = NatRule("snat", Range(ip_address(PUBLIC[0]), ip_address(PUBLIC[0])), Match())
    frames = []
    for n, client in enumerate(("10.0.0.1", "10.0.0.3")):
        here, there = (client, SERVER[0], 40000 + n, 21), (SERVER[0], PUBLIC[0], 21, 40000 + n)
        frames += [
            craft.tcp(*here, "S", seq=100),
            craft.tcp(*there, "SA", seq=500, ack=101),
            craft.tcp(*here, "PA", seq=101, ack=501, payload=b"USER x\r\n"),
            craft.tcp(*here, "PA", seq=109, ack=501, payload=b"PORT %s,156,65\r\n" % client.replace(".", ",").encode()),
        ]
    for _ in range(3):
        left = judge((rule,), *frames).theirs.out
        assert left[3][0].endswith(b"PORT 192,0,2,1,156,65\r\n")
        high, low = left[7][0].rstrip(b"\r\n").split(b",")[-2:]
        assert int(high) << 8 | int(low) > 40001


def test_a_first_packet_that_a_helper_drops_has_the_kernels_port(running_kernel: None) -> None:
    """A port is drawn at which something is expected already, or the other one: that decides whether the packet lives."""
    ends = ip_address(PUBLIC[0])
    rule = NatRule("snat", Range(ends, ends, (7000, 7001), fully_random=True), Match())
    ask = [craft.udp(client, SERVER[0], 7777, 69, b"\0\1file\0octet\0") for client in ("10.0.0.1", "10.0.0.3", "10.0.0.4")]
    for _ in range(4):
        judge((rule,), *ask, *ask)


def test_expectations_are_compared(running_kernel: None) -> None:
    """Lest both lists be empty: an engine that expects nothing, and one that expects it a second too long, are told apart from the kernel."""
    request = craft.udp(CLIENT[0], SERVER[0], 7777, 69, b"\0\1file\0octet\0")
    with Oracle(Config(helpers=HELPERS)) as oracle:
        lockstep = Lockstep(oracle)
        lockstep.tracker = Tracker(replace(oracle.config, helpers=()))
        (difference,) = differences(lockstep.run(*frames_of([request])), lockstep.config.hz)
        ours, ((theirs,)) = difference.fields["expectations"]
        assert ours == [] and theirs["dport"] == 7777 and theirs["helper"] == "tftp"
        lockstep.reset()
        before = oracle.probes.now()
        lockstep.run(*frames_of([request]))
        expected, passed = dict(ours_of(lockstep.tracker)), oracle.probes.now() - before
        assert lockstep.watch.unlike(expected, passed) == {}
        (name,) = lockstep.watch.unlike({one: seconds + 2 for one, seconds in expected.items()}, passed)
        assert name == "expectation.timeout"


def test_what_an_expired_connection_expected_is_gone(running_kernel: None) -> None:
    """The kernel keeps it until it comes by, which is within a minute or at the next packet of that connection; so it is made to look."""
    request, data = craft.udp(CLIENT[0], SERVER[0], 7777, 69, b"\0\1file\0octet\0"), craft.udp(SERVER[0], CLIENT[0], 9999, 7777, b"\0\3\0\1data")
    with Oracle(Config(helpers=HELPERS, timeouts={"udp_timeout": 1})) as oracle:
        lockstep = Lockstep(oracle)
        for frame, state in ((request, State.NEW), (data, State.NEW)):
            compared = lockstep.run(*frames_of([frame]))
            assert differences(compared, oracle.config.hz) == []
            assert compared.theirs.decisions["state"][0] == state
            time.sleep(1.1)
