"""Calls to other nodes, from Trio.

A call has a deadline, always, and ends with the cancel scope that it is made in.  It is made once:
whether it may be repeated is the caller's business.
"""

import contextlib
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import trio

from mountfs.errors import Fault, FsError
from mountfs.rpc import faults
from mountfs.rpc.bridge import Feed, Pieces, Soon, Threads
from mountfs.rpc.config import Config, Options, options
from mountfs.rpc.identity import Credentials, Pems, target_name


@contextlib.asynccontextmanager
async def open_client(
    cluster: str, credentials: Credentials | None = None, config: Config | None = None
) -> AsyncIterator["Client"]:
    """`cluster`: whose nodes are called; with TLS, others are not talked to."""
    client = Client(cluster, credentials, config or Config())
    try:
        yield client
    finally:
        with trio.CancelScope(shield=True):
            await client._close()


class Client:
    def __init__(self, cluster: str, credentials: Credentials | None, config: Config) -> None:
        self._cluster = cluster
        self._credentials = credentials
        self._config = config
        self._soon = Soon()
        self._threads = Threads()
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        """By address, the one that was used last at the end."""
        self._options = (
            *options(config),
            ("grpc.initial_reconnect_backoff_ms", config.retry_ms),
            ("grpc.max_reconnect_backoff_ms", config.retry_max_ms),
            ("grpc.min_reconnect_backoff_ms", config.connect_ms),
        )

    async def call(
        self,
        address: str,
        service: str,
        method: str,
        body: bytes,
        *,
        deadline_s: float,
    ) -> bytes:
        if len(body) > self._config.message_bytes_max:
            raise FsError(Fault.TOO_BIG, f"a request of {len(body)} bytes to {address}")
        with self._channel(address) as channel:
            unary: grpc.UnaryUnaryMultiCallable[bytes, bytes]
            unary = channel.unary_unary(f"/{service}/{method}")
            started = unary.future(body, timeout=deadline_s)
            await self._done(started)
        return _result(started, address, f"{service}/{method}", deadline_s)

    async def send_stream(
        self,
        address: str,
        service: str,
        method: str,
        pieces: AsyncIterator[bytes],
        *,
        deadline_s: float,
    ) -> bytes:
        """Send pieces as fast as they are taken.  The answer may come before the last of them."""
        feed = Feed(self._soon, self._config.pieces_in_flight_max)
        failed: Exception | None = None

        async def send(scope: trio.CancelScope) -> None:
            nonlocal failed
            try:
                async for piece in pieces:
                    assert len(piece) <= self._config.piece_bytes_max, len(piece)
                    await feed.put(piece)
            except Exception as error:
                failed = error
                scope.cancel()
            else:
                feed.finish()

        with self._channel(address) as channel:
            sending: grpc.StreamUnaryMultiCallable[bytes, bytes]
            sending = channel.stream_unary(f"/{service}/{method}")
            started = sending.future(self._seen(feed), timeout=deadline_s)
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(send, nursery.cancel_scope)
                    await self._done(started)
                    nursery.cancel_scope.cancel()
            finally:
                started.cancel()
                feed.stop()
        if failed is not None:
            raise failed
        return _result(started, address, f"{service}/{method}", deadline_s)

    @contextlib.asynccontextmanager
    async def stream(
        self,
        address: str,
        service: str,
        method: str,
        body: bytes,
        *,
        deadline_s: float,
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """The pieces that the other side answers with."""
        pieces = Pieces(self._soon, self._config.pieces_in_flight_max)
        with self._channel(address) as channel:
            receiving: grpc.UnaryStreamMultiCallable[bytes, bytes]
            receiving = channel.unary_stream(f"/{service}/{method}")
            started: Any = receiving(body, timeout=deadline_s)

            def receive() -> None:
                self._threads.see()
                try:
                    pieces.pump(started)
                except grpc.RpcError:
                    pieces.fail(_error(started, address, f"{service}/{method}", deadline_s))

            started.add_callback(self._threads.see)
            threading.Thread(target=receive, name="mountfs-rpc-stream", daemon=True).start()
            try:
                async with contextlib.aclosing(pieces.__aiter__()) as iterated:
                    yield iterated
            finally:
                started.cancel()
                pieces.stop()

    # -- below

    def _seen(self, feed: Feed) -> Iterator[bytes]:
        self._threads.see()
        yield from feed

    async def _done(self, started: Any) -> None:
        """The call has ended; if we are cancelled, so is it."""
        done = trio.Event()

        def tell(_: object) -> None:
            self._threads.see()
            self._soon(done.set)

        started.add_done_callback(tell)
        try:
            await done.wait()
        finally:
            started.cancel()

    @contextlib.contextmanager
    def _channel(self, address: str) -> Iterator[grpc.Channel]:
        """A connection, kept for later calls; a new one if our certificate is another by now."""
        pems = self._credentials() if self._credentials else None
        kept = self._kept.pop(address, None)
        if kept is None or kept.pems != pems:
            if kept is not None:
                kept.retire()
            kept = _Kept(pems, _open_channel(address, self._cluster, pems, self._options))
        self._kept[address] = kept
        if len(self._kept) > self._config.channels_max:
            self._kept.popitem(last=False)[1].retire()
        kept.calls += 1
        try:
            yield kept.channel
        finally:
            kept.calls -= 1
            kept.close_if_done()

    async def _close(self) -> None:
        with trio.move_on_after(self._config.close_ms / 1000):
            for kept in self._kept.values():
                kept.retire()
            self._kept.clear()
            await self._threads.ended()


class _Kept:
    """A channel; closed when it is retired and its last call has ended."""

    def __init__(self, pems: Pems | None, channel: grpc.Channel) -> None:
        self.pems = pems
        self.channel = channel
        self.calls = 0
        self._retired = False

    def retire(self) -> None:
        self._retired = True
        self.close_if_done()

    def close_if_done(self) -> None:
        if self._retired and self.calls == 0:
            self.channel.close()


def _open_channel(
    address: str, cluster: str, pems: Pems | None, channel_options: Options
) -> grpc.Channel:
    if pems is None:
        return grpc.insecure_channel(address, channel_options)
    return grpc.secure_channel(
        address,
        grpc.ssl_channel_credentials(pems.authority, pems.key, pems.certificate),
        (*channel_options, ("grpc.ssl_target_name_override", target_name(cluster))),
    )


def _result(ended: Any, address: str, what: str, deadline_s: float) -> bytes:
    if ended.code() is not grpc.StatusCode.OK:
        raise _error(ended, address, what, deadline_s)
    answer: bytes = ended.result()
    return answer


def _error(ended: Any, address: str, what: str, deadline_s: float) -> FsError:
    details = ended.details() or ""
    if ended.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        details = f"no answer to {what} within {deadline_s:g} s"
    return faults.from_status(ended.code(), details, ended.trailing_metadata() or (), address)
