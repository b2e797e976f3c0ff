"""Which interface stands for which function: where there are devlink ports, and where drivers have none."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offload.devlink.functions import Misnamed, Nic, named
from offload.devlink.model import DevlinkPort, PortFunction
from offload.devlink.names import Resolver
from offload.devlink.representors import Link, iface_called, link_in, nic_behind, representors
from offload.netlink.links import IFINFO
from offload.netlink.pack import attribute, text, u32
from offload.netlink.read import Malformed
from pcap_tests.test_offload.test_devlink.feigned_family import Behind, FeignedNic, plugged

NIC, OTHER = Nic("pci", "0000:08:00.0"), Nic("pci", "0000:08:00.1")
MAC = "00:11:22:33:44:55"
SWITCH = "b8cef603"
# A driver with devlink ports: two VFs and an SF of PF 0, and an uplink.
PORTS = [
    DevlinkPort(NIC, 65535, "physical", iface="eth0", ifindex=2, number=0),
    DevlinkPort(NIC, 1, "pcivf", iface="eth0_0", ifindex=3, pf=0, vf=0, external=False, function=PortFunction(MAC)),
    DevlinkPort(NIC, 2, "pcivf", iface="eth0_1", ifindex=4, pf=0, vf=1, external=False, function=PortFunction("00:00:00:00:00:00")),
    DevlinkPort(
        NIC, 3, "pcisf", iface="sf8", ifindex=5, pf=0, sf=8, external=False, function=PortFunction("00:00:00:00:00:00", "active", "attached")
    ),
    DevlinkPort(NIC, 4, "pcivf", pf=0, vf=2, external=False),  # whose interface is in another network namespace
]
# A driver without: the uplinks of two PFs, a representor that says whose it is, and one that only knows its switch.
LINKS = [
    Link(1, "lo"),
    Link(2, "ens1", SWITCH, "p0", NIC),
    Link(3, "ens1_0", SWITCH, "pf0vf0", NIC),
    Link(4, "ens1_1", SWITCH, "pf0vf1", None),
    Link(5, "ens2", "00", "p1", OTHER),
    Link(6, "ens9", None, None, Nic("pci", "0000:09:00.0")),  # a NIC without eswitch
]


def called(text: str, among) -> str:
    return iface_called(named(text), among)


@pytest.mark.parametrize(
    ("text", "iface"),
    [
        ("p0@0000:08:00.0", "eth0"), ("pf0vf1@0000:08:00.0", "eth0_1"), ("pf0sf8@pci/0000:08:00.0", "sf8"), (f"{MAC}@0000:08:00.0", "eth0_0"),
    ],
)  # fmt: skip
def test_by_devlink_ports(text, iface):
    assert called(text, representors(PORTS, [])) == iface


@pytest.mark.parametrize(("text", "iface"), [("p0@0000:08:00.0", "ens1"), ("pf0vf0@0000:08:00.0", "ens1_0"), ("pf0vf1@0000:08:00.0", "ens1_1"),
                                             ("p1@0000:08:00.1", "ens2")])  # fmt: skip
def test_by_what_interfaces_say(text, iface):
    assert called(text, representors([], LINKS)) == iface


def test_an_interface_that_gets_another_name_meanwhile_is_listed_once():
    both = representors(PORTS[1:2], [Link(3, "eth3", SWITCH, "pf0vf0", NIC)])
    assert [(each.iface, each.name, each.switch) for each in both] == [("eth0_0", "pf0vf0", SWITCH)]


def test_a_switch_that_two_nics_have_says_nothing_of_an_interface_without_one():
    """Both PFs of a card may have one number."""
    (p0, p1, alone) = representors([], [Link(2, "ens1", SWITCH, "p0", NIC), Link(3, "ens2", SWITCH, "p1", OTHER), Link(4, "r", SWITCH, "pf1vf0")])
    assert (p0.nic, p1.nic, alone.nic) == (NIC, OTHER, None)


def test_an_interface_is_listed_once():
    both = representors(PORTS, [Link(2, "eth0", SWITCH, "p0", NIC), Link(3, "eth0_0", SWITCH, "pf0vf0", NIC), Link(9, "else", "77", "p5", OTHER)])
    assert [(each.iface, each.switch, each.port is not None) for each in both] == [
        ("eth0", SWITCH, True), ("eth0_0", SWITCH, True), ("eth0_1", None, True), ("sf8", None, True), ("else", "77", False),
    ]  # fmt: skip


def test_a_port_without_a_name_has_that_of_its_interface():
    (one,) = representors([DevlinkPort(NIC, 1, "virtual", iface="v", ifindex=3)], [Link(3, "v", SWITCH, "pf0vf0", NIC)])
    assert (one.name, str(one)) == ("pf0vf0", "pf0vf0@pci/0000:08:00.0")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pf0vf7@0000:08:00.0", "no interface stands for it here: expected one of p0, pf0vf0, pf0vf1, pf0sf8"),
        ("pf0vf2@0000:08:00.0", "no interface stands for it here: expected one of p0, pf0vf0, pf0vf1, pf0sf8"),
        ("pf0vf0@0000:99:00.0", "no interface stands for it here: expected a NIC that has some: pci/0000:08:00.0"),
        ("00:00:00:00:00:00@0000:08:00.0", "eth0_1, sf8: expected one interface for it"),
    ],
)
def test_what_is_not_there_or_not_clear(text, said):
    with pytest.raises(Misnamed) as error:
        called(text, representors(PORTS, []))
    assert str(error.value) == f"{named(text)}: {said}"


def test_where_there_is_no_eswitch_at_all():
    with pytest.raises(Misnamed, match=r"expected a NIC with representors \(eswitch in mode switchdev\)$"):
        called("pf0vf0@0000:08:00.0", representors([], [Link(1, "lo")]))


def test_an_error_names_no_more_than_some():
    many = [DevlinkPort(NIC, i, "pcivf", iface=f"r{i}", ifindex=i, pf=0, vf=i) for i in range(1000)]
    with pytest.raises(Misnamed, match=r"pf0vf7 and 992 more$"):
        called("pf1@0000:08:00.0", representors(many, []))


def test_the_next_sf_is_not_the_pf():
    with pytest.raises(Misnamed, match=r"^pf0sf@.*: no interface stands for it here: expected one of pf0$"):
        called("pf0sf@0000:08:00.0", representors([DevlinkPort(NIC, 1, "pcipf", iface="r", ifindex=9, pf=0)], []))


def test_names_of_drivers_that_have_their_own():
    among = representors([], [Link(2, "a", SWITCH, "p0pf0vf3", NIC), Link(3, "b", SWITCH, "pf0vfr3", NIC), Link(4, "c", SWITCH, "pf0s1", NIC)])
    assert [called(f"{name}@0000:08:00.0", among) for name in ("p0pf0vf3", "pf0vfr3", "pf0s1")] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("iface", "nic"), [("eth0_1", NIC), ("ens1_0", NIC), ("ens2", OTHER), ("lo", None), ("nope", None), ("ens9", Nic("pci", "0000:09:00.0"))]
)
def test_whose_an_interface_is(iface, nic):
    assert nic_behind(iface, PORTS, LINKS) == nic


# --- names ------------------------------------------------------------------------------------------------------------------------------------


def test_names_are_looked_up_once_and_interfaces_never(machine):
    sockets = machine(FeignedNic(mode=0))
    resolve = Resolver()
    assert [resolve(name) for name in ("eth0", "a@b", "x")] == ["eth0", "a@b", "x"] and sockets == []
    assert [resolve("p0@0000:08:00.0") for _ in range(3)] == ["eth0"] * 3 and len(sockets) == 1
    assert resolve.if_there("p0@0000:08:00.0") == "eth0" and resolve.if_there("p9@0000:08:00.0") == "p9@0000:08:00.0"


@pytest.mark.parametrize("text", ["vf3@0000:08:00.0", "pf0vf3@a/b/c", "00:00:00:00:00:00@0000:08:00.0"])
def test_what_is_wrong_on_every_machine_or_not_clear_is_no_name_that_stays(machine, text):
    machine(FeignedNic(mode=1, ports={i: Behind(plugged(4, ifindex=i, iface=f"r{i}", pf=0, vf=i), has_function=True) for i in (3, 4)}))
    with pytest.raises(Misnamed, match="expected"):
        Resolver().if_there(text)


def test_without_devlink_interfaces_are_asked(machine):
    machine(None, links=tuple(LINKS))
    assert Resolver()("pf0vf1@0000:08:00.0") == "ens1_1"


def test_for_interfaces_nothing_of_devlink_is_imported():
    code = "import sys; from offload.devlink.names import Resolver; Resolver()('eth0'); print(*sorted({'pyroute2', 'asyncio'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "\n"


# --- bytes ------------------------------------------------------------------------------------------------------------------------------------

HEAD = IFINFO.pack(0, 1, 7, 0, 0)


def test_what_an_interface_says_of_itself():
    data = HEAD + text(3, "x") + attribute(36, b"\xb8\xce") + text(38, "pf0vf0") + text(56, "0000:08:00.0") + text(57, "pci") + u32(4, 1500)
    assert link_in(data) == Link(7, "x", "b8ce", "pf0vf0", NIC)
    assert link_in(HEAD + text(3, "x") + text(56, "0000:08:00.0")) == Link(7, "x")


@given(st.binary(max_size=200))
def test_any_bytes_are_an_interface_or_an_error_of_one_line(data):
    for whole in (data, HEAD + data):
        try:
            link_in(whole)
        except Malformed as error:
            assert "\n" not in str(error)
