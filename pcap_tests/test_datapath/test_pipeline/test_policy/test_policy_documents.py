"""Files as kubectl prints them and people write them; what is wrong with one is told with its line, document, field, and what was expected."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from datapath.pipeline.policy.errors import PolicyError
from datapath.pipeline.policy.load import load

POD = """
apiVersion: v1
kind: Pod
metadata:
  annotations: {note: "of no interest"}
  creationTimestamp: 2026-01-01T00:00:00Z
  labels: {app: web}
  name: web
  namespace: shop
  resourceVersion: "4711"
spec:
  containers:
  - image: nginx
    name: main
    ports:
    - {containerPort: 8080, name: http, protocol: TCP}
  initContainers:
  - name: sidecar
    restartPolicy: Always
    ports: [{containerPort: 9100, name: metrics}]
  - name: setup
    ports: [{containerPort: 1, name: once}]
  nodeName: n1
status:
  phase: Running
  podIP: 10.1.0.2
  podIPs:
  - ip: 10.1.0.2
  - ip: fd00:1::2
"""
POLICY = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {}
  ingress:
  - from:
    - podSelector: {matchLabels: {app: api}}
    ports:
    - port: 80
"""
ADMIN = """
apiVersion: policy.networking.k8s.io/v1alpha1
kind: AdminNetworkPolicy
metadata: {name: border}
spec:
  priority: 10
  subject: {namespaces: {}}
  egress:
  - action: Deny
    to:
    - networks: [10.0.0.0/8]
"""


def loaded(tmp_path, *texts):
    names = []
    for i, text in enumerate(texts):
        path = tmp_path / f"{i}.yaml"
        path.write_text(text)
        names.append(str(path))
    return load(names)


def refused(tmp_path, *texts):
    with pytest.raises(PolicyError) as error:
        loaded(tmp_path, *texts)
    text = str(error.value)
    assert "\n" not in text
    return text.removeprefix(f"{tmp_path}/")


def indented(text):
    return "".join(f"  {line}\n" if i else f"- {line}\n" for i, line in enumerate(text.strip().splitlines()))


# --- what is read -----------------------------------------------------------------------------------------------------------------------


def test_a_pod_as_kubectl_prints_it(tmp_path):
    (pod,) = loaded(tmp_path, POD).pods
    assert (pod.title, pod.labels, pod.node, pod.host_network) == ("shop/web", {"app": "web"}, "n1", False)
    assert pod.addresses == (ip_address("10.1.0.2"), ip_address("fd00:1::2"))
    assert [tuple(port) for port in pod.ports] == [("http", 6, 8080), ("metrics", 6, 9100)]


@pytest.mark.parametrize(
    "text",
    [
        f"{POD}---{POLICY}---\n# nothing\n---{ADMIN}",
        f"apiVersion: v1\nkind: List\nmetadata: {{resourceVersion: ''}}\nitems:\n{indented(POD)}{indented(POLICY)}{indented(ADMIN)}",
    ],
    ids=["documents", "List"],
)
def test_documents_and_lists_are_the_same(tmp_path, text):
    cluster = loaded(tmp_path, text)
    assert [pod.title for pod in cluster.pods] == ["shop/web"]
    assert [policy.title for policy in cluster.policies] == ["NetworkPolicy shop/web"]
    assert [policy.title for policy in cluster.admin] == ["AdminNetworkPolicy border"]


def test_a_list_of_one_kind_need_not_repeat_it_in_its_items(tmp_path):
    item = POLICY.replace("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n", "")
    cluster = loaded(tmp_path, f"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicyList\nitems:\n{indented(item)}")
    assert [policy.title for policy in cluster.policies] == ["NetworkPolicy shop/web"]


def test_several_files_are_one_cluster(tmp_path):
    cluster = loaded(tmp_path, POD, POLICY)
    assert len(cluster.pods) == len(cluster.policies) == 1


def test_json_is_yaml(tmp_path):
    text = '{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": {"team": "blue"}}}'
    assert loaded(tmp_path, text).namespaces == {"shop": {"team": "blue", "kubernetes.io/metadata.name": "shop"}}


