"""The invariants of A11, under random traffic through rules, NIC and mirror, while the NIC fails at random: a million packets.

Invariants: see watching. CTMIRROR_PACKETS sets on how many packets; a plan that breaks one is printed, and is all that a run depends on.
Not here: that the watch sees what is broken (test_watching).
"""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from offload.simnic.faults import Fault
from offload.simnic.results import Why
from pcap_tests.test_offload.crowd_run import Plan, Run
from pcap_tests.test_offload.watching import SECOND

PACKETS = int(float(os.environ.get("CTMIRROR_PACKETS", 1_000_000 * float(os.environ.get("CTMIRROR_SHARE", "1")))))
EACH = 10_000
MS = SECOND // 1000
# Longer than an answer is waited for (Run) nothing is late: what comes after that may be taken for another's, as mirror.pyx says.
FAULTS = st.builds(
    lambda kind, at, lasts, share, delay, error: Fault(kind, at, at + lasts, share, delay, error),
    st.sampled_from(["refuse", "delay", "lose-command", "lose-reply", "reset", "stick"]),
    st.integers(0, 60 * SECOND),
    st.sampled_from([SECOND // 10, 5 * SECOND, 60 * SECOND]),
    st.sampled_from([0.05, 0.3, 1.0]),
    st.sampled_from([MS, 20 * MS, 900 * MS]),
    st.sampled_from([errno.ENOSPC, errno.ENOMEM, errno.EOPNOTSUPP, errno.EINVAL]),
)
PLANS = st.builds(
    Plan,
    seed=st.integers(0, 2**32 - 1),
    talks=st.sampled_from([500, 5, 50, 3000]),
    density=st.sampled_from([1500, 300, 4000]),
    kind=st.sampled_from(["perfect", "connectx-7-hw", "connectx-6dx-sw", "tiny"]),
    capacity=st.sampled_from([0, 0, 1, 3, 40, 1000]),
    accounting=st.booleans(),
    policy=st.sampled_from(["first-come", "by-rate", "by-bytes"]),
    nat=st.sampled_from(["none", "src", "dst"]),
    mark=st.booleans(),
    soft=st.booleans(),
    slots=st.sampled_from([20_000, 20_000, 100]),
    faults=st.lists(FAULTS, max_size=3).map(tuple),
    odd=st.sampled_from([0.01, 0.0, 0.1]),
)


@pytest.mark.timeout(3600)
def test_a11_holds_whatever_comes_and_whatever_goes_wrong() -> None:
    packets, hardware = [0], [0]

    @settings(max_examples=max(1, -(-PACKETS // EACH)), suppress_health_check=list(HealthCheck), phases=[Phase.explicit, Phase.reuse, Phase.generate])
    @given(plan=PLANS)
    def holds(plan: Plan) -> None:
        run = Run(plan)
        run.go(EACH)
        packets[0] += run.packets
        hardware[0] += run.offloaded.shares.hardware

    holds()
    assert packets[0] >= PACKETS and hardware[0] > PACKETS // 10


FULL = Fault("refuse", share=0.5, until=20 * SECOND, error=errno.EINVAL)
HAPPENS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "nothing": ({"nat": "src"}, ["accepted", "destroyed"]),
    "refuse": ({"faults": (FULL,)}, ["refused_other"]),
    "full": ({"capacity": 40}, ["refused_full", "spared"]),
    "make room": ({"capacity": 40, "policy": "by-bytes", "talks": 50}, ["refused_full", "evictions"]),
    "lose-command": ({"faults": (Fault("lose-command", share=0.3, until=60 * SECOND),)}, ["lost"]),
    "lose-reply": ({"faults": (Fault("lose-reply", share=0.3, until=60 * SECOND),)}, ["lost", "existed", "missing"]),
    "reset": ({"faults": (Fault("reset", at=2 * SECOND), Fault("reset", at=9 * SECOND))}, ["resets"]),
    "delay": ({"faults": (Fault("delay", share=0.3, delay=900 * MS),)}, ["dropped_stats"]),
    "few conns": ({"talks": 3000, "slots": 100}, ["accepted"]),
    "slow": ({"kind": "tiny", "talks": 3000}, ["refused_full", "kept_out"]),
    "software between": ({"soft": True, "kind": "connectx-6dx-sw"}, ["accepted"]),
}


@pytest.mark.parametrize("what", HAPPENS)
def test_what_is_drawn_happens(what: str) -> None:
    """Of each kind one run: that it is what it is meant to be."""
    plan, counters = HAPPENS[what]
    run = Run(Plan(seed=7, **plan))
    run.go(EACH)
    counts, shares = run.offloaded.mirror.counters(), run.offloaded.shares
    assert all(counts[name] > 0 for name in counters), counts
    assert shares.hardware > 0 and shares.why[Why.CT_CLOSING] > 0 and shares.why[Why.IP_OPTIONS] > 0
    assert run.watch.checks > 50 and (shares.why[Why.IN_SOFTWARE] > 0) == bool(plan.get("soft"))


@pytest.mark.parametrize(("inserts", "latency"), [(20, 0), (200, 3000), (1000, 15_000), (20, 100)])
def test_nothing_is_lost_by_a_nic_that_is_slow(inserts: float, latency: float) -> None:
    """Whatever it takes: hundreds of connections want in and out, and commands wait where they are not asked again."""
    run = Run(Plan(seed=5, talks=500, inserts=inserts, latency=latency))
    run.go(EACH)
    counts = run.offloaded.mirror.counters()
    assert (counts["lost"], counts["strays"]) == (0, 0) and counts["accepted"] > 10


def test_a11_holds_of_many_busy_ones_for_an_hour() -> None:
    """Every 20 s each says something, in hardware but for its first packets, and nobody is ever taken out."""
    run = Run(Plan(seed=3, talks=100, odd=0, kind="connectx-7-hw"))
    run.crowd.busy = 100
    run.crowd.proto[:] = 6
    for _ in range(180):
        run.send(run.crowd.burst(400, run.now, MS))
        run.now += 20 * SECOND
    assert run.offloaded.flows.counters()["teardown_idle"] == 0
    assert run.offloaded.shares.hardware > 0.98 * run.packets
    run.silence()
