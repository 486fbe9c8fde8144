"""/dev/fuse as a Trio channel: requests in, replies out.

A request is stepped right where it was read (`mountfs.inline`); only one that has to wait becomes a
task.  The device is drained until it has nothing more, and after the last request it is polled for
a short while before the process sleeps: on a machine with two processors the wake-up would cost
more than the request.  An idle mount sleeps.
"""

import errno
import logging
import os
import signal
from collections.abc import Callable, Collection, Coroutine, Sequence
from pathlib import Path
from time import perf_counter, perf_counter_ns
from typing import Any, Final

import trio

from mountfs.buffers import Buffers
from mountfs.errors import Fault, FsError
from mountfs.fuse.wire import IN_HEADER, Opcode, reply_error
from mountfs.inline import PAUSED, WAITING, attempt, finish

log = logging.getLogger(__name__)

Buffer = bytes | bytearray | memoryview
Reply = Buffer | Sequence[Buffer] | None
"""The bytes of an answer, in one or several parts; None where the kernel expects none."""

SMALL_BYTES: Final = 8_192
"""Requests up to this size are copied out of the buffer, which is free for the next one at once."""
YIELD_S: Final = 0.001
"""Under constant load, other tasks get a turn so often."""
TASKS_MAX: Final = 256
"""Requests with much data that wait at the same time; the kernel keeps the rest."""
SMALL_TASKS_MAX: Final = 8_192
"""And those without.  Blocking locks do not count: they may wait for ever."""
KILL_LOOK_S: Final = 0.1
"""How often a caller that got a signal is looked at."""
SWEEP_S: Final = 0.5
"""And one that closes a file."""
LOCKS_MAX: Final = 4_096
_SIGKILL_PENDING: Final = 1 << (signal.SIGKILL - 1)
_PF_EXITING: Final = 0x4  # include/linux/sched.h
_FLAGS, _EXIT_CODE = 6, 49
"""Fields of /proc/PID/stat behind the name of the program (proc(5): 9 and 52)."""
_GOES_ON: Final = frozenset(
    (
        Opcode.COPY_FILE_RANGE,
        Opcode.COPY_FILE_RANGE_64,
        Opcode.FALLOCATE,
        Opcode.FLUSH,
        Opcode.FSYNC,
        Opcode.FSYNCDIR,
        Opcode.RELEASE,
        Opcode.RELEASEDIR,
        Opcode.SETATTR,
        Opcode.WRITE,
    )
)
"""What is not given up when its caller dies: it has bytes, or gives something back."""
_HOLDS_ANY: Final = frozenset((Opcode.RENAME, Opcode.RENAME2, Opcode.RMDIR))
"""They hold two directories, of which only one is in the header."""
_HOLDS_BYTES: Final = frozenset(
    (
        Opcode.READ, Opcode.WRITE, Opcode.SETATTR, Opcode.FALLOCATE, Opcode.OPEN,
        Opcode.COPY_FILE_RANGE, Opcode.COPY_FILE_RANGE_64,
    )
)  # fmt: skip
_MISSES_MAX: Final = 16
"""So many polls in vain, and the device is not polled any more until requests come thick again."""


class Request:
    """What every handler gets: the header's fields and the body."""

    __slots__ = (
        "body", "gid", "kept", "moved", "nodeid", "opcode", "pid", "spent", "uid", "unique",
    )  # fmt: skip

    def __init__(
        self, opcode: int, unique: int, nodeid: int, uid: int, gid: int, pid: int, body: memoryview
    ) -> None:
        self.opcode = opcode
        self.unique = unique
        self.nodeid = nodeid
        self.uid = uid
        self.gid = gid
        self.pid = pid
        self.body = body
        self.kept = False
        """The handler has kept the memory of the body."""
        self.moved = False
        """The buffer of the body is not that of the channel any more."""
        self.spent: object = None
        """A buffer that nobody needs any more once the answer is sent."""


