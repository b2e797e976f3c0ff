"""Saved packet records and those of today: read, made, and paired by the packet they tell of.

Theory of operation: both come in the order of their packets, so that they are merged, and a record that is missing is one difference, not one at
every packet behind it. A record says which packet it is by `i`, and of several captures by `file`; without a file, a number below the one before it
begins the next capture; without a number, it is the next packet's.
Invariant: neither side is held in memory.
Not here: what is compared, who shows it (check).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

import orjson

from ctcore.errors import CtmirrorError
from datapath import fields
from datapath.app import CHUNK, Tracking
from datapath.capture import PcapSource
from datapath.export import STDOUT
from datapath.worker import Pipeline


class Placed(NamedTuple):
    """A record and which packet it tells of: number of the capture, of the packet in it. Beyond the last capture: of none."""

    place: tuple[int, int]
    record: fields.Record


# --- those of today --------------------------------------------------------------------------------------------------------------------


def records_of(captures: Sequence[str], tracking: Tracking) -> Iterator[Placed]:
    """The packet records of captures that continue one another, as replay --packets writes them. Raises CaptureError where one is damaged."""
    if tracking.rules is not None:
        from datapath.ruled_run import records_of as through_rules

        yield from (Placed(*each) for each in through_rules(captures, tracking))
        return
    pipeline = Pipeline(tracking.config, zone=tracking.zone, clock=tracking.clock)
    for k, name in enumerate(captures):
        first = 0
        with PcapSource(name) as source:
            while len((chunk := source.read(CHUNK))[1]):
                decisions, keys, rewrites = pipeline.process(*chunk, keys=True, rewrites=True)
                records = fields.packet_records(chunk[1], decisions, keys, first, tracking.config.hz, name if len(captures) > 1 else None)
                yield from (Placed((k, record["i"]), record) for record in fields.translated(records, keys, rewrites))
                first += len(chunk[1])


# --- saved -----------------------------------------------------------------------------------------------------------------------------


def saved_records(name: str) -> Iterator[fields.Record]:
    """Packet records of a file of JSON Lines. Raises CtmirrorError naming file and line."""
    file = sys.stdin.buffer if name == STDOUT else open(name, "rb")  # noqa: SIM115 (closed below, unless it is stdin)
    try:
        for number, line in enumerate(file, 1):
            record = None
            with suppress(orjson.JSONDecodeError, orjson.JSONEncodeError):
                read = orjson.loads(line)
                orjson.dumps(read)  # refuses what is nested too deeply to be compared and shown
                record = read
            if not isinstance(record, dict) or "state" not in record:
                raise CtmirrorError(f"{name}:{number}: expected a packet record as replay --packets FILE.jsonl writes it")
            if "i" in record and (type(record["i"]) is not int or record["i"] < 0):  # true and false are int to isinstance()
                raise CtmirrorError(f"{name}:{number}: i: expected the packet's number, from 0")
            yield record
    finally:
        if file is not sys.stdin.buffer:
            file.close()


def placed(records: Iterator[fields.Record], captures: Sequence[str]) -> Iterator[Placed]:
    """Saved records with the packets that they tell of."""
    capture, last = 0, -1
    for record in records:
        number = record.get("i", last + 1)
        at = capture + 1 if number < last else capture
        if len(captures) > 1 and "file" in record:
            at = _named(record["file"], captures, at)
        if at < len(captures):
            capture, last = at, number
        yield Placed((at, number), record)


def _named(file: object, captures: Sequence[str], least: int) -> int:
    """Which of the captures from number `least` on is called so, in whatever directory; their number if none is."""
    base = os.path.basename(file) if isinstance(file, str) else None
    return next((k for k in range(least, len(captures)) if os.path.basename(captures[k]) == base), len(captures))


# --- both ------------------------------------------------------------------------------------------------------------------------------


def paired(saved: Iterator[Placed], came: Iterator[Placed]) -> Iterator[tuple[Placed | None, Placed | None]]:
    """What was saved and what came, packet by packet; either may be missing."""
    want, have = next(saved, None), next(came, None)
    while want is not None or have is not None:
        if have is None or (want is not None and want.place < have.place):
            yield want, None
            want = next(saved, None)
        elif want is None or have.place < want.place:
            yield None, have
            have = next(came, None)
        else:
            yield want, have
            want, have = next(saved, None), next(came, None)
