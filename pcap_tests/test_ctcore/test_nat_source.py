"""SNAT and masquerade: which source a connection gets, packet by packet, for every protocol.

Not here: the numbers that hashes and searches lead to (test_nat_choice), destinations (test_nat_destination), ICMP errors (test_nat_icmp).
"""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from ctcore.errors import ConfigError
from ctcore.types import Dir
from datapath import craft
from pcap_tests.router import ANY, Router, dnat, masquerade, snat
from pcap_tests.scene import events

DONE = {"src-nat-done", "dst-nat-done"}
NAT = {"src-nat", "dst-nat"}
SERVER = "198.51.100.7"
PUBLIC = "192.0.2.1"


def router(make_tracker, *rules, **settings) -> Router:
    return Router(make_tracker(nat=rules, **settings))


# --- every protocol --------------------------------------------------------------------------------------------------------------------


def test_udp_there_and_back(make_tracker):
    talk = router(make_tracker, snat(PUBLIC)).udp("10.0.0.1:40000 > 198.51.100.7:53")
    talk.orig().leaves("192.0.2.1:40000 > 198.51.100.7:53").is_("new", has={"src-nat", *DONE}, lacks={"dst-nat"})
    talk.reply().leaves("198.51.100.7:53 > 10.0.0.1:40000").is_("established", dir="reply", conn=0)
    talk.orig().leaves("192.0.2.1:40000 > 198.51.100.7:53").is_("established", conn=0)


def test_tcp_through_its_whole_life(make_tracker):
    conn = router(make_tracker, snat(PUBLIC)).tcp("10.0.0.1:40000 > 198.51.100.7:80").establish()
    conn.orig("PA", payload=b"GET /").leaves("192.0.2.1:40000 > 198.51.100.7:80")
    conn.reply("PA", payload=b"200 OK").leaves("198.51.100.7:80 > 10.0.0.1:40000")
    conn.close()
    conn.reply("A").leaves("198.51.100.7:80 > 10.0.0.1:40000")


def test_ipv6(make_tracker):
    conn = router(make_tracker, snat("2001:db8:9::1")).tcp("[2001:db8:1::1]:40000 > [2001:db8:2::7]:80")
    conn.orig("S").leaves("[2001:db8:9::1]:40000 > [2001:db8:2::7]:80")
    conn.reply("SA").leaves("[2001:db8:2::7]:80 > [2001:db8:1::1]:40000")


def test_udplite(make_tracker):
    talk = router(make_tracker, snat(PUBLIC)).udplite("10.0.0.1:40000 > 198.51.100.7:53")
    talk.orig().leaves("192.0.2.1:40000 > 198.51.100.7:53")
    talk.reply().leaves("198.51.100.7:53 > 10.0.0.1:40000")


def test_sctp_with_a_range_of_ports(make_tracker):
    net = router(make_tracker, snat(PUBLIC, ports=(34567, 34568)))
    talk = net.sctp("10.0.0.1:5000 > 198.51.100.7:9")
    first = talk.orig()
    assert (first.left.src[:4], first.left.sport in (34567, 34568)) == (ip_address(PUBLIC).packed, True)
    talk.reply(tag=7, chunks=craft.sctp_init(8, ack=True)).leaves("198.51.100.7:9 > 10.0.0.1:5000")
    second = net.sctp("10.0.0.2:5000 > 198.51.100.7:9").orig()
    assert {first.left.sport, second.left.sport} == {34567, 34568}
    net.sctp("10.0.0.3:5000 > 198.51.100.7:9").orig().dropped("nat_exhausted")


@pytest.mark.parametrize(
    ("public", "text", "out", "back"),
    [
        (PUBLIC, "10.0.0.1 > 198.51.100.7", "192.0.2.1 > 198.51.100.7 id 7", "198.51.100.7 > 10.0.0.1 id 7"),
        ("2001:db8:9::1", "2001:db8:1::1 > 2001:db8:2::7", "2001:db8:9::1 > 2001:db8:2::7 id 7", "2001:db8:2::7 > 2001:db8:1::1 id 7"),
    ],
)
def test_ping(make_tracker, public, text, out, back):
    ping = router(make_tracker, snat(public)).ping(text)
    ping.orig().leaves(out)
    ping.reply().leaves(back).is_("established")


def test_pings_of_one_id_get_two(make_tracker):
    """An id is a port: the second one who asks gets another, and its answer its own back."""
    net = router(make_tracker, snat(PUBLIC))
    first, second = net.ping("10.0.0.1 > 198.51.100.7"), net.ping("10.0.0.2 > 198.51.100.7")
    first.orig().leaves("192.0.2.1 > 198.51.100.7 id 7")
    assert second.orig().left.sport != 7
    second.reply().leaves("198.51.100.7 > 10.0.0.2 id 7")
    first.reply().leaves("198.51.100.7 > 10.0.0.1 id 7")


