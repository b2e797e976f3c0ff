"""A whole conversation with devlink: requests as a kernel reads them, answers as it sends them, and what is made of those that none sends."""

from __future__ import annotations

import errno
import os
import signal
import struct
import threading
from contextlib import suppress
from typing import ClassVar

import pytest

from offload.devlink import attributes as of
from offload.devlink.changes import EswitchSet, FunctionAdd, FunctionDelete, FunctionSet
from offload.devlink.family import Devlink, DevlinkError, NoDevlink
from offload.devlink.functions import Function, Nic
from offload.devlink.model import Eswitch, PortFunction
from offload.netlink.filters import MESSAGE
from offload.netlink.read import Malformed
from pcap_tests.test_offload.test_devlink.feigned_family import DONE, FAMILY, FeignedFamily, FeignedNic
from pcap_tests.test_offload.test_devlink.test_devlink_model import RECORDED

NIC = Nic("pci", "0000:08:00.0")
MAC = "00:11:22:33:44:55"


@pytest.fixture
def socket():
    return FeignedFamily(FeignedNic())


@pytest.fixture
def devlink(socket):
    with Devlink(socket) as opened:
        yield opened


def switching(devlink: Devlink) -> Devlink:
    devlink.change(EswitchSet(NIC, "switchdev"))
    return devlink


# --- listing ------------------------------------------------------------------------------------------------------------------------------


def test_nics_and_their_eswitch(devlink):
    assert devlink.nics() == [NIC]
    assert devlink.eswitch(NIC) == Eswitch("legacy", "none", "basic")
    assert [(port.name, port.iface) for port in devlink.ports()] == [("p0", "eth0")]


def test_a_list_in_many_pieces_is_one():
    nics = [FeignedNic(f"0000:{number:02x}:00.0") for number in range(40)]
    with Devlink(FeignedFamily(*nics)) as devlink:
        assert [each.name for each in devlink.nics()] == [each.name for each in nics]
        assert len(devlink.ports()) == 40


def test_a_kernel_without_nics():
    with Devlink(FeignedFamily()) as devlink:
        assert (devlink.nics(), devlink.ports()) == ([], [])


def test_vfs_have_ports_in_mode_switchdev(devlink):
    assert [port.name for port in switching(devlink).ports()] == ["p0", "pf0vf0", "pf0vf1"]
    devlink.change(EswitchSet(NIC, "legacy"))
    assert [port.name for port in devlink.ports()] == ["p0"]


# --- changing -----------------------------------------------------------------------------------------------------------------------------


def test_a_scalable_function_from_its_beginning_to_its_end(devlink, socket):
    switching(devlink)
    made = devlink.change(FunctionAdd(NIC, Function(0, sf=88)))
    assert (made.name, made.index, made.iface, made.function) == (
        "pf0sf88", 32856, "en8f0pf0sf88", PortFunction("00:00:00:00:00:00", "inactive", "detached"),
    )  # fmt: skip
    assert devlink.change(FunctionSet(NIC, made.index, MAC, "active")) is None
    assert devlink.ports()[-1].function == PortFunction(MAC, "active", "attached")
    devlink.change(FunctionDelete(NIC, made.index))
    assert [port.name for port in devlink.ports()] == ["p0", "pf0vf0", "pf0vf1"]
    said = {"BUS_NAME": "pci", "DEV_NAME": "0000:08:00.0"}
    asked = dict(socket.asked)
    assert asked[of.PORT_NEW] == said | {"PORT_FLAVOUR": 7, "PORT_PCI_PF_NUMBER": 0, "PORT_PCI_SF_NUMBER": 88}
    assert asked[of.PORT_SET] == said | {"PORT_INDEX": 32856, "PORT_FUNCTION": {"HW_ADDR": bytes.fromhex("001122334455"), "STATE": 1}}
    assert asked[of.PORT_DELETE] == said | {"PORT_INDEX": 32856}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (FunctionAdd(NIC, Function(0, sf=88)),
         "function pf0sf88: add: Operation not supported: Port add is only supported in switchdev mode"),
        (FunctionDelete(NIC, 65535, "p0"), "function p0: delete: Operation not supported: Port doesn't support deletion"),
        (FunctionSet(NIC, 65535, state="active", name="p0"),
         "function p0: state active: Operation not supported: Function does not support state setting"),
        (FunctionSet(NIC, 5, MAC), f"port 5: hw_addr {MAC}: there is no such NIC or devlink port in this network namespace"),
    ],
)  # fmt: skip
def test_a_refusal_says_what_was_asked_and_why_not(devlink, change, told):
    with pytest.raises(DevlinkError) as error:
        devlink.change(change)
    assert str(error.value) == f"devlink: pci/0000:08:00.0: {told}"
    assert devlink.nics() == [NIC]  # and the next question has its answer


