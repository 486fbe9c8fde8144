"""The accounts of the metadata: sums of every directory, use by user and by group, and quotas.

Every inode is charged to its home, `Inode.parent`, and to all directories above it; and to its
owner.  What a command changes of that is found when it commits, from the inodes as they were and as
they are.  So no operation can forget to count, and none can go around a quota.

Sums point to the sums of the directory above: moving a directory with all that is in it takes as
many steps as it is deep.  What changes in a directory stays pending there, and is added to those
above when somebody looks, or at the next checkpoint: a command takes no such steps.  Only what has
a quota knows at any time what it has.
"""

import struct
from collections.abc import Iterator, Mapping
from typing import Final

from mountfs.errors import Fault, FsError
from mountfs.kv.overlay import Overlay, Rows
from mountfs.meta import keys
from mountfs.meta.book import Book
from mountfs.meta.limited import AllLimited, Delta, Limited, load_quotas, quota_row
from mountfs.meta.quota import Kind, Quota
from mountfs.meta.records import UNCOUNTED, Inode
from mountfs.meta.sums import NOBODY, Sums, Use, unpack_sums, unpack_use
from mountfs.types import ROOT, Ino

_LIMITS_KNOWN_MAX: Final = 16_384
_DIRECTORY: Final = 0o040000
_TYPE: Final = 0o170000
_charged: Final = struct.Struct("<16xQ36xI4xII12xQ32xI").unpack_from
"""(blocks of 512 bytes, mode, uid, gid, parent, marks) of an inode's record."""

Account = tuple[int, int, int]
"""(home, uid, gid): inodes that have these in common are charged alike."""
Charge = tuple[Account, int, int, int]
"""What comes to an account: bytes, files, directories."""
Totals = dict[int, list[int]]
Nets = dict[Ino, tuple[Sums, list[int]]]
"""Sums, and what is to be added to them: bytes, files, directories."""


class _Changes:
    """What a command has done."""

    __slots__ = ("born", "charges", "gone", "moved")

    def __init__(self) -> None:
        self.charges: list[Charge] = []
        self.born: list[Inode] = []
        """New directories."""
        self.moved: list[tuple[Inode, Ino]] = []
        """Directories that lie elsewhere now, and where they lay."""
        self.gone: set[Ino] = set()
        """Directories without an inode that lose something, or their inode now."""


