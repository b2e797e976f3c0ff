"""Every scenario before the engine and the model; and the scenarios themselves: readable, in one style, and about every rule."""

from __future__ import annotations

from pathlib import Path

import pytest

from ctcore import spec
from ctcore.config import Config
from ctcore.reasons import NAMES
from datapath.differences import lines_of
from datapath.scenario.judge import JUDGES
from datapath.scenario.run import judged
from datapath.scenario.text import format, parse

FOLDER = Path(__file__).parent / "scenarios"
FILES = sorted(FOLDER.rglob("*.ct"))
LONGEST = 7.0  # seconds of a scenario: a kernel has to wait for real
# Reasons that no scenario can bring about: of the link layer and of captures.
BEYOND = {"not_ip", "frame_short", "snapped"}
# Reasons of short packets behind a check of the tuple that comes first.
BEHIND = {"icmp_short"}
# Reasons of rules, and of a node that cannot ask them all, which scenarios know nothing of: test_walk, test_walk_ct, test_cut and test_overload bring
# each of them about.
RULES = {name for name in NAMES if name.startswith("rule_")} | {"overload"}


def name_of(path: Path) -> str:
    return str(path.relative_to(FOLDER))


def read(path: Path):
    return parse(path.read_text(), name_of(path))


@pytest.mark.parametrize("judge", ["engine", "model"])
@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_scenario(path, judge):
    _, found = judged(read(path), judge, Config())
    assert not found, "\n" + "\n".join(line for line, _ in lines_of(found, ("expected", judge)))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_scenarios_are_readable(path):
    """A comment names the rule, something is expected, the text is formatted, and nobody waits long."""
    scenario = read(path)
    assert scenario.comments
    assert any(step.expect for step in scenario.steps)
    assert format(scenario) == path.read_text()
    assert sum(step.wait for step in scenario.steps) <= LONGEST


def test_engine_and_model_are_judges():
    assert {"engine", "model"} <= set(JUDGES)


def test_every_reason_is_in_a_scenario():
    named = {step.expect.reason for path in FILES for step in read(path).steps if step.expect}
    assert set(NAMES) - named == BEYOND | BEHIND | RULES


def test_every_state_is_in_a_scenario():
    seen = {step.expect.l4state for path in FILES for step in read(path).steps if step.expect}
    assert {*spec.tcp().states, *spec.sctp().states} - {"NONE"} <= seen


def test_every_timeout_is_in_a_scenario():
    """By the setting of its own, or by the default that is waited for."""
    defaults = {step.expect.timeout for path in FILES for step in read(path).steps if step.expect}
    assert set(spec.timeouts().values()) <= defaults


def test_there_are_scenarios_of_every_protocol():
    assert {path.parent.name for path in FILES} == {"tcp", "udp", "icmp", "sctp", "gre", "nat", "helpers", "fragments", "zones", "other"}
    assert len(FILES) >= 100
