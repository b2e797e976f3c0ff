"""Talks of the fuzzer about fragments and helpers, without a kernel: what they say leads to where it is meant to lead.

Invariants: fragments as they are cut give the datagram; announced connections are expected ones, with and without translation.
"""

from __future__ import annotations

from ipaddress import ip_address
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctcore.config import Config
from ctcore.nat_rules import Match, NatRule, Range
from ctcore.types import Reason, State
from datapath.scenario.steps import DEFAULT_HOSTS, Packet
from pcap_tests.fuzz_kernel.draft import Draft, Settings, Watcher
from pcap_tests.fuzz_kernel.fragments import FragmentTalk, slices_of, spoilt
from pcap_tests.fuzz_kernel.helped import FtpTalk, TftpTalk, answer, command
from pcap_tests.fuzz_kernel.plan_nat import HELPERS

PUBLIC = {False: "192.0.2.1", True: "2001:db8:9::1"}
NAMES = {False: ("A", "B"), True: ("A6", "B6")}
FAMILIES = pytest.mark.parametrize("six", [False, True], ids=["ipv4", "ipv6"])
TRANSLATED = pytest.mark.parametrize("translated", [False, True], ids=["plain", "snat"])


def draft_of(seed: int, *, six: bool = False, translated: bool = False) -> tuple[Draft, list]:
    """A draft, and the list in which every decision on its packets will be."""
    address = ip_address(PUBLIC[six])
    nat = (NatRule("snat", Range(address, address), Match()),) if translated else ()
    draft = Draft(Random(seed), Watcher(Settings(Config(nat=nat, helpers=HELPERS))), six=six, hosts=DEFAULT_HOSTS, strange=0)
    decisions: list = []
    see = draft.watcher.see
    draft.watcher.see = lambda frame: decisions.append(see(frame)) or decisions[-1]  # type: ignore[method-assign]
    return draft, decisions


@given(st.integers(0, 1 << 32), st.integers(1, 4000))
def test_slices_cover_their_datagram(seed: int, total: int) -> None:
    slices = slices_of(DRAFT_OF_SLICES.reseeded(seed), total)
    assert slices[0][0] == 0 and slices[-1][0] + slices[-1][1] == total
    assert all(at + size == after for (at, size, _), (after, _, _) in pairwise(slices))
    assert all(at % 8 == 0 and more == (at + size < total) for at, size, more in slices)


@given(st.integers(0, 1 << 32), st.integers(1, 4000))
def test_spoilt_slices_are_never_none(seed: int, total: int) -> None:
    """And each can be said by a fragment: from a multiple of 8 on, with a byte at least."""
    draft = DRAFT_OF_SLICES.reseeded(seed)
    found = spoilt(draft, slices_of(draft, total))
    assert found and all(at % 8 == 0 and at >= 0 and size >= 1 for at, size, _ in found)


class _Reseeded(Draft):
    """A draft whose dice can be thrown anew, for making one takes long."""

    def reseeded(self, seed: int) -> _Reseeded:
        self.dice = Random(seed)
        return self


DRAFT_OF_SLICES = _Reseeded(Random(0), Watcher(Settings(Config())), six=False, hosts=DEFAULT_HOSTS)


@FAMILIES
@TRANSLATED
def test_fragments_are_held_spoilt_and_completed(six: bool, translated: bool) -> None:
    draft, decisions = draft_of(1, six=six, translated=translated)
    talk = FragmentTalk(draft, NAMES[six], (1000, 53))
    while len(draft.steps) < 600:
        talk.step()
    reasons = {int(decision["reason"]) for decision in decisions}
    assert {Reason.R_OK, Reason.R_FRAGMENT, Reason.R_FRAGMENT_DUPLICATE, Reason.R_FRAGMENT_OVERLAP} <= reasons
    assert len({int(decision["conn"]) for decision in decisions}) >= 2  # none, and the one that datagrams belong to


@FAMILIES
@TRANSLATED
@pytest.mark.parametrize("talk", [FtpTalk, TftpTalk])
def test_announced_connections_are_expected_ones(talk: type[FtpTalk] | type[TftpTalk], six: bool, translated: bool) -> None:
    related = 0
    for seed in range(10):
        draft, decisions = draft_of(seed, six=six, translated=translated)
        one = talk(draft, NAMES[six], (40000, 0))
        while len(draft.steps) < 40:
            one.step()
        related += sum(int(decision["state"]) == State.RELATED for decision in decisions)
        if translated:
            assert PUBLIC[six] in {sent.packet.dst for sent in draft.sent if isinstance(sent.packet, Packet)}
    assert related


def test_announcements_are_written_as_they_should() -> None:
    assert command("10.0.0.1", 40001) == b"PORT 10,0,0,1,156,65\r\n"
    assert command("2001:db8::1", 40001) == b"EPRT |2|2001:db8::1|40001|\r\n"
    assert answer("10.0.0.2", 51201, extended=False) == b"227 Entering Passive Mode (10,0,0,2,200,1)\r\n"
    assert answer("10.0.0.2", 51201, extended=True) == b"229 Entering Extended Passive Mode (|||51201|)\r\n"
