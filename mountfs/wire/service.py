"""The side that listens: connections in, requests to the handler."""

import contextlib
import errno
import logging
import os
import socket
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import trio

from mountfs.errors import Fault, FsError
from mountfs.wire.config import Limits
from mountfs.wire.connection import Body, Disconnected, Side
from mountfs.wire.frames import Hello, Parts
from mountfs.wire.stream import Handler, Link
from mountfs.wire.transport import Plain, Tls, Transport, close, linger, prepare

log = logging.getLogger(__name__)

TURNED_AWAY_MAX: Final = 100
"""Connections beyond the bound that are told so; the others are just closed."""
_NO_MORE_FILES: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)
BACKLOG: Final = 1_024


class Peer(Link):
    """A client that is connected to a `Service`."""

    state: Any = None
    """For the handler to keep what it knows about this client."""

    async def push(self, method: int, parts: Parts = b"") -> Body:
        """Ask the client, and wait for its answer.

        The caller's scope says how long; if that ends first, the client is told so.  FsError: the
        client's answer.  Disconnected: nobody knows.
        """
        return await self._ask(method, parts)


class Service:
    """Answers what comes from `listeners` with `handler`.

    `admit` may refuse a client that has said hello (FsError).  `ssl_context` is asked for each
    connection, so that a renewed certificate is used from then on.
    """

    def __init__(
        self,
        handler: Handler,
        hello: Hello,
        *,
        limits: Limits | None = None,
        ssl_context: Callable[[], ssl.SSLContext] | None = None,
        admit: Callable[[Peer], None] = lambda peer: None,
    ) -> None:
        self.peers: set[Peer] = set()
        """Those who have said hello."""
        self._handler = handler
        self._hello = hello
        self._limits = limits or Limits()
        self._ssl_context = ssl_context
        self._admit = admit
        self._connections = 0
        self._turned_away: set[tuple[str, str]] = set()
        """Machines, and what they were told lately."""
        self._draining: tuple[str, str] | None = None
        self._listening = trio.CancelScope()
        self._gone = trio.lowlevel.ParkingLot()

    async def serve(
        self,
        listeners: Sequence[trio.SocketListener],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Until cancelled or drained.  Closes the listeners."""
        async with trio.open_nursery() as connections:
            with self._listening:
                async with trio.open_nursery() as nursery:
                    for listener in listeners:
                        nursery.start_soon(self._listen, listener, connections)
                    task_status.started()

    async def drain(self, reason: str, where: str = "") -> None:
        """Take no new connections and calls; return when everything is answered and all have gone.

        The caller's scope says how long that may take.  `where` tells clients where to go.
        """
        self._draining = (reason, where)
        self._listening.cancel()
        for peer in self.peers:
            peer.part(reason, where)
        while self.peers:
            await self._gone.park()

    async def _listen(self, listener: trio.SocketListener, connections: trio.Nursery) -> None:
        async with listener:
            while True:
                try:
                    stream = await listener.accept()
                except OSError as error:
                    if error.errno not in _NO_MORE_FILES:
                        raise
                    log.error("cannot accept connections: %s", error.strerror)
                    await trio.sleep(0.1)
                    continue
                connections.start_soon(self._connection, stream)

    async def _connection(self, stream: trio.SocketStream) -> None:
        address = _address(stream)
        sock = prepare(stream)
        self._connections += 1
        try:
            peer = await self._welcome(sock, address)
            if peer is None:
                return
            self.peers.add(peer)
            try:
                if self._draining is not None:
                    peer.part(*self._draining)
                await peer.run()
            finally:
                self.peers.discard(peer)
                self._gone.unpark_all()
        finally:
            close(sock)
            self._connections -= 1

    def _say_turned_away(self, address: str, error: FsError) -> None:
        """Once for each machine and reason: it may try again twice a second."""
        what = (address.rpartition(":")[0], str(error))
        if what not in self._turned_away:
            log.info("%s is turned away: %s", address, error)
        if len(self._turned_away) >= TURNED_AWAY_MAX:
            self._turned_away.clear()
        self._turned_away.add(what)

    async def _welcome(self, sock: socket.socket, address: str) -> Peer | None:
        """Shake hands and exchange hellos.  None: nothing came of it."""
        limits = self._limits
        too_many = self._connections > limits.connections_max
        transport: Transport = Plain(sock)
        peer: Peer | None = None
        last_word: FsError | None = None
        try:
            if too_many and (
                self._ssl_context is not None
                or self._connections > limits.connections_max + TURNED_AWAY_MAX
            ):
                return None
            with trio.move_on_after(limits.hello_ms / 1000) as scope:
                if self._ssl_context is not None:
                    context = self._ssl_context()
                    transport = Tls(sock, context, server_side=True, server_hostname=None)
                    await transport.handshake()
                peer = Peer(Side.SERVER, transport, self._hello, limits, self._handler, address)
                if too_many:
                    raise FsError(
                        Fault.BUSY, f"{self._hello.name} has {limits.connections_max} connections"
                    )
                await peer.greet(lambda: self._admit(peer))
                peer.address = f"{peer.peer.name} ({address})"
                return peer
            if scope.cancelled_caught:
                raise FsError(Fault.TIMED_OUT, f"no hello within {limits.hello_ms / 1000} s")
        except FsError as error:
            self._say_turned_away(address, error)
            last_word = error
        except (Disconnected, OSError) as error:
            log.info("%s is gone: %s", address, error)
            return None
        if peer is None:
            with trio.move_on_after(limits.linger_ms / 1000):
                await linger(sock)  # TLS has said why
        else:
            peer.close(str(last_word), last_word)
            await peer.end()
        return None


def listen_unix(path: str | os.PathLike[str], mode: int = 0o600) -> trio.SocketListener:
    """Listen at `path`, also if a process that has died has left a socket there.

    FsError: somebody listens there, or it is not a socket.
    """
    path = os.fspath(path)
    if Path(path).is_socket() and not _answers(path):
        os.unlink(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o777 & ~mode)
    try:
        sock.bind(path)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        fault = Fault.BUSY if error.errno == errno.EADDRINUSE else Fault.INVALID
        raise FsError(fault, f"cannot listen at {path}: {error.strerror}") from error
    finally:
        os.umask(before)
    return trio.SocketListener(trio.socket.from_stdlib_socket(sock))


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)  # a full queue is an answer too
        try:
            sock.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True
    return True


def _address(stream: trio.SocketStream) -> str:
    with contextlib.suppress(OSError):
        name = stream.socket.getpeername()
        if isinstance(name, tuple):
            return f"{name[0]}:{name[1]}"
        return "a process on this machine"
    return "somebody"
