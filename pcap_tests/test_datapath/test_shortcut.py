"""Shortcuts: established flows pass by the rules by which they have passed before, as long as nothing says otherwise."""

from __future__ import annotations

import re
from random import Random
from typing import Any

import numpy as np
import pytest

from ctcore.config import Config
from ctcore.filter import Filter
from ctcore.types import Dir, Offload, State
from datapath import craft
from datapath.benchmark import acknowledgements, handshakes
from datapath.benchmark_rules import firewall
from datapath.pipeline.rules import ETH_IP, PASS, Ct, Gact, Hook, Match, Mirred, Rule, Ruleset, goto
from datapath.ruled import RulePipeline
from pcap_tests.scene import START
from pcap_tests.test_datapath.flowing import Coming, Seen, Ways
from pcap_tests.test_datapath.test_pipeline.laboratory import CLASSIC, CLIENT, SERVER, SNAT, ruleset_of

IN, OUT = 0, 1
MILLISECOND = 1_000_000
HOOKS = (Hook("in0"), Hook("out0"))
ETH0 = Hook("eth0")
LATER = re.sub(r"chain 1 prio (\d)", r"chain 1 prio 1\1", CLASSIC)  # room before the rules of chain 1
DECIDE = "tc filter add dev in0 ingress chain 1 protocol ip"  # what is to be said there


class Crowd:
    """TCP connections from CLIENT, one a port, through rules with and without shortcuts."""

    def __init__(self, rules: Ruleset, **settings: Any):
        self.ways = Ways(rules, Config(tcp_liberal=True, **settings), HOOKS)
        self.now = START

    def send(self, *frames: tuple[bytes, int]) -> Seen:
        coming = []
        for frame, side in frames:
            self.now += MILLISECOND
            coming.append(Coming(frame, side, self.now))
        return self.ways.send(coming)

    def open(self, ports: range, to: str = CLIENT) -> None:
        for port in ports:
            self.send((craft.tcp(CLIENT, SERVER, port, 80, "S", seq=99), IN))
            self.send((craft.tcp(SERVER, to, 80, port, "SA", seq=499, ack=100), OUT))
            self.send((craft.tcp(CLIENT, SERVER, port, 80, "A", seq=100, ack=500), IN))

    def end(self, ports: range) -> None:
        """Reset them, and go on a second later without any connection."""
        for port in ports:
            self.send((craft.tcp(SERVER, CLIENT, 80, port, "RA", seq=500, ack=100), OUT))
        self.ways.check()
        for each in self.ways.all:
            each.tracker.flush()
        self.now += 1_000_000_000

    @property
    def hits(self) -> int:
        """Packets that took a shortcut where nobody asked what leaves."""
        return int(self.ways.blind.shortcuts()["hits"])


def data(port: int, **fields: Any) -> tuple[bytes, int]:
    return craft.tcp(CLIENT, SERVER, port, 80, "A", seq=100, ack=500, **fields), IN


def answer(port: int, to: str = CLIENT, **fields: Any) -> tuple[bytes, int]:
    return craft.tcp(SERVER, to, 80, port, "A", seq=500, ack=100, **fields), OUT


def test_the_second_packet_of_a_direction_takes_the_way_of_the_first() -> None:
    crowd = Crowd(ruleset_of(CLASSIC))
    crowd.open(range(4000, 4001))
    crowd.send(answer(4000))
    assert crowd.hits == 0
    crowd.send(*[answer(4000)] * 300)
    assert crowd.hits == 300
    crowd.send(*[data(4000)] * 3)
    assert crowd.hits == 303
    crowd.ways.check()


def test_packets_of_a_batch_see_what_the_one_before_them_has_done() -> None:
    """Opened, used and closed within one batch: what was looked up ahead is not believed."""
    crowd = Crowd(ruleset_of(CLASSIC))
    opening = [
        (craft.tcp(CLIENT, SERVER, 4000, 80, "S", seq=99), IN),
        (craft.tcp(SERVER, CLIENT, 80, 4000, "SA", seq=499, ack=100), OUT),
    ]
    crowd.send(*opening, *[data(4000)] * 5, *[answer(4000)] * 5)
    end = (craft.tcp(SERVER, CLIENT, 80, 4000, "FA", seq=500, ack=100), OUT)
    seen = crowd.send(answer(4000), data(4000), end, *[data(4000)] * 3)
    assert seen.decisions["l4state"][0] != seen.decisions["l4state"][-1]
    assert crowd.hits > 0
    crowd.ways.check()