def test_a_nic_without_eswitch():
    with Devlink(FeignedFamily(FeignedNic(has_eswitch=False))) as devlink:
        with pytest.raises(DevlinkError, match=r"^devlink: pci/0000:08:00.0: eswitch: Operation not supported$") as error:
            devlink.eswitch(NIC)
        assert (error.value.number, error.value.said) == (errno.EOPNOTSUPP, "")
        with pytest.raises(DevlinkError, match=r"eswitch mode switchdev: Operation not supported: feigned: no eswitch in this firmware$") as error:
            devlink.change(EswitchSet(NIC, "switchdev"))
        assert error.value.said == "feigned: no eswitch in this firmware"


def test_a_kernel_without_devlink_is_told_in_a_line(capfd):
    with pytest.raises(NoDevlink, match=r"^devlink: this kernel has none: expected one with CONFIG_NET_DEVLINK, as drivers of NICs") as error:
        Devlink(FeignedFamily(family=False))
    assert isinstance(error.value, DevlinkError) and capfd.readouterr() == ("", "")


# --- what no kernel sends -----------------------------------------------------------------------------------------------------------------


def test_a_kernel_that_says_nothing_is_not_waited_for_forever(socket):
    with Devlink(socket, patience=0.05) as devlink:
        socket.silent = True
        with pytest.raises(DevlinkError, match=r"eswitch mode switchdev: no answer in time$"):
            devlink.change(EswitchSet(NIC, "switchdev"))


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_nothing_stays_open():
    before = open_files()
    for family in (True, False) * 3:
        with suppress(NoDevlink), Devlink(FeignedFamily(FeignedNic(), family=family)) as devlink:
            devlink.nics()
    assert open_files() == before


def test_giving_up_while_it_is_opened_is_no_error_of_devlink():
    socket = FeignedFamily()
    socket.silent = True
    before = open_files()
    timer = threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        Devlink(socket, patience=20)
    timer.join()
    assert open_files() < before


def test_a_family_that_cannot_be_read_is_malformed():
    with pytest.raises(Malformed):
        Devlink(FeignedFamily(rewritten=lambda data: data[:-3]))


def test_others_than_the_kernel_are_not_listened_to(socket):
    with Devlink(socket, patience=0.05) as devlink:
        socket.sender = 4711
        with pytest.raises(DevlinkError, match=r"^devlink: NICs: no answer in time$"):
            devlink.nics()


def mangled(change, *nics: FeignedNic):
    """A family whose answers are changed on their way, but for the first, which finds it."""
    socket = FeignedFamily(*nics or [FeignedNic()])
    opened = Devlink(socket, patience=2)
    socket.rewritten = change
    return opened


def with_flags(data: bytes, flags: int) -> bytes:
    head = list(MESSAGE.unpack_from(data))
    head[2] |= flags
    return MESSAGE.pack(*head) + data[MESSAGE.size :]


