"""Scenarios as text: parse() and format().

    # comment                                        above everything, above a step, or behind one
    A = 10.0.0.1                                     a host
    set tcp_liberal 1                                a setting, as of replay's options; set timeout NAME SECONDS; set snat RULE; set zone 5:original
    label: +SECONDS SRC > DST PACKET => EXPECTATION  a step; label and expectation may be left out

Invariants: parse(format(scenario), scenario.name) == scenario; every text ends in a scenario or in one ScenarioError.
Not here: the words of packets (words) and expectations (expectation).
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import replace
from typing import Any

from ctcore import spec
from ctcore.config import Config
from ctcore.errors import ConfigError
from ctcore.nat_rules import KINDS, HelperRule, NatRule
from datapath.rule_text import helper_text, parse_helper, parse_rule, rule_text
from datapath.scenario.cursor import Cursor, bytes_text, endpoint_text, seconds_text, split
from datapath.scenario.expectation import expectation_text, read_expectation
from datapath.scenario.steps import DEFAULT_HOSTS, SETTINGS, WITH_PORTS, Packet, Raw, Scenario, ScenarioError, Step
from datapath.scenario.words import is_label, read_protocol, write_protocol
from datapath.zones import ALL, Zone, read_places, read_zone, zone_text

LONGEST_WAIT = 1_000_000_000  # seconds of all waits together: time has to fit 64 bits of nanoseconds
MOST_SECONDS = (1 << 31) - 1
MOST_SETTING = (1 << 64) - 1
HELPER = "helper"
RULES = (*KINDS, HELPER)
ZONE, LIMIT, RESERVE = "zone", "zone-limit", "zone-reserve"
NAMES = ("timeout", *RULES, ZONE, LIMIT, RESERVE, *SETTINGS)
WIDEST = 72  # columns up to => if the packets need no more
HOST = re.compile(r"[A-Za-z][A-Za-z0-9_]*\Z")


def parse(text: str, name: str = "scenario") -> Scenario:
    """Read a scenario. name: of its file, for complaints. Raises ScenarioError: name:line:column, and what was expected."""
    reader = _Reader(name)
    for number, line in enumerate(text.split("\n"), 1):
        reader.line(number, line)
    return reader.scenario()


class _Reader:
    """A scenario while it is read."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.steps: list[Step] = []
        self.hosts: dict[str, str] = {}
        self.settings: dict[str, int] = {}
        self.timeouts: dict[str, int] = {}
        self.nat: list[NatRule] = []
        self.helpers: list[HelperRule] = []
        self.zone: Zone | None = None
        self.places: dict[str, dict[int | None, int]] = {LIMIT: {}, RESERVE: {}}
        self.comments: list[str] = []
        self.pending: list[str] = []  # comment lines that belong to what follows
        self.waited = 0.0

    def line(self, number: int, line: str) -> None:
        words, comment = split(line)
        cursor = Cursor(self.name, number, words, len(line) + 1)
        if not words:
            if line.strip():
                self.pending.append(comment)
            elif not self.steps:
                self._title()
        elif words[0].text == "set" or (len(words) > 1 and words[1].text == "="):
            self._header(cursor, comment)
        else:
            self._step(cursor, comment)

    def _title(self) -> None:
        """What came so far is about the whole scenario."""
        self.comments += self.pending
        self.pending = []

    def _header(self, cursor: Cursor, comment: str) -> None:
        if self.steps:
            cursor.take("")
            cursor.fail("hosts and settings before the first step")
        self._title()
        self.comments += [comment] if comment else []
        if cursor.peek == "set":
            self._setting(cursor)
        else:
            self._host(cursor)
        if cursor.peek is not None:
            cursor.take("")
            cursor.fail("the line to end here")

    def _host(self, cursor: Cursor) -> None:
        host = cursor.take("")
        if not HOST.match(host) or host in self.hosts:
            cursor.fail("a new host's name, letters and digits, as in A = 10.0.0.1")
        cursor.take("=")
        address = cursor.take("an IPv4 or IPv6 address")
        if not is_address(address):
            cursor.fail("an IPv4 or IPv6 address")
        self.hosts[host] = address

    def _setting(self, cursor: Cursor) -> None:
        cursor.take("set")
        name = cursor.take(f"a setting: {', '.join(NAMES)}")
        if name in RULES:
            self._rule(cursor, name)
        elif name == ZONE:
            self._zone(cursor)
        elif name in self.places:
            self._places(cursor, name)
        elif name == "timeout":
            timeout = cursor.one_of(spec.timeouts(), "a timeout")
            if timeout in self.timeouts:
                cursor.fail("each timeout once")
            self.timeouts[timeout] = cursor.number(0, MOST_SECONDS)
        elif name not in SETTINGS or name in self.settings:
            cursor.fail(f"a setting, each once: {', '.join(NAMES)}")
        else:
            self.settings[name] = cursor.number(0, MOST_SETTING)
        try:
            config_of(self.scenario(), Config())
        except ConfigError as error:
            raise ScenarioError(f"{self.name}:{cursor.line}:{cursor.words[-1].column}: {error}") from None

    def _zone(self, cursor: Cursor) -> None:
        if self.zone is not None:
            cursor.fail("the zone once")
        expected = "a zone from 0 to 65535, with :original or :reply if it is of one direction"
        self.zone = read_zone(cursor.take(expected))
        if self.zone is None:
            cursor.fail(expected)

    def _places(self, cursor: Cursor, name: str) -> None:
        """A limit or a reserve."""
        expected = "ZONE=N, a zone up to 65535 and a number of connections, as in 5=1000" + (", or N for each" if name == LIMIT else "")
        places = read_places(cursor.take(expected), zone_needed=name == RESERVE)
        if places is None or places[0] in self.places[name]:
            cursor.fail(f"{expected}, each once")
        self.places[name][places[0]] = places[1]

    def _rule(self, cursor: Cursor, kind: str) -> None:
        """A NAT rule or a helper, as on the command line: all words up to the line's end."""
        start = cursor.at
        cursor.take("a helper, as in ftp:tcp:21" if kind == HELPER else "a NAT rule, as in ip_proto tcp => 192.0.2.1:1024-65535")
        words = [word.text for word in cursor.words[start:]]
        cursor.at = len(cursor.words)
        try:
            if kind == HELPER:
                self.helpers.append(parse_helper(" ".join(words)))
            else:
                self.nat.append(replace(parse_rule(kind, " ".join(words)), text=""))
        except ConfigError as error:
            raise ScenarioError(f"{self.name}:{cursor.line}:{cursor.words[start].column}: {error}") from None

    def _step(self, cursor: Cursor, remark: str) -> None:
        word = cursor.take("")
        label = ""
        if word.endswith(":"):
            label = word[:-1]
            if not is_label(label) or any(step.label == label for step in self.steps):
                cursor.fail("a new label, letters and digits, as in syn: +0.1 A:1 > B:2 S")
            word = cursor.take("+SECONDS, as in +0.010")
        if word[0] != "+":
            cursor.fail("a step (+SECONDS SRC > DST PACKET => EXPECTATION), a host (A = 10.0.0.1) or a setting (set NAME VALUE)")
        wait = cursor.seconds(word[1:], LONGEST_WAIT, "+0.010")
        self.waited += wait
        if self.waited > LONGEST_WAIT:
            cursor.fail(f"at most {LONGEST_WAIT:,} seconds in all")
        packet = self._packet(cursor)
        expect = None
        if cursor.peek is not None:
            if cursor.take("") != "=>":
                cursor.fail("=> and what is expected, or the line to end here")
            expect = read_expectation(cursor)
        self.steps.append(Step(packet, wait, expect, label, tuple(self.pending), remark, cursor.line))
        self.pending = []

    def _packet(self, cursor: Cursor) -> Packet | Raw:
        if cursor.peek == "raw":
            cursor.take("")
            return Raw(cursor.octets())
        src, sport = self._endpoint(cursor)
        if cursor.take("> and the destination") != ">":
            cursor.fail("> and the destination")
        dst, dport = self._endpoint(cursor)
        at = cursor.at
        l4, ip = read_protocol(cursor)
        if isinstance(l4, WITH_PORTS) != (sport is not None) or (sport is None) != (dport is None):
            cursor.at = at
            cursor.fail("ports on both sides, as in A:40000 > B:80" if isinstance(l4, WITH_PORTS) else "no ports: this protocol has none")
        return Packet(src, dst, l4, sport, dport, ip)

    def _endpoint(self, cursor: Cursor) -> tuple[str, int | None]:
        """A host's name or address, and its port."""
        expected = "a host and its port if it has one, as in A:40000, 10.0.0.1 or [2001:db8::1]:80"
        host, port = cursor.endpoint(cursor.take(expected), f"{expected}; hosts are {', '.join({**DEFAULT_HOSTS, **self.hosts})}")
        if not (is_address(host) or host in self.hosts or host in DEFAULT_HOSTS):
            cursor.fail(f"{expected}; hosts are {', '.join({**DEFAULT_HOSTS, **self.hosts})}")
        return host, port

    def scenario(self) -> Scenario:
        rules = tuple(self.nat), tuple(self.helpers)
        limit = self.places[LIMIT].get(ALL)
        limits, reserves = ({zone: n for zone, n in self.places[name].items() if zone is not None} for name in (LIMIT, RESERVE))
        ending = tuple(self.pending) if self.steps else ()
        comments = (*self.comments, *([] if self.steps else self.pending))
        return Scenario(
            tuple(self.steps), self.name, self.hosts, self.settings, self.timeouts, *rules, comments, ending, self.zone, limit, limits, reserves
        )


