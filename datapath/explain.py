"""One packet stage by stage, or one connection's life: the capture is replayed up to there, and looked at before and after.

Not here: deciding. What is shown is what the engine decided, with the numbers it had before; window asks the model what was compared with what.
Invariant: a packet explained here got exactly the decision that replay gives it, since the same pipeline made it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import numpy as np

from ctcore.errors import CaptureError, ConfigError, CtmirrorError
from ctcore.model.conn import Key, Packet, Visit
from ctcore.model.helpers import Extension
from ctcore.model.l4 import inner_key, is_icmp_error, is_icmp_of_family, is_untracked
from ctcore.model.protocols import begin, recall
from ctcore.model.seqadj import SeqAdjust
from ctcore.tracker import ExpectationRow
from ctcore.types import KEY_DTYPE, Dir, End, Reason, State, Status, Verdict
from datapath import fields
from datapath.app import CHUNK, Progress, Tracking, with_events
from datapath.capture import PcapSource
from datapath.dissect import brief
from datapath.frame import LINK_RAW, frames_of
from datapath.names import printable
from datapath.refragment import Datagram
from datapath.wire import parse_batch
from datapath.worker import Pipeline

# Reasons of packets that pass the parser, and yet never get to their protocol's tracker.
BEFORE_TRACKERS = (Reason.R_TABLE_FULL, Reason.R_ZONE_LIMIT, Reason.R_ICMP6_UNTRACKED)


@dataclass(frozen=True)
class Explained:
    """One packet, what was decided, and its connection around it. had: the connection (CONN_DTYPE) its tuple found
    before, with the time it had left when the packet came, conn: the one it has after; None where there is none.
    error: whether it is an ICMP error; quoted: the tuple of the packet it quotes, about: the connection of its answers; None for other packets.
    gone: the destroy events (EVENT_DTYPE) it caused; others: the connections there were before it, with those it expired; count: of these, those that
    were left; tick: when it came, in ticks of the clock; rewrite: what is to be changed in it (REWRITE_DTYPE), None without NAT rules;
    moved: by how much the connection's sequence numbers were moved before it, of each direction, or nothing; zones: connections of each zone that
    has any, after it; awaited, awaits: what helpers expected before and after it.
    Of a fragment that completed its datagram, packet and l4 are the datagram's; datagram: its bytes, from the IP header on; siblings: the numbers
    of all its fragments, below 0 in captures before this one. Of one that was held, siblings are those of the datagram that is completed later."""

    name: str
    number: int
    data: bytes
    frame: np.void
    packet: np.void
    l4: bytes
    decision: np.void
    key: np.void
    had: Any
    conn: Any
    tracking: Tracking
    gone: np.ndarray
    others: np.ndarray
    count: int
    tick: int
    rewrite: np.void | None = None
    error: bool = False
    quoted: np.void | None = None
    about: Any = None
    datagram: bytes = b""
    siblings: tuple[int, ...] = ()
    moved: tuple[SeqAdjust, ...] = ()
    zones: Mapping[int, int] = field(default_factory=dict)
    awaited: Sequence[ExpectationRow] = ()
    awaits: Sequence[ExpectationRow] = ()

    @property
    def row(self) -> Packet:
        """The packet as the model takes it."""
        return Packet.of(self.packet, self.l4)

    @property
    def begins(self) -> bool:
        """Whether it met no connection, or one that was gone or replaced before it."""
        return self.had is None or (self.decision["conn"] >= 0 and self.decision["conn"] != self.had["flow"][Dir.ORIG]["id"])

    def visit(self) -> Visit | None:
        """The packet on its connection as it was, for the model to be asked; None where it did not get as far as its protocol's tracker."""
        if self.packet["verdict"] != Verdict.PENDING or self.error or self.decision["reason"] in BEFORE_TRACKERS:
            return None
        config = self.tracking.config
        conn = begin(self.row.key, int(self.conn["start"]) if self.conn is not None else 0, self.tick, config.hz) if self.begins else None
        if not self.begins:
            conn = recall(self.had, self.tick)
            conn.ext = Extension("", self.moved) if self.moved else None  # type: ignore[arg-type]
        return Visit(self.row, conn, Dir.ORIG if self.begins else self.direction, self.tick, config) if conn else None

    @property
    def proto(self) -> int:
        return int(self.key["proto"])

    @property
    def direction(self) -> int:
        return int(self.decision["dir"]) if self.decision["dir"] in (Dir.ORIG, Dir.REPLY) else direction_in(self.had, self.key)


