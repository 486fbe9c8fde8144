"""LevelDB as a `Store`: right bytes or a named fault, whatever happens to the disk."""

import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mountfs.errors import Fault, FsError
from mountfs.kv.leveldb import LevelStore
from mountfs.types import KIB

END = b"\xff" * 4


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "kv"


def opened(path: Path, **options: int) -> closing[LevelStore]:
    return closing(LevelStore(path, create=True, **options))


@contextmanager
def fails(fault: Fault, *words: str) -> Iterator[None]:
    with pytest.raises(FsError) as caught:
        yield
    assert caught.value.fault is fault, caught.value
    for word in words:
        assert word in str(caught.value)


def value(number: int, size: int = 1000) -> bytes:
    return (b"%08d" % number * (size // 8 + 1))[:size]


def rows(numbers: range, size: int = 1000) -> dict[bytes, bytes]:
    return {b"%08d" % number: value(number, size) for number in numbers}


# As a store.


@settings(max_examples=20)
@given(
    batches=st.lists(
        st.dictionaries(st.binary(max_size=2), st.none() | st.binary(max_size=3), max_size=6),
        max_size=8,
    ),
    start=st.binary(max_size=2),
    stop=st.binary(max_size=2),
)
def test_it_is_a_sorted_dict_that_survives_closing(tmp_path_factory, batches, start, stop):
    path = tmp_path_factory.mktemp("store") / "kv"
    model: dict[bytes, bytes | None] = {}
    with opened(path) as store:
        for changes in batches:
            store.write(changes, sync=False)
            model.update(changes)
    expected = sorted((key, value) for key, value in model.items() if value is not None)
    with opened(path) as store:
        assert list(store.scan(b"", END)) == expected
        assert list(store.scan(start, stop)) == [row for row in expected if start <= row[0] < stop]
        assert all(store.get(key) == model[key] for key in model)
    shutil.rmtree(path)


def test_a_scan_shows_the_moment_of_the_call(path):
    before = rows(range(3000), 10)
    with opened(path) as store:
        store.write(before, sync=False)
        scan, never_begun, small = (
            store.scan(b"", END),
            store.scan(b"", END),
            store.scan(b"00000001", b"00000003"),
        )
        next(scan)
        store.write({**dict.fromkeys(before), b"new": b""}, sync=False)
        assert [key for key, _ in scan] == list(before)[1:]
        assert [key for key, _ in small] == [b"00000001", b"00000002"]
        assert list(store.scan(b"", END)) == [(b"new", b"")]
        del never_begun


def test_threads_read_while_others_write(path):
    with opened(path, write_buffer_bytes=64 * KIB) as store:
        store.write(rows(range(500)), sync=False)
        failed = []
        stop = threading.Event()

        def reader() -> None:
            while not stop.is_set():
                found = [store.get(b"%08d" % number) for number in range(0, 500, 50)]
                if found != [value(number) for number in range(0, 500, 50)]:
                    failed.append(found)
                if len(list(store.scan(b"00000000", b"00000500"))) != 500:
                    failed.append("scan")

        threads = [threading.Thread(target=reader) for _ in range(3)]
        for thread in threads:
            thread.start()
        for number in range(500, 1500, 20):
            store.write(rows(range(number, number + 20)), sync=False)
        stop.set()
        for thread in threads:
            thread.join()
        assert not failed


# What can be wrong when it is opened.


def test_a_missing_database_is_refused_unless_it_is_to_be_made(path):
    with fails(Fault.BAD_HOME, str(path), "no database"):
        LevelStore(path)
    path.mkdir()
    with fails(Fault.BAD_HOME, "no database"):
        LevelStore(path)
    LevelStore(path, create=True).close()
    LevelStore(path).close()


def test_a_database_that_is_in_use_is_refused(path):
    holder = (
        "import sys, plyvel\n"
        "db = plyvel.DB(sys.argv[1], create_if_missing=True)\n"
        "print('open', flush=True)\n"
        "sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", holder, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        assert process.stdout is not None and process.stdout.readline() == b"open\n"
        with fails(Fault.BAD_HOME, str(path), "in use"):
            LevelStore(path)
        assert process.stdin is not None
        process.stdin.close()
    with opened(path), fails(Fault.BAD_HOME, "in use"):
        LevelStore(path)  # by ourselves


def test_a_database_without_its_head_is_not_taken_for_an_empty_one(path):
    with opened(path) as store:
        store.write(rows(range(10)), sync=True)
    (path / "CURRENT").unlink()
    with fails(Fault.CORRUPT, str(path / "CURRENT")):
        LevelStore(path, create=True)


def test_a_missing_table_is_named(path):
    with opened(path) as store:
        store.write(rows(range(10)), sync=True)
    LevelStore(path).close()  # turns the log into a table
    (table,) = path.glob("*.ldb")
    table.unlink()
    with fails(Fault.CORRUPT, f"{table}: missing"):
        LevelStore(path)


# Damage.


def test_damage_is_named_and_never_served(path):
    model = rows(range(2000), 100)
    with opened(path) as store:
        store.write(model, sync=True)
    LevelStore(path).close()
    (table,) = path.glob("*.ldb")
    good = table.read_bytes()
    for position in range(3, len(good), len(good) // 40):
        table.write_bytes(flipped(good, position))
        named = []
        try:
            with closing(LevelStore(path)) as store:
                for key in list(model)[::50]:
                    try:
                        assert store.get(key) == model[key]
                    except FsError as error:
                        named.append(error)
                try:
                    assert dict(store.scan(b"", END)) == model
                except FsError as error:
                    named.append(error)
        except FsError as error:
            named.append(error)
        for error in named:
            assert error.fault is Fault.CORRUPT
            assert f"{table}: at offset" in str(error)
        assert named or position > len(good) * 0.9  # LevelDB does without a damaged filter
    table.write_bytes(good)
    with closing(LevelStore(path)) as store:
        assert dict(store.scan(b"", END)) == model


def flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1 :]


def test_a_torn_log_ends_behind_its_last_whole_batch(path, tmp_path):
    with opened(path) as store:
        for number in range(30):
            store.write(rows(range(number, number + 1), 2500), sync=True)
        (log,) = path.glob("*.log")
        image = log.read_bytes()
        shutil.copytree(path, tmp_path / "crashed")
    crashed = tmp_path / "crashed"
    for size in range(0, len(image), 6007):
        for torn in (image[:size], image[:size].ljust(len(image), b"\0")):
            copy = tmp_path / "copy"
            shutil.copytree(crashed, copy)
            (copy / log.name).write_bytes(torn)
            with closing(LevelStore(copy)) as store:
                found = dict(store.scan(b"", END))
            assert found == rows(range(len(found)), 2500)
            assert len(found) >= size // 2600 - 1
            shutil.rmtree(copy)


def test_a_log_with_a_hole_is_refused(path):
    with opened(path) as store:
        for number in range(30):
            store.write(rows(range(number, number + 1), 2500), sync=True)
    (log,) = path.glob("*.log")
    image = log.read_bytes()
    log.write_bytes(image[:4096] + bytes(4096) + image[8192:])  # LevelDB would skip it
    with fails(Fault.CORRUPT, f"{log}: at offset 25"):
        LevelStore(path)


# No space.


@contextmanager
def full_disk(limit_bytes: int) -> Iterator[None]:
    """No file can grow beyond `limit_bytes`: the kernel writes what fits, then says EFBIG."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_refuses_writes_and_nothing_else(path):
    model = rows(range(20))
    with opened(path) as store:
        store.write(model, sync=True)
        with full_disk(100 * KIB):
            for _ in range(3):
                with fails(Fault.NO_SPACE, str(path)):
                    store.write({b"big": bytes(200_000)}, sync=True)
                assert dict(store.scan(b"", END)) == model
                assert store.get(b"00000007") == value(7)
        more = rows(range(20, 60))
        store.write(more, sync=True)
        assert dict(store.scan(b"", END)) == {**model, **more}
    with opened(path) as store:
        assert dict(store.scan(b"", END)) == {**model, **more}


def test_a_write_that_failed_is_not_there_after_opening_again(path):
    model = rows(range(20))
    with opened(path) as store:
        store.write(model, sync=True)
        with full_disk(100 * KIB), fails(Fault.NO_SPACE):
            store.write({b"big": bytes(200_000)}, sync=True)
    with opened(path) as store:
        assert dict(store.scan(b"", END)) == model


def test_a_scan_goes_on_while_a_failed_write_is_repaired(path, monkeypatch):
    monkeypatch.setattr("mountfs.kv.leveldb._REOPEN_WAIT_SECONDS", 0.01)
    model = rows(range(1000), 50)
    with opened(path) as store:
        store.write(model, sync=True)
        scan = store.scan(b"", END)
        found = [next(scan)]
        with full_disk(150 * KIB), fails(Fault.NO_SPACE):
            store.write({b"big": bytes(300_000)}, sync=True)
        with fails(Fault.NO_SPACE, "until those who read are done"):
            store.write({b"small": b""}, sync=True)
        found.extend(scan)
        assert dict(found) == model
        store.write({b"small": b""}, sync=True)
        assert store.get(b"small") == b""
