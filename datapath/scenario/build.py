"""Steps become frames: Ethernet around what the words say, truth and lies alike.

    builder = Builder(scenario.name, scenario.hosts); frames = [builder.frame(step) for step in scenario.steps]

Every field that was not set is as a sound stack would send it. Steps may be built one after another while a scenario is being made up.
Invariant: the same steps give the same bytes. Raises ScenarioError for what no packet can carry.
Not here: the layout of headers (craft).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NoReturn

from datapath import craft
from datapath.scenario.steps import (
    DEFAULT_HOSTS,
    WITH_PORTS,
    Checksum,
    Chunk,
    Data,
    Ends,
    Gre,
    Icmp,
    Ip,
    Option,
    Other,
    Packet,
    Raw,
    Scenario,
    ScenarioError,
    Sctp,
    Step,
    Tcp,
    Udp,
    UdpLite,
)  # fmt: skip

MOST_BYTES = 65400  # above IP, so that the header with its options fits too
ETHERNET = 14
QUOTED = {False: 548, True: 1232}  # bytes of the quoted packet, by v6: RFC 1812 4.3.2.3, RFC 4443 2.4 (c)
REDIRECT, REDIRECTED_HEADER = 137, 4
OPTION_KINDS = {"eol": 0, "nop": 1, "mss": 2, "wscale": 3, "sackok": 4, "sack": 5, "timestamp": 8}
OPTION_FORMS = {"mss": "!H", "wscale": "!B", "timestamp": "!II"}
PPP = 0x880B
WRONG = (0x1234, 0x4321)  # one of them is wrong


class Builder:
    """Builds the steps of one scenario in their order; quotes of earlier packets are cut from the frames built so far."""

    def __init__(self, name: str = "scenario", hosts: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.hosts = {**DEFAULT_HOSTS, **(hosts or {})}
        self.frames: list[bytes] = []
        self.packets: list[Packet | Raw] = []
        self.labels: dict[str, int] = {}

    def frame(self, step: Step) -> bytes:
        """The step's Ethernet frame."""
        try:
            frame = self._frame(step.packet)
        except (ValueError, OSError, struct.error, OverflowError, KeyError) as error:
            raise ScenarioError(f"{self._where(step)}: cannot be built: {error}: expected a packet as docs/scenarios.md describes it") from None
        except _Cannot as error:
            raise ScenarioError(f"{self._where(step)}: {error}") from None
        if step.label:
            self.labels[step.label] = len(self.frames)
        self.frames.append(frame)
        self.packets.append(step.packet)
        return frame

    def _where(self, step: Step) -> str:
        return f"{self.name}:{step.line}" if step.line else f"{self.name}: step {len(self.frames)}"

    def _frame(self, packet: Packet | Raw) -> bytes:
        if isinstance(packet, Raw):
            return craft.eth(packet.data, craft.ETH_IPV6 if packet.data[:1] and packet.data[0] >> 4 == 6 else craft.ETH_IPV4)
        src, dst = self.hosts.get(packet.src, packet.src), self.hosts.get(packet.dst, packet.dst)
        if (":" in src) != (":" in dst):
            cannot(f"{src} and {dst}: expected addresses of one family")
        proto, payload = self._l4(packet, src, dst)
        return craft.eth(_ip(packet.ip, src, dst, proto, payload), craft.ETH_IPV6 if ":" in src else craft.ETH_IPV4)

    def _l4(self, packet: Packet, src: str, dst: str) -> tuple[int, bytes]:
        """Protocol and bytes above IP, as if nothing were cut."""
        l4, ports = packet.l4, (packet.sport or 0, packet.dport or 0)
        match l4:
            case Tcp():
                return craft.TCP, _tcp(l4, src, dst, ports)
            case Udp():
                return craft.UDP, _udp(l4, src, dst, ports)
            case UdpLite():
                return craft.UDPLITE, _udplite(l4, src, dst, ports)
            case Icmp():
                return (craft.ICMPV6 if l4.v6 else craft.ICMP), self._icmp(l4, src, dst)
            case Sctp():
                return craft.SCTP, _sctp(l4, ports)
            case Gre():
                return craft.GRE, _gre(l4)
            case Other():
                return l4.proto, payload_of(l4.data)

    def _icmp(self, icmp: Icmp, src: str, dst: str) -> bytes:
        payload = payload_of(icmp.data)
        if icmp.about is not None:
            payload = self._quote(icmp, dst) + payload
        data = struct.pack("!BBHHH", icmp.type, icmp.code, 0, icmp.id, icmp.seq) + payload
        # By the protocol and not by the addresses, since each may be over the wrong IP version (RFC 4443 2.3).
        extra = craft.pseudo(src, dst, craft.ICMPV6, len(data)) if icmp.v6 else b""
        return _sum(icmp.checksum, lambda value: craft.summed(data, 2, extra, value))

    def _quote(self, icmp: Icmp, dst: str) -> bytes:
        """The packet that an error is about; in a redirect of ICMPv6 as an option behind two addresses (RFC 4861 4.5)."""
        number = self.labels.get(icmp.about, -1) if isinstance(icmp.about, str) else icmp.about
        if number is None or not 0 <= number < len(self.frames):
            cannot(f"about {icmp.about if isinstance(icmp.about, str) else f'#{icmp.about}'}: expected an earlier step's number, from #0, or label")
        frame = self.frames[number] if icmp.ends is None else self._frame(_with_ends(self.packets[number], icmp.ends))
        quoted = frame[ETHERNET:][: QUOTED[icmp.v6] if icmp.quote is None else icmp.quote]
        if not (icmp.v6 and icmp.type == REDIRECT and ":" in dst):
            return quoted
        units = (8 + len(quoted) + 7) // 8
        return craft.address(dst) * 2 + (bytes([REDIRECTED_HEADER, units & 0xFF]) + bytes(6) + quoted).ljust(units * 8, b"\0")


