"""Rules -> text -> rules is the identity, for tc lines and for YAML, and both are taken without a word."""

from __future__ import annotations

from hypothesis import given

from datapath.pipeline import tc_print, yaml_rules
from datapath.pipeline.findings import Findings
from datapath.pipeline.rules_file import is_yaml, parse
from pcap_tests.test_datapath.test_pipeline.rulesets import rulesets


def again(text: str):
    found = Findings()
    ruleset = parse(text, "again", found)
    assert [str(error) for error in found.errors] == []
    return ruleset


@given(rulesets())
def test_rules_as_tc_lines_are_the_rules_again(ruleset):
    """And printing them again gives the same text: it is canonical."""
    text = tc_print.print_ruleset(ruleset)
    assert again(text) == ruleset
    assert tc_print.print_ruleset(again(text)) == text


@given(rulesets())
def test_rules_as_yaml_are_the_rules_again(ruleset):
    text = yaml_rules.dump(ruleset)
    assert is_yaml(text)
    assert again(text) == ruleset


@given(rulesets())
def test_a_script_is_one_line_for_each_thing(ruleset):
    lines = tc_print.print_ruleset(ruleset).splitlines()
    assert len(lines) == len(ruleset.qdiscs) + len(ruleset.templates) + len(ruleset.rules)
    assert all(line.startswith("tc ") for line in lines)
