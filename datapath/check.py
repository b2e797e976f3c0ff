"""The composition of `ctmirror check`: scenarios before judges, captures against saved packet records.

Each file gives cases, a case a verdict; a report for people or as JUnit XML is made of them (commands/check, junit).
Invariants: an update writes a file whole or not at all; what differs beyond MOST_SHOWN packets of a case is counted, not kept.
Not here: what is compared (differences, scenario.run), saved records (saved).
"""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from time import perf_counter

import orjson

from ctcore.config import Config
from ctcore.errors import CaptureError, CtmirrorError, OutputError
from datapath import fields
from datapath.app import Tracking
from datapath.differences import Difference, Disagreement, disagreement, packet_words
from datapath.export import STDOUT, naming
from datapath.names import printable, quoted
from datapath.rule_text import helper_text, rule_text
from datapath.saved import Placed, paired, placed, records_of, saved_records
from datapath.scenario import run
from datapath.scenario.cursor import split
from datapath.scenario.expectation import expectation_text
from datapath.scenario.judge import Seen
from datapath.scenario.steps import SETTINGS, Expect, Scenario, ScenarioError
from datapath.scenario.text import WIDEST, parse
from datapath.zones import limit_flags, zone_text

ENDING = ".ct"
HEAD = 4096  # bytes that tell a text from a capture
MOST_SHOWN = 100  # differing packets of a case that are kept
MOST_BYTES = 1 << 26  # of a scenario


@dataclass
class Case:
    """One file before one judge. differing: packets; shown: the first of them; expected: packets of which something is expected; flags: the
    settings that are not ctmirror's own, as options of a command to type; error: why it could not be judged, or not to its end."""

    files: tuple[str, ...]
    judge: str
    scenario: bool
    packets: int = 0
    expected: int = 0
    differing: int = 0
    shown: list[Disagreement] = field(default_factory=list)
    flags: str = ""
    updated: bool = False
    error: str | None = None
    seconds: float = 0.0

    @property
    def name(self) -> str:
        return " ".join(self.files)

    @property
    def compared(self) -> int:
        """Packets that came or were expected: saved records may be more than there are packets."""
        return max(self.packets, self.expected)


def sorted_out(names: Sequence[str], saved: str | None) -> tuple[list[str], list[str], list[Case]]:
    """Scenarios, captures, and a case for each file that cannot be read, which keeps no other from being judged.

    saved: what captures are compared with, if they are.
    """
    scenarios: list[str] = []
    captures: list[str] = []
    failed: list[Case] = []
    for name in names:
        try:
            scenario = (name == STDOUT and saved is None) or is_scenario(name)
        except OSError as error:
            failed.append(Case((name,), "engine", True, error=f"{printable(name)}: {error.strerror}"))
        else:
            (scenarios if scenario else captures).append(name)
    return scenarios, captures, failed


def with_scenarios_below(names: Sequence[str]) -> tuple[list[str], list[Case]]:
    """The same with all scenarios in a directory, and in those below it, in place of its name; and a case for each directory that has none."""
    found: list[str] = []
    failed: list[Case] = []
    for name in names:
        below = sorted(os.path.join(folder, file) for folder, _, files in os.walk(name) for file in files if file.endswith(ENDING))
        if os.path.isdir(name) and not below:
            failed.append(Case((name,), "engine", True, error=f"{printable(name)}: expected scenarios (*{ENDING}) in it or below, found none"))
        else:
            found += below or [name]
    return found, failed


def is_scenario(name: str) -> bool:
    """By its ending, or else by its content: every capture begins with bytes that are no text."""
    if name.endswith(ENDING):
        return True
    if name == STDOUT:
        return False
    with open(name, "rb") as file:
        head = file.read(HEAD)
    try:
        head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:  # a character cut in two at the end is none
            return False
    return b"\0" not in head


