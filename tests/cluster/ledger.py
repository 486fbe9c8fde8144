"""A program that changes names and small files, and writes down outside what was acknowledged.

    ledger.py DIRECTORY LEDGER

Everything it does needs the metadata alone.  Each call is written down before it is made and once
it has returned, with the time; a call that acts twice, or not at all, is an error at once or is
found by `check`.  It ends at SIGTERM, between two calls.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

KEPT: Final = 40
"""Files that are there at a time."""


class Line(NamedTuple):
    """A call: when it began and ended (monotonic), and what it did."""

    begun: float
    ended: float | None
    """None: it had not ended."""
    error: str
    words: tuple[str, ...]


def main(directory: Path, ledger: Path) -> None:
    ended = False

    def end(*_: object) -> None:
        nonlocal ended
        ended = True

    signal.signal(signal.SIGTERM, end)
    begin = 1 + max((int(line.words[1]) for line in read(ledger)), default=0)
    with open(ledger, "a", buffering=1) as out:

        def call(act: Callable[[], object], *words: str) -> None:
            out.write(f"{time.monotonic()} {' '.join(words)}")
            error = ""
            try:
                act()
            except OSError as failed:
                error = f" {failed.errno} {failed.strerror}"
            out.write(f"|{time.monotonic()}{error}\n")

        number = begin
        while not ended:
            path = directory / str(number)
            call(partial(_create, path, content(number)), "create", str(number))
            if number % 3 == 0:
                moved = directory / f"{number}.moved"
                call(partial(os.rename, path, moved), "rename", str(number))
            if number % 5 == 0:
                made = directory / f"{number}.d"
                call(partial(os.mkdir, made), "mkdir", str(number))
                call(partial(os.rmdir, made), "rmdir", str(number))
            old = number - KEPT
            if old > 0:
                gone = directory / (f"{old}.moved" if old % 3 == 0 else str(old))
                call(partial(os.unlink, gone), "unlink", str(old))
            number += 1


def _create(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def content(number: int) -> bytes:
    return f"this is file {number}\n".encode() * (1 + number % 90)


def read(ledger: Path) -> list[Line]:
    found = []
    try:
        text = ledger.read_text()
    except FileNotFoundError:
        return []
    for line in text.splitlines():
        first, _, last = line.partition("|")
        begun, *words = first.split(" ")
        if len(words) < 2:
            continue  # it is being written
        when, _, error = last.partition(" ")
        found.append(Line(float(begun), float(when) if when else None, error, tuple(words)))
    return found


def check(lines: list[Line], directory: Path) -> list[str]:
    """What is not as it has to be: errors, and files that are missing, wrong, or too many."""
    wrong = [f"{' '.join(line.words)}: {line.error}" for line in lines if line.error]
    names: dict[str, int] = {}
    unsure: set[str] = set()
    for line in lines:
        what, number = line.words[0], int(line.words[1])
        touched = _effect(names, what, number)
        if line.ended is None:
            unsure |= touched
    found = set(os.listdir(directory))
    wrong += [f"{name} is missing" for name in names.keys() - found - unsure]
    wrong += [f"{name} should not be there" for name in found - names.keys() - unsure]
    for name in sorted(names.keys() & found - unsure):
        have = (directory / name).read_bytes()
        if have != content(names[name]):
            wrong.append(f"{name} has {len(have)} bytes, not {len(content(names[name]))}")
    return wrong


def _effect(names: dict[str, int], what: str, number: int) -> set[str]:
    """Carry it out; returns the names that it concerns."""
    plain, moved = str(number), f"{number}.moved"
    if what == "create":
        names[plain] = number
    elif what == "rename":
        names[moved] = names.pop(plain)
    elif what == "unlink":
        names.pop(moved if number % 3 == 0 else plain)
    elif what in ("mkdir", "rmdir"):
        return {f"{number}.d"}
    return {plain, moved}


def gap(lines: list[Line], since: float) -> float:
    """From that moment to the first call that began or waited after it and was acknowledged."""
    ended = [line.ended for line in lines if line.ended is not None and line.ended > since]
    return min(ended) - since if ended else float("inf")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
