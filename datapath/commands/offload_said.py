"""Codes of offloading in words: a sentence, and where the contract has it; a flow's tuple; what an audit found.

Not here: who says which code of what (offload_series, offload_why, offload_live).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datapath import fields
from datapath.app import end_text
from offload.contract.why import SENTENCES, Why, of_error
from offload.simnic.kept import Kept
from offload.simnic.results import WHY
from offload.simnic.results import Why as Miss

NIC = "nic:"  # before the code of what only the NIC says
# Codes that neither the contract nor the NIC has: of packets that come from the host and meet no rules of the NIC, and that are of no connection.
OTHERS = {
    "egress": "it went out, and met no rules of a NIC on its way",
    "invalid": "conntrack calls it invalid, so that it is of no connection (bad TCP or UDP checksums may be a NIC's that captured: --checksum 0)",
}
# Where the contract says it.
ITEMS = {
    Why.PROTO: "A2.13", Why.TCP_STATE: "A2.7", Why.NOT_ASSURED: "A2.7, A2.10", Why.UNCONFIRMED: "A2.10", Why.HELPER: "A2.14", Why.SEQADJ: "A2.14",
    Why.GRE_NAT: "A2.12", Why.GRE_KEY: "A2.12", Why.DYING: "A2.16", Why.TUPLE_BUSY: "A2.18", Why.PENDING: "A3.21", Why.FRAGMENT: "A5.37",
    Why.IP_OPTIONS: "A5.37", Why.TTL: "A5.37", Why.TRUNCATED: "A5.37", Why.DRV_UNSUPPORTED: "A8.60", Why.HW_FULL: "A8.60", Why.HW_EVICTED: "A7.59",
    Why.HW_SILENT: "A3.22", Why.HW_REFUSED: "A8.60", Why.NAT_TABLE_MISMATCH: "A9.66", Why.MATCH_REL_INV: "A9.69", Why.MASKED_LABEL: "A9.69",
    Why.ORIG_TUPLE_MATCH: "A9.69", Why.TEARDOWN_FIN: "A5.40", Why.TEARDOWN_RST: "A5.40", Why.TEARDOWN_IDLE: "A6.44", Why.TEARDOWN_DYING: "A6.44",
    Why.TEARDOWN_OUTDATED: "A6.44", Why.TEARDOWN_FLUSH: "A7.59",
}  # fmt: skip
assert set(ITEMS) == set(Why)
# What the NIC says and the contract has a code for: of a miss, or, where the rule is in software only, of why it is.
OF_MISS = {Miss.CT_TABLE: Why.NAT_TABLE_MISMATCH}
OF_KEPT = {Kept.REL_INV: Why.MATCH_REL_INV, Kept.MASKED_LABEL: Why.MASKED_LABEL}


def missed(why: int, kept: int = Kept.NO) -> str:
    """The code of a packet that the NIC has given to software. kept: why the rule is in software that it has met."""
    said = OF_KEPT.get(Kept(kept)) if why == Miss.IN_SOFTWARE else OF_MISS.get(Miss(why))
    return NIC + Miss(why).name.lower() if said is None else str(said)


def says(code: str) -> str:
    """A sentence for a code."""
    if code in OTHERS:
        return OTHERS[code]
    return WHY[Miss[code.removeprefix(NIC).upper()]] if code.startswith(NIC) else SENTENCES[Why(code)]


def cited(code: str) -> str:
    """A code with its sentence, and where the contract has it."""
    item = ITEMS.get(Why(code)) if code in set(Why) else None
    return f"{code}: {says(code)}" + (f" ({item})" if item else "")


def lacking(known: Mapping[str, Any], why: int) -> Why | None:
    """Why a packet missed the CT tables though its connection is in hardware: with one direction only, for the other one is on its way, or was
    refused. known: what Mirror.why() says of it; why: a Why of the NIC. None: it was for something else."""
    if why != Miss.CT_MISS or None not in known["held"]:
        return None
    return Why.PENDING if known["job"] == "add" else of_error(known["error"])


def described(key: Any, *, turned: bool) -> str:
    """tcp 10.0.0.1:40000 > 10.0.0.2:80, in the direction of the connection."""
    ends = fields.endpoints(key.tobytes())
    proto = fields.proto_name(int(key["proto"]))
    left, right = end_text(ends, "src", "sport"), end_text(ends, "dst", "dport")
    return f"{proto} {right} > {left}" if turned else f"{proto} {left} > {right}"
