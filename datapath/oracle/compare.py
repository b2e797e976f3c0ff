"""Where engine and kernel differ, packet by packet and field by field.

Everything that both sides know is compared, and exactly. Timeouts are compared to the tick, too: only where the kernel's clock went on while it set
one may it be that many ticks off. There is no other tolerance and no list of exceptions.
Not here: how both sides were asked (lockstep), how differences are shown (the command diff).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ctcore import spec
from ctcore.types import Dir, Proto
from datapath import fields
from datapath.checksum import internet_checksum
from datapath.oracle.exhibit import FRAGMENT4, fragment_at
from datapath.oracle.kernel import Side
from datapath.oracle.lockstep import Compared

DF = 0x40  # in the byte of IPv4's flags
SHOWN_BYTES = 32  # of those that differ

Column = Callable[[Side], np.ndarray]


class Context(NamedTuple):
    """What a value's text depends on."""

    hz: int
    proto: int


Text = Callable[[int, Context], Any]


def _number(value: int, _: Context) -> int:
    return value


def _ordinal(value: int, _: Context) -> int | None:
    return value if value >= 0 else None


def _seconds(value: int, context: Context) -> float | None:
    return value / context.hz if value >= 0 else None


def _l4state(value: int, context: Context) -> str | None:
    return fields.l4state_name(context.proto, value)


def _tcp_index(value: int, _: Context) -> str | None:
    return spec.TCP_EVENTS[value] if value < len(spec.TCP_EVENTS) else None


def _of(names: Callable[[int], Any]) -> Text:
    """A text that depends on the value alone."""
    return lambda value, _: names(value)


_dir, _state, _verdict = _of(fields.DIR_NAMES.get), _of(fields.STATE_NAMES.__getitem__), _of(fields.VERDICT_NAMES.get)
_status, _flags = _of(fields.status_names), _of(fields.flag_names)

# Which packets a field is compared for: all; those with a connection on both sides; of these, those that do not belong to it, being invalid.
ALL, CONN, ORPHAN = range(3)


@dataclass(frozen=True)
class Field:
    """One thing that is compared. column: its values on one side; text: a value as records show it; scope: ALL, CONN or ORPHAN; proto: only of
    connections of this protocol, if given; timed: it depends on the tick."""

    name: str
    column: Column
    text: Text = _number
    scope: int = ALL
    proto: int | None = None
    timed: bool = False


@dataclass(frozen=True)
class Difference:
    """A packet both sides do not agree on. i: its number in what was compared; fields: name -> (ours, theirs)."""

    i: int
    fields: dict[str, tuple[Any, Any]]


def _decision(name: str, text: Text = _number, *, timed: bool = False) -> Field:
    return Field(name, lambda side: side.decisions[name], text, timed=timed)


def _entry(name: str, text: Text = _number, *, timed: bool = False) -> Field:
    return Field(f"entry.{name}", lambda side: side.conns[name], text, ORPHAN, timed=timed)


def _both_ways(prefix: str, name: str, column: Callable[[Side], np.ndarray], text: Text = _number, proto: int | None = None) -> Iterator[Field]:
    """A field for each direction; column: of both, [n, 2]."""
    for d in Dir:
        yield Field(f"{prefix}{fields.DIR_NAMES[d]}.{name}", partial(lambda side, d: column(side)[:, d], d=d), text, CONN, proto)


def _tcp() -> Iterator[Field]:
    for name in ("end", "maxend", "maxwin", "maxack"):
        yield from _both_ways("tcp.", name, partial(lambda side, name: side.conns["tcp"]["side"][name], name=name), proto=Proto.PROTO_TCP)
    yield from _both_ways("tcp.", "scale", lambda side: side.conns["tcp"]["scale"], proto=Proto.PROTO_TCP)
    yield from _both_ways("tcp.", "flags", lambda side: side.conns["tcp"]["flags"], _flags, Proto.PROTO_TCP)
    texts: dict[str, Text] = {"state": _l4state, "last_dir": _dir, "last_index": _tcp_index, "last_flags": _flags}
    for name in ("state", "last_index", "last_dir", "last_seq", "last_ack", "last_end", "last_win", "last_wscale", "last_flags", "retrans"):
        column = partial(lambda side, name: side.conns["tcp"][name], name=name)
        yield Field(f"tcp.{name}", column, texts.get(name, _number), CONN, Proto.PROTO_TCP)


def _sctp() -> Iterator[Field]:
    for name in ("vtag", "init"):
        yield from _both_ways("sctp.", name, partial(lambda side, name: side.conns["sctp"][name], name=name), proto=Proto.PROTO_SCTP)
    texts: dict[str, Text] = {"state": _l4state, "last_dir": _dir}
    for name in ("state", "flags", "last_dir"):
        column = partial(lambda side, name: side.conns["sctp"][name], name=name)
        yield Field(f"sctp.{name}", column, texts.get(name, _number), CONN, Proto.PROTO_SCTP)


def tuples(side: Side, d: int) -> np.ndarray:
    """The tuple of one direction of each packet's connection, KEY_DTYPE[n] as bytes[n, 40]."""
    keys = np.ascontiguousarray(side.conns["flow"]["key"][:, d])
    return keys.view(np.uint8).reshape(len(keys), -1)


