"""devlink of a real kernel: Linux's netdevsim with VFs, and an eswitch of our own with scalable functions; listed, changed, refused, and as
devlink(8) has it, whose commands a dry run prints."""

from __future__ import annotations

import json
import shlex
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from datapath.commands.offload_devices import eswitches
from datapath.live.privileges import keep_only
from offload.devlink import attributes as of
from offload.devlink.changes import EswitchSet, FunctionAdd, FunctionDelete, FunctionSet
from offload.devlink.family import Devlink, DevlinkError
from offload.devlink.functions import Function, Misnamed, nic_of
from offload.devlink.model import PortFunction
from offload.devlink.names import Resolver
from offload.devlink.representors import here, representors
from offload.netlink.channel import messages
from offload.netlink.read import Values, read
from pcap_tests.test_datapath.command import run
from pcap_tests.vm.test_vm_install import ended, in_child

MACS = ("02:00:00:00:00:58", "02:00:00:00:00:59")
# Our fields and devlink(8)'s, of `port show`.
FIELDS = {
    "type": "kind", "netdev": "iface", "flavour": "flavour", "port": "number", "pfnum": "pf", "vfnum": "vf", "sfnum": "sf",
    "controller": "controller", "external": "external", "splittable": "splittable", "lanes": "lanes",
}  # fmt: skip


def devlink(*words: str) -> dict:
    done = subprocess.run(["devlink", "-j", *words], capture_output=True, text=True, check=True)
    return json.loads(done.stdout or "{}")


def same_as_devlink() -> int:
    """Every port is what devlink(8) says of it; how many there are."""
    with Devlink() as asked:
        ours = {port.place: port for port in asked.ports()}
        nics = [str(nic) for nic in asked.nics()]
        modes = {str(nic): asked.eswitch(nic).mode for nic in asked.nics()}
    theirs = devlink("port", "show")["port"]
    assert theirs.keys() == ours.keys()
    for place, told in theirs.items():
        port = ours[place]
        assert {field: getattr(port, own) for field, own in FIELDS.items() if field in told} == {
            field: told[field] for field in FIELDS if field in told
        }
        function = {"hw_addr": "mac", "state": "state", "opstate": "opstate"}
        assert {name: getattr(port.function, own) for name, own in function.items() if name in told.get("function", {})} == told.get("function", {})
    assert list(devlink("dev", "show")["dev"]) == nics
    assert {nic: devlink("dev", "eswitch", "show", nic)["dev"][nic]["mode"] for nic in nics} == modes
    return len(ours)


# --- netdevsim ----------------------------------------------------------------------------------------------------------------------------


def test_vfs_have_representors_once_the_eswitch_switches(simulated):
    nic = nic_of(simulated)
    with Devlink() as asked:
        assert (asked.nics(), asked.eswitch(nic).mode, [port.flavour for port in asked.ports()]) == ([nic], "legacy", ["physical"])
        asked.change(EswitchSet(nic, "switchdev"))
        assert asked.eswitch(nic).mode == "switchdev"
    assert same_as_devlink() == 3
    listed = representors(*here())
    assert [(each.name, each.port.flavour) for each in listed] == [("p1", "physical"), ("pf0vf0", "pcivf"), ("pf0vf1", "pcivf")]
    assert len({each.switch for each in listed}) == 1 and listed[0].switch is not None
    assert Resolver()(f"pf0vf1@{simulated}") == listed[2].iface
    with Devlink() as asked:
        asked.change(EswitchSet(nic, "legacy"))
    with pytest.raises(Misnamed, match=r"no interface stands for it here: expected one of p1$"):
        Resolver()(f"pf0vf1@{simulated}")


def test_interfaces_say_the_same_without_devlink(simulated):
    with Devlink() as asked:
        asked.change(EswitchSet(nic_of(simulated), "switchdev"))
    ports, links = here()
    with_ports, without = representors(ports, links), representors([], links)
    assert [(each.iface, each.name, each.nic, each.switch) for each in without] == [
        (each.iface, each.name, each.nic, each.switch) for each in with_ports
    ]
    assert not any(each.port for each in without)


