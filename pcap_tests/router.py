"""The tests' vocabulary for address translation: a router, those who talk through it, and the tuples that their packets leave with.

    router = Router(make_tracker(nat=(snat("192.0.2.1"),)))
    talk = router.udp("10.0.0.1:40000 > 198.51.100.7:53")
    talk.orig().leaves("192.0.2.1:40000 > 198.51.100.7:53")
    talk.reply().leaves("198.51.100.7:53 > 10.0.0.1:40000")

A reply goes to where the last packet of the other side seemed to come from. Tuples are text: "a:1 > b:2", "[2001:db8::1]:1 > [2001:db8::2]:2",
without ports "a > b", and of ICMP "a > b id 7".
Not here: expectations about traffic; the bytes that leave (datapath).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address, ip_network
from typing import Any

import numpy as np

from ctcore.batch import Batch
from ctcore.model.conn import Key, Packet
from ctcore.model.l4 import ICMP_FAMILY, PORTS, inner_key, is_icmp_error, is_icmp_of_family
from ctcore.nat_rules import Match, NatRule, Range
from ctcore.types import REWRITE_DTYPE, Dir, RewriteFlag, Verdict
from datapath import craft
from datapath.frame import frames_of
from datapath.leave import CHANGES
from datapath.wire import parse_batch
from pcap_tests.scene import Conversation, Scene, Seen

ECHO = {4: (8, 0), 6: (128, 129)}  # types of request and reply, by family
ANY = "any"  # in place of addresses: the packet's own


def rule(kind: str, addresses: str, *, ports: tuple[int, int] | int | None = None, **more: Any) -> NatRule:
    """addresses: one, two joined by "-", or ANY. more: fields of Range (random, ...) and Match (proto, src="10.0.0.0/8", dport=80, ...)."""
    low, _, high = addresses.partition("-")
    bounds = (None, None) if addresses == ANY else (ip_address(low), ip_address(high or low))
    how = {name: more.pop(name) for name in ("random", "fully_random", "persistent") if name in more}
    networks = {name: ip_network(more.pop(name)) for name in ("src", "dst") if name in more}
    spans = {name: span(more.pop(name)) for name in ("sport", "dport") if name in more}
    return NatRule(kind, Range(*bounds, span(ports), **how), Match(**networks, **spans, **more))


def span(ports: tuple[int, int] | int | None) -> tuple[int, int] | None:
    return (ports, ports) if isinstance(ports, int) else ports


snat, dnat, masquerade, redirect = (partial(rule, kind) for kind in ("snat", "dnat", "masquerade", "redirect"))


# --- tuples as text --------------------------------------------------------------------------------------------------------------------


def end(text: str) -> tuple[str, int | None]:
    """ "10.0.0.1:80" or "[::1]:80" -> address and port; without a port None."""
    if text.startswith("["):
        address, _, port = text[1:].partition("]:")
        return address, int(port)
    address, colon, port = text.partition(":") if text.count(":") == 1 else (text, "", "")
    return address, int(port) if colon else None


def tuple_text(key: Key) -> str:
    size = 4 if key.family == 4 else 16
    addresses = [str(ip_address(address[:size])) for address in (key.src, key.dst)]
    if key.proto in PORTS:
        shown = [f"[{address}]" if key.family == 6 else address for address in addresses]
        return f"{shown[0]}:{key.sport} > {shown[1]}:{key.dport}"
    asked = key.proto in ICMP_FAMILY and key.inverted() is not None
    return " > ".join(addresses) + (f" id {key.sport}" if asked else "")


# --- packets that pass -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Passed(Seen):
    """One packet's decision, and what is to be changed in it. quoted: the tuple in an ICMP error, None in other packets."""

    key: Key
    rewrite: np.void
    quoted: Key | None = None

    @property
    def flags(self) -> int:
        """Of what is changed."""
        return int(self.rewrite["flags"]) & CHANGES

    @property
    def left(self) -> Key:
        """The tuple it leaves with."""
        return changed(self.key, self.to, self.flags, RewriteFlag.REWRITE_SRC, RewriteFlag.REWRITE_DST)

    @property
    def to(self) -> Key:
        return Key.of(self.rewrite["to"].tobytes())

    def leaves(self, text: str) -> Passed:
        assert self.record["verdict"] == Verdict.ACCEPT, self.words
        assert tuple_text(self.left) == text, self.words
        return self

    def unchanged(self) -> Passed:
        """It leaves as it came."""
        assert (self.record["verdict"], self.flags) == (Verdict.ACCEPT, 0), (self.words, tuple_text(self.left))
        return self

    def dropped(self, reason: str) -> Passed:
        assert (self.verdict, self.reason, self.flags) == ("drop", reason, 0), self.words
        return self

    def quotes(self, text: str) -> Passed:
        """An ICMP error's quoted packet, as it leaves."""
        assert self.quoted is not None
        source = self.to.inverted() or self.to
        inner = changed(self.quoted, source, self.flags, RewriteFlag.REWRITE_INNER_SRC, RewriteFlag.REWRITE_INNER_DST)
        assert tuple_text(inner) == text
        return self


