from enum import IntEnum
from typing import Any

import numpy as np

class OutputFlag(IntEnum):
    OUTPUT_CHANGED = 1
    OUTPUT_COPY = 2

OUTPUT_DTYPE: np.dtype[Any]  # the C struct Output (outputs.pxd)
