"""What a backend of entries asks of the kernel's conntrack: many entries at once made, changed, told, renewed, deleted; one answer for each.

Theory of operation: each request goes by an entry's name. Before an entry is deleted it is told once more, in the same group, for what it has counted
last. Some kernels delete none that a flow table has (EBUSY): then its lifetime is set to nothing, so that whoever asks for it next finds it over, and
the kernel ends it; that is what asking once more does.
Invariants: a lost answer is asked for again, TRIES times in all; an entry is told only as what it is asked by, by its original tuple.
Not here: which entries there are (conntrack_entries), what they say (entry).
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ctcore.ctnetlink import Ask
from ctcore.ctnetlink_pack import requests
from offload.entry import SLACK, Entry, Told, rows_for, told_of
from offload.netlink.conntrack import OFFLOAD, KernelConntrack, lease_of, removal_of
from offload.netlink.extack import DONE, LOST, Answer

TRIES = 6
SOON = 5.0  # s: a mirror asks about what is idle more often
ABSENT = Answer(errno.ENOENT)


class Deleted(NamedTuple):
    """answers: of each entry; told: as it was last, by original tuple; ended: numbers of those whose lifetime was ended, which others seem to have
    done."""

    answers: list[Answer]
    told: dict[bytes, Told]
    ended: set[int]


class KernelEntries(KernelConntrack):
    """Of the network namespace that this thread is in. lease: s that new, changed and renewed entries live. A context manager."""

    def __init__(self, hz: int, lease: float) -> None:
        super().__init__(hz)
        self.lease = lease

    def put(self, entries: Sequence[Entry], ask: Ask) -> list[Answer]:
        """Ask.CREATE, which names them, or Ask.CHANGE."""
        if not entries:
            return []
        rows = rows_for(entries, round(self.lease * self.hz))
        if ask is Ask.CREATE:
            for entry, name in zip(entries, requests(rows, self.hz, Ask.GET), strict=True):
                entry.name = name
        return self.ask(rows, ask, helper=False)

    def tell_of(self, entries: Sequence[Entry]) -> dict[bytes, Told]:
        """What there is by these names, by original tuple."""
        self.tell([entry.name for entry in entries])
        return self._heard()

    def _heard(self) -> dict[bytes, Told]:
        return {told.keys[0]: told for told in told_of(*self.told(), self.hz)}

    def entries(self) -> Iterator[Told]:
        """The whole list. Raises NetlinkError."""
        for rows, status in self.listed():
            yield from told_of(rows, status, self.hz)

    def refresh(self, entries: Sequence[Entry], now: int) -> list[int]:
        """Let them take what is told of them, and live on, though not for as long as their last packets have given them; an errno each."""
        answers = self.tell([entry.name for entry in entries])
        there = self._heard()
        errors: list[int] = []
        renewed: list[Entry] = []
        for entry, answer in zip(entries, answers, strict=True):
            told = there.get(entry.keys[0])
            if told is None or told.keys != entry.keys:
                errors.append(errno.ENOENT if answer is not LOST and answer.error == 0 else answer.error)
                continue
            errors.append(0)
            entry.takes(told, now)
            if not told.status & OFFLOAD and not max(self.lease / 4, SOON) <= told.left <= self.lease + SLACK:
                renewed.append(entry)
        self.tell([lease_of(entry.name, round(self.lease)) for entry in renewed])
        for entry in renewed:
            entry.left = self.lease
        return errors

    def unlabelled(self, entries: Sequence[Entry]) -> set[int]:
        """Numbers of new entries that the kernel has without their label, which it does not say. It does so to all or to none, so that one is looked
        at."""
        if not entries:
            return set()
        last = self.tell_of(entries[-1:]).get(entries[-1].keys[0])
        if last is None or last.label == entries[-1].label:
            return set()
        there = self.tell_of(entries)
        return {entry.number for entry in entries if (told := there.get(entry.keys[0])) is not None and told.label != entry.label}

    def delete(self, entries: Sequence[Entry]) -> Deleted:
        done = Deleted([LOST] * len(entries), {}, set())
        left = list(range(len(entries)))
        lost: set[int] = set()
        for again in range(TRIES):
            if not left:
                break
            parts: list[bytes] = []
            places: list[int] = []  # of the answers that count
            for at in left:
                name = entries[at].name
                parts += [lease_of(name, 0)] * (entries[at].number in done.ended) + [name, removal_of(name)]
                places.append(len(parts) - 1)
            found = self.tell(parts)
            done.told.update(self._heard())
            for at, place in zip(left, places, strict=True):
                # Not there the first time: nobody knows by whom. Later it was us.
                answer = DONE if again and found[place].error == errno.ENOENT else found[place]
                if answer is LOST:
                    lost.add(at)
                elif at in lost and answer.error not in (0, errno.EBUSY):
                    answer = LOST  # what was asked before may have been done
                done.answers[at] = answer
            left = [at for at in left if done.answers[at] is LOST or done.answers[at].error == errno.EBUSY]
            done.ended.update(entries[at].number for at in left if done.answers[at] is not LOST)
        return done
