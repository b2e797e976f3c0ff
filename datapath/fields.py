"""Packet, connection and event records: what scripts read, as dicts in the order of their fields.

The one place that knows the engine's numbers by their names in a record. A batch of arrays goes in, dicts come out; what does not change from
packet to packet of a flow (addresses, ports) is made once for each key.
Not here: files and their formats (export), text for people (report, explain).
Invariants: fields and their order are the contract scripts rely on; the same arrays give the same records.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache, lru_cache
from socket import AF_INET, AF_INET6, inet_ntop
from struct import Struct
from typing import Any

import numpy as np

from ctcore import spec
from ctcore.nat_rules import HELPERS
from ctcore.reasons import NAMES as REASON_NAMES
from ctcore.types import (
    DECISION_DTYPE,
    KEY_DTYPE,
    Change,
    Dir,
    End,
    EventKind,
    EvictedFor,
    Offload,
    Proto,
    Reason,
    RewriteFlag,
    State,
    Status,
    TcpFlag,
    Verdict,
)

Record = dict[str, Any]

STATE_NAMES: dict[int, str] = {
    State.NOT_SEEN: "not-seen", State.NEW: "new", State.ESTABLISHED: "established", State.RELATED: "related", State.INVALID: "invalid",
    State.UNTRACKED: "untracked",
}  # fmt: skip
VERDICT_NAMES: dict[int, str | None] = {Verdict.PENDING: None, Verdict.ACCEPT: "accept", Verdict.DROP: "drop", Verdict.HELD: "held"}
# "not:" and a reason code of offload (docs/records.md; words: offload_words).
OFFLOAD_NAMES: dict[int, str | None] = {
    each: "not:" + {"NOT_ASSURED": "not_assured"}.get(name, name.removeprefix("NOT_").lower())
    for name, each in Offload.__members__.items()
    if name.startswith("NOT_")
}
OFFLOAD_NAMES |= {Offload.OFFLOAD_NONE: None, Offload.OFFLOAD_SOFTWARE: "software", Offload.OFFLOAD_HARDWARE: "hardware"}
DIR_NAMES: dict[int, str] = {Dir.ORIG: "original", Dir.REPLY: "reply"}
END_NAMES: dict[int, str] = {
    End.ALIVE: "alive", End.END_TIMEOUT: "timeout", End.END_RESET: "reset", End.END_EVICTED: "evicted", End.END_REPLACED: "replaced",
    End.END_FLUSHED: "flushed",
}  # fmt: skip
WHY_NAMES: dict[int, str] = {each: each.name.removeprefix("FOR_").lower() for each in EvictedFor}
EVENT_NAMES: dict[int, str] = {EventKind.EVENT_NEW: "new", EventKind.EVENT_UPDATE: "update", EventKind.EVENT_DESTROY: "destroy"}
# ctnetlink's names; a tuple changed by NAT is called as users call it.
STATUS_NAMES: dict[int, str] = {
    bit: {"SRC_NAT": "snat", "DST_NAT": "dnat", "SRC_NAT_DONE": "snat-done", "DST_NAT_DONE": "dnat-done"}.get(name, name.lower().replace("_", "-"))
    for name, bit in Status.__members__.items()
}
FLAG_NAMES: dict[int, str] = {bit: name.removeprefix("TF_").lower().replace("_", "-") for name, bit in TcpFlag.__members__.items()}
CHANGE_NAMES: dict[int, str] = {bit: name.removeprefix("CHANGE_").lower() for name, bit in Change.__members__.items()}
# Protocols that have a usual name, from IANA's list; the others go by their number.
PROTO_NAMES: dict[int, str] = {
    Proto.PROTO_ICMP: "icmp", 2: "igmp", 4: "ipip", Proto.PROTO_TCP: "tcp", 8: "egp", Proto.PROTO_UDP: "udp", 33: "dccp", 41: "ipv6", 46: "rsvp",
    Proto.PROTO_GRE: "gre", 50: "esp", 51: "ah", Proto.PROTO_ICMPV6: "icmpv6", 88: "eigrp", 89: "ospf", 97: "etherip", 103: "pim", 108: "ipcomp",
    112: "vrrp", 115: "l2tp", Proto.PROTO_SCTP: "sctp", Proto.PROTO_UDPLITE: "udplite", 137: "mpls",
}  # fmt: skip
WITH_PORTS = {Proto.PROTO_TCP, Proto.PROTO_UDP, Proto.PROTO_SCTP, Proto.PROTO_UDPLITE}
WITH_TYPE = {Proto.PROTO_ICMP, Proto.PROTO_ICMPV6}
# ICMP types that ask and answer, and so have an identifier; in the others there is something else at its place.
WITH_ID = {(int(proto), kind) for proto, kinds in spec.ICMP_INVERSE.items() for kind in kinds}
# Reasons given before there was a tuple: what the key holds of ports means nothing then.
WITHOUT_PORTS = frozenset(range(Reason.R_NOT_IP, Reason.R_TUPLE_SHORT + 1))
KEY = Struct("=16s16sHHHBB")
CONN = slice(0, 8)  # where a decision names its connection; the rest says how the packet was judged
assert KEY.size == KEY_DTYPE.itemsize
assert DECISION_DTYPE.fields and DECISION_DTYPE.fields["conn"][1] == CONN.start and DECISION_DTYPE["conn"].itemsize == CONN.stop


def _bits(value: int, names: dict[int, str]) -> tuple[str, ...]:
    return tuple(name for bit, name in names.items() if value & bit)


@cache
def status_names(status: int) -> tuple[str, ...]:
    """The status bits by ctnetlink's names, lowest bit first."""
    return _bits(status, STATUS_NAMES)


