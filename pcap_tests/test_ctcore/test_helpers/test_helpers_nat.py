"""Helpers under address translation: what is said inside becomes what is true outside, sequence numbers follow, children are translated as well.

Each test applies what is to be changed to the payload and looks at the text; engine and model run all of them.
"""

from __future__ import annotations

from ipaddress import ip_address

import numpy as np
import pytest

from ctcore.nat_rules import HelperRule, NatRule, Range
from ctcore.types import EDIT_DTYPE, REWRITE_DTYPE, RewriteFlag
from datapath import craft
from pcap_tests.scene import Scene, Seen

OUTSIDE = {4: "192.0.2.99", 6: "2001:db8:9::99"}
CLIENT, SERVER = {4: "10.0.0.1", 6: "2001:db8::1"}, {4: "198.51.100.7", 6: "2001:db8:7::7"}
HELPERS = (HelperRule("ftp", 6, 21), HelperRule("tftp", 17, 69), HelperRule("irc", 6, 6667), HelperRule("pptp", 6, 1723))


def snat(family: int) -> NatRule:
    return NatRule("snat", Range(ip_address(OUTSIDE[family]), ip_address(OUTSIDE[family])))


def dnat(family: int) -> NatRule:
    """The server is inside, and seen as OUTSIDE."""
    return NatRule("dnat", Range(ip_address(SERVER[family]), ip_address(SERVER[family])))


class Wire:
    """A client and a server with a translator between them; what is sent is given as it leaves."""

    def __init__(self, tracker, *, family: int = 4, port: tuple[int, int] = (40000, 21), client: str = "", to: str = ""):
        self.scene, self.family, self.port = Scene(tracker), family, port
        self.client, self.to = client or CLIENT[family], to or SERVER[family]
        self.next = [100, 500]
        self.added = 0, 0  # to the numbers of either end, as the other one sees them
        self.rewrite = np.zeros((), dtype=REWRITE_DTYPE)
        self.edits = np.zeros(0, dtype=EDIT_DTYPE)
        self.seen: Seen | None = None

    def frame(self, frame: bytes) -> Seen:
        rewrites = np.zeros(1, dtype=REWRITE_DTYPE)
        decision = self.scene.tracker.advance(self.scene.batch([frame]), rewrites)[0]
        self.rewrite = rewrites[0]
        first = int(self.rewrite["first_edit"])
        edited = self.rewrite["flags"] & RewriteFlag.REWRITE_EDIT
        self.edits = self.scene.tracker.edits()[first : first + int(self.rewrite["n_edits"])] if edited else self.edits[:0]
        self.scene.tracker.check()
        self.seen = Seen(decision, self.scene.hz)
        return self.seen

    def tcp(self, d: int, flags: str, payload: bytes = b"", *, seq: int | None = None, options: bytes = b"") -> bytes:
        """A segment of one end, as that end numbers it. Gives the payload as it leaves."""
        src, dst = (self.client, self.to) if d == 0 else self.answers
        ports = self.port if d == 0 else self.answer_ports
        number = self.next[d] if seq is None else seq
        seen = self.next[1 - d] + self.added[1 - d] if "A" in flags else 0
        self.frame(craft.tcp(src, dst, *ports, flags, seq=number, ack=seen, payload=payload, options=options))
        self.next[d] = max(self.next[d], number + len(payload) + ("S" in flags))
        return self.leaving(payload, 20 + len(options))

    def leaving(self, payload: bytes, header: int) -> bytes:
        for edit in self.edits[::-1]:
            at, end = int(edit["at"]) - header, int(edit["at"]) - header + int(edit["old_len"])
            payload = payload[:at] + edit["text"][: edit["new_len"]].tobytes() + payload[end:]
        return payload

    @property
    def answers(self) -> tuple[str, str]:
        """From whom, and to whom the server answers."""
        key = self.scene.tracker.conns()[0]["flow"][1]["key"]
        size = 4 if self.family == 4 else 16
        return str(ip_address(key["src"][:size].tobytes())), str(ip_address(key["dst"][:size].tobytes()))

    @property
    def answer_ports(self) -> tuple[int, int]:
        key = self.scene.tracker.conns()[0]["flow"][1]["key"]
        return int(key["sport"]), int(key["dport"])

    def open(self, *lines: tuple[int, bytes]) -> Wire:
        self.tcp(0, "S")
        self.tcp(1, "SA")
        self.tcp(0, "A")
        for d, line in lines:
            self.tcp(d, "PA", line)
        return self


GREETING = ((1, b"220 hello\r\n"), (0, b"USER x\r\n"), (1, b"331 y\r\n"))


@pytest.fixture
def router(make_tracker):
    return lambda *rules, **settings: make_tracker(helpers=HELPERS, nat=rules, **settings)


