"""AdminNetworkPolicy and BaselineAdminNetworkPolicy of policy.networking.k8s.io/v1alpha1, as they are written.

Their rules are ordered, and the first that matches decides: Allow, Deny, or Pass, which leaves the decision to NetworkPolicy and the baseline.
Ports left out stand for all ports of all protocols; peers cannot be left out. Peers of ingress are pods, those of egress may be nodes or networks.
Not supported: domainNames, since a name's addresses are only known when it is asked for.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from datapath.pipeline.policy.models import LabelSelector, Port, PortName, Protocol, Selector, Strict, wrong
from datapath.pipeline.policy.network_policy import EGRESS, INGRESS, Cidr, PolicyObject

PRIORITIES = 1000  # the highest number the API takes; the lowest number is asked first
BASELINE_NAME = "default"  # the only name a baseline may have, so that there is one
RULES = 100


class PortNumber(Strict):
    protocol: Protocol = "TCP"
    port: Port


class PortRange(Strict):
    protocol: Protocol = "TCP"
    start: Port
    end: Port

    @field_validator("end")
    @classmethod
    def _ordered(cls, value: int, info: Any) -> int:
        if value < info.data.get("start", value):
            raise wrong("end {end} is below start; expected it not to be", end=value)
        return value


class AdminPort(Selector):
    """port_number, port_range: of one protocol; named_port: whatever protocol the pod has it with."""

    port_number: PortNumber | None = None
    port_range: PortRange | None = None
    named_port: PortName | None = None


class PodsPeer(Strict):
    """Pods that match, of namespaces that match."""

    namespace_selector: LabelSelector
    pod_selector: LabelSelector


class Subject(Selector):
    namespaces: LabelSelector | None = None
    pods: PodsPeer | None = None


class IngressPeer(Selector):
    namespaces: LabelSelector | None = None
    pods: PodsPeer | None = None


class EgressPeer(Selector):
    """networks: addresses, those of pods included."""

    namespaces: LabelSelector | None = None
    pods: PodsPeer | None = None
    nodes: LabelSelector | None = None
    networks: Annotated[list[Cidr], Field(min_length=1)] | None = None
    domain_names: Any = None

    @field_validator("domain_names")
    @classmethod
    def _refuse(cls, value: Any) -> Any:
        raise wrong("domain names are not supported, since their addresses change; expected networks")


class _Rule(Strict):
    name: Annotated[str, Field(max_length=100)] = ""
    ports: Annotated[list[AdminPort], Field(max_length=RULES)] = Field(default=[])


class AdminIngressRule(_Rule):
    action: Literal["Allow", "Deny", "Pass"]
    peers: Annotated[list[IngressPeer], Field(min_length=1, max_length=RULES, alias="from")]


class AdminEgressRule(_Rule):
    action: Literal["Allow", "Deny", "Pass"]
    peers: Annotated[list[EgressPeer], Field(min_length=1, max_length=RULES, alias="to")]


class BaselineIngressRule(AdminIngressRule):
    action: Literal["Allow", "Deny"]


class BaselineEgressRule(AdminEgressRule):
    action: Literal["Allow", "Deny"]


class AdminSpec(Strict):
    priority: Annotated[int, Field(ge=0, le=PRIORITIES)]
    subject: Subject
    ingress: Annotated[list[AdminIngressRule], Field(max_length=RULES)] = Field(default=[])
    egress: Annotated[list[AdminEgressRule], Field(max_length=RULES)] = Field(default=[])


class BaselineSpec(Strict):
    subject: Subject
    ingress: Annotated[list[BaselineIngressRule], Field(max_length=RULES)] = Field(default=[])
    egress: Annotated[list[BaselineEgressRule], Field(max_length=RULES)] = Field(default=[])


class AdminObject(PolicyObject):
    api_version: Literal["policy.networking.k8s.io/v1alpha1"]
    spec: AdminSpec


class BaselineObject(PolicyObject):
    api_version: Literal["policy.networking.k8s.io/v1alpha1"]
    spec: BaselineSpec


AdminRule = AdminIngressRule | AdminEgressRule


class AdminPolicy:
    """A policy of either kind as the rest works with it. priority: None of the baseline."""

    def __init__(self, name: str, spec: AdminSpec | BaselineSpec) -> None:
        self.name, self.subject = name, spec.subject
        self.priority = spec.priority if isinstance(spec, AdminSpec) else None
        self.rules: dict[str, list[AdminRule]] = {INGRESS: list(spec.ingress), EGRESS: list(spec.egress)}

    @property
    def title(self) -> str:
        return f"{'BaselineAdminNetworkPolicy' if self.priority is None else 'AdminNetworkPolicy'} {self.name}"
