"""An explained packet, or a connection's life, as lines for people: label and text, stage after stage in the order a packet takes them.

Not here: finding things out (explain, window, dissect). Every line is either what a capture holds or what the engine said, in words.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import numpy as np

from ctcore.hashing import key_hash
from ctcore.model.l4 import inner_fault, quote_at
from ctcore.model.protocols import ask
from ctcore.reasons import REASONS
from ctcore.spec import DIRS
from ctcore.types import Dir, End, Proto, Reason, State, Status, Verdict
from datapath import dissect, fields
from datapath.announced import helper_lines, zone_limit_text
from datapath.app import Tracking
from datapath.explain import Explained, Life, direction_in, inverse_of
from datapath.stages import Line, changes_of, protocol_lines
from datapath.sums import check_lines
from datapath.tally import HOW, how_of
from datapath.translation import nat_lines

# What is wrong with a header that was there to be looked at, though nothing of it was believed.
HEADERS_BROKEN = (Reason.R_IP_VERSION, Reason.R_IP_HEADER)
SHOWN = 5  # connections named one by one
MOST_SHOWN = 16  # fragments named one by one
EVICTION_RANGE = 8  # of the kernel's buckets, that early drop looks at
WIDEST = 60  # characters of a packet's description up to which the columns behind it stand below one another
ARROWS: dict[int, str] = {Dir.ORIG: "->", Dir.REPLY: "<-"}

NO_L4STATE = 255  # of a packet whose protocol has no states, or that has no connection


def time_text(ns: int) -> str:
    seconds, rest = divmod(ns, 1_000_000_000)
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}.{rest:09d} UTC"
    except (OverflowError, ValueError):
        return f"{ns} ns since 1970"


def packet_line(name: str, number: int, frame: np.void) -> str:
    """Which packet it is."""
    cut = "" if frame["caplen"] == frame["len"] else f", {frame['caplen']} of them captured"
    return f"#{number:,} (frame {number + 1:,} in Wireshark) of {name}, {time_text(int(frame['ts']))}, {frame['len']} bytes{cut}"


def packet_lines(it: Explained) -> Iterator[Line]:
    """Everything about one packet."""
    yield "packet", packet_line(it.name, it.number, it.frame)
    yield "link", dissect.link_line(it.data, int(it.frame["link"]))
    yield from _headers(it)
    yield from check_lines(it)
    yield from judged_lines(it)
    yield from nat_lines(it)
    yield from helper_lines(it)
    yield from _result(it)


def judged_lines(it: Explained) -> Iterator[Line]:
    """The connection it met or quotes, and what its protocol's tracker compared."""
    if it.error:
        yield from _quoted(it)
    elif it.packet["verdict"] == Verdict.PENDING and it.decision["state"] != State.UNTRACKED:
        yield from _lookup(it)
        yield from _room(it)
        yield from protocol_lines(it)


def _headers(it: Explained) -> Iterator[Line]:
    """The IP header and the transport header, as far as there are any in the frame and in the capture."""
    ip = it.data[int(it.packet["l3_off"]) :]
    if not it.key["family"] and it.decision["reason"] not in HEADERS_BROKEN:
        return
    yield "ip", dissect.ip_line(ip)
    if not it.key["family"]:
        return
    yield from _fragment(it)
    if it.datagram:
        ip = it.datagram
        yield "whole", dissect.ip_line(ip)
    name, offset = fields.proto_name(it.proto), dissect.fragment_offset(ip)
    if offset:
        yield name, dissect.later_fragment_line(offset)
    elif it.l4 and (it.decision["reason"] != Reason.R_SNAPPED or dissect.has_header(it.proto, it.l4)):
        yield name, dissect.l4_line(it.proto, it.l4, int(it.packet["l4_len"]))


def _fragment(it: Explained) -> Iterator[Line]:
    """Which others a fragment makes a datagram with."""
    if it.datagram and len(it.siblings) > 1:
        yield "", f"the last to come of {len(it.siblings)} fragments of a datagram: {_numbers(it)}"
    elif it.datagram:
        yield "", "an atomic fragment (RFC 6946): it is all of its datagram, which is tracked without the fragment header"
    elif it.decision["reason"] == Reason.R_FRAGMENT and it.siblings:
        yield "", f"one of {len(it.siblings)} fragments of a datagram: {_numbers(it)}; #{max(it.siblings):,} completes it and gets the decision"
    elif it.decision["reason"] == Reason.R_FRAGMENT:
        yield "", "no packet of this capture completes its datagram"


