"""Where a node has lost packets: every counter that stands for a loss, with what it says, for the table of `ctmirror stats`.

A packet is lost before rules see it (rings of an interface, lanes between workers), by a decision (a reason of the kind that drops), by a router, or
on its way out. Invariants: a loss is told once, so what an interface refused stands with the interface, not as the loop's `not_sent`; what waits
(held fragments) is not lost.
Not here: the counters themselves (rows, loop, handoff, router), other figures (shown).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from ctcore import reasons
from datapath.live.rows import COUNTERS, RING_DROPS

LOOP = {
    "lane_full": "another worker did not come to what was handed to it",
    "fragments_late": "fragments whose first one did not come in time",
    "fragments_crowded": "fragments for which there was no place to wait",
    "fragments_untold": "first fragments without ports",
    "nobody": "passed where nobody takes them: no `inward`, not `routed`, or redirected to no interface of this node",
    "no_chunk": "copies for which there was no chunk ([memory] chunks)",
    "too_long": "larger than a chunk ([memory] chunk)",
    "too_many": "more copies than a round has places for",
}
ROUTER = {
    "malformed": "headers that cannot be",
    "not_ip": "VLAN tags, and all that is no IP",
    "other_mac": "to another station",
    "group": "to many: multicast, broadcast",
    "martian": "addresses that no wire has",
    "source_routed": "source routes",
    "own": "to this machine",
    "no_route": "no route",
    "prohibited": "a route that prohibits",
    "blackhole": "a route into nothing",
    "ttl": "the last hop: TTL or hop limit ran out",
    "too_big": "larger than the MTU, and not to be cut",
    "held_dropped": "waited for a next hop's address, and gave way to others",
    "unreachable": "next hop does not answer",
    "down": "the interface is down",
}
DROPPED = {reason.name: reason.sentence for reason in reasons.REASONS if reason.effect == "dropped"}


class Loss(NamedTuple):
    """where: an interface, `loop`, `router` or `decision`; counter: its name in `stats --json`; packets; said: what it means."""

    where: str
    counter: str
    packets: int
    said: str


def losses(stats: dict[str, Any]) -> Iterator[Loss]:
    """Those that are not 0, in the order of a packet's way. stats: as `stats` is answered."""
    for name, iface in named(stats["ifaces"]):
        yield from (Loss(name, key, iface[key], COUNTERS[key]) for key in RING_DROPS if key.startswith("rx_") and iface.get(key))
    yield from (Loss("loop", key, stats["loop"][key], LOOP[key]) for key in LOOP if stats["loop"].get(key))
    yield from (Loss("decision", key, n, DROPPED[key]) for key, n in stats["reasons"].items() if key in DROPPED and n)
    yield from (Loss("router", key, n, ROUTER[key]) for key, n in (stats["router"] or {}).items() if key in ROUTER and n)
    for name, iface in named(stats["ifaces"]):
        yield from (Loss(name, key, iface[key], COUNTERS[key]) for key in RING_DROPS if key.startswith("tx_") and iface.get(key))


def named(ifaces: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each with its name, and its queue if it has several."""
    for iface in ifaces:
        several = sum(other["name"] == iface["name"] for other in ifaces) > 1
        yield iface["name"] + (f" queue {iface['queue']}" if several else ""), iface
