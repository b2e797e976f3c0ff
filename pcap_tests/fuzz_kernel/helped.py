"""FTP and TFTP: control connections that announce others, and what comes of it.

Theory of operation: the talk is a script of small scenes that repeat: a command or an answer that announces (PORT, EPRT, PASV, EPSV), whole, in two
pieces or once more, sometimes spoilt; an acknowledgement; then the announced connection. Numbers are those of the speakers, so that a translated
connection's shifted numbers are met from both sides, sometimes off by what an edit may have added.
Not here: plain TCP (tcp), where announced connections go to under translation (far_side).
"""

from __future__ import annotations

from ipaddress import ip_address

from ctcore.model.conn import Key
from ctcore.types import Dir, State
from datapath.scenario.steps import Packet, Tcp, Udp
from pcap_tests.fuzz_kernel.draft import Draft
from pcap_tests.fuzz_kernel.far_side import AS_WRITTEN, announced

FTP, FTP_DATA, TFTP = 21, 20, 69
PORTS = (1, 255, 256, 1023, 1024, 40001, 40001, 40002, 65535)
SHIFTS = (*(0,) * 16, -2, -2, -12, 1, 12)  # of an acknowledgement, by what an edit may have changed
CUTS, TCP_HEADER = (16, 24, 32, 40, 48), 20  # where a segment is cut up, and its header's length
START = (100, 500, 0xFFFFFFF0)
SPOILT = (b"PORT 10,0,0,1,156\r\n", b"PORT 10,0,0,300,1,1\r\n", b"EPRT |3|x|1|\r\n", b"227 no numbers\r\n", b"PORT 1,2,3,4,5,6", b"EPSV\r\n", b"\r\n")
REQUESTS = (b"\0\1file\0octet\0", b"\0\2file\0octet\0", b"\0\3\0\1", b"\0", b"\0\1")


