"""The leader looks for what nobody needs, and for what is missing."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from mountfs.chunks import collector as collector_module
from mountfs.chunks.collector import Collector
from mountfs.chunks.protocol import Method
from mountfs.errors import Fault, FsError
from mountfs.meta.ops.volumes import AdoptVolume, SealVolume
from mountfs.types import VolumeId
from tests.chunks.plane import Plane, plane

GRACE_S = 0.2


class Looking:
    """A collector whose steps the test takes."""

    def __init__(self, found: Plane) -> None:
        self.found = found
        self.differing: list[tuple[VolumeId, int]] = []
        self.collector = Collector(
            found.server,
            found.leading.orders,
            lambda volume, node: self.differing.append((volume, node)),
            grace_s=GRACE_S,
        )

    async def round(self) -> None:
        """Look at all volumes once, from the first on."""
        self.found.heard()
        self.collector.hurry()
        with trio.fail_after(30):
            while self.collector.is_hurried:
                await self.collector.step()

    async def after_the_grace(self) -> None:
        """All names that there are now are closed."""
        await self.collector.step()
        await trio.sleep(2 * GRACE_S)
        await self.round()


async def test_what_was_written_and_never_committed_is_deleted_after_the_grace(
    tmp_path: Path,
) -> None:
    async with plane(tmp_path) as found:
        (record,) = await found.allot()
        ino = await found.file("f")
        used = await found.fill(record, ino, 2)
        orphan = await found.name()
        await found.write(record, orphan)
        looking = Looking(found)
        await looking.round()
        assert found.have(record.number, [*used, orphan], *record.replicas), "not yet"
        await trio.sleep(2 * GRACE_S)
        coming = await found.name()
        await found.write(record, coming)
        await looking.round()
        assert found.have(record.number, [*used, coming], *record.replicas)
        assert not any(found.have(record.number, [orphan], node) for node in record.replicas)
        assert looking.collector.figures.orphans == 3
        await found.commit(ino, record, coming)  # it was only on its way
        with pytest.raises(FsError) as caught:
            await found.commit(ino, record, orphan)
        assert caught.value.fault is Fault.SLICE_EXPIRED
        assert not looking.differing


async def test_a_slice_that_went_to_some_replicas_only_is_found_there(tmp_path: Path) -> None:
    async with plane(tmp_path) as found:
        (record,) = await found.allot()
        name = await found.name()
        await found.write(record, name, record.replicas[1])
        looking = Looking(found)
        await looking.after_the_grace()
        assert not found.nodes[record.replicas[1]].names(record.number)
        assert looking.collector.figures.orphans == 1


async def test_what_a_replica_lacks_is_noticed(tmp_path: Path) -> None:
    async with plane(tmp_path) as found:
        (record,) = await found.allot()
        names = await found.fill(record, await found.file("f"), 3)
        bad = record.replicas[1]
        found.nodes[bad].lose(record.number, names[1])
        looking = Looking(found)
        await looking.round()
        assert not looking.differing, "it may be on its way"
        await looking.after_the_grace()
        assert looking.differing == [(record.number, bad)]
        assert looking.collector.figures.missing == 1
        assert found.have(record.number, [names[0], names[2]], *record.replicas)


async def test_a_list_of_several_pages_is_looked_at_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collector_module, "PAGE", 3)
    monkeypatch.setattr(collector_module, "DELETED_AT_ONCE", 2)
    async with plane(tmp_path, count=2) as found:
        (record,) = await found.allot()
        ino = await found.file("f")
        used, orphans = [], []
        for number in range(20):
            name = await found.name()
            await found.write(record, name)
            if number % 4 == 1 or number in (8, 18, 19):
                used.append(name)
            else:
                orphans.append(name)
        await found.commit(ino, record, *used)
        bad = record.replicas[0]
        found.nodes[bad].lose(record.number, used[0], used[-1])
        looking = Looking(found)
        await looking.after_the_grace()
        assert found.nodes[record.replicas[1]].names(record.number) == used
        assert found.nodes[bad].names(record.number) == used[1:-1]
        assert looking.collector.figures.missing == 2
        assert set(looking.differing) == {(record.number, bad)}


@pytest.mark.parametrize("how", ["rubbish", "disorder", "too many", "from before", "refused"])
async def test_a_node_whose_list_makes_no_sense_keeps_nobody_from_the_others(
    tmp_path: Path, how: str
) -> None:
    async with plane(tmp_path) as found:
        (record,) = await found.allot()
        names = await found.fill(record, await found.file("f"), 3)
        orphan = await found.name()
        await found.write(record, orphan)
        bad = found.nodes[record.replicas[0]]
        lies: dict[str, Any] = {
            "disorder": [(names[2], 8192), (names[0], 8192)],
            "too many": [(name, 8192) for name in range(1, 20_000)],
            "from before": [(0, 8192)],
            "rubbish": "nothing",
        }
        if how == "refused":
            bad.refuse(Method.LIST, Fault.NOT_FOUND)
        else:
            bad.answer(Method.LIST, msgspec.msgpack.encode(lies[how]))
        looking = Looking(found)
        await looking.after_the_grace()
        assert found.have(record.number, [*names, orphan], bad.number), "it is left as it is"
        assert not found.have(record.number, [orphan], record.replicas[1])
        assert not looking.differing


async def test_a_node_that_hides_what_it_has_is_told_of(tmp_path: Path) -> None:
    async with plane(tmp_path) as found:
        (record,) = await found.allot()
        await found.fill(record, await found.file("f"), 3)
        bad = found.nodes[record.replicas[0]]
        bad.answer(Method.LIST, msgspec.msgpack.encode([]))
        looking = Looking(found)
        await looking.after_the_grace()
        assert looking.differing == [(record.number, bad.number)]


async def test_who_is_silent_is_not_asked(tmp_path: Path) -> None:
    async with plane(tmp_path, reporting=False) as found:
        (record,) = await found.allot(copies=3)
        name = await found.name()
        await found.write(record, name)
        silent = found.nodes[record.replicas[0]]
        found.quiet.add(silent.number)
        looking = Looking(found)
        with trio.fail_after(30):
            while found.server.chunkservers.is_heard(silent.number):
                await trio.sleep(0.05)
                found.heard()
        silent.hang(Method.LIST)
        await looking.after_the_grace()
        assert Method.LIST not in silent.calls
        assert found.have(record.number, [name], silent.number)
        silent.well()
        found.quiet.clear()
        await looking.round()
        assert not silent.names(record.number)


async def test_a_sealed_volume_of_no_use_is_forgotten_after_the_grace(tmp_path: Path) -> None:
    async with plane(tmp_path) as found:
        empty, orphaned, used, written = await found.allot(count=4)
        ino = await found.file("f")
        await found.fill(used, ino, 1)
        await found.write(orphaned, await found.name())
        for record in (empty, orphaned, used):
            await found.order(SealVolume(record.number))
        own = VolumeId(7)
        found.nodes[3].disks.open_volume(own, 1)
        await found.order(AdoptVolume(own, 3, 1))
        looking = Looking(found)
        await looking.round()
        await looking.after_the_grace()
        assert found.record(empty.number) is None
        assert found.record(orphaned.number) is not None, "what is in it has only just been closed"
        await looking.after_the_grace()
        assert found.record(orphaned.number) is None
        assert found.record(used.number) is not None
        assert found.record(written.number) is not None, "it is not sealed"
        assert found.record(own) is not None, "it would be adopted again"
        assert looking.collector.figures.forgotten == 2


async def test_what_is_about_to_be_used_is_not_forgotten(tmp_path: Path) -> None:
    async with plane(tmp_path) as found:
        (record,) = await found.allot()
        await found.order(SealVolume(record.number))  # and the nodes do not know it yet
        looking = Looking(found)
        await looking.round()
        await trio.sleep(2 * GRACE_S)  # it is as good as forgotten
        late = await found.name()
        await found.write(record, late)
        await looking.round()
        await found.commit(await found.file("f"), record, late)
        await looking.after_the_grace()
        await looking.after_the_grace()
        assert found.record(record.number) is not None
        assert found.have(record.number, [late], *record.replicas)


async def test_in_safe_mode_nothing_is_done_and_nobody_runs_in_circles(tmp_path: Path) -> None:
    async with plane(tmp_path) as found:
        (record,) = await found.allot()
        await found.write(record, await found.name())
        looking = Looking(found)
        await looking.collector.step()
        await trio.sleep(2 * GRACE_S)
        found.server.safe_mode._on = True
        found.server.safe_mode._volumes = lambda: (5, 0)
        looking.collector.hurry()
        for _ in range(5):
            await looking.collector.step()
            assert looking.collector.pause_s > 0
        assert found.tree.counters.closed_slices == 0


async def test_who_leads_no_more_begins_with_nothing(tmp_path: Path) -> None:
    async with plane(tmp_path) as found:
        (record,) = await found.allot()
        await found.write(record, await found.name())
        looking = Looking(found)
        await looking.collector.step()
        await trio.sleep(2 * GRACE_S)
        found.server.group.stopped = True
        await looking.collector.step()
        found.server.group.stopped = False
        await looking.round()
        assert found.tree.counters.closed_slices == 0, "a mark that we have not seen ourselves"
