"""write(2), as it reaches the metadata: where the bytes of a flush are, or, for few of them, the
bytes.
"""

import msgspec

from mountfs.errors import Fault, FsError
from mountfs.meta import keys
from mountfs.meta.command import Command, Stamp
from mountfs.meta.ops.volumes import require_usable
from mountfs.meta.records import HAS_CONTENT, HAS_SLICES, Attributes, Inode, Slice
from mountfs.meta.space import (
    drop_capabilities,
    drop_privileges,
    move_content,
    piece_name,
    put_piece,
)
from mountfs.meta.tree import Tree
from mountfs.types import CHUNK_BYTES, FILE_BYTES_MAX, KIB, SLICE_BYTES_MAX, Ino, SliceId, VolumeId

INLINE_BYTES_MAX = 4 * KIB
"""A file up to this size keeps its bytes with its inode."""
PIECE_BYTES_MAX = 64 * KIB
RUNS_MAX = 1 << 16
"""Of one command."""
"""A run of bytes up to this size may travel with the command and stay in the metadata until
compaction.
"""


class Run(msgspec.Struct, frozen=True, array_like=True):
    """Bytes of a file from `offset` on, within one chunk: in a slice, or right here."""

    offset: int
    length: int
    crc: int
    slice_id: SliceId = SliceId(0)
    volume: VolumeId = VolumeId(0)
    data: bytes = b""


class Write(Command[tuple[Attributes, SliceId]], frozen=True, tag="write"):
    """Reply: the attributes, and the name that the first run has as a piece (the next one has the
    next number); 0 where the bytes went into the content of the file.

    Raises SLICE_EXPIRED when a slice came too late, INVALID when one is in use already.
    """

    ino: Ino
    runs: tuple[Run, ...]
    time: int
    """When the last of it was written, in nanoseconds: what stat(2) has been saying since."""
    drop_privileges: bool

    def check(self) -> None:
        if not 0 < len(self.runs) <= RUNS_MAX:
            raise FsError(Fault.INVALID, f"{len(self.runs)} runs")
        for run in self.runs:
            if run.offset < 0 or run.offset + run.length > FILE_BYTES_MAX:
                raise FsError(Fault.FILE_TOO_LARGE)
            fits = run.offset % CHUNK_BYTES + run.length <= CHUNK_BYTES
            is_piece = len(run.data) == run.length <= PIECE_BYTES_MAX
            if not 0 < run.length <= SLICE_BYTES_MAX or not fits or not (run.volume or is_piece):
                raise FsError(Fault.INVALID, f"a run of {run.length} bytes at {run.offset}")

    def apply(self, tree: Tree, stamp: Stamp) -> tuple[Attributes, SliceId]:
        if not tree.inode(self.ino).is_regular:
            raise FsError(Fault.INVALID)
        for run in self.runs:
            if run.volume:
                require_usable(tree, run.slice_id, run.volume)
                _require_new(tree, run)
        inode = tree.edit(self.ino)
        stop = max(run.offset + run.length for run in self.runs)
        small = stop <= INLINE_BYTES_MAX and not inode.marks & HAS_SLICES
        if small and all(not run.volume for run in self.runs):
            _write_content(tree, inode, self.runs)
            piece = SliceId(0)
        else:
            piece = _write_slices(tree, inode, self.runs)
        inode.size = max(inode.size, stop)
        inode.mtime = self.time
        inode.ctime = max(inode.ctime, self.time)
        inode.version = stamp.index
        if self.drop_privileges:
            drop_privileges(tree, inode)
        else:
            drop_capabilities(tree, inode)
        return tree.attributes(inode), piece


def _require_new(tree: Tree, run: Run) -> None:
    """Another file's slice would go with this one.  Raises INVALID."""
    used = tree.get(keys.used(run.volume, run.slice_id))
    if used is not None or tree.get(keys.shared(run.slice_id)) is not None:
        raise FsError(Fault.INVALID, f"slice {run.slice_id:#x} is in use already")


def _write_content(tree: Tree, inode: Inode, runs: tuple[Run, ...]) -> None:
    content = (tree.get(keys.content(inode.ino)) or b"") if inode.marks & HAS_CONTENT else b""
    for run in runs:
        if run.offset > len(content):
            content += bytes(run.offset - len(content))
        content = content[: run.offset] + run.data + content[run.offset + run.length :]
    tree.set_content(inode, content)


def _write_slices(tree: Tree, inode: Inode, runs: tuple[Run, ...]) -> SliceId:
    first = move_content(tree, inode)
    for number, run in enumerate(runs, first):
        slice_id, volume = run.slice_id, run.volume
        if not volume:
            slice_id = put_piece(tree, inode, number, run.data)
        chunk, start = divmod(run.offset, CHUNK_BYTES)
        new = Slice(start, start + run.length, slice_id, 0, volume, run.length, run.crc)
        tree.add_slice(inode, chunk, number, new)
    return piece_name(tree, first)
