"""What leaves because of the scenarios of translation, helpers and fragments, byte for byte: addresses, ports, quoted packets, payload, numbers,
checksums, and where a datagram is cut up again.

Not here: what scenarios expect of connections (test_datapath/test_oracle/test_judge.py).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from ctcore.config import Config
from datapath.frame import frames_of
from datapath.oracle.compare import differences
from datapath.oracle.lockstep import Compared, Lockstep
from datapath.oracle.oracle import Oracle
from datapath.scenario.build import build
from datapath.scenario.run import settings_of
from datapath.scenario.text import parse

FOLDER = Path(__file__).parent.parent / "scenarios"
SCENARIOS = sorted(path for kind in ("nat", "helpers", "fragments") for path in (FOLDER / kind).glob("*.ct"))


def compared(text: str) -> tuple[Compared, int]:
    """Both sides of a scenario's packets, and ticks a second."""
    scenario = parse(text)
    config, zone = settings_of(scenario, Config())
    with Oracle(config, zone=zone) as oracle:
        lockstep = Lockstep(oracle, zone=zone)
        return lockstep.run(*frames_of(build(scenario))), lockstep.config.hz


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_engine_and_kernel_send_the_same(running_kernel: None, path: Path) -> None:
    both, hz = compared(path.read_text())
    assert set(both.unshown) == {None}
    assert differences(both, hz) == []


def test_a_command_is_seen_as_it_left(running_kernel: None) -> None:
    """Lest both sides be compared before anything was changed."""
    both, _ = compared((FOLDER / "helpers/ftp-active-snat.ct").read_text())
    for side in (both.ours, both.theirs):
        assert side.out[3][0].endswith(b"PORT 10,0,0,99,7,208\r\n")
