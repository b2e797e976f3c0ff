"""ICMP errors about translated connections: both the error and the packet it quotes are translated, so that its receiver knows what it is about.

Not here: which errors belong to a connection at all (test_icmp_error), the bytes (datapath).
"""

from __future__ import annotations

import pytest

from datapath import craft
from datapath.craft import icmp_error
from pcap_tests.router import Passed, Router, dnat, snat

SERVER, PUBLIC, INSIDE, WAN = "198.51.100.7", "203.0.113.9", "10.0.0.7", "192.0.2.1"
FAR, NEAR = "198.51.100.250", "10.0.0.250"  # routers on either side
SIX = {"server": "2001:db8:2::7", "wan": "2001:db8:9::1", "client": "2001:db8:1::1", "far": "2001:db8:2::250"}


def router(make_tracker, *rules, **settings) -> Router:
    return Router(make_tracker(nat=rules, **settings))


def translated(seen: Passed, outer: str, inner: str, **expected) -> None:
    seen.leaves(outer).quotes(inner).is_("related", reason="ok", **expected)


# --- SNAT ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sender", [SERVER, FAR])
def test_about_the_clients_packet(make_tracker, sender):
    """From the server itself, or from another source: the sender keeps its address, the client gets what it sent."""
    net = router(make_tracker, snat(WAN))
    talk = net.udp("10.0.0.1:40000 > 198.51.100.7:53")
    talk.orig()
    error = net.send(icmp_error(sender, WAN, 3, 3, talk.arrived()))
    translated(error, f"{sender} > 10.0.0.1", "10.0.0.1:40000 > 198.51.100.7:53", conn=0, dir="reply")


def test_about_the_clients_packet_from_another_port(make_tracker):
    """A range of a single port."""
    net = router(make_tracker, snat(WAN, ports=34567))
    talk = net.udp("10.0.0.1:40000 > 198.51.100.7:53")
    talk.orig().leaves("192.0.2.1:34567 > 198.51.100.7:53")
    error = net.send(icmp_error(SERVER, WAN, 3, 3, talk.arrived()))
    translated(error, "198.51.100.7 > 10.0.0.1", "10.0.0.1:40000 > 198.51.100.7:53", dir="reply")


@pytest.mark.parametrize("sender", ["10.0.0.1", NEAR])
def test_about_the_servers_answer(make_tracker, sender):
    """Whoever complains inside becomes the router outside: its address means nothing there."""
    net = router(make_tracker, snat(WAN))
    talk = net.udp("10.0.0.1:40000 > 198.51.100.7:53")
    talk.orig()
    talk.reply()
    answer = craft.udp(SERVER, "10.0.0.1", 53, 40000)
    error = net.send(icmp_error(sender, SERVER, 3, 3, answer))
    translated(error, "192.0.2.1 > 198.51.100.7", "198.51.100.7:53 > 192.0.2.1:40000", dir="original")


def test_about_a_tcp_segment(make_tracker):
    net = router(make_tracker, snat(WAN, ports=34567))
    conn = net.tcp("10.0.0.1:40000 > 198.51.100.7:80").establish()
    segment = craft.tcp(WAN, SERVER, 34567, 80, "A", seq=101, ack=501)
    error = net.send(icmp_error(FAR, WAN, 3, 4, segment, rest=1400))
    translated(error, f"{FAR} > 10.0.0.1", "10.0.0.1:40000 > 198.51.100.7:80", dir="reply", timeout=432000)
    assert conn.state == "ESTABLISHED"


def test_about_a_ping(make_tracker):
    net = router(make_tracker, snat(WAN, ports=34567))
    ping = net.ping("10.0.0.1 > 198.51.100.7")
    ping.orig().leaves("192.0.2.1 > 198.51.100.7 id 34567")
    translated(net.send(icmp_error(FAR, WAN, 11, 0, ping.arrived())), f"{FAR} > 10.0.0.1", "10.0.0.1 > 198.51.100.7 id 7", dir="reply")


