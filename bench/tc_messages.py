"""How fast requests to the kernel are made, of rules for TC and of connections, and how fast the running kernel's conntrack takes the latter.

    sudo python -m bench.tc_messages [--count 50000] [--rounds 3]

Rules: one of each form that a rules file knows, over and over, as `offload install` makes them; exact filters: one for each direction of translated
IPv6 connections, as a mirror's backend makes them. The kernel here may have no flower, so that these are messages made, and not taken. Connections:
made, sent and acknowledged, in a namespace of its own. The best of the rounds, and the worst.
Not here: what a backend costs (bench.entries).
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from ipaddress import ip_address

from bench.entries import commands
from ctcore.ctnetlink import Ask
from datapath.commands.tc.encode import Encoder
from datapath.oracle.namespace import Namespace
from datapath.pipeline.findings import Findings
from datapath.pipeline.rules import Rule
from datapath.pipeline.tc_text import parse
from offload.entry import Entry, commands_of, rows_for
from offload.netlink.conntrack import KernelConntrack
from offload.netlink.exact import Course, Prios, Shape, filling_of, form_of
from offload.netlink.filters import Where
from pcap_tests.written_rules import FILTER, WRITTEN

TCP, TRANSLATED = 6, 15
LEASE, TICKS = 300.0, 75_000


def rules(many: list[Rule]) -> None:
    encoder = Encoder(defaultdict(itertools.count(1).__next__).__getitem__)
    for rule in many:
        encoder.rule(rule)


def exact(count: int) -> None:
    shape = Shape(Course(Where(3), 7, None, True), Prios(), 6, TCP, TRANSLATED)
    ends = [ip_address(text).packed for text in ("2001:db8::1", "2001:db8::2", "2001:db8:1::1", "2001:db8:1::2")]
    for number in range(count):
        port = 1024 + number % 60_000
        form_of(shape).filled(filling_of(number + 1, number, (*ends[:2], port, 80), (*ends[2:], 81, port), 16))


def rate(what: Callable[[], object], count: int, rounds: int, after: Callable[[], object] = lambda: None) -> str:
    rates = []
    for _ in range(rounds):
        begun = time.perf_counter()
        what()
        rates.append(count / (time.perf_counter() - begun))
        after()
    return f"{max(rates):>10,.0f} a second ({min(rates):,.0f} at least)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    forms = parse("".join(f"{FILTER} {written}\n" for written in WRITTEN), "rules", Findings()).rules
    many = [forms[i % len(forms)] for i in range(given.count)]
    print(f"rules        {rate(partial(rules, many), len(many), given.rounds)}, {len(forms)} forms")
    print(f"exact filters{rate(partial(exact, given.count), given.count, given.rounds)}")
    entries = [Entry(command, LEASE, 0) for command in commands_of(commands(given.count)[::2])]
    rows = rows_for(entries, TICKS)
    namespace = Namespace()
    with namespace.entered(), KernelConntrack() as kernel:
        made = partial(kernel.ask, rows, Ask.CREATE)
        print(f"connections  {rate(made, len(rows), given.rounds, partial(kernel.ask, rows, Ask.DELETE))}, in the kernel")
    namespace.close()


if __name__ == "__main__":
    main()
