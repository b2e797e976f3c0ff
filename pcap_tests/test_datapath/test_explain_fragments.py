"""Fragments in explain and in the summary: who belongs to whom, and what died."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from ctcore.config import Config
from datapath import app, craft, explain, narrate, report
from pcap_tests import stories
from pcap_tests.stories import CLIENT, CLIENT6, MS, SERVER, SERVER6
from pcap_tests.test_datapath.explained import lines_of, said


def datagram(ident: int = 1, start: int = 0, sport: int = 5000, src: str = CLIENT, dst: str = SERVER) -> stories.Story:
    """A question of 40 bytes in three fragments, a millisecond after each other."""
    data = craft.udp_segment(src, dst, sport, 53, bytes(40))
    story = []
    for i, at in enumerate((0, 16, 32)):
        more = at < 32
        fields = {"ident": ident, "frag": at // 8 | more << 13} if ":" not in src else {"ext": ((craft.FRAGMENT, craft.fragment6(at, more, ident)),)}
        story.append((start + i * MS, craft.frame(src, dst, craft.UDP, data[at : at + 16], **fields)))
    return story


@pytest.mark.parametrize("ends", [(CLIENT, SERVER), (CLIENT6, SERVER6)])
def test_the_completing_fragment_is_its_datagram(tmp_path, ends):
    story = [(0, craft.udp(CLIENT, SERVER, 1, 2)), *datagram(src=ends[0], dst=ends[1])]
    lines = lines_of(tmp_path, story, 3)
    assert said(lines, "ip")[1] == "the last to come of 3 fragments of a datagram: #1, #2, #3"
    assert said(lines, "whole")[0].startswith(f"IPv{4 if ends[0] == CLIENT else 6} {ends[0]} > {ends[1]}, ")
    assert said(lines, "udp") == ["5000 > 53, 40 bytes of payload"]
    assert said(lines, "result") == ["new, original, conn 1; verdict accept"]


def test_a_held_fragment_names_who_completes_it(tmp_path):
    story = [*datagram()[:2], *datagram(ident=2), datagram()[2]]
    lines = lines_of(tmp_path, story, 0)
    assert said(lines, "ip")[1] == "one of 3 fragments of a datagram: #0, #1, #5; #5 completes it and gets the decision"
    assert said(lines, "result") == ["not-seen; verdict held"]


def test_one_whose_datagram_stays_incomplete_says_so(tmp_path):
    assert said(lines_of(tmp_path, datagram()[:2], 1), "ip")[1] == "no packet of this capture completes its datagram"


def test_an_atomic_fragment_says_what_it_is(tmp_path):
    atomic = craft.udp(CLIENT6, SERVER6, 5, 6, b"all", ext=((craft.FRAGMENT, craft.fragment6()),))
    lines = lines_of(tmp_path, [(0, atomic)], 0)
    assert said(lines, "ip")[1] == "an atomic fragment (RFC 6946): it is all of its datagram, which is tracked without the fragment header"
    assert "frag" in said(lines, "ip")[0] and "frag" not in said(lines, "whole")[0]


def test_fragments_of_earlier_captures_are_counted(tmp_path):
    first = stories.write(tmp_path / "a.pcap", datagram()[:2])
    second = stories.write(tmp_path / "b.pcap", [(MS, craft.udp(CLIENT, SERVER, 1, 2)), datagram()[2]])
    lines = list(narrate.packet_lines(explain.explain_packet([first, second], 1, app.Tracking())))
    assert said(lines, "ip")[1] == "the last to come of 3 fragments of a datagram: #1, 2 in captures before this one"


def test_a_dropped_fragment_says_why(tmp_path):
    story = [*datagram()[:2], datagram()[0]]
    assert said(lines_of(tmp_path, story, 2), "reason")[0].startswith("fragment_duplicate: a fragment that is already here")


def test_a_fragment_that_is_passed_on_is_a_packet_like_others(tmp_path):
    """IPv6, odd length and not the last: Linux does not reassemble it, but tracks it as it is."""
    data = craft.udp_segment(CLIENT6, SERVER6, 5000, 53, bytes(9))
    story = [(0, craft.frame(CLIENT6, SERVER6, craft.UDP, data, ext=((craft.FRAGMENT, craft.fragment6(0, True)),)))]
    lines = lines_of(tmp_path, story, 0)
    assert (said(lines, "checks"), said(lines, "result")) == (["headers sound"], ["new, original, conn 0; verdict accept"])
    assert said(lines, "lookup") == ["no connection has this tuple: conn 0 is made"]
    found = explain.explain_conn([stories.write(tmp_path / "life.pcap", story)], 0, app.Tracking())
    assert [step.what for step in found.steps] == ["len 9"]


def test_a_life_shows_datagrams(tmp_path):
    capture = stories.write(tmp_path / "life.pcap", [*datagram(), *datagram(ident=2, start=9 * MS)])
    found = explain.explain_conn([capture], 0, app.Tracking())
    assert [(step.number, step.what) for step in found.steps] == [(2, "len 40"), (5, "len 40")]


def summary_of(tmp_path, story, **settings) -> list[str]:
    capture = stories.write(tmp_path / "story.pcap", story)
    out = io.StringIO()
    report.print_summary(app.replay([capture], app.Tracking(Config(**settings)), app.Outputs()), Console(file=out, width=80))
    return out.getvalue().splitlines()


def test_the_summary_says_what_became_of_datagrams(tmp_path):
    overlap = craft.frame(CLIENT, SERVER, craft.UDP, bytes(24), ident=3, frag=0x2003)
    story = [*datagram(), *datagram(2)[:2], *datagram(3)[:2], (3 * MS, overlap), (2000 * MS, datagram(4)[0][1])]
    lines = summary_of(tmp_path, story, timeouts={"ipfrag_time": 1})
    at = lines.index("1 datagram put together from fragments")
    assert lines[at + 1 : at + 5] == [
        "1 datagram given up: timed out",
        "1 datagram given up: had fragments that overlap",
        "4 held fragments lost with them",
        "1 datagram not whole at the end",
    ]


def test_without_fragments_the_summary_is_silent_about_them(tmp_path):
    assert not any("datagram" in line for line in summary_of(tmp_path, stories.question()))
