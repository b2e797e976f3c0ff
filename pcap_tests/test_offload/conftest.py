"""Fixtures for what replays captures behind a NIC."""

from __future__ import annotations

import numpy as np
import pytest

from datapath.frame import FRAME_DTYPE
from offload.simnic import profile
from offload.simnic.nic import Nic


@pytest.fixture(scope="session")
def compiled_nic() -> None:
    """A NIC is compiled by now, so that no command says that it has to be waited for."""
    Nic(profile.load("none")).process(np.zeros(0, dtype=np.uint8), np.zeros(0, dtype=FRAME_DTYPE))
