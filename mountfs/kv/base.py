"""What the metadata needs of an ordered key-value store."""

from collections.abc import Iterator, Mapping
from typing import Protocol

from mountfs.errors import FsError

Changes = Mapping[bytes, bytes | None]
"""What a batch does: a value to store under each key, or None to delete it."""


class StoreFailed(FsError):
    """The store cannot be read at the moment, for a reason that may also be a caller's mistake."""


class View(Protocol):
    """All rows of a store as of one moment, to be read piece by piece."""

    def rows(self, after: bytes, bytes_max: int) -> list[tuple[bytes, bytes]]:
        """The pairs behind the key `after`, ascending, at least one if there is one, of about
        `bytes_max` together.  Raises CORRUPT; BUSY when the view is of no use any more.
        """
        ...

    def close(self) -> None: ...


class Store(Protocol):
    """An ordered map of bytes to bytes on one disk.

    Reads verify checksums: a damaged table is `FsError(CORRUPT)` with the file's path in the
    detail, never wrong bytes. Every method blocks for as long as the disk takes, and may be called
    from any thread.
    """

    def get(self, key: bytes) -> bytes | None: ...

    def scan(self, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Pairs with `start <= key < stop` in ascending order, as of the moment of the call."""
        ...

    def write(self, changes: Changes, *, sync: bool) -> None:
        """All of `changes` or none of them.  With `sync`, on disk when it returns.

        Raises `FsError` NO_SPACE, READ_ONLY or DEVICE, and then nothing has changed.
        """
        ...

    def view(self) -> View:
        """As of now."""
        ...

    def close(self) -> None: ...
