"""Other rules while packets come: none is lost, and connections stay or are judged anew, as asked."""

from __future__ import annotations

import time

import numpy as np
import pytest

from ctcore.config import Config
from ctcore.errors import ConfigError
from ctcore.types import Verdict
from datapath import craft
from datapath.frame import FRAME_DTYPE, frames_of
from datapath.live import requests
from datapath.live.capture_iface import CaptureIface
from datapath.live.drivers import Opened
from datapath.live.message import RequestError
from datapath.live.reevaluate import Trial, opening
from datapath.pipeline.findings import Findings
from datapath.pipeline.rules_file import parse
from datapath.sink import PcapSink
from datapath.worker import Pipeline
from pcap_tests.test_datapath.test_live.noded import opened_null, running

A, B = "10.0.0.1", "10.0.0.2"
HEAD = "tc qdisc add dev eth0 clsact\n"
STATEFUL = """tc filter add dev eth0 ingress prio 1 protocol ip flower ct_state -trk action ct pipe action goto chain 1
tc filter add dev eth0 ingress chain 1 prio 1 protocol ip flower ct_state +trk+est action pass
"""


def firewall(*allowed):
    """Who is established passes; of who is new, these ports of TCP or UDP do."""
    lines = [
        f"tc filter add dev eth0 ingress chain 1 prio {i} protocol ip flower ct_state +trk+new ip_proto {proto} dst_port {port} "
        "action ct commit pipe action pass\n"
        for i, (proto, port) in enumerate(allowed, 2)
    ]
    return HEAD + STATEFUL + "".join(lines) + "tc filter add dev eth0 ingress chain 1 prio 99 protocol all flower action drop\n"


OPEN, CLOSED = firewall(("tcp", 80), ("tcp", 22), ("udp", 53)), firewall(("tcp", 80))


def talk(rig, sport, dport):
    """A connection of TCP, established, with its verdicts."""
    steps = [(A, B, sport, dport, "S", 1, 0), (B, A, dport, sport, "SA", 1, 2), (A, B, sport, dport, "A", 2, 2)]
    return [rig.send(craft.tcp(*step[:5], seq=step[5], ack=step[6]))["verdict"][0] for step in steps]


def more(rig, sport, dport):
    """One packet more of it, its verdict."""
    return Verdict(rig.send(craft.tcp(A, B, sport, dport, "PA", seq=2, ack=2, payload=b"more"))["verdict"][0])


def load(rig, text, **how):
    with rig.client() as client:
        return client.load_rules(text, name="new.tc", **how)


def listed(rig):
    with rig.client() as client:
        return [record["original"]["dport"] for record in client.conns("list")]


def test_rules_name_functions_as_the_configuration_does(tmp_path, caplog):
    """Those of the file, and those that come while packets do; an interface's own name goes on to be right."""
    vf = "pf0vf3@0000:08:00.0"
    caplog.set_level("INFO")
    with running(tmp_path, OPEN.replace("eth0", vf), called={vf: "eth0"}) as rig:
        assert "eth0: stands for pf0vf3@0000:08:00.0" in caplog.text
        assert talk(rig, 1000, 80) == talk(rig, 1001, 22) == [Verdict.ACCEPT] * 3
        assert load(rig, CLOSED.replace("eth0", vf))["warnings"] == []
        assert talk(rig, 2000, 80)[0] == Verdict.ACCEPT and talk(rig, 2001, 22)[0] == Verdict.DROP
        assert load(rig, OPEN)["warnings"] == [] and talk(rig, 3001, 22)[0] == Verdict.ACCEPT
        told = load(rig, OPEN.replace("eth0", "pf0vf4@0000:08:00.0"))["warnings"]
        assert told and "pf0vf4@0000:08:00.0: this node has no such interface" in told[0].replace("'", "")


