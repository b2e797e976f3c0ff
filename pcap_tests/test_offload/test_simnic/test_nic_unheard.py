"""What nobody was told: whatever goes wrong, what was told, what is unheard and what is still to be told are together all that was counted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datapath import craft
from offload.records import Ctinfo, Op
from offload.simnic.faults import Fault
from offload.simnic.results import Verdict
from pcap_tests.conftest import examples
from pcap_tests.test_offload.test_simnic.nic_side import SECOND, Conn, forwarding, kind

A = Conn("10.0.0.1", "192.0.2.9", 40000, 80, conn=7)
BACK = Conn("192.0.2.9", "10.0.0.1", 80, 40000, ctinfo=Ctinfo.ESTABLISHED_REPLY, cookie=3, conn=7)
FRAME = craft.tcp("10.0.0.1", "192.0.2.9", 40000, 80, "A")
ANSWER = craft.tcp("192.0.2.9", "10.0.0.1", 80, 40000, "A")
PERIOD = "[counters]\nperiod = 1000\n"


def unheard(nic) -> list[tuple[int, int, int]]:
    return nic.unheard.take().tolist()


def test_what_a_rule_has_counted_goes_with_it():
    nic = forwarding(A)
    nic.unheard.follow()
    for _ in range(3):
        nic.frame(FRAME)
    assert nic.stats(A)["packets"] == 3
    for _ in range(2):
        nic.frame(FRAME)
    assert nic.untold().tolist() == [(7, 2, 2 * len(FRAME))]
    nic.submit(A.command(Op.DESTROY), 0)
    (reply,) = nic.replies(0)
    assert (reply["packets"], reply["bytes"]) == (0, 0), "no real one tells"
    assert unheard(nic) == [(7, 2, 2 * len(FRAME))] and unheard(nic) == []
    assert (nic.unheard.packets, nic.unheard.bytes, nic.heard, len(nic.untold())) == (2, 2 * len(FRAME), 3, 0)


def test_a_counter_of_both_directions_goes_with_the_last_of_them():
    nic = forwarding(A, BACK, of=kind("[counters]\nperiod = 0\naccounting = false\n"))
    nic.frame(FRAME)
    nic.frame(ANSWER)
    assert nic.untold()["packets"].tolist() == [2]
    nic.destroy(A)
    assert nic.unheard.packets == 0
    nic.destroy(BACK)
    assert nic.unheard.packets == 2


def test_an_answer_that_is_lost_has_told_nobody():
    nic = forwarding(A, faults=[Fault("lose-reply", at=SECOND)])
    nic.frame(FRAME, ts=SECOND)
    nic.submit(A.command(Op.STATS), SECOND)
    assert len(nic.replies(SECOND)) == 0 and nic.unheard.packets == 1 and nic.heard == 0


def test_a_reset_takes_counters_and_answers_with_it():
    nic = forwarding(A, BACK, faults=[Fault("reset", at=SECOND)])
    nic.frame(FRAME)
    nic.submit(A.command(Op.STATS), 0)
    nic.advance(0)
    nic.frame(ANSWER)
    nic.advance(SECOND)
    assert nic.resets == 1 and (nic.unheard.packets, nic.heard) == (2, 0)


def test_a_look_reads_past_the_cache_and_tells():
    nic = forwarding(A, BACK, of=kind(PERIOD))
    nic.frame(FRAME, ts=SECOND // 2)
    assert nic.stats(A, SECOND // 2)["packets"] == 0, "the cache is of before"
    rules, replies = nic.look(SECOND // 2)
    assert (rules["cookie"] == replies["cookie"]).all() and (replies["op"] == Op.STATS).all() and not replies["error"].any()
    assert dict(zip(replies["cookie"].tolist(), replies["packets"].tolist(), strict=True)) == {A.cookie: 1, BACK.cookie: 0}
    assert nic.look(SECOND)[1]["packets"].tolist() == [0, 0] and nic.heard == 1
    assert replies["used"][replies["cookie"] == A.cookie].tolist() == [SECOND // 2]


def test_a_look_at_counters_that_are_stuck_is_one_at_the_cache():
    nic = forwarding(A, of=kind(PERIOD), faults=[Fault("stick", at=2 * SECOND)])
    nic.frame(FRAME, ts=SECOND // 2)
    nic.frame(FRAME, ts=3 * SECOND)
    assert nic.look(4 * SECOND)[1]["packets"].tolist() == [1]
    assert nic.untold()["packets"].tolist() == [1]


def test_a_look_at_nothing():
    rules, replies = forwarding().look(0)
    assert len(rules) == len(replies) == 0


steps = st.lists(st.sampled_from(["frame", "answer", "stats", "destroy", "replace", "look", "wait"]), max_size=60)
troubles = st.lists(st.builds(
    Fault, st.sampled_from(["refuse", "delay", "lose-command", "lose-reply", "reset", "stick"]), st.integers(0, 20 * SECOND),
    st.just(20 * SECOND), st.floats(0, 1), st.integers(0, 3 * SECOND),
), max_size=4)  # fmt: skip


@pytest.mark.parametrize("accounting", ["true", "false"])
@settings(max_examples=examples(60))
@given(steps, troubles)
def test_nothing_that_was_counted_is_lost_without_a_trace(accounting, steps, troubles):
    nic = forwarding(of=kind(f"[counters]\nperiod = 1000\naccounting = {accounting}\n[rates]\nlatency = 100\n"), faults=troubles)
    counted, now = 0, 0
    for step in steps:
        now += SECOND // 3
        if step in ("frame", "answer"):
            counted += nic.frame(FRAME if step == "frame" else ANSWER, ts=now).verdict == Verdict.FORWARDED
        elif step == "look":
            nic.look(now)
        elif step != "wait":
            op = {"stats": Op.STATS, "destroy": Op.DESTROY, "replace": Op.REPLACE}[step]
            for conn in (A, BACK):
                nic.submit(conn.command(op), now)
        nic.replies(now)
        assert nic.heard + nic.unheard.packets + int(np.sum(nic.untold()["packets"])) == counted
        nic.check()
