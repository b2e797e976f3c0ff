"""Whatever pipelines ask for, in whatever order: what is never committed was never there, and all that is carried agrees with what is decided.

Few addresses, ports and zones, so that tuples meet. Not here: what exactly an action does (test_act and its neighbours).
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctcore.config import Config
from ctcore.ct_action import BARE_NAT
from ctcore.nat_rules import HELPERS
from datapath import craft
from pcap_tests.acting import Walker
from pcap_tests.conftest import TRACKERS, examples
from pcap_tests.router import dnat, snat

HOSTS = ("10.0.0.1", "10.0.0.2", "192.0.2.1", "198.51.100.7")
RULES = (snat("192.0.2.1", ports=(7, 9)), dnat("10.0.0.2"), snat("192.0.2.1-192.0.2.3"), dnat("10.0.0.2", ports=80))

hosts, ports, zones = st.sampled_from(HOSTS), st.sampled_from((7, 80, 40000)), st.integers(0, 2)
flags = st.sampled_from(("S", "SA", "A", "PA", "FA", "R", "RA"))
udp = st.builds(craft.udp, hosts, hosts, ports, ports)
tcp = st.builds(lambda *ends, ack: craft.tcp(*ends, seq=1, ack=ack), hosts, hosts, ports, ports, flags, ack=st.integers(0, 2))
ping = st.builds(lambda src, dst, kind: craft.icmp(src, dst, kind, ident=7), hosts, hosts, st.sampled_from((0, 8)))
asked = udp | tcp | ping
error = st.builds(lambda src, dst, about: craft.icmp_error(src, dst, 3, 3, about), hosts, hosts, asked)
frames = st.one_of(udp, udp, tcp, tcp, ping, error)
pairs = st.none() | st.tuples(st.integers(0, 0xFF), st.integers(0, 0xFF))
plain_actions = st.fixed_dictionaries({"zone": zones, "commit": st.booleans(), "force": st.booleans()}, optional={"mark": pairs, "label": pairs})
actions = st.fixed_dictionaries(
    {"zone": zones, "commit": st.booleans(), "force": st.booleans(), "nat": st.none() | st.integers(BARE_NAT, len(RULES) - 1)},
    optional={"mark": pairs, "label": pairs, "helper": st.none() | st.sampled_from(HELPERS), "clear": st.booleans()},
)
waits = st.sampled_from((0, 0, 0, 1, 31, 200))


@pytest.mark.parametrize("kind", TRACKERS)
@given(steps=st.lists(st.tuples(frames, plain_actions, waits), max_size=25))
@settings(max_examples=examples(150))
def test_what_is_never_committed_was_never_there(kind, steps):
    """A tracker that has only looked at something new is as one that has not."""
    looks, looks_not = (Walker(TRACKERS[kind](Config())) for _ in range(2))
    for frame, action, wait in steps:
        for net in (looks, looks_not):
            net.wait(wait)
            net.tracker.expire(net.now)
        count = looks.tracker.count
        did = looks.look(frame, **action)
        if action["commit"] or did.state not in ("new", "related") or did.conn is not None or looks.tracker.count != count:
            looks_not.look(frame, **action)
        assert looks.known() == looks_not.known()


@pytest.mark.parametrize("kind", TRACKERS)
@given(steps=st.lists(st.tuples(st.integers(0, 2), frames, actions, waits), max_size=25))
@settings(max_examples=examples(150))
def test_packets_may_overtake_each_other(kind, steps):
    """Three packets at a time, each some way into its pipeline; a new one takes the place of one that is over. Hand.ct() proves what holds."""
    net = Walker(TRACKERS[kind](Config(nat=RULES, nat_actions=True, helper_actions=True, max=16)))
    hands = {}
    for place, frame, action, wait in steps:
        net.wait(wait)
        packet = hands.setdefault(place, net.take(frame))
        if not packet.ct(**action).goes_on or action["force"]:
            hands.pop(place).over()
    for packet in hands.values():
        packet.over()
    assert sum(net.tracker.zone_counts().values()) == net.tracker.count <= 16
