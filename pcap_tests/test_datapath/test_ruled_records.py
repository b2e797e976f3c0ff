"""What records and summary of `replay --rules` tell beside the rules' own verdict: what the tracker had against a packet, copies, whole datagrams."""

from __future__ import annotations

import csv

import pytest
from scapy.utils import PcapNgReader

from datapath import craft
from datapath.frame import frames_of
from datapath.sink import PcapSink
from pcap_tests.test_datapath.command import records, run

CLIENT, SERVER = "10.0.0.2", "198.51.100.1"
MS, START = 10**6, 1_700_000_000 * 10**9
# Whatever is invalid is dropped, as firewalls have it.
FIREWALL = """
tc filter add dev eth0 ingress protocol ip prio 1 chain 0 flower action ct pipe action goto chain 1
tc filter add dev eth0 ingress protocol ip prio 1 chain 1 flower ct_state +trk+inv action drop
tc filter add dev eth0 ingress protocol ip prio 2 chain 1 flower ct_state +trk action ct commit pipe action mirred egress redirect dev eth1
"""


@pytest.fixture
def replay(capfd, tmp_path):
    """Frames through rules: the records, or the summary."""

    def through(rules: str, frames: list[bytes], *more: str, summary: bool = False):
        (tmp_path / "rules.tc").write_text(rules)
        memory, rows = frames_of(frames)
        rows["ts"] = [START + i * MS for i in range(len(frames))]
        with PcapSink(tmp_path / "some.pcap") as sink:
            sink.write(memory, rows)
        asked = () if summary else ("--packets", "-", "-q")
        code, out, err = run(capfd, "replay", tmp_path / "some.pcap", "--rules", tmp_path / "rules.tc", *asked, *more)
        assert (code, err) == (0, "")
        return out if summary else records(out)

    return through


# --- what the tracker had against a packet ------------------------------------------------------------------------------------------------


def handshake() -> list[bytes]:
    return [
        craft.tcp(CLIENT, SERVER, 40000, 80, "S", seq=100),
        craft.tcp(SERVER, CLIENT, 80, 40000, "SA", seq=500, ack=101),
        craft.tcp(CLIENT, SERVER, 40000, 80, "A", seq=101, ack=501),
    ]


BAD = [craft.tcp(CLIENT, SERVER, 40001 + i, 80, "S", l4_checksum=0x1234) for i in range(3)]


@pytest.mark.parametrize("more", [(), ("--no-flowtable",)])
def test_a_record_says_why_ct_called_a_packet_invalid_that_a_rule_dropped(replay, more):
    *fine, bad = replay(FIREWALL, [*handshake(), BAD[0]], *more)
    assert (bad["state"], bad["verdict"], bad["reason"], bad["ct_reason"]) == ("invalid", "drop", "rule_drop", "tcp_checksum")
    assert [each["ct_reason"] for each in fine] == ["ok", "ok", "ok"]


def test_what_was_never_tracked_has_no_reason_of_ct(replay):
    untracked, held = replay(FIREWALL, [craft.eth(bytes(28), 0x0806), craft.frame(CLIENT, SERVER, craft.UDP, bytes(16), frag=0x2000)])
    assert (untracked["ct_reason"], held["ct_reason"], held["reason"]) == (None, None, "fragment")


@pytest.mark.parametrize("more", [(), ("--no-flowtable",)])
def test_the_summary_has_both_reasons_and_the_hint(replay, more):
    out = replay(FIREWALL, [*handshake(), *BAD], *more, summary=True)
    lines = [line.split() for line in out.splitlines()]
    assert ["a", "rule", "says", "so", "3", "#3"] in lines
    assert ["bad", "TCP", "checksum", "3", "#3"] in lines
    assert "none of 3 bad TCP and UDP checksums is what an offloading NIC leaves" in " ".join(out.split())


def test_a_partial_checksum_that_a_rule_drops_gets_the_hint_that_helps(replay):
    left = [craft.tcp(CLIENT, SERVER, 40001 + i, 80, "S", l4_checksum=0) for i in range(2)]
    out = replay(FIREWALL, [*handshake(), *left], summary=True)
    assert "2 of 2 bad TCP and UDP checksums are what an offloading NIC leaves: try --checksum 0" in " ".join(out.split())


