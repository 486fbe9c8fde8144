"""The volumes of one directory as they are in memory: opened, recovered, their files kept open.

Nothing here locks: a `LiveVolume` and the `VolumeSet` belong to whoever holds the lock of the disk
store.
"""

import errno
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Final

from mountfs.chunks import rewrite
from mountfs.chunks.config import ChunkConfig
from mountfs.chunks.file import VolumeFile, sync_directory
from mountfs.chunks.index import Growth, NeedleIndex, Place, VolumeState
from mountfs.chunks.needle import Kind
from mountfs.chunks.protocol import node_of
from mountfs.chunks.volume import (
    SUPERBLOCK_BYTES,
    BadSuperblock,
    Damage,
    Gap,
    Superblock,
    VolumeStats,
)
from mountfs.errors import Fault, FsError
from mountfs.types import FIRST_REPLICATED, SliceId, VolumeId

log = logging.getLogger(__name__)

_ITS_OWN_ERRNOS = frozenset(
    getattr(errno, name)
    for name in (
        "EACCES",
        "EIO",
        "EISDIR",
        "ELOOP",
        "ENODATA",
        "ENOENT",
        "ENXIO",
        "EPERM",
        "EUCLEAN",
    )
)
"""What the disk may say of one file while the others are well.  Anything else (no descriptors, a
disk that is read-only) would befall all of them, and is for the caller.
"""


BAD_MAX: Final = 100
"""Damaged needles of a volume that are remembered.  With more it is lost as a whole."""


class LiveVolume:
    """What is known of one volume in memory.  Changed under the lock of the store only."""

    def __init__(self, file: VolumeFile, state: VolumeState, *, own: bool) -> None:
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
        self.digest = state.digest
        """Of the names of those needles."""
        self.sealed = True
        """Takes no needles, but tombstones."""
        self.failed = ""
        """Why nothing may be written to it any more; empty: it is well."""
        self.damaged = ""
        """Why it is not compacted, and takes no needles; empty: no damage was met."""
        self.bad: dict[SliceId, str] = {}
        """Needles that were found to be damaged, up to BAD_MAX, and how.  Until they are replaced
        or deleted it is not compacted.
        """
        self.writing: dict[int, int] = {}
        """Ranges (start -> stop) reserved, and not known to be whole."""
        self.holes: list[Gap] = []
        """Of these, the ones whose write failed, and that could not be marked yet."""
        self.removed: list[SliceId] | None = None
        """What was deleted since its compaction began; None: it is not being compacted."""
        self.own = own
        """It was numbered by this store, which fills it as it likes.  Any other is made, opened,
        sealed and dropped by order only.
        """
        self.epoch = 0
        """In which it takes needles from others; 0: in none.  Invariant: it is not sealed, or 0."""
        self.last_epoch = 0
        """Of one that may be opened again: not in an epoch before this one.  0: never."""
        self.coming: set[SliceId] = set()
        """Slices that others are writing to it."""
        self.dropped = False
        """It is being removed: nothing may be put into it any more."""
        self.deleting = threading.Lock()
        """Held while tombstones are written, and while compaction changes the file."""

    @property
    def watermark(self) -> int:
        """Everything before it is in the file, or in no file."""
        return min(self.writing, default=self.end)

    @property
    def slack(self) -> int:
        """Disk space that is taken and not used yet, in bytes."""
        return max(self.allocated - self.end, 0)

    @property
    def is_busy(self) -> bool:
        """Whether the file must stay open: only the one that was written to tells of errors, and
        in a compaction another one may already have its name.
        """
        return bool(self.writing) or not self.sealed or self.removed is not None

    @property
    def is_quiet(self) -> bool:
        """Nothing is being written to it, but for failed writes that could not be marked."""
        return len(self.writing) == len(self.holes)

    @property
    def trouble(self) -> str:
        """Why nothing is appended to it, and it is not compacted; empty: it is well."""
        return self.failed or self.damaged or next(iter(self.bad.values()), "")

    def note_bad(self, slice_id: SliceId, detail: str) -> None:
        if slice_id in self.bad or len(self.bad) < BAD_MAX:
            self.bad[slice_id] = detail

    def account(self, growth: Growth) -> None:
        self.living_bytes += growth.bytes
        self.needles += growth.needles
        self.digest ^= growth.digest
        assert self.needles >= 0, (self.path, self.needles)

    def stats(self) -> VolumeStats:
        return VolumeStats(
            self.id,
            self.generation,
            self.end,
            self.living_bytes,
            self.needles,
            self.sealed,
            self.trouble,
            self.epoch,
            self.last_epoch > 0,
            self.digest,
        )


