"""Whatever packets come in whatever order, engine and model agree: on every decision, every event, and every field of every connection.

Each example is a string of bytes that is read as a series of steps (so that shrinking removes steps): mostly packets that nearly fit, from few
tuples, so that they meet; now and then a jump of time, or what a caller may do. The steps reach both trackers in batches of random size, which the
engine gets cut up once more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ctcore.tracker
from ctcore import spec
from ctcore.config import Config
from ctcore.model import ModelTracker
from ctcore.tracker import Tracker
from datapath import craft
from pcap_tests.conftest import examples
from pcap_tests.scene import SECOND, options, sack
from pcap_tests.test_ctcore.twins import Twins

STEP = 9  # bytes
DAY = 86400
EXAMPLES = settings(max_examples=examples(150), deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
series = st.binary(min_size=STEP * 48, max_size=STEP * 96)  # long enough to get somewhere: a short minimum would make nearly all of them short

WAITS = (*(0,) * 34, 0.001, 0.004, 0.5, 1, 1.999, 2.004, 3, 10, 30, 60, 119.996, 120, 300, -1, 5 * DAY, 30 * DAY, 101 * DAY)
ZONES = (0, 0, 0, 1, 65535)
TIMEOUTS = (1, 2, 60, 119, 300, 1000, 8 * DAY, 24 * DAY)
FLAGS = ("S", "S", "SA", "SA", "A", "A", "A", "A", "PA", "FA", "FA", "R", "RA", "R", "SU", "FAU", "SAU", "F", "", "SR", "SF")
OFFSETS = (0, 0, 0, 0, 0, 0, 1, -1, 2, 99, -100, 8191, 8192, 8193, -8192, -8193, 65535, -65999, -66000, -66001, -66002, 70000, 1 << 31, (1 << 31) - 1)
WINDOWS = (8192, 8192, 0, 1, 65535)
PAYLOADS = (0, 0, 0, 1, 100, 1400)
BUCKETS = (1, 2, 7, 8, 9, 16, 30, 1000, 262144, 1 << 26)


def config(**other: st.SearchStrategy) -> st.SearchStrategy[Config]:
    """Any settings; short and long timeouts now and then, and rings that are soon full."""
    names = st.sampled_from(sorted(spec.timeouts()))
    usual = {
        "tcp_liberal": st.booleans(),
        "tcp_loose": st.booleans(),
        "tcp_max_retrans": st.sampled_from([0, 1, 3]),
        "tcp_ignore_invalid_rst": st.booleans(),
        "acct": st.booleans(),
        "max": st.just(1000),
        "hz": st.sampled_from([1, 100, 250, 1000]),
        "seed": st.integers(0, 3),
        "events": st.sampled_from([frozenset({"new", "update", "destroy"}), frozenset({"destroy"}), frozenset({"new", "update"}), frozenset()]),
        "event_buffer": st.sampled_from([16, 17, 40, 65536]),
        "timeouts": st.dictionaries(names, st.sampled_from(TIMEOUTS), max_size=3),
    }
    return st.builds(Config, **{**usual, **other})


def pick(choices, byte: int):
    return choices[byte % len(choices)]


def steps(data: bytes) -> Iterator[bytes]:
    return (data[i : i + STEP] for i in range(0, len(data) - STEP + 1, STEP))


def run(config: Config, data: bytes, play: Callable[[Twins, bytes], None]) -> None:
    """What the plays leave of a step: its last byte says how long to wait, and whether the batch ends; the one before, what else happens then."""
    twins = Twins(config)
    for step in steps(data):
        twins.wait(pick(WAITS, step[-1] & 0x3F))
        play(twins, step[:-1])
        if step[-1] >= 0xC0:
            end_batch(twins, step[-2])
    twins.flush_batch()
    twins.take_events()
    twins.call("expire", twins.now + 10**15)
    twins.take_events()
    twins.call("flush")


def end_batch(twins: Twins, byte: int) -> None:
    """And then: take the events or let them pile up, look at the clock or not, go on in another zone or in the same."""
    twins.flush_batch(piece=1 + byte % 7)
    if byte & 1:
        twins.take_events()
    if byte & 6 == 6:
        twins.call("expire", twins.now + pick((-1, 0, 1, 29, 500, 7 * DAY), byte >> 3) * SECOND)
    twins.zone = pick(ZONES, byte)


def test_the_engine_is_the_compiled_one():
    assert ctcore.tracker.__file__.endswith(".so")
    assert Tracker is not ModelTracker


# --- TCP -------------------------------------------------------------------------------------------------------------------------------

ENDS = (
    (("10.0.0.1", 40000), ("10.0.0.2", 80)),
    (("10.0.0.1", 40000), ("10.0.0.2", 80)),
    (("10.0.0.1", 40001), ("10.0.0.2", 80)),
    (("2001:db8::1", 40000), ("2001:db8::2", 80)),
    (("10.0.0.3", 7), ("10.0.0.3", 7)),
)
TCP_OPTIONS = (
    b"",
    b"",
    options(wscale=7, sack_perm=True),
    options(wscale=15),
    options(sack_perm=True),
    b"\2\4\5\xb4",
    b"\3\3\2\0",
    b"\3\4\1\1",
    b"\5\12\0\0",
)
HANDSHAKE = (("S", 0), ("SA", 1), ("A", 0))
GOODBYE = (("FA", 0), ("A", 1), ("FA", 1), ("A", 0))


class TcpPlay:
    """The numbers both ends of each pair would use next; every step deviates a little, or not at all."""

    def __init__(self):
        self.next = [[100, 0xFFFFFF00] for _ in ENDS]

    def __call__(self, twins: Twins, step: bytes) -> None:
        pair, what = step[0] % len(ENDS), step[0] >> 4
        if what == 0:
            for flags, d in HANDSHAKE:
                self.say(twins, pair, d, flags, bytes(STEP))
        elif what == 1:
            for flags, d in GOODBYE:
                self.say(twins, pair, d, flags, bytes(STEP))
        else:
            self.say(twins, pair, what & 1, pick(FLAGS, step[1]), step)

    def say(self, twins: Twins, pair: int, d: int, flags: str, step: bytes) -> None:
        own, peer = self.next[pair][d], self.next[pair][1 - d]
        seq = pick((own, own, own, own, peer, 0), step[2] >> 5) + pick(OFFSETS, step[2])
        ack = pick((peer, peer, peer, peer, own, 0), step[3] >> 5) + pick(OFFSETS, step[3])
        seq, ack = seq & 0xFFFFFFFF, ack & 0xFFFFFFFF
        area = pick((*TCP_OPTIONS, sack((ack + 10, ack + 20), (ack + 1, ack + 8000))), step[4])
        payload = bytes(pick(PAYLOADS, step[5]))
        (src, sport), (dst, dport) = ENDS[pair][d], ENDS[pair][1 - d]
        window = pick(WINDOWS, step[6])
        twins.packet(craft.tcp(src, dst, sport, dport, flags, seq=seq, ack=ack, win=window, options=area, payload=payload))
        if step[2] % len(OFFSETS) < 6:  # an honest sender goes on from here
            self.next[pair][d] = (seq + len(payload) + ("S" in flags) + ("F" in flags)) & 0xFFFFFFFF


@given(config(), series)
@EXAMPLES
def test_tcp(config, data):
    run(config, data, TcpPlay())


# --- the other protocols ---------------------------------------------------------------------------------------------------------------

CHUNKS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 14, 13, 192)
TAGS = (0, 0, 7, 8, 9)
HOSTS = ("10.0.0.1", "10.0.0.2")
HOSTS6 = ("fe80::1", "2001:db8::2")
ICMP4 = (8, 0, 8, 0, 13, 14, 15, 16, 17, 18, 9, 19, 255)
ICMP6 = (128, 129, 128, 129, 139, 140, 130, 133, 136, 143, 151, 141, 200)
ERRORS4, ERRORS6 = (3, 4, 5, 11, 12), (1, 2, 3, 4, 0, 127, 137)


class SctpPlay:
    """One to three chunks; few tags, so that they often are the right ones."""

    def __call__(self, twins: Twins, step: bytes) -> None:
        d, tag = step[0] & 1, pick(TAGS, step[1])
        if step[0] & 0xE0 == 0:
            self.handshake(twins, d)
            return
        number = 1 if step[2] < 160 else 2 if step[2] < 230 else 3
        chunks = b"".join(self.chunk(kind, step[6]) for kind in step[3 : 3 + number])
        twins.packet(craft.sctp(HOSTS[d], HOSTS[1 - d], (1000, 2000)[d], (2000, 1000)[d], tag, chunks))

    def chunk(self, byte: int, detail: int) -> bytes:
        kind = pick(CHUNKS, byte)
        if kind in (1, 2) and detail < 250:
            return craft.sctp_init(pick((7, 8, 9), detail), ack=kind == 2)
        length = {251: 0, 252: 3, 253: 2000}.get(detail)
        return craft.sctp_chunk(kind, detail & 1, bytes(detail & 7), length=length)

    def handshake(self, twins: Twins, d: int) -> None:
        """Tags 7 and 8; from either side."""
        init, init_ack = craft.sctp_init(7), craft.sctp_init(8, ack=True)
        for e, tag, chunks in ((d, 0, init), (1 - d, 7, init_ack), (d, 8, craft.sctp_chunk(10)), (1 - d, 7, craft.sctp_chunk(11))):
            twins.packet(craft.sctp(HOSTS[e], HOSTS[1 - e], (1000, 2000)[e], (2000, 1000)[e], tag, chunks))


class DatagramPlay:
    """UDP, UDP-Lite, ICMP, ICMPv6, GRE and others between two hosts; ICMP errors about what passed before."""

    def __init__(self):
        self.past = [craft.udp(*HOSTS, 1, 2)]

    def __call__(self, twins: Twins, step: bytes) -> None:
        makers = (self.udp, self.udp, self.udplite, self.icmp, self.icmp6, self.error, self.error, self.gre, self.other, self.misplaced)
        twins.packet(pick(makers, step[0])(step))

    def keep(self, frame: bytes) -> bytes:
        self.past = [*self.past[-15:], frame]
        return frame

    def udp(self, step: bytes) -> bytes:
        hosts, d = pick((HOSTS, HOSTS6, HOSTS), step[1]), step[2] & 1
        ports = (53, 40000 + step[3] % 3)
        faults = pick(({}, {}, {}, {}, {"l4_checksum": 0}, {"l4_checksum": 1}, {"udp_length": 7}, {"udp_length": 999}), step[4])
        return self.keep(craft.udp(hosts[d], hosts[1 - d], ports[d], ports[1 - d], bytes(step[5] % 40), **faults))

    def udplite(self, step: bytes) -> bytes:
        d = step[2] & 1
        coverage = pick((0, 0, 8, 12, 7, 500), step[4])
        return self.keep(craft.udplite(HOSTS[d], HOSTS[1 - d], 5 + d, 6 - d, bytes(20), coverage=coverage, sum_proto=pick((17, 17, 136), step[3])))

    def icmp(self, step: bytes) -> bytes:
        d = step[2] & 1
        return self.keep(craft.icmp(HOSTS[d], HOSTS[1 - d], pick(ICMP4, step[3]), step[4] & 1, ident=step[5] & 1))

    def icmp6(self, step: bytes) -> bytes:
        d = step[2] & 1
        return self.keep(craft.icmp(HOSTS6[d], HOSTS6[1 - d], pick(ICMP6, step[3]), step[4] & 1, ident=step[5] & 1))

    def error(self, step: bytes) -> bytes:
        about = pick(self.past, step[1])
        six = about[12:14] == b"\x86\xdd"
        hosts = HOSTS6 if six else HOSTS
        d, quote = step[2] & 1, pick((1232, 1232, 28, 48, 27, 20, 19, 0, 41), step[4])
        if step[5] > 240:  # a quoted fragment, or one with other odd headers
            about = about[:14] + bytes([step[6]]) + about[15:20] + step[5:7] + about[22:]
        kind = pick(ERRORS6 if six else ERRORS4, step[3])
        if kind == 137:
            about = about[:14] + bytes(32) + bytes([pick((4, 4, 1), step[6]), 1]) + bytes(6) + about[14:]
        return self.keep(craft.icmp_error(hosts[d], hosts[1 - d], kind, step[5] & 3, about, quote=quote, ttl=pick((255, 255, 64), step[6])))

    def gre(self, step: bytes) -> bytes:
        d, version = step[2] & 1, pick((0, 1, 1, 2), step[3])
        return self.keep(craft.gre(HOSTS[d], HOSTS[1 - d], version=version, proto=pick((0x880B, 0x880B, 0x800), step[4]), call=step[5] & 1))

    def other(self, step: bytes) -> bytes:
        hosts, d = pick((HOSTS, HOSTS6), step[1]), step[2] & 1
        return self.keep(craft.frame(hosts[d], hosts[1 - d], pick((4, 33, 50, 89, 51), step[3]), b"\0" * (step[4] & 15)))

    def misplaced(self, step: bytes) -> bytes:
        """ICMP over IPv6, ICMPv6 over IPv4, and headers that are cut off."""
        hosts, proto = pick(((HOSTS6, 1), (HOSTS, 58), (HOSTS, 17), (HOSTS, 6), (HOSTS, 132), (HOSTS, 47)), step[1])
        return self.keep(craft.frame(*hosts, proto, bytes([pick((8, 0, 128, 129, 3), step[3])]) + bytes(step[4] % 24)))


class CrowdPlay:
    """Many tuples and few places: early drop. Marks, labels, expectations, and the end of everything now and then."""

    def __init__(self):
        self.tcp = TcpPlay()

    def __call__(self, twins: Twins, step: bytes) -> None:
        ordinal = max(0, twins.model._next_id - 1 - step[1] % 8)
        what = step[0]
        if what < 8:
            twins.call("set_mark", ordinal, step[2] & 1)
        elif what < 12:
            twins.call("set_label", ordinal, step[2] << 100 | step[3] & 1)
        elif what < 40:
            flags = {"sport": pick((0, 0, 40000, 40001), step[3]), "permanent": step[4] & 1 == 1, "timeout": pick((300.0, 1.0, 2.0), step[5])}
            flags["zone"] = pick(ZONES, step[4])
            twins.call("expect", ordinal, "10.0.0.1", "10.0.0.2", pick((6, 17), step[2]), 80 + step[6] % 3, **flags)
        elif what == 40:
            twins.call("flush")
        elif what < 120:
            self.tcp(twins, bytes([what & 3]) + step[1:])
        else:
            d = step[3] & 1
            ends = ("10.0.0.1", 40000 + step[1] % 64), ("10.0.0.2", 80 + step[2] % 3)
            (src, sport), (dst, dport) = ends[d], ends[1 - d]
            if what & 1:
                twins.packet(craft.udp(src, dst, sport, dport, l4_checksum=pick((None, None, None, 1), step[4])))
            else:
                twins.packet(craft.tcp(src, dst, sport, dport, pick(("S", "A", "SA", "R"), step[4]), seq=100, ack=101))


@given(config(), series)
@EXAMPLES
def test_sctp(config, data):
    run(config, data, SctpPlay())


@given(config(), series)
@EXAMPLES
def test_datagrams(config, data):
    run(config, data, DatagramPlay())


@given(config(max=st.sampled_from([4, 16, 64]), buckets=st.sampled_from(BUCKETS)), series)
@EXAMPLES
def test_a_full_table(config, data):
    run(config, data, CrowdPlay())


@given(config(expect_max=st.sampled_from([1, 3, 100])), series)
@EXAMPLES
def test_expectations_and_marks(config, data):
    run(config, data, CrowdPlay())


@given(config(max=st.sampled_from([16, 1000]), buckets=st.sampled_from(BUCKETS)), series)
@EXAMPLES
def test_everything_at_once(config, data):
    plays = TcpPlay(), SctpPlay(), DatagramPlay(), CrowdPlay()
    run(config, data, lambda twins, step: pick(plays, step[1] >> 4)(twins, step))