@cache
def flag_names(flags: int) -> tuple[str, ...]:
    """The flags of one side of a TCP connection."""
    return _bits(flags, FLAG_NAMES)


@cache
def change_names(changes: int) -> tuple[str, ...]:
    """What an update event is about."""
    return _bits(changes, CHANGE_NAMES)


@cache
def proto_name(proto: int) -> str:
    return PROTO_NAMES.get(proto, str(proto))


@cache
def l4state_name(proto: int, state: int) -> str | None:
    """The protocol state's name; None where the protocol has none (or the packet has no connection)."""
    table = spec.tcp() if proto == Proto.PROTO_TCP else spec.sctp() if proto == Proto.PROTO_SCTP else None
    return table.states[state] if table and state < len(table.states) else None


def seconds_text(ticks: int, hz: int) -> str:
    """Ticks as seconds, with as many decimals as there are."""
    return f"{ticks / hz:.3f}".rstrip("0").rstrip(".")


def address(raw: bytes, family: int) -> str:
    return inet_ntop(AF_INET, raw[:4]) if family == 4 else inet_ntop(AF_INET6, raw)


@lru_cache(maxsize=1 << 17)
def endpoints(key: bytes) -> Record:
    """A key (KEY_DTYPE as bytes) as the fields of a record. Shared between records: not to be changed."""
    src, dst, sport, dport, _, proto, family = KEY.unpack(key)
    if family == 0:
        return {"src": None, "dst": None, "sport": None, "dport": None}
    ends = {"src": address(src, family), "dst": address(dst, family)}
    if proto in WITH_PORTS:
        return {**ends, "sport": sport, "dport": dport}
    if proto in WITH_TYPE:
        return {**ends, "type": dport >> 8, "code": dport & 255, "id": sport if (proto, dport >> 8) in WITH_ID else None}
    if proto == Proto.PROTO_GRE:
        return {**ends, "key": dport}
    return {**ends, "sport": None, "dport": None}


@lru_cache(maxsize=1 << 12)
def _addresses(key: bytes) -> Record:
    """Endpoints of a packet that has no tuple."""
    src, dst, _, _, _, _, family = KEY.unpack(key)
    ends = [address(src, family), address(dst, family)] if family else [None, None]
    return {"src": ends[0], "dst": ends[1], "sport": None, "dport": None}


def split(rows: np.ndarray, start: int = 0) -> list[bytes]:
    """Rows of a structured array as bytes objects, each from its byte `start` on. Keys cut so are what endpoints() takes."""
    raw, size = np.ascontiguousarray(rows).tobytes(), rows.dtype.itemsize
    return [raw[at + start : at + size] for at in range(0, len(raw), size)]


def packet_records(frames: np.ndarray, decisions: np.ndarray, keys: np.ndarray, first: int, hz: int, file: str | None = None) -> Iterator[Record]:
    """One record for each packet.

    frames: FRAME_DTYPE[n]; decisions: DECISION_DTYPE[n]; keys: KEY_DTYPE[n]; first: number of the first packet in its capture; hz: ticks a second;
    file: the capture's name, if the records of several go to one file.
    """
    conns, ts, lengths = decisions["conn"].tolist(), frames["ts"].tolist(), frames["len"].tolist()
    head: Record = {"i": 0} if file is None else {"i": 0, "file": file}
    rows = zip(range(first, first + len(frames)), split(keys), split(decisions, CONN.stop), conns, ts, lengths, strict=True)
    for i, key, rest, conn, time, length in rows:
        state, protocol, bare = _judgement(rest, hz)
        ends = _addresses(key) if bare else endpoints(key)
        yield {**head, "i": i, "ts": time, "len": length, **state, "conn": conn if conn >= 0 else None, **protocol, **ends, "out": None}


