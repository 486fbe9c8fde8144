"""What the leader is told by chunkservers, and what it tells those that ask it for volumes."""

from pathlib import Path

import msgspec
import pytest

from mountfs.chunks.protocol import Allot, Method, Return
from mountfs.errors import Fault, FsError
from mountfs.meta.ops.nodes import AddNode, RemoveNode
from mountfs.meta.ops.volumes import ForgetVolume, SealVolume, VolumeRecord
from tests.chunks.plane import plane


async def test_volumes_are_asked_for_and_given_back(tmp_path: Path) -> None:
    async with plane(tmp_path) as found:
        asked = msgspec.msgpack.encode(Allot(found.session, 2, 2))
        answer = await found.leading.handle(Method.ALLOT, asked)
        records = msgspec.msgpack.decode(answer, type=tuple[VolumeRecord, ...])
        assert [len(record.replicas) for record in records] == [2, 2]
        back = Return(found.session, tuple((one.number, one.epoch) for one in records))
        assert await found.leading.handle(Method.RETURN, msgspec.msgpack.encode(back)) == b""
        assert all(not found.record(one.number).owner for one in records)  # type: ignore[union-attr]


async def test_a_session_that_is_not_applied_yet_has_not_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has just begun to lead may have the entry and not its effect."""
    async with plane(tmp_path) as found:
        group = found.server.group
        late: list[int] = []

        async def wait() -> None:
            late.append(await found.begin_session())

        monkeypatch.setattr(group, "read_now", lambda: False)
        monkeypatch.setattr(group, "wait_read", wait)
        coming = found.session + 1
        await found.leading.handle(Method.ALLOT, msgspec.msgpack.encode(Allot(coming, 2, 1)))
        assert late == [coming]


async def test_only_chunkservers_of_the_cluster_are_heard(tmp_path: Path) -> None:
    async with plane(tmp_path, count=2, reporting=False) as found:
        chunkservers = found.server.chunkservers
        report = found.nodes[2].report()
        for number in (1, 99):  # one without the role, and one that there is not
            with pytest.raises(FsError) as caught:
                chunkservers.hear(msgspec.structs.replace(report, node=number))
            assert caught.value.fault is Fault.NOT_FOUND
        assert not chunkservers.hear(report).wants_whole
        await found.order(RemoveNode(2))
        with pytest.raises(FsError):
            chunkservers.hear(found.nodes[2].report())
        assert not chunkservers.is_heard(2)


async def test_as_many_copies_as_there_are_nodes_but_no_more_than_usual(tmp_path: Path) -> None:
    async with plane(tmp_path, count=1) as found:
        chunkservers = found.server.chunkservers
        assert chunkservers.copies() == 1
        for number in (3, 4, 5):
            place = AddNode(f"c{number}", f"h{number}:1", f"h{number}:2", f"d{number}", ("chunk",))
            await found.order(place)
            assert chunkservers.copies() == min(number - 1, 3)


async def test_volumes_that_are_known_are_counted_for_safe_mode(tmp_path: Path) -> None:
    async with plane(tmp_path, reporting=False) as found:
        records = await found.allot(count=4)
        chunkservers = found.server.chunkservers
        assert chunkservers.volumes() == (4, 0)
        found.heard()
        assert chunkservers.volumes() == (4, 4)
        await found.order(SealVolume(records[0].number))
        await found.order(ForgetVolume(records[0].number))
        assert chunkservers.volumes() == (3, 3)
        ino = await found.file("f")
        for record in records[1:3]:  # the last one is empty, and may be nowhere
            await found.fill(record, ino, 1)
        chunkservers.lead_no_more()
        assert chunkservers.volumes() == (0, 0)
        chunkservers.began_to_lead()
        assert chunkservers.volumes() == (3, 0)
        chunkservers.expect_less()
        assert chunkservers.volumes() == (2, 0)
        found.heard()
        assert chunkservers.volumes() == (2, 2)
