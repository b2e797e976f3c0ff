"""The differential fuzzer: a short run of it by a fixed seed, and that it would find, shrink and save a difference."""

from __future__ import annotations

import dataclasses
from random import Random

import numpy as np
import pytest
from click.testing import CliRunner

from ctcore import spec
from ctcore.config import Config
from ctcore.types import DECISION_DTYPE
from datapath.oracle.compare import Difference
from datapath.scenario import text
from datapath.scenario.steps import Icmp, Ip, Option, Packet, Step, Tcp, Udp
from pcap_tests.fuzz_kernel.__main__ import main
from pcap_tests.fuzz_kernel.campaign import Campaign, summary
from pcap_tests.fuzz_kernel.draft import Settings, Watcher
from pcap_tests.fuzz_kernel.judge import Judge, Judged
from pcap_tests.fuzz_kernel.plan import settings_of, trace
from pcap_tests.fuzz_kernel.shrink import Shrinker, plainer_settings, without

SEED, TRACES, PER_SETTING = 2, 240, 30
# Not an IP packet, cut off by the capture, in fragments, for lack of memory or by a limit, of translation (test_nat) or of helpers: no trace is
# about these.
NOT_GENERATED = {
    "not_ip", "frame_short", "snapped", "fragment", "fragment_duplicate", "fragment_overlap", "fragment_malformed", "fragment_memory", "table_full",
    "zone_limit", "clash", "nat_exhausted", "nat_icmp", "nat_scope", "nat_gre", "helper_partial", "helper_refused",
    "rule_drop", "rule_police", "rule_chains", "rule_hops", "rule_field", "rule_room", "rule_cut", "rule_restore", "overload",
}  # fmt: skip


def test_a_short_run_finds_no_difference_and_comes_by_every_rule(running_kernel, tmp_path):
    """All eight combinations of tcp_liberal, tcp_loose and checksum."""
    said: list[str] = []
    tally = Campaign(SEED, tmp_path, PER_SETTING, said.append).run(traces=TRACES, slow=False)
    assert not tally.differing, "\n".join(said)
    assert tally.packets > 9000 and len(tally.settings) == 8
    lines = summary(SEED, tally)
    assert lines[0].startswith(f"seed {SEED}: {TRACES} traces, ") and lines[0].endswith("; 0 differing traces")
    assert set(lines[-1].removeprefix("reasons never given: ").split(", ")) == NOT_GENERATED


