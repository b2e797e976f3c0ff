"""Which connections the flow table takes in, at the end of each `ct` action that it has not served (A2).

One connection: SYN: tcp_state; SYN/ACK: tcp_state; ACK: assured by it, and admitted (8). Not here: packets of those that are in (lookup).
"""

from __future__ import annotations

from collections.abc import Collection

from ctcore.types import Proto, State, Status, TcpState
from offload.contract.objects import Conn, Flow, FlowFlag, Settings, Tuple
from offload.contract.why import Why


def _tcp(conn: Conn, state: State) -> Why | None:
    """7, 8, 9."""
    if state != State.ESTABLISHED or conn.tcp_state != TcpState.TCP_ESTABLISHED:
        return Why.TCP_STATE
    return None if conn.status & Status.ASSURED else Why.NOT_ASSURED


def _udp(conn: Conn, state: State) -> Why | None:
    """10."""
    return None if conn.status & Status.CONFIRMED else Why.UNCONFIRMED


def _gre(conn: Conn, state: State) -> Why | None:
    """12."""
    if conn.status & (Status.SRC_NAT | Status.DST_NAT):
        return Why.GRE_NAT
    if any((conn.orig.sport, conn.orig.dport, conn.reply.sport, conn.reply.dport)):
        return Why.GRE_KEY
    return None if state == State.ESTABLISHED and conn.status & Status.ASSURED else Why.NOT_ASSURED


_BY_PROTO = {Proto.PROTO_TCP: _tcp, Proto.PROTO_UDP: _udp, Proto.PROTO_GRE: _gre}


def refusal(conn: Conn, state: State) -> Why | None:
    """Why a connection is not admitted by a packet of this state; None: it is."""
    judge = _BY_PROTO.get(Proto(conn.proto)) if conn.proto in set(Proto) else None
    why = judge(conn, state) if judge else Why.PROTO  # 13
    if why is None and conn.status & Status.SEQ_ADJUST:  # 14
        why = Why.SEQADJ
    if why is None and conn.helper:
        why = Why.HELPER
    if why is None and conn.status & Status.DYING:  # 16
        why = Why.DYING
    return why


def admit(conn: Conn, state: State, busy: Collection[tuple[int, Tuple]], now: int, settings: Settings) -> Flow | Why | None:
    """A new flow; why there is none; or None, if the connection is in already (15). busy: zones and tuples that are in the table."""
    if conn.status & Status.OFFLOAD:
        return None
    why = refusal(conn, state)
    if why is not None:
        return why
    if conn.proto == Proto.PROTO_TCP:
        conn.liberal = [True, True]  # 17: for good, whatever comes next
    if {(conn.zone, conn.orig), (conn.zone, conn.reply)} & set(busy) or conn.orig == conn.reply:
        return Why.TUPLE_BUSY  # 18: and OFFLOAD is clear again
    conn.status |= Status.OFFLOAD
    conn.timeout = now + settings.day * settings.hz  # 19
    flags = FlowFlag.HW | (FlowFlag.HW_BIDIRECTIONAL if conn.status & Status.ASSURED else FlowFlag(0))
    return Flow(conn, flags, now + settings.idle(conn.proto))
