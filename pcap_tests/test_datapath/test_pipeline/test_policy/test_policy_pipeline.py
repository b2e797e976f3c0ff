"""The recipes through the compiled pipeline: real frames, the engine's own connections, both ends of each, and what is answered.

All connections of a recipe at once, in three goes: openings, answers, what follows. Where the compiled rules and the tracker meet, so do the verdicts
of policies and those of connections: an answer passes because its opening has, by whatever policies the other way round has.
"""

from __future__ import annotations

from ipaddress import ip_address

import numpy as np
import pytest

from ctcore.config import Config
from ctcore.types import Reason, Verdict
from datapath import craft
from datapath.frame import frames_of
from datapath.pipeline.policy.compiler import Options, compile_policies
from datapath.pipeline.policy.devices import attach
from datapath.pipeline.policy.evaluate import Packet, judge
from datapath.pipeline.rules import Hook
from datapath.ruled import RulePipeline
from pcap_tests.test_datapath.test_pipeline.test_policy.recipes import NAMES, Attempt, Recipe, made, objects

MS, START = 10**6, 1_700_000_000 * 10**9
OPENING, ANSWER, FOLLOWING = range(3)
ECHO = {4: (8, 0), 6: (128, 129)}  # request, reply
COOKIE_ECHO = 10