def test_a_flow_that_is_cleared_before_it_goes_on_is_recorded_as_served() -> None:
    """As rules of network policies end, so that the host can track in its own zone: the records are those of an established connection."""
    crowd = Crowd(ruleset_of(CLASSIC.replace("action mirred egress redirect", "action ct clear pipe action mirred egress redirect")))
    crowd.open(range(4000, 4001))
    crowd.send(answer(4000), data(4000))
    seen = crowd.send(*[answer(4000)] * 4, *[data(4000)] * 4)
    assert crowd.hits >= 8
    assert set(seen.decisions["state"].tolist()) == {State.ESTABLISHED}
    assert seen.decisions["dir"].tolist() == [Dir.REPLY] * 4 + [Dir.ORIG] * 4
    assert set(seen.decisions["offload"].tolist()) == {Offload.OFFLOAD_SOFTWARE}
    assert set(seen.decisions["conn"].tolist()) == {0}
    crowd.ways.check()


def test_many_flows_share_few_plans() -> None:
    crowd = Crowd(ruleset_of(SNAT), max=2000)
    crowd.open(range(4000, 4200), to="192.0.2.1")
    for _ in range(3):
        crowd.send(*[data(port) for port in range(4000, 4200)], *[answer(port, "192.0.2.1") for port in range(4000, 4200)])
    told = crowd.ways.blind.shortcuts()
    assert (told["flows"], told["plans"]) == (400, 2)
    assert told["hits"] >= 2 * 400
    crowd.ways.check()


def test_more_flows_than_shortcuts_push_each_other_out() -> None:
    """16 of them, and four conversations at a time, of two directions each."""
    crowd = Crowd(ruleset_of(CLASSIC.replace("protocol ip ", "protocol all ")), max=8)
    random = Random("crowd")
    for first in range(4000, 4040, 4):
        crowd.open(range(first, first + 4))
        frames = [make(port) for make in (data, answer) for port in range(first, first + 4)]
        for _ in range(20):
            crowd.send(*random.choices(frames, k=6))
        crowd.end(range(first, first + 4))
    assert crowd.ways.blind.shortcuts()["flows"] == 16
    assert crowd.hits > 200


def test_as_many_flows_as_there_is_room_for_keep_their_places() -> None:
    """Few find both of their buckets full and take a place there; that must not make flow after flow go through the rules again."""
    pipeline = RulePipeline(firewall(3), Config(max=500))
    pipeline.arrive([ETH0])
    order = np.arange(500)
    pipeline.process(*handshakes(order))
    for _ in range(6):
        before = pipeline.shortcuts()["hits"]
        pipeline.process(*acknowledgements(order))
        pipeline.cuts.check()
    told = pipeline.shortcuts()
    assert told["flows"] <= 1000 and told["hits"] - before >= 990


def test_other_rules_are_seen_by_the_next_packet() -> None:
    crowd = Crowd(ruleset_of(CLASSIC))
    crowd.open(range(4000, 4001))
    assert crowd.send(*[data(4000)] * 3).results["verdict"].tolist() == [1] * 3
    crowd.ways.load(ruleset_of(CLASSIC.replace("action mirred egress redirect dev out0", "action drop")))
    assert crowd.send(*[data(4000)] * 3).results["verdict"].tolist() == [2] * 3
    crowd.ways.load(ruleset_of(CLASSIC))
    assert crowd.send(data(4000)).results["verdict"].tolist() == [1]
    crowd.ways.check()


@pytest.mark.parametrize("how", ["update", "set_mark"])
def test_another_mark_is_seen_by_the_next_packet(how: str) -> None:
    blocked = f"{DECIDE} prio 1 flower ct_state +trk+est ct_mark 0x1/0x1 action drop\n"
    crowd = Crowd(ruleset_of(blocked + LATER))
    crowd.open(range(4000, 4002))
    crowd.send(*[data(4000)] * 3, *[data(4001)] * 3)
    for mark, verdict in ((1, 2), (2, 1), (3, 2)):
        for each in crowd.ways.all:
            assert each.tracker.update(Filter(sport=4000), mark=mark) == 1 if how == "update" else each.tracker.set_mark(0, mark) is None
        seen = crowd.send(data(4000), data(4001), data(4000))
        assert seen.results["verdict"].tolist() == [verdict, 1, verdict]
        assert seen.decisions["mark"].tolist() == [mark, 0, mark]
    crowd.ways.check()


