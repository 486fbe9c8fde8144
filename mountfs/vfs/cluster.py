"""A mount's side of a cluster: metadata and bytes on other machines, and the work that goes on
behind the requests.

To a door it looks as an `EmbeddedNode` does.
"""

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec
import trio

from mountfs.buffers import Buffers
from mountfs.chunks.config import HedgeConfig
from mountfs.chunks.hedge import Hedges
from mountfs.chunks.open_volumes import OpenVolumes
from mountfs.chunks.protocol import Allot, Method, Return
from mountfs.chunks.remote import RemoteChunks
from mountfs.chunks.volume_map import VolumeMap
from mountfs.errors import FsError
from mountfs.meta.client import Address, Options, RemoteMeta, remote_meta
from mountfs.meta.ops.read import Usage
from mountfs.meta.ops.volumes import GetVolumes, VolumeRecord
from mountfs.types import SLICE_BYTES_MAX, VolumeId
from mountfs.vfs.filesystem import Filesystem
from mountfs.vfs.leased_meta import LeasedMeta
from mountfs.vfs.near import Near

log = logging.getLogger(__name__)

FLUSH_AFTER_S: Final = 5
HOUSEKEEPING_S: Final = 1.0
RETRY_AFTER_S: Final = 5
SHUT_DOWN_S: Final = 30


class ClusterMount:
    """Use `cluster_mount`."""

    def __init__(
        self, source: str, meta: RemoteMeta, chunks: RemoteChunks, buffers: Buffers
    ) -> None:
        self.source = source
        self.meta = meta
        self.chunks = chunks
        self.buffers = buffers
        self.leases: LeasedMeta
        self.filesystem: Filesystem
        self.troubles: dict[str, str] = {}
        self._wake = trio.Event()

    async def durable(self) -> None:
        """What was proposed is on a majority's disks when it is answered, and slices are on theirs
        before that: nothing is left to be done.
        """

    def kick(self) -> None:
        """There is a whole slice to flush: do not wait for the next tick."""
        woken, self._wake = self._wake, trio.Event()
        woken.set()

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.leases.run)
            nursery.start_soon(self.chunks.keep_asking)
            nursery.start_soon(self._flush_for_ever)

    async def _flush_for_ever(self) -> None:
        while True:
            try:
                await self._flush()
            except FsError as error:
                if self.troubles.get("flush") != str(error):
                    log.error("flush: %s", error)
                self.troubles["flush"] = str(error)
                await trio.sleep(RETRY_AFTER_S)
            else:
                self.troubles.pop("flush", None)
                with trio.move_on_after(HOUSEKEEPING_S):
                    await self._wake.wait()

    async def _flush(self) -> None:
        filesystem = self.filesystem
        now = trio.current_time()
        failed: FsError | None = None
        for file, since in list(filesystem.writer.unwritten.items()):
            try:
                if file.dirty.bytes >= SLICE_BYTES_MAX:
                    await filesystem.flush_file(file, full_only=True)
                elif now - since > FLUSH_AFTER_S:
                    await filesystem.flush_file(file)
            except FsError as error:  # the others have their own places
                failed = error
        if failed is not None:
            raise failed
        await filesystem.write_access_times()
        await filesystem.reap()

    def all_troubles(self) -> dict[str, str]:
        found = dict(self.troubles)
        if self.meta.ended is not None:
            found["session"] = f"{self.meta.ended}; another one is being begun"
        if lost := self.filesystem.lost:
            found["lost"] = (
                f"{lost} open files have lost their locks or what was not written to them, with a "
                "session that has ended; they answer EIO until they are closed"
            )
        if self.meta.router.problem:
            found["metaservers"] = self.meta.router.problem
        if self.chunks.problem:
            found["chunkservers"] = self.chunks.problem
        return found

    def stats(self) -> dict[str, Any]:
        """Counters since the mount."""
        return {
            "rows": self.meta.calls,
            "rows_stored": self.meta.attempts,
            "reads": self.chunks.reads,
            "reads_waited": self.chunks.reads,
            "borrowed": self.chunks.borrowing.reads,
            "rewrites": self.chunks.rewrites,
            "hedging": self.chunks.hedges.told(),
            "leases": {
                "held": self.leases.known.count,
                "hits": self.leases.hits,
                "misses": self.leases.misses,
                "recalls": self.leases.recalls,
                "begun": self.leases.begun,
            },
        }

    async def status(self) -> dict[str, Any]:
        """What `mountfs status` shows."""
        total, free = self.chunks.space()
        writer = self.filesystem.writer
        found: dict[str, Any] = {
            "source": self.source,
            "session": self.meta.session,
            "nodes": [
                {"number": node.number, "name": node.name, "door": node.door}
                for node in self.meta.router.nodes
            ],
            "leader": self.meta.router.leader_number,
            "disk_total_bytes": total,
            "disk_free_bytes": free,
            "dirty_bytes": writer.dirty_bytes,
            "unwritten_files": len(writer.unwritten),
            "calls": self.meta.calls,
            "attempts": self.meta.attempts,
        }
        with trio.move_on_after(2):
            found["inodes"], found["used_bytes"] = await self.meta.read(Usage())
        return {**found, "troubles": self.all_troubles()}


