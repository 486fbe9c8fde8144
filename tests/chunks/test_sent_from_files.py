"""What is in memory is sent from the file of its volume: never verified there, and never wrong."""

import errno
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from crc32c import crc32c

from mountfs.chunks import needle, reader
from mountfs.chunks.config import ChunkConfig
from mountfs.chunks.disk_identity import Owner
from mountfs.chunks.disks import Disks
from mountfs.chunks.protocol import READ, READ_HEAD, Method
from mountfs.chunks.service import STRETCH_BYTES, ChunkService
from mountfs.errors import Fault, FsError
from mountfs.kv.memory import MemoryStore
from mountfs.types import CHECKSUM_BYTES, FIRST_REPLICATED, KIB, MIB, SliceId, VolumeId
from mountfs.wire.frames import Hello, Stretch
from mountfs.wire.service import Service
from mountfs.wire.stream import Client, connect

V, ONE = VolumeId(FIRST_REPLICATED), SliceId(1)
DATA = os.urandom(MIB + 5_000)
HELLO = Hello(cluster=bytes(range(16)), role="meta", name="node 1")
END_S = 20.0


class Served:
    def __init__(self, disks: Disks, client: Client, stretches: list[Stretch]) -> None:
        self.disks = disks
        self.store = disks.disks[0].store
        self.client = client
        self.stretches = stretches
        """Those that were sent."""

    async def ask(self, start: int, stop: int, slice_id: int = ONE) -> tuple[int, bytes]:
        """(checksum, bytes)"""
        with trio.fail_after(END_S):
            wanted = READ.pack(V, slice_id, start, stop)
            answer = bytes(await self.client.call(Method.READ, wanted))
        return READ_HEAD.unpack_from(answer)[0], answer[READ_HEAD.size :]

    async def verify(self, start: int, stop: int) -> bytes:
        with trio.fail_after(END_S):
            return bytes(await self.client.call(Method.VERIFY, READ.pack(V, ONE, start, stop)))

    async def is_right(self, start: int, stop: int, data: bytes = DATA) -> None:
        assert await self.ask(start, stop) == (crc32c(data[start:stop]), data[start:stop])

    @property
    def place(self) -> tuple[Path, int]:
        """File, and offset of the payload."""
        found = self.store.place(V, ONE)
        assert found is not None
        path, place = found
        return path, place.offset + needle.HEADER_BYTES + needle.table_bytes(place.length)

    def flip(self, at: int) -> None:
        path, payload = self.place
        with open(path, "r+b") as file:
            file.seek(payload + at)
            byte = file.read(1)[0]
            file.seek(payload + at)
            file.write(bytes([byte ^ 4]))


@asynccontextmanager
async def served(path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Served]:
    config = ChunkConfig(volume_bytes=64 * MIB, preallocate_bytes=0, reserve_bytes=0)
    owner = Owner(b"home" * 4, 1, HELLO.cluster)
    disks = Disks([path], owner, config=config, open_index=lambda _: (MemoryStore(), ""))
    disks.open_volume(V, 1)
    disks.disks[0].store.append(ONE, [DATA], None, V, 1)
    disks.disks[0].store.sync()
    stretches: list[Stretch] = []

    def made(*args: Any) -> Stretch:
        stretches.append(Stretch(*args))
        return stretches[-1]

    monkeypatch.setattr(reader, "Stretch", made)
    chunks = ChunkService(disks, lambda peer: None, _no_links)
    service = Service(chunks.handle, HELLO)
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(service.serve, [listener])
        port = listener.socket.getsockname()[1]
        client = await connect(nursery, ("127.0.0.1", port), HELLO)
        yield Served(disks, client, stretches)
        nursery.cancel_scope.cancel()
    disks.close()


async def _no_links(number: int) -> Any:
    raise AssertionError(number)


async def test_whole_pieces_are_sent_from_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(tmp_path, monkeypatch) as found:
        ranges = [(0, len(DATA)), (0, MIB), (3 * CHECKSUM_BYTES, 9 * CHECKSUM_BYTES)]
        ranges += [(5 * CHECKSUM_BYTES, len(DATA))]
        for start, stop in ranges:
            await found.is_right(start, stop)
        assert [one.size for one in found.stretches] == [stop - start for start, stop in ranges]


@pytest.mark.parametrize(
    ("start", "stop"),
    [(1, MIB), (0, MIB - 1), (100, 300_000), (0, CHECKSUM_BYTES), (7, 8), (MIB, len(DATA))],
)
async def test_parts_of_pieces_and_small_reads_are_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: int, stop: int
) -> None:
    async with served(tmp_path, monkeypatch) as found:
        await found.is_right(start, stop)
        assert not found.stretches


