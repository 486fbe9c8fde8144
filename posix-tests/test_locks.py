"""Locks: fcntl(2) record locks, open file description locks, flock(2).

Sources: POSIX.1-2024 fcntl(); Linux man pages fcntl(2), F_GETLK(2const), F_OFD_SETLK, flock(2).
"""

import ctypes
import fcntl
import os
import signal
import struct
import time
from errno import EACCES, EAGAIN, EBADF, EDEADLK, EINTR, EINVAL
from pathlib import Path
from typing import Final, NamedTuple

import pytest
from calls import fails, make, opened
from people import Link, Other

READ, WRITE, NONE = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK
REFUSED: Final = (EAGAIN, EACCES)  # POSIX lets a system choose
_FLOCK: Final = struct.Struct("hhqqi4x")

_libc = ctypes.CDLL(None, use_errno=True)


class Lock(NamedTuple):
    """`struct flock`.  Length 0 reaches to the end of all files."""

    kind: int
    start: int = 0
    length: int = 0
    pid: int = 0
    whence: int = os.SEEK_SET


def request(fd: int, command: int, lock: Lock) -> Lock:
    """fcntl(2), interrupted when the kernel says so (Python's own starts again)."""
    fields = _FLOCK.pack(lock.kind, lock.whence, lock.start, lock.length, lock.pid)
    buffer = ctypes.create_string_buffer(fields, _FLOCK.size)
    if _libc.fcntl(fd, command, buffer) < 0:
        raise OSError(ctypes.get_errno(), "fcntl")
    kind, whence, start, length, pid = _FLOCK.unpack(buffer.raw)
    return Lock(kind, start, length, pid, whence)


def lock(fd: int, kind: int, start: int = 0, length: int = 0) -> None:
    request(fd, fcntl.F_SETLK, Lock(kind, start, length))


def ofd_lock(fd: int, kind: int, start: int = 0, length: int = 0) -> None:
    request(fd, fcntl.F_OFD_SETLK, Lock(kind, start, length))


def whole_file_lock(fd: int, operation: int) -> None:
    """flock(2), interrupted when the kernel says so."""
    if _libc.flock(fd, operation) < 0:
        raise OSError(ctypes.get_errno(), "flock")


def elsewhere(path: Path, kind: int, start: int = 0, length: int = 0) -> bool:
    """Whether another process could have this lock now."""

    def ask(_: Link) -> bool:
        with opened(path, os.O_RDWR) as fd:
            try:
                lock(fd, kind, start, length)
            except OSError as error:
                assert error.errno in REFUSED
                return False
            return True

    with Other(ask) as other:
        granted: bool = other.result()
    return granted


def holder(path: Path, kind: int, start: int = 0, length: int = 0) -> Other:
    """A process that holds the lock until told otherwise, once.  Returns when it has it."""

    def hold(link: Link) -> None:
        with opened(path, os.O_RDWR) as fd:
            lock(fd, kind, start, length)
            link.say()
            link.hear()

    other = Other(hold)
    other.hear()
    return other


@pytest.fixture
def file(here: Path) -> Path:
    return make(here / "file", bytes(1000))


@pytest.mark.parametrize(
    ("mine", "theirs", "granted"),
    [(READ, READ, True), (READ, WRITE, False), (WRITE, READ, False), (WRITE, WRITE, False)],
    ids=["read read", "read write", "write read", "write write"],
)
def test_readers_share_and_a_writer_is_alone(
    file: Path, mine: int, theirs: int, granted: bool
) -> None:
    with opened(file, os.O_RDWR) as fd:
        lock(fd, mine)
        assert elsewhere(file, theirs) == granted
        lock(fd, NONE)
        assert elsewhere(file, theirs)


def test_a_process_never_conflicts_with_itself(file: Path) -> None:
    with opened(file, os.O_RDWR) as one, opened(file, os.O_RDWR) as two:
        lock(one, WRITE)
        lock(two, WRITE)
        assert request(two, fcntl.F_GETLK, Lock(WRITE)).kind == NONE


def test_locks_end_when_any_descriptor_of_the_file_is_closed(file: Path) -> None:
    with opened(file, os.O_RDWR) as fd:
        lock(fd, WRITE)
        assert not elsewhere(file, WRITE)
        os.close(os.open(file, os.O_RDONLY))
        assert elsewhere(file, WRITE)


