"""A netlink socket that asks many things at once, and gives each its answer; and that lists what there is.

Theory of operation: requests are numbered and sent in groups, each group in one system call. The kernel does what it is asked inside of that call, so
that all answers are there when it returns, and nobody waits. Groups are small enough for them to fit into the socket's buffer; an answer that does
not is thrown away without a word, and what it was for is LOST: nobody knows whether it was done. Lists come piece by piece, as they are read.
Invariants: each request has one answer, in order; a kernel that stops listing is an error after PATIENCE; only the kernel is listened to.
Not here: messages (filters, ctcore.ctnetlink), what is made of an answer.
"""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Iterator, Sequence
from struct import Struct
from sys import byteorder
from types import TracebackType

from ctcore.errors import CtmirrorError
from offload.netlink.attributes import TC, Level
from offload.netlink.extack import CODE, DONE, LOST, Answer, answer_of
from offload.netlink.filters import ACK, MESSAGE, TCMSG
from offload.netlink.read import Malformed

ROUTE, NETFILTER = 0, 12  # NETLINK_ROUTE, NETLINK_NETFILTER
SOL_NETLINK, CAP_ACK, EXT_ACK = 270, 10, 11
SO_RCVBUFFORCE, SO_SNDBUFFORCE = 33, 32
BUFFER = 1 << 22
LONGEST = 1 << 18  # bytes of one answer
PATIENCE = 30.0  # seconds
TRIES = 5  # of a list that changes while it is read
GROUP, GROUP_BYTES = 128, 1 << 17  # requests and bytes that are sent at once
ERROR, FINISHED = 2, 3  # NLMSG_*
INTERRUPTED = 0x10  # NLM_F_DUMP_INTR
NUMBER = Struct("=I")
FLAGS_AT = 6 if byteorder == "little" else 7  # of the low byte of a message's flags, and of its number
NUMBER_AT = 8


class NetlinkError(CtmirrorError):
    """A list that cannot be had, or a kernel that does not answer; number: errno, or 0."""

    def __init__(self, text: str, number: int = 0) -> None:
        super().__init__(text)
        self.number = number


