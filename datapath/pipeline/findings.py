"""What is wrong with a rules file, gathered: people fix all of it at once, not error by error.

Not here: what is wrong (tc_text, yaml_rules, validate).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from datapath.names import printable
from datapath.pipeline.rules import Place, RuleError

SHOWN = 100  # characters of what was written that an error repeats


class Expected(ValueError):
    """A word is not what it should be; says what it should be. Whoever knows its place makes a RuleError of it."""


def rule_error(place: Place, text: str, expected: str) -> RuleError:
    """rules.tc:7:52: 'ct_state +trk+new+est': new and est exclude each other."""
    return RuleError(line_of(place, text, expected), place, expected)


def line_of(place: Place, text: str, said: str) -> str:
    """One line: where, what stands there, and what is to be said of it."""
    shown = printable(text)
    shown = shown if len(shown) <= SHOWN else f"{shown[: SHOWN - 3]}..."
    where = printable(str(place))
    return ": ".join(part for part in (where, f"'{shown}'" if shown else "", printable(said)) if part)


@dataclass
class Findings:
    """errors: what makes the file useless; warnings: what tc takes, and hardly anybody means."""

    errors: list[RuleError] = field(default_factory=list)
    _warned: list[tuple[Place, str]] = field(default_factory=list)

    def error(self, place: Place, text: str, expected: str) -> None:
        self.errors.append(rule_error(place, text, expected))

    def warn(self, place: Place, text: str, said: str) -> None:
        self._warned.append((place, line_of(place, text, said)))

    @property
    def warnings(self) -> list[str]:
        """The warnings as they come in the file, each once."""
        return list(dict.fromkeys(line for _, line in sorted(self._warned, key=lambda warned: warned[0])))

    def in_order(self) -> list[RuleError]:
        """The errors as they come in the file, each once."""
        return sorted({str(error): error for error in self.errors}.values(), key=lambda error: error.place)

    def check(self) -> None:
        """Raises the first error of the file, if there is one."""
        if self.errors:
            raise self.in_order()[0]
