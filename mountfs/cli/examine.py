"""What is wrong with a home, found out without changing it.

First each file is read for itself: tables, volumes.  Then the metadata is brought to where the next
mount would have it (see `scratch`), and two lists are laid side by side: the slices that files
refer to, and the needles that volumes hold.  Both are kept in a database of their own meanwhile, so
memory does not grow with the number of files.

What only costs space is a note, such as nobody's needles, which a crash leaves.  What takes
something from somebody is an error, and names the file.
"""

import os
import re
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Literal

import msgspec

from mountfs.chunks.index import NeedleIndex
from mountfs.chunks.volume import BadSuperblock
from mountfs.cli.scratch import Scratch, scratch
from mountfs.cli.show import count_of, size
from mountfs.cli.volumes import Range, VolumeFound, VolumeReader, volume_paths
from mountfs.errors import FsError
from mountfs.inline import attempt
from mountfs.kv.journal import Journal
from mountfs.kv.leveldb import LevelStore
from mountfs.kv.tables import damage, read_log
from mountfs.meta import keys
from mountfs.meta.command import Query
from mountfs.meta.extents import visible
from mountfs.meta.invariants import violations
from mountfs.meta.local import LocalMeta
from mountfs.meta.ops.slices import Rewrite
from mountfs.meta.ops.write import Run, Write
from mountfs.meta.records import Slice, unpack_dentry, unpack_inode, unpack_slice
from mountfs.meta.state_machine import Entry
from mountfs.meta.tree import Tree
from mountfs.meta.upgrade import bring_to_format_2
from mountfs.raft.messages import NodeId
from mountfs.types import CHUNK_BYTES, MIB, ROOT, Ino, SliceId, VolumeId
from mountfs.vfs.home import BEFORE, Format

Step = Callable[[str, int, int | None], None]
"""Progress: (what is being done, so much of it, of so much in all if that is known)."""

_BATCH_ROWS = 8_192
_NAMES_ROUND = 10_000
"""Rows between two reports of progress."""
_LOG_SEGMENT_BYTES = 16 * MIB


def metadata_damage(home: Path, format: Format) -> str | None:
    """The first damage to the metadata that keeps a home from being mounted, found quickly."""
    for one in damage(home / "meta" / "store"):
        if not _torn(one.path):
            return str(one)
    with scratch(home) as space, space.originals():
        try:
            log = Journal(
                space.log, home=bytes.fromhex(format.id), segment_bytes=_LOG_SEGMENT_BYTES
            )
        except FsError as error:
            return space.original(str(error))
        log.close()
    return None


def _torn(path: Path) -> bool:
    """Of a damaged file: it is a log that only has a torn end.  A crash leaves that, and opening
    cuts it off.
    """
    return path.suffix == ".log" and path.exists() and not read_log(path).resumes


class Finding(msgspec.Struct, frozen=True):
    """Something that is not as it should be."""

    level: Literal["error", "note"]
    kind: Literal["table", "index", "log", "metadata", "volume", "file", "space"]
    what: str
    """A sentence."""
    where: str = ""
    """The file of the home, and the offset in it."""
    file: str = ""
    """The file in the mount, from its root."""
    ino: int = 0
    ranges: tuple[Range, ...] = ()
    """Bytes of that file that are lost: (start, stop)."""


@dataclass
class Examination:
    """What was found, and what `--repair` would need to know."""

    home: Path
    findings: list[Finding] = field(default_factory=list)
    inodes: int = 0
    allocated: int = 0
    needles: int = 0
    needle_bytes: int = 0
    metadata_opened: bool = False
    metadata_read: bool = False
    """All of the metadata could be read."""
    rules_broken: bool = False
    """The metadata contradicts itself, so what it says of others is not to be relied upon."""
    volumes_lost: dict[VolumeId, str] = field(default_factory=dict)
    """Volumes of which nothing can be read, and why."""
    index_bad: bool = False
    """The index of needles does not fit to the volumes; it can be made anew."""
    counters_off: tuple[int, int] = (0, 0)
    """(inodes, allocated bytes) that are there, less what is counted."""
    orphans: int = 0
    """Files without a name, of mounts that have ended."""
    unreferenced: dict[VolumeId, list[SliceId]] = field(default_factory=dict)
    unreferenced_bytes: int = 0
    lost: dict[Ino, list[Range]] = field(default_factory=dict)
    """Bytes of files that cannot be read."""
    damaged: set[tuple[VolumeId, SliceId]] = field(default_factory=set)
    """Slices that lost bytes, or are missing."""

    @property
    def errors(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.level == "error"]

    @property
    def notes(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.level == "note"]


