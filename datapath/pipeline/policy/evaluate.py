"""What policies say of one connection, and which of them decided: the reference that compiled rules are compared with.

A connection has to be allowed twice: by the egress policies of the pod it leaves, and by the ingress policies of the pod it enters; nodes and the
outside have none. In each of the two, whoever comes first decides:

    1. the pod itself            nobody can keep a pod from itself
    2. AdminNetworkPolicy        by priority, then rule by rule; Pass goes on at 4
    3. the pod's own node        (NodeTraffic), before what namespaces say of it
    4. NetworkPolicy             of those that select the pod in this direction: allowed if any rule of any of them matches, else denied
    5. the baseline              rule by rule
    6. allowed

Replies are not asked about: what belongs to an allowed connection is allowed.
Written as predicates of one packet, without anything of the compiler (clauses, compiler). Source: the Kubernetes documentation, Network Policies; the
API of policy.networking.k8s.io/v1alpha1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ctcore.nat_rules import Address
from datapath.pipeline.policy.admin_policy import AdminPolicy, AdminPort, AdminRule, EgressPeer, IngressPeer, Subject
from datapath.pipeline.policy.cluster import Cluster, NodeTraffic
from datapath.pipeline.policy.models import PROTOCOLS
from datapath.pipeline.policy.network_policy import EGRESS, INGRESS, NetworkPolicy, Peer, PolicyPort
from datapath.pipeline.policy.objects import Pod


@dataclass(frozen=True)
class Packet:
    """The first packet of a connection. proto: its number; port: of the destination, None for a protocol without ports."""

    src: Address
    dst: Address
    proto: int
    port: int | None = None


@dataclass(frozen=True)
class Decision:
    """One direction's answer. policy: who decided, "" where none did; rule: which of its rules, from 0, as in YAML; text: why, in a sentence."""

    allowed: bool
    text: str
    policy: str = ""
    rule: int | None = None


@dataclass(frozen=True)
class Judgement:
    egress: Decision
    ingress: Decision

    @property
    def allowed(self) -> bool:
        return self.egress.allowed and self.ingress.allowed


def judge(cluster: Cluster, packet: Packet, node_traffic: NodeTraffic = "both") -> Judgement:
    """Both directions of a connection's first packet."""
    return Judgement(
        _Side(cluster, packet, EGRESS, node_traffic).decide(),
        _Side(cluster, packet, INGRESS, node_traffic).decide(),
    )


