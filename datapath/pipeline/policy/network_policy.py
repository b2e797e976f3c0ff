"""NetworkPolicy of networking.k8s.io/v1, as it is written.

What follows from fields that are left out is here: policyTypes (Ingress always, Egress where there are egress rules), and a port's protocol (TCP).
An empty list of peers or ports stands for all of them; as in Go, empty and left out are the same.
Not here: what a policy does to traffic (evaluate, clauses).
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError, model_validator

from ctcore.nat_rules import Network
from datapath.pipeline.policy.models import LabelSelector, Metadata, Port, PortName, Protocol, Strict, wrong

INGRESS, EGRESS = "ingress", "egress"
DIRECTIONS = (INGRESS, EGRESS)


def _network(value: Any) -> Network:
    """A CIDR. Bits behind the prefix are taken as zeros, with which the API server is lenient as well."""
    if isinstance(value, (IPv4Network, IPv6Network)):
        return value
    if not isinstance(value, str):
        raise wrong("expected a CIDR, such as 192.0.2.0/24")
    address, slash, length = value.partition("/")
    try:
        if not slash or not length.isdecimal() or "%" in address:
            raise ValueError
        return ip_network(value, strict=False)
    except ValueError:
        raise wrong("'{value}': expected a CIDR, such as 192.0.2.0/24 or 2001:db8::/32", value=value) from None


Cidr = Annotated[Network, BeforeValidator(_network)]
_PORT: TypeAdapter[int] = TypeAdapter(Port)
_NAME: TypeAdapter[str] = TypeAdapter(PortName)


def _port(value: Any) -> int | str:
    """A port's number, or the name of one."""
    adapter: TypeAdapter[Any] = _NAME if isinstance(value, str) else _PORT
    try:
        return adapter.validate_python(value, strict=True)
    except ValidationError:
        raise wrong("'{value}': expected a port from 1 to 65535 or the name of one", value=str(value)) from None


class IpBlock(Strict):
    """Addresses: those of cidr without those of except."""

    cidr: Cidr
    excepted: list[Cidr] = Field(default=[], alias="except")

    @model_validator(mode="after")
    def _within(self) -> Self:
        for each in self.excepted:
            # The API server asks for a real part of the block, too.
            if each.version != self.cidr.version or each == self.cidr or not each.subnet_of(self.cidr):  # type: ignore[arg-type]
                raise wrong("except {each} is not within {cidr}; expected a part of it", each=str(each), cidr=str(self.cidr))
        return self


class Peer(Strict):
    """Pods by namespaceSelector and podSelector, both of which have to match where both are given; or ipBlock."""

    pod_selector: LabelSelector | None = None
    namespace_selector: LabelSelector | None = None
    ip_block: IpBlock | None = None

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        selects = self.pod_selector is not None or self.namespace_selector is not None
        if selects and self.ip_block is not None:
            raise wrong("ipBlock beside a selector; expected two peers, or one of the two")
        if not selects and self.ip_block is None:
            raise wrong("a peer that names nothing; expected podSelector, namespaceSelector or ipBlock")
        return self


class PolicyPort(Strict):
    """protocol alone: all its ports; port: its number, or a name that pods resolve; end_port: the last one of a range."""

    protocol: Protocol = "TCP"
    port: Annotated[int | str | None, BeforeValidator(_port)] = None
    end_port: Port | None = None

    @model_validator(mode="after")
    def _range(self) -> Self:
        if self.end_port is not None and (not isinstance(self.port, int) or self.end_port < self.port):
            raise wrong("endPort {end}: expected a port, as a number not above it", end=self.end_port)
        return self


class IngressRule(Strict):
    ports: list[PolicyPort] = Field(default=[])
    peers: list[Peer] = Field(default=[], alias="from")


class EgressRule(IngressRule):
    """The same under another name."""

    peers: list[Peer] = Field(default=[], alias="to")


class NetworkPolicySpec(Strict):
    pod_selector: LabelSelector
    policy_types: list[Literal["Ingress", "Egress"]] = Field(default=[])
    ingress: list[IngressRule] = Field(default=[])
    egress: list[EgressRule] = Field(default=[])


class PolicyObject(Strict):
    """What all kinds of policies have around their spec. status: what a cluster made of it, which does not matter."""

    kind: str
    metadata: Metadata
    status: Any = None


class NetworkPolicyObject(PolicyObject):
    api_version: Literal["networking.k8s.io/v1"]
    spec: NetworkPolicySpec


class NetworkPolicy:
    """A policy as the rest works with it. rules: by direction, None where it says nothing of that direction."""

    def __init__(self, namespace: str, name: str, spec: NetworkPolicySpec) -> None:
        self.namespace, self.name, self.selector = namespace, name, spec.pod_selector
        types: Sequence[str] = spec.policy_types or ["Ingress", *(["Egress"] if spec.egress else [])]
        self.rules: dict[str, Sequence[IngressRule] | None] = {
            INGRESS: spec.ingress if "Ingress" in types else None,
            EGRESS: spec.egress if "Egress" in types else None,
        }

    @property
    def title(self) -> str:
        return f"NetworkPolicy {self.namespace}/{self.name}"
