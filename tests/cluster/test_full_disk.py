"""A home on a disk that is full: writers are told, everybody else goes on, nothing is lost."""

import errno
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mounted import MOUNT_DFS, Node, fresh_node
from offline import troubles

MIB = 1 << 20
DISK_BYTES = 240 * MIB
SPACE_S_MAX = 15
"""How soon the space of removed files can be used again, on a full disk."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """All on ext4, which has less room than it says; one on tmpfs as well."""
    if "small" in metafunc.fixturenames:
        few = metafunc.function.__name__ != "test_a_full_disk_can_be_mounted_again_after_a_kill"
        metafunc.parametrize("small", ["ext4"] if few else ["ext4", "tmpfs"], indirect=True)


@pytest.fixture
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A directory with a disk of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    if request.param == "tmpfs":
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", place]
    else:
        image = tmp_path / "image"
        with open(image, "wb") as file:
            file.truncate(DISK_BYTES)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], check=True)
        mount = ["mount", "-o", "loop", image, place]  # umount lets the loop device go
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no small disk to be had: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


@pytest.fixture
def full(small: Path) -> Iterator[Node]:
    with fresh_node(home=small / "home") as node:
        node.mount()
        yield node


def content(name: str, size: int) -> bytes:
    return (name.encode() * (size // len(name) + 1))[:size]


def fill(node: Node, size: int, prefix: str = "fill", count: int = 100_000) -> dict[str, int]:
    """Write files of `size` bytes until the disk is full.  Returns those that were acknowledged:
    their close(2) returned without an error.
    """
    written = {}
    for number in range(count):
        name = f"{prefix}-{number}"
        try:
            (node.point / name).write_bytes(content(name, size))
        except OSError as error:
            assert error.errno == errno.ENOSPC, error
            return written
        written[name] = size
    raise AssertionError("the disk does not become full")


def wrong(node: Node, written: dict[str, int]) -> list[str]:
    return [
        name for name, size in written.items()
        if (node.point / name).read_bytes() != content(name, size)
    ]  # fmt: skip


def remount(node: Node) -> None:
    node.unmount()
    node.mount(command=MOUNT_DFS)


@pytest.mark.parametrize("size", [3_000_000, 100_000])
def test_a_full_disk_refuses_writes_and_nothing_else(full: Node, size: int) -> None:
    written = fill(full, size)
    assert sum(written.values()) > 60 * MIB, "it is full too early"
    assert wrong(full, written) == []
    assert os.statvfs(full.point).f_bavail * 4096 < 2 * size + MIB

    # Names can be changed and files removed as long as they are few.
    (full.point / "fill-0").rename(full.point / "renamed")
    written.pop("fill-0")
    assert (full.point / "renamed").read_bytes() == content("fill-0", size)
    for name in list(written)[: len(written) // 2]:
        (full.point / name).unlink()
        written.pop(name)
    assert wrong(full, written) == []

    freed = len(written) * size
    assert _space_comes_back(full, freed // 2), "the space of what was removed does not come back"
    more = fill(full, size, "more")
    assert sum(more.values()) > freed // 4
    written |= more
    assert wrong(full, written) == []
    remount(full)
    assert wrong(full, written) == []
    full.unmount()
    assert list(troubles(full.home)) == []


def _space_comes_back(node: Node, size: int) -> bool:
    """Wait until so many bytes can be written again."""
    until = time.monotonic() + SPACE_S_MAX
    while time.monotonic() < until:
        have = os.statvfs(node.point)
        if have.f_bavail * have.f_frsize > size:
            break
        time.sleep(0.2)
    try:
        (node.point / "probe").write_bytes(bytes(min(size, 4 * MIB)))
    except OSError as error:
        assert error.errno == errno.ENOSPC, error
        return False
    (node.point / "probe").unlink()
    return True


def test_small_files_fill_a_disk_too(full: Node) -> None:
    """They are in the metadata, which has no volume to run out of."""
    large = fill(full, 4 * MIB)
    names = fill(full, 4_000, "small", 100_000)
    assert wrong(full, large) == []
    assert wrong(full, names) == []
    for name in large:
        (full.point / name).unlink()
    assert _space_comes_back(full, MIB)
    (full.point / "after").write_bytes(content("after", MIB))
    names["after"] = MIB
    remount(full)
    assert wrong(full, names) == []


def test_a_full_disk_can_be_mounted_again_after_a_kill(full: Node) -> None:
    written = fill(full, MIB)
    full.kill()
    full.mount()
    assert wrong(full, written) == []
    for name in list(written)[::2]:
        (full.point / name).unlink()
        written.pop(name)
    assert _space_comes_back(full, MIB)
    remount(full)
    assert wrong(full, written) == []


def test_a_disk_that_others_fill_to_the_last_byte(full: Node) -> None:
    """Not even the reserve is left: reading goes on, writing is refused, nothing breaks."""
    written = {f"before-{number}": 200_000 for number in range(20)}
    for name, size in written.items():
        (full.point / name).write_bytes(content(name, size))
    other = full.home.parent / "other"
    with open(other, "wb", buffering=0) as file:
        try:
            while file.write(bytes(MIB)):
                pass
        except OSError as error:
            assert error.errno == errno.ENOSPC
    refused = 0
    for number in range(3000):
        name = f"during-{number}"
        try:
            (full.point / name).write_bytes(content(name, 20_000))
        except OSError as error:
            assert error.errno == errno.ENOSPC, error
            refused += 1
        else:
            written[name] = 20_000
        if refused > 20:
            break
    assert refused
    assert wrong(full, written) == []
    for name in [name for name in written if name.startswith("before")][:5]:
        (full.point / name).unlink()
        written.pop(name)
    other.unlink()
    assert _space_comes_back(full, MIB)
    (full.point / "after").write_bytes(content("after", MIB))
    written["after"] = MIB
    remount(full)
    assert wrong(full, written) == []


def test_fsync_says_what_close_would(full: Node) -> None:
    """A writer that never closes hears it at write(2) or fsync(2)."""
    fd = os.open(full.point / "large", os.O_CREAT | os.O_RDWR)
    size = 0
    try:
        with pytest.raises(OSError) as caught:
            while size < DISK_BYTES:
                size += os.write(fd, b"x" * MIB)
                if size % (16 * MIB) == 0:
                    os.fsync(fd)
                    synced = size
            os.fsync(fd)
        assert caught.value.errno == errno.ENOSPC
        assert os.pread(fd, synced, 0) == b"x" * synced
        os.ftruncate(fd, 16 * MIB)
    finally:
        os.close(fd)
    remount(full)
    assert (full.point / "large").read_bytes() == b"x" * (16 * MIB)
