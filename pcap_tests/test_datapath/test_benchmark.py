"""The benchmark measures what it says: valid frames, all of them accepted, figures that belong together."""

from __future__ import annotations

from ipaddress import ip_address

import numpy as np
import pytest

from ctcore import Config
from ctcore.errors import CtmirrorError
from datapath import Pipeline, benchmark
from datapath.limit import limit_pass
from datapath.rule_text import parse_rule


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


def test_figures_with_translation_belong_together(monkeypatch):
    """Every packet of every connection is accepted and translated, or there are no figures."""
    monkeypatch.setattr(benchmark, "MIN_PACKETS", 20_000)
    row = benchmark.measure_nat(500, rounds=3)
    assert row["flows"] == 500 and row["ns_per_packet"] == pytest.approx(1000 / row["mpps"])
    assert row["ratio_to_plain"] > 0 and row["setup_per_s"] > 0


def test_connections_of_many_clients_keep_their_ports_behind_one_address():
    """So that a reply's address is known before the connection is: the ports of 60,000 clients' connections come again with another server."""
    order = np.arange(59_990, 60_050)
    config = Config(max=100, nat=(parse_rule("snat", benchmark.OUTSIDE),))
    pipeline = Pipeline(config)
    memory, frames = benchmark.handshakes(order, int(ip_address(benchmark.OUTSIDE)))
    decisions = pipeline.forward(memory.copy(), frames)
    assert (decisions["reason"] == 0).all() and pipeline.summary()["translated"] == len(frames) == 3 * len(order)


def test_what_is_not_translated_gives_no_figures(monkeypatch):
    monkeypatch.setattr(benchmark, "MIN_PACKETS", 1000)
    monkeypatch.setattr(benchmark, "parse_rule", lambda kind, text: parse_rule(kind, "src_ip 203.0.113.0/24 => 192.0.2.1"))
    with pytest.raises(CtmirrorError, match="expected"):
        benchmark.measure_nat(50, rounds=1)


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
