"""Fixtures for what reads captures."""

from __future__ import annotations

import pytest

from pcap_tests import stories
from pcap_tests.test_datapath.command import run


@pytest.fixture
def office(tmp_path):
    """The name of a capture of the office's story."""
    return stories.write(tmp_path / "office.pcap", stories.office())


@pytest.fixture
def replayed(capfd, tmp_path):
    """Frames, a millisecond apart, through rules: what replay prints. The files are rules.tc and some.pcap, in tmp_path."""

    def through(rules: str, frames: list[bytes], *more: str) -> str:
        (tmp_path / "rules.tc").write_text(rules)
        capture = stories.write(tmp_path / "some.pcap", [(i * stories.MS, frame) for i, frame in enumerate(frames)])
        code, out, err = run(capfd, "replay", capture, "--rules", tmp_path / "rules.tc", *more)
        assert (code, err) == (0, "")
        return out

    return through
