"""What a node with hardware is asked, and told before it starts: commands and metrics say the same, and what cannot be is one line."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Literal

import pytest

from ctcore.errors import ConfigError
from datapath.commands.offload_backend import checked, factory
from datapath.live.config import OffloadSection, load
from datapath.live.message import RequestError
from offload.mirror_settings import POLICIES
from pcap_tests.test_datapath.command import in_process
from pcap_tests.test_datapath.test_live.noded import running
from pcap_tests.test_datapath.test_live.offloading_node import offloading, said, talking
from pcap_tests.test_datapath.test_live.processes import process
from pcap_tests.test_datapath.test_live.test_loop import TRACKED, ruled
from pcap_tests.test_datapath.test_live.test_node import REST
from pcap_tests.test_datapath.test_live.test_privileges import HARDENED
from pcap_tests.test_datapath.test_live.test_workers import echoing_tcp

__all__ = ["offloading"]


def test_commands_and_metrics_say_the_same(offloading):
    with offloading() as net, echoing_tcp(net.right) as port, talking(net, port) as talker:
        said(talker, 20)
        status = in_process("offload", "status", "--socket", net.socket)
        assert (status.returncode, status.stderr) == (0, "")
        assert "sim, profile connectx-7-hw, policy first-come" in status.stdout and "2 of 4,194,304" in status.stdout
        assert "tcp_state: its TCP connection is not ESTABLISHED (A2.7)" in status.stdout
        told = json.loads(in_process("offload", "status", "--json", "--socket", net.socket).stdout)
        assert told["entries"] == net.metric("ctmirror_offload_entries") == 2
        assert net.metric('ctmirror_offload_commands_total{op="replace",outcome="done"}') == 2
        assert net.metric('ctmirror_offload_software_packets_total{reason="tcp_state"}') == told["software_packets"]["tcp_state"]
        hard = told["packets"]["hardware"]
        assert net.metric('ctmirror_offload_packets_total{where="hardware"}') == hard
        assert net.client.ask("stats")["packets"] == sum(told["packets"].values())
        assert "hardware (sim): " in in_process("stats", "--socket", net.socket).stdout
        assert "hardware (sim): " in in_process("top", "--once", "-i", "0.1", "--socket", net.socket).stdout
        (number,) = (conn["conn"] for conn in net.client.conns("list", which={"dport": port}))
        why = in_process("offload", "why", "--conn", number, "--socket", net.socket)
        assert "state       in hardware: original and reply directions" in why.stdout
        assert "counted     unknown: hardware has told of no packet" in why.stdout
        audit = json.loads(in_process("offload", "audit", "--json", "--socket", net.socket).stdout)
        assert (audit["agree"], audit["held"], audit["differ"], audit["differences"]) == (True, 2, 0, [])
        none = in_process("offload", "why", "--conn", 4711, "--socket", net.socket)
        assert (none.returncode, none.stderr) == (2, "ctmirror: connection 4711: there is none, or it has ended\n")


# --- as it is started ---------------------------------------------------------------------------------------------------------------------------


NODE = """rules = "rules.tc"
[[iface]]
name = "left"
[control]
socket = ""
[offload]
backend = "sim"
"""


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            'profile = "none-such"',
            ":8: offload.profile: none-such: no such NIC: expected one of connectx-6dx-sw, connectx-7-hw, none, perfect",
        ),
        ('profile = "mine.toml"', ":8: offload.profile: {}/mine.toml:2: table.capacity: "),
        ('profile = "there.toml"', ":8: offload.profile: {}/there.toml: cannot be read: No such file or directory"),
    ],
)
def test_profiles_that_cannot_be_are_told_before_anything_is_opened(tmp_path, more, said):
    (tmp_path / "rules.tc").write_text(REST)
    (tmp_path / "mine.toml").write_text("[table]\ncapacity = -1\n")
    (tmp_path / "node.toml").write_text(NODE + more + "\n")
    for options in ((), ("--check",)):
        done = in_process("run", "--config", tmp_path / "node.toml", *options)
        assert done.returncode == 2 and f"node.toml{said.format(tmp_path)}" in done.stderr and done.stderr.count("\n") == 1


def test_without_the_libraries_it_is_said_what_to_type(tmp_path, monkeypatch):
    monkeypatch.setattr("datapath.commands.nic_option.find_spec", lambda name: None if name == "numba" else object())
    (tmp_path / "rules.tc").write_text(REST)
    (tmp_path / "node.toml").write_text(NODE)
    with pytest.raises(ConfigError, match=r"node\.toml:6: offload\.profile: NICs are simulated by numba: .* -m pip install 'ctmirror\[nic\]'"):
        load(str(tmp_path / "node.toml"), checked)


def test_run_makes_what_the_section_says(tmp_path):
    (tmp_path / "node.toml").write_text(NODE + 'profile = "tiny"\npolicy = "by-bytes"\n')
    config = load(str(tmp_path / "node.toml"), checked)
    make = factory(config)
    assert make is not None and factory(config.model_copy(update={"offload": OffloadSection()})) is None
    made = make(ruled(TRACKED), 0, 1).figures()
    assert (made["backend"], made["profile"], made["policy"], made["capacity"]) == ("sim", "tiny", "by-bytes", 64)
    assert OffloadSection.model_fields["policy"].annotation == Literal[POLICIES], "the mirror's"


def test_a_node_as_it_is_started(wires, tmp_path):
    """From its file, as a process, asked by commands."""
    left = wires("left")
    (tmp_path / "rules.tc").write_text("tc filter add dev left ingress protocol ip prio 1 flower action ct commit pipe action pass\n")
    (tmp_path / "node.toml").write_text(NODE.replace('""', f'"{tmp_path}/s"') + '[log]\nformat = "json"\n')
    with left.here.entered(), process(tmp_path):
        done = in_process("offload", "status", "--socket", tmp_path / "s")
        assert "sim, profile connectx-7-hw, policy first-come" in done.stdout, done.stderr
        assert in_process("offload", "audit", "--socket", tmp_path / "s").returncode == 0
        (line,) = (event for event in map(json.loads, (tmp_path / "log").read_text().splitlines()) if "backend" in event)
        assert line["message"] == "connections are offloaded: sim, profile connectx-7-hw, policy first-come"
        assert (line["backend"], line["profile"], line["policy"]) == ("sim", "connectx-7-hw", "first-come")


def test_where_no_code_may_be_made_it_is_said(tmp_path):
    """As under MemoryDenyWriteExecute= of a unit."""
    (tmp_path / "rules.tc").write_text(REST)
    (tmp_path / "node.toml").write_text(NODE)
    argv = [sys.executable, "-c", HARDENED, sys.executable, "-m", "datapath", "run", "--config", str(tmp_path / "node.toml")]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("ctmirror: offload: a NIC cannot be simulated here: ") and "without MemoryDenyWriteExecute=" in done.stderr


def test_a_node_without_hardware_says_so(tmp_path):
    with running(tmp_path) as rig, rig.client() as client:
        for do in ("offload", "offload_why", "offload_audit"):
            with pytest.raises(RequestError, match=r"this node has nothing in hardware: expected `backend` in the section \[offload\]"):
                client.ask(do)
        assert client.ask("stats")["offload"] is None


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("why", "x.pcap", "--conn", "1", "-p", "tcp"), "-p: expected no CAPTURE with it"),
        (("why", "x.pcap"), "--conn: expected it with a CAPTURE"),
        (("why", "--nic", "tiny"), "--nic: expected a CAPTURE with it: a running node has settings of its own"),
        (("audit", "--rules", "x.tc"), "--rules: expected a CAPTURE with it"),
        (("audit", "x.pcap", "--socket", "/s"), "--socket: expected no CAPTURE with it"),
    ],
)
def test_options_of_the_other_form_are_refused(argv, said):
    done = in_process("offload", *argv)
    assert done.returncode == 2 and said in done.stderr


@pytest.mark.parametrize(("name", "value"), [("most", 0), ("most", 1001), ("conn", "7"), ("conn", True), ("which", 3)])
def test_nonsense_is_refused(offloading, name, value):
    with offloading() as net, pytest.raises(RequestError, match=f"^{name}: expected"):
        net.client.ask("offload_why", **{name: value})
