"""What a control client and a node say to each other: messages, each a JSON object behind its length.

    4 bytes: length, big endian | so many bytes of JSON

A request has `v` (VERSION), `do` (what), `id` (anything small, repeated in all that is answered) and what it needs. Answers to it are messages with
parts, and at last one with `end`, or with `error`, one line. docs/control.md has them all.
Invariant: a length is judged before anything of that length is read.
Not here: who listens (control), who asks (client), what requests do (requests).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from struct import Struct
from typing import Any

import orjson

from ctcore.errors import CtmirrorError

VERSION = 1
SOCKET = "/run/ctmirror/control.sock"  # where a node listens unless it is told otherwise
LENGTH = Struct(">I")
LARGEST_REQUEST = 1 << 16  # bytes of JSON
LARGEST_ANSWER = 1 << 22
LONGEST_ID = 64  # characters

Message = dict[str, Any]


@dataclass(frozen=True)
class Done:
    """The last part of an answer."""

    end: Message


Answer = AsyncIterator[Message | Done]


class ProtocolError(CtmirrorError):
    """What was sent is no message, or not one of this version. The connection cannot go on."""


class RequestError(CtmirrorError):
    """A request that cannot be done: what, and what was expected. The connection goes on."""


def packed(message: Message) -> bytes:
    """As it is sent."""
    body = orjson.dumps(message)
    return LENGTH.pack(len(body)) + body


def length_of(head: bytes, largest: int) -> int:
    """How many bytes follow. Raises ProtocolError."""
    (length,) = LENGTH.unpack(head)
    if not 2 <= length <= largest:
        raise ProtocolError(f"a message of {length} bytes: expected 2 to {largest}")
    return int(length)


def unpacked(body: bytes) -> Message:
    """Raises ProtocolError."""
    try:
        message = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ProtocolError(f"no JSON: {error}") from None
    if not isinstance(message, dict):
        raise ProtocolError("expected a JSON object")
    return message


def check_request(message: Message) -> None:
    """What every request has. Raises ProtocolError."""
    version = message.get("v")
    if version != VERSION or isinstance(version, bool):
        raise ProtocolError(f"version {str(version)[:20]!r}: expected {VERSION}")
    number = message.get("id")
    if not (number is None or isinstance(number, int) or (isinstance(number, str) and len(number) <= LONGEST_ID)):
        raise ProtocolError(f"id: expected a number, or at most {LONGEST_ID} characters")
