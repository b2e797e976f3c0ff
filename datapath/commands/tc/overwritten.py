"""Which of our rules in TC others have replaced in place, from what the kernel tells of filters made and deleted.

Theory of operation: who replaces a filter gives it other contents, and leaves our cookie out; the kernel then tells of one that was made, and of none
that was deleted. So a name of ours that something is made under is ours still if nothing was deleted there since we saw it whole; what is made where
ours was deleted is somebody else's filter. Where news were lost nothing is known, and what has no cookie of ours counts as somebody else's.
Invariant: no more is remembered than there are rules.
Not here: hearing (netlink.monitor), what is done about it (tc.following, tc.install).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from datapath.commands.tc.install import Name
from offload.netlink import filters
from offload.netlink.monitor import DELETE_LINK, Change

Place = tuple[int, int, int, int, int]  # interface, parent, chain, prio, handle


class Overwritten:
    """names: of ours, with other contents now."""

    def __init__(self) -> None:
        self.names: set[Name] = set()
        self._places: Mapping[Place, Name] = {}
        self._lost: set[Name] = set()

    def whole(self, names: Iterable[Name], where: Callable[[Name], filters.Where]) -> None:
        """All of these are there as they are meant. where: of a name's hook."""
        self._places = {(*where(name), name[1], name[2], name[4]): name for name in names}
        self.names, self._lost = set(), set()

    def heard(self, change: Change) -> None:
        place = (change.ifindex, change.parent, change.chain, change.prio, change.handle)
        if change.kind == filters.NEW_FILTER:
            name = self._places.get(place)
            self.names |= {name} - self._lost if name is not None else set()
        elif change.kind == filters.DELETE_FILTER and change.handle:
            self._lose([self._places[place]] if place in self._places else [])
        elif change.kind in (filters.DELETE_FILTER, filters.DELETE_CHAIN, filters.DELETE_QDISC, DELETE_LINK):
            self._lose(self._within(change))

    def unheard(self) -> None:
        """Anything may have been done."""
        self._lose(self._places.values())

    def _lose(self, names: Iterable[Name]) -> None:
        self._lost |= set(names)
        self.names -= self._lost

    def _within(self, change: Change) -> Iterator[Name]:
        """What is gone with a priority, a chain, a qdisc, an interface. One of all qdiscs of an interface takes both hooks along."""
        wide = change.kind in (filters.DELETE_QDISC, DELETE_LINK)
        for (ifindex, parent, chain, prio, _), name in self._places.items():
            if ifindex == change.ifindex and (wide or ((parent, chain) == (change.parent, change.chain) and change.prio in (0, prio))):
                yield name
