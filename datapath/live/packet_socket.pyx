"""AF_PACKET: frames of an interface where XDP cannot be had. Each is copied twice, from the kernel's ring and out of a chunk.

Theory of operation: the kernel copies frames into blocks of a ring (TPACKET_V3) and hands over a block when it is full or `wait` ms old. Here they
are copied on into chunks, and a block goes back when its last frame has been. Sending is sendmmsg(2), straight out of chunks, by a second socket,
which receives nothing. The kernel says of each frame whether its checksum was left to a NIC, and what VLAN tag was taken out of it: both are put
right. Invariants: frames we send do not come back. A frame that does not fit in a chunk (several segments in one) is dropped and counted.
What is different from XDP: the host sees every frame as well, so what is ours must not have a meaning to it: no addresses and no forwarding there.
"""

import errno
import os
import struct

from libc.errno cimport EAGAIN, EINTR, EINVAL, EMSGSIZE, ENETDOWN, ENOBUFS, ENODEV, ENXIO
from libc.errno cimport errno as last_error
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memmove, memset
from posix.unistd cimport close as close_fd

from ctcore.lowlevel cimport unlikely
from datapath.frame cimport Frame
from datapath.link cimport ETHER_VLAN, LINKTYPE_ETHERNET
from datapath.live.iface cimport PRESSED, Iface
from datapath.live.partial cimport complete
from datapath.live.ring cimport load_acquire, store_release
from datapath.live.rows cimport Send
from datapath.live.segments cimport Cut, GSO_NONE, cut_begin, cut_length, cut_next
from datapath.live.umem cimport HELD, Umem, pool_give, pool_take

from datapath.errors import KernelError
from datapath.live.interfaces import Unmerged, index_of, is_up, mac_of, mtu_of, say
from datapath.live.settings import PacketSettings

