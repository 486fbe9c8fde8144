"""What a node answers on its control socket, besides what its door knows of itself."""

import os
import stat
from collections.abc import Iterator
from itertools import islice
from typing import Any

import msgspec
import trio

from mountfs.errors import Fault, FsError
from mountfs.meta import keys
from mountfs.meta.command import Query
from mountfs.meta.extents import visible
from mountfs.meta.records import (
    HAS_ACL,
    HAS_CONTENT,
    HAS_LOCKS,
    HAS_SLICES,
    HAS_XATTRS,
    Slice,
)
from mountfs.meta.tree import Tree
from mountfs.types import Ino
from mountfs.vfs.control import Answerer
from mountfs.vfs.embedded import EmbeddedNode

_MARKS = {
    HAS_CONTENT: "content",
    HAS_SLICES: "slices",
    HAS_XATTRS: "xattrs",
    HAS_ACL: "acl",
    HAS_LOCKS: "locks",
}
SLICES_MAX = 100_000
"""In one answer, however many are asked for."""


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


def answers(node: EmbeddedNode) -> dict[str, Answerer]:
    """Question -> who answers it."""

    async def status(_: dict[str, Any]) -> Any:
        return {**await node.status(), "pid": os.getpid()}

    async def info(args: dict[str, Any]) -> Any:
        ino, limit = args.get("ino"), args.get("limit", 1_000)
        if not isinstance(ino, int) or not isinstance(limit, int):
            raise FsError(Fault.INVALID, "info needs the number of an inode")
        return await _info(node, Ino(ino), min(limit, SLICES_MAX))

    return {"status": status, "info": info}


async def _info(node: EmbeddedNode, ino: Ino, limit: int) -> dict[str, Any]:
    found = await node.meta.read(Describe(ino, limit))
    # In a thread: whether a slice is there is read from the disk.
    slices = await trio.to_thread.run_sync(lambda: [_slice(node, row) for row in found.slices])
    unwritten = [file for file in node.filesystem.writer.unwritten if file.ino == ino]
    return {
        **found.inode,
        "content_bytes": found.content_bytes,
        "target": None if found.target is None else _text(found.target),
        "xattrs": [_text(name) for name in found.xattrs],
        "dirty_bytes": sum(file.dirty.bytes for file in unwritten),
        "slices": slices,
        "more": found.more,
    }


def _slice(node: EmbeddedNode, row: SliceRow) -> dict[str, Any]:
    piece = row.piece
    return {
        "chunk": row.chunk,
        "start": piece.start,
        "stop": piece.stop,
        "slice": piece.slice_id,
        "skip": piece.skip,
        "volume": piece.volume,
        "length": piece.length,
        "crc32c": piece.crc,
        "visible": row.visible,
        "where": _where(node, piece),
    }


def _where(node: EmbeddedNode, piece: Slice) -> dict[str, Any] | None:
    """The file of its volume, and where its needle begins there; None for what is in no volume, or
    should be and is not.
    """
    if not piece.volume or not node.disk.has(piece.volume, piece.slice_id):
        return None
    found = node.disk.place(piece.volume, piece.slice_id)
    return None if found is None else {"file": str(found[0]), "offset": found[1].offset}


def _text(name: bytes) -> str:
    """JSON has no bytes: those that are not UTF-8 are escaped."""
    return name.decode("utf-8", "backslashreplace")


def _slices(tree: Tree, ino: Ino) -> Iterator[SliceRow]:
    for chunk in tree.chunks(ino, 0, 1 << 40):
        rows = [piece for _, piece in tree.slice_rows(ino, chunk)]
        seen = {(piece.slice_id, piece.start - piece.skip) for piece in visible(rows)}
        for piece in rows:
            yield SliceRow(chunk, piece, (piece.slice_id, piece.start - piece.skip) in seen)
