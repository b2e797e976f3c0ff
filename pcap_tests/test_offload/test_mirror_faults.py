"""What goes wrong between mirror and NIC: lost commands, lost answers, resets, nonsense; and audits, which find what came of it."""

from __future__ import annotations

import errno
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ctcore.errors import ConfigError
from ctcore.flow_changes import ASK_DTYPE, Asked, FlowFlag
from datapath import craft
from offload.contract.why import Why
from offload.mirror import BYTES_PER_FLOW, Found, Mirror
from offload.mirror_settings import MirrorSettings
from offload.records import REPLY_DTYPE, Ctinfo, Op
from pcap_tests.test_datapath.tabled import ANY, COMMITS, IN, OUT, Net, Tcp
from pcap_tests.test_offload.fake_nic import ACCEPT, LOSE, LOSE_ANSWER, SECOND, FakeNic
from pcap_tests.test_offload.mirrored import Rig, ops

# --- what goes wrong ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fate", [LOSE, LOSE_ANSWER])
def test_a_lost_install_is_asked_for_again(fate: str) -> None:
    lost: list[Any] = []
    nic = FakeNic()
    nic.fate = lambda command: lost.append(1) or fate if len(lost) < 2 else ACCEPT
    rig = Rig(nic=nic)
    Tcp(rig).opened()
    assert not rig.in_hardware()
    rig.wait(11)
    assert (rig.in_hardware(), len(nic.rules), rig.mirror.counters()["lost"]) == (True, 2, 2)
    counts = rig.mirror.counters()
    again = "add_done" if fate == LOSE else "add_existed"
    assert (counts["commands_add"], counts["add_lost"], counts[again]) == (4, 2, 2)


def test_what_is_never_answered_is_destroyed_before_it_is_given_up() -> None:
    nic = FakeNic()
    nic.fate = lambda command: LOSE_ANSWER if command["op"] == 1 else ACCEPT
    rig = Rig(nic=nic)
    Tcp(rig).opened()
    rig.wait(32)
    assert (rig.mirror.why(0) or {"why": None})["why"] in (None, Why.HW_SILENT)
    rig.settle()
    assert not nic.rules


def test_a_lost_removal_is_asked_for_until_it_is_answered() -> None:
    lost: list[Any] = []
    nic = FakeNic()
    nic.fate = lambda command: lost.append(1) or LOSE if command["op"] == 2 and len(lost) < 6 else ACCEPT
    rig = Rig(nic=nic)
    Tcp(rig).opened().say(IN, "FA")
    rig.wait(25)
    assert (rig.flows.count, len(nic.rules)) == (1, 2)
    rig.wait(10)
    assert (rig.flows.count, len(nic.rules)) == (0, 0)


def test_after_a_reset_everything_is_put_back() -> None:
    rig = Rig()
    talks = [Tcp(rig, port=port).opened() for port in range(40000, 40010)]
    talks[3].say(IN, "FA")
    rig.nic.reset()
    rig.wait(1)
    rig.settle()
    assert (len(rig.nic.rules), rig.mirror.counters()["resets"], rig.mirror.counters()["offloaded"]) == (18, 1, 9)
    assert not len(rig.mirror.audit(rig.nic.held()))
    assert all(rig.in_hardware(i) for i in range(10) if i != 3)
    assert rig.mirror.used == 10 and rig.mirror.reasons(range(2, 6)) == {None: 3}, "a part of the rows"


def test_a_slow_intake_and_a_full_ring_of_asks_lose_nothing() -> None:
    nic = FakeNic()
    nic.intake = 3
    rig = Rig(nic=nic, asks=2)
    frames = [craft.udp("10.0.0.1", "198.51.100.7", 1000 + i, 53) for i in range(50)]
    for frame in frames:
        super(Rig, rig).send(frame)
    assert rig.flows.counters()["hw_asks_lost"] == 48
    rig.wait(25)
    assert len(nic.rules) == 50


def test_an_audit_finds_what_is_too_much_what_is_missing_and_what_differs() -> None:
    rig = Rig()
    for port in (40000, 40001, 40002):
        Tcp(rig, port=port).opened()
    held = rig.nic.held()
    held[1]["ctinfo"] = Ctinfo.NEW
    extra = held[3].copy()
    extra["cookie"] += 1 << 33
    found = rig.mirror.audit(np.append(np.delete(held, 5), extra))
    assert [(row, direction, Found(what).name) for _, row, direction, what, _ in found.tolist()] == [
        (0, 1, "DIFFERENT"), (1, 1, "EXTRA"), (2, 1, "MISSING"),
    ]  # fmt: skip


def test_a_table_that_is_mirrored_later_tells_all_it_has() -> None:
    net = Net(ANY)
    Tcp(net).opened()
    net.flows.mirrored()
    asks = net.flows.asks()
    assert asks["ask"].tolist() == [Asked.INSTALL]
    assert int(asks["flags"][0]) == FlowFlag.FLOW_BIDIRECTIONAL | FlowFlag.FLOW_ASSURED | FlowFlag.FLOW_SEEN_REPLY


