"""The flow table: how long connections stay, and how they come back to the tracker."""

from __future__ import annotations

import gc
import time
from types import SimpleNamespace

import numpy as np
import pytest

from ctcore.filter import Filter
from ctcore.types import Status, TcpFlag
from datapath import craft
from datapath.frame import frames_of
from datapath.pipeline.rules import Hook
from pcap_tests.scene import START
from pcap_tests.test_datapath.tabled import COMMITS, DAY, IN, OUT, SECOND, Net, Tcp, assured_udp, udp
from pcap_tests.test_datapath.test_pipeline.laboratory import CLIENT, SERVER, ruleset_of

# --- aging (A6) ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jump", [31, 3600])
def test_an_idle_tcp_connection_comes_back_with_the_rest_of_its_day(jump: int) -> None:
    """44, 56: a day is less than the 432,000 s of its state, so that nothing is to be shortened."""
    net = Net()
    Tcp(net).opened()
    net.wait(jump)
    net.tick()
    assert net.flows.counters()["teardown_idle"] == 1
    assert not net.offloaded()
    assert net.left() == DAY - jump


@pytest.mark.parametrize("jump", [31, 3600])
def test_an_idle_tcp_connection_comes_back_as_of_the_second_it_expired(jump: int) -> None:
    """44, 56: with its state's timeout less 30 s, however much later the capture goes on."""
    net = Net(timeouts={"tcp_timeout_established": 7440})
    Tcp(net).opened()
    net.wait(jump)
    net.tick()
    assert not net.offloaded()
    assert net.left() == 7440 - 30 - (jump - 30)


@pytest.mark.parametrize("days", [2, 60, 99, 100, 150, 500, 2119])
def test_an_idle_connection_dies_with_its_day(days: int) -> None:
    """56: nobody comes for days; ticks of 32 bits go round in 199 of them."""
    net = Net(events=frozenset({"destroy"}))
    Tcp(net).opened()
    net.wait(days * DAY)
    net.tick()
    assert [int(row["flow"][0]["key"]["proto"]) for row in net.tracker.conns()] == [17]
    assert net.tracker.events()["time"].tolist() == [START + DAY * SECOND]
    assert net.flows.counters() == {**net.flows.counters(), "teardown_idle": 1, "teardown_dying": 0}


def test_an_idle_stream_comes_back_with_90_s() -> None:
    """55, 56: 120 - 30."""
    net = Net()
    assured_udp(net)
    udp(net)
    net.wait(31)
    net.tick()
    assert net.flows.counters()["teardown_idle"] == 1
    assert 88 <= net.left() <= 90


def test_an_idle_datagram_without_an_answer_comes_back_with_nothing() -> None:
    """55, 56: 30 - 30."""
    net = Net()
    udp(net)
    net.wait(32)
    net.tick()
    assert [int(row["flow"][0]["key"]["dport"]) for row in net.tracker.conns()] == [9]


def expires(net: Net, seconds: int) -> None:
    """The first connection leaves the table in the round so many seconds after START, and not earlier."""
    net.now = START + seconds * SECOND - 1
    net.tick()
    assert net.offloaded()
    net.now += 1
    net.tick()
    assert net.flows.counters()["teardown_idle"] == 1


@pytest.mark.parametrize(("after", "gone"), [(0.9, 30), (1.1, 32)])
def test_less_than_a_second_more_is_not_worth_a_refresh(after: float, gone: int) -> None:
    """41: 30 s from the packet before are then the end. The rounds are at whole seconds."""
    net = Net()
    talk = Tcp(net).opened()
    net.wait(after)
    assert talk.say(OUT, "PA", b"hello").offload == "software"
    expires(net, gone)