def test_ping_with_a_range_of_ids(make_tracker):
    net = router(make_tracker, snat(PUBLIC, ports=(34567, 34568)))
    idents = {net.ping(f"10.0.0.{i} > 198.51.100.7").orig().left.sport for i in (1, 2)}
    assert idents == {34567, 34568}
    net.ping("10.0.0.3 > 198.51.100.7").orig().dropped("nat_exhausted")
    assert net.pool() == (2, 2, 1)


@pytest.mark.parametrize("make", [Router.generic, Router.gre])
def test_without_ports_the_address_alone(make_tracker, make):
    net = router(make_tracker, snat(PUBLIC))
    talk = make(net, "10.0.0.1 > 198.51.100.7")
    talk.orig().leaves("192.0.2.1 > 198.51.100.7")
    talk.reply().leaves("198.51.100.7 > 10.0.0.1")
    make(net, "10.0.0.2 > 198.51.100.7").orig().dropped("nat_exhausted").is_("not-seen", conn=None)
    make(net, "10.0.0.2 > 198.51.100.8").orig().leaves("192.0.2.1 > 198.51.100.8")


def test_gre_keys_are_changed_only_for_what_was_announced(make_tracker):
    """Whoever announced it (PPTP) knows the other's call ids."""
    net = router(make_tracker, snat(PUBLIC))
    master = net.udp("10.0.0.2:1000 > 198.51.100.7:1723")
    master.orig()
    net.tracker.expect(0, "10.0.0.2", SERVER, craft.GRE, 9)
    net.gre("10.0.0.1 > 198.51.100.7", version=1, proto=0x880B, call=9).orig().leaves("192.0.2.1 > 198.51.100.7")
    net.gre("10.0.0.2 > 198.51.100.7", version=1, proto=0x880B, call=9).orig().is_("related", conn=2, has={"src-nat"})
    original, reply = net.entry(2)["flow"]["key"]
    assert (original["sport"], original["dport"], reply["sport"]) == (0, 9, 9)
    assert reply["dport"] != 0, "a key of the router's choice, from 1 on"


@pytest.mark.parametrize(
    ("fields", "there", "back"),
    [
        ({"version": 0}, "accept", "accept"),
        ({"version": 2}, "accept", "drop"),  # where the destination changes, the call id would be
        ({"version": 0, "payload": b"123"}, "drop", None),
        ({"version": 0, "payload": b"1234"}, "accept", "accept"),
    ],
)
def test_gre_that_linux_does_not_touch(make_tracker, fields, there, back):
    talk = router(make_tracker, snat(PUBLIC)).gre("10.0.0.1 > 198.51.100.7")
    talk.make = lambda *ends: craft.gre(*ends, **{"payload": bytes(8), **fields})
    seen = talk.orig()
    assert (seen.verdict, seen.reason) == ((there, "ok") if there == "accept" else ("drop", "nat_gre"))
    if back is None:
        assert talk.router.tracker.count == 0, "dropped before it was confirmed: it never was"
        return
    answer = talk.reply()
    assert (answer.verdict, answer.state, answer.conn) == (back, "established", 0)


# --- which port ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("port", "low", "high"), [(1, 1, 511), (511, 1, 511), (512, 600, 1023), (1023, 600, 1023), (1024, 1024, 65535), (65535, 1024, 65535)]
)
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_a_port_is_exchanged_for_one_of_its_class(make_tracker, port, low, high, seed):
    net = router(make_tracker, snat(PUBLIC), seed=seed)
    net.udp(f"10.0.0.1:{port} > 198.51.100.7:53").orig().leaves(f"192.0.2.1:{port} > 198.51.100.7:53")
    other = net.udp(f"10.0.0.2:{port} > 198.51.100.7:53").orig().left.sport
    assert other != port and low <= other <= high


def test_source_port_0_is_of_the_lowest_class(make_tracker):
    net = router(make_tracker, snat(PUBLIC))
    net.udp("10.0.0.1:0 > 198.51.100.7:53").orig().leaves("192.0.2.1:0 > 198.51.100.7:53")
    assert 1 <= net.udp("10.0.0.2:0 > 198.51.100.7:53").orig().left.sport <= 511


