"""What the kernel refuses is told with its own sentence, the attribute it points to, and the rule it is about."""

from __future__ import annotations

import errno

import pytest

from datapath.commands.tc.ask import KernelTc, Refusal
from datapath.pipeline import tc_text
from datapath.pipeline.findings import Findings
from datapath.pipeline.rules import Ruleset

HEAD = "tc filter add dev eth0 ingress protocol ip prio 1 chain 0 handle 1"


def parsed(text: str) -> Ruleset:
    """As it is written, sensible or not."""
    found = Findings()
    ruleset = tc_text.parse(text, "rules.tc", found)
    assert not found.errors
    return ruleset


def refused(*lines: str) -> list[Refusal]:
    with KernelTc() as kernel:
        return kernel.make(parsed("\n".join(lines)))


@pytest.mark.parametrize(
    ("lines", "number", "text", "attribute"),
    [
        (["tc qdisc add dev eth9 clsact"], errno.ENODEV, "no interface eth9", ""),
        ([f"{HEAD} flower action drop"], errno.EINVAL, "Parent Qdisc doesn't exists", ""),
        (["tc qdisc add dev lo clsact", f"{HEAD.replace('eth0', 'lo')} flower skip_sw action drop"], errno.EOPNOTSUPP, "", ""),
        (
            ["tc qdisc add dev eth0 clsact", f"{HEAD} flower ct_state +est action drop"],
            errno.EINVAL,
            "no trk, so no other flag can be set",
            "TCA_FLOWER_KEY_CT_STATE_MASK",
        ),
        (
            ["tc qdisc add dev eth0 clsact", f"{HEAD} flower ct_state +trk+new+est action drop"],
            errno.EINVAL,
            "new and est are mutually exclusive",
            "TCA_FLOWER_KEY_CT_STATE_MASK",
        ),
        (
            ["tc qdisc add dev eth0 clsact", f"{HEAD} flower action drop", f"{HEAD} flower ip_proto tcp action drop"],
            errno.EEXIST,
            "Filter already exists",
            "",
        ),
        (
            ["tc qdisc add dev eth0 clsact", f"{HEAD} flower action drop", f"{HEAD.replace('protocol ip', 'protocol ipv6')} flower action drop"],
            errno.EINVAL,
            "Filter with specified priority/protocol not found",
            "",
        ),
        (
            [
                "tc qdisc add dev eth0 clsact",
                "tc chain add dev eth0 ingress protocol ip chain 5 flower ip_proto tcp",
                f"{HEAD.replace('chain 0', 'chain 5')} flower src_ip 10.0.0.1 action drop",
            ],
            errno.EINVAL,
            "cls_flower: Mask does not fit the template",
            "",
        ),
    ],
)
def test_a_refusal_says_what_the_kernel_says(switch, lines, number, text, attribute):
    (refusal,) = refused(*lines)
    assert (refusal.answer.error, refusal.answer.text, refusal.answer.attribute) == (number, text, attribute)
    assert refusal.part.place.line == len(lines)


def test_a_refusal_in_one_line_names_the_rule(switch):
    (refusal,) = refused("tc qdisc add dev eth0 clsact", f"{HEAD} flower ct_state +est action drop")
    line = f"rules.tc:2:1: {HEAD.replace('handle 1', 'handle 0x1')} flower ct_state +est action drop"
    assert refusal.told() == f"{line}: Invalid argument: no trk, so no other flag can be set (TCA_FLOWER_KEY_CT_STATE_MASK)"


def test_what_is_refused_keeps_nothing_else_out(switch):
    lines = ["tc qdisc add dev eth0 clsact"]
    for number in range(1, 301):
        state = "+est" if number % 3 == 0 else "-trk"
        lines.append(f"{HEAD.replace('prio 1', f'prio {number}')} flower ct_state {state} action drop")
    with KernelTc() as kernel:
        ruleset = parsed("\n".join(lines))
        refusals = kernel.make(ruleset)
        assert [refusal.part for refusal in refusals] == [rule for rule in ruleset.rules if rule.prio % 3 == 0]
        listed = kernel.listed({rule.hook for rule in ruleset.rules})
        assert [each.rule.prio for each in listed.rules] == [number for number in range(1, 301) if number % 3]


def test_a_helper_is_refused_where_the_kernel_has_none(switch):
    """`ct helper` came with Linux 6.2."""
    import os

    refusals = refused("tc qdisc add dev eth0 clsact", f"{HEAD} flower ip_proto tcp action ct commit zone 1 helper ipv4-tcp-ftp pipe")
    if tuple(map(int, os.uname().release.split(".")[:2])) < (6, 2):
        (refusal,) = refusals
        assert refusal.answer.error == errno.EINVAL and refusal.answer.attribute
    else:
        assert refusals == []