cdef extern from "<sys/mman.h>" nogil:
    void *mmap(void *address, size_t length, int protection, int flags, int fd, long long offset)
    int munmap(void *address, size_t length)
    enum:
        PROT_READ, PROT_WRITE, MAP_SHARED
    void *MAP_FAILED

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <sys/socket.h>
    #include <sys/uio.h>
    #include <linux/if_packet.h>
    """

cdef extern from "<sys/socket.h>" nogil:
    ctypedef unsigned int socklen_t
    ctypedef struct sockaddr "struct sockaddr":
        pass
    ctypedef struct iovec "struct iovec":
        void *iov_base
        size_t iov_len
    ctypedef struct msghdr "struct msghdr":
        iovec *msg_iov
        size_t msg_iovlen
    ctypedef struct mmsghdr "struct mmsghdr":
        msghdr msg_hdr
    int open_socket "socket"(int family, int kind, int protocol)
    int bind(int fd, const sockaddr *address, socklen_t length)
    int setsockopt(int fd, int level, int name, const void *value, socklen_t length)
    int getsockopt(int fd, int level, int name, void *value, socklen_t *length)
    int sendmmsg(int fd, mmsghdr *messages, unsigned int n, int flags)
    enum:
        AF_PACKET, SOCK_RAW, SOCK_CLOEXEC, SOL_PACKET, MSG_DONTWAIT, SOL_SOCKET, SO_ERROR, SO_ATTACH_FILTER, SO_DETACH_FILTER

cdef extern from "<linux/filter.h>" nogil:
    ctypedef struct sock_filter "struct sock_filter":
        unsigned short code
        unsigned char jt
        unsigned char jf
        unsigned int k
    ctypedef struct sock_fprog "struct sock_fprog":
        unsigned short len
        sock_filter *filter
    enum:
        BPF_RET

cdef extern from "<linux/if_packet.h>" nogil:
    ctypedef struct tpacket_hdr_variant1 "struct tpacket_hdr_variant1":
        uint32_t tp_vlan_tci
        uint16_t tp_vlan_tpid
    ctypedef struct tpacket3_hdr "struct tpacket3_hdr":
        uint32_t tp_next_offset
        uint32_t tp_sec
        uint32_t tp_nsec
        uint32_t tp_snaplen
        uint32_t tp_len
        uint32_t tp_status
        uint16_t tp_mac
        tpacket_hdr_variant1 hv1
    ctypedef struct tpacket_hdr_v1 "struct tpacket_hdr_v1":
        uint32_t block_status
        uint32_t num_pkts
        uint32_t offset_to_first_pkt
    ctypedef union tpacket_bd_header_u "union tpacket_bd_header_u":
        tpacket_hdr_v1 bh1
    ctypedef struct tpacket_block_desc "struct tpacket_block_desc":
        tpacket_bd_header_u hdr
    ctypedef struct tpacket_req3 "struct tpacket_req3":
        unsigned int tp_block_size
        unsigned int tp_block_nr
        unsigned int tp_frame_size
        unsigned int tp_frame_nr
        unsigned int tp_retire_blk_tov
    ctypedef struct tpacket_stats_v3 "struct tpacket_stats_v3":
        unsigned int tp_packets
        unsigned int tp_drops
        unsigned int tp_freeze_q_cnt
    ctypedef struct sockaddr_ll "struct sockaddr_ll":
        unsigned short sll_family
        unsigned short sll_protocol
        int sll_ifindex
    enum:
        PACKET_RX_RING, PACKET_VERSION, PACKET_VNET_HDR, PACKET_STATISTICS, PACKET_QDISC_BYPASS, PACKET_IGNORE_OUTGOING, TPACKET_V3, TP_STATUS_KERNEL
        TP_STATUS_USER, TP_STATUS_CSUMNOTREADY, TP_STATUS_VLAN_VALID, TP_STATUS_VLAN_TPID_VALID, PACKET_ADD_MEMBERSHIP
        PACKET_FANOUT, PACKET_FANOUT_HASH, PACKET_FANOUT_FLAG_UNIQUEID

cdef enum:
    ETH_P_ALL = 0x0300          # in network order
    TAG = 4                     # bytes of a VLAN tag
    ADDRESSES = 12              # bytes in front of it
    VNET_HEADER = 10            # struct virtio_net_hdr, in front of the frame
    BATCH = 64                  # frames of one system call

PACKET_MR_PROMISC = 1
FRAME_SIZE = 2048                       # of the ring; TPACKET_V3 packs frames closer
OPEN_ERRORS = {errno.EPERM: "expected root, or cap_net_raw", errno.ENOMEM: "expected a smaller ring", errno.ENODEV: "no such interface any more"}


cdef void put_tag(uint8_t *target, const tpacket3_hdr *h) noexcept nogil:
    """A VLAN tag in network order; without its type it is 802.1Q's."""
    cdef uint16_t kind = h.hv1.tp_vlan_tpid if h.tp_status & TP_STATUS_VLAN_TPID_VALID else <uint16_t>ETHER_VLAN
    target[0], target[1] = kind >> 8, kind & 0xFF
    target[2], target[3] = h.hv1.tp_vlan_tci >> 8 & 0xFF, h.hv1.tp_vlan_tci & 0xFF


cdef inline void fill(Frame *row, const tpacket3_hdr *h, uint64_t chunk, uint32_t length, uint32_t ordinal) noexcept nogil:
    row.offset, row.caplen, row.len = chunk, length, length
    row.ts, row.link, row.iface = <int64_t>h.tp_sec * 1000000000 + h.tp_nsec, LINKTYPE_ETHERNET, ordinal


