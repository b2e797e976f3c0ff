"""Who may talk to whom, by published recipes: expectations written by hand against the evaluator, and the compiled rules against both."""

from __future__ import annotations

from collections import Counter

import pytest

from datapath.pipeline.policy.compiler import Options
from datapath.pipeline.policy.evaluate import Packet, judge
from pcap_tests.test_datapath.test_pipeline.test_policy.compared import Lab
from pcap_tests.test_datapath.test_pipeline.test_policy.machine import Frame
from pcap_tests.test_datapath.test_pipeline.test_policy.recipes import NAMES, Recipe

every_recipe = pytest.mark.parametrize("name", NAMES)


@every_recipe
def test_the_evaluator_says_what_the_recipe_expects(name):
    recipe = Recipe(name)
    cluster, outcomes = recipe.cluster(), Counter()
    for attempt in recipe.attempts():
        said = judge(cluster, Packet(attempt.src, attempt.dst, attempt.proto, attempt.number), recipe.node_traffic)
        assert said.allowed == attempt.allowed, f"{attempt}: {said.egress.text}; {said.ingress.text}"
        assert not attempt.by or attempt.by in {each.policy for each in (said.egress, said.ingress) if each.allowed == said.allowed}, (attempt, said)
        outcomes[said.allowed] += 1
    assert outcomes[True] and outcomes[False], "a recipe with one outcome shows nothing"
    assert [line.text for line in recipe.lines if not line.used] == []


@every_recipe
@pytest.mark.parametrize("established", ["packet", "connection"])
def test_compiled_rules_say_the_same(name, established):
    recipe = Recipe(name)
    lab = Lab(recipe.cluster(), Options(established=established, node_traffic=recipe.node_traffic))
    for number, attempt in enumerate(recipe.attempts()):
        ports = (None, None) if attempt.number is None else (40000 + number, attempt.number)
        frame = Frame(attempt.src, attempt.dst, attempt.proto, *ports, kind=8 if attempt.number is None else None)
        if attempt.number is None:
            lab.machine.conns.clear()  # an echo has an id for ports, which is not told apart here
        assert lab.compare(frame) == attempt.allowed, attempt


def test_there_are_as_many_recipes_as_promised():
    assert len(NAMES) >= 40
