"""Where a file is charged: its home is `Inode.parent`.

A file with one name is at home in the directory that holds it.  A file with several is at home in
the one of those directories that was made first (the lowest number), whichever name came first: so
the home follows from the names alone, and all servers agree on it, also those that have learned of
homes at different times.  Only such files have rows here: how many names there are in each
directory.  A file that has lost its last name stays charged where that was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mountfs.meta import keys
from mountfs.meta.records import Inode
from mountfs.types import Ino

if TYPE_CHECKING:
    from mountfs.meta.tree import Tree


def add(tree: Tree, file: Inode, parent: Ino) -> None:
    """A name comes, which `nlink` does not count yet."""
    if file.nlink == 0:
        file.parent = parent
        return
    if file.nlink == 1:
        _set(tree, file.ino, file.parent, 1)
    _set(tree, file.ino, parent, _count(tree, file.ino, parent) + 1)
    file.parent = min(file.parent, parent)


def remove(tree: Tree, file: Inode, parent: Ino) -> None:
    """A name goes, which `nlink` still counts."""
    if file.nlink == 1:
        return
    left = _count(tree, file.ino, parent) - 1
    assert left >= 0, (file.ino, parent)
    _set(tree, file.ino, parent, left)
    if file.nlink == 2:
        file.parent = _first(tree, file.ino)
        _set(tree, file.ino, file.parent, 0)
    elif not left and file.parent == parent:
        file.parent = _first(tree, file.ino)


def move(tree: Tree, inode: Inode, source: Ino, target: Ino) -> None:
    """A name of it is in another directory now."""
    if inode.is_directory:
        inode.parent = target
        return
    remove(tree, inode, source)
    inode.nlink -= 1
    add(tree, inode, target)
    inode.nlink += 1


def _first(tree: Tree, ino: Ino) -> Ino:
    key, _ = next(tree.scan(keys.places(ino)))
    return Ino(keys.last_64(key))


def _count(tree: Tree, ino: Ino, parent: Ino) -> int:
    return int.from_bytes(tree.get(keys.place(ino, parent)) or b"", "little")


def _set(tree: Tree, ino: Ino, parent: Ino, count: int) -> None:
    tree.put(keys.place(ino, parent), count.to_bytes(4, "little") if count else None)
