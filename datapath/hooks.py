"""At which hooks a capture's packets arrive: at the ingress of the devices that its interfaces are named after, or all at one device.

Not here: what happens there (pipeline), names in capture files (capture).
"""

from __future__ import annotations

from collections.abc import Sequence

from ctcore.errors import ConfigError
from datapath.pipeline.rules import Hook, Ruleset

DIRECTIONS = ("ingress", "egress")


def read_hook(text: str) -> Hook:
    """DEVICE or DEVICE:egress. Raises ConfigError."""
    device, colon, direction = text.rpartition(":")
    if not colon or direction not in DIRECTIONS:
        device, direction = text, DIRECTIONS[0]
    if not device:
        raise ConfigError(f"--device '{text}': expected DEVICE, or DEVICE:egress")
    return Hook(device, direction)


def arrivals(ruleset: Ruleset) -> list[str]:
    """The devices at whose ingress there are rules, in the order in which they are named; bound to a shared block or not."""
    blocks = {rule.hook.block for rule in ruleset.rules if rule.hook.block is not None}
    bound = [qdisc.device for qdisc in ruleset.qdiscs if qdisc.ingress_block in blocks]
    own = [rule.hook.device for rule in ruleset.rules if rule.hook.block is None and rule.hook.direction == "ingress"]
    return list(dict.fromkeys(own + bound))


def check_device(ruleset: Ruleset, device: Hook) -> None:
    """Raise ConfigError for a device where no rule is: whatever arrived there would pass, and nobody would have meant that."""
    ingress = arrivals(ruleset)
    egress = list(dict.fromkeys(rule.hook.device for rule in ruleset.rules if rule.hook.block is None and rule.hook.direction == "egress"))
    blocks = {rule.hook.block for rule in ruleset.rules if rule.hook.block is not None}
    egress += [qdisc.device for qdisc in ruleset.qdiscs if qdisc.egress_block in blocks]
    known = ingress if device.direction == "ingress" else egress
    if ruleset.rules and device.device not in known:
        there = ", ".join([*ingress, *(f"{name}:egress" for name in egress)])
        raise ConfigError(f"--device {device.device}{'' if device.direction == 'ingress' else ':egress'}: no rule is there: expected one of {there}")


def hook_of(ruleset: Ruleset, name: str, where: str, device: Hook | None) -> Hook:
    """The hook of an interface's packets. name: its own, "" if the capture does not say; where: the capture; device: for who has no hook.

    Raises ConfigError if nobody says where they arrive.
    """
    known = arrivals(ruleset)
    if name in known:
        return Hook(name, "ingress")
    if device is not None:
        return device
    if len(known) == 1:
        return Hook(known[0], "ingress")
    called = f"interface '{name}' is no device of the rules" if name else "it does not say at which device its packets arrived"
    raise ConfigError(f"{where}: {called}: expected --device {' or '.join(known) or 'DEVICE'}")


def hooks_of(ruleset: Ruleset, names: Sequence[str], where: str, device: Hook | None) -> list[Hook]:
    """The same of all interfaces of a capture, by their number."""
    return [hook_of(ruleset, name, where, device) for name in names]
