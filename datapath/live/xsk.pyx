"""AF_XDP: frames of one receive queue of an interface, in memory that is shared with the kernel.

Theory of operation: chunks go round. Free ones are put into the ring `filling`; the kernel writes a frame into each and hands it over in `received`;
the worker holds it, and sends it by the ring `sending` of this or another iface; when it is gone, its chunk comes back in `sent` and is free. Rings
are filled and read in batches; tidy() makes one system call for what is to be sent. Which frames come here instead of to the host is xdp_filter's
business. Invariants: every chunk that the kernel has is in the ledger as ours (outside, on_way). Room in `sent` is never short: it has as many slots
as `sending`, and is read before more is sent.
Order of setting up: memory, rings, bind, chunks, then the filter's map, and the program last. Of closing: the program's link, this, the memory.
Not supported: frames in several chunks (multi-buffer). An interface whose MTU needs them is refused.
"""

import errno
import os
import time

from libc.errno cimport EAGAIN, EBUSY, ENETDOWN, ENOBUFS, ENODEV, ENXIO
from libc.errno cimport errno as last_error
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memset
from posix.unistd cimport close as close_fd

from ctcore.lowlevel cimport likely, prefetch_write, unlikely
from datapath.link cimport LINKTYPE_ETHERNET
from datapath.live.iface cimport PRESSED, wall_ns
from datapath.live.ring cimport (
    NEED_WAKEUP, Address, Counts, Desc, Memory, Offsets, ring_filled, ring_room, ring_waiting, load_acquire, store_release,
)
from datapath.live.umem cimport HELD, Umem, pool_give, pool_move, pool_take

from datapath.errors import KernelError
from datapath.live.interfaces import index_of, mtu_of, say
from datapath.live.settings import XskSettings

cdef extern from "<sys/mman.h>" nogil:
    void *mmap(void *address, size_t length, int protection, int flags, int fd, long long offset)
    int munmap(void *address, size_t length)
    enum:
        PROT_READ, PROT_WRITE, MAP_SHARED, MAP_POPULATE
    void *MAP_FAILED

cdef extern from "<sys/socket.h>" nogil:
    ctypedef unsigned int socklen_t
    int open_socket "socket"(int family, int kind, int protocol)
    ctypedef struct sockaddr "struct sockaddr":
        pass
    int bind(int fd, const sockaddr *address, socklen_t length)
    int getsockopt(int fd, int level, int name, void *value, socklen_t *length)
    int setsockopt(int fd, int level, int name, const void *value, socklen_t length)
    ssize_t sendto(int fd, const void *data, size_t n, int flags, const void *address, socklen_t length)
    ssize_t recvfrom(int fd, void *data, size_t n, int flags, void *address, socklen_t *length)
    enum:
        MSG_DONTWAIT, SOCK_RAW, SOCK_CLOEXEC, SOL_SOCKET, SO_ERROR

# linux/if_xdp.h and asm-generic/socket.h
cdef enum:
    AF_XDP = 44
    SOL_XDP = 283
    XDP_MMAP_OFFSETS = 1
    XDP_RX_RING = 2
    XDP_TX_RING = 3
    XDP_UMEM_REG = 4
    XDP_UMEM_FILL_RING = 5
    XDP_UMEM_COMPLETION_RING = 6
    XDP_STATISTICS = 7
    XDP_MAX_TX_SKB_BUDGET = 9
    XDP_SHARED_UMEM = 1
    XDP_COPY = 2
    XDP_ZEROCOPY = 4
    XDP_USE_NEED_WAKEUP = 8
    SO_SNDBUFFORCE = 32
    SO_BUSY_POLL = 46
    SO_PREFER_BUSY_POLL = 69
    SO_BUSY_POLL_BUDGET = 70
    USUAL_BUDGET = 32           # of kernels that cannot be told another one
    PAGES_RX = 0
    PAGES_TX = 0x80000000

cdef long long PAGES_FILL = 0x100000000
cdef long long PAGES_COMPLETION = 0x180000000