def read_scenario(name: str) -> tuple[str, Scenario]:
    """Text and scenario of a file, or of stdin. Raises ScenarioError, OSError."""
    if name == STDOUT:
        data = sys.stdin.buffer.read(MOST_BYTES + 1)
    else:
        with open(name, "rb") as file:
            data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ScenarioError(f"{name}: expected a scenario of at most {MOST_BYTES:,} bytes")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ScenarioError(f"{name}:{line}: byte {data[error.start]:#04x} at {error.start:,}: expected UTF-8 text") from None
    return text, parse(text, name)


# --- scenarios -------------------------------------------------------------------------------------------------------------------------


def check_scenario(name: str, judges: Sequence[str], tracking: Tracking, *, update: bool = False) -> Iterator[Case]:
    """One case a judge. update: what the first judge says becomes what is expected."""
    case = Case((name,), judges[0], True)
    try:
        text, scenario = read_scenario(name)
        for judge in judges:
            case = Case((name,), judge, True, len(scenario.steps), sum(step.expect is not None for step in scenario.steps))
            case.flags = flags_of(scenario, tracking)
            start = perf_counter()
            seen, found = run.judged(scenario, judge, tracking.config, tracking.zone)
            case.seconds = perf_counter() - start
            if update and judge == judges[0] and (found or not case.expected):
                scenario, found = _update(name, text, scenario, seen), []
                case.updated = True
            case.differing, case.shown = len(found), found[:MOST_SHOWN]
            yield case
    except CtmirrorError as error:
        case.packets = case.expected = 0  # what was judged before it stopped is not known
        case.error = str(error)
        yield case


def flags_of(scenario: Scenario, tracking: Tracking) -> str:
    """What was in force and is not the default, as options."""
    config, zone = run.settings_of(scenario, tracking.config, tracking.zone)
    plain = [(name, int(getattr(config, name))) for name in SETTINGS if getattr(config, name) != getattr(Config, name)]
    words = [f"--{name.replace('_', '-')} {value}" for name, value in plain] + ([f"--zone {zone_text(zone, config.zone_dir)}"] if zone else [])
    words += limit_flags(config)
    if config.timeouts:
        words.append("--timeouts " + ",".join(f"{name}={seconds}" for name, seconds in config.timeouts.items()))
    words += [f"--{rule.kind} {quoted(rule_text(rule))}" for rule in config.nat]
    words += [f"--helper {helper_text(helper)}" for helper in config.helpers]
    return " ".join(words)


def _update(name: str, text: str, scenario: Scenario, seen: Sequence[Seen]) -> Scenario:
    """Rewrite the expectations that were not met; all of them if there were none. Everything else of the text stays as it is."""
    lines = text.split("\n")
    fill = all(step.expect is None for step in scenario.steps)
    left = {step.line: _cut(lines[step.line - 1]) for step in scenario.steps}
    column = max((len(kept) for kept, _ in left.values() if len(kept) <= WIDEST), default=0) if fill else 0
    for step, one in zip(scenario.steps, seen, strict=True):
        expect: Expect | None = None
        if fill:
            expect = run.expectation_of(one)
        elif step.expect and run.misses(step.expect, one):
            expect = run.renewed(step.expect, one)
        if expect:
            kept, remark = left[step.line]
            lines[step.line - 1] = f"{kept:<{column}}  => {expectation_text(expect)}" + (f"  # {remark}" if remark else "")
    _replace(name, "\n".join(lines).encode())
    return parse("\n".join(lines), name)


def _cut(line: str) -> tuple[str, str]:
    """A step's line up to its expectation, and its comment."""
    words, remark = split(line)
    arrow = next((word.column for word in words if word.text == "=>"), None)
    end = arrow - 1 if arrow else words[-1].column - 1 + len(words[-1].text)
    return line[:end].rstrip(), remark


