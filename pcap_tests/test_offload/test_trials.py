"""What follows from what was tried. Trials in a real kernel are in pcap_tests/vm."""

from __future__ import annotations

import errno

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
    assert decision.way == way and len(decision.why) == min(len(refused), 1)
    more = " (and 1 more for the same reason)" if len(refused) > 1 else ""
    assert all(line.endswith(f"): Operation not supported: no{more}") and line.startswith("the NIC: ") for line in decision.why)


def test_without_the_feature_it_is_software():
    assert decided("", (), tried()) == (SOFTWARE, ("the interface has no hw-tc-offload",))
    assert decided("off", (), tried(CT)).why == (
        "the kernel: ct (action ct, and on in a chain): Operation not supported: no", "hw-tc-offload is off: ethtool -K DEVICE hw-tc-offload on",
    )  # fmt: skip


def test_what_was_not_tried_is_not_there():
    assert decided("on", ()).way == SOFTWARE


def test_one_cause_is_said_once_with_what_it_takes():
    lacking = [Tried(trial, Answer(errno.ENOENT, "TC classifier not found")) for trial in TRIALS]
    assert decided("", (), lacking).why == (
        "the kernel: flower (a filter): No such file or directory: TC classifier not found: expected a kernel with CONFIG_NET_CLS_FLOWER "
        "(ctmirror doctor) (and 8 more for the same reason)",
        "the interface has no hw-tc-offload",
    )
    others = [each if each.trial is not CT else Tried(CT, Answer(95, "no")) for each in lacking]
    assert [line.split(":")[1] for line in decided("", (), others).why[:2]] == [" flower (a filter)", " ct (action ct, and on in a chain)"]
