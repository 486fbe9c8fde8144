"""Bytes that were written to a file and are in no slice yet.

A buffer is a list of runs, ascending and disjoint, that never cross a chunk and never grow over the
size of a slice: what is flushed are whole runs.  Appending to the last run, the usual case, copies
the new bytes once.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate

from mountfs.types import CHUNK_BYTES, KIB, SLICE_BYTES_MAX

_JOIN_BYTES = 128 * KIB
"""A part smaller than this grows; the next write after it begins a new part instead of moving it.
"""

Part = bytearray | memoryview


class Run:
    """Bytes from `start` on, in parts."""

    __slots__ = ("parts", "size", "start")

    def __init__(
        self, start: int, data: bytes | bytearray | memoryview, *, keep: bool = False
    ) -> None:
        self.start = start
        self.parts: list[Part] = [memoryview(data) if keep else bytearray(data)]
        self.size = len(data)

    @property
    def stop(self) -> int:
        return self.start + self.size

    def append(self, data: memoryview, *, keep: bool = False) -> None:
        last = self.parts[-1]
        if keep:
            self.parts.append(data)
        elif isinstance(last, bytearray) and len(last) + len(data) <= _JOIN_BYTES:
            last += data
        else:
            self.parts.append(bytearray(data))
        self.size += len(data)

    def joined(self) -> Part:
        """All of it as one part."""
        if len(self.parts) > 1:
            self.parts = [bytearray().join(self.parts)]
        return self.parts[0]

    def copy_into(self, target: bytearray | memoryview, offset: int) -> None:
        """Put what lies in `offset : offset + len(target)` of the file there."""
        at = self.start
        stop = offset + len(target)
        for part in self.parts:
            end = at + len(part)
            if at < stop and end > offset:
                low, high = max(at, offset), min(end, stop)
                target[low - offset : high - offset] = memoryview(part)[low - at : high - at]
            at = end


class Dirty:
    """The unwritten bytes of one file."""

    __slots__ = ("bytes", "runs")

    def __init__(self) -> None:
        self.runs: list[Run] = []
        self.bytes = 0

    def write(self, offset: int, data: memoryview, *, keep: bool = False) -> bool:
        """Put `data` over what is there.

        With `keep`, its memory may be kept instead of copied; the reply says whether it was, and
        then it must not change any more.
        """
        if keep and len(data) <= min(SLICE_BYTES_MAX, CHUNK_BYTES - offset % CHUNK_BYTES):
            return self._put(offset, data, keep=True)
        for start, piece in _windows(offset, data):
            self._put(start, piece)
        return False

    def overlaps(self, start: int, stop: int) -> bool:
        return any(run.start < stop and run.stop > start for run in self.runs)

    def copy_into(self, target: bytearray | memoryview, offset: int) -> None:
        for run in self.runs:
            if run.start < offset + len(target) and run.stop > offset:
                run.copy_into(target, offset)

    def take(self, *, full_only: bool = False, bytes_max: int | None = None) -> list[Run]:
        """Remove and return the runs; with `full_only`, without the last one if that may still
        grow; with `bytes_max`, only the first ones, until there are so many bytes.
        """
        taken, self.runs = self.runs, []
        if bytes_max is not None:
            ends = list(accumulate(run.size for run in taken))
            count = bisect_left(ends, bytes_max) + 1
            taken, self.runs = taken[:count], taken[count:]
            self.bytes -= sum(run.size for run in taken)
            return taken
        if full_only and taken and _may_grow(taken[-1], 1):
            self.runs = [taken.pop()]
        self.bytes -= sum(run.size for run in taken)
        return taken

    def cut(self, size: int) -> None:
        """Forget what lies behind `size`."""
        if self.stop > size:
            self._clear(size, self.stop)

    def put_back(self, runs: Sequence[Run]) -> None:
        """Runs that could not be flushed: newer bytes stay on top."""
        newer = self.take()
        for run in [*runs, *newer]:
            for part_start, part in _parts(run):
                self.write(part_start, memoryview(part))

    @property
    def stop(self) -> int:
        return self.runs[-1].stop if self.runs else 0

    def _put(self, start: int, data: memoryview, *, keep: bool = False) -> bool:
        runs = self.runs
        stop = start + len(data)
        if runs:
            last = runs[-1]
            if start == last.stop and _may_grow(last, len(data)):
                last.append(data, keep=keep)
                self.bytes += len(data)
                return keep
            if start < last.stop:
                self._put_among(start, stop, data)
                return False
        runs.append(Run(start, data, keep=keep))
        self.bytes += len(data)
        return keep

    def _put_among(self, start: int, stop: int, data: memoryview) -> None:
        runs = self.runs
        at = bisect_right(runs, start, key=lambda run: run.start) - 1
        if at >= 0 and runs[at].start <= start and stop <= runs[at].stop:  # overwritten in place
            run = runs[at]
            run.joined()[start - run.start : stop - run.start] = data
            return
        self._clear(start, stop)
        at = bisect_right(runs := self.runs, start, key=lambda run: run.start)
        if at and runs[at - 1].stop == start and _may_grow(runs[at - 1], len(data)):
            runs[at - 1].append(data)
        else:
            runs.insert(at, Run(start, data))
        self.bytes += len(data)

    def _clear(self, start: int, stop: int) -> None:
        runs = self.runs
        first = bisect_right(runs, start, key=lambda run: run.stop)
        last = bisect_left(runs, stop, first, key=lambda run: run.start)
        kept: list[Run] = []
        for run in runs[first:last]:
            whole = run.joined()
            if run.start < start:
                kept.append(Run(run.start, memoryview(whole)[: start - run.start]))
            if run.stop > stop:
                kept.append(Run(stop, memoryview(whole)[stop - run.start :]))
        self.bytes += sum(run.size for run in kept) - sum(run.size for run in runs[first:last])
        runs[first:last] = kept


def _windows(offset: int, data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """`data` cut where chunks and slices end."""
    while len(data):
        room = min(CHUNK_BYTES - offset % CHUNK_BYTES, SLICE_BYTES_MAX)
        yield offset, data[:room]
        offset += room
        data = data[room:]


def _may_grow(run: Run, size: int) -> bool:
    return run.size + size <= SLICE_BYTES_MAX and run.start % CHUNK_BYTES + run.size + size <= (
        CHUNK_BYTES
    )


def _parts(run: Run) -> Iterator[tuple[int, Part]]:
    at = run.start
    for part in run.parts:
        yield at, part
        at += len(part)