class Channel:
    """A socket in the network namespace that this thread is in. A context manager.

    level, head: of the requests' attributes, and where those begin behind the header, for naming the attribute that an answer is about.
    """

    def __init__(self, protocol: int = ROUTE, level: Level = TC, head: int = TCMSG.size) -> None:
        self.level, self.head = level, head
        self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self.socket.bind((0, 0))
        for option in (CAP_ACK, EXT_ACK):
            self.socket.setsockopt(SOL_NETLINK, option, 1)
        widen(self.socket)
        self.socket.setblocking(False)
        self.patience = PATIENCE
        self.number = 0  # of the last request
        self.echoed: list[bytes] = []  # what answers had besides, of the last `ask`
        self.told: dict[int, bytes] = {}  # the same by the place of the request

    def __enter__(self) -> Channel:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    # --- asking -----------------------------------------------------------------------------------------------------------------------

    def ask(self, requests: Sequence[bytes], *, sparing: bool = False) -> list[Answer]:
        """The answer of each request, which wants an acknowledgement. Raises OSError if nothing can be sent, Malformed.

        sparing: only the last one of each group is acknowledged, and of the others only refusals come: the kernel does one after the other, so what
        has been silent by then is done. It saves half of the time, and warnings (refusals have their sentences all the same).
        """
        answers: list[Answer] = []
        self.echoed, self.told = [], {}
        start = 0
        while start < len(requests):
            end, size = start, 0
            while end < len(requests) and end - start < GROUP and (end == start or size + len(requests[end]) <= GROUP_BYTES):
                size += len(requests[end])
                end += 1
            answers += self._group(requests[start:end], sparing, start)
            start = end
        return answers

    def _group(self, requests: Sequence[bytes], sparing: bool, start: int) -> list[Answer]:
        first, last = self.number + 1, len(requests) - 1  # by number; in the group
        self._send(requests, sparing)
        found: dict[int, Answer] = {}
        while True:
            try:
                for kind, flags, number, data in self._received(wait=False):
                    at = number - first & 0xFFFFFFFF
                    if at >= len(requests):
                        continue  # to what was asked before, and given up
                    if kind == ERROR:
                        found[at] = answer_of(data, flags, requests[at], self.level, self.head)
                    else:
                        self.echoed.append(data)
                        self.told[start + at] = data
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
        # Once an answer did not fit, no later one did: so where the last one is there, all are.
        silent = DONE if sparing and last in found else LOST
        return [found.get(at, silent) for at in range(len(requests))]

    def _send(self, requests: Sequence[bytes], sparing: bool = False) -> None:
        """Numbered; sparing: without the flag for an acknowledgement on all but the last one."""
        parts = bytearray()
        at = 0
        for request in requests:
            self.number = self.number + 1 & 0xFFFFFFFF
            parts += request
            NUMBER.pack_into(parts, at + NUMBER_AT, self.number)
            if sparing and request is not requests[-1]:
                parts[at + FLAGS_AT] &= ~ACK & 0xFF
            if len(parts) & 3:
                parts += bytes(-len(parts) % 4)
            at = len(parts)
        self.socket.send(parts)

    # --- listing ----------------------------------------------------------------------------------------------------------------------

    def dump(self, request: bytes) -> Iterator[tuple[int, bytes]]:
        """What a request lists: (type, what follows the header) of each. Raises NetlinkError if the kernel refuses, or the list has changed meanwhile
        (EINTR) or was cut off (ENOBUFS): then it is to be asked for again."""
        self._drain()
        self._send([request])
        while True:
            try:
                messages = list(self._received())
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                raise NetlinkError("netlink: the list did not fit into the socket's buffer", errno.ENOBUFS) from None
            for kind, flags, number, data in messages:
                if number != self.number:
                    continue
                if flags & INTERRUPTED:
                    raise NetlinkError("netlink: what is listed changed meanwhile: expected to be asked again", errno.EINTR)
                if kind == FINISHED:
                    self._finished(data)
                    return
                if kind == ERROR:
                    answer = answer_of(data, flags, request, self.level, self.head)
                    raise NetlinkError(f"netlink: {answer.told()}", answer.error)
                yield kind, data

    def whole(self, request: bytes) -> list[bytes]:
        """What follows the headers of all that a request lists; asked for again if the list changes meanwhile, a few times. Raises NetlinkError."""
        for again in range(TRIES):
            try:
                return [data for _, data in self.dump(request)]
            except NetlinkError as error:
                if error.number != errno.EINTR or again == TRIES - 1:
                    raise
        raise AssertionError

    def _drain(self) -> None:
        """The rest of a list that nobody has read to its end: the kernel makes one at a time."""
        while True:
            try:
                self.socket.recv(LONGEST)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise

    def _readable(self) -> bool:
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        return bool(poll.poll(self.patience * 1000))

    @staticmethod
    def _finished(data: bytes) -> None:
        code = -CODE.unpack_from(data)[0] if len(data) >= 4 else 0
        if code > 0:
            raise NetlinkError(f"netlink: {os.strerror(code)}", code)

    def _received(self, *, wait: bool = True) -> Iterator[tuple[int, int, int, bytes]]:
        """The messages of one answer: type, flags, number, what follows the header. Raises NetlinkError if there is none in time, where it is waited
        for; BlockingIOError elsewhere."""
        if wait and not self._readable():
            raise NetlinkError(f"netlink: no answer within {self.patience:.0f} s")
        data, _, _, sender = self.socket.recvmsg(LONGEST)
        if sender[0] == 0:  # anybody may send to a socket; the kernel is 0
            yield from messages(data)


def widen(of: socket.socket) -> None:
    """Large buffers; without CAP_NET_ADMIN, which listing needs not, as large as the system allows everybody."""
    for forced, usual in ((SO_RCVBUFFORCE, socket.SO_RCVBUF), (SO_SNDBUFFORCE, socket.SO_SNDBUF)):
        try:
            of.setsockopt(socket.SOL_SOCKET, forced, BUFFER)
        except PermissionError:
            of.setsockopt(socket.SOL_SOCKET, usual, BUFFER)


def messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Messages back to back: type, flags, number, what follows the header. Raises Malformed."""
    at = 0
    while at < len(data):
        if at + MESSAGE.size > len(data):
            raise Malformed(f"message at byte {at}: {len(data) - at} bytes: expected a header of {MESSAGE.size}")
        length, kind, flags, number, _ = MESSAGE.unpack_from(data, at)
        if length < MESSAGE.size or at + length > len(data):
            raise Malformed(f"message at byte {at}: says {length} bytes: expected {MESSAGE.size} to {len(data) - at}")
        yield kind, flags, number, data[at + MESSAGE.size : at + length]
        at += length + 3 & ~3
