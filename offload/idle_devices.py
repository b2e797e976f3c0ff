"""Devices that no packet comes through just now: they are down, or not there at all. It is said in the log when that changes.

Theory of operation: whoever hears of interfaces looks (look), and the others read (idle). Several workers hear of the same, each by a socket of its
own; they look one after the other, so that what was seen later is what counts, and each change is said once.
Invariant: nothing is done about it. A device that is down gets no packet in software either, and has its filters and connections still when it is up
again; those of one that is gone are missing, which whoever has them hears of by itself.
Not here: hearing (netlink.monitor), what is missing (exact_rules, datapath.commands.tc.following).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterator, Mapping

from offload.drift import Drift, Finding

LOG = logging.getLogger("ctmirror")
SAID = {Drift.DEVICE_DOWN: "is down: no packet comes through it", Drift.DEVICE_MISSING: "is not there"}


class IdleDevices:
    """idle: each such device, and what it is: DEVICE_DOWN, DEVICE_MISSING. From any thread."""

    def __init__(self) -> None:
        self.idle: Mapping[str, Drift] = {}
        self._lock = threading.Lock()

    def look(self, running: Callable[[], Mapping[str, bool]], devices: Collection[str]) -> None:
        """running: asks the kernel, see netlink.links; devices: those that are ours. Raises what running() raises."""
        with self._lock:
            told = running()
            found = {
                device: Drift.DEVICE_DOWN if device in told else Drift.DEVICE_MISSING for device in sorted(devices) if not told.get(device, False)
            }
            before, self.idle = self.idle, found
            for device, what in found.items():
                if before.get(device) is not what:
                    LOG.warning(f"offload: {device} {SAID[what]}", extra={"device": device})
            for device in before:
                if device not in found and device in devices:
                    LOG.info(f"offload: {device} is up again", extra={"device": device})

    def findings(self) -> Iterator[Finding]:
        for device, what in self.idle.items():
            yield Finding(what, device, SAID[what].partition(": ")[2])
