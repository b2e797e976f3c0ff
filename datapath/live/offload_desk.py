"""What a client may ask of a node's offloading: how it is, why connections are not in hardware, whether hardware holds what it should.

Each is a few short jobs of one worker after the other. Invariant: an answer is bounded by MOST connections, or MOST_LINES lines, whatever there is.
Not here: what mirrors say (offloading), all other requests (requests).
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from ctcore.errors import CtmirrorError
from ctcore.types import Dir
from datapath import fields
from datapath.live.message import Answer, Done, Message, RequestError
from datapath.live.node import Node
from datapath.live.offloading import merged
from datapath.live.wanted import wanted_of
from datapath.live.worker import Worker

if TYPE_CHECKING:
    from datapath.live.requests import Desk, Session

ROWS = 16_384  # of a flow table, that a job looks at: some 0.3 ms
EACH = 32  # connections that a job explains
MOST, FEW = 1000, 20
MOST_LINES = 100
LOOKS = 3  # at what differs


async def software_flows(node: Node) -> dict[str, int]:
    """Flows of the flow tables that are not in hardware, by code. Raises RuntimeError if the node stops."""
    found: dict[str, int] = {}
    for worker in node.workers:
        first, used = 0, 1
        while first < used:
            part, used = await asyncio.wrap_future(worker.ask(partial(_reasons, range(first, first + ROWS))))
            found = merged([found, part])
            first += ROWS
    return found


def _reasons(rows: range, worker: Worker) -> tuple[dict[str, int], int]:
    return ({}, 0) if worker.offload is None else worker.offload.reasons(rows)


def _why(conns: NDArray[Any], worker: Worker) -> list[dict[str, Any]]:
    return [] if worker.offload is None else worker.offload.why(conns)


def _audit(look: Any, worker: Worker) -> dict[str, Any]:
    return {} if worker.offload is None else worker.offload.audit(look)


def _still(told: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """Of an audit what an earlier one has found, too; and notes, which are as of now."""
    known = {(each["what"], each["about"]) for each in before["findings"]}
    lines = [line for line in told["differences"] if line in before["differences"]]
    findings = [each for each in told["findings"] if not each["drift"] or (each["what"], each["about"]) in known]
    fewer = {"differ": (lines, told["differences"]), "drift": (findings, told["findings"])}
    numbers = {name: told[name] if len(left) == len(all_) else _counted(left) for name, (left, all_) in fewer.items()}
    return {**told, "differences": lines, "findings": findings, **numbers}


def _counted(left: list[Any]) -> int:
    return sum(not isinstance(each, dict) or each["drift"] for each in left)


class OffloadDesk:
    """Does these requests for a Desk."""

    def __init__(self, desk: Desk) -> None:
        self.desk, self.node = desk, desk.node
        self.known = {"offload": self.status, "offload_why": self.why, "offload_audit": self.audit}

    def _check(self) -> None:
        if any(worker.offload is None for worker in self.node.workers):
            if self.node.config.offload.backend is not None:
                raise RequestError(f"offload: nothing is offloaded, for no way is left: {'; '.join(self.node.not_offloaded)}")
            raise RequestError("offload: this node has nothing in hardware: expected `backend` in the section [offload] of its configuration")

    async def status(self, session: Session, request: Message) -> Answer:
        """Numbers of all workers together."""
        self._check()
        told = await self.desk.ask(lambda node: merged(worker.offload.figures() for worker in node.workers if worker.offload is not None))
        try:
            flows = await software_flows(self.node)
        except RuntimeError as error:
            raise RequestError(str(error)) from None
        yield Done({**told, "software_flows": flows, "workers": len(self.node.workers)})

    async def why(self, session: Session, request: Message) -> Answer:
        """Of connections, by `which` or by their number `conn`: records with `offload`."""
        self._check()
        wanted, number, most = wanted_of(request.get("which")), _whole(request, "conn", -1, -1, (1 << 63) - 1), _whole(request, "most", FEW, 1, MOST)
        count, shown = 0, 0

        def chosen(worker: Worker, slots: range) -> tuple[int, Any]:
            conns = worker.pipeline.tracker.select(wanted.filter, slots=slots)
            conns = conns[wanted.rest(conns)]
            if number >= 0:
                conns = conns[conns["flow"]["id"][:, Dir.ORIG] == number]
            return worker.number, conns

        async for worker, conns in self.desk.ranges(chosen):
            count += len(conns)
            some = conns[: most - shown]
            shown += len(some)
            for start in range(0, len(some), EACH):
                part = some[start : start + EACH]
                told = await self.desk.ask_one(self.node.workers[worker], partial(_why, part))
                records = fields.conn_records(part, self.desk.hz, self.desk.acct)
                yield {"conns": [{**record, "offload": each} for record, each in zip(records, told, strict=True)]}
        yield Done({"count": count, "shown": shown})

    async def audit(self, session: Session, request: Message) -> Answer:
        """What hardware holds against what it should hold, and the kernel against the node. Each worker's in one job: it has to stand still for
        that."""
        self._check()
        parts = [await self._audited(worker) for worker in self.node.workers]
        whole = merged(parts)
        found = sorted(whole["findings"], key=lambda each: not each["drift"])
        yield Done({**whole, "differences": whole["differences"][:MOST_LINES], "findings": found[:MOST_LINES]})

    async def _audited(self, worker: Worker) -> dict[str, Any]:
        """Where what hardware has is listed while the worker goes on, flows come and go meanwhile: only what differs each time is told."""
        assert worker.offload is not None
        found: dict[str, Any] | None = None
        for _ in range(LOOKS):
            try:
                look = await asyncio.to_thread(worker.offload.look)
                told = await self.desk.ask_one(worker, partial(_audit, look))
            except CtmirrorError as error:
                raise RequestError(str(error)) from None
            found = told if found is None else _still(told, found)
            if look is None or not (found["differ"] or found["drift"]):
                break
        assert found is not None
        return found


def _whole(request: Message, name: str, default: int, least: int, most: int) -> int:
    value = request.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise RequestError(f"{name}: expected a whole number from {max(least, 0):,} to {most:,}")
    return value
