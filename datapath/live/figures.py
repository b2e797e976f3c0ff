"""A node's figures: what it counts, as one object for `ctmirror stats`, and who sends most.

Theory of operation: one job copies what is small; names are put to it afterwards, outside of the datapath. Rates are differences between two looks
at all connections' counters, taken a range of slots at a time.
Invariant: everything in figures() is JSON.
Not here: text for people (commands.stats, commands.top), messages (requests).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctcore.nat_rules import NatPool
from ctcore.tracker import Tracker
from ctcore.types import Reason, State
from datapath import fields
from datapath.live.drivers import Opened
from datapath.live.iface import Iface
from datapath.live.node import Node
from datapath.live.offloading import merged
from datapath.live.shared import summed
from datapath.pipeline.tc_print import rule_line
from datapath.rule_text import rule_text

TOP_RULES = 20
_NO_SUMS = {"first_ts", "last_ts", "reason_first", "fragments"}
STATES = tuple(State)[: State.N_STATES]
NO_ROWS = np.zeros(0, dtype=[("conn", "i8"), ("packets", "u8", (2,)), ("bytes", "u8", (2,))])


def look(node: Node) -> dict[str, Any]:
    """What is to be had of a node in a job: arrays and counters of all workers together, some microseconds' worth."""
    pipelines, trackers, faces = [worker.pipeline for worker in node.workers], node.trackers, [worker.face for worker in node.workers]
    offloads = [worker.offload for worker in node.workers if worker.offload is not None]
    return {
        "summary": _whole([face.summary() for face in faces]),
        "rules": (pipelines[0].program.ruleset, _rule_counters([face.counters() for face in faces])),
        "offload": merged(offload.figures() for offload in offloads) or None,
        "loop": node.loop_counters(), "histogram": sum(worker.loop.histogram() for worker in node.workers),
        "workers": [worker.loop.counters() for worker in node.workers],
        "shortcuts": summed(pipeline.shortcuts() for pipeline in pipelines),
        "flowtable": summed(pipeline.flows.counters() for pipeline in pipelines if pipeline.flows) or None,
        "tracker": summed(tracker.counters() for tracker in trackers), "count": node.count, "capacity": node.tracking.capacity,
        "zones": summed(tracker.zone_counts() for tracker in trackers),
        "pools": _named(_pools([tracker.nat_pools() for tracker in trackers]), trackers[0]),
        "evictions_lost": sum(tracker.evictions_lost for tracker in trackers),
        "router": _router(node),
        "ifaces": [(each.name, each.driver, condition_of(each, iface), iface.statistics()) for each in node.opened for iface in each.ifaces],
    }  # fmt: skip


def condition_of(opened: Opened, iface: Iface) -> str:
    """Of an iface. A queue without traffic does not notice that its interface has gone, but the interface has only gone as a whole."""
    return "gone" if any(each.condition == "gone" for each in opened.ifaces) else iface.condition


def _router(node: Node) -> dict[str, int] | None:
    """Each worker's router knows all neighbours, so they are counted once."""
    routers = [worker.router for worker in node.workers if worker.router is not None]
    if not routers or node.neighbours is None:
        return None
    tables = summed(router.neighbours.counters() for router in routers)
    return {**summed(router.counters() for router in routers), **tables, "neighbours": len(routers[0].neighbours), **node.neighbours.counters()}


def _whole(summaries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Summaries of several workers as one. What was first there has no number: each worker counts its own packets."""
    if len(summaries) == 1:
        return summaries[0]
    whole: dict[str, Any] = {name: sum(one[name] for one in summaries) for name in summaries[0] if name not in _NO_SUMS}
    seen = [one for one in summaries if one["total_packets"]] or [summaries[0]]
    whole |= {"first_ts": min(one["first_ts"] for one in seen), "last_ts": max(one["last_ts"] for one in seen)}
    return {**whole, "fragments": summed(one["fragments"] for one in summaries)}


def _rule_counters(counters: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """COUNT_DTYPE[n] of the same rules, together."""
    whole = counters[0]
    for one in counters[1:]:
        for name in ("packets", "bytes", "drops", "overlimits"):
            whole[name] += one[name]
        whole["last"] = np.maximum(whole["last"], one["last"])
    return whole


def _pools(pools: Sequence[Sequence[NatPool]]) -> list[NatPool]:
    """Of the same NAT rules. The most at a time is that of all workers if they had it at the same time."""
    return [
        same[0]._replace(
            in_use=sum(pool.in_use for pool in same), high_water=sum(pool.high_water for pool in same), exhausted=sum(pool.exhausted for pool in same)
        )
        for same in zip(*pools, strict=True)
    ]  # fmt: skip


def _named(pools: Iterable[NatPool], tracker: Tracker) -> list[NatPool]:
    """Each with what its rule translates to: a range that `ct` actions name has no text of its own."""
    rules = tracker.config.nat
    return [pool if pool.text else pool._replace(text=_range_text(rules[pool.rule])) for pool in pools]


_range_text = lru_cache(1 << 12)(rule_text)  # these are looked at again and again


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
        "workers": seen["workers"],
        "router": seen["router"],
        "latency": {str(1 << i): int(n) for i, n in enumerate(seen["histogram"].tolist()) if n},
        "flowtable": seen["flowtable"],
        "shortcuts": seen["shortcuts"],
        "offload": seen["offload"],
        "table": {"connections": seen["count"], "max": node.tracking.capacity, "zones": {str(z): n for z, n in seen["zones"].items()}},
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
