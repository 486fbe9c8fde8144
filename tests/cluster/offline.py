"""Look into a home that nobody has open: what the metadata says, and whether the bytes are there.

The home is opened as a node opens it, so its log is replayed; nothing is written but that.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from mountfs.chunks.disk import DiskStore
from mountfs.kv.journal import Journal
from mountfs.kv.leveldb import LevelStore
from mountfs.meta import keys
from mountfs.meta.invariants import violations
from mountfs.meta.local import LocalMeta
from mountfs.meta.records import unpack_slice
from mountfs.vfs.home import open_home


def troubles(path: Path) -> Iterator[str]:
    """Broken invariants of the metadata, slices without bytes, bytes with wrong checksums."""
    with contextlib.ExitStack() as stack:
        home = open_home(path, create=False)
        stack.callback(home.close)
        store = LevelStore(home.store, create=False)
        index = LevelStore(home.chunks / "index", create=True)
        stack.callback(index.close)
        disk = DiskStore(home.chunks, index)
        stack.callback(disk.close)
        log = Journal(home.log, home=home.id)
        meta = LocalMeta(store, log, bytes_present=lambda _: True, cut_path=path / "cut")
        stack.callback(meta.close)
        tree = meta._machine.tree
        yield from violations(tree)
        for key, value in tree.everything():
            if key[:8] != bytes(8) and key[8] == keys.SLICES:
                piece = unpack_slice(value)
                if piece.volume and not disk.has(piece.volume, piece.slice_id):
                    yield f"slice {piece.slice_id} is not in volume {piece.volume}"
        for damage in disk.verify():
            yield str(damage)
