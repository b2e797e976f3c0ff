from libc.stdint cimport int64_t, uint8_t, uint64_t

from ctcore.fragments cimport Reassembler
from ctcore.types cimport Decision, Key, Packet, Rewrite
from datapath.frame cimport Frame

# What is to be done with packets beside tracking them. Each may be NULL: then not.
ctypedef struct Asked:
    Decision *decisions         # to be filled in, a row a frame
    Key *keys
    Rewrite *rewrites
    uint8_t *memory             # where the frames lie; they are to be changed there

ctypedef struct Summary:
    uint64_t packets[6]         # by State
    uint64_t bytes[6]           # on the wire
    uint64_t dropped
    uint64_t held
    uint64_t reason_packets[96] # by Reason
    int64_t reason_first[96]    # index of the first packet with it, -1 if none
    uint64_t total_packets
    uint64_t total_bytes
    uint64_t backwards          # packets whose timestamp is before an earlier one's
    uint64_t translated         # packets whose own header address translation changes
    uint64_t snapped            # packets of which not all bytes were captured
    int64_t first_ts
    int64_t last_ts

cdef void sum_up(Summary *s, const Packet *row, const Frame *frames, int n) noexcept nogil
cdef void summary_begin(Summary *s) noexcept nogil
cdef dict summary_of(Summary *s)
cdef dict gathered_by(Reassembler reassembler, int64_t now)
