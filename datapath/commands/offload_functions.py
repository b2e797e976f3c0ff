"""`ctmirror offload eswitch` and `function`: the mode of a NIC's eswitch, and the functions that hosts and guests have of it, set, made and deleted.

Invariant: a dry run prints lines of devlink(8) made from what would be sent, and changes nothing; that they cannot work here is said beside them, for
they may be meant for another machine. Not here: devlink (offload.devlink), what there is
(offload_devices).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from ctcore.errors import CtmirrorError
from datapath.cli import complain
from datapath.commands.offload_devices import NO, NO_SUCH_THING, UNPRIVILEGED
from datapath.commands.verbosity import verbosity
from datapath.hints import counted
from datapath.names import printable
from offload.devlink.attributes import ENCAP_MODES, INLINE_MODES, MODES, STATES
from offload.devlink.changes import Change, EswitchSet, FunctionAdd, FunctionDelete, FunctionSet
from offload.devlink.functions import Misnamed, Named, Nic, function_of, named, nic_of, wants_next

if TYPE_CHECKING:
    from offload.devlink.family import Devlink
    from offload.devlink.model import DevlinkPort

DRY_RUN = click.option("--dry-run", is_flag=True, help="Print what would be done, as lines of devlink(8), and do nothing.")


class FunctionName(click.ParamType):
    """pf0vf3@0000:08:00.0."""

    name = "FUNCTION"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Named:
        if isinstance(value, Named):
            return value
        try:
            return named(value)
        except Misnamed as error:
            self.fail(str(error), param, ctx)


class Mac(click.ParamType):
    """A MAC address of six bytes, as text in small letters."""

    name = "MAC"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        parts = value.lower().split(":")
        if len(parts) != 6 or not all(len(part) == 2 and set(part) <= set("0123456789abcdef") for part in parts):
            self.fail(f"'{value}': expected a MAC address, as 00:11:22:33:44:55", param, ctx)
        if int(parts[0], 16) & 1:
            self.fail(f"'{value}': expected the address of one host, and not of a group", param, ctx)
        return ":".join(parts)


def _changed(devlink: Devlink, change: Change) -> tuple[bool, DevlinkPort | None]:
    """Whether the kernel has done it; if not, its sentence on stderr. Raises CtmirrorError for what is not permitted."""
    from offload.devlink.family import DevlinkError

    try:
        return True, devlink.change(change)
    except DevlinkError as error:
        if error.number == UNPRIVILEGED:
            raise
        complain(str(error))
        return False, None


def _known(devlink: Devlink, nic: Nic) -> None:
    """Raises CtmirrorError for one that is not there."""
    nics = devlink.nics()
    if nic not in nics:
        raise CtmirrorError(f"{nic}: devlink knows no such NIC here: expected {', '.join(map(str, nics)) or 'one with a driver that uses devlink'}")


def _doubt(nic: Nic) -> None:
    """Says on stderr, of a dry run, that devlink does not know this NIC here, if that is so."""
    from offload.devlink.family import Devlink

    try:
        with Devlink() as devlink:
            _known(devlink, nic)
    except CtmirrorError as error:
        complain(f"warning: {error}")


@click.command("eswitch", short_help="the mode of a NIC's eswitch")
@click.argument("nic", metavar="NIC")
@click.option(
    "--mode", type=click.Choice(list(MODES.values())), help="legacy: VFs are bridged by the NIC; switchdev: each has a representor, and rules decide."
)
@click.option("--inline-mode", type=click.Choice(list(INLINE_MODES.values())), help="How much of a header VFs hand over beside the packet.")
@click.option("--encap-mode", type=click.Choice(list(ENCAP_MODES.values())), help="Whether the NIC takes tunnels apart and makes them.")
@DRY_RUN
@verbosity("Only what is refused.")
def eswitch_command(nic: str, mode: str | None, inline_mode: str | None, encap_mode: str | None, dry_run: bool, quiet: bool, verbose: bool) -> int:
    """The mode of a NIC's eswitch: shown, or with options set. NIC: as devlink calls it, as pci/0000:08:00.0, its PCI address alone, or one of its
    interfaces.

    A change takes all VFs' interfaces away and brings new ones: nothing on them survives. Exit code 1: the NIC has refused it, or has no eswitch.

    \b
    Examples:
      ctmirror offload eswitch 0000:08:00.0
      ctmirror offload eswitch pci/0000:08:00.0 --mode switchdev --dry-run
      ctmirror offload eswitch eth0 --mode switchdev
    """
    settings = (mode, inline_mode, encap_mode)
    if dry_run and settings == (None, None, None):
        raise click.UsageError("--dry-run: expected a mode to set, as --mode switchdev")
    of = _nic(nic)
    change = EswitchSet(of, *settings) if settings != (None, None, None) else None
    if dry_run and change is not None:
        if not quiet:
            _doubt(of)
        click.echo(change.line())
        return 0
    from offload.devlink.family import Devlink, DevlinkError

    with Devlink() as devlink:
        _known(devlink, of)
        if change is not None and not _changed(devlink, change)[0]:
            return NO
        try:
            told = devlink.eswitch(of)
        except DevlinkError as error:
            if error.number != NO_SUCH_THING:
                raise
            complain(f"{of}: no eswitch")
            return NO
    if not quiet:
        click.echo(f"{of}: eswitch {told.told()}")
    return 0


def _nic(text: str) -> Nic:
    """By its name, or by one of its interfaces. Raises CtmirrorError."""
    if ":" in text or "/" in text:
        return nic_of(text)
    from offload.devlink.representors import here, nic_behind

    ports, found = here()
    nic = nic_behind(text, ports, found)
    if nic is not None:
        return nic
    if any(link.iface == text for link in found):
        raise CtmirrorError(f"{text}: nobody says which NIC this interface is of: expected the NIC, as pci/0000:08:00.0")
    raise CtmirrorError(f"{text!r}: there is no such interface: expected one, or a NIC, as pci/0000:08:00.0")


@click.group("function", short_help="functions of a NIC: scalable functions added and deleted, addresses and states set")
@verbosity()
def function_command(quiet: bool, verbose: bool) -> None:
    """Functions of a NIC that hosts and guests have: scalable functions (SF) are added and deleted, MAC addresses and states of SFs and VFs set.

    \b
    Examples:
      ctmirror offload function add pf0sf88@0000:08:00.0 --mac 02:00:00:00:00:58 --state active
      ctmirror offload function set pf0vf3@0000:08:00.0 --mac 02:00:00:00:00:03
      ctmirror offload function delete pf0sf88@0000:08:00.0 --dry-run
    """


_FUNCTION = click.argument("function", type=FunctionName(), metavar="FUNCTION")
_MAC = click.option("--mac", type=Mac(), metavar="MAC", help="The function's MAC address, which it has to have before it is active.")
_STATE = click.option("--state", type=click.Choice(list(STATES.values())), help="Of an SF: whether its driver gets it.")


@function_command.command("add", short_help="make a scalable function")
@_FUNCTION
@_MAC
@_STATE
@click.option("--index", type=click.IntRange(0, 0xFFFFFFFF), help="Number of its devlink port.  [default: the driver chooses]")
@DRY_RUN
@verbosity("Only what is refused.")
def add_command(function: Named, mac: str | None, state: str | None, index: int | None, dry_run: bool, quiet: bool, verbose: bool) -> int:
    """Make a scalable function, with a MAC address and a state if these are given, and say which interface stands for it. NICs have them in mode
    switchdev only. FUNCTION: pf0sf88@NIC; pf0sf@NIC leaves the number to the driver; with c1 in front, on another host's controller.

    Of a dry run without --index the second line has PORT_INDEX, which the first one says. Exit code 1: the NIC has refused it; a function that was
    made but could not be set stays.

    \b
    Examples:
      ctmirror offload function add pf0sf88@0000:08:00.0
      ctmirror offload function add pf0sf88@0000:08:00.0 --mac 02:00:00:00:00:58 --state active --dry-run
    """
    scalable = function_of(function.name)
    if scalable is None or scalable.vf is not None or (scalable.sf is None and not wants_next(function.name)):
        raise click.UsageError(f"{function}: expected a scalable function, as pf0sf88@{function.nic}: VFs are made by the PF's sriov_numvfs")
    add = FunctionAdd(function.nic, scalable, index)
    settings = (mac, state) != (None, None)
    if dry_run:
        if not quiet:
            _doubt(function.nic)
        click.echo(add.line())
        if settings:
            click.echo(FunctionSet(function.nic, index, mac, state).line())
        return 0
    from offload.devlink.family import Devlink

    with Devlink() as devlink:
        _known(devlink, function.nic)
        done, port = _changed(devlink, add)
        if not done or port is None:
            return NO
        if settings and not _changed(devlink, FunctionSet(function.nic, port.index, mac, state, port.name or ""))[0]:
            return NO
        # Its interface may have come, or got another name, since the kernel has answered.
        port = next((each for each in devlink.ports() if each.place == port.place), port)
    if not quiet:
        stands = f"interface {port.iface}" if port.iface else "no interface yet"
        click.echo(printable(f"{port.name or function.name}@{port.nic}: port {port.index}, {stands}"))
    return 0


@function_command.command("set", short_help="a function's MAC address and state")
@_FUNCTION
@_MAC
@_STATE
@DRY_RUN
@verbosity("Only what is refused.")
def set_command(function: Named, mac: str | None, state: str | None, dry_run: bool, quiet: bool, verbose: bool) -> int:
    """Set the MAC address that a function's interface has where it is used, and whether an SF is active. Exit code 1: the NIC has refused it.

    \b
    Examples:
      ctmirror offload function set pf0vf3@0000:08:00.0 --mac 02:00:00:00:00:03
      ctmirror offload function set pf0sf88@0000:08:00.0 --state inactive
    """
    if (mac, state) == (None, None):
        raise click.UsageError("expected --mac or --state, or both")
    return _at_port(function, dry_run, quiet, lambda index: FunctionSet(function.nic, index, mac, state, function.name), "set")


@function_command.command("delete", short_help="take a scalable function away")
@_FUNCTION
@DRY_RUN
@verbosity("Only what is refused.")
def delete_command(function: Named, dry_run: bool, quiet: bool, verbose: bool) -> int:
    """Take a scalable function away, whoever uses it; its interfaces go, too. Exit code 1: the NIC has refused it.

    \b
    Examples:
      ctmirror offload function delete pf0sf88@0000:08:00.0
    """
    return _at_port(function, dry_run, quiet, lambda index: FunctionDelete(function.nic, index, function.name), "deleted")


def _at_port(function: Named, dry_run: bool, quiet: bool, make: Callable[[int], Change], said: str) -> int:
    """Change what is behind a function's devlink port. make: the change, from the port's number."""
    from offload.devlink.family import Devlink

    with Devlink() as devlink:
        _known(devlink, function.nic)
        ports = devlink.ports()
        change = make(_port(function, ports).index)
        if dry_run:
            click.echo(change.line())
            return 0
        if not _changed(devlink, change)[0]:
            return NO
    if not quiet:
        click.echo(f"{function}: {said}")
    return 0


def _port(function: Named, ports: Sequence[DevlinkPort]) -> DevlinkPort:
    """Raises CtmirrorError if there is none, or if there are several."""
    from offload.devlink.representors import some

    own = [port for port in ports if port.nic == function.nic]
    mine = [port for port in own if function.calls(port.name, port.function.mac if port.function is not None else None)]
    if len(mine) == 1:
        return mine[0]
    names = some([port.name for port in mine or own if port.name is not None])
    if mine:
        raise CtmirrorError(f"{function}: {counted(len(mine), 'function')} of this address: expected a function's name: {names}")
    raise CtmirrorError(f"{function}: the NIC has no such function: expected {names or 'one that it has'}")
