"""What devlink lists, as values: eswitches, and devlink ports with what is behind them.

A devlink port is where something is plugged into a NIC's eswitch: the wire, a PF, VF or SF, by its flavour. Its interface on this host, if any,
is the function's representor, or of flavour physical the uplink.
Invariants: what is read here was read strictly (offload.netlink.read); what a kernel leaves out is None, and not a number.
Not here: how it is asked (family), interfaces without devlink ports (representors).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from offload.devlink import attributes as of
from offload.devlink.functions import Function, Nic
from offload.netlink.read import Malformed, Values

MAC = 6  # bytes


class Eswitch(NamedTuple):
    """A NIC's switch. mode: legacy or switchdev; the others are None where the driver has no such thing."""

    mode: str
    inline_mode: str | None = None
    encap_mode: str | None = None

    def told(self) -> str:
        rest = [f"{name} {value}" for name, value in (("inline-mode", self.inline_mode), ("encap-mode", self.encap_mode)) if value is not None]
        return ", ".join([f"mode {self.mode}", *rest])


class PortFunction(NamedTuple):
    """What is set of a function. mac: as text; state: inactive or active; opstate: detached or attached (its driver)."""

    mac: str | None = None
    state: str | None = None
    opstate: str | None = None


@dataclass(frozen=True)
class DevlinkPort:
    """index: its number in the NIC; iface, ifindex: on this host, in this network namespace; function: None of what is none."""

    nic: Nic
    index: int
    flavour: str | None = None
    kind: str | None = None  # eth, ib, ...
    iface: str | None = None
    ifindex: int | None = None
    number: int | None = None
    subport: int | None = None
    linecard: int | None = None
    controller: int | None = None
    external: bool | None = None
    pf: int | None = None
    vf: int | None = None
    sf: int | None = None
    splittable: bool | None = None
    lanes: int | None = None
    function: PortFunction | None = None

    @property
    def name(self) -> str | None:
        """As the kernel calls it: p0, pf0vf3, ...; None of what has no name."""
        if self.flavour == of.FLAVOURS[of.PHYSICAL] and self.number is not None:
            parts = (("l", self.linecard), ("p", self.number), ("s", self.subport))
            return "".join(f"{letter}{number}" for letter, number in parts if number is not None)
        if self.pf is None:
            return None
        return str(Function(self.pf, self.vf, self.sf, self.controller if self.external else None))

    @property
    def place(self) -> str:
        """As devlink(8) calls it: pci/0000:08:00.0/1."""
        return f"{self.nic}/{self.index}"


def nic_in(values: Values) -> Nic:
    """Of any message of devlink. Raises Malformed."""
    bus, name = values.get("BUS_NAME"), values.get("DEV_NAME")
    if not bus or not name:
        raise Malformed("devlink: a message without BUS_NAME and DEV_NAME: expected both")
    return Nic(bus, name)


def eswitch_in(values: Values) -> Eswitch:
    """Raises Malformed."""
    if "ESWITCH_MODE" not in values:
        raise Malformed("devlink: an eswitch without ESWITCH_MODE")
    optional = [
        of.word(words, values[name]) if name in values else None
        for name, words in (("ESWITCH_INLINE_MODE", of.INLINE_MODES), ("ESWITCH_ENCAP_MODE", of.ENCAP_MODES))
    ]
    return Eswitch(of.word(of.MODES, values["ESWITCH_MODE"]), *optional)


# Of a devlink port: each field, its attribute, and what is made of it.
_FIELDS: dict[str, tuple[str, Any]] = {
    "flavour": ("PORT_FLAVOUR", lambda value: of.word(of.FLAVOURS, value)),
    "kind": ("PORT_TYPE", lambda value: of.word(of.TYPES, value)),
    "iface": ("PORT_NETDEV_NAME", str),
    "ifindex": ("PORT_NETDEV_IFINDEX", int),
    "number": ("PORT_NUMBER", int),
    "subport": ("PORT_SPLIT_SUBPORT_NUMBER", int),
    "linecard": ("LINECARD_INDEX", int),
    "controller": ("PORT_CONTROLLER_NUMBER", int),
    "external": ("PORT_EXTERNAL", bool),
    "pf": ("PORT_PCI_PF_NUMBER", int),
    "vf": ("PORT_PCI_VF_NUMBER", int),
    "sf": ("PORT_PCI_SF_NUMBER", int),
    "splittable": ("PORT_SPLITTABLE", bool),
    "lanes": ("PORT_LANES", int),
    "function": ("PORT_FUNCTION", lambda value: _function(value)),
}


def port_in(values: Values) -> DevlinkPort:
    """Raises Malformed."""
    nic = nic_in(values)
    if "PORT_INDEX" not in values:
        raise Malformed(f"devlink: {nic}: a port without PORT_INDEX")
    fields = {field: make(values[name]) for field, (name, make) in _FIELDS.items() if name in values}
    return DevlinkPort(nic, values["PORT_INDEX"], **fields)


def _function(values: Values) -> PortFunction:
    """Of InfiniBand, whose addresses are longer, there is no MAC address."""
    address = values.get("HW_ADDR", b"")
    return PortFunction(
        address.hex(":") if len(address) == MAC else None,
        of.word(of.STATES, values["STATE"]) if "STATE" in values else None,
        of.word(of.OPSTATES, values["OPSTATE"]) if "OPSTATE" in values else None,
    )
