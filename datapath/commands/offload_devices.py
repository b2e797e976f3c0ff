"""`ctmirror offload devices`: NICs as devlink knows them, and which interface stands for which function; the same for `doctor` and `probe` in a line.

Not here: devlink (offload.devlink), what is changed there (offload_functions), what a NIC takes (offload_probe).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click
import orjson

from datapath.cli import complain
from datapath.commands.verbosity import verbosity
from datapath.doctor import Finding
from datapath.hints import counted
from datapath.names import printable
from offload.devlink.attributes import LEGACY, SWITCHDEV
from offload.devlink.functions import EXAMPLE, Nic, is_uplink

if TYPE_CHECKING:
    from offload.devlink.family import Devlink
    from offload.devlink.model import DevlinkPort, Eswitch
    from offload.devlink.representors import Representor

NO = 1
UNPRIVILEGED, NO_SUCH_THING = 1, 95  # EPERM, EOPNOTSUPP
UNTOLD = {UNPRIVILEGED: "not told: expected root, or cap_net_admin", NO_SUCH_THING: "none"}  # instead of a mode
HEAD = ("function", "flavour", "interface", "MAC address", "state", "port")


def listed() -> tuple[list[tuple[Nic, Eswitch | str]], list[Representor], list[DevlinkPort], str]:
    """NICs, each with its eswitch or why it cannot be told; representors and uplinks; devlink ports; what is to be said of it all if there is none.

    Raises CtmirrorError.
    """
    from offload.devlink.family import Devlink, NoDevlink
    from offload.devlink.representors import links, representors
    from offload.netlink.channel import Channel

    with Channel() as channel:
        found = links(channel)
    try:
        with Devlink() as devlink:
            nics, ports = devlink.nics(), devlink.ports()
            return [(nic, _eswitch(devlink, nic)) for nic in nics], representors(ports, found), ports, "devlink knows no NIC here"
    except NoDevlink as error:
        return [], representors([], found), [], str(error)


def _eswitch(devlink: Devlink, nic: Nic) -> Eswitch | str:
    from offload.devlink.family import DevlinkError

    try:
        return devlink.eswitch(nic)
    except DevlinkError as error:
        return UNTOLD.get(error.number, str(error))


@click.command("devices", short_help="NICs, their eswitches and functions, and which interface stands for which")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, with everything.")
@verbosity("Only the exit code.")
def devices_command(as_json: bool, quiet: bool, verbose: bool) -> int:
    """NICs as devlink knows them: the mode of their eswitch, their functions (PF, VF, SF) and uplinks, and the interface that stands for each here.

    A function's name with its NIC's, as pf0vf3@0000:08:00.0, may stand wherever `offload` and a node's configuration want an interface. Exit code 1:
    there is no such NIC, which is said on stderr.

    \b
    Examples:
      ctmirror offload devices
      ctmirror offload devices --json | jq -r '.functions[] | "\\(.name) \\(.interface)"'
    """
    nics, standing, ports, nothing = listed()
    if as_json and not quiet:
        click.echo(orjson.dumps(_document(nics, standing, ports), option=orjson.OPT_INDENT_2).decode())
    elif not quiet:
        for line in _lines(nics, standing, ports):
            click.echo(printable(line))
    if not nics and not standing and not quiet:
        complain(nothing)
    return 0 if nics or standing else NO


def _lines(nics: Sequence[tuple[Nic, Eswitch | str]], standing: Sequence[Representor], ports: Sequence[DevlinkPort]) -> list[str]:
    lines: list[str] = []
    by_place = {each.port.place: each for each in standing if each.port is not None}
    for nic, eswitch in nics:
        lines.append(f"{nic}: eswitch {eswitch if isinstance(eswitch, str) else eswitch.told()}")
        lines += _table([_row(port, by_place.get(port.place)) for port in ports if port.nic == nic])
    alone = [each for each in standing if each.port is None]
    if alone:
        lines.append("without devlink ports:")
        lines += _table([(str(each), "-", each.iface, "-", "-", "-") for each in alone])
    return lines


def _row(port: DevlinkPort, standing: Representor | None) -> tuple[str, ...]:
    function = port.function
    state = ", ".join(each for each in (function.state, function.opstate) if each is not None) if function is not None else ""
    name = standing.name if standing is not None else port.name
    return name or "-", port.flavour or "-", port.iface or "-", (function and function.mac) or "-", state or "-", str(port.index)


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    if not rows:
        return []
    widths = [max(len(row[at]) for row in (HEAD, *rows)) for at in range(len(HEAD))]
    return ["  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (HEAD, *rows)]


def _document(nics: Sequence[tuple[Nic, Eswitch | str]], standing: Sequence[Representor], ports: Sequence[DevlinkPort]) -> dict[str, Any]:
    by_place = {each.port.place: each for each in standing if each.port is not None}
    told = [_function(port.nic, port, by_place.get(port.place)) for port in ports]
    told += [_function(each.nic, None, each) for each in standing if each.port is None]
    return {"nics": [{"nic": str(nic), "eswitch": _modes(eswitch)} for nic, eswitch in nics], "functions": told}


def _modes(eswitch: Eswitch | str) -> dict[str, Any]:
    if isinstance(eswitch, str):
        return {"mode": None, "why": eswitch}
    return {"mode": eswitch.mode, "inline_mode": eswitch.inline_mode, "encap_mode": eswitch.encap_mode}


def _function(nic: Nic | None, port: DevlinkPort | None, standing: Representor | None) -> dict[str, Any]:
    """A devlink port, or an interface without one. Numbers of flavours are null where they say nothing."""
    name = standing.name if standing is not None else port.name if port is not None else None
    function = port.function if port is not None else None
    own = ("index", "flavour", "controller", "external", "pf", "vf", "sf", "number", "splittable", "lanes")
    return {
        "name": None if name is None else f"{name}@{nic}" if nic is not None else name, "nic": None if nic is None else str(nic),
        "interface": standing.iface if standing is not None else None, **{field: getattr(port, field, None) for field in own},
        "mac": function.mac if function else None, "state": function.state if function else None, "opstate": function.opstate if function else None,
        "switch": standing.switch if standing is not None else None,
    }  # fmt: skip


# --- doctor, probe ----------------------------------------------------------------------------------------------------------------------


def eswitch_of(iface: str) -> tuple[str | None, str | None]:
    """The NIC that an interface is of, and the mode of its eswitch, or why it is not told; None: there is none. Raises CtmirrorError."""
    from offload.devlink.family import Devlink, NoDevlink
    from offload.devlink.representors import here, nic_behind

    nic = nic_behind(iface, *here())
    if nic is None:
        return None, None
    try:
        with Devlink() as devlink:
            if nic not in devlink.nics():
                return None, None
            told = _eswitch(devlink, nic)
    except NoDevlink:
        return None, None
    return str(nic), told if isinstance(told, str) else told.mode


def eswitches() -> Finding:
    """The mode of each NIC's eswitch, and how many interfaces stand for functions."""
    nics, standing, _, nothing = listed()
    if not nics and not standing:
        return Finding("eswitch", False, nothing, f"needs a NIC whose driver uses devlink, for functions by name, as {EXAMPLE}")
    modes = {nic: eswitch if isinstance(eswitch, str) else eswitch.mode for nic, eswitch in nics}
    standing_for = Counter(each.nic for each in standing if _is_representor(each))
    said = [f"{nic}: {mode}, {counted(standing_for[nic], 'representor')}" for nic, mode in modes.items()]
    alone = [each for each in standing if each.nic not in modes]
    said += [f"{counted(len(alone), 'interface')} of eswitches without devlink"] if alone else []
    advice = f"needs a NIC that has an eswitch, for functions by name, as {EXAMPLE}"
    if LEGACY in modes.values():
        advice = f"ctmirror offload eswitch NIC --mode {SWITCHDEV}, for rules between functions"
    elif UNTOLD[UNPRIVILEGED] in modes.values():
        advice = "root, or cap_net_admin, is told the mode"
    return Finding("eswitch", not nics or bool(standing_for) or SWITCHDEV in modes.values(), printable("; ".join(said)), advice)


def _is_representor(each: Representor) -> bool:
    return each.name is not None and not is_uplink(each.name)
