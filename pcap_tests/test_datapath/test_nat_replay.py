"""Translation from end to end: what a router gets on both sides goes in, what it would send comes out, as captures, records and explanations."""

from __future__ import annotations

import json
import shlex
from io import StringIO
from pathlib import Path

import click
import numpy as np
import pytest
from rich.console import Console
from scapy.utils import PcapNgReader

from ctcore.config import Config
from ctcore.errors import ConfigError
from datapath import Pipeline, app, craft, explain, frames_of, narrate
from datapath.capture import PcapSource
from datapath.cli import main
from datapath.commands import options
from datapath.report import print_summary
from datapath.rule_text import parse_helper, parse_rule
from datapath.wire import parse_batch
from pcap_tests import stories

MS = stories.MS
INSIDE, SERVER, OUTSIDE = "10.0.0.2", "198.51.100.1", "192.0.2.1"
INSIDE6, SERVER6, OUTSIDE6 = "2001:db8:1::2", "2001:db8:2::1", "2001:db8:3::1"


def tracking(*rules: tuple[str, str], **settings: object) -> app.Tracking:
    return app.Tracking(Config(nat=tuple(parse_rule(*rule) for rule in rules), **settings))


def talk(near: str, far: str) -> stories.Story:
    """A little of every protocol between two hosts, both directions. near: who begins, as seen by whom the packets are made for."""
    echo, reply = (128, 129) if ":" in near else (8, 0)
    chunks = craft.sctp_init(7), craft.sctp_init(9, ack=True)
    frames = [
        *(frame for _, frame in stories.closed_by_client(a=near, b=far)),
        craft.udp(near, far, 5353, 53, b"who?"),
        craft.udp(far, near, 53, 5353, b"you!"),
        craft.udp(near, far, 5354, 53, b"who?", l4_checksum=0),
        craft.udplite(near, far, 70, 80, b"x", sum_proto=craft.UDP),
        craft.icmp(near, far, echo, ident=77, sequence=1, payload=b"ping"),
        craft.icmp(far, near, reply, ident=77, sequence=1, payload=b"ping"),
        craft.sctp(near, far, 9000, 9001, 0, chunks[0]),
        craft.sctp(far, near, 9001, 9000, 7, chunks[1]),
        craft.gre(near, far, version=1, proto=0x880B, call=9),
        craft.frame(near, far, craft.ESP, b"12345678"),
        craft.frame(far, near, craft.ESP, b"12345678"),
    ]
    return [(i * MS, frame) for i, frame in enumerate(frames)]


def between(near: str, outside: str, far: str) -> tuple[stories.Story, stories.Story]:
    """What a router receives of a talk, whose answers come to its outer address, and what it sends."""
    inner, outer = talk(near, far), talk(outside, far)
    begins = [_source(frame) == craft.address(near) for _, frame in inner]
    received = [inside if first else out for inside, out, first in zip(inner, outer, begins, strict=True)]
    sent = [out if first else inside for inside, out, first in zip(inner, outer, begins, strict=True)]
    return received, sent


def _source(frame: bytes) -> bytes:
    return frame[26:30] if frame[12:14] == b"\x08\x00" else frame[22:38]


def read(name: str) -> list[bytes]:
    with PcapSource(name) as source:
        memory, frames = source.read(1 << 16)
        return [memory[f["offset"] : f["offset"] + f["caplen"]].tobytes() for f in frames]


@pytest.mark.parametrize(
    ("near", "outside", "far"), [(INSIDE, OUTSIDE, SERVER), (INSIDE6, OUTSIDE6, SERVER6)], ids=["IPv4", "IPv6"]
)  # fmt: skip
def test_what_is_written_is_what_the_router_sends(tmp_path, near, outside, far):
    """Every packet of every protocol leaves as a host at the outer address would have sent it, or a host inside would have got it: to the byte."""
    received, sent = between(near, outside, far)
    name, out = stories.write(tmp_path / "in.pcap", received), str(tmp_path / "out.pcapng")
    result = app.replay([name], tracking(("masquerade", outside)), app.Outputs(forwarded=out))
    assert read(out) == [frame for _, frame in sent]
    assert result.stats["translated"] == len(sent)
    assert [(pool.in_use, pool.exhausted) for pool in result.pools] == [(8, 0)]


