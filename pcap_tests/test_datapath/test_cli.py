"""The command: exit codes, one line for every error, and what --help costs.

Where output goes and what happens when it cannot go there is in test_cli_output; what the options of replay do, in test_replay.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from datapath.capture import PcapSource
from datapath.cli import COMMANDS
from pcap_tests.test_datapath.command import in_process, records, run

# --- help and start --------------------------------------------------------------------------------------------------------------------


def time_of_children() -> float:
    """Seconds of processor time that ended child processes took: those of other programs do not count."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_help_imports_neither_numpy_nor_rich_and_is_quick():
    code = (
        "import sys; from datapath.cli import main; main(['--help']); print(*sorted({'numpy', 'rich', 'orjson', 'ctcore.spec'} & set(sys.modules)))"
    )
    best = float("inf")
    for _ in range(3):
        start = time_of_children()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        best = min(best, time_of_children() - start)
    assert done.stdout.splitlines()[-1] == ""
    assert all(name in done.stdout for name in COMMANDS)
    assert best < 0.3


@pytest.mark.parametrize("command", [*COMMANDS, "bench engine", "bench rules", "bench replay"])
def test_every_command_has_help_with_examples(capfd, command):
    code, out, _ = run(capfd, *command.split(), "--help")
    assert code == 0
    assert f"ctmirror {command.split()[0]}" in out.partition("Examples:")[2]


def test_the_group_s_list_of_commands_is_that_of_the_modules(capfd):
    for name in COMMANDS:
        assert run(capfd, name, "--help")[0] == 0


def test_version(capfd):
    from importlib.metadata import version

    assert run(capfd, "--version") == (0, f"ctmirror {version('ctmirror')}\n", "")


def test_python_m_datapath_is_the_command():
    done = in_process("states", "tcp", "--format", "mermaid")
    assert done.returncode == 0
    assert done.stdout.startswith("stateDiagram-v2")


