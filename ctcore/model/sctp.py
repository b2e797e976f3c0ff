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
from ctcore.model.conn import L4, Answer, Conn, Visit, ignored, invalid
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


class Chunk(NamedTuple):
    type: int
    flags: int
    body: bytes  # from behind the chunk header to the end of the packet

    @property
    def initiate_tag(self) -> int | None:
        """Of INIT and INIT ACK (RFC 9260 3.3.2); None if the chunk is cut off."""
        return int.from_bytes(self.body[:4], "big") if len(self.body) >= INIT_BODY else None


def track(visit: Visit) -> Answer:
    """One packet whose header and checksum are fine."""
    packet, conn, d, _, config = visit
    sctp: Sctp = conn.l4
    tag = int.from_bytes(packet.l4[4:8], "big")
    chunks = chunks_of(packet.l4)
    if not chunks:
        return invalid(Reason.R_SCTP_CHUNKS)
    if not conn.confirmed and not opens(sctp, tag, chunks):
        return invalid(Reason.R_SCTP_NOT_OPENING)
    types = {chunk.type for chunk in chunks}
    if not types & TAG_BY_CHUNK and tag != sctp.vtag[d]:
        return invalid(Reason.R_SCTP_TAG)

    ignore = False
    for chunk in chunks:
        if not tag_fits(sctp, chunk, tag, d):
            return invalid(Reason.R_SCTP_TAG)
        if chunk.type in (HEARTBEAT, HEARTBEAT_ACK):
            fits, strange = heartbeat(sctp, chunk, tag, d, suspicious=DATA in types or ignore)
            if not fits:
                return invalid(Reason.R_SCTP_TAG)
            if strange:
                ignore = True
                continue
        if chunk.type == COOKIE_ACK:
            sctp.init = [0, 0]
        old, new = sctp.state, next_state(sctp.state, chunk, d)
        if new == S.SCTP_INVALID:
            return invalid(Reason.R_SCTP_STATE)
        if refusal := note_tags(sctp, chunk, d):
            return invalid(refusal)
        if chunk.type == INIT and old == new == S.SCTP_CLOSED and conn.confirmed:
            ignore = True
        enter(conn, new)
    if ignore:
        return ignored(Reason.R_SCTP_IGNORED)
    return Answer(timeout=config.ticks("sctp_timeout_" + TABLE.timeouts[sctp.state]))


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


def tag_fits(sctp: Sctp, chunk: Chunk, tag: int, d: int) -> bool:
    """The chunks with a rule of their own (RFC 9260 8.5.1); heartbeats aside."""
    if chunk.type == INIT:
        return tag == 0
    if chunk.type in (ABORT, SHUTDOWN_COMPLETE):
        return tag == sctp.vtag[1 - d if chunk.flags & T_FLAG else d]
    if chunk.type == COOKIE_ECHO:
        return tag == sctp.vtag[d]
    return True


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
