"""Files on a cluster: nodes and mounts in one process, over loopback, without a kernel's door."""

import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from mountfs.chunks import deletion
from mountfs.chunks.disk import DiskStore
from mountfs.chunks.remote import RemoteChunks
from mountfs.cli import node_homes, node_server
from mountfs.cli.node_settings import Settings
from mountfs.cli.trust import Trust
from mountfs.errors import Fault, FsError
from mountfs.meta import server as meta_server
from mountfs.meta.admin import Join
from mountfs.meta.client import Options
from mountfs.meta.locks import EOF, FLOCK, Lock
from mountfs.meta.ops.nodes import CHUNK, META
from mountfs.meta.ops.read import GetLayout
from mountfs.meta.ops.session import EndSession
from mountfs.meta.ops.setattr import SetAttr
from mountfs.meta.ops.slices import Garbage
from mountfs.meta.records import ino_of, size_of
from mountfs.meta.server import MetaServer
from mountfs.types import KIB, MIB, ROOT, SUPERUSER
from mountfs.vfs import reclaimer
from mountfs.vfs.cluster import ClusterMount, cluster_mount
from mountfs.vfs.filesystem import Filesystem
from mountfs.vfs.handles import Handle
from mountfs.vfs.near import Near

END_S = 30.0
ROLES = (META, CHUNK)
RW = os.O_RDWR


class Nodes:
    def __init__(self, path: Path, nursery: trio.Nursery) -> None:
        self._path = path
        self._nursery = nursery
        self.settings: dict[int, Settings] = {}
        self.metas: dict[int, MetaServer] = {}
        self._scopes: dict[int, trio.CancelScope] = {}
        self._ended: dict[int, trio.Event] = {}

    async def add(self, *roles: str) -> int:
        number = len(self.settings) + 1
        settings = self.settings[number] = Settings(
            home=self._path / f"n{number}",
            host="127.0.0.1",
            port=two_ports(),
            name=f"n{number}",
            roles=roles or ROLES,
            join=tuple(one.rpc for one in self.settings.values()),
        )
        if number == 1:
            await node_homes.found(settings.home)
        else:
            asked = Join(settings.name, settings.rpc, settings.door, "", settings.roles)
            await node_homes.join(settings.home, asked, settings.join, Trust(None, None))
        await self.start(number)
        return number

    async def start(self, number: int) -> None:
        self._scopes[number], self._ended[number] = trio.CancelScope(), trio.Event()
        await self._nursery.start(self._run, number)

    async def stop(self, number: int) -> None:
        self._scopes[number].cancel()
        await self._ended[number].wait()

    async def _run(self, number: int, *, task_status: trio.TaskStatus[None]) -> None:
        try:
            with self._scopes[number]:
                async with node_server.node_server(self.settings[number]) as node:
                    meta = node.meta
                    if meta is not None:
                        self.metas[number] = meta
                        await until(lambda: meta.group.leader)
                    task_status.started()
                    await trio.sleep_forever()
        finally:
            self._ended[number].set()

    async def heard(self, *numbers: int) -> None:
        """Until the leader knows what all of these have, and whether they have room."""

        def all_heard() -> bool:
            fleet = self.leader.chunkservers.fleet
            candidates = {one.node: one for one in self.leader.chunkservers.candidates()}
            return all(fleet.is_complete(one) and candidates[one].usable for one in numbers)

        await until(all_heard)

    @property
    def leader(self) -> MetaServer:
        """It leads, or it led last."""
        return max(self.metas.values(), key=lambda one: (one.group.is_leader, one.group.raft.term))

    @property
    def garbage(self) -> set[int]:
        """Slices that wait for their deletion, as the first node knows."""
        tree = self.metas[1].machine.replica.machine.tree
        return {row[0] for row in Garbage(1_000_000).read(tree)}

    @contextlib.asynccontextmanager
    async def mount(self, soft_s: float | None = None) -> AsyncIterator[ClusterMount]:
        seeds = [("127.0.0.1", one.port + 1) for one in self.settings.values()]
        async with cluster_mount("test:", seeds, Options(about="a test", soft_s=soft_s)) as mount:
            await until(lambda: mount.leases.is_valid)  # before, nothing is kept back
            yield mount


