"""Packets of flows that are the kernel's pass XDP, all others are ours: frame by frame, and against a twin in Python on random frames."""

from __future__ import annotations

import errno
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datapath import craft
from datapath.live.xdp_bypass import GRE, KEY, TCP, UDP, XdpBypass
from datapath.live.xdp_filter import EVERYTHING, Filter, Steering
from pcap_tests.conftest import examples

SOL_XDP, XDP_RX_RING, AF_XDP = 283, 2, 44
A, B, C, A6, B6 = "10.0.0.1", "10.1.0.2", "10.1.0.3", "2001:db8::1", "2001:db8:1::2"


def key(src: str, dst: str, sport: int, dport: int, proto: int = TCP) -> bytes:
    ports = (struct.pack("!H", port) for port in (sport, dport))
    return KEY.pack(craft.address(src), craft.address(dst), *ports, proto, 6 if ":" in src else 4)


@contextmanager
def bypassed(*keys: bytes, wanted: Filter = EVERYTHING, most: int = 64) -> Iterator[tuple[XdpBypass, Steering]]:
    """A program in the kernel whose queue 0 has a socket, on no interface."""
    bypass = XdpBypass(most)
    assert not any(bypass.put(keys))
    made = Steering(wanted, bypass)
    try:
        with socket.socket(AF_XDP, socket.SOCK_RAW) as held:
            held.setsockopt(SOL_XDP, XDP_RX_RING, 64)
            made.put(0, held.fileno())
            yield bypass, made
    finally:
        made.close()
        bypass.close()


def passed(*frames: bytes, keys: list[bytes]) -> list[bool]:
    with bypassed(*keys) as (_, made):
        return [not made.test(frame) for frame in frames]


KEYS = [key(A, B, 40000, 80), key(B, A, 80, 40000), key(A6, B6, 40000, 80), key(A, B, 53, 53, UDP), key(A, B, 0, 0, GRE), key(A6, B6, 0, 0, GRE)]


def test_a_flow_of_the_kernel_passes_in_its_own_direction(interfaces):
    frames = [craft.tcp(A, B, 40000, 80), craft.tcp(B, A, 80, 40000), craft.tcp(A6, B6, 40000, 80), craft.tcp(B6, A6, 80, 40000)]
    assert passed(*frames, keys=KEYS) == [True, True, True, False]
    others = [craft.tcp(A, B, 40001, 80), craft.tcp(A, C, 40000, 80), craft.udp(A, B, 40000, 80), craft.icmp(A, B, 8), craft.udp(A, B, 53, 53)]
    assert passed(*others, keys=KEYS) == [False, False, False, False, True]


def test_what_ends_a_connection_is_ours_and_a_syn_is_not(interfaces):
    frames = [craft.tcp(A, B, 40000, 80, flags=craft.tcp_flags(letters)) for letters in ("A", "PA", "S", "SA", "FA", "R", "RA", "FPU")]
    assert passed(*frames, keys=KEYS) == [True, True, True, True, False, False, False, False]


def test_what_hardware_would_not_have_is_ours(interfaces):
    frames = [
        craft.tcp(A, B, 40000, 80, frag=0x2000),
        craft.tcp(A, B, 40000, 80, frag=0x0001),
        craft.tcp(A, B, 40000, 80, frag=0x4000),  # "do not cut up" is no fragment
        craft.eth(craft.ipv4(A, B, 6, craft.tcp_segment(A, B, 40000, 80), options=bytes(4))),
        craft.tcp(A, B, 40000, 80, ttl=0),
        craft.tcp(A, B, 40000, 80, ttl=1),
        craft.tcp(A, B, 40000, 80, ttl=2),
        craft.eth(craft.ip(A, B, TCP, craft.tcp_segment(A, B, 40000, 80)), vlan=(5,)),
        craft.tcp(A, B, 40000, 80)[:53],
        craft.eth(craft.ip(A6, B6, 44, craft.fragment6() + craft.tcp_segment(A6, B6, 40000, 80)), 0x86DD),
    ]
    assert passed(*frames, keys=KEYS) == [False, False, True, False, False, False, True, False, False, False]


