"""NICs in memory in place of those of this machine."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from offload.devlink import family, representors
from offload.devlink.representors import Link
from pcap_tests.test_offload.test_devlink.feigned_family import FeignedFamily, FeignedNic


@pytest.fixture
def machine(monkeypatch) -> Callable[..., list[FeignedFamily]]:
    """Gives this process a kernel with NICs, or None: without devlink; and what its interfaces say of themselves. Which sockets were opened."""
    real = family.Devlink

    def made(*nics: FeignedNic | None, links: tuple[Link, ...] = ()) -> list[FeignedFamily]:
        sockets: list[FeignedFamily] = []

        def opened() -> family.Devlink:
            sockets.append(FeignedFamily(*(nic for nic in nics if nic is not None), family=None not in nics))
            return real(sockets[-1])

        monkeypatch.setattr(family, "Devlink", opened)
        monkeypatch.setattr(representors, "Devlink", opened)
        monkeypatch.setattr(representors, "links", lambda channel: list(links))
        return sockets

    return made