def test_bad_checksums_that_nobody_judged_are_among_those_that_hints_tell_of(replay):
    """Those of a connection in the flow table."""
    served = [craft.tcp(CLIENT, SERVER, 40000, 80, "A", seq=101, ack=501, l4_checksum=0)] * 3
    out = replay(FIREWALL, [*handshake(), *served, craft.tcp(CLIENT, SERVER, 40001, 80, "S", l4_checksum=0)], summary=True)
    assert "4 of 4 bad TCP and UDP checksums are what an offloading NIC leaves" in " ".join(out.split())


def test_every_reason_of_ct_is_counted_once(replay):
    """Whether rules drop what it is about, or let it pass."""
    passing = FIREWALL.replace("action drop", "action pass")
    for rules in (FIREWALL, passing):
        out = replay(rules, [*handshake(), *BAD], "-v", summary=True)
        codes = {line.split()[0]: int(line.split()[1]) for line in out.splitlines() if line.startswith(("tcp_checksum ", "rule_drop ", "ok "))}
        assert codes == {"ok": 3, "tcp_checksum": 3} | ({"rule_drop": 3} if rules is FIREWALL else {})


# --- datagrams in fragments ---------------------------------------------------------------------------------------------------------------


def translating(rules: str, source: str) -> str:
    """The same firewall, with another source address and port for whatever leaves."""
    onward = rules.replace("ct commit", f"ct commit nat src addr {source} port 5000-5000")
    return onward.replace("flower action ct pipe", "flower action ct nat pipe")


def pieces(ident: int = 7) -> list[bytes]:
    """A UDP datagram of 40 bytes in two fragments."""
    datagram = craft.udp_segment(CLIENT, SERVER, 5353, 53, bytes(32))
    return [
        craft.frame(CLIENT, SERVER, craft.UDP, datagram[:24], ident=ident, frag=0x2000),
        craft.frame(CLIENT, SERVER, craft.UDP, datagram[24:], ident=ident, frag=3),
    ]


@pytest.mark.parametrize("more", [(), ("--no-flowtable",)])
def test_the_fragment_that_completes_a_datagram_has_the_datagrams_ports(replay, more):
    held, whole = replay(FIREWALL, pieces(), *more)
    assert (held["verdict"], held["sport"], held["dport"]) == ("held", None, None)
    assert (whole["verdict"], whole["sport"], whole["dport"], whole["out"]) == ("accept", 5353, 53, None)


def test_a_translated_datagram_leaves_with_other_ports_and_says_so(replay):
    _, whole = replay(translating(FIREWALL, "192.0.2.9"), pieces())
    assert (whole["src"], whole["sport"], whole["dport"]) == (CLIENT, 5353, 53)
    assert whole["out"] == {"src": "192.0.2.9", "dst": SERVER, "sport": 5000, "dport": 53}


def test_datagrams_of_ipv6_have_their_ports_too(replay):
    datagram = craft.udp_segment("2001:db8::1", "2001:db8::2", 5353, 53, bytes(32))
    parts = [
        craft.frame("2001:db8::1", "2001:db8::2", craft.UDP, datagram[at : at + 24], ext=((craft.FRAGMENT, craft.fragment6(at, at == 0, 9)),))
        for at in (0, 24)
    ]
    rules = FIREWALL.replace("protocol ip ", "protocol ipv6 ")
    held, whole = replay(rules, parts)
    assert (held["verdict"], held["sport"], whole["verdict"]) == ("held", None, "accept")
    assert (whole["sport"], whole["dport"], whole["out"]) == (5353, 53, None)
    assert replay(translating(rules, "2001:db8::9"), parts)[1]["out"] == {"src": "2001:db8::9", "dst": "2001:db8::2", "sport": 5000, "dport": 53}


