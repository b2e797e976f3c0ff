"""`ctmirror offload audit --kernel RULES`: the kernel's TC and its conntrack against a rules file, without a node.

Theory of operation: what would be done to install the file is what differs; of devices that are not there all is missing, and the others are looked
at all the same. The kernel's conntrack is counted by zone. Nothing is changed.
Not here: what differs (tc.install, offload.drift), connections of a node (offload_live).
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from ctcore.errors import CtmirrorError
from datapath.commands.tc.ask import KernelTc, line_of
from datapath.commands.tc.install import ADD, DELETE, MARK, Plan, hooks_of, planned
from datapath.doctor import tc_flower
from datapath.hints import counted
from datapath.pipeline import rules as tc
from datapath.pipeline.renamed import named_devices
from datapath.pipeline.tc_print import rule_line
from offload.drift import Drift, Finding, Zone, of_zones, zones_of
from offload.netlink.channel import NetlinkError
from offload.netlink.conntrack import KernelConntrack
from offload.netlink.extack import LACKS_FLOWER

MISSING = {tc.Qdisc: Drift.QDISC_MISSING, tc.Template: Drift.CHAIN_MISSING, tc.Rule: Drift.FILTER_MISSING}


def found_in_kernel(wanted: tc.Ruleset) -> tuple[list[Finding], list[Zone], int]:
    """What is otherwise, the zones of the kernel's conntrack, and how many rules are as they are meant. Raises CtmirrorError."""
    with _listing("TC"), KernelTc(MARK) as kernel:
        found, plan = _compared(wanted, kernel)
    with _listing("conntrack"), KernelConntrack() as conntrack:
        zones = zones_of(*conntrack.all())
    return [*_cause(found), *found, *of_zones(zones, zones_meant(wanted))], zones, plan.same


def _cause(found: list[Finding]) -> Iterator[Finding]:
    """What all that is missing has as its cause, if this kernel has no filters of our kind. None is made to find that out."""
    flower = tc_flower()
    if not flower.ok and any(finding.what is Drift.FILTER_MISSING for finding in found):
        yield Finding(Drift.NO_FLOWER, flower.found, LACKS_FLOWER)


@contextmanager
def _listing(what: str) -> Iterator[None]:
    """Says what cannot be listed, and what it takes."""
    try:
        yield
    except (NetlinkError, OSError) as error:
        number = error.number if isinstance(error, NetlinkError) else error.errno
        if number in (errno.EPERM, errno.EACCES):
            raise CtmirrorError(f"the kernel's {what} cannot be listed: not permitted: expected root, or cap_net_admin") from None
        if isinstance(error, NetlinkError):
            raise
        raise CtmirrorError(f"the kernel's {what} cannot be listed: {error.strerror}") from None


def found_of_rules(wanted: tc.Ruleset, kernel: KernelTc) -> list[Finding]:
    """What of them is otherwise in TC, and which of their devices are not there or down. kernel: as it is now. Raises NetlinkError."""
    return _compared(wanted, kernel)[0]


def _compared(wanted: tc.Ruleset, kernel: KernelTc) -> tuple[list[Finding], Plan]:
    there, missing = _here(wanted, kernel)
    plan = planned(there, kernel.listed(hooks_of(there)))
    return [*missing, *of_plan(plan), *_idle(there, kernel)], plan


def zones_meant(wanted: tc.Ruleset) -> set[int]:
    return {action.zone for rule in wanted.rules for action in rule.actions if isinstance(action, tc.Ct) and not action.clear}


def of_plan(plan: Plan) -> Iterator[Finding]:
    """A rule that another one of ours has the name of is changed, also where the kernel would not replace it in place."""
    for line in (*plan.conflicts, *plan.ahead):
        yield Finding(Drift.FILTER_FOREIGN, line)
    rules = [step for step in plan.steps if isinstance(step.part, tc.Rule)]
    gone = {_name(step.part) for step in rules if step.do == DELETE and isinstance(step.part, tc.Rule)}
    meant = {_name(step.part) for step in rules if step.do != DELETE and isinstance(step.part, tc.Rule)}
    for step in plan.steps:
        if not isinstance(step.part, tc.Rule):
            if step.do == ADD:
                yield Finding(MISSING[type(step.part)], line_of(step.part))
        elif step.do == DELETE:
            if _name(step.part) not in meant:
                yield Finding(Drift.FILTER_EXTRA, rule_line(step.part))
        else:
            changed = step.do != ADD or _name(step.part) in gone
            yield Finding(Drift.FILTER_CHANGED if changed else Drift.FILTER_MISSING, rule_line(step.part))


def _name(rule: tc.Rule) -> tuple[Any, ...]:
    return rule.hook, rule.chain, rule.prio, rule.handle


def _here(wanted: tc.Ruleset, kernel: KernelTc) -> tuple[tc.Ruleset, list[Finding]]:
    """The part of a file whose devices are there, and what is said of the others."""
    devices = {hook.device for hook in hooks_of(wanted) if hook.block is None} | {qdisc.device for qdisc in wanted.qdiscs}
    missing = devices - kernel.numbers.keys()
    found = []
    for device in sorted({device for device, _ in named_devices(wanted)} - kernel.numbers.keys()):
        lost = sum(rule.hook.device == device for rule in wanted.rules)
        why = f"{counted(lost, 'rule')} of it not there" if device in missing else "rules of other devices name it"
        found.append(Finding(Drift.DEVICE_MISSING, device, why))
    there = replace(
        wanted,
        qdiscs=tuple(qdisc for qdisc in wanted.qdiscs if qdisc.device not in missing),
        templates=tuple(each for each in wanted.templates if each.hook.device not in missing),
        rules=tuple(rule for rule in wanted.rules if rule.hook.device not in missing),
    )
    return there, found


def _idle(wanted: tc.Ruleset, kernel: KernelTc) -> Iterator[Finding]:
    running = kernel.running()
    for device in sorted({hook.device for hook in hooks_of(wanted) if hook.block is None}):
        if not running.get(device, True):
            yield Finding(Drift.DEVICE_DOWN, device, "no packet comes through it")


# --- as it is shown ---------------------------------------------------------------------------------------------------------------------------


def lines(found: list[Finding], zones: list[Zone], same: int, rules: int) -> Iterator[str]:
    """rules: how many are meant; same: how many of these are there so."""
    yield from (finding.told() for finding in found)
    for zone in zones:
        yield (
            f"zone {zone.zone}: {counted(zone.connections, 'connection')}, {zone.established:,} established, {zone.offloaded:,} offloaded, "
            f"{zone.in_hardware:,} in hardware"
        )
    drift = sum(finding.drift for finding in found)
    yield f"{same:,} of {counted(rules, 'rule')} as they are meant; {counted(drift, 'difference') if drift else 'nothing differs'}"


def document(found: list[Finding], zones: list[Zone], same: int, rules: str) -> dict[str, Any]:
    return {"rules": rules, "same": same, "findings": [finding.record() for finding in found], "zones": [zone._asdict() for zone in zones]}
