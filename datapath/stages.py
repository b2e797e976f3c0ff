"""The stage of an explained packet in which its protocol's tracker looks at it: table, guards, window check, and what has changed by then.

Not here: the other stages (narrate), deciding (explain has the engine's decision; which rules led there, the model says of the same connection).
Invariant: no line is about a check that the packet did not get to.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ctcore import spec
from ctcore.model import sctp
from ctcore.model.conn import Visit
from ctcore.model.tcp_window import REMEMBERED, index_of
from ctcore.spec import DIRS, StateTable
from ctcore.types import Dir, Proto, Reason, SctpState, TcpFlag, TcpIndex, TcpState
from datapath import dissect, fields
from datapath.explain import Explained
from datapath.window import Window, window_of

Line = tuple[str, str]  # label and text

# Guards beside the state table (spec/tcp.txt), by the reasons with which they answer.
GUARDS: dict[int, str] = {
    Reason.R_TCP_REOPENED: "reopen: the entry that was there is deleted, and the packet starts over with a new one",
    Reason.R_TCP_RESYNC: "resynchronise: this SYN/ACK acknowledges the SYN that was ignored before, so the state becomes that of its handshake",
    Reason.R_TCP_CHALLENGE_ACK: "challenge ACK: answers an ignored SYN, and so does not acknowledge the last FIN",
    Reason.R_TCP_RST_BELOW_MAXACK: "RST validation: its seq is below what the peer acknowledged",
    Reason.R_TCP_RST_CHALLENGED: "RST validation: its seq is not exactly what the peer acknowledged last, so the state is kept",
    Reason.R_TCP_RST_KILLED: "kill: no reply was seen, so the entry is deleted with this packet",
}
# Reasons given before the window check, or (resynchronise) with the window made anew from the SYN that is remembered.
UNCHECKED = (
    Reason.R_TCP_STATE, Reason.R_TCP_IGNORED, Reason.R_TCP_NOT_OPENING, Reason.R_TCP_NOT_LOOSE, Reason.R_TCP_RST_BELOW_MAXACK,
    Reason.R_TCP_CHALLENGE_ACK, Reason.R_TCP_RESYNC,
)  # fmt: skip


def protocol_lines(it: Explained) -> Iterator[Line]:
    """What the protocol's tracker does, where it has states and the packet got so far."""
    visit = it.visit()
    if visit is None or it.packet["l4_reason"]:
        return
    if it.proto == Proto.PROTO_TCP:
        yield from _tcp(it)
    elif it.proto == Proto.PROTO_SCTP:
        yield from _sctp(visit)


def cell_lines(table: StateTable, direction: int, event: int, state: int) -> Iterator[Line]:
    """One cell of a state table, with the reason that stands at it."""
    code = table.cells[direction][event][state]
    yield "table", f"{table.states[state]}, {DIRS[direction]} {table.events[event]} -> {table.name_of(code)}"
    if note := table.notes.get((direction, event, state)):
        yield "", note


def _tcp(it: Explained) -> Iterator[Line]:
    had = None if it.begins else it.had["tcp"]
    direction = Dir.ORIG if had is None else it.direction
    index = index_of(int(it.packet["tcp_flags"]))
    if it.decision["reason"] == Reason.R_TCP_REOPENED:
        yield from cell_lines(spec.tcp(), it.direction, index, int(it.had["tcp"]["state"]))
    else:
        yield from cell_lines(spec.tcp(), direction, index, TcpState.TCP_NONE if had is None else int(had["state"]))
    if guard := GUARDS.get(int(it.decision["reason"])):
        yield "guard", guard
    if index == TcpIndex.TCP_RST and had is not None and had["flags"][1 - direction] & TcpFlag.TF_MAXACK_SET:
        yield "", f"seq {it.packet['seq']}, the peer has acknowledged {had['side'][1 - direction]['maxack']}"
    if it.decision["reason"] not in UNCHECKED:
        window = window_of(it.packet, it.l4, None if had is None else it.had, direction, it.tracking.config, () if had is None else it.moved)
        yield from window_lines(window, direction)


def window_lines(window: Window, direction: int) -> Iterator[Line]:
    """The window check with its numbers."""
    seq, end, ack, sack = window.numbers
    yield "window", f"seq {seq}, end {end}, ack {ack}" + (f", sack {sack}" if sack != ack else "")
    if window.added:
        by, how = abs(window.added), "added to" if window.added > 0 else "taken out of"
        came = (ack + window.added) & 0xFFFFFFFF
        counted = f"{by} byte of it is" if by == 1 else f"{by} bytes of it are"
        yield "", f"the ack came as {came}: {counted} what a helper has {how} the other side's payload"
    for role, d, side in (("sender", direction, window.sender), ("receiver", 1 - direction, window.receiver)):
        yield "", f"{role:<8} ({DIRS[d]}): end {side.end}, maxend {side.maxend}, maxwin {side.maxwin}, scale {side.scale}"
    if window.note:
        yield "", window.note
    for one in window.inequalities:
        failure = f"does not hold: {one.failure}" + ("" if window.liberal else f": {one.effect}")
        yield "", f"{one.number:<3} {one.names:<53} {one.numbers}: " + ("holds" if one.holds else failure)
    if window.liberal:
        yield "", f"tracked liberally ({window.liberal}): accepted all the same"


