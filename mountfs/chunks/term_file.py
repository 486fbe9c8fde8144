"""The latest term of a leader that this node has heard of, on disk: the file `term` of a directory.

4096 bytes, with places at 0 and 2048; a new term is written over the older of the two, so a crash
meanwhile leaves the other, and a disk that is full has room for it.  A place:

    magic `mfsterm\\n`, cluster 16 bytes, term u64, crc32c of all before u32
"""

import os
import struct
from pathlib import Path
from typing import Final

from crc32c import crc32c

from mountfs.chunks.file import sync_directory

NAME: Final = "term"
MAGIC: Final = b"mfsterm\n"
_TERM = struct.Struct("<8s16sQ")
_CRC = struct.Struct("<I")
_PLACES: Final = (0, 2048)
_BYTES: Final = 4096


def read_term(directory: Path, cluster: bytes) -> int:
    """0: none of this cluster is known.  Raises OSError."""
    try:
        data = (directory / NAME).read_bytes()
    except FileNotFoundError:
        return 0
    return max(_term_at(data, at, cluster) for at in _PLACES)


def write_term(directory: Path, cluster: bytes, term: int) -> None:
    """Durably.  Raises OSError."""
    path = directory / NAME
    is_new = not path.exists()
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        data = os.pread(fd, _BYTES, 0)
        if len(data) < _BYTES:
            os.pwrite(fd, bytes(_BYTES - len(data)), len(data))
        at = min(_PLACES, key=lambda place: _term_at(data, place, cluster))
        os.pwrite(fd, encode_term(cluster, term), at)
        os.fdatasync(fd)
    finally:
        os.close(fd)
    if is_new:
        sync_directory(directory)


def encode_term(cluster: bytes, term: int) -> bytes:
    assert len(cluster) == 16, cluster
    packed = _TERM.pack(MAGIC, cluster, term)
    return packed + _CRC.pack(crc32c(packed))


def _term_at(data: bytes, at: int, cluster: bytes) -> int:
    if len(data) < at + _TERM.size + _CRC.size:
        return 0
    packed = data[at : at + _TERM.size]
    magic, found, term = _TERM.unpack(packed)
    good = _CRC.unpack_from(data, at + _TERM.size)[0] == crc32c(packed)
    return int(term) if good and magic == MAGIC and found == cluster else 0
