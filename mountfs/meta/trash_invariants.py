"""What must hold of the trash after every command: a part of `meta.invariants`."""

from collections.abc import Iterator, Mapping

from mountfs.meta import keys
from mountfs.meta.records import TRASHED, TRASHES, Inode, unpack_inode
from mountfs.meta.trash import pack_place, unpack_entry
from mountfs.meta.tree import Tree
from mountfs.types import Ino

_NOBODY = bytes(8)


def trash_marks(inode: Inode, counts: Mapping[int, int]) -> Iterator[str]:
    """An inode's marks, and how many rows of each kind it has."""
    if bool(inode.marks & TRASHES) != bool(counts[keys.TRASH_SETTING]):
        yield "is marked for a trash as it should not be"
    if counts[keys.TRASH] and not inode.is_directory:
        yield "is no directory, but something was deleted in it"
    if inode.marks & TRASHED and inode.nlink:
        yield "is in the trash, and has a name"


def trash_rows(tree: Tree) -> Iterator[str]:
    """Who is marked to be in the trash has one entry, which the index by time knows."""
    marked = entries = 0
    for key, value in tree.everything():
        if key[:8] == _NOBODY:
            continue
        if key[8] == keys.INODE:
            marked += bool(unpack_inode(value).marks & TRASHED)
        elif key[8] == keys.TRASH:
            entries += 1
            yield from _entry(tree, key, value)
    indexed = sum(1 for _ in tree.scan(keys.trash_untils()))
    if not marked == entries == indexed:
        yield f"{marked} are in the trash, but {entries} entries and {indexed} times are there"
    for key, _ in tree.scan(keys.orphans()):
        session, ino = keys.session_ino(key)
        record = tree.get(keys.inode(ino))
        if record is not None and unpack_inode(record).marks & TRASHED:
            yield f"inode {ino}: is in the trash, and an orphan of session {session}"


def _entry(tree: Tree, key: bytes, value: bytes) -> Iterator[str]:
    entry = unpack_entry(key, value)
    where = f"inode {entry.directory}: in its trash {entry.name!r}"
    if tree.get(keys.trash_until(entry.until, entry.order)) != pack_place(entry):
        yield f"{where} is kept until {entry.until}, and nobody knows"
    record = tree.get(keys.inode(Ino(entry.ino)))
    if record is None:
        yield f"{where} is inode {entry.ino}, which does not exist"
        return
    inode = unpack_inode(record)
    if not inode.marks & TRASHED:
        yield f"{where} is inode {entry.ino}, which is not in the trash"
    if inode.parent != entry.directory:
        yield f"{where} is inode {entry.ino}, which is at home in {inode.parent}"
