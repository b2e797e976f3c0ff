"""The scenes: what client, router and server do with each other while record.py listens.

A scene is a function of a Network and an address family. Its docstring's first paragraph says what is in the capture (it becomes the README's
line). Fixed ports differ from scene to scene, so that merged scenes stay different connections.
"""

from __future__ import annotations

import inspect
import socket
import struct
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field

from pcap_tests.netns import CLIENT, HOST_LENGTH, INTERFACE, LEFT, PATIENCE, RIGHT, ROUTER, SERVER, V4, V6, Network, delay, lose, reorder, tagging
from pcap_tests.stage import ask, expect_error, get, listen, pair, ping, post, receive, say, settle, text, udp_pair, web

FAMILY_NAME = {V4: "ipv4", V6: "ipv6"}
ABSENT = {V4: "198.51.100.99", V6: "2001:db8:2::99"}  # on the server's link, where nobody has it
NOWHERE = {V4: "203.0.113.{}", V6: "2001:db8:3::{}"}
SOCK_LEVEL = {V4: socket.IPPROTO_IP, V6: socket.IPPROTO_IPV6}
# linux/in.h, linux/in6.h: IP_MTU_DISCOVER, IPV6_MTU_DISCOVER; IP_PMTUDISC_WANT (fragment what is too large) and _PROBE (send it with DF set).
MTU_DISCOVER = {V4: 10, V6: 23}
HOP_LIMIT = {V4: socket.IP_TTL, V6: socket.IPV6_UNICAST_HOPS}
WANT, PROBE = 1, 3
UDPLITE = 136


@dataclass(frozen=True)
class Scene:
    name: str
    act: Callable[[Network, int], None]
    families: tuple[int, ...]
    demo: bool
    network: Mapping[str, object] = field(default_factory=dict)

    @property
    def about(self) -> str:
        return " ".join((inspect.getdoc(self.act) or "").split("\n\n")[0].split())

    def play(self, net: Network) -> None:
        for family in self.families:
            self.act(net, family)


SCENES: dict[str, Scene] = {}


def scene(name: str, families: tuple[int, ...] = (V4, V6), split: bool = False, demo: bool = False, **network: object) -> Callable:
    """Register the function as a scene; split: one capture for each family. network: what Network takes."""

    def register(act: Callable[[Network, int], None]) -> Callable[[Network, int], None]:
        for group in [(family,) for family in families] if split else [families]:
            full_name = f"{name}-{FAMILY_NAME[group[0]]}" if split else name
            SCENES[full_name] = Scene(full_name, act, group, demo, network)
        return act

    return register


# --- everyday traffic ------------------------------------------------------------------------------------------------------------------


@scene("http", split=True, demo=True)
def http(net: Network, family: int) -> None:
    """Three requests on one HTTP connection: two pages and a form; the client closes."""
    with web(net, family) as connection:
        get(connection, 500)
        get(connection, 3000)
        post(connection, 2000)


@scene("download", split=True)
def download(net: Network, family: int) -> None:
    """An HTTP download of 100,000 bytes."""
    with web(net, family) as connection:
        get(connection, 100_000)


@scene("short-connections", demo=True)
def short_connections(net: Network, family: int) -> None:
    """60 short TCP connections in groups of six at once: a line, an answer, and the client or the server closes."""
    for group in range(5):
        with ExitStack() as stack:
            connections = [stack.enter_context(pair(net, family, 7000 + 6 * group + member)) for member in range(6)]
            for client, server in connections:
                say(client, server, b"what time is it?\n")
            for client, server in connections:
                say(server, client, b"twelve\n")
            for _, server in connections[::2]:
                server.close()


@scene("udp", demo=True)
def udp(net: Network, family: int) -> None:
    """UDP: eight single questions and answers, a question nobody answers, and one conversation of 2.4 s, long enough to become assured."""
    for number in range(8):
        client, server = udp_pair(net, family, 5300)
        with client, server:
            ask(client, server, b"question %d" % number, text(100 * number))
    client, server = udp_pair(net, family, 5301)
    with client, server:
        client.send(b"anybody?")
    client, server = udp_pair(net, family, 5302)
    with client, server:
        for _ in range(7):
            ask(client, server, text(160), text(160))
            time.sleep(0.4)


@scene("udplite")
def udplite(net: Network, family: int) -> None:
    """UDP-Lite questions and answers, full and partial checksum coverage."""
    for coverage in (0, 8, 20):
        client, server = udp_pair(net, family, 5400 + coverage, UDPLITE)
        with client, server:
            client.setsockopt(UDPLITE, 10, coverage)  # UDPLITE_SEND_CSCOV
            for _ in range(2):
                ask(client, server, text(64), text(200))


