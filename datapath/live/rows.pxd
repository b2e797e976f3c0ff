# What is handed to an iface for sending, and what an iface counts; what the counters say stands in rows.py.

from libc.stdint cimport uint32_t, uint64_t

ctypedef struct Send:
    uint64_t offset             # of the frame's first byte, in the memory that ifaces share
    uint32_t len
    uint32_t flags              # none yet: 0

ctypedef struct Statistics:
    uint64_t rx
    uint64_t rx_bytes
    uint64_t rx_dropped
    uint64_t rx_ring_full
    uint64_t rx_fill_empty
    uint64_t rx_invalid
    uint64_t rx_oversize
    uint64_t rx_no_chunk
    uint64_t rx_completed
    uint64_t rx_cut
    uint64_t rx_shed
    uint64_t tx
    uint64_t tx_bytes
    uint64_t tx_ring_full
    uint64_t tx_refused
    uint64_t tx_down
    uint64_t tx_invalid
    uint64_t kicks
    uint64_t kick_again
    uint64_t kick_down
    uint64_t kick_gone
    uint64_t wakes