def test_two_routers_that_undo_each_other_change_nothing(tmp_path):
    """What left as 192.0.2.1, and passes another one that maps that address back, is what was sent inside."""
    received, _ = between(INSIDE, OUTSIDE, SERVER)
    # But for TCP, whose questions without the answers to them are invalid, and pass untranslated.
    questions = [step for step in received[8:] if _source(step[1]) == craft.address(INSIDE)]
    name, middle, out = stories.write(tmp_path / "in.pcap", questions), str(tmp_path / "mid.pcap"), str(tmp_path / "out.pcap")
    app.replay([name], tracking(("snat", OUTSIDE)), app.Outputs(forwarded=middle))
    app.replay([middle], tracking(("snat", INSIDE)), app.Outputs(forwarded=out))
    assert read(middle) != read(name)
    assert read(out) == read(name)


def test_nothing_that_leaves_has_a_bad_checksum(tmp_path):
    received, _ = between(INSIDE, OUTSIDE, SERVER)
    rules = tracking(("snat", f"{OUTSIDE}-192.0.2.9:2000-2003,fully-random"), ("dnat", "ip_proto tcp dst_port 80 => 203.0.113.7:8080"))
    out = str(tmp_path / "out.pcap")
    app.replay([stories.write(tmp_path / "in.pcap", received)], rules, app.Outputs(forwarded=out))
    with PcapSource(out) as source:
        rows = parse_batch(*source.read(1 << 16)).array
    assert (rows["reason"] == 0).all() and (rows["l4_reason"] == 0).all()


def test_held_and_dropped_packets_are_not_written(tmp_path):
    story = [
        (0, craft.udp(INSIDE, SERVER, 1, 53)),
        (1, craft.udp("10.0.0.3", SERVER, 1, 53)),  # the one port of the one address is taken
        (2, craft.udp("10.0.0.3", SERVER, 1, 54)),
    ]
    out = str(tmp_path / "out.pcap")
    result = app.replay([stories.write(tmp_path / "in.pcap", story)], tracking(("snat", f"{OUTSIDE}:1")), app.Outputs(forwarded=out))
    assert read(out) == [craft.udp(OUTSIDE, SERVER, 1, 53), craft.udp(OUTSIDE, SERVER, 1, 54)]
    assert result.forwarded == (out, 2) and result.stats["dropped"] == 1
    assert result.pools[0].exhausted == 1


def test_comments_say_what_was_translated(tmp_path):
    story = [
        (0, craft.udp(INSIDE, "203.0.113.7", 1000, 53)),
        (1, craft.udp("198.51.100.9", OUTSIDE, 5053, 1000)),
        (2, craft.icmp(INSIDE, SERVER, 8, ident=7)),
        (3, craft.udp("10.9.9.9", "10.9.9.8", 5, 6)),
    ]
    rules = tracking(("dnat", "dst_ip 203.0.113.7 ip_proto udp => 198.51.100.9:5053"), ("snat", f"src_ip {INSIDE} => {OUTSIDE}"))
    out = str(tmp_path / "out.pcapng")
    app.replay([stories.write(tmp_path / "in.pcap", story)], rules, app.Outputs(forwarded=out))
    with PcapNgReader(out) as reader:
        said = [packet.comments[0].decode() for packet in reader]
    assert said[0].endswith(" snat 10.0.0.2:1000 -> 192.0.2.1:1000 dnat 203.0.113.7:53 -> 198.51.100.9:5053")
    assert said[1].endswith(" snat 198.51.100.9:5053 -> 203.0.113.7:53 dnat 192.0.2.1:1000 -> 10.0.0.2:1000")
    assert said[2].endswith(" snat 10.0.0.2 id 7 -> 192.0.2.1 id 7")
    assert "snat" not in said[3].split("reason")[1]


def records(tmp_path: Path, story: stories.Story, *rules: tuple[str, str]) -> list[dict]:
    name = str(tmp_path / "p.jsonl")
    app.replay([stories.write(tmp_path / "in.pcap", story)], tracking(*rules), app.Outputs(packets=name))
    return [json.loads(line) for line in Path(name).read_text().splitlines()]


