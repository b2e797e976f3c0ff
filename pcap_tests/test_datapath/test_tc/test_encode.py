"""What is sent to the kernel for a rule is what tc itself sends for it: the same attributes with the same bytes.

Needs root, tc and a compiler (pcap_tests/tc_itself.py); no classifier in the kernel, since tc sends its request before it hears that there is none.
"""

from __future__ import annotations

import socket
import time
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings

from datapath.commands.tc.encode import Encoder
from datapath.pipeline import tc_print, tc_text
from datapath.pipeline.findings import Findings
from datapath.pipeline.rules import CONTROLS, FIELDS, Action, Ct, Police, Qdisc, Rule, Ruleset, Template, controls_of
from offload.netlink.actions import U32_MAX, ticks
from offload.netlink.filters import MESSAGE
from pcap_tests.conftest import examples
from pcap_tests.tc_itself import PAIRS, Refused, attributes
from pcap_tests.test_datapath.test_pipeline.rulesets import rulesets
from pcap_tests.test_datapath.test_tc.sayable import sayable
from pcap_tests.written_rules import FILTER, FURTHER, WRITTEN, with_chain

LABELS_OF_FLOWER, LABELS_OF_CT = (97, 98), (7, 8)
LEAST_RATE = 10_000  # rules a second
OPTIONS, ACT, KIND, ACT_OPTIONS, KEYS_EX = 2, 3, 1, 2, 5


@pytest.fixture(scope="module")
def encoder(tc) -> Encoder:
    with tc.namespace.entered():
        numbers = {name: socket.if_nametoindex(name) for name in ("lo", *(name for pair in PAIRS for name in pair))}
    return Encoder(numbers.__getitem__)


def tree(message: bytes) -> dict[object, object]:
    """A request as its attributes, of which the order does not count. tc writes as many bytes of a label as it was given."""
    found: dict[object, object] = dict(attributes(message[20:]))
    options: dict[object, object] = dict(attributes(found.pop(OPTIONS, b"")))
    acts = attributes(options.pop(ACT, b""))
    wide(options, LABELS_OF_FLOWER)
    return {"tcmsg": message[:20], "options": options, "actions": [action(each) for _, each in sorted(acts.items())], **found}


def action(data: bytes) -> tuple[bytes, dict[object, object]]:
    found = attributes(data)
    options: dict[object, object] = dict(attributes(found[ACT_OPTIONS]))
    if found[KIND] == b"ct\0":
        wide(options, LABELS_OF_CT)
        if options.get(4) == b"\0\0":
            del options[4]  # zone 0, which is what no zone is
    return found[KIND], options


def wide(options: dict[object, object], labels: tuple[int, int]) -> None:
    for label in labels:
        if label in options:
            options[label] = options[label].ljust(16, b"\0")


def parsed(line: str) -> Ruleset:
    found = Findings()
    ruleset = tc_text.parse(line, "line", found)
    assert not found.errors, found.errors
    return ruleset


@pytest.mark.parametrize("written", [*WRITTEN, *FURTHER])
def test_a_written_rule_is_the_message_that_tc_sends(tc, encoder, written):
    line = with_chain(f"{FILTER} {written}")
    (rule,) = parsed(line).rules
    try:
        sent = tc.request(tc_print.rule_line(rule))
    except Refused:
        assert "nat" in line  # tc 6.1 wants a library for addresses in `nat` that not every build of it has
        return
    assert tree(encoder.rule(rule)[MESSAGE.size :]) == tree(sent)


@settings(max_examples=examples(60), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ruleset=rulesets())
def test_any_ruleset_is_the_messages_that_tc_sends(tc, encoder, knows_helpers, ruleset):
    for part, message in encoder.ruleset(replace(ruleset, rules=tuple(filter(sayable, ruleset.rules)))):
        if isinstance(part, Rule) and any(_beyond_tc(each, knows_helpers) for each in part.actions):
            continue
        assert tree(message[MESSAGE.size :]) == tree(tc.request(line_of(part)))


def _beyond_tc(action: Action, knows_helpers: bool) -> bool:
    """Whether this tc does not say the same: no helper; a burst of packets cut down to 32 bits of ticks, though the kernel has 64; a table of times
    for short packets that no kernel takes."""
    if isinstance(action, Police) and action.packet_rate:
        return ticks(action.packet_burst, action.packet_rate) > U32_MAX
    if isinstance(action, Police) and action.rate:
        return action.mtu is not None and action.mtu < 256
    return isinstance(action, Ct) and action.helper is not None and not knows_helpers


@pytest.mark.parametrize("rate", [1, 2, 3, 5, 7, 100, 999, 12345, 10**6 + 1, 1 << 32, 10**11])
def test_times_of_a_policer_are_rounded_as_tc_rounds_them(tc, encoder, rate):
    for burst in (1, 64, 250, 10**6 + 7):
        line = f"{FILTER} protocol ip prio 1 chain 0 handle 0x1 flower action police rate {rate * 8}bit burst {burst}b conform-exceed drop/pipe"
        (rule,) = parsed(line).rules
        if sayable(rule):
            assert tree(encoder.rule(rule)[MESSAGE.size :]) == tree(tc.request(line))


def line_of(part: Qdisc | Template | Rule) -> str:
    if isinstance(part, Qdisc):
        return tc_print.qdisc_line(part)
    return tc_print.template_line(part) if isinstance(part, Template) else tc_print.rule_line(part)


def test_a_cookie_and_how_to_count_are_on_each_action(encoder):
    (rule,) = parsed(f"{FILTER} protocol ip flower action csum ip pipe action drop").rules
    marked = Encoder(encoder.number, b"ours", 2).rule(rule)[MESSAGE.size :]
    acts = attributes(attributes(attributes(marked[20:])[OPTIONS])[ACT])
    assert [(attributes(each)[6], attributes(each)[8]) for each in acts.values()] == [(b"ours", b"\x02\0\0\0\x02\0\0\0")] * 2


def test_the_written_rules_have_every_key_and_every_action():
    """Or those tests would leave something out."""
    rules = [rule for written in (*WRITTEN, *FURTHER) for rule in parsed(f"{FILTER} {written}").rules]
    actions = [action for rule in rules for action in rule.actions]
    assert {match.name for rule in rules for match in rule.matches} == {field.name for field in FIELDS}
    assert {type(action) for action in actions} == set(Action.__args__)
    assert {control.kind for rule in rules for _, control in controls_of(rule.actions)} == set(CONTROLS)


def test_many_rules_are_encoded_fast():
    """What a NIC without connections of its own gets for each direction of a flow. The best of three, for others use the machine, too."""
    text = (
        "protocol ip prio 5 flower ip_proto tcp src_ip 10.0.0.{} dst_ip 10.1.0.1 src_port {} dst_port 80 tcp_flags 0/5 action pedit ex "
        "munge ip src set 192.0.2.1 munge tcp sport set {} pipe action csum ip and tcp pipe action ct zone 5 nat pipe "
        "action mirred egress redirect dev eth1"
    )
    rules = [parsed(f"{FILTER} {text.format(number % 250, number + 1, number + 1)}").rules[0] for number in range(1000)]
    one = Encoder({"eth0": 1, "eth1": 2}.__getitem__)
    rates = []
    for _ in range(3):
        begun = time.perf_counter()
        for rule in rules:
            one.rule(rule)
        rates.append(len(rules) / (time.perf_counter() - begun))
    assert max(rates) > LEAST_RATE, rates
