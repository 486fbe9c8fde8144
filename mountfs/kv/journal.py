"""The journal: a write-ahead log of records, with one sync for all who wait.

`append` hands a record to the kernel: it survives the death of the process at once, and the loss of
power from the next `sync` on.  Segments are written full of zeros before they take their first
record, and are used again when what they hold was released.  So an append changes bytes of a file
and nothing else about it, and fdatasync has one write to wait for and no journal of the file system
beneath.

After a crash the log holds all that was synced and a prefix of the rest.  Missing or damaged
records that had been synced are `FsError(CORRUPT)`, which names file and offset; `journal_format`
says how the two are told apart.  One case cannot be: damage to what the very last sync before a
crash wrote looks like a torn tail.

Threads: one owner calls `append`, `append_many`, `replay`, `cut`, `restart` and `close`.  `sync`,
`prepare` and `release` may be called from any thread meanwhile.
"""

import os
import re
import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from crc32c import crc32c

from mountfs.errors import Fault, FsError, disk_error
from mountfs.kv.journal_format import (
    HEADER_BYTES,
    RECORD_HEADER_BYTES,
    BadHeader,
    Header,
    NewerVersion,
    Survey,
    Verdict,
    decode_header,
    encode_record,
    judge,
    pack_crc,
    pack_record,
    run,
    survey,
)
from mountfs.types import MIB

RECORD_BYTES_MAX: Final = 16 * MIB

_NAME = re.compile(r"log-(\d{16})\.seg")
_UNFINISHED = "new.seg"
_ZEROS = bytes(MIB)
_WINDOW_BYTES: Final = RECORD_BYTES_MAX + RECORD_HEADER_BYTES
"""What is read at once to find a large record."""
PAGE_BYTES: Final = 4096
"""What the kernel and the disk are taken to replace as a whole."""


