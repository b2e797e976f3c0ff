"""What an administrator asks of the model: connections that fit a Filter, read, changed or deleted; evictions; counts of zones; expectations.

Changes follow ctnetlink: status bits are set and never taken back, and a fixed timeout stays as it is.
Not here: the filters' fields and their checks (ctcore.filter), the packets' way (tracker).
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ctcore.config import TICKS_LIMIT, Config, whole
from ctcore.errors import ConfigError
from ctcore.filter import ALL_LABELS, ALL_MARKS, CHANGEABLE, Filter, Network
from ctcore.model.conn import Conn, Key
from ctcore.model.expectations import Expectation, ExpectationRow, Expectations
from ctcore.model.zones import Zones, zone_of
from ctcore.types import CONN_DTYPE, EVICTION_DTYPE, Change, Dir, End, Status

PREFIXES = {Dir.ORIG: "", Dir.REPLY: "reply_"}
# What a bit that an administrator sets is told as.
TOLD: dict[int, int] = {
    Status.SEEN_REPLY: Change.CHANGE_REPLY,
    Status.ASSURED: Change.CHANGE_ASSURED,
    Status.FIXED_TIMEOUT: Change.CHANGE_TIMEOUT,
}
LONGEST_EXPECTATION = (1 << 31) - 1  # ticks


def fits(filter: Filter, conn: Conn) -> bool:
    """Is the connection one of those asked for?"""
    return (
        filter.zone in (None, zone_of(conn))
        and filter.status & ~conn.status == 0
        and filter.not_status & conn.status == 0
        and (filter.mark is None or (filter.mark ^ conn.mark) & filter.mark_mask == 0)
        and (filter.label is None or (filter.label ^ conn.label) & filter.label_mask == 0)
        and all(_fits_key(filter, conn.key[d], d) for d in Dir)
    )


def _fits_key(filter: Filter, key: Key, d: int) -> bool:
    source, destination = filter.networks()[d]
    given = filter.reply if d else filter.original
    families = {network.version for pair in filter.networks() for network in pair if network} | {filter.family} - {None}
    return (
        (given is None or given == key.raw())
        and families <= {key.family}
        and filter.proto in (None, key.proto)
        and getattr(filter, PREFIXES[Dir(d)] + "sport") in (None, key.sport)
        and getattr(filter, PREFIXES[Dir(d)] + "dport") in (None, key.dport)
        and _within(key.src, key.family, source)
        and _within(key.dst, key.family, destination)
    )


def _within(address: bytes, family: int, network: Network | None) -> bool:
    return network is None or ipaddress.ip_address(address[: 4 if family == 4 else 16]) in network


def masked(old: int, value: int, mask: int) -> int:
    """The bits of the mask give way to the value's, all of which are set."""
    return value | old & ~mask