@pytest.mark.parametrize(("side", "gone"), [(IN, 30), (OUT, 31)])
def test_an_answer_refreshes_at_once_before_replies_may_be_served(side: int, gone: int) -> None:
    """39: forced, however little it adds, and the packet itself goes the slow way; the other direction's adds less than a second, and nothing."""
    net = Net(COMMITS)
    udp(net)
    net.wait(0.5)
    assert udp(net, side).offload == "not_assured"
    expires(net, gone)


def test_the_first_answer_after_it_is_assured_refreshes_at_once_and_the_next_does_not() -> None:
    """39, 41: that of 3.75 s makes it bidirectional; that of 4.25 s adds half a second."""
    net = Net(COMMITS)
    udp(net)
    for seconds, offload in ((0.0, "not_assured"), (3.0, "not_assured"), (0.75, "software"), (0.5, "software")):
        net.wait(seconds)
        assert udp(net, OUT).offload == offload
    expires(net, 34)


def test_traffic_keeps_a_connection_in_the_table() -> None:
    """41: each packet gives it 30 s."""
    net = Net()
    talk = Tcp(net).opened()
    for _ in range(20):
        net.wait(29)
        assert talk.say(OUT, "PA", b"hello").offload == "software"
    assert net.flows.counters()["served"] == 20
    assert (net.flows.counters()["teardown_idle"], net.flows.counters()["admitted"]) == (0, 1)


def test_one_that_aged_out_is_admitted_again_by_its_next_packet() -> None:
    """58."""
    net = Net()
    talk = Tcp(net).opened()
    net.wait(40)
    assert talk.say(OUT, "PA", b"hello").offload == "software"
    assert (net.flows.counters()["admitted"], net.flows.counters()["served"]) == (2, 0)
    assert talk.say(OUT, "PA", b"hello").offload == "software"
    assert net.flows.counters()["served"] == 1


def test_its_own_timeout_is_a_setting() -> None:
    """6."""
    net = Net(flowtable_tcp_timeout=5, timeouts={"tcp_timeout_established": 7440})
    Tcp(net).opened()
    net.wait(4)
    net.tick()
    assert net.offloaded()
    net.wait(2)
    net.tick()
    assert not net.offloaded()
    assert net.left() == 7440 - 5 - 1


@pytest.mark.parametrize(("extends", "left"), [(True, DAY), (False, 200)])
def test_less_than_five_minutes_are_made_a_day_if_that_is_wanted(extends: bool, left: int) -> None:
    """45: an administrator's timeout, say."""
    net = Net(flowtable_extends=extends)
    Tcp(net).opened()
    net.tracker.update(Filter(proto=6), timeout=201)
    net.wait(1)
    net.tick()
    assert abs(net.left() - left) <= 1


def test_more_than_five_minutes_stay_what_they_are() -> None:
    """45."""
    net = Net()
    Tcp(net).opened()
    net.tracker.update(Filter(proto=6), timeout=400)
    net.wait(1)
    net.tick()
    assert net.left() == 399


def test_a_fin_that_the_table_does_not_see_leaves_five_minutes() -> None:
    """37, 45: with a TTL of 1 it goes the slow way, and the connection is still in the table while it closes."""
    net = Net()
    talk = Tcp(net).opened()
    said = talk.say(OUT, "FA", ttl=1)
    assert (said.offload, said.l4state) == ("not_ttl", "FIN_WAIT")
    net.wait(1)
    net.tick()
    assert net.left() == 300
    assert talk.say(IN).offload == "software"


# --- teardown (A7) ---------------------------------------------------------------------------------------------------------------------


def test_windows_are_learnt_anew_after_a_teardown() -> None:
    """53, 54: what was not followed is not believed: the next packet passes, wherever its window is."""
    net = Net()
    talk = Tcp(net).opened()
    talk.say(OUT, "PA", b"hello")
    net.flows.flush()
    assert net.conn()["tcp"]["side"]["maxwin"].tolist() == [0, 0]
    assert not any(flags & TcpFlag.TF_MAXACK_SET for flags in net.conn()["tcp"]["flags"].tolist())
    assert net.left() == DAY
    assert net.flows.counters()["teardown_flush"] == 1
    said = talk.say(OUT, "PA", b"far on", seq=2_000_000_000, ack=talk.next[IN])
    assert (said.state, said.reason) == ("established", "ok")


