"""A socket that listens to what the kernel tells of itself: in some of its groups, with a filter that lets little through.

Invariants: reading never waits, and reads a limited number of messages at once; what was lost for want of room is told as `overrun`, so that somebody
looks at all there is; what does not come from the kernel is nothing.
Source: linux/filter.h. Not here: filters' contents (monitor), what messages say (who inherits).
"""

from __future__ import annotations

import ctypes
import errno
import socket
from collections.abc import Iterator
from struct import Struct
from types import TracebackType
from typing import Self

from offload.netlink.channel import LONGEST, messages, widen

INSTRUCTION = Struct("=HBBI")  # struct sock_filter
SO_ATTACH_FILTER = 26
MOST = 65_536  # messages read at once


def attach(to: socket.socket, code: bytes) -> None:
    """A socket has only what its filter lets through."""
    buffer = ctypes.create_string_buffer(code, len(code))
    head = Struct("@HP").pack(len(code) // INSTRUCTION.size, ctypes.addressof(buffer))
    to.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, head)


class Listener:
    """Of the network namespace that this thread is in. code: of its filter; groups: a bit each. A context manager.

    Raises PermissionError where listening takes CAP_NET_ADMIN.
    """

    def __init__(self, protocol: int, code: bytes, groups: int) -> None:
        self.overrun = False
        self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        try:
            attach(self.socket, code)
            widen(self.socket)
            self.socket.bind((0, groups))
        except OSError:
            self.socket.close()
            raise
        self.socket.setblocking(False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def heard(self) -> Iterator[tuple[int, bytes]]:
        """Kind and body of each message that has come since the last time, MOST or a few more. Raises Malformed."""
        left = MOST
        while left > 0:
            try:
                data, _, _, sender = self.socket.recvmsg(LONGEST)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self.overrun = True
                continue
            if sender[0] == 0:
                for kind, _, _, body in messages(data):
                    yield kind, body
                    left -= 1
