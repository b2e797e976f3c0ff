"""What rules did, for people: which matched how often, what never did, and what the flow table had of it.

Not here: the rest of a replay's summary (report).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from rich.table import Table
from rich.text import Text

from ctcore.config import Config
from ctcore.nat_rules import NatPool, NatRule
from datapath import fields
from datapath.app import RulesAtWork
from datapath.hints import counted
from datapath.names import printable
from datapath.pipeline.ct_settings import nat_rule, settings_of
from datapath.pipeline.rules import Ct, Rule, Ruleset
from datapath.pipeline.tc_print import rule_line
from datapath.report import count, duration_text, plain, size_text
from datapath.rule_text import rule_text

MOST_ROWS = 12
MOST_NAMES = 3
MOST_SILENT = 24
TORN_DOWN = {
    "teardown_fin": "FIN", "teardown_rst": "RST", "teardown_idle": "idle", "teardown_dying": "ended by the tracker", "teardown_flush": "flushed",
    "teardown_outdated": "hardware took it for new",
}  # fmt: skip


def rules_parts(rules: RulesAtWork, end: int | None) -> Iterator[Table | Text]:
    """The rules that matched, the most frequent first, and the flow table. end: ns of the last packet, if when rules matched last is to be told, and
    which did not match at all."""
    came = [f"{hook.device} {hook.direction} {count(packets)}" for hook, packets in rules.came.items() if packets]
    yield Text(f"\npackets came to: {', '.join(map(printable, came))}")
    matched = np.flatnonzero(rules.counters["packets"])
    ranked = sorted(matched.tolist(), key=lambda i: -int(rules.counters["packets"][i]))
    lost = [name for name in ("drops", "overlimits") if rules.counters[name].any()]
    heads = ("rule", "packets", "wire bytes", *lost, *(["last used"] if end is not None else []), "")
    table = plain(*heads, right=("packets", "wire bytes", *lost, "last used"))
    table.columns[-1].overflow = "ellipsis"
    for i in ranked[:MOST_ROWS]:
        rule, seen = rules.ruleset.rules[i], rules.counters[i]
        used = [] if end is None else [ago(end - int(seen["last"]))]
        counts = [count(int(seen[name])) for name in lost]
        table.add_row(Text(_place(rule)), count(int(seen["packets"])), size_text(int(seen["bytes"])), *counts, *used, Text(_text(rule)))
    yield Text()
    yield table
    silent = len(rules.ruleset.rules) - len(matched)
    if len(ranked) > MOST_ROWS:
        yield Text(f"  and {counted(len(ranked) - MOST_ROWS, 'rule')} that matched less often")
    if silent:
        names = [_place(rule) for rule, seen in zip(rules.ruleset.rules, rules.counters["packets"].tolist(), strict=True) if not seen]
        yield Text(f"  {counted(silent, 'rule')} matched nothing" + (f": {_some(names, MOST_SILENT)}" if end is not None else ""))
    if rules.mirrored:
        copies = sorted(rules.mirrored.items(), key=lambda one: (-one[1], one[0]))
        told = [f"{counted(frames, 'frame')} to {printable(device)}" for device, frames in copies]
        yield Text(f"mirrored: {', '.join(told)}")
    for reason in np.flatnonzero(rules.lost).tolist():
        yield Text(f"  {counted(int(rules.lost[reason]), 'mirrored frame')} did not leave: {fields.REASON_NAMES[reason]}")
    if rules.flows is not None:
        yield from _flow_table(rules.flows)


def pool_names(ruleset: Ruleset, config: Config, pools: Sequence[NatPool]) -> list[str]:
    """Each range with the rules that translate to it. config: the tracker's, without what rules ask of it."""
    ranges = settings_of(ruleset, config).nat
    places: dict[NatRule, dict[str, None]] = {}
    for rule in ruleset.rules:
        for action in rule.actions:
            if isinstance(action, Ct) and action.nat is not None and action.nat.kind:
                places.setdefault(nat_rule(action.nat), {})[_place(rule)] = None
    texts = [f"{pool.kind} {pool.text or rule_text(ranges[pool.rule])}" for pool in pools]
    by = [_some(places.get(ranges[pool.rule], ())) for pool in pools]
    return [f"{text}\n  by {names}" if names else text for text, names in zip(texts, by, strict=True)]


def _some(names: Iterable[str], most: int = MOST_NAMES) -> str:
    """The first of several names."""
    first, more = list(names)[:most], len(list(names)) - most
    return ", ".join([*first, *([f"and {more:,} more"] if more > 0 else [])])


def ago(ns: int) -> str:
    """As tc counts it, but from the last packet on."""
    return "at the end" if ns <= 0 else f"{duration_text(ns)} ago"


def _place(rule: Rule) -> str:
    return f"{printable(rule.place.file.rpartition('/')[2])}:{rule.place.line}"


def _text(rule: Rule) -> str:
    """The rule as tc has it, from what it matches on."""
    return rule_line(rule).removeprefix("tc filter add ")


def _flow_table(flows: dict[str, int]) -> Iterator[Text]:
    if not flows["admitted"]:
        yield Text("flow table: no connection was admitted")
        return
    yield Text(f"flow table: {counted(flows['admitted'], 'connection')} admitted, {counted(flows['served'], 'packet')} served")
    ended = [f"{words} {count(flows[name])}" for name, words in TORN_DOWN.items() if flows[name]]
    if ended:
        yield Text(f"  torn down: {', '.join(ended)}")