def examine(home: Path, format: Format, step: Step) -> Examination:
    """Check all of a home that nobody has open.  Raises FsError if the check itself cannot go on,
    as without room for temporary files.
    """
    found = Examination(home)
    with scratch(home) as space:
        _check_tables(found, home / "meta" / "store", "table", step)
        _check_tables(found, home / "chunks" / "index", "index", step)
        with closing(LevelStore(space.facts, create=True)) as store:
            facts = _Facts(store)
            index = _open_index(found, space)
            _check_volumes(found, index, facts, step)
            _check_metadata(found, format, space, facts, step)
    _report_volumes(found)
    return found


def _report_volumes(found: Examination) -> None:
    """A volume that is gone is an error as long as anybody may need something of it."""
    needed = {volume for volume, _ in found.damaged}
    for volume, why in found.volumes_lost.items():
        path = str(_volume_path(found, volume))
        if volume in needed or not found.metadata_read:
            what = f"{why}; restore this file from a backup"
            found.findings.insert(0, Finding("error", "volume", what, path))
        else:
            found.findings.append(Finding("note", "volume", f"{why}; no file needs it", path))


def _volume_path(found: Examination, volume: VolumeId) -> Path:
    return found.home / "chunks" / "volumes" / f"{volume:08}.vol"


# -- tables


def _check_tables(
    found: Examination, directory: Path, kind: Literal["table", "index"], step: Step
) -> None:
    step(f"checking {directory.relative_to(found.home)}", 0, None)
    if not directory.is_dir() or not os.listdir(directory):
        if kind == "index" or not os.listdir(found.home / "meta" / "log"):
            return  # made anew when it is missing; and a home that was never used has neither
        found.findings.append(
            Finding("error", kind, "the tables of the metadata are missing", str(directory))
        )
        return
    for one in damage(directory):
        if _torn(one.path):
            continue
        if kind == "index":
            found.index_bad = True
            what = f"the index of needles is damaged: {one.what}; it can be made anew"
        else:
            what = f"a table of the metadata is damaged: {one.what}"
        found.findings.append(Finding("error", kind, what, f"{one.path} at offset {one.offset}"))


def _open_index(found: Examination, space: Scratch) -> NeedleIndex | None:
    """The index of needles, to be compared with the volumes; None: it is not there or damaged."""
    if found.index_bad or not os.listdir(space.index):
        return None
    try:
        return NeedleIndex(LevelStore(space.index))
    except FsError as error:
        found.index_bad = True
        found.findings.append(Finding("error", "index", space.original(str(error))))
        return None


# -- volumes


def _check_volumes(
    found: Examination, index: NeedleIndex | None, facts: "_Facts", step: Step
) -> None:
    paths = volume_paths(found.home / "chunks" / "volumes")
    total = sum(path.stat().st_size for path in paths.values())
    done = 0
    homes: set[bytes] = set()
    for volume, path in paths.items():
        before = done
        try:
            with closing(VolumeReader(path)) as reader:
                homes.add(reader.superblock.home)
                facts.volumes.add(volume)
                survey = reader.survey(_checkpoint(index, volume, reader.superblock.generation))
                for gap in survey.gaps:
                    _report_gap(found, path, gap.start, gap.stop)
                if index is not None and not found.index_bad:
                    _compare(found, index, volume, path, survey)

                def advance(count: int) -> None:
                    nonlocal done
                    done += count
                    step("reading volumes", done, total)

                for needle in reader.needles(survey, advance):
                    facts.put_needle(volume, needle.slice_id, _Fact(
                        needle.place.offset, needle.place.length, needle.crc, needle.bad, needle.why
                    ))  # fmt: skip
                    found.needles += 1
                    found.needle_bytes += needle.place.length
        except BadSuperblock as error:
            found.volumes_lost[volume] = f"volume {volume}: {error}"
        except OSError as error:
            found.volumes_lost[volume] = f"volume {volume} cannot be read: {error.strerror}"
            facts.volumes.discard(volume)
        done = before + path.stat().st_size
        step("reading volumes", done, total)
    facts.flush()
    for volume in sorted((index.states() if index is not None else {}).keys() - paths.keys()):
        found.volumes_lost[volume] = f"volume {volume} is missing"
    if len(homes) > 1:
        what = "volumes of several filesystems are mixed here: put each back where it was"
        found.findings.append(
            Finding("error", "volume", what, str(found.home / "chunks" / "volumes"))
        )


