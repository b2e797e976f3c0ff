"""Records into files: JSON Lines, CSV, Arrow, Parquet, and conntrack(8)'s lines.

A writer takes records (fields) batch by batch and knows nothing of packets. Formats of columns see each record flattened: nested objects as
original_src and the like, lists joined by spaces in CSV.
Not here: what is in a record. Invariants: a file that was opened is complete and closed after close(), whatever happened to the replay; where it
cannot be written, the error names it.
"""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from io import StringIO
from typing import Any, BinaryIO, Protocol

import orjson

from ctcore.errors import CtmirrorError, OutputError
from datapath.create import CODECS, create, ending_of
from datapath.extras import remedy
from datapath.fields import PROTO_NAMES, Record

FORMATS = ("jsonl", "parquet", "arrow", "csv", "conntrack")
ENDINGS = {
    ".jsonl": "jsonl", ".json": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".arrow": "arrow", ".feather": "arrow", ".csv": "csv",
    ".conntrack": "conntrack",
}  # fmt: skip
STDOUT = "-"

_ENDS = {"src": "str", "dst": "str", "sport": "u2", "dport": "u2", "type": "u1", "code": "u1", "id": "u2", "key": "u2"}
_FLOW = {**_ENDS, "packets": "u8", "bytes": "u8"}
_TCP_SIDE = {"end": "u4", "maxend": "u4", "maxwin": "u4", "maxack": "u4", "scale": "u1", "flags": "list"}


def _under(prefix: str, columns: dict[str, str]) -> dict[str, str]:
    return {f"{prefix}_{name}": kind for name, kind in columns.items()}


_PACKET = {
    "i": "u8", "file": "str", "ts": "ns", "len": "u4", "state": "str", "dir": "str", "status": "list", "zone": "u2", "mark": "u4", "conn": "u8",
    "proto": "str", "l4state": "str", "timeout": "f8", "verdict": "str", "reason": "str", "offload": "str", **_ENDS,
    **_under("out", {"src": "str", "dst": "str", "sport": "u2", "dport": "u2", "id": "u2", "key": "u2"}),
    "ct_reason": "str", "to": "str", "mirrored": "list", "rule": "str",
}  # fmt: skip
_CONN = {
    "conn": "u8", "zone": "u2", "proto": "str", **_under("original", _FLOW), **_under("reply", _FLOW), "l4state": "str", "status": "list",
    "timeout": "f8", "mark": "u4", "labels": "str", "helper": "str", "master": "u8", "start": "ns", "stop": "ns", "end": "str",
    **_under("tcp_original", _TCP_SIDE), **_under("tcp_reply", _TCP_SIDE), "tcp_last_dir": "str", "tcp_last_index": "str", "tcp_retrans": "u1",
    "offload": "str", "total_packets": "u8", "total_bytes": "u8", "hardware_packets": "u8", "hardware_bytes": "u8", "hardware_split": "bool",
    "hardware_unheard_packets": "u8", "hardware_unheard_bytes": "u8",
}  # fmt: skip
_EVICTED_FOR = _under("evicted_for", {"why": "str", "zone": "u2", "proto": "str", **_ENDS})
_RULE = {
    "rule": "str", "device": "str", "direction": "str", "block": "u4", "chain": "u4", "prio": "u2", "handle": "u4", "tc": "str", "skip_sw": "bool",
    "skip_hw": "bool", "in_hw": "bool", "packets": "u8", "bytes": "u8", "drops": "u8", "overlimits": "u8", "last": "ns",
}  # fmt: skip
COLUMNS = {"rules": _RULE, "packets": _PACKET, "conns": _CONN, "events": {"event": "str", "ts": "ns", "changes": "list", **_CONN, **_EVICTED_FOR}}


class Writer(Protocol):
    """Takes records until it is closed."""

    def write(self, records: Iterable[Record]) -> None: ...
    def close(self) -> None: ...


def format_of(name: str, chosen: str | None) -> str:
    """The format chosen, or that of the file's ending, in front of one that compresses; JSON Lines for stdout and a name without an ending.

    Raises CtmirrorError for another ending, and where the format cannot be compressed.
    """
    compressed = ending_of(name) in CODECS
    ending = ending_of(os.path.splitext(name)[0] if compressed else name)
    form = chosen or (ENDINGS.get(ending) if ending else "jsonl")
    if form is None:
        known = ", ".join(ENDINGS)
        raise CtmirrorError(f"{name}: '{ending}' names no format: expected an ending of {known}, .gz, .xz or .zst behind it, or --format")
    if compressed and form in ("arrow", "parquet"):
        raise CtmirrorError(f"{name}: {form} files are not compressed as a whole: expected {form} without {ending_of(name)}")
    return form


