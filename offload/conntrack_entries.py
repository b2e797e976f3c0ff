"""A Backend out of the kernel's conntrack: each connection is one entry, which act_ct finds established and offloads; for rules that stand in TC.

    REPLACE -> an entry is made, or changed       DESTROY -> it is deleted       STATS -> it is told, and what it has counted since it was told last

Theory of operation: the first REPLACE makes the entry, with both tuples; that of the other direction says that both ways are used. With its last
direction the entry goes. A direction that is there is in the bypass as well, so that its packets come to the kernel: put in behind the entry, and
taken out ahead of it. Commands are asked in groups and done when submit() returns; what is doubtful is looked up, asked again, and in the end not
answered. What others do is heard of: an entry that is destroyed, or whose TCP is about to end, leaves the bypass, and the mirror is told (Op.GONE)
with all that was counted, so that software has the connection again, and may hand it over anew. When the last one was destroyed by others, hardware
has begun anew (resets), which is told behind that. All are taken out some at a time (empty), and each is told as one that has gone.
Invariants: each command has one reply, but for those before a reset, and where nobody can find out what became of it; an entry that is the kernel's
own is changed only where a connection of ours has its original tuple. Order: no key is in the bypass whose entry is not known here; it is put in when
the kernel has answered that the entry is there, and is out before the kernel is asked to delete it or to make it anew, whoever wants that: a packet
that is let by and finds no entry is a new connection's to the rules, or the host's own, which may answer it with a reset.
Errors (A8): those of the kernel as they are, with a sentence (`refusal`); another connection's tuple EBUSY; no room here ENOSPC, in the kernel
ENOMEM; what a mirror should not try again soon (protocol, label, zone) EOPNOTSUPP.
Not here: entries (entry), which there are (known_entries), lists of them (entry_lists), asking (kernel_entries), sentences (entry_refusals), threads:
all calls are one thread's.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

from numpy.typing import NDArray

from ctcore.ctnetlink import Ask
from ctcore.errors import ConfigError
from offload.backend import Bypass
from offload.entry import LABEL_NONE, Command, Entry, Told, Wish, commands_of, in_one_go, told_of, turned
from offload.entry_lists import held_of, states_of
from offload.entry_refusals import ENDED, NO_LABELS, OTHERS_PLACE, SAME_PACKETS, TAKEN, explained, impossible, lacking
from offload.kernel_entries import TRIES, KernelEntries
from offload.known_entries import KnownEntries
from offload.netlink.channel import NetlinkError
from offload.netlink.conntrack import count_from_now
from offload.netlink.conntrack_events import ConntrackEvents
from offload.netlink.extack import LOST, Answer
from offload.records import Op
from offload.replying import Replies, not_let_by

MOST_LEASE = 86_400
COMPARE_EVERY = 5_000_000_000  # ns at least, where news are lost again and again: the whole list takes its time
AT_ONCE = 4096  # entries that are deleted in one go


class ConntrackEntries:
    """See offload.backend. Of the network namespace that this thread is in now. A context manager.

    hz: ticks a second of the rows handed to ctnetlink; lease: s that an entry without packets lives when nobody asks about it any more; most:
    connections there is room for; bypass: what lets packets by to the kernel, None: they come to it anyway. counting: whether entries have counters,
    and whether that had to be set; hears: whether the kernel tells what others do, else it is found when counters are asked for. Raises ConfigError,
    PermissionError without CAP_NET_ADMIN, OSError.
    """

    def __init__(self, *, hz: int = 250, lease: float = 300.0, most: int = 1 << 22, bypass: Bypass | None = None) -> None:
        if not (1 <= lease <= MOST_LEASE and 0 < most <= 1 << 32):
            raise ConfigError(f"offload: lease {lease} s, {most} connections: expected 1 to {MOST_LEASE} s, and 1 to {1 << 32} connections")
        self.hz, self.lease, self.most, self.bypass = hz, lease, most, bypass
        self.resets = 0
        self.missed = 0  # entries of ours that others have ended, as heard of
        self.counting = count_from_now()
        self.known = KnownEntries(bypass)
        self._replies = Replies()
        self._news: list[tuple[bool, Told]] = []  # of entries that were known: whether it is destroyed, and what it was last
        self._compare_at = 0  # ns
        self._emptied = self._begins = False  # others have ended the last one; and that has been told one by one
        self._ops: dict[int, Callable[[NDArray[Any], int], None]] = {Op.REPLACE: self._replace, Op.DESTROY: self._destroy, Op.STATS: self._stats}
        with ExitStack() as stack:
            self.kernel = stack.enter_context(KernelEntries(hz, lease))
            self.events = stack.enter_context(ConntrackEvents(self.kernel.channel.socket, hz))
            self.hears = self.events.told
            stack.pop_all()

    @property
    def lacks(self) -> list[str]:
        """What the kernel does not do for these entries, a sentence each."""
        return lacking(self.hears, self.counting)

    def __enter__(self) -> ConntrackEntries:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing of ours stays, neither in the kernel nor in the bypass. Raises NetlinkError if some does."""
        try:
            for _ in self.empty(0):
                pass
        finally:
            self.events.close()
            self.kernel.channel.close()

    # --- a backend --------------------------------------------------------------------------------------------------------------------------

    def submit(self, commands: NDArray[Any], now: int) -> int:
        """None is taken from when others have ended all entries until that is told as a reset."""
        taken = 0
        for op, some in in_one_go(commands):
            self._heed(now)
            if self._emptied or self._begins:
                break
            self._ops[op](some, now)
            taken += len(some)
        return taken

    def replies(self, now: int) -> NDArray[Any]:
        if self._begins:
            self._begins = False
            self._replies.clear()
            self.resets += 1
        self._heed(now)
        self._begins, self._emptied = self._emptied, False
        return self._replies.taken()

    @property
    def left(self) -> int:
        """Entries."""
        return len(self.known)

    def empty(self, now: int) -> Iterator[None]:
        """See offload.threaded. What does not go is tried again as long as less is left; else raises NetlinkError."""
        todo = whole = list(self.known)
        self.known.leave_all(todo)
        while todo:
            there: dict[Entry, Answer] = {}
            for at in range(0, len(todo), AT_ONCE):
                some = [entry for entry in todo[at : at + AT_ONCE] if entry in self.known]  # others may end some meanwhile
                for entry, answer in zip(some, self._delete(some, now), strict=True):
                    if answer.error in (0, errno.ENOENT):
                        self._gone(entry)
                    else:
                        there[entry] = answer
                yield
            if len(there) == len(todo):
                answer = next(iter(there.values()))
                raise NetlinkError(f"{len(there)} of {len(whole)} entries are in conntrack still, or may be: {answer.told()}", answer.error)
            todo = list(there)

    def held(self) -> NDArray[Any]:
        """As the kernel has them. Raises NetlinkError."""
        return held_of(self._listed())

    def states(self) -> NDArray[Any]:
        """As the kernel has them: see entry_lists.states_of(). Raises NetlinkError."""
        return states_of(self._listed())

    def both(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """held() and states() of one moment, by one list. Raises NetlinkError."""
        listed = list(self._listed())
        return held_of(listed), states_of(listed)

    def refusal(self, conn: int) -> str:
        """What the kernel said when it refused a connection's entry last; "" if nothing is known."""
        return self._replies.refusal(conn)

    # --- REPLACE ----------------------------------------------------------------------------------------------------------------------------

    def _replace(self, commands: NDArray[Any], now: int) -> None:
        wishes: dict[int, Wish] = {}
        keys: set[bytes] = set()  # of those that are new
        for command in commands_of(commands):
            number, d = command.cookie >> 1, command.cookie & 1
            wish = wishes.get(number)
            entry = wish.entry if wish else self.known.numbered(number)
            answer = self._refused(command, entry, keys)
            if answer is not None:
                self._replies.refuse(command.cookie, command.conn, answer)
                continue
            if entry is None:
                entry = Entry(command, self.lease, now)
                keys.add(entry.keys[0])
                wish = wishes[number] = Wish(entry, None, [])
            elif wish is None:
                if (entry.ctinfo[d], entry.conn) == (command.ctinfo, command.conn) and not entry.doubtful:
                    self._replies.say(command.cookie, Op.REPLACE, errno.EEXIST)  # A4.36
                    continue
                wish = wishes[number] = Wish(entry, entry.meant(), [])
            entry.ctinfo[d], entry.conn, entry.mark, entry.label = command.ctinfo, command.conn, command.mark, command.label
            wish.cookies.append(command.cookie)
        self._make(list(wishes.values()), now)

    def _refused(self, command: Command, entry: Entry | None, keys: set[bytes]) -> Answer | None:
        """Why a command is not asked of the kernel. keys: of entries that are about to be made."""
        if entry is not None:
            return None if entry.means(command) else OTHERS_PLACE
        if (answer := impossible(command)) is not None:
            return answer
        if len(self.known) + len(keys) >= self.most:
            return Answer(errno.ENOSPC, f"there is room for {self.most} connections")
        orig = turned(command.to) if command.cookie & 1 else command.match
        return SAME_PACKETS if orig in keys or self.known.at(orig) is not None else None

    def _make(self, wishes: Sequence[Wish], now: int) -> None:
        """Asked until nothing is doubtful, but not forever."""
        todo = [(wish, Ask.CREATE if wish.before is None else Ask.CHANGE) for wish in wishes]
        done: list[tuple[Wish, Ask]] = []
        lost: set[int] = set()
        ended: list[Wish] = []
        stray: list[Entry] = []  # new ones that were refused, and may be there all the same
        for _ in range(TRIES):
            again: list[tuple[Wish, Ask]] = []
            strange: list[tuple[Wish, Ask]] = []
            for ask in (Ask.CREATE, Ask.CHANGE):
                some = [wish for wish, how in todo if how is ask]
                if ask is Ask.CREATE:  # of some the entry may have been there, and its packets been let by
                    self.known.leave_all([wish.entry for wish in some])
                for wish, answer in zip(some, self.kernel.put([wish.entry for wish in some], ask), strict=True):
                    if answer is LOST:
                        again.append((wish, ask))
                        lost.add(wish.entry.number)
                    elif not answer.error:
                        done.append((wish, ask))
                    elif (ask, answer.error) in ((Ask.CREATE, errno.EEXIST), (Ask.CHANGE, errno.EBUSY)):
                        strange.append((wish, ask))
                    elif (ask, answer.error) == (Ask.CHANGE, errno.ENOENT):
                        if wish.certain:
                            ended.append(wish)
                        else:
                            again.append((wish, Ask.CREATE))
                    else:
                        self._fail(wish, explained(wish.entry, ask, answer), there=ask is Ask.CHANGE)
                        stray += [wish.entry] if wish.entry.number in lost and ask is Ask.CREATE else []
            todo = again + self._look(strange, now)
            if not todo:
                break
        for wish, _ in todo:  # not answered; whoever wants it destroyed is not told that it is not there
            wish.entry.doubtful = True
            self.known.add(wish.entry)
        self._delete(stray, now)
        self._made(done, now)
        self._missed(ended, now)

    def _missed(self, ended: Sequence[Wish], now: int) -> None:
        """Others have ended these entries. None is made anew, for news of the first one would be taken for its own; they say what it had counted."""
        for wish in ended:
            self._fail(wish, ENDED, there=True)
        if ended:
            self._heed(now)
        for wish in ended:
            if wish.entry in self.known:
                self._gone(wish.entry)

    def _look(self, strange: Sequence[tuple[Wish, Ask]], now: int) -> list[tuple[Wish, Ask]]:
        """What is in the way: an entry of the same connection is changed, one that translates it otherwise is replaced, and another one stays."""
        if not strange:
            return []
        there = self.kernel.tell_of([wish.entry for wish, _ in strange])
        again: list[tuple[Wish, Ask]] = []
        others: list[Wish] = []
        for wish, ask in strange:
            entry, told = wish.entry, there.get(wish.entry.keys[0])
            if told is not None and told.keys == entry.keys:
                entry.takes(told, now)
                if wish.before is None:
                    entry.forgive()
                again.append((wish, Ask.CHANGE))
            elif told is not None:
                others.append(wish)
            elif ask is Ask.CHANGE:
                again.append((wish, Ask.CHANGE))
            else:
                self._fail(wish, TAKEN, there=False)
        for wish, answer in zip(others, self._delete([wish.entry for wish in others], now), strict=True):
            if answer.error in (0, errno.ENOENT):
                again.append((wish, Ask.CREATE))
            else:
                self._fail(wish, TAKEN, there=False)
        return again

    def _made(self, done: Sequence[tuple[Wish, Ask]], now: int) -> None:
        """The kernel has these entries: now packets may come to it."""
        bad = self.kernel.unlabelled([wish.entry for wish, ask in done if ask is Ask.CREATE and wish.entry.label != LABEL_NONE])
        lacking = [wish for wish, _ in done if wish.entry.number in bad]
        self._delete([wish.entry for wish in lacking], now)
        for wish in lacking:
            self._fail(wish, NO_LABELS, there=False)
        fine = [wish for wish, _ in done if wish.entry.number not in bad]
        for wish in fine:
            wish.entry.doubtful = False
            self.known.add(wish.entry)
        errors = self.known.let_by([(wish.entry, d) for wish in fine for d in wish.entry.there])
        for wish in fine:
            entry = wish.entry
            self._replies.accept(entry.conn)
            for cookie in wish.cookies:
                error = errors.get(cookie)
                if error is None:
                    self._replies.say(cookie, Op.REPLACE)
                    continue
                entry.ctinfo[cookie & 1] = 0
                self._replies.refuse(cookie, entry.conn, not_let_by(error))
            for d in entry.there:  # of one that was let by until its entry was made anew
                if errors.get(entry.cookie(d)):
                    self._end_direction(entry, d)
        empty = [wish.entry for wish in fine if not wish.entry.there]
        self._delete(empty, now)
        for entry in empty:
            self.known.forget(entry)

    def _fail(self, wish: Wish, answer: Answer, *, there: bool) -> None:
        """there: the entry is as it was before; else the kernel has none."""
        for cookie in wish.cookies:
            self._replies.refuse(cookie, wish.entry.conn, answer)
        if wish.before is not None:
            wish.entry.ctinfo, wish.entry.conn, wish.entry.mark, wish.entry.label = wish.before
            if not there:
                self._gone(wish.entry)

    # --- DESTROY, STATS -------------------------------------------------------------------------------------------------------------------

    def _destroy(self, commands: NDArray[Any], now: int) -> None:
        """What has been counted last is told with it."""
        going: dict[Entry, list[int]] = {}  # directions
        for cookie in commands["cookie"].tolist():
            entry, d = self.known.numbered(cookie >> 1), cookie & 1
            if entry is None or not entry.ctinfo[d]:
                self._replies.say(cookie, Op.DESTROY, errno.ENOENT)
            else:
                going.setdefault(entry, []).append(d)
        self.known.leave((entry, d) for entry, ways in going.items() for d in ways)
        last = [entry for entry, ways in going.items() if len(entry.there) == len(ways)]
        ended = {entry.number: answer for entry, answer in zip(last, self._delete(last, now), strict=True)}
        self._take(self.kernel.tell_of([entry for entry in going if entry.number not in ended]), now)
        for entry, ways in going.items():
            answer = ended.get(entry.number, Answer(0))
            if answer is LOST:
                entry.doubtful = True
                continue
            error = 0 if answer.error == errno.ENOENT else answer.error
            for d in ways:
                packets, octets = (0, 0) if error else entry.untold(d)
                self._replies.say(entry.cookie(d), Op.DESTROY, answer.error, used=entry.used[d], packets=packets, octets=octets)
                entry.ctinfo[d] = entry.ctinfo[d] if error else 0
            if error:  # it is there still
                self.known.let_by([(entry, d) for d in ways])
            elif not entry.there:
                self.known.forget(entry)

    def _delete(self, entries: Sequence[Entry], now: int) -> list[Answer]:
        """Of each what became of it, when it has taken what it had counted. Nothing of them is let by any more."""
        if not entries:
            return []
        self.known.leave_all(entries)
        done = self.kernel.delete(entries)
        self._take(done.told, now)
        if done.ended:
            self._hear(done.ended)
        return done.answers

    def _stats(self, commands: NDArray[Any], now: int) -> None:
        """A6.50: what has been counted since it was told last. What was asked for one direction serves the other, too."""
        known: list[tuple[Entry, int]] = []
        asked: dict[int, Entry] = {}
        for cookie in commands["cookie"].tolist():
            entry, d = self.known.numbered(cookie >> 1), cookie & 1
            if entry is None or not entry.ctinfo[d]:
                self._replies.say(cookie, Op.STATS, errno.ENOENT)
                continue
            known.append((entry, d))
            if not entry.known(d, now):
                asked[entry.number] = entry
        errors = dict(zip(asked, self.kernel.refresh(list(asked.values()), now), strict=True))
        for entry in asked.values():
            entry.owed = -1
        for entry, d in known:
            error = errors.get(entry.number, 0)
            if error:
                self._replies.say(entry.cookie(d), Op.STATS, error)
                if error == errno.ENOENT:
                    entry.ctinfo[d] = 0
                continue
            entry.owed = 1 - d if entry.owed == -1 and entry.number in asked else -1
            packets, octets = entry.untold(d)
            self._replies.say(entry.cookie(d), Op.STATS, used=entry.used[d], packets=packets, octets=octets, shared=not entry.counted)
        for number, entry in asked.items():
            if errors[number] == errno.ENOENT or entry.over:
                self._gone(entry)

    # --- what is there ----------------------------------------------------------------------------------------------------------------------

    def _take(self, there: dict[bytes, Told], now: int) -> None:
        """What the kernel has told of entries that are known."""
        for told in there.values():
            entry = self.known.told(told)
            if entry is not None:
                entry.takes(told, now)

    def _listed(self) -> Iterator[tuple[Entry, Told]]:
        """Ours of the kernel's list."""
        for told in self.kernel.entries():
            entry = self.known.at(told.keys[0])
            if entry is not None:
                yield entry, told

    # --- what others do -------------------------------------------------------------------------------------------------------------------

    def _hear(self, ours: Collection[int] = ()) -> None:
        """Put by what news there are of entries that are known. ours: numbers of those that we have ended."""
        for over, rows, status in self.events.events():
            for told in told_of(rows, status, self.hz):
                entry = self.known.told(told)
                if entry is not None and entry.number not in ours and (over or told.over):
                    self._news.append((over, told))

    def _heed(self, now: int) -> None:
        """Entries that others have ended, and those whose end the kernel has seen: what these have counted news of changes do not say."""
        self._hear()
        news, self._news = self._news, []
        ending: dict[int, Entry] = {}
        destroyed = 0
        for over, told in news:
            entry = self.known.told(told)
            if entry is None:
                continue
            if not over:
                ending[entry.number] = entry
                continue
            self._gone(entry, told, now)
            ending.pop(entry.number, None)
            destroyed += 1
        if ending:
            self.known.leave_all(ending.values())
            self._take(self.kernel.tell_of(list(ending.values())), now)
        for entry in ending.values():
            self._gone(entry)
        self.missed += destroyed + len(ending)
        if self.events.overrun and now >= self._compare_at:
            self.events.overrun, self._compare_at = False, now + COMPARE_EVERY
            destroyed += self._compare(now)
        self._emptied |= destroyed > 0 and not self.known

    def _compare(self, now: int) -> int:
        """Hold what is known against the kernel's list, news having been lost. How many are there no more."""
        there = {entry.number: (entry, told) for entry, told in self._listed() if entry.keys == told.keys}
        lost = [entry for entry in self.known if entry.number not in there]
        for entry in lost:
            self._gone(entry)
        for entry, told in there.values():
            if told.over:
                self._gone(entry, told, now)
        self.missed += len(lost)
        return len(lost)

    def _gone(self, entry: Entry, told: Told | None = None, now: int = 0) -> None:
        """Software has it again, and what it had counted. told: as it was last, if that is known."""
        self.known.leave_all([entry])
        if told is not None and told.keys == entry.keys:
            entry.takes(told, now)
        for d in entry.there:
            self._end_direction(entry, d)
        self.known.forget(entry)

    def _end_direction(self, entry: Entry, d: int) -> None:
        """Nobody has asked for that."""
        packets, octets = entry.untold(d)
        self._replies.say(entry.cookie(d), Op.GONE, used=entry.used[d], packets=packets, octets=octets, shared=not entry.counted)
        entry.ctinfo[d] = 0