def test_to_different_servers_the_same_port(make_tracker):
    net = router(make_tracker, snat(PUBLIC))
    for i, server in enumerate(("198.51.100.7:53", "198.51.100.8:53", "198.51.100.7:54")):
        net.udp(f"10.0.0.{i}:40000 > {server}").orig().leaves(f"192.0.2.1:40000 > {server}")


def test_protocols_do_not_get_in_each_others_way(make_tracker):
    net = router(make_tracker, snat(PUBLIC))
    net.udp("10.0.0.1:40000 > 198.51.100.7:53").orig()
    net.tcp("10.0.0.2:40000 > 198.51.100.7:53").orig("S").leaves("192.0.2.1:40000 > 198.51.100.7:53")


def test_a_port_within_the_range_is_kept(make_tracker):
    net = router(make_tracker, snat(PUBLIC, ports=(34567, 34568)))
    net.udp("10.0.0.1:34568 > 198.51.100.7:53").orig().leaves("192.0.2.1:34568 > 198.51.100.7:53")
    net.udp("10.0.0.2:34568 > 198.51.100.7:53").orig().leaves("192.0.2.1:34567 > 198.51.100.7:53")


def test_a_range_that_is_exhausted(make_tracker):
    """The third one is dropped, counted, and leaves no trace; when a port is free again, it gets it."""
    net = router(make_tracker, snat(PUBLIC, ports=(34567, 34568)), events=frozenset({"new"}))
    talks = [net.udp(f"10.0.0.{i}:40000 > 198.51.100.7:53") for i in (1, 2, 3)]
    assert {talk.orig().left.sport for talk in talks[:2]} == {34567, 34568}
    talks[2].orig().dropped("nat_exhausted").is_("not-seen", conn=None, status=set())
    assert net.pool() == (2, 2, 1)
    counters = net.tracker.counters()
    assert (counters["nat_exhausted"], counters["insert_failed"], counters["new"], net.tracker.count) == (1, 1, 2, 2)
    assert [event.conn for event in events(net.tracker)] == [0, 1]
    net.wait(20)
    talks[0].orig()
    net.wait(10)
    free = talks[1].left.sport
    talks[2].orig().leaves(f"192.0.2.1:{free} > 198.51.100.7:53").is_("new", conn=2)
    assert net.pool() == (2, 2, 1)


def test_one_port_of_ones_own_is_taken_without_looking(make_tracker):
    net = router(make_tracker, snat(PUBLIC, ports=5000))
    net.udp("10.0.0.1:5000 > 198.51.100.7:53").orig().leaves("192.0.2.1:5000 > 198.51.100.7:53")
    net.udp("10.0.0.2:5000 > 198.51.100.7:53").orig().dropped("nat_exhausted")
    net.udp("10.0.0.3:6000 > 198.51.100.7:53").orig().dropped("nat_exhausted")
    net.udp("10.0.0.3:6000 > 198.51.100.8:53").orig().leaves("192.0.2.1:5000 > 198.51.100.8:53")


def test_a_port_range_with_any_address(make_tracker):
    net = router(make_tracker, snat(ANY, ports=5000))
    net.udp("10.0.0.1:40000 > 198.51.100.7:53").orig().leaves("10.0.0.1:5000 > 198.51.100.7:53")


def test_all_zeros_change_a_port_only_if_they_must(make_tracker):
    """DNAT has led the client to this very server already, so the tuple of asking it directly is taken."""
    net = router(make_tracker, snat("0.0.0.0"), dnat(SERVER, dst="203.0.113.9/32"))
    net.udp("10.0.0.1:40000 > 203.0.113.9:53").orig().leaves("10.0.0.1:40000 > 198.51.100.7:53")
    clash = net.udp("10.0.0.1:40000 > 198.51.100.7:53")
    seen = clash.orig().is_("new", has={"src-nat"})
    assert seen.left.src == seen.key.src and seen.left.sport != 40000
    clash.reply().leaves("198.51.100.7:53 > 10.0.0.1:40000")
    net.udp("10.0.0.2:40000 > 198.51.100.7:53").orig().unchanged()


def test_all_zeros_of_ipv6_with_ports(make_tracker):
    net = router(make_tracker, snat("::", ports=(5000, 5001)))
    seen = net.udp("[2001:db8::1]:40000 > [2001:db8::2]:53").orig()
    assert seen.left.src == seen.key.src and seen.left.sport in (5000, 5001)


# --- the same source again -------------------------------------------------------------------------------------------------------------


