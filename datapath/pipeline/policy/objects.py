"""Pods, namespaces and nodes: of what `kubectl get -o yaml` prints of them, the fields that a policy can ask for; of services, their addresses.

Here are the models of the objects, and the plain values made from them (Pod, Node), which the rest works with. Invariant of a Pod value: it has not
ended, and has an address, one of each family at most. Not here: policies (network_policy, admin_policy), gathering (load).
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Literal, NamedTuple

from pydantic import Field

from ctcore.nat_rules import Address
from datapath.pipeline.policy.documents import Document
from datapath.pipeline.policy.models import PROTOCOLS, Metadata, Open, Port, PortName, Protocol, validate

DEFAULT_NAMESPACE = "default"
NAME_LABEL = "kubernetes.io/metadata.name"  # set by the API server on every namespace
NODE_ADDRESSES = ("InternalIP", "ExternalIP")


# --- as they are written ----------------------------------------------------------------------------------------------------------------


class ContainerPort(Open):
    name: PortName | None = None
    container_port: Port
    protocol: Protocol = "TCP"


class Container(Open):
    ports: list[ContainerPort] = Field(default=[])
    restart_policy: str | None = None


class PodSpec(Open):
    node_name: str = ""
    host_network: bool = False
    containers: list[Container] = Field(default=[])
    init_containers: list[Container] = Field(default=[])


class PodIp(Open):
    ip: str


class PodStatus(Open):
    phase: str = ""
    pod_ip: str = Field(default="", alias="podIP")
    pod_ips: list[PodIp] = Field(default=[], alias="podIPs")


class PodObject(Open):
    api_version: Literal["v1"]
    metadata: Metadata
    spec: PodSpec
    status: PodStatus = PodStatus()


class NamespaceObject(Open):
    api_version: Literal["v1"]
    metadata: Metadata


class NodeAddress(Open):
    type: str
    address: str


class NodeStatus(Open):
    addresses: list[NodeAddress] = Field(default=[])


class NodeObject(Open):
    api_version: Literal["v1"]
    metadata: Metadata
    status: NodeStatus = NodeStatus()


# --- as the rest works with them --------------------------------------------------------------------------------------------------------


class NamedPort(NamedTuple):
    """A port of a container. name: "" if it has none; proto: the protocol's number."""

    name: str
    proto: int
    number: int


@dataclass(frozen=True)
class Pod:
    """A pod that runs. addresses: at most one of each family; host_network: they are its node's, and policies do not apply to it."""

    namespace: str
    name: str
    labels: dict[str, str]
    addresses: tuple[Address, ...]
    node: str = ""
    host_network: bool = False
    ports: tuple[NamedPort, ...] = ()
    annotations: dict[str, str] | None = None

    @property
    def title(self) -> str:
        return f"{self.namespace}/{self.name}"

    def address(self, version: int) -> Address | None:
        return next((each for each in self.addresses if each.version == version), None)


@dataclass(frozen=True)
class Node:
    name: str
    labels: dict[str, str]
    addresses: tuple[Address, ...]


def pod_of(document: Document) -> Pod | str:
    """The pod, or why it is left out. Raises PolicyError."""
    read = validate(PodObject, document)
    if read.status.phase in ("Succeeded", "Failed"):
        return "pods that have ended"
    texts = [each.ip for each in read.status.pod_ips] or [read.status.pod_ip] * bool(read.status.pod_ip)
    if not texts:
        return "pods without an address"
    addresses = []
    for i, text in enumerate(texts):
        addresses.append(_address(document, text, ["status", "podIPs", i] if read.status.pod_ips else ["status", "podIP"]))
    if len({each.version for each in addresses}) < len(addresses):
        document.fail(["status", "podIPs"], "expected one address of each family at most")
    # An init container that is restarted for ever is a sidecar: its ports are the pod's, like those of the others.
    serving = [*read.spec.containers, *(each for each in read.spec.init_containers if each.restart_policy == "Always")]
    ports = tuple(NamedPort(port.name or "", PROTOCOLS[port.protocol], port.container_port) for each in serving for port in each.ports)
    meta = read.metadata
    return Pod(
        namespace=meta.namespace or DEFAULT_NAMESPACE,
        name=meta.name,
        labels=meta.labels,
        addresses=tuple(addresses),
        node=read.spec.node_name,
        host_network=read.spec.host_network,
        ports=ports,
        annotations=meta.annotations,
    )


def node_of(document: Document) -> Node:
    """Raises PolicyError."""
    read = validate(NodeObject, document)
    addresses = []
    for i, each in enumerate(read.status.addresses):
        if each.type in NODE_ADDRESSES:
            addresses.append(_address(document, each.address, ["status", "addresses", i, "address"]))
    return Node(read.metadata.name, read.metadata.labels, tuple(dict.fromkeys(addresses)))


def namespace_of(document: Document) -> tuple[str, dict[str, str]]:
    """Its name and labels. Raises PolicyError."""
    read = validate(NamespaceObject, document)
    return read.metadata.name, {NAME_LABEL: read.metadata.name, **read.metadata.labels}


def service_addresses(document: Document) -> dict[Address, str]:
    """The addresses of a Service, each with NAMESPACE/NAME. Policies do not see them, so that what is no address is nothing, and no error."""
    spec, meta = (found if isinstance(found := document.data.get(key), dict) else {} for key in ("spec", "metadata"))
    lists = [found for key in ("clusterIPs", "externalIPs") if isinstance(found := spec.get(key), list)]
    title = f"{meta.get('namespace', DEFAULT_NAMESPACE)}/{meta.get('name', '')}"
    found = {}
    for text in [spec.get("clusterIP"), *(each for one in lists for each in one)]:
        with suppress(ValueError):
            found[ip_address(text if isinstance(text, str) else "")] = title
    return found


def _address(document: Document, text: str, path: list[str | int]) -> Address:
    try:
        address = ip_address(text)
    except ValueError:
        document.fail(path, f"'{text}': expected an IPv4 or IPv6 address")
    if address.version == 6 and address.scope_id is not None:
        document.fail(path, f"'{text}': expected an address without a zone")
    return address
