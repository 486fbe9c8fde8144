"""The role of a node that keeps slices: its volumes, and the work behind the requests."""

import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import trio
import trio.lowlevel

from mountfs.chunks.consent import Consent
from mountfs.chunks.copying import Source
from mountfs.chunks.disk_identity import Owner
from mountfs.chunks.disks import Disks
from mountfs.chunks.lending import Lender
from mountfs.chunks.reporter import Gathered
from mountfs.chunks.scrub import PERIOD_S, Scrub
from mountfs.chunks.service import ChunkService
from mountfs.cli.node_settings import Settings
from mountfs.cli.trust import Trust
from mountfs.errors import FsError
from mountfs.meta.reports import FSYNC
from mountfs.types import VolumeId
from mountfs.vfs.home import Home

log = logging.getLogger(__name__)

METHODS: Final = 100
"""Those from here on are of this role."""
COMPACT_S: Final = 5.0


class Volumes:
    """The volumes of this node, and the work behind the requests."""

    def __init__(
        self,
        disks: Disks,
        may_order: Callable[[Any], None],
        link: Callable[[int], Awaitable[Source]],
        scrub_s: float = PERIOD_S,
        copy_bytes_per_s: float = 0.0,
        durability: str = FSYNC,
        consent: Consent | None = None,
    ) -> None:
        self.disks = disks
        self.service = ChunkService(
            disks,
            may_order,
            link,
            copy_bytes_per_s=copy_bytes_per_s,
            durability=durability,
            consent=consent,
        )
        self.lender = self.service.lender = Lender(self._file_of)
        self.scrubs = [Scrub(disk.store, disk.path, period_s=scrub_s) for disk in disks.disks]
        self._gatherers = trio.CapacityLimiter(1)

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._compact)
            nursery.start_soon(self.service.sync_behind)
            nursery.start_soon(self.lender.run)
            for scrub in self.scrubs:
                nursery.start_soon(scrub.run)

    async def _compact(self) -> None:
        while True:
            try:
                while await self.disks.compact_one():
                    await trio.lowlevel.checkpoint()
            except FsError as error:
                log.error("compacting volumes: %s", error)
            await trio.sleep(COMPACT_S)

    def _file_of(self, volume: VolumeId) -> tuple[Path, int] | None:
        disk = self.disks.disk_of(volume)
        return None if disk is None else disk.store.file_of(volume)

    async def gather(self) -> Gathered:
        """What the leader is to be told.  A disk that hangs holds up nothing else."""
        return await trio.to_thread.run_sync(
            self._gathered, limiter=self._gatherers, abandon_on_cancel=True
        )

    def _gathered(self) -> Gathered:
        reported = self.disks.report(whole=True)
        shares = [scrub.share for scrub in self.scrubs]
        scrubbed = sum(shares) / len(shares) if shares else 0.0
        return Gathered(reported.disks, reported.volumes, scrubbed=scrubbed)

    def scrubbed(self) -> dict[str, Any]:
        """By disk: how far its verification has come, and what the last one has found."""
        return {
            str(disk.path): msgspec.to_builtins(scrub.state)
            for disk, scrub in zip(self.disks.disks, self.scrubs, strict=True)
        }


@contextlib.contextmanager
def open_volumes(
    home: Home,
    trust: Trust,
    link: Callable[[int], Awaitable[Source]],
    ask_metadata: Callable[[Any], Awaitable[Any]],
    settings: Settings,
) -> Iterator[Volumes]:
    """`link` connects to another node; `ask_metadata` is for queries.  Raises BAD_HOME for a
    directory that is not this node's.
    """
    owner = Owner(home.id, home.format.node, home.cluster)
    disks = Disks([home.chunks, *settings.data], owner)
    try:
        for what, told in disks.troubles().items():
            log.warning("%s: %s", what, told)
        volumes = Volumes(
            disks,
            trust.require_node,
            link,
            copy_bytes_per_s=settings.copy_bytes_per_s,
            durability=settings.durability,
            consent=Consent(home.format.node, ask_metadata),
        )
        with contextlib.closing(volumes.lender):
            yield volumes
    finally:
        disks.close()
