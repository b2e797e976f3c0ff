"""What of a saved state is values of Python: where its bytes lie, and by what names NAT rules are known again.

Not here: the bytes themselves (state.pxd, state_save, state_restore).
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ctcore.config import Config

if TYPE_CHECKING:
    from typing_extensions import Buffer

WORD = 8


def rule_names(config: Config) -> list[int]:
    """64 bits for each NAT rule, by what it matches and allows, whatever its place and the words it was written in."""
    texts = (f"{rule.kind} {rule.match} {rule.range}" for rule in config.nat)
    return [int.from_bytes(hashlib.blake2b(text.encode(), digest_size=WORD).digest(), "little") for text in texts]


def aligned(state: Buffer) -> NDArray[np.uint8]:
    """The bytes, uint8[n], at an address that is a multiple of 8: their own place, or a copy."""
    whole = memoryview(state)
    data = np.frombuffer(whole, dtype=np.uint8) if whole.nbytes else np.empty(0, dtype=np.uint8)
    return data if data.ctypes.data % WORD == 0 else data.copy()
