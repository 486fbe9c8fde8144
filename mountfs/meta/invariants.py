"""What must hold in the metadata after every command, as a function that looks for what does not.

All rows are gone through in the order of their keys, which is inode by inode; the other end of a
reference is looked up by its key.  What is left to be counted across inodes (names, references to
slices) is counted in bitmaps, for a window of numbers at a time, and what lies below directories
for so many of them at a time.  So memory is bounded, however many files there are: 64 MiB of
bitmaps, the rows of one chunk, the orphans of the sessions, and an entry for each user, each file
with several names, each slice with several references and each directory above a retained file.
"""

import stat
from collections import Counter
from collections.abc import Iterator
from itertools import groupby

from mountfs.errors import FsError
from mountfs.meta import acl, keys
from mountfs.meta.account_invariants import account_violations
from mountfs.meta.extents import visible
from mountfs.meta.ops.lock import locks_of
from mountfs.meta.records import (
    HAS_ACL,
    HAS_CONTENT,
    HAS_LOCKS,
    HAS_SLICES,
    HAS_XATTRS,
    TRASHED,
    Inode,
    Slice,
    blocks_mask,
    unpack_blocks,
    unpack_dentry,
    unpack_garbage,
    unpack_inode,
    unpack_slice,
    unpack_used,
)
from mountfs.meta.retention_invariants import retention_marks, retention_rows
from mountfs.meta.trash_invariants import trash_marks, trash_rows
from mountfs.meta.tree import Tree
from mountfs.types import BLOCK_BYTES, CHUNK_BYTES, ROOT, Ino, SliceId

Row = tuple[bytes, bytes]

WINDOW = 1 << 28
"""So many inodes, or slices, are counted at a time.  A bitmap of them is 32 MiB."""
DIRECTORIES = 1 << 17
"""So many are added up at a time, in about 50 MB."""
_ANCHORED_MAX = 1 << 16
"""Directories that are remembered to hang from the root."""
_NOBODY = bytes(8)
"""How the keys of the filesystem as a whole begin."""
_HEAD = 9
"""Bytes of a key before the rest: inode and kind."""
_DIRECTORY = stat.S_IFDIR >> 12


def violations(
    tree: Tree, *, window: int = WINDOW, directories: int = DIRECTORIES
) -> Iterator[str]:
    """Every invariant that is broken, as a sentence.  Nothing comes out of a sound filesystem.

    Nothing may be applied while it runs.
    """
    yield from _each_inode(tree)
    yield from _orphans(tree)
    yield from _holders(tree)
    yield from _tangles(tree)
    yield from retention_rows(tree)
    yield from trash_rows(tree)
    for start in range(0, tree.counters.next_ino, window):
        yield from _names(tree, start, start + window)
    for start in range(0, tree.counters.next_slice, window):
        yield from _references(tree, start, start + window)
    yield from account_violations(tree, directories)


# -- one inode after the other


def _each_inode(tree: Tree) -> Iterator[str]:
    """What can be said of an inode by its own rows, and the sums over all."""
    inodes = allocated = 0
    anchored = {ROOT}
    if tree.get(keys.inode(ROOT)) is None:
        yield "there is no root directory"
    for ino, rows in _by_inode(tree):
        first, record = next(rows)
        if first == keys.sums(ino) and next(rows, None) is None:
            continue  # a directory that is gone, and something is still charged to it
        if first != keys.inode(ino):
            yield f"inode {ino} does not exist, but has rows: {first.hex()}"
            continue
        inode = unpack_inode(record)
        inodes += 1
        allocated += inode.allocated
        if ino >= tree.counters.next_ino:
            yield f"inode {ino} exists, but is to be given out next: {tree.counters.next_ino}"
        for trouble in (*_inode(tree, inode, rows), *_anchor(tree, inode, anchored)):
            yield f"inode {ino}: {trouble}"
    if inodes != tree.counters.inodes:
        yield f"there are {inodes} inodes, but {tree.counters.inodes} are counted"
    if allocated != tree.counters.allocated:
        yield f"{allocated} bytes are allocated, but {tree.counters.allocated} are counted"


