"""Which connections a client means: a Filter, and what only a search row by row can tell.

Theory of operation: a Filter is for the engine, which goes through a range of slots in one job. What it does not know (translated in either way,
the protocol's state) is looked at in the rows that are left. The same question is put to rows of events, which lie in no table.
Invariant: fits() says of rows what Tracker.select() says of connections (a test compares).
Not here: options of a command (commands.conntrack), doing something to connections (requests).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import fields as dataclass_fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctcore import spec
from ctcore.errors import ConfigError
from ctcore.filter import ALL_LABELS, Filter
from ctcore.types import Dir, Proto, Status
from datapath.fields import STATUS_NAMES
from datapath.live.message import RequestError

STATUS_BITS = {name: bit for bit, name in STATUS_NAMES.items()}
ANY = "any"
ALL = Filter()
KEY_BYTES = 40
_PLAIN = {field.name for field in dataclass_fields(Filter)} - {"original", "reply", "status", "not_status", "label", "label_mask"}
_TEXTS = {"src", "dst", "reply_src", "reply_dst"}
_NAMES = _PLAIN | {"status", "not_status", "label", "label_mask", "translated", "l4state"}


@dataclass(frozen=True)
class Wanted:
    """Connections. translated: "any" or an address: those whose source or destination is translated (to it); l4state: of TCP or SCTP, by its name."""

    filter: Filter = ALL
    translated: str | None = None
    l4state: str | None = None

    @property
    def simple(self) -> bool:
        """The filter says it all."""
        return self.translated is None and self.l4state is None

    def rest(self, conns: NDArray[Any]) -> NDArray[np.bool_]:
        """Of connections that fit the filter, which are meant. conns: CONN_DTYPE[n]; bool[n]."""
        chosen = np.ones(len(conns), dtype=bool)
        if self.translated is not None:
            chosen &= self._translated(conns)
        if self.l4state is not None:
            chosen &= _in_state(conns, self.l4state)
        return chosen

    def _translated(self, conns: NDArray[Any]) -> NDArray[np.bool_]:
        """The reply's destination is what the source became, and its source what the destination became."""
        snat, dnat = ((conns["status"] & bit) != 0 for bit in (Status.SRC_NAT, Status.DST_NAT))
        if self.translated == ANY:
            return snat | dnat
        address = ipaddress.ip_address(self.translated or "")
        raw, reply = np.frombuffer(address.packed.ljust(16, b"\0"), np.uint8), conns["flow"]["key"][:, Dir.REPLY]
        family = reply["family"] == address.version
        return family & ((snat & (reply["dst"] == raw).all(axis=1)) | (dnat & (reply["src"] == raw).all(axis=1)))

    def fits(self, conns: NDArray[Any]) -> NDArray[np.bool_]:
        """bool[n] of CONN_DTYPE[n], which need not be in any table."""
        chosen = self.rest(conns)
        keys = np.ascontiguousarray(conns["flow"]["key"]).view(np.uint8).reshape(len(conns), 2, KEY_BYTES)
        for direction, (value, mask) in enumerate(self.filter.keys()):
            wrong = (keys[:, direction] ^ np.frombuffer(value, np.uint8)) & np.frombuffer(mask, np.uint8)
            chosen &= ~wrong.any(axis=1)
        wanted = self.filter
        chosen &= (conns["status"] & (wanted.status | wanted.not_status)) == wanted.status
        if wanted.zone is not None:
            chosen &= conns["flow"]["key"]["zone"].max(axis=1) == wanted.zone
        if wanted.mark is not None:
            chosen &= (conns["mark"] & wanted.mark_mask) == wanted.mark & wanted.mark_mask
        if wanted.label is not None:
            for word in range(2):
                bits, looked = (number >> 64 * word & 0xFFFFFFFFFFFFFFFF for number in (wanted.label, wanted.label_mask))
                chosen &= (conns["label"][:, word] & np.uint64(looked)) == np.uint64(bits & looked)
        return chosen


EVERYTHING = Wanted()


def _in_state(conns: NDArray[Any], name: str) -> NDArray[np.bool_]:
    proto = conns["flow"]["key"]["proto"][:, Dir.ORIG]
    chosen = np.zeros(len(conns), dtype=bool)
    for table, number, states in ((spec.tcp(), Proto.PROTO_TCP, conns["tcp"]["state"]), (spec.sctp(), Proto.PROTO_SCTP, conns["sctp"]["state"])):
        if name in table.states:
            chosen |= (proto == number) & (states == table.states.index(name))
    return chosen


def wanted_of(given: Any) -> Wanted:
    """From a request's `which`. Raises RequestError."""
    if given is None:
        return EVERYTHING
    if not isinstance(given, Mapping):
        raise RequestError("which: expected an object")
    if unknown := sorted(set(given) - _NAMES):
        raise RequestError(f"which: {unknown[0][:40]!r}: expected {', '.join(sorted(_NAMES))}")
    chosen = {name: value for name, value in given.items() if value is not None}
    for name in _PLAIN & set(chosen):
        kind = str if name in _TEXTS else int
        if not isinstance(chosen[name], kind) or isinstance(chosen[name], bool):
            raise RequestError(f"which: {name}: expected {'text' if kind is str else 'a whole number'}")
    parts = {name: chosen[name] for name in _PLAIN & set(chosen)}
    parts |= {name: status_bits(f"which: {name}", chosen[name]) for name in ("status", "not_status") if name in chosen}
    parts |= {name: label_of(f"which: {name}", chosen[name]) for name in ("label", "label_mask") if name in chosen}
    try:
        return Wanted(Filter(**parts), _address_or_any(chosen.get("translated")), _state(chosen.get("l4state")))
    except ConfigError as error:
        raise RequestError(str(error)) from None


def status_bits(what: str, names: Any) -> int:
    """Bits of Status by the records' names. Raises RequestError."""
    if not isinstance(names, list) or not all(isinstance(name, str) and name in STATUS_BITS for name in names):
        raise RequestError(f"{what}: expected a list of {', '.join(STATUS_BITS)}")
    return int(sum(STATUS_BITS[name] for name in set(names)))


def label_of(what: str, text: Any) -> int:
    """128 bits as "0x...", since numbers of JSON end at 64. Raises RequestError."""
    try:
        number = int(text, 16) if isinstance(text, str) and text.startswith("0x") and len(text) <= 34 else -1
    except ValueError:
        number = -1
    if not 0 <= number <= ALL_LABELS:
        raise RequestError(f"{what}: expected '0x' and at most 32 hexadecimal digits")
    return number


def _address_or_any(text: Any) -> str | None:
    if text is None or text == ANY:
        return text
    try:
        return str(ipaddress.ip_address(text if isinstance(text, str) else ""))
    except ValueError:
        raise RequestError(f"which: translated: expected an address, or '{ANY}'") from None


def _state(name: Any) -> str | None:
    known = [*spec.tcp().states, *spec.sctp().states]
    if name is not None and (not isinstance(name, str) or name not in known):
        raise RequestError(f"which: l4state: expected one of {', '.join(dict.fromkeys(known))}")
    return name
