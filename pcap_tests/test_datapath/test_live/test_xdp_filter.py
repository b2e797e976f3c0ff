"""The XDP program does what its filter says: frame by frame, and against a twin in Python on random filters and frames."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ctcore.errors import ConfigError
from datapath import craft
from datapath.errors import KernelError
from datapath.live.xdp_filter import EVERYTHING, INLINE, PROTOCOLS, Filter, Steering, host_of
from pcap_tests.conftest import examples

SOL_XDP, XDP_RX_RING, AF_XDP = 283, 2, 44
A, B, A6, B6 = "10.0.0.1", "10.1.0.2", "2001:db8::1", "2001:db8:1::2"
ARP = craft.eth(bytes(28), 0x0806)
LLDP = craft.eth(bytes(40), 0x88CC)


@contextmanager
def steering(wanted: Filter) -> Iterator[Steering]:
    """A program in the kernel whose queue 0 has a socket, on no interface."""
    made = Steering(wanted)
    try:
        with socket.socket(AF_XDP, socket.SOCK_RAW) as held:
            held.setsockopt(SOL_XDP, XDP_RX_RING, 64)
            made.put(0, held.fileno())
            yield made
    finally:
        made.close()


def ours(wanted: Filter, *frames: bytes) -> list[bool]:
    with steering(wanted) as made:
        return [made.test(frame) for frame in frames]


def nd(kind: int) -> bytes:
    return craft.icmpv6(A6, B6, kind)


def test_the_default_takes_ip_and_leaves_the_link_to_the_host(interfaces):
    frames = [craft.tcp(A, B, 1, 2), craft.udp(A6, B6, 1, 2), ARP, LLDP, craft.eth(craft.ipv4(A, B, 6, bytes(20)), vlan=(5,))]
    assert ours(Filter(), *frames) == [True, True, False, False, False]
    assert ours(EVERYTHING, *frames) == [True] * 5


def test_neighbour_discovery_is_the_hosts_unless_said_otherwise(interfaces):
    kinds = (128, 132, 133, 134, 135, 136, 137, 138, 255, 0)
    assert ours(Filter(), *map(nd, kinds)) == [True, True, False, False, False, False, False, True, True, True]
    assert ours(Filter(neighbours=False), *map(nd, kinds)) == [True] * len(kinds)


def test_ethernet_types(interfaces):
    frames = [craft.udp(A, B, 1, 2), craft.udp(A6, B6, 1, 2), ARP, LLDP]
    assert ours(Filter(passed_types=frozenset({0x86DD}), other_types=True), *frames) == [True, False, True, True]
    assert ours(Filter(passed_types=frozenset({0x0806, 0x88CC}), other_types=True), *frames) == [True, True, False, False]


def test_management_ports_of_either_end(interfaces):
    wanted = Filter(ports=(("tcp", 22), ("udp", 53), ("sctp", 9)))
    frames = [
        craft.tcp(A, B, 40000, 22), craft.tcp(B, A, 22, 40000), craft.udp(A, B, 53, 1), craft.tcp(A6, B6, 1, 22), craft.udp(A6, B6, 1, 53),
        craft.sctp(A, B, 1, 9, 7), craft.tcp(A, B, 1, 22, options=bytes(4)), craft.tcp(A, B, 1, 22, options=b"", ihl=5),
        craft.udp(A, B, 22, 22), craft.tcp(A, B, 53, 80), craft.icmp(A, B, 8),
    ]  # fmt: skip
    assert ours(wanted, *frames) == [False] * 8 + [True] * 3


def test_ports_behind_ip_options(interfaces):
    frame = craft.eth(craft.ipv4(A, B, 6, craft.tcp_segment(A, B, 1, 22), options=bytes(12)))
    assert ours(Filter(ports=(("tcp", 22),)), frame) == [False]


def test_later_fragments_have_no_ports(interfaces):
    first, later = (craft.udp(A, B, 53, 1, bytes(8), frag=frag) for frag in (0x2000, 0x0001))
    assert ours(Filter(ports=(("udp", 53),)), first, later) == [False, True]


@pytest.mark.parametrize("filler", [0, INLINE + 1], ids=["compared", "looked up"])
def test_prefixes(interfaces, filler):
    """The same, whether they are compared or looked up."""
    more = [f"192.168.{i}.0/24" for i in range(filler)]
    wanted = Filter(prefixes=host_of("10.1.0.0/16", "2001:db8:1::/48", *more))
    frames = [
        craft.udp(A, B, 1, 2),
        craft.udp(B, A, 1, 2),
        craft.udp(A, A, 1, 2),
        craft.udp(A6, B6, 1, 2),
        craft.udp(B6, A6, 1, 2),
        craft.udp(A6, A6, 1, 2),
    ]
    assert ours(wanted, *frames) == [True, True, False, True, True, False]


@pytest.mark.parametrize("filler", [0, INLINE + 1], ids=["compared", "looked up"])
def test_addresses_of_the_host(interfaces, filler):
    more = [f"192.168.{i}.1" for i in range(filler)]
    wanted = Filter(local=host_of(B, B6, *more))
    frames = [craft.udp(A, B, 1, 2), craft.udp(B, A, 1, 2), craft.udp(A6, B6, 1, 2), craft.udp(B6, A6, 1, 2)]
    assert ours(wanted, *frames) == [False, True, False, True]


def test_frames_too_short_to_be_told_are_the_hosts(interfaces):
    whole = craft.tcp(A6, B6, 1, 2)
    assert ours(EVERYTHING, whole[:14], whole[:53], whole[:54]) == [False, False, True]


def test_without_a_socket_the_host_has_it(interfaces):
    made = Steering(EVERYTHING)
    assert not made.test(craft.udp(A, B, 1, 2))
    made.close()


ADDRESSES = [A, B, "10.0.0.200", "192.0.2.1", A6, B6, "2001:db8::200", "fe80::1"]
NETWORKS = st.one_of(
    st.tuples(st.sampled_from(ADDRESSES[:4]), st.integers(0, 32)), st.tuples(st.sampled_from(ADDRESSES[4:]), st.integers(0, 128))
).map(lambda pair: ip_network(f"{pair[0]}/{pair[1]}", strict=False))
FILTERS = st.builds(
    Filter,
    passed_types=st.frozensets(st.sampled_from([0x0800, 0x0806, 0x86DD, 0x88CC]), max_size=2),
    other_types=st.booleans(),
    vlans=st.booleans(),
    neighbours=st.booleans(),
    local=st.lists(NETWORKS, max_size=INLINE + 4).map(tuple),
    ports=st.lists(st.tuples(st.sampled_from(list(PROTOCOLS)), st.sampled_from([22, 53])), max_size=4).map(tuple),
    prefixes=st.lists(NETWORKS, max_size=INLINE + 4).map(tuple),
)


@st.composite
def frames(draw) -> bytes:
    family = draw(st.sampled_from([ADDRESSES[:4], ADDRESSES[4:]]))
    src, dst = draw(st.sampled_from(family)), draw(st.sampled_from(family))
    proto = draw(st.sampled_from([6, 17, 58, 132, 136, 1]))
    body = draw(st.sampled_from([struct.pack("!HH", sport, dport) for sport in (22, 53, 80) for dport in (22, 53, 80)] + [b"\x87", b"\x85\0", b""]))
    kwargs = {} if ":" in src else {"frag": draw(st.sampled_from([0, 0x2000, 5])), "options": bytes(draw(st.sampled_from([0, 8])))}
    whole = craft.eth(craft.ip(src, dst, proto, body, **kwargs), 0x86DD if ":" in src else 0x0800, vlan=draw(st.sampled_from([(), (), (), (7,)])))
    return draw(st.sampled_from([whole, whole, whole, whole, ARP, LLDP, whole[:33], whole[:53]]))


def twin(wanted: Filter, frame: bytes) -> bool:
    """What the filter says, in its own order."""
    kind = int.from_bytes(frame[12:14], "big")
    if kind in wanted.passed_types:
        return False
    if kind in (0x8100, 0x88A8):
        return wanted.vlans
    if kind not in (0x0800, 0x86DD):
        return wanted.other_types
    v4 = kind == 0x0800
    if len(frame) < (34 if v4 else 54):
        return False
    src, dst = (ip_address(frame[at : at + (4 if v4 else 16)]) for at in ((26, 30) if v4 else (22, 38)))
    proto, l4 = (frame[23], frame[14 + (frame[14] & 15) * 4 :]) if v4 else (frame[20], frame[54:])
    if not v4 and proto == 58 and wanted.neighbours and (not l4 or 133 <= l4[0] <= 137):  # it is the host's unless it is known not to be
        return False
    if any(dst in network for network in wanted.local):
        return False
    first = not v4 or not int.from_bytes(frame[20:22], "big") & 0x1FFF
    if first and len(l4) >= 4 and any((PROTOCOLS[name], port) in {(proto, p) for p in struct.unpack("!HH", l4[:4])} for name, port in wanted.ports):
        return False
    return not wanted.prefixes or any(end in network for end in (src, dst) for network in wanted.prefixes)


@settings(max_examples=examples(150))
@example(wanted=Filter(), several=[craft.eth(craft.ip(A6, A6, 58, b""), 0x86DD)])
@given(wanted=FILTERS, several=st.lists(frames(), min_size=1, max_size=30))
def test_the_program_says_what_the_twin_says(interfaces, wanted, several):
    several = [frame for frame in several if len(frame) >= 14]
    assert ours(wanted, *several) == [twin(wanted, frame) for frame in several]


def test_another_program_is_never_removed(wire):
    with wire.here.entered(), steering(Filter()) as first, steering(Filter()) as second:
        first.attach(wire.near)
        with pytest.raises(
            KernelError, match="near: another XDP program is attached, which is not ours to remove: ip link set near xdp off"
        ) as refused:
            second.attach(wire.near)
        assert refused.value.number == errno.EBUSY
        assert attached(wire)
        first.detach()
        second.attach(wire.near)
        second.detach()
        assert not attached(wire)


def attached(wire) -> bool:
    with wire.here.netlink() as netlink:
        (link,) = netlink.get_links(ifname=wire.near)
        return bool(link.get_nested("IFLA_XDP", "IFLA_XDP_ATTACHED"))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"passed_types": frozenset({5})}, "passed_types: 0x5: expected an Ethernet type"),
        ({"ports": (("icmp", 1),)}, "ports: icmp 1: expected one of tcp, udp, sctp, udplite, and 1 to 65535"),
        ({"ports": (("tcp", 0),)}, "ports: tcp 0: expected"),
        ({"local": ("10.0.0.1/8",)}, "local: .* has host bits set: expected an address or a prefix"),
    ],
)
def test_filters_that_cannot_be(settings, text):
    with pytest.raises(ConfigError, match=text):
        Filter(**settings)
