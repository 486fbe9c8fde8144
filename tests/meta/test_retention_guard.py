"""Whatever is tried, a file that is retained stays what it is and where it is, until its time."""

from typing import Any

import crc32c
import pytest

from mountfs.errors import Fault, FsError
from mountfs.meta import acl, keys
from mountfs.meta.locks import POSIX, Lock, Owner
from mountfs.meta.ops.allocate import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE, Allocate
from mountfs.meta.ops.copies import SetCopies
from mountfs.meta.ops.copy_range import CopyRange
from mountfs.meta.ops.default_retention import CommitRetention, SetDefault
from mountfs.meta.ops.legal_hold import SetLegalHold
from mountfs.meta.ops.link import Link
from mountfs.meta.ops.lock import ReleaseLock, TakeLock
from mountfs.meta.ops.make import Make
from mountfs.meta.ops.make_root import MakeRoot
from mountfs.meta.ops.mkdir import Mkdir
from mountfs.meta.ops.quota import DeleteQuota, SetQuota
from mountfs.meta.ops.reap import Reap
from mountfs.meta.ops.rename import EXCHANGE, NOREPLACE, Rename
from mountfs.meta.ops.retention import Kept, RequireFree, SetRetention
from mountfs.meta.ops.rmdir import Rmdir
from mountfs.meta.ops.session import EndSession, OpenSession
from mountfs.meta.ops.setattr import SetAttr
from mountfs.meta.ops.slices import (
    Discard,
    Garbage,
    Reclaimed,
    ReserveSlices,
    Rewrite,
    Settle,
)
from mountfs.meta.ops.symlink import Symlink
from mountfs.meta.ops.tmpfile import Tmpfile
from mountfs.meta.ops.touch import Touch
from mountfs.meta.ops.trash import EmptyTrash, SetTrash
from mountfs.meta.ops.undelete import Undelete, UndeleteIn
from mountfs.meta.ops.unlink import Unlink
from mountfs.meta.ops.volumes import CloseSlices, ForgetVolume
from mountfs.meta.ops.write import Run, Write
from mountfs.meta.ops.xattr import RemoveXattr, SetXattr
from mountfs.meta.protocol import OPERATORS, Propose, decode_propose, encode
from mountfs.meta.quota import Kind, Limits
from mountfs.meta.records import NS, Slice
from mountfs.meta.retention import Default, Mode
from mountfs.meta.state_machine import COMMANDS
from mountfs.meta.trash import Setting
from mountfs.types import ROOT, SUPERUSER, Cred, Ino, VolumeId

NOW = 1_800_000_000 * NS
DAY = 86_400 * NS
BYTES = b"what must not change " * 1_000
ROOT_CHECKED = Cred(0, 0, (), True)
ACL = acl.pack(
    (
        acl.Entry(acl.USER_OBJ, 7), acl.Entry(acl.USER, 7, 9), acl.Entry(acl.GROUP_OBJ, 7),
        acl.Entry(acl.MASK, 7), acl.Entry(acl.OTHER, 7),
    )
)  # fmt: skip


