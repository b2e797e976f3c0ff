"""Payloads come from strangers: whatever they hold, helpers read no byte behind them (a page that kills follows), and decide as the model does."""

from __future__ import annotations

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ctcore.config import Config
from ctcore.model import ModelTracker
from ctcore.tracker import Tracker
from datapath import craft
from datapath.frame import frames_of
from datapath.wire import parse_batch
from pcap_tests.conftest import examples
from pcap_tests.scene import START
from pcap_tests.test_ctcore.test_helpers.test_helpers_agree import CLIENT, COMMANDS, OUTSIDE, OVER_UDP, PORTS, RULES, SERVER, SNAT, bites, damaged
from pcap_tests.test_datapath.guarded import Guarded

guarded = Guarded()
lines = st.sampled_from([(name, *line) for name, said in COMMANDS.items() for line in said])
payloads = st.one_of(st.binary(max_size=300), st.none())


def opened(helper: str, six: int, translated: bool):
    """Engine and model with a control connection on which both sides have said a line; its two ends."""
    client, server = CLIENT[six], SERVER[six]
    ends = ((client, server, 40000, PORTS[helper]), (server, OUTSIDE[six] if translated else client, PORTS[helper], 40000))
    config = Config(helpers=RULES, nat=SNAT if translated else (), max=1000)
    trackers = Tracker(config), ModelTracker(config)
    opening = [
        craft.tcp(*ends[0], "S", seq=100),
        craft.tcp(*ends[1], "SA", seq=500, ack=101),
        craft.tcp(*ends[0], "A", seq=101, ack=501, payload=b"\n"),
        craft.tcp(*ends[1], "A", seq=501, ack=102, payload=b"\n"),
    ]
    for tracker in trackers:
        tracker.advance(parse_batch(*frames_of(opening, ts=START)))
    return trackers, ends


@settings(max_examples=examples(400), suppress_health_check=[HealthCheck.too_slow])
@given(lines, payloads, st.lists(bites, max_size=3), st.integers(0, 1), st.booleans())
def test_no_byte_behind_the_payload(line, payload, bitten, six, translated):
    helper, d, said = line
    for bite in bitten:
        said = damaged(said, bite)
    judge(helper, d, said if payload is None else payload, six, translated)


def judge(helper: str, d: int, payload: bytes, six: int, translated: bool) -> None:
    """One payload on a new control connection, in memory that ends with it."""
    trackers, ends = opened(helper, six, translated)
    if helper in OVER_UDP:
        frame = craft.udp(*ends[d], payload=payload)
    else:
        frame = craft.tcp(*ends[d], "PA", seq=(102, 502)[d], ack=(502, 102)[d], payload=payload)
    found = []
    for tracker in trackers:
        frames = guarded.at_end(frame)
        frames["ts"] = START
        decisions = tracker.advance(parse_batch(guarded.memory, frames))
        tracker.check()
        found.append((decisions.tolist(), tracker.expectations()))
    assert found[0] == found[1]


def test_the_page_behind_is_guarded():
    assert isinstance(guarded.memory, np.ndarray) and len(guarded.memory) % 4096 == 0
