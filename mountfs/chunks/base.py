"""What anybody who keeps slices promises: the disk of this process, or chunkservers elsewhere."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from mountfs.chunks.needle import Buffer
from mountfs.types import SliceId, VolumeId


class Stored(NamedTuple):
    """What has become of a slice."""

    volume: VolumeId
    crc: int
    """crc32c of all its bytes."""


class ChunkStore(Protocol):
    """Slices in volumes, for tasks.

    A method is free of Trio until it says `leave` (see `mountfs.inline`), so a door may step it.
    """

    async def write(self, slice_id: SliceId, parts: Sequence[Buffer], copies: int = 0) -> Stored:
        """Store a slice, 1 to SLICE_BYTES_MAX bytes; so many copies of it, if there can be more
        than one.  0: as many as usual.

        It can be read from now on, and is durable after the next `sync`.  Raises NO_SPACE or
        DEVICE, and then nothing of it is stored.
        """
        ...

    async def read(self, volume: VolumeId, slice_id: SliceId, start: int, stop: int) -> memoryview:
        """Bytes `start` to `stop` of a slice, verified.  The memory is the caller's own.

        Raises CORRUPT when they are damaged or not there, DEVICE when the disk does not answer.
        """
        ...

    async def sync(self) -> None:
        """All that was written before the call is durable on return.

        Raises DEVICE when the disk lost some of it, and goes on to do so while those slices exist.
        """
        ...

    def space(self) -> tuple[int, int]:
        """(total, free) bytes of the disk; what is kept in reserve is not free."""
        ...

    def has_room(self, size_bytes: int) -> bool:
        """Whether so many more bytes fit, as far as is known without waiting."""
        ...
