"""The pipeline and traffic that wants to hurt: conversations in every protocol with frames that are patched, cut, snapped and out of time.

What holds is said in hostile.py; here it is tried with random bytes, and it is proved that these get somewhere.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ctcore import Config, reasons
from ctcore.types import State
from pcap_tests.conftest import examples
from pcap_tests.scene import START
from pcap_tests.test_datapath.guarded import Guarded
from pcap_tests.test_datapath.hostile import CONVERSATIONS, IP, SETTINGS, Packet, Story, broken, judge, story

CHANGES = {"0": lambda b: 0, "255": lambda b: 255, "^1": lambda b: b ^ 1, "+8": lambda b: b + 8 & 255, "+16": lambda b: b + 16 & 255}


@pytest.fixture(scope="module")
def guarded() -> Guarded:
    return Guarded()


def plain(talk: list[bytes]) -> list[Packet]:
    return [Packet(frame, START + i) for i, frame in enumerate(talk)]


@pytest.mark.parametrize("talk", CONVERSATIONS)
def test_unharmed_conversations_are_sound(guarded, talk):
    """What is broken later has to be good to begin with: no checksum is wrong, no header is short."""
    decisions = judge(guarded, Story(Config(), 0, plain(talk)))
    faults = {reasons.NAMES[r] for r in decisions["reason"]}
    assert not {name for name in faults if name.endswith(("short", "checksum", "length", "header", "truncated", "snapped", "tag", "inner"))}
    assert np.isin(decisions["state"], (State.NEW, State.ESTABLISHED, State.RELATED)).sum() >= 2 or "fragment" in faults


def test_every_errors_quotation_is_understood(guarded):
    """Among the conversations, errors about all protocols reach their connection."""
    talks = [packet for talk in CONVERSATIONS for packet in plain(talk)]
    decisions = judge(guarded, Story(Config(), 0, talks))
    assert (decisions["state"] == State.RELATED).sum() >= 10


@pytest.mark.parametrize("talk", CONVERSATIONS)
@pytest.mark.parametrize("damage", [1, 2, 5], ids=["cut", "snapped", "short"])
def test_conversations_cut_at_every_length(guarded, talk, damage):
    """One frame over and over, each time cut elsewhere, behind those that make the connection it belongs to."""
    for i, frame in enumerate(talk):
        cuts = [broken(frame, b"", 0, damage, cut)._replace(ts=START + i) for cut in range(1, len(frame) - IP)]
        judge(guarded, Story(Config(checksum=False), 0, [*plain(talk[:i]), *cuts]))


@pytest.mark.parametrize("talk", CONVERSATIONS)
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_every_byte_of_every_frame_wrong(guarded, talk, change):
    """One frame over and over, each time with the next byte wrong, behind those that make the connection it belongs to."""
    for i, frame in enumerate(talk):
        wrong = [broken(frame, bytes([change(frame[IP + at])]), at, 4, 0)._replace(ts=START + i) for at in range(len(frame) - IP)]
        judge(guarded, Story(Config(checksum=False), 0, [*plain(talk[:i]), *wrong]))


@settings(max_examples=examples(300), deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.binary(min_size=SETTINGS + 200, max_size=SETTINGS + 600))
def test_patched_conversations(guarded, data):
    judge(guarded, story(data))


@settings(max_examples=examples(150), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(CONVERSATIONS), st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=6)), max_size=30))
def test_one_conversation_with_a_few_wrong_bytes(guarded, talk, patches):
    """Said twice over, so that connections get old; checksums are not looked at, so that the wrong bytes are."""
    packets = plain(talk * 2)
    for i, (position, patch) in enumerate(patches):
        packets[i % len(packets)] = broken((talk * 2)[i % len(packets)], patch, position, 4, 0)._replace(ts=START + i % len(packets))
    judge(guarded, Story(Config(checksum=False), 0, packets))
