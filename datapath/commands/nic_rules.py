"""Rules of tc as a simulated NIC is told of them. Not here: which of them it takes (offload.simnic.capability)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from datapath.pipeline import rules as tc
from datapath.pipeline.header_fields import HEADER_FIELDS
from datapath.pipeline.order import bindings, in_order
from offload.simnic import rules as nic

FAMILIES = {tc.ETH_IP: 4, tc.ETH_IPV6: 6}
# By tc's names, fields that lie within one of the NIC's: its name, and by how many bits they are moved up in it.
PARTS = {
    "vlan_id": ("vlan_tci", 0),
    "vlan_prio": ("vlan_tci", 13),
    "cvlan_id": ("cvlan_tci", 0),
    "cvlan_prio": ("cvlan_tci", 13),
    "type": ("icmp_type", 0),
    "code": ("icmp_code", 0),
}


def nic_rules(ruleset: tc.Ruleset, number: Callable[[str], int]) -> nic.NicRules:
    """All rules at ingress hooks, in the order in which they are tried. number: of a device, as frames say it (Program.device).

    Rules at egress hooks are software's; what is sent to where there are some is marked so.
    """
    bound = bindings(ruleset.qdiscs)
    rules: dict[tuple[tc.Hook, int], list[int]] = {}
    for i, rule in enumerate(ruleset.rules):
        rules.setdefault((rule.hook, rule.chain), []).append(i)
    busy = {hook for hook, _ in rules}
    group = {hook: i for i, hook in enumerate(sorted({hook for hook in busy if hook.direction != "egress"}, key=str))}
    made = _Made(number, lambda hook: bound.get(hook, hook) in busy)
    found = []
    for (hook, _), members in rules.items():
        if hook in group:
            found += [made.rule(members[placed.at], placed.rule, group[hook]) for placed in in_order([ruleset.rules[i] for i in members])]
    devices = {hook.device for hook in (*busy, *bound) if hook.device}
    at = {device: bound.get(tc.Hook(device), tc.Hook(device)) for device in devices}
    return nic.NicRules(tuple(found), {number(device): group[hook] for device, hook in at.items() if hook in group})


class _Made:
    """Rules of the NIC from those of tc. number: of a device; busy: whether a hook has rules."""

    def __init__(self, number: Callable[[str], int], busy: Callable[[tc.Hook], bool]) -> None:
        self.number, self.busy = number, busy

    def rule(self, number: int, rule: tc.Rule, group: int) -> nic.NicRule:
        actions = tuple(self.action(action) for action in rule.actions)
        return nic.NicRule(number, group, rule.chain, tuple(self.matches(rule)), actions, rule.skip_hw, rule.skip_sw)

    def matches(self, rule: tc.Rule) -> Iterator[nic.Match]:
        """The ethertype tells which IP it is, by a field of the NIC's own."""
        if rule.protocol != tc.ETH_ALL:
            yield nic.Match("eth_type", rule.protocol, 0xFFFF)
        family = FAMILIES.get(tc.innermost(rule.protocol, rule.matches))
        if family:
            yield nic.Match("family", family, 0xFF)
        for match in rule.matches:
            if match.name == "indev":
                yield nic.Match("iface", self.number(match.device), 0xFFFF)
                continue
            name, shift = PARTS.get(match.name, (match.name, 96 if match.name in ("src_ip", "dst_ip") and family == 4 else 0))
            yield nic.Match(name, (match.value & match.mask) << shift, match.mask << shift, match.high)

    def action(self, action: tc.Action) -> nic.Action:
        then = nic.Then(action.control.kind, action.control.chain or 0)
        does: dict[type, Callable[[Any, nic.Then], nic.Action]] = {
            tc.Gact: lambda _, then: nic.Plain(then),
            tc.Ct: _ct,
            tc.Mirred: self._send,
            tc.Pedit: lambda each, then: nic.Edit(tuple(_munge(munge) for munge in each.munges), then),
            tc.Csum: lambda each, then: nic.Sum(frozenset(each.of), then),
            tc.Skbedit: lambda each, then: nic.Mark(each.mark or (0, 0), each.priority, each.queue is not None or bool(each.ptype), then),
            tc.Vlan: _tag,
            tc.Police: _police,
        }
        return does[type(action)](action, then)

    def _send(self, action: tc.Mirred, then: nic.Then) -> nic.Action:
        rules = self.busy(tc.Hook(action.device, action.direction))
        return nic.Send(self.number(action.device), action.kind == "mirror", action.direction == "ingress", rules, then)


def _ct(action: tc.Ct, then: nic.Then) -> nic.Action:
    """A mark and labels are set by a commit only."""
    sets = action.commit and (action.mark is not None or action.label is not None)
    return nic.Ct(action.zone, action.nat is not None, action.commit, action.force, action.clear, sets, action.helper is not None, then)


def _munge(munge: tc.Munge) -> nic.Munge:
    field = HEADER_FIELDS[munge.header, munge.field]
    mask = munge.mask & (1 << field.bits) - 1
    value = munge.value & (0xFF if munge.op == "add" else mask)
    under, over = ((each << field.shift).to_bytes(field.size, "big") for each in (value, mask))
    return nic.Munge(munge.header, munge.field, field.offset, under, over, munge.op == "add")


def _tag(action: tc.Vlan, then: nic.Then) -> nic.Action:
    keeps = (0xFFFF if action.id is None else 0xF000) & (0xFFFF if action.priority is None else 0x1FFF)
    return nic.Tag(action.kind, (action.priority or 0) << 13 | (action.id or 0), keeps, action.protocol or tc.ETH_VLAN, then)


def _police(action: tc.Police, then: nic.Then) -> nic.Action:
    exceed = nic.Then(action.exceed.kind, action.exceed.chain or 0)
    rate, burst = action.rate or 0, action.burst or 0
    return nic.Police(rate, burst, action.packet_rate or 0, action.packet_burst or 0, action.longest, exceed, then)
