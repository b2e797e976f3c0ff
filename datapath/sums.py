"""Checksums of an explained packet: what its field holds, what Linux expects there, and whether that is what offload leaves.

For explain only: verifying is wire's, on every packet; here one packet is calculated once more, to show the numbers.
Invariant: an expected value is given only where the field is wrong and all bytes it covers were captured.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ctcore.reasons import REASONS
from ctcore.types import Proto, Reason
from datapath.checksum import castagnoli, internet_checksum
from datapath.evidence import BAD, LARGEST, is_partial
from datapath.explain import Explained


class Field(NamedTuple):
    """A checksum as the packet has it, and as it should be; digits: of its hexadecimal form."""

    found: int
    expected: int
    digits: int

    def __str__(self) -> str:
        return f"found {self.found:#0{self.digits + 2}x}, expected {self.expected:#0{self.digits + 2}x}"


def check_lines(it: Explained) -> Iterator[tuple[str, str]]:
    """What was found when the packet was parsed, as labels and texts."""
    reason = REASONS[int(it.packet["reason"]) or int(it.packet["l4_reason"])]
    if reason.code == Reason.R_OK:
        if len(it.l4) < it.packet["l4_len"]:
            yield "checks", "headers sound; the checksum cannot be verified, for the capture does not hold the whole packet"
        else:
            yield "checks", "headers sound" + ("" if it.tracking.config.checksum else "; checksums are not verified (--checksum 0)")
        return
    yield "checks", f"{reason.sentence} ({reason.rule})"
    if field := field_of(it):
        yield "", f"{field}{_whose(it)}"


def field_of(it: Explained) -> Field | None:
    """The checksum that was found bad; None if it was something else."""
    code = int(it.packet["reason"]) or int(it.packet["l4_reason"])
    if code == Reason.R_IP_CHECKSUM:
        header = it.data[int(it.packet["l3_off"]) :]
        return _internet(header[: (header[0] & 15) * 4], 10)
    if code == Reason.R_SCTP_CHECKSUM:
        expected = castagnoli(it.l4[:8] + bytes(4) + it.l4[12:])
        return Field(int.from_bytes(it.l4[8:12], "little"), expected, 8)
    if code == Reason.R_ICMP_CHECKSUM:
        return _internet(it.l4, 2, _pseudo_header(it, Proto.PROTO_ICMPV6) if it.key["family"] == 6 else b"")
    if code == Reason.R_TCP_CHECKSUM:
        return _internet(it.l4, 16, _pseudo_header(it, Proto.PROTO_TCP))
    if code == Reason.R_UDP_CHECKSUM:
        lite = it.proto == Proto.PROTO_UDPLITE
        covered = (int.from_bytes(it.l4[4:6], "big") if lite else 0) or len(it.l4)
        return _internet(it.l4[:covered], 6, _pseudo_header(it, Proto.PROTO_UDP))
    return None


def _pseudo_header(it: Explained, proto: int) -> bytes:
    """RFC 768, RFC 8200 8.1. Of the latter's length and protocol the upper halves are zeros, which add nothing."""
    size = 4 if it.key["family"] == 4 else 16
    ends = it.key["src"].tobytes()[:size] + it.key["dst"].tobytes()[:size]
    return ends + int(it.packet["l4_len"]).to_bytes(4, "big") + proto.to_bytes(2, "big")


def _internet(data: bytes, at: int, before: bytes = b"") -> Field:
    expected = internet_checksum(before + data[:at] + bytes(2) + data[at + 2 :])
    return Field(int.from_bytes(data[at : at + 2], "big"), expected, 4)


def _whose(it: Explained) -> str:
    """Whether it is what a host leaves to its NIC."""
    if it.proto == Proto.PROTO_UDPLITE:
        return "; Linux calculates it with UDP's protocol number, so that a correct one is bad (try --checksum 0)"
    if int(it.packet["l4_reason"]) not in BAD:
        return ""
    if int(it.frame["len"]) > LARGEST:
        return "; the packet is larger than any on a wire, as an offloading NIC takes or makes them: try --checksum 0"
    if is_partial(it.packet, it.l4):
        return "; that is what a host leaves that has its NIC calculate it (offload): try --checksum 0"
    return "; that is not what offload leaves: it is really bad"
