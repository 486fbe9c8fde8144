"""What a node answers on its control socket, besides what its door knows of itself."""

import os
from typing import Any

import trio

from mountfs.chunks.protocol import node_of
from mountfs.errors import Fault, FsError
from mountfs.meta.ops.describe import Describe, SliceRow
from mountfs.meta.records import Slice
from mountfs.types import Ino
from mountfs.vfs.cluster import ClusterMount
from mountfs.vfs.control import Answerer
from mountfs.vfs.embedded import EmbeddedNode

SLICES_MAX = 100_000
"""In one answer, however many are asked for."""


def answers(node: EmbeddedNode | ClusterMount) -> dict[str, Answerer]:
    """Question -> who answers it."""

    async def status(_: dict[str, Any]) -> Any:
        return {**await node.status(), "pid": os.getpid()}

    async def info(args: dict[str, Any]) -> Any:
        ino, limit = args.get("ino"), args.get("limit", 1_000)
        if not isinstance(ino, int) or not isinstance(limit, int):
            raise FsError(Fault.INVALID, "info needs the number of an inode")
        return await _info(node, Ino(ino), min(limit, SLICES_MAX))

    return {"status": status, "info": info}


async def _info(node: EmbeddedNode | ClusterMount, ino: Ino, limit: int) -> dict[str, Any]:
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


def _slice(node: EmbeddedNode | ClusterMount, row: SliceRow) -> dict[str, Any]:
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


def _where(node: EmbeddedNode | ClusterMount, piece: Slice) -> dict[str, Any] | None:
    """The file of its volume, and where its needle begins there; None for what is in no volume, or
    should be and is not.
    """
    if isinstance(node, ClusterMount):
        return {"node": node_of(piece.volume)} if piece.volume else None
    if not piece.volume or not node.disk.has(piece.volume, piece.slice_id):
        return None
    found = node.disk.place(piece.volume, piece.slice_id)
    return None if found is None else {"file": str(found[0]), "offset": found[1].offset}


def _text(name: bytes) -> str:
    """JSON has no bytes: those that are not UTF-8 are escaped."""
    return name.decode("utf-8", "backslashreplace")
