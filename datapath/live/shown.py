"""A node's figures for people: tables for `ctmirror stats`, and the busiest connections for `ctmirror top`.

Fits 80 columns in a pipe. Invariant: what is 0 everywhere is left out; numbers are those of the answer.
Not here: the figures (figures), asking for them (client).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from rich.table import Table
from rich.text import Text

from datapath.fields import Record
from datapath.hints import counted
from datapath.live.lost import LOOP, ROUTER, losses, named
from datapath.live.rows import RING_DROPS
from datapath.report import count, duration_text, plain, rate_text, size_text

FACTS_OF_IFACES = {"rx": "in", "rx_bytes": "in bytes", "tx": "out", "tx_bytes": "out bytes"}
ENOUGH_RULES = 10


def stats_parts(stats: dict[str, Any]) -> Iterator[Table | Text]:
    """All of it."""
    table, events, control = stats["table"], stats["events"], stats["control"]
    loop = {name: n for name, n in stats["loop"].items() if name != "frame_ns" and name not in LOOP}
    routed = {name: n for name, n in (stats["router"] or {}).items() if name not in ROUTER}
    rate = rate_text(stats["packets"] / max(stats["uptime"], 1e-3))
    yield Text(f"up {duration_text(int(stats['uptime'] * 1e9))}; {count(stats['packets'])} packets, {size_text(stats['bytes'])}; {rate} on average")
    if stats["router"] is not None and (frames := stats["loop"]["frames"]):
        yield Text(f"{count(frames)} frames received; a routed one counts as two packets, in and out")
    yield Text(f"{count(table['connections'])} of {count(table['max'])} connections" + _zones(table["zones"]))
    yield Text()
    yield _states(stats)
    yield from _lost(stats)
    for title, counts in (("verdict", stats["verdicts"]), ("reason", stats["reasons"]), ("tracker", stats["tracker"]), ("loop", loop)):
        yield from _counts(title, counts)
    yield from _latency(stats["latency"])
    yield from _ifaces(stats["ifaces"])
    yield from _counts("flow table", {**(stats["flowtable"] or {}), **{f"shortcuts: {name}": n for name, n in stats["shortcuts"].items()}})
    yield from _offload(stats["offload"])
    yield from _counts("router", routed)
    yield from _pools(stats["pools"])
    yield from _rules(stats["rules"])
    yield from _counts("events", events)
    yield from _counts("control", control)


def _zones(zones: dict[str, int]) -> str:
    if set(zones) <= {"0"}:
        return ""
    ranked = sorted(zones.items(), key=lambda item: -item[1])
    return "; zones: " + ", ".join(f"{zone} has {count(n)}" for zone, n in ranked[:5]) + (", ..." if len(ranked) > 5 else "")


def _states(stats: dict[str, Any]) -> Table:
    table = plain("state", "packets", "share", "wire bytes", right=("packets", "share", "wire bytes"))
    for name, seen in stats["states"].items():
        if seen["packets"]:
            table.add_row(name, count(seen["packets"]), f"{100 * seen['packets'] / max(stats['packets'], 1):.1f}%", size_text(seen["bytes"]))
    return table


def _lost(stats: dict[str, Any]) -> Iterator[Table | Text]:
    """Where packets were lost, on their way from an interface to another."""
    found = list(losses(stats))
    if not found:
        return
    table = plain("lost at", "counter", "packets", "", right=("packets",))
    for loss in found:
        table.add_row(Text(loss.where), loss.counter, count(loss.packets), Text(loss.said))
    yield Text()
    yield table


def _counts(title: str, counts: dict[str, int]) -> Iterator[Table | Text]:
    """Counters that are not 0."""
    rows = {name: n for name, n in counts.items() if n}
    if not rows:
        return
    table = plain(title, "", right=("",))
    for name, n in rows.items():
        table.add_row(Text(name), count(n))
    yield Text()
    yield table


def _latency(latency: dict[str, int]) -> Iterator[Table | Text]:
    """How long the batches of most frames took, and of nearly all. latency: frames by the lower bound of a power of two, ns."""
    total, below, said = sum(latency.values()), 0, []
    wanted = [(0.5, "half of all frames"), (0.99, "99 in 100"), (0.9999, "9,999 in 10,000"), (1.0, "all")]
    for bound, n in latency.items():
        below += n
        while wanted and below >= wanted[0][0] * total:
            said.append(f"{wanted.pop(0)[1]} within {_short(2 * int(bound))}")
    if total:
        yield Text()
        yield Text(f"  {', '.join(said)}")


def _short(ns: int) -> str:
    return f"{ns / 1e3:.0f} us" if ns < 1_000_000 else duration_text(ns)


def _ifaces(ifaces: list[dict[str, Any]]) -> Iterator[Table | Text]:
    table = plain("interface", "driver", "is", *FACTS_OF_IFACES.values(), right=tuple(FACTS_OF_IFACES.values()))
    others = []
    for name, iface in named(ifaces):
        facts = [size_text(iface[key]) if key.endswith("bytes") else count(iface[key]) for key in FACTS_OF_IFACES]
        table.add_row(Text(name), iface["driver"], iface["condition"], *facts)
        more = [f"{key} {count(n)}" for key, n in iface.items() if isinstance(n, int) and n and key not in (*FACTS_OF_IFACES, *RING_DROPS, "queue")]
        others += [Text(f"  {name}: {', '.join(more)}")] if more else []
    yield Text()
    yield table
    yield from others


def _offload(told: dict[str, Any] | None) -> Iterator[Table | Text]:
    """What of it is in hardware; `ctmirror offload status` says more."""
    if told is None:
        return
    yield Text()
    yield Text(in_hardware(told))
    yield from _counts("refused by hardware", told["refused"])
    yield from _counts("in software, since", told["software_packets"])


def in_hardware(told: dict[str, Any]) -> str:
    """Figures of offloading as a line."""
    said = [f"{100 * told[what]['hardware'] / max(sum(told[what].values()), 1):.1f}% of {what}" for what in ("packets", "bytes")]
    said += [f"{count(told['entries'])} entries" if told["capacity"] is None else f"{count(told['entries'])} of {count(told['capacity'])} entries"]
    waiting = sum(told["jobs"].values())
    said += [counted(waiting, "job")] * bool(waiting) + [counted(told["syns"] or 0, "SYN")] * bool(told["syns"])
    return f"hardware ({told['backend']}): {', '.join(said)}"


def _pools(pools: list[dict[str, Any]]) -> Iterator[Table | Text]:
    if not pools:
        return
    table = plain("translation", "kind", "size", "in use", "most", "exhausted", right=("size", "in use", "most", "exhausted"))
    for pool in pools:
        table.add_row(
            Text(pool["text"] or f"rule {pool['rule']}"), pool["kind"], *(count(pool[name]) for name in ("size", "in_use", "high_water", "exhausted"))
        )
    yield Text()
    yield table


def _rules(rules: dict[str, Any]) -> Iterator[Table | Text]:
    shown = rules["top"][:ENOUGH_RULES]
    dropped = ["drops"] * any(rule["drops"] for rule in shown)
    table = plain("rule", "packets", "wire bytes", *dropped, "", right=("packets", "wire bytes", "drops"))
    table.columns[-1].overflow = "ellipsis"
    for rule in shown:
        place = rule["place"].rpartition("/")[2]
        facts = [count(rule["packets"]), size_text(rule["bytes"]), *(count(rule[name]) for name in dropped)]
        table.add_row(Text(place), *facts, Text(_short_rule(rule["rule"]), no_wrap=True))
    yield Text()
    if rules["top"]:
        yield table
    yield Text(f"  {count(rules['matched'])} of {count(rules['rules'])} rules have matched")


def _short_rule(line: str) -> str:
    """What tells a rule from its neighbours comes first: where it is, what it looks at, what it does; its number says nothing to people."""
    return re.sub(r" prio [0-9]+| chain 0(?= )| handle 0x[0-9a-f]+|(?<= )protocol |(?<= )flower ", "", line.removeprefix("tc filter add "))


# --- top --------------------------------------------------------------------------------------------------------------------------------


def top_parts(answer: dict[str, Any]) -> tuple[Text, Table]:
    """An answer to `top`: all connections in a line, then the busiest ones."""
    speed = f"{rate_text(answer['packet_rate'])}, {size_text(answer['byte_rate'])}/s in the last {answer['seconds']:.1f} s"
    zones = any(record["zone"] for record in answer["top"])
    table = plain("proto", *["zone"] * zones, "from", "to", "state", "flow", "pps", "per second", right=("zone", "pps", "per second"))
    for record in answer["top"]:
        table.add_row(
            record["proto"], *[str(record["zone"])] * zones,
            Text(_end(record, "src", "sport"), overflow="fold"), Text(_end(record, "dst", "dport"), overflow="fold"),
            record["l4state"] or ("replied" if "seen-reply" in record["status"] else "unreplied"), _flow(record),
            f"{record['packet_rate']:,.0f}", f"{size_text(record['byte_rate'])}",
        )  # fmt: skip
    first = Text(f"{counted(answer['connections'], 'connection')}, {speed}")
    offload = answer.get("offload")
    return Text("\n").join([first, Text(in_hardware(offload))]) if offload else first, table


def _end(record: Record, address: str, port: str) -> str:
    flow = record["original"]
    shown = f"[{flow[address]}]" if ":" in flow[address] else flow[address]
    return f"{shown}:{flow[port]}" if flow.get(port) is not None else str(flow[address])


def _flow(record: Record) -> str:
    return "hardware" if "hw-offload" in record["status"] else "software" if "offload" in record["status"] else ""
