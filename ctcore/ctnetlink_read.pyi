from typing import Any

from numpy.typing import NDArray

UNCOUNTED: int

def rows_of(messages: list[bytes], hz: int, dying: bool = False) -> tuple[NDArray[Any], NDArray[Any], dict[str, int]]: ...
