"""The role of a node that keeps slices: its volumes, and the work behind the requests."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import trio
import trio.lowlevel

from mountfs.chunks.client import LocalChunks
from mountfs.chunks.config import ChunkConfig
from mountfs.chunks.disk import DiskStore
from mountfs.chunks.index_store import open_index
from mountfs.chunks.protocol import first_volume_of
from mountfs.chunks.reporter import Gathered
from mountfs.chunks.service import ChunkService
from mountfs.cli.trust import Trust
from mountfs.errors import Fault, FsError
from mountfs.meta.reports import DiskReport, VolumeReport
from mountfs.vfs.home import Home

log = logging.getLogger(__name__)

METHODS: Final = 100
"""Those from here on are of this role."""
COMPACT_S: Final = 5.0


class Volumes:
    """The volumes of this node, and the work behind the requests."""

    def __init__(self, disk: DiskStore, may_delete: Callable[[Any], None]) -> None:
        self.disk = disk
        self.chunks = LocalChunks(disk)
        self.service = ChunkService(disk, self.chunks, may_delete)
        self._gatherers = trio.CapacityLimiter(1)

    async def run(self) -> None:
        while True:
            try:
                while await self.chunks.compact_one():
                    await trio.lowlevel.checkpoint()
            except FsError as error:
                log.error("compacting volumes: %s", error)
            await trio.sleep(COMPACT_S)

    async def gather(self) -> Gathered:
        """What the leader is to be told.  A disk that hangs holds up nothing else."""
        return await trio.to_thread.run_sync(
            self._gathered, limiter=self._gatherers, abandon_on_cancel=True
        )

    def _gathered(self) -> Gathered:
        total, free = self.disk.space()
        volumes = [
            VolumeReport(
                found.volume,
                found.total_bytes,
                found.living_bytes,
                found.needles,
                trouble=found.failed,
            )
            for found in self.disk.volumes()
        ]
        disk = DiskReport(str(self.disk.directory.parent), "", total, free, len(volumes))
        return Gathered((disk,), volumes)


@contextlib.contextmanager
def open_volumes(home: Home, trust: Trust, data: tuple[Path, ...] = ()) -> Iterator[Volumes]:
    """`data`: directories for volumes beside the home."""
    if data:
        raise FsError(Fault.NOT_IMPLEMENTED, "volumes are kept in the home, and nowhere else")
    index, told = open_index(home.chunks)
    try:
        if told:
            log.warning("%s", told)
        config = ChunkConfig(first_volume=first_volume_of(home.format.node))
        disk = DiskStore(home.chunks, index, home=home.id, config=config)
        try:
            yield Volumes(disk, trust.require_node)
        finally:
            disk.close()
    finally:
        index.close()
