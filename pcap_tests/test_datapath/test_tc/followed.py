"""A kernel that is none, with interfaces and a mind of its own, a monitor that hears what a test says, and rules followed there. Not here: tests."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

from datapath.commands.tc.ask import Refusal
from datapath.commands.tc.encode import PARENTS
from datapath.commands.tc.following import KernelRules
from datapath.pipeline.findings import Findings
from datapath.pipeline.rules import DROP, Control, Gact, Rule, Ruleset
from datapath.pipeline.rules_file import parse
from offload.netlink.channel import NetlinkError
from offload.netlink.extack import Answer
from offload.netlink.filters import INGRESS_PARENT, NEW_FILTER, Where
from offload.netlink.monitor import DELETE_LINK, Change
from pcap_tests.test_datapath.test_tc.test_install import Kernel, installed

HEAD = "tc qdisc add dev eth0 clsact\n"
LINE = "tc filter add dev eth0 ingress protocol ip prio {0} chain {1} handle {0} flower ip_proto {2} action {3}\n"
ONE = HEAD + LINE.format(1, 0, "tcp", "goto chain 1") + LINE.format(2, 1, "tcp", "pass")
OTHER = HEAD + LINE.format(1, 0, "udp", "goto chain 1") + LINE.format(3, 1, "udp", "drop")
THROUGH = HEAD + LINE.format(1, 0, "tcp", "mirred egress redirect dev vf0") + LINE.format(2, 0, "udp", "pass")
ETH0, VF0 = 7, 9


def rules(text: str) -> Ruleset:
    return parse(text, "rules.tc", Findings())


class Tc(Kernel):
    """With interfaces, and a mind of its own: refuses rules whose prio is in `refuses`, and fails as often as `fails` says."""

    def __init__(self, *foreign: Rule) -> None:
        super().__init__(*foreign)
        self.devices = {"eth0": ETH0}
        self.down: set[str] = set()
        self.encoder = SimpleNamespace(where=lambda hook: Where(self.numbers[hook.device], PARENTS[hook.direction]))
        self.numbers: dict[str, int] = {}
        self.refuses: set[int] = set()
        self.fails = 0
        self.looks = 0
        self.channel = SimpleNamespace(close=lambda: setattr(self, "closed", True))
        self.closed = False

    def look_again(self) -> None:
        self.numbers.clear()
        self.numbers |= self.devices

    def running(self) -> dict[str, bool]:
        return {device: device not in self.down for device in self.devices}

    def listed(self, hooks):
        self.looks += 1
        if self.fails:
            self.fails -= 1
            raise NetlinkError("netlink: no answer within 30 s")
        return super().listed(hooks)

    def each(self, parts, do="add") -> list[Refusal]:
        refused = []
        for part in parts:
            if do != "delete" and isinstance(part, Rule) and part.prio in self.refuses:
                refused.append(Refusal(part, Answer(errno.EOPNOTSUPP, "not today")))
            else:
                super().each([part], do)
        return refused

    def overwrite(self, prio: int, action: Control = DROP, cookie: bytes = b"") -> Change:
        """As `tc filter replace` of somebody; what the kernel tells of it."""
        key, old = next((key, each) for key, each in self.rules.items() if key[2] == prio)
        self.rules[key] = installed(replace(old.rule, actions=(Gact(action),)), cookie)
        return Change(NEW_FILTER, ETH0, INGRESS_PARENT, key[1], prio, key[4])

    def lose_device(self, device: str) -> Change:
        """It is gone with all that it had; what the kernel tells of it."""
        self.unregister(device)
        return Change(DELETE_LINK, self.devices.pop(device))

    def lose(self, prio: int) -> None:
        self.rules = {key: each for key, each in self.rules.items() if key[2] != prio}

    def flush(self) -> None:
        self.rules.clear()
        self.qdiscs.clear()

    @property
    def prios(self) -> list[int]:
        return sorted(key[2] for key in self.rules)


class Heard:
    """A monitor that hears what a test says."""

    def __init__(self) -> None:
        ours, self.theirs = os.pipe()
        self.socket = os.fdopen(ours, "rb", buffering=0)
        os.set_blocking(self.socket.fileno(), False)
        self.waiting: list[Change] = []
        self.overrun = False

    def say(self, *changes: Change, overrun: bool = False) -> None:
        self.waiting += changes
        self.overrun |= overrun
        os.write(self.theirs, b".")

    def changes(self) -> Iterator[Change]:
        self.socket.read(100)
        found, self.waiting = self.waiting, []
        yield from found

    def close(self) -> None:
        self.socket.close()
        os.close(self.theirs)


class Told:
    """What connections are told; there: the priorities of rules that were there each time."""

    def __init__(self, tc: Tc) -> None:
        self.tc = tc
        self.all: list[str] = []
        self.there: list[list[int]] = []

    def broken(self, why: str) -> None:
        self.there.append(self.tc.prios)
        self.all.append(why)

    def mended(self) -> None:
        self.there.append(self.tc.prios)
        self.all.append("mended")


@contextmanager
def following(tc: Tc, text: str = ONE, **more) -> Iterator[tuple[KernelRules, Heard, Told]]:
    heard, told = Heard(), Told(tc)
    one = KernelRules(tc, heard, rules(text), broken=told.broken, mended=told.mended, pause=0.02, **more)
    one.start()
    try:
        yield one, heard, told
    finally:
        one.close()
    assert tc.closed


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + 5
    while not true():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.002)
