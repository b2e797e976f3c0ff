"""The recipes of pcap_tests/policies: a cluster in few words, policies as they are, and who may talk to whom.

    about: a sentence                       cluster: {namespaces: {NAME: LABELS}, nodes: {NAME: {labels, ips}}, pods: {NS/NAME: {...}}}
    policies: [objects of Kubernetes]       outside: [addresses that belong to nobody]        node_traffic: both | from | none
    ports: what is tried: 80/TCP, ICMP      expect: lines `allow|deny WHO, ... > WHO, ... PORT, ... [by POLICY]`, first match counts
    otherwise: allow | deny: all the rest

WHO is NS/POD, `node NAME`, an address, or a pattern of them (shop/*). Every pair of all these is tried on every port, in both directions.
A pod: labels, ips (else 10.1.0.2, .3, ... in order; with `dual: true` fd00:1::2, ... as well), ports {name: NUMBER/PROTOCOL}, node, hostNetwork.
"""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from datapath.pipeline.policy.cluster import Cluster
from datapath.pipeline.policy.documents import Document
from datapath.pipeline.policy.load import gather

FOLDER = Path(__file__).parents[3] / "policies"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
PROTOS = {"ICMP": 1, "TCP": 6, "UDP": 17, "ICMPV6": 58, "SCTP": 132}
KEYS = {"about", "cluster", "policies", "outside", "node_traffic", "ports", "expect", "otherwise"}


class Attempt(NamedTuple):
    """One connection, by names and by addresses, and what is expected of it. by: the policy that is to decide, "" if that is left open."""

    source: str
    target: str
    port: str
    src: Any
    dst: Any
    proto: int
    number: int | None
    allowed: bool
    by: str

    def __str__(self) -> str:
        return f"{self.source} ({self.src}) > {self.target} ({self.dst}) {self.port}"


class Recipe:
    def __init__(self, name: str) -> None:
        self.name = name
        self.data = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
        assert set(self.data) <= KEYS, f"{name}: unknown keys {set(self.data) - KEYS}"
        self.objects = [*objects(self.data["cluster"]), *self.data["policies"]]
        self.node_traffic = self.data.get("node_traffic", "both")
        self.lines = [Line(text) for text in self.data.get("expect", [])]

    def cluster(self) -> Cluster:
        return made(self.objects)

    def attempts(self) -> Iterator[Attempt]:
        """Every pair of different ones, on every port. Nodes and the outside among one another are nobody's business here."""
        cluster = self.cluster()
        who = {pod.title: pod.addresses for pod in cluster.pods if not pod.host_network}
        pods = set(who)
        who |= {f"node {node.name}": node.addresses for node in cluster.nodes} | {text: (ip_address(text),) for text in self.data.get("outside", [])}
        for source, sources in who.items():
            for target, targets in who.items():
                if source == target or not {source, target} & pods:
                    continue
                for src, dst in ((src, dst) for src in sources for dst in targets if src.version == dst.version):
                    for port in self.data["ports"]:
                        yield self._attempt(source, target, port, src, dst)

    def _attempt(self, source: str, target: str, port: str, src: Any, dst: Any) -> Attempt:
        number, _, name = port.rpartition("/")
        line = next((line for line in self.lines if line.covers(source, target, port)), None)
        if line is not None:
            line.used = True
        allowed = line.allow if line else {"allow": True, "deny": False}[self.data["otherwise"]]
        proto = PROTOS["ICMPV6" if name == "ICMP" and src.version == 6 else name]
        return Attempt(source, target, port, src, dst, proto, int(number) if number else None, allowed, line.by if line else "")


class Line:
    """One line of expect."""

    def __init__(self, text: str) -> None:
        self.text, self.used = text, False
        head, _, self.by = text.partition(" by ")
        left, right = head.split(" > ")
        word, _, self.sources = left.partition(" ")
        self.allow = {"allow": True, "deny": False}[word]
        targets = right.split(", ")
        first = next(i for i, part in enumerate(targets) if " " in part.removeprefix("node "))
        last, _, port = targets[first].rpartition(" ")
        self.sources, self.targets, self.ports = self.sources.split(", "), [*targets[:first], last], [port, *targets[first + 1 :]]

    def covers(self, source: str, target: str, port: str) -> bool:
        return all(
            any(fnmatchcase(value, pattern) for pattern in patterns)
            for value, patterns in ((source, self.sources), (target, self.targets), (port, self.ports))
        )


def made(listed: list[dict]) -> Cluster:
    """A cluster of objects that are no file's."""
    return gather(Document("made", i, each, yaml.compose("{}")) for i, each in enumerate(listed, 1))


def objects(cluster: dict) -> Iterator[dict]:
    """The objects of a cluster in few words, as kubectl would print them."""
    for name, labels in cluster.get("namespaces", {}).items():
        yield {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels or {}}}
    for name, node in cluster.get("nodes", {}).items():
        addresses = [{"type": "InternalIP", "address": ip} for ip in node["ips"]] + [{"type": "Hostname", "address": name}]
        yield {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": node.get("labels", {})}, "status": {"addresses": addresses}}
    for i, (title, pod) in enumerate(cluster["pods"].items(), 2):
        namespace, name = title.split("/")
        ips = pod.get("ips", [f"10.1.0.{i}", *([f"fd00:1::{i:x}"] if cluster.get("dual") else [])])
        ports = []
        for port, text in pod.get("ports", {}).items():
            number, protocol = text.split("/")
            ports.append({"name": port, "containerPort": int(number), "protocol": protocol})
        spec = {"nodeName": pod.get("node", ""), "hostNetwork": pod.get("hostNetwork", False), "containers": [{"name": "main", "ports": ports}]}
        status = {"phase": "Running", "podIP": ips[0], "podIPs": [{"ip": ip} for ip in ips]}
        metadata = {"name": name, "namespace": namespace, "labels": pod.get("labels", {})}
        yield {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": status}
