"""What a mount loses with its session, and which of the open files are told.

A cluster that has not heard of a mount for too long, or was told to evict it, goes on without it:
its locks are free, its files without a name are removed, and others may have read and written what
it had.  So what the mount has not written must not be written later, under another session, and a
program that believes in a lock must not go on as if it had it.  Exactly the open files that have
lost something answer EIO from then on, until they are closed; all others go on.  (CephFS does the
same to a client that it has evicted; NFS loses locks and says so by EIO, but may write late.)
"""

import logging
from collections.abc import Collection, Iterable

from mountfs.errors import Fault, FsError
from mountfs.types import Ino
from mountfs.vfs.handles import File, Handle
from mountfs.vfs.writer import Writer

log = logging.getLogger(__name__)


def lose(
    session: int, handles: Iterable[Handle], orphans: Collection[Ino], writer: Writer
) -> set[Ino]:
    """Give up what belonged to `session`, which has ended, and mark those of `handles` that have
    lost something by that.  Returns the files that are not as their readers may have seen them.
    """
    changed: set[Ino] = set()
    for file in list(writer.unwritten):
        changed.add(file.ino)
        _lose_bytes(session, file, writer)
    for handle in handles:
        file = handle.file
        file.forget_layouts()
        if handle.held:
            _mark(handle, Fault.LOST, f"locks on inode {file.ino} were lost with session {session}")
            handle.held = ()
            file.holders.discard(handle)
        if file.ino in orphans:
            changed.add(file.ino)
            what = f"inode {file.ino} had no name, and is gone with session {session}"
            _mark(handle, Fault.STALE, what)
        if handle.lost is not None:
            changed.add(file.ino)
    return changed


def _lose_bytes(session: int, file: File, writer: Writer) -> None:
    size = sum(run.size for run in (*file.flight, *file.dirty.runs))
    what = (
        f"{size:,} bytes that were written to inode {file.ino} and had not reached the cluster "
        f"were lost with session {session}"
    )
    writers = set(file.writers)
    writer.lose(file)
    for handle in writers:
        _mark(handle, Fault.LOST, what)
    if not writers:
        log.error("%s; nobody has it open any more who could be told", what)


def _mark(handle: Handle, fault: Fault, what: str) -> None:
    if handle.lost is None:
        log.error("%s: open file %d says EIO until it is closed", what, handle.number)
        handle.lost = FsError(fault, what)