def open_writer(kind: str, name: str, chosen: str | None) -> Writer:
    """A writer of one kind of records ("packets", "conns", "events", "rules") to a file, or stdout for "-".

    Raises CtmirrorError if the format cannot hold such records, or needs a library that is not installed; OSError from opening.
    """
    form = format_of(name, chosen)
    if form == "conntrack" and kind in ("packets", "rules"):
        option = "--rule-counters" if kind == "rules" else "--packets"
        raise CtmirrorError(f"{option} {name}: conntrack's lines are about connections; expected --format jsonl, csv, parquet or arrow")
    if form in ("arrow", "parquet"):
        _pyarrow(name)
    raw, file = (sys.stdout.buffer, sys.stdout.buffer) if name == STDOUT else create(name)
    with naming(name):
        return Named(_WRITERS[form](file, kind), name, raw)


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Errors of writing say which file they are about. That nobody reads stdout any more is for the command to judge."""
    try:
        yield
    except OSError as error:
        if name == STDOUT and isinstance(error, BrokenPipeError):
            raise
        raise OutputError(f"{'stdout' if name == STDOUT else name}: cannot be written: {error.strerror or error}") from error


class Named:
    """A writer whose errors name its file: disks get full. raw: the file itself, where the writer's is one that compresses into it."""

    def __init__(self, writer: Writer, name: str, raw: BinaryIO) -> None:
        self.writer, self.name, self.raw = writer, name, raw

    def write(self, records: Iterable[Record]) -> None:
        with naming(self.name):
            self.writer.write(records)

    def close(self) -> None:
        with naming(self.name):
            self.writer.close()
            if self.raw is not sys.stdout.buffer:
                self.raw.close()


def flatten(record: Record, prefix: str = "") -> Record:
    """Nested objects as columns: original.src becomes original_src."""
    flat: Record = {}
    for name, value in record.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{name}_"))
        else:
            flat[prefix + name] = value
    return flat


class _Closing:
    """What the writers share: a file that is closed unless it is stdout."""

    def __init__(self, file: BinaryIO, kind: str) -> None:
        self.file, self.kind = file, kind

    def close(self) -> None:
        if self.file is sys.stdout.buffer:
            self.file.flush()
        else:
            self.file.close()


class JsonLines(_Closing):
    """One JSON object a line."""

    # Lines are collected no further than a cache holds: larger buffers are returned to the system and faulted in again each time.
    BUFFER = 1 << 16

    def write(self, records: Iterable[Record]) -> None:
        lines = bytearray()
        for record in records:
            lines += orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)
            if len(lines) >= self.BUFFER:
                self.file.write(lines)
                lines.clear()
        self.file.write(lines)


class Csv(_Closing):
    """A heading, then a line for each record; what a record has not is empty."""

    def __init__(self, file: BinaryIO, kind: str) -> None:
        super().__init__(file, kind)
        self._write([dict(zip(COLUMNS[kind], COLUMNS[kind], strict=True))])

    def write(self, records: Iterable[Record]) -> None:
        self._write({name: _cell(value) for name, value in flatten(record).items()} for record in records)

    def _write(self, rows: Iterable[Record]) -> None:
        text = StringIO(newline="")
        csv.DictWriter(text, list(COLUMNS[self.kind]), restval="", extrasaction="ignore", lineterminator="\n").writerows(rows)
        self.file.write(text.getvalue().encode())


def _cell(value: Any) -> Any:
    return " ".join(value) if isinstance(value, (tuple, list)) else str(value).lower() if isinstance(value, bool) else value


class Arrow(_Closing):
    """Arrow IPC file, or Parquet: typed columns, a record batch (row group) for each batch of records."""

    BATCH = 1 << 16

    def __init__(self, file: BinaryIO, kind: str, make: Callable[..., Any]) -> None:
        super().__init__(file, kind)
        self.schema = _schema(kind)
        self.waiting: list[Record] = []
        self.writer = make(file, self.schema)

    def write(self, records: Iterable[Record]) -> None:
        self.waiting += [flatten(record) for record in records]
        if len(self.waiting) >= self.BATCH:
            self._flush()

    def _flush(self) -> None:
        import pyarrow

        if self.waiting:
            self.writer.write_batch(pyarrow.RecordBatch.from_pylist(self.waiting, schema=self.schema))
            self.waiting = []

    def close(self) -> None:
        try:
            self._flush()
            self.writer.close()
        finally:
            super().close()


