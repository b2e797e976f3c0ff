"""A node as a service: a thread that works, signals, and what is told to systemd and the log.

Theory of operation: the main thread waits for signals; the node works in another one. SIGTERM and SIGINT stop, SIGHUP reads the rules again.
systemd is told when the node is ready, reloading or stopping, and as long as it works, by the rules of sd_notify(3): a node whose loop hangs is not
reported as alive, and one that compiles many rules is. A start goes in this order: sockets for commands and metrics, interfaces, rights are given up,
threads of offloading and neighbours begin, connections are taken over, all others begin.
Invariant: whatever ends the service, interfaces are given back.
Not here: the node itself (node), its configuration (config), rights (privileges), the log's form (logs).
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import TimeoutError as Late
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path

from ctcore.errors import ConfigError, CtmirrorError
from datapath.extras import remedy
from datapath.live import privileges
from datapath.live.config import NodeConfig
from datapath.live.control import Control, listening
from datapath.live.logs import start_log
from datapath.live.node import LOG, Node
from datapath.live.offloading import Factory
from datapath.live.privileges import Rights
from datapath.live.reopening import Reopening
from datapath.live.succession import NOTHING, Taking, begin, end

LATE = 5.0  # seconds after which a loop that has not come to a job counts as hanging
HEARD = 0.5  # seconds that systemd has for taking a message
FAILED = 1
ABOUT = {"sim": {"backend", "profile", "policy"}, "tc": {"backend", "policy"}}  # what the log says of offloading


def notify(state: str) -> None:
    """Tell systemd, if it has asked (sd_notify(3)). It is no reason to stop that it does not listen."""
    name = os.environ.get("NOTIFY_SOCKET", "")
    if not name.startswith(("/", "@")):
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as to:
            to.settimeout(HEARD)  # its queue may be full
            to.sendto(state.encode(), "\0" + name[1:] if name[0] == "@" else name)
    except OSError as error:
        LOG.warning(f"systemd: {error.strerror or error}")


def watchdog_period() -> float | None:
    """Seconds between two signs of life, half of what systemd waits for; None if it does not wait."""
    wanted = os.environ.get("WATCHDOG_USEC", "")
    mine = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    return int(wanted) / 2e6 if wanted.isdecimal() and int(wanted) > 0 and mine else None


class Service:
    """A node at work, and what happens to it. rights: what its threads give up."""

    def __init__(self, node: Node, rights: Rights | None = None) -> None:
        self.node = node
        self.rights = rights or Rights()
        self.wanted: set[str] = set()  # "stop", "reload"
        self.bell, self.begun = threading.Event(), threading.Event()
        self.failed = False
        self.thread = threading.Thread(target=self._work, name="worker")
        self.reloading: threading.Thread | None = None

    def _work(self) -> None:
        try:
            self._shed()
            self.node.work()
        except Exception:
            LOG.exception("the datapath has failed")
            self.failed = True
        self.want("stop")

    def _shed(self) -> None:
        try:
            self.rights.shed()
        finally:
            self.begun.set()

    def want(self, what: str) -> None:
        self.wanted.add(what)
        self.bell.set()

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Signals say what is wanted, from before anybody is answered."""
        meant = {signal.SIGTERM: "stop", signal.SIGINT: "stop", signal.SIGHUP: "reload"}
        before = {number: signal.signal(number, lambda *_, what=what: self.want(what)) for number, what in meant.items()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def run(self) -> int:
        """Until it is to stop. The exit code."""
        self.thread.start()
        self.begun.wait()
        try:
            about = self.node.config.offload
            if about.backend is not None and any(worker.offload is not None for worker in self.node.workers):
                LOG.info(f"connections are offloaded: {about.told()}", extra=about.model_dump(include=ABOUT[about.backend]))
            notify("READY=1")
            LOG.info("running")
            self._attend()
        finally:
            notify("STOPPING=1")
            self.node.stop()
            self.thread.join()
            if self.reloading is not None:
                self.reloading.join()
        LOG.info("stopped", extra=self.node.loop_counters())
        return FAILED if self.failed else 0

    def _attend(self) -> None:
        period = watchdog_period()
        while "stop" not in self.wanted:
            self.bell.wait(period)
            self.bell.clear()
            if "reload" in self.wanted and (self.reloading is None or not self.reloading.is_alive()):
                self.wanted.discard("reload")
                self.reloading = threading.Thread(target=self._reload, name="reload")
                self.reloading.start()
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
        """Beside the thread that tells systemd of life: many rules take their time."""
        self.rights.shed()
        notify(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")
        try:
            programs = self.node.load_rules()
            self.node.ask(lambda node: node.take_rules(programs)).result()
        except (CtmirrorError, RuntimeError) as error:
            LOG.error(f"the old rules go on: {error}")
        notify("READY=1")
        self.bell.set()  # there may be another one to do


def serve(config: NodeConfig, level: str, taking: Taking = NOTHING, offload: Factory | None = None) -> int:
    """Run a node in the foreground. offload: makes what workers have in hardware. Raises what opening it raises."""
    start_log(level, config.log.format)
    rights = rights_of(config)
    with ExitStack() as stack:
        made = _door(config, rights, stack)
        measured = _counter(config, stack)
        node = stack.enter_context(Node(config, lambda: _settle(config, rights), offload))
        begin(node, taking)
        rights.begun(privileges.NET_ADMIN if taking.handover or _has_to_restore(node) else privileges.NONE)
        if said := rights.told():
            (LOG.info if rights.wanted else LOG.warning)(said)
        service = Service(node, rights)
        with service.signals(), control_of(node, made, rights), metrics_of(node, measured, rights), Reopening(node, rights):
            code = service.run()
        if not service.failed:
            end(node, taking)
        return code


def rights_of(config: NodeConfig) -> Rights:
    """What the configuration says of rights. Raises ConfigError."""
    section = config.privileges
    account = privileges.account_of(section.user) if section.user is not None else None
    return Rights(account, section.drop or account is not None)


def _settle(config: NodeConfig, rights: Rights) -> None:
    """Everything is open: rights go, and what is needed without them is tried."""
    rights.drop()
    privileges.check_access(config.rules, config.state.file)


def _has_to_restore(node: Node) -> bool:
    """Whether an interface has to be given back as it was."""
    return any(opened.unmerged is not None for opened in node.opened)


def _door(config: NodeConfig, rights: Rights, stack: ExitStack) -> socket.socket | None:
    """Where commands come in, bound before rights go. Gone with the stack: a folder that was made for it is the user's who has to remove it."""
    section = config.control
    if not section.socket:
        return None
    folder = Path(section.socket).parent
    new = not folder.exists()
    made = stack.enter_context(listening(section.socket, section.group))
    stack.callback(_remove, section.socket, os.stat(section.socket).st_ino)
    if new and rights.account is not None:
        os.chown(folder, rights.account.uid, rights.account.gid)
    return made


def _remove(path: str, inode: int) -> None:
    """A socket's file, if it is still this one's: of a start that came to nothing."""
    with suppress(OSError):
        if os.stat(path).st_ino == inode:
            os.unlink(path)


def _counter(config: NodeConfig, stack: ExitStack) -> socket.socket | None:
    """Where metrics are asked for, if anywhere. Gone with the stack."""
    if config.metrics.listen is None:
        return None
    try:
        from datapath.live.metrics_server import bound
    except ModuleNotFoundError as error:
        raise ConfigError(f"metrics: {error.name} is missing: {remedy('metrics')}") from None
    return stack.enter_context(bound(config.metrics.listen))


def metrics_of(node: Node, made: socket.socket | None, rights: Rights | None = None) -> AbstractContextManager[object]:
    """Metrics at a socket, or nothing without one."""
    if made is None:
        return nullcontext()
    from datapath.live.metrics_server import MetricsServer

    return MetricsServer(node, made, zones=node.config.metrics.zones, enter=(rights or Rights()).shed)


def control_of(node: Node, made: socket.socket | None = None, rights: Rights | None = None) -> AbstractContextManager[object]:
    """The control interface that its configuration asks for; made: what it listens at, if that is there. Raises ConfigError."""
    section = node.config.control
    if not section.socket:
        return nullcontext()
    return Control(node, section.socket, section.group, made=made, enter=(rights or Rights()).shed)
