"""An explained packet, or a connection's life, as lines for people: label and text, stage after stage in the order a packet takes them.

Not here: finding things out (explain, window, dissect). Every line is either what a capture holds or what the engine said, in words.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import numpy as np

from ctcore import spec
from ctcore.model.tcp_window import index_of
from ctcore.reasons import REASONS
from ctcore.spec import DIRS, StateTable
from ctcore.types import Dir, End, Proto, Reason, State, Status, TcpFlag, TcpIndex, TcpState
from datapath import dissect, fields
from datapath.app import Tracking
from datapath.explain import Explained, Life, direction_in
from datapath.tally import HOW, how_of
from datapath.window import Window, window_of

Line = tuple[str, str]  # label and text

WIDEST = 60  # characters of a packet's description up to which the columns behind it stand below one another
ARROWS: dict[int, str] = {Dir.ORIG: "->", Dir.REPLY: "<-"}

# What is accepted and yet renews no timeout, beside ICMP errors and what is ignored (spec/reasons.txt, effects).
NOT_RENEWING = (Reason.R_TCP_SYN_AGAIN, Reason.R_TCP_RST_KILLED)
NO_L4STATE = 255  # of a packet whose protocol has no states, or that has no connection
# Guards beside the state table (spec/tcp.txt), by the reasons with which they answer.
GUARDS: dict[int, str] = {
    Reason.R_TCP_REOPENED: "reopen: the entry that was there is deleted, and the packet starts over with a new one",
    Reason.R_TCP_RESYNC: "resynchronise: this SYN/ACK acknowledges the SYN that was ignored before, so the state becomes that of its handshake",
    Reason.R_TCP_CHALLENGE_ACK: "challenge ACK: answers an ignored SYN, and so does not acknowledge the last FIN",
    Reason.R_TCP_RST_BELOW_MAXACK: "RST validation: its seq is below what the peer acknowledged",
    Reason.R_TCP_RST_CHALLENGED: "RST validation: its seq is not exactly what the peer acknowledged last, so the state is kept",
    Reason.R_TCP_RST_KILLED: "kill: no reply was seen, so the entry is deleted with this packet",
}
# Reasons given before the window check, or (resynchronise) with the window made anew from the SYN that is remembered.
UNCHECKED = (
    Reason.R_TCP_STATE, Reason.R_TCP_IGNORED, Reason.R_TCP_NOT_OPENING, Reason.R_TCP_NOT_LOOSE, Reason.R_TCP_RST_BELOW_MAXACK,
    Reason.R_TCP_CHALLENGE_ACK, Reason.R_TCP_RESYNC,
)  # fmt: skip


def time_text(ns: int) -> str:
    seconds, rest = divmod(ns, 1_000_000_000)
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}.{rest:09d} UTC"
    except (OverflowError, ValueError):
        return f"{ns} ns since 1970"


def packet_lines(it: Explained) -> Iterator[Line]:
    """Everything about one packet."""
    cut = "" if it.frame["caplen"] == it.frame["len"] else f", {it.frame['caplen']} of them captured"
    number = f"#{it.number:,} (frame {it.number + 1:,} in Wireshark)"
    yield "packet", f"{number} of {it.name}, {time_text(int(it.frame['ts']))}, {it.frame['len']} bytes{cut}"
    yield "link", dissect.link_line(it.data, int(it.frame["link"]))
    if it.key["family"] or it.decision["reason"] not in (Reason.R_NOT_IP, Reason.R_FRAME_SHORT):
        yield "ip", dissect.ip_line(it.data[int(it.packet["l3_off"]) :])
    if it.key["family"] and it.l4:
        yield fields.proto_name(it.proto), dissect.l4_line(it.proto, it.l4, int(it.packet["l4_len"]))
    yield from _checks(it)
    if it.quoted is not None:
        yield from _quoted(it)
    elif it.decision["state"] not in (State.NOT_SEEN, State.UNTRACKED) or it.had is not None:
        yield from _lookup(it)
        yield from _protocol(it)
    yield from _result(it)


def detail_lines(tracking: Tracking, data: bytes = b"") -> Iterator[Line]:
    """What --verbose adds: the settings in force, and the packet's bytes."""
    yield "settings", " ".join(f"{name}={value}" for name, value in tracking.settings().items())
    for at in range(0, len(data), 16):
        yield "" if at else "bytes", f"{at:04x}  {data[at : at + 16].hex(' ')}"


