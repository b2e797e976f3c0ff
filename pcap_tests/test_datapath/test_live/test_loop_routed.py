"""The loop with a router: what passes is routed, goes through the rules at the egress, and no chunk is lost on the way."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctcore.config import Config
from datapath import craft
from datapath.capture import PcapSource
from datapath.frame import frames_of
from datapath.live.capture_iface import CaptureIface
from datapath.live.loop import Loop
from datapath.live.router import Router
from datapath.live.umem import Umem
from datapath.pipeline.findings import Findings
from datapath.pipeline.rules_file import parse
from datapath.ruled import RulePipeline
from datapath.sink import PcapSink
from pcap_tests.test_datapath.test_live.routing import (
    CLIENT,
    FAMILIES,
    GATEWAY,
    HOST,
    LAN,
    NEAR,
    SERVER,
    WAN,
    addressed,
    header_sum,
    router,
    udp,
)  # fmt: skip

OUTSIDE = "192.0.2.99"
NOTHING = "tc filter add dev lan ingress protocol arp prio 1 flower action drop\n"
# Translated where packets come in, before they are routed.
AT_INGRESS = f"""
tc filter add dev lan ingress protocol ip prio 1 flower action ct commit nat src addr {OUTSIDE} pipe action pass
tc filter add dev wan ingress protocol ip prio 1 flower action ct nat pipe action pass
"""
# Translated where they leave, when they have been.
AT_EGRESS = f"""
tc filter add dev wan egress protocol ip prio 1 flower action ct commit nat src addr {OUTSIDE} pipe action pass
tc filter add dev wan ingress protocol ip prio 1 flower action ct nat pipe action pass
"""
TRANSLATED = pytest.mark.parametrize("rules", [AT_INGRESS, AT_EGRESS], ids=["ingress", "egress"])


class Node:
    """Both interfaces as captures: what comes, and what has left when it has ended."""

    def __init__(self, tmp_path: Path, rules: str, *, one: Router | None = None, chunks: int = 1024) -> None:
        self.path, self.umem, self.router = tmp_path, Umem(chunks), one or router()
        found = Findings()
        ruleset = parse(rules, "rules", found)
        assert not found.errors, found.errors
        self.pipeline = RulePipeline(ruleset, Config(seed=7), devices=("lan", "wan"))
        self.chunks, self.turns = chunks, 0
        self.counts: dict[str, int] = {}

    def turn(
        self, lan: Sequence[bytes] = (), wan: Sequence[bytes] = (), news: Sequence[Callable[[], object]] = ()
    ) -> tuple[list[bytes], list[bytes]]:
        """Frames come, and then news of neighbours; what leaves by lan and by wan."""
        self.turns += 1
        ifaces = [self._iface(i, name, frames) for i, (name, frames) in enumerate((("lan", lan), ("wan", wan)))]
        loop = Loop(self.pipeline, ifaces, router=self.router)
        while not all(iface.ended for iface in ifaces):
            loop.run(0.01)
        loop.run(0.001)
        for one in news:
            self.router.unresolved.check()
            one()
            loop.run(0.001)
        self.router.unresolved.check()
        loop.end()
        self.counts = loop.counters()
        self.umem.check()
        assert self.umem.places() == {"free": self.chunks}
        for iface in ifaces:
            iface.close()
        return tuple(self._left(name) for name in ("lan", "wan"))

    def _file(self, name: str, kind: str) -> str:
        return str(self.path / f"{name}-{kind}-{self.turns}.pcap")

    def _iface(self, ordinal: int, name: str, frames: Sequence[bytes]) -> CaptureIface:
        with PcapSink(self._file(name, "in")) as sink:
            sink.write(*frames_of(list(frames), ts=time.time_ns()))
        return CaptureIface(self.umem, name, source=self._file(name, "in"), sink=Path(self._file(name, "out")), ordinal=ordinal)

    def _left(self, name: str) -> list[bytes]:
        with PcapSource(self._file(name, "out")) as source:
            memory, frames = source.read(1 << 16)
            return [memory[int(row["offset"]) :][: int(row["caplen"])].tobytes() for row in frames]


def ends(frame: bytes) -> tuple[bytes, bytes]:
    return frame[26:30], frame[30:34]


def test_what_passes_is_routed_where_it_lies(tmp_path):
    frames = [udp(FAMILIES[i % 2], size=i, ttl=64) for i in range(600)]
    node = Node(tmp_path, NOTHING)
    lan, wan = node.turn(frames)
    alone = router()
    assert lan == [] and wan == [alone.route_frame(frame, "lan")[2][0] for frame in frames]
    assert node.router.counters()["forwarded"] == node.counts["sent"] == 600


def test_without_a_way_chunks_come_back_and_senders_are_told(tmp_path):
    random = Random(5)
    kinds = [udp(ttl=1), udp(6, ttl=1), udp(dst="10.66.0.1"), udp(dst=NEAR[4]), udp(dst="10.1.0.77"), bytes(60), udp()[:20], udp(ip_checksum=3)]
    frames = [random.choice(kinds) for _ in range(500)]
    node = Node(tmp_path, NOTHING, one=router(icmp_rate=1e6, icmp_burst=1e6, icmp_peer_rate=0))
    lan, wan = node.turn(frames)
    assert wan == []
    assert len(lan) == sum(frame in kinds[:3] for frame in frames) == node.router.counters()["errors"]
    assert all(frame[:12] == HOST + LAN for frame in lan)


def test_a_packet_in_pieces(tmp_path):
    node = Node(tmp_path, NOTHING, one=router(mtu=600))
    lan, wan = node.turn([udp(size=1400)] * 30)
    assert lan == [] and len(wan) == 90
    assert b"".join(piece[34:] for piece in wan[:3]) == udp(size=1400)[34:]
    assert all(header_sum(piece[14:]) == 0 and len(piece) <= 614 for piece in wan)


def test_without_chunks_for_its_pieces_a_packet_is_lost_and_counted(tmp_path):
    node = Node(tmp_path, NOTHING, one=router(mtu=68), chunks=256)
    lan, wan = node.turn([udp(size=1400)] * 256)
    assert lan == [] and len(wan) < 256 * 30
    assert node.counts["no_chunk"] > 0


def test_a_mirror_shows_the_frame_as_it_came(tmp_path):
    rules = "tc filter add dev lan ingress protocol ip prio 1 flower action mirred egress mirror dev lan pipe action pass\n"
    lan, wan = Node(tmp_path, rules).turn([udp(ttl=9)])
    assert lan == [udp(ttl=9)]
    assert wan[0][22] == 8


def test_rules_at_the_egress_see_the_packet_as_it_will_be(tmp_path):
    rules = (
        "tc filter add dev wan egress protocol ip prio 1 flower ip_ttl 7 action drop\n"
        f"tc filter add dev wan egress protocol ip prio 2 flower dst_mac {GATEWAY.hex(':')} "
        "action pedit ex munge ip tos set 0x10 pipe action csum ip\n"
    )
    node = Node(tmp_path, rules)
    lan, wan = node.turn([udp(ttl=8), udp(ttl=9), udp(6)])
    assert lan == [] and len(wan) == 2
    assert (wan[0][15], wan[0][22], header_sum(wan[0][14:])) == (0x10, 8, 0)
    assert wan[0][:12] == GATEWAY + WAN
    assert int(node.pipeline.counters()["packets"].sum()) == 2


def test_what_a_rule_at_the_egress_sends_on_is_not_routed_again(tmp_path):
    rules = "tc filter add dev wan egress protocol ip prio 1 flower action mirred ingress redirect dev lan\n"
    node = Node(tmp_path, rules)
    assert node.turn([udp()]) == ([], [])
    assert node.counts["nobody"] == 1


@TRANSLATED
def test_there_and_back_through_translation(rules, tmp_path):
    node = Node(tmp_path, rules)
    _, (left,) = node.turn([udp(ttl=9)])
    assert ends(left) == (craft.address(OUTSIDE), craft.address(SERVER[4])) and left[22] == 8
    reply = addressed(craft.udp(SERVER[4], OUTSIDE, 53, 4000, b"answer"), WAN, GATEWAY)
    (back,), _ = node.turn(wan=[reply])
    assert ends(back) == (craft.address(SERVER[4]), craft.address(CLIENT[4]))
    assert back[:12] == HOST + LAN and back[42:] == b"answer"


@TRANSLATED
def test_traceroute_through_translation_sees_us_and_its_own_packets(rules, tmp_path):
    """Both ways to write it: the error goes to the client and quotes the packet that it has sent, as Linux has it."""
    node = Node(tmp_path, rules)
    for turn in range(3):
        probe = udp(ttl=1, size=32 + turn)
        (error,), wan = node.turn([probe])
        assert wan == []
        assert ends(error) == (craft.address(NEAR[4]), craft.address(CLIENT[4]))
        assert error[34:36] == b"\x0b\x00" and error[42:] == probe[14:]


@TRANSLATED
def test_the_next_router_s_error_comes_back_to_the_client(rules, tmp_path):
    node = Node(tmp_path, rules)
    probe = udp(ttl=2)
    _, (left,) = node.turn([probe])
    error = addressed(craft.icmp("10.2.0.254", OUTSIDE, 11, 0, payload=left[14:]), WAN, GATEWAY)
    (back,), _ = node.turn(wan=[error])
    assert ends(back) == (craft.address("10.2.0.254"), craft.address(CLIENT[4]))
    assert back[42 + 12 : 42 + 20] == craft.address(CLIENT[4]) + craft.address(SERVER[4])
    assert craft.checksum(back[34:]) == 0


def test_a_datagram_put_together_by_rules_and_too_big_is_told_of_by_a_piece(tmp_path):
    """IPv6: its fragments fit nowhere behind us; the last one came as a later fragment, about which there are no errors."""
    rules = "tc filter add dev lan ingress protocol ipv6 prio 1 flower action ct commit pipe action pass\n"
    whole = craft.udp_segment(CLIENT[6], SERVER[6], 4000, 53, bytes(2400))
    cuts = [(0, whole[:1400], True), (1400, whole[1400:], False)]
    frames = [addressed(craft.frame(CLIENT[6], SERVER[6], 17, data, ext=((44, craft.fragment6(offset, more, 77)),))) for offset, data, more in cuts]
    node = Node(tmp_path, rules, one=router(mtu=1280))
    lan, _ = node.turn(frames)
    assert [frame[54] for frame in lan] == [2]
    assert lan[0][62:][6] == 44 and lan[0][62 + 8 : 62 + 40] == craft.address(CLIENT[6]) + craft.address(SERVER[6])


# --- neighbours that are not known yet --------------------------------------------------------------------------------------------------

NEW_HOST = bytes.fromhex("02000000cc05")


def told(node: Node, address: str, mac: bytes | None = NEW_HOST, iface: int = 1) -> Callable[[], object]:
    """News: a neighbour of the wan has this MAC address, or does not answer."""
    return lambda: node.router.neighbours.put(iface, ip_address(address), mac)


def ways(node: Node, *names: str) -> tuple[int, ...]:
    return tuple(node.router.counters()[name] for name in names)


@pytest.mark.parametrize("family", FAMILIES)
def test_frames_wait_for_their_neighbour_and_leave_in_order(family, tmp_path):
    near = {4: "10.2.0.77", 6: "fd00:2::77"}[family]
    frames = [udp(family, dst=near, size=size, ttl=9) for size in range(5)]
    node = Node(tmp_path, NOTHING)
    assert node.turn(frames)[1] == [] and ways(node, "no_neighbour", "held", "held_dropped") == (5, 5, 5), "the node has ended"
    _, wan = node.turn(frames, news=[told(node, near)])
    assert wan == [node.router.route_frame(frame, "lan")[2][0] for frame in frames]
    assert all(frame[:12] == NEW_HOST + WAN for frame in wan)
    assert ways(node, "no_neighbour", "held", "held_dropped") == (10, 10, 5)


@TRANSLATED
def test_a_sender_is_told_of_a_neighbour_that_does_not_answer_and_knows_its_packet(rules, tmp_path):
    node = Node(tmp_path, rules)
    probe = udp(dst="10.2.0.77")
    (error,), wan = node.turn([probe], news=[told(node, "10.2.0.77", None)])
    assert wan == [] and ends(error) == (craft.address(NEAR[4]), craft.address(CLIENT[4]))
    assert error[34:36] == b"\x03\x01" and error[42:] == probe[14:]
    assert ways(node, "no_neighbour", "unreachable", "errors", "held_dropped") == (1, 1, 1, 0)


@TRANSLATED
def test_what_rules_have_changed_waits_as_well(rules, tmp_path):
    node = Node(tmp_path, rules)
    _, (left,) = node.turn([udp(dst="10.2.0.77", ttl=9)], news=[told(node, "10.2.0.77")])
    assert left[:12] == NEW_HOST + WAN and left[22] == 8 and header_sum(left[14:]) == 0
    assert ends(left) == (craft.address(OUTSIDE), craft.address("10.2.0.77"))


def test_a_mirrored_frame_waits_beside_its_mirror(tmp_path):
    rules = "tc filter add dev lan ingress protocol ip prio 1 flower action mirred egress mirror dev lan pipe action pass\n"
    node = Node(tmp_path, rules)
    lan, (left,) = node.turn([udp(dst="10.2.0.77", ttl=9)], news=[told(node, "10.2.0.77")])
    assert lan == [udp(dst="10.2.0.77", ttl=9)] and left[22] == 8


def test_a_frame_that_has_waited_leaves_in_pieces_if_the_mtu_is_smaller_by_then(tmp_path):
    node = Node(tmp_path, NOTHING)
    smaller = lambda: node.router.put_station("wan", WAN, mtu=600)  # noqa: E731
    _, wan = node.turn([udp(dst="10.2.0.77", size=1400)], news=[smaller, told(node, "10.2.0.77")])
    assert [len(piece) <= 614 for piece in wan] == [True] * 3


def test_a_sender_is_told_when_nothing_is_heard_for_three_seconds(tmp_path):
    node = Node(tmp_path, NOTHING)
    (error,), _ = node.turn([udp(dst="10.2.0.77")], news=[lambda: time.sleep(3)])
    assert error[34:36] == b"\x03\x01" and ways(node, "no_neighbour", "unreachable", "held_dropped") == (1, 1, 0)


def test_the_newest_of_many_frames_wait(tmp_path):
    node = Node(tmp_path, NOTHING)
    _, wan = node.turn([udp(dst="10.2.0.77", size=size) for size in range(40)], news=[told(node, "10.2.0.77")])
    assert [len(frame) for frame in wan] == [42 + size for size in range(24, 40)] and ways(node, "held_dropped") == (24,)


@pytest.mark.parametrize(("chunks", "waiting"), [(1024, 64), (512, 64), (256, 32)])
def test_in_a_scan_those_that_have_waited_longest_give_way(chunks, waiting, tmp_path):
    """64 hops at a time, and one chunk in eight."""
    node = Node(tmp_path, NOTHING, chunks=chunks)
    hosts = [f"10.2.0.{host}" for host in range(2, 250)]
    news = [told(node, host) for host in hosts]
    _, wan = node.turn([udp(dst=host) for host in hosts], news=[lambda: [one() for one in news]])
    assert {frame[33] for frame in wan} == set(range(250 - waiting, 250)) and ways(node, "held_dropped") == (248 - waiting,)


def test_without_memory_nothing_waits(tmp_path):
    node = Node(tmp_path, NOTHING, chunks=7)
    assert node.turn([udp(dst="10.2.0.77")] * 3, news=[told(node, "10.2.0.77")]) == ([], [])
    assert ways(node, "no_neighbour", "held", "held_dropped") == (3, 0, 3)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_whatever_is_heard_of_neighbours_each_frame_has_one_end_and_each_chunk_comes_back(tmp_path_factory, data):
    """turn() checks chunks and invariants. Those that leave belong to a neighbour that is known, the others are told of, or gave way."""
    node = Node(tmp_path_factory.mktemp("node"), data.draw(st.sampled_from([NOTHING, AT_INGRESS, AT_EGRESS])), one=router(icmp_peer_rate=0))
    hosts = st.integers(60, 90)
    frames = [udp(dst=f"10.2.0.{host}") for host in data.draw(st.lists(hosts, max_size=300))]
    heard = data.draw(st.lists(st.tuples(hosts, st.sampled_from([NEW_HOST, None])), max_size=40))
    lan, wan = node.turn(frames, news=[told(node, f"10.2.0.{host}", mac) for host, mac in heard])
    first = dict(reversed(heard))
    sent, came = (Counter(frame[33] for frame in some) for some in (wan, frames))
    assert all(first[host] == NEW_HOST and count <= came[host] for host, count in sent.items())
    assert len(wan) + ways(node, "unreachable")[0] + ways(node, "held_dropped")[0] == len(frames) == ways(node, "held")[0]
    assert len(lan) <= ways(node, "unreachable")[0]
