"""The fixtures of all tests, for those trackers that do `ct` actions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ctcore.config import Config
from pcap_tests.acting import ACTING
from pcap_tests.conftest import TRACKERS


@pytest.fixture(params=ACTING)
def make_tracker(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """make_tracker(tcp_liberal=True): a tracker with these settings. Its invariants are proved when the test has ended."""
    made = []

    def make(**settings: Any) -> Any:
        tracker = TRACKERS[request.param](Config(**settings))
        made.append(tracker)
        return tracker

    yield make
    for tracker in made:
        tracker.check()


@pytest.fixture
def tracker(make_tracker: Callable[..., Any]) -> Any:
    return make_tracker()
