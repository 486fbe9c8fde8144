"""Bits that flip in a home are found and named by file, and what they were is never served."""

import errno
import os
import random
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from unittest import mock

import pytest
import trio
from mounted import Node

from mountfs.errors import Fault, FsError
from mountfs.meta.records import ino_of, mode_of
from mountfs.types import KIB, MIB, ROOT, Cred
from mountfs.vfs.embedded import embedded_node
from mountfs.vfs.filesystem import Filesystem

FLIPS: Final = int(os.environ.get("MOUNTFS_FLIPS", "60"))
CRED = Cred(0, 0, (), True)
FILES = {
    **{f"small-{number}": 50 + 40 * number for number in range(60)},
    **{f"medium-{number}": 5_000 + 1_111 * number for number in range(30)},
    "large": 5 * MIB,
}


def content(name: str) -> bytes:
    return random.Random(name).randbytes(FILES[name])


async def fill(fs: Filesystem, names: list[str]) -> None:
    for name in names:
        _, handle = await fs.create(ROOT, name.encode(), os.O_RDWR, 0o644, 0, CRED)
        await fs.write(handle, 0, memoryview(content(name)))
        await fs.fsync(handle)
        await fs.release(handle)


async def read_all(fs: Filesystem) -> dict[str, bytes | FsError]:
    """What each file has, or why it cannot be read."""
    result: dict[str, bytes | FsError] = {}
    for _, _, _, raw, _ in await fs.readdir(ROOT, 0, 10_000, with_attributes=True):
        if raw in (b".", b".."):
            continue
        try:
            attributes = await fs.lookup(ROOT, raw, CRED)
            assert stat.S_ISREG(mode_of(attributes))
            handle = await fs.open(ino_of(attributes), os.O_RDONLY)
            result[raw.decode()] = bytes(await fs.read(handle, 0, 8 * MIB))
            await fs.release(handle)
        except FsError as error:
            result[raw.decode()] = error
    return result


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """One home that was closed well, and one as a kill leaves it."""
    top = tmp_path_factory.mktemp("homes")
    clean, killed = top / "clean", top / "killed"

    async def make() -> None:
        names = list(FILES)
        async with embedded_node(clean) as node:
            await fill(node.filesystem, names[::2])
        async with embedded_node(clean) as node:  # LevelDB writes its log to a table
            await fill(node.filesystem, names[1::2])
        async with embedded_node(clean) as node:
            pass
        shutil.copytree(clean, top / "live")
        async with embedded_node(top / "live") as node:
            fs = node.filesystem
            for name in names[:20]:
                await fs.rename(ROOT, name.encode(), ROOT, b"moved-" + name.encode(), 0, CRED)
                await fs.durable()
            shutil.copytree(top / "live", killed, ignore=shutil.ignore_patterns("lock"))

    with mock.patch("mountfs.vfs.embedded.LOG_SEGMENT_BYTES", 256 * KIB):
        trio.run(make)
        yield {"clean": clean, "killed": killed}


KINDS = {
    "volume": "chunks/volumes/*.vol",
    "store": "meta/store/*.ldb",
    "store-log": "meta/store/*.log",
    "manifest": "meta/store/MANIFEST-*",
    "index": "chunks/index/*.ldb",
    "log": "meta/log/*.seg",
}


def flip(path: Path, chance: random.Random) -> int:
    """Change one bit of what is not zero (most of a log segment is).  Returns where."""
    data = bytearray(path.read_bytes())
    used = [number for number, byte in enumerate(data) if byte] if len(data) < MIB else None
    at = chance.choice(used) if used else chance.randrange(len(data))
    data[at] ^= 1 << chance.randrange(8)
    path.write_bytes(data)
    return at


def damaged_copy(homes: dict[str, Path], state: str, kind: str, seed: int, to: Path) -> Path | None:
    shutil.copytree(homes[state], to)
    chance = random.Random(f"{state} {kind} {seed}")
    paths = [path for path in sorted(to.glob(KINDS[kind])) if path.stat().st_size]
    if not paths:
        return None
    path = chance.choice(paths)
    print(f"{path.name}: a bit at {flip(path, chance)}")
    return path