class Sparing(FakeNic):
    """It takes so many commands, in all."""

    takes = 1

    def submit(self, commands: NDArray[Any], now: int) -> int:
        taken = super().submit(commands[: self.takes], now)
        self.takes -= taken
        return taken


class ResetsWhileHeard(Sparing):
    """It begins anew while somebody asks for its replies, as soon as it is time. What is taken in that moment is new hardware's."""

    at = 1 << 62

    def replies(self, now: int) -> Any:
        if now >= self.at:
            self.at = 1 << 62
            self.reset()
            self.takes = 1 << 30
        return super().replies(now)


def test_a_reset_is_known_before_new_hardware_is_asked_for_anything() -> None:
    """Else an install that new hardware has taken is forgotten with the old one's, and its rule stays for good: its flow is on its way out."""
    nic = ResetsWhileHeard(latency=3 * SECOND)
    rig = Rig(nic=nic)
    talk = Tcp(rig).opened()
    talk.say(IN, "FA")
    rig.wait(1)
    assert (rig.mirror.waiting, rig.mirror.counters()["dropped_del"]) == (1, 1)
    nic.at = rig.now + 1
    rig.wait(5)
    rig.settle()
    assert (nic.resets, nic.rules, rig.flows.count) == (1, {}, 0)


# --- hardware that takes nothing ------------------------------------------------------------------------------------------------------------


def test_connections_that_end_while_hardware_takes_nothing_leave_no_row_and_are_never_installed() -> None:
    """Their rows would be all there are in the end, and each would be installed and destroyed when hardware takes something again."""
    rig = Rig(nic=FakeNic(), max=64)
    rig.nic.intake = 0
    for port in range(40000, 40100):
        talk = Tcp(rig, port=port).opened()
        assert talk.say(IN, "A").offload == "software"
        talk.say(IN, "RA")
        rig.wait(1)
        assert (rig.flows.count, rig.mirror.waiting) == (0, 0)
    again = Tcp(rig, port=40000).opened()
    rig.nic.intake = 1 << 30
    rig.wait(1)
    assert (ops(rig.nic), rig.mirror.counters()["called_off"]) == ([("REPLACE", 0), ("REPLACE", 1)], 100)
    again.say(IN, "RA")
    rig.wait(1)
    assert (rig.flows.count, rig.nic.rules) == (0, {})


def test_those_that_stay_are_installed_in_their_order() -> None:
    """But for the last one of those that wait, which has the place of one that has ended."""
    rig = Rig(nic=FakeNic())
    rig.nic.intake = 0
    talks = [Tcp(rig, port=40000 + number).opened() for number in range(5)]
    talks[1].say(IN, "RA")
    rig.wait(1)
    rig.nic.intake = 1 << 30
    rig.wait(1)
    assert [row for op, row, direction in rig.nic.log if direction == 0] == [0, 4, 2, 3]


def test_an_install_that_was_not_answered_is_called_off_and_what_may_have_come_of_it_destroyed() -> None:
    nic = FakeNic()
    nic.fate = lambda command: LOSE_ANSWER
    rig = Rig(nic=nic, mirror={"reply_limit": 2.0, "tries": 3})
    talk = Tcp(rig).opened()
    nic.intake = 0
    rig.wait(3)
    assert (rig.mirror.waiting, len(nic.rules)) == (2, 2), "it is to be asked again"
    talk.say(IN, "RA")
    nic.intake, nic.fate = 1 << 30, lambda command: ACCEPT
    rig.wait(1)
    assert (rig.mirror.counters()["called_off"], ops(nic)[-2:]) == (1, [("DESTROY", 0), ("DESTROY", 1)])
    assert (rig.flows.count, nic.rules) == (0, {})


