"""A node as a process of its own, as systemd would start it: told to, listened to, asked what rights its threads have.

Invariant: it ends with the test. Not here: interfaces (wires), what is in its configuration (the tests).
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pcap_tests.reachable import command

PATIENCE = 20.0


class Process:
    """A node that is ready. folder: where its files are; said: what it has told systemd."""

    def __init__(self, process: subprocess.Popen[str], folder: Path, told: socket.socket) -> None:
        self.process, self.folder, self.told = process, folder, told
        self.said: list[str] = []

    def hears(self, what: str, seconds: float = PATIENCE) -> None:
        """Wait until it tells systemd `what`."""
        end = time.monotonic() + seconds
        while not any(line.startswith(what) for line in self.said):
            self.told.settimeout(0.2)
            try:
                self.said += self.told.recv(4096).decode().splitlines()
            except TimeoutError:
                assert time.monotonic() < end and self.process.poll() is None, f"{what}: not said; it said {self.said}, {self.log()}"

    def threads(self) -> dict[int, dict[str, str]]:
        """By number, that of the main thread is the process's: the fields of /proc/PID/task/*/status."""
        found: dict[int, dict[str, str]] = {}
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            found[int(task.name)] = dict(line.split(":\t", 1) for line in (task / "status").read_text().splitlines() if ":\t" in line)
        return found

    def reload(self) -> None:
        self.said.clear()
        self.process.send_signal(signal.SIGHUP)
        self.hears("RELOADING=1")
        self.hears("READY=1")

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)


@contextmanager
def process(folder: Path, *options: str, before: Sequence[str] = (), **environment: str) -> Iterator[Process]:
    """`ctmirror run` with node.toml of this folder, in this thread's network namespace. before: a command that runs it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told, open(folder / "log", "w") as log:
        (folder / "notify").unlink(missing_ok=True)
        told.bind(str(folder / "notify"))
        os.chmod(folder / "notify", 0o777)
        argv = command([*before, sys.executable, "-m", "datapath", "run", "--config", str(folder / "node.toml"), *options], folder)
        node = subprocess.Popen(argv, stderr=log, text=True, env={**os.environ, "NOTIFY_SOCKET": str(folder / "notify"), **environment})
        it = Process(node, folder, told)
        try:
            it.hears("READY=1")
            yield it
        finally:
            node.kill()
            node.wait()
