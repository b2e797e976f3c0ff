"""Which of several workers a connection belongs to, in the model: see ctcore.steering, whose twin this is."""

from __future__ import annotations

import struct

from ctcore.model import l4
from ctcore.model.conn import Key
from ctcore.types import Proto

MASK64 = (1 << 64) - 1
HIGH, LOW, PORT, KIND, LAST = 0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93, 0xA0761D6478BD642F


def folded(a: int, b: int) -> int:
    """The two halves of a product, one upon the other."""
    product = a * b
    return product & MASK64 ^ product >> 64


def end(address: bytes, port: int) -> int:
    high, low = struct.unpack("<2Q", address)
    return folded(folded(high ^ HIGH, low ^ LOW) ^ port, PORT)


HELPED = {Proto.PROTO_TCP: {21, 1723, 5060, 6667}, Proto.PROTO_UDP: {69, 5060}}  # the usual ports of what helpers read


def owner(key: Key, count: int) -> int:
    """The worker, of `count`, that a tuple and its answers belong to."""
    if key.proto not in l4.PORTS and key.proto not in l4.ICMP_FAMILY:
        return 0
    if {key.sport, key.dport} & HELPED.get(Proto(key.proto), set()):
        return 0
    dport = key.sport if key.proto in l4.ICMP_FAMILY else key.dport
    both = end(key.src, key.sport) + end(key.dst, dport) & MASK64
    return (folded(both ^ key.proto * KIND & MASK64, LAST) >> 32) * count >> 32