class VolumeSet:
    """Raises OSError, and FsError CORRUPT for a volume that cannot be opened any more."""

    def __init__(self, directory: Path, config: ChunkConfig, home: bytes | None) -> None:
        self.directory = directory
        self.items: dict[VolumeId, LiveVolume] = {}
        self.unreadable: dict[VolumeId, Damage] = {}
        """Volumes that are known of, and cannot be opened."""
        self.gone: set[VolumeId] = set()
        """Volumes that were removed since, with all in them: nobody misses them."""
        self.dirty: set[VolumeId] = set()
        """Volumes with something that is not synced."""
        self._config = config
        self._home = home
        self._open_files: OrderedDict[VolumeId, None] = OrderedDict()
        """Volumes with an open file, the longest unused first."""
        self._first = VolumeId(config.first_volume)
        self._next_id = config.first_volume

    def file(self, volume: LiveVolume) -> VolumeFile:
        """The open file of a volume."""
        file = volume.file
        if file is None:
            try:
                file = VolumeFile.open(volume.path)
            except BadSuperblock as error:
                raise FsError(Fault.CORRUPT, f"{volume.path}: {error}") from error
            volume.file = file
        self.note_open(volume)
        return file

    def note_open(self, volume: LiveVolume) -> None:
        """A volume has an open file; if too many have, another one's is closed."""
        if volume.dropped:
            return
        self._open_files[volume.id] = None
        self._open_files.move_to_end(volume.id)
        if len(self._open_files) <= self._config.open_files_max:
            return
        for other_id in self._open_files:
            other = self.items[other_id]
            if other is volume or other_id in self.dirty or other.is_busy:
                continue
            other.file = None
            del self._open_files[other_id]
            return

    def create(self, volume_id: VolumeId, generation: int) -> VolumeFile:
        """An empty file, not published yet."""
        salt = int.from_bytes(os.urandom(4), "little")
        assert self._home is not None
        superblock = Superblock(volume_id, generation, salt, SUPERBLOCK_BYTES, self._home)
        return VolumeFile.create(self.path(volume_id), superblock)

    def begin(self) -> LiveVolume:
        """A new volume of our own, on disk."""
        volume = self.make(VolumeId(self._next_id))
        self._next_id += 1
        return volume

    def make(self, volume_id: VolumeId) -> LiveVolume:
        """A new volume of this number, on disk."""
        return self.add_new(self.publish_new(volume_id))

    def publish_new(self, volume_id: VolumeId) -> VolumeFile:
        """The file of a new volume, on disk.  Needs no lock, but nobody else may do the same."""
        file = self.create(volume_id, 1)
        try:
            os.fdatasync(file.fd)
            file.publish()
            sync_directory(self.directory)
        except BaseException:
            file.discard()
            raise
        return file

    def add_new(self, file: VolumeFile) -> LiveVolume:
        """A new volume is there from now on."""
        volume_id = file.superblock.volume
        assert volume_id not in self.items, volume_id
        self.gone.discard(volume_id)
        return self._add(file, VolumeState(1, SUPERBLOCK_BYTES, 0, 0))

    def remove(self, volume: LiveVolume) -> None:
        """Forget a volume; its file stays."""
        self.items.pop(volume.id, None)
        self.gone.add(volume.id)
        self._open_files.pop(volume.id, None)
        self.dirty.discard(volume.id)

    def clear(self) -> None:
        self.items.clear()
        self._open_files.clear()
        self.dirty.clear()

    def missing(self, volume_id: VolumeId, slice_id: SliceId) -> FsError:
        """What to say to a reader of a volume that is not there."""
        if damage := self.unreadable.get(volume_id):
            return FsError(Fault.CORRUPT, f"{damage.path}: {damage.detail} (slice {slice_id:#x})")
        path = self.path(volume_id)
        return FsError(Fault.CORRUPT, f"{path}: slice {slice_id:#x}: there is no such volume")

    def note_missing(self, volume_id: VolumeId) -> None:
        """Somebody knows of a volume that is not among the items."""
        self._note_number(volume_id)
        if volume_id not in self.unreadable:
            self._give_up(self.path(volume_id), volume_id, "the file is missing")

    # -- opening

    def open_all(self, index: NeedleIndex, write_table: Callable[[], object]) -> None:
        """Find the volumes, bring index and files to the same state, and call `write_table` when
        there is much to be written.
        """
        if not self.directory.is_dir():
            self.directory.mkdir(mode=0o700, parents=True)
            sync_directory(self.directory.parent)
        for path in self.directory.glob("*.vol.new"):
            path.unlink()
        states = index.states()
        for path in sorted(self.directory.glob("*.vol")):
            if not path.stem.isdecimal():
                continue
            volume_id = VolumeId(int(path.stem))
            self._note_number(volume_id)
            volume = self._open(path, volume_id, states.pop(volume_id, None), index)
            if volume is None:
                continue
            try:
                self._recover(volume, index, write_table)
            except rewrite.Unreadable as error:
                self.remove(volume)
                self._give_up(path, volume_id, f"the disk cannot read it: {error}")
        for volume_id in states:
            self.note_missing(volume_id)
        for volume_id, epoch in index.epochs().items():
            if volume_id in self.items:
                self.items[volume_id].last_epoch = epoch
        if self._home is None:
            self._home = os.urandom(16)

    def _open(
        self, path: Path, volume_id: VolumeId, state: VolumeState | None, index: NeedleIndex
    ) -> LiveVolume | None:
        try:
            file = VolumeFile.open(path)
        except BadSuperblock as error:
            self._give_up(path, volume_id, str(error))
            return None
        except OSError as error:
            if error.errno not in _ITS_OWN_ERRNOS:
                raise
            self._give_up(path, volume_id, f"it cannot be opened: {error.strerror}")
            return None
        superblock = file.superblock
        if superblock.volume != volume_id:
            self._give_up(path, volume_id, f"it is volume {superblock.volume} by its superblock")
            return None
        if self._home is None:
            self._home = superblock.home
        if superblock.home != self._home:
            raise FsError(
                Fault.BAD_HOME,
                f"{path} belongs to the home {superblock.home.hex()}, not to this one "
                f"({self._home.hex()}): put it back where it was",
            )
        if state is None or state.generation != superblock.generation:
            index.drop(volume_id)
            index.forget(volume_id)
            state = VolumeState(superblock.generation, SUPERBLOCK_BYTES, 0, 0)
        return self._add(file, state)

    def _recover(
        self, volume: LiveVolume, index: NeedleIndex, write_table: Callable[[], object]
    ) -> None:
        """Account for what lies behind the checkpoint."""
        file = self.file(volume)
        if file.size == volume.end:
            return
        found = rewrite.recover_file(file, volume.end, max(volume.end, file.superblock.durable))
        for gap in found.damage:
            damage = rewrite.gap_damage(file, gap)
            log.error("%s", damage)
            volume.damaged = str(damage)
        for header in found.records:
            if index.pending >= self._config.pending_needles_max:
                volume.durable = header.start  # so far the table may go
                write_table()
            if header.kind is Kind.DATA:
                place = Place(header.offset, header.length)
                volume.account(index.put(volume.id, header.slice_id, place))
            else:
                volume.account(index.remove(volume.id, header.slice_id, header.offset))
        volume.end = volume.durable = volume.allocated = found.end
        if index.pending:
            write_table()

    def _add(self, file: VolumeFile, state: VolumeState) -> LiveVolume:
        volume = LiveVolume(file, state, own=self._owns(file.superblock.volume))
        self.items[volume.id] = volume
        self.note_open(volume)
        return volume

    def _give_up(self, path: Path, volume_id: VolumeId, detail: str) -> None:
        log.error("%s: %s", path, detail)
        self.gone.discard(volume_id)
        self.unreadable[volume_id] = Damage(str(path), volume_id, 0, SliceId(0), detail)

    def _owns(self, volume_id: VolumeId) -> bool:
        """Whether a volume has a number that we may have given it."""
        if not self._first or volume_id >= FIRST_REPLICATED:
            return False
        return node_of(volume_id) == node_of(self._first)

    def _note_number(self, volume_id: VolumeId) -> None:
        """It is in use, or was: no new volume is to have it."""
        if self._owns(volume_id):
            self._next_id = max(self._next_id, volume_id + 1)

    def path(self, volume_id: VolumeId) -> Path:
        return self.directory / f"{volume_id:08}.vol"