def changed(key: Key, to: Key, flags: int, src: int, dst: int) -> Key:
    """What a translator makes of a packet's tuple: an ICMP id belongs to either half, an error has none."""
    ident = key.proto in ICMP_FAMILY and to.proto == key.proto and key.inverted() is not None
    if flags & (src | dst) and ident:
        key = key._replace(sport=to.sport)
    if flags & src:
        key = key._replace(src=to.src, sport=to.sport if key.proto in PORTS else key.sport)
    if flags & dst:
        key = key._replace(dst=to.dst, dport=to.dport if key.proto in PORTS else key.dport)
    return key


class Router(Scene):
    """A tracker that translates, and its clock."""

    def batch(self, frames: list[bytes], *, zone: int = 0) -> Batch:
        return parse_batch(*frames_of(frames, ts=self.now), zone=zone, checksum=self.checksum, nat=bool(self.tracker.config.nat))

    def send(self, frame: bytes, *, zone: int = 0) -> Passed:
        batch = self.batch([frame], zone=zone)
        packet = Packet.of(batch.array[0], batch.l4_bytes(0))
        rewrites = np.zeros(1, dtype=REWRITE_DTYPE)
        decision = self.tracker.advance(batch, rewrites)[0]
        self.tracker.check()
        error = is_icmp_of_family(packet.key) and is_icmp_error(packet)
        return Passed(decision, self.hz, packet.key, rewrites[0], inner_key(packet)[0] if error else None)

    def udp(self, text: str, **where: Any) -> Talk:
        return Talk(self, craft.udp, text, **where)

    def udplite(self, text: str, **where: Any) -> Talk:
        """As Linux takes it for a sound one: with the pseudo-header of UDP."""
        return Talk(self, partial(craft.udplite, sum_proto=craft.UDP), text, **where)

    def sctp(self, text: str, *, tag: int = 7) -> Talk:
        """The question is an INIT; tag: its initiate tag."""
        return Talk(self, partial(sctp_frame, craft.sctp_init(tag)), text)

    def gre(self, text: str, **fields: Any) -> Talk:
        return Talk(self, partial(craft.gre, payload=bytes(8), **fields), text)

    def generic(self, text: str, proto: int = 89) -> Talk:
        return Talk(self, lambda src, dst, **fields: craft.frame(src, dst, proto, b"whatever", **fields), text)

    def ping(self, text: str, **where: Any) -> Ping:
        return Ping(self, craft.icmp, text, **where)

    def tcp(self, text: str, *, isn: tuple[int, int] = (100, 500), zone: int = 0) -> Through:
        (src, sport), (dst, dport) = map(end, text.split(" > "))
        return Through(self, list(isn), (src, dst), (sport or 0, dport or 0), zone=zone)

    def pool(self, number: int = 0) -> tuple[int, int, int]:
        """In use, most ever, and exhausted, of the rule of this number."""
        row = self.tracker.nat_pools()[number]
        return row.in_use, row.high_water, row.exhausted