class World:
    """top/dir/file is retained; there are others that may be changed."""

    def __init__(self, machine: Any, small: bool) -> None:
        self.machine = machine
        machine.proven = NOW
        self.file = machine.make("top/", "top/dir/", "top/dir/file")
        self.top, self.dir = machine.ino("top"), machine.ino("top/dir")
        self.other = machine.make("top/dir/other")
        self.outside = machine.make("outside/", "outside/f")
        self.elsewhere = machine.ino("outside")
        self.data = BYTES[:3_000] if small else BYTES
        if small:
            machine.write(self.file, (0, self.data))
        else:
            machine.write(self.file, (0, b"x" * len(BYTES)), slices=True)
            machine.write(self.file, (0, BYTES), slices=True)
            machine.write(self.file, (0, BYTES[:100]))
        machine.write(self.other, (0, b"y" * 30_000), slices=True)
        machine.do(SetXattr(self.file, b"user.a", b"1", 0, False, SUPERUSER))

    @property
    def attacks(self) -> list[Any]:
        """What would change the file, its names, or the way to it."""
        file, other, top, dir, session = (
            self.file, self.other, self.top, self.dir, self.machine.session
        )  # fmt: skip
        run = self.machine.run(5, b"hack", in_slice=True)
        elsewhere = self.elsewhere
        found: list[Any] = [
            Write(file, (Run(0, 1, 0, data=b"x"),), 0, False),
            Write(file, (Run(10**6, 1, 0, data=b"x"),), 0, True),
            Write(file, (run,), 0, False),
            CopyRange(other, 0, file, 3, 20_000, False),
            CopyRange(file, 0, file, len(self.data), 10, False),
            *(
                Allocate(file, mode, 0, 50_000, False)
                for mode in (
                    0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE
                )
            ),
            *(
                SetAttr(ino=file, cred=cred, **change)
                for cred in (SUPERUSER, ROOT_CHECKED)
                for change in (
                    {"size": 0}, {"size": 1}, {"size": 10**6}, {"size": len(self.data)},
                    {"mode": 0o777}, {"mode": 0o644}, {"uid": 7}, {"gid": 7}, {"mtime": 5},
                    {"atime": 5, "mtime": 5}, {"mtime_now": True}, {"drop_privileges": True},
                    {},
                )
            ),
            SetXattr(file, b"user.a", b"2", 0, False, SUPERUSER),
            SetXattr(file, b"user.b", b"2", 0, False, SUPERUSER),
            SetXattr(file, acl.ACCESS, ACL, 0, False, SUPERUSER),
            RemoveXattr(file, b"user.a", SUPERUSER),
            SetCopies(file, 1),
            Unlink(dir, b"file", SUPERUSER),
            Link(file, dir, b"again", SUPERUSER),
            Link(file, elsewhere, b"again", SUPERUSER),
            Rename(dir, b"file", dir, b"moved", 0, SUPERUSER),
            Rename(dir, b"file", elsewhere, b"moved", NOREPLACE, SUPERUSER),
            Rename(dir, b"file", dir, b"other", 0, SUPERUSER),
            Rename(dir, b"other", dir, b"file", 0, SUPERUSER),
            Rename(elsewhere, b"f", dir, b"file", 0, SUPERUSER),
            Rename(dir, b"other", dir, b"file", EXCHANGE, SUPERUSER),
            Rename(dir, b"file", elsewhere, b"f", EXCHANGE, SUPERUSER),
            Rename(ROOT, b"top", ROOT, b"moved", 0, SUPERUSER),
            Rename(ROOT, b"top", elsewhere, b"top", 0, SUPERUSER),
            Rename(top, b"dir", ROOT, b"dir", 0, SUPERUSER),
            Rename(top, b"dir", top, b"moved", 0, SUPERUSER),
            Rename(ROOT, b"outside", ROOT, b"top", EXCHANGE, SUPERUSER),
            Rename(top, b"dir", ROOT, b"outside", EXCHANGE, SUPERUSER),
            RequireFree(file),
        ]  # fmt: skip
        lesser = [Mode.NONE, Mode.GOVERNANCE, Mode.COMPLIANCE]
        found += [
            SetRetention(ino=file, mode=mode, until=(NOW + DAY) * bool(mode), cred=SUPERUSER)
            for mode in lesser
        ]
        assert session
        return found

    @property
    def others(self) -> list[Any]:
        """What says nothing about the file, or nothing that changes it.  They may be refused."""
        file, session = self.file, self.machine.session
        lock = Lock(POSIX, Owner(session, 1), 0, 10, True, 5)
        used = [
            (one.slice_id, one.volume, one.length)
            for _, one in self.machine.state.tree.slice_rows(file, 0)
            if one.volume
        ]
        return [
            Touch(((file, NOW),)),
            TakeLock(file, lock),
            ReleaseLock(file, POSIX, Owner(session, 1)),
            TakeLock(file, lock),
            EndSession(self.machine.open_session()),
            Reap(session, (file,)),
            Discard(tuple(used)),
            CloseSlices(self.machine.state.tree.counters.next_slice),
            ForgetVolume(VolumeId(7)),
            Rmdir(self.top, b"dir", SUPERUSER),
            Rmdir(ROOT, b"top", SUPERUSER),
            Unlink(self.top, b"dir", SUPERUSER),
            Rename(ROOT, b"outside", ROOT, b"top", 0, SUPERUSER),
            Rename(ROOT, b"outside", self.top, b"dir", 0, SUPERUSER),
            Make(self.dir, b"file", 0o100644, 0, 0, False, SUPERUSER),
            Make(self.dir, b"file", 0o100644, 0, 0, True, SUPERUSER),
            Mkdir(self.dir, b"file", 0o755, 0, SUPERUSER),
            Symlink(self.dir, b"file", b"elsewhere", SUPERUSER),
            Link(self.other, self.dir, b"file", SUPERUSER),
            Tmpfile(self.dir, 0o644, 0, SUPERUSER),
            CopyRange(file, 0, self.other, 0, 20_000, False),
            Settle(file, 0, 3),
            CommitRetention(file),
            CommitRetention(file, idle=True),
            SetDefault(self.dir, Default(Mode.GOVERNANCE, DAY), SUPERUSER),
            SetDefault(self.dir, Default(), SUPERUSER),
            SetLegalHold(file, True, SUPERUSER),
            SetLegalHold(file, False, SUPERUSER),
            SetAttr(ino=self.dir, cred=SUPERUSER, mode=0o700, uid=9),
            SetXattr(self.dir, acl.DEFAULT, ACL, 0, False, SUPERUSER),
            MakeRoot(0, 0),
            OpenSession("x"),
            ReserveSlices(5),
            Reclaimed(()),
            SetQuota(Kind.TREE, self.dir, Limits(hard_inodes=1, hard_bytes=1)),
            DeleteQuota(Kind.TREE, self.dir),
            SetTrash(ROOT, Setting(7, counts=False), SUPERUSER),
            EmptyTrash(((NOW, 1),), SUPERUSER),
            Undelete(self.dir, b"file", 1, self.dir, b"file", SUPERUSER),
            UndeleteIn(((self.dir, b""),), 0, SUPERUSER),
        ]

    def seen(self) -> Any:
        """The file at its path, and all of it that retention keeps."""
        machine = self.machine
        assert machine.ino("top/dir/file") == self.file
        seen = machine.stat(self.file)
        state = machine.state.tree
        rows = {
            key: value
            for key, value in machine.rows().items()
            if key[:8] == keys.inode(self.file)[:8] and key[8] in (keys.XATTR, keys.CONTENT)
        }
        fields = {
            name: getattr(seen, name)
            for name in seen.__struct_fields__
            if not name.startswith("atime")
        }
        used = [
            state.get(keys.used(one.volume, one.slice_id)) is not None
            for _, one in state.slice_rows(self.file, 0)
            if one.volume
        ]
        assert all(used)
        return fields, rows, machine.read(self.file)


