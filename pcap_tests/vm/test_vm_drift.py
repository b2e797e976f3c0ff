"""`ctmirror offload audit --kernel RULES` in a real kernel: each thing that somebody does to filters, devices and connections is said."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator

import pytest

from datapath.commands.tc.ask import KernelTc
from datapath.commands.tc.install import MARK, Keeper
from datapath.oracle.namespace import Namespace
from offload.conntrack_entries import ConntrackEntries
from offload.drift import Drift, of_connections
from offload.records import Op
from pcap_tests.test_datapath.command import run
from pcap_tests.test_datapath.tabled import Tcp
from pcap_tests.test_offload.commanded import Flow, asked
from pcap_tests.test_offload.mirrored import QuickRig
from pcap_tests.vm.test_vm_conntrack import Across, talk
from pcap_tests.vm.test_vm_entries import across, flow_of, until  # noqa: F401 (fixture)
from pcap_tests.vm.test_vm_install import FIRST, HEAD, read, tc


@pytest.fixture
def rules(switch, tmp_path) -> Iterator[str]:
    """Installed, and as a file."""
    path = tmp_path / "rules.tc"
    path.write_text(FIRST)
    with KernelTc(MARK) as kernel, Keeper(kernel, read(FIRST), keep=True) as keeper:
        assert keeper.refused == []
    return str(path)


@pytest.fixture
def audited(capfd) -> Callable[[str], tuple[int, list[str]]]:
    """Exit code, and what was found."""

    def asked(rules: str) -> tuple[int, list[str]]:
        code, output, _ = run(capfd, "offload", "audit", "--kernel", rules, "--json")
        found = json.loads(output)["findings"]
        assert code == int(any(each["drift"] for each in found))
        return code, [f"{each['what']} {each['about']}" for each in found]

    return asked


def test_what_was_installed_is_as_it_is_meant(rules, audited, capfd):
    assert audited(rules) == (0, [])
    code, output, _ = run(capfd, "offload", "audit", "--kernel", rules)
    assert (code, output) == (0, "6 of 6 rules as they are meant; nothing differs\n")


def test_what_somebody_does_to_filters(rules, audited):
    tc("filter del dev eth0 ingress protocol ip prio 2 chain 1")
    code, (found,) = audited(rules)
    assert code == 1 and found.startswith("filter_missing tc filter add dev eth0 ingress") and "prio 2 chain 1" in found
    tc("filter del dev eth0 ingress protocol ip prio 3 chain 1")
    tc("filter add dev eth0 ingress protocol ip prio 3 chain 1 handle 0x1 flower action pass")
    code, found = audited(rules)
    assert code == 1 and [each.split()[0] for each in found] == ["filter_foreign", "filter_missing"]
    tc(f"filter replace dev eth0 ingress protocol ip prio 3 chain 1 handle 0x1 flower action pass cookie {MARK.hex()}")
    assert sorted(each.split()[0] for each in audited(rules)[1]) == ["filter_changed", "filter_missing"]
    tc("qdisc del dev eth0 clsact")
    assert [each.split()[0] for each in audited(rules)[1]] == ["qdisc_missing", "chain_missing", *["filter_missing"] * 5]


def test_a_filter_of_ours_that_a_file_has_no_more(rules, tmp_path, audited):
    less = tmp_path / "less.tc"
    less.write_text("\n".join(line for line in FIRST.splitlines() if "prio 3 chain 1" not in line))
    code, (found,) = audited(str(less))
    assert code == 1 and found.startswith("filter_extra") and "prio 3 chain 1" in found and HEAD.split()[-3] in found


def test_a_link_that_is_down_and_one_that_is_gone(rules, switch, audited):
    with switch.netlink() as netlink:
        netlink.link("set", index=netlink.link_lookup(ifname="eth1")[0], state="down")
        assert audited(rules) == (1, ["device_down eth0"])
        netlink.link("del", index=netlink.link_lookup(ifname="vf0")[0])
    code, found = audited(rules)
    assert code == 1 and "device_missing vf0" in found and "device_down eth0" in found


def test_a_namespace_that_goes_takes_its_cables_with_it(rules, switch, audited):
    elsewhere = Namespace()
    with switch.netlink() as netlink:
        netlink.link("set", index=netlink.link_lookup(ifname="eth1")[0], net_ns_fd=elsewhere.fd)
    elsewhere.close()
    for _ in range(100):
        with KernelTc() as kernel:
            if "eth0" not in kernel.numbers:
                break
    code, found = audited(rules)
    assert code == 1 and "device_missing eth0" in found


def test_connections_are_counted_by_zone(across: Across, tmp_path, capfd):  # noqa: F811
    path = tmp_path / "rules.tc"
    path.write_text(f"tc qdisc add dev eth0 clsact\n{HEAD} prio 2 chain 0 flower ct_state -trk action ct zone 5 nat\n")
    client, listening = across.connected()
    with ConntrackEntries() as backend:
        asked(backend, Op.REPLACE, flow_of(client))
        server = talk(across, client, listening)
        until(backend, lambda status: bool(status & 1 << 14))
        asked(backend, Op.REPLACE, Flow(9, zone=5, sport=9))
        zones = json.loads(run(capfd, "offload", "audit", "--kernel", str(path), "--json")[1])["zones"]
        assert [zone.pop("in_hardware") in (0, 1) for zone in zones] == [True]  # as other tests have left the NIC
        assert zones == [{"zone": 5, "connections": 2, "established": 2, "offloaded": 1}]
        path.write_text(path.read_text().replace("zone 5", "zone 6"))
        code, output, _ = run(capfd, "offload", "audit", "--kernel", str(path))
        assert code == 1 and "offloaded elsewhere: zone 5: 1 of its connections, and no rule has this zone" in output
        client.close()
        server.close()


def test_a_mirror_its_entries_and_the_kernel(switch):
    with ConntrackEntries() as backend:
        rig = QuickRig(nic=backend)
        Tcp(rig).opened()
        Tcp(rig, port=40_001).opened()
        rig.settle()
        subprocess.run(["conntrack", "-D", "-p", "tcp", "--orig-port-src", "40001"], check=True, capture_output=True)
        subprocess.run(["conntrack", "-U", "-p", "tcp", "-s", "10.0.0.1", "--orig-port-src", "40000", "--mark", "7"], check=True, capture_output=True)
        found = [finding.what for finding in of_connections(rig.mirror.audit(backend.held()), backend.states())]
        assert found == [Drift.ENTRY_MISSING, Drift.ENTRY_MISSING, Drift.MARK_CHANGED]
        subprocess.run(["conntrack", "-F"], check=True, capture_output=True)
        found = [finding.what for finding in of_connections(rig.mirror.audit(backend.held()), backend.states())]
        assert found == [Drift.ENTRY_MISSING] * 4
