"""How commands are answered, and what misses instead of being dropped (offload contract A8, A6.50), by item; limits and faults."""

from __future__ import annotations

import errno
from dataclasses import replace

import numpy as np
import pytest

from ctcore.errors import ConfigError
from datapath import craft
from offload.records import Ctinfo, Op
from offload.simnic import profile
from offload.simnic.faults import Fault
from offload.simnic.results import Verdict, Why
from pcap_tests.test_offload.test_simnic import nic_side as side
from pcap_tests.test_offload.test_simnic.nic_side import SECOND, Conn, forwarding, kind

MS = SECOND // 1000
A = Conn("10.0.0.1", "192.0.2.9", 40000, 80)
BACK = Conn("192.0.2.9", "10.0.0.1", 80, 40000, ctinfo=Ctinfo.ESTABLISHED_REPLY, cookie=3)
FRAME = craft.tcp("10.0.0.1", "192.0.2.9", 40000, 80, "A")


def many(n: int) -> list[Conn]:
    return [replace(A, sport=1000 + i, cookie=2 * i + 2, conn=i) for i in range(n)]


def commands(conns: list[Conn], op: Op = Op.REPLACE) -> np.ndarray:
    return np.concatenate([conn.command(op) for conn in conns])


def test_a8_60_each_error_of_the_contract():
    nic = forwarding(A, of=kind("[table]\ncapacity = 2\n"))
    assert nic.replace(A) == errno.EEXIST
    assert nic.replace(replace(A, proto=132, cookie=4)) == errno.EOPNOTSUPP
    assert nic.replace(replace(A, ctinfo=0, cookie=4)) == errno.EOPNOTSUPP, "without metadata"
    assert nic.replace(replace(A, cookie=4)) == errno.ENOMEM, "another cookie for the same tuple"
    assert nic.replace(BACK) == 0
    assert nic.replace(replace(A, sport=1, cookie=6)) == errno.ENOSPC
    assert nic.destroy(replace(A, cookie=6)) == errno.ENOENT and nic.stats(replace(A, cookie=6))["error"] == errno.ENOENT
    assert nic.destroy(A) == 0 and nic.destroy(A) == errno.ENOENT
    assert nic.replace(replace(A, sport=1, cookie=6)) == 0, "there is room again"
    assert nic.answered[Op.REPLACE, errno.ENOSPC] == 1
    nic.check()


def test_a8_60_what_is_no_command_is_einval():
    nic = forwarding()
    assert nic.told(A.command(9), 0) == errno.EINVAL  # type: ignore[arg-type]


@pytest.mark.parametrize(("frame", "why"), [
    (craft.tcp("10.0.0.1", "192.0.2.9", 40000, 80, "FA"), Why.CT_CLOSING),
    (craft.tcp("10.0.0.1", "192.0.2.9", 40000, 80, "R"), Why.CT_CLOSING),
    (craft.frame("10.0.0.1", "192.0.2.9", 6, bytes(40), frag=0x2000), Why.FRAGMENT),
    (craft.frame("10.0.0.1", "192.0.2.9", 6, bytes(40), frag=1), Why.FRAGMENT),
    (craft.icmp("10.0.0.1", "192.0.2.9", 8), Why.CT_PROTO),
    (craft.frame("10.0.0.1", "192.0.2.9", 6, bytes(40), options=bytes([1] * 4)), Why.IP_OPTIONS),
    (craft.frame("2001:db8::1", "2001:db8::9", 17, bytes(8), ext=((craft.FRAGMENT, craft.fragment6()),)), Why.FRAGMENT),
    (craft.frame("2001:db8::1", "2001:db8::9", 17, bytes(8), ext=((craft.HOP_BY_HOP, craft.options6()),)), Why.IP6_EXTENSION),
    (FRAME[:53], Why.IP_LENGTH),
    (FRAME[:13], Why.TRUNCATED),
    (FRAME[:12] + b"\x81\x00\0\1" * 3 + FRAME[12:], Why.TAGS),
    (craft.frame("10.0.0.1", "192.0.2.9", 6, bytes(40), length=100), Why.IP_LENGTH),
    (craft.frame("10.0.0.1", "192.0.2.9", 6, bytes(40), version=5), Why.IP_HEADER),
    (craft.tcp("10.0.0.1", "192.0.2.9", 40000, 80, "A", doff=4), Why.TRANSPORT),
])  # fmt: skip
def test_a8_61_what_hardware_cannot_do_misses_and_is_not_dropped(frame, why):
    nic = forwarding(A)
    got = nic.frame(frame)
    assert (got.verdict, got.why, got.data, got.left) == (Verdict.MISSED, why, frame, [])