def is_address(text: str) -> bool:
    """Without a zone: what is written there would not get into a packet."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return "%" not in text


def config_of(scenario: Scenario, base: Config) -> Config:
    """base with a scenario's own settings in place of its own, and its rules behind those of base. Raises ConfigError."""
    named: dict[str, Any] = dict(scenario.settings)
    if scenario.zone is not None:
        named["zone_dir"] = scenario.zone[1]
    if scenario.zone_limit is not None:
        named["zone_limit"] = scenario.zone_limit
    for name in ("zone_limits", "zone_reserves"):
        named[name] = {**getattr(base, name), **getattr(scenario, name)}
    rules: dict[str, Any] = {"nat": (*base.nat, *scenario.nat), "helpers": (*base.helpers, *scenario.helpers)}
    return replace(base, **named, **rules, timeouts={**base.timeouts, **scenario.timeouts})


def format(scenario: Scenario) -> str:
    """A scenario as text, aligned in columns."""
    head = [f"{name} = {address}" for name, address in scenario.hosts.items()]
    head += [f"set {name} {value}" for name, value in scenario.settings.items()]
    head += [f"set {ZONE} {zone_text(*scenario.zone)}"] if scenario.zone is not None else []
    head += [f"set {LIMIT} {scenario.zone_limit}"] if scenario.zone_limit is not None else []
    head += [f"set {LIMIT} {zone}={number}" for zone, number in scenario.zone_limits.items()]
    head += [f"set {RESERVE} {zone}={number}" for zone, number in scenario.zone_reserves.items()]
    head += [f"set timeout {name} {seconds}" for name, seconds in scenario.timeouts.items()]
    head += [f"set {rule.kind} {rule_text(rule)}" for rule in scenario.nat]
    head += [f"set {HELPER} {helper_text(helper)}" for helper in scenario.helpers]
    blocks = [_comments(scenario.comments), head, _step_lines(scenario), _comments(scenario.ending)]
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def _comments(lines: tuple[str, ...]) -> list[str]:
    return [f"# {line}".rstrip() for line in lines]


