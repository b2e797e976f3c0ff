"""Where Prometheus comes for metrics: a small HTTP server in a thread of its own, by default on this machine only.

    GET /metrics    the figures
    GET /healthz    200 "ok" if the datapath comes to its jobs, 503 if not: for probes

Theory of operation: one event loop; a connection is a request head, an answer and the end. There is nothing that a client sends and is kept: its head
is read up to LARGEST_HEAD bytes, within PATIENCE from the first moment on, however slowly it comes, and what follows it is not read.
Invariants: no client makes the datapath or another client wait for longer than a reading takes; MOST_CLIENTS at a time are served, further ones are
told so. Memory for a client is bounded.
Not here: what is measured (metrics), readings and their text (exposition). There is no encryption and no password: whoever wants metrics elsewhere
puts a proxy in front of it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_address

from ctcore.errors import ConfigError
from datapath.live.attendant import Attendant, ended, nothing
from datapath.live.config import listen_address
from datapath.live.exposition import PLAIN, Exposition, NotAnswering, format_of
from datapath.live.node import LOG, Node

MOST_CLIENTS = 16
LARGEST_HEAD = 8192
PATIENCE = 5.0  # seconds for a head; and for the answer to be taken
REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 408: "Request Timeout", 431: "Request Header Fields Too Large",
           500: "Internal Server Error", 503: "Service Unavailable"}  # fmt: skip


def bound(listen: str) -> socket.socket:
    """A socket that listens there. Raises ConfigError."""
    host, port = listen_address(listen)
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
        made.listen(MOST_CLIENTS)
        made.setblocking(False)
    except OSError as error:
        made.close()
        raise ConfigError(f"metrics.listen: {listen}: {error.strerror}") from None
    if not ip_address(host).is_loopback:
        LOG.warning(f"metrics: {listen} is no loopback address: whoever reaches it can read them, without encryption or password")
    return made


class _Refused(Exception):
    """A request that gets no figures: the code, and a line of why."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(why)
        self.code = code


class MetricsServer(Attendant):
    """Serves a node's metrics until close(), which comes before the node's. made: what bound() has made; enter: what the thread does first."""

    def __init__(self, node: Node, made: socket.socket, *, zones: int = 32, enter: Callable[[], None] = nothing) -> None:
        super().__init__("metrics", made, enter)
        self.address = made.getsockname()[:2]
        self.counts = {"requests": 0, "refused": 0, "stalled": 0, "crowded": 0}
        self._exposition = Exposition(node, zones)
        self._clients: set[asyncio.Task[None]] = set()
        self.start()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._greet, sock=self._socket, limit=LARGEST_HEAD)
        await self._stopping.wait()
        server.close()
        await ended(self._clients)

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, to its end."""
        task = asyncio.current_task()
        assert task is not None
        crowded = len(self._clients) >= MOST_CLIENTS
        if not crowded:
            self._clients.add(task)
        try:
            if crowded:
                self.counts["crowded"] += 1
                await self._answer(writer, 503, f"{MOST_CLIENTS} clients are served already\n".encode(), patience=0.5)
            else:
                await self._attend(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass
        except TimeoutError:
            self.counts["stalled"] += 1
        finally:
            self._clients.discard(task)
            writer.transport.abort()

    async def _attend(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        form, method = PLAIN, "GET"
        try:
            method, path, accept = await self._request(reader)
            self.counts["requests"] += 1
            code, form, body = await self._page(path, accept)
        except _Refused as refused:
            self.counts["refused"] += 1
            code, body = refused.code, f"{refused}\n".encode()
        except NotAnswering as error:
            code, body = 503, f"{error}\n".encode()
        except Exception:
            LOG.exception("metrics: a request has failed")
            code, body = 500, b"internal error\n"
        await self._answer(writer, code, body, form, head_only=method == "HEAD")

    async def _request(self, reader: asyncio.StreamReader) -> tuple[str, str, str]:
        """Method, path and what the client accepts. Raises _Refused."""
        try:
            async with asyncio.timeout(PATIENCE):
                head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            raise _Refused(431, f"expected at most {LARGEST_HEAD} bytes before the empty line") from None
        except asyncio.IncompleteReadError:
            raise ConnectionError from None
        except TimeoutError:
            raise _Refused(408, f"expected a whole request within {PATIENCE:.0f} s") from None
        first, *lines = head.decode("latin-1").split("\r\n")
        words = first.split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            raise _Refused(400, "expected GET /metrics HTTP/1.1")
        method, target, _ = words
        if method not in ("GET", "HEAD"):
            raise _Refused(405, "expected GET or HEAD")
        fields = dict(line.lower().partition(":")[::2] for line in lines)
        return method, target.partition("?")[0], fields.get("accept", "")

    async def _page(self, path: str, accept: str) -> tuple[int, str, bytes]:
        if path == "/metrics":
            form = format_of(accept)
            return 200, form, await self._exposition.text(form)
        if path == "/healthz":
            await self._exposition.lives()
            return 200, PLAIN, b"ok\n"
        raise _Refused(404, "expected /metrics or /healthz")

    async def _answer(
        self, writer: asyncio.StreamWriter, code: int, body: bytes, form: str = PLAIN, *, head_only: bool = False, patience: float = PATIENCE
    ) -> None:
        """Raises TimeoutError if the client does not take it."""
        head = f"HTTP/1.1 {code} {REASONS[code]}\r\nContent-Type: {form}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + (b"" if head_only else body))
        async with asyncio.timeout(patience):
            await writer.drain()
            writer.write_eof()
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
