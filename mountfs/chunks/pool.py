"""Which volumes we write to, decided without I/O: those that the leader has opened for us, others
when nodes fail them, and which nodes we had better do without for a while.

The shell (`open_volumes`) and the simulation ask the leader as this says.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Final

from mountfs.chunks.protocol import Allot, Return
from mountfs.errors import Fault, FsError
from mountfs.meta.ops.volumes import VolumeRecord
from mountfs.types import VolumeId

OPEN: Final = 2
"""Volumes at a time: their nodes share the work."""
AVOID_S: Final = 60.0
"""A node that did not take a slice gets no new volume of ours for so long."""


class OpenVolume:
    """One that takes our slices."""

    def __init__(self, record: VolumeRecord) -> None:
        self.record = record
        self.writing = 0
        """Slices on their way."""
        self.taken = 0
        """Slices that all its replicas have."""


class Pool:
    """Times are seconds of a clock that does not go back."""

    def __init__(self, count: int = OPEN, avoid_s: float = AVOID_S) -> None:
        self._count = count
        self._avoid_s = avoid_s
        self._open: dict[int, list[OpenVolume]] = {}
        """By how many copies were asked for."""
        self._failed: dict[VolumeId, int] = {}
        """Volume -> epoch; the leader is to be told."""
        self._avoided: dict[int, float] = {}
        """Node -> until when."""
        self.opened = 0
        """Volumes since the beginning."""

    def one(self, copies: int) -> OpenVolume | None:
        """The one with least to do; None: more are to be asked for."""
        found = self._open.get(copies)
        return min(found, key=lambda volume: volume.writing) if found else None

    def wanted(self, session: int, copies: int, now: float) -> Allot:
        """How to ask for more."""
        self._avoided = {node: until for node, until in self._avoided.items() if until > now}
        held = (volume.record for found in self._open.values() for volume in found)
        return Allot(
            session,
            copies,
            self._count,
            tuple(self._failed.items()),
            tuple(self._avoided),
            tuple((record.number, record.epoch) for record in held),
        )

    def got(self, asked: Allot, records: Iterable[VolumeRecord]) -> None:
        """The leader's answer.  Raises UNAVAILABLE if that is none."""
        volumes = [OpenVolume(record) for record in records]
        if not volumes:
            raise FsError(Fault.UNAVAILABLE, "the leader gives no volume to write to")
        for volume, epoch in asked.failed:
            if self._failed.get(volume) == epoch:
                del self._failed[volume]
        self._open[asked.copies] = volumes
        self.opened += len(volumes)

    def failed(
        self, volume: OpenVolume, nodes: Mapping[int, FsError], session: int, now: float
    ) -> Return | None:
        """Some nodes did not take a slice: no more slices for it, nor for others that they have.

        Returns what the leader is to be told at once, if all is well: the volume is full, or its
        nodes have begun anew.
        """
        ill = [node for node, error in nodes.items() if error.fault is not Fault.VOLUME_CLOSED]
        self._avoided.update(dict.fromkeys(ill, now + self._avoid_s))
        for found in self._open.values():
            found[:] = [one for one in found if one is volume or not _has(one, ill)]
        if not self._remove(volume):
            return None
        record = volume.record
        if ill:
            self._failed[record.number] = record.epoch
            return None
        # One that has been used before and takes nothing more would be given out for ever.
        full = (record.number,) if record.epoch > 1 and not volume.taken else ()
        return Return(session, ((record.number, record.epoch),), full)

    def clear(self, session: int) -> Return | None:
        """We write no more.  Returns what the leader is to be told."""
        volumes = [volume.record for found in self._open.values() for volume in found]
        self._open.clear()
        given = tuple((record.number, record.epoch) for record in volumes)
        return Return(session, given) if given else None

    @property
    def avoided(self) -> Collection[int]:
        return self._avoided

    def _remove(self, volume: OpenVolume) -> bool:
        for found in self._open.values():
            if volume in found:
                found.remove(volume)
                return True
        return False


def _has(volume: OpenVolume, nodes: Collection[int]) -> bool:
    """Whether any of the nodes has a copy."""
    return not set(nodes).isdisjoint(volume.record.replicas)
