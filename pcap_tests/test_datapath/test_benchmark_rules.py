"""The benchmark of rules measures what it says: all rules in question, none but the last matching, figures that belong together."""

from __future__ import annotations

import numpy as np
import pytest

from ctcore.config import Config
from ctcore.errors import CtmirrorError
from datapath import benchmark, benchmark_rules
from datapath.pipeline.findings import Findings
from datapath.pipeline.rules import Ruleset
from datapath.pipeline.rules_file import parse
from datapath.pipeline.tc_print import print_ruleset
from datapath.ruled import RulePipeline


def pipeline_of(ruleset: Ruleset, connections: int) -> RulePipeline:
    pipeline = RulePipeline(ruleset, Config(max=connections))
    pipeline.arrive([benchmark_rules.HOOK])
    return pipeline


@pytest.mark.parametrize("n", [3, 10, 500])
def test_the_rules_are_as_many_as_asked_and_what_tc_lines_say(n: int) -> None:
    rules, found = benchmark_rules.firewall(n), Findings()
    assert len(rules.rules) == n
    assert parse(print_ruleset(rules), "rules.tc", found) == rules
    assert not found.errors and not found.warnings


def test_only_the_last_rules_match() -> None:
    pipeline = pipeline_of(benchmark_rules.firewall(500), 40)
    order = np.arange(40)
    pipeline.process(*benchmark.handshakes(order))
    pipeline.process(*benchmark.acknowledgements(order))
    matched = {rule: int(count) for rule, count in enumerate(pipeline.counters()["packets"]) if count}
    assert matched == {0: 200, 498: 40, 499: 160}


def test_first_packets_are_one_of_each_flow_and_established() -> None:
    pipeline = pipeline_of(benchmark_rules.firewall(3), 40)
    order = np.random.default_rng(1).permutation(40)
    pipeline.process(*benchmark.handshakes(order))
    decisions, _, _ = pipeline.process(*benchmark.acknowledgements(order))
    assert (decisions["reason"] == 0).all() and (decisions["state"] == 2).all()
    assert len({(each["conn"], each["dir"]) for each in decisions}) == 80


def test_openings_are_all_new() -> None:
    pipeline = pipeline_of(benchmark_rules.firewall(3), 40)
    decisions, _, _ = pipeline.process(*benchmark.openings(np.arange(40)))
    assert (decisions["reason"] == 0).all() and (decisions["state"] == 1).all() and pipeline.tracker.count == 40


def test_figures_of_established_connections_belong_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_rules, "MIN_PACKETS", 20_000)
    few, many = benchmark_rules.measure_established(1000, rules=[3, 100], rounds=3)
    assert (few["flows"], few["rules"], many["rules"], few["ratio"]) == (1000, 3, 100, 1)
    for row in (few, many):
        assert row["ns_per_packet"] == pytest.approx(1000 / row["mpps"]) and row["first_mpps"] > 0
    # How near to 1 is a matter of a quiet machine, which a test cannot ask for.
    assert many["ratio"] > 0


def test_figures_of_new_connections_are_of_each_kind() -> None:
    rows = benchmark_rules.measure_new(500, rules=[3, 100], rounds=1)
    assert [(row["connections"], row["rules"]) for row in rows] == [(500, 3), (500, 100)]
    assert all(row[kind] > 0 for row in rows for kind in ("handshakes_per_s", "syns_per_s", "untracked_mpps"))


def test_a_start_is_reading_and_compiling() -> None:
    row = benchmark_rules.start(50, 1)
    assert row["rules"] == 50 and row["seconds"] == pytest.approx(row["read_s"] + row["compile_s"]) and min(row["read_s"], row["compile_s"]) > 0


def test_rules_that_match_something_else_give_no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_rules, "MIN_PACKETS", 1000)
    ruleset = benchmark_rules.firewall(4)
    other = Ruleset(rules=(*ruleset.rules[:-2], *ruleset.rules[:-3:-1]))
    monkeypatch.setattr(benchmark_rules, "firewall", lambda n, tracks=True: other)
    with pytest.raises(CtmirrorError, match="expected"):
        benchmark_rules.measure_established(50, rules=[4], rounds=1)
    with pytest.raises(CtmirrorError, match="expected all"):
        benchmark_rules.measure_new(50, rules=[4], rounds=1)


def test_what_goes_wrong_in_another_process_is_told_in_one_line() -> None:
    with pytest.raises(CtmirrorError, match=r"bench: measure_new\(0, rules=\[3\]\): ") as raised:
        benchmark.apart(benchmark_rules.measure_new, 0, rules=[3])
    assert "\n" not in str(raised.value)


def test_all_figures_have_a_section_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_rules, "NEW_CONNECTIONS", 200)
    monkeypatch.setattr(benchmark_rules, "apart", lambda measure, *arguments, **options: measure(*arguments, **options))
    monkeypatch.setattr(benchmark_rules, "MIN_PACKETS", 2000)
    figures = benchmark_rules.rules([20, 40], [3, 30], rounds=1)
    assert {name: len(rows) for name, rows in figures.items() if name != "machine"} == {"established": 4, "new": 2, "start": 2}
