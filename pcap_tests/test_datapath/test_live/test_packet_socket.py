"""AF_PACKET: frames come and go as they are, with what the kernel takes out of them and leaves undone put right."""

from __future__ import annotations

import socket

import pytest

from datapath import craft
from datapath.errors import KernelError
from datapath.live.packet_socket import PacketSocket
from datapath.live.settings import PacketSettings
from datapath.live.umem import Umem
from pcap_tests.test_datapath.test_live.wires import received, sent, sound, until

A, B = "10.0.0.1", "10.0.0.2"


def numbered(n: int) -> list[bytes]:
    return [craft.udp(A, B, 1000, 53, i.to_bytes(4, "big") * 5) for i in range(n)]


def test_frames_come_and_go_as_they_are_and_ours_do_not_come_back(wire):
    umem = Umem(512)
    frames = [*numbered(150), craft.udp(A, B, 1, 2, bytes(range(256)) * 5)]
    with wire.here.entered(), PacketSocket(umem, wire.near, ordinal=2) as iface, wire.end() as far:
        for frame in frames:
            far.send(frame)
        assert received(iface, len(frames)) == frames
        assert sent(iface, frames) == len(frames)
        assert [far.recv(2048) for _ in frames] == frames
        far.send(frames[0])
        assert received(iface, 1) == frames[:1]
        counts = iface.statistics()
        assert (counts["rx"], counts["tx"]) == (len(frames) + 1, len(frames))
        sound(umem, iface)
    assert umem.places() == {"free": 512}


def test_vlan_tags_are_where_they_were(wire):
    frames = [
        craft.eth(craft.ipv4(A, B, 17, bytes(30)), vlan=(7,)), craft.eth(craft.ipv4(A, B, 17, bytes(30)), vlan=(7, 9)),
        craft.eth(craft.ipv4(A, B, 17, bytes(30)), vlan=(0x6005,), tag=0x88A8),
    ]  # fmt: skip
    with wire.here.entered(), PacketSocket(Umem(64), wire.near) as iface, wire.end() as far:
        for frame in frames:
            far.send(frame)
        assert received(iface, 3) == frames


def test_a_local_stacks_checksum_is_completed(wires):
    wire = wires(address=A)
    with wire.here.entered(), PacketSocket(Umem(64), wire.near) as iface, wire.there.entered():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
            add_neighbour(wire, B)
            asker.bind((A, 1000))
            asker.sendto(b"question", (B, 53))
        (frame,) = received(iface, 1)
        assert frame[34:] == craft.udp_segment(A, B, 1000, 53, b"question")
        assert iface.statistics()["rx_completed"] == 1


def add_neighbour(wire, address: str) -> None:
    with wire.there.netlink() as netlink:
        netlink.neigh("add", dst=address, lladdr="02:00:00:00:00:02", ifindex=netlink.link_lookup(ifname=wire.far)[0])


def test_what_does_not_fit_in_a_chunk_is_counted(wire):
    umem = Umem(64)
    with wire.here.entered(), PacketSocket(umem, wire.near) as iface, wire.end() as far:
        for namespace, name in wire.ends:
            wire.set(namespace, name, mtu=9000)
        far.send(craft.udp(A, B, 1, 2, bytes(4000)))
        far.send(numbered(1)[0])
        assert received(iface, 1) == numbered(1)
        assert iface.statistics()["rx_oversize"] == 1
        sound(umem, iface)


def test_without_free_chunks_frames_are_counted_and_dropped(wire):
    umem = Umem(4)
    with wire.here.entered(), PacketSocket(umem, wire.near) as iface, wire.end() as far:
        held = umem.put([b""] * 4)
        far.send(numbered(1)[0])
        until(lambda: len(iface.receive_batch()) or iface.statistics()["rx_no_chunk"], "a frame without a chunk")
        umem.give(held["offset"])
        far.send(numbered(2)[1])
        assert received(iface, 1) == numbered(2)[1:]


def test_a_full_ring_is_counted(wire):
    """Two blocks of 16 KB, and nobody takes what comes."""
    with wire.here.entered(), PacketSocket(Umem(1024), wire.near, settings=PacketSettings(blocks=2, block_size=1 << 14)) as iface, wire.end() as far:
        for frame in numbered(1000):
            far.send(frame)
        until(lambda: iface.statistics()["rx_ring_full"], "a full ring")
        kept = 1000 - iface.statistics()["rx_ring_full"]
        assert [frame[-4:] for frame in received(iface, kept)] == [i.to_bytes(4, "big") for i in range(kept)]


def test_frames_larger_than_the_mtu_are_refused_and_the_rest_goes(wire):
    umem = Umem(64)
    with wire.here.entered(), PacketSocket(umem, wire.near) as iface, wire.end() as far:
        assert sent(iface, [b"short", numbered(1)[0], bytes(1800), numbered(2)[1]]) == 4
        assert [far.recv(2048) for _ in range(2)] == numbered(2)
        assert iface.statistics()["tx_refused"] == 2
        sound(umem, iface)
    assert umem.places() == {"free": 64}


def test_down_up_and_gone(wire):
    umem = Umem(64)
    with wire.here.entered(), PacketSocket(umem, wire.near) as iface:
        wire.set(wire.here, wire.near, state="down")
        assert (sent(iface, numbered(3)), iface.condition) == (0, "down")
        wire.set(wire.here, wire.near, state="up")
        assert iface.look() == "up"
        with wire.end() as far:
            assert sent(iface, numbered(3)) == 3
            assert [far.recv(2048) for _ in range(3)] == numbered(3)
            far.send(numbered(1)[0])
            assert received(iface, 1) == numbered(1)
        wire.remove()
        assert iface.look() == "gone"
        assert sent(iface, numbered(3)) == 0
        assert iface.statistics()["tx_down"] == 6
        assert len(iface.receive_batch()) == 0
        sound(umem, iface)


def test_what_cannot_be_says_what_was_expected(wire):
    with wire.here.entered():
        with pytest.raises(KernelError, match=r"nowhere: .*no such interface"):
            PacketSocket(Umem(64), "nowhere")
        wire.set(wire.here, wire.near, mtu=2100)
        with pytest.raises(KernelError, match="near: MTU 2100: expected at most 2030 with chunks of 2048 bytes"):
            PacketSocket(Umem(64), wire.near)
