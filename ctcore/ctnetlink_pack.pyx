"""Requests to the kernel's conntrack, for many connections at once: the bytes that ctnetlink.request writes, two hundred times as fast.

Theory of operation: a request is written from front to back into a buffer that has room for the longest one; a level's length is filled in when it ends.
So a nested level costs no copy, and nothing is allocated but the bytes that are returned.
Invariants: no request is longer than LONGEST; bytes are equal to the twin's (ctnetlink.request).
Source: linux/netfilter/nfnetlink_conntrack.h. Not here: sockets, what comes back (ctnetlink).
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

import numpy as np

from ctcore.types cimport DST_NAT, Entry, Key, PROTO_ICMP, PROTO_ICMPV6, PROTO_SCTP, PROTO_TCP, SRC_NAT

from ctcore import ctnetlink
from ctcore.nat_rules import HELPERS
from ctcore.types import CONN_DTYPE

cdef enum:
    LONGEST = 1024
    AF_INET = 2
    AF_INET6 = 10
    NESTED = 0x8000
    TUPLE_ORIG = 1
    TUPLE_REPLY = 2
    STATUS = 3
    PROTOINFO = 4
    HELP = 5
    NAT_SRC = 6
    TIMEOUT = 7
    MARK = 8
    NAT_DST = 13
    ZONE = 18
    LABELS = 22
    LIBERAL = 0x08              # IP_CT_TCP_FLAG_BE_LIBERAL
    SCALE_FLAGS = 0x07          # window scale, SACK permitted, closing
    MOST_HELPERS = 16
    HELPER_NAME = 16

cdef uint16_t GIVEN_STATUS = ctnetlink.GIVEN_STATUS
# Attributes of tuples by family: source, destination; of translation: lowest, highest address. Type 0: IPv4, 1: IPv6.
cdef uint16_t[2] SOURCE = [1, 3]
cdef uint16_t[2] DESTINATION = [2, 4]
cdef uint16_t[2] LOWEST = [1, 4]
cdef uint16_t[2] HIGHEST = [2, 5]
cdef char[MOST_HELPERS][HELPER_NAME] helper_names
cdef int helpers = 0


cdef void know(bytes name) except *:
    """One more helper, in the order of their numbers."""
    global helpers
    if len(name) >= HELPER_NAME or helpers >= MOST_HELPERS:
        raise ValueError(f"helper {name!r}: expected {<int>MOST_HELPERS} names of less than {<int>HELPER_NAME} bytes")
    memcpy(&helper_names[helpers][0], <const char *>name, len(name))
    helpers += 1


for _name in HELPERS:
    know(_name.encode())


def requests(conns not None, hz, ask, helper=True):
    """The requests for all connections: list of bytes.

    conns: CONN_DTYPE[n]; hz: ticks a second of their timeouts; ask: ctnetlink.Ask; helper: new entries have the connection's. Raises ValueError.
    """
    kind, flags = ctnetlink.KINDS[ctnetlink.Ask(ask)]
    rows = np.ascontiguousarray(conns)
    if rows.dtype != CONN_DTYPE or rows.ndim != 1:
        raise ValueError(f"conns: {rows.dtype}[{rows.ndim}]: expected a row of CONN_DTYPE")
    if not 0 < hz <= 1_000_000:
        raise ValueError(f"hz = {hz}: expected 1 to 1000000")
    cdef const uint8_t[::1] memory = rows.view(np.uint8) if len(rows) else np.zeros(1, dtype=np.uint8)
    cdef const Entry *entries = <const Entry *>&memory[0]
    cdef Py_ssize_t i, n = len(rows)
    cdef uint8_t[LONGEST] buffer
    cdef size_t size
    cdef Writer w
    cdef uint16_t kind_number = kind, flag_bits = ctnetlink.REQUEST | flags
    cdef uint32_t ticks = hz
    cdef bint whole = ask in (ctnetlink.Ask.CREATE, ctnetlink.Ask.CHANGE), new = ask == ctnetlink.Ask.CREATE, with_helper = helper
    made = []
    for i in range(n):
        w.at, w.start = buffer, buffer
        size = write_request(&w, &entries[i], kind_number, flag_bits, ticks, whole, new, with_helper)
        made.append(PyBytes_FromStringAndSize(<char *>buffer, size))
    return made


# --- from front to back ------------------------------------------------------------------------------------------------------------------


cdef struct Writer:
    uint8_t *start
    uint8_t *at


cdef inline void put16(Writer *w, uint16_t value) noexcept nogil:
    memcpy(w.at, &value, 2)
    w.at += 2


cdef inline void put(Writer *w, uint16_t kind, const void *data, uint16_t size) noexcept nogil:
    """An attribute, padded to four bytes."""
    cdef uint16_t padded = (size + 3) & ~3
    put16(w, size + 4)
    put16(w, kind)
    if padded > size:
        memset(w.at + size, 0, padded - size)
    memcpy(w.at, data, size)
    w.at += padded


cdef inline void put_u8(Writer *w, uint16_t kind, uint8_t value) noexcept nogil:
    put(w, kind, &value, 1)


cdef inline void put_be16(Writer *w, uint16_t kind, uint16_t value) noexcept nogil:
    cdef uint8_t[2] data
    data[0], data[1] = value >> 8, value & 0xFF
    put(w, kind, data, 2)


cdef inline void put_be32(Writer *w, uint16_t kind, uint32_t value) noexcept nogil:
    cdef uint8_t[4] data
    data[0], data[1], data[2], data[3] = value >> 24, value >> 16 & 0xFF, value >> 8 & 0xFF, value & 0xFF
    put(w, kind, data, 4)


cdef inline uint8_t *begin(Writer *w, uint16_t kind) noexcept nogil:
    """A level: where its length is to be filled in."""
    cdef uint8_t *here = w.at
    put16(w, 0)
    put16(w, kind | NESTED)
    return here


cdef inline void end(Writer *w, uint8_t *level) noexcept nogil:
    cdef uint16_t size = <uint16_t>(w.at - level)
    memcpy(level, &size, 2)


cdef inline bint is_icmp(uint8_t proto) noexcept nogil:
    return proto == PROTO_ICMP or proto == PROTO_ICMPV6


cdef void put_tuple(Writer *w, uint16_t kind, const Key *common, const uint64_t *src, const uint64_t *dst, uint16_t sport, uint16_t dport,
                    uint16_t zone) noexcept nogil:
    """common: for family and protocol; zone: of this direction alone, or 0."""
    cdef int wide = common.family != 4
    cdef uint16_t size = 16 if wide else 4, ident
    cdef uint8_t *level = begin(w, kind)
    cdef uint8_t *inner = begin(w, 1)
    put(w, SOURCE[wide], src, size)
    put(w, DESTINATION[wide], dst, size)
    end(w, inner)
    inner = begin(w, 2)
    put_u8(w, 1, common.proto)
    if is_icmp(common.proto):
        ident = 4 if common.proto == PROTO_ICMP else 7
        put_be16(w, ident, sport)
        put_u8(w, ident + 1, dport >> 8)
        put_u8(w, ident + 2, dport & 0xFF)
    else:
        put_be16(w, 2, sport)
        put_be16(w, 3, dport)
    end(w, inner)
    if zone:
        put_be16(w, 3, zone)
    end(w, level)


cdef void put_half(Writer *w, uint16_t kind, const Key *reply, const uint64_t *address, uint16_t port) noexcept nogil:
    """What a half becomes: one address and one port."""
    cdef int wide = reply.family != 4
    cdef uint16_t size = 16 if wide else 4
    cdef uint8_t *level = begin(w, kind)
    cdef uint8_t *inner
    put(w, LOWEST[wide], address, size)
    put(w, HIGHEST[wide], address, size)
    inner = begin(w, 3)
    put_be16(w, 1, port)
    put_be16(w, 2, port)
    end(w, inner)
    end(w, level)


cdef void put_protocol(Writer *w, const Entry *e) noexcept nogil:
    """Windows are what the kernel is not told: it learns them anew, and had better be liberal."""
    cdef uint8_t proto = e.flow[0].key.proto
    cdef uint8_t *level
    cdef uint8_t *inner
    cdef uint8_t[2] flags
    cdef int d
    if proto != PROTO_TCP and proto != PROTO_SCTP:
        return
    level = begin(w, PROTOINFO)
    if proto == PROTO_TCP:
        inner = begin(w, 1)
        put_u8(w, 1, e.l4.tcp.state)
        for d in range(2):
            put_u8(w, 2 + d, e.l4.tcp.scale[d])
        for d in range(2):
            flags[0], flags[1] = e.l4.tcp.flags[d] & SCALE_FLAGS | LIBERAL, SCALE_FLAGS | LIBERAL
            put(w, 4 + d, flags, 2)
    else:
        inner = begin(w, 3)
        put_u8(w, 1, e.l4.sctp.state)
        for d in range(2):
            put_be32(w, 2 + d, e.l4.sctp.vtag[d])
    end(w, inner)
    end(w, level)


cdef void put_state(Writer *w, const Entry *e, uint32_t hz) noexcept nogil:
    cdef uint64_t ticks = e.deadline  # of a connection as it is told, what is left
    put_be32(w, TIMEOUT, <uint32_t>((ticks + hz - 1) // hz))
    put_be32(w, STATUS, e.status & GIVEN_STATUS)
    put_be32(w, MARK, e.mark)
    if e.label[0] or e.label[1]:
        put(w, LABELS, e.label, 16)
    put_protocol(w, e)


cdef void put_translation(Writer *w, const Entry *e) noexcept nogil:
    """What answers are sent to, and what they come from."""
    cdef const Key *reply = &e.flow[1].key
    if e.status & SRC_NAT:
        put_half(w, NAT_SRC, reply, reply.dst, reply.sport if is_icmp(e.flow[0].key.proto) else reply.dport)
    if e.status & DST_NAT:
        put_half(w, NAT_DST, reply, reply.src, reply.sport)


cdef void put_helper(Writer *w, uint8_t number) noexcept nogil:
    cdef uint16_t size = 0
    cdef uint8_t *level
    if not 0 < number <= helpers:
        return
    while helper_names[number - 1][size]:
        size += 1
    level = begin(w, HELP)
    put(w, 1, helper_names[number - 1], size + 1)
    end(w, level)


cdef size_t write_request(Writer *w, const Entry *e, uint16_t kind, uint16_t flags, uint32_t hz, bint whole, bint new, bint helper) noexcept nogil:
    cdef const Key *orig = &e.flow[0].key
    cdef const Key *reply = &e.flow[1].key
    cdef bint split = orig.zone != reply.zone
    cdef uint32_t size, none = 0
    w.at += 4  # the length comes last
    put16(w, kind)
    put16(w, flags)
    memcpy(w.at, &none, 4)
    memcpy(w.at + 4, &none, 4)
    w.at += 8
    memcpy(w.at, &none, 4)
    w.at[0] = AF_INET if orig.family == 4 else AF_INET6
    w.at += 4
    put_tuple(w, TUPLE_ORIG, orig, orig.src, orig.dst, orig.sport, orig.dport, orig.zone if split else 0)
    if whole:  # the tuple of answers as if nothing were translated
        if is_icmp(orig.proto):
            put_tuple(w, TUPLE_REPLY, orig, orig.dst, orig.src, orig.sport, reply.dport, reply.zone if split else 0)
        else:
            put_tuple(w, TUPLE_REPLY, orig, orig.dst, orig.src, orig.dport, orig.sport, reply.zone if split else 0)
    if not split:
        put_be16(w, ZONE, orig.zone)
    if whole:
        put_state(w, e, hz)
        if new:
            put_translation(w, e)
            if helper:
                put_helper(w, <uint8_t>(e.extension >> 24))
    size = <uint32_t>(w.at - w.start)
    memcpy(w.start, &size, 4)
    return size