def test_what_netdevsim_has_not_is_refused_with_the_kernels_sentence(simulated):
    nic = nic_of(simulated)
    with Devlink() as asked:
        asked.change(EswitchSet(nic, "switchdev"))
        index = next(port.index for port in asked.ports() if port.vf == 0)
        for change, said, why in (
            (FunctionAdd(nic, Function(0, sf=1)), "function pf0sf1: add: Operation not supported", ""),
            (FunctionSet(nic, index, MACS[0], name="pf0vf0"), f"function pf0vf0: hw_addr {MACS[0]}: Operation not supported: ",
             "Port doesn't support function attributes"),
            (EswitchSet(nic, inline_mode="link"), "eswitch inline-mode link: Operation not supported", ""),
            (FunctionDelete(nic, 999), "port 999: delete: ", ""),
        ):  # fmt: skip
            with pytest.raises(DevlinkError) as error:
                asked.change(change)
            assert str(error.value).startswith(f"devlink: {nic}: {said}") and error.value.said.endswith(why)


# --- scalable functions -------------------------------------------------------------------------------------------------------------------


def test_a_scalable_function_lives(feigned):
    nic = nic_of(feigned)
    with Devlink() as asked:
        with pytest.raises(
            DevlinkError, match=r"function pf0sf8: add: Operation not supported: feigned_functions: functions are added in mode switchdev only$"
        ):
            asked.change(FunctionAdd(nic, Function(0, sf=8)))
        asked.change(EswitchSet(nic, "switchdev"))
        made = asked.change(FunctionAdd(nic, Function(0, sf=8)))
        assert (made.name, made.flavour, made.function) == ("pf0sf8", "pcisf", PortFunction("00:00:00:00:00:00", "inactive", "detached"))
        asked.change(FunctionSet(nic, made.index, MACS[0], "active"))
        with pytest.raises(DevlinkError, match=r"hw_addr 02:00:00:00:00:59: Device or resource busy: feigned_functions: the function is active$"):
            asked.change(FunctionSet(nic, made.index, MACS[1]))
        with pytest.raises(DevlinkError, match=r"add: File exists: feigned_functions: there is such a function$"):
            asked.change(FunctionAdd(nic, Function(0, sf=8)))
        free = asked.change(FunctionAdd(nic, Function(0)))
        assert free.name == "pf0sf0"
        given = asked.change(FunctionAdd(nic, Function(0, sf=9), index=77))
        assert given.index == 77
        (now,) = [port for port in asked.ports() if port.place == made.place]
        assert now.function == PortFunction(MACS[0], "active", "attached")
        assert same_as_devlink() == 4
        resolve = Resolver()
        assert resolve(f"pf0sf8@{feigned}") == resolve(f"{MACS[0].upper()}@{feigned}") == now.iface
        with pytest.raises(DevlinkError, match=r"eswitch mode legacy: Device or resource busy: feigned_functions: there are scalable functions$"):
            asked.change(EswitchSet(nic, "legacy"))
        for port in (made, free, given):
            asked.change(FunctionDelete(nic, port.index))
        assert [port.name for port in asked.ports()] == ["p0"]


def test_the_commands_do_it_and_say_so(capfd, feigned):
    assert run(capfd, "offload", "eswitch", feigned) == (0, f"{feigned}: eswitch mode legacy\n", "")
    uplink = representors(*here())[0].iface
    assert run(capfd, "offload", "eswitch", feigned, "--mode", "switchdev") == (0, f"{feigned}: eswitch mode switchdev\n", "")
    code, out, err = run(capfd, "offload", "function", "add", f"pf0sf8@{feigned}", "--mac", MACS[0], "--state", "active")
    sf = Resolver()(f"pf0sf8@{feigned}")
    assert (code, out, err) == (0, f"pf0sf8@{feigned}: port 32776, interface {sf}\n", "")
    code, out, err = run(capfd, "offload", "devices")
    assert (code, [line.split() for line in out.splitlines()]) == (0, [
        [f"{feigned}:", "eswitch", "mode", "switchdev"],
        ["function", "flavour", "interface", "MAC", "address", "state", "port"],
        ["p0", "physical", uplink, "-", "-", "65535"],
        ["pf0sf8", "pcisf", sf, MACS[0], "active,", "attached", "32776"],
    ])  # fmt: skip
    told = json.loads(run(capfd, "offload", "devices", "--json")[1])
    assert [(each["name"], each["interface"], each["sf"], each["switch"]) for each in told["functions"]] == [
        (f"p0@{feigned}", uplink, None, "fe16ed"), (f"pf0sf8@{feigned}", sf, 8, "fe16ed"),
    ]  # fmt: skip
    assert run(capfd, "offload", "function", "set", f"pf0sf8@{feigned}", "--mac", MACS[1]) == (
        1, "",
        f"ctmirror: devlink: {feigned}: function pf0sf8: hw_addr {MACS[1]}: Device or resource busy: feigned_functions: the function is active\n",
    )  # fmt: skip
    assert run(capfd, "offload", "function", "set", f"pf0sf8@{feigned}", "--state", "inactive") == (0, f"pf0sf8@{feigned}: set\n", "")
    assert run(capfd, "offload", "function", "delete", f"pf0sf8@{feigned}") == (0, f"pf0sf8@{feigned}: deleted\n", "")
    assert run(capfd, "offload", "function", "delete", f"pf0sf8@{feigned}") == (
        2, "", f"ctmirror: pf0sf8@{feigned}: the NIC has no such function: expected p0\n",
    )  # fmt: skip
    finding = eswitches()
    assert (finding.ok, finding.found) == (True, f"{feigned}: switchdev, 0 representors")


