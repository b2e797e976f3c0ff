"""`ctmirror offload devices`, `eswitch` and `function`, with NICs in memory: what is said, what is asked for, and exit codes."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from datapath.commands.offload_devices import eswitch_of, eswitches
from offload.devlink import attributes as of
from offload.devlink.functions import Nic
from offload.devlink.representors import Link
from pcap_tests.test_datapath.command import run
from pcap_tests.test_offload.test_devlink.feigned_family import Behind, FeignedNic, Refused, plugged

PCI = "pci/0000:08:00.0"
MAC = "02:00:00:00:00:58"
NONE = "devlink: this kernel has none: expected one with CONFIG_NET_DEVLINK, as drivers of NICs with an eswitch want it"
ALONE = (Link(1, "ens1", "b8ce", "p0", Nic("pci", "0000:05:00.0")), Link(2, "ens1_0", "b8ce", "pf0vf0"))


@pytest.fixture
def nic(machine):
    """In mode switchdev, with two VFs."""
    made = FeignedNic()
    made.set_eswitch({"ESWITCH_MODE": 1})
    machine(made)
    return made


def offload(capfd, *words):
    return run(capfd, "offload", *words)


# --- devices ----------------------------------------------------------------------------------------------------------------------------------


def test_all_there_is(capfd, nic):
    assert offload(capfd, "devices") == (0, f"""\
{PCI}: eswitch mode switchdev, inline-mode none, encap-mode basic
  function  flavour   interface  MAC address        state  port
  p0        physical  eth0       -                  -      65535
  pf0vf0    pcivf     eth0_0     00:00:00:00:00:00  -      1
  pf0vf1    pcivf     eth0_1     00:00:00:00:00:00  -      2
""", "")  # fmt: skip


def test_all_there_is_as_json(capfd, nic):
    told = json.loads(offload(capfd, "devices", "--json")[1])
    assert told["nics"] == [{"nic": PCI, "eswitch": {"mode": "switchdev", "inline_mode": "none", "encap_mode": "basic"}}]
    assert told["functions"][1] == {
        "name": f"pf0vf0@{PCI}", "nic": PCI, "interface": "eth0_0", "index": 1, "flavour": "pcivf", "controller": None, "external": False, "pf": 0,
        "vf": 0, "sf": None, "number": None, "splittable": None, "lanes": None, "mac": "00:00:00:00:00:00", "state": None, "opstate": None,
        "switch": None,
    }  # fmt: skip


def test_a_nic_without_eswitch_and_one_that_may_not_be_asked(capfd, machine, monkeypatch):
    shy = FeignedNic("0000:09:00.0")
    machine(FeignedNic(has_eswitch=False), shy)

    def refused():
        raise Refused(1)

    monkeypatch.setattr(shy, "eswitch", refused)
    lines = offload(capfd, "devices")[1].splitlines()
    assert [line for line in lines if not line.startswith(" ")] == [
        f"{PCI}: eswitch none", "pci/0000:09:00.0: eswitch not told: expected root, or cap_net_admin",
    ]  # fmt: skip


def test_interfaces_of_a_driver_without_devlink(capfd, machine):
    machine(None, links=ALONE)
    assert offload(capfd, "devices") == (0, """\
without devlink ports:
  function                 flavour  interface  MAC address  state  port
  p0@pci/0000:05:00.0      -        ens1       -            -      -
  pf0vf0@pci/0000:05:00.0  -        ens1_0     -            -      -