def _report_gap(found: Examination, path: Path, start: int, stop: int) -> None:
    # What files lose by it is told with the files; somebody's or nobody's, here it is not known.
    what = f"{count_of(stop - start, 'byte')} of a volume cannot be read as needles"
    found.findings.append(Finding("note", "volume", what, f"{path} at offset {start}"))


def _checkpoint(index: NeedleIndex | None, volume: VolumeId, generation: int) -> int:
    state = index.states().get(volume) if index is not None else None
    return state.checkpoint if state is not None and state.generation == generation else 0


def _compare(
    found: Examination, index: NeedleIndex, volume: VolumeId, path: Path, survey: VolumeFound
) -> None:
    """The index may know less than the volume, but not something else."""
    state = index.states().get(volume)
    if state is None or state.generation != survey.superblock.generation:
        return  # then it is made anew
    try:
        table = dict(index.slices(volume))
    except FsError as error:
        found.index_bad = True
        found.findings.append(Finding("error", "index", str(error)))
        return
    unknown = sum(
        place.offset < state.checkpoint and table.get(slice_id) != place
        for slice_id, place in survey.living.items()
    )
    in_gaps = [(gap.start, gap.stop) for gap in survey.gaps]
    wrong = sum(
        survey.living.get(slice_id) != place
        and not any(start <= place.offset < stop for start, stop in in_gaps)
        and slice_id not in survey.living
        and place.offset < survey.end
        for slice_id, place in table.items()
    )
    if unknown and survey.gaps:
        return  # a tombstone or a needle that replaced another may lie in what cannot be read
    if unknown or wrong:
        found.index_bad = True
        what = (
            f"the index of needles does not fit to volume {volume}: {unknown} are not in it, "
            f"{wrong} are not in the volume; it can be made anew"
        )
        found.findings.append(Finding("error", "index", what, str(path)))


# -- what was found out, on the disk


class _Fact(msgspec.Struct, frozen=True, array_like=True):
    """A needle."""

    offset: int
    length: int
    crc: int
    bad: tuple[Range, ...]
    why: str


class _Reference(msgspec.Struct, frozen=True, array_like=True):
    """A slice of a file.  `ino` 0: it is garbage that waits for its deletion."""

    ino: int
    chunk: int
    length: int
    crc: int


class _Facts:
    """Needles, and references to them, ordered by (volume, slice)."""

    _NEEDLE = struct.Struct(">cIQ")
    _REFERENCE = struct.Struct(">cIQQQQ")

    def __init__(self, store: LevelStore) -> None:
        self._store = store
        self._batch: dict[bytes, bytes | None] = {}
        self._number = 0
        self.volumes: set[VolumeId] = set()
        """Those that could be opened."""

    def put_needle(self, volume: VolumeId, slice_id: SliceId, fact: _Fact) -> None:
        self._put(self._NEEDLE.pack(b"n", volume, slice_id), msgspec.msgpack.encode(fact))

    def put_reference(self, volume: VolumeId, slice_id: SliceId, reference: _Reference) -> None:
        self._number += 1
        key = self._REFERENCE.pack(
            b"r", volume, slice_id, reference.ino, reference.chunk, self._number
        )
        self._put(key, msgspec.msgpack.encode(reference))

    def has(self, volume: VolumeId, slice_id: SliceId, length: int, crc: int) -> bool:
        """Whether there is the needle that has this length and checksum; one that is damaged
        counts, for a crash does not damage what was on disk.
        """
        found = self._store.get(self._NEEDLE.pack(b"n", volume, slice_id))
        if found is None:
            return False
        fact = msgspec.msgpack.decode(found, type=_Fact)
        return fact.length == length and (fact.crc == crc or bool(fact.why))

    def flush(self) -> None:
        self._store.write(self._batch, sync=False)
        self._batch = {}

    def pairs(self) -> Iterator[tuple[VolumeId, SliceId, _Fact | None, list[_Reference]]]:
        """Every slice that is in a volume or referred to: the needle, and the references."""
        needles = self._needles()
        needle = next(needles, None)
        for place, group in groupby(self._references(), key=lambda item: item[0]):
            while needle is not None and needle[0] < place:
                yield *needle[0], needle[1], []
                needle = next(needles, None)
            references = [reference for _, reference in group]
            if needle is not None and needle[0] == place:
                yield *place, needle[1], references
                needle = next(needles, None)
            else:
                yield *place, None, references
        if needle is not None:
            yield *needle[0], needle[1], []
            yield from ((*place, fact, []) for place, fact in needles)

    def _needles(self) -> Iterator[tuple[tuple[VolumeId, SliceId], _Fact]]:
        for key, value in self._store.scan(b"n", b"o"):
            _, volume, slice_id = self._NEEDLE.unpack(key)
            place = (VolumeId(volume), SliceId(slice_id))
            yield place, msgspec.msgpack.decode(value, type=_Fact)

    def _references(self) -> Iterator[tuple[tuple[VolumeId, SliceId], _Reference]]:
        for key, value in self._store.scan(b"r", b"s"):
            _, volume, slice_id, *_ = self._REFERENCE.unpack(key)
            place = (VolumeId(volume), SliceId(slice_id))
            yield place, msgspec.msgpack.decode(value, type=_Reference)

    def _put(self, key: bytes, value: bytes) -> None:
        self._batch[key] = value
        if len(self._batch) >= _BATCH_ROWS:
            self.flush()


