"""The tree of files, as operations see it: inodes, names, bytes' places, over the key space.

One command at a time works on it, in a transaction: `edit` an inode or put a row, then `commit`;
after `abort` nothing has happened.  No clock, no randomness, no I/O but the reads of the store
below.
"""

import heapq
import stat
from collections.abc import Iterator
from itertools import groupby, islice

import msgspec

from mountfs.errors import Fault, FsError
from mountfs.kv.overlay import Overlay, merge
from mountfs.meta import keys, places
from mountfs.meta.accounts import Accounts
from mountfs.meta.command import Stamp
from mountfs.meta.records import (
    ATTRIBUTES_BYTES,
    COPIES_MARKS,
    HAS_CONTENT,
    HAS_SLICES,
    RETAINED,
    RETAINS,
    TRASHES,
    UNCOMMITTED,
    Attributes,
    Counters,
    Inode,
    Slice,
    blocks_mask,
    pack_blocks,
    pack_dentry,
    pack_entry,
    pack_garbage,
    pack_slice,
    pack_used,
    unpack_blocks,
    unpack_dentry,
    unpack_inode,
    unpack_slice,
)
from mountfs.meta.retention_guard import enforce
from mountfs.types import BLOCK_BYTES, CHUNK_BYTES, LINKS_MAX, ROOT, Cred, Ino

_INODES_CACHED = 8_192
FIRST_POSITION = 1 << 62
"""Of the first entry of a directory.  Later ones come before it: who lists a directory and creates
names in it meanwhile does not meet them, and comes to an end.
"""
_PIECES_TOGETHER = 16
"""One in so many small synced writes asks for compaction, which moves the pieces to a volume."""

_encode = msgspec.msgpack.Encoder().encode


