"""Who is given which volume to write to, by a real leader."""

from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
import trio

from mountfs.chunks import allotter
from mountfs.chunks.allotter import LEADER, Allotter
from mountfs.chunks.protocol import Allot, Method, Return
from mountfs.errors import Fault, FsError
from mountfs.meta.ops.volumes import AllotVolume, ReturnVolumes, SealVolume, VolumeRecord
from mountfs.types import VolumeId
from tests.chunks.plane import Plane, plane


async def fails(fault: Fault, work: Any, match: str = ".") -> None:
    with pytest.raises(FsError, match=match) as caught, trio.fail_after(30):
        await work
    assert caught.value.fault is fault, caught.value


def is_open(found: Plane, record: VolumeRecord) -> bool:
    """On all its replicas, in its epoch."""
    reports = [found.nodes[node].disks.report(whole=True).volumes for node in record.replicas]
    epochs = [{one.number: one.epoch for one in volumes} for volumes in reports]
    return all(one.get(record.number) == record.epoch for one in epochs)


async def test_a_volume_is_open_on_all_its_replicas_before_it_is_given(tmp_path: Path) -> None:
    async with plane(tmp_path) as found:
        records = await found.allot(count=3)
        assert len({record.number for record in records}) == 3
        for record in records:
            assert len(set(record.replicas)) == record.copies == 3
            assert record.owner == found.session
            assert is_open(found, record)
            assert found.record(record.number) == record
        (record,) = await found.allot(copies=1)
        assert len(record.replicas) == 1


@pytest.mark.parametrize("how", ["down", "device", "busy", "lost answer"])
async def test_a_node_that_cannot_open_it_is_replaced_and_the_volume_sealed(
    tmp_path: Path, how: str
) -> None:
    async with plane(tmp_path, reporting=False) as found:
        bad = found.nodes[3]
        if how == "down":
            bad.down = True
        elif how == "lost answer":
            bad.lose_answers(Method.OPEN)
        else:
            bad.refuse(Method.OPEN, Fault.DEVICE if how == "device" else Fault.BUSY)
        records = await found.allot(count=4, copies=3)
        for record in records:
            assert 3 not in record.replicas
            assert is_open(found, record)
        first = min(record.number for record in records)
        tried = [one for one in range(1 << 31, first) if found.record(VolumeId(one))]
        assert all(found.record(VolumeId(one)).sealed for one in tried)  # type: ignore[union-attr]
        calls = bad.calls.count(Method.OPEN)
        assert calls <= 1
        await found.allot(count=4, copies=3)
        assert how == "busy" or bad.calls.count(Method.OPEN) == calls, (
            "it is left alone for a while"
        )


async def test_when_nobody_opens_anything_it_is_said_why(tmp_path: Path) -> None:
    async with plane(tmp_path, count=2) as found:
        for node in found.nodes.all.values():
            node.refuse(Method.OPEN, Fault.DEVICE)
        await fails(Fault.UNAVAILABLE, found.allot())
        for node in found.nodes.all.values():
            node.well()
        (record,) = await found.allot()  # they were shunned, but there is nobody else
        assert is_open(found, record)


async def test_whom_a_client_avoids_gets_nothing_unless_too_few_are_left(tmp_path: Path) -> None:
    async with plane(tmp_path) as found:
        for record in await found.allot(count=5, avoid=(2,)):
            assert record.replicas == tuple(sorted({3, 4, 5}, key=record.replicas.index))
        for record in await found.allot(count=5, avoid=(2, 3)):
            assert set(record.replicas) == {4, 5}, "fewer copies are better than none"
        for record in await found.allot(count=5, avoid=(2, 3, 4)):
            assert len(record.replicas) >= 2, "but not one"


