"""Files of Kubernetes objects -> Cluster. What is of no use here is left out and counted in a note, never silently.

Raises PolicyError for what is wrong in a single object, and for what is wrong between them: an object twice, an address of two pods, two baselines.
Not here: the objects themselves (objects, network_policy, admin_policy).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ctcore.nat_rules import Address
from datapath.names import printable
from datapath.pipeline.policy.admin_policy import BASELINE_NAME, AdminObject, AdminPolicy, BaselineObject
from datapath.pipeline.policy.cluster import Cluster
from datapath.pipeline.policy.documents import Document, read_documents
from datapath.pipeline.policy.errors import PolicyError
from datapath.pipeline.policy.models import validate
from datapath.pipeline.policy.network_policy import NetworkPolicy, NetworkPolicyObject
from datapath.pipeline.policy.objects import DEFAULT_NAMESPACE, Node, Pod, namespace_of, node_of, pod_of, service_addresses

POLICY_GROUPS = ("networking.k8s.io/", "policy.networking.k8s.io/")
NO_POLICIES = ("Ingress", "IngressClass", "IPAddress", "ServiceCIDR", "ClusterCIDR")  # other kinds of the first group


def load(names: Sequence[str]) -> Cluster:
    """The cluster that some files describe together. names: "-" is stdin."""
    return gather(read_documents(names))


class _Gathering:
    """What has been read so far."""

    def __init__(self) -> None:
        self.namespaces: dict[str, dict[str, str]] = {}
        self.pods: list[Pod] = []
        self.nodes: list[Node] = []
        self.policies: list[NetworkPolicy] = []
        self.admin: list[AdminPolicy] = []
        self.baseline: AdminPolicy | None = None
        self.services: dict[Address, str] = {}
        self.left_out: Counter[str] = Counter()
        self.seen: set[tuple[str, str, str]] = set()
        self.owners: dict[Address, str] = {}

    def claim(self, document: Document, namespace: str, name: str) -> None:
        """An object may be there once."""
        key = (str(document.data["kind"]), namespace, name)
        if key in self.seen:
            document.fail([], "it is there a second time; expected each object once")
        self.seen.add(key)

    # --- a kind each ------------------------------------------------------------------------------------------------------------------

    def namespace(self, document: Document) -> None:
        name, labels = namespace_of(document)
        self.claim(document, "", name)
        self.namespaces[name] = labels

    def pod(self, document: Document) -> None:
        pod = pod_of(document)
        if isinstance(pod, str):
            self.left_out[pod] += 1
            return
        self.claim(document, pod.namespace, pod.name)
        if not pod.host_network:
            self.own(document, pod.title, pod.addresses)
        self.pods.append(pod)

    def node(self, document: Document) -> None:
        node = node_of(document)
        self.claim(document, "", node.name)
        self.own(document, f"node {node.name}", node.addresses)
        self.nodes.append(node)

    def own(self, document: Document, owner: str, addresses: Iterable[Address]) -> None:
        for address in addresses:
            if address in self.owners:
                document.fail(["status"], f"{address} is the address of {self.owners[address]}; expected each address once")
            self.owners[address] = owner

    def network_policy(self, document: Document) -> None:
        read = validate(NetworkPolicyObject, document)
        policy = NetworkPolicy(read.metadata.namespace or DEFAULT_NAMESPACE, read.metadata.name, read.spec)
        self.claim(document, policy.namespace, policy.name)
        self.policies.append(policy)

    def admin_policy(self, document: Document) -> None:
        read = validate(AdminObject, document)
        self.claim(document, "", read.metadata.name)
        self.admin.append(AdminPolicy(read.metadata.name, read.spec))

    def baseline_policy(self, document: Document) -> None:
        read = validate(BaselineObject, document)
        if read.metadata.name != BASELINE_NAME:
            document.fail(["metadata", "name"], f"expected '{BASELINE_NAME}', the only name that a baseline may have")
        self.claim(document, "", read.metadata.name)
        self.baseline = AdminPolicy(read.metadata.name, read.spec)


_KINDS: dict[str, Callable[[_Gathering, Document], None]] = {
    "Namespace": _Gathering.namespace,
    "Pod": _Gathering.pod,
    "Node": _Gathering.node,
    "NetworkPolicy": _Gathering.network_policy,
    "AdminNetworkPolicy": _Gathering.admin_policy,
    "BaselineAdminNetworkPolicy": _Gathering.baseline_policy,
}


def gather(documents: Iterable[Document]) -> Cluster:
    """The cluster of these objects. Raises PolicyError with what is wrong in all of them."""
    found, wrong = _Gathering(), list[str]()
    following = iter(documents)
    while True:
        try:
            document = next(following, None)
            if document is None:
                break
            _take(found, document)
        except PolicyError as error:
            wrong += error.lines
    if wrong:
        raise PolicyError(*wrong)
    return Cluster(
        namespaces=found.namespaces,
        pods=found.pods,
        nodes=found.nodes,
        policies=found.policies,
        admin=sorted(found.admin, key=lambda policy: (policy.priority or 0, policy.name)),
        baseline=found.baseline,
        notes=list(_notes(found)),
        services=found.services,
    )


def _take(found: _Gathering, document: Document) -> None:
    """One object. What is raised here does not end the reading; what is raised in reading does."""
    kind, version = document.data["kind"], document.data["apiVersion"]
    take = _KINDS.get(kind)
    # Other projects have kinds of the same name (crd.projectcalico.org/v1 NetworkPolicy), which mean something else.
    if take is None or not (version == "v1" or version.startswith(POLICY_GROUPS)):
        # A kind of policy that is not known may forbid what we allow.
        if version.startswith(POLICY_GROUPS[1]):
            document.fail(["kind"], f"'{kind}': expected AdminNetworkPolicy or BaselineAdminNetworkPolicy")
        if version.startswith(POLICY_GROUPS[0]) and kind not in NO_POLICIES:
            document.fail(["kind"], f"'{kind}': expected NetworkPolicy, or one of {', '.join(NO_POLICIES)}, which say nothing of who may talk")
        if (kind, version) == ("Service", "v1"):
            found.services |= service_addresses(document)
        found.left_out[f"{printable(kind)} of {printable(version)}"] += 1
        return
    take(found, document)


def _notes(found: _Gathering) -> Iterable[str]:
    for what, number in found.left_out.items():
        yield f"left out: {what} ({number:,})"
    used = {pod.namespace for pod in found.pods} | {policy.namespace for policy in found.policies}
    missing = sorted(used - set(found.namespaces))
    if missing:
        yield f"namespaces that are in no file, taken to have no labels but the name: {', '.join(missing)}"
    unknown = sorted({pod.node for pod in found.pods if pod.node} - {node.name for node in found.nodes})
    if unknown:
        yield f"nodes that are in no file, so that traffic between a pod and its node is not known as such: {', '.join(unknown)}"
    yield from _ties(found.admin)


def _ties(policies: Sequence[Any]) -> Iterable[str]:
    """The API leaves open which of two policies of one priority is asked first; we go by their names."""
    numbers = Counter(policy.priority for policy in policies)
    for priority, number in sorted(numbers.items()):
        if number > 1:
            names = ", ".join(sorted(policy.name for policy in policies if policy.priority == priority))
            yield f"{number} AdminNetworkPolicies of priority {priority}, whose order the API leaves open, are asked by name: {names}"
