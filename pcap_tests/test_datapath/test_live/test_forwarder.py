"""Real stacks talk through the plain forwarder: the ring code, two ifaces, one memory, and the checksums that stacks leave to NICs."""

from __future__ import annotations

import hashlib
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from datapath import craft
from datapath.live.drivers import Wanted, open_interface
from datapath.live.forwarder import Forwarder
from datapath.live.null import Null
from datapath.live.umem import Umem
from datapath.live.xdp_filter import EVERYTHING
from pcap_tests.test_datapath.test_live.wires import PATIENCE, Wire, sound, until

CLIENT, SERVER = "10.0.0.1", "10.0.0.2"
FRAME = craft.udp(CLIENT, SERVER, 1, 2, b"x" * 20)


@contextmanager
def joined(wires, driver: str, **options) -> Iterator[tuple[Forwarder, Wire, Wire]]:
    """A client's wire and a server's, and the forwarder at work between them."""
    umem = Umem(8192)
    left, right = wires("left", address=CLIENT), wires("right", address=SERVER)
    with (
        left.here.entered(),
        open_interface(umem, "left", Wanted(driver=driver, filter=EVERYTHING)) as a,
        open_interface(umem, "right", Wanted(driver=driver, ordinal=1, filter=EVERYTHING)) as b,
    ):
        forwarder = Forwarder(a.ifaces[0], b.ifaces[0], **options)
        thread = threading.Thread(target=forwarder.run)
        thread.start()
        try:
            yield forwarder, left, right
        finally:
            forwarder.stop()
            thread.join(PATIENCE)
            assert not thread.is_alive()
            sound(umem, a.ifaces[0], b.ifaces[0])
    assert umem.places() == {"free": 8192}


def digest_of_what_comes(listener: socket.socket, into: list[str]) -> None:
    connection, _ = listener.accept()
    with connection:
        found = hashlib.sha256()
        while data := connection.recv(65536):
            found.update(data)
        into.append(found.hexdigest())


