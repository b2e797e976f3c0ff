"""Rules and frames at random, out of few values, so that rules match, overlap, and send frames in circles.

Everything comes from one Random: a seed gives the same rules and frames. Made for many thousands of pairs in a few seconds; hypothesis draws rarer
values (rulesets). No `ct` here; who wants it passes a maker of further actions.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from datapath import craft
from datapath.pipeline.header_fields import HEADER_FIELDS
from datapath.pipeline.rules import (
    CONTINUE,
    DROP,
    ETH_ALL,
    ETH_ARP,
    ETH_IP,
    ETH_IPV6,
    ETH_QINQ,
    ETH_VLAN,
    FIELD_ORDER,
    PASS,
    PIPE,
    RECLASSIFY,
    Action,
    Control,
    Csum,
    Gact,
    Hook,
    Match,
    Mirred,
    Munge,
    Pedit,
    Police,
    Qdisc,
    Rule,
    Ruleset,
    Skbedit,
    Vlan,
    goto,
)
from datapath.pipeline.tc_actions import CSUM_ORDER

DEVICES = ("eth0", "eth1", "eth2", "tap0")
BLOCK = Hook("", "", 7)
QDISCS = (Qdisc("eth0"), Qdisc("eth1"), Qdisc("eth2", ingress_block=7, egress_block=7))
RULED = (*(Hook("eth0"),) * 6, Hook("eth0", "egress"), Hook("eth1"), Hook("eth1", "egress"), BLOCK)
ENTRIES = (*(Hook("eth0"),) * 9, Hook("eth0", "egress"), Hook("eth1"), Hook("eth2"), Hook("tap0"))
A4, A6 = ("10.0.0.1", "10.0.0.2", "10.0.1.1", "192.0.2.1"), ("2001:db8::1", "2001:db8::2", "2001:db8:1::1")
PORTS = (53, 80, 443, 1024, 40000)
SECOND = 1_000_000_000

More = Callable[[Random, int], Action]  # of a Random and an ethertype


# --- frames -----------------------------------------------------------------------------------------------------------------------------


EXTENSIONS = (
    (craft.HOP_BY_HOP, craft.options6()),
    (craft.HOP_BY_HOP, bytes.fromhex("000104") + bytes(4)),
    (craft.HOP_BY_HOP, bytes.fromhex("00c20400000020")),  # a jumbo payload of 32 bytes (RFC 2675)
    (craft.HOP_BY_HOP, bytes.fromhex("00c20500000000")),
    (craft.HOP_BY_HOP, bytes.fromhex("00000000c20300")),
    (craft.ROUTING, bytes([0, 0, 0]) + bytes(4)),
    (craft.DESTINATION, craft.options6(1)),
    (craft.AH, bytes([4, 0, 0]) + bytes(20)),
    (craft.AH, bytes([1]) + bytes(10)),
    (craft.FRAGMENT, craft.fragment6()),
    (craft.FRAGMENT, craft.fragment6(16)),
)


def chained(random: Random, frame: bytes) -> bytes:
    """An IPv6 packet with further headers in front of its transport header."""
    ext = [random.choice(EXTENSIONS) for _ in range(random.choice((1, 1, 2, 3)))]
    kinds = [kind for kind, _ in ext] + [frame[20]]
    chain = b"".join(bytes([following]) + rest for following, (_, rest) in zip(kinds[1:], ext, strict=True))
    length = int.from_bytes(frame[18:20], "big") + len(chain)
    return frame[:18] + length.to_bytes(2, "big") + bytes(kinds[:1]) + frame[21:54] + chain + frame[54:]


def transports(random: Random, src: str, dst: str) -> bytes:
    """A sound packet of any protocol that actions know, and of one that they do not."""
    payload, ports = random.randbytes(random.choice((0, 1, 7, 40))), (random.choice(PORTS), random.choice(PORTS))
    kind = random.randrange(8)
    if kind < 3:
        return craft.tcp(src, dst, *ports, random.choice(("S", "SA", "A", "PA", "FA", "R")), payload=payload)
    if kind < 5:
        return craft.udp(src, dst, *ports, payload, **random.choice(({}, {"l4_checksum": 0})))
    if kind == 5:
        return craft.icmp(src, dst, random.choice((0, 8, 3, 128, 129)), ident=random.choice(PORTS), sequence=1, payload=payload)
    if kind == 6:
        lite, at = craft.udplite(src, dst, *ports, payload), 14 + (40 if ":" in src else 20) + 4
        lite = lite[:at] + random.choice((0, 3, 8, 9, 200)).to_bytes(2, "big") + lite[at + 2 :]  # its coverage, which may lie
        return random.choice((lite, craft.sctp(src, dst, *ports, 7, craft.sctp_init(7))))
    return craft.frame(src, dst, random.choice((2, 47, 50, 89)), random.randbytes(8) + payload)


def fragment(random: Random, src: str, dst: str) -> bytes:
    offset, payload = random.choice((0, 8, 1480)), random.randbytes(24)
    if ":" in src:
        return craft.frame(src, dst, 17, payload, ext=((craft.FRAGMENT, craft.fragment6(offset, True)),))
    return craft.frame(src, dst, 17, payload, frag=offset // 8 | 0x2000)


def arp(random: Random) -> bytes:
    addresses = [craft.MAC_A + craft.address(random.choice(A4)) for _ in range(2)]
    return craft.eth(bytes.fromhex("000108000604") + random.choice((1, 1, 2, 3)).to_bytes(2, "big") + b"".join(addresses), ETH_ARP)


def damaged(random: Random, frame: bytes) -> bytes:
    """Cut short, padded, or with a byte that is another one, often of a header."""
    how = random.randrange(4)
    if how == 0:
        return frame[: random.randrange(len(frame) + 1)]
    if how == 1:
        return frame + bytes(random.randrange(20))
    at = random.randrange(min(len(frame), 60))
    return frame[:at] + bytes([random.choice((0, 0x45, 0x4F, 0x40, 0xFF, random.randrange(256)))]) + frame[at + 1 :]


def some_frame(random: Random) -> bytes:
    """An Ethernet frame, mostly sound."""
    addresses = A6 if random.randrange(4) == 0 else A4
    src, dst = random.choice(addresses), random.choice(addresses)
    kind = random.randrange(20)
    if kind == 0:
        frame = arp(random)
    elif kind == 1:
        frame = craft.eth(random.randbytes(30), random.choice((0x88CC, ETH_IP, ETH_IPV6)))
    elif kind == 2:
        frame = fragment(random, src, dst)
    else:
        frame = transports(random, src, dst)
        frame = chained(random, frame) if ":" in src and random.randrange(3) == 0 else frame
    for _ in range(random.choice((0, 0, 0, 0, 1, 1, 2, 3))):
        frame = frame[:12] + random.choice((b"\x81\x00", b"\x88\xa8")) + random.choice((5, 6, 0x2005)).to_bytes(2, "big") + frame[12:]
    return damaged(random, frame) if random.randrange(5) == 0 else frame


# --- matches ----------------------------------------------------------------------------------------------------------------------------


def number(address: str) -> int:
    return int.from_bytes(craft.address(address), "big")


def full(bits: int) -> int:
    return (1 << bits) - 1


def masked(random: Random, name: str, value: int, bits: int) -> Match:
    """Mostly all of the field, or else some of its bits."""
    mask = random.choice((full(bits), full(bits), full(bits) ^ full(bits // 2), random.getrandbits(bits)))
    return Match(name, value & mask, mask)


def port(random: Random, name: str) -> Match:
    if random.randrange(4) == 0:
        low, high = sorted(random.sample(PORTS, 2))
        return Match(name, low, 0xFFFF, high)
    return masked(random, name, random.choice(PORTS), 16)


def of_ip(random: Random, version: int) -> list[Match]:
    """What an IP rule may look at, in any number."""
    bits, addresses = (32, A4) if version == 4 else (128, A6)
    icmp = 1 if version == 4 else 58
    found = [masked(random, name, number(random.choice(addresses)), bits) for name in ("src_ip", "dst_ip") if random.randrange(6) == 0]
    if random.randrange(12) == 0:
        found.append(random.choice((masked(random, "ip_tos", 0, 8), masked(random, "ip_ttl", 64, 8), Match("ip_flags", random.randrange(2), 1))))
    if random.randrange(3) == 0:
        proto = random.choice((6, 6, 6, 17, 17, icmp, 132, 136))
        found.append(Match("ip_proto", proto, 0xFF))
        if proto in (6, 17, 132):
            found += [port(random, name) for name in ("dst_port", "src_port") if random.randrange(3) == 0]
        if proto == 6 and random.randrange(5) == 0:
            found.append(masked(random, "tcp_flags", random.choice((0x02, 0x12, 0x10)), 12))
        if proto == icmp and random.randrange(2):
            found.append(masked(random, "type", random.choice((0, 8, 128, 129)), 8))
    return found


def of_tags(random: Random, protocol: int) -> tuple[list[Match], int]:
    """Tags, and the type behind them."""
    found: list[Match] = []
    for tag in ("vlan", "cvlan"):
        if protocol not in (ETH_VLAN, ETH_QINQ):
            break
        if random.randrange(3) == 0:
            found.append(Match(f"{tag}_id", random.choice((5, 6)), 0xFFF))
        if random.randrange(5) == 0:
            found.append(Match(f"{tag}_prio", random.choice((0, 1)), 7))
        if random.randrange(2):
            return found, 0
        protocol = random.choice((ETH_IP, ETH_IP, ETH_IPV6, ETH_ARP, ETH_VLAN))
        found.append(Match(f"{tag}_ethtype", protocol, 0xFFFF))
    return found, protocol


def some_matches(random: Random, protocol: int) -> tuple[tuple[Match, ...], int]:
    """Matches in the order of FIELDS, and the ethertype that addresses are of."""
    found, inner = of_tags(random, protocol)
    if random.randrange(20) == 0:
        found.append(Match("indev", 0, 0, None, random.choice(DEVICES)))
    if random.randrange(20) == 0:
        found.append(masked(random, random.choice(("src_mac", "dst_mac")), 0x020000000001, 48))
    if inner in (ETH_IP, ETH_IPV6):
        found += of_ip(random, 4 if inner == ETH_IP else 6)
    elif inner == ETH_ARP and random.randrange(2):
        found.append(random.choice((masked(random, "arp_sip", number(random.choice(A4)), 32), Match("arp_op", 1, 0xFF))))
    return tuple(sorted(found, key=lambda each: FIELD_ORDER[each.name])), inner


# --- actions ----------------------------------------------------------------------------------------------------------------------------


def some_control(random: Random) -> Control:
    onward = goto(random.choice((0, 1, 1, 2, 2, 3)))
    return random.choice((*(PIPE,) * 8, PASS, DROP, *(CONTINUE,) * 5, RECLASSIFY, *(onward,) * 4))


def some_munge(random: Random, inner: int) -> Munge:
    """Mostly of a field that the rule's packets have."""
    headers = {ETH_IP: ("ip", "tcp", "udp", "eth"), ETH_IPV6: ("ip6", "tcp", "udp", "eth")}.get(inner, ("eth",))
    names = [pair for pair in HEADER_FIELDS if pair[0] in headers or random.randrange(20) == 0]
    header, name = random.choice(names)
    field = HEADER_FIELDS[header, name]
    mask = field.mask if field.whole or random.randrange(2) else random.getrandbits(field.bits)
    # Values of the pools where there are any, so that later rules match what was changed.
    pool = {"sport": PORTS, "dport": PORTS, "type": (ETH_IP, ETH_VLAN, ETH_IPV6), "protocol": (1, 2, 6, 17, 132, 136), "nexthdr": (6, 17, 58)}
    value = random.choice(pool.get(name, (random.getrandbits(field.bits),)))
    if name in ("src", "dst") and field.kind in ("ipv4", "ipv6"):
        value = number(random.choice(A4 if field.kind == "ipv4" else A6))
    add = field.addable and random.randrange(3) == 0
    return Munge(header, name, "add" if add else "set", value & (0xFF if add else mask), mask)


