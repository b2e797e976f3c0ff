"""Have everything compiled that frames and commands need, before the first of them comes: which takes half a minute, or nothing where it is kept.

Theory of operation: numba compiles a function when it is called for the first time. So a NIC that nobody else knows takes one frame and one command,
and tables grow once. A NIC that is in use would not do: its time begins with its first frame.
Not here: whether it is kept (kernel), who is told that it takes long.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from offload.records import COMMAND_DTYPE, Op
from offload.simnic import profile, tables
from offload.simnic.nic import Nic
from offload.simnic.rules import DROP, Match, NicRule, NicRules, Plain

LEAST = 64  # bytes of a frame
RULES = NicRules((NicRule(0, 0, 0, (Match("eth_type", 0x0800, 0xFFFF),), (Plain(DROP),)),), {0: 0})


def ready(frames: np.dtype[Any]) -> None:
    """frames: the dtype of frames that are going to come, with the fields that Nic.process() wants."""
    nic = Nic(profile.load("perfect"), RULES)
    frame = np.zeros(1, dtype=frames)
    frame["caplen"] = frame["len"] = LEAST
    nic.process(np.zeros(LEAST, dtype=np.uint8), frame)
    command = np.zeros(1, dtype=COMMAND_DTYPE)
    command["op"] = Op.STATS  # of a rule that is not there
    nic.submit(command, now=0)
    nic.replies(now=0)
    tables.grown(tables.made(tables.LEAST, 0), 2 * tables.LEAST)
