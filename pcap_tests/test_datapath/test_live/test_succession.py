"""One node after the other, each as a service works: what it saves, takes up, and says if it cannot."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from datapath import craft
from datapath.live import config as configuration
from datapath.live import node as nodes
from datapath.live import service
from datapath.live.state_file import read_state, save_node
from datapath.live.succession import Taking
from pcap_tests.test_datapath.test_live.noded import COMMIT, opened_null, running

A, B = "10.0.0.1", "10.0.0.2"


@pytest.fixture
def folder(tmp_path, monkeypatch, own_log):
    """A node's folder."""
    monkeypatch.setattr(nodes, "open_interface", opened_null)
    (tmp_path / "node.tc").write_text(COMMIT)
    (tmp_path / "node.toml").write_text(
        'rules = "node.tc"\n[[iface]]\nname = "eth0"\n[[iface]]\nname = "eth1"\n[memory]\nchunks = 4096\n'
        f'[control]\nsocket = "{tmp_path}/s"\n[state]\nfile = "node.state"\nmax_age = 60\n'
    )
    return tmp_path


@pytest.fixture
def state(folder):
    """A file with five connections of a node that goes on, for saving stops nobody."""
    path = str(folder / "node.state")
    with running(folder) as rig:
        rig.send(*(craft.udp(A, B, 1000 + i, 53) for i in range(5)))
        assert save_node(rig.node, path) == os.path.getsize(path)
        assert rig.send(craft.udp(A, B, 1000, 53))["conn"][0] == 0
    return path


def served(folder, taking: Taking) -> list[dict]:
    """A service from its start to SIGTERM, which comes as soon as it runs; what its tracker had in between."""
    seen = []
    begin = service.begin

    def begun(node, how):
        begin(node, how)
        seen.append({"conns": node.pipeline.tracker.count, "left": node.pipeline.tracker.conns()["timeout"].tolist()})
        node.pipeline.tracker.check()
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(service, "begin", begun)
        assert service.serve(configuration.load(str(folder / "node.toml")), "info", taking) == 0
    return seen


def test_a_service_takes_up_what_was_saved_and_saves_it_again(folder, state):
    (seen,) = served(folder, Taking(restore=True))
    assert seen["conns"] == 5 and all(29 * 250 <= left <= 30 * 250 for left in seen["left"])
    assert len(read_state(state).parts) == 1, "saved again, when it was told to stop"
    assert served(folder, Taking(restore=True))[0]["conns"] == 5


def test_without_being_asked_it_starts_empty(folder, state):
    assert served(folder, Taking())[0]["conns"] == 0


def test_a_damaged_file_is_said_and_the_node_starts(folder, state, capsys):
    with open(state, "r+b") as file:
        file.seek(-30, os.SEEK_END)
        file.write(b"\xa5")
    assert served(folder, Taking(restore=True))[0]["conns"] == 0
    said = capsys.readouterr().err
    assert f"starting without the saved connections: {state}: state: damaged: checksum" in said


def test_a_node_that_failed_saves_nothing(folder, state, monkeypatch):
    """What it has may be half done."""
    before = os.stat(state).st_mtime_ns

    def fails(self):
        raise ZeroDivisionError

    monkeypatch.setattr(nodes.Node, "work", fails)
    assert service.serve(configuration.load(str(folder / "node.toml")), "info", Taking()) == service.FAILED
    assert os.stat(state).st_mtime_ns == before


def test_the_files_name_is_relative_to_the_configuration(folder):
    assert configuration.load(str(folder / "node.toml")).state.file == str(folder / "node.state")


def test_restore_wants_a_file(folder, capsys):
    from datapath.cli import main

    text = (folder / "node.toml").read_text()
    (folder / "node.toml").write_text(text[: text.index("[state]")])
    assert main(["run", "--config", str(folder / "node.toml"), "--restore", "--check"]) == 2
    assert "expected `file` in the section [state]" in capsys.readouterr().err


def test_a_kernel_that_tells_nothing_is_said(folder, monkeypatch, capsys):
    from datapath.errors import KernelError
    from datapath.live import kernel_conntrack

    def refuses(*_):
        raise KernelError("ctnetlink: Operation not permitted")

    monkeypatch.setattr(kernel_conntrack, "adopt", refuses)
    monkeypatch.setattr(kernel_conntrack, "hand_over", refuses)
    assert served(folder, Taking(adopt=True, handover=True))[0]["conns"] == 0
    said = capsys.readouterr().err
    assert "starting without the kernel's connections: ctnetlink: Operation not permitted" in said
    assert "connections are not handed over to the kernel: ctnetlink: Operation not permitted" in said
