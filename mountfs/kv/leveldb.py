"""A `Store` on LevelDB.

LevelDB by itself does not do all that `Store` promises.  This module adds what is missing:

- A damaged table is named.  LevelDB says that a checksum does not match, not in which file.
- A log with a hole is refused or, when the hole is a torn end, shortened.  LevelDB would skip
  it and go on behind.
- After a write that failed for want of space LevelDB refuses all writes until it is opened again,
  and what it wrote of the batch may be in its log.  So the next write first takes that back and
  opens the database again.

Batches that are not synced are for callers that can live with losing any of them in a crash of the
machine.
"""

import contextlib
import errno
import fcntl
import itertools
import os
import re
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import plyvel

from mountfs.errors import Fault, FsError, disk_error
from mountfs.kv.base import Changes, StoreFailed
from mountfs.kv.tables import check_log, check_table, damage, read_log
from mountfs.types import MIB

BLOOM_BITS: Final = 10
"""For each key: one look-up in a hundred of a key that is not there reads a block in vain."""
_FIRST_ROWS = 64
_MORE_ROWS = 512
_REOPEN_WAIT_SECONDS = 1.0
_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)

_open_paths: set[str] = set()
"""Databases that this process has open.  A lock of fcntl does not keep a process from itself."""


class LevelStore:
    """The database in the directory `path`; `create` makes it if there is none.

    It takes about `cache_bytes` and twice `write_buffer_bytes` of memory.  Tables (2 MiB each) are
    mapped: what was read of up to `open_tables` of them counts as resident, though the kernel may
    take it back.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        create: bool = False,
        cache_bytes: int = 8 * MIB,
        write_buffer_bytes: int = 4 * MIB,
        open_tables: int = 64,
    ) -> None:
        self._path = Path(os.path.realpath(path))
        self._options = {
            "create_if_missing": create,
            "paranoid_checks": True,  # compaction and index blocks verify checksums too
            "lru_cache_size": cache_bytes,
            "write_buffer_size": write_buffer_bytes,
            "max_open_files": open_tables + 10,  # LevelDB keeps ten for itself
            "bloom_filter_bits": BLOOM_BITS,
            "compression": "snappy",
        }
        self._create = create
        self._write_buffer_bytes = write_buffer_bytes
        self._db: Any = None
        self._closed = False
        self._writing = threading.Lock()
        self._calls: list[None] = []
        """One for each call that is in the database now.  A list, for its append and pop are
        atomic.
        """
        self._scans: weakref.WeakSet[Any] = weakref.WeakSet()
        """Iterators that have more to give."""
        self._spoiled: dict[Path, int] | None = None
        """After a write that failed: how long the logs were before it."""
        self._broken: str | None = None
        """After an error of the disk nobody knows what is on it: no more writes."""
        self._damaged: Path | None = None
        """Where damage was found last."""
        if str(self._path) in _open_paths:
            raise self._locked()
        self._open()
        _open_paths.add(str(self._path))

    def get(self, key: bytes) -> bytes | None:
        db = self._enter()
        try:
            return db.get(key, verify_checksums=True)  # type: ignore[no-any-return]
        except plyvel.Error as error:
            raise self._translated(error, "read") from error
        finally:
            self._calls.pop()

    def scan(self, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Pairs with `start <= key < stop` in ascending order, as of the moment of the call."""
        db = self._enter()
        try:
            rows = db.iterator(start=start, stop=stop, verify_checksums=True)
            first = list(itertools.islice(rows, _FIRST_ROWS))
            if len(first) < _FIRST_ROWS:
                rows.close()
                return iter(first)
            self._scans.add(rows)
        except plyvel.Error as error:
            raise self._translated(error, "scan") from error
        finally:
            self._calls.pop()
        return self._scan_on(first, rows)

    def _scan_on(
        self, batch: list[tuple[bytes, bytes]], rows: Any
    ) -> Iterator[tuple[bytes, bytes]]:
        while batch:
            yield from batch
            self._calls.append(None)
            try:
                assert not self._closed, "scan of a store that is closed"
                batch = list(itertools.islice(rows, _MORE_ROWS))
                if not batch:
                    rows.close()
                    self._scans.discard(rows)
            except plyvel.Error as error:
                raise self._translated(error, "scan") from error
            finally:
                self._calls.pop()

    def write(self, changes: Changes, *, sync: bool) -> None:
        """All of `changes` or none of them.  With `sync`, on disk when it returns.

        Raises `FsError` NO_SPACE, READ_ONLY or DEVICE, and then nothing has changed.  DEVICE is
        forever: it comes again from every later write.
        """
        with self._writing:
            if self._broken is not None:
                raise FsError(Fault.DEVICE, self._broken)
            self._ensure_open()
            batch = self._db.write_batch(sync=sync)
            for key, value in changes.items():
                if value is None:
                    batch.delete(key)
                else:
                    batch.put(key, value)
            before = self._log_sizes()
            try:
                batch.write()
            except plyvel.Error as error:
                failed = self._translated(error, "write")
                if failed.fault is Fault.DEVICE:
                    self._broken = f"{failed}.  Check the disk, then mount again"
                else:
                    self._spoiled = before
                raise failed from error

    def view(self) -> "LevelView":
        """All rows as of now.  It keeps what is overwritten meanwhile on disk: close it."""
        db = self._enter()
        try:
            return LevelView(self, db, db.snapshot())
        finally:
            self._calls.pop()

    def close(self) -> None:
        """Close the database.  No scan may go on."""
        with self._writing:
            if self._closed:
                return
            self._closed = True
            db, self._db = self._db, None
            while self._calls:  # bounded by what one call takes
                time.sleep(0.001)
            if db is not None:
                db.close()
            _open_paths.discard(str(self._path))
            if self._spoiled is not None:
                self._take_back(self._spoiled)

    # Below: what LevelDB leaves to us.

    def _enter(self) -> Any:
        """The database, which stays open until the caller pops from `_calls`."""
        while True:
            self._calls.append(None)
            db = self._db
            if db is not None:
                return db
            self._calls.pop()
            with self._writing:
                self._ensure_open()

    def _ensure_open(self) -> None:
        """Open again what a failed write has spoiled.  The caller holds `_writing`."""
        assert not self._closed, "the store is closed"
        if self._spoiled is None and self._db is not None:
            return
        try:
            if self._db is not None:
                self._check_space()
                self._leave_alone()
            if self._spoiled is not None:
                self._take_back(self._spoiled)
            self._open()
        except OSError as error:
            failed = disk_error(error, f"{self._path}: opening again")
            raise StoreFailed(failed.fault, failed.detail) from error
        except FsError as error:
            raise StoreFailed(error.fault, error.detail) from error
        self._spoiled = None

    def _leave_alone(self) -> None:
        """Close the database once nobody is in it."""
        db, self._db = self._db, None
        deadline = time.monotonic() + _REOPEN_WAIT_SECONDS
        while self._calls or self._scans:
            if time.monotonic() > deadline:
                self._db = db
                raise FsError(
                    Fault.NO_SPACE,
                    f"{self._path}: a write failed; new ones wait until those who read are done",
                )
            time.sleep(0.001)
        db.close()

    def _check_space(self) -> None:
        """Opening writes what is in the logs to tables.  Without room for that, reading had better
        go on.
        """
        needed = 2 * sum(self._log_sizes().values()) + self._write_buffer_bytes
        probe = self._path / "space.probe"
        try:
            fd = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(fd, 0, needed)
            finally:
                os.close(fd)
                os.unlink(probe)
        except OSError as error:
            raise disk_error(error, f"{self._path}: {needed} bytes to open again") from error

    def _log_sizes(self) -> dict[Path, int]:
        sizes = {}
        for path in self._path.glob("*.log"):
            with contextlib.suppress(FileNotFoundError):  # a log goes once its table is written
                sizes[path] = path.stat().st_size
        return sizes

    def _take_back(self, before: dict[Path, int]) -> None:
        """Shorten the logs to what they were before the batch that failed."""
        for path in self._path.glob("*.log"):
            _shorten(path, before.get(path, 0))

    def _open(self) -> None:
        if not self._create and not self._path.is_dir():
            raise FsError(Fault.BAD_HOME, f"{self._path}: there is no database here")
        try:
            self._check_lock()
            self._check_files()
        except PermissionError as error:
            raise FsError(Fault.BAD_HOME, f"{error.filename}: permission denied") from error
        except OSError as error:
            raise disk_error(error, str(self._path)) from error
        try:
            self._db = plyvel.DB(str(self._path), **self._options)
        except plyvel.Error as error:
            raise self._translated(error, "open") from error

    def _check_lock(self) -> None:
        """Nobody else may have the database open while its logs are checked."""
        try:
            fd = os.open(self._path / "LOCK", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise self._locked() from error
            raise
        finally:
            os.close(fd)

    def _check_files(self) -> None:
        logs = sorted(self._path.glob("*.log"))
        if not (self._path / "CURRENT").exists():
            if logs or any(self._path.glob("*.ldb")):
                raise FsError(Fault.CORRUPT, f"{self._path / 'CURRENT'}: missing; {_NEXT_STEP}")
            if not self._create:
                raise FsError(Fault.BAD_HOME, f"{self._path}: there is no database here")
        newest = max((path for path in logs if path.stat().st_size), default=None)
        for path in logs:
            state = read_log(path)
            if state.damage is None:
                continue
            if state.resumes or path != newest:
                raise FsError(
                    Fault.CORRUPT, f"{path}: at offset {state.end}: {state.damage}; {_NEXT_STEP}"
                )
            # The last batch was being written when the machine stopped: nobody was told of it.
            _shorten(path, state.end)

    def _locked(self) -> FsError:
        return FsError(
            Fault.BAD_HOME, f"{self._path}: in use by another process; unmount or stop that first"
        )

    def _translated(self, error: Exception, step: str) -> FsError:
        """What an exception of plyvel is to our caller."""
        text = error.args[0] if error.args else b""
        text = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
        # "Invalid argument": a damaged block handle points behind the end of its table.
        misled = isinstance(error, plyvel.IOError) and os.strerror(errno.EINVAL) in text
        if misled and (found := self._find_damage()):
            return FsError(Fault.CORRUPT, f"{found}; {_NEXT_STEP}")
        if isinstance(error, plyvel.CorruptionError):
            where = self._find_damage() or self._named(text)
            return FsError(Fault.CORRUPT, f"{where}; {_NEXT_STEP}")
        if isinstance(error, plyvel.IOError):
            if "LOCK" in text and "lock" in text:
                return self._locked()
            for number in _ERRNOS:
                if os.strerror(number) in text:
                    return disk_error(OSError(number, os.strerror(number)), f"{self._path}: {step}")
            if step != "open" or os.strerror(errno.ENOENT) not in text:
                return FsError(Fault.DEVICE, f"{self._path}: {step}: {text}")
        if step == "open":
            found = self._find_damage()
            if found:
                return FsError(Fault.CORRUPT, f"{found}; {_NEXT_STEP}")
        return FsError(Fault.BAD_HOME, f"{self._path}: {step}: {text}")

    def _named(self, text: str) -> str:
        """What LevelDB says about damage, with a path: of a missing table it gives one itself."""
        path = re.search(r"(/\S+\.)(?:ldb|sst)", text)
        return f"{path[0]}: missing" if path and "missing" in text else f"{self._path}: {text}"

    def _find_damage(self) -> str | None:
        """The first damaged file; where damage was found before is looked at first."""
        known = self._damaged
        if known is not None and known.exists():
            found = check_table(known) if known.suffix in (".ldb", ".sst") else check_log(known)
            if found is not None:
                return str(found)
        first = next(damage(self._path), None)
        self._damaged = first.path if first is not None else None
        return str(first) if first is not None else None


class LevelView:
    """A `View` of a `LevelStore`."""

    def __init__(self, store: LevelStore, db: Any, snapshot: Any) -> None:
        self._store = store
        self._db = db
        self._snapshot = snapshot

    def rows(self, after: bytes, bytes_max: int) -> list[tuple[bytes, bytes]]:
        store = self._store
        if store._closed:
            raise FsError(Fault.BUSY, f"{store._path}: was closed since")
        db = store._enter()
        try:
            if db is not self._db or self._snapshot is None:
                raise FsError(Fault.BUSY, f"{store._path}: was opened again since")
            found: list[tuple[bytes, bytes]] = []
            size = 0
            with contextlib.closing(
                self._snapshot.iterator(start=after, include_start=False, verify_checksums=True)
            ) as rows:
                for key, value in rows:
                    found.append((key, value))
                    size += len(key) + len(value)
                    if size >= bytes_max:
                        break
            return found
        except plyvel.Error as error:
            raise store._translated(error, "scan") from error
        finally:
            store._calls.pop()

    def close(self) -> None:
        snapshot, self._snapshot = self._snapshot, None
        if snapshot is not None and self._store._db is self._db:
            snapshot.close()


_NEXT_STEP = "restore the home directory from a backup, or see `mountfs fsck`"


def _shorten(path: Path, size: int) -> None:
    """Cut a file to at most `size` bytes, durably."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        if os.fstat(fd).st_size > size:
            os.ftruncate(fd, size)
            os.fsync(fd)
    finally:
        os.close(fd)
