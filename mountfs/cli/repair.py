"""Putting right what can be put right without losing anything, and, only when told so, giving up
what is lost.

Repairs are commands like any other: they go through the log, so a crash in the middle of them is a
crash like any other.  The exceptions are the index of needles, which is made anew from the volumes,
and the counters, which no command sets.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import trio

from mountfs.cli.examine import Examination
from mountfs.cli.show import count_of
from mountfs.errors import Fault, FsError, unwrapped
from mountfs.kv.leveldb import LevelStore
from mountfs.meta import keys
from mountfs.meta.extents import visible
from mountfs.meta.ops.allocate import KEEP_SIZE, PUNCH_HOLE, Allocate
from mountfs.meta.ops.chunk_rows import ChunkRows
from mountfs.meta.ops.read import GetAttr
from mountfs.meta.ops.slices import Discard, Garbage, ReserveSlices, Rewrite
from mountfs.meta.records import Counters, Slice, size_of
from mountfs.types import CHUNK_BYTES, SLICE_BYTES_MAX, Ino, SliceId, VolumeId
from mountfs.vfs.embedded import EmbeddedNode, embedded_node
from mountfs.vfs.handles import File
from mountfs.vfs.home import open_home

Say = Callable[[str], None]

NEW_INDEX = "make the index of needles anew from the volumes"
RECLAIM_S = 30
GARBAGE_MAX = 1 << 20
"""Slices that are deleted at once."""
ATTEMPTS = 10


def plan(found: Examination, *, drop_damaged: bool) -> list[str]:
    """What `repair` will do, as sentences.  Empty: nothing that could be done."""
    steps = []
    if not found.metadata_read:
        return []  # without all of the metadata nobody knows what belongs to whom
    if _wants_new_index(found, drop_damaged):
        steps.append(NEW_INDEX)
    if _may_count(found):
        steps.append("count inodes and allocated bytes anew")
    if found.orphans and not found.rules_broken:
        steps.append(f"remove {count_of(found.orphans, 'file')} without a name")
    if _may_delete(found, drop_damaged):
        number = sum(map(len, found.unreferenced.values()))
        steps.append(f"delete {count_of(number, 'needle')} that no file refers to")
    if found.lost and drop_damaged:
        files = count_of(len(found.lost), "file")
        steps.append(f"put zeros (holes) where bytes of {files} are lost, for ever")
    return steps


def _wants_new_index(found: Examination, drop_damaged: bool) -> bool:
    """It is bad, or names volumes that are gone and that nobody needs (any more)."""
    return found.index_bad or bool(found.volumes_lost and (drop_damaged or not found.lost))


def _may_delete(found: Examination, drop_damaged: bool) -> bool:
    """Whether needles that no file refers to are certainly nobody's.  Where the metadata has lost
    something, they may be all that is left of a file.
    """
    if found.rules_broken or (found.volumes_lost and not drop_damaged):
        return False
    return bool(found.unreferenced)


def _may_count(found: Examination) -> bool:
    """What is miscounted is a fact, unless rows are missing that should have been counted."""
    return found.counters_off != (0, 0) and not found.rules_broken


def repair(found: Examination, *, drop_damaged: bool, say: Say) -> None:
    """Carry out the plan.  Raises FsError where the home cannot be opened or written."""
    home = found.home
    if _wants_new_index(found, drop_damaged):
        say("making the index anew")
        with closing(open_home(home, create=False)) as held:
            shutil.rmtree(held.chunks / "index", ignore_errors=True)
    if _may_count(found):
        say("counting anew")
        _correct_counters(home, *found.counters_off)
    only_index = plan(found, drop_damaged=drop_damaged) == [NEW_INDEX]
    if found.rules_broken and only_index:
        return  # the less is written to such a home the better
    with unwrapped():
        trio.run(_repair_node, found, drop_damaged, say)


def _correct_counters(home: Path, inodes: int, allocated: int) -> None:
    """By how much they are off holds before the log is replayed as well as after."""
    with (
        closing(open_home(home, create=False)) as held,
        closing(LevelStore(held.store)) as store,
    ):
        row = store.get(keys.COUNTERS)
        if row is None:
            return
        counters = msgspec.msgpack.decode(row, type=Counters)
        counters.inodes += inodes
        counters.allocated += allocated
        store.write({keys.COUNTERS: msgspec.msgpack.encode(counters)}, sync=True)


async def _repair_node(found: Examination, drop_damaged: bool, say: Say) -> None:
    say("opening the home, which replays its log and removes files without a name")
    async with embedded_node(found.home, create=False) as node:
        if _may_delete(found, drop_damaged):
            say("deleting needles that no file refers to")
            # Here and now, not in a thread: before anything new can be given one of their names.
            node.disk.delete(found.unreferenced)
        if drop_damaged:
            for ino, ranges in found.lost.items():
                say(f"inode {ino}: putting zeros where bytes are lost")
                for start, stop in ranges:
                    mode = PUNCH_HOLE | KEEP_SIZE
                    await node.meta.propose(Allocate(ino, mode, start, stop - start, False))
                for chunk in _chunks(ranges):
                    await _move_away(node, ino, chunk, found.damaged)
        await node.durable()
    if drop_damaged and found.lost:
        await _delete_garbage(found)


async def _delete_garbage(found: Examination) -> None:
    """Delete what is damaged in its volumes, before anybody tries to compact those: that would
    fail, and then take nothing more.
    """
    async with embedded_node(found.home, create=False) as node:
        garbage = await node.meta.read(Garbage(GARBAGE_MAX))
        volumes: dict[VolumeId, list[SliceId]] = {}
        for slice_id, volume, _ in garbage:
            volumes.setdefault(volume, []).append(slice_id)
        node.disk.delete(volumes)  # not in a thread: before the work behind begins
        deadline = trio.current_time() + RECLAIM_S
        while await node.meta.read(Garbage(1)) and trio.current_time() < deadline:
            node.kick()
            await trio.sleep(0.1)


def _chunks(ranges: list[tuple[int, int]]) -> Iterator[int]:
    """The chunks that ranges of a file touch."""
    touched = (range(low // CHUNK_BYTES, -(-high // CHUNK_BYTES)) for low, high in ranges)
    yield from sorted({chunk for one in touched for chunk in one})


async def _move_away(
    node: EmbeddedNode, ino: Ino, chunk: int, damaged: set[tuple[VolumeId, SliceId]]
) -> None:
    """Copy what is good of damaged slices, so that nothing refers to them any more."""
    for _ in range(ATTEMPTS):
        rows = await node.meta.read(ChunkRows(ino, chunk))
        added, written = await _without(node, ino, chunk, [one for _, _, one in rows], damaged)
        places = tuple((order, number) for order, number, _ in rows)
        try:
            if rows:
                await node.meta.propose(Rewrite(ino, chunk, places, tuple(added)))
            return
        except FsError as error:
            # The chunk is being compacted in the background, too.
            await node.meta.propose(Discard(tuple(written)))
            if error.fault is not Fault.BUSY:
                raise


async def _without(
    node: EmbeddedNode,
    ino: Ino,
    chunk: int,
    slices: list[Slice],
    damaged: set[tuple[VolumeId, SliceId]],
) -> tuple[list[Slice], list[tuple[SliceId, VolumeId, int]]]:
    """(what is visible of a chunk, in other slices than the damaged ones; those that are new)"""
    size = size_of(await node.meta.read(GetAttr(ino)))
    file = File(ino, max(size, (chunk + 1) * CHUNK_BYTES))
    base = chunk * CHUNK_BYTES
    added: list[Slice] = []
    written: list[tuple[SliceId, VolumeId, int]] = []
    for piece in visible(slices):
        if piece.is_hole:
            continue
        if piece.volume and (piece.volume, piece.slice_id) not in damaged:
            added.append(piece)
            continue
        for start in range(piece.start, piece.stop, SLICE_BYTES_MAX):
            stop = min(start + SLICE_BYTES_MAX, piece.stop)
            data = await node.filesystem.reader.read_written(file, base + start, base + stop)
            slice_id = await node.meta.propose(ReserveSlices(1))
            volume, crc = await node.chunks.write(slice_id, [data])
            written.append((slice_id, volume, stop - start))
            added.append(Slice(start, stop, slice_id, 0, volume, stop - start, crc))
    return added, written
