"""One rule, or one template, by itself: keys that need others, states that exclude each other, actions that contradict themselves.

A table says what a key needs; what is no table is a function named by what it checks. Source: cls_flower and act_ct of Linux 6.18, tc-flower(8),
and for ct_state the kernel's fl_validate_ct_state. Not here: rules beside each other (validate).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from ctcore.nat_rules import HELPER_PROTOS
from datapath.pipeline import flower_keys, quantities
from datapath.pipeline.doubts import reached, unreached
from datapath.pipeline.findings import Expected, Findings
from datapath.pipeline.flower_keys import match_text
from datapath.pipeline.header_fields import HEADER_FIELDS
from datapath.pipeline.rules import (
    CONTROLS,
    CT_STATES,
    ETH_ALL,
    ETH_ARP,
    ETH_IP,
    ETH_IPV6,
    ETH_QINQ,
    ETH_RARP,
    ETH_VLAN,
    FIELD,
    FIELD_ORDER,
    MOST_VLAN,
    Action,
    Csum,
    Ct,
    Match,
    Mirred,
    Munge,
    Pedit,
    Police,
    Rule,
    Skbedit,
    Template,
    Vlan,
    controls_of,
    innermost,
)
from datapath.pipeline.tc_actions import CSUM_ORDER, MAX_ACTIONS, MAX_CHAIN, PTYPES, helper
from datapath.pipeline.tc_print import action_text, control_text, helper_text, munge_text

TAGGED, IP, ARP = (ETH_VLAN, ETH_QINQ), (ETH_IP, ETH_IPV6), (ETH_ARP, ETH_RARP)
TCP, PORTS, ICMP = (6,), (6, 17, 132), {ETH_IP: 1, ETH_IPV6: 58}

# Keys by what the innermost ethertype has to be.
OF_IP = ("ip_proto", "ip_tos", "ip_ttl", "dst_ip", "src_ip", "ip_flags")
OF_ARP = ("arp_sip", "arp_tip", "arp_op", "arp_sha", "arp_tha")
WANTED_TYPE = dict.fromkeys(OF_IP, (IP, "protocol ip or ipv6")) | dict.fromkeys(OF_ARP, (ARP, "protocol arp or rarp"))
WANTED_PROTO = {
    "dst_port": (PORTS, "ip_proto tcp, udp or sctp"),
    "src_port": (PORTS, "ip_proto tcp, udp or sctp"),
    "tcp_flags": (TCP, "ip_proto tcp"),
}
PREFIXES = ("src_ip", "dst_ip", "arp_sip", "arp_tip")

Looked = Rule | Template


def check_template(template: Template, found: Findings) -> None:
    _chain(template, found)
    _matches(template, found)


def check_rule(rule: Rule, found: Findings) -> None:
    """Everything that can be said of the rule alone."""
    _chain(rule, found)
    if rule.skip_sw and rule.skip_hw:
        found.error(rule.place, "skip_sw skip_hw", "a rule that nobody carries out: expected one of them")
    if not 0 <= rule.prio <= 0xFFFF:
        found.error(rule.place, f"prio {rule.prio}", "expected 1 to 65535")
    if not 0 <= rule.handle <= 0xFFFFFFFF:
        found.error(rule.place, f"handle {rule.handle}", "expected 32 bits")
    if len(rule.actions) > MAX_ACTIONS:
        found.error(rule.place, f"{len(rule.actions)} actions", f"expected at most {MAX_ACTIONS}")
    _matches(rule, found)
    _actions(rule, found)


def _chain(each: Looked, found: Findings) -> None:
    if not 0 <= each.chain <= MAX_CHAIN:
        found.error(each.place, f"chain {each.chain}", f"expected 0 to {MAX_CHAIN}")
    hook = each.hook
    if hook.block is None:
        _try_device(each, hook.device, found)
        if hook.direction not in ("ingress", "egress"):
            found.error(each.place, hook.direction, "expected ingress or egress")
    elif hook.device or hook.direction or not 0 < hook.block <= 0xFFFFFFFF:
        found.error(each.place, f"block {hook.block}", "expected a number from 1, and neither device nor direction")


def _try_device(each: Looked, name: str, found: Findings) -> None:
    try:
        flower_keys.device(name)
    except Expected as error:
        found.error(each.place, f"dev {name}", str(error))


# --- matches ------------------------------------------------------------------------------------------------------------------------------


def _matches(each: Looked, found: Findings) -> None:
    names = tuple([match.name for match in each.matches])
    if not _in_order(names):
        found.error(each.place, " ".join(names), f"expected keys of flower, each once, in the order {', '.join(FIELD)}")
        return
    inner, proto, outer = innermost(each.protocol, each.matches), _proto(each), _outer(each)
    for match in each.matches:
        own = match.value if match.name in ("ip_proto", "ct_state") else 0
        if wrong := _bits(match, inner) or _needs(match.name, own, Kind(each.protocol, outer, inner, proto)):
            # What is no value of its field cannot be printed as one.
            text = match.name if wrong.startswith("expected whole") else match_text(match, inner)
            found.error(each.parts.get(match.name, each.place), text, wrong)


@lru_cache(1 << 12)  # most rules look at what others look at
def _in_order(names: tuple[str, ...]) -> bool:
    return all(name in FIELD for name in names) and sorted(set(names), key=FIELD_ORDER.__getitem__) == list(names)


def _outer(each: Looked) -> int | None:
    """What the outer tag is before, if a key says it."""
    return next((match.value for match in each.matches if match.name == "vlan_ethtype"), None)


def _proto(each: Looked) -> int | None:
    """The protocol of layer four, if a key says it."""
    return next((match.value for match in each.matches if match.name == "ip_proto" and match.mask == 0xFF), None)


def _bits(match: Match, inner: int) -> str:
    """Whether value and mask are of the field, and of a form that tc can say."""
    bits = 32 if match.name in ("src_ip", "dst_ip") and inner == ETH_IP else FIELD[match.name].bits
    full = (1 << bits) - 1
    whole = f"expected whole numbers of {bits} bits, and no bit of the value outside of the mask"
    if match.name == "indev":
        return "" if match.device and not match.value and not match.mask else "expected whole a device's name"
    if not 0 <= match.mask <= full or not 0 <= match.value <= full or match.value & ~match.mask:
        return whole
    if match.high is not None:
        fine = FIELD[match.name].ranged and match.mask == full and 0 < match.value < match.high <= full
        return "" if fine else "expected whole ports of 1 to 65535, the lower one first"
    if not FIELD[match.name].maskable and match.mask != full:
        return f"expected whole numbers: {match.name} has no mask"
    if match.name in PREFIXES and not quantities.is_prefix(match.mask, 32 if match.name.startswith("arp") else bits):
        return "expected whole leading bits: tc has no word for other masks of addresses"
    if match.name in ("ct_state", "ip_flags") and not match.mask:
        return "expected whole flags, at least one"
    if match.name == "arp_op" and match.value > 2:
        return "expected whole numbers: request, reply, or 0 to 2"
    return ""


class Kind(NamedTuple):
    """What a rule's other keys say of its packets: protocol, type behind the outer tag, innermost type, protocol of layer four."""

    protocol: int
    outer: int | None
    inner: int
    proto: int | None


