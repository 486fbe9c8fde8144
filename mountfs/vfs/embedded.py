"""An embedded node: metadata and bytes of one machine in this process, and the work that goes on
behind the requests.

Calls between the layers are plain awaits without a socket.  What `Filesystem` needs of a cluster it
gets here: `durable`, and somebody who flushes, checkpoints, reclaims and compacts in time.
"""

import logging
import os
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import trio

from mountfs.buffers import Buffers
from mountfs.chunks.client import LocalChunks
from mountfs.chunks.disk import DiskStore
from mountfs.chunks.index_store import open_index
from mountfs.errors import FsError
from mountfs.inline import leave, pause
from mountfs.kv.journal import Journal
from mountfs.kv.leveldb import LevelStore
from mountfs.meta.local import LocalMeta
from mountfs.meta.ops.default_retention import CommitRetention, Uncommitted
from mountfs.meta.ops.read import Usage
from mountfs.meta.ops.reap import Orphans, Reap
from mountfs.meta.ops.slices import Garbage, Reclaimed, Rewrite, Tangles
from mountfs.meta.ops.trash import NOBODYS, DueTrash, EmptyTrash
from mountfs.meta.ops.write import Run, Write
from mountfs.meta.records import Slice
from mountfs.meta.state_machine import Entry
from mountfs.meta.upgrade import bring_to_format_2
from mountfs.raft.messages import NodeId
from mountfs.types import MIB, SLICE_BYTES_MAX, Cred, Ino
from mountfs.vfs.compactor import Compactor
from mountfs.vfs.filesystem import Filesystem
from mountfs.vfs.home import NODE_MARK, Home, open_home

log = logging.getLogger(__name__)

FLUSH_AFTER_S = 5
"""Bytes that were written stay in memory for so long at most."""
CHECKPOINT_AFTER_S = 60
COMMIT_AFTER_S = 5
"""What nobody asked to have on disk is there after so long all the same.  (The kernel does not tell
a FUSE filesystem of sync(2).)
"""
RETRY_AFTER_S = 5
QUICK_SYNC_S = 0.001
"""A disk that syncs in less is waited for without a thread: two wake-ups cost as much."""
HOUSEKEEPING_S = 1.0
IDLE_S = 5.0
"""Between looks for work behind the requests, while there are requests and when there are none."""
LOG_SEGMENT_BYTES = 16 * MIB
GARBAGE_BATCH = 16_384
COMMIT_BATCH = 1_000
TRASH_BATCH = 500
RECLAIM_AFTER_S = 5
"""A checkpoint for the sake of deleted slices comes so long after the last one; a writer who finds
the disk full does not wait for it.
"""


