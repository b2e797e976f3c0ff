"""Rules, templates and qdiscs as requests to the kernel's TC.

Example: `tc filter add dev eth0 ingress protocol ip prio 2 chain 0 handle 7 flower ct_state -trk action ct zone 5 pipe action goto chain 1` is the
message that tc itself sends for this line, attribute by attribute. Devices are told by numbers, which the kernel gives anew when an interface is made
anew: so messages are made when they are sent.
Not here: what a rule may say (validate), bytes (offload.netlink), asking (ask).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from datapath.commands.tc.munges import words_of
from datapath.pipeline import rules as tc
from datapath.pipeline.tc_actions import PTYPES
from offload.netlink import actions, filters, flower
from offload.netlink.actions import Packed

CONTROLS = {
    "pass": actions.PASS, "pipe": actions.PIPE, "drop": actions.DROP, "continue": actions.CONTINUE, "reclassify": actions.RECLASSIFY,
}  # fmt: skip
PARENTS = {"ingress": filters.INGRESS_PARENT, "egress": filters.EGRESS_PARENT}
MIRRED = {
    ("redirect", "egress"): actions.EGRESS_REDIRECT, ("mirror", "egress"): actions.EGRESS_MIRROR,
    ("redirect", "ingress"): actions.INGRESS_REDIRECT, ("mirror", "ingress"): actions.INGRESS_MIRROR,
}  # fmt: skip
NAT = {"src": actions.NAT_SRC, "dst": actions.NAT_DST, "": 0}
VLAN = {"pop": actions.POP, "push": actions.PUSH, "modify": actions.MODIFY}

Part = tc.Qdisc | tc.Template | tc.Rule


def control_number(control: tc.Control) -> int:
    return actions.goto(control.chain or 0) if control.kind == "goto" else CONTROLS[control.kind]


class Encoder:
    """Requests for one network namespace. number: of a device by its name, raising KeyError or OSError if there is none.

    cookie: up to 16 bytes that mark what is ours, on each action (the kernel keeps none for a filter); hw_stats: how hardware shall count, 0: any
    way.
    """

    def __init__(self, number: Callable[[str], int], cookie: bytes = b"", hw_stats: int = 0) -> None:
        self.number, self.cookie, self.hw_stats = number, cookie, hw_stats

    def ruleset(self, ruleset: tc.Ruleset) -> Iterator[tuple[Part, bytes]]:
        """All of it, in the order in which it has to be there: qdiscs, templates, rules; each with the request that makes it."""
        for qdisc in ruleset.qdiscs:
            yield qdisc, self.qdisc(qdisc)
        for template in ruleset.templates:
            yield template, self.template(template)
        for rule in ruleset.rules:
            yield rule, self.rule(rule)

    def qdisc(self, qdisc: tc.Qdisc) -> bytes:
        return filters.new_qdisc(self.number(qdisc.device), qdisc.kind, qdisc.ingress_block, qdisc.egress_block)

    def template(self, template: tc.Template) -> bytes:
        keys = flower.keys(template.protocol, template.matches)
        return filters.new_chain(self.where(template.hook), template.chain, template.protocol, keys)

    def rule(self, rule: tc.Rule, *, replace: bool = False, echo: bool = False) -> bytes:
        """A rule with its prio and handle. Raises ValueError for a burst that no message can say. replace: also where there is one of that name."""
        keys = flower.keys(rule.protocol, rule.matches)
        does = actions.listed([self.action(action) for action in rule.actions], self.cookie, self.hw_stats)
        flags = flower.SKIP_SW * rule.skip_sw | flower.SKIP_HW * rule.skip_hw
        options = filters.filter_options(keys, does, flags)
        return filters.new_filter(self.where(rule.hook), name_of(rule), options, replace=replace, echo=echo)

    def removal(self, part: Part) -> bytes:
        """Of a rule; of a template's chain, or of a qdisc, with all that is in it."""
        if isinstance(part, tc.Qdisc):
            return filters.delete_qdisc(self.number(part.device))
        if isinstance(part, tc.Template):
            return filters.delete_chain(self.where(part.hook), part.chain)
        return filters.delete_filter(self.where(part.hook), name_of(part))

    def where(self, hook: tc.Hook) -> filters.Where:
        if hook.block is not None:
            return filters.block(hook.block)
        return filters.Where(self.number(hook.device), PARENTS[hook.direction])

    def action(self, action: tc.Action) -> Packed:
        return _ACTIONS[type(action)](self, action, control_number(action.control))


def name_of(rule: tc.Rule) -> filters.Name:
    return filters.Name(rule.chain, rule.prio, rule.protocol, rule.handle)


# --- actions ------------------------------------------------------------------------------------------------------------------------------


def _ct(encoder: Encoder, action: tc.Ct, control: int) -> Packed:
    flags = actions.COMMIT * action.commit | actions.FORCE * action.force | actions.CLEAR * action.clear
    nat, told = action.nat, None
    if nat is not None:
        told = actions.Nat()
        if nat.low is not None and nat.high is not None:
            told = actions.Nat(NAT[nat.kind], nat.low.version, int(nat.low), int(nat.high), nat.ports)
    return actions.ct(control, flags, action.zone, action.mark, action.label, told, action.helper)


def _mirred(encoder: Encoder, action: tc.Mirred, control: int) -> Packed:
    """A packet that is redirected is gone, which the kernel wants to hear as STOLEN."""
    follows = actions.STOLEN if action.kind == "redirect" else control
    return actions.mirred(follows, MIRRED[action.kind, action.direction], encoder.number(action.device))


def _pedit(encoder: Encoder, action: tc.Pedit, control: int) -> Packed:
    return actions.pedit(control, [word for munge in action.munges for word in words_of(munge)])


def _skbedit(encoder: Encoder, action: tc.Skbedit, control: int) -> Packed:
    ptype = PTYPES.index(action.ptype) if action.ptype else None
    return actions.skbedit(control, action.mark, action.priority, action.queue, PTYPE_NUMBERS[ptype] if ptype is not None else None)


def _police(encoder: Encoder, action: tc.Police, control: int) -> Packed:
    rate, exceed = (action.rate or 0) // 8, control_number(action.exceed)
    return actions.police(control, exceed, rate, action.burst or 0, action.mtu or 0, action.packet_rate or 0, action.packet_burst or 0)


PTYPE_NUMBERS = (0, 3, 1, 2)  # PACKET_HOST, _OTHERHOST, _BROADCAST, _MULTICAST of linux/if_packet.h, in the order of PTYPES
_ACTIONS: dict[type, Callable[[Encoder, Any, int], Packed]] = {
    tc.Gact: lambda encoder, action, control: actions.gact(control),
    tc.Ct: _ct,
    tc.Mirred: _mirred,
    tc.Pedit: _pedit,
    tc.Csum: lambda encoder, action, control: actions.csum(control, action.of),
    tc.Skbedit: _skbedit,
    tc.Vlan: lambda encoder, action, control: actions.vlan(control, VLAN[action.kind], action.id, action.protocol, action.priority),
    tc.Police: _police,
}
