"""These tests run in the guest of pcap_tests.vm (`make test-vm`), and are not collected elsewhere. They have a kernel of their own, and may do with
it as they like; each makes namespaces for itself."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from datapath.oracle.namespace import Namespace
from pcap_tests.required import cannot
from pcap_tests.vm.suite import FUNCTIONS, MODULE, NETDEVSIM

if "CTMIRROR_GUEST" not in os.environ:
    collect_ignore_glob = ["test_*.py"]

CLEARED = 30.0  # seconds
PAIRS = (("eth0", "eth1"), ("vf0", "vf1"))


@pytest.fixture
def switch() -> Iterator[Namespace]:
    """A namespace with the devices that rules are written for; this thread is in it."""
    namespace = Namespace()
    with namespace.netlink() as netlink:
        for name, peer in PAIRS:
            netlink.link("add", ifname=name, kind="veth", peer={"ifname": peer})
        for name in (*sum(PAIRS, ()), "lo"):
            netlink.link("set", index=netlink.link_lookup(ifname=name)[0], state="up")
    with namespace.entered():
        yield namespace
    namespace.close()


class FeignedNic:
    """The module that makes a veth look like a NIC (module/): its parameters, and its tables in debugfs."""

    files = Path("/sys/kernel/debug/feigned_nic")
    parameters = Path("/sys/module/feigned_nic/parameters")

    def set(self, **values: int) -> None:
        for name, value in values.items():
            (self.parameters / name).write_text(str(value))

    def lines(self, table: str) -> list[str]:
        return (self.files / table).read_text().splitlines()

    def hit(self, table: str, containing: str, packets: int, octets: int) -> None:
        """Hardware has seen so many more of the one entry that says this."""
        (cookie,) = [line.split()[0] for line in self.lines(table) if containing in line]
        (self.files / table).write_text(f"{cookie} {packets} {octets}")

    def calls(self) -> dict[str, list[int]]:
        return {line.split()[0]: [int(word) for word in line.split() if word.isdecimal()] for line in self.lines("calls")}


@pytest.fixture(scope="session")
def module() -> str:
    path = os.environ.get(MODULE)
    if path is None:
        cannot("the module was not built: no headers of the guest's kernel")
    return path


@pytest.fixture
def nic(module) -> Iterator[FeignedNic]:
    """Every veth that is made from here on is a NIC; so this comes before `switch` in a test's arguments."""
    subprocess.run(["modprobe", "-a", "cls_flower", "nf_flow_table", "veth"], check=True)
    if not FeignedNic.parameters.exists():
        subprocess.run(["insmod", module], check=True)
    nic = FeignedNic()
    nic.set(fail_next=0, fail_errno=28, rule_room=1 << 20, conn_room=1 << 20, takes_ct=1, slow_us=0)
    end = time.monotonic() + CLEARED
    while (left := [*nic.lines("conns"), *nic.lines("rules")]) and time.monotonic() < end:
        time.sleep(0.1)  # the kernel takes its time for the devices of a namespace that has ended
    assert left == [], f"an earlier test has left in the NIC: {left[:4]}"
    yield nic


# --- NICs that devlink knows ----------------------------------------------------------------------------------------------------------------


def inserted(variable: str, *needed: str) -> None:
    """A module that the suite has built."""
    path = os.environ.get(variable)
    if path is None:
        cannot(f"{variable}: this module was not built")
    if not Path("/sys/module", Path(path).stem).exists():
        if needed:
            subprocess.run(["modprobe", "-a", *needed], check=True)
        subprocess.run(["insmod", path], check=True)


@pytest.fixture
def simulated() -> Iterator[str]:
    """Linux's netdevsim with an uplink and two VFs, whose representors come with mode switchdev; as devlink calls it."""
    inserted(NETDEVSIM, "psample")
    bus = Path("/sys/bus/netdevsim")
    (bus / "new_device").write_text("10 1")
    (bus / "devices/netdevsim10/sriov_numvfs").write_text("2")
    yield "netdevsim/netdevsim10"
    (bus / "del_device").write_text("10")


@pytest.fixture
def feigned() -> Iterator[str]:
    """Our own eswitch (module/feigned_functions.c), which has scalable functions; as devlink calls it."""
    inserted(FUNCTIONS)
    yield "platform/feigned_functions"
    subprocess.run(["rmmod", "feigned_functions"], check=True)
