"""A Backend out of the kernel's conntrack: each connection is one entry, which act_ct finds established and offloads; for rules that stand in TC."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from offload.backend import Bypass
from offload.netlink.conntrack import KernelConntrack


class ConntrackEntries:
    """See offload.backend. Of the network namespace that this thread is in now; all calls are one thread's. A context manager.

    hz: ticks a second of the rows handed to ctnetlink; lease: seconds that an entry lives that nobody asks about; most: connections there is room for;
    bypass: what lets packets by to the kernel, None: they come to it anyway.
    """

    def __init__(self, *, hz: int = 250, lease: float = 300.0, most: int = 1 << 22, bypass: Bypass | None = None) -> None:
        self.hz, self.lease, self.most, self.bypass = hz, lease, most, bypass
        self.conntrack = KernelConntrack(hz)
        self.resets = 0

    def submit(self, commands: NDArray[Any], now: int) -> int:
        raise NotImplementedError

    def replies(self, now: int) -> NDArray[Any]:
        raise NotImplementedError

    def held(self) -> NDArray[Any]:
        raise NotImplementedError

    def refusal(self, conn: int) -> str:
        """What the kernel said when it refused a connection's entry last; "" if nothing is known."""
        raise NotImplementedError

    def close(self) -> None:
        """Nothing of ours stays, neither in the kernel nor in the bypass."""
        raise NotImplementedError
