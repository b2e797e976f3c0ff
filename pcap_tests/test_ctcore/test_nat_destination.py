"""DNAT and redirect, both kinds on one connection, and what null bindings do for connections that no rule is for.

Not here: sources (test_nat_source), the numbers that hashes and searches lead to (test_nat_choice), ICMP errors (test_nat_icmp).
"""

from __future__ import annotations

import pytest

from ctcore.errors import ConfigError
from datapath import craft
from pcap_tests.router import ANY, Router, dnat, masquerade, redirect, snat

DONE = {"src-nat-done", "dst-nat-done"}
NAT = {"src-nat", "dst-nat"}
PUBLIC, INSIDE = "203.0.113.9", "10.0.0.7"


def router(make_tracker, *rules, **settings) -> Router:
    return Router(make_tracker(nat=rules, **settings))


# --- every protocol --------------------------------------------------------------------------------------------------------------------


def test_tcp_to_another_host_and_port(make_tracker):
    conn = router(make_tracker, dnat(INSIDE, ports=8080, proto=craft.TCP, dport=80)).tcp("198.51.100.7:40000 > 203.0.113.9:80")
    conn.orig("S").leaves("198.51.100.7:40000 > 10.0.0.7:8080").is_("new", has={"dst-nat", *DONE}, lacks={"src-nat"})
    conn.reply("SA").leaves("203.0.113.9:80 > 198.51.100.7:40000").is_("established", dir="reply")
    conn.orig("A").leaves("198.51.100.7:40000 > 10.0.0.7:8080")


def test_without_ports_the_port_stays(make_tracker):
    net = router(make_tracker, dnat(INSIDE))
    net.udp("198.51.100.7:40000 > 203.0.113.9:53").orig().leaves("198.51.100.7:40000 > 10.0.0.7:53")
    net.udp("198.51.100.7:40000 > 203.0.113.8:53").orig().is_("new", has={"src-nat", "dst-nat"})


def test_ipv6(make_tracker):
    conn = router(make_tracker, dnat("2001:db8:1::7", ports=8080)).tcp("[2001:db8:9::1]:40000 > [2001:db8:2::7]:80")
    conn.orig("S").leaves("[2001:db8:9::1]:40000 > [2001:db8:1::7]:8080")
    conn.reply("SA").leaves("[2001:db8:2::7]:80 > [2001:db8:9::1]:40000")


def test_ping(make_tracker):
    ping = router(make_tracker, dnat(INSIDE)).ping("198.51.100.7 > 203.0.113.9")
    ping.orig().leaves("198.51.100.7 > 10.0.0.7 id 7")
    ping.reply().leaves("203.0.113.9 > 198.51.100.7 id 7")


def test_pings_that_meet_get_the_lowest_free_id(make_tracker):
    """An id can change with the destination as well; a destination's search begins at the bottom."""
    net = router(make_tracker, dnat(INSIDE))
    net.ping("198.51.100.7 > 203.0.113.9").orig().leaves("198.51.100.7 > 10.0.0.7 id 7")
    for host, ident in ((8, 0), (10, 1), (11, 2)):
        ping = net.ping(f"198.51.100.7 > 203.0.113.{host}")
        ping.orig().leaves(f"198.51.100.7 > 10.0.0.7 id {ident}").is_("new", has={"dst-nat"}, lacks={"src-nat"})
        ping.reply().leaves(f"203.0.113.{host} > 198.51.100.7 id 7")


@pytest.mark.parametrize("make", [Router.generic, Router.gre])
def test_without_ports_the_address_alone(make_tracker, make):
    net = router(make_tracker, dnat(INSIDE))
    talk = make(net, "198.51.100.7 > 203.0.113.9")
    talk.orig().leaves("198.51.100.7 > 10.0.0.7")
    talk.reply().leaves("203.0.113.9 > 198.51.100.7")
    make(net, "198.51.100.7 > 203.0.113.8").orig().dropped("nat_exhausted")
    assert net.pool() == (1, 1, 1)


def test_gre_of_an_unknown_version_is_dropped(make_tracker):
    net = router(make_tracker, dnat(INSIDE))
    net.gre("198.51.100.7 > 203.0.113.9", version=2).orig().dropped("nat_gre").is_("not-seen", conn=None)
    assert net.tracker.count == 0


# --- which destination -----------------------------------------------------------------------------------------------------------------


def test_redirect(make_tracker):
    conn = router(make_tracker, redirect("10.0.0.254", ports=3128, proto=craft.TCP, dport=80)).tcp("10.0.0.1:40000 > 198.51.100.7:80")
    conn.orig("S").leaves("10.0.0.1:40000 > 10.0.0.254:3128")
    conn.reply("SA").leaves("198.51.100.7:80 > 10.0.0.1:40000")
    with pytest.raises(ConfigError, match="expected one address"):
        redirect(ANY, ports=3128)


