"""Which address and which port exactly: the hash, the search and its random numbers, take-over of closed connections.

Expected numbers come from outside: published values of lookup3 and splitmix64, and the formulas of nf_nat_core.c worked once more on these.
Not here: what else is true of a translated connection (test_nat_source, test_nat_destination).
"""

from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest

from ctcore.errors import ConfigError
from ctcore.model.nat_choice import SEED_MIX, Draws, jhash2
from pcap_tests.router import Router, dnat, rule, snat
from pcap_tests.scene import events

MASK = 0xFFFFFFFF
# splitmix64 from the state 1234567 on: the values most implementations are tested with.
KNOWN_SEED = 1234567 ^ SEED_MIX
KNOWN = (6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821)
DRAWS = [value >> 48 for value in KNOWN]
SERVER = "198.51.100.7"


def router(make_tracker, *rules, **settings) -> Router:
    return Router(make_tracker(nat=rules, **settings))


# --- numbers ---------------------------------------------------------------------------------------------------------------------------


def rot(x: int, k: int) -> int:
    return (x << k | x >> (32 - k)) & MASK


def hashlittle(key: bytes, initval: int) -> int:
    """lookup3 as published (Bob Jenkins, 2006, public domain), a byte string at a time and line by line."""
    a = b = c = (0xDEADBEEF + len(key) + initval) & MASK
    while len(key) > 12:
        k0, k1, k2 = struct.unpack("<3I", key[:12])
        a, b, c, key = (a + k0) & MASK, (b + k1) & MASK, (c + k2) & MASK, key[12:]
        a = (a - c) & MASK ^ rot(c, 4)
        c = (c + b) & MASK
        b = (b - a) & MASK ^ rot(a, 6)
        a = (a + c) & MASK
        c = (c - b) & MASK ^ rot(b, 8)
        b = (b + a) & MASK
        a = (a - c) & MASK ^ rot(c, 16)
        c = (c + b) & MASK
        b = (b - a) & MASK ^ rot(a, 19)
        a = (a + c) & MASK
        c = (c - b) & MASK ^ rot(b, 4)
        b = (b + a) & MASK
    if not key:
        return c
    k0, k1, k2 = struct.unpack("<3I", key.ljust(12, b"\0"))
    a, b, c = (a + k0) & MASK, (b + k1) & MASK, (c + k2) & MASK
    c = ((c ^ b) - rot(b, 14)) & MASK
    a = ((a ^ c) - rot(c, 11)) & MASK
    b = ((b ^ a) - rot(a, 25)) & MASK
    c = ((c ^ b) - rot(b, 16)) & MASK
    a = ((a ^ c) - rot(c, 4)) & MASK
    b = ((b ^ a) - rot(a, 14)) & MASK
    return ((c ^ b) - rot(b, 24)) & MASK


@pytest.mark.parametrize(("initval", "value"), [(0, 0x17770551), (1, 0xCD628161)])
def test_the_reference_gives_what_was_published(initval, value):
    assert hashlittle(b"Four score and seven years ago", initval) == value
    assert hashlittle(b"", 0) == 0xDEADBEEF


@pytest.mark.parametrize("words", [(), (1,), (1, 2, 3), (0xFFFFFFFF,) * 4, (0x0100000A, 0, 0, 0), tuple(range(7))])
@pytest.mark.parametrize("initval", [0, 1, 0x07643CC6, 0xFFFFFFFF])
def test_the_hash_of_words(words, initval):
    assert jhash2(words, initval) == hashlittle(struct.pack(f"<{len(words)}I", *words), initval)


def test_the_random_numbers():
    draws = Draws(KNOWN_SEED)
    assert [draws.port() for _ in KNOWN] == DRAWS


# --- an address by hash ----------------------------------------------------------------------------------------------------------------


def words(address: str) -> tuple[int, ...]:
    """As they lie in the memory of a little-endian machine."""
    return struct.unpack("<4I", ip_address(address).packed.ljust(16, b"\0"))