class Accounts:
    def __init__(self, rows: Overlay) -> None:
        self._rows = rows
        self._sums = Book(rows, lambda ino: keys.sums(Ino(ino)), unpack_sums)
        self._users = Book(rows, keys.use_of_user, unpack_use)
        self._groups = Book(rows, keys.use_of_group, unpack_use)
        self._pending: dict[Account, list[int]] = {}
        """Bytes, files, directories that are not in the books yet."""
        self._limited = AllLimited()
        self._limits_known: dict[Account, tuple[Limited, ...]] = {}
        """What with a quota an account counts for.  Forgotten when that may have changed."""
        self._staged: dict[tuple[Kind, int], Quota | None] = {}
        """Quotas that the running command sets, or takes away."""
        for kind, number, quota in load_quotas(rows):
            lost = kind is Kind.TREE and self._sums.find(number) is None  # fsck says so
            use = (0, 0) if lost else self.use(kind, number)
            self._limited.set(kind, number, quota, use)

    # -- what there is

    def sums(self, ino: Ino) -> Sums:
        """Of a directory.  Raises CORRUPT where there are none."""
        if self._pending:
            self._add_pending()
        return self._sums_of(ino)

    def chain(self, ino: Ino) -> Iterator[tuple[Ino, Sums]]:
        """A directory, and all above it, up to the root."""
        if self._pending:
            self._add_pending()
        while ino:
            sums = self._sums_of(ino)
            yield ino, sums
            ino = sums.parent

    def use(self, kind: Kind, number: int) -> tuple[int, int]:
        """(bytes, inodes) of what a quota of that kind limits."""
        if self._pending:
            self._add_pending()
        if kind is Kind.TREE:
            sums = self._sums_of(Ino(number))
            return sums.allocated, sums.inodes
        found = (self._users if kind is Kind.USER else self._groups).find(number)
        return (found.allocated, found.inodes) if found is not None else (0, 0)

    def owners(self, kind: Kind) -> list[int]:
        """The users, or groups, that have something, ascending."""
        if self._pending:
            self._add_pending()
        book = self._users if kind is Kind.USER else self._groups
        span = keys.uses_of_users() if kind is Kind.USER else keys.uses_of_groups()
        stored = {keys.last_64(key) for key, _ in self._rows.scan(*span)}
        found = sorted(stored | book.changed.keys())
        return [number for number in found if (use := book.find(number)) and use.inodes]

    # -- quotas

    @property
    def has_quotas(self) -> bool:
        return self._limited.exist

    def quota(self, kind: Kind, number: int) -> Quota | None:
        found = self._limited.find(kind, number)
        return None if found is None else found.quota

    def weighed(self, kind: Kind, number: int) -> tuple[int, int]:
        """(bytes, inodes) as they are held against a quota: always the same as `use`."""
        found = self._limited.find(kind, number)
        assert found is not None, (kind, number)
        return found.bytes, found.inodes

    def quotas(self) -> list[tuple[Kind, int]]:
        """By kind and number."""
        return self._limited.numbers()

    def limits_of(self, inode: Inode) -> tuple[Limited, ...]:
        """All that has a quota and that a file counts for."""
        return self._limits((inode.parent, inode.uid, inode.gid))

    def stage(self, kind: Kind, number: int, quota: Quota | None) -> None:
        """Set a quota, or take it away, when the running command commits."""
        self._staged[kind, number] = quota

    def abort(self) -> None:
        self._staged.clear()

    # -- rows

    def loose_rows(self) -> Rows:
        """Those that only checkpoints bring up to date."""
        if self._pending:
            self._add_pending()
        books = (self._sums, self._users, self._groups)
        return {key: row for book in books for key, row in book.loose_rows().items()}

    def written(self) -> None:
        """The loose rows are among the others now."""
        assert not self._pending
        for book in (self._sums, self._users, self._groups):
            book.written()

    # -- what a command changes

    def settle(
        self,
        touched: Mapping[Ino, Inode],
        before: Mapping[Ino, bytes],
        removed: set[Ino],
        changes: Rows,
        now: int,
    ) -> None:
        """Charge what a command has done; rows that go with it are put into `changes`.

        Raises OVER_QUOTA where the command makes use grow over what a quota allows, and then
        nothing has changed here.
        """
        found = self._changes(touched, before, removed, changes)
        if found.charges or found.gone:
            if found.moved or found.gone:
                self._settle_directories(found, changes, now)
            else:
                self._settle(found.charges, changes, now)
            for inode in found.born:
                self._sums.put(inode.ino, Sums(inode.parent if inode.ino != ROOT else NOBODY))
        if self._staged:
            self._take_in_quotas(changes)

    def _changes(
        self,
        touched: Mapping[Ino, Inode],
        before: Mapping[Ino, bytes],
        removed: set[Ino],
        changes: Rows,
    ) -> _Changes:
        found = _Changes()
        charges = found.charges
        for ino, inode in touched.items():
            record = before.get(ino)
            if record is None:
                if inode.mode & _TYPE != _DIRECTORY:
                    charges.append(((inode.parent, inode.uid, inode.gid), inode.allocated, 1, 0))
                else:
                    found.born.append(inode)
                    home = inode.parent if ino != ROOT else NOBODY
                    charges.append(((home, inode.uid, inode.gid), 0, 0, 1))
                continue
            blocks, mode, uid, gid, parent, marks = _charged(record)
            if (marks | inode.marks) & UNCOUNTED:
                self._counts_again(inode, record, found)
                continue
            more = inode.allocated - (blocks << 9)
            if parent == inode.parent and uid == inode.uid and gid == inode.gid:
                if more:
                    charges.append(((parent, uid, gid), more, 0, 0))
                continue
            directory = int(mode & _TYPE == _DIRECTORY)
            home = inode.parent
            if ino == ROOT:
                parent = home = NOBODY
            charges.append(((parent, uid, gid), -(blocks << 9), directory - 1, -directory))
            charges.append(
                ((home, inode.uid, inode.gid), inode.allocated, 1 - directory, directory)
            )
            if parent != home:
                if directory:
                    found.moved.append((inode, parent))
                elif parent not in touched and self._is_gone(parent, changes):
                    found.gone.add(parent)
        for ino in removed:
            blocks, mode, uid, gid, parent, marks = _charged(before[ino])
            directory = int(mode & _TYPE == _DIRECTORY)
            if directory:
                found.gone.add(ino)
                if self._limited.find(Kind.TREE, ino) is not None:
                    self._staged[Kind.TREE, ino] = None
            if marks & UNCOUNTED:
                continue
            charges.append(((parent, uid, gid), -(blocks << 9), directory - 1, -directory))
            if parent not in touched and self._is_gone(parent, changes):
                found.gone.add(parent)
        return found

    def _counts_again(self, inode: Inode, record: bytes, found: _Changes) -> None:
        """It counted for nobody, or does not from now on: in the trash of some trees."""
        blocks, mode, uid, gid, parent, marks = _charged(record)
        directory = int(mode & _TYPE == _DIRECTORY)
        if not marks & UNCOUNTED:
            charge = (parent, uid, gid), -(blocks << 9), directory - 1, -directory
            found.charges.append(charge)
        if not inode.marks & UNCOUNTED:
            home = inode.parent, inode.uid, inode.gid
            found.charges.append((home, inode.allocated, 1 - directory, directory))
        if directory and parent != inode.parent:
            found.moved.append((inode, parent))

    def _settle(self, charges: list[Charge], changes: Rows, now: int) -> None:
        """What nearly every command does: something changes in directories that stay."""
        if self._limited.exist:
            deltas = self._deltas(charges)
            notes = self._limited.judge(deltas, now)
            self._limited.add(deltas, notes, changes)
        pending = self._pending
        for account, bytes, files, directories in charges:
            found = pending.get(account)
            if found is None:
                pending[account] = [bytes, files, directories]
            else:
                found[0] += bytes
                found[1] += files
                found[2] += directories

    def _deltas(self, charges: list[Charge]) -> list[Delta]:
        if len(charges) == 1:
            ((account, bytes, files, directories),) = charges
            limits = self._limits_known.get(account) or self._limits(account)
            return [(one, bytes, files + directories) for one in limits]
        totals: dict[Limited, list[int]] = {}
        for account, bytes, files, directories in charges:
            for one in self._limits(account):
                total = totals.setdefault(one, [0, 0])
                total[0] += bytes
                total[1] += files + directories
        return [(one, *total) for one, total in totals.items()]  # type: ignore[misc]

    def _limits(self, account: Account) -> tuple[Limited, ...]:
        found = self._limits_known.get(account)
        if found is None:
            home, uid, gid = account
            limited = self._limited
            trees = [limited.trees.get(ino) for ino, _ in self._chain(Ino(home))]
            all_of_it = (*trees, limited.users.get(uid), limited.groups.get(gid))
            found = tuple(one for one in all_of_it if one is not None)
            if len(self._limits_known) >= _LIMITS_KNOWN_MAX:
                self._limits_known.clear()
            self._limits_known[account] = found
        return found

    def _settle_directories(self, found: _Changes, changes: Rows, now: int) -> None:
        """Directories move, each with all that is below it, or are gone: then their sums go when
        nothing is charged to them any more.
        """
        self._add_pending()
        homes, users, groups = _totals(found.charges)
        for inode, parent in found.moved:
            below = self._sums_of(inode.ino)
            for home, sign in ((parent, -1), (inode.parent, 1)):
                delta = homes.setdefault(home, [0, 0, 0])
                delta[0] += sign * below.allocated
                delta[1] += sign * below.files
                delta[2] += sign * below.directories
        # A file that is exchanged for a directory may be at home in that directory then: what comes
        # to it meanwhile counts where it is now.
        nets = self._nets(homes, {inode.ino: inode.parent for inode, _ in found.moved})
        empty = [
            ino
            for ino in nets.keys() | found.gone
            if self._is_empty(ino, nets) and self._is_gone(ino, changes)
        ]
        moving = [(self._sums_of(inode.ino), inode) for inode, _ in found.moved]
        owners = self._owners(users, groups)
        if self._limited.exist:
            deltas = self._deltas_of(nets, users, groups)
            notes = self._limited.judge(deltas, now)
            self._limited.add(deltas, notes, changes)
        # Nothing is refused from here on.
        self._add_up(nets, owners)
        for sums, inode in moving:
            sums.parent = inode.parent
            self._sums.put(inode.ino, sums)
        for ino in empty:
            changes[self._sums.drop(ino)] = None
        self._limits_known.clear()

    def _deltas_of(self, nets: Nets, users: Totals, groups: Totals) -> list[Delta]:
        limited = self._limited
        deltas = [
            (one, bytes, files + directories)
            for ino, (_, (bytes, files, directories)) in nets.items()
            if (one := limited.trees.get(ino)) is not None
        ]
        for of_kind, totals in ((limited.users, users), (limited.groups, groups)):
            for number, (bytes, inodes) in totals.items():
                if (one := of_kind.get(number)) is not None:
                    deltas.append((one, bytes, inodes))
        return deltas

    def _is_gone(self, ino: int, changes: Rows) -> bool:
        key = keys.inode(Ino(ino))
        return (changes[key] if key in changes else self._rows.get(key)) is None

    def _is_empty(self, ino: Ino, nets: Nets) -> bool:
        sums = self._sums_of(ino)
        _, files, directories = nets[ino][1] if ino in nets else (0, 0, 0)
        return not sums.files + files and not sums.directories + directories

    def _take_in_quotas(self, changes: Rows) -> None:
        for (kind, number), quota in self._staged.items():
            key = keys.quota(kind, number)
            if quota is None:
                self._limited.remove(kind, number)
                changes[key] = None
            else:
                self._limited.set(kind, number, quota, self.use(kind, number))
                changes[key] = quota_row(quota)
        self._limits_known.clear()
        self._staged.clear()

    # -- the books

    def _sums_of(self, ino: int) -> Sums:
        found = self._sums.find(ino)
        if found is None:
            raise FsError(Fault.CORRUPT, f"inode {ino}: what lies below it was never counted")
        return found

    def _chain(self, ino: Ino) -> Iterator[tuple[Ino, Sums]]:
        while ino:
            sums = self._sums_of(ino)
            yield ino, sums
            ino = sums.parent

    def _add_pending(self) -> None:
        charges = [(account, *delta) for account, delta in self._pending.items()]
        homes, users, groups = _totals(charges)  # type: ignore[arg-type]
        self._add_up(self._nets(homes, {}), self._owners(users, groups))
        self._pending.clear()

    def _nets(self, homes: Totals, moved: Mapping[Ino, Ino]) -> Nets:
        """`moved`: directories that are to lie elsewhere, and where."""
        nets: Nets = {}
        for home, delta in homes.items():
            if not any(delta):
                continue
            ino = Ino(home)
            while ino:
                sums = self._sums_of(ino)
                found = nets.get(ino)
                if found is None:
                    nets[ino] = (sums, delta[:])
                else:
                    net = found[1]
                    net[0] += delta[0]
                    net[1] += delta[1]
                    net[2] += delta[2]
                ino = moved.get(ino, sums.parent)
        return nets

    def _owners(self, users: Totals, groups: Totals) -> list[tuple[Book[Use], int, Use, list[int]]]:
        return [
            (book, number, book.find(number) or Use(), delta)
            for book, totals in ((self._users, users), (self._groups, groups))
            for number, delta in totals.items()
            if any(delta)
        ]

    def _add_up(self, nets: Nets, owners: list[tuple[Book[Use], int, Use, list[int]]]) -> None:
        for ino, (sums, (bytes, files, directories)) in nets.items():
            sums.allocated += bytes
            sums.files += files
            sums.directories += directories
            assert sums.allocated >= 0, ino
            assert sums.files >= 0, ino
            assert sums.directories >= 0, ino
            self._sums.put(ino, sums)
        for book, number, use, (bytes, inodes) in owners:
            use.allocated += bytes
            use.inodes += inodes
            assert use.allocated >= 0, number
            assert use.inodes >= 0, number
            book.put(number, use)


def _totals(charges: list[Charge]) -> tuple[Totals, Totals, Totals]:
    """By directory, user and group."""
    homes: Totals = {}
    users: Totals = {}
    groups: Totals = {}
    for (home, uid, gid), bytes, files, directories in charges:
        at_home = homes.setdefault(home, [0, 0, 0])
        at_home[0] += bytes
        at_home[1] += files
        at_home[2] += directories
        for totals, number in ((users, uid), (groups, gid)):
            owned = totals.setdefault(number, [0, 0])
            owned[0] += bytes
            owned[1] += files + directories
    return homes, users, groups
