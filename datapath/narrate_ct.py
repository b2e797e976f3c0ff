"""What tracking did with a packet in a `ct` action, with the numbers it was judged by, as lines for people: the same stages as without rules.

Not here: what later rules see of it, and all else that rules do (narrate_rules); the stages themselves (narrate, stages, translation).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from ctcore.model.conn import Key
from ctcore.types import EVENT_DTYPE, Dir, End, Proto, Reason, State, Status
from datapath import fields
from datapath.explain import Explained, by_id, find_conn, inverse_of, is_error, quoted_in
from datapath.explain_rules import Ruled
from datapath.hints import counted
from datapath.narrate import judged_lines
from datapath.pipeline.ct_settings import nat_rule, ranges_of, settings_of
from datapath.pipeline.rules import Ct
from datapath.stages import Line, changes_of
from datapath.sums import check_lines
from datapath.translation import DST, SRC, half_text, with_half
from datapath.watched import Asked, Told


def ct_lines(it: Ruled, told: Told, action: Ct) -> Iterator[Line]:
    """The stages. Of a connection that the packet has from an action before, only what is new."""
    asked = told.asked
    if asked is None or (asked.kept and told.acted.decision["reason"][0] == Reason.R_OK and action.nat is None):
        return
    seen = explained(it, told, asked, action)
    if not asked.kept or seen.decision["reason"] != Reason.R_OK:
        if asked.packet["l4_reason"]:
            yield from check_lines(seen)
        yield from judged_lines(seen)
    yield from _nat(seen, told, asked, action)
    for i, change in enumerate(changes_of(seen) if not asked.kept else ()):
        yield "changed" if i == 0 else "", change


def explained(it: Ruled, told: Told, asked: Asked, action: Ct) -> Explained:
    """The action as a packet that is explained: the connections are those of the tracker that rules alone have used."""
    decision, packet = told.acted.decision[0], asked.packet
    tracking = replace(it.tracking, zone=action.zone)
    had = by_id(asked.earlier, int(decision["conn"]))
    if had is None:
        had = find_conn(asked.earlier, packet["key"])
    error = is_error(packet, asked.l4)
    quoted = quoted_in(packet, asked.l4) if error else None
    answer = None if quoted is None else inverse_of(quoted)
    about = None if answer is None else find_conn(asked.earlier, answer)
    if about is None and error:
        about = by_id(asked.earlier, int(decision["conn"]))
    moved = () if had is None else asked.moved.get(int(had["flow"]["id"][Dir.ORIG]), ())
    return Explained(
        it.name, it.number, it.data, it.frame, packet, asked.l4, decision, packet["key"], had, told.conn, tracking, _evicted(asked), asked.earlier,
        int(np.count_nonzero(asked.earlier["timeout"])), asked.tick, None, error, quoted, about, moved=moved, zones=told.zones,
        awaited=told.awaited, awaits=told.awaits,
    )  # fmt: skip


def _evicted(asked: Asked) -> np.ndarray:
    """Who had to go, as events tell it."""
    gone = [conn for number in asked.evicted if (conn := by_id(asked.earlier, number)) is not None]
    events = np.zeros(len(gone), dtype=EVENT_DTYPE)
    events["end"] = End.END_EVICTED
    for event, conn in zip(events, gone, strict=True):
        event["conn"] = conn
    return events


def stranger_text(it: Ruled, told: Told, action: Ct) -> str:
    """Of a packet that is given no connection: whose tuple it has all the same."""
    if told.acted.decision["state"][0] != State.INVALID or told.asked is None:
        return "no connection"
    had: Any = explained(it, told, told.asked, action).had
    if had is None:
        return "invalid, so not attached to a connection"
    proto = int(had["flow"][Dir.ORIG]["key"]["proto"])
    state = fields.l4state_name(proto, int(had["tcp" if proto == Proto.PROTO_TCP else "sctp"]["state"]))
    return f"invalid, so not attached; it is a packet of conn {had['flow'][Dir.ORIG]['id']}" + (f", in {state}" if state else "")


def _nat(seen: Explained, told: Told, asked: Asked, action: Ct) -> Iterator[Line]:
    """Why this address and port, of a connection that this action has translated; or what there was to choose from, if nothing was free."""
    exhausted = seen.decision["reason"] == Reason.R_NAT_EXHAUSTED
    if action.nat is None or not action.nat.kind:
        if exhausted:
            yield "nat", "nothing free was found for its answers"
        return
    if not exhausted and (told.conn is None or told.before or not int(told.conn["status"]) & (Status.SRC_NAT | Status.DST_NAT)):
        return
    rule, manip = nat_rule(action.nat), SRC if action.nat.kind == "src" else DST
    leaving = seen.row.key
    chosen = None if exhausted else Key.of(told.conn["flow"][Dir.REPLY]["key"].tobytes()).inverted()
    yield "nat", half_text(seen, leaving, None if chosen is None else with_half(leaving, chosen, manip), rule, manip)
    assert seen.tracking.rules is not None
    place = ranges_of(settings_of(seen.tracking.rules.ruleset, seen.tracking.config))[rule]
    for pool in (pool for pool in asked.pools if exhausted and pool.rule == place):
        yield "", f"it has {counted(pool.size, 'tuple')} for one destination; {counted(pool.in_use, 'connection')} use it"
