"""Quotas: what they refuse, what they let pass, and what they tell."""

from typing import Any

import pytest

from mountfs.errors import Fault, FsError
from mountfs.meta import keys
from mountfs.meta.ops.allocate import KEEP_SIZE, PUNCH_HOLE, Allocate
from mountfs.meta.ops.copy_range import CopyRange
from mountfs.meta.ops.link import Link
from mountfs.meta.ops.quota import (
    UNLIMITED,
    VIRTUAL,
    DeleteQuota,
    GetQuota,
    Leeway,
    ListQuotas,
    Owners,
    Room,
    SetQuota,
    Space,
    TreeSpace,
    VirtualXattr,
)
from mountfs.meta.ops.reap import Reap
from mountfs.meta.ops.rename import EXCHANGE, Rename
from mountfs.meta.ops.rmdir import Rmdir
from mountfs.meta.ops.setattr import SetAttr
from mountfs.meta.ops.slices import Tangles
from mountfs.meta.ops.tmpfile import Tmpfile
from mountfs.meta.ops.unlink import Unlink
from mountfs.meta.quota import Kind, Limits
from mountfs.meta.records import NS, ino_of
from mountfs.types import BLOCK_BYTES, KIB, ROOT, SUPERUSER, Cred, Ino

SOMEBODY = Cred(1_000, 100, (), True)


def limit(machine: Any, path: str, **limits: int) -> Ino:
    ino: Ino = machine.ino(path)
    machine.do(SetQuota(Kind.TREE, ino, Limits(**limits)))
    return ino


def use(machine: Any, path: str) -> tuple[int, int]:
    told = machine.ask(GetQuota(Kind.TREE, machine.ino(path)))
    return told.bytes, told.inodes


# -- trees


def test_the_last_block_can_be_used_and_no_more(machine: Any, fails: Any) -> None:
    file = machine.make("d/", "d/file")
    limit(machine, "d", hard_bytes=3 * BLOCK_BYTES)
    machine.write(file, (0, bytes(2 * BLOCK_BYTES)), slices=True)
    machine.write(file, (2 * BLOCK_BYTES, bytes(BLOCK_BYTES)), slices=True)
    before = machine.files()
    with fails(Fault.OVER_QUOTA):
        machine.write(file, (3 * BLOCK_BYTES, b"x"))
    assert machine.files() == before
    assert use(machine, "d") == (3 * BLOCK_BYTES, 1)
    machine.write(file, (0, b"what is there can be overwritten"))


def test_the_last_inode_can_be_used_and_no_more(machine: Any, fails: Any) -> None:
    machine.make("d/")
    limit(machine, "d", hard_inodes=2)
    machine.make("d/a", "d/e/")
    for path in ("d/b", "d/f/", "d/e/deep"):
        with fails(Fault.OVER_QUOTA):
            machine.make(path)
    with fails(Fault.OVER_QUOTA):
        machine.do(Tmpfile(machine.ino("d"), 0o600, 0, SUPERUSER))
    machine.make("outside")


def test_nested_trees_each_hold(machine: Any, fails: Any) -> None:
    machine.make("a/", "a/b/", "a/b/c/")
    limit(machine, "a", hard_inodes=5)
    limit(machine, "a/b", hard_inodes=3)
    machine.make("a/b/c/1", "a/b/c/2")
    with fails(Fault.OVER_QUOTA):
        machine.make("a/b/c/3")
    machine.make("a/1")
    with fails(Fault.OVER_QUOTA):
        machine.make("a/2")


def test_a_quota_of_the_root_is_one_of_everything(machine: Any, fails: Any) -> None:
    machine.make("a/", "a/b")
    limit(machine, "", hard_inodes=3)
    machine.make("c")
    with fails(Fault.OVER_QUOTA):
        machine.make("d")


def test_what_is_open_counts_until_it_is_closed(machine: Any, fails: Any) -> None:
    ino = machine.make("d/", "d/file")
    limit(machine, "d", hard_inodes=1)
    machine.do(Unlink(machine.ino("d"), b"file", SUPERUSER))
    with fails(Fault.OVER_QUOTA):
        machine.make("d/other")
    machine.do(Reap(machine.session, (ino,)))
    machine.make("d/other")