def test_a_source_keeps_its_mapping(make_tracker):
    """10.0.0.2:40000 had to take another port; whoever it speaks to later sees that one as well."""
    net = router(make_tracker, snat(PUBLIC))
    net.udp("10.0.0.1:40000 > 198.51.100.7:53").orig()
    port = net.udp("10.0.0.2:40000 > 198.51.100.7:53").orig().left.sport
    assert port != 40000
    net.udp("10.0.0.2:40000 > 198.51.100.8:53").orig().leaves(f"192.0.2.1:{port} > 198.51.100.8:53")
    net.udp("10.0.0.2:40000 > 198.51.100.9:54").orig().leaves(f"192.0.2.1:{port} > 198.51.100.9:54")
    net.udp("10.0.0.2:40001 > 198.51.100.8:53").orig().leaves("192.0.2.1:40001 > 198.51.100.8:53")
    net.tcp("10.0.0.2:40000 > 198.51.100.8:53").orig("S").leaves("192.0.2.1:40000 > 198.51.100.8:53")


def test_the_latest_mapping_within_the_range_counts(make_tracker):
    """Each server has its own rule; the third one's range holds both mappings."""
    rules = snat("192.0.2.1", dst="198.51.100.1/32"), snat("192.0.2.2", dst="198.51.100.2/32"), snat("192.0.2.1-192.0.2.9")
    for servers, expected in (((1, 2), "192.0.2.2"), ((2, 1), "192.0.2.1")):
        net = router(make_tracker, *rules)
        for server in servers:
            net.udp(f"10.0.0.1:40000 > 198.51.100.{server}:53").orig()
        net.udp("10.0.0.1:40000 > 198.51.100.3:53").orig().leaves(f"{expected}:40000 > 198.51.100.3:53")


def test_a_mapping_goes_with_its_connection(make_tracker):
    net = router(make_tracker, snat(PUBLIC))
    net.udp("10.0.0.1:40000 > 198.51.100.7:53").orig()
    net.udp("10.0.0.2:40000 > 198.51.100.7:53").orig()
    net.wait(30)
    net.udp("10.0.0.2:40000 > 198.51.100.8:53").orig().leaves("192.0.2.1:40000 > 198.51.100.8:53")


def test_a_mapping_that_is_taken_does_not_help(make_tracker):
    """Its port towards this server belongs to somebody else: the port of its own is tried, then a search."""
    net = router(make_tracker, snat(PUBLIC))
    net.udp("10.0.0.1:40000 > 198.51.100.7:53").orig()
    port = net.udp("10.0.0.2:40000 > 198.51.100.7:53").orig().left.sport
    net.udp(f"10.0.0.3:{port} > 198.51.100.8:53").orig().leaves(f"192.0.2.1:{port} > 198.51.100.8:53")
    net.udp("10.0.0.2:40000 > 198.51.100.8:53").orig().leaves("192.0.2.1:40000 > 198.51.100.8:53")


def test_null_bindings_are_mappings_too(make_tracker):
    """Linux keeps one list of sources. A source that is within the range by itself is left alone."""
    net = router(make_tracker, snat("192.0.2.1-192.0.2.9", dst="198.51.100.8/32"))
    net.udp("192.0.2.5:40000 > 198.51.100.7:53").orig().unchanged().is_("new", has=DONE, lacks=NAT)
    net.udp("192.0.2.5:40000 > 198.51.100.8:53").orig().unchanged()


@pytest.mark.parametrize("how", ["random", "fully_random"])
def test_random_skips_all_of_that(make_tracker, how):
    """Neither the tuple as it is, nor the mapping of the same source, nor the port."""
    net = router(make_tracker, snat(PUBLIC, **{how: True}))
    ports = [net.udp(f"10.0.0.1:40000 > 198.51.100.{i}:53").orig().left.sport for i in range(1, 9)]
    assert len(set(ports)) == 8 and 40000 not in ports


# --- rules -----------------------------------------------------------------------------------------------------------------------------


def test_the_first_rule_that_matches(make_tracker):
    net = router(
        make_tracker,
        dnat("10.9.9.9", dport=1),
        snat("192.0.2.1", proto=craft.TCP),
        snat("192.0.2.2", src="10.0.1.0/24"),
        snat("192.0.2.3", dport=(100, 199)),
        snat("192.0.2.4", sport=7),
        snat("2001:db8::1"),
        snat("192.0.2.5", dst="198.51.100.0/25"),
    )
    net.tcp("10.0.0.1:40000 > 198.51.100.7:80").orig("S").leaves("192.0.2.1:40000 > 198.51.100.7:80")
    net.udp("10.0.1.1:40000 > 198.51.100.7:80").orig().leaves("192.0.2.2:40000 > 198.51.100.7:80")
    net.udp("10.0.0.1:40000 > 198.51.100.7:100").orig().leaves("192.0.2.3:40000 > 198.51.100.7:100")
    net.udp("10.0.0.1:40000 > 198.51.100.7:200").orig().leaves("192.0.2.5:40000 > 198.51.100.7:200")
    net.udp("10.0.0.1:7 > 198.51.100.7:200").orig().leaves("192.0.2.4:7 > 198.51.100.7:200")
    net.ping("10.0.0.1 > 198.51.100.7", ident=7).orig().leaves("192.0.2.5 > 198.51.100.7 id 7")
    net.udp("10.0.0.1:40000 > 198.51.100.200:200").orig().unchanged().is_("new", has=DONE, lacks=NAT)
    assert [row.in_use for row in net.tracker.nat_pools()] == [0, 1, 1, 1, 1, 0, 2]


