"""`ctmirror bench`: its command line; what is measured is in test_benchmark."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pcap_tests.test_datapath.command import run


def test_bench_passes_its_options_on_and_writes_json(capfd, monkeypatch, tmp_path):
    from datapath import benchmark

    asked = []

    def engine(flows, nat):
        asked.append((flows, nat))
        return {"machine": {"cpu": "any"}, "engine": [{"flows": n, "mpps": 12.345} for n in flows]}

    monkeypatch.setattr(benchmark, "engine", engine)
    code, out, _ = run(capfd, "bench", "engine", "--flows", "10,2000", "--json", tmp_path / "out.json")
    assert (code, asked) == (0, [([10, 2000], False)])
    assert json.loads((tmp_path / "out.json").read_text())["engine"][1]["flows"] == 2000
    assert "engine: flows 2000  mpps 12.3" in out
    code, out, err = run(capfd, "bench", "engine", "--flows", "10", "--json", "-")
    assert json.loads(out)["engine"] == [{"flows": 10, "mpps": 12.345}]
    assert "mpps" in err
    run(capfd, "bench", "engine", "--flows", "10", "--nat")
    assert asked[-1] == ([10], True)


def test_bench_rules_passes_its_options_on_and_writes_json(capfd, monkeypatch, tmp_path):
    from datapath import benchmark_rules

    asked = []

    def rules(flows, numbers):
        asked.append((flows, numbers))
        return {"machine": {"cpu": "any"}, "established": [{"flows": n, "rules": numbers[0], "mpps": 12.345} for n in flows]}

    monkeypatch.setattr(benchmark_rules, "rules", rules)
    code, out, _ = run(capfd, "bench", "rules", "--flows", "10,2000", "--rules", "3,400", "--json", tmp_path / "out.json")
    assert (code, asked) == (0, [([10, 2000], [3, 400])])
    assert json.loads((tmp_path / "out.json").read_text())["established"][1]["flows"] == 2000
    assert "established: flows 2000  rules 3  mpps 12.3" in out
    run(capfd, "bench", "rules", "-q")
    assert asked[-1] == ([1000, 100_000, 1_000_000], [10, 10_000])


@pytest.mark.parametrize("argv", [["bench", "engine", "--json"], ["bench", "-q", "engine", "--json"], ["bench", "engine", "-q", "--json", "-"]])
def test_bench_writes_json_to_stdout_without_a_name(capfd, monkeypatch, argv):
    from datapath import benchmark

    monkeypatch.setattr(benchmark, "engine", lambda flows, nat: {"engine": [{"flows": flows[0]}]})
    code, out, err = run(capfd, *argv)
    assert (code, json.loads(out)) == (0, {"engine": [{"flows": 1000}]})
    assert (err == "") == ("-q" in argv)


def test_bench_replay_of_what_is_no_capture_gets_one_line(capfd, tmp_path, office):
    (tmp_path / "notes.txt").write_text("dear diary, " * 10)
    (tmp_path / "cut.pcap").write_bytes(Path(office).read_bytes()[:-5])
    for name, expected in (("notes.txt", "not a capture"), ("none.pcap", "No such file"), ("cut.pcap", "truncated"), ("-", "stdin can be read once")):
        code, out, err = run(capfd, "bench", "replay", name if name == "-" else tmp_path / name)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert expected in err


@pytest.mark.parametrize("argv", [["engine"], ["rules"], ["replay", "{}"]])
def test_bench_finds_out_before_measuring_that_figures_cannot_be_written(capfd, monkeypatch, tmp_path, office, argv):
    from datapath import benchmark, benchmark_rules

    for module, name in ((benchmark, "engine"), (benchmark, "replay"), (benchmark_rules, "rules")):
        monkeypatch.setattr(module, name, lambda *_: pytest.fail("was measured"))
    target = tmp_path / "none" / "out.json"
    code, out, err = run(capfd, "bench", *(word.format(office) for word in argv), "--json", target)
    assert (code, out, err) == (2, "", f"ctmirror: {target}: No such file or directory\n")


@pytest.mark.parametrize("flows", ["", "0", "1,x", "-3"])
def test_bench_wants_numbers_of_connections(capfd, flows):
    code, _, err = run(capfd, "bench", "engine", "--flows", flows)
    assert code == 2
    assert "expected numbers of connections" in err


@pytest.mark.parametrize("numbers", ["", "0", "ten"])
def test_bench_wants_numbers_of_rules(capfd, numbers):
    code, _, err = run(capfd, "bench", "rules", "--rules", numbers)
    assert code == 2
    assert "expected numbers of rules, as in 10,10000" in err


@pytest.mark.parametrize("numbers", ["10,2", "60001"])
def test_bench_names_numbers_of_rules_that_cannot_be_measured(capfd, numbers):
    code, out, err = run(capfd, "bench", "rules", "--flows", "10", "--rules", numbers)
    assert (code, out) == (2, "")
    assert err == f"ctmirror: bench: {numbers.split(',')[-1]} rules: expected 3 to 60000\n"


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("handshakes_per_s", 797_123.4, "handshakes 0.80 M/s"),
        ("syns_per_s", 2_096_000.0, "syns 2.10 M/s"),
        ("first_mpps", 5.337, "first packets of flows 5.34 Mpps"),
        ("mpps", 16.7, "mpps 16.7"),
        ("ns_per_packet", 59.88, "ns_per_packet 59.9"),
        ("bytes_a_connection", 1234567.8, "bytes_a_connection 1,234,568"),
        ("read_s", 0.001177, "read 0.00118 s"),
        ("seconds", 0.01353, "in all 0.0135 s"),
        ("ratio", 1.0, "speed beside the first number of rules 1.00"),
        ("ratio", 0.0, "speed beside the first number of rules 0.00"),
        ("flows", 1_000_000, "flows 1000000"),
        ("cpu", "Xeon", "cpu Xeon"),
    ],
)
def test_figures_for_people_have_units_and_no_exponent(name, value, shown):
    from datapath.commands.bench import figure

    assert figure(name, value) == shown


def test_bench_rules_prints_millions_a_second(capfd, monkeypatch):
    from datapath import benchmark_rules

    monkeypatch.setattr(benchmark_rules, "rules", lambda flows, numbers: {"new": [{"rules": 10, "handshakes_per_s": 797_123.4}]})
    assert run(capfd, "bench", "rules")[1] == "new: rules 10  handshakes 0.80 M/s\n"