def test_pauses_are_waited_for(running_kernel):
    """Two seconds after it was made, UDP that is answered is a stream: for both."""
    there, back = (Packet(*ends, Udp(1), *ports) for ends, ports in ((("A", "B"), (1, 2)), (("B", "A"), (2, 1))))
    with Judge(Settings(Config())) as judge:
        judged = judge.judge([Step(there), Step(back), Step(there), Step(there, wait=2.1)])
    assert not judged.differences
    hz = judge.oracle.config.hz
    assert [int(timeout) // hz for timeout in judged.theirs["timeout"]] == [30, 30, 30, 120]


def test_a_seed_gives_the_same_traces():
    def steps(seed: int) -> list[tuple[Step, ...]]:
        settings = settings_of(seed, 3)
        return [tuple(trace(seed, 3, number, Watcher(settings)).steps) for number in range(5)]

    assert steps(7) == steps(7) != steps(8)


# --- if there were a difference --------------------------------------------------------------------------------------------------------


@pytest.fixture
def broken_table(monkeypatch) -> None:
    """A server's FIN on an open connection leads to CLOSE_WAIT."""
    table = spec.tcp()
    cells = [[list(row) for row in half] for half in table.cells]
    cells[1][table.events.index("fin")][table.states.index("ESTABLISHED")] = table.states.index("CLOSE_WAIT")
    broken = dataclasses.replace(table, cells=tuple(tuple(map(tuple, half)) for half in cells))
    monkeypatch.setattr(spec, "tcp", lambda: broken)


def test_a_broken_cell_is_found_shrunk_and_saved(running_kernel, broken_table, tmp_path, monkeypatch):
    monkeypatch.setattr("pcap_tests.fuzz_kernel.campaign.MOST_SHRUNK", 1)
    result = CliRunner().invoke(main, ["--traces", "40", "--seed", "5", "--folder", str(tmp_path)])
    assert result.exit_code == 1, result.output
    saved = sorted(tmp_path.glob("*.ct"))
    assert len(saved) == 1 and str(saved[0]) in result.output
    scenario = text.parse(saved[0].read_text(), saved[0].name)
    # Picked up, answered by a FIN: two packets are enough, or three of a handshake and the FIN.
    assert 2 <= len(scenario.steps) <= 4
    last = scenario.steps[-1]
    assert isinstance(last.packet, Packet) and isinstance(last.packet.l4, Tcp) and "F" in last.packet.l4.flags
    assert last.expect and last.expect.l4state == "FIN_WAIT"
    assert any("l4state: ours CLOSE_WAIT, the kernel's FIN_WAIT" in line for line in scenario.comments)
    assert scenario.comments[0].startswith("seed 5 block 0 trace ")


def test_without_differences_the_command_succeeds(running_kernel, tmp_path):
    result = CliRunner().invoke(main, ["--traces", "3", "--seed", "5", "--folder", str(tmp_path)])
    assert result.exit_code == 0 and "3 traces" in result.output and not list(tmp_path.iterdir())


class PretendedJudge:
    """Sees a difference at the first packet that a rule names, given those before it."""

    def __init__(self, rule) -> None:
        self.rule = rule

    def judge(self, steps) -> Judged:
        found = [Difference(i, {"state": ("new", "invalid")}) for i in range(len(steps)) if self.rule(steps[: i + 1])]
        empty = np.zeros(len(steps), DECISION_DTYPE)
        return Judged(found, empty, empty, np.ones(len(steps), bool), [()] * len(steps))


def tcp(flags: str, **fields) -> Step:
    return Step(Packet("A", "B", Tcp(flags, **fields), 1000, 80))


def flags_of(steps) -> list[str]:
    return [step.packet.l4.flags for step in steps if isinstance(step.packet.l4, Tcp)]


def test_shrinking_leaves_what_the_difference_needs():
    """A RST behind a SYN, whatever else there is, and with a window of 0."""
    dice = Random(1)
    noise = [tcp(dice.choice(("A", "FA", "PA")), seq=i, data=i, options=(Option("nop"),)) for i in range(40)]
    steps = (*noise[:20], tcp("S", seq=77777, data=9, win=1), *noise[20:], tcp("R", win=0, seq=1), tcp("A"))

    def rule(steps) -> bool:
        return flags_of(steps)[-1] == "R" and "S" in flags_of(steps) and steps[-1].packet.l4.win == 0

    shrunk = Shrinker(PretendedJudge(rule)).shrink(steps)  # type: ignore[arg-type]
    assert [step.packet.l4 for step in shrunk] == [Tcp("S", seq=100), Tcp("R", seq=(1 + 100 - 77777) % 2**32, win=0)]


def test_what_cannot_be_had_again_is_left_as_it_is():
    steps = (tcp("S"), tcp("A"))
    assert Shrinker(PretendedJudge(lambda steps: False)).shrink(steps) == steps  # type: ignore[arg-type]


def test_an_error_goes_with_the_packet_it_quotes():
    def error(about: int) -> Step:
        return Step(Packet("B", "A", Icmp(3, about=about), ip=Ip(ttl=9)))

    steps = (tcp("S"), tcp("A"), error(0), error(1))
    assert without(steps, range(1)) == (tcp("A"), error(0))
    assert without(steps, range(1, 3)) == (tcp("S"),)


def test_settings_become_plain_where_they_do_not_matter(running_kernel, broken_table):
    settings = Settings(Config(tcp_liberal=True, tcp_max_retrans=1, timeouts={"udp_timeout": 3}), zone=4)
    steps = (tcp("A", seq=1, ack=1), Step(Packet("B", "A", Tcp("FA", seq=1, ack=1), 80, 1000)))
    assert plainer_settings(steps, settings) == Settings(Config())
