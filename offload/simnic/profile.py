"""What kind of NIC: a TOML file, of this package or one's own.

    [table]
    capacity = 4194304
    [rates]
    inserts = 85000

Invariant: a Profile that exists has every value within its bounds. What is wrong with a file is said in one line, with the line it stands in.
Not here: what the values mean for a frame (capability, walk) or a command (lines).
"""

from __future__ import annotations

import errno
import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ctcore.errors import ConfigError
from offload.simnic.faults import FOREVER, KINDS, Fault

ENDING = ".toml"
MS, SECOND = 1_000_000, 1_000_000_000
MOST_FAULTS = 1000
ERRORS = {name: getattr(errno, name) for name in ("ENOSPC", "ENOMEM", "EOPNOTSUPP", "EINVAL", "EIO", "EBUSY", "EAGAIN", "ETIMEDOUT")}
OF_COMMANDS = ("refuse", "delay", "lose-command", "lose-reply")
# Settings that only some kinds of faults have, and what they are called in a file.
ONLY_OF = {"end": (*OF_COMMANDS, "stick"), "share": OF_COMMANDS, "delay": ("delay",), "error": ("refuse",)}
NAMED = {"start": "from", "end": "to"}

Count = Annotated[int, Field(ge=0, le=1 << 28)]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """Unknown keys are mistakes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TableSection(Section):
    """capacity: entries, 0: no limit; tables: whether a connection is in CT and CT_NAT, or in the one that it needs (contract A9.66)."""

    capacity: Count = 0
    tables: Literal["both", "one"] = "one"


class RatesSection(Section):
    """inserts: rules that are inserted or deleted a second, 0: at once; burst: of them at a time; latency: ms until one is answered, and is there;
    queue: commands that wait at most."""

    inserts: Annotated[float, Field(ge=0, le=1e9)] = 0
    burst: Annotated[int, Field(ge=1, le=1 << 20)] = 1
    latency: Annotated[float, Field(ge=0, le=60_000)] = 0
    queue: Annotated[int, Field(ge=1, le=1 << 28)] = 1 << 20


class CountersSection(Section):
    """period: ms between two looks of the driver at its counters, 0: each time that it is asked; accounting: whether each direction has one."""

    period: Annotated[float, Field(ge=0, le=3_600_000)] = 1000
    accounting: bool = True


class RulesSection(Section):
    """offload: whether there are rules in hardware at all; resume: whether software goes on at the action that missed, or at its chain; new: whether
    it knows +new, and connections seen in one direction; police, skbedit: whether it has these actions."""

    offload: bool = True
    resume: Literal["action", "chain"] = "action"
    new: bool = True
    police: bool = False
    skbedit: bool = False


Seconds = Annotated[float, Field(ge=0, le=1e9)]


class ScriptedFault(Section):
    """A fault of a script (faults.Fault): when, in s since the NIC's first packet; share: of commands; delay: ms; error: of what is refused."""

    kind: Literal[tuple(KINDS)]  # type: ignore[valid-type]
    start: Annotated[Seconds, Field(alias="from")] = 0
    end: Annotated[Seconds | None, Field(alias="to")] = None
    share: Share | None = None
    delay: Annotated[float, Field(gt=0, le=3_600_000)] | None = None
    error: Literal[tuple(ERRORS)] | None = None  # type: ignore[valid-type]

    @model_validator(mode="after")
    def fits(self) -> ScriptedFault:
        """Settings that its kind has not would do nothing, and a time that ends before it begins would be none."""
        for name, kinds in ONLY_OF.items():
            if getattr(self, name) is not None and self.kind not in kinds:
                raise ValueError(f"'{NAMED.get(name, name)}' is of {', '.join(kinds)} only")
        if self.kind == "delay" and self.delay is None:
            raise ValueError("expected 'delay' with it, in ms")
        if self.end is not None and self.end <= self.start:
            raise ValueError(f"'to' is {self.end:g}: expected a time behind 'from', which is {self.start:g}")
        return self

    def fault(self) -> Fault:
        """The same with times in ns since the first packet."""
        return Fault(
            self.kind, round(self.start * SECOND), FOREVER if self.end is None else round(self.end * SECOND),
            1.0 if self.share is None else self.share, round((self.delay or 0) * MS), ERRORS[self.error or "ENOSPC"],
        )  # fmt: skip


class FaultsSection(Section):
    """refuse: the share of new rules that are refused though there is room; script: what goes wrong when."""

    refuse: Share = 0.0
    script: Annotated[tuple[ScriptedFault, ...], Field(max_length=MOST_FAULTS)] = ()

    @property
    def all(self) -> list[Fault]:
        """With times since the NIC's first packet."""
        return [*([Fault("refuse", share=self.refuse)] if self.refuse else []), *(each.fault() for each in self.script)]


