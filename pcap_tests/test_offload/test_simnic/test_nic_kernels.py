"""What numba compiles, against plain Python: the parser, the tables, the classifier, checksums; and that nothing is read outside of a frame."""

from __future__ import annotations

import errno
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datapath import craft
from datapath.frame import frames_of
from datapath.pipeline.interpret import seen_in
from datapath.pipeline.munge import csum, layers
from datapath.pipeline.rules import Csum
from offload.records import Ctinfo, Op
from offload.simnic import profile
from offload.simnic.layout import FIELDS, STATE_TRK, WORDS, prefixes, words_of
from offload.simnic.parse import AT_END, AT_L3, N_AT, parse
from offload.simnic.program import NO_SEAT, Program, classify
from offload.simnic.results import Verdict, Why
from offload.simnic.rules import Ct, Match, NicRule, NicRules, Plain, Send, Sum, Tag, Then
from pcap_tests.conftest import examples
from pcap_tests.test_datapath.guarded import Guarded
from pcap_tests.test_datapath.test_pipeline.random_pipelines import some_frame
from pcap_tests.test_offload.test_simnic import nic_side as side
from pcap_tests.test_offload.test_simnic.nic_side import IN, OUT, ZONE, Conn, Tried, kind, ruled

SAME = ("vlan_ethtype", "cvlan_ethtype", "ip_proto", "ip_tos", "ip_ttl", "src_port", "dst_port", "tcp_flags", "ip_flags")


def parsed(data: bytes, missing: int = 0) -> tuple[Why, list[int], list[int]]:
    """Why, the key, and where the headers are."""
    key, at = np.full(WORDS, -1, dtype=np.int64), np.zeros(N_AT, dtype=np.int64)
    why = parse(np.frombuffer(b"\xee" * 7 + data + b"\xee" * 9, dtype=np.uint8), 7, len(data), len(data) + missing, key, at)
    return Why(why), key.tolist(), [value if value < 0 else value - 7 for value in at.tolist()]


