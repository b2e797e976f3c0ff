"""What hardware has counted, as far as it is known: read once more at the end of a replay, and summed up.

Invariant (Counted): told, unheard and untold are together all that hardware has counted; nothing unknown is taken for 0 (contract A6.50).
Not here: counters of single connections (offload_ledger), what a NIC counts (offload.simnic).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ctcore.flow_changes import ANSWER_DTYPE, Answered, FlowFlag
from datapath.commands.offloaded import Offloaded

SERIAL, ROW = 33, 0xFFFFFFFF  # of a cookie: bits below the serial; of the row, above the direction


def last_look(work: Offloaded, now: int) -> None:
    """Connections get what hardware has counted of them since it was asked last, read past the driver's cache. For the end only: what is still asked
    for is not answered any more. now: ns."""
    rules, replies = work.nic.look(now)
    answers = np.zeros(len(replies), dtype=ANSWER_DTYPE)
    answers["row"], answers["serial"] = replies["cookie"] >> 1 & ROW, replies["cookie"] >> SERIAL
    answers["answer"], answers["used"] = Answered.COUNTED, replies["used"]
    shared, each = replies["shared"] != 0, np.arange(len(replies))
    answers["flags"] = np.where(shared, 0, int(FlowFlag.FLOW_SPLIT))
    side = np.where(shared, 0, rules["dir"])
    for name in ("packets", "bytes"):
        answers[name][each, side] = replies[name]
    if work.watch is not None and len(answers):
        work.watch.answered(answers, now)
    work.flows.answer(answers)
    work.looked = frozenset(rules["conn"].tolist())


@dataclass(frozen=True)
class Counted:
    """Packets that CT tables have counted. split: told, and in the counters of a direction; unsplit: told for both directions together; late: told
    after their connection had ended; unheard: told to nobody, for their rules or answers went first; untold: still in hardware."""

    split: int
    unsplit: int
    late: int
    unheard: int
    untold: int

    @property
    def all(self) -> int:
        return self.split + self.unsplit + self.late + self.unheard + self.untold


def counted_of(work: Offloaded) -> Counted:
    """What is known at the end of a replay."""
    told: dict[str, int] = work.flows.counters()
    unsplit, late = told["hw_packets_unsplit"], told["hw_packets_late"]
    strays = work.nic.heard - told["hw_packets"]  # in answers that came when nobody waited for them any more
    untold = int(work.nic.untold()["packets"].sum())
    return Counted(told["hw_packets"] - unsplit - late, unsplit, late, work.nic.unheard.packets + strays, untold)
