"""Network namespaces of this process's own, and the cables between them, or from one to this process.

Theory of operation: a namespace has no name and no mount: it lives as long as a file descriptor of this process does, and its interfaces with it. So
there is nothing to clean up outside this process, not even after SIGKILL. A socket belongs to the namespace of the thread that made it and works
from every thread.
Invariants: nothing is ever made in the namespace the process started in; a thread that enters a namespace leaves it again, also by an exception.
Not here: what is put into a namespace (bridge), what is sent (oracle).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from pyroute2 import IPRoute

from datapath.errors import KernelError

CLONE_NEWNET = 0x40000000
SIOCETHTOOL = 0x8946
# ETHTOOL_S{RXCSUM,TXCSUM,SG,TSO,GSO,GRO} of linux/ethtool.h
OFFLOADS = (0x15, 0x17, 0x19, 0x1F, 0x24, 0x2C)

TUN_DEVICE = "/dev/net/tun"
TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000  # linux/if_tun.h: Ethernet frames, and nothing in front of them

libc = ctypes.CDLL(None, use_errno=True)


def checked(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def this_namespace() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


class Namespace:
    """One network stack, alive until close() and until its last socket is closed."""

    def __init__(self) -> None:
        home = this_namespace()
        try:
            checked(libc.unshare(CLONE_NEWNET), "new network namespace")
            self.fd = this_namespace()
            checked(libc.setns(home, CLONE_NEWNET), "back to the namespace before")
        finally:
            os.close(home)

    def prepare(self) -> None:
        """Sysctls that must be set before the first interface is there."""

    @property
    def inode(self) -> int:
        """Its number, by which the kernel tells namespaces apart."""
        return os.fstat(self.fd).st_ino

    @contextmanager
    def entered(self) -> Iterator[None]:
        """This thread is inside; sockets made here belong to this stack."""
        before = this_namespace()
        try:
            checked(libc.setns(self.fd, CLONE_NEWNET), "enter a namespace")
            try:
                yield
            finally:
                checked(libc.setns(before, CLONE_NEWNET), "leave a namespace")
        finally:
            os.close(before)

    @contextmanager
    def netlink(self) -> Iterator[IPRoute]:
        with self.entered(), IPRoute() as netlink:
            yield netlink

    def sysctl(self, name: str, value: object) -> None:
        """name: the path below /proc/sys/net, such as ipv4/ip_forward."""
        with self.entered(), open(f"/proc/sys/net/{name}", "w") as file:
            file.write(str(value))

    def route(self, command: str, family: int, destination: str, **route: str) -> None:
        with self.netlink() as netlink:
            netlink.route(command, family=family, dst=destination, **route)

    def mtu(self, interface: str, size: int) -> None:
        with self.netlink() as netlink:
            netlink.link("set", index=netlink.link_lookup(ifname=interface)[0], mtu=size)

    def close(self) -> None:
        os.close(self.fd)


def cable(left: Namespace, right: Namespace, names: tuple[str, str], addresses: tuple[str, str]) -> None:
    """A veth pair between two namespaces, up, without offloads: a frame has the size and the checksums it would have on a real cable.

    names and addresses (MAC): of the end in the left and of that in the right namespace.
    """
    peer = {"ifname": names[1], "address": addresses[1], "net_ns_fd": right.fd}
    with left.netlink() as netlink:
        netlink.link("add", kind="veth", ifname=names[0], address=addresses[0], peer=peer)
    for namespace, name in ((left, names[0]), (right, names[1])):
        with namespace.netlink() as netlink:
            offloads_off(name)
            netlink.link("set", index=netlink.link_lookup(ifname=name)[0], state="up")
            netlink.link("set", index=1, state="up")


class Tap:
    """An interface of a namespace, up, whose cable ends in this process: what is sent arrives there.

    Its packets lie in memory as a NIC's driver leaves them, with room in front (NET_SKB_PAD): those that come through a veth pair have just enough
    for the header they came with.
    """

    def __init__(self, namespace: Namespace, name: str, address: str) -> None:
        """address: MAC."""
        try:
            with namespace.entered():
                self.fd = os.open(TUN_DEVICE, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
                raise
            raise KernelError(f"{TUN_DEVICE}: {error.strerror}: expected CONFIG_TUN, or modprobe tun") from None
        try:
            fcntl.ioctl(self.fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
            with namespace.netlink() as netlink:
                netlink.link("set", index=netlink.link_lookup(ifname=name)[0], address=address, state="up")
                netlink.link("set", index=1, state="up")
        except BaseException:
            self.close()
            raise

    def send(self, frame: bytes) -> None:
        """When it returns, the stack has taken the frame as far as the first queue."""
        os.write(self.fd, frame)

    def close(self) -> None:
        """The interface goes with it."""
        os.close(self.fd)


def offloads_off(interface: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for command in OFFLOADS:
            setting = ctypes.create_string_buffer(struct.pack("II", command, 0))
            fcntl.ioctl(sock, SIOCETHTOOL, struct.pack("16sP16x", interface.encode(), ctypes.addressof(setting)))
