"""The recorder and the captures it made.

Recording needs root and network namespaces; without them those tests are skipped and say why, or fail if CTMIRROR_REQUIRE_KERNEL=1.
The committed captures are checked everywhere: readable by an independent reader, right checksums, no address outside the test ranges.
"""

from __future__ import annotations

import ctypes
import ipaddress
import itertools
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, defragment
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6PacketTooBig,
    IPv6,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrSegmentRouting,
    defragment6,
)
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.packet import Packet
from scapy.utils import rdpcap

from pcap_tests import record
from pcap_tests.netns import Network, delay, unavailable
from pcap_tests.required import cannot

CAPTURES = sorted(record.CAPTURES.glob("*.pcap"))
ROOT = Path(__file__).parent.parent
OURS = [ipaddress.ip_network(net) for net in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32", "fe80::/64", "ff02::/16")]
PR_CAPBSET_DROP, CAP_SYS_ADMIN = 24, 21


@pytest.fixture(scope="session")
def kernel() -> None:
    if obstacle := unavailable():
        cannot(f"recording {obstacle}")


def rebuilt(packet: Packet) -> bytes:
    """The packet with its checksums computed anew by scapy; those of fragments are left, they are over the whole datagram."""
    copy = packet.copy()
    fragment = IPv6ExtHdrFragment in packet or (IP in packet and (packet[IP].frag or packet[IP].flags.MF))
    for layer in headers(copy):
        for name in ("chksum", "cksum"):
            if name in layer.fields and (isinstance(layer, IP) or not fragment):
                delattr(layer, name)
    return bytes(copy)


def headers(packet: Packet) -> list[Packet]:
    """The packet's layers from the outside in, up to what an ICMP error quotes."""
    found = []
    while packet and not type(packet).__name__.startswith("IPerror"):
        found.append(packet)
        packet = packet.payload
    return found


def flags(packets: list[Packet], *, sport: int | None = None, dport: int | None = None) -> list[str]:
    wanted = [p[TCP] for p in packets if TCP in p and (sport is None or p[TCP].sport == sport) and (dport is None or p[TCP].dport == dport)]
    return [str(tcp.flags) for tcp in wanted]


# --- recording -------------------------------------------------------------------------------------------------------------------------


def test_http_is_recorded_from_syn_to_last_ack(kernel: None, tmp_path: Path) -> None:
    assert record.main(["--only", "http-ipv4", "--only", "closed-ports", "-o", str(tmp_path)]) == 0
    packets = rdpcap(str(tmp_path / "http-ipv4.pcap"))
    conversation = flags(packets)
    assert conversation[:3] == ["S", "SA", "A"]
    assert "FA" in flags(packets, sport=80) and "FA" in flags(packets, dport=80) and conversation[-1] == "A"
    assert b"".join(bytes(p[TCP].payload) for p in packets if TCP in p and p[TCP].dport == 80).startswith(b"GET /bytes/500 HTTP/1.1\r\n")
    assert all(rebuilt(packet) == bytes(packet) for packet in packets)
    assert [frame for _, frame in record.read_pcap(tmp_path / "http-ipv4.pcap")] == [bytes(packet) for packet in packets]


def test_a_frame_stamped_when_it_was_read_does_not_overtake_the_next() -> None:
    assert record.in_order([(50, b"SYN"), (10, b"SYN/ACK"), (30, b"ACK")]) == [(10, b"SYN"), (10, b"SYN/ACK"), (30, b"ACK")]


def test_closed_ports_answer_by_rst_and_by_icmp(kernel: None) -> None:
    packets = [Ether(frame) for _, frame in record.record(record.SCENES["closed-ports"])]
    assert flags(packets).count("S") == flags(packets).count("RA") == 6
    assert sum(ICMP in p and (p[ICMP].type, p[ICMP].code) == (3, 3) for p in packets) == 3
    assert sum(ICMPv6DestUnreach in p and p[ICMPv6DestUnreach].code == 4 for p in packets) == 3
    assert all(rebuilt(packet) == bytes(packet) for packet in packets)


def left_behind() -> tuple:
    """What a scene could leave: open files, threads, interfaces, named namespaces."""
    names = Path("/run/netns")
    return (
        sorted(path for path in (os.readlink(f"/proc/self/fd/{fd}") for fd in open_files()) if path.startswith(("net:", "socket:", "anon_inode:"))),
        sorted(thread.name for thread in threading.enumerate()),
        socket.if_nameindex(),
        sorted(names.iterdir()) if names.exists() else [],
    )


def open_files() -> list[str]:
    def is_open(fd: str) -> bool:
        return os.path.lexists(f"/proc/self/fd/{fd}")

    return [fd for fd in os.listdir("/proc/self/fd") if is_open(fd)]


@pytest.mark.parametrize("accident", [OSError("the scene went wrong"), KeyboardInterrupt()], ids=repr)
def test_nothing_is_left_when_a_scene_raises(kernel: None, accident: BaseException) -> None:
    def act(net: Network, family: int) -> None:
        net.client.socket(family, socket.SOCK_DGRAM).connect(("198.51.100.10", 9))
        raise accident

    wired = record.Scene("accident", act, (socket.AF_INET,), False, {"core": (lambda side, number, frame: [(1.0, frame)],)})
    before = left_behind()
    with pytest.raises(type(accident)):
        record.record(wired)
    assert left_behind() == before
    assert not any(name.startswith("ctm-") for _, name in socket.if_nameindex())


def test_a_failing_wire_is_reported(kernel: None) -> None:
    def broken(side: int, number: int, frame: bytes) -> list:
        raise ValueError("the cable is cut")

    def act(net: Network, family: int) -> None:
        net.client.socket(family, socket.SOCK_DGRAM).sendto(b"hello", ("198.51.100.10", 9))

    with pytest.raises(ValueError, match="the cable is cut"):
        record.record(record.Scene("cut", act, (socket.AF_INET,), False, {"core": (broken,)}))


def test_wires_stop_before_their_links_go(kernel: None) -> None:
    """A wire that is busy while the network closes does not find its link gone when it reads on."""

    def busy(side: int, number: int, frame: bytes) -> list:
        time.sleep(0.3)
        return [(0.0, frame)]

    with Network(access=(busy, delay(0.0))) as net, net.client.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"hello", ("198.51.100.10", 9))