@pytest.mark.parametrize("have", [20, 33, 34, 53])
def test_a8_61_a_header_that_was_not_captured_as_a_whole_misses(have):
    got = forwarding(A).frame(FRAME[:have], missing=len(FRAME) - have)
    assert (got.verdict, got.why) == (Verdict.MISSED, Why.TRUNCATED)


def test_a8_61_what_is_no_ethernet_misses():
    nic = forwarding(A)
    memory, frames = side.frames_of([FRAME[14:]], link=101)
    frames["iface"] = side.IN
    assert nic.process(memory, frames)["why"].tolist() == [Why.LINK]


def test_a6_50_statistics_are_deltas():
    nic = forwarding(A)
    for i in range(3):
        nic.frame(FRAME, ts=10 + i)
    reply = nic.stats(A, 20)
    assert (reply["packets"], reply["bytes"], reply["used"], reply["shared"]) == (3, 3 * len(FRAME), 12, 0)
    reply = nic.stats(A, 20)
    assert (reply["packets"], reply["bytes"], reply["used"]) == (0, 0, 12)


def test_a6_50_they_come_from_a_cache_that_is_refreshed_every_period():
    nic = forwarding(A, of=kind("[counters]\nperiod = 1000\n"))
    nic.frame(FRAME, ts=SECOND + 1)
    assert nic.stats(A, SECOND + 2)["packets"] == 0, "since the second began, the driver has not looked"
    assert nic.stats(A, 2 * SECOND)["packets"] == 1
    nic.frame(FRAME, ts=2 * SECOND + 5)
    reply = nic.stats(A, 2 * SECOND + 6)
    assert (reply["packets"], reply["used"]) == (0, SECOND + 1)
    assert nic.stats(A, 5 * SECOND)["packets"] == 1


def test_a6_50_with_accounting_off_one_counter_serves_both_directions():
    nic = forwarding(A, BACK, of=kind("[counters]\nperiod = 0\naccounting = false\n"))
    nic.frame(FRAME)
    nic.frame(FRAME)
    nic.frame(craft.tcp("192.0.2.9", "10.0.0.1", 80, 40000, "A"))
    reply = nic.stats(BACK)
    assert (reply["packets"], reply["shared"]) == (3, 1)
    assert nic.stats(A)["packets"] == 0
    assert nic.destroy(A) == 0
    nic.check()
    nic.frame(craft.tcp("192.0.2.9", "10.0.0.1", 80, 40000, "A"))
    assert nic.stats(BACK)["packets"] == 1


# --- limits -----------------------------------------------------------------------------------------------------------------------------


def test_a9_71_rules_are_inserted_at_a_rate():
    nic = forwarding(of=kind("[rates]\ninserts = 1000\nburst = 10\n"))
    assert nic.submit(commands(many(100)), 0) == 100
    assert len(nic.replies(0)) == 10
    assert len(nic.replies(50 * MS)) == 50 and nic.entries == 60
    assert len(nic.replies(90 * MS)) == 40 and nic.line.waiting == 0
    nic.check()


def test_a9_71_a_command_takes_its_latency_and_nothing_is_there_before():
    nic = forwarding(of=kind("[rates]\nlatency = 5.0\n"))
    nic.submit(A.command(), 0)
    assert len(nic.replies(5 * MS - 1)) == 0 and nic.frame(FRAME, ts=5 * MS - 1).why == Why.CT_MISS
    assert nic.frame(FRAME, ts=5 * MS).verdict == Verdict.FORWARDED
    assert len(nic.replies(5 * MS)) == 1


def test_a9_71_a_full_queue_takes_what_fits():
    nic = forwarding(of=kind("[rates]\ninserts = 1\nqueue = 8\n"))
    assert nic.submit(commands(many(20)), 0) == 8
    assert nic.submit(commands(many(20)), 0) == 1, "one was carried out at once"


def test_a9_71_a_capacity_is_of_entries_in_both_tables():
    nic = forwarding(of=kind('[table]\ncapacity = 5\ntables = "both"\n'))
    nic.submit(commands(many(4)), 0)
    assert nic.replies(0)["error"].tolist() == [0, 0, errno.ENOSPC, errno.ENOSPC]
    assert (nic.entries, nic.tabled) == (2, 4)


def test_tables_grow_and_keep_what_they_have():
    nic, conns = forwarding(), many(3000)
    for i in range(0, 3000, 500):
        nic.submit(commands(conns[i : i + 500]), 0)
        assert (nic.replies(0)["error"] == 0).all()
        nic.check()
    nic.submit(commands(conns[:1500], Op.DESTROY), 0)
    assert (nic.replies(0)["error"] == 0).all()
    nic.check()
    assert nic.entries == 1500
    assert nic.frame(craft.tcp("10.0.0.1", "192.0.2.9", 1000 + 2999, 80, "A")).row["conn"] == 2999


