"""Where connections are kept over a restart: a file with the state of each worker's tracker.

    magic, version, number of parts, when (ns), size of all | size of each part | CRC-32 of what stands before it, padding | part | part ...

Theory of operation: a file is written beside its place under another name, made durable, and put in place in one step: at any moment there is the old
one or the new one, whole. What stands in it is believed no more than a packet: sizes and checksums first, and each part is a tracker's state, which
proves itself (ctcore.state_check).
A state is taken up once and its file removed: after a crash, windows of minutes ago would refuse packets that a node without a state picks up.
Invariants: nobody but the owner can read the file, for it says who talks to whom; a file that others can write to is refused.
Not here: what is in a state (ctcore.state), when one is saved (service).
"""

from __future__ import annotations

import os
import stat
import struct
import time
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ctcore.errors import OutputError, StateError

if TYPE_CHECKING:
    from ctcore.tracker import Tracker
    from datapath.live.node import Node

MAGIC, VERSION = b"ctmirror state\n\0", 1
HEAD = struct.Struct("<16sIIqQ")
SIZE = struct.Struct("<Q")
SUM = struct.Struct("<IxxxxQ")  # and zeros, so that parts begin at a multiple of 16
MOST_PARTS = 1024
LARGEST = 1 << 35  # bytes: more than CAPACITY_LIMIT connections take
PIECE = 1 << 28  # bytes of one system call


class Saved(NamedTuple):
    """when: ns of the wall clock; parts: one for each worker, in order."""

    when: int
    parts: list[memoryview]


class TakenUp(NamedTuple):
    """What became of a saved state: connections that live, those that had expired meanwhile, and seconds since it was saved.

    left_out: connections that no worker could take, where there were another number of them: since answers to them would come to another worker, or
    for want of a place.
    """

    conns: int
    expired: int
    age: float
    left_out: int = 0


# --- the file ---------------------------------------------------------------------------------------------------------------------------


def write_state(path: str, saved: Saved) -> int:
    """Put a file in place; its size in bytes. Raises OutputError: then what was there before still is."""
    target = Path(path)
    beside = target.with_name(f".{target.name}.{os.getpid()}.new")
    pieces: list[bytes | memoryview] = [_header(saved), *saved.parts]
    try:
        with suppress(FileNotFoundError):
            beside.unlink()
        file = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            _write_all(file, pieces)
            os.fsync(file)
        finally:
            os.close(file)
        os.replace(beside, target)
        _sync_folder(target.parent)
    except OSError as error:
        with suppress(OSError):
            beside.unlink()
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from None
    return sum(len(piece) for piece in pieces)


def _header(saved: Saved) -> bytes:
    sizes = b"".join(SIZE.pack(len(part)) for part in saved.parts)
    length = HEAD.size + len(sizes) + SUM.size
    text = HEAD.pack(MAGIC, VERSION, len(saved.parts), saved.when, length + sum(len(part) for part in saved.parts)) + sizes
    return text + SUM.pack(zlib.crc32(text), 0)


def _write_all(file: int, pieces: Sequence[bytes | memoryview]) -> None:
    for piece in pieces:
        rest = memoryview(piece)
        while len(rest):
            rest = rest[os.write(file, rest[:PIECE]) :]


def _sync_folder(folder: Path) -> None:
    """So that the new name is durable as well."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def read_state(path: str) -> Saved | None:
    """What a file holds, or None if there is none. Raises StateError: the file's name, and what is wrong with it."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StateError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        return _parsed(_whole(file))
    except StateError as error:
        raise StateError(f"{path}: {error}") from None
    except OSError as error:
        raise StateError(f"{path}: cannot be read: {error.strerror}") from None
    finally:
        os.close(file)


