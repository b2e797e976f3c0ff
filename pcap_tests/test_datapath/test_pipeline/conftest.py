"""Fixtures for whole pipelines."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pcap_tests.conftest import TRACKERS
from pcap_tests.test_datapath.test_pipeline.laboratory import Lab, lab_of


@pytest.fixture(params=TRACKERS)
def lab(request: pytest.FixtureRequest) -> Callable[..., Lab]:
    """lab(rules, **settings): the rules at work, with the engine or the model."""
    return lambda text, **settings: lab_of(request.param, text, settings)
