"""Pipelines of rules: with and without a flow table the same packets pass, by the same rules, and leave with the same bytes."""

from __future__ import annotations

import os
import threading
from collections import Counter
from dataclasses import replace
from random import Random

import numpy as np
import pytest

from ctcore.config import Config
from ctcore.filter import Filter
from ctcore.tracker import Tracker
from ctcore.types import Offload, Reason, Verdict
from datapath import craft
from datapath.frame import frames_of
from datapath.pipeline.rules import CONTINUE, Ct, Hook, Rule, Ruleset
from datapath.pipeline.walk import Walker
from datapath.ruled import RulePipeline
from pcap_tests.test_datapath.flowing import Coming, Ways
from pcap_tests.test_datapath.flowing_rules import orderly
from pcap_tests.test_datapath.flowing_talks import Talks
from pcap_tests.test_datapath.test_pipeline.laboratory import ruleset_of
from pcap_tests.test_datapath.test_pipeline.random_talks import some_pipeline

HOOKS = (Hook("eth0"), Hook("eth1"))
PIPELINES = int(os.environ.get("CTMIRROR_PAIRS", "100000")) // 500
BATCHES = 60


def unforced(ruleset: Ruleset) -> Ruleset:
    """As in Linux the flow table is asked before anything is forced, so that `force` may make a difference."""
    rules = (
        replace(rule, actions=tuple(replace(each, force=False) if isinstance(each, Ct) else each for each in rule.actions)) for rule in ruleset.rules
    )
    return replace(ruleset, rules=tuple(rules))


def fewer(random: Random, ruleset: Ruleset) -> Ruleset:
    """Without some of the rules that only look on."""
    return replace(ruleset, rules=tuple(rule for rule in ruleset.rules if random.randrange(3) or not looks_on(rule)))


def looks_on(rule: Rule) -> bool:
    return bool(rule.actions) and getattr(rule.actions[-1], "control", None) == CONTINUE


def meddle(random: Random, ways: Ways, whole: Ruleset) -> None:
    """Other rules, other marks and labels, or another table: the next packet sees them."""
    kind = random.randrange(4)
    if kind == 0:
        ways.load(fewer(random, whole))
        return
    mark = random.randrange(4)
    for each in ways.all:
        if kind == 1:
            each.tracker.update(Filter(), mark=mark, mark_mask=3)
        elif kind == 2:
            each.tracker.update(Filter(), label=mark, label_mask=3)
        elif each.flows is not None:
            each.flows.flush()


def converse(random: Random, ruleset: Ruleset, seen: Counter[str], *, resets: bool) -> None:
    """Conversations through rules, and now and then somebody who changes something. seen: what the flow table said."""
    ways = Ways(ruleset, Config(tcp_liberal=True, max=random.choice((12, 1000)), seed=random.getrandbits(32)), HOOKS)
    talks = Talks(random, resets=resets)
    for _ in range(BATCHES):
        coming, talking = talks.batch()
        if coming:
            said = ways.send(coming)
            talks.told(talking, said.left)
            seen.update(Offload(value).name for value in said.decisions["offload"].tolist())
        if random.randrange(20) == 0:
            ways.check()
            meddle(random, ways, ruleset)
    ways.check()
    seen["hits"] += ways.blind.shortcuts()["hits"]


def test_any_rules_that_track_say_the_same_with_a_flow_table() -> None:
    """Rules of all kinds, in any order, with a RST nowhere: what a rule does not show the tracker may make one count or not."""
    random, seen = Random(os.environ.get("CTMIRROR_SEED", "flows")), Counter[str]()
    for number in range(PIPELINES):
        try:
            converse(random, unforced(some_pipeline(random)), seen, resets=False)
        except AssertionError as error:
            raise AssertionError(f"pipeline {number}: {error}") from error
    assert seen["hits"] > 5 * PIPELINES, seen


def test_orderly_rules_say_the_same_with_a_flow_table_and_resets() -> None:
    """Two zones, translation, and rules that look at everything a flow's packets may differ in."""
    random, seen = Random(os.environ.get("CTMIRROR_SEED", "orderly")), Counter[str]()
    for number in range(PIPELINES):
        try:
            converse(random, orderly(random), seen, resets=True)
        except AssertionError as error:
            raise AssertionError(f"pipeline {number}: {error}") from error
    served = {"OFFLOAD_SOFTWARE", "NOT_TEARDOWN_FIN", "NOT_TEARDOWN_RST", "NOT_TTL", "NOT_IP_OPTIONS", "NOT_ASSURED", "NOT_TCP_STATE", "NOT_PROTO"}
    assert served <= set(seen), seen
    assert seen["hits"] > 20 * PIPELINES


def test_a_label_is_no_tag() -> None:
    """An established flow behind a VLAN tag; then its tuple behind one MPLS label, which to Linux is no IP packet: the tag's shortcut is not its."""
    rules = "".join(f"tc filter add dev {dev} ingress protocol all flower action ct commit pipe action pass\n" for dev in ("in0", "out0"))
    client, server = "10.0.0.1", "10.0.0.2"
    ways = Ways(ruleset_of(rules), Config(tcp_liberal=True), (Hook("in0"), Hook("out0")))
    talk = [
        (craft.tcp(client, server, 4000, 80, "S", seq=99), 0),
        (craft.tcp(server, client, 80, 4000, "SA", seq=499, ack=100), 1),
        (craft.tcp(client, server, 4000, 80, "A", seq=100, ack=500), 0),
    ]
    for i, (frame, side) in enumerate(talk):
        ways.send([Coming(frame, side, 10**18 + i)])
    frame = talk[-1][0]
    for i in range(3):
        assert ways.send([Coming(frame[:12] + b"\x81\x00\x00\x05" + frame[12:], 0, 10**18 + 10 + i)]).results["verdict"].tolist() == [Verdict.ACCEPT]
    said = ways.send([Coming(frame[:12] + b"\x88\x47\x00\x01\x01\x40" + frame[14:], 0, 10**18 + 20)])
    assert (said.results["verdict"].tolist(), said.results["reason"].tolist()) == ([Verdict.DROP], [Reason.R_NOT_IP])