def test_lines_of_a_dry_run_do_the_same(capfd, feigned):
    """What is printed is run, by devlink(8)."""
    done: list[str] = []
    for words in (
        ["eswitch", feigned, "--mode", "switchdev"],
        ["function", "add", f"pf0sf9@{feigned}", "--index", "77", "--mac", MACS[1], "--state", "active"],
    ):
        code, out, err = run(capfd, "offload", *words, "--dry-run")
        assert (code, err) == (0, "")
        done += out.splitlines()
        for line in out.splitlines():
            subprocess.run(shlex.split(line), check=True, capture_output=True)
    with Devlink() as asked:
        (port,) = [each for each in asked.ports() if each.index == 77]
    assert (port.name, port.function) == ("pf0sf9", PortFunction(MACS[1], "active", "attached"))
    for words in (["set", f"pf0sf9@{feigned}", "--state", "inactive"], ["delete", f"{MACS[1]}@{feigned}"]):
        (line,) = run(capfd, "offload", "function", *words, "--dry-run")[1].splitlines()
        subprocess.run(shlex.split(line), check=True, capture_output=True)
        done.append(line)
    with Devlink() as asked:
        assert [each.name for each in asked.ports()] == ["p0"]
    assert done == [
        f"devlink dev eswitch set {feigned} mode switchdev",
        f"devlink port add {feigned}/77 flavour pcisf pfnum 0 sfnum 9",
        f"devlink port function set {feigned}/77 hw_addr {MACS[1]} state active",
        f"devlink port function set {feigned}/77 state inactive",
        f"devlink port del {feigned}/77",
    ]


REQUEST, EVERYTHING = 0x1, 0x0003  # NLM_F_REQUEST, ETH_P_ALL


@pytest.fixture
def overheard() -> Iterator[Callable[[int], list[Values]]]:
    """What processes have asked of devlink since the last time, of one command: the kernel's own monitor of netlink hears it."""
    subprocess.run(["modprobe", "nlmon"], check=True)
    subprocess.run(["ip", "link", "add", "nlmon0", "type", "nlmon"], check=True)
    subprocess.run(["ip", "link", "set", "nlmon0", "up"], check=True)
    listening = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(EVERYTHING))
    listening.bind(("nlmon0", EVERYTHING))
    listening.setblocking(False)

    def heard(command: int) -> list[Values]:
        found = []
        with suppress(BlockingIOError):
            while True:
                for kind, flags, _, body in messages(listening.recv(1 << 16)):
                    if kind >= 0x10 and flags & REQUEST and len(body) > 4 and body[0] == command:
                        found.append(read(of.DEVICE, body[4:]))
        return [values for values in found if values.get("DEV_NAME") == "feigned_functions"]

    yield heard
    listening.close()
    subprocess.run(["ip", "link", "del", "nlmon0"], check=True)


def test_what_is_asked_is_what_devlink_asks(overheard, feigned):
    """Attribute by attribute, whatever becomes of it: a second function of the same number is refused, and asked for all the same."""
    nic = nic_of(feigned)
    for change in (
        EswitchSet(nic, "switchdev"), EswitchSet(nic, "switchdev", "transport", "basic"), FunctionAdd(nic, Function(0, sf=8)),
        FunctionAdd(nic, Function(0, sf=9, controller=3), 77), FunctionAdd(nic, Function(1)), FunctionSet(nic, 32776, MACS[0], "active"),
        FunctionSet(nic, 32776, state="inactive"), FunctionSet(nic, 77, MACS[1]), FunctionDelete(nic, 77),
    ):  # fmt: skip
        with Devlink() as asked, suppress(DevlinkError):
            asked.change(change)
        done = subprocess.run(shlex.split(change.line()), capture_output=True, text=True)
        asked_for = overheard(change.command)
        assert len(asked_for) == 2 and asked_for[0] == asked_for[1], (change.line(), asked_for, done.stderr)