def test_a_child_does_not_inherit_locks(file: Path) -> None:
    with opened(file, os.O_RDWR) as fd:
        lock(fd, WRITE)
        with Other(lambda _: lock(fd, WRITE)) as child, fails(*REFUSED):
            child.result()
        assert not elsewhere(file, WRITE)


def test_locks_end_with_their_process(file: Path) -> None:
    with holder(file, WRITE) as other:
        assert not elsewhere(file, READ)
        os.kill(other.pid, signal.SIGKILL)
    assert elsewhere(file, WRITE)


@pytest.mark.parametrize(
    ("start", "length", "granted"),
    [
        (0, 10, True),
        (0, 11, False),
        (10, 1, False),
        (19, 1, False),
        (20, 0, True),
        (19, 0, False),
        (5, 100, False),
        (0, 0, False),
    ],
)
def test_only_the_locked_bytes_are_locked(
    file: Path, start: int, length: int, granted: bool
) -> None:
    with opened(file, os.O_RDWR) as fd:
        lock(fd, WRITE, 10, 10)
        assert elsewhere(file, WRITE, start, length) == granted


def test_unlocking_the_middle_splits_a_lock(file: Path) -> None:
    with opened(file, os.O_RDWR) as fd:
        lock(fd, WRITE, 0, 100)
        lock(fd, NONE, 40, 20)
        assert elsewhere(file, WRITE, 40, 20)
        assert not elsewhere(file, WRITE, 39, 1)
        assert not elsewhere(file, WRITE, 60, 1)

        def found(_: Link) -> list[Lock]:
            with opened(file, os.O_RDWR) as other:
                return [request(other, fcntl.F_GETLK, Lock(WRITE, at, 1)) for at in (0, 70)]

        with Other(found) as other:
            first, second = other.result()
    assert first == Lock(WRITE, 0, 40, os.getpid())
    assert second == Lock(WRITE, 60, 40, os.getpid())


def test_a_lock_changes_kind_in_a_part(file: Path) -> None:
    with opened(file, os.O_RDWR) as fd:
        lock(fd, WRITE, 0, 100)
        lock(fd, READ, 40, 20)
        assert elsewhere(file, READ, 40, 20)
        assert not elsewhere(file, WRITE, 40, 20)
        assert not elsewhere(file, READ, 0, 40)
        assert not elsewhere(file, READ, 60, 1)


def test_a_read_lock_becomes_a_write_lock_once_it_is_alone(file: Path) -> None:
    with opened(file, os.O_RDWR) as fd, holder(file, READ) as other:
        lock(fd, READ)
        with fails(*REFUSED):
            lock(fd, WRITE)
        assert not elsewhere(file, WRITE)  # the refused change left the read lock
        other.say()
        other.result()
        lock(fd, WRITE)
        assert not elsewhere(file, READ)


def test_a_write_lock_that_becomes_a_read_lock_lets_readers_in(file: Path) -> None:
    with opened(file, os.O_RDWR) as fd:
        lock(fd, WRITE)
        assert not elsewhere(file, READ)
        lock(fd, READ)
        assert elsewhere(file, READ)
        assert not elsewhere(file, WRITE)


def test_getlk_names_the_holder_and_its_range(file: Path) -> None:
    with opened(file, os.O_RDWR) as fd, holder(file, READ, 100, 50) as other:
        assert request(fd, fcntl.F_GETLK, Lock(READ)).kind == NONE
        assert request(fd, fcntl.F_GETLK, Lock(WRITE)) == Lock(READ, 100, 50, other.pid)
        assert request(fd, fcntl.F_GETLK, Lock(WRITE, 150)).kind == NONE