def test_without_privileges_one_line_says_so(tmp_path: Path) -> None:
    def give_up_privileges() -> None:
        ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_SYS_ADMIN)

    command = [sys.executable, "-m", "pcap_tests.record", "-o", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, preexec_fn=give_up_privileges)
    assert done.returncode == 2
    assert done.stderr.startswith("record: needs root") and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_list_names_every_scene(capsys: pytest.CaptureFixture) -> None:
    assert record.main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(record.SCENES)


# --- the committed captures ------------------------------------------------------------------------------------------------------------


def committed(name: str) -> list[Packet]:
    return list(rdpcap(str(record.CAPTURES / f"{name}.pcap")))


def addresses(packet: Packet) -> set[str]:
    found = [layer for layer in headers(packet) if isinstance(layer, IP | IPv6 | ARP)]
    return {str(layer.fields[name]) for layer in found for name in ("src", "dst", "psrc", "pdst") if name in layer.fields}


@pytest.mark.parametrize("path", CAPTURES, ids=lambda path: path.stem)
def test_committed_capture_is_clean(path: Path) -> None:
    """It reads with scapy, in order of time; checksums are right; every address is of a range that belongs to nobody."""
    packets = rdpcap(str(path))
    times = [packet.time for packet in packets]
    assert times == sorted(times)
    for number, packet in enumerate(packets):
        assert rebuilt(packet) == bytes(packet), f"{path.name}: packet {number}: {packet.summary()}"
        for address in addresses(packet):
            assert address == "::" or any(ipaddress.ip_address(address) in network for network in OURS), f"{path.name}: packet {number}: {address}"
        assert packet[Ether].src.startswith("02:00:00:00:")


def test_captures_are_those_of_the_scenes_and_small() -> None:
    assert {path.stem for path in CAPTURES} == {record.DEMO, *record.SCENES}
    sizes = {path.stem: path.stat().st_size for path in CAPTURES}
    assert sizes.pop(record.DEMO) <= 300_000
    assert max(sizes.values()) <= 200_000 and sum(sizes.values()) <= 1_200_000