def test_a_port_within_the_range_is_kept(make_tracker):
    net = router(make_tracker, dnat(INSIDE, ports=(8000, 8009)))
    net.udp("198.51.100.7:1 > 203.0.113.9:8005").orig().leaves("198.51.100.7:1 > 10.0.0.7:8005")
    net.udp("198.51.100.7:1 > 203.0.113.9:53").orig().leaves("198.51.100.7:1 > 10.0.0.7:8000")
    net.udp("198.51.100.7:1 > 203.0.113.9:54").orig().leaves("198.51.100.7:1 > 10.0.0.7:8001")
    net.udp("198.51.100.8:1 > 203.0.113.9:54").orig().leaves("198.51.100.8:1 > 10.0.0.7:8000")


def test_a_range_that_is_exhausted_changes_the_source_port(make_tracker):
    """The destination's search ends in vain, on its last port; then a null binding saves the connection by another source port."""
    net = router(make_tracker, dnat(INSIDE, ports=(8000, 8001)))
    for port in (53, 54):
        net.udp(f"198.51.100.7:4000 > 203.0.113.9:{port}").orig()
    third = net.udp("198.51.100.7:4000 > 203.0.113.9:55")
    left = third.orig().is_("new", has={"src-nat", "dst-nat"}).left
    assert (left.dport, left.sport != 4000, left.sport >= 1024) == (8001, True, True)
    third.reply().leaves("203.0.113.9:55 > 198.51.100.7:4000")


def test_load_balancing(make_tracker):
    """Clients are spread over the servers; each of them finds its own again, whatever port it comes from."""
    net = router(make_tracker, dnat("10.0.0.1-10.0.0.4", dst="203.0.113.9/32"))
    chosen = {}
    for i in range(1, 65):
        for port in (1000, 2000):
            talk = net.udp(f"198.51.100.{i}:{port} > 203.0.113.9:80")
            chosen.setdefault(i, set()).add(talk.orig().left.dst)
            talk.reply().leaves(f"203.0.113.9:80 > 198.51.100.{i}:{port}")
    assert all(len(servers) == 1 for servers in chosen.values())
    assert {servers.pop()[3] for servers in chosen.values()} == {1, 2, 3, 4}


def test_packets_to_a_new_destination_belong_to_others(make_tracker):
    """The server's own connections to the client are none of this one's business."""
    net = router(make_tracker, dnat(INSIDE, ports=8080, dst="203.0.113.9/32"))
    net.udp("198.51.100.7:4000 > 203.0.113.9:53").orig()
    net.udp("10.0.0.7:8081 > 198.51.100.7:4000").orig().unchanged().is_("new", conn=1)
    net.udp("10.0.0.7:8080 > 198.51.100.7:4000").orig().leaves("203.0.113.9:53 > 198.51.100.7:4000").is_("established", conn=0, dir="reply")


# --- both kinds ------------------------------------------------------------------------------------------------------------------------


def test_both_on_one_connection(make_tracker):
    net = router(make_tracker, snat("10.0.0.254", dst="10.0.0.0/24"), dnat(INSIDE, ports=8080, dst="203.0.113.9/32"))
    conn = net.tcp("198.51.100.7:40000 > 203.0.113.9:80")
    conn.orig("S").leaves("10.0.0.254:40000 > 10.0.0.7:8080").is_("new", has={*NAT, *DONE})
    conn.reply("SA").leaves("203.0.113.9:80 > 198.51.100.7:40000")
    assert [row[4:] for row in net.tracker.nat_pools()] == [(1, 1, 0), (1, 1, 0)]


def test_both_on_one_ping(make_tracker):
    net = router(make_tracker, snat("10.0.0.254", ports=(100, 101)), dnat(INSIDE))
    for host in (1, 2):
        ping = net.ping(f"198.51.100.{host} > 203.0.113.9")
        assert ping.orig().left.sport in (100, 101)
        ping.reply().leaves(f"203.0.113.9 > 198.51.100.{host} id 7")


def test_hairpin(make_tracker):
    """A neighbour speaks to a neighbour by the public address, and neither notices."""
    net = router(make_tracker, dnat(INSIDE, dst="203.0.113.9/32"), masquerade("10.0.0.254", src="10.0.0.0/24"))
    conn = net.tcp("10.0.0.1:40000 > 203.0.113.9:80")
    conn.orig("S").leaves("10.0.0.254:40000 > 10.0.0.7:80")
    conn.reply("SA").leaves("203.0.113.9:80 > 10.0.0.1:40000")


def test_hairpin_to_oneself(make_tracker):
    net = router(make_tracker, dnat(INSIDE, dst="203.0.113.9/32"), masquerade("10.0.0.254", src="10.0.0.0/24"))
    talk = net.udp("10.0.0.7:53 > 203.0.113.9:53")
    talk.orig().leaves("10.0.0.254:53 > 10.0.0.7:53")
    talk.reply().leaves("203.0.113.9:53 > 10.0.0.7:53")


