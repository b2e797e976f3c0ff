"""What the kernel says of an interface of this thread's network namespace, and its errors in words.

By ioctl, since these are single questions that need no library. Not here: watching interfaces, and changing more of them than what is undone here.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Mapping
from contextlib import suppress

from datapath.errors import KernelError

SIOCGIFFLAGS, SIOCGIFMTU, SIOCGIFHWADDR, SIOCGIFINDEX, SIOCETHTOOL = 0x8913, 0x8921, 0x8927, 0x8933, 0x8946
ETHTOOL_GGRO, ETHTOOL_SGRO, ETHTOOL_GCHANNELS = 0x2B, 0x2C, 0x3C
IFF_UP = 1
ARPHRD_ETHER, ARPHRD_LOOPBACK = 1, 772  # linux/if_arp.h: what begins with an Ethernet header


def say(what: str, number: int, meanings: Mapping[int, str]) -> KernelError:
    """A KernelError of errno `number`, with what it means here, if that is known."""
    meaning = f": {meanings[number]}" if number in meanings else ""
    return KernelError(f"{what}: {os.strerror(number)}{meaning}", number)


def _asker() -> socket.socket:
    """Any socket belongs to the namespace of the thread that made it, and asks about that one's interfaces."""
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


def _request(asker: socket.socket, name: str, request: int, argument: bytes = b"") -> bytes:
    """SIOC...: the answer's 24 bytes behind the name."""
    if not 0 < len(name.encode()) < 16:
        raise KernelError(f"{name!r}: expected the name of an interface, of at most 15 bytes", errno.ENODEV)
    try:
        return fcntl.ioctl(asker, request, struct.pack("16s24s", name.encode(), argument))[16:]
    except OSError as error:
        raise say(name, error.errno or 0, {errno.ENODEV: "no such interface in this network namespace"}) from None


def _ask(name: str, request: int) -> bytes:
    with _asker() as asker:
        return _request(asker, name, request)


def _ethtool(asker: socket.socket, name: str, data: bytes) -> bytes | None:
    """What the driver answers; None if it does not know the question."""
    held = ctypes.create_string_buffer(data, len(data))
    try:
        _request(asker, name, SIOCETHTOOL, struct.pack("P", ctypes.addressof(held)))
    except KernelError as error:
        if error.number in (errno.EOPNOTSUPP, errno.EINVAL):
            return None
        raise
    return held.raw


def index_of(name: str) -> int:
    """Its number. KernelError (ENODEV) if there is none of that name."""
    return int(struct.unpack_from("i", _ask(name, SIOCGIFINDEX))[0])


def mtu_of(name: str) -> int:
    """Bytes of an IP packet."""
    return int(struct.unpack_from("i", _ask(name, SIOCGIFMTU))[0])


def is_up(name: str) -> bool:
    return bool(struct.unpack_from("H", _ask(name, SIOCGIFFLAGS))[0] & IFF_UP)


def mac_of(name: str) -> bytes:
    """6 bytes. KernelError if its frames have no Ethernet header."""
    kind, address = struct.unpack_from("H6s", _ask(name, SIOCGIFHWADDR))
    if kind not in (ARPHRD_ETHER, ARPHRD_LOOPBACK):
        raise KernelError(f"{name}: link type {kind}: expected Ethernet")
    return bytes(address)


def queues_of(name: str) -> int:
    """How many receive queues are in use: each needs a socket of its own."""
    with _asker() as asker:
        answer = _ethtool(asker, name, struct.pack("9I", ETHTOOL_GCHANNELS, *bytes(8)))
    if answer is None:
        return 1
    _, _, _, _, _, receive, _, _, combined = struct.unpack("9I", answer)
    return max(receive + combined, 1)


class Unmerged:
    """An interface that hands over received packets as they were sent, not several in one (GRO), until restore().

    Of another namespace, too: it is the one of the thread that has made this.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.asker = _asker()
        answer = _ethtool(self.asker, name, struct.pack("II", ETHTOOL_GGRO, 0))
        merges = answer is not None and struct.unpack("II", answer)[1] != 0
        self.changed = merges and _ethtool(self.asker, name, struct.pack("II", ETHTOOL_SGRO, 0)) is not None

    def restore(self) -> None:
        """As it was before; nothing if the interface has gone."""
        if self.changed:
            with suppress(KernelError):
                _ethtool(self.asker, self.name, struct.pack("II", ETHTOOL_SGRO, 1))
        self.changed = False
        self.asker.close()