def test_readme_is_of_these_captures() -> None:
    assert (record.CAPTURES / "README.md").read_text() == record.readme(record.CAPTURES)


def test_demo_is_the_short_scenes_in_order() -> None:
    demo = record.read_pcap(record.CAPTURES / "demo.pcap")
    parts = [record.read_pcap(record.CAPTURES / f"{name}.pcap") for name, scene in record.SCENES.items() if scene.demo]
    assert demo == sorted(frame for part in parts for frame in part)


@pytest.mark.parametrize("name", ["fragments", "path-mtu-ipv4", "path-mtu-ipv6", "ipv6-extension-headers"])
def test_fragments_make_whole_datagrams(name: str) -> None:
    packets = committed(name)
    whole = list(defragment([p for p in packets if IP in p and p[IP].frag + p[IP].flags.MF]))
    by_id: dict[tuple, list[Packet]] = {}
    for packet in packets:
        if IPv6ExtHdrFragment in packet:
            by_id.setdefault((packet[IPv6].src, packet[IPv6ExtHdrFragment].id), []).append(packet)
    whole += [defragment6(fragments) for fragments in by_id.values()]
    assert whole
    for packet in whole:
        datagram = type(packet)(bytes(packet))
        assert IPv6ExtHdrFragment not in datagram and rebuilt(datagram) == bytes(datagram)


Seen = Callable[[list[Packet]], bool]
WHAT_IS_IN_IT: dict[str, Seen] = {
    "short-connections": lambda ps: flags(ps).count("S") == flags(ps).count("SA") == 60,
    "udp": lambda ps: max(p.time for p in ps if UDP in p and p[UDP].dport == 5302) - min(p.time for p in ps if UDP in p and p[UDP].dport == 5302) > 2,
    "unreachable": lambda ps: {p[ICMP].code for p in ps if ICMP in p and p[ICMP].type == 3} == {0, 1, 13},
    "hop-limit": lambda ps: any(ICMP in p and p[ICMP].type == 11 for p in ps),
    "path-mtu-ipv4": lambda ps: any(ICMP in p and (p[ICMP].type, p[ICMP].code, p[ICMP].nexthopmtu) == (3, 4, 1280) for p in ps),
    "path-mtu-ipv6": lambda ps: any(ICMPv6PacketTooBig in p and p[ICMPv6PacketTooBig].mtu == 1280 for p in ps),
    "resets": lambda ps: flags(ps).count("RA") >= 6 and flags(ps).count("R") >= 2,
    "half-open": lambda ps: flags(ps) == ["S"] * 8,
    "idle": lambda ps: max(b - a for a, b in itertools.pairwise(p.time for p in ps if TCP in p)) > 0.9,
    "simultaneous-open": lambda ps: flags(ps)[:4] == ["S", "S", "SA", "SA"],
    "simultaneous-close": lambda ps: flags(ps)[-4:] == ["FA", "FA", "A", "A"],
    "loss": lambda ps: any(name == "SAck" for p in ps if TCP in p for name, _ in p[TCP].options),
    "zero-window": lambda ps: any(TCP in p and p[TCP].window == 0 and p[TCP].flags == "A" for p in ps),
    "port-reuse": lambda ps: flags(ps, dport=7900).count("S") == 6 and {p[TCP].sport for p in ps if TCP in p and p[TCP].dport == 7900} == {40000},
    "fast-open": lambda ps: sum(TCP in p and p[TCP].flags == "S" and len(p[TCP].payload) > 0 for p in ps) == 4,
    "ipv6-extension-headers": lambda ps: any(IPv6ExtHdrHopByHop in p and TCP in p for p in ps),
    "ipv6-segment-routing": lambda ps: sum(IPv6ExtHdrSegmentRouting in p for p in ps) == 3,
    "vlan": lambda ps: all(p[Dot1Q].vlan == 10 for p in ps),
    "qinq": lambda ps: all((p[Dot1AD].vlan, p[Dot1Q].vlan) == (100, 10) for p in ps),
}


@pytest.mark.parametrize("name", WHAT_IS_IN_IT)
def test_capture_holds_what_its_line_says(name: str) -> None:
    assert WHAT_IS_IN_IT[name](committed(name))