@pytest.mark.parametrize(("driver", "size"), [("xdp-native", 20_000_000), ("xdp-generic", 20_000), ("packet", 20_000_000)])
def test_a_download_arrives_as_it_was_sent(wires, driver, size):
    """The stack would have a NIC cut its segments up: with XDP in the driver it does so itself, from AF_PACKET they are cut up here. XDP in the stack
    gets only what is small as it is."""
    data = bytes(range(256)) * (size // 256)
    with joined(wires, driver, partial=True) as (forwarder, left, right):
        with right.there.entered():
            listener = socket.create_server((SERVER, 8000))
        digests: list[str] = []
        taker = threading.Thread(target=digest_of_what_comes, args=(listener, digests))
        taker.start()
        with left.there.entered():
            talker = socket.create_connection((SERVER, 8000), timeout=PATIENCE)
        with talker:
            for at in range(0, len(data), 1000 if size < 100_000 else 65536):
                talker.sendall(data[at : at + (1000 if size < 100_000 else 65536)])
        taker.join(20)
        listener.close()
        assert digests == [hashlib.sha256(data).hexdigest()]
        counts = forwarder.left.statistics()
        assert counts["rx_completed"] > 0
        assert (counts["rx_cut"] > 0) == (driver == "packet")


def test_without_completing_checksums_no_connection_comes_about(wires):
    """What the completing is for: a SYN whose sum was left to a NIC is dropped by the other stack."""
    with joined(wires, "xdp-native") as (_, left, right):
        with right.there.entered():
            listener = socket.create_server((SERVER, 8000))
        with left.there.entered(), pytest.raises(TimeoutError):
            socket.create_connection((SERVER, 8000), timeout=0.5)
        listener.close()


def test_two_workers_share_memory_and_nothing_else(wires):
    """A thread for each queue, chunks of its own for each; whichever queue a frame comes by, it arrives, and every chunk is found again."""
    umem = Umem(8192, workers=2)
    left, right = wires("left", queues=2), wires("right", queues=2)
    with (
        left.here.entered(),
        open_interface(umem, "left", Wanted(filter=EVERYTHING)) as a,
        open_interface(umem, "right", Wanted(ordinal=1, filter=EVERYTHING)) as b,
        left.end() as client,
        right.end() as server,
    ):
        workers = [Forwarder(*pair) for pair in zip(a.ifaces, b.ifaces, strict=True)]
        threads = [threading.Thread(target=worker.run) for worker in workers]
        for thread in threads:
            thread.start()
        try:
            for start in range(0, 1000, 100):  # as many as the receiving socket has room for
                for number in range(start, start + 100):  # a flow each: a veth's queue is chosen by it
                    client.send(craft.udp(CLIENT, SERVER, 1000 + number, 2, number.to_bytes(4, "big")))
                assert sorted(int.from_bytes(server.recv(2048)[-4:], "big") for _ in range(100)) == list(range(start, start + 100))
        finally:
            for worker in workers:
                worker.stop()
            for thread in threads:
                thread.join(PATIENCE)
        sound(umem, *a.ifaces, *b.ifaces)
        assert all(iface.statistics()["rx"] > 0 for iface in a.ifaces)
    assert umem.places() == {"free": 16384}
    assert [umem.free(worker) for worker in range(2)] == [8192, 8192]


def test_mac_addresses_are_rewritten_by_direction(wires):
    there, back = bytes.fromhex("0200000000aa0200000000bb"), bytes.fromhex("0200000000cc0200000000dd")
    with joined(wires, "xdp-native", to_right=there, to_left=back) as (_, left, right), left.end() as client, right.end() as server:
        client.send(FRAME)
        assert next(frame for frame in iter(lambda: server.recv(2048), b"") if frame[12:] == FRAME[12:]) == there + FRAME[12:]
        server.send(FRAME)
        assert next(frame for frame in iter(lambda: client.recv(2048), b"") if frame[:12] == back) == back + FRAME[12:]


def test_what_the_other_side_refuses_is_counted_and_its_chunks_are_free(wires):
    """The other device is gone; the loop goes on, sleeps, and loses no chunk."""
    with joined(wires, "xdp-native") as (forwarder, left, right), left.end() as client:
        right.remove()
        until(lambda: forwarder.right.look() == "gone", "the device to go")
        for _ in range(500):
            client.send(FRAME)
        until(lambda: forwarder.counters()["dropped"] >= 500, "drops")
        assert forwarder.right.statistics()["tx_down"] >= 500
        before, kicks = forwarder.counters(), forwarder.right.statistics()["kicks"]
        time.sleep(0.3)
        after = forwarder.counters()
        assert after["waits"] - before["waits"] >= 5
        assert after["rounds"] - before["rounds"] < 3000
        assert forwarder.right.statistics()["kicks"] == kicks


def test_an_idle_forwarder_sleeps(wires):
    with joined(wires, "xdp-native") as (forwarder, *_):
        until(lambda: forwarder.counters()["waits"] > 3, "sleep")
        used = time.clock_gettime(time.CLOCK_PROCESS_CPUTIME_ID)
        time.sleep(0.5)
        assert time.clock_gettime(time.CLOCK_PROCESS_CPUTIME_ID) - used < 0.25


def test_receiving_only(wires):
    umem = Umem(4096)
    wire = wires()
    with wire.here.entered(), open_interface(umem, wire.near, Wanted(filter=EVERYTHING)) as opened, wire.end() as far:
        for _ in range(200):
            far.send(FRAME)
        null = Null(umem)
        Forwarder(opened.ifaces[0], null).run(0.2)
        assert null.statistics()["tx"] == 200


def test_two_ifaces_of_different_memories_are_refused():
    with pytest.raises(ValueError, match="expected two ifaces of one worker on one memory"):
        Forwarder(Null(Umem(4)), Null(Umem(4)))
    umem = Umem(4, workers=2)
    with pytest.raises(ValueError, match="one worker"):
        Forwarder(Null(umem), Null(umem, worker=1))
    with pytest.raises(ValueError, match="batch = 0: expected 1 to 1024"):
        Forwarder(Null(umem), Null(umem), batch=0)
    with pytest.raises(ValueError, match="expected 12 bytes"):
        Forwarder(Null(umem), Null(umem), to_left=bytes(6))
