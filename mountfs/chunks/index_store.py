"""The store that the table of the needle index is in: opened, or put aside when it is damaged.

The table may always be thrown away, for the volumes say the same.  So damage in it is no reason to
refuse a home, and one byte of it that is not what was written is reason enough to make it anew:
`DiskStore` does so for every volume that the table does not know.  It goes through their headers
and tombstones in the order in which they were written, and puts each volume that it is done with
into the new table; so a rebuild that is killed goes on with the others.
"""

import logging
import shutil
from pathlib import Path

from mountfs.chunks.file import sync_directory
from mountfs.errors import Fault, FsError, disk_error
from mountfs.kv.leveldb import LevelStore
from mountfs.kv.tables import damage

log = logging.getLogger(__name__)


def open_index(directory: Path) -> tuple[LevelStore, str]:
    """The store in `directory`/index; and, if an earlier one was put aside for it, what to tell.

    Nobody else may use the directory.  The damaged store is kept as index.damaged, in place of one
    that was put there before.
    """
    path = directory / "index"
    aside = directory / "index.damaged"
    interrupted = aside.exists() and not (path / "CURRENT").exists()
    try:
        store = LevelStore(path, create=True)
    except FsError as error:
        # A directory that we may not read, or that is in use, is no damage.
        found = str(error) if error.fault is Fault.CORRUPT else _damage(path)
        if error.fault not in (Fault.CORRUPT, Fault.BAD_HOME) or not found:
            raise
    else:
        found = _damage(path)
        if not found:
            return store, _told(aside) if interrupted else ""
        store.close()
    log.error("%s; it is made anew from the volumes", found)
    try:
        if aside.exists():
            shutil.rmtree(aside)
        path.rename(aside)
        sync_directory(directory)
    except OSError as error:
        raise disk_error(error, f"{path}: putting the damaged index aside") from error
    return LevelStore(path, create=True), _told(aside)


def _damage(path: Path) -> str:
    """The first byte that is not what was written; empty: there is none."""
    found = next(damage(path), None) if path.is_dir() else None
    return str(found) if found is not None else ""


def _told(aside: Path) -> str:
    return (
        "it was damaged and has been made anew from the volumes, nothing is lost by that; the "
        f"damaged one is kept as {aside} until you remove it"
    )