@lru_cache(1 << 12)
def _needs(name: str, value: int, kind: Kind) -> str:
    """What the key needs beside it, and does not find. A template need not say values, but has to be of the right kind as well.

    value: of ip_proto and ct_state; others need the same whatever they are.
    """
    inner, proto = kind.inner, kind.proto
    if name.startswith("vlan") and kind.protocol not in TAGGED:
        return "expected protocol 802.1Q or 802.1ad"
    if name.startswith("cvlan") and kind.outer not in TAGGED:
        return "expected vlan_ethtype 802.1Q or 802.1ad beside it"
    if name in WANTED_TYPE and inner not in WANTED_TYPE[name][0]:
        return f"expected {WANTED_TYPE[name][1]}" + (" (or vlan_ethtype)" if kind.protocol in TAGGED else "")
    if name == "ip_proto" and value in ICMP.values() and value != ICMP[inner]:
        return "expected icmp with protocol ip, icmpv6 with protocol ipv6"
    if name in WANTED_PROTO and proto not in WANTED_PROTO[name][0]:
        return f"expected {WANTED_PROTO[name][1]} beside it"
    if name in ("type", "code") and (inner not in ICMP or proto != ICMP[inner]):
        return "expected ip_proto icmp (icmpv6 with protocol ipv6) beside it"
    return ct_state_error(value) if name == "ct_state" else ""


