"""What policies say of one pod in one direction, as sets: prefixes of the peer, ports of the destination, and what happens to packets in both.

    Stage admin       self, then clauses in order         nothing matched: the next stage
    Stage network     own node, then what is allowed      nothing matched: denied if a NetworkPolicy selects the pod, else the next stage
    Stage baseline    clauses in order                    nothing matched: allowed

Stages that would say nothing are left out; a pod that no policy concerns has none. Of a NetworkPolicy only allowing is left, so that what its rules
and those of others allow is one set, with the fewest prefixes and ranges that say it.
Not here: rules (compiler). Nothing of evaluate is used here, which says the same in another way; tests compare the two.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from ctcore.nat_rules import Network
from datapath.pipeline.policy.admin_policy import AdminPolicy, AdminRule, EgressPeer, IngressPeer, PodsPeer
from datapath.pipeline.policy.cluster import Cluster, NodeTraffic
from datapath.pipeline.policy.models import PROTOCOLS, LabelSelector
from datapath.pipeline.policy.network_policy import INGRESS, IngressRule, NetworkPolicy, Peer
from datapath.pipeline.policy.objects import Pod
from datapath.pipeline.policy.prefixes import EVERYTHING, Prefixes, aggregate, host, subtract, without_covered

ALLOW, DENY, PASS, NEXT = "allow", "deny", "pass", "next"  # PASS: as a clause has it, NEXT: what follows a stage


class Span(NamedTuple):
    """Ports low to high of a protocol, both included; of None: every packet of the protocol."""

    proto: int
    low: int | None = None
    high: int | None = None


ANY: tuple[Span, ...] = ()  # all protocols, those without ports included


@dataclass(frozen=True)
class Clause:
    """outcome: ALLOW, DENY or PASS. spans: ANY, or some; prefixes: of the peer."""

    outcome: str
    prefixes: Prefixes
    spans: tuple[Span, ...] = ANY


@dataclass(frozen=True)
class Stage:
    """Clauses of which the first that matches decides, and what follows if none does: ALLOW, DENY or NEXT."""

    name: str
    clauses: tuple[Clause, ...]
    otherwise: str


class Memo(dict[Any, tuple[Clause, ...]]):
    """Clauses that have been made: of a pod's own, only its named ports have a part in them, so that most pods share theirs."""

    def once(self, key: Any, make: Callable[[], Iterable[Clause]]) -> tuple[Clause, ...]:
        if key not in self:
            self[key] = tuple(make())
        return self[key]


def stages_of(cluster: Cluster, pod: Pod, direction: str, node_traffic: NodeTraffic = "both", memo: Memo | None = None) -> list[Stage]:
    """What concerns this pod; the last stage never ends in NEXT. memo: of this cluster."""
    view, memo = _View(cluster, pod, direction), Memo() if memo is None else memo
    named = pod.ports if direction == INGRESS else ()

    def ordered(policy: AdminPolicy) -> tuple[Clause, ...]:
        return memo.once((policy.title, direction, named), lambda: view.ordered(policy)) if view.concerned(policy) else ()

    admin = [clause for policy in cluster.admin for clause in ordered(policy)]
    policies = [each for each in cluster.policies if view.selects(each)]
    baseline = list(ordered(cluster.baseline)) if cluster.baseline else []
    stages = [Stage("admin", tuple(admin), NEXT)] if admin else []
    if policies:
        key = (tuple(policy.title for policy in policies), direction, named)
        stages.append(Stage("network", memo.once(key, lambda: _merged(part for policy in policies for part in view.allowed(policy))), DENY))
    elif baseline:
        stages.append(Stage("network", (), NEXT))
    if stages and stages[-1].name == "network":
        exempt = node_traffic == "both" or (node_traffic == "from" and direction == INGRESS)
        own = aggregate(host(address) for address in cluster.node_addresses(pod)) if exempt else ()
        stages[-1] = Stage("network", ((Clause(ALLOW, own),) if own else ()) + stages[-1].clauses, stages[-1].otherwise)
    if baseline and not policies:
        stages.append(Stage("baseline", tuple(baseline), ALLOW))
    return _linked(stages, Clause(ALLOW, aggregate(map(host, pod.addresses))))


def _linked(stages: list[Stage], itself: Clause) -> list[Stage]:
    """The stages that are needed, the pod's own traffic first, the last one with an end."""
    stages = [stage for stage in stages if stage.clauses or stage.otherwise != NEXT]
    if not stages:
        return []
    first, last = stages[0], stages[-1]
    stages[0] = Stage(first.name, (itself, *first.clauses), first.otherwise)
    if last.otherwise == NEXT:
        stages[-1] = Stage(last.name, stages[-1].clauses, ALLOW)
    return stages


def _merged(parts: Iterable[tuple[Prefixes, tuple[Span, ...]]]) -> Iterator[Clause]:
    """All that is allowed, each set of ports once: prefixes that may use any port first, then the others with what else they may."""
    by_span: dict[Span | None, list[Network]] = defaultdict(list)
    for prefixes, spans in parts:
        for span in spans or [None]:
            by_span[span] += prefixes
    free = aggregate(by_span.pop(None, ()))
    if free:
        yield Clause(ALLOW, free)
    whole = {span.proto: aggregate(networks) for span, networks in by_span.items() if span is not None and span.low is None}
    by_prefixes: dict[Prefixes, list[Span]] = defaultdict(list)
    for span, networks in by_span.items():
        if span is not None:
            wider = (*free, *(whole.get(span.proto, ()) if span.low is not None else ()))
            by_prefixes[without_covered(aggregate(networks), wider)].append(span)
    for prefixes, found in by_prefixes.items():
        if prefixes:
            yield Clause(ALLOW, prefixes, joined(found))


