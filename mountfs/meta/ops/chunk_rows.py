"""The slices of a chunk as they are stored, one over the other: what compaction works on."""

from mountfs.meta import keys
from mountfs.meta.command import Query
from mountfs.meta.records import Slice
from mountfs.meta.tree import Tree
from mountfs.types import Ino

ROWS_URGENT = 4_096
"""With so many slices in a chunk, reading it suffers."""


class ChunkRows(Query[tuple[tuple[int, int, Slice], ...]], frozen=True, tag="chunk_rows"):
    """The slices of a chunk with their places: (order, number, slice), oldest first."""

    ino: Ino
    chunk: int

    def read(self, tree: Tree) -> tuple[tuple[int, int, Slice], ...]:
        tree.inode(self.ino)
        return tuple(
            (*keys.slice_place(key)[1:], piece)
            for key, piece in tree.slice_rows(self.ino, self.chunk)
        )


class CountRows(Query[int], frozen=True, tag="count_rows"):
    """How many slices a chunk has; no more than ROWS_URGENT are counted."""

    ino: Ino
    chunk: int

    def read(self, tree: Tree) -> int:
        return sum(1 for _ in tree.scan(keys.slices_of(self.ino, self.chunk), limit=ROWS_URGENT))
