"""What a router has to know of the kernel: its interfaces, addresses, neighbours and, if wanted, routes; kept up to date while packets are routed.

Theory of operation: a thread listens to rtnetlink. Changes of neighbours are passed on one by one; any other change, and the news that messages
were lost, leads to everything being read again, at most every SETTLE seconds. What was read goes into the tables of all workers' routers in one job,
between two rounds of their loops. The other way round, a router rings when it misses a neighbour, and the kernel is told to use it (NTF_USE), which
makes it ask: so ARP and neighbour discovery stay the kernel's business, and the host's tables and ours never disagree for long.
Invariants: the tables are touched in jobs only, or before the node works. The kernel is asked for at most MOST_ASKED neighbours a second, for each
once a second, whatever strangers send. Everything is read in the namespace of the thread that made this.
Not here: the tables (routes, neighbour_table), which frames are the host's (xdp_filter, by host_networks() here).
"""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as Late
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_interface, ip_network
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl.marshal import MarshalRtnl

from datapath.errors import KernelError
from datapath.live.router import Router
from datapath.live.routes import RouteKind, RouteRow
from datapath.pipeline.rules import Ct, Ruleset

LOG = logging.getLogger("ctmirror")
Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# linux/rtnetlink.h: RTMGRP_LINK, _NEIGH, _IPV4_IFADDR, _IPV4_ROUTE, _IPV6_IFADDR, _IPV6_ROUTE
GROUPS = 0x1 | 0x4 | 0x10 | 0x40 | 0x100 | 0x400
IFF_UP, IFF_RUNNING = 0x1, 0x40
NTF_USE, NTF_PROXY = 0x01, 0x08
NUD_NONE, NUD_STALE, NUD_FAILED = 0, 0x04, 0x20
NUD_USABLE = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80  # reachable, stale, delay, probe, noarp, permanent
RTNH_UNUSABLE = 0x01 | 0x10  # RTNH_F_DEAD, RTNH_F_LINKDOWN
MAIN_TABLE = 254
KINDS = {1: RouteKind.ROUTE_VIA, 6: RouteKind.ROUTE_BLACKHOLE, 7: RouteKind.ROUTE_UNREACHABLE, 8: RouteKind.ROUTE_PROHIBIT}  # RTN_*
MOST_KERNEL_ROUTES = 4096  # of a family
# Never forwarded, and of use to the host: multicast, broadcast, link-local addresses of IPv6.
HOST_NETWORKS = tuple(ip_network(text) for text in ("224.0.0.0/4", "255.255.255.255/32", "ff00::/8", "fe80::/10"))

SETTLE = 0.05  # seconds in which changes are gathered
PATIENCE = 0.5  # seconds between two looks whether it is to end
MOST_ASKED = 200
ASK_AGAIN = 1.0
REMEMBERED = 4096  # neighbours, when they were asked for last
BUFFER = 1 << 22  # bytes of messages that may wait


@dataclass(frozen=True)
class StaticRoute:
    """A configured route. iface: "": the one in whose network `via` is."""

    prefix: Network
    via: Address | None = None
    iface: str = ""


@dataclass
class Seen:
    """What the kernel has said, in the router's terms."""

    stations: dict[str, dict[str, Any]] = field(default_factory=dict)
    own: set[Address] = field(default_factory=set)
    routes: list[RouteRow] = field(default_factory=list)
    neighbours: list[tuple[int, Address, bytes | None, bool]] = field(default_factory=list)
    names: dict[int, int] = field(default_factory=dict)  # ordinals by the kernel's number


class _Ended(Exception):
    """It is to end, or the node has."""


# --- reading ----------------------------------------------------------------------------------------------------------------------------


def host_networks(ruleset: Ruleset) -> tuple[Network, ...]:
    """Addresses that the host has in this namespace, and those that no router forwards to: their packets are the host's. But for addresses that rules
    translate to, whose packets have to come to the rules."""
    with IPRoute() as netlink:
        addresses = list(_addresses(netlink))
    own = [one.ip for _, one, _ in addresses if not _translated_to(ruleset, one.ip)]
    groups = [group for _, _, found in addresses for group in found]
    return (*HOST_NETWORKS, *(ip_network(address) for address in dict.fromkeys((*own, *groups))))


def wanted_of_host(ruleset: Ruleset, local: Iterable[Network]) -> list[str]:
    """Addresses among these of the host that rules translate to: answers to those do not come to the rules."""
    return [str(one.network_address) for one in local if one.num_addresses == 1 and _translated_to(ruleset, one.network_address)]


