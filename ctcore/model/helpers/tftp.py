"""TFTP in the model (RFC 1350): the answer to a request comes from a port of its own."""

from __future__ import annotations

from ctcore.model.helpers.aid import Aid
from ctcore.types import Dir, Proto, Reason

REQUESTS = (b"\0\1", b"\0\2")  # read, write


def help(aid: Aid) -> int:
    """One packet, of any state and direction."""
    if not aid.payload.startswith(REQUESTS):
        return Reason.R_OK
    answer = aid.conn.key[Dir.REPLY]
    draft = aid.draft(answer.src, answer.dst, Proto.PROTO_UDP, answer.dport)
    if aid.translated:
        draft = aid.followed(draft, Dir.REPLY, aid.conn.key[Dir.ORIG].sport)
    return aid.announce_or_drop(draft)
