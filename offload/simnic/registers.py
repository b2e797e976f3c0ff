"""What a frame carries through a NIC, and what a NIC carries from frame to frame, as arrays of words for numba.

Not here: what is done with them (walk).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from offload.simnic.layout import WORDS
from offload.simnic.parse import N_AT

MOST_OUTPUTS = 16  # of a frame

# Registers of a frame. R_OFF, R_CAPLEN, R_LEN: where it is and how long; R_OWN: in the NIC's memory; R_LENT: a copy of it has left from there;
# R_PARSE: its bytes no longer are what the key says.
R_OFF, R_CAPLEN, R_LEN, R_OWN, R_LENT, R_PARSE, R_IFACE, R_MARK, R_PRIORITY, R_RESTORE, R_CONN, R_FLAGS, R_PUSHED, R_OUTPUTS, R_TURNS = range(15)
N_REGISTERS = 15
# Of a NIC, between frames: the period of its counters; when the next one begins, and how long one is; from when to when they are stuck; bytes of
# its memory and outputs in use; SYNs forwarded as established.
N_PERIOD, N_NEXT, N_LENGTH, N_STUCK_FROM, N_STUCK_TO, N_USED, N_OUT, N_SYNS = range(8)
# Settings: whether a software that resumes does so at the action; whether what a CT table serves loses its padding.
O_EXACT, O_TRIMS = range(2)


BLOCK = 32  # frames that are parsed, and whose entries are fetched, before the first of them goes its way


class Block(NamedTuple):
    """Of a block's frames: key, at as in Work; a Why of the parser; slot: where its connection may be."""

    key: NDArray[Any]
    at: NDArray[Any]
    why: NDArray[Any]
    slot: NDArray[Any]


def block() -> Block:
    sizes = (BLOCK, WORDS), (BLOCK, N_AT), BLOCK, BLOCK
    key, at, why, slot = (np.zeros(size, dtype=np.int64) for size in sizes)
    return Block(key, at, why, slot)


class Work(NamedTuple):
    """own: the NIC's memory; output: rows of OUTPUT_DTYPE; nic: N_*; option: O_*; key, at, r: of the frame."""

    own: NDArray[Any]
    output: NDArray[Any]
    nic: NDArray[Any]
    option: NDArray[Any]
    key: NDArray[Any]
    at: NDArray[Any]
    r: NDArray[Any]


def work(own: NDArray[Any], output: NDArray[Any], nic: NDArray[Any], option: NDArray[Any]) -> Work:
    words = [np.zeros(n, dtype=np.int64) for n in (WORDS, N_AT, N_REGISTERS)]
    return Work(own, output, nic, option, *words)