class Journal:
    """Records of bytes with indices that ascend by one, in `directory`, which must exist.

    `home`: 16 bytes that all files of one filesystem share.  `keep_spare`: how many segments wait
    ready-made.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        home: bytes = bytes(16),
        segment_bytes: int = 32 * MIB,
        keep_spare: int = 2,
    ) -> None:
        self._directory = Path(directory)
        self._home = home
        self._segment_bytes = segment_bytes
        self._keep_spare = keep_spare
        self.record_bytes_max = min(
            RECORD_BYTES_MAX, segment_bytes - HEADER_BYTES - RECORD_HEADER_BYTES
        )
        """The largest payload."""
        assert self.record_bytes_max > 0, segment_bytes

        self._files = threading.Lock()  # names in the directory; taken before `_syncing`
        self._syncing = threading.Lock()  # which segments there are to sync
        self._failure: str | None = None
        """Once a sync has failed, nobody knows what is on disk: the log takes nothing more."""
        self._segments: list[_Segment] = []
        """Those that hold records, oldest first, and the one that appends go to, which is the last.
        """
        self._spares: deque[_Segment] = deque()
        """Empty, durable, and behind `_segments` in sequence."""
        self._free: deque[_Segment] = deque()
        """Released: in front of `_segments` in sequence, to be used again or removed."""
        self._unsynced: list[_Segment] = []
        """Left behind by a roll since the last sync."""
        self._sequence = 0
        self._last = 0
        self._synced = 0
        self._durable = 0
        """What records state: never more than `_synced`, and 0 until a record of this log is on
        disk.
        """
        self.durable_before = 0
        """A lower bound of what had been synced before this open: what the records themselves
        state.  The last sync of all is stated by nobody.
        """
        try:
            self._open()
        except OSError as error:
            self._close_files()
            raise disk_error(error, str(directory)) from error
        except BaseException:
            self._close_files()
            raise

    # What there is.

    @property
    def first_index(self) -> int:
        """Index of the oldest record, or what the next will get when there is none."""
        return self._segments[0].first or self._last + 1

    @property
    def last_index(self) -> int:
        """Index of the newest record.  A log that is empty when it is opened says 0."""
        return self._last

    @property
    def oldest_stop(self) -> int:
        """The index behind the last record of the oldest segment: to be let go, it must be released
        so far.  0 when there is one segment only, which stays.
        """
        return self._segments[0].last + 1 if len(self._segments) > 1 else 0

    @property
    def synced_index(self) -> int:
        """Highest index that a loss of power cannot take away."""
        return self._synced

    @property
    def size_bytes(self) -> int:
        """What the records take, released ones in a shared segment included: what a replay has to
        read.
        """
        return sum(segment.end - HEADER_BYTES for segment in self._segments)

    @property
    def wants_prepare(self) -> bool:
        """`prepare` has something to do."""
        return bool(self._free) or len(self._spares) < self._keep_spare

    # Append and sync.

    def append(self, index: int, record: bytes) -> None:
        """Add `record` as number `index`: one more than the last, or any to begin an empty log.

        Raises `FsError` NO_SPACE, READ_ONLY or DEVICE, and then the log is as it was.
        """
        if index != self._last + 1:
            self._begin_at(index)
        segment = self._segments[-1]
        offset = segment.end
        end = offset + RECORD_HEADER_BYTES + len(record)
        if end > segment.size or self._failure is not None:
            segment = self._make_room(len(record))
            offset = segment.end
            end = offset + RECORD_HEADER_BYTES + len(record)
        # encode_record(), spelled out: this is the hottest place of the metadata
        body = pack_record(segment.salt, len(record), index, self._durable) + record
        segment.write(pack_crc(crc32c(body)) + body, offset, self)
        segment.end = end
        if not segment.first:
            segment.first = index
        self._last = index

    def append_many(self, index: int, records: Sequence[bytes]) -> None:
        """Add `records` as numbers `index` and up with one write: all of them or none.

        Together they must fit into one segment.  Raises as `append` does.
        """
        if not records:
            return
        if index != self._last + 1:
            self._begin_at(index)
        headers = RECORD_HEADER_BYTES * (len(records) - 1)
        segment = self._make_room(headers + sum(map(len, records)))
        data = b"".join(
            encode_record(segment.salt, number, self._durable, record)
            for number, record in enumerate(records, index)
        )
        segment.write(data, segment.end, self)
        segment.end += len(data)
        segment.first = segment.first or index
        self._last = index + len(records) - 1

    def sync(self, stated: int | None = None) -> int:
        """Put on disk what was appended before the call, and return the highest index there.

        Records state from then on that all up to `stated` had been durable; None: all.  Less, where
        what comes behind it refers to something that need not be on disk yet.

        An error is `FsError(DEVICE)` for this call and for every later sync and append: the kernel
        reports a page that it could not write only once, so trying again would succeed and mean
        nothing.
        """
        with self._syncing:
            self._refuse_if_failed()
            # In this order: a roll lists the old segment in `_unsynced` before it adds the new
            # one, so each record up to `last` is in a segment that is found here.
            last = self._last
            sure = last if stated is None else min(stated, last)
            if last == self._synced:
                if self._durable < sure and any(segment.first for segment in self._segments):
                    self._durable = sure
                return last
            current = self._segments[-1]
            left = list(self._unsynced)
            for segment in (*left, current):
                try:
                    os.fdatasync(segment.fd)
                except OSError as error:
                    raise self._fail(f"{segment.path}: sync: {error.strerror}") from error
            del self._unsynced[: len(left)]
            self._synced, self._durable = last, max(self._durable, sure)
            return last

    def prepare(self) -> None:
        """Make spare segments, of released ones where there are any, so that no append has to.

        To be called in a worker thread when `wants_prepare`; writes up to a segment of zeros for
        each. Raises `FsError` NO_SPACE, READ_ONLY or DEVICE.
        """
        with self._files:
            try:
                while len(self._spares) < self._keep_spare:
                    self._spares.append(self._make_segment())
                while self._free:
                    self._remove(self._free.popleft())
            except OSError as error:
                raise disk_error(error, f"{self._directory}: preparing the log") from error

    # Read, and let go.

    def replay(self, after: int) -> Iterator[tuple[int, bytes]]:
        """The records with an index above `after`, in order.  CORRUPT if the log begins later than
        that.
        """
        first, last = self.first_index, self._last
        if last and after + 1 < first:
            raise FsError(
                Fault.CORRUPT,
                f"{self._directory}: the log begins with record {first}, but {after + 1} is needed:"
                " a segment is missing.  Restore it, or the home directory from a backup",
            )
        return self._replay(after, last)

    def read(self, first: int, stop: int, bytes_max: int) -> list[bytes]:
        """The records from `first` on, until `stop` or until they are `bytes_max` together; at
        least one.  CORRUPT if it is not as it was written.

        For records of the past that somebody needs after all: the first look into a segment reads
        all of it before that place.
        """
        segment = next(s for s in reversed(self._segments) if s.first and s.first <= first)
        return segment.find(first, min(stop, segment.last_of(self) + 1), bytes_max)

    def _replay(self, after: int, last: int) -> Iterator[tuple[int, bytes]]:
        for segment in list(self._segments):
            if not segment.first or segment.last_of(self) <= after:
                continue
            expected = segment.first
            data = segment.read(segment.end)
            end = HEADER_BYTES
            for record in run(data, segment.salt):
                if record.index > last:
                    return
                assert record.index == expected, (record.index, expected)
                expected, end = expected + 1, record.stop
                if record.index > after:
                    yield record.index, data[record.start : record.stop]
            if end != segment.end:
                raise _corrupt(segment.path, end, f"record {expected} is damaged")

    def release(self, through: int) -> None:
        """Records up to `through` are not needed any more: `prepare` may use their segments again.

        A segment goes only when a record behind it is on disk: the first record of a log is always
        durable.
        """
        with self._files, self._syncing:
            while len(self._segments) > 1:
                oldest, second = self._segments[:2]
                if oldest.last > through or not second.first or second.first > self._synced:
                    return
                self._free.append(oldest)
                del self._segments[0]

    def cut(self, after: int) -> None:
        """Drop the records with an index above `after`, durably.

        At every moment of it a crash leaves a log that ends somewhere between `after` and where it
        ended.
        """
        assert self.first_index <= after + 1, (self.first_index, after)
        with self._files, self._syncing:
            if after < self._last:
                self._drop(after)

    def restart(self, after: int) -> None:
        """Drop all records, durably; the next one gets index `after + 1`."""
        with self._files, self._syncing:
            self._segments[:0] = self._free  # they are in front of the others, and readable
            self._free.clear()
            self._drop(0)
            self._last = self._synced = after

    def close(self) -> None:
        """Sync, note how far the log is durable, so that all damage to it is found at the next
        open, and close.
        """
        try:
            if self._failure is None:
                self.sync()
                if self._durable:
                    newest = next(s for s in reversed(self._segments) if s.first)
                    newest.mark(self._durable)
        except OSError as error:
            raise disk_error(error, f"{self._directory}: closing the log") from error
        finally:
            self._close_files()

    # Below: the slower half.

    def _begin_at(self, index: int) -> None:
        assert index > self._last, (index, self._last)
        assert len(self._segments) == 1 and not self._segments[0].first, "indices ascend by one"
        self._last = self._synced = index - 1

    def _make_room(self, payload_bytes: int) -> "_Segment":
        """The segment that has room for so much: the current one, or else the next."""
        self._refuse_if_failed()
        needed = RECORD_HEADER_BYTES + payload_bytes
        assert needed <= self._segment_bytes - HEADER_BYTES, payload_bytes
        while self._segments[-1].end + needed > self._segments[-1].size:
            self._roll()
        return self._segments[-1]

    def _roll(self) -> None:
        if not self._spares:
            with self._files:
                if not self._spares:  # nobody made one while we waited
                    try:
                        self._spares.append(self._make_segment())
                    except OSError as error:
                        raise disk_error(error, f"{self._directory}: new log segment") from error
        old = self._segments[-1]
        old.last = self._last
        self._unsynced.append(old)
        self._segments.append(self._spares.popleft())

    def _make_segment(self) -> "_Segment":
        """An empty segment, its name, header and size on disk.  The caller holds `_files`."""
        while self._free and self._free[0].size != self._segment_bytes:
            self._remove(self._free.popleft())
        unfinished = self._directory / _UNFINISHED
        header = Header(self._sequence + 1, _new_salt(), self._segment_bytes, self._home)
        path = self._directory / f"log-{header.sequence:016}.seg"
        fd = -1
        try:
            if self._free:
                fd = self._take_released(unfinished)
            else:
                fd = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
                _write_zeros(fd, 0, self._segment_bytes)
            _write_all(fd, header.encode(), 0)
            os.fsync(fd)
            os.rename(unfinished, path)
            self._sync_directory()
        except BaseException:
            if fd >= 0:
                os.close(fd)
            for left in (unfinished, path):
                left.unlink(missing_ok=True)
            raise
        self._sequence = header.sequence
        return _Segment(path, fd, header)

    def _take_released(self, unfinished: Path) -> int:
        """Give the oldest released segment another name, durably, before its header changes."""
        segment = self._free[0]
        os.rename(segment.path, unfinished)
        self._free.popleft()
        try:
            self._sync_directory()
        except BaseException:
            os.close(segment.fd)
            raise
        return segment.fd

    def _remove(self, segment: "_Segment") -> None:
        os.close(segment.fd)
        os.unlink(segment.path)
        self._sync_directory()  # one by one, so that none goes before an older one

    def _drop(self, after: int) -> None:
        """Make the records above `after` unreadable, the newest first.  Holds both locks."""
        try:
            while len(self._segments) > 1 and self._segments[-1].first > after:
                self._renew(self._segments[-1])
                self._spares.appendleft(self._segments.pop())
            current = self._segments[-1]
            if current.first > after:
                self._renew(current)
            elif current.first:
                self._shorten(current, after)
            for segment in self._segments:
                os.fdatasync(segment.fd)
        except OSError as error:
            self._fail(f"{self._directory}: cut: {error.strerror}")
            raise disk_error(error, f"{self._directory}: cut") from error
        self._unsynced.clear()
        self._last = self._synced = after
        self._durable = after if self._segments[-1].first else 0

    def _renew(self, segment: "_Segment") -> None:
        """A new salt in place of the old one: at once none of the records is readable."""
        segment.begin(replace(segment.header, salt=_new_salt(), durable=0))

    def _shorten(self, segment: "_Segment", after: int) -> None:
        """Overwrite the records above `after` page by page from the back, each durable at once.

        So at every moment the log ends where the first of the zeros is, and no record behind that
        states that something missing had been durable.
        """
        segment.mark(0)
        stop = segment.end
        for record in run(segment.read(segment.end), segment.salt):
            if record.index <= after:
                segment.end = record.stop
        segment.places = [place for place in segment.places if place[1] <= segment.end]
        for page in reversed(range(segment.end & -PAGE_BYTES, stop, PAGE_BYTES)):
            start = max(page, segment.end)
            _write_zeros(segment.fd, start, min(page + PAGE_BYTES, stop))
            os.fdatasync(segment.fd)

    def _refuse_if_failed(self) -> None:
        if self._failure is not None:
            raise FsError(Fault.DEVICE, self._failure)

    def _fail(self, what: str) -> FsError:
        self._failure = f"{what}.  The log takes nothing more; check the disk, then mount again"
        return FsError(Fault.DEVICE, self._failure)

    def _sync_directory(self) -> None:
        fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def _close_files(self) -> None:
        for segment in (*self._free, *self._segments, *self._spares):
            os.close(segment.fd)
        self._free.clear()
        self._segments.clear()
        self._spares.clear()

    # Opening.

    def _open(self) -> None:
        if not self._directory.is_dir():
            raise FsError(
                Fault.BAD_HOME, f"{self._directory}: the directory of the metadata log is missing"
            )
        (self._directory / _UNFINISHED).unlink(missing_ok=True)
        found = self._find_segments()
        if not found:
            self._segments.append(self._make_segment())
            return
        surveys = [survey(segment.read(segment.size), segment.header) for segment in found]
        verdict = judge(surveys)
        if verdict.damaged:
            number, offset = verdict.hole
            raise _corrupt(
                found[number].path,
                offset,
                f"record {verdict.last + 1} is missing or damaged, but had been on disk",
            )
        self._adopt(found, surveys, verdict)

    def _find_segments(self) -> list["_Segment"]:
        """All segments, oldest first, their headers checked.  `_spares` owns them for now."""
        names = sorted(entry for entry in os.listdir(self._directory) if _NAME.fullmatch(entry))
        for name in names:
            path = self._directory / name
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                header = self._check_header(path, fd)
            except BaseException:
                os.close(fd)
                raise
            if self._spares and header.sequence != self._sequence + 1:
                os.close(fd)
                missing = self._directory / f"log-{self._sequence + 1:016}.seg"
                raise FsError(Fault.CORRUPT, f"{missing}: missing, but later segments are there")
            self._sequence = header.sequence
            self._spares.append(_Segment(path, fd, header))
        return list(self._spares)

    def _check_header(self, path: Path, fd: int) -> Header:
        try:
            header = decode_header(os.pread(fd, HEADER_BYTES, 0))
        except NewerVersion as error:
            raise FsError(Fault.BAD_HOME, f"{path}: {error}; use a newer mountfs") from None
        except BadHeader as error:
            raise _corrupt(path, 0, str(error)) from None
        if path.name != f"log-{header.sequence:016}.seg":
            raise _corrupt(path, 0, f"holds segment {header.sequence}: the file was renamed")
        if header.home != self._home:
            raise FsError(Fault.BAD_HOME, f"{path}: belongs to the filesystem {header.home.hex()}")
        size = os.fstat(fd).st_size
        if size != header.segment_bytes:
            raise _corrupt(path, size, f"is {size} bytes long, should be {header.segment_bytes}")
        return header

    def _adopt(self, found: list["_Segment"], surveys: Sequence[Survey], verdict: Verdict) -> None:
        for segment, seen in zip(found, surveys, strict=True):
            segment.first, segment.last, segment.end = seen.first, seen.last, seen.end
        current = found[verdict.segment]
        # What follows a torn end must be gone before the hole is filled, the newest first.
        for number in range(len(found) - 1, verdict.segment, -1):
            if surveys[number].first or surveys[number].residue:
                self._renew(found[number])
        if surveys[verdict.segment].residue:
            # In any order: no record behind the hole states that one in the hole was durable.
            _write_zeros(current.fd, current.end, current.size)
        # What is readable need not be on disk: the process may have died without a sync.
        for segment in found[: verdict.segment + 1]:
            os.fdatasync(segment.fd)
        self._spares.clear()
        for segment in found[: verdict.segment]:
            (self._segments if segment.first else self._free).append(segment)
        self._segments.append(current)
        self._spares.extend(found[verdict.segment + 1 :])
        self._last = self._synced = self._durable = verdict.last
        self.durable_before = verdict.durable
        self._replace_other_sizes()

    def _replace_other_sizes(self) -> None:
        """Empty segments of another size than is configured now make way."""
        empty = [*(s for s in self._segments if not s.first), *self._spares]
        if all(segment.size == self._segment_bytes for segment in empty):
            return
        while self._spares:
            self._remove(self._spares.pop())
        self._sequence = self._segments[-1].header.sequence
        if not self._segments[-1].first:
            self._free.append(self._segments.pop())
        if not self._segments:
            self._segments.append(self._make_segment())


class _Segment:
    """One file of the log, open."""

    __slots__ = ("end", "fd", "first", "header", "last", "path", "places", "salt", "size")

    def __init__(self, path: Path, fd: int, header: Header) -> None:
        self.path = path
        self.fd = fd
        self.header = header
        self.salt = header.salt
        self.size = header.segment_bytes
        self.first = 0
        """Index of the first record, 0 when there is none."""
        self.last = 0
        """Index of the last record, known once the log has gone on to the next segment."""
        self.end = HEADER_BYTES
        """Where the next record goes."""
        self.places = [(0, HEADER_BYTES)]
        """(index, offset) of a record here and there, as far as somebody has looked for one."""

    def last_of(self, log: Journal) -> int:
        return log.last_index if self is log._segments[-1] else self.last

    def write(self, data: bytes, offset: int, log: Journal) -> None:
        """All of `data`, or an error and nothing that could be taken for a record."""
        try:
            written = os.pwrite(self.fd, data, offset)
            if written != len(data):
                _write_all(self.fd, data[written:], offset + written)
        except OSError as error:
            try:
                _write_all(self.fd, bytes(len(data)), offset)
            except OSError:
                raise log._fail(f"{self.path}: append: {error.strerror}") from error
            raise disk_error(error, f"{self.path}: append") from error

    def read(self, stop: int) -> bytes:
        """The first `stop` bytes of the file."""
        parts = []
        offset = 0
        while offset < stop:
            part = os.pread(self.fd, min(stop - offset, 8 * MIB), offset)
            if not part:
                raise _corrupt(self.path, offset, "the file ends here")
            parts.append(part)
            offset += len(part)
        return b"".join(parts)

    def find(self, first: int, stop: int, bytes_max: int) -> list[bytes]:
        """The records from `first` on, until `stop`, or so many bytes; at least one."""
        found: list[bytes] = []
        size = 0
        index, offset = self.places[bisect_right(self.places, first, key=_index_of) - 1]
        index = index or self.first
        window = MIB
        while True:
            data = os.pread(self.fd, min(window, self.end - offset), offset)
            end = 0
            for record in run(data, self.salt, 0):
                if record.index != index:
                    break
                if index >= first:
                    if index == stop or (found and size + record.stop - record.start > bytes_max):
                        return found
                    found.append(data[record.start : record.stop])
                    size += record.stop - record.start
                index, end = index + 1, record.stop
            if index == stop:
                return found
            if not end and window < _WINDOW_BYTES:
                window = _WINDOW_BYTES
                continue
            if not end:
                raise _corrupt(self.path, offset, f"record {index} is damaged")
            offset += end
            if index > self.places[-1][0]:
                self.places.append((index, offset))

    def begin(self, header: Header) -> None:
        """Start over under another header, durably."""
        _write_all(self.fd, header.encode(), 0)
        os.fdatasync(self.fd)
        self.header, self.salt = header, header.salt
        self.first = self.last = 0
        self.end = HEADER_BYTES
        self.places = [(0, HEADER_BYTES)]

    def mark(self, durable: int) -> None:
        """Note in the header that all up to `durable` is on disk."""
        self.header = replace(self.header, durable=durable)
        _write_all(self.fd, self.header.encode(), 0)
        os.fdatasync(self.fd)


def _index_of(place: tuple[int, int]) -> int:
    return place[0]


def _corrupt(path: Path, offset: int, what: str) -> FsError:
    return FsError(Fault.CORRUPT, f"{path}: at offset {offset}: {what}")


def _new_salt() -> int:
    return int.from_bytes(os.urandom(4), "little") or 1


def _write_all(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view = view[written:]
        offset += written


def _write_zeros(fd: int, start: int, stop: int) -> None:
    for offset in range(start, stop, len(_ZEROS)):
        _write_all(fd, _ZEROS[: stop - offset], offset)
