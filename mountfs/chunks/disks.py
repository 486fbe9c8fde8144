"""The disks of a chunkserver: directories for volumes, each a store of its own.

A disk that fails takes nothing new and says why; the others go on.  Most things here block, for
threads; those that do not are said to.
"""

import dataclasses
import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from mountfs.buffers import Buffers
from mountfs.chunks.client import LocalChunks
from mountfs.chunks.config import ChunkConfig
from mountfs.chunks.disk import DiskStore
from mountfs.chunks.disk_identity import Owner, claim, kind_of
from mountfs.chunks.index_store import open_index
from mountfs.chunks.term_file import read_term, write_term
from mountfs.chunks.volume import VolumeStats
from mountfs.errors import Fault, FsError, disk_error
from mountfs.kv.base import Store
from mountfs.meta.reports import DiskReport, VolumeReport
from mountfs.types import SLICE_BYTES_MAX, SliceId, VolumeId

log = logging.getLogger(__name__)

T = TypeVar("T")

OpenIndex = Callable[[Path], tuple[Store, str]]
_OTHER_DISK = (Fault.NO_SPACE, Fault.DEVICE, Fault.READ_ONLY)
"""Another disk may do what one refuses for such a reason."""


class Disk:
    """One directory that is open."""

    def __init__(self, path: Path, identity: str, store: DiskStore, index: Store) -> None:
        self.path = path
        self.identity = identity
        self.store = store
        self.chunks = LocalChunks(store)
        self.kind = kind_of(path)
        self.trouble = ""
        """Why it takes nothing new, besides what its store says."""
        self._index = index

    @property
    def why_not(self) -> str:
        """Why it takes nothing new; empty: it does."""
        return self.store.failure or self.trouble

    def space(self) -> tuple[int, int]:
        """(total, free) bytes; (0, 0) and a trouble when it does not say."""
        try:
            return self.store.space()
        except OSError as error:
            self.trouble = f"{self.path}: asking for its space: {error.strerror or error}"
            return 0, 0

    def report(self, volumes: int) -> DiskReport:
        total, free = self.space()
        if self.why_not:
            free = 0
        return DiskReport(str(self.path), self.kind, total, free, volumes, self.why_not)

    def expected_free(self) -> int:
        """What is free when the volumes that are open will be full."""
        full = self.store.config.volume_bytes
        coming = sum(full - one.total_bytes for one in self.store.volumes() if one.epoch)
        return self.space()[1] - coming

    def close(self) -> None:
        self.store.close()
        self._index.close()


class Reported(NamedTuple):
    """What a node tells the leader of its disks."""

    disks: tuple[DiskReport, ...]
    volumes: tuple[VolumeReport, ...]
    """All, or those that have changed since the call before."""
    gone: tuple[VolumeId, ...]
    """Since the call before."""


