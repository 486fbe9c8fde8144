"""Any history of commands, quotas, checkpoints and crashes: what is counted is what a walk through
all names finds, and no quota is ever passed.
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
from mountfs.meta.ops.unlink import Unlink
from mountfs.meta.ops.write import Write
from mountfs.meta.quota import Kind, Limits
from mountfs.types import BLOCK_BYTES, CHUNK_BYTES, ROOT, SUPERUSER, Cred, Ino

NAMES = st.sampled_from([b"a", b"b", b"c"])
CREDS = st.sampled_from([SUPERUSER, Cred(1, 5, (), True), Cred(2, 5, (), True)])
OFFSETS = st.sampled_from([0, 100, BLOCK_BYTES, 5 * BLOCK_BYTES, CHUNK_BYTES - 10, CHUNK_BYTES])
LENGTHS = st.sampled_from([1, 20, BLOCK_BYTES, 3 * BLOCK_BYTES])
LIMIT = st.integers(0, 6)


class Seen:
    """What a walk through all names and all orphans finds."""

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

    def sums(self) -> dict[Ino, tuple[int, int, int]]:
        """(bytes, files, directories) below each directory; without orphans."""
        totals: dict[Ino, list[int]] = {ino: [0, 0, 0] for ino in self.directories}
        for ino, home in self.homes.items():
            self._add(totals, home, self._machine.stat(ino).blocks * 512, 1, 0)
        for ino, above in self.directories.items():
            if ino != ROOT:
                self._add(totals, above, 0, 0, 1)
        return {ino: (found[0], found[1], found[2]) for ino, found in totals.items()}

    def _add(self, totals: dict[Ino, list[int]], home: Ino, *more: int) -> None:
        while home:
            totals[home] = [one + two for one, two in zip(totals[home], more, strict=True)]
            home = self.directories[home]

    def owners(self) -> dict[tuple[Kind, int], tuple[int, int]]:
        bytes: Counter[tuple[Kind, int]] = Counter()
        inodes: Counter[tuple[Kind, int]] = Counter()
        for ino in {*self.directories, *self.homes, *self.orphans}:
            stat = self._machine.stat(ino)
            for owner in ((Kind.USER, stat.uid), (Kind.GROUP, stat.gid)):
                bytes[owner] += stat.blocks * 512
                inodes[owner] += 1
        return {owner: (bytes[owner], inodes[owner]) for owner in inodes}


class Accounts(RuleBasedStateMachine):
    def __init__(self, machine: Any) -> None:
        super().__init__()
        self.machine = machine
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
        files = sorted({*self.seen.homes, *self.seen.orphans}) or [ROOT]
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
        self.ask(Reap(self.machine.session, tuple(some)))

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
        assert sums[ROOT][0] == counters.allocated
        assert 1 + sums[ROOT][1] + sums[ROOT][2] == counters.inodes
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