def test_a_second_thread_takes_nothing_from_the_first() -> None:
    """It is refused, and the first one's outputs are all there."""
    pipeline = RulePipeline(ruleset_of("tc filter add dev in0 ingress protocol all flower action ct commit pipe action pass\n"))
    pipeline.arrive([Hook("in0")])
    memory, frames = frames_of([craft.udp("10.0.0.1", "10.0.0.2", 1000 + i % 50, 53, b"x") for i in range(1000)])
    many = np.tile(frames, 3000)
    first = threading.Thread(target=pipeline.process, args=(memory, many), kwargs={"outputs": True})
    first.start()
    refused = 0
    while first.is_alive() and not refused:
        try:
            pipeline.arrive([Hook("in0")])
        except RuntimeError:  # it is at work
            for second in (lambda: pipeline.process(memory, frames, outputs=True), pipeline.outputs):
                with pytest.raises(RuntimeError):
                    second()
                refused += 1
    first.join()
    assert refused == 2
    assert len(pipeline.outputs()[0]) == len(many)


# --- other rules, while something is going on -------------------------------------------------------------------------------------------

ON = "tc filter add dev in0 ingress protocol all flower "
PUT_TOGETHER = ON + "action ct zone 5 pipe action pass\n"


class Moved:
    """A pipeline whose rules are changed under way."""

    def __init__(self, rules: str) -> None:
        self.pipeline, self.now = RulePipeline(ruleset_of(rules)), 10**18
        self.pipeline.arrive([Hook("in0")])

    def load(self, rules: str) -> None:
        self.pipeline.load(ruleset_of(rules))
        self.pipeline.arrive([Hook("in0")])

    def send(self, *frames: bytes) -> list[str]:
        self.now += 10**6
        _, _, results = self.pipeline.process(*frames_of(list(frames), np.full(len(frames), self.now)), results=True, outputs=True)
        return [Verdict(verdict).name for verdict in results["verdict"].tolist()]


def fragments(ident: int = 7) -> list[bytes]:
    """A datagram of 48 bytes in two."""
    data = craft.udp_segment("10.0.0.1", "10.0.0.2", 5000, 53, bytes(40))
    more = {0: 0x2000, 24: 0}
    return [craft.frame("10.0.0.1", "10.0.0.2", craft.UDP, data[at : at + 24], frag=at // 8 | more[at], ident=ident) for at in (0, 24)]


@pytest.mark.parametrize(
    "between",
    [[], [PUT_TOGETHER], [ON + "action pass\n", PUT_TOGETHER], [ON + "action drop\n", ON + "action ct commit zone 5 pipe action pass\n"]],
    ids=["none", "the same", "none that track", "two others"],
)
def test_a_datagram_waits_for_its_last_fragment_whatever_rules_come(between: list[str]) -> None:
    """Fragments wait in their zone, and are no matter of the rules, as in Linux: new ones cost nobody a datagram."""
    one = Moved(PUT_TOGETHER)
    first, second = fragments()
    assert one.send(first) == ["HELD"]
    for rules in between:
        one.load(rules)
    assert one.send(second) == ["ACCEPT"]
    assert [len(each) for each in one.pipeline.outputs()] == [2, len(first) + len(second)]
    assert {key: one.pipeline.summary()["fragments"][key] for key in ("datagrams", "waiting")} == {"datagrams": 1, "waiting": 0}


def test_a_datagram_of_another_zone_is_not_completed_by_other_rules() -> None:
    one = Moved(PUT_TOGETHER)
    first, second = fragments()
    assert one.send(first) == ["HELD"]
    one.load(PUT_TOGETHER.replace("zone 5", "zone 6"))
    assert one.send(second) == ["HELD"]
    assert one.pipeline.summary()["fragments"]["waiting"] == 2


def test_figures_of_the_whole_run_go_on_with_other_rules() -> None:
    """Fragments, and copies that left or did not: counters of rules alone begin anew."""
    mirror = ON + "action mirred egress mirror dev {} pipe action ct zone 5 pipe action pass\n"
    refuse = "tc qdisc add dev tap0 clsact\ntc filter add dev tap0 egress protocol all flower action drop\n"
    one = Moved(mirror.format("tap0"))
    for ident, rules in enumerate((None, mirror.format("tap1"), mirror.format("tap0") + refuse, mirror.format("tap0"), ON + "action pass\n")):
        if rules is not None:
            one.load(rules)
        one.send(*fragments(ident))
    walker = one.pipeline.walker
    assert walker.mirrored() == {"tap0": 4, "tap1": 2} and walker.lost()[Reason.R_RULE_DROP] == walker.lost().sum() == 2
    assert one.pipeline.summary()["fragments"]["datagrams"] == 4
    assert one.pipeline.counters()["packets"].tolist() == [2]


def test_a_walker_goes_on_with_its_own_tracker_only() -> None:
    program = RulePipeline(ruleset_of(PUT_TOGETHER)).program
    with pytest.raises(ValueError, match="expected the tracker of the one before"):
        Walker(program, Tracker(program.config), before=Walker(program, Tracker(program.config)))
