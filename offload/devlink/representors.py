"""Which interface stands for which function of a NIC: by devlink ports, and of drivers without these by what interfaces say of themselves.

Theory of operation: the kernel names what is plugged into a NIC's eswitch (pf0vf3) and gives all of it one number (phys_switch_id); interfaces tell
both by rtnetlink, and most of them which NIC they belong to. devlink tells the same by ports, with the function's MAC address and state besides.
Ports count where there are any; an interface that no port mentions is one of a driver that has none. What does not say its NIC is of that one which
alone has its eswitch, or of none.
Invariants: an interface is in the list once; a name that means two interfaces is an error, and not the first of them.
Source: linux/if_link.h. Not here: how interfaces are listed (netlink.links), how functions are called (functions), how they are made (changes).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from offload.devlink.family import Devlink, NoDevlink
from offload.devlink.functions import Misnamed, Named, Nic, NotHere
from offload.devlink.model import DevlinkPort, PortFunction
from offload.netlink.attributes import BYTES, TEXT, Level
from offload.netlink.channel import Channel
from offload.netlink.links import Interface, interfaces, link_of

LINK = Level("link", "IFLA_", {
    3: ("IFNAME", TEXT), 36: ("PHYS_SWITCH_ID", BYTES), 38: ("PHYS_PORT_NAME", TEXT), 56: ("PARENT_DEV_NAME", TEXT),
    57: ("PARENT_DEV_BUS_NAME", TEXT),
})  # fmt: skip
MOST_SHOWN = 8  # names in an error


class Link(NamedTuple):
    """What an interface says of itself. switch: which eswitch, as hex; port_name: pf0vf3, ...; nic: whose it is."""

    ifindex: int
    iface: str
    switch: str | None = None
    port_name: str | None = None
    nic: Nic | None = None


class Representor(NamedTuple):
    """An interface that stands for a function of a NIC, or is its uplink (p0). port: None where the driver has no devlink ports; nic: None where
    nobody says whose it is; name: None of what has none."""

    iface: str
    name: str | None
    nic: Nic | None
    port: DevlinkPort | None = None
    switch: str | None = None

    @property
    def function(self) -> PortFunction:
        return self.port.function if self.port is not None and self.port.function is not None else PortFunction()

    def __str__(self) -> str:
        return f"{self.name}@{self.nic}" if self.nic is not None else f"{self.name}"


def links(channel: Channel) -> list[Link]:
    """Of the network namespace of a channel. Raises NetlinkError, Malformed."""
    return [_link(each) for each in interfaces(channel, LINK)]


def link_in(data: bytes) -> Link:
    """Of what follows the header of an RTM_NEWLINK. Raises Malformed."""
    return _link(link_of(data, LINK))


def _link(told: Interface) -> Link:
    values = told.values
    bus, parent, switch = values.get("PARENT_DEV_BUS_NAME"), values.get("PARENT_DEV_NAME"), values.get("PHYS_SWITCH_ID")
    nic = Nic(bus, parent) if bus and parent else None
    return Link(told.number, told.name, switch.hex() if switch else None, values.get("PHYS_PORT_NAME") or None, nic)


def representors(ports: Iterable[DevlinkPort], found: Sequence[Link]) -> list[Representor]:
    """All of them, those with devlink ports first."""
    by_index = {link.ifindex: link for link in found}  # names may change between the two lists
    listed = []
    for port in ports:
        if port.iface is not None:
            link = by_index.pop(port.ifindex or 0, Link(port.ifindex or 0, port.iface))
            listed.append(Representor(port.iface, port.name or link.port_name, port.nic, port, link.switch))
    owners: dict[str | None, set[Nic]] = {}  # of an eswitch; both PFs of a card may have one number
    for link in found:
        owners.setdefault(link.switch, set()).update([link.nic] if link.nic is not None else [])
    for link in by_index.values():
        if link.switch is not None and link.port_name is not None:
            owner = next(iter(owners[link.switch])) if len(owners[link.switch]) == 1 else None
            listed.append(Representor(link.iface, link.port_name, link.nic or owner, None, link.switch))
    return listed


def here() -> tuple[list[DevlinkPort], list[Link]]:
    """What there is in the network namespace that this thread is in; no ports where the kernel has no devlink. Raises CtmirrorError."""
    with Channel() as channel:
        found = links(channel)
    try:
        with Devlink() as devlink:
            return devlink.ports(), found
    except NoDevlink:
        return [], found


# --- finding ------------------------------------------------------------------------------------------------------------------------------


def iface_called(wanted: Named, among: Sequence[Representor]) -> str:
    """The interface that stands for a function. Raises NotHere if there is none, Misnamed if there are several."""
    ifaces = list({each.iface: None for each in among if each.nic == wanted.nic and wanted.calls(each.name, each.function.mac)})
    if len(ifaces) == 1:
        return ifaces[0]
    if ifaces:
        raise Misnamed(f"{wanted}: {', '.join(sorted(ifaces))}: expected one interface for it")
    raise NotHere(f"{wanted}: no interface stands for it here: expected {_others(wanted.nic, among)}")


def _others(nic: Nic, among: Sequence[Representor]) -> str:
    names = [str(each.name) for each in among if each.nic == nic and each.name is not None]
    if names:
        return f"one of {some(names)}"
    nics = sorted({str(each.nic) for each in among if each.nic is not None and each.name is not None})
    if nics:
        return f"a NIC that has some: {some(nics)}"
    return "a NIC with representors (eswitch in mode switchdev)"


def some(names: Sequence[str]) -> str:
    """The first few of them."""
    more = len(names) - MOST_SHOWN
    return ", ".join(names[:MOST_SHOWN]) + (f" and {more} more" if more > 0 else "")


def nic_behind(iface: str, ports: Iterable[DevlinkPort], found: Iterable[Link]) -> Nic | None:
    """The NIC that an interface is of, or whatever else its driver is for; None: nobody says."""
    for port in ports:
        if port.iface == iface:
            return port.nic
    return next((link.nic for link in found if link.iface == iface), None)
