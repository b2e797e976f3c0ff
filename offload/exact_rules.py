"""A Backend out of the kernel's TC: each direction of a flow is one exact flower filter, for NICs that have no tables of connections.

    REPLACE -> a filter is made       DESTROY -> it is deleted       STATS -> it is told, and what it has counted since it was told last

Theory of operation: sides (offload.sides) say where a direction's packets come in and go out; all filters of one Backend are in two priorities of a
chain of those hooks, one for IPv4, the next for IPv6. A filter's handle is the lower half of its command's cookie, and the whole cookie is on its
actions, so that the kernel's list says what is whose. Commands are sent in groups and are done when submit() returns. What others do is heard of by
a monitor: where a whole priority, chain, qdisc or interface is gone, all of ours is taken away, and behind that hardware has begun anew (resets). A
filter of ours that is gone, or that somebody has replaced in its place, is nothing of ours any more, and the mirror is told (Op.GONE). All are taken
out some at a time (empty), by their handles, and each is told as one that has gone, with what it had counted.
Invariants: each command has one reply, but for those before a reset, and where nobody can find out what became of it; a filter that is known here was
answered by the kernel; what is no filter of ours, in our priorities as well, is never touched.
Errors (A8): those of the kernel as they are, with its sentence kept (`refusal`); no side or no translation is EOPNOTSUPP, no interface ENODEV,
another filter of the same packets EBUSY. An answer that was lost (ENOBUFS) is looked up.
Not here: messages (netlink.exact), listing and taking away (own_filters), whether a NIC takes them (trials), threads: all calls are one thread's.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from ipaddress import ip_address
from struct import Struct
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ctcore.errors import ConfigError
from offload.idle_devices import IdleDevices
from offload.netlink import actions, filters, flower
from offload.netlink.channel import Channel, NetlinkError
from offload.netlink.counters import counters_of
from offload.netlink.exact import (
    DPORT,
    DST,
    GRE,
    SIZES,
    SPORT,
    SRC,
    Course,
    Exact,
    Prios,
    Shape,
    Strange,
    Tuple,
    cookie_in,
    exact_of,
    filling_of,
    form_of,
)  # fmt: skip
from offload.netlink.extack import LOST, Answer
from offload.netlink.links import NEW_LINK, links, running
from offload.netlink.monitor import DELETE_LINK, OF_FILTERS, Change, Monitor
from offload.own_filters import FAMILIES, GONE, Own, OwnFilters, Place, place_of, told_place
from offload.records import COMMAND_DTYPE, Ctinfo, Op
from offload.replying import Replies
from offload.sides import Sides

COMMAND = Struct("=16s16sHHHBB16s16sHHHBBQq16sIBBBx")  # struct Command
assert COMMAND.size == COMMAND_DTYPE.itemsize
PROTOS = (flower.TCP, flower.UDP, GRE)
PARENTS = (filters.INGRESS_PARENT, filters.EGRESS_PARENT)
MOST_PRIO = 0xFFFF
AT_ONCE = 1024  # filters that are taken away in one go
_NOTHING = Tuple(bytes(16), bytes(16), 0, 0)
_OWN = (filters.DELETE_FILTER, filters.DELETE_CHAIN)
_LINKS = (NEW_LINK, DELETE_LINK)


class Known(NamedTuple):
    """A filter that is there. packets, octets: told already."""

    cookie: int
    where: filters.Where
    family: int
    ctinfo: int
    conn: int
    packets: int = 0
    octets: int = 0


class Asked(NamedTuple):
    """A command on its course."""

    op: int
    cookie: int
    handle: int
    request: bytes
    known: Known


class ExactRules:
    """See offload.backend. prios: the chain and the first of two priorities, which are ours alone; skip_sw: whose NIC is to have
    what comes in there, and the kernel not (devices, True: all); most: filters there is room for; idle: is told of devices. emptying: is called ahead
    of each removal of all filters at once, which nobody has asked for by commands.

    Raises ConfigError if an interface is not there or has foreign filters there, OSError, NetlinkError. A context manager.
    """

    def __init__(
        self, sides: Sides, prios: Prios = Prios(), *, skip_sw: bool | Collection[str] = False, most: int = 1 << 22, idle: IdleDevices | None = None,  # noqa: B008 (a named tuple)
    ) -> None:  # fmt: skip
        self.sides, self.prios, self.most = sides, prios, most
        if not (0 <= prios.chain <= actions.MOST_CHAIN and 1 <= prios.prio < MOST_PRIO):
            raise ConfigError(f"offload: chain {prios.chain}, priority {prios.prio}: expected 0 to {actions.MOST_CHAIN}, and 1 to {MOST_PRIO - 1}")
        self.channel = Channel()
        self.filters = OwnFilters(self.channel, prios)
        self.resets = 0
        self.idle = IdleDevices() if idle is None else idle
        self.missed = 0  # filters of ours that others have deleted or replaced one by one, as heard of
        self.emptying: Callable[[], None] = lambda: None
        self._known: dict[int, Known] = {}  # by handle
        self._replies = Replies()
        self._begins = False  # all are gone, and that has been told one by one
        self._emptying = False
        self._devices = tuple(dict.fromkeys(side.device for side in sides.sides))
        self.skip_sw = frozenset(self._devices if skip_sw is True else skip_sw or ())
        self._zones = {side.device: side.zone for side in sides.sides}
        self._numbers: dict[str, int] = {}
        self._made: set[int] = set()  # interfaces whose qdisc we have made
        with ExitStack() as stack:
            stack.callback(self.channel.close)
            self.monitor = Monitor(self.channel.socket, [prios.name(family).prio for family in FAMILIES])
            stack.callback(self.monitor.close)
            self._attach()
            for device in self._devices:
                self._check(device)
            self._purge(0)
            self._look_at_devices()
            stack.pop_all()

    def __enter__(self) -> ExactRules:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing of ours stays: filters, and qdiscs that we made and nobody uses. Raises NetlinkError if something does."""
        try:
            self._purge(0)
            empty = [number for number in self._made if not any(self.filters.listed(filters.Where(number, parent)) for parent in PARENTS)]
            for number, answer in zip(empty, self.channel.ask([filters.delete_qdisc(number) for number in empty]), strict=True):
                if answer.error not in (0, *GONE):
                    raise NetlinkError(f"the qdisc of interface {number} is there still, or may be: {answer.told()}", answer.error)
        finally:
            self.monitor.close()
            self.channel.close()

    # --- a backend --------------------------------------------------------------------------------------------------------------------------

    def submit(self, commands: NDArray[Any], now: int) -> int:
        """None is taken from when all are gone until that is told as a reset."""
        if self._begins:
            return 0
        asked: list[Asked] = []
        under_way: set[int] = set()
        for row in COMMAND.iter_unpack(commands.tobytes()):
            if row[14] in under_way:
                self._send(asked, now)
                asked, under_way = [], set()
            one = self._asked(row, len(asked))
            if one is not None:
                asked.append(one)
                under_way.add(one.cookie)
        self._send(asked, now)
        return len(commands)

    def replies(self, now: int) -> NDArray[Any]:
        if self._begins:
            self._begins = False
            self._replies.clear()
            self.resets += 1
        self._heed(now)
        return self._replies.taken()

    @property
    def left(self) -> int:
        """Filters."""
        return len(self._known)

    def empty(self, now: int) -> Iterator[None]:
        """See offload.threaded. What others have put into our priorities stays. What does not go is tried again as long as less is left; else raises
        NetlinkError, as it does without a list."""
        self.emptying()
        self._emptying = True  # what goes now is no news
        try:
            # What is known first, since a list of many takes long; then what nobody knows of.
            yield from self._take([Own(known.where, known.family, handle, known.cookie) for handle, known in self._known.items()], now)
            yield from self._take(list(self.filters.marked(self._numbers.values())), now)
        finally:
            self._emptying = False
        for handle in list(self._known):  # others have taken them away
            self._gone(handle, self._known[handle], None, now)

    def _take(self, todo: list[Own], now: int) -> Iterator[None]:
        """Raises NetlinkError if some do not go."""
        whole = len(todo)
        while todo:
            there: dict[Own, Answer] = {}
            for at in range(0, len(todo), AT_ONCE):
                for own, answer, told in self.filters.take(todo[at : at + AT_ONCE]):
                    known = self._known.get(own.handle)
                    if answer.error not in (0, *GONE):
                        there[own] = answer
                    elif known is not None and known.cookie == own.cookie:
                        self._gone(own.handle, known, told, now)
                yield
            if len(there) == len(todo):
                answer = next(iter(there.values()))
                raise NetlinkError(f"{len(there)} of {whole} filters are in TC still, or may be: {answer.told()}", answer.error)
            todo = list(there)

    def held(self) -> NDArray[Any]:
        rows = []
        for device, number in self._numbers.items():
            for data in self.filters.within(filters.Where(number)):
                try:
                    exact = exact_of(data)
                except Strange:
                    cookie = cookie_in(data)
                    exact = None if cookie is None else Exact(cookie, 0, 0, _NOTHING, _NOTHING, 0, None)
                if exact is not None:
                    rows.append(self._row(exact, self._zones[device]))
        return np.frombuffer(b"".join(rows), dtype=COMMAND_DTYPE)

    def refusal(self, conn: int) -> str:
        """What the kernel said when it refused a connection's rule last; "" if nothing is known."""
        return self._replies.refusal(conn)

    # --- commands ---------------------------------------------------------------------------------------------------------------------------

    def _asked(self, row: tuple[Any, ...], before: int) -> Asked | None:
        """What is to be asked of the kernel for a command; None: it is answered. before: how many are asked at once with it."""
        cookie, op = row[14], row[18]
        handle = (cookie & 0xFFFFFFFF) + 1
        known = self._known.get(handle)
        if op == Op.REPLACE:
            return self._replace(row, cookie, handle, known, before)
        if known is None or known.cookie != cookie:
            self._replies.say(cookie, op, errno.ENOENT)
            return None
        make = filters.delete_filter if op == Op.DESTROY else filters.get_filter
        return Asked(op, cookie, handle, make(known.where, self.prios.name(known.family, handle)), known)

    def _replace(self, row: tuple[Any, ...], cookie: int, handle: int, known: Known | None, before: int) -> Asked | None:
        conn, ctinfo, family, proto = row[15], row[19], row[6], row[5]
        if known is not None and known.cookie == cookie:
            # A4.36. The filter says nothing of the connection, so it is what it should be.
            same = (known.conn, known.ctinfo) == (conn, ctinfo)
            self._known[handle] = known._replace(conn=conn, ctinfo=ctinfo)
            self._replies.say(cookie, Op.REPLACE, errno.EEXIST if same else 0)
            return None
        match, to = (*row[0:4],), (*row[7:11],)
        written = SRC * (match[0] != to[0]) | DST * (match[1] != to[1]) | SPORT * (match[2] != to[2]) | DPORT * (match[3] != to[3])
        error, why = 0, ""
        if known is not None:
            error, why = errno.EBUSY, "its place is another flow's"
        elif len(self._known) + before >= self.most:
            error, why = errno.ENOSPC, f"there is room for {self.most} filters"
        elif proto not in PROTOS or family not in SIZES or handle > 0xFFFFFFFF:
            error, why = errno.EOPNOTSUPP, f"protocol {proto}: expected TCP, UDP or GRE"
        course = None if error else self._course(row[4], family, match[0], to[1])
        if isinstance(course, Answer):
            error, why = course.error, course.text
        if not error and isinstance(course, Course):
            try:
                form = form_of(Shape(course, self.prios, family, proto, written))
            except ValueError as unsaid:
                error, why = errno.EOPNOTSUPP, str(unsaid)
            else:
                request = bytes(form.filled(filling_of(handle, cookie, match, to, SIZES[family])))
                return Asked(Op.REPLACE, cookie, handle, request, Known(cookie, course.where, family, ctinfo, conn))
        self._replies.refuse(cookie, conn, Answer(error, why))
        return None

    def _course(self, zone: int, family: int, src: bytes, dst: bytes) -> Course | Answer:
        """Where a direction's packets come in, by their source as they come, and go out, by their destination as it leaves."""
        ends = []
        for address in (src[: SIZES[family]], dst[: SIZES[family]]):
            number = self.sides.of(zone, family, address)
            if number is None:
                return Answer(errno.EOPNOTSUPP, f"no side of zone {zone} has {_shown(address)}")
            side = self.sides.sides[number]
            if side.device not in self._numbers:
                return Answer(errno.ENODEV, f"no interface {side.device}")
            ends.append(side)
        came, goes = ends
        return Course(filters.Where(self._numbers[came.device]), self._numbers[goes.device], goes.chain, came.device in self.skip_sw)

    def _send(self, asked: list[Asked], now: int) -> None:
        if not asked:
            return
        answers = self.channel.ask([one.request for one in asked], sparing=True)
        told = {told_place(data): data for data in self.channel.echoed}
        doubtful = []
        for one, answer in zip(asked, answers, strict=True):
            if one.op == Op.STATS:
                self._counted(one, answer, told.get(self._place(one.known, one.handle)), now)
            elif answer is LOST or (one.op == Op.REPLACE and answer.error == errno.EEXIST):
                doubtful.append((one, answer))
            else:
                self._done(one, answer)
        if doubtful:
            self._look_up(doubtful)

    def _done(self, one: Asked, answer: Answer) -> None:
        if one.op == Op.REPLACE:
            if answer.error in (0, errno.EEXIST):
                self._known[one.handle] = one.known
                self._replies.accept(one.known.conn)
                self._replies.say(one.cookie, one.op, answer.error)
            else:
                self._replies.refuse(one.cookie, one.known.conn, answer)
            return
        error = errno.ENOENT if answer.error in GONE else answer.error
        if error in (0, errno.ENOENT):
            self._known.pop(one.handle, None)
        self._replies.say(one.cookie, one.op, error)

    def _look_up(self, doubtful: list[tuple[Asked, Answer]]) -> None:
        """What became of commands whose answer is lost, and whose filter it is that is in the course. What cannot be found out gets no reply."""
        requests = [filters.get_filter(one.known.where, self.prios.name(one.known.family, one.handle)) for one, _ in doubtful]
        answers = self.channel.ask(requests)
        told = {told_place(data): data for data in self.channel.echoed}
        for (one, first), answer in zip(doubtful, answers, strict=True):
            there = told.get(self._place(one.known, one.handle))
            if answer is LOST or (answer.error and answer.error not in GONE):
                continue
            ours = there is not None and cookie_in(there) == one.cookie
            if one.op == Op.DESTROY:
                if not ours:
                    self._done(one, Answer(0))
            elif ours:
                self._done(one, Answer(0) if first is LOST else first)
            elif first is LOST:
                self._done(one, first)
            else:
                self._done(one, Answer(errno.EBUSY, first.text or "another filter has the same packets"))

    def _counted(self, one: Asked, answer: Answer, data: bytes | None, now: int) -> None:
        """A6.50: what has been counted since it was told last."""
        if answer.error or data is None:
            error = errno.ENOENT if answer.error in GONE else answer.error or errno.ENOBUFS
            if error == errno.ENOENT:
                self._known.pop(one.handle, None)
            self._replies.say(one.cookie, one.op, error)
            return
        if cookie_in(data) != one.cookie:  # somebody has made another one of the same name
            self._known.pop(one.handle, None)
            self._replies.say(one.cookie, one.op, errno.ENOENT)
            return
        self._known[one.handle] = self._told(one.known, one.op, data, now)

    def _told(self, known: Known, op: int, data: bytes, now: int) -> Known:
        """Say what a filter has counted since it was told last, of what the kernel tells; as it is known then."""
        found = counters_of(data)
        # One that has fewer was made anew by somebody, and has counted these.
        packets, octets = (found.packets - known.packets, found.octets - known.octets) if found.packets >= known.packets else found[:2]
        used = max(now - found.idle, 1) if found.packets else 0
        self._replies.say(known.cookie, op, used=used, packets=packets, octets=max(octets, 0))
        return known._replace(packets=found.packets, octets=found.octets)

    def _gone(self, handle: int, known: Known, data: bytes | None, now: int) -> None:
        """It is the mirror's again, and nobody there has asked for that. data: as the kernel has told it last; None: what it had counted is lost."""
        del self._known[handle]
        if data is None:
            self._replies.say(known.cookie, Op.GONE)
        else:
            self._told(known, Op.GONE, data, now)

    # --- what is there ----------------------------------------------------------------------------------------------------------------------

    def _attach(self) -> None:
        """Interfaces by number, each with a qdisc."""
        found = links(self.channel)
        self._numbers = {device: found[device] for device in self._devices if device in found}
        numbers = list(self._numbers.values())
        answers = self.channel.ask([filters.new_qdisc(number) for number in numbers])
        self._made |= {number for number, answer in zip(numbers, answers, strict=True) if not answer.error}

    def _check(self, device: str) -> None:
        """Raises ConfigError."""
        if device not in self._numbers:
            raise ConfigError(f"offload: no interface {device}")
        for data in self.filters.within(filters.Where(self._numbers[device])):
            if cookie_in(data) is None and filters.TCMSG.unpack_from(data)[2]:
                raise ConfigError(
                    f"offload: {device} has filters of others in chain {self.prios.chain}, priority {filters.TCMSG.unpack_from(data)[4] >> 16}: "
                    "expected priorities that nobody uses"
                )

    def _purge(self, now: int) -> None:
        for _ in self.empty(now):
            pass

    def _row(self, exact: Exact, zone: int) -> bytes:
        direction = exact.cookie & 1
        known = self._known.get((exact.cookie & 0xFFFFFFFF) + 1)
        ctinfo, conn = int(Ctinfo.ESTABLISHED_REPLY if direction else Ctinfo.ESTABLISHED), -1
        if known is not None and known.cookie == exact.cookie:
            ctinfo, conn = known.ctinfo, known.conn
        return COMMAND.pack(
            *exact.match, zone, exact.proto, exact.family, *exact.to, zone, exact.proto, exact.family, exact.cookie, conn, bytes(16), 0, Op.REPLACE,
            ctinfo, direction,
        )  # fmt: skip

    # --- what others do -------------------------------------------------------------------------------------------------------------------

    def _heed(self, now: int) -> None:
        """Hardware has begun anew if something that holds many filters is gone, and any of ours with it."""
        numbers = set(self._numbers.values())
        suspicious = linked = False
        touched: set[int] = set()  # handles
        for change in self.monitor.changes():
            linked |= change.kind in _LINKS and (change.ifindex in numbers or len(numbers) < len(self._devices))
            if change.kind in OF_FILTERS and change.handle:
                if change.ifindex in numbers and self._in_ours(change):
                    self.missed += 1
                    touched |= {change.handle} & self._known.keys()
            elif change.kind in (filters.NEW_FILTER, filters.NEW_QDISC):
                pass  # takes nothing away
            elif change.kind == filters.DELETE_QDISC:
                suspicious |= change.ifindex in numbers and change.parent == filters.CLSACT_PARENT
            elif change.kind in _OWN:
                suspicious |= change.ifindex in numbers and change.chain == self.prios.chain
            else:  # an interface has gone; or one is there, maybe one that lacks
                suspicious |= change.ifindex in numbers if change.kind == DELETE_LINK else len(numbers) < len(self._devices)
        if self.monitor.overrun:
            self.monitor.overrun, suspicious = False, True
        if suspicious and not self._emptying:
            self._verify(now)
        self._let_go(touched, now)
        if linked:
            self._look_at_devices()

    def _let_go(self, handles: Collection[int], now: int) -> None:
        """Of what others have touched, what is not ours any more is the mirror's again, and left to them."""
        touched = [(handle, known) for handle in handles if (known := self._known.get(handle)) is not None]
        if not touched:
            return
        answers = self.channel.ask([filters.get_filter(known.where, self.prios.name(known.family, handle)) for handle, known in touched])
        told = {told_place(data): data for data in self.channel.echoed}
        for (handle, known), answer in zip(touched, answers, strict=True):
            data = told.get(self._place(known, handle))
            if (data is None and answer.error not in GONE) or (data is not None and cookie_in(data) == known.cookie):
                continue
            self._gone(handle, known, None, now)

    def _look_at_devices(self) -> None:
        self.idle.look(lambda: running(self.channel), self._devices)

    def _place(self, known: Known, handle: int) -> Place:
        return place_of(known.where, self.prios.name(known.family, handle))

    def _in_ours(self, change: Change) -> bool:
        return change.chain == self.prios.chain and change.prio in (self.prios.name(family).prio for family in FAMILIES)

    def _verify(self, now: int) -> None:
        """Whether all that should be there is; else everything is taken away, and then begins anew."""
        numbers = dict(self._numbers)
        self._attach()
        cookies = {known.cookie for known in self._known.values()}
        there = sum(own.cookie in cookies for own in self.filters.marked(set(numbers.values()) & set(self._numbers.values())))
        if there < len(self._known) or any(self._numbers.get(device) != number for device, number in numbers.items()):
            self._purge(now)
            self._begins = True


def _shown(address: bytes) -> str:
    return str(ip_address(address))
