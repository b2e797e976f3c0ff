"""A kernel with devlink, as far as a socket shows it: requests come in as bytes, and are answered by bytes, as genetlink of Linux does.

Theory of operation: the socket is one end of a pair, so that waiting for it is real; what is sent is answered at once, from a NIC in memory, into the
other end. Requests are read by our own reader and answers written by our own packer, not by pyroute2, which does both on the other side.
Not here: what real drivers do (pcap_tests/vm).
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from offload.devlink import attributes as of
from offload.netlink.filters import MESSAGE
from offload.netlink.pack import attribute, nested, text, u8, u16, u32
from offload.netlink.read import Values, read

FAMILY = 0x1B
CONTROL, GET_FAMILY, NEW_FAMILY = 0x10, 3, 1
ERROR, DONE, MULTI, DUMP, HAS_ATTRIBUTES = 2, 3, 2, 0x300, 0x200
GENERIC = struct.Struct("=BBH")
NUMBER = of.DEVICE.numbers
PORT_OF_COMMANDS = {of.PORT_GET: 7, of.GET: 3, of.ESWITCH_GET: of.ESWITCH_GET, of.PORT_NEW: 7}  # what a reply says it is


class Refused(Exception):
    """By a driver: errno and its sentence."""

    def __init__(self, number: int, said: str = "") -> None:
        self.number, self.said = number, said


def port(bus: str, name: str, index: int, *parts: bytes) -> bytes:
    """A devlink port's attributes."""
    return b"".join([nic(bus, name), u32(NUMBER["PORT_INDEX"], index), *parts])


def nic(bus: str, name: str) -> bytes:
    return text(NUMBER["BUS_NAME"], bus) + text(NUMBER["DEV_NAME"], name)


def plugged(flavour: int, kind: int = 2, ifindex: int = 0, iface: str = "", **numbers: int) -> bytes:
    """What a port of a flavour has: pf, vf, sf, controller, external, number, as Linux orders them."""
    forms = {
        "pf": ("PORT_PCI_PF_NUMBER", u16), "vf": ("PORT_PCI_VF_NUMBER", u16), "sf": ("PORT_PCI_SF_NUMBER", u32),
        "controller": ("PORT_CONTROLLER_NUMBER", u32), "external": ("PORT_EXTERNAL", u8), "number": ("PORT_NUMBER", u32),
        "subport": ("PORT_SPLIT_SUBPORT_NUMBER", u32), "lanes": ("PORT_LANES", u32), "splittable": ("PORT_SPLITTABLE", u8),
        "linecard": ("LINECARD_INDEX", u32),
    }  # fmt: skip
    parts = [u16(NUMBER["PORT_TYPE"], kind)]
    if iface:
        parts += [u32(NUMBER["PORT_NETDEV_IFINDEX"], ifindex), text(NUMBER["PORT_NETDEV_NAME"], iface)]
    parts.append(u16(NUMBER["PORT_FLAVOUR"], flavour))
    parts += [forms[name][1](NUMBER[forms[name][0]], value) for name, value in numbers.items()]
    return b"".join(parts)


def function(mac: bytes = bytes(6), state: int | None = None, opstate: int | None = None) -> bytes:
    of_function = of.FUNCTION.numbers
    parts = [attribute(of_function["HW_ADDR"], mac)]
    parts += [u8(of_function["STATE"], state)] if state is not None else []
    parts += [u8(of_function["OPSTATE"], opstate)] if opstate is not None else []
    return nested(NUMBER["PORT_FUNCTION"], *parts)


@dataclass
class Behind:
    """What a port of the feigned NIC is."""

    parts: bytes
    mac: bytes = bytes(6)
    state: int | None = None
    opstate: int | None = None
    has_function: bool = False

    def packed(self, index: int, name: str) -> bytes:
        return port("pci", name, index, self.parts, function(self.mac, self.state, self.opstate) if self.has_function else b"")


@dataclass
class FeignedNic:
    """A NIC in memory, with a driver's habits: SFs can be made in switchdev mode only, and their address is set while they are inactive."""

    name: str = "0000:08:00.0"
    mode: int = 0
    ports: dict[int, Behind] = field(default_factory=dict)
    vfs: int = 2
    has_eswitch: bool = True

    def __post_init__(self) -> None:
        self.ports[65535] = Behind(plugged(of.PHYSICAL, ifindex=2, iface="eth0", number=0, splittable=0))

    def eswitch(self) -> bytes:
        if not self.has_eswitch:
            raise Refused(errno.EOPNOTSUPP)
        return (
            nic("pci", self.name)
            + u16(NUMBER["ESWITCH_MODE"], self.mode)
            + u8(NUMBER["ESWITCH_INLINE_MODE"], 0)
            + u8(NUMBER["ESWITCH_ENCAP_MODE"], 1)
        )

    def set_eswitch(self, values: Values) -> None:
        if not self.has_eswitch:
            raise Refused(errno.EOPNOTSUPP, "feigned: no eswitch in this firmware")
        self.mode = values.get("ESWITCH_MODE", self.mode)
        for vf in range(self.vfs):
            if self.mode:
                self.ports[vf + 1] = Behind(plugged(of.PCI_VF, ifindex=10 + vf, iface=f"eth0_{vf}", pf=0, vf=vf, external=0), has_function=True)
            else:
                self.ports.pop(vf + 1, None)

    def add(self, values: Values) -> bytes:
        if not self.mode:
            raise Refused(errno.EOPNOTSUPP, "Port add is only supported in switchdev mode")
        if values.get("PORT_FLAVOUR") != of.PCI_SF:
            raise Refused(errno.EOPNOTSUPP, "Driver supports only SF port addition.")
        number = values.get("PORT_PCI_SF_NUMBER", 0)
        index = values.get("PORT_INDEX", 32768 + number)
        if index in self.ports:
            raise Refused(errno.EEXIST, "SF already exist. Choose different sfnum")
        parts = plugged(
            of.PCI_SF, ifindex=100 + number, iface=f"en8f0pf0sf{number}", controller=0, pf=values["PORT_PCI_PF_NUMBER"], sf=number, external=0
        )
        self.ports[index] = Behind(parts, state=0, opstate=0, has_function=True)
        return self.ports[index].packed(index, self.name)

    def delete(self, values: Values) -> None:
        if not self.ports.get(values["PORT_INDEX"], Behind(b"")).has_function:
            raise Refused(errno.EOPNOTSUPP, "Port doesn't support deletion")
        del self.ports[values["PORT_INDEX"]]

    def set_function(self, values: Values) -> None:
        behind, asked = self.ports[values["PORT_INDEX"]], values["PORT_FUNCTION"]
        if "HW_ADDR" in asked:
            if behind.state == 1:
                raise Refused(errno.EBUSY, "SF state change is in progress")
            behind.mac = asked["HW_ADDR"]
        if "STATE" in asked:
            if behind.state is None:
                raise Refused(errno.EOPNOTSUPP, "Function does not support state setting")
            behind.state = behind.opstate = asked["STATE"]


