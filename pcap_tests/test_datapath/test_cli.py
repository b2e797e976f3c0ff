"""The command: exit codes, one line for every error, where output goes, and what --help costs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from datapath.capture import PcapSource
from datapath.cli import COMMANDS, main
from datapath.craft import tcp
from pcap_tests import stories
from pcap_tests.stories import CLIENT, MS, SERVER


@pytest.fixture
def office(tmp_path):
    return stories.write(tmp_path / "office.pcap", stories.office())


def run(capfd, *argv):
    """Exit code, stdout, stderr of a command."""
    code = main([str(word) for word in argv])
    captured = capfd.readouterr()
    return code, captured.out, captured.err


def records(text):
    return [json.loads(line) for line in text.splitlines()]


def in_process(*argv, **how):
    """The command in a process of its own."""
    return subprocess.run([sys.executable, "-m", "datapath", *map(str, argv)], capture_output=True, text=True, timeout=60, **how)


# --- help and start --------------------------------------------------------------------------------------------------------------------


def test_help_imports_neither_numpy_nor_rich_and_is_quick():
    code = (
        "import sys; from datapath.cli import main; main(['--help']); print(*sorted({'numpy', 'rich', 'orjson', 'ctcore.spec'} & set(sys.modules)))"
    )
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        best = min(best, time.perf_counter() - start)
    assert done.stdout.splitlines()[-1] == ""
    assert all(name in done.stdout for name in COMMANDS)
    assert best < 0.3


@pytest.mark.parametrize("command", [*COMMANDS, "bench engine", "bench replay"])
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
        (["--format", "csv"], "--format: expected records to write: --packets, --conns or --events"),
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


def test_an_internal_error_is_one_line_too(capfd, monkeypatch, office):
    from datapath import app

    def broken(*_, **__):
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(app, "replay", broken)
    code, _, err = run(capfd, "replay", office)
    assert code == 2
    assert err.startswith("ctmirror: internal error: RuntimeError: two lines")
    assert err.count("\n") == 1


def test_a_closed_pipe_ends_the_writing_of_packets_quietly(tmp_path):
    capture = stories.write(tmp_path / "many.pcap", [(i * MS, tcp(CLIENT, SERVER, 1024 + i % 60000, 80)) for i in range(20000)])
    for ending in ("head -c 100 > /dev/null; exit ${PIPESTATUS[0]}", "true; exit ${PIPESTATUS[0]}"):
        command = f"{sys.executable} -m datapath replay {capture} -w - --quiet | {ending}"
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")


def test_a_closed_pipe_ends_quietly(tmp_path):
    capture = stories.write(tmp_path / "many.pcap", [(i * MS, tcp(CLIENT, SERVER, 1024 + i % 60000, 80)) for i in range(20000)])
    command = f"{sys.executable} -m datapath replay {capture} --packets - --quiet | head -n 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert json.loads(done.stdout)["i"] == 0


@pytest.mark.parametrize("argv", [["states"], ["explain", "{}", "--packet", "2"], ["explain", "{}", "--conn", "0"], ["replay", "{}"], ["doctor"]])
def test_text_into_a_closed_pipe_ends_quietly(office, argv):
    command = " ".join([sys.executable, "-m", "datapath", *(word.format(office) for word in argv)])
    done = subprocess.run(["bash", "-c", f"{command} | true; exit ${{PIPESTATUS[0]}}"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


FULL = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")


@FULL
@pytest.mark.parametrize("kind", ["packets", "conns", "events"])
@pytest.mark.parametrize("form", ["jsonl", "csv", "conntrack", "arrow", "parquet"])
def test_a_full_disk_is_named(capfd, office, kind, form):
    if form in ("arrow", "parquet"):
        pytest.importorskip("pyarrow")
    if (kind, form) == ("packets", "conntrack"):
        return
    code, out, err = run(capfd, "replay", office, f"--{kind}", "/dev/full", "--format", form)
    assert (code, out, err) == (2, "", "ctmirror: /dev/full: cannot be written: No space left on device\n")


@FULL
@pytest.mark.parametrize("ending", [".pcap", ".pcapng"])
def test_a_full_disk_is_named_by_forwarded_packets_too(capfd, tmp_path, office, ending):
    (tmp_path / f"out{ending}").symlink_to("/dev/full")
    code, _, err = run(capfd, "replay", office, office, "-w", tmp_path / f"out{ending}", "-q")
    assert (code, err) == (2, f"ctmirror: {tmp_path}/out{ending}: cannot be written: No space left on device\n")


@FULL
@pytest.mark.parametrize(
    "argv", [["states"], ["explain", "{}", "--packet", "2"], ["replay", "{}"], ["replay", "{}", "-q", "--packets", "-"], ["doctor"]]
)
def test_a_full_stdout_is_named(office, argv):
    command = [sys.executable, "-m", "datapath", *(word.format(office) for word in argv)]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (2, "ctmirror: stdout: cannot be written: No space left on device\n")


def test_an_interrupt_reports_what_was_done(capfd, monkeypatch, tmp_path, office):
    from datapath import app

    original, calls = app._Run._chunk, []

    def interrupted(self, facts, memory, frames):
        original(self, facts, memory, frames)
        calls.append(len(frames))
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(app._Run, "_chunk", interrupted)
    monkeypatch.setattr(app, "CHUNK", 5)
    code, out, err = run(capfd, "replay", office, "--packets", tmp_path / "p.jsonl")
    assert (code, err) == (130, "")
    assert "10 packets" in out
    assert "(interrupted)" in out
    assert len(records((tmp_path / "p.jsonl").read_text())) == 10


# --- where things go -------------------------------------------------------------------------------------------------------------------


def test_the_summary_goes_to_stdout(capfd, office):
    code, out, err = run(capfd, "replay", office)
    assert (code, err) == (0, "")
    assert "19 packets" in out


def test_the_summary_makes_way_for_data(capfd, office):
    code, out, err = run(capfd, "replay", office, "--packets", "-")
    assert code == 0
    assert len(records(out)) == 19
    assert "19 packets" in err


def test_quiet_prints_data_only(capfd, office):
    code, out, err = run(capfd, "replay", office, "--conns", "-", "--quiet")
    assert (code, err) == (0, "")
    assert [record["conn"] for record in records(out)] == [0, 1, 2, 3, 4]


def test_off_writes_no_records(capfd, office, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(capfd, "replay", office, "--packets", "off", "--quiet") == (0, "", "")
    assert os.listdir(tmp_path) == ["office.pcap"]


def test_verbose_adds_counters_and_settings(capfd, office):
    _, out, _ = run(capfd, "replay", office, "--verbose", "--timeouts", "udp_timeout=7", "--zone", "5")
    assert "tcp_checksum" in out
    assert "udp_timeout" in out
    assert "setting" in out


@pytest.mark.parametrize("option", ["--quiet", "-v"])
@pytest.mark.parametrize("command", ["states", "doctor", "explain {} --packet 2", "explain {} --conn 0", "replay {}"])
def test_every_command_takes_quiet_and_verbose(capfd, office, command, option):
    code, _, err = run(capfd, *command.format(office).split(), option)
    assert (code, err) == (0, "")


def test_verbose_explain_shows_settings_and_bytes(capfd, office):
    _, out, _ = run(capfd, "explain", office, "--packet", "2", "--verbose", "--timeouts", "udp_timeout=7")
    assert "tcp_liberal=0" in out
    assert "udp_timeout=7" in out
    assert "bytes     0000  02 00 00 00 00 02" in out


def test_quiet_doctor_tells_only_what_is_missing(capfd):
    _, out, _ = run(capfd, "doctor", "-q")
    assert all(line.startswith("missing") for line in out.splitlines())


def test_a_capture_from_stdin(office):
    with open(office, "rb") as file:
        done = in_process("replay", "-", "--packets", "-", "--quiet", stdin=file)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(records(done.stdout)) == 19


def test_no_progress_bar_in_a_pipe(office):
    assert in_process("replay", office).stderr == ""


def on_a_terminal(*argv, columns=80, late=None, stdout=False):
    """What a command draws on a terminal that is its stderr (or its stdout), and what the other one got."""
    import fcntl
    import pty
    import struct
    import termios

    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    early = "" if late is None else f"from datapath.commands import progress; progress.LATE = {late}; "
    code = f"import sys; {early}from datapath.cli import main; sys.exit(main({[str(word) for word in argv]}))"
    streams = {"stdout": slave, "stderr": subprocess.PIPE} if stdout else {"stdout": subprocess.PIPE, "stderr": slave}
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")} | {"TERM": "xterm-256color"}
    done = subprocess.run([sys.executable, "-c", code], **streams, text=True, timeout=60, env=environment)
    os.close(slave)
    drawn = b""
    try:
        while part := os.read(master, 65536):
            drawn += part
    except OSError:  # the terminal is gone: all was read
        pass
    os.close(master)
    return drawn, done.stderr if stdout else done.stdout


@pytest.mark.parametrize("argv", [["replay"], ["explain", "--packet", "2"], ["explain", "--conn", "0"]])
def test_a_progress_bar_on_a_terminal_only_and_on_stderr(office, argv):
    drawn, out = on_a_terminal(*argv, office, columns=200, late=0)
    if argv != ["explain", "--packet", "2"]:  # which stops at its packet
        assert b"\x1b[" in drawn and b"office.pcap" in drawn
    assert "\x1b" not in out


def test_no_progress_bar_flashes_up_for_what_is_done_at_once(office):
    assert on_a_terminal("replay", office)[0] == b""


def test_a_progress_bar_keeps_to_its_line(tmp_path):
    long = stories.write(tmp_path / f"{'long' * 20}.pcap", stories.office())
    drawn, _ = on_a_terminal("replay", long, columns=60, late=0)
    lines = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", drawn).decode().replace("\r", "\n").split("\n")
    assert any("%" in line for line in lines)
    assert max(map(len, lines)) <= 60
    assert drawn.count(b"\x1b[1A") <= 2  # up by the one line that is drawn anew, and over what stands there at the end


def test_explain_is_wrapped_on_a_terminal_only(office):
    drawn, _ = on_a_terminal("explain", office, "--packet", "3", columns=60, stdout=True)
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn.decode()).splitlines()
    assert max(map(len, lines)) <= 60
    whole = in_process("explain", office, "--packet", "3").stdout
    assert max(map(len, whole.splitlines())) > 60
    assert " ".join("".join(lines).split()).replace(" ", "") == "".join(whole.split())


@pytest.mark.parametrize(
    "argv", [["explain", "CAPTURE", "--packet", "3"], ["explain", "CAPTURE", "--conn", "0"], ["states", "tcp"], ["states", "--reasons"]]
)
def test_an_answer_can_go_to_a_file(capfd, tmp_path, office, argv):
    argv = [office if word == "CAPTURE" else word for word in argv]
    code, plain, _ = run(capfd, *argv)
    assert run(capfd, *argv, "-o", tmp_path / "answer.txt") == (code, "", "") == (0, "", "")
    assert (tmp_path / "answer.txt").read_text() == plain
    assert run(capfd, *argv, "-o", "-") == (0, plain, "")
    code, out, err = run(capfd, *argv, "-o", tmp_path / "no" / "where")
    assert (code, out, err) == (2, "", f"ctmirror: {tmp_path / 'no' / 'where'}: cannot be written: No such file or directory\n")


def test_explain_does_not_write_over_its_capture(capfd, office):
    before = Path(office).read_bytes()
    code, _, err = run(capfd, "explain", office, "--packet", "3", "-o", office)
    assert (code, Path(office).read_bytes()) == (2, before)
    assert "over the capture" in err


def test_no_color_is_honoured(office):
    import pty

    def colored(**more):
        master, slave = pty.openpty()
        environment = {**os.environ, "TERM": "xterm-256color", **more}
        subprocess.run([sys.executable, "-m", "datapath", "replay", office], stdout=slave, stderr=subprocess.DEVNULL, env=environment, timeout=60)
        os.close(slave)
        drawn = b""
        try:
            while part := os.read(master, 65536):
                drawn += part
        except OSError:  # the terminal is gone: all was read
            pass
        os.close(master)
        return b"\x1b[3" in drawn

    assert colored()
    assert not colored(NO_COLOR="1")


# --- what the options do ---------------------------------------------------------------------------------------------------------------


def packets(capfd, *argv):
    return records(run(capfd, "replay", *argv, "--packets", "-", "--quiet")[1])


def test_checksums_need_not_be_verified(capfd, office):
    assert packets(capfd, office)[14]["reason"] == "tcp_checksum"
    assert packets(capfd, office, "--checksum", 0)[14]["state"] == "new"


def test_picking_up_can_be_switched_off(capfd, tmp_path):
    capture = stories.write(tmp_path / "mid.pcap", [(0, tcp(CLIENT, SERVER, 1, 2, "A", seq=1, ack=2))])
    assert packets(capfd, capture)[0]["reason"] == "tcp_picked_up"
    assert packets(capfd, capture, "--tcp-loose", 0)[0]["reason"] == "tcp_not_loose"


def test_zone_timeouts_and_acct_reach_the_engine(capfd, office):
    found = packets(capfd, office, "--zone", 9, "--timeouts", "nf_conntrack_udp_timeout=7,icmp_timeout=9", "--timeouts", "icmp_timeout=8")
    assert (found[8]["zone"], found[8]["timeout"], found[10]["timeout"]) == (9, 7.0, 8.0)
    _, out, _ = run(capfd, "replay", office, "--acct", 0, "--conns", "-", "--quiet")
    assert records(out)[0]["original"]["packets"] is None


def test_max_limits_connections(capfd, tmp_path):
    capture = stories.write(tmp_path / "scan.pcap", [(i, tcp(CLIENT, SERVER, 1000 + i, 80)) for i in range(40)])
    reasons = [record["reason"] for record in packets(capfd, capture, "--max", 4)]
    _, out, _ = run(capfd, "replay", capture, "--max", 4, "--conns", "-", "--quiet")
    ends = [record["end"] for record in records(out)]
    assert ends.count("evicted") + reasons.count("table_full") == 36
    assert ends.count("alive") <= 5


def test_liberal_tracking_accepts_what_the_window_check_would_not(capfd, tmp_path):
    story = [*stories.closed_by_client()[:3], (9 * MS, tcp(SERVER, CLIENT, 80, 40000, "A", seq=500, ack=90_000_000))]
    capture = stories.write(tmp_path / "far.pcap", story)
    assert packets(capfd, capture)[3]["reason"] == "tcp_ack_over"
    assert packets(capfd, capture, "--tcp-liberal", 1)[3]["reason"] == "tcp_liberal"


def test_the_wall_clock_ignores_timestamps(capfd, tmp_path):
    story = [*stories.question(), *[(10**12 + at, data) for at, data in stories.question()]]
    capture = stories.write(tmp_path / "later.pcap", story)
    assert [record["conn"] for record in packets(capfd, capture)] == [0, 0, 1, 1]
    assert [record["conn"] for record in packets(capfd, capture, "--clock", "wall")] == [0, 0, 0, 0]


def test_several_captures_continue_one_another(capfd, tmp_path):
    story = stories.closed_by_client()
    first, second = (stories.write(tmp_path / f"{n}.pcap", part) for n, part in enumerate((story[:4], story[4:])))
    found = packets(capfd, first, second)
    assert [(record["file"], record["i"]) for record in found] == [(first, i) for i in range(4)] + [(second, i) for i in range(4)]
    assert [record["conn"] for record in found] == [0] * 8
    assert found[-1]["l4state"] == "TIME_WAIT"


def test_two_replays_give_the_same_bytes(capfd, office, tmp_path):
    for n in range(2):
        argv = ["--packets", tmp_path / f"p{n}", "--conns", tmp_path / f"c{n}", "--events", tmp_path / f"e{n}", "-w", tmp_path / f"w{n}.pcapng"]
        assert run(capfd, "replay", office, *argv, "--quiet")[0] == 0
    for name in "pce":
        assert (tmp_path / f"{name}0").read_bytes() == (tmp_path / f"{name}1").read_bytes()
    assert (tmp_path / "w0.pcapng").read_bytes() == (tmp_path / "w1.pcapng").read_bytes()


# --- forwarded packets -----------------------------------------------------------------------------------------------------------------


def test_forwarded_packets_are_those_accepted(capfd, office, tmp_path):
    run(capfd, "replay", office, "-w", tmp_path / "out.pcap", "--quiet")
    with PcapSource(tmp_path / "out.pcap") as source:
        _, frames = source.read(100)
        assert len(frames) == 18
        assert stories.T + 51 * MS not in frames["ts"].tolist()


def test_a_pcapng_file_carries_each_decision_as_a_comment(capfd, office, tmp_path):
    run(capfd, "replay", office, "-w", tmp_path / "out.pcapng", "--quiet")
    written = (tmp_path / "out.pcapng").read_bytes()
    for comment in (
        b"#0 ct new original SYN_SENT 120s conn 0 [confirmed] reason ok",
        b"#2 ct established original ESTABLISHED 432000s conn 0 [seen-reply assured confirmed] reason ok",
        b"#14 ct invalid reason tcp_checksum",
        b"#16 ct not-seen reason not_ip",
        b"#18 ct new original",  # the fragment before it is not there
    ):
        assert comment in written


def test_what_was_left_out_of_the_forwarded_packets_is_told(capfd, office, tmp_path):
    _, out, _ = run(capfd, "replay", office, "-w", tmp_path / "out.pcap")
    assert f"wrote {tmp_path / 'out.pcap'}: 18 of 19 packets; 1 held or dropped was left out\n" in out
    whole = stories.write(tmp_path / "whole.pcap", stories.closed_by_client())
    _, _, err = run(capfd, "replay", whole, "-w", "-")
    assert "wrote stdout: 8 of 8 packets\n" in err


def test_comments_on_packets_of_several_captures_name_theirs(capfd, office, tmp_path):
    run(capfd, "replay", office, office, "-w", tmp_path / "out.pcapng", "--quiet")
    assert (tmp_path / "out.pcapng").read_bytes().count(f"#14 of {office} ct invalid reason tcp_checksum".encode()) == 2


# --- bench: the command line alone -----------------------------------------------------------------------------------------------------


def test_bench_passes_its_options_on_and_writes_json(capfd, monkeypatch, tmp_path):
    from datapath import benchmark

    asked = []

    def engine(flows):
        asked.append(flows)
        return {"machine": {"cpu": "any"}, "engine": [{"flows": n, "mpps": 12.345} for n in flows]}

    monkeypatch.setattr(benchmark, "engine", engine)
    code, out, _ = run(capfd, "bench", "engine", "--flows", "10,2000", "--json", tmp_path / "out.json")
    assert (code, asked) == (0, [[10, 2000]])
    assert json.loads((tmp_path / "out.json").read_text())["engine"][1]["flows"] == 2000
    assert "engine: flows 2000  mpps 12.3" in out
    code, out, err = run(capfd, "bench", "engine", "--flows", "10", "--json", "-")
    assert json.loads(out)["engine"] == [{"flows": 10, "mpps": 12.345}]
    assert "mpps" in err


@pytest.mark.parametrize("argv", [["bench", "engine", "--json"], ["bench", "-q", "engine", "--json"], ["bench", "engine", "-q", "--json", "-"]])
def test_bench_writes_json_to_stdout_without_a_name(capfd, monkeypatch, argv):
    from datapath import benchmark

    monkeypatch.setattr(benchmark, "engine", lambda flows: {"engine": [{"flows": flows[0]}]})
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


@pytest.mark.parametrize("argv", [["engine"], ["replay", "{}"]])
def test_bench_finds_out_before_measuring_that_figures_cannot_be_written(capfd, monkeypatch, tmp_path, office, argv):
    from datapath import benchmark

    for name in ("engine", "replay"):
        monkeypatch.setattr(benchmark, name, lambda *_: pytest.fail("was measured"))
    target = tmp_path / "none" / "out.json"
    code, out, err = run(capfd, "bench", *(word.format(office) for word in argv), "--json", target)
    assert (code, out, err) == (2, "", f"ctmirror: {target}: No such file or directory\n")


@pytest.mark.parametrize("flows", ["", "0", "1,x", "-3"])
def test_bench_wants_numbers_of_connections(capfd, flows):
    code, _, err = run(capfd, "bench", "engine", "--flows", flows)
    assert code == 2
    assert "expected numbers of connections" in err


def test_devices_take_several_outputs(capfd, office):
    assert run(capfd, "replay", office, "--packets", "/dev/null", "--conns", "/dev/null", "--quiet") == (0, "", "")
