"""What can be seen of how much of a NAT rule's range is in use.

Not here: which tuple a connection gets (test_nat_source, test_nat_destination).
"""

from __future__ import annotations

import pytest

from ctcore.config import Config
from ctcore.errors import ConfigError
from datapath import craft
from pcap_tests.router import ANY, Router, dnat, masquerade, rule, snat


def router(make_tracker, *rules, **settings) -> Router:
    return Router(make_tracker(nat=rules, **settings))


def test_what_is_known_of_a_pool(make_tracker):
    net = router(make_tracker, snat("192.0.2.1-192.0.2.4", ports=(1000, 1999), proto=craft.UDP), dnat("10.0.0.9-10.0.0.10", dport=80))
    rows = net.tracker.nat_pools()
    assert [row[:4] for row in rows] == [(0, "snat", "", 4000), (1, "dnat", "", 2)]
    net.udp("10.0.0.1:40000 > 198.51.100.7:80").orig()
    net.wait(10)
    net.udp("10.0.0.1:40000 > 198.51.100.7:81").orig()
    assert [row[4:] for row in net.tracker.nat_pools()] == [(2, 2, 0), (1, 1, 0)]
    net.wait(20)
    net.tracker.expire(net.now)
    assert [row[4:] for row in net.tracker.nat_pools()] == [(1, 2, 0), (0, 1, 0)]
    net.tracker.flush()
    assert [row[4:] for row in net.tracker.nat_pools()] == [(0, 2, 0), (0, 1, 0)]


@pytest.mark.parametrize(
    ("made", "size"),
    [
        (snat("192.0.2.1"), 64512),
        (snat("192.0.2.1-192.0.2.2"), 129024),
        (snat(ANY, ports=(1, 10)), 10),
        (rule("redirect", "192.0.2.1", ports=8080), 1),
        (dnat("2001:db8::-2001:db8::ffff"), 65536),
        (masquerade("192.0.2.1", ports=(1024, 2047)), 1024),
    ],
)
def test_sizes(made, size):
    assert made.size == size


def test_the_drop_is_held_against_the_source_rule(make_tracker):
    net = router(make_tracker, dnat("198.51.100.7", dst="203.0.113.9/32"), snat("192.0.2.1", ports=5000))
    net.udp("10.0.0.1:40000 > 198.51.100.7:53").orig()
    net.udp("10.0.0.2:40000 > 203.0.113.9:53").orig().dropped("nat_exhausted")
    assert [row.exhausted for row in net.tracker.nat_pools()] == [0, 1]


def test_whoever_gives_way_leaves_the_pool(make_tracker):
    net = router(make_tracker, snat("192.0.2.1", ports=5000))
    net.tcp("10.0.0.1:40000 > 198.51.100.7:80").establish().close()
    net.tcp("10.0.0.2:40000 > 198.51.100.7:80", isn=(1000, 500)).orig("S").is_("new")
    assert net.pool() == (1, 1, 0)


def test_null_bindings_that_find_nothing_are_counted_by_no_rule(make_tracker):
    """Two ways lead to one server; without ports there is nothing to give way with."""
    net = router(make_tracker, dnat("10.0.0.7", dst="203.0.113.9/32"))
    net.generic("198.51.100.7 > 203.0.113.9").orig()
    net.generic("198.51.100.7 > 10.0.0.7").orig().dropped("nat_exhausted")
    assert (net.pool(), net.tracker.counters()["nat_exhausted"]) == ((1, 1, 0), 1)


def test_more_rules_than_a_connection_can_name_are_refused():
    """The last one that can be is taken; one more would be remembered as none at all."""
    assert len(Config(nat=(snat("192.0.2.1"),) * 65535).nat) == 65535
    with pytest.raises(ConfigError, match=r"^nat: rules: 65536: expected 0 to 65535$"):
        Config(nat=(snat("192.0.2.1"),) * 65536)
