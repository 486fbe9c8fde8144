"""Taking bytes out of files: holes, truncation, privileges that a change of bytes takes away."""

import stat
from collections.abc import Iterable

from mountfs.meta import keys
from mountfs.meta.records import HAS_CONTENT, HAS_SLICES, HAS_XATTRS, Inode, Slice, blocks_mask
from mountfs.meta.tree import Tree
from mountfs.types import CHUNK_BYTES, SliceId, VolumeId

SliceRows = list[tuple[bytes, Slice]]

_CAPABILITY = b"security.capability"


def erase(tree: Tree, inode: Inode, start: int, stop: int, number: int = 0) -> None:
    """Make `start:stop` of a file read as zeros, and free the space of whole blocks.  Holes get
    the slice number `number`.
    """
    if start >= stop:
        return
    if inode.marks & HAS_CONTENT:
        _erase_content(tree, inode, start, stop)
        return
    if not inode.marks & HAS_SLICES:
        return
    first, last = start // CHUNK_BYTES, (stop - 1) // CHUNK_BYTES
    whole: list[tuple[int, SliceRows]] = []
    for chunk in list(tree.chunks(inode.ino, first, last)):
        base = chunk * CHUNK_BYTES
        low, high = max(start - base, 0), min(stop - base, CHUNK_BYTES)
        if low == 0 and high == CHUNK_BYTES:
            whole.append((chunk, tree.slice_rows(inode.ino, chunk)))
        else:
            hole = Slice(low, high, SliceId(0), 0, VolumeId(0), 0, 0)
            tree.add_slice(inode, chunk, number, hole)
    drop_chunks(tree, inode, whole)


def reserve(tree: Tree, inode: Inode, start: int, stop: int) -> None:
    """Count the blocks of `start:stop` as in use, though they read as zeros until written."""
    move_content(tree, inode)
    inode.marks |= HAS_SLICES
    for chunk in range(start // CHUNK_BYTES, (stop - 1) // CHUNK_BYTES + 1):
        base = chunk * CHUNK_BYTES
        before = tree.blocks(inode.ino, chunk)
        after = before | blocks_mask(max(start - base, 0), min(stop - base, CHUNK_BYTES))
        if after != before:
            tree.set_blocks(inode, chunk, before, after)


def move_content(tree: Tree, inode: Inode) -> int:
    """A small file becomes a larger one: its content turns into its first slice.

    Returns the next slice number.
    """
    if not inode.marks & HAS_CONTENT:
        return 0
    content = tree.get(keys.content(inode.ino))
    assert content is not None, inode.ino
    tree.drop_content(inode)
    if content:
        piece = put_piece(tree, inode, 0, content)
        tree.add_slice(inode, 0, 0, Slice(0, len(content), piece, 0, VolumeId(0), len(content), 0))
    return 1


def put_piece(tree: Tree, inode: Inode, number: int, data: bytes) -> SliceId:
    """Keep bytes in the metadata, under a name that no other piece of the file has."""
    assert number < 1 << 20, number
    name = piece_name(tree, number)
    tree.put(keys.piece(inode.ino, name), data)
    return name


def piece_name(tree: Tree, number: int) -> SliceId:
    """Of piece `number` of the running command."""
    return SliceId(tree.stamp.index << 20 | number)


def drop_chunks(tree: Tree, inode: Inode, chunks: Iterable[tuple[int, SliceRows]]) -> None:
    """Forget all bytes of chunks.  Their rows were read before anything is changed: the more a
    command has changed, the longer it takes to read.
    """
    for chunk, rows in chunks:
        for key, piece in rows:
            tree.drop_slice(inode.ino, key, piece)
        before = tree.blocks(inode.ino, chunk)
        if before:
            tree.set_blocks(inode, chunk, before, 0)
        if tree.get(keys.tangled(inode.ino, chunk)) is not None:
            tree.put(keys.tangled(inode.ino, chunk), None)


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
