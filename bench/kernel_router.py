"""The kernel's own forwarding with connection tracking, on the topology of bench.forwarding: what ctmirror is measured beside.

    set_up(here)        frames that arrive at `in` for 198.19.0.0/16 are tracked, routed and leave by `out`

The receiving side's packet work is put on the processor that the forwarder would have (RPS), so that the generator keeps its own.
Not here: traffic (wire_traffic).
"""

from __future__ import annotations

import ctypes
import os
import tempfile
from pathlib import Path

from ctcore.config import Config
from datapath import craft
from datapath.oracle import ruleset
from datapath.oracle.namespace import Namespace, checked

libc = ctypes.CDLL(None, use_errno=True)


def set_up(here: Namespace, processor: int) -> None:
    """In a namespace with `in` and `out`, both up."""
    for name, value in (("ipv4/ip_forward", 1), ("ipv4/conf/all/rp_filter", 0), ("ipv4/conf/in/rp_filter", 0), ("ipv4/conf/default/rp_filter", 0)):
        here.sysctl(name, value)
    ruleset.load(here, Config())
    with here.netlink() as netlink:
        at = {name: netlink.link_lookup(ifname=name)[0] for name in ("in", "out")}
        netlink.link("set", index=at["in"], address=_mac(craft.MAC_B))
        netlink.addr("add", index=at["in"], address="198.18.255.1", prefixlen=16)
        netlink.addr("add", index=at["out"], address="198.19.255.1", prefixlen=16)
        netlink.neigh("add", ifindex=at["out"], dst="198.19.0.1", lladdr="02:00:00:00:00:99", state="permanent")
    _receive_on(here, "in", processor)


def _mac(address: bytes) -> str:
    return ":".join(f"{byte:02x}" for byte in address)


def _receive_on(here: Namespace, name: str, processor: int) -> None:
    """RPS is set in sysfs, which shows the namespace that it was mounted from."""
    with here.entered(), tempfile.TemporaryDirectory() as folder:
        where = os.fsencode(folder)
        checked(libc.mount(b"sysfs", where, b"sysfs", 0, None), "mount sysfs")
        try:
            Path(folder, "class/net", name, "queues/rx-0/rps_cpus").write_text(f"{1 << processor:x}")
        finally:
            checked(libc.umount2(where, 2), "unmount sysfs")