def expected4(src: str, dst: str, low: str, number: int, *, zone: int = 0, persistent: bool = False) -> str:
    seed = 0 if persistent else words(dst)[0] ^ zone
    return str(ip_address(low) + (hashlittle(ip_address(src).packed.ljust(16, b"\0"), seed) * number >> 32))


@pytest.mark.parametrize("zone", [0, 1, 65535])
@pytest.mark.parametrize("number", [2, 3, 200])
def test_snat_by_source_and_destination(make_tracker, number, zone):
    low = "192.0.2.1"
    net = router(make_tracker, snat(f"{low}-{ip_address(low) + number - 1}"))
    for client in ("10.0.0.1", "10.0.0.2", "172.16.255.254"):
        for server in ("198.51.100.7", "198.51.100.8", "8.8.8.8"):
            expected = expected4(client, server, low, number, zone=zone)
            sport = 1000 + len(net.ordinals())  # another source each time, so that none has a mapping already
            net.udp(f"{client}:{sport} > {server}:53", zone=zone).orig().leaves(f"{expected}:{sport} > {server}:53")


def test_persistent_by_source_alone(make_tracker):
    net = router(make_tracker, snat("192.0.2.1-192.0.2.100", persistent=True))
    for i, server in enumerate(("198.51.100.7", "198.51.100.8", "8.8.8.8")):
        expected = expected4("10.0.0.1", server, "192.0.2.1", 100, persistent=True)
        net.udp(f"10.0.0.1:{1000 + i} > {server}:53").orig().leaves(f"{expected}:{1000 + i} > {server}:53")


@pytest.mark.parametrize("persistent", [False, True])
def test_dnat_by_source_and_destination(make_tracker, persistent):
    net = router(make_tracker, dnat("10.0.0.1-10.0.0.5", persistent=persistent))
    for i in range(20):
        client = f"198.51.100.{i}"
        expected = expected4(client, "203.0.113.9", "10.0.0.1", 5, persistent=persistent)
        net.udp(f"{client}:4000 > 203.0.113.9:80").orig().leaves(f"{client}:4000 > {expected}:80")


def test_the_whole_of_ipv4_is_a_range_of_none(make_tracker):
    """2^32 addresses do not fit into Linux's 32 bits: their number is 0, and the first of them is chosen."""
    net = router(make_tracker, dnat("0.0.0.1-255.255.255.255"))
    assert (
        net.udp("198.51.100.7:1 > 203.0.113.9:80").orig().left.dst[:4]
        == ip_address(expected4("198.51.100.7", "203.0.113.9", "0.0.0.1", (1 << 32) - 1)).packed
    )


def expected6(src: str, dst: str, low: str, high: str, *, kind: str, zone: int = 0, persistent: bool = False) -> str:
    """Word by word; below the range's upper edge every value will do."""
    number = hashlittle(ip_address(src).packed, 0 if persistent else words(dst)[3] ^ zone)
    lows, highs = (struct.unpack("!4I", ip_address(edge).packed) for edge in (low, high))
    chosen, below = [], False
    for i in range(4):
        first, size = (0, MASK) if below else (lows[i], (highs[i] - lows[i] + 1) & MASK)
        chosen.append((first + (number * size >> 32)) & MASK)
        below = below or chosen[i] != highs[i]
        if not persistent:
            number ^= words(dst)[i] if kind == "snat" else struct.unpack("<I", struct.pack("!I", chosen[i]))[0]
    return str(ip_address(struct.pack("!4I", *chosen)))