def test_records_say_what_a_packet_leaves_with(tmp_path):
    asked = craft.udp(OUTSIDE, SERVER, 1000, 53)
    story = [
        (0, craft.udp(INSIDE, SERVER, 1000, 53)),
        (1, craft.udp(SERVER, OUTSIDE, 53, 1000)),
        (2, craft.icmp_error(SERVER, OUTSIDE, 3, 3, asked)),
        (3, craft.icmp(INSIDE, SERVER, 8, ident=7)),
        (4, craft.gre(INSIDE, SERVER, version=1, proto=0x880B, call=9)),
        (5, craft.udp("10.9.9.9", SERVER, 1000, 53)),
    ]
    out = [record["out"] for record in records(tmp_path, story, ("snat", f"src_ip 10.0.0.0/24 => {OUTSIDE}"))]
    assert out == [
        {"src": OUTSIDE, "dst": SERVER, "sport": 1000, "dport": 53},
        {"src": SERVER, "dst": INSIDE, "sport": 53, "dport": 1000},
        {"src": SERVER, "dst": INSIDE, "id": None},
        {"src": OUTSIDE, "dst": SERVER, "id": 7},
        {"src": OUTSIDE, "dst": SERVER, "key": 9},
        None,
    ]


def test_without_rules_there_is_no_out(tmp_path):
    assert {record["out"] for record in records(tmp_path, stories.office())} == {None}


def test_conntrack_lines_show_the_translated_answer(tmp_path, capfd):
    name = stories.write(tmp_path / "in.pcap", [(0, craft.udp(INSIDE, SERVER, 1000, 53))])
    assert main(["replay", name, "-q", "--snat", OUTSIDE, "--conns", "-", "--format", "conntrack"]) == 0
    assert f"src={INSIDE} dst={SERVER} sport=1000 dport=53" in (line := capfd.readouterr().out)
    assert f"src={SERVER} dst={OUTSIDE} sport=53 dport=1000" in line


# --- the command line --------------------------------------------------------------------------------------------------------------------


def probed(*words: str) -> app.Tracking:
    seen = []

    @click.command()
    @options.tracking_options
    def probe(tracking):
        seen.append(tracking)

    probe.main(list(words), standalone_mode=False)
    return seen[0]


def test_rules_keep_the_order_of_the_command_line_whatever_their_kind():
    """Of two rules that match, the first one decides: so --snat and --masquerade must not be sorted apart."""
    words = ["--snat", "192.0.2.1", "--masquerade", "192.0.2.2", "--dnat=192.0.2.3", "--snat", "192.0.2.4", "--redirect", "192.0.2.5"]
    rules = probed(*words).config.nat
    assert [(rule.kind, rule.text) for rule in rules] == [
        ("snat", "192.0.2.1"), ("masquerade", "192.0.2.2"), ("dnat", "192.0.2.3"), ("snat", "192.0.2.4"), ("redirect", "192.0.2.5"),
    ]  # fmt: skip


def test_suggested_commands_repeat_rules_and_helpers():
    words = ["--masquerade", "ip_proto tcp  => 192.0.2.2", "--snat", "192.0.2.1", "--helper", "ftp:tcp:21", "--zone", "3"]
    flags = probed(*words).flags
    assert flags == "--masquerade 'ip_proto tcp => 192.0.2.2' --snat 192.0.2.1 --helper ftp:tcp:21 --zone 3"
    again = probed(*shlex.split(flags))
    assert again.flags == flags and [rule.range for rule in again.config.nat] == [rule.range for rule in probed(*words).config.nat]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--snat", "192.0.2.1:x"], "--snat '192.0.2.1:x': column 11, 'x': expected a port from 0 to 65535"),
        (["--redirect", "192.0.2.1-192.0.2.2"], "--redirect '192.0.2.1-192.0.2.2': column 1, "),
        (["--helper", "ftp:tcp:x"], "--helper 'ftp:tcp:x': column 9, 'x': expected a port from 1 to 65535"),
    ],
)
def test_a_wrong_rule_is_one_line_with_its_place(words, line, tmp_path, capfd):
    assert main(["replay", stories.write(tmp_path / "in.pcap", stories.question()), *words]) == 2
    error = capfd.readouterr().err
    assert line in error and error.count("\n") == 1


# --- the summary, and explain --------------------------------------------------------------------------------------------------------------