def _by_inode(tree: Tree) -> Iterator[tuple[Ino, Iterator[Row]]]:
    for ino, rows in groupby(tree.everything(), key=lambda row: int.from_bytes(row[0][:8], "big")):
        if ino:
            yield Ino(ino), rows


def _inode(tree: Tree, inode: Inode, rows: Iterator[Row]) -> Iterator[str]:
    counts: Counter[int] = Counter()
    subdirectories = blocks = pieces = placed = 0
    first_place: int | None = None
    first_position: int | None = None
    for kind, same in groupby(rows, key=lambda row: row[0][8]):
        if kind == keys.SLICES:
            for chunk, slices in _by_chunk(same):
                counts[kind] += 1
                pieces += sum(not piece.volume and not piece.is_hole for piece in slices)
                yield from _chunk(tree, inode, chunk, slices)
            continue
        for key, value in same:
            counts[kind] += 1
            rest = key[_HEAD:]
            match kind:
                case keys.DENTRY:
                    _, _, type = unpack_dentry(value)
                    subdirectories += type == _DIRECTORY
                    yield from _dentry(tree, inode, rest, value)
                case keys.ENTRY:
                    first_position = first_position or keys.last_64(key)
                case keys.PLACE:
                    first_place = first_place or keys.last_64(key)
                    placed += int.from_bytes(value, "little")
                case keys.SUMS:
                    pass
                case keys.CONTENT:
                    blocks += 1
                    if not 0 < len(value) <= inode.size:
                        yield f"has a content of {len(value)} bytes and a size of {inode.size}"
                case keys.BLOCKS:
                    blocks += unpack_blocks(value).bit_count()
                case keys.TARGET:
                    if len(value) != inode.size:
                        yield f"has a target of {len(value)} bytes and a size of {inode.size}"
                case keys.XATTR:
                    yield from _xattr(inode, rest, value)
                case keys.LOCKS:
                    yield from _locks(tree, inode)
                case keys.PIECE | keys.RETENTION | keys.DEFAULT_RETENTION | keys.RETAINED_BELOW:
                    pass
                case keys.TRASH_SETTING | keys.TRASH:
                    pass
                case _:
                    yield f"has a row of unknown kind {kind:#x}"

    if inode.is_directory:
        yield from _directory(inode, counts, subdirectories, first_position)
    elif counts[keys.DENTRY] or counts[keys.ENTRY]:
        yield "has names, but is not a directory"
    if counts[keys.SUMS] != inode.is_directory:
        yield f"has {counts[keys.SUMS]} sums and mode {inode.mode:o}"
    if placed != (inode.nlink if inode.nlink > 1 and not inode.is_directory else 0):
        yield f"has {placed} names by its places, and nlink is {inode.nlink}"
    if first_place not in (None, inode.parent):
        yield f"is at home in directory {inode.parent}, and not in {first_place}"
    if counts[keys.TARGET] != stat.S_ISLNK(inode.mode):
        yield f"has {counts[keys.TARGET]} targets and mode {inode.mode:o}"
    if bool(inode.marks & HAS_CONTENT) != bool(counts[keys.CONTENT]):
        yield "is marked for content as it should not be"
    if counts[keys.SLICES] and not inode.marks & HAS_SLICES:
        yield "has slices without the mark"
    if inode.marks & HAS_CONTENT and inode.marks & HAS_SLICES:
        yield "is marked for content and for slices"
    if counts[keys.XATTR] and not inode.marks & HAS_XATTRS:
        yield "has extended attributes without the mark"
    if bool(inode.marks & HAS_LOCKS) != bool(counts[keys.LOCKS]):
        yield "is marked for locks as it should not be"
    yield from retention_marks(inode, counts)
    yield from trash_marks(inode, counts)
    if counts[keys.BLOCKS] and not inode.marks & HAS_SLICES:
        yield "has blocks without the mark for slices"
    if counts[keys.PIECE] != pieces:
        yield f"has {counts[keys.PIECE]} pieces, and {pieces} references to them"
    if blocks * BLOCK_BYTES != inode.allocated:
        yield f"has {blocks} blocks, but {inode.allocated} bytes are allocated"


