"""FTP and TFTP beside the running kernel, with and without translation: expected connections, edits, sequence numbers, and the bytes that leave.

Invariant of every test: engine and kernel agree.
"""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from ctcore.config import Config
from ctcore.nat_rules import HelperRule, Match, NatRule, Range
from ctcore.types import State, Status
from datapath import craft
from datapath.frame import frames_of
from datapath.oracle.compare import differences
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