@dataclass(frozen=True)
class Step:
    """One packet of a connection's life. ts: ns of the tracker's clock, which never goes back; what: its transport header in a few words; way: under
    rules, in columns: where it went, by which rule, and what the flow table has of it."""

    number: int
    ts: int
    decision: np.void
    packet: np.void
    what: str
    way: tuple[str, ...] = ()

    def direction(self, conn: np.void) -> int:
        """As decided; of an invalid packet as its tuple says."""
        decided = int(self.decision["dir"])
        return decided if decided in (Dir.ORIG, Dir.REPLY) else direction_in(conn, self.packet["key"])


@dataclass(frozen=True)
class Life:
    """A connection from its first packet on. end: how it ended (ctcore.types.End), 0 if it is alive; stop: ns, when; damage: why the capture
    ends where it does, None if that is its end."""

    conn: np.void
    steps: list[Step]
    end: int
    stop: int
    damage: str | None = None


def direction_in(conn: np.void | None, key: np.void) -> int:
    """Which direction of a connection a key is; the original one where there is no connection."""
    return Dir.REPLY if conn is not None and conn["flow"][Dir.REPLY]["key"].tobytes() == key.tobytes() else Dir.ORIG


def inverse_of(key: np.void) -> np.void | None:
    """The tuple of the answers; None for what has none."""
    inverse = Key.of(key.tobytes()).inverted()
    return None if inverse is None else np.frombuffer(inverse.raw(), KEY_DTYPE)[0]


def _chunks(source: PcapSource, name: str, progress: Progress | None) -> Iterator[tuple[Any, np.ndarray]]:
    while True:
        memory, frames = source.read(CHUNK)
        if not len(frames):
            return
        yield memory, frames
        if progress:
            progress(name, source.position, source.size or 0)


def _replay_before(pipeline: Pipeline, captures: Sequence[str], progress: Progress | None) -> None:
    """The captures before the one that is asked about; damage in them ends them, as in replay."""
    for name in captures:
        try:
            with PcapSource(name) as source:
                for memory, frames in _chunks(source, name, progress):
                    pipeline.process(memory, frames, decisions=False)
                    pipeline.tracker.events()
        except CaptureError:
            continue


def explain_packet(captures: Sequence[str], number: int, tracking: Tracking, progress: Progress | None = None) -> Explained:
    """Packet `number`, counted from 0, of the last of `captures`. Raises CtmirrorError if there is no such packet."""
    pipeline = Pipeline(with_events(tracking.config, everything=False, ends=True), zone=tracking.zone, clock=tracking.clock)
    _replay_before(pipeline, captures[:-1], progress)
    name, seen, first = captures[-1], 0, int(pipeline.summary()["total_packets"])
    with PcapSource(name) as source:
        chunks = _chunks(source, name, progress)
        for memory, frames in chunks:
            if number < seen + len(frames):
                it = _look(pipeline, name, (memory, frames), number - seen, number, tracking)
                if it.decision["reason"] == Reason.R_FRAGMENT:
                    return replace(it, siblings=_completed(pipeline, chain([(memory, frames[number - seen + 1 :])], chunks), number, first))
                return replace(it, siblings=tuple(part - first for part in it.siblings))
            pipeline.process(memory, frames, decisions=False)
            pipeline.tracker.events()
            seen += len(frames)
    raise CtmirrorError(f"{name}: no packet {number:,}: expected 0 to {seen - 1:,} (frames 1 to {seen:,})" if seen else f"{name}: has no packets")