def translated(records: Iterable[Record], keys: np.ndarray, rewrites: np.ndarray | None) -> Iterator[Record]:
    """Packet records with `out` filled in where the packet's own header is translated: what it leaves with.

    records: of the packets of keys, KEY_DTYPE[n]; rewrites: REWRITE_DTYPE[n], None where nothing is translated. `out` has what there is of src, dst,
    sport, dport, id and key.
    """
    out = {} if rewrites is None else dict(outs(keys, rewrites))
    return ({**record, "out": out[i]} if i in out else record for i, record in enumerate(records)) if out else iter(records)


OUTER = RewriteFlag.REWRITE_SRC | RewriteFlag.REWRITE_DST
INNER = RewriteFlag.REWRITE_INNER_SRC | RewriteFlag.REWRITE_INNER_DST
OUT_NAMES = ("src", "dst", "sport", "dport", "id", "key")
ECHO6 = (128, 129)  # the ICMPv6 types whose id is translated


def outs(keys: np.ndarray, rewrites: np.ndarray) -> Iterator[tuple[int, Record]]:
    """(row, what the packet leaves with), for each row whose packet's own header is translated."""
    for row in np.flatnonzero(rewrites["flags"] & OUTER).tolist():
        key, told = keys[row].copy(), rewrites[row]
        flags = int(told["flags"])
        if not flags & INNER:  # of an ICMP error, `to` says the ports of the packet it quotes
            silent = key["proto"] == Proto.PROTO_ICMPV6 and key["dport"] >> 8 not in ECHO6
            key["sport"] = key["sport"] if silent else told["to"]["sport"]
            key["dport"] = key["dport"] if key["proto"] in WITH_TYPE else told["to"]["dport"]
        key["src"] = told["to"]["src"] if flags & RewriteFlag.REWRITE_SRC else key["src"]
        key["dst"] = told["to"]["dst"] if flags & RewriteFlag.REWRITE_DST else key["dst"]
        ends = endpoints(key.tobytes())
        yield row, {name: ends[name] for name in OUT_NAMES if name in ends}


@lru_cache(maxsize=1 << 14)
def _judgement(rest: bytes, hz: int) -> tuple[Record, Record, bool]:
    """A decision but for its connection, as bytes: the fields of its record before and after `conn`, and whether the key has no ports.

    Most packets of a capture are judged in one of a few ways, so nearly all of their records are put together from these.
    """
    decision = np.frombuffer(bytes(CONN.stop) + rest, DECISION_DTYPE)[0]
    names = ("state", "dir", "status", "zone", "mark", "proto", "l4state", "timeout", "verdict", "reason", "family", "offload")
    state, direction, status, zone, mark, proto, l4state, timeout, verdict, reason, family, offload = (int(decision[name]) for name in names)
    before = {"state": STATE_NAMES[state], "dir": DIR_NAMES.get(direction), "status": status_names(status), "zone": zone, "mark": mark}
    after = {
        "proto": proto_name(proto) if family else None, "l4state": l4state_name(proto, l4state),
        "timeout": timeout / hz if timeout >= 0 else None, "verdict": VERDICT_NAMES[verdict], "reason": REASON_NAMES[reason],
        "offload": OFFLOAD_NAMES[offload],
    }  # fmt: skip
    return before, after, reason in WITHOUT_PORTS


