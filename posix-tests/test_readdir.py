"""Reading directories: getdents64(2), and positions that stay right while the directory changes.

Sources: POSIX.1-2024 readdir(), seekdir(), telldir(), rewinddir(); Linux man pages getdents(2),
readdir(3), seekdir(3).
"""

import os
import shutil
import socket
import stat
from collections.abc import Iterator
from errno import EBADF, EINVAL, ENOENT, ENOTDIR
from pathlib import Path

import pytest
from calls import Dirent, all_dents, fails, getdents, make, opened

MANY = 20_000
SMALL = 1024
"""Bytes of a read that holds a few dozen entries, so that a directory takes many reads."""
DOTS = {b".", b".."}


@pytest.fixture(scope="module")
def crowd(mount_point: Path) -> Iterator[Path]:
    """A directory with MANY entries, not to be changed."""
    directory = mount_point / f"crowd-{os.getpid()}"
    directory.mkdir()
    try:
        for number in range(MANY):
            os.mknod(directory / f"{number:06}")
        yield directory
    finally:
        shutil.rmtree(directory)


def fill(directory: Path, count: int) -> set[bytes]:
    for number in range(count):
        os.mknod(directory / f"{number:06}")
    return {b"%06d" % number for number in range(count)}


def names(entries: list[Dirent]) -> list[bytes]:
    return [entry.name for entry in entries if entry.name not in DOTS]


def test_a_new_directory_has_dot_and_dotdot(here: Path) -> None:
    (here / "sub").mkdir()
    with opened(here / "sub") as fd:
        entries = {entry.name: entry.ino for entry in all_dents(fd)}
    assert entries == {b".": (here / "sub").stat().st_ino, b"..": here.stat().st_ino}


def test_every_entry_tells_its_inode_and_type(here: Path) -> None:
    make(here / "file")
    (here / "directory").mkdir()
    (here / "symlink").symlink_to("nowhere")
    os.mkfifo(here / "fifo")
    os.mknod(here / "char", stat.S_IFCHR, os.makedev(1, 3))
    os.mknod(here / "block", stat.S_IFBLK, os.makedev(1, 3))
    with socket.socket(socket.AF_UNIX) as listener:
        os.chdir(here)
        listener.bind("socket")
    os.link(here / "file", here / "again")
    with opened(here) as fd:
        entries = [entry for entry in all_dents(fd) if entry.name not in DOTS]
    assert len(entries) == 8
    for entry in entries:
        status = os.lstat(os.path.join(os.fsencode(here), entry.name))
        assert entry.ino == status.st_ino
        assert entry.type in (0, stat.S_IFMT(status.st_mode) >> 12)  # 0: DT_UNKNOWN


@pytest.mark.parametrize(
    "name",
    [b"x" * 255, b"\xff\xfe\x80", b"a\nb", b"...", b" ", b"-rf", b"\\", b"\x01", "ü".encode()],
    ids=repr,
)
def test_odd_names_are_listed_as_they_are(here: Path, name: bytes) -> None:
    path = os.path.join(os.fsencode(here), name)
    os.mknod(path)
    assert os.listdir(os.fsencode(here)) == [name]
    assert os.stat(path).st_nlink == 1


def test_twenty_thousand_entries_are_each_listed_once(crowd: Path) -> None:
    with opened(crowd) as fd:
        listed = [entry.name for entry in all_dents(fd)]
    assert len(listed) == MANY + 2
    assert set(listed) == DOTS | {b"%06d" % number for number in range(MANY)}


def test_small_and_large_reads_list_the_same(crowd: Path) -> None:
    with opened(crowd) as fd:
        small = all_dents(fd, 4 * SMALL)
        os.lseek(fd, 0, os.SEEK_SET)
        large = all_dents(fd, 1 << 20)
    assert [entry.name for entry in small] == [entry.name for entry in large]


def test_positions_in_a_large_directory_are_distinct_and_lead_to_the_next_entry(
    crowd: Path,
) -> None:
    with opened(crowd) as fd:
        entries = all_dents(fd)
        assert len({entry.offset for entry in entries}) == len(entries)
        for number in (0, 1, 2, 77, 5000, 12_345, MANY - 5, MANY):
            os.lseek(fd, entries[number].offset, os.SEEK_SET)
            assert getdents(fd, SMALL)[0].name == entries[number + 1].name
        os.lseek(fd, entries[-1].offset, os.SEEK_SET)
        assert getdents(fd) == []


def test_the_position_is_that_of_the_last_entry_read(here: Path) -> None:
    fill(here, 300)
    with opened(here) as fd:
        for _ in range(5):
            last = getdents(fd, SMALL)[-1]
            assert os.lseek(fd, 0, os.SEEK_CUR) == last.offset


def test_rewinding_shows_what_has_changed(here: Path) -> None:
    fill(here, 5)
    with opened(here) as fd:
        assert len(names(all_dents(fd))) == 5
        os.unlink(here / "000003")
        make(here / "new")
        os.lseek(fd, 0, os.SEEK_SET)
        listed = names(all_dents(fd))
    assert sorted(listed) == [b"000000", b"000001", b"000002", b"000004", b"new"]


