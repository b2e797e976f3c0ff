from typing import Any

from numpy.typing import NDArray

from ctcore.ctnetlink import Ask

def requests(conns: NDArray[Any], hz: int, ask: Ask, helper: bool = True) -> list[bytes]: ...
