"""Rules with connection tracking, compiled: the walk with the engine says what the interpreter says with the model, of whole conversations."""

from __future__ import annotations

import os
from collections import Counter
from random import Random

from pcap_tests.test_datapath.test_pipeline.random_talks import Traffic, some_config, some_pipeline
from pcap_tests.test_datapath.test_pipeline.walked import Sides

PAIRS = int(os.environ.get("CTMIRROR_PAIRS", "100000")) // 10
FRAMES_EACH = 120


def talk(random: Random, seen: Counter[str]) -> None:
    """One pipeline, and as many frames through it."""
    ruleset = some_pipeline(random)
    sides, traffic = Sides(ruleset, some_config(random)), Traffic(random, ruleset)
    for number in range(FRAMES_EACH):
        coming = traffic.next()
        (said,) = sides.send([coming])
        traffic.told(said)
        seen[said.reason] += 1
        seen["translated"] += any(left.frame[26:34] != coming.frame[26:34] for left in said.left)
        seen["pieces"] += len(said.left) > 1
        seen["conns"] += sides.twins is not None and sides.twins.engine.count > 1
        if number % 40 == 39:
            sides.check()


def test_walk_and_engine_say_what_interpreter_and_model_say() -> None:
    """Any pipeline, any conversation: verdicts, hits, the bytes that leave, and all connections are the same."""
    random, seen = Random(os.environ.get("CTMIRROR_SEED", "talks")), Counter[str]()
    for _ in range(-(-PAIRS // FRAMES_EACH)):
        talk(random, seen)
    assert {"ok", "fragment", "rule_drop", "not_ip", "table_full"} <= set(seen)
    assert min(seen["translated"], seen["pieces"], seen["conns"]) > PAIRS // 100
