"""Which frames of an interface are ours, and which the host's: a value, the XDP program made of it, and its attachment.

Theory of operation: the program runs on each frame that an interface receives. It looks at no more than addresses and ports, and either sends the
frame to the AF_XDP socket of the queue on which it came, or lets the host have it. In this order, the first that applies:

    too short to be told, no IP (unless other_types), VLAN (unless vlans)      host
    an Ethernet type of passed_types                                           host
    neighbour discovery (ICMPv6 133 to 137)                                    host, if neighbours
    to an address of `local`                                                   host
    from or to a port of `ports`                                               host
    neither from nor to one of `prefixes`, if there are any                    host
    of a connection that the kernel or a NIC forwards (xdp_bypass)             host
    all else                                                                   ours, but for SYNs beyond syn_rate (syn_guard)

Prefixes are compared one by one where they are few, and looked up in a map (LPM trie) where they are many.
Invariants: where no socket has a queue, the host has its frames. The attachment is a descriptor: it ends with the process, also by SIGKILL. Another
program on the interface is never removed.
Not seen: ports of fragments but the first, and behind IPv6 extension headers: such packets are ours. A VLAN tag that the device has taken out of a
frame.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network

from ctcore.errors import ConfigError
from datapath import bpf
from datapath.bpf import FP, R0, R1, R2, R3, R6, R7, R8, R9, Instruction, label
from datapath.errors import KernelError
from datapath.live.interfaces import index_of
from datapath.live.syn_guard import Guard
from datapath.live.xdp_bypass import XdpBypass
from datapath.live.xdp_header import past_ipv4

Network = IPv4Network | IPv6Network
PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132, "udplite": 136}
ETH_IPV4, ETH_ARP, ETH_VLAN, ETH_IPV6, ETH_QINQ = 0x0800, 0x0806, 0x8100, 0x86DD, 0x88A8
ICMPV6, FIRST_ND, LAST_ND = 58, 133, 137
XDP_PASS, XDP_REDIRECT = 2, 4
INLINE = 8  # prefixes to be compared one by one: more of them take longer than a look-up
MOST_QUEUES = 256
DATA, DATA_END, QUEUE = 0, 4, 16  # offsets in struct xdp_md
KEY = 24  # bytes of a map's key: bits that count, of what follows: IP version, 4 bytes, and the address
LEAST_SYN_RATE, MOST_SYN_RATE = 1000, 1_000_000_000  # one in each window, at least
MODES = {"native": bpf.XDP_DRIVER_MODE, "generic": bpf.XDP_SKB_MODE}


@dataclass(frozen=True)
class Filter:
    """Which frames are ours. The default takes all IPv4 and IPv6 but neighbour discovery, and leaves everything else to the host.

    passed_types: Ethernet types for the host, IPv4 and IPv6 may be among them; other_types: take frames that are no IP, as a wire does that also
    carries ARP (set neighbours to False then); vlans: take tagged frames, without looking into them; neighbours: leave neighbour discovery to the
    host; local: addresses or prefixes of the host itself; ports: (protocol, port) of the host, such as ("tcp", 22), whoever the other end is;
    prefixes: take only packets from or to these, all if there are none; syn_rate: opening segments of TCP a second that a queue takes, as a ring that
    they fill loses frames of all kinds alike; 0: no limit.
    Raises ConfigError for what cannot be.
    """

    passed_types: frozenset[int] = frozenset()
    other_types: bool = False
    vlans: bool = False
    neighbours: bool = True
    local: tuple[Network, ...] = ()
    ports: tuple[tuple[str, int], ...] = ()
    prefixes: tuple[Network, ...] = ()
    syn_rate: int = 0

    def __post_init__(self) -> None:
        for name in ("local", "prefixes"):
            object.__setattr__(self, name, tuple(dict.fromkeys(_network(name, text) for text in getattr(self, name))))
        for kind in self.passed_types:
            if not 0x0600 <= kind <= 0xFFFF:
                raise ConfigError(f"passed_types: {kind:#x}: expected an Ethernet type, 0x600 to 0xffff")
        if self.syn_rate and not LEAST_SYN_RATE <= self.syn_rate <= MOST_SYN_RATE:
            raise ConfigError(f"syn_rate: {self.syn_rate}: expected 0, or {LEAST_SYN_RATE} to {MOST_SYN_RATE}")
        for protocol, port in self.ports:
            if protocol not in PROTOCOLS or not 1 <= port <= 0xFFFF:
                raise ConfigError(f"ports: {protocol} {port}: expected one of {', '.join(PROTOCOLS)}, and 1 to 65535")


EVERYTHING = Filter(other_types=True, vlans=True, neighbours=False)  # as a wire does


def _network(name: str, text: object) -> Network:
    try:
        return ip_network(text)  # type: ignore[arg-type]
    except ValueError as error:
        raise ConfigError(f"{name}: {error}: expected an address or a prefix") from None


class Prefixes:
    """A set of prefixes as code, or as a map if there are many."""

    def __init__(self, networks: Sequence[Network], name: str) -> None:
        self.networks, self.name = networks, name
        self.map: bpf.Map | None = None
        if len(networks) > INLINE:
            self.map = bpf.Map(bpf.LPM_TRIE, KEY, 4, len(networks), name)
            for network in networks:
                key = struct.pack("=II16s", 32 + network.prefixlen, network.version, network.network_address.packed)
                self.map.put(key, bytes(4))

    def matched(self, version: int, at: int, target: str) -> Iterator[Instruction]:
        """Jump to target if the address that lies `at` bytes behind R7 is in the set."""
        if self.map is not None:
            yield from self._looked_up(self.map, version, at, target)
            return
        for number, network in enumerate(self.networks):
            if network.version == version:
                yield from self._compared(network, at, target, f"{self.name}-{version}-{at}-{number}")

    def _compared(self, network: Network, at: int, target: str, name: str) -> Iterator[Instruction]:
        """Words that the mask leaves out need not be looked at."""
        words = [
            struct.unpack("<II", network.netmask.packed[i : i + 4] + network.network_address.packed[i : i + 4])
            for i in range(0, len(network.netmask.packed), 4)
        ]
        asked = [(4 * i, mask, value) for i, (mask, value) in enumerate(words) if mask]
        for offset, mask, value in asked:
            yield bpf.load(R0, R7, at + offset, 4)
            if mask != 0xFFFFFFFF:
                yield bpf.and_value32(R0, mask)
            yield bpf.jump_unequal32(R0, value, f"not-{name}")
        if not asked:  # everything; what follows must still look reachable to the verifier
            yield bpf.move_value(R0, 0)
            yield bpf.jump_equal(R0, 0, target)
        else:
            yield bpf.jump(target)
            yield label(f"not-{name}", bpf.move_value(R0, 0))

    def _looked_up(self, trie: bpf.Map, version: int, at: int, target: str) -> Iterator[Instruction]:
        """The key is made on the stack; R1 to R5 are the call's."""
        size = 4 if version == 4 else 16
        yield bpf.store_value(FP, -KEY, 32 + 8 * size, 4)
        yield bpf.store_value(FP, -KEY + 4, version, 4)
        for offset in range(0, 16, 4):
            if offset < size:
                yield bpf.load(R0, R7, at + offset, 4)
                yield bpf.store(FP, -KEY + 8 + offset, R0, 4)
            else:
                yield bpf.store_value(FP, -KEY + 8 + offset, 0, 4)
        yield from bpf.map_address(R1, trie.fd)
        yield bpf.move(R2, FP)
        yield bpf.add_value(R2, -KEY)
        yield bpf.call(bpf.MAP_LOOKUP)
        yield bpf.jump_unequal(R0, 0, target)

    def close(self) -> None:
        if self.map is not None:
            self.map.close()


