"""One connection in Trio: many calls at once, in both directions.

The bytes of many tasks leave in one send: whoever is alone sends at once, from where it is; when
others have calls under way too, the writer does so for all, after everybody who can run now has
run.  What has come is read in one piece, and all frames in it are dealt with before anything is
sent or waited for.  A request is stepped where it was read (`mountfs.inline`), and becomes a task
only when it has to wait.
"""

import contextlib
import logging
import os
import ssl
from collections.abc import Callable, Coroutine
from typing import Any, Final

import trio

from mountfs.errors import Fault, FsError
from mountfs.inline import PAUSED, WAITING, attempt, finish, leave
from mountfs.wire.config import Limits
from mountfs.wire.connection import (
    Answered,
    Asked,
    Body,
    Connection,
    Disconnected,
    Event,
    Greeted,
    Leaving,
    Noted,
    Refused,
    Side,
    Withdrawn,
)
from mountfs.wire.frames import Hello, Parts, Stretch
from mountfs.wire.poll import Poll
from mountfs.wire.transport import Plain, Tls, Transport, close, linger, prepare, tls_reason

log = logging.getLogger(__name__)

TURN: Final = 128
"""After so many frames of one connection the others have their turn."""


class Later:
    """What a handler returns that will be called back with the answer: no task waits for it.

    Exactly one of `answer` and `refuse` must be called in the end; it may be before the handler
    returns.
    """

    __slots__ = ("_link", "_number", "_outcome")

    def __init__(self) -> None:
        self._link: Link | None = None
        self._number = 0
        self._outcome: Parts | FsError | None = None

    def answer(self, parts: Parts) -> None:
        self._settle(parts)

    def refuse(self, error: FsError) -> None:
        self._settle(error)

    def _settle(self, outcome: "Parts | FsError") -> None:
        if self._link is None:
            self._outcome = outcome
        else:
            self._link._settle(self._number, outcome)

    def _belongs(self, link: "Link", number: int) -> None:
        self._link, self._number = link, number
        if self._outcome is not None:
            link._settle(number, self._outcome)


Handler = Callable[[Any, int, Body], Coroutine[Any, Any, Parts | Later]]
"""Answers a request: who asks (`Peer`, or `Client` for a push), the method, the body.  It may raise
FsError.  It must say `await leave()` before it waits.
"""

Address = tuple[str, int] | str
"""Host and port, or the path of a Unix socket."""


class _Waiter:
    """A task that waits for an answer."""

    __slots__ = ("body", "error", "task")

    def __init__(self) -> None:
        self.task: trio.lowlevel.Task | None = None
        self.body: Body | None = None
        self.error: Exception | None = None

    def wake(self) -> None:
        if self.task is not None:
            trio.lowlevel.reschedule(self.task)


