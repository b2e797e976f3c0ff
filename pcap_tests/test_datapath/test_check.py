"""`ctmirror check` of scenarios: exit codes, what is printed, updates, JUnit XML; and files that are no good.

Not here: captures (test_check_captures).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datapath import check
from datapath.app import Tracking
from datapath.capture import PcapSource
from datapath.cli import main
from datapath.junit import junit_xml
from pcap_tests import stories
from pcap_tests.test_datapath.checking import GOOD, refused, run

BAD = GOOD.replace("SYN_RECV 60 reply", "SYN_RECV 61 original")


@pytest.fixture
def scenario(tmp_path):
    """scenario(text): a file of it."""

    def write(text, name="open.ct"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


@pytest.fixture
def empty(tmp_path):
    return stories.write(tmp_path / "empty.pcap", [])


# --- scenarios -------------------------------------------------------------------------------------------------------------------------


def test_a_scenario_that_holds(capfd, scenario):
    assert run(capfd, scenario(GOOD)) == (0, "engine: 1 file, 3 packets, 3 expectations; no difference\n", "")
    assert run(capfd, scenario(GOOD), "--quiet") == (0, "", "")


def test_every_judge_is_asked(capfd, scenario):
    code, out, _ = run(capfd, scenario(GOOD), "--judge", "all", "--verbose")
    assert code == 0
    assert f"{scenario(GOOD)}  model: 3 packets, 3 as expected\n" in out
    assert "model: 1 file, 3 packets, 3 expectations; no difference\n" in out
    assert run(capfd, scenario(GOOD), "--judge", "model", "--judge", "model")[1].count("\n") == 1


def test_what_differs_is_shown_with_what_to_type_next(capfd, scenario, monkeypatch):
    path = scenario("set tcp_loose 0\nset zone 4\nset timeout tcp_timeout_close 3\n" + BAD)
    monkeypatch.chdir(path.parent)
    code, out, _ = run(capfd, "open.ct")
    assert code == 1
    assert out.splitlines() == [
        "open.ct  engine: 1 of 3 packets differ",
        "open.ct:7 #1  B:80 > A:40000 SA seq 500 ack 101",
        "           expected  engine",
        "  timeout  61        60",
        "  dir      original  reply",
        "  ctmirror check open.ct -w open.pcapng; ctmirror explain open.pcapng --packet 1 --tcp-loose 0 --zone 4 --timeouts tcp_timeout_close=3",
        "  ctmirror check open.ct --update     # if this is how it should be",
        "",
        "engine: 1 file, 3 packets, 3 expectations; 1 file with differences",
    ]
    assert run(capfd, "open.ct", "--quiet")[1] == "".join(line + "\n" for line in out.splitlines()[:-1])


def test_the_commands_that_are_suggested_work(capfd, scenario, monkeypatch):
    monkeypatch.chdir(scenario(BAD).parent)
    assert run(capfd, "open.ct", "-w", "open.pcapng")[0] == 1
    assert main(["explain", "open.pcapng", "--packet", "1"]) == 0
    assert "SYN_RECV" in capfd.readouterr().out
    assert run(capfd, "open.ct", "--update")[0] == 0
    assert run(capfd, "open.ct")[0] == 0


def test_a_scenarios_capture_gives_the_same_records(capfd, scenario, tmp_path):
    run(capfd, scenario(GOOD), "-w", tmp_path / "open.pcap")
    with PcapSource(str(tmp_path / "open.pcap")) as source:
        assert [int(ts) for ts in source.read(10)[1]["ts"] - 1_700_000_000 * 10**9] == [0, 10_000_000, 20_000_000]


def test_reasons_are_shown(capfd, scenario):
    code, out, _ = run(capfd, scenario("+0 A:1 > B:2 FA seq 5 => new"))
    assert code == 1
    assert "  reason  -         tcp_not_opening\n  tcp_not_opening: no connection, and not an opening packet (state table, row NONE)\n" in out


def test_the_options_of_replay_hold_where_the_scenario_says_nothing(capfd, scenario):
    text = "+0 A:1 > B:2 A => invalid reason tcp_not_loose"
    assert run(capfd, scenario(text))[0] == 1
    assert run(capfd, scenario(text), "--tcp-loose", "0")[0] == 0
    assert run(capfd, scenario("set tcp_loose 1\n" + text), "--tcp-loose", "0")[0] == 1
    assert run(capfd, scenario("+0 A:1 > B:2 udp => zone 5"), "--zone", "5")[0] == 0


def test_many_differences_are_counted(capfd, scenario):
    path = scenario("+0 A:1 > B:2 udp => invalid\n" * 150)
    assert "... and 140 more (--verbose shows more)" in run(capfd, path)[1]
    assert "... and 50 more\n" in run(capfd, path, "--verbose")[1]


def test_a_scenario_may_come_from_stdin():
    command = [sys.executable, "-m", "datapath", "check", "-"]
    done = subprocess.run(command, input=BAD, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.splitlines()[0]) == (1, "-  engine: 1 of 3 packets differ")
    refused = subprocess.run([*command, "--update"], input=BAD, capture_output=True, text=True, timeout=60)
    assert (refused.returncode, "expected a scenario that is a file" in refused.stderr) == (2, True)


# --- update ----------------------------------------------------------------------------------------------------------------------------


def test_update_changes_what_differs_and_nothing_else(capfd, scenario):
    path = scenario(BAD)
    code, out, _ = run(capfd, path, "--update")
    assert (code, out.splitlines()[0]) == (0, f"{path}  engine: updated")
    assert path.read_text().splitlines() == [
        line if "in time" not in line else line.replace("  => established SYN_RECV 61 original", "  => established SYN_RECV 60 reply")
        for line in BAD.splitlines()
    ]


def test_update_fills_a_scenario_that_expects_nothing(capfd, scenario):
    path = scenario("# traffic\n+0 A:40000 > B:80 S seq 100\n  +0.01 B:80 > A:40000 SA seq 500 ack 101 # comment\n+0 A:1 > B:2 FA\n")
    assert run(capfd, path, "--update")[0] == 0
    assert path.read_text().splitlines() == [
        "# traffic",
        "+0 A:40000 > B:80 S seq 100                => new SYN_SENT 120",
        "  +0.01 B:80 > A:40000 SA seq 500 ack 101  => established SYN_RECV 60 reply  # comment",
        "+0 A:1 > B:2 FA                            => invalid reason tcp_not_opening",
    ]


def test_update_leaves_what_holds_untouched(capfd, scenario):
    path = scenario(GOOD)
    before = path.stat().st_mtime_ns
    assert run(capfd, path, "--update", "--judge", "all")[0] == 0
    assert (path.read_text(), path.stat().st_mtime_ns) == (GOOD, before)


def test_update_follows_no_link_of_a_similar_name(capfd, scenario, tmp_path):
    path = scenario(BAD)
    scenario("precious", "elsewhere")
    (tmp_path / "open.ct.new").symlink_to(tmp_path / "elsewhere")
    assert run(capfd, path, "--update")[0] == 0
    assert (tmp_path / "open.ct.new").is_symlink()
    assert (tmp_path / "elsewhere").read_text() == "precious"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["elsewhere", "open.ct", "open.ct.new"]


def test_update_keeps_what_was_in_a_file_of_a_similar_name(capfd, scenario):
    path, other = scenario(BAD), scenario("precious", "open.ct.new")
    assert run(capfd, path, "--update")[0] == 0
    assert other.read_text() == "precious"


def test_update_writes_behind_a_symbolic_link_and_keeps_the_mode(capfd, scenario, tmp_path):
    (tmp_path / "kept").mkdir()
    path, link = scenario(BAD, "kept/open.ct"), tmp_path / "link.ct"
    path.chmod(0o640)
    link.symlink_to(path)
    assert run(capfd, link, "--update")[0] == 0
    assert link.is_symlink()
    assert (path.read_text() != BAD, path.stat().st_mode & 0o777) == (True, 0o640)
    assert [one.name for one in path.parent.iterdir()] == ["open.ct"]


def test_update_gives_a_new_file_the_mode_of_any_new_file(capfd, office, tmp_path):
    (tmp_path / "plain").touch()
    assert run(capfd, office, "--expect", tmp_path / "office.jsonl", "--update")[0] == 0
    assert (tmp_path / "office.jsonl").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_update_replaces_nothing_but_plain_files(capfd, office, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "expected a plain file" in refused(capfd, office, "--expect", tmp_path / "pipe", "--update")
    assert (tmp_path / "pipe").is_fifo()


def test_a_directory_is_all_scenarios_in_it_and_below(capfd, scenario, tmp_path):
    (tmp_path / "deep" / "deeper").mkdir(parents=True)
    scenario(GOOD)
    scenario(BAD, "deep/deeper/bad.ct")
    scenario("nothing", "deep/notes.txt")
    code, out, err = run(capfd, tmp_path)
    assert (code, err) == (1, "")
    assert "deep/deeper/bad.ct  engine: 1 of 3 packets differ" in out
    assert "engine: 2 files, 6 packets, 6 expectations; 1 file with differences" in out
    (tmp_path / "empty").mkdir()
    assert "expected scenarios (*.ct) in it or below" in refused(capfd, tmp_path / "empty")


# --- JUnit XML -------------------------------------------------------------------------------------------------------------------------


def test_junit(capfd, scenario, tmp_path):
    good, bad = scenario(GOOD, "good.ct"), scenario(BAD, "bad.ct")
    broken = scenario("+0 A:1 > B:2 X", "broken.ct")
    code, _, err = run(capfd, good, bad, broken, "--judge", "engine", "--judge", "model", "--junit", tmp_path / "out.xml")
    assert (code, err) == (
        2,
        f"ctmirror: {broken}:1:14: 'X': expected TCP flags as in SA (or none), or udp, udplite, icmp, icmpv6, sctp, gre, proto\n",
    )
    root = ET.parse(tmp_path / "out.xml").getroot()
    engine, model = root.findall("testsuite")
    assert (engine.get("tests"), engine.get("failures"), engine.get("errors")) == ("3", "1", "1")
    assert (model.get("tests"), model.get("failures"), model.get("errors")) == ("2", "1", "0")
    failed = [case for case in engine if case.find("failure") is not None]
    assert [case.get("name") for case in failed] == [str(bad)]
    assert failed[0].find("failure").get("message") == "1 of 3 packets differ"
    assert "timeout  61        60" in failed[0].find("failure").text


@given(st.text(), st.text())
def test_junit_is_well_formed_whatever_names_and_messages_hold(name, message):
    case = check.Case((name,), "engine", True, differing=1, error=message)
    root = ET.fromstring(junit_xml([case]))
    assert root.find("testsuite/testcase/error") is not None


# --- what is refused -------------------------------------------------------------------------------------------------------------------


def test_usage(capfd, scenario, office, tmp_path):
    good = scenario(GOOD)
    assert "expected --expect FILE" in refused(capfd, office)
    assert "expected a capture" in refused(capfd, good, "--expect", tmp_path / "x.jsonl")
    assert "expected none with a capture" in refused(capfd, office, "--expect", tmp_path / "x.jsonl", "--judge", "model")
    assert "expected one scenario" in refused(capfd, good, good, "-w", tmp_path / "x.pcap")
    assert "'me' is not one of 'engine', 'model', 'kernel', 'all'" in refused(capfd, good, "--judge", "me")
    assert "No such file" in refused(capfd, tmp_path / "none.ct")
    assert "No such file" in refused(capfd, tmp_path / "none.pcap", "--expect", tmp_path / "x.jsonl")
    assert "No such file" in refused(capfd, office, "--expect", tmp_path / "none.jsonl")
    assert "cannot be written" in refused(capfd, good, "--junit", tmp_path / "no" / "out.xml")


def test_dash_is_stdout(capfd, scenario, office, tmp_path):
    code, out, err = run(capfd, scenario(GOOD), "--junit", "-")
    assert code == 0 and ET.fromstring(out).tag == "testsuites" and "engine: 1 file" in err
    code, out, err = run(capfd, office, "--expect", "-", "--update")
    assert code == 0 and len(out.splitlines()) == 19 and "engine: 1 file" in err
    assert not Path("-").exists()


def test_one_file_that_cannot_be_read_keeps_no_other_from_being_judged(capfd, scenario, tmp_path):
    (tmp_path / "empty").mkdir()
    code, out, err = run(capfd, tmp_path / "none", scenario(GOOD), tmp_path / "empty", "--junit", tmp_path / "out.xml")
    assert code == 2 and err.splitlines() == [
        f"ctmirror: {tmp_path}/none: No such file or directory",
        f"ctmirror: {tmp_path}/empty: expected scenarios (*.ct) in it or below, found none",
    ]
    assert "3 expectations; 2 files not judged to the end" in out
    suite = ET.parse(tmp_path / "out.xml").getroot().find("testsuite")
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("3", "0", "2")


def test_where_a_judge_cannot_go_on_is_said(running_kernel, capfd, scenario):
    path = scenario("# far too long\n+0 A:1 > B:2 S => new\n+3600 A:1 > B:2 S\n")
    code, _, err = run(capfd, path, "--judge", "kernel")
    assert code == 2 and err.startswith(f"ctmirror: {path}:3: a wait of 3600 s: expected at most 30 s") and err.count("\n") == 1


def test_no_output_is_written_over_an_input(capfd, scenario, office, tmp_path):
    good, saved = scenario(GOOD), tmp_path / "office.jsonl"
    assert run(capfd, office, "--expect", saved, "--update")[0] == 0
    for argv in (
        [good, "--junit", good],
        [good, "-w", good],
        [office, "--expect", office, "--update"],
        [office, "--expect", saved, "--junit", saved],
    ):
        before = [path.read_bytes() for path in map(Path, (good, saved, office))]
        assert "would be written over" in refused(capfd, *argv)
        assert [path.read_bytes() for path in map(Path, (good, saved, office))] == before


def test_what_was_not_judged_is_not_called_as_expected(capfd, scenario):
    path = scenario("+0 A:1 > B:2 S => established\n+40 A:1 > B:2 S\n")
    _, out, err = run(capfd, path, "--judge", "kernel")
    assert "no difference" not in out and "kernel: 1 file, 0 packets, 0 expectations; 1 file not judged to the end" in out and err.count("\n") == 1


@pytest.mark.parametrize("line", ["", "[]", "7", "{", '{"i": 3}', "\0\xff"])
def test_saved_records_that_are_none(capfd, office, tmp_path, line):
    saved = tmp_path / "office.jsonl"
    saved.write_text('{"state": "new"}\n' + line + "\n")
    assert f"{saved}:2: expected a packet record" in refused(capfd, office, "--expect", saved)


@pytest.mark.parametrize("number", ["x", None, True, -1, 1.5, [3], {}, 1 << 70])
def test_saved_records_whose_number_is_none(capfd, office, tmp_path, number):
    saved = tmp_path / "office.jsonl"
    saved.write_text('{"state": "new"}\n' + json.dumps({"i": number, "state": "new"}) + "\n")
    assert f"{saved}:2: i: expected the packet's number" in refused(capfd, office, "--expect", saved)


def test_saved_records_that_are_nested_too_deeply(capfd, office, tmp_path):
    saved = tmp_path / "office.jsonl"
    saved.write_text('{"state": ' + "[" * 900 + "]" * 900 + "}\n")
    assert f"{saved}:1: expected a packet record" in refused(capfd, office, "--expect", saved)


JSON = st.recursive(st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9), st.lists)
FIELDS = st.sampled_from(["reason", "status", "timeout", "src", "dst", "sport", "proto", "file", "tcp", "\x1b[2J\n"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(records=st.lists(st.dictionaries(FIELDS, JSON | st.dictionaries(st.text(max_size=5), JSON, max_size=2)), min_size=1, max_size=3))
def test_whatever_saved_records_hold_they_are_shown_line_by_line(capfd, empty, tmp_path, records):
    """Before a capture of one packet: a record for it and some too many."""
    saved = tmp_path / "hostile.jsonl"
    saved.write_text("".join(json.dumps({"state": "\x1b]0;owned\x07\r\nnew", **record}) + "\n" for record in records))
    for capture in (empty, stories.write(tmp_path / "one.pcap", stories.office()[:1])):
        code, out, err = run(capfd, capture, "--expect", saved)
        assert (code, err) == (1, "")
        assert not set("\x1b\x07\r\x9b\u2028") & set(out)
        assert "\nnew" not in out


def test_saved_records_of_an_empty_capture(capfd, empty, tmp_path):
    saved = tmp_path / "one.jsonl"
    saved.write_text('{"state": "new", "i": 0, "src": "\\u001b[31m10.0.0.1", "dst": "a\\nb", "proto": "tcp"}\n')
    code, out, _ = run(capfd, empty, "--expect", saved, "--junit", tmp_path / "out.xml")
    assert (code, out.splitlines()[:2]) == (
        1,
        [f"{empty}  engine: 1 of 1 packets differ", rf"{empty} #0  \x1b[31m10.0.0.1 > a\x0ab tcp"],
    )
    assert ET.parse(tmp_path / "out.xml").find("testsuite/testcase/failure").get("message") == "1 of 1 packets differ"


def test_files_are_recognised(scenario, office):
    assert check.is_scenario(str(scenario(GOOD, "open.txt")))
    assert check.is_scenario(str(scenario(b"\xff\0", "broken.ct")))
    assert check.is_scenario(str(scenario("# " + "é" * 5000, "long.txt")))
    assert not check.is_scenario(str(office))
    assert not check.is_scenario("-")


def test_scenarios_that_are_no_text(capfd, scenario):
    assert ":2: byte 0xff at 8: expected UTF-8 text" in refused(capfd, scenario(b"# first\n\xff\n"))


def test_a_scenario_that_cannot_be_read_does_not_keep_the_others_from_being_judged(capfd, scenario):
    code, out, err = run(capfd, scenario("nonsense", "a.ct"), scenario(BAD, "b.ct"))
    assert code == 2
    assert "1 of 3 packets differ" in out
    assert err.count("\n") == 1


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_hostile_files_never_give_a_traceback(capfd, scenario, data):
    """Whatever a scenario file holds: exit 0, 1 or 2, and one line for the error."""
    code, _, err = run(capfd, scenario(data, "hostile.ct"))
    assert code in (0, 1, 2)
    assert (err.count("\n"), "internal error" in err) == (int(code == 2), False)


def test_an_update_that_cannot_be_written_leaves_the_file(capfd, office, tmp_path):
    (tmp_path / "saved").mkdir()
    assert "cannot be written" in refused(capfd, office, "--expect", tmp_path / "saved", "--update")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["office.pcap", "saved"]


def test_check_captures_needs_no_command_line(office, tmp_path):
    saved = tmp_path / "office.jsonl"
    done = check.update_captures([str(office)], str(saved), Tracking())
    case = check.check_captures([str(office)], str(saved), Tracking())
    assert (case.packets, case.expected, case.differing) == (done.packets, done.packets, 0)