@asynccontextmanager
async def cluster_mount(
    source: str, seeds: Sequence[Address], options: Options, **settings: Any
) -> AsyncIterator[ClusterMount]:
    """A session with a cluster, and a filesystem on it; `settings` are those of `Filesystem`.

    On the way out everything is flushed, for as long as that may take.
    """
    options = msgspec.structs.replace(options, caches=True)
    async with remote_meta(seeds, options) as meta:
        buffers = Buffers()
        chunks = _chunks(meta, options, buffers)
        mount = ClusterMount(source, meta, chunks, buffers)
        leases = mount.leases = LeasedMeta(meta)
        mount.filesystem = Filesystem(
            leases,
            chunks,
            durable=mount.durable,
            buffers=mount.buffers,
            kick=mount.kick,
            own_copies=lambda: meta.router.own_copies,
            retention=lambda: meta.router.retention,
            shared=True,
            leases=leases,
            **settings,
        )
        meta.on_new_session += [
            lambda session: chunks.forget_volumes(),
            mount.filesystem.session_lost,
        ]
        await chunks.ask_for_room()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mount.run)
            try:
                yield mount
            finally:
                with trio.move_on_after(SHUT_DOWN_S, shield=True) as waited:
                    await _flush_all(mount)
                    await chunks.close()
                if waited.cancelled_caught:
                    log.error("unmounted, but not everything could be written")
                nursery.cancel_scope.cancel()


def _chunks(meta: RemoteMeta, options: Options, buffers: Buffers) -> RemoteChunks:
    async def where(numbers: tuple[VolumeId, ...]) -> tuple[VolumeRecord, ...]:
        return await meta.read(GetVolumes(numbers))

    async def allot(asked: Allot) -> tuple[VolumeRecord, ...]:
        answer = await meta.ask_leader(Method.ALLOT, msgspec.msgpack.encode(asked))
        return msgspec.msgpack.decode(answer, type=tuple[VolumeRecord, ...])

    async def give_back(asked: Return) -> None:
        await meta.ask_leader(Method.RETURN, msgspec.msgpack.encode(asked))

    near = Near()
    return RemoteChunks(
        meta.router.numbers_of("chunk"),
        meta.router.link_to,
        VolumeMap(where),
        OpenVolumes(lambda: meta.session, allot, give_back),
        hedges=Hedges(HedgeConfig()),
        near=lambda: near.of(meta.router.nodes),
        buffers=buffers,
        soft_s=options.soft_s,
    )


async def _flush_all(mount: ClusterMount) -> None:
    try:
        await mount.filesystem.flush_all()
    except FsError as error:
        log.error("unmounting: %s", error)
