"""Fixtures for what replays captures behind a NIC."""

from __future__ import annotations

import pytest

from datapath.frame import FRAME_DTYPE
from offload.simnic.ready import ready


@pytest.fixture(scope="session")
def compiled_nic() -> None:
    """A NIC is compiled by now, so that no command says that it has to be waited for."""
    ready(FRAME_DTYPE)
