"""All that the metadata says of one file, for `mountfs info`."""

import stat
from collections.abc import Iterator
from itertools import islice
from typing import Any

import msgspec

from mountfs.meta import keys
from mountfs.meta.command import Query
from mountfs.meta.extents import visible
from mountfs.meta.records import (
    HAS_ACL,
    HAS_CONTENT,
    HAS_LOCKS,
    HAS_SLICES,
    HAS_XATTRS,
    RETAINED,
    RETAINS,
    TRASHED,
    TRASHES,
    UNCOMMITTED,
    UNCOUNTED,
    Slice,
)
from mountfs.meta.tree import Tree
from mountfs.types import Ino

_MARKS = {
    HAS_CONTENT: "content",
    HAS_SLICES: "slices",
    HAS_XATTRS: "xattrs",
    HAS_ACL: "acl",
    HAS_LOCKS: "locks",
    RETAINED: "retained",
    UNCOMMITTED: "to be retained",
    RETAINS: "retains",
    TRASHES: "says what becomes of what is deleted",
    TRASHED: "in the trash",
    UNCOUNTED: "not counted",
}


class SliceRow(msgspec.Struct, frozen=True):
    chunk: int
    piece: Slice
    visible: bool
    """Some of it is not covered by later slices."""


class Description(msgspec.Struct, frozen=True):
    """All that the metadata says of a file."""

    inode: dict[str, Any]
    content_bytes: int | None
    target: bytes | None
    xattrs: tuple[bytes, ...]
    slices: tuple[SliceRow, ...]
    """Chunk by chunk, oldest first."""
    more: bool
    """There are more slices than were asked for."""


class Describe(Query[Description], frozen=True, tag="describe"):
    """Raises STALE when there is no such inode."""

    ino: Ino
    limit: int

    def read(self, tree: Tree) -> Description:
        inode = tree.inode(self.ino)
        content = tree.get(keys.content(self.ino)) if inode.marks & HAS_CONTENT else None
        names = (key[9:] for key, _ in tree.scan(keys.xattrs(self.ino)))
        slices = list(islice(_slices(tree, self.ino), self.limit + 1))
        return Description(
            {
                "ino": inode.ino,
                "mode": inode.mode,
                "nlink": inode.nlink,
                "uid": inode.uid,
                "gid": inode.gid,
                "rdev": inode.rdev,
                "size": inode.size,
                "allocated": inode.allocated,
                "entries": inode.entries,
                "parent": inode.parent,
                "version": inode.version,
                "times_ns": {
                    "accessed": inode.atime,
                    "modified": inode.mtime,
                    "changed": inode.ctime,
                    "born": inode.btime,
                },
                "marks": [word for bit, word in _MARKS.items() if inode.marks & bit],
            },
            None if content is None else len(content),
            tree.get(keys.target(self.ino)) if stat.S_ISLNK(inode.mode) else None,
            tuple(names),
            tuple(slices[: self.limit]),
            len(slices) > self.limit,
        )


def _slices(tree: Tree, ino: Ino) -> Iterator[SliceRow]:
    for chunk in tree.chunks(ino, 0, 1 << 40):
        rows = [piece for _, piece in tree.slice_rows(ino, chunk)]
        seen = {(piece.slice_id, piece.start - piece.skip) for piece in visible(rows)}
        for piece in rows:
            yield SliceRow(chunk, piece, (piece.slice_id, piece.start - piece.skip) in seen)
