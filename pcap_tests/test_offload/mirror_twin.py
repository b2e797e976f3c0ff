"""The mirror in plain Python: the readable twin of offload.mirror, slow and obvious. The same commands and answers for the same asks and replies.

What hardware should have of a flow is in its flags and tuples, what it has in `held`; a job leads from one to the other, one at a time. Lists are
lists here, and what is to be found is searched for. Not here: rings, links and bits, which is what the mirror is fast by; audits.
"""

from __future__ import annotations

import errno
import math
from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctcore.flow_changes import ANSWER_DTYPE, Answered, Asked, FlowFlag
from offload.mirror import Job
from offload.mirror_settings import MirrorSettings
from offload.records import COMMAND_DTYPE, Ctinfo, Op
from pcap_tests.test_offload.mirror_twin_row import Row

OF_JOB = {Job.ADD: Op.REPLACE, Job.DEL: Op.DESTROY, Job.STATS: Op.STATS}
FULL = (errno.ENOSPC, errno.ENOMEM)
FIRST = (Job.STATS, Job.DEL, Job.ADD)  # in which order commands are given
OUTCOMES = {
    0: "done", errno.EEXIST: "existed", errno.ENOENT: "missing", errno.ENOSPC: "full", errno.ENOMEM: "full", errno.EOPNOTSUPP: "unsupported",
}  # fmt: skip
MEMORY_MS, WORD, BUDGET, MOST_WORDS = 4000, 64, 4096, 4096