def conn_records(conns: np.ndarray, hz: int, acct: bool, ends: np.ndarray | None = None, stops: np.ndarray | None = None) -> Iterator[Record]:
    """One record for each connection.

    conns: CONN_DTYPE[n]; ends: End[n] and stops: ns[n] of connections that are no more, both None for live ones; acct: whether they were counted.
    """
    names = [END_NAMES[End.ALIVE]] * len(conns) if ends is None else [END_NAMES[end] for end in ends.tolist()]
    times = [None] * len(conns) if stops is None else stops.tolist()
    flow, keys = conns["flow"], split(conns["flow"]["key"].reshape(-1))
    columns = (
        flow["id"][:, 0], flow["key"]["zone"].max(axis=1), flow["key"]["proto"][:, 0], flow["packets"], flow["bytes"], conns["tcp"]["state"],
        conns["sctp"]["state"], conns["status"], conns["timeout"], conns["mark"], conns["label"], conns["helper"], conns["master"], conns["start"],
    )  # fmt: skip
    rows = zip(keys[::2], keys[1::2], names, times, _tcp(conns["tcp"]), *(column.tolist() for column in columns), strict=True)
    for original, reply, end, stop, tcp, conn, zone, proto, packets, size, tcp_state, sctp_state, status, timeout, mark, *attached, start in rows:
        label, helper, master = attached
        if not acct:
            packets = size = (None, None)
        yield {
            "conn": conn, "zone": zone, "proto": proto_name(proto),
            "original": {**endpoints(original), "packets": packets[0], "bytes": size[0]},
            "reply": {**endpoints(reply), "packets": packets[1], "bytes": size[1]},
            "l4state": l4state_name(proto, tcp_state if proto == Proto.PROTO_TCP else sctp_state), "status": status_names(status),
            "timeout": timeout / hz, "mark": mark, "labels": hex(label[1] << 64 | label[0]), "helper": HELPERS[helper - 1] if helper else None,
            "master": master if master >= 0 else None, "start": start, "stop": stop, "end": end,
            "tcp": tcp if proto == Proto.PROTO_TCP else None,
        }  # fmt: skip


def event_records(events: np.ndarray, hz: int, acct: bool, evictions: np.ndarray | None = None) -> Iterator[Record]:
    """One record for each event: what happened, when, what changed, then the connection's record as it was then, and for whom it was evicted.

    events: EVENT_DTYPE[n]; evictions: EVICTION_DTYPE[k] of the same time.
    """
    newcomers = dict(_newcomers(evictions)) if evictions is not None else {}
    destroyed = events["kind"] == EventKind.EVENT_DESTROY
    conns = events["conn"].copy()
    conns["timeout"] = events["timeout"]
    stops = np.where(destroyed, events["time"], -1)
    rows = zip(events["kind"].tolist(), events["time"].tolist(), events["changes"].tolist(), strict=True)
    for (kind, time, changes), conn in zip(rows, conn_records(conns, hz, acct, events["end"], stops), strict=True):
        if kind != EventKind.EVENT_DESTROY:
            conn["stop"] = None
        record = {"event": EVENT_NAMES[kind], "ts": time, "changes": change_names(changes), **conn}
        if kind == EventKind.EVENT_DESTROY and conn["conn"] in newcomers:
            record["evicted_for"] = newcomers[conn["conn"]]
        yield record


def _newcomers(evictions: np.ndarray) -> Iterator[tuple[int, Record]]:
    """Of each connection that was evicted, the packet that needed its place."""
    rows = zip(evictions["conn"].tolist(), evictions["why"].tolist(), evictions["newcomer"]["zone"].tolist(), evictions["newcomer"]["proto"].tolist(),
               split(evictions["newcomer"]), strict=True)  # fmt: skip
    for conn, why, zone, proto, key in rows:
        yield conn, {"why": WHY_NAMES[why], "zone": zone, "proto": proto_name(proto), **endpoints(key)}


def _tcp(tcp: np.ndarray) -> Iterator[Record]:
    """What the window check knows of both sides, and the last packet it remembers. tcp: TCP_DTYPE[n]; nonsense for what is not TCP."""
    names = ("end", "maxend", "maxwin", "maxack")
    numbers = [tcp["side"][name].tolist() for name in names]
    others = (tcp["scale"], tcp["flags"], tcp["last_dir"], tcp["last_index"], tcp["retrans"])
    for *side, scale, flags, last_dir, last_index, retrans in zip(*numbers, *(column.tolist() for column in others), strict=True):
        sides = [
            {**{name: value[d] for name, value in zip(names, side, strict=True)}, "scale": scale[d], "flags": flag_names(flags[d])}
            for d in (Dir.ORIG, Dir.REPLY)
        ]
        index = spec.TCP_EVENTS[last_index] if last_index < len(spec.TCP_EVENTS) else None
        yield {"original": sides[0], "reply": sides[1], "last_dir": DIR_NAMES.get(last_dir), "last_index": index, "retrans": retrans}


def destroyed(events: np.ndarray) -> np.ndarray:
    """The destroy events among `events`, their connections with the time that was left."""
    chosen = events[events["kind"] == EventKind.EVENT_DESTROY]
    chosen["conn"]["timeout"] = chosen["timeout"]
    return chosen