def test_ranges_may_be_counted_from_position_and_end_and_backwards(file: Path) -> None:
    with opened(file, os.O_RDWR) as fd:
        os.lseek(fd, 100, os.SEEK_SET)
        request(fd, fcntl.F_SETLK, Lock(WRITE, 10, 5, whence=os.SEEK_CUR))
        request(fd, fcntl.F_SETLK, Lock(WRITE, -10, 5, whence=os.SEEK_END))
        request(fd, fcntl.F_SETLK, Lock(WRITE, 500, -50))
        for start, length in ((110, 5), (990, 5), (450, 50)):
            assert not elsewhere(file, WRITE, start, 1)
            assert not elsewhere(file, WRITE, start + length - 1, 1)
            assert elsewhere(file, WRITE, start - 1, 1)
            assert elsewhere(file, WRITE, start + length, 1)


def test_a_lock_may_lie_behind_the_end_and_reach_to_the_last_offset(file: Path) -> None:
    with opened(file, os.O_RDWR) as fd:
        lock(fd, WRITE, (1 << 63) - 2, 1)
        lock(fd, WRITE, 1 << 40, 0)
        assert not elsewhere(file, READ, (1 << 63) - 1, 0)
        assert elsewhere(file, READ, 0, 1 << 40)


def test_a_senseless_lock_is_invalid(file: Path) -> None:
    with opened(file, os.O_RDWR) as fd:
        with fails(EINVAL):
            lock(fd, WRITE, -1, 10)
        with fails(EINVAL):
            lock(fd, WRITE, 10, -11)
        with fails(EINVAL):
            request(fd, fcntl.F_SETLK, Lock(WRITE, whence=9))


def test_a_lock_needs_a_descriptor_open_for_its_kind(file: Path) -> None:
    with opened(file, os.O_RDONLY) as reader, opened(file, os.O_WRONLY) as writer:
        with fails(EBADF):
            lock(reader, WRITE)
        with fails(EBADF):
            lock(writer, READ)
        lock(reader, READ, 0, 10)
        lock(writer, WRITE, 10, 10)


def waiter(file: Path, kind: int = WRITE, start: int = 0, length: int = 0) -> Other:
    """A process that waits for a lock.  SIGUSR1 interrupts it."""

    def wait(link: Link) -> str:
        signal.signal(signal.SIGUSR1, lambda *_: None)
        with opened(file, os.O_RDWR) as fd:
            link.say()
            request(fd, fcntl.F_SETLKW, Lock(kind, start, length))
        return "granted"

    other = Other(wait)
    other.hear()
    return other


def test_a_waiting_lock_is_granted_when_the_other_is_given_up(file: Path) -> None:
    with opened(file, os.O_RDWR) as fd:
        lock(fd, WRITE, 0, 10)
        with waiter(file, WRITE, 5, 1) as other:
            assert not other.finished_within(0.1)
            lock(fd, NONE, 0, 5)
            assert not other.finished_within(0.1)
            lock(fd, NONE, 5, 5)
            assert other.result() == "granted"


def test_a_waiting_lock_is_granted_when_the_holder_dies(file: Path) -> None:
    with holder(file, WRITE) as dying, waiter(file, READ) as other:
        assert not other.finished_within(0.1)
        os.kill(dying.pid, signal.SIGKILL)
        assert other.result() == "granted"


def test_several_waiting_readers_are_granted_together(file: Path) -> None:
    with opened(file, os.O_RDWR) as fd:
        lock(fd, WRITE)
        with waiter(file, READ) as one, waiter(file, READ) as two, waiter(file, READ) as three:
            assert not one.finished_within(0.05)
            lock(fd, NONE)
            assert [other.result() for other in (one, two, three)] == ["granted"] * 3


def interrupt(other: Other) -> None:
    """Signal until the call has ended: the first may come before it has begun."""
    until = time.monotonic() + 5
    while not other.finished_within(0.05):
        assert time.monotonic() < until, "a waiting lock does not hear signals"
        os.kill(other.pid, signal.SIGUSR1)


def test_a_waiting_lock_is_interrupted_by_a_signal(file: Path) -> None:
    with opened(file, os.O_RDWR) as fd:
        lock(fd, WRITE)
        with waiter(file) as other:
            assert not other.finished_within(0.1)
            interrupt(other)
            with fails(EINTR):
                other.result()
        lock(fd, NONE)
        assert elsewhere(file, WRITE)  # the interrupted wait left nothing behind


