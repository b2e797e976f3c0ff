"""Which rules a NIC can take, and why it does not take the others (contract A9.69, A9.70).

A rule that is not in hardware still has its place there: a frame that may match it goes to software, for a later rule must not win. So its fields
that the NIC can match are matched, and the others are taken to match. There is one exception (NEVER): +rel and +inv, and +new of a NIC that takes no
new connections, match nothing in hardware, where these bits are always 0; such a rule stands in nobody's way.
Not here: how rules become arrays (program).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from offload.simnic.kept import Kept
from offload.simnic.layout import FIELDS, STATE_INV, STATE_NEW, STATE_REL
from offload.simnic.profile import Profile
from offload.simnic.rules import Ct, Edit, Mark, Match, NicRule, Plain, Police, Send, Sum, Tag

MOST_PUSHES, MOST_SENDS = 4, 8  # of one rule: more than any NIC has room for
NEVER = frozenset((Kept.REL_INV, Kept.NEW))
CONTROLS = {"pipe", "pass", "drop", "goto"}
SUMS = {"ip4h", "tcp", "udp"}
# What mlx5 rewrites of a header (struct mlx5_fields of its driver): by header, tc's names.
EDITS: dict[str, set[str]] = {
    "eth": {"src", "dst"},
    "ip": {"src", "dst", "ttl", "tos"},
    "ip6": {"src", "dst", "hoplimit", "traffic_class"},
    "tcp": {"sport", "dport"},
    "udp": {"sport", "dport"},
}
NEEDS = {"ip": ("family", 4), "ip6": ("family", 6), "tcp": ("ip_proto", 6), "udp": ("ip_proto", 17)}
WHOLE = {"ct_zone": 0xFFFF, "ct_label": (1 << 128) - 1}


def unmatched(match: Match, profile: Profile) -> Kept:
    """Why a NIC cannot match a field, NO: it can."""
    if match.name == "ct_state":
        if match.value & match.mask & (STATE_REL | STATE_INV):
            return Kept.REL_INV
        return Kept.NEW if match.value & match.mask & STATE_NEW and not profile.rules.new else Kept.NO
    if match.name in WHOLE:
        short = match.mask != WHOLE[match.name]
        return (Kept.MASKED_LABEL if match.name == "ct_label" else Kept.MASK) if short else Kept.NO
    return Kept.NO if match.name in FIELDS else Kept.FIELD


def _ct(action: Ct, rule: NicRule, profile: Profile) -> Kept:
    """A commit without a mark or labels changes nothing of a connection that is in hardware; one that is not there misses."""
    if action.clear:
        return Kept.NO
    if action.helper:
        return Kept.CT_HELPER
    if action.sets:
        return Kept.CT_SETS
    return Kept.CT_FORCE if action.force else Kept.NO


def _send(action: Send, rule: NicRule, profile: Profile) -> Kept:
    return Kept.RULES_BEHIND if action.rules or action.ingress else Kept.NO


def _edit(action: Edit, rule: NicRule, profile: Profile) -> Kept:
    """As mlx5 does, only what the rule makes sure of is changed: the IP version, and TCP or UDP."""
    exact = {match.name: match.value for match in rule.matches if match.high is None}
    for munge in action.munges:
        name, value = NEEDS.get(munge.header, ("", 0))
        if munge.field not in EDITS.get(munge.header, ()) or (name and exact.get(name) != value):
            return Kept.PEDIT
    return Kept.NO


def _sum(action: Sum, rule: NicRule, profile: Profile) -> Kept:
    return Kept.NO if action.of <= SUMS else Kept.CSUM


def _mark(action: Mark, rule: NicRule, profile: Profile) -> Kept:
    return Kept.NO if profile.rules.skbedit and not action.other else Kept.SKBEDIT


def _police(action: Police, rule: NicRule, profile: Profile) -> Kept:
    fine = profile.rules.police and action.exceed.kind == "drop"
    return Kept.NO if fine else Kept.POLICE


def _always(action: Any, rule: NicRule, profile: Profile) -> Kept:
    return Kept.NO


ACTIONS: dict[type, Callable[[Any, NicRule, Profile], Kept]] = {
    Plain: _always, Ct: _ct, Send: _send, Edit: _edit, Sum: _sum, Tag: _always, Mark: _mark, Police: _police,
}  # fmt: skip


def _late(rule: NicRule, profile: Profile) -> bool:
    """Whether something has been done to a frame when a `ct` misses, and software would do it again."""
    if profile.rules.resume == "action":
        return False
    tracks = [i for i, action in enumerate(rule.actions) if isinstance(action, Ct) and not action.clear]
    return bool(tracks) and any(not isinstance(action, Plain) and not _clears(action) for action in rule.actions[: tracks[-1]])


def _clears(action: Any) -> bool:
    """What may be done twice."""
    return isinstance(action, Ct) and action.clear


def kept(rule: NicRule, profile: Profile) -> Kept:
    """Why a rule is not in hardware. Where several reasons apply, the first one of its matches, then of its actions."""
    if not profile.rules.offload:
        return Kept.NO_OFFLOAD
    if rule.skip_hw:
        return Kept.SKIP_HW
    for match in rule.matches:
        if reason := unmatched(match, profile):
            return reason
    for action in rule.actions:
        if action.then.kind not in CONTROLS:
            return Kept.CONTROL
        if reason := ACTIONS[type(action)](action, rule, profile):
            return reason
    if _late(rule, profile):
        return Kept.CT_LATE
    pushes = sum(isinstance(action, Tag) and action.kind == "push" for action in rule.actions)
    sends = sum(isinstance(action, Send) for action in rule.actions)
    return Kept.TOO_MUCH if pushes > MOST_PUSHES or sends > MOST_SENDS else Kept.NO
