"""What the healer plans, carried out by a real leader: with failures in the middle, and again."""

import logging
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from mountfs.chunks import disks as disks_module
from mountfs.chunks import needle, steps
from mountfs.chunks import repairs as repairs_module
from mountfs.chunks.collector import Collector
from mountfs.chunks.orders import Orders
from mountfs.chunks.protocol import Method
from mountfs.errors import Fault, FsError
from mountfs.meta.healing_tasks import (
    Adopt,
    CopyVolume,
    Reconcile,
    Remove,
    Repair,
    Rescue,
    Seal,
    Shrink,
)
from mountfs.meta.ops.volumes import SealVolume, SetReplicas, VolumeRecord
from mountfs.types import KIB, SliceId, VolumeId
from tests.chunks.nodes import Node
from tests.chunks.plane import Plane, plane

COUNT = 12


async def fails(fault: Fault, work: Any, match: str = ".") -> None:
    with pytest.raises(FsError, match=match) as caught, trio.fail_after(30):
        await work
    assert caught.value.fault is fault, caught.value


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy takes several calls."""
    monkeypatch.setattr(steps, "PART_BYTES", 24 * KIB)


async def sealed(found: Plane, *, copies: int = 3) -> tuple[VolumeRecord, list[SliceId]]:
    """A volume with slices of a file, which its nodes know to be sealed."""
    (record,) = await found.allot(copies=copies)
    names = await found.fill(record, await found.file(f"f{record.number}"), COUNT)
    record = await found.order(SealVolume(record.number))
    for node in record.replicas:
        found.nodes[node].disks.seal(record.number)
    return record, names


async def do(found: Plane, task: Any) -> None:
    with trio.fail_after(30):
        await found.repairs._steps_now(found.healer.copied).carry_out(task)


def other(found: Plane, record: VolumeRecord) -> int:
    return next(node for node in found.nodes.all if node not in record.replicas)


def copy_to(record: VolumeRecord, target: int, going: int = 0) -> CopyVolume:
    staying = tuple(node for node in record.replicas if node != going)
    return CopyVolume(
        volume=record.number, why="a test", source=staying[0], target=target, replacing=going,
        before=record.replicas, replicas=(*staying, target), copies=3, bytes=0,
    )  # fmt: skip


def after(node: Node, method: Method, count: int, happens: Any) -> None:
    """When the node has answered so many calls."""

    def answered(asked: Method, answer: bytes) -> bytes:
        nonlocal count
        count -= asked is method
        if count == 0:
            happens()
        return answer

    node.after = answered


# -- each of the tasks


async def test_seal_reaches_all_who_are_there_and_is_done_when_all_know(tmp_path: Path) -> None:
    async with plane(tmp_path) as found:
        (record,) = await found.allot()
        task = Seal(volume=record.number, why="a test", to=record.replicas)
        found.nodes[record.replicas[0]].down = True
        await fails(Fault.UNAVAILABLE, do(found, task))
        assert found.record(record.number).sealed  # type: ignore[union-attr]
        for node in record.replicas[1:]:
            await fails(Fault.VOLUME_CLOSED, found.write(record, await found.name(), node))
        found.nodes[record.replicas[0]].down = False
        await found.write(record, await found.name(), record.replicas[0])  # it does not know yet
        await do(found, task)
        await fails(
            Fault.VOLUME_CLOSED, found.write(record, await found.name(), record.replicas[0])
        )


async def test_who_was_away_when_it_was_sealed_is_told_before_it_gets_anything(
    tmp_path: Path,
) -> None:
    async with plane(tmp_path) as found:
        (record,) = await found.allot(copies=3)
        names = await found.fill(record, await found.file("f"), COUNT)
        lacking = found.nodes[record.replicas[0]]
        lacking.disks.delete({record.number: names[:3]})
        await found.order(SealVolume(record.number))
        await do(found, Reconcile(volume=record.number, why="a test", among=record.replicas))
        assert found.have(record.number, names, *record.replicas)


@pytest.mark.parametrize("dies", ["source", "target"])
async def test_a_copy_that_breaks_off_changes_nothing_and_is_gone_on_with(
    tmp_path: Path, dies: str
) -> None:
    async with plane(tmp_path) as found:
        record, names = await sealed(found)
        target, going = other(found, record), record.replicas[2]
        task = copy_to(record, target, going)
        dying = found.nodes[task.source if dies == "source" else target]
        watched = found.nodes[target]
        after(watched, Method.COPY, 2, lambda: setattr(dying, "down", True))
        await fails(Fault.UNAVAILABLE, do(found, task))
        assert found.record(record.number) == record
        some = watched.names(record.number)
        assert 0 < len(some) < COUNT
        dying.down = False
        watched.well()
        await do(found, task)
        assert found.record(record.number).replicas == task.replicas  # type: ignore[union-attr]
        assert found.have(record.number, names, *task.replicas)
        assert found.have(record.number, names, going), "it is not dropped for that"


async def test_a_copy_whose_record_has_changed_changes_nothing(tmp_path: Path) -> None:
    async with plane(tmp_path, count=5) as found:
        record, _ = await sealed(found)
        target, another = (node for node in found.nodes.all if node not in record.replicas)
        late = copy_to(record, target)
        await found.order(SetReplicas(record.number, record.replicas, (another,), 3))
        await fails(Fault.BUSY, do(found, late))
        assert found.record(record.number).replicas == (another,)  # type: ignore[union-attr]


async def test_a_copy_that_does_not_get_on_ends(tmp_path: Path) -> None:
    async with plane(tmp_path) as found:
        record, _ = await sealed(found)
        target = found.nodes[other(found, record)]
        target.answer(Method.COPY, msgspec.msgpack.encode((0, 5, 5, False)))
        await fails(Fault.DEVICE, do(found, copy_to(record, target.number)), "get on")
        assert target.calls.count(Method.COPY) == 1


async def test_copies_that_differ_all_get_what_one_of_them_has(tmp_path: Path) -> None:
    async with plane(tmp_path) as found:
        record, names = await sealed(found)
        for number, node in enumerate(record.replicas):
            found.nodes[node].lose(record.number, *names[number * 3 : number * 3 + 3])
        task = Reconcile(volume=record.number, why="a test", among=record.replicas)
        await do(found, task)
        assert found.have(record.number, names, *record.replicas)


async def test_what_one_copy_cannot_give_the_others_do(tmp_path: Path) -> None:
    async with plane(tmp_path) as found:
        record, names = await sealed(found)
        one, two, three = record.replicas
        found.nodes[two].damage(record.number, names[1])
        found.nodes[one].lose(record.number, *names[:3])
        task = Reconcile(volume=record.number, why="a test", among=(one, two, three))
        await fails(Fault.CORRUPT, do(found, task))
        assert found.have(record.number, names, one, three)


async def test_damaged_slices_come_from_whoever_has_them_whole(tmp_path: Path) -> None:
    async with plane(tmp_path) as found:
        record, names = await sealed(found)
        bad, first, second = record.replicas
        for name in names[:4]:
            found.nodes[bad].damage(record.number, name)
            found.nodes[bad].disks.disks[0].store.note_bad(record.number, name, "a test")
        found.nodes[first].damage(record.number, names[1])
        task = Repair(volume=record.number, why="a test", node=bad, sources=(first, second))
        await do(found, task)
        assert found.have(record.number, names, bad)


async def test_a_slice_that_nobody_has_whole_keeps_no_other_from_being_repaired(
    tmp_path: Path,
) -> None:
    async with plane(tmp_path) as found:
        record, names = await sealed(found)
        bad, first, second = record.replicas
        for name in names[:4]:
            found.nodes[bad].damage(record.number, name)
            found.nodes[bad].disks.disks[0].store.note_bad(record.number, name, "a test")
        for node in (first, second):
            found.nodes[node].damage(record.number, names[0])
        task = Repair(volume=record.number, why="a test", node=bad, sources=(first, second))
        await fails(Fault.CORRUPT, do(found, task))
        assert found.have(record.number, names[1:], bad)
        found.nodes[second].down = True  # and a source that is away is passed over
        await fails(Fault.UNAVAILABLE, do(found, task))


async def test_shrink_gives_up_a_replica_and_not_its_bytes(tmp_path: Path) -> None:
    async with plane(tmp_path) as found:
        record, names = await sealed(found)
        *staying, going = record.replicas
        task = Shrink(
            volume=record.number, why="a test", node=going, before=record.replicas,
            replicas=tuple(staying), copies=2,
        )  # fmt: skip
        await do(found, task)
        assert found.record(record.number).replicas == tuple(staying)  # type: ignore[union-attr]
        assert found.have(record.number, names, going)


async def strayed(found: Plane) -> tuple[VolumeRecord, list[SliceId], int]:
    """A third copy that the record does not name any more."""
    record, names = await sealed(found)
    *staying, stray = record.replicas
    record = await found.order(SetReplicas(record.number, record.replicas, tuple(staying), 2))
    return record, names, stray


def removal(record: VolumeRecord, *strays: int) -> Remove:
    return Remove(volume=record.number, why="a test", strays=strays, replicas=record.replicas)


async def test_a_stray_copy_gives_what_a_replica_lacks_before_it_goes(tmp_path: Path) -> None:
    async with plane(tmp_path) as found:
        record, names, stray = await strayed(found)
        for node in record.replicas:
            found.nodes[node].lose(record.number, names[5])
        await do(found, removal(record, stray))
        assert found.have(record.number, names, *record.replicas)
        assert record.number not in found.nodes[stray].disks.volumes()


@pytest.mark.parametrize("how", ["nobody has it", "silent", "hides", "copy fails", "length"])
async def test_nothing_is_dropped_before_the_others_have_all_that_is_in_use(
    tmp_path: Path, how: str
) -> None:
    async with plane(tmp_path) as found:
        record, names, stray = await strayed(found)
        lacking = found.nodes[record.replicas[1]]
        if how == "silent":
            lacking.down = True
        elif how == "hides":
            lacking.answer(Method.LIST, b"\x90")
        elif how == "length":
            found.nodes[lacking.number].lose(record.number, names[0])
            disk = lacking.disks.disk_of(record.number)
            assert disk is not None
            disk.store.put(record.number, names[0], [b"x"], needle.checksums([b"x"]))
        else:
            lacking.lose(record.number, names[0])
            if how == "nobody has it":
                found.nodes[stray].lose(record.number, names[0])
            else:
                lacking.refuse(Method.COPY, Fault.NO_SPACE)
        with pytest.raises(FsError):
            await do(found, removal(record, stray))
        assert Method.DROP not in found.nodes[stray].calls
        left = names[1:] if how == "nobody has it" else names
        assert found.have(record.number, left, stray)


async def test_who_has_become_a_replica_meanwhile_is_not_told_to_drop_it(tmp_path: Path) -> None:
    async with plane(tmp_path) as found:
        record, names, stray = await strayed(found)
        task = removal(record, stray)
        await found.order(SetReplicas(record.number, record.replicas, (stray,), 2))
        await fails(Fault.BUSY, do(found, task))
        unrecorded = Remove(volume=record.number, why="a test", strays=(stray,))
        await fails(Fault.BUSY, do(found, unrecorded))
        assert found.have(record.number, names, stray)


async def test_a_copy_of_no_record_becomes_one_only_if_it_has_all(tmp_path: Path) -> None:
    async with plane(tmp_path) as found:
        record, names = await sealed(found)
        one, two, three = record.replicas
        gone = other(found, record)
        record = await found.order(SetReplicas(record.number, record.replicas, (gone,), 3))
        found.nodes[one].lose(record.number, *names[:3])
        found.nodes[two].lose(record.number, *names[2:6])
        task = Rescue(
            volume=record.number, why="a test", node=one, others=(two,), before=(gone,),
            replicas=(gone, one), copies=3,
        )  # fmt: skip
        await fails(Fault.CORRUPT, do(found, task), "lacks 1 slices")
        assert found.record(record.number) == record
        assert found.nodes[one].service.fence.latest > 0, "an earlier leader cannot drop it now"
        await do(found, Rescue(**{**_fields(task), "others": (two, three)}))
        assert found.record(record.number).replicas == (gone, one)  # type: ignore[union-attr]
        assert found.have(record.number, names, one)


def _fields(task: Any) -> dict[str, Any]:
    return {name: getattr(task, name) for name in task.__struct_fields__}


async def test_what_a_node_has_made_alone_gets_a_record(tmp_path: Path) -> None:
    async with plane(tmp_path) as found:
        own = VolumeId(7)
        await do(found, Adopt(volume=own, why="a test", node=3, copies=3))
        assert found.record(own) == VolumeRecord(own, (3,), 3, sealed=True)


# -- leading


async def test_what_was_decided_in_a_term_is_not_ordered_in_a_later_one() -> None:
    now = 5
    asked: list[int] = []

    class Link:
        async def call(self, method: int, parts: Any = b"") -> bytes:
            asked.append(method)
            return b""

    async def link(node: int) -> Link:
        await trio.lowlevel.checkpoint()
        return Link()

    orders = Orders(lambda: now, link)
    held = orders.of_this_term()
    await held.drop(1, VolumeId(7))
    now = 6
    await fails(Fault.NOT_LEADER, held.drop(1, VolumeId(7)), "term 5")
    now = 7
    await fails(Fault.NOT_LEADER, held.delete(1, {VolumeId(7): [SliceId(1)]}))
    await orders.drop(1, VolumeId(7))
    assert asked == [Method.DROP, Method.DROP]


async def test_who_leads_no_more_orders_nothing_more(tmp_path: Path) -> None:
    async with plane(tmp_path) as found:
        record, names, stray = await strayed(found)
        group = found.server.group

        def stop() -> None:
            group.stopped = True

        try:
            after(found.nodes[record.replicas[1]], Method.LIST, 1, stop)
            await fails(Fault.NOT_LEADER, do(found, removal(record, stray)))
            await fails(Fault.NOT_LEADER, found.leading.orders.drop(stray, record.number))
        finally:
            group.stopped = False
        assert found.have(record.number, names, stray)


async def test_all_that_is_under_way_ends_with_the_term(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repairs_module, "EVERY_S", 0.02)
    async with plane(tmp_path) as found:
        record, names = await sealed(found)
        for node in found.nodes.all.values():
            node.hang(Method.COPY)
        bad = record.replicas[0]
        found.nodes[bad].disks.drop(record.number)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(found.repairs.run)
            await found.until(lambda: Method.COPY in found.nodes.under_way)
            found.server.group.stopped = True
            await found.until(lambda: Method.COPY not in found.nodes.under_way)
            assert not found.repairs._running
            found.server.group.stopped = False
            for node in found.nodes.all.values():
                node.well()
            await found.until(lambda: found.have(record.number, names, *_now(found, record)))
            await found.until(lambda: len(_now(found, record)) == 3)
            nursery.cancel_scope.cancel()
        assert not found.nodes.under_way


def _now(found: Plane, record: VolumeRecord) -> tuple[int, ...]:
    now = found.record(record.number)
    assert now is not None
    return tuple(node for node in now.replicas if found.nodes[node].names(record.number))


# -- altogether


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repairs_module, "EVERY_S", 0.02)


async def test_a_node_that_is_gone_for_good_is_replaced(
    tmp_path: Path, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    async with plane(tmp_path) as found:
        volumes = [await sealed(found) for _ in range(4)]
        gone = volumes[0][0].replicas[0]
        with caplog.at_level(logging.INFO):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(found.repairs.run)
                found.nodes[gone].down = True
                for record, names in volumes:
                    await found.until(
                        lambda record=record: gone not in found.record(record.number).replicas
                    )
                    replicas = found.record(record.number).replicas  # type: ignore[union-attr]
                    assert len(replicas) == 3
                    assert found.have(record.number, names, *replicas)
                found.nodes[gone].down = False
                numbers = {record.number for record, _ in volumes}
                await found.until(lambda: numbers.isdisjoint(found.nodes[gone].disks.volumes()))
                nursery.cancel_scope.cancel()
        assert found.repairs.done


async def test_copies_that_each_lack_another_slice_of_the_same_size_are_found_by_their_reports(
    tmp_path: Path, quick: None
) -> None:
    async with plane(tmp_path) as found:
        record, names = await sealed(found)
        for number, node in enumerate(record.replicas):
            found.nodes[node].lose(record.number, names[number])  # as many bytes everywhere
        found.heard()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(found.repairs.run)
            await found.until(lambda: found.have(record.number, names, *record.replicas))
            nursery.cancel_scope.cancel()


async def test_slices_that_copies_lack_come_back_though_nodes_know_no_digests(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As nodes of a version before: they report the same then."""
    report = disks_module._report
    monkeypatch.setattr(
        disks_module, "_report", lambda stats: msgspec.structs.replace(report(stats), digest=0)
    )
    async with plane(tmp_path) as found:
        record, names = await sealed(found)
        for number, node in enumerate(record.replicas):
            found.nodes[node].lose(record.number, names[number])  # as many bytes everywhere
        found.heard()
        collector: Collector = found.collector
        collector.grace_s = 0.1
        async with trio.open_nursery() as nursery:
            nursery.start_soon(found.repairs.run)
            nursery.start_soon(collector.run)
            await found.until(lambda: found.tree.counters.closed_slices > names[-1])
            collector.hurry()
            await found.until(lambda: found.have(record.number, names, *record.replicas))
            nursery.cancel_scope.cancel()


