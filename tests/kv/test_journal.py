"""The local log keeps its promises on a disk that loses pages, flips bits, fills up and fails."""

import errno
import os
import random
import resource
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mountfs.errors import Fault, FsError
from mountfs.kv.journal import Journal
from mountfs.kv.journal_format import HEADER_BYTES, RECORD_HEADER_BYTES, run
from mountfs.types import MIB

PAGE = 4096
SEGMENT = 5 * PAGE  # a page of header, four of records


def small(directory: Path, **options: int) -> Journal:
    return Journal(directory, segment_bytes=SEGMENT, **options)


def contents(log: Journal) -> dict[int, bytes]:
    return dict(log.replay(log.first_index - 1))


def fill(log: Journal, count: int, size: int = 1000) -> None:
    for _ in range(count):
        log.append(log.last_index + 1, payload(log.last_index + 1, size))


def payload(index: int, size: int) -> bytes:
    return (index.to_bytes(8, "big") * (size // 8 + 1))[:size]


@contextmanager
def fails(fault: Fault, *words: str) -> Iterator[None]:
    with pytest.raises(FsError) as caught:
        yield
    assert caught.value.fault is fault, caught.value
    for word in words:
        assert word in str(caught.value)


def die(directory: Path) -> None:
    """What the end of the process does to the files it has open in `directory`."""
    for entry in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{entry}")
        except FileNotFoundError:
            continue
        if target.startswith(f"{directory}/"):
            os.close(int(entry))


# What it is for.


def test_what_was_appended_is_there_after_opening_again(tmp_path):
    with closing(small(tmp_path)) as log:
        log.append(1, b"one")
        log.append(2, b"")
        log.append_many(3, [b"three", b"four"])
        assert (log.first_index, log.last_index, log.synced_index) == (1, 4, 0)
        assert log.sync() == 4 == log.synced_index
    with closing(small(tmp_path)) as log:
        assert list(log.replay(1)) == [(2, b""), (3, b"three"), (4, b"four")]
        assert (log.first_index, log.last_index, log.synced_index) == (1, 4, 4)
        log.append(5, b"five")
        assert list(log.replay(4)) == [(5, b"five")]


def test_the_death_of_the_process_loses_nothing(tmp_path):
    log = small(tmp_path)
    fill(log, 50)
    die(tmp_path)
    with closing(small(tmp_path)) as log:
        assert contents(log) == {index: payload(index, 1000) for index in range(1, 51)}


def test_records_state_no_more_than_they_are_told_to(tmp_path):
    log = small(tmp_path)
    fill(log, 5)
    assert log.sync(stated=3) == 5
    assert log.synced_index == 5
    fill(log, 1)
    die(tmp_path)
    log = small(tmp_path)
    assert log.last_index == 6
    assert log.durable_before == 3
    fill(log, 1)
    log.sync()
    fill(log, 1)
    die(tmp_path)
    with closing(small(tmp_path)) as log:
        assert log.durable_before == 7


def test_an_empty_log_may_begin_anywhere(tmp_path):
    with closing(small(tmp_path)) as log:
        assert (log.first_index, log.last_index) == (1, 0)
        log.append(500, b"first")
        with pytest.raises(AssertionError):
            log.append(502, b"not the next")
    with closing(small(tmp_path)) as log:
        assert (log.first_index, log.last_index) == (500, 500)


def test_a_record_may_be_as_large_as_a_segment_and_no_larger(tmp_path):
    with closing(small(tmp_path)) as log:
        largest = os.urandom(log.record_bytes_max)
        log.append(1, largest)
        log.append(2, largest)
        with pytest.raises(AssertionError):
            log.append(3, largest + b"x")
        assert contents(log) == {1: largest, 2: largest}


def test_many_records_that_do_not_fit_go_to_the_next_segment_together(tmp_path):
    with closing(small(tmp_path)) as log:
        fill(log, 10)
        log.append_many(11, [bytes(1000)] * 15)
        assert log.last_index == 25
        assert [index for index, _ in log.replay(0)] == list(range(1, 26))


def test_a_released_segment_is_used_again(tmp_path):
    with closing(small(tmp_path, keep_spare=1)) as log:
        fill(log, 100)
        log.sync()
        before = log.size_bytes
        log.release(90)
        assert 80 < log.first_index <= 91
        assert log.size_bytes < before
        assert log.wants_prepare
        log.prepare()
        assert not log.wants_prepare
        files = len(list(tmp_path.iterdir()))
        for _ in range(20):
            fill(log, 10)
            log.sync()
            log.release(log.last_index)
            log.prepare()
        assert len(list(tmp_path.iterdir())) <= files
        expected = contents(log)
    with closing(small(tmp_path)) as log:
        assert contents(log) == expected
        assert log.last_index == 300


def test_a_segment_whose_successor_is_not_on_disk_is_not_released(tmp_path):
    with closing(small(tmp_path)) as log:
        fill(log, 14)
        log.sync()
        fill(log, 10)
        log.release(24)
        assert log.first_index == 1
        log.sync()
        log.release(24)
        assert log.first_index > 1


def test_what_is_cut_does_not_come_back(tmp_path):
    log = small(tmp_path)
    fill(log, 60)
    log.sync()
    log.cut(20)
    assert (log.last_index, log.synced_index) == (20, 20)
    # Of the same size, so that the old record 22 would lie right behind.
    log.append(21, bytes(1000))
    die(tmp_path)
    with closing(small(tmp_path)) as log:
        assert log.last_index == 21
        assert contents(log)[21] == bytes(1000)


def test_a_log_that_was_marked_as_durable_can_be_cut(tmp_path):
    with closing(small(tmp_path)) as log:
        fill(log, 60)
    log = small(tmp_path)
    log.cut(20)
    die(tmp_path)
    with closing(small(tmp_path)) as log:
        assert log.last_index == 20


def test_a_log_can_begin_anew(tmp_path):
    log = small(tmp_path)
    fill(log, 60)
    log.sync()
    log.release(40)  # released segments are readable still
    log.restart(100)
    assert (log.first_index, log.last_index, contents(log)) == (101, 100, {})
    log.append(101, b"new")
    die(tmp_path)
    with closing(small(tmp_path)) as log:
        assert contents(log) == {101: b"new"}


def test_a_log_that_begins_too_late_is_refused(tmp_path):
    with closing(small(tmp_path)) as log:
        log.append(10, b"ten")
        with fails(Fault.CORRUPT, "begins with record 10", "6 is needed"):
            log.replay(5)


def test_another_segment_size_applies_from_the_next_segment_on(tmp_path):
    with closing(small(tmp_path)) as log:
        fill(log, 20)
        log.prepare()
    with closing(Journal(tmp_path, segment_bytes=3 * SEGMENT)) as log:
        fill(log, 20)
        log.append(41, bytes(2 * SEGMENT))
        expected = contents(log)
    with closing(small(tmp_path)) as log:
        assert contents(log) == expected
        assert log.last_index == 41


def test_a_sync_runs_while_others_append(tmp_path):
    with closing(Journal(tmp_path, segment_bytes=1 << 20)) as log:
        done = threading.Event()
        seen = []

        def worker() -> None:
            while not done.is_set():
                seen.append(log.sync())
                log.release(seen[-1] - 3000)
                log.prepare()

        thread = threading.Thread(target=worker)
        thread.start()
        try:
            fill(log, 20_000, 200)
        finally:
            done.set()
            thread.join()
        assert seen == sorted(seen)
        assert log.sync() == 20_000
        log.release(17_000)
        log.prepare()
        assert log.first_index > 1
        expected = contents(log)
    with closing(Journal(tmp_path, segment_bytes=1 << 20)) as log:
        assert {i: r for i, r in contents(log).items() if i in expected} == expected


# What can be wrong with the disk.


def test_a_sync_of_nothing_asks_nothing_of_the_disk(tmp_path, monkeypatch):
    with closing(small(tmp_path)) as log:
        fill(log, 3)
        log.sync()
        monkeypatch.setattr(os, "fdatasync", lambda fd: pytest.fail("nothing was to be synced"))
        assert log.sync() == 3
        monkeypatch.undo()


def test_a_failed_sync_is_never_forgotten(tmp_path, monkeypatch):
    log = small(tmp_path)
    fill(log, 3)

    def broken(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fdatasync", broken)
    with fails(Fault.DEVICE, "log-0000000000000001.seg", "Input/output error"):
        log.sync()
    monkeypatch.undo()
    with fails(Fault.DEVICE):
        log.sync()
    with fails(Fault.DEVICE):
        log.append(4, b"")
    with fails(Fault.DEVICE):
        log.append_many(4, [b""])
    assert log.synced_index == 0
    log.close()


@contextmanager
def full_disk(limit_bytes: int) -> Iterator[None]:
    """No file can grow beyond `limit_bytes`: the kernel writes what fits, then says EFBIG."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_without_space_for_a_segment_the_log_stays_as_it_is(tmp_path):
    with closing(small(tmp_path, keep_spare=0)) as log:
        fill(log, 15)
        before = contents(log)
        with full_disk(SEGMENT - 1):
            with fails(Fault.NO_SPACE):
                fill(log, 1, 2000)
            with fails(Fault.NO_SPACE):
                fill(log, 1, 2000)
            assert contents(log) == before
            assert not (tmp_path / "new.seg").exists()
            log.append(16, b"fits")
        fill(log, 1, 2000)
        assert log.last_index == 17


def test_a_write_that_fails_half_way_leaves_nothing_behind(tmp_path, monkeypatch):
    log = small(tmp_path)
    log.append(1, b"kept")
    real = os.pwrite
    calls = []

    def half(fd: int, data: bytes, offset: int) -> int:
        calls.append(offset)
        if len(calls) == 1:
            return real(fd, data[:150], offset)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", half)
    with fails(Fault.NO_SPACE, "No space left"):
        log.append_many(2, [bytes(30), bytes(30), bytes(100)])
    monkeypatch.undo()
    assert log.last_index == 1
    log.append(2, bytes(30))  # of the same size as the first of those that failed
    die(tmp_path)
    with closing(small(tmp_path)) as log:
        assert contents(log) == {1: b"kept", 2: bytes(30)}


def test_damage_in_what_was_durable_is_named(tmp_path):
    with closing(small(tmp_path)) as log:
        fill(log, 40)
    path = tmp_path / "log-0000000000000002.seg"
    good = path.read_bytes()
    for position in range(HEADER_BYTES, HEADER_BYTES + 3 * PAGE, 97):
        path.write_bytes(flipped(good, position))
        with fails(Fault.CORRUPT, str(path), "offset"):
            small(tmp_path)
    path.write_bytes(good)
    small(tmp_path).close()


def test_damage_to_the_very_last_record_is_named_after_a_clean_close(tmp_path):
    with closing(small(tmp_path)) as log:
        log.append(1, b"only")
    path = tmp_path / "log-0000000000000001.seg"
    path.write_bytes(flipped(path.read_bytes(), HEADER_BYTES + 30))
    with fails(Fault.CORRUPT, f"{path}: at offset 4096", "record 1"):
        small(tmp_path)


def test_a_damaged_header_is_named(tmp_path):
    with closing(small(tmp_path)) as log:
        fill(log, 40)
        log.prepare()
    for path in list(tmp_path.iterdir()):
        good = path.read_bytes()
        path.write_bytes(flipped(good, 20))
        with fails(Fault.CORRUPT, str(path)):
            small(tmp_path)
        path.write_bytes(good)


def test_a_missing_segment_is_named(tmp_path):
    with closing(small(tmp_path)) as log:
        fill(log, 60)
    (tmp_path / "log-0000000000000002.seg").unlink()
    with fails(Fault.CORRUPT, "log-0000000000000002.seg", "missing"):
        small(tmp_path)


def test_a_shortened_segment_is_named(tmp_path):
    with closing(small(tmp_path)) as log:
        fill(log, 5)
    path = tmp_path / "log-0000000000000001.seg"
    os.truncate(path, 9000)
    with fails(Fault.CORRUPT, str(path), "9000"):
        small(tmp_path)


def test_the_log_of_another_filesystem_is_refused(tmp_path):
    small(tmp_path).close()
    with fails(Fault.BAD_HOME, "belongs to the filesystem 0000"):
        Journal(tmp_path, home=b"sixteen bytes...", segment_bytes=SEGMENT)


def test_a_missing_directory_is_refused(tmp_path):
    with fails(Fault.BAD_HOME, "missing"):
        small(tmp_path / "nowhere")


def flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1 :]


# A disk that loses what was not synced, page by page, at any moment.


class PowerLoss(BaseException):
    """The lights go out in the middle of a call."""


@dataclass
class Disk:
    """Knows what of the files in `directory` has been synced, and can forget the rest."""

    directory: Path
    syncs_left: int | None = None
    """The power goes when this many more syncs were done."""
    names: dict[str, int] = field(default_factory=dict)
    synced: dict[int, bytes] = field(default_factory=dict)
    """Content as of the last sync, by inode."""

    def sync(self, fd: int) -> None:
        if self.syncs_left is not None:
            if self.syncs_left == 0:
                raise PowerLoss
            self.syncs_left -= 1
        target = Path(os.readlink(f"/proc/self/fd/{fd}"))
        if target == self.directory:
            self.names = {entry.name: entry.inode() for entry in os.scandir(self.directory)}
        elif target.parent == self.directory:
            self.synced[os.fstat(fd).st_ino] = target.read_bytes()

    @contextmanager
    def watch(self) -> Iterator[None]:
        with mock.patch("os.fsync", self.sync), mock.patch("os.fdatasync", self.sync):
            yield

    def lose_power(self, keep: Callable[[], bool]) -> None:
        """Of what was not synced, each page and the names stay only if `keep()` says so."""
        die(self.directory)
        now = {entry.name: entry.inode() for entry in os.scandir(self.directory)}
        written = {inode: (self.directory / name).read_bytes() for name, inode in now.items()}
        left = {}
        for name, inode in (now if keep() else self.names).items():
            old = self.synced.get(inode, b"")
            new = written.get(inode, old)
            pages = []
            for start in range(0, len(new), PAGE):
                before, after = old[start : start + PAGE], new[start : start + PAGE]
                before = before.ljust(len(after), b"\0")
                pages.append(after if before == after or keep() else before)
            left[name] = b"".join(pages)
        for name in now:
            os.unlink(self.directory / name)
        for name, data in left.items():
            (self.directory / name).write_bytes(data)
        self.names = {entry.name: entry.inode() for entry in os.scandir(self.directory)}
        self.synced = {inode: left[name] for name, inode in self.names.items()}
        self.syncs_left = None


def check_recovery(log: Journal, model: dict[int, bytes], durable: int) -> None:
    """The log is a prefix of `model` that has at least what was durable; the model becomes that.

    Released records may be there or not.
    """
    found = contents(log)
    last = log.last_index
    assert durable <= last <= max(model, default=0)
    assert found == {index: record for index, record in model.items() if index in found}
    assert list(found) == list(range(log.first_index, last + 1))
    for index in [index for index in model if index > last]:
        del model[index]


@pytest.mark.parametrize("begin", [lambda log: log.restart(100), lambda log: log.cut(49)])
def test_a_new_beginning_whose_first_page_is_lost_is_no_damage(tmp_path, begin):
    disk = Disk(tmp_path)
    with disk.watch():
        log = small(tmp_path)
        log.append(50, b"")
        fill(log, 9)
        log.sync()
        begin(log)
        fill(log, 10)
        answers = iter([True, False])  # the names, the first page of records; then the others
        disk.lose_power(lambda: next(answers, True))
        with closing(small(tmp_path)) as log:
            assert (log.last_index, contents(log)) == (0, {})


steps = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(0, 6000)),
        st.tuples(st.just("append"), st.just(1000)),  # records that lie where older ones lay
        st.tuples(st.just("append_many"), st.integers(1, 8)),
        st.tuples(st.just("append_many"), st.just(8)),
        st.tuples(st.just("sync"), st.just(0)),
        st.tuples(st.just("prepare"), st.just(0)),
        st.tuples(st.just("release"), st.integers(0, 10)),
        st.tuples(st.just("cut"), st.integers(0, 30)),
        st.tuples(st.just("reopen"), st.just(0)),
        st.tuples(st.just("die"), st.just(0)),
        st.tuples(st.just("power"), st.integers(0, 6)),  # goes that many syncs later
        st.tuples(st.just("power"), st.just(0)),
    ),
    min_size=20,  # enough to fill segments
    max_size=60,
)


@settings(max_examples=300)
@given(steps=steps, seed=st.integers(0, 1 << 32).map(random.Random))
def test_a_power_loss_takes_nothing_that_was_synced_and_leaves_a_prefix_of_the_rest(steps, seed):
    directory = Path(tempfile.mkdtemp())
    try:
        _live_through(directory, [*steps, ("power", 0)], lambda: seed.random() < 0.5)
    finally:
        die(directory)
        shutil.rmtree(directory)


def _live_through(directory: Path, steps: list[tuple[str, int]], keep: Callable[[], bool]) -> None:
    disk = Disk(directory)
    model: dict[int, bytes] = {}
    released = 0
    with disk.watch():
        log = small(directory)
        for step, number in steps:
            # An empty log does not remember where it was.
            durable = log.synced_index if log.first_index <= log.synced_index else 0
            appended = log.last_index if log.first_index <= log.last_index else 0
            try:
                if step == "append":
                    index = log.last_index + 1
                    log.append(index, payload(index, number))
                    model[index] = payload(index, number)
                elif step == "append_many":
                    index = log.last_index + 1
                    records = [payload(index + k, 1000) for k in range(number)]
                    log.append_many(index, records)
                    model.update(enumerate(records, index))
                elif step == "sync":
                    assert log.sync() == log.last_index
                elif step == "prepare":
                    log.prepare()
                elif step == "release":
                    log.release(log.last_index - number)
                    released = max(released, log.first_index - 1)
                elif step == "cut":
                    after = max(log.first_index - 1, log.last_index - number)
                    durable = min(durable, after) if after >= log.first_index else 0
                    log.cut(after)
                    model = {i: record for i, record in model.items() if i <= after}
                elif step == "reopen":
                    log.close()
                    log = small(directory)
                    check_recovery(log, model, appended)
                elif step == "die":
                    die(directory)
                    log = small(directory)
                    check_recovery(log, model, appended)
                elif step == "power":
                    disk.syncs_left = number
                    if number == 0:
                        raise PowerLoss
            except PowerLoss:
                disk.lose_power(keep)
                if not disk.names:
                    assert durable == 0
                log = small(directory)
                check_recovery(log, model, durable)
                assert log.first_index <= released + 1 or not model


@settings(max_examples=200)
@given(
    sizes=st.lists(st.integers(0, 3000), min_size=2, max_size=30),
    syncs=st.sets(st.integers(1, 30), min_size=2, max_size=6),
    where=st.floats(0, 1, exclude_max=True),
    seed=st.integers(0, 1 << 32).map(random.Random),
)
def test_a_flipped_bit_in_what_a_later_record_knows_to_be_durable_is_found(
    sizes, syncs, where, seed
):
    directory = Path(tempfile.mkdtemp())
    try:
        disk = Disk(directory)
        known = durable = 0
        with disk.watch():
            log = small(directory)
            for index, size in enumerate(sizes, 1):
                log.append(index, payload(index, size))
                if index in syncs:
                    known, durable = durable, log.sync()
            disk.lose_power(lambda: seed.random() < 0.5)
            if not known:
                return
            # What the second last sync had written is known to the records of the last one.
            paths = sorted(directory.iterdir())
            images = [path.read_bytes() for path in paths]
            places = list(_places(images, known))
            number, position = places[int(where * len(places))]
            paths[number].write_bytes(flipped(images[number], position))
            with fails(Fault.CORRUPT, str(directory), "offset"):
                small(directory)
    finally:
        die(directory)
        shutil.rmtree(directory)


def _places(images: list[bytes], last: int) -> Iterator[tuple[int, int]]:
    """(file, offset) of each byte of the records up to `last`."""
    for number, data in enumerate(images):
        salt = int.from_bytes(data[12:16], "little")
        for record in run(data, salt):
            if record.index <= last:
                for position in range(record.start - RECORD_HEADER_BYTES, record.stop):
                    yield number, position


def test_records_of_the_past_are_read_back(tmp_path: Path) -> None:
    sizes = [10, MIB, 3, 2 * MIB, 100_000]
    with closing(Journal(tmp_path, segment_bytes=4 * MIB)) as log:
        for index in range(1, 41):
            log.append(index, payload(index, sizes[index % 5]))
        for first in (1, 40, 17, 16, 18, 39, 2):
            wanted = [payload(index, sizes[index % 5]) for index in range(first, 41)]
            found: list[bytes] = []
            while first + len(found) < 41:  # as far as the segment goes
                found += log.read(first + len(found), 41, 64 * MIB)
            assert found == wanted
        assert log.read(3, 41, 1) == [payload(3, sizes[3])]
        assert log.read(3, 5, 64 * MIB)[0] == payload(3, sizes[3])
        log.cut(38)
        log.append(39, b"another")
        assert log.read(38, 100, 64 * MIB)[-1] in (payload(38, sizes[3]), b"another")
        assert log.read(39, 100, 1) == [b"another"]


def test_a_damaged_record_of_the_past_is_not_read_back(tmp_path: Path) -> None:
    with closing(small(tmp_path)) as log:
        fill(log, 12)
        (segment,) = (path for path in tmp_path.iterdir() if path.name.endswith("1.seg"))
        data = bytearray(segment.read_bytes())
        data[HEADER_BYTES + 2 * (1000 + RECORD_HEADER_BYTES) + 500] ^= 1
        segment.write_bytes(data)
        assert log.read(1, 2, 10_000) == [payload(1, 1000)]
        for first in (3, 12):  # what lies behind it cannot be found any more
            with fails(Fault.CORRUPT, "record 3"):
                log.read(first, first + 1, 10_000)