def test_gre_without_keys(interfaces):
    frames = [craft.gre(A, B), craft.gre(A, B, version=1, call=5), craft.gre(A6, B6), craft.gre(B, A)]
    assert passed(*frames, keys=KEYS) == [True, False, True, False]


def test_the_filter_comes_first(interfaces):
    with bypassed(*KEYS, wanted=Filter(passed_types=frozenset({0x0800}))) as (bypass, made):
        assert not made.test(craft.tcp(A, B, 40000, 80)) and bypass.packets(KEYS[0]) == 0


def test_packets_are_counted_and_keys_leave(interfaces):
    with bypassed(*KEYS) as (bypass, made):
        for _ in range(3):
            made.test(craft.tcp(A, B, 40000, 80))
        assert [bypass.packets(each) for each in KEYS[:3]] == [3, 0, 0]
        bypass.remove([KEYS[0], key(A, C, 1, 1), KEYS[2]])
        assert [bypass.packets(each) for each in KEYS[:3]] == [None, 0, None]
        assert made.test(craft.tcp(A, B, 40000, 80)) and not made.test(craft.tcp(B, A, 80, 40000))
        bypass.shut()
        assert made.test(craft.tcp(B, A, 80, 40000)) and bypass.map.keys(1) == []


def test_nothing_is_let_by_while_it_is_shut(interfaces):
    with bypassed(KEYS[0]) as (bypass, made):
        bypass.shut()
        assert bypass.put([KEYS[0], KEYS[1]]) == [errno.ESHUTDOWN] * 2 and bypass.map.keys(1) == []
        assert made.test(craft.tcp(A, B, 40000, 80))
        bypass.open()
        assert bypass.put([KEYS[0]]) == [0] and not made.test(craft.tcp(A, B, 40000, 80))


def test_what_another_thread_puts_meanwhile_does_not_stay(interfaces):
    bypass, ended = XdpBypass(1 << 10), threading.Event()
    keys = [key(A, B, port, 80) for port in range(500)]

    def at_it() -> None:
        while not ended.is_set():
            bypass.put(keys)

    thread = threading.Thread(target=at_it)
    thread.start()
    try:
        for _ in range(50):
            bypass.open()
            time.sleep(0.001)
            bypass.shut()
            assert bypass.map.keys(1) == []
    finally:
        ended.set()
        thread.join(10)
        bypass.close()


def test_a_key_is_one_connections_and_room_is_bounded(interfaces):
    with bypassed(*KEYS[:2], most=4) as (bypass, _):
        keys = [KEYS[0], *(key(A, B, port, 1) for port in range(200))]
        said = bypass.put(keys)
        assert said[0] == errno.EBUSY and said[1:3] == [0, 0] and errno.ENOSPC in said
        bypass.remove(keys[1:])
        assert bypass.put([keys[1]]) == [0]


def test_many_keys(interfaces):
    bypass = XdpBypass(1 << 16)
    keys = [key(A, B, port, 80) for port in range(20_000)]
    assert not any(bypass.put(keys))
    bypass.remove(keys[::2])
    assert [bypass.packets(each) for each in keys[:4]] == [None, 0, None, 0]
    bypass.shut()
    assert bypass.map.keys(1) == []
    bypass.close()


WITHOUT_BPF = """
from datapath.live import privileges
from datapath.live.xdp_bypass import KEY, XdpBypass
bypass = XdpBypass(8)
privileges.drop(None, {"NET_ADMIN"})
print(bypass.put([bytes(KEY.size)]), bypass.packets(bytes(KEY.size)))
bypass.remove([bytes(KEY.size)])
bypass.shut()
print(bypass.packets(bytes(KEY.size)))
"""