def _numbers(it: Explained) -> str:
    """The fragments by their numbers, in the order of their offsets, as far as they are shown."""
    earlier = sum(number < 0 for number in it.siblings)
    shown = [f"#{number:,}" for number in it.siblings if number >= 0]
    more = [f"and {len(shown) - MOST_SHOWN:,} more"] if len(shown) > MOST_SHOWN else []
    return ", ".join(shown[:MOST_SHOWN] + more + ([f"{earlier:,} in captures before this one"] if earlier else []))


def detail_lines(tracking: Tracking, data: bytes = b"") -> Iterator[Line]:
    """What --verbose adds: the settings in force, and the packet's bytes."""
    yield "settings", " ".join(f"{name}={value}" for name, value in tracking.settings().items())
    for at in range(0, len(data), 16):
        yield "" if at else "bytes", f"{at:04x}  {data[at : at + 16].hex(' ')}"


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
    if int(conn["status"]) & (Status.SRC_NAT | Status.DST_NAT):
        tuple_ += f", answered by {tuple_text(conn['flow'][Dir.REPLY]['key'])}"
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


def _room(it: Explained) -> Iterator[Line]:
    """What a full table meant for a new connection."""
    config = it.tracking.config
    if it.decision["reason"] == Reason.R_ZONE_LIMIT:
        yield "zone", zone_limit_text(config, it.tracking.zone, it.zones)
    evicted = it.gone["conn"][it.gone["end"] == End.END_EVICTED]
    evicted = evicted[np.argsort(evicted["flow"]["id"][:, Dir.ORIG])]
    if not len(evicted) and it.decision["reason"] != Reason.R_TABLE_FULL:
        return
    if it.count < config.capacity:
        yield "table", f"{it.count:,} of {config.capacity:,} connections, but no room where the hashes of these tuples belong"
        return
    first = key_hash(it.key.tobytes(), config.seed) * config.buckets >> 32
    searched = f"bucket {first:,} and the next {EVICTION_RANGE - 1} of {config.buckets:,} (--buckets)"
    found = f"{len(evicted):,} not assured found there and evicted" if len(evicted) else "nobody there who is not assured"
    yield "table", f"full: {it.count:,} of {config.capacity:,} connections (--max); looked into {searched}: {found}"
    for conn in evicted[:SHOWN]:
        yield "", f"evicted: {conn_text(conn, config.hz)}"
    if len(evicted) > SHOWN:
        yield "", f"and {len(evicted) - SHOWN:,} more"


def _quoted(it: Explained) -> Iterator[Line]:
    """What an ICMP error is about: the packet it quotes, and the connection of that."""
    if it.decision["reason"] == Reason.R_ICMP_INNER:
        yield "quoted", dissect.ip_line(it.l4[quote_at(it.row) :])
        yield "", inner_fault(it.row)
    if it.quoted is None or it.decision["reason"] == Reason.R_ICMP_INNER_ERROR:
        return
    yield "quoted", f"{fields.proto_name(int(it.quoted['proto']))} {tuple_text(it.quoted)}"
    answer = inverse_of(it.quoted)
    if it.about is None or answer is None:
        yield "lookup", "no connection has the quoted packet's tuple"
        return
    # It left as the answers' tuple says, which may not be how it came.
    direction = DIRS[1 - (it.direction if it.decision["state"] == State.RELATED else direction_in(it.about, answer))]
    yield "lookup", f"the quoted packet went in the {direction} direction of {conn_text(it.about, it.tracking.config.hz)}"
    if it.decision["state"] == State.RELATED:
        yield "", "this error is related to that connection, whose state and timeout stay as they are"


