"""Files on a cluster: nodes and mounts in one process, over loopback, without a kernel's door."""

import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from mountfs.cli import node_homes, node_server
from mountfs.cli.node_settings import Settings
from mountfs.cli.trust import Trust
from mountfs.errors import Fault, FsError
from mountfs.meta import server as meta_server
from mountfs.meta.admin import Join
from mountfs.meta.client import Options
from mountfs.meta.ops.setattr import SetAttr
from mountfs.meta.ops.slices import Garbage
from mountfs.meta.records import ino_of, size_of
from mountfs.meta.server import MetaServer
from mountfs.types import KIB, MIB, ROOT, SUPERUSER
from mountfs.vfs import reclaimer
from mountfs.vfs.cluster import ClusterMount, cluster_mount
from mountfs.vfs.filesystem import Filesystem
from mountfs.vfs.handles import Handle

END_S = 30.0
RW = os.O_RDWR


class Nodes:
    def __init__(self, path: Path, nursery: trio.Nursery) -> None:
        self._path = path
        self._nursery = nursery
        self.settings: dict[int, Settings] = {}
        self.metas: dict[int, MetaServer] = {}
        self._scopes: dict[int, trio.CancelScope] = {}
        self._ended: dict[int, trio.Event] = {}

    async def add(self) -> int:
        number = len(self.settings) + 1
        settings = self.settings[number] = Settings(
            home=self._path / f"n{number}", host="127.0.0.1", port=two_ports(), name=f"n{number}"
        )
        if number == 1:
            await node_homes.found(settings.home)
        else:
            asked = Join(settings.name, settings.rpc, settings.door, "", settings.roles)
            places = [self.settings[1].rpc]
            await node_homes.join(settings.home, asked, places, Trust(None, None))
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
                    assert node.meta is not None
                    meta = self.metas[number] = node.meta
                    await until(lambda: meta.group.leader)
                    task_status.started()
                    await trio.sleep_forever()
        finally:
            self._ended[number].set()

    @property
    def garbage(self) -> set[int]:
        """Slices that wait for their deletion, as the first node knows."""
        tree = self.metas[1].machine.replica.machine.tree
        return {row[0] for row in Garbage(1_000_000).read(tree)}

    @contextlib.asynccontextmanager
    async def mount(self, soft_s: float | None = None) -> AsyncIterator[ClusterMount]:
        seeds = [("127.0.0.1", one.port + 1) for one in self.settings.values()]
        async with cluster_mount("test:", seeds, Options(about="a test", soft_s=soft_s)) as mount:
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
async def nodes(path: Path, count: int = 1) -> AsyncIterator[Nodes]:
    with trio.fail_after(4 * END_S):
        async with trio.open_nursery() as nursery:
            found = Nodes(path, nursery)
            for _ in range(count):
                await found.add()
            yield found
            for number in reversed(found.metas):
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


async def test_a_chunk_node_that_is_down_is_waited_for(tmp_path: Path) -> None:
    async with (
        nodes(tmp_path, 2) as found,
        found.mount() as mount,
        found.mount(soft_s=0.5) as soft,
    ):
        fs = mount.filesystem
        mount.chunks._preferred = 2
        handle = await make(fs, "f", b"x" * 300 * KIB)
        await fs.fsync(handle)
        reader = await find(soft.filesystem, "f")
        await found.stop(2)
        with pytest.raises(FsError) as caught:
            await content(soft.filesystem, reader)
        assert caught.value.fault is Fault.TIMED_OUT
        other = await make(fs, "g", b"y" * 300 * KIB)
        await fs.fsync(other)  # somebody else takes it
        assert await content(fs, other) == b"y" * 300 * KIB
        read: list[bytes] = []

        async def work() -> None:
            late = await find(fs, "f")
            late.file.forget_layouts()
            read.append(await content(fs, late))
            await fs.release(late)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(work)
            await found.start(2)
        assert read == [b"x" * 300 * KIB]
        for each, file in ((fs, handle), (fs, other), (soft.filesystem, reader)):
            await each.release(file)


async def test_slices_of_a_node_that_is_down_do_not_keep_others_from_being_reclaimed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with nodes(tmp_path, 2) as found, found.mount() as mount:
        fs = mount.filesystem
        inos = []
        for number in range(12):
            mount.chunks._preferred = 2 if number < 8 else 1
            handle = await make(fs, f"f{number}", os.urandom(100 * KIB))
            await fs.fsync(handle)
            await fs.release(handle)
            inos.append(handle.file.ino)
        await found.stop(2)
        monkeypatch.setattr(reclaimer, "BATCH", 3)
        await fs.forget(inos)
        for number in range(12):
            await fs.unlink(ROOT, b"f%d" % number, SUPERUSER)
        await fs.reap()
        await until(lambda: 0 < len(found.garbage) <= 8)
        await found.start(2)
        await until(lambda: not found.garbage)


async def test_a_full_cluster_says_so_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mountfs.chunks.disk import DiskStore

    async with nodes(tmp_path) as found, found.mount() as mount:
        fs = mount.filesystem
        handle = await make(fs, "f", b"x" * 300 * KIB)
        append = DiskStore.append

        def full(*_: Any) -> Any:
            raise FsError(Fault.NO_SPACE, "the disk is full")

        monkeypatch.setattr(DiskStore, "append", full)
        with pytest.raises(FsError) as caught:
            await fs.fsync(handle)
        assert caught.value.fault is Fault.NO_SPACE
        small = await make(fs, "small", b"y")  # this needs no volume
        await fs.fsync(small)
        monkeypatch.setattr(DiskStore, "append", append)
        await fs.fsync(handle)
        assert await content(fs, handle) == b"x" * 300 * KIB
        for each in (handle, small):
            await fs.release(each)
