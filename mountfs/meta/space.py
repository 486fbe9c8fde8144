"""Taking bytes out of files: holes, truncation, privileges that a change of bytes takes away."""

import stat

from mountfs.meta import keys
from mountfs.meta.records import HAS_CONTENT, HAS_SLICES, HAS_XATTRS, Inode, Slice
from mountfs.meta.tree import Tree
from mountfs.types import CHUNK_BYTES, SliceId, VolumeId

_CAPABILITY = b"security.capability"


def erase(tree: Tree, inode: Inode, start: int, stop: int) -> None:
    """Make `start:stop` of a file read as zeros, and free the space of whole blocks."""
    if start >= stop:
        return
    if inode.marks & HAS_CONTENT:
        _erase_content(tree, inode, start, stop)
        return
    if not inode.marks & HAS_SLICES:
        return
    for number, chunk in enumerate(
        list(tree.chunks(inode.ino, start // CHUNK_BYTES, (stop - 1) // CHUNK_BYTES))
    ):
        base = chunk * CHUNK_BYTES
        low, high = max(start - base, 0), min(stop - base, CHUNK_BYTES)
        if low == 0 and high == CHUNK_BYTES:
            drop_chunk(tree, inode, chunk)
        else:
            hole = Slice(low, high, SliceId(0), 0, VolumeId(0), 0, 0)
            tree.add_slice(inode, chunk, number, hole)


def drop_chunk(tree: Tree, inode: Inode, chunk: int) -> int:
    """Forget all bytes of a chunk.  Returns how many slices it had."""
    rows = tree.slice_rows(inode.ino, chunk)
    for key, piece in rows:
        tree.drop_slice(inode.ino, key, piece)
    before = tree.blocks(inode.ino, chunk)
    if before:
        tree.set_blocks(inode, chunk, before, 0)
    if tree.get(keys.tangled(inode.ino, chunk)) is not None:
        tree.put(keys.tangled(inode.ino, chunk), None)
    return len(rows)


def _erase_content(tree: Tree, inode: Inode, start: int, stop: int) -> None:
    content = tree.get(keys.content(inode.ino))
    assert content is not None, inode.ino
    if start == 0 and stop >= len(content):
        tree.drop_content(inode)
    elif stop >= len(content):
        tree.set_content(inode, content[:start])
    else:
        tree.set_content(inode, content[:start] + bytes(stop - start) + content[stop:])


def drop_privileges(tree: Tree, inode: Inode) -> None:
    """A change of bytes or owner takes away set-user-ID, set-group-ID (where it means that) and
    file capabilities.
    """
    inode.mode &= ~stat.S_ISUID
    if inode.mode & stat.S_IXGRP:
        inode.mode &= ~stat.S_ISGID
    drop_capabilities(tree, inode)


def drop_capabilities(tree: Tree, inode: Inode) -> None:
    if inode.marks & HAS_XATTRS:
        key = keys.xattr(inode.ino, _CAPABILITY)
        if tree.get(key) is not None:
            tree.put(key, None)