def _translated_to(ruleset: Ruleset, address: Address) -> bool:
    nats = [action.nat for rule in ruleset.rules for action in rule.actions if isinstance(action, Ct) and action.nat is not None]
    spans = [(ip_address(nat.low), ip_address(nat.high or nat.low)) for nat in nats if nat.low is not None]
    return any(low.version == address.version and int(low) <= int(address) <= int(high) for low, high in spans)


def _addresses(netlink: IPRoute) -> Iterator[tuple[int, Any, set[Address]]]:
    """Of each address: its interface's number; the address with its network; that one's broadcast addresses."""
    for message in netlink.get_addr():
        if message["family"] not in (socket.AF_INET, socket.AF_INET6):
            continue
        network, local = message.get_attr("IFA_ADDRESS"), message.get_attr("IFA_LOCAL")
        told = message.get_attr("IFA_BROADCAST")
        found = ip_interface(f"{local or network}/{message['prefixlen']}")
        groups = {ip_address(told)} if told else set()
        if found.version == 4 and found.network.prefixlen <= 30:
            groups.add(found.network.broadcast_address)
        yield message["index"], found, groups


def _station(message: Any) -> dict[str, Any]:
    mac = bytes.fromhex((message.get_attr("IFLA_ADDRESS") or "").replace(":", ""))
    wanted = IFF_UP | IFF_RUNNING
    return {
        "mac": mac if len(mac) == 6 else bytes(6),
        "mtu": min(max(message.get_attr("IFLA_MTU") or 0, 68), 0x10000),
        "up": message["flags"] & wanted == wanted and len(mac) == 6,
    }


def _gateway(message: Any) -> tuple[Address | None, int | None, bool]:
    """Of a route or a next hop: gateway, interface, whether it can be used. Of several next hops, the first that can."""
    for hop in message.get_attr("RTA_MULTIPATH") or ():
        if not hop["flags"] & RTNH_UNUSABLE:
            via = hop.get_attr("RTA_GATEWAY")
            return (None if via is None else ip_address(via)), hop["oif"], hop.get_attr("RTA_VIA") is None
    via = message.get_attr("RTA_GATEWAY")
    usable = not message["flags"] & RTNH_UNUSABLE and message.get_attr("RTA_VIA") is None
    return (None if via is None else ip_address(via)), message.get_attr("RTA_OIF"), usable


def _kernel_routes(netlink: IPRoute, names: dict[int, int]) -> list[RouteRow]:
    """The main table, as far as it leads to interfaces of ours, the best route to a prefix first."""
    rows: list[tuple[int, RouteRow]] = []
    for family, empty in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        found: list[tuple[int, RouteRow]] = []
        for message in netlink.get_routes(family=family, table=MAIN_TABLE):
            kind = KINDS.get(message["type"])
            if kind is None or message.get_attr("RTA_TABLE") != MAIN_TABLE:
                continue
            prefix = ip_network(f"{message.get_attr('RTA_DST') or empty}/{message['dst_len']}")
            via, oif, usable = _gateway(message)
            if kind == RouteKind.ROUTE_VIA and (oif not in names or not usable or prefix.is_link_local or prefix.is_multicast):
                continue
            if kind == RouteKind.ROUTE_VIA and via is None:
                kind = RouteKind.ROUTE_LINK
            found.append((message.get_attr("RTA_PRIORITY") or 0, RouteRow(prefix, kind, names.get(oif or 0, 0), via)))
        found.sort(key=lambda pair: pair[0])
        if len(found) > MOST_KERNEL_ROUTES:
            LOG.error(f"the kernel has {len(found)} routes of family {family}: {MOST_KERNEL_ROUTES} of them are taken, by metric")
        rows += found[:MOST_KERNEL_ROUTES]
    return [row for _, row in rows]


def _neighbour(message: Any, names: dict[int, int]) -> tuple[int, Address, bytes | None, bool] | None:
    """(ordinal, address, MAC or None if it does not answer, whether that is not sure); None: it says nothing of use."""
    address, mac = message.get_attr("NDA_DST"), message.get_attr("NDA_LLADDR")
    if message["family"] not in (socket.AF_INET, socket.AF_INET6) or message["ifindex"] not in names or address is None:
        return None
    if message["flags"] & NTF_PROXY:
        return None
    where = names[message["ifindex"]], ip_address(address)
    if message["state"] & NUD_FAILED:
        return (*where, None, False)
    if not message["state"] & NUD_USABLE or mac is None or len(mac) != 17:
        return None
    return (*where, bytes.fromhex(mac.replace(":", "")), bool(message["state"] & NUD_STALE))


