"""Conversations for flow tables, at random: orderly TCP, UDP both ways, GRE and pings, among them packets that the table does not serve.

What is answered is what has left, so that translated conversations go on. Orderly: nothing is sent twice or out of turn, and a RST comes when
all is acknowledged; else the table is allowed to make a difference (offload contract A7: windows are learnt anew).
Not here: what becomes of them (flowing).
"""

from __future__ import annotations

from random import Random

from datapath import craft
from pcap_tests.test_datapath.flowing import Coming, Left

CLIENTS, SERVERS = ("10.0.0.1", "10.0.0.2"), ("192.0.2.1", "10.0.1.1")
CLIENTS6, SERVERS6 = ("2001:db8::1", "2001:db8::2"), ("2001:db8:1::1",)
NEAR, FAR = 0, 1  # interfaces
MILLISECOND = 1_000_000
ODD = ({"ttl": 1}, {"ttl": 5}, {"tos": 0x20}, {"tos": 4}, {"options": b"\1\1\1\0"}, {}, {})
ODD6 = ({"ttl": 1}, {"ttl": 5}, {})
LINKS = (b"", b"", b"", b"\x81\x00\x00\x05", b"\x81\x00\x20\x06", b"\x88\xa8\x00\x05\x81\x00\x00\x06")  # tags

Ends = tuple[str, str, int, int]


class Talk:
    """One conversation. near, far: addresses and ports as either end sends; far is known once something has left."""

    def __init__(self, random: Random, number: int, resets: bool = True):
        self.random, self.resets = random, resets
        self.six = random.randrange(5) == 0
        clients, servers = (CLIENTS6, SERVERS6) if self.six else (CLIENTS, SERVERS)
        self.kind = random.choice(("tcp", "tcp", "tcp", "tcp", "udp", "udp", "udp", "gre", "icmp"))
        self.near: Ends = (random.choice(clients), random.choice(servers), 1024 + number, random.choice((53, 80, 443)))
        self.far: Ends | None = None
        self.next, self.acked, self.stage, self.closed = [100 * number, 5000 + number], [0, 0], "open", [False, False]
        self.odd = random.choice((0, 0, 8, 3))
        self.over = False

    def ends(self, side: int) -> Ends:
        assert self.far is not None or side == NEAR
        return self.near if side == NEAR else self.far  # type: ignore[return-value]

    def fields(self, plain: bool) -> dict:
        """Now and then something that rules look at, or that the flow table does not serve."""
        if plain or not self.odd or self.random.randrange(self.odd):
            return {}
        return self.random.choice(ODD6 if self.six else ODD)

    def frame(self) -> tuple[bytes, int]:
        """The next packet, now and then with tags or padding, and where it comes in."""
        frame, side = self.untagged()
        if self.odd and self.far is not None and self.random.randrange(self.odd) == 0:
            frame = frame[:12] + self.random.choice(LINKS) + frame[12:] + bytes(self.random.choice((0, 0, 30)))
        return frame, side

    def untagged(self) -> tuple[bytes, int]:
        side = NEAR if self.far is None else self.random.randrange(2)
        if self.kind == "tcp":
            return self.segment(side)
        src, dst, sport, dport = self.ends(side)
        if self.kind == "udp":
            data = self.random.randbytes(self.random.randrange(30))
            return craft.udp(src, dst, sport, dport, data, **self.fields(False)), side
        if self.kind == "gre":
            return craft.gre(src, dst, version=self.random.choice((0, 0, 1)), payload=b"12345678", call=3), side
        return craft.icmp(src, dst, (8, 0)[side] if not self.six else (128, 129)[side], ident=self.near[2], sequence=1), side

    def segment(self, side: int) -> tuple[bytes, int]:
        """Handshake, data, FINs from either end, or a RST."""
        if self.stage == "open":
            return self.say(NEAR, "S", ack=False)
        if self.stage == "opening":
            self.stage = "opened"
            return self.say(FAR, "SA")
        if self.stage == "opened":
            self.stage = "data"
            return self.say(NEAR, "A")
        if all(self.closed):
            self.over = True
            return self.say(side, "A")
        if self.resets and self.random.randrange(30) == 0 and self.acked == [self.next[1], self.next[0]]:
            self.over = True
            return self.say(side, "RA", plain=True)
        if self.random.randrange(15) == 0 and not self.closed[side]:
            self.closed[side] = True
            return self.say(side, "FA", plain=True)  # one that the table does not look at would not end its part
        if self.closed[side] or self.random.randrange(2):
            return self.say(side, "A", plain=True)
        return self.say(side, "PA", self.random.randbytes(self.random.choice((1, 10, 100))))

    def say(self, side: int, flags: str, payload: bytes = b"", *, ack: bool = True, plain: bool = False) -> tuple[bytes, int]:
        plain = plain or "S" in flags
        seq, self.acked[side] = self.next[side], self.next[1 - side]
        self.next[side] += len(payload) + ("S" in flags) * (self.stage != "open") + ("F" in flags)
        number = self.acked[side] if ack else 0
        return craft.tcp(*self.ends(side), flags, seq=seq, ack=number, payload=payload, **self.fields(plain)), side

    def told(self, left: list[Left]) -> None:
        """What has left of a packet that came in near."""
        out = [each.frame for each in left if each.device == "eth1"]
        if self.far is not None or not out:
            return
        at = 12
        while out[-1][at : at + 2] in (b"\x81\x00", b"\x88\xa8"):
            at += 4
        self.far = ends_of(out[-1][at + 2 :], self.near)
        if self.stage == "open":
            self.stage = "opening"
            self.next[NEAR] += 1


def ends_of(ip: bytes, near: Ends) -> Ends:
    """As the other end answers."""
    from ipaddress import ip_address

    six = ip[0] >> 4 == 6
    src, dst = (ip[8:24], ip[24:40]) if six else (ip[12:16], ip[16:20])
    l4 = ip[40:] if six else ip[(ip[0] & 15) * 4 :]
    sport, dport = int.from_bytes(l4[:2], "big"), int.from_bytes(l4[2:4], "big")
    return str(ip_address(dst)), str(ip_address(src)), dport, sport


class Talks:
    """Several at a time; a batch has some packets of each. pause: ns, at most, between two packets."""

    def __init__(self, random: Random, *, resets: bool = True, at_once: int = 4, pause: int = 60 * MILLISECOND):
        self.random, self.resets, self.pause = random, resets, pause
        self.now, self.number = 1_000_000_000_000, 0
        self.talks: list[Talk] = []
        self.at_once = at_once

    def batch(self, most: int = 12) -> tuple[list[Coming], list[Talk]]:
        self.talks = [talk for talk in self.talks if not talk.over and self.random.randrange(60)]
        while len(self.talks) < self.at_once:
            self.talks.append(Talk(self.random, self.number, self.resets))
            self.number += 1
        coming, talks, opening = [], [], set()
        for _ in range(self.random.randrange(1, most)):
            talk = self.random.choice(self.talks)
            if talk.over or (talk.far is None and id(talk) in opening):
                continue
            if talk.far is None:
                opening.add(id(talk))
            frame, side = talk.frame()
            self.now += self.random.randrange(self.pause)
            coming.append(Coming(frame, side, self.now))
            talks.append(talk)
        return coming, talks

    @staticmethod
    def told(talks: list[Talk], left: list[list[Left]]) -> None:
        for talk, each in zip(talks, left, strict=True):
            talk.told(each)
