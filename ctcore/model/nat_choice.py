"""What address translation has to choose from, and by which numbers it chooses.

A rule's range, seen from one packet, is a Choice of addresses and ports. An address is chosen by a hash, so that the same two hosts always get the
same one; a port by a search that begins at a random one.
Invariants: the hash and the order of its words are Linux's, so that the address chosen is the one Linux chooses; random numbers come from the seed.
Not here: which tuples are free, and in which order all of this is tried (nat).
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from ctcore.model import l4
from ctcore.model.conn import MASK32, Key
from ctcore.nat_rules import NatRule, Ports
from ctcore.types import Manip, Proto

SRC, DST = Manip.MANIP_SRC, Manip.MANIP_DST
ANY_ID, ANY_GRE_KEY = (0, 0xFFFF), (1, 0xFFFF)
# Ports that a port may be exchanged for if nobody says otherwise: those below 512 prove who is asking to some (rlogin), those below 1024 to others.
PORT_CLASSES = ((511, (1, 511)), (1023, (600, 1023)), (0xFFFF, (1024, 0xFFFF)))

MASK16, MASK64 = 0xFFFF, (1 << 64) - 1
SEED_MIX = 0x4E41542D73656564
GOLDEN = 0x9E3779B97F4A7C15


class Draws:
    """The random numbers of port searches, from a seed: splitmix64, of which the upper 16 bits are taken."""

    def __init__(self, seed: int):
        self.state = seed ^ SEED_MIX

    def port(self) -> int:
        self.state = self.state + GOLDEN & MASK64
        z = self.state
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK64
        z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK64
        return (z ^ z >> 31) >> 48


# --- the hash that chooses an address --------------------------------------------------------------------------------------------------


def rotated(word: int, bits: int) -> int:
    return (word << bits | word >> 32 - bits) & MASK32


def jhash2(words: tuple[int, ...], initial: int) -> int:
    """Bob Jenkins' lookup3 over 32-bit words, as Linux has it."""
    a = b = c = 0xDEADBEEF + 4 * len(words) + initial & MASK32
    while len(words) > 3:
        a, b, c = a + words[0] & MASK32, b + words[1] & MASK32, c + words[2] & MASK32
        words = words[3:]
        for bits in (4, 6, 8, 16, 19, 4):  # each round treats what the next one calls a, b, c
            a, c = (a - c ^ rotated(c, bits)) & MASK32, c + b & MASK32
            a, b, c = b, c, a
    if not words:
        return c
    last = (*words, 0, 0)
    a, b, c = a + last[0] & MASK32, b + last[1] & MASK32, c + last[2] & MASK32
    for bits in (14, 11, 25, 16, 4, 14, 24):
        c = (c ^ b) - rotated(b, bits) & MASK32
        a, b, c = b, c, a
    return b


def scaled(number: int, size: int) -> int:
    """A number of 32 bits as its share of size."""
    return number * size >> 32


def words_of(address: bytes, order: str = "=") -> tuple[int, ...]:
    """Four words, of which IPv4 uses the first. "=" is the machine's order, in which Linux hashes; "!" that of the network."""
    return struct.unpack(order + "4I", address)


# --- what there is to choose from ------------------------------------------------------------------------------------------------------


class Choice(NamedTuple):
    """A rule's range for the packet at hand, or a null binding. low, high: addresses as a Key has them, both included; None: any."""

    low: bytes | None
    high: bytes | None
    ports: Ports | None = None
    random: bool = False  # never begin with what the packet brings along
    persistent: bool = False

    def holds(self, leaving: Key) -> bool:
        """Whether the source of a tuple lies in here."""
        inside = self.low is None or self.high is None or self.low <= leaving.src <= self.high
        return inside and (self.ports is None or port_within(leaving, self.ports, SRC))


def packed(address: IPv4Address | IPv6Address) -> bytes:
    return address.packed.ljust(16, b"\0")


def choice_of(rule: NatRule | None, leaving: Key, manip: int) -> Choice:
    """Without a rule the packet's own address, and a port that changes only if it must."""
    if rule is None:
        own = leaving.src if manip == SRC else leaving.dst
        return Choice(own, own)
    range_ = rule.range
    # Linux distinguishes random and fully-random no more: either skips the tuple as it is, the mapping of the same source, and the port as it is.
    random = range_.random or range_.fully_random
    if range_.low is None or range_.high is None or range_.keeps_address:
        return Choice(None, None, range_.ports, random, range_.persistent)
    return Choice(packed(range_.low), packed(range_.high), range_.ports, random, range_.persistent)


def has_port(proto: int) -> bool:
    """Whether there is a number that a search may change: a port, an ICMP id, a GRE key."""
    return proto in l4.PORTS or proto in l4.ICMP_FAMILY or proto == Proto.PROTO_GRE


def port_of(leaving: Key, manip: int) -> int:
    """The number that a manip may change. An ICMP id is the same for question and answer."""
    return leaving.sport if manip == SRC or leaving.proto in l4.ICMP_FAMILY else leaving.dport


def with_port(leaving: Key, manip: int, port: int) -> Key:
    if manip == SRC or leaving.proto in l4.ICMP_FAMILY:
        return leaving._replace(sport=port)
    return leaving._replace(dport=port)


def port_within(leaving: Key, ports: Ports, manip: int) -> bool:
    """What has no port is within any range of them."""
    return not has_port(leaving.proto) or ports[0] <= port_of(leaving, manip) <= ports[1]


def ports_to_search(leaving: Key, choice: Choice, manip: int, *, announced: bool) -> Ports | None:
    """Lowest and highest port a search may come to; None: there is nothing to search for, the tuple stays as it is.

    announced: by another connection (PPTP), which is who knows of GRE's keys.
    """
    if not has_port(leaving.proto) or (leaving.proto == Proto.PROTO_GRE and not announced):
        return None
    if choice.ports:
        return choice.ports
    if leaving.proto in l4.ICMP_FAMILY:
        return ANY_ID
    if leaving.proto == Proto.PROTO_GRE:
        return ANY_GRE_KEY
    if manip == DST:  # a service is not moved to another port unless somebody says so
        return None
    return next(ports for last, ports in PORT_CLASSES if leaving.sport <= last)


def with_address(leaving: Key, manip: int, address: bytes) -> Key:
    return leaving._replace(src=address) if manip == SRC else leaving._replace(dst=address)


def choose_address(leaving: Key, choice: Choice, manip: int) -> Key:
    """One of the addresses, by a hash of the source, and of the destination unless it is to be persistent: always the same for the same two."""
    if choice.low is None or choice.high is None:
        return leaving
    if choice.low == choice.high:
        return with_address(leaving, manip, choice.low)
    length = 1 if leaving.family == 4 else 4
    dst = list(words_of(leaving.dst))
    number = jhash2(words_of(leaving.src), 0 if choice.persistent else dst[length - 1] ^ leaving.zone)
    low, high = words_of(choice.low, "!"), words_of(choice.high, "!")
    chosen = b""
    below = False  # the highest address: then the words that follow may be any
    for i in range(length):
        first, size = (0, MASK32) if below else (low[i], high[i] - low[i] + 1 & MASK32)
        word = struct.pack("!I", first + scaled(number, size) & MASK32)
        below = below or word != struct.pack("!I", high[i])
        chosen += word
        if manip == DST:  # Linux writes the new address over the old one, and goes on hashing what it has written
            dst[i] = struct.unpack("=I", word)[0]
        number ^= 0 if choice.persistent else dst[i]
    return with_address(leaving, manip, chosen.ljust(16, b"\0"))
