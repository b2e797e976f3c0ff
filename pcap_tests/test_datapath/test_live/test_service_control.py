"""The service with its control interface: there while it runs, gone afterwards, and rules that SIGHUP reads again."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from contextlib import closing

import pytest

from datapath.live import config as configuration
from datapath.live import node as nodes
from datapath.live import service
from datapath.live.client import Client, NoNode
from pcap_tests.test_datapath.test_live.noded import COMMIT, opened_null
from pcap_tests.test_datapath.test_live.test_metrics import free_port, got

ONE = COMMIT[: COMMIT.index("tc qdisc add dev eth1")]


@pytest.fixture
def folder(tmp_path, monkeypatch, own_log):
    """A folder with a configuration."""
    monkeypatch.setattr(nodes, "open_interface", opened_null)
    (tmp_path / "node.tc").write_text(COMMIT)
    (tmp_path / "node.toml").write_text(
        f'rules = "node.tc"\n[[iface]]\nname = "eth0"\n[[iface]]\nname = "eth1"\n[memory]\nchunks = 4096\n[control]\nsocket = "{tmp_path}/s"\n'
    )
    return tmp_path


def served(config, then, level="info"):
    """The exit code of a service that runs while `then` does something in another thread; what then() found."""
    found = []

    def act():
        try:
            found.append(then())
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=act)
    thread.start()
    code = service.serve(config, level)
    thread.join()
    return code, found[0]


def connected(path):
    """A client, as soon as the service is there and answers."""
    for _ in range(200):
        try:
            client = Client(path)
            client.ask("count")
            return client
        except NoNode:
            time.sleep(0.05)
    raise AssertionError("nobody listens")


def test_a_service_is_asked_and_reads_its_rules_again(folder):
    def then():
        with connected(f"{folder}/s") as client:
            before = client.ask("stats")["rules"]["rules"]
            (folder / "node.tc").write_text(ONE)
            os.kill(os.getpid(), signal.SIGHUP)
            for _ in range(200):
                if (after := client.ask("stats")["rules"]["rules"]) != before:
                    break
                time.sleep(0.02)
            (folder / "node.tc").write_text("tc nonsense\n")
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.2)
            return before, after, client.ask("stats")["rules"]["rules"]

    assert served(configuration.load(str(folder / "node.toml")), then) == (0, (2, 1, 1))
    assert not (folder / "s").exists()


def test_a_service_whose_socket_is_taken_does_not_start(folder):
    config = configuration.load(str(folder / "node.toml"))

    def then():
        connected(f"{folder}/s").close()
        with pytest.raises(configuration.ConfigError, match="another node listens there"), nodes.Node(config) as node, service.control_of(node):
            pass

    assert served(config, then)[0] == 0


def test_without_a_socket_nobody_is_listened_to_and_no_events_are_made(folder):
    text = (folder / "node.toml").read_text().replace(f"{folder}/s", "")
    config = configuration.parse(text, "node.toml").model_copy(update={"rules": str(folder / "node.tc")})
    assert config.tracking().events == frozenset()
    with nodes.Node(config) as node, service.control_of(node) as control:
        assert control is None
    assert configuration.load(str(folder / "node.toml")).tracking().events == {"new", "update", "destroy"}


def test_the_seed_is_drawn_unless_it_is_given(folder):
    config = configuration.load(str(folder / "node.toml"))
    assert config.tracking().seed != config.tracking().seed
    given = config.model_copy(update={"conntrack": {"seed": 7}})
    assert given.tracking().seed == 7


# --- systemd ----------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def systemd(folder, monkeypatch):
    """What is told to systemd from now on, with a watchdog of 0.4 s: told() has it."""
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as listener:
        listener.bind(f"{folder}/notify")
        listener.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", f"{folder}/notify")
        monkeypatch.setenv("WATCHDOG_USEC", "400000")
        monkeypatch.delenv("WATCHDOG_PID", raising=False)

        def told():
            found = []
            while True:
                try:
                    found += listener.recv(4096).decode().splitlines()
                except BlockingIOError:
                    return found

        yield told


def test_the_watchdog_is_fed_only_while_the_loop_comes_to_its_jobs(folder, systemd, monkeypatch, capsys):
    monkeypatch.setattr(service, "LATE", 0.1)
    nodes_there, entered = [], service.begin
    monkeypatch.setattr(service, "begin", lambda node, taking: nodes_there.append(node) or entered(node, taking))

    def then():
        connected(f"{folder}/s").close()
        time.sleep(1.0)
        well = systemd()
        stuck = nodes_there[0].ask(lambda node: time.sleep(1.5))
        time.sleep(0.3)  # what was on its way
        systemd()
        time.sleep(1.0)
        hanging = systemd()
        stuck.result(10)
        time.sleep(0.6)
        return well, hanging, systemd()

    code, (well, hanging, again) = served(configuration.load(str(folder / "node.toml")), then)
    assert code == 0
    assert well[0] == "READY=1" and well.count("WATCHDOG=1") >= 3
    assert hanging == []
    assert again and set(again) == {"WATCHDOG=1"}
    assert systemd()[-1] == "STOPPING=1"
    assert "the datapath does not come to its jobs" in capsys.readouterr().err


def test_rules_that_take_long_to_compile_starve_no_watchdog(folder, systemd, monkeypatch):
    compiled = nodes.Node.load_rules
    monkeypatch.setattr(nodes.Node, "load_rules", lambda self, ruleset=None: (time.sleep(1.2), compiled(self, ruleset))[1])

    def then():
        connected(f"{folder}/s").close()
        systemd()
        for _ in range(2):  # the second one comes while the first is at it, and is not lost
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.2)  # the socket's queue holds ten messages
        return [line for _ in range(30) for line in (time.sleep(0.1), systemd())[1]]

    code, told = served(configuration.load(str(folder / "node.toml")), then)
    assert code == 0
    turns = [line.partition("=")[0] for line in told]
    turns = turns[turns.index("RELOADING") :]  # READY of the start may come later than its first answer
    assert [turn for turn in turns if turn != "WATCHDOG" and turn != "MONOTONIC_USEC"] == ["RELOADING", "READY"] * 2
    first, second = turns.index("READY"), len(turns) - 1 - turns[::-1].index("READY")
    assert turns[:first].count("WATCHDOG") >= 3 and turns[first:second].count("WATCHDOG") >= 3


# --- metrics and the log ------------------------------------------------------------------------------------------------------------------------


def configured(folder, more):
    (folder / "node.toml").write_text((folder / "node.toml").read_text() + more)
    return configuration.load(str(folder / "node.toml"))


def test_metrics_are_there_where_they_are_asked_for(folder):
    port = free_port()

    def then():
        connected(f"{folder}/s").close()
        for _ in range(100):
            try:
                return got(f"http://127.0.0.1:{port}/metrics")[1]
            except OSError:
                time.sleep(0.05)

    code, text = served(configured(folder, f'[metrics]\nlisten = "127.0.0.1:{port}"\n'), then)
    assert code == 0 and "ctmirror_table_connections 0.0" in text
    with pytest.raises(OSError, match="Connection refused"):
        got(f"http://127.0.0.1:{port}/metrics")


def test_without_the_library_there_is_one_line_that_names_the_extra(folder, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "prometheus_client"]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("datapath.live.metrics_server", "datapath.live.exposition"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(configuration.ConfigError, match=r"metrics: prometheus_client is missing: .* -m pip install 'ctmirror\[metrics\]'"):
        service.serve(configured(folder, f'[metrics]\nlisten = "127.0.0.1:{free_port()}"\n'), "info")
    assert not (folder / "s").exists()


def test_metrics_that_are_off_load_nothing():
    code = "import sys; from datapath.live import service; print('prometheus_client' in sys.modules)"
    import subprocess

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_the_log_of_a_service_as_json(folder, capsys):
    code, _ = served(configured(folder, '[log]\nformat = "json"\n'), lambda: connected(f"{folder}/s").ask("log", level="info"))
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert code == 0
    said = {line["message"].partition(":")[0] + line["message"][:0] for line in lines}
    assert {"running as root", "running", "stopped"} <= said
    (asked,) = (line for line in lines if line["message"].startswith("control: log level info"))
    assert (asked["level"], asked["pid"], asked["uid"]) == ("info", os.getpid(), 0)
    assert isinstance(lines[-1]["frames"], int)


# --- saving -----------------------------------------------------------------------------------------------------------------------------------


def test_save_writes_where_the_configuration_says_and_nowhere_else(folder, capfd):
    from datapath.live.state_file import read_state
    from pcap_tests.test_datapath.command import run

    def then():
        with connected(f"{folder}/s") as client:
            done = client.ask("save", file=f"{folder}/other", path="/tmp/other")
            printed = run(capfd, "save", "--socket", f"{folder}/s")
            quiet = run(capfd, "save", "--quiet", "--socket", f"{folder}/s")
            return done, printed, quiet, len(read_state(f"{folder}/node.state").parts)

    code, (done, printed, quiet, parts) = served(configured(folder, '[state]\nfile = "node.state"\n'), then)
    assert code == 0 and parts == 1
    assert (done["file"], done["connections"]) == (f"{folder}/node.state", 0) and done["bytes"] == os.path.getsize(done["file"])
    assert printed[0] == 0 and printed[1].startswith(f"{folder}/node.state: 0 connections, ") and quiet[:2] == (0, "")
    assert sorted(path.name for path in folder.iterdir()) == ["node.state", "node.tc", "node.toml"]


def test_save_says_why_it_cannot(folder, capfd):
    from pcap_tests.test_datapath.command import run

    def then():
        connected(f"{folder}/s").close()
        return run(capfd, "save", "--socket", f"{folder}/s")

    code, (exit_code, out, err) = served(configuration.load(str(folder / "node.toml")), then)
    assert (code, exit_code, out) == (0, 2, "")
    assert err.splitlines()[-1] == "ctmirror: save: this node keeps no state: expected `file` in the section [state] of its configuration"

    def gone():
        connected(f"{folder}/s").close()
        os.rename(folder / "kept", folder / "moved")
        return run(capfd, "save", "--socket", f"{folder}/s")

    (folder / "kept").mkdir()
    code, (exit_code, out, err) = served(configured(folder, '[state]\nfile = "kept/node.state"\n'), gone)
    assert (code, exit_code, out) == (0, 2, "") and "cannot be written: No such file or directory" in err


def test_a_folder_that_is_not_there_is_said_at_the_start(folder):
    with pytest.raises(configuration.ConfigError, match=r"state.file: .*/none: no such folder: expected one of its own"):
        service.serve(configured(folder, '[state]\nfile = "none/node.state"\n'), "info")


def test_a_systemd_that_does_not_listen_stops_nobody(folder, systemd, monkeypatch, capsys):
    """The queue of its socket is full after some messages."""
    monkeypatch.setattr(service, "HEARD", 0.1)
    service.start_log("info", "text")
    start = time.monotonic()
    for _ in range(15):
        service.notify("WATCHDOG=1")
    assert time.monotonic() - start < 5 and 1 <= len(systemd()) < 15
    assert "systemd: timed out" in capsys.readouterr().err
