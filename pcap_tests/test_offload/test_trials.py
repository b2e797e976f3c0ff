"""What follows from what was tried. Trials in a real kernel are in pcap_tests/vm."""

from __future__ import annotations

import pytest

from offload.netlink.extack import Answer
from offload.trials import CHAINS, COMMIT, CT, EXACT, FLOWER, PIPELINE, SOFTWARE, TRANSLATED6, TRIALS, Tried, decided


def tried(*refused):
    return [Tried(trial, Answer(95, "no") if trial in refused else Answer(0)) for trial in TRIALS]


@pytest.mark.parametrize(
    ("refused", "way"),
    [
        ((), PIPELINE),
        ((TRANSLATED6,), PIPELINE),  # which needs no exact filters
        ((CT,), EXACT),
        ((COMMIT, CHAINS), EXACT),
        ((CT, TRANSLATED6), SOFTWARE),
        ((FLOWER,), SOFTWARE),
    ],
)
def test_the_best_way_of_which_nothing_lacks(refused, way):
    decision = decided("on", tried(*refused), tried())
    assert decision.way == way and len(decision.why) == len(refused)
    assert all(line.endswith("): Operation not supported: no") and line.startswith("the NIC: ") for line in decision.why)


def test_without_the_feature_it_is_software():
    assert decided("", (), tried()) == (SOFTWARE, ("the interface has no hw-tc-offload",))
    assert decided("off", (), tried(CT)).why == (
        "the kernel: ct (action ct, and on in a chain): Operation not supported: no", "hw-tc-offload is off: ethtool -K DEVICE hw-tc-offload on",
    )  # fmt: skip


def test_what_was_not_tried_is_not_there():
    assert decided("on", ()).way == SOFTWARE