@pytest.mark.parametrize("family, command, said", [
    (4, b"PORT 10,0,0,1,7,208\r\n", b"PORT 192,0,2,99,7,208\r\n"),
    (4, b"EPRT |1|10.0.0.1|2000|\r\n", b"EPRT |1|192.0.2.99|2000|\r\n"),
    (6, b"EPRT |2|2001:db8::1|2000|\r\n", b"EPRT |2|2001:0db8:0009:0000:0000:0000:0000:0099|2000|\r\n"),
])  # fmt: skip
def test_active(router, family, command, said):
    tracker = router(snat(family))
    wire = Wire(tracker, family=family).open(*GREETING)
    assert wire.tcp(0, "PA", command) == said and "seq-adjust" in wire.seen.status
    (row,) = tracker.expectations()
    assert (row.src, row.dst, row.dport) == (SERVER[family], OUTSIDE[family], 2000)
    grown = len(said) - len(command)
    # What follows is moved by what was added; the server's acknowledgements are moved back, and are in the window.
    wire.added = (grown, 0)
    wire.tcp(1, "A")
    assert wire.seen.state == "established" and (int(wire.rewrite["seq_delta"]), int(wire.rewrite["ack_delta"])) == (0, -grown)
    wire.tcp(0, "PA", b"LIST\r\n")
    assert (int(wire.rewrite["seq_delta"]), int(wire.rewrite["ack_delta"])) == (grown, 0)
    # The child comes from the server to what it was told, and is sent to the client.
    child = wire.frame(craft.tcp(SERVER[family], OUTSIDE[family], 20, 2000, "S", seq=9))
    child.is_("related", has={"expected", "dst-nat", "dst-nat-done", "src-nat-done"}, lacks={"src-nat"})
    size = 4 if family == 4 else 16
    assert str(ip_address(wire.rewrite["to"]["dst"][:size].tobytes())) == CLIENT[family] and int(wire.rewrite["to"]["dport"]) == 2000


def test_retransmitted_is_rewritten_again_and_adds_nothing(router):
    wire = Wire(router(snat(4))).open(*GREETING)
    seq, command = wire.next[0], b"PORT 10,0,0,1,7,208\r\n"
    for _ in range(3):
        assert wire.tcp(0, "PA", command, seq=seq) == b"PORT 192,0,2,99,7,208\r\n"
        assert not wire.rewrite["flags"] & RewriteFlag.REWRITE_SEQ
    wire.tcp(0, "A")
    assert int(wire.rewrite["seq_delta"]) == 2
    assert wire.tcp(0, "PA", command) == b"PORT 192,0,2,99,7,208\r\n" and int(wire.rewrite["seq_delta"]) == 2
    wire.tcp(0, "A")
    assert int(wire.rewrite["seq_delta"]) == 4


def test_selective_acknowledgements_move_as_well(router):
    wire = Wire(router(snat(4))).open(*GREETING)
    wire.tcp(0, "PA", b"PORT 10,0,0,1,7,208\r\n")
    wire.added = (2, 0)
    edges = (wire.next[0] + 2 + 10).to_bytes(4, "big") + (wire.next[0] + 2 + 20).to_bytes(4, "big")
    wire.tcp(1, "A", options=b"\1\1\5\x0a" + edges)
    assert [edit["text"][:4].tobytes() for edit in wire.edits] == [(wire.next[0] + n).to_bytes(4, "big") for n in (10, 20)]
    assert [int(edit["at"]) for edit in wire.edits] == [24, 28]
    wire.tcp(1, "A", options=b"\1\1\5\x0b" + edges)  # beyond the header
    assert (wire.seen.verdict, wire.seen.reason) == ("drop", "helper_refused")


@pytest.mark.parametrize("answer, said", [
    (b"227 Entering Passive Mode (198,51,100,7,195,80).\r\n", b"227 Entering Passive Mode (192,0,2,99,195,80).\r\n"),
    (b"229 Extended (|||50000|)\r\n", b"229 Extended (|||50000|)\r\n"),
])  # fmt: skip
def test_passive_server_inside(router, answer, said):
    tracker = router(dnat(4))
    wire = Wire(tracker, to=OUTSIDE[4]).open(*GREETING)
    assert wire.tcp(1, "PA", answer) == said
    (row,) = tracker.expectations()
    assert (row.src, row.dst, row.dport) == (CLIENT[4], OUTSIDE[4], 50000)
    wire.frame(craft.tcp(CLIENT[4], OUTSIDE[4], 1234, 50000, "S", seq=9)).is_("related", has={"dst-nat"})
    assert str(ip_address(wire.rewrite["to"]["dst"][:4].tobytes())) == SERVER[4]


