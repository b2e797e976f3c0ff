"""Whatever pipelines ask for, with whatever packets, engine and model agree: on outcomes, decisions, rewrites, edits and what is carried, on every
event and every field of every connection, on counts, pools and expectations. So also where actions and batches are mixed.

A few packets are on their way at a time; each has been through some actions, some of which have changed it. Not here: what an action should do (the
tests beside this one), batches alone (test_equality, test_nat_equality, test_helpers_agree).
"""

from __future__ import annotations

from collections.abc import Generator
from itertools import cycle
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ctcore.config import ZONE_DIRS, Config
from ctcore.ct_action import BARE_NAT, NO_ASSOCIATION, Acted, CtAction, Outcome
from ctcore.filter import Filter
from ctcore.nat_rules import HELPERS
from ctcore.types import RewriteFlag, State
from pcap_tests.acting import carried_out
from pcap_tests.router import ANY, dnat, snat
from pcap_tests.test_ctcore.test_equality import EXAMPLES, config, pick
from pcap_tests.test_ctcore.test_helpers.test_helpers_agree import OUTSIDE, PORTS, Helped, bites, talk
from pcap_tests.test_ctcore.test_nat_equality import CLIENTS, SERVERS, NatPlay
from pcap_tests.test_ctcore.twins import same, same_rewrites

RULES = (
    snat("192.0.2.1", ports=(5000, 5003)),
    snat("192.0.2.1-192.0.2.3"),
    snat("2001:db8:9::1", ports=(5000, 5001), random=True),
    dnat("10.0.0.3"),
    dnat("10.0.0.2-10.0.0.4", ports=(1, 2)),
    dnat("2001:db8:2::8"),
    snat(ANY, ports=(5000, 5001)),
)


class Hand:
    """A packet on its way, in both trackers."""

    def __init__(self, frame: bytes):
        self.frame = frame
        self.carried = [NO_ASSOCIATION, NO_ASSOCIATION]


class ActingTwins(Helped):
    """Twins that do `ct` actions."""

    def act(self, hand: Hand, action: CtAction) -> Acted:
        """One action on a packet, which is changed as it asks, if it goes on."""
        self.flush_batch()
        trackers, times = (self.engine, self.model), np.array([self.now], dtype=np.int64)
        ours, theirs = (tracker.act(self.batch([hand.frame], times), action, before) for tracker, before in zip(trackers, hand.carried, strict=True))
        same_acted(ours, theirs)
        hand.carried = [ours.association, theirs.association]
        if ours.outcome == Outcome.ON:
            hand.frame = carried_out(hand.frame, ours)
        self.compare()
        return ours

    def leave(self, hand: Hand) -> None:
        for tracker, carried in zip((self.engine, self.model), hand.carried, strict=True):
            tracker.leave(carried)
        hand.carried = [NO_ASSOCIATION, NO_ASSOCIATION]
        self.compare()


def same_acted(ours: Acted, theirs: Acted) -> None:
    assert ours.outcome == theirs.outcome
    same(ours.decision, theirs.decision, "decision")
    same_rewrites(ours.rewrite, theirs.rewrite)
    for name, flag in (("seq_delta", RewriteFlag.REWRITE_SEQ), ("ack_delta", RewriteFlag.REWRITE_SEQ), ("n_edits", RewriteFlag.REWRITE_EDIT)):
        if ours.rewrite["flags"][0] & flag:
            same(ours.rewrite[name], theirs.rewrite[name], name)
    same(ours.edits, theirs.edits, "edits")
    assert ours.association._replace(token=None) == theirs.association._replace(token=None)
    assert (ours.association.token is None) == (theirs.association.token is None)


# --- any action on any packet -----------------------------------------------------------------------------------------------------------

pairs = st.none() | st.tuples(st.integers(0, 3), st.integers(0, 3))
mostly = st.sampled_from([True, True, False])
seldom = st.sampled_from([False] * 7 + [True])
helpers = st.sampled_from([None] * 6 + list(HELPERS))
actions = st.builds(
    CtAction,
    zone=st.sampled_from([0, 0, 0, 1, 65535]),
    commit=mostly,
    force=seldom,
    clear=st.sampled_from([False] * 15 + [True]),
    nat=st.sampled_from([None, BARE_NAT, BARE_NAT, *range(len(RULES))]),
    mark=pairs,
    label=st.none() | st.tuples(st.sampled_from([0, 1, 1 << 127]), st.sampled_from([0, 3, 1 << 127])),
    helper=helpers,
)
waits = st.sampled_from([0] * 12 + [0.004, 0.5, 1.999, 10, 31, 121, 300])
steps = st.lists(st.tuples(st.integers(0, 255), st.binary(min_size=9, max_size=9), actions, waits), min_size=25, max_size=60)
settings = config(
    nat=st.just(RULES),
    nat_actions=st.just(True),
    helper_actions=st.just(True),
    helper_max=st.sampled_from([1, 2, 1000]),
    max=st.sampled_from([4, 16, 1000, 1000]),
    zone_dir=st.sampled_from(("both", "both", *ZONE_DIRS)),
    zone_limits=st.sampled_from([{}, {}, {1: 2}]),
)