def test_ipv6(make_tracker):
    net = router(make_tracker, snat(SIX["wan"], ports=34567))
    talk = net.udp(f"[{SIX['client']}]:40000 > [{SIX['server']}]:53")
    talk.orig()
    error = net.send(icmp_error(SIX["far"], SIX["wan"], 1, 4, talk.arrived()))
    translated(error, "2001:db8:2::250 > 2001:db8:1::1", "[2001:db8:1::1]:40000 > [2001:db8:2::7]:53", dir="reply")


@pytest.mark.parametrize("make", [Router.generic, Router.gre])
def test_without_ports(make_tracker, make):
    net = router(make_tracker, snat(WAN))
    talk = make(net, "10.0.0.1 > 198.51.100.7")
    talk.orig()
    translated(net.send(icmp_error(FAR, WAN, 3, 2, talk.arrived())), f"{FAR} > 10.0.0.1", "10.0.0.1 > 198.51.100.7")


# --- DNAT, and both --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sender", [INSIDE, NEAR])
def test_dnat_about_the_clients_packet(make_tracker, sender):
    """The client has never heard of the host inside."""
    net = router(make_tracker, dnat(INSIDE, ports=8080))
    talk = net.udp("198.51.100.7:40000 > 203.0.113.9:53")
    talk.orig()
    error = net.send(icmp_error(sender, SERVER, 3, 3, talk.arrived()))
    translated(error, "203.0.113.9 > 198.51.100.7", "198.51.100.7:40000 > 203.0.113.9:53", dir="reply")


def test_dnat_about_the_servers_answer(make_tracker):
    net = router(make_tracker, dnat(INSIDE, ports=8080))
    talk = net.udp("198.51.100.7:40000 > 203.0.113.9:53")
    talk.orig()
    talk.reply()
    answer = craft.udp(PUBLIC, SERVER, 53, 40000)
    error = net.send(icmp_error(FAR, PUBLIC, 3, 1, answer))
    translated(error, f"{FAR} > 10.0.0.7", "10.0.0.7:8080 > 198.51.100.7:40000", dir="original")


def test_both_kinds(make_tracker):
    net = router(make_tracker, dnat(INSIDE, ports=8080), snat("10.0.0.254"))
    talk = net.udp("198.51.100.7:40000 > 203.0.113.9:53")
    talk.orig().leaves("10.0.0.254:40000 > 10.0.0.7:8080")
    error = net.send(icmp_error(NEAR, "10.0.0.254", 3, 3, talk.arrived()))
    translated(error, "203.0.113.9 > 198.51.100.7", "198.51.100.7:40000 > 203.0.113.9:53")


def test_about_a_connection_that_is_not_translated(make_tracker):
    net = router(make_tracker, snat(WAN, src="10.0.0.0/8"))
    talk = net.udp("172.16.0.1:40000 > 198.51.100.7:53")
    talk.orig()
    net.send(icmp_error(FAR, "172.16.0.1", 3, 3, talk.arrived())).unchanged().is_("related")


# --- errors that cannot be translated --------------------------------------------------------------------------------------------------


def test_a_redirect_about_a_translated_connection_is_dropped(make_tracker):
    """It would speak of hosts the other side cannot reach; what it is about is known all the same."""
    net = router(make_tracker, snat(WAN, src="10.0.0.0/8"))
    talk = net.udp("10.0.0.1:40000 > 198.51.100.7:53")
    talk.orig()
    error = net.send(icmp_error(FAR, WAN, 5, 1, talk.arrived()))
    error.dropped("nat_icmp").is_("related", conn=0, dir="reply", has={"src-nat"})
    own = net.udp("172.16.0.1:40000 > 198.51.100.7:53")
    own.orig()
    net.send(icmp_error(FAR, "172.16.0.1", 5, 1, own.arrived())).unchanged().is_("related")


def test_an_ipv6_redirect_likewise(make_tracker):
    net = router(make_tracker, snat(SIX["wan"]))
    talk = net.udp(f"[{SIX['client']}]:40000 > [{SIX['server']}]:53")
    talk.orig()
    body = bytes(32) + b"\4\1" + bytes(6) + talk.arrived()[14:]
    message = craft.icmp_message("fe80::1", SIX["wan"], 137, payload=body)
    net.send(craft.frame("fe80::1", SIX["wan"], craft.ICMPV6, message, ttl=255)).dropped("nat_icmp").is_("related")