def test_a_waiting_process_can_be_killed(file: Path) -> None:
    with opened(file, os.O_RDWR) as fd:
        lock(fd, WRITE)
        with waiter(file) as other:
            assert not other.finished_within(0.1)
            os.kill(other.pid, signal.SIGKILL)
            assert other.finished_within(2)
        lock(fd, NONE)
        assert elsewhere(file, WRITE)


def test_two_processes_that_wait_for_each_other_are_a_deadlock(file: Path) -> None:
    def take_second_then_first(link: Link) -> None:
        with opened(file, os.O_RDWR) as fd:
            lock(fd, WRITE, 1, 1)
            link.say()
            request(fd, fcntl.F_SETLKW, Lock(WRITE, 0, 1))

    with opened(file, os.O_RDWR) as fd:
        lock(fd, WRITE, 0, 1)
        with Other(take_second_then_first) as other:
            other.hear()
            assert not other.finished_within(0.1)
            with fails(EDEADLK):
                request(fd, fcntl.F_SETLKW, Lock(WRITE, 1, 1))
            lock(fd, NONE, 0, 1)
            other.result()


def test_description_locks_belong_to_the_opening_and_not_to_the_process(file: Path) -> None:
    with opened(file, os.O_RDWR) as one, opened(file, os.O_RDWR) as two:
        ofd_lock(one, WRITE, 0, 10)
        with fails(*REFUSED):
            ofd_lock(two, READ, 5, 1)
        ofd_lock(two, WRITE, 10, 10)
        assert request(two, fcntl.F_OFD_GETLK, Lock(WRITE)) == Lock(WRITE, 0, 10, -1)


def test_description_locks_outlive_other_descriptors_and_end_with_the_last(file: Path) -> None:
    fd = os.open(file, os.O_RDWR)
    ofd_lock(fd, WRITE)
    os.close(os.open(file, os.O_RDWR))
    duplicate = os.dup(fd)
    os.close(fd)
    assert not elsewhere(file, READ)
    os.close(duplicate)
    assert elsewhere(file, WRITE)


def test_description_locks_are_shared_with_a_child(file: Path) -> None:
    with opened(file, os.O_RDWR) as fd:
        ofd_lock(fd, WRITE)
        with Other(lambda _: ofd_lock(fd, READ)) as child:
            child.result()
        assert elsewhere(file, READ)
        assert not elsewhere(file, WRITE)


def test_description_locks_conflict_with_those_of_processes(file: Path) -> None:
    with opened(file, os.O_RDWR) as one, opened(file, os.O_RDWR) as two:
        ofd_lock(one, WRITE, 0, 10)
        with fails(*REFUSED):
            lock(two, WRITE, 0, 10)
        lock(two, WRITE, 20, 10)
        with fails(*REFUSED):
            ofd_lock(one, READ, 20, 10)


def test_a_description_lock_request_must_not_name_a_process(file: Path) -> None:
    with opened(file, os.O_RDWR) as fd, fails(EINVAL):
        request(fd, fcntl.F_OFD_SETLK, Lock(WRITE, pid=os.getpid()))


def test_a_waiting_description_lock_is_granted(file: Path) -> None:
    def wait(link: Link) -> str:
        with opened(file, os.O_RDWR) as fd:
            link.say()
            request(fd, fcntl.F_OFD_SETLKW, Lock(WRITE))
        return "granted"

    with opened(file, os.O_RDWR) as fd:
        ofd_lock(fd, WRITE)
        with Other(wait) as other:
            other.hear()
            assert not other.finished_within(0.1)
            ofd_lock(fd, NONE)
            assert other.result() == "granted"


@pytest.mark.parametrize(
    ("mine", "theirs", "granted"),
    [
        (fcntl.LOCK_SH, fcntl.LOCK_SH, True),
        (fcntl.LOCK_SH, fcntl.LOCK_EX, False),
        (fcntl.LOCK_EX, fcntl.LOCK_SH, False),
        (fcntl.LOCK_EX, fcntl.LOCK_EX, False),
    ],
    ids=["shared shared", "shared exclusive", "exclusive shared", "exclusive exclusive"],
)
def test_flock_is_between_openings_even_of_one_process(
    file: Path, mine: int, theirs: int, granted: bool
) -> None:
    with opened(file) as one, opened(file) as two:
        whole_file_lock(one, mine)
        if granted:
            whole_file_lock(two, theirs | fcntl.LOCK_NB)
            return
        with fails(EAGAIN):
            whole_file_lock(two, theirs | fcntl.LOCK_NB)
        whole_file_lock(one, fcntl.LOCK_UN)
        whole_file_lock(two, theirs | fcntl.LOCK_NB)


