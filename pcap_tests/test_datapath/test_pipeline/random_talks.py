"""Pipelines that track, at random, and conversations through them: openings, answers to what left, errors about it, fragments, commands.

Traffic answers what the pipeline has let through, so that connections become established, translated ports are met, and announced ones come. A seed
gives the same rules; the same traffic too, as long as the pipeline does the same. Not here: rules without `ct` (random_pipelines).
"""

from __future__ import annotations

import struct
from collections.abc import Generator
from dataclasses import dataclass, field
from ipaddress import ip_address
from random import Random
from typing import Any

from ctcore.config import Config
from datapath import craft
from datapath.pipeline.rules import (
    CONTINUE,
    DROP,
    ETH_ALL,
    ETH_IP,
    ETH_IPV6,
    PASS,
    PIPE,
    Action,
    Csum,
    Ct,
    CtNat,
    Gact,
    Hook,
    Match,
    Mirred,
    Munge,
    Pedit,
    Rule,
    Ruleset,
    Skbedit,
    Vlan,
    goto,
)
from pcap_tests.test_datapath.test_pipeline.random_pipelines import SECOND, some_control, some_frame, some_rule
from pcap_tests.test_datapath.test_pipeline.walked import Coming, Said

NEAR, FAR = Hook("eth0"), Hook("eth1")
CLIENTS = {4: ("10.0.0.1", "10.0.0.2"), 6: ("2001:db8::1", "2001:db8::2")}
SERVERS = {4: ("192.0.2.1", "10.0.1.1"), 6: ("2001:db8:1::1",)}
PUBLIC = {4: ("203.0.113.1", "203.0.113.2"), 6: ("2001:db8:9::1", "2001:db8:9::2")}
SPORTS, DPORTS = (1024, 1025, 40000), (21, 53, 80)
NEW, EST, REL, TRK, INV, RPL = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20


# --- rules ------------------------------------------------------------------------------------------------------------------------------


def state(on: int, off: int = 0) -> Match:
    return Match("ct_state", on, on | off)


def some_nat(random: Random, version: int) -> CtNat:
    """Bare, or a range of one kind, with few ports if any."""
    if random.randrange(3) == 0:
        return CtNat()
    kind = random.choice(("src", "src", "dst"))
    low, high = (ip_address(text) for text in sorted(random.choices(PUBLIC[version] if kind == "src" else SERVERS[version], k=2)))
    low, high = min(low, high), max(low, high)
    return CtNat(kind, low, high, random.choice((None, None, (1024, 1026), (5000, 5000))))


def pair(random: Random, bits: int) -> tuple[int, int] | None:
    if random.randrange(3):
        return None
    mask = random.choice(((1 << bits) - 1, 3, 1 << bits - 1))
    return random.getrandbits(bits) & 3 & mask, mask


def some_ct(random: Random, inner: int) -> Ct:
    """Any `ct` action, for rules of a protocol."""
    version, then = 6 if inner == ETH_IPV6 else 4, some_control(random)
    if random.randrange(12) == 0:
        return Ct(clear=True, control=then)
    commit = random.randrange(2) == 0
    nat = random.choice((None, CtNat(), some_nat(random, version) if commit else CtNat()))
    helper = ("ftp", version, 6) if commit and random.randrange(5) == 0 else None
    zone, force = random.choice((0, 0, 0, 1, 2)), random.randrange(10) == 0
    return Ct(zone, pair(random, 32) if commit else None, pair(random, 128) if commit else None, commit, force, False, nat, helper, then)


def ct_matches(random: Random) -> list[Match]:
    """What the last `ct` said."""
    states = (state(TRK), state(0, TRK), state(TRK | NEW), state(TRK | EST), state(TRK | EST, RPL), state(TRK | INV), state(TRK | REL), state(0, INV))
    found = [random.choice(states)] if random.randrange(2) else []
    if random.randrange(6) == 0:
        found.append(random.choice((Match("ct_zone", random.randrange(2), 0xFFFF), Match("ct_mark", 1, 1), Match("ct_label", 1, 3))))
    return found