@pytest.mark.parametrize("translated", [True, False])
@pytest.mark.parametrize(
    ("family", "client", "server", "public", "kind"),
    [(4, "10.0.0.1", SERVER, WAN, 3), (6, "2001:db8:1::1", "2001:db8:2::7", "2001:db8:9::1", 1)],
)
def test_a_bad_checksum_matters_to_nat_even_if_to_nobody_else(make_tracker, translated, family, client, server, public, kind):
    """checksum=0: conntrack believes it, the translator has to change it. Linux looks at the sum before it asks whether there is anything to do."""
    rule = snat(public) if translated else snat(public, dport=1)
    net = Router(make_tracker(nat=(rule,), checksum=False), checksum=False)
    talk = net.udp(f"{client}:40000 > {server}:53" if family == 4 else f"[{client}]:40000 > [{server}]:53")
    talk.orig()
    sender = public if translated else client
    net.send(icmp_error(server, sender, kind, 3, talk.arrived(), l4_checksum=1)).dropped("nat_icmp").is_("related", conn=0)
    net.send(icmp_error(server, sender, kind, 3, talk.arrived())).is_("related", verdict="accept", reason="ok")


def test_without_nat_a_bad_checksum_is_nobodys_business(make_tracker):
    net = Router(make_tracker(checksum=False), checksum=False)
    talk = net.udp("10.0.0.1:40000 > 198.51.100.7:53")
    talk.orig()
    net.send(icmp_error(FAR, "10.0.0.1", 3, 3, talk.arrived(), l4_checksum=1)).unchanged().is_("related")


@pytest.mark.parametrize(("quote", "verdict"), [(28, "accept"), (27, "drop"), (24, "drop")])
def test_a_quoted_header_must_be_there_to_be_changed(make_tracker, quote, verdict):
    """Four bytes of ports tell whose packet it is; to translate it, Linux wants the eight that RFC 792 promises."""
    net = router(make_tracker, snat(WAN, src="10.0.0.0/8"))
    for client, public, untouched in (("10.0.0.1", WAN, False), ("172.16.0.1", "172.16.0.1", True)):
        talk = net.udp(f"{client}:40000 > 198.51.100.7:53")
        talk.orig()
        error = net.send(icmp_error(FAR, public, 3, 3, talk.arrived(), quote=quote)).is_("related")
        assert (error.verdict, error.reason) == (("accept", "ok") if untouched or verdict == "accept" else ("drop", "nat_icmp"))


@pytest.mark.parametrize(
    ("fields", "quote", "rule", "verdict"),
    [
        ({}, 28, "snat", "accept"),
        ({}, 27, "snat", "drop"),
        ({"version": 2}, 1000, "snat", "accept"),  # the source changes in what is quoted
        ({"version": 2}, 1000, "dnat", "drop"),
    ],
)
def test_quoted_gre(make_tracker, fields, quote, rule, verdict):
    """GRE of version 2 came with the connection of version 0, both being without keys."""
    rules = {"snat": snat(WAN), "dnat": dnat(INSIDE)}
    net = router(make_tracker, rules[rule])
    talk = net.gre("10.0.0.1 > 198.51.100.7")
    talk.orig()
    src, dst = (WAN, SERVER) if rule == "snat" else ("10.0.0.1", INSIDE)
    about = craft.gre(src, dst, payload=bytes(8), **fields)
    assert net.send(icmp_error(NEAR, src, 3, 3, about, quote=quote)).is_("related").verdict == verdict


def test_a_quoted_ipv6_chain(make_tracker):
    """The quoted header is looked for behind the extension headers."""
    net = router(make_tracker, snat(SIX["wan"]))
    talk = net.udp(f"[{SIX['client']}]:40000 > [{SIX['server']}]:53")
    talk.orig()
    about = craft.udp(SIX["wan"], SIX["server"], 40000, 53, ext=((craft.DESTINATION, craft.options6(1)),))
    for quote, verdict in ((40 + 16 + 8, "accept"), (40 + 16 + 7, "drop")):
        assert net.send(icmp_error(SIX["far"], SIX["wan"], 1, 0, about, quote=quote)).is_("related").verdict == verdict