FIELDS = (
    _decision("state", _state),
    _decision("dir", _dir),
    _decision("conn", _ordinal),
    _decision("status", _status),
    _decision("l4state", _l4state),
    _decision("timeout", _seconds, timed=True),
    _decision("mark"),
    _decision("zone"),
    _decision("verdict", _verdict),
    Field("entry", lambda side: side.has_conn, _of(bool)),
    _entry("status", _status),
    _entry("timeout", _seconds, timed=True),
    _entry("mark"),
    _entry("master", _ordinal),
    *_both_ways("", "packets", lambda side: side.conns["flow"]["packets"]),
    *_both_ways("", "bytes", lambda side: side.conns["flow"]["bytes"]),
    *_tcp(),
    *_sctp(),
)


def differences(compared: Compared, hz: int) -> list[Difference]:
    """The packets that were shown to the kernel and on which it does not agree, in order. hz: ticks a second."""
    shown = np.array([why is None for why in compared.unshown], bool)
    both = shown & compared.ours.has_conn & compared.theirs.has_conn
    scopes = {ALL: shown, CONN: both, ORPHAN: both & (compared.ours.decisions["conn"] < 0)}
    protos = compared.ours.conns["flow"]["key"]["proto"][:, 0]
    found: dict[int, dict[str, tuple[Any, Any]]] = {}
    for field in FIELDS:
        ours, theirs = (field.column(side).astype(np.int64) for side in (compared.ours, compared.theirs))
        where = scopes[field.scope] if field.proto is None else scopes[field.scope] & (protos == field.proto)
        for i in np.flatnonzero(where & (np.abs(ours - theirs) > compared.slack * field.timed)).tolist():
            context = Context(hz, int(compared.keys["proto"][i]))
            found.setdefault(i, {})[field.name] = field.text(int(ours[i]), context), field.text(int(theirs[i]), context)
    for d in Dir:
        ours, theirs = tuples(compared.ours, d), tuples(compared.theirs, d)
        for i in np.flatnonzero(both & (ours != theirs).any(axis=1)).tolist():
            found.setdefault(i, {})[f"{fields.DIR_NAMES[d]}.tuple"] = fields.endpoints(ours[i].tobytes()), fields.endpoints(theirs[i].tobytes())
    for i, left in enumerate(zip(compared.ours.out, compared.theirs.out, strict=True)):
        if left[0] != left[1] and (unlike := out_differences(*map(without_idents, (as_bridged(left[0]), left[1])))):
            found.setdefault(i, {}).update(unlike)
    for i, unlike in compared.expected.items():
        found.setdefault(i, {}).update(unlike)
    return [Difference(i, found[i]) for i in sorted(found)]


def as_bridged(packets: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """Packets that leave a router, as they leave a bridge: fragments of IPv4 without their DF bit.

    Linux sets it in all fragments where it cuts a datagram anew and its largest fragment had it. A bridge clears what it knows of a packet beside its
    bytes right before (br_validate_ipv4, which a router has no use for), and so this as well. Tried with a router: there the bit is set.
    """
    return tuple(
        without_df(packet) if packet[0] >> 4 == 4 and packet[6] & DF and int.from_bytes(packet[6:8], "big") & FRAGMENT4 else packet
        for packet in packets
    )


def without_df(packet: bytes) -> bytes:
    """An IPv4 packet without that bit, its checksum right again."""
    head = (packet[0] & 15) * 4
    header = bytearray(packet[:head])
    header[6] &= ~DF
    header[10:12] = bytes(2)
    header[10:12] = internet_checksum(bytes(header)).to_bytes(2, "big")
    return bytes(header) + packet[head:]


def without_idents(packets: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """Packets that left, the identification of IPv6 fragments set to 0 if all have the same: Linux draws a new one when it cuts up a datagram."""
    places = [fragment_at(packet) if packet[0] >> 4 == 6 else None for packet in packets]
    if not places or None in places:
        return packets
    idents = {packet[at + 4 : at + 8] for packet, at in zip(packets, places, strict=True) if at is not None}
    if len(idents) > 1:
        return packets
    return tuple(packet[: at + 4] + bytes(4) + packet[at + 8 :] for packet, at in zip(packets, places, strict=True) if at is not None)


def out_differences(ours: tuple[bytes, ...], theirs: tuple[bytes, ...]) -> dict[str, tuple[Any, Any]]:
    """Where packets that left are not the same: how many there are, how long they are, or the bytes from one place to another."""
    lengths = [len(packet) for packet in ours], [len(packet) for packet in theirs]
    if lengths[0] != lengths[1]:
        return {"out.lengths": lengths}
    found: dict[str, tuple[Any, Any]] = {}
    for number, (left, right) in enumerate(zip(ours, theirs, strict=True)):
        differ = [at for at in range(len(left)) if left[at] != right[at]]
        if differ:
            start, end = differ[0], min(differ[-1] + 1, differ[0] + SHOWN_BYTES)
            where = f"out[{number}]" if len(ours) > 1 else "out"
            found[f"{where}.bytes[{start}:{end}]"] = left[start:end].hex(), right[start:end].hex()
    return found
