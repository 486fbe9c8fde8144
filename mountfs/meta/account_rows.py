"""States from before there were accounts: sums of directories, use by users and groups, and the
places of files with several names are counted when such a state is opened.

They follow from the inodes and names that there are, so every server makes the same ones, whenever
it does.  That they are there is said with the last batch: a crash in between leaves a state without
them, and it is done again; and so it is where a program that does not know of them has worked on
the state since.  In memory there is an entry for each directory, and for each file with several
names.
"""

from collections import Counter
from typing import Final

import msgspec

from mountfs.kv.base import Store
from mountfs.kv.overlay import Rows
from mountfs.meta import keys
from mountfs.meta.quota import Kind
from mountfs.meta.records import UNCOUNTED, Counters, Inode, unpack_dentry, unpack_inode
from mountfs.meta.sums import NOBODY, Sums, Use
from mountfs.meta.trash import unpack_entry
from mountfs.types import ROOT, Ino

BEFORE: Final = 3
"""`Counters.format` of states from before there were accounts."""
SINCE: Final = 4
BATCH: Final = 20_000


def make_account_rows(store: Store) -> None:
    """Does nothing to a state that has them.  Blocks."""
    row = store.get(keys.COUNTERS)
    if row is None:
        return
    counters = msgspec.msgpack.decode(row, type=Counters)
    if counters.counted and counters.format != BEFORE:
        return
    rows = {} if counters.counted else _Counting(store).rows()
    counters.counted = True
    if counters.format == BEFORE:  # or it is brought to that first, and comes again
        counters.format = SINCE
    store.write({**rows, keys.COUNTERS: msgspec.msgpack.encode(counters)}, sync=True)


class _Counting:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._rows: Rows = {}
        self._directories: dict[Ino, Sums] = {}
        self._uncounted: set[Ino] = set()
        """Directories in the trash that count for nobody."""
        self._users: dict[int, Use] = {}
        self._groups: dict[int, Use] = {}
        self._places: dict[Ino, Counter[Ino]] = {}
        """Of files with several names: how many there are in which directory."""

    def rows(self) -> Rows:
        """The last of them; all others are written."""
        self._forget()
        self._scan()
        self._charge_linked()
        self._charge_orphans()
        self._add_up()
        for number, use in self._users.items():
            self._put(keys.use_of_user(number), use.pack())
        for number, use in self._groups.items():
            self._put(keys.use_of_group(number), use.pack())
        for ino, sums in self._directories.items():
            self._put(keys.sums(ino), sums.pack())
        return self._rows

    def _forget(self) -> None:
        """What somebody has counted who was not the last to change something."""
        for span in (keys.uses_of_users(), keys.uses_of_groups()):
            for key, _ in list(self._store.scan(*span)):
                self._put(key, None)
        for key, _ in list(self._store.scan(*keys.quotas())):
            kind, number = keys.quota_of(key)
            if kind == Kind.TREE and self._store.get(keys.inode(Ino(number))) is None:
                self._put(key, None)

    def _scan(self) -> None:
        first = keys.everything_of(keys.FIRST_INO)[0]
        for key, value in self._store.scan(first, b"\xff" * 9):
            if key[8] == keys.INODE:
                inode = unpack_inode(value)
                counted = not inode.marks & UNCOUNTED
                owned = ((self._users, inode.uid), (self._groups, inode.gid)) if counted else ()
                for owners, number in owned:
                    use = owners.setdefault(number, Use())
                    use.allocated += inode.allocated
                    use.inodes += 1
                if inode.is_directory:
                    if inode.marks & UNCOUNTED:
                        self._uncounted.add(inode.ino)
                    parent = inode.parent if inode.ino != ROOT else NOBODY
                    self._directories[inode.ino] = Sums(parent)
            elif key[8] in (keys.SUMS, keys.PLACE):
                self._put(key, None)
            elif key[8] == keys.DENTRY:
                directory = Ino(int.from_bytes(key[:8], "big"))
                ino, _, type = unpack_dentry(value)
                if type != _DIRECTORY:
                    self._name(directory, ino)

    def _name(self, directory: Ino, ino: Ino) -> None:
        record = self._store.get(keys.inode(ino))
        if record is None:  # fsck says so
            return
        inode = unpack_inode(record)
        if inode.nlink > 1:
            self._places.setdefault(ino, Counter())[directory] += 1
        else:
            self._charge(inode, directory)

    def _charge_linked(self) -> None:
        for ino, places in self._places.items():
            record = self._store.get(keys.inode(ino))
            assert record is not None, ino
            self._charge(unpack_inode(record), min(places))
            for directory, count in places.items():
                self._put(keys.place(ino, directory), count.to_bytes(4, "little"))

    def _charge_orphans(self) -> None:
        for ino in self._without_names():
            record = self._store.get(keys.inode(ino))
            if record is None:
                continue
            inode = unpack_inode(record)
            home = inode.parent if inode.parent in self._directories else ROOT
            if not inode.is_directory:
                self._charge(inode, home)
            elif home != inode.parent:
                self._directories[ino].parent = home
                self._move(inode, home)

    def _without_names(self) -> list[Ino]:
        orphans = [keys.session_ino(key)[1] for key, _ in self._store.scan(*keys.orphans())]
        first = keys.everything_of(keys.FIRST_INO)[0]
        return orphans + [
            unpack_entry(key, value).ino
            for key, value in self._store.scan(first, b"\xff" * 9)
            if key[8] == keys.TRASH
        ]

    def _charge(self, inode: Inode, home: Ino) -> None:
        sums = self._directories.get(home)
        if sums is None:  # fsck says so
            return
        if not inode.marks & UNCOUNTED:
            sums.allocated += inode.allocated
            sums.files += 1
        if inode.parent != home:
            self._move(inode, home)

    def _move(self, inode: Inode, home: Ino) -> None:
        inode.parent = home
        self._put(keys.inode(inode.ino), inode.pack())

    def _add_up(self) -> None:
        """From what lies in each directory itself to what lies below it: leaves first."""
        directories = self._directories
        children = Counter(sums.parent for sums in directories.values())
        ready = [ino for ino in directories if not children[ino]]
        while ready:
            ino = ready.pop()
            sums = directories[ino]
            above = directories.get(sums.parent)
            if above is None:
                continue
            above.allocated += sums.allocated
            above.files += sums.files
            above.directories += sums.directories + (ino not in self._uncounted)
            children[sums.parent] -= 1
            if not children[sums.parent]:
                ready.append(sums.parent)

    def _put(self, key: bytes, value: bytes | None) -> None:
        self._rows[key] = value
        if len(self._rows) == BATCH:
            self._store.write(self._rows, sync=False)
            self._rows = {}


_DIRECTORY: Final = 0o040000 >> 12
