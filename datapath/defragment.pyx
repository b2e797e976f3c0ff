"""The stage between parse and hash: fragments are held, dropped, or become the row of the datagram that they complete.

Theory of operation: parse() leaves a fragment as a row with reason R_FRAGMENT. Its header is read again here, ctcore.fragments says what becomes of
it, and if it completes a datagram, that is parsed in its place: from then on the row is the datagram's, but for what belongs to the frame that came:
time, index, bytes on the wire, offset of the IP header. Rows stay 1:1 with frames.
Invariants: a row's l4 points into the chunk's memory or the finished memory, both of which stay until the next chunk; a batch without fragments
never comes here.
Not here: which fragments make a datagram, and when it dies (ctcore.fragments); cutting it up again (refragment).
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memset

import numpy as np

from ctcore.batch cimport Batch
from ctcore.fragment_whole cimport Part, Whole, finished_next, fragments_room
from ctcore.fragments cimport (
    FRAGMENT_DROPPED, FRAGMENT_PASSED, FRAGMENT_WHOLE, Fragment, Fragments, Reassembler, fragment_add, fragments_release, fragments_reserve,
)
from ctcore.lowlevel cimport be16
from ctcore.tuples cimport IP6_AUTH, IP6_FRAGMENT, IP6_HEADER
from ctcore.types cimport ACCEPT, DROP, R_FRAGMENT, R_FRAGMENT_MALFORMED, R_OK, R_SNAPPED, Packet
from datapath.frame cimport Frame, checked_frames
from datapath.link cimport LINKTYPE_RAW
from datapath.wire cimport FRAGMENTS_GATHERED, FRAGMENTS_PASSED, ParseSettings, parse

from datapath.refragment import Datagram

cdef enum:
    LARGEST_CAPTURED = 65535 + 40       # bytes of a fragment, from its IP header on


# --- reading a fragment -----------------------------------------------------------------------------------------------------------------


cdef void read4(const uint8_t *ip, const Packet *p, Fragment *f) noexcept nogil:
    """RFC 791 3.1. The header is there."""
    cdef uint32_t frag = be16(ip + 6)
    f.key.proto = ip[9]
    f.key.sport = 0
    f.key.dport = be16(ip + 4)
    f.offset = (frag & 0x1FFF) * 8
    f.more = frag >> 13 & 1
    f.dont = frag >> 14 & 1
    f.ecn = ip[1] & 3
    f.head_length = (ip[0] & 15) * 4
    f.data = p.l4
    f.length = p.l4_len
    f.have = p.l4_have


cdef uint8_t read6(const uint8_t *ip, uint32_t have, Fragment *f) noexcept nogil:
    """RFC 8200 4.5, up to the first fragment header. have: captured bytes of the packet. R_OK, or why it cannot be one.

    Safe: parse() has read the first four bytes of the fragment header, and all headers in front of it.
    """
    cdef uint32_t at = IP6_HEADER, total = be16(ip + 4) + <uint32_t>IP6_HEADER
    cdef uint8_t kind = ip[6]
    f.next_at = 6
    while kind != IP6_FRAGMENT:
        f.next_at = at
        at += (<uint32_t>ip[at + 1] + 2) * 4 if kind == IP6_AUTH else (<uint32_t>ip[at + 1] + 1) * 8
        kind = ip[f.next_at]
    if at + 8 > total:
        return R_FRAGMENT_MALFORMED
    if at + 8 > have:
        return R_SNAPPED
    f.key.proto = 0
    f.key.sport = be16(ip + at + 4)
    f.key.dport = be16(ip + at + 6)
    f.offset = be16(ip + at + 2) & 0xFFF8
    f.more = ip[at + 3] & 1
    f.dont = 0
    f.ecn = ip[1] >> 4 & 3
    f.next = ip[at]
    f.head_length = at
    f.data = ip + at + 8
    f.length = total - at - 8
    f.have = have - at - 8
    return R_OK


cdef uint8_t read_fragment(const uint8_t *memory, const Frame *frame, const Packet *p, Fragment *f) noexcept nogil:
    """The fragment that a row with R_FRAGMENT is. R_OK, or why it cannot be one."""
    cdef const uint8_t *ip = memory + frame.offset + p.l3_off
    memset(f, 0, sizeof(Fragment))
    f.key = p.key
    f.link = memory + frame.offset
    f.link_length = p.l3_off
    f.head = ip
    f.size = p.ip_len
    if p.key.family == 6:
        return read6(ip, min(p.ip_len, frame.caplen - p.l3_off), f)
    read4(ip, p, f)
    return R_OK


# --- the stage --------------------------------------------------------------------------------------------------------------------------


cdef void reserve(const Gathering *g) noexcept nogil:
    """Before the first fragment of a chunk: room for all datagrams that may be finished in it."""
    cdef size_t coming = 0
    cdef Py_ssize_t i
    for i in range(g.left):
        coming += fragments_room(min(g.frames[i].caplen, <uint32_t>LARGEST_CAPTURED))
    fragments_reserve(g.all, coming)


cdef inline void refuse(Packet *p, uint8_t reason) noexcept nogil:
    p.reason = reason
    p.verdict = ACCEPT if reason == R_SNAPPED else DROP


cdef void replace(const Gathering *g, const uint8_t *memory, const Frame *frame, Packet *p) noexcept nogil:
    """Parse what reassembly made of a row in its place."""
    cdef Packet before = p[0]
    parse(&g.settings, memory, frame, 1, p)
    p.now = before.now
    p.wire_len = before.wire_len
    p.l3_off = before.l3_off
    p.index = before.index


cdef uint8_t gather_one(const Gathering *g, const Frame *frame, Packet *p, uint64_t number, Whole *whole) noexcept nogil:
    """One fragment, a row with R_FRAGMENT: what becomes of it (FragmentOutcome).   Writes: the row; whole, of FRAGMENT_WHOLE."""
    cdef Fragment f
    cdef Frame datagram
    cdef uint8_t outcome, reason = read_fragment(g.memory, frame, p, &f)
    if reason != R_OK:
        refuse(p, reason)
        return FRAGMENT_DROPPED
    f.number = number
    f.first_link = g.first_link
    outcome = fragment_add(g.all, &f, <uint64_t>(g.now // g.all.tick_ns), whole)
    if outcome == FRAGMENT_DROPPED:
        refuse(p, whole.reason)
    elif outcome == FRAGMENT_PASSED:
        replace(g, g.memory, frame, p)
    elif outcome == FRAGMENT_WHOLE:
        datagram.offset = whole.frame + whole.link_length
        datagram.caplen = whole.have
        datagram.len = whole.length
        datagram.ts = p.now
        datagram.link = LINKTYPE_RAW
        datagram.iface = frame.iface
        replace(g, g.all.finished.memory, &datagram, p)
    return outcome


cdef void defragment(Gathering *g, Packet *row, int n) noexcept nogil:
    """Fragments to datagrams.   Reads: reason, key, l3_off, l4, now; frames.   Writes: of fragments all but now, index, wire_len, l3_off; g.now."""
    cdef int i
    cdef Whole whole
    if not g.all.finished.reserved:
        reserve(g)
    for i in range(n):
        g.now = max(g.now, row[i].now)
        if row[i].reason == R_FRAGMENT:
            gather_one(g, &g.frames[i], &row[i], g.number + i, &whole)


# --- from Python ------------------------------------------------------------------------------------------------------------------------


def refused(Batch batch not None, int i, reason):
    """Let row i be a fragment that was dropped, for a Reason: what reassembly in Python has to say. Raises IndexError."""
    if not 0 <= i < batch.size:
        raise IndexError(f"row {i}: the batch has {batch.size}")
    refuse(&batch.row[i], reason)


cdef list datagrams_of(const Fragments *all, uint64_t first, bint verified):
    """What lies in the finished memory, as refragment.Datagram. first: number of the packet of row 0; verified: of all of them."""
    cdef size_t at = 0
    cdef const Whole *w
    cdef const Part *part
    cdef uint32_t i
    found = []
    while at < all.finished.used:
        w = <const Whole *>(all.finished.memory + at)
        part = <const Part *>(all.finished.memory + w.parts)
        parts = tuple([(part[i].number, part[i].offset, part[i].length) for i in range(w.n_parts)])
        frame = PyBytes_FromStringAndSize(<const char *>(all.finished.memory + w.frame), w.link_length + w.have)
        found.append(Datagram(w.number - first, frame, w.link_length, w.length, w.largest, bool(w.dont), w.ident, parts, bool(verified)))
        at = finished_next(w.frame + w.link_length + w.have)
    return found


cdef class Gatherer:
    """Parser and reassembly without a tracker. See defragment.pyi."""
    cdef readonly Reassembler reassembler
    cdef readonly list datagrams
    cdef ParseSettings settings
    cdef int64_t now
    cdef uint64_t packets

    def __init__(self, config=None, *, int zone=0, bint at_hook=False):
        self.reassembler = Reassembler(config)
        self.zone = zone
        self.settings.at_hook = at_hook
        self.settings.checksum = self.reassembler.config.checksum
        self.settings.nat = len(self.reassembler.config.nat) > 0 or self.reassembler.config.nat_actions
        self.datagrams = []

    @property
    def zone(self):
        return self.settings.zone

    @zone.setter
    def zone(self, int zone):
        if not 0 <= zone <= 0xFFFF:
            raise ValueError(f"zone = {zone}: expected 0 to 65535")
        self.settings.zone = zone

    def parse(self, const uint8_t[::1] memory not None, frames not None):
        cdef const Frame *rows = checked_frames(memory, frames)
        cdef int n = len(frames), i
        cdef Batch batch = Batch(max(n, 1))
        cdef Fragments *all = &self.reassembler.all
        cdef Gathering g
        batch.size = n
        if n == 0:
            return batch
        fragments_release(all)
        self.settings.fragments = FRAGMENTS_GATHERED
        g.first_link = False
        g.all, g.now, g.memory, g.frames, g.left, g.number = all, self.now, &memory[0] if memory.shape[0] else NULL, rows, n, self.packets
        if parse(&self.settings, g.memory, rows, n, batch.row):
            self.settings.fragments = FRAGMENTS_PASSED
            g.settings = self.settings
            defragment(&g, batch.row, n)
        for i in range(n):
            self.now = max(self.now, batch.row[i].now)
        self.datagrams = datagrams_of(all, self.packets, self.settings.checksum)
        self.packets += n
        own(batch, np.asarray(memory), all)
        return batch


cdef void own(Batch batch, object memory, Fragments *all) except *:
    """Let a batch keep what its rows point to: the frames, and a copy of the finished datagrams."""
    cdef size_t start = <size_t>all.finished.memory, here
    cdef int i
    finished = np.frombuffer(PyBytes_FromStringAndSize(<const char *>all.finished.memory, all.finished.used), dtype=np.uint8)
    here = finished.ctypes.data
    for i in range(batch.size):
        if start <= <size_t>batch.row[i].l4 < start + all.finished.used:
            batch.row[i].l4 = <const uint8_t *>(<size_t>batch.row[i].l4 - start + here)
    batch._owner = (memory, finished)
