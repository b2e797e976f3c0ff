"""What the kernel says aloud of a packet: its sentence on an invalid one (NFLOG), and ctnetlink's events.

Both come over netlink sockets of the observed namespace, and are there before the packet's fence is (bridge), so they are read without waiting.
Messages are taken apart by hand: one look at them follows every packet.
Not here: what is observed in memory (probes).
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack

from datapath.oracle.namespace import Namespace

NETLINK_NETFILTER = 12
SO_RCVBUFFORCE = 33
BUFFER = 1 << 22
MESSAGE = struct.Struct("=IHHII")  # nlmsghdr
FAMILY = struct.Struct("!BBH")  # nfgenmsg
ATTRIBUTE = struct.Struct("=HH")  # nlattr
ERROR, DONE = 2, 3
LOST = -1  # no type of message: messages are missing
REQUEST, ACK, CREATE, DUMP = 0x1, 0x4, 0x400, 0x300
CONNTRACK, EXPECTATIONS, ULOG = 1, 2, 4  # subsystems, the upper byte of a message's type
CT_NEW, CT_GET, CT_DELETE = (CONNTRACK << 8 | number for number in range(3))
TUPLE_ORIG, ZONE = 1, 18  # attributes of a connection
NESTED = 0x8000
EXPECTATION_GET = EXPECTATIONS << 8 | 1
LOG_PACKET, LOG_CONFIG = ULOG << 8, ULOG << 8 | 1
PREFIX, COMMAND, BIND = 10, 1, 1
EVENT_GROUPS = 0b111  # new, update, destroy
LOG_EVERY_PROTOCOL = 255


def _socket(stack: ExitStack, groups: int) -> socket.socket:
    sock = stack.enter_context(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER))
    sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
    sock.bind((0, groups))
    return sock


def _received(sock: socket.socket) -> Iterator[bytes]:
    """What is waiting. Nothing in the place of what did not fit into the socket's buffer."""
    while True:
        try:
            yield sock.recv(1 << 16, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            yield b""


def _messages(sock: socket.socket) -> Iterator[tuple[int, int, bytes]]:
    """Those that are waiting: (type, flags, what follows the headers); LOST where some are missing."""
    for data in _received(sock):
        if not data:
            yield LOST, 0, b""
        yield from _split(data)


def _split(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    at = 0
    while at + MESSAGE.size <= len(data):
        length, kind, flags, _, _ = MESSAGE.unpack_from(data, at)
        yield kind, flags, data[at + MESSAGE.size + FAMILY.size : at + length]
        at += max(MESSAGE.size, (length + 3) & ~3)


def _text(attributes: bytes, wanted: int) -> str:
    at = 0
    while at + ATTRIBUTE.size <= len(attributes):
        length, kind = ATTRIBUTE.unpack_from(attributes, at)
        if kind == wanted:
            return attributes[at + ATTRIBUTE.size : at + length].rstrip(b"\0 ").decode(errors="replace")
        at += max(ATTRIBUTE.size, (length + 3) & ~3)
    return ""


def attribute(kind: int, data: bytes) -> bytes:
    """As netlink has it, with what fills it up."""
    return ATTRIBUTE.pack(ATTRIBUTE.size + len(data), kind) + data + bytes(-len(data) % 4)


class Listener:
    """Listens in a namespace until the stack it was made with ends."""

    def __init__(self, namespace: Namespace, stack: ExitStack) -> None:
        with namespace.entered():
            self._requests = _socket(stack, 0)
            # Entries tell of themselves only if somebody listened when they were made, so this comes before the first packet.
            self._events = _socket(stack, EVENT_GROUPS)
            self._log = _socket(stack, 0)
        for family in (socket.AF_INET, socket.AF_INET6):
            namespace.sysctl(f"netfilter/nf_log/{int(family)}", "nfnetlink_log")
        namespace.sysctl("netfilter/nf_conntrack_log_invalid", LOG_EVERY_PROTOCOL)
        self._request(self._log, LOG_CONFIG, ATTRIBUTE.pack(5, COMMAND) + bytes([BIND, 0, 0, 0]))

    def _request(self, sock: socket.socket, kind: int, attributes: bytes) -> None:
        """Ask, and wait for the kernel's yes."""
        body = FAMILY.pack(socket.AF_UNSPEC, 0, 0) + attributes
        sock.send(MESSAGE.pack(MESSAGE.size + len(body), kind, REQUEST | ACK, 1, 0) + body)
        answer = sock.recv(1 << 12)
        (code,) = struct.unpack_from("=i", answer, MESSAGE.size)
        if MESSAGE.unpack_from(answer)[1] != ERROR or code:
            raise OSError(-code, f"netlink request {kind:#x}")

    def flush(self) -> None:
        """Delete all connections of the namespace; nothing of that is heard."""
        self._request(self._requests, CT_DELETE, b"")
        self.events()

    def look_up(self, family: int, ends: bytes, zone: int) -> None:
        """Let the kernel look for a connection, which deletes it if it has expired. family: AF_*; ends: the attributes of its original tuple."""
        body = FAMILY.pack(family, 0, 0) + attribute(TUPLE_ORIG | NESTED, ends) + attribute(ZONE, zone.to_bytes(2, "big"))
        self._requests.send(MESSAGE.pack(MESSAGE.size + len(body), CT_GET, REQUEST, 1, 0) + body)
        self._requests.recv(1 << 16)  # the connection, or that there is none

    def expectations(self) -> list[bytes]:
        """The attributes of every expectation there is, in the order in which the kernel lists them."""
        body = FAMILY.pack(socket.AF_UNSPEC, 0, 0)
        self._requests.send(MESSAGE.pack(MESSAGE.size + len(body), EXPECTATION_GET, REQUEST | DUMP, 1, 0) + body)
        found: list[bytes] = []
        while True:
            for kind, _, attributes in _split(self._requests.recv(1 << 16)):
                if kind == DONE:
                    return found
                if kind == ERROR:
                    raise OSError(errno.EIO, "netlink request for expectations")
                found.append(attributes)

    def sentences(self) -> list[str]:
        """What was logged since the last call; "(lost)" where the socket's buffer was full."""
        found = ((kind, attributes) for kind, _, attributes in _messages(self._log))
        return ["(lost)" if kind == LOST else _text(attributes, PREFIX) for kind, attributes in found if kind in (LOST, LOG_PACKET)]

    def events(self) -> list[str]:
        """new, update, destroy: what happened since the last call; "(lost)" where the socket's buffer was full."""
        names = {(CT_NEW, CREATE): "new", (CT_NEW, 0): "update", (CT_DELETE, 0): "destroy", (LOST, 0): "(lost)"}
        found = (names.get((kind, flags & CREATE)) for kind, flags, _ in _messages(self._events))
        return [name for name in found if name]