def test_null_is_a_field_that_is_not_there(tmp_path):
    (policy,) = loaded(tmp_path, POLICY.replace("ports:\n    - port: 80", "ports:")).policies
    assert policy.rules["ingress"][0].ports == []


def test_what_is_of_no_use_is_counted(tmp_path):
    ended = POD.replace("phase: Running", "phase: Succeeded")
    pending = POD.split("status:")[0].replace("name: web\n", "name: pending\n")
    service = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\n"
    other = "apiVersion: crd.projectcalico.org/v1\nkind: NetworkPolicy\nmetadata: {name: web}\n"
    cluster = loaded(tmp_path, ended, pending, service, service, other)
    assert list(cluster.pods) == list(cluster.policies) == []
    assert cluster.notes[:4] == [
        "left out: pods that have ended (1)",
        "left out: pods without an address (1)",
        "left out: Service of v1 (2)",
        "left out: NetworkPolicy of crd.projectcalico.org/v1 (1)",
    ]


def test_what_is_taken_for_granted_is_noted(tmp_path):
    tie = ADMIN.replace("name: border", "name: another")
    assert loaded(tmp_path, POD, ADMIN, tie).notes == [
        "namespaces that are in no file, taken to have no labels but the name: shop",
        "nodes that are in no file, so that traffic between a pod and its node is not known as such: n1",
        "2 AdminNetworkPolicies of priority 10, whose order the API leaves open, are asked by name: another, border",
    ]


# --- what is refused --------------------------------------------------------------------------------------------------------------------

WRONG_POLICIES = [
    ("podSelector: {}", "podselector: {}", "0.yaml:6: document 1, NetworkPolicy shop/web: spec: unknown field 'podselector'; did you mean pod"),
    ("  podSelector: {}\n", "", "spec.podSelector: missing; expected it to be there"),
    ("port: 80", "port: 0", "0.yaml:11: document 1, NetworkPolicy shop/web: spec.ingress[0].ports[0].port: '0': expected a port from 1 to 65535"),
    ("port: 80", "port: HTTP", "'HTTP': expected a port from 1 to 65535 or the name of one"),
    ("port: 80", "port: '80'", "'80': expected a port from 1 to 65535 or the name of one"),
    ("port: 80", "port: true", "'True': expected a port from 1 to 65535 or the name of one"),
    ("port: 80", "{port: 80, endPort: 79}", "endPort 79: expected a port, as a number not above it"),
    ("port: 80", "{port: http, endPort: 90}", "endPort 90: expected a port, as a number not above it"),
    ("port: 80", "{port: 80, protocol: tcp}", "spec.ingress[0].ports[0].protocol: 'tcp': expected 'TCP', 'UDP' or 'SCTP'"),
    ("podSelector: {matchLabels: {app: api}}", "{}", "from[0]: a peer that names nothing; expected podSelector, namespaceSelector or"),
    ("podSelector: {matchLabels: {app: api}}", "ipBlock: {cidr: 10.0.0.1}", "spec.ingress[0].from[0].ipBlock.cidr: '10.0.0.1': expected a CIDR"),
    ("podSelector: {matchLabels: {app: api}}", "ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/8]}", "except 11.0.0.0/8 is not within 10.0.0.0/8"),
    ("podSelector: {matchLabels: {app: api}}", "ipBlock: {cidr: 10.0.0.0/8, except: ['fd00::/8']}", "except fd00::/8 is not within 10.0.0.0/8"),
    ("podSelector: {matchLabels: {app: api}}", "{podSelector: {}, ipBlock: {cidr: 10.0.0.0/8}}", "ipBlock beside a selector; expected two peers"),
    ("{matchLabels: {app: api}}", "{matchLabels: {app: 1}}", "from[0].podSelector.matchLabels.app: '1': expected a string (in quotes"),
    ("{matchLabels: {app: api}}", "{app: api}", "from[0].podSelector: unknown field 'app'; expected matchExpressions or matchLabels"),
    ("{matchLabels: {app: api}}", "{matchExpressions: [{key: a, operator: Is}]}", "'Is': expected 'In', 'NotIn', 'Exists' or 'DoesNotExist'"),
    ("{matchLabels: {app: api}}", "{matchExpressions: [{key: a, operator: In}]}", "operator In without values; expected at least one"),
    ("{matchLabels: {app: api}}", "{matchExpressions: [{key: a, operator: Exists, values: [b]}]}", "operator Exists with values; expected none"),
    ("- from:", "- to:", "spec.ingress[0]: unknown field 'to'; expected from or ports"),
    ("  ingress:\n", "  policyTypes: [ingress]\n  ingress:\n", "spec.policyTypes[0]: 'ingress': expected 'Ingress' or 'Egress'"),
    ("spec:\n", "spec:\n  podSelector: {a: b}\n", "0.yaml:7:3: no YAML: 'podSelector' is there twice; expected it once"),
    ("networking.k8s.io/v1", "networking.k8s.io/v2", "apiVersion: 'networking.k8s.io/v2': expected 'networking.k8s.io/v1'"),
    ("- from:", "-\n  - from:", "spec.ingress[0]: expected a mapping"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "expected"), WRONG_POLICIES, ids=[new.strip()[:40] for _, new, _ in WRONG_POLICIES])
