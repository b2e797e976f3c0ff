"""To which hooks a capture's packets come: those of the devices that its interfaces are named after, or of one device.

A packet comes to the ingress hook, but to the egress hook if the capture says that it went out at its interface.

Not here: what happens there (pipeline), names in capture files (capture).
"""

from __future__ import annotations

from collections.abc import Sequence

from ctcore.errors import ConfigError
from datapath.names import printable
from datapath.pipeline.policy.device_names import default_device
from datapath.pipeline.rules import Hook, Ruleset

DIRECTIONS = ("ingress", "egress")


def read_hook(text: str) -> Hook:
    """DEVICE, DEVICE:ingress or DEVICE:egress. Raises ConfigError."""
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


def departures(ruleset: Ruleset) -> list[str]:
    """The devices at whose egress there are rules, likewise."""
    blocks = {rule.hook.block for rule in ruleset.rules if rule.hook.block is not None}
    bound = [qdisc.device for qdisc in ruleset.qdiscs if qdisc.egress_block in blocks]
    own = [rule.hook.device for rule in ruleset.rules if rule.hook.block is None and rule.hook.direction == "egress"]
    return list(dict.fromkeys(own + bound))


def check_device(ruleset: Ruleset, device: Hook) -> None:
    """Raise ConfigError for a device where no rule is: whatever arrived there would pass, and nobody would have meant that."""
    ingress, egress = arrivals(ruleset), departures(ruleset)
    known = ingress if device.direction == "ingress" else egress
    if ruleset.rules and device.device not in known:
        there = ", ".join([*ingress, *(f"{name}:egress" for name in egress)])
        shown = f"{device.device}{'' if device.direction == 'ingress' else ':egress'}"
        why = _no_device(device.device, {*ingress, *egress})
        raise ConfigError(f"--device {shown}: {why or f'no rule is there: expected one of {there}'}")


def _no_device(name: str, known: set[str]) -> str:
    """What is to be said of a name that has something else than a direction behind its colon, or looks like a pod's; nothing of others."""
    device, colon, direction = name.rpartition(":")
    if colon and device in known:
        return f"'{direction}' is no direction: expected {device}, {device}:ingress or {device}:egress"
    if name.count("/") != 1:
        return ""
    device = default_device(name)
    if device in known:
        return f"a pod; its device in these rules is {device}: expected that"
    comment = "rules that `ctmirror policy compile` made say at their head whose device is which"
    return f"no device, but perhaps a pod: expected its device; {comment}, and --devices or --device-of name devices there"


class Arrivals:
    """Where packets of a capture come to. where: the capture; device: for interfaces that the rules do not know; fixed: whether its direction is
    that of all their packets."""

    def __init__(self, ruleset: Ruleset, where: str, device: Hook | None = None, *, fixed: bool = False) -> None:
        self.where, self.device = where, device
        self.fixed = device is not None and (fixed or device.direction == "egress")
        self.ingress, self.egress = arrivals(ruleset), departures(ruleset)

    def hook(self, name: str, names: Sequence[str] = (), *, out: bool = False) -> Hook:
        """The hook of an interface's packets. name: its own, "" if the capture does not say; names: of all of them; out: of packets that went out.

        Raises ConfigError if nobody says where they come to.
        """
        if name in self.ingress or (out and name in self.egress):
            return Hook(name, DIRECTIONS[out])
        if self.device is not None:
            return self.device if self.fixed else Hook(self.device.device, DIRECTIONS[out])
        # One device is meant whatever the capture calls it, but not where another of its interfaces is known to be that.
        if len(self.ingress) == 1 and not (name and self.ingress[0] in names):
            return Hook(self.ingress[0], DIRECTIONS[out])
        called = f"interface '{printable(name)}' is no device of the rules" if name else "it does not say at which device its packets arrived"
        known = [*self.ingress, *(f"{device}:egress" for device in self.egress)]
        raise ConfigError(f"{self.where}: {called}: expected --device {' or '.join(known) or 'DEVICE'}")
