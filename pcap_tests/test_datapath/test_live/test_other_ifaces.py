"""tap, captures and null: the ifaces without rings."""

from __future__ import annotations

import socket

import pytest

from ctcore.errors import CaptureError
from datapath import craft
from datapath.capture import PcapSource
from datapath.errors import KernelError
from datapath.frame import frames_of
from datapath.live.capture_iface import CaptureIface
from datapath.live.null import Null
from datapath.live.tap import Tap
from datapath.live.umem import Umem
from datapath.oracle.namespace import Namespace
from datapath.sink import PcapSink
from pcap_tests.test_datapath.test_live.wires import received, sent, sound, until

A, B = "10.0.0.1", "10.0.0.2"


def numbered(n: int) -> list[bytes]:
    return [craft.udp(A, B, 1000, 53, i.to_bytes(4, "big") * 5) for i in range(n)]


@pytest.fixture
def stack(interfaces):
    namespace = Namespace()
    yield namespace
    namespace.close()


def up(namespace: Namespace, name: str) -> None:
    with namespace.netlink() as netlink:
        index = netlink.link_lookup(ifname=name)[0]
        netlink.link("set", index=index, state="up", address="02:00:00:00:00:01")
        netlink.addr("add", index=index, address=A, prefixlen=24)
        netlink.neigh("add", dst=B, lladdr="02:00:00:00:00:02", ifindex=index)


def test_a_local_stack_talks_through_a_tap_with_sound_checksums(stack):
    umem = Umem(64)
    with stack.entered(), Tap(umem, "tap%d", headroom=64) as tap:
        assert tap.name == "tap0"
        stack.sysctl("ipv6/conf/tap0/disable_ipv6", 1)
        up(stack, tap.name)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as talker:
            talker.bind((A, 1000))
            talker.settimeout(5)
            talker.sendto(b"question", (B, 53))
            (frame,) = received(tap, 1)
            assert frame[34:] == craft.udp_segment(A, B, 1000, 53, b"question")
            answer = craft.udp(B, A, 53, 1000, b"answer")
            assert sent(tap, [bytes.fromhex("020000000001020000000002") + answer[12:]]) == 1
            assert talker.recv(100) == b"answer"
        sound(umem, tap)
    assert umem.places() == {"free": 64}


def test_a_tap_that_is_down_refuses(stack):
    umem = Umem(64)
    with stack.entered(), Tap(umem, "tap0") as tap:
        assert sent(tap, numbered(3)) == 0
        assert (tap.condition, tap.statistics()["tx_down"]) == ("down", 3)
        up(stack, "tap0")
        assert sent(tap, [b"short", *numbered(2)]) == 3
        assert (tap.condition, tap.statistics()["tx"], tap.statistics()["tx_invalid"]) == ("up", 2, 1)
        with stack.netlink() as netlink:
            netlink.link("del", index=netlink.link_lookup(ifname="tap0")[0])
        assert sent(tap, numbered(1)) == 0
        assert len(tap.receive_batch()) == 0
        assert tap.condition == "gone"
        sound(umem, tap)


def test_a_tap_of_another_process_is_refused(stack):
    with stack.entered(), Tap(Umem(4), "tap0"), pytest.raises(KernelError, match=r"tap0: tap: .*another process has a device of this name"):
        Tap(Umem(4), "tap0")


def test_null_counts():
    umem = Umem(64)
    null = Null(umem)
    assert sent(null, numbered(5)) == 5
    counts = null.statistics()
    assert (counts["tx"], counts["tx_bytes"]) == (5, 5 * 62)
    assert len(null.receive_batch()) == 0
    assert umem.places() == {"free": 64}


def written(path, frames: list[bytes], **options) -> str:
    with PcapSink(path, **options) as sink:
        sink.write(*frames_of(frames, ts=list(range(len(frames)))))
    return str(path)


@pytest.mark.parametrize("ending", ["pcap", "pcapng"])
def test_a_capture_in_and_one_out(tmp_path, ending):
    umem = Umem(64)
    frames = numbered(150)
    source = written(tmp_path / f"in.{ending}", frames)
    with CaptureIface(umem, source=source, sink=tmp_path / f"out.{ending}", ordinal=5) as iface:
        found = []
        while not iface.ended:
            rows = iface.receive_batch(40)
            found += [(int(row["ts"]), int(row["iface"]), umem.memory[row["offset"] :][: row["len"]].tobytes()) for row in rows]
            umem.give(rows["offset"])
        assert found == [(i, 5, frame) for i, frame in enumerate(frames)]
        assert sent(iface, frames[:50]) == 50
        sound(umem, iface)
    with PcapSource(tmp_path / f"out.{ending}") as out:
        memory, rows = out.read(1000)
        assert [memory[row["offset"] :][: row["len"]].tobytes() for row in rows] == frames[:50]
    assert umem.places() == {"free": 64}


def test_a_capture_waits_for_free_chunks(tmp_path):
    umem = Umem(8)
    source = written(tmp_path / "in.pcap", numbered(20))
    with CaptureIface(umem, source=source) as iface:
        rows = iface.receive_batch(64)
        assert len(rows) == 8
        assert len(iface.receive_batch()) == 0
        umem.give(rows["offset"])
        assert [frame[-4:] for frame in received(iface, 12)] == [i.to_bytes(4, "big") for i in range(8, 20)]


def test_a_damaged_capture_ends_and_says_why(tmp_path):
    source = written(tmp_path / "in.pcap", numbered(3))
    (tmp_path / "cut.pcap").write_bytes((tmp_path / "in.pcap").read_bytes()[:-10])
    assert source
    with CaptureIface(Umem(8), source=tmp_path / "cut.pcap") as iface:
        assert received(iface, 2) == numbered(2)
        until(lambda: not len(iface.receive_batch()) and iface.ended, "the end")
        assert isinstance(iface.error, CaptureError) and "truncated" in str(iface.error)


def test_frames_that_are_no_ethernet_or_too_large_are_counted(tmp_path):
    with PcapSink(tmp_path / "in.pcapng") as sink:
        sink.write(*frames_of([bytes(3000), craft.ipv4(A, B, 17), numbered(1)[0]], link=[1, 101, 1]))
    with CaptureIface(Umem(8), source=tmp_path / "in.pcapng") as iface:
        assert received(iface, 1) == numbered(1)
        assert (iface.statistics()["rx_oversize"], iface.statistics()["rx_invalid"]) == (1, 1)