def _sctp(visit: Visit) -> Iterator[Line]:
    """Chunk after chunk, as far as they were looked at: tags, then the state table."""
    table, tag = spec.sctp(), sctp.tag_of(visit.packet.l4)
    known = list(visit.conn.l4.vtag)
    steps, refusal = sctp.judge(visit)
    if refusal == Reason.R_SCTP_NOT_OPENING:
        yield from _not_opening(visit, tag)
    elif refusal == Reason.R_SCTP_TAG and not steps:
        yield "tag", f"{tag:#010x}, expected {known[visit.dir]:#010x}"
    for step in steps:
        name = dissect.SCTP_CHUNKS.get(step.chunk.type, "other").lower()
        if step.new is not None:
            yield from cell_lines(table, visit.dir, _event(table, name), step.old)
        elif step.ignore:
            yield "guard", f"{name}: its tag {tag:#010x} is not {known[visit.dir]:#010x}; a peer that began anew may have sent it: ignored"
        if step.refusal == Reason.R_SCTP_TAG:
            yield "tag", _wrong_tag(step, tag, known, visit.dir)


def _event(table: StateTable, name: str) -> int:
    return table.events.index(name if name in table.events else "other")


def _not_opening(visit: Visit, tag: int) -> Iterator[Line]:
    """Which chunk it is that begins no association."""
    table, chunks = spec.sctp(), sctp.chunks_of(visit.packet.l4)
    for chunk in chunks:
        name = dissect.SCTP_CHUNKS.get(chunk.type, "other").lower()
        if chunk.type in sctp.NEVER_OPENS:
            yield "guard", f"{name} never begins an association"
            return
        if sctp.next_state(SctpState.SCTP_NONE, chunk, Dir.ORIG) == SctpState.SCTP_NONE:
            yield from cell_lines(table, Dir.ORIG, _event(table, name), SctpState.SCTP_NONE)
            return
    yield "guard", f"an INIT begins an association with the tag 0 and 16 bytes behind its chunk header: this one has the tag {tag:#010x}"


def _wrong_tag(step: sctp.Step, tag: int, known: list[int], direction: int) -> str:
    """A tag that does not fit its chunk. known: those that packets of each direction have to carry."""
    if step.new is not None:
        return f"the initiate tag {step.chunk.initiate_tag or 0:#010x} is not the one known, {known[1 - direction]:#010x}"
    memory = sctp.Sctp(vtag=known)
    expected = sctp.expected_tag(memory, step.chunk, direction)
    return f"{tag:#010x}, expected {known[direction] if expected is None else expected:#010x}"


# --- what has changed -------------------------------------------------------------------------------------------------------------------


def changes_of(it: Explained) -> Iterator[str]:
    """What is different after the packet, in the connection that it met."""
    if it.conn is None or it.had is None or it.begins:
        return
    gained = fields.status_names(int(it.conn["status"]) & ~int(it.had["status"]))
    if gained:
        yield "status: now " + ", ".join(gained)
    if it.proto == Proto.PROTO_TCP:
        yield from _tcp_changes(it.had["tcp"], it.conn["tcp"])
    elif it.proto == Proto.PROTO_SCTP:
        yield from _sctp_changes(it.had["sctp"], it.conn["sctp"])


def _moved(a: np.void, b: np.void, names: tuple[str, ...], called: str = "") -> list[str]:
    return [f"{name.removeprefix(called)} {a[name]} -> {b[name]}" for name in names if a[name] != b[name]]


def _tcp_changes(a: np.void, b: np.void) -> Iterator[str]:
    states = spec.tcp().states
    if a["state"] != b["state"]:
        yield f"state: {states[int(a['state'])]} -> {states[int(b['state'])]}"
    for d in Dir:
        moved = _moved(a["side"][d], b["side"][d], ("end", "maxend", "maxwin", "maxack"))
        moved += [f"scale {a['scale'][d]} -> {b['scale'][d]}"] if a["scale"][d] != b["scale"][d] else []
        moved += _flags(int(a["flags"][d]), int(b["flags"][d]))
        if moved:
            yield f"{DIRS[d]} side: " + ", ".join(moved)
    kept = [f"index {_index(a)} -> {_index(b)}"] if a["last_index"] != b["last_index"] else []
    kept += [f"dir {DIRS[int(a['last_dir'])]} -> {DIRS[int(b['last_dir'])]}"] if a["last_dir"] != b["last_dir"] else []
    kept += _moved(a, b, tuple(name for name in REMEMBERED if name not in ("state", "last_index", "last_dir", "last_flags")), "last_")
    kept += _flags(int(a["last_flags"]), int(b["last_flags"]))
    if kept:
        yield "remembered of this packet: " + ", ".join(kept)


def _index(tcp: np.void) -> str:
    return spec.TCP_EVENTS[int(tcp["last_index"])]


def _flags(a: int, b: int) -> list[str]:
    """Flags of a side that came and went."""
    names = fields.flag_names(a ^ b)
    return [("+ " if b & bit else "- ") + name for bit, name in fields.FLAG_NAMES.items() if name in names]


def _sctp_changes(a: np.void, b: np.void) -> Iterator[str]:
    states = spec.sctp().states
    if a["state"] != b["state"]:
        yield f"state: {states[int(a['state'])]} -> {states[int(b['state'])]}"
    for d in Dir:
        moved = [f"tag {a['vtag'][d]:#010x} -> {b['vtag'][d]:#010x}"] if a["vtag"][d] != b["vtag"][d] else []
        moved += [f"init {a['init'][d]} -> {b['init'][d]}"] if a["init"][d] != b["init"][d] else []
        if moved:
            yield f"{DIRS[d]} side: " + ", ".join(moved)
    if a["flags"] != b["flags"]:
        yield "a heartbeat with a strange tag is " + ("remembered" if b["flags"] else "forgotten")
