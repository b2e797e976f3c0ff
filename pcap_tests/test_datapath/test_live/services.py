"""Services at the ends of a network with a node in it, each in a thread in its host's namespace, and clients of these; the rules of a home's router.

Invariants: a server ends with its block, whatever happens in it. Not here: the network (routed_network), what is expected of it.
"""

from __future__ import annotations

import ftplib
import http.server
import io
import logging
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pyftpdlib.authorizers import DummyAuthorizer
from pyftpdlib.handlers import FTPHandler
from pyftpdlib.ioloop import IOLoop
from pyftpdlib.servers import FTPServer

from datapath.oracle.namespace import Namespace
from pcap_tests.netns import SERVER, V4, V6, Host

PATIENCE = 10.0
FILE = bytes(range(256)) * 4000  # about a megabyte

# A home's router: what leaves does so under the router's address, and only answers, and what was announced, come in.
HOME = """tc filter add dev wan egress protocol {p} prio {n}1 flower ip_proto tcp dst_port 21 action ct commit helper {v}-tcp-ftp nat src addr {own}
tc filter add dev wan egress protocol {p} prio {n}2 flower ip_proto udp dst_port 69 action ct commit helper {v}-udp-tftp nat src addr {own}
tc filter add dev wan egress protocol {p} prio {n}3 flower action ct commit nat src addr {own}
tc filter add dev wan ingress protocol {p} prio {n}1 flower action ct nat pipe action goto chain {chain}
tc filter add dev wan ingress protocol {p} prio {n}1 chain {chain} flower ct_state +trk+est action pass
tc filter add dev wan ingress protocol {p} prio {n}2 chain {chain} flower ct_state +trk+rel action ct commit nat src addr {own} pipe action pass
tc filter add dev wan ingress protocol {p} prio {n}3 chain {chain} flower action drop
"""


def home(own: dict[int, str]) -> str:
    """Rules of both families, which priorities keep apart, as tc wants it. own: what the outside sees, by family."""
    return HOME.format(p="ip", v="ipv4", n="", own=own[V4], chain=4) + HOME.format(p="ipv6", v="ipv6", n="1", own=own[V6], chain=6)


@contextmanager
def running(host: Host, work: Callable[[], None], end: Callable[[], None]) -> Iterator[None]:
    """A server at work in a namespace until the end of the block."""

    def inside() -> None:
        with host.entered():
            work()

    thread = threading.Thread(target=inside)
    thread.start()
    try:
        yield
    finally:
        end()
        thread.join(PATIENCE)
        assert not thread.is_alive()


@contextmanager
def attended(namespace: Namespace, make: Callable[[], socketserver.TCPServer]) -> Iterator[int]:
    """A server of socketserver's kind, made and at work in a namespace; its port."""
    with namespace.entered():
        server = make()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join(PATIENCE)
        server.server_close()


class Pages(http.server.BaseHTTPRequestHandler):
    """/N: N bytes; the address that the request came from is in a header."""

    def do_GET(self) -> None:
        size = int(self.path[1:])
        self.send_response(200)
        self.send_header("Content-Length", str(size))
        self.send_header("X-From", self.client_address[0])
        self.end_headers()
        while size:
            size -= self.wfile.write(FILE[:size])

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def web(host: Host, family: int, port: int = 80) -> Iterator[None]:
    class Server(http.server.ThreadingHTTPServer):
        address_family = family
        request_queue_size = 128

        def server_bind(self) -> None:
            if family == V6:  # its own port, beside another one of IPv4
                self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            super().server_bind()

    with attended(host, lambda: Server(("", port), Pages)):
        yield


@contextmanager
def ftp_server(host: Host, family: int, folder: Path) -> Iterator[None]:
    users = DummyAuthorizer()
    users.add_anonymous(str(folder))
    # It compares addresses as text, and the helper writes all of an IPv6 address, as Linux does.
    handler = type("Handler", (FTPHandler,), {"authorizer": users, "use_sendfile": False, "permit_foreign_addresses": True})
    loop = IOLoop()
    with host.entered():
        sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((SERVER[family], 21))
    server = FTPServer(sock, handler, ioloop=loop)
    ended = threading.Event()

    def work() -> None:
        while not ended.is_set():
            server.serve_forever(timeout=0.05, blocking=False)
        server.close_all()

    logging.getLogger("pyftpdlib").setLevel(logging.ERROR)
    with running(host, work, ended.set):
        yield


def download_by_ftp(host: Host, address: str, times: int, *, passive: bool) -> None:
    """`file`, so many times, and the list of files, each by a data connection of its own."""
    with host.entered():
        ftp = ftplib.FTP(timeout=PATIENCE)
        ftp.connect(address)
        ftp.login()
        ftp.set_pasv(passive)
        for _ in range(times):
            found = io.BytesIO()
            ftp.retrbinary("RETR file", found.write)
            assert found.getvalue() == FILE
        assert ftp.nlst()
        ftp.quit()
