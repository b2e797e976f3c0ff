"""`ctmirror offload probe`, and what `doctor` says of the kernel's TC: rules that are tried. Not here: which, and what follows (offload.trials)."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import Any

import click
import orjson

from ctcore.errors import CtmirrorError
from datapath.commands.offload_devices import eswitch_of
from datapath.commands.verbosity import verbosity
from datapath.doctor import CLONE_NEWNET, Finding, tc_offload
from datapath.names import printable
from offload.devlink.attributes import LEGACY, SWITCHDEV
from offload.devlink.names import Resolver
from offload.netlink.channel import Channel, NetlinkError
from offload.netlink.filters import Where
from offload.netlink.links import links
from offload.trials import EXACT, PIPELINE, SOFTWARE, Decision, Tried, decided, trials

WAYS = {
    PIPELINE: "rules with connection tracking can be in hardware (offload install)",
    EXACT: "connections can be in hardware one by one, as exact filters (offload.exact_rules), and rules with ct cannot",
    SOFTWARE: "nothing of it can be in hardware",
}
LOOPBACK = 1  # the number of lo in every namespace
FULL = 1 << 14  # bytes of what a child says
NO_NAMESPACE = "no namespace to try them in"
NOT_PERMITTED = f"{NO_NAMESPACE}: {os.strerror(errno.EPERM)}"
AS_ROOT = "run as root, to have them tried"
OTHER_KERNEL = "use a kernel with flower, act_ct, act_pedit, act_csum and act_mirred, for offload through TC"


def probed(device: str, to: str | None = None) -> tuple[str, tuple[Tried, ...], tuple[Tried, ...], Decision]:
    """hw-tc-offload, what was tried in hardware and in software, and what follows. Raises CtmirrorError."""
    with Channel() as channel:
        numbers = links(channel)
        for name in (device, to or device):
            if name not in numbers:
                raise CtmirrorError(f"no interface {name}")
        where, feature = Where(numbers[device]), tc_offload(device)
        software = trials(channel, where, numbers[to or device])
        hardware = trials(channel, where, numbers[to or device], hardware=True) if feature == "on" else ()
    if software and all(each.answer.error == 1 for each in software):  # EPERM
        raise CtmirrorError("TC cannot be tried: not permitted: expected root, or cap_net_admin")
    return feature, hardware, software, decided(feature, hardware, software)


@click.command("probe", short_help="what an interface and the kernel's TC take")
@click.argument("device")
@click.option("--to", metavar="DEVICE", help="Where packets would be sent to.  [default: the same interface]")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, with everything.")
@verbosity("Only the exit code.")
def probe_command(device: str, to: str | None, as_json: bool, quiet: bool, verbose: bool) -> int:
    """What of offloading an interface takes, found out by rules that are tried where no packet comes, and deleted at once: filters, counters, exact
    filters with translation, chains, connection tracking; in the kernel, and in the NIC.

    DEVICE: an interface, or a function of a NIC for the one that stands for it, as pf0vf3@0000:08:00.0.

    Exit code 0: connections or rules can be in hardware, 1: they cannot.

    \b
    Examples:
      ctmirror offload probe eth0
      ctmirror offload probe pf0hpf --to pf0vf0 --json | jq .way
    """
    interface_of = Resolver()
    device, to = interface_of(device), interface_of(to) if to is not None else None
    feature, hardware, software, decision = probed(device, to)
    nic, mode = eswitch_of(device)
    if mode == LEGACY and decision.way != PIPELINE:
        decision = decision._replace(why=(*decision.why, f"the eswitch is in mode {LEGACY}: ctmirror offload eswitch {nic} --mode {SWITCHDEV}"))
    if as_json and not quiet:
        document = _document(device, feature, hardware, software, decision) | {"nic_name": nic, "eswitch": mode}
        click.echo(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode())
    elif not quiet:
        click.echo(f"hw-tc-offload  {feature or 'none'}")
        click.echo(printable(f"eswitch        {f'{mode} ({nic})' if mode is not None else 'none'}"))
        for name, tried in (("kernel", software), ("NIC", hardware)):
            for each in tried:
                click.echo(printable(f"{name:<7} {each.trial.name:<10} {'yes' if each.ok else each.answer.told()}"))
        click.echo(f"{decision.way}: {WAYS[decision.way]}")
        for line in decision.why:
            click.echo(printable(f"  {line}"))
    return int(decision.way == SOFTWARE)


def _document(device: str, feature: str, hardware: Sequence[Tried], software: Sequence[Tried], decision: Decision) -> dict[str, Any]:
    def each(tried: Sequence[Tried]) -> dict[str, str | None]:
        return {one.trial.name: None if one.ok else one.answer.told() for one in tried}

    return {
        "device": device, "hw_tc_offload": feature or None, "kernel": each(software), "nic": each(hardware), "way": decision.way,
        "why": list(decision.why),
    }  # fmt: skip


# --- doctor -----------------------------------------------------------------------------------------------------------------------------------


def tc_rules() -> Finding:
    """Whether the kernel takes what offloading through TC needs: tried by a child in a network namespace of its own, which ends with it."""
    ours, childs = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ours)
        os.write(childs, _tried_alone().encode()[:FULL])
        os._exit(0)
    os.close(childs)
    with open(ours, "rb") as file:
        said = file.read().decode(errors="replace")
    os.waitpid(child, 0)
    if said != "ok":
        return Finding("TC rules", False, said or "the trial was killed", AS_ROOT if said == NOT_PERMITTED else OTHER_KERNEL)
    return Finding("TC rules", True, "flower, chains, exact filters and ct: tried in a namespace")


def _tried_alone() -> str:
    """ "ok", or what is wrong. For a child: it leaves this process's namespace."""
    import ctypes

    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(CLONE_NEWNET):
            return f"{NO_NAMESPACE}: {os.strerror(ctypes.get_errno())}"
        with Channel() as channel:
            wrong = [each for each in trials(channel, Where(LOOPBACK)) if not each.ok]
    except (NetlinkError, OSError) as error:
        return " ".join(str(error).split()) or type(error).__name__
    return "ok" if not wrong else f"{', '.join(each.trial.name for each in wrong)}: {wrong[0].answer.told()}"
