"""Fixtures for all tests: both trackers, the engine and its readable twin, behind one name."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from ctcore.config import Config
from ctcore.model import ModelTracker
from ctcore.tracker import Tracker

TRACKERS = {"engine": Tracker, "model": ModelTracker}


@pytest.fixture(params=TRACKERS)
def make_tracker(request) -> Iterator[Callable]:
    """make_tracker(tcp_liberal=True): a tracker with these settings. Its invariants are proved when the test has ended."""
    made = []

    def make(**settings):
        tracker = TRACKERS[request.param](Config(**settings))
        made.append(tracker)
        return tracker

    yield make
    for tracker in made:
        tracker.check()


@pytest.fixture
def tracker(make_tracker):
    """A tracker with Linux's defaults and accounting."""
    return make_tracker()