def test_keys_come_and_go_when_the_right_to_make_maps_is_given_up(interfaces):
    done = subprocess.run([sys.executable, "-c", WITHOUT_BPF], capture_output=True, text=True)
    assert (done.stdout.splitlines(), done.stderr) == (["[0] 0", "None"], "")


# --- against a twin ---------------------------------------------------------------------------------------------------------------------------

PORTS = st.sampled_from([0, 53, 80])
PAIRS = st.sampled_from([(A, B), (B, A), (A, A), (A6, B6), (B6, A6)])
SOME_KEYS = st.builds(lambda pair, sport, dport, proto: key(*pair, sport, dport, proto), PAIRS, PORTS, PORTS, st.sampled_from([TCP, UDP, GRE, 132]))


@st.composite
def frames(draw) -> bytes:
    src, dst = draw(PAIRS)
    proto = draw(st.sampled_from([TCP, TCP, UDP, UDP, GRE, 132]))
    rest = draw(st.binary(max_size=4)).ljust(draw(st.sampled_from([2, 9, 16])), b"\x10")
    body = struct.pack("!HH", draw(PORTS), draw(PORTS)) + rest
    more = {"ttl": draw(st.sampled_from([0, 1, 2, 64, 255]))}
    if ":" not in src:
        more |= {"frag": draw(st.sampled_from([0, 0, 0x4000, 0x2000, 5, 0x8000])), "options": bytes(draw(st.sampled_from([0, 0, 0, 8])))}
    whole = craft.eth(craft.ip(src, dst, proto, body, **more), 0x86DD if ":" in src else 0x0800)
    header = 54 if ":" in src else 34
    return whole[: draw(st.sampled_from([len(whole)] * 4 + [header, header + 3, header + 7, header + 19]))]  # shorter ones are no question here


def twin(keys: set[bytes], frame: bytes) -> bool:
    """Whether it is let by."""
    version = 6 if frame[12:14] == b"\x86\xdd" else 4
    header = 54 if version == 6 else 34
    if version == 4 and (frame[14] != 0x45 or int.from_bytes(frame[20:22], "big") & 0x3FFF):
        return False
    ttl, proto, ends = (frame[21], frame[20], frame[22:54]) if version == 6 else (frame[22], frame[23], frame[26:34])
    rest = frame[header:]
    if ttl <= 1 or len(rest) < {TCP: 20, UDP: 8, GRE: 4}.get(proto, 1 << 16):
        return False
    if (proto == TCP and rest[13] & 5) or (proto == GRE and rest[1] & 7):
        return False
    half = len(ends) // 2
    ports = (bytes(2), bytes(2)) if proto == GRE else (rest[:2], rest[2:4])
    return KEY.pack(ends[:half], ends[half:], *ports, proto, version) in keys


@settings(max_examples=examples(150))
@given(keys=st.sets(SOME_KEYS, max_size=40), several=st.lists(frames(), min_size=1, max_size=30))
def test_the_program_lets_by_what_the_twin_does(interfaces, keys, several):
    with bypassed(*keys) as (bypass, made):
        assert [not made.test(frame) for frame in several] == [twin(keys, frame) for frame in several]
        assert sum(bypass.packets(each) or 0 for each in keys) == sum(twin(keys, frame) for frame in several)


def test_the_twin_has_both_kinds_to_tell():
    assert twin({KEYS[0]}, craft.tcp(A, B, 40000, 80)) and not twin({KEYS[1]}, craft.tcp(A, B, 40000, 80))


@pytest.mark.parametrize("syn_rate", [0, 5000])
def test_beside_a_limit_for_opening_segments(interfaces, syn_rate):
    syn = craft.tcp(A, B, 40000, 80, flags=craft.tcp_flags("S"))
    with bypassed(KEYS[0], wanted=Filter(syn_rate=syn_rate, ports=(("tcp", 22),))) as (_, made):
        assert not made.test(syn) and made.test(craft.tcp(A, B, 40001, 80, flags=craft.tcp_flags("S")))
