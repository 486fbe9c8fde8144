"""Any history of commands, quotas, trash, checkpoints and crashes: what is counted is what a walk
through all names and the trash finds, and no quota is ever passed.
"""

from collections import Counter, defaultdict
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from mountfs.errors import Fault, FsError
from mountfs.meta.ops.allocate import KEEP_SIZE, PUNCH_HOLE, Allocate
from mountfs.meta.ops.copy_range import CopyRange
from mountfs.meta.ops.link import Link
from mountfs.meta.ops.make import Make
from mountfs.meta.ops.mkdir import Mkdir
from mountfs.meta.ops.quota import Below, DeleteQuota, ListQuotas, Owners, SetQuota
from mountfs.meta.ops.reap import Orphans, Reap
from mountfs.meta.ops.rename import EXCHANGE, Rename
from mountfs.meta.ops.rmdir import Rmdir
from mountfs.meta.ops.setattr import SetAttr
from mountfs.meta.ops.symlink import Symlink
from mountfs.meta.ops.tmpfile import Tmpfile
from mountfs.meta.ops.trash import NOBODYS, EmptyTrash, ListTrash, SetTrash
from mountfs.meta.ops.undelete import Undelete, UndeleteIn
from mountfs.meta.ops.unlink import Unlink
from mountfs.meta.ops.write import Write
from mountfs.meta.quota import Kind, Limits
from mountfs.meta.records import NS, UNCOUNTED
from mountfs.meta.trash import Setting
from mountfs.types import BLOCK_BYTES, CHUNK_BYTES, ROOT, SUPERUSER, Cred, Ino

NAMES = st.sampled_from([b"a", b"b", b"c"])
CREDS = st.sampled_from([SUPERUSER, Cred(1, 5, (), True), Cred(2, 5, (), True)])
OFFSETS = st.sampled_from([0, 100, BLOCK_BYTES, 5 * BLOCK_BYTES, CHUNK_BYTES - 10, CHUNK_BYTES])
LENGTHS = st.sampled_from([1, 20, BLOCK_BYTES, 3 * BLOCK_BYTES])
LIMIT = st.integers(0, 6)
NOW = 1_800_000_000 * NS


class Seen:
    """What a walk through all names, all orphans and the trash finds."""

    def __init__(self, machine: Any) -> None:
        self._machine = machine
        self.directories: dict[Ino, Ino] = {ROOT: Ino(0)}
        """And the one above."""
        homes: dict[Ino, list[Ino]] = defaultdict(list)
        wanted = [ROOT]
        while wanted:
            directory = wanted.pop()
            for child in machine.listing(directory).values():
                if machine.stat(child).mode >> 12 == 4:
                    self.directories[child] = directory
                    wanted.append(child)
                else:
                    homes[child].append(directory)
        self.homes = {ino: min(found) for ino, found in homes.items()}
        self.orphans = {ino for _, ino in machine.ask(Orphans(None, 1_000))}
        self.names = {ino: len(found) for ino, found in homes.items()}
        self.trash = machine.ask(ListTrash(ROOT, 0, 1_000)).found
        marks = {ino: machine.state.tree.inode(ino).marks for ino in self.orphans}
        self.uncounted = {ino for ino in self.orphans if marks[ino] & UNCOUNTED}
        """Without a name, and charged to nobody."""
        self.uncounted |= {one.entry.ino for one in self.trash if not one.counted}

    def sums(self) -> dict[Ino, tuple[int, int, int]]:
        """(bytes, files, directories) below each directory; without orphans."""
        deleted = {one.entry.ino: one for one in self.trash}
        above = {
            **self.directories,
            **{ino: one.entry.directory for ino, one in deleted.items() if one.mode >> 12 == 4},
        }
        totals: dict[Ino, list[int]] = {ino: [0, 0, 0] for ino in above}

        def add(home: Ino, *more: int) -> None:
            while home:
                totals[home] = [one + two for one, two in zip(totals[home], more, strict=True)]
                home = above[home]

        for ino, home in self.homes.items():
            add(home, self._machine.stat(ino).blocks * 512, 1, 0)
        for home in self.directories.values():
            add(home, 0, 0, 1)
        for one in deleted.values():
            if one.counted:
                directory = one.mode >> 12 == 4
                add(one.entry.directory, one.allocated, not directory, directory)
        found = {ino: totals[ino] for ino in self.directories}
        return {ino: (sums[0], sums[1], sums[2]) for ino, sums in found.items()}

    def owners(self) -> dict[tuple[Kind, int], tuple[int, int]]:
        bytes: Counter[tuple[Kind, int]] = Counter()
        inodes: Counter[tuple[Kind, int]] = Counter()
        deleted = {one.entry.ino for one in self.trash}
        for ino in {*self.directories, *self.homes, *self.orphans, *deleted} - self.uncounted:
            stat = self._machine.stat(ino)
            for owner in ((Kind.USER, stat.uid), (Kind.GROUP, stat.gid)):
                bytes[owner] += stat.blocks * 512
                inodes[owner] += 1
        return {owner: (bytes[owner], inodes[owner]) for owner in inodes}