cdef class PacketSocket(Iface):
    """An interface by AF_PACKET. See packet_socket.pyi."""
    cdef readonly object settings
    cdef readonly object group  # of sockets that share the interface's frames: its number; None: this one has them all
    cdef object unmerged
    cdef int out                # the socket that sends
    cdef int index
    cdef uint8_t *ring
    cdef size_t ring_size
    cdef uint32_t block         # the one to be read next, or being read
    cdef uint32_t blocks
    cdef uint32_t block_size
    cdef uint32_t left          # frames of it that are still to be read; 0: none is being read
    cdef const uint8_t *at      # the next of these
    cdef Cut cut                # the frame that is being cut up
    cdef bint cutting

    def __cinit__(self):
        self.out = -1

    def __init__(self, Umem umem not None, str name not None, *, int worker=0, int ordinal=0, settings=None, group=None):
        settings = PacketSettings() if settings is None else settings
        self.setup(umem, name, worker, ordinal)
        self.driver, self.settings, self.group = "packet", settings, group
        self.index = index_of(name)
        mac_of(name)
        if (mtu := mtu_of(name)) + 18 > umem.chunk_size:
            raise KernelError(f"{name}: MTU {mtu}: expected at most {umem.chunk_size - 18} with chunks of {umem.chunk_size} bytes")
        try:
            self.open_receiver()
            self.open_sender()
        except BaseException:
            self.close()
            raise

    cdef int set(self, int fd, int name, const void *value, socklen_t length) except -1:
        if setsockopt(fd, SOL_PACKET, name, value, length):
            raise say(f"{self.name}: AF_PACKET", last_error, OPEN_ERRORS)
        return 0

    cdef int bind_to(self, int fd, int protocol) except -1:
        cdef sockaddr_ll address
        memset(&address, 0, sizeof(sockaddr_ll))
        address.sll_family, address.sll_protocol, address.sll_ifindex = AF_PACKET, protocol, self.index
        if bind(fd, <const sockaddr *>&address, sizeof(sockaddr_ll)):
            raise say(f"{self.name}: AF_PACKET", last_error, OPEN_ERRORS)
        return 0

    cdef int open_receiver(self) except -1:
        """Its protocol is given only when it is bound, so that nothing of other interfaces comes in before."""
        cdef int version = TPACKET_V3, one = 1
        cdef tpacket_req3 request
        cdef void *mapped
        self.fd = open_socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0)
        if self.fd < 0:
            raise say(f"{self.name}: AF_PACKET", last_error, OPEN_ERRORS)
        self.unmerged = Unmerged(self.name)
        self.blocks, self.block_size = self.settings.blocks, self.settings.block_size
        memset(&request, 0, sizeof(tpacket_req3))
        request.tp_block_size, request.tp_block_nr, request.tp_frame_size = self.block_size, self.blocks, FRAME_SIZE
        request.tp_frame_nr, request.tp_retire_blk_tov = self.block_size // FRAME_SIZE * self.blocks, self.settings.wait
        self.set(self.fd, PACKET_VERSION, &version, sizeof(int))
        self.set(self.fd, PACKET_IGNORE_OUTGOING, &one, sizeof(int))
        self.set(self.fd, PACKET_VNET_HDR, &one, sizeof(int))
        self.set(self.fd, PACKET_RX_RING, &request, sizeof(tpacket_req3))
        self.ring_size = <size_t>self.block_size * self.blocks
        mapped = mmap(NULL, self.ring_size, PROT_READ | PROT_WRITE, MAP_SHARED, self.fd, 0)
        if mapped == MAP_FAILED:
            raise say(f"{self.name}: mapping the ring", last_error, OPEN_ERRORS)
        self.ring = <uint8_t *>mapped
        wanted = struct.pack("iHH8s", self.index, PACKET_MR_PROMISC, 0, b"")
        cdef const uint8_t[::1] membership = wanted
        self.set(self.fd, PACKET_ADD_MEMBERSHIP, &membership[0], <socklen_t>len(wanted))
        if self.group is None:
            return self.bind_to(self.fd, ETH_P_ALL)
        self.filter(True)                                   # until all of the group are in it, each would get every frame
        self.bind_to(self.fd, ETH_P_ALL)
        return self.join()

    cdef int filter(self, bint nothing) except -1:
        """Let nothing come in, or everything again."""
        cdef sock_filter refuse
        cdef sock_fprog program
        refuse.code, refuse.jt, refuse.jf, refuse.k = BPF_RET, 0, 0, 0
        program.len, program.filter = 1, &refuse
        if setsockopt(self.fd, SOL_SOCKET, SO_ATTACH_FILTER if nothing else SO_DETACH_FILTER, &program, sizeof(program)):
            raise say(f"{self.name}: AF_PACKET", last_error, OPEN_ERRORS)
        return 0

    cdef int join(self) except -1:
        """The kernel numbers a group when its first socket asks for one (0), and spreads frames over its sockets by their connections."""
        cdef int value = self.group | (PACKET_FANOUT_HASH | (0 if self.group else PACKET_FANOUT_FLAG_UNIQUEID)) << 16
        cdef socklen_t length = sizeof(int)
        self.set(self.fd, PACKET_FANOUT, &value, sizeof(int))
        if getsockopt(self.fd, SOL_PACKET, PACKET_FANOUT, &value, &length):
            raise say(f"{self.name}: AF_PACKET", last_error, OPEN_ERRORS)
        self.group = value & 0xFFFF
        return 0

    def listen(self):
        """See packet_socket.pyi."""
        if self.group is not None:
            self.filter(False)

    cdef int open_sender(self) except -1:
        cdef int bypass = self.settings.bypass
        self.out = open_socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0)
        if self.out < 0:
            raise say(f"{self.name}: AF_PACKET", last_error, OPEN_ERRORS)
        self.set(self.out, PACKET_QDISC_BYPASS, &bypass, sizeof(int))
        return self.bind_to(self.out, 0)

    cdef bint next_block(self) noexcept nogil:
        """Begin with the next block, if the kernel has handed it over and there is anything in it."""
        cdef tpacket_block_desc *block = <tpacket_block_desc *>(self.ring + <size_t>self.block * self.block_size)
        if not load_acquire(&block.hdr.bh1.block_status) & TP_STATUS_USER:
            return False
        self.left = block.hdr.bh1.num_pkts
        self.at = <const uint8_t *>block + block.hdr.bh1.offset_to_first_pkt
        if self.left == 0:
            self.end_block()
        return self.left > 0

    cdef void end_block(self) noexcept nogil:
        cdef tpacket_block_desc *block = <tpacket_block_desc *>(self.ring + <size_t>self.block * self.block_size)
        store_release(&block.hdr.bh1.block_status, TP_STATUS_KERNEL)
        self.block = (self.block + 1) % self.blocks

    cdef bint copy(self, const tpacket3_hdr *h, Frame *row) noexcept nogil:
        """One frame into a chunk, with the tag that the kernel has taken out of it. False: dropped, and counted."""
        cdef const uint8_t *data = <const uint8_t *>h + h.tp_mac
        cdef uint32_t tag = TAG if h.tp_status & TP_STATUS_VLAN_VALID else 0
        cdef uint64_t chunk = 0
        cdef uint8_t *target
        if unlikely(h.tp_snaplen < h.tp_len or h.tp_snaplen + tag > <uint32_t>self.umem.chunk_size or h.tp_snaplen < ADDRESSES):
            self.counts.rx_oversize += 1
            return False
        if unlikely(pool_take(self.pool, &chunk, 1, HELD) == 0):
            self.counts.rx_no_chunk += 1
            return False
        target = self.pool.memory + chunk
        memcpy(target, data, ADDRESSES)
        if tag:
            put_tag(target + ADDRESSES, h)
        memcpy(target + ADDRESSES + tag, data + ADDRESSES, h.tp_snaplen - ADDRESSES)
        fill(row, h, chunk, h.tp_snaplen + tag, self.ordinal)
        if h.tp_status & TP_STATUS_CSUMNOTREADY:
            self.counts.rx_completed += complete(self.pool.memory, row, 1)
        self.counts.rx_bytes += row.len
        return True

    cdef bint cut_off(self, const tpacket3_hdr *h, Frame *row) noexcept nogil:
        """The next segment of the frame that is being cut up, into a chunk. False: dropped, and counted."""
        cdef uint32_t tag = TAG if h.tp_status & TP_STATUS_VLAN_VALID else 0
        cdef uint32_t length = cut_length(&self.cut)
        cdef uint64_t chunk = 0
        cdef uint8_t *target
        if unlikely(length + tag > <uint32_t>self.umem.chunk_size or pool_take(self.pool, &chunk, 1, HELD) == 0):
            self.counts.rx_oversize += length + tag > <uint32_t>self.umem.chunk_size
            self.counts.rx_no_chunk += length + tag <= <uint32_t>self.umem.chunk_size
            self.cut.at += length - self.cut.head
            self.cut.number += 1
            return False
        target = self.pool.memory + chunk
        cut_next(&self.cut, target + tag)
        if tag:
            memmove(target, target + tag, ADDRESSES)
            put_tag(target + ADDRESSES, h)
        fill(row, h, chunk, length + tag, self.ordinal)
        self.counts.rx_bytes += row.len
        return True

    cdef int receive(self, Frame *rows, int most) noexcept nogil:
        cdef const tpacket3_hdr *h
        cdef const uint8_t *vnet
        cdef int n = 0
        while n < most and (self.left > 0 or self.next_block()):
            h = <const tpacket3_hdr *>self.at
            vnet = self.at + h.tp_mac - VNET_HEADER
            if unlikely(vnet[1] != GSO_NONE) and not self.cutting:
                self.cutting = cut_begin(&self.cut, vnet + VNET_HEADER, h.tp_snaplen, vnet[1], vnet[4] | vnet[5] << 8)
                self.counts.rx_cut += self.cutting
            if unlikely(self.cutting):
                n += self.cut_off(h, &rows[n])
                self.cutting = cut_length(&self.cut) > 0
                if self.cutting:
                    continue
            else:
                n += self.copy(h, &rows[n])
            self.at += h.tp_next_offset
            self.left -= 1
            if self.left == 0:
                self.end_block()
        self.counts.rx += n
        return n

    cdef int pressed(self) noexcept nogil:
        """Blocks that the kernel has handed over, of all."""
        cdef uint32_t waiting
        cdef tpacket_block_desc *block
        for waiting in range(self.blocks):
            block = <tpacket_block_desc *>(self.ring + <size_t>((self.block + waiting) % self.blocks) * self.block_size)
            if not load_acquire(&block.hdr.bh1.block_status) & TP_STATUS_USER:
                return <int>(waiting * PRESSED // self.blocks)
        return PRESSED

    cdef int send(self, const Send *rows, int n) noexcept nogil:
        cdef mmsghdr[BATCH] messages
        cdef iovec[BATCH] pieces
        cdef int i, k, gone, start = 0
        while start < n:
            k = min(n - start, <int>BATCH)
            memset(messages, 0, k * sizeof(mmsghdr))
            for i in range(k):
                pieces[i].iov_base, pieces[i].iov_len = self.pool.memory + rows[start + i].offset, rows[start + i].len
                messages[i].msg_hdr.msg_iov, messages[i].msg_hdr.msg_iovlen = &pieces[i], 1
            self.counts.kicks += 1
            gone = sendmmsg(self.out, messages, k, MSG_DONTWAIT)
            if gone > 0:
                self.trouble = 0
                for i in range(gone):
                    self.counts.tx_bytes += rows[start + i].len
                    pool_give(self.pool, rows[start + i].offset, HELD)
                self.counts.tx += gone
                start += gone
            else:
                gone = self.pass_by(rows[start].offset, n - start)
                if gone < 0:
                    return start
                start += gone
        return n

    cdef int pass_by(self, uint64_t offset, int n) noexcept nogil:
        """Nothing was sent of n frames, for what errno says of the first one. How many are done with; -1: none will be before it is tried again."""
        cdef int number = last_error
        if number == EINTR:
            return 0
        if number == EMSGSIZE or number == EINVAL:          # larger than the MTU, or shorter than a header
            self.counts.tx_refused += 1
            pool_give(self.pool, offset, HELD)
            return 1
        if number == EAGAIN or number == ENOBUFS:           # of the device's queue, or this socket's
            self.counts.kick_again += 1
            self.counts.tx_ring_full += n
            return -1
        self.counts.kick_gone += number == ENXIO or number == ENODEV
        self.counts.kick_down += number == ENETDOWN
        self.trouble = number
        self.counts.tx_down += n
        return -1

    def statistics(self):
        """The kernel forgets its counters when they are asked for, so they are added up here."""
        cdef tpacket_stats_v3 kernels
        cdef socklen_t length = sizeof(tpacket_stats_v3)
        if not self.closed and self.fd >= 0 and getsockopt(self.fd, SOL_PACKET, PACKET_STATISTICS, &kernels, &length) == 0:
            self.counts.rx_ring_full += kernels.tp_drops
        return super().statistics()

    def look(self):
        """Whether the device is there and up: a socket of a device that is unregistered says so once, and is bound to none then."""
        cdef int number = 0
        cdef socklen_t length = sizeof(int)
        self.ready()
        if self.trouble not in (ENXIO, ENODEV):
            getsockopt(self.fd, SOL_SOCKET, SO_ERROR, &number, &length)
            try:
                self.trouble = ENXIO if index_of(self.name) != self.index else 0 if is_up(self.name) else ENETDOWN
            except KernelError as error:
                self.trouble = error.number
        return self.condition

    def close(self):
        if self.closed:
            return
        if self.fd >= 0:
            self.statistics()
        super().close()
        self.unmap()
        for fd in (self.fd, self.out):
            if fd >= 0:
                os.close(fd)
        self.fd = self.out = -1
        if self.unmerged is not None:
            self.unmerged.restore()

    cdef void unmap(self) noexcept:
        if self.ring != NULL:
            munmap(self.ring, self.ring_size)
            self.ring = NULL

    def __dealloc__(self):
        self.unmap()
        if self.fd >= 0:
            close_fd(self.fd)
        if self.out >= 0:
            close_fd(self.out)
