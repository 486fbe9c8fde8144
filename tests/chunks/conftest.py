"""A small store in a temporary directory, and ways to hurt it."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mountfs.chunks.config import ChunkConfig
from mountfs.chunks.disk import DiskStore
from mountfs.kv.memory import MemoryStore
from mountfs.types import KIB, MIB

SMALL = ChunkConfig(
    volume_bytes=MIB,
    preallocate_bytes=256 * KIB,
    reserve_bytes=0,
    pending_needles_min=4,
    pending_needles_max=16,
    heads_max=8,
    open_files_max=3,
)
HOME = b"home" * 4

Open = Callable[..., DiskStore]


@pytest.fixture
def index() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def reopen(tmp_path: Path, index: MemoryStore) -> Open:
    """Open the volumes of this test, as after a crash unless the last store was closed."""

    def open_store(**how: object) -> DiskStore:
        return DiskStore(
            tmp_path,
            how.get("index", index),  # type: ignore[arg-type]
            home=how.get("home", HOME),  # type: ignore[arg-type]
            config=how.get("config", SMALL),  # type: ignore[arg-type]
        )

    return open_store


@pytest.fixture
def store(reopen: Open) -> DiskStore:
    return reopen()


class FailingWrites:
    """`os.pwritev` that fails for some offsets, perhaps after a part of the bytes."""

    def __init__(self) -> None:
        self.error: int | None = None
        self.after = 0
        self.when: Callable[[int], bool] = lambda offset: True
        self._real = os.pwritev

    def __call__(self, fd: int, buffers: list, offset: int) -> int:  # type: ignore[type-arg]
        if self.error is None or not self.when(offset):
            return self._real(fd, buffers, offset)
        if not self.after:
            raise OSError(self.error, os.strerror(self.error))
        data = b"".join(buffers)[: self.after]
        self.after = 0
        return self._real(fd, [data], offset)


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> FailingWrites:
    failing = FailingWrites()
    monkeypatch.setattr(os, "pwritev", failing)
    return failing