def ct_state_error(wanted: int) -> str:
    """What flower has against the states with a +. Those with a - are free."""
    on = {name for name, bit in CT_STATES.items() if wanted & bit}
    if on and "trk" not in on:
        return f"{' and '.join(sorted(on))} is of tracked packets: expected +trk with it"
    for one, other in (("new", "est"), ("new", "rpl")):
        if {one, other} <= on:
            return f"{one} and {other} exclude each other"
    if "inv" in on and on != {"inv", "trk"}:
        return f"inv and {' and '.join(sorted(on - {'inv', 'trk'}))} exclude each other"
    return ""


# --- actions ------------------------------------------------------------------------------------------------------------------------------


def _actions(rule: Rule, found: Findings) -> None:
    for i, is_error, text, said in _said(rule.actions, innermost(rule.protocol, rule.matches)):
        (found.error if is_error else found.warn)(rule.parts.get(f"action {i}", rule.place), text, said)


@lru_cache(1 << 12)  # many rules do the same
def _said(actions: tuple[Action, ...], inner: int) -> tuple[tuple[int, bool, str, str], ...]:
    """What is to be said of actions: of which one, whether it is an error, its text, the rest."""
    said: list[tuple[int, bool, str, str]] = []
    for i, action in enumerate(actions):
        if wrong := _action(action, inner):
            said.append((i, True, type(action).__name__.lower(), wrong))  # what was written in either language
        elif isinstance(action, Ct):
            said += [(i, False, action_text(action), doubt) for doubt in _doubts(action, inner)]
    for i, control in controls_of(actions):
        if control.kind not in CONTROLS or (control.kind == "goto") != (control.chain is not None):
            said.append((i, True, control.kind, f"expected {', '.join(CONTROLS)}, and a chain with goto only"))
        elif control.chain is not None and not 0 <= control.chain <= MAX_CHAIN:
            said.append((i, True, control_text(control), f"expected a chain from 0 to {MAX_CHAIN}"))
    if not said and (why := unreached(actions)):
        i = len(reached(actions))
        said.append((i, False, action_text(actions[i]), why))
    return tuple(said)


def _action(action: Action, inner: int) -> str:
    """What is wrong with an action; nothing for gact."""
    if isinstance(action, Ct):
        return _ct_error(action, inner)
    if isinstance(action, Pedit):
        return next((wrong for wrong in map(_munge_error, action.munges) if wrong), "") if action.munges else "expected munge, at least once"
    if isinstance(action, Mirred):
        try:
            flower_keys.device(action.device)
        except Expected as error:
            return str(error)
        return (
            ""
            if action.kind in ("redirect", "mirror") and action.direction in ("ingress", "egress")
            else "expected redirect or mirror, ingress or egress"
        )
    if isinstance(action, Csum):
        fine = action.of and list(action.of) == [name for name in CSUM_ORDER if name in action.of]
        return "" if fine else f"expected {', '.join(CSUM_ORDER)}, each once, in this order"
    if isinstance(action, Skbedit):
        return _skbedit_error(action)
    if isinstance(action, Vlan):
        return _vlan_error(action)
    return _police_error(action) if isinstance(action, Police) else ""


def _within(value: int | None, high: int, low: int = 0) -> bool:
    return value is None or low <= value <= high


def _masked(given: tuple[int, int] | None, bits: int) -> bool:
    return given is None or (0 <= given[1] < 1 << bits and given[0] >= 0 and not given[0] & ~given[1])


def _ct_error(action: Ct, inner: int) -> str:
    nat = action.nat
    if action.clear and (action.commit or action.force or nat is not None):
        return "expected neither commit, force nor nat with clear"
    if not _within(action.zone, 0xFFFF) or not _masked(action.mark, 32) or not _masked(action.label, 128):
        return "expected a zone of 16 bits, a mark of 32, a label of 128, and no bit outside of their masks"
    if action.helper is not None:
        try:
            helper(helper_text(action.helper))
            if action.helper[0] not in HELPER_PROTOS:
                return f"helper {action.helper[0]}: expected one of {', '.join(HELPER_PROTOS)}"
        except Expected as error:
            return str(error)
    if nat is None:
        return ""
    if nat.kind not in ("", "src", "dst"):
        return "expected nat, nat src or nat dst"
    if nat.kind and not action.commit:
        return f"expected commit with nat {nat.kind}"
    if not nat.kind:
        if nat.low is not None or nat.high is not None or nat.ports is not None:
            return "expected nat src or nat dst with addresses"
        return "expected src or dst with nat and commit" if action.commit else ""
    if nat.low is None or nat.high is None or nat.low.version != nat.high.version or int(nat.low) > int(nat.high):
        return "expected addr A[-B], the lower address first"
    if nat.ports is not None and not 0 <= nat.ports[0] <= nat.ports[1] <= 0xFFFF:
        return "expected ports from 0 to 65535, the lower one first"
    wanted = {ETH_IP: 4, ETH_IPV6: 6}.get(inner)
    return f"expected an IPv{wanted} address, as the rule's protocol" if wanted not in (None, nat.low.version) else ""


