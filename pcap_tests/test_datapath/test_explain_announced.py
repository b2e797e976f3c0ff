"""What explain says of helpers and of limits of zones: what a packet announced, what was awaited, how many connections there are and may be."""

from __future__ import annotations

from pathlib import Path

import pytest

from ctcore.nat_rules import HelperRule
from datapath import craft
from datapath.rule_text import parse_helper
from pcap_tests import stories
from pcap_tests.stories import CLIENT, MS, SERVER
from pcap_tests.test_datapath.command import run
from pcap_tests.test_datapath.explained import lines_of, said

FTP: tuple[HelperRule, ...] = (parse_helper("ftp:tcp:21"),)


def control(*payloads: bytes) -> stories.Story:
    """A control connection, and what the client says on it."""
    steps = [(CLIENT, "S", 100, 0, b""), (SERVER, "SA", 500, 101, b""), (CLIENT, "A", 101, 501, b"")]
    seq = 101
    for payload in payloads:
        steps.append((CLIENT, "PA", seq, 501, payload))
        seq += len(payload)
    ends = {CLIENT: (CLIENT, SERVER, 40000, 21), SERVER: (SERVER, CLIENT, 21, 40000)}
    return [(i * MS, craft.tcp(*ends[who], flags, seq=seq, ack=ack, payload=payload)) for i, (who, flags, seq, ack, payload) in enumerate(steps)]


def announced(number: int, tmp_path: Path) -> list[tuple[str, str]]:
    """USER says nothing (3); PORT announces 10.0.0.1:2000 (4); that is opened (5), and once more, from another port (6)."""
    story = control(b"USER x\r\n", b"PORT 10,0,0,1,7,208\r\n")
    story += [(10 * MS + i, craft.tcp(SERVER, CLIENT, 20 + i, 2000, "S", seq=9)) for i in range(2)]
    return lines_of(tmp_path, story, number, helpers=FTP)


def test_what_a_helper_read_and_what_that_announced(tmp_path: Path) -> None:
    assert said(announced(3, tmp_path), "helper") == ["ftp has read its payload, which announces no connection"]
    assert said(announced(4, tmp_path), "helper") == [
        f"ftp has read its payload, which announces tcp {SERVER} > {CLIENT} dport 2000, within 300 s",
    ]


@pytest.mark.parametrize("number", [0, 1, 2, 5, 6])
def test_of_a_packet_without_payload_no_helper_has_a_word(tmp_path: Path, number: int) -> None:
    assert "helper" not in dict(announced(number, tmp_path))


def test_a_connection_that_was_announced(tmp_path: Path) -> None:
    assert said(announced(5, tmp_path), "expected") == [f"conn 0 has announced this connection: tcp {SERVER} > {CLIENT} dport 2000"]
    assert "expected" not in dict(announced(6, tmp_path))


@pytest.mark.parametrize(
    ("limits", "words"),
    [({"zone_limit": 2}, "(--zone-limit 2)"), ({"zone_limits": {0: 2}}, "(--zone-limit 0=2)")],
)
def test_a_zone_that_is_full_is_told_with_its_numbers(tmp_path: Path, limits: dict[str, object], words: str) -> None:
    story = [(i * MS, craft.udp(CLIENT, SERVER, 5000 + i, 53)) for i in range(3)]
    lines = lines_of(tmp_path, story, 2, **limits)
    assert said(lines, "zone") == [f"zone 0 has 2 connections and may have 2 {words}"]
    assert said(lines, "reason")[0].startswith("zone_limit: ")
    assert "zone" not in dict(lines_of(tmp_path, story, 1, **limits))


def test_the_words_under_ended_by_are_explained_where_they_stand(capfd, tmp_path: Path) -> None:
    refused = [(0, craft.tcp(CLIENT, SERVER, 40000, 80, "S", seq=1)), (MS, craft.tcp(SERVER, CLIENT, 80, 40000, "RA", seq=0, ack=2))]
    _, out, _ = run(capfd, "replay", stories.write(tmp_path / "refused.pcap", refused))
    assert "reset 1" in out and "\nreset: a RST before any reply, which deletes at once\n" in out and "\nrst: " not in out
    _, out, _ = run(capfd, "replay", stories.write(tmp_path / "office.pcap", stories.office()))
    assert "\nreset: " not in out