class MirrorTwin:
    """See offload.mirror.Mirror."""

    def __init__(self, flows: int, settings: MirrorSettings) -> None:
        self.size, self.settings, self.resets = flows, settings, -1
        self.rows: dict[int, Row] = {}
        self.rings: dict[Job, list[int]] = {job: [] for job in FIRST}  # rows whose commands hardware has not taken
        self.taken: list[int] = []  # rows whose commands hardware has, the one whose answer is due first before the others
        self.queue: list[int] = []  # rows for which room is made
        self.told: list[Any] = []
        self.tally: Counter[str] = Counter()
        self.outstanding = dict.fromkeys(FIRST, 0)
        self.used = self.epoch = self.hand = self.now = self.full_until = 0
        self.sweep: int | None = None
        self.offered: list[tuple[int, int]] = []

    # --- what is told ----------------------------------------------------------------------------------------------------------------

    def say(self, number: int, serial: int, what: Answered, *, used: int = 0, flags: int = 0) -> Any:
        one = np.zeros(1, dtype=ANSWER_DTYPE)
        one["row"], one["serial"], one["answer"], one["used"], one["flags"] = number, serial, what, used, flags
        self.told.append(one)
        return one

    def say_state(self, number: int) -> None:
        """Whether a flow is in hardware, and as what."""
        row = self.rows[number]
        flags = FlowFlag.FLOW_ESTABLISHED * (row.held[0] == Ctinfo.ESTABLISHED) | FlowFlag.FLOW_BIDIRECTIONAL * (len(row.installed) == 2)
        self.say(
            number, row.serial, Answered.INSTALLED if row.installed else Answered.REFUSED, used=row.due if row.due > self.now else 0, flags=flags
        )

    def answers(self) -> NDArray[Any]:
        told, self.told = self.told, []
        return np.concatenate(told) if told else np.zeros(0, dtype=ANSWER_DTYPE)

    # --- jobs ------------------------------------------------------------------------------------------------------------------------

    def enqueue(self, number: int, directions: set[int]) -> None:
        row = self.rows[number]
        if not row.queued and directions:
            self.rings[row.job].append(number)
        row.waits |= directions
        row.queued |= directions

    def begin(self, number: int, job: Job, directions: set[int], *, own: bool = False) -> None:
        """own: the flow table has not asked for it, and is told."""
        row = self.rows[number]
        row.job, row.waits, row.queued, row.lost, row.error, row.stuck = job, set(), set(), 0, 0, False
        self.enqueue(number, directions)
        if own:
            self.say(number, row.serial, Answered.PENDING)

    def install(self, number: int, *, own: bool) -> None:
        row = self.rows[number]
        if not row.needed:
            self.say_state(number)
        elif row.key[0]["proto"] not in (6, 17) and row.translated:
            row.error = errno.EOPNOTSUPP  # A4.32
            self.tally["refused_unsupported"] += 1
            self.say_state(number)
        elif own or row.installed or self.full_until <= self.now:
            self.begin(number, Job.ADD, row.needed, own=own)
        else:
            row.error = errno.ENOSPC
            self.tally["kept_out"] += 1
            self.back_off(row)
            self.say_state(number)
            self.make_room(number)

    def depart(self, number: int) -> None:
        """A flow that is going, and has no job."""
        row = self.rows[number]
        if row.installed | row.doubt:
            self.begin(number, Job.DEL, row.installed | row.doubt)
        else:
            self.say(number, row.serial, Answered.REMOVED)
            del self.rows[number]

    def call_off(self, number: int) -> None:
        """A flow that is going is not installed before, if hardware has not heard of that yet. The last of the ring takes its place."""
        row, ring = self.rows[number], self.rings[Job.ADD]
        if row.going and row.job == Job.ADD and row.waits == row.queued:
            ring[ring.index(number)] = ring[-1]
            ring.pop()
            row.doubt |= row.waits if row.lost else set()
            row.waits, row.queued = set(), set()
            self.tally["called_off"] += 1
            self.finish(number)

    def back_off(self, row: Row) -> None:
        longest = min(int(self.settings.backoff * 1e9) * (1 << row.tries), int(self.settings.backoff_most * 1e9))
        row.due = self.now + longest
        row.tries = min(row.tries + 1, 30)

    # --- room ------------------------------------------------------------------------------------------------------------------------

    def worth(self, row: Row) -> float:
        return float(row.rate) if self.settings.policy == "by-rate" else float(row.bytes)

    def least_worth(self, newcomer: int) -> int | None:
        """Rows are gone through by words of 64, from where the last search ended, until enough were looked at."""
        words, looked, best = (self.used + WORD - 1) // WORD, 0, None
        for _ in range(min(words, MOST_WORDS)):
            self.hand = self.hand if self.hand < words else 0
            for number in range(self.hand * WORD, self.hand * WORD + WORD):
                row = self.rows.get(number)
                if row is None or not row.installed or row.epoch != self.epoch:
                    continue
                looked += 1
                if row.job or row.going or row.leaving or row.fresh or number == newcomer:
                    continue
                best = number if best is None or self.worth(row) < self.worth(self.rows[best]) else best
            self.hand += 1
            if looked >= self.settings.look:
                break
        return best

    def make_room(self, newcomer: int) -> None:
        victim = None if self.settings.policy == "first-come" else self.least_worth(newcomer)
        row = self.rows[newcomer]
        if victim is None or self.worth(row) <= self.settings.clearly * self.worth(self.rows[victim]):
            self.tally["spared"] += 1
            return
        self.tally["evictions"] += 1
        other = self.rows[victim]
        other.leaving = True
        self.begin(victim, Job.DEL, other.installed | other.doubt, own=True)
        row.waiting, row.due = True, self.now + self.limit
        self.queue.append(newcomer)

    def wait_no_more(self, number: int) -> None:
        if self.rows[number].waiting:
            self.rows[number].waiting = False
            self.queue.remove(number)

    def give_room(self) -> None:
        if self.queue:
            number = self.queue[0]
            self.wait_no_more(number)
            self.install(number, own=True)

    @property
    def limit(self) -> int:
        return int(self.settings.reply_limit * 1e9)

    # --- asks ------------------------------------------------------------------------------------------------------------------------

    def feed(self, asks: NDArray[Any], now: int) -> None:
        self.now = max(self.now, now)
        for ask in asks:
            self.asked(ask)

    def asked(self, ask: Any) -> None:
        number, what = int(ask["row"]), int(ask["ask"])
        if number >= self.size or what not in set(Asked):
            self.tally["strange"] += 1
            return
        self.settle(number)
        if number not in self.rows:
            if what != Asked.INSTALL:
                self.say(number, ask["serial"], Answered.REMOVED if what == Asked.REMOVE else Answered.REFUSED)
                return
            self.rows[number] = Row(ask["key"].copy(), int(ask["conn"]), int(ask["serial"]), self.epoch, int(ask["bytes"]), self.ms)
            self.used = max(self.used, number + 1)
        elif self.rows[number].serial != ask["serial"]:
            self.tally["strange"] += 1
            return
        {Asked.INSTALL: self.asked_install, Asked.COUNTERS: self.asked_counters, Asked.REMOVE: self.asked_remove}[Asked(what)](number, ask)

    def asked_install(self, number: int, ask: Any) -> None:
        row = self.rows[number]
        if ask["bytes"] > row.bytes:
            self.measure(row, int(ask["bytes"]) - row.bytes)
        if row.going:
            self.tally["strange"] += 1
        elif row.job:
            self.tally["dropped_add"] += 1  # A3.21
        elif row.due > self.now:
            self.tally["held_back"] += 1
            self.say_state(number)
        else:
            self.wait_no_more(number)
            row.label, row.mark = ask["label"].copy(), int(ask["mark"])
            row.bidirectional |= bool(ask["flags"] & FlowFlag.FLOW_BIDIRECTIONAL)
            row.seen_reply |= bool(ask["flags"] & FlowFlag.FLOW_SEEN_REPLY)
            self.install(number, own=False)

    def asked_counters(self, number: int, ask: Any) -> None:
        row = self.rows[number]
        if row.job:
            self.tally["dropped_stats"] += 1
        elif not row.installed:
            self.say_state(number)
        else:
            self.begin(number, Job.STATS, {min(row.installed)})

    def asked_remove(self, number: int, ask: Any) -> None:
        row = self.rows[number]
        self.wait_no_more(number)
        if row.job:
            row.going = True
            self.tally["dropped_del"] += 1  # and begun when the other one ends
            self.call_off(number)
        elif row.due <= self.now or not row.going:
            row.going = True
            self.depart(number)
        else:
            self.say_state(number)  # hardware has refused that, and it is not time yet

    @property
    def ms(self) -> int:
        return self.now // 1_000_000 & 0xFFFFFFFF

    def measure(self, row: Row, more: int) -> None:
        """The rate forgets as e**(-t/4 s)."""
        passed = (self.ms - row.measured & 0xFFFFFFFF) / MEMORY_MS
        row.bytes += more
        row.rate = np.float32(float(row.rate) * math.exp(-min(passed, 60.0)) + more * 1000.0 / MEMORY_MS)
        row.measured = self.ms

    # --- replies -----------------------------------------------------------------------------------------------------------------------

    def replies(self, rows: NDArray[Any], now: int) -> None:
        self.now = max(self.now, now)
        for reply in rows:
            self.replied(reply)

    def replied(self, reply: Any) -> None:
        number, direction, serial = int(reply["cookie"]) >> 1 & 0xFFFFFFFF, int(reply["cookie"]) & 1, int(reply["cookie"]) >> 33
        row = self.rows.get(number)
        current = row is not None and row.epoch == self.epoch and serial == row.serial & 0x7FFFFFFF
        if row is not None and current and reply["op"] == Op.GONE:
            self.gone(number, direction, reply)
            return
        if row is None or not current or OF_JOB.get(row.job) != reply["op"] or direction not in row.waits - row.queued:
            self.tally["strays"] += 1
            return
        self.outstanding[row.job] -= 1
        row.waits.discard(direction)
        error = int(reply["error"])
        self.tally[f"{row.job.name.lower()}_{OUTCOMES.get(error, 'other')}"] += 1
        if row.job == Job.ADD:
            self.replied_add(row, direction, error)
        elif row.job == Job.DEL:
            self.replied_del(number, direction, reply)
        else:
            self.replied_stats(number, direction, reply)
        if not row.waits:
            self.finish(number)
        elif not row.waits - row.queued:
            self.taken.remove(number)
            self.call_off(number)

    def replied_add(self, row: Row, direction: int, error: int) -> None:
        if error in (0, errno.EEXIST):
            self.tally["accepted"] += error == 0 and not row.held[direction]
            self.tally["existed"] += error == errno.EEXIST
            self.hold(row, direction, row.wanted(direction))
            return
        row.doubt = row.doubt | {direction} if row.lost else row.doubt - {direction}
        row.error = min(error, 0x7FFF)
        kind = "full" if error in FULL else "unsupported" if error == errno.EOPNOTSUPP else "other"
        self.tally[f"refused_{kind}"] += 1
        if error in FULL:
            self.full_until = self.now + int(self.settings.probe * 1e9)

    def gone(self, number: int, direction: int, reply: Any) -> None:
        row = self.rows[number]
        if not row.held[direction]:
            self.tally["strays"] += 1
            return
        self.tally["withdrawn"] += 1
        self.counted_last(number, direction, reply)
        self.hold(row, direction, 0)
        if not row.job:
            self.say_state(number)

    def counted(self, number: int, direction: int, reply: Any) -> None:
        row, shared = self.rows[number], bool(reply["shared"])
        self.measure(row, int(reply["bytes"]))
        told = self.say(number, row.serial, Answered.COUNTED, used=int(reply["used"]), flags=0 if shared else FlowFlag.FLOW_SPLIT)
        told["packets"][0, 0 if shared else direction] = reply["packets"]
        told["bytes"][0, 0 if shared else direction] = reply["bytes"]

    def counted_last(self, number: int, direction: int, reply: Any) -> None:
        """What a rule that is gone had counted, if it is told."""
        row = self.rows[number]
        if reply["packets"] or reply["bytes"]:
            self.counted(number, direction, reply)
            if row.waits and not row.going:
                self.say(number, row.serial, Answered.PENDING)

    def replied_del(self, number: int, direction: int, reply: Any) -> None:
        row, error = self.rows[number], int(reply["error"])
        if error not in (0, errno.ENOENT):
            self.tally["undestroyed"] += 1
            row.error, row.stuck = min(error, 0x7FFF), True
            return
        self.counted_last(number, direction, reply)
        self.tally["missing" if error else "destroyed"] += 1
        self.full_until = 0
        self.hold(row, direction, 0)

    def replied_stats(self, number: int, direction: int, reply: Any) -> None:
        """One direction after the other, unless one counter serves both."""
        row, error, shared = self.rows[number], int(reply["error"]), bool(reply["shared"])
        if error == errno.ENOENT:
            self.tally["missing"] += 1
            self.hold(row, direction, 0)
        elif error:
            self.tally["uncounted"] += 1
        if not error:
            self.counted(number, direction, reply)
        elif row.installed:
            self.say(number, row.serial, Answered.COUNTED)
        if direction == 0 and row.held[1] and (error or not shared):
            if not row.going:
                self.say(number, row.serial, Answered.PENDING)
            self.enqueue(number, {1})

    @staticmethod
    def hold(row: Row, direction: int, ctinfo: int) -> None:
        row.held[direction] = ctinfo
        row.doubt.discard(direction)

    # --- the end of a job ----------------------------------------------------------------------------------------------------------------

    def finish(self, number: int) -> None:
        row = self.rows[number]
        job, row.job, row.due, row.fresh = row.job, Job.NONE, 0, False
        if number in self.taken:
            self.taken.remove(number)
        if job == Job.ADD:
            self.added(number)
        elif job == Job.DEL:
            self.destroyed(number)
        elif row.going:
            self.depart(number)
        elif not row.installed:
            self.say_state(number)
        elif row.tries:
            row.due = self.now + int(self.settings.backoff * 1e9)

    def added(self, number: int) -> None:
        row = self.rows[number]
        row.evicted, row.fresh = False, True
        if row.error:
            self.back_off(row)
        else:
            row.tries = 0
        if row.going:
            self.depart(number)
        elif row.doubt:
            self.begin(number, Job.DEL, set(row.doubt), own=True)
            row.error = errno.ETIMEDOUT
        else:
            self.say_state(number)
            if row.error in FULL and not row.installed:
                self.make_room(number)

    def destroyed(self, number: int) -> None:
        row = self.rows[number]
        left, row.leaving = row.leaving, False
        if row.stuck:
            self.back_off(row)
            self.say_state(number)
        elif row.going:
            self.depart(number)
            if number not in self.rows:
                self.give_room()
        else:
            if left:
                row.evicted = True
                self.say(number, row.serial, Answered.COUNTED, used=self.now)  # nobody knows what hardware saw last
            self.back_off(row)
            self.say_state(number)
            if left:
                self.give_room()

    # --- time, resets, commands ------------------------------------------------------------------------------------------------------------

    def advance(self, now: int) -> None:
        self.now = max(self.now, now)
        for _ in range(BUDGET):
            if not self.taken or self.rows[self.taken[0]].due > self.now:
                break
            self.overdue(self.taken[0])
        for _ in range(BUDGET):
            if self.sweep is None:
                break
            if self.sweep >= self.used:
                self.sweep = None
                break
            self.settle(self.sweep)
            self.sweep += 1

    def overdue(self, number: int) -> None:
        row = self.rows[number]
        late = row.waits - row.queued
        self.taken.remove(number)
        self.outstanding[row.job] -= len(late)
        self.tally["lost"] += len(late)
        self.tally[f"{row.job.name.lower()}_lost"] += len(late)
        row.lost = min(row.lost + 1, 255)
        if row.job == Job.DEL or row.queued or (row.job == Job.ADD and row.lost < self.settings.tries):
            self.enqueue(number, late)
            self.call_off(number)
            return
        row.waits = set()
        if row.job == Job.ADD:
            row.doubt |= late
            row.error = errno.ETIMEDOUT
        else:
            self.say(number, row.serial, Answered.COUNTED)
        self.finish(number)

    def reset(self, now: int) -> None:
        self.now = max(self.now, now)
        self.epoch += 1
        self.rings, self.outstanding = {job: [] for job in FIRST}, dict.fromkeys(FIRST, 0)
        self.taken, self.queue, self.full_until, self.sweep = [], [], 0, 0
        self.tally["resets"] += 1

    def settle(self, number: int) -> None:
        """A flow that does not know of hardware's last reset is put back, or gone."""
        row = self.rows.get(number)
        if row is None or row.epoch == self.epoch:
            return
        had = bool(row.installed)
        row.epoch, row.held, row.job, row.waits, row.queued, row.doubt = self.epoch, [0, 0], Job.NONE, set(), set(), set()
        row.error = row.tries = row.due = 0
        row.leaving = row.waiting = row.evicted = False
        if row.going:
            self.depart(number)
            return
        if had:
            self.say_state(number)
        self.install(number, own=True)

    @property
    def waiting(self) -> int:
        return sum(len(self.rows[number].queued) for ring in self.rings.values() for number in ring)

    def next(self, most: int) -> list[tuple[int, int]]:
        """Rows and directions whose commands come next: counters, removals, installs (A3.20); the latter two within the window."""
        kinds = {job: [(number, way) for number in ring for way in sorted(self.rows[number].queued)] for job, ring in self.rings.items()}
        room = max(0, self.settings.window - self.outstanding[Job.ADD] - self.outstanding[Job.DEL])
        return (kinds[Job.STATS] + (kinds[Job.DEL] + kinds[Job.ADD])[:room])[:most]

    def commands(self, most: int = BUDGET) -> NDArray[Any]:
        self.offered = self.next(most)
        made = np.zeros(len(self.offered), dtype=COMMAND_DTYPE)
        for c, (number, direction) in zip(made, self.offered, strict=True):
            row = self.rows[number]
            c["match"], other = row.key[direction], row.key[1 - direction]
            c["to"] = other
            c["to"]["src"], c["to"]["dst"], c["to"]["sport"], c["to"]["dport"] = other["dst"], other["src"], other["dport"], other["sport"]
            c["cookie"], c["conn"] = ((row.serial & 0x7FFFFFFF) << 32 | number) << 1 | direction, row.conn
            c["label"], c["mark"], c["op"], c["ctinfo"], c["dir"] = row.label, row.mark, OF_JOB[row.job], row.wanted(direction), direction
        return made

    def sent(self, n: int, now: int) -> None:
        self.now = max(self.now, now)
        for number, direction in self.offered[:n]:
            row = self.rows[number]
            row.queued.discard(direction)
            if not row.queued:
                self.rings[row.job].remove(number)
            self.outstanding[row.job] += 1
            self.tally[f"commands_{row.job.name.lower()}"] += 1
            if number in self.taken:
                self.taken.remove(number)
            row.due = self.now + self.limit
            self.taken.append(number)
        self.offered = []

    def counters(self) -> dict[str, int]:
        """As Mirror has them; what never happened is not in it."""
        now = [row for row in self.rows.values() if row.epoch == self.epoch]
        told = {
            **self.tally,
            "flows": len(self.rows),
            "rules": sum(len(row.installed) for row in now),
            "offloaded": sum(bool(row.installed) for row in now),
        }
        jobs = {f"pending_{job.name.lower()}": sum(row.job == job for row in now) for job in OF_JOB}
        return {**told, **jobs, "outstanding": sum(self.outstanding.values()), "queued": self.waiting}