def test_a_directory_moves_with_all_that_is_in_it_or_not_at_all(machine: Any, fails: Any) -> None:
    machine.make("from/", "from/x/", "from/x/1", "from/x/2", "to/", "to/sub/")
    limit(machine, "to", hard_inodes=3)
    move = Rename(machine.ino("from"), b"x", machine.ino("to/sub"), b"x", 0, SUPERUSER)
    before = machine.files()
    with fails(Fault.OVER_QUOTA):
        machine.do(move)
    assert machine.files() == before
    limit(machine, "to", hard_inodes=4)
    machine.do(move)
    assert use(machine, "to") == (0, 4)
    assert use(machine, "from") == (0, 0)


def test_what_moves_within_a_full_tree_is_not_counted_twice(machine: Any) -> None:
    machine.make("d/", "d/a/", "d/a/file", "d/b/", "d/other")
    limit(machine, "d", hard_inodes=1)  # it has more already
    machine.do(Rename(machine.ino("d/a"), b"file", machine.ino("d/b"), b"f", 0, SUPERUSER))
    machine.do(Rename(machine.ino("d"), b"a", machine.ino("d/b"), b"a", 0, SUPERUSER))
    machine.do(Rename(machine.ino("d/b"), b"a", machine.ino("d"), b"other", EXCHANGE, SUPERUSER))
    assert use(machine, "d") == (0, 4)


def test_an_exchange_between_trees_is_weighed_both_ways(machine: Any, fails: Any) -> None:
    machine.make("a/", "a/x/", "a/x/1", "b/", "b/y")
    limit(machine, "b", hard_inodes=1)
    exchange = Rename(machine.ino("a"), b"x", machine.ino("b"), b"y", EXCHANGE, SUPERUSER)
    with fails(Fault.OVER_QUOTA):
        machine.do(exchange)
    limit(machine, "b", hard_inodes=2)
    machine.do(exchange)
    assert use(machine, "a") == (0, 1)
    assert use(machine, "b") == (0, 2)


def test_who_is_over_a_limit_may_do_all_that_does_not_grow(machine: Any, fails: Any) -> None:
    file = machine.make("d/", "d/file", "d/other")
    machine.write(file, (0, bytes(40 * KIB)), slices=True)
    machine.write(file, (0, b"covered"))
    directory = limit(machine, "d", hard_bytes=BLOCK_BYTES, hard_inodes=1)
    assert machine.ask(Tangles(9)), "there is something to compact"
    machine.write(file, (8 * KIB, bytes(4 * KIB)), slices=True)
    machine.do(SetAttr(ino=file, cred=SUPERUSER, mode=0o600))
    machine.do(SetAttr(ino=file, cred=SUPERUSER, size=1 << 30))  # sparse
    machine.do(Allocate(file, PUNCH_HOLE | KEEP_SIZE, 0, 8 * KIB, False))
    machine.do(Link(file, directory, b"again", SUPERUSER))
    machine.do(SetAttr(ino=file, cred=SUPERUSER, size=0))
    machine.do(Unlink(directory, b"other", SUPERUSER))
    with fails(Fault.OVER_QUOTA):
        machine.make("d/new")


@pytest.mark.parametrize("grow", ["write", "allocate", "copy"])
def test_every_way_to_grow_is_refused(machine: Any, fails: Any, grow: str) -> None:
    source, file = machine.make("source"), machine.make("d/", "d/file")
    machine.write(source, (0, bytes(40 * KIB)), slices=True)
    limit(machine, "d", hard_bytes=5 * BLOCK_BYTES)
    with fails(Fault.OVER_QUOTA):
        if grow == "write":
            machine.write(file, (0, bytes(24 * KIB)), slices=True)
        elif grow == "allocate":
            machine.do(Allocate(file, 0, 0, 24 * KIB, False))
        else:
            machine.do(CopyRange(source, 0, file, 0, 24 * KIB, False))
    assert use(machine, "d") == (0, 1)


def test_nobody_is_exempt(machine: Any, fails: Any) -> None:
    limit(machine, "", hard_inodes=1)
    machine.make("a")
    for cred in (SUPERUSER, Cred(0, 0, (), True)):
        with fails(Fault.OVER_QUOTA):
            machine.make("b", cred=cred)


