"""Rules with connection tracking, compiled: the walk with the engine says what the interpreter says with the model, of whole conversations."""

from __future__ import annotations

import os
from collections import Counter
from ipaddress import ip_address
from random import Random
from typing import Any

import pytest

from ctcore.config import Config
from ctcore.errors import ConfigError
from ctcore.tracker import Tracker
from ctcore.types import Reason, State
from datapath import craft
from datapath.frame import frames_of
from datapath.pipeline.program import Program
from datapath.pipeline.rules import (
    CONTINUE,
    CT_STATES,
    DROP,
    ETH_ALL,
    PASS,
    Action,
    Ct,
    CtNat,
    Gact,
    Hook,
    Match,
    Mirred,
    Munge,
    Pedit,
    Police,
    Rule,
    Ruleset,
)
from datapath.pipeline.walk import Walker
from pcap_tests.test_datapath.test_pipeline.random_pipelines import SECOND
from pcap_tests.test_datapath.test_pipeline.random_talks import FAR, NEAR, Traffic, some_config, some_pipeline
from pcap_tests.test_datapath.test_pipeline.walked import Coming, Sides

PAIRS = int(os.environ.get("CTMIRROR_PAIRS", "100000")) // 10
FRAMES_EACH = 120


def talk(random: Random, seen: Counter[str]) -> None:
    """One pipeline, and as many frames through it."""
    ruleset = some_pipeline(random)
    net, traffic = Sides(ruleset, some_config(random)), Traffic(random, ruleset)
    for number in range(FRAMES_EACH):
        coming = traffic.next()
        (said,) = net.send([coming])
        traffic.told(said)
        seen[said.reason] += 1
        seen["translated"] += any(left.frame[26:34] != coming.frame[26:34] for left in said.left)
        seen["pieces"] += len(said.left) > 1
        seen["conns"] += net.twins is not None and net.twins.engine.count > 1
        if number % 40 == 39:
            net.check()


