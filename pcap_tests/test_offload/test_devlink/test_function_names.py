"""How NICs and functions are called, and what is no such name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datapath.pipeline.flower_keys import is_function as may_be_function
from offload.devlink.functions import Function, Misnamed, Named, Nic, function_of, is_function, is_uplink, named, nic_of, wants_next

PCI = Nic("pci", "0000:08:00.0")
SMALL = st.integers(0, 0xFFFF)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("pf0vf3@0000:08:00.0", Named("pf0vf3", PCI)),
        ("pf0vf3@pci/0000:08:00.0", Named("pf0vf3", PCI)),
        ("c1pf0sf88@pci/0000:08:00.0", Named("c1pf0sf88", PCI)),
        ("p0@0000:08:00.0", Named("p0", PCI)),
        ("p0s1@0000:08:00.0", Named("p0s1", PCI)),
        ("l2p0@0000:08:00.0", Named("l2p0", PCI)),
        ("00:AA:22:33:44:55@0000:08:00.0", Named("00:aa:22:33:44:55", PCI)),
        ("pf0vf1@netdevsim/netdevsim10", Named("pf0vf1", Nic("netdevsim", "netdevsim10"))),
        ("pf00vf03@0000:08:00.0", Named("pf0vf3", PCI)),
        ("pf0sf@0000:08:00.0", Named("pf0sf", PCI)),
        ("p0pf0vf3@0000:08:00.0", Named("p0pf0vf3", PCI)),  # sfc
        ("pf0vfr3@0000:08:00.0", Named("pf0vfr3", PCI)),  # ice before it had devlink ports
        ("pf0s1@0000:08:00.0", Named("pf0s1", PCI)),  # nfp
    ],
)
def test_a_function_and_its_nic(text, meant):
    assert is_function(text) and may_be_function(text)
    assert named(text) == meant and named(str(meant)) == meant


@pytest.mark.parametrize("text", ["eth0", "eth0@eth1", "a@b", "pf0vf3", "@", "pf0vf3@", "0000:08:00.0", "eth0.5@eth0"])
def test_names_of_interfaces_are_none(text):
    assert not is_function(text) and not may_be_function(text)


@pytest.mark.parametrize(
    "text",
    [
        "vf3@0000:08:00.0", "pf0vf65536@0000:08:00.0", "pf0sf4294967296@0000:08:00.0", "pf@0000:08:00.0", "pf0vf1sf1@0000:08:00.0",
        "eth0@0000:08:00.0",
        "pf0vf3@pci/", "pf0vf3@/0000:08:00.0", "pf0vf3@a/b/c:d", "pf0vf3@0000:08:00.0@x:y", "pf٣vf0@0000:08:00.0", "00:11:22:33:44@0000:08:00.0",
        "pf0vf3@0000:08:00.0;reboot", "pf0vf3@0000:08:00.0\n", "\x00@a:b",
    ],
)  # fmt: skip
def test_what_is_no_function_is_said_so_in_a_line(text):
    with pytest.raises(Misnamed) as error:
        named(text)
    assert "expected" in str(error.value) and "\n" not in str(error.value)


@given(SMALL, st.none() | SMALL, st.none() | SMALL, st.none() | SMALL)
def test_functions_are_what_they_are_called(pf, vf, sf, controller):
    function = Function(pf, vf, None if vf is not None else sf, controller)
    assert function_of(str(function)) == function


def test_uplinks_and_addresses_are_no_functions():
    assert function_of("p0") is None and function_of("00:11:22:33:44:55") is None
    assert is_uplink("p0") and is_uplink("l1p2s3") and not is_uplink("pf0") and not is_uplink("p0pf0vf3")
    assert wants_next("pf0sf") and not wants_next("pf0sf0") and not wants_next("pf0")


@given(st.text(max_size=200))
def test_any_text_is_a_name_or_an_error_of_one_line(text):
    for read in (named, nic_of):
        try:
            read(text)
        except Misnamed as error:
            assert len(str(error).splitlines()) == 1


def test_a_nic_by_its_address_or_by_its_bus():
    assert nic_of("0000:08:00.0") == nic_of("pci/0000:08:00.0") == PCI
    with pytest.raises(Misnamed, match="'eth0': expected a NIC as devlink calls it"):
        nic_of("eth0")