async def test_volumes_that_a_client_has_found_to_fail_are_sealed(tmp_path: Path) -> None:
    async with plane(tmp_path) as found:
        one, other = await found.allot(count=2)
        foreign = await found.begin_session()
        (theirs,) = await found.allot(session=foreign)
        failed = ((one.number, one.epoch), (other.number, other.epoch + 1), (theirs.number, 1))
        held = ((other.number, other.epoch),)
        await found.allot(failed=(*failed, (VolumeId(99), 1)), held=held)
        assert found.record(one.number).sealed  # type: ignore[union-attr]
        assert found.record(other.number) == other, "it was of another epoch"
        assert found.record(theirs.number) == theirs, "it is not theirs to say"


async def test_what_is_given_back_is_given_out_again_in_a_later_epoch(tmp_path: Path) -> None:
    async with plane(tmp_path) as found:
        (first,) = await found.allot()
        name = await found.name()
        await found.write(first, name)
        await found.allotter.give_back(Return(found.session, ((first.number, first.epoch),)))
        found.heard()
        other = await found.begin_session()
        (second,) = await found.allot(session=other)
        assert (second.number, second.epoch) == (first.number, first.epoch + 1)
        assert is_open(found, second)
        await fails(Fault.VOLUME_CLOSED, found.write(first, await found.name()))
        await found.write(second, await found.name())
        # Who returns it late returns nothing.
        await found.allotter.give_back(Return(found.session, ((first.number, first.epoch),)))
        assert found.record(first.number) == second
        await found.allotter.give_back(Return(other, ((first.number, 2),), (first.number,)))
        assert found.record(first.number).sealed  # type: ignore[union-attr]


async def test_volumes_of_a_session_that_has_ended_are_given_out_again(tmp_path: Path) -> None:
    async with plane(tmp_path) as found:
        (first,) = await found.allot()
        await found.end_session(found.session)
        await fails(Fault.SESSION_ENDED, found.allot())
        await found.allotter.step()
        assert found.record(first.number).owner == 0  # type: ignore[union-attr]
        found.heard()
        other = await found.begin_session()
        (second,) = await found.allot(session=other)
        assert (second.number, second.epoch) == (first.number, first.epoch + 1)
        await fails(Fault.VOLUME_CLOSED, found.write(first, await found.name()))


async def test_what_an_answer_gave_that_was_lost_is_given_out_again(tmp_path: Path) -> None:
    async with plane(tmp_path) as found:
        lost = await found.allot(count=2)
        found.heard()
        (kept,) = await found.allot(held=())
        assert {record.number for record in lost} >= {kept.number}, "it is as good as new"
        (more,) = await found.allot(copies=2, held=((kept.number, kept.epoch),))
        assert found.record(kept.number) == kept
        owned = [
            record.number
            for record in map(found.record, range(1 << 31, more.number + 1))
            if record is not None and record.owner
        ]
        assert sorted(owned) == sorted([kept.number, more.number])


async def test_a_new_leader_learns_what_sessions_have(tmp_path: Path) -> None:
    async with plane(tmp_path) as found:
        lost = await found.allot(count=2)
        another: Any = Allotter(found.server, found.leading.orders, Random(1))
        await another.step()
        await another.allot(Allot(found.session, 2, 1))
        for record in lost:
            assert found.record(record.number).owner == 0  # type: ignore[union-attr]


async def test_only_volumes_that_are_well_are_given_out_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with plane(tmp_path, reporting=False) as found:
        records = await found.allot(count=4)
        sealed, taken, large, shy = (record.number for record in records)
        back = tuple((record.number, record.epoch) for record in records)
        for _ in range(40):
            await found.write(records[2], await found.name())
        await found.allotter.give_back(Return(found.session, back))
        monkeypatch.setattr(allotter, "REUSE_BYTES_MAX", 300_000)
        await found.order(SealVolume(sealed))
        await found.order(AllotVolume(found.session, 3, (), taken))
        found.heard()
        avoided = records[3].replicas[0]
        (given,) = await found.allot(avoid=(avoided,))
        assert given.number not in (sealed, taken, large, shy)


