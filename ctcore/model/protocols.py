"""Which protocol has which tracker and which memory, and how a connection is asked about one packet.

explain asks as well: on a connection as a record of the engine holds it (recall), to tell which rule gave the answer.
Not here: lookup, confirm, what follows from an answer (tracker).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ctcore.model import l4, sctp, tcp
from ctcore.model.conn import L4, Answer, Conn, Key, Visit, invalid
from ctcore.types import Dir, Proto

PROTOCOLS: dict[int, Callable[[Visit], Answer]] = {
    Proto.PROTO_TCP: tcp.track,
    Proto.PROTO_UDP: l4.track_udp,
    Proto.PROTO_UDPLITE: l4.track_udplite,
    Proto.PROTO_SCTP: sctp.track,
    Proto.PROTO_GRE: l4.track_gre,
    Proto.PROTO_ICMP: l4.track_icmp,
    Proto.PROTO_ICMPV6: l4.track_icmp,
}


def recall(record: np.void, tick: int) -> Conn:
    """The connection that a record of CONN_DTYPE holds, at a tick: what Conn.store() wrote, or the engine."""
    first, second = (Key.of(record["flow"][d]["key"].tobytes()) for d in Dir)
    memories: dict[int, Callable[[np.void], L4]] = {
        Proto.PROTO_TCP: lambda record: tcp.Tcp.of(record["tcp"]),
        Proto.PROTO_SCTP: sctp.Sctp.of,
        Proto.PROTO_UDP: l4.Udp.of,
    }
    memory = memories.get(first.proto, lambda _: L4())(record)
    conn = Conn((first, second), int(record["start"]), memory, int(record["flow"][Dir.ORIG]["id"]), int(record["status"]))
    conn.deadline = tick + int(record["timeout"])
    return conn


def begin(key: Key, now: int, tick: int, hz: int) -> Conn | None:
    """A connection that has not been confirmed, for its first packet's tuple; None if that has no answer."""
    inverted = key.inverted()
    if inverted is None:
        return None
    kinds: dict[int, type[L4]] = {Proto.PROTO_TCP: tcp.Tcp, Proto.PROTO_SCTP: sctp.Sctp}
    memory = l4.Udp(tick + l4.STREAM_AFTER * hz) if key.proto == Proto.PROTO_UDP else kinds.get(key.proto, L4)()
    return Conn((key, inverted), now, memory)


def ask(visit: Visit) -> Answer:
    """The protocol's answer. What parse() found wrong comes first, but after lookup and allocation."""
    if visit.packet.l4_reason:
        return invalid(visit.packet.l4_reason)
    return PROTOCOLS.get(visit.packet.key.proto, l4.track_generic)(visit)
