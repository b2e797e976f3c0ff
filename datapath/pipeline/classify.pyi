from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

class Classifier:
    """Which rule of a chain is the first that matches."""
    def __init__(self, chains: Sequence[Sequence[tuple[int, bytes, bytes]]], seed: int = 0) -> None:
        """chains: of each chain its entries (place, value, mask): the place of a rule in the order in which they are tried, 0 to 2^32-2, and
        the bytes of FLOWER_DTYPE, as layout.laid() makes them; a rule may have several, and two rules the same. seed: of the hash's secret.
        """
    def lookup(self, keys: NDArray[Any], chain: int = 0, least: int = 0) -> NDArray[np.uint32]:
        """Of each packet the place of the first rule that matches, from place `least` on; 0xFFFFFFFF where none does.

        keys: FLOWER_DTYPE[n], C-contiguous. Returns uint32[n]. Raises ValueError for another dtype, or a chain that is not there.
        """
    def check(self) -> None:
        """Raise AssertionError if an invariant does not hold."""
