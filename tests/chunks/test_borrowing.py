"""Reading a chunkserver's files without it: only what is right, and only as long as it is."""

import random
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from mountfs.buffers import Buffers
from mountfs.chunks import borrowing
from mountfs.chunks.borrowing import Borrowing
from mountfs.chunks.config import ChunkConfig
from mountfs.chunks.disk_identity import Owner
from mountfs.chunks.disks import Disks
from mountfs.chunks.lending import ASKED, TOKEN_BYTES, Lender
from mountfs.chunks.protocol import Method
from mountfs.chunks.service import ChunkService
from mountfs.errors import Fault, FsError
from mountfs.types import KIB, MIB, SliceId, VolumeId

VOLUME = VolumeId(1 << 31)
NODE = 4
END_S = 20.0


class Server:
    """A chunkserver with a volume of eight slices, that lends its files."""

    def __init__(self, path: Path) -> None:
        config = ChunkConfig(
            volume_bytes=8 * MIB, preallocate_bytes=256 * KIB, reserve_bytes=0, garbage_ratio=0.1
        )
        self.disks = Disks([path], Owner(b"home" * 4, NODE, b"name" * 4), config=config)
        self.service = ChunkService(self.disks, lambda peer: None, self._nobody)
        self.lender = self.service.lender = Lender(self.file_of)
        self.calls: list[int] = []
        self.disks.open_volume(VOLUME, 1)
        self.slices = {
            SliceId(name): random.Random(name).randbytes(100 * KIB) for name in range(1, 9)
        }
        store = self.store
        for name, data in self.slices.items():
            store.append(name, [data], volume_id=VOLUME, epoch=1)
        store.sync()

    @property
    def store(self) -> Any:
        disk = self.disks.disk_of(VOLUME)
        assert disk is not None
        return disk.store

    def file_of(self, volume: VolumeId) -> tuple[Path, int] | None:
        disk = self.disks.disk_of(volume)
        return None if disk is None else disk.store.file_of(volume)

    async def _nobody(self, node: int) -> Any:
        raise FsError(Fault.UNAVAILABLE, "there is nobody else")

    async def call(self, node: int, method: int, body: bytes) -> Any:
        assert node == NODE
        self.calls.append(method)
        return await self.service.handle(None, method, body)