def test_a_list_that_changes_meanwhile_is_asked_for_again():
    left = [2]

    def interrupted(data: bytes) -> bytes:
        if MESSAGE.unpack_from(data)[1] == DONE:
            left[0] -= 1
            return with_flags(data, 0x10) if left[0] >= 0 else data
        return data

    with mangled(interrupted) as devlink:
        assert devlink.nics() == [NIC] and left == [-1]


def test_a_list_that_changes_at_its_beginning_is_read_to_its_end_before_it_is_asked_for_again():
    nics = [FeignedNic(f"0000:{number:02x}:00.0") for number in range(40)]
    left = [1]

    def interrupted(data: bytes) -> bytes:
        left[0] -= 1
        return with_flags(data, 0x10) if left[0] == 0 else data

    with mangled(interrupted, *nics) as devlink:
        assert len(devlink.nics()) == 40 and left[0] < -8


def test_a_list_that_always_changes_is_an_error():
    with mangled(lambda data: with_flags(data, 0x10)) as devlink, pytest.raises(DevlinkError, match="what is listed changed meanwhile"):
        devlink.ports()


def test_a_list_that_ends_with_an_error_is_one():
    def failed(data: bytes) -> bytes:
        return data[:16] + struct.pack("=i", -errno.EMSGSIZE) if MESSAGE.unpack_from(data)[1] == DONE else data

    with mangled(failed) as devlink, pytest.raises(DevlinkError, match=r"^devlink: ports: Message too long$"):
        devlink.ports()


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[:-3],
        lambda data: MESSAGE.pack(17, *MESSAGE.unpack_from(data)[1:]) + data[16:],
        lambda data: MESSAGE.pack(18, *MESSAGE.unpack_from(data)[1:]) + data[16:18] if MESSAGE.unpack_from(data)[1] == FAMILY else data,
        lambda data: data[:20] + b"\xff\xff" + data[22:] if MESSAGE.unpack_from(data)[1] == FAMILY else data,
    ],
    ids=["cut", "length", "no-header", "attribute"],
)
def test_malformed_answers_are_said_to_be_so(change):
    with mangled(change) as devlink, pytest.raises(Malformed) as error:
        devlink.ports()
    assert "\n" not in str(error.value)


# --- recorded -----------------------------------------------------------------------------------------------------------------------------


class Recorded(FeignedFamily):
    """Answers every question as a real kernel did, with the question's number."""

    COMMANDS: ClassVar = {of.GET: "nics", of.PORT_GET: "ports", of.ESWITCH_GET: "eswitch", of.PORT_NEW: "refused", of.ESWITCH_SET: "set"}

    def send(self, data: bytes, flags: int = 0) -> int:
        _, kind, _, number, _ = MESSAGE.unpack_from(data)
        name = "family" if kind == 0x10 else self.COMMANDS[data[MESSAGE.size]]
        for asked, told in RECORDED:
            if asked == name:
                self.far.send(renumbered(told, number))
                if name == "set":
                    break
        return len(data)


def renumbered(data: bytes, number: int) -> bytes:
    found, at = bytearray(data), 0
    while at < len(found):
        struct.pack_into("=I", found, at + 8, number)
        at += MESSAGE.unpack_from(found, at)[0] + 3 & ~3
    return bytes(found)


def test_a_conversation_that_was_recorded():
    simulated, feigned = Nic("netdevsim", "netdevsim10"), Nic("platform", "feigned_functions")
    with Devlink(Recorded()) as devlink:
        assert devlink.nics() == [feigned, simulated]
        assert [port.name for port in devlink.ports()] == ["p0", "pf0sf8", "p1", "pf0vf0", "pf0vf1"]
        assert devlink.eswitch(simulated) == Eswitch("switchdev")
        devlink.change(EswitchSet(simulated, "switchdev"))
        with pytest.raises(DevlinkError, match=r"function pf0sf8: add: File exists: feigned_functions: there is such a function$"):
            devlink.change(FunctionAdd(feigned, Function(0, sf=8)))