async def test_what_is_not_in_memory_is_read_by_a_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(tmp_path, monkeypatch) as found:
        fill = reader.VolumeFile.fill

        def cold(file: Any, buffer: Any, offset: int, flags: int) -> bool | None:
            return None if flags else fill(file, buffer, offset, flags)

        monkeypatch.setattr(reader.VolumeFile, "fill", cold)
        await found.is_right(0, MIB)
        assert not found.stretches


async def test_who_gets_damaged_bytes_can_tell_and_has_the_node_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(tmp_path, monkeypatch) as found:
        await found.is_right(0, MIB)
        found.flip(70_000)
        crc, data = await found.ask(0, MIB)
        assert crc == crc32c(DATA[:MIB]) != crc32c(data)
        assert not found.disks.report(whole=True).volumes[0].trouble, "nobody has looked"
        assert await found.verify(0, 64 * KIB) == b""
        with pytest.raises(FsError, match="checksum does not match") as caught:
            await found.verify(0, MIB)
        assert caught.value.fault is Fault.CORRUPT
        assert "does not match" in found.disks.report(whole=True).volumes[0].trouble
        await found.is_right(3 * CHECKSUM_BYTES, MIB)


async def test_a_volume_that_is_cut_off_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(tmp_path, monkeypatch) as found:
        await found.is_right(0, MIB)
        path, payload = found.place
        os.truncate(path, payload + 600_000)
        found.stretches.clear()
        with pytest.raises(FsError, match="the file is cut off") as caught:
            await found.ask(0, MIB)
        assert caught.value.fault is Fault.CORRUPT
        assert not found.stretches
        await found.is_right(0, 9 * 2 * CHECKSUM_BYTES)


@pytest.mark.parametrize("how", ["sendfile fails", "cut off", "nothing can be read"])
async def test_a_file_that_fails_while_it_is_sent_costs_the_answer_and_not_the_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    async with served(tmp_path, monkeypatch) as found:
        real, sent = os.sendfile, 0

        def sendfile(sock: int, fd: int, at: int, size: int) -> int:
            nonlocal sent
            if sent < 100_000:
                sent += real(sock, fd, at, 50_000)
                return 50_000
            if how == "cut off":
                return 0
            raise OSError(errno.EIO, "a bad block")

        monkeypatch.setattr(os, "sendfile", sendfile)
        if how != "sendfile fails":
            monkeypatch.setattr(os, "pread", lambda fd, size, at: b"")
        crc, data = await found.ask(0, MIB)
        assert len(data) == MIB and len(found.stretches) == 1
        assert crc == crc32c(DATA[:MIB])
        if how == "sendfile fails":  # not all file systems can do it
            assert data == DATA[:MIB]
        else:
            assert data == DATA[:100_000] + bytes(MIB - 100_000)
        monkeypatch.undo()
        await found.is_right(0, MIB)


async def test_nothing_waits_for_more_to_be_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(tmp_path, monkeypatch) as found:
        begun = trio.current_time()
        for _ in range(20):
            await found.is_right(0, MIB)
        assert trio.current_time() - begun < 20 * 0.15, "the kernel holds the end back for 0.2 s"


async def test_many_answers_to_one_who_reads_slowly_are_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(tmp_path, monkeypatch) as found:
        real, turns = os.sendfile, 0

        def in_small_parts(sock: int, fd: int, at: int, size: int) -> int:
            nonlocal turns
            turns += 1
            if turns % 3 == 0:
                raise BlockingIOError
            return real(sock, fd, at, min(size, 90_001))

        monkeypatch.setattr(os, "sendfile", in_small_parts)

        async def ask(number: int) -> None:
            start = number % 7 * CHECKSUM_BYTES
            await found.is_right(start, MIB)
            await found.is_right(number, number + 10)

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(ask, number)
        assert len(found.stretches) == 20


async def test_a_volume_that_is_compacted_while_it_is_sent_is_sent_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(tmp_path, monkeypatch) as found:
        crc, stretch = found.store.stretch(V, ONE, 0, MIB) or (0, None)
        found.disks.seal(V)
        found.store.delete({V: [ONE]})
        found.store.compact(V)
        assert isinstance(stretch, Stretch)
        assert crc32c(os.pread(stretch.fd, stretch.size, stretch.at)) == crc
        with pytest.raises(FsError, match="is not in the volume"):
            await found.ask(0, MIB)


async def test_over_tls_bytes_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with served(tmp_path, monkeypatch) as found:
        service = ChunkService(found.disks, lambda peer: None, _no_links)
        body = READ.pack(V, ONE, 0, MIB)
        for sends_files, count in ((False, 0), (True, 1)):
            peer = SimpleNamespace(sends_files=sends_files)
            head, data = await service.handle(peer, Method.READ, body)
            assert READ_HEAD.unpack(head)[0] == crc32c(DATA[:MIB])
            assert len(data) == MIB >= STRETCH_BYTES
            assert len(found.stretches) == count
