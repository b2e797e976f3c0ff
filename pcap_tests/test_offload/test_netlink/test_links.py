"""Interfaces as the kernel lists them, whoever asks: one that comes or goes meanwhile makes the list be asked for again, and bytes of any kind are an
interface or an error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offload.devlink import representors
from offload.netlink.channel import FINISHED, INTERRUPTED, TRIES, Channel, NetlinkError
from offload.netlink.links import IFINFO, link_of, links, running
from offload.netlink.pack import text
from offload.netlink.read import Malformed

HEAD = IFINFO.pack(0, 1, 7, 0x41, 0)
ASKS: dict[str, Callable[[Channel], Any]] = {
    "numbers": links, "running": running, "representors": lambda channel: [link.iface for link in representors.links(channel)],
}  # fmt: skip


class Changing(Channel):
    """An interface comes or goes while a list is made, so many times: the kernel marks what it lists then."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.left = times

    def _received(self, *, wait: bool = True):
        for kind, flags, number, data in super()._received(wait=wait):
            self.left -= kind == FINISHED
            yield kind, flags | (INTERRUPTED if kind == FINISHED and self.left >= 0 else 0), number, data


@pytest.mark.parametrize("asked", ASKS.values(), ids=ASKS)
def test_interfaces_are_asked_for_again_if_they_change_meanwhile(asked):
    with Changing(2) as channel:
        assert "lo" in asked(channel) and channel.left == -1
    with Changing(TRIES) as channel, pytest.raises(NetlinkError, match="expected to be asked again"):
        asked(channel)


def test_an_interface_by_name_number_and_flags():
    link = link_of(HEAD + text(3, "eth0"))
    assert (link.name, link.number, link.running) == ("eth0", 7, True)
    assert not link_of(IFINFO.pack(0, 1, 7, 0x1, 0) + text(3, "eth0")).running, "up, and without a carrier"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (HEAD[:-1], "link: 15 bytes: expected 16 or more"),
        (HEAD, "link: an interface without a name"),
        (HEAD + text(3, ""), "link: an interface without a name"),
    ],
)
def test_what_is_no_interface(data, said):
    with pytest.raises(Malformed) as error:
        link_of(data)
    assert str(error.value) == said


@given(st.binary(max_size=200))
def test_any_bytes_are_an_interface_or_an_error_of_one_line(data):
    for whole in (data, HEAD + data):
        try:
            assert link_of(whole).name
        except Malformed as error:
            assert "\n" not in str(error)
