"""Policies -> rules for the devices of pods, in the shape of OVN's pipeline and within what real TC takes.

A pod's link ends on the host in a device. What the pod sends comes out of it (the ingress hook of the device's clsact qdisc): there
its egress policies are applied. What the pod is to receive goes into it (the egress hook): there the ingress policies. Both hooks track in the pod's
own zone, so that each of the two ends of a connection between pods is judged by itself. The chains of a hook, those that would say nothing left out:

     0 entry      ARP and neighbour discovery pass (conntrack does not follow them); other sources than the pod's own are dropped; ct -> 1
     1 state      established: replies -> 9 unless blocked, then they are dropped; requests -> policy.                          Else -> 2
     2 fresh   *  invalid: dropped; related: nat, ct commit -> 9, unless blocked.                                           Else -> policy
     3 admin      the pod itself, AdminNetworkPolicy                                        -> 6, 8, or what follows;           end -> 4
     4 network    the pod's own node, what NetworkPolicy allows                             -> 6;                               end -> 8 or 5
     5 baseline   BaselineAdminNetworkPolicy                                                -> 6, 8;                            end -> 6
     6 allow      established and not blocked -> 9.                                                                             Else -> 7
     7 commit  *  ct commit, mark known and not blocked -> 9
     8 deny    *  established, or new and known: ct commit, mark blocked, dropped.                                            Else dropped
     9 forward    ct clear, since the host tracks in zones of its own; pass: the host's bridge or routing takes it (or Options.forward)

What a NIC may do is in chains that match ct_state by trk, est and rpl only, the mark by one bit, and no label or original tuple. What is for
software (*) has chains of its own, marked skip_hw: all that is new, related or invalid, and commits.

Established connections, two ways (Options.established). "packet": requests are judged again, packet by packet, so that a changed policy
takes effect on what is established; the refusal is kept in the mark, which also stops replies. What has been let in and not been answered yet is new
for conntrack, and known by another bit of the mark. "connection": what is established
stays so, in both directions; then 6 and 8 are not needed.

A packet's way: web (10.1.0.2, device web0, zone 1) opens a connection to db (10.1.0.3, db0, zone 2) port 5432; db may be reached by web only.
    web0 ingress  0: IPv4 from 10.1.0.2: ct zone 1        1: new, so -> 2     2: -> 7, no policy for what web sends    7: ct commit zone 1    9: pass
    the host's bridge takes it to db0
    db0 egress    0: ct zone 2     1: -> 2      2: -> 4      4: src_ip 10.1.0.2, tcp, dst_port 5432: -> 6      6: not established: -> 7      7, 9
    db0 ingress   (the answer)   0: from 10.1.0.3: ct zone 2     1: established, reply: -> 9
    web0 egress                  0: ct zone 1                    1: established, reply: -> 9

A pod that no policy concerns is not tracked: it has what keeps it from using others' addresses, and no more.
Not here: which prefixes and ports (clauses), text (datapath.pipeline.tc_print).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ctcore.nat_rules import Address
from datapath.pipeline.policy.clauses import ALLOW, DENY, NEXT, PASS, Clause, Memo, Span, Stage, stages_of
from datapath.pipeline.policy.cluster import Cluster, NodeTraffic
from datapath.pipeline.policy.devices import Attachment
from datapath.pipeline.policy.errors import PolicyError
from datapath.pipeline.policy.network_policy import DIRECTIONS, EGRESS, INGRESS
from datapath.pipeline.policy.objects import Pod
from datapath.pipeline.policy.prefixes import of_family
from datapath.pipeline.rules import (
    CT_STATES,
    DROP,
    ETH_ALL,
    ETH_ARP,
    ETH_IP,
    ETH_IPV6,
    FIELD_ORDER,
    Action,
    Control,
    Ct,
    CtNat,
    Gact,
    Hook,
    Match,
    Mirred,
    Qdisc,
    Rule,
    Ruleset,
    goto,
)

ENTRY, STATE, FRESH, ADMIN, NETWORK, BASELINE, ALLOWED, COMMIT, DENIED, FORWARD = range(10)
CHAIN_NAMES = ("entry", "state", "fresh", "admin", "network", "baseline", "allow", "commit", "deny", "forward")
SOFTWARE = frozenset({FRESH, COMMIT, DENIED})
STAGE_CHAINS = {"admin": ADMIN, "network": NETWORK, "baseline": BASELINE}
PASS_ON = Control("pass")
# The bits of the mark that are ours.
BLOCKED = 0x1
KNOWN = 0x2  # was let in
PRIORITIES = 0xFFFF
ETHERTYPES = {4: ETH_IP, 6: ETH_IPV6}
HOOKS = {EGRESS: "ingress", INGRESS: "egress"}  # by the direction of policy: what a pod sends comes out of its device
PEER = {EGRESS: "dst_ip", INGRESS: "src_ip"}
ICMPV6 = 58
# Neighbour discovery and multicast listeners, which conntrack leaves untracked: what hosts send, and what they are sent (RFC 4861, 2710, 3810).
NEIGHBOURS = {EGRESS: (131, 132, 133, 135, 136, 143), INGRESS: (130, 134, 135, 136)}


@dataclass(frozen=True)
class Options:
    """invalid: what becomes of packets that conntrack calls invalid: drop, or policy, which judges them like others. anti_spoof: only own sources.

    forward: what passes goes to the host (pass), or straight to the device of the pod it is for, if that is among those compiled for (redirect).
    """

    established: Literal["packet", "connection"] = "packet"
    invalid: Literal["drop", "policy"] = "drop"
    anti_spoof: bool = True
    node_traffic: NodeTraffic = "both"
    forward: Literal["pass", "redirect"] = "pass"


def compile_policies(cluster: Cluster, attachments: Mapping[str, Attachment], options: Options | None = None) -> Ruleset:
    """The rules for the pods that are attached (by NAMESPACE/POD). Raises PolicyError where there would be more than tc can number."""
    options = options or Options()
    qdiscs, rules, memo = [], [], Memo()
    neighbours = [(address, found.device) for title, found in sorted(attachments.items()) for address in cluster.pod_by_title[title].addresses]
    for title in sorted(attachments):
        pod, attachment = cluster.pod_by_title[title], attachments[title]
        stages = {direction: stages_of(cluster, pod, direction, options.node_traffic, memo) for direction in DIRECTIONS}
        tracked = any(stages.values())
        made = [
            *_Hook(pod, attachment, EGRESS, options).rules(stages[EGRESS] if tracked else None, neighbours if options.forward == "redirect" else ()),
            *(_Hook(pod, attachment, INGRESS, options).rules(stages[INGRESS]) if tracked else ()),
        ]
        if made:
            qdiscs.append(Qdisc(attachment.device))
            rules += made
    return Ruleset(qdiscs=tuple(qdiscs), rules=tuple(rules))


def match(name: str, value: int, bits: int, high: int | None = None) -> Match:
    """All bits of a field, or a range."""
    return Match(name, value, (1 << bits) - 1, high)


def ct_state(text: str) -> Match:
    """As tc writes it: +trk+est-rpl."""
    value = mask = 0
    for sign, name in zip(text[::4], (text[i + 1 : i + 4] for i in range(0, len(text), 4)), strict=True):
        mask |= CT_STATES[name]
        value |= CT_STATES[name] if sign == "+" else 0
    return Match("ct_state", value, mask)


NOT_BLOCKED = Match("ct_mark", 0, BLOCKED)


class _Hook:
    """The rules of one hook of a pod's device, being made. direction: of the policies that are applied there."""

    def __init__(self, pod: Pod, attachment: Attachment, direction: str, options: Options) -> None:
        self.pod, self.zone, self.direction, self.options = pod, attachment.zone, direction, options
        self.hook = Hook(attachment.device, HOOKS[direction])
        # Who may use any source may also use the other family.
        self.families = sorted({each.version for each in pod.addresses} if options.anti_spoof else (4, 6))
        self.again = options.established == "packet"
        self.prio: Counter[int] = Counter()
        self.handle: Counter[tuple[int, int]] = Counter()
        self.made: list[Rule] = []

    def rules(self, stages: Sequence[Stage] | None, neighbours: Iterable[tuple[Address, str]] = ()) -> list[Rule]:
        """All rules of the hook. stages: None: the pod is not tracked; neighbours: addresses that are behind other devices."""
        neighbours = [(address, device) for address, device in neighbours if device != self.hook.device and address.version in self.families]
        self._entry(tracked=stages is not None, forward=bool(neighbours))
        if stages is not None:
            policy = STAGE_CHAINS[stages[0].name] if stages else self._verdict(ALLOW)
            self._state(policy)
            # Behind the last stage nothing is left that could forbid it.
            following = [*(STAGE_CHAINS[stage.name] for stage in stages[1:]), self._verdict(ALLOW)]
            for stage, behind in zip(stages, following, strict=False):
                self._stage(stage, behind)
            self._verdicts(denies=any(DENY in (stage.otherwise, *(clause.outcome for clause in stage.clauses)) for stage in stages))
            self._forward(neighbours, Ct(clear=True))
        elif neighbours:
            self._forward(neighbours)
        return self.made

    # --- making one rule --------------------------------------------------------------------------------------------------------------

    def _add(self, chain: int, protocol: int, matches: Iterable[Match], *actions: Action, prio: int | None = None) -> None:
        """prio: that of a group of rules whose order does not matter; without, a new one."""
        prio = self._new_prio(chain) if prio is None else prio
        self.handle[chain, prio] += 1
        ordered = tuple(sorted(matches, key=lambda each: FIELD_ORDER[each.name]))
        self.made.append(Rule(self.hook, protocol, ordered, actions, prio, chain, self.handle[chain, prio], skip_hw=chain in SOFTWARE))

    def _new_prio(self, chain: int) -> int:
        self.prio[chain] += 1
        if self.prio[chain] > PRIORITIES:
            raise PolicyError(
                f"{self.pod.title}: more rules after each other than tc can number; expected at most {PRIORITIES:,} in chain {CHAIN_NAMES[chain]}"
            )
        return self.prio[chain]

    def _each_family(self, chain: int, matches: Sequence[Match], *actions: Action) -> None:
        for family in self.families:
            self._add(chain, ETHERTYPES[family], matches, *actions)

    # --- chains -----------------------------------------------------------------------------------------------------------------------

    def _entry(self, tracked: bool, forward: bool) -> None:
        going, guarded = self.direction == EGRESS, self.options.anti_spoof and self.direction == EGRESS
        on: tuple[Action, ...] = (Ct(zone=self.zone), Gact(goto(STATE))) if tracked else (Gact(goto(FORWARD) if forward else PASS_ON),)
        if not tracked and not guarded and not forward:
            return
        # Of ARP, a pod may say its own address, or none, where it asks whether an address is free (RFC 5227).
        senders = [int(each) for each in self.pod.addresses if each.version == 4] + [0] if guarded else [None]
        prio = self._new_prio(ENTRY)
        for sender in senders:
            self._add(ENTRY, ETH_ARP, [] if sender is None else [match("arp_sip", sender, 32)], Gact(PASS_ON), prio=prio)
        if 6 in self.families:
            prio = self._new_prio(ENTRY)
            for kind in NEIGHBOURS[self.direction]:
                self._add(ENTRY, ETH_IPV6, [match("ip_proto", ICMPV6, 8), match("type", kind, 8)], Gact(PASS_ON), prio=prio)
        for family in self.families:
            own = self.pod.address(family) if guarded else None
            matches = [] if own is None else [match("src_ip", int(own), own.max_prefixlen)]
            self._add(ENTRY, ETHERTYPES[family], matches, *on)
        # Without a guard other ethertypes are nobody's business; IP of a family that the pod has no address of is dropped where it has policies.
        self._add(ENTRY, ETH_ALL, [], Gact(DROP if self.options.anti_spoof or not going else PASS_ON))

    def _state(self, policy: int) -> None:
        if self.again:
            self._each_family(STATE, [ct_state("+trk+est+rpl"), NOT_BLOCKED], Gact(goto(FORWARD)))
            self._each_family(STATE, [ct_state("+trk+est+rpl")], Gact(DROP))
            self._each_family(STATE, [ct_state("+trk+est")], Gact(goto(policy)))
        else:
            self._each_family(STATE, [ct_state("+trk+est")], Gact(goto(FORWARD)))
        self._add(STATE, ETH_ALL, [], Gact(goto(FRESH)))
        if self.options.invalid == "drop":
            self._each_family(FRESH, [ct_state("+trk+inv")], Gact(DROP))
        # An ICMP error belongs to a connection, whose mark it has; so does what a helper announced, which needs an entry of its own.
        related = [ct_state("+trk+rel"), *([NOT_BLOCKED] if self.again else [])]
        # Where somebody translates in this zone, an error quotes what it has to be translated for; tc takes a bare nat without commit only.
        self._each_family(FRESH, related, Ct(zone=self.zone, nat=CtNat()), Ct(zone=self.zone, commit=True), Gact(goto(FORWARD)))
        if self.again:
            self._each_family(FRESH, [ct_state("+trk+rel")], Gact(DROP))
        self._add(FRESH, ETH_ALL, [], Gact(goto(policy)))

    def _stage(self, stage: Stage, following: int) -> None:
        chain = STAGE_CHAINS[stage.name]
        for clause in stage.clauses:
            self._clause(chain, clause, self._outcome(clause.outcome, following))
        self._add(chain, ETH_ALL, [], self._outcome(stage.otherwise, following))

    def _clause(self, chain: int, clause: Clause, outcome: Action) -> None:
        for family in self.families:
            prefixes = of_family(clause.prefixes, family)
            prio = self._new_prio(chain) if prefixes else 0
            for prefix in prefixes:
                mask = int(prefix.netmask)
                peer = [Match(PEER[self.direction], int(prefix.network_address), mask)] if mask else []
                for span in clause.spans or (None,):
                    self._add(chain, ETHERTYPES[family], [*peer, *_ports(span)], outcome, prio=prio)

    def _outcome(self, outcome: str, following: int) -> Action:
        if outcome in (PASS, NEXT):
            return Gact(goto(following))
        if outcome == DENY and not self.again:
            return Gact(DROP)
        return Gact(goto(self._verdict(outcome)))

    def _verdict(self, outcome: str) -> int:
        """The chain in which an outcome is carried out."""
        if outcome == DENY:
            return DENIED
        return ALLOWED if self.again else COMMIT

    def _verdicts(self, denies: bool) -> None:
        if self.again:
            self._each_family(ALLOWED, [ct_state("+trk+est"), NOT_BLOCKED], Gact(goto(FORWARD)))
            self._add(ALLOWED, ETH_ALL, [], Gact(goto(COMMIT)))
        mark = (KNOWN, KNOWN | BLOCKED) if self.again else None
        self._each_family(COMMIT, [], Ct(zone=self.zone, commit=True, mark=mark), Gact(goto(FORWARD)))
        if denies and self.again:
            for known in ([ct_state("+trk+est")], [ct_state("+trk+new"), Match("ct_mark", KNOWN, KNOWN)]):
                self._each_family(DENIED, known, Ct(zone=self.zone, commit=True, mark=(BLOCKED, BLOCKED)), Gact(DROP))
            self._add(DENIED, ETH_ALL, [], Gact(DROP))

    def _forward(self, neighbours: Sequence[tuple[Address, str]], *first: Action) -> None:
        """first: what is done to every packet before it goes on."""
        for family in self.families:
            prio = self._new_prio(FORWARD) if neighbours else 0
            for address, device in neighbours:
                if address.version == family:
                    here = match("dst_ip", int(address), address.max_prefixlen)
                    self._add(FORWARD, ETHERTYPES[family], [here], *first, Mirred("redirect", device), prio=prio)
        self._each_family(FORWARD, [], *first, Gact(PASS_ON))


def _ports(span: Span | None) -> list[Match]:
    if span is None:
        return []
    if span.low is None or span.high is None:
        return [match("ip_proto", span.proto, 8)]
    return [match("ip_proto", span.proto, 8), match("dst_port", span.low, 16, None if span.low == span.high else span.high)]


def counts(ruleset: Ruleset) -> dict[str, int]:
    """How many rules each chain has, over all hooks, by the names of chains; for the summary."""
    found = Counter(rule.chain for rule in ruleset.rules)
    return {name: found[chain] for chain, name in enumerate(CHAIN_NAMES) if found[chain]}


__all__ = ["BLOCKED", "CHAIN_NAMES", "DIRECTIONS", "HOOKS", "SOFTWARE", "Options", "compile_policies", "counts"]
