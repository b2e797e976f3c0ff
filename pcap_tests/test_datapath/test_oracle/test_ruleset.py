"""Rules as values, and what the kernel makes of their nftables: it translates as they say, on a bridge, and hands every packet on.

Not here: whether our engine translates in the same way (pcap_tests/test_kernel/test_nat.py).
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from ctcore.config import Config
from ctcore.nat_rules import HelperRule, Match, NatRule, Range
from ctcore.types import Status
from datapath import craft
from datapath.fields import status_names
from datapath.oracle.oracle import Oracle
from datapath.oracle.ruleset import interface_of, matches

UDP = 17
A, B, NEW, OTHER = ("10.0.0.1", "2001:db8::1"), ("10.0.0.2", "2001:db8::2"), ("192.0.2.1", "2001:db8:9::1"), ("192.0.2.2", "2001:db8:9::2")
FAMILIES = pytest.mark.parametrize("v", [0, 1], ids=["ipv4", "ipv6"])


def rule(kind: str, address: str, high: str = "", ports: tuple[int, int] | None = None, **match: object) -> NatRule:
    low = ip_address(address)
    return NatRule(kind, Range(low, ip_address(high) if high else low, ports), Match(**match))


def leaves(oracle: Oracle, frame: bytes) -> list[bytes]:
    """The IP packets that leave after a frame of craft's has arrived."""
    packet = frame[14:]
    return [came[14:] for came in oracle.show(packet[0] >> 4, packet).came]


@FAMILIES
@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (lambda v: [rule("snat", NEW[v])], lambda v: (NEW[v], B[v], 1000, 53)),
        (lambda v: [rule("snat", NEW[v], ports=(7000, 7000))], lambda v: (NEW[v], B[v], 7000, 53)),
        (lambda v: [rule("dnat", NEW[v])], lambda v: (A[v], NEW[v], 1000, 53)),
        (lambda v: [rule("dnat", NEW[v], ports=(5353, 5353))], lambda v: (A[v], NEW[v], 1000, 5353)),
        (lambda v: [rule("masquerade", NEW[v], ports=(7000, 7000))], lambda v: (NEW[v], B[v], 7000, 53)),
        (lambda v: [replace(rule("redirect", NEW[v]), range=Range(ip_address(NEW[v]), ip_address(NEW[v]), (5353, 5353), random=True))],
         lambda v: (A[v], NEW[v], 1000, 5353)),
        (lambda v: [rule("masquerade", NEW[v])], lambda v: (NEW[v], B[v], 1000, 53)),
        (lambda v: [rule("redirect", NEW[v], ports=(5353, 5353))], lambda v: (A[v], NEW[v], 1000, 5353)),
        (lambda v: [rule("masquerade", NEW[v]), rule("redirect", OTHER[v])], lambda v: (NEW[v], OTHER[v], 1000, 53)),
        (lambda v: [rule("snat", NEW[v], dport=(54, 99)), rule("snat", OTHER[v], dport=(50, 53))], lambda v: (OTHER[v], B[v], 1000, 53)),
        (lambda v: [rule("snat", NEW[v], proto=6), rule("snat", OTHER[v], proto=UDP)], lambda v: (OTHER[v], B[v], 1000, 53)),
        (
            lambda v: [rule("snat", NEW[v], src=ip_network(B[v])), rule("snat", OTHER[v], src=ip_network(("10.0.0.0/30", "2001:db8::/126")[v]))],
            lambda v: (OTHER[v], B[v], 1000, 53),
        ),
        # A source rule sees the destination that has been put in.
        (lambda v: [rule("dnat", NEW[v]), rule("snat", OTHER[v], dst=ip_network(NEW[v]))], lambda v: (OTHER[v], NEW[v], 1000, 53)),
        (lambda v: [NatRule("snat", Range(ports=(7000, 7000)))], lambda v: (A[v], B[v], 7000, 53)),
    ],
)  # fmt: skip
def test_a_packet_and_its_answer(running_kernel: None, v: int, rules, expected) -> None:
    src, dst, sport, dport = expected(v)
    with Oracle(Config(nat=tuple(rules(v)))) as oracle:
        assert leaves(oracle, craft.udp(A[v], B[v], 1000, 53, b"question", ttl=2)) == [craft.udp(src, dst, sport, dport, b"question", ttl=2)[14:]]
        assert leaves(oracle, craft.udp(dst, src, dport, sport, b"answer")) == [craft.udp(B[v], A[v], 53, 1000, b"answer")[14:]]


def test_without_rules_nothing_is_translated_and_no_bit_is_set(running_kernel: None) -> None:
    with Oracle(Config()) as oracle:
        sighting = oracle.show(4, craft.udp(A[0], B[0], 1, 2)[14:])
        assert oracle.layout.status_of(sighting.final) == Status.CONFIRMED


def test_with_any_rule_all_connections_are_bound(running_kernel: None) -> None:
    with Oracle(Config(nat=(rule("snat", NEW[0], proto=6),))) as oracle:
        for v in (0, 1):
            sighting = oracle.show((4, 6)[v], craft.udp(A[v], B[v], 1, 2)[14:])
            assert status_names(oracle.layout.status_of(sighting.final)) == ("confirmed", "snat-done", "dnat-done")


def test_a_helper_is_assigned_to_its_port_only(running_kernel: None) -> None:
    helpers = (
        HelperRule("ftp", 6, 21),
        HelperRule("tftp", UDP, 69),
        HelperRule("sip", UDP, 5060),
        HelperRule("irc", 6, 6667),
        HelperRule("pptp", 6, 1723),
    )
    with Oracle(Config(helpers=helpers)) as oracle:
        for v in (0, 1):
            for proto, port in ((6, 21), (6, 22), (UDP, 69), (UDP, 21)):
                frame = craft.tcp(A[v], B[v], 1000, port, "S") if proto == 6 else craft.udp(A[v], B[v], 1000, port)
                status = oracle.layout.status_of(oracle.show((4, 6)[v], frame[14:]).final) or 0
                assert bool(status & Status.HELPER) == any((helper.proto, helper.port) == (proto, port) for helper in helpers)


def test_ports_are_only_asked_of_protocols_that_have_some() -> None:
    assert len(list(matches(Match(dport=(80, 80)), None))) == 4
    assert list(matches(Match(proto=1, sport=(1, 2)), None)) == []
    assert list(matches(Match(), None)) == [[]]


def test_a_device_has_one_address_of_each_family() -> None:
    rules = (rule("snat", OTHER[0]), rule("redirect", NEW[0]), rule("masquerade", OTHER[0]), rule("masquerade", NEW[1]))
    assert interface_of(rules) == {4: ip_address(NEW[0]), 6: ip_address(NEW[1])}