class Link:
    """What both sides have in common.  Somebody must `greet`, and then `run` it."""

    def __init__(
        self,
        side: Side,
        transport: Transport,
        hello: Hello,
        limits: Limits,
        handler: Handler,
        address: str,
    ) -> None:
        self.address = address
        """Of the peer, for people."""
        self.leaving: Leaving | None = None
        """The peer wants to part: ask elsewhere.  What is under way is still answered."""
        self.why: str | None = None
        """Why the connection has ended."""
        self.closed = trio.Event()
        self.noted: Callable[[int, Body], None] = lambda method, body: None
        """Takes what the peer tells us and wants no answer to.  May raise FsError: then the
        connection ends with that.
        """
        self.noted_all: Callable[[], None] = lambda: None
        """Told after what had come together was given to `noted`."""
        self._has_noted = False
        self._side = side
        self._limits = limits
        self._core = Connection(side, hello, limits)
        self._transport = transport
        self._handler = handler
        self._out_bytes_read = limits.out_bytes_max if side is Side.SERVER else 1 << 62
        """When more waits to be sent, requests are read no further.  Only a server does so: two
        that stop reading would wait for each other.
        """
        self._early: list[Event] = []
        """What has come together with the hello."""
        self._scope = trio.CancelScope()
        self._nursery: trio.Nursery
        self._scopes: dict[int, trio.CancelScope] = {}
        """Of the requests of the peer that have become tasks."""
        self._paused: list[tuple[int, Coroutine[Any, Any, Parts | Later]]] = []
        """Requests that share their work with others that are there already."""
        self._poll = Poll(limits.poll_us / 1e6)
        self._writer: trio.lowlevel.Task | None = None
        """The task that writes, when it sleeps.  Otherwise it will send all there is."""
        self._room_to_ask = trio.lowlevel.ParkingLot()
        self._room_to_answer = trio.lowlevel.ParkingLot()

    @property
    def peer(self) -> Hello:
        """What the peer has said of itself."""
        hello = self._core.peer
        assert hello is not None
        return hello

    @property
    def version(self) -> int:
        """Of the protocol, that both speak."""
        return self._core.version

    @property
    def features(self) -> int:
        """Those that both have."""
        return self._core.features

    @property
    def sends_files(self) -> bool:
        """Answers may have parts that are stretches of files: nothing is encrypted."""
        return self._transport.sends_files

    @property
    def certificate(self) -> bytes | None:
        """Of the peer, in DER, if it has shown one that we trust."""
        return self._transport.certificate() if isinstance(self._transport, Tls) else None

    def close(self, why: str = "closed by this side", last_word: FsError | None = None) -> None:
        """End it now; whoever waits for an answer gets `Disconnected`."""
        if self.why is not None:
            return
        self.why = why
        for waiter in self._core.close(last_word):
            waiter.error = self._disconnected(sent=True)
            waiter.wake()
        self._room_to_ask.unpark_all()
        self._room_to_answer.unpark_all()
        self._scope.cancel()
        self.closed.set()

    def part(self, reason: str, where: str = "") -> None:
        """End it when what is under way has been answered.  `closed` tells when it is."""
        self._core.goodbye(reason, where)
        self._send(alone=True)

    def _disconnected(self, *, sent: bool) -> Disconnected:
        return Disconnected(f"{self.address}: {self.why}", sent=sent)

    # --- asking ---

    async def _ask(self, method: int, parts: Parts) -> Body:
        await leave()
        await trio.lowlevel.checkpoint_if_cancelled()
        core = self._core
        if self.why is not None:
            raise self._disconnected(sent=False)
        size = len(parts) if type(parts) is bytes else _size(parts)
        if self._room_to_ask or not core.may_ask(size):
            await self._wait_to_ask(size)
        waiter = _Waiter()
        number = core.ask(method, parts, waiter)
        self._send(alone=core.asking == 1)

        def abort(_: object) -> trio.lowlevel.Abort:
            core.cancel(number)
            self._send(alone=False)
            return trio.lowlevel.Abort.SUCCEEDED

        if waiter.error is None:  # sending may have found the connection broken
            waiter.task = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(abort)
        if waiter.error is not None:
            raise waiter.error
        assert waiter.body is not None
        return waiter.body

    async def _wait_to_ask(self, size: int) -> None:
        while True:
            await self._room_to_ask.park()
            if self.why is not None:
                raise self._disconnected(sent=False)
            if self._core.may_ask(size):
                self._room_to_ask.unpark()  # there may be room for another
                return

    # --- the life of a connection ---

    async def greet(self, admit: Callable[[], None]) -> None:
        """Exchange hellos.  FsError: they do not fit, or `admit` says no.  Disconnected."""
        core = self._core
        if self._side is Side.CLIENT:
            core.greet()
        while core.peer is None:
            await self._send_all()
            for event in core.received(await self._receive()):
                if not isinstance(event, Greeted):
                    self._early.append(event)
        admit()
        if self._side is Side.SERVER:
            core.greet()
            await self._send_all()

    async def run(self) -> None:
        """Serve the connection until it ends.  However it ends, nothing is raised for it."""
        try:
            with self._scope:
                async with trio.open_nursery() as self._nursery:
                    self._nursery.start_soon(self._write)
                    self._nursery.start_soon(self._tick)
                    await self._read()
        finally:
            for _, coroutine in self._paused:
                coroutine.close()
            await self.end()

    async def end(self) -> None:
        """Close the socket, but let the peer read our last word, if there is one."""
        self.close()
        try:
            if self._core.out_bytes:
                with trio.move_on_after(self._limits.linger_ms / 1000, shield=True):
                    with contextlib.suppress(Disconnected):
                        await self._send_all()
                    await linger(self._transport.sock)
        finally:
            close(self._transport.sock)

    async def _tick(self) -> None:
        try:
            while True:
                due_ms = self._core.tick(trio.current_time() * 1000)
                self._send(alone=True)
                await trio.sleep_until(due_ms / 1000)
        except Disconnected as error:
            self.close(str(error))

    # --- reading ---

    async def _read(self) -> None:
        try:
            for event in self._early:
                self._handle(event)
            self._end_notes()
            while self.why is None:
                await self._read_some()
        except FsError as error:
            log.warning("%s: %s", self.address, error)
            self.close(str(error), last_word=error)
        except (Disconnected, OSError) as error:
            self.close(_reason(error))

    async def _read_some(self) -> None:
        core = self._core
        view = core.buffer()
        try:
            size = self._transport.receive(view)
        except BlockingIOError:
            if not await self._poll.again():
                await self._wait_readable()
            return
        self._poll.found()
        if not size:
            self.close(core.ended())
            return
        for handled, event in enumerate(core.received(size), 1):
            self._handle(event)
            if core.out_bytes > self._out_bytes_read:
                self._send(alone=True)
                await self._wait_to_answer()
                core.alive()  # it is we who have not listened
            elif handled % TURN == 0:
                self._send(alone=True)
                await trio.lowlevel.checkpoint()
        self._end_notes()
        self._send(alone=True)
        if size == len(view) or self._poll.begin():
            await trio.lowlevel.checkpoint()  # others have their turn
        else:
            await self._wait_readable()

    def _end_notes(self) -> None:
        if self._has_noted:
            self._has_noted = False
            self.noted_all()

    async def _wait_readable(self) -> None:
        if not self._paused:
            await self._poll.sleep(self._transport.sock)
            return
        paused, self._paused = self._paused, []
        for number, coroutine in paused:
            self._step(number, coroutine)
        self._send(alone=True)
        await trio.lowlevel.checkpoint()

    async def _receive(self) -> int:
        while True:
            try:
                size = self._transport.receive(self._core.buffer())
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._transport.sock)
                continue
            except ssl.SSLError as error:
                raise FsError(Fault.DENIED, f"TLS: {tls_reason(error)}") from error
            except OSError as error:
                raise Disconnected(_reason(error), sent=False) from error
            if not size:
                raise Disconnected(self._core.ended(), sent=False)
            return size

    def _handle(self, event: Event) -> None:
        kind = type(event)
        if kind is Asked:
            self._step(event.number, self._handler(self, event.method, event.body))  # type: ignore[union-attr]
        elif kind is Noted:
            self._has_noted = True
            self.noted(event.method, event.body)  # type: ignore[union-attr]
        elif kind is Answered:
            waiter = event.token  # type: ignore[union-attr]
            if waiter is not None:
                waiter.body = event.body  # type: ignore[union-attr]
                waiter.wake()
            if self._room_to_ask:
                self._room_to_ask.unpark()
        elif isinstance(event, Refused):
            if event.token is not None:
                event.token.error = event.error
                event.token.wake()
            if self._room_to_ask:
                self._room_to_ask.unpark()
        elif isinstance(event, Withdrawn):
            scope = self._scopes.get(event.number)
            if scope is not None:
                scope.cancel()
        elif isinstance(event, Leaving):
            self.leaving = event
            self._room_to_ask.unpark_all()

    # --- answering ---

    def _settle(self, number: int, outcome: Parts | FsError) -> None:
        """The answer to a request that was to be answered later."""
        if self.why is not None:
            return
        if isinstance(outcome, FsError):
            self._core.refuse(number, outcome)
        else:
            self._core.answer(number, outcome)
        self._send(alone=self._core.answering == 0)

    def _step(self, number: int, coroutine: Coroutine[Any, Any, Parts | Later]) -> None:
        try:
            parts = attempt(coroutine)
        except Exception as error:
            self._refuse(number, error)
            return
        if parts is WAITING:
            scope = self._scopes[number] = trio.CancelScope()
            self._nursery.start_soon(self._finish, number, coroutine, scope)
        elif parts is PAUSED:
            self._paused.append((number, coroutine))
        elif isinstance(parts, Later):
            parts._belongs(self, number)
        else:
            self._core.answer(number, parts)  # type: ignore[arg-type]

    async def _finish(
        self, number: int, coroutine: Coroutine[Any, Any, Parts | Later], scope: trio.CancelScope
    ) -> None:
        try:
            with scope:
                parts = await finish(coroutine)
                await self._wait_to_answer()
            if scope.cancelled_caught:
                raise FsError(Fault.INTERRUPTED, "cancelled by the caller")
            assert not isinstance(parts, Later), "only who does not wait may answer later"
            self._core.answer(number, parts)
        except Exception as error:
            self._refuse(number, error)
        finally:
            del self._scopes[number]
        self._send(alone=self._core.answering == 0)

    async def _wait_to_answer(self) -> None:
        """The peer reads more slowly than it asks."""
        while self._core.out_bytes > self._limits.out_bytes_max and self.why is None:
            await self._room_to_answer.park()

    def _refuse(self, number: int, error: Exception) -> None:
        if not isinstance(error, FsError):
            log.error("bug in answering %s: please report it", self.address, exc_info=error)
            error = FsError(Fault.DEVICE, "a bug of the server; its log has more")
        self._core.refuse(number, error)

    # --- writing ---

    def _send(self, *, alone: bool) -> None:
        """Send what waits; if others will soon have something too (not `alone`), together."""
        if self._writer is None:
            return  # it is at it
        core, transport = self._core, self._transport
        if alone and core.out_bytes:
            self._send_some()
        if core.out_bytes or transport.pending:
            trio.lowlevel.reschedule(self._writer)
            self._writer = None
        elif core.parted:
            self.close("both sides have said goodbye")

    def _send_some(self) -> bool:
        """Whether it went."""
        core = self._core
        try:
            size = self._transport.send(core.outgoing())
        except OSError as error:
            self.close(_reason(error))
            return True
        if size:
            core.sent(size)
        return size > 0

    async def _write(self) -> None:
        """Send what could not be sent at once, or what was left for many to send together."""
        core, transport = self._core, self._transport
        while self.why is None:
            if core.out_bytes or transport.pending:
                if not self._send_some():
                    await self._wait_writable()
                self._tell_room()
                continue
            if core.parted:
                self.close("both sides have said goodbye")
                return
            self._writer = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(self._writer_aborted)

    def _writer_aborted(self, _: object) -> trio.lowlevel.Abort:
        self._writer = None
        return trio.lowlevel.Abort.SUCCEEDED

    async def _wait_writable(self) -> None:
        with trio.move_on_after(self._limits.stall_ms / 1000) as scope:
            await trio.lowlevel.wait_writable(self._transport.sock)
            self._core.alive()
        if scope.cancelled_caught:
            self.close(f"the peer has read nothing for {self._limits.stall_ms / 1000} s")

    def _tell_room(self) -> None:
        if self._core.out_bytes <= self._limits.out_bytes_max:
            if self._room_to_answer:
                self._room_to_answer.unpark_all()
            if self._room_to_ask:
                self._room_to_ask.unpark()

    async def _send_all(self) -> None:
        """For before and after `run`."""
        core, transport = self._core, self._transport
        while core.out_bytes or transport.pending:
            try:
                size = transport.send(core.outgoing())
            except OSError as error:
                raise Disconnected(_reason(error), sent=False) from error
            if size:
                core.sent(size)
            else:
                await trio.lowlevel.wait_writable(transport.sock)


