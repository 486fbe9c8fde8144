"""A home as the next mount would find it, without changing a byte of it.

Opening a database or a log writes: what is torn is cut off, what was logged goes into tables.  So
both are opened in a directory of their own.  Tables, which are never written again, are there as
links, and logs as copies.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mountfs.errors import FsError, disk_error
from mountfs.types import MIB

_TABLES = (".ldb", ".sst")
_COPY_BYTES = MIB


class Scratch:
    """Use `scratch`."""

    def __init__(self, home: Path, directory: Path) -> None:
        self._home = home
        self._directory = directory

    @property
    def store(self) -> Path:
        return self._directory / "meta" / "store"

    @property
    def log(self) -> Path:
        return self._directory / "meta" / "log"

    @property
    def index(self) -> Path:
        return self._directory / "chunks" / "index"

    @property
    def facts(self) -> Path:
        """Room for what is found out."""
        return self._directory / "facts"

    def original(self, text: str) -> str:
        """What is said of a file here, as of the one in the home."""
        return text.replace(str(self._directory), str(self._home))

    @contextlib.contextmanager
    def originals(self) -> Iterator[None]:
        """Errors name the files of the home."""
        try:
            yield
        except FsError as error:
            raise FsError(error.fault, self.original(str(error))) from error


@contextlib.contextmanager
def scratch(home: Path) -> Iterator[Scratch]:
    """Raises FsError when there is no room for it in the directory for temporary files."""
    directory = Path(os.path.realpath(tempfile.mkdtemp(prefix="mountfs-fsck-")))
    try:
        try:
            made = Scratch(home, directory)
            for target in (made.store, made.log, made.index):
                target.mkdir(parents=True)
                _fill(home / target.relative_to(directory), target)
        except OSError as error:
            what = f"{error.filename or directory}: preparing the check (set TMPDIR for more room)"
            raise disk_error(error, what) from error
        yield made
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _fill(source: Path, target: Path) -> None:
    if not source.is_dir():
        return
    for entry in os.scandir(source):
        if not entry.is_file(follow_symlinks=False) or entry.name == "LOCK":
            continue
        if entry.name.endswith(_TABLES):
            (target / entry.name).symlink_to(os.path.realpath(entry.path))
        else:
            _copy(Path(entry.path), target / entry.name)


def _copy(source: Path, target: Path) -> None:
    """Log segments are written full of zeros before they are used: those become holes."""
    zeros = bytes(_COPY_BYTES)
    with open(source, "rb") as old, open(target, "wb") as new:
        while data := old.read(_COPY_BYTES):
            if data == zeros[: len(data)]:
                new.seek(len(data), os.SEEK_CUR)
            else:
                new.write(data)
        new.truncate(new.tell())