class Tree:
    def __init__(self, rows: Overlay) -> None:
        self._rows = rows
        self._changes: dict[bytes, bytes | None] = {}
        self._inodes: dict[Ino, Inode] = {}
        self._touched: dict[Ino, Inode] = {}
        self._removed: set[Ino] = set()
        self._before: dict[Ino, bytes] = {}
        """Records of inodes that the running command changes or removes, as they were before it.
        New inodes have none.
        """
        self.seen: set[Ino] | None = None
        """If somebody wants to know: the inodes that were looked at."""
        self.committed: dict[bytes, bytes | None] = {}
        """The rows that the last command has changed."""
        self._rearranged: set[Ino] = set()
        stored = rows.get(keys.COUNTERS)
        self.accounts = Accounts(rows)
        self.counters = (
            msgspec.msgpack.decode(stored, type=Counters)
            if stored is not None
            else Counters(counted=True)
        )
        self._counters_before = self.counters
        self.stamp = Stamp(0, 0, 0)

    # -- the transaction

    def begin(self, stamp: Stamp) -> None:
        assert not self._changes and not self._touched
        self.stamp = stamp
        self._counters_before = msgspec.structs.replace(self.counters)

    def commit(self) -> None:
        """Raises NOT_PERMITTED where something that is retained would change, and OVER_QUOTA where
        the command would make use grow over a quota.
        """
        enforce(self)
        changes = self._changes
        for ino, inode in self._touched.items():
            changes[keys.inode(ino)] = inode.record()
        self.accounts.settle(self._touched, self._before, self._removed, changes, self.stamp.time)
        self._rows.apply(changes)
        self.committed = changes
        self._clear()

    def abort(self) -> None:
        for ino in self._touched:
            self._inodes.pop(ino, None)
        self.accounts.abort()
        self._clear()
        self.counters = self._counters_before

    def _clear(self) -> None:
        self._changes = {}
        self._touched = {}
        self._before = {}
        self._removed.clear()
        self._rearranged.clear()

    def counters_row(self) -> bytes:
        return _encode(self.counters)

    # -- rows

    def get(self, key: bytes) -> bytes | None:
        if self.seen is not None:
            self.seen.add(keys.ino_of(key))
        if key in self._changes:
            return self._changes[key]
        return self._rows.get(key)

    def put(self, key: bytes, value: bytes | None) -> None:
        self._changes[key] = value

    def scan(self, span: keys.Range, *, limit: int | None = None) -> Iterator[tuple[bytes, bytes]]:
        """Rows in a range, the first `limit` of them, with the changes of the running command."""
        start, stop = span
        if self.seen is not None:
            self.seen.add(keys.ino_of(start))
        if limit is not None and not self._changes:
            return self._rows.scan(start, stop, limit=limit)
        pairs = self._rows.scan(start, stop)
        own = [(key, value) for key, value in self._changes.items() if start <= key < stop]
        return islice(merge(sorted(own), pairs) if own else pairs, limit)

    def stored(self, span: keys.Range) -> Iterator[tuple[bytes, bytes]]:
        """Rows in a range, as they were before the running command."""
        return self._rows.scan(*span)

    def everything(self) -> Iterator[tuple[bytes, bytes]]:
        """All rows, in the order of their keys; between commands, for checks."""
        assert not self._changes
        loose = self.accounts.loose_rows()
        return merge(sorted(loose.items()), self._rows.everything())

    # -- inodes

    def inode(self, ino: Ino) -> Inode:
        """The inode, to look at.  Raises STALE when there is none (any more)."""
        if self.seen is not None:
            self.seen.add(ino)
        inode = self._inodes.get(ino)
        if inode is None:
            if ino in self._removed:
                raise FsError(Fault.STALE, f"inode {ino} is gone")
            record = self._rows.get(keys.inode(ino))
            if record is None:
                raise FsError(Fault.STALE, f"inode {ino} is gone")
            inode = unpack_inode(record)
            self._remember(inode)
        return inode

    def record(self, ino: Ino) -> bytes:
        """The inode as it is stored; for listings, which do not want it taken apart."""
        if self.seen is not None:
            self.seen.add(ino)
        inode = self._inodes.get(ino)
        if inode is not None:
            return inode.record()
        record = self._rows.get(keys.inode(ino))
        if record is None:
            raise FsError(Fault.STALE, f"inode {ino} is gone")
        return record

    def edit(self, ino: Ino) -> Inode:
        """The inode, to change; stored when the command commits."""
        inode = self._touched.get(ino)
        if inode is None:
            inode = self.inode(ino)
            self._touched[ino] = inode
            self._before[ino] = inode.record()
        inode.packed = None
        return inode

    def rearrange(self, ino: Ino) -> Inode:
        """The inode, as of `edit`, of a file whose bytes are put elsewhere and do not change."""
        self._rearranged.add(ino)
        return self.edit(ino)

    def attributes(self, inode: Inode) -> Attributes:
        """The reply of most commands.  Asked for last: the inode must not change after it in this
        command.
        """
        return Attributes(inode.record()[:ATTRIBUTES_BYTES])

    def directory(self, ino: Ino) -> Inode:
        """A directory that still has a name.  Raises STALE, NOT_DIRECTORY, NOT_FOUND."""
        inode = self.inode(ino)
        if inode.mode & 0o170000 != stat.S_IFDIR:
            raise FsError(Fault.NOT_DIRECTORY)
        if inode.nlink == 0:
            raise FsError(Fault.NOT_FOUND, "the directory has been removed")
        return inode

    def new_inode(self, parent: Inode, mode: int, cred: Cred, rdev: int = 0) -> Inode:
        """An inode without a name yet, owned as POSIX and the parent's setgid bit say."""
        inode = Inode()
        inode.ino = Ino(self.counters.next_ino)
        self.counters.next_ino += 1
        self.counters.inodes += 1
        now = self.stamp.time
        inode.size = 0
        inode.allocated = 0
        inode.atime = inode.mtime = inode.ctime = inode.btime = now
        inode.uid = cred.uid
        inode.gid = cred.gid
        if parent.mode & stat.S_ISGID:
            inode.gid = parent.gid
            if stat.S_ISDIR(mode):
                mode |= stat.S_ISGID
        inode.mode = mode
        inode.nlink = 0
        inode.rdev = rdev
        inode.parent = parent.ino
        inode.next_position = FIRST_POSITION
        inode.entries = 0
        inode.version = self.stamp.index
        inode.marks = parent.marks & COPIES_MARKS
        self.take_in(inode)
        return inode

    def take_in(self, inode: Inode) -> None:
        """One that there has not been before."""
        self._remember(inode)
        self._touched[inode.ino] = inode

    def _remember(self, inode: Inode) -> None:
        if len(self._inodes) >= _INODES_CACHED:
            for ino in list(islice(self._inodes, _INODES_CACHED // 4)):
                if ino not in self._touched:
                    del self._inodes[ino]
        self._inodes[inode.ino] = inode

    # -- names

    def dentry(self, parent: Ino, name: bytes) -> tuple[Ino, int, int] | None:
        """(ino, position, type) under a name, or None."""
        value = self.get(keys.dentry(parent, name))
        return None if value is None else unpack_dentry(value)

    def require(self, parent: Ino, name: bytes) -> Inode:
        """What a name stands for.  Raises NOT_FOUND."""
        found = self.dentry(parent, name)
        if found is None:
            raise FsError(Fault.NOT_FOUND)
        return self.inode(found[0])

    def require_absent(self, parent: Ino, name: bytes) -> None:
        if self.get(keys.dentry(parent, name)) is not None:
            raise FsError(Fault.EXISTS)

    def add_name(self, parent: Ino, name: bytes, child: Inode) -> None:
        """A new name for `child`, at the end of the directory.  Counts it in nlink, and a
        directory's ".." in the parent's.
        """
        directory = self.edit(parent)
        if child.nlink >= LINKS_MAX:
            raise FsError(Fault.TOO_MANY_LINKS)
        type = child.mode >> 12
        position = directory.next_position
        directory.next_position -= 1
        assert position > 2, parent  # 1 and 2 are "." and ".."
        directory.entries += 1
        directory.mtime = directory.ctime = self.stamp.time
        directory.version = self.stamp.index
        if type == _DIRECTORY:
            directory.nlink += 1
            child.nlink += 2
            child.parent = parent
        else:
            places.add(self, child, parent)
            child.nlink += 1
        self.put(keys.dentry(parent, name), pack_dentry(child.ino, position, type))
        self.put(keys.entry(parent, position), pack_entry(child.ino, type, name))

    def remove_name(self, parent: Ino, name: bytes) -> Inode:
        """Undo `add_name`; returns the inode, whose nlink may be 0 now."""
        value = self.get(keys.dentry(parent, name))
        assert value is not None, (parent, name)
        ino, position, type = unpack_dentry(value)
        directory = self.edit(parent)
        child = self.edit(ino)
        directory.entries -= 1
        assert directory.entries >= 0, directory.ino
        directory.mtime = directory.ctime = self.stamp.time
        directory.version = self.stamp.index
        if type == _DIRECTORY:
            directory.nlink -= 1
            assert child.nlink >= 2, ino
            child.nlink -= 2  # those of its subdirectories stay, where it is moved
        else:
            assert child.nlink >= 1, ino
            places.remove(self, child, parent)
            child.nlink -= 1
        child.ctime = self.stamp.time
        self.put(keys.dentry(parent, name), None)
        self.put(keys.entry(parent, position), None)
        return child

    def is_below(self, ino: Ino, ancestor: Ino) -> bool:
        """Whether directory `ino` is `ancestor` or lies below it."""
        while ino != ancestor:
            if ino == ROOT:
                return False
            ino = self.inode(ino).parent
        return True

    # -- the end of an inode

    def make_orphan(self, inode: Inode) -> None:
        """No name is left: keep it for the session that may still use it, until it says `Reap`."""
        assert inode.nlink == 0, inode.ino
        self.put(keys.orphan(self.stamp.session, inode.ino), b"")

    def remove_inode(self, inode: Inode) -> None:
        """All that belongs to it is gone: take the inode itself out."""
        assert inode.nlink == 0, inode.ino
        assert inode.allocated == 0, inode.ino
        self.counters.inodes -= 1
        self._touched.pop(inode.ino, None)
        self._inodes.pop(inode.ino, None)
        self._removed.add(inode.ino)
        self.put(keys.inode(inode.ino), None)
        if inode.marks & RETAINED:
            self.put(keys.retained_below(inode.ino), None)
            self.put(keys.retention(inode.ino), None)
        if inode.marks & RETAINS:
            self.put(keys.default_retention(inode.ino), None)
        if inode.marks & UNCOMMITTED:
            self.put(keys.uncommitted(inode.ino), None)
        if inode.marks & TRASHES:
            self.put(keys.trash_setting(inode.ino), None)

    # -- bytes

    def slices(self, ino: Ino, chunk: int) -> list[Slice]:
        """The slices of a chunk, oldest first."""
        return [unpack_slice(value) for _, value in self.scan(keys.slices_of(ino, chunk))]

    def chunks(self, ino: Ino, first: int, last: int) -> Iterator[int]:
        """The chunks from `first` to `last` that have slices or blocks."""
        slices = (keys.slice_place(key)[0] for key, _ in self.scan(keys.slices_from(ino, first)))
        blocks = (keys.last_64(key) for key, _ in self.scan(keys.blocks_from(ino, first)))
        for chunk, _ in groupby(heapq.merge(slices, blocks)):
            if chunk > last:
                return
            yield chunk

    def slice_rows(self, ino: Ino, chunk: int) -> list[tuple[bytes, Slice]]:
        return [(key, unpack_slice(value)) for key, value in self.scan(keys.slices_of(ino, chunk))]

    def add_slice(self, inode: Inode, chunk: int, number: int, new: Slice) -> None:
        """Put a slice on top of a chunk; count the blocks that it brings (or, a hole, takes)."""
        assert new.stop <= CHUNK_BYTES, new
        before = self.blocks(inode.ino, chunk)
        mask = blocks_mask(new.start, new.stop)
        overlaps = before & mask
        if new.is_hole:
            if not overlaps:
                return
            after = before & ~_whole_blocks(new.start, new.stop)
        else:
            after = before | mask
        key = keys.slice_(inode.ino, chunk, self.stamp.index, number)
        self.put_slice(key, new)
        inode.marks |= HAS_SLICES
        scattered = not new.volume and self.stamp.index % _PIECES_TOGETHER == 0
        if overlaps or scattered:
            self.put(keys.tangled(inode.ino, chunk), b"")
        if after != before:
            self.set_blocks(inode, chunk, before, after)

    def put_slice(self, key: bytes, piece: Slice) -> None:
        """A row of a file.  The slice that it refers to is used from now on."""
        self.put(key, pack_slice(piece))
        if piece.volume:
            used = keys.used(piece.volume, piece.slice_id)
            self.put(used, pack_used(piece.length, piece.crc))

    def blocks(self, ino: Ino, chunk: int) -> int:
        value = self.get(keys.blocks(ino, chunk))
        return 0 if value is None else unpack_blocks(value)

    def set_blocks(self, inode: Inode, chunk: int, before: int, after: int) -> None:
        self.put(keys.blocks(inode.ino, chunk), pack_blocks(after) if after else None)
        self.count_space(inode, (after.bit_count() - before.bit_count()) * BLOCK_BYTES)

    def count_space(self, inode: Inode, delta: int) -> None:
        inode.allocated += delta
        self.counters.allocated += delta
        assert inode.allocated >= 0, inode.ino
        assert self.counters.allocated >= 0

    def share_slice(self, piece: Slice) -> None:
        """One more row refers to a slice in a volume."""
        if piece.volume:
            key = keys.shared(piece.slice_id)
            count = int.from_bytes(self.get(key) or b"\1", "little")
            self.put(key, (count + 1).to_bytes(4, "little"))

    def drop_slice(self, ino: Ino, key: bytes, piece: Slice) -> None:
        """Delete the row of a slice; its bytes become garbage when no other row refers to them."""
        self.put(key, None)
        if piece.is_hole:
            return
        if not piece.volume:
            self.put(keys.piece(ino, piece.slice_id), None)
            return
        shared = keys.shared(piece.slice_id)
        count = int.from_bytes(self.get(shared) or b"\1", "little")
        if count == 1:
            self.put(keys.used(piece.volume, piece.slice_id), None)
            self.put(keys.garbage(piece.slice_id), pack_garbage(piece.volume, piece.length))
        else:
            self.put(shared, (count - 1).to_bytes(4, "little") if count > 2 else None)

    def content(self, inode: Inode, start: int, stop: int) -> bytes:
        """Bytes `start:stop` of a small file's content, as far as it goes: zeros may follow."""
        assert inode.marks & HAS_CONTENT, inode.ino
        value = self.get(keys.content(inode.ino))
        assert value is not None, inode.ino
        return value[start:stop]

    def set_content(self, inode: Inode, content: bytes) -> None:
        """Keep the bytes of a small file with its inode."""
        assert not inode.marks & HAS_SLICES, inode.ino
        if not inode.marks & HAS_CONTENT:
            inode.marks |= HAS_CONTENT
            self.count_space(inode, BLOCK_BYTES)
        self.put(keys.content(inode.ino), content)

    def drop_content(self, inode: Inode) -> None:
        if inode.marks & HAS_CONTENT:
            inode.marks &= ~HAS_CONTENT
            self.count_space(inode, -BLOCK_BYTES)
            self.put(keys.content(inode.ino), None)


def _whole_blocks(start: int, stop: int) -> int:
    """The blocks that lie entirely in `start:stop`."""
    first, last = -(-start // BLOCK_BYTES), stop // BLOCK_BYTES
    return ((1 << (last - first)) - 1) << first if last > first else 0


_DIRECTORY = stat.S_IFDIR >> 12