def _completed(pipeline: Pipeline, chunks: Iterable[tuple[Any, np.ndarray]], number: int, first: int) -> tuple[int, ...]:
    """The fragments of the datagram that a held one becomes part of, as the capture goes on. first: number of its packet 0 for the pipeline."""
    try:
        for memory, frames in chunks:
            pipeline.process(memory, frames, decisions=False)
            pipeline.tracker.events()
            for datagram in pipeline.datagrams():
                numbers = tuple(part - first for part, _, _ in datagram.parts)
                if number in numbers:
                    return numbers
    except CaptureError:
        return ()
    return ()


def _parsed(
    memory: Any, frames: np.ndarray, reasons: np.ndarray, datagrams: Sequence[Datagram], tracking: Tracking
) -> tuple[list[np.void], list[bytes]]:
    """Packets (PACKET_DTYPE) and their transport bytes, of datagrams in the rows of the fragments that completed them.

    reasons: of each decision. A fragment that reassembly passed on (IPv6) is a packet like any other, and has a reason that says so.
    """
    config = tracking.config
    how: dict[str, Any] = {"zone": tracking.zone, "checksum": config.checksum, "nat": bool(config.nat)}
    batch = parse_batch(memory, frames, **how)
    packets, l4s = [packet.copy() for packet in batch.array], [batch.l4_bytes(i) for i in range(len(frames))]
    alike = (batch.array["reason"] == Reason.R_FRAGMENT) & ((reasons == Reason.R_OK) | (reasons > Reason.R_FRAGMENT))
    for row in np.flatnonzero(alike).tolist():
        passed = parse_batch(memory, frames[row : row + 1], fragments="passed", **how)
        packets[row], l4s[row] = passed.array[0].copy(), passed.l4_bytes(0)
    for one in datagrams:
        inner, place = frames_of([one.frame[one.l3 :]], link=LINK_RAW)
        place["len"] = one.length
        whole = parse_batch(inner, place, fragments="passed", **how)
        whole_packet = whole.array[0].copy()
        whole_packet["l3_off"] = packets[one.row]["l3_off"]
        packets[one.row], l4s[one.row] = whole_packet, whole.l4_bytes(0)
    return packets, l4s