@pytest.mark.parametrize("state", ["clean", "killed"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_is_never_served(
    homes: dict[str, Path], tmp_path: Path, kind: str, state: str
) -> None:
    found = 0
    for seed in range(FLIPS // 6):
        home = tmp_path / f"home-{seed}"
        path = damaged_copy(homes, state, kind, seed, home)
        if path is None:
            pytest.skip(f"a {state} home has no {KINDS[kind]}")
        found += trio.run(_is_found, home, path, kind, state)
        shutil.rmtree(home)
    print(f"{found} of {FLIPS // 6} found")


async def _is_found(home: Path, path: Path, kind: str, state: str) -> bool:
    """Whether opening or reading says what is wrong.  Fails if anything wrong is served."""
    try:
        async with embedded_node(home) as node:
            try:
                result = await read_all(node.filesystem)
            except FsError as error:
                _names(error, path, kind)
                return True
            cut = node.meta.cut
    except FsError as error:
        _names(error, path, kind)
        return True
    except BaseExceptionGroup as group:
        expected, rest = group.split(FsError)
        assert rest is None, rest
        assert expected is not None
        return True
    broken = False
    names = {name.removeprefix("moved-"): data for name, data in result.items()}
    # The end of a log that was not closed may be cut off: only renames are in it.
    assert names.keys() == FILES.keys(), names.keys() ^ FILES.keys()
    if state == "killed" and kind != "log" and not cut:
        assert sum(name.startswith("moved-") for name in result) == 20
    for name, data in names.items():
        if isinstance(data, FsError):
            _names(data, path, kind)
            broken = True
        else:
            assert data == content(name), f"{name} is served with wrong bytes"
    return broken


def _names(error: FsError, path: Path, kind: str) -> None:
    assert error.fault in (Fault.CORRUPT, Fault.BAD_HOME), (error.fault, str(error))
    if kind != "index":  # which can be made anew from the volumes
        assert str(path.parent) in str(error), error
        assert path.name in str(error), error


def test_a_damaged_needle_is_an_error_of_read_and_named_in_the_log(node: Node) -> None:
    node.mount()
    data = os.urandom(300_000)
    (node.point / "file").write_bytes(data)
    (node.point / "other").write_bytes(data[::-1])
    node.unmount()
    (volume,) = (node.home / "chunks" / "volumes").glob("*.vol")
    raw = bytearray(volume.read_bytes())
    at = raw.index(data[100_000:100_100])
    raw[at] ^= 1
    volume.write_bytes(raw)
    node.mount()
    assert (node.point / "other").read_bytes() == data[::-1]
    fd = os.open(node.point / "file", os.O_RDONLY)
    try:
        assert os.pread(fd, 4096, 290_000) == data[290_000:294_096]
        with pytest.raises(OSError) as caught:
            os.pread(fd, 4096, 100_000)
    finally:
        os.close(fd)
    assert caught.value.errno == errno.EIO
    assert str(volume) in node.said()
    assert "checksum does not match" in node.said()
    (node.point / "file").unlink()


@pytest.mark.parametrize("kind", ["store", "log"])
def test_a_home_whose_metadata_is_damaged_is_not_mounted(
    homes: dict[str, Path], node: Node, kind: str
) -> None:
    shutil.copytree(homes["clean" if kind == "store" else "killed"], node.home)
    paths = sorted(node.home.glob(KINDS[kind]))
    for path in paths:
        raw = bytearray(path.read_bytes())
        for at in range(64, min(len(raw), 200_000), 512):
            raw[at] ^= 0x55
        path.write_bytes(raw)
    done = node.try_mount()
    if done.returncode == 0:  # what is damaged may be read later only
        with pytest.raises(OSError, match="Input/output error"):
            for name in os.listdir(node.point):
                (node.point / name).read_bytes()
        said = node.said()
    else:
        said = done.stderr
        assert said.count("\n") == 1, said
    assert any(str(path) in said for path in paths), said
