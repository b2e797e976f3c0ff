"""The key: what a NIC reads of a frame, ten words, so that a rule is compared as value and mask, and the first five are a connection's key.

    0, 1  source address        5  ethertype, outer tag, what is behind it, inner tag
    2, 3  destination address   6  what is behind the inner tag, TOS, TTL, TCP flags, ICMP type and code
    4     ports, zone, proto,   7  destination MAC address, iface
          family                8  source MAC address, ct_state, fragment flags
                                9  ct mark, labels id

Words 0 to 4 lie as ctcore's Key does: addresses in network order, numbers in the machine's, which is little-endian. All words are signed, since numba
makes a float of an unsigned and a signed one; they are only compared, masked and shifted to the left, or masked after a shift to the right.
Invariant: what a frame does not have is 0; FIELDS do not overlap.
Not here: reading frames (parse).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

WORDS = 10
TUPLE_WORDS = 5
W_PORTS, W_TYPES, W_NETWORK, W_DST_MAC, W_SRC_MAC, W_CT = 4, 5, 6, 7, 8, 9

# ct_state as flower has it (TCA_FLOWER_KEY_CT_FLAGS_*). nat is the NIC's own: what its CT_NAT table has been asked for.
STATE_NEW, STATE_EST, STATE_REL, STATE_TRK, STATE_INV, STATE_RPL, STATE_NAT = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40


class Lies(NamedTuple):
    """Where a field is. word, shift: of its lowest bit; wire: of bytes in network order, of 8 bits each; else a number."""

    word: int
    shift: int
    bits: int
    wire: bool = False


FIELDS: dict[str, Lies] = {
    "src_ip": Lies(0, 0, 128, wire=True),
    "dst_ip": Lies(2, 0, 128, wire=True),
    "src_port": Lies(4, 0, 16),
    "dst_port": Lies(4, 16, 16),
    "ct_zone": Lies(4, 32, 16),
    "ip_proto": Lies(4, 48, 8),
    "family": Lies(4, 56, 8),
    "eth_type": Lies(5, 0, 16),
    "vlan_tci": Lies(5, 16, 16),
    "vlan_ethtype": Lies(5, 32, 16),
    "cvlan_tci": Lies(5, 48, 16),
    "cvlan_ethtype": Lies(6, 0, 16),
    "ip_tos": Lies(6, 16, 8),
    "ip_ttl": Lies(6, 24, 8),
    "tcp_flags": Lies(6, 32, 12),
    "icmp_type": Lies(6, 48, 8),
    "icmp_code": Lies(6, 56, 8),
    "dst_mac": Lies(7, 0, 48, wire=True),
    "iface": Lies(7, 48, 16),
    "src_mac": Lies(8, 0, 48, wire=True),
    "ct_state": Lies(8, 48, 8),
    "ip_flags": Lies(8, 56, 8),
    "ct_mark": Lies(9, 0, 32),
    "labels_id": Lies(9, 32, 32),
}


def put(name: str, number: int) -> int:
    """A field's number, a value or a mask, where it lies in the key, which is read as one number, its first word the lowest."""
    lies = FIELDS[name]
    if lies.wire:
        number = int.from_bytes(number.to_bytes(lies.bits // 8, "big"), "little")
    return number << (64 * lies.word + lies.shift)


def words_of(number: int) -> list[int]:
    """The same as signed words."""
    words = [number >> 64 * i & (1 << 64) - 1 for i in range(WORDS)]
    return [word - (1 << 64) if word >> 63 else word for word in words]


def prefixes(low: int, high: int, bits: int = 16) -> Iterator[tuple[int, int]]:
    """The fewest pairs of value and mask that are true for low to high, both included, and for nothing else."""
    everything = (1 << bits) - 1
    while low <= high:
        size = low & -low or 1 << bits
        while size > high - low + 1:
            size >>= 1
        yield low, everything & ~(size - 1)
        low += size
