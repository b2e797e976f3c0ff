"""Trackers that share the work: a tuple and its answers are one share's, no two choose the same tuple, and every answer comes back to who chose it.

Not here: frames (test_datapath.test_live.test_steer), translation by one tracker alone (test_nat_equality).
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctcore.config import SHARES_LIMIT, Config
from ctcore.errors import ConfigError
from ctcore.model import ModelTracker, steering
from ctcore.model.conn import Key
from ctcore.steering import owner
from ctcore.tracker import Tracker
from ctcore.types import REWRITE_DTYPE, Dir, Proto, Reason, Status
from datapath import craft
from datapath.frame import frames_of
from datapath.wire import parse_batch
from pcap_tests.router import ANY, dnat, snat
from pcap_tests.test_ctcore.test_equality import EXAMPLES, config, run, series
from pcap_tests.test_ctcore.test_nat_equality import CLIENTS, SERVERS, NatPlay, crowded, rules

PORTS = st.integers(0, 65535)
STEERED = (Proto.PROTO_TCP, Proto.PROTO_UDP, Proto.PROTO_UDPLITE, Proto.PROTO_SCTP)
counts = st.integers(1, SHARES_LIMIT)


def packed(text: str) -> bytes:
    return ip_address(text).packed.ljust(16, b"\0")


def addresses(family: int) -> st.SearchStrategy[bytes]:
    size = 4 if family == 4 else 16
    return st.binary(min_size=size, max_size=size).map(lambda raw: raw.ljust(16, b"\0"))


@st.composite
def keys(draw) -> Key:
    family = draw(st.sampled_from([4, 6]))
    proto = draw(st.one_of(st.sampled_from([*STEERED, Proto.PROTO_ICMP, Proto.PROTO_ICMPV6]), st.integers(0, 255)))
    sport, dport = draw(PORTS), draw(PORTS)
    if proto in (Proto.PROTO_ICMP, Proto.PROTO_ICMPV6):
        dport = draw(st.sampled_from([8, 0, 13, 14] if proto == Proto.PROTO_ICMP else [128, 129])) << 8
    return Key(draw(addresses(family)), draw(addresses(family)), sport, dport, draw(PORTS), proto, family)


@given(keys(), counts)
def test_answers_belong_to_the_same_share(key, count):
    answer = key.inverted()
    assert 0 <= owner(key.raw(), count) < count
    if answer is not None:
        assert owner(answer.raw(), count) == owner(key.raw(), count)


@given(keys(), counts)
def test_engine_and_model_say_the_same(key, count):
    assert owner(key.raw(), count) == steering.owner(key, count)


@given(keys(), PORTS)
def test_zones_do_not_count(key, zone):
    assert owner(key._replace(zone=zone).raw(), 7) == owner(key.raw(), 7)


@given(keys(), counts)
def test_what_has_neither_ports_nor_an_id_is_the_first_ones(key, count):
    for proto in (Proto.PROTO_GRE, 50, 89):
        assert owner(key._replace(proto=proto).raw(), count) == 0


def spread(made: list[Key], count: int) -> np.ndarray:
    return np.bincount([owner(key.raw(), count) for key in made], minlength=count)


@pytest.mark.parametrize("count", [2, 3, 8, 64])
@pytest.mark.parametrize("what", ["ports", "hosts", "networks", "ids"])
def test_shares_are_even(count, what):
    """Of tuples that differ as little as real ones do; five standard deviations are allowed."""
    n = 20_000
    client, server = packed("10.0.0.1"), packed("198.51.100.7")
    made = {
        "ports": lambda i: Key(client, server, 1024 + i, 443, 0, 6, 4),
        "hosts": lambda i: Key(packed(f"10.0.{i >> 8}.{i & 255}"), server, 40000, 443, 0, 6, 4),
        "networks": lambda i: Key(packed(f"2001:db8:{i:x}::1"), packed("2001:db8::1"), 40000, 443, 0, 6, 6),
        "ids": lambda i: Key(client, server, i, 8 << 8, 0, 1, 4),
    }[what]
    found = spread([made(i) for i in range(n)], count)
    mean = n / count
    assert (np.abs(found - mean) < 5 * np.sqrt(mean)).all(), found


@pytest.mark.parametrize("share, said", [((0, 0), "count"), ((0, SHARES_LIMIT + 1), "count"), ((2, 2), "index"), ((-1, 2), "index")])
def test_shares_that_cannot_be(share, said):
    with pytest.raises(ConfigError, match=f"share: {said}"):
        Config(share=share)


def test_ordinals_of_trackers_that_share_the_work_are_never_the_same():
    for tracker_of in (Tracker, ModelTracker):
        found = []
        for index in range(3):
            tracker = tracker_of(Config(share=(index, 3)))
            tracker.advance(batch([craft.udp("10.0.0.1", "10.0.0.2", 1000 + i, 53) for i in range(4)]))
            found += tracker.conns()["flow"]["id"][:, 0].tolist()
        assert sorted(found) == list(range(12))


def batch(frames: list[bytes]):
    return parse_batch(*frames_of(frames, ts=np.arange(len(frames), dtype=np.int64)))


shares = st.sampled_from([(0, 2), (1, 2), (1, 3), (63, 64)])
shared = config(nat=st.lists(rules, min_size=1, max_size=5).map(tuple), max=st.sampled_from([16, 1000, 1000]), share=shares)


@given(shared, series)
@EXAMPLES
def test_engine_and_model_choose_alike_within_a_share(settings_, data):
    plays = {}
    run(settings_, data, lambda twins, step: plays.setdefault(0, NatPlay(twins.model))(twins, step))


@given(crowded, shares, series)
@EXAMPLES
def test_few_ports_shared(settings_, share, data):
    plays = {}
    run(replace(settings_, share=share), data, lambda twins, step: plays.setdefault(0, NatPlay(twins.model))(twins, step))


RULES = [
    (snat("192.0.2.1"),),
    (snat("192.0.2.1", ports=(5000, 5100)),),
    (snat("192.0.2.1-192.0.2.3", fully_random=True),),
    (dnat("10.0.0.9", proto=Proto.PROTO_TCP), snat("192.0.2.1")),
    (dnat("10.0.0.9"),),
    (snat(ANY, ports=(1024, 2047)),),
]


@given(
    st.sampled_from(RULES),
    st.sampled_from([2, 3, 8]),
    st.lists(st.tuples(st.sampled_from(CLIENTS[:3]), st.sampled_from(SERVERS[:2]), st.integers(1024, 1100), st.sampled_from("tui")), max_size=60),
)
def test_no_two_shares_choose_the_same_tuple_and_answers_come_back(nat, count, asked):
    """Each opening packet comes to the tracker that owns it, as a node's workers see to. What has no port to change may find none and is refused."""
    trackers = [Tracker(Config(nat=nat, share=(i, count), seed=5, checksum=False)) for i in range(count)]
    for client, server, port, kind in asked:
        frame = {
            "t": lambda c=client, s=server, p=port: craft.tcp(c, s, p, 80, "S", seq=1),
            "u": lambda c=client, s=server, p=port: craft.udp(c, s, p, 53),
            "i": lambda c=client, s=server, p=port: craft.icmp(c, s, 8, ident=p),
        }[kind]()
        packet = batch([frame])
        key = Key.of(packet.array["key"][0].tobytes())
        tracker = trackers[owner(key.raw(), count)]
        decision = tracker.advance(packet, np.zeros(1, dtype=REWRITE_DTYPE))[0]
        assert decision["reason"] in (Reason.R_OK, Reason.R_NAT_EXHAUSTED, Reason.R_TCP_SYN_AGAIN) or decision["conn"] >= 0
    chosen = []
    for i, tracker in enumerate(trackers):
        tracker.check()
        for conn in tracker.conns():
            orig, reply = (Key.of(conn["flow"][d]["key"].tobytes()) for d in Dir)
            assert owner(orig.raw(), count) == i and owner(reply.raw(), count) == i
            chosen.append(reply)
    assert len(set(chosen)) == len(chosen)


