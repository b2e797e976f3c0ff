"""NAT rules and helpers as text: what --snat, --dnat, --masquerade, --redirect and --helper take, and the same text made from a rule again.

    [MATCH =>] A[-B][:p[-q]][,random][,fully-random][,persistent]       IPv6 addresses with ports in brackets, [A-B]:p-q
    NAME:PROTO:PORT

MATCH are words of tc-flower(8) in any order: ip_proto NAME, src_ip NET, dst_ip NET, src_port p[-q], dst_port p[-q]; ports need a protocol that has
some. Without A the address stays and only ports are chosen from. masquerade and redirect have one address, that of the interface.
Invariant: parse_rule(kind, rule_text(rule)) is the rule again, but for its `text`. Not here: what a rule does (ctcore.nat), the options themselves.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, NoReturn

from ctcore.errors import ConfigError
from ctcore.nat_rules import HELPERS, Address, HelperRule, Match, NatRule, Network, Ports, Range
from datapath.fields import PROTO_NAMES, WITH_PORTS

ARROW = "=>"
FLAGS = {"random": "random", "fully-random": "fully_random", "persistent": "persistent"}
ONE_ADDRESS = ("masquerade", "redirect")
PROTOS: dict[str, int] = {name: int(number) for number, name in PROTO_NAMES.items()}
HELPER_PROTOS = {"tcp": 6, "udp": 17}
WORDS = "ip_proto, src_ip, dst_ip, src_port, dst_port"
_PORT = re.compile("[0-9]{1,5}")


class _Text:
    """A text on its way through the parser: knows how to say where something is wrong with it."""

    def __init__(self, kind: str, text: str) -> None:
        self.kind, self.text = kind, text
        # Each word with its column, counted from 1.
        self.words = [(found.group(), found.start() + 1) for found in re.finditer(r"\S+", text)]

    def fail(self, word: str, column: int, expected: str) -> NoReturn:
        raise ConfigError(f"{self.kind} '{self.text}': column {column}, '{word}': expected {expected}")


def parse_rule(kind: str, text: str) -> NatRule:
    """A rule from its text. kind: snat, dnat, masquerade or redirect. Raises ConfigError: one line with the text, the column, what was expected."""
    whole = _Text(kind, text)
    arrows = [i for i, (word, _) in enumerate(whole.words) if word == ARROW]
    if len(arrows) > 1:
        whole.fail(*whole.words[arrows[1]], "one => between match and addresses")
    split = arrows[0] if arrows else -1
    if split == 0:
        whole.fail(*whole.words[0], f"a match before it ({WORDS})")
    behind = whole.words[split + 1 :]
    if len(behind) != 1:
        word, column = behind[-1] if behind else ("", len(text) + 1)
        if behind and split < 0 and behind[0][0] in _MATCHES:
            column, word = len(text) + 1, ""
            whole.fail(word, column, f"{ARROW} and what to translate to behind a match")
        whole.fail(word, column, "one range A[-B][:p[-q]][,random][,fully-random][,persistent]")
    chosen = _range(whole, *behind[0])
    match, family = _match(whole, whole.words[: max(split, 0)])
    if family is not None and chosen.family is not None and family != chosen.family:
        whole.fail(*behind[0], f"an IPv{family} address, as in the match")
    return NatRule(kind, chosen, match, text)


def rule_text(rule: NatRule) -> str:
    """The text of a rule, in one order and without needless words: what parse_rule() takes."""
    match, words = rule.match, []
    for name, (field, _) in _MATCHES.items():
        value = getattr(match, field)
        if value is not None:
            words += [name, _value_text(value)]
    return " ".join([*words, ARROW, range_text(rule.range)]) if words else range_text(rule.range)


def range_text(chosen: Range) -> str:
    """Only what to choose from: 192.0.2.1-192.0.2.9:1024-65535,random."""
    text = "" if chosen.low is None else str(chosen.low) if chosen.low == chosen.high else f"{chosen.low}-{chosen.high}"
    if chosen.ports is not None:
        text = f"[{text}]" if chosen.family == 6 else text
        text += f":{_value_text(chosen.ports)}"
    return ",".join([text] + [word for word, field in FLAGS.items() if getattr(chosen, field)])


def parse_helper(text: str) -> HelperRule:
    """A helper from NAME:PROTO:PORT, as in ftp:tcp:21. Raises ConfigError: one line with the text, the column, what was expected."""
    whole = _Text("helper", text)
    parts = text.split(":")
    if len(parts) != 3:
        whole.fail(text, 1, "NAME:PROTO:PORT, as in ftp:tcp:21")
    name, proto, port = parts
    if name not in HELPERS:
        whole.fail(name, 1, ", ".join(HELPERS))
    if proto not in HELPER_PROTOS:
        whole.fail(proto, len(name) + 2, "tcp or udp")
    if not _PORT.fullmatch(port) or not 1 <= int(port) <= 0xFFFF:
        whole.fail(port, len(name) + len(proto) + 3, "a port from 1 to 65535")
    return HelperRule(name, HELPER_PROTOS[proto], int(port))


def helper_text(rule: HelperRule) -> str:
    return f"{rule.name}:{next(name for name, proto in HELPER_PROTOS.items() if proto == rule.proto)}:{rule.port}"


# --- the match -------------------------------------------------------------------------------------------------------------------------


def _proto(whole: _Text, word: str, column: int) -> int:
    if word in PROTOS:
        return PROTOS[word]
    if not re.fullmatch("[0-9]{1,3}", word) or int(word) > 255:
        whole.fail(word, column, "a protocol: tcp, udp, sctp, icmp, icmpv6, gre, ... or a number to 255")
    return int(word)


def _network(whole: _Text, word: str, column: int) -> Network:
    """A network or an address; bits behind the prefix are a slip and not a network."""
    bare, slash, prefix = word.partition("/")
    if "%" in word or (slash and not re.fullmatch("[0-9]{1,3}", prefix)):
        whole.fail(word, column, "a network, as in 10.0.0.0/8 or 2001:db8::/32")
    try:
        network = ip_network(word, strict=False)
    except ValueError:
        whole.fail(word, column, "a network, as in 10.0.0.0/8 or 2001:db8::/32")
    if network.network_address != ip_address(bare):
        whole.fail(word, column, f"a network without host bits, as in {network}")
    return network


def _ports(whole: _Text, word: str, column: int) -> Ports:
    low, dash, high = word.partition("-")
    high = high if dash else low
    for part, at in ((low, column), (high, column + (len(low) + 1 if dash else 0))):
        if not _PORT.fullmatch(part) or int(part) > 0xFFFF:
            whole.fail(part, at, "a port from 0 to 65535")
    if int(low) > int(high):
        whole.fail(word, column, "the lower port first")
    return int(low), int(high)


# Word of flower -> field of Match, and how its value is read.
_MATCHES: dict[str, tuple[str, Callable[[_Text, str, int], Any]]] = {
    "ip_proto": ("proto", _proto),
    "src_ip": ("src", _network),
    "dst_ip": ("dst", _network),
    "src_port": ("sport", _ports),
    "dst_port": ("dport", _ports),
}


def _match(whole: _Text, words: list[tuple[str, int]]) -> tuple[Match, int | None]:
    """The match, and the family of its networks."""
    found: dict[str, Any] = {}
    at: dict[str, tuple[str, int]] = {}
    family: int | None = None
    for i in range(0, len(words), 2):
        name, column = words[i]
        if name not in _MATCHES:
            whole.fail(name, column, WORDS)
        field, read = _MATCHES[name]
        if field in found:
            whole.fail(name, column, f"{name} once")
        if i + 1 == len(words):
            whole.fail(name, column, "a value behind it")
        found[field], at[field] = read(whole, *words[i + 1]), words[i]
        if isinstance(found[field], IPv4Network | IPv6Network):
            if family not in (None, found[field].version):
                whole.fail(*words[i + 1], f"an IPv{family} network, as the other one")
            family = found[field].version
    for field in ("sport", "dport"):
        if field in found and found.get("proto") not in WITH_PORTS:
            whole.fail(*at[field], "ip_proto tcp, udp, sctp or udplite beside it")
    return Match(**found), family


# --- the range -------------------------------------------------------------------------------------------------------------------------


def _range(whole: _Text, word: str, column: int) -> Range:
    ends, *flags = word.split(",")
    given: dict[str, bool] = {}
    at = column + len(ends) + 1
    for flag in flags:
        if flag not in FLAGS or FLAGS[flag] in given:
            whole.fail(flag, at, f"{', '.join(FLAGS)}, each once")
        given[FLAGS[flag]] = True
        at += len(flag) + 1
    addresses, start, ports, port_at = _halves(whole, ends, column)
    low, high = _addresses(whole, addresses, start) if addresses else (None, None)
    chosen_ports = None if ports is None else _ports(whole, ports, port_at)
    if whole.kind in ONE_ADDRESS and (low is None or low != high):
        whole.fail(ends, column, "one address, that of the interface")
    if low is None and chosen_ports is None:
        whole.fail(word, column, "an address, or ports behind a colon")
    return Range(low, high, chosen_ports, **given)


def _halves(whole: _Text, ends: str, column: int) -> tuple[str, int, str | None, int]:
    """Addresses and ports, each with its column. Where there is more than one colon, and no bracket, it is an IPv6 address."""
    if ends.startswith("["):
        inside, bracket, rest = ends[1:].partition("]")
        if not bracket or not inside or (rest and not rest.startswith(":")):
            whole.fail(ends, column, "[A-B]:p-q")
        if ":" not in inside:
            whole.fail(inside, column + 1, "an IPv6 address in brackets")
        return inside, column + 1, rest[1:] if rest else None, column + len(inside) + 3
    if ends.count(":") > 1:
        return ends, column, None, 0
    addresses, colon, ports = ends.partition(":")
    return addresses, column, ports if colon else None, column + len(addresses) + 1


def _addresses(whole: _Text, text: str, column: int) -> tuple[Address, Address]:
    low, dash, high = text.partition("-")
    first = _address(whole, low, column)
    last = _address(whole, high, column + len(low) + 1) if dash else first
    if first.version != last.version or int(first) > int(last):
        whole.fail(text, column, "two addresses of one family, the lower one first")
    return first, last


def _address(whole: _Text, word: str, column: int) -> Address:
    try:
        found = ip_address(word)
    except ValueError:
        hint = "an address, as in 192.0.2.1 or 2001:db8::1; IPv6 with ports is [A-B]:p-q"
        whole.fail(word, column, hint)
    if isinstance(found, IPv6Address) and found.scope_id is not None:
        whole.fail(word, column, "an address without a zone")
    return found


def _value_text(value: int | Network | Ports) -> str:
    if isinstance(value, tuple):
        return str(value[0]) if value[0] == value[1] else f"{value[0]}-{value[1]}"
    if isinstance(value, IPv4Network | IPv6Network):
        return str(value.network_address) if value.prefixlen == value.max_prefixlen else str(value)
    return PROTO_NAMES.get(value, str(value))
