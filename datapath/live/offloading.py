"""What a worker's mirror is for a node: turns between two rounds, other rules, and what is asked of it; and maybe a front, which has frames first.

    node  -> start()                                            everything is open, and rights are given up; before the workers begin
    loop  -> front.process(memory, frames), front.outputs()     a simulated NIC, and behind it the pipeline
          -> turn(now)                                          flow table, mirror and backend tell each other what has changed
    node  -> prepare(program), take(prepared)                   other rules
    desk  -> figures(), reasons(range), why(conns), audit()     jobs of the worker
          -> look()                                             beforehand, in a thread of its own, if that may take its time

Theory of operation: a node knows neither mirrors nor backends; who puts it together (datapath.commands) hands in a factory, which makes such a thing
for each worker's pipeline. A backend that frames meet is a front; one that is told by netlink has turns only. Where the kernel forwards what it was
given, XDP has to let that by: which packets that are is a map of the backend's (bypass), which the interfaces' programs read.
Invariant: what is told here is JSON, and of several workers adds up (merged).
Not here: mirrors and backends (offload), the requests (offload_desk).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from datapath.pipeline.program import Program
from datapath.pipeline.rules import Hook
from datapath.ruled import RulePipeline

if TYPE_CHECKING:
    from datapath.live.xdp_bypass import XdpBypass

Figures = dict[str, Any]
SAME = ("backend", "profile", "policy", "way", "where", "devices", "why")  # of all workers


class Front(Protocol):
    """Who has frames first, and the pipeline behind it. It is called as a pipeline is: see RulePipeline."""

    def arrive(self, hooks: Sequence[Hook]) -> None: ...
    def process(self, memory: NDArray[np.uint8], frames: NDArray[Any], *, decisions: bool = ..., outputs: bool = ...) -> Any: ...
    def outputs(self) -> tuple[NDArray[Any], NDArray[np.uint8]]: ...
    def summary(self) -> dict[str, Any]: ...
    def counters(self) -> NDArray[Any]: ...
    def shortcuts(self) -> dict[str, int]: ...


class Offloading(Protocol):
    """One worker's. All of it is called by the worker's thread, or while that stands still, but prepare()."""

    @property
    def front(self) -> Front | None:
        """None: frames come to the pipeline."""

    @property
    def bypass(self) -> XdpBypass | None:
        """What XDP lets by to the kernel; the same of all workers. None: nothing."""

    @property
    def steered(self) -> frozenset[str]:
        """Interfaces that have to be opened by XDP, for the kernel forwards what it has of them, too."""

    def start(self) -> None:
        """Begin threads of its own, which have the rights of this one. In the network namespace of the interfaces. May raise what stops the node."""

    def turn(self, now: int) -> int:
        """Time is now (ns). When the next turn is due; what is past: as soon as may be. Bounded in time."""

    def prepare(self, program: Program) -> Any:
        """What take() wants of other rules; from any thread, for it takes its time."""

    def take(self, prepared: Any) -> None:
        """The pipeline has other rules. Connections in hardware stay."""

    def figures(self) -> Figures:
        """docs/offload.md, `status`: numbers, and objects of numbers by name, but for SAME."""

    def reasons(self, rows: range) -> tuple[dict[str, int], int]:
        """Flows of these rows of the flow table that are not in hardware, by code; and how many rows there are."""

    def why(self, conns: NDArray[Any]) -> list[dict[str, Any]]:
        """What there is to say of connections, CONN_DTYPE[n], a record each: docs/offload.md."""

    def close(self) -> bool:
        """The worker has ended: nothing is to stay in hardware, and what that has counted last is the flow table's. Whether nobody is at work there
        any more: else the log says who was left behind. A second time nothing else is done."""

    def look(self) -> Any:
        """What hardware holds, and what else is otherwise there; asked while the worker works, from any thread; None: audit() asks that itself.
        Raises CtmirrorError."""

    def audit(self, look: Any = None) -> dict[str, Any]:
        """held, wanted: rules; pending: flows with a job on its way; differ: rules, of which `differences` has a line each; drift: of the kernel,
        `findings` a record each, notes as well (offload.drift), of the first worker those of the whole node; entries: numbers, or None. look: as
        look() said: what has changed since then differs, too. Raises CtmirrorError."""


# Of a worker's pipeline, its number, and how many workers there are; None: nothing is offloaded.
Factory = Callable[[RulePipeline, int, int], "Offloading | None"]


@runtime_checkable
class Reasoned(Protocol):
    """A Factory that can say why nothing is offloaded: a line each. Known when it has been called."""

    why: Sequence[str]


def reasons_of(factory: object) -> tuple[str, ...]:
    """None, if it cannot say any."""
    return tuple(factory.why) if isinstance(factory, Reasoned) else ()


def merged(parts: Iterable[Mapping[str, Any]]) -> Figures:
    """Figures of several workers as one: numbers added, objects likewise; lists joined; None (no limit, or unknown) stays None."""
    whole: Figures = {}
    for part in parts:
        for name, value in part.items():
            if name not in whole:
                whole[name] = dict(value) if isinstance(value, Mapping) else value
            elif isinstance(value, Mapping):
                whole[name] = merged([whole[name], value])
            elif name not in SAME:
                whole[name] = None if value is None or whole[name] is None else whole[name] + value
    return whole
