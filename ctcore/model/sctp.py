"""SCTP as Linux conntrack sees it, for reading: chunks, verification tags, the state table (spec/sctp.txt).

Theory of operation: a packet carries chunks. Their order is checked first; then each chunk has its tag checked and moves the state.
Invariant: what the chunks before a bad one did stays done; the packet is invalid all the same.
vtag[d] is the tag that packets of direction d have to carry.
Not here: header length, CRC32c (wire); seen-reply, accounting (model).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from ctcore import spec
from ctcore.model.conn import L4, Answer, Conn, Visit, ignored, invalid, renewed
from ctcore.types import Change, Dir, Reason
from ctcore.types import SctpState as S

TABLE = spec.sctp()
HEADER = 12
INIT_BODY = 16
T_FLAG = 0x01  # the tag is the sender's own one, reflected (RFC 9260 8.5.1)
HEARTBEAT_FAILED = 0x01  # of Sctp.flags: a heartbeat had a strange tag, its ACK may explain it

DATA, INIT, INIT_ACK, HEARTBEAT, HEARTBEAT_ACK, ABORT, SHUTDOWN, SHUTDOWN_ACK, ERROR, COOKIE_ECHO, COOKIE_ACK, SHUTDOWN_COMPLETE = (
    0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 14,
)  # fmt: skip
EVENT = {
    INIT: "init", INIT_ACK: "init_ack", ABORT: "abort", SHUTDOWN: "shutdown", SHUTDOWN_ACK: "shutdown_ack", ERROR: "error",
    COOKIE_ECHO: "cookie_echo", COOKIE_ACK: "cookie_ack", SHUTDOWN_COMPLETE: "shutdown_complete", HEARTBEAT: "heartbeat",
    HEARTBEAT_ACK: "heartbeat_ack",
}  # fmt: skip
ALONE = {INIT, INIT_ACK, SHUTDOWN_COMPLETE}  # RFC 9260 6.10
FIRST = {COOKIE_ECHO, COOKIE_ACK}  # RFC 9260 5.1
NEVER_OPENS = {ABORT, SHUTDOWN_COMPLETE, COOKIE_ACK}  # RFC 9260 8.4
TAG_BY_CHUNK = {INIT, SHUTDOWN_COMPLETE, COOKIE_ECHO, ABORT, SHUTDOWN_ACK, HEARTBEAT, HEARTBEAT_ACK}  # these bring their own rule


@dataclass
class Sctp(L4):
    vtag: list[int] = field(default_factory=lambda: [0, 0])
    init: list[int] = field(default_factory=lambda: [0, 0])
    flags: int = 0
    last_dir: int = 0
    state: int = S.SCTP_NONE

    def store(self, record: np.void) -> None:
        sctp = record["sctp"]
        for name in ("vtag", "init", "flags", "last_dir", "state"):
            sctp[name] = getattr(self, name)

    @classmethod
    def of(cls, conn: np.void) -> Sctp:
        """The memory in a record of CONN_DTYPE."""
        sctp = conn["sctp"]
        return cls(sctp["vtag"].tolist(), sctp["init"].tolist(), *(int(sctp[name]) for name in ("flags", "last_dir", "state")))


class Chunk(NamedTuple):
    type: int
    flags: int
    body: bytes  # from behind the chunk header to the end of the packet

    @property
    def initiate_tag(self) -> int | None:
        """Of INIT and INIT ACK (RFC 9260 3.3.2); None if the chunk is cut off."""
        return int.from_bytes(self.body[:4], "big") if len(self.body) >= INIT_BODY else None


class Step(NamedTuple):
    """What came of one chunk. new: what the table says, None where it was not asked; refusal: why the packet is invalid, or R_OK."""

    chunk: Chunk
    old: int
    new: int | None = None
    refusal: int = Reason.R_OK
    ignore: bool = False  # the packet passes without effect


def track(visit: Visit) -> Answer:
    """One packet whose header and checksum are fine."""
    steps, refusal = judge(visit)
    if refusal:
        return invalid(refusal)
    if any(step.ignore for step in steps):
        return ignored(Reason.R_SCTP_IGNORED)
    return renewed(visit.config, "sctp_timeout_" + TABLE.timeouts[visit.conn.l4.state])


def judge(visit: Visit) -> tuple[list[Step], int]:
    """Chunk after chunk, up to the first that cannot be: what came of each, and why the packet is invalid, or R_OK."""
    packet, conn, d, *_ = visit
    tag, chunks = tag_of(packet.l4), chunks_of(packet.l4)
    if not chunks:
        return [], Reason.R_SCTP_CHUNKS
    if not conn.confirmed and not opens(conn.l4, tag, chunks):
        return [], Reason.R_SCTP_NOT_OPENING
    types = {chunk.type for chunk in chunks}
    if not types & TAG_BY_CHUNK and tag != conn.l4.vtag[d]:
        return [], Reason.R_SCTP_TAG
    steps: list[Step] = []
    for chunk in chunks:
        steps.append(take(conn, chunk, tag, d, suspicious=DATA in types or any(step.ignore for step in steps)))
        if steps[-1].refusal:
            return steps, steps[-1].refusal
    return steps, Reason.R_OK


def take(conn: Conn, chunk: Chunk, tag: int, d: int, *, suspicious: bool) -> Step:
    """One chunk: its tag, the table, what it says of tags. suspicious: a heartbeat with a strange tag would be one too many."""
    sctp: Sctp = conn.l4
    old = sctp.state
    if expected_tag(sctp, chunk, d) not in (None, tag):
        return Step(chunk, old, refusal=Reason.R_SCTP_TAG)
    if chunk.type in (HEARTBEAT, HEARTBEAT_ACK):
        fits, strange = heartbeat(sctp, chunk, tag, d, suspicious=suspicious)
        if not fits or strange:
            return Step(chunk, old, refusal=Reason.R_OK if fits else Reason.R_SCTP_TAG, ignore=strange)
    if chunk.type == COOKIE_ACK:
        sctp.init = [0, 0]
    new = next_state(old, chunk, d)
    refusal = Reason.R_SCTP_STATE if new == S.SCTP_INVALID else note_tags(sctp, chunk, d)
    if refusal:
        return Step(chunk, old, new, refusal)
    enter(conn, new)
    return Step(chunk, old, new, ignore=chunk.type == INIT and old == new == S.SCTP_CLOSED and conn.confirmed)


def tag_of(l4: bytes) -> int:
    return int.from_bytes(l4[4:8], "big")


def chunks_of(l4: bytes) -> list[Chunk]:
    """The chunks of a packet; none at all if one of them has length 0 or stands where it must not."""
    chunks: list[Chunk] = []
    at, alone = HEADER, False
    while at + 4 <= len(l4):
        kind, flags, length = l4[at], l4[at + 1], int.from_bytes(l4[at + 2 : at + 4], "big")
        alone = alone or kind in ALONE
        if length == 0 or (chunks and (alone or kind in FIRST)):
            return []
        chunks.append(Chunk(kind, flags, l4[at + 4 :]))
        at += (length + 3) & ~3
    return chunks


def next_state(state: int, chunk: Chunk, d: int) -> int:
    return TABLE.cells[d][TABLE.events.index(EVENT.get(chunk.type, "other"))][state]


def opens(sctp: Sctp, tag: int, chunks: list[Chunk]) -> bool:
    """May this packet begin an association? Takes the tags from it."""
    if any(chunk.type in NEVER_OPENS for chunk in chunks):
        return False
    for chunk in chunks:
        if next_state(S.SCTP_NONE, chunk, Dir.ORIG) in (S.SCTP_NONE, S.SCTP_INVALID):
            return False
        if chunk.type == INIT:
            if tag != 0 or chunk.initiate_tag is None:
                return False
            sctp.vtag[Dir.REPLY] = chunk.initiate_tag
        elif chunk.type == HEARTBEAT:
            sctp.vtag[Dir.ORIG] = tag
        elif chunk.type == SHUTDOWN_ACK:  # the answer, SHUTDOWN COMPLETE, will reflect it (RFC 9260 8.4)
            sctp.vtag[Dir.REPLY] = tag
    return True


def expected_tag(sctp: Sctp, chunk: Chunk, d: int) -> int | None:
    """The tag of chunks with a rule of their own (RFC 9260 8.5.1), heartbeats aside; None: this chunk has none."""
    if chunk.type == INIT:
        return 0
    if chunk.type in (ABORT, SHUTDOWN_COMPLETE):
        return sctp.vtag[1 - d if chunk.flags & T_FLAG else d]
    return sctp.vtag[d] if chunk.type == COOKIE_ECHO else None


def heartbeat(sctp: Sctp, chunk: Chunk, tag: int, d: int, *, suspicious: bool) -> tuple[bool, bool]:
    """Does the heartbeat's tag fit, and is it a strange one, that is: does the packet pass without effect?

    A strange HEARTBEAT may come from a peer that restarted; if the other side's HEARTBEAT ACK with a new tag follows, that is believed.
    """
    if sctp.vtag[d] == 0:
        sctp.vtag[d] = tag
        return True, False
    if tag == sctp.vtag[d]:
        sctp.flags &= ~HEARTBEAT_FAILED
        return True, False
    if suspicious:
        return False, False
    if chunk.type == HEARTBEAT:
        sctp.flags |= HEARTBEAT_FAILED
        sctp.last_dir = d
        return True, True
    if not sctp.flags & HEARTBEAT_FAILED or sctp.last_dir == d:
        return False, False
    sctp.flags &= ~HEARTBEAT_FAILED
    sctp.vtag[d], sctp.vtag[1 - d] = tag, 0
    return True, False


def note_tags(sctp: Sctp, chunk: Chunk, d: int) -> int:
    """What INIT and INIT ACK say of the tag to come; a reason if it cannot be."""
    if chunk.type not in (INIT, INIT_ACK):
        return Reason.R_OK
    initiate_tag, known = chunk.initiate_tag, sctp.vtag[1 - d]
    if initiate_tag is None:
        return Reason.R_SCTP_CHUNKS
    if chunk.type == INIT and (sctp.state == S.SCTP_NONE or known != initiate_tag):
        if all(sctp.init):
            sctp.init[1 - d] = 0
        sctp.init[d] = 1
    if chunk.type == INIT_ACK and known != initiate_tag:
        unasked = not sctp.init[1 - d] and known
        collision = all(sctp.init)  # both sides sent INIT (RFC 9260 5.2.1): only the known tag will do
        if unasked or collision:
            return Reason.R_SCTP_TAG
    sctp.vtag[1 - d] = initiate_tag
    return Reason.R_OK


def enter(conn: Conn, new: int) -> None:
    if new == conn.l4.state:
        return
    conn.l4.state = new
    conn.changes |= Change.CHANGE_L4STATE
    if new == S.SCTP_ESTABLISHED:
        conn.assure()