def _checks(it: Explained) -> Iterator[Line]:
    """What was found when the packet was parsed."""
    found = REASONS[int(it.packet["reason"]) or int(it.packet["l4_reason"])]
    if found.code != Reason.R_OK:
        yield "checks", f"{found.sentence} ({found.rule})"
    elif len(it.l4) < it.packet["l4_len"]:
        yield "checks", "headers sound; the checksum cannot be verified, for the capture does not hold the whole packet"
    else:
        yield "checks", "headers sound" + ("" if it.tracking.config.checksum else "; checksums are not verified (--checksum 0)")


def tuple_text(key: np.void) -> str:
    """A tuple as its fields in a record are called."""
    ends = fields.endpoints(key.tobytes())
    ports = "".join(f" {name} {ends[name]}" for name in ("sport", "dport", "type", "code", "id", "key") if ends.get(name) is not None)
    return f"{ends['src']} > {ends['dst']}{ports}"


def conn_text(conn: np.void, hz: int) -> str:
    """A connection at a moment, in a few words."""
    proto = int(conn["flow"][Dir.ORIG]["key"]["proto"])
    state = fields.l4state_name(proto, int(conn["tcp" if proto == Proto.PROTO_TCP else "sctp"]["state"]))
    tuple_ = tuple_text(conn["flow"][Dir.ORIG]["key"])
    status = " ".join(fields.status_names(int(conn["status"])))
    left = fields.seconds_text(int(conn["timeout"]), hz)
    return f"conn {conn['flow'][Dir.ORIG]['id']}: {tuple_}, {state + ', ' if state else ''}[{status}], {left} s left"


def _lookup(it: Explained) -> Iterator[Line]:
    hz, zone = it.tracking.config.hz, f" in zone {it.tracking.zone}" if it.tracking.zone else ""
    conn = int(it.decision["conn"])
    if it.had is None:
        yield "lookup", f"no connection has this tuple{zone}" + (f": conn {conn} is made" if conn >= 0 else "")
        return
    yield "lookup", f"{DIRS[it.direction]} direction of {conn_text(it.had, hz)}{zone}"
    if conn >= 0 and conn != it.had["flow"][Dir.ORIG]["id"]:
        gone = "replaced" if it.decision["reason"] == Reason.R_TCP_REOPENED else "expired"
        yield "", f"which is {gone} by now: conn {conn} takes its place"


def _quoted(it: Explained) -> Iterator[Line]:
    """What an ICMP error is about: the packet it quotes, and the connection of that."""
    if it.quoted is None:
        return
    yield "quoted", f"{fields.proto_name(int(it.quoted['proto']))} {tuple_text(it.quoted)}"
    if it.about is None:
        yield "lookup", "no connection has the quoted packet's tuple"
        return
    direction = DIRS[direction_in(it.about, it.quoted)]
    yield "lookup", f"the quoted packet went in the {direction} direction of {conn_text(it.about, it.tracking.config.hz)}"
    if it.decision["state"] == State.RELATED:
        yield "", "this error is related to that connection, whose state and timeout stay as they are"


def _protocol(it: Explained) -> Iterator[Line]:
    """What the protocol's tracker does, where it has states."""
    if it.proto == Proto.PROTO_TCP and REASONS[int(it.packet["l4_reason"])].name == "ok" and it.packet["doff"]:
        yield from _tcp(it)
    elif it.proto == Proto.PROTO_SCTP and it.l4:
        yield from _sctp(it)


def _is_new(it: Explained) -> bool:
    """Whether the packet met no connection, or one that was gone or replaced before it."""
    return it.had is None or (it.decision["conn"] >= 0 and it.decision["conn"] != it.had["flow"][Dir.ORIG]["id"])


def cell_lines(table: StateTable, direction: int, event: int, state: int) -> Iterator[Line]:
    """One cell of a state table, with the reason that stands at it."""
    code = table.cells[direction][event][state]
    yield "table", f"{table.states[state]}, {DIRS[direction]} {table.events[event]} -> {table.name_of(code)}"
    if note := table.notes.get((direction, event, state)):
        yield "", note


