"""One node follows another, or the kernel: what it takes over when it begins, and what it leaves when it ends.

Theory of operation: the saved state comes first, for it knows most; what the kernel tracks is added where no connection of its own has the tuple.
Neither is a reason not to start: what cannot be taken over is said in the log, and the node goes on without.
Invariant: called only while the node does not work: no packet comes between.
Not here: the state's file (state_file), the kernel's connections (kernel_conntrack).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from ctcore.errors import CtmirrorError
from datapath.live import state_file
from datapath.live.node import LOG

if TYPE_CHECKING:
    from datapath.live.node import Node


class Taking(NamedTuple):
    """What was asked for: a saved state, the kernel's connections, and to give them back."""

    restore: bool = False
    adopt: bool = False
    handover: bool = False


NOTHING = Taking()


def begin(node: Node, taking: Taking) -> None:
    if taking.restore and node.config.state.file is not None:
        _restore(node, node.config.state.file)
    if taking.adopt:
        _adopt(node)


def end(node: Node, taking: Taking) -> None:
    """A node that has stopped in order. What hardware has comes out of it first: in the kernel it would be in the way of what is handed over, and who
    is still at taking it out would take that out as well."""
    alone = node.take_out()
    if node.config.state.file is not None:
        _save(node, node.config.state.file)
    if taking.handover and not alone:
        LOG.error("connections are not handed over to the kernel: offloading has not ended, and takes out what it has there")
    elif taking.handover:
        _hand_over(node)


def _restore(node: Node, path: str) -> None:
    start = time.monotonic()
    try:
        found = state_file.restore_node(node, path, node.config.state.max_age)
    except CtmirrorError as error:
        LOG.error(f"starting without the saved connections: {error}")
        return
    if found is None:
        LOG.warning(f"starting without connections: {path}: no such file")
        return
    about = {
        "conns": found.conns,
        "expired": found.expired,
        "left_out": found.left_out,
        "age": round(found.age, 3),
        "seconds": round(time.monotonic() - start, 3),
    }
    LOG.info("saved connections taken up", extra=about)


def _save(node: Node, path: str) -> None:
    start = time.monotonic()
    try:
        size = state_file.write_state(path, state_file.snapshot(node))
    except CtmirrorError as error:
        LOG.error(f"connections are not saved: {error}")
        return
    LOG.info("connections saved", extra={"conns": node.count, "bytes": size, "seconds": round(time.monotonic() - start, 3)})


def _adopt(node: Node) -> None:
    from datapath.live import kernel_conntrack

    try:
        found = kernel_conntrack.adopt(node.trackers, time.time_ns())
    except (CtmirrorError, OSError) as error:
        LOG.error(f"starting without the kernel's connections: {error}")
        return
    LOG.info("the kernel's connections taken over", extra=found.told())


def _hand_over(node: Node) -> None:
    from datapath.live import kernel_conntrack

    for worker in node.workers:
        if worker.pipeline.flows is not None:
            worker.pipeline.flows.flush()
    try:
        done = kernel_conntrack.hand_over(node.trackers)
    except (CtmirrorError, OSError) as error:
        LOG.error(f"connections are not handed over to the kernel: {error}")
        return
    LOG.info("connections handed over to the kernel", extra=done.told())
