"""Parsing and reassembly by the model: what defragment.Gatherer is for the engine, for judges that ask the model.

Invariant: the same frames give the same rows as defragment.Gatherer.parse(), one frame at a time.
Not here: the rules of reassembly (ctcore.model.fragments).
"""

from __future__ import annotations

import numpy as np

from ctcore.batch import Batch
from ctcore.config import Config
from ctcore.model.fragments import ModelReassembler, read
from ctcore.types import Reason
from datapath.defragment import refused
from datapath.frame import LINK_RAW, frames_of
from datapath.wire import parse_batch


class ModelGatherer:
    """Parser and the model's reassembly. zone: of every packet."""

    def __init__(self, config: Config | None = None, *, zone: int = 0) -> None:
        self.reassembler = ModelReassembler(config)
        self.zone, self.packets, self.now = zone, 0, 0

    def parse(self, memory: np.ndarray, frames: np.ndarray) -> Batch:
        """One frame (FRAME_DTYPE[1] of uint8[n]) as a batch of one row: of a datagram, if the frame completes one."""
        self.packets += 1
        batch = self._parse(memory, frames, "gathered")
        row, start = batch.array[0], int(frames["offset"][0])
        self.now = max(self.now, int(row["now"]))
        if row["reason"] != Reason.R_FRAGMENT:
            return batch
        packet = memory[start + int(row["l3_off"]) : start + int(frames["caplen"][0])].tobytes()
        length = int(row["ip_len"])
        fragment = read(packet[:length], length, self.zone, self.packets - 1)
        if fragment is None:  # its header is not all there: in the capture, or at all
            refused(batch, 0, Reason.R_FRAGMENT_MALFORMED if read(packet[:length].ljust(length, b"\0"), length) is None else Reason.R_SNAPPED)
            return batch
        answer = self.reassembler.add(fragment, self.now)
        if answer.outcome == "dropped":
            refused(batch, 0, answer.reason)
        if answer.outcome == "passed":
            return self._parse(memory, frames, "passed")
        if answer.outcome == "whole":
            memory, frames = frames_of([answer.data], ts=int(row["now"]), link=LINK_RAW)
            frames["len"] = answer.length
            return self._parse(memory, frames, "passed")
        return batch

    def _parse(self, memory: np.ndarray, frames: np.ndarray, fragments: str) -> Batch:
        config = self.reassembler.config
        return parse_batch(memory, frames, zone=self.zone, checksum=config.checksum, nat=bool(config.nat), fragments=fragments)