@dataclass(frozen=True)
class Amendment:
    """What update() does to each connection; None: nothing."""

    mark: int | None
    mark_mask: int
    label: int | None
    label_mask: int
    timeout: int | None  # seconds
    status: int  # bits to set

    def check(self, hz: int) -> None:
        """Raise ConfigError for what cannot be."""
        numbers: list[tuple[str, int | None, int, str]] = [
            ("mark", self.mark, ALL_MARKS, ""),
            ("label", self.label, ALL_LABELS, ""),
            ("timeout", self.timeout, TICKS_LIMIT // hz, " whole seconds"),
            ("mark_mask", None if self.mark is None else self.mark_mask, ALL_MARKS, ""),
            ("label_mask", None if self.label is None else self.label_mask, ALL_LABELS, ""),
        ]
        for name, value, most, unit in numbers:
            if value is not None:
                whole(name, value, 0, most, unit)
        if whole("status", self.status, 0, 0xFFFF) & ~CHANGEABLE:
            raise ConfigError(f"status {self.status:#x}: expected bits of seen-reply, assured and fixed-timeout: Linux lets no others be set")


class Administration:
    """The part of ModelTracker that no packet passes."""

    config: Config
    _conns: dict[int, Conn]
    _counters: dict[str, int]
    _evictions: list[Any]
    _expectations: Expectations
    _zones: Zones

    if TYPE_CHECKING:  # what the other part has

        @property
        def _tick(self) -> int: ...
        def _left(self, conn: Conn) -> int: ...
        def _report(self, conn: Conn) -> None: ...
        def _destroy(self, conn: Conn, end: int) -> None: ...

    def select(self, filter: Filter) -> np.ndarray:
        chosen = self._chosen(filter)
        snapshot = np.zeros(len(chosen), dtype=CONN_DTYPE)
        for record, conn in zip(snapshot, chosen, strict=True):
            conn.store(record, self._left(conn))
        return snapshot

    def conns(self) -> np.ndarray:
        return self.select(Filter())

    def conn(self, ordinal: int) -> np.ndarray:
        return self._snapshot(self._conn(ordinal))

    def offsets(self, ordinal: int) -> tuple[tuple[int, int, int], ...]:
        ext = self._conn(ordinal).ext
        return tuple((a.position, a.before, a.after) for a in ext.adjust) if ext else ((0, 0, 0), (0, 0, 0))

    def _snapshot(self, conn: Conn) -> np.ndarray:
        record = np.zeros(1, dtype=CONN_DTYPE)
        conn.store(record[0], self._left(conn))
        return record

    def delete(self, filter: Filter) -> int:
        chosen = self._chosen(filter)
        for conn in chosen:
            self._destroy(conn, End.END_FLUSHED)
        return len(chosen)

    def flush(self, filter: Filter | None = None) -> int:
        return self.delete(Filter() if filter is None else filter)

    def update(
        self,
        filter: Filter,
        *,
        mark: int | None = None,
        mark_mask: int = ALL_MARKS,
        label: int | None = None,
        label_mask: int = ALL_LABELS,
        timeout: int | None = None,
        status: int = 0,
    ) -> int:
        asked = Amendment(mark, mark_mask, label, label_mask, timeout, status)
        chosen = self._chosen(filter)
        asked.check(self.config.hz)
        return sum(self._amend(conn, asked) for conn in chosen)

    def _amend(self, conn: Conn, asked: Amendment) -> bool:
        """False, and nothing has changed, if a timeout is to be set that is fixed. A timeout of 0 ends the connection."""
        if asked.timeout is not None:
            if conn.has(Status.FIXED_TIMEOUT):
                return False
            ticks = asked.timeout * self.config.hz
            conn.changes |= Change.CHANGE_TIMEOUT if self._left(conn) != ticks else 0
            conn.deadline = self._tick + ticks
            if ticks == 0:
                self._destroy(conn, End.END_TIMEOUT)
                self._counters["expired"] += 1
                return True
        for bit, change in TOLD.items():
            if asked.status & bit and not conn.has(bit):
                conn.status |= bit
                conn.changes |= change
        if asked.mark is not None:
            self._put_mark(conn, asked.mark, asked.mark_mask)
        if asked.label is not None:
            self._put_label(conn, asked.label, asked.label_mask)
        self._report(conn)
        return True

    def set_mark(self, ordinal: int, mark: int, mask: int = ALL_MARKS) -> None:
        conn = self._conn(ordinal)
        self._put_mark(conn, whole("mark", mark, 0, ALL_MARKS), whole("mask", mask, 0, ALL_MARKS))
        self._report(conn)

    def set_label(self, ordinal: int, label: int, mask: int = ALL_LABELS) -> None:
        conn = self._conn(ordinal)
        self._put_label(conn, whole("label", label, 0, ALL_LABELS), whole("mask", mask, 0, ALL_LABELS))
        self._report(conn)

    def _put_mark(self, conn: Conn, mark: int, mask: int) -> None:
        value = masked(conn.mark, mark, mask)
        conn.changes |= Change.CHANGE_MARK if conn.mark != value else 0
        conn.mark = value

    def _put_label(self, conn: Conn, label: int, mask: int) -> None:
        value = masked(conn.label, label, mask)
        conn.changes |= Change.CHANGE_LABEL if conn.label != value else 0
        conn.label = value

    def evictions(self) -> np.ndarray:
        taken, self._evictions = self._evictions, []
        return np.array(taken, dtype=EVICTION_DTYPE)

    @property
    def evictions_lost(self) -> int:
        return self._counters["evictions_lost"]

    def zone_counts(self) -> dict[int, int]:
        return {zone: count for zone, count in sorted(self._zones.counts.items()) if count}

    def _chosen(self, filter: Filter) -> list[Conn]:
        """Oldest first."""
        if not isinstance(filter, Filter):
            raise ConfigError(f"filter = {filter!r}: expected a Filter")
        return [conn for conn in self._conns.values() if fits(filter, conn)]

    def _conn(self, ordinal: int) -> Conn:
        ordinal = whole("connection", ordinal, 0, (1 << 63) - 1)
        if ordinal not in self._conns:
            raise ConfigError(f"connection {ordinal}: expected one that is in the table")
        return self._conns[ordinal]

    # --- expectations -----------------------------------------------------------------------------------------------------------------

    def expect(
        self,
        master: int,
        src: str,
        dst: str,
        proto: int,
        dport: int,
        *,
        sport: int = 0,
        zone: int = 0,
        timeout: float = 300.0,
        permanent: bool = False,
    ) -> None:
        self._conn(master)
        a, b = address_of(src), address_of(dst)
        for what, value, most in (("proto", proto, 255), ("dport", dport, 65535), ("sport", sport, 65535), ("zone", zone, 65535)):
            whole(f"expect: {what} =", value, 0, most)
        if a.version != b.version:
            raise ConfigError(f"expect: {src} and {dst}: expected addresses of one family")
        if not 0 <= timeout * self.config.hz <= LONGEST_EXPECTATION:
            raise ConfigError(f"expect: timeout = {timeout}: expected 0 to {LONGEST_EXPECTATION // self.config.hz} seconds")
        key = Key(a.packed.ljust(16, b"\0"), b.packed.ljust(16, b"\0"), sport, dport, zone, proto, a.version)
        deadline = self._tick + int(timeout * self.config.hz)
        expectation = Expectation(key, any_sport=sport == 0, master=master, deadline=deadline, permanent=permanent)
        if not self._expectations.add(expectation):
            raise ConfigError(f"expect: expected at most expect_max = {self.config.expect_max} expectations")

    def expectations(self) -> list[ExpectationRow]:
        return self._expectations.rows(self._tick, self.config.hz)


def address_of(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        raise ConfigError(f"address '{text}': expected an IPv4 or IPv6 address") from None
