"""The benchmark measures what it says: valid frames, all of them accepted, figures that belong together."""

from __future__ import annotations

import numpy as np
import pytest

from ctcore import Config
from datapath import Pipeline, benchmark
from datapath.limit import limit_pass


def test_frames_are_valid_and_established():
    order = np.arange(50)
    pipeline = Pipeline(Config(max=50))
    pipeline.process(*benchmark.handshakes(order))
    decisions = pipeline.process(*benchmark.established(50, 5000, seed=3))
    assert (decisions["reason"] == 0).all() and (decisions["state"] == 2).all()
    assert (decisions["l4state"] == 3).all() and len(set(decisions["conn"])) == 50
    assert set(decisions["dir"]) == {0, 1}
    assert pipeline.tracker.conns()["flow"]["packets"].sum() == 5150


def test_figures_belong_together(monkeypatch):
    monkeypatch.setattr(benchmark, "MIN_PACKETS", 20_000)
    row = benchmark.measure_engine(500, rounds=3)
    assert row["flows"] == 500 and row["ns_per_packet"] == pytest.approx(1000 / row["mpps"])
    # How near to the limit is a matter of a quiet machine, which a test cannot ask for.
    assert row["ratio_to_limit"] > 0 and row["limit_mpps"] > 0 and row["setup_per_s"] > 0


def test_the_limit_kernel_fetches_the_engines_entries():
    """Its sum depends on the counters of the entries it finds: after more traffic it is another one."""
    pipeline = Pipeline(Config(max=10))
    pipeline.process(*benchmark.handshakes(np.arange(10)))
    memory, frames = benchmark.established(10, 100, seed=1)
    before = limit_pass(pipeline.tracker, memory, frames)
    assert limit_pass(pipeline.tracker, memory, frames) == before
    pipeline.process(memory, frames)
    assert limit_pass(pipeline.tracker, memory, frames) != before


def test_the_limit_kernel_refuses_short_frames():
    memory, frames = benchmark.established(10, 100, seed=1)
    frames["caplen"][5] = 53
    with pytest.raises(ValueError, match="at least 54 bytes"):
        limit_pass(Pipeline().tracker, memory, frames)