def test_a_policy_that_is_wrong(tmp_path, old, new, expected):
    assert old in POLICY
    assert expected in refused(tmp_path, POLICY.replace(old, new, 1))


WRONG_ADMIN = [
    ("- networks: [10.0.0.0/8]", "- domainNames: ['*.example.org']", "to[0].domainNames: domain names are not supported"),
    ("- networks: [10.0.0.0/8]", "- {networks: [10.0.0.0/8], nodes: {}}", "nodes and networks; expected exactly one of "),
    ("- networks: [10.0.0.0/8]", "- {}", "nothing is given; expected exactly one of namespaces, pods, nodes, networks or domainNames"),
    ("- networks: [10.0.0.0/8]", "- networks: []", "expected at least 1"),
    ("- networks: [10.0.0.0/8]", "- pods: {podSelector: {}}", "pods.namespaceSelector: missing"),
    ("    to:\n    - networks: [10.0.0.0/8]\n", "", "spec.egress[0].to: missing"),
    ("egress:", "ingress:", "spec.ingress[0]: unknown field 'to'"),
    ("action: Deny", "action: Drop", "spec.egress[0].action: 'Drop': expected 'Allow', 'Deny' or 'Pass'"),
    ("priority: 10", "priority: 1001", "spec.priority: '1001': expected at most 1000"),
    ("priority: 10", "priority: -1", "spec.priority: '-1': expected at least 0"),
    ("  priority: 10\n", "", "spec.priority: missing"),
    ("subject: {namespaces: {}}", "subject: {}", "spec.subject: nothing is given; expected exactly one of namespaces or pods"),
    ("action: Deny", "action: Deny\n    ports: [{portRange: {start: 9, end: 8}}]", "end 8 is below start; expected it not to be"),
    ("action: Deny", "action: Deny\n    ports: [{portNumber: {port: 9}, namedPort: web}]", "portNumber and namedPort; expected exactly one of"),
    ("v1alpha1", "v1alpha2", "apiVersion: 'policy.networking.k8s.io/v1alpha2': expected 'policy.networking.k8s.io/v1alpha1'"),
    ("kind: AdminNetworkPolicy", "kind: ClusterNetworkPolicy", "kind: 'ClusterNetworkPolicy': expected AdminNetworkPolicy or Baseline"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "expected"), WRONG_ADMIN, ids=[new.strip()[:40] for _, new, _ in WRONG_ADMIN])
def test_an_administrator_s_policy_that_is_wrong(tmp_path, old, new, expected):
    assert old in ADMIN
    assert expected in refused(tmp_path, ADMIN.replace(old, new, 1))


def test_a_baseline_has_one_name_and_does_not_pass(tmp_path):
    baseline = ADMIN.replace("AdminNetworkPolicy", "BaselineAdminNetworkPolicy").replace("  priority: 10\n", "")
    assert "metadata.name: expected 'default'" in refused(tmp_path, baseline)
    assert "'Pass': expected 'Allow' or 'Deny'" in refused(tmp_path, baseline.replace("border", "default").replace("Deny", "Pass"))
    assert loaded(tmp_path, baseline.replace("border", "default")).baseline.title == "BaselineAdminNetworkPolicy default"


