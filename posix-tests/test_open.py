"""open(2).

Sources: POSIX.1-2024 open(), Linux man pages open(2), path_resolution(7), umask(2), inode(7).
"""

import os
import shutil
import stat
import subprocess
from errno import (
    EACCES,
    EBADF,
    EEXIST,
    EINVAL,
    EISDIR,
    ELOOP,
    ENOENT,
    ENOTDIR,
    EPERM,
    ETXTBSY,
)
from pathlib import Path

import pytest
from calls import fails, let_time_pass, make, mode_of, opened, write_all
from people import ALICE, BOB, as_user

CREATE = os.O_WRONLY | os.O_CREAT


@pytest.mark.parametrize(
    ("asked", "umask", "given"),
    [
        (0o666, 0o022, 0o644),
        (0o777, 0o077, 0o700),
        (0o600, 0o000, 0o600),
        (0o000, 0o022, 0o000),
        (0o4755, 0o022, 0o4755),
        (0o666, 0o777, 0o000),
    ],
)
def test_a_new_file_has_the_mode_asked_for_less_the_umask(
    here: Path, asked: int, umask: int, given: int
) -> None:
    os.umask(umask)
    os.close(os.open(here / "new", CREATE, asked))
    assert mode_of(here / "new") == given


def test_a_new_file_is_empty_and_has_one_link(here: Path) -> None:
    os.close(os.open(here / "new", CREATE, 0o644))
    status = (here / "new").stat()
    assert (status.st_size, status.st_nlink, status.st_blocks) == (0, 1, 0)
    assert stat.S_ISREG(status.st_mode)


def test_a_new_file_belongs_to_the_effective_user_and_group(here: Path) -> None:
    here.chmod(0o777)
    as_user(lambda: os.close(os.open(here / "new", CREATE)), ALICE, BOB)
    status = (here / "new").stat()
    assert (status.st_uid, status.st_gid) == (ALICE, BOB)


def test_the_creator_may_write_to_a_file_it_makes_with_mode_zero(here: Path) -> None:
    here.chmod(0o777)

    def create_and_write() -> None:
        with opened(here / "new", CREATE, 0) as fd:
            write_all(fd, b"text")

    as_user(create_and_write, ALICE)
    assert (here / "new").read_bytes() == b"text"


def test_creating_a_file_changes_the_directorys_times(here: Path) -> None:
    before = here.stat()
    let_time_pass()
    make(here / "new")
    after = here.stat()
    assert after.st_mtime_ns > before.st_mtime_ns
    assert after.st_ctime_ns > before.st_ctime_ns


def test_opening_an_existing_file_with_creat_does_not_change_the_directory(here: Path) -> None:
    make(here / "old", mode=0o600)
    before = here.stat()
    let_time_pass()
    os.close(os.open(here / "old", CREATE, 0o777))
    assert here.stat().st_mtime_ns == before.st_mtime_ns
    assert mode_of(here / "old") == 0o600


@pytest.mark.parametrize("kind", ["file", "directory", "symlink", "dangling", "fifo"])
def test_exclusive_creation_refuses_any_existing_name(here: Path, kind: str) -> None:
    name, target = here / "name", here / "target"
    if kind == "file":
        make(name)
    elif kind == "directory":
        name.mkdir()
    elif kind == "fifo":
        os.mkfifo(name)
    else:
        name.symlink_to(target)
        if kind == "symlink":
            make(target)
    with fails(EEXIST):
        os.open(name, CREATE | os.O_EXCL)
    assert target.exists() == (kind == "symlink")


def test_creating_through_a_dangling_symlink_makes_its_target(here: Path) -> None:
    (here / "link").symlink_to("target")
    os.close(os.open(here / "link", CREATE))
    assert (here / "target").is_file()
    assert (here / "link").is_symlink()


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("missing", ENOENT),
        ("missing/file", ENOENT),
        ("file/below", ENOTDIR),
        ("file/", ENOTDIR),
        ("file/.", ENOTDIR),
        ("file/..", ENOTDIR),
        ("dangling", ENOENT),
        ("loop", ELOOP),
        ("loop/below", ELOOP),
        ("", ENOENT),
    ],
)
def test_a_path_that_leads_nowhere_says_why(here: Path, path: str, error: int) -> None:
    make(here / "file")
    (here / "dangling").symlink_to("nowhere")
    (here / "loop").symlink_to("loop")
    os.chdir(here)
    with fails(error):
        os.open(path, os.O_RDONLY)


def test_creating_in_a_missing_directory_is_refused(here: Path) -> None:
    with fails(ENOENT):
        os.open(here / "missing" / "file", CREATE)


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC])
def test_a_directory_cannot_be_opened_for_writing(here: Path, flags: int) -> None:
    with fails(EISDIR):
        os.open(here, flags)


def test_creat_on_a_directory_is_refused(here: Path) -> None:
    with fails(EISDIR):
        os.open(here, os.O_RDONLY | os.O_CREAT)


def test_reading_a_directory_as_a_file_is_refused(here: Path) -> None:
    with opened(here) as fd, fails(EISDIR):
        os.read(fd, 1)