class Neighbours:
    """A router's tables, kept up to date until close()."""

    def __init__(
        self,
        routers: Sequence[Router],
        ask: Callable[[Callable[[Any], Any]], Future[Any]],
        *,
        routed: Sequence[str],
        routes: Sequence[StaticRoute] = (),
        kernel_routes: bool = False,
    ) -> None:
        """Fill the tables, and watch from now on. routers: of all workers, with the same devices; ask: Node.ask, or what does jobs as it does;
        routed: names of the devices in router mode.

        Raises KernelError if the kernel cannot be asked.
        """
        self.routers, self.device_names = tuple(routers), tuple(routers[0].names)
        self.ask, self.routed, self.static, self.kernel_routes = ask, tuple(routed), tuple(routes), kernel_routes
        self.overruns = self.syncs = 0
        self.known: set[Address] | None = None  # own addresses at the start
        self.names: dict[int, int] = {}
        self.asked: OrderedDict[tuple[int, Address], float] = OrderedDict()
        self.allowance, self.since = float(MOST_ASKED), time.monotonic()
        self.lost: set[StaticRoute] = set()  # that lead nowhere at the moment
        self.ended = threading.Event()
        self.end = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.filled: Future[None] = Future()
        self.thread = threading.Thread(target=self._run, name="neighbours", daemon=True)
        self.thread.start()
        try:
            self.filled.result()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End; a second time, nothing."""
        if self.end >= 0:
            self.ended.set()
            os.eventfd_write(self.end, 1)
            self.thread.join()
            os.close(self.end)
            self.end = -1

    def counters(self) -> dict[str, int]:
        """overruns: times that messages of the kernel were lost, and everything was read again; syncs: times that it was."""
        return {"overruns": self.overruns, "syncs": self.syncs}

    # --- the thread -----------------------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            with IPRoute() as self.netlink, _listener() as listener:
                self._take(self._read())
                self.filled.set_result(None)
                self._watch(listener)
        except _Ended:
            pass
        except (OSError, NetlinkError) as error:
            problem = KernelError(f"rtnetlink: {error}", getattr(error, "errno", 0) or getattr(error, "code", 0) or 0)
            self._failed(problem)
        except Exception as error:
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        if self.filled.done():
            LOG.error(f"neighbours and routes are not kept up to date any more: {error}")
        else:
            self.filled.set_exception(error)

    def _watch(self, listener: socket.socket) -> None:
        due: float | None = None
        bells = [router.neighbours.bell for router in self.routers]
        sources: list[Any] = [listener, *bells, self.end]
        while not self.ended.is_set():
            wait = None if due is None else max(0.0, due - time.monotonic())
            ready, _, _ = select.select(sources, [], [], wait)
            if listener in ready and self._listen(listener):
                due = due or time.monotonic() + SETTLE
            if rung := [bell for bell in bells if bell in ready]:
                self._wanted(rung)
            if due is not None and time.monotonic() >= due:
                due = None
                self._do(partial(self._take, self._read()))

    def _do(self, job: Callable[[], Any]) -> Any:
        """A job, between two rounds of the loop."""
        try:
            future = self.ask(lambda _: job())
            while not self.ended.is_set():
                try:
                    return future.result(PATIENCE)
                except Late:
                    continue
        except RuntimeError:  # the node is stopping
            pass
        raise _Ended

    def _listen(self, listener: socket.socket) -> bool:
        """Messages that wait. Whether everything has to be read again."""
        changes: list[Any] = []
        again = False
        for _ in range(64):
            try:
                data = listener.recv(1 << 16)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self.overruns += 1
                again = True
                continue
            for message in MarshalRtnl().parse(data):
                if message["event"] in ("RTM_NEWNEIGH", "RTM_DELNEIGH"):
                    changes.append(message)
                else:
                    again = True
        if changes and not again:
            self._do(lambda: self._change(changes))
        return again

    def _change(self, messages: Iterable[Any]) -> None:
        for message in messages:
            found = _neighbour(message, self.names)
            gone = message["event"] == "RTM_DELNEIGH" and message["ifindex"] in self.names and message.get_attr("NDA_DST") is not None
            for router in self.routers:
                if message["event"] == "RTM_NEWNEIGH" and found is not None:
                    ordinal, address, mac, stale = found
                    router.neighbours.put(ordinal, address, mac, stale=stale)
                elif gone:
                    router.neighbours.drop(self.names[message["ifindex"]], ip_address(message.get_attr("NDA_DST")))

    # --- everything -----------------------------------------------------------------------------------------------------------------------

    def _read(self) -> Seen:
        """All that there is, as the kernel has it now."""
        seen = Seen()
        ordinals = {name: i for i, name in enumerate(self.device_names)}
        for message in self.netlink.get_links():
            name = message.get_attr("IFLA_IFNAME")
            if name in ordinals:
                seen.names[message["index"]] = ordinals[name]
                seen.stations[name] = {**_station(message), "addresses": []}
        connected: list[RouteRow] = []
        for index, found, groups in _addresses(self.netlink):
            seen.own.add(found.ip)
            seen.routes += [RouteRow(ip_network(group), RouteKind.ROUTE_GROUP) for group in groups]
            if index in seen.names and not found.ip.is_link_local:
                seen.stations[self.device_names[seen.names[index]]]["addresses"].append(found.ip)
                connected.append(RouteRow(found.network, RouteKind.ROUTE_LINK, seen.names[index]))
        # Of equal prefixes the first one stays.
        seen.routes = [RouteRow(ip_network(address), RouteKind.ROUTE_OWN) for address in seen.own] + seen.routes
        seen.routes += [*self._static(ordinals, connected), *connected]
        if self.kernel_routes:
            seen.routes += _kernel_routes(self.netlink, seen.names)
        seen.neighbours = [found for message in self.netlink.get_neighbours() if (found := _neighbour(message, seen.names)) is not None]
        return seen

    def _static(self, ordinals: dict[str, int], connected: list[RouteRow]) -> Iterator[RouteRow]:
        for route in self.static:
            iface: int | None = None
            if route.iface:
                iface = ordinals[route.iface]
            else:
                iface = next((row.iface for row in connected if route.via in row.prefix), None)
            if iface is None and route not in self.lost:
                LOG.warning(f"route {route.prefix}: {route.via} is in no network of an interface: not used until it is")
            (self.lost.add if iface is None else self.lost.discard)(route)
            if iface is not None:
                yield RouteRow(route.prefix, RouteKind.ROUTE_LINK if route.via is None else RouteKind.ROUTE_VIA, iface, route.via)

    def _take(self, seen: Seen) -> None:
        """What was read into the routers' tables. A job."""
        self.syncs += 1
        for router in self.routers:
            self._fill(router, seen)
        self.names = seen.names
        if self.known is not None and seen.own - self.known:
            new = ", ".join(sorted(map(str, seen.own - self.known)))
            LOG.warning(f"{new}: new addresses of the host: where XDP is used, packets to them reach it after a restart")
        self.known = seen.own if self.known is None else self.known | seen.own

    def _fill(self, router: Router, seen: Seen) -> None:
        gone = {"mac": bytes(6), "mtu": 1500, "up": False}
        for name in router.names:
            router.put_station(name, **seen.stations.get(name, gone), routed=name in self.routed)
        router.routes.put(seen.routes)
        router.neighbours.clear()
        for ordinal, address, mac, stale in seen.neighbours:
            router.neighbours.put(ordinal, address, mac, stale=stale)
        for row in seen.routes:
            if row.via is not None and router.neighbours.find(row.iface, row.via) is None:
                router.neighbours.want(row.iface, row.via)

    # --- who is wanted --------------------------------------------------------------------------------------------------------------------

    def _wanted(self, rung: Sequence[int]) -> None:
        for bell in rung:
            os.eventfd_read(bell)
        for ordinal, address in self._do(lambda: [wanted for router in self.routers for wanted in router.neighbours.take_wanted()]):
            if self._may_ask(ordinal, address):
                self._ask_for(ordinal, address)
        if self.ended.wait(1 / MOST_ASKED):  # packets to nowhere ring as often as we listen
            raise _Ended

    def _may_ask(self, ordinal: int, address: Address) -> bool:
        now = time.monotonic()
        self.allowance = min(float(MOST_ASKED), self.allowance + (now - self.since) * MOST_ASKED)
        self.since = now
        if self.allowance < 1 or now - self.asked.get((ordinal, address), -ASK_AGAIN) < ASK_AGAIN:
            return False
        self.allowance -= 1
        self.asked[ordinal, address] = now
        self.asked.move_to_end((ordinal, address))
        if len(self.asked) > REMEMBERED:
            self.asked.popitem(last=False)
        return True

    def _ask_for(self, ordinal: int, address: Address) -> None:
        index = next((index for index, found in self.names.items() if found == ordinal), None)
        if index is None:
            return
        family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
        try:
            self.netlink.neigh("replace", family=family, dst=str(address), ifindex=index, state=NUD_NONE, flags=NTF_USE)
        except NetlinkError as error:  # no place in its table, or the interface has gone
            LOG.debug(f"{self.device_names[ordinal]}: {address}: cannot be asked for: {error}")


def _listener() -> socket.socket:
    """A socket that hears of every change."""
    listener = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        listener.bind((0, GROUPS))
    except OSError:
        listener.close()
        raise
    return listener
