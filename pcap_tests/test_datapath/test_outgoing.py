"""Packets that went out at their interface, where the capture says so; and by which rules they go."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datapath import craft
from datapath.frame import FRAME_DTYPE, LINK_ETHERNET, LINK_SLL, LINK_SLL2, frames_of
from datapath.outgoing import outgoing
from pcap_tests import capture_files as files
from pcap_tests.test_datapath.command import records, run

CLIENT, SERVER = "10.0.0.2", "198.51.100.1"
REQUEST, ANSWER = craft.udp(CLIENT, SERVER, 5353, 53, b"who?"), craft.udp(SERVER, CLIENT, 53, 5353, b"you!")
RULES = """
tc qdisc add dev eth0 clsact
tc filter add dev eth0 ingress protocol ip prio 1 flower action ct zone 1 pipe action ct commit zone 1 pipe action pass
tc filter add dev eth0 egress protocol ip prio 1 flower action ct zone 1 pipe action pass
"""


def flags(order: str, value: int) -> bytes:
    return files.option(order, 2, struct.pack(order + "I", value))


def said(source) -> list[bool]:
    memory, frames = source.read(100)
    return outgoing(memory, frames, blocks=source.format.startswith("pcapng")).tolist()


@pytest.mark.parametrize("order", "<>")
def test_flags_of_enhanced_packet_blocks(tmp_path, order):
    comment, end = files.option(order, 1, b"a comment"), bytes(4)
    options = [
        b"",
        flags(order, 1) + end,
        flags(order, 2) + end,
        comment + flags(order, 2) + end,
        flags(order, 0x1E) + end,
        comment + end,
        flags(order, 2),
    ]
    blocks = [files.enhanced(REQUEST[: 42 + i % 3], order=order, options=each) for i, each in enumerate(options)]
    with files.opened(tmp_path, files.section(order) + files.interface(order) + b"".join(blocks)) as source:
        assert said(source) == [False, False, True, True, True, False, True]


def test_other_blocks_say_nothing(tmp_path):
    data = files.section() + files.interface() + files.obsolete(REQUEST) + files.simple(REQUEST) + files.enhanced(REQUEST)
    with files.opened(tmp_path, data) as source:
        assert said(source) == [False, False, False]


def cooked(packet: bytes, kind: int, link: int) -> bytes:
    if link == LINK_SLL:
        return struct.pack("!HHH8sH", kind, 1, 6, bytes(8), 0x0800) + packet[14:]
    return struct.pack("!HHIHBB8s", 0x0800, 0, 3, 1, kind, 6, bytes(8)) + packet[14:]


@pytest.mark.parametrize("link", [LINK_SLL, LINK_SLL2])
def test_packet_types_of_linux_cooked_captures(link):
    """linux/if_packet.h: host, broadcast, multicast, otherhost, outgoing."""
    memory, frames = frames_of([cooked(REQUEST, kind, link) for kind in range(6)], link=link)
    assert outgoing(memory, frames, blocks=False).tolist() == [False] * 4 + [True, False]
    frames["caplen"] = 1
    assert not outgoing(memory, frames, blocks=False).any()


@given(st.binary(max_size=200), st.data())
def test_nothing_outside_of_the_memory_is_read(memory, data):
    """Whatever blocks and options say of their lengths: what lies behind the memory makes no difference."""
    at = data.draw(st.integers(0, len(memory)))
    frames = np.zeros(1, dtype=FRAME_DTYPE)
    frames["offset"], frames["caplen"], frames["link"] = at, len(memory) - at, data.draw(st.sampled_from([LINK_ETHERNET, LINK_SLL, LINK_SLL2]))
    whole = np.frombuffer(memory + flags("<", 2) * 8, dtype=np.uint8)
    assert outgoing(whole[: len(memory)], frames, blocks=True) == outgoing(np.frombuffer(memory, dtype=np.uint8).copy(), frames, blocks=True)


# --- through rules ------------------------------------------------------------------------------------------------------------------------


def capture_of(tmp_path, *, told: bool):
    """A host's own capture: a request came in at eth0, and its answer went out."""
    directions = (1, 2) if told else (0, 0)
    blocks = [
        files.enhanced(each, i, options=flags("<", way) + bytes(4)) for i, (each, way) in enumerate(zip((REQUEST, ANSWER), directions, strict=True))
    ]
    (tmp_path / "host.pcapng").write_bytes(files.section() + files.interface() + b"".join(blocks))
    (tmp_path / "host.tc").write_text(RULES)
    return tmp_path / "host.pcapng", tmp_path / "host.tc"


def replayed(capfd, capture, rules, *more):
    code, out, err = run(capfd, "replay", capture, "--rules", rules, "--packets", "-", "-q", *more)
    assert (code, err) == (0, "")
    return [(each["state"], each["to"], each["rule"].rpartition(":")[2]) for each in records(out)]


def test_what_went_out_goes_by_the_rules_at_egress(capfd, tmp_path):
    assert replayed(capfd, *capture_of(tmp_path, told=True)) == [("new", "eth0", "3"), ("established", "eth0", "4")]


def test_without_a_word_in_the_capture_everything_came_in(capfd, tmp_path):
    assert replayed(capfd, *capture_of(tmp_path, told=False)) == [("new", "eth0", "3"), ("established", "eth0", "3")]


@pytest.mark.parametrize("link", [LINK_SLL, LINK_SLL2])
@pytest.mark.parametrize(("device", "lines"), [((), ["3", "4"]), (("--device", "eth0"), ["3", "4"]), (("--device", "eth0:ingress"), ["3", "3"])])
def test_a_capture_of_any_interface(capfd, tmp_path, link, device, lines):
    """As tcpdump -i any writes it; a direction behind the device is for all packets."""
    (tmp_path / "any.pcap").write_bytes(files.pcap((1, 0, cooked(REQUEST, 0, link)), (2, 0, cooked(ANSWER, 4, link)), link=link))
    _, rules = capture_of(tmp_path, told=True)
    assert [line for _, _, line in replayed(capfd, tmp_path / "any.pcap", rules, *device)] == lines


def test_summary_and_explain_tell_where_packets_came_to(capfd, tmp_path):
    capture, rules = capture_of(tmp_path, told=True)
    assert "packets came to: eth0 ingress 1, eth0 egress 1" in run(capfd, "replay", capture, "--rules", rules)[1]
    assert "arrives     dev eth0 ingress, by its interface 'eth0'" in run(capfd, "explain", capture, "--packet", "0", "--rules", rules)[1]
    out = run(capfd, "explain", capture, "--packet", "1", "--rules", rules)[1]
    assert "arrives     dev eth0 egress, by the interface 'eth0' it went out by, as the capture says" in out
    assert [line for line in run(capfd, "explain", capture, "--conn", "0", "--rules", rules)[1].splitlines() if "host.tc:4" in line]
