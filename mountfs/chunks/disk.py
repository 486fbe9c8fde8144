"""The volumes of one directory, for threads.  Everything here blocks, unless it says otherwise.

Order is the contract:
- a needle is in the index once all of it is in the file, so a reader never meets a half one;
- it is in the index's table once it is on disk, so a crash never leaves a name without bytes;
- an append reserves its range under the lock and writes outside of it; the durable offset of a
  volume stays below every range that is still being written;
- fdatasync is tried once.  When it fails, the kernel may have dropped the bytes and would report
  success the next time; so the volume is never written again, and `sync` fails while anything that
  was not on disk before is still wanted.

Locks, from the outside in: `_compacting` (one compaction), `_Volume.deleting` (tombstones of a
volume, against compaction), `_syncing` (one round of fdatasync), `_table` (writing the table of the
index), `_lock` (everything in memory; held shortly).
"""

import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mountfs.chunks import needle, rewrite
from mountfs.chunks.config import ChunkConfig
from mountfs.chunks.file import VolumeFile, sync_directory
from mountfs.chunks.index import NeedleIndex, Place, VolumeState
from mountfs.chunks.needle import HEADER_BYTES, Buffer, Kind
from mountfs.chunks.rewrite import Progress
from mountfs.chunks.volume import (
    SUPERBLOCK_BYTES,
    BadSuperblock,
    Damage,
    Debt,
    Gap,
    Superblock,
    VolumeStats,
    debt,
)
from mountfs.errors import Fault, FsError, disk_error
from mountfs.kv.base import Store
from mountfs.types import CHECKSUM_BYTES, SLICE_BYTES_MAX, SliceId, VolumeId

log = logging.getLogger(__name__)

_SPACE_SECONDS = 0.5
"""How long an answer of statvfs is believed: others write to the disk, too."""
_TOMBSTONES_MAX = 1_024
"""In one write."""


class _Volume:
    """What is known of one volume in memory.  Changed under the lock of the store only."""

    def __init__(self, file: VolumeFile, state: VolumeState) -> None:
        self.id = file.superblock.volume
        self.path = file.path
        self.file: VolumeFile | None = file
        """None: not open now.  Open at least while something in it is not synced."""
        self.generation = file.superblock.generation
        self.end = state.checkpoint
        """Where the next needle goes."""
        self.durable = state.checkpoint
        """Everything before it is on disk.  Invariant: durable <= watermark <= end."""
        self.allocated = state.checkpoint
        """Disk space was taken up to here, if beyond `end`."""
        self.living_bytes = state.living_bytes
        self.needles = state.needles
        self.sealed = True
        """Takes no needles, but tombstones."""
        self.failed = ""
        """Why nothing may be written to it any more; empty: it is well."""
        self.damaged = ""
        """Why it is not compacted, and takes no needles; empty: no damage was met."""
        self.writing: dict[int, int] = {}
        """Ranges (start -> stop) reserved, and not known to be whole."""
        self.holes: list[Gap] = []
        """Of these, the ones whose write failed, and that could not be marked yet."""
        self.removed: list[SliceId] | None = None
        """What was deleted since its compaction began; None: it is not being compacted."""
        self.dropped = False
        self.deleting = threading.Lock()

    @property
    def watermark(self) -> int:
        """Everything before it is in the file, or in no file."""
        return min(self.writing, default=self.end)

    @property
    def slack(self) -> int:
        """Disk space that is taken and not used yet, in bytes."""
        return max(self.allocated - self.end, 0)

    def account(self, more: tuple[int, int]) -> None:
        """(bytes, needles) have come to live, or, if negative, live no longer."""
        self.living_bytes += more[0]
        self.needles += more[1]
        assert self.needles >= 0, (self.path, self.needles)

    def stats(self) -> VolumeStats:
        return VolumeStats(
            self.id,
            self.generation,
            self.end,
            self.living_bytes,
            self.needles,
            self.sealed,
            self.failed or self.damaged,
        )