@dataclass
class Pipeline:
    """One that people would write, with something in it at random. zone: of both sides, mostly."""

    random: Random
    rules: list[Rule] = field(default_factory=list)

    def add(self, hook: Hook, protocol: int, chain: int, prio: int, matches: tuple[Match, ...], *actions: Action) -> None:
        self.rules.append(Rule(hook, protocol, matches, actions, prio, chain))

    def maybe(self, chance: int, *actions: Action) -> tuple[Action, ...]:
        return actions if self.random.randrange(chance) == 0 else ()

    def side(self, hook: Hook, other: Hook, protocol: int, zone: int) -> None:
        """-trk: ct; new: commit; est, rel: on; the rest: as it comes."""
        random, version = self.random, 6 if protocol == ETH_IPV6 else 4
        nat = random.choice((None, CtNat(), CtNat()))
        onward = Mirred("redirect", other.device, random.choice(("egress", "egress", "ingress")))
        mirror = Mirred("mirror", "tap0")
        edits: tuple[Action, ...] = (
            Pedit((Munge("ip6", "hoplimit", "add", 255, 255) if version == 6 else Munge("ip", "ttl", "add", 255, 255),)),
            Csum(("ip4h",)),
        )
        self.add(hook, protocol, 0, 1, (state(0, TRK),), *self.maybe(6, mirror), Ct(zone, nat=nat), *self.maybe(8, mirror), Gact(goto(1)))
        commit = Ct(
            zone, pair(random, 32), pair(random, 128), True, random.randrange(8) == 0, False,
            random.choice((None, some_nat(random, version), some_nat(random, version))), ("ftp", version, 6) if random.randrange(2) else None,
        )  # fmt: skip
        if hook == NEAR or random.randrange(3) == 0:
            tail = random.choice(((onward,), (onward,), (Gact(goto(2)),), (Gact(PASS),)))
            self.add(hook, protocol, 1, 1, (state(TRK | NEW),), commit, *self.maybe(4, *edits), *tail)
        self.add(hook, protocol, 1, 2, (state(TRK | EST), *self.maybe(6, Match("ct_mark", 1, 1))), *self.maybe(8, Vlan("push", id=5)), onward)
        related = Ct(zone, commit=True, nat=commit.nat if random.randrange(2) else nat)
        self.add(hook, protocol, 1, 3, (state(TRK | REL),), *self.maybe(2, related), onward)
        if random.randrange(2):
            self.add(hook, protocol, 1, 4, (state(TRK | INV),), Gact(random.choice((DROP, PASS, CONTINUE))))
        if random.randrange(2):
            self.add(hook, ETH_ALL, 1, 9, (), Gact(random.choice((DROP, PASS))))
        again = Ct(1 - min(zone, 1), commit=random.randrange(2) == 0, nat=random.choice((None, CtNat())))
        self.add(hook, protocol, 2, 1, (), *self.maybe(2, Skbedit(mark=(5, 0xFF))), again, onward)


def some_pipeline(random: Random) -> Ruleset:
    """Rules over two devices that track, and a third that sees what they send."""
    pipeline, zone = Pipeline(random), random.choice((0, 0, 1))
    for protocol in random.choice(((ETH_IP,), (ETH_IP,), (ETH_IP, ETH_IPV6), (ETH_IPV6,), (ETH_ALL,))):
        pipeline.side(NEAR, FAR, protocol, zone)
        pipeline.side(FAR, NEAR, protocol, zone if random.randrange(5) else 2)
    if random.randrange(3) == 0:
        pipeline.add(Hook("eth1", "egress"), ETH_ALL, 0, 1, (), Ct(3, commit=random.randrange(2) == 0), Gact(random.choice((PASS, PIPE))))
    for _ in range(random.choice((0, 0, 2, 6))):
        hook = random.choice((NEAR, NEAR, FAR, Hook("eth0", "egress"), Hook("eth1", "egress")))
        pipeline.rules.append(some_rule(random, hook, actions=some_ct, matches=ct_matches))
    return Ruleset((), (), tuple(pipeline.rules))


