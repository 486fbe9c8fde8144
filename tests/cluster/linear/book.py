"""What a worker did, line by line: each call before it is made, and its answer.

So of a worker that was killed, or waits for ever, it is known what it was doing.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple


class Entry(NamedTuple):
    """A call as it was made.  Times are monotonic, in ns."""

    round: int
    kind: str
    about: str
    """The object."""
    who: str
    what: tuple[Any, ...]
    called: int
    returned: int | None
    """None: whether it had an effect is not known."""
    result: Any
    """Or why the outcome is not known: the name of an error; None, there was no answer."""


class Book:
    """To be written by one process."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)

    def asks(self, round: int, kind: str, about: str, what: tuple[Any, ...], called: int) -> None:
        self._line([round, kind, about, what, called])

    def answers(self, returned: int | None, result: Any) -> None:
        """Of what was asked last."""
        self._line([returned, result])

    def _line(self, values: list[Any]) -> None:
        os.write(self._fd, json.dumps(values).encode() + b"\n")

    def close(self) -> None:
        os.close(self._fd)


def read(path: Path) -> Iterator[Entry]:
    """In the order in which they were made; rounds ascend."""
    asked: list[Any] | None = None
    with open(path, "rb") as lines:
        for line in lines:
            if not line.endswith(b"\n"):
                break  # its writer was killed
            values = json.loads(line)
            if asked is None:
                asked = values
                continue
            yield _entry(path, asked, *values)
            asked = None
    if asked is not None:
        yield _entry(path, asked, None, None)


def _entry(path: Path, asked: list[Any], returned: int | None, result: Any) -> Entry:
    round, kind, about, what, called = asked
    return Entry(round, kind, about, path.stem, tuple(what), called, returned, result)


def by_round(books: list[Path]) -> Iterator[tuple[int, list[Entry]]]:
    """The calls of each round, of all books; no more than one round is in memory."""
    sources = [read(path) for path in books]
    heads = [next(source, None) for source in sources]
    while any(heads):
        number = min(head.round for head in heads if head is not None)
        entries = []
        for at, source in enumerate(sources):
            head = heads[at]
            while head is not None and head.round == number:
                entries.append(head)
                head = next(source, None)
            heads[at] = head
        yield number, entries
