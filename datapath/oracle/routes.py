"""What a bridge needs to send on packets whose destination has been translated, and what a device's address is good for.

Theory of operation: a bridge sends a packet on by its MAC address. Once the destination address has changed (dnat, or the answer to a translated
source), br_netfilter asks the routing table instead: the packet stays on the bridge, as it is but for its MAC address, if its route leads back
through the bridge device. So there is one route for everything, by way of a gateway that nobody is, whose MAC address is known for good.
masquerade and redirect take the address of the device, which for bridged packets is the bridge's own. It has one, but is not reachable by it: the
local route is taken out, so that packets to this address are sent on like all others.
Invariant: nothing is ever delivered here, and TTLs stay as they are. What the bridge device says of its own accord (multicast listener reports) is
told by its MAC address (bridge).
Not here: rules (ruleset).
"""

from __future__ import annotations

import errno
import socket
import time
from socket import AF_INET, AF_INET6, AddressFamily
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from ctcore.nat_rules import Address
from datapath.oracle.namespace import Namespace
from datapath.oracle.ruleset import Interface

GATEWAYS = {AF_INET: "169.254.0.1", AF_INET6: "fe80::1"}
FAMILIES = {4: AF_INET, 6: AF_INET6}
ANYBODY, DISCARD = {AF_INET: ("192.0.2.1", "192.0.2.2"), AF_INET6: ("2001:db8::1", "2001:db8::2")}, 9
TRANSPARENT = {AF_INET: (socket.IPPROTO_IP, 19), AF_INET6: (socket.IPPROTO_IPV6, 75)}  # linux/in.h, linux/in6.h
LOCAL_TABLE = 255
RTN_LOCAL = "local"
PATIENCE, PAUSE = 5.0, 0.001  # seconds
IFA_F_NODAD, IFA_F_NOPREFIXROUTE = 0x02, 0x200
# Sources and destinations are whatever rules and captures say.
SYSCTLS4 = {"rp_filter": 0, "accept_local": 1, "route_localnet": 1, "send_redirects": 0, "forwarding": 1}
# No address but ours, no question and no doubt about it.
SYSCTLS6 = {"addr_gen_mode": 1, "accept_dad": 0, "accept_ra": 0, "router_solicitations": 0, "disable_ipv6": 0, "forwarding": 1}


def lead_back(namespace: Namespace, device: str, mac: bytes, interface: Interface) -> None:
    """Make the bridge `device` of a namespace send everything to `mac`, and give it addresses."""
    namespace.sysctl("ipv4/conf/all/rp_filter", 0)
    for name, value in SYSCTLS4.items():
        namespace.sysctl(f"ipv4/conf/{device}/{name}", value)
    for name, value in SYSCTLS6.items():
        namespace.sysctl(f"ipv6/conf/{device}/{name}", value)
    with namespace.netlink() as netlink:
        index = netlink.link_lookup(ifname=device)[0]
        for address in interface.values():
            _own(netlink, index, address)
        for family, gateway in GATEWAYS.items():
            netlink.neigh("add", family=family, dst=gateway, lladdr=mac.hex(":"), ifindex=index, state="permanent")
            netlink.route("add", family=family, dst="default", gateway=gateway, oif=index, flags=["onlink"])
    with namespace.entered():
        for family in GATEWAYS:
            _speak_once(family)


def _speak_once(family: AddressFamily) -> None:
    """Let the gateway's neighbour entry keep the link header that it gives to packets.

    Until then a bridge sends a packet through its own device's queue, as no router would: that puts the fragments of a datagram into one buffer,
    and they leave otherwise than they came.
    """
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(*TRANSPARENT[family], 1)  # the device need not have an address
        sock.bind((ANYBODY[family][0], 0))
        sock.sendto(b"", (ANYBODY[family][1], DISCARD))


def _own(netlink: IPRoute, index: int, address: Address) -> None:
    family, length = FAMILIES[address.version], address.max_prefixlen
    # At once, for a tentative address is not redirected to; and without a route to it beside the local one.
    netlink.addr("add", family=family, index=index, address=str(address), prefixlen=length, flags=IFA_F_NODAD | IFA_F_NOPREFIXROUTE)
    _unreachable(netlink, family=family, table=LOCAL_TABLE, type=RTN_LOCAL, scope="host", dst=f"{address}/{length}", oif=index)


def _unreachable(netlink: IPRoute, **route: Any) -> None:
    """Take a local route out. That of an IPv6 address comes some time after the address (addrconf's work queue)."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            netlink.route("del", **route)
            return
        except NetlinkError as error:
            if error.code != errno.ESRCH or time.monotonic() > until:
                raise
        time.sleep(PAUSE)
