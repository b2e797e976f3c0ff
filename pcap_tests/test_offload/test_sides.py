"""Sides: behind which device an address is; and what is no sensible set of them."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from ctcore.errors import ConfigError
from offload.sides import Sides, side


def behind(sides: Sides, text: str, zone: int = 0) -> str | None:
    address = ip_address(text)
    number = sides.of(zone, address.version, address.packed)
    return None if number is None else sides.sides[number].device


def test_the_longest_prefix_decides():
    sides = Sides([side("wide", ["10.0.0.0/8"]), side("near", ["10.1.2.0/24", "2001:db8::/32"]), side("rest"), side("one", ["10.1.2.3/32"])])
    told = {text: behind(sides, text) for text in ("10.9.9.9", "10.1.2.4", "10.1.2.3", "192.0.2.1", "2001:db8::1", "2001:db9::1")}
    assert told == {
        "10.9.9.9": "wide", "10.1.2.4": "near", "10.1.2.3": "one", "192.0.2.1": "rest", "2001:db8::1": "near", "2001:db9::1": "rest",
    }  # fmt: skip


def test_zones_have_sides_of_their_own():
    sides = Sides([side("a", ["10.0.0.0/8"], zone=1), side("b", ["10.0.0.0/8"], zone=2)])
    assert [behind(sides, "10.0.0.1", zone) for zone in (0, 1, 2)] == [None, "a", "b"]
    assert behind(sides, "11.0.0.1", 1) is None and behind(sides, "::1", 1) is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "0 sides: expected 1 to 256"),
        ([side("a", ["10.0.0.0/8"]), side("b", ["10.0.0.0/8"])], "side b: 10.0.0.0/8 of zone 0 is behind a already: expected it behind one device"),
        ([side("a"), side("b")], "side b: 0.0.0.0/0 of zone 0 is behind a already"),
        ([side("a", zone=1 << 16)], "side a: zone 65536: expected 0 to 65535"),
        ([side("a", chain=0)], "side a: chain 0: expected 1 to 268435455"),
        ([side("a", ["10.0.0.0/8"], zone=1), side("a", ["11.0.0.0/8"], zone=2)], "side a: zones 1, 2: expected one"),
        ([side(f"d{n}", [f"10.{n % 256}.{n // 256}.0/24"]) for n in range(257)], "257 sides"),
        ([side("a", [f"10.{n // 256}.{n % 256}.0/24" for n in range(4097)])], "more than 4096 networks"),
    ],
)
def test_what_makes_no_sense_is_said(given, message):
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        Sides(given)


@pytest.mark.parametrize("text", ["10.0.0.1/8", "x", "10.0.0.0/33", ""])
def test_what_is_no_network_is_said(text):
    with pytest.raises(ConfigError, match=r"side a: network .*: expected an address with a prefix length"):
        side("a", [text])