def some_police(random: Random) -> Police:
    exceed, then = random.choice((DROP, PASS, CONTINUE, goto(2), PIPE)), random.choice((PIPE, PASS, CONTINUE))
    if random.randrange(3) == 0:
        return Police(packet_rate=random.choice((1, 7, 1000)), packet_burst=random.choice((1, 3, 100)), exceed=exceed, control=then)
    mtu = random.choice((None, None, 60, 1500))
    return Police(random.choice((8, 8000, 10**6, 10**11)), random.choice((64, 200, 100_000)), None, None, mtu, exceed, then)


def some_vlan(random: Random) -> Vlan:
    kind = random.choice(("push", "pop", "modify"))
    if kind == "pop":
        return Vlan("pop", control=some_control(random))
    ident = random.choice((5, 6)) if kind == "push" else random.choice((None, 5, 6))
    return Vlan(kind, ident, random.choice((None, ETH_VLAN, ETH_QINQ)), random.choice((None, 1, 7)), some_control(random))


def some_mirred(random: Random) -> Mirred:
    where = random.choice(DEVICES), random.choice(("egress", "egress", "ingress"))
    return Mirred("redirect", *where) if random.randrange(3) else Mirred("mirror", *where, some_control(random))


def some_action(random: Random, inner: int, more: More | None) -> Action:
    """more: of others, as often as all of these together."""
    if more is not None and random.randrange(2):
        return more(random, inner)
    kind = random.randrange(13)
    if kind < 3:
        return Gact(some_control(random))
    if kind < 5:
        return some_mirred(random)
    if kind < 7:
        return Pedit(tuple(some_munge(random, inner) for _ in range(random.choice((1, 1, 2, 3)))), some_control(random))
    if kind == 7:
        names = set(random.sample(CSUM_ORDER, random.randrange(1, 7)))
        return Csum(tuple(name for name in CSUM_ORDER if name in names), some_control(random))
    if kind == 8:
        mask = random.getrandbits(32)
        return Skbedit(random.choice((None, (random.getrandbits(32) & mask, mask))), random.choice((None, 0, 7)), control=some_control(random))
    return some_vlan(random) if kind < 11 else some_police(random)


