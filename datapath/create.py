"""Files to write to, compressed where their name says so: .gz, .xz and .zst. "-" is standard output.

Not here: what is written (sink, export), reading such files (stream). Invariant: the same bytes written give the same file, since gzip's header
gets neither name nor time.
"""

from __future__ import annotations

import gzip
import lzma
import os
from typing import BinaryIO, cast

CODECS = (".gz", ".xz", ".zst")


def create(path: str) -> tuple[BinaryIO, BinaryIO]:
    """The file, and what to write to: itself, or what compresses into it. Whoever writes closes the latter first. Raises OSError."""
    raw = os.fdopen(os.dup(1), "wb") if path == "-" else open(path, "wb")  # noqa: SIM115 (the writer closes it)
    ending = ending_of(path)
    if ending == ".gz":
        return raw, cast(BinaryIO, gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=6, mtime=0))
    if ending == ".xz":
        return raw, cast(BinaryIO, lzma.LZMAFile(raw, "wb"))
    if ending == ".zst":
        import zstandard  # costs 10 ms, which only those pay who write such files

        return raw, zstandard.ZstdCompressor().stream_writer(raw, closefd=False)
    return raw, raw


def ending_of(path: str) -> str:
    """What says how a file is compressed, or other last part of its name, in lower case."""
    return os.path.splitext(path)[1].lower()