# --- errors: one line, exit 2 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--zone", "70000"], "'70000': expected a number from 0 to 65,535"),
        (["--zone", "x"], "'x': expected a number"),
        (["--max", "-1"], "'-1': expected a number"),
        (["--tcp-loose", "2"], "'2': expected 0 or 1"),
        (["--tcp-max-retrans", "256"], "expected a number from 0 to 255"),
        (["--timeouts", "udp=3"], "timeouts: 'udp': expected one of"),
        (["--timeouts", ""], "'': expected name=seconds"),
        (["--timeouts", "udp_timeout=3,,gre_timeout=4"], "'': expected name=seconds"),
        (["--format", "csv"], "--format: expected records to write: --packets, --conns, --events or --rule-counters"),
        (["--format", "csv", "--packets", "off", "-w", "out.pcap"], "--format: expected records to write"),
        (["--timeouts", "udp_timeout"], "'udp_timeout': expected name=seconds"),
        (["--timeouts", "udp_timeout=-1"], "'udp_timeout=-1': expected name=seconds"),
        (["--timeouts", "udp_timeout=99999999999"], "expected 0 to"),
        (["--format", "xml"], "xml"),
        (["--clock", "sundial"], "sundial"),
        (["--packets", "-", "--conns", "-"], "expected a file of its own for each output"),
        (["--packets", "p.conntrack"], "conntrack's lines are about connections"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_bad_options_get_one_line(capfd, office, options, expected):
    code, out, err = run(capfd, "replay", office, *options)
    assert (code, out) == (2, "")
    assert err.startswith("ctmirror: ")
    assert err.count("\n") == 1
    assert expected in err


@pytest.mark.parametrize("argv", [["nonsense"], ["replay"], ["explain"], ["states", "ftp"], ["states", "--reasons", "--format", "mermaid"]])
def test_bad_usage_gets_one_line(capfd, argv):
    code, out, err = run(capfd, *argv)
    assert (code, out, err.count("\n")) == (2, "", 1)


@pytest.mark.parametrize("argv", [[], ["bench"]])
def test_a_bare_group_shows_its_help(capfd, argv):
    code, out, err = run(capfd, *argv)
    _, help_text, _ = run(capfd, *argv, "--help")
    assert (code, out) == (2, "")
    assert err.rstrip() == help_text.rstrip()
    assert err.count("\n") > 10


def test_a_capture_that_is_not_there(capfd, tmp_path):
    code, out, err = run(capfd, "replay", tmp_path / "none.pcap", "--packets", tmp_path / "p.jsonl")
    assert (code, out) == (2, "")
    assert err == f"ctmirror: {tmp_path / 'none.pcap'}: No such file or directory\n"
    assert not (tmp_path / "p.jsonl").exists()


def test_captures_around_one_that_is_not_there_are_replayed(capfd, tmp_path, office):
    """As around a damaged one; the command that is suggested does without it."""
    code, out, err = run(capfd, "replay", office, tmp_path / "none.pcap", office)
    assert code == 2
    assert "38 packets, " in out
    assert err == f"ctmirror: {tmp_path / 'none.pcap'}: cannot be opened: No such file or directory\n"
    assert f"ctmirror explain {office} {office} --conn 0" in out


def test_explain_leaves_no_capture_out(capfd, tmp_path, office):
    code, out, err = run(capfd, "explain", tmp_path / "none.pcap", office, "--packet", 3)
    assert (code, out, err) == (2, "", f"ctmirror: {tmp_path / 'none.pcap'}: No such file or directory\n")


def test_a_directory_is_no_capture(capfd, tmp_path):
    code, _, err = run(capfd, "replay", tmp_path)
    assert (code, err.count("\n")) == (2, 1)


@pytest.mark.parametrize("argv", [["replay"], ["explain", "--packet", "2"], ["explain", "--conn", "0"]])
def test_a_fifo_is_opened_once(tmp_path, office, argv):
    """Its writer would get a broken pipe from the first reader's leaving, and the second one would wait for ever."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with subprocess.Popen(["cp", office, fifo]) as writer:
        done = in_process(*argv, fifo)
    assert (done.returncode, done.stderr, writer.returncode) == (0, "", 0)


def test_what_is_no_capture_gets_no_summary(capfd, tmp_path):
    (tmp_path / "notes.txt").write_text("dear diary, " * 10)
    code, out, err = run(capfd, "replay", tmp_path / "notes.txt")
    assert (code, out) == (2, "")
    assert f"{tmp_path / 'notes.txt'}: not a capture" in err


def test_what_was_read_before_damage_is_kept_written_and_reported(capfd, tmp_path, office):
    whole = Path(office).read_bytes()
    cut = tmp_path / "cut.pcap"
    cut.write_bytes(whole[:-5])
    code, out, err = run(capfd, "replay", cut, "--packets", tmp_path / "p.jsonl", "-w", tmp_path / "out.pcap")
    assert code == 2
    assert "18 packets" in out
    assert err.startswith(f"ctmirror: {cut}: truncated")
    assert err.count("\n") == 1
    assert [record["i"] for record in records((tmp_path / "p.jsonl").read_text())] == list(range(18))
    with PcapSource(tmp_path / "out.pcap") as source:
        assert len(source.read(100)[1]) == 17  # all but the fragment


def test_a_life_is_told_up_to_the_damage(capfd, tmp_path, office):
    cut = tmp_path / "cut.pcap"
    cut.write_bytes(Path(office).read_bytes()[:-5])
    whole, told = run(capfd, "explain", office, "--conn", "0"), run(capfd, "explain", cut, "--conn", "0")
    assert (whole[0], told[0]) == (0, 2)
    assert told[1].splitlines()[1:] == whole[1].splitlines()[1:]  # the first line has the time that is left
    assert len(told[1].splitlines()) > 8
    assert told[2].startswith(f"ctmirror: {cut}: truncated")
    assert told[2].count("\n") == 1


def test_a_life_behind_the_damage_is_an_error(capfd, tmp_path, office):
    cut = tmp_path / "cut.pcap"
    cut.write_bytes(Path(office).read_bytes()[:-5])
    code, out, err = run(capfd, "explain", cut, "--conn", "77")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "truncated" in err


def test_captures_after_a_damaged_one_are_replayed(capfd, tmp_path, office):
    cut = tmp_path / "cut.pcap"
    cut.write_bytes(Path(office).read_bytes()[:-5])
    code, out, err = run(capfd, "replay", cut, office)
    assert code == 2
    assert "37 packets, " in out
    assert err.count("\n") == 1


def test_outputs_never_overwrite_the_capture(capfd, office):
    before = Path(office).read_bytes()
    for option in ("-w", "--packets"):
        code, _, err = run(capfd, "replay", office, option, office)
        assert code == 2
        assert "over the capture" in err
    assert Path(office).read_bytes() == before


def test_explain_does_not_write_over_its_capture(capfd, office):
    before = Path(office).read_bytes()
    code, _, err = run(capfd, "explain", office, "--packet", "3", "-o", office)
    assert (code, Path(office).read_bytes()) == (2, before)
    assert "over the capture" in err


@pytest.mark.parametrize("spelling", ["{}/o.jsonl", "{}/./o.jsonl", "{}/x/../o.jsonl", "{}/link/o.jsonl"])
def test_one_new_file_is_not_two_outputs(capfd, tmp_path, office, spelling):
    (tmp_path / "x").mkdir()
    (tmp_path / "link").symlink_to(tmp_path)
    code, out, err = run(capfd, "replay", office, "--packets", spelling.format(tmp_path), "--conns", tmp_path / "o.jsonl")
    assert (code, out) == (2, "")
    assert "expected a file of its own for each output" in err
    assert not (tmp_path / "o.jsonl").exists()


def test_stdout_is_not_a_file_called_like_it(capfd, tmp_path, office, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(capfd, "replay", office, "--packets", "-", "--conns", "./-", "-q")
    assert (code, len(records(out)), len(records((tmp_path / "-").read_text()))) == (0, 19, 5)


def test_an_internal_error_is_one_line_too(capfd, monkeypatch, office):
    from datapath import app

    def broken(*_, **__):
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(app, "replay", broken)
    code, _, err = run(capfd, "replay", office)
    assert code == 2
    assert err.startswith("ctmirror: internal error: RuntimeError: two lines")
    assert err.count("\n") == 1


def test_an_interrupt_reports_what_was_done(capfd, monkeypatch, tmp_path, office):
    from datapath import app

    original, calls = app.Run.work, []

    def interrupted(self, facts, memory, frames):
        original(self, facts, memory, frames)
        calls.append(len(frames))
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(app.Run, "work", interrupted)
    monkeypatch.setattr(app.Run, "chunk", 5)
    code, out, err = run(capfd, "replay", office, "--packets", tmp_path / "p.jsonl")
    assert (code, err) == (130, "")
    assert "10 packets" in out
    assert "(interrupted)" in out
    assert len(records((tmp_path / "p.jsonl").read_text())) == 10


def test_an_interrupt_while_packets_are_written_takes_none_of_them_for_held(capfd, monkeypatch, tmp_path, office):
    from datapath import app

    original, calls = app.Run._forward, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        original(*args)

    monkeypatch.setattr(app.Run, "_forward", interrupted)
    monkeypatch.setattr(app.Run, "chunk", 5)
    code, out, err = run(capfd, "replay", office, office, "-w", tmp_path / "out.pcap")
    assert (code, err) == (130, "")
    assert f"wrote {tmp_path}/out.pcap: 5 of 10 packets\n" in out
    calls.clear()
    result = app.replay([office, office], app.Tracking(), app.Outputs(forwarded=str(tmp_path / "out.pcap")))
    assert [capture.packets for capture in result.captures] == [10]


# --- names that are no text ------------------------------------------------------------------------------------------------------------

STRANGE = os.fsdecode(b"b\xfcro  \n1.pcap")  # latin-1, two blanks, a line break
SHOWN = r"b\xfcro  \x0a1.pcap"


def test_a_capture_whose_name_is_no_text_is_replayed(capfd, tmp_path, office):
    strange = str(tmp_path / STRANGE)
    os.rename(office, strange)
    code, out, err = run(capfd, "replay", strange)
    assert (code, err) == (0, "")
    assert out.startswith(f"{tmp_path}/{SHOWN}   pcap, Ethernet")
    assert f"ctmirror explain $'{tmp_path}/{SHOWN}' --packet 14" in out
    for argv in (["--packet", "2"], ["--conn", "0"]):
        assert run(capfd, "explain", strange, *argv)[::2] == (0, "")


def test_the_command_that_is_suggested_for_it_works(capfd, tmp_path, office):
    strange = tmp_path / os.fsdecode(b"it's \xfc\\ \x1b[1m.pcap")
    os.rename(office, strange)
    _, out, _ = run(capfd, "replay", strange)
    command = next(line.strip() for line in out.splitlines() if "--packet 14" in line)
    script = command.replace("ctmirror", f"{sys.executable} -m datapath", 1)
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "tcp_checksum" in done.stdout


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_records_name_it_as_text(capfd, tmp_path, office, form):
    strange = str(tmp_path / STRANGE)
    os.rename(office, strange)
    target, written = tmp_path / os.fsdecode(b"p\xff"), tmp_path / os.fsdecode(b"w\xff.pcapng")
    code, out, err = run(capfd, "replay", strange, strange, "--packets", target, "--format", form, "-w", written)
    assert (code, err) == (0, "")
    assert rf"wrote {tmp_path}/w\xff.pcapng: " in out
    assert (SHOWN.replace("\\", "\\\\") if form == "jsonl" else SHOWN) in target.read_text()
    assert f"#14 of {tmp_path}/{SHOWN} ct invalid".encode() in written.read_bytes()


def test_errors_about_it_are_one_line_and_keep_its_blanks(capfd, tmp_path):
    missing = tmp_path / os.fsdecode(b"no  \xff such.pcap")
    assert run(capfd, "replay", missing) == (2, "", f"ctmirror: {tmp_path}/no  \\xff such.pcap: No such file or directory\n")
    (tmp_path / STRANGE).write_text("dear diary, " * 10)
    code, _, err = run(capfd, "replay", tmp_path / STRANGE)
    assert (code, err.count("\n")) == (2, 1)
    assert "no capture" in err or "not a capture" in err