class Walk:
    """Three packets on their way, and whatever else happens meanwhile."""

    def __init__(self, twins: ActingTwins):
        self.twins, self.traffic = twins, NatPlay(twins.model)
        self.hands: list[Hand | None] = [None, None, None]

    def __call__(self, what: int, step: bytes, action: CtAction) -> None:
        place = what % 3
        if what < 90 or self.hands[place] is None:
            self.over(place)
            self.hands[place] = Hand(self.packet(step))
        if what < 200:
            hand = self.hands[place]
            assert hand is not None
            if self.twins.act(hand, action).outcome == Outcome.DROPPED:
                self.hands[place] = None
        elif what < 220:
            self.over(place)
        elif what < 245:
            self.twins.packet(self.packet(step))
            self.twins.flush_batch()
        else:
            self.interfere(what, step)

    def packet(self, step: bytes) -> bytes:
        """Of what lives, or something new."""
        self.twins.flush_batch()
        if step[0] < 100:
            return pick(self.traffic.known(step), step[8])
        if step[0] < 120:
            return pick(self.traffic.end(step), step[8])
        play = self.traffic
        asks = (play.udp, play.udp, play.tcp, play.tcp, play.tcp, play.ping, play.gre, play.other, play.sctp)
        return pick(asks, step[1])(step)

    def over(self, place: int) -> None:
        hand, self.hands[place] = self.hands[place], None
        if hand is not None:
            self.twins.leave(hand)

    def interfere(self, what: int, step: bytes) -> None:
        """What an administrator does."""
        twins = self.twins
        if what < 248:
            twins.call("delete", pick((Filter(proto=17), Filter(proto=6), Filter(zone=1)), step[0]))
        elif what < 250:
            twins.call("prefer", pick((0, 1, 5000, 40000, 65535), step[1]))
        elif what < 252:
            twins.call("update", Filter(), mark=step[0] & 3)
        else:
            master = max(0, twins.model._next_id - 1)
            twins.call("expect", master, pick(CLIENTS, step[1]), pick(SERVERS, step[2]), pick((6, 17, 47, 1), step[3]), 53, permanent=step[4] < 64)


def walk(twins: ActingTwins, said: list[tuple[int, bytes, CtAction, float]]) -> None:
    walk = Walk(twins)
    for what, step, action, wait in said:
        twins.wait(wait)
        walk(what, step, action)
        if what & 7 == 0:
            twins.take_events()
            twins.take_evictions()
    for place in range(3):
        walk.over(place)
    twins.take_events()
    twins.call("expire", twins.now + 10**15)
    twins.take_events()


@given(settings, steps)
@EXAMPLES
def test_engine_and_model_act_alike(config: Config, said):
    walk(ActingTwins(config), said)


# --- pipelines that many have -----------------------------------------------------------------------------------------------------------

Pipeline = Generator[dict[str, Any], Acted, None]  # says what to do next, and is told what came of it


def is_open(acted: Acted) -> bool:
    """+trk+new or +trk+rel, and nobody has committed it."""
    decision = acted.decision[0]
    return decision["state"] in (State.NEW, State.RELATED) and decision["conn"] < 0


def classic(lookup: dict[str, Any], commit: dict[str, Any]) -> Pipeline:
    """`-trk: ct nat`; `+trk+new: ct commit nat src helper`."""
    if is_open((yield lookup)):
        yield commit


def at_once(lookup: dict[str, Any], commit: dict[str, Any]) -> Pipeline:
    yield commit


def two_zones(lookup: dict[str, Any], commit: dict[str, Any]) -> Pipeline:
    """A zone inside, which translates and helps, and one outside."""
    yield from classic(lookup, commit)
    yield {"zone": 7, "commit": True, "mark": (1, 1)}


def late(lookup: dict[str, Any], commit: dict[str, Any]) -> Pipeline:
    """Tracked in one action, translated in the next."""
    yield commit if is_open((yield {})) else lookup


def untranslated(lookup: dict[str, Any], commit: dict[str, Any]) -> Pipeline:
    """Translated in the action that commits, and never again."""
    if is_open((yield {})):
        yield commit


PIPELINES = (classic, classic, classic, at_once, two_zones, late, untranslated)


class Piped(ActingTwins):
    """Each packet goes through the next pipeline, or past all of them."""

    def __init__(self, config: Config, pipelines: list[int], lookup: dict[str, Any], commit: dict[str, Any]):
        super().__init__(config)
        self.pipelines, self.lookup, self.commit = cycle(pipelines), lookup, commit

    def packet(self, frame: bytes) -> None:
        which = next(self.pipelines)
        if which == len(PIPELINES):
            super().packet(frame)
            return
        hand, pipeline = Hand(frame), PIPELINES[which](self.lookup, self.commit)
        action = next(pipeline, None)
        while action is not None:
            acted = self.act(hand, CtAction(**action))
            try:
                action = pipeline.send(acted) if acted.outcome == Outcome.ON else None
            except StopIteration:
                action = None
        self.leave(hand)


SNAT = tuple(snat(outside) for outside in OUTSIDE)
sayings = st.lists(
    st.tuples(
        st.integers(0, 30), st.none() | st.none() | bites, st.sampled_from([0, 0, 0, 0, 0, 1, -1, 7, -19]), st.sampled_from([0, 0, 0, 1, 31, 301])
    ),
    min_size=4,
    max_size=24,
)


@given(st.sampled_from(sorted(PORTS)), st.integers(0, 1), st.booleans(), st.lists(st.integers(0, len(PIPELINES)), min_size=1, max_size=5), sayings)
@EXAMPLES
def test_engine_and_model_help_alike(helper, six, translated, pipelines, said):
    """A control connection, what it announces, and who comes for that, each packet through some pipeline."""
    lookup, commit = ({"nat": BARE_NAT}, {"nat": six}) if translated else ({}, {})
    commit |= {"commit": True, "helper": helper.removesuffix("-tcp")}
    events = frozenset({"new", "update", "destroy"})
    twins = Piped(Config(nat=SNAT if translated else (), helper_actions=True, max=1000, events=events), pipelines, lookup, commit)
    talk(twins, helper, six, translated, said)
    twins.flush_batch()
    twins.take_events()
    twins.call("expire", twins.now + 10**15)
    twins.take_events()
