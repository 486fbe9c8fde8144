"""Names for slices, and the end of those that nobody needs: rewritten, garbage, reclaimed."""

from collections.abc import Iterable
from itertools import islice

from crc32c import crc32c

from mountfs.errors import Fault, FsError
from mountfs.meta import keys
from mountfs.meta.command import Command, Query, Stamp
from mountfs.meta.ops.volumes import require_usable
from mountfs.meta.records import Slice, pack_garbage, pack_slice, unpack_garbage
from mountfs.meta.tree import Tree
from mountfs.types import Ino, SliceId, VolumeId

RESERVED_MAX = 1 << 20
"""Names are given out once, and there is an end to them."""


class ReserveSlices(Command[SliceId], frozen=True, tag="reserve_slices"):
    """Reply: the first of `count` slice names that are the caller's now."""

    count: int

    def check(self) -> None:
        if not 0 < self.count <= RESERVED_MAX:
            raise FsError(Fault.INVALID, f"{self.count} slices at once")

    def apply(self, tree: Tree, stamp: Stamp) -> SliceId:
        first = tree.counters.next_slice
        tree.counters.next_slice += self.count
        return SliceId(first)


class Rewrite(Command[None], frozen=True, tag="rewrite"):
    """Compaction of a chunk: `added` say the same as the rows `replaced` did.

    Raises BUSY when one of those rows has gone meanwhile, and SLICE_EXPIRED when a new slice came
    too late; then the new slices are garbage.  It is believed: who may ask for it is the cluster
    itself, or a filesystem on one machine.
    """

    ino: Ino
    chunk: int
    replaced: tuple[tuple[int, int], ...]
    """(order, number) of each row, ascending."""
    added: tuple[Slice, ...]

    def apply(self, tree: Tree, stamp: Stamp) -> None:
        inode = tree.rearrange(self.ino)
        rows = {key: piece for key, piece in tree.slice_rows(self.ino, self.chunk)}
        replaced = [keys.slice_(self.ino, self.chunk, *place) for place in self.replaced]
        if not all(key in rows for key in replaced):
            raise FsError(Fault.BUSY, "the chunk changed while it was compacted")
        for piece in self.added:
            if piece.volume:
                require_usable(tree, piece.slice_id, piece.volume)
        kept = {rows[key].slice_id for key in replaced if rows[key].volume}
        for piece in self.added:  # counted before they are dropped, or they would be garbage
            if piece.slice_id in kept:
                tree.share_slice(piece)
        for key in replaced:
            tree.drop_slice(self.ino, key, rows[key])
        order, last = self.replaced[-1]
        for number, piece in enumerate(self.added, last + 1):
            tree.put_slice(keys.slice_(self.ino, self.chunk, order, number), piece)
        if len(rows) == len(replaced):
            tree.put(keys.tangled(self.ino, self.chunk), None)
        inode.version = stamp.index


class Settle(Command[None], frozen=True, tag="settle"):
    """A chunk is good as it is: nothing to compact, as long as it has the rows that were judged."""

    ino: Ino
    chunk: int
    rows: int
    """How many they were."""
    crc: int | None = None
    """`crc_of_rows` of them: as many other rows are not what was judged.  None in logs that were
    written before it was compared; what these say must mean what it meant then.
    """

    def apply(self, tree: Tree, stamp: Stamp) -> None:
        rows = tree.slice_rows(self.ino, self.chunk)
        if len(rows) == self.rows and self.crc in (None, crc_of_rows(rows)):
            tree.put(keys.tangled(self.ino, self.chunk), None)


def crc_of_rows(rows: Iterable[tuple[bytes, Slice]]) -> int:
    """One number for the rows of a chunk, their places and all that they say."""
    crc = 0
    for key, piece in rows:
        crc = crc32c(pack_slice(piece), crc32c(key, crc))
    return crc


class Discard(Command[None], frozen=True, tag="discard"):
    """Slices were written for nothing: they are garbage at once.  But for those that files refer
    to: who says so of them is wrong.
    """

    slices: tuple[tuple[SliceId, VolumeId, int], ...]

    def apply(self, tree: Tree, stamp: Stamp) -> None:
        for slice_id, volume, length in self.slices:
            if tree.get(keys.used(volume, slice_id)) is None:
                tree.put(keys.garbage(slice_id), pack_garbage(volume, length))


class Reclaimed(Command[None], frozen=True, tag="reclaimed"):
    """These slices are deleted in their volumes."""

    slices: tuple[SliceId, ...]

    def apply(self, tree: Tree, stamp: Stamp) -> None:
        for slice_id in self.slices:
            tree.put(keys.garbage(slice_id), None)


class Garbage(Query[tuple[tuple[SliceId, VolumeId, int], ...]], frozen=True, tag="garbage"):
    """Up to `limit` slices that wait for their deletion, behind the slice `after`: (slice, volume,
    bytes).
    """

    limit: int
    after: SliceId = SliceId(0)

    def read(self, tree: Tree) -> tuple[tuple[SliceId, VolumeId, int], ...]:
        rows = islice(tree.scan(keys.garbages(self.after)), self.limit)
        return tuple((SliceId(keys.last_64(key)), *unpack_garbage(value)) for key, value in rows)


class Tangles(Query[tuple[tuple[Ino, int], ...]], frozen=True, tag="tangles"):
    """Up to `limit` chunks that have slices lying over one another: (ino, chunk)."""

    limit: int

    def read(self, tree: Tree) -> tuple[tuple[Ino, int], ...]:
        rows = islice(tree.scan(keys.tangles()), self.limit)
        return tuple(keys.tangle_place(key) for key, _ in rows)
