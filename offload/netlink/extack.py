"""Why the kernel refused a request: its number, its own sentence (extended acknowledgement), the attribute that it is about, and what it takes.

Source: linux/netlink.h, NLMSGERR_ATTR_*. Not here: sockets (channel), which rule it was (who asked).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from struct import Struct
from typing import NamedTuple

from offload.netlink.attributes import EXTACK, TC, Level
from offload.netlink.filters import MESSAGE, TCMSG
from offload.netlink.read import Malformed, name_at, read

CAPPED, HAS_ATTRIBUTES = 0x100, 0x200  # NLM_F_CAPPED, NLM_F_ACK_TLVS
CODE = Struct("=i")
NO_CLASSIFIER = "classifier not found"  # Linux, of a kind of filters that it has not and cannot load
LACKS_FLOWER = "expected a kernel with CONFIG_NET_CLS_FLOWER (ctmirror doctor)"  # all filters that are made here are of this kind
LACKS_CT = "expected a kernel with CONFIG_NET_ACT_CT (ctmirror doctor)"


class Answer(NamedTuple):
    """Of one request. error: errno, 0: done; text: what the kernel says, "" if nothing; attribute: what it points to or lacks, by the kernel's
    name."""

    error: int
    text: str = ""
    attribute: str = ""

    def told(self) -> str:
        """In one line: Operation not supported: Driver doesn't support this (TCA_FLOWER_KEY_CT_STATE)."""
        if not self.error:
            return f"done, with a warning: {self.text}" if self.text else "done"
        said = [os.strerror(self.error), *([self.text] if self.text else [])]
        return ": ".join(said) + (f" ({self.attribute})" if self.attribute else "")

    def advised(self) -> str:
        """The same, with what it takes where that is known."""
        return f"{self.told()}: {LACKS_FLOWER}" if self.error == errno.ENOENT and NO_CLASSIFIER in self.text else self.told()


DONE = Answer(0)
LOST = Answer(errno.ENOBUFS, "the answer did not fit into the socket's buffer, so that it is not known whether this was done")


def once(refused: Iterable[tuple[str, str]]) -> list[str]:
    """What was refused, and why: a line for each reason, with the first that has it, and how many more there are."""
    whose: dict[str, list[str]] = {}
    for what, why in refused:
        whose.setdefault(why, []).append(what)
    return [f"{what[0]}: {why}" + (f" (and {len(what) - 1:,} more for the same reason)" if len(what) > 1 else "") for why, what in whose.items()]


def answer_of(data: bytes, flags: int, request: bytes, level: Level = TC, head: int = TCMSG.size) -> Answer:
    """Of an NLMSG_ERROR. data: behind its header; flags: of that; request: the whole request; level, head: of its attributes, and where they begin.

    Raises Malformed.
    """
    if len(data) < CODE.size + MESSAGE.size:
        raise Malformed(f"answer: {len(data)} bytes: expected {CODE.size + MESSAGE.size} or more")
    error = -CODE.unpack_from(data)[0]
    if not flags & HAS_ATTRIBUTES:
        return Answer(error)
    asked = MESSAGE.unpack_from(data, CODE.size)[0]
    start = CODE.size + (MESSAGE.size if flags & CAPPED else asked + 3 & ~3)
    found = read(EXTACK, data[start:])
    said = found.get("MSG", "")
    missing, offset = found.get("MISS_TYPE"), found.get("OFFS")
    if missing is not None:
        name, _ = level.attributes.get(missing, (str(missing), ""))
        return Answer(error, said or "an attribute is missing", f"attribute {missing}" if found.get("MISS_NEST") else level.prefix + name)
    at = MESSAGE.size + head
    return Answer(error, said, name_at(level, request[at:], offset - at) if offset is not None and offset >= at else "")
