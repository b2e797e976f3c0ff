"""The tables of attributes as pyroute2's classes: for its sockets, where few messages pass and convenience counts.

pyroute2 0.9 knows neither flower nor act_ct, pedit, csum, chains, hardware's counters or cookies. Its sockets take further classes as a policy, by
type of message. Building objects costs fifty times what packing by hand does: who makes many messages uses filters and channel.
Not here: the tables themselves (attributes).
"""

from __future__ import annotations

from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink import NLA_F_NESTED, nla, nlmsg

from offload.netlink.attributes import ACTION, BITFIELD, FLAG, FLOWER, MOST_ACTIONS, TC, TEXT, U32, Choice, Form, Kind, Level, Many, Record
from offload.netlink.filters import (
    DELETE_CHAIN,
    DELETE_FILTER,
    DELETE_QDISC,
    GET_CHAIN,
    GET_FILTER,
    GET_QDISC,
    NEW_CHAIN,
    NEW_FILTER,
    NEW_QDISC,
)

NEW_ACTION, DELETE_ACTION, GET_ACTION = 48, 49, 50  # RTM_*
ACTIONS = Level("actions", "TCA_ROOT_", {
    1: ("TAB", Many(ACTION)), 2: ("FLAGS", BITFIELD), 3: ("COUNT", U32), 4: ("TIME_DELTA", U32), 5: ("EXT_WARN_MSG", TEXT),
})  # fmt: skip
TCMSG_FIELDS = (("family", "B"), ("pad1", "B"), ("pad2", "H"), ("index", "i"), ("handle", "I"), ("parent", "I"), ("info", "I"))
TCAMSG_FIELDS = (("family", "B"), ("pad1", "B"), ("pad2", "H"))


def _record(kind: Record) -> type:
    codes = kind.layout.format.lstrip("=")
    return type(kind.name, (nla,), {"fields": tuple(zip(kind.fields, codes, strict=True))})


def _plain(kind: Kind) -> str:
    if isinstance(kind, Form):
        return kind.pyroute2
    return {TEXT: "asciiz", FLAG: "flag"}.get(kind, "cdata") if isinstance(kind, str) else "cdata"


class _Made:
    """Classes of levels that others have made already, so that each level is one class."""

    def __init__(self) -> None:
        self.levels: dict[int, type] = {}

    def members(self, level: Level) -> dict[str, Any]:
        """What a class of the level has."""
        found: dict[str, Any] = {"prefix": level.prefix}
        listed = []
        for number, (name, kind) in sorted(level.attributes.items()):
            own = _plain(kind)
            if isinstance(kind, Level | Many | Choice | Record):
                own = f"of_{name.lower()}"
                found[own] = self.of(kind, level)
            listed.append((number, level.prefix + name, own))
        return found | {"nla_map": tuple(listed)}

    def of(self, kind: Kind, level: Level) -> Any:
        if isinstance(kind, Record):
            return _record(kind)
        if isinstance(kind, Level):
            return self.level(kind)
        if isinstance(kind, Many):
            numbers = range(1, MOST_ACTIONS + 1) if kind.number is None else (kind.number,)
            each = kind.level.name.replace(" ", "_")
            listed = tuple((number, f"{kind.level.prefix}{number}", each) for number in numbers)
            return type("many", (nla,), {"nla_flags": NLA_F_NESTED, "nla_map": listed, each: self.level(kind.level)})
        assert isinstance(kind, Choice)
        return self._choice(kind, level)

    def _choice(self, kind: Choice, level: Level) -> Any:
        classes = {text: self.level(each) for text, each in kind.levels.items()}
        by = level.prefix + kind.by

        def chosen(self: Any, *arguments: Any, **options: Any) -> type:
            return classes.get(self.get_attr(by), self.cdata)

        return staticmethod(chosen)

    def level(self, level: Level) -> type:
        if id(level) not in self.levels:
            name = level.name.replace(" ", "_")
            self.levels[id(level)] = type(name, (nla,), {"nla_flags": NLA_F_NESTED, **self.members(level)})
        return self.levels[id(level)]


_made = _Made()


def members(level: Level) -> dict[str, Any]:
    """What a class of messages has whose attributes are those of a level."""
    return _made.members(level)


flower: type = _made.level(FLOWER)
action: type = _made.level(ACTION)
tcmsg: type = type("tcmsg", (nlmsg,), {"fields": TCMSG_FIELDS, **_made.members(TC)})
tcamsg: type = type("tcamsg", (nlmsg,), {"fields": TCAMSG_FIELDS, **_made.members(ACTIONS)})
POLICY: dict[int, type] = {
    **dict.fromkeys((NEW_FILTER, DELETE_FILTER, GET_FILTER, NEW_CHAIN, DELETE_CHAIN, GET_CHAIN, NEW_QDISC, DELETE_QDISC, GET_QDISC), tcmsg),
    **dict.fromkeys((NEW_ACTION, DELETE_ACTION, GET_ACTION), tcamsg),
}  # fmt: skip


def iproute(**options: Any) -> IPRoute:
    """A socket of pyroute2 that reads and writes what is here; errors have the kernel's sentence. options: of IPRoute."""
    found = IPRoute(ext_ack=True, **options)
    found.status.setdefault("nlm_generator", False)  # without, the synchronous nlm_request() of 0.9.7 ends in a KeyError
    found.register_policy(POLICY)
    return found