Handler = Callable[[Request], Coroutine[Any, Any, Reply]]


class Counts:
    """Statistics of one opcode."""

    __slots__ = ("calls", "errors", "slowest_ns", "total_ns")

    def __init__(self) -> None:
        self.calls = 0
        self.errors = 0
        self.total_ns = 0
        self.slowest_ns = 0


class Channel:
    """`buffers` must hold the largest request.  `poll_s`: how long to poll before sleeping; 0:
    never.
    """

    def __init__(
        self, fd: int, handlers: dict[int, Handler], *, buffers: Buffers, poll_s: float
    ) -> None:
        self._fd = fd
        self._handlers = handlers
        self._buffers = buffers
        self._buffer = memoryview(buffers.get())
        self._poll_s = poll_s
        self._misses = 0
        self._waiting: dict[int, tuple[Request, trio.CancelScope]] = {}
        """Requests that have become tasks."""
        self._tasks = self._small_tasks = 0
        self._sweeps = False
        self._locks = 0
        self._task_done = trio.Event()
        self._interrupted: set[int] = set()
        """Those of them whose callers got a signal."""
        self._paused: list[tuple[Request, Coroutine[Any, Any, Reply], int, int]] = []
        """Requests that share their work with others that are there already."""
        self._nursery: trio.Nursery
        self.counts: dict[int, Counts] = {}
        self.bugs = 0
        """Requests that ended in an exception that should not be: answered EIO, and logged."""

    async def serve(self) -> None:
        """Answer requests until the filesystem is unmounted."""
        async with trio.open_nursery() as self._nursery:
            while await self._drain():
                await trio.lowlevel.wait_readable(self._fd)
            # What still waits (for locks) has nobody left to answer to.
            self._nursery.cancel_scope.cancel()

    def asking(self) -> set[int]:
        """Requests that are not answered yet, but for those that wait for a lock."""
        found = {request.unique for request, *_ in self._paused}
        for request, _ in self._waiting.values():
            if request.opcode != Opcode.SETLKW:
                found.add(request.unique)
        return found

    def holds_names(self, inos: Collection[int]) -> set[int]:
        """Requests that wait for an answer and may hold one of these directories: also a listing
        that asks for the attributes, or one that makes a file and asks for an ACL.
        """
        return {
            unique
            for unique, (request, _) in self._waiting.items()
            if request.nodeid in inos or request.opcode in _HOLDS_ANY
        }

    def holds_bytes(self, inos: Collection[int]) -> set[int]:
        """Requests that wait for an answer and may hold pages of one of these files."""
        return {
            unique
            for unique, (request, _) in self._waiting.items()
            if request.opcode in _HOLDS_BYTES and request.nodeid in inos
        }

    def write(self, reply: Reply) -> None:
        """Send an answer, or a notification."""
        if reply is None:
            return
        try:
            if isinstance(reply, (bytes, bytearray, memoryview)):
                os.write(self._fd, reply)
            else:
                os.writev(self._fd, reply)
        except OSError as error:
            # ENOENT: nobody waits for it any more.  ENODEV: unmounted.
            if error.errno not in (errno.ENOENT, errno.ENODEV):
                raise

    async def _drain(self) -> bool:
        """Handle all requests that are there and that come soon.  False: unmounted."""
        fd = self._fd
        now = perf_counter()
        last_yield = last_request = now
        handled = 0
        while True:
            if self._tasks >= TASKS_MAX or self._small_tasks >= SMALL_TASKS_MAX:
                self._task_done = trio.Event()
                await self._task_done.wait()
            try:
                size = os.readv(fd, (self._buffer,))
            except BlockingIOError:
                now = perf_counter()
                if self._paused:
                    self._resume()
                    if now - last_yield > YIELD_S:
                        await trio.lowlevel.checkpoint()
                        last_yield = perf_counter()
                    last_request = now
                    continue
                if now - last_request >= self._poll_s or self._misses >= _MISSES_MAX > handled:
                    self._misses = 0 if handled > 1 else self._misses + 1
                    return True
                if self._tasks or self._small_tasks:  # their threads report through the loop
                    await trio.lowlevel.checkpoint()
                    last_yield = perf_counter()
                continue
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return False
                if error.errno in (errno.ENOENT, errno.EINTR, errno.EAGAIN):
                    continue  # that request was withdrawn
                raise
            self._handle(size)
            handled += 1
            last_request = perf_counter()
            if last_request - last_yield > YIELD_S:
                await trio.lowlevel.checkpoint()
                last_yield = perf_counter()

    def _handle(self, size: int) -> None:
        begun = perf_counter_ns()
        data = (
            memoryview(bytes(self._buffer[:size])) if size <= SMALL_BYTES else self._buffer[:size]
        )
        _, opcode, unique, nodeid, uid, gid, pid, _, _ = IN_HEADER.unpack_from(data)
        handler = self._handlers.get(opcode)
        if handler is None:
            self.write(reply_error(unique, errno.ENOSYS))
            return
        request = Request(opcode, unique, nodeid, uid, gid, pid, data[IN_HEADER.size :])
        self._step(request, handler(request), begun, size)

    def _resume(self) -> None:
        paused, self._paused = self._paused, []
        for request, coroutine, begun, size in paused:
            self._step(request, coroutine, begun, size)

    def _step(
        self, request: Request, coroutine: Coroutine[Any, Any, Reply], begun: int, size: int
    ) -> None:
        try:
            reply = attempt(coroutine)
        except Exception as error:
            self._failed(request, error)
        else:
            if reply is WAITING:
                self._start(request, coroutine, begun, size)
                return
            if reply is PAUSED:
                if size > SMALL_BYTES:
                    self._leave_buffer(request)
                self._paused.append((request, coroutine, begun, size))
                return
            self.write(reply)  # type: ignore[arg-type]
            if self._interrupted:
                self._interrupted.discard(request.unique)
            if request.spent is not None:
                self._buffers.put(request.spent)
            if request.kept:
                self._leave_buffer(request)
        self._count(request.opcode, begun)

    def _start(
        self, request: Request, coroutine: Coroutine[Any, Any, Reply], begun: int, size: int
    ) -> None:
        small = size <= SMALL_BYTES
        if not small:
            self._leave_buffer(request)
        if request.opcode == Opcode.SETLKW:
            if self._locks >= LOCKS_MAX:
                coroutine.close()
                self.write(reply_error(request.unique, errno.ENOLCK))
                return
            self._locks += 1
        elif small:
            self._small_tasks += 1
        else:
            self._tasks += 1
        if request.opcode == Opcode.FLUSH and not self._sweeps:
            self._sweeps = True
            self._nursery.start_soon(self._sweep)
        scope = trio.CancelScope(shield=request.opcode != Opcode.SETLKW)
        # Now, and not when the task begins: it may be interrupted before.
        self._waiting[request.unique] = (request, scope)
        self._nursery.start_soon(self._finish, request, coroutine, begun, small, scope)
        if request.unique in self._interrupted:
            self.interrupt(request.unique)

    async def _finish(
        self,
        request: Request,
        coroutine: Coroutine[Any, Any, Reply],
        begun: int,
        small: bool,
        scope: trio.CancelScope,
    ) -> None:
        waits_for_lock = request.opcode == Opcode.SETLKW
        try:
            with scope:
                self.write(await finish(coroutine))
                self._buffers.put(request.spent)
                if not request.kept:
                    self._buffers.put(request.body.obj)
            if scope.cancelled_caught:
                self.write(reply_error(request.unique, errno.EINTR))
        except Exception as error:
            self._failed(request, error)
        finally:
            del self._waiting[request.unique]
            if waits_for_lock:
                self._locks -= 1
            elif small:
                self._small_tasks -= 1
                self._task_done.set()
            else:
                self._tasks -= 1
                self._task_done.set()
            self._count(request.opcode, begun)

    def _leave_buffer(self, request: Request) -> None:
        """The request needs its bytes for longer: go on with another buffer."""
        if not request.moved:
            request.moved = True
            self._buffer = memoryview(self._buffers.get())

    def interrupt(self, unique: int) -> None:
        """The caller of a request got a signal.  Waiting for a lock ends with any; all else only
        when the caller is to die, or programs would fail that are told of their children's end.
        """
        self._interrupted.discard(unique)
        found = self._waiting.get(unique)
        if found is None:
            if any(request.unique == unique for request, *_ in self._paused):
                self._interrupted.add(unique)
            return
        request, scope = found
        if request.opcode == Opcode.SETLKW:
            scope.cancel()
        else:
            self._nursery.start_soon(self._end_with_caller, request, scope)

    async def _end_with_caller(self, request: Request, scope: trio.CancelScope) -> None:
        """The kernel tells of the first signal only, and lets nobody die who waits for an answer:
        so who got one is looked at until there is an answer.
        """
        while not _is_dying(request.pid):
            await trio.sleep(KILL_LOOK_S)
            if request.unique not in self._waiting:
                return
        if request.opcode in _GOES_ON:
            self.write(reply_error(request.unique, errno.EINTR))
        else:
            scope.cancel()

    async def _sweep(self) -> None:
        """A process that was killed closes its files, and gets no more signals: nobody tells us.
        (One that ends by itself waits until what it has written is where others see it.)
        """
        told: set[int] = set()
        while True:
            await trio.sleep(SWEEP_S)
            flushes = [one for one, _ in self._waiting.values() if one.opcode == Opcode.FLUSH]
            told &= {one.unique for one in flushes}
            for request in flushes:
                if request.unique not in told and _is_dying(request.pid):
                    told.add(request.unique)
                    self.write(reply_error(request.unique, errno.EINTR))
            if not flushes:
                self._sweeps = False
                return

    def _failed(self, request: Request, error: Exception) -> None:
        number = errno.EIO
        if isinstance(error, FsError):
            number = error.fault.value.errno
            if error.fault in (Fault.CORRUPT, Fault.DEVICE):
                log.error("inode %d, %s: %s", request.nodeid, _name(request.opcode), error)
        else:
            self.bugs += 1
            log.error(
                "bug in %s of inode %d: please report it",
                _name(request.opcode),
                request.nodeid,
                exc_info=error,
            )
        counts = self.counts.setdefault(request.opcode, Counts())
        counts.errors += 1
        self.write(reply_error(request.unique, number))

    def _count(self, opcode: int, begun: int) -> None:
        counts = self.counts.get(opcode)
        if counts is None:
            counts = self.counts[opcode] = Counts()
        took = perf_counter_ns() - begun
        counts.calls += 1
        counts.total_ns += took
        if took > counts.slowest_ns:
            counts.slowest_ns = took


def _is_dying(thread: int) -> bool:
    """Whether a signal ends a thread: the kernel marks all threads of its process with a SIGKILL
    first; later they have it as their exit code.  0: one in a namespace that we do not see.
    """
    if not thread:
        return False
    try:
        status = Path(f"/proc/{thread}/status").read_text("ascii", "replace")
        stat = Path(f"/proc/{thread}/stat").read_bytes().rpartition(b") ")[2].split()
    except OSError:
        return True  # gone
    if int(stat[_FLAGS]) & _PF_EXITING:
        return int(stat[_EXIT_CODE]) & 0x7F != 0
    return any(
        int(line.split()[1], 16) & _SIGKILL_PENDING
        for line in status.splitlines()
        if line.startswith(("SigPnd:", "ShdPnd:"))
    )


def _name(opcode: int) -> str:
    try:
        return Opcode(opcode).name.lower()
    except ValueError:
        return f"request {opcode}"
