"""The NIC against the interpreter of rules, with CT tables in plain Python: what it forwards, drops and counts is what rules make of a frame.

Invariants: of a frame that did not miss, the same copies leave at the same ifaces with the same bytes and marks, and the same rules count it. Of one
that missed, what left and what was counted is the beginning of what the interpreter does, up to the place where software goes on.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datapath.commands.nic_rules import nic_rules
from datapath.frame import frames_of
from datapath.pipeline.interpret import Delivery, Interpreter
from datapath.pipeline.rules import Ct, CtNat, Hook, Match, Mirred, Rule, Ruleset
from offload.records import Ctinfo
from offload.simnic import profile
from offload.simnic.results import NO_RULE, Flag, Verdict, Why
from pcap_tests.test_datapath.test_pipeline.random_pipelines import A4, A6, DEVICES, PORTS, some_control, some_frame, some_ruleset
from pcap_tests.test_offload.test_simnic.ct_twin import CtTwin
from pcap_tests.test_offload.test_simnic.nic_side import EST, NEW, RPL, TCP, TRK, UDP, Conn, Seen, Tried, seen

NUMBER = {name: i for i, name in enumerate(DEVICES, 1)}
NAME = dict(enumerate(DEVICES, 1))
ZONES = (0, 1, 2)
CT_MISSES = {Why.CT_PROTO, Why.CT_CLOSING, Why.CT_MISS, Why.CT_TABLE}
IN = "eth0"


def some_ct(random: Random, inner: int) -> Ct:
    nat = random.choice((None, CtNat(), CtNat()))
    return Ct(random.choice(ZONES), nat=nat, clear=random.randrange(8) == 0, commit=random.randrange(8) == 0, control=some_control(random))


def ct_matches(random: Random) -> list[Match]:
    """A state, and more rarely something of the connection."""
    bits = random.choice((TRK, TRK | EST, TRK | RPL, TRK | NEW, TRK | 0x10))
    found = [Match("ct_state", random.choice((0, bits, bits, bits, TRK)) & bits, bits)] if random.randrange(2) else []
    if random.randrange(6) == 0:
        found.append(Match("ct_zone", random.choice(ZONES), 0xFFFF))
    if random.randrange(6) == 0:
        found.append(Match("ct_mark", random.choice((0, 1, 3)) & 1, random.choice((1, 0xFFFFFFFF))))
    if random.randrange(8) == 0:
        found.append(Match("ct_label", random.choice((0, 1 << 90)), random.choice(((1 << 128) - 1, 1 << 90))))
    return found


def some_conns(random: Random) -> list[Conn]:
    """A part of all connections that frames may belong to. Those of one tuple are translated alike, or not at all."""
    found = []
    for addresses in (A4, A6):
        for src in addresses:
            for dst in addresses:
                found += [conn for sport in PORTS for dport in PORTS for conn in in_zones(random, addresses, (src, dst, sport, dport))]
    return [replace(conn, cookie=2 * i | conn.cookie & 1, conn=i) for i, conn in enumerate(found)]


def in_zones(random: Random, addresses: tuple[str, ...], key: tuple[str, str, int, int]) -> list[Conn]:
    made = []
    for proto in (TCP, UDP):
        for zone in ZONES:
            if random.randrange(2):
                continue
            to = {}
            if random.randrange(3) == 0:
                to = {"to_src": random.choice(addresses), "to_sport": random.choice(PORTS)}
            if random.randrange(3) == 0:
                to |= {"to_dst": random.choice(addresses), "to_dport": random.choice(PORTS)}
            ctinfo = random.choice(list(Ctinfo))
            label = random.choice((0, 0, 1 << 90, 1 << 90 | 1))
            made.append(
                Conn(*key, proto, zone, **to, ctinfo=ctinfo, cookie=ctinfo == Ctinfo.ESTABLISHED_REPLY, mark=random.choice((0, 1, 3)), label=label)
            )
    return made


def mostly_hardware(random: Random, n_rules: int) -> Ruleset:
    """Rules at one hook, of which most that a NIC does not take are left out: else hardly a frame would get far."""
    drawn = [some_ruleset(random, n_rules, actions=some_ct, matches=ct_matches) for _ in range(6)]
    rules = [redirecting(random, replace(rule, hook=Hook(IN))) for each in drawn for rule in each.rules]
    soft = Tried(profile.load("perfect"), nic_rules(Ruleset((), (), tuple(rules)), NUMBER.__getitem__)).kept()
    return Ruleset((), (), tuple(rule for i, rule in enumerate(rules) if i not in soft or random.randrange(30) == 0)[:n_rules])


def redirecting(random: Random, rule: Rule) -> Rule:
    """Some go on to a device behind their other actions."""
    return rule if random.randrange(3) else replace(rule, actions=(*rule.actions, Mirred("redirect", random.choice(DEVICES))))


def interpreted(interpreter: Interpreter, frame: bytes, now: int) -> Delivery:
    return interpreter.deliver(frame, now, Hook(IN))


def hits(delivery: Delivery, numbers: dict[int, int]) -> list[tuple[int, int]]:
    """Number of a rule, and bytes that it counts."""
    return [(numbers[id(hit.rule)], hit.length) for hit in delivery.hits]


def left(delivery: Delivery) -> list[tuple[bytes, str, str, int, int]]:
    found = []
    for walk in delivery.passed:
        found += [(piece.frame, walk.hook.device, walk.hook.direction, walk.mark, walk.priority) for piece in walk.pieces]
    return found


def judge(nic: Tried, got: Seen, outputs: list[tuple[bytes, str, str, int, int]], delivery: Delivery, counted: list[tuple[int, int]], twin: CtTwin,
          numbers: dict[int, int]) -> None:  # fmt: skip
    theirs, theirs_hits = left(delivery), hits(delivery, numbers)
    assert counted == theirs_hits[: len(counted)]
    if got.verdict == Verdict.MISSED:
        assert outputs == theirs[: len(outputs)]
        assert (got.why in CT_MISSES) <= twin.missed, "the plain tables have it"
        if got.why in CT_MISSES:
            assert got.resumes[1] == theirs_hits[len(counted)][0] != NO_RULE
        return
    assert not twin.missed and counted == theirs_hits
    last = delivery.last
    assert (got.verdict == Verdict.DROPPED) == (last.verdict == "drop")
    assert outputs == theirs
    if got.verdict == Verdict.DROPPED:
        assert got.why == Why.RULE and last.reason == "rule_drop"
    assert bool(got.row["flags"] & Flag.CT) == bool(twin.served)


def run(seed: int, n_rules: int, n_frames: int) -> Counter:
    """Rules and frames by a seed, through both. What became of the frames."""
    random = Random(seed)
    ruleset = some_ruleset(random, n_rules, actions=some_ct, matches=ct_matches) if seed % 4 == 3 else mostly_hardware(random, n_rules)
    ruleset = replace(ruleset, rules=tuple(replace(rule, skip_sw=False) for rule in ruleset.rules))  # which the interpreter would not have
    conns = some_conns(random)
    nic = Tried(profile.load("perfect"), nic_rules(ruleset, NUMBER.__getitem__), seed=seed)
    for conn in conns:
        assert nic.submit(conn.command(), 0) == 1
    assert (nic.replies(0)["error"] == 0).all()
    nic.check()
    twin = CtTwin(conns)
    interpreter = Interpreter(ruleset, twin)
    numbers = {id(rule): i for i, rule in enumerate(ruleset.rules)}
    said: Counter = Counter()
    for moment in range(n_frames):
        frame = some_frame(random)
        before = nic.counters().copy()
        memory, frames = frames_of([frame], moment)
        frames["iface"] = NUMBER[IN]
        (got,) = seen(nic, memory, nic.process(memory, frames))
        outs = nic.outputs()[0]
        outputs = [
            (data, NAME[iface], "egress" if out["egress"] else "ingress", int(out["mark"]), int(out["priority"]))
            for (data, iface, _), out in zip(got.left, outs, strict=True)
        ]  # fmt: skip
        twin.begin()
        delivery = interpreted(interpreter, frame, moment)
        moved = nic.counters()
        if len(before):
            packets = (moved["packets"] - before["packets"]).tolist()
            size = (moved["bytes"] - before["bytes"]).tolist()
        else:
            packets = size = []
        theirs = hits(delivery, numbers)
        n = sum(packets)
        counted = theirs[:n]
        by_rule: Counter = Counter(number for number, _ in counted)
        assert [by_rule[i] for i in range(len(packets))] == packets
        assert sum(size) == sum(length for _, length in counted)
        judge(nic, got, outputs, delivery, counted, twin, numbers)
        said[got.verdict, got.why] += 1
    return said


@pytest.mark.parametrize("block", range(2))
def test_the_nic_and_the_interpreter_say_the_same(block):
    """Rules and frames of seeds that stay the same; each way that a frame can go is gone."""
    said: Counter = Counter()
    for seed in range(40 * block, 40 * block + 40):
        said += run(seed, 25, 60)
    assert {verdict for verdict, _ in said} == set(Verdict)
    assert {why for _, why in said} >= {Why.NO_RULE, Why.IN_SOFTWARE, Why.CT_MISS, Why.FRAGMENT, Why.IP6_EXTENSION}


@given(st.integers(0, 1 << 63), st.integers(2, 12))
def test_the_nic_and_the_interpreter_say_the_same_of_any_rules(seed, n_rules):
    run(seed, n_rules, 12)