def test_the_end_stays_the_end_until_rewound(here: Path) -> None:
    with opened(here) as fd:
        all_dents(fd)
        assert getdents(fd) == []
        assert getdents(fd) == []


def test_entries_that_stay_are_listed_once_while_others_come_and_go(here: Path) -> None:
    stay = fill(here, 2000)
    listed: list[bytes] = []
    round_number = 0
    with opened(here) as fd:
        while batch := getdents(fd, SMALL):
            listed += names(batch)
            for number in range(5):
                make(here / f"new-{round_number}-{number}")
            if round_number:
                for number in range(5):
                    os.unlink(here / f"new-{round_number - 1}-{number}")
            round_number += 1
            assert round_number < 2000, "listing does not end"
    assert sorted(name for name in listed if not name.startswith(b"new-")) == sorted(stay)
    assert len(listed) == len(set(listed))


def test_removing_what_was_just_listed_misses_nothing(here: Path) -> None:
    fill(here, 2000)
    with opened(here) as fd:
        while batch := getdents(fd, SMALL):
            for name in names(batch):
                os.unlink(name, dir_fd=fd)
    assert os.listdir(here) == []


def test_renaming_what_was_just_listed_misses_nothing(here: Path) -> None:
    fill(here, 500)
    (here.parent / f"{here.name}-moved").mkdir()
    moved = here.parent / f"{here.name}-moved"
    try:
        with opened(here) as fd:
            while batch := getdents(fd, SMALL):
                for name in names(batch):
                    os.rename(name, os.path.join(os.fsencode(moved), name), src_dir_fd=fd)
        assert os.listdir(here) == []
        assert len(os.listdir(moved)) == 500
    finally:
        shutil.rmtree(moved)


def test_a_position_outlives_the_removal_of_the_entries_around_it(here: Path) -> None:
    fill(here, 1000)
    with opened(here) as fd:
        entries = all_dents(fd)
        position, rest = entries[500].offset, entries[501:]
        removed = {entry.name for entry in entries[450:550]} - DOTS
        for name in removed:
            os.unlink(name, dir_fd=fd)
        os.lseek(fd, position, os.SEEK_SET)
        listed = names(all_dents(fd, SMALL))
    # Whether the removed ones are still listed is unspecified, says readdir(3p).
    stayed = [name for name in listed if name not in removed]
    assert stayed == [name for name in names(rest) if name not in removed]


def test_a_position_outlives_the_arrival_of_entries(here: Path) -> None:
    before = fill(here, 1000)
    with opened(here) as fd:
        entries = all_dents(fd)
        for number in range(1000):
            os.mknod(here / f"new-{number}")
        os.lseek(fd, entries[500].offset, os.SEEK_SET)
        listed = [name for name in names(all_dents(fd, SMALL)) if name in before]
    assert listed == names(entries[501:])


def test_two_descriptors_have_positions_of_their_own(here: Path) -> None:
    fill(here, 300)
    with opened(here) as one, opened(here) as two:
        first = getdents(one, SMALL)
        assert getdents(two, SMALL) == first
        assert getdents(one, SMALL) == getdents(two, SMALL) != first


def test_a_duplicate_shares_the_position(here: Path) -> None:
    expected = fill(here, 300)
    with opened(here) as fd:
        other = os.dup(fd)
        listed = []
        while batch := getdents(fd, SMALL) + getdents(other, SMALL):
            listed += names(batch)
        os.close(other)
    assert sorted(listed) == sorted(expected)


def test_a_buffer_too_small_for_one_entry_is_invalid(here: Path) -> None:
    make(here / ("x" * 255))
    with opened(here) as fd, fails(EINVAL):
        while getdents(fd, 64):
            pass


def test_only_a_directory_can_be_listed(here: Path) -> None:
    with opened(make(here / "file")) as fd, fails(ENOTDIR):
        getdents(fd)
    with opened(here, os.O_PATH) as fd, fails(EBADF):
        getdents(fd)
    with fails(ENOTDIR):
        os.listdir(here / "file")
    with fails(ENOENT):
        os.listdir(here / "missing")


def test_a_directory_lists_what_was_done_under_another_name_of_its_parent(here: Path) -> None:
    os.makedirs(here / "old" / "sub")
    with opened(here / "old" / "sub") as fd:
        os.rename(here / "old", here / "new")
        make(here / "new" / "sub" / "file")
        assert names(all_dents(fd)) == [b"file"]


def test_listings_follow_every_kind_of_change_at_once(here: Path) -> None:
    assert os.listdir(here) == []
    make(here / "a")
    assert os.listdir(here) == ["a"]
    os.link(here / "a", here / "b")
    assert sorted(os.listdir(here)) == ["a", "b"]
    os.rename(here / "a", here / "c")
    assert sorted(os.listdir(here)) == ["b", "c"]
    os.symlink("x", here / "d")
    os.mkdir(here / "e")
    assert sorted(os.listdir(here)) == ["b", "c", "d", "e"]
    for name in "bcd":
        os.unlink(here / name)
    os.rmdir(here / "e")
    assert os.listdir(here) == []