def _result(it: Explained) -> Iterator[Line]:
    decision, hz = it.decision, it.tracking.config.hz
    reason = REASONS[int(decision["reason"])]
    direction = fields.DIR_NAMES.get(int(decision["dir"]))
    l4state = fields.l4state_name(it.proto, int(decision["l4state"])) if decision["l4state"] != NO_L4STATE else None
    words = [fields.STATE_NAMES[int(decision["state"])], direction, l4state, f"conn {decision['conn']}" if decision["conn"] >= 0 else None]
    yield "result", f"{', '.join(filter(None, words))}; verdict {fields.VERDICT_NAMES[int(decision['verdict'])]}"
    if decision["timeout"] >= 0:
        yield "timeout", f"{fields.seconds_text(int(decision['timeout']), hz)} s left{_why_timeout(it)}"
    for i, change in enumerate(changes_of(it)):
        yield "changed" if i == 0 else "", change
    yield "reason", f"{reason.name}: {reason.sentence}" + (f" ({reason.rule})" if reason.rule != "-" else "")


def _why_timeout(it: Explained) -> str:
    """Which setting the time left comes from, by the rule that applied, if it was this packet that gave it."""
    visit = it.visit()
    answer = ask(visit) if visit else None
    if answer is None or answer.timeout is None or int(it.decision["status"]) & Status.FIXED_TIMEOUT:
        return ", not renewed by this packet" + (", nor is it counted" if _uncounted(it) else "")
    if answer.setting.isdigit():
        return ", which is fixed: there is no setting for it"
    return f", from {answer.setting}"


def _uncounted(it: Explained) -> bool:
    """Whether it is not among its connection's packets, which others are."""
    if it.had is None or it.conn is None or it.begins:
        return False
    before, after = it.had["flow"]["packets"], it.conn["flow"]["packets"]
    return bool(before.any() and (before == after).all())


def life_lines(life: Life, hz: int) -> Iterator[Line]:
    """A connection from its first packet to its end."""
    yield "conn", conn_text(life.conn, hz)
    if int(life.conn["status"]) & Status.OFFLOAD and not life.end:
        left = fields.seconds_text(int(life.conn["timeout"]), hz)
        yield "", f"{left} s left, by the flow table: a day from its coming into it, and its own timeout again where a packet is tracked"
    yield from _zone(life)
    start = int(life.conn["start"])
    yield "began", time_text(start)
    width = min(max((len(step.what) for step in life.steps), default=0), WIDEST)
    widest = max((len(_state_of(step.decision, step.packet)) for step in life.steps), default=0)
    ways = _columns([step.way for step in life.steps])
    for step, way in zip(life.steps, ways, strict=True):
        arrow = ARROWS[step.direction(life.conn)]
        decided = _decided(step.decision, step.packet, hz, widest, way)
        yield f"#{step.number:,}", f"+{(step.ts - start) / 1e9:<11.6f} {arrow} {step.what:<{width}} {decided}"
    yield "end", _end_text(life)


def _zone(life: Life) -> Iterator[Line]:
    """Under rules, which give each connection the zone of their `ct` action."""
    zones = [int(zone) for zone in life.conn["flow"]["key"]["zone"]]
    if any(zones) and any(step.way for step in life.steps):
        yield "zone", str(max(zones)) + ("" if zones[0] == zones[1] else f", of the {DIRS[zones.index(max(zones))]} direction")


def _columns(rows: list[tuple[str, ...]]) -> list[str]:
    """Words below one another."""
    widths = [max(len(word) for word in column) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{word:<{width}}" for word, width in zip(row, widths, strict=True)) for row in rows]


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


def _state_of(decision: np.void, packet: np.void) -> str:
    return fields.l4state_name(int(packet["key"]["proto"]), int(decision["l4state"])) or ""


def _decided(decision: np.void, packet: np.void, hz: int, widest: int, way: str = "") -> str:
    """How a packet was judged. widest: letters of the longest protocol state among the packets; way: under rules, what became of it."""
    state = _state_of(decision, packet)
    left = f"{fields.seconds_text(int(decision['timeout']), hz)} s" if decision["timeout"] >= 0 else ""
    gained = "assured" if int(decision["status"]) & Status.ASSURED else ""
    reason = REASONS[int(decision["reason"])]
    text = f"{fields.STATE_NAMES[int(decision['state'])]:<12} {state:<{widest}} {left:>9} {gained:<8}{way and ' '}{way}"
    return text.rstrip() if reason.name == "ok" else f"{text} {reason.sentence}"