def _tcp(it: Explained) -> Iterator[Line]:
    had = None if _is_new(it) else it.had["tcp"]
    direction = Dir.ORIG if had is None else it.direction
    index = index_of(int(it.packet["tcp_flags"]))
    if it.decision["reason"] == Reason.R_TCP_REOPENED:
        yield from cell_lines(spec.tcp(), it.direction, index, int(it.had["tcp"]["state"]))
    else:
        yield from cell_lines(spec.tcp(), direction, index, TcpState.TCP_NONE if had is None else int(had["state"]))
    if guard := GUARDS.get(int(it.decision["reason"])):
        yield "guard", guard
    if index == TcpIndex.TCP_RST and had is not None and had["flags"][1 - direction] & TcpFlag.TF_MAXACK_SET:
        yield "", f"seq {it.packet['seq']}, the peer has acknowledged {had['side'][1 - direction]['maxack']}"
    if it.decision["reason"] not in UNCHECKED:
        yield from window_lines(window_of(it.packet, it.l4, None if had is None else it.had, direction, it.tracking.config), direction)


def window_lines(window: Window, direction: int) -> Iterator[Line]:
    """The window check with its numbers."""
    seq, end, ack, sack = window.numbers
    yield "window", f"seq {seq}, end {end}, ack {ack}" + (f", sack {sack}" if sack != ack else "")
    for role, d, side in (("sender", direction, window.sender), ("receiver", 1 - direction, window.receiver)):
        yield "", f"{role:<8} ({DIRS[d]}): end {side.end}, maxend {side.maxend}, maxwin {side.maxwin}, scale {side.scale}"
    if window.note:
        yield "", window.note
    for one in window.inequalities:
        failure = f"does not hold: {one.failure}" + ("" if window.liberal else f": {one.effect}")
        yield "", f"{one.number:<3} {one.names:<53} {one.numbers}: " + ("holds" if one.holds else failure)
    if window.liberal:
        yield "", f"tracked liberally ({window.liberal}): accepted all the same"


def _sctp(it: Explained) -> Iterator[Line]:
    """Chunk after chunk through the state table."""
    table = spec.sctp()
    state = 0 if _is_new(it) else int(it.had["sctp"]["state"])
    direction = Dir.ORIG if _is_new(it) else it.direction
    for kind in dissect.sctp_chunks(it.l4):
        name = dissect.SCTP_CHUNKS.get(kind, "other").lower()
        event = table.events.index(name if name in table.events else "other")
        yield from cell_lines(table, direction, event, state)
        state = table.cells[direction][event][state]
        if state >= len(table.states):
            return


def _result(it: Explained) -> Iterator[Line]:
    decision, hz = it.decision, it.tracking.config.hz
    reason = REASONS[int(decision["reason"])]
    direction = fields.DIR_NAMES.get(int(decision["dir"]))
    l4state = fields.l4state_name(it.proto, int(decision["l4state"])) if decision["l4state"] != NO_L4STATE else None
    words = [fields.STATE_NAMES[int(decision["state"])], direction, l4state, f"conn {decision['conn']}" if decision["conn"] >= 0 else None]
    yield "result", f"{', '.join(filter(None, words))}; verdict {fields.VERDICT_NAMES[int(decision['verdict'])]}"
    if decision["timeout"] >= 0:
        yield "timeout", f"{fields.seconds_text(int(decision['timeout']), hz)} s left{_why_timeout(it)}"
    for i, change in enumerate(_changes(it)):
        yield "changed" if i == 0 else "", change
    yield "reason", f"{reason.name}: {reason.sentence}" + (f" ({reason.rule})" if reason.rule != "-" else "")


def _why_timeout(it: Explained) -> str:
    """Which setting the time left comes from, if it was this packet that gave it."""
    left, config, reason = int(it.decision["timeout"]), it.tracking.config, REASONS[int(it.decision["reason"])]
    if it.quoted is not None or reason.effect in ("ignored", "invalid") or reason.code in NOT_RENEWING:
        return ", not renewed by this packet"
    names = _timeout_names(it)
    return next((f", from {name}" for name in names if name in spec.timeouts() and config.ticks(name) == left), "")


