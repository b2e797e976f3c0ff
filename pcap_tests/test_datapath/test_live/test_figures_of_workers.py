"""What several workers with the same rules have counted, as one. Not here: what else is told of a node (test_control_server)."""

from __future__ import annotations

import numpy as np

from datapath.live import figures
from datapath.pipeline.program import COUNT_DTYPE


def test_counters_of_rules_are_added_up_and_the_last_use_is_the_latest():
    one = np.array([(1, 60, 5, 1, 0), (0, 0, -1, 0, 0)], dtype=COUNT_DTYPE)
    other = np.array([(2, 120, 4, 0, 2), (3, 180, 9, 3, 1)], dtype=COUNT_DTYPE)
    assert figures._rule_counters([one, other]).tolist() == [(3, 180, 5, 1, 2), (3, 180, 9, 3, 1)]