def test_hairpin_without_a_source_of_its_own(make_tracker):
    """The server gets packets from itself, from its own port: question and answer look the same, and the answer's tuple is the one that is found."""
    net = router(make_tracker, dnat(INSIDE, dst="203.0.113.9/32"))
    talk = net.udp("10.0.0.7:53 > 203.0.113.9:53")
    talk.orig().leaves("10.0.0.7:53 > 10.0.0.7:53").is_("new", conn=0)
    talk.reply().leaves("203.0.113.9:53 > 10.0.0.7:53").is_("established", dir="reply", conn=0)


def test_floating_address(make_tracker):
    """One public address stands for one host, whoever speaks first."""
    net = router(make_tracker, dnat(INSIDE, dst="203.0.113.9/32"), snat(PUBLIC, src="10.0.0.7/32"))
    outward = net.tcp("10.0.0.7:40000 > 198.51.100.7:80")
    outward.orig("S").leaves("203.0.113.9:40000 > 198.51.100.7:80").is_("new", has={"src-nat"}, lacks={"dst-nat"})
    outward.reply("SA").leaves("198.51.100.7:80 > 10.0.0.7:40000")
    inward = net.tcp("198.51.100.8:40000 > 203.0.113.9:80")
    inward.orig("S").leaves("198.51.100.8:40000 > 10.0.0.7:80").is_("new", has={"dst-nat"}, lacks={"src-nat"})
    inward.reply("SA").leaves("203.0.113.9:80 > 198.51.100.8:40000")
    net.udp("10.0.0.8:40000 > 198.51.100.7:80").orig().unchanged()
    ping = net.ping("198.51.100.7 > 203.0.113.9")
    ping.orig().leaves("198.51.100.7 > 10.0.0.7 id 7")
    ping.reply().leaves("203.0.113.9 > 198.51.100.7 id 7")


# --- null bindings ---------------------------------------------------------------------------------------------------------------------


def test_null_bindings_leave_everything_as_it_is(make_tracker):
    net = router(make_tracker, dnat(INSIDE, dst="203.0.113.9/32"))
    conn = net.tcp("10.0.0.1:40000 > 198.51.100.7:80")
    conn.orig("S").unchanged().is_("new", has=DONE, lacks=NAT)
    conn.reply("SA").unchanged()
    assert net.pool() == (0, 0, 0)


@pytest.mark.parametrize(("port", "low", "high"), [(300, 1, 511), (1000, 600, 1023), (40000, 1024, 65535)])
def test_a_connection_no_rule_is_for_gives_way(make_tracker, port, low, high):
    """The client has come by the public address already; the same client, directly, would get the other connection's answers."""
    net = router(make_tracker, dnat(INSIDE, dst="203.0.113.9/32"))
    net.udp(f"198.51.100.7:{port} > 203.0.113.9:53").orig().leaves(f"198.51.100.7:{port} > 10.0.0.7:53")
    direct = net.udp(f"198.51.100.7:{port} > 10.0.0.7:53")
    seen = direct.orig().is_("new", conn=1, has={"src-nat", *DONE}, lacks={"dst-nat"})
    assert seen.left.src == seen.key.src and low <= seen.left.sport <= high and seen.left.sport != port
    direct.reply().leaves(f"10.0.0.7:53 > 198.51.100.7:{port}").is_("established", conn=1)
    assert net.pool() == (1, 1, 0)


def test_the_other_way_round_the_translated_one_gives_way(make_tracker):
    net = router(make_tracker, dnat(INSIDE, dst="203.0.113.9/32"))
    net.udp("198.51.100.7:4000 > 10.0.0.7:53").orig().unchanged()
    talk = net.udp("198.51.100.7:4000 > 203.0.113.9:53")
    assert talk.orig().is_("new", has=NAT).left.sport != 4000
    talk.reply().leaves("203.0.113.9:53 > 198.51.100.7:4000")


def test_zones_do_not_clash(make_tracker):
    net = router(make_tracker, dnat(INSIDE, dst="203.0.113.9/32"))
    net.udp("198.51.100.7:4000 > 203.0.113.9:53", zone=1).orig().leaves("198.51.100.7:4000 > 10.0.0.7:53")
    net.udp("198.51.100.7:4000 > 10.0.0.7:53", zone=2).orig().unchanged().is_("new", has=DONE, lacks=NAT)


def test_a_reopened_connection_is_translated_anew(make_tracker):
    """A SYN replaces the closed entry: the new one is chosen for like any other."""
    conn = router(make_tracker, dnat("10.0.0.1-10.0.0.4")).tcp("198.51.100.7:40000 > 203.0.113.9:80").establish().close()
    before = conn.left
    conn.orig("S", seq=1 << 20).is_("new", reason="tcp_reopened", conn=1, has={"dst-nat"})
    assert conn.left == before
    assert conn.scene.pool() == (1, 1, 0)
