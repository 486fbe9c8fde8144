"""What is replayed after a crash when the store is damaged as well."""

import os
import shutil
from pathlib import Path

import pytest
import trio

from mountfs.errors import Fault, FsError
from mountfs.meta.records import ino_of
from mountfs.types import KIB, ROOT, SUPERUSER
from mountfs.vfs.embedded import EmbeddedNode, embedded_node


async def put(node: EmbeddedNode, name: bytes, data: bytes, *, synced: bool = True) -> None:
    fs = node.filesystem
    _, handle = await fs.create(ROOT, name, os.O_RDWR, 0o644, 0, SUPERUSER)
    await fs.write(handle, 0, memoryview(data))
    if synced:
        await fs.fsync(handle)
    else:
        await fs.flush_all()
    await fs.release(handle)


async def get(node: EmbeddedNode, name: bytes, size: int) -> bytes:
    fs = node.filesystem
    handle = await fs.open(ino_of(await fs.lookup(ROOT, name, SUPERUSER)), os.O_RDONLY)
    try:
        return bytes(await fs.read(handle, 0, size))
    finally:
        await fs.release(handle)


@pytest.mark.parametrize("synced", [True, False])
@pytest.mark.parametrize("how", ["missing", "noise"])
async def test_a_damaged_volume_does_not_take_what_was_done_after_it(
    tmp_path: Path, how: str, synced: bool
) -> None:
    home, crashed = tmp_path / "home", tmp_path / "crashed"
    large, small = os.urandom(300 * KIB), b"kept with its inode"
    async with embedded_node(home) as node:
        await put(node, b"large", large, synced=synced)
        await put(node, b"small", small, synced=synced)
        # Nothing may be made in the directory while it is copied.
        await trio.to_thread.run_sync(node._journal.prepare)
        shutil.copytree(home, crashed, ignore=shutil.ignore_patterns("control"))
    volume = crashed / "chunks" / "volumes" / "00000001.vol"
    if how == "missing":
        volume.unlink()
    else:
        volume.write_bytes(b"noise" * 2000)
    async with embedded_node(crashed) as node:
        assert node.meta.cut == 0
        assert await get(node, b"small", len(small)) == small
        with pytest.raises(FsError) as caught:
            await get(node, b"large", len(large))
        assert caught.value.fault is Fault.CORRUPT
        assert str(volume) in (await node.status())["troubles"]
        await put(node, b"new", large)
        assert await get(node, b"new", len(large)) == large