# -- metadata


class _Whole(Query[Tree], frozen=True, tag="whole"):
    """All of the metadata, for one who checks it."""

    def read(self, tree: Tree) -> Tree:
        return tree


def _check_metadata(
    found: Examination, format: Format, space: Scratch, facts: _Facts, step: Step
) -> None:
    if any(finding.kind == "table" and "missing" in finding.what for finding in found.findings):
        return
    step("replaying the log", 0, None)
    try:
        with space.originals():
            meta = _open_meta(format, space, facts)
        found.metadata_opened = True
        if meta.cut:
            what = (
                f"{count_of(meta.cut, 'operation')} at the end of the log, never synced, will be "
                "set aside by the next mount: the bytes that they refer to are not there"
            )
            found.findings.append(Finding("note", "log", what))
    except FsError as error:
        kind: Literal["log", "table"] = "log" if "/meta/log" in str(error) else "table"
        known = any(
            finding.kind == kind and finding.where and finding.where.split(" ")[0] in str(error)
            for finding in found.findings
        )
        if not known:
            found.findings.append(Finding("error", kind, str(error)))
        found.findings.append(
            Finding("error", "metadata", "the metadata cannot be opened, so files were not checked")
        )
        return
    try:
        with space.originals():
            _check_tree(found, _tree_of(meta), facts, step)
            found.metadata_read = True
    except FsError as error:
        found.findings.append(Finding("error", "metadata", f"it cannot be read on: {error}"))
    finally:
        meta.close()


def _open_meta(format: Format, space: Scratch, facts: _Facts) -> LocalMeta:
    def bytes_present(entry: Entry) -> bool:
        """As the next mount will judge (`EmbeddedNode` says why)."""
        command = entry.command
        new: Iterable[Run | Slice] = ()
        if isinstance(command, Write):
            new = command.runs
        elif isinstance(command, Rewrite):
            new = command.added
        return all(
            piece.volume not in facts.volumes
            or facts.has(piece.volume, piece.slice_id, piece.length, piece.crc)
            for piece in new
            if piece.volume
        )

    new = not os.listdir(space.store) and not os.listdir(space.log)
    store = LevelStore(space.store, create=new)
    try:
        log = Journal(space.log, home=bytes.fromhex(format.id), segment_bytes=_LOG_SEGMENT_BYTES)
        cut_path = space.log.parent / "cut"
        try:
            if format.format == BEFORE:
                bring_to_format_2(store, log, bytes_present=bytes_present, cut_path=cut_path)
            return LocalMeta(
                store,
                log,
                bytes_present=bytes_present,
                cut_path=cut_path,
                node=NodeId(format.node),
            )
        except BaseException:
            log.close()
            raise
    except BaseException:
        store.close()
        raise


def _tree_of(meta: LocalMeta) -> Tree:
    tree = attempt(meta.read(_Whole()))
    assert isinstance(tree, Tree)
    return tree


