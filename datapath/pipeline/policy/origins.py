"""Where compiled rules come from, as comments: whose device is which, and which policies the rules of a hook stand for.

For those who read rules, or look for the pod behind a device; rules say nothing of pods. Invariant: comments only, so that rules stay what they are.
Not here: rules as text (tc_print, yaml_rules).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from datapath.names import printable
from datapath.pipeline.policy.admin_policy import AdminPolicy
from datapath.pipeline.policy.cluster import Cluster
from datapath.pipeline.policy.devices import Attachment
from datapath.pipeline.policy.network_policy import EGRESS, INGRESS
from datapath.pipeline.policy.objects import Pod
from datapath.pipeline.rules import Hook, Ruleset
from datapath.pipeline.tc_print import qdisc_line, rule_line

DIRECTION_OF = {"ingress": EGRESS, "egress": INGRESS}  # of a device's hooks
WORDS = {EGRESS: "what it sends", INGRESS: "what it is to receive"}


def head(attachments: Mapping[str, Attachment]) -> str:
    """A line for each pod: # pod shop/web: device web0, zone 2."""
    return "".join(f"# pod {printable(title)}: device {found.device}, zone {found.zone}\n" for title, found in sorted(attachments.items()))


def tc_text(ruleset: Ruleset, cluster: Cluster, attachments: Mapping[str, Attachment]) -> str:
    """The rules as tc lines, with the pods at the head, and with a comment above the rules of each hook."""
    titles = {found.device: title for title, found in attachments.items()}
    lines, last = [*map(qdisc_line, ruleset.qdiscs)], Hook("")
    for rule in ruleset.rules:
        if rule.hook != last:
            pod, last = cluster.pod_by_title[titles[rule.hook.device]], rule.hook
            lines.append(f"# {printable(pod.title)}, {_about(cluster, pod, rule.hook)}")
        lines.append(rule_line(rule))
    return head(attachments) + "".join(f"{line}\n" for line in lines)


def yaml_text(ruleset: Ruleset, cluster: Cluster, attachments: Mapping[str, Attachment]) -> str:
    """The same as YAML: all comments at the head, since its rules are written in one go."""
    from datapath.pipeline.yaml_rules import dump

    titles = {found.device: title for title, found in attachments.items()}
    hooks = dict.fromkeys(rule.hook for rule in ruleset.rules)
    about = [f"# {hook.device} {hook.direction}: {_about(cluster, cluster.pod_by_title[titles[hook.device]], hook)}\n" for hook in hooks]
    return head(attachments) + "".join(about) + dump(ruleset)


def _about(cluster: Cluster, pod: Pod, hook: Hook) -> str:
    direction = DIRECTION_OF[hook.direction]
    names = ", ".join(map(printable, policies_of(cluster, pod, direction)))
    return f"{WORDS[direction]} ({direction}): {names or 'no policy'}"


def policies_of(cluster: Cluster, pod: Pod, direction: str) -> Iterator[str]:
    """The policies that select a pod and have rules for a direction, in the order in which they are asked."""
    yield from (policy.title for policy in cluster.admin if _selects(cluster, policy, pod, direction))
    for policy in cluster.policies:
        if policy.rules[direction] is not None and policy.namespace == pod.namespace and policy.selector.matches(pod.labels):
            yield policy.title
    if cluster.baseline is not None and _selects(cluster, cluster.baseline, pod, direction):
        yield cluster.baseline.title


def _selects(cluster: Cluster, policy: AdminPolicy, pod: Pod, direction: str) -> bool:
    subject = policy.subject
    if not policy.rules[direction]:
        return False
    if subject.namespaces is not None:
        return cluster.selected(pod, subject.namespaces, None)
    return subject.pods is not None and cluster.selected(pod, subject.pods.namespace_selector, subject.pods.pod_selector)
