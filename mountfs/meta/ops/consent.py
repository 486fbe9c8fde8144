"""What a chunkserver asks before it deletes: it does not believe who orders that, but the metadata,
which has what files refer to, and what is retained.
"""

from mountfs.errors import Fault, FsError
from mountfs.meta import keys
from mountfs.meta.command import Query
from mountfs.meta.ops.volumes import volume_of
from mountfs.meta.records import unpack_garbage
from mountfs.meta.tree import Tree
from mountfs.types import SliceId, VolumeId

SLICES_MAX = 4_096
"""In one question."""


class Needed(Query[tuple[SliceId, ...]], frozen=True, tag="needed"):
    """Those slices of a volume that a file refers to, or may come to refer to.  The others never
    will be needed.  Raises INVALID for too many.
    """

    volume: VolumeId
    slices: tuple[SliceId, ...]

    def read(self, tree: Tree) -> tuple[SliceId, ...]:
        if len(self.slices) > SLICES_MAX:
            raise FsError(Fault.INVALID, f"{len(self.slices)} slices at once")
        return tuple(one for one in self.slices if self._is_needed(tree, one))

    def _is_needed(self, tree: Tree, slice_id: SliceId) -> bool:
        if tree.get(keys.used(self.volume, slice_id)) is not None:
            return True
        garbage = tree.get(keys.garbage(slice_id))
        if garbage is not None and unpack_garbage(garbage)[0] == self.volume:
            return False
        return slice_id >= tree.counters.closed_slices


class MustKeep(Query[str], frozen=True, tag="must_keep"):
    """Why a node must keep its copy of a volume, in words; empty: it need not."""

    volume: VolumeId
    node: int

    def read(self, tree: Tree) -> str:
        record = volume_of(tree, self.volume)
        if record is not None:
            if self.node in record.replicas:
                return f"node {self.node} is one of those that are to have volume {self.volume}"
            return ""
        if next(tree.scan(keys.useds(self.volume), limit=1), None) is not None:
            return f"files refer to slices in volume {self.volume}"
        return ""