def test_a_mark_that_a_packet_sets_is_what_the_next_one_meets() -> None:
    """The first is sent on and marked, the second is dropped for it."""
    once = (
        f"{DECIDE} prio 1 flower ct_state +trk+est ct_mark 0x1/0x1 action drop\n"
        f"{DECIDE} prio 2 flower ct_state +trk+est ip_proto tcp tcp_flags 0x8/0x8 action ct commit mark 1 pipe action pass\n"
    )
    crowd = Crowd(ruleset_of(once + LATER))
    crowd.open(range(4000, 4001))
    crowd.send(*[data(4000)] * 2)
    push = (craft.tcp(CLIENT, SERVER, 4000, 80, "PA", seq=100, ack=500, payload=b"x"), IN)
    assert crowd.send(push, push, push).results["verdict"].tolist() == [1, 2, 2]
    crowd.ways.check()


def test_padding_is_counted_only_by_rules_before_the_first_ct() -> None:
    """A frame of 60 bytes with a packet of 40: Linux cuts it to 54 when it tracks it."""
    crowd = Crowd(ruleset_of(CLASSIC))
    crowd.open(range(4000, 4001))
    before = crowd.ways.blind.counters()["bytes"].tolist()
    frame, side = data(4000)
    crowd.send(*[(frame + bytes(6), side)] * 10)
    after = crowd.ways.blind.counters()["bytes"].tolist()
    assert [b - a for a, b in zip(before, after, strict=True) if b != a] == [600, 540]
    crowd.ways.check()


def test_fields_that_rules_look_at_are_looked_at_again() -> None:
    """Two shortcuts' worth of one flow: whatever the TTL and the type of service say."""
    looks = f"{DECIDE} prio 1 flower ip_ttl 9 action drop\n{DECIDE} prio 2 flower ip_tos 4/4 action drop\n"
    crowd = Crowd(ruleset_of(looks + LATER))
    crowd.open(range(4000, 4001))
    seen = crowd.send(*[data(4000), data(4000, ttl=9), data(4000, tos=4), data(4000, tos=3)] * 4, *[data(4000)] * 4)
    assert seen.results["verdict"].tolist() == [1, 2, 2, 1] * 4 + [1] * 4
    assert crowd.hits >= 3
    crowd.ways.check()


def tagged(port: int, *tags: int) -> tuple[bytes, int]:
    frame, side = data(port)
    return frame[:12] + b"".join(b"\x81\x00" + tag.to_bytes(2, "big") for tag in tags) + frame[12:], side


POPS = (
    "tc filter add dev in0 ingress chain 0 prio 1 protocol all flower action ct pipe action goto chain 1\n"
    "tc filter add dev in0 ingress chain 1 prio 1 protocol all flower ct_state +trk+est action vlan pop {}pipe action goto chain 2\n"
    "tc filter add dev in0 ingress chain 1 prio 2 protocol all flower action ct commit pipe action pass\n"
    "tc filter add dev in0 ingress chain 2 prio 1 protocol 802.1q flower vlan_id 7 action drop\n"
    "tc filter add dev out0 ingress chain 0 prio 1 protocol all flower action ct pipe action pass\n"
)


@pytest.mark.parametrize(("pops", "outer"), [("", (5,)), ("pipe action vlan pop ", (5, 6))])
def test_a_tag_that_shows_when_others_are_popped_is_looked_at(pops: str, outer: tuple[int, ...]) -> None:
    """A flow is a tuple at a hook, whatever its tags are."""
    crowd = Crowd(ruleset_of(POPS.format(pops)))
    crowd.open(range(4000, 4001))
    for inner, verdict in ((7, 2), (8, 1)) * 3:
        assert crowd.send(tagged(4000, *outer, inner)).results["verdict"].tolist() == [verdict]
    assert crowd.send(tagged(4000, *outer), data(4000)).results["verdict"].tolist() == [1, 1]
    crowd.ways.check()


def test_a_header_that_an_edit_moves_is_looked_at() -> None:
    """With a word more of IP header the length of the datagram is taken for its source port."""
    crowd = Crowd(
        ruleset_of(
            "tc filter add dev in0 ingress chain 0 prio 1 protocol ip flower ip_proto udp action ct commit pipe"
            " action pedit ex munge ip ihl set 6 pipe action csum ip4h pipe action goto chain 1\n"
            "tc filter add dev in0 ingress chain 1 prio 1 protocol ip flower ip_proto udp src_port 20 action drop\n"
            "tc filter add dev out0 ingress chain 0 prio 1 protocol ip flower action ct pipe action pass\n"
        )
    )
    there = {length: (craft.udp(CLIENT, SERVER, 4000, 53, bytes(length - 8)), IN) for length in (20, 30)}
    back = craft.udp(SERVER, CLIENT, 53, 4000, b"answer"), OUT
    crowd.send(there[30], back)
    crowd.now += 2500 * MILLISECOND
    crowd.send(back, back)
    for length, verdict in ((20, 2), (30, 1)) * 3:
        assert crowd.send(there[length]).results["verdict"].tolist() == [verdict]
    crowd.ways.check()


