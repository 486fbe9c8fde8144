"""The gRPC server of a node: one port, and services that are plugged in.

A handler is a coroutine in Trio; grpcio's thread waits for it.  What it raises as `FsError` is what
the caller's `Client` raises.  Anything else that it raises is a bug: the caller hears that the
server has failed, and the server ends with that exception.

With credentials nobody gets as far as a handler without a certificate of our authority, made out
for our cluster.
"""

import contextlib
import functools
import queue
import threading
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterator,
    Mapping,
    Sequence,
)
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, NoReturn, cast

import grpc
import trio

from mountfs.errors import Fault, FsError
from mountfs.rpc import faults, health
from mountfs.rpc.bridge import Feed, Pieces, Soon
from mountfs.rpc.config import Config, options
from mountfs.rpc.identity import Credentials, Identity, Pems, identify


class Call(NamedTuple):
    """What a handler may ask about its caller."""

    identity: Identity | None
    """None: without TLS anybody may be anyone."""


Handler = Callable[[bytes, Call], Awaitable[bytes]]
Source = Callable[[bytes, Call], AsyncGenerator[bytes, None]]
"""Answers with a stream of pieces."""
Sink = Callable[[AsyncIterator[bytes], Call], Awaitable[bytes]]
"""Takes a stream of pieces.  It raises INTERRUPTED if the caller does not send all."""


@contextlib.asynccontextmanager
async def open_server(
    address: str, cluster: str, credentials: Credentials | None = None, config: Config | None = None
) -> AsyncIterator["Server"]:
    """Listen at `address` ("host:port"; port 0: any) until the end of the block."""
    server = Server(address, cluster, credentials, config or Config())
    try:
        async with trio.open_nursery() as nursery:
            server._start(nursery)
            try:
                yield server
            finally:
                server._closing = True
                nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await server._close()


