"""Fixtures for what reads captures."""

from __future__ import annotations

import pytest

from pcap_tests import stories


@pytest.fixture
def office(tmp_path):
    """The name of a capture of the office's story."""
    return stories.write(tmp_path / "office.pcap", stories.office())