def test_a_port_that_is_taken_is_exchanged(router):
    tracker = router(snat(4))
    first = Wire(tracker).open(*GREETING)
    first.tcp(0, "PA", b"PORT 10,0,0,1,7,208\r\n")
    second = Wire(tracker, client="10.0.0.2", port=(40001, 21))
    second.frame(craft.tcp("10.0.0.2", SERVER[4], 40001, 21, "S", seq=100))
    second.frame(craft.tcp(SERVER[4], OUTSIDE[4], 21, 40001, "SA", seq=500, ack=101))
    second.frame(craft.tcp("10.0.0.2", SERVER[4], 40001, 21, "A", seq=101, ack=501, payload=b"NOOP\r\n"))
    command = b"PORT 10,0,0,2,7,208\r\n"
    second.frame(craft.tcp("10.0.0.2", SERVER[4], 40001, 21, "A", seq=107, ack=501, payload=command)).is_("established", verdict="accept")
    ports = {row.master: row.dport for row in tracker.expectations()}
    assert ports[0] == 2000 < ports[1]
    assert second.leaving(command, 20) == b"PORT 192,0,2,99,%d,%d\r\n" % divmod(ports[1], 256)
    second.frame(craft.tcp(SERVER[4], OUTSIDE[4], 20, ports[1], "S", seq=9)).is_("related")
    assert (int(second.rewrite["to"]["dport"]), second.rewrite["to"]["dst"][:4].tolist()) == (2000, [10, 0, 0, 2])


@pytest.mark.parametrize(("preferred", "taken"), [(2001, True), (65534, True), (50000, True), (65535, False), (1999, False), (0, False)])
def test_the_port_instead_of_one_that_is_taken_can_be_told(router, preferred, taken):
    """Once, and only what might have been drawn: a port above the one asked for, below 65,535."""
    tracker = router(snat(4))
    clients = ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
    for n, client in enumerate(clients):
        ends, back = (client, SERVER[4], 40000 + n, 21), (SERVER[4], OUTSIDE[4], 21, 40000 + n)
        wire = Wire(tracker, client=client, port=(40000 + n, 21))
        wire.frame(craft.tcp(*ends, "S", seq=100))
        wire.frame(craft.tcp(*back, "SA", seq=500, ack=101))
        wire.frame(craft.tcp(*ends, "A", seq=101, ack=501, payload=b"NOOP\r\n"))
        if n == 1:
            tracker.prefer(announced=preferred)
        wire.frame(craft.tcp(*ends, "A", seq=107, ack=501, payload=b"PORT %s,7,208\r\n" % client.replace(".", ",").encode())).is_("established")
    ports = [row.dport for row in tracker.expectations()]
    assert ports[0] == 2000 and (ports[1] == preferred) == taken and len(set(ports)) == 3


def test_port_0_is_none(router):
    wire = Wire(router(snat(4))).open(*GREETING)
    wire.tcp(0, "PA", b"PORT 10,0,0,1,0,0\r\n")
    assert (wire.seen.verdict, wire.seen.reason) == ("drop", "helper_refused") and wire.rewrite["flags"] == 0


def test_tftp(router):
    tracker = router(snat(4))
    wire = Wire(tracker, port=(1069, 69))
    wire.frame(craft.udp(CLIENT[4], SERVER[4], 1069, 69, payload=b"\0\1file\0octet\0")).is_("new", has={"helper", "src-nat"})
    (row,) = tracker.expectations()
    assert (row.src, row.dst, row.proto, row.sport, row.dport) == (SERVER[4], OUTSIDE[4], 17, 0, 1069)
    wire.frame(craft.udp(SERVER[4], OUTSIDE[4], 3333, 1069, payload=b"\0\3\0\1data")).is_("related", has={"dst-nat"})
    assert wire.rewrite["to"]["dst"][:4].tolist() == [10, 0, 0, 1] and int(wire.rewrite["to"]["dport"]) == 1069


def test_irc(router):
    tracker = router(snat(4))
    wire = Wire(tracker, port=(40000, 6667)).open()
    message = b"PRIVMSG friend :\1DCC SEND file 167772161 2000 1234\1\r\n"
    assert wire.tcp(0, "PA", message) == b"PRIVMSG friend :\1DCC SEND file 3221226083 2000 1234\1\r\n"
    (row,) = tracker.expectations()
    assert (row.src, row.dst, row.dport) == ("any", OUTSIDE[4], 2000)
    wire.frame(craft.tcp("203.0.113.5", OUTSIDE[4], 777, 2000, "S", seq=9)).is_("related", has={"dst-nat"})
    assert wire.rewrite["to"]["dst"][:4].tolist() == [10, 0, 0, 1]
