"""statvfs(3), and what stat(2) says that is true of every file.

Sources: POSIX.1-2024 fstatvfs(), XBD <sys/stat.h>; Linux man pages statvfs(3), stat(2), inode(7).
"""

import os
from errno import ENOENT
from pathlib import Path

import pytest
from calls import fails, make, opened

MIB = 1 << 20


def test_the_numbers_of_the_filesystem_fit_together(here: Path) -> None:
    status = os.statvfs(here)
    assert status.f_blocks >= status.f_bfree >= status.f_bavail > 0
    assert status.f_frsize > 0
    assert status.f_frsize & (status.f_frsize - 1) == 0
    assert status.f_bsize > 0
    assert status.f_files >= status.f_ffree >= 0
    assert status.f_namemax == 255
    assert not status.f_flag & os.ST_RDONLY


def test_every_file_of_the_filesystem_gives_the_same_answer(here: Path) -> None:
    (here / "sub").mkdir()
    with opened(make(here / "sub" / "file")) as fd:
        of_file = os.fstatvfs(fd)
    of_directory = os.statvfs(here)
    for field in ("f_blocks", "f_frsize", "f_bsize", "f_namemax", "f_flag"):
        assert getattr(of_file, field) == getattr(of_directory, field)


def test_asking_of_a_missing_file_is_refused(here: Path) -> None:
    with fails(ENOENT):
        os.statvfs(here / "missing")


def test_writing_uses_space(here: Path) -> None:
    before = os.statvfs(here)
    with opened(here / "file", os.O_WRONLY | os.O_CREAT) as fd:
        os.write(fd, os.urandom(16 * MIB))
        os.fsync(fd)
        after = os.statvfs(here)
    used = (before.f_bfree - after.f_bfree) * after.f_frsize
    assert used > 4 * MIB  # others may write or delete meanwhile, but hardly as much


def test_all_files_are_on_one_device_with_inodes_of_their_own(here: Path) -> None:
    inos = set()
    for number in range(20):
        status = make(here / str(number)).stat()
        assert status.st_dev == here.stat().st_dev
        inos.add(status.st_ino)
    assert len(inos) == 20
    assert 0 not in inos


def test_stat_of_a_descriptor_is_stat_of_the_name(here: Path) -> None:
    file = make(here / "file", b"text", mode=0o640)
    with opened(file) as fd:
        assert os.fstat(fd) == file.stat()


def test_an_inode_number_is_stable(here: Path) -> None:
    ino = make(here / "file").stat().st_ino
    for number in range(200):
        make(here / str(number))
    assert (here / "file").stat().st_ino == ino


@pytest.mark.parametrize("size", [0, 1, 5000, 1 << 20])
def test_the_preferred_block_size_is_sensible(here: Path, size: int) -> None:
    status = make(here / "file", bytes(size)).stat()
    assert 512 <= status.st_blksize <= 64 * MIB
    assert status.st_size == size