@pytest.fixture
def rig(tmp_path):
    with running(tmp_path, OPEN) as rig:
        assert talk(rig, 1000, 80) == talk(rig, 1001, 22) == [Verdict.ACCEPT] * 3
        rig.send(craft.udp(A, B, 1002, 53, b"?"), craft.udp(B, A, 53, 1002, b"!"))
        yield rig


def test_established_connections_are_kept(rig):
    assert load(rig, CLOSED) == {"rules": 4, "warnings": [], "deleted": 0}
    assert listed(rig) == [80, 22, 53]
    assert more(rig, 1001, 22) is Verdict.ACCEPT
    assert talk(rig, 1003, 22)[0] == Verdict.DROP  # what is new meets the new rules


def test_established_connections_are_judged_anew(rig):
    assert load(rig, CLOSED, established="reevaluate") == {"rules": 4, "warnings": [], "deleted": 2}
    assert listed(rig) == [80]
    assert more(rig, 1001, 22) is Verdict.DROP
    assert more(rig, 1000, 80) is Verdict.ACCEPT


def test_what_stays_leaves_the_flow_table_and_comes_back_by_the_new_rules(rig):
    def flows(node):
        return node.pipeline.flows.counters()

    assert more(rig, 1000, 80) is Verdict.ACCEPT
    before = rig.job(flows)
    load(rig, OPEN, established="reevaluate")
    assert rig.job(flows)["teardown_flush"] - before["teardown_flush"] == 3
    rig.until(lambda: rig.job(flows)["flows"] == 0)
    more(rig, 1000, 80)
    assert rig.job(flows)["admitted"] == before["admitted"] + 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tc filter add dev eth0 ingress prio 1 flower action dance\n", "new.tc:1"),
        ("", ""),
        ("tc qdisc add dev eth0 clsact\ntc filter add dev eth0 ingress prio 1 flower action drop extra\n", "new.tc:2"),
    ],
)
def test_rules_that_are_wrong_change_nothing(rig, text, said):
    if text:
        with pytest.raises(RequestError, match=said):
            load(rig, text)
        assert more(rig, 1001, 22) is Verdict.ACCEPT
        assert talk(rig, 1004, 443)[0] == Verdict.DROP  # the old rules go on
    else:
        assert load(rig, text)["warnings"] == ["new.tc: no rules: everything passes untracked"]


# --- rules that ask more of a tracker than it was made for -----------------------------------------------------------------------------------


def translating(*ranges):
    """Each for a port of its own, from 9000 on."""
    return HEAD + "".join(
        f"tc filter add dev eth0 ingress prio {i} protocol ip flower ip_proto udp dst_port {9000 + i} action ct commit nat {text} pipe action pass\n"
        for i, text in enumerate(ranges, 1)
    )


def translated(rig, port):
    """To what a new connection to this port is translated: (source, destination)."""
    rig.send(craft.udp(A, B, 1002, port, b"?"))
    with rig.client() as client:
        (record,) = client.conns("list", which={"dport": port})
    return record["reply"]["dst"], record["reply"]["src"]


def pools(rig):
    return rig.job(lambda node: [(pool.in_use, pool.size) for pool in node.pipeline.tracker.nat_pools()])


def test_translation_begins_in_a_node_that_had_none(rig):
    """What was established goes on untranslated; answers of new connections find their way."""
    load(rig, translating("src addr 192.0.2.1", "dst addr 10.9.9.9"))
    assert sorted(listed(rig)) == [22, 53, 80]
    assert translated(rig, 9001) == ("192.0.2.1", B) and translated(rig, 9002) == (A, "10.9.9.9")
    assert rig.send(craft.udp(B, "192.0.2.1", 9001, 1002, b"!"))["conn"][0] < 0, "no ct action at the other interface"
    rig.job(lambda node: node.pipeline.tracker.check())
    with rig.client() as client:
        assert client.ask("delete", which={"dport": 53})["count"] == 1
    rig.job(lambda node: node.pipeline.tracker.check())