KERNEL_HEADROOM = 256                   # XDP_PACKET_HEADROOM
LINK_HEADER = 18                        # Ethernet and a VLAN tag
RETRY = 0.01                            # s

# What errno of bind(2) means here.
BIND_ERRORS = {
    errno.EBUSY: "another AF_XDP socket has this queue",
    errno.EINVAL: "expected a queue that the interface has, and not one that already has a socket with memory of its own",
    errno.EOPNOTSUPP: "expected a driver that can do zero-copy: leave zero_copy off",
    errno.ENODEV: "no such interface any more",
    errno.ENETDOWN: "the interface is down",
    errno.ENOBUFS: "expected a larger limit of locked memory (ulimit -l), or cap_ipc_lock",
    errno.EPERM: "expected root, or cap_net_raw",
}


cdef class Xsk(Iface):
    """One queue of an interface. See xsk.pyi."""

    def __init__(self, Umem umem not None, str name not None, *, int queue=0, int worker=0, int ordinal=0, settings=None):
        settings = XskSettings() if settings is None else settings
        self.setup(umem, name, worker, ordinal)
        self.driver, self.settings, self.queue = "xdp", settings, queue
        self.index = index_of(name)
        room = umem.chunk_size - KERNEL_HEADROOM - settings.headroom - LINK_HEADER
        if (mtu := mtu_of(name)) > room:
            raise KernelError(
                f"{name}: MTU {mtu}: expected at most {room} with chunks of {umem.chunk_size} bytes: frames in several pieces (multi-buffer) are "
                f"not supported: ip link set {name} mtu {room}"
                + (", or [memory] chunk = 4096" if umem.chunk_size < 4096 and mtu <= room + 4096 - umem.chunk_size else "")
            )
        try:
            self.in_filling, self.in_sending = umem.new_place(f"{name}:{queue} filling"), umem.new_place(f"{name}:{queue} sending")
            self.fd = open_socket(AF_XDP, SOCK_RAW | SOCK_CLOEXEC, 0)
            if self.fd < 0:
                raise say(f"{name}: AF_XDP", last_error, {errno.EAFNOSUPPORT: "expected a kernel with CONFIG_XDP_SOCKETS"})
            self.make_rings(settings.ring)
            self.take_queue()
            umem.sharers.append(self)
            self.refill()
        except BaseException:
            self.close()
            raise

    cdef int option(self, int level, int name, int value) noexcept:
        """0, or errno."""
        return last_error if setsockopt(self.fd, level, name, &value, sizeof(int)) else 0

    cdef int make_rings(self, uint32_t size) except -1:
        cdef Offsets offsets
        cdef socklen_t length = sizeof(Offsets)
        for option in (<int>XDP_UMEM_FILL_RING, <int>XDP_UMEM_COMPLETION_RING, <int>XDP_RX_RING, <int>XDP_TX_RING):
            if number := self.option(SOL_XDP, option, <int>size):
                raise say(f"{self.name}: ring of {size} slots", number, {})
        if self.option(SOL_XDP, XDP_MAX_TX_SKB_BUDGET, self.settings.tx_budget) == 0:
            self.budget = self.settings.tx_budget
        else:
            self.budget = USUAL_BUDGET
        self.option(SOL_SOCKET, SO_SNDBUFFORCE, self.settings.send_buffer)      # a wish: without it, fewer frames are on their way at a time
        if getsockopt(self.fd, SOL_XDP, XDP_MMAP_OFFSETS, &offsets, &length) or length < sizeof(Offsets):
            raise KernelError(f"{self.name}: AF_XDP: expected Linux 5.4 or later, whose rings have flags")
        self.filling.size = self.sent.size = self.received.size = self.sending.size = size
        self.map_ring(&self.filling, &offsets.fill, PAGES_FILL, sizeof(uint64_t))
        self.map_ring(&self.sent, &offsets.completion, PAGES_COMPLETION, sizeof(uint64_t))
        self.map_ring(&self.received, &offsets.rx, PAGES_RX, sizeof(Desc))
        self.map_ring(&self.sending, &offsets.tx, PAGES_TX, sizeof(Desc))
        return 0

    cdef int map_ring(self, Ring *ring, const Offset *at, long long page, size_t slot) except -1:
        cdef char *start
        cdef size_t length = at.desc + ring.size * slot
        cdef void *mapped = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, self.fd, page)
        if mapped == MAP_FAILED:
            raise say(f"{self.name}: mapping a ring", last_error, {})
        start = <char *>mapped
        ring.map, ring.length, ring.mask = mapped, length, ring.size - 1
        ring.producer, ring.consumer = <uint32_t *>(start + at.producer), <uint32_t *>(start + at.consumer)
        ring.flags, ring.slots = <uint32_t *>(start + at.flags), start + at.desc
        return 0

    cdef int register(self) except -1:
        """Tell the kernel of the memory: the first socket on it does, and again one that finds all others gone."""
        cdef Memory memory
        memory.address, memory.length = <size_t>self.umem.base, self.umem.size
        memory.chunk_size, memory.headroom = self.umem.chunk_size, self.settings.headroom
        if setsockopt(self.fd, SOL_XDP, XDP_UMEM_REG, &memory, sizeof(Memory)):
            raise say(f"{self.name}: memory of {self.umem.size} bytes", last_error, BIND_ERRORS)
        return 0

    cdef int bind_once(self, int flags, int shared_fd) noexcept:
        """0, or errno. A queue that was just closed is let go of a little later (20 ms were seen), so EBUSY is not believed at once."""
        cdef Address address
        memset(&address, 0, sizeof(Address))
        address.family, address.flags, address.index, address.queue, address.shared_fd = AF_XDP, flags, self.index, self.queue, shared_fd
        end = time.monotonic() + self.settings.patience
        while bind(self.fd, <const sockaddr *>&address, sizeof(Address)):
            if last_error != EBUSY or time.monotonic() > end:
                return last_error
            time.sleep(RETRY)
        return 0

    cdef int take_queue(self) except -1:
        """To the queue, with the memory of a socket that has it already, or with its own registration."""
        cdef int number = 0, flags = XDP_USE_NEED_WAKEUP | (XDP_ZEROCOPY if self.settings.zero_copy else XDP_COPY)
        for other in list(self.umem.sharers):
            number = self.bind_once(XDP_SHARED_UMEM, other.fd)
            if number != errno.EBADF:                       # EBADF: its device has vanished
                self.zero_copy = other.zero_copy
                break
        else:
            self.register()
            number = self.bind_once(flags, 0)
            self.zero_copy = self.settings.zero_copy
        if number:
            raise say(f"{self.name}: queue {self.queue}", number, BIND_ERRORS)
        if self.settings.busy_poll:
            self.poll_busily()
        return 0

    cdef int poll_busily(self) except -1:
        settings = self.settings
        wanted = ((SO_PREFER_BUSY_POLL, 1), (SO_BUSY_POLL, settings.busy_poll), (SO_BUSY_POLL_BUDGET, settings.busy_budget))
        for name, value in wanted:
            if number := self.option(SOL_SOCKET, name, value):
                raise say(f"{self.name}: busy polling", number, {errno.EPERM: "expected cap_net_admin", errno.ENOPROTOOPT: "expected Linux 5.11 or later"})
        self.busy_poll = True
        return 0

    cdef void refill(self) noexcept nogil:
        """Give the kernel chunks to receive into, as many as there is room for."""
        cdef uint64_t *slots = <uint64_t *>self.filling.slots
        cdef uint64_t[64] chunks
        cdef uint32_t room = ring_room(&self.filling, self.filling.size)
        cdef int i, n
        # What the kernel has taken out of the ring and not used yet counts as well: it has at most a ring of them.
        room = min(room, self.filling.size - self.outside)
        while room > 0:
            n = pool_take(self.pool, chunks, <int>min(room, <uint32_t>64), self.in_filling)
            if n == 0:
                break
            for i in range(n):
                slots[(self.filling.mine + i) & self.filling.mask] = chunks[i]
            self.filling.mine += n
            self.outside += n
            room -= n
        store_release(self.filling.producer, self.filling.mine)

    cdef int reap(self) noexcept nogil:
        """Take back the chunks of frames that are gone. How many."""
        cdef const uint64_t *slots = <const uint64_t *>self.sent.slots
        cdef uint32_t i, n = ring_filled(&self.sent, self.sent.size)
        if n == 0:
            return 0
        for i in range(n):
            pool_give(self.pool, slots[(self.sent.mine + i) & self.sent.mask], self.in_sending)
        self.sent.mine += n
        self.on_way -= n
        store_release(self.sent.consumer, self.sent.mine)
        return <int>n

    cdef void wake(self) noexcept nogil:
        """Nothing has come: have the kernel look, if it waits to be told."""
        if self.busy_poll or load_acquire(self.filling.flags) & NEED_WAKEUP:
            self.counts.wakes += 1
            recvfrom(self.fd, NULL, 0, MSG_DONTWAIT, NULL, NULL)

    cdef int receive(self, Frame *rows, int most) noexcept nogil:
        cdef const Desc *slots = <const Desc *>self.received.slots
        cdef const Desc *desc
        cdef uint32_t i, n = ring_filled(&self.received, most)
        cdef int k = 0
        cdef int64_t now
        if n == 0:
            self.wake()
            return 0
        now = wall_ns()
        for i in range(n):
            desc = &slots[(self.received.mine + i) & self.received.mask]
            prefetch_write(self.pool.memory + desc.address)
            if unlikely(not pool_move(self.pool, desc.address, self.in_filling, HELD)):
                continue
            rows[k].offset, rows[k].caplen, rows[k].len = desc.address, desc.length, desc.length
            rows[k].ts, rows[k].link, rows[k].iface = now, LINKTYPE_ETHERNET, self.ordinal
            self.counts.rx_bytes += desc.length
            k += 1
        self.received.mine += n
        self.outside -= k
        self.counts.rx += k
        store_release(self.received.consumer, self.received.mine)
        return k

    cdef int pressed(self) noexcept nogil:
        return <int>(ring_filled(&self.received, self.received.size) * PRESSED // self.received.size)

    cdef int send(self, const Send *rows, int n) noexcept nogil:
        cdef Desc *slots = <Desc *>self.sending.slots
        cdef Desc *desc
        cdef uint32_t room
        cdef int i, k
        if unlikely(self.trouble == ENXIO or self.trouble == ENODEV):
            self.counts.tx_down += n
            return 0
        room = ring_room(&self.sending, n)
        if unlikely(room < <uint32_t>n):
            self.kick()
            self.reap()
            room = ring_room(&self.sending, n)
        k = min(<int>room, n)
        for i in range(k):
            if unlikely(not pool_move(self.pool, rows[i].offset, HELD, self.in_sending)):
                self.counts.tx_invalid += 1
                continue
            desc = &slots[self.sending.mine & self.sending.mask]
            desc.address, desc.length, desc.options = rows[i].offset, rows[i].len, 0
            self.sending.mine += 1
            self.on_way += 1
            self.counts.tx += 1
            self.counts.tx_bytes += rows[i].len
        store_release(self.sending.producer, self.sending.mine)
        self.counts.tx_ring_full += n - k
        return k

    cdef void kick(self) noexcept nogil:
        """Have the kernel send. Each call sends `budget` frames at most, and ends early at one that the device refuses."""
        cdef uint32_t before, waiting = ring_waiting(&self.sending)
        cdef uint32_t left = waiting // self.budget + 2
        while waiting > 0 and left > 0:
            left -= 1
            self.counts.kicks += 1
            if likely(sendto(self.fd, NULL, 0, MSG_DONTWAIT, NULL, 0) >= 0):
                self.trouble = 0
            elif last_error == EBUSY:                       # the frame is gone and its chunk comes back, but nobody got it
                self.counts.tx_refused += 1
                self.trouble = 0
                left += 1
            elif last_error == EAGAIN:
                self.counts.kick_again += 1
                self.reap()                                 # without room for what has been sent, nothing is sent
            else:
                self.fail(last_error)
                return
            before, waiting = waiting, ring_waiting(&self.sending)
            if waiting == before:
                return

    cdef void fail(self, int number) noexcept nogil:
        if number == ENXIO or number == ENODEV:
            self.counts.kick_gone += 1
            self.trouble = number
        elif number == ENETDOWN:
            self.counts.kick_down += 1
            self.trouble = number
        elif number == ENOBUFS:
            self.counts.kick_again += 1
        else:
            self.trouble = number

    cdef int tidy(self) noexcept nogil:
        cdef int n
        if self.sending.mine != self.sending.theirs and self.trouble != ENXIO and self.trouble != ENODEV:
            self.kick()
        n = self.reap() if self.on_way else 0
        if self.filling.size - self.outside >= self.filling.size // 2:
            self.refill()
        return n

    def statistics(self):
        """The kernel's counters are read now; they are gone once the iface is closed."""
        cdef Counts kernels
        cdef socklen_t length = sizeof(Counts)
        memset(&kernels, 0, sizeof(Counts))
        if not self.closed and getsockopt(self.fd, SOL_XDP, XDP_STATISTICS, &kernels, &length) == 0:
            self.counts.rx_ring_full, self.counts.rx_fill_empty, self.counts.rx_invalid = kernels.rx_ring_full, kernels.fill_empty, kernels.rx_invalid
            # Where frames are copied, one without a chunk is in both of the kernel's counters.
            twice = 0 if self.zero_copy else min(kernels.fill_empty, kernels.rx_dropped)
            self.counts.rx_dropped = kernels.rx_dropped - <uint64_t>twice
            self.kernel_invalid = kernels.tx_invalid
            if self.guard is not None:
                self.counts.rx_shed = self.guard.dropped(self.queue)
        found = super().statistics()
        found["tx_invalid"] += self.kernel_invalid
        return found

    def look(self):
        """Whether the device is there: the socket learns that its device is gone, but poll(2) does not tell."""
        cdef int number = 0
        cdef socklen_t length = sizeof(int)
        self.ready()
        if self.trouble not in (ENXIO, ENODEV):
            if getsockopt(self.fd, SOL_SOCKET, SO_ERROR, &number, &length) == 0 and number == ENETDOWN:
                self.trouble = ENXIO                        # told once, when the device is unregistered
            else:
                self.trouble = 0
                if sendto(self.fd, NULL, 0, MSG_DONTWAIT, NULL, 0) < 0 and last_error in (ENETDOWN, ENXIO, ENODEV):
                    self.trouble = last_error
        return self.condition

    def check(self):
        places = self.umem.places()
        filling, sending = (places.get(f"{self.name}:{self.queue} {ring}", 0) for ring in ("filling", "sending"))
        assert filling == self.outside, f"{self.name}: the ledger has {filling} chunks for receiving, the iface {self.outside}"
        assert sending == self.on_way, f"{self.name}: the ledger has {sending} chunks on their way, the iface {self.on_way}"
        assert self.outside <= self.filling.size and self.on_way <= 2 * self.sending.size

    def close(self):
        """Mappings keep a socket alive, so they go first; then nothing of the kernel's writes to the chunks, and all are free again."""
        if self.closed:
            return
        if self.fd >= 0:
            self.statistics()
        super().close()
        self.unmap(&self.filling)
        self.unmap(&self.sent)
        self.unmap(&self.received)
        self.unmap(&self.sending)
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        if self in self.umem.sharers:
            self.umem.sharers.remove(self)
        for place in (self.in_filling, self.in_sending):
            if place:
                self.umem.reclaim(self.worker, place)

    cdef void unmap(self, Ring *ring) noexcept:
        if ring.map != NULL:
            munmap(ring.map, ring.length)
            ring.map = NULL

    def __dealloc__(self):
        if self.fd >= 0:
            close_fd(self.fd)
        self.unmap(&self.filling)
        self.unmap(&self.sent)
        self.unmap(&self.received)
        self.unmap(&self.sending)