def _check_tree(found: Examination, tree: Tree, facts: _Facts, step: Step) -> None:
    _gather(found, tree, facts, step)
    step("checking the rules of the metadata", 0, None)
    # Every needle that is not as it should be, before anybody is told of the files.
    causes: dict[Ino, str] = {}
    for volume, slice_id, needle, references in facts.pairs():
        _judge(found, tree, volume, slice_id, needle, references, causes)
    broken = list(violations(tree))
    concerned = {ino for text in broken if (ino := _ino_in(text)) is not None}
    paths = paths_of(tree, concerned | found.lost.keys())
    for text in broken:
        ino = _ino_in(text)
        found.rules_broken |= ino is not None or not text.endswith("are counted")
        file = paths.get(ino, "") if ino is not None else ""
        found.findings.append(Finding("error", "metadata", text, file=file, ino=ino or 0))
    for ino, ranges in found.lost.items():
        ranges[:] = joined(ranges)
        lost = sum(stop - start for start, stop in ranges)
        what = f"{count_of(lost, 'byte')} of it cannot be read: {causes[ino]}"
        found.findings.append(
            Finding("error", "file", what, "", paths.get(ino, ""), ino, tuple(ranges))
        )
    if found.unreferenced:
        number = sum(map(len, found.unreferenced.values()))
        what = (
            f"{size(found.unreferenced_bytes)} in {count_of(number, 'needle')} that no file "
            "refers to; a crash leaves such, and --repair deletes them"
        )
        found.findings.append(Finding("note", "space", what))
    if found.orphans:
        what = (
            f"{count_of(found.orphans, 'file')} without a name, in use when the last mount ended: "
            "the next one removes them"
        )
        found.findings.append(Finding("note", "space", what))


def _gather(found: Examination, tree: Tree, facts: _Facts, step: Step) -> None:
    """Go through all rows once: count, and note which slice is whose."""
    expected = tree.counters.inodes
    for number, (key, value) in enumerate(tree.everything()):
        kind = key[8]
        ino = int.from_bytes(key[:8], "big")
        if ino == 0:
            if kind == keys.GARBAGE:
                volume = VolumeId(int.from_bytes(value[:4], "little"))
                length = int.from_bytes(value[4:8], "little")
                slice_id = SliceId(keys.last_64(key))
                facts.put_reference(volume, slice_id, _Reference(0, 0, length, 0))
        elif kind == keys.INODE:
            found.inodes += 1
            found.allocated += unpack_inode(value).allocated
        elif kind == keys.SLICES:
            piece = unpack_slice(value)
            if piece.volume:
                chunk, _, _ = keys.slice_place(key)
                facts.put_reference(
                    piece.volume, piece.slice_id, _Reference(ino, chunk, piece.length, piece.crc)
                )
        if number % _NAMES_ROUND == 0:
            step("reading the metadata", found.inodes, expected)
    facts.flush()
    counters = tree.counters
    found.counters_off = (
        found.inodes - counters.inodes,
        found.allocated - counters.allocated,
    )
    found.orphans = sum(1 for _ in tree.scan(keys.orphans()))


def _judge(
    found: Examination,
    tree: Tree,
    volume: VolumeId,
    slice_id: SliceId,
    needle: _Fact | None,
    references: list[_Reference],
    causes: dict[Ino, str],
) -> None:
    """One slice, as the volume and as the metadata have it."""
    path = _volume_path(found, volume)
    if not references:
        assert needle is not None
        found.unreferenced.setdefault(volume, []).append(slice_id)
        found.unreferenced_bytes += needle.length
    files = [reference for reference in references if reference.ino]
    if needle is None:
        if files:
            length = max(reference.length for reference in files)
            cause = f"slice {slice_id} is not in {path}"
            _lose(found, tree, volume, slice_id, ((0, length),), files, cause, causes)
        return
    where = f"{path} at offset {needle.offset}"
    if needle.bad:
        cause = f"slice {slice_id} in {where}: {needle.why}"
        if not _lose(found, tree, volume, slice_id, needle.bad, files, cause, causes):
            what = f"slice {slice_id}: {needle.why}; no file needs these bytes"
            found.findings.append(Finding("note", "volume", what, where))
        return
    other = [one for one in files if (one.length, one.crc) != (needle.length, needle.crc)]
    if other:
        cause = f"slice {slice_id} in {where} is not the one that was written"
        length = max(one.length for one in other)
        _lose(found, tree, volume, slice_id, ((0, length),), other, cause, causes)