def test_walk_and_engine_say_what_interpreter_and_model_say() -> None:
    """Any pipeline, any conversation: verdicts, hits, the bytes that leave, and all connections are the same."""
    random, seen = Random(os.environ.get("CTMIRROR_SEED", "talks")), Counter[str]()
    for _ in range(-(-PAIRS // FRAMES_EACH)):
        talk(random, seen)
    if PAIRS < 10_000:
        return  # asked to be short, and so not by everything
    assert {"ok", "fragment", "rule_drop", "not_ip", "table_full"} <= set(seen)
    assert min(seen["translated"], seen["pieces"], seen["conns"]) > PAIRS // 100


# --- what random talks seldom come to ---------------------------------------------------------------------------------------------------


def rule(*actions: Action, prio: int = 1, hook: Hook = NEAR, matches: tuple[Match, ...] = ()) -> Rule:
    return Rule(hook, ETH_ALL, matches, actions, prio)


def sides(*rules: Rule, **settings: Any) -> Sides:
    return Sides(Ruleset(rules=rules), Config(**settings))


def datagram(ident: int, size: int = 900) -> list[bytes]:
    """Of UDP, in two fragments."""
    data = craft.udp_segment("10.0.0.1", "192.0.2.1", 1024, 53, bytes(size - 8))
    pieces = ((data[:800], 0x2000), (data[800:], 100))
    return [craft.frame("10.0.0.1", "192.0.2.1", craft.UDP, piece, ident=ident, frag=frag) for piece, frag in pieces]


def test_time_that_goes_back_is_the_latest_there_was() -> None:
    """A datagram that begins when the clock has gone back by 40 s does not die 30 s after that."""
    net, (one, two) = sides(rule(Ct())), datagram(2)
    times = (50 * SECOND, 10 * SECOND, 55 * SECOND)
    assert [net.send([Coming(frame, NEAR, now)])[0].reason for frame, now in zip((datagram(1)[0], one, two), times, strict=True)] == [
        "fragment",
        "fragment",
        "ok",
    ]


def test_what_lies_behind_the_packet_is_not_missing_behind_ct() -> None:
    frame = craft.udp("10.0.0.1", "192.0.2.1", 1024, 53, bytes(30)) + bytes(20)
    net = sides(rule(Ct()))
    (said,) = net.send([Coming(frame[:60], NEAR, 0, len(frame) - 60)])
    assert (said.reason, said.left[0].length, len(said.left[0].frame)) == ("ok", len(frame) - 20, 60)


def test_a_policer_behind_ct_counts_what_came_and_a_datagram_as_a_whole() -> None:
    """act_ct takes off what is behind the packet, and tells nobody; what it has put together it measures anew."""
    padded, pieces = craft.udp("10.0.0.1", "192.0.2.1", 1024, 53, bytes(30)) + bytes(20), datagram(1)
    whole = sum(len(piece) for piece in pieces) - 34 * (len(pieces) - 1)
    for frames, counted in (([padded], len(padded)), (pieces, whole)):
        for burst, reason in ((counted - 14, "ok"), (counted - 15, "rule_police")):
            net = sides(rule(Ct(), Police(rate=8, burst=burst, exceed=DROP)))
            assert net.send([Coming(frame, NEAR, 0) for frame in frames])[-1].reason == reason


@pytest.mark.parametrize("family", [4, 6])
def test_a_length_beyond_the_frame_is_no_fault_at_a_hook(family: int) -> None:
    """A datagram of a protocol that has no length and no checksum of its own: tracked, and passed on as it is."""
    src, dst = ("10.0.0.1", "192.0.2.1") if family == 4 else ("2001:db8::1", "2001:db8:1::1")
    net = sides(rule(Ct(commit=True)))
    for frame, tracked in ((craft.frame(src, dst, 89, bytes(20), length=2000), 0x09), (craft.udp(src, dst, 1, 2, bytes(8), length=2000), 0x09)):
        (said,) = net.send([Coming(frame, NEAR, 0)])
        assert (said.verdict, said.recorded and said.recorded[0], said.left[0].frame) == ("accept", tracked, frame)
        assert said.left[0].length == len(frame)


def test_a_length_below_the_header_leaves_nothing_to_track() -> None:
    frame = craft.ipv4("10.0.0.1", "192.0.2.1", 17, bytes(8), length=12)
    (said,) = sides(rule(Ct())).send([Coming(craft.eth(frame), NEAR, 0)])
    assert (said.verdict, said.recorded and said.recorded[0], len(said.left[0].frame)) == ("accept", 0x18, 14 + 12)


@pytest.mark.parametrize(("checksum", "state"), [(True, 0x18), (False, 0x09)])
def test_an_ip_header_with_a_wrong_checksum_makes_that_of_the_transport_wrong(checksum: bool, state: int) -> None:
    """Linux sums both at once (nf_ip_checksum). What has no sum of its own is believed."""
    src, dst = "10.0.0.1", "192.0.2.1"
    summed = (craft.tcp(src, dst, 1, 2, "S", ip_checksum=1), craft.udp(src, dst, 1, 2, b"?", ip_checksum=1), craft.icmp(src, dst, 8, ip_checksum=1))
    net = sides(rule(Ct()), checksum=checksum)
    assert [said.recorded and said.recorded[0] for said in net.send([Coming(frame, NEAR, 0) for frame in summed])] == [state] * 3
    (said,) = net.send([Coming(craft.udp(src, dst, 1, 2, b"?", l4_checksum=0, ip_checksum=1), NEAR, 0)])
    assert said.recorded is not None and said.recorded[0] == 0x09


def test_what_is_never_committed_takes_no_place() -> None:
    """More packets than a tracker lets carry connections at a time, each over before the next one comes."""
    frames = [Coming(craft.udp("10.0.0.1", "192.0.2.1", port, 53, b"?"), NEAR, port) for port in range(1, 400)]
    net = sides(rule(Ct(), Mirred("redirect", "eth1")), rule(Ct(zone=1), hook=Hook("eth1", "egress")), max=4)
    assert {said.reason for said in net.send(frames)} == {"ok"}
    net.check()
    assert net.twins is not None and net.twins.engine.count == 0


def test_pieces_are_dropped_one_by_one() -> None:
    """The second one of two is what a redirected datagram ends as; the first one is lost on the way."""
    net = sides(rule(Ct(), Mirred("redirect", "eth1")), rule(Gact(DROP), hook=Hook("eth1", "egress"), matches=(Match("ip_flags", 3, 3),)))
    one, two = datagram(1)
    assert net.send([Coming(one, NEAR, 0)])[0].verdict == "held"
    (said,) = net.send([Coming(two, NEAR, 0)])
    assert (said.verdict, [left.frame for left in said.left]) == ("accept", [two])
    assert net.walker.lost()[Reason.R_RULE_DROP] == 1
    net.check()


def test_a_datagram_that_cannot_be_cut_up_again_is_dropped() -> None:
    """A rule has made its header longer than there is room for in any fragment."""
    longer = Pedit((Munge("ip", "ihl", "set", 15, 15),))
    data = craft.udp_segment("10.0.0.1", "192.0.2.1", 1024, 53, bytes(8))
    pieces = [craft.frame("10.0.0.1", "192.0.2.1", craft.UDP, data[at : at + 8], frag=at // 8 | (at == 0) << 13) for at in (0, 8)]
    for last in ((), (Mirred("redirect", "eth1"),)):
        net = sides(rule(Ct(), longer, *last))
        net.send([Coming(pieces[0], NEAR, 0)])
        assert net.send([Coming(pieces[1], NEAR, 0)])[0].reason == "rule_cut"
    net = sides(rule(Ct(), longer, Mirred("mirror", "eth1"), Gact(PASS)))
    net.send([Coming(pieces[0], NEAR, 0)])
    assert net.send([Coming(pieces[1], NEAR, 0)])[0].reason == "rule_cut"
    assert net.walker.lost()[Reason.R_RULE_CUT] == 1


def test_the_result_has_the_last_decision() -> None:
    frame = craft.udp("10.0.0.1", "192.0.2.1", 1024, 53, b"?")
    program = Program(Ruleset(rules=(rule(Ct(commit=True, mark=(5, 0xFF)), Ct(zone=7)), rule(hook=FAR))))
    walker = Walker(program, Tracker(program.config))
    (result,) = walker.run(*frames_of([frame]), NEAR)
    assert (result["tracked"], result["decision"]["state"], result["decision"]["zone"]) == (1, State.NEW, 7)
    (result,) = walker.run(*frames_of([frame]), FAR)
    assert (result["tracked"], result["decision"]["state"]) == (0, 0)


def test_a_clear_hides_from_rules_what_was_said_and_not_from_the_record() -> None:
    """A second rule sees no state, as in Linux; the result tells of the action before. Where nothing has tracked, a clear has nothing to tell."""
    seen = rule(Gact(DROP), matches=(Match("ct_state", 0, CT_STATES["trk"]),), prio=2)
    net = sides(rule(Ct(zone=7, commit=True, mark=(5, 0xFF)), Ct(clear=True, control=CONTINUE)), seen, rule(Ct(clear=True), hook=FAR))
    frame = craft.udp("10.0.0.1", "192.0.2.1", 1024, 53, b"?")
    said = net.send([Coming(frame, NEAR, 0), Coming(frame, FAR, 0)])
    assert [each.verdict for each in said] == ["drop", "accept"]
    assert [each.recorded for each in said] == [(CT_STATES["trk"] | CT_STATES["new"], 7, 5), None]
    net.check()


def test_a_tracker_that_cannot_do_what_rules_ask_is_refused() -> None:
    program = Program(Ruleset(rules=(rule(Ct(commit=True, nat=CtNat("src", ip_address("192.0.2.1"), ip_address("192.0.2.1")))),)))
    with pytest.raises(ValueError, match="expected a tracker"):
        Walker(program)
    with pytest.raises(ConfigError, match="settings of the program"):
        Walker(program, Tracker())
    assert Walker(program, Tracker(program.config)).reassembler is not None
    with pytest.raises(ConfigError, match="ct: zone"):
        Program(Ruleset(rules=(rule(Ct(zone=65536)),)))
