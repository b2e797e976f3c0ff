"""Where commands come in: a Unix socket, a thread of its own that attends to its clients, and limits that keep each from harming the others.

Theory of operation: one event loop reads requests and writes answers; jobs for the datapath go through Node.ask(), and while one is awaited other
clients are served. A client's requests are done one after the other; events, once asked for, come in between.
Invariants: no client makes the datapath wait: what a job copies is handed over, and a client that does not read stops its own answer only. It is
dropped when nothing of it has been read for PATIENCE, as is one that sends half a request. Memory for a client is bounded.
The socket is there from open() to close(), and can be opened by whom the configuration names from the first moment on.
Not here: what requests do (requests), the numbering of events (feed), the commands (client).
"""

from __future__ import annotations

import asyncio
import fcntl
import grp
import os
import socket
import stat
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ctcore.errors import ConfigError, CtmirrorError
from datapath.live.attendant import Attendant, ended, nothing
from datapath.live.feed import KINDS, PERIOD, Listener
from datapath.live.message import LARGEST_REQUEST, LENGTH, Done, Message, ProtocolError, RequestError, check_request, length_of, packed, unpacked
from datapath.live.node import LOG, Node
from datapath.live.requests import Desk, Peer, Session
from datapath.live.wanted import wanted_of

MOST_CLIENTS = 16
PATIENCE = 10.0  # seconds for the rest of a request, and for anything of an answer to be read
LISTENER_PATIENCE = 60.0  # seconds for the same of events: people stop to read, and what comes meanwhile is lost to them only
IDLE = 300.0  # seconds without a request, of a client that does not listen to events
BUFFER = 1 << 18  # bytes of answers that wait in user space for a client
SWITCH = 0.0005  # seconds after which a thread has to leave the interpreter to another: as long as the datapath may wait to begin a job
OWNER, GROUP = 0o600, 0o660
PEERCRED = struct.Struct("3i")  # pid, uid, gid