@pytest.mark.parametrize("fate", [ACCEPT, errno.EINVAL, LOSE])
def test_of_an_install_that_hardware_has_heard_half_of_the_other_half_is_called_off(fate: Any) -> None:
    nic = Sparing(latency=SECOND // 2)
    nic.fate = lambda command: fate
    rig = Rig(nic=nic, mirror={"reply_limit": 2.0})
    talk = Tcp(rig).opened()
    talk.say(IN, "RA")
    assert (rig.mirror.waiting, rig.mirror.outstanding) == (1, 1)
    nic.fate = lambda command: ACCEPT
    rig.wait(3)
    assert rig.mirror.counters()["called_off"] == 1 and rig.flows.count == (fate != errno.EINVAL)
    nic.takes = 1 << 30
    rig.wait(3)
    assert (rig.flows.count, nic.rules) == (0, {})


def test_rows_that_wait_for_hardware_are_more_than_connections() -> None:
    """A full tracker makes room for newcomers while rows of those that had to go are still there: the mirror knows all of them."""
    rig = Rig(COMMITS, nic=FakeNic(latency=2 * SECOND), max=4, buckets=1)
    for port in range(1, 40):
        rig.send(craft.udp("10.0.0.1", "198.51.100.7", port, 53))
        rig.wait(0.2)
    assert rig.flows.count > 4
    rig.wait(40)
    rig.settle()
    rig.wait(3)
    assert (rig.mirror.counters()["strange"], rig.flows.count, rig.nic.rules) == (0, 0, {})


# --- what somebody else takes away ----------------------------------------------------------------------------------------------------------


def packets(rig: Rig) -> list[int]:
    return [int(flow["packets"]) for flow in rig.conn()["flow"]]


@pytest.mark.parametrize("which", [(0,), (1,), (0, 1)])
def test_a_rule_that_is_gone_is_put_back_by_the_next_packet(which: tuple[int, ...]) -> None:
    """Without news of it the mirror would not know before it asked for counters, which it does of idle flows only."""
    rig = Rig()
    talk = Tcp(rig).opened()
    for d in which:
        rig.nic.take_away(sorted(rig.nic.rules)[0 if len(which) == 2 else d])
    rig.pump()
    assert rig.in_hardware() == (len(which) < 2) and rig.mirror.counters()["withdrawn"] == len(which)
    rig.wait(1.5)
    talk.say(OUT, "PA", b"hello")
    assert rig.in_hardware() and len(rig.nic.rules) == 2 and len(rig.mirror.audit(rig.nic.held())) == 0


def test_what_it_had_counted_is_the_connections() -> None:
    rig = Rig()
    Tcp(rig).opened()
    before = packets(rig)
    rig.nic.hit(0, 0, 1000, 60, rig.now)
    rig.nic.take_away(min(rig.nic.rules))
    rig.pump()
    assert packets(rig) == [before[0] + 1000, before[1]]


@pytest.mark.parametrize("shared", [False, True])
def test_what_was_counted_until_the_end_may_come_with_it(shared: bool) -> None:
    nic = FakeNic()
    nic.tells_last, nic.shared = True, shared
    rig = Rig(nic=nic)
    talk = Tcp(rig).opened()
    before = packets(rig)
    nic.hit(0, 0, 1000, 60, rig.now)
    nic.hit(0, 1, 500, 1500, rig.now)
    talk.say(IN, "FA")
    rig.wait(3)
    assert rig.flows.counters()["hw_packets"] == 1500 and not nic.rules
    assert packets(rig) == ([before[0] + 1, before[1]] if shared else [before[0] + 1001, before[1] + 500])


def test_one_that_makes_room_tells_what_it_had_counted() -> None:
    nic = FakeNic(capacity=2)
    nic.tells_last = True
    rig = Rig(nic=nic, mirror={"policy": "by-bytes", "clearly": 1.0})
    Tcp(rig).opened()
    before = packets(rig)
    nic.hit(0, 1, 7, 100, rig.now)
    rig.wait(1)
    other = Tcp(rig, port=40_001).opened()
    for _ in range(8):
        rig.wait(1.5)
        other.say(IN, "PA", b"x" * 1400)
    rig.settle()
    assert rig.in_hardware(1) and not rig.in_hardware(0) and packets(rig) == [before[0], before[1] + 7]


def test_news_of_what_is_not_there_are_strays() -> None:
    rig = Rig()
    Tcp(rig).opened()
    news = np.zeros(3, dtype=REPLY_DTYPE)
    known = min(rig.nic.rules)
    news["op"], news["cookie"] = Op.GONE, [known ^ 1 << 40, known + 8, known]
    rig.mirror.replies(news[:2], rig.now)
    assert (rig.mirror.counters()["strays"], rig.mirror.counters()["withdrawn"], rig.in_hardware()) == (2, 0, True)
    rig.mirror.replies(news[2:], rig.now)
    rig.mirror.replies(news[2:], rig.now)
    assert (rig.mirror.counters()["strays"], rig.mirror.counters()["withdrawn"]) == (3, 1)


# --- what callers may get wrong -------------------------------------------------------------------------------------------------------------


def test_nonsense_is_counted_and_changes_nothing() -> None:
    mirror = Mirror(4)
    asks = np.zeros(3, dtype=ASK_DTYPE)
    asks["row"], asks["ask"] = [4, 1, 1], [1, 9, 0]
    mirror.feed(asks, 1)
    replies = np.zeros(2, dtype=REPLY_DTYPE)
    replies["cookie"], replies["op"] = [2, (1 << 64) - 1], 1
    mirror.replies(replies, 1)
    assert (mirror.counters()["strange"], mirror.counters()["strays"], len(mirror.answers())) == (3, 2, 0)
    mirror.check()


def test_arrays_of_another_kind_are_refused() -> None:
    mirror = Mirror(4)
    with pytest.raises(ValueError, match="asks: expected"):
        mirror.feed(np.zeros(1), 0)
    with pytest.raises(ValueError, match="replies: expected"):
        mirror.replies(np.zeros(4, dtype=REPLY_DTYPE)[::2], 0)
    with pytest.raises(ValueError, match="sent: expected"):
        mirror.sent(1, 0)
    with pytest.raises(ConfigError, match="policy"):
        MirrorSettings(policy="by-colour")
    with pytest.raises(ConfigError, match="flows"):
        Mirror(0)


def test_a_flow_costs_less_than_two_hundred_bytes() -> None:
    """With the flow table's own 24 for what hardware counts of unknown directions."""
    assert BYTES_PER_FLOW + 24 <= 200
