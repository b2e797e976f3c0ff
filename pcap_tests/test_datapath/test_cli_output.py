"""Where the command's output goes: summary, data, progress; and what it does where a pipe is closed or a disk is full."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

from datapath import app, craft
from datapath.craft import tcp
from datapath.frame import LINK_RAW
from pcap_tests import stories
from pcap_tests.stories import CLIENT, MS, SERVER
from pcap_tests.test_datapath.command import in_process, records, run

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


def drained(master):
    """All that was drawn on a terminal whose other end is closed."""
    drawn = b""
    try:
        while part := os.read(master, 65536):
            drawn += part
    except OSError:  # the terminal is gone: all was read
        pass
    os.close(master)
    return drawn


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
    drawn = drained(master)
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


def test_no_color_is_honoured(office):
    import pty

    def colored(**more):
        master, slave = pty.openpty()
        environment = {**os.environ, "TERM": "xterm-256color", **more}
        subprocess.run([sys.executable, "-m", "datapath", "replay", office], stdout=slave, stderr=subprocess.DEVNULL, env=environment, timeout=60)
        os.close(slave)
        drawn = drained(master)
        return b"\x1b[3" in drawn

    assert colored()
    assert not colored(NO_COLOR="1")


def test_devices_take_several_outputs(capfd, office):
    assert run(capfd, "replay", office, "--packets", "/dev/null", "--conns", "/dev/null", "--quiet") == (0, "", "")


# --- where they cannot go --------------------------------------------------------------------------------------------------------------


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


FULL = pytest.mark.skipif(not os.path.exists("/dev/full") and os.environ.get("CTMIRROR_REQUIRE_KERNEL") != "1", reason="there is no /dev/full")


@FULL
@pytest.mark.parametrize("kind", ["packets", "conns", "events"])
@pytest.mark.parametrize("form", ["jsonl", "csv", "conntrack", "arrow", "parquet"])
def test_a_full_disk_is_named(capfd, office, kind, form):
    if (kind, form) == ("packets", "conntrack"):
        return
    code, out, err = run(capfd, "replay", office, f"--{kind}", "/dev/full", "--format", form)
    assert (code, out, err) == (2, "", "ctmirror: /dev/full: cannot be written: No space left on device\n")


@FULL
@pytest.mark.parametrize("ending", [".pcap", ".pcapng"])
def test_a_full_disk_is_named_by_forwarded_packets_too(capfd, tmp_path, office, ending):
    (tmp_path / f"out{ending}").symlink_to("/dev/full")
    code, out, err = run(capfd, "replay", office, office, "-w", tmp_path / f"out{ending}")
    assert (code, out, err) == (2, "", f"ctmirror: {tmp_path}/out{ending}: cannot be written: No space left on device\n")


@FULL
def test_a_full_disk_is_not_damage_of_the_capture(capfd, monkeypatch, tmp_path):
    """It ends the replay then and there: neither the rest of the capture is read nor the next one."""
    capture = stories.write(tmp_path / "many.pcap", [(i * MS, tcp(CLIENT, SERVER, 1024 + i, 80, payload=bytes(1400))) for i in range(5000)])
    monkeypatch.setattr(app.Run, "chunk", 4096)
    (tmp_path / "out.pcap").symlink_to("/dev/full")
    code, out, err = run(capfd, "replay", capture, capture, "-w", tmp_path / "out.pcap", "--packets", tmp_path / "p.jsonl")
    assert (code, out, err) == (2, "", f"ctmirror: {tmp_path}/out.pcap: cannot be written: No space left on device\n")
    assert len(records((tmp_path / "p.jsonl").read_text())) == 4096


def test_a_pcap_file_that_cannot_hold_a_second_link_type_ends_the_replay(capfd, tmp_path, office):
    raw = craft.ip(CLIENT, SERVER, craft.UDP, craft.udp_segment(CLIENT, SERVER, 1, 2))
    other = stories.write(tmp_path / "raw.pcapng", [(0, raw)], link=LINK_RAW)
    code, out, err = run(capfd, "replay", office, other, office, "-w", tmp_path / "out.pcap")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"{tmp_path}/out.pcap: packet 19 has" in err


@FULL
@pytest.mark.parametrize(
    "argv", [["states"], ["explain", "{}", "--packet", "2"], ["replay", "{}"], ["replay", "{}", "-q", "--packets", "-"], ["doctor"]]
)
def test_a_full_stdout_is_named(office, argv):
    command = [sys.executable, "-m", "datapath", *(word.format(office) for word in argv)]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (2, "ctmirror: stdout: cannot be written: No space left on device\n")


# --- nowhere to go ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(
    "argv", ["states", "replay {}", "replay {} -q --packets -", "replay {} -q -w -", "explain {} --packet 2", "explain {} --conn 0"]
)
def test_what_is_closed_from_the_start_is_done_without(office, argv, closed):
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m datapath {argv.format(office)} {closed}"], capture_output=True, text=True, errors="replace", timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert bool(done.stdout) == (closed == "2>&-")


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_errors_still_decide_the_exit_code_then(tmp_path, closed):
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m datapath replay {tmp_path}/none.pcap {closed}"], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == (closed == ">&-")
