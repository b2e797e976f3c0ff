"""Whether rules and interfaces belong together: devices that rules name and the node has not, interfaces from which nothing goes
anywhere, rules that nothing comes to; and whether sides of offloading have the zones that rules track in.

Each doubt is a line for the log, for `run --check` and for whoever replaces rules: rules that are right by themselves are no protection at an
interface that they do not name. Invariants: a device is named once for each thing that is wrong with it; nothing here is an error, since a rules file
may be shared by nodes of which each has some of its devices.
Not here: what is wrong with the configuration (config) or with rules (pipeline.validate), whether the machine has such interfaces (drivers).
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from datapath.pipeline.findings import line_of
from datapath.pipeline.rules import Ct, Mirred, Place, Ruleset

if TYPE_CHECKING:
    from datapath.live.config import NodeConfig

MOST = 10  # lines


def doubts_of(config: NodeConfig, ruleset: Ruleset) -> list[str]:
    """What is doubtful of these rules at this node's interfaces: some lines, the first MOST of them and how many more there are."""
    names = [iface.name for iface in config.iface]
    found = [*_strangers(names, ruleset), *_dead_ends(config, ruleset), *_idle_egress(config, ruleset), *_zones(config, ruleset)]
    return found if len(found) <= MOST else [*found[:MOST], f"{len(found) - MOST:,} more of the kind"]


def absent(config: NodeConfig) -> Iterator[str]:
    """Interfaces that are not in this network namespace now. A tap is made by the node."""
    for iface in config.iface:
        if iface.driver != "tap":
            try:
                socket.if_nametoindex(iface.name)
            except OSError:
                yield f"{iface.name}: no such interface in this network namespace now"


def _strangers(names: Sequence[str], ruleset: Ruleset) -> Iterator[str]:
    """Devices of rules that are none of this node's."""
    has = f"this node has no such interface (but {', '.join(names)})"
    seen: dict[str, Place] = {}
    for rule in ruleset.rules:
        if rule.hook.block is None and rule.hook.device not in names:
            seen.setdefault(rule.hook.device, rule.place)
    for qdisc in ruleset.qdiscs:
        if (qdisc.ingress_block or qdisc.egress_block) and qdisc.device not in names:
            seen.setdefault(qdisc.device, qdisc.place)
    yield from (line_of(place, f"dev {device}", f"{has}: its rules see no packet") for device, place in seen.items())
    targets: dict[str, Place] = {}
    for rule in ruleset.rules:
        for action in rule.actions:
            if isinstance(action, Mirred) and action.device not in names:
                targets.setdefault(action.device, rule.place)
    yield from (line_of(place, f"mirred dev {device}", f"{has}: what is sent there is lost") for device, place in targets.items())


def _dead_ends(config: NodeConfig, ruleset: Ruleset) -> Iterator[str]:
    """Interfaces that have neither a way on nor rules that send. One that others send to may be meant to give nothing back."""
    senders = {rule.hook.device for rule in ruleset.rules if any(isinstance(action, Mirred) for action in rule.actions)}
    blocks = {rule.hook.block for rule in ruleset.rules if rule.hook.block is not None}
    senders |= {qdisc.device for qdisc in ruleset.qdiscs if qdisc.ingress_block in blocks}
    targets = {action.device for rule in ruleset.rules for action in rule.actions if isinstance(action, Mirred)}
    targets |= {iface.inward for iface in config.iface if iface.inward is not None}
    for iface in config.iface:
        if not iface.routed and iface.inward is None and iface.name not in senders | targets:
            yield f"{iface.name}: nothing that comes there goes on: expected `inward`, `routed = true`, or rules that redirect it"


def _idle_egress(config: NodeConfig, ruleset: Ruleset) -> Iterator[str]:
    """Rules at an egress that nothing comes to: `inward` hands over what passed, and asks no further rules."""
    targets = {action.device for rule in ruleset.rules for action in rule.actions if isinstance(action, Mirred) and action.direction == "egress"}
    idle = {iface.name for iface in config.iface if not iface.routed} - targets
    seen: dict[str, Place] = {}
    for rule in ruleset.rules:
        if rule.hook.block is None and rule.hook.direction == "egress" and rule.hook.device in idle:
            seen.setdefault(rule.hook.device, rule.place)
    said = "no packet comes there: what goes on by `inward` asks no rules at the egress; expected rules at an ingress, `routed`, or a redirect"
    yield from (line_of(place, f"dev {device} egress", said) for device, place in seen.items())


def _zones(config: NodeConfig, ruleset: Ruleset) -> Iterator[str]:
    """Zones in which rules track and that no side of offloading has, and the other way round: an exact filter needs both."""
    sides = config.offload.side
    tracked: dict[int, Place] = {}
    for rule in ruleset.rules:
        for action in rule.actions:
            if isinstance(action, Ct) and not action.clear:
                tracked.setdefault(action.zone, rule.place)
    for zone in sorted(tracked.keys() - {side.zone for side in sides}) if sides else ():
        yield line_of(tracked[zone], f"ct zone {zone}", "no [[offload.side]] has this zone: its connections have no exact filters")
    for i, side in enumerate(sides):
        if side.zone not in tracked:
            yield f"offload.side[{i}]: {side.device}: no rule tracks in zone {side.zone}: no connection is of this side"