""", "")  # fmt: skip
    assert [each["name"] for each in json.loads(offload(capfd, "devices", "--json")[1])["functions"]] == [
        "p0@pci/0000:05:00.0", "pf0vf0@pci/0000:05:00.0",
    ]  # fmt: skip


def test_where_there_is_nothing(capfd, machine):
    machine(None)
    assert offload(capfd, "devices") == (1, "", f"ctmirror: {NONE}\n")
    code, out, err = offload(capfd, "devices", "--json")
    assert (code, json.loads(out), err) == (1, {"nics": [], "functions": []}, f"ctmirror: {NONE}\n")
    assert offload(capfd, "devices", "-q") == (1, "", "")
    assert offload(capfd, "eswitch", "0000:08:00.0") == (2, "", f"ctmirror: {NONE}\n")
    assert offload(capfd, "function", "delete", "pf0sf1@0000:08:00.0") == (2, "", f"ctmirror: {NONE}\n")
    machine()
    assert offload(capfd, "devices") == (1, "", "ctmirror: devlink knows no NIC here\n")


# --- eswitch ----------------------------------------------------------------------------------------------------------------------------------


def test_the_mode_is_told_and_set(capfd, machine):
    nic = FeignedNic()
    machine(nic)
    assert offload(capfd, "eswitch", "0000:08:00.0") == (0, f"{PCI}: eswitch mode legacy, inline-mode none, encap-mode basic\n", "")
    assert offload(capfd, "eswitch", PCI, "--mode", "switchdev") == (0, f"{PCI}: eswitch mode switchdev, inline-mode none, encap-mode basic\n", "")
    assert nic.mode == 1
    assert offload(capfd, "eswitch", "eth0", "--mode", "legacy", "-q") == (0, "", "") and nic.mode == 0


def test_a_mode_that_is_refused(capfd, machine):
    machine(FeignedNic(has_eswitch=False))
    assert offload(capfd, "eswitch", PCI, "--mode", "switchdev") == (
        1, "", f"ctmirror: devlink: {PCI}: eswitch mode switchdev: Operation not supported: feigned: no eswitch in this firmware\n",
    )  # fmt: skip
    assert offload(capfd, "eswitch", PCI) == (1, "", f"ctmirror: {PCI}: no eswitch\n")


def test_a_nic_that_is_not_there(capfd, machine):
    machine(FeignedNic(), links=(Link(7, "v0"), Link(8, "v1", nic=Nic("virtio", "virtio1"))))
    assert offload(capfd, "eswitch", "0000:99:00.0") == (2, "", f"ctmirror: pci/0000:99:00.0: devlink knows no such NIC here: expected {PCI}\n")
    assert offload(capfd, "eswitch", "v0") == (
        2, "", "ctmirror: v0: nobody says which NIC this interface is of: expected the NIC, as pci/0000:08:00.0\n",
    )  # fmt: skip
    assert offload(capfd, "eswitch", "v1") == (2, "", f"ctmirror: virtio/virtio1: devlink knows no such NIC here: expected {PCI}\n")
    assert offload(capfd, "eswitch", "eth9") == (
        2, "", "ctmirror: 'eth9': there is no such interface: expected one, or a NIC, as pci/0000:08:00.0\n",
    )  # fmt: skip


@pytest.mark.parametrize("text", ["", "a/b/c", "pci/0000:08:00.0;reboot", "pf0vf3@0000:08:00.0", "\x1b[31m"])
def test_what_is_no_nic_is_said_before_devlink_is_asked(capfd, machine, text):
    machine(None)
    code, out, err = offload(capfd, "eswitch", text)
    assert (code, out) == (2, "") and "expected" in err and "a NIC" in err and "this kernel" not in err and err[:-1].isprintable()


def test_what_is_not_permitted_is_no_refusal(capfd, machine, monkeypatch):
    nic = FeignedNic()
    machine(nic)

    def refused(values):
        raise Refused(1)

    monkeypatch.setattr(nic, "set_eswitch", refused)
    assert offload(capfd, "eswitch", PCI, "--mode", "switchdev") == (
        2, "", f"ctmirror: devlink: {PCI}: eswitch mode switchdev: not permitted: expected root, or cap_net_admin\n",
    )  # fmt: skip


# --- function ---------------------------------------------------------------------------------------------------------------------------------


def test_a_scalable_function_from_its_beginning_to_its_end(capfd, nic):
    assert offload(capfd, "function", "add", "pf0sf88@0000:08:00.0", "--mac", MAC.upper(), "--state", "active") == (
        0, f"pf0sf88@{PCI}: port 32856, interface en8f0pf0sf88\n", "",
    )  # fmt: skip
    assert (nic.ports[32856].mac.hex(":"), nic.ports[32856].state) == (MAC, 1)
    assert offload(capfd, "devices")[1].splitlines()[-1].split() == ["pf0sf88", "pcisf", "en8f0pf0sf88", MAC, "active,", "attached", "32856"]
    assert offload(capfd, "function", "set", f"{MAC}@0000:08:00.0", "--state", "inactive") == (0, f"{MAC}@{PCI}: set\n", "")
    assert nic.ports[32856].state == 0
    assert offload(capfd, "function", "delete", "pf0sf88@0000:08:00.0") == (0, f"pf0sf88@{PCI}: deleted\n", "")
    assert 32856 not in nic.ports


def test_a_function_whose_number_the_driver_chooses(capfd, nic):
    assert offload(capfd, "function", "add", "pf0sf@0000:08:00.0", "--index", "7") == (0, f"pf0sf0@{PCI}: port 7, interface en8f0pf0sf0\n", "")


def test_what_is_refused(capfd, nic):
    offload(capfd, "function", "add", "pf0sf88@0000:08:00.0", "--state", "active")
    head = f"ctmirror: devlink: {PCI}: function pf0sf88: "
    assert offload(capfd, "function", "add", "pf0sf88@0000:08:00.0") == (
        1, "", f"{head}add: File exists: SF already exist. Choose different sfnum\n",
    )  # fmt: skip
    assert offload(capfd, "function", "set", "pf0sf88@0000:08:00.0", "--mac", MAC) == (
        1, "", f"{head}hw_addr {MAC}: Device or resource busy: SF state change is in progress\n",
    )  # fmt: skip
    assert offload(capfd, "function", "delete", "p0@0000:08:00.0")[:2] == (1, "")


def test_a_function_that_is_made_but_not_set_stays(capfd, nic, monkeypatch):
    def refused(values):
        raise Refused(22, "no such address")

    monkeypatch.setattr(nic, "set_function", refused)
    code, out, err = offload(capfd, "function", "add", "pf0sf88@0000:08:00.0", "--mac", MAC)
    assert (code, out) == (1, "") and 32856 in nic.ports
    assert err == f"ctmirror: devlink: {PCI}: function pf0sf88: hw_addr {MAC}: Invalid argument: no such address\n"


def test_the_next_function_is_not_the_pf(capfd, nic):
    nic.ports[7] = Behind(plugged(of.PCI_PF, ifindex=7, iface="pf", pf=0, external=0), state=1, has_function=True)
    for words in (["delete", "pf0sf@0000:08:00.0"], ["set", "pf0sf@0000:08:00.0", "--state", "inactive"]):
        code, out, err = offload(capfd, "function", *words)
        assert (code, out) == (2, "") and f"pf0sf@{PCI}: the NIC has no such function" in err
    assert nic.ports[7].state == 1


def test_an_error_names_no_more_than_some(capfd, nic):
    for sf in range(200):
        nic.add({"PORT_FLAVOUR": of.PCI_SF, "PORT_PCI_PF_NUMBER": 0, "PORT_PCI_SF_NUMBER": sf})
    assert offload(capfd, "function", "delete", "pf9sf1@0000:08:00.0")[2].endswith("pf0sf4 and 195 more\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["add", "pf0vf1@0000:08:00.0"], f"pf0vf1@{PCI}: expected a scalable function, as pf0sf88@{PCI}: VFs are made by the PF's sriov_numvfs"),
        (["add", "p0@0000:08:00.0"], "expected a scalable function"),
        (["add", "pf0@0000:08:00.0"], "expected a scalable function"),
        (["add", "eth0"], "'eth0': expected a function of a NIC, as pf0vf3@0000:08:00.0"),
        (["set", "pf0vf0@0000:08:00.0"], "expected --mac or --state, or both"),
        (["set", "pf0vf0@0000:08:00.0", "--mac", "1:2:3:4:5:6"], "'1:2:3:4:5:6': expected a MAC address, as 00:11:22:33:44:55"),
        (["set", "pf0vf0@0000:08:00.0", "--mac", "01:00:00:00:00:00"], "expected the address of one host, and not of a group"),
        (["set", "pf0vf9@0000:08:00.0", "--state", "active"], f"pf0vf9@{PCI}: the NIC has no such function: expected p0, pf0vf0, pf0vf1"),
        (
            ["delete", "00:00:00:00:00:00@0000:08:00.0"],
            f"00:00:00:00:00:00@{PCI}: 2 functions of this address: expected a function's name: pf0vf0, pf0vf1",
        ),
        (["delete", "pf0sf@0000:08:00.0"], f"pf0sf@{PCI}: the NIC has no such function: expected p0, pf0vf0, pf0vf1"),
        (["delete", "pf0vf9@0000:99:00.0"], f"pci/0000:99:00.0: devlink knows no such NIC here: expected {PCI}"),
    ],
)
def test_what_cannot_be_meant_is_said_before_anything_is_asked_for(capfd, nic, words, said):
    before = dict(nic.ports)
    code, out, err = offload(capfd, "function", *words)
    assert (code, out) == (2, "") and said in err and err.count("\n") == 1
    assert nic.ports == before


# --- dry runs ---------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        (["eswitch", "0000:08:00.0", "--mode", "switchdev"], ["dev eswitch set pci/0000:08:00.0 mode switchdev"]),
        (["function", "add", "pf0sf88@0000:08:00.0"], ["port add pci/0000:08:00.0 flavour pcisf pfnum 0 sfnum 88"]),
        (["function", "add", "c1pf0sf88@0000:08:00.0", "--mac", MAC], ["port add pci/0000:08:00.0 flavour pcisf pfnum 0 sfnum 88 controller 1",
                                                                       f"port function set pci/0000:08:00.0/PORT_INDEX hw_addr {MAC}"]),
        (["function", "add", "pf0sf88@0000:08:00.0", "--index", "9", "--state", "active"],
         ["port add pci/0000:08:00.0/9 flavour pcisf pfnum 0 sfnum 88", "port function set pci/0000:08:00.0/9 state active"]),
    ],
)  # fmt: skip
def test_a_dry_run_changes_nothing_and_warns_of_what_cannot_work_here(capfd, machine, words, lines):
    printed = "".join(f"devlink {line}\n" for line in lines)
    sockets = machine(FeignedNic())
    assert offload(capfd, *words, "--dry-run") == (0, printed, "")
    assert {command for socket in sockets for command, _ in socket.asked} == {of.GET}
    machine(None)
    assert offload(capfd, *words, "--dry-run") == (0, printed, f"ctmirror: warning: {NONE}\n")
    assert offload(capfd, *words, "--dry-run", "-q") == (0, printed, "")
    machine(FeignedNic("0000:09:00.0"))
    unknown = f"ctmirror: warning: {PCI}: devlink knows no such NIC here: expected pci/0000:09:00.0\n"
    assert offload(capfd, *words, "--dry-run") == (0, printed, unknown)


def test_a_dry_run_of_an_interface_that_is_none_of_devlink_s_is_warned_of(capfd, machine):
    machine(FeignedNic(), links=(Link(8, "v1", nic=Nic("virtio", "virtio1")),))
    assert offload(capfd, "eswitch", "v1", "--mode", "switchdev", "--dry-run") == (
        0, "devlink dev eswitch set virtio/virtio1 mode switchdev\n",
        f"ctmirror: warning: virtio/virtio1: devlink knows no such NIC here: expected {PCI}\n",
    )  # fmt: skip


def test_a_dry_run_that_has_to_know_the_port_only_looks(capfd, machine):
    nic = FeignedNic(mode=1)
    nic.set_eswitch({"ESWITCH_MODE": 1})
    sockets = machine(nic)
    assert offload(capfd, "function", "set", "pf0vf1@0000:08:00.0", "--mac", MAC, "--dry-run") == (
        0, f"devlink port function set {PCI}/2 hw_addr {MAC}\n", "",
    )  # fmt: skip
    assert offload(capfd, "function", "delete", "pf0vf1@0000:08:00.0", "--dry-run") == (0, f"devlink port del {PCI}/2\n", "")
    assert {command for socket in sockets for command, _ in socket.asked} == {of.GET, of.PORT_GET}


def test_a_dry_run_of_nothing_is_a_mistake(capfd):
    code, out, err = offload(capfd, "eswitch", "0000:08:00.0", "--dry-run")
    assert (code, out) == (2, "") and "expected a mode to set, as --mode switchdev" in err


SHOWN = re.findall(
    r"^```\n\$ ctmirror (offload .*)\n((?:.*\n)*?)```$", (Path(__file__).parents[3] / "docs/offload-devices.md").read_text(), re.MULTILINE
)


@pytest.mark.parametrize(("words", "lines"), SHOWN, ids=[words for words, _ in SHOWN])
def test_the_page_shows_what_is_printed(capfd, machine, words, lines):
    machine(FeignedNic())
    assert run(capfd, *shlex.split(words)) == (0, lines, "")


def test_the_page_shows_dry_runs():
    assert len(SHOWN) == 2


# --- doctor, probe ----------------------------------------------------------------------------------------------------------------------------


def test_doctor_says_the_mode_and_how_many_stand_for_functions(machine, nic):
    assert (eswitches().ok, eswitches().found) == (True, f"{PCI}: switchdev, 2 representors")
    machine(FeignedNic(mode=0))
    found = eswitches()
    assert (found.ok, found.found) == (False, f"{PCI}: legacy, 0 representors")
    assert found.advice == "ctmirror offload eswitch NIC --mode switchdev, for rules between functions"
    machine(None, links=ALONE)
    assert (eswitches().ok, eswitches().found) == (True, "2 interfaces of eswitches without devlink")
    machine(None)
    assert (eswitches().ok, eswitches().found) == (False, NONE)


def test_doctor_advises_what_helps(machine, monkeypatch):
    machine(FeignedNic(has_eswitch=False))
    assert (eswitches().ok, eswitches().found, eswitches().advice) == (
        False, f"{PCI}: none, 0 representors", "needs a NIC that has an eswitch, for functions by name, as pf0vf3@0000:08:00.0",
    )  # fmt: skip
    shy = FeignedNic()
    machine(shy)

    def refused():
        raise Refused(1)

    monkeypatch.setattr(shy, "eswitch", refused)
    assert (eswitches().ok, eswitches().advice) == (False, "root, or cap_net_admin, is told the mode")
    shy.set_eswitch({"ESWITCH_MODE": 1})  # its representors tell it as well
    assert (eswitches().ok, eswitches().found) == (True, f"{PCI}: not told: expected root, or cap_net_admin, 2 representors")


def test_the_eswitch_behind_an_interface(machine, nic):
    assert eswitch_of("eth0_1") == (PCI, "switchdev")
    assert eswitch_of("eth9") == (None, None)
    machine(None)
    assert eswitch_of("eth0_1") == (None, None)
