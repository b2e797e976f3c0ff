"""How flows end: the collector, once a second (A6), and what a torn down connection gets back (A7). Not here: rules (rule)."""

from __future__ import annotations

from enum import Enum

from ctcore.types import Proto, Status, TcpState
from offload.contract.objects import Conn, Flow, FlowFlag, Settings
from offload.contract.why import Why

# Seconds by TCP state and, of UDP, by whether there was a reply (53, 55): Linux's defaults.
TCP_BASE = {
    TcpState.SYN_SENT: 120, TcpState.SYN_RECV: 60, TcpState.TCP_ESTABLISHED: 432_000, TcpState.FIN_WAIT: 120, TcpState.CLOSE_WAIT: 60,
    TcpState.LAST_ACK: 30, TcpState.TIME_WAIT: 120, TcpState.CLOSE: 10, TcpState.SYN_SENT2: 120,
}  # fmt: skip
UDP_BASE = (30, 120)
_CLOSING = {TcpState.FIN_WAIT, TcpState.CLOSE_WAIT, TcpState.LAST_ACK, TcpState.TIME_WAIT}


class Deed(Enum):
    """What the collector wants done with a flow besides."""

    NOTHING = 0
    COUNT = 1  # ask hardware for its counters
    DELETE = 2  # queue the removal of its rules
    FREE = 3  # the flow is no longer


def ending(flow: Flow, now: int) -> Why | None:
    """44: why a flow is torn down now."""
    status = flow.conn.status
    if status & Status.DYING:
        return Why.TEARDOWN_DYING
    if now >= flow.timeout:
        return Why.TEARDOWN_IDLE
    told = flow.flags & (FlowFlag.HW_PENDING | FlowFlag.HW_ESTABLISHED)
    return Why.TEARDOWN_OUTDATED if status & Status.SEEN_REPLY and status & Status.HW_OFFLOAD and not told else None


def collect(flow: Flow, now: int, settings: Settings) -> Deed:
    """One flow's turn (44 to 48)."""
    if not flow.flags & FlowFlag.TEARDOWN:
        if ending(flow, now) is not None:
            teardown(flow, now, settings)
        elif settings.extends:
            extend(flow.conn, now, settings)
    if flow.flags & FlowFlag.TEARDOWN:  # 46
        if not flow.flags & FlowFlag.HW or flow.flags & FlowFlag.HW_DEAD:
            return Deed.FREE
        if flow.flags & FlowFlag.HW_DYING or flow.flags & FlowFlag.HW_PENDING:
            return Deed.NOTHING
        flow.flags |= FlowFlag.HW_DYING
        return Deed.DELETE
    if flow.flags & FlowFlag.CLOSING and flow.flags & FlowFlag.HW and not flow.flags & FlowFlag.HW_DYING:  # 47
        flow.flags |= FlowFlag.HW_DYING
        return Deed.DELETE
    remaining = flow.timeout - now
    return Deed.COUNT if flow.flags & FlowFlag.HW and remaining < settings.count_below * settings.idle(flow.conn.proto) else Deed.NOTHING  # 48


def extend(conn: Conn, now: int, settings: Settings) -> None:
    """45: a connection in the table is kept from expiring."""
    if conn.timeout - now >= settings.extend_below * settings.hz:
        return
    if conn.proto == Proto.PROTO_UDP or (conn.proto == Proto.PROTO_TCP and conn.tcp_state == TcpState.TCP_ESTABLISHED):
        conn.timeout = now + settings.day * settings.hz
    elif conn.proto == Proto.PROTO_TCP and conn.tcp_state in _CLOSING:
        conn.timeout = now + settings.extend_closing * settings.hz


def counted(flow: Flow, lastused: int, settings: Settings) -> None:
    """49: hardware has seen a packet then."""
    flow.timeout = max(flow.timeout, lastused + settings.idle(flow.conn.proto))


def teardown(flow: Flow, now: int, settings: Settings) -> None:
    """52: once."""
    if flow.flags & FlowFlag.TEARDOWN:
        return
    flow.flags |= FlowFlag.TEARDOWN
    flow.conn.status &= ~Status.OFFLOAD
    fix_up(flow, now, settings)


def fix_up(flow: Flow, now: int, settings: Settings) -> None:
    """53 to 56: the connection goes back to the tracker."""
    conn, closing = flow.conn, bool(flow.flags & FlowFlag.CLOSING)
    if conn.proto == Proto.PROTO_TCP and conn.tcp_state is not None:
        conn.tcp_state = TcpState.CLOSE if closing else conn.tcp_state  # 53
        conn.windows_known = [False, False]  # 54
        base = TCP_BASE[conn.tcp_state] * settings.hz
    elif conn.proto == Proto.PROTO_UDP:
        base = UDP_BASE[bool(conn.status & Status.SEEN_REPLY)] * settings.hz  # 55
    else:
        return
    if now >= flow.timeout:
        base = max(0, base - settings.idle(conn.proto))  # 56
    if closing or conn.timeout - now > base:
        conn.timeout = now + base


def rules_gone(flow: Flow) -> None:
    """23: the job that removes the rules is done."""
    flow.conn.status &= ~Status.HW_OFFLOAD
    flow.flags = (flow.flags | FlowFlag.HW_DEAD) & ~FlowFlag.HW_PENDING
