"""Hold what hardware has against what it should have, in words. Not here: the audit (offload.mirror)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from datapath.commands.offload_said import described
from datapath.hints import counted
from offload.mirror import Found, Mirror

if TYPE_CHECKING:
    from datapath.commands.offloaded import Offloaded

SENTENCES = {
    Found.EXTRA: "hardware has a rule that it should not have",
    Found.MISSING: "hardware lacks a rule that it should have",
    Found.DIFFERENT: "hardware has another rule than it should",
}
DIRECTIONS = ("original", "reply")
JOBS = ("add", "del", "stats")


def audited(work: Offloaded) -> NDArray[Any]:
    """AUDIT_DTYPE[n]: what differs."""
    return work.mirror.audit(work.nic.held())


def differences(mirror: Mirror, held: NDArray[Any], found: NDArray[Any]) -> Iterator[str]:
    """A line for each rule that differs. held: what Backend.held() has said; found: AUDIT_DTYPE[n]."""
    of_cookie = {int(rule["cookie"]): rule for rule in held[np.isin(held["cookie"], found["cookie"])]}
    conns = conns_of(mirror, held, found)
    for each in found:
        rule, conn = of_cookie.get(int(each["cookie"])), conns.get(int(each["cookie"]) >> 1)
        whose = "a connection that nobody knows" if conn is None else f"connection {conn}"
        what = f": {described(rule['match'], turned=False)}" if rule is not None else ""
        yield f"{whose}, {DIRECTIONS[each['dir']]} direction: {SENTENCES[Found(int(each['found']))]}{what}"


def conns_of(mirror: Mirror, held: NDArray[Any], found: NDArray[Any]) -> dict[int, int]:
    """Whose rules these are: connections by cookie >> 1, as far as they are known to hardware or to the mirror."""
    known = {int(each["cookie"]) >> 1: mirror.why(int(each["row"])) for each in found if each["row"] < mirror.size}
    conns = {number: int(told["conn"]) for number, told in known.items() if told}
    return conns | {int(rule["cookie"]) >> 1: int(rule["conn"]) for rule in held[np.isin(held["cookie"], found["cookie"])]}


def figures(mirror: Mirror, held: NDArray[Any], found: NDArray[Any]) -> dict[str, int]:
    """held, wanted: rules; differ: of these; pending: connections that were left out, with a job on their way."""
    counters = mirror.counters()
    pending = sum(counters[f"pending_{job}"] for job in JOBS)
    return {"held": len(held), "wanted": counters["rules"], "differ": len(np.unique(found["cookie"])), "pending": pending}


def verdict(told: dict[str, int]) -> str:
    """Figures as a line."""
    less = f"; {counted(told['pending'], 'connection')} with a job on its way left out" if told["pending"] else ""
    who = "the others" if told["pending"] else "they"
    agree = f"{told['differ']:,} differ" if told["differ"] else f"{who} agree"
    return f"{counted(told['held'], 'rule')} in hardware, {told['wanted']:,} that should be{less}: {agree}"


def lines(work: Offloaded, found: NDArray[Any]) -> Iterator[str]:
    """What differs, a line each, and what was held against what."""
    held = work.nic.held()
    yield from differences(work.mirror, held, found)
    yield verdict(figures(work.mirror, held, found))