def program_of(
    wanted: Filter, local: Prefixes, prefixes: Prefixes, sockets: int, guard: Guard | None = None, bypass: XdpBypass | None = None
) -> list[Instruction]:
    """The program. sockets: descriptor of the map of AF_XDP sockets by queue. R6: context, R7: the frame, R8: its end, R9: its Ethernet type."""
    program = [
        bpf.move(R6, R1),
        bpf.load(R7, R6, DATA, 4),
        bpf.load(R8, R6, DATA_END, 4),
        *_room(14),
        bpf.load(R9, R7, 12, 2),
    ]
    for kind in sorted(wanted.passed_types):
        program.append(bpf.jump_equal(R9, _swapped(kind), "host"))
    program += [bpf.jump_equal(R9, _swapped(kind), "ours" if wanted.vlans else "host") for kind in (ETH_VLAN, ETH_QINQ)]
    program += [bpf.jump_equal(R9, _swapped(ETH_IPV4), "ipv4"), bpf.jump_equal(R9, _swapped(ETH_IPV6), "ipv6")]
    program.append(bpf.jump("ours" if wanted.other_types else "host"))
    program += [label("ipv4", bpf.move_value(R0, 0)), *_ipv4(wanted, local, prefixes)]
    program += [label("ipv6", bpf.move_value(R0, 0)), *_ipv6(wanted, local, prefixes)]
    return [
        *program,
        label("ours", bpf.move_value(R0, 0)),
        *(() if bypass is None else bypass.code(_swapped(ETH_IPV4), _swapped(ETH_IPV6))),
        *(() if guard is None else guard.code(_swapped(ETH_IPV4), _swapped(ETH_IPV6))),
        bpf.load(R2, R6, QUEUE, 4),
        *bpf.map_address(R1, sockets),
        bpf.move_value(R3, XDP_PASS),  # what is said where there is no socket
        bpf.call(bpf.REDIRECT_MAP),
        bpf.leave(),
        label("host", bpf.move_value(R0, XDP_PASS)),
        bpf.leave(),
    ]


