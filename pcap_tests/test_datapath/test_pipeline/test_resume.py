"""Frames that hardware has begun with: they go on in the middle of the rules, with what they carry, and what was done before is not done again."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctcore.config import Config
from ctcore.types import Offload, Reason, State, Verdict
from datapath import craft
from datapath.frame import frames_of
from datapath.pipeline.findings import Findings
from datapath.pipeline.program import RESUME_DTYPE
from datapath.pipeline.rules import Hook
from datapath.pipeline.rules_file import parse
from datapath.ruled import RulePipeline

NO_RULE = 0xFFFFFFFF
FROM, TO, PUBLIC = "10.0.0.1", "10.0.0.2", "192.0.2.1"
RULES = """
tc filter add dev a ingress protocol ip prio 1 chain 0 flower ip_proto udp action skbedit mark 5 pipe action goto chain 1
tc filter add dev a ingress protocol ip prio 1 chain 1 flower dst_port 7 action drop
tc filter add dev a ingress protocol ip prio 2 chain 1 flower \\
    action skbedit mark 1 pipe action skbedit mark 2/2 pipe action mirred egress redirect dev b
"""
TRACKED = """
tc filter add dev a ingress protocol ip prio 1 chain 0 flower ct_state -trk action ct zone 4 nat pipe action goto chain 1
tc filter add dev a ingress protocol ip prio 1 chain 1 flower ct_state +trk+new \\
    action ct zone 4 commit nat src addr 192.0.2.1 pipe action goto chain 2
