"""What the flow table has of a packet, and why it does not serve one, in words. Not here: deciding (flowtable)."""

from __future__ import annotations

from ctcore.types import Offload

WHY_NOT: dict[int, str] = {
    Offload.NOT_PROTO: "only TCP, UDP and plain GRE are served",
    Offload.NOT_TCP_STATE: "its TCP connection is not ESTABLISHED",
    Offload.NOT_ASSURED: "its connection is not assured yet; one that is in the flow table (UDP) is tracked until it is",
    Offload.NOT_UNCONFIRMED: "nobody has committed its connection",
    Offload.NOT_HELPER: "a helper reads its connection",
    Offload.NOT_SEQADJ: "sequence numbers of its connection are moved",
    Offload.NOT_GRE_NAT: "GRE is served without translation only",
    Offload.NOT_GRE_KEY: "GRE is served without keys only",
    Offload.NOT_DYING: "its connection is ending",
    Offload.NOT_TUPLE_BUSY: "another connection in the table has its tuple, or its own former entry for up to a second after it was flushed",
    Offload.NOT_FRAGMENT: "it is a fragment, or broken",
    Offload.NOT_IP_OPTIONS: "its IP header has options or extensions",
    Offload.NOT_TTL: "its TTL or hop limit is at its end",
    Offload.NOT_TRUNCATED: "its transport header is cut short",
    Offload.NOT_TEARDOWN_FIN: "its connection has left the table with a FIN",
    Offload.NOT_TEARDOWN_RST: "its connection has left the table with a RST",
    Offload.NOT_TEARDOWN_IDLE: "its connection was idle, and has left the table",
    Offload.NOT_TEARDOWN_DYING: "its connection has been ended, and has left the table",
    Offload.NOT_TEARDOWN_FLUSH: "the table was flushed",
    Offload.NOT_TEARDOWN_OUTDATED: "hardware took its connection for one that no reply has been seen of, so that it has left the table",
}
# All that a record may say.
OFFLOAD_WORDS: dict[int, str] = {
    Offload.OFFLOAD_SOFTWARE: "its connection is in the flow table, which has served the packet, or serves those that follow once it is assured",
    Offload.OFFLOAD_HARDWARE: "the simulated NIC (--nic) has had it: its connection is in the NIC's table; no real NIC is driven yet",
    **WHY_NOT,
}
