"""The generic netlink family devlink, asked through a socket of pyroute2: NICs, eswitches and devlink ports listed and changed.

Theory of operation: pyroute2 finds the family, numbers requests, gathers answers and has the kernel's sentence; what it sends is made by a class out
of our table (offload.netlink.classes). What comes back is not read by its classes, which take anything for a value, but as bytes, strictly and
bounded by how many there are; and only from the kernel. A list that changes while it is read (EINTR) is read to its end, for the kernel makes one at
a time, and asked for again; pyroute2 takes half a list for a whole.
Invariants: no answer is waited for longer than PATIENCE, but nobody can give up what the kernel does while it takes a request, and it may do all of
it then; errors say which NIC and what was asked.
Source: net/devlink of Linux. Not here: what is asked for (changes), what the answers mean (model).
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

from pyroute2.netlink import NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, genlmsg
from pyroute2.netlink import exceptions as pyroute2
from pyroute2.netlink.generic import AsyncGenericNetlinkSocket
from pyroute2.netlink.marshal import Marshal

from ctcore.errors import CtmirrorError
from offload.devlink import attributes as of
from offload.devlink.changes import Attributes, Change, FunctionAdd
from offload.devlink.functions import Nic
from offload.devlink.model import DevlinkPort, Eswitch, eswitch_in, nic_in, port_in
from offload.netlink.attributes import Level
from offload.netlink.channel import INTERRUPTED, TRIES, messages
from offload.netlink.classes import members
from offload.netlink.extack import CODE
from offload.netlink.filters import MESSAGE
from offload.netlink.read import Malformed, Values, read

PATIENCE = 120.0  # seconds: a change of mode tears down and sets up a whole switch
HEAD = MESSAGE.size + 4  # and struct genlmsghdr: command, version, two bytes of nothing
REFUSALS = (pyroute2.NetlinkError, TimeoutError, OSError)
ADVICE = {
    errno.EPERM: "not permitted: expected root, or cap_net_admin",
    errno.ENODEV: "there is no such NIC or devlink port in this network namespace",
}


class DevlinkError(CtmirrorError):
    """What the kernel has refused, or that it has no devlink. number: errno; said: the kernel's own sentence, "" if it has none."""

    def __init__(self, text: str, number: int = 0, said: str = "") -> None:
        super().__init__(f"devlink: {text}")
        self.number, self.said = number, said


class NoDevlink(DevlinkError):
    """This kernel has none."""

    def __init__(self) -> None:
        super().__init__("this kernel has none: expected one with CONFIG_NET_DEVLINK, as drivers of NICs with an eswitch want it", errno.ENOENT)


class _Message(genlmsg):
    """A message of devlink: written by the table's names, and read as our own values, under "values"."""

    prefix, nla_map = "", ()
    locals().update(members(of.DEVICE))

    def decode(self) -> None:
        """Raises Malformed."""
        length, kind, flags, number, port = MESSAGE.unpack_from(self.data, self.offset)
        self["header"] = {"length": length, "type": kind, "flags": flags, "sequence_number": number, "pid": port}
        if length < HEAD:
            raise Malformed(f"devlink: a message of {length} bytes: expected {HEAD} or more")
        self.length, self.decoded = length, True
        self["values"] = read(of.DEVICE, bytes(self.data[self.offset + HEAD : self.offset + length]))


class _Marshal(Marshal):
    """Reads what has come, after a look at whether it can be read at all. changed: what is being listed has, meanwhile."""

    changed = False

    def parse(self, data: bytes, *arguments: Any, **options: Any) -> Iterator[Any]:
        """Raises Malformed."""
        for _ in messages(data):
            pass
        yield from super().parse(data, *arguments, **options)

    def is_enough(self, msg: Any) -> bool:
        """Whether a list is at its end. Raises NetlinkError if it is not whole."""
        header = msg["header"]
        self.changed |= bool(header.get("flags", 0) & INTERRUPTED)
        if header["type"] != NLMSG_DONE:
            return False
        changed, self.changed = self.changed, False
        if changed:
            raise pyroute2.NetlinkError(errno.EINTR, "what is listed changed meanwhile")
        if header["length"] >= MESSAGE.size + CODE.size:
            (code,) = CODE.unpack_from(msg.data, msg.offset + MESSAGE.size)
            if code < 0:
                raise pyroute2.NetlinkError(-code)
        return True


class _Socket(AsyncGenericNetlinkSocket):
    """Listens to the kernel only, as anybody may send to a socket."""

    marshal_class = _Marshal
    module_err_level = "debug"  # that there is no such family is told once, by us

    def enqueue(self, data: bytes, addr: Any) -> None:
        if addr is not None and addr[0] == 0 and len(data) >= MESSAGE.size:
            super().enqueue(data, addr)


