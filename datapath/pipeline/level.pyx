"""A level of a walk: a frame at a hook, and how it is seen anew when it has changed.

Not here: who changes it (walk, track).
"""

from libc.stdint cimport uint16_t, uint32_t, uint64_t

from ctcore.types cimport Packet
from datapath.frame cimport Frame
from datapath.link cimport LINKTYPE_IPV4, LINKTYPE_IPV6
from datapath.pipeline.flower cimport flower_key
from datapath.wire cimport parse


cdef inline uint64_t shape_of(const Packet *p) noexcept nogil:
    """Which headers a packet has."""
    return <uint64_t>p.key.proto << 40 | <uint64_t>p.key.family << 32 | <uint32_t>(p.ip_len - p.l4_len)


cdef void read_draft(Walking *w, Level *v) noexcept nogil:
    """Parse the draft as it is now."""
    cdef Frame frame = w.frame[0]
    cdef uint64_t was = shape_of(v.packet)
    frame.offset = 0
    frame.caplen = v.draft.have
    frame.len = v.draft.have + v.draft.missing
    if not v.draft.ethernet and v.draft.family:     # what follows a link header does not change its kind with its first byte
        frame.link = LINKTYPE_IPV4 if v.draft.family == 4 else LINKTYPE_IPV6
        frame.offset = v.draft.l3
        frame.caplen -= v.draft.l3
        frame.len -= v.draft.l3
    parse(&w.settings, v.draft.data, &frame, 1, &v.own)
    v.own.l3_off += <uint16_t>frame.offset
    v.packet = &v.own
    if shape_of(v.packet) != was:
        w.trail.lasting = False     # what was payload is a header now, and may say something else in the flow's next packet
    v.parsed = True


cdef void put_said(Level *v) noexcept nogil:
    """What the last `ct` action said becomes part of the fields."""
    v.key.ct_state, v.key.ct_zone, v.key.ct_mark = v.said.state, v.said.zone, v.said.mark
    v.key.ct_label[0], v.key.ct_label[1] = v.said.label[0], v.said.label[1]


cdef inline uint16_t came_by(const Walking *w, const Level *v) noexcept nogil:
    """The device that a packet came in by (skb_iif): at egress the one it was sent on from, and none if it is the host's own."""
    if not v.hook & 1:
        return <uint16_t>(v.hook >> 1)
    return 0 if v == &w.level[0] else <uint16_t>((v - 1).hook >> 1)


cdef void look(Walking *w, Level *v) noexcept nogil:
    """Let packet and key tell what is there now."""
    if not v.parsed:
        read_draft(w, v)
    flower_key(v.draft.data, v.draft.have, v.draft.ethernet, v.draft.family, v.draft.l3, &v.key)
    v.key.indev = came_by(w, v)
    put_said(v)
    v.keyed = True