class Disks:
    """`directories`: the first is that of the node's home.

    One that cannot be opened is reported, and the others serve.  Raises BAD_HOME for one that is
    not this node's, or is named twice.
    """

    def __init__(
        self,
        directories: Sequence[Path],
        owner: Owner,
        *,
        config: ChunkConfig | None = None,
        buffers: Buffers | None = None,
        open_index: OpenIndex = open_index,
    ) -> None:
        self.owner = owner
        self.disks: list[Disk] = []
        self.notices: dict[str, str] = {}
        """What was damaged at the start and has been put right."""
        self._unopened: dict[Path, str] = {}
        """Directories that cannot be used, and why."""
        self._config = dataclasses.replace(config or ChunkConfig(), first_volume=0)
        self._buffers = buffers
        self._open_index = open_index
        self._placing = threading.Lock()
        self._where: dict[VolumeId, Disk] = {}
        self._told: dict[VolumeId, VolumeReport] = {}
        try:
            for number, path in enumerate(directories):
                self._add(path, is_first=number == 0)
        except BaseException:
            self.close()
            raise
        self._find_volumes()

    def _add(self, path: Path, *, is_first: bool) -> None:
        try:
            path.mkdir(mode=0o700, exist_ok=True)
            identity = claim(path, self.owner, is_first=is_first).disk
        except OSError as error:
            self._give_up(path, f"{path}: {error.strerror or error}")
            return
        for other in self.disks:
            if other.identity == identity:
                what = f"{path} and {other.path} are the same disk, or one is a copy of the other"
                raise FsError(Fault.BAD_HOME, f"{what} (disk {identity}): name one of them only")
        try:
            index, told = self._open_index(path)
        except FsError as error:
            self._give_up(path, str(error))
            return
        try:
            store = DiskStore(
                path, index, home=self.owner.home, config=self._config, buffers=self._buffers
            )
        except FsError as error:
            index.close()
            if error.fault is Fault.BAD_HOME:
                raise
            self._give_up(path, str(error))
            return
        except BaseException:
            index.close()
            raise
        if told:
            self.notices[str(path / "index")] = told
        self.disks.append(Disk(path, identity, store, index))

    def _give_up(self, path: Path, why: str) -> None:
        log.error("%s; it is not used", why)
        self._unopened[path] = why

    def _find_volumes(self) -> None:
        found: dict[VolumeId, list[tuple[int, Disk]]] = {}
        for disk in self.disks:
            for stats in disk.store.volumes():
                found.setdefault(stats.volume, []).append((stats.needles, disk))
            for volume in disk.store.unreadable():
                found.setdefault(volume, []).append((-1, disk))
        for volume, places in found.items():
            best = max(places, key=lambda place: place[0])[1]
            self._where[volume] = best
            for _, disk in places:
                if disk is not best:
                    what = f"{disk.path} has a copy of volume {volume}, which {best.path} has, too"
                    disk.trouble = f"{what}: only one can be used; put the other one aside"
                    disk.store.distrust(volume, disk.trouble)
                    log.error("%s", disk.trouble)

    # -- which has what

    def disk_of(self, volume: VolumeId) -> Disk | None:
        """Does not block."""
        return self._where.get(volume)

    def volumes(self) -> list[VolumeId]:
        """All that are here.  Does not block."""
        return sorted(self._where)

    # -- orders

    def open_volume(self, volume: VolumeId, epoch: int) -> None:
        """As `DiskStore.open_volume`, on the disk that has it or on the one with most room."""
        self._on_its_disk(volume, lambda store: store.open_volume(volume, epoch))

    def seal(self, volume: VolumeId) -> VolumeReport:
        """As `DiskStore.seal`; a volume that cannot be opened is reported so."""
        disk = self._where.get(volume)
        if disk is not None and (why := disk.store.unreadable().get(volume)):
            return VolumeReport(volume, 0, 0, 0, trouble=why)
        return _report(self._on_its_disk(volume, lambda store: store.seal(volume)))

    def sealed(self, volume: VolumeId) -> Disk:
        """The disk that has a sealed volume, which is made if it is not there, and sealed if that
        has not come here yet: who copies knows that it is.  Raises as `seal`.
        """
        if volume not in self._where:
            self._on_its_disk(volume, lambda store: store.seal(volume))
        disk = self._where.get(volume)
        if disk is None:
            raise FsError(Fault.BUSY, f"volume {volume} is just being dropped")
        stats = disk.store.stats(volume)
        if stats is None:
            why = disk.store.unreadable().get(volume, "it has just gone")
            raise FsError(Fault.CORRUPT, f"volume {volume} cannot be opened: {why}")
        if stats.reopens:
            disk.store.seal(volume)
        return disk

    def drop(self, volume: VolumeId) -> None:
        """As `DiskStore.drop`."""
        disk = self._where.get(volume)
        if disk is None:
            return
        disk.store.drop(volume)
        with self._placing:
            if disk.store.stats(volume) is None:  # it was not made anew meanwhile
                self._where.pop(volume, None)

    def delete(self, doomed: Mapping[VolumeId, Sequence[SliceId]]) -> None:
        """Forget slices, durably; what is not there is forgotten already.  Raises NO_SPACE or
        DEVICE when a disk does not do it; the others do.
        """
        by_disk: dict[Disk, dict[VolumeId, Sequence[SliceId]]] = {}
        for volume, slices in doomed.items():
            if (disk := self._where.get(volume)) is not None:
                by_disk.setdefault(disk, {})[volume] = slices
        failure: FsError | None = None
        for disk, here in by_disk.items():
            try:
                disk.store.delete(here)
                disk.store.give_back()
            except FsError as error:
                failure = failure or error
        if failure is not None:
            raise failure

    def _on_its_disk(self, volume: VolumeId, work: Callable[[DiskStore], T]) -> T:
        disk = self._where.get(volume)
        if disk is not None:
            done = work(disk.store)
            with self._placing:
                self._where[volume] = disk  # it may have been dropped and made anew
            return done
        with self._placing:  # two orders must not choose two disks for one volume
            disk = self._where.get(volume)
            if disk is not None:
                return work(disk.store)
            failure = self._nowhere()
            for disk in self._by_room():
                try:
                    done = work(disk.store)
                except FsError as error:
                    if error.fault not in _OTHER_DISK:
                        raise
                    failure = error
                else:
                    self._where[volume] = disk
                    return done
            raise failure

    def _by_room(self) -> list[Disk]:
        """Those that take new volumes, the one with most room first."""
        well = [disk for disk in self.disks if not disk.why_not]
        well = [disk for disk in well if disk.space()[1] >= SLICE_BYTES_MAX]
        return sorted(well, key=lambda disk: -disk.expected_free())

    def _nowhere(self) -> FsError:
        why = [disk.why_not for disk in self.disks if disk.why_not]
        why += self._unopened.values()
        full = len(self.disks) > len(why) - len(self._unopened)
        said = "; ".join(why)
        if full:
            what = f"the disks are full{f'; and {said}' if said else ''}"
            return FsError(Fault.NO_SPACE, what)
        return FsError(Fault.DEVICE, f"no disk takes anything new: {said}")

    # -- what is told

    def report(self, *, whole: bool) -> Reported:
        """`whole`: all volumes, not only those that have changed since the call before."""
        stats_of = {disk: disk.store.volumes() for disk in self.disks}
        disks = [disk.report(len(all_stats)) for disk, all_stats in stats_of.items()]
        disks += [DiskReport(str(path), "", 0, 0, 0, why) for path, why in self._unopened.items()]
        now: dict[VolumeId, VolumeReport] = {}
        for disk, all_stats in stats_of.items():
            for stats in all_stats:
                if self._where.get(stats.volume) is disk:
                    now[stats.volume] = _report(stats)
            for volume, why in disk.store.unreadable().items():
                if self._where.get(volume) is disk:
                    now[volume] = VolumeReport(volume, 0, 0, 0, trouble=why)
        before, self._told = self._told, now
        told = [one for number, one in sorted(now.items()) if whole or before.get(number) != one]
        gone = sorted(before.keys() - now.keys())
        return Reported(tuple(disks), tuple(told), tuple(gone))

    def space(self) -> tuple[int, int]:
        """(total, free) bytes.  Directories of one file system count once; does not block long."""
        found: dict[int, tuple[int, int]] = {}
        for disk in self.disks:
            total, free = disk.space()
            try:
                device = os.stat(disk.path).st_dev
            except OSError:
                continue
            here = (total, 0 if disk.why_not else free)
            found[device] = max(found.get(device, (0, 0)), here)
        return sum(one[0] for one in found.values()), sum(one[1] for one in found.values())

    def troubles(self) -> dict[str, str]:
        """File or directory -> what is wrong with it."""
        found = {str(path): why for path, why in self._unopened.items()}
        for disk in self.disks:
            found.update(disk.store.troubles())
            if disk.why_not:
                found[str(disk.path)] = disk.why_not
        return {**self.notices, **found}

    # -- behind the requests

    async def compact_one(self) -> bool:
        """Compact the volume of a disk that gives back most, if one is worth it.  Returns whether
        one was.  Raises what the first disk says that could not; the others were tried.
        """
        failure: FsError | None = None
        for disk in self.disks:
            if disk.store.failure:
                continue
            try:
                if await disk.chunks.compact_one():
                    return True
            except FsError as error:
                failure = failure or error
        if failure is not None:
            raise failure
        return False

    # -- the latest term

    def read_term(self) -> int:
        """The latest of a leader of this cluster that is known of; 0: none is."""
        found = [0]
        for disk in self.disks:
            try:
                found.append(read_term(disk.path, self.owner.cluster))
            except OSError as error:
                log.error("%s: reading the latest term: %s", disk.path, error)
        return max(found)

    def keep_term(self, term: int) -> None:
        """Durably, on every disk that takes it.  Raises what the last one says if none does."""
        failure = FsError(Fault.DEVICE, "there is no disk to keep the latest term on")
        kept = False
        for disk in self.disks:
            try:
                write_term(disk.path, self.owner.cluster, term)
                kept = True
            except OSError as error:
                failure = disk_error(error, f"{disk.path}: keeping the latest term")
                log.error("%s", failure)
        if not kept:
            raise failure

    def close(self) -> None:
        for disk in self.disks:
            disk.close()


def _report(stats: VolumeStats) -> VolumeReport:
    return VolumeReport(
        stats.volume,
        stats.total_bytes,
        stats.living_bytes,
        stats.needles,
        stats.epoch,
        stats.failed,
        stats.digest,
    )
