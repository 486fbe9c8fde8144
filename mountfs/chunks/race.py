"""One read, at one replica or several: the first good answer wins, the others are cancelled, also
where they are.
"""

from collections.abc import Awaitable, Callable
from typing import Final

import trio

from mountfs.chunks.hedge import Read
from mountfs.errors import Fault, FsError

Fetch = Callable[[int], Awaitable[memoryview]]

_SAID: Final = (Fault.UNAVAILABLE, Fault.CORRUPT, Fault.DEVICE)
"""What may have become of a read that nobody answers, the most hopeful first."""


class Race:
    """`fetch` asks one node (FsError)."""

    def __init__(self, read: Read, fetch: Fetch) -> None:
        self._read = read
        self._fetch = fetch
        self._errors: list[FsError] = []
        self._changed = trio.Event()
        self._running = 0
        self._data: memoryview | None = None

    async def run(self) -> memoryview:
        """Raises UNAVAILABLE when somebody who may have it does not answer, else CORRUPT, or DEVICE
        if nobody has said that.
        """
        read = self._read
        try:
            if read.due is None:
                await self._ask(read.first)
            else:
                await self._ask_several()
        finally:
            if self._data is None:
                read.given_up(now_ms())
        if self._data is None:
            raise self._failure()
        return self._data

    async def _ask_several(self) -> None:
        read = self._read
        async with trio.open_nursery() as nursery:
            self._start(nursery, read.first)
            while self._running and self._data is None:
                due = read.due
                with trio.move_on_at(due / 1000 if due is not None else float("inf")):
                    await self._changed.wait()
                    self._changed = trio.Event()
                if self._data is None and due is not None and due <= now_ms():
                    more = read.hedge(now_ms())
                    if more is not None:
                        self._start(nursery, more)
            nursery.cancel_scope.cancel()

    def _start(self, nursery: trio.Nursery, node: int) -> None:
        self._running += 1
        nursery.start_soon(self._ask_counted, node)

    async def _ask_counted(self, node: int) -> None:
        try:
            await self._ask(node)
        finally:
            self._running -= 1
            self._changed.set()

    async def _ask(self, first: int) -> None:
        """Ask one node, and if that fails the next one."""
        node: int | None = first
        while node is not None:
            try:
                data = await self._fetch(node)
            except FsError as error:
                self._errors.append(error)
                node = self._read.failed(node, now_ms())
                self._changed.set()  # another one may be due at another time
            else:
                if self._data is None:
                    self._read.answered(node, now_ms())
                    self._data = data
                return

    def _failure(self) -> FsError:
        for fault in _SAID:
            for error in self._errors:
                if error.fault is fault:
                    return error
        return FsError(Fault.DEVICE, str(self._errors[0]))


def now_ms() -> float:
    return trio.current_time() * 1000
