"""One connection, judged and told: who may open it, and which policy says so, at both ends and both ways.

Not here: the judging (evaluate), the command (datapath.commands.policy).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from typing import NamedTuple

from ctcore.nat_rules import Address
from datapath.names import printable
from datapath.pipeline.policy.cluster import Cluster, NodeTraffic
from datapath.pipeline.policy.errors import PolicyError
from datapath.pipeline.policy.evaluate import Judgement, Packet, judge
from datapath.pipeline.policy.objects import Pod

PROTOS = {"tcp": 6, "udp": 17, "sctp": 132}
PORTLESS = {"icmp": {4: 1, 6: 58}}  # by family
_SERVICE = re.compile("([0-9]{1,5})(?:/([A-Za-z]+))?")
_NAMED = re.compile("([a-z0-9-]{1,15})(?:/([A-Za-z]+))?")


class Service(NamedTuple):
    """What is asked for. port: None of a protocol without ports."""

    name: str
    port: int | None

    def __str__(self) -> str:
        return self.name if self.port is None else f"{self.port}/{self.name}"

    def proto(self, family: int) -> int:
        return PROTOS.get(self.name) or PORTLESS[self.name][family]


def read_service(text: str, target: Pod | None = None) -> Service:
    """80/tcp, 80 (of TCP), icmp; or a port's name, with or without its protocol, which the target's containers know. Raises PolicyError."""
    if text.lower() in PORTLESS:
        return Service(text.lower(), None)
    found = _SERVICE.fullmatch(text)
    name = (found[2] or "tcp").lower() if found else ""
    if found is not None and name in PROTOS and 1 <= int(found[1]) <= 0xFFFF:
        return Service(name, int(found[1]))
    named = _NAMED.fullmatch(text)
    if found is not None or named is None or (named[2] or "tcp").lower() not in PROTOS:
        raise PolicyError(f"--port '{printable(text)}': expected N/tcp, N/udp or N/sctp with N from 1 to 65535, the name of a port, or icmp")
    return _named_service(text, named[1], (named[2] or "").lower(), target)


def _named_service(text: str, name: str, proto: str, target: Pod | None) -> Service:
    """proto: "": whichever the port has."""
    if target is None:
        raise PolicyError(f"--port '{printable(text)}': names are those of a pod's ports: expected a pod at --to, or N/tcp")
    words = {number: word for word, number in PROTOS.items()}
    known = [port for port in target.ports if port.name]
    found = [port for port in known if port.name == name and proto in ("", words[port.proto])]
    if len(found) != 1:
        there = ", ".join(f"{port.name}/{words[port.proto]}" for port in known) or "none with a name"
        which = "has several of that name" if found else "has no such port"
        raise PolicyError(f"--port '{printable(text)}': {target.title} {which}: expected one of its ports ({there}), or N/tcp")
    return Service(words[found[0].proto], found[0].number)


@dataclass(frozen=True)
class Endpoint:
    """One end. title: the pod, the node or the address; addresses: one of each family at most; pod: None if it is none."""

    title: str
    addresses: tuple[Address, ...]
    pod: Pod | None = None


def read_endpoint(cluster: Cluster, option: str, text: str) -> Endpoint:
    """A pod by NAMESPACE/POD, or whoever has an address. Raises PolicyError."""
    if "/" in text:
        pod = cluster.pod_by_title.get(text)
        if pod is None:
            raise PolicyError(f"{option} '{printable(text)}': no such pod with an address in the files; expected NAMESPACE/POD or an address")
        return Endpoint(pod.title, pod.addresses, pod)
    try:
        address = ip_address(text)
    except ValueError:
        raise PolicyError(f"{option} '{printable(text)}': expected NAMESPACE/POD or an address") from None
    owner, node = cluster.pod_by_address.get(address), cluster.node_by_address.get(address)
    service = cluster.services.get(address)
    other = f"node {node.name}" if node else f"Service {service}" if service else "outside"
    return Endpoint(owner.title if owner else other, (address,), owner)


@dataclass(frozen=True)
class Opinion:
    """What is said of a connection between two addresses."""

    source: str
    target: str
    packet: Packet
    service: Service
    judgement: Judgement

    def lines(self) -> Iterator[str]:
        verdict = "allowed, and so are its replies" if self.judgement.allowed else "denied"
        yield f"{self.source} ({self.packet.src}) > {self.target} ({self.packet.dst}) {self.service}: {verdict}"
        for word, decision in (("leaving", self.judgement.egress), ("entering", self.judgement.ingress)):
            yield f"  {word:8}  {'allowed' if decision.allowed else 'denied':7}  {decision.text}"


def opinions(cluster: Cluster, source: Endpoint, target: Endpoint, service: Service, node_traffic: NodeTraffic) -> list[Opinion]:
    """One for each family that both ends have. Raises PolicyError if there is none."""
    found = []
    for src in source.addresses:
        for dst in target.addresses:
            if src.version == dst.version:
                packet = Packet(src, dst, service.proto(src.version), service.port)
                found.append(Opinion(source.title, target.title, packet, service, judge(cluster, packet, node_traffic)))
    if not found:
        raise PolicyError(f"{source.title} > {target.title}: expected two ends with addresses of one family")
    return found
