"""An explained packet for tests: its lines, by their labels. Not here: tests."""

from __future__ import annotations

from ctcore.config import Config
from datapath import app, explain, narrate
from datapath.craft import sctp, sctp_init
from pcap_tests import stories
from pcap_tests.stories import CLIENT, SERVER

INIT = sctp(CLIENT, SERVER, 5, 6, 0, sctp_init(77))
INIT_ACK = sctp(SERVER, CLIENT, 6, 5, 77, sctp_init(88, ack=True))


def lines_of(tmp_path, story, number, **settings):
    """An explained packet as a list of (label, text)."""
    capture = stories.write(tmp_path / "story.pcap", story)
    return list(narrate.packet_lines(explain.explain_packet([capture], number, app.Tracking(Config(**settings)))))


def said(lines, label):
    """The text of the first line with a label, and of those under it."""
    at = next(i for i, (name, _) in enumerate(lines) if name == label)
    texts = [lines[at][1]]
    for name, text in lines[at + 1 :]:
        if name:
            break
        texts.append(text)
    return texts