class Control(Attendant):
    """The control interface of a node that is open. close() it before the node."""

    def __init__(
        self, node: Node, path: str, group: str | None = None, *, made: socket.socket | None = None, enter: Callable[[], None] = nothing
    ) -> None:
        """Listen. made: what listening() has made for that path already; enter: what the thread does first.

        Raises ConfigError if that cannot be: another node listens there, no such group, no right to.
        """
        super().__init__("control", listening(path, group) if made is None else made, enter)
        self.path = path
        self.counts = {"clients": 0, "requests": 0, "refused": 0, "garbage": 0, "stalled": 0}
        self._node = node
        self._inode = os.stat(path).st_ino
        sys.setswitchinterval(min(SWITCH, sys.getswitchinterval()))
        self._clients: dict[asyncio.Task[None], Client] = {}
        self.start()

    def close(self) -> None:
        """Nobody is listened to any more; the socket's file goes, if it is still this one's."""
        super().close()
        with suppress(OSError):
            if os.stat(self.path).st_ino == self._inode:
                os.unlink(self.path)

    # --- the thread -----------------------------------------------------------------------------------------------------------------------

    async def _serve(self) -> None:
        self.desk = Desk(self._node)
        self.desk.listening, self.desk.others = lambda: bool(self.listeners()), lambda: {**self.counts, "listeners": len(self.listeners())}
        self._draining = asyncio.Lock()
        server = await asyncio.start_unix_server(self._greet, sock=self._socket, limit=BUFFER)
        distributor = asyncio.create_task(self._distribute())
        await self._stopping.wait()
        server.close()
        await ended([distributor, *self._clients])

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client, to its end."""
        client = Client(self, reader, writer)
        if len(self._clients) >= MOST_CLIENTS:
            self.counts["refused"] += 1
            await client.say_last(f"{MOST_CLIENTS} clients are served already: expected fewer")
            return
        task = asyncio.current_task()
        assert task is not None
        self._clients[task] = client
        self.counts["clients"] += 1
        try:
            await client.attend()
        except asyncio.CancelledError:
            pass  # the node ends; asyncio's own callback would complain about it
        finally:
            self._clients.pop(task)
            writer.transport.abort()

    # --- events ---------------------------------------------------------------------------------------------------------------------------

    def listeners(self) -> list[Client]:
        return [client for client in self._clients.values() if client.listener is not None]

    async def _distribute(self) -> None:
        """Events to whoever listens, as long as the node works."""
        while True:
            await asyncio.sleep(PERIOD)
            if self.listeners():
                with suppress(RequestError):
                    await self.drain()

    async def drain(self) -> None:
        async with self._draining:
            taken = await self.desk.ask(lambda node: self.desk.tap.take(node.trackers))
            for client in self.listeners():
                if client.listener is not None:
                    client.listener.put(taken)
                    client.news.set()

    async def listen(self, client: Client, listener: Listener) -> int:
        """Events go to this client, too; the number of its first one."""
        if self.listeners():
            await self.drain()
        async with self._draining:
            tap = self.desk.tap
            seq = tap.next if self.listeners() else await self.desk.ask(lambda node: tap.open(node.trackers))
            client.listener = listener
        return seq


class Client:
    """One connection: what it asks, what it is answered, what it listens to."""

    def __init__(self, control: Control, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.control, self.reader, self.writer = control, reader, writer
        self.session = Session(_peer(writer.get_extra_info("socket")))
        self.listener: Listener | None = None
        self.news = asyncio.Event()
        writer.transport.set_write_buffer_limits(high=BUFFER)

    async def attend(self) -> None:
        """Until it goes, or has to."""
        pump: asyncio.Task[None] | None = None
        try:
            while (request := await self._request()) is not None:
                self.control.counts["requests"] += 1
                if request.get("do") == "events":
                    pump = await self._listen(request, pump)
                else:
                    await self._answer(request)
        except ProtocolError as error:
            self.control.counts["garbage"] += 1
            await self.say_last(str(error))
        except TimeoutError:
            self.control.counts["stalled"] += 1
            LOG.warning("control: a client is dropped: it sends half a request, or does not read", extra=self.session.peer._asdict())
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            if pump is not None:
                pump.cancel()
                await asyncio.gather(pump, return_exceptions=True)

    async def _request(self) -> Message | None:
        """The next one; None when the client is done, or has been idle for too long. Raises ProtocolError, TimeoutError for half a request."""
        try:
            async with asyncio.timeout(None if self.listener else IDLE):
                first = await self.reader.read(1)
        except TimeoutError:
            return None
        if not first:
            return None
        async with asyncio.timeout(PATIENCE):
            head = first + await self.reader.readexactly(LENGTH.size - 1)
            body = await self.reader.readexactly(length_of(head, LARGEST_REQUEST))
        request = unpacked(body)
        check_request(request)
        return request

    async def _answer(self, request: Message) -> None:
        number, known = request.get("id"), self.control.desk.known
        try:
            do = known.get(request["do"]) if isinstance(request.get("do"), str) else None
            if do is None:
                raise RequestError(f"do: {str(request.get('do'))[:40]!r}: expected one of events, {', '.join(known)}")
            async for part in do(self.session, request):
                await self.send({"id": number, "end": part.end} if isinstance(part, Done) else {"id": number, **part})
        except CtmirrorError as error:
            await self.send({"id": number, "error": str(error)})
        except (ConnectionError, TimeoutError):
            raise  # of the client
        except Exception as error:
            LOG.exception("control: a request has failed")
            await self.send({"id": number, "error": f"internal error: {type(error).__name__}: {error}"})

    async def send(self, message: Message, patience: float | None = None) -> None:
        """Raises TimeoutError if the client does not read. patience: seconds, PATIENCE if not said otherwise."""
        self.writer.write(packed(message))
        async with asyncio.timeout(patience or PATIENCE):
            await self.writer.drain()
        await asyncio.sleep(0)  # drain() lets nobody else have a turn while there is room

    async def say_last(self, text: str) -> None:
        """One error, and the end. It is not waited for: who sends garbage may not read either."""
        with suppress(OSError):
            self.writer.write(packed({"id": None, "error": text}))
            self.writer.close()
            async with asyncio.timeout(1.0):
                await self.writer.wait_closed()

    # --- events ---------------------------------------------------------------------------------------------------------------------------

    async def _listen(self, request: Message, pump: asyncio.Task[None] | None) -> asyncio.Task[None] | None:
        number = request.get("id")
        try:
            if pump is not None:
                raise RequestError("events: already asked for on this connection")
            if not self.control._node.tracking.events:
                raise RequestError("events: this node makes none: expected control.events = true")
            seq = await self.control.listen(self, Listener(wanted_of(request.get("which")), _kinds(request.get("kinds"))))
        except CtmirrorError as error:
            await self.send({"id": number, "error": str(error)})
            return pump
        await self.send({"id": number, "listening": seq})
        return asyncio.create_task(self._pump(number))

    async def _pump(self, number: object) -> None:
        """What waits, to the client, at the client's speed."""
        listener, config = self.listener, self.control._node.tracking
        assert listener is not None
        try:
            while True:
                await self.news.wait()
                self.news.clear()
                for message in listener.messages(config.hz, config.acct):
                    await self.send({"id": number, **message}, LISTENER_PATIENCE)
        except TimeoutError:
            self.control.counts["stalled"] += 1
            LOG.warning("control: a listener is dropped: it does not read", extra={**self.session.peer._asdict(), "lost": listener.lost})
            self.writer.transport.abort()
        except ConnectionError:
            self.writer.transport.abort()