# What Linux 6.18 chose for 2001:db8:1::1:1000 > 2001:db8:2::7:53.
OBSERVED = [
    ("snat", "2001:db8:9::1", "2001:db8:9::ff", False, "2001:db8:9::58"),
    ("snat", "2001:db8:9::1", "2001:db8:9::ff", True, "2001:db8:9::9d"),
    ("snat", "2001:db8:9::", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", False, "2001:db8:5813:56c:580d:1fe2:580d:1fe2"),
    ("snat", "2001:db8:9::9:0:1", "2001:db8:9:1::2", False, "2001:db8:9:0:580d:1fe2:580d:1fe2"),
    ("snat", "2001:db8:9::9:0:1", "2001:db8:9:1::2", True, "2001:db8:9:1:9d30:b922:9d30:b91d"),
    ("dnat", "2001:db8:9::1", "2001:db8:9::ff", False, "2001:db8:9::58"),
    ("dnat", "2001:db8:9::", "2001:db8:9:0:ffff:ffff:ffff:ffff", False, "2001:db8:9::580d:14e2"),
    ("dnat", "2001:db8:9::", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", False, "2001:db8:5813:56c:3408:eba:8e06:68e"),
    ("dnat", "2001:db8:9::9:0:1", "2001:db8:9:1::2", False, "2001:db8:9:0:580d:14e2:ba19:19ba"),
]


@pytest.mark.parametrize(("kind", "low", "high", "persistent", "chosen"), OBSERVED)
def test_what_the_kernel_has_chosen(make_tracker, kind, low, high, persistent, chosen):
    net = router(make_tracker, rule(kind, f"{low}-{high}", persistent=persistent))
    src, dst = (chosen, "2001:db8:2::7") if kind == "snat" else ("2001:db8:1::1", chosen)
    net.udp("[2001:db8:1::1]:1000 > [2001:db8:2::7]:53").orig().leaves(f"[{src}]:1000 > [{dst}]:53")


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize(
    ("low", "high"),
    [
        ("2001:db8:9::1", "2001:db8:9::ff"),
        ("2001:db8:9::", "2001:db8:9:0:ffff:ffff:ffff:ffff"),
        ("2001:db8:9::", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff"),
        ("2001:db8:9::9:0:1", "2001:db8:9:1::2"),
    ],
)
def test_ipv6_word_by_word(make_tracker, low, high, persistent):
    clients = [f"2001:db8:1::{i}" for i in range(1, 9)]
    net = router(make_tracker, snat(f"{low}-{high}", persistent=persistent))
    for client in clients:
        expected = expected6(client, "2001:db8:2::7", low, high, kind="snat", persistent=persistent)
        net.udp(f"[{client}]:1000 > [2001:db8:2::7]:53").orig().leaves(f"[{expected}]:1000 > [2001:db8:2::7]:53")
    net = router(make_tracker, dnat(f"{low}-{high}", persistent=persistent))
    for client in clients:
        expected = expected6(client, "2001:db8:2::7", low, high, kind="dnat", persistent=persistent)
        net.udp(f"[{client}]:1000 > [2001:db8:2::7]:53").orig().leaves(f"[{client}]:1000 > [{expected}]:53")


# --- a port by search ------------------------------------------------------------------------------------------------------------------


def test_the_search_begins_where_the_random_number_says(make_tracker):
    net = router(make_tracker, snat("192.0.2.1"), seed=KNOWN_SEED)
    for i, expected in ((1, 40000), (2, 1024 + DRAWS[0] % 64512), (3, 1024 + DRAWS[1] % 64512)):
        net.udp(f"10.0.0.{i}:40000 > {SERVER}:53").orig().leaves(f"192.0.2.1:{expected} > {SERVER}:53")


def test_what_needs_no_search_draws_no_number(make_tracker):
    net = router(make_tracker, snat("192.0.2.1"), dnat("10.0.0.9", ports=(8000, 8001), dst="203.0.113.9/32"), seed=KNOWN_SEED)
    net.udp(f"10.0.0.1:40000 > {SERVER}:53").orig()
    net.udp(f"192.0.2.1:40001 > {SERVER}:53").orig()
    net.udp("10.0.0.1:40000 > 203.0.113.9:53").orig()
    net.udp("10.0.0.1:40001 > 203.0.113.9:54").orig()
    net.generic(f"10.0.0.1 > {SERVER}").orig()
    net.generic(f"10.0.0.2 > {SERVER}").orig().dropped("nat_exhausted")
    net.udp(f"10.0.0.2:40000 > {SERVER}:53").orig().leaves(f"192.0.2.1:{1024 + DRAWS[0] % 64512} > {SERVER}:53")


def test_ids_are_searched_from_0(make_tracker):
    net = router(make_tracker, snat("192.0.2.1"), seed=KNOWN_SEED)
    net.ping(f"10.0.0.1 > {SERVER}").orig()
    net.ping(f"10.0.0.2 > {SERVER}").orig().leaves(f"192.0.2.1 > {SERVER} id {DRAWS[0]}")


def test_random_destination_ports(make_tracker):
    net = router(make_tracker, dnat("10.0.0.9", ports=(8000, 8999), random=True), seed=KNOWN_SEED)
    net.udp("198.51.100.7:1 > 203.0.113.9:8005").orig().leaves(f"198.51.100.7:1 > 10.0.0.9:{8000 + DRAWS[0] % 1000}")


def test_prefer(make_tracker):
    """Once, and only for a search that would begin at random."""
    net = router(make_tracker, snat("192.0.2.1"), dnat("10.0.0.9", ports=(8000, 8001), dst="203.0.113.9/32"), seed=KNOWN_SEED)
    net.tracker.prefer(50000)
    net.udp("10.0.0.1:40000 > 203.0.113.9:53").orig().leaves("192.0.2.1:40000 > 10.0.0.9:8000")
    net.udp(f"10.0.0.1:40000 > {SERVER}:53").orig().leaves(f"192.0.2.1:40000 > {SERVER}:53")
    net.udp(f"10.0.0.2:40000 > {SERVER}:53").orig().leaves(f"192.0.2.1:50000 > {SERVER}:53")
    net.udp(f"10.0.0.3:40000 > {SERVER}:53").orig().leaves(f"192.0.2.1:{1024 + DRAWS[0] % 64512} > {SERVER}:53")
    net.tracker.prefer(50000)
    net.udp(f"10.0.0.4:40000 > {SERVER}:53").orig().leaves(f"192.0.2.1:50001 > {SERVER}:53")
    net.tracker.prefer(1023)
    net.udp(f"10.0.0.5:40000 > {SERVER}:53").orig().leaves(f"192.0.2.1:{1024 + DRAWS[1] % 64512} > {SERVER}:53")
    net.tracker.prefer(50000)
    net.tracker.prefer()
    net.udp(f"10.0.0.6:40000 > {SERVER}:53").orig().leaves(f"192.0.2.1:{1024 + DRAWS[2] % 64512} > {SERVER}:53")
    for wrong in (-1, 65536):
        with pytest.raises(ConfigError, match="port"):
            net.tracker.prefer(wrong)
        with pytest.raises(ConfigError, match="announced"):
            net.tracker.prefer(announced=wrong)


def occupied(net: Router, ports: list[int]) -> None:
    """Each of these ports of 192.0.2.1 speaks to the server already: the clients that have them keep them."""
    for i, port in enumerate(ports):
        net.udp(f"10.1.{i >> 8}.{i & 255}:{port} > {SERVER}:53").orig().leaves(f"192.0.2.1:{port} > {SERVER}:53")


def window(draw: int, attempts: int) -> list[int]:
    """The ports of a range of 1000 from 2000 on that one round of a search tries."""
    return [2000 + (draw + i & 0xFFFF) % 1000 for i in range(attempts)]


def test_the_search_goes_on_at_other_places_with_fewer_attempts(make_tracker):
    """128 ports from a random one on; then 64, 32, 16 and 8 from other ones; then it gives up, though there are free ones elsewhere."""
    net = router(make_tracker, snat("192.0.2.1", ports=(2000, 2999)), seed=KNOWN_SEED)
    rounds = [window(draw, attempts) for draw, attempts in zip(DRAWS, (128, 64, 32, 16, 8), strict=True)]
    tried = list(dict.fromkeys(port for ports in rounds for port in ports))
    spare = rounds[4][7]
    assert spare not in {port for ports in rounds[:4] for port in ports}
    occupied(net, [port for port in tried if port != spare])
    net.udp(f"10.0.0.1:40000 > {SERVER}:53").orig().leaves(f"192.0.2.1:{spare} > {SERVER}:53")
    assert net.pool() == (len(tried), len(tried), 0)
    net = router(make_tracker, snat("192.0.2.1", ports=(2000, 2999)), seed=KNOWN_SEED)
    occupied(net, tried)
    net.udp(f"10.0.0.1:40000 > {SERVER}:53").orig().dropped("nat_exhausted")
    assert net.pool() == (len(tried), len(tried), 1) and len(tried) < 1000


def test_a_search_wraps_within_the_range(make_tracker):
    net = router(make_tracker, snat("192.0.2.1", ports=(2000, 2099)))
    occupied(net, list(range(2050, 2100)))
    net.tracker.prefer(2050)
    net.udp(f"10.0.0.1:40000 > {SERVER}:53").orig().leaves(f"192.0.2.1:2000 > {SERVER}:53")


def test_128_ports_are_searched_once(make_tracker):
    """As many as there are attempts: a second round would try the same."""
    net = router(make_tracker, snat("192.0.2.1", ports=(2000, 2127)), seed=KNOWN_SEED)
    occupied(net, list(range(2000, 2128)))
    net.udp(f"10.0.0.1:40000 > {SERVER}:53").orig().dropped("nat_exhausted")
    net.udp(f"10.0.0.1:40000 > {SERVER}:54").orig().leaves(f"192.0.2.1:{2000 + DRAWS[1] % 128} > {SERVER}:54")


# --- take-over -------------------------------------------------------------------------------------------------------------------------


def one_port(make_tracker, **settings) -> Router:
    return router(make_tracker, snat("192.0.2.1", ports=5000), events=frozenset({"new", "destroy"}), **settings)


def test_a_newer_syn_takes_a_closed_connections_tuple(make_tracker):
    """The old one is over (TIME_WAIT) and what the server could still send it is no answer to the new one."""
    net = one_port(make_tracker)
    net.tcp(f"10.0.0.1:40000 > {SERVER}:80", isn=(100, 500)).establish().close()
    second = net.tcp(f"10.0.0.2:40000 > {SERVER}:80", isn=(1 << 20, 1 << 21))
    second.orig("S").leaves(f"192.0.2.1:5000 > {SERVER}:80").is_("new", conn=1)
    second.reply("SA").leaves(f"{SERVER}:80 > 10.0.0.2:40000").is_("established", conn=1)
    assert net.ordinals() == [1]
    assert [(told.kind, told.conn, told.end) for told in events(net.tracker)] == [
        ("new", 0, "alive"),
        ("destroy", 0, "replaced"),
        ("new", 1, "alive"),
    ]
    assert net.pool() == (1, 1, 0)


@pytest.mark.parametrize(("isn", "verdict"), [(101, "drop"), (102, "accept"), (101 + (1 << 31), "drop"), (100 + (1 << 31), "accept")])
def test_only_with_a_sequence_number_above(make_tracker, isn, verdict):
    """The old one ended at 102: FIN included. Numbers go round."""
    net = one_port(make_tracker)
    net.tcp(f"10.0.0.1:40000 > {SERVER}:80").establish().close()
    seen = net.tcp(f"10.0.0.2:40000 > {SERVER}:80", isn=(isn, 500)).orig("S")
    assert (seen.verdict, seen.reason) == (verdict, "ok" if verdict == "accept" else "nat_exhausted")
    assert net.tracker.count == 1


def test_after_a_reset_as_well(make_tracker):
    net = one_port(make_tracker)
    net.tcp(f"10.0.0.1:40000 > {SERVER}:80").establish().reply("R")
    net.tcp(f"10.0.0.2:40000 > {SERVER}:80", isn=(1000, 500)).orig("S").leaves(f"192.0.2.1:5000 > {SERVER}:80")


def test_in_simultaneous_open_as_well(make_tracker):
    """SYN_SENT2 comes behind TIME_WAIT in Linux's list of states."""
    net = one_port(make_tracker)
    first = net.tcp(f"10.0.0.1:40000 > {SERVER}:80")
    first.orig("S")
    first.reply("S").is_("established", l4state="SYN_SENT2")
    net.tcp(f"10.0.0.2:40000 > {SERVER}:80", isn=(1000, 500)).orig("S").leaves(f"192.0.2.1:5000 > {SERVER}:80")


def test_not_while_it_lives(make_tracker):
    net = one_port(make_tracker)
    first = net.tcp(f"10.0.0.1:40000 > {SERVER}:80").establish()
    second = net.tcp(f"10.0.0.2:40000 > {SERVER}:80", isn=(1000, 500))
    second.orig("S").dropped("nat_exhausted")
    first.orig("FA")
    first.reply("FA")
    assert first.state == "LAST_ACK"
    second.orig("S", seq=1000).dropped("nat_exhausted")
    first.orig("A")
    second.orig("S", seq=1000).is_("new", conn=1)


def test_not_by_what_is_no_syn(make_tracker):
    net = one_port(make_tracker)
    net.tcp(f"10.0.0.1:40000 > {SERVER}:80").establish().close()
    net.tcp(f"10.0.0.2:40000 > {SERVER}:80", isn=(1000, 500)).orig("A").dropped("nat_exhausted")


def test_not_by_a_port_that_is_taken_without_looking(make_tracker):
    """The only port of the range being its own, there is no search, and so nobody is asked to give way."""
    net = one_port(make_tracker)
    net.tcp(f"10.0.0.1:40000 > {SERVER}:80").establish().close()
    net.tcp(f"10.0.0.2:5000 > {SERVER}:80", isn=(1000, 500)).orig("S").dropped("nat_exhausted")


def test_not_from_a_connection_whose_source_was_not_changed(make_tracker):
    net = one_port(make_tracker)
    net.tcp(f"192.0.2.1:5000 > {SERVER}:80").establish().close()
    net.tcp(f"10.0.0.2:40000 > {SERVER}:80", isn=(1000, 500)).orig("S").dropped("nat_exhausted")


def test_only_near_the_end_of_a_search(make_tracker):
    """34 ports, all but the first of closed connections: the second attempt has 33 left, the third 32, and takes the third port."""
    net = router(make_tracker, snat("192.0.2.1", ports=(2000, 2033)))
    net.tcp(f"10.1.0.1:2000 > {SERVER}:80").establish()
    for port in range(2001, 2034):
        net.tcp(f"10.1.0.1:{port} > {SERVER}:80").establish().close()
    net.tracker.prefer(2000)
    net.tcp(f"10.0.0.2:40000 > {SERVER}:80", isn=(1000, 500)).orig("S").leaves(f"192.0.2.1:2002 > {SERVER}:80").is_("new", conn=34)
    assert net.tracker.count == 34


def test_a_search_that_is_followed_ended_where_it_took_over(make_tracker):
    """Where it had begun is not known: of 33 ports the preferred one is taken over as if it had not been the first."""
    net = router(make_tracker, snat("192.0.2.1", ports=(2000, 2032)))
    net.tcp(f"10.1.0.1:2005 > {SERVER}:80").establish().close()
    net.tracker.prefer(2005)
    net.tcp(f"10.0.0.2:40000 > {SERVER}:80", isn=(1000, 500)).orig("S").leaves(f"192.0.2.1:2005 > {SERVER}:80").is_("new", conn=1)
    assert net.ordinals() == [1]


def test_a_destination_search_takes_over_too(make_tracker):
    """Two public ports lead to one; the client's source being changed as well, the closed connection gives way."""
    net = router(make_tracker, dnat("10.0.0.9", ports=8000), snat("10.0.0.254"))
    net.tcp("198.51.100.7:40000 > 203.0.113.9:80").establish().close()
    direct = net.tcp("10.0.0.254:40000 > 203.0.113.9:80", isn=(1000, 500))
    direct.orig("S").leaves("10.0.0.254:40000 > 10.0.0.9:8000").is_("new", conn=1)
    assert net.ordinals() == [1]


def test_a_master_that_gives_way_takes_its_expectations_along(make_tracker):
    net = one_port(make_tracker)
    net.tcp(f"10.0.0.1:40000 > {SERVER}:80").establish().close()
    net.tracker.expect(0, "10.0.0.9", SERVER, 6, 2000)
    net.tcp(f"10.0.0.2:40000 > {SERVER}:80", isn=(1000, 500)).orig("S").is_("new", conn=1)
    assert net.tracker.expectations() == []