@asynccontextmanager
async def lending_server(path: Path) -> AsyncIterator[tuple[Server, Borrowing]]:
    server = Server(path)
    mine = Borrowing(server.call, Buffers())
    try:
        with trio.fail_after(END_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(server.lender.run)
                try:
                    yield server, mine
                finally:
                    mine.close()
                nursery.cancel_scope.cancel()
    finally:
        server.lender.close()
        server.disks.close()


async def test_a_slice_is_read_from_the_file_and_the_server_is_asked_once(tmp_path: Path) -> None:
    async with lending_server(tmp_path) as (server, mine):
        for name, data in server.slices.items():
            for start, stop in ((0, 100 * KIB), (5, 6), (40 * KIB, 90 * KIB)):
                found = await mine.read(NODE, VOLUME, name, start, stop)
                assert found == data[start:stop]
                assert await mine.read_soon(VOLUME, name, start, stop) == data[start:stop]
        assert server.calls == [Method.LEND, *[Method.PLACE] * len(server.slices)]
        assert server.lender.lent == 1
        assert mine.reads == 6 * len(server.slices)


async def test_nothing_is_known_before_it_was_asked_for(tmp_path: Path) -> None:
    async with lending_server(tmp_path) as (_, mine):
        assert await mine.read_soon(VOLUME, SliceId(1), 0, 5) is None


async def test_of_several_nodes_here_one_lends(tmp_path: Path) -> None:
    async with lending_server(tmp_path) as (server, mine):
        assert await mine.read(NODE, VOLUME, SliceId(1), 0, 5) is not None
        # That the second node has it, too, says nobody: what is lent already is read.
        assert await mine.read(NODE + 1, VOLUME, SliceId(1), 5, 9) == server.slices[SliceId(1)][5:9]
        assert await mine.read(NODE, VOLUME, SliceId(1), 0, 5) is not None
        assert server.lender.lent == 1
        assert server.calls == [Method.LEND, Method.PLACE]


async def test_what_is_not_there_is_left_to_the_server(tmp_path: Path) -> None:
    async with lending_server(tmp_path) as (_, mine):
        assert await mine.read(NODE, VOLUME, SliceId(99), 0, 5) is None
        assert await mine.read(NODE, VolumeId(VOLUME + 1), SliceId(1), 0, 5) is None
        assert await mine.read(NODE, VOLUME, SliceId(1), 0, 200 * KIB) is None
        assert await mine.read(NODE, VOLUME, SliceId(1), 0, 5) is not None


async def test_a_damaged_slice_is_left_to_the_server_and_the_others_are_not(
    tmp_path: Path,
) -> None:
    async with lending_server(tmp_path) as (server, mine):
        path, place = server.store.place(VOLUME, SliceId(3))
        with path.open("r+b") as file:
            file.seek(place.offset + 50 * KIB)
            file.write(b"rot")
        assert await mine.read(NODE, VOLUME, SliceId(3), 0, 100 * KIB) is None
        assert await mine.read(NODE, VOLUME, SliceId(4), 0, 9) == server.slices[SliceId(4)][:9]


async def test_a_deleted_slice_is_not_read_as_zeros(tmp_path: Path) -> None:
    async with lending_server(tmp_path) as (server, mine):
        assert await mine.read(NODE, VOLUME, SliceId(3), 0, 100 * KIB) is not None
        server.store.delete({VOLUME: [SliceId(3)]})
        server.store.give_back()
        found = await mine.read(NODE, VOLUME, SliceId(3), 0, 100 * KIB)
        assert found in (None, server.slices[SliceId(3)])  # where holes cannot be punched
        assert await mine.read(NODE, VOLUME, SliceId(4), 0, 9) == server.slices[SliceId(4)][:9]


async def test_after_compaction_the_new_file_is_borrowed(tmp_path: Path) -> None:
    async with lending_server(tmp_path) as (server, mine):
        assert await mine.read(NODE, VOLUME, SliceId(8), 0, 9) is not None
        server.disks.seal(VOLUME)
        server.store.delete({VOLUME: [SliceId(1), SliceId(2)]})
        await trio.to_thread.run_sync(server.store.compact, VOLUME)
        # The old file is still open here, and says the same.
        assert await mine.read(NODE, VOLUME, SliceId(8), 0, 9) == server.slices[SliceId(8)][:9]
        assert await mine.read(NODE, VOLUME, SliceId(7), 0, 9) is None, "it lies elsewhere now"
        assert await mine.read(NODE, VOLUME, SliceId(7), 0, 9) == server.slices[SliceId(7)][:9]
        assert server.lender.lent == 2


async def test_a_file_is_borrowed_anew_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with lending_server(tmp_path) as (server, mine):
        assert await mine.read(NODE, VOLUME, SliceId(8), 0, 9) is not None
        monkeypatch.setattr(borrowing, "AGE_S", -1.0)
        assert await mine.read_soon(VOLUME, SliceId(8), 0, 9) is None
        assert await mine.read(NODE, VOLUME, SliceId(8), 0, 9) is not None
        assert server.lender.lent == 2
        assert server.calls.count(Method.PLACE) == 1, "it lies where it was"


async def test_few_files_are_open_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(borrowing, "PLACES_MAX", 3)
    async with lending_server(tmp_path) as (server, mine):
        for name, data in server.slices.items():
            for _ in range(2):
                found = await mine.read(NODE, VOLUME, name, 0, 9)
                assert found in (None, data[:9])


async def test_a_server_that_lends_nothing_is_left_alone_for_a_while(tmp_path: Path) -> None:
    async with lending_server(tmp_path) as (server, mine):
        server.service.lender = None
        for _ in range(3):
            assert await mine.read(NODE, VOLUME, SliceId(1), 0, 5) is None
        assert server.calls == [Method.LEND]


@pytest.mark.parametrize("told", ["another token", "another place", "nothing"])
async def test_a_server_that_tells_rubbish(tmp_path: Path, told: str) -> None:
    async with lending_server(tmp_path) as (server, mine):
        lender = server.lender
        rubbish = {
            "another token": secrets.token_bytes(TOKEN_BYTES) + lender.name.encode(),
            "another place": lender.token + b"mountfs-nobody-is-there",
            "nothing": b"",
        }

        async def call(node: int, method: int, body: bytes) -> Any:
            return rubbish[told] if method == Method.LEND else await server.call(node, method, body)

        misled = Borrowing(call, Buffers())
        assert await misled.read(NODE, VOLUME, SliceId(1), 0, 5) is None
        misled.close()
        assert await mine.read(NODE, VOLUME, SliceId(1), 0, 5) is not None


async def test_without_the_token_nothing_is_lent(tmp_path: Path) -> None:
    async with lending_server(tmp_path) as (server, _):
        stranger = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with stranger:
            await stranger.connect("\0" + server.lender.name)
            await stranger.send(ASKED.pack(bytes(16), VOLUME))
            assert await stranger.recv(9) == b""
        assert server.lender.lent == 0
