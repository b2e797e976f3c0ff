"""The filters of two priorities that are one backend's: listed, and taken away without touching anybody else's.

Theory of operation: whose a filter is its cookie says. One is deleted by its handle, and told once more right ahead of that: for what it has counted,
and because somebody may have put another one in its place since it was listed. An answer that was lost is asked for again, TRIES times in all.
Invariant: nothing is deleted that has not been told with our cookie by then; what is not deleted has its reason.
Not here: what was commanded (exact_rules), messages (netlink.filters), cookies (netlink.exact).
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from offload.netlink import filters
from offload.netlink.channel import Channel, NetlinkError
from offload.netlink.exact import Prios, cookie_in
from offload.netlink.extack import DONE, LOST, Answer

FAMILIES = (4, 6)
GONE = (errno.ENOENT, errno.EINVAL, errno.ENODEV)  # what is asked for is not there, nor its chain, its qdisc, its interface
TRIES = 6


class Place(NamedTuple):
    """What tells the filters of our chain apart."""

    ifindex: int
    prio: int
    handle: int


class Own(NamedTuple):
    """A filter with a cookie of ours, as it was listed."""

    where: filters.Where
    family: int
    handle: int
    cookie: int


class Taken(NamedTuple):
    """What became of it. answer: GONE's or 0: it is not there, or is not ours any more; told: as it was last, None: it was not there."""

    own: Own
    answer: Answer
    told: bytes | None


class OwnFilters:
    """channel: of rtnetlink, which others may use in between; prios: the backend's."""

    def __init__(self, channel: Channel, prios: Prios) -> None:
        self.channel, self.prios = channel, prios

    def listed(self, where: filters.Where, prio: int = 0, *, terse: bool = False) -> list[bytes]:
        """Filters of a place, or of a priority of our chain there, without what the kernel says of a priority as a whole. Raises NetlinkError."""
        try:
            found = self.channel.whole(filters.dump_filters(where, self.prios.chain if prio else None, prio, terse=terse))
        except NetlinkError as error:
            if error.number not in GONE:
                raise
            return []
        return [data for data in found if len(data) >= filters.TCMSG.size and filters.TCMSG.unpack_from(data)[2]]

    def within(self, where: filters.Where, *, terse: bool = False) -> list[bytes]:
        """What is in our priorities, whoever has put it there. Raises NetlinkError."""
        return [data for family in FAMILIES for data in self.listed(where, self.prios.name(family).prio, terse=terse)]

    def marked(self, numbers: Collection[int]) -> Iterator[Own]:
        """What of that has a cookie of ours; numbers: of interfaces. Raises NetlinkError."""
        for number in numbers:
            where = filters.Where(number)
            for family in FAMILIES:
                for data in self.listed(where, self.prios.name(family).prio, terse=True):
                    cookie = cookie_in(data)
                    if cookie is not None:
                        yield Own(where, family, told_place(data).handle, cookie)

    def take(self, some: Sequence[Own]) -> list[Taken]:
        """Delete them, but for what is not ours any more."""
        found, told = self._ask([filters.get_filter(own.where, self._name(own)) for own in some])
        taken: list[Taken] = []
        ours: list[Own] = []
        for own, answer in zip(some, found, strict=True):
            data = told.get(place_of(own.where, self._name(own)))
            if data is not None and cookie_in(data) == own.cookie:
                ours.append(own)
            else:
                taken.append(Taken(own, DONE if data is not None else answer if answer.error else LOST, None))
        answers, _ = self._ask([filters.delete_filter(own.where, self._name(own)) for own in ours])
        return taken + [Taken(own, answer, told[place_of(own.where, self._name(own))]) for own, answer in zip(ours, answers, strict=True)]

    def _name(self, own: Own) -> filters.Name:
        return self.prios.name(own.family, own.handle)

    def _ask(self, requests: Sequence[bytes]) -> tuple[list[Answer], dict[Place, bytes]]:
        """The answer of each, LOST only after TRIES; what was told, by its place."""
        answers = [LOST] * len(requests)
        told: dict[Place, bytes] = {}
        left = list(range(len(requests)))
        for _ in range(TRIES):
            if not left:
                break
            for at, answer in zip(left, self.channel.ask([requests[at] for at in left]), strict=True):
                answers[at] = answer
            told.update((told_place(data), data) for data in self.channel.echoed)
            left = [at for at in left if answers[at] is LOST]
        return answers, told


def place_of(where: filters.Where, name: filters.Name) -> Place:
    return Place(where.ifindex, name.prio, name.handle)


def told_place(data: bytes) -> Place:
    """Of a filter that was told."""
    _, ifindex, handle, _, info = filters.TCMSG.unpack_from(data)
    return Place(ifindex, info >> 16, handle)