def _swapped(number: int) -> int:
    """As two bytes in network order read as a number."""
    return (number & 0xFF) << 8 | number >> 8


def _room(size: int) -> list[Instruction]:
    """To the host unless the frame has this many bytes behind R7: what the verifier wants to see."""
    return [bpf.move(R2, R7), bpf.add_value(R2, size), bpf.jump_above(R2, R8, "host")]


def _ipv4(wanted: Filter, local: Prefixes, prefixes: Prefixes) -> Iterator[Instruction]:
    yield from _room(34)
    yield from local.matched(4, 30, "host")
    if wanted.ports:
        yield bpf.load(R9, R7, 23, 1)
        yield bpf.load(R0, R7, 20, 2)
        yield bpf.jump_any_bit(R0, _swapped(0x1FFF), "ipv4-ports-done")  # fragments but the first have none
        yield from past_ipv4("ipv4")
        yield from _ports(wanted, "ipv4")
    yield from _taken(prefixes, 4, (26, 30))


def _ipv6(wanted: Filter, local: Prefixes, prefixes: Prefixes) -> Iterator[Instruction]:
    yield from _room(54)
    yield bpf.load(R9, R7, 20, 1)
    if wanted.neighbours:
        yield bpf.jump_unequal(R9, ICMPV6, "no-neighbours")
        yield from _room(55)
        yield bpf.load(R0, R7, 54, 1)
        yield bpf.add_value(R0, -FIRST_ND)
        yield bpf.and_value(R0, 0xFF)
        yield bpf.jump_above_value(R0, LAST_ND - FIRST_ND, "no-neighbours")
        yield bpf.jump("host")
        yield label("no-neighbours", bpf.move_value(R0, 0))
    yield from local.matched(6, 38, "host")
    if wanted.ports:
        yield bpf.load(R9, R7, 20, 1)
        yield bpf.move(R3, R7)
        yield bpf.add_value(R3, 40)
        yield from _ports(wanted, "ipv6")
    yield from _taken(prefixes, 6, (22, 38))


