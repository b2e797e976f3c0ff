"""A file's bytes as memory that a record scan can walk: mapped whole, or a window that slides over a stream.

Theory of operation: a scan holds an offset `at` into `memory`, of which `have` bytes are valid. When a record does not fit what is left, it
calls advance(at, need) and goes on at the offset returned. A mapping has nothing to add; a window moves the rest to its front and fills up
behind it, so what was scanned before is gone. `start` is the place of memory[0] in the (decompressed) stream.
Invariants: memory grows only to hold one record of the size asked for; what a decoder makes of one piece of input is bounded by PIECE, whatever
the compression ratio, so a decompression bomb passes through as a stream.
A mapped file must not shrink while it is read (the access would end in SIGBUS, as with any mapping): a window is there for such files.
Not here: what the bytes mean (capture).
"""

from __future__ import annotations

import contextlib
import lzma
import mmap
import os
import stat
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import numpy as np

from ctcore.errors import CaptureError

WINDOW = 1 << 20  # bytes; small enough to stay in cache between decoder and scan
CHUNK = 1 << 16  # bytes read from the file at once
SPAN = 1 << 18  # decompressed bytes collected before they are scanned
# Bytes given to a decoder at once. Zstandard's best ratio is 128 KiB from a block of 4 bytes, so that these make 16 MiB at most; deflate and
# LZMA make half a MiB and about 4 MiB. The last piece before damage is lost with it, another reason to keep it small; below this, speed suffers.
PIECE = 1 << 9
DECODER_MEMORY = 1 << 27  # bytes of dictionary or window a compressed stream may ask for
MAGIC_LENGTH = 6


class Decoder(Protocol):
    """What zlib, lzma and zstandard agree on."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, /) -> bytes: ...


class Codec(NamedTuple):
    """A compression format: its name, how to start on a member (frame, stream) of it, and what its decoder raises."""

    name: str
    decoder: Callable[[], Decoder]
    errors: tuple[type[Exception], ...]


class StreamDamage(Exception):
    """The stream ends or breaks off here; the text says how, to be put behind the file's name."""


def codec_of(head: bytes) -> Codec | None:
    """The codec whose magic number `head` (the first MAGIC_LENGTH bytes of a file) starts with, or None."""
    if head.startswith(b"\x1f\x8b"):
        return Codec("gzip", lambda: zlib.decompressobj(wbits=31), (zlib.error,))
    if head.startswith(b"\xfd7zXZ\0"):
        return Codec("xz", lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, DECODER_MEMORY), (lzma.LZMAError,))
    # RFC 8878 3.1.1 and 3.1.2: a frame, or a skippable frame such as parallel compressors put first.
    if head.startswith(b"\x28\xb5\x2f\xfd") or (head[1:4] == b"\x2a\x4d\x18" and head[0] >> 4 == 5):
        import zstandard  # costs 10 ms, which only those pay who have such files

        context = zstandard.ZstdDecompressor(max_window_size=DECODER_MEMORY)
        return Codec("zstd", lambda: context.decompressobj(), (zstandard.ZstdError,))
    return None


class Mapped:
    """A regular file as one mapping. Nothing is copied, and every offset is the file's own."""

    start = 0
    codec = None

    def __init__(self, fd: int, size: int) -> None:
        mapping = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
        if hasattr(mapping, "madvise"):
            mapping.madvise(mmap.MADV_SEQUENTIAL)
        self.memory = np.frombuffer(mapping, dtype=np.uint8)
        self.have = len(self.memory)
        self.size: int | None = size
        self.damage: str | None = None

    def advance(self, at: int, need: int) -> int:
        """All there is has been there from the start: `at` stays."""
        return at

    def position(self, at: int) -> int:
        """Bytes of the file behind us when the scan stands at `at`."""
        return at

    def close(self) -> None:
        """Let go of the mapping; it ends with the last array that points into it."""
        self.memory, self.have = self.memory[:0], 0