def field(key: list[int], name: str) -> int:
    lies = FIELDS[name]
    whole = sum((word & (1 << 64) - 1) << 64 * i for i, word in enumerate(key))
    value = whole >> (64 * lies.word + lies.shift) & (1 << lies.bits) - 1
    return int.from_bytes(value.to_bytes(lies.bits // 8, "little"), "big") if lies.wire else value


@given(st.integers(0, 1 << 63), st.integers(0, 40))
def test_the_parser_reads_what_software_reads_or_says_why_not(seed, missing):
    """The fields of a frame that parsed are those of flower_keys, another parser."""
    data = some_frame(Random(seed))
    why, key, at = parsed(data, missing)
    if why:
        return
    theirs = seen_in(data, missing, 0, 0, 0, 0)
    assert {name: field(key, name) for name in SAME} == {name: theirs[name] for name in SAME}
    assert field(key, "eth_type") == theirs["protocol"]
    shift = 96 if field(key, "family") == 4 else 0
    assert [field(key, name) >> shift for name in ("src_ip", "dst_ip")] == [theirs["src_ip"], theirs["dst_ip"]]
    assert [field(key, name) for name in ("dst_mac", "src_mac")] == [theirs["dst_mac"], theirs["src_mac"]]
    assert [field(key, name) for name in ("icmp_type", "icmp_code")] == [theirs["type"], theirs["code"]]
    where = layers(data)
    assert at[AT_L3] == (where.l3 if field(key, "family") else -1)
    assert at[AT_END] <= len(data) + missing


EVERYTHING = NicRules((
    NicRule(0, 0, 0, (), (Ct(ZONE, True, then=Then("goto", 1)),)),
    NicRule(1, 0, 1, (), (Tag("pop"), Tag("push", 5), Sum(frozenset(("ip4h", "tcp", "udp"))), Send(3, copy=True), Send(OUT))),
), {IN: 0, IN + 1: 1})  # fmt: skip


@pytest.fixture(scope="module")
def everything() -> Tried:
    """Tracks and changes whatever comes; connections between all that frames are from and to."""
    nic = Tried(profile.load("perfect"), EVERYTHING)
    for i, (src, dst) in enumerate((src, dst) for src in ("10.0.0.1", "10.0.0.2") for dst in ("10.0.0.1", "10.0.0.2")):
        for j, proto in enumerate((side.TCP, side.UDP)):
            nic.replace(Conn(src, dst, 80, 443, proto, to_dst="192.0.2.1", cookie=4 * i + 2 * j))
    return nic


@pytest.mark.parametrize("place", ["at_end", "at_start"])
def test_nothing_is_read_outside_of_a_frame(everything, place):
    """Each frame lies against a page that may not be touched, cut at every length."""
    guarded, random = Guarded(1 << 12), Random(place)
    for _ in range(examples(150)):
        whole = some_frame(random)
        for size in range(len(whole) + 1):
            frames = getattr(guarded, place)(whole[:size], wire_len=len(whole))
            frames["iface"] = IN
            (row,) = everything.process(guarded.memory, frames)
            assert Verdict(row["verdict"]) and (size == len(whole) or row["why"] or row["caplen"] <= size)


@given(st.integers(0, 1 << 63))
def test_checksums_made_anew_are_those_of_the_plain_twin(seed):
    """Of frames that parsed and whose lengths agree."""
    random = Random(seed)
    data = some_frame(random)
    of = frozenset(name for name in ("ip4h", "tcp", "udp") if random.randrange(2)) or frozenset(("tcp",))
    got = ruled(NicRule(0, 0, 0, (), (Sum(of), Send(OUT)))).frame(data)
    if got.verdict == Verdict.FORWARDED:
        assert got.left[0][0] == csum(data, Csum(tuple(name for name in ("ip4h", "tcp", "udp") if name in of)))


# --- the classifier ---------------------------------------------------------------------------------------------------------------------


NAMES = ("src_port", "dst_port", "ip_proto", "ct_mark", "src_ip", "tcp_flags")


@st.composite
def some_matches(draw) -> tuple[Match, ...]:
    found = []
    for name in draw(st.sets(st.sampled_from(NAMES), max_size=3)):
        bits = FIELDS[name].bits
        mask = draw(st.sampled_from([(1 << bits) - 1, 1, 2, 3 << bits - 2]))
        if name.endswith("port") and draw(st.booleans()):
            low = draw(st.integers(0, 6))
            found.append(Match(name, low, 0xFFFF, low + draw(st.integers(0, 9))))
        else:
            found.append(Match(name, draw(st.integers(0, 3)) & mask, mask))
    return tuple(found)


@given(
    st.lists(some_matches(), min_size=1, max_size=30), st.lists(st.lists(st.integers(0, 3), min_size=len(NAMES), max_size=len(NAMES)), max_size=20)
)
def test_the_first_rule_that_matches_is_found(matches, packets):
    """Against one rule after the other."""
    rules = NicRules(tuple(NicRule(i, 0, 0, each, (Plain(Then("drop")),)) for i, each in enumerate(matches)), {0: 0})
    arrays = Program(rules, profile.load("perfect"), lambda label: label).arrays
    for values in packets:
        packet = dict(zip(NAMES, values, strict=True))
        number = sum(laid(name, value) for name, value in packet.items())
        wanted = next((i for i, each in enumerate(matches) if all(fits(match, packet[match.name]) for match in each)), NO_SEAT)
        assert classify(arrays, 0, np.array(words_of(number), dtype=np.int64)) == wanted


def laid(name: str, value: int) -> int:
    lies = FIELDS[name]
    value = int.from_bytes(value.to_bytes(lies.bits // 8, "big"), "little") if lies.wire else value
    return value << 64 * lies.word + lies.shift


def fits(match: Match, value: int) -> bool:
    return match.value <= value <= match.high if match.high is not None else value & match.mask == match.value & match.mask


@given(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF))
def test_prefixes_cover_a_range_and_nothing_else(one, other):
    low, high = min(one, other), max(one, other)
    pairs = list(prefixes(low, high))
    for value in {low, high, low - 1, high + 1, (low + high) // 2} & set(range(1 << 16)):
        assert any(value & mask == each for each, mask in pairs) == (low <= value <= high)


# --- tables -----------------------------------------------------------------------------------------------------------------------------


STEPS = st.lists(st.tuples(st.sampled_from(["replace", "destroy", "stats", "frame"]), st.integers(0, 40), st.sampled_from([1, 2])), max_size=80)


@given(STEPS, st.sampled_from([0, 6, 20]), st.booleans())
def test_tables_are_a_dict_of_rules(steps, capacity, both):
    """REPLACE, DESTROY, STATS and frames at random, against a dict by cookie."""
    text = f'[table]\ncapacity = {capacity}\ntables = "{"both" if both else "one"}"\n'
    nic = ruled(side.track(), side.established(), of=kind(text))
    held: dict[int, list[int]] = {}  # ctinfo, packets since the last STATS
    room = capacity // (2 if both else 1) if capacity else 1 << 30
    for what, i, ctinfo in steps:
        conn = Conn("10.0.0.1", "192.0.2.9", 1000 + i, 80, cookie=2 * i, conn=i, ctinfo=Ctinfo(ctinfo))
        if what == "replace":
            error = nic.replace(conn)
            if i in held:
                assert error == (errno.EEXIST if held[i][0] == ctinfo else 0)
            else:
                assert error == (errno.ENOSPC if len(held) >= room else 0)
            if not error:
                held[i] = [ctinfo, held[i][1] if i in held else 0]
        elif what == "destroy":
            assert nic.destroy(conn) == (0 if held.pop(i, None) else errno.ENOENT)
        elif what == "stats":
            reply = nic.stats(conn)
            assert (reply["error"], reply["packets"]) == ((0, held[i][1]) if i in held else (errno.ENOENT, 0))
            if i in held:
                held[i][1] = 0
        else:
            got = nic.frame(tcp_from(1000 + i))
            assert bool(got.row["ct_state"] & STATE_TRK) == (i in held)
            if i in held:
                held[i][1] += 1
        nic.check()
    assert sorted(nic.held()["cookie"].tolist()) == sorted(2 * i for i in held)


def tcp_from(sport: int) -> bytes:
    return craft.tcp("10.0.0.1", "192.0.2.9", sport, 80, "A")


def test_many_flows_come_and_go():
    """A hash table under churn: inserted and deleted in any order, as commands of thousands."""
    random, nic = Random(7), ruled(side.track(), side.established())
    conn = Conn("10.0.0.1", "192.0.2.9", 0, 80).command()
    every = np.repeat(conn, 20_000)
    number = np.arange(20_000)
    every["match"]["sport"] = every["to"]["sport"] = number
    every["cookie"], every["conn"] = number << 1, number
    held: set[int] = set()
    for _ in range(12):
        chosen = np.array(random.sample(range(20_000), 6000))
        commands = every[chosen].copy()
        new = np.array([int(i) not in held for i in chosen])
        commands["op"] = np.where(new, Op.REPLACE, Op.DESTROY)
        assert nic.submit(commands, 0) == 6000 and (nic.replies(0)["error"] == 0).all()
        held ^= set(chosen.tolist())
        nic.check()
    assert sorted((nic.held()["cookie"] >> 1).tolist()) == sorted(held)


def test_frames_of_a_batch_are_as_one_by_one():
    """More of them than are parsed at a time, of all kinds."""
    random = Random(3)
    data = [some_frame(random) for _ in range(200)] + [tcp_from(1000 + i % 50) for i in range(200)]
    random.shuffle(data)
    one, all_ = (ruled(side.track(), side.established()) for _ in range(2))
    for i in range(0, 50, 2):
        conn = replace(Conn("10.0.0.1", "192.0.2.9", 1000 + i, 80, to_src="198.51.100.1"), cookie=2 * i)
        assert one.replace(conn) == all_.replace(conn) == 0
    memory, frames = frames_of(data)
    frames["iface"] = IN
    together = side.seen(all_, memory, all_.process(memory, frames))
    for each, frame in zip(together, data, strict=True):
        alone = one.frame(frame)
        assert (each.verdict, each.why, each.left, each.data, each.resumes) == (alone.verdict, alone.why, alone.left, alone.data, alone.resumes)
    assert (one.counters() == all_.counters()).all()