def _timeout_names(it: Explained) -> list[str]:
    """The sysctls that may have set the timeout, the usual one first."""
    if it.proto in (Proto.PROTO_TCP, Proto.PROTO_SCTP) and it.decision["l4state"] != NO_L4STATE:
        name = "tcp" if it.proto == Proto.PROTO_TCP else "sctp"
        table = spec.tcp() if name == "tcp" else spec.sctp()
        usual = f"{name}_timeout_{table.timeouts[int(it.decision['l4state'])]}"
        return [usual, "tcp_timeout_close", "tcp_timeout_unacknowledged", "tcp_timeout_max_retrans"] if name == "tcp" else [usual]
    name = fields.proto_name(it.proto)
    name = "udp" if name == "udplite" else name
    return [f"{name}_timeout", f"{name}_timeout_stream", "generic_timeout"]


def _changes(it: Explained) -> Iterator[str]:
    """What is different after the packet."""
    if it.conn is None or it.had is None or _is_new(it):
        return
    gained = fields.status_names(int(it.conn["status"]) & ~int(it.had["status"]))
    if gained:
        yield "status: now " + ", ".join(gained)
    if it.proto != Proto.PROTO_TCP:
        return
    a, b = it.had["tcp"], it.conn["tcp"]
    if a["state"] != b["state"]:
        yield f"state: {spec.tcp().states[int(a['state'])]} -> {spec.tcp().states[int(b['state'])]}"
    for d in Dir:
        moved = [f"{n} {a['side'][d][n]} -> {b['side'][d][n]}" for n in ("end", "maxend", "maxwin", "maxack") if a["side"][d][n] != b["side"][d][n]]
        flags = fields.flag_names(int(a["flags"][d]) ^ int(b["flags"][d]))
        moved += [("+ " if int(b["flags"][d]) & bit else "- ") + name for bit, name in fields.FLAG_NAMES.items() if name in flags]
        if moved:
            yield f"{DIRS[d]} side: " + ", ".join(moved)


def life_lines(life: Life, hz: int) -> Iterator[Line]:
    """A connection from its first packet to its end."""
    yield "conn", conn_text(life.conn, hz)
    start = int(life.conn["start"])
    yield "began", time_text(start)
    width = min(max((len(step.what) for step in life.steps), default=0), WIDEST)
    for step in life.steps:
        arrow = ARROWS[step.direction(life.conn)]
        yield f"#{step.number:,}", f"+{(step.ts - start) / 1e9:<11.6f} {arrow} {step.what:<{width}} {_decided(step.decision, step.packet, hz)}"
    yield "end", _end_text(life)


def _end_text(life: Life) -> str:
    """How it left the table, in the summary's word; where the records have another for it, or there is a state, that as well."""
    proto = int(life.conn["flow"][Dir.ORIG]["key"]["proto"])
    state = fields.l4state_name(proto, int(life.conn["tcp" if proto == Proto.PROTO_TCP else "sctp"]["state"]))
    within = f" in {state}" if state else ""
    if not life.end:
        return f"alive at the end of the capture{within and ',' + within}"
    end, how = fields.END_NAMES[End(life.end)], HOW[how_of(np.asarray(life.conn).reshape(1), np.array([life.end]))[0]]
    words = f"{how} ({end}{within})" if how != end else f"{how}{within}"
    return f"{words}, {(life.stop - int(life.conn['start'])) / 1e9:.3f} s after its first packet"


def _decided(decision: np.void, packet: np.void, hz: int) -> str:
    proto = int(packet["key"]["proto"])
    state = fields.l4state_name(proto, int(decision["l4state"])) or ""
    left = f"{fields.seconds_text(int(decision['timeout']), hz)} s" if decision["timeout"] >= 0 else ""
    gained = "assured" if int(decision["status"]) & Status.ASSURED else ""
    reason = REASONS[int(decision["reason"])]
    text = f"{fields.STATE_NAMES[int(decision['state'])]:<12} {state:<12} {left:>9} {gained:<8}"
    return text.rstrip() if reason.name == "ok" else f"{text} {reason.sentence}"
