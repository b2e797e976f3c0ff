"""Which entries a backend has in the kernel's conntrack, by number and by original tuple, and which of their directions are let by to it.

Theory of operation: an entry is known from when the kernel has it, or may have it, until it has not, or is somebody else's business. Its directions
are put into the bypass one by one, and taken out of it one by one.
Invariants: no two entries that are known have the same original tuple; what is in the bypass is a direction of one that is known.
Not here: what commands and the kernel make of entries (conntrack_entries), the kernel (kernel_entries).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from offload.backend import Bypass
from offload.entry import Entry, Told, bypass_key


class KnownEntries:
    """bypass: None: packets come to the kernel anyway."""

    def __init__(self, bypass: Bypass | None) -> None:
        self.bypass = bypass
        self._by_number: dict[int, Entry] = {}
        self._by_key: dict[bytes, Entry] = {}  # by the original tuple

    def __len__(self) -> int:
        return len(self._by_number)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._by_number.values())

    def __contains__(self, entry: Entry) -> bool:
        return self._by_number.get(entry.number) is entry

    def numbered(self, number: int) -> Entry | None:
        return self._by_number.get(number)

    def at(self, key: bytes) -> Entry | None:
        """The one of this original tuple, however it is translated."""
        return self._by_key.get(key)

    def told(self, told: Told) -> Entry | None:
        """Which one the kernel speaks of. One of another translation is another's."""
        entry = self._by_key.get(told.keys[0])
        return entry if entry is not None and entry.keys == told.keys else None

    def add(self, entry: Entry) -> None:
        self._by_number[entry.number] = self._by_key[entry.keys[0]] = entry

    def forget(self, entry: Entry) -> None:
        """One that is not known is not missed."""
        if self._by_number.pop(entry.number, None) is not None:
            del self._by_key[entry.keys[0]]

    def clear(self) -> None:
        self._by_number.clear()
        self._by_key.clear()

    # --- the bypass -------------------------------------------------------------------------------------------------------------------------

    def let_by(self, ways: Iterable[tuple[Entry, int]]) -> dict[int, int]:
        """Packets of these directions come to the kernel from now on: errors of the bypass by cookie."""
        new = [(entry, d) for entry, d in ways if not entry.let >> d & 1]
        if self.bypass is None or not new:
            return {}
        errors: dict[int, int] = {}
        for (entry, d), error in zip(new, self.bypass.put([bypass_key(entry.keys[d]) for entry, d in new]), strict=True):
            if error:
                errors[entry.cookie(d)] = error
            else:
                entry.let |= 1 << d
        return errors

    def leave(self, ways: Iterable[tuple[Entry, int]]) -> None:
        """Packets of these directions come to software again."""
        there = [(entry, d) for entry, d in ways if entry.let >> d & 1]
        if self.bypass is not None and there:
            self.bypass.remove([bypass_key(entry.keys[d]) for entry, d in there])
        for entry, d in there:
            entry.let &= ~(1 << d)

    def leave_all(self, entries: Iterable[Entry]) -> None:
        self.leave((entry, d) for entry in entries for d in range(2))
