"""Who talks in a trace, and by which settings it is judged: all from a seed.

Invariants: each block of eight settings has every combination of tcp_liberal, tcp_loose and checksum; half of the traces are IPv6.
Not here: what is said (tcp, sctp, datagrams, icmp).
"""

from __future__ import annotations

from random import Random
from typing import Protocol

from ctcore import spec
from ctcore.config import Config
from pcap_tests.fuzz_kernel import datagrams
from pcap_tests.fuzz_kernel.draft import Draft, Settings, Watcher, hosts_of
from pcap_tests.fuzz_kernel.icmp import ErrorTalk
from pcap_tests.fuzz_kernel.sctp import SctpTalk
from pcap_tests.fuzz_kernel.tcp import TcpTalk

# Around the 120 and 300 seconds that rules mention, soon over, and the longest there is.
TIMEOUTS = (1, 1, 2, 10, 119, 120, 121, 299, 300, 301, 86400, 8_000_000)
OVER_AT_ONCE = 0  # where these are many, nothing lives on
HOSTS = {False: ("A", "B", "C"), True: ("A6", "B6", "C6")}
PORTS = (0, 80, 1000, 40000, 65535)
PAUSES = (0.3, 1.1, 2.1)  # seconds; 1 and 2 are timeouts, after 2 UDP is a stream
SLOW_PACKETS = (80, 200)
PACKETS = (20, 60)
WEIGHTS = {"tcp": 10, "sctp": 4, "udp": 2, "udplite": 1, "gre": 1, "echo": 2, "other": 1}
KINDS = tuple(kind for kind, weight in WEIGHTS.items() for _ in range(weight))


class Talk(Protocol):
    def step(self) -> None:
        """Say something, or nothing."""


def settings_of(seed: int, block: int) -> Settings:
    """The settings of the block's traces."""
    dice = Random(f"{seed}/{block}")
    names = sorted(spec.timeouts())
    timeouts = {name: dice.choice(TIMEOUTS) for name in dice.sample(names, dice.choice((0, 2, 6, 12)))}
    if dice.random() < 0.2:
        timeouts[dice.choice(names)] = OVER_AT_ONCE
    config = Config(
        tcp_liberal=bool(block & 1),
        tcp_loose=not block & 2,
        checksum=not block & 4,
        tcp_ignore_invalid_rst=dice.random() < 0.4,
        tcp_max_retrans=dice.choice((3, 3, 3, 0, 1, 2, 4, 255)),
        acct=dice.random() < 0.85,
        timeouts=timeouts,
    )
    return Settings(config, dice.choice((0, 0, 1, 65535, dice.randrange(65536))))


def trace(seed: int, block: int, number: int, watcher: Watcher, *, slow: bool = False) -> Draft:
    """One trace. slow: many connections, and pauses that are really waited for."""
    dice = Random(f"{seed}/{block}/{number}")
    draft = Draft(dice, watcher, six=dice.random() < 0.5, hosts=hosts_of(number))
    talks = _talks(draft, draft.pick((8, 12) if slow else (1, 1, 2, 3, 4)))
    length = dice.randint(*(SLOW_PACKETS if slow else PACKETS))
    pauses = [(dice.randrange(length), dice.choice(PAUSES)) for _ in range(2)] if slow else []
    while len(draft.steps) < length:
        for at, seconds in [pause for pause in pauses if pause[0] <= len(draft.steps)]:
            draft.pause(seconds)
            pauses.remove((at, seconds))
        draft.pick(talks).step()
    return draft


def _talks(draft: Draft, count: int) -> list[Talk]:
    """Talks that may be between the same hosts and ports, in the same direction or the other one."""
    talks: list[Talk] = []
    names = HOSTS[draft.six]
    taken: list[tuple[tuple[str, str], tuple[int, int]]] = []
    for _ in range(count):
        pair, ports = (draft.pick(names), draft.pick(names)), (draft.pick(PORTS), draft.pick(PORTS))
        if pair[0] == pair[1] and not draft.chance(0.1):  # a host that speaks to itself is rare
            pair = names[0], names[1]
        if taken and draft.chance(0.3):
            pair, ports = draft.pick(taken)
            pair, ports = (pair, ports) if draft.chance(0.5) else ((pair[1], pair[0]), (ports[1], ports[0]))
        taken.append((pair, ports))
        talks += [talk_of(draft, draft.pick(KINDS), pair, ports)] * 3
    if draft.chance(0.5):
        talks.append(ErrorTalk(draft, names))
    return talks


def talk_of(draft: Draft, kind: str, names: tuple[str, str], ports: tuple[int, int]) -> Talk:
    """What two hosts say to each other. kind: one of WEIGHTS."""
    match kind:
        case "tcp":
            return TcpTalk(draft, names, ports)
        case "sctp":
            return SctpTalk(draft, names, ports)
        case "udp" | "udplite":
            return datagrams.DatagramTalk(draft, names, ports, datagrams.udp if kind == "udp" else datagrams.udplite)
        case "echo":
            return datagrams.DatagramTalk(draft, names, None, datagrams.echo(draft.six if draft.chance(0.9) else not draft.six))
        case "gre":
            return datagrams.DatagramTalk(draft, names, None, datagrams.gre)
        case _:
            return datagrams.DatagramTalk(draft, names, None, datagrams.other)
