"""A program that writes and reads files all the time, each of which says what has to be in it.

    sums.py OWN OTHERS BOOK

New files go to OWN: written, synced, given their name.  The newest of OWN and OTHERS are read again
and again, past the page cache.  BOOK, on another filesystem, has a line for each file that was
acknowledged or deleted, for each that was read, and for what was wrong: then the program ends.
It ends at SIGTERM, between two files.
"""

import errno
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Final

SMALL_BYTES: Final = 20 << 10
LARGE_BYTES: Final = 3 << 20
LARGE_EVERY: Final = 8
KEPT: Final = 60
READ_OF: Final = 15
"""So many of the newest are read: what is about to be deleted is left alone."""
PAUSE_S: Final = 0.1


def content(name: str) -> bytes:
    """What a file with this name has."""
    number = int(name.split("-")[1])
    size = LARGE_BYTES if number % LARGE_EVERY == 0 else SMALL_BYTES
    return random.Random(name).randbytes(size + number)


def trouble(path: Path) -> str:
    """Why a file is not as it should be; empty: it is, or it has just been deleted."""
    try:
        with open(path, "rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            found = file.readall()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESTALE) and path.name not in os.listdir(path.parent):
            return ""
        return f"{path.name}: {error.strerror}"
    expected = content(path.name)
    if found == expected:
        return ""
    first = next(
        (at for at, (one, other) in enumerate(zip(found, expected, strict=False)) if one != other),
        min(len(found), len(expected)),
    )
    return f"{path.name}: {len(found)} bytes of {len(expected)}, wrong from {first}"


def finished(directory: Path) -> list[str]:
    """The files in it that have their names, the oldest first."""
    names = (name for name in os.listdir(directory) if not name.endswith(".new"))
    return sorted(names, key=lambda name: int(name.split("-")[1]))


def make(directory: Path, name: str) -> None:
    new = directory / f"{name}.new"
    with open(new, "wb") as file:
        file.write(content(name))
        file.flush()
        os.fsync(file.fileno())
    os.rename(new, directory / name)


def main(own: Path, others: Path, book: Path) -> None:
    ended = False

    def end(*_: object) -> None:
        nonlocal ended
        ended = True

    signal.signal(signal.SIGTERM, end)
    chance = random.Random(own.name)
    number = 0
    with open(book, "a", buffering=1) as out:

        def read_some(directory: Path) -> None:
            newest = finished(directory)[-READ_OF:]
            for name in chance.sample(newest, min(2, len(newest))):
                wrong = trouble(directory / name)
                if wrong:
                    raise OSError(f"reading {wrong}")
                out.write(f"read {name}\n")

        try:
            while not ended:
                number += 1
                make(own, f"{own.name}-{number}")
                out.write(f"made {own.name}-{number}\n")
                if number > KEPT:
                    out.write(f"gone {own.name}-{number - KEPT}\n")
                    os.unlink(own / f"{own.name}-{number - KEPT}")
                for directory in (own, others):
                    read_some(directory)
                time.sleep(PAUSE_S)
        except OSError as error:
            out.write(f"wrong {error}\n")
            raise


def lines(book: Path, what: str) -> list[str]:
    """What comes after that word in the lines that begin with it."""
    return [
        line.partition(" ")[2]
        for line in book.read_text().splitlines()
        if line.startswith(f"{what} ")
    ]


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
