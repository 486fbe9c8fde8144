"""A filesystem on fakes: metadata in a store in memory, slices in a dict that can fail."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from crc32c import crc32c

from mountfs.chunks.base import Stored
from mountfs.errors import Fault, FsError
from mountfs.kv.journal import Journal
from mountfs.kv.memory import MemoryStore
from mountfs.meta.local import LocalMeta
from mountfs.types import MIB, SliceId, VolumeId
from mountfs.vfs.filesystem import Filesystem

VOLUME = VolumeId(7)


class FakeChunks:
    """Slices in a dict."""

    def __init__(self) -> None:
        self.slices: dict[SliceId, bytes] = {}
        self.full = False
        self.slices_max = 1 << 60

    async def write(
        self,
        slice_id: SliceId,
        parts: Sequence[bytes | bytearray | memoryview],
        copies: int = 0,
    ) -> Stored:
        if self.full or len(self.slices) >= self.slices_max:
            raise FsError(Fault.NO_SPACE)
        data = self.slices[slice_id] = b"".join(bytes(part) for part in parts)
        return Stored(VOLUME, crc32c(data))

    async def read(self, volume: VolumeId, slice_id: SliceId, start: int, stop: int) -> memoryview:
        assert volume == VOLUME
        return memoryview(self.slices[slice_id])[start:stop]

    async def sync(self) -> None:
        pass

    def has_room(self, size_bytes: int) -> bool:
        return not self.full

    def space(self) -> tuple[int, int]:
        return 1 << 40, 1 << 39


@pytest.fixture
def chunks() -> FakeChunks:
    return FakeChunks()


@pytest.fixture
def meta(tmp_path: Path) -> LocalMeta:
    (tmp_path / "log").mkdir()
    log = Journal(tmp_path / "log", segment_bytes=MIB)
    local = LocalMeta(
        MemoryStore(), log, bytes_present=lambda entry: True, cut_path=tmp_path / "cut"
    )
    local.open_session()
    return local


@pytest.fixture
async def fs(meta: LocalMeta, chunks: FakeChunks) -> AsyncIterator[Filesystem]:
    async def durable() -> None:
        meta.sync_log()

    yield Filesystem(meta, chunks, durable=durable)
    meta.close()