def _directory(
    inode: Inode, counts: Counter[int], subdirectories: int, first_position: int | None
) -> Iterator[str]:
    names = counts[keys.DENTRY]
    if counts[keys.ENTRY] != names:
        yield f"has {names} names, but {counts[keys.ENTRY]} entries to list"
    if inode.entries != names:
        yield f"has {names} names, but {inode.entries} are counted"
    if first_position is not None and first_position <= inode.next_position:
        yield f"has an entry at {first_position}, but gives out {inode.next_position} next"
    if inode.nlink != 2 + subdirectories and (inode.nlink or names):
        yield f"has {subdirectories} subdirectories, but nlink is {inode.nlink}"


def _dentry(tree: Tree, directory: Inode, name: bytes, value: bytes) -> Iterator[str]:
    ino, position, type = unpack_dentry(value)
    listed = tree.get(keys.entry(directory.ino, position))
    if listed is None or listed[:9] != value[:8] + value[16:] or listed[9:] != name:
        yield f"{name!r} is not listed at its position {position}"
    record = tree.get(keys.inode(ino))
    if record is None:
        yield f"{name!r} is inode {ino}, which does not exist"
        return
    child = unpack_inode(record)
    if child.mode >> 12 != type:
        yield f"{name!r} has type {type}, but inode {ino} has mode {child.mode:o}"
    if child.is_directory and child.parent != directory.ino:
        yield f"{name!r} is directory {ino}, whose parent is {child.parent}"
    if child.nlink == 1 and child.parent != directory.ino:
        yield f"{name!r} is inode {ino}, which is at home in {child.parent}"


def _xattr(inode: Inode, name: bytes, value: bytes) -> Iterator[str]:
    if name not in (acl.ACCESS, acl.DEFAULT):
        return
    if not inode.marks & HAS_ACL:
        yield "has an ACL without the mark"
    try:
        entries = acl.parse(value)
    except FsError as error:
        yield f"has a bad {name.decode()}: {error}"
        return
    if name == acl.ACCESS and acl.mode_bits(entries, inode.mode) != inode.mode:
        yield f"has an ACL that does not fit to its mode {inode.mode:o}"


def _locks(tree: Tree, inode: Inode) -> Iterator[str]:
    for session in {lock.owner.session for lock in locks_of(tree, inode.ino)}:
        if tree.get(keys.locked(session, inode.ino)) is None:
            yield f"has a lock of session {session}, which does not know of it"


def _anchor(tree: Tree, inode: Inode, anchored: set[Ino]) -> Iterator[str]:
    """Whether a directory hangs from the root, by its parents; `anchored` are some that do."""
    if not inode.is_directory or not inode.nlink:
        return
    way: set[Ino] = set()
    ino = inode.ino
    while ino not in anchored:
        if ino in way:
            yield f"lies below itself: {sorted(way)}"
            return
        way.add(ino)
        record = tree.get(keys.inode(ino))
        if record is None:
            yield f"lies below inode {ino}, which does not exist"
            return
        ino = unpack_inode(record).parent
    if len(anchored) + len(way) <= _ANCHORED_MAX:
        anchored |= way


# -- the bytes of an inode


def _by_chunk(rows: Iterator[Row]) -> Iterator[tuple[int, list[Slice]]]:
    for chunk, same in groupby(rows, key=lambda row: keys.slice_place(row[0])[0]):
        yield chunk, [unpack_slice(value) for _, value in same]


