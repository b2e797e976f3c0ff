"""Rules, compiled: the same as the interpreter's word for every frame, and what only the compiled ones have."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctcore.reasons import NAMES
from datapath import craft
from datapath.frame import LINK_RAW, frames_of
from datapath.pipeline.outputs import OutputFlag
from datapath.pipeline.program import Program
from datapath.pipeline.rules import (
    CONTINUE,
    DROP,
    ETH_ALL,
    ETH_IP,
    PASS,
    PIPE,
    RECLASSIFY,
    Action,
    Control,
    Csum,
    Ct,
    Gact,
    Hook,
    Match,
    Mirred,
    Munge,
    Pedit,
    Police,
    Qdisc,
    Rule,
    Ruleset,
    Skbedit,
    Vlan,
    goto,
)
from datapath.pipeline.walk import Walker
from pcap_tests.test_datapath.test_pipeline.random_pipelines import ENTRIES, SECOND, some_frame, some_ruleset
from pcap_tests.test_datapath.test_pipeline.rulesets import rulesets
from pcap_tests.test_datapath.test_pipeline.walked import BARE, Coming, compared, without_ethernet

PAIRS = int(os.environ.get("CTMIRROR_PAIRS", "100000"))
FRAMES_EACH = 250
HOOK = Hook("eth0")
SEGMENT = craft.tcp("10.0.0.1", "10.0.0.2", 40000, 80, "S")


def rule(prio: int, *actions: Action, chain: int = 0, hook: Hook = HOOK, matches: tuple[Match, ...] = ()) -> Rule:
    return Rule(hook, ETH_ALL, matches, actions, prio, chain)


def coming(random: Random, frames: list[bytes], n: int) -> list[Coming]:
    """Frames at hooks, mostly in time; some were not captured to their end, some came without Ethernet."""
    now, found = 1_000 * SECOND, []
    for _ in range(n):
        now += random.choice((0, 0, 1000, SECOND // 100, SECOND, -SECOND // 10))
        frame = random.choice(frames)
        cut = random.randrange(len(frame) + 1) if random.randrange(10) == 0 else len(frame)
        came = Coming(frame[:cut], random.choice(ENTRIES), now, len(frame) - cut)
        found.append(without_ethernet(came, *random.choice(BARE)) if random.randrange(8) == 0 else came)
    return found


def test_compiled_rules_say_what_the_interpreter_says() -> None:
    """Any rules, any frame: verdict, reason, hits, marks, what leaves where, and counters are the same. CTMIRROR_PAIRS: how many of both."""
    random, reasons, changed, hops = Random(os.environ.get("CTMIRROR_SEED", "walk")), set(), 0, set()
    frames = [some_frame(random) for _ in range(1500)]
    for _ in range(-(-PAIRS // FRAMES_EACH)):
        frames[random.randrange(len(frames))] = some_frame(random)
        came = coming(random, frames, FRAMES_EACH)
        for each, said in zip(came, compared(some_ruleset(random), came), strict=True):
            reasons.add(said.reason)
            hops.add(said.hops)
            changed += any(left.frame != each.frame for left in said.left)
    if PAIRS < 100_000:
        return  # asked to be short, and so not by everything
    assert reasons == {"ok", "rule_drop", "rule_police", "rule_chains", "rule_hops", "rule_field"} and hops >= {0, 1, 2, 4}
    assert changed > PAIRS // 20


def without_ct(ruleset: Ruleset) -> Ruleset:
    return replace(ruleset, rules=tuple(replace(rule, actions=tuple(a for a in rule.actions if not isinstance(a, Ct))) for rule in ruleset.rules))


RARE = st.builds(
    Coming, st.integers(0, 1 << 32).map(lambda seed: some_frame(Random(seed))) | st.binary(max_size=80), st.sampled_from(ENTRIES), st.just(0),
    link=st.just(1), head=st.just(b""),
)  # fmt: skip


@given(rulesets().map(without_ct), st.lists(st.tuples(RARE, st.integers(0, 10 * SECOND), st.integers(0, 2000)), max_size=8))
def test_rare_rules_are_compiled_as_well(ruleset: Ruleset, frames: list[tuple[Coming, int, int]]) -> None:
    """The same for all values that rules can have, and for bytes that are no frame at all."""
    now = sorted(time for _, time, _ in frames)
    compared(ruleset, [each._replace(now=time, missing=missing) for (each, _, missing), time in zip(frames, now, strict=True)])


def run(frame: bytes, *rules: Rule, hook: Hook = HOOK, **settings: Any) -> tuple[Any, Any, Walker]:
    """Result and outputs of one frame."""
    walker = Walker(Program(Ruleset(rules=rules), [hook.device]), **settings)
    results = walker.run(*frames_of([frame]), hook)
    return results[0], walker.outputs(), walker


def reason_of(result: Any) -> str:
    return NAMES[int(result["reason"])]


@pytest.mark.parametrize("make", [craft.udp, partial(craft.udplite, coverage=10)])
def test_a_sum_of_zero_says_that_there_is_one(make: Callable[..., bytes]) -> None:
    """RFC 768: a datagram whose checksum would be 0 has 0xFFFF; these two bytes of payload make it 0."""
    plain = make("10.0.0.1", "10.0.0.2", 1, 2, b"\0\0")
    frame = make("10.0.0.1", "10.0.0.2", 1, 2, plain[40:42], l4_checksum=1)
    (said,) = compared(Ruleset(rules=(rule(1, Csum(("udp", "udplite"))),)), [Coming(frame, HOOK, 0)])
    assert said.left[0].frame[40:42] == b"\xff\xff"


# --- what leaves ------------------------------------------------------------------------------------------------------------------------


def test_what_nobody_changed_is_not_copied() -> None:
    frames = [craft.udp("10.0.0.1", "10.0.0.2", 1, 2, b"first"), SEGMENT]
    walker = Walker(Program(Ruleset(rules=(rule(1, Mirred("mirror", "tap0"), Mirred("redirect", "eth1")),))))
    memory, laid = frames_of(frames)
    walker.run(memory, laid, HOOK)
    rows, data = walker.outputs()
    assert rows["frame"].tolist() == [0, 0, 1, 1] and rows["flags"].tolist() == [OutputFlag.OUTPUT_COPY, 0] * 2 and len(data) == 0
    assert [memory[row["offset"] : row["offset"] + row["caplen"]].tobytes() for row in rows[::2]] == frames
    assert [walker.program.devices[device] for device in rows["device"]] == ["tap0", "eth1"] * 2 and rows["egress"].all()


def test_a_copy_leaves_as_it_was_when_it_was_made() -> None:
    tag, to_8080 = Vlan("push", id=5), Pedit((Munge("tcp", "dport", "set", 8080, 0xFFFF),))
    came = [Coming(SEGMENT, HOOK, 0)]
    (said,) = compared(Ruleset(rules=(rule(1, Mirred("mirror", "tap0"), to_8080, Mirred("mirror", "tap0"), tag, Mirred("redirect", "eth1")),)), came)
    assert [(left.device, left.frame[12:14], left.frame[-18:-16]) for left in said.left] == [
        ("tap0", b"\x08\x00", b"\x00\x50"),
        ("tap0", b"\x08\x00", b"\x1f\x90"),
        ("eth1", b"\x81\x00", b"\x1f\x90"),
    ]


def test_marks_go_along() -> None:
    onward = rule(1, Skbedit(mark=(1, 1)), hook=Hook("eth1", "egress"))
    result, (rows, _), _ = run(SEGMENT, rule(1, Skbedit(mark=(6, 7), priority=9), Mirred("redirect", "eth1")), onward)
    assert (result["mark"], result["priority"], rows["mark"].tolist(), rows["priority"].tolist()) == (7, 9, [7], [9])


def test_outputs_are_those_of_the_last_run() -> None:
    _, _, walker = run(SEGMENT, rule(1, Vlan("push", id=5)))
    assert len(walker.outputs()[0]) == 1
    walker.run(*frames_of([SEGMENT, SEGMENT]), HOOK)
    rows, data = walker.outputs()
    assert rows["offset"].tolist() == [0, len(SEGMENT) + 4] and len(data) == 2 * len(SEGMENT) + 8
    walker.run(*frames_of([SEGMENT]), HOOK, outputs=False)
    assert [len(each) for each in walker.outputs()] == [0, 0]


def test_what_has_no_room_is_dropped_and_counted() -> None:
    """Neither a row nor bytes beyond what outputs may take; a copy that is lost costs the frame nothing."""
    result, (rows, _), _ = run(SEGMENT, output_bytes=0)
    assert (reason_of(result), len(rows)) == ("rule_room", 0)
    sent = rule(1, Vlan("push", id=5), Mirred("mirror", "tap0"), Vlan("pop"), Gact(DROP))
    result, (rows, _), walker = run(SEGMENT, sent, output_bytes=1 << 16)
    assert (reason_of(result), len(rows), dict(zip(NAMES, walker.lost().tolist(), strict=True))["rule_room"]) == ("rule_drop", 0, 1)
    result, (rows, _), _ = run(SEGMENT, rule(1, Vlan("push", id=5)), output_bytes=1 << 16)
    assert (reason_of(result), result["rule"], len(rows)) == ("rule_room", 0, 0)


def test_outputs_grow() -> None:
    walker = Walker(Program(Ruleset(rules=(rule(1, Vlan("push", id=5)),))))
    frame = craft.udp("10.0.0.1", "10.0.0.2", 1, 2, bytes(9000))
    walker.run(*frames_of([frame] * 3000), HOOK)
    rows, data = walker.outputs()
    assert len(rows) == 3000 and len(data) == 3000 * (len(frame) + 4)
    assert data[int(rows["offset"][-1]) :].tobytes() == frame[:12] + b"\x81\x00\x00\x05" + frame[12:]


def test_indev_at_egress_is_where_a_packet_was_sent_on_from() -> None:
    """Of what the host itself sends it is none (skb_iif)."""
    out = Hook("eth1", "egress")
    rules = tuple(rule(prio, Gact(DROP), hook=out, matches=(Match("indev", 0, 0, None, device),)) for prio, device in ((1, "eth1"), (2, "eth0")))
    own, sent = compared(Ruleset(rules=(rule(1, Mirred("redirect", "eth1")), *rules)), [Coming(SEGMENT, out, 0), Coming(SEGMENT, HOOK, 0)])
    assert (own.verdict, own.hits, sent.verdict, sent.hits) == ("accept", (), "drop", (0, 2))


def test_a_policer_begins_with_the_first_packet_even_if_that_is_too_long() -> None:
    """Which shows when time goes back behind it."""
    police = rule(1, Police(rate=8, burst=72, mtu=60, exceed=DROP))
    came = [
        Coming(bytes(70), HOOK, 10 * SECOND),
        Coming(bytes(60), HOOK, 0),
        Coming(bytes(45), HOOK, 10 * SECOND),
        Coming(bytes(40), HOOK, 10 * SECOND),
    ]
    assert [said.reason for said in compared(Ruleset(rules=(police,)), came)] == ["rule_police", "ok", "rule_police", "ok"]


@pytest.mark.parametrize(
    ("hook", "tag", "counted"),
    [(HOOK, b"", len(SEGMENT) - 14), (HOOK, b"\x81\0\0\5", len(SEGMENT) - 14), (Hook("eth0", "egress"), b"", len(SEGMENT))],
)
def test_a_policer_counts_what_linux_has_of_a_packet(hook: Hook, tag: bytes, counted: int) -> None:
    """At ingress its link header is off already, and the outermost tag lies beside it; what actions change later is no matter."""
    frame = SEGMENT[:12] + tag + SEGMENT[12:]
    for burst, reason in ((counted, "ok"), (counted - 1, "rule_police")):
        police = Police(rate=8, burst=burst, exceed=DROP)
        (said,) = compared(Ruleset(rules=(rule(1, Vlan("push", id=7), Vlan("push", id=8), police, hook=hook),)), [Coming(frame, hook, 0)])
        assert said.reason == reason


@pytest.mark.parametrize(
    ("given", "longest"),
    [
        ({"rate": 8 * 10**9, "burst": 100_000}, 2040),
        ({"rate": 8 * 10**9, "burst": 100_000, "mtu": 3000}, 3000),
        ({"packet_rate": 1, "packet_burst": 9}, None),
    ],
)
def test_what_is_longer_than_a_policers_mtu_has_no_token(given: dict[str, int], longest: int | None) -> None:
    """Without an mtu: 255 cells of 8 bytes, if there is a rate of bytes (tc's table of it, and tcf_police_init)."""
    rules = Ruleset(rules=(rule(1, Police(**given, exceed=DROP)),))
    for size in (2039, 2040, 2041, 3000, 3001, 9000):
        (said,) = compared(rules, [Coming(bytes(size), HOOK, 0)])
        assert said.reason == ("ok" if longest is None or size <= longest else "rule_police")


def test_a_rule_was_last_used_at_the_latest_time_of_its_packets() -> None:
    walker = Walker(Program(Ruleset(rules=(rule(1, Gact(DROP)),))))
    walker.run(*frames_of([SEGMENT] * 3, np.array([5, 9, 7]) * SECOND), HOOK)
    assert walker.program.counters()["last"].tolist() == [9 * SECOND]


# --- circles and giants -----------------------------------------------------------------------------------------------------------------


def test_more_tags_than_there_is_headroom_for() -> None:
    pushes = [Vlan("push", id=number) for number in range(5)]
    (said,) = compared(Ruleset(rules=tuple(rule(prio, *pushes, Gact(CONTINUE)) for prio in range(1, 50))), [Coming(SEGMENT, HOOK, 0)])
    assert len(said.left[0].frame) == len(SEGMENT) + 4 * 5 * 49


def test_a_frame_that_is_too_large_to_be_changed() -> None:
    giant = SEGMENT + bytes(1 << 19)
    result, _, _ = run(giant, rule(1, Vlan("push", id=5)))
    assert reason_of(result) == "rule_room"
    result, (rows, _), _ = run(giant)
    assert reason_of(result) == "ok" and len(rows) == 1


def test_tags_grow_to_the_end_of_the_memory() -> None:
    nearly = SEGMENT + bytes((1 << 19) - 256 - len(SEGMENT))
    assert reason_of(run(nearly, rule(1, *[Vlan("push", id=1)] * 64))[0]) == "ok"
    assert reason_of(run(nearly, rule(1, *[Vlan("push", id=1)] * 65))[0]) == "rule_room"


def test_copies_do_not_multiply_without_end() -> None:
    """Each of 17 rounds makes a copy that makes 17: a limit of our own, for Linux has none."""
    rules = rule(1, Mirred("mirror", "eth0", "ingress"), Gact(RECLASSIFY))
    (said,) = compared(Ruleset(rules=(rules,)), [Coming(SEGMENT, HOOK, 0)])
    assert said.reason == "rule_hops"
    _, _, walker = run(SEGMENT, rules)
    assert walker.lost().sum() == 64


@pytest.mark.parametrize(("gotos", "reason"), [(16, "ok"), (17, "rule_chains")])
def test_sixteen_gotos_are_followed_and_no_more(gotos: int, reason: str) -> None:
    """max_reclassify_loop counts the ways back, not the chains: the seventeenth chain still has its say."""
    rules = [rule(1, Gact(goto(chain + 1)), chain=chain) for chain in range(gotos)] + [rule(1, Gact(PASS), chain=gotos)]
    (said,) = compared(Ruleset(rules=tuple(rules)), [Coming(SEGMENT, HOOK, 0)])
    assert (said.reason, len(said.hits)) == (reason, 17)


def test_a_rule_is_counted_each_time() -> None:
    _, _, walker = run(SEGMENT, rule(1, Gact(goto(1))), rule(1, Gact(goto(2)), chain=1), rule(1, Gact(goto(1)), chain=2))
    assert walker.program.counters()["packets"].tolist() == [1, 8, 8]


# --- other frames, other callers --------------------------------------------------------------------------------------------------------


def test_a_frame_without_ethernet_is_matched_and_changed_from_its_ip_header_on() -> None:
    """Its protocol, addresses and ports are known; tags and addresses of Ethernet it has none."""
    matched = Rule(HOOK, ETH_IP, (Match("dst_port", 80, 0xFFFF),), (Vlan("pop"), Pedit((Munge("ip", "ttl", "set", 1, 0xFF),)), Gact(CONTINUE)), 1)
    for action, reason in ((Vlan("push", id=5), "rule_field"), (Pedit((Munge("eth", "dst", "set", 1, (1 << 48) - 1),)), "ok")):
        walker = Walker(Program(Ruleset(rules=(matched, rule(2, action)))))
        results = walker.run(*frames_of([SEGMENT[14:]], link=LINK_RAW), HOOK)
        assert (results["n_hits"].tolist(), reason_of(results[0])) == ([2], reason)


def test_csum_drops_what_is_shorter_than_it_says() -> None:
    """tcf_csum_act: before the action's control is asked."""
    sum_it = rule(1, Csum(("tcp",)), Mirred("redirect", "eth1"))
    short = craft.frame("10.0.0.1", "10.0.0.2", craft.TCP, bytes(10))
    for frame in (short, craft.tcp("10.0.0.1", "10.0.0.2", 1, 2, "S", length=41), craft.eth(bytes(19))):
        (said,) = compared(Ruleset(rules=(sum_it,)), [Coming(frame, HOOK, 0)])
        assert (said.verdict, said.reason, said.rule) == ("drop", "rule_field", 0)
    (said,) = compared(Ruleset(rules=(rule(1, Csum(("udp",)), Mirred("redirect", "eth1")),)), [Coming(short, HOOK, 0)])
    assert said.device == "eth1"


@pytest.mark.parametrize("control", [PIPE, DROP, CONTINUE])
def test_where_pedit_finds_no_field_its_control_is_followed(control: Control) -> None:
    """tcf_pedit_act: a munge that cannot be done ends the action and not the frame's way; those before it are done."""
    munges = Munge("ip6", "hoplimit", "set", 9, 0xFF), Munge("tcp", "dport", "set", 1, 0xFFFF), Munge("ip6", "hoplimit", "set", 7, 0xFF)
    rules = rule(1, Pedit(munges, control), Mirred("redirect", "eth1")), rule(2, Mirred("redirect", "eth2"))
    frame = craft.udp("2001:db8::1", "2001:db8::2", 5000, 53, bytes(40))
    (said,) = compared(Ruleset(rules=rules), [Coming(frame, HOOK, 0)])
    if control == DROP:
        assert (said.verdict, said.reason) == ("drop", "rule_drop")
    else:
        assert (said.device, [left.frame for left in said.left]) == ("eth1" if control == PIPE else "eth2", [frame[:21] + b"\x09" + frame[22:]])


def test_devices_have_numbers() -> None:
    ruleset = Ruleset((Qdisc("eth2", ingress_block=7),), (), (rule(1, Mirred("redirect", "eth1")), rule(1, Gact(DROP), hook=Hook("", "", 7))))
    program = Program(ruleset, ["nic0"])
    assert program.devices == ("", "nic0", "eth2", "eth0", "eth1")
    assert [program.hook(Hook("nic0")), program.hook(Hook("eth2", "egress"))] == [2, 5]
    with pytest.raises(ValueError, match="device eth9: expected one of nic0, eth2, eth0, eth1"):
        program.hook(Hook("eth9"))
    with pytest.raises(ValueError, match="expected ingress or egress of a device"):
        program.hook(Hook("", "", 7))


def test_a_hook_for_each_frame() -> None:
    program = Program(Ruleset(rules=(rule(1, Gact(DROP)), rule(1, Gact(PASS), hook=Hook("eth1")))))
    hooks = np.array([program.hook(HOOK), program.hook(Hook("eth1")), 0], dtype=np.uint32)
    results = Walker(program).run(*frames_of([SEGMENT] * 3), hooks)
    assert results["rule"].tolist() == [0, 1, 0xFFFFFFFF] and [reason_of(each) for each in results] == ["rule_drop", "ok", "ok"]
    with pytest.raises(ValueError, match="expected 3 numbers from 0 to 5"):
        Walker(program).run(*frames_of([SEGMENT] * 3), hooks + 4)
    with pytest.raises(ValueError, match="expected 2 numbers"):
        Walker(program).run(*frames_of([SEGMENT] * 2), hooks)


def test_what_cannot_be_compiled_is_refused() -> None:
    with pytest.raises(ValueError, match="ct action: expected a tracker"):
        Walker(Program(Ruleset(rules=(rule(1, Ct()),))))
    with pytest.raises(ValueError, match="pedit: tcp dport add: expected a field of one byte"):
        Program(Ruleset(rules=(rule(1, Pedit((Munge("tcp", "dport", "add", 1, 0xFFFF),))),)))
    walker = Walker(Program(Ruleset()))
    with pytest.raises(RuntimeError, match="was set up already"):
        walker.__init__(walker.program)  # type: ignore[misc]


def test_no_frames_and_no_rules() -> None:
    walker = Walker(Program(Ruleset(), ["eth0"]))
    assert len(walker.run(*frames_of([]), HOOK)) == 0
    assert walker.run(*frames_of([b"", SEGMENT]), HOOK)["verdict"].tolist() == [1, 1]
    assert len(walker.program.counters()) == 0