def test_flock_is_shared_by_duplicates_and_children_and_ends_with_the_last(file: Path) -> None:
    with opened(file) as other:
        fd = os.open(file, os.O_RDONLY)
        whole_file_lock(fd, fcntl.LOCK_EX)
        duplicate = os.dup(fd)
        os.close(fd)
        with fails(EAGAIN):
            whole_file_lock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
        with Other(lambda _: whole_file_lock(duplicate, fcntl.LOCK_SH | fcntl.LOCK_NB)) as child:
            child.result()
        whole_file_lock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
        os.close(duplicate)
        whole_file_lock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_closing_another_opening_leaves_a_flock(file: Path) -> None:
    with opened(file) as fd, opened(file) as other:
        whole_file_lock(fd, fcntl.LOCK_EX)
        os.close(os.open(file, os.O_RDWR))
        with fails(EAGAIN):
            whole_file_lock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)


def test_flock_converts_between_shared_and_exclusive(file: Path) -> None:
    with opened(file) as one, opened(file) as two:
        whole_file_lock(one, fcntl.LOCK_EX)
        whole_file_lock(one, fcntl.LOCK_SH)
        whole_file_lock(two, fcntl.LOCK_SH | fcntl.LOCK_NB)
        with fails(EAGAIN):
            whole_file_lock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
        whole_file_lock(two, fcntl.LOCK_UN)
        whole_file_lock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)


def waiting_flock(file: Path) -> Other:
    def wait(link: Link) -> str:
        signal.signal(signal.SIGUSR1, lambda *_: None)
        with opened(file) as fd:
            link.say()
            whole_file_lock(fd, fcntl.LOCK_EX)
        return "granted"

    other = Other(wait)
    other.hear()
    return other


def test_a_waiting_flock_is_granted(file: Path) -> None:
    with opened(file) as fd:
        whole_file_lock(fd, fcntl.LOCK_EX)
        with waiting_flock(file) as other:
            assert not other.finished_within(0.1)
            whole_file_lock(fd, fcntl.LOCK_UN)
            assert other.result() == "granted"


def test_a_waiting_flock_is_interrupted_by_a_signal(file: Path) -> None:
    with opened(file) as fd, opened(file) as free:
        whole_file_lock(fd, fcntl.LOCK_EX)
        with waiting_flock(file) as other:
            assert not other.finished_within(0.1)
            interrupt(other)
            with fails(EINTR):
                other.result()
        whole_file_lock(fd, fcntl.LOCK_UN)
        whole_file_lock(free, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_flock_and_record_locks_do_not_see_each_other(file: Path) -> None:
    with opened(file, os.O_RDWR) as fd:
        whole_file_lock(fd, fcntl.LOCK_EX)
        assert elsewhere(file, WRITE)


def test_flock_works_on_a_directory(here: Path) -> None:
    with opened(here) as one, opened(here) as two:
        whole_file_lock(one, fcntl.LOCK_EX)
        with fails(EAGAIN):
            whole_file_lock(two, fcntl.LOCK_SH | fcntl.LOCK_NB)


def test_locks_are_on_the_file_and_not_on_its_name(here: Path, file: Path) -> None:
    os.link(file, here / "other")
    with opened(file, os.O_RDWR) as fd:
        lock(fd, WRITE)
        assert not elsewhere(here / "other", READ)
        os.rename(file, here / "moved")
        assert not elsewhere(here / "moved", READ)
        make(file)
        assert elsewhere(file, WRITE)


def test_locks_work_on_a_file_without_a_name(file: Path) -> None:
    with opened(file, os.O_RDWR) as one, opened(file, os.O_RDWR) as two:
        os.unlink(file)
        ofd_lock(one, WRITE)
        with fails(*REFUSED):
            ofd_lock(two, READ)
        os.ftruncate(one, 0)
        ofd_lock(one, NONE)
        ofd_lock(two, WRITE)