class Server:
    def __init__(
        self, address: str, cluster: str, credentials: Credentials | None, config: Config
    ) -> None:
        self._cluster = cluster
        self._config = config
        self.serving = health.Serving.SERVING
        """What health checks are told."""
        self.is_complete = True
        """Everything is registered.  Before that, what is not there may be there soon."""
        self._soon = Soon()
        self._closing = False
        self._nursery: trio.Nursery | None = None
        self._secure = credentials is not None
        self._handlers: dict[str, _Make] = {}
        self._calls = threading.Semaphore(config.calls_max)
        # A sink takes two threads: one waits for pieces, and one for the handler.  The third is for
        # who is told that there are too many.
        self._threads = ThreadPoolExecutor(3 * config.calls_max, thread_name_prefix="mountfs-rpc")
        self._grpc = grpc.server(
            self._threads,
            handlers=[_Gate(self, self._handlers)],
            options=options(config),
            maximum_concurrent_rpcs=2 * config.calls_max,
        )
        host = address.rpartition(":")[0]
        self.port = self._listen(address, credentials)
        """Where it listens; the number that was chosen if any would do."""
        if not self.port:
            self._threads.shutdown()
            # One that was never started keeps its threads for ever.
            self._grpc.start()
            self._grpc.stop(None)
            raise FsError(
                Fault.BUSY, f"cannot listen at {address}: is another server there already?"
            )
        self.address = f"{host}:{self.port}"
        self.register(health.SERVICE, health.CHECK, self._check_health)

    def _listen(self, address: str, credentials: Credentials | None) -> int:
        """The port.  0: it cannot be had."""
        with contextlib.suppress(RuntimeError):
            if credentials is None:
                return self._grpc.add_insecure_port(address)
            return self._grpc.add_secure_port(address, _server_credentials(credentials))
        return 0

    # -- what is served

    def register(self, service: str, method: str, handler: Handler) -> None:
        self._add(
            service,
            method,
            lambda: grpc.unary_unary_rpc_method_handler(functools.partial(self._answer, handler)),
        )

    def register_source(self, service: str, method: str, handler: Source) -> None:
        self._add(
            service,
            method,
            lambda: grpc.unary_stream_rpc_method_handler(functools.partial(self._give, handler)),
        )

    def register_sink(self, service: str, method: str, handler: Sink) -> None:
        self._add(
            service,
            method,
            lambda: grpc.stream_unary_rpc_method_handler(functools.partial(self._take, handler)),
        )

    def _add(self, service: str, method: str, make: "_Make") -> None:
        path = f"/{service}/{method}"
        assert path not in self._handlers, path
        self._handlers[path] = make

    async def _check_health(self, body: bytes, call: Call) -> bytes:
        service = health.decode_request(body)
        if service and not any(path.startswith(f"/{service}/") for path in self._handlers):
            raise FsError(Fault.NOT_FOUND, f"no service {service} here")
        return health.encode_response(self.serving)

    # -- in grpcio's threads

    def _answer(self, handler: Handler, body: bytes, context: grpc.ServicerContext) -> bytes:
        call = self._admit(context)
        outcome: queue.SimpleQueue[bytes | FsError] = queue.SimpleQueue()
        self._begin(context, lambda: handler(body, call), outcome.put)
        return self._settle(outcome.get(), context)

    def _give(self, handler: Source, body: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        call = self._admit(context)
        feed = Feed(self._soon, self._config.pieces_in_flight_max)

        async def produce() -> bytes:
            async with contextlib.aclosing(handler(body, call)) as pieces:
                async for piece in pieces:
                    await feed.put(piece)
            feed.finish()
            return b""

        def ended(outcome: bytes | FsError) -> None:
            feed.stop(outcome if isinstance(outcome, FsError) else None)

        self._begin(context, produce, ended)
        try:
            yield from feed
        except FsError as error:
            _abort(context, error)

    def _take(
        self, handler: Sink, received: Iterator[bytes], context: grpc.ServicerContext
    ) -> bytes:
        call = self._admit(context)
        pieces = Pieces(self._soon, self._config.pieces_in_flight_max)
        context.add_callback(pieces.stop)
        outcome: queue.SimpleQueue[bytes | FsError] = queue.SimpleQueue()

        async def consume() -> bytes:
            async with contextlib.aclosing(aiter(pieces)) as iterated:  # it may leave the rest
                return await handler(iterated, call)

        self._begin(context, consume, outcome.put)
        # In another thread: the handler's answer must not wait for a caller that sends nothing.
        self._threads.submit(self._pump, pieces, received)
        return self._settle(outcome.get(), context)

    def _pump(self, pieces: Pieces, received: Iterator[bytes]) -> None:
        try:
            pieces.pump(received)
        except grpc.RpcError:
            pieces.fail(FsError(Fault.INTERRUPTED, "the caller has gone"))

    def _admit(self, context: grpc.ServicerContext) -> Call:
        """Take a place until the call ends, and find out who calls."""
        if not self._calls.acquire(blocking=False):
            _abort(context, FsError(Fault.BUSY, "this node has too many calls at once"))
        if not context.add_callback(self._calls.release):
            self._calls.release()
        # The stubs are wrong about the type.
        subject = cast(Mapping[str, Sequence[bytes]], context.auth_context())
        call = Call(identify(subject))
        if refusal := self._refusal(call):
            _abort(context, refusal)
        return call

    def _refusal(self, call: Call) -> FsError | None:
        if self._secure and (call.identity is None or call.identity.cluster != self._cluster):
            theirs = call.identity.cluster if call.identity else ""
            return FsError(
                Fault.NOT_PERMITTED,
                f"the certificate is of cluster {theirs!r}, and this is a node of "
                f"{self._cluster!r}",
            )
        return None

    def _begin(
        self,
        context: grpc.ServicerContext,
        work: Callable[[], Awaitable[bytes]],
        ended: Callable[[bytes | FsError], None],
    ) -> None:
        """Run `work` in Trio, as long as the caller waits for it; tell `ended` how it went."""
        scope = trio.CancelScope()

        async def run() -> None:
            outcome: bytes | FsError = _STOPPING
            try:
                with scope:
                    outcome = await work()
            except FsError as error:
                outcome = error
            except Exception as bug:
                outcome = FsError(Fault.DEVICE, f"the server failed: {type(bug).__name__}")
                raise
            finally:
                ended(outcome)

        def start() -> None:
            if self._closing or self._nursery is None:
                ended(_STOPPING)
            else:
                self._nursery.start_soon(run)

        if not self._soon(start):
            ended(_STOPPING)
            return

        def stop() -> None:
            self._soon(scope.cancel)

        if not context.add_callback(stop):
            stop()

    def _settle(self, outcome: bytes | FsError, context: grpc.ServicerContext) -> bytes:
        if isinstance(outcome, FsError):
            _abort(context, outcome)
        if len(outcome) > self._config.message_bytes_max:
            _abort(context, FsError(Fault.TOO_BIG, f"the answer has {len(outcome)} bytes"))
        return outcome

    # -- life

    def _start(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._grpc.start()

    async def _close(self) -> None:
        """Every call is ended.  After this no thread is left."""
        self._closing = True
        with trio.move_on_after(self._config.close_ms / 1000):
            await trio.to_thread.run_sync(self._grpc.stop, None, abandon_on_cancel=True)
            await trio.to_thread.run_sync(self._threads.shutdown, abandon_on_cancel=True)


_Make = Callable[[], "grpc.RpcMethodHandler[bytes, bytes]"]
"""grpcio wants an object for each call."""


class _Gate(grpc.GenericRpcHandler):
    def __init__(self, server: Server, handlers: Mapping[str, _Make]) -> None:
        self._server = server
        self._handlers = handlers

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> "grpc.RpcMethodHandler[bytes, bytes] | None":
        make = self._handlers.get(handler_call_details.method)
        if make is not None:
            return make()
        return None if self._server.is_complete else _NOT_YET


def _not_yet(body: bytes, context: grpc.ServicerContext) -> NoReturn:
    _abort(context, FsError(Fault.UNAVAILABLE, "this node is just starting"))


_NOT_YET: "grpc.RpcMethodHandler[bytes, bytes]" = grpc.unary_unary_rpc_method_handler(_not_yet)
_STOPPING = FsError(Fault.NOT_LEADER, "this node is stopping")


def _abort(context: grpc.ServicerContext, error: FsError) -> NoReturn:
    context.set_trailing_metadata(faults.to_metadata(error))
    context.abort(faults.status_of(error.fault), faults.sentence_of(error))


def _server_credentials(credentials: Credentials) -> grpc.ServerCredentials:
    """Credentials that are looked at anew for each connection."""
    current = credentials()

    def fetch() -> Any:
        """None: as before."""
        nonlocal current
        pems = credentials()
        if pems == current:
            return None
        current = pems
        return _configuration(pems)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(current), fetch, require_client_authentication=True
    )


def _configuration(pems: Pems) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(pems.key, pems.certificate)], root_certificates=pems.authority
    )
