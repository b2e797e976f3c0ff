"""The service with its control interface: there while it runs, gone afterwards, and rules that SIGHUP reads again."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from datapath.live import config as configuration
from datapath.live import node as nodes
from datapath.live import service
from datapath.live.client import Client, NoNode
from pcap_tests.test_datapath.test_live.noded import COMMIT, opened_null

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


def served(config, then):
    """The exit code of a service that runs while `then` does something in another thread; what then() found."""
    found = []

    def act():
        try:
            found.append(then())
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=act)
    thread.start()
    code = service.serve(config, "info")
    thread.join()
    return code, found[0]


def connected(path):
    """A client, as soon as the service is there."""
    for _ in range(200):
        try:
            return Client(path)
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