def by_port(ports: range) -> str:
    """A rule of its own for each port of CLIENT: a way through the rules for each connection."""
    rule = (
        "tc filter add dev in0 ingress chain 0 prio 1 protocol ip flower ip_proto tcp src_port {} ct_state -trk action ct pipe action goto chain 1\n"
    )
    return "".join(rule.format(port) for port in ports) + re.sub(r"chain 0 prio (\d)", r"chain 0 prio 1\1", CLASSIC)


def test_ways_that_nobody_goes_any_more_make_room_and_lose_no_counts() -> None:
    """16 shortcuts, and 40 connections that go 40 ways there; the ways back are one."""
    crowd = Crowd(ruleset_of(by_port(range(4000, 4040))), max=8)
    for first in range(4000, 4040, 4):
        crowd.open(range(first, first + 4))
        for _ in range(5):
            crowd.send(*[make(port) for make in (data, answer) for port in range(first, first + 4)])
        crowd.end(range(first, first + 4))
    told = crowd.ways.blind.shortcuts()
    assert told["flows"] == 16 and told["plans"] <= 16
    assert crowd.hits > 200
    assert crowd.ways.blind.counters()["packets"].tolist().count(7) == 40


def test_ways_of_earlier_rules_make_room_and_count_no_more() -> None:
    crowd = Crowd(ruleset_of(by_port(range(4000, 4008))), max=8)
    crowd.open(range(4000, 4008))
    for rules in (CLASSIC, by_port(range(4000, 4004)), by_port(range(4000, 4008)), CLASSIC):
        for _ in range(3):
            crowd.send(*[make(port) for port in range(4000, 4008) for make in (data, answer)])
        crowd.ways.check()
        crowd.ways.load(ruleset_of(rules))
        assert crowd.ways.blind.shortcuts()["plans"] == 0
        assert not crowd.ways.blind.counters()["packets"].any()
    crowd.send(*[data(port) for port in range(4000, 4008)] * 3)
    assert crowd.ways.blind.shortcuts()["plans"] == 1
    crowd.ways.check()


def test_as_many_ways_as_flows_are_all_remembered() -> None:
    """More than 16 bits can number: every connection matches a rule by its port, and one by its address."""
    tracked = (Match("ip_proto", 6, 0xFF), Match("ct_state", 0, 8))
    there = [Rule(ETH0, ETH_IP, (*tracked, Match("src_port", i, 511)), (Ct(), Gact(goto(1))), i + 1, 0, 1) for i in range(512)]
    new = Rule(ETH0, ETH_IP, (Match("ct_state", 9, 9),), (Ct(commit=True), Mirred("redirect", "eth1")), 1, 1, 1)
    on = [Rule(ETH0, ETH_IP, (Match("dst_ip", i, 255), Match("ct_state", 10, 10)), (Gact(PASS),), i + 2, 1, 1) for i in range(256)]
    n = 70_000
    pipeline = RulePipeline(Ruleset(rules=(*there, new, *on)), Config(max=n))
    pipeline.arrive([ETH0])
    order = np.arange(n)
    pipeline.process(*handshakes(order), decisions=False)
    for _ in range(3):
        before = pipeline.shortcuts()["hits"]
        pipeline.process(*acknowledgements(order), decisions=False)
    told = pipeline.shortcuts()
    frames = len(acknowledgements(order)[1])
    assert told["plans"] > 65_536 and told["hits"] - before > 0.98 * frames
    pipeline.cuts.check()
    assert pipeline.counters()["packets"][:512].sum() == pipeline.summary()["total_packets"]


def test_a_rule_was_last_used_at_the_latest_time_by_whichever_way() -> None:
    crowd = Crowd(ruleset_of(CLASSIC))
    crowd.open(range(4000, 4001))
    crowd.send(*[data(4000)] * 3)
    latest = crowd.now
    crowd.now -= 500 * MILLISECOND
    crowd.send(*[data(4000)] * 3)
    assert crowd.hits > 0
    crowd.send((craft.tcp(CLIENT, SERVER, 4001, 80, "S", seq=99), IN))
    crowd.ways.check()
    assert crowd.ways.blind.counters()["last"].max() == latest