def keep(world: World, mode: Mode, days: int = 10) -> None:
    command = SetRetention(ino=world.file, mode=mode, until=NOW + days * DAY, cred=SUPERUSER)
    world.machine.do(command)


@pytest.fixture(params=[False, True], ids=["slices", "content"])
def world(machine: Any, request: pytest.FixtureRequest) -> World:
    return World(machine, request.param)


HOLD = Mode.NONE


@pytest.mark.parametrize("mode", [Mode.GOVERNANCE, Mode.COMPLIANCE, HOLD])
def test_no_attack_changes_a_retained_file(world: World, mode: Mode) -> None:
    if mode == HOLD:
        world.machine.do(SetLegalHold(world.file, True, SUPERUSER))
    else:
        keep(world, mode)
    before = world.seen()
    attacks = [one for one in world.attacks if mode != HOLD or not isinstance(one, SetRetention)]
    for command in attacks:
        with pytest.raises(FsError) as caught:
            world.machine.do(command)
        assert caught.value.fault is Fault.NOT_PERMITTED, command
        assert world.seen() == before, command
    for command in world.others:
        if mode == HOLD and isinstance(command, SetLegalHold):
            continue
        try:
            world.machine.do(command)
        except FsError as error:
            assert error.fault is not Fault.STALE, command
        assert world.seen() == before, command
    world.machine.checkpoint()
    world.machine.restart()
    assert world.seen() == before
    world.machine.proven = NOW + 10 * DAY - 1
    for command in attacks:
        with pytest.raises(FsError):
            world.machine.do(command)
    assert world.seen() == before


