"""Rules made into messages and read again are the same rules, but for what the kernel forgets; and bytes of any kind are a rule or an error."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctcore.errors import CtmirrorError
from datapath.commands.tc.decode import Decoder, Foreign, amount, kept
from datapath.commands.tc.encode import Encoder
from datapath.pipeline import tc_text
from datapath.pipeline.findings import Findings
from datapath.pipeline.header_fields import HEADER_FIELDS
from datapath.pipeline.munge import munged
from datapath.pipeline.rules import ETH_VLAN, GONE, Ct, Mirred, Munge, Pedit, Police, Qdisc, Rule, Skbedit, Vlan
from datapath.pipeline.tc_print import rule_line
from offload.netlink import actions
from offload.netlink.filters import MESSAGE, new_qdisc
from offload.netlink.pack import attribute, u8, u32
from offload.netlink.read import Malformed
from pcap_tests.test_datapath.test_pipeline.rulesets import DEVICES, rulesets
from pcap_tests.test_datapath.test_tc.sayable import sayable
from pcap_tests.written_rules import FILTER, FURTHER, WRITTEN

NUMBERS = {name: number for number, name in enumerate(("lo", *DEVICES), 1)}
NAMES = {number: name for name, number in NUMBERS.items()}
ENCODER, DECODER = Encoder((NUMBERS | {GONE: 0}).__getitem__), Decoder(NAMES.__getitem__)  # what the kernel lists of GONE, and takes from nobody


def rule(written: str) -> Rule:
    found = Findings()
    (one,) = tc_text.parse(f"{FILTER} {written}", "line", found).rules
    return one


def back(one: Rule) -> Rule:
    found = DECODER.rule(ENCODER.rule(one)[MESSAGE.size :])
    assert found is not None
    return found.rule


# --- there and back -----------------------------------------------------------------------------------------------------------------------


@given(rulesets())
def test_whatever_a_rule_says_comes_back(ruleset):
    """All but what is written down here as forgotten."""
    for one in filter(sayable, ruleset.rules):
        told = back(one)
        assert (told.hook, told.protocol, told.prio, told.chain, told.handle) == (one.hook, one.protocol, one.prio, one.chain, one.handle)
        assert (told.matches, told.skip_sw, told.skip_hw) == (one.matches, one.skip_sw, one.skip_hw)
        assert [remembered(action) for action in told.actions] == [remembered(action) for action in one.actions]


def remembered(action):
    """An action in a form that has only what the kernel remembers of it."""
    if isinstance(action, Pedit):
        return action.control, [changed(munge) for munge in action.munges]
    if isinstance(action, Police):
        pairs = ((action.rate and action.rate // 8, action.burst), (action.packet_rate, action.packet_burst))
        mtu = action.mtu if action.rate or action.mtu != 0xFFFFFFFF else None
        return action.control, action.exceed, [rate and (rate, actions.ticks(burst, rate)) for rate, burst in pairs], None if mtu == 2040 else mtu
    if isinstance(action, Vlan) and action.kind != "pop":
        priority = action.priority or 0 if action.kind == "push" else action.priority
        return action.control, action.kind, action.id, action.protocol or ETH_VLAN, priority
    if isinstance(action, Ct):
        pairs = [None if pair is not None and not pair[1] else pair for pair in (action.mark, action.label)]
        return action.zone, *pairs, action.commit, action.force, action.clear, action.nat, action.helper, action.control
    return action


SAMPLES = (bytes(16), b"\xff" * 16, bytes(range(0x40, 0x50)))


def changed(munge: Munge) -> object:
    """What a munge makes of three headers: two that make the same are one and the same change."""
    field = HEADER_FIELDS[munge.header, munge.field]
    made = []
    for sample in SAMPLES:
        header = (sample * 4)[:64]
        new = munged(header[field.offset : field.offset + field.size], field, munge)
        made.append(header[: field.offset] + new + header[field.offset + field.size :])
    return munge.header, munge.op, made


@given(rulesets())
def test_what_is_kept_of_a_rule_is_the_same_message(ruleset):
    """So what the kernel lists can be compared with `kept` of what was meant, and a second time nothing is forgotten."""
    for one in filter(sayable, ruleset.rules):
        first = kept(one)
        assert kept(first) == first
        full = [match for match in one.matches if match.mask or match.name == "indev"]
        assert list(first.matches) == full
        assert ENCODER.rule(first) == ENCODER.rule(kept(first))


@given(rulesets())
def test_templates_and_qdiscs_come_back(ruleset):
    for template in ruleset.templates:
        told = DECODER.template(ENCODER.template(template)[MESSAGE.size :])
        assert (told.hook, told.protocol, told.chain, told.matches) == (template.hook, template.protocol, template.chain, template.matches)
    for qdisc in ruleset.qdiscs:
        assert DECODER.qdisc(ENCODER.qdisc(qdisc)[MESSAGE.size :]) == qdisc


@given(st.integers(1, 10**11), st.integers(1, 1 << 32))
def test_a_burst_comes_back_as_one_of_as_many_ticks(rate, burst):
    ticks = actions.ticks(burst, rate)
    assert actions.ticks(amount(ticks, rate), rate) == ticks
    assert amount(ticks, rate) <= burst


def test_a_burst_that_takes_too_long_is_refused():
    with pytest.raises(ValueError, match="a burst of 275 bytes takes 275 s at 1 bytes a second: expected at most 274"):
        ENCODER.rule(rule("protocol ip flower action police rate 8 burst 275"))


def test_an_action_that_sent_packets_to_a_device_which_has_gone_goes_nowhere():
    """The kernel keeps the filter, and lists the action with number 0, also when there is another device of that name."""
    one = rule("protocol ip prio 1 handle 1 flower action mirred egress redirect dev eth0")
    message = bytearray(ENCODER.rule(one)[MESSAGE.size :])
    number = message.rindex(NUMBERS["eth0"].to_bytes(4, "little"))
    message[number : number + 4] = bytes(4)
    told = DECODER.rule(bytes(message))
    assert told is not None and told.rule == replace(one, actions=(Mirred("redirect", GONE),))
    assert rule_line(told.rule).endswith("flower action mirred egress redirect dev *")


# --- what is not ours ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (u32(70, 5), "key TCA_FLOWER_KEY_MPLS_LABEL"),
        (u32(105, 5), "key TCA_FLOWER_KEY_L2TPV3_SID"),
        (u32(300, 5), "key TCA_FLOWER_#300"),
        (u32(1, 5), "a class"),
        (attribute(10, bytes([10, 0, 0, 1])) + attribute(11, bytes([255, 0, 255, 0])), "src_ip with mask 0xff00ff00, which is no prefix"),
        (attribute(71, b"\xff\xff") + attribute(72, b"\xff\xff"), "tcp_flags 0xffff/0xffff, of which 0xfff can be matched"),
        (attribute(18, b"\0\x50") + attribute(20, b"\0\x50"), "two keys of one name: src_port"),
        (attribute(21, b"\0\x50"), "dst_port of another protocol than its rule"),
        (u8(9, 6) + attribute(21, b"\0\x50"), "dst_port of another protocol than its rule"),
        (attribute(14, bytes(16)), "src_ip of another protocol than its rule"),
    ],
)
def test_a_key_without_words_is_foreign(extra, said):
    message = ENCODER.rule(rule("protocol ip prio 1 handle 1 flower ct_state +trk"))[MESSAGE.size :]
    head, options = message[: -len_of_options(message)], message[len(message) - len_of_options(message) + 4 :]
    with pytest.raises(Foreign) as error:
        DECODER.rule(head + attribute(2, options + extra))
    assert str(error.value) == said


def len_of_options(message: bytes) -> int:
    """Of TCA_OPTIONS, which comes last."""
    at = 20
    while at < len(message):
        length, number = int.from_bytes(message[at : at + 2], "little"), int.from_bytes(message[at + 2 : at + 4], "little")
        if number == 2:
            return length
        at += length + 3 & ~3
    raise AssertionError


@pytest.mark.parametrize(
    ("packed", "said"),
    [
        (actions.Packed("sample", b""), "action sample"),
        (actions.gact(8), "an action that is followed by 0x8"),
        (actions.gact(0x10000001), "an action that is followed by 0x10000001"),
        (actions.Packed("gact", actions.gact(0).options + attribute(3, bytes(8))), "an action by chance"),
        (actions.Packed("gact", actions.gact(0).options + u32(77, 1)), "action gact with attribute 77"),
        (actions.mirred(4, 9, 1), "mirred of kind 9"),
        (actions.mirred(4, 1, 77), "interface 77, which is not there"),
        (actions.ct(3, 64), "ct with flags 0x40"),
        (
            actions.pedit(3, [actions.Word(1, 12, 1 << 16, 0xFFFF0000), actions.Word(4, 4, 1, 0xFFFFFFFF)]),
            "pedit of bits 0xffffffff at byte 4 of header 4",
        ),
        (actions.pedit(3, [actions.Word(0, 0, 1, 0xFF)]), "pedit of bits 0x000000ff at byte 0 of header 0"),
        (actions.vlan(3, 4), "vlan of kind 4"),
    ],
)
def test_an_action_without_words_is_foreign(packed, said):
    from offload.netlink.filters import Name, Where, filter_options, new_filter

    message = new_filter(Where(2), Name(0, 1, 0x0800, 1), filter_options(b"", actions.listed([packed]), 0))
    with pytest.raises(Foreign) as error:
        DECODER.rule(message[MESSAGE.size :])
    assert str(error.value) == said


def test_a_qdisc_of_an_interface_that_nobody_has_heard_of_is_none_of_ours():
    """The kernel lists those of all interfaces, and one may have come meanwhile."""
    assert DECODER.qdisc(new_qdisc(57)[MESSAGE.size :]) is None
    assert DECODER.qdisc(new_qdisc(NUMBERS["eth0"])[MESSAGE.size :]) == Qdisc("eth0")


# --- hostile bytes ------------------------------------------------------------------------------------------------------------------------

SEEDS = [ENCODER.rule(rule(written))[MESSAGE.size :] for written in (*WRITTEN, *FURTHER) if "police rate" not in written]


def sound(data: bytes) -> None:
    """Rule, nothing, or one line of error; a rule that is read can be told again."""
    for read in (DECODER.rule, DECODER.template, DECODER.qdisc, DECODER.tallied):
        try:
            found = read(data)
        except CtmirrorError as error:
            assert isinstance(error, Malformed | Foreign) and str(error) and "\n" not in str(error)
            continue
        if read == DECODER.rule and found is not None:
            kept_once = back(found.rule)
            assert back(kept_once) == kept_once


@given(st.sampled_from(SEEDS), st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=8), st.integers(0, 400))
def test_damaged_messages_are_told_apart(seed, damage, cut):
    data = bytearray(seed)
    for at, value in damage:
        data[at % len(data)] = value
    sound(bytes(data))
    sound(bytes(data)[: max(0, len(data) - cut)])


@given(st.binary(max_size=300))
def test_random_bytes_are_told_apart(data):
    sound(data)


def test_reading_takes_time_in_proportion_to_the_bytes():
    """Ten times the bytes, at most some thirty times the time: nothing in a message makes the reader go back and forth."""

    def seconds(count: int) -> float:
        message = ENCODER.rule(rule("protocol ip prio 1 handle 1 flower"))[MESSAGE.size :] + attribute(2, b"".join(u32(7, 7) for _ in range(count)))
        begun = time.perf_counter()
        for _ in range(5):
            with pytest.raises(Malformed):
                DECODER.rule(message)
        return time.perf_counter() - begun

    few, many = min(seconds(800) for _ in range(5)), min(seconds(8000) for _ in range(5))
    assert many < 30 * few


def test_skbedit_of_nothing_comes_back():
    one = Skbedit(mark=(0, 0))
    (told,) = back(Rule(rule("protocol ip flower").hook, 0x0800, actions=(one,), prio=1, handle=1)).actions
    assert told == one


def test_counters_are_read_without_the_rule():
    told = DECODER.tallied(
        ENCODER.rule(rule("protocol ip prio 3 chain 4 handle 9 flower ct_state +trk action ct zone 5 pipe action drop"))[MESSAGE.size :]
    )
    assert told is not None
    assert (told.chain, told.prio, told.handle, told.in_hw, [each.packets for each in told.counted]) == (4, 3, 9, False, [0, 0])
