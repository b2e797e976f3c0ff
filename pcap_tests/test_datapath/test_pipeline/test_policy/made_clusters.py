"""Clusters and policies drawn by hypothesis: few labels, ports and networks, so that rules meet traffic."""

from __future__ import annotations

from ipaddress import ip_address
from typing import NamedTuple

from hypothesis import strategies as st

from datapath.pipeline.policy.cluster import Cluster
from pcap_tests.test_datapath.test_pipeline.test_policy.recipes import made, objects

NAMESPACES = ("red", "green", "blue")
PORTS = (79, 80, 81, 90, 65535)
PROTOCOLS = ("TCP", "UDP", "SCTP")
NAMES = ("web", "dns")
BLOCKS = {
    "0.0.0.0/0": ["10.0.0.0/8", "10.1.0.2/31", "198.51.100.128/25"],
    "10.1.0.0/16": ["10.1.0.0/30", "10.1.0.5/32"],
    "198.51.100.0/24": ["198.51.100.0/26", "198.51.100.7/32"],
    "192.0.2.11/32": [],
    "::/0": ["fd00:1::/64", "2001:db8::/32"],
    "fd00:1::/120": ["fd00:1::2/127"],
}
OUTSIDE = tuple(map(ip_address, ("198.51.100.7", "198.51.100.200", "203.0.113.1", "2001:db8::7", "2001:db9::1")))

labels = st.dictionaries(st.sampled_from(["app", "tier"]), st.sampled_from(["a", "b"]), max_size=2)


@st.composite
def requirements(draw):
    operator = draw(st.sampled_from(["In", "NotIn", "Exists", "DoesNotExist"]))
    values = draw(st.lists(st.sampled_from(["a", "b"]), min_size=1, max_size=2, unique=True)) if operator in ("In", "NotIn") else []
    return {"key": draw(st.sampled_from(["app", "tier"])), "operator": operator, "values": values}


selectors = st.one_of(
    st.just({}),
    st.builds(lambda found: {"matchLabels": found}, labels),
    st.builds(lambda found: {"matchExpressions": found}, st.lists(requirements(), min_size=1, max_size=2)),
)


@st.composite
def blocks(draw):
    cidr = draw(st.sampled_from(sorted(BLOCKS)))
    return {"cidr": cidr, "except": draw(st.lists(st.sampled_from(BLOCKS[cidr]), unique=True)) if BLOCKS[cidr] else []}


peers = st.one_of(
    st.builds(lambda each: {"podSelector": each}, selectors),
    st.builds(lambda each: {"namespaceSelector": each}, selectors),
    st.builds(lambda near, pods: {"namespaceSelector": near, "podSelector": pods}, selectors, selectors),
    st.builds(lambda each: {"ipBlock": each}, blocks()),
)


@st.composite
def policy_ports(draw):
    port = {"protocol": draw(st.sampled_from(PROTOCOLS))}
    match draw(st.sampled_from(["none", "number", "name", "range"])):
        case "number":
            port["port"] = draw(st.sampled_from(PORTS))
        case "name":
            port["port"] = draw(st.sampled_from(NAMES))
        case "range":
            port["port"], port["endPort"] = sorted(draw(st.tuples(st.sampled_from(PORTS), st.sampled_from(PORTS))))
    return port


def rules(word):
    return st.builds(lambda who, ports: {word: who, "ports": ports}, st.lists(peers, max_size=2), st.lists(policy_ports(), max_size=3))


@st.composite
def network_policies(draw, number):
    spec = {"podSelector": draw(selectors)}
    types = draw(st.lists(st.sampled_from(["Ingress", "Egress"]), unique=True))
    spec |= {"policyTypes": types} if types else {}
    spec |= {"ingress": draw(st.lists(rules("from"), max_size=2)), "egress": draw(st.lists(rules("to"), max_size=2))}
    metadata = {"name": f"p{number}", "namespace": draw(st.sampled_from(NAMESPACES))}
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec}


pod_peers = st.one_of(
    st.builds(lambda each: {"namespaces": each}, selectors),
    st.builds(lambda near, pods: {"pods": {"namespaceSelector": near, "podSelector": pods}}, selectors, selectors),
)
egress_peers = st.one_of(
    pod_peers,
    st.builds(lambda each: {"nodes": each}, selectors),
    st.builds(lambda each: {"networks": each}, st.lists(st.sampled_from(sorted(BLOCKS)), min_size=1, max_size=2, unique=True)),
)


@st.composite
def admin_ports(draw):
    kind, protocol = draw(st.sampled_from(["portNumber", "portRange", "namedPort"])), draw(st.sampled_from(PROTOCOLS))
    if kind == "namedPort":
        return {kind: draw(st.sampled_from(NAMES))}
    low, high = sorted(draw(st.tuples(st.sampled_from(PORTS), st.sampled_from(PORTS))))
    return {kind: {"protocol": protocol, "port": low} if kind == "portNumber" else {"protocol": protocol, "start": low, "end": high}}


def admin_rules(word, who, actions):
    return st.lists(
        st.builds(
            lambda action, listed, ports: {"action": action, word: listed, **({"ports": ports} if ports else {})},
            st.sampled_from(actions),
            st.lists(who, min_size=1, max_size=2),
            st.lists(admin_ports(), max_size=2),
        ),
        max_size=3,
    )


@st.composite
def admin_policies(draw, number, baseline=False):
    actions = ["Allow", "Deny"] if baseline else ["Allow", "Deny", "Pass"]
    spec = {
        "subject": draw(pod_peers),
        "ingress": draw(admin_rules("from", pod_peers, actions)),
        "egress": draw(admin_rules("to", egress_peers, actions)),
    }
    kind, name = ("BaselineAdminNetworkPolicy", "default") if baseline else ("AdminNetworkPolicy", f"a{number}")
    spec |= {} if baseline else {"priority": draw(st.integers(0, 3))}
    return {"apiVersion": "policy.networking.k8s.io/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}


@st.composite
def pods(draw):
    found = {}
    for i in range(2, 2 + draw(st.integers(2, 5))):
        ips = draw(st.sampled_from([[f"10.1.0.{i}"], [f"10.1.0.{i}", f"fd00:1::{i}"], [f"fd00:1::{i}"]]))
        names = draw(st.lists(st.sampled_from(NAMES), unique=True))
        ports = {name: f"{draw(st.sampled_from(PORTS))}/{draw(st.sampled_from(PROTOCOLS))}" for name in names}
        found[f"{draw(st.sampled_from(NAMESPACES))}/pod{i}"] = {
            "labels": draw(labels),
            "ips": ips,
            "ports": ports,
            "node": draw(st.sampled_from(["n1", "n2"])),
            "hostNetwork": draw(st.integers(0, 9)) == 9,
        }
    return found


class Made(NamedTuple):
    objects: list[dict]  # who is there
    policies: list[dict]

    def cluster(self) -> Cluster:
        return made([*self.objects, *self.policies])


@st.composite
def policies(draw):
    found = [draw(network_policies(i)) for i in range(draw(st.integers(0, 3)))]
    found += [draw(admin_policies(i)) for i in range(draw(st.integers(0, 2)))]
    return found + [draw(admin_policies(0, baseline=True))] * draw(st.booleans())


@st.composite
def clusters(draw):
    nodes = {name: {"ips": [f"192.0.2.1{name[1]}", f"2001:db8:1::{name[1]}"], "labels": draw(labels)} for name in ("n1", "n2")}
    who = {"namespaces": {name: draw(labels) for name in NAMESPACES}, "nodes": nodes, "pods": draw(pods())}
    return Made(list(objects(who)), draw(policies()))
