"""The volumes of a cluster: which nodes have a copy of each, and who may write to it.

The leader decides with what it knows of the nodes (`meta.placement`); here is what is agreed on.
A volume takes slices in an epoch, from the session that it was given to.  Its replicas change only
while it is sealed: whoever still believes that it is open is refused by those that stay.
"""

from itertools import islice

import msgspec

from mountfs.errors import Fault, FsError
from mountfs.meta import keys
from mountfs.meta.command import Command, Query, Stamp
from mountfs.meta.records import unpack_used
from mountfs.meta.tree import Tree
from mountfs.types import FIRST_REPLICATED, SliceId, VolumeId

COPIES_MAX = 8


class VolumeRecord(msgspec.Struct, frozen=True, array_like=True):
    number: VolumeId
    replicas: tuple[int, ...]
    """Numbers of the nodes that have a copy, or are to have one."""
    copies: int
    """How many there should be: the cluster may not be able to give them now."""
    epoch: int = 1
    """Grows whenever it is opened for a session."""
    owner: int = 0
    """The session that writes to it; 0: nobody."""
    sealed: bool = False


class AllotVolume(Command[VolumeRecord], frozen=True, tag="allot_volume"):
    """A volume for a session: a new one, or one that nobody writes to.  Reply: its record, of a
    new epoch.

    Raises NOT_FOUND for one that has gone, and BUSY for one that is sealed or has an owner.
    """

    owner: int
    copies: int
    replicas: tuple[int, ...]
    """Of a new one."""
    number: VolumeId = VolumeId(0)
    """0: a new one."""

    def check(self) -> None:
        if self.number:
            return
        _check_copies(self.copies)
        _check_replicas(self.replicas)

    def apply(self, tree: Tree, stamp: Stamp) -> VolumeRecord:
        if not self.number:
            number = VolumeId(tree.counters.next_volume)
            tree.counters.next_volume += 1
            record = VolumeRecord(number, self.replicas, self.copies, 1, self.owner)
        else:
            before = require_volume(tree, self.number)
            if before.sealed or before.owner:
                why = "is sealed" if before.sealed else f"is written to by session {before.owner}"
                raise FsError(Fault.BUSY, f"volume {self.number} {why}")
            record = msgspec.structs.replace(before, owner=self.owner, epoch=before.epoch + 1)
        put_volume(tree, record)
        return record


class ReturnVolumes(Command[None], frozen=True, tag="return_volumes"):
    """Nobody writes to these any more, but they have room.  Those that have gone are left out."""

    volumes: tuple[tuple[VolumeId, int], ...]
    """(number, epoch): not one that was opened for somebody else meanwhile."""

    def apply(self, tree: Tree, stamp: Stamp) -> None:
        for number, epoch in self.volumes:
            record = volume_of(tree, number)
            if record is not None and record.epoch == epoch:
                put_volume(tree, msgspec.structs.replace(record, owner=0))


class SealVolume(Command[VolumeRecord], frozen=True, tag="seal_volume"):
    """It takes no more slices, ever.  Reply: the record.  Raises NOT_FOUND."""

    number: VolumeId

    def apply(self, tree: Tree, stamp: Stamp) -> VolumeRecord:
        record = msgspec.structs.replace(require_volume(tree, self.number), sealed=True, owner=0)
        put_volume(tree, record)
        return record


class SetReplicas(Command[VolumeRecord], frozen=True, tag="set_replicas"):
    """Other nodes have a sealed volume now.  Reply: the record.

    Raises NOT_FOUND, and BUSY when it is not sealed or `before` is not how it stands.
    """

    number: VolumeId
    before: tuple[int, ...]
    replicas: tuple[int, ...]
    copies: int

    def check(self) -> None:
        _check_copies(self.copies)
        _check_replicas(self.replicas)

    def apply(self, tree: Tree, stamp: Stamp) -> VolumeRecord:
        record = require_volume(tree, self.number)
        if not record.sealed or record.replicas != self.before:
            raise FsError(Fault.BUSY, f"volume {self.number} has changed: {record}")
        record = msgspec.structs.replace(record, replicas=self.replicas, copies=self.copies)
        put_volume(tree, record)
        return record


class AdoptVolume(Command[None], frozen=True, tag="adopt_volume"):
    """A volume that a node has made by itself, when it was alone, is to have copies.  If it is
    known already nothing changes.
    """

    number: VolumeId
    node: int
    copies: int

    def check(self) -> None:
        _check_copies(self.copies)
        if not 0 < self.number < FIRST_REPLICATED:
            raise FsError(Fault.INVALID, f"volume {self.number} was not made by a node")

    def apply(self, tree: Tree, stamp: Stamp) -> None:
        if volume_of(tree, self.number) is None:
            record = VolumeRecord(self.number, (self.node,), self.copies, sealed=True)
            put_volume(tree, record)


