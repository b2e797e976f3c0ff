"""Odd uses of everything that takes a NIC: one line on stderr with the place and what was expected, exit code 2, and never a traceback."""

from __future__ import annotations

import gzip
import lzma
from pathlib import Path

import pytest

from offload.simnic import profile
from pcap_tests.test_datapath.command import in_process, run
from pcap_tests.test_offload.planned import conn, written

pytestmark = pytest.mark.usefixtures("compiled_nic")

PLAN, WHY, AUDIT, REPLAY = ("offload", "plan"), ("offload", "why"), ("offload", "audit"), ("replay",)


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder with captures and profiles, good and bad."""
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "one.pcap", conn(40000, 5))
    data = (tmp_path / "one.pcap").read_bytes()
    (tmp_path / "empty.pcap").touch()
    (tmp_path / "noise").write_bytes(b"noise" * 99)
    (tmp_path / "header.pcap").write_bytes(data[:24])
    (tmp_path / "one.gz").write_bytes(gzip.compress(data))
    (tmp_path / "one.xz").write_bytes(lzma.compress(data))
    (tmp_path / "bad.toml").write_text("[table]\ncapacity = 'many'\n")
    (tmp_path / "fault.toml").write_text("[[faults.script]]\nkind = 'burn'\n")
    return tmp_path


@pytest.mark.parametrize(("argv", "said"), [
    ((*PLAN,), "Missing argument 'CAPTURE...'"),
    ((*PLAN, "one.pcap"), "Missing option '--nic'"),
    ((*PLAN, "one.pcap", "--nic", ""), "'': no such NIC: expected one of"),
    ((*PLAN, "one.pcap", "--nic", "."), ".: no such NIC: expected one of"),
    ((*PLAN, "one.pcap", "--nic", "gone.toml"), "gone.toml: cannot be read: No such file"),
    ((*PLAN, "one.pcap", "--nic", "bad.toml"), "bad.toml:2: table.capacity: 'many': expected a whole number"),
    ((*REPLAY, "one.pcap", "--nic", "fault.toml"), "fault.toml:2: faults.script[0].kind: 'burn': expected 'refuse'"),
    ((*PLAN, "gone.pcap", "--nic", "tiny"), "gone.pcap: No such file"),
    ((*PLAN, ".", "--nic", "tiny"), ".: Is a directory"),
    ((*PLAN, "empty.pcap", "--nic", "tiny"), "empty.pcap: empty: expected a pcap or pcapng header"),
    ((*PLAN, "noise", "--nic", "tiny"), "noise: not a capture"),
    ((*PLAN, "one.pcap", "--nic", "tiny", "--table", "-1"), "expected numbers from 0 (no limit) to 268,435,456, separated by commas"),
    ((*PLAN, "one.pcap", "--nic", "tiny", "--table", "1,,2"), "expected numbers from 0"),
    ((*PLAN, "one.pcap", "--nic", "tiny", "--inserts", "fast"), "expected numbers from 0 (at once)"),
    ((*PLAN, "one.pcap", "--nic", "tiny", "--policy", "luck"), "expected first-come, by-rate, by-bytes"),
    ((*PLAN, "one.pcap", "--nic", "tiny", "--plot", "plan.pdf"), "plan.pdf: expected a plot's name to end in .png, .svg or .html"),
    ((*PLAN, "one.pcap", "--nic", "tiny", "--plot", "gone/plan.png"), "gone/plan.png: cannot be written: No such file"),
    ((*PLAN, "one.pcap", "--nic", "tiny", "--json", "one.pcap"), "one.pcap: would be written over the capture that is read"),
    ((*PLAN, "one.pcap", "--nic", "tiny", "--json", "a.png", "--plot", "a.png"), "a.png: expected a file of its own for each output"),
    ((*PLAN, "one.pcap", "--nic", "tiny", "--zone", "5"), "--zone: not with --nic"),
    ((*PLAN, "one.pcap", "--nic", "tiny", "--clock", "wall"), "--clock wall: expected it without --nic"),
    ((*PLAN, "one.pcap", "--nic", "tiny", "--rules", "gone.tc"), "gone.tc: cannot be read: No such file"),
    ((*PLAN, "-", "--nic", "tiny", "--nic", "none"), "-: stdin can be read once, and there are 2 scenarios"),
    ((*WHY, "one.pcap", "--conn", "-1"), "expected a number from 0"),
    ((*WHY, "one.pcap", "--conn", "99999999999999999999"), "expected a number from 0"),
    ((*WHY, "one.pcap", "--conn", "1"), "one.pcap: connection 1: there is none: expected number 0"),
    ((*WHY, "header.pcap", "--conn", "0"), "header.pcap: connection 0: there is none: expected a capture with connections"),
    ((*WHY, "empty.pcap", "--conn", "0", "--json"), "empty.pcap: empty: expected a pcap or pcapng header"),
    ((*WHY, "one.pcap", "--conn", "0", "-o", "one.pcap"), "one.pcap: would be written over the capture that is read"),
    ((*WHY, "one.pcap", "--conn", "0", "--json", "-o", "gone/why.json"), "gone/why.json: cannot be written"),
    ((*AUDIT, "gone.pcap", "--json"), "gone.pcap: No such file"),
    ((*REPLAY, "one.pcap", "--nic", "tiny", "--nic-policy", "luck"), "'luck' is not one of"),
    ((*REPLAY, "one.pcap", "--nic-policy", "by-rate"), "--nic-policy: expected --nic with it"),
    ((*REPLAY, "empty.pcap", "--nic", "tiny", "--conns", "-"), "empty.pcap: empty: expected a pcap or pcapng header"),
])  # fmt: skip
def test_what_cannot_be_is_one_line(capfd, place, argv, said):
    code, out, err = run(capfd, *argv)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("ctmirror: ") and said in err


@pytest.mark.parametrize("name", ["one.gz", "one.xz"])
@pytest.mark.parametrize("command", [PLAN, (*WHY, "--conn", "0"), AUDIT, REPLAY])
def test_compressed_captures_and_stdin_are_read(capfd, place, command, name):
    head, *more = run(capfd, *command, name, "--nic", "tiny", "-q", *(("--json",) if command == PLAN else ()))
    plain = run(capfd, *command, "one.pcap", "--nic", "tiny", "-q", *(("--json",) if command == PLAN else ()))
    assert head == 0 and [text.replace(name, "one.pcap") for text in more] == list(plain[1:])
    with (place / name).open("rb") as stdin:
        piped = in_process(*command, "-", "--nic", "tiny", "-q", *(("--json",) if command == PLAN else ()), stdin=stdin, env=None)
    assert (piped.returncode, piped.stderr) == (0, "")
    assert piped.stdout.replace('"-"', '"one.pcap"') == plain[1]


@pytest.mark.parametrize("command", [PLAN, AUDIT, REPLAY])
def test_a_capture_without_packets_is_no_mistake(capfd, place, command):
    code, out, err = run(capfd, *command, "header.pcap", "--nic", "tiny")
    assert (code, err) == (0, "") and ("0 packets" in out or "0 rules" in out)


@pytest.mark.parametrize("command", [(), ("plan",), ("why",), ("audit",)])
def test_help_has_examples(capfd, command):
    code, out, _ = run(capfd, "offload", *command, "--help")
    assert code == 0 and "Examples:" in out and f"ctmirror offload {' '.join(command)}" in out


@pytest.mark.parametrize("argv", [REPLAY, PLAN, WHY, AUDIT])
def test_help_names_all_kinds_of_nics(capfd, argv):
    code, out, _ = run(capfd, *argv, "--help")
    assert code == 0 and all(name in out for name in profile.names())