class Client(Link):
    """The side that connects (see `connect`)."""

    async def call(self, method: int, parts: Parts = b"") -> Body:
        """The answer.  FsError: the peer's, or nothing was sent.  Disconnected: nobody knows.

        Waits while the peer has as many calls of ours as it takes.  `parts` may be changed again
        when it has returned or raised.
        """
        return await self._ask(method, parts)

    def tell(self, method: int, parts: Parts) -> bool:
        """Send what wants no answer, at once.  Returns whether it could be: not when the connection
        has ended, or too much waits to be sent.  Whether it arrives nobody says.
        """
        if self.why is not None or self.leaving is not None or not self._core.note(method, parts):
            return False
        self._send(alone=True)
        return True

    async def aclose(self, reason: str = "") -> None:
        """Part; the caller's scope says how long that may take."""
        self.part(reason)
        await self.closed.wait()


async def connect(
    nursery: trio.Nursery,
    address: Address,
    hello: Hello,
    *,
    limits: Limits | None = None,
    ssl_context: ssl.SSLContext | None = None,
    server_hostname: str | None = None,
    on_push: Handler | None = None,
) -> Client:
    """A connection, whose tasks live in `nursery`, and raise nothing there when it ends.

    FsError: the two do not fit, or do not trust each other.  Disconnected: nobody is there.
    """
    await leave()
    limits = limits or Limits()
    name = address if isinstance(address, str) else "{}:{}".format(*address)
    try:
        with trio.move_on_after(limits.connect_ms / 1000):
            sock = prepare(await _open(address))
            try:
                transport: Transport = Plain(sock)
                if ssl_context is not None:
                    transport = Tls(
                        sock, ssl_context, server_side=False, server_hostname=server_hostname
                    )
                    await transport.handshake()
                client = Client(Side.CLIENT, transport, hello, limits, on_push or _no_pushes, name)
                try:
                    await client.greet(lambda: None)
                except Disconnected as error:
                    if ssl_context is not None:
                        raise
                    raise Disconnected(f"{error} (does it want TLS?)", sent=False) from error
            except BaseException:
                close(sock)
                raise
            nursery.start_soon(client.run, name=f"wire to {name}")
            return client
    except FsError as error:
        raise FsError(error.fault, f"{name}: {error.detail}") from error
    except (Disconnected, OSError) as error:
        raise Disconnected(f"{name}: {_reason(error)}", sent=False) from error
    raise Disconnected(f"{name}: no answer within {limits.connect_ms / 1000} s", sent=False)


async def _open(address: Address) -> trio.SocketStream:
    if isinstance(address, str):
        return await trio.open_unix_socket(address)
    return await trio.open_tcp_stream(*address)


async def _no_pushes(client: Client, method: int, body: Body) -> Parts:
    raise FsError(Fault.NOT_IMPLEMENTED, f"this client takes no pushes (method {method})")


def _size(parts: Parts) -> int:
    if isinstance(parts, (bytes, bytearray, memoryview)):
        return memoryview(parts).nbytes
    return sum(
        len(part) if isinstance(part, Stretch) else memoryview(part).nbytes for part in parts
    )


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return f"TLS: {tls_reason(error)}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    tried = error.__cause__
    if isinstance(tried, ExceptionGroup) and isinstance(tried.exceptions[0], OSError):
        return os.strerror(tried.exceptions[0].errno or 0)
    return str(error)
