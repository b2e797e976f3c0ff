"""A scenario before a judge: what came of its packets, and where that is not what was expected.

Only what an expectation names is compared, and of that only what the judge can know.
Not here: judges (judge), how differences are shown (differences).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

from ctcore.config import Config
from ctcore.errors import CtmirrorError
from datapath.differences import Difference, Disagreement, differences
from datapath.fields import Record
from datapath.scenario.build import build
from datapath.scenario.expectation import ENDS, OF_PACKET, SIDE_VARIABLES, VARIABLES
from datapath.scenario.judge import SECOND, Judge, Seen, open_judge
from datapath.scenario.steps import NO_CONN, Expect, Packet, Raw, Scenario, ScenarioError
from datapath.scenario.text import config_of, packet_text

PLAIN = ("state", "l4state", "timeout", "dir", "verdict", "conn", "reason", "zone", "mark")


def play(scenario: Scenario, judge: Judge, frames: list[bytes] | None = None) -> list[Seen]:
    """Give a scenario's packets to a judge, in order. frames: those of build(scenario), if it has been built.

    Raises ScenarioError with file and line where the judge cannot go on.
    """
    frames = build(scenario) if frames is None else frames
    seen = []
    for step, frame in zip(scenario.steps, frames, strict=True):
        try:
            seen.append(judge.packet(frame, step.wait, zone_of(step.packet)))
        except CtmirrorError as error:
            raise ScenarioError(f"{scenario.name}:{step.line}: {error}") from None
    return seen


def zone_of(packet: Packet | Raw) -> int | None:
    """The zone a packet comes in, if it is not the scenario's."""
    return packet.ip.zone if isinstance(packet, Packet) else None


def settings_of(scenario: Scenario, base: Config, zone: int = 0) -> tuple[Config, int]:
    """Settings and zone of a scenario. base, zone: for what it does not set. Raises ConfigError."""
    return config_of(scenario, base), zone if scenario.zone is None else scenario.zone[0]


def judged(scenario: Scenario, name: str, base: Config, zone: int = 0) -> tuple[list[Seen], list[Disagreement]]:
    """What a judge of that name says, and where it is not what was expected. base, zone: for what the scenario does not set."""
    frames = build(scenario)
    with open_judge(name, *settings_of(scenario, base, zone)) as judge:
        seen = play(scenario, judge, frames)
        return seen, list(disagreements(scenario, seen, judge))


def disagreements(scenario: Scenario, seen: list[Seen], judge: Judge) -> Iterator[Disagreement]:
    """The steps whose expectations were not met.

    A judge that has to wait for real is late; what is left of a timeout may then be less by as much as it was late since that was set, never more.
    """
    for number, (step, one, late) in enumerate(zip(scenario.steps, seen, lateness(scenario, seen, judge), strict=True)):
        if step.expect and (found := misses(step.expect, one, judge.unknown, judge.tolerance, late)):
            expected = step.expect.reason if "reason" not in judge.unknown else None
            yield Disagreement(f"{scenario.name}:{step.line}", number, packet_text(step.packet), tuple(found), (expected, one.record.get("reason")))


def lateness(scenario: Scenario, seen: list[Seen], judge: Judge) -> Iterator[float]:
    """For each step, how many seconds a judge is late since the timeout of the step's connection was last set; 0 of a judge that has no tolerance.

    A step has set it if it moved the moment at which the connection expires, by more than two measurements of that moment may differ. When within
    the step is not known: what it was itself late counts as well.
    """
    set_at: dict[int, tuple[float, float]] = {}  # by connection: when it expires, and how late the judge was before the step that said so
    nominal = before = 0.0
    for number, (step, one) in enumerate(zip(scenario.steps, seen, strict=True)):
        nominal += step.wait if number else 0.0
        now = (one.record["ts"] - seen[0].record["ts"]) / SECOND
        conn, left = one.record["conn"], one.record["timeout"]
        late = 0.0
        if judge.tolerance and conn is not None and left is not None:
            if conn not in set_at or abs(now + left - set_at[conn][0]) > 2 * judge.tolerance:
                set_at[conn] = now + left, before
            late = max(now - nominal - set_at[conn][1], 0.0)
        before = now - nominal
        yield late