def test_ranges_are_added_and_those_there_are_go_on(tmp_path):
    with running(tmp_path, translating("src addr 192.0.2.1")) as rig:
        assert translated(rig, 9001)[0] == "192.0.2.1"
        load(rig, translating("src addr 192.0.2.1", "src addr 192.0.2.2 port 1-10"))
        assert translated(rig, 9002)[0] == "192.0.2.2"
        load(rig, translating("src addr 192.0.2.3", "src addr 192.0.2.2 port 1-10", "src addr 192.0.2.1"))
        assert translated(rig, 9003)[0] == "192.0.2.1"
        assert [in_use for in_use, _ in pools(rig)] == [2, 1, 0], "in the order in which they came to be"
        rig.job(lambda node: node.pipeline.tracker.check())


def test_helpers_begin_in_a_node_that_had_none(rig):
    helped = "tc filter add dev eth0 ingress prio 1 protocol ip flower ip_proto tcp action ct commit helper ipv4-tcp-ftp pipe action pass\n"
    load(rig, HEAD + helped)
    talk(rig, 1009, 21)
    rig.send(craft.tcp(A, B, 1009, 21, "PA", seq=2, ack=2, payload=b"USER x\r\n"))
    rig.send(craft.tcp(A, B, 1009, 21, "PA", seq=10, ack=2, payload=b"PORT 10,0,0,1,4,1\r\n"))
    with rig.client() as client:
        assert client.ask("expectations")["count"] == 1


def test_rules_that_were_compiled_for_other_ranges_change_nothing(rig):
    """Of two who load rules at a time, the second one compiled beside what is no more."""
    late = rig.node.load_rules(parse(translating("src addr 192.0.2.7"), "late", Findings()))
    load(rig, translating("src addr 192.0.2.1"))
    with pytest.raises(ConfigError, match="others have been added meanwhile"):
        rig.job(lambda node: node.take_rules(late))
    assert translated(rig, 9001)[0] == "192.0.2.1"


def test_many_rules_come_in_pieces_and_too_many_not_at_all(rig, monkeypatch):
    lines = [f"tc filter add dev eth0 ingress prio {i} protocol ip flower dst_ip 10.1.{i >> 8}.{i & 255} action drop\n" for i in range(1, 2000)]
    assert load(rig, HEAD + "".join(lines))["rules"] == 1999
    monkeypatch.setattr(requests, "LARGEST_RULES", 10000)
    with pytest.raises(RequestError, match="more than 10000 bytes of rules; what was sent is forgotten"):
        load(rig, HEAD + "".join(lines))
    assert load(rig, OPEN)["rules"] == 6


@pytest.mark.parametrize(("arguments", "said"), [({"established": "burn"}, "expected keep or reevaluate"), ({"name": 5}, "name: expected text")])
def test_how_it_is_to_be_done_has_to_make_sense(rig, arguments, said):
    with rig.client() as client, pytest.raises(RequestError, match=said):
        client.ask("rules", **arguments)


# --- no packet is lost ------------------------------------------------------------------------------------------------------------------------

N = 600_000


def counting(action):
    return f"{HEAD}tc filter add dev eth0 ingress prio 1 protocol ip flower action {action} mirred egress redirect dev eth1\n"


