"""What an offloading NIC leaves of a checksum is told from one that is bad."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datapath import evidence
from datapath.craft import TCP, UDP, checksum, pseudo, tcp, udp
from datapath.frame import frames_of
from datapath.wire import parse_batch
from pcap_tests.conftest import examples
from pcap_tests.stories import CLIENT, CLIENT6, SERVER, SERVER6


def partial_sum(src, dst, proto, length):
    """The sum of the pseudo-header, not complemented: what a host leaves for its NIC to add to."""
    return ~checksum(pseudo(src, dst, proto, length)) & 0xFFFF


def looked_at(frames_, total=None):
    found = evidence.Evidence()
    memory, frames = frames_of(frames_)
    found.look(memory, frames, len(frames_) if total is None else total)
    return found.looked, found.left


@pytest.mark.parametrize(("src", "dst"), [(CLIENT, SERVER), (CLIENT6, SERVER6)])
@pytest.mark.parametrize(("make", "proto", "header"), [(tcp, TCP, 20), (udp, UDP, 8)])
@settings(max_examples=examples(50), deadline=None)
@given(payload=st.binary(max_size=40))
def test_the_field_is_partial_if_and_only_if_it_holds_the_pseudo_header_s_sum(src, dst, make, proto, header, payload):
    left = partial_sum(src, dst, proto, header + len(payload))
    for value, partial in ((left, True), (left ^ 0x0100, False)):
        batch = parse_batch(*frames_of([make(src, dst, 1000, 80, payload=payload, l4_checksum=value)]))
        assert evidence.is_partial(batch.array[0], batch.l4_bytes(0)) == (partial or value == 0)


def test_frames_are_looked_at_only_if_something_new_was_bad():
    bad = tcp(CLIENT, SERVER, 1, 2, l4_checksum=0x1234)
    assert looked_at([bad, tcp(CLIENT, SERVER, 1, 2)]) == (1, 0)
    assert looked_at([bad], total=0) == (0, 0)


def test_no_more_chunks_are_parsed_than_said(monkeypatch):
    monkeypatch.setattr(evidence, "CHUNKS", 3)
    found = evidence.Evidence()
    memory, frames = frames_of([tcp(CLIENT, SERVER, 1, 2, l4_checksum=0)])
    for bad in range(1, 10):
        found.look(memory, frames, bad)
    assert (found.looked, found.left) == (3, 3)
