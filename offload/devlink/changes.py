"""What can be changed by devlink, each as a request and as the line that devlink(8) takes for the same.

    FunctionAdd(nic, Function(0, sf=88))   devlink port add pci/0000:08:00.0 flavour pcisf pfnum 0 sfnum 88

Both come from the same values, so that a dry run prints what would be asked. Not here: sending (family), options of commands.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from offload.devlink import attributes as of
from offload.devlink.functions import Function, Nic

Attributes = list[tuple[str, Any]]  # by the kernel's names without DEVLINK_ATTR_; a level is such a list by itself
UNKNOWN = "PORT_INDEX"  # devlink(8)'s own word for a number that is not known yet


@dataclass(frozen=True)
class EswitchSet:
    """None: as it is."""

    nic: Nic
    mode: str | None = None
    inline_mode: str | None = None
    encap_mode: str | None = None

    command: ClassVar[int] = of.ESWITCH_SET

    def _given(self) -> Iterator[tuple[str, str, int]]:
        rows = (
            ("mode", "ESWITCH_MODE", of.MODES, self.mode), ("inline-mode", "ESWITCH_INLINE_MODE", of.INLINE_MODES, self.inline_mode),
            ("encap-mode", "ESWITCH_ENCAP_MODE", of.ENCAP_MODES, self.encap_mode),
        )  # fmt: skip
        for said, name, words, value in rows:
            if value is not None:
                yield f"{said} {value}", name, of.number(words, value)

    def attributes(self) -> Attributes:
        return [*_nic(self.nic), *((name, number) for _, name, number in self._given())]

    def line(self) -> str:
        words = " ".join(said for said, _, _ in self._given())
        return f"devlink dev eswitch set {shlex.quote(str(self.nic))} {words}"

    def about(self) -> str:
        return f"{self.nic}: eswitch {', '.join(said for said, _, _ in self._given())}"


@dataclass(frozen=True)
class FunctionAdd:
    """An SF. Without function.sf the driver chooses its number; without index that of the devlink port."""

    nic: Nic
    function: Function
    index: int | None = None

    command: ClassVar[int] = of.PORT_NEW

    def attributes(self) -> Attributes:
        rows = (
            ("PORT_INDEX", self.index), ("PORT_FLAVOUR", of.PCI_SF), ("PORT_PCI_PF_NUMBER", self.function.pf),
            ("PORT_PCI_SF_NUMBER", self.function.sf), ("PORT_CONTROLLER_NUMBER", self.function.controller),
        )  # fmt: skip
        return [*_nic(self.nic), *((name, value) for name, value in rows if value is not None)]

    def line(self) -> str:
        place = str(self.nic) if self.index is None else f"{self.nic}/{self.index}"
        words = [f"devlink port add {shlex.quote(place)} flavour {of.FLAVOURS[of.PCI_SF]} pfnum {self.function.pf}"]
        for said, value in (("sfnum", self.function.sf), ("controller", self.function.controller)):
            words += [f"{said} {value}"] if value is not None else []
        return " ".join(words)

    def about(self) -> str:
        return f"{self.nic}: function {self.function}{'sf' if self.function.sf is None else ''}: add"


@dataclass(frozen=True)
class FunctionDelete:
    """The function behind a devlink port. name: for errors."""

    nic: Nic
    index: int
    name: str = ""

    command: ClassVar[int] = of.PORT_DELETE

    def attributes(self) -> Attributes:
        return [*_nic(self.nic), ("PORT_INDEX", self.index)]

    def line(self) -> str:
        return f"devlink port del {shlex.quote(f'{self.nic}/{self.index}')}"

    def about(self) -> str:
        return f"{self.nic}: {f'function {self.name}' if self.name else f'port {self.index}'}: delete"


@dataclass(frozen=True)
class FunctionSet:
    """mac: as text; state: active or inactive; None: as it is. index None: only known once the function has been added."""

    nic: Nic
    index: int | None
    mac: str | None = None
    state: str | None = None
    name: str = ""

    command: ClassVar[int] = of.PORT_SET

    def attributes(self) -> Attributes:
        """Raises ValueError without an index."""
        if self.index is None:
            raise ValueError("the number of a devlink port is needed to ask for it")
        inner: Attributes = []
        if self.mac is not None:
            inner.append(("HW_ADDR", bytes.fromhex(self.mac.replace(":", ""))))
        if self.state is not None:
            inner.append(("STATE", of.number(of.STATES, self.state)))
        return [*_nic(self.nic), ("PORT_INDEX", self.index), ("PORT_FUNCTION", inner)]

    def _words(self) -> str:
        return " ".join(f"{said} {value}" for said, value in (("hw_addr", self.mac), ("state", self.state)) if value is not None)

    def line(self) -> str:
        place = f"{self.nic}/{UNKNOWN if self.index is None else self.index}"
        return f"devlink port function set {shlex.quote(place)} {self._words()}"

    def about(self) -> str:
        return f"{self.nic}: {f'function {self.name}' if self.name else f'port {self.index}'}: {self._words()}"


Change = EswitchSet | FunctionAdd | FunctionDelete | FunctionSet


def _nic(nic: Nic) -> Attributes:
    return [("BUS_NAME", nic.bus), ("DEV_NAME", nic.name)]
