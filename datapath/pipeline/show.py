"""Rules as a table for people: a heading for each hook and chain, rules in the order in which they are tried.

Not here: text that is read again (tc_print, yaml_rules).
"""

from __future__ import annotations

import io
from collections import defaultdict
from typing import TYPE_CHECKING, TextIO

from datapath.pipeline.flower_keys import ethertype_text, match_text
from datapath.pipeline.order import in_order
from datapath.pipeline.rules import Hook, Rule, Ruleset, Template, innermost
from datapath.pipeline.tc_print import action_text, flags_text
from datapath.pipeline.validate import hook_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

COLUMNS = {"prio": "right", "handle": "right", "protocol": "left", "matches": "left", "does": "left", "flags": "left"}
UNWRAPPED = 1 << 16  # columns of what is no terminal: whoever reads it there looks for whole words
USUAL = "not_in_hw"  # what is said of all rules, as long as no NIC carries any out


def print_rules(ruleset: Ruleset, file: TextIO) -> None:
    """The whole, hook by hook, chains by their numbers. Lines break in terminals only."""
    from rich.console import Console

    if file.isatty():
        _print(ruleset, Console(file=file, highlight=False, markup=False, emoji=False))
        return
    text = io.StringIO()
    _print(ruleset, Console(file=text, highlight=False, markup=False, emoji=False, width=UNWRAPPED, color_system=None))
    file.writelines(f"{line.rstrip()}\n" for line in text.getvalue().splitlines())


def _print(ruleset: Ruleset, console: Console) -> None:
    from rich.text import Text

    templates = {(each.hook, each.chain): each for each in ruleset.templates}
    chains: dict[tuple[Hook, int], list[Rule]] = defaultdict(list)
    for rule in ruleset.rules:
        chains[rule.hook, rule.chain].append(rule)
    for key in templates:
        chains.setdefault(key, [])
    for qdisc in ruleset.qdiscs:
        blocks = [f"{way} is block {block}" for way, block in (("ingress", qdisc.ingress_block), ("egress", qdisc.egress_block)) if block is not None]
        console.print(Text(f"dev {qdisc.device}: {', '.join([qdisc.kind, *blocks])}"), soft_wrap=True)
    for (hook, chain), rules in sorted(chains.items(), key=lambda item: (item[0][0].block or 0, item[0][0].device, item[0][0].direction, item[0][1])):
        console.print(Text(f"\n{hook_text(hook)}, chain {chain}{_template(templates.get((hook, chain)))}", style="bold"), soft_wrap=True)
        console.print(_table(rules) if rules else Text("no rules"))


def _table(rules: list[Rule]) -> Table:
    """A chain's rules. Flags are there if any rule has others than all have."""
    from rich.table import Table
    from rich.text import Text

    rows = [_row(placed.rule) for placed in in_order(rules)]
    shown = len(COLUMNS) - all(row[-1] == USUAL for row in rows)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name, justify in list(COLUMNS.items())[:shown]:
        table.add_column(name, justify="right" if justify == "right" else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row[:shown]))
    return table


def _template(template: Template | None) -> str:
    if template is None:
        return ""
    inner = innermost(template.protocol, template.matches)
    keys = ", ".join(match_text(match, inner) for match in template.matches) or "nothing"
    return f", which looks at no more than {keys} of {ethertype_text(template.protocol)}"


def _row(rule: Rule) -> tuple[str, ...]:
    inner = innermost(rule.protocol, rule.matches)
    return (
        str(rule.prio),
        f"{rule.handle:#x}",
        ethertype_text(rule.protocol),
        "  ".join(match_text(match, inner) for match in rule.matches) or "everything",
        "; ".join(map(action_text, rule.actions)) or "pass",
        flags_text(rule),
    )
