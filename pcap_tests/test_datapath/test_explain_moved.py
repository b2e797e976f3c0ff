"""What explain says of sequence numbers that a helper has moved: the window check goes by the numbers of each sender, not by those on the wire.

A client behind translation announces itself; its command becomes longer, so the server acknowledges bytes that the client has never sent.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from ctcore.config import Config
from datapath import app, craft, explain, narrate
from datapath.rule_text import parse_helper, parse_rule
from pcap_tests import stories

INSIDE, SERVER, OUTSIDE = "10.0.0.1", "10.0.0.2", "192.168.100.99"
COMMAND, LEFT = b"PORT 10,0,0,1,7,208\r\n", b"PORT 192,168,100,99,7,208\r\n"
ADDED = len(LEFT) - len(COMMAND)
HERE, THERE = (INSIDE, SERVER, 40000, 21), (SERVER, OUTSIDE, 21, 40000)
BEHIND = 109 + len(COMMAND)  # the client's numbers
FRAMES = [
    craft.tcp(*HERE, "S", seq=100),
    craft.tcp(*THERE, "SA", seq=500, ack=101),
    craft.tcp(*HERE, "A", seq=101, ack=501, payload=b"USER x\r\n"),
    craft.tcp(*HERE, "A", seq=109, ack=501, payload=COMMAND),
    craft.tcp(*THERE, "PA", seq=501, ack=BEHIND + ADDED, payload=b"200 ok\r\n"),
    craft.tcp(*HERE, "PA", seq=BEHIND, ack=509, payload=b"LIST\r\n"),
    craft.tcp(*THERE, "A", seq=509, ack=BEHIND + ADDED + 7),
    craft.icmp_error(INSIDE, SERVER, 3, 3, craft.tcp(SERVER, INSIDE, 21, 40000, "A", seq=509, ack=BEHIND)),
]
NUMBERS = {"answer": 4, "later": 5, "too far": 6, "error": 7}


def explained(tmp_path: Path, name: str) -> list[tuple[str, str]]:
    config = Config(nat=(parse_rule("snat", f"src_ip {INSIDE} => {OUTSIDE}"),), helpers=(parse_helper("ftp:tcp:21"),))
    capture = stories.write(tmp_path / "in.pcap", [(i * stories.MS, frame) for i, frame in enumerate(FRAMES)])
    return list(narrate.packet_lines(explain.explain_packet([capture], NUMBERS[name], app.Tracking(config))))


def test_an_acknowledgement_is_compared_without_what_was_added(tmp_path: Path) -> None:
    lines = [text for _, text in explained(tmp_path, "answer")]
    assert f"seq 501, end 509, ack {BEHIND}" in lines
    assert f"the ack came as {BEHIND + ADDED}: {ADDED} bytes of it are what a helper has added to the other side's payload" in lines
    assert any(text.startswith("III ") and text.endswith(f"{BEHIND} <= {BEHIND}: holds") for text in lines)
    assert f"numbers moved by what a helper has changed before: ack {BEHIND + ADDED} -> {BEHIND}" in lines
    assert any("tcp_timeout_established" in text or "tcp_timeout_unacknowledged" in text for text in lines)


def test_later_numbers_of_the_client_are_its_own(tmp_path: Path) -> None:
    lines = [text for _, text in explained(tmp_path, "later")]
    assert f"seq {BEHIND}, end {BEHIND + 6}, ack 509" in lines
    assert f"numbers moved by what a helper has changed before: seq {BEHIND} -> {BEHIND + ADDED}" in lines
    assert not any("a helper has added" in text for text in lines)


def test_what_nobody_has_sent_is_found_in_the_senders_numbers(tmp_path: Path) -> None:
    """One byte beyond LIST."""
    lines = [text for _, text in explained(tmp_path, "too far")]
    assert f"III sack <= receiver.end                                  {BEHIND + 7} <= {BEHIND + 6}: does not hold: ACK over: invalid" in lines
    assert any(text.startswith("tcp_ack_over") for text in lines)


def test_an_error_is_moved_like_a_segment(tmp_path: Path) -> None:
    assert any(text.startswith("and moved like a segment of it, as in Linux:") for _, text in explained(tmp_path, "error"))


@pytest.mark.parametrize("name", NUMBERS)
def test_the_model_agrees_with_the_decision(tmp_path: Path, name: str) -> None:
    """An acknowledgement compared as it came would be beyond all that was sent: invalid, and the timeout not renewed."""
    valid = next(text for label, text in explained(tmp_path, name) if label == "result").startswith(("established", "related"))
    assert valid == (name != "too far")
