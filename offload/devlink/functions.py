"""How a NIC and its functions are called: the NIC as devlink does, a function as the kernel calls its representor (phys_port_name), with @ between.

    p0@pci/0000:08:00.0           the uplink: where the wire is
    pf0vf3@0000:08:00.0           VF 3 of PF 0; a NIC without a bus is one of PCI
    c1pf0sf88@0000:08:00.0        SF 88 of PF 0 of another host's controller (SmartNICs)
    00:11:22:33:44:55@0000:08:00.0    whichever function has this MAC address

Invariant: no name of an interface looks like that, since Linux takes neither : nor / in those, and a NIC's has one of them.
Source: Linux, net/devlink/port.c (names of ports). Not here: whether there is such a NIC (family), such a function (representors).
"""

from __future__ import annotations

import re
from typing import NamedTuple

from ctcore.errors import CtmirrorError

PCI = "pci"
_NIC = re.compile(r"(?:(?P<bus>[a-zA-Z0-9_.-]{1,64})/)?(?P<name>[a-zA-Z0-9_.:-]{1,64})")
_FUNCTION = re.compile(r"(?:c(?P<controller>[0-9]{1,10}))?pf(?P<pf>[0-9]{1,5})(?:vf(?P<vf>[0-9]{1,5})|sf(?P<sf>[0-9]{1,10})|(?P<next>sf))?")
_DRIVERS = re.compile(r"p[0-9]{1,5}pf[0-9]{1,5}vf[0-9]{1,5}|pf[0-9]{1,5}vfr[0-9]{1,5}|pf[0-9]{1,5}s[0-9]{1,5}")  # own names, in sfc, ice, nfp
_UPLINK = re.compile(r"(?:l[0-9]{1,10})?p[0-9]{1,10}(?:s[0-9]{1,10})?")
_MAC = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}")
MOST = {"controller": 0xFFFFFFFF, "pf": 0xFFFF, "vf": 0xFFFF, "sf": 0xFFFFFFFF}
EXAMPLE = "pf0vf3@0000:08:00.0"


class Misnamed(CtmirrorError):
    """A text that calls no NIC or no function: what was expected."""


class NotHere(Misnamed):
    """A function that may be, but for which no interface stands on this machine."""


class Nic(NamedTuple):
    """A NIC as devlink calls it; on paper bus/name."""

    bus: str
    name: str

    def __str__(self) -> str:
        return f"{self.bus}/{self.name}"


class Function(NamedTuple):
    """What a host or a guest has of a NIC. Of a PF both vf and sf are None; controller: another host's, None: ours."""

    pf: int
    vf: int | None = None
    sf: int | None = None
    controller: int | None = None

    def __str__(self) -> str:
        head = f"c{self.controller}" if self.controller is not None else ""
        tail = f"vf{self.vf}" if self.vf is not None else f"sf{self.sf}" if self.sf is not None else ""
        return f"{head}pf{self.pf}{tail}"


class Named(NamedTuple):
    """What a text calls: a function of a NIC by its name, as the kernel writes it, or by its MAC address (then `name` is that)."""

    name: str
    nic: Nic

    def __str__(self) -> str:
        return f"{self.name}@{self.nic}"

    @property
    def is_mac(self) -> bool:
        return _MAC.fullmatch(self.name) is not None

    def calls(self, name: str | None, mac: str | None) -> bool:
        """Whether a function of this NIC with such a name and address is meant."""
        return self.name == (mac if self.is_mac else name)


def is_function(text: str) -> bool:
    """Whether a text calls a function, where the names of interfaces may stand as well."""
    _, at, nic = text.partition("@")
    return bool(at) and (":" in nic or "/" in nic)


def nic_of(text: str) -> Nic:
    """Raises Misnamed."""
    found = _NIC.fullmatch(text)
    if found is None or (found["bus"] is None and ":" not in text):
        raise Misnamed(f"{text!r}: expected a NIC as devlink calls it, as pci/0000:08:00.0, or its PCI address")
    return Nic(found["bus"] or PCI, found["name"])


def named(text: str) -> Named:
    """Raises Misnamed."""
    name, _, nic = text.partition("@")
    function = function_of(name)
    if _MAC.fullmatch(name.lower()):
        name = name.lower()
    elif function is not None:
        name = f"{function}{'sf' if wants_next(name) else ''}"
    elif not is_uplink(name) and not _DRIVERS.fullmatch(name):
        name = ""
    if not is_function(text) or not name:
        raise Misnamed(f"{text!r}: expected a function of a NIC, as {EXAMPLE}, pf0sf88@..., p0@... (the uplink), or a MAC address before the @")
    return Named(name, nic_of(nic))


def function_of(name: str) -> Function | None:
    """A PF, VF or SF by its name; None: it is none of these. Of `pf0sf`, the next SF that is free, sf is None as well."""
    found = _numbers(name)
    if found is None:
        return None
    numbers = {part: int(found[part]) if found[part] is not None else None for part in MOST}
    return Function(numbers["pf"] or 0, numbers["vf"], numbers["sf"], numbers["controller"])


def is_uplink(name: str) -> bool:
    return _UPLINK.fullmatch(name) is not None


def wants_next(name: str) -> bool:
    """Whether a name is `pf0sf`: an SF whose number the driver chooses."""
    found = _numbers(name)
    return found is not None and found["next"] is not None


def _numbers(name: str) -> re.Match[str] | None:
    found = _FUNCTION.fullmatch(name)
    if found is None or any(int(found[part] or 0) > most for part, most in MOST.items()):
        return None
    return found