class ForgetVolume(Command[None], frozen=True, tag="forget_volume"):
    """A sealed volume has no slice that anybody refers to: its copies may go.

    Raises NOT_FOUND, and BUSY when it is not so.
    """

    number: VolumeId

    def apply(self, tree: Tree, stamp: Stamp) -> None:
        record = require_volume(tree, self.number)
        if not record.sealed:
            raise FsError(Fault.BUSY, f"volume {self.number} is not sealed")
        if next(tree.scan(keys.useds(self.number), limit=1), None) is not None:
            raise FsError(Fault.BUSY, f"volume {self.number} has slices that are in use")
        tree.put(keys.volume(self.number), None)


class CloseSlices(Command[None], frozen=True, tag="close_slices"):
    """Slices with names below `below` that no file refers to will never be referred to: they are
    garbage, wherever they are.  The mark only grows.
    """

    below: SliceId

    def apply(self, tree: Tree, stamp: Stamp) -> None:
        mark = min(self.below, tree.counters.next_slice)
        tree.counters.closed_slices = max(tree.counters.closed_slices, mark)


class GetVolumes(Query[tuple[VolumeRecord, ...]], frozen=True, tag="get_volumes"):
    """Those of `numbers` that there are.  A volume without a record is where its number says."""

    numbers: tuple[VolumeId, ...]

    def read(self, tree: Tree) -> tuple[VolumeRecord, ...]:
        found = (volume_of(tree, number) for number in self.numbers)
        return tuple(record for record in found if record is not None)


class ListVolumes(Query[tuple[VolumeRecord, ...]], frozen=True, tag="list_volumes"):
    """Up to `limit` volumes behind number `after`."""

    limit: int
    after: VolumeId = VolumeId(0)

    def read(self, tree: Tree) -> tuple[VolumeRecord, ...]:
        rows = islice(tree.scan(keys.volumes(self.after)), self.limit)
        return tuple(_decode(value) for _, value in rows)


class UsedSlices(Query[tuple[tuple[SliceId, int, int], ...]], frozen=True, tag="used_slices"):
    """Up to `limit` slices of a volume that files refer to, behind slice `after`: (slice, bytes,
    crc32c).
    """

    volume: VolumeId
    limit: int
    after: SliceId = SliceId(0)

    def read(self, tree: Tree) -> tuple[tuple[SliceId, int, int], ...]:
        rows = islice(tree.scan(keys.useds(self.volume, self.after)), self.limit)
        return tuple((SliceId(keys.last_64(key)), *unpack_used(value)) for key, value in rows)


def require_usable(tree: Tree, slice_id: SliceId, volume: VolumeId) -> None:
    """Raises SLICE_EXPIRED for a slice that is, or may be, garbage: the bytes have to be written
    again, under a new name.
    """
    if volume >= FIRST_REPLICATED and tree.get(keys.volume(volume)) is None:
        raise FsError(Fault.SLICE_EXPIRED, f"slice {slice_id:#x}: volume {volume} has gone")
    if slice_id < tree.counters.closed_slices and tree.get(keys.used(volume, slice_id)) is None:
        raise FsError(Fault.SLICE_EXPIRED, f"slice {slice_id:#x} was written too long ago")


def volume_of(tree: Tree, number: VolumeId) -> VolumeRecord | None:
    row = tree.get(keys.volume(number))
    return None if row is None else _decode(row)


def require_volume(tree: Tree, number: VolumeId) -> VolumeRecord:
    """Raises NOT_FOUND."""
    record = volume_of(tree, number)
    if record is None:
        raise FsError(Fault.NOT_FOUND, f"there is no volume {number}")
    return record


def put_volume(tree: Tree, record: VolumeRecord) -> None:
    tree.put(keys.volume(record.number), msgspec.msgpack.encode(record))


def _check_copies(copies: int) -> None:
    if not 0 < copies <= COPIES_MAX:
        raise FsError(Fault.INVALID, f"{copies} copies; 1 to {COPIES_MAX} are possible")


def _check_replicas(replicas: tuple[int, ...]) -> None:
    if not 0 < len(set(replicas)) == len(replicas) <= 2 * COPIES_MAX or min(replicas) < 1:
        raise FsError(Fault.INVALID, f"replicas {replicas}")


_decode = msgspec.msgpack.Decoder(VolumeRecord).decode
