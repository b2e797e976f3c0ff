"""`ctmirror policy`: Kubernetes network policies as rules, and what they say of one connection."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import click

from ctcore.errors import CtmirrorError
from datapath.cli import complain
from datapath.commands.output import opened, output_option
from datapath.commands.verbosity import verbosity
from datapath.extras import remedy
from datapath.names import printable

if TYPE_CHECKING:
    from datapath.pipeline.policy.cluster import Cluster
    from datapath.pipeline.policy.devices import Attachment
    from datapath.pipeline.rules import Ruleset


@click.group("policy", short_help="Kubernetes network policies")
@verbosity()
def command(quiet: bool, verbose: bool) -> None:
    """Kubernetes network policies: as rules, or asked about one connection.

    Takes NetworkPolicy (networking.k8s.io/v1), AdminNetworkPolicy and BaselineAdminNetworkPolicy (policy.networking.k8s.io/v1alpha1), with the Pods,
    Namespaces and Nodes they are about, as `kubectl get -o yaml` prints them; docs/policy.md says what is supported.

    \b
    Examples:
      kubectl get pods,namespaces,nodes,networkpolicies -A -o yaml > cluster.yaml
      ctmirror policy compile cluster.yaml -o rules.tc
      ctmirror policy explain cluster.yaml --from shop/web --to shop/db --port 5432/tcp
    """


def _load(files: tuple[str, ...]) -> Cluster:
    """The cluster of these files; all that is wrong with them is said. Its libraries are an extra."""
    missing = [name for name, module in (("pydantic", "pydantic"), ("PyYAML", "yaml")) if find_spec(module) is None]
    if missing:
        raise CtmirrorError(f"policies need {' and '.join(missing)}: {remedy('policy')}")
    from datapath.pipeline.policy.load import load

    with _all_said():
        return load(files)


@contextmanager
def _all_said() -> Iterator[None]:
    """All lines of an error on stderr: the last one is for whoever says what ends a command."""
    from datapath.pipeline.policy.errors import PolicyError

    try:
        yield
    except PolicyError as error:
        for line in error.lines[:-1]:
            complain(line)
        raise PolicyError(error.lines[-1]) from None


def _cluster_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """What both commands take."""
    function = click.option(
        "--node-traffic",
        type=click.Choice(["both", "from", "none"]),
        default="both",
        help="Between a pod and its own node, allow whatever NetworkPolicies say: both ways, from the node (probes), or nothing.  [default: both]",
    )(function)
    return click.argument("files", nargs=-1, required=True, metavar="FILE...")(function)


@command.command("compile")
@_cluster_options
@click.option("--established", type=click.Choice(["packet", "connection"]), default="packet", help="What a changed policy means for connections that "
              "are established: judged again, packet by packet, or kept.  [default: packet]")  # fmt: skip
@click.option("--invalid", type=click.Choice(["drop", "policy"]), default="drop", help="What conntrack calls invalid: dropped, or judged like the "
              "rest.  [default: drop]")  # fmt: skip
@click.option("--anti-spoof/--no-anti-spoof", default=True, help="Drop what a pod sends from addresses that are not its own.  [default: on]")
@click.option("--forward", type=click.Choice(["pass", "redirect"]), default="pass", help="What passes goes to the host; or, for pods "
              "among these, straight to their devices, as NICs need it.  [default: pass]")  # fmt: skip
@click.option("--node", metavar="NAME", help="Rules for the pods of this node only.  [default: all pods]")
@click.option("--device-of", "template", metavar="TEMPLATE", help="The device of a pod, of {namespace}, {name}, {node} and {hash} (11 digits); an "
              "annotation ctmirror/device comes first.  [default: veth{hash}]")  # fmt: skip
@click.option(
    "--devices", metavar="FILE", help="Devices by pod, before all else: a YAML mapping of NAMESPACE/POD to DEVICE or {device: ..., zone: N}."
)
@click.option("--format", "form", type=click.Choice(["tc", "yaml"]), default="tc", help="A script for tc, or YAML.  [default: tc]")
@output_option
@verbosity("No notes and no summary.", "Also how many rules each chain has.")
def compile_command(files: tuple[str, ...], output: str | None, quiet: bool, verbose: bool, form: str, **others: Any) -> None:
    """The rules that enforce policies, at the devices of the pods.

    What a pod sends comes out of its device on the host, and meets its egress policies there; what it is to receive meets its ingress policies on
    the way in. Each pod has a conntrack zone. Devices are, in this order: those of --devices, of annotations (ctmirror/device, ctmirror/zone), of
    --device-of. Comments at the head say which pod has which device, and those above the rules of a hook which policies they are for.

    \b
    Examples:
      ctmirror policy compile cluster.yaml policies/*.yaml -o rules.tc
      ctmirror policy compile cluster.yaml --node worker-1 --devices devices.yaml
      ctmirror policy compile cluster.yaml --established connection --format yaml
    """
    cluster = _load(files)
    from datapath.pipeline.policy.compiler import Options, compile_policies

    attachments = _attached(cluster, others.pop("node"), others.pop("template"), others.pop("devices"))
    ruleset = compile_policies(cluster, attachments, Options(**others))
    from datapath.pipeline.policy import origins

    text = (origins.yaml_text if form == "yaml" else origins.tc_text)(ruleset, cluster, attachments)
    with opened(output) as file:
        click.echo(text, file=file, nl=False)
    if not quiet:
        _report(cluster, ruleset, attachments, verbose)


def _attached(cluster: Cluster, node: str | None, template: str | None, mapping: str | None) -> dict[str, Attachment]:
    from datapath.pipeline.policy.device_names import TEMPLATE
    from datapath.pipeline.policy.devices import attach, check_known, read_mapping
    from datapath.pipeline.policy.errors import PolicyError

    pods = [pod for pod in cluster.pods if not pod.host_network and node in (None, pod.node)]
    if not pods:
        where = f" of node '{printable(node)}'" if node else ""
        raise PolicyError(f"no pod{where} with an address of its own in the files; expected some (kubectl get pods -A -o yaml)")
    wishes = read_mapping(mapping) if mapping else {}
    with _all_said():
        check_known(wishes, [pod.title for pod in cluster.pods])
    return attach(pods, template or TEMPLATE, wishes)


def _report(cluster: Cluster, ruleset: Ruleset, attachments: dict[str, Attachment], verbose: bool) -> None:
    from datapath.pipeline.policy.compiler import counts

    for note in cluster.notes:
        click.echo(printable(f"note: {note}"), err=True)
    policies = len(cluster.policies) + len(cluster.admin) + (cluster.baseline is not None)
    click.echo(f"policies {policies:,}, pods {len(attachments):,}, rules {len(ruleset.rules):,}", err=True)
    if verbose:
        for name, rules in counts(ruleset).items():
            click.echo(f"  {name:9} {rules:8,}", err=True)
        for title, (device, zone) in attachments.items():
            click.echo(f"  {device:15}  zone {zone:5}  {printable(title)}", err=True)


@command.command("explain")
@_cluster_options
@click.option("--from", "source", required=True, metavar="NS/POD|IP", help="Who opens the connection.")
@click.option("--to", "target", required=True, metavar="NS/POD|IP", help="To whom.")
@click.option(
    "--port", "service", required=True, metavar="N/PROTO", help="To which port: 80/tcp, 53/udp, 36412/sctp, or its name in the pod; or icmp."
)
@output_option
@verbosity("Only the exit code.", "Also what was left out of the files or taken for granted.")
def explain_command(
    files: tuple[str, ...], node_traffic: Any, source: str, target: str, service: str, output: str | None, quiet: bool, verbose: bool
) -> int:
    """Whether a connection is allowed, and which policy and rule decide. Exit code 0: allowed, 1: denied.

    A connection has to be allowed where it leaves a pod and where it enters one; its replies then are. The other way round, that is whether the other
    end could open one to the same port, is told as well, and does not count for the exit code.

    \b
    Examples:
      ctmirror policy explain cluster.yaml --from shop/web --to shop/db --port 5432/tcp
      ctmirror policy explain cluster.yaml --from 198.51.100.7 --to shop/web --port 443
      ctmirror policy explain cluster.yaml --from shop/web --to shop/db --port sql        a port by its name in the target's containers
    """
    cluster = _load(files)
    from datapath.pipeline.policy.explain import opinions, read_endpoint, read_service

    left, right = read_endpoint(cluster, "--from", source), read_endpoint(cluster, "--to", target)
    asked = read_service(service, right.pod)
    there = opinions(cluster, left, right, asked, node_traffic)
    if not quiet:
        back = opinions(cluster, right, left, asked, node_traffic)
        with opened(output) as file:
            for opinion in there:
                click.echo("\n".join(map(printable, opinion.lines())), file=file)
            click.echo("the other way round:", file=file)
            for opinion in back:
                click.echo("\n".join(map(printable, opinion.lines())), file=file)
    for note in cluster.notes:
        if verbose or (note.startswith("left out") and not quiet):
            click.echo(printable(f"note: {note}"), err=True)
    return 0 if all(opinion.judgement.allowed for opinion in there) else 1