class FeignedFamily(socket.socket):
    """The socket. nics: that there are; rewritten: what becomes of each answer on its way, for what no kernel sends. asked: what has come, by
    command."""

    def __init__(self, *nics: FeignedNic, family: bool = True, rewritten: Callable[[bytes], bytes] = bytes, sender: int = 0) -> None:
        near, self.far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        super().__init__(fileno=near.detach())
        self.nics = {each.name: each for each in nics}
        self.has_family, self.rewritten, self.sender = family, rewritten, sender
        self.asked: list[tuple[int, Values]] = []
        self.silent = False

    def bind(self, address: Any) -> None:
        pass

    def close(self) -> None:
        self.far.close()
        super().close()

    def sendto(self, data: bytes, *_: Any) -> int:  # type: ignore[override]
        return self.send(data)

    def recvfrom(self, *arguments: Any) -> tuple[bytes, Any]:
        return super().recv(*arguments), (self.sender, 0)

    def send(self, data: bytes, flags: int = 0) -> int:
        """What the kernel does inside of send()."""
        data = bytes(data)
        length, kind, flags, number, _ = MESSAGE.unpack_from(data)
        assert length == len(data)
        try:
            answers = list(self._answers(kind, flags, number, data))
        except Refused as refused:
            answers = [self._error(data, number, refused)]
        for answer in [] if self.silent else answers:
            self.far.send(self.rewritten(answer))
        return len(data)

    def _answers(self, kind: int, flags: int, number: int, data: bytes) -> Iterator[bytes]:
        command, _, _ = GENERIC.unpack_from(data, MESSAGE.size)
        if kind == CONTROL:
            assert command == GET_FAMILY
            if not self.has_family:
                raise Refused(errno.ENOENT)
            yield framed(CONTROL, 0, number, NEW_FAMILY, text(2, "devlink") + u16(1, FAMILY))
            return
        assert kind == FAMILY
        values = read(of.DEVICE, data[MESSAGE.size + GENERIC.size :])
        self.asked.append((command, values))
        if flags & DUMP == DUMP:
            if self._unread():
                raise Refused(errno.EBUSY)  # of a socket, Linux makes one list at a time
            each = [framed(FAMILY, MULTI, number, PORT_OF_COMMANDS[command], body) for body in self._listed(command)]
            some = max(3, len(each) // 8)  # a list comes in several pieces, and a pair of sockets holds few
            yield from (b"".join(each[at : at + some]) for at in range(0, len(each), some))
            yield MESSAGE.pack(20, DONE, MULTI, number, 0) + bytes(4)
            return
        body = self._done(command, values)
        if body is not None:
            yield framed(FAMILY, 0, number, PORT_OF_COMMANDS[command], body)
        yield MESSAGE.pack(36, ERROR, 0x100, number, 0) + bytes(4) + data[:16]

    def _unread(self) -> bool:
        return bool(select.select([self], [], [], 0)[0])

    def _listed(self, command: int) -> Iterator[bytes]:
        for each in self.nics.values():
            if command == of.GET:
                yield nic("pci", each.name)
            else:
                yield from (behind.packed(index, each.name) for index, behind in each.ports.items())

    def _done(self, command: int, values: Values) -> bytes | None:
        at = self.nics.get(values["DEV_NAME"]) if values["BUS_NAME"] == "pci" else None
        if at is None or (command in (of.PORT_SET, of.PORT_DELETE) and values["PORT_INDEX"] not in at.ports):
            raise Refused(errno.ENODEV)
        does: dict[int, Callable[[], bytes | None]] = {
            of.ESWITCH_GET: at.eswitch, of.ESWITCH_SET: lambda: at.set_eswitch(values), of.PORT_NEW: lambda: at.add(values),
            of.PORT_DELETE: lambda: at.delete(values), of.PORT_SET: lambda: at.set_function(values),
        }  # fmt: skip
        return does[command]()

    @staticmethod
    def _error(request: bytes, number: int, refused: Refused) -> bytes:
        body = struct.pack("=i", -refused.number) + request + (text(1, refused.said) if refused.said else b"")
        return MESSAGE.pack(MESSAGE.size + len(body), ERROR, HAS_ATTRIBUTES if refused.said else 0, number, os.getpid()) + body


def framed(kind: int, flags: int, number: int, command: int, body: bytes) -> bytes:
    return MESSAGE.pack(MESSAGE.size + GENERIC.size + len(body), kind, flags, number, 0) + GENERIC.pack(command, 1, 0) + body
