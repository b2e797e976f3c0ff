"""ctmirror diff: agreement is exit code 0, a difference is shown with both opinions and is exit code 1, and errors are one line."""

from __future__ import annotations

import ctypes
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from datapath.cli import main
from datapath.errors import KernelError
from datapath.oracle.lockstep import Lockstep
from pcap_tests import stories
from pcap_tests.record import CAPTURES

ROOT = Path(__file__).parent.parent.parent
DEMO = CAPTURES / "demo.pcap"
PR_CAPBSET_DROP, CAP_SYS_ADMIN = 24, 21


def run(capfd: pytest.CaptureFixture, *argv: object) -> tuple[int, str, str]:
    """Exit code, stdout, stderr of a command."""
    code = main([str(word) for word in argv])
    captured = capfd.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def stubborn(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that picks no connection up in mid-stream, beside a kernel that does."""

    def reset(self: Lockstep, original=Lockstep.reset) -> None:
        self.config = replace(self.config, tcp_loose=False)
        original(self)

    monkeypatch.setattr(Lockstep, "reset", reset)


@pytest.fixture
def midstream(tmp_path: Path) -> Path:
    """The office's captures without their first packet each, so that one connection begins in mid-stream."""
    return Path(stories.write(tmp_path / "midstream.pcap", stories.office()[1:]))


@pytest.mark.parametrize("capture", sorted(CAPTURES.glob("*.pcap")), ids=lambda path: path.name)
def test_every_capture_of_ours_is_judged_alike(running_kernel: None, capture: Path, capfd: pytest.CaptureFixture) -> None:
    code, out, err = run(capfd, "diff", capture)
    assert (code, err) == (0, ""), out
    assert "0 of " in out and "packets differ from Linux" in out


@pytest.mark.parametrize(
    "options", [("--tcp-liberal", 1), ("--tcp-loose", 0), ("--checksum", 0), ("--zone", 9), ("--timeouts", "udp_timeout=1")], ids=str
)
def test_settings_reach_both_sides(running_kernel: None, options: tuple, capfd: pytest.CaptureFixture) -> None:
    assert run(capfd, "diff", DEMO, *options)[0] == 0


def test_captures_of_others_are_judged_alike(running_kernel: None, captures_of_others: Path, capfd: pytest.CaptureFixture) -> None:
    captures = sorted(path for path in captures_of_others.iterdir() if ".pcap" in path.name)
    code, out, _ = run(capfd, "diff", *captures)
    assert code != 1 and "\n0 of " in out, out


def test_a_difference_is_shown_with_both_opinions(running_kernel: None, stubborn: None, midstream: Path, capfd: pytest.CaptureFixture) -> None:
    code, out, _ = run(capfd, "diff", midstream)
    assert code == 1
    assert out.startswith(f"{midstream} #1  10.0.0.1 port 40000 > 10.0.0.2 port 80 tcp\n")
    assert "state" in out and "invalid" in out and "new" in out
    assert "tcp_not_loose" in out and f"ctmirror explain {midstream} --packet" in out


def test_differences_as_records(running_kernel: None, stubborn: None, midstream: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    code, out, _ = run(capfd, "diff", midstream, "--jsonl", tmp_path / "d.jsonl", "--quiet")
    assert (code, out) == (1, "")
    records = [json.loads(line) for line in (tmp_path / "d.jsonl").read_text().splitlines()]
    assert records
    first = records[0]
    assert first["differs"]["state"] == {"ctmirror": "invalid", "kernel": "new"}
    assert first["ctmirror"]["state"] == "invalid" and first["ctmirror"]["reason"] == "tcp_not_loose"
    assert first["kernel"]["state"] == "new" and first["kernel"]["reason"] is None and first["kernel"]["kernel"]["events"] == ["new"]
    assert first["kernel"]["kernel"]["status"] == {"judged": [], "leaving": ["confirmed"]}


def test_a_name_that_is_no_text_is_shown_and_can_be_copied(
    running_kernel: None, stubborn: None, midstream: Path, capfd: pytest.CaptureFixture
) -> None:
    strange = midstream.rename(midstream.with_name(os.fsdecode(b"mid \xff.pcap")))
    code, out, _ = run(capfd, "diff", strange, "--show", 1)
    assert code == 1 and "mid \\xff.pcap #1  " in out
    assert f"ctmirror explain $'{midstream.parent}/mid \\xff.pcap' --packet 1\n" in out


def test_no_more_packets_are_shown_than_asked_for(running_kernel: None, stubborn: None, midstream: Path, capfd: pytest.CaptureFixture) -> None:
    _, out, _ = run(capfd, "diff", midstream, "--show", 1)
    assert sum(line.startswith(f"{midstream} #") for line in out.splitlines()) == 1 and "more differ" in out


def test_the_kernels_records_alone(running_kernel: None, capfd: pytest.CaptureFixture) -> None:
    code, out, err = run(capfd, "diff", DEMO, "--oracle-only")
    assert (code, err) == (0, "")
    kernel = [json.loads(line) for line in out.splitlines()]
    assert run(capfd, "replay", DEMO, "--packets", "-", "--quiet")[0] == 0
    assert len(kernel) == 1482 and [record["i"] for record in kernel] == list(range(1482))
    assert {record["reason"] for record in kernel} == {None, "not_ip"}
    assert {record["kernel"].get("unshown") for record in kernel} == {None, "not IP"}
    assert {record["verdict"] for record in kernel} <= {"accept", "drop", "held"}
    handshake = next(record for record in kernel if record["l4state"] == "ESTABLISHED")
    assert handshake["status"] == ["seen-reply", "assured", "confirmed"] and handshake["tcp"]["original"]["maxwin"] > 0


def test_the_kernels_records_have_the_fields_of_ours(running_kernel: None, capfd: pytest.CaptureFixture) -> None:
    theirs = json.loads(run(capfd, "diff", DEMO, "--oracle-only")[1].splitlines()[0])
    ours = json.loads(run(capfd, "replay", DEMO, "--packets", "-", "--quiet")[1].splitlines()[0])
    assert set(theirs) - set(ours) == {"kernel"}


def test_a_damaged_capture_is_compared_up_to_the_damage(running_kernel: None, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    cut = tmp_path / "cut.pcap"
    cut.write_bytes(DEMO.read_bytes()[:-10])
    code, out, err = run(capfd, "diff", cut, DEMO)
    assert code == 2 and "truncated" in err and err.count("\n") == 1
    assert "0 of 2,888 packets differ" in out or "0 of 2,887 packets differ" in out


def test_an_interrupted_comparison_counts_what_it_has(running_kernel: None, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: Lockstep, *arguments, original=Lockstep._packet) -> None:
        if arguments[-1] == 100:
            raise KeyboardInterrupt
        original(self, *arguments)

    monkeypatch.setattr(Lockstep, "_packet", interrupted)
    code, out, _ = run(capfd, "diff", DEMO, DEMO)
    assert code == 130 and "  100 " in out and out.rstrip().endswith("; interrupted")


def test_a_later_failure_keeps_what_came_before(running_kernel: None, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(self: Lockstep, *arguments, original=Lockstep.reset) -> None:
        if failing.calls:
            raise KernelError("the kernel has gone")
        failing.calls += 1
        original(self, *arguments)

    failing.calls = 0
    monkeypatch.setattr(Lockstep, "reset", failing)
    code, out, err = run(capfd, "diff", DEMO, DEMO)
    assert (code, err) == (2, "ctmirror: the kernel has gone\n") and "0 of 1,444 packets differ" in out


def test_names_are_no_markup(running_kernel: None, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    capture = tmp_path / f"[red]{'long' * 30}.pcap"
    capture.write_bytes((CAPTURES / "ping.pcap").read_bytes())
    code, out, err = run(capfd, "diff", capture)
    assert (code, err) == (0, "") and str(capture) in out


def test_limits_of_all_namespaces_are_refused(running_kernel: None, capfd: pytest.CaptureFixture) -> None:
    code, out, err = run(capfd, "diff", DEMO, "--max", 10)
    assert (code, out) == (2, "") and "nf_conntrack_max" in err and err.count("\n") == 1


def test_rules_are_refused_with_what_to_use_instead(capfd: pytest.CaptureFixture) -> None:
    code, out, err = run(capfd, "diff", DEMO, "--rules", "rules.tc")
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert "many kernels lack flower and act_ct: expected no --rules" in err and "`check CAPTURE --expect FILE --rules FILE`" in err


def test_the_readme_shows_what_is_printed(running_kernel: None, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the kernel's version and the speed, which are this machine's."""
    monkeypatch.chdir(ROOT)
    _, out, _ = run(capfd, "diff", "pcap_tests/captures/demo.pcap")
    readme = (ROOT / "README.md").read_text()
    shown = readme.split("<!-- diff: kept true by a test -->\n\n```\n")[1].split("```")[0].splitlines()
    assert shown[0] == "$ sudo ctmirror diff pcap_tests/captures/demo.pcap"
    machine = re.compile(r"Linux \S+|[\d,]+ packets/s")
    assert [machine.sub("", line).rstrip() for line in out.splitlines()] == [machine.sub("", line) for line in shown[1:]]


def test_without_root_one_line_says_so() -> None:
    def give_up_privileges() -> None:
        ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_SYS_ADMIN)

    done = subprocess.run([sys.executable, "-m", "datapath", "diff", DEMO], capture_output=True, text=True, timeout=60, preexec_fn=give_up_privileges)
    assert done.returncode == 2 and done.stdout == ""
    assert "expected root" in done.stderr and done.stderr.count("\n") == 1, done.stderr
