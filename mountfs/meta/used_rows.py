"""States from before the metadata knew, by volume, which slices files refer to: their rows of the
kind USED are made when such a state is opened.

They follow from the slices of the files, so every server makes the same ones, whenever it does.  A
crash in between leaves a state of before, and it is done again.
"""

from typing import Final

import msgspec

from mountfs.kv.base import Changes, Store
from mountfs.meta import keys
from mountfs.meta.records import Counters, pack_used, unpack_slice

BEFORE: Final = 2
"""`Counters.format` of a state without such rows."""
SINCE: Final = 3
BATCH: Final = 20_000


def make_used_rows(store: Store) -> None:
    """Does nothing to any other state.  Blocks."""
    row = store.get(keys.COUNTERS)
    if row is None:
        return
    counters = msgspec.msgpack.decode(row, type=Counters)
    if counters.format != BEFORE:
        return
    rows: dict[bytes, bytes | None] = {}
    first_file = keys.everything_of(keys.FIRST_INO)[0]
    for key, value in store.scan(first_file, b"\xff" * 9):
        if key[8] != keys.SLICES:
            continue
        piece = unpack_slice(value)
        if piece.volume:
            used = keys.used(piece.volume, piece.slice_id)
            rows[used] = pack_used(piece.length, piece.crc)
        if len(rows) == BATCH:
            store.write(rows, sync=False)
            rows = {}
    counters.format = SINCE
    done: Changes = {**rows, keys.COUNTERS: msgspec.msgpack.encode(counters)}
    store.write(done, sync=True)