def misses(
    expect: Expect, seen: Seen, unknown: frozenset[str] = frozenset(), tolerance: float = 0.0, late: float = 0.0
) -> list[Difference]:  # fmt: skip
    """What is named in the expectation and is not so: expected on the left, what came on the right. tolerance, late: as differences() takes them."""
    record = seen.record
    wanted: Record = {name: getattr(expect, name) for name in PLAIN if getattr(expect, name) is not None and name not in unknown}
    if wanted.get("conn") == NO_CONN:
        wanted["conn"] = None
    found = differences(wanted, record, wanted, tolerance=tolerance, late=late)
    if "status" not in unknown:
        found += _status(expect, frozenset(record["status"]), record["status"])
    for name, value in expect.variables:
        came = variable(seen, name)
        found += [Difference(name, value, came)] if came != value else []
    return found


def _status(expect: Expect, have: frozenset[str], shown: Any) -> list[Difference]:
    if expect.status is not None and expect.status != have:
        return [Difference("status", tuple(sorted(expect.status)), shown)]
    if expect.has <= have and not expect.lacks & have:
        return []
    return [Difference("status", (*sorted(expect.has), *(f"!{name}" for name in sorted(expect.lacks))), shown)]


def variable(seen: Seen, name: str) -> str:
    """A variable of the connection record (`out`: of the packet's) as a scenario writes it, `tcp.original.end` -> "101".

    Lists with commas, "none" for nothing.
    """
    value: Any = seen.record if name in OF_PACKET else seen.conn
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if isinstance(value, list | tuple):
        return ",".join(value) or "none"
    return "none" if value is None else str(value)


def expectation_of(seen: Seen, *, everything: bool = False) -> Expect:
    """What came, as an expectation. everything: all that is in the records, else what a person would write."""
    record = seen.record
    conn = NO_CONN if record["conn"] is None else record["conn"]
    common: dict[str, Any] = {name: record[name] for name in ("state", "l4state", "timeout", "dir")}
    if not everything:
        reason, verdict = record.get("reason"), record["verdict"]
        return Expect(
            **{**common, "dir": common["dir"] if common["dir"] == "reply" else None},
            has=frozenset(record["status"]) & {"assured", "expected", "dying", "snat", "dnat"},
            reason=None if reason == "ok" else reason,
            verdict=None if verdict == "accept" else verdict,
            variables=_changed(seen),
        )
    names = [f"tcp.{side}.{name}" for side in ("original", "reply") for name in SIDE_VARIABLES] + [f"tcp.{name}" for name in VARIABLES]
    variables = tuple((name, variable(seen, name)) for name in names) if seen.conn and seen.conn["tcp"] else ()
    variables += _changed(seen)
    common |= {name: record.get(name) for name in ("reason", "verdict", "zone", "mark")}
    return Expect(**common, conn=conn, status=frozenset(record["status"]), variables=variables)


def _changed(seen: Seen) -> tuple[tuple[str, str], ...]:
    """What of its ends the packet leaves with changed."""
    out = seen.record["out"] or {}
    return tuple((f"out.{name}", variable(seen, f"out.{name}")) for name in ENDS if name in out and out[name] != seen.record[name])


def renewed(expect: Expect, seen: Seen) -> Expect:
    """An expectation that names the same things, as they came."""
    whole = expectation_of(seen, everything=True)
    changes: dict[str, Any] = {}
    for field in fields(Expect):
        if getattr(expect, field.name) is None or field.name in ("has", "lacks", "variables"):
            continue
        changes[field.name] = getattr(whole, field.name)
    have = frozenset(seen.record["status"])
    named = expect.has | expect.lacks
    variables = tuple((name, variable(seen, name)) for name, _ in expect.variables)
    return replace(expect, **changes, has=named & have, lacks=named - have, variables=variables)
