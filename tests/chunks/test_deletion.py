"""Slices that no file refers to any more are deleted wherever there is a copy."""

from pathlib import Path

import pytest

from mountfs.chunks import deletion as deletion_module
from mountfs.chunks.deletion import Deletion
from mountfs.chunks.protocol import Method
from mountfs.errors import Fault, FsError
from mountfs.meta.ops.slices import Garbage
from mountfs.meta.ops.volumes import ForgetVolume, SealVolume
from mountfs.types import SliceId
from tests.chunks.plane import Plane, plane


def garbage(found: Plane) -> list[SliceId]:
    return [row[0] for row in Garbage(10_000).read(found.tree)]


async def test_what_a_file_had_is_deleted_on_all_replicas(tmp_path: Path) -> None:
    async with plane(tmp_path) as found:
        (record,) = await found.allot()
        kept = await found.fill(record, await found.file("kept"), 2)
        ino = await found.file("gone")
        gone = await found.fill(record, ino, 3)
        await found.remove("gone", ino)
        assert garbage(found) == gone
        deletion = Deletion(found.server, found.leading.orders)
        await deletion.step()
        assert not garbage(found)
        for node in record.replicas:
            assert found.nodes[node].names(record.number) == kept
        await deletion.step()
        assert found.nodes.calls(Method.DELETE) == {
            node: int(node in record.replicas) for node in found.nodes.all
        }


@pytest.mark.parametrize("how", ["down", "refuses"])
async def test_who_does_not_delete_keeps_nobody_from_it_and_is_asked_again(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(deletion_module, "BATCH", 2)
    async with plane(tmp_path) as found:
        ino = await found.file("gone")
        (there,) = await found.allot(avoid=(2,))
        (silent,) = await found.allot(avoid=(5,))
        bad = next(node for node in silent.replicas if node not in there.replicas)
        first = await found.fill(silent, ino, 5)
        await found.fill(there, ino, 5)
        await found.remove("gone", ino)
        node = found.nodes[bad]
        if how == "down":
            node.down = True
        else:
            node.refuse(Method.DELETE, Fault.DEVICE)
        deletion = Deletion(found.server, found.leading.orders)
        for _ in range(7):
            await deletion.step()
        assert garbage(found) == first, "all else has gone"
        assert list(deletion.unreachable) == [bad]
        assert caplog.text.count("keeps deleted slices") == 1
        for other in silent.replicas:
            assert (found.nodes[other].names(silent.number) == first) == (other == bad)
        node.well()
        for _ in range(4):
            await deletion.step()
        assert not garbage(found)
        assert not node.names(silent.number)
        assert not deletion.unreachable


async def test_what_was_in_a_volume_that_is_forgotten_is_no_garbage(tmp_path: Path) -> None:
    async with plane(tmp_path) as found:
        (record,) = await found.allot()
        ino = await found.file("gone")
        await found.fill(record, ino, 3)
        await found.remove("gone", ino)
        for node in found.nodes.all.values():
            node.down = True
        deletion = Deletion(found.server, found.leading.orders)
        await deletion.step()
        assert garbage(found)
        await found.order(SealVolume(record.number))
        await found.order(ForgetVolume(record.number))
        await deletion.step()
        assert not garbage(found)


async def test_who_does_not_lead_deletes_nothing(tmp_path: Path) -> None:
    async with plane(tmp_path) as found:
        (record,) = await found.allot()
        ino = await found.file("gone")
        gone = await found.fill(record, ino, 3)
        await found.remove("gone", ino)
        found.server.group.stopped = True
        with pytest.raises(FsError) as caught:
            await Deletion(found.server, found.leading.orders).step()
        found.server.group.stopped = False
        assert caught.value.fault is Fault.NOT_LEADER
        assert garbage(found) == gone
        assert found.have(record.number, gone, *record.replicas)