def _replace(name: str, data: bytes) -> None:
    """Write a file whole or not at all: beside the file that is meant, behind symbolic links, under a name that nobody has. Mode and, where that
    may be, owner stay. Raises OutputError."""
    target = os.path.realpath(name)
    temporary = None
    try:
        with naming(name):
            old = os.stat(target) if os.path.lexists(target) else None
            if old and not stat.S_ISREG(old.st_mode):
                raise OutputError(f"{name}: cannot be written: expected a plain file")
            descriptor, temporary = tempfile.mkstemp(prefix=".ctmirror-", dir=os.path.dirname(target))
            with open(descriptor, "wb") as file:
                file.write(data)
                if old:
                    with suppress(PermissionError):
                        os.fchown(descriptor, old.st_uid, old.st_gid)
                os.fchmod(descriptor, stat.S_IMODE(old.st_mode) if old else 0o666 & ~_umask())
            os.replace(temporary, target)
            temporary = None
    finally:
        if temporary is not None:
            with suppress(OSError):
                os.unlink(temporary)


def _umask() -> int:
    """Which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def write_capture(name: str, scenario: Scenario) -> None:
    """A scenario's packets as a capture, at the times at which the engine judged them."""
    from datapath.frame import frames_of
    from datapath.scenario.build import build
    from datapath.scenario.judge import SECOND, START
    from datapath.sink import PcapSink

    times, now = [], START
    for step in scenario.steps:
        now += round(step.wait * SECOND)
        times.append(now)
    with PcapSink(name) as sink:
        if times:
            sink.write(*frames_of(build(scenario), ts=times))


# --- captures --------------------------------------------------------------------------------------------------------------------------


def check_captures(captures: Sequence[str], saved: str, tracking: Tracking) -> Case:
    """The captures' packet records against saved ones; every field that is saved is compared."""
    case, start = Case(tuple(captures), "engine", False, flags=tracking.flags), perf_counter()
    try:
        for want, have in paired(placed(saved_records(saved), captures), records_of(captures, tracking)):
            case.packets += have is not None
            case.expected += want is not None
            if found := _compare(captures, want, have):
                case.differing += 1
                case.shown += [found] if len(case.shown) < MOST_SHOWN else []
    except CaptureError as error:
        case.error = str(error)
    case.seconds = perf_counter() - start
    return case


def _compare(captures: Sequence[str], want: Placed | None, have: Placed | None) -> Disagreement | None:
    """One packet's records; either may be missing."""
    it = have or want
    assert it is not None
    where = str(it.record.get("file", captures[-1])), it.place[1], packet_words(it.record)
    if want is None or have is None:
        presence = ["absent" if one is None else "present" for one in (want, have)]
        return Disagreement(*where, (Difference("packet", *presence),))
    return disagreement(*where, _without_folders(want.record), _without_folders(have.record), want.record)


def _without_folders(record: fields.Record) -> fields.Record:
    """Rules and captures are called the same from wherever they are read."""
    bare = {name: os.path.basename(record[name]) for name in ("file", "rule") if isinstance(record.get(name), str)}
    return {**record, **bare} if bare else record


def refuse_to_overwrite(saved: str) -> None:
    """Raise CtmirrorError if a file that is to be written holds something else than packet records: most likely another one was meant."""
    if saved == STDOUT or not os.path.isfile(saved):
        return
    with naming(saved), open(saved, "rb") as file:
        line = file.readline(1 << 16)
    with suppress(orjson.JSONDecodeError):
        if not line or (isinstance(record := orjson.loads(line), dict) and "verdict" in record):
            return
    raise CtmirrorError(f"{saved}: holds something else than packet records: expected the name of a new file, or of one that --update has written")


def update_captures(captures: Sequence[str], saved: str, tracking: Tracking) -> Case:
    """Save the captures' packet records."""
    start = perf_counter()
    records = [orjson.dumps(one.record) for one in records_of(captures, tracking)]
    data = b"".join(record + b"\n" for record in records)
    if saved == STDOUT:
        with naming(saved):
            sys.stdout.buffer.write(data)
    else:
        _replace(saved, data)
    return Case(tuple(captures), "engine", False, len(records), len(records), updated=True, seconds=perf_counter() - start)