def _ports(wanted: Filter, name: str) -> Iterator[Instruction]:
    """R9: the protocol; R3: 14 bytes before the ports, which may not be there."""
    done = f"{name}-ports-done"
    yield bpf.move(R2, R3)
    yield bpf.add_value(R2, 18)
    yield bpf.jump_above(R2, R8, done)
    for protocol in sorted({protocol for protocol, _ in wanted.ports}):
        yield bpf.jump_unequal(R9, PROTOCOLS[protocol], f"{name}-not-{protocol}")
        for at in (14, 16):
            yield bpf.load(R0, R3, at, 2)
            for port in sorted({port for owner, port in wanted.ports if owner == protocol}):
                yield bpf.jump_equal(R0, _swapped(port), "host")
        yield label(f"{name}-not-{protocol}", bpf.move_value(R0, 0))
    yield label(done, bpf.move_value(R0, 0))


def _taken(prefixes: Prefixes, version: int, places: tuple[int, int]) -> Iterator[Instruction]:
    if prefixes.networks:
        for at in places:
            yield from prefixes.matched(version, at, "ours")
        yield bpf.jump("host")
    else:
        yield bpf.jump("ours")


class Steering:
    """A filter's program in the kernel, with its map of sockets: attached to one interface, or not yet.

    steering = Steering(Filter(ports=(("tcp", 22),)))
    steering.put(0, xsk.fd)
    steering.attach("eth0")
    """

    def __init__(self, wanted: Filter | None = None, bypass: XdpBypass | None = None) -> None:
        """bypass: the node's. Raises KernelError with what the kernel says, and ConfigError."""
        wanted = Filter() if wanted is None else wanted
        self.mode = ""
        self.guard: Guard | None = None
        self._link: int | None = None
        with ExitStack() as stack:
            self.sockets = bpf.Map(bpf.XSKMAP, 4, 4, MOST_QUEUES, "queues")
            stack.callback(self.sockets.close)
            sets = []
            for name in ("local", "prefixes"):
                sets.append(Prefixes(getattr(wanted, name), name))
                stack.callback(sets[-1].close)
            if wanted.syn_rate:
                self.guard = Guard(wanted.syn_rate, MOST_QUEUES)
                stack.callback(self.guard.close)
            self.program = bpf.load_xdp(program_of(wanted, sets[0], sets[1], self.sockets.fd, self.guard, bypass), "ctmirror")
            stack.callback(bpf.close, self.program)
            self._open = stack.pop_all()

    def put(self, queue: int, fd: int) -> None:
        """Frames of this queue go to the socket fd from now on. One that is closed leaves the map by itself."""
        self.sockets.put(struct.pack("=I", queue), struct.pack("=I", fd))

    def attach(self, name: str, mode: str = "native") -> None:
        """Have the program run on what interface `name` receives, in the driver ("native") or in the stack, on copies ("generic").

        Raises KernelError, with its errno as `number`: EBUSY if there is another program, which stays; EOPNOTSUPP if the driver cannot.
        """
        if self._link is not None:
            raise RuntimeError(f"{name}: expected a program that is not attached")
        try:
            self._link = bpf.attach_xdp(self.program, index_of(name), MODES[mode])
        except KernelError as error:
            if error.number == errno.EBUSY:
                text = f"{name}: another XDP program is attached, which is not ours to remove: ip link set {name} xdp off, or end what owns it"
                raise KernelError(text, errno.EBUSY) from None
            raise KernelError(f"{name}: XDP in {mode} mode: {error}", error.number) from None
        self.mode = mode

    def test(self, frame: bytes) -> bool:
        """Whether the program takes a frame that comes on queue 0 (which must have a socket)."""
        return bpf.run_xdp(self.program, frame) == XDP_REDIRECT

    def detach(self) -> None:
        """The host has all frames again; a second time, nothing."""
        if self._link is not None:
            bpf.close(self._link)
            self._link, self.mode = None, ""

    def close(self) -> None:
        self.detach()
        self._open.close()


def host_of(*addresses: str) -> tuple[Network, ...]:
    """Addresses or prefixes as networks, for Filter.local and Filter.prefixes."""
    return tuple(_network("address", text) for text in addresses)
