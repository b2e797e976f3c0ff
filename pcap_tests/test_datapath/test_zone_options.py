"""Zones on the command line: with a direction, with limits and reserves; and what is said of those who had to make way."""

from __future__ import annotations

import json

import pytest

from ctcore.config import Config
from datapath import app, craft
from datapath.zones import limit_flags, limits_of, read_places, read_zone, zone_text
from pcap_tests import stories
from pcap_tests.stories import CLIENT, MS, SERVER
from pcap_tests.test_datapath.command import records, run


@pytest.fixture
def flood(tmp_path):
    """Six questions from six ports."""
    return stories.write(tmp_path / "flood.pcap", [(n * MS, craft.udp(CLIENT, SERVER, 1000 + n, 53)) for n in range(6)])


@pytest.mark.parametrize("text, zone", [("0", (0, "both")), ("65535:original", (65535, "original")), ("7:reply", (7, "reply"))])
def test_a_zone_is_read_and_written(text, zone):
    assert read_zone(text) == zone
    assert zone_text(*zone) == text


@pytest.mark.parametrize("text", ["", "x", "-1", "65536", "5:", "5:both", "5:forward", ":reply", "5:reply:reply", "५"])
def test_what_is_no_zone(text):
    assert read_zone(text) is None


@pytest.mark.parametrize("text, places", [("10", (None, 10)), ("5=10", (5, 10)), ("0=0", (0, 0))])
def test_places_are_read(text, places):
    assert read_places(text, zone_needed=False) == places
    assert read_places(text, zone_needed=True) == (places if places[0] is not None else None)


@pytest.mark.parametrize("text", ["", "=", "5=", "=5", "5=x", "65536=1", "5:reply=1", "5=1=2", "-1"])
def test_what_are_no_places(text):
    assert read_places(text, zone_needed=False) is None


def test_limits_are_put_together_and_taken_apart():
    limit, limits = limits_of([(None, 5), (1, 10), (1, 11), (2, 0)])
    assert (limit, limits) == (5, {1: 11, 2: 0})
    config = Config(zone_limit=limit, zone_limits=limits, zone_reserves={1: 3})
    assert limit_flags(config) == ["--zone-limit", "5", "--zone-limit", "1=11", "--zone-limit", "2=0", "--zone-reserve", "1=3"]


@pytest.mark.parametrize(
    "options, expected",
    [
        (["--zone", "5:both"], "'5:both': expected a number from 0 to 65,535, with :original or :reply"),
        (["--zone-limit", "x"], "'x': expected [ZONE=]N, a zone up to 65535 and a number of connections, as in 5=1000"),
        (["--zone-reserve", "10"], "'10': expected ZONE=N"),
        (["--zone-reserve", "1=10", "--max", "5"], "zone_reserves: 10 in all: expected at most max, 5"),
    ],
)
def test_mistakes_are_one_line(capfd, flood, options, expected):
    code, _, err = run(capfd, "replay", flood, *options)
    assert code == 2
    assert expected in err and err.count("\n") == 1


@pytest.mark.parametrize("direction", ["", ":original", ":reply"])
def test_records_have_the_zone_whatever_its_direction(capfd, flood, direction):
    _, out, _ = run(capfd, "replay", flood, "--zone", f"5{direction}", "--packets", "-", "--quiet")
    assert {record["zone"] for record in records(out)} == {5}
    _, out, _ = run(capfd, "replay", flood, "--zone", f"5{direction}", "--conns", "-", "--quiet")
    assert {record["zone"] for record in records(out)} == {5}


def test_a_limit_drops_what_is_beyond(capfd, flood):
    _, out, _ = run(capfd, "replay", flood, "--zone", "5", "--zone-limit", "100", "--zone-limit", "5=4", "--packets", "-", "--quiet")
    assert [record["reason"] for record in records(out)] == ["ok"] * 4 + ["zone_limit"] * 2
    assert {record["verdict"] for record in records(out)[4:]} == {"drop"}


