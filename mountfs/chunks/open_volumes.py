"""The volumes that we write to, as the leader gives them out: `pool` says which, here it is asked.

Two mounts never write to the same volume.  A volume that one of its nodes fails for is given up
with all nodes of it: what is in it stays readable, and the leader sees to the node.
"""

import logging
from collections.abc import Awaitable, Callable, Collection, Mapping

import trio

from mountfs.chunks.pool import OPEN, OpenVolume, Pool
from mountfs.chunks.protocol import Allot, Return
from mountfs.errors import Fault, FsError
from mountfs.meta.ops.volumes import VolumeRecord

log = logging.getLogger(__name__)

Allotting = Callable[[Allot], Awaitable[tuple[VolumeRecord, ...]]]
Returning = Callable[[Return], Awaitable[None]]


class OpenVolumes:
    """`session`: who we are, when somebody asks."""

    def __init__(
        self,
        session: Callable[[], int],
        allot: Allotting,
        give_back: Returning,
        *,
        count: int = OPEN,
    ) -> None:
        self._session = session
        self._allot = allot
        self._give_back = give_back
        self._pool = Pool(count)
        self._asking = trio.Lock()
        self._answers = 0
        """Of the leader."""
        self._refused: dict[int, tuple[int, FsError]] = {}
        """By copies: what it said last instead of giving volumes, after how many answers."""

    async def one(self, copies: int = 0) -> OpenVolume:
        """The one with least to do; `copies` 0: as many as the cluster gives.  Raises what `allot`
        does: NO_SPACE, UNAVAILABLE, READ_ONLY.
        """
        while True:
            found = self._pool.one(copies)
            if found is not None:
                return found
            answers = self._answers
            async with self._asking:
                if self._pool.one(copies) is not None:
                    continue
                number, refusal = self._refused.get(copies, (0, None))
                if refusal is not None and number > answers:  # it was said while we waited
                    raise FsError(refusal.fault, refusal.detail)
                await self._ask(copies)

    async def _ask(self, copies: int) -> None:
        asked = self._pool.wanted(self._session(), copies, trio.current_time())
        try:
            records = await self._allot(asked)
            if asked.session != self._session():
                raise FsError(Fault.UNAVAILABLE, "the session has ended meanwhile: ask again")
            self._pool.got(asked, records)
        except FsError as error:
            self._refused[copies] = (self._answers + 1, error)
            raise
        finally:
            self._answers += 1
        self._refused.pop(copies, None)

    async def failed(self, volume: OpenVolume, nodes: Mapping[int, FsError]) -> None:
        """Some nodes did not take a slice: no more slices for it."""
        for error in nodes.values():
            if error.fault is not Fault.VOLUME_CLOSED:
                log.warning("volume %d: a slice was not taken: %s", volume.record.number, error)
        back = self._pool.failed(volume, nodes, self._session(), trio.current_time())
        if back is not None:
            await self._give_back(back)

    async def give_back(self) -> None:
        """We write no more."""
        back = self._pool.clear(self._session())
        if back is not None:
            await self._give_back(back)

    def forget(self) -> None:
        """The session that had them has ended: they are not ours any more."""
        self._pool.clear(self._session())
        self._refused.clear()

    @property
    def avoided(self) -> Collection[int]:
        return self._pool.avoided

    @property
    def opened(self) -> int:
        """Volumes since the beginning."""
        return self._pool.opened