async def test_a_volume_that_is_forgotten_leaves_nothing_behind(
    tmp_path: Path, quick: None
) -> None:
    async with plane(tmp_path) as found:
        (record,) = await found.allot()
        await found.write(record, await found.name())
        await found.order(SealVolume(record.number))
        found.collector.grace_s = 0.1
        async with trio.open_nursery() as nursery:
            nursery.start_soon(found.repairs.run)
            nursery.start_soon(found.collector.run)

            def is_gone() -> bool:
                found.collector.hurry()
                return found.record(record.number) is None

            await found.until(is_gone)
            nodes = found.nodes.all.values()
            await found.until(
                lambda: all(record.number not in node.disks.volumes() for node in nodes)
            )
            nursery.cancel_scope.cancel()


async def test_a_volume_that_is_written_to_is_sealed_before_it_is_made_whole(
    tmp_path: Path, quick: None
) -> None:
    async with plane(tmp_path) as found:
        (record,) = await found.allot()
        names = await found.fill(record, await found.file("f"), COUNT)
        found.nodes[record.replicas[1]].lose(record.number, names[3])
        found.collector.grace_s = 0.1
        async with trio.open_nursery() as nursery:
            nursery.start_soon(found.repairs.run)
            nursery.start_soon(found.collector.run)
            await found.until(lambda: found.tree.counters.closed_slices > names[-1])
            found.collector.hurry()
            await found.until(lambda: found.have(record.number, names, *record.replicas))
            nursery.cancel_scope.cancel()
        assert found.record(record.number).sealed  # type: ignore[union-attr]
        with pytest.raises(FsError):
            await found.write(record, await found.name())