def _doubts(action: Ct, inner: int) -> Iterator[str]:
    """What act_ct takes, and does not do what it looks like."""
    if not action.commit and not action.clear and (action.mark is not None or action.label is not None or action.helper is not None):
        yield "without commit neither mark, label nor helper is set"
    if action.clear and (action.zone or action.mark is not None or action.label is not None or action.helper is not None):
        yield "with clear nothing else counts"
    if inner not in (*IP, *TAGGED, ETH_ALL) and not action.clear:
        yield "packets that are not IP are dropped here"


def _munge_error(munge: Munge) -> str:
    field = HEADER_FIELDS.get((munge.header, munge.field))
    if field is None:
        return f"{munge.header} {munge.field}: expected a field of tc-pedit(8)"
    full = (1 << field.bits) - 1
    if munge.op not in ("set", "add") or not 0 <= munge.mask <= full or not 0 <= munge.value <= full or munge.value & ~munge.mask:
        return f"{munge.header} {munge.field}: expected set or add, a value of {field.bits} bits, and no bit of it outside of the mask"
    if field.whole and munge.mask != field.mask:
        return f"{munge_text(munge)}: expected no mask with a field of more than 32 bits"
    if munge.op == "add" and not field.addable:
        return f"{munge_text(munge)}: what Linux adds to more than a byte depends on the machine: expected set"
    return ""


def _skbedit_error(action: Skbedit) -> str:
    if action.mark is None and action.priority is None and action.queue is None and not action.ptype:
        return "expected mark, priority, queue_mapping or ptype"
    fine = _masked(action.mark, 32) and _within(action.priority, 0xFFFFFFFF) and _within(action.queue, 0xFFFF)
    return "" if fine and action.ptype in ("", *PTYPES) else f"expected 32 bits of mark and priority, 16 of queue, a ptype of {', '.join(PTYPES)}"


def _vlan_error(action: Vlan) -> str:
    if action.kind == "pop":
        return "" if action.id is action.protocol is action.priority is None else "expected nothing with pop"
    if action.kind in ("push", "modify") and action.id is None:
        return f"id is missing: expected {action.kind} with an id"
    fine = action.kind in ("push", "modify") and action.id is not None and _within(action.id, MOST_VLAN) and _within(action.priority, 7)
    return (
        ""
        if fine and action.protocol in (None, *TAGGED)
        else f"expected push, pop or modify, an id to {MOST_VLAN}, a priority to 7, 802.1Q or 802.1ad"
    )


def _police_error(action: Police) -> str:
    """Linux polices bytes or packets, not both at once (tcf_police_init)."""
    if action.rate is not None and (action.packet_rate is not None or action.packet_burst is not None):
        return "expected a rate of bytes or of packets, not both"
    pairs = (("rate", action.rate), ("burst", action.burst)), (("pkts_rate", action.packet_rate), ("pkts_burst", action.packet_burst))
    for one, other in pairs:
        if (one[1] is None) != (other[1] is None):
            lacks, has = (one[0], other[0]) if one[1] is None else (other[0], one[0])
            return f"{lacks} is missing: expected it with {has}" + (" (in YAML packet_rate and packet_burst)" if "_" in has else "")
    if action.rate is None and action.packet_rate is None and action.mtu is None:
        return "expected rate and burst, pkts_rate and pkts_burst, or mtu"
    if action.control.kind == "goto":
        return "expected no goto chain for what conforms: Linux takes it for what exceeds only"
    numbers = ((action.burst, 0xFFFFFFFF), (action.mtu, 0xFFFFFFFF), (action.packet_rate, 0xFFFFFFFF), (action.packet_burst, 0xFFFFFFFF))
    if not all(_within(value, high, 1) for value, high in numbers) or not _within(action.rate, quantities.MAX_RATE, 8) or (action.rate or 0) % 8:
        return "expected whole bytes a second of rate, at least one, and sizes of 1 to 4294967295"
    return ""
