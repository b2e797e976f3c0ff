"""Rules files and packets for the kernel's TC and for our pipeline, at random: out of the makers that our own twins are held against each other with.

Theory of operation: a seed makes a case: settings of conntrack, a rules file as tc lines, and traffic that answers what comes out. Rules are drawn
one after the other, and those that validation refuses are left out, so that a file is one that people could have installed.
Invariant: a seed gives the same rules, and the same packets as long as the same comes out.
Not here: what becomes of it (conforming); what is not drawn, and why: that is listed in test_vm_conform.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from random import Random
from types import SimpleNamespace
from typing import NamedTuple

from ctcore.config import Config
from datapath.pipeline import tc_text
from datapath.pipeline.findings import Findings
from datapath.pipeline.rule_checks import check_rule
from datapath.pipeline.rules import (
    ETH_IP,
    ETH_IPV6,
    PASS,
    Action,
    Csum,
    Ct,
    Hook,
    Mirred,
    Pedit,
    Police,
    Rule,
    Ruleset,
    Vlan,
    innermost,
)
from datapath.pipeline.tc_print import qdisc_line, rule_line
from datapath.pipeline.validate import validate
from pcap_tests.test_datapath.test_pipeline.random_pipelines import ENTRIES, QDISCS, RULED, some_frame, some_rule, some_ruleset
from pcap_tests.test_datapath.test_pipeline.random_talks import Traffic, ct_matches, some_ct, some_pipeline
from pcap_tests.test_datapath.test_tc.sayable import sayable
from pcap_tests.vm.tapped import Out

DEVICES = ("eth0", "eth1", "eth2", "tap0")
SETTINGS = {"nf_conntrack_tcp_loose": "tcp_loose", "nf_conntrack_tcp_be_liberal": "tcp_liberal", "nf_conntrack_checksum": "checksum"}
TAGS = (b"\x81\x00", b"\x88\xa8")
HOP_BY_HOP, FRAGMENT = 0, 44
SLOWEST, FASTEST = 8, 10**11  # bits a second: a byte more in a second is no matter, and no frame is too large


@dataclass(frozen=True)
class Case:
    """seed: of everything; rules: as tc lines; settings: of conntrack, by the kernel's names."""

    seed: str
    rules: str
    settings: dict[str, int]

    @property
    def ruleset(self) -> Ruleset:
        return read(self.rules)

    @property
    def config(self) -> Config:
        return Config(max=1000, **{SETTINGS[name]: bool(value) for name, value in self.settings.items()})


def read(text: str) -> Ruleset:
    """A file that is right. Raises RuleError."""
    found = Findings()
    rules = validate(tc_text.parse(text, "case.tc", found), found)
    found.check()
    return rules


def written(rules: Ruleset) -> str:
    return "".join(f"{line}\n" for line in (*map(qdisc_line, rules.qdiscs), *map(rule_line, rules.rules)))


# --- rules ----------------------------------------------------------------------------------------------------------------------------------


def some_case(seed: str) -> Case:
    """Rules without `ct`, with any, or such as people write with some more."""
    random = Random(seed)
    kind = random.randrange(4)
    if kind == 0:
        drawn = some_ruleset(random, 40).rules
    elif kind == 1:
        drawn = some_ruleset(random, 40, actions=some_ct, matches=ct_matches).rules
    else:
        more = (some_rule(random, random.choice(RULED), actions=some_ct, matches=ct_matches) for _ in range(random.randrange(6)))
        drawn = (*some_pipeline(random).rules, *more)
    settings = {name: random.choice(odds) for name, odds in zip(SETTINGS, ((0, 1), (0, 0, 0, 1), (0, 1, 1, 1)), strict=True)}
    return Case(seed, written(accepted(drawn)), settings)


def accepted(drawn: Sequence[Rule]) -> Ruleset:
    """Those of the rules, made to suit both sides, that make a file that is right. They are as they come back from tc lines."""
    chosen: list[Rule] = []
    for rule in map(suited, drawn):
        found = Findings()
        check_rule(rule, found)
        if found.errors or not suits(rule) or (_pushes(rule) and any(map(_sums, chosen))) or (_sums(rule) and any(map(_pushes, (*chosen, rule)))):
            continue
        read_back = tc_text.parse(f"{rule_line(rule)}\n", "case.tc", found).rules
        if not found.errors:
            validate(Ruleset(QDISCS, (), (*chosen, *read_back)), found)
        if not found.errors:
            chosen += read_back
    return Ruleset(QDISCS, (), tuple(chosen))


def _pushes(rule: Rule) -> bool:
    return any(isinstance(action, Vlan) and action.kind == "push" for action in rule.actions)