def test_a_quota_goes_with_its_directory(machine: Any) -> None:
    machine.make("d/")
    directory = limit(machine, "d", hard_inodes=1)
    machine.do(Rmdir(ROOT, b"d", SUPERUSER))
    machine.do(Reap(machine.session, (directory,)))
    assert machine.ask(ListQuotas(0, 0, 9)) == ()
    machine.checkpoint()
    machine.restart()
    assert machine.ask(ListQuotas(0, 0, 9)) == ()


# -- files with several names


def test_a_link_counts_once_where_the_first_of_its_directories_is(machine: Any, fails: Any) -> None:
    machine.make("early/", "late/")
    file = machine.make("late/file")
    machine.write(file, (0, bytes(20 * KIB)), slices=True)
    limit(machine, "early", hard_bytes=BLOCK_BYTES)
    with fails(Fault.OVER_QUOTA):
        machine.do(Link(file, machine.ino("early"), b"file", SUPERUSER))
    limit(machine, "early", hard_bytes=20 * KIB)
    machine.do(Link(file, machine.ino("early"), b"file", SUPERUSER))
    assert use(machine, "early") == (20 * KIB, 1)
    assert use(machine, "late") == (0, 0)
    machine.do(Unlink(machine.ino("early"), b"file", SUPERUSER))
    assert use(machine, "early") == (0, 0)
    assert use(machine, "late") == (20 * KIB, 1)


# -- users and groups


def test_a_user_may_have_so_much_wherever_it_is(machine: Any, fails: Any) -> None:
    machine.make("a/", "b/")
    machine.do(SetQuota(Kind.USER, SOMEBODY.uid, Limits(hard_inodes=2)))
    machine.make("a/1", "b/2", cred=SOMEBODY)
    with fails(Fault.OVER_QUOTA):
        machine.make("b/3", cred=SOMEBODY)
    machine.make("b/3", cred=Cred(1_001, 100, (), True))


def test_a_group_may_have_so_much(machine: Any, fails: Any) -> None:
    machine.do(SetQuota(Kind.GROUP, SOMEBODY.gid, Limits(hard_bytes=BLOCK_BYTES)))
    one, other = machine.make("a", cred=SOMEBODY), machine.make("b", cred=Cred(1, 100, (), True))
    machine.write(one, (0, b"x"))
    with fails(Fault.OVER_QUOTA):
        machine.write(other, (0, b"x"))


def test_a_gift_is_refused_to_who_has_too_much(machine: Any, fails: Any) -> None:
    file = machine.make("file")
    machine.write(file, (0, bytes(20 * KIB)), slices=True)
    machine.do(SetQuota(Kind.USER, 1_000, Limits(hard_bytes=16 * KIB)))
    with fails(Fault.OVER_QUOTA):
        machine.do(SetAttr(ino=file, cred=SUPERUSER, uid=1_000))
    machine.do(SetQuota(Kind.USER, 1_000, Limits(hard_bytes=20 * KIB)))
    machine.do(SetAttr(ino=file, cred=SUPERUSER, uid=1_000))
    assert machine.ask(Owners(Kind.USER, 1, 9)) == ((1_000, 20 * KIB, 1),)


def test_owners_are_told_in_order_and_in_parts(machine: Any) -> None:
    for uid in (3, 1, 2):
        machine.make(f"of{uid}", cred=Cred(uid, 50, (), True))
    machine.checkpoint()
    machine.make("more", cred=Cred(2, 51, (), True))
    assert machine.ask(Owners(Kind.USER, 0, 2)) == ((0, 0, 1), (1, 0, 1))
    assert machine.ask(Owners(Kind.USER, 2, 9)) == ((2, 0, 2), (3, 0, 1))
    assert machine.ask(Owners(Kind.GROUP, 1, 9)) == ((50, 0, 3), (51, 0, 1))


# -- soft limits


def wait(machine: Any, seconds: int) -> None:
    """The clock of the leader goes on."""
    machine.state.tree.counters.last_time += seconds * NS


def test_a_soft_limit_may_be_passed_for_the_time_of_grace(machine: Any, fails: Any) -> None:
    machine.make("d/")
    limit(machine, "d", soft_inodes=1, hard_inodes=4, grace_s=60)
    machine.make("d/1", "d/2", "d/3")
    wait(machine, 30)
    machine.make("d/4")
    with fails(Fault.OVER_QUOTA):
        machine.make("d/5")
    machine.do(Rename(machine.ino("d"), b"4", ROOT, b"4", 0, SUPERUSER))
    wait(machine, 31)
    with fails(Fault.OVER_QUOTA):
        machine.make("d/4")