def sctp_frame(init: bytes, *ends: Any, tag: int = 0, chunks: bytes = b"", **fields: Any) -> bytes:
    return craft.sctp(*ends, tag, chunks or init, **fields)


@dataclass
class Talk:
    """Two who talk through a router. make: a function of datapath.craft that takes both addresses, and both ports if there are any."""

    router: Router
    make: Callable[..., bytes]
    text: str
    zone: int = 0
    left: Key | None = None

    def ends(self, d: int) -> tuple[Any, ...]:
        """Addresses, and ports if there are any, as the sender of a direction puts them into its packets."""
        if d == Dir.REPLY:
            assert self.left is not None, "nothing has arrived that could be answered"
            return ends_of(self.left.inverted())
        (src, sport), (dst, dport) = map(end, self.text.split(" > "))
        return (src, dst) if sport is None else (src, dst, sport, dport)

    def frame(self, d: int, *rest: Any, **fields: Any) -> bytes:
        return self.make(*self.ends(d), *rest, **fields)

    def send(self, d: int, *rest: Any, **fields: Any) -> Passed:
        passed = self.router.send(self.frame(d, *rest, **fields), zone=self.zone)
        if d == Dir.ORIG:
            self.left = passed.left
        return passed

    def orig(self, *rest: Any, **fields: Any) -> Passed:
        return self.send(Dir.ORIG, *rest, **fields)

    def reply(self, *rest: Any, **fields: Any) -> Passed:
        return self.send(Dir.REPLY, *rest, **fields)

    def arrived(self) -> bytes:
        """The last packet as it reached the other side, for who complains about it there."""
        assert self.left is not None
        return self.make(*ends_of(self.left))


def ends_of(key: Key | None) -> tuple[Any, ...]:
    assert key is not None
    size = 4 if key.family == 4 else 16
    addresses = tuple(str(ip_address(address[:size])) for address in (key.src, key.dst))
    return (*addresses, key.sport, key.dport) if key.proto in PORTS else addresses


@dataclass
class Ping(Talk):
    """Echo requests and their replies."""

    ident: int = 7

    def frame(self, d: int, *rest: Any, **fields: Any) -> bytes:
        src, dst = self.ends(d)
        ident = self.ident if d == Dir.ORIG or self.left is None else self.left.sport
        return craft.icmp(src, dst, ECHO[6 if ":" in src else 4][d], ident=ident, **fields)

    def arrived(self) -> bytes:
        assert self.left is not None
        src, dst = ends_of(self.left)
        return craft.icmp(src, dst, ECHO[self.left.family][Dir.ORIG], ident=self.left.sport)


@dataclass
class Through(Conversation):
    """A TCP connection through a router: the server answers to where the client seems to be."""

    left: Key | None = None

    def ends(self, d: int) -> tuple[str, str, int, int]:
        if d == Dir.ORIG:
            return super().ends(d)
        assert self.left is not None, "nothing has arrived that could be answered"
        src, dst, sport, dport = ends_of(self.left.inverted())
        return src, dst, sport, dport

    def send(self, d: int, flags: str, **fields: Any) -> Passed:
        passed = super().send(d, flags, **fields)
        assert isinstance(passed, Passed)
        if d == Dir.ORIG:
            self.left = passed.left
        return passed

    def establish(self) -> Through:
        for d, flags in ((Dir.ORIG, "S"), (Dir.REPLY, "SA"), (Dir.ORIG, "A")):
            self.send(d, flags)
        return self

    def close(self) -> Through:
        """As established connections end: TIME_WAIT."""
        for d, flags in ((Dir.ORIG, "FA"), (Dir.REPLY, "A"), (Dir.REPLY, "FA"), (Dir.ORIG, "A")):
            self.send(d, flags)
        assert self.state == "TIME_WAIT"
        return self
