"""parse() against scapy: packets that scapy built from random fields mean to us what they meant to scapy."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrHopByHop, IPv6ExtHdrRouting
from scapy.layers.l2 import Dot1Q, Ether
from scapy.layers.sctp import SCTP, SCTPChunkData
from scapy.packet import Raw

from ctcore import reasons
from datapath import craft as t
from datapath.frame import frames_of
from datapath.wire import parse_batch
from pcap_tests.conftest import examples

u8, u16, u32 = (st.integers(min_value=0, max_value=(1 << bits) - 1) for bits in (8, 16, 32))
payloads = st.binary(max_size=80)
slowly_built = settings(max_examples=examples(100), deadline=None, suppress_health_check=[HealthCheck.too_slow])

TCP_OPTIONS = [("MSS", 1460), ("WScale", 7), ("SAckOK", b""), ("NOP", None), ("Timestamp", (1, 2)), ("SAck", (1, 2, 3, 4))]


@st.composite
def address4(draw) -> str:
    return ".".join(str(draw(u8)) for _ in range(4))


@st.composite
def address6(draw) -> str:
    return ":".join(f"{draw(u16):x}" for _ in range(8))


@st.composite
def network(draw):
    """(link and network layers, IP version)."""
    link = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
    for vlan in draw(st.lists(st.integers(min_value=0, max_value=4095), max_size=2)):
        link = link / Dot1Q(vlan=vlan)
    if draw(st.booleans()):
        options = draw(st.binary(max_size=40).map(lambda b: b"\1" * (len(b) // 4 * 4)))
        return link / IP(src=draw(address4()), dst=draw(address4()), ttl=draw(u8), id=draw(u16), tos=draw(u8), options=options), 4
    layers = link / IPv6(src=draw(address6()), dst=draw(address6()), hlim=draw(u8), tc=draw(u8), fl=draw(st.integers(0, (1 << 20) - 1)))
    for extension in draw(st.lists(st.sampled_from([IPv6ExtHdrHopByHop, IPv6ExtHdrDestOpt]), max_size=2)):
        layers = layers / extension()
    if draw(st.booleans()):
        layers = layers / IPv6ExtHdrRouting(type=0, segleft=0)
    return layers, 6


@st.composite
def transport(draw, version: int):
    """(layer, protocol number)."""
    kind = draw(st.sampled_from(["tcp", "udp", "sctp", "echo"]))
    if kind == "tcp":
        options = draw(st.lists(st.sampled_from(TCP_OPTIONS), max_size=3).filter(lambda chosen: len(bytes(TCP(options=chosen))) <= 60))
        return TCP(
            sport=draw(u16), dport=draw(u16), seq=draw(u32), ack=draw(u32), window=draw(u16), flags=draw(u8), urgptr=draw(u16), options=options
        ), t.TCP  # fmt: skip
    if kind == "udp":
        return UDP(sport=draw(u16), dport=draw(u16)), t.UDP
    if kind == "sctp":
        return SCTP(sport=draw(u16), dport=draw(u16), tag=draw(u32)) / SCTPChunkData(data=draw(payloads)), t.SCTP
    if version == 4:
        return ICMP(type=8, code=draw(u8), id=draw(u16), seq=draw(u16)), t.ICMP
    return ICMPv6EchoRequest(code=draw(u8), id=draw(u16), seq=draw(u16), data=draw(payloads)), t.ICMPV6


@st.composite
def packets(draw):
    layers, version = draw(network())
    layer, proto = draw(transport(version))
    layers = layers / layer
    if not layers.haslayer(ICMPv6EchoRequest) and not layers.haslayer(SCTP):
        layers = layers / Raw(draw(payloads))
    return bytes(layers), version, proto


def expected_ports(layer, proto: int) -> tuple[int, int]:
    if proto in (t.ICMP, t.ICMPV6):
        return layer.id, layer.type << 8 | layer.code
    return layer.sport, layer.dport


LAYERS = {t.TCP: TCP, t.UDP: UDP, t.SCTP: SCTP, t.ICMP: ICMP, t.ICMPV6: ICMPv6EchoRequest}


@slowly_built
@given(packets())
def test_what_scapy_built_is_read_as_scapy_reads_it(case):
    packet, version, proto = case
    memory, frames = frames_of([packet])
    row = parse_batch(memory, frames).array[0]
    read = Ether(packet)
    ip = read[IP if version == 4 else IPv6]
    layer = ip[LAYERS[proto]]
    at = len(packet) - len(bytes(layer))
    key = row["key"]
    assert reasons.NAMES[row["reason"]] == "ok"
    assert (key["family"], key["proto"], key["zone"]) == (version, proto, 0)
    assert (key["src"].tobytes(), key["dst"].tobytes()) == (t.address(ip.src).ljust(16, b"\0"), t.address(ip.dst).ljust(16, b"\0"))
    assert (key["sport"], key["dport"]) == expected_ports(layer, proto)
    assert (row["hop_limit"], row["ip_len"]) == (ip.ttl if version == 4 else ip.hlim, len(bytes(ip)))
    assert (row["l3_off"], row["l4"] - memory.ctypes.data) == (len(packet) - len(bytes(ip)), at)
    assert row["l4_len"] == row["l4_have"] == len(packet) - at
    if proto == t.TCP:
        assert (row["seq"], row["ack"], row["win"]) == (layer.seq, layer.ack, layer.window)
        assert (row["doff"], row["tcp_flags"]) == (4 * layer.dataofs, int(layer.flags) & 0xFF)
    assert reasons.NAMES[row["l4_reason"]] in (("ok", "tcp_flags") if proto == t.TCP else ("ok",)), "scapy's checksum is good"


@slowly_built
@given(packets(), st.data())
def test_one_wrong_bit_in_the_transport_layer_is_noticed(case, data):
    packet, version, proto = case
    layer = Ether(packet)[IP if version == 4 else IPv6][LAYERS[proto]]
    at = len(packet) - len(bytes(layer))
    bit = data.draw(st.integers(min_value=0, max_value=8 * (len(packet) - at) - 1))
    broken = bytearray(packet)
    broken[at + bit // 8] ^= 1 << bit % 8
    row = parse_batch(*frames_of([bytes(broken)])).array[0]
    stopped = (reasons.NAMES[row["reason"]], reasons.NAMES[row["l4_reason"]])
    checksum_removed = proto == t.UDP and broken[at + 6 : at + 8] == b"\0\0"
    assert stopped != ("ok", "ok") or checksum_removed
