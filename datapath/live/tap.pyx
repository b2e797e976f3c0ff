"""A tap device: an interface of this machine whose other end is here. Frames for a local stack or a VM are handed over by it.

Theory of operation: one system call for each frame, straight from and into chunks. The device promises no offloads to the stack, so that its packets
come whole, one by one and with their checksums: nothing is left to complete here.
Invariants: the device is there until close(), and not in the file system; a frame that finds its queue full is refused, not waited for.
Not here: addresses and routes of the interface, whether it is up (the host's, by netlink).
"""

import errno
import fcntl
import os
import struct

from libc.errno cimport EAGAIN, EBADFD, EINTR, EINVAL, ENETDOWN, ENOBUFS, ENODEV
from libc.errno cimport errno as last_error
from libc.stdint cimport int64_t, uint32_t, uint64_t
from posix.unistd cimport close as close_fd
from posix.unistd cimport read, write

from datapath.frame cimport Frame
from datapath.link cimport LINKTYPE_ETHERNET
from datapath.live.iface cimport Iface, wall_ns
from datapath.live.rows cimport Send
from datapath.live.umem cimport HELD, Umem, pool_give, pool_take

from datapath.live.interfaces import say

TUN_DEVICE = "/dev/net/tun"
TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000     # linux/if_tun.h: Ethernet frames, and nothing in front of them
IFF_MULTI_QUEUE = 0x0100
OPEN_ERRORS = {
    errno.ENOENT: "expected CONFIG_TUN, or modprobe tun", errno.ENODEV: "expected CONFIG_TUN, or modprobe tun",
    errno.EPERM: "expected root, or cap_net_admin", errno.EBUSY: "another process has a device of this name",
    errno.EINVAL: "it is there already, and of another kind: expected one with as many queues as are opened (multi_queue), or none",
    errno.E2BIG: "it has no more queues",
}


cdef class Tap(Iface):
    """A tap device. See tap.pyi."""
    cdef int headroom

    def __init__(self, Umem umem not None, str name not None, *, int worker=0, int ordinal=0, int headroom=0, bint several=False):
        if not 0 <= headroom <= 1024:
            raise ValueError(f"headroom = {headroom}: expected 0 to 1024")
        self.setup(umem, name, worker, ordinal)
        self.driver, self.headroom = "tap", headroom
        try:
            self.fd = os.open(TUN_DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
            answer = fcntl.ioctl(self.fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI | (IFF_MULTI_QUEUE if several else 0)))
        except OSError as error:
            self.close()
            raise say(f"{name}: tap", error.errno or 0, OPEN_ERRORS) from None
        self.name = answer[:16].rstrip(b"\0").decode()

    cdef int receive(self, Frame *rows, int most) noexcept nogil:
        cdef uint64_t chunk = 0
        cdef ssize_t length
        cdef uint64_t room = self.umem.chunk_size - self.headroom
        cdef int64_t now = 0
        cdef int n = 0
        while n < most:
            if pool_take(self.pool, &chunk, 1, HELD) == 0:
                self.counts.rx_no_chunk += 1
                break
            length = read(self.fd, self.pool.memory + chunk + self.headroom, room)
            if length <= 0:
                pool_give(self.pool, chunk, HELD)
                if length < 0 and last_error != EAGAIN and last_error != EINTR:
                    self.fail(last_error)
                break
            if <uint64_t>length == room:                    # one byte less is the largest frame that is known to be whole
                self.counts.rx_oversize += 1
                pool_give(self.pool, chunk, HELD)
                continue
            now = wall_ns() if now == 0 else now
            rows[n].offset, rows[n].caplen, rows[n].len = chunk + self.headroom, <uint32_t>length, <uint32_t>length
            rows[n].ts, rows[n].link, rows[n].iface = now, LINKTYPE_ETHERNET, self.ordinal
            self.counts.rx_bytes += length
            n += 1
        self.counts.rx += n
        return n

    cdef int send(self, const Send *rows, int n) noexcept nogil:
        cdef int i
        for i in range(n):
            self.counts.kicks += 1
            if write(self.fd, self.pool.memory + rows[i].offset, rows[i].len) >= 0:
                self.counts.tx += 1
                self.counts.tx_bytes += rows[i].len
                self.trouble = 0
            elif last_error == EAGAIN or last_error == ENOBUFS:
                self.counts.tx_ring_full += n - i
                return i
            elif last_error == EINVAL:                      # shorter than an Ethernet header
                self.counts.tx_invalid += 1
            else:
                self.fail(last_error)
                self.counts.kick_gone += self.trouble == ENODEV
                self.counts.kick_down += self.trouble == ENETDOWN
                self.counts.tx_down += n - i
                return i
            pool_give(self.pool, rows[i].offset, HELD)
        return n

    cdef void fail(self, int number) noexcept nogil:
        """EIO: the interface is down; EBADFD: it is gone."""
        self.trouble = ENODEV if number == EBADFD else ENETDOWN

    def close(self):
        if not self.closed:
            super().close()
            if self.fd >= 0:
                os.close(self.fd)
                self.fd = -1

    def __dealloc__(self):
        if self.fd >= 0:
            close_fd(self.fd)
