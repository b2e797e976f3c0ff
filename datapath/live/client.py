"""The other end of a node's socket: requests out, parts of answers in.

    with Client("/run/ctmirror/control.sock") as client:
        for record in client.conns("list", which={"proto": 6}):
            ...

Invariants: every request is answered to its end or raises; a node that is not there, hangs up or does not answer is one line.
Not here: what requests are (docs/control.md), what is printed of the answers (commands).
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

from ctcore.errors import CtmirrorError
from datapath.live.message import LARGEST_ANSWER, LARGEST_REQUEST, LENGTH, SOCKET, VERSION, Message, RequestError, length_of, packed, unpacked
from datapath.names import printable

PATIENCE = 30.0  # seconds for the next part of an answer
PIECE = 1 << 13  # characters of a rules file in one request: each may take six bytes as JSON


class NoNode(CtmirrorError):
    """Nobody can be asked: why."""


class Client:
    """A connection to the node that listens at `path`. Raises NoNode."""

    def __init__(self, path: str = SOCKET) -> None:
        self.path, self.end = path, Message()
        self._number = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._socket.settimeout(PATIENCE)
        try:
            self._socket.connect(path)
        except (OSError, ValueError) as error:
            self._socket.close()
            raise NoNode(f"{printable(path)}: {_why(error)}") from None

    def parts(self, do: str, **arguments: Any) -> Iterator[Message]:
        """Ask, and have the parts of the answer; afterwards, `end` has its end. Raises RequestError with what the node says, NoNode if it is gone."""
        self._number += 1
        number = self._number
        self._send({"v": VERSION, "id": number, "do": do, **arguments})
        while True:
            message = self._receive()
            if message.get("error") is not None and message.get("id") in (number, None):
                raise RequestError(str(message["error"]))
            if message.get("id") != number:
                yield message  # an event
            elif "end" in message:
                self.end = message["end"]
                return
            else:
                yield message

    def ask(self, do: str, **arguments: Any) -> Message:
        """The end of an answer that has no parts."""
        for _ in self.parts(do, **arguments):
            pass
        return self.end

    def conns(self, do: str, **arguments: Any) -> Iterator[dict[str, Any]]:
        """The connection records of an answer."""
        for part in self.parts(do, **arguments):
            yield from part.get("conns", ())

    def events(self, **arguments: Any) -> Iterator[Message]:
        """Parts with events or losses, one after the other, until the node ends."""
        self._number += 1
        self._send({"v": VERSION, "id": self._number, "do": "events", **arguments})
        while True:
            message = self._receive()
            if message.get("error") is not None:
                raise RequestError(str(message["error"]))
            self._socket.settimeout(None)
            yield message

    def load_rules(self, text: str, **arguments: Any) -> Message:
        """Send a rules file piece by piece, and have it taken."""
        for start in range(0, len(text), PIECE):
            self.ask("text", text=text[start : start + PIECE])
        self._socket.settimeout(None)  # many rules take their time
        return self.ask("rules", **arguments)

    def _send(self, message: Message) -> None:
        data = packed(message)
        if len(data) > LARGEST_REQUEST:
            raise RequestError(f"a request of {len(data)} bytes: expected at most {LARGEST_REQUEST}")
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise NoNode(f"{printable(self.path)}: {_why(error)}") from None

    def _receive(self) -> Message:
        return unpacked(self._exactly(length_of(self._exactly(LENGTH.size), LARGEST_ANSWER)))

    def _exactly(self, n: int) -> bytes:
        data = bytearray()
        while len(data) < n:
            try:
                part = self._socket.recv(n - len(data))
            except OSError as error:
                raise NoNode(f"{printable(self.path)}: {_why(error)}") from None
            if not part:
                raise NoNode(f"{printable(self.path)}: the node has ended the connection")
            data += part
        return bytes(data)

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /) -> None:
        self.close()


def _why(error: OSError | ValueError) -> str:
    """What an errno means here."""
    meanings: dict[type, str] = {
        FileNotFoundError: "no node is running there: expected one started by `ctmirror run`, or --socket PATH",
        ConnectionRefusedError: "no node is running there any more: expected one started by `ctmirror run`, or --socket PATH",
        PermissionError: "not allowed: expected root, or the group of control.group",
        TimeoutError: f"the node has not answered for {PATIENCE:.0f} s",
        BrokenPipeError: "the node has ended the connection",
        ConnectionResetError: "the node has ended the connection",
    }
    return meanings.get(type(error), getattr(error, "strerror", None) or str(error))
