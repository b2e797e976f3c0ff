from typing import Any

from numpy.typing import NDArray

def rows_of(messages: list[bytes], hz: int) -> tuple[NDArray[Any], NDArray[Any], dict[str, int]]: ...