WRONG_OBJECTS = [
    (POD.replace("ip: fd00:1::2", "ip: ten"), "status.podIPs[1]: 'ten': expected an IPv4 or IPv6 address"),
    (POD.replace("fd00:1::2", "fe80::1%eth0"), "status.podIPs[1]: 'fe80::1%eth0': expected an address without a zone"),
    (POD.replace("fd00:1::2", "10.1.0.3"), "status.podIPs: expected one address of each family at most"),
    (f"{POD}---{POD}", "0.yaml:31: document 2, Pod shop/web: it is there a second time"),
    (f"{POD}---{POD.replace('name: web', 'name: twin')}", "Pod shop/twin: status: 10.1.0.2 is the address of shop/web; expected each address once"),
    (POD.replace("containerPort: 8080", "containerPort: 70000"), "spec.containers[0].ports[0].containerPort: '70000': expected at most 65535"),
    (POD.replace("  name: web\n", ""), "0.yaml:4: document 1, Pod shop: metadata.name: missing"),
    ("just text", "0.yaml:1: document 1: expected an object with apiVersion, kind and metadata"),
    ("- a\n- b", "expected an object with apiVersion, kind and metadata"),
    ("metadata: {}", "apiVersion: expected a string, as in every Kubernetes object"),
    ("apiVersion: v1\nkind: List\nitems: 3", "items: expected a sequence of objects"),
    ("apiVersion: v1\nkind: List\nitems: [3]", "items[0]: expected an object"),
    ("a: [", "no YAML: "),
    ("\x00", "no YAML: "),
    ("a: !!python/object/apply:os.system [x]", "no YAML: "),
    ("? [a, b]\n: c", "no YAML: "),
    ("a: 2026-99-99", "no YAML to work with: "),
    ("[" * 3000, "no YAML"),
    ("&a [*a]", "an alias inside of what it stands for"),
]  # fmt: skip


def test_everything_that_is_wrong_is_told_in_its_order(tmp_path):
    """With all of one policy, unknown fields beside others, and with all policies; what is missing under a wrong name is told once."""
    wrong = POLICY.replace("podSelector: {}", "podSelctor: {}").replace("port: 80", "port: 0").replace("  - from:", "  - form:")
    (tmp_path / "0.yaml").write_text(f"{wrong}  policyTypes: [ingress]\n---{ADMIN.replace('priority: 10', 'priority: -1')}---{POD}")
    with pytest.raises(PolicyError) as error:
        load([str(tmp_path / "0.yaml")])
    assert [line.removeprefix(f"{tmp_path}/").replace("document ", "").replace("NetworkPolicy shop/web: ", "") for line in error.value.lines] == [
        "0.yaml:6: 1, spec: unknown field 'podSelctor'; did you mean podSelector?",
        "0.yaml:8: 1, spec.ingress[0]: unknown field 'form'; did you mean from?",
        "0.yaml:11: 1, spec.ingress[0].ports[0].port: '0': expected a port from 1 to 65535 or the name of one",
        "0.yaml:12: 1, spec.policyTypes[0]: 'ingress': expected 'Ingress' or 'Egress'",
        "0.yaml:18: 2, AdminNetworkPolicy border: spec.priority: '-1': expected at least 0",
    ]


def test_a_tab_is_called_one(tmp_path):
    assert refused(tmp_path, "apiVersion: v1\n\tkind: Pod\n") == "0.yaml:2:1: no YAML: a tab: expected spaces, YAML takes no tabs to indent lines"


@pytest.mark.parametrize(("text", "expected"), WRONG_OBJECTS, ids=[str(i) for i in range(len(WRONG_OBJECTS))])
def test_an_object_that_is_wrong(tmp_path, text, expected):
    assert expected in refused(tmp_path, text)


def test_a_document_that_is_large_by_aliases_only(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 20)]
    assert "a document of more than 2,000,000 values; expected less" in refused(tmp_path, "\n".join(lines))


def test_bytes_that_are_no_text(tmp_path):
    path = tmp_path / "0.yaml"
    path.write_bytes(b"a: \xff\xfe\n")
    with pytest.raises(PolicyError, match=r"0\.yaml: no YAML: "):
        load([str(path)])


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(PolicyError, match=r"none\.yaml: No such file or directory"):
        load([str(tmp_path / "none.yaml")])
