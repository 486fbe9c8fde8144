"""Limits: names, paths, offsets, sizes.

Sources: POSIX.1-2024 XBD <limits.h>, pathconf(), write() (EFBIG); Linux man pages
path_resolution(7), pathconf(3), getrlimit(2) (RLIMIT_FSIZE), lseek(2).
"""

import os
import resource
import signal
from collections.abc import Callable
from errno import EFBIG, EINVAL, ENAMETOOLONG, EOVERFLOW
from pathlib import Path

import pytest
from calls import fails, make, opened, write_all
from people import Link, Other

NAME_MAX, PATH_MAX = 255, 4096
OFFSET_MAX = (1 << 63) - 1
LONGEST, TOO_LONG = "n" * NAME_MAX, "n" * (NAME_MAX + 1)

MAKERS: dict[str, Callable[[Path], object]] = {
    "file": make,
    "directory": os.mkdir,
    "fifo": os.mkfifo,
    "node": os.mknod,
    "symlink": lambda path: os.symlink("target", path),
    "link": lambda path: os.link(path.parent / "old", path),
    "rename": lambda path: os.rename(path.parent / "old", path),
}
LOOKERS: dict[str, Callable[[Path], object]] = {
    "stat": os.stat,
    "open": lambda path: os.open(path, os.O_RDONLY),
    "unlink": os.unlink,
    "rmdir": os.rmdir,
    "readlink": os.readlink,
    "chmod": lambda path: os.chmod(path, 0o600),
    "truncate": lambda path: os.truncate(path, 0),
    "rename": lambda path: os.rename(path, path.parent / "new"),
    "link": lambda path: os.link(path, path.parent / "new"),
}


def test_pathconf_tells_the_limits(here: Path) -> None:
    assert os.pathconf(here, "PC_NAME_MAX") == NAME_MAX
    assert os.pathconf(here, "PC_PATH_MAX") == PATH_MAX


@pytest.mark.parametrize("how", MAKERS)
def test_a_name_may_have_255_bytes(here: Path, how: str) -> None:
    make(here / "old")
    MAKERS[how](here / LONGEST)
    assert LONGEST in os.listdir(here)
    os.lstat(here / LONGEST)


@pytest.mark.parametrize("how", MAKERS)
def test_a_name_of_256_bytes_cannot_be_made(here: Path, how: str) -> None:
    make(here / "old")
    with fails(ENAMETOOLONG):
        MAKERS[how](here / TOO_LONG)
    assert os.listdir(here) == ["old"]


@pytest.mark.parametrize("how", LOOKERS)
def test_a_name_of_256_bytes_is_too_long_and_not_missing(here: Path, how: str) -> None:
    with fails(ENAMETOOLONG):
        LOOKERS[how](here / TOO_LONG)


def test_a_name_is_counted_in_bytes(here: Path) -> None:
    make(here / ("ü" * 127 + "x"))
    with fails(ENAMETOOLONG):
        make(here / ("ü" * 128))


def deep(here: Path, length: int) -> str:
    """A path of `length` bytes, relative to `here`, whose directories exist."""
    parts = []
    left = length
    while left > 200:
        parts.append("d" * 99)
        left -= 100
    os.makedirs(here.joinpath(*parts[:10]), exist_ok=True)
    os.chdir(here.joinpath(*parts[:10]))
    for part in parts[10:]:  # the whole of it is longer than one call may be given
        os.makedirs(part, exist_ok=True)
        os.chdir(part)
    os.chdir(here)
    return "/".join([*parts, "f" * left])


def test_a_path_may_have_4095_bytes_and_no_more(here: Path) -> None:
    path = deep(here, PATH_MAX - 1)
    assert len(path) == PATH_MAX - 1
    make(Path(path), b"text")
    assert Path(path).read_bytes() == b"text"
    with fails(ENAMETOOLONG):
        os.open(path + "f", os.O_RDONLY)
    with fails(ENAMETOOLONG):
        os.stat("./" + path)