class ConntrackLines(_Closing):
    """Lines as `conntrack -L` and `conntrack -E` print them: of connections only those that are alive, for -L lists what is in the table."""

    def write(self, records: Iterable[Record]) -> None:
        if self.kind == "conns":
            records = (record for record in records if record["end"] == "alive")
        self.file.write("".join([conntrack_line(record) + "\n" for record in records]).encode())


def _arrow_file(file: BinaryIO, kind: str) -> Writer:
    import pyarrow

    return Arrow(file, kind, pyarrow.ipc.new_file)


def _parquet_file(file: BinaryIO, kind: str) -> Writer:
    from pyarrow.parquet import ParquetWriter

    return Arrow(file, kind, ParquetWriter)


_WRITERS: dict[str, Callable[[BinaryIO, str], Writer]] = {
    "jsonl": JsonLines, "csv": Csv, "arrow": _arrow_file, "parquet": _parquet_file, "conntrack": ConntrackLines,
}  # fmt: skip


def _pyarrow(name: str) -> None:
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise CtmirrorError(f"{name}: Arrow and Parquet need pyarrow: {remedy('arrow')}") from None


def _schema(kind: str):
    import pyarrow as pa

    types = {
        "str": pa.string(), "u1": pa.uint8(), "u2": pa.uint16(), "u4": pa.uint32(), "u8": pa.uint64(), "f8": pa.float64(),
        "ns": pa.int64(), "bool": pa.bool_(), "list": pa.list_(pa.string()),
    }  # fmt: skip
    return pa.schema([(name, types[column]) for name, column in COLUMNS[kind].items()])


# --- conntrack(8)'s lines --------------------------------------------------------------------------------------------------------------

NUMBERS = {name: int(number) for number, name in PROTO_NAMES.items()}
NAMED = {"icmp", "tcp", "udp", "gre", "icmpv6", "sctp", "udplite", "dccp"}  # the rest conntrack(8) calls unknown
LABELS = {"new": "    [NEW]", "update": " [UPDATE]", "destroy": "[DESTROY]"}


def conntrack_line(record: Record, *, extended: bool = False) -> str:
    """A connection record as in `conntrack -L`, an event record as in `conntrack -E`. extended: the family as well, as `-o extended` has it.

    An event tells what ctnetlink puts into it: counters at the end only, the protocol's state if the event is about it (so in every `new` and
    `destroy`), the time left, at the end only if there is a whole second of it, and the mark if there is one or it was changed. The kernel's
    reference count, use=, is 1 here: there is none.
    """
    proto, event, changes = record["proto"], record.get("event"), record.get("changes", ())
    counted = event in (None, "destroy")
    offloaded = next((f"[{name.upper().replace('-', '_')}]" for name in ("hw-offload", "offload") if name in record["status"]), None)
    parts = [LABELS[event]] if event else []
    parts += ["ipv6     10" if ":" in record["original"]["src"] else "ipv4     2"] if extended else []
    parts.append(f"{proto if proto in NAMED else 'unknown':<8} {NUMBERS.get(proto, proto)}")
    left = int(record["timeout"])
    if event or not offloaded:
        parts += [str(left)] if left or event != "destroy" else []
        parts += [record["l4state"]] if record["l4state"] and (event != "update" or "l4state" in changes) else []
    parts += _tuple(record["original"], record["reply"], proto, counted)
    parts += [] if "seen-reply" in record["status"] else ["[UNREPLIED]"]
    parts += _tuple(record["reply"], record["original"], proto, counted)
    parts += [offloaded] if offloaded else ["[ASSURED]"] if "assured" in record["status"] else []
    if not event or record["mark"] or "mark" in changes:
        parts.append(f"mark={record['mark']}")
    parts += [f"zone={record['zone']}"] if record["zone"] else []
    parts += [] if event else ["use=1"]
    return " ".join(parts)


def _tuple(flow: Record, other: Record, proto: str, counted: bool) -> list[str]:
    """One direction: addresses, what stands for ports, and counters if there are any. conntrack(8) prints DCCP's ports, which are not tracked."""
    parts = [f"src={flow['src']}", f"dst={flow['dst']}"]
    if "key" in flow:
        parts += [f"srckey={other['key']:#x}", f"dstkey={flow['key']:#x}"]
    parts += ["sport=0", "dport=0"] if proto == "dccp" else []
    names = ("sport", "dport", "type", "code", "id") + (("packets", "bytes") if counted else ())
    parts += [f"{name}={flow[name]}" for name in names if flow.get(name) is not None]
    return parts