def test_the_directory_flag_refuses_a_file(here: Path) -> None:
    make(here / "file")
    with fails(ENOTDIR):
        os.open(here / "file", os.O_RDONLY | os.O_DIRECTORY)


def test_nofollow_refuses_a_final_symlink_only(here: Path) -> None:
    (here / "sub").mkdir()
    make(here / "sub" / "file")
    (here / "to-sub").symlink_to("sub")
    (here / "to-file").symlink_to("sub/file")
    with fails(ELOOP):
        os.open(here / "to-file", os.O_RDONLY | os.O_NOFOLLOW)
    os.close(os.open(here / "to-sub" / "file", os.O_RDONLY | os.O_NOFOLLOW))


def test_truncation_empties_the_file_and_stamps_it(here: Path) -> None:
    file = make(here / "file", b"text", mode=0o640)
    before = file.stat()
    let_time_pass()
    os.close(os.open(file, os.O_WRONLY | os.O_TRUNC))
    after = file.stat()
    assert (after.st_size, after.st_ino, mode_of(file)) == (0, before.st_ino, 0o640)
    assert after.st_mtime_ns > before.st_mtime_ns
    assert after.st_ctime_ns > before.st_ctime_ns


def test_a_file_truncated_by_open_reads_as_empty_to_those_who_have_it_open(here: Path) -> None:
    file = make(here / "file", b"text" * 5000)
    with opened(file) as reader:
        assert os.read(reader, 4) == b"text"
        os.close(os.open(file, os.O_WRONLY | os.O_TRUNC))
        assert os.read(reader, 4) == b""
        assert os.fstat(reader).st_size == 0


def test_a_descriptor_allows_only_what_it_was_opened_for(here: Path) -> None:
    file = make(here / "file", b"text")
    with opened(file, os.O_RDONLY) as reader, opened(file, os.O_WRONLY) as writer:
        with fails(EBADF):
            os.write(reader, b"x")
        with fails(EBADF):
            os.read(writer, 1)
        with fails(EBADF, EINVAL):
            os.ftruncate(reader, 0)
    assert file.read_bytes() == b"text"


def test_access_is_decided_at_open_and_not_again(here: Path) -> None:
    file = make(here / "file", b"text")
    os.chown(file, ALICE, ALICE)

    def read_what_is_then_forbidden() -> bytes:
        with opened(file) as fd:
            file.chmod(0)
            return os.read(fd, 10)

    assert as_user(read_what_is_then_forbidden, ALICE) == b"text"
    with fails(EACCES):
        as_user(lambda: os.open(file, os.O_RDONLY), ALICE)


def test_noatime_is_for_the_owner(here: Path) -> None:
    file = make(here / "file", b"text")
    with fails(EPERM):
        as_user(lambda: os.open(file, os.O_RDONLY | os.O_NOATIME), ALICE)
    os.close(os.open(file, os.O_RDONLY | os.O_NOATIME))


def test_a_path_descriptor_names_but_does_not_read(here: Path) -> None:
    file = make(here / "file", b"text", mode=0)
    with opened(file, os.O_PATH) as fd:
        assert os.fstat(fd).st_size == 4
        with fails(EBADF):
            os.read(fd, 1)
        with fails(EBADF):
            os.fchmod(fd, 0o644)


def test_a_path_descriptor_of_a_symlink_is_the_symlink(here: Path) -> None:
    (here / "link").symlink_to("target")
    with opened(here / "link", os.O_PATH | os.O_NOFOLLOW) as fd:
        assert stat.S_ISLNK(os.fstat(fd).st_mode)
        assert os.readlink("", dir_fd=fd) == "target"


def test_openat_works_below_a_directory_that_has_been_renamed(here: Path) -> None:
    (here / "old").mkdir()
    make(here / "old" / "file", b"text")
    with opened(here / "old", os.O_RDONLY | os.O_DIRECTORY) as directory:
        (here / "old").rename(here / "new")
        fd = os.open("file", os.O_RDONLY, dir_fd=directory)
        assert os.read(fd, 10) == b"text"
        os.close(fd)


def test_two_openings_have_positions_of_their_own_and_a_duplicate_shares(here: Path) -> None:
    file = make(here / "file", b"abcdef")
    with opened(file) as one, opened(file) as two:
        shared = os.dup(one)
        assert os.read(one, 2) == b"ab"
        assert os.read(two, 2) == b"ab"
        assert os.read(shared, 2) == b"cd"
        os.close(shared)


def test_a_program_runs_and_cannot_be_written_meanwhile(here: Path) -> None:
    program = here / "program"
    shutil.copyfile("/bin/sleep", program)
    program.chmod(0o755)
    running = subprocess.Popen([program, "60"])
    try:
        with fails(ETXTBSY):
            os.open(program, os.O_WRONLY)
    finally:
        running.kill()
        running.wait()
    os.close(os.open(program, os.O_WRONLY))


def test_a_script_runs_by_its_first_line(here: Path) -> None:
    script = make(here / "script", b"#!/bin/sh\necho ran $1\n", mode=0o755)
    assert subprocess.check_output([script, "well"]) == b"ran well\n"
