"""Which of the rules that hypothesis draws a message to the kernel can say: all but bursts of more than 274 seconds."""

from __future__ import annotations

from datapath.pipeline.rules import Police, Rule
from offload.netlink.actions import U32_MAX, ticks


def sayable(rule: Rule) -> bool:
    return not any(isinstance(each, Police) and each.rate and ticks(each.burst or 0, each.rate // 8) > U32_MAX for each in rule.actions)