class _Head(NamedTuple):
    """What reading a needle takes, besides its payload."""

    generation: int
    payload: int
    """Offset in the file."""
    length: int
    sums: tuple[int, ...]


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
    ) -> None:
        self.config = config or ChunkConfig()
        self.directory = directory / "volumes"
        self._home = home
        self._lock = threading.Lock()
        self._quiet = threading.Condition(self._lock)
        """Notified when a reserved range is done with."""
        self._table = threading.Lock()
        self._syncing = threading.Lock()
        self._compacting = threading.Lock()
        self._volumes: dict[VolumeId, _Volume] = {}
        self._unreadable: dict[VolumeId, Damage] = {}
        """Volumes that are known of, and cannot be opened."""
        self._open_files: OrderedDict[VolumeId, None] = OrderedDict()
        """Volumes with an open file, the longest unused first."""
        self._heads: OrderedDict[tuple[VolumeId, SliceId], _Head] = OrderedDict()
        self._active: _Volume | None = None
        self._dirty: set[VolumeId] = set()
        """Volumes with something that is not synced."""
        self._failed = False
        """A volume has failed."""
        self._space = (0.0, 0, 0)
        """(when asked, total, available)"""
        self._next_id = 1
        try:
            self._index = NeedleIndex(index_store)
            self._open()
        except OSError as error:
            raise disk_error(error, f"{self.directory}: opening the volumes") from error

    # -- writing

    def append(self, slice_id: SliceId, parts: Sequence[Buffer]) -> VolumeId:
        """Store a slice; it is readable when this returns, and durable after the next `sync`.

        Raises NO_SPACE or DEVICE, and then nothing of it is stored.
        """
        length, table = needle.checksums(parts)
        assert slice_id > 0, slice_id
        assert 0 < length <= SLICE_BYTES_MAX, length
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
        head = needle.encode(file.superblock.salt, at, durable, slice_id, length, table)
        self._fill(volume, file, at, size, [head, *parts, needle.padding(length)])
        with self._lock:
            volume.account(self._index.put(volume.id, slice_id, Place(at, length)))
            self._heads.pop((volume.id, slice_id), None)
            self._done(volume, at)
        return volume.id

    def appends_at_once(self, size_bytes: int) -> bool:
        """Whether an `append` of that size takes no more than a write into the page cache."""
        volume = self._active
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
                if self._index.pending >= self.config.pending_needles_max:
                    self._shrink_index()
                with volume.deleting:
                    self._delete(volume, dict.fromkeys(ids[at : at + _TOMBSTONES_MAX]))

    def _delete(self, volume: _Volume, ids: Mapping[SliceId, None]) -> None:
        with self._lock:
            if volume.dropped:
                return
            living = [one for one in ids if self._index.get(volume.id, one) is not None]
            if not living:
                return
            last = len(living) == volume.needles and volume.sealed and not volume.writing
            if volume.failed and not last:
                self._delete_from_index(volume, living)
                return
            if not last:
                try:
                    file = self._file(volume)
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
            for number, slice_id in enumerate(living):
                offset = at + number * HEADER_BYTES
                volume.account(self._index.remove(volume.id, slice_id, offset))
                self._heads.pop((volume.id, slice_id), None)
            if volume.removed is not None:
                volume.removed += living
            self._done(volume, at)

    def _delete_from_index(self, volume: _Volume, ids: Sequence[SliceId]) -> None:
        """Of a volume that cannot be written.  They come back, as garbage, if the index is lost."""
        for slice_id in ids:
            place = self._index.get(volume.id, slice_id)
            if place is not None:
                volume.account(self._index.remove(volume.id, slice_id, place.offset))
            self._heads.pop((volume.id, slice_id), None)

    def _reserve(self, volume: _Volume, size: int) -> int:
        at = volume.end
        assert at % needle.ALIGN == 0, at
        assert size % needle.ALIGN == 0, size
        volume.writing[at] = at + size
        volume.end = at + size
        return at

    def _fill(
        self, volume: _Volume, file: VolumeFile, at: int, size: int, parts: Sequence[Buffer]
    ) -> None:
        """Write into a reserved range.  If that fails the range is given back."""
        try:
            file.write(parts, at)
        except OSError as error:
            self._give_back(volume, file, Gap(at, at + size))
            raise disk_error(error, f"{volume.path}: writing at offset {at}") from error

    def _done(self, volume: _Volume, at: int) -> None:
        del volume.writing[at]
        self._dirty.add(volume.id)
        self._quiet.notify_all()

    def _give_back(self, volume: _Volume, file: VolumeFile, gap: Gap) -> None:
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

    def _mark_holes(self, volume: _Volume, file: VolumeFile) -> None:
        """Until it succeeds, the range counts as being written, and the volume takes no needle."""
        for gap in volume.holes.copy():
            try:
                file.write([rewrite.void(file.superblock.salt, gap)], gap.start)
            except OSError as error:
                log.error("%s: marking a hole at %d: %s", volume.path, gap.start, error)
                with self._lock:
                    volume.sealed = True
            else:
                with self._lock:
                    if gap in volume.holes:  # nobody else has done it meanwhile
                        volume.holes.remove(gap)
                        self._done(volume, gap.start)

    def _volume_with_room(self, size: int) -> tuple[_Volume, VolumeFile]:
        """The volume that takes the next needle, with disk space for it.  Under the lock."""
        volume = self._active
        if volume is None or volume.sealed or volume.end + size > self.config.volume_bytes:
            if volume is not None:
                self._seal(volume)
            volume = self._active = self._reopened(size) or self._created()
            volume.sealed = False
        file = self._file(volume)
        if volume.end + size > volume.allocated:
            self._allocate(volume, file, size)
        return volume, file

    def _reopened(self, size: int) -> _Volume | None:
        """A volume that has become small, to be filled again: the smallest."""
        limit = self.config.volume_bytes - max(size, self.config.volume_bytes // 8)
        fitting = [
            volume
            for volume in self._volumes.values()
            if volume.end <= limit
            if not (volume.failed or volume.damaged or volume.holes)
            if volume.removed is None and volume is not self._active
        ]
        return min(fitting, key=lambda volume: volume.end, default=None)

    def _created(self) -> _Volume:
        volume_id = VolumeId(self._next_id)
        file = self._create(volume_id, 1)
        try:
            os.fdatasync(file.fd)
            file.publish()
            sync_directory(self.directory)
        except BaseException:
            file.discard()
            raise
        self._next_id += 1
        volume = _Volume(file, VolumeState(1, SUPERBLOCK_BYTES, 0, 0))
        self._volumes[volume_id] = volume
        self._note_open(volume)
        return volume

    def _create(self, volume_id: VolumeId, generation: int) -> VolumeFile:
        salt = int.from_bytes(os.urandom(4), "little")
        assert self._home is not None
        superblock = Superblock(volume_id, generation, salt, SUPERBLOCK_BYTES, self._home)
        return VolumeFile.create(self._path(volume_id), superblock)

    def _seal(self, volume: _Volume) -> None:
        """No more needles for now; under the lock."""
        volume.sealed = True
        if volume is self._active:
            self._active = None
        if volume.slack and not volume.failed:
            try:
                self._file(volume).cut(volume.end)
            except OSError as error:
                log.warning("%s: giving back unused space: %s", volume.path, error)
        volume.allocated = volume.end

    def _allocate(self, volume: _Volume, file: VolumeFile, size: int) -> None:
        """Take disk space for a needle and for what comes after it; under the lock."""
        start = max(volume.allocated, volume.end)
        needed = volume.end + size - start
        free = self._disk_space()[1] - self.config.reserve_bytes
        if free < needed:
            raise FsError(
                Fault.NO_SPACE,
                f"{self.directory}: the disk is full, but for the "
                f"{self.config.reserve_bytes} bytes kept in reserve",
            )
        wanted = min(self.config.preallocate_bytes, self.config.volume_bytes - start, free)
        stop = start + max(wanted, needed)
        file.allocate(start, stop)
        volume.allocated = stop
        self._space = (0.0, 0, 0)

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

    def _read(
        self, volume_id: VolumeId, slice_id: SliceId, start: int, stop: int, flags: int
    ) -> memoryview | None:
        assert 0 <= start < stop, (start, stop)
        while True:
            volume = self._volumes.get(volume_id)
            if volume is None:
                raise self._no_such_volume(volume_id, slice_id)
            file = volume.file
            try:
                if file is None:
                    with self._lock:
                        file = self._file(volume)
                return self._read_from(file, slice_id, start, stop, flags)
            except OSError as error:
                what = f"{volume.path}: reading slice {slice_id:#x}"
                raise disk_error(error, what) from error
            except FsError:
                with self._lock:  # a compaction may just have moved everything
                    if file is None or volume.dropped:
                        raise
                    if volume.generation == file.superblock.generation:
                        raise

    def _read_from(
        self, file: VolumeFile, slice_id: SliceId, start: int, stop: int, flags: int
    ) -> memoryview | None:
        head = self._head(file, slice_id, flags)
        if head is None:
            return None
        if stop > head.length:
            raise self._corrupt(
                file, slice_id, head.payload, f"has {head.length} bytes, {stop} were asked for"
            )
        first = start // CHECKSUM_BYTES
        low = first * CHECKSUM_BYTES
        high = min(-(-stop // CHECKSUM_BYTES) * CHECKSUM_BYTES, head.length)
        buffer = bytearray(high - low)
        filled = file.fill(buffer, head.payload + low, flags)
        if filled is None:
            return None
        data = memoryview(buffer)
        bad = needle.first_bad(data, head.sums, first) if filled else first
        if bad is not None:
            detail = "checksum does not match" if filled else "the file is cut off"
            raise self._corrupt(file, slice_id, head.payload + bad * CHECKSUM_BYTES, detail)
        return data[start - low : stop - low]

    def _head(self, file: VolumeFile, slice_id: SliceId, flags: int) -> _Head | None:
        """Header and checksums of a needle; None when it would block."""
        superblock = file.superblock
        key = (superblock.volume, slice_id)
        head = self._heads.get(key)
        if head is not None and head.generation == superblock.generation:
            if len(self._heads) > self.config.heads_max // 2:
                self._touch_head(key)
            return head
        place = self._index.get(*key)
        if place is None:
            with self._lock:  # no change of the index is under way then
                place = self._index.get(*key)
        if place is None:
            raise self._corrupt(file, slice_id, 0, "is not in the volume")
        data = bytearray(HEADER_BYTES + needle.table_bytes(place.length))
        filled = file.fill(data, place.offset, flags)
        if filled is None:
            return None
        header = needle.decode(data, 0, place.offset, superblock.salt) if filled else None
        good = header is not None and (header.slice_id, header.length, header.kind) == (
            slice_id,
            place.length,
            Kind.DATA,
        )
        if header is None or not good:
            raise self._corrupt(file, slice_id, place.offset, "its header is damaged")
        sums = needle.unpack_table(memoryview(data)[HEADER_BYTES:], header)
        if sums is None:
            raise self._corrupt(file, slice_id, place.offset, "its checksums are damaged")
        head = _Head(superblock.generation, header.payload, header.length, sums)
        self._heads[key] = head
        while len(self._heads) > self.config.heads_max:
            self._heads.popitem(last=False)
        return head

    def _touch_head(self, key: tuple[VolumeId, SliceId]) -> None:
        try:
            self._heads.move_to_end(key)
        except KeyError:  # another thread has just evicted it
            return

    def has(self, volume_id: VolumeId, slice_id: SliceId) -> bool:
        """Whether a slice is in a volume, whole, with a good header."""
        volume = self._volumes.get(volume_id)
        if volume is None:
            return False
        try:
            with self._lock:
                file = self._file(volume)
                size = file.size
            head = self._head(file, slice_id, 0)
        except (OSError, FsError):
            return False
        return head is not None and head.payload + head.length <= size

    # -- durability

    @property
    def unsynced(self) -> bool:
        """Whether a `sync` has something to do, or to complain about."""
        return bool(self._dirty) or self._failed

    def sync(self) -> None:
        """All that was appended or deleted before the call is durable on return.

        Raises DEVICE when the disk has lost some of it, now or in an earlier sync, and it was not
        deleted since.
        """
        with self._syncing:
            with self._lock:
                volumes = [self._volumes[one] for one in self._dirty if one in self._volumes]
            for volume in volumes:
                if volume.holes and volume.file is not None:
                    self._mark_holes(volume, volume.file)
            with self._lock:
                rounds = [
                    (volume, volume.file, volume.watermark)
                    for volume in map(self._volumes.get, self._dirty)
                    if volume is not None and volume.file is not None and not volume.failed
                ]
                self._dirty.clear()
            for volume, file, watermark in rounds:
                self._sync_volume(volume, file, watermark)
            if self._index.pending >= self.config.pending_needles_min:
                self._write_table()
        self._complain()

    def _sync_volume(self, volume: _Volume, file: VolumeFile, watermark: int) -> None:
        try:
            os.fdatasync(file.fd)
        except OSError as error:
            with self._lock:
                volume.failed = f"fdatasync: {error.strerror or error}"
                self._failed = True
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
            if self._active is not None:
                self._seal(self._active)
            self._volumes.clear()
            self._heads.clear()
            self._open_files.clear()

    # -- space

    def space(self) -> tuple[int, int]:
        """(total, free) bytes of the disk; what is kept in reserve is not free."""
        total, free = self._disk_space()
        active = self._active
        slack = active.slack if active is not None else 0
        return total, max(free + slack - self.config.reserve_bytes, 0)

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

    # -- compaction

    def compact(self, volume_id: VolumeId) -> None:
        """Write the living needles of a volume to a new file, which takes its place.

        Readers go on meanwhile, and so do deletions, but for the last moment.  Raises CORRUPT when
        a living needle is damaged: then the volume stays as it is, and is not compacted again.
        """
        with self._compacting:
            with self._lock:
                volume = self._volumes.get(volume_id)
                if volume is None:
                    return
                self._seal(volume)
                volume.removed = []
                self._quiet.wait_for(lambda: len(volume.writing) == len(volume.holes))
            try:
                if volume.failed or volume.damaged or volume.holes:
                    why = volume.failed or volume.damaged or "a failed write is not marked yet"
                    raise FsError(Fault.DEVICE, f"{volume.path}: {why}")
                self._compact(volume)
            except OSError as error:
                raise disk_error(error, f"{volume.path}: compaction") from error
            finally:
                with self._lock:
                    volume.removed = None

    def _compact(self, volume: _Volume) -> None:
        with self._table:
            living = self._index.slices(volume.id)
        with self._lock:
            old = self._file(volume)
        if not living:
            with volume.deleting:
                self._drop_if_dead(volume)
            return
        size = SUPERBLOCK_BYTES + sum(needle.needle_bytes(place.length) for _, place in living)
        if size > self._disk_space()[1]:
            raise FsError(Fault.NO_SPACE, f"{volume.path}: no space for {size} bytes that live")
        new = self._create(volume.id, volume.generation + 1)
        try:
            places, end = rewrite.copy_living(old, new, living)
            os.fdatasync(new.fd)
            with volume.deleting, self._table:
                self._replace(volume, new, places, end)
        except FsError as error:
            if error.fault is Fault.CORRUPT:
                volume.damaged = str(error)
            raise
        finally:
            new.discard()

    def _replace(
        self, volume: _Volume, new: VolumeFile, places: list[tuple[SliceId, Place]], end: int
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
            self._index.replace(volume.id, new.superblock.generation, kept, stale)
            volume.file = new
            volume.generation = new.superblock.generation
            volume.end = volume.durable = volume.allocated = end
            volume.living_bytes = sum(needle.needle_bytes(place.length) for _, place in kept)
            volume.needles = len(kept)
            self._dirty.discard(volume.id)
            self._space = (0.0, 0, 0)
            self._note_open(volume)
        self._write_table_locked()

    def _drop_if_dead(self, volume: _Volume) -> None:
        with self._lock:
            dead = not volume.needles and not volume.writing and not volume.dropped
        if dead:
            self._drop(volume)

    def _drop(self, volume: _Volume) -> None:
        """Remove a volume in which nothing lives, or nothing is to live any more."""
        try:
            with self._table:
                self._index.drop(volume.id)
                with self._lock:
                    volume.dropped = True
                    self._index.forget(volume.id)
                    self._volumes.pop(volume.id, None)
                    self._open_files.pop(volume.id, None)
                    self._dirty.discard(volume.id)
                    self._space = (0.0, 0, 0)
            volume.path.unlink()
        except OSError as error:
            raise disk_error(error, f"{volume.path}: removing it") from error

    # -- verification

    def verify(self, progress: Progress | None = None) -> Iterator[Damage]:
        """Read every living needle, and say what cannot be read as it was written.

        `progress` is told (bytes done, bytes in all) after each needle.
        """
        yield from list(self._unreadable.values())
        with self._lock:
            volumes = [self._volumes[one] for one in sorted(self._volumes)]
            total = sum(volume.living_bytes for volume in volumes)
        report = _Report(progress, total)
        for volume in volumes:
            yield from self._verify(volume, report)

    def _verify(self, volume: _Volume, report: "_Report") -> Iterator[Damage]:
        with self._lock:
            if volume.dropped:
                return
            try:
                file, stop = self._file(volume), volume.watermark
            except (OSError, FsError) as error:
                yield Damage(str(volume.path), volume.id, 0, SliceId(0), str(error))
                return
        for gap in rewrite.gaps(file, stop):
            detail = f"{gap.stop - gap.start} bytes cannot be read as needles"
            yield rewrite.damage_of(file, SliceId(0), gap.start, detail)
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

    # -- files

    def _path(self, volume_id: VolumeId) -> Path:
        return self.directory / f"{volume_id:08}.vol"

    def _file(self, volume: _Volume) -> VolumeFile:
        """The open file of a volume; under the lock."""
        file = volume.file
        if file is None:
            try:
                file = VolumeFile.open(volume.path)
            except BadSuperblock as error:
                raise FsError(Fault.CORRUPT, f"{volume.path}: {error}") from error
            volume.file = file
        self._note_open(volume)
        return file

    def _note_open(self, volume: _Volume) -> None:
        self._open_files[volume.id] = None
        self._open_files.move_to_end(volume.id)
        if len(self._open_files) <= self.config.open_files_max:
            return
        for other_id in list(self._open_files):
            other = self._volumes.get(other_id)
            if other is volume or other is self._active or other_id in self._dirty:
                continue
            if other is not None and (other.writing or other.failed):
                continue
            if other is not None:
                other.file = None
            del self._open_files[other_id]
            return

    def _corrupt(self, file: VolumeFile, slice_id: SliceId, offset: int, detail: str) -> FsError:
        return FsError(Fault.CORRUPT, str(rewrite.damage_of(file, slice_id, offset, detail)))

    def _no_such_volume(self, volume_id: VolumeId, slice_id: SliceId) -> FsError:
        if damage := self._unreadable.get(volume_id):
            return FsError(Fault.CORRUPT, f"{damage.path}: {damage.detail} (slice {slice_id:#x})")
        path = self._path(volume_id)
        return FsError(Fault.CORRUPT, f"{path}: slice {slice_id:#x}: there is no such volume")

    # -- opening

    def _open(self) -> None:
        if not self.directory.is_dir():
            self.directory.mkdir(mode=0o700, parents=True)
            sync_directory(self.directory.parent)
        for path in self.directory.glob("*.vol.new"):
            path.unlink()
        states = self._index.states()
        for path in sorted(self.directory.glob("*.vol")):
            if not path.stem.isdecimal():
                continue
            volume_id = VolumeId(int(path.stem))
            self._next_id = max(self._next_id, volume_id + 1)
            self._open_volume(path, volume_id, states.pop(volume_id, None))
        for volume_id in states:
            self._next_id = max(self._next_id, volume_id + 1)
            self._give_up(self._path(volume_id), volume_id, "the file is missing")
        if self._home is None:
            self._home = os.urandom(16)
        if self._index.pending:
            self._write_table()

    def _open_volume(self, path: Path, volume_id: VolumeId, state: VolumeState | None) -> None:
        try:
            file = VolumeFile.open(path)
        except BadSuperblock as error:
            self._give_up(path, volume_id, str(error))
            return
        superblock = file.superblock
        if superblock.volume != volume_id:
            self._give_up(path, volume_id, f"it is volume {superblock.volume} by its superblock")
            return
        if self._home is None:
            self._home = superblock.home
        if superblock.home != self._home:
            raise FsError(
                Fault.BAD_HOME,
                f"{path} belongs to the home {superblock.home.hex()}, not to this one "
                f"({self._home.hex()}): put it back where it was",
            )
        if state is None or state.generation != superblock.generation:
            self._index.drop(volume_id)
            self._index.forget(volume_id)
            state = VolumeState(superblock.generation, SUPERBLOCK_BYTES, 0, 0)
        volume = _Volume(file, state)
        self._volumes[volume_id] = volume
        self._note_open(volume)
        if file.size != state.checkpoint:
            self._recover(volume, file, max(state.checkpoint, superblock.durable))
            if self._index.pending >= self.config.pending_needles_max:
                self._write_table()

    def _recover(self, volume: _Volume, file: VolumeFile, durable: int) -> None:
        """Account for what lies behind the checkpoint."""
        found = rewrite.recover_file(file, volume.durable, durable)
        for gap in found.damage:
            detail = f"{gap.stop - gap.start} bytes cannot be read as needles"
            damage = rewrite.damage_of(file, SliceId(0), gap.start, detail)
            log.error("%s", damage)
            volume.damaged = str(damage)
        volume.end = volume.durable = volume.allocated = found.end
        for header in found.records:
            if header.kind is Kind.DATA:
                place = Place(header.offset, header.length)
                volume.account(self._index.put(volume.id, header.slice_id, place))
            else:
                volume.account(self._index.remove(volume.id, header.slice_id, header.offset))

    def _give_up(self, path: Path, volume_id: VolumeId, detail: str) -> None:
        log.error("%s: %s", path, detail)
        self._unreadable[volume_id] = Damage(str(path), volume_id, 0, SliceId(0), detail)


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