def test_the_summary_shows_pools(tmp_path):
    story = [(i * MS, craft.udp(f"10.0.0.{i}", SERVER, 1000, 53)) for i in range(1, 4)]
    rules = tracking(("snat", f"{OUTSIDE}:1000-1001"))
    out = StringIO()
    print_summary(app.replay([stories.write(tmp_path / "in.pcap", story)], rules, app.Outputs()), Console(file=out, width=100))
    lines = out.getvalue().splitlines()
    row = next(line for line in lines if line.startswith("snat "))
    assert row.split() == ["snat", f"{OUTSIDE}:1000-1001", "2", "2", "2", "1"]
    assert "2 packets translated" in lines


def nat_of(tmp_path: Path, story: stories.Story, number: int, *rules: tuple[str, str]) -> list[str]:
    """What explain says of the translation of one packet, and what it leaves with."""
    it = explain.explain_packet([stories.write(tmp_path / "in.pcap", story)], number, tracking(*rules))
    lines = list(narrate.packet_lines(it))
    first = next((i for i, (label, _) in enumerate(lines) if label == "nat"), len(lines))
    return [text for label, text in lines[first:] if label in ("nat", "", "leaves")]


def test_explain_says_that_a_port_is_kept(tmp_path):
    said = nat_of(tmp_path, [(0, craft.udp(INSIDE, SERVER, 1000, 53))], 0, ("snat", OUTSIDE))
    assert said[:3] == [
        "destination: no rule matches: 198.51.100.1:53 kept",
        "source: snat 192.0.2.1: 10.0.0.2:1000 -> 192.0.2.1:1000, port kept",
        "as 192.0.2.1 > 198.51.100.1 sport 1000 dport 53",
    ]


def test_explain_says_who_has_the_port(tmp_path):
    story = [(0, craft.udp(INSIDE, SERVER, 2000, 53)), (1, craft.udp("10.0.0.3", SERVER, 2000, 53))]
    assert "the first free one of 1024-65535 from a random one on: port 2000 is taken by conn 0" in nat_of(tmp_path, story, 1, ("snat", OUTSIDE))[1]


def test_explain_says_that_another_connection_of_the_source_decided(tmp_path):
    story = [
        (0, craft.udp(INSIDE, SERVER, 2000, 53)), (1, craft.udp("10.0.0.3", SERVER, 2000, 53)), (2, craft.udp("10.0.0.3", "198.51.100.2", 2000, 53)),
    ]  # fmt: skip
    assert nat_of(tmp_path, story, 2, ("snat", OUTSIDE))[1].endswith("as conn 1 of the same source has it")


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        (("snat", f"{OUTSIDE}:7"), "the only one of the range"),
        (("snat", f"{OUTSIDE}:7-9"), "the first free one of 7-9 from a random one on: port 1000 is not among them"),
        (("snat", f"{OUTSIDE}:7-9,random"), "the first free one of 7-9 from a random one on: the rule asks for another port"),
        (("snat", f"{OUTSIDE}-192.0.2.9"), "the address by a hash of the source and the destination, port kept"),
        (("snat", f"{OUTSIDE}-192.0.2.9,persistent"), "the address by a hash of the source, port kept"),
        (("snat", "10.0.0.1-10.0.0.9"), "10.0.0.2:1000 kept, which lies in the range and is free"),
    ],
)
def test_explain_says_why_this_port(tmp_path, rule, why):
    assert nat_of(tmp_path, [(0, craft.udp(INSIDE, SERVER, 1000, 53))], 0, rule)[1].endswith(why)


def test_explain_says_how_a_destination_was_found(tmp_path):
    said = nat_of(tmp_path, [(0, craft.udp(INSIDE, OUTSIDE, 1000, 53))], 0, ("dnat", f"ip_proto udp dst_port 53 => {SERVER}:5000-5009"))
    assert said[0] == (
        "destination: dnat ip_proto udp dst_port 53 => 198.51.100.1:5000-5009: 192.0.2.1:53 -> 198.51.100.1:5000,"
        " the first free one of 5000-5009 from the lowest on: port 53 is not among them"
    )


def test_explain_says_that_nothing_was_free(tmp_path):
    story = [(0, craft.udp(INSIDE, SERVER, 1, 53)), (1, craft.udp("10.0.0.3", SERVER, 1, 53))]
    assert nat_of(tmp_path, story, 1, ("snat", f"{OUTSIDE}:1"))[1] == "source: snat 192.0.2.1:1: nothing free was found in it"


