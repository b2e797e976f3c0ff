"""Why a flow, or a packet of it, is not in hardware: every code with one sentence (A10). docs/offload-reasons.md is made of them.

The codes of the flow table have the names of ctcore.types.Offload. Not here: deciding.
"""

from __future__ import annotations

import errno
from enum import StrEnum

from ctcore.types import Offload


class Why(StrEnum):
    """A code as it is written in records, metrics and answers."""

    PROTO = "proto"
    TCP_STATE = "tcp_state"
    NOT_ASSURED = "not_assured"
    UNCONFIRMED = "unconfirmed"
    HELPER = "helper"
    SEQADJ = "seqadj"
    GRE_NAT = "gre_nat"
    GRE_KEY = "gre_key"
    DYING = "dying"
    TUPLE_BUSY = "tuple_busy"
    PENDING = "pending"
    FRAGMENT = "fragment"
    IP_OPTIONS = "ip_options"
    TTL = "ttl"
    TRUNCATED = "truncated"
    DRV_UNSUPPORTED = "drv_unsupported"
    HW_FULL = "hw_full"
    HW_EVICTED = "hw_evicted"
    HW_SILENT = "hw_silent"
    HW_REFUSED = "hw_refused"
    NAT_TABLE_MISMATCH = "nat_table_mismatch"
    MATCH_REL_INV = "match_rel_inv"
    MASKED_LABEL = "masked_label"
    ORIG_TUPLE_MATCH = "orig_tuple_match"
    TEARDOWN_FIN = "teardown_fin"
    TEARDOWN_RST = "teardown_rst"
    TEARDOWN_IDLE = "teardown_idle"
    TEARDOWN_DYING = "teardown_dying"
    TEARDOWN_OUTDATED = "teardown_outdated"
    TEARDOWN_FLUSH = "teardown_flush"


SENTENCES = {
    Why.PROTO: "only TCP, UDP and plain GRE are offloaded",
    Why.TCP_STATE: "its TCP connection is not ESTABLISHED",
    Why.NOT_ASSURED: "its connection is not assured yet; of UDP that is, replies are not offloaded yet",
    Why.UNCONFIRMED: "nobody has committed its connection",
    Why.HELPER: "a helper reads its connection",
    Why.SEQADJ: "sequence numbers of its connection are moved",
    Why.GRE_NAT: "GRE is offloaded without translation only",
    Why.GRE_KEY: "GRE is offloaded without keys only",
    Why.DYING: "its connection is ending",
    Why.TUPLE_BUSY: "another flow, which is on its way out, has its tuple",
    Why.PENDING: "a job for it is on its way to hardware",
    Why.FRAGMENT: "it is a fragment, or broken",
    Why.IP_OPTIONS: "its IP header has options or extensions",
    Why.TTL: "its TTL or hop limit is at its end",
    Why.TRUNCATED: "its transport header is cut short",
    Why.DRV_UNSUPPORTED: "hardware, or its driver, has no such rule: protocol, match or rewrite",
    Why.HW_FULL: "hardware has no room for its rule",
    Why.HW_EVICTED: "it had to make room in hardware for a flow with more traffic",
    Why.HW_SILENT: "hardware has not answered",
    Why.HW_REFUSED: "hardware has refused it with another error",
    Why.NAT_TABLE_MISMATCH: "it is translated, and its packets are looked up where hardware has no translated connections",
    Why.MATCH_REL_INV: "a rule matches on related or invalid, which hardware does not know",
    Why.MASKED_LABEL: "a rule matches on a part of the label, and hardware knows whole ones only",
    Why.ORIG_TUPLE_MATCH: "a rule matches on the original tuple, which hardware does not keep",
    Why.TEARDOWN_FIN: "it has left with a FIN",
    Why.TEARDOWN_RST: "it has left with a RST",
    Why.TEARDOWN_IDLE: "it was idle, and has left",
    Why.TEARDOWN_DYING: "its connection has ended",
    Why.TEARDOWN_OUTDATED: "hardware took it for new though it has been answered, and nobody was about to tell it",
    Why.TEARDOWN_FLUSH: "the flow table was flushed",
}

# What the flow table says of a packet, as a Why; None: it is served, or nobody asked.
OF_OFFLOAD: dict[int, Why | None] = {
    int(code): Why(name) if (name := code.name.removeprefix("NOT_").lower()) in set(Why) else Why.NOT_ASSURED if name == "assured" else None
    for code in Offload
}
_OF_ERROR = {
    errno.EOPNOTSUPP: Why.DRV_UNSUPPORTED, errno.ENOSPC: Why.HW_FULL, errno.ENOMEM: Why.HW_FULL, errno.ETIMEDOUT: Why.HW_SILENT,
}  # fmt: skip


def of_error(error: int) -> Why | None:
    """What an errno of hardware says of the flow that it was about (A8.60); None for none. EEXIST: it is there."""
    return None if error in (0, errno.EEXIST) else _OF_ERROR.get(error, Why.HW_REFUSED)


def page() -> str:
    """docs/offload-reasons.md."""
    rows = "".join(f"| `{code}` | {SENTENCES[code]} |\n" for code in Why)
    return f"# Why a flow is not in hardware\n\n| code | what it says |\n| --- | --- |\n{rows}"