def two_ports() -> int:
    """Two ports in a row that are free now."""
    while True:
        with socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", 0))
            port: int = one.getsockname()[1]
            with contextlib.suppress(OSError, OverflowError):
                two.bind(("127.0.0.1", port + 1))
                return port


async def until(holds: Callable[[], object]) -> None:
    with trio.fail_after(END_S):
        while True:  # nobody tells us
            if holds():
                return
            await trio.sleep(0.01)


@contextlib.asynccontextmanager
async def nodes(
    path: Path, count: int = 1, *, roles: Sequence[tuple[str, ...]] = ()
) -> AsyncIterator[Nodes]:
    """So many nodes that do everything; or one with each of `roles`."""
    with trio.fail_after(4 * END_S):
        async with trio.open_nursery() as nursery:
            found = Nodes(path, nursery)
            for each in roles or [ROLES] * count:
                await found.add(*each)
            await found.heard(*(n for n, one in found.settings.items() if CHUNK in one.roles))
            yield found
            for number in reversed(found.settings):
                await found.stop(number)
            nursery.cancel_scope.cancel()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meta_server, "HOUSEKEEPING_S", 0.05)
    monkeypatch.setattr(reclaimer, "LOOK_S", 0.1)
    monkeypatch.setattr(node_server, "LEAVE_S", 0.5)


async def make(fs: Filesystem, name: str, data: bytes) -> Handle:
    _, handle = await fs.create(ROOT, name.encode(), RW, 0o644, 0, SUPERUSER)
    await fs.write(handle, 0, memoryview(data))
    return handle


async def find(fs: Filesystem, name: str) -> Handle:
    return await fs.open(ino_of(await fs.lookup(ROOT, name.encode(), SUPERUSER)), RW)


async def content(fs: Filesystem, handle: Handle) -> bytes:
    return bytes(await fs.read(handle, 0, 100 * MIB))


async def test_files_of_all_sizes_outlive_mount_and_node(tmp_path: Path) -> None:
    sizes = [0, 1, 4 * KIB, 4 * KIB + 1, 300 * KIB, 5 * MIB + 3]
    data = {f"f{size}": os.urandom(size) for size in sizes}
    async with nodes(tmp_path) as found:
        async with found.mount() as mount:
            fs = mount.filesystem
            for name, each in data.items():
                handle = await make(fs, name, each)
                assert await content(fs, handle) == each
                if len(each) % 2:
                    await fs.fsync(handle)
                    assert not handle.file.unwritten
                await fs.flush(handle, 0)
                await fs.release(handle)
        await found.stop(1)
        await found.start(1)
        async with found.mount() as mount:
            for name, each in data.items():
                handle = await find(mount.filesystem, name)
                assert await content(mount.filesystem, handle) == each
                await mount.filesystem.release(handle)


async def test_two_mounts_are_close_to_open(tmp_path: Path) -> None:
    async with nodes(tmp_path) as found, found.mount() as one, found.mount() as two:
        for size in (100, 300 * KIB):
            for turn in range(3):
                name, data = f"f{size}", os.urandom(size + turn)
                writer, reader = (one, two) if turn % 2 == 0 else (two, one)
                fs = writer.filesystem
                handle = await (find(fs, name) if turn else make(fs, name, b""))
                await fs.write(handle, 0, memoryview(data))
                await fs.flush(handle, 0)
                await fs.release(handle)
                handle = await find(reader.filesystem, name)
                assert await content(reader.filesystem, handle) == data
                await reader.filesystem.release(handle)