def test_every_byte_but_slash_and_zero_may_be_in_a_name(here: Path) -> None:
    name = bytes(number for number in range(1, 256) if number != ord("/"))
    for part in (name[:127], name[127:]):
        path = os.path.join(os.fsencode(here), part)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
        assert part in os.listdir(os.fsencode(here))
        os.stat(path)


def test_names_that_differ_in_case_or_composition_are_different(here: Path) -> None:
    names = ["name", "Name", "NAME", "\u00fc", "u\u0308", "name ", "name."]
    for name in names:
        make(here / name, name.encode())
    assert sorted(os.listdir(here)) == sorted(names)
    assert [(here / name).read_bytes().decode() for name in names] == names


@pytest.mark.parametrize("offset", [2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40])
def test_bytes_far_into_a_file_are_kept(here: Path, offset: int) -> None:
    with opened(here / "file", os.O_RDWR | os.O_CREAT) as fd:
        write_all(fd, b"text", offset)
        assert os.fstat(fd).st_size == offset + 4
        assert os.pread(fd, 10, offset - 2) == b"\0\0text"
    with opened(here / "file") as fd:
        assert os.lseek(fd, -3, os.SEEK_END) == offset + 1
        assert os.read(fd, 10) == b"ext"


def test_the_largest_offset_can_be_had_or_is_too_big(here: Path) -> None:
    with opened(here / "file", os.O_RDWR | os.O_CREAT) as fd:
        try:
            os.ftruncate(fd, OFFSET_MAX)
        except OSError as error:
            assert error.errno == EFBIG
            assert os.fstat(fd).st_size == 0
            return
        assert os.fstat(fd).st_size == OFFSET_MAX
        # A range that ends behind the largest offset is invalid in itself: no byte more is asked.
        assert os.pread(fd, 5, OFFSET_MAX - 5) == bytes(5)
        write_all(fd, b"end", OFFSET_MAX - 3)
        assert os.pread(fd, 4, OFFSET_MAX - 4) == b"\0end"
        os.ftruncate(fd, 10)
        assert os.pread(fd, 20, 0) == bytes(10)


def test_nothing_is_written_past_the_largest_offset(here: Path) -> None:
    with opened(here / "file", os.O_RDWR | os.O_CREAT) as fd:
        with fails(EFBIG, EINVAL, EOVERFLOW):
            os.pwrite(fd, b"x", OFFSET_MAX)
        with fails(EINVAL, EOVERFLOW):
            os.lseek(fd, OFFSET_MAX, os.SEEK_SET)
            os.lseek(fd, 1, os.SEEK_CUR)
        assert os.fstat(fd).st_size == 0


def test_a_process_cannot_make_a_file_longer_than_its_limit(here: Path) -> None:
    file = make(here / "file")

    def write_to_the_limit(_: Link) -> int:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        with opened(file, os.O_RDWR) as fd:
            written = os.pwrite(fd, b"x" * 9000, 5000)
            with fails(EFBIG):
                os.pwrite(fd, b"x", 10_000)
            with fails(EFBIG):
                os.ftruncate(fd, 10_001)
            os.ftruncate(fd, 10_000)
        return written

    with Other(write_to_the_limit) as child:
        assert child.result() == 5000
    assert file.stat().st_size == 10_000


def test_a_write_past_the_limit_is_signalled(here: Path) -> None:
    file = make(here / "file")

    def write_past(_: Link) -> list[int]:
        heard: list[int] = []
        signal.signal(signal.SIGXFSZ, lambda number, _frame: heard.append(number))
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        with opened(file, os.O_WRONLY) as fd, fails(EFBIG):
            os.pwrite(fd, b"x", 100)
        return heard

    with Other(write_past) as child:
        assert child.result() == [signal.SIGXFSZ]


def test_a_directory_may_have_a_thousand_subdirectories(here: Path) -> None:
    links = here.stat().st_nlink
    for number in range(1000):
        os.mkdir(here / str(number))
    assert here.stat().st_nlink == links + 1000
    assert len(os.listdir(here)) == 1000
