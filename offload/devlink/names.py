"""Names of interfaces out of names of functions: for whoever takes either.

Invariant: for what is no function nothing is asked, and nothing of devlink is even imported. Not here: which is which (representors).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from offload.devlink.functions import NotHere, is_function, named

if TYPE_CHECKING:
    from offload.devlink.representors import Representor


class Resolver:
    """Called with a name, gives that of an interface. What there is is looked up once, when it is first needed."""

    def __init__(self) -> None:
        self._among: list[Representor] | None = None

    def __call__(self, text: str) -> str:
        """A function's interface here; what is no function's name is one. Raises CtmirrorError if there is none, or more than one."""
        if not is_function(text):
            return text
        wanted = named(text)
        from offload.devlink.representors import here, iface_called, representors

        if self._among is None:
            self._among = representors(*here())
        return iface_called(wanted, self._among)

    def if_there(self, text: str) -> str:
        """The same, but that the name of a function without an interface here stays as it is. Raises CtmirrorError for what no machine has."""
        try:
            return self(text)
        except NotHere:
            return text