def test_the_attacks_leave_no_command_of_a_client_out(world: World) -> None:
    tried = {type(command) for command in [*world.attacks, *world.others]}
    clients = {one for one in COMMANDS if one.__name__ not in OPERATORS}
    assert clients <= tried, clients - tried


@pytest.mark.parametrize("mode", [Mode.GOVERNANCE, Mode.COMPLIANCE])
def test_after_its_time_each_attack_is_an_ordinary_command(new_machine: Any, mode: Mode) -> None:
    for number in range(len(World(new_machine(), False).attacks)):
        world = World(new_machine(), False)
        keep(world, mode)
        world.machine.proven = NOW + 10 * DAY
        command = world.attacks[number]
        if isinstance(command, SetRetention) and command.mode != Mode.NONE:
            continue  # that time is over
        world.machine.do(command)
        assert world.machine.violations() == []


def test_a_released_file_can_be_removed_for_good(world: World) -> None:
    keep(world, Mode.COMPLIANCE)
    world.machine.proven = NOW + 10 * DAY
    world.machine.do(Unlink(world.dir, b"file", SUPERUSER))
    assert world.machine.do(Reap(world.machine.session, (world.file,))) == ()
    assert world.machine.state.tree.get(keys.retention(world.file)) is None
    assert world.machine.paths() >= {"top/dir/other"}


def test_governance_that_was_ended_protects_no_more(world: World) -> None:
    keep(world, Mode.GOVERNANCE)
    end = SetRetention(ino=world.file, mode=Mode.NONE, cred=SUPERUSER, bypass=True)
    world.machine.do(end)
    world.machine.do(Write(world.file, (Run(0, 1, 0, data=b"x"),), 0, False))
    world.machine.do(Unlink(world.dir, b"file", SUPERUSER))


def test_a_directory_stays_until_the_latest_time_that_was_ever_set_below(
    world: World, fails: Any
) -> None:
    keep(world, Mode.GOVERNANCE)
    end = SetRetention(ino=world.file, mode=Mode.NONE, cred=SUPERUSER, bypass=True)
    world.machine.do(end)
    move = Rename(ROOT, b"top", ROOT, b"moved", 0, SUPERUSER)
    with fails(Fault.NOT_PERMITTED):
        world.machine.do(move)
    world.machine.proven = NOW + 10 * DAY
    world.machine.do(move)


def test_life_goes_on_in_the_directories_above(world: World) -> None:
    keep(world, Mode.COMPLIANCE)
    machine = world.machine
    machine.make("top/new", "top/dir/new/", "top/dir/new/f")
    machine.write(world.other, (0, b"changed"))
    machine.do(Rename(world.dir, b"new", world.top, b"moved", 0, SUPERUSER))
    machine.do(Unlink(world.top, b"new", SUPERUSER))
    machine.do(Rename(world.dir, b"other", ROOT, b"other", 0, SUPERUSER))
    assert machine.paths() == {
        "top/", "top/dir/", "top/dir/file", "top/moved/", "top/moved/f", "other", "outside/",
        "outside/f",
    }  # fmt: skip