def joined(spans: Iterable[Span]) -> tuple[Span, ...]:
    """The same ports in as few spans as possible, sorted."""
    found: list[Span] = []
    for span in sorted(spans, key=lambda each: (each.proto, each.low is not None, each.low or 0, each.high or 0)):
        last = found[-1] if found else None
        if last is None or last.proto != span.proto:
            found.append(span)
        elif last.low is None or last.high is None or span.low is None or span.high is None:
            continue  # all ports of the protocol are in it already: None is sorted first
        elif span.low <= last.high + 1:
            found[-1] = Span(span.proto, last.low, max(last.high, span.high))
        else:
            found.append(span)
    return tuple(found)


class _View:
    """Policies as one pod has to look at them, in one direction."""

    def __init__(self, cluster: Cluster, pod: Pod, direction: str) -> None:
        self.cluster, self.pod, self.direction = cluster, pod, direction
        self.others = [each for each in cluster.pods if not each.host_network]

    def selects(self, policy: NetworkPolicy) -> bool:
        here = policy.namespace == self.pod.namespace and policy.selector.matches(self.pod.labels)
        return here and policy.rules[self.direction] is not None

    def allowed(self, policy: NetworkPolicy) -> Iterator[tuple[Prefixes, tuple[Span, ...]]]:
        for rule in policy.rules[self.direction] or []:
            prefixes = aggregate(part for peer in rule.peers for part in self._peer(peer, policy)) if rule.peers else EVERYTHING
            yield from self._ports(rule, prefixes)

    def _peer(self, peer: Peer, policy: NetworkPolicy) -> Prefixes:
        if peer.ip_block is not None:
            return subtract(peer.ip_block.cidr, peer.ip_block.excepted)
        found: list[Network] = []
        for pod in self.others:
            if peer.namespace_selector is None:
                near = pod.namespace == policy.namespace
            else:
                near = peer.namespace_selector.matches(self.cluster.labels_of(pod.namespace))
            if near and (peer.pod_selector is None or peer.pod_selector.matches(pod.labels)):
                found += map(host, pod.addresses)
        return tuple(found)

    def _ports(self, rule: IngressRule, prefixes: Prefixes) -> Iterator[tuple[Prefixes, tuple[Span, ...]]]:
        if not rule.ports:
            yield prefixes, ANY
        for port in rule.ports:
            proto = PROTOCOLS[port.protocol]
            if isinstance(port.port, str):
                yield from self._named(port.port, proto, prefixes)
            elif port.port is None:
                yield prefixes, (Span(proto),)
            else:
                yield prefixes, (Span(proto, port.port, port.end_port or port.port),)

    def _named(self, name: str, proto: int | None, prefixes: Prefixes) -> Iterator[tuple[Prefixes, tuple[Span, ...]]]:
        """A named port is that of the destination: our own pod's, or of each peer what it calls so. proto: None for any."""
        if self.direction == INGRESS:
            for span in _ports_named(self.pod, name, proto):
                yield prefixes, (span,)
            return
        by_span: dict[Span, list[Network]] = defaultdict(list)
        for pod in self.others:
            for span in _ports_named(pod, name, proto):
                by_span[span] += (host(each) for each in pod.addresses if any(each in prefix for prefix in prefixes))
        for span, networks in by_span.items():
            yield aggregate(networks), (span,)

    # --- AdminNetworkPolicy and the baseline --------------------------------------------------------------------------------------------

    def concerned(self, policy: AdminPolicy) -> bool:
        return self._chosen(self.pod, policy.subject.namespaces, policy.subject.pods)

    def ordered(self, policy: AdminPolicy) -> Iterator[Clause]:
        """The clauses of a policy in the order of its rules."""
        for rule in policy.rules[self.direction]:
            prefixes = aggregate(part for peer in rule.peers for part in self._admin_peer(peer))
            for part, spans in self._admin_ports(rule, prefixes):
                if part:
                    yield Clause(rule.action.lower(), part, spans)

    def _chosen(self, pod: Pod, namespaces: LabelSelector | None, pods: PodsPeer | None) -> bool:
        if namespaces is not None:
            return self.cluster.selected(pod, namespaces, None)
        return pods is not None and self.cluster.selected(pod, pods.namespace_selector, pods.pod_selector)

    def _admin_peer(self, peer: IngressPeer | EgressPeer) -> Iterator[Network]:
        if isinstance(peer, EgressPeer) and peer.networks is not None:
            yield from peer.networks
        elif isinstance(peer, EgressPeer) and peer.nodes is not None:
            for node in self.cluster.nodes:
                if peer.nodes.matches(node.labels):
                    yield from map(host, node.addresses)
        else:
            for pod in self.others:
                if self._chosen(pod, peer.namespaces, peer.pods):
                    yield from map(host, pod.addresses)

    def _admin_ports(self, rule: AdminRule, prefixes: Prefixes) -> Iterator[tuple[Prefixes, tuple[Span, ...]]]:
        """Parts of one rule have one outcome, so that their order does not matter."""
        if not rule.ports:
            yield prefixes, ANY
            return
        numbers = []
        for port in rule.ports:
            if port.port_number is not None:
                numbers.append(Span(PROTOCOLS[port.port_number.protocol], port.port_number.port, port.port_number.port))
            elif port.port_range is not None:
                numbers.append(Span(PROTOCOLS[port.port_range.protocol], port.port_range.start, port.port_range.end))
            elif port.named_port is not None:
                yield from self._named(port.named_port, None, prefixes)
        if numbers:
            yield prefixes, joined(numbers)


def _ports_named(pod: Pod, name: str, proto: int | None) -> Iterator[Span]:
    for port in pod.ports:
        if port.name == name and proto in (None, port.proto):
            yield Span(port.proto, port.number, port.number)
