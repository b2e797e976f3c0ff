"""The way past an IPv4 header whose length a frame says, as instructions that the kernel lets anybody load who has CAP_BPF and CAP_NET_ADMIN.

Theory of operation: to add a number that is not known to a packet's address, the verifier wants CAP_PERFMON besides (it guards against what a
processor does by mere guess). There are sixteen lengths: each is compared and added by itself, the usual one first.
Not here: what is looked at behind the header (xdp_filter, syn_guard).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from datapath import bpf
from datapath.bpf import R0, R3, R7, Instruction, label

IHL = 14  # where version and length stand in a frame
WORDS = (5, *range(6, 16), *range(5))  # lengths, in words of four bytes


def past_ipv4(name: str) -> Iterator[Instruction]:
    """R3 becomes R7, the frame's address, and the length of its header: 14 bytes before what follows it. R0 is lost. name: of its labels."""
    yield bpf.load(R0, R7, IHL, 1)
    yield bpf.and_value(R0, 15)
    yield bpf.move(R3, R7)
    for words, after in itertools.pairwise(WORDS):
        yield bpf.jump_unequal(R0, words, f"{name}-not-{words}-words")
        yield bpf.add_value(R3, 4 * words)
        yield bpf.jump(f"{name}-past")
        yield label(f"{name}-not-{words}-words", bpf.move(R3, R7))
        if after == WORDS[-1]:
            yield bpf.add_value(R3, 4 * after)
    yield label(f"{name}-past", bpf.move_value(R0, 0))
