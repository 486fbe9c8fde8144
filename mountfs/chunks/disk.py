"""The volumes of one directory, for threads.  Everything here blocks, unless it says otherwise.

Order is the contract:
- a needle is in the index once all of it is in the file, so a reader never meets a half one;
- it is in the index's table once it is on disk, so a crash never leaves a name without bytes;
- an append reserves its range under the lock and writes outside of it; the durable offset of a
  volume stays below every range that is still being written;
- fdatasync is tried once.  When it fails, the kernel may have dropped the bytes and would report
  success the next time; so the volume is never written again, and `sync` fails while anything that
  was not on disk before is still wanted.

A volume is either our own: numbered here, filled one after the other, and gone when nothing lives
in it.  Or it is named by others, who have it made, opened, sealed and dropped.

Locks, from the outside in: `_compacting` (one compaction), `_orders` (making and removing volumes
that are named by others), `LiveVolume.deleting` (tombstones of a volume, against compaction),
`_syncing` (one round of fdatasync), `_table` (writing the table of the index), `_lock` (everything
in memory; held shortly).
"""

import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import reduce
from itertools import islice
from pathlib import Path
from typing import TypeVar

from mountfs.buffers import Buffers
from mountfs.chunks import needle, rewrite
from mountfs.chunks.config import ChunkConfig
from mountfs.chunks.file import VolumeFile, sync_directory
from mountfs.chunks.index import NeedleIndex, Place, merged
from mountfs.chunks.needle import HEADER_BYTES, Buffer, Checksums
from mountfs.chunks.reader import NeedleReader
from mountfs.chunks.rewrite import DamagedNeedle, Progress
from mountfs.chunks.volume import (
    SUPERBLOCK_BYTES,
    Damage,
    Debt,
    Gap,
    VolumeStats,
    debt,
)
from mountfs.chunks.volume_set import LiveVolume, VolumeSet
from mountfs.errors import Fault, FsError, disk_error
from mountfs.kv.base import Store
from mountfs.meta.reports import with_name
from mountfs.types import MIB, SLICE_BYTES_MAX, SliceId, VolumeId
from mountfs.wire.frames import Stretch

log = logging.getLogger(__name__)

T = TypeVar("T")

_SPACE_SECONDS = 0.5
"""How long an answer of statvfs is believed: others write to the disk, too."""
_WRITE_EARLY_BYTES = MIB
"""The disk begins with a needle of this size at once.  Smaller ones wait until somebody syncs:
many of them make one large write.
"""
_DISK_FAILED = frozenset(
    (errno.EIO, errno.ENODEV, errno.ENXIO, errno.EROFS, errno.ESTALE, errno.EUCLEAN)
)
"""What a disk says that is to be relied on no more."""
_TOMBSTONES_MAX = 1_024
"""In one write."""


