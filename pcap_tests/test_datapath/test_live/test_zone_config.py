"""Zones in a node's configuration: numbers, though keys of TOML are text."""

from __future__ import annotations

import pytest

from ctcore.errors import ConfigError
from datapath.live.config import parse

HEAD = 'rules = "node.tc"\n[[iface]]\nname = "lan"\n[conntrack]\nmax = 1000\n'  # lines 1 to 5


def test_limits_and_reserves_are_of_zones():
    tracking = parse(HEAD + 'zone_limits = { 1 = 10, "2" = 20 }\n[conntrack.zone_reserves]\n7 = 5\n', "n").tracking()
    assert (dict(tracking.zone_limits), dict(tracking.zone_reserves)) == ({1: 10, 2: 20}, {7: 5})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("zone_limits = { lan = 10 }\n", "n:6: conntrack.zone_limits: zone_limits: zone 'lan': expected 0 to 65535"),
        ("zone_limits = { 70000 = 10 }\n", "n:6: conntrack.zone_limits: zone_limits: zone 70000: expected 0 to 65535"),
        ("zone_reserves = 5\n", "n:6: conntrack.zone_reserves: zone_reserves = 5: expected a number for each zone"),
        ("zone_reserves = { 1 = 5000 }\n", "n:4: conntrack: zone_reserves: 5000 in all: expected at most max, 1000"),
    ],
)
def test_what_is_wrong_with_them(text, said):
    with pytest.raises(ConfigError) as error:
        parse(HEAD + text, "n")
    assert str(error.value).startswith(said)
    assert "\n" not in str(error.value)
