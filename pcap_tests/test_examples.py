"""The examples do what they say."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ctcore.config import Config
from ctcore.model import ModelTracker
from ctcore.types import KEY_DTYPE, Offload, Proto, Status, Verdict
from datapath.capture import PcapSource
from datapath.pipeline import rules_file
from datapath.pipeline.ct_settings import settings_of
from datapath.pipeline.interpret import Interpreter
from datapath.pipeline.reference import RuleTracker
from datapath.pipeline.rules import Hook, Ruleset
from datapath.ruled import RulePipeline
from pcap_tests.test_datapath.command import records, run

VM = Path(__file__).parent.parent / "examples" / "vm-behind-vf"
OTHER = {"eth0": "eth0_0", "eth0_0": "eth0"}


@pytest.fixture(scope="module")
def ruleset() -> Ruleset:
    return rules_file.load(str(VM / "rules.tc"))


@pytest.fixture(scope="module")
def traffic() -> tuple[Any, Any, list[str]]:
    """Memory, frames, and the device of each interface."""
    with PcapSource(VM / "traffic.pcapng") as source:
        memory, frames = source.read(1000)
        return memory.copy(), frames.copy(), source.ifaces


def replayed(ruleset: Ruleset, traffic: tuple[Any, Any, list[str]], *, flowtable: bool = True) -> tuple[RulePipeline, Any, Any, Any]:
    memory, frames, devices = traffic
    pipeline = RulePipeline(ruleset, flowtable=flowtable)
    pipeline.arrive([Hook(device) for device in devices])
    return pipeline, *pipeline.process(memory, frames, keys=True, results=True)


def test_both_languages_say_the_same(ruleset: Ruleset) -> None:
    assert rules_file.load(str(VM / "rules.yaml")) == ruleset


def test_http_passes_both_ways_and_most_of_it_by_the_flow_table(ruleset: Ruleset, traffic: tuple[Any, Any, list[str]]) -> None:
    pipeline, decisions, keys, results = replayed(ruleset, traffic)
    devices = traffic[2]
    assert sorted(devices) == ["eth0", "eth0_0"]
    # The VM's own SYN goes to port 80, too: its source port is none of the conversation's.
    client = int(keys["sport"][keys["dport"] == 80][0])
    http = (keys["sport"] == client) | (keys["dport"] == client)
    assert http.sum() > 40
    for came, result in zip(traffic[1]["iface"][http], results[http], strict=True):
        assert (result["verdict"], result["egress"]) == (Verdict.ACCEPT, 1)
        assert pipeline.program.devices[result["device"]] == OTHER[devices[came]]
    said = Counter(Offload(value).name for value in decisions["offload"][http].tolist())
    assert said["OFFLOAD_SOFTWARE"] > 0.8 * http.sum()
    assert said["NOT_TEARDOWN_FIN"] == 1
    assert pipeline.flows is not None
    assert pipeline.flows.counters()["admitted"] == 1


def test_ssh_from_outside_and_what_the_vm_begins_are_dropped_by_the_rules_that_say_so(ruleset: Ruleset, traffic: tuple[Any, Any, list[str]]) -> None:
    _, _, keys, results = replayed(ruleset, traffic)
    dropped = {traffic[2][iface]: (int(key["dport"]), ruleset.rules[result["rule"]]) for iface, key, result in zip(
        traffic[1]["iface"], keys, results, strict=True) if result["verdict"] == Verdict.DROP}  # fmt: skip
    assert {device: port for device, (port, _) in dropped.items()} == {"eth0": 22, "eth0_0": 80}
    for device, (_, rule) in dropped.items():
        assert (rule.hook, rule.chain, rule.prio) == (Hook(device), 1, 9)
    assert (results["verdict"] == Verdict.DROP).sum() == 2


def test_one_connection_is_tracked_in_the_zone_of_the_vf(ruleset: Ruleset, traffic: tuple[Any, Any, list[str]]) -> None:
    pipeline, *_ = replayed(ruleset, traffic)
    (conn,) = pipeline.tracker.conns()
    original = conn["flow"][0]["key"]
    assert original.dtype == KEY_DTYPE
    assert (original["proto"], original["dport"], original["zone"]) == (Proto.PROTO_TCP, 80, 5)
    assert conn["status"] & Status.ASSURED
    assert not conn["status"] & Status.OFFLOAD


def test_rules_are_counted_alike_with_and_without_a_flow_table(ruleset: Ruleset, traffic: tuple[Any, Any, list[str]]) -> None:
    """A packet at a time, so that each finds what the one before it has left."""
    memory, frames, devices = traffic
    served, plain = (RulePipeline(ruleset, flowtable=flowtable) for flowtable in (True, False))
    for each in (served, plain):
        each.arrive([Hook(device) for device in devices])
        for i in range(len(frames)):
            each.process(memory, frames[i : i + 1])
    assert served.counters().tolist() == plain.counters().tolist()
    assert served.shortcuts()["hits"] > 20


def test_the_interpreter_with_the_readable_tracker_says_the_same(ruleset: Ruleset, traffic: tuple[Any, Any, list[str]]) -> None:
    memory, frames, devices = traffic
    pipeline, _, _, results = replayed(ruleset, traffic)
    interpreter = Interpreter(ruleset, RuleTracker(ModelTracker(settings_of(ruleset, Config()))))
    verdicts = {"pass": Verdict.ACCEPT, "drop": Verdict.DROP}
    for frame, result in zip(frames, results, strict=True):
        data = memory[int(frame["offset"]) : int(frame["offset"]) + int(frame["caplen"])].tobytes()
        delivery = interpreter.deliver(data, int(frame["ts"]), Hook(devices[frame["iface"]]))
        assert verdicts[delivery.last.verdict] == result["verdict"]
        assert delivery.last.hook.device == pipeline.program.devices[result["device"]]
        assert [id(hit.rule) for hit in delivery.hits] == [id(ruleset.rules[i]) for i in result["hit"][: result["n_hits"]]]


# --- as a network policy ------------------------------------------------------------------------------------------------------------------


def test_the_policy_lets_pass_what_the_rules_let_pass(capfd, tmp_path: Path) -> None:
    """By the commands of docs/policy.md, with what that says of them."""
    code, out, err = run(capfd, "policy", "compile", VM / "policy.yaml", "-o", tmp_path / "rules.tc")
    assert (code, out) == (0, "") and err.endswith("policies 1, pods 1, rules 42\n")
    assert f"-o rules.tc\n{err}$ ctmirror replay" in (VM.parents[1] / "docs/policy.md").read_text()
    argv = [VM / "traffic.pcapng", "--rules", tmp_path / "rules.tc", "--device", "eth0_0:egress"]
    code, out, err = run(capfd, "replay", *argv, "--packets", "-", "-q")
    by_policy = [record["verdict"] for record in records(out)]
    assert (code, err, [i for i, verdict in enumerate(by_policy) if verdict == "drop"]) == (0, "", [53, 54])
    assert by_policy == [
        record["verdict"] for record in records(run(capfd, "replay", argv[0], "--rules", VM / "rules.tc", "--packets", "-", "-q")[1])
    ]
    said = run(capfd, "explain", argv[0], "--packet", "54", *argv[1:])[1]
    assert "arrives     dev eth0_0 egress" in said
    assert [line.split()[1] for line in said.splitlines() if line.startswith("chain ")] == ["0", "1", "2", "4", "8"]


def test_what_the_examples_readme_says_one_sees(capfd) -> None:
    shown = (VM / "README.md").read_text()
    commands = [line.split()[1:] for line in shown.splitlines() if line.startswith("    ctmirror ")]
    root = VM.parent.parent
    replayed, explained = (run(capfd, *(root / word if word.startswith("examples/") else word for word in words))[1] for words in commands)
    assert "55 packets" in replayed and "1 connection admitted, 45 packets served" in replayed and "FIN 1" in replayed
    assert [line.split() for line in replayed.splitlines() if line.startswith("a rule says so")] == [["a", "rule", "says", "so", "2", "#53"]]
    assert "dropped at dev eth0_0 ingress by rules.tc:22" in explained and "+trk+new" in explained
    assert {path.name for path in VM.iterdir()} == {
        "README.md",
        *(name for name in ("rules.tc", "rules.yaml", "policy.yaml", "traffic.pcapng") if name in shown),
    }
