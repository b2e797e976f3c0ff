"""What explain says of packets that go through rules: the example's, translated ones, fragments; and that it is what replay did with them.

Not here: what rules do (test_pipeline).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctcore.config import Config
from ctcore.errors import CtmirrorError
from ctcore.types import DECISION_DTYPE, Offload, Status
from datapath import app, craft, explain_rules, narrate_rules
from datapath.hooks import read_hook
from datapath.offload_words import WHY_NOT
from datapath.pipeline.findings import Findings
from datapath.pipeline.rules_file import read
from pcap_tests import stories
from pcap_tests.conftest import examples
from pcap_tests.stories import CLIENT, MS, SERVER
from pcap_tests.test_datapath.command import records, run
from pcap_tests.test_datapath.explained import said

EXAMPLE = Path(__file__).parents[2] / "examples" / "vm-behind-vf"
RULES, TRAFFIC = EXAMPLE / "rules.tc", EXAMPLE / "traffic.pcapng"
OUTSIDE = "192.0.2.99"
ARP, SYN, ADMITTED, SERVED, FIN, REFUSED_OUT, REFUSED_IN = 0, 2, 4, 6, 50, 53, 54
PACKETS = 55

NAT = f"""\
tc filter add dev eth0 ingress protocol ip prio 1 chain 0 flower ct_state -trk action ct zone 3 nat pipe action goto chain 1
tc filter add dev eth0 ingress protocol ip prio 1 chain 1 flower ct_state +trk+new action ct commit zone 3 mark 0x7 nat src addr {OUTSIDE} pipe \
action mirred egress mirror dev eth2 pipe action mirred egress redirect dev eth1
tc filter add dev eth0 ingress protocol ip prio 2 chain 1 flower ct_state +trk+est action mirred egress redirect dev eth1
tc filter add dev eth1 egress protocol ip prio 5 flower src_ip {OUTSIDE} action pass
"""
TRACK = "tc filter add dev eth0 ingress protocol ip prio 1 flower ct_state -trk action ct commit zone 2 pipe action mirred egress redirect dev eth1\n"


def tracking(rules: Path, device: str | None = None, flowtable: bool = True) -> app.Tracking:
    found = Findings()
    ruleset = read(str(rules), found)
    found.check()
    return app.Tracking(Config(), rules=app.RulesGiven(ruleset, str(rules), read_hook(device) if device else None, flowtable))


def of_example(number: int, flowtable: bool = True) -> list[tuple[str, str]]:
    return list(narrate_rules.rules_lines(explain_rules.explain_packet([str(TRAFFIC)], number, tracking(RULES, flowtable=flowtable))))


def lines_of(tmp_path: Path, rules: str, story: stories.Story, number: int, flowtable: bool = True) -> list[tuple[str, str]]:
    (tmp_path / "made.tc").write_text(rules)
    capture = stories.write(tmp_path / "story.pcap", story)
    return list(narrate_rules.rules_lines(explain_rules.explain_packet([capture], number, tracking(tmp_path / "made.tc", "eth0", flowtable))))


def texts(lines: list[tuple[str, str]]) -> list[str]:
    return [text for _, text in lines]


def has(lines: list[tuple[str, str]], *parts: str) -> bool:
    return any(all(part in text for part in parts) for text in texts(lines))


# --- the example -----------------------------------------------------------------------------------------------------------------------


def test_a_syn_is_tracked_and_committed() -> None:
    lines = of_example(SYN)
    assert said(lines, "arrives") == ["dev eth0 ingress, by its interface 'eth0'"]
    assert said(lines, "chain 0") == [
        "rules.tc:8 (prio 1) does not: protocol arp; the packet has ip",
        "rules.tc:12 (prio 2) matches: protocol ip ip_proto tcp dst_ip 198.51.100.10 ct_state -trk",
    ]
    assert said(lines, "chain 1") == ["rules.tc:14 (prio 1) matches: protocol ip ip_proto tcp dst_port 80 ct_state +trk+new"]
    assert said(lines, "action") == ["ct zone 5 pipe", "ct_state +trk+new, zone 5", "a connection that nobody has committed"]
    assert has(lines, "conn 0: ", "SYN_SENT", "committed by this action")
    assert said(lines, "at") == ["dev eth0_0 egress has no rules: it passes"]
    assert said(lines, "result") == ["passes dev eth0_0 egress: it leaves there"]
    assert said(lines, "flow table") == ["not served (not:tcp_state): its TCP connection is not ESTABLISHED"]


def test_what_the_flow_table_serves_is_said_to_be_so_and_shown_its_way() -> None:
    assert said(of_example(ADMITTED), "flow table")[0] == "tracked, and conn 0 is in it since #4: its next packets are served"
    lines = of_example(SERVED)
    assert said(lines, "arrives")[1].startswith("no rule has tracked it: the flow table has served it")
    assert said(lines, "flow table")[0] == "served: conn 0 is in it since #4, so that this packet was not tracked"
    assert has(lines, "ct_state +trk+est+rpl, zone 5")
    assert has(lines, "rules.tc:21 (prio 1) matches: protocol ip ct_state +trk+est")
    assert said(of_example(FIN), "flow table") == ["not served (not:teardown_fin): its connection has left the table with a FIN"]


def test_without_the_flow_table_every_packet_is_tracked() -> None:
    lines = of_example(SERVED, flowtable=False)
    assert said(lines, "flow table") == ["not in use (--no-flowtable)"]
    assert len(said(lines, "arrives")) == 1


@pytest.mark.parametrize(("number", "rule", "first"), [(REFUSED_OUT, "rules.tc:22", "rules.tc:21"), (REFUSED_IN, "rules.tc:16", "rules.tc:14")])
def test_a_refused_syn_is_dropped_by_a_rule_and_those_before_it_say_why_not(number: int, rule: str, first: str) -> None:
    lines = of_example(number)
    assert said(lines, "chain 1")[0].startswith(f"{first} (prio 1) does not: ")
    assert said(lines, "chain 1")[-1] == f"{rule} (prio 9) matches: protocol ip"
    assert said(lines, "result")[0].endswith(f"by {rule}: rule_drop: {narrate_rules.SENTENCES['rule_drop']}")
    assert not has(lines, "conn 1")


def test_why_not_is_the_first_key_that_differs() -> None:
    assert has(of_example(REFUSED_OUT), "rules.tc:21 (prio 1) does not: ct_state +trk+est; the packet has +trk+new")
    assert has(of_example(REFUSED_IN), "rules.tc:14 (prio 1) does not: dst_port 80; the packet has 22")


def test_arp_is_sent_on_by_its_rule() -> None:
    lines = of_example(ARP)
    assert said(lines, "chain 0") == ["rules.tc:8 (prio 1) matches: protocol arp"]
    assert said(lines, "flow table") == ["it has no connection of this packet"]
    assert not any(label == "ip" for label, _ in lines)


@settings(max_examples=examples(20), deadline=None)
@given(st.integers(0, PACKETS - 1), st.booleans())
def test_the_way_is_the_one_that_replay_took(number: int, flowtable: bool) -> None:
    it = explain_rules.explain_packet([str(TRAFFIC)], number, tracking(RULES, flowtable=flowtable))
    ruleset = it.tracking.rules.ruleset
    other = it.served or explain_rules.explain_packet([str(TRAFFIC)], number, tracking(RULES)).served
    hits = other.result["hit"][: int(other.result["n_hits"])].tolist()
    assert [ruleset.rules[i] for i in hits] == [hit.rule for hit in it.delivery.hits]
    assert (it.delivery.last.verdict == "pass") == (other.result["reason"] == 0)


# --- translation, copies, devices behind -----------------------------------------------------------------------------------------------


def dialogue() -> stories.Story:
    return [
        (0, craft.udp(CLIENT, SERVER, 5000, 53, b"question")),
        (MS, craft.udp(SERVER, OUTSIDE, 53, 5000, b"answer")),
        (3000 * MS, craft.udp(CLIENT, SERVER, 5000, 53, b"and then?")),  # UDP is assured after two seconds
        (3001 * MS, craft.udp(CLIENT, SERVER, 5000, 53, b"hello?")),
    ]


def test_what_is_translated_is_told_with_both_ends(tmp_path: Path) -> None:
    lines = lines_of(tmp_path, NAT, dialogue(), 0)
    assert has(lines, f"translated: source {CLIENT}:5000 -> {OUTSIDE}:5000")
    assert has(lines, "ct_state +trk+new, zone 3, mark 0x7")
    assert has(lines, "committed by this action", f"answered by {SERVER} > {OUTSIDE}")
    answer = lines_of(tmp_path, NAT, dialogue(), 1)
    assert has(answer, f"translated: destination {OUTSIDE}:5000 -> {CLIENT}:5000")
    assert has(answer, "+trk+est+rpl")


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (0, "tracked, and conn 0 is in it since #0: its next packets are tracked until it is assured, and served from then on"),
        (1, "tracked (not:not_assured): conn 0 is in it since #0, and its packets are tracked until it is assured, and served from then on"),
        (2, "tracked (not:not_assured): conn 0 is in it since #0, and has become assured with this packet: its next packets are served"),
        (3, "served: conn 0 is in it since #0, so that this packet was not tracked"),
    ],
)
def test_a_connection_of_udp_is_in_the_flow_table_before_its_packets_are_served(tmp_path: Path, number: int, sentence: str) -> None:
    assert said(lines_of(tmp_path, NAT, dialogue(), number), "flow table")[0] == sentence


def test_a_copy_and_the_rules_of_other_devices(tmp_path: Path) -> None:
    lines = lines_of(tmp_path, NAT, dialogue(), 0)
    assert [text for label, text in lines if label == "at"] == [
        "dev eth2 egress has no rules: it passes",
        "dev eth0 ingress again, with the packet itself",
        "dev eth1 egress, where nothing is known of its connection any more",
    ]
    assert has(lines, f"made.tc:4 (prio 5) matches: protocol ip src_ip {OUTSIDE}")
    assert said(lines, "result") == ["passes dev eth1 egress: it leaves there, by made.tc:4", "and a copy passes dev eth2 egress"]


def test_when_no_rule_of_a_chain_is_left_it_passes(tmp_path: Path) -> None:
    story = [*dialogue()[:1], (MS, craft.udp(SERVER, "10.9.9.9", 1, 2))]
    rules = "tc filter add dev eth0 ingress protocol ip prio 1 flower src_ip 203.0.113.1 action drop\n"
    assert said(lines_of(tmp_path, rules, story, 1), "chain 0") == [
        f"made.tc:1 (prio 1) does not: src_ip 203.0.113.1; the packet has {SERVER}",
        "no rule of the chain is left: it passes",
    ]


def test_of_many_rules_before_it_ten_are_shown(tmp_path: Path) -> None:
    rules = "".join(f"tc filter add dev eth0 ingress protocol ip prio {i} flower ip_proto udp dst_port {i} action drop\n" for i in range(1, 15))
    found = said(lines_of(tmp_path, rules + TRACK.replace("prio 1 ", "prio 99 "), dialogue(), 0), "chain 0")
    assert found[9] == "made.tc:10 (prio 10) does not: dst_port 10; the packet has 53"
    assert found[10] == "and 4 more rules that do not"
    assert found[11].startswith("made.tc:15 (prio 99) matches: ")


def test_a_zone_that_is_full_is_told_with_its_numbers(tmp_path: Path) -> None:
    (tmp_path / "made.tc").write_text(TRACK)
    capture = stories.write(tmp_path / "story.pcap", [(i * MS, craft.udp(CLIENT, SERVER, 5000 + i, 53)) for i in range(2)])
    limited = replace(tracking(tmp_path / "made.tc", "eth0"), config=Config(zone_limits={2: 1}))
    lines = list(narrate_rules.rules_lines(explain_rules.explain_packet([capture], 1, limited)))
    assert has(lines, "zone 2 has 1 connection and may have 1 (--zone-limit 2=1)")


FTP = (
    "tc filter add dev eth0 ingress protocol ip prio 1 flower ip_proto tcp dst_port 21 action ct commit helper ipv4-tcp-ftp pipe action pass\n"
    "tc filter add dev eth0 ingress protocol ip prio 2 flower ip_proto tcp action ct commit pipe action pass\n"
)


def test_what_a_helper_announces_and_what_was_announced(tmp_path: Path) -> None:
    ends = {CLIENT: (CLIENT, SERVER, 40000, 21), SERVER: (SERVER, CLIENT, 21, 40000)}
    steps = [
        (CLIENT, "S", 100, 0, b""),
        (SERVER, "SA", 500, 101, b""),
        (CLIENT, "A", 101, 501, b""),
        (CLIENT, "PA", 101, 501, b"USER x\r\n"),
        (CLIENT, "PA", 109, 501, b"PORT 10,0,0,1,7,208\r\n"),
    ]
    story = [(i * MS, craft.tcp(*ends[who], flags, seq=seq, ack=ack, payload=data)) for i, (who, flags, seq, ack, data) in enumerate(steps)]
    story.append((9 * MS, craft.tcp(SERVER, CLIENT, 20, 2000, "S", seq=9)))
    for flowtable in (True, False):
        assert has(lines_of(tmp_path, FTP, story, 4, flowtable), f"its helper announces tcp {SERVER} > {CLIENT} dport 2000")
        assert has(lines_of(tmp_path, FTP, story, 5, flowtable), "conn 0 has announced it")
        assert not has(lines_of(tmp_path, FTP, story, 3, flowtable), "helper announces")


# --- fragments -------------------------------------------------------------------------------------------------------------------------


def in_fragments() -> stories.Story:
    whole = craft.udp_segment(CLIENT, SERVER, 5000, 53, bytes(2000))
    first, second = (craft.frame(CLIENT, SERVER, craft.UDP, part, ident=7, frag=frag) for part, frag in ((whole[:1480], 0x2000), (whole[1480:], 185)))
    return [(0, first), (MS, second), (2 * MS, craft.udp(CLIENT, SERVER, 5000, 53))]


def test_a_fragment_is_held_and_the_last_one_goes_on_as_the_datagram(tmp_path: Path) -> None:
    held = lines_of(tmp_path, TRACK, in_fragments(), 0)
    assert said(held, "result")[0].startswith("held at dev eth0 ingress by made.tc:1: fragment: ")
    last = lines_of(tmp_path, TRACK, in_fragments(), 1)
    assert said(last, "arrives")[1] == "all packets before it have gone through the rules one by one, since fragments before it wait for others"
    assert has(last, "tracked as one datagram of 2 fragments; it leaves in fragments again")
    assert said(held, "udp") == ["5000 > 53, 1472 bytes of payload, its length says 2000"]
    assert said(last, "udp") == ["no header in this fragment: its bytes begin at 1,480 of what the datagram carries"]
    assert not has(last, "translated")
    assert has(lines_of(tmp_path, NAT, in_fragments(), 1), f"translated: source {CLIENT}:5000 -> {OUTSIDE}:5000")
    assert has(last, "conn 0: ", "committed by this action")
    assert said(last, "result") == [
        "passes dev eth1 egress: it leaves there",
        "in 2 fragments, each on its own; what is told of the end is told of the last",
    ]
    told = "tracked (not:fragment): conn 0 is in it since #1, but does not get this packet: it is a fragment, or broken"
    assert said(last, "flow table")[0] == told
    assert len(said(lines_of(tmp_path, TRACK, in_fragments(), 2), "arrives")) == 1  # nothing waits any more


def test_a_policer_has_seen_what_comes_before(tmp_path: Path) -> None:
    police = "tc filter add dev eth0 ingress protocol ip prio 1 flower action police pkts_rate 1 pkts_burst 2 conform-exceed drop/pass\n"
    story = [(i * MS, craft.udp(CLIENT, SERVER, 5000, 53)) for i in range(3)]
    ends = [said(lines_of(tmp_path, police, story, i), "result")[0].split()[0] for i in range(3)]
    assert ends == ["passes", "passes", "dropped"]


# --- other link layers -----------------------------------------------------------------------------------------------------------------


def made_of(tmp_path: Path, link: int, data: bytes) -> explain_rules.Ruled:
    (tmp_path / "made.tc").write_text(TRACK)
    capture = stories.write(tmp_path / "other.pcapng", [(0, data)], link=link)
    return explain_rules.explain_packet([capture], 0, tracking(tmp_path / "made.tc", "eth0"))


def test_ip_without_ethernet_goes_through_rules_as_well(tmp_path: Path) -> None:
    lines = list(narrate_rules.rules_lines(made_of(tmp_path, 101, craft.udp(CLIENT, SERVER, 5000, 53)[14:])))
    assert has(lines, "conn 0: ", "committed by this action")
    assert said(lines, "udp")[0].startswith("5000 > 53")


def test_of_what_is_neither_there_is_nothing_to_tell(tmp_path: Path) -> None:
    with pytest.raises(CtmirrorError, match="packet 0: neither Ethernet nor IP"):
        made_of(tmp_path, 101, bytes(40))


# --- the command -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("option", "told"), [("--packet", "rule_drop: "), ("--conn", "TIME_WAIT")])
def test_the_commands_that_replay_suggests_work(capfd, option: str, told: str) -> None:
    _, out, _ = run(capfd, "replay", TRAFFIC, "--rules", RULES)
    command = next(line for line in out.splitlines() if "ctmirror explain" in line and option in line)
    code, said_of_it, err = run(capfd, *command.split()[1:], "--quiet")
    assert (code, err) == (0, "")
    assert told in said_of_it


def test_the_rule_of_a_record_is_in_the_explanation(capfd) -> None:
    for record in records(run(capfd, "replay", TRAFFIC, "--rules", RULES, "--packets", "-", "--quiet")[1])[:8]:
        _, out, _ = run(capfd, "explain", TRAFFIC, "--packet", record["i"], "--rules", RULES, "--quiet")
        assert f"{record['rule'].rpartition('/')[2]} (prio " in out


def test_a_frame_is_its_packet(capfd) -> None:
    frame = run(capfd, "explain", TRAFFIC, "--frame", SYN + 1, "--rules", RULES, "--quiet")
    assert frame == run(capfd, "explain", TRAFFIC, "--packet", SYN, "--rules", RULES, "--quiet")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--packet", PACKETS, "--rules", RULES], f"no packet {PACKETS}: expected 0 to {PACKETS - 1}"),
        (["--packet", 0, "--no-flowtable"], "--no-flowtable: expected --rules with it"),
    ],
)
def test_errors_are_one_line(capfd, words, text) -> None:
    code, out, err = run(capfd, "explain", TRAFFIC, *words, "--quiet")
    assert code in (1, 2) and out == "" and err.count("\n") == 1
    assert text in err


def test_earlier_captures_count(tmp_path: Path) -> None:
    (tmp_path / "made.tc").write_text(NAT)
    story = dialogue()
    captures = [stories.write(tmp_path / f"{i}.pcap", part) for i, part in enumerate((story[:2], story[2:]))]
    lines = list(narrate_rules.rules_lines(explain_rules.explain_packet(captures, 1, tracking(tmp_path / "made.tc", "eth0"))))
    assert said(lines, "flow table") == ["served: conn 0 is in it since a capture before this one, so that this packet was not tracked"]


# --- with which packet a connection came into the flow table ----------------------------------------------------------------------------


def slowly(packets: list[tuple[int, bool, int]]) -> dict[int, int]:
    """The same one by one: conn to packet."""
    since: dict[int, int] = {}
    for number, (conn, there, offload) in enumerate(packets):
        if there and offload:
            since.setdefault(conn, number)
        elif offload:
            since.pop(conn, None)
    return since


PACKET = st.tuples(st.integers(-1, 4), st.booleans(), st.sampled_from([Offload.OFFLOAD_NONE, Offload.OFFLOAD_SOFTWARE, Offload.NOT_TTL]))


@given(st.lists(PACKET, max_size=30), st.integers(1, 30))
def test_admissions_are_found_chunk_by_chunk(packets: list[tuple[int, bool, int]], size: int) -> None:
    admissions = explain_rules.Admissions()
    for first in range(0, len(packets), size):
        part = packets[first : first + size]
        decisions = np.zeros(len(part), dtype=DECISION_DTYPE)
        decisions["conn"], there, decisions["offload"] = zip(*part, strict=True)
        decisions["status"] = np.array(there) * Status.OFFLOAD
        admissions.note(decisions, first)
    expected = slowly(packets)
    assert [admissions.of(conn) for conn in range(5)] == [expected.get(conn, -1) for conn in range(5)]


def test_every_reason_of_the_flow_table_has_words() -> None:
    assert set(WHY_NOT) == {each for each in Offload if each.name.startswith("NOT_")}