class Window:
    """A file descriptor read as a stream, decompressed where it is compressed, seen through a window."""

    def __init__(self, fd: int, head: bytes, size: int | None, capacity: int) -> None:
        self.codec = codec_of(head)
        self.size = size
        self.start = 0
        self.have = 0
        self.damage: str | None = None
        self._fd = fd
        self._head = head
        self._consumed = len(head)
        self._chunks = self._inflated(self.codec) if self.codec else self._raw()
        self._rest = np.empty(0, np.uint8)  # of a chunk that did not fit
        self._buffer = np.empty(0, np.uint8)
        self._allocate(capacity)

    def advance(self, at: int, need: int) -> int:
        """Forget what lies before `at` and fetch until `need` bytes are there or the stream has ended. Returns the new `at`: 0.

        Where the stream ends before its time, `damage` says so afterwards.
        """
        kept = self.have - at
        if at:
            self._buffer[:kept] = self._buffer[at : self.have]
        self.start += at
        self.have = kept
        if need > len(self._buffer):
            self._allocate(max(need, 2 * len(self._buffer)))
        while self.have < need and self._fill():
            pass
        return 0

    def position(self, at: int) -> int:
        """Bytes of the file behind us when the scan stands at `at`; of a compressed one, those that the decoder has been given."""
        return self._consumed if self.codec else self.start + at

    def close(self) -> None:
        """Close the file; the memory stays for those who hold it."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self.have = -1, 0

    def _allocate(self, capacity: int) -> None:
        buffer = np.empty(capacity, np.uint8)
        buffer[: self.have] = self._buffer[: self.have]
        self._buffer = buffer
        self.memory = buffer.view()
        self.memory.flags.writeable = False

    def _fill(self) -> bool:
        """Take from the stream what is there and fits. False at its end."""
        if not len(self._rest):
            try:
                chunk = next(self._chunks, b"")
            except StreamDamage as damage:
                self.damage, chunk = str(damage), b""
            if not chunk:
                return False
            self._rest = np.frombuffer(chunk, np.uint8)
        taken = self._rest[: len(self._buffer) - self.have]
        self._buffer[self.have : self.have + len(taken)] = taken
        self.have += len(taken)
        self._rest = self._rest[len(taken) :]
        return True

    def _raw(self) -> Iterator[bytes]:
        """The file's bytes as they come, so that a pipe's packets are seen when they are written."""
        if self._head:
            yield self._head
        while True:
            try:
                chunk = os.read(self._fd, CHUNK)
            except OSError as error:
                raise StreamDamage(f"cannot be read on: {error.strerror}") from error
            if not chunk:
                return
            self._consumed += len(chunk)
            yield chunk

    def _inflated(self, codec: Codec) -> Iterator[bytes]:
        """The decompressed bytes, SPAN or one chunk's worth at a time. Members follow one another, with zero padding between them."""
        decoder: Decoder | None = None
        done = 0
        spans: list[bytes] = []
        for chunk in self._raw():
            for i in range(0, len(chunk), PIECE):
                piece = chunk[i : i + PIECE]
                while piece := piece if decoder else piece.lstrip(b"\0"):
                    decoder = decoder or codec.decoder()
                    try:
                        spans.append(decoder.decompress(piece))
                    except codec.errors as error:
                        if any(spans):
                            yield b"".join(spans)
                        raise StreamDamage(f"damaged: the {codec.name} stream breaks off after {done:,} decompressed bytes ({error})") from error
                    done += len(spans[-1])
                    piece = b""
                    if decoder.eof:
                        piece, decoder = decoder.unused_data, None
                if sum(map(len, spans)) >= SPAN:
                    yield b"".join(spans)
                    spans.clear()
            if any(spans):
                yield b"".join(spans)
            spans.clear()
        if decoder:
            raise StreamDamage(f"truncated: the {codec.name} stream ends unfinished after {done:,} decompressed bytes")


def open_stream(path: str, name: str, window: int | None) -> Mapped | Window:
    """Open a file, "-" for standard input: mapped where that can be, as a window otherwise or where `window` gives a size for it.

    Raises CaptureError where it cannot be opened, or is a directory.
    """
    try:
        fd = os.dup(0) if path == "-" else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise CaptureError(f"{name}: cannot be opened: {error.strerror}") from error
    except ValueError as error:
        raise CaptureError(f"{name!r}: cannot be opened: {error}") from error
    try:
        info = os.fstat(fd)
        if stat.S_ISDIR(info.st_mode):
            raise CaptureError(f"{name}: is a directory, expected a capture file")
        regular = stat.S_ISREG(info.st_mode)
        head = _read_head(fd)
        # Standard input may have been read from before; only a file of our own is mapped from its first byte on.
        if path != "-" and regular and info.st_size and window is None and codec_of(head) is None:
            with contextlib.suppress(OSError, ValueError):  # some file systems cannot
                mapped = Mapped(fd, info.st_size)
                os.close(fd)
                return mapped
        return Window(fd, head, info.st_size if regular else None, window or WINDOW)
    except OSError as error:
        os.close(fd)
        raise CaptureError(f"{name}: cannot be read: {error.strerror}") from error
    except BaseException:
        os.close(fd)
        raise


def _read_head(fd: int) -> bytes:
    """The bytes that tell a compression format; a pipe may give them one by one."""
    head = b""
    while len(head) < MAGIC_LENGTH and (more := os.read(fd, MAGIC_LENGTH - len(head))):
        head += more
    return head