def some_config(random: Random) -> Config:
    settings: dict[str, Any] = {"max": random.choice((4, 1000, 1000)), "tcp_loose": random.randrange(2) == 0, "tcp_liberal": random.randrange(4) == 0}
    settings["checksum"] = random.randrange(4) > 0
    if random.randrange(4) == 0:
        settings["zone_limits"] = {0: 3}
    return Config(**settings, seed=random.getrandbits(32))


# --- packets ----------------------------------------------------------------------------------------------------------------------------


ANSWERS = (("A", "A", "A", "PA", "PA", "PA", "PA", "PA", "FA", "RA"), ("A", "FA", "FA"))  # to what is no SYN, and to a FIN


class Packet:
    """What an answer needs of a frame with IP and no options; `sound` says that it is one."""

    def __init__(self, frame: bytes):
        at = 12
        while frame[at : at + 2] in (b"\x81\x00", b"\x88\xa8"):
            at += 4
        kind, ip = frame[at : at + 2], frame[at + 2 :]
        self.frame, self.sound = frame, False
        if kind == b"\x08\x00" and len(ip) >= 28 and ip[0] == 0x45 and not int.from_bytes(ip[6:8], "big") & 0x3FFF:
            self.proto, self.src, self.dst = ip[9], str(ip_address(ip[12:16])), str(ip_address(ip[16:20]))
            self.l4, self.sound = ip[20 : int.from_bytes(ip[2:4], "big")], True
        elif kind == b"\x86\xdd" and len(ip) >= 48 and ip[6] in (6, 17, 58):
            self.proto, self.src, self.dst = ip[6], str(ip_address(ip[8:24])), str(ip_address(ip[24:40]))
            self.l4, self.sound = ip[40 : 40 + int.from_bytes(ip[4:6], "big")], True
        self.sound = self.sound and len(self.l4) >= (20 if self.proto == 6 else 8)

    def answer(self, random: Random) -> bytes | None:
        """What the other end would say."""
        if not self.sound:
            return None
        sport, dport = struct.unpack("!2H", self.l4[:4])
        if self.proto == 6:
            return self._segment(random, sport, dport)
        if self.proto == 17:
            return craft.udp(self.dst, self.src, dport, sport, random.randbytes(random.randrange(20)))
        if self.l4[0] in (8, 128):
            return craft.icmp(self.dst, self.src, 0 if self.l4[0] == 8 else 129, ident=int.from_bytes(self.l4[4:6], "big"), sequence=1)
        return None

    def _segment(self, random: Random, sport: int, dport: int) -> bytes | None:
        seq, ack = struct.unpack("!2I", self.l4[4:12])
        flags, payload = self.l4[13], self.l4[(self.l4[12] >> 4) * 4 :]
        if flags & 4:
            return None
        said = "SA" if flags & 0x12 == 2 else random.choice(ANSWERS[flags & 1])
        text = b""
        if said == "PA":
            text = command(random, self.dst) if sport == 21 or dport == 21 else random.randbytes(random.choice((1, 20, 100)))
        acked = (seq + len(payload) + (flags >> 1 & 1) + (flags & 1)) & 0xFFFFFFFF
        return craft.tcp(self.dst, self.src, dport, sport, said, seq=ack if flags & 0x10 else 1000, ack=acked, payload=text)


def command(random: Random, address: str) -> bytes:
    """FTP: where the data connection is to go."""
    port = random.choice((2000, 2001, 40001))
    if ":" in address:
        return f"EPRT |2|{address}|{port}|\r\n".encode()
    return f"PORT {address.replace('.', ',')},{port >> 8},{port & 255}\r\n".encode()