def test_a_rst_far_on_closes_what_was_served() -> None:
    """54: the tracker's last acknowledgement is old, and would make it a challenge, or invalid."""
    net = Net()
    talk = Tcp(net).opened()
    talk.next[OUT] += 1_000_000
    talk.say(OUT, "PA", b"hello")
    said = talk.say(OUT, "R")
    assert (said.offload, said.l4state, said.state) == ("not_teardown_rst", "CLOSE", "established")


@pytest.mark.parametrize("how", ["delete", "flush"])
def test_a_connection_that_is_deleted_takes_its_row_with_it(how: str) -> None:
    """59: its packets are tracked, and nothing remembers the way they took."""
    net = Net()
    talk = Tcp(net).opened()
    talk.say(OUT, "PA", b"hello")
    net.tracker.delete(Filter(proto=6)) if how == "delete" else net.tracker.flush()
    net.flows.check()
    assert net.flows.counters()["teardown_dying"] == 1
    said = talk.say(OUT, "PA", b"hello")
    assert (said.state, said.conn, said.offload) == ("new", -1, "not_tcp_state")
    net.wait(1)
    net.tick()
    assert [int(row["status"]) & Status.OFFLOAD for row in net.tracker.conns()] == [Status.OFFLOAD]


def test_an_administrator_may_end_one_by_its_timeout() -> None:
    """59."""
    net = Net()
    Tcp(net).opened()
    net.tracker.update(Filter(proto=6), timeout=0)
    assert (net.tracker.count, net.flows.counters()["teardown_dying"]) == (0, 1)
    net.flows.check()


def test_early_drop_of_an_admitted_connection() -> None:
    """59: what is in the table and not assured may go when the tracker is full."""
    net = Net(COMMITS, max=2, buckets=1)
    for port in range(1, 6):
        net.send(craft.udp(CLIENT, SERVER, port, 53))
    assert 1 <= net.tracker.count <= 2
    assert net.flows.counters()["teardown_dying"] == 5 - net.tracker.count
    assert net.flows.count == 5
    net.wait(1)
    net.send(craft.icmp(CLIENT, SERVER, 8, ident=1, sequence=1))
    assert net.flows.count <= 2


BOTH_ZONES = (
    "tc filter add dev in0 ingress chain 0 prio 1 protocol ip flower ip_proto udp action ct commit zone 1 pipe action pass\n"
    "tc filter add dev in0 ingress chain 0 prio 2 protocol ip flower ip_proto tcp action ct commit zone 2 pipe action pass\n"
)


@pytest.mark.parametrize(("rules", "left"), [(BOTH_ZONES.splitlines()[1], [17]), (BOTH_ZONES, [])])
def test_a_zone_loses_its_flows_with_its_last_ct_action(rules: str, left: list[int]) -> None:
    """59: other rules; those that still track in a zone keep its flows. The rows go at once: a table of later rules is a new one."""
    net = Net(BOTH_ZONES)
    udp(net)
    net.pipeline.load(ruleset_of(rules))
    net.flows.check()
    assert net.flows.counters()["teardown_flush"] == len(left)
    assert net.offloaded() == (not left)
    assert net.left() == (30 if left else DAY)
    net.pipeline.load(ruleset_of(BOTH_ZONES))
    net.pipeline.arrive([Hook("in0")])
    assert udp(net).offload == ("software" if left else "not_assured")


def test_rules_that_track_nowhere_leave_nothing_in_the_table() -> None:
    """59: and nothing but `ct clear` is no tracking."""
    net = Net()
    Tcp(net).opened()
    net.pipeline.load(ruleset_of("tc filter add dev in0 ingress protocol all flower action ct clear pipe action pass\n"))
    net.flows.check()
    assert (net.offloaded(), net.flows.counters()["teardown_flush"], net.flows.count) == (False, 1, 0)