async def test_many_that_are_sealed_meanwhile_do_not_keep_a_client_from_getting_one(
    tmp_path: Path,
) -> None:
    async with plane(tmp_path) as found:
        records = await found.allot(count=8)
        await found.allotter.give_back(
            Return(found.session, tuple((one.number, one.epoch) for one in records))
        )
        found.heard()
        for record in records:
            await found.order(SealVolume(record.number))
        (given,) = await found.allot()
        assert is_open(found, given)


async def test_what_is_large_or_has_been_idle_for_long_is_sealed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with plane(tmp_path, reporting=False) as found:
        large, small, written = await found.allot(count=3)
        for record in (large, written):
            for _ in range(40):
                await found.write(record, await found.name())
        await found.allotter.step()
        back = ((large.number, large.epoch), (small.number, small.epoch))
        await found.allotter.give_back(Return(found.session, back))
        monkeypatch.setattr(allotter, "REUSE_BYTES_MAX", 300_000)
        found.heard()
        await found.allotter.step()
        assert found.record(large.number).sealed  # type: ignore[union-attr]
        assert not found.record(small.number).sealed  # type: ignore[union-attr]
        assert found.record(written.number) == written, "somebody writes to it"
        monkeypatch.setattr(allotter, "IDLE_S", 0.0)
        await found.allotter.step()
        assert found.record(small.number).sealed  # type: ignore[union-attr]


async def test_what_the_leader_before_wrote_to_is_given_out_again(tmp_path: Path) -> None:
    async with plane(tmp_path) as found:
        await found.allotter.step()
        (record,) = await found.allot(session=LEADER)
        await found.allotter.step()
        assert found.record(record.number) == record, "it is ours"
        another = Allotter(found.server, found.leading.orders, Random(1))
        await another.step()
        assert found.record(record.number).owner == 0  # type: ignore[union-attr]


async def test_requests_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    async with plane(tmp_path) as found:
        for asked in (
            Allot(found.session, 0, 0),
            Allot(found.session, 0, 17),
            Allot(found.session, 9, 1),
            Allot(found.session, -1, 1),
            Allot(LEADER, 0, 1),
            [1, 2],
        ):
            body = msgspec.msgpack.encode(asked)
            await fails(Fault.INVALID, found.leading.handle(Method.ALLOT, body))
        await fails(
            Fault.SESSION_ENDED,
            found.leading.handle(Method.ALLOT, msgspec.msgpack.encode(Allot(999, 0, 1))),
        )
        body = msgspec.msgpack.encode(Return(LEADER, ((VolumeId(5), 1),)))
        await fails(Fault.INVALID, found.leading.handle(Method.RETURN, body))
        body = msgspec.msgpack.encode(Return(found.session, ((VolumeId(5), 1),), (VolumeId(5),)))
        assert await found.leading.handle(Method.RETURN, body) == b""


async def test_in_safe_mode_nothing_is_given_out_or_changed(tmp_path: Path) -> None:
    async with plane(tmp_path) as found:
        (record,) = await found.allot()
        await found.end_session(found.session)
        found.server.safe_mode._on = True
        found.server.safe_mode._hold_until = 1 << 60
        found.server.safe_mode._volumes = lambda: (5, 0)
        await fails(Fault.UNAVAILABLE, found.allot())
        found.server.safe_mode._hold_until = 0
        await fails(Fault.READ_ONLY, found.allot())
        await found.allotter.step()
        assert found.record(record.number) == record


async def test_who_does_not_lead_gives_out_nothing(tmp_path: Path) -> None:
    async with plane(tmp_path) as found:
        (record,) = await found.allot()
        await found.order(ReturnVolumes(((record.number, record.epoch),)))
        found.server.group.stopped = True
        try:
            await fails(Fault.NOT_LEADER, found.allot())
            back = Return(found.session, ((record.number, record.epoch),))
            await fails(Fault.NOT_LEADER, found.allotter.give_back(back))
            await found.allotter.step()
            assert not found.allotter._idle
        finally:
            found.server.group.stopped = False
