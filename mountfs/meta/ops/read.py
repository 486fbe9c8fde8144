"""The questions that doors ask most: names, attributes, listings, where bytes are."""

import stat

import msgspec

from mountfs.errors import Fault, FsError
from mountfs.meta import keys
from mountfs.meta.command import Query
from mountfs.meta.permission import SEARCH, permit
from mountfs.meta.records import (
    ATTRIBUTES_BYTES,
    HAS_CONTENT,
    HAS_SLICES,
    MARKS_AT,
    RETAINED,
    Attributes,
    Slice,
    mode_of,
    size_of,
    unpack_entry,
)
from mountfs.meta.tree import Tree
from mountfs.types import ROOT, SLICE_BYTES_MAX, Cred, Ino, SliceId


class Lookup(Query[Attributes], frozen=True, tag="lookup"):
    """Raises NOT_FOUND, NOT_DIRECTORY, DENIED.  Knows "." and ".." too: "." of whatever it is, for
    the kernel asks so for the file of a handle (open_by_handle_at(2)); STALE without a name.
    """

    parent: Ino
    name: bytes
    cred: Cred

    def read(self, tree: Tree) -> Attributes:
        parent = tree.inode(self.parent)
        if not parent.is_directory:
            if self.name == b"." and parent.nlink:
                return parent.attributes()
            raise FsError(Fault.STALE if self.name == b"." else Fault.NOT_DIRECTORY)
        permit(tree, parent, self.cred, SEARCH)
        found = tree.dentry(self.parent, self.name)
        if found is not None:
            return Attributes(tree.record(found[0])[:ATTRIBUTES_BYTES])
        if self.name == b".":
            return parent.attributes()
        if self.name == b"..":
            return tree.inode(parent.parent if self.parent != ROOT else ROOT).attributes()
        if len(self.name) > 255:
            raise FsError(Fault.NAME_TOO_LONG)
        raise FsError(Fault.NOT_FOUND)


class GetAttr(Query[Attributes], frozen=True, tag="getattr"):
    ino: Ino

    def read(self, tree: Tree) -> Attributes:
        return Attributes(tree.record(self.ino)[:ATTRIBUTES_BYTES])


class Birth(Query[int], frozen=True, tag="birth"):
    """When the inode was made, in nanoseconds."""

    ino: Ino

    def read(self, tree: Tree) -> int:
        return tree.inode(self.ino).btime


class Readlink(Query[bytes], frozen=True, tag="readlink"):
    ino: Ino

    def read(self, tree: Tree) -> bytes:
        tree.inode(self.ino)
        target = tree.get(keys.target(self.ino))
        if target is None:
            raise FsError(Fault.INVALID, "not a symlink")
        return target


Listing = list[tuple[int, Ino, int, bytes, Attributes]]
"""(position, ino, type, name, attributes; b"" where they were not asked for)"""


class ReadDir(Query[Listing], frozen=True, tag="readdir"):
    """Up to `limit` entries after a position, the newest first.

    A position stays valid whatever happens to the directory: entries that stay are seen exactly
    once, and those that come while somebody lists are not seen, so that every listing ends.
    """

    ino: Ino
    after: int
    limit: int
    with_attributes: bool

    def read(self, tree: Tree) -> Listing:
        directory = tree.inode(self.ino)
        if not directory.is_directory:
            raise FsError(Fault.NOT_DIRECTORY)
        listing: Listing = []
        parent = directory.parent if self.ino != ROOT else ROOT
        for position, ino, name in ((1, self.ino, b"."), (2, parent, b"..")):
            if self.after < position:
                listing.append((position, ino, 4, name, Attributes(b"")))
        if not directory.entries:
            return listing
        attributes = Attributes(b"")
        for key, value in tree.scan(keys.entries(self.ino, self.after), limit=self.limit):
            ino, type, name = unpack_entry(value)
            if self.with_attributes:
                attributes = Attributes(tree.record(ino)[:ATTRIBUTES_BYTES])
            listing.append((keys.last_64(key), ino, type, name, attributes))
        return listing


class Layout(msgspec.Struct, frozen=True, array_like=True):
    """Where the bytes of one chunk are."""

    content: bytes | None
    """The whole content of a small file, and then there are no slices."""
    slices: tuple[Slice, ...]
    """Oldest first."""


class GetLayout(Query[Layout], frozen=True, tag="get_layout"):
    ino: Ino
    chunk: int

    def read(self, tree: Tree) -> Layout:
        inode = tree.inode(self.ino)
        if inode.marks & HAS_CONTENT:
            return Layout(tree.get(keys.content(self.ino)), ())
        if not inode.marks & HAS_SLICES:
            return Layout(None, ())
        return Layout(None, tuple(tree.slices(self.ino, self.chunk)))


class Opened(msgspec.Struct, frozen=True, array_like=True):
    attributes: Attributes
    layout: Layout | None
    """Of the first chunk, if that is all of the file and the file is small."""
    retained: bool = False
    """It has retention, or had: who wants to write asks (`RequireFree`)."""


class Opening(Query[Opened], frozen=True, tag="opening"):
    """What is asked of a file that is opened, and next of one that is then read: far away, two
    questions take twice as long as one.
    """

    ino: Ino

    def read(self, tree: Tree) -> Opened:
        record = tree.record(self.ino)
        attributes, retained = Attributes(record[:ATTRIBUTES_BYTES]), _is_retained(record)
        is_small = 0 < size_of(attributes) <= SLICE_BYTES_MAX
        if not is_small or not stat.S_ISREG(mode_of(attributes)):
            return Opened(attributes, None, retained)
        return Opened(attributes, GetLayout(self.ino, 0).read(tree), retained)


class IsRetained(Query[bool], frozen=True, tag="is_retained"):
    """Whether a file has retention, or had."""

    ino: Ino

    def read(self, tree: Tree) -> bool:
        return _is_retained(tree.record(self.ino))


def _is_retained(record: bytes) -> bool:
    return bool(record[MARKS_AT + 1] & RETAINED >> 8)


class NextChunk(Query[int | None], frozen=True, tag="next_chunk"):
    """The first chunk from `chunk` on that has slices."""

    ino: Ino
    chunk: int

    def read(self, tree: Tree) -> int | None:
        inode = tree.inode(self.ino)
        if inode.marks & HAS_CONTENT:
            return 0 if self.chunk == 0 else None
        return next(tree.chunks(self.ino, self.chunk, 1 << 40), None)


class GetPiece(Query[bytes], frozen=True, tag="get_piece"):
    """The bytes of a small slice that is kept in the metadata."""

    ino: Ino
    piece: SliceId

    def read(self, tree: Tree) -> bytes:
        data = tree.get(keys.piece(self.ino, self.piece))
        if data is None:
            raise FsError(Fault.STALE, f"inode {self.ino}: piece {self.piece} is gone")
        return data


class Usage(Query[tuple[int, int]], frozen=True, tag="usage"):
    """(inodes, bytes in use)"""

    def read(self, tree: Tree) -> tuple[int, int]:
        return tree.counters.inodes, tree.counters.allocated
