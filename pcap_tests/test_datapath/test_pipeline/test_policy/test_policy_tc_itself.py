"""The machine's own tc takes what policies are compiled to: one line of every form there is in the recipes.

Needs root, tc and a compiler; skipped elsewhere, saying why, or failing if CTMIRROR_REQUIRE_KERNEL=1. No classifier is needed in the kernel.
"""

from __future__ import annotations

import re

from datapath.pipeline.policy.compiler import Options, compile_policies
from datapath.pipeline.policy.devices import attach
from datapath.pipeline.tc_print import print_ruleset
from pcap_tests.required import cannot
from pcap_tests.tc_itself import Tc, obstacle
from pcap_tests.test_datapath.test_pipeline.test_policy.recipes import NAMES, Recipe

ADDRESS = re.compile(r"\b(\d+\.){3}\d+(/\d+)?\b|\b[0-9a-f]*:[0-9a-f:]+(/\d+)?")


def lines() -> list[str]:
    """The lines of all recipes, of those that differ in numbers only the first one. All devices are one."""
    found: dict[str, str] = {}
    for name in NAMES:
        cluster = Recipe(name).cluster()
        for options in (Options(forward="redirect"), Options("connection", "policy", anti_spoof=False)):
            ruleset = compile_policies(cluster, attach(pod for pod in cluster.pods if not pod.host_network), options)
            for line in print_ruleset(ruleset).splitlines():
                line = re.sub(r"\bdev \S+", "dev eth0", line)
                found.setdefault(re.sub(r"\d+", "N", ADDRESS.sub("A", line)), line)
    return list(found.values())


def test_tc_takes_every_form_of_line(tmp_path):
    if why := obstacle():
        cannot(f"tc is not asked: {why}")
    asked = Tc(tmp_path)
    try:
        forms = lines()
        assert len(forms) > 50
        for line in forms:
            assert asked.request(line), line
    finally:
        asked.close()