def _lose(
    found: Examination,
    tree: Tree,
    volume: VolumeId,
    slice_id: SliceId,
    bad: Iterable[Range],
    references: list[_Reference],
    cause: str,
    causes: dict[Ino, str],
) -> bool:
    """Note which bytes of which files are lost.  False: none that anybody could see."""
    anything = False
    for ino, chunk in {(Ino(one.ino), one.chunk) for one in references}:
        stop = min(tree.inode(ino).size - chunk * CHUNK_BYTES, CHUNK_BYTES)
        pieces = [
            piece
            for piece in visible(tree.slices(ino, chunk))
            if piece.volume == volume and piece.slice_id == slice_id
        ]
        lost = [
            (chunk * CHUNK_BYTES + low, chunk * CHUNK_BYTES + min(high, stop))
            for piece in pieces
            for low, high in in_chunk(piece, bad)
            if low < stop
        ]
        if lost:
            anything = True
            found.lost.setdefault(ino, []).extend(lost)
            found.damaged.add((volume, slice_id))
            causes.setdefault(ino, cause)
    return anything


def in_chunk(piece: Slice, bad: Iterable[Range]) -> Iterator[Range]:
    """Where bytes `bad` of a slice are seen in the chunk.

    >>> from mountfs.types import SliceId, VolumeId
    >>> piece = Slice(1000, 1500, SliceId(1), 200, VolumeId(1), 4096, 0)
    >>> list(in_chunk(piece, [(0, 300), (650, 4096)]))
    [(1000, 1100), (1450, 1500)]
    """
    for start, stop in bad:
        low = max(piece.start, piece.start + start - piece.skip)
        high = min(piece.stop, piece.start + stop - piece.skip)
        if low < high:
            yield low, high


def joined(ranges: list[Range]) -> list[Range]:
    """The same bytes in as few ranges as it takes, ascending.

    >>> joined([(8, 9), (0, 4), (2, 6), (6, 8)])
    [(0, 9)]
    """
    whole: list[Range] = []
    for start, stop in sorted(ranges):
        if whole and start <= whole[-1][1]:
            whole[-1] = (whole[-1][0], max(whole[-1][1], stop))
        else:
            whole.append((start, stop))
    return whole


# -- names


def _ino_in(text: str) -> Ino | None:
    """The inode that a sentence begins with."""
    found = re.match(r"inode (\d+)", text)
    return Ino(int(found[1])) if found else None


def paths_of(tree: Tree, inos: Iterable[Ino]) -> dict[Ino, str]:
    """Where files are, from the root of the mount; one name of those with several."""
    names: dict[Ino, tuple[Ino, bytes]] = {}
    wanted = set(inos)
    while wanted:
        missing = set()
        for ino in wanted:
            if ino == ROOT or ino in names:
                continue
            name = _name_in_parent(tree, ino)
            if name is None:
                missing.add(ino)
            else:
                names[ino] = name
        if missing:
            names.update(_names_anywhere(tree, missing))
        wanted = {names[ino][0] for ino in wanted if ino in names} - names.keys() - {ROOT}
    return {ino: _path(names, ino) for ino in inos}


def _name_in_parent(tree: Tree, ino: Ino) -> tuple[Ino, bytes] | None:
    record = tree.get(keys.inode(ino))
    if record is None:
        return None
    parent = unpack_inode(record).parent
    for key, value in tree.scan(keys.dentries(parent)):
        if unpack_dentry(value)[0] == ino:
            return parent, key[9:]
    return None


def _names_anywhere(tree: Tree, inos: set[Ino]) -> dict[Ino, tuple[Ino, bytes]]:
    found: dict[Ino, tuple[Ino, bytes]] = {}
    for key, value in tree.everything():
        if key[8] == keys.DENTRY and key[:8] != bytes(8):
            ino, _, _ = unpack_dentry(value)
            if ino in inos:
                found[ino] = (Ino(int.from_bytes(key[:8], "big")), key[9:])
    return found


def _path(names: dict[Ino, tuple[Ino, bytes]], ino: Ino) -> str:
    parts: list[bytes] = []
    seen: set[Ino] = set()
    while ino != ROOT:
        if ino not in names or ino in seen:
            parts.append(b"(inode %d, which has no name)" % ino)
            return os.fsdecode(b"/".join(reversed(parts)))
        seen.add(ino)
        ino, name = names[ino]
        parts.append(name)
    return os.fsdecode(b"/" + b"/".join(reversed(parts)))