class _Side:
    """One direction: the pod whose policies are asked (subject), and whom it talks to (peer)."""

    def __init__(self, cluster: Cluster, packet: Packet, direction: str, node_traffic: NodeTraffic) -> None:
        self.cluster, self.packet, self.direction, self.node_traffic = cluster, packet, direction, node_traffic
        self.own, self.other = (packet.src, packet.dst) if direction == EGRESS else (packet.dst, packet.src)
        self.peer = cluster.pod_by_address.get(self.other)
        self.target = cluster.pod_by_address.get(packet.dst)  # whose ports the names of ports are

    def decide(self) -> Decision:
        subject = self.cluster.pod_by_address.get(self.own)
        if subject is None:
            service = self.cluster.services.get(self.own)
            other = f"the address of Service {service}" if service else "outside of the cluster"
            return Decision(True, f"{self.own} is {'of a node' if self.own in self.cluster.node_by_address else other}: no policy applies")
        if self.peer is subject:
            return Decision(True, "nothing keeps a pod from itself")
        return (
            self._admin(subject)
            or self._own_node(subject)
            or self._network(subject)
            or self._baseline(subject)
            or Decision(True, f"no policy selects {subject.title} for {self.direction} or says anything of this")
        )

    # --- AdminNetworkPolicy and the baseline --------------------------------------------------------------------------------------------

    def _admin(self, subject: Pod) -> Decision | None:
        for policy in self.cluster.admin:
            decision = self._ordered(policy, subject)
            if decision is not None:
                return decision if isinstance(decision, Decision) else None
        return None

    def _baseline(self, subject: Pod) -> Decision | None:
        decision = self._ordered(self.cluster.baseline, subject) if self.cluster.baseline else None
        return decision if isinstance(decision, Decision) else None

    def _ordered(self, policy: AdminPolicy, subject: Pod) -> Decision | str | None:
        """The first rule that matches, if any; "Pass" of a rule that passes."""
        selected = self._pods_match(subject, policy.subject)
        for i, rule in enumerate(policy.rules[self.direction] if selected else []):
            if any(self._admin_peer(peer) for peer in rule.peers) and self._admin_ports(rule):
                if rule.action == "Pass":
                    return "Pass"
                name = f" '{rule.name}'" if rule.name else ""
                words = "allows" if rule.action == "Allow" else "denies"
                return Decision(rule.action == "Allow", f"{policy.title} {words} it by {self.direction}[{i}]{name}", policy.title, i)
        return None

    def _pods_match(self, pod: Pod, wanted: Subject | IngressPeer | EgressPeer) -> bool:
        if wanted.namespaces is not None:
            return self.cluster.selected(pod, wanted.namespaces, None)
        return wanted.pods is not None and self.cluster.selected(pod, wanted.pods.namespace_selector, wanted.pods.pod_selector)

    def _admin_peer(self, peer: IngressPeer | EgressPeer) -> bool:
        if isinstance(peer, EgressPeer):
            if peer.nodes is not None:
                node = self.cluster.node_by_address.get(self.other)
                return node is not None and peer.nodes.matches(node.labels)
            if peer.networks is not None:
                return any(self.other in network for network in peer.networks)
        return self.peer is not None and self._pods_match(self.peer, peer)

    def _admin_ports(self, rule: AdminRule) -> bool:
        return not rule.ports or any(self._admin_port(port) for port in rule.ports)

    def _admin_port(self, port: AdminPort) -> bool:
        if port.named_port is not None:
            return self._is_named(port.named_port, self.packet.proto)
        if self.packet.port is None:
            return False
        if port.port_number is not None:
            return (self.packet.proto, self.packet.port) == (PROTOCOLS[port.port_number.protocol], port.port_number.port)
        span = port.port_range
        return span is not None and self.packet.proto == PROTOCOLS[span.protocol] and span.start <= self.packet.port <= span.end

    # --- NetworkPolicy ------------------------------------------------------------------------------------------------------------------

    def _own_node(self, subject: Pod) -> Decision | None:
        wanted = self.node_traffic == "both" or (self.node_traffic == "from" and self.direction == INGRESS)
        if not wanted or self.other not in self.cluster.node_addresses(subject):
            return None
        word = "from" if self.direction == INGRESS else "to"
        return Decision(True, f"traffic {word} a pod's own node is allowed (--node-traffic {self.node_traffic})")

    def _network(self, subject: Pod) -> Decision | None:
        asked = [policy for policy in self.cluster.policies if self._applies(policy, subject)]
        if not asked:
            return None
        for policy in asked:
            for i, rule in enumerate(policy.rules[self.direction] or []):
                peers = not rule.peers or any(self._peer(peer, policy) for peer in rule.peers)
                if peers and (not rule.ports or any(self._port(port) for port in rule.ports)):
                    return Decision(True, f"{policy.title} allows it by {self.direction}[{i}]", policy.title, i)
        others = f" (nor does any of {len(asked) - 1} more)" if len(asked) > 1 else ""
        text = f"{asked[0].title} selects {subject.title} for {self.direction}, and no rule allows it{others}{self._but_for(asked)}"
        return Decision(False, text, asked[0].title)

    def _but_for(self, asked: Sequence[NetworkPolicy]) -> str:
        """What would have allowed it but for an `except`, or but for the peer being a Service, whose address is translated before policies see it."""
        if self.other in self.cluster.services:
            return f"; {self.other} is the address of Service {self.cluster.services[self.other]}, which policies do not see: ask for a pod behind it"
        for policy in asked:
            for i, rule in enumerate(policy.rules[self.direction] or []):
                for block in (peer.ip_block for peer in rule.peers if peer.ip_block is not None and self.other in peer.ip_block.cidr):
                    if not rule.ports or any(self._port(port) for port in rule.ports):
                        taken = next(each for each in block.excepted if self.other in each)
                        return f"; {policy.title} {self.direction}[{i}] has {block.cidr}, but `except {taken}`"
        return ""

    def _applies(self, policy: NetworkPolicy, subject: Pod) -> bool:
        return policy.rules[self.direction] is not None and policy.namespace == subject.namespace and policy.selector.matches(subject.labels)

    def _peer(self, peer: Peer, policy: NetworkPolicy) -> bool:
        if peer.ip_block is not None:
            return self.other in peer.ip_block.cidr and not any(self.other in each for each in peer.ip_block.excepted)
        if self.peer is None:
            return False
        if peer.namespace_selector is None:
            near = self.peer.namespace == policy.namespace
        else:
            near = peer.namespace_selector.matches(self.cluster.labels_of(self.peer.namespace))
        return near and (peer.pod_selector is None or peer.pod_selector.matches(self.peer.labels))

    def _port(self, port: PolicyPort) -> bool:
        proto = PROTOCOLS[port.protocol]
        if isinstance(port.port, str):
            return self._is_named(port.port, proto)
        if self.packet.proto != proto or self.packet.port is None:
            return False
        return port.port is None or port.port <= self.packet.port <= (port.end_port or port.port)

    def _is_named(self, name: str, proto: int) -> bool:
        """Whether the destination is a pod that calls this port so."""
        if self.target is None or proto != self.packet.proto:
            return False
        return any((each.name, each.proto, each.number) == (name, self.packet.proto, self.packet.port) for each in self.target.ports)