def test_no_packet_is_lost_or_passes_by_while_rules_are_swapped(tmp_path):
    """A capture is forwarded at full speed while one set of rules follows another: each frame meets the rules of one of them."""
    frame = np.frombuffer(craft.udp(A, B, 1, 53, b"?" * 18), np.uint8)
    rows = np.zeros(N, dtype=FRAME_DTYPE)
    rows["caplen"] = rows["len"] = len(frame)
    rows["link"] = 1  # Ethernet
    rows["ts"] = time.time_ns() + np.arange(N) * 100
    with PcapSink(str(tmp_path / "in.pcap")) as sink:
        sink.write(frame, rows)

    def open_iface(umem, name, wanted):
        if name != "eth0":
            return opened_null(umem, name, wanted)
        return Opened(name, "capture", [CaptureIface(umem, name, source=str(tmp_path / "in.pcap"), ordinal=wanted.ordinal)])

    with running(tmp_path, counting("ct commit pipe action"), open_iface=open_iface) as rig:
        swaps = 0
        while rig.job(lambda node: node.loop.counters())["frames"] < N:
            load(rig, counting(("pedit ex munge ip ttl set 9 pipe action", "ct commit pipe action")[swaps % 2]))
            swaps += 1
        counters = rig.job(lambda node: node.loop.counters())
        sent = rig.job(lambda node: node.loop.ifaces[1].statistics())
    assert swaps >= 2
    assert (counters["frames"], counters["sent"], counters["nobody"], counters["not_sent"]) == (N, N, 0, 0)
    assert sent["tx"] == N


# --- what connections begin with -----------------------------------------------------------------------------------------------------------------


def begun(*frames):
    """The connections that these make."""
    pipeline = Pipeline(Config(checksum=False))
    pipeline.process(*frames_of(list(frames), np.arange(len(frames))))
    return pipeline.tracker.conns()


FIRST = [
    craft.tcp(A, B, 1, 80, "S", seq=1), craft.udp(A, B, 2, 53, b"x"), craft.icmp(A, B, 8, ident=7, sequence=1), craft.udplite(A, B, 3, 9, b"x"),
    craft.sctp(A, B, 4, 5, 0, craft.sctp_init(1)), craft.gre(A, B), craft.frame(A, B, 50, bytes(8)),
    craft.tcp("2001:db8::1", "2001:db8::2", 1, 80, "S", seq=1), craft.icmp("2001:db8::1", "2001:db8::2", 128, ident=7, sequence=1),
]  # fmt: skip


def test_opening_packets_make_the_same_connections_again():
    conns = begun(*FIRST)
    assert len(conns) == len(FIRST)
    keys = conns["flow"]["key"][:, 0]
    assert begun(*(opening(key.tobytes()) for key in keys))["flow"]["key"][:, 0].tobytes() == keys.tobytes()


def trial(text, conns, ifaces=("eth0",), *, routed=False):
    found = Findings()
    tried = Trial(parse(text, "x.tc", found), Config(), ifaces, routed=routed)
    assert not found.errors
    tried.add(conns)
    return tried.unwanted()


def test_unwanted_is_what_no_interface_lets_begin():
    conns = begun(*FIRST[:3])
    only = "tc qdisc add dev {0} clsact\ntc filter add dev {0} ingress prio 1 protocol ip flower ip_proto {1} action ct commit pipe action pass\n"
    assert trial(only.format("eth0", "udp"), conns) == [0, 2]
    assert trial(only.format("eth0", "udp") + only.format("eth1", "tcp"), conns, ("eth0", "eth1")) == [2]
    assert trial(only.format("eth0", "udp").replace("commit", "commit zone 3"), conns) == [0, 1, 2]  # another zone is another connection


def test_where_packets_are_routed_connections_begin_at_the_egress_as_well():
    conns = begun(*FIRST[:3])
    leaving = HEAD + "tc filter add dev eth0 egress prio 1 protocol ip flower ip_proto udp action ct commit pipe action pass\n"
    assert trial(leaving, conns) == [0, 1, 2]
    assert trial(leaving, conns, routed=True) == [0, 2]


def test_what_was_expected_goes_with_its_master():
    conns = begun(*FIRST[:3])
    conns["status"][1:] |= 1
    conns["master"][1:] = [0, 99]  # the last one's is gone already
    nothing = HEAD + "tc filter add dev eth0 ingress prio 1 protocol all flower action drop\n"
    assert trial(nothing, conns) == [0, 1]
    assert Trial(parse(nothing, "x.tc", Findings()), Config(), ["eth0"]).unwanted() == []