async def test_a_file_is_cut_and_grows_again(tmp_path: Path) -> None:
    async with nodes(tmp_path) as found, found.mount() as mount:
        fs = mount.filesystem
        handle = await make(fs, "f", b"x" * 300 * KIB)
        ino = handle.file.ino
        for size in (200 * KIB, 10, 500 * KIB):
            await fs.setattr(SetAttr(ino=ino, cred=SUPERUSER, size=size))
            assert size_of(await fs.getattr(ino)) == size
        assert await content(fs, handle) == b"x" * 10 + bytes(500 * KIB - 10)
        await fs.flush(handle, 0)
        await fs.release(handle)


async def test_deleted_slices_are_reclaimed_where_they_are(tmp_path: Path) -> None:
    async with nodes(tmp_path) as found, found.mount() as mount:
        fs = mount.filesystem
        for number in range(3):
            handle = await make(fs, f"f{number}", os.urandom(MIB))
            await fs.flush(handle, 0)
            await fs.release(handle)
            await fs.forget([handle.file.ino])
        for number in range(3):
            await fs.unlink(ROOT, b"f%d" % number, SUPERUSER)
        await fs.reap()
        await until(lambda: not found.garbage)


async def test_files_are_read_and_written_while_a_node_is_down(tmp_path: Path) -> None:
    async with nodes(tmp_path, 3) as found, found.mount(soft_s=END_S) as mount:
        fs = mount.filesystem
        data = {f"f{number}": os.urandom(300 * KIB) for number in range(6)}
        open_files = [await make(fs, name, each) for name, each in data.items()]
        for handle in open_files:
            await fs.fsync(handle)
        await found.stop(3)
        data["late"] = os.urandom(5 * MIB)
        open_files.append(await make(fs, "late", data["late"]))
        await fs.fsync(open_files[-1])
        for handle, each in zip(open_files, data.values(), strict=True):
            handle.file.forget_layouts()
            assert await content(fs, handle) == each
            await fs.release(handle)
        await found.start(3)


async def test_bytes_are_waited_for_while_all_nodes_that_have_them_are_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Near, "of", lambda *_: {})  # mounts on other machines: nothing is lent
    async with (
        nodes(tmp_path, roles=[(META,), (CHUNK,), (CHUNK,)]) as found,
        found.mount() as mount,
        found.mount(soft_s=0.5) as soft,
    ):
        fs = mount.filesystem
        handle = await make(fs, "f", b"x" * 300 * KIB)
        await fs.fsync(handle)
        reader = await find(soft.filesystem, "f")
        for number in (2, 3):
            assert await content(soft.filesystem, reader) == b"x" * 300 * KIB
            await found.stop(number)
        writer = await make(soft.filesystem, "g", b"y" * 300 * KIB)
        for work in (
            partial(content, soft.filesystem, reader),
            partial(soft.filesystem.fsync, writer),
        ):
            with pytest.raises(FsError) as caught:
                await work()
            assert caught.value.fault is Fault.TIMED_OUT
        read: list[bytes] = []

        async def read_and_write() -> None:
            late = await find(fs, "f")
            late.file.forget_layouts()
            read.append(await content(fs, late))
            await fs.release(late)
            late = await make(fs, "h", b"z" * 300 * KIB)
            await fs.fsync(late)
            await fs.release(late)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_and_write)
            await found.start(2)
            await found.start(3)
        assert read == [b"x" * 300 * KIB]
        await soft.filesystem.fsync(writer)
        for each, file in ((fs, handle), (soft.filesystem, reader), (soft.filesystem, writer)):
            await each.release(file)


