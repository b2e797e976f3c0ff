"""Fixtures for what reads captures, and for what is asked of the machine's own tc."""

from __future__ import annotations

import pytest

from pcap_tests import stories
from pcap_tests.required import cannot
from pcap_tests.tc_itself import Tc, obstacle
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


@pytest.fixture(scope="module")
def tc(tmp_path_factory):
    if why := obstacle():
        cannot(f"tc is not asked: {why}")
    asked = Tc(tmp_path_factory.mktemp("tc"))
    yield asked
    asked.close()


@pytest.fixture(scope="module")
def knows_helpers(tc) -> bool:
    """`ct helper` came with iproute2 6.2; before, tc takes the word for an action that it does not know."""
    return "helper" in tc.said("filter", "add", "dev", "lo", "ingress", "flower", "action", "ct", "help")
