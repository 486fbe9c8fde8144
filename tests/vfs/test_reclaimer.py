"""The leader merges slices that lie over one another, and has what they leave behind deleted."""

from pathlib import Path
from typing import Any

import pytest
import trio
from crc32c import crc32c

from mountfs.chunks.allotter import LEADER
from mountfs.errors import Fault, FsError
from mountfs.meta.extents import visible
from mountfs.meta.ops.read import GetLayout
from mountfs.meta.ops.slices import Garbage, Tangles
from mountfs.meta.ops.volumes import CloseSlices, ListVolumes
from mountfs.meta.ops.write import Run, Write
from mountfs.types import KIB, SliceId
from mountfs.vfs import reclaimer as reclaimer_module
from mountfs.vfs.reclaimer import Reclaimer
from tests.chunks.plane import Plane, payload, plane


def reclaimer(found: Plane) -> Reclaimer:
    leading = found.leading
    return Reclaimer(found.server, leading.nodes, leading.link, leading.allotter, leading.orders)


async def tangled(found: Plane, count: int = 6) -> tuple[int, list[SliceId], bytes]:
    """A file whose slices lie over one another, 4 KiB after 4 KiB.  Returns what it contains."""
    (record,) = await found.allot()
    ino = await found.file("f")
    data, names = bytearray(), []
    for turn in range(count):
        name = await found.name()
        await found.write(record, name)
        at = turn * 4 * KIB
        run = Run(at, 8 * KIB, crc32c(payload(name)), name, record.number)
        await found.order(Write(ino, (run,), 1, False))
        data[at:] = payload(name)
        names.append(name)
    return ino, names, bytes(data)


async def content(found: Plane, one: Reclaimer, ino: int, size: int) -> bytes:
    data = bytearray(size)
    for piece in visible(GetLayout(ino, 0).read(found.tree).slices):
        low = piece.skip
        data[piece.start : piece.stop] = await one._chunks.read(
            piece.volume, piece.slice_id, low, low + piece.stop - piece.start
        )
    return bytes(data)


async def test_a_tangled_file_is_merged_and_says_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reclaimer_module, "LOOK_S", 0.02)
    async with plane(tmp_path) as found:
        ino, names, data = await tangled(found)
        one = reclaimer(found)
        assert await content(found, one, ino, len(data)) == data
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.run)
            await found.until(lambda: not Tangles(10).read(found.tree))
            await found.until(lambda: not Garbage(10).read(found.tree))
            nursery.cancel_scope.cancel()
        assert await content(found, one, ino, len(data)) == data
        records = ListVolumes(100).read(found.tree)
        (mine,) = [record for record in records if found.used(record.number)]
        assert mine.owner == LEADER
        assert len(mine.replicas) == 3
        for node in found.nodes.all.values():
            for record in records:
                assert not set(names) & set(node.names(record.number))


async def test_merged_slices_that_come_too_late_are_garbage_and_it_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with plane(tmp_path) as found:
        ino, names, data = await tangled(found)
        one = reclaimer(found)
        write = one._chunks.write

        async def late(*how: Any) -> Any:
            stored = await write(*how)
            await found.order(CloseSlices(SliceId(1 << 60)))
            return stored

        with monkeypatch.context() as closing:
            closing.setattr(one._chunks, "write", late)
            with pytest.raises(FsError) as caught:
                await one._compactor.run_once()
        assert caught.value.fault is Fault.SLICE_EXPIRED
        assert len(Garbage(10).read(found.tree)) == 1
        assert await content(found, one, ino, len(data)) == data
        await one._compactor.run_once()
        assert not Tangles(10).read(found.tree)
        await one.deletion.step()
        assert not Garbage(10).read(found.tree)
        assert await content(found, one, ino, len(data)) == data
        assert not set(names) & {
            one for record in ListVolumes(9).read(found.tree) for one in found.used(record.number)
        }
