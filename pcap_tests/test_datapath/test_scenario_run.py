"""Scenarios before judges: what is compared and what is not, what judges tell, and expectations made of what came."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given

from ctcore.config import Config
from ctcore.errors import ConfigError
from datapath.scenario import run
from datapath.scenario.judge import Seen, open_judge
from datapath.scenario.run import disagreements, expectation_of, judged, misses, renewed
from datapath.scenario.steps import Expect, ScenarioError
from datapath.scenario.text import parse
from pcap_tests.test_datapath.made_scenarios import scenarios

HANDSHAKE = """\
+0     A:40000 > B:80 S seq 100
+0.010 B:80 > A:40000 SA seq 500 ack 101
+0.010 A:40000 > B:80 A seq 101 ack 501
"""


def seen(text: str, judge: str = "engine", **settings) -> list[Seen]:
    return judged(parse(text), judge, Config(**settings))[0]


def missed(words: str, text: str = HANDSHAKE) -> list[str]:
    """Which fields of the last packet differ from these words."""
    scenario = parse(f"{text.rstrip()} => {words}")
    return [found.field for item in judged(scenario, "engine", Config())[1] for found in item.fields]


@pytest.mark.parametrize("judge", ["engine", "model"])
def test_a_judge_tells_the_packet_and_its_connection(judge):
    syn, _, ack = seen(HANDSHAKE, judge)
    assert (syn.record["state"], syn.record["i"], ack.record["i"], ack.record["ts"] - syn.record["ts"]) == ("new", 0, 2, 20_000_000)
    assert (ack.conn["conn"], ack.conn["tcp"]["original"]["end"], ack.conn["reply"]["packets"]) == (0, 101, 1)


@pytest.mark.parametrize("judge", ["engine", "model"])
def test_of_an_invalid_packet_the_connection_of_its_tuple_is_told(judge):
    *_, stray = seen(HANDSHAKE + "+0 B:80 > A:40000 A seq 900000000 ack 101\n", judge)
    assert (stray.record["state"], stray.record["conn"], stray.conn["conn"]) == ("invalid", None, 0)


@pytest.mark.parametrize("judge", ["engine", "model"])
def test_a_connection_that_is_no_more_is_not_told(judge):
    _, rst = seen("+0 A:1 > B:2 S\n+0 B:2 > A:1 RA ack 1\n", judge)
    assert (rst.record["conn"], rst.conn) == (0, None)


@given(scenarios())
def test_engine_and_model_tell_the_same(scenario):
    try:
        ours, theirs = (judged(scenario, judge, Config())[0] for judge in ("engine", "model"))
    except (ScenarioError, ConfigError) as error:
        assert str(error).startswith("made")
    else:
        assert ours == theirs


@given(scenarios())
def test_what_came_is_an_expectation_that_is_met(scenario):
    """Everything as it came, what a person would write of it, and any expectation renewed by it."""
    try:
        came = judged(scenario, "engine", Config())[0]
    except ScenarioError:
        return
    for step, one in zip(scenario.steps, came, strict=True):
        assert not misses(expectation_of(one), one)
        assert not misses(expectation_of(one, everything=True), one)
        if step.expect:
            assert not misses(renewed(step.expect, one), one)


@pytest.mark.parametrize(
    "words, fields",
    [
        ("established ESTABLISHED 432000 original assured seen-reply !dying conn 0 reason ok zone 0 mark 0 accept", []),
        ("status[seen-reply assured confirmed] tcp.original.end=101 tcp.reply.flags=maxack-set tcp.last_index=ack tcp.last_dir=original", []),
        ("new", ["state"]),
        ("SYN_RECV", ["l4state"]),
        ("431999.996", ["timeout"]),
        ("reply", ["dir"]),
        ("dying", ["status"]),
        ("!assured", ["status"]),
        ("status[assured]", ["status"]),
        ("conn 1", ["conn"]),
        ("conn none", ["conn"]),
        ("reason tcp_state", ["reason"]),
        ("zone 1 mark 7 drop", ["zone", "mark", "verdict"]),
        ("tcp.original.end=102", ["tcp.original.end"]),
        ("new reply tcp.retrans=9", ["state", "dir", "tcp.retrans"]),
    ],
)
def test_what_is_named_is_compared_and_nothing_else(words, fields):
    assert sorted(missed(words)) == sorted(fields)


def test_what_a_judge_cannot_know_is_not_compared():
    expect = Expect("established", reason="tcp_state")
    one = seen(HANDSHAKE)[2]
    assert misses(expect, one)
    assert not misses(expect, one, unknown=frozenset({"reason"}))


def test_timeouts_have_the_judges_tolerance():
    one = seen(HANDSHAKE)[0]
    assert misses(Expect(timeout=119.99), one, tolerance=0.004)
    assert not misses(Expect(timeout=119.996), one, tolerance=0.004)


class Late:
    """A judge whose packets come half a second later than asked for."""

    name, tolerance = "late", 0.004
    unknown: frozenset[str] = frozenset()

    def packet(self, frame: bytes, wait: float) -> Seen:
        raise AssertionError("what it saw is made beforehand")


def test_a_late_judge_is_forgiven_what_it_was_late():
    text = "+0 A:1 > B:2 S => 120\n+1 A:1 > B:2 S => 119\n"
    scenario, came = parse(text), seen(text.replace("+1 ", "+1.5 "))
    assert not list(disagreements(scenario, came, Late()))
    exact = type("Exact", (Late,), {"tolerance": 0.0})
    assert [item.number for item in disagreements(scenario, came, exact())] == [1]
    much = parse(text.replace("=> 119", "=> 117"))
    assert list(disagreements(much, came, Late()))


def late(text: str, actual: str) -> list[int]:
    """The steps that differ before a late judge, which lets other times pass than the scenario says."""
    return [item.number for item in disagreements(parse(text), seen(actual), Late())]


def test_a_late_judge_may_have_less_left_and_never_more():
    text = "+0 A:1 > B:2 S => 120\n+1 A:1 > B:2 S => 119\n"
    came = seen(text.replace("+1 ", "+1.5 "))
    for expected, found in (("118.496", []), ("118.5", []), ("119.004", []), ("119.005", [1]), ("118.495", [1]), ("118", [1])):
        assert [item.number for item in disagreements(parse(text.replace("=> 119", f"=> {expected}")), came, Late())] == found, expected


def test_what_was_late_before_a_timeout_was_set_is_not_forgiven():
    """The SYN is repeated half a second late; the reply that sets 60 s, and the repeated SYN that finds 59 s left of them, are on time."""
    text = "+0 A:1 > B:2 S => 120\n+1 A:1 > B:2 S => 119\n+1 B:2 > A:1 SA ack 1 => 60\n+1 A:1 > B:2 S => 59\n"
    actual = text.replace("+1 ", "+1.5 ", 1)
    assert late(text, actual) == []
    assert late(text.replace("=> 60", "=> 60.3"), actual) == [2]
    assert late(text.replace("=> 59", "=> 59.3"), actual) == [3]


def test_a_step_that_sets_a_timeout_is_forgiven_its_own_lateness():
    """When within the step the timeout was set is not known."""
    text = "+0 A:1 > B:2 S => 120\n+1 B:2 > A:1 SA ack 1 => 60.5\n"
    assert late(text, text.replace("+1 ", "+1.5 ")) == []
    assert late(text.replace("60.5", "60.6"), text.replace("+1 ", "+1.5 ")) == [1]


def test_each_connection_is_late_for_itself():
    """Another connection begins after the judge was late; what is left of the first one's timeout is less, of the second's not."""
    text = "+0 A:1 > B:2 S => 120\n+1 A:1 > B:2 S => 119\n+0 A:3 > B:4 S => 120\n+0 A:1 > B:2 S => 119\n+0 A:3 > B:4 S => 120\n"
    actual = text.replace("+1 ", "+1.5 ")
    assert late(text, actual) == []
    assert late(text.replace("A:3 > B:4 S => 120", "A:3 > B:4 S => 120.3"), actual) == [2, 4]


def test_the_scenarios_settings_win():
    text = "set tcp_loose 1\nset zone 7\nset timeout tcp_timeout_unacknowledged 9\n+0 A:1 > B:2 A"
    came = judged(parse(text), "engine", Config(tcp_loose=False, timeouts={"tcp_timeout_close": 3}), zone=5)[0][0]
    assert (came.record["state"], came.record["zone"], came.record["timeout"]) == ("new", 7, 9.0)
    config, zone = run.settings_of(parse("+0 raw 45"), Config(timeouts={"tcp_timeout_close": 3}), 5)
    assert (config.timeouts, zone) == ({"tcp_timeout_close": 3}, 5)
    base = Config(zone_dir="reply", zone_limit=9, zone_limits={1: 4, 2: 5}, zone_reserves={1: 1})
    config, zone = run.settings_of(parse("set zone 6\nset zone-limit 2=7\nset zone-reserve 2=3\n"), base, 5)
    assert (zone, config.zone_dir, config.zone_limit) == (6, "both", 9)
    assert (config.zone_limits, config.zone_reserves) == ({1: 4, 2: 7}, {1: 1, 2: 3})


@pytest.mark.parametrize("judge", ["engine", "model"])
def test_a_packets_own_zone(judge):
    """Its fragments are those of its zone as well, and the next packet is in the scenario's again."""
    text = "set zone 7\n+0 A:1 > B:2 udp\n+0 A:1 > B:2 udp zone 8\n+0 A:1 > B:2 udp\n+0 A:1 > B:2 udp len 40 frag 0+24 zone 8\n"
    text += "+0 A:1 > B:2 udp len 40 frag 24+\n+0 A:1 > B:2 udp len 40 frag 24+ zone 8\n"
    seen = [(one.record["zone"], one.record["conn"]) for one in judged(parse(text), judge, Config())[0]]
    assert seen == [(7, 0), (8, 1), (7, 0), (8, None), (7, None), (8, 1)]


def test_a_judge_that_does_not_exist():
    with pytest.raises(ScenarioError, match="judge 'oracle': expected one of engine, model, kernel"):
        open_judge("oracle", Config())


def test_renewed_expectations_name_the_same_things():
    one = seen(HANDSHAKE)[2]
    old = Expect("new", timeout=1.0, has=frozenset({"dying"}), lacks=frozenset({"assured"}), conn=-1, variables=(("tcp.original.end", "1"),))
    assert renewed(old, one) == Expect(
        "established", timeout=432000.0, has=frozenset({"assured"}), lacks=frozenset({"dying"}), conn=0, variables=(("tcp.original.end", "101"),)
    )
    assert {field.name for field in dataclasses.fields(Expect)} >= set(run.PLAIN)