def _whole(file: int) -> memoryview:
    """All of a file that nobody else could have written."""
    about = os.fstat(file)
    if not stat.S_ISREG(about.st_mode):
        raise StateError("expected a regular file")
    if about.st_uid not in (0, os.geteuid()) or about.st_mode & 0o022:
        raise StateError("others can write to it: expected a file of one's own with mode 0600")
    if about.st_size > LARGEST:
        raise StateError(f"{about.st_size} bytes: expected {LARGEST} at most")
    memory = np.empty(about.st_size, dtype=np.uint8)
    view = memory.data
    at = 0
    while at < len(view):
        n = os.readv(file, [view[at : at + PIECE]])
        if n == 0:
            raise StateError(f"{at} bytes: expected {len(view)}")
        at += n
    return view


def _parsed(data: memoryview) -> Saved:
    if len(data) < HEAD.size or bytes(data[: len(MAGIC)]) != MAGIC:
        raise StateError(f"{len(data)} bytes that do not begin as a saved state does")
    _, version, parts, when, size = HEAD.unpack_from(data)
    if version != VERSION:
        raise StateError(f"version {version}: expected {VERSION}")
    if parts > MOST_PARTS or size != len(data) or len(data) < HEAD.size + parts * SIZE.size + SUM.size:
        raise StateError(f"{len(data)} bytes, {parts} parts: expected {size} bytes, {MOST_PARTS} parts at most")
    end = HEAD.size + parts * SIZE.size
    if SUM.unpack_from(data, end)[0] != zlib.crc32(data[:end]):
        raise StateError("damaged: the checksum of its header is wrong")
    at, found = end + SUM.size, []
    for i in range(parts):
        (length,) = SIZE.unpack_from(data, HEAD.size + i * SIZE.size)
        if length > len(data) - at:
            raise StateError(f"part {i}: {length} bytes: expected {len(data) - at} at most")
        found.append(data[at : at + length].toreadonly())
        at += length
    if at != len(data):
        raise StateError(f"{len(data) - at} bytes behind its last part")
    return Saved(when, found)


# --- a node -----------------------------------------------------------------------------------------------------------------------------


def snapshot(node: Node) -> Saved:
    """A node's state: a job of its own, some tenths of a second for a million connections; nothing is written meanwhile."""
    return Saved(time.time_ns(), [tracker.save() for tracker in node.trackers])


def save_node(node: Node, path: str) -> int:
    """Save what a node that works has, from any other thread: only the snapshot keeps packets waiting. The file's size in bytes.

    Raises OutputError; RuntimeError if the node stops first.
    """
    return write_state(path, node.ask(snapshot).result())


def restore_node(node: Node, path: str, max_age: float) -> TakenUp | None:
    """Have a node that does not work yet take up what a file holds, which is removed then. None: no file.

    max_age: seconds after which a state is worth nothing. The time since it was saved counts: what has expired meanwhile is gone. If the clock was
    set back to before that moment, no time has passed. Raises StateError; then the node has nothing, and the file stays.
    """
    saved = read_state(path)
    if saved is None:
        return None
    now = time.time_ns()
    age = (now - saved.when) / 1e9
    if age > max_age:
        raise StateError(f"{path}: {age:.0f} s old: expected {max_age:.0f} s at most (max_age)")
    try:
        left_out = _spread(node.trackers, saved.parts, now if age < 0 else None)
    except StateError as error:
        for tracker in node.trackers:
            tracker.flush()
            tracker.forget_events()
        raise StateError(f"{path}: {error}") from None
    before = sum(tracker.count for tracker in node.trackers)
    for tracker in node.trackers:
        tracker.expire(now)
    with suppress(OSError):
        os.unlink(path)
    lives = sum(tracker.count for tracker in node.trackers)
    return TakenUp(lives, before - lives, max(age, 0), left_out)


def _spread(trackers: Sequence[Tracker], parts: Sequence[memoryview], now: int | None) -> int:
    """Each part to who has made it, or, if there were more or fewer workers, connections to those that own them now. How many are left out.

    Raises StateError; then trackers may have some.
    """
    if len(parts) == len(trackers):
        for tracker, part in zip(trackers, parts, strict=True):
            tracker.restore(part, now)
        return 0
    found = [tracker.take_share(part, now) for tracker in trackers for part in parts]
    return sum(astray + crowded for _, astray, crowded in found)
