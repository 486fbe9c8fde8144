"""A home with a few files, made once without a mount and copied for each test that breaks it."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from mountfs.cli.main import main
from mountfs.meta.records import ino_of
from mountfs.types import KIB, MIB, ROOT, SUPERUSER, Ino
from mountfs.vfs.embedded import embedded_node
from mountfs.vfs.filesystem import Filesystem

FILES = {
    b"dir/large": os.urandom(5 * MIB),  # two slices
    b"dir/middle": os.urandom(200 * KIB),
    b"small": b"kept with its inode",
}


async def put(filesystem: Filesystem, path: bytes, data: bytes) -> Ino:
    """Write a file, and the directory above it if it is not there."""
    parent = ROOT
    directory, _, name = path.rpartition(b"/")
    if directory:
        listing = await filesystem.readdir(ROOT, 0, 100, with_attributes=False)
        found = [ino for _, ino, _, one, _ in listing if one == directory]
        parent = (
            found[0]
            if found
            else ino_of(await filesystem.mkdir(ROOT, directory, 0o755, 0, SUPERUSER))
        )
    attributes, handle = await filesystem.create(parent, name, os.O_RDWR, 0o644, 0, SUPERUSER)
    await filesystem.write(handle, 0, memoryview(data))
    await filesystem.release(handle)
    return ino_of(attributes)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("cli") / "home"

    async def fill() -> None:
        async with embedded_node(home) as node:
            for path, data in FILES.items():
                await put(node.filesystem, path, data)
            await node.filesystem.flush_all()

    trio.run(fill)
    return home


@pytest.fixture
def home(made: Path, tmp_path: Path) -> Path:
    """A home that nobody has open, to be damaged."""
    copy = tmp_path / "home"
    subprocess.run(["cp", "-a", "--sparse=always", made, copy], check=True)
    return copy


@pytest.fixture
def volume(home: Path) -> Path:
    (only,) = (home / "chunks" / "volumes").glob("*.vol")
    return only


def flip(path: Path, offset: int, count: int = 2) -> None:
    """Change bytes of a file."""
    with open(path, "r+b") as file:
        file.seek(offset)
        data = file.read(count)
        assert len(data) == count, (path, offset)
        file.seek(offset)
        file.write(bytes(byte ^ 0xFF for byte in data))


@pytest.fixture
def damage() -> Callable[..., None]:
    return flip


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """The command with these arguments: (exit status, stdout, stderr)."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as left:
            status = int(left.code or 0)
        said = capsys.readouterr()
        return status, said.out, said.err

    return call