@scene("ping", demo=True)
def pings(net: Network, family: int) -> None:
    """Echo requests of several sizes to server and router, and over IPv4 a timestamp request; all are answered."""
    for size in (0, 56, 1400):
        ping(net, family, SERVER[family], size)
    ping(net, family, ROUTER[LEFT][family])
    if family == V4:
        # RFC 792: type 13, id and sequence number, three timestamps; a raw socket adds no checksum.
        words = (13 << 8, 0, 77, 1, *[0] * 6)
        checksum = ~sum(words) & 0xFFFF
        with net.client.socket(family, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
            sock.sendto(struct.pack("!10H", words[0], checksum, *words[2:]), (SERVER[family], 0))
            sock.recv(1 << 16)


# --- errors ----------------------------------------------------------------------------------------------------------------------------


@scene("closed-ports", demo=True)
def closed_ports(net: Network, family: int) -> None:
    """Closed ports: TCP answered by RST, UDP by ICMP port unreachable."""
    for port in (1, 23, 443):
        with net.client.socket(family, socket.SOCK_STREAM) as sock:
            expect_error(lambda sock=sock, port=port: sock.connect((SERVER[family], port)), ConnectionRefusedError)
        with net.client.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((SERVER[family], port))
            sock.send(b"anybody?")
            expect_error(lambda sock=sock: sock.recv(100), ConnectionRefusedError)


@scene("unreachable", demo=True)
def unreachable(net: Network, family: int) -> None:
    """What the router cannot or must not forward: TCP to an unreachable address, UDP to a prohibited one, a ping to one without a route; all
    three to a neighbour that does not answer ARP or ND; then an established TCP connection whose route goes away for a while and comes back."""
    refused, prohibited, unrouted = [NOWHERE[family].format(number) for number in (1, 2, 3)]
    for address, kind in ((refused, "unreachable"), (prohibited, "prohibit")):
        net.router.route("add", family, f"{address}/{HOST_LENGTH[family]}", type=kind)
    neighbour = f"{FAMILY_NAME[family]}/neigh/{INTERFACE[RIGHT]}"
    net.router.sysctl(f"{neighbour}/retrans_time_ms", 100)
    net.router.sysctl(f"{neighbour}/mcast_solicit", 1)
    # Not every protocol to every address: a router has about five of these errors for one IPv4 host before it wants to rest.
    for tcp, udp, echo in ((refused, prohibited, unrouted), (ABSENT[family],) * 3):
        with net.client.socket(family, socket.SOCK_STREAM) as sock:
            expect_error(lambda sock=sock, to=tcp: sock.connect((to, 80)), OSError)
        with net.client.socket(family, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"anybody?", (udp, 53))
            settle(0.3)
        expect_error(lambda to=echo: ping(net, family, to, wait=0.3), OSError)
    with pair(net, family, 7100) as (client, server):
        say(client, server, b"before\n")
        server_route = f"{SERVER[family]}/{HOST_LENGTH[family]}"
        net.router.route("add", family, server_route, type="unreachable")
        client.sendall(b"meanwhile\n")
        settle(0.4)
        net.router.route("del", family, server_route, type="unreachable")
        receive(server, len(b"meanwhile\n"))


@scene("hop-limit", demo=True)
def hop_limit(net: Network, family: int) -> None:
    """Packets whose TTL or hop limit ends at the router: ICMP time exceeded; the next one gets through, as traceroute does it."""
    client, server = udp_pair(net, family, 33434)
    with client, server:
        client.setsockopt(SOCK_LEVEL[family], HOP_LIMIT[family], 1)
        client.send(b"hop 1")
        settle()
        client.setsockopt(SOCK_LEVEL[family], HOP_LIMIT[family], 2)
        client.send(b"hop 2")
        server.recv(100)


@scene("path-mtu", split=True, demo=True)
def path_mtu(net: Network, family: int) -> None:
    """A narrower link behind the router: too large TCP segments and a UDP datagram that must not be fragmented are answered by ICMP
    fragmentation needed or packet too big; TCP adapts."""
    net.router.mtu(INTERFACE[RIGHT], 1280)
    with web(net, family) as connection:
        post(connection, 8000)
    client, server = udp_pair(net, family, 5500)
    with client, server:
        client.setsockopt(SOCK_LEVEL[family], MTU_DISCOVER[family], PROBE)
        client.send(text(1400))
        settle()
        client.setsockopt(SOCK_LEVEL[family], MTU_DISCOVER[family], WANT)
        expect_error(lambda: client.send(b"the error is told here"), OSError)
        ask(client, server, text(1400), b"it came in fragments")


@scene("fragments", demo=True)
def fragments(net: Network, family: int) -> None:
    """Fragmented UDP questions and answers, and a fragmented ping, each of two to four complete fragments."""
    client, server = udp_pair(net, family, 5600)
    with client, server:
        for size in (1600, 5000):
            ask(client, server, text(size), text(size))
    ping(net, family, SERVER[family], 3000)


@scene("resets", demo=True)
def resets(net: Network, family: int) -> None:
    """TCP connections ended by RST: by the client, by the server, by a client that leaves with data unread, and by data sent to a closed end."""
    for port, end in ((7200, 0), (7201, 1)):
        with pair(net, family, port) as sockets:
            say(*sockets, b"request\n")
            sockets[end].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sockets[end].close()
            settle()
    with pair(net, family, 7202) as (client, server):
        server.sendall(text(3000))
        settle()
        client.close()
    with pair(net, family, 7203) as (client, server):
        client.close()
        settle()
        server.sendall(b"too late\n")
        settle()


# --- TCP in its less usual states ------------------------------------------------------------------------------------------------------


@scene("half-open", demo=True)
def half_open(net: Network, family: int) -> None:
    """A SYN that nobody answers (the server drops all for that address), retransmitted every second."""
    address = NOWHERE[family].format(66)
    length = HOST_LENGTH[family]
    net.router.route("add", family, f"{address}/{length}", gateway=SERVER[family])
    net.server.route("add", family, f"{address}/{length}", type="blackhole")
    with net.client.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(3.3)
        expect_error(lambda: sock.connect((address, 7300)), TimeoutError)


@scene("idle", demo=True)
def idle(net: Network, family: int) -> None:
    """Data, 3.3 s of silence but for keepalive probes every second, then data again."""
    with pair(net, family, 7400) as (client, server):
        for option, value in ((socket.TCP_KEEPIDLE, 1), (socket.TCP_KEEPINTVL, 1)):
            client.setsockopt(socket.IPPROTO_TCP, option, value)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        say(client, server, b"good evening\n")
        time.sleep(3.3)
        say(client, server, b"good morning\n")
        say(server, client, b"good morning\n")


@scene("half-close", demo=True)
def half_close(net: Network, family: int) -> None:
    """The client closes its direction; the server goes on sending, then closes its own."""
    with pair(net, family, 7500) as (client, server):
        client.sendall(b"that is all\n")
        client.shutdown(socket.SHUT_WR)
        receive(server, len(b"that is all\n"))
        for _ in range(3):
            say(server, client, text(700))
            settle()
        server.close()


@scene("simultaneous-close", demo=True, core=(delay(0.03),))
def simultaneous_close(net: Network, family: int) -> None:
    """Both ends close while the other's FIN is on its way: the FINs cross."""
    with pair(net, family, 7600) as (client, server):
        say(client, server, b"hello\n")
        say(server, client, b"hello\n")
        settle(0.2)
        client.close()
        server.close()
        settle(0.2)


@scene("simultaneous-open", demo=True, core=(delay(0.03),))
def simultaneous_open(net: Network, family: int) -> None:
    """Both ends connect to each other at once: the SYNs cross, each is answered by SYN/ACK, one connection results."""
    # Both must know their neighbours, or the first SYN would wait for them.
    ping(net, family, SERVER[family])
    ends = [(CLIENT[family], 7700), (SERVER[family], 7701)]
    with net.client.socket(family, socket.SOCK_STREAM) as client, net.server.socket(family, socket.SOCK_STREAM) as server:
        for sock, own, other in ((client, *ends), (server, *ends[::-1])):
            sock.bind(own)
            sock.setblocking(False)
            sock.connect_ex(other)
        for sock in (client, server):
            sock.settimeout(PATIENCE)
        settle(0.3)
        say(client, server, b"hello\n")
        say(server, client, b"hello\n")
        settle(0.2)
    settle(0.2)


@scene("loss", core=(lose(9),))
def loss(net: Network, family: int) -> None:
    """A download and an upload of 30,000 bytes each over a link that loses every ninth large frame: SACK, fast and late retransmission."""
    with web(net, family) as connection:
        get(connection, 30_000)
        post(connection, 30_000)


@scene("reordering", core=(reorder(5, 0.004),))
def reordering(net: Network, family: int) -> None:
    """A download and an upload of 20,000 bytes each over a link that lets frames overtake each other and doubles some."""
    with web(net, family) as connection:
        get(connection, 20_000)
        post(connection, 20_000)


@scene("zero-window")
def zero_window(net: Network, family: int) -> None:
    """A client with a small receive buffer that does not read for 1.5 s: the window closes, is probed, and opens again."""
    with ThreadPoolExecutor(1) as pool, pair(net, family, 7800, receive_buffer=4096) as (client, server):
        sending = pool.submit(server.sendall, text(15_000))
        time.sleep(1.5)
        receive(client, 15_000)
        sending.result()


@scene("port-reuse", demo=True)
def port_reuse(net: Network, family: int) -> None:
    """The same client port three times in a row: the server closes first and is in TIME_WAIT when the next SYN comes and reopens."""
    for number in range(3):
        with pair(net, family, 7900, source_port=40000) as (client, server):
            say(client, server, b"visit %d\n" % number)
            server.close()
            settle()


@scene("fast-open")
def fast_open(net: Network, family: int) -> None:
    """TCP Fast Open: a first connection asks for a cookie, two more carry data in the SYN."""
    for host in (net.client, net.server):
        host.sysctl("ipv4/tcp_fastopen", 3)
    with listen(net.server, family, 8000) as listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 8)
        for _ in range(3):
            with net.client.socket(family, socket.SOCK_STREAM) as client:
                client.setblocking(True)  # or it does not wait for the handshake when it has no cookie yet
                client.sendto(b"first words\n", socket.MSG_FASTOPEN, (SERVER[family], 8000))
                client.settimeout(PATIENCE)
                with listener.accept()[0] as server:
                    server.settimeout(PATIENCE)
                    receive(server, len(b"first words\n"))
                    say(server, client, b"welcome\n")
                    client.close()
                    settle()