class EmbeddedNode:
    """Use `embedded_node`."""

    def __init__(self, home: Home, store: LevelStore, index: LevelStore) -> None:
        self.home = home
        self.buffers = Buffers()
        self.disk = DiskStore(home.chunks, index, home=home.id, buffers=self.buffers)
        self.chunks = LocalChunks(self.disk)
        self._index = index
        self._journal = Journal(home.log, home=home.id, segment_bytes=LOG_SEGMENT_BYTES)
        cut_path = home.path / "meta" / "cut"
        if home.is_of_before:
            bring_to_format_2(
                store, self._journal, bytes_present=self._bytes_present, cut_path=cut_path
            )
            home.brought_further()
        self.meta = LocalMeta(
            store,
            self._journal,
            bytes_present=self._bytes_present,
            cut_path=cut_path,
            node=NodeId(home.format.node),
            owner=Cred(os.geteuid(), os.getegid()),  # or a user could do nothing in what is his own
        )
        self._uncommitted = Ino(0)
        """Which of the files that wait for their retention was looked at last."""
        self._wake = trio.Event()
        self._syncing = False
        self._sync_done = trio.Event()
        self._last_sync_s = 0.0
        """How long the last sync took."""
        self.filesystem: Filesystem
        self.last_checkpoint = trio.current_time()
        self._checkpointing = trio.Lock()
        self._reclaiming = trio.Lock()
        self._committed = trio.current_time()
        """When everything was known to be on disk, by the task that sees to it."""
        self.troubles: dict[str, str] = {}
        """Background work that fails at the moment, and why; for `mountfs status`."""
        self.notices: dict[str, str] = {}
        """What was damaged at the start and has been put right; said as long as the node lives."""

    async def durable(self) -> None:
        """All that was written and proposed before the call survives the machine.  All who wait
        share the trips to the disk.
        """
        target = self.meta.applied
        await pause()
        while self.meta.synced < target or self.disk.unsynced:
            if self._syncing:  # it may have begun before our bytes were there: look again after it
                await leave()
                await self._sync_done.wait()
            elif self._last_sync_s < QUICK_SYNC_S and not self.disk.unsynced:
                # Only the log is to be synced, and the disk has been answering faster than a thread
                # would take to be woken and to wake us.  One slow answer ends that.
                self._sync_log()
            else:
                await leave()
                if not self._syncing:
                    await self._sync_in_thread()
                    return

    async def _sync_in_thread(self) -> None:
        self._syncing, self._sync_done = True, trio.Event()
        try:
            await trio.to_thread.run_sync(self._sync)
        finally:
            self._syncing = False
            self._sync_done.set()

    def _sync(self) -> None:
        """Bytes before the metadata that refers to them."""
        logged = self.meta.logged
        self.disk.sync()
        self._sync_log(logged)

    def _sync_log(self, logged: int | None = None) -> None:
        begun = perf_counter()
        self.meta.sync_log(logged)
        self._last_sync_s = perf_counter() - begun

    def kick(self) -> None:
        """There is a whole slice to flush: do not wait for the next tick."""
        woken, self._wake = self._wake, trio.Event()
        woken.set()

    async def run(self) -> None:
        """The work behind the requests, for as long as the node lives."""
        compactor = Compactor(self.meta, self.chunks, self.filesystem)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._forever, "flush", self._flush)
            nursery.start_soon(self._forever, "commit", self._commit)
            nursery.start_soon(self._forever, "checkpoint", self._checkpoint_if_due)
            nursery.start_soon(self._forever, "log segments", self._prepare_log)
            nursery.start_soon(self._forever, "reclaim", self._reclaim_if_due)
            nursery.start_soon(self._forever, "compaction", compactor.run_once)
            nursery.start_soon(self._forever, "volumes", self.chunks.compact_one)
            nursery.start_soon(self._forever, "retention", self._retain)
            nursery.start_soon(self._forever, "trash", self.remove_trash)

    async def _forever(self, name: str, work: Callable[[], Any]) -> None:
        applied = -1
        while True:
            try:
                await work()
            except FsError as error:
                if self.troubles.get(name) != str(error):
                    log.error("%s: %s", name, error)
                self.troubles[name] = str(error)
                await trio.sleep(RETRY_AFTER_S)
            else:
                self.troubles.pop(name, None)
                idle = self.meta.applied == applied == self.meta.synced
                idle = idle and not self.filesystem.writer.unwritten
                applied = self.meta.applied
                pause_s = IDLE_S if idle else HOUSEKEEPING_S
                if work == self._flush:
                    with trio.move_on_after(pause_s):
                        await self._wake.wait()
                else:
                    await trio.sleep(pause_s)

    async def _flush(self) -> None:
        writer = self.filesystem.writer
        now = trio.current_time()
        failed: FsError | None = None
        for file, since in list(writer.unwritten.items()):
            try:
                if file.dirty.bytes >= SLICE_BYTES_MAX:
                    await self.filesystem.flush_file(file, full_only=True)
                elif now - since > FLUSH_AFTER_S:
                    await self.filesystem.flush_file(file)
            except FsError as error:  # the others may have quotas that leave them room
                failed = error
        if failed is not None:
            raise failed
        await self.filesystem.reap()

    async def _commit(self) -> None:
        """Let nothing be at risk for longer than COMMIT_AFTER_S."""
        now = trio.current_time()
        if self.meta.synced == self.meta.applied:
            self._committed = now
        elif now - self._committed >= COMMIT_AFTER_S:
            await self.durable()
            self._committed = now

    async def _checkpoint_if_due(self) -> None:
        waited = trio.current_time() - self.last_checkpoint
        if self.meta.checkpoint_due or (self.meta.pending_rows and waited > CHECKPOINT_AFTER_S):
            await self.checkpoint()

    async def checkpoint(self) -> None:
        """Write what gathered in memory to the store, so that the log can be let go."""
        async with self._checkpointing:
            await self.filesystem.write_access_times()
            checkpoint = self.meta.begin_checkpoint()
            try:
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(self._write_checkpoint, checkpoint)
            except BaseException:
                self.meta.abandon_checkpoint()
                raise
            self.meta.end_checkpoint(checkpoint)
            self.last_checkpoint = trio.current_time()

    def _write_checkpoint(self, checkpoint: Any) -> None:
        logged = self.meta.logged
        self.disk.sync()
        self.meta.write_checkpoint(checkpoint, logged)

    async def _prepare_log(self) -> None:
        self.meta.release_log()
        if self._journal.wants_prepare:
            await trio.to_thread.run_sync(self._journal.prepare)

    async def _reclaim_if_due(self) -> None:
        """Give back what was deleted, not so often that the checkpoints for it would be felt."""
        if trio.current_time() - self.last_checkpoint >= RECLAIM_AFTER_S:
            await self.reclaim()

    async def reclaim(self) -> None:
        """Delete slices that nobody refers to.

        Only after a checkpoint that knows them as garbage: a replay of the log would meet the
        writes that brought them, and must find their bytes, or take them for lost in a crash.
        """
        await leave()
        await self.filesystem.reap()
        async with self._reclaiming:
            found = await self.meta.read(Garbage(GARBAGE_BATCH))
            if not found:
                return
            await self.checkpoint()
            volumes: dict[Any, list[Any]] = {}
            for slice_id, volume, _ in found:
                volumes.setdefault(volume, []).append(slice_id)
            await trio.to_thread.run_sync(self.disk.delete, volumes)
            await trio.to_thread.run_sync(self.disk.give_back)
            await self.meta.propose(Reclaimed(tuple(slice_id for slice_id, _, _ in found)))

    async def _retain(self) -> None:
        """Files whose writers are gone, or keep them open and do nothing, get their retention."""
        if not self.meta.retention:
            return
        asked = Uncommitted(COMMIT_BATCH, self.meta.now(), self._uncommitted)
        page = await self.meta.read(asked)
        self._uncommitted = page[-1][0] if len(page) == COMMIT_BATCH else Ino(0)
        for ino, is_due in page:
            if is_due:
                await self.meta.propose(CommitRetention(ino, idle=True))

    async def remove_trash(self) -> None:
        """What has been in the trash for long enough goes, and what was taken out by hand; so much
        of it at a time that requests do not wait.
        """
        if not self.meta.trash:
            return
        due = await self.meta.read(DueTrash(self.meta.proven(), TRASH_BATCH))
        if due:
            await self.meta.propose(EmptyTrash(due))
        for session, ino in await self.meta.read(Orphans(NOBODYS, TRASH_BATCH)):
            await self.meta.propose(Reap(session, (ino,)))
            await leave()

    def _bytes_present(self, entry: Entry) -> bool:
        """In recovery: whether the slices that an entry brings have reached the disk before the
        crash.  If they were damaged since, the entry counts, and reading its bytes is an error; or
        else all that was done after it would be lost with them.
        """
        command = entry.command
        new: Iterable[Run | Slice] = ()
        if isinstance(command, Write):
            new = command.runs
        elif isinstance(command, Rewrite):
            new = command.added
        return all(
            self.disk.arrived(piece.volume, piece.slice_id, piece.length, piece.crc)
            for piece in new
            if piece.volume
        )

    def all_troubles(self) -> dict[str, str]:
        """Work that fails at the moment, and parts that are or were damaged: what, and why."""
        return {**self.notices, **self.disk.troubles(), **self.troubles}

    def stats(self) -> dict[str, Any]:
        """Counters of the caches since the mount, for `mountfs stats`."""
        rows, rows_stored = self.meta.rows_read
        return {
            "rows": rows,
            "rows_stored": rows_stored,
            "reads": self.chunks.reads,
            "reads_waited": self.chunks.reads_waited,
        }

    async def status(self) -> dict[str, Any]:
        """What `mountfs status` shows."""
        inodes, used = await self.meta.read(Usage())
        total, free = self.chunks.space()
        writer = self.filesystem.writer
        debt = self.disk.debt()
        tangled = await self.meta.read(Tangles(10_000))
        garbage = await self.meta.read(Garbage(10_000))
        return {
            "home": str(self.home.path),
            "id": self.home.format.id,
            "inodes": inodes,
            "used_bytes": used,
            "disk_total_bytes": total,
            "disk_free_bytes": free,
            "dirty_bytes": writer.dirty_bytes,
            "unwritten_files": len(writer.unwritten),
            "log_bytes": self.meta.log_bytes,
            "commands": self.meta.applied,
            "commands_synced": self.meta.synced,
            "rows_to_checkpoint": self.meta.pending_rows,
            "replayed_at_start": self.meta.replayed,
            "dropped_at_start": self.meta.cut,
            "volume_bytes": debt.total_bytes,
            "garbage_bytes": debt.garbage_bytes,
            "volumes_to_compact": len(debt.volumes),
            "tangled_chunks": len(tangled),
            "garbage_slices": len(garbage),
            "troubles": self.all_troubles(),
        }


