"""The kernel's own forwarding with connection tracking, on the topology of bench.forwarding: what ctmirror is measured beside.

    set_up(here)        frames that arrive at `in` for 198.19.0.0/16 are tracked, routed and leave by `out`

It all runs on the generator's processor, in its softirq: on veth pairs that is the fastest; handing packets to the other processor (RPS, or a NAPI
thread) costs more in interrupts than it saves. Not here: traffic (wire_traffic).
"""

from __future__ import annotations

from ctcore.config import Config
from datapath import craft
from datapath.oracle import ruleset
from datapath.oracle.namespace import Namespace


def set_up(here: Namespace) -> None:
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


def _mac(address: bytes) -> str:
    return ":".join(f"{byte:02x}" for byte in address)