class Devlink:
    """devlink in the network namespace that this thread is in. A context manager.

    use_socket: an open socket instead of one that is made here. Raises DevlinkError if the kernel has no devlink.
    """

    def __init__(self, use_socket: socket.socket | None = None, patience: float = PATIENCE) -> None:
        self.patience = patience
        self._runner = asyncio.Runner()
        try:
            self._socket = self._runner.run(self._opened(use_socket))
        except BaseException:
            self._runner.close()
            raise

    async def _opened(self, use_socket: socket.socket | None) -> _Socket:
        opened = _Socket(ext_ack=True, use_socket=use_socket)
        try:
            await asyncio.wait_for(opened.bind(of.DEVLINK, _Message), self.patience)
        except BaseException as error:
            opened.close()
            if isinstance(error, pyroute2.NetlinkError) and error.code == errno.ENOENT:
                raise NoDevlink from None
            if isinstance(error, REFUSALS):
                raise _told("", error) from None
            raise
        return opened

    def __enter__(self) -> Devlink:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()
        self._runner.close()

    # --- listing ----------------------------------------------------------------------------------------------------------------------

    def nics(self) -> list[Nic]:
        """Raises DevlinkError, Malformed, as all that follows."""
        return [nic_in(values) for values in self._listed("NICs", of.GET)]

    def ports(self) -> list[DevlinkPort]:
        """Of all NICs."""
        return [port_in(values) for values in self._listed("ports", of.PORT_GET)]

    def eswitch(self, nic: Nic) -> Eswitch:
        """An error of EOPNOTSUPP: it has none."""
        asked = self._asked(f"{nic}: eswitch", of.ESWITCH_GET, [("BUS_NAME", nic.bus), ("DEV_NAME", nic.name)])
        return eswitch_in(_first(asked, f"{nic}: eswitch"))

    # --- changing ---------------------------------------------------------------------------------------------------------------------

    def change(self, change: Change) -> DevlinkPort | None:
        """Have something changed; of FunctionAdd the new devlink port."""
        answers = self._asked(change.about(), change.command, change.attributes())
        return port_in(_first(answers, change.about())) if isinstance(change, FunctionAdd) else None

    # --- asking -----------------------------------------------------------------------------------------------------------------------

    def _listed(self, about: str, command: int) -> list[Values]:
        for again in range(TRIES):
            try:
                return self._asked(about, command, [], NLM_F_DUMP)
            except DevlinkError as error:
                if error.number != errno.EINTR or again == TRIES - 1:
                    raise
        raise AssertionError

    def _asked(self, about: str, command: int, attributes: Attributes, flags: int = NLM_F_ACK) -> list[Values]:
        message = _Message()
        message["cmd"], message["version"] = command, of.VERSION
        message["attrs"] = _spelled(of.DEVICE, attributes)
        try:
            return self._runner.run(asyncio.wait_for(self._gathered(message, NLM_F_REQUEST | flags), self.patience))
        except REFUSALS as error:
            raise _told(about, error) from None

    async def _gathered(self, message: _Message, flags: int) -> list[Values]:
        answers = await self._socket.nlm_request(message, self._socket.prid, flags)
        return [answer["values"] async for answer in answers if "values" in answer]


def _spelled(level: Level, attributes: Attributes) -> list[list[Any]]:
    """Attributes by their whole names, as pyroute2 has them."""
    found = []
    for name, value in attributes:
        inner = level.attributes[level.numbers[name]][1]
        if isinstance(inner, Level):
            value = {"attrs": _spelled(inner, value)}
        found.append([level.prefix + name, value])
    return found


def _first(answers: Sequence[Values], about: str) -> Values:
    if not answers:
        raise DevlinkError(f"{about}: the kernel has answered nothing", errno.ENODATA)
    return answers[0]


def _told(about: str, error: BaseException) -> DevlinkError:
    """In a line: what was asked, why it was refused, and the kernel's sentence."""
    if isinstance(error, TimeoutError):
        parts, number, said = ["no answer in time"], errno.ETIMEDOUT, ""
    else:
        number = getattr(error, "code", None) or getattr(error, "errno", None) or 0
        said = _sentence(error)
        parts = [ADVICE.get(number) or os.strerror(number), *([said] if said else [])]
    return DevlinkError(": ".join([*([about] if about else []), *parts]), number, said)


def _sentence(error: BaseException) -> str:
    """The kernel's, in one line; pyroute2 has strerror in its place where there is none."""
    text = error.args[1] if isinstance(error, pyroute2.NetlinkError) and len(error.args) > 1 else ""
    text = " ".join(str(text or "").split())
    return "" if text == os.strerror(getattr(error, "code", 0) or 0) else text