def test_a_source_rule_sees_the_new_destination(make_tracker):
    net = router(make_tracker, dnat(SERVER, dst="203.0.113.9/32"), snat(PUBLIC, dst="203.0.113.9/32"), snat("192.0.2.2", dst=f"{SERVER}/32"))
    net.udp("10.0.0.1:40000 > 203.0.113.9:53").orig().leaves("192.0.2.2:40000 > 198.51.100.7:53")


def test_masquerade(make_tracker):
    net = router(make_tracker, masquerade(PUBLIC, ports=(5000, 5001), src="10.0.0.0/8"))
    assert net.udp("10.0.0.1:40000 > 198.51.100.7:53").orig().left.sport in (5000, 5001)
    with pytest.raises(ConfigError, match="expected one address"):
        masquerade("192.0.2.1-192.0.2.2")


def test_later_packets_and_rules_change_nothing(make_tracker):
    """A connection's tuple is chosen once: a second packet before any answer does not choose again."""
    net = router(make_tracker, snat(PUBLIC, random=True))
    talk = net.udp("10.0.0.1:40000 > 198.51.100.7:53")
    first = talk.orig().left
    assert talk.orig().left == first
    talk.reply().leaves("198.51.100.7:53 > 10.0.0.1:40000")


def test_without_rules_nothing_is_even_decided(make_tracker):
    net = router(make_tracker)
    net.udp("10.0.0.1:40000 > 198.51.100.7:53").orig().unchanged().is_("new", lacks={*DONE, *NAT})
    assert net.tracker.nat_pools() == []
    net.tracker.prefer(1)


def test_invalid_packets_pass_as_they_are(make_tracker):
    """They lose their connection, and with it their translation."""
    conn = router(make_tracker, snat(PUBLIC)).tcp("10.0.0.1:40000 > 198.51.100.7:80").establish()
    conn.orig("A", seq=1 << 30).unchanged().is_("invalid", reason="tcp_seq_over")
    conn.orig("A", seq=1, ack=0).leaves("192.0.2.1:40000 > 198.51.100.7:80")


def test_expected_connections_are_translated(make_tracker):
    net = router(make_tracker, snat(PUBLIC))
    net.tcp("10.0.0.1:40000 > 198.51.100.7:21").establish()
    net.tracker.expect(0, "10.0.0.1", SERVER, craft.TCP, 2000)
    data = net.tcp("10.0.0.1:40001 > 198.51.100.7:2000")
    data.orig("S").leaves("192.0.2.1:40001 > 198.51.100.7:2000").is_("related", has={"expected", "src-nat"})
    data.reply("SA").leaves("198.51.100.7:2000 > 10.0.0.1:40001")


def test_zones_have_tuples_of_their_own(make_tracker):
    net = router(make_tracker, snat(PUBLIC, ports=5000))
    for zone in (0, 1, 65535):
        talk = net.udp("10.0.0.1:40000 > 198.51.100.7:53", zone=zone)
        talk.orig().leaves("192.0.2.1:5000 > 198.51.100.7:53")
        talk.reply().leaves("198.51.100.7:53 > 10.0.0.1:40000")
    net.udp("10.0.0.2:40000 > 198.51.100.7:53", zone=1).orig().dropped("nat_exhausted")


def test_a_connection_in_memory(make_tracker):
    """The original tuple as it came, the reply as its answers will come."""
    net = router(make_tracker, snat(PUBLIC, ports=5000))
    net.udp("10.0.0.1:40000 > 198.51.100.7:53").orig()
    original, reply = (net.entry(0)["flow"]["key"][d] for d in Dir)
    assert (bytes(original["src"][:4]), original["sport"]) == (ip_address("10.0.0.1").packed, 40000)
    assert (bytes(reply["dst"][:4]), reply["dport"]) == (ip_address(PUBLIC).packed, 5000)
