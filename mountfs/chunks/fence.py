"""Which leader a chunkserver obeys: the one of the latest term that it has heard of.

The term is on disk before the first order of it is obeyed; and such an order waits until what was
begun for earlier leaders is done, so none of these does anything after it.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import trio

from mountfs.errors import Fault, FsError

EARLIER_S: Final = 30.0
"""How long a later leader waits for what an earlier one has ordered."""


class Fence:
    """`latest`: the term that was kept last; `keep` does so, in a thread."""

    def __init__(self, latest: int, keep: Callable[[int], None]) -> None:
        self.latest = latest
        """Orders of an earlier term are refused.  Only grows.  Invariant: _kept <= latest."""
        self._kept = latest
        self._keep = keep
        self._keeping = trio.Lock()
        self._under_way: dict[int, int] = {}
        """Term -> how many orders of it."""
        self._ended = trio.lowlevel.ParkingLot()

    async def hear(self, term: int) -> None:
        """Raises NOT_LEADER for an order of an earlier term, and what `keep` raises."""
        self._require_latest(term)
        self.latest = term
        if self._kept < term:
            async with self._keeping:
                if self._kept < term:
                    await trio.to_thread.run_sync(self._keep, term)
                    self._kept = max(self._kept, term)
            self._require_latest(term)

    @asynccontextmanager
    async def order(self, term: int) -> AsyncIterator[None]:
        """Raises as `hear`, and BUSY when what an earlier leader has ordered does not end."""
        await self.hear(term)
        with trio.move_on_after(EARLIER_S) as waiting:
            while any(other < term for other in self._under_way):
                await self._ended.park()
        if waiting.cancelled_caught:
            raise FsError(Fault.BUSY, "what an earlier leader has ordered is still being done")
        self._require_latest(term)
        self._under_way[term] = self._under_way.get(term, 0) + 1  # no await since the check
        try:
            yield
        finally:
            self._under_way[term] -= 1
            if not self._under_way[term]:
                del self._under_way[term]
                self._ended.unpark_all()

    def _require_latest(self, term: int) -> None:
        if term < self.latest:
            what = f"the order is of term {term}, but a leader of term {self.latest} was heard"
            raise FsError(Fault.NOT_LEADER, what)
