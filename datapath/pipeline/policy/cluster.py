"""A cluster as policies see it: who is there, by which address, and which policies there are.

A plain value, made by load (or by hand, in tests). An address belongs to a pod, or to a node, or to nobody here (outside): pods of the host's
network are their node, as the Kubernetes documentation leaves it to implementations and most do.
Not here: reading files (load), what policies say (evaluate, clauses).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from ctcore.nat_rules import Address
from datapath.pipeline.policy.admin_policy import AdminPolicy
from datapath.pipeline.policy.models import LabelSelector
from datapath.pipeline.policy.network_policy import NetworkPolicy
from datapath.pipeline.policy.objects import NAME_LABEL, Node, Pod

# Traffic between a pod and the node it runs on that no NetworkPolicy or baseline can forbid: all of it, as the documentation of NetworkPolicy has
# it; what comes from the node (the kubelet's probes); or none.
NodeTraffic = Literal["both", "from", "none"]
NODE_TRAFFIC: tuple[NodeTraffic, ...] = ("both", "from", "none")


@dataclass
class Cluster:
    """namespaces: labels by name; admin: in the order in which they are asked; notes: what was left out or taken for granted, one line each.

    services: NAMESPACE/NAME by address, to be named where somebody asks for one: policies do not see them.
    """

    namespaces: dict[str, dict[str, str]] = field(default_factory=dict)
    pods: Sequence[Pod] = ()
    nodes: Sequence[Node] = ()
    policies: Sequence[NetworkPolicy] = ()
    admin: Sequence[AdminPolicy] = ()
    baseline: AdminPolicy | None = None
    notes: list[str] = field(default_factory=list)
    services: dict[Address, str] = field(default_factory=dict)

    @cached_property
    def pod_by_address(self) -> dict[Address, Pod]:
        """Pods with addresses of their own."""
        return {address: pod for pod in self.pods if not pod.host_network for address in pod.addresses}

    @cached_property
    def node_by_address(self) -> dict[Address, Node]:
        return {address: node for node in self.nodes for address in node.addresses}

    @cached_property
    def node_by_name(self) -> dict[str, Node]:
        return {node.name: node for node in self.nodes}

    @cached_property
    def pod_by_title(self) -> dict[str, Pod]:
        return {pod.title: pod for pod in self.pods}

    def labels_of(self, namespace: str) -> dict[str, str]:
        """A namespace that no file has still has its name."""
        return self.namespaces.get(namespace, {NAME_LABEL: namespace})

    def selected(self, pod: Pod, namespaces: LabelSelector, pods: LabelSelector | None) -> bool:
        """Whether both selectors match. Pods of the host's network are selected by none."""
        if pod.host_network or not namespaces.matches(self.labels_of(pod.namespace)):
            return False
        return pods is None or pods.matches(pod.labels)

    def node_addresses(self, pod: Pod) -> tuple[Address, ...]:
        """Those of the node that a pod runs on, as far as it is known."""
        node = self.node_by_name.get(pod.node)
        return node.addresses if node else ()