class Accounts(RuleBasedStateMachine):
    def __init__(self, machine: Any) -> None:
        super().__init__()
        self.machine = machine
        machine.proven = NOW
        for path in ("a/", "b/", "a/b/", "a/b/c/", "a/a", "b/b"):
            machine.make(path)
        self.seen = Seen(machine)
        self.refused = 0

    def ask(self, command: Any) -> None:
        before = {(one.kind, one.number): one for one in self.machine.ask(ListQuotas(0, 0, 99))}
        try:
            self.machine.do(command)
        except FsError as error:
            self.refused += error.fault is Fault.OVER_QUOTA
            assert error.fault is not Fault.CORRUPT, command
        for now in self.machine.ask(ListQuotas(0, 0, 99)):
            then = before.get((now.kind, now.number))
            if then is None or then.quota.limits != now.quota.limits:
                continue
            limits = now.quota.limits
            assert not limits.hard_bytes or now.bytes <= max(limits.hard_bytes, then.bytes)
            assert not limits.hard_inodes or now.inodes <= max(limits.hard_inodes, then.inodes)

    def directory(self, data: Any) -> Ino:
        return data.draw(st.sampled_from(sorted(self.seen.directories)), label="directory")

    def file(self, data: Any) -> Ino:
        deleted = {one.entry.ino for one in self.seen.trash if one.mode >> 12 != 4}
        files = sorted({*self.seen.homes, *self.seen.orphans, *deleted}) or [ROOT]
        return data.draw(st.sampled_from(files), label="file")

    def place(self, data: Any) -> tuple[Ino, bytes]:
        return self.directory(data), data.draw(NAMES)

    @rule(data=st.data(), kind=st.integers(0, 3), cred=CREDS)
    def make(self, data: Any, kind: int, cred: Cred) -> None:
        place = self.place(data)
        if kind == 0:
            self.ask(Mkdir(*place, 0o777, 0, cred))
        elif kind == 1:
            self.ask(Symlink(*place, b"target", cred))
        elif kind == 2:
            self.ask(Tmpfile(place[0], 0o600, 0, cred))
        else:
            self.ask(Make(*place, 0o100666, 0, 0, False, cred))

    @rule(data=st.data(), offset=OFFSETS, length=LENGTHS)
    def write(self, data: Any, offset: int, length: int) -> None:
        length = min(length, CHUNK_BYTES - offset % CHUNK_BYTES)
        file, slices = self.file(data), data.draw(st.booleans())
        run = self.machine.run(offset, b"x" * length, in_slice=slices)
        self.ask(Write(file, (run,), 0, False))

    @rule(data=st.data(), size=OFFSETS)
    def truncate(self, data: Any, size: int) -> None:
        self.ask(SetAttr(ino=self.file(data), cred=SUPERUSER, size=size))

    @rule(data=st.data(), offset=OFFSETS, length=LENGTHS, punch=st.booleans())
    def allocate(self, data: Any, offset: int, length: int, punch: bool) -> None:
        mode = PUNCH_HOLE | KEEP_SIZE if punch else 0
        self.ask(Allocate(self.file(data), mode, offset, length, False))

    @rule(data=st.data(), offset=OFFSETS, length=LENGTHS)
    def copy(self, data: Any, offset: int, length: int) -> None:
        self.ask(CopyRange(self.file(data), 0, self.file(data), offset, length, False))

    @rule(data=st.data(), uid=st.integers(0, 2), gid=st.integers(5, 6))
    def give(self, data: Any, uid: int, gid: int) -> None:
        ino = data.draw(st.sampled_from([self.file(data), self.directory(data)]))
        self.ask(SetAttr(ino=ino, cred=SUPERUSER, uid=uid, gid=gid))

    @rule(data=st.data())
    def link(self, data: Any) -> None:
        self.ask(Link(self.file(data), *self.place(data), SUPERUSER))

    @rule(data=st.data(), exchange=st.booleans())
    def rename(self, data: Any, exchange: bool) -> None:
        flags = EXCHANGE if exchange else 0
        self.ask(Rename(*self.place(data), *self.place(data), flags, SUPERUSER))

    @rule(data=st.data())
    def remove(self, data: Any) -> None:
        place = self.place(data)
        self.ask(data.draw(st.sampled_from([Unlink, Rmdir]))(*place, SUPERUSER))

    @precondition(lambda self: self.seen.orphans)
    @rule(data=st.data())
    def reap(self, data: Any) -> None:
        some = data.draw(st.lists(st.sampled_from(sorted(self.seen.orphans)), max_size=4))
        self.ask(Reap(data.draw(st.sampled_from([self.machine.session, NOBODYS])), tuple(some)))

    @rule(data=st.data(), days=st.sampled_from([None, 0, 1, 2]), counts=st.booleans())
    def set_trash(self, data: Any, days: int | None, counts: bool) -> None:
        setting = None if days is None else Setting(days, counts)
        self.ask(SetTrash(self.directory(data), setting, SUPERUSER))

    @precondition(lambda self: self.seen.trash)
    @rule(data=st.data(), back=st.booleans())
    def undelete(self, data: Any, back: bool) -> None:
        entry = data.draw(st.sampled_from(self.seen.trash), label="deleted").entry
        place = (entry.directory, entry.name) if back else self.place(data)
        self.ask(Undelete(entry.directory, entry.name, entry.order, *place, SUPERUSER))

    @precondition(lambda self: self.seen.trash)
    @rule(data=st.data())
    def undelete_in(self, data: Any) -> None:
        run = data.draw(st.sampled_from([one.entry.run for one in self.seen.trash]))
        self.ask(UndeleteIn(((self.directory(data), b""),), run, SUPERUSER))

    @rule(order=st.sampled_from([1, -1]))
    def reap_trash(self, order: int) -> None:
        for session, ino in self.machine.ask(Orphans(NOBODYS, 1_000))[::order]:
            self.ask(Reap(session, (ino,)))

    @rule(hours=st.integers(1, 30), now=st.booleans())
    def empty_trash(self, hours: int, now: bool) -> None:
        self.machine.proven += hours * 3_600 * NS
        found = tuple((one.entry.until, one.entry.order) for one in self.seen.trash)
        self.ask(EmptyTrash(found[::2] if now else found, SUPERUSER if now else None))

    @rule(data=st.data(), kind=st.sampled_from(Kind), bytes=LIMIT, inodes=LIMIT)
    def set_quota(self, data: Any, kind: Kind, bytes: int, inodes: int) -> None:
        number = self.directory(data) if kind is Kind.TREE else data.draw(st.integers(0, 6))
        limits = Limits(hard_bytes=bytes * BLOCK_BYTES, hard_inodes=inodes, soft_inodes=inodes // 2)
        self.ask(SetQuota(kind, number, limits))

    @rule(data=st.data(), kind=st.sampled_from(Kind))
    def delete_quota(self, data: Any, kind: Kind) -> None:
        number = self.directory(data) if kind is Kind.TREE else data.draw(st.integers(0, 6))
        self.ask(DeleteQuota(kind, number))

    @rule()
    def checkpoint(self) -> None:
        self.machine.checkpoint()

    @rule()
    def crash(self) -> None:
        before = self.machine.rows()
        self.machine.restart()
        assert self.machine.rows() == before

    @invariant()
    def what_is_counted_is_what_a_walk_finds(self) -> None:
        machine = self.machine
        self.seen = seen = Seen(machine)
        sums = {ino: machine.ask(Below(ino)) for ino in seen.directories}
        if not seen.orphans:
            assert sums == seen.sums()
        owners = {
            (kind, number): (bytes, inodes)
            for kind in (Kind.USER, Kind.GROUP)
            for number, bytes, inodes in machine.ask(Owners(kind, 0, 99))
        }
        assert owners == seen.owners()
        counters = machine.state.tree.counters
        uncounted = sum(machine.stat(ino).blocks * 512 for ino in seen.uncounted)
        assert sums[ROOT][0] + uncounted == counters.allocated
        assert 1 + sums[ROOT][1] + sums[ROOT][2] + len(seen.uncounted) == counters.inodes
        for ino, count in seen.names.items():
            assert machine.stat(ino).nlink == count
        assert machine.violations() == []


def test_any_history_is_counted_right_and_passes_no_quota(new_machine: Any) -> None:
    refused = 0

    def history() -> Accounts:
        nonlocal refused
        one = Accounts(new_machine())
        ask = one.ask

        def counted(command: Any) -> None:
            nonlocal refused
            before = one.refused
            ask(command)
            refused += one.refused - before

        one.ask = counted  # type: ignore[method-assign]
        return one

    run_state_machine_as_test(
        history,
        settings=settings(
            max_examples=60,
            stateful_step_count=50,
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert refused, "no quota was ever met"
