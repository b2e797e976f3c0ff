"""A node at work without interfaces of the machine, its control interface, and packets that come to it when a test says so.

Packets go through the node's pipeline in a job, as the loop would send them through; their time is now. Not here: real interfaces.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datapath.frame import frames_of
from datapath.live import node as nodes
from datapath.live.client import Client
from datapath.live.config import NodeConfig
from datapath.live.control import Control
from datapath.live.drivers import Opened
from datapath.live.node import Node
from datapath.live.null import Null

# Whatever is new is committed, in zone 5 from eth1.
COMMIT = """tc qdisc add dev eth0 clsact
tc filter add dev eth0 ingress prio 1 protocol all flower action ct commit pipe action pass
tc qdisc add dev eth1 clsact
tc filter add dev eth1 ingress prio 1 protocol all flower action ct commit zone 5 pipe action pass
"""


class Rig:
    """A node, its control interface, and a way to have packets come."""

    def __init__(self, node: Node, control: Control, path: str) -> None:
        self.node, self.control, self.path = node, control, path

    def send(self, *frames: bytes, iface: int = 0) -> np.ndarray:
        """Frames that come to an interface now; the decisions on them."""
        return self.job(lambda node: _come(node, frames, iface))

    def job(self, job: Callable[[Node], Any]) -> Any:
        return self.node.ask(job).result(10)

    def client(self) -> Client:
        return Client(self.path)

    @property
    def counts(self) -> dict[str, int]:
        return self.control.counts

    def until(self, true: Callable[[], bool], seconds: float = 10.0) -> None:
        """Wait for something that another thread does."""
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, "it did not come to that"
            time.sleep(0.005)


def _come(node: Node, frames: tuple[bytes, ...], iface: int) -> np.ndarray:
    now = max(time.time_ns(), node.pipeline.tracker.now)
    memory, rows = frames_of(list(frames), np.full(len(frames), now, dtype=np.int64))
    rows["iface"] = iface
    decisions, _, _ = node.pipeline.process(memory, rows)
    return decisions


def opened_null(umem: Any, name: str, wanted: Any) -> Opened:
    return Opened(name, "null", [Null(umem, name, ordinal=wanted.ordinal)])


@contextmanager
def running(
    folder: Path, rules: str = COMMIT, *, open_iface: Callable[..., Opened] = opened_null, called: Mapping[str, str] = {}, **sections: Any
) -> Iterator[Rig]:
    """A node with interfaces eth0 and eth1 that works until the end of the block. called: what its configuration calls them besides."""
    (folder / "rules.tc").write_text(rules)
    path = str(folder / "control.sock")
    config = NodeConfig.model_validate({
        "rules": str(folder / "rules.tc"), "iface": [{"name": "eth0", "inward": "eth1"}, {"name": "eth1", "inward": "eth0"}],
        "memory": {"chunks": 4096}, "control": {"socket": path}, **sections,
    })  # fmt: skip
    config._functions.update(called)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nodes, "open_interface", open_iface)
        node = Node(config)
    worker = threading.Thread(target=node.work, name="worker")
    with node, Control(node, path) as control:
        worker.start()
        try:
            yield Rig(node, control, path)
            node.ask(lambda node: node.pipeline.tracker.check()).result(10)
        finally:
            node.stop()
            worker.join()