# --- the whole --------------------------------------------------------------------------------------------------------------------------


def some_rule(random: Random, hook: Hook, **more: Any) -> Rule:
    """more: a maker of further actions, `actions`, and of further matches, `matches`."""
    protocol = random.choice((*(ETH_IP,) * 6, ETH_IPV6, *(ETH_ALL,) * 5, ETH_VLAN, ETH_VLAN, ETH_QINQ, ETH_ARP))
    keys, inner = some_matches(random, protocol)
    if "matches" in more:
        keys = tuple(sorted((*keys, *more["matches"](random)), key=lambda each: FIELD_ORDER[each.name]))
    does = tuple(some_action(random, inner, more.get("actions")) for _ in range(random.choice((0, 1, 1, 1, 2, 2, 3))))
    prio, chain = random.randrange(1, 6), random.choice((0, 0, 0, 1, 1, 2, 3))
    return Rule(hook, protocol, keys, does, prio, chain, skip_sw=random.randrange(15) == 0)


def some_ruleset(random: Random, most: int = 50, **more: Any) -> Ruleset:
    """Up to `most` rules over a few hooks, one of them a block that two hooks share."""
    rules = tuple(some_rule(random, random.choice(RULED), **more) for _ in range(random.randrange(1, most)))
    return Ruleset(random.choice(((), QDISCS, QDISCS)), (), rules)
