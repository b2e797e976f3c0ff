"""Rules for flow tables, at random but orderly: every packet of a connection is tracked, whatever is done to it before and after.

eth0 is near, eth1 far. Both directions are tracked in one zone, and maybe in a second one at eth1, where packets leave and come in; in between rules
look at what packets of a flow differ in, and change, mark, mirror, or meter them.
Not here: rules of all kinds in any order (random_talks).
"""

from __future__ import annotations

from ipaddress import ip_address
from random import Random

from datapath.pipeline.rules import (
    CONTINUE,
    DROP,
    ETH_ALL,
    ETH_IP,
    ETH_VLAN,
    PASS,
    PIPE,
    Action,
    Csum,
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
    Skbedit,
    goto,
)
from pcap_tests.test_datapath.test_pipeline.random_talks import EST, NEW, TRK, pair, state

NEAR, FAR, OUT = Hook("eth0"), Hook("eth1"), Hook("eth1", "egress")
OUTER = 3  # the second zone
LOOKS: tuple[tuple[int, tuple[Match, ...]], ...] = (
    (ETH_IP, (Match("ip_proto", 6, 0xFF), Match("tcp_flags", 0x08, 0x08))),
    (ETH_IP, (Match("ip_proto", 6, 0xFF), Match("tcp_flags", 0x10, 0xFFF))),
    (ETH_IP, (Match("ip_tos", 0x20, 0xFF),)),
    (ETH_IP, (Match("ip_tos", 4, 4),)),
    (ETH_IP, (Match("ip_ttl", 5, 0xFF),)),
    (ETH_IP, (Match("ip_ttl", 64, 0xFF),)),
    (ETH_VLAN, (Match("vlan_id", 5, 0xFFF),)),
    (ETH_ALL, (state(TRK | EST), Match("ct_mark", 1, 1))),
    (ETH_ALL, (Match("ct_zone", OUTER, 0xFFFF),)),
    (ETH_IP, (Match("src_ip", 0x0A000001, 0xFFFFFFFF),)),
)


def aside(random: Random) -> tuple[Action, ...]:
    """What leaves the packet's way as it is; it goes on with the next rule."""
    kind = random.randrange(6)
    if kind == 0:
        return (Skbedit(mark=(random.randrange(4), 3), control=CONTINUE),)
    if kind == 1:
        return Mirred("mirror", "tap0"), Gact(CONTINUE)
    if kind == 2:
        return (Police(random.choice((8000, 10**6)), random.choice((200, 100_000)), exceed=CONTINUE, control=CONTINUE),)
    if kind == 3:
        return Police(packet_rate=5, packet_burst=3, exceed=CONTINUE, control=PIPE), Skbedit(priority=7, control=CONTINUE)
    if kind == 4:
        return Pedit((Munge("ip", "ttl", "add", 255, 255),)), Csum(("ip4h",)), Gact(CONTINUE)
    return (Gact(CONTINUE),)


class Orderly:
    def __init__(self, random: Random):
        self.random, self.rules = random, list[Rule]()
        self.zone, self.outer = random.choice((0, 5)), random.randrange(2) == 0

    def add(self, hook: Hook, chain: int, prio: int, matches: tuple[Match, ...], *actions: Action, protocol: int = ETH_ALL) -> None:
        self.rules.append(Rule(hook, protocol, matches, actions, prio, chain))

    def asides(self, hook: Hook, chain: int, prio: int, most: int = 2) -> None:
        for _ in range(self.random.randrange(most + 1)):
            protocol, matches = self.random.choice(LOOKS)
            does = aside(self.random)
            if isinstance(does[0], Pedit):
                protocol, matches = (ETH_IP, matches) if protocol == ETH_IP else (ETH_IP, ())
            self.add(hook, chain, prio, matches, *does, protocol=protocol)
            prio += 1

    def established(self, hook: Hook, onward: Mirred) -> None:
        """Straight on, or by a chain more, which may be for some only."""
        random = self.random
        self.asides(hook, 1, 1)
        again = Ct(self.zone, pair(random, 32), pair(random, 128), commit=True)
        extra = random.choice(((), (), (again,), (Ct(clear=True),), (Skbedit(mark=(1, 1)),)))
        protocol, matches = random.choice(LOOKS[:7])
        if random.randrange(3) == 0:
            self.add(hook, 1, 10, (*matches,), Gact(goto(2)), protocol=protocol)
        self.add(hook, 1, 20, (state(TRK | EST),), *extra, onward)
        self.asides(hook, 2, 1)
        # Where there is a second zone it has to see all that the first one sees.
        self.add(hook, 2, 10, (), onward if self.outer else random.choice((onward, Gact(PASS), Gact(DROP))))

    def near(self) -> None:
        random, onward = self.random, Mirred("redirect", "eth1")
        nat = random.choice((None, CtNat("src", *[ip_address("203.0.113.1")] * 2), CtNat("dst", *[ip_address("198.51.100.9")] * 2)))
        self.asides(NEAR, 0, 1)
        self.add(NEAR, 0, 9, (state(0, TRK),), Ct(self.zone, nat=CtNat()), Gact(goto(1)))
        # A range of addresses is one family's.
        for protocol, given in ((ETH_IP, nat), (ETH_ALL, None)):
            commit = Ct(self.zone, pair(random, 32), pair(random, 128), commit=True, nat=given)
            self.add(NEAR, 1, 15 + (given is None), (state(TRK | NEW),), commit, onward, protocol=protocol)
        self.established(NEAR, onward)
        if self.outer:
            self.asides(OUT, 0, 1)
            self.add(OUT, 0, 9, (), Ct(OUTER, pair(random, 32), commit=True), Gact(PASS))

    def far(self) -> None:
        self.asides(FAR, 0, 1)
        track = Ct(self.zone, nat=CtNat())
        if self.outer:
            self.add(FAR, 0, 9, (state(0, TRK),), Ct(OUTER), Gact(goto(5)))
            self.asides(FAR, 5, 1)
            self.add(FAR, 5, 9, (), track, Gact(goto(1)))
        else:
            self.add(FAR, 0, 9, (state(0, TRK),), track, Gact(goto(1)))
        self.established(FAR, Mirred("redirect", "eth0"))


def orderly(random: Random) -> Ruleset:
    made = Orderly(random)
    made.near()
    made.far()
    return Ruleset((), (), tuple(made.rules))
