"""A node as a service: a thread that works, signals, and what is told to systemd and the log.

Theory of operation: the main thread waits for signals; the node works in another one. SIGTERM and SIGINT stop, SIGHUP reads the rules again.
systemd is told when the node is ready, reloading or stopping, and as long as it works, by the rules of sd_notify(3): a node whose loop hangs is not
reported as alive. Invariant: whatever ends the service, interfaces are given back.
Not here: the node itself (node), its configuration (config).
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from concurrent.futures import TimeoutError as Late
from contextlib import AbstractContextManager, nullcontext

from ctcore.errors import CtmirrorError
from datapath.live.config import NodeConfig
from datapath.live.node import LOG, Node
from datapath.live.succession import NOTHING, Taking, begin, end

LATE = 5.0  # seconds after which a loop that has not come to a job counts as hanging
FAILED = 1


class _Json(logging.Formatter):
    """One JSON object a line: time, level, message, and what the message is about."""

    ordinary = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

    def format(self, record: logging.LogRecord) -> str:
        about = {key: value for key, value in vars(record).items() if key not in self.ordinary}
        time_text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        return json.dumps({"time": time_text, "level": record.levelname.lower(), "message": record.getMessage(), **about}, default=str)


def start_log(level: str, form: str) -> None:
    """Lines to stderr, whence systemd and containers take them."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if form == "json" else logging.Formatter("ctmirror: %(message)s"))
    LOG.handlers = [handler]
    LOG.propagate = False
    LOG.setLevel(level.upper())


def notify(state: str) -> None:
    """Tell systemd, if it has asked (sd_notify(3)). It is no reason to stop that it does not listen."""
    name = os.environ.get("NOTIFY_SOCKET", "")
    if not name.startswith(("/", "@")):
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as to:
            to.sendto(state.encode(), "\0" + name[1:] if name[0] == "@" else name)
    except OSError as error:
        LOG.warning(f"systemd: {error.strerror}")


def watchdog_period() -> float | None:
    """Seconds between two signs of life, half of what systemd waits for; None if it does not wait."""
    wanted = os.environ.get("WATCHDOG_USEC", "")
    mine = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    return int(wanted) / 2e6 if wanted.isdecimal() and int(wanted) > 0 and mine else None


class Service:
    """A node at work, and what happens to it."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.wanted: set[str] = set()  # "stop", "reload"
        self.bell = threading.Event()
        self.failed = False
        self.thread = threading.Thread(target=self._work, name="worker")

    def _work(self) -> None:
        try:
            self.node.work()
        except Exception:
            LOG.exception("the datapath has failed")
            self.failed = True
        self.want("stop")

    def want(self, what: str) -> None:
        self.wanted.add(what)
        self.bell.set()

    def run(self) -> int:
        """Until it is to stop. The exit code."""
        signals = {signal.SIGTERM: "stop", signal.SIGINT: "stop", signal.SIGHUP: "reload"}
        before = {number: signal.signal(number, lambda *_, what=what: self.want(what)) for number, what in signals.items()}
        self.thread.start()
        try:
            notify("READY=1")
            LOG.info("running")
            self._attend()
        finally:
            notify("STOPPING=1")
            self.node.stop()
            self.thread.join()
            for number, handler in before.items():
                signal.signal(number, handler)
        LOG.info("stopped", extra=self.node.loop_counters())
        return FAILED if self.failed else 0

    def _attend(self) -> None:
        period = watchdog_period()
        while "stop" not in self.wanted:
            self.bell.wait(period)
            self.bell.clear()
            if "reload" in self.wanted:
                self.wanted.discard("reload")
                self._reload()
            if period is not None and self._lives():
                notify("WATCHDOG=1")

    def _lives(self) -> bool:
        try:
            self.node.ask(lambda node: None).result(LATE)
        except Late:
            LOG.error("the datapath does not come to its jobs")
            return False
        except RuntimeError:
            return False
        return True

    def _reload(self) -> None:
        notify(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")
        try:
            programs = self.node.load_rules()
            self.node.ask(lambda node: node.take_rules(programs)).result()
        except (CtmirrorError, RuntimeError) as error:
            LOG.error(f"the old rules go on: {error}")
        notify("READY=1")


def serve(config: NodeConfig, level: str, taking: Taking = NOTHING) -> int:
    """Run a node in the foreground. Raises what opening it raises."""
    start_log(level, config.log.format)
    with Node(config) as node:
        begin(node, taking)
        service = Service(node)
        with control_of(node):
            code = service.run()
        if not service.failed:
            end(node, taking)
        return code


def control_of(node: Node) -> AbstractContextManager[object]:
    """The control interface that its configuration asks for. Raises ConfigError."""
    from datapath.live.control import Control

    section = node.config.control
    return Control(node, section.socket, section.group) if section.socket else nullcontext()
