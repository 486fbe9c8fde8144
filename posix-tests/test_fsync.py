"""fsync(2), fdatasync(2), syncfs(2), sync(2): they succeed where they must and lose nothing.

That the bytes are on the disk is for the tests that cut the power; here is what a caller sees.
Sources: POSIX.1-2024 fsync(), fdatasync(); Linux man pages fsync(2), sync(2).
"""

import ctypes
import os
from collections.abc import Callable
from errno import EBADF, EINVAL
from pathlib import Path

import pytest
from calls import fails, make, opened, write_all
from people import Other

SYNCS: dict[str, Callable[[int], None]] = {"fsync": os.fsync, "fdatasync": os.fdatasync}


@pytest.fixture(params=SYNCS)
def sync(request: pytest.FixtureRequest) -> Callable[[int], None]:
    return SYNCS[request.param]


def test_a_synced_file_is_unchanged(here: Path, sync: Callable[[int], None]) -> None:
    with opened(here / "file", os.O_RDWR | os.O_CREAT) as fd:
        for number in range(10):
            write_all(fd, b"%d" % number * 9999)
            sync(fd)
            assert os.fstat(fd).st_size == 9999 * (number + 1)
    assert (here / "file").read_bytes() == b"".join(b"%d" % number * 9999 for number in range(10))


def test_a_descriptor_for_reading_can_be_synced(here: Path, sync: Callable[[int], None]) -> None:
    with opened(make(here / "file", b"text")) as fd:
        sync(fd)


def test_a_directory_can_be_synced(here: Path, sync: Callable[[int], None]) -> None:
    make(here / "file")
    with opened(here) as fd:
        sync(fd)


def test_an_unlinked_file_can_be_synced(here: Path, sync: Callable[[int], None]) -> None:
    with opened(here / "file", os.O_RDWR | os.O_CREAT) as fd:
        write_all(fd, b"text" * 5000)
        os.unlink(here / "file")
        sync(fd)
        assert os.pread(fd, 4, 4000) == b"text"


def test_what_another_process_wrote_can_be_synced(here: Path, sync: Callable[[int], None]) -> None:
    file = make(here / "file")
    with opened(file, os.O_RDWR) as fd:
        with Other(lambda _: write_all(fd, b"text" * 5000, 0)) as child:
            child.result()
        sync(fd)
        assert os.fstat(fd).st_size == 20_000


def test_a_fifo_or_path_descriptor_cannot_be_synced(
    here: Path, sync: Callable[[int], None]
) -> None:
    os.mkfifo(here / "fifo")
    with opened(here / "fifo", os.O_RDWR) as fd, fails(EINVAL):
        sync(fd)
    with opened(here, os.O_PATH) as fd, fails(EBADF):
        sync(fd)


def test_syncing_does_not_stamp(here: Path, sync: Callable[[int], None]) -> None:
    with opened(here / "file", os.O_RDWR | os.O_CREAT) as fd:
        write_all(fd, b"text")
        os.utime(fd, ns=(1, 2))
        before = os.fstat(fd)
        sync(fd)
        assert os.fstat(fd).st_mtime_ns == 2
        assert os.fstat(fd).st_ctime_ns == before.st_ctime_ns


def test_the_filesystem_can_be_synced_as_a_whole(here: Path) -> None:
    make(here / "file", b"text")
    libc = ctypes.CDLL(None, use_errno=True)
    with opened(here) as fd:
        assert libc.syncfs(fd) == 0
    assert (here / "file").read_bytes() == b"text"


def test_closing_needs_no_sync_for_others_to_see_it(here: Path) -> None:
    for number in range(50):
        make(here / str(number), b"%d" % number * 3000)

    with Other(lambda _: [len((here / str(n)).read_bytes()) for n in range(50)]) as child:
        assert child.result() == [len(str(n)) * 3000 for n in range(50)]
