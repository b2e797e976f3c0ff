"""What is wrong with policy files or with what is asked of them."""

from __future__ import annotations

from ctcore.errors import CtmirrorError


class PolicyError(CtmirrorError):
    """A file of Kubernetes objects is wrong, or cannot be compiled: file, line, document, field, and what was expected.

    Its text is the first line of `lines`, which are everything that is wrong.
    """

    def __init__(self, *lines: str) -> None:
        super().__init__(lines[0])
        self.lines = lines
