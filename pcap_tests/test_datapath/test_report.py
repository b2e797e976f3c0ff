"""The summary for people: what it says, how it fits, and the hints it gives."""

from __future__ import annotations

import io
import json
import re

import pytest
from rich.console import Console

from ctcore.config import CAPACITY_LIMIT, UNLIMITED_CAPACITY, Config
from ctcore.reasons import REASONS
from ctcore.types import Reason
from datapath import app, evidence, explain, hints, narrate, report
from datapath.cli import main
from datapath.commands import options
from datapath.craft import TCP, UDP, checksum, eth, icmp_error, pseudo, tcp, udp
from datapath.frame import frames_of
from datapath.sink import PcapSink
from pcap_tests import stories
from pcap_tests.capture_files import enhanced, interface, section
from pcap_tests.stories import CLIENT, MS, SERVER


def summary(captures, width=80, tracking=None, **how):
    """The summary of a replay as a pipe sees it."""
    result = app.replay(captures, tracking or app.Tracking(), app.Outputs())
    out = io.StringIO()
    report.print_summary(result, Console(file=out, width=width), **how)
    return out.getvalue()


@pytest.fixture
def office(tmp_path):
    return stories.write(tmp_path / "office.pcap", stories.office())


def told(tmp_path, story, **settings):
    return summary([stories.write(tmp_path / "story.pcap", story)], tracking=app.Tracking(Config(**settings)))


def test_what_happened(office):
    text = summary([office])
    lines = text.splitlines()
    assert lines[0] == f"{office}   pcap, Ethernet"
    assert re.fullmatch(r"19 packets, 1\.10 KB, 60 ms of traffic; replayed in .*s, .*pps", lines[1])
    assert re.search(r"^established +9 +47\.4% +569 B$", text, re.MULTILINE)
    assert re.search(r"^not-seen +2 +10\.5% +92 B$", text, re.MULTILINE)
    assert re.search(r"^tcp +1 +alive 1$", text, re.MULTILINE)
    assert re.search(r"^udp +2 +alive 2$", text, re.MULTILINE)
    assert re.search(r"^tcp 10\.0\.0\.1:40000 > 10\.0\.0\.2:80 +0 +4\.0 ms +8 +423 B +TIME_WAIT$", text, re.MULTILINE)


def test_the_largest_connection_can_be_explained(office, capfd):
    from datapath.cli import main

    command = next(line for line in summary([office]).splitlines() if "--conn" in line)
    assert command == f"  ctmirror explain {office} --conn 0"
    assert main(command.split()[1:]) == 0
    assert "conn 0: 10.0.0.1 > 10.0.0.2 sport 40000" in capfd.readouterr().out


def test_summary_records_and_explain_agree_on_how_connections_ended(tmp_path):
    reset = [(50 * MS, tcp(CLIENT, SERVER, 7, 80, "S", seq=1)), (51 * MS, tcp(CLIENT, SERVER, 7, 80, "R", seq=2))]
    story = [*stories.closed_by_client(), *reset, (500 * 10**9, tcp(CLIENT, SERVER, 8, 80, "S"))]
    capture = stories.write(tmp_path / "ends.pcap", story)
    assert re.search(r"^tcp +3 +fin 1  reset 1  alive 1$", summary([capture]), re.MULTILINE)
    app.replay([capture], app.Tracking(), app.Outputs(conns=str(tmp_path / "c.jsonl")))
    ends = {record["conn"]: record["end"] for record in map(json.loads, (tmp_path / "c.jsonl").read_text().splitlines())}
    assert ends == {0: "timeout", 1: "reset", 2: "alive"}
    told = [list(narrate.life_lines(explain.explain_conn([capture], conn, app.Tracking()), 250))[-1][1] for conn in range(3)]
    assert [text.partition(",")[0] for text in told] == ["fin (timeout in TIME_WAIT)", "reset in CLOSE", "alive at the end of the capture"]


def test_what_bytes_are_is_said(office):
    """Those of packets by state are frames on the wire, those of connections IP packets, as the kernel counts them."""
    text = summary([office])
    assert re.search(r"^state +packets +share +wire bytes$", text, re.MULTILINE)
    assert re.search(r"^largest connections .* IP bytes +state$", text, re.MULTILINE)


def test_an_icmp_connection_shows_its_code(office):
    assert re.search(r"^icmp 10\.0\.0\.1 > 10\.0\.0\.2 type 8 code 0 id 77 ", summary([office], 120), re.MULTILINE)


def test_traffic_lasts_from_the_earliest_to_the_latest_packet(tmp_path):
    assert ", 20 ms of traffic; " in told(
        tmp_path, [(15 * MS, udp(CLIENT, SERVER, 1, 1)), (0, udp(CLIENT, SERVER, 1, 1)), (20 * MS, udp(CLIENT, SERVER, 1, 1))]
    )


