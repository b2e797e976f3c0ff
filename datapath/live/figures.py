"""A node's figures: what it counts, as one object for `ctmirror stats`, and who sends most.

Theory of operation: one job copies what is small; names are put to it afterwards, outside of the datapath. Rates are differences between two looks
at all connections' counters, taken a range of slots at a time.
Invariant: everything in figures() is JSON.
Not here: text for people (commands.stats, commands.top), messages (requests).
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctcore.types import Reason, State
from datapath import fields
from datapath.live.node import Node
from datapath.pipeline.tc_print import rule_line

TOP_RULES = 20
STATES = tuple(State)[: State.N_STATES]
NO_ROWS = np.zeros(0, dtype=[("conn", "i8"), ("packets", "u8", (2,)), ("bytes", "u8", (2,))])


def look(node: Node) -> dict[str, Any]:
    """What is to be had of a node in a job: arrays and counters, some microseconds' worth."""
    pipeline, tracker = node.pipeline, node.pipeline.tracker
    return {
        "summary": pipeline.summary(), "rules": (pipeline.program.ruleset, pipeline.counters()), "loop": node.loop.counters(),
        "histogram": node.loop.histogram(), "shortcuts": pipeline.shortcuts(), "flowtable": pipeline.flows.counters() if pipeline.flows else None,
        "tracker": tracker.counters(), "count": tracker.count, "capacity": tracker.config.capacity,
        "zones": tracker.zone_counts(), "pools": tracker.nat_pools(), "evictions_lost": tracker.evictions_lost,
        "router": _router(node),
        "ifaces": [(opened.name, opened.driver, iface.condition, iface.statistics()) for opened in node.opened for iface in opened.ifaces],
    }  # fmt: skip


def _router(node: Node) -> dict[str, int] | None:
    if node.router is None or node.neighbours is None:
        return None
    return {**node.router.counters(), **node.router.neighbours.counters(), **node.neighbours.counters()}


def figures(seen: dict[str, Any], node: Node, uptime: float) -> dict[str, Any]:
    """The same in words. seen: what look() found."""
    summary = seen["summary"]
    packets, sizes, reasons = summary["packets"].tolist(), summary["bytes"].tolist(), summary["reason_packets"]
    return {
        "uptime": round(uptime, 3),
        "packets": int(summary["total_packets"]),
        "bytes": int(summary["total_bytes"]),
        "states": {fields.STATE_NAMES[state]: {"packets": packets[state], "bytes": sizes[state]} for state in STATES},
        "verdicts": verdicts(summary),
        "reasons": {fields.REASON_NAMES[Reason(number)]: int(reasons[number]) for number in np.flatnonzero(reasons).tolist()},
        "ifaces": [{"name": name, "driver": driver, "condition": at, "queue": _queue(seen["ifaces"], i), **counts}
                   for i, (name, driver, at, counts) in enumerate(seen["ifaces"])],
        "loop": seen["loop"],
        "router": seen["router"],
        "latency": {str(1 << i): int(n) for i, n in enumerate(seen["histogram"].tolist()) if n},
        "flowtable": seen["flowtable"],
        "shortcuts": seen["shortcuts"],
        "table": {"connections": seen["count"], "max": node.pipeline.tracker.config.capacity, "zones": {str(z): n for z, n in seen["zones"].items()}},
        "tracker": seen["tracker"],
        "pools": [pool._asdict() for pool in seen["pools"]],
        "rules": _rules(*seen["rules"]),
    }  # fmt: skip


def _queue(ifaces: list[Any], i: int) -> int:
    """Which of an interface's queues the i-th iface is."""
    return sum(1 for other in ifaces[:i] if other[0] == ifaces[i][0])


def verdicts(summary: dict[str, Any]) -> dict[str, int]:
    """Packets by verdict."""
    total, dropped, held = (int(summary[name]) for name in ("total_packets", "dropped", "held"))
    return {"accept": total - dropped - held, "drop": dropped, "held": held}


def _rules(ruleset: Any, counters: NDArray[Any]) -> dict[str, Any]:
    """The rules that matched most."""
    ranked = np.argsort(counters["packets"], kind="stable")[::-1][:TOP_RULES].tolist()
    top = [
        {"packets": int(counters["packets"][i]), "bytes": int(counters["bytes"][i]), "last": int(counters["last"][i]),
         "drops": int(counters["drops"][i]), "overlimits": int(counters["overlimits"][i]),
         "place": str(ruleset.rules[i].place), "rule": rule_line(ruleset.rules[i])}
        for i in ranked if counters["packets"][i]
    ]  # fmt: skip
    return {"rules": len(ruleset.rules), "matched": int(np.count_nonzero(counters["packets"])), "top": top}


# --- rates ------------------------------------------------------------------------------------------------------------------------------


def counted_rows(conns: NDArray[Any]) -> NDArray[Any]:
    """What a look keeps of CONN_DTYPE[n]: ordinal, packets and bytes of both directions."""
    rows = np.zeros(len(conns), dtype=NO_ROWS.dtype)
    for name, column in (("conn", conns["flow"]["id"][:, 0]), ("packets", conns["flow"]["packets"]), ("bytes", conns["flow"]["bytes"])):
        rows[name] = column
    return rows


class Rates:
    """The last look at all connections' counters. look: rows by ordinal, and when (monotonic, seconds)."""

    def __init__(self) -> None:
        self.rows, self.when = NO_ROWS, float("-inf")

    def since(self, rows: NDArray[Any], when: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Packets and bytes a second of each of rows since the last look, which these become: float[n] each. Both directions together."""
        old, seconds = self.rows, max(when - self.when, 1e-3)
        at = np.minimum(np.searchsorted(old["conn"], rows["conn"]), max(len(old) - 1, 0))
        known = old["conn"][at] == rows["conn"] if len(old) else np.zeros(len(rows), dtype=bool)
        rates = []
        for name in ("packets", "bytes"):
            now = rows[name].sum(axis=1).astype(np.float64)
            then = np.where(known, old[name].sum(axis=1)[at], 0) if len(old) else np.zeros(len(rows))
            rates.append((now - then) / seconds)
        self.rows, self.when = rows, when
        return rates[0], rates[1]

    def age(self) -> float:
        return time.monotonic() - self.when
