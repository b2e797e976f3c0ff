"""A node's metrics as text: read at a scrape, no more often than once a second, and written by Prometheus's own library.

Theory of operation: a reading is one short job for the counters and some for the census of connections, SLOTS slots each, so that packets wait for
none longer than some tenths of a millisecond. Scrapes that come while a reading is young are given the same text; those that come meanwhile wait
for it.
Invariants: a datapath that does not come to its jobs makes a scrape fail after PATIENCE, and nothing else. Text is made in the caller's thread,
never in the datapath's.
Not here: what is measured (metrics), HTTP (metrics_server). Imported only where metrics are on: needs the extra `metrics`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib.metadata import version

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client import generate_latest as as_text
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST as OPEN_METRICS
from prometheus_client.openmetrics.exposition import generate_latest as as_open_metrics
from prometheus_client.registry import Collector

from ctcore.errors import CtmirrorError
from datapath.live.figures import look
from datapath.live.metrics import METRICS, OWN, Labels, Look, Metric, ZoneNames, counted, gathered
from datapath.live.node import Node
from datapath.live.offload_desk import software_flows
from datapath.live.worker import Worker

SLOTS = 8192  # of a table in one job: some 0.3 ms
FRESH = 1.0  # seconds for which a reading is good enough
PATIENCE = 5.0  # seconds for a reading
PLAIN = "text/plain; version=0.0.4; charset=utf-8"
FORMATS: dict[str, Callable[[Collector], bytes]] = {PLAIN: as_text, OPEN_METRICS: as_open_metrics}


class NotAnswering(CtmirrorError):
    """The datapath does not come to its jobs, or is about to end."""


def format_of(accept: str) -> str:
    """The content type for what a client says it takes."""
    return OPEN_METRICS if "application/openmetrics-text" in accept else PLAIN


class Exposition(Collector):
    """The metrics of a node. zones: most that have a label of their own."""

    def __init__(self, node: Node, zones: int = 32) -> None:
        self.node, self.zones = node, ZoneNames(zones)
        self.start = time.monotonic()
        self.looks: list[Look] = []
        self.read_at, self.took = float("-inf"), 0.0
        self._texts: dict[str, bytes] = {}
        self._seen: dict[str, dict[Labels, None]] = {}
        self._reading = asyncio.Lock()
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(self)
        ProcessCollector(registry=self.registry)

    async def text(self, form: str) -> bytes:
        """All of it, in one of FORMATS. Raises NotAnswering."""
        async with self._reading:
            if time.monotonic() - self.read_at >= FRESH:
                await self._read()
                self._texts = {}
            if form not in self._texts:
                self._texts[form] = FORMATS[form](self.registry)
            return self._texts[form]

    async def lives(self) -> None:
        """Raises NotAnswering unless the datapath comes to a job."""
        try:
            async with asyncio.timeout(PATIENCE):
                await asyncio.wrap_future(self.node.ask(lambda node: None))
        except (TimeoutError, RuntimeError):
            raise NotAnswering("the datapath does not come to its jobs") from None

    async def _read(self) -> None:
        start = time.monotonic()
        try:
            async with asyncio.timeout(PATIENCE):
                found = await asyncio.wrap_future(self.node.ask(look))
                found["census"] = counted(await self._census())
                found["software_flows"] = await software_flows(self.node) if found["offload"] else None
        except (TimeoutError, RuntimeError):
            raise NotAnswering("the datapath does not come to its jobs") from None
        self.looks, self.read_at = [found], time.monotonic()
        self.took = self.read_at - start

    async def _census(self) -> list[NDArray[np.uint32]]:
        """A part for each range of slots of each worker."""
        parts = []
        for worker in self.node.workers:
            first, used = 0, 1
            while first < used:
                part, used = await asyncio.wrap_future(worker.ask(partial(_count_some, range(first, first + SLOTS))))
                parts.append(part)
                first += SLOTS
        return parts

    # --- the library's side ---------------------------------------------------------------------------------------------------------------

    def collect(self) -> Iterator[Family]:
        for metric in METRICS:
            samples = gathered(metric, self.looks, self.zones)
            if metric.lasting:
                seen = self._seen.setdefault(metric.name, {})
                seen.update(dict.fromkeys(samples))
                samples = {labels: samples.get(labels, 0) for labels in seen}
            if samples:
                yield _family(metric, samples)
        values: Iterable[tuple[tuple[str, ...], float]] = (((version("ctmirror"),), 1), ((), time.monotonic() - self.start), ((), self.took))
        for (name, _, said, labels), (values_of_labels, value) in zip(OWN, values, strict=True):
            family = GaugeMetricFamily(name, said, labels=labels)
            family.add_metric(values_of_labels, value)
            yield family


def _count_some(slots: range, worker: Worker) -> tuple[NDArray[np.uint32], int]:
    """A part of a census, and how many slots there are by now."""
    return worker.pipeline.tracker.census(slots=slots), worker.pipeline.tracker.slots


def _family(metric: Metric, samples: dict[Labels, float]) -> Family:
    name = f"ctmirror_{metric.name}"
    if metric.kind == "histogram":
        total = samples.pop(("sum",))
        return HistogramMetricFamily(name, metric.help, buckets=[(bound, number) for (bound,), number in samples.items()], sum_value=total)
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family = kind(name, metric.help, labels=metric.labels)
    for labels, number in samples.items():
        family.add_metric(labels, number)
    return family