class Profile(Section):
    """trims: whether a frame loses what is behind its IP packet when a CT table serves it, as the `ct` action has it in software. No NIC does."""

    name: str = ""
    trims: bool = False
    table: TableSection = TableSection()
    rates: RatesSection = RatesSection()
    counters: CountersSection = CountersSection()
    rules: RulesSection = RulesSection()
    faults: FaultsSection = FaultsSection()

    @property
    def latency_ns(self) -> int:
        return round(self.rates.latency * MS)

    @property
    def period_ns(self) -> int:
        return round(self.counters.period * MS)


def names() -> list[str]:
    """Of the profiles that come with this package."""
    return sorted(entry.name.removesuffix(ENDING) for entry in files("offload.profiles").iterdir() if entry.name.endswith(ENDING))


def load(name: str) -> Profile:
    """A profile by its name, or by the path of a file that ends in .toml. Raises ConfigError: file, line, key, what was expected."""
    if name in names():
        return parse((files("offload.profiles") / (name + ENDING)).read_text(), name)
    if not name.endswith(ENDING):
        raise ConfigError(f"{name or repr(name)}: no such NIC: expected one of {', '.join(names())}, or a file that ends in {ENDING}")
    try:
        text = Path(name).read_bytes().decode()
    except OSError as error:
        raise ConfigError(f"{name}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name}: byte {error.start} is no UTF-8: expected TOML") from None
    return parse(text, name)


def parse(text: str, name: str) -> Profile:
    """The same of a text. name: for places, and of the profile unless it says its own."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r" \(at (?:line ([0-9]+), column ([0-9]+)|end of document)\)$", str(error))
        place = f":{found[1]}:{found[2]}" if found and found[1] else ""
        raise ConfigError(f"{name}{place}: {str(error)[: found.start()] if found else error}") from None
    try:
        profile = Profile.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        path = first["loc"]
        line = dict(_lines(text))
        where = next((f":{line[path[:end]]}" for end in range(len(path), 0, -1) if path[:end] in line), "")
        setting = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")
        raise ConfigError(f"{name}{where}: {setting}: {_said(first)}") from None
    return profile if profile.name else profile.model_copy(update={"name": Path(name).name.removesuffix(ENDING)})


# What pydantic calls otherwise than a user of TOML does.
SAID = {
    "missing": "expected one", "tuple_type": "expected a list of sections", "model_type": "expected a section",
    "float_parsing": "expected a number", "float_type": "expected a number", "int_parsing": "expected a whole number",
    "int_type": "expected a whole number", "int_from_float": "expected a whole number", "bool_parsing": "expected true or false",
    "bool_type": "expected true or false", "string_type": "expected a text",
}  # fmt: skip


def _said(error: Any) -> str:
    kind, text = error["type"], str(error["msg"])
    if kind == "extra_forbidden":
        return f"no such setting: expected one of {', '.join(_settings(error['loc'][:-1]))}"
    if kind == "value_error":
        return text.removeprefix("Value error, ")
    said = SAID.get(kind, f"{text[0].lower()}{text[1:]}").replace("input should be", "expected")
    said = said.replace("greater than or equal to", "at least").replace("less than or equal to", "at most")
    return said if kind in ("missing", "model_type") else f"{error['input']!r:.60}: {said}"


def _settings(path: tuple[str | int, ...]) -> list[str]:
    """What the section at a path of keys has, by the names of a file. A number in it is that of a section in [[ ]], which are all faults."""
    of: type[BaseModel] = Profile
    for part in path:
        found = None if isinstance(part, int) else of.model_fields[part].annotation
        of = found if isinstance(found, type) and issubclass(found, BaseModel) else ScriptedFault
    return [field.alias or name for name, field in of.model_fields.items()]


def _lines(text: str) -> Iterator[tuple[tuple[str | int, ...], int]]:
    """Path and line of each section and each key at the beginning of a line; of sections in [[ ]], the path has their number."""
    section: tuple[str | int, ...] = ()
    several: Counter[tuple[str | int, ...]] = Counter()
    for number, line in enumerate(text.split("\n"), 1):
        if found := re.match(r"\s*(\[\[?)\s*([\w.\-]+)\s*\]", line):
            section = tuple(found[2].split("."))
            if found[1] == "[[":
                yield section, number
                several[section] += 1
                section = (*section, several[section] - 1)
            yield section, number
        elif found := re.match(r"\s*([\w.\-]+)\s*=", line):
            yield (*section, *found[1].split(".")), number