class DiskStore:
    """Volumes in `directory`/volumes, and an index of their needles that may be lost any time.

    `home` says which filesystem the volumes belong to, 16 bytes: others are refused with BAD_HOME.
    Without it, it is what the volumes say, or random.
    """

    def __init__(
        self,
        directory: Path,
        index_store: Store,
        *,
        home: bytes | None = None,
        config: ChunkConfig | None = None,
        buffers: Buffers | None = None,
    ) -> None:
        self.config = config or ChunkConfig()
        self.directory = directory / "volumes"
        self._lock = threading.Lock()
        self._quiet = threading.Condition(self._lock)
        """Notified when a reserved range is done with."""
        self._table = threading.Lock()
        self._syncing = threading.Lock()
        self._compacting = threading.Lock()
        self._orders = threading.Lock()
        self._set = VolumeSet(self.directory, self.config, home)
        self._volumes = self._set.items
        self._active: LiveVolume | None = None
        self._open: dict[VolumeId, LiveVolume] = {}
        """Those named by others that take needles."""
        self.failure = ""
        """What the disk said when it failed: then it takes nothing new from others."""
        self._being_synced = False
        self._failed = False
        """A volume has failed."""
        self._space = (0.0, 0, 0)
        self._dead: list[tuple[VolumeFile, Place]] = []
        """Deleted, but their space is not given back yet."""
        """(when asked, total, available)"""
        self._index = NeedleIndex(index_store)
        self._reader = NeedleReader(
            self._index, self._lock, self.config.heads_max, buffers or Buffers()
        )
        try:
            self._set.open_all(self._index, self._write_table)
        except OSError as error:
            raise disk_error(error, f"{self.directory}: opening the volumes") from error

    # -- writing

    def append(
        self,
        slice_id: SliceId,
        parts: Sequence[Buffer],
        sums: Checksums | None = None,
        volume_id: VolumeId | None = None,
        epoch: int = 0,
    ) -> VolumeId:
        """Store a slice; it is readable when this returns, and durable after the next `sync`.

        `sums` are those of `parts`, where they are known.  With `volume_id`, into that one, which
        must be open (in that `epoch`, if one is given), or VOLUME_CLOSED is raised; what is there
        already need not be stored again, and CORRUPT is raised if other bytes are.  Raises NO_SPACE
        or DEVICE, and then nothing of it is stored.
        """
        sums = sums or needle.checksums(parts)
        length = sums.length
        assert slice_id > 0, slice_id
        assert 0 < length <= SLICE_BYTES_MAX, length
        if volume_id is not None:
            self._append_named(volume_id, epoch, slice_id, parts, sums)
            return volume_id
        if self._index.pending >= self.config.pending_needles_max:
            self._shrink_index()
        size = needle.needle_bytes(length)
        with self._lock:
            try:
                volume, file = self._volume_with_room(size)
            except OSError as error:
                raise disk_error(error, f"{self.directory}: making room") from error
            at = self._reserve(volume, size)
            durable = volume.durable
        self._write_needle(volume, file, at, durable, slice_id, parts, sums)
        return volume.id

    def _write_needle(
        self,
        volume: LiveVolume,
        file: VolumeFile,
        at: int,
        durable: int,
        slice_id: SliceId,
        parts: Sequence[Buffer],
        sums: Checksums,
    ) -> None:
        """Into the range that is reserved for it."""
        length = sums.length
        size = needle.needle_bytes(length)
        head = needle.encode(file.superblock.salt, at, durable, slice_id, length, sums.table)
        self._fill(volume, file, at, size, [head, *parts, needle.padding(length)])
        if size >= _WRITE_EARLY_BYTES:
            file.start_writing(at, at + size)
        with self._lock:
            volume.account(self._index.put(volume.id, slice_id, Place(at, length)))
            volume.bad.pop(slice_id, None)
            self._reader.forget(volume.id, slice_id)
            self._done(volume, at)

    def appends_at_once(self, size_bytes: int, volume_id: VolumeId | None = None) -> bool:
        """Whether an `append` of that size takes no more than a write into the page cache."""
        volume = self._active if volume_id is None else self._open.get(volume_id)
        return (
            volume is not None
            and not volume.sealed
            and volume.slack > size_bytes + size_bytes // 32 + 4096
            and volume.end + size_bytes + size_bytes // 32 + 4096 < self.config.volume_bytes
            and self._index.pending < self.config.pending_needles_max
        )

    def delete(self, slices: Mapping[VolumeId, Sequence[SliceId]]) -> None:
        """Forget slices; what is not there is forgotten already.  Durable after the next `sync`.

        Raises NO_SPACE or DEVICE; then some of them are still there.
        """
        for volume_id, ids in slices.items():
            volume = self._volumes.get(volume_id)
            if volume is None:
                continue
            for at in range(0, len(ids), _TOMBSTONES_MAX):
                if self._index.pending >= self.config.pending_needles_max and not volume.failed:
                    self._shrink_index()
                with volume.deleting:
                    self._delete(volume, dict.fromkeys(ids[at : at + _TOMBSTONES_MAX]))

    def _delete(self, volume: LiveVolume, ids: Mapping[SliceId, None]) -> None:
        with self._lock:
            if volume.dropped:
                return
            living = [one for one in ids if self._index.get(volume.id, one) is not None]
            if not living:
                return
            last = len(living) == volume.needles and volume.sealed and not volume.writing
            last = last and volume.own
            volume.dropped = last
            if volume.failed and not last:
                self._delete_from_index(volume, living)
                return
            if not last:
                try:
                    file = self._set.file(volume)
                except OSError as error:
                    raise disk_error(error, f"{volume.path}: opening it") from error
                size = HEADER_BYTES * len(living)
                at = self._reserve(volume, size)
                durable = volume.durable
        if last:
            self._drop(volume)
            return
        data = rewrite.tombstones(file.superblock.salt, at, durable, living)
        self._fill(volume, file, at, size, [data])
        with self._lock:
            places = [self._index.get(volume.id, slice_id) for slice_id in living]
            for number, slice_id in enumerate(living):
                offset = at + number * HEADER_BYTES
                volume.account(self._index.remove(volume.id, slice_id, offset))
                volume.bad.pop(slice_id, None)
                self._reader.forget(volume.id, slice_id)
            if volume.removed is not None:
                volume.removed += living
            else:
                self._dead += [(file, place) for place in places if place is not None]
            self._done(volume, at)

    def give_back(self) -> None:
        """Give the space of deleted slices back to the disk, and make their deletion durable.

        On a full disk there is no room to compact a volume.  Headers stay, so the needles around
        are found.  The tombstones are on disk first: a needle with a hole must not come back.  (A
        compaction that was under way reads what it found living: its volume is left alone.)
        """
        with self._lock:
            dead, self._dead = self._dead, []
        try:
            self.sync()
        except BaseException:
            with self._lock:
                self._dead = dead + self._dead
            raise
        for file, place in dead:
            payload = place.offset + HEADER_BYTES + needle.table_bytes(place.length)
            file.punch(payload, payload + place.length)
        self._space = (0.0, 0, 0)

    def _delete_from_index(self, volume: LiveVolume, ids: Sequence[SliceId]) -> None:
        """Of a volume that cannot be written.  They come back, as garbage, if the index is lost."""
        for slice_id in ids:
            place = self._index.get(volume.id, slice_id)
            if place is not None:
                volume.account(self._index.remove(volume.id, slice_id, place.offset))
            volume.bad.pop(slice_id, None)
            self._reader.forget(volume.id, slice_id)

    def _reserve(self, volume: LiveVolume, size: int) -> int:
        at = volume.end
        assert at % needle.ALIGN == 0, at
        assert size % needle.ALIGN == 0, size
        volume.writing[at] = at + size
        volume.end = at + size
        return at

    def _fill(
        self, volume: LiveVolume, file: VolumeFile, at: int, size: int, parts: Sequence[Buffer]
    ) -> None:
        """Write into a reserved range.  If that fails the range is given back."""
        try:
            file.write(parts, at)
        except OSError as error:
            self._give_back(volume, file, Gap(at, at + size))
            self._note_failure(error, volume.path)
            raise disk_error(error, f"{volume.path}: writing at offset {at}") from error

    def _done(self, volume: LiveVolume, at: int) -> None:
        del volume.writing[at]
        if not volume.dropped:
            self._set.dirty.add(volume.id)
        self._quiet.notify_all()

    def _give_back(self, volume: LiveVolume, file: VolumeFile, gap: Gap) -> None:
        """End the file before a range that could not be written; or, if others have reserved
        behind it, mark it as void.
        """
        with self._lock:
            self._space = (0.0, 0, 0)
            if gap.stop == volume.end:
                try:
                    file.cut(gap.start)
                except OSError as error:
                    log.error("%s: cutting it at %d: %s", volume.path, gap.start, error)
                else:
                    volume.end = volume.allocated = gap.start
                    self._done(volume, gap.start)
                    return
            volume.holes.append(gap)
        self._mark_holes(volume, file)

    def _mark_holes(self, volume: LiveVolume, file: VolumeFile) -> None:
        """Until it succeeds, the range counts as being written, and the volume takes no needle."""
        for gap in volume.holes.copy():
            try:
                file.write([rewrite.void(file.superblock.salt, gap)], gap.start)
            except OSError as error:
                log.error("%s: marking a hole at %d: %s", volume.path, gap.start, error)
                with self._lock:
                    volume.sealed = True
                    volume.epoch = 0
            else:
                with self._lock:
                    if gap in volume.holes:  # nobody else has done it meanwhile
                        volume.holes.remove(gap)
                        self._done(volume, gap.start)

    def _volume_with_room(self, size: int) -> tuple[LiveVolume, VolumeFile]:
        """The volume that takes the next needle, with disk space for it.  Under the lock."""
        volume = self._active
        if volume is None or volume.sealed or volume.end + size > self.config.volume_bytes:
            if volume is not None:
                self._seal(volume)
            volume = self._active = self._reopened(size) or self._begin(self._set.begin())
            volume.sealed = False
        file = self._set.file(volume)
        if volume.end + size > volume.allocated:
            self._allocate(volume, file, size)
        return volume, file

    def _begin(self, volume: LiveVolume) -> LiveVolume:
        """There is a new volume."""
        try:
            self._index.begin(volume.id, volume.generation, volume.end)
        except FsError as error:  # as with the rest of the table: it is written later
            log.warning("%s: writing the index: %s", self.directory, error)
        return volume

    def _reopened(self, size: int) -> LiveVolume | None:
        """A volume that has become small, to be filled again: the smallest."""
        limit = self.config.volume_bytes - max(size, self.config.volume_bytes // 8)
        fitting = [
            volume
            for volume in self._volumes.values()
            if volume.own
            if volume.end <= limit
            if not (volume.trouble or volume.holes)
            if volume.removed is None and not volume.dropped
        ]
        return min(fitting, key=lambda volume: volume.end, default=None)

    def _seal(self, volume: LiveVolume) -> None:
        """No more needles for now; under the lock."""
        volume.sealed = True
        volume.epoch = 0
        self._open.pop(volume.id, None)
        if volume is self._active:
            self._active = None
        if volume.slack and not volume.failed:
            try:
                self._set.file(volume).cut(volume.end)
            except OSError as error:
                log.warning("%s: giving back unused space: %s", volume.path, error)
        volume.allocated = volume.end

    def _allocate(self, volume: LiveVolume, file: VolumeFile, size: int) -> None:
        """Take disk space for a needle and for what comes after it; under the lock."""
        start = max(volume.allocated, volume.end)
        needed = volume.end + size - start
        total, free = self._disk_space()
        reserve = self._reserve_bytes(total)
        free -= reserve
        if free < needed:
            raise FsError(
                Fault.NO_SPACE,
                f"{self.directory}: the disk is full, but for {reserve} bytes kept in reserve",
            )
        # Of a disk that fills up, the metadata is to have its part, too.
        wanted = min(self.config.preallocate_bytes, self.config.volume_bytes - start, free // 4)
        stop = start + max(wanted, needed)
        file.allocate(start, stop)
        volume.allocated = stop
        self._space = (0.0, 0, 0)

    # -- volumes that are named by others

    def open_volume(self, volume_id: VolumeId, epoch: int) -> None:
        """Let a volume take needles, in this epoch and in no earlier one.  It is made if it is not
        there.

        Raises BUSY for one that is sealed, or was opened in a later epoch; NO_SPACE, DEVICE.
        """
        assert epoch > 0, epoch
        with self._orders:
            with self._lock:
                volume = self._volumes.get(volume_id)
                self._require_openable(volume_id, volume, epoch)
            if volume is None or volume.last_epoch != epoch:
                self._keep_epoch(volume_id, epoch)
            if volume is None:
                volume = self._make(volume_id)
            with self._lock:
                try:
                    self._set.file(volume)  # it stays open
                except OSError as error:
                    self._note_failure(error, volume.path)
                    raise disk_error(error, f"{volume.path}: opening it") from error
                volume.epoch = volume.last_epoch = epoch
                volume.sealed = False
                self._open[volume_id] = volume
                try:
                    self._wait(volume, lambda: volume.is_quiet)
                except FsError:
                    self._seal(volume)
                    raise

    def _require_openable(self, volume_id: VolumeId, volume: LiveVolume | None, epoch: int) -> None:
        path = self._set.path(volume_id)
        if self.failure:
            raise FsError(Fault.DEVICE, f"{path}: the disk takes nothing new: {self.failure}")
        if damage := self._set.unreadable.get(volume_id):
            raise FsError(Fault.BUSY, f"{path} is not to be written to: {damage.detail}")
        if volume is None:
            return
        if volume.dropped or not volume.last_epoch:
            raise FsError(Fault.BUSY, f"{path} is sealed")
        if volume.last_epoch > epoch:
            what = f"was opened in epoch {volume.last_epoch}, which is later than {epoch}"
            raise FsError(Fault.BUSY, f"{path} {what}")
        if why := volume.trouble:
            raise FsError(Fault.BUSY, f"{path} is not to be written to: {why}")

    def seal(self, volume_id: VolumeId) -> VolumeStats:
        """Let a volume take no needles any more, ever; those that it has taken are in the answer,
        and on disk.  It is made if it is not there.

        Raises BUSY when writes under way do not end, NO_SPACE, DEVICE, and CORRUPT for a volume
        that is there and cannot be opened.
        """
        with self._orders:
            volume = self._volumes.get(volume_id)
            if volume is None:
                if damage := self._set.unreadable.get(volume_id):
                    raise FsError(Fault.CORRUPT, f"{damage.path}: {damage.detail}")
                self._keep_epoch(volume_id, 0)  # it may be that opening it has failed half-way
                volume = self._make(volume_id)
            with self._lock:
                volume.own = False
                if not volume.sealed or volume.slack:
                    self._seal(volume)
                self._wait(volume, lambda: volume.is_quiet)
            if volume.last_epoch:
                self._keep_epoch(volume_id, 0)
                volume.last_epoch = 0
        try:
            self.sync()
        except FsError as error:  # if it is this volume that lost some, the answer says so
            log.error("%s: sealing it: %s", volume.path, error)
        with self._lock:
            return volume.stats()

    def drop(self, volume_id: VolumeId) -> None:
        """Forget a volume with all in it.  A crash meanwhile leaves it whole, or not at all.

        Raises BUSY while it is compacted or written to, and DEVICE.
        """
        volume = self._volumes.get(volume_id)
        if volume is not None:
            with self._lock:
                self._seal(volume)
                self._wait(volume, lambda: volume.is_quiet and volume.removed is None)
                if volume.dropped:
                    return
                volume.dropped = True
            with self._orders, volume.deleting:
                self._drop(volume)
        elif volume_id in self._set.unreadable:
            with self._orders, self._table:
                self._drop_unreadable(volume_id)

    def _drop_unreadable(self, volume_id: VolumeId) -> None:
        path = self._set.path(volume_id)
        self._index.drop(volume_id)
        with self._lock:
            self._index.forget(volume_id)
            self._set.unreadable.pop(volume_id, None)
            self._set.gone.add(volume_id)
        try:
            path.unlink(missing_ok=True)
            sync_directory(self.directory)
        except OSError as error:
            raise disk_error(error, f"{path}: removing it") from error

    def listing(self, volume_id: VolumeId, after: SliceId, limit: int) -> list[tuple[SliceId, int]]:
        """Up to `limit` slices of a volume behind slice `after`, by name: (slice, bytes).  Raises
        NOT_FOUND.
        """
        with self._lock:
            if volume_id not in self._volumes:
                raise FsError(Fault.NOT_FOUND, f"{self._set.path(volume_id)} is not there")
            rows, over = self._index.listing(volume_id, after)
        found = islice(merged(rows, over), limit)
        return [(slice_id, place.length) for slice_id, place in found]

    def damaged(self, volume_id: VolumeId, after: SliceId, limit: int) -> list[tuple[SliceId, int]]:
        """As `listing`, but only needles that are known to be damaged.  Raises NOT_FOUND."""
        with self._lock:
            volume = self._volumes.get(volume_id)
            if volume is None:
                raise FsError(Fault.NOT_FOUND, f"{self._set.path(volume_id)} is not there")
            found = []
            for slice_id in sorted(one for one in volume.bad if one > after):
                place = self._index.get(volume_id, slice_id)
                if place is not None:
                    found.append((slice_id, place.length))
        return found[:limit]

    def stats(self, volume_id: VolumeId) -> VolumeStats | None:
        """None: there is no such volume, or it cannot be opened."""
        with self._lock:
            volume = self._volumes.get(volume_id)
            return None if volume is None else volume.stats()

    def put(
        self,
        volume_id: VolumeId,
        slice_id: SliceId,
        parts: Sequence[Buffer],
        sums: Checksums,
    ) -> bool:
        """Store a slice from another copy of a volume that is sealed; in place of one that is
        damaged here.  Durable after the next `sync`.  False: it is there already, and good.

        Raises CORRUPT when it is there, good, and has other bytes; BUSY for a volume that is not
        sealed; NOT_FOUND, NO_SPACE, DEVICE.
        """
        with self._coming(self._sealed(volume_id), slice_id) as volume:
            if self._has_already(volume, slice_id, sums, verify=True):
                return False
            self._require_pending()
            with self._lock:
                self._wait(volume, lambda: volume.removed is None)
                volume = self._sealed(volume_id)  # it may be another one since
                file, at, durable = self._reserve_named(volume, sums.length)
            self._write_needle(volume, file, at, durable, slice_id, parts, sums)
            return True

    def trim(self, volume_id: VolumeId) -> None:
        """After some `put`: give back the disk space that was taken for more."""
        with self._lock:
            volume = self._volumes.get(volume_id)
            if volume is not None and volume.sealed and volume.slack:
                self._seal(volume)

    def unreadable(self) -> dict[VolumeId, str]:
        """Volumes that are known of and cannot be opened, and why."""
        with self._lock:
            return {one: damage.detail for one, damage in self._set.unreadable.items()}

    def distrust(self, volume_id: VolumeId, why: str) -> None:
        """A volume is read, if somebody asks, and is left as it is otherwise."""
        with self._lock:
            if (volume := self._volumes.get(volume_id)) is not None:
                volume.damaged = why

    def note_bad(self, volume_id: VolumeId, slice_id: SliceId, detail: str) -> None:
        """A needle was found to be damaged: `stats` and `troubles` say so until it is replaced or
        deleted.
        """
        with self._lock:
            volume = self._volumes.get(volume_id)
            if volume is not None and self._index.get(volume_id, slice_id) is not None:
                volume.note_bad(slice_id, detail)

    def _append_named(
        self,
        volume_id: VolumeId,
        epoch: int,
        slice_id: SliceId,
        parts: Sequence[Buffer],
        sums: Checksums,
    ) -> None:
        with self._lock:
            volume = self._open_in(volume_id, epoch)
        with self._coming(volume, slice_id):
            if self._has_already(volume, slice_id, sums, verify=False):
                return
            self._require_pending()
            size = needle.needle_bytes(sums.length)
            with self._lock:
                volume = self._open_in(volume_id, epoch)  # it may have been sealed since
                if volume.end + size > self.config.volume_bytes:
                    raise FsError(Fault.VOLUME_CLOSED, f"{volume.path} is full")
                file, at, durable = self._reserve_named(volume, sums.length)
            self._write_needle(volume, file, at, durable, slice_id, parts, sums)

    def _open_in(self, volume_id: VolumeId, epoch: int) -> LiveVolume:
        volume = self._open.get(volume_id)
        is_open = volume is not None and not volume.sealed and epoch in (0, volume.epoch)
        if volume is not None and is_open and not self.failure:
            return volume
        path = self._set.path(volume_id)
        known = self._volumes.get(volume_id)
        why = "is not open here"
        if self.failure or (known is not None and known.trouble):
            why = f"takes nothing more: {self.failure or (known and known.trouble)}"
        elif known is not None and known.epoch:
            why = f"is open in epoch {known.epoch}, not in {epoch}"
        elif known is not None and not known.last_epoch:
            why = "is sealed"
        raise FsError(Fault.VOLUME_CLOSED, f"{path} {why}")

    def _sealed(self, volume_id: VolumeId) -> LiveVolume:
        volume = self._volumes.get(volume_id)
        if volume is None:
            raise FsError(Fault.NOT_FOUND, f"{self._set.path(volume_id)} is not there")
        if volume.last_epoch or volume.dropped:
            why = "is being removed" if volume.dropped else "is not sealed"
            raise FsError(Fault.BUSY, f"{volume.path} {why}")
        if why := self.failure or volume.failed:
            raise FsError(Fault.DEVICE, f"{volume.path} takes nothing more: {why}")
        return volume

    @contextmanager
    def _coming(self, volume: LiveVolume, slice_id: SliceId) -> Iterator[LiveVolume]:
        """One at a time writes a slice of a name: who comes second finds it there."""
        with self._lock:
            self._wait(volume, lambda: slice_id not in volume.coming)
            volume.coming.add(slice_id)
        try:
            yield volume
        finally:
            with self._lock:
                volume.coming.discard(slice_id)
                self._quiet.notify_all()

    def _has_already(
        self, volume: LiveVolume, slice_id: SliceId, sums: Checksums, *, verify: bool
    ) -> bool:
        """Whether a slice is there with these bytes; False, too, if it is damaged.  Raises CORRUPT
        if it has others.
        """
        place = self._index.get(volume.id, slice_id)
        if place is None or slice_id in volume.bad:
            return False
        try:
            with self._lock:
                file = self._set.file(volume)
            head = self._reader.head(file, slice_id, 0)
            if verify and rewrite.check(file, slice_id, place) is not None:
                return False
        except (OSError, FsError):
            return False
        assert head is not None  # it may block
        if head.length == sums.length and head.table == sums.table:
            return True
        what = f"slice {slice_id:#x} is there already, with other bytes than these"
        raise FsError(Fault.CORRUPT, f"{volume.path}: {what}")

    def _reserve_named(self, volume: LiveVolume, length: int) -> tuple[VolumeFile, int, int]:
        """Where a needle goes.  Under the lock."""
        size = needle.needle_bytes(length)
        try:
            file = self._set.file(volume)
            if volume.end + size > volume.allocated:
                self._allocate(volume, file, size)
        except OSError as error:
            self._note_failure(error, volume.path)
            raise disk_error(error, f"{volume.path}: making room") from error
        return file, self._reserve(volume, size), volume.durable

    def _require_pending(self) -> None:
        """Room in the memory of the index for one more."""
        if self._index.pending >= self.config.pending_needles_max:
            self._shrink_index()

    def _make(self, volume_id: VolumeId) -> LiveVolume:
        try:
            file = self._set.publish_new(volume_id)
        except OSError as error:
            path = self._set.path(volume_id)
            self._note_failure(error, path)
            raise disk_error(error, f"{path}: making it") from error
        with self._lock:
            self._space = (0.0, 0, 0)
            return self._begin(self._set.add_new(file))

    def _keep_epoch(self, volume_id: VolumeId, epoch: int) -> None:
        try:
            self._index.keep_epoch(volume_id, epoch)
        except FsError as error:
            if error.fault is not Fault.NO_SPACE:
                self.failure = self.failure or str(error)
            raise

    def _wait(self, volume: LiveVolume, done: Callable[[], bool]) -> None:
        """For what others do with a volume.  Under the lock, which is let go meanwhile."""
        if not self._quiet.wait_for(done, self.config.wait_s):
            what = f"what is under way does not end within {self.config.wait_s:g} s"
            raise FsError(Fault.BUSY, f"{volume.path}: {what}")

    def _note_failure(self, error: OSError, path: Path) -> None:
        """If it is the disk as a whole that fails, it takes nothing new."""
        if error.errno in _DISK_FAILED and not self.failure:
            self.failure = f"{path}: {error.strerror or error}"
            log.error("%s: it takes nothing new from now on", self.failure)

    # -- reading

    def read(self, volume: VolumeId, slice_id: SliceId, start: int, stop: int) -> memoryview:
        """Bytes `start` to `stop` of a slice, verified.

        Raises CORRUPT (with file, offset and slice) when they are damaged or missing, DEVICE when
        the disk does not answer.
        """
        data = self._read(volume, slice_id, start, stop, 0)
        assert data is not None
        return data

    def read_now(
        self, volume: VolumeId, slice_id: SliceId, start: int, stop: int
    ) -> memoryview | None:
        """The same from the page cache; None when it would have to wait for the disk."""
        return self._read(volume, slice_id, start, stop, os.RWF_NOWAIT)

    def fetch(self, volume_id: VolumeId, slice_id: SliceId, start: int, stop: int) -> None:
        """Have the disk bring bytes of a slice into the page cache, without waiting for them."""
        volume = self._volumes.get(volume_id)
        file = volume.file if volume is not None else None
        if file is not None:
            self._reader.fetch(file, slice_id, start, stop)

    def stretch(
        self, volume_id: VolumeId, slice_id: SliceId, start: int, stop: int
    ) -> tuple[int, Stretch] | None:
        """Where in a file these bytes are, not verified, and the crc32c that they should have;
        None: they are better read.  Does not wait for the disk.  Raises CORRUPT and DEVICE.
        """

        def found(file: VolumeFile) -> tuple[int, Stretch] | None:
            return self._reader.stretch(file, slice_id, start, stop)

        return self._in_file(volume_id, slice_id, found)

    def _read(
        self, volume_id: VolumeId, slice_id: SliceId, start: int, stop: int, flags: int
    ) -> memoryview | None:
        assert 0 <= start < stop, (start, stop)

        def read(file: VolumeFile) -> memoryview | None:
            return self._reader.read(file, slice_id, start, stop, flags)

        return self._in_file(volume_id, slice_id, read)

    def _in_file(
        self, volume_id: VolumeId, slice_id: SliceId, read: Callable[[VolumeFile], T]
    ) -> T:
        while True:
            volume = self._volumes.get(volume_id)
            if volume is None:
                self.is_missing(volume_id)  # then it is a trouble
                raise self._set.missing(volume_id, slice_id)
            file = volume.file
            try:
                if file is None:
                    with self._lock:
                        file = self._set.file(volume)
                return read(file)
            except OSError as error:
                what = f"{volume.path}: reading slice {slice_id:#x}"
                raise disk_error(error, what) from error
            except FsError:
                with self._lock:  # a compaction may just have moved everything
                    if file is None or volume.dropped:
                        raise
                    if volume.generation == file.superblock.generation:
                        raise

    def is_missing(self, volume_id: VolumeId) -> bool:
        """Whether a volume that somebody refers to is not there, or cannot be opened.  Then it is
        a trouble from now on, and its number is not given to another one.
        """
        with self._lock:
            if volume_id in self._volumes or volume_id in self._set.gone:
                return False
            self._set.note_missing(volume_id)
            return True

    def whereabouts(self, volume_id: VolumeId, slice_id: SliceId) -> tuple[int, int, int] | None:
        """(generation of the volume, offset of the needle, length of its payload)."""
        with self._lock:
            volume = self._volumes.get(volume_id)
            place = None if volume is None else self._index.get(volume_id, slice_id)
            if volume is None or place is None or volume.dropped:
                return None
            return volume.generation, place.offset, place.length

    def file_of(self, volume_id: VolumeId) -> tuple[Path, int] | None:
        """The file of a volume, and its generation; None: it is not here."""
        with self._lock:
            volume = self._volumes.get(volume_id)
            if volume is None or volume.dropped:
                return None
            return volume.path, volume.generation

    def place(self, volume_id: VolumeId, slice_id: SliceId) -> tuple[Path, Place] | None:
        """The file of a slice, and where its needle is in it, by the index.  None: nowhere."""
        volume = self._volumes.get(volume_id)
        if volume is None:
            return None
        with self._lock:  # no change of the index is under way then
            place = self._index.get(volume_id, slice_id)
        return None if place is None else (volume.path, place)

    def arrived(self, volume_id: VolumeId, slice_id: SliceId, length: int, crc: int) -> bool:
        """In recovery: whether the slice of this length and crc32c has reached the disk before the
        crash.

        What has, and was damaged since, counts: reading it is an error.  A volume that is missing
        or cannot be opened tells of damage, for its directory entry was on disk before anybody used
        it.  So does a needle with a bad header that the index has: it was whole when it got there.
        (Payloads are not read: opening the volume did so with all that a crash may have torn.)
        """
        if self.is_missing(volume_id):
            return True
        found = self.place(volume_id, slice_id)
        if found is None or found[1].length != length:
            return False
        volume = self._volumes[volume_id]
        try:
            with self._lock:
                file = self._set.file(volume)
            head = self._reader.head(file, slice_id, 0)
        except (OSError, FsError):
            return True
        return head is not None and needle.joined(head.sums, head.length) == crc

    def has(self, volume_id: VolumeId, slice_id: SliceId) -> bool:
        """Whether a slice is in a volume, whole, with a good header."""
        volume = self._volumes.get(volume_id)
        if volume is None:
            return False
        try:
            with self._lock:
                file = self._set.file(volume)
                size = file.size
            head = self._reader.head(file, slice_id, 0)
        except (OSError, FsError):
            return False
        return head is not None and head.payload + head.length <= size

    # -- durability

    @property
    def unsynced(self) -> bool:
        """Whether a `sync` has something to do, or to complain about."""
        return self._being_synced or bool(self._set.dirty) or self._failed

    def sync(self) -> None:
        """All that was appended or deleted before the call is durable on return.

        Raises DEVICE when the disk has lost some of it, now or in an earlier sync, and it was not
        deleted since.
        """
        with self._syncing:
            try:
                self._sync_dirty()
            finally:
                self._being_synced = False
            if self._index.pending >= self.config.pending_needles_min:
                self._write_table()
        self._complain()

    def _sync_dirty(self) -> None:
        with self._lock:
            volumes = [self._volumes[one] for one in self._set.dirty]
        for volume in volumes:
            if volume.holes and volume.file is not None:
                self._mark_holes(volume, volume.file)
        with self._lock:
            rounds = [
                (volume, volume.file, volume.watermark)
                for volume in (self._volumes[one] for one in self._set.dirty)
                if volume.file is not None and not volume.failed
            ]
            self._being_synced = True  # before `dirty` says that there is nothing to do
            self._set.dirty.clear()
        for volume, file, watermark in rounds:
            self._sync_volume(volume, file, watermark)

    def _sync_volume(self, volume: LiveVolume, file: VolumeFile, watermark: int) -> None:
        try:
            os.fdatasync(file.fd)
        except OSError as error:
            with self._lock:
                volume.failed = f"fdatasync: {error.strerror or error}"
                self._failed = True
                self.failure = self.failure or f"{volume.path}: {volume.failed}"
                self._seal(volume)
            log.error("%s: %s; it is read-only from now on", volume.path, volume.failed)
            return
        with self._lock:
            if volume.generation == file.superblock.generation:  # not compacted meanwhile
                volume.durable = max(volume.durable, watermark)
                assert volume.durable <= volume.end, (volume.durable, volume.end)

    def _complain(self) -> None:
        with self._lock:
            for volume in self._volumes.values():
                if not volume.failed:
                    continue
                if lost := self._index.lost(volume.id, volume.durable):
                    raise FsError(
                        Fault.DEVICE,
                        f"{volume.path}: {volume.failed}; {lost} slices written since the last "
                        "good sync may be lost",
                    )

    def _shrink_index(self) -> None:
        """Make room in the memory of the index."""
        self.sync()
        if not self._write_table():
            raise FsError(Fault.DEVICE, f"{self.directory}: the index cannot be written")

    def _write_table(self) -> bool:
        """What is durable goes into the table of the index.  When that fails it stays in memory:
        the volumes have it all.  Returns whether it went well.
        """
        with self._table:
            return self._write_table_locked()

    def _write_table_locked(self) -> bool:
        with self._lock:
            durable = {one.id: (one.generation, one.durable) for one in self._volumes.values()}
            changes = self._index.begin_write(durable)
        done = False
        try:
            self._index.write(changes)
            done = True
        except FsError as error:
            log.warning("%s: writing the index: %s", self.directory, error)
        finally:
            with self._lock:
                self._index.end_write(done=done)
        return done

    def close(self) -> None:
        """Let go of everything.  What was not synced is not: that is for the caller to ask for."""
        self._write_table()
        with self._lock:
            for volume in (self._active, *self._open.values()):
                if volume is not None:
                    self._seal(volume)
            self._set.clear()

    # -- space

    def space(self) -> tuple[int, int]:
        """(total, free) bytes of the disk; what is kept in reserve is not free."""
        total, free = self._disk_space()
        active = self._active
        slack = active.slack if active is not None else 0
        slack += sum(volume.slack for volume in tuple(self._open.values()))
        return total, max(free + slack - self._reserve_bytes(total), 0)

    def _reserve_bytes(self, total: int) -> int:
        """What is kept free; of a small disk, not all of it."""
        return min(self.config.reserve_bytes, total // 20)

    def _disk_space(self) -> tuple[int, int]:
        """(total, available) as the disk has it."""
        asked, total, available = self._space
        now = time.monotonic()
        if not asked or now - asked > _SPACE_SECONDS:
            stat = os.statvfs(self.directory)
            total, available = stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize
            self._space = (now, total, available)
        return total, available

    def volumes(self) -> list[VolumeStats]:
        with self._lock:
            return [self._volumes[one].stats() for one in sorted(self._volumes)]

    def debt(self) -> Debt:
        """What compaction could give back, and where to begin."""
        open_bytes_min = self.config.preallocate_bytes
        return debt(self.volumes(), self.config.garbage_ratio, open_bytes_min)

    def troubles(self) -> dict[str, str]:
        """File of a volume -> what is wrong with it, for as long as it is."""
        with self._lock:
            found = {
                damage.path: f"{damage.detail}; files with bytes in it cannot be read"
                for damage in self._set.unreadable.values()
            }
            for volume in self._volumes.values():
                if why := volume.trouble:
                    found[str(volume.path)] = why
        return found

    # -- compaction

    def compact(self, volume_id: VolumeId) -> None:
        """Write the living needles of a volume to a new file, which takes its place.

        Readers go on meanwhile, and so do deletions, but for the last moment.  Raises CORRUPT when
        a living needle is damaged: then the volume stays as it is, and is not compacted again.
        """
        with self._compacting:
            with self._lock:
                volume = self._volumes.get(volume_id)
                if volume is None or volume.dropped or volume.last_epoch:
                    return
                self._seal(volume)
                volume.removed = []
                self._quiet.wait_for(lambda: volume.is_quiet)
            try:
                if volume.trouble or volume.holes:
                    why = volume.trouble or "a failed write is not marked yet"
                    raise FsError(Fault.DEVICE, f"{volume.path}: {why}")
                self._compact(volume)
            except OSError as error:
                raise disk_error(error, f"{volume.path}: compaction") from error
            finally:
                with self._lock:
                    volume.removed = None
                    self._quiet.notify_all()

    def _compact(self, volume: LiveVolume) -> None:
        with self._table:
            living = self._index.slices(volume.id)
        if not living and volume.own:
            with volume.deleting:
                self._drop_if_dead(volume)
            return
        try:
            with self._lock:
                old = self._set.file(volume)
        except (OSError, FsError) as error:
            # Not to be tried again and again; `troubles` says it.
            volume.damaged = f"cannot compact {volume.path}: {error}"
            raise FsError(Fault.CORRUPT, volume.damaged) from error
        size = SUPERBLOCK_BYTES + sum(needle.needle_bytes(place.length) for _, place in living)
        if size > self._disk_space()[1]:
            raise FsError(Fault.NO_SPACE, f"{volume.path}: no space for {size} bytes that live")
        new = self._set.create(volume.id, volume.generation + 1)
        try:
            places, end = rewrite.copy_living(old, new, living)
            os.fdatasync(new.fd)
            with volume.deleting, self._table:
                self._replace(volume, new, places, end)
        except DamagedNeedle as error:
            self.note_bad(volume.id, error.damage.slice_id, str(error))
            raise
        finally:
            new.discard()

    def _replace(
        self, volume: LiveVolume, new: VolumeFile, places: list[tuple[SliceId, Place]], end: int
    ) -> None:
        """The new file becomes the volume.  Nothing is deleted from it meanwhile."""
        if volume.dropped:
            return
        removed = set(volume.removed or ())
        kept = [(slice_id, place) for slice_id, place in places if slice_id not in removed]
        gone = [slice_id for slice_id, _ in places if slice_id in removed]
        new.write([rewrite.tombstones(new.superblock.salt, end, 0, gone)], end)
        end += HEADER_BYTES * len(gone)
        new.finish(end)
        stale = [slice_id for slice_id, _ in self._index.table(volume.id)]
        new.publish()
        try:
            sync_directory(self.directory)
        except OSError as error:
            # Either file may be there after a crash: no new needle may rely on it.
            volume.failed = f"syncing the directory: {error.strerror}"
            self._failed = True
        with self._lock:
            # What failed in the old file is no concern of the new one.
            assert volume.is_quiet, (volume.path, volume.writing)
            volume.writing.clear()
            volume.holes.clear()
            self._index.replace(volume.id, new.superblock.generation, kept, stale)
            volume.file = new
            volume.generation = new.superblock.generation
            volume.end = volume.durable = volume.allocated = end
            volume.living_bytes = sum(needle.needle_bytes(place.length) for _, place in kept)
            volume.needles = len(kept)
            volume.digest = reduce(with_name, (slice_id for slice_id, _ in kept), 0)
            self._set.dirty.discard(volume.id)
            self._space = (0.0, 0, 0)
            self._set.note_open(volume)
        self._write_table_locked()

    def _drop_if_dead(self, volume: LiveVolume) -> None:
        with self._lock:
            if volume.needles or volume.writing or volume.dropped:
                return
            volume.dropped = True
        self._drop(volume)

    def _drop(self, volume: LiveVolume) -> None:
        """Remove a volume that was marked as dropped: nothing in it is to live any more."""
        try:
            with self._table:
                self._index.drop(volume.id)
                with self._lock:
                    self._index.forget(volume.id)
                    self._set.remove(volume)
                    self._space = (0.0, 0, 0)
            volume.path.unlink()
            # Without its index, were the file to come back, everything in it would live again.
            sync_directory(self.directory)
        except OSError as error:
            raise disk_error(error, f"{volume.path}: removing it") from error
        except FsError:
            volume.dropped = False
            raise

    # -- verification

    def verify(self, progress: Progress | None = None) -> Iterator[Damage]:
        """Read every living needle, and say what cannot be read as it was written.

        `progress` is told (bytes done, bytes in all) after each needle.
        """
        yield from list(self._set.unreadable.values())
        with self._lock:
            volumes = [self._volumes[one] for one in sorted(self._volumes)]
            total = sum(volume.living_bytes for volume in volumes)
        report = _Report(progress, total)
        for volume in volumes:
            yield from self._verify(volume, report)

    def verify_some(
        self, volume_id: VolumeId, after: SliceId, bytes_max: int
    ) -> tuple[list[Damage], int, int, SliceId]:
        """Read the needles of a volume behind slice `after`, by name, up to about so many bytes.

        Returns what is damaged, how many bytes and needles were read, and how far that was: 0 when
        it was the rest.  Raises NOT_FOUND, and CORRUPT for one that cannot be opened.
        """
        with self._lock:
            volume = self._volumes.get(volume_id)
            if volume is None or volume.dropped:
                raise FsError(Fault.NOT_FOUND, f"{self._set.path(volume_id)} is not there")
            file = self._set.file(volume)
            rows, over = self._index.listing(volume_id, after)
        damaged: list[Damage] = []
        read = needles = 0
        for slice_id, place in merged(rows, over):
            damage = rewrite.check(file, slice_id, place)
            if damage is not None:
                with self._lock:
                    same = volume.generation == file.superblock.generation
                    if same and self._index.get(volume_id, slice_id) == place:
                        damaged.append(damage)
            read += needle.needle_bytes(place.length)
            needles += 1
            if read >= bytes_max:
                return damaged, read, needles, slice_id
        return damaged, read, needles, SliceId(0)

    def _verify(self, volume: LiveVolume, report: "_Report") -> Iterator[Damage]:
        try:
            with self._lock:
                if volume.dropped:
                    return
                file, stop = self._set.file(volume), volume.watermark
            gaps = list(rewrite.gaps(file, stop))
        except (OSError, FsError) as error:
            yield Damage(str(volume.path), volume.id, 0, SliceId(0), f"cannot be read: {error}")
            return
        yield from (rewrite.gap_damage(file, gap) for gap in gaps)
        with self._table:
            living = self._index.slices(volume.id)
        for slice_id, place in living:
            damage = rewrite.check(file, slice_id, place)
            with self._lock:
                if volume.generation != file.superblock.generation:
                    return  # it was compacted meanwhile, and verified with that
                wanted = self._index.get(volume.id, slice_id) == place
            if damage is not None and wanted:
                yield damage
            report.add(needle.needle_bytes(place.length))


class _Report:
    """Counts what a verification has done."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = 0

    def add(self, size: int) -> None:
        self._done += size
        if self._progress is not None:
            self._progress(min(self._done, self._total), self._total)