def _with_ends(packet: Packet | Raw, ends: Ends) -> Packet:
    """The same packet between other ends."""
    if isinstance(packet, Raw):
        cannot("as: expected the quoted step to be no raw packet")
    l4 = packet.l4
    if isinstance(l4, WITH_PORTS):
        return replace(packet, src=ends.src, dst=ends.dst, sport=ends.sport, dport=ends.dport)
    if isinstance(l4, Icmp) and ends.sport is not None:
        l4 = replace(l4, id=ends.sport)
    return replace(packet, src=ends.src, dst=ends.dst, l4=l4)


class _Cannot(Exception):
    """What was asked for and cannot be; the place is added where it is known."""


def cannot(text: str) -> NoReturn:
    raise _Cannot(text)


def build(scenario: Scenario) -> list[bytes]:
    """All frames of a scenario. Raises ScenarioError."""
    builder = Builder(scenario.name or "scenario", scenario.hosts)
    return [builder.frame(step) for step in scenario.steps]


def payload_of(data: Data) -> bytes:
    return bytes(data) if isinstance(data, int) else data


def _sum(wanted: Checksum, make: Callable[[int | None], bytes]) -> bytes:
    """The bytes with the wanted checksum. make: what gives them with a value, or with the right one for None."""
    if isinstance(wanted, int):
        return make(wanted)
    right = make(None)
    return next(wrong for wrong in map(make, WRONG) if wrong != right) if wanted == "bad" else right


def _tcp(tcp: Tcp, src: str, dst: str, ports: tuple[int, int]) -> bytes:
    options = b"".join(map(_option, tcp.options))
    options += bytes(-len(options) % 4)
    fields: dict[str, Any] = {name: getattr(tcp, name) for name in ("seq", "ack", "win", "urg", "doff")}
    if tcp.doff is None and len(options) > 40:
        cannot(f"{len(options)} bytes of options: expected at most 40, or a doff")

    def segment(value: int | None) -> bytes:
        return craft.tcp_segment(src, dst, *ports, tcp.flags, options=options, payload=payload_of(tcp.data), l4_checksum=value, **fields)

    return _sum(tcp.checksum, segment)


def _option(option: Option) -> bytes:
    if isinstance(option.values, bytes):
        return option.values
    kind = OPTION_KINDS[option.name]
    if option.name in ("eol", "nop"):
        return bytes([kind])
    body = struct.pack(OPTION_FORMS.get(option.name, f"!{len(option.values)}I"), *option.values)
    return bytes([kind, 2 + len(body)]) + body


