"""utimensat(2), and which call stamps which time.

Sources: POSIX.1-2024 XBD 4.12 File Times Update, futimens(); Linux man pages utimensat(2),
inode(7), mount(8) (relatime, strictatime, noatime).
"""

import os
import time
from errno import EACCES, EINVAL, ENOENT, EPERM
from pathlib import Path

import pytest
from calls import (
    UTIME_NOW,
    UTIME_OMIT,
    fails,
    let_time_pass,
    make,
    opened,
    set_times,
    write_all,
)
from people import ALICE, as_user

SECOND = 1_000_000_000
NOW, OMIT = (0, UTIME_NOW), (0, UTIME_OMIT)
NOATIME = 0x0400 | 0x0800  # ST_NOATIME, ST_NODIRATIME of statvfs(3)


def needs_atime(directory: Path) -> None:
    if os.statvfs(directory).f_flag & NOATIME:
        pytest.skip("mounted with noatime or nodiratime")


@pytest.mark.parametrize(
    "moment",
    [
        (0, 0),
        (0, 1),
        (1, 999_999_999),
        (1_234_567_890, 123_456_789),
        (2**31 - 1, 5),
        (2**31, 0),
        (2**32 + 1, 7),
        (-1, 0),
        (-2, 500_000_000),
    ],
)
def test_a_time_is_kept_to_the_nanosecond(here: Path, moment: tuple[int, int]) -> None:
    file = make(here / "file")
    other = (moment[0] + 1, 42)
    set_times(file, other, moment)
    status = file.stat()
    assert status.st_mtime_ns == moment[0] * SECOND + moment[1]
    assert status.st_atime_ns == other[0] * SECOND + other[1]


@pytest.mark.parametrize("kind", ["file", "directory", "symlink", "fifo"])
def test_every_kind_of_file_has_times_of_its_own(here: Path, kind: str) -> None:
    name = here / kind
    make(here / "target")
    untouched = (here / "target").stat().st_mtime_ns
    match kind:
        case "file":
            make(name)
        case "directory":
            name.mkdir()
        case "symlink":
            name.symlink_to("target")
        case "fifo":
            os.mkfifo(name)
    set_times(name, (10, 1), (20, 2), follow=False)
    assert (name.lstat().st_atime_ns, name.lstat().st_mtime_ns) == (
        10 * SECOND + 1,
        20 * SECOND + 2,
    )
    assert (here / "target").stat().st_mtime_ns == untouched


def test_following_a_symlink_sets_the_targets_times(here: Path) -> None:
    make(here / "file")
    (here / "link").symlink_to("file")
    before = (here / "link").lstat().st_mtime_ns
    set_times(here / "link", (10, 0), (20, 0))
    assert (here / "file").stat().st_mtime_ns == 20 * SECOND
    assert (here / "link").lstat().st_mtime_ns == before


def test_omit_leaves_one_time_and_sets_the_other(here: Path) -> None:
    file = make(here / "file")
    set_times(file, (10, 0), (20, 0))
    set_times(file, OMIT, (30, 0))
    assert (file.stat().st_atime_ns, file.stat().st_mtime_ns) == (10 * SECOND, 30 * SECOND)
    set_times(file, (40, 0), OMIT)
    assert (file.stat().st_atime_ns, file.stat().st_mtime_ns) == (40 * SECOND, 30 * SECOND)


def test_omitting_both_changes_nothing(here: Path) -> None:
    file = make(here / "file")
    before = file.stat()
    let_time_pass()
    set_times(file, OMIT, OMIT)
    after = file.stat()
    assert (after.st_atime_ns, after.st_mtime_ns) == (before.st_atime_ns, before.st_mtime_ns)
    assert after.st_ctime_ns == before.st_ctime_ns


def test_now_is_the_present(here: Path) -> None:
    file = make(here / "file")
    set_times(file, (10, 0), (20, 0))
    earliest = time.time_ns() - SECOND // 10  # the stamping clock may be coarse
    set_times(file, NOW, NOW)
    for moment in (file.stat().st_atime_ns, file.stat().st_mtime_ns):
        assert earliest <= moment <= time.time_ns()


def test_now_and_omit_can_be_mixed(here: Path) -> None:
    file = make(here / "file")
    set_times(file, (10, 0), (20, 0))
    set_times(file, OMIT, NOW)
    assert file.stat().st_atime_ns == 10 * SECOND
    assert file.stat().st_mtime_ns > 20 * SECOND


def test_setting_times_stamps_the_change(here: Path) -> None:
    file = make(here / "file")
    before = file.stat().st_ctime_ns
    let_time_pass()
    set_times(file, (10, 0), (20, 0))
    assert file.stat().st_ctime_ns > before


@pytest.mark.parametrize("nanoseconds", [-1, 1_000_000_000, 2**30])
def test_a_nanosecond_out_of_range_is_invalid(here: Path, nanoseconds: int) -> None:
    file = make(here / "file")
    with fails(EINVAL):
        set_times(file, (0, 0), (0, nanoseconds))


def test_times_of_a_missing_file_cannot_be_set(here: Path) -> None:
    with fails(ENOENT):
        set_times(here / "missing", NOW, NOW)


@pytest.mark.parametrize(
    ("bits", "atime", "mtime", "error"),
    [
        (0o666, NOW, NOW, None),
        (0o644, NOW, NOW, EACCES),
        (0o666, (1, 0), (2, 0), EPERM),
        (0o666, NOW, OMIT, EPERM),
        (0o666, OMIT, NOW, EPERM),
        (0o666, OMIT, (1, 0), EPERM),
        (0o600, OMIT, OMIT, None),
    ],
)
def test_what_a_user_who_is_not_the_owner_may_set(
    here: Path, bits: int, atime: tuple[int, int], mtime: tuple[int, int], error: int | None
) -> None:
    file = make(here / "file", mode=bits)
    if error is None:
        as_user(lambda: set_times(file, atime, mtime), ALICE)
        return
    with fails(error):
        as_user(lambda: set_times(file, atime, mtime), ALICE)