def frame_of(attempt: Attempt, number: int, step: int) -> bytes:
    """One of the first three packets of a connection, the second of which is an answer. number: which makes it another one than its like."""
    source, target, sport, dport = str(attempt.src), str(attempt.dst), 1024 + number, attempt.number
    if step == ANSWER:
        source, target, sport, dport = target, source, dport, sport
    match attempt.proto:
        case 6:
            flags, seq, ack = (("S", 100, 0), ("SA", 500, 101), ("A", 101, 501))[step]
            return craft.tcp(source, target, sport, dport, flags, seq=seq, ack=ack)
        case 17:
            return craft.udp(source, target, sport, dport, b"?!?"[step : step + 1])
        case 132:
            tag, chunk = ((0, craft.sctp_init(1)), (1, craft.sctp_init(2, ack=True)), (2, craft.sctp_chunk(COOKIE_ECHO)))[step]
            return craft.sctp(source, target, sport, dport, tag, chunk)
        case _:
            return craft.icmp(source, target, ECHO[attempt.src.version][step == ANSWER], ident=number, sequence=step // 2)


class Net:
    """A recipe's rules at work, and where its packets arrive."""

    def __init__(self, recipe: Recipe, forward: str) -> None:
        self.forward, self.now = forward, START
        cluster = recipe.cluster()
        self.attached = attach(pod for pod in cluster.pods if not pod.host_network)
        self.pods = cluster.pod_by_address
        ruleset = compile_policies(cluster, self.attached, Options(node_traffic=recipe.node_traffic, forward=forward))
        devices = [each.device for each in self.attached.values()]
        self.pipeline = RulePipeline(ruleset, Config(max=1 << 14), devices=devices)
        hooks = [Hook(device, direction) for device in devices for direction in ("ingress", "egress")]
        self.pipeline.arrive(hooks)
        self.iface = {hook: i for i, hook in enumerate(hooks)}

    def device(self, address) -> str | None:
        pod = self.pods.get(address)
        return self.attached[pod.title].device if pod else None

    def passed(self, frames: list[bytes], addresses: list, direction: str) -> np.ndarray:
        """Which frames pass the hook of their address's device, and the devices that rules send them to; all that have none."""
        devices = [self.device(address) for address in addresses]
        there = [i for i, device in enumerate(devices) if device is not None]
        done = np.ones(len(frames), dtype=bool)
        if there:
            memory, rows = frames_of([frames[i] for i in there])
            rows["iface"] = [self.iface[Hook(devices[i], direction)] for i in there]
            self.now += MS
            rows["ts"] = self.now
            _, _, results = self.pipeline.process(memory, rows, results=True)
            assert set(results["reason"].tolist()) <= {Reason.R_OK, Reason.R_RULE_DROP}
            done[there] = results["verdict"] == Verdict.ACCEPT
        return done

    def both_ends(self, attempts: list[Attempt], numbers: list[int], step: int) -> tuple[np.ndarray, np.ndarray]:
        """Which packets leave their source, and which of them get into their target, too."""
        frames = [frame_of(attempt, number, step) for attempt, number in zip(attempts, numbers, strict=True)]
        ends = [(one.dst, one.src) if step == ANSWER else (one.src, one.dst) for one in attempts]
        left = self.passed(frames, [source for source, _ in ends], "ingress")
        rest = [i for i in np.flatnonzero(left).tolist() if not self.is_direct(*ends[i])]
        entered = left.copy()
        entered[rest] = self.passed([frames[i] for i in rest], [ends[i][1] for i in rest], "egress")
        return left, entered

    def is_direct(self, source, target) -> bool:
        """Whether rules send it from the one's device to the other's, whose egress hook has had its say then."""
        return self.forward == "redirect" and None not in (self.device(source), self.device(target))


@pytest.mark.parametrize("forward", ["pass", "redirect"])
@pytest.mark.parametrize("name", NAMES)
def test_connections_of_a_recipe_through_the_compiled_pipeline(name, forward):
    recipe = Recipe(name)
    cluster, net, attempts = recipe.cluster(), Net(recipe, forward), list(recipe.attempts())
    numbers = list(range(len(attempts)))
    left, entered = net.both_ends(attempts, numbers, OPENING)
    for attempt, leaves, enters in zip(attempts, left.tolist(), entered.tolist(), strict=True):
        said = judge(cluster, Packet(attempt.src, attempt.dst, attempt.proto, attempt.number), recipe.node_traffic)
        assert enters == attempt.allowed, attempt
        assert net.is_direct(attempt.src, attempt.dst) or leaves == said.egress.allowed, attempt
    going = np.flatnonzero(entered).tolist()
    assert going and len(going) < len(attempts), "a recipe with one outcome shows nothing"
    for step in (ANSWER, FOLLOWING):
        _, through = net.both_ends([attempts[i] for i in going], [numbers[i] for i in going], step)
        assert [str(attempts[i]) for i, fine in zip(going, through.tolist(), strict=True) if not fine] == []


@pytest.mark.parametrize("forward", ["pass", "redirect"])
def test_an_answer_that_nobody_asked_for_does_not_pass(forward):
    """As an opening it would be the business of the policies that let the others pass: both-ends has one pair and one way."""
    recipe = Recipe("both-ends")
    net = Net(recipe, forward)
    allowed = [attempt for attempt in recipe.attempts() if attempt.allowed]
    assert {(one.source, one.target) for one in allowed} == {("left/a", "right/x")}
    assert not net.both_ends(allowed, [7], ANSWER)[1].any()
    assert net.device(ip_address("192.0.2.1")) is None


@pytest.mark.parametrize("proto", [6, 17])
@pytest.mark.parametrize("flowtable", [True, False])
def test_an_unanswered_connection_that_is_no_longer_allowed_gets_no_answer(proto, flowtable):
    """Let in and not answered, it is new for conntrack, and known yet: its next request is refused, and so are answers, until it may again."""
    deny = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "all", "namespace": "shop"},
        "spec": {"podSelector": {}},
    }
    allow = {**deny, "spec": {"podSelector": {}, "ingress": [{}]}}
    pods = list(objects({"pods": {"shop/a": {"labels": {}}}}))
    (pod,) = made(pods).pods
    attached, outside, inside = attach([pod]), "198.51.100.7", str(pod.addresses[0])
    rules = [compile_policies(made([*pods, each]), attached) for each in (allow, deny)]
    device = attached[pod.title].device
    hooks = [Hook(device, direction) for direction in ("ingress", "egress")]
    pipeline = RulePipeline(rules[0], Config(), devices=[device], flowtable=flowtable)
    pipeline.arrive(hooks)
    request = craft.tcp(outside, inside, 1, 53, "S", seq=1) if proto == 6 else craft.udp(outside, inside, 1, 53)
    answer = craft.tcp(inside, outside, 53, 1, "SA", seq=9, ack=2) if proto == 6 else craft.udp(inside, outside, 53, 1)
    now = START

    def passes(frame: bytes, iface: int) -> bool:
        nonlocal now
        now += MS
        memory, rows = frames_of([frame], np.array([now]))
        rows["iface"] = iface
        return bool(pipeline.process(memory, rows, results=True)[2]["verdict"][0] == Verdict.ACCEPT)

    def turn(ruleset) -> None:
        pipeline.load(ruleset, devices=[device])
        pipeline.arrive(hooks)

    assert passes(request, 1)
    turn(rules[1])
    assert not passes(request, 1)
    assert not passes(answer, 0)
    turn(rules[0])
    assert passes(request, 1)
    assert passes(answer, 0)