class FtpTalk:
    """A client and a server. ports: the client's; the server's is FTP."""

    def __init__(self, draft: Draft, names: tuple[str, str], ports: tuple[int, int]) -> None:
        self.draft, self.names, self.ports = draft, names, (ports[0], FTP)
        self.seq = [draft.pick(START), draft.pick(START)]
        self.opened = False
        self.child: tuple[int, bool] | None = None  # port that was announced, and whether to the client
        self.again: tuple[int, Tcp] | None = None

    def step(self) -> None:
        if not self.opened:
            self._open()
            return
        scene = self.draft.pick(
            (self._announce, self._announce, self._announce, self._chat, self._acknowledge, self._repeat, self._connect, self._connect)
        )
        scene()

    def _open(self) -> None:
        self.opened = True
        for side, flags in ((0, "S"), (1, "SA"), (0, "A")):
            self._say(side, flags)

    def _say(self, side: int, flags: str, data: bytes = b"", shift: int = 0) -> None:
        ack = (self.seq[1 - side] + shift) % 2**32 if "A" in flags else 0
        segment = Tcp(flags, seq=self.seq[side], ack=ack, data=data)
        self.again = side, segment
        if self._send(side, segment):
            self.seq[side] = (self.seq[side] + len(data) + ("S" in flags)) % 2**32

    def _send(self, side: int, segment: Tcp) -> bool:
        """Whether it is part of the connection; otherwise it is as good as lost."""
        draft, packet = self.draft, Packet(self.names[side], self.names[1 - side], segment, self.ports[side], self.ports[1 - side])
        cuts = [at for at in CUTS if isinstance(segment.data, bytes) and at < TCP_HEADER + len(segment.data)]
        decision = draft.send_in_two(packet, draft.pick(cuts)) if cuts and draft.chance(0.15) else draft.send(packet)
        return int(decision["state"]) != State.INVALID

    def _announce(self) -> None:
        draft, port = self.draft, self.draft.pick(PORTS)
        active = draft.chance(0.6)
        text = command(self._address(0), port) if active else answer(self._address(1), port, extended=draft.six or draft.chance(0.3))
        if draft.chance(0.1):
            text = draft.pick(SPOILT)
        if not active and draft.chance(0.7):
            self._say(0, "PA", b"EPSV\r\n" if b"229" in text else b"PASV\r\n")
        side = 0 if active else 1
        cut = int(draft.dice.random() * len(text)) if draft.chance(0.15) else 0
        if cut:
            self._say(side, "PA", text[:cut])
        self._say(side, "PA", text[cut:], draft.pick(SHIFTS))
        self.child = port, active

    def _address(self, side: int) -> str:
        """What a side takes for its own address: a server behind the translation has another one than it is asked by."""
        packet = Packet(*self.names, Tcp("A"), *self.ports)
        found = self.draft.conn(packet)
        host = self.draft.hosts.get(self.names[side], self.names[side])
        if side == 0 or found is None:
            return host
        reply = Key.of(found[0]["flow"][Dir.REPLY]["key"].tobytes())
        return str(ip_address(reply.src[: 4 if reply.family == 4 else 16]))

    def _chat(self) -> None:
        side = int(self.draft.chance(0.5))
        self._say(side, "PA", (b"NOOP\r\n", b"200 OK\r\n")[side], self.draft.pick(SHIFTS))

    def _acknowledge(self) -> None:
        self._say(int(self.draft.chance(0.5)), "A", shift=self.draft.pick(SHIFTS))

    def _repeat(self) -> None:
        if self.again:
            self._send(*self.again)

    def _connect(self) -> None:
        """The announced connection, a SYN and now and then more."""
        if self.child is None:
            return
        draft, (port, active) = self.draft, self.child
        src, sport = (1, FTP_DATA) if active else (0, draft.pick((50000, 50001)))
        remark = announced(*self.names, *self.ports) if active else AS_WRITTEN
        ends = self.names[src], self.names[1 - src]
        start = draft.pick(START)
        draft.send(Packet(*ends, Tcp("S", seq=start), sport, port), remark=remark)
        if draft.chance(0.6):
            draft.send(Packet(ends[1], ends[0], Tcp("SA", seq=900, ack=(start + 1) % 2**32), port, sport), remark=AS_WRITTEN if active else "")
            draft.send(Packet(*ends, Tcp("A", seq=(start + 1) % 2**32, ack=901), sport, port), remark=remark)


def command(address: str, port: int) -> bytes:
    """What a client announces itself with (RFC 959 4.1.2, RFC 2428 2)."""
    if ":" in address:
        return f"EPRT |2|{address}|{port}|\r\n".encode()
    return f"PORT {address.replace('.', ',')},{port >> 8},{port & 255}\r\n".encode()


def answer(address: str, port: int, *, extended: bool) -> bytes:
    """And a server (RFC 959 4.2, RFC 2428 3)."""
    if extended:
        return f"229 Entering Extended Passive Mode (|||{port}|)\r\n".encode()
    return f"227 Entering Passive Mode ({address.replace('.', ',')},{port >> 8},{port & 255})\r\n".encode()


class TftpTalk:
    """A client asks; the file comes from another port (RFC 1350 4)."""

    def __init__(self, draft: Draft, names: tuple[str, str], ports: tuple[int, int]) -> None:
        self.draft, self.names, self.port = draft, names, ports[0]

    def step(self) -> None:
        draft, (client, server) = self.draft, self.names
        if draft.chance(0.4):
            draft.send(Packet(client, server, Udp(draft.pick(REQUESTS)), self.port, TFTP))
            return
        other = draft.pick((9998, 9999))
        if draft.chance(0.6):
            draft.send(Packet(server, client, Udp(b"\0\3\0\1data"), other, self.port), remark=announced(client, server, self.port, TFTP))
        else:
            draft.send(Packet(client, server, Udp(b"\0\4\0\1"), self.port, other))
