"""explain --conn: a connection's life, from its first packet to its end."""

from __future__ import annotations

import re

import pytest

from ctcore.config import Config
from ctcore.errors import CtmirrorError
from datapath import app, explain, narrate
from datapath.craft import eth, sctp, sctp_chunk, sctp_init, tcp, udp
from pcap_tests import stories
from pcap_tests.stories import CLIENT, MS, SERVER
from pcap_tests.test_datapath.explained import INIT, INIT_ACK

HANDSHAKE = stories.closed_by_client()[:3]


@pytest.fixture(scope="module")
def office(tmp_path_factory):
    return stories.write(tmp_path_factory.mktemp("explain") / "office.pcap", stories.office())


def life(tmp_path, story, ordinal, **settings):
    capture = stories.write(tmp_path / "life.pcap", story)
    found = explain.explain_conn([capture], ordinal, app.Tracking(Config(**settings)))
    return found, list(narrate.life_lines(found, 250))


def test_a_life_has_every_packet_of_the_connection(tmp_path):
    found, lines = life(tmp_path, stories.office(), 0)
    assert [step.number for step in found.steps] == list(range(8))
    assert [label for label, _ in lines] == ["conn", "began", *[f"#{i}" for i in range(8)], "end"]
    assert lines[-1][1] == "alive at the end of the capture, in TIME_WAIT"


def test_a_life_includes_invalid_packets_and_errors_about_it(tmp_path):
    story = [*HANDSHAKE, (9 * MS, tcp(CLIENT, SERVER, 40000, 80, "SF")), (10 * MS, tcp(SERVER, CLIENT, 80, 40000, "FR"))]
    assert [step.number for step in life(tmp_path, story, 0)[0].steps] == [0, 1, 2, 3, 4]
    assert [step.number for step in life(tmp_path, stories.office(), 3)[0].steps] == [12, 13]


def test_a_life_shows_numbers_and_arrows_of_invalid_packets_too(tmp_path):
    story = [*HANDSHAKE, (9 * MS, tcp(SERVER, CLIENT, 80, 40000, "PA", seq=501, ack=9_000_000, payload=b"xyz"))]
    lines = dict(life(tmp_path, story, 0)[1])
    assert "-> SYN seq 100 len 0 " in lines["#0"]
    assert "<- SYN ACK seq 500 ack 101 len 0 " in lines["#1"]
    assert "<- ACK PSH seq 501 ack 9000000 len 3 invalid " in lines["#3"]


def test_a_life_names_chunks_and_icmp_types(tmp_path):
    story = [(0, sctp(CLIENT, SERVER, 5, 6, 0, sctp_init(77))), (MS, sctp(SERVER, CLIENT, 6, 5, 77, sctp_init(88, ack=True)))]
    lines = dict(life(tmp_path, story, 0)[1])
    assert "-> INIT     new " in lines["#0"]
    assert "<- INIT_ACK established " in lines["#1"]
    lines = dict(life(tmp_path, stories.office(), 2)[1])
    assert "-> echo request (8), code 0, id 77, seq 1 " in lines["#10"]
    lines = dict(life(tmp_path, stories.office(), 3)[1])
    assert "-> len 7 " in lines["#12"]
    assert "<- destination unreachable (3), code 1 related " in lines["#13"]


def test_a_life_ends(tmp_path):
    found, lines = life(tmp_path, [*stories.question(), (100 * 10**9, tcp(CLIENT, SERVER, 1, 2))], 0)
    assert len(found.steps) == 2
    assert lines[-1][1].startswith("timeout, 30.")


def test_a_life_has_one_clock(tmp_path):
    """A packet captured late, or with an earlier time stamp, comes when the one before it came, as for the tracker."""
    story = [(50 * MS, udp(CLIENT, SERVER, 9, 9)), *((20 * MS, data) for _, data in HANDSHAKE[:2]), (60 * MS, HANDSHAKE[2][1])]
    found, lines = life(tmp_path, story, 1)
    assert [step.ts - int(found.conn["start"]) for step in found.steps] == [0, 0, 10 * MS]
    assert [text.split()[0] for label, text in lines if label.startswith("#")] == ["+0.000000", "+0.000000", "+0.010000"]


def test_a_life_keeps_its_columns_where_states_have_long_names(tmp_path):
    tag, other = 77, 88
    story = [(0, INIT), (MS, INIT_ACK)]
    story += [((2 + n) * MS, sctp(*ends, vtag, sctp_chunk(kind))) for n, (ends, vtag, kind) in enumerate([
        ((CLIENT, SERVER, 5, 6), other, 10), ((SERVER, CLIENT, 6, 5), tag, 11), ((CLIENT, SERVER, 5, 6), other, 7),
        ((SERVER, CLIENT, 6, 5), tag, 8),
    ])]  # fmt: skip
    lines = [text for label, text in life(tmp_path, story, 0)[1] if label.startswith("#")]
    assert "SHUTDOWN_ACK_SENT" in lines[-1]
    assert len({re.search(r" \d+ s", line).end() for line in lines}) == 1


def test_a_life_that_is_not_there(tmp_path):
    with pytest.raises(CtmirrorError, match=r"no connection 99 in it: expected 0 to \d+$"):
        life(tmp_path, stories.office(), 99)
    with pytest.raises(CtmirrorError, match="no connection 0 in it: it has none"):
        life(tmp_path, [(0, eth(bytes(28), 0x0806))], 0)


def test_a_packet_by_its_number_in_wireshark(capfd, office):
    from datapath.cli import main

    assert main(["explain", office, "--frame", "15"]) == 0
    by_frame = capfd.readouterr().out
    assert main(["explain", office, "--packet", "14"]) == 0
    assert capfd.readouterr().out == by_frame
    assert by_frame.startswith(f"packet  #14 (frame 15 in Wireshark) of {office}, ")
    assert main(["explain", office, "--frame", "20"]) == 2
    assert "expected 0 to 18 (frames 1 to 19)" in capfd.readouterr().err


@pytest.mark.parametrize("argv", [[], ["--packet", "1", "--conn", "1"], ["--packet", "1", "--frame", "2"]])
def test_explain_wants_one_thing(capfd, office, argv):
    from datapath.cli import main

    assert main(["explain", office, *argv]) == 2
    assert "expected one of --packet N, --frame N and --conn N" in capfd.readouterr().err