def fragments(random: Random, frame: bytes) -> list[bytes]:
    """An untagged IP packet in pieces, in any order; one may be missing, or come twice."""
    six = frame[12:14] == b"\x86\xdd"
    header, data, found, ident = 40 if six else 20, frame[14 + (40 if six else 20) :], [], random.randrange(1, 50)
    size, at = random.choice((8, 16, 48, 400)), 0
    while at < len(data):
        piece, more = data[at : at + size], at + size < len(data)
        ip = frame[14 : 14 + header]
        if six:
            inner = bytes([ip[6], 0]) + (at | more).to_bytes(2, "big") + ident.to_bytes(4, "big")
            ip = ip[:4] + (8 + len(piece)).to_bytes(2, "big") + b"\x2c" + ip[7:]
            found.append(frame[:14] + ip + inner + piece)
        else:
            ip = (
                ip[:2]
                + (20 + len(piece)).to_bytes(2, "big")
                + ident.to_bytes(2, "big")
                + (at // 8 | more << 13).to_bytes(2, "big")
                + ip[8:10]
                + b"\0\0"
                + ip[12:]
            )
            found.append(frame[:14] + ip[:10] + craft.checksum(ip).to_bytes(2, "big") + ip[12:] + piece)
        at += size
    if random.randrange(2):
        random.shuffle(found)
    if random.randrange(6) == 0:
        found.insert(0, random.choice(found))
    if random.randrange(8) == 0:
        found.pop()
    link = random.choice((frame[:6], b"\x02\0\0\0\0\x09"))
    return [link + piece[6:] if i == 0 else piece for i, piece in enumerate(found)]


Script = Generator[tuple[bytes, Hook], Said, None]  # frames out, what became of them in


def control(random: Random, version: int) -> Script:
    """FTP's control connection: a command that announces a data connection, which comes."""
    src, dst = random.choice(CLIENTS[version]), random.choice(SERVERS[version])
    near, number, back = (src, dst, random.choice(SPORTS), 21), 94, 500
    said = yield craft.tcp(*near, "S", seq=number - 1), NEAR
    if not said.left or not (outside := Packet(said.left[-1].frame)).sound:
        return
    far = (outside.dst, outside.src, 21, int.from_bytes(outside.l4[:2], "big"))
    yield craft.tcp(*far, "SA", seq=back - 1, ack=number), FAR
    yield craft.tcp(*near, "PA", seq=number, ack=back, payload=b"NOOP\r\n"), NEAR
    for _ in range(random.randrange(1, 4)):
        text = command(random, src)
        number += 6 if number == 94 else 0
        said = yield craft.tcp(*near, "PA", seq=number, ack=back, payload=text), NEAR
        number += len(text)
        if not said.left or not (announced := Packet(said.left[-1].frame)).sound:
            return
        grown = len(announced.l4) - 20 - len(text)
        yield craft.tcp(*far, "PA", seq=back, ack=(number + grown) & 0xFFFFFFFF, payload=b"200 ok\r\n"), FAR
        back += 8
        port = (2000, 2001, 40001)[random.randrange(3)]
        said = yield craft.tcp(far[0], far[1], 20, port, "S", seq=1), FAR
        if said.left and (data := Packet(said.left[-1].frame)).sound and (answer := data.answer(random)):
            yield answer, NEAR
    yield craft.tcp(*near, "FA", seq=number, ack=back), NEAR


# --- traffic ----------------------------------------------------------------------------------------------------------------------------

PAUSES = (0, 0, 1000, *(SECOND // 100,) * 20, SECOND // 250, SECOND // 3, SECOND // 3, 2 * SECOND, 40 * SECOND)


class Traffic:
    """Frames to come, one after the other; told() says what became of the last one."""

    def __init__(self, random: Random, ruleset: Ruleset):
        protocols = {rule.protocol for rule in ruleset.rules}
        self.versions = [version for version, kind in ((4, ETH_IP), (6, ETH_IPV6)) if protocols & {kind, ETH_ALL}] * 4 + [4, 6]
        self.random, self.now = random, 1_000 * SECOND
        self.left: list[tuple[bytes, Hook]] = []
        self.came: list[Coming] = []
        self.waiting: list[tuple[bytes, Hook]] = []
        self.script: Script | None = None
        self.step: tuple[bytes, Hook] = (b"", NEAR)
        self.scripted = False  # the last one came from there

    def next(self) -> Coming:
        self.now += self.random.choice(PAUSES)
        self.scripted = not self.waiting and self.script is not None and self.random.randrange(2) == 0
        if self.waiting:
            frame, hook = self.waiting.pop(0)
        elif self.scripted:
            frame, hook = self.step
        else:
            frame, hook = self._some()
            if self.random.randrange(6) == 0 and frame[12:14] in (b"\x08\x00", b"\x86\xdd") and len(frame) > 80:
                first, *rest = fragments(self.random, frame) or [frame]
                frame, self.waiting = first, [(piece, hook) for piece in rest]
        cut = self.random.randrange(len(frame) + 1) if self.random.randrange(40) == 0 else len(frame)
        coming = Coming(frame[:cut], hook, self.now, len(frame) - cut)
        self.came = [*self.came[-20:], coming]
        return coming

    def told(self, said: Said) -> None:
        for each in said.left:
            if each.device in ("eth0", "eth1"):
                self.left.append((each.frame, Hook(each.device)))
        del self.left[:-20]
        if self.script is None and self.random.randrange(20) == 0:
            self.script = control(self.random, self.random.choice(self.versions))
            self.step = next(self.script)
        elif self.script is not None and self.scripted:
            try:
                self.step = self.script.send(said)
            except StopIteration:
                self.script = None

    def _some(self) -> tuple[bytes, Hook]:
        random, kind = self.random, self.random.randrange(20)
        if kind < 12 and self.left:
            frame, hook = random.choice(self.left[-random.choice((1, 2, 8)) :])
            answer = Packet(frame).answer(random)
            if answer is not None:
                return answer, hook
        if kind == 12 and self.left:
            return self._error()
        if kind < 15 and self.came:
            again = random.choice(self.came)
            return again.frame, again.hook
        if kind == 15:
            return some_frame(random), random.choice((NEAR, FAR))
        if kind == 16:
            return self._announced()
        return self._opening()

    def _opening(self) -> tuple[bytes, Hook]:
        random, version = self.random, self.random.choice(self.versions)
        src, dst, hook = random.choice(CLIENTS[version]), random.choice(SERVERS[version]), NEAR
        if random.randrange(6) == 0:
            src, dst, hook = dst, random.choice((src, PUBLIC[version][0])), FAR
        ports, kind = (random.choice(SPORTS), random.choice(DPORTS)), random.randrange(6)
        if kind < 3:
            return craft.tcp(src, dst, *ports, random.choice(("S", "S", "S", "A", "R")), seq=random.choice((100, 100, 5000)), payload=b""), hook
        if kind == 3:
            return craft.icmp(
                src, dst, 8 if version == 4 else 128, ident=random.choice((1, 2)), sequence=1, payload=b"x" * random.choice((0, 90))
            ), hook
        return craft.udp(src, dst, *ports, bytes(random.choice((0, 5, 120, 900))), **random.choice(({}, {}, {"l4_checksum": 0}))), hook

    def _error(self) -> tuple[bytes, Hook]:
        frame, hook = self.random.choice(self.left)
        about = Packet(frame)
        if not about.sound:
            return self._opening()
        six = ":" in about.src
        start = frame.index(about.l4) - (40 if six else 20)
        sender = about.dst if self.random.randrange(3) else (SERVERS[6] if six else SERVERS[4])[0]
        return craft.icmp_error(
            sender, about.src, 1 if six else 3, 3, bytes(14) + frame[start:], quote=self.random.choice((28 + 20 * six, 1232))
        ), hook

    def _announced(self) -> tuple[bytes, Hook]:
        """A data connection to where a command may have announced one."""
        random, version = self.random, self.random.choice(self.versions)
        to = random.choice((*CLIENTS[version], *PUBLIC[version]))
        return craft.tcp(random.choice(SERVERS[version]), to, 20, random.choice((2000, 2001, 40001)), "S", seq=1), FAR