def _chunk(tree: Tree, inode: Inode, chunk: int, slices: list[Slice]) -> Iterator[str]:
    for piece in slices:
        if not 0 <= piece.start < piece.stop <= CHUNK_BYTES:
            yield f"chunk {chunk} has a slice without place: {piece}"
            return
        if piece.is_hole:
            continue
        if piece.skip + piece.stop - piece.start > piece.length:
            yield f"chunk {chunk} has a slice that is too short: {piece}"
        if piece.volume:
            if piece.slice_id >= tree.counters.next_slice:
                yield f"chunk {chunk} has a slice that nobody was given: {piece}"
            continue
        data = tree.get(keys.piece(inode.ino, piece.slice_id))
        if data is None or len(data) != piece.length:
            yield f"chunk {chunk}: the piece is missing, or has another length: {piece}"

    seen = [piece for piece in visible(slices) if not piece.is_hole]
    value = tree.get(keys.blocks(inode.ino, chunk))
    counted = 0 if value is None else unpack_blocks(value)
    for piece in seen:
        if blocks_mask(piece.start, piece.stop) & ~counted:
            yield f"chunk {chunk} has bytes in blocks that are not counted: {piece}"
    if seen and chunk * CHUNK_BYTES + seen[-1].stop > inode.size:
        yield f"chunk {chunk} has bytes behind the size {inode.size}: {seen[-1]}"


# -- rows of the filesystem as a whole


def _orphans(tree: Tree) -> Iterator[str]:
    """Orphans have no names.  Their sessions may be over: then who mounts next removes them."""
    for key, _ in tree.scan(keys.orphans()):
        session, ino = keys.session_ino(key)
        record = tree.get(keys.inode(ino))
        if record is None:
            yield f"inode {ino}: an orphan of session {session} that does not exist"
        elif unpack_inode(record).nlink:
            yield f"inode {ino}: an orphan of session {session} that has a name"


def _holders(tree: Tree) -> Iterator[str]:
    sessions = {keys.last_64(key) for key, _ in tree.scan(keys.sessions())}
    for key, _ in tree.scan(keys.lockeds()):
        session, ino = keys.session_ino(key)
        if session not in sessions:
            yield f"inode {ino}: session {session} holds locks, but is over"
        if tree.get(keys.inode(ino)) is None:
            yield f"inode {ino}: session {session} holds locks on it, but it does not exist"
        elif all(lock.owner.session != session for lock in locks_of(tree, ino)):
            yield f"inode {ino}: session {session} is said to hold locks, but has none"


def _tangles(tree: Tree) -> Iterator[str]:
    for key, _ in tree.scan(keys.tangles()):
        ino, chunk = keys.tangle_place(key)
        if next(tree.scan(keys.slices_of(ino, chunk)), None) is None:
            yield f"inode {ino}: chunk {chunk} is to be compacted, but has no slices"


# -- what is counted across inodes


