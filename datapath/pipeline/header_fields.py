"""What pedit can change: header fields by tc's names, and where they lie.

Source: tc-pedit(8), and the keys that tc of iproute2 6.1 sends for each of them. Not here: text (tc_actions), checksums, which pedit leaves alone.
"""

from __future__ import annotations

from typing import NamedTuple

HEADERS = ("eth", "ip", "ip6", "tcp", "udp")


class HeaderField(NamedTuple):
    """offset: of its first byte, from the start of its header; size: bytes; shift: how far the value is moved to the left in these bytes;
    bits: of a value; mask: what of them changes where no `retain` says; kind: number, mac, ipv4, ipv6."""

    offset: int
    size: int
    bits: int
    mask: int
    kind: str = "number"
    shift: int = 0

    @property
    def whole(self) -> bool:
        """Whether it is changed as a whole only: `retain` is for numbers of up to 32 bits."""
        return self.kind in ("mac", "ipv6")

    @property
    def addable(self) -> bool:
        """Linux adds to words in the byte order of the machine, so a sum is only what it says in a field of one byte."""
        return self.size == 1 and self.kind == "number"


def _byte(offset: int, mask: int = 0xFF) -> HeaderField:
    return HeaderField(offset, 1, 8, mask)


def _port(offset: int) -> HeaderField:
    return HeaderField(offset, 2, 16, 0xFFFF)


# The bits of IPv4's fragment field are written as a byte, of which each name changes its own part.
HEADER_FIELDS: dict[tuple[str, str], HeaderField] = {
    ("eth", "dst"): HeaderField(0, 6, 48, (1 << 48) - 1, "mac"),
    ("eth", "src"): HeaderField(6, 6, 48, (1 << 48) - 1, "mac"),
    ("eth", "type"): HeaderField(12, 2, 16, 0xFFFF),
    ("ip", "ihl"): _byte(0, 0x0F),
    ("ip", "tos"): _byte(1),
    ("ip", "nofrag"): _byte(6, 0x3F),
    ("ip", "firstfrag"): _byte(6, 0x1F),
    ("ip", "ce"): _byte(6, 0x80),
    ("ip", "df"): _byte(6, 0x40),
    ("ip", "mf"): _byte(6, 0x20),
    ("ip", "ttl"): _byte(8),
    ("ip", "protocol"): _byte(9),
    ("ip", "src"): HeaderField(12, 4, 32, 0xFFFFFFFF, "ipv4"),
    ("ip", "dst"): HeaderField(16, 4, 32, 0xFFFFFFFF, "ipv4"),
    ("ip6", "traffic_class"): HeaderField(0, 2, 8, 0xFF, shift=4),
    # tc changes 19 of the 20 bits unless told otherwise.
    ("ip6", "flow_lbl"): HeaderField(0, 4, 20, 0x7FFFF),
    ("ip6", "payload_len"): HeaderField(4, 2, 16, 0xFFFF),
    ("ip6", "nexthdr"): _byte(6),
    ("ip6", "hoplimit"): _byte(7),
    ("ip6", "src"): HeaderField(8, 16, 128, (1 << 128) - 1, "ipv6"),
    ("ip6", "dst"): HeaderField(24, 16, 128, (1 << 128) - 1, "ipv6"),
    ("tcp", "sport"): _port(0),
    ("tcp", "dport"): _port(2),
    ("tcp", "flags"): _byte(13),
    ("udp", "sport"): _port(0),
    ("udp", "dport"): _port(2),
}
SAME = {("ip", "dsfield"): "tos", ("ip", "precedence"): "tos"}  # other words for the same bits