def test_both_nics_are_told_apart(simulated, feigned):
    with Devlink() as asked:
        assert {str(nic) for nic in asked.nics()} == {simulated, feigned}
        asked.change(EswitchSet(nic_of(simulated), "switchdev"))
        with pytest.raises(DevlinkError, match=r"there is no such NIC or devlink port in this network namespace$"):
            asked.eswitch(nic_of("0000:08:00.0"))
    resolve = Resolver()
    assert resolve(f"p0@{feigned}") != resolve(f"p1@{simulated}")
    with pytest.raises(Misnamed, match=rf"^pf0vf0@{feigned}: no interface stands for it here: expected one of p0$"):
        resolve(f"pf0vf0@{feigned}")
    with pytest.raises(Misnamed, match=r"expected a NIC that has some: "):
        resolve("pf0vf0@0000:08:00.0")
    assert same_as_devlink() == 4


def test_where_there_is_none(capfd):
    assert run(capfd, "offload", "devices") == (1, "", "ctmirror: devlink knows no NIC here\n")
    code, _, err = run(capfd, "offload", "eswitch", "0000:08:00.0")
    assert (code, err) == (2, "ctmirror: pci/0000:08:00.0: devlink knows no such NIC here: expected one with a driver that uses devlink\n")
    assert not eswitches().ok


# --- functions where interfaces are wanted --------------------------------------------------------------------------------------------------

RULES = """
tc qdisc add dev pf0vf0@{nic} clsact
tc filter add dev pf0vf0@{nic} ingress protocol ip prio 1 chain 0 handle 1 flower ip_proto tcp action mirred egress redirect dev pf0vf1@{nic}
"""


def test_rules_are_installed_at_functions(capfd, tmp_path, simulated):
    (tmp_path / "rules.tc").write_text(RULES.format(nic=simulated))
    assert run(capfd, "offload", "install", str(tmp_path / "rules.tc"))[::2] == (
        2, f"ctmirror: {tmp_path}/rules.tc:2:1: 'dev pf0vf0@{simulated}': pf0vf0@{simulated}: no interface stands for it here: expected one of p1\n",
    )  # fmt: skip
    with Devlink() as asked:
        asked.change(EswitchSet(nic_of(simulated), "switchdev"))
    resolve = Resolver()
    first, second = resolve(f"pf0vf0@{simulated}"), resolve(f"pf0vf1@{simulated}")
    assert run(capfd, "offload", "install", str(tmp_path / "rules.tc")) == (0, "rules: 1 added, 0 changed, 0 removed; 0 as they were\n", "")
    (listed,) = [each for each in json.loads(shown("tc", "-j", "filter", "show", "dev", first, "ingress")) if "options" in each]
    assert (listed["options"]["keys"]["ip_proto"], listed["options"]["actions"][0]["to_dev"]) == ("tcp", second)
    assert run(capfd, "offload", "remove", str(tmp_path / "rules.tc")) == (0, "1 rule removed\n", "")


def test_probe_takes_a_function_and_says_the_mode(capfd, simulated):
    code, out, _ = run(capfd, "offload", "probe", f"p1@{simulated}")
    hint = f"  the eswitch is in mode legacy: ctmirror offload eswitch {simulated} --mode switchdev"
    assert code == 1 and out.splitlines()[1] == f"eswitch        legacy ({simulated})" and out.splitlines()[-1] == hint
    with Devlink() as asked:
        asked.change(EswitchSet(nic_of(simulated), "switchdev"))
    told = json.loads(run(capfd, "offload", "probe", f"pf0vf1@{simulated}", "--to", f"p1@{simulated}", "--json")[1])
    assert (told["eswitch"], told["nic_name"], told["device"]) == ("switchdev", simulated, Resolver()(f"pf0vf1@{simulated}"))
    assert not any("legacy" in line for line in told["why"])


def test_without_rights_there_is_the_list_and_no_mode(capfd, simulated):
    assert ended(in_child(lambda: keep_only(()), "offload", "devices")) == 0
    first, *rest = capfd.readouterr().out.splitlines()
    assert first == f"{simulated}: eswitch not told: expected root, or cap_net_admin" and len(rest) == 2
    assert ended(in_child(lambda: keep_only(()), "offload", "eswitch", simulated, "--mode", "switchdev")) == 2
    assert capfd.readouterr() == (
        "", f"ctmirror: devlink: {simulated}: eswitch mode switchdev: not permitted: expected root, or cap_net_admin\n",
    )  # fmt: skip


def shown(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout
