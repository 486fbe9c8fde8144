"""The files of a LevelDB database, read without LevelDB: is each byte what was written?

LevelDB says that a checksum does not match, but not in which file.  This module finds the file and
the place.  It checks every block of every table by the checksum stored behind it, that the blocks
and the footer fill the file without a gap, and every record of the logs and of the manifest.  So
there is no byte whose change goes unnoticed.

A log that ends in the middle of a record is what a crash leaves, and what a store that is being
written may look like for a moment.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from crc32c import crc32c

_TABLE_MAGIC = 0xDB4775248B80FB57
_FOOTER_BYTES = 48
_TRAILER_BYTES = 5
"""Behind each block: one byte that says how it is compressed, and the masked crc32c of all before.
"""
_PLAIN, _SNAPPY = 0, 1
_BLOCK_BYTES_MAX = 1 << 30

LOG_BLOCK_BYTES: Final = 32 * 1024
_LOG_HEADER_BYTES = 7
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


class Damage(NamedTuple):
    """Where a file of the database is not what was written."""

    path: Path
    offset: int
    """Where the damaged block or record begins."""
    what: str

    def __str__(self) -> str:
        return f"{self.path}: at offset {self.offset}: {self.what}"


def damage(directory: str | os.PathLike[str]) -> Iterator[Damage]:
    """All damage in the database in `directory`, at most one for each file, found as it goes.

    The database may be open: files that compaction removes meanwhile are passed over, and so are
    tables that the manifest does not have: they are being written, or were when the machine
    stopped.
    """
    directory = Path(directory)
    current = directory / "CURRENT"
    try:
        manifest = current.read_bytes()
    except FileNotFoundError:
        yield Damage(current, 0, "missing")
        return
    if re.fullmatch(rb"MANIFEST-\d{6,}\n", manifest):
        logs = [directory / manifest.decode().strip()]
        if not logs[0].exists() and current.read_bytes() == manifest:
            yield Damage(current, 0, f"names {logs[0].name}, which is missing")
    else:
        yield Damage(current, 0, "is not the name of a manifest")
        logs = []
    logs += sorted(directory.glob("*.log"))
    live = live_tables(logs[0]) if logs and logs[0].name.startswith("MANIFEST") else None
    tables = [
        path
        for path in sorted([*directory.glob("*.ldb"), *directory.glob("*.sst")])
        if live is None or not path.stem.isdigit() or int(path.stem) in live
    ]
    for path, check in [*((log, check_log) for log in logs), *((t, check_table) for t in tables)]:
        try:
            found = check(path)
        except FileNotFoundError:
            continue
        if found is not None:
            yield found


# The manifest.


def live_tables(manifest: Path) -> set[int] | None:
    """Numbers of the tables that the database consists of; None if the manifest does not say so
    beyond doubt.
    """
    live: set[int] = set()
    try:
        for record in _records(manifest.read_bytes()):
            _replay_edit(record, live)
    except (OSError, IndexError, _Bad):
        return None
    return live


def _records(data: bytes) -> Iterator[bytes]:
    """The whole records of a log; ends before the first that is torn.  Raises _Bad for others."""
    offset = 0
    pieces: list[bytes] = []
    while offset < len(data):
        room = LOG_BLOCK_BYTES - offset % LOG_BLOCK_BYTES
        if room < _LOG_HEADER_BYTES:
            offset += room
            continue
        piece = _piece(data, offset)
        if isinstance(piece, str):
            if _resumes(data, offset):
                raise _Bad(offset, piece)
            return
        kind, stop = piece
        pieces.append(data[offset + _LOG_HEADER_BYTES : stop])
        if kind in (_FULL, _LAST):
            yield b"".join(pieces)
            pieces = []
        offset = stop


def _replay_edit(record: bytes, live: set[int]) -> None:
    """What a change of the set of files says about tables (VersionEdit in db/version_edit.cc)."""
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while record[at] & 0x80:
            value |= (record[at] & 0x7F) << shift
            at, shift = at + 1, shift + 7
        value |= record[at] << shift
        at += 1
        return value

    def text() -> None:
        nonlocal at
        length = number()
        at += length

    while at < len(record):
        match number():
            case 1:  # name of the order of keys
                text()
            case 2 | 3 | 4 | 9:  # numbers of logs and files, the last sequence
                number()
            case 5:  # where compaction of a level goes on
                number()
                text()
            case 6:
                number()
                live.discard(number())
            case 7:
                number()
                live.add(number())
                number()
                text()
                text()
            case unknown:
                raise _Bad(at, f"a manifest with {unknown}")


# Tables.


class _Bad(Exception):
    """A block is not what was written: (offset, what)."""


def check_table(path: Path) -> Damage | None:
    """The first damage in a table file."""
    try:
        _check_table(path.read_bytes())
    except _Bad as bad:
        return Damage(path, *bad.args)
    return None


def _check_table(data: bytes) -> None:
    footer = len(data) - _FOOTER_BYTES
    if footer < 0:
        raise _Bad(0, "shorter than a footer")
    if int.from_bytes(data[-8:], "little") != _TABLE_MAGIC:
        raise _Bad(footer, "does not end like a table")
    meta, position = _handle(data, footer, footer)
    index, position = _handle(data, position, footer)
    if any(data[position:-8]) or max(sum(meta), sum(index)) + _TRAILER_BYTES > footer:
        raise _Bad(footer, "footer is damaged")
    spans = [
        *_handles_in(data, index),
        *_handles_in(data, meta),
        meta,
        index,
    ]
    expected = 0
    for offset, size in sorted(spans):
        if offset != expected:
            raise _Bad(expected, "no block begins here, or its place in the index is damaged")
        _check_block(data, offset, size)
        expected = offset + size + _TRAILER_BYTES
    if expected != footer:
        raise _Bad(expected, "the blocks do not end where the footer begins")


def _handles_in(data: bytes, block: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """The blocks that an index block points to: its values are handles."""
    entries = _block(data, *block)
    if len(entries) < 4:
        raise _Bad(block[0], "index block is too short")
    restarts = int.from_bytes(entries[-4:], "little")
    stop = len(entries) - 4 - 4 * restarts
    if stop < 0:
        raise _Bad(block[0], "index block is damaged")
    position = 0
    while position < stop:
        _, position = _varint(entries, position, block[0])  # bytes shared with the key before
        unshared, position = _varint(entries, position, block[0])
        length, position = _varint(entries, position, block[0])
        position += unshared
        yield _handle(entries, position, block[0])[0]
        position += length


def _check_block(data: bytes, offset: int, size: int) -> None:
    stop = offset + size
    if stop + _TRAILER_BYTES > len(data):
        raise _Bad(offset, "block reaches beyond the end of the file")
    stored = int.from_bytes(data[stop + 1 : stop + _TRAILER_BYTES], "little")
    if _masked(crc32c(memoryview(data)[offset : stop + 1])) != stored:
        raise _Bad(offset, "checksum of a block does not match")


def _block(data: bytes, offset: int, size: int) -> bytes:
    """The content of a block whose checksum is right."""
    _check_block(data, offset, size)
    stop = offset + size
    if data[stop] == _PLAIN:
        return data[offset:stop]
    if data[stop] == _SNAPPY:
        return _uncompressed(data[offset:stop], offset)
    raise _Bad(offset, f"block is compressed in an unknown way ({data[stop]})")


def _masked(crc: int) -> int:
    """LevelDB stores checksums like this, for data that itself contains checksums."""
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFF_FFFF


def _handle(data: bytes, position: int, where: int) -> tuple[tuple[int, int], int]:
    """((offset, size) of a block, position behind the handle)."""
    offset, position = _varint(data, position, where)
    size, position = _varint(data, position, where)
    return (offset, size), position


def _varint(data: bytes, position: int, where: int) -> tuple[int, int]:
    """(number, position behind it).  `where` is what an error names."""
    value = 0
    for shift in range(0, 64, 7):
        if position >= len(data):
            break
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise _Bad(where, "a number in it is damaged")


def _uncompressed(data: bytes, where: int) -> bytes:
    """Undo Snappy.  Only the few index blocks need it, so plain Python will do."""
    size, position = _varint(data, 0, where)
    if size > _BLOCK_BYTES_MAX:
        raise _Bad(where, "compressed block is damaged")
    out = bytearray()
    while position < len(data):
        tag = data[position]
        position += 1
        if tag & 3 == 0:  # as it is
            length = (tag >> 2) + 1
            if length > 60:
                extra = length - 60
                length = int.from_bytes(data[position : position + extra], "little") + 1
                position += extra
            out += data[position : position + length]
            position += length
            continue
        if tag & 3 == 1:  # a copy of 4 to 11 bytes from up to 2 KiB back
            length = (tag >> 2 & 7) + 4
            back = (tag >> 5) << 8 | int.from_bytes(data[position : position + 1], "little")
            position += 1
        else:  # a copy of up to 64 bytes
            length = (tag >> 2) + 1
            width = 2 if tag & 3 == 2 else 4
            back = int.from_bytes(data[position : position + width], "little")
            position += width
        if not 0 < back <= len(out):
            raise _Bad(where, "compressed block is damaged")
        for _ in range(length):  # the copy may overlap what it makes
            out.append(out[-back])
    if len(out) != size:
        raise _Bad(where, "compressed block is damaged")
    return bytes(out)


# Logs.


@dataclass(frozen=True)
class LogState:
    """How far a log is good."""

    end: int
    """Offset behind the last whole record of those from the begin on."""
    damage: str | None
    """Why what follows there is not a record; None: nothing follows."""
    resumes: bool
    """A whole piece that begins a record follows behind the damage: the log had gone on."""


def check_log(path: Path) -> Damage | None:
    """The first damage in a log or manifest, a torn end included."""
    state = read_log(path)
    return Damage(path, state.end, state.damage) if state.damage is not None else None


def read_log(path: Path) -> LogState:
    data = path.read_bytes()
    offset = end = 0
    within = False  # a record whose first piece was read, but not yet its last
    while offset < len(data):
        room = LOG_BLOCK_BYTES - offset % LOG_BLOCK_BYTES
        if room < _LOG_HEADER_BYTES:  # too little for a header: filled with zeros
            if any(data[offset : offset + room]):
                return LogState(end, "fill bytes are damaged", _resumes(data, offset))
            offset += room
            end = end if within else min(offset, len(data))
            continue
        piece = _piece(data, offset)
        if isinstance(piece, str):
            return LogState(end, piece, _resumes(data, offset))
        kind, stop = piece
        if within != (kind in (_MIDDLE, _LAST)):
            return LogState(end, "pieces of a record are missing", _resumes(data, offset))
        within = kind in (_FIRST, _MIDDLE)
        offset = stop
        end = end if within else offset
    return LogState(end, "ends in the middle of a record" if within else None, False)


def _piece(data: bytes, offset: int) -> tuple[int, int] | str:
    """(kind, offset behind it) of the piece of a record at `offset`, or what is wrong with it."""
    start = offset + _LOG_HEADER_BYTES
    block_stop = offset - offset % LOG_BLOCK_BYTES + LOG_BLOCK_BYTES
    stop = start + int.from_bytes(data[offset + 4 : offset + 6], "little")
    if start > len(data) or len(data) < stop <= block_stop:
        return "ends in the middle of a record"
    if stop > block_stop:
        return "length of a record is damaged"
    kind = data[offset + 6]
    stored = int.from_bytes(data[offset : offset + 4], "little")
    if not _FULL <= kind <= _LAST or _masked(crc32c(memoryview(data)[start - 1 : stop])) != stored:
        return "checksum of a record does not match"
    return kind, stop


def _resumes(data: bytes, offset: int) -> bool:
    """Whether a record begins anywhere behind the damaged piece at `offset`.

    Looked for only where a piece can begin, for what is stored may itself look like a log.
    """
    offset += _LOG_HEADER_BYTES + int.from_bytes(data[offset + 4 : offset + 6], "little")
    while offset < len(data):
        piece = _piece(data, offset)
        if isinstance(piece, str):
            offset += LOG_BLOCK_BYTES - offset % LOG_BLOCK_BYTES
            continue
        kind, offset = piece
        if kind in (_FULL, _FIRST):
            return True
    return False
