"""Rewrite rows made by hand, and packets in pairs: one as it came, and the same built anew with the tuple it is to leave with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from ctcore.types import REWRITE_DTYPE, RewriteFlag
from datapath import craft
from datapath.frame import frames_of
from datapath.rewrite import rewritten

SRC, DST = RewriteFlag.REWRITE_SRC, RewriteFlag.REWRITE_DST
INNER_SRC, INNER_DST = RewriteFlag.REWRITE_INNER_SRC, RewriteFlag.REWRITE_INNER_DST
# Which half of the quoted packet goes with each half of the error's own header.
INNER = {int(SRC): int(INNER_DST), int(DST): int(INNER_SRC), int(SRC | DST): int(INNER_SRC | INNER_DST)}
ECHO = {craft.ICMP: (8, 0), craft.ICMPV6: (128, 129)}
WITH_ID4 = (0, 8, 13, 14, 15, 16, 17, 18)


@dataclass(frozen=True)
class Ends:
    """A tuple as text and numbers; of ICMP sport is the id, of GRE dport is the call id."""

    src: str
    dst: str
    sport: int = 0
    dport: int = 0

    @property
    def family(self) -> int:
        return 6 if ":" in self.src else 4

    def back(self) -> Ends:
        return Ends(self.dst, self.src, self.dport, self.sport)

    def half(self, other: Ends, flags: int) -> Ends:
        """These ends, with the halves that `flags` names taken from others."""
        ends = self
        if flags & SRC:
            ends = replace(ends, src=other.src, sport=other.sport)
        if flags & DST:
            ends = replace(ends, dst=other.dst, dport=other.dport)
        return ends


def told(to: Ends, proto: int, flags: int, *, kind: int = 0, seq: int = 0, ack: int = 0) -> np.ndarray:
    """One row of REWRITE_DTYPE. kind: the ICMP type in `to`."""
    row = np.zeros(1, REWRITE_DTYPE)
    key = row["to"]
    for name in ("src", "dst"):
        raw = craft.address(getattr(to, name))
        key[name][0, : len(raw)] = np.frombuffer(raw, np.uint8)
    key["sport"], key["dport"], key["proto"], key["family"] = to.sport, to.dport, proto, to.family
    if proto in ECHO:
        key["dport"] = kind << 8
    row["flags"], row["seq_delta"], row["ack_delta"] = flags, seq, ack
    return row


def leaves(frame: bytes, row: np.ndarray, *, caplen: int | None = None) -> bytes | None:
    """The frame as it leaves, None if it does not. caplen: bytes of it that were captured."""
    memory, frames = frames_of([frame[:caplen]])
    frames["len"] = len(frame)
    memory, frames = rewritten(memory, frames, row)
    return memory.tobytes() if len(frames) else None


# --- what to translate -------------------------------------------------------------------------------------------------------------------


def packet(proto: int, ends: Ends, what: dict[str, Any]) -> bytes:
    """A frame of one protocol between two ends; the rest by keywords of its builder."""
    if proto == craft.TCP:
        return craft.tcp(ends.src, ends.dst, ends.sport, ends.dport, **what)
    if proto == craft.UDP:
        return craft.udp(ends.src, ends.dst, ends.sport, ends.dport, **what)
    if proto == craft.UDPLITE:
        return craft.udplite(ends.src, ends.dst, ends.sport, ends.dport, **what)
    if proto == craft.SCTP:
        return craft.sctp(ends.src, ends.dst, ends.sport, ends.dport, **what)
    if proto in ECHO:
        return craft.icmp(ends.src, ends.dst, ident=ends.sport, **what)
    if proto == craft.GRE:
        return craft.gre(ends.src, ends.dst, call=ends.dport, version=1, proto=0x880B, **what)
    return craft.frame(ends.src, ends.dst, proto, **what)


u16 = st.integers(0, 0xFFFF)
u32 = st.integers(0, 0xFFFFFFFF)
payloads = st.binary(max_size=60)
WORDS = st.sampled_from([0, 1, 0xFFFF, 0xFFFE, 0x8000]) | u16


@st.composite
def addresses(draw: Any, family: int) -> str:
    if family == 4:
        return ".".join(str(draw(st.integers(0, 255))) for _ in range(4))
    return ":".join(f"{draw(WORDS):x}" for _ in range(8))


@st.composite
def pairs(draw: Any, family: int, proto: int) -> tuple[Ends, Ends]:
    """Ends before and after; a port only where the protocol has it."""
    has_sport = proto in (craft.TCP, craft.UDP, craft.UDPLITE, craft.SCTP, *ECHO)
    has_dport = proto in (craft.TCP, craft.UDP, craft.UDPLITE, craft.SCTP, craft.GRE)

    def ends() -> Ends:
        sport, dport = draw(WORDS) if has_sport else 0, draw(WORDS) if has_dport else 0
        return Ends(draw(addresses(family)), draw(addresses(family)), sport, dport)

    return ends(), ends()


def contents(family: int, proto: int) -> st.SearchStrategy[dict[str, Any]]:
    """What else is in a packet: keywords of its builder."""
    extra: dict[str, st.SearchStrategy[Any]] = (
        {"ttl": st.integers(1, 255), "options": st.sampled_from([b"", b"\1" * 4, b"\1" * 40])}
        if family == 4
        else {"ext": st.sampled_from([(), ((0, craft.options6()),), ((0, craft.options6(1)), (60, craft.options6()))])}
    )
    own: dict[int, dict[str, st.SearchStrategy[Any]]] = {
        craft.TCP: {"flags": st.sampled_from(["S", "SA", "A", "FA", "RA"]), "seq": u32, "ack": u32, "payload": payloads},
        craft.UDP: {"payload": payloads},
        craft.UDPLITE: {"payload": payloads, "coverage": st.sampled_from([0, 8])},
        craft.SCTP: {"tag": u32, "chunks": st.sampled_from([craft.sctp_init(7), craft.sctp_chunk(0, 3, b"data" * 5), b""])},
        # All zeros is the one message whose checksum is 0xFFFF.
        craft.ICMP: {"kind": st.sampled_from(WITH_ID4), "sequence": st.integers(1, 0xFFFF), "payload": payloads},
        craft.ICMPV6: {"kind": st.sampled_from([128, 129]), "sequence": u16, "payload": payloads},
        craft.GRE: {"payload": payloads},
        craft.ESP: {"payload": payloads},
    }
    if proto == craft.TCP and family == 4:  # both headers have a field of that name
        extra = {"ttl": extra["ttl"]}
    return st.fixed_dictionaries({**own[proto], **extra})


PROTOS = {4: (craft.TCP, craft.UDP, craft.UDPLITE, craft.SCTP, craft.ICMP, craft.GRE, craft.ESP), 6: (
    craft.TCP, craft.UDP, craft.UDPLITE, craft.SCTP, craft.ICMPV6, craft.GRE, craft.ESP)}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A packet as it came and as it is to leave, and the row that says so. to: the whole tuple to leave with."""

    proto: int
    flags: int
    came: Ends
    to: Ends
    what: dict[str, Any]

    @property
    def row(self) -> np.ndarray:
        return told(self.to, self.proto, self.flags, kind=self.what.get("kind", 0))

    @property
    def row_back(self) -> np.ndarray:
        return told(self.came, self.proto, self.flags, kind=self.what.get("kind", 0))

    @property
    def before(self) -> bytes:
        return packet(self.proto, self.came, self.what)

    @property
    def after(self) -> bytes:
        return packet(self.proto, self.to, self.what)


@st.composite
def cases(draw: Any, family: int | None = None, proto: int | None = None, but: tuple[int, ...] = ()) -> Case:
    family = family or draw(st.sampled_from((4, 6)))
    proto = proto or draw(st.sampled_from([proto for proto in PROTOS[family] if proto not in but]))
    came, other = draw(pairs(family, proto))
    flags = draw(st.sampled_from([int(SRC), int(DST), int(SRC | DST)]))
    to = came.half(other, flags)
    if proto in ECHO:  # an id is of both halves
        to = replace(to, sport=other.sport)
    return Case(proto, flags, came, to, draw(contents(family, proto)))