class _Bitmap:
    """A set of numbers of one window, in as much memory whatever is in it."""

    def __init__(self, start: int, stop: int) -> None:
        self._start = start
        self._bits = bytearray((stop - start + 7) // 8)

    def add(self, number: int) -> bool:
        """Whether it is new."""
        at, bit = divmod(number - self._start, 8)
        new = not self._bits[at] >> bit & 1
        self._bits[at] |= 1 << bit
        return new

    def discard(self, number: int) -> None:
        at, bit = divmod(number - self._start, 8)
        self._bits[at] &= ~(1 << bit)

    def __iter__(self) -> Iterator[int]:
        for at, byte in enumerate(self._bits):
            if byte:
                yield from (self._start + at * 8 + bit for bit in range(8) if byte >> bit & 1)

    def differences(self, other: "_Bitmap") -> Iterator[int]:
        """Numbers that are in one of the two."""
        step = 1 << 16
        for low in range(0, len(self._bits), step):
            mine, theirs = self._bits[low : low + step], other._bits[low : low + step]
            if mine == theirs:
                continue
            for at, (one, two) in enumerate(zip(mine, theirs, strict=True), low):
                for bit in range(8):
                    if (one ^ two) >> bit & 1:
                        yield self._start + at * 8 + bit


def _names(tree: Tree, start: int, stop: int) -> Iterator[str]:
    """Every inode from `start` to `stop` has the names that it counts; without one, it is an orphan
    of one session, or in the trash, of which `trash_rows` says more.
    """
    stop = min(stop, tree.counters.next_ino)
    wanted, found = _Bitmap(start, stop), _Bitmap(start, stop)
    linked: dict[tuple[Ino, int], int] = {}
    """Names that are still to be found, of files that have several, in each directory; 0 where all
    were.
    """
    for key, _ in tree.scan(keys.orphans()):
        session, ino = keys.session_ino(key)
        record = tree.get(keys.inode(ino)) if start <= ino < stop else None
        if record is not None and not unpack_inode(record).nlink and not found.add(ino):
            yield f"inode {ino}: an orphan of session {session} and of another"
    for key, value in tree.everything():
        kind = key[8] if key[:8] != _NOBODY else 0
        if kind == keys.INODE:
            inode = unpack_inode(value)
            ino = inode.ino
            if not start <= ino < stop or ino == ROOT or inode.marks & TRASHED:
                continue
            names = min(inode.nlink, 1) if inode.is_directory else inode.nlink
            if names <= 1:
                wanted.add(ino)
        elif kind == keys.PLACE:
            ino = Ino(int.from_bytes(key[:8], "big"))
            if start <= ino < stop:
                place = (ino, keys.last_64(key))
                linked[place] = linked.get(place, 0) + int.from_bytes(value, "little")
        elif kind == keys.DENTRY:
            ino, _, _ = unpack_dentry(value)
            record = tree.get(keys.inode(ino)) if start <= ino < stop else None
            if record is None:  # said already
                continue
            child = unpack_inode(record)
            if child.nlink > 1 and not child.is_directory:
                place = (ino, int.from_bytes(key[:8], "big"))
                linked[place] = linked.get(place, 0) - 1
            elif child.nlink == 0:
                yield f"inode {ino}: has the name {key[_HEAD:]!r}, but nlink is 0"
            elif not found.add(ino):
                yield f"inode {ino}: has another name {key[_HEAD:]!r}, but nlink is {child.nlink}"
    for number in wanted.differences(found):
        if tree.get(keys.inode(Ino(number))) is not None:
            yield f"inode {number}: has no name, and is no orphan"
    for (ino, directory), missing in linked.items():
        if missing:
            yield f"inode {ino}: its names in {directory} are {missing:+} from what is counted"


def _references(tree: Tree, start: int, stop: int) -> Iterator[str]:
    """Every slice from `start` to `stop` is referred to as often as is counted, or is garbage."""
    stop = min(stop, tree.counters.next_slice)
    seen, used = _Bitmap(start, stop), _Bitmap(start, stop)
    """Garbage or referred to; said to be used, and no reference found yet."""
    shared: dict[int, int] = {}
    for key, value in tree.everything():
        kind = key[8]
        if key[:8] == _NOBODY:
            number = keys.last_64(key)
            if kind == keys.GARBAGE and start <= number < stop:
                seen.add(number)
                volume = unpack_garbage(value)[0]
                if tree.get(keys.used(volume, SliceId(number))) is not None:
                    yield f"slice {number}: is garbage, and said to be used"
            elif kind == keys.USED and start <= number < stop:
                used.add(number)
            elif kind == keys.SHARED and start <= number < stop:
                shared[number] = int.from_bytes(value, "little")
                if shared[number] < 2:
                    yield f"slice {number}: is said to be shared by {shared[number]}"
        elif kind == keys.SLICES:
            piece = unpack_slice(value)
            number = piece.slice_id
            if not piece.volume or not start <= number < stop:
                continue
            row = tree.get(keys.used(piece.volume, piece.slice_id))
            if row is None or unpack_used(row) != (piece.length, piece.crc):
                yield f"slice {number}: is not said to be used, or not so: {piece}"
            used.discard(number)
            if number in shared:
                shared[number] -= 1
            elif not seen.add(number):
                ino = int.from_bytes(key[:8], "big")
                garbage = tree.get(keys.garbage(piece.slice_id)) is not None
                what = "is garbage" if garbage else "is in use elsewhere, but not counted so"
                yield f"inode {ino}: its slice {number} {what}"
    for number, missing in shared.items():
        if missing:
            yield f"slice {number}: is counted {missing:+} from its references"
    for number in used:
        yield f"slice {number}: is said to be used, but no file refers to it"
