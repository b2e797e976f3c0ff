"""What goes wrong with the running kernel, as judge or as what packets are taken from, in a line fit for users."""

from __future__ import annotations

from ctcore.errors import CtmirrorError


class KernelError(CtmirrorError):
    """The running kernel, or what this process may do with it, does not suffice; the text names what is missing. number: errno, or 0."""

    def __init__(self, text: str, number: int = 0) -> None:
        super().__init__(text)
        self.number = number
