"""Ctrl-C at a good moment: what is begun is finished first, so that all that is written tells of the same packets.

Not here: what is done about it (app, cli).
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def finished_first() -> Iterator[None]:
    """Ctrl-C within the block is a KeyboardInterrupt at its end; a second one, of who will not wait, is one at once.

    Only the main thread has signals; in others, and where Ctrl-C is ignored or somebody else's, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    pressed = False

    def note(*_: object) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if pressed:
        raise KeyboardInterrupt