def test_a_burst_costs_the_rounds_after_it_nothing() -> None:
    """60,000 rows that are gone, among them the first; one that stays is the last."""
    quick, slow = (Net(COMMITS, max=100_000) for _ in range(2))
    burst = [craft.udp(f"10.1.{i >> 8}.{i & 255}", SERVER, 1000, 53) for i in range(60_000)]
    slow.pipeline.process(*frames_of(burst, np.full(len(burst), START)))
    took = []
    for net in (quick, slow):
        frame = craft.udp(CLIENT, SERVER, 1, 53)
        net.pipeline.process(*frames_of([frame] * 100, START + SECOND * np.arange(100)))
        assert net.flows.count == 1
        times = []
        for start in range(100, 400, 100):
            began = time.perf_counter()
            net.pipeline.process(*frames_of([frame] * 100, START + SECOND * (start + np.arange(100))))
            times.append(time.perf_counter() - began)
        took.append(min(times))
    assert took[1] < 10 * took[0]


def test_a_tracker_has_one_flow_table() -> None:
    from datapath.flowtable import Flows

    net = Net()
    with pytest.raises(ValueError, match="none yet"):
        Flows(net.tracker)


def test_a_table_in_a_circle_goes_before_its_tracker() -> None:
    """Which of them the collector takes first is its own affair; the table tells the engine that it is gone (seen under AddressSanitizer)."""
    for _ in range(20):
        pipeline = Tcp(Net()).opened().net.pipeline
        holder = SimpleNamespace(pipeline=pipeline, flows=pipeline.flows)  # made after the table, and so taken apart after it
        holder.itself = holder
        del pipeline, holder
        gc.collect()
    assert Tcp(Net()).opened().net.flows.count == 1


def test_many_rows_are_looked_at_in_slices_of_a_second() -> None:
    """30,000 unanswered datagrams of one moment leave within the second in which they expire, a part at a time, and none of them early or late."""
    net = Net(COMMITS, max=100_000)
    burst = [craft.udp(f"10.1.{i >> 8}.{i & 255}", SERVER, 1000, 53) for i in range(30_000)]
    net.pipeline.process(*frames_of(burst, np.full(len(burst), START + SECOND // 2)))
    left, was = [], net.flows.count
    for hundredth in range(100 * 33):
        net.now = START + hundredth * SECOND // 100
        net.tick()
        if net.flows.count < was:
            left.append((hundredth, was - net.flows.count))
        was = net.flows.count
    assert was <= 1 and left[0][0] // 100 == 30 and left[-1][0] - left[0][0] <= 100
    assert len(left) >= 4 and max(n for _, n in left) < 10_000
    net.flows.check()


def test_a_second_that_was_missed_is_made_good_at_once() -> None:
    """No packet came while slices were due: the next one finds all of it done, each connection with the time it had left."""
    net = Net(COMMITS, max=100_000)
    burst = [craft.udp(f"10.1.{i >> 8}.{i & 255}", SERVER, 1000, 53) for i in range(30_000)]
    net.pipeline.process(*frames_of(burst, np.full(len(burst), START + SECOND // 2)))
    for moment in (29.9, 30.6, 34.2):
        net.now = START + int(moment * SECOND)
        net.tick()
        net.flows.check()
    assert net.flows.count <= 1 and len(net.tracker.conns()) <= 2, "an unanswered datagram comes back with nothing"


def test_rounds_end_with_time() -> None:
    """A capture may say that a frame came at the last nanosecond that there is."""
    net = Net(COMMITS)
    udp(net)
    for before in (3 * SECOND, SECOND + 1, 5, 0):
        net.now = 2**63 - 1 - before
        net.tick()
    net.flows.check()