def test_a_datagram_leaves_as_it_came_whatever_order_its_fragments_had(replay):
    _, whole = replay(FIREWALL, pieces()[::-1])
    assert (whole["sport"], whole["dport"], whole["out"]) == (5353, 53, None)


def test_fragments_that_no_ct_puts_together_have_no_ports(replay):
    first, last = replay("tc filter add dev eth0 ingress protocol ip prio 1 flower action mirred egress redirect dev eth1\n", pieces())
    assert [(each["verdict"], each["out"]) for each in (first, last)] == [("accept", None)] * 2
    assert (last["sport"], last["dport"]) == (None, None)


# --- copies -------------------------------------------------------------------------------------------------------------------------------

COPYING = """
tc filter add dev eth0 ingress protocol ip prio 1 flower action mirred egress mirror dev tap0 pipe action mirred egress mirror dev eth1 \
    pipe action mirred egress redirect dev eth1
tc filter add dev tap0 egress protocol ip prio 1 flower ip_proto udp action drop
"""


def test_a_record_names_the_devices_that_got_a_copy(replay):
    copied, not_copied = replay(COPYING, [handshake()[0], craft.udp(CLIENT, SERVER, 1, 2)])
    assert (copied["to"], copied["mirrored"], copied["out"]) == ("eth1", ["tap0", "eth1"], None)
    assert (not_copied["to"], not_copied["mirrored"]) == ("eth1", ["eth1"])


def test_in_csv_devices_are_words_like_all_that_is_several(replay, tmp_path, capfd):
    replay(COPYING, [handshake()[0], craft.eth(b"", 0x88CC, pad=46)])
    run(capfd, "replay", tmp_path / "some.pcap", "--rules", tmp_path / "rules.tc", "-q", "--packets", tmp_path / "some.csv")
    with open(tmp_path / "some.csv", newline="") as file:
        assert [row["mirrored"] for row in csv.DictReader(file)] == ["tap0 eth1", ""]


def test_a_packet_that_is_dropped_may_have_left_a_copy(replay):
    rules = "tc filter add dev eth0 ingress protocol ip prio 1 flower action mirred egress mirror dev tap0 pipe action drop\n"
    (only,) = replay(rules, [handshake()[0]])
    assert (only["verdict"], only["to"], only["mirrored"]) == ("drop", None, ["tap0"])
    assert [each["mirrored"] for each in replay(FIREWALL, handshake())] == [[], [], []]


@pytest.mark.parametrize("more", [(), ("--no-flowtable",)])
def test_the_summary_counts_copies_by_device(replay, more):
    """Also of connections in the flow table, whose way is remembered."""
    rules = FIREWALL.replace("action mirred egress redirect", "action mirred egress mirror dev tap0 pipe action mirred egress redirect")
    again = [craft.tcp(CLIENT, SERVER, 40000, 80, "A", seq=101, ack=501)] * 5
    out = replay(rules, [*handshake(), *again], *more, summary=True)
    assert "mirrored: 8 frames to tap0" in out
    assert "mirrored" not in replay(FIREWALL, handshake(), summary=True)
    out = replay(COPYING, [handshake()[0], craft.udp(CLIENT, SERVER, 1, 2)], summary=True)
    assert "mirrored: 2 frames to eth1, 1 frame to tap0" in out
    assert "1 mirrored frame did not leave: rule_drop" in out


def test_a_copy_of_a_datagram_is_as_many_frames_as_leave(replay):
    rules = FIREWALL.replace("action mirred egress redirect", "action mirred egress mirror dev tap0 pipe action mirred egress redirect")
    assert "mirrored: 2 frames to tap0" in replay(rules, pieces(), summary=True)
    assert replay(rules, pieces())[1]["mirrored"] == ["tap0"]


def test_what_is_written_says_which_frame_is_a_copy(capfd, tmp_path, replay):
    out = tmp_path / "out.pcapng"
    replay(COPYING, [handshake()[0]], "-w", str(out))
    assert [each.comment.decode().partition(" to ")[2] for each in PcapNgReader(str(out))] == ["tap0 (a copy)", "eth1 (a copy)", "eth1"]