def test_all_names_that_a_file_has_are_kept(machine: Any, fails: Any) -> None:
    machine.proven = NOW
    ino = machine.make("a/", "b/", "a/f")
    machine.do(Link(ino, machine.ino("b"), b"g", SUPERUSER))
    machine.do(SetRetention(ino=ino, mode=Mode.COMPLIANCE, duration=DAY, cred=SUPERUSER))
    for directory, name in (("a", b"f"), ("b", b"g")):
        with fails(Fault.NOT_PERMITTED):
            machine.do(Unlink(machine.ino(directory), name, SUPERUSER))
        with fails(Fault.NOT_PERMITTED):
            machine.do(Rename(ROOT, directory.encode(), ROOT, b"moved", 0, SUPERUSER))


def test_compaction_puts_the_bytes_of_a_retained_file_elsewhere(machine: Any) -> None:
    world = World(machine, False)
    keep(world, Mode.COMPLIANCE)
    before = world.seen()
    rows = machine.state.tree.slice_rows(world.file, 0)
    run = machine.run(0, world.data, in_slice=True)
    new = Slice(0, run.length, run.slice_id, 0, run.volume, run.length, run.crc)
    places = tuple(keys.slice_place(key)[1:] for key, _ in rows)
    machine.do(Rewrite(world.file, 0, places, (new,)))
    assert world.seen() == before
    assert machine.ask(Garbage(10))


def test_no_client_says_where_the_bytes_of_a_file_are(fails: Any) -> None:
    command = Rewrite(Ino(5), 0, ((1, 1),), ())
    with fails(Fault.NOT_PERMITTED):
        decode_propose(encode(Propose(1, 1, 1, command)))


def test_a_slice_of_another_file_cannot_be_taken_down_with_ones_own(
    world: World, fails: Any
) -> None:
    keep(world, Mode.COMPLIANCE)
    for _, stolen in world.machine.state.tree.slice_rows(world.file, 0):
        if not stolen.volume:
            continue
        run = Run(0, stolen.length, stolen.crc, stolen.slice_id, stolen.volume)
        with fails(Fault.INVALID):
            world.machine.do(Write(world.other, (run,), 0, False))


def test_why_it_is_refused_is_said(world: World) -> None:
    keep(world, Mode.COMPLIANCE)
    with pytest.raises(FsError) as caught:
        world.machine.do(Unlink(world.dir, b"file", SUPERUSER))
    assert str(caught.value) == (
        f"inode {world.file} is kept as it is until 2027-01-25T08:00:00Z (compliance)"
    )
    with pytest.raises(FsError) as caught:
        world.machine.do(Rename(ROOT, b"top", ROOT, b"x", 0, SUPERUSER))
    assert str(caught.value) == (
        f"directory {world.top} stays where it is: a file below it is kept until "
        "2027-01-25T08:00:00Z"
    )


def test_a_command_that_edits_what_nobody_thought_of_is_refused(world: World, fails: Any) -> None:
    keep(world, Mode.COMPLIANCE)

    class Sneaky(RequireFree, frozen=True, tag="sneaky"):
        """Puts rows of the file and does not say that it changes the file."""

        def apply(self, tree: Any, stamp: Any) -> None:
            tree.put(keys.content(self.ino), b"other")

    before, machine = world.seen(), world.machine
    index = machine.state.applied + 1
    with fails(Fault.NOT_PERMITTED):
        machine.state.apply(index, 0, 0, 0, 0, Sneaky(world.file))
    assert world.seen() == before
    assert crc32c.crc32c(machine.read(world.file)) == crc32c.crc32c(world.data)
    machine.log[index] = machine.log[index - 1]


def test_retention_itself_changes_nothing_that_stat_tells(world: World) -> None:
    before = world.seen()
    keep(world, Mode.COMPLIANCE)
    world.machine.do(SetLegalHold(world.file, True, SUPERUSER))
    assert world.seen() == before
    assert world.machine.ask(Kept(world.file))[0].hold
