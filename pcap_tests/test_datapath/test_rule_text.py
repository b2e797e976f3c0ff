"""NAT rules and helpers as text."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctcore.errors import ConfigError
from ctcore.nat_rules import HELPERS, KINDS, HelperRule, Match, NatRule, Range
from datapath.rule_text import ONE_ADDRESS, helper_text, parse_helper, parse_rule, range_text, rule_text


def one(text: str) -> Any:
    return ip_address(text)


# Text, and what is to be found in it.
RANGES = [
    ("192.0.2.1", Range(one("192.0.2.1"), one("192.0.2.1"))),
    ("192.0.2.1-192.0.2.9", Range(one("192.0.2.1"), one("192.0.2.9"))),
    ("192.0.2.1:80", Range(one("192.0.2.1"), one("192.0.2.1"), (80, 80))),
    ("192.0.2.1-192.0.2.9:1024-65535,random", Range(one("192.0.2.1"), one("192.0.2.9"), (1024, 65535), random=True)),
    ("192.0.2.1,fully-random,persistent", Range(one("192.0.2.1"), one("192.0.2.1"), fully_random=True, persistent=True)),
    ("2001:db8::1", Range(one("2001:db8::1"), one("2001:db8::1"))),
    ("2001:db8::1-2001:db8::9,persistent", Range(one("2001:db8::1"), one("2001:db8::9"), persistent=True)),
    ("[2001:db8::1]:80", Range(one("2001:db8::1"), one("2001:db8::1"), (80, 80))),
    ("[2001:db8::1-2001:db8::9]:1-2", Range(one("2001:db8::1"), one("2001:db8::9"), (1, 2))),
    ("::", Range(one("::"), one("::"))),
    (":5000-6000", Range(None, None, (5000, 6000))),
]


@pytest.mark.parametrize(("text", "expected"), RANGES)
def test_a_range_is_read_and_written(text, expected):
    assert parse_rule("snat", text) == NatRule("snat", expected, text=text)
    assert range_text(expected) == text


def test_an_ipv6_address_in_brackets_needs_no_ports():
    assert parse_rule("dnat", "[2001:db8::1]").range == parse_rule("dnat", "2001:db8::1").range


def test_a_match_takes_its_words_in_any_order():
    rule = parse_rule("dnat", "dst_port 80-81  dst_ip 198.51.100.1 ip_proto tcp src_ip 10.0.0.0/8 src_port 5 => 10.0.0.2:8080")
    assert rule.match == Match(6, ip_network("10.0.0.0/8"), ip_network("198.51.100.1/32"), (5, 5), (80, 81))
    assert rule_text(rule) == "ip_proto tcp src_ip 10.0.0.0/8 dst_ip 198.51.100.1 src_port 5 dst_port 80-81 => 10.0.0.2:8080"


def test_protocols_without_a_name_go_by_their_number():
    rule = parse_rule("masquerade", "ip_proto 253 => 192.0.2.1")
    assert rule.match.proto == 253
    assert rule_text(rule) == "ip_proto 253 => 192.0.2.1"


# Kind, text, column and word that are wrong, and a piece of what was expected.
WRONG = [
    ("snat", "", 1, "", "one range"),
    ("snat", "   ", 4, "", "one range"),
    ("snat", "192.0.2.1 192.0.2.2", 11, "192.0.2.2", "one range"),
    ("snat", "192.0.2.300", 1, "192.0.2.300", "an address"),
    ("snat", "192.0.2.1-x", 11, "x", "an address"),
    ("snat", "192.0.2.9-192.0.2.1", 1, "192.0.2.9-192.0.2.1", "lower one first"),
    ("snat", "192.0.2.1-2001:db8::1", 1, "192.0.2.1-2001:db8::1", "one family"),
    ("snat", "192.0.2.1:", 11, "", "a port"),
    ("snat", "192.0.2.1:65536", 11, "65536", "a port"),
    ("snat", "192.0.2.1:80-99999", 14, "99999", "a port"),
    ("snat", "192.0.2.1:9-8", 11, "9-8", "lower port first"),
    ("snat", "192.0.2.1:\u0661", 11, "\u0661", "a port"),
    ("snat", "192.0.2.1,", 11, "", "random"),
    ("snat", "192.0.2.1,random,random", 18, "random", "each once"),
    ("snat", "192.0.2.1,rnd", 11, "rnd", "random"),
    ("snat", ",random", 1, ",random", "an address, or ports"),
    ("snat", "[2001:db8::1", 1, "[2001:db8::1", "[A-B]:p-q"),
    ("snat", "[2001:db8::1]80", 1, "[2001:db8::1]80", "[A-B]:p-q"),
    ("snat", "[2001:db8::1]:x", 15, "x", "a port"),
    ("snat", "[192.0.2.1]:80", 2, "192.0.2.1", "an IPv6 address"),
    ("snat", "fe80::1%eth0", 1, "fe80::1%eth0", "without a zone"),
    ("snat", "ip_proto tcp", 13, "", "=>"),
    ("snat", "=> 192.0.2.1", 1, "=>", "a match before it"),
    ("snat", "ip_proto tcp => => 192.0.2.1", 17, "=>", "one =>"),
    ("snat", "ip_proto tcp =>", 16, "", "one range"),
    ("snat", "ip_proto tcpp => 192.0.2.1", 10, "tcpp", "a protocol"),
    ("snat", "ip_proto 256 => 192.0.2.1", 10, "256", "a protocol"),
    ("snat", "port 80 => 192.0.2.1", 1, "port", "ip_proto, src_ip"),
    ("snat", "ip_proto => 192.0.2.1", 1, "ip_proto", "a value"),
    ("snat", "ip_proto tcp ip_proto udp => 192.0.2.1", 14, "ip_proto", "once"),
    ("snat", "src_ip 10.0.0.1/8 => 192.0.2.1", 8, "10.0.0.1/8", "without host bits, as in 10.0.0.0/8"),
    ("snat", "src_ip 10.0.0.0/255.0.0.0 => 192.0.2.1", 8, "10.0.0.0/255.0.0.0", "a network"),
    ("snat", "src_ip 10.0.0.0/33 => 192.0.2.1", 8, "10.0.0.0/33", "a network"),
    ("snat", "src_ip 10.0.0.0/8 dst_ip 2001:db8::/32 => :80", 26, "2001:db8::/32", "an IPv4 network"),
    ("snat", "src_ip 2001:db8::/32 => 192.0.2.1", 25, "192.0.2.1", "an IPv6 address"),
    ("snat", "dst_port 80 => 192.0.2.1", 1, "dst_port", "ip_proto tcp"),
    ("dnat", "ip_proto icmp src_port 80 => 192.0.2.1", 15, "src_port", "ip_proto tcp"),
    ("masquerade", "192.0.2.1-192.0.2.2", 1, "192.0.2.1-192.0.2.2", "one address"),
    ("redirect", ":8080", 1, ":8080", "one address"),
]


@pytest.mark.parametrize(("kind", "text", "column", "word", "expected"), WRONG)
def test_an_error_is_one_line_with_text_place_and_expectation(kind, text, column, word, expected):
    with pytest.raises(ConfigError) as caught:
        parse_rule(kind, text)
    line = str(caught.value)
    assert line.startswith(f"{kind} '{text}': column {column}, '{word}': expected ")
    assert expected in line
    assert text[column - 1 :].startswith(word)


def test_a_helper_is_read_and_written():
    assert parse_helper("ftp:tcp:21") == HelperRule("ftp", 6, 21)
    assert helper_text(HelperRule("tftp", 17, 69)) == "tftp:udp:69"


@pytest.mark.parametrize(
    ("text", "column", "word", "expected"),
    [
        ("ftp", 1, "ftp", "NAME:PROTO:PORT"),
        ("ftp:tcp:21:22", 1, "ftp:tcp:21:22", "NAME:PROTO:PORT"),
        ("http:tcp:80", 1, "http", "ftp, tftp"),
        ("ftp:sctp:21", 5, "sctp", "tcp or udp"),
        ("ftp:tcp:0", 9, "0", "a port from 1"),
        ("ftp:tcp:65536", 9, "65536", "a port from 1"),
    ],
)
def test_a_wrong_helper_says_where(text, column, word, expected):
    with pytest.raises(ConfigError, match=f"column {column}, '{word}': expected .*{expected}"):
        parse_helper(text)


# --- properties ------------------------------------------------------------------------------------------------------------------------

ports = st.tuples(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF)).map(lambda pair: (min(pair), max(pair)))
MAYBE_PORTS = st.none() | ports


@st.composite
def rules(draw: Any) -> NatRule:
    kind = draw(st.sampled_from(KINDS))
    address, bits = draw(st.sampled_from([(IPv4Address, 32), (IPv6Address, 128)]))
    numbers = st.integers(0, (1 << bits) - 1)
    low, high = sorted((draw(numbers), draw(numbers)))
    low = high if kind in ONE_ADDRESS or draw(st.booleans()) else low
    given_ports = draw(MAYBE_PORTS)
    kept = kind not in ONE_ADDRESS and given_ports is not None and draw(st.booleans())
    ends = (None, None) if kept else (address(low), address(high))
    flags = draw(st.fixed_dictionaries({name: st.booleans() for name in ("random", "fully_random", "persistent")}))
    networks = st.none() | st.tuples(numbers, st.integers(0, bits)).map(lambda pair: ip_network((address(pair[0]), pair[1]), strict=False))
    proto = draw(st.none() | st.integers(0, 255))
    matched = (draw(MAYBE_PORTS), draw(MAYBE_PORTS)) if proto in (6, 17, 132, 136) else (None, None)
    return NatRule(kind, Range(*ends, given_ports, **flags), Match(proto, draw(networks), draw(networks), *matched))


@given(rules())
def test_the_text_of_a_rule_is_that_rule(rule):
    text = rule_text(rule)
    assert parse_rule(rule.kind, text) == replace(rule, text=text)


@given(st.builds(HelperRule, st.sampled_from(HELPERS), st.sampled_from((6, 17)), st.integers(1, 0xFFFF)))
def test_the_text_of_a_helper_is_that_helper(rule):
    assert parse_helper(helper_text(rule)) == rule


PIECES = st.sampled_from(
    [
        "ip_proto",
        "src_ip",
        "dst_port",
        "tcp",
        "=>",
        "192.0.2.1",
        "-",
        ":",
        ",",
        "[",
        "]",
        "::",
        "80",
        "65536",
        "random",
        "/",
        "%",
        " ",
        "\t",
        "\0",
        "٣",
    ]
)


@given(st.sampled_from(KINDS), st.text(max_size=30) | st.lists(PIECES, max_size=12).map("".join))
def test_any_text_is_a_rule_or_one_error(kind, text):
    """Whatever is typed gives a rule that can be written again, or a ConfigError whose column lies in the text; never another exception."""
    try:
        rule = parse_rule(kind, text)
    except ConfigError as error:
        column = int(str(error).removeprefix(f"{kind} '{text}': column ").split(",")[0])
        assert 1 <= column <= len(text) + 1
    else:
        assert replace(parse_rule(kind, rule_text(rule)), text=text) == rule


@given(st.text(max_size=20))
def test_any_text_is_a_helper_or_one_error(text):
    try:
        rule = parse_helper(text)
    except ConfigError:
        return
    assert parse_helper(helper_text(rule)) == rule
