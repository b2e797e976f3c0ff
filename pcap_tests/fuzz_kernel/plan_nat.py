"""Traces under address translation: random rules of every kind, and talks between few hosts and ports, so that tuples clash.

Some blocks have no rules, some have helpers: fragments, FTP and TFTP are to be seen without translation, too.
Three hosts of each trace's own, two servers and two public addresses of everybody's. Rules are those of a block: they match by host networks,
protocol and ports, and translate into the public addresses (source) or to the servers (destination), with few ports, many, or none said. So a rule
for the public address and one for the hosts make hairpins; few ports are exhausted; a port of each class is kept, or has to be searched.
Invariant: half of the traces are IPv6.
Not here: what is said, and what of it goes to translated ends (far_side).
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address, ip_network
from random import Random

from ctcore.config import Config
from ctcore.nat_rules import KINDS, Address, HelperRule, Match, NatRule, Ports, Range
from datapath.fields import WITH_PORTS
from pcap_tests.fuzz_kernel.draft import Draft, Settings, Watcher, hosts_of
from pcap_tests.fuzz_kernel.fragments import FragmentTalk
from pcap_tests.fuzz_kernel.helped import FTP, TFTP, FtpTalk, TftpTalk
from pcap_tests.fuzz_kernel.icmp import ErrorTalk
from pcap_tests.fuzz_kernel.plan import Talk, talk_of

# Behind the translation, and in front of it; of everybody. By family.
SERVERS = {False: ("10.255.0.1", "10.255.0.2"), True: ("2001:db8:ff::1", "2001:db8:ff::2")}
PUBLIC = {False: ("198.51.100.1", "198.51.100.2"), True: ("2001:db8:f0::1", "2001:db8:f0::2")}
NAMES = {False: ("A", "B", "C"), True: ("A6", "B6", "C6")}
NOTHING = {False: ip_address("0.0.0.0"), True: ip_address("::")}
INSIDE = {False: "10.0.0.0/8", True: "2001:db8::/32"}
# Of each class, and at its borders.
PORTS = (1, 80, 511, 512, 599, 600, 1000, 1023, 1024, 40000, 65535)
PROTOCOLS = (6, 6, 6, 17, 17, 132, 136, 1, 58, 47, 253)
CHOICES: tuple[Ports | None, ...] = (
    None, None, None, (7000, 7000), (7000, 7001), (7000, 7002), (500, 515), (1000, 1031), (1000, 1032), (1024, 65535), (1, 65535),
    (40000, 40999), (0, 3),
)  # fmt: skip
SPANS = (1, 1, 1, 2, 3, 7, 200)
WEIGHTS = {"tcp": 10, "sctp": 2, "udp": 5, "udplite": 1, "gre": 1, "echo": 3, "other": 1, "fragments": 5}
HELPED: dict[str, type[FtpTalk] | type[TftpTalk]] = {"ftp": FtpTalk, "tftp": TftpTalk}
HELPERS = (HelperRule("ftp", 6, FTP), HelperRule("tftp", 17, TFTP))
KIND_OF_TALK = tuple(kind for kind, weight in WEIGHTS.items() for _ in range(weight))
HELPED_WEIGHT = 8
PACKETS = (20, 60)
STRANGE_IP = 0.0  # what is not tracked is not translated


def settings_of(seed: int, block: int) -> Settings:
    """The settings of the block's traces."""
    dice = Random(f"nat/{seed}/{block}")
    rules = [_rule(dice, KINDS[(block + i) % len(KINDS)]) for i in range(dice.choice((0, 1, 1, 2, 3, 4, 6)))]
    config = Config(
        tcp_liberal=dice.random() < 0.3,
        tcp_loose=dice.random() < 0.8,
        checksum=dice.random() < 0.7,
        timeouts={"udp_timeout": 2} if dice.random() < 0.2 else {},
        nat=tuple(rules),
        helpers=HELPERS if dice.random() < 0.5 else (),
    )
    return Settings(config, dice.choice((0, 0, 1, 65535)))


def _rule(dice: Random, kind: str) -> NatRule:
    six = dice.random() < 0.5
    source = kind in ("snat", "masquerade")
    proto = dice.choice(PROTOCOLS) if dice.random() < 0.4 else None
    network = ip_network(dice.choice((INSIDE[six], *(SERVERS if source else PUBLIC)[six]))) if dice.random() < 0.7 else None
    ports = {dice.choice(("sport", "dport")): dice.choice(((1, 1023), (80, 80), (512, 65535)))} if dice.random() < 0.3 else {}
    if ports and proto not in WITH_PORTS:  # the language of rules has ports of a protocol only
        proto = 6
    match = Match(proto, **{dice.choice(("src", "dst")) if source else "dst": network}, **ports)  # type: ignore[arg-type]
    low: Address | None = ip_address(dice.choice((PUBLIC if source else SERVERS)[six]))
    high = low
    chosen = dice.choice(CHOICES)
    if kind in ("snat", "dnat"):
        high = ip_address(int(low) + dice.choice(SPANS) - 1) if low else None
        if chosen and dice.random() < 0.2:
            low = high = dice.choice((None, NOTHING[six]))
    flags = {name: dice.random() < 0.15 for name in ("random", "fully_random", "persistent")}
    return NatRule(kind, Range(low, high, chosen, **flags), match)


def trace(seed: int, block: int, number: int, watcher: Watcher, *, slow: bool = False) -> Draft:
    """One trace. slow: with a pause in which connections expire."""
    dice = Random(f"nat/{seed}/{block}/{number}")
    draft = Draft(dice, watcher, six=dice.random() < 0.5, hosts=hosts_of(number), strange=STRANGE_IP)
    kinds = KIND_OF_TALK + tuple(HELPED) * HELPED_WEIGHT if watcher.settings.config.helpers else KIND_OF_TALK
    talks = _talks(draft, kinds, draft.pick((2, 3, 4, 6)))
    length = dice.randint(*PACKETS)
    pause = dice.randrange(length) if slow else -1
    while len(draft.steps) < length:
        if pause >= 0 and len(draft.steps) >= pause:
            draft.pause(2.1)
            pause = -1
        draft.pick(talks).step()
    return draft


def _talks(draft: Draft, kinds: Sequence[str], count: int) -> list[Talk]:
    """Most of them from different hosts to the same place, from the same port."""
    names, places = NAMES[draft.six], (*NAMES[draft.six], *SERVERS[draft.six], *PUBLIC[draft.six])
    few = [draft.pick(PORTS) for _ in range(2)]
    dst, kind = draft.pick(places), draft.pick(kinds)
    talks: list[Talk] = []
    for _ in range(count):
        dst = draft.pick(places) if draft.chance(0.3) else dst
        kind = draft.pick(kinds) if draft.chance(0.3) else kind
        src = draft.pick(names) if draft.chance(0.9) else draft.pick(places)
        talks += [_talk(draft, kind, (src, dst), (draft.pick(few), draft.pick(few)))] * 3
    talks.append(ErrorTalk(draft, names))
    return talks


def _talk(draft: Draft, kind: str, names: tuple[str, str], ports: tuple[int, int]) -> Talk:
    if kind == "fragments":
        return FragmentTalk(draft, names, ports)
    return HELPED[kind](draft, names, ports) if kind in HELPED else talk_of(draft, kind, names, ports)
