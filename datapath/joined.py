"""What of a datagram Linux has put into one piece by the time it cuts it up again: within that, the fragments' old borders are gone.

Theory of operation: after reassembly a datagram still lies in the buffers its fragments came in, and cutting it up takes these apart again if it can.
In between, whoever writes to a header wants all in front of it and itself in the first buffer, which takes the missing bytes from the next ones; and
some helpers want all of the datagram there before they read.
Two fragments of a TCP segment, 16 and 28 bytes: translation writes to the 20 bytes of the header, so they become 20 and 24. As 20 is no multiple of
8, these borders are of no use to refragment, which cuts anew.
Invariant: the parts cover what they covered before.
Not here: cutting (refragment), what is to be changed (ctcore), changing it (rewrite, edits).
"""

from __future__ import annotations

import numpy as np

from ctcore.batch import Batch
from ctcore.model.conn import Packet
from ctcore.model.l4 import quoted_header
from ctcore.types import Proto, RewriteFlag, Status
from datapath.refragment import Datagram

OUTER = RewriteFlag.REWRITE_SRC | RewriteFlag.REWRITE_DST
INNER = RewriteFlag.REWRITE_INNER_SRC | RewriteFlag.REWRITE_INNER_DST
# Bytes of a transport header that translation writes to: all of these, if they are there, or else the first 8. None of other protocols'.
SCTP_HEADER = 12
WRITTEN: dict[int, int] = {**dict.fromkeys(Proto, 8), Proto.PROTO_TCP: 20, Proto.PROTO_SCTP: SCTP_HEADER}
LEAST = 8
ERROR = 8  # an ICMP error's header (RFC 792, RFC 4443 3.1)
IP_HEADER = {4: 20, 6: 40}
ACK = 0x10

Part = tuple[int, int, int]


def joined(datagram: Datagram, batch: Batch, decision: np.void, told: np.void | None) -> Datagram:
    """The datagram, its parts as Linux has them.

    batch: the datagram alone, as it came; decision: on it (DECISION_DTYPE); told: what is to be changed in it (REWRITE_DTYPE), None if nothing ever.
    """
    row = batch.array[0]
    carried = sum(length for _, _, length in datagram.parts)
    size = carried
    if told is None or not told["flags"] & RewriteFlag.REWRITE_WHOLE:
        packet = Packet.of(row, batch.l4_bytes(0))
        wanted = 0 if told is None else _written(packet, told, decision)
        if packet.key.proto == Proto.PROTO_SCTP and datagram.verified and packet.l4_len >= SCTP_HEADER:
            wanted = max(wanted, SCTP_HEADER)  # unlike all others' checksums, SCTP's is looked for as if it were to be written
        # Headers behind an IPv6 fragment header are carried by it, too.
        size = carried - packet.l4_len + wanted if wanted else 0
    return datagram._replace(parts=_pulled(datagram.parts, min(size, carried)))


def _written(packet: Packet, told: np.void, decision: np.void) -> int:
    """Bytes from the transport header on that are written to."""
    flags, proto, size = int(told["flags"]), packet.key.proto, 0
    if flags & INNER:
        at = packet.l4_len - quoted_header(packet)[1]
        size = at + _header(int(told["to"]["proto"]), packet.l4_len - at)
    elif flags & RewriteFlag.REWRITE_QUOTE:
        size = ERROR + IP_HEADER[packet.key.family]
    elif flags & OUTER:
        size = _header(proto, packet.l4_len)
    if proto == Proto.PROTO_TCP and decision["status"] & Status.SEQ_ADJUST and packet.tcp_flags & ACK:
        size = max(size, packet.doff)  # acknowledgements may be selective, and then are options (RFC 2018)
    return size


def _header(proto: int, there: int) -> int:
    """Bytes of a transport header that translation wants. there: of it, and what is behind."""
    size = WRITTEN.get(proto, 0)
    return size if there >= size else LEAST


def _pulled(parts: tuple[Part, ...], size: int) -> tuple[Part, ...]:
    """Parts whose first one has at least `size` bytes, taken from the next ones."""
    (number, offset, have), *rest = parts
    while have < size and rest:
        other, at, length = rest.pop(0)
        taken = min(size - have, length)
        have += taken
        if taken < length:
            rest.insert(0, (other, at + taken, length - taken))
    return (number, offset, have), *rest
