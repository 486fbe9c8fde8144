"""The seam between Trio and the threads of grpcio.

A thread gives Trio something with `run_sync_soon`; Trio gives a thread something through a queue
that the thread waits on.  The thread may wait, Trio never does.
"""

import contextlib
import functools
import math
import queue
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Iterator

import trio

from mountfs.errors import Fault, FsError


class Soon:
    """`run_sync_soon` of the Trio that made it.  When that has ended there is nobody to tell."""

    def __init__(self) -> None:
        self._token = trio.lowlevel.current_trio_token()

    def __call__(self, call: Callable[[], object]) -> bool:
        """False: Trio has ended."""
        try:
            self._token.run_sync_soon(call)
        except trio.RunFinishedError:
            return False
        return True


class Threads:
    """The threads that grpcio has shown us, so that their end can be waited for."""

    def __init__(self) -> None:
        self._seen: weakref.WeakSet[threading.Thread] = weakref.WeakSet()

    def see(self) -> None:
        """In such a thread, or in any other."""
        self._seen.add(threading.current_thread())

    async def ended(self) -> None:
        me = threading.current_thread()
        # A thread tells nobody that it has ended.
        while any(one.is_alive() and one is not me for one in list(self._seen)):  # noqa: ASYNC110
            await trio.sleep(0.002)


END = b""
"""The last message of a stream of pieces, none of which is empty.  Without it the stream was cut:
gRPC does not tell a receiver reliably whether a sender has finished or gone.
"""


class Feed:
    """Pieces from Trio to the thread that sends them; a few may be under way.

    Iterated by grpcio.  A piece is done when the next one is asked for.
    """

    def __init__(self, soon: Soon, in_flight_max: int) -> None:
        self._soon = soon
        self._room = trio.Semaphore(in_flight_max)
        self._queue: queue.SimpleQueue[bytes | FsError | None] = queue.SimpleQueue()
        self._sending = False

    async def put(self, piece: bytes) -> None:
        assert piece, "an empty piece is the end"
        await self._room.acquire()
        self._queue.put(piece)

    def finish(self) -> None:
        self._queue.put(END)
        self._queue.put(None)

    def stop(self, error: FsError | None = None) -> None:
        """There will be no more, and this is no good end.  The thread raises `error`."""
        self._queue.put(error)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._sending:
            self._sending = False
            self._soon(self._room.release)
        piece = self._queue.get()
        if piece is None:
            raise StopIteration
        if isinstance(piece, FsError):
            raise piece
        self._sending = piece != END
        return piece


class Pieces:
    """Pieces from the thread that receives them to Trio, where they are iterated."""

    def __init__(self, soon: Soon, in_flight_max: int) -> None:
        self._soon = soon
        self._room = threading.Semaphore(in_flight_max)
        self._stopped = False
        self._put: trio.MemorySendChannel[bytes | FsError]
        self._get: trio.MemoryReceiveChannel[bytes | FsError]
        # `_room` is the bound.
        self._put, self._get = trio.open_memory_channel(math.inf)

    def pump(self, received: Iterator[bytes]) -> None:
        """In a thread, until the end."""
        for piece in received:
            self._room.acquire()
            if self._stopped:
                return
            self._soon(functools.partial(self._hand, piece))
            if piece == END:
                return
        self.fail(FsError(Fault.INTERRUPTED, "the stream ended before it was complete"))

    def fail(self, error: FsError) -> None:
        """From any thread."""
        self._soon(functools.partial(self._hand, error))

    def stop(self) -> None:
        """From any thread: nobody iterates any more."""
        self._stopped = True
        self._room.release()

    def _hand(self, piece: bytes | FsError) -> None:
        with contextlib.suppress(trio.BrokenResourceError):  # nobody iterates any more
            self._put.send_nowait(piece)

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        with self._get:
            while (piece := await self._get.receive()) != END:
                if isinstance(piece, FsError):
                    raise piece
                self._room.release()
                yield piece