@asynccontextmanager
async def embedded_node(
    path: Path, *, mountpoint: str = "", create: bool = True, **settings: Any
) -> AsyncIterator[EmbeddedNode]:
    """Open a home and run the node on it; `settings` are those of `Filesystem`.

    On the way out everything is flushed, checkpointed and closed.
    """
    home = open_home(path, create=create)
    try:
        home.format.require_metadata(path)
        home.hold(mountpoint)
        (home.path / NODE_MARK).unlink(missing_ok=True)
        store = LevelStore(home.store, create=home.is_new)
        try:
            index, told = open_index(home.chunks)
            try:
                node = EmbeddedNode(home, store, index)
                if told:
                    node.notices[str(home.chunks / "index")] = told
                async with _running(node, settings):
                    yield node
            finally:
                index.close()
        finally:
            store.close()
    finally:
        home.close()


@asynccontextmanager
async def _running(node: EmbeddedNode, settings: dict[str, Any]) -> AsyncIterator[None]:
    node.filesystem = Filesystem(
        node.meta,
        node.chunks,
        durable=node.durable,
        buffers=node.buffers,
        kick=node.kick,
        owed=lambda: node.meta.owed_bytes,
        retention=lambda: node.meta.retention,
        reclaim=node.reclaim,
        **settings,
    )
    try:
        node.meta.open_session()
        await _reap_orphans(node)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.run)
            try:
                yield
            finally:
                nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await _shut_down(node)


async def _shut_down(node: EmbeddedNode) -> None:
    try:
        await node.filesystem.flush_all()
        await _reap_orphans(node)
        await node.checkpoint()
    except FsError as error:
        # What is in the log survives; only unwritten bytes of a full or broken disk are lost, and
        # their writers were told.
        log.error("shutting down: %s", error)
    finally:
        node.disk.close()
        node.meta.close()


async def _reap_orphans(node: EmbeddedNode) -> None:
    """Remove files that earlier mounts left without a name."""
    while True:
        orphans = await node.meta.read(Orphans(None, 1_024))
        if not orphans:
            return
        for session, ino in orphans:
            await node.meta.propose(Reap(session, (ino,)))
