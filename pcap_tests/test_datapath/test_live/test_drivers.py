"""How an interface is opened: the best that works, with a sentence for each thing that was tried."""

from __future__ import annotations

import errno
import threading

import pytest

from ctcore.errors import ConfigError
from datapath import craft
from datapath.errors import KernelError
from datapath.live import drivers
from datapath.live.config import parse
from datapath.live.drivers import Wanted, open_interface
from datapath.live.node import Node
from datapath.live.packet_socket import PacketSocket
from datapath.live.settings import XskSettings
from datapath.live.tap import Tap
from datapath.live.umem import Umem
from datapath.live.xdp_filter import EVERYTHING, Steering
from datapath.live.xsk import Xsk
from pcap_tests.test_datapath.test_live.wires import received, sent, until

FRAME = craft.udp("10.0.0.1", "10.0.0.2", 1, 2, b"x" * 20)


@pytest.mark.parametrize(
    ("driver", "taken", "kind"), [("auto", "xdp-native", Xsk), ("xdp-generic", "xdp-generic", Xsk), ("packet", "packet", PacketSocket)]
)
def test_each_driver_receives_and_sends(wire, driver, taken, kind):
    umem = Umem(4096)
    with wire.here.entered(), open_interface(umem, wire.near, Wanted(driver=driver, filter=EVERYTHING)) as opened, wire.end() as far:
        assert (opened.driver, [type(iface) for iface in opened.ifaces]) == (taken, [kind])
        far.send(FRAME)
        assert received(opened.ifaces[0], 1) == [FRAME]
        assert sent(opened.ifaces[0], [FRAME]) == 1
        assert far.recv(2048) == FRAME
    assert umem.places() == {"free": 4096}


def test_what_was_tried_is_said(wire):
    with wire.here.entered():
        with wire.here.netlink() as netlink:
            netlink.link("set", index=1, mtu=1500, state="up")
        with open_interface(Umem(4096), "lo") as opened:
            assert opened.driver == "xdp-generic"
            assert len(opened.said) == 2
            assert opened.said[0].startswith("lo: xdp-native: XDP in native mode: ")
            assert opened.said[0].endswith("(EOPNOTSUPP): the interface's driver has no XDP")
            assert opened.said[1].startswith("lo: XDP in the stack, on copies")


def test_without_xdp_it_is_af_packet(wire, monkeypatch):
    """As on a kernel without AF_XDP, or without cap_bpf."""

    def refused(*_: object, **__: object) -> None:
        raise KernelError("BPF program ctmirror: Operation not permitted", errno.EPERM)

    umem = Umem(4096)
    monkeypatch.setattr(drivers, "Steering", refused)
    with wire.here.entered(), open_interface(umem, wire.near) as opened:
        assert opened.driver == "packet"
        assert [line.partition(": ")[2][:12] for line in opened.said] == ["xdp-native: ", "xdp-generic:", "AF_PACKET: s"]
        assert "(EPERM): this process may not: expected root, or cap_bpf and cap_net_admin" in opened.said[0]
        assert umem.places() == {"free": 4096}  # nothing is left of what was tried


def test_a_node_that_only_watches_sends_to_nobody(wire, tmp_path):
    """Two workers: each counts for itself, and there is no device of that name."""
    rules = f"tc filter add dev {wire.near} ingress protocol ip prio 1 flower action ct commit pipe action pass\n"
    (tmp_path / "rules.tc").write_text(rules)
    ifaces = f'[[iface]]\nname = "{wire.near}"\ndriver = "packet"\ninward = "nowhere"\n[[iface]]\nname = "nowhere"\ndriver = "null"\n'
    config = parse(f'rules = "{tmp_path}/rules.tc"\nworkers = 2\n{ifaces}[control]\nsocket = ""\n', "node.toml")
    with wire.here.entered(), Node(config) as node:
        assert [opened.driver for opened in node.opened] == ["packet", "null"]
        worker = threading.Thread(target=node.work)
        worker.start()
        try:
            with wire.end() as far:
                for i in range(40):
                    far.send(craft.udp("10.0.0.1", "10.0.0.2", 1000 + i, 53, b"?"))
                until(lambda: node.ask(lambda node: node.count).result(10) == 40, "forty connections")
            assert sum(node.ask(lambda node: [iface.statistics()["tx"] for iface in node.opened[1].ifaces]).result(10)) >= 40
        finally:
            node.stop()
            worker.join()


def test_zero_copy_alone_is_refused_for_what_it_is(wire):
    """And not for want of XDP, which the same number would mean."""
    wanted = Wanted("xdp-native", xsk=XskSettings(zero_copy=True))
    with wire.here.entered(), pytest.raises(KernelError, match=r"expected a driver that can do zero-copy: leave zero_copy off \(EOPNOTSUPP\)$"):
        open_interface(Umem(4096), wire.near, wanted)


def test_zero_copy_falls_back_and_says_so(wire):
    with wire.here.entered(), open_interface(Umem(4096), wire.near, Wanted(xsk=XskSettings(zero_copy=True))) as opened:
        assert opened.driver == "xdp-native" and not opened.ifaces[0].zero_copy
        assert "zero-copy" in opened.said[0] and "frames are copied" in opened.said[0]


def test_another_program_ends_it_even_for_auto(wire):
    other = Steering()
    with wire.here.entered():
        other.attach(wire.near)
        umem = Umem(4096)
        with pytest.raises(KernelError, match="another XDP program is attached, which is not ours to remove") as refused:
            open_interface(umem, wire.near)
        assert refused.value.number == errno.EBUSY
        assert umem.places() == {"free": 4096}
    other.close()


def test_a_driver_that_is_asked_for_is_the_only_one_tried(wire):
    with wire.here.entered():
        with wire.here.netlink() as netlink:
            netlink.link("set", index=1, mtu=1500, state="up")
        with pytest.raises(KernelError, match=r"^lo: xdp-native: XDP in native mode: [^;]*$"):
            open_interface(Umem(4096), "lo", Wanted(driver="xdp-native", xsk=XskSettings(ring=64, tx_budget=32)))


def test_every_queue_has_an_iface(wires):
    wire = wires(queues=3)
    with wire.here.entered(), open_interface(Umem(8192, workers=2), wire.near) as opened:
        assert [(iface.queue, iface.worker) for iface in opened.ifaces] == [(0, 0), (1, 1), (2, 0)]
        assert opened.said == ["near: XDP in the driver, 3 queues"]


def test_a_tap(wire):
    with wire.here.entered(), open_interface(Umem(16), "tap9", Wanted(driver="tap")) as opened:
        assert isinstance(opened.ifaces[0], Tap) and opened.ifaces[0].name == "tap9"


def test_a_driver_that_does_not_exist():
    with pytest.raises(ConfigError, match="driver = dpdk: expected one of auto, xdp-native, xdp-generic, packet, tap"):
        Wanted(driver="dpdk")
