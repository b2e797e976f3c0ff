"""Captures without Ethernet headers are planned as if they had them: the same traffic, however it was captured, gives the same plan."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest

from datapath import craft, frame
from datapath.commands.framed import HEADERS, framed
from datapath.frame import frames_of
from datapath.link import inner
from datapath.sink import PcapSink
from pcap_tests.test_datapath.command import run
from pcap_tests.test_offload.planned import MS, Traffic, conn

START = 1_700_000_000 * 10**9
# By link type, what stands before IP: cooked as of an interface (ARPHRD 1), an address of 6 bytes.
BEFORE = {
    frame.LINK_SLL: lambda kind: struct.pack("!HHH8sH", 0, 1, 6, bytes(range(8)), kind),
    frame.LINK_SLL2: lambda kind: struct.pack("!HHIHBB8s", kind, 0, 2, 1, 0, 6, bytes(range(8))),
    frame.LINK_NULL: lambda kind: struct.pack("<I", 2 if kind == 0x0800 else 10),
    frame.LINK_LOOP: lambda kind: struct.pack("!I", 2 if kind == 0x0800 else 10),
}
LINKS = sorted(HEADERS)
TRAFFIC = sorted([*conn(40000, 20, fin=True), *conn(40001, 5, at=30), (7 * MS, craft.udp("2001:db8::1", "2001:db8::2", 5000, 53, b"?" * 60))])

pytestmark = pytest.mark.usefixtures("compiled_nic")


def captured(link: int, traffic: Traffic) -> list[bytes]:
    """The same packets as a capture of that link type has them."""
    if link == frame.LINK_ETHERNET:
        return [packet for _, packet in traffic]
    before = BEFORE.get(link, lambda kind: b"")
    return [before(int.from_bytes(packet[12:14], "big")) + packet[14:] for _, packet in traffic]


def capture(path, link: int, traffic: Traffic) -> str:
    with PcapSink(str(path), link=link) as sink:
        memory, frames = frames_of(captured(link, traffic), [START + at for at, _ in traffic], link)
        sink.write(memory, frames)
    return str(path)


@pytest.mark.parametrize("link", [link for link in LINKS if link not in (frame.LINK_IPV4, frame.LINK_IPV6)])
def test_the_same_traffic_gives_the_same_plan(capfd, tmp_path, link):
    plans = []
    for kind in (link, frame.LINK_ETHERNET):
        code, out, err = run(capfd, "offload", "plan", capture(tmp_path / f"{kind}.pcap", kind, TRAFFIC), "--nic", "connectx-7-hw", "-q", "--json")
        assert (code, err) == (0, "")
        plans.append(json.loads(out))
    assert [plan["framed"] for plan in plans] == [len(TRAFFIC), 0]
    assert plans[0]["scenarios"] == plans[1]["scenarios"]
    assert plans[0]["scenarios"][0]["packets"]["hardware"] > 20


@pytest.mark.parametrize("link", LINKS)
def test_what_stands_in_a_frame_stays(link):
    kept = {frame.LINK_IPV4: 4, frame.LINK_IPV6: 6}.get(link, 0)
    traffic = [one for one in TRAFFIC if not kept or one[1][14] >> 4 == kept]
    memory, frames = frames_of(captured(link, traffic), 7, link)
    frames["len"] += 5  # cut short by the capture
    frames["iface"] = 3
    own, made, n = framed(memory, frames)
    assert n == len(traffic) and (made["link"] == frame.LINK_ETHERNET).all() and (made["ts"] == 7).all() and (made["iface"] == 3).all()
    found = [own[one["offset"] : one["offset"] + one["caplen"]].tobytes() for one in made]
    assert found == [bytes(12) + packet[12:] for _, packet in traffic]
    assert (made["len"] - made["caplen"] == 5).all()
    assert (inner(own, made)["family"] == inner(memory, frames)["family"]).all()


def test_ethernet_and_broken_frames_stay_among_others():
    packets = [TRAFFIC[0][1], captured(frame.LINK_SLL, TRAFFIC)[0], b"\0" * 16, b"", TRAFFIC[1][1]]
    memory, frames = frames_of(packets, 0, [frame.LINK_ETHERNET, *[frame.LINK_SLL] * 3, frame.LINK_ETHERNET])
    own, made, n = framed(memory, frames)
    assert n == 1 and made["link"].tolist() == [frame.LINK_ETHERNET] * 2 + [frame.LINK_SLL] * 2 + [frame.LINK_ETHERNET]
    found = [own[one["offset"] : one["offset"] + one["caplen"]].tobytes() for one in made]
    assert found == [packets[0], bytes(12) + TRAFFIC[0][1][12:], packets[2], packets[3], packets[4]]
    alone = framed(memory, frames[:1])
    assert alone[0] is memory and alone[2] == 0


def test_tags_behind_a_cooked_header_are_kept():
    tagged = struct.pack("!HHH8sH", 0, 1, 6, bytes(8), 0x8100) + struct.pack("!HH", 7, 0x0800) + TRAFFIC[0][1][14:]
    own, made, _ = framed(*frames_of([tagged], 0, frame.LINK_SLL))
    assert own[: made["caplen"][0]].tobytes() == bytes(12) + struct.pack("!HHH", 0x8100, 7, 0x0800) + TRAFFIC[0][1][14:]


def test_no_frames():
    memory, frames = frames_of([])
    assert len(framed(memory, frames)[1]) == 0 and np.array_equal(framed(memory, frames)[0], memory)


def test_why_audit_and_the_table_take_them_so_and_a_replay_leaves_them(capfd, tmp_path):
    cooked = capture(tmp_path / "cooked.pcap", frame.LINK_SLL, TRAFFIC)
    code, out, _ = run(capfd, "offload", "plan", cooked, "--nic", "perfect")
    assert code == 0 and f"{len(TRAFFIC)} packets captured without Ethernet header, and taken as if there were one\n" in out and "nic:link" not in out
    code, out, _ = run(capfd, "offload", "why", cooked, "--conn", "0", "--nic", "perfect")
    assert code == 0 and "21 packets forwarded in hardware" in out
    assert run(capfd, "offload", "audit", cooked, "--nic", "perfect")[0] == 0
    code, out, _ = run(capfd, "replay", cooked, "--nic", "perfect", "-w", tmp_path / "out.pcap")
    assert code == 0 and "0 of 35 packets (0.0%) in hardware" in out
    assert "ctmirror offload plan takes them as if they had come in Ethernet frames" in out
    assert (tmp_path / "out.pcap").read_bytes() == (tmp_path / "cooked.pcap").read_bytes()