def test_a_suggested_command_repeats_the_limits(capfd, flood):
    _, out, _ = run(capfd, "replay", flood, "--zone", "5:original", "--zone-limit", "5=4", "--zone-reserve", "5=2")
    assert f"ctmirror explain {flood} --packet 4 --zone 5:original --zone-limit 5=4 --zone-reserve 5=2" in out
    assert run(capfd, "explain", flood, "--packet", "4", "--zone", "5:original", "--zone-limit", "5=4", "--zone-reserve", "5=2")[0] == 0


def test_events_say_for_whom_a_connection_was_evicted(capfd, flood):
    _, out, _ = run(capfd, "replay", flood, "--zone", "7", "--max", "3", "--buckets", "1", "--events", "-", "--quiet")
    evicted = [record for record in records(out) if record["end"] == "evicted"]
    assert sorted(record["conn"] for record in evicted) == [0, 1, 2]
    newcomer = {"why": "table", "zone": 7, "proto": "udp", "src": CLIENT, "dst": SERVER, "sport": 1003, "dport": 53}
    assert all(record["evicted_for"] == newcomer for record in evicted)
    assert all(list(record)[-1] == "evicted_for" for record in evicted)
    assert not any("evicted_for" in record for record in records(out) if record["end"] != "evicted")


def test_they_say_so_in_csv(capfd, flood):
    _, out, _ = run(capfd, "replay", flood, "--max", "3", "--buckets", "1", "--events", "-", "--format", "csv", "--quiet")
    head, *lines = out.splitlines()
    assert head.split(",")[-11:-7] == ["evicted_for_why", "evicted_for_zone", "evicted_for_proto", "evicted_for_src"]
    assert sum(f"table,0,udp,{CLIENT},{SERVER},1003,53" in line for line in lines) == 3


def test_the_summary_names_the_first_ones(capfd, flood):
    _, out, _ = run(capfd, "replay", flood, "--max", "1", "--buckets", "1")
    assert "5 connections evicted" in out
    assert f"  conn 0, udp {CLIENT}:1000 > {SERVER}:53\n    for udp {CLIENT}:1001 > {SERVER}:53: the table was full" in out
    assert "conn 3" not in out.split("evicted")[1].split("each one's")[0]
    assert "says for whom" in out


def test_without_evictions_it_says_nothing(capfd, flood):
    assert "evicted" not in run(capfd, "replay", flood)[1]


def test_none_is_missing_in_the_records_however_many(tmp_path):
    """A table of few places is turned over again and again within one look at the events."""
    story = [(n * 1000, craft.udp(CLIENT, SERVER, n % 60000, 53)) for n in range(9000)]
    out = tmp_path / "events.jsonl"
    tracking = app.Tracking(Config(max=16, buckets=1, eviction_buffer=1))
    result = app.replay([stories.write(tmp_path / "long.pcap", story)], tracking, app.Outputs(events=str(out)))
    evicted = [record for record in map(json.loads, out.read_text().splitlines()) if record["end"] == "evicted"]
    assert len(evicted) == result.evictions.number == result.counters["early_drop"] > 8000
    assert all("evicted_for" in record for record in evicted)
    assert result.counters["evictions_lost"] == 0


@pytest.mark.parametrize("zone", ["5:original", "5:reply"])
@pytest.mark.parametrize("capture", ["demo", "unreachable", "short-connections"])
def test_the_kernel_says_the_same_of_zones_of_one_direction(running_kernel, capfd, capture, zone):
    code, out, _ = run(capfd, "diff", f"pcap_tests/captures/{capture}.pcap", "--zone", zone)
    assert code == 0, out


def test_diff_does_not_take_what_the_kernel_has_not(capfd, flood):
    code, _, err = run(capfd, "diff", flood, "--zone-limit", "5")
    assert code == 2 and "--zone-limit" in err
