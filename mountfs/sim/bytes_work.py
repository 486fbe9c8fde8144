"""What programs do with the bytes of files, and what they saw.

Bytes are written in cells, each with a number that is written once only.  Files are judged two by
two: between these bytes are copied.
"""

from collections.abc import Iterator
from random import Random
from typing import Any, NamedTuple

import msgspec

from mountfs.errors import FsError
from mountfs.sim.history import Call
from mountfs.sim.models import Cells, no_cells
from mountfs.types import Ino

CELL_BYTES = 16
CELLS = 6
"""Of a file."""


class Doing(msgspec.Struct):
    """Something that a program does to a file."""

    call: Call
    pair: int

    @property
    def asks(self) -> str:
        return str(self.call)


class BytesWork:
    def __init__(self, files: list[Ino]) -> None:
        assert len(files) % 2 == 0, files
        self._files = files
        self.calls: list[list[Call]] = [[] for _ in range(len(files) // 2)]
        self._written = 0
        self.begun_count = 0
        self.answered_count = 0

    def ino(self, doing: Doing, file: int) -> Ino:
        return self._files[2 * doing.pair + file]

    def next(self, random: Random, who: str) -> Doing:
        file = random.randrange(2)
        start, stop = sorted(random.sample(range(CELLS + 1), 2))
        what: tuple[Any, ...]
        match random.randrange(20):
            case 0 | 1 | 2 | 3 | 4 | 5 | 6:
                what = ("read", file, 0, CELLS)
            case 7 | 8:
                what = ("copy", file, start, 1 - file, random.randrange(CELLS), 0)
                count = random.randint(1, CELLS - max(what[2], what[4]))
                what = (*what[:5], count)
            case 9:
                what = ("punch", file, start, stop)
            case 10 | 11:
                what = ("cut", file, random.choice((0, 0, start)))
            case _:
                what = ("write", file, start, self._values(stop - start))
        return Doing(Call(who, what, 0), random.randrange(len(self.calls)))

    def _values(self, count: int) -> tuple[int, ...]:
        first = self._written + 1
        self._written += count
        return tuple(range(first, first + count))

    def begun(self, doing: Doing, now: int) -> None:
        self.begun_count += 1
        doing.call.number = self.begun_count
        doing.call.called = now
        self.calls[doing.pair].append(doing.call)

    def answered(self, doing: Doing, result: Any, now: int) -> None:
        self.answered_count += 1
        doing.call.returned = now
        doing.call.result = result.fault.name if isinstance(result, FsError) else result

    def objects(self) -> Iterator["Judged"]:
        for pair, calls in enumerate(self.calls):
            inos = self._files[2 * pair : 2 * pair + 2]
            yield Judged(f"the bytes of inodes {inos}", calls, no_cells(CELLS))


class Judged(NamedTuple):
    about: str
    calls: list[Call]
    begins: Cells


def cell(value: int) -> bytes:
    return b"%0*d" % (CELL_BYTES, value)


def values_of(data: bytes, count: int) -> tuple[int, ...]:
    """What is in cells that were read; zeros where nothing was written."""
    data = data.ljust(count * CELL_BYTES, b"\0")
    parts = (data[at : at + CELL_BYTES] for at in range(0, count * CELL_BYTES, CELL_BYTES))
    return tuple(int(part) if part.strip(b"\0") else 0 for part in parts)