def test_long_addresses_are_broken_behind_the_arrow_only(tmp_path):
    a, b = "2001:db8:1::10", "2001:db8:2::10"
    capture = stories.write(tmp_path / "six.pcap", stories.closed_by_client(a=a, b=b))
    lines = summary([capture], 80).splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("largest"))
    assert lines[at + 1].startswith(f"tcp [{a}]:40000 >  ")
    assert lines[at + 2] == f"[{b}]:80"
    assert f"tcp [{a}]:40000 > [{b}]:80  " in summary([capture], 140)


@pytest.mark.parametrize("width", [20, 30, 45])
def test_on_a_narrow_terminal_connections_stand_above_their_figures(office, width):
    lines = summary([office], width).splitlines()
    at = lines.index("largest connections")
    assert lines[at + 1 : at + 3] == ["tcp 10.0.0.1:40000 > 10.0.0.2:80", "  conn 0, 4.0 ms long, packets: 8, 423 B of IP sent, TIME_WAIT"]


def test_why_and_what_to_type_next(office):
    lines = summary([office]).splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("bad TCP checksum"))
    assert lines[at - 1].split() == ["why", "invalid", "packets", "first", "at"]
    assert lines[at].split()[-2:] == ["1", "#14"]
    assert lines[at + 1] == f"  ctmirror explain {office} --packet 14"


def test_the_command_that_is_suggested_works(office, capfd):
    from datapath.cli import main

    for line in summary([office]).splitlines():
        if line.startswith("  ctmirror "):
            assert main(line.split()[1:]) == 0
    assert "reason   tcp_not_opening" in capfd.readouterr().out.replace("reason  ", "reason   ")


def test_suggested_commands_repeat_the_options_given(office):
    tracking = app.Tracking(Config(checksum=False), flags="--checksum 0")
    assert f"ctmirror explain {office} --packet 15 --checksum 0" in summary([office], tracking=tracking)


def test_flags_are_the_options_given_on_the_command_line(monkeypatch, office):
    import click

    seen = []

    @click.command()
    @options.tracking_options
    def probe(tracking):
        seen.append(tracking.flags)

    probe.main(["--checksum", "0", "--zone", "3", "--timeouts", "udp_timeout=9"], standalone_mode=False)
    probe.main([], standalone_mode=False)
    assert seen == ["--checksum 0 --timeouts udp_timeout=9 --zone 3", ""]


def test_a_packet_of_a_later_capture_is_explained_with_those_before_it(tmp_path):
    first = stories.write(tmp_path / "a.pcap", stories.closed_by_client())
    second = stories.write(tmp_path / "b.pcap", [*stories.question(), (5 * MS, tcp(SERVER, CLIENT, 80, 9, "SA", seq=1, ack=1))])
    assert f"ctmirror explain {first} {second} --packet 2" in summary([first, second])


@pytest.mark.parametrize("width", [80, 100, 200])
def test_nothing_but_commands_is_wider_than_the_console(office, width):
    for line in summary([office], width).splitlines():
        assert len(line) <= width or "ctmirror explain" in line or office in line
        assert line == line.rstrip()


def test_tables_stand_side_by_side_where_there_is_room(office):
    assert "protocol" in next(line for line in summary([office], 120).splitlines() if line.startswith("state"))
    assert "protocol" not in next(line for line in summary([office], 80).splitlines() if line.startswith("state"))


def test_commands_stand_beside_their_reason_on_a_wide_terminal(office):
    line = next(line for line in summary([office], 300).splitlines() if line.startswith("bad TCP checksum"))
    assert line.endswith("--packet 14")


def test_an_empty_capture(tmp_path):
    assert "0 packets" in told(tmp_path, [])


def test_sums_agree_with_the_capture(office):
    text = summary([office])
    shares = [float(share) for share in re.findall(r"([\d.]+)%", text)]
    assert sum(shares) == pytest.approx(100, abs=0.5)


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 KB"), (61_300_000, "61.3 MB"), (999_999, "1.00 MB"), (5_000_000_000_000_000, "5000 TB")],
)
def test_sizes(number, text):
    assert report.size_text(number) == text


@pytest.mark.parametrize(
    ("ns", "text"),
    [(0, "0.0 ms"), (4 * MS, "4.0 ms"), (250 * MS, "250 ms"), (1500 * MS, "1.5 s"), (842 * 10**9, "14m 02s"), (7260 * 10**9, "2h 01m"),
     (200_000 * 10**9, "2d 07h")],
)  # fmt: skip
def test_durations(ns, text):
    assert report.duration_text(ns) == text


def test_every_effect_has_a_heading():
    assert {reason.effect for reason in REASONS} - {"ok"} == set(report.WHY)


