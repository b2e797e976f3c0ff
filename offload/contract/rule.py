"""What a rule in hardware says, for each direction of a flow (A4), and what becomes of a REPLACE (A4.36, A8).

One flow behind source NAT: ORIG matches 10.0.0.1:40000 > 198.51.100.7:80 and writes the source 192.0.2.1; REPLY matches 198.51.100.7:80 >
192.0.2.1:40000 and writes the destination 10.0.0.1. Not here: when rules are asked for (mirror).
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

from ctcore.types import Proto, Status
from offload.contract.objects import ORIG, REPLY, Flow, FlowFlag, Tuple
from offload.records import Ctinfo

FIN, RST = 0x01, 0x04
_WORDS = {4: 1, 6: 4}  # 32-bit writes an address takes


@dataclass(frozen=True)
class Write:
    """A rewrite. field: src, dst, sport, dport; word: of an address, from the most significant one; bits: 32 or 16 (A4.32)."""

    field: str
    word: int
    value: int
    bits: int


@dataclass(frozen=True)
class Metadata:
    """CT_METADATA (A4.34): always the last action. The cookie is conn | ctinfo."""

    conn: int
    ctinfo: Ctinfo
    mark: int
    labels: tuple[int, int, int, int]
    orig_dir: bool

    @property
    def cookie(self) -> tuple[int, Ctinfo]:
        return self.conn, self.ctinfo


@dataclass(frozen=True)
class Rule:
    """zone: that of the table whose callback gets the rule (A4.28). The match is exact; TCP with FIN or RST does not match (A4.27)."""

    match: Tuple
    zone: int
    writes: tuple[Write, ...]
    metadata: Metadata

    def hits(self, packet: Tuple, tcp_flags: int = 0) -> bool:
        """A SYN is no exception: hardware forwards it as of the established connection (A4.27)."""
        return packet == self.match and not (packet.proto == Proto.PROTO_TCP and tcp_flags & (FIN | RST))


def ctinfo_of(flow: Flow, direction: int) -> Ctinfo:
    """A4.35."""
    if direction == REPLY:
        return Ctinfo.ESTABLISHED_REPLY
    return Ctinfo.ESTABLISHED if flow.conn.status & Status.SEEN_REPLY else Ctinfo.NEW


def writes_of(match: Tuple, to: Tuple, status: int) -> tuple[Write, ...] | int:
    """A4.30 to 32: from what is matched to what leaves, in order; EOPNOTSUPP where it is neither TCP nor UDP that is translated."""
    if not status & (Status.SRC_NAT | Status.DST_NAT) or match == to:
        return ()
    if match.proto not in (Proto.PROTO_TCP, Proto.PROTO_UDP):
        return errno.EOPNOTSUPP
    writes = []
    for name in ("src", "dst"):
        new = getattr(to, name)
        if new != getattr(match, name):
            writes += [Write(name, i, int.from_bytes(new[4 * i : 4 * i + 4]), 32) for i in range(_WORDS[match.l3])]
    writes += [Write(name, 0, getattr(to, name), 16) for name in ("sport", "dport") if getattr(to, name) != getattr(match, name)]
    return tuple(writes)


def rule_of(flow: Flow, direction: int) -> Rule | int:
    """A direction's rule, as of now; or an errno. Building it for ORIG is what marks the flow HW_ESTABLISHED (A4.35)."""
    conn, match, ctinfo = flow.conn, flow.tuple(direction), ctinfo_of(flow, direction)
    writes = writes_of(match, flow.tuple(1 - direction).inverse(), conn.status)
    if isinstance(writes, int):
        return writes
    if ctinfo == Ctinfo.ESTABLISHED:
        flow.flags |= FlowFlag.HW_ESTABLISHED
    low, high = conn.labels & (1 << 64) - 1, conn.labels >> 64
    labels = (low & 0xFFFFFFFF, low >> 32, high & 0xFFFFFFFF, high >> 32)
    return Rule(match, conn.zone, writes, Metadata(conn.number, ctinfo, conn.mark, labels, direction == ORIG))


def directions(flow: Flow) -> tuple[int, ...]:
    """A3.22: in the order in which they are asked for."""
    return (ORIG, REPLY) if flow.flags & FlowFlag.HW_BIDIRECTIONAL else (ORIG,)


def replaced(held: Rule | None, new: Rule) -> tuple[Rule, int]:
    """A4.36: what hardware has behind a REPLACE, and its errno. A mark that has changed is not told."""
    return (held, errno.EEXIST) if held is not None and held.metadata.cookie == new.metadata.cookie else (new, 0)
