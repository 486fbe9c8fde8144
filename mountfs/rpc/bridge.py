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
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator

import trio

from mountfs.errors import Fault, FsError
from mountfs.rpc.joined import LENGTH_BYTES, join


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


class Outbox:
    """Messages on their way to one stream: Trio puts them, the stream's thread takes all that wait.

    Iterated by grpcio: a gRPC message each time.
    """

    def __init__(self, *, bytes_max: int, messages_max: int, joined_bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._messages_max = messages_max
        self._joined_bytes_max = joined_bytes_max
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._ahead: bytes | None = None
        """Taken, and too large for the message before."""
        self._ended = False
        # Each of these has one writer, so they need no lock.
        self._put_bytes = 0
        self._put_messages = 0
        self.taken_bytes = 0
        self.taken_messages = 0
        self.joined_messages = 0

    @property
    def waiting_bytes(self) -> int:
        return self._put_bytes - self.taken_bytes

    @property
    def waiting_messages(self) -> int:
        return self._put_messages - self.taken_messages

    def put(self, body: bytes) -> bool:
        """False: it does not fit."""
        if (
            self.waiting_messages >= self._messages_max
            or self.waiting_bytes + len(body) > self._bytes_max
        ):
            return False
        self._put_messages += 1
        self._put_bytes += len(body)
        self._queue.put(body)
        return True

    def end(self) -> None:
        """What waits is sent first; or never, if the stream has ended."""
        self._queue.put(None)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._ended:
            raise StopIteration
        first = self._ahead
        if first is None:
            first = self._queue.get()
        if first is None:
            raise StopIteration
        self._ahead = None
        bodies = [first, *self._more(len(first) + LENGTH_BYTES)]
        self.taken_messages += len(bodies)
        self.taken_bytes += sum(map(len, bodies))
        self.joined_messages += 1
        return join(bodies)

    def _more(self, size: int) -> Iterator[bytes]:
        """What waits and fits."""
        while True:
            try:
                body = self._queue.get_nowait()
            except queue.Empty:
                return
            if body is None:
                self._ended = True
                return
            size += len(body) + LENGTH_BYTES
            if size > self._joined_bytes_max:
                self._ahead = body
                return
            yield body


class Lane:
    """What one stream brings into an `Inbox`."""

    def __init__(self, sender: int) -> None:
        self.sender = sender
        self.put_bytes = 0
        self.taken_bytes = 0
        self.stopped = False
        """Nothing more is taken in."""
        self.superseded = False
        """What has come, and is not delivered, is not: it would come after what is newer."""
        self._room = threading.Event()

    @property
    def waiting_bytes(self) -> int:
        return self.put_bytes - self.taken_bytes

    def stop(self) -> None:
        """From any thread."""
        self.stopped = True
        self._room.set()

    def supersede(self) -> None:
        self.superseded = True
        self.stop()

    def took(self, size: int) -> None:
        self.taken_bytes += size
        self._room.set()

    def wait_for_room(self, bytes_max: int) -> bool:
        """In the stream's thread.  False: it is over."""
        while self.waiting_bytes >= bytes_max and not self.stopped:
            self._room.clear()
            if self.waiting_bytes >= bytes_max and not self.stopped:  # it may be there meanwhile
                self._room.wait()
        return not self.stopped


class Inbox:
    """What has come for Trio from the threads of several streams, each in a `Lane`.

    However many messages wait, Trio is woken once, and `deliver` gets them sender by sender.  A
    stream's thread waits while too much of it is there, and so in the end does who sends.
    """

    def __init__(
        self, soon: Soon, deliver: Callable[[int, list[bytes]], None], bytes_max: int
    ) -> None:
        self._soon = soon
        self._deliver = deliver
        self._bytes_max = bytes_max
        self._arrived: deque[tuple[Lane, list[bytes], int]] = deque()
        self._woken = False
        self._held = False

    def put(self, lane: Lane, bodies: list[bytes]) -> bool:
        """In the stream's thread.  False: it is over."""
        if not lane.wait_for_room(self._bytes_max):
            return False
        size = sum(map(len, bodies)) + LENGTH_BYTES * len(bodies)
        lane.put_bytes += size
        self._arrived.append((lane, bodies, size))
        # In this order: what is appended after `_drain` has looked makes it come again.
        if not self._woken:
            self._woken = True
            self._soon(self._drain)
        return True

    def hold(self) -> None:
        """Deliver nothing until `resume`."""
        self._held = True

    def resume(self) -> None:
        self._held = False
        self._soon(self._drain)  # not from within whatever the owner does

    def _drain(self) -> None:
        self._woken = False
        if self._held:
            return
        by_sender: dict[int, list[bytes]] = {}
        taken: dict[Lane, int] = {}
        for _ in range(len(self._arrived)):  # not what comes meanwhile: others want to run too
            lane, bodies, size = self._arrived.popleft()
            if not lane.superseded:
                by_sender.setdefault(lane.sender, []).extend(bodies)
            taken[lane] = taken.get(lane, 0) + size
        for lane, size in taken.items():
            lane.took(size)
        for sender, bodies in by_sender.items():
            self._deliver(sender, bodies)


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
