"""What leaves: the packets of a chunk that pass, translated, their payload edited, and datagrams that were put together cut up again.

Not here: deciding (the tracker), how bytes are changed (rewrite, edits), where a datagram is cut (joined, refragment), writing (sink).
Invariant: a chunk in which nothing is to be changed is handed on as it is, without a copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ctcore.types import RewriteFlag, Verdict
from datapath.frame import LINK_RAW, frames_of
from datapath.refragment import Datagram, refragment, wire_length
from datapath.rewrite import copied, translated
from datapath.wire import parse_batch

CHANGES = sum(RewriteFlag) - RewriteFlag.REWRITE_QUOTE - RewriteFlag.REWRITE_WHOLE  # the flags that change anything


class Leaving(NamedTuple):
    """What leaves. memory: uint8[m]; frames: FRAME_DTYPE[k], each within memory; rows: int64[k], which of the processed frames each one is of:
    several may be of the fragment that completed a datagram, none of a packet that passes and cannot be changed or cut up: Linux drops it there."""

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
    if told is not None and (told["flags"] & CHANGES).any():
        memory, laid, sent = translated(memory, laid, told, edits)
    if not cut:
        return Leaving(memory, laid[sent], plain[sent])
    memory, laid = copied(memory, laid[sent])
    pieces = [_fragments(one, decisions[one.row], None if rewrites is None else rewrites[one.row : one.row + 1], edits) for one in cut]
    return _merged(Leaving(memory, laid, plain[sent]), frames, cut, pieces)


def _fragments(datagram: Datagram, decision: np.void, told: NDArray[Any] | None, edits: NDArray[Any] | None) -> list[bytes]:
    """The frames in which a datagram leaves; none if it cannot. It is changed without its link header, which may say how long a fragment was."""
    from datapath.joined import joined  # it needs the model, which most captures' start would wait for in vain

    link, packet = datagram.frame[: datagram.l3], datagram.frame[datagram.l3 :]
    memory, place = frames_of([packet], link=LINK_RAW)
    place["len"] = datagram.length
    datagram = joined(datagram, parse_batch(memory, place, checksum=False), decision, None if told is None else told[0])
    if told is not None and told["flags"][0] & CHANGES:
        memory, place, sent = translated(memory, place, told, edits)
        if not sent[0]:
            return []
        start = int(place["offset"][0])
        packet = memory[start : start + int(place["caplen"][0])].tobytes()
    try:
        return refragment(link + packet, datagram)
    except ValueError:
        return []


def _merged(plain: Leaving, frames: NDArray[Any], cut: Sequence[Datagram], pieces: Sequence[list[bytes]]) -> Leaving:
    """Packets and fragments together, in the order in which they came. pieces: of each datagram, with the time of the row of `frames` it had."""
    rows = np.array([one.row for one, parts in zip(cut, pieces, strict=True) for _ in parts], dtype=np.int64)
    memory, laid = frames_of([part for parts in pieces for part in parts])
    laid["offset"] += len(plain.memory)
    laid["len"] = [wire_length(part, one) for one, parts in zip(cut, pieces, strict=True) for part in parts]
    for name in ("ts", "link", "iface"):
        laid[name] = frames[name][rows]
    rows = np.concatenate([plain.rows, rows])
    order = np.argsort(rows, kind="stable")
    return Leaving(np.concatenate([plain.memory, memory]), np.concatenate([plain.frames, laid])[order], rows[order])