def _look(pipeline: Pipeline, name: str, chunk: tuple[Any, np.ndarray], row: int, number: int, tracking: Tracking) -> Explained:
    """Process a chunk up to a row, then the row alone, with the connections taken before and after."""
    memory, frames = chunk
    if row:
        pipeline.process(memory, frames[:row], decisions=False)
    pipeline.tracker.events()
    earlier, before, awaited = pipeline.tracker.conns(), pipeline.tracker.now, pipeline.tracker.expectations()
    changed = earlier["flow"]["id"][earlier["status"] & Status.SEQ_ADJUST != 0][:, Dir.ORIG].tolist()
    moved = {ordinal: tuple(SeqAdjust(*offsets) for offsets in pipeline.tracker.offsets(ordinal)) for ordinal in changed}
    one = frames[row : row + 1]
    decisions, keys, rewrites = pipeline.process(memory, one, keys=True, rewrites=True)
    later, gone = pipeline.tracker.conns(), fields.destroyed(pipeline.tracker.events())
    let_pass(earlier, before, pipeline.tracker.now, tracking.config.hz)
    datagrams = pipeline.datagrams()
    start = int(one["offset"][0])
    data = bytes(memory[start : start + int(one["caplen"][0])])
    conn = by_id(later, int(decisions["conn"][0]))
    if conn is None:  # the packet that ends its connection shows what became of it
        conn = by_id(gone["conn"], int(decisions["conn"][0]))
        if conn is not None:  # the event was sent before the packet was done
            conn["status"] |= decisions["status"][0]
    had = by_id(earlier, int(decisions["conn"][0]))
    if had is None:
        had = find_conn(earlier, keys[0])
    (packet,), (l4,) = _parsed(memory, one, decisions["reason"], datagrams, tracking)
    tick = pipeline.tracker.now // (1_000_000_000 // tracking.config.hz)
    count = len(earlier) - int(np.count_nonzero(gone["end"] == End.END_TIMEOUT))
    error = is_error(packet, l4)
    quoted = quoted_in(packet, l4) if error else None
    answer = None if quoted is None else inverse_of(quoted)
    about = None if answer is None else find_conn(earlier, answer)
    if about is None and error:  # the engine knows more of tuples than what is quoted: zones of one direction, the ids of tunnels
        about = by_id(earlier, int(decisions["conn"][0]))
    rewrite = None if rewrites is None else rewrites[0]
    return Explained(
        printable(name), number, data, one[0], packet, l4, decisions[0], keys[0], had, conn, tracking, gone, earlier, count, tick, rewrite,
        error, quoted, about,
        datagrams[0].frame[datagrams[0].l3 :] if datagrams else b"", tuple(part for part, _, _ in datagrams[0].parts) if datagrams else (),
        moved.get(int(had["flow"]["id"][Dir.ORIG]), ()) if had is not None else (),
        pipeline.tracker.zone_counts(), awaited, pipeline.tracker.expectations(),
    )  # fmt: skip