def _udp(udp: Udp, src: str, dst: str, ports: tuple[int, int]) -> bytes:
    payload = payload_of(udp.data)
    return _sum(udp.checksum, lambda value: craft.udp_segment(src, dst, *ports, payload, length=udp.length, l4_checksum=value))


def _udplite(lite: UdpLite, src: str, dst: str, ports: tuple[int, int]) -> bytes:
    proto = craft.UDP if lite.checksum == "udp" else craft.UDPLITE

    def datagram(value: int | None) -> bytes:
        return craft.udplite_datagram(src, dst, *ports, payload_of(lite.data), coverage=lite.coverage, l4_checksum=value, sum_proto=proto)

    return _sum(lite.checksum, datagram)


def _sctp(sctp: Sctp, ports: tuple[int, int]) -> bytes:
    chunks = b"".join(map(_chunk, sctp.chunks)) + sctp.tail
    return _sum(sctp.checksum, lambda value: craft.sctp_packet(*ports, sctp.tag, chunks, l4_checksum=value))


def _chunk(chunk: Chunk) -> bytes:
    fixed = b"" if chunk.tag is None else struct.pack("!IIHHI", chunk.tag, 65536, 1, 1, 1)
    return craft.sctp_chunk(chunk.type, chunk.flags, fixed + payload_of(chunk.body), length=chunk.length)


def _gre(gre: Gre) -> bytes:
    proto = gre.proto if gre.proto is not None else PPP if gre.version == 1 else craft.ETH_IPV4
    return craft.gre_packet(version=gre.version, proto=proto, call=gre.call, payload=payload_of(gre.data), flags=gre.flags)


# --- IP --------------------------------------------------------------------------------------------------------------------------------


def _ip(ip: Ip, src: str, dst: str, proto: int, payload: bytes) -> bytes:
    """The IP packet with what is to be cut off left out, and trailing bytes."""
    if len(payload) > MOST_BYTES:
        cannot(f"{len(payload):,} bytes above IP: expected at most {MOST_BYTES:,}")
    payload = payload if ip.cut is None else payload[: ip.cut]
    fragment = None
    if ip.frag is not None or ip.more is not None or ip.at is not None:
        offset, size = ip.frag or (0, None)
        piece = payload[offset : None if size is None else offset + size]
        more = ip.more if ip.more is not None else offset + len(piece) < len(payload)
        fragment = offset if ip.at is None else ip.at, more
        payload = piece
    return (_ipv6 if ":" in src else _ipv4)(ip, src, dst, proto, payload, fragment) + bytes(ip.pad)


def _ipv4(ip: Ip, src: str, dst: str, proto: int, payload: bytes, fragment: tuple[int, bool] | None) -> bytes:
    if ip.ext:
        cannot("ext: expected IPv6 addresses, IPv4 has no extension headers")
    options = ip.options + bytes(-len(ip.options) % 4)
    offset, more = fragment or (0, False)
    fields: dict[str, Any] = {
        "ttl": ip.ttl, "ident": ip.ident & 0xFFFF, "frag": ip.df << 14 | more << 13 | offset // 8, "tos": ip.tos, "options": options, "ihl": ip.ihl,
        "length": ip.length, "version": 4 if ip.version is None else ip.version,
    }  # fmt: skip
    if ip.ihl is None and len(options) > 40:
        cannot(f"{len(options)} bytes of IP options: expected at most 40, or an ihl")
    return _sum(ip.checksum, lambda value: craft.ipv4(src, dst, proto, payload, ip_checksum=value, **fields))


def _ipv6(ip: Ip, src: str, dst: str, proto: int, payload: bytes, fragment: tuple[int, bool] | None) -> bytes:
    for name, unset in (("df", False), ("options", b""), ("ihl", None), ("checksum", "good"), ("tos", 0)):
        if getattr(ip, name) != unset:
            cannot(f"{name}: expected IPv4 addresses, IPv6 has none that can be set")
    ext = tuple((header.type, craft.options6() if header.body is None else header.body) for header in ip.ext)
    if fragment:
        ext += ((craft.FRAGMENT, craft.fragment6(*fragment, ident=ip.ident)),)
    return craft.ipv6(src, dst, proto, payload, ttl=ip.ttl, ext=ext, length=ip.length, version=6 if ip.version is None else ip.version)
