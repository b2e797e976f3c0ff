"""Fixtures for all tests: both trackers, the engine and its readable twin, behind one name."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from ctcore.config import Config
from ctcore.model import ModelTracker
from ctcore.tracker import Tracker
from pcap_tests.required import cannot

# A shell without job control has what it starts in the background ignore Ctrl-C, which tests are about.
signal.signal(signal.SIGINT, signal.default_int_handler)


def examples(n: int) -> int:
    """How many examples a property is tried with: n, or the share of them that CTMIRROR_SHARE says, where everything takes many times longer."""
    return max(5, round(n * float(os.environ.get("CTMIRROR_SHARE", "1"))))


# No test fails because the machine is busy: examples have no deadline. Continuous integration judges a change by the same examples every time;
# people and `make test` draw new ones.
settings.register_profile("new", deadline=None, max_examples=examples(100))
settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=examples(100))
settings.load_profile("repeatable" if os.environ.get("CI") else "new")

TRACKERS = {"engine": Tracker, "model": ModelTracker}


@pytest.fixture(scope="session")
def captures_of_others() -> Path:
    """The folder of captures that are no part of the project: CTMIRROR_PCAPS, or what lies beside it. One that is named has to be there."""
    named = os.environ.get("CTMIRROR_PCAPS")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "pcaps"
    if not (folder / "PROVENANCE.tsv").exists():
        text = f"no captures of other projects at {folder}: set CTMIRROR_PCAPS to where they are"
        if named:
            pytest.fail(text)
        pytest.skip(text)
    return folder


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


@pytest.fixture(scope="session")
def running_kernel() -> None:
    """The running kernel can be asked. Where it cannot, tests that need it are skipped and say why; CTMIRROR_REQUIRE_KERNEL=1 makes them fail."""
    from datapath.oracle.oracle import obstacle

    if why := obstacle():
        cannot(f"the running kernel is not compared with: {why}")