# --- hints -----------------------------------------------------------------------------------------------------------------------------


def partial(src, dst, make, proto, header, payload=b""):
    """A frame as a host captures its own, before its NIC has calculated the checksum: the field holds the pseudo-header's sum."""
    total = ~checksum(pseudo(src, dst, proto, header + len(payload))) & 0xFFFF
    return make(src, dst, 1000, 80, payload=payload, l4_checksum=total)


def unwrapped(text):
    return " ".join(text.split())


@pytest.mark.parametrize("frame", [
    partial(CLIENT, SERVER, tcp, TCP, 20, b"x"),
    partial(CLIENT, SERVER, udp, UDP, 8, b"xyz"),
    partial(stories.CLIENT6, stories.SERVER6, tcp, TCP, 20, b"x"),
    tcp(CLIENT, SERVER, 1000, 80, payload=b"x", l4_checksum=0),
    tcp(CLIENT, SERVER, 1000, 80, payload=bytes(3000), l4_checksum=0x1234),  # many segments in one
])  # fmt: skip
def test_one_checksum_as_an_offloading_nic_leaves_it_is_enough_for_a_hint(tmp_path, frame):
    story = [*stories.closed_by_client(), (10**9, frame)]
    assert "1 of 1 bad TCP and UDP checksums is what an offloading NIC leaves: try --checksum 0" in unwrapped(told(tmp_path, story))


def test_checksums_that_are_bad_are_called_bad(tmp_path):
    text = unwrapped(told(tmp_path, [(i, tcp(CLIENT, SERVER, 1000 + i, 80, l4_checksum=0x1234)) for i in range(3)]))
    assert "none of 3 bad TCP and UDP checksums is what an offloading NIC leaves: they are really bad" in text
    assert "--checksum 0" not in text


def test_a_bounded_number_of_bad_checksums_is_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence, "ENOUGH", 7)
    monkeypatch.setattr(app.Run, "chunk", 5)
    story = [(i, tcp(CLIENT, SERVER, 1000 + i, 80, l4_checksum=0 if i % 2 else 0x1234)) for i in range(20)]
    text = unwrapped(told(tmp_path, story))
    assert "3 of the first 7 bad TCP and UDP checksums are what an offloading NIC leaves: try --checksum 0; the others are really bad" in text


def test_a_capture_of_one_direction_is_recognised(tmp_path):
    one_side = [step for i in range(12) for j, step in enumerate(stories.closed_by_client(41000 + i, i * 20 * MS)) if j not in (1, 4, 6)]
    assert "12 of 12 TCP connections were seen in one direction only" in " ".join(told(tmp_path, one_side).split())


def test_a_scan_is_not_taken_for_a_capture_of_one_direction(tmp_path):
    assert "one direction only" not in told(tmp_path, [(i, tcp(CLIENT, SERVER, 1000 + i, 80)) for i in range(50)])


def test_timestamps_going_back_are_told(tmp_path):
    assert "timestamps went back once" in told(tmp_path, [(5 * MS, stories.question()[0][1]), (0, stories.question()[1][1])])


def early(path, *stamps):
    """A capture whose interface says that all of its timestamps are 10 s less."""
    path.write_bytes(section() + interface(offset=-10) + b"".join(enhanced(udp(CLIENT, SERVER, 1, 2), stamp) for stamp in stamps))
    return str(path)


def test_timestamps_before_1970_are_told(tmp_path):
    capture = early(tmp_path / "early.pcapng", 1_000_000, 5_000_000, 20_000_000)
    assert "timestamps before 1970: these packets are tracked as if all had come at its first moment" in unwrapped(summary([capture]))
    assert "before 1970:" not in unwrapped(summary([early(tmp_path / "late.pcapng", 20_000_000)]))


@pytest.mark.parametrize(("ending", "stamps", "changed"), [
    ("pcapng", (1_000_000, 5_000_000, 20_000_000), "2 packets"),
    ("pcap", (20_000_000, (1 << 32) * 1_000_000 + 20_000_000), "1 packet"),
    ("pcapng", (20_000_000, (1 << 32) * 1_000_000 + 20_000_000), None),
])  # fmt: skip
def test_timestamps_that_the_written_file_cannot_hold_are_told(tmp_path, capfd, ending, stamps, changed):
    main(["replay", early(tmp_path / "in.pcapng", *stamps), "-w", str(tmp_path / f"out.{ending}")])
    text = unwrapped(capfd.readouterr().out)
    assert ("written by -w with another timestamp" in text) == bool(changed)
    if changed:
        assert f"{changed} written by -w with another timestamp: captures hold none before 1970" in text


