"""What a node answers on its control socket, besides what its door knows of itself."""

import os
from typing import Any

import trio

from mountfs.errors import Fault, FsError
from mountfs.meta.locks import EOF, FLOCK
from mountfs.meta.ops.copies import GetCopies, SetCopies
from mountfs.meta.ops.describe import Describe, SliceRow
from mountfs.meta.protocol import Holder
from mountfs.meta.records import Slice
from mountfs.types import Ino, VolumeId
from mountfs.vfs.cluster import ClusterMount
from mountfs.vfs.control import Answerer
from mountfs.vfs.embedded import EmbeddedNode
from mountfs.vfs.quota_answers import quota_answers
from mountfs.vfs.retention_answers import retention_answers

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

    async def locks(args: dict[str, Any]) -> Any:
        told = await node.meta.locks(_ino(args))
        return {
            "held": [_lock(holder) for holder in told.held],
            "waiting": [_lock(holder) for holder in told.waiting],
        }

    async def copies(args: dict[str, Any]) -> Any:
        return {"copies": await node.meta.read(GetCopies(_ino(args)))}

    async def set_copies(args: dict[str, Any]) -> Any:
        if not isinstance(node, ClusterMount):
            raise FsError(
                Fault.UNSUPPORTED,
                f"{node.home.path} is mounted alone: there is one copy of everything.  See: "
                "mountfs cluster --help",
            )
        wanted = args.get("copies")
        if not isinstance(wanted, int):
            raise FsError(Fault.INVALID, "set_copies needs a number of copies")
        await node.meta.propose(SetCopies(_ino(args), wanted))
        node.meta.router.own_copies = True
        return {}

    def retention_is_used() -> None:
        if isinstance(node, ClusterMount):
            node.meta.router.retention = True

    return {
        "status": status,
        "info": info,
        "locks": locks,
        "copies": copies,
        "set_copies": set_copies,
        **quota_answers(node.meta),
        **node.filesystem.trash.answers(),
        **retention_answers(node.meta, node.filesystem.write_out, retention_is_used),
    }


def _ino(args: dict[str, Any]) -> Ino:
    ino = args.get("ino")
    if not isinstance(ino, int):
        raise FsError(Fault.INVALID, "it takes the number of an inode")
    return Ino(ino)


def _lock(holder: Holder) -> dict[str, Any]:
    lock = holder.lock
    return {
        "kind": "flock" if lock.flavor == FLOCK else "fcntl",
        "exclusive": lock.exclusive,
        "start": lock.start,
        "stop": None if lock.stop == EOF else lock.stop,
        "pid": lock.pid,
        "session": lock.owner.session,
        "about": holder.about,
        "waits_ms": holder.waits_ms,
    }


async def _info(node: EmbeddedNode | ClusterMount, ino: Ino, limit: int) -> dict[str, Any]:
    found = await node.meta.read(Describe(ino, limit))
    nodes: dict[VolumeId, tuple[int, ...]] = {}
    if isinstance(node, ClusterMount):
        for volume in {row.piece.volume for row in found.slices if row.piece.volume}:
            nodes[volume] = await node.chunks.volumes.replicas(volume)
    # In a thread: whether a slice is there is read from the disk.
    slices = await trio.to_thread.run_sync(
        lambda: [_slice(node, row, nodes) for row in found.slices]
    )
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


def _slice(
    node: EmbeddedNode | ClusterMount, row: SliceRow, nodes: dict[VolumeId, tuple[int, ...]]
) -> dict[str, Any]:
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
        "where": _where(node, piece, nodes),
    }


def _where(
    node: EmbeddedNode | ClusterMount, piece: Slice, nodes: dict[VolumeId, tuple[int, ...]]
) -> dict[str, Any] | None:
    """The nodes that have its volume; or, on one machine, the file, and where its needle begins
    there.  None for what is in no volume, or should be and is not.
    """
    if isinstance(node, ClusterMount):
        return {"nodes": nodes[piece.volume]} if piece.volume else None
    if not piece.volume or not node.disk.has(piece.volume, piece.slice_id):
        return None
    found = node.disk.place(piece.volume, piece.slice_id)
    return None if found is None else {"file": str(found[0]), "offset": found[1].offset}


def _text(name: bytes) -> str:
    """JSON has no bytes: those that are not UTF-8 are escaped."""
    return name.decode("utf-8", "backslashreplace")
