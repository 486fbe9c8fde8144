"""copy_file_range(2): let a range of a file refer to the slices of another; no bytes are copied."""

import msgspec

from mountfs.errors import Fault, FsError
from mountfs.meta import keys
from mountfs.meta.command import Command, Stamp
from mountfs.meta.extents import visible, within
from mountfs.meta.ops.write import INLINE_BYTES_MAX
from mountfs.meta.records import HAS_CONTENT, HAS_SLICES, Attributes, Inode, Slice
from mountfs.meta.space import drop_privileges, erase, move_content, put_piece
from mountfs.meta.tree import Tree
from mountfs.types import CHUNK_BYTES, FILE_BYTES_MAX, Ino, SliceId, VolumeId

COPY_BYTES_MAX = CHUNK_BYTES
"""As much as one command copies; the caller asks again for the rest."""


class CopyRange(Command[tuple[Attributes, int]], frozen=True, tag="copy_range"):
    """Reply: the target's attributes and how many bytes were copied; 0 at the end of the source."""

    source: Ino
    source_offset: int
    target: Ino
    target_offset: int
    length: int
    drop_privileges: bool

    def check(self) -> None:
        if min(self.source_offset, self.target_offset, self.length) < 0:
            raise FsError(Fault.INVALID)
        if self.target_offset + min(self.length, COPY_BYTES_MAX) > FILE_BYTES_MAX:
            raise FsError(Fault.FILE_TOO_LARGE)

    def apply(self, tree: Tree, stamp: Stamp) -> tuple[Attributes, int]:
        source = tree.inode(self.source)
        if not (source.is_regular and tree.inode(self.target).is_regular):
            raise FsError(Fault.INVALID)
        target = tree.edit(self.target)
        length = min(self.length, COPY_BYTES_MAX, source.size - self.source_offset)
        if length <= 0:
            return tree.attributes(target), 0
        stop = self.target_offset + length
        if source.ino == target.ino and (
            self.source_offset < stop and self.target_offset < self.source_offset + length
        ):
            raise FsError(Fault.INVALID, "the ranges overlap")
        self._copy(tree, source, target, length)
        target.size = max(target.size, stop)
        target.mtime = target.ctime = stamp.time
        target.version = stamp.index
        if self.drop_privileges:
            drop_privileges(tree, target)
        return tree.attributes(target), length

    def _copy(self, tree: Tree, source: Inode, target: Inode, length: int) -> None:
        stop = self.target_offset + length
        if (
            source.marks & HAS_CONTENT
            and not target.marks & HAS_SLICES
            and stop <= INLINE_BYTES_MAX
        ):
            content = tree.content(source, self.source_offset, self.source_offset + length)
            content = content.ljust(length, b"\0")
            old = tree.get(keys.content(target.ino)) or b""
            old = old.ljust(self.target_offset, b"\0")
            tree.set_content(target, old[: self.target_offset] + content + old[stop:])
            return
        runs = _runs(tree, source, self.source_offset, length)
        number = move_content(tree, target)
        erase(tree, target, self.target_offset, stop, number)
        number += 1  # the copied slices come above the holes
        for offset, piece, data in runs:
            at = self.target_offset + offset
            for chunk, start, part in _at(at, piece):
                if data is not None:
                    part_data = data[part.skip : part.skip + part.stop - part.start]
                    name = put_piece(tree, target, number, part_data)
                    part = msgspec.structs.replace(
                        part, slice_id=name, skip=0, length=len(part_data), crc=0
                    )
                else:
                    tree.share_slice(part)
                new = msgspec.structs.replace(
                    part, start=start, stop=start + part.stop - part.start
                )
                tree.add_slice(target, chunk, number, new)
                number += 1


def _runs(
    tree: Tree, inode: Inode, offset: int, length: int
) -> list[tuple[int, Slice, bytes | None]]:
    """What is seen in a range, but holes: (offset from the start of the range, slice, bytes of a
    piece).
    """
    if inode.marks & HAS_CONTENT:
        content = tree.content(inode, offset, offset + length)
        whole = Slice(0, len(content), SliceId(1), 0, VolumeId(0), len(content), 0)
        return [(0, whole, content)] if content else []
    runs: list[tuple[int, Slice, bytes | None]] = []
    stop = offset + length
    for chunk in range(offset // CHUNK_BYTES, (stop - 1) // CHUNK_BYTES + 1):
        base = chunk * CHUNK_BYTES
        seen = visible(tree.slices(inode.ino, chunk))
        for piece in within(seen, max(offset - base, 0), min(stop - base, CHUNK_BYTES)):
            if piece.is_hole:
                continue
            data: bytes | None = None
            if not piece.volume:
                data = tree.get(keys.piece(inode.ino, piece.slice_id))
                assert data is not None, piece
            runs.append((base + piece.start - offset, piece, data))
    return runs


def _at(offset: int, piece: Slice) -> list[tuple[int, int, Slice]]:
    """The parts of a slice when it is put at an offset of a file: (chunk, start in it, part)."""
    parts = []
    while True:
        chunk, start = divmod(offset, CHUNK_BYTES)
        fits = min(CHUNK_BYTES - start, piece.stop - piece.start)
        parts.append((chunk, start, piece.cut(piece.start, piece.start + fits)))
        if piece.start + fits == piece.stop:
            return parts
        piece = piece.cut(piece.start + fits, piece.stop)
        offset += fits
