"""What the flow table does with a packet (A5): serve it, or leave it to the tracker, and why. Not here: teardown itself (aging)."""

from __future__ import annotations

from dataclasses import dataclass

from ctcore.types import Proto, Status
from offload.contract.aging import teardown
from offload.contract.objects import ORIG, REPLY, Flow, FlowFlag, Settings
from offload.contract.why import Why

FIN, RST = 0x01, 0x04


@dataclass(frozen=True)
class Packet:
    """What the lookup looks at. plain: an IP header without options, or an IPv6 header with the transport right behind it."""

    proto: int
    tcp_flags: int = 0
    fragment: bool = False
    plain: bool = True
    hop_limit: int = 64
    truncated: bool = False
    gre_version: int = 0


@dataclass(frozen=True)
class Looked:
    """served: by the table. why: it is not, though there was an entry or could have been one. installs: hardware is asked for its rules again."""

    served: bool
    why: Why | None = None
    installs: bool = False


def skip(packet: Packet) -> Why | None:
    """37: why the table is not asked for a packet at all."""
    reasons = (
        (packet.fragment, Why.FRAGMENT),
        (packet.proto not in (Proto.PROTO_TCP, Proto.PROTO_UDP, Proto.PROTO_GRE), Why.PROTO),
        (not packet.plain, Why.IP_OPTIONS),
        (packet.hop_limit <= 1, Why.TTL),
        (packet.truncated, Why.TRUNCATED),
        (packet.proto == Proto.PROTO_GRE and packet.gre_version != 0, Why.PROTO),
    )
    return next((why for applies, why in reasons if applies), None)


def look(flow: Flow | None, packet: Packet, direction: int, now: int, settings: Settings) -> Looked:
    """A packet meets what the table has of its tuple. Changes the flow, and its connection where it is torn down."""
    why = skip(packet)
    if why is not None:
        return Looked(False, why)
    if flow is None or flow.flags & FlowFlag.TEARDOWN or flow.conn.status & Status.DYING:  # 38
        return Looked(False)
    assured, force = bool(flow.conn.status & Status.ASSURED), False
    if direction == REPLY and not flow.flags & FlowFlag.HW_BIDIRECTIONAL:  # 39
        if assured:
            flow.flags |= FlowFlag.HW_BIDIRECTIONAL
        elif flow.flags & FlowFlag.HW_ESTABLISHED:
            return Looked(False, Why.NOT_ASSURED)
        force = True
    if packet.proto == Proto.PROTO_TCP and packet.tcp_flags & (FIN | RST):  # 40
        teardown(flow, now, settings)
        return Looked(False, Why.TEARDOWN_FIN if packet.tcp_flags & FIN else Why.TEARDOWN_RST)
    installs = refresh(flow, force, now, settings)
    return Looked(assured, None if assured else Why.NOT_ASSURED, installs)  # 42, 43


def refresh(flow: Flow, force: bool, now: int, settings: Settings) -> bool:
    """41: the idle time begins anew. Whether that is worth asking hardware for the rules again."""
    timeout = now + settings.idle(flow.conn.proto)
    if not force and timeout - flow.timeout <= settings.refresh_after * settings.hz:
        return False
    flow.timeout = timeout
    return not flow.flags & FlowFlag.CLOSING


def ctinfo_seen(flow: Flow, direction: int) -> str:
    """43: what a served packet is said to be."""
    replied = direction != ORIG or flow.conn.status & Status.SEEN_REPLY
    return ("new" if not replied else "established") if direction == ORIG else "established_reply"
