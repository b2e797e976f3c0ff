"""What leaves: the packets of a chunk that pass, translated, their payload edited, and datagrams that were put together cut up again.

Not here: deciding (the tracker), how bytes are changed (rewrite, edits, refragment), writing (sink).
Invariant: a chunk in which nothing is to be changed is handed on as it is, without a copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ctcore.types import Proto, Verdict
from datapath.frame import frames_of
from datapath.refragment import Datagram, refragment
from datapath.rewrite import copied, edit_frames, rewrite_in_place

# Bytes of a transport header that translation writes to, where these may be more than the first fragment has: it has 8 at least.
WRITTEN: dict[int, int] = {Proto.PROTO_TCP: 20, Proto.PROTO_SCTP: 12}


class Leaving(NamedTuple):
    """What leaves. memory: uint8[m]; frames: FRAME_DTYPE[k], each within memory; rows: int64[k], which of the processed frames each one is of:
    several may be of the fragment that completed a datagram."""

    memory: NDArray[np.uint8]
    frames: NDArray[Any]
    rows: NDArray[np.int64]


def leaving(
    memory: NDArray[np.uint8],
    frames: NDArray[Any],
    decisions: NDArray[Any],
    rewrites: NDArray[Any] | None,
    edits: NDArray[Any] | None,
    datagrams: Sequence[Datagram],
) -> Leaving:
    """What leaves because of frames that were processed. rewrites, edits: None where there are none; datagrams: those that the frames completed."""
    rows = np.flatnonzero(decisions["verdict"] == Verdict.ACCEPT)
    cut = [datagram for datagram in datagrams if decisions["verdict"][datagram.row] == Verdict.ACCEPT]
    plain = np.setdiff1d(rows, [datagram.row for datagram in cut], assume_unique=True)
    told = None if rewrites is None else rewrites[plain]
    laid, sent = frames[plain], np.ones(len(plain), dtype=bool)
    if told is not None and told["flags"].any():
        memory, laid, sent = _translated(memory, laid, told, edits)
    if not cut:
        return Leaving(memory, laid[sent], plain[sent])
    memory, laid = copied(memory, laid[sent])
    pieces = [_fragments(frames[one.row : one.row + 1], one, None if rewrites is None else rewrites[one.row : one.row + 1], edits) for one in cut]
    return _merged(Leaving(memory, laid, plain[sent]), frames, [one.row for one in cut], pieces)


def _translated(
    memory: NDArray[np.uint8], frames: NDArray[Any], told: NDArray[Any], edits: NDArray[Any] | None
) -> tuple[NDArray[np.uint8], NDArray[Any], NDArray[np.bool_]]:
    """A copy of frames with all that is told of each, and which of them can be sent."""
    memory, frames = copied(memory, frames)
    sent = rewrite_in_place(memory, frames, told)
    if edits is not None and len(edits):
        memory = edit_frames(memory, frames, sent, told, edits)
    return memory, frames, sent


def _fragments(frame: NDArray[Any], datagram: Datagram, told: NDArray[Any] | None, edits: NDArray[Any] | None) -> list[bytes]:
    """The frames in which a datagram leaves. frame: the row of the one that completed it."""
    data = datagram.frame
    if told is not None and told["flags"][0]:
        memory, place = frames_of([data], link=int(frame["link"][0]))
        place["len"] = datagram.l3 + datagram.length
        memory, place, sent = _translated(memory, place, told, edits)
        if not sent[0]:
            return []
        start = int(place["offset"][0])
        data = memory[start : start + int(place["caplen"][0])].tobytes()
        datagram = datagram._replace(parts=_pulled(datagram.parts, WRITTEN.get(int(told["to"]["proto"][0]), 0)))
    return refragment(data, datagram)


def _pulled(parts: tuple[tuple[int, int, int], ...], size: int) -> tuple[tuple[int, int, int], ...]:
    """Fragments whose first one has at least `size` bytes, taken from the next ones: Linux translates a header in one piece."""
    (number, offset, have), *rest = parts
    while have < size and rest:
        other, at, length = rest.pop(0)
        taken = min(size - have, length)
        have += taken
        if taken < length:
            rest.insert(0, (other, at + taken, length - taken))
    return (number, offset, have), *rest


def _merged(plain: Leaving, frames: NDArray[Any], cut: Sequence[int], pieces: Sequence[list[bytes]]) -> Leaving:
    """Packets and fragments together, in the order in which they came. cut: rows of `frames` whose datagrams became `pieces`, with their time."""
    rows = np.array([row for row, parts in zip(cut, pieces, strict=True) for _ in parts], dtype=np.int64)
    memory, laid = frames_of([part for parts in pieces for part in parts])
    laid["offset"] += len(plain.memory)
    for name in ("ts", "link", "iface"):
        laid[name] = frames[name][rows]
    rows = np.concatenate([plain.rows, rows])
    order = np.argsort(rows, kind="stable")
    return Leaving(np.concatenate([plain.memory, memory]), np.concatenate([plain.frames, laid])[order], rows[order])
