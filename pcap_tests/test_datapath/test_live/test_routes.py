"""Routes: the longest prefix wins, as a search through all of them says; and neighbours, found as in a dict."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datapath.live.neighbour_table import NeighbourState, NeighbourTable
from datapath.live.routes import RouteKind, RouteRow, RouteTable

ADDRESSES4 = st.integers(0, 2**32 - 1)
ADDRESSES6 = st.integers(0, 2**128 - 1)


def prefix(number: int, length: int, version: int):
    bits = 32 if version == 4 else 128
    packed = (number >> (bits - length) << (bits - length)).to_bytes(bits // 8, "big")
    return ip_network((packed, length))


def naive(rows: list[RouteRow], address) -> RouteRow | None:
    """The first of the longest."""
    found = [row for row in rows if row.prefix.version == address.version and address in row.prefix]
    return max(found, key=lambda row: row.prefix.prefixlen, default=None)


PREFIXES = st.one_of(
    st.builds(prefix, ADDRESSES4, st.integers(0, 32), st.just(4)), st.builds(prefix, ADDRESSES6, st.integers(0, 128), st.just(6))
)  # fmt: skip


@given(st.lists(PREFIXES, max_size=40), st.lists(st.one_of(ADDRESSES4, ADDRESSES6), max_size=10), st.randoms())
def test_a_look_up_finds_what_a_search_through_all_routes_finds(prefixes, numbers, random):
    rows = [RouteRow(one, RouteKind.ROUTE_LINK, i) for i, one in enumerate(prefixes)]
    table = RouteTable()
    table.put(rows)
    asked = [ip_address(number) for number in numbers]
    asked += [one[random.randrange(min(one.num_addresses, 2**62))] for one in prefixes]
    for address in asked:
        best = naive(rows, address)
        found = table.find(address)
        assert (None if found is None else found[1]) == (None if best is None else best.iface)


def test_many_routes_of_one_length_and_a_default():
    random = Random(1)
    rows = [RouteRow(ip_network(f"10.{i >> 8}.{i & 255}.0/24"), RouteKind.ROUTE_LINK, i % 64) for i in range(4096)]
    random.shuffle(rows)
    table = RouteTable()
    table.put([*rows, RouteRow(ip_network("0.0.0.0/0"), RouteKind.ROUTE_VIA, 7, ip_address("192.0.2.1"))])
    assert table.n == 4097
    for i in range(4096):
        assert table.find(ip_address(f"10.{i >> 8}.{i & 255}.200")) == (1, i % 64, ip_address(f"10.{i >> 8}.{i & 255}.0"))
    assert table.find(ip_address("10.16.0.1")) == (0, 7, ip_address("192.0.2.1"))
    assert table.find(ip_address("::1")) is None


def test_too_many_routes_change_nothing():
    table = RouteTable()
    table.put([RouteRow(ip_network("10.0.0.0/8"), RouteKind.ROUTE_LINK, 3)])
    with pytest.raises(ValueError, match="8193: expected 8192"):
        table.put(RouteRow(ip_network((i << 8, 24)), RouteKind.ROUTE_LINK) for i in range(8193))
    assert table.find(ip_address("10.9.9.9"))[1] == 3


STEPS = st.lists(st.tuples(st.sampled_from(["put", "fail", "drop"]), st.integers(0, 2), st.integers(0, 11)), max_size=60)


@given(STEPS)
def test_neighbours_are_found_as_in_a_dict(steps):
    """Whatever is put and dropped; a full table refuses, and failed ones before that."""
    table, model = NeighbourTable(8), {}
    for what, iface, number in steps:
        address = ip_address(number + 1) if number % 2 else ip_address(f"fd00::{number}")
        key, mac = (iface, address), bytes([number] * 6)
        if what == "drop":
            assert table.drop(iface, address) == (model.pop(key, None) is not None)
        else:
            state = NeighbourState.NEIGHBOUR_KNOWN if what == "put" else NeighbourState.NEIGHBOUR_FAILED
            room = key in model or len(model) < (8 if what == "put" else 6)
            assert table.put(iface, address, mac if what == "put" else None) == room
            if room:
                model[key] = state
    table.check()
    assert len(table) == len(model)
    for (iface, address), state in model.items():
        assert table.find(iface, address)[0] == state


def test_who_is_wanted_is_wanted_once_and_the_list_is_short():
    table = NeighbourTable()
    for i in range(100):
        for _ in range(2):
            table.want(1, ip_address(f"10.0.0.{i + 1}"))
    taken = table.take_wanted()
    assert taken == [(1, ip_address(f"10.0.0.{i + 1}")) for i in range(64)]
    assert table.counters() == {"neighbours": 0, "asked": 64, "not_asked": 73, "refused": 0}, "36 twice, and the last one that fitted"
    assert table.take_wanted() == []