def _kinds(names: object) -> int:
    if names is None:
        return sum(KINDS.values())
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name in KINDS for name in names):
        raise RequestError(f"kinds: expected a list of {', '.join(KINDS)}")
    return sum(KINDS[name] for name in set(names))


def _peer(connection: socket.socket) -> Peer:
    return Peer(*PEERCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEERCRED.size)))


# --- the socket -------------------------------------------------------------------------------------------------------------------------


def listening(path: str, group: str | None = None) -> socket.socket:
    """A socket that listens at `path`, for its owner, or for a group as well. What a dead node has left there is replaced. Raises ConfigError."""
    place = Path(path)
    number = _group(group)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        place.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        with _alone(place.parent):
            _make_room(place)
            os.fchmod(made.fileno(), OWNER)  # what it is bound with: there is no moment in which others could connect
            made.bind(path)
            _let_in(place, number)
            made.listen(MOST_CLIENTS)
            made.setblocking(False)
    except OSError as error:
        made.close()
        raise ConfigError(f"control: {path}: {error.strerror or error}") from None
    except ConfigError:
        made.close()
        raise
    return made


def _let_in(place: Path, group: int | None) -> None:
    """A group, by its number; if that is not allowed, the socket is gone again."""
    if group is None:
        return
    try:
        os.chown(place, -1, group)
        os.chmod(place, GROUP)
    except OSError:
        os.unlink(place)
        raise


def _group(name: str | None) -> int | None:
    try:
        return None if name is None else grp.getgrnam(name).gr_gid
    except KeyError:
        raise ConfigError(f"control: group: there is no group {name!r} on this machine") from None


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Of several nodes that start at a time, one looks at the folder. The kernel's lock ends with the process, and leaves nothing behind."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _make_room(place: Path) -> None:
    """Remove a socket that nobody listens at. Raises ConfigError for one that somebody does, and for whatever is no socket."""
    try:
        kind = os.lstat(place).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise ConfigError(f"control: {place}: is there and no socket: expected a path of its own")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(place))
        except ConnectionRefusedError:
            os.unlink(place)
        except BlockingIOError:
            raise ConfigError(f"control: {place}: another node listens there, and is busy") from None
        else:
            raise ConfigError(f"control: {place}: another node listens there: expected a path of its own, or an end to that node")
