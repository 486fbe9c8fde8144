"""The volumes that we write to: a few that the leader has opened for us, others when those fail.

Two mounts never write to the same volume.  A volume that one of its nodes fails for is given up
with all nodes of it: what is in it stays readable, and the leader sees to the node.
"""

import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Final

import trio

from mountfs.chunks.protocol import Allot, Return
from mountfs.errors import Fault, FsError
from mountfs.meta.ops.volumes import VolumeRecord
from mountfs.types import VolumeId

log = logging.getLogger(__name__)

OPEN: Final = 2
"""Volumes at a time: their nodes share the work."""
AVOID_S: Final = 60.0
"""A node that did not take a slice gets no new volume of ours for so long."""

Allotting = Callable[[Allot], Awaitable[tuple[VolumeRecord, ...]]]
Returning = Callable[[Return], Awaitable[None]]


class OpenVolume:
    """One that takes our slices."""

    def __init__(self, record: VolumeRecord) -> None:
        self.record = record
        self.writing = 0
        """Slices on their way."""
        self.taken = 0
        """Slices that all its replicas have."""


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
        self._count = count
        self._open: dict[int, list[OpenVolume]] = {}
        """By how many copies were asked for."""
        self._allotting = trio.Lock()
        self._answers = 0
        """Of the leader."""
        self._refused: dict[int, tuple[int, FsError]] = {}
        """By copies: what it says instead of giving volumes, and how many answers there were
        before.
        """
        self._failed: dict[VolumeId, int] = {}
        """Volume -> epoch; the leader is to be told."""
        self._avoided: dict[int, float] = {}
        """Node -> until when."""
        self.opened = 0
        """Volumes since the beginning."""

    async def one(self, copies: int = 0) -> OpenVolume:
        """The one with least to do; `copies` 0: as many as the cluster gives.  Raises what `allot`
        does: NO_SPACE, UNAVAILABLE, READ_ONLY.
        """
        while True:
            found = self._open.get(copies)
            if found:
                return min(found, key=lambda volume: volume.writing)
            answers = self._answers
            async with self._allotting:
                if self._open.get(copies):
                    continue
                number, refusal = self._refused.get(copies, (-1, None))
                if refusal is not None and number >= answers:  # while we waited
                    raise FsError(refusal.fault, refusal.detail)
                await self._more(copies)

    async def _more(self, copies: int) -> None:
        now = trio.current_time()
        self._avoided = {node: until for node, until in self._avoided.items() if until > now}
        failed = dict(self._failed)
        asked = Allot(
            self._session(),
            copies,
            self._count,
            tuple(failed.items()),
            tuple(self._avoided),
            self._held(),
        )
        try:
            records = await self._allot(asked)
            if not records:
                raise FsError(Fault.UNAVAILABLE, "the leader gives no volume to write to")
        except FsError as error:
            self._refused[copies] = (self._answers, error)
            raise
        finally:
            self._answers += 1
        self._refused.pop(copies, None)
        for volume, epoch in failed.items():
            if self._failed.get(volume) == epoch:
                del self._failed[volume]
        self._open[copies] = [OpenVolume(record) for record in records]
        self.opened += len(records)

    def failed(self, volume: OpenVolume, nodes: Mapping[int, FsError]) -> None:
        """Some nodes did not take a slice: no more slices for it, nor for others that they have."""
        record = volume.record
        bad = {node for node in nodes if nodes[node].fault is not Fault.VOLUME_CLOSED}
        for node in bad:
            log.warning("volume %d: a slice was not taken: %s", record.number, nodes[node])
            self._avoided[node] = trio.current_time() + AVOID_S
        if self._remove(volume):
            self._failed[record.number] = record.epoch
        for found in self._open.values():
            found[:] = [other for other in found if bad.isdisjoint(other.record.replicas)]

    async def closed(self, volume: OpenVolume) -> None:
        """A node takes no more for this volume, which is well: it is full, or the node has begun
        anew.
        """
        if not self._remove(volume):
            return
        record = volume.record
        # One that was written to before and takes nothing more would be given out for ever.
        full = (record.number,) if record.epoch > 1 and not volume.taken else ()
        await self._give_back(Return(self._session(), ((record.number, record.epoch),), full))

    def _remove(self, volume: OpenVolume) -> bool:
        for found in self._open.values():
            if volume in found:
                found.remove(volume)
                return True
        return False

    def _held(self) -> tuple[tuple[VolumeId, int], ...]:
        return tuple(
            (volume.record.number, volume.record.epoch)
            for found in self._open.values()
            for volume in found
        )

    async def give_back(self) -> None:
        """We write no more."""
        given = self._held()
        self._open.clear()
        if given:
            await self._give_back(Return(self._session(), given))

    @property
    def avoided(self) -> Collection[int]:
        return self._avoided