def test_the_grace_begins_anew_when_use_has_fallen_to_the_limit(machine: Any, fails: Any) -> None:
    machine.make("d/")
    directory = limit(machine, "d", soft_inodes=1, grace_s=60)
    machine.make("d/1", "d/2")
    since = machine.ask(GetQuota(Kind.TREE, directory)).quota.inodes_since
    assert since > 0
    wait(machine, 61)
    with fails(Fault.OVER_QUOTA):
        machine.make("d/3")
    machine.do(Rename(directory, b"2", ROOT, b"2", 0, SUPERUSER))
    assert machine.ask(GetQuota(Kind.TREE, directory)).quota.inodes_since == 0
    machine.make("d/2")
    assert machine.ask(GetQuota(Kind.TREE, directory)).quota.inodes_since > since + 60 * NS


def test_without_grace_a_soft_limit_holds_at_once(machine: Any, fails: Any) -> None:
    machine.make("d/")
    limit(machine, "d", soft_inodes=1, grace_s=0)
    machine.make("d/1")
    with fails(Fault.OVER_QUOTA):
        machine.make("d/2")


def test_the_time_of_grace_survives_a_restart(machine: Any, fails: Any) -> None:
    machine.make("d/")
    directory = limit(machine, "d", soft_inodes=1, grace_s=60)
    machine.make("d/1", "d/2")
    before = machine.ask(GetQuota(Kind.TREE, directory))
    machine.checkpoint()
    machine.restart()
    assert machine.ask(GetQuota(Kind.TREE, directory)) == before
    wait(machine, 61)
    with fails(Fault.OVER_QUOTA):
        machine.make("d/3")


def test_a_limit_below_what_there_is_starts_the_grace(machine: Any) -> None:
    machine.make("d/", "d/1", "d/2")
    directory = limit(machine, "d", soft_inodes=1)
    assert machine.ask(GetQuota(Kind.TREE, directory)).quota.inodes_since > 0
    limit(machine, "d", soft_inodes=2)
    assert machine.ask(GetQuota(Kind.TREE, directory)).quota.inodes_since == 0


# -- setting and asking


def test_a_quota_that_is_taken_away_holds_no_more(machine: Any, fails: Any) -> None:
    machine.make("d/")
    directory = limit(machine, "d", hard_inodes=1)
    machine.make("d/1")
    machine.do(DeleteQuota(Kind.TREE, directory))
    machine.make("d/2")
    assert machine.ask(GetQuota(Kind.TREE, directory)).quota is None
    with fails(Fault.NOT_FOUND):
        machine.do(DeleteQuota(Kind.TREE, directory))
    assert not any(key[:9] == keys.quotas()[0] for key in machine.rows())


def test_quotas_are_listed_in_parts(machine: Any) -> None:
    machine.make("d/")
    directory = limit(machine, "d", hard_inodes=1)
    machine.do(SetQuota(Kind.GROUP, 5, Limits(hard_bytes=7)))
    machine.do(SetQuota(Kind.USER, 9, Limits(hard_bytes=7)))
    listed = [(quota.kind, quota.number) for quota in machine.ask(ListQuotas(0, 0, 9))]
    assert listed == [(Kind.TREE, directory), (Kind.USER, 9), (Kind.GROUP, 5)]
    (behind,) = machine.ask(ListQuotas(Kind.TREE, directory, 1))
    assert (behind.kind, behind.number) == (Kind.USER, 9)


def test_what_has_no_directory_has_no_tree(machine: Any, fails: Any) -> None:
    file = machine.make("file")
    for number, fault in ((file, Fault.NOT_DIRECTORY), (99, Fault.STALE)):
        with fails(fault):
            machine.do(SetQuota(Kind.TREE, number, Limits()))
        with fails(fault):
            machine.ask(GetQuota(Kind.TREE, number))


@pytest.mark.parametrize(
    ("number", "limits"),
    [
        (-1, Limits()),
        (1 << 32, Limits()),
        (1, Limits(hard_bytes=-1)),
        (1, Limits(grace_s=-1)),
        (1, Limits(soft_inodes=1 << 63)),
        (1, Limits(hard_bytes=4, soft_bytes=5)),
        (1, Limits(hard_inodes=4, soft_inodes=5)),
    ],
)
def test_limits_that_make_no_sense_are_refused(number: int, limits: Limits) -> None:
    with pytest.raises(FsError) as caught:
        SetQuota(Kind.USER, number, limits).check()
    assert caught.value.fault is Fault.INVALID