def _step_lines(scenario: Scenario) -> list[str]:
    """One line a step and its comments above it, in columns: when, from, to, what, => expectation."""
    rows = [(_when(step), *_sides(step.packet), _what(step.packet)) for step in scenario.steps]
    when, source, target = (max((len(row[i]) for row in rows), default=0) for i in range(3))
    left = [
        f"{row[0]:<{when}}  {row[3]}" if isinstance(step.packet, Raw) else f"{row[0]:<{when}}  {row[1]:<{source}} > {row[2]:<{target}}  {row[3]}"
        for step, row in zip(scenario.steps, rows, strict=True)
    ]
    column = max((len(text) for text in left if len(text) <= WIDEST), default=0)
    lines: list[str] = []
    for step, text in zip(scenario.steps, left, strict=True):
        text = f"{text:<{column}}  => {expectation_text(step.expect)}" if step.expect else text
        lines += [*_comments(step.comments), f"{text}  # {step.remark}" if step.remark else text]
    return lines


def _when(step: Step) -> str:
    return (f"{step.label}: " if step.label else "") + f"+{seconds_text(step.wait, 3)}"


def _sides(packet: Packet | Raw) -> tuple[str, str]:
    """Source and destination as they are written."""
    if isinstance(packet, Raw):
        return "", ""
    return endpoint_text(packet.src, packet.sport), endpoint_text(packet.dst, packet.dport)


def _what(packet: Packet | Raw) -> str:
    return f"raw {bytes_text(packet.data)}" if isinstance(packet, Raw) else write_protocol(packet.l4, packet.ip)


def packet_text(packet: Packet | Raw) -> str:
    """A packet in a scenario's words, for messages."""
    source, target = _sides(packet)
    return f"{source} > {target} {_what(packet)}" if source else _what(packet)