def let_pass(conns: np.ndarray, before: int, now: int, hz: int) -> None:
    """Let time pass for connections that were taken at `before`, so that they have what is left at `now` (both ns)."""
    tick = 1_000_000_000 // hz
    conns["timeout"] -= np.minimum(conns["timeout"].astype(np.int64), now // tick - before // tick).astype(np.uint32)


def is_error(packet: np.void, l4: bytes) -> bool:
    """Whether the packet is taken as an ICMP error, as the model tells them."""
    row = Packet.of(packet, l4)
    sound = packet["verdict"] == Verdict.PENDING and not packet["l4_reason"]
    return bool(sound) and is_icmp_of_family(row.key) and not is_untracked(row) and is_icmp_error(row)


def quoted_in(packet: np.void, l4: bytes) -> np.void | None:
    """The tuple of the packet that is quoted in an ICMP error, as the model reads it; None if it quotes nothing sound."""
    key, _ = inner_key(Packet.of(packet, l4))
    return None if key is None else np.frombuffer(key.raw(), KEY_DTYPE)[0]


def by_id(conns: np.ndarray, ordinal: int) -> Any:
    rows = np.flatnonzero(conns["flow"]["id"][:, Dir.ORIG] == ordinal)
    return conns[rows[0]] if ordinal >= 0 and len(rows) else None


def find_conn(conns: np.ndarray, key: np.void) -> Any:
    """The connection one of whose tuples this is."""
    if not key["family"] or not len(conns):
        return None
    raw = np.ascontiguousarray(conns["flow"]["key"]).view(np.dtype((np.void, key.dtype.itemsize)))
    rows = np.flatnonzero((raw == np.void(key.tobytes())).any(axis=1))
    return conns[rows[0]] if len(rows) else None


def no_connection(name: str, ordinal: int, made: int) -> str:
    """made: connections that there were."""
    return f"{name}: no connection {ordinal:,} in it: expected 0 to {made - 1:,}" if made else f"{name}: no connection {ordinal:,} in it: it has none"


def explain_conn(captures: Sequence[str], ordinal: int, tracking: Tracking, progress: Progress | None = None) -> Life:
    """Connection `ordinal`, of those that begin anywhere in `captures`; steps are numbered in the last. Raises CtmirrorError if there is none."""
    pipeline = Pipeline(with_events(tracking.config, everything=False, ends=True), zone=tracking.zone, clock=tracking.clock)
    _replay_before(pipeline, captures[:-1], progress)
    steps: list[Step] = []
    keys_of: list[bytes] = []
    ended: np.void | None = None
    damage: str | None = None
    seen = made = 0
    try:
        with PcapSource(captures[-1]) as source:
            for memory, frames in _chunks(source, captures[-1], progress):
                before = pipeline.tracker.now
                decisions, keys = pipeline.process(memory, frames, keys=True)
                made = max(made, int(decisions["conn"].max(initial=-1)) + 1)
                times = _clock(pipeline, before, frames)
                ended = _destroyed(pipeline, ordinal) if ended is None else ended
                if not keys_of and (conn := _alive(pipeline, ordinal) if ended is None else ended["conn"]) is not None:
                    keys_of = [conn["flow"][d]["key"].tobytes() for d in Dir]
                rows = _rows_of(decisions, keys, ordinal, keys_of, begun=bool(steps))
                if len(rows):
                    whole = [one._replace(row=int(np.searchsorted(rows, one.row))) for one in pipeline.datagrams() if one.row in rows]
                    parsed = _parsed(memory, frames[rows], decisions["reason"][rows], whole, tracking)
                    steps += _steps(*parsed, rows + seen, times[rows], decisions[rows])
                seen += len(frames)
    except CaptureError as error:
        damage = str(error)
    last = _alive(pipeline, ordinal) if ended is None else ended["conn"]
    if last is None:
        raise CtmirrorError(damage or no_connection(captures[-1], ordinal, made))
    return Life(last, steps, int(ended["end"]) if ended is not None else 0, int(ended["time"]) if ended is not None else 0, damage)


def _alive(pipeline: Pipeline, ordinal: int) -> Any:
    """A connection that is in the table, or None."""
    try:
        return pipeline.tracker.conn(ordinal)[0]
    except ConfigError:
        return None


def _clock(pipeline: Pipeline, before: int, frames: np.ndarray) -> np.ndarray:
    """The tracker's time at each frame of a chunk (ns), by which connections begin and end: it never goes back. before: its time before them."""
    if pipeline.clock == "wall":
        return np.full(len(frames), pipeline.tracker.now, dtype=np.int64)
    return np.maximum.accumulate(np.maximum(frames["ts"], before))


def _steps(packets: list[np.void], l4s: list[bytes], numbers: np.ndarray, times: np.ndarray, decisions: np.ndarray) -> Iterator[Step]:
    for i, (number, ts) in enumerate(zip(numbers.tolist(), times.tolist(), strict=True)):
        what = brief(int(packets[i]["key"]["proto"]), l4s[i], int(packets[i]["l4_len"]))
        yield Step(number, ts, decisions[i], packets[i], what)


def _destroyed(pipeline: Pipeline, ordinal: int) -> np.void | None:
    """The destroy event of a connection, among those of the last chunk."""
    events = fields.destroyed(pipeline.tracker.events())
    rows = np.flatnonzero(events["conn"]["flow"]["id"][:, Dir.ORIG] == ordinal)
    return events[rows[0]] if len(rows) else None


def _rows_of(decisions: np.ndarray, keys: np.ndarray, ordinal: int, keys_of: list[bytes], *, begun: bool) -> np.ndarray:
    """The rows of a connection: packets of it, and from its first packet on invalid ones that bear its tuples."""
    own = decisions["conn"] == ordinal
    if not keys_of or not (begun or own.any()):
        return np.flatnonzero(own)
    raw = np.ascontiguousarray(keys).view(np.dtype((np.void, keys.dtype.itemsize))).reshape(-1)
    stray = (decisions["state"] == State.INVALID) & ((raw == np.void(keys_of[0])) | (raw == np.void(keys_of[1])))
    first = 0 if begun else int(np.flatnonzero(own)[0])
    stray[:first] = False
    return np.flatnonzero(own | stray)
