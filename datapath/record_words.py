"""What the fields of records mean, one sentence each, and the tables that are made of them.

Not here: the records themselves (fields, ruled_run), their columns in files (export).
Invariant: every field of a record has its words, in the record's order, and there are words for no other (pcap_tests compares).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ctcore.types import Offload
from datapath import fields
from datapath.export import COLUMNS
from datapath.offload_words import OFFLOAD_WORDS

Words = dict[str, str]
TYPES = {
    "str": "text", "list": "list of texts", "bool": "true, false", "ns": "number, ns since 1970", "f8": "number, s", "u1": "number", "u2": "number",
    "u4": "number", "u8": "number",
}  # fmt: skip


def _any(names: Iterable[str | None]) -> str:
    return ", ".join(f"`{name}`" for name in names if name is not None)


PACKET: Words = {
    "i": "number of the packet in its capture, from 0",
    "file": "the capture's name; only where several are replayed",
    "ts": "when it was captured",
    "len": "bytes on the wire",
    "state": f"{_any(fields.STATE_NAMES.values())}. With rules: what the last `ct` action that tracked it said, whatever a `ct clear` hides "
    "from later rules, and not-seen if there was none",
    "dir": f"of its connection: {_any(fields.DIR_NAMES.values())}; null without a connection",
    "status": f"its connection's status bits behind the packet: {_any(fields.STATUS_NAMES.values())}",
    "zone": "where it was tracked",
    "mark": "its connection's mark",
    "conn": "its connection's number; null if it has none that is confirmed",
    "proto": "name of its protocol, or its number as text; null if it is no IP packet",
    "l4state": "its connection's protocol state behind the packet ([states.md](states.md)); null where the protocol has none",
    "timeout": "how long its connection lives if nothing more comes; null without one",
    "verdict": f"{_any(fields.VERDICT_NAMES.values())} (a fragment that waits for the others)",
    "reason": "why, by its code ([reasons.md](reasons.md))",
    "offload": "what the flow table has of it, by its code (below); null where it was not asked: without rules, with --no-flowtable, or of a packet "
    "without a connection",
    "ends": "src and dst, and what its protocol has for ports (below)",
    "out": "src, dst and ports, id or key that it leaves with; null if it is not translated",
    "ct_reason": "with rules: why its last `ct` action that tracked it decided so, which `reason` does not tell where rules drop the packet; null "
    "if there was none",
    "to": "with rules: the device where it ended; null if it did not pass",
    "mirrored": "with rules: the devices at which a copy of it left (`mirred ... mirror`), whatever became of the packet itself",
    "rule": "with rules: the last one that matched, FILE:LINE, which may have been a copy; null if none did",
}
# Of connections and events; only with --nic.
BEHIND_NIC: Words = {
    "offload": "with --nic: `hardware`, `not:` and why its packets are not hardware's, or not for long any more ([offload-reasons.md]"
    "(offload-reasons.md)); null: the flow table has never had it",
    "total": "with --nic: `packets` and `bytes` of both directions together, as far as anybody was told; null each with --acct 0",
    "hardware": "with --nic, of one that was in hardware: `packets` and `bytes` that hardware has told, which are in the counters above (null: it "
    "has told nothing); `split`, whether it tells directions apart; `unheard_packets` and `unheard_bytes`, that it has counted and nobody was told "
    "(only a simulation knows how many). Else null",
}
CONN: Words = {
    "conn": "its number, in the order in which connections began",
    "zone": "where it is tracked",
    "proto": "name of its protocol, or its number as text",
    "original": "the tuple that the first packet came with (below), `packets` and `bytes`; null each with --acct 0, and where hardware has counted "
    "both directions together, so that nobody knows this one's",
    "reply": "the same of what is expected in return",
    "l4state": "protocol state; null where the protocol has none",
    "status": f"ctnetlink's status bits: {_any(fields.STATUS_NAMES.values())}",
    "timeout": "what was left at its end, or is left at the end of the replay",
    "mark": "its mark",
    "labels": "its label of 128 bits, in hexadecimal",
    "helper": "the name of the helper that reads it, or null",
    "master": "number of the connection that announced it, or null",
    "start": "time of its first packet",
    "stop": "when it ended; null if it has not",
    "end": f"{_any(fields.END_NAMES.values())}",
    "tcp": "of TCP only: `original` and `reply`, with what the window check knows of that side (`end`, `maxend`, `maxwin`, `maxack`, "
    "`scale`, `flags`), then `last_dir`, `last_index` (the last packet that was remembered, and by which event) and `retrans`",
    **BEHIND_NIC,
}
EVENT: Words = {
    "event": f"{_any(fields.EVENT_NAMES.values())}",
    "ts": "when it happened",
    "changes": f"what it tells of: {_any(fields.CHANGE_NAMES.values())}; with --nic: `offload` (it has come into the flow table, or is taken out "
    "of it) and `hw-offload` (hardware has it, or has it no more): which of both, `status` says, and why, `offload`",
    **CONN,
    "evicted_for": "of a connection that had to make way: `why` "
    f"({_any(fields.WHY_NAMES.values())}), and zone, proto, src, dst and ports of the packet that needed its place",
}
RULE: Words = {
    "rule": "where it is written, FILE:LINE",
    "device": "the device that it hangs at; null if it is in a shared block",
    "direction": "`ingress`, `egress`; null likewise",
    "block": "number of the shared block, or null",
    "chain": "its chain",
    "prio": "its priority",
    "handle": "its handle",
    "tc": "the rule itself, as a line of tc",
    "skip_sw": "not to be carried out in software; such a rule matches nothing without --nic",
    "skip_hw": "not to be carried out by a NIC",
    "in_hw": "whether a NIC carries it out; without --nic false, which tc calls not_in_hw",
    "packets": "how often it has matched",
    "bytes": "bytes on the wire of the packets then",
    "drops": "how many packets it has dropped: by what follows its actions, by a policer of its own, or because one of its actions could not be done",
    "overlimits": "how often a policer of it had no token, whatever became of the packet",
    "last": "when it matched last; null if it never has",
}
ENDS: Words = {
    "src": "source address; null where there is none",
    "dst": "destination address; null likewise",
    "sport": "source port of TCP, UDP, UDP-Lite and SCTP; null of what has no ports",
    "dport": "destination port; null likewise",
    "type": "of ICMP and ICMPv6, in place of ports",
    "code": "of ICMP and ICMPv6",
    "id": "of ICMP and ICMPv6: of what is asked and answered; null of the others",
    "key": "of GRE, in place of ports: the destination's key (call id)",
}
RECORDS: dict[str, Words] = {"packets": PACKET, "conns": CONN, "events": EVENT, "rules": RULE}


def type_of(kind: str, name: str) -> str:
    """What a field of a kind of records holds."""
    if name in ("changes", "status", "mirrored"):
        return TYPES["list"]
    return TYPES.get(COLUMNS[kind].get(name, ""), "object")


def record_rows(kind: str) -> list[tuple[str, str, str]]:
    """The table of a kind of records: field, what it holds, what it means."""
    return [("addresses, ports", "", said) if name == "ends" else (f"`{name}`", type_of(kind, name), said) for name, said in RECORDS[kind].items()]


def end_rows() -> list[tuple[str, str, str]]:
    """The table of what is said of addresses and ports."""
    return [(f"`{name}`", TYPES[COLUMNS["packets"][name]], said) for name, said in ENDS.items()]


def offload_rows() -> list[tuple[str, str]]:
    """Every code of `offload` that is not null, with its sentence."""
    named: list[tuple[Any, str | None]] = [(Offload(code), name) for code, name in fields.OFFLOAD_NAMES.items()]
    return [(name, OFFLOAD_WORDS[code]) for code, name in sorted(named, key=lambda one: int(one[0])) if name is not None]
