"""A copy of the metadata as of one entry of the log, sent to another node in pieces.

A piece is a run of rows in the order of their keys.  So where a transfer was broken off is a key,
and it goes on behind it.  What arrives lies beside the store until it is whole.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
from crc32c import crc32c

from mountfs.errors import Fault, FsError, disk_error
from mountfs.kv.base import Store, View
from mountfs.meta import keys
from mountfs.raft.messages import SnapshotHead

PIECE_BYTES: Final = 512 << 10
INCOMING: Final = "incoming"
OUTGOING: Final = "replaced"

OpenStore = Callable[[Path], Store]


class Piece(msgspec.Struct, frozen=True, array_like=True):
    crc: int
    """crc32c of `rows` as they are encoded."""
    rows: msgspec.Raw
    """(key, value), ascending, behind those of the piece before.  None: there are no more."""


_encode = msgspec.msgpack.encode
_rows = msgspec.msgpack.Decoder(list[tuple[bytes, bytes]])


class Source:
    """A copy to be read from."""

    def __init__(self, head: SnapshotHead, view: View) -> None:
        self.head = head
        self._view = view

    def piece(self, after: bytes) -> tuple[bytes, bytes]:
        """(the piece behind the key `after`, its last key); the last piece has no rows.  Blocks."""
        rows = self._view.rows(after, PIECE_BYTES)
        encoded = _encode(rows)
        return _encode(Piece(crc32c(encoded), msgspec.Raw(encoded))), rows[-1][0] if rows else b""

    def close(self) -> None:
        self._view.close()


class Sink:
    """A copy that arrives, in `directory`."""

    def __init__(self, directory: Path, head: SnapshotHead, open_store: OpenStore) -> None:
        self.head = head
        self.last_key = b""
        """Up to here it is here."""
        self.is_whole = False
        self._path = directory / INCOMING
        try:
            shutil.rmtree(self._path, ignore_errors=True)
            self._path.mkdir(mode=0o700)
        except OSError as error:
            raise disk_error(error, str(self._path)) from error
        self._store = open_store(self._path)

    def take(self, encoded: bytes) -> bool:
        """Write a piece.  Returns whether it was the last.  Raises CORRUPT when it is not as it was
        sent; NO_SPACE, DEVICE.  Blocks.
        """
        try:
            piece = msgspec.msgpack.decode(encoded, type=Piece)
            rows = _rows.decode(piece.rows)
        except msgspec.MsgspecError as error:
            raise FsError(Fault.CORRUPT, f"not a piece of a snapshot: {error}") from None
        if crc32c(bytes(piece.rows)) != piece.crc:
            raise FsError(Fault.CORRUPT, "a piece of a snapshot was damaged on its way")
        if not rows:
            self._finish()
            return True
        if rows[0][0] <= self.last_key:
            raise FsError(Fault.CORRUPT, "pieces of a snapshot come in the wrong order")
        self._store.write(dict(rows), sync=False)
        self.last_key = rows[-1][0]
        return False

    def _finish(self) -> None:
        stored = self._store.get(keys.HEAD)
        head = None if stored is None else msgspec.msgpack.decode(stored, type=SnapshotHead)
        if head != self.head:
            raise FsError(Fault.CORRUPT, f"a snapshot of {head} came instead of {self.head}")
        self._store.write({}, sync=True)
        self._store.close()
        _sync(self._path)
        _sync(self._path.parent)  # its name: soon the log will rely on it
        self.is_whole = True

    def abandon(self) -> None:
        self._store.close()
        shutil.rmtree(self._path, ignore_errors=True)


def take_place(directory: Path, store: Path) -> None:
    """Put the copy that has arrived where the store is, whose database is closed, durably."""
    incoming, old = directory / INCOMING, directory / OUTGOING
    try:
        shutil.rmtree(old, ignore_errors=True)
        if store.exists():
            os.rename(store, old)
        os.rename(incoming, store)
        _sync(directory)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise disk_error(error, f"{store}: putting a snapshot there") from error


def settle(directory: Path, store: Path, base: SnapshotHead, open_store: OpenStore) -> None:
    """At the start: finish what a crash has interrupted.  The log begins behind `base`."""
    incoming = directory / INCOMING
    if not store.exists():  # between the two renames
        if incoming.exists():
            take_place(directory, store)
        return
    if incoming.exists():
        head = _head_of(store, open_store)
        if head is None or head.index < base.index:
            try:
                found = _head_of(incoming, open_store)
            except FsError as error:
                if error.fault is not Fault.CORRUPT:
                    raise
                found = None  # it was still on its way
            if found == base:
                take_place(directory, store)
        shutil.rmtree(incoming, ignore_errors=True)
    shutil.rmtree(directory / OUTGOING, ignore_errors=True)


def _head_of(path: Path, open_store: OpenStore) -> SnapshotHead | None:
    opened = open_store(path)
    try:
        stored = opened.get(keys.HEAD)
    finally:
        opened.close()
    return None if stored is None else msgspec.msgpack.decode(stored, type=SnapshotHead)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
