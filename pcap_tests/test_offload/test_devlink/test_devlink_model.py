"""Messages of devlink as values: hand-built ones of every flavour, those that a real kernel sent, and those that none sends."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offload.devlink import attributes as of
from offload.devlink.functions import Nic
from offload.devlink.model import DevlinkPort, Eswitch, PortFunction, eswitch_in, nic_in, port_in
from offload.netlink.channel import messages
from offload.netlink.extack import answer_of
from offload.netlink.pack import attribute, nested, u8, u16, u32
from offload.netlink.read import Malformed, read
from pcap_tests.test_offload.test_devlink.feigned_family import NUMBER, function, nic, plugged, port

GENERIC = 4
RECORDED = [(line.split()[0], bytes.fromhex(line.split()[1])) for line in (Path(__file__).parent / "recorded.txt").read_text().splitlines()]
FAMILY = 0x15  # of the kernel that was recorded


def values(data: bytes):
    return read(of.DEVICE, data)


# --- by hand ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flavour", "numbers", "said", "name"),
    [
        (of.PHYSICAL, {"number": 0}, "physical", "p0"),
        (of.PHYSICAL, {"number": 1, "subport": 2}, "physical", "p1s2"),
        (of.PHYSICAL, {"number": 1, "linecard": 4}, "physical", "l4p1"),
        (of.PHYSICAL, {}, "physical", None),
        (1, {}, "cpu", None),
        (of.PCI_PF, {"controller": 0, "pf": 0, "external": 0}, "pcipf", "pf0"),
        (of.PCI_PF, {"controller": 1, "pf": 0, "external": 1}, "pcipf", "c1pf0"),
        (of.PCI_VF, {"controller": 0, "pf": 0, "vf": 3, "external": 0}, "pcivf", "pf0vf3"),
        (of.PCI_VF, {"controller": 1, "pf": 1, "vf": 3, "external": 1}, "pcivf", "c1pf1vf3"),
        (of.PCI_SF, {"controller": 0, "pf": 0, "sf": 88, "external": 0}, "pcisf", "pf0sf88"),
        (of.PCI_SF, {"controller": 1, "pf": 0, "sf": 4294967295, "external": 1}, "pcisf", "c1pf0sf4294967295"),
        (5, {}, "virtual", None),
        (99, {}, "#99", None),
    ],
)
def test_ports_of_every_flavour_are_called_as_the_kernel_calls_them(flavour, numbers, said, name):
    found = port_in(values(port("pci", "0000:08:00.0", 7, plugged(flavour, ifindex=9, iface="x", **numbers))))
    assert (found.flavour, found.name, found.place, found.iface, found.ifindex, found.kind) == (said, name, "pci/0000:08:00.0/7", "x", 9, "eth")
    assert (found.controller, found.pf, found.vf, found.sf) == tuple(numbers.get(each) for each in ("controller", "pf", "vf", "sf"))


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        (function(bytes(6)), PortFunction("00:00:00:00:00:00")),
        (function(bytes.fromhex("0a1b2c3d4e5f"), 1, 1), PortFunction("0a:1b:2c:3d:4e:5f", "active", "attached")),
        (function(bytes(20), 0, 0), PortFunction(None, "inactive", "detached")),  # InfiniBand
        (function(bytes(6), 9, 9), PortFunction("00:00:00:00:00:00", "#9", "#9")),
        (nested(NUMBER["PORT_FUNCTION"]), PortFunction()),
        (b"", None),
    ],
)
def test_what_is_behind_a_port(parts, told):
    assert port_in(values(port("pci", "a", 0, parts))).function == told


def test_eswitches():
    head, mode = nic("pci", "a"), u16(NUMBER["ESWITCH_MODE"], 1)
    assert eswitch_in(values(head + mode)) == Eswitch("switchdev")
    assert eswitch_in(values(head + mode)).told() == "mode switchdev"
    rest = u8(NUMBER["ESWITCH_INLINE_MODE"], 2) + u8(NUMBER["ESWITCH_ENCAP_MODE"], 1)
    assert eswitch_in(values(head + mode + rest)).told() == "mode switchdev, inline-mode network, encap-mode basic"
    assert eswitch_in(values(head + u16(NUMBER["ESWITCH_MODE"], 2))).mode == "#2"


@pytest.mark.parametrize(
    ("read_as", "data", "said"),
    [
        (nic_in, b"", "devlink: a message without BUS_NAME and DEV_NAME: expected both"),
        (nic_in, nic("", "x"), "devlink: a message without BUS_NAME and DEV_NAME: expected both"),
        (port_in, nic("pci", "x"), "devlink: pci/x: a port without PORT_INDEX"),
        (eswitch_in, nic("pci", "x"), "devlink: an eswitch without ESWITCH_MODE"),
        (port_in, nic("pci", "x") + u16(3, 1), "devlink.PORT_INDEX: 2 bytes: expected 4"),
        (port_in, attribute(145, b"\1"), "devlink.PORT_FUNCTION: 1 bytes at the end: expected an attribute of 4 or more"),
        (port_in, attribute(145, u32(2, 1)), "devlink.PORT_FUNCTION.STATE: 4 bytes: expected 1"),
    ],
)
def test_what_no_kernel_sends_is_said_in_a_line(read_as, data, said):
    with pytest.raises(Malformed) as error:
        read_as(values(data))
    assert str(error.value) == said


def read_any(data: bytes) -> DevlinkPort | None:
    """Bytes as everything that they could be: a value, or an error of one line. The devlink port, if they are one."""
    port = None
    for read_as in (nic_in, eswitch_in, port_in):
        try:
            found = read_as(values(data))
        except Malformed as error:
            assert "\n" not in str(error)
        else:
            port = found if isinstance(found, DevlinkPort) else None
    assert port is None or port.name is None or port.name.isprintable()
    return port


@given(st.binary(max_size=300))
def test_any_bytes_are_a_value_or_an_error_of_one_line(data):
    read_any(data)


NUMBERS = st.sampled_from([*of.DEVICE.attributes, 999])
PARTS = st.tuples(NUMBERS, st.binary(max_size=12)).map(lambda pair: attribute(*pair))


@given(st.lists(PARTS, max_size=12))
def test_any_attributes_beside_a_ports_own_are_as_well(parts):
    read_any(port("pci", "a", 1, *parts))


# --- recorded -----------------------------------------------------------------------------------------------------------------------------


def recorded(name: str) -> list[bytes]:
    """Attributes of the messages that a real kernel sent when it was asked for something."""
    found = [message for asked, data in RECORDED if asked == name for message in messages(data)]
    return [body[GENERIC:] for kind, _, _, body in found if kind == FAMILY]


def test_ports_that_a_kernel_sent():
    uplink, sf, first, *vfs = [port_in(values(data)) for data in recorded("ports")]
    feigned, simulated = Nic("platform", "feigned_functions"), Nic("netdevsim", "netdevsim10")
    assert (uplink.nic, uplink.index, uplink.name, uplink.function) == (feigned, 65535, "p0", None)
    assert (sf.nic, sf.index, sf.name, sf.function) == (feigned, 32776, "pf0sf8", PortFunction("02:00:00:00:00:58", "active", "attached"))
    assert (first.nic, first.name, first.splittable) == (simulated, "p1", False)
    assert [(each.name, each.flavour, each.index, each.external) for each in vfs] == [
        ("pf0vf0", "pcivf", 128, False),
        ("pf0vf1", "pcivf", 129, False),
    ]
    assert all(each.iface and each.ifindex and each.kind == "eth" for each in (uplink, sf, first, *vfs))


def test_nics_and_eswitches_that_a_kernel_sent():
    assert [str(nic_in(values(data))) for data in recorded("nics")] == ["platform/feigned_functions", "netdevsim/netdevsim10"]
    (switch,) = recorded("eswitch")
    assert eswitch_in(values(switch)) == Eswitch("switchdev")


def test_a_function_as_the_kernel_answers_that_it_is_made():
    (made,) = recorded("new")
    assert port_in(values(made)).name == "pf0sf8"


def test_a_refusal_that_a_kernel_sent():
    (data,) = [data for name, data in RECORDED if name == "refused"]
    ((kind, flags, _, body),) = messages(data)
    assert (kind, answer_of(body, flags, b"", of.DEVICE, GENERIC).told()) == (2, "File exists: feigned_functions: there is such a function")