def test_a_port_that_rules_leave_no_choice_of_is_refused_where_answers_would_go_astray():
    """snat to one port: some servers can be asked by it, the others would answer another share."""
    nat = (snat("192.0.2.1", ports=5000),)
    trackers = [Tracker(Config(nat=nat, share=(i, 2))) for i in range(2)]
    models = [ModelTracker(Config(nat=nat, share=(i, 2))) for i in range(2)]
    reasons = []
    for i in range(32):
        packet = [craft.udp("10.0.0.1", f"198.51.100.{i}", 1234, 53)]
        key = batch(packet).array["key"][0].tobytes()
        who = owner(key, 2)
        said = [tracker.advance(batch(packet), np.zeros(1, dtype=REWRITE_DTYPE))[0]["reason"] for tracker in (trackers[who], models[who])]
        assert said[0] == said[1]
        reasons.append(Reason(int(said[0])))
    assert set(reasons) == {Reason.R_OK, Reason.R_NAT_EXHAUSTED}
    for tracker in trackers:
        assert (tracker.conns()["status"] & Status.SRC_NAT).all()


def test_a_state_is_taken_up_share_by_share():
    """What one tracker had, three have together; and the other way round."""
    whole = Tracker(Config())
    whole.advance(batch([craft.udp("10.0.0.1", "10.0.0.2", 1000 + i, 53) for i in range(60)]))
    state = whole.save()
    parts = [Tracker(Config(share=(i, 3))) for i in range(3)]
    assert sum(part.take_share(state)[0] for part in parts) == 60
    for i, part in enumerate(parts):
        part.check()
        assert {owner(key.tobytes(), 3) for key in part.conns()["flow"]["key"][:, 0]} == {i}
    back = Tracker(Config())
    assert [sum(numbers) for numbers in zip(*(back.take_share(part.save()) for part in parts), strict=True)] == [60, 0, 0]
    back.check()
    before, after = whole.conns(), back.conns()
    assert (np.sort(after["flow"]["id"][:, 0]) == before["flow"]["id"][:, 0]).all()
    order = np.argsort(after["flow"]["id"][:, 0])
    assert (after[order]["flow"]["key"] == before["flow"]["key"]).all()
    packet = batch([craft.udp("10.0.0.9", "10.0.0.2", 1, 53)])
    assert back.advance(packet)[0]["conn"] >= 60


def test_what_is_translated_is_left_out_where_answers_would_go_astray():
    nat = (snat("192.0.2.1"),)
    whole = Tracker(Config(nat=nat))
    packets = batch([craft.udp("10.0.0.1", "10.0.0.2", 1000 + i, 53) for i in range(64)])
    whole.advance(packets, np.zeros(64, dtype=REWRITE_DTYPE))
    parts = [Tracker(Config(nat=nat, share=(i, 2))) for i in range(2)]
    found = [part.take_share(whole.save()) for part in parts]
    assert sum(entered + astray for entered, astray, _ in found) == 64 and all(astray for _, astray, _ in found)
    for i, part in enumerate(parts):
        part.check()
        assert {owner(key.tobytes(), 2) for key in part.conns()["flow"]["key"].reshape(-1)} == {i}


def test_more_than_a_share_has_places_for():
    whole = Tracker(Config(max=100))
    whole.advance(batch([craft.udp("10.0.0.1", "10.0.0.2", 1000 + i, 53) for i in range(100)]))
    part = Tracker(Config(max=20, share=(0, 2)))
    entered, astray, crowded = part.take_share(whole.save())
    assert (entered, astray) == (20, 0) and crowded > 0
    part.check()
