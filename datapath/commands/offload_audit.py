"""Hold what hardware has against what it should have, in words. Not here: the audit (offload.mirror)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datapath.commands.offload_why import described
from datapath.commands.offloaded import Offloaded
from datapath.hints import counted
from offload.mirror import Found

SENTENCES = {
    Found.EXTRA: "hardware has a rule that it should not have",
    Found.MISSING: "hardware lacks a rule that it should have",
    Found.DIFFERENT: "hardware has another rule than it should",
}
DIRECTIONS = ("original", "reply")


def audited(work: Offloaded) -> NDArray[Any]:
    """AUDIT_DTYPE[n]: what differs."""
    return work.mirror.audit(work.nic.held())


def lines(work: Offloaded, found: NDArray[Any]) -> Iterator[str]:
    """What differs, a line each, and what was held against what."""
    held = work.nic.held()
    of_cookie = {int(rule["cookie"]): rule for rule in held}
    for each in found:
        rule, known = of_cookie.get(int(each["cookie"])), work.mirror.why(int(each["row"])) if each["row"] < work.mirror.size else None
        conn = int(rule["conn"]) if rule is not None else known["conn"] if known else None
        whose = "a connection that nobody knows" if conn is None else f"connection {conn}"
        what = f": {described(rule['match'], turned=False)}" if rule is not None else ""
        yield f"{whose}, {DIRECTIONS[each['dir']]} direction: {SENTENCES[Found(int(each['found']))]}{what}"
    counters = work.mirror.counters()
    under_way = sum(counters[f"pending_{job}"] for job in ("add", "del", "stats"))
    less = f"; left out, with a job on its way: {counted(under_way, 'connection')}" if under_way else ""
    agree = "they agree" if not len(found) else f"{len(np.unique(found['cookie'])):,} differ"
    yield f"{len(held):,} rules in hardware, {counters['rules']:,} that should be: {agree}{less}"