async def test_slices_of_a_node_that_is_down_do_not_keep_others_from_being_reclaimed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with nodes(tmp_path, 3) as found, found.mount() as mount:
        fs = mount.filesystem
        inos = []
        for number in range(12):
            if number == 8:
                await found.stop(3)
            handle = await make(fs, f"f{number}", os.urandom(100 * KIB))
            await fs.fsync(handle)
            await fs.release(handle)
            inos.append(handle.file.ino)
        monkeypatch.setattr(deletion, "BATCH", 3)
        await fs.forget(inos)
        for number in range(12):
            await fs.unlink(ROOT, b"f%d" % number, SUPERUSER)
        await fs.reap()
        await until(lambda: 0 < len(found.garbage) <= 8)
        assert len(found.garbage) == 8, "they were written when all nodes were there"
        await found.start(3)
        await until(lambda: not found.garbage)


async def test_a_full_cluster_says_so_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RemoteChunks, "has_room", lambda *_: True)  # so it was told not long ago
    async with nodes(tmp_path) as found, found.mount() as mount:
        fs = mount.filesystem
        handle = await make(fs, "f", b"x" * 300 * KIB)
        with monkeypatch.context() as full:
            fill_all_disks(full)
            with pytest.raises(FsError) as caught:
                await fs.fsync(handle)
            assert caught.value.fault is Fault.NO_SPACE
            small = await make(fs, "small", b"y")  # this needs no volume
            await fs.fsync(small)
        await found.heard(1)
        await fs.fsync(handle)
        assert await content(fs, handle) == b"x" * 300 * KIB
        for each in (handle, small):
            await fs.release(each)


def fill_all_disks(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Any:
        raise FsError(Fault.NO_SPACE, "the disk is full")

    monkeypatch.setattr(DiskStore, "append", full)
    monkeypatch.setattr(DiskStore, "space", lambda _: (1 << 40, 0))


# -- the end of a session


async def test_a_mount_that_is_evicted_writes_on_to_volumes_of_its_new_session(
    tmp_path: Path,
) -> None:
    async with nodes(tmp_path) as found, found.mount() as mount, found.mount() as other:
        fs = mount.filesystem
        before, data = mount.meta.session, os.urandom(3 * MIB)
        kept = await make(fs, "kept", data)
        await fs.fsync(kept)
        lost = await make(fs, "lost", data)
        lock = Lock(FLOCK, fs.owner(1), 0, EOF, True, 1)
        await found.leader.service.end_session(before)
        await mount.meta.read(GetLayout(kept.file.ino, 0))  # it waits for the new one
        assert mount.meta.session != before
        assert size_of(await fs.getattr(kept.file.ino)) == len(data)

        with pytest.raises(FsError) as refused:
            await fs.fsync(lost)
        assert refused.value.fault is Fault.LOST
        assert "lost" in mount.all_troubles()
        await fs.release(lost)
        assert mount.all_troubles() == {}
        await fs.write(kept, len(data), memoryview(data))
        await fs.fsync(kept)
        again = await make(fs, "again", data)
        await fs.take_lock(again, msgspec.structs.replace(lock, owner=fs.owner(1)), wait=False)
        await fs.fsync(again)
        assert await content(fs, again) == data
        for name, expected in (("kept", data + data), ("again", data), ("lost", b"")):
            assert await content(other.filesystem, await find(other.filesystem, name)) == expected


async def test_what_is_being_written_when_a_mount_is_evicted_is_lost(tmp_path: Path) -> None:
    async with nodes(tmp_path) as found, found.mount() as mount:
        fs, told = mount.filesystem, []
        handle = await make(fs, "file", os.urandom(20 * MIB))
        reached = trio.Event()

        async def sync() -> None:
            try:
                reached.set()
                await fs.fsync(handle)
            except FsError as error:
                told.append(error.fault)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(sync)
            await reached.wait()
            # At once, and not when its leases are over, so that it is in the midst of it.
            await found.leader.service.order(EndSession(mount.meta.session))
        assert told in ([Fault.LOST], [Fault.SESSION_ENDED])
        assert size_of(await fs.getattr(handle.file.ino)) == 0
        with pytest.raises(FsError) as refused:
            await fs.read(handle, 0, 1)
        assert refused.value.fault is Fault.LOST
        assert fs.writer.dirty_bytes == 0