def test_captures_of_the_same_time_are_to_be_merged(tmp_path):
    captures = [stories.write(tmp_path / f"{name}.pcap", stories.question()) for name in "ab"]
    text = unwrapped(summary(captures))
    assert "timestamps went back once; the clock was held still meanwhile: merge captures of the same time with mergecap first" in text


def test_bad_header_checksums_in_numbers_are_told(tmp_path):
    bad = [data[:24] + b"\x12\x34" + data[26:] for _, data in stories.closed_by_client()]
    assert "8 bad IPv4 header checksums" in unwrapped(told(tmp_path, list(enumerate(bad))))
    assert "header checksums:" not in unwrapped(told(tmp_path, list(enumerate(bad[:2]))))


def test_one_packet_is_one_packet(tmp_path):
    assert "\n1 packet, 42 B, " in told(tmp_path, [(0, udp(CLIENT, SERVER, 1, 2))])


def test_a_full_table_is_told(tmp_path):
    conns = [step for i in range(8) for step in stories.closed_by_client(42000 + i, i * 10 * MS)[:3]]
    text = told(tmp_path, [*conns, (10**9, udp(CLIENT, SERVER, 1, 2))], max=8)
    assert "because 8 connections are the limit; try --max 16" in text


def table_full(tmp_path, config, **counters):
    """What the hint says of a full table with these settings and counters."""
    result = app.replay([stories.write(tmp_path / "story.pcap", stories.office())], app.Tracking(config), app.Outputs())
    result.stats["reason_packets"][Reason.R_TABLE_FULL] = 5
    result.counters.update(counters)
    return hints.table_full(result)


def test_a_full_table_without_a_limit_of_its_own_names_the_one_there_is(tmp_path):
    assert "because 4,194,304 connections are the limit; try --max 8388608" in table_full(tmp_path, Config(max=0), new=UNLIMITED_CAPACITY)
    assert table_full(tmp_path, Config(max=CAPACITY_LIMIT), new=CAPACITY_LIMIT).endswith("are the limit")


def test_a_table_that_is_full_in_one_place_only_has_collisions(tmp_path):
    assert "collide" in table_full(tmp_path, Config(max=100), new=99)


def test_places_that_are_reserved_are_no_collision(tmp_path):
    assert "are reserved for other zones" in table_full(tmp_path, Config(max=100, zone_reserves={5: 50}), new=50)


def test_packets_that_are_not_ip_are_told(tmp_path):
    assert "are not IP" in told(tmp_path, [(i, eth(bytes(28), 0x0806)) for i in range(5)])


def test_snapped_packets_are_told(tmp_path):
    memory, frames = frames_of([tcp(CLIENT, SERVER, 1, 2)], stories.T)
    frames["caplen"] = 30
    with PcapSink(tmp_path / "snapped.pcap") as sink:
        sink.write(memory, frames)
    assert "snap length was too small" in " ".join(summary([str(tmp_path / "snapped.pcap")]).split())


def test_lost_events_are_told(office):
    result = app.replay([office], app.Tracking(), app.Outputs())
    result.events_lost = 3
    assert any("3 events lost" in hint for hint in report.hints_of(result))


def test_a_quiet_capture_has_no_hints(tmp_path):
    quoted = udp(CLIENT, SERVER, 1, 2)
    assert "hint" not in told(tmp_path, [*stories.closed_by_client(), (10**9, quoted), (10**9 + 1, icmp_error(SERVER, CLIENT, 3, 3, quoted))])


def test_the_event_buffer_holds_the_end_of_every_connection():
    config = app.with_events(Config(max=1 << 18), everything=False, ends=True)
    assert config.event_buffer >= (1 << 18) + 4 * app.CHUNK + app.MANY_EVENTS


@pytest.mark.parametrize("limit", [0, 16777216, CAPACITY_LIMIT])
def test_large_tables_need_no_memory_until_they_fill(office, limit):
    result = app.replay([office], app.Tracking(Config(max=limit)), app.Outputs())
    assert result.stats["total_packets"] == 19
    assert result.tracking.config.event_buffer == result.tracking.config.capacity + 4 * app.CHUNK + app.MANY_EVENTS


def test_no_event_is_lost_where_every_connection_ends_at_once(tmp_path):
    """A jump of time ends as many connections as the table holds, while the packets of the same chunk open others."""
    opened = [(i, udp(CLIENT, SERVER, 1024 + i, 53)) for i in range(3000)]
    later = [(10**12 + i, udp(CLIENT, SERVER, 1024 + i, 53)) for i in range(3000)]
    capture = stories.write(tmp_path / "jump.pcap", [*opened, *later])
    result = app.replay([capture], app.Tracking(Config(max=3000)), app.Outputs(events=str(tmp_path / "events.jsonl")))
    assert result.events_lost == 0
    kinds = [line.split('"', 4)[3] for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert (kinds.count("new"), kinds.count("destroy")) == (6000, 3000)
