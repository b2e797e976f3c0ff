"""Reason codes joined with their texts: what a code is called, does, says, and where its rule comes from.

Invariant, checked at import: enum Reason (types.pxd) and spec/reasons.txt name the same reasons in the same order, or every record would lie.
"""

from __future__ import annotations

from ctcore import spec
from ctcore.errors import SpecError
from ctcore.types import Reason

REASONS = spec.reasons()
NAMES = tuple(reason.name for reason in REASONS)


def _check() -> None:
    codes = [name.removeprefix("R_").lower() for name in Reason.__members__ if name.startswith("R_")]
    if codes != list(NAMES):
        where = next((i for i, (a, b) in enumerate(zip(codes, NAMES, strict=False)) if a != b), min(len(codes), len(NAMES)))
        raise SpecError(f"reasons.txt: entry {where}: enum Reason and the text differ: {codes[where : where + 1]} and {NAMES[where : where + 1]}")


_check()