def test_explain_of_later_packets_and_errors(tmp_path):
    asked = craft.udp(OUTSIDE, SERVER, 1000, 53)
    story = [
        (0, craft.udp(INSIDE, SERVER, 1000, 53)), (1, craft.udp(SERVER, OUTSIDE, 53, 1000)), (2, craft.icmp_error(SERVER, OUTSIDE, 3, 3, asked)),
        (3, craft.udp("10.9.9.9", SERVER, 1, 2)), (4, craft.udp("10.9.9.9", SERVER, 1, 2)), (5, craft.icmp_error(SERVER, OUTSIDE, 5, 1, asked)),
    ]  # fmt: skip
    rule = ("snat", f"src_ip {INSIDE} => {OUTSIDE}")
    assert nat_of(tmp_path, story, 1, rule)[0] == "as its first packet was: destination 192.0.2.1:1000 -> 10.0.0.2:1000"
    error = nat_of(tmp_path, story, 2, rule)[0]
    assert error == "as the connection it is about: destination 192.0.2.1 -> 10.0.0.2; the packet it quotes the other way round"
    assert nat_of(tmp_path, story, 4, rule)[0] == "not translated: its first packet was not"
    assert nat_of(tmp_path, story, 5, rule)[0] == "this error cannot be translated, and is dropped"


def test_explain_without_rules_says_nothing_of_translation(tmp_path):
    assert nat_of(tmp_path, stories.question(), 0) == []


def test_a_connections_life_shows_what_its_answers_come_to(tmp_path):
    name = stories.write(tmp_path / "in.pcap", [(0, craft.udp(INSIDE, SERVER, 1000, 53))])
    life = list(narrate.life_lines(explain.explain_conn([name], 0, tracking(("snat", OUTSIDE))), 250))
    assert "10.0.0.2 > 198.51.100.1 sport 1000 dport 53, answered by 198.51.100.1 > 192.0.2.1 sport 53 dport 1000, [" in life[0][1]


def test_a_frame_is_changed_where_it_lies():
    """Pipeline.forward() does in place what leaving() does in a copy."""
    received, sent = between(INSIDE, OUTSIDE, SERVER)
    memory, frames = frames_of([frame for _, frame in received])
    writable = memory.copy()
    config = tracking(("snat", OUTSIDE)).config
    decisions = Pipeline(config).forward(writable, frames)
    assert writable.tobytes() == b"".join(frame for _, frame in sent)
    assert np.array_equal(decisions, Pipeline(config).process(memory, frames))


def test_frames_that_helpers_could_make_longer_are_not_changed_in_place():
    memory, frames = frames_of([craft.udp(INSIDE, SERVER, 1, 2)])
    with pytest.raises(ConfigError, match="forward: expected no helpers"):
        Pipeline(Config(helpers=(parse_helper("tftp:udp:69"),))).forward(memory.copy(), frames)


def shown(tmp_path: Path, frames: list[bytes], rule: str) -> str:
    """The summary of frames that came one after the other, under a SNAT rule."""
    story = [(i * MS, frame) for i, frame in enumerate(frames)]
    out = StringIO()
    print_summary(app.replay([stories.write(tmp_path / "in.pcap", story)], tracking(("snat", rule)), app.Outputs()), Console(file=out, width=100))
    return out.getvalue()


def test_addresses_that_begin_with_a_letter_are_seen_in_the_summary(tmp_path):
    """Square brackets are no markup here."""
    text = shown(tmp_path, [craft.tcp("fd00::2", "fd00::3", 40000, 80, "S", seq=100)], "[fd00::1]:2000-2999")
    assert "[fd00::2]:40000 >" in text and "snat [fd00::1]:2000-2999" in text


def test_connections_that_share_a_tuple_are_said_to(tmp_path):
    frames = [craft.udp(INSIDE, f"198.51.100.{i}", 5000, 53, b"?") for i in range(1, 4)]
    assert "may share a tuple" in shown(tmp_path, frames, f"{OUTSIDE}:2000")
    assert "may share a tuple" not in shown(tmp_path, frames, f"{OUTSIDE}:2000-2999")