# --- faults -----------------------------------------------------------------------------------------------------------------------------


def test_a_refused_rule_is_not_there_and_says_why():
    nic = forwarding(faults=[Fault("refuse", until=SECOND, error=errno.ENOMEM)])
    assert nic.replace(A, 0) == errno.ENOMEM and nic.entries == 0
    assert nic.replace(A, SECOND) == 0


def test_a_share_of_commands_is_drawn_by_the_seed():
    def refused(seed: int) -> list[int]:
        nic = forwarding(of=kind("[faults]\nrefuse = 0.25\n"), seed=seed)
        nic.submit(commands(many(400)), 0)
        return nic.replies(0)["error"].tolist()

    assert refused(1) == refused(1) != refused(2)
    assert 60 < sum(error != 0 for error in refused(1)) < 140


def test_a_delayed_command_is_overtaken():
    nic = forwarding(faults=[Fault("delay", until=1, delay=10 * MS)])
    nic.submit(A.command(), 0)
    nic.submit(BACK.command(), 1 * MS)
    assert nic.replies(1 * MS)["cookie"].tolist() == [BACK.cookie]
    assert nic.replies(10 * MS)["cookie"].tolist() == [A.cookie]


@pytest.mark.parametrize(("fault", "entries"), [("lose-command", 0), ("lose-reply", 1)])
def test_what_is_lost_is_never_answered(fault, entries):
    nic = forwarding(faults=[Fault(fault, until=SECOND)])
    nic.submit(A.command(), 0)
    assert len(nic.replies(100 * SECOND)) == 0 and nic.entries == entries


def test_a_reset_empties_tables_and_queue():
    nic = forwarding(A, of=kind("[rates]\nlatency = 0\n"), faults=[Fault("reset", at=SECOND)])
    assert nic.frame(FRAME, ts=SECOND - 1).verdict == Verdict.FORWARDED and nic.resets == 0
    assert nic.frame(FRAME, ts=SECOND).why == Why.CT_MISS
    assert (nic.resets, nic.entries, len(nic.held()), nic.line.waiting) == (1, 0, 0, 0)
    assert nic.stats(A, SECOND)["error"] == errno.ENOENT
    assert nic.replace(A, SECOND) == 0


def test_a_reset_loses_what_is_on_its_way():
    nic = forwarding(of=kind("[rates]\nlatency = 10.0\n"), faults=[Fault("reset", at=5 * MS)])
    nic.submit(A.command(), 0)
    assert len(nic.replies(SECOND)) == 0 and nic.resets == 1 and nic.entries == 0


def test_stuck_counters_tell_what_they_told():
    nic = forwarding(A, of=kind("[counters]\nperiod = 1000\n"), faults=[Fault("stick", at=2 * SECOND, until=9 * SECOND)])
    nic.frame(FRAME, ts=SECOND // 2)
    assert nic.stats(A, SECOND + 1)["packets"] == 1
    nic.frame(FRAME, ts=SECOND + 2)
    for second in range(2, 9):
        nic.frame(FRAME, ts=second * SECOND)
        assert nic.stats(A, second * SECOND + 1)["packets"] == 0
    assert nic.stats(A, 9 * SECOND)["packets"] == 8


@pytest.mark.parametrize("wrong", [{"kind": "burn"}, {"kind": "refuse", "share": 1.5}, {"kind": "stick", "at": 5, "until": 4}])
def test_a_fault_that_is_none_is_refused(wrong):
    with pytest.raises(ConfigError, match="expected"):
        Fault(**wrong)


# --- callers' mistakes ------------------------------------------------------------------------------------------------------------------


def test_frames_outside_of_memory_are_refused():
    nic = forwarding(A)
    memory, frames = side.frames_of([FRAME])
    for name, value in (("caplen", len(FRAME) + 1), ("offset", 1), ("offset", 1 << 63), ("iface", 65535), ("len", 1)):
        wrong = frames.copy()
        wrong[name] = value
        with pytest.raises(ValueError, match="expected"):
            nic.process(memory, wrong)
    with pytest.raises(ValueError, match="COMMAND_DTYPE"):
        nic.submit(frames, 0)


def test_no_frames_and_no_commands():
    nic = forwarding()
    memory, frames = side.frames_of([])
    assert len(nic.process(memory, frames)) == 0 and nic.submit(commands([A])[:0], 0) == 0 and len(nic.replies(0)) == 0


def test_profiles_of_nothing_offload_nothing():
    nic = forwarding(of=profile.load("none"))
    assert nic.replace(A) == errno.EOPNOTSUPP
    assert nic.frame(FRAME).why == Why.IN_SOFTWARE