def test_the_owner_may_set_times_of_a_file_it_cannot_write(here: Path) -> None:
    file = make(here / "file", mode=0)
    os.chown(file, ALICE, ALICE)
    as_user(lambda: set_times(file, (10, 0), (20, 0)), ALICE)
    assert file.stat().st_mtime_ns == 20 * SECOND


@pytest.mark.parametrize("sync", [False, True], ids=["close", "fsync and close"])
def test_a_time_set_after_writing_survives(here: Path, sync: bool) -> None:
    with opened(here / "file", os.O_WRONLY | os.O_CREAT) as fd:
        write_all(fd, b"text" * 3000)
        os.utime(fd, ns=(10 * SECOND, 20 * SECOND + 5))
        if sync:
            os.fsync(fd)
        assert os.fstat(fd).st_mtime_ns == 20 * SECOND + 5
    let_time_pass()
    assert (here / "file").stat().st_mtime_ns == 20 * SECOND + 5
    assert (here / "file").stat().st_size == 12_000


def test_futimens_works_on_a_file_opened_for_reading(here: Path) -> None:
    with opened(make(here / "file")) as fd:
        os.utime(fd, ns=(1, 2))
        assert os.fstat(fd).st_mtime_ns == 2


def test_a_new_file_has_all_times_of_its_creation(here: Path) -> None:
    let_time_pass()
    status = make(here / "file").stat()
    assert abs(status.st_atime_ns - status.st_mtime_ns) < SECOND
    assert abs(status.st_mtime_ns - time.time_ns()) < 5 * SECOND


def test_writing_stamps_modification_and_change_only(here: Path) -> None:
    with opened(make(here / "file", b"text"), os.O_WRONLY) as fd:
        before = os.fstat(fd)
        let_time_pass()
        write_all(fd, b"more")
        after = os.fstat(fd)
    assert after.st_mtime_ns > before.st_mtime_ns
    assert after.st_ctime_ns > before.st_ctime_ns
    assert after.st_atime_ns == before.st_atime_ns


def test_reading_does_not_stamp_modification_or_change(here: Path) -> None:
    file = make(here / "file", b"text")
    before = file.stat()
    let_time_pass()
    assert file.read_bytes() == b"text"
    assert file.stat().st_mtime_ns == before.st_mtime_ns
    assert file.stat().st_ctime_ns == before.st_ctime_ns


@pytest.mark.parametrize("content", [b"text", b"long" * 50_000], ids=["small", "large"])
def test_reading_what_was_modified_since_it_was_last_read_stamps_the_access(
    here: Path, content: bytes
) -> None:
    needs_atime(here)
    file = make(here / "file", content)
    set_times(file, (10, 0), (20, 0))
    assert file.read_bytes() == content
    assert file.stat().st_atime_ns > 20 * SECOND


def test_listing_a_directory_modified_since_it_was_last_read_stamps_the_access(here: Path) -> None:
    needs_atime(here)
    (here / "sub").mkdir()
    make(here / "sub" / "file")
    set_times(here / "sub", (10, 0), (20, 0))
    assert os.listdir(here / "sub") == ["file"]
    assert (here / "sub").stat().st_atime_ns > 20 * SECOND


def test_reading_a_symlink_modified_since_it_was_last_read_stamps_the_access(here: Path) -> None:
    needs_atime(here)
    (here / "link").symlink_to("target")
    set_times(here / "link", (10, 0), (20, 0), follow=False)
    os.readlink(here / "link")
    assert (here / "link").lstat().st_atime_ns > 20 * SECOND


def test_reading_with_noatime_does_not_stamp_the_access(here: Path) -> None:
    file = make(here / "file", b"text")
    set_times(file, (10, 0), (20, 0))
    with opened(file, os.O_RDONLY | os.O_NOATIME) as fd:
        assert os.read(fd, 10) == b"text"
    assert file.stat().st_atime_ns == 10 * SECOND


def test_reading_no_bytes_does_not_stamp_the_access(here: Path) -> None:
    file = make(here / "file", b"text")
    set_times(file, (10, 0), (20, 0))
    with opened(file) as fd:
        assert os.read(fd, 0) == b""
    assert file.stat().st_atime_ns == 10 * SECOND


def test_looking_up_a_file_stamps_nothing(here: Path) -> None:
    file = make(here / "file", b"text")
    before = file.stat()
    let_time_pass()
    for _ in range(3):
        os.access(file, os.R_OK)
        os.close(os.open(file, os.O_RDWR))
    after = file.stat()
    assert (after.st_atime_ns, after.st_mtime_ns) == (before.st_atime_ns, before.st_mtime_ns)
    assert after.st_ctime_ns == before.st_ctime_ns


@pytest.mark.parametrize("seconds", [-(1 << 55), -10_000_000_000, 10_000_000_000, 1 << 55])
def test_a_time_that_cannot_be_kept_becomes_one_near_it(here: Path, seconds: int) -> None:
    """inode(7): what a filesystem keeps is bounded; no error is due for what lies beyond."""
    path = make(here / "file")
    set_times(path, (seconds, 5), (seconds, 7))
    kept = path.stat().st_mtime_ns
    assert abs(kept) <= abs(seconds) * SECOND + 7
    assert (kept < 0) is (seconds < 0)
    assert abs(kept) >= (1 << 31) * SECOND  # 2038 and 1902