tc filter add dev a ingress protocol ip prio 2 chain 1 flower ct_state +trk+est action goto chain 2
tc filter add dev a ingress protocol ip prio 1 chain 2 flower ct_state +est action mirred egress redirect dev b
tc filter add dev a ingress protocol ip prio 2 chain 2 flower action pass
"""


class Node:
    """A pipeline with all at device a."""

    def __init__(self, text: str) -> None:
        self.pipeline = RulePipeline(parse(text, "rules", Findings()), Config(), devices=("a", "b"))
        self.pipeline.arrive([Hook("a")])
        self.hook, self.now = self.pipeline.program.hook(Hook("a")), 0

    def send(self, frame: bytes, chain: int | None = None, rule: int = NO_RULE, action: int = 0, **more):
        """The result of a frame, from the beginning or from where hardware has stopped with it. more: of RESUME_DTYPE."""
        memory, rows = frames_of([frame])
        self.now += 1_000_000
        rows["ts"] = self.now
        resumes = None
        if chain is not None:
            one = [np.array([value]) for value in (self.hook, chain, rule, action)]
            resumes = self.pipeline.program.resumes(*one)
            for name, value in more.items():
                resumes[name] = value
        _, _, results = self.pipeline.process(memory, rows, results=True, outputs=True, resumes=resumes)
        return results[0]

    @property
    def counts(self) -> list[int]:
        return self.pipeline.counters()["packets"].tolist()


def udp(port: int = 9, *, back: bool = False, to: str = FROM) -> bytes:
    return craft.udp(TO, to, port, 1000) if back else craft.udp(FROM, TO, 1000, port)


def test_a_chain_is_searched_from_its_beginning():
    node = Node(RULES)
    result = node.send(udp(), chain=1)
    assert (result["verdict"], node.pipeline.program.devices[result["device"]], result["mark"]) == (Verdict.ACCEPT, "b", 3)
    assert node.counts == [0, 0, 1], "what hardware has counted is not counted again"


def test_a_chain_is_searched_from_a_rule_on():
    node = Node(RULES)
    assert node.send(udp(7), chain=1, rule=2)["verdict"] == Verdict.ACCEPT, "the rule before it was asked by hardware, and is not asked again"
    assert node.send(udp(7), chain=1, rule=1)["verdict"] == Verdict.DROP
    assert node.counts == [0, 1, 1]


def test_a_rule_s_actions_go_on_where_hardware_has_stopped():
    node = Node(RULES)
    result = node.send(udp(), chain=1, rule=2, action=1, mark=8)
    assert (result["mark"], node.counts) == (8 | 2, [0, 0, 1]), "the first action's mark is hardware's"


def test_a_chain_that_nobody_has_ends_as_any_other():
    result = Node(RULES).send(udp(), chain=77)
    assert (result["verdict"], result["rule"]) == (Verdict.ACCEPT, NO_RULE)


def test_chains_that_hardware_went_through_count_for_the_limit():
    loop = "tc filter add dev a ingress protocol ip prio 1 chain 0 flower ip_proto udp action goto chain 1\n" * 1
    loop += "tc filter add dev a ingress protocol ip prio 1 chain 1 flower ip_proto udp action goto chain 2\n"
    assert Node(loop).send(udp(), chain=0, turns=14)["verdict"] == Verdict.ACCEPT
    assert Node(loop).send(udp(), chain=0, turns=16)["reason"] == Reason.R_RULE_CHAINS


def established() -> tuple[Node, int]:
    """A connection translated to PUBLIC, both of whose directions were seen; its ordinal."""
    node = Node(TRACKED)
    node.send(udp())
    node.send(udp(back=True, to=PUBLIC))
    (conn,) = node.pipeline.tracker.conns()
    return node, int(conn["flow"][0]["id"])


@pytest.mark.parametrize(
    ("frame", "direction"),
    [
        (udp(), 0),
        (craft.udp(PUBLIC, TO, 1000, 9), 0),
        (udp(back=True, to=PUBLIC), 1),
        (udp(back=True), 1),
    ],
    ids=["original", "original, translated", "reply", "reply, translated"],
)
def test_a9_68_a_connection_is_found_by_the_tuple_as_it_came_or_as_translated(frame, direction):
    node, conn = established()
    before = node.counts
    result = node.send(frame, chain=2, conn=conn, zone=4, state=State.ESTABLISHED)
    decision = result["decision"]
    assert (result["verdict"], node.pipeline.program.devices[result["device"]]) == (Verdict.ACCEPT, "b"), "its rules see +est"
    assert (decision["conn"], decision["dir"], decision["state"], decision["zone"]) == (conn, direction, State.ESTABLISHED, 4)
    assert decision["offload"] == Offload.OFFLOAD_HARDWARE
    assert [after - earlier for earlier, after in zip(before, node.counts, strict=True)] == [0, 0, 0, 1, 0]


@pytest.mark.parametrize("wrong", [{"conn": 999}, {"zone": 5}], ids=["another connection", "another zone"])
def test_a9_68_a_connection_that_is_not_found_drops_the_packet(wrong):
    node, conn = established()
    result = node.send(udp(), chain=2, **{"conn": conn, "zone": 4, "state": State.ESTABLISHED, **wrong})
    assert (result["verdict"], result["reason"]) == (Verdict.DROP, Reason.R_RULE_RESTORE)
    assert node.pipeline.count(Reason.R_RULE_RESTORE) == 1


def test_what_was_restored_is_what_the_next_ct_finds():
    node, conn = established()
    again = node.send(udp(), chain=0, rule=0, conn=conn, zone=4, state=State.ESTABLISHED)
    assert (again["decision"]["conn"], again["decision"]["state"]) == (conn, State.ESTABLISHED)


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([7, 9])), max_size=8))
def test_from_the_beginning_is_as_if_nothing_had_been(steps):
    """Invariant: a frame that goes on at chain 0, before any rule, fares as one that begins; the next frame begins in any case."""
    plain, resumed = Node(RULES), Node(RULES)
    for kind, port in steps:
        one = plain.send(udp(port))
        other = resumed.send(udp(port), chain=0) if kind else resumed.send(udp(port))
        assert one == other
    assert plain.counts == resumed.counts


@pytest.mark.parametrize("rows", [np.zeros(1, dtype=RESUME_DTYPE), np.zeros(2, dtype=np.uint8), np.zeros(4, dtype=RESUME_DTYPE)[::2]])
def test_resumes_that_are_none_are_refused(rows):
    node = Node(RULES)
    memory, frames = frames_of([udp(), udp()])
    with pytest.raises(ValueError, match="resumes: expected RESUME_DTYPE"):
        node.pipeline.process(memory, frames, resumes=rows)