# --- headers ---------------------------------------------------------------------------------------------------------------------------


@scene("ipv6-extension-headers", families=(V6,), demo=True)
def ipv6_extension_headers(net: Network, family: int) -> None:
    """UDP and TCP behind a hop-by-hop options header, a destination options header, and both; large UDP also behind a fragment header."""
    padding = b"\0\0\x01\x04\0\0\0\0"  # RFC 8200 4.2: next header and length of the header, then PadN of four bytes
    for options in ([socket.IPV6_HOPOPTS], [socket.IPV6_DSTOPTS], [socket.IPV6_HOPOPTS, socket.IPV6_DSTOPTS]):
        client, server = udp_pair(net, family, 5700)
        with client, server, pair(net, family, 8100) as connection:
            for sock in (client, connection[0]):
                for option in options:
                    sock.setsockopt(socket.IPPROTO_IPV6, option, padding)
            for size in (20, 2000):
                ask(client, server, text(size), b"answer")
            say(*connection, text(500))


@scene("ipv6-segment-routing", families=(V6,), demo=True)
def ipv6_segment_routing(net: Network, family: int) -> None:
    """UDP with a segment routing header (RFC 8754) by way of the router: the IPv6 destination is the router, the checksum is over the last
    segment, the answers come back the plain way."""
    for host in (net.router, net.server):
        for device in ("all", INTERFACE[LEFT]):
            host.sysctl(f"ipv6/conf/{device}/seg6_enabled", 1)
    segments = socket.inet_pton(V6, SERVER[V6]) + socket.inet_pton(V6, ROUTER[LEFT][V6])
    client, server = udp_pair(net, family, 5800)
    with client, server:
        # Next header, length in 8 bytes, type 4, segments left, last entry, flags, tag, the segments in reverse order.
        client.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RTHDR, struct.pack("!BBBBBBH", 0, 4, 4, 1, 1, 0, 0) + segments)
        for _ in range(3):
            ask(client, server, text(40), text(80))


@scene("vlan", demo=True, trunk=True, access=(tagging(LEFT, (0x8100, 10)), tagging(RIGHT, (0x8100, 10))))
def vlan(net: Network, family: int) -> None:
    """A ping and an HTTP request on a trunk, in VLAN 10."""
    ping(net, family, SERVER[family])
    with web(net, family) as connection:
        get(connection, 2000)


@scene("qinq", demo=True, trunk=True, access=(tagging(LEFT, (0x88A8, 100), (0x8100, 10)), tagging(RIGHT, (0x88A8, 100), (0x8100, 10))))
def qinq(net: Network, family: int) -> None:
    """The same with two tags, IEEE 802.1ad: VLAN 10 in service VLAN 100."""
    vlan(net, family)
