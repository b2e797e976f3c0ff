"""The tests' vocabulary for the contract in plain Python: connections and flows as they are at some point of their lives."""

from __future__ import annotations

from typing import Any

from ctcore.types import Proto, Status, TcpState
from offload.contract.objects import Conn, Flow, FlowFlag, Settings, Tuple

LINUX = Settings()
HZ, T = LINUX.hz, LINUX.idle(6)
CLIENT, SERVER, PUBLIC = bytes([10, 0, 0, 1]), bytes([198, 51, 100, 7]), bytes([192, 0, 2, 1])
ONE_WAY, BOTH_WAYS = Status.CONFIRMED, Status.CONFIRMED | Status.SEEN_REPLY
ASSURED = BOTH_WAYS | Status.ASSURED


def conn(proto: int = Proto.PROTO_TCP, status: int = ASSURED, **more: Any) -> Conn:
    """From CLIENT:40000 to SERVER:80, untranslated unless `reply` says so."""
    ports = (0, 0) if proto == Proto.PROTO_GRE else (40000, 80)
    orig = more.pop("orig", Tuple(CLIENT, SERVER, *ports, proto))
    state = TcpState.TCP_ESTABLISHED if proto == Proto.PROTO_TCP else None
    return Conn(orig, more.pop("reply", orig.inverse()), int(status), more.pop("tcp_state", state), **more)


def flow(proto: int = Proto.PROTO_TCP, status: int = ASSURED, *, now: int = 0, flags: FlowFlag = FlowFlag.HW, **more: Any) -> Flow:
    """One that was admitted just now."""
    of = conn(proto, status | Status.OFFLOAD, timeout=now + LINUX.day * HZ, **more)
    both = FlowFlag.HW_BIDIRECTIONAL if status & Status.ASSURED else FlowFlag(0)
    return Flow(of, flags | both, now + LINUX.idle(proto))


def behind_nat(**more: Any) -> Flow:
    """A flow whose source leaves as PUBLIC:1024."""
    reply = Tuple(SERVER, PUBLIC, 80, 1024, more.get("proto", 6))
    return flow(status=ASSURED | Status.SRC_NAT, reply=reply, **more)