def _sums(rule: Rule) -> bool:
    return any(isinstance(action, Csum) for action in rule.actions)


def suited(rule: Rule) -> Rule:
    return replace(rule, skip_sw=False, actions=tuple(map(_suited, rule.actions)))


def _suited(action: Action) -> Action:
    if isinstance(action, Ct):
        nat = action.nat
        if nat is not None and nat.kind:
            nat = replace(nat, high=nat.low, ports=nat.ports and (nat.ports[1], nat.ports[1]))
        return replace(action, helper=None, nat=nat)
    if isinstance(action, Pedit) and (types := [munge for munge in action.munges if (munge.header, munge.field) == ("eth", "type")]):
        return replace(action, munges=(*(munge for munge in action.munges if munge not in types), types[-1]), control=PASS)
    if isinstance(action, Police) and action.packet_rate:
        return Police(SLOWEST, 200, exceed=action.exceed, control=action.control)
    if isinstance(action, Police) and action.rate and action.rate < FASTEST:
        return replace(action, rate=SLOWEST)
    return action


def suits(rule: Rule) -> bool:
    return sayable(rule) and all(_suits(rule, each) for each in rule.actions)


def _suits(rule: Rule, action: Action) -> bool:
    inner = innermost(rule.protocol, rule.matches)
    if isinstance(action, Mirred):
        return action.direction == "egress" or (action.device == "tap0" and rule.hook.direction == "ingress")
    if isinstance(action, Ct) and action.nat is not None and action.nat.low is not None:
        return inner == (ETH_IP if action.nat.low.version == 4 else ETH_IPV6)
    if isinstance(action, Pedit):
        needed = {"ip": ETH_IP, "ip6": ETH_IPV6}
        return all(munge.field != "ihl" and needed.get(munge.header, inner) == inner for munge in action.munges)
    return True


# --- packets --------------------------------------------------------------------------------------------------------------------------------


class Layout(NamedTuple):
    """Of a frame: bytes in front of its network header, how many tags, and the type behind them."""

    at: int
    tags: int
    kind: int


def layout(frame: bytes) -> Layout:
    at = 14
    while frame[at - 2 : at] in TAGS:
        at += 4
    return Layout(at, (at - 14) // 4, int.from_bytes(frame[at - 2 : at], "big"))


def _copies_first(rule: Rule) -> bool:
    """Whether it mirrors a packet before it tracks it."""
    kinds = [type(action) for action in rule.actions]
    return Ct in kinds and Mirred in kinds[: kinds.index(Ct)]


class Fitting:
    """Which frames both sides can be compared by, under these rules."""

    def __init__(self, ruleset: Ruleset) -> None:
        acts = [(rule.hook, action) for rule in ruleset.rules for action in rule.actions]
        self.tracked = any(isinstance(action, Ct) for _, action in acts)
        at_egress = any(isinstance(action, Ct) and hook.direction != "ingress" for hook, action in acts)
        self.fragments = not at_egress and not any(map(_copies_first, ruleset.rules))
        self.summed = any(isinstance(action, Csum) for _, action in acts)
        self.deep = self.tracked or any(isinstance(action, Pedit) for _, action in acts)

    def __call__(self, frame: bytes, hook: Hook) -> bool:
        at, tags, kind = layout(frame)
        if len(frame) < 14 + 6 * (tags > 0) or (tags and hook.direction == "egress") or (tags > 1 and self.deep):
            return False
        ip = frame[at:]
        if self.summed and kind == ETH_IP and ip and (ip[0] & 15) * 4 > len(ip):
            return False
        if not self.tracked or kind not in (ETH_IP, ETH_IPV6) or not ip:
            return True
        if kind == ETH_IP:
            return ip[0] >> 4 == 4 and ip[0] & 15 >= 5 and (self.fragments or not int.from_bytes(ip[6:8], "big") & 0x3FFF)
        headers = ip[6:7] + ip[40:120:8]
        return ip[0] >> 4 == 6 and ip[6:7] != bytes([HOP_BY_HOP]) and (self.fragments or FRAGMENT not in headers)


def packets(case: Case, count: int) -> Generator[tuple[bytes, Hook], list[Out], None]:
    """Frames, each for a hook; to be told what came out of each."""
    random, ruleset = Random(f"{case.seed} packets"), case.ruleset
    fits, traffic = Fitting(ruleset), Traffic(random, ruleset)
    for _ in range(count):
        talking = fits.tracked and random.randrange(8) > 0
        frame, hook = traffic.next()[:2] if talking else (some_frame(random), random.choice(ENTRIES))
        if fits(frame, hook):
            out = yield frame, hook
            if talking:
                traffic.told(SimpleNamespace(left=out))  # type: ignore[arg-type]  # what it asks of Said
