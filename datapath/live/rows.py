"""What is handed to an iface for sending, and what an iface counts, as NumPy has them; the C structs are those of rows.pxd.

Not here: frames as they are received (datapath.frame).
"""

from __future__ import annotations

import numpy as np

# offset: of the frame's first byte in the memory; len: bytes; flags: 0.
SEND_DTYPE = np.dtype([("offset", "u8"), ("len", "u4"), ("flags", "u4")])

# Counters of an iface, in the order of struct Statistics; each with what it says.
COUNTERS = {
    "rx": "frames received",
    "rx_bytes": "bytes of these",
    "rx_dropped": "frames the kernel dropped before we saw them: too large for a chunk, or no memory",
    "rx_ring_full": "frames the kernel dropped since we did not take them fast enough",
    "rx_fill_empty": "frames for which the kernel had no chunk",
    "rx_invalid": "chunks for receiving that the kernel did not take",
    "rx_oversize": "frames too large for a chunk",
    "rx_no_chunk": "frames for which there was no free chunk",
    "rx_completed": "checksums completed that a local stack had left to its NIC",
    "rx_cut": "frames that held several segments (TSO, GRO), and were cut up: each of these counts as received",
    "rx_shed": "opening segments of TCP beyond syn_rate, which the kernel dropped",
    "tx": "frames handed to the kernel",
    "tx_bytes": "bytes of these",
    "tx_ring_full": "frames refused since the ring was full: the device is slower than we are",
    "tx_refused": "frames the device did not take: larger than its MTU, too short, no carrier, or its queue full",
    "tx_down": "frames refused since the interface is down or gone",
    "tx_invalid": "frames that are none: outside of a chunk, or the kernel did not take the descriptor",
    "kicks": "system calls for sending",
    "kick_again": "of these, those after which frames were left",
    "kick_down": "of these, those that found the interface down",
    "kick_gone": "of these, those that found no interface any more",
    "wakes": "system calls for receiving",
}

# Of these, what stands for frames that were lost, by what is behind the direction.
RING_DROPS = {
    name: name.partition("_")[2]
    for name in ("rx_dropped", "rx_ring_full", "rx_fill_empty", "rx_invalid", "rx_oversize", "rx_no_chunk", "rx_shed", "tx_ring_full", "tx_refused",
                 "tx_down", "tx_invalid")
}  # fmt: skip
