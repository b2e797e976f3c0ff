"""What scenes are made of: connected sockets, a web server, a ping.

Most need no thread: the kernel completes a handshake before anybody accepts, and small writes fit into its buffers.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer

from pcap_tests.netns import CLIENT, PATIENCE, SERVER, V4, V6, Host, Network

PING = {V4: (socket.IPPROTO_ICMP, 8), V6: (socket.IPPROTO_ICMPV6, 128)}


def listen(host: Host, family: int, port: int) -> socket.socket:
    sock = host.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((SERVER[family], port))
    sock.listen(128)
    return sock


@contextmanager
def pair(net: Network, family: int, port: int, source_port: int = 0, receive_buffer: int = 0) -> Iterator[tuple[socket.socket, socket.socket]]:
    """An established connection: the client's socket and the server's. The client closes first, unless the scene did already."""
    with listen(net.server, family, port) as listener, net.client.socket(family, socket.SOCK_STREAM) as client:
        if receive_buffer:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        client.bind((CLIENT[family], source_port))
        client.connect((SERVER[family], port))
        server, _ = listener.accept()
        server.settimeout(PATIENCE)
        with server:
            yield client, server
            client.close()
            settle()


def settle(seconds: float = 0.05) -> None:
    """Let the stacks finish what they are at: an ACK, a FIN, an ICMP error on its way."""
    time.sleep(seconds)


def say(sender: socket.socket, receiver: socket.socket, data: bytes) -> None:
    sender.sendall(data)
    receive(receiver, len(data))


def receive(sock: socket.socket, size: int) -> None:
    while size:
        chunk = sock.recv(size)
        if not chunk:
            raise ConnectionError(f"the stream ended {size} bytes early")
        size -= len(chunk)


def text(size: int) -> bytes:
    """Payload that compresses well and shows its position."""
    return b"".join(b"%07d\n" % line for line in range(size // 8 + 1))[:size]


def udp_pair(net: Network, family: int, port: int, protocol: int = 0) -> tuple[socket.socket, socket.socket]:
    client, server = (host.socket(family, socket.SOCK_DGRAM, protocol) for host in (net.client, net.server))
    server.bind((SERVER[family], port))
    client.connect((SERVER[family], port))
    return client, server


def ask(client: socket.socket, server: socket.socket, question: bytes, answer: bytes) -> None:
    client.send(question)
    _, address = server.recvfrom(1 << 16)
    server.sendto(answer, address)
    client.recv(1 << 16)


def ping(net: Network, family: int, address: str, size: int = 56, wait: float = PATIENCE) -> None:
    """One echo request; the kernel chooses the id, adds the checksum, and at the other end answers."""
    protocol, request = PING[family]
    with net.client.socket(family, socket.SOCK_DGRAM, protocol) as sock:
        sock.settimeout(wait)
        sock.connect((address, 0))
        sock.send(struct.pack("!BBHHH", request, 0, 0, 0, 1) + text(size))
        sock.recv(1 << 16)


def expect_error(act: Callable[[], object], *errors: type[OSError]) -> None:
    try:
        act()
    except errors:
        return
    raise AssertionError(f"expected one of {', '.join(error.__name__ for error in errors)}, nothing was raised")


class Pages(BaseHTTPRequestHandler):
    """/bytes/N answers N bytes; what is posted is counted."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "example", ""
    timeout = PATIENCE

    def do_GET(self) -> None:
        self.answer(text(int(self.path.rpartition("/")[2] or 0)))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(b"%d bytes\n" % len(body))

    def answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Web(ThreadingTCPServer):
    """HTTPServer without its look-up of the machine's own name."""

    allow_reuse_address = True

    def __init__(self, host: Host, family: int) -> None:
        self.address_family = family
        with host.entered():
            super().__init__((SERVER[family], 80), Pages)


@contextmanager
def web(net: Network, family: int) -> Iterator[HTTPConnection]:
    """An HTTP connection from the client to a real server; closed by the client at the end."""
    with ThreadPoolExecutor(1) as pool, Web(net.server, family) as server:
        serving = pool.submit(server.serve_forever, 0.02)
        http = HTTPConnection(SERVER[family])
        http.sock = net.client.socket(family, socket.SOCK_STREAM)
        try:
            http.sock.connect((SERVER[family], 80))
            yield http
        finally:
            http.close()
            settle()
            server.shutdown()
            serving.result()


def get(http: HTTPConnection, size: int) -> None:
    http.request("GET", f"/bytes/{size}")
    if http.getresponse().read() != text(size):
        raise AssertionError("the page was changed on its way")


def post(http: HTTPConnection, size: int) -> None:
    http.request("POST", "/", body=text(size))
    http.getresponse().read()