def test_room_is_what_the_tightest_quota_leaves(machine: Any) -> None:
    machine.make("a/", "a/b/")
    file = machine.make("a/b/file", cred=SOMEBODY)
    assert machine.ask(Room(file)) == Leeway(False)
    machine.write(file, (0, b"x"))
    machine.do(SetQuota(Kind.USER, 7, Limits(hard_bytes=1)))
    home = machine.ino("a/b")
    assert machine.ask(Room(file)) == Leeway(True, UNLIMITED, home, SOMEBODY.uid, SOMEBODY.gid)
    for kind, number, bytes, room in (
        (Kind.TREE, machine.ino("a"), 90_000, 90_000 - BLOCK_BYTES),
        (Kind.GROUP, SOMEBODY.gid, 80_000, 80_000 - BLOCK_BYTES),
        (Kind.USER, SOMEBODY.uid, 100, 0),
    ):
        machine.do(SetQuota(kind, number, Limits(hard_bytes=bytes)))
        assert machine.ask(Room(file)).bytes == room


def test_df_shows_the_tree_that_leaves_least(machine: Any) -> None:
    file = machine.make("a/", "a/b/", "a/b/file")
    machine.write(file, (0, b"x"))
    assert machine.ask(TreeSpace(file)) is None
    limit(machine, "a", hard_bytes=10_000, soft_inodes=50)
    limit(machine, "a/b", soft_bytes=9_000)
    for path in ("a/b", "a/b/file"):
        space = machine.ask(TreeSpace(machine.ino(path)))
        assert space == Space(9_000, BLOCK_BYTES, 50, 2)
    assert machine.ask(TreeSpace(machine.ino("a"))) == Space(10_000, BLOCK_BYTES, 50, 2)
    assert machine.ask(TreeSpace(ROOT)) is None


def test_sums_and_limits_are_told_as_attributes_of_a_directory(machine: Any, fails: Any) -> None:
    file = machine.make("a/", "a/b/", "a/b/file")
    machine.write(file, (0, b"x"))
    directory = limit(machine, "a", hard_bytes=10_000, soft_inodes=50, grace_s=7)
    for name, value in (
        (b"dir.rbytes", b"4096"),
        (b"dir.rfiles", b"1"),
        (b"dir.rsubdirs", b"1"),
        (b"quota.hard_bytes", b"10000"),
        (b"quota.soft_bytes", b"0"),
        (b"quota.hard_inodes", b"0"),
        (b"quota.soft_inodes", b"50"),
        (b"quota.grace_s", b"7"),
    ):
        assert machine.ask(VirtualXattr(directory, VIRTUAL + name)) == value
    for ino, name in ((directory, b"dir.x"), (file, b"dir.rbytes"), (ROOT, b"quota.grace_s")):
        with fails(Fault.NO_ATTRIBUTE):
            machine.ask(VirtualXattr(ino, VIRTUAL + name))


def test_a_file_without_a_name_counts_where_it_was_made(machine: Any) -> None:
    machine.make("d/", "e/")
    ino = ino_of(machine.do(Tmpfile(machine.ino("d"), 0o600, 0, SUPERUSER)))
    machine.write(ino, (0, b"x"))
    assert use(machine, "d") == (BLOCK_BYTES, 1)
    machine.do(Link(ino, machine.ino("e"), b"named", SUPERUSER))
    assert use(machine, "d") == (0, 0)
    assert use(machine, "e") == (BLOCK_BYTES, 1)


def test_setting_and_asking_takes_as_many_steps_whatever_there_is(machine: Any) -> None:
    directory = machine.make("d/")
    steps = []
    for number in range(2):
        for file in range(400):
            machine.make(f"d/{number}.{file}")
        machine.checkpoint()
        before = machine.overlay.gets
        machine.do(SetQuota(Kind.TREE, directory, Limits(hard_inodes=10_000)))
        assert machine.ask(GetQuota(Kind.TREE, directory)).inodes == 400 * (number + 1)
        assert machine.ask(TreeSpace(directory)) == Space(0, 0, 10_000, 400 * (number + 1))
        steps.append(machine.overlay.gets - before)
    assert steps[1] <= steps[0] < 20
