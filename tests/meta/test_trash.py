"""What is deleted in a tree with trash stays for some days, and comes back to where it was."""

import pytest

from mountfs.errors import Fault
from mountfs.meta.ops.link import Link
from mountfs.meta.ops.make import Make
from mountfs.meta.ops.quota import Below, SetQuota
from mountfs.meta.ops.read import GetAttr
from mountfs.meta.ops.reap import Orphans, Reap
from mountfs.meta.ops.rename import Rename
from mountfs.meta.ops.rmdir import Rmdir
from mountfs.meta.ops.trash import (
    NOBODYS,
    DueTrash,
    EmptyTrash,
    FindTrash,
    GetTrash,
    ListTrash,
    SetTrash,
)
from mountfs.meta.ops.undelete import LastRun, LookWithin, Undelete, UndeleteIn
from mountfs.meta.ops.unlink import Unlink
from mountfs.meta.quota import Kind, Limits
from mountfs.meta.records import NS
from mountfs.meta.trash import DAY_NS, Setting
from mountfs.types import BLOCK_BYTES, ROOT, SUPERUSER, Cred

NOW = 1_800_000_000 * NS
ALICE, BOB = Cred(1001, 1001), Cred(1002, 1002)


class World:
    """home/ keeps what is deleted for seven days."""

    def __init__(self, machine, *, counts=True):
        self.machine = machine
        machine.proven = NOW
        machine.make("home/", "tmp/")
        self.home, self.tmp = machine.ino("home"), machine.ino("tmp")
        machine.do(SetTrash(self.home, Setting(7, counts), SUPERUSER))

    def make(self, *paths, size=100, cred=SUPERUSER):
        for path in paths:
            ino = self.machine.make(path, cred=cred)
            if not path.endswith("/") and size:
                self.machine.write(ino, (0, b"x" * size))
        return ino

    def remove(self, *paths, cred=SUPERUSER):
        """As rm -rf does it: what is in a directory comes first."""
        for path in paths:
            ino = self.machine.ino(path)
            if self.machine.stat(ino).mode >> 12 == 4:
                for name in sorted(self.machine.listing(ino)):
                    self.remove(f"{path}/{name.decode()}", cred=cred)
                self.machine.do(Rmdir(*self.machine.place(path), cred))
            else:
                self.machine.do(Unlink(*self.machine.place(path), cred))

    def trash(self, directory="home", uid=0):
        found, after = [], (0, 0)
        while True:
            page = self.machine.ask(ListTrash(self.machine.ino(directory), uid, 3, after))
            found += page.found
            after = page.after
            if after == (0, 0):
                return found

    def names(self, directory="home"):
        return sorted(one.entry.name.decode() for one in self.trash(directory))

    def find(self, path, at=0, uid=0):
        place = self.machine.place(path)
        return self.machine.ask(FindTrash(*place, uid, at, 10))

    def undelete(self, path, to=None, cred=SUPERUSER, at=0):
        entry = self.find(path, at)[0].entry
        place = self.machine.place(to or path)
        return self.machine.do(Undelete(entry.directory, entry.name, entry.order, *place, cred))

    def paths(self, path=""):
        found = set()
        for name, ino in self.machine.listing(self.machine.ino(path)).items():
            below = f"{path}/{name.decode()}".lstrip("/")
            if self.machine.stat(ino).mode >> 12 == 4:
                found |= {f"{below}/", *self.paths(below)}
            else:
                found.add(below)
        return found

    def let_pass(self, ns):
        """By the clock that commands are stamped with."""
        self.machine.state.tree.counters.last_time += ns
        self.machine.checkpoint()

    def empty(self, cred=None):
        """One round of what who leads does, or of a person."""
        listed = [(one.entry.until, one.entry.order) for one in self.trash("")]
        gone = self.machine.do(EmptyTrash(tuple(sorted(listed)), cred))
        self.machine.do(Reap(NOBODYS, tuple(ino for _, ino in self.machine.ask(Orphans(0, 99)))))
        return gone


@pytest.fixture
def world(machine):
    one = World(machine)
    yield one
    assert machine.violations() == []
    before = machine.rows()
    machine.restart()
    assert machine.rows() == before


@pytest.fixture
def uncounted(new_machine):
    one = World(new_machine(), counts=False)
    yield one
    assert one.machine.violations() == []


# -- what goes into the trash


def test_a_deleted_file_comes_back_as_it_was(world):
    ino = world.make("home/file", size=20_000)
    before = world.machine.stat(ino)
    world.remove("home/file")
    assert world.paths("home") == set()
    assert world.machine.ask(Orphans(None, 9)) == ()
    (listed,) = world.trash()
    assert (listed.entry.name, listed.entry.ino, listed.size) == (b"file", ino, 20_000)
    assert listed.entry.until == NOW + 7 * DAY_NS
    assert world.undelete("home/file").names == ((world.home, b"file"),)
    after = world.machine.stat("home/file")
    assert (after.ino, after.size, after.mtime_s, after.nlink, after.mode) == (
        ino, 20_000, before.mtime_s, 1, before.mode
    )  # fmt: skip
    assert world.machine.read(ino) == b"x" * 20_000
    assert world.trash() == []


def test_in_other_trees_nothing_is_kept(world):
    world.make("tmp/file", "other")
    world.remove("tmp/file", "other")
    assert world.trash("") == []
    assert len(world.machine.ask(Orphans(None, 9))) == 2


def test_what_is_renamed_over_is_in_the_trash(world):
    world.make("home/old", size=10)
    world.make("home/new", size=30)
    rename = Rename(world.home, b"new", world.home, b"old", 0, SUPERUSER)
    assert world.machine.do(rename) == 0
    assert [(one.entry.name, one.size) for one in world.trash()] == [(b"old", 10)]
    world.undelete("home/old", to="home/older")
    assert world.machine.stat("home/older").size == 10


def test_a_name_of_a_file_with_others_is_not_kept(world):
    ino = world.make("home/one")
    world.machine.do(Link(ino, world.home, b"two", SUPERUSER))
    world.remove("home/one")
    assert world.names() == []
    world.remove("home/two")
    assert world.names() == ["two"]


def test_the_nearest_directory_above_says_what_holds(world):
    world.make("home/a/", "home/a/b/")
    a, b = world.machine.ino("home/a"), world.machine.ino("home/a/b")
    world.machine.do(SetTrash(a, Setting(0), SUPERUSER))
    assert world.machine.ask(GetTrash(b)) == (a, Setting(0))
    world.make("home/a/b/f", "home/g")
    world.remove("home/a/b/f", "home/g")
    assert world.names() == ["g"]
    world.machine.do(SetTrash(a, None, SUPERUSER))
    assert world.machine.ask(GetTrash(b)) == (world.home, Setting(7))
    world.remove("home/a")
    assert world.names() == ["a", "b", "g"]


def test_only_user_0_says_it(world, fails):
    with fails(Fault.NOT_PERMITTED):
        world.machine.do(SetTrash(world.tmp, Setting(7), ALICE))
    with fails(Fault.INVALID):
        world.machine.do(SetTrash(world.tmp, Setting(-1), SUPERUSER))


def test_an_open_file_is_written_in_the_trash(world):
    ino = world.make("home/log", size=10)
    world.remove("home/log")
    world.machine.write(ino, (10, b"more"))
    world.undelete("home/log")
    assert world.machine.read(ino) == b"x" * 10 + b"more"


# -- trees


TREE = ("home/t/", "home/t/a/", "home/t/a/1", "home/t/a/2", "home/t/b/", "home/t/b/c/", "home/t/3")


def test_a_tree_comes_back_with_all_that_went_with_it(world):
    world.make(*TREE)
    before = world.paths()
    sums = world.machine.ask(Below(ROOT))
    world.remove("home/t")
    assert world.paths() == {"home/", "tmp/"}
    assert len(world.trash()) == 7
    entry = world.find("home/t")[0].entry
    within = world.machine.ask(LookWithin(((entry.ino, b""),), entry.run, 0))
    assert (within.files, within.directories, within.skipped, within.left) == (3, 3, 0, ())
    restored = world.undelete("home/t")
    assert len(restored.names) == 7
    assert (restored.skipped, restored.left) == (0, ())
    assert world.paths() == before
    assert world.machine.ask(Below(ROOT)) == sums


def test_what_was_deleted_long_before_stays_in_the_trash(world):
    world.make("home/t/", "home/t/old", "home/t/new", "home/t/twice")
    world.remove("home/t/old", "home/t/twice")
    world.let_pass(61 * NS)
    world.make("home/t/twice", size=7)
    world.remove("home/t")
    world.undelete("home/t")
    assert world.paths("home") == {"home/t/", "home/t/new", "home/t/twice"}
    assert world.machine.stat("home/t/twice").size == 7
    assert world.names() == ["old", "twice"]


def test_a_tree_that_is_large_comes_back_in_steps(world, monkeypatch):
    monkeypatch.setattr("mountfs.meta.ops.undelete.RESTORED_MAX", 2)
    monkeypatch.setattr("mountfs.meta.ops.undelete.LOOKED_MAX", 3)
    world.make(*TREE)
    before = world.paths()
    world.remove("home/t")
    entry = world.find("home/t")[0].entry
    restored = world.undelete("home/t")
    rounds, names = 0, list(restored.names)
    while restored.left:
        rounds += 1
        restored = world.machine.do(UndeleteIn(restored.left, entry.run, SUPERUSER))
        names += restored.names
    assert rounds == 2
    assert len(names) == len(set(names)) == 7
    assert world.paths() == before
    world.machine.checkpoint()


def test_what_was_deleted_in_a_directory_comes_back_into_it(world):
    world.make("home/a/", "home/a/f", "home/g")
    world.remove("home/a", "home/g")
    run, count = world.machine.ask(LastRun(world.home, 0, 0))
    assert count == 2
    restored = world.machine.do(UndeleteIn(((world.home, b""),), run, SUPERUSER))
    assert len(restored.names) == 3
    assert world.paths("home") == {"home/a/", "home/a/f", "home/g"}


def test_a_directory_that_moved_brings_what_was_deleted_in_it(world):
    world.make("home/d/", "home/d/f")
    world.remove("home/d/f")
    world.machine.do(Rename(world.home, b"d", world.tmp, b"e", 0, SUPERUSER))
    assert world.names("home") == []
    assert world.names("tmp") == ["f"]
    world.undelete("tmp/e/f")
    assert world.paths("tmp") == {"tmp/e/", "tmp/e/f"}


def test_a_directory_without_trash_is_kept_for_what_is_in_it(world):
    world.make("home/d/", "home/d/f")
    world.remove("home/d/f")
    world.machine.do(Rename(world.home, b"d", world.tmp, b"d", 0, SUPERUSER))
    world.remove("tmp/d")
    assert world.names("tmp") == ["d", "f"]
    assert world.empty() == 0
    kept = {one.entry.name: one.entry.until for one in world.trash("tmp")}
    assert kept[b"d"] == kept[b"f"]
    world.machine.proven = NOW + 8 * DAY_NS
    assert world.empty() == 2
    assert world.trash("") == []


# -- which one, and by whom


def test_the_last_of_a_name_comes_back_or_the_last_before_a_time(world, fails):
    times = []
    for size in (1, 2, 3):
        world.make("home/f", size=size)
        world.remove("home/f")
        times.append(world.find("home/f")[0].entry.time)
    assert [one.size for one in world.find("home/f")] == [3, 2, 1]
    assert [one.size for one in world.find("home/f", at=times[1])] == [2, 1]
    world.undelete("home/f", at=times[1])
    assert world.machine.stat("home/f").size == 2
    with fails(Fault.EXISTS):
        world.undelete("home/f")
    world.machine.do(Undelete(world.home, b"f", 0, world.tmp, b"f", SUPERUSER))  # the newest
    assert world.machine.stat("tmp/f").size == 3
    assert [one.size for one in world.find("home/f")] == [1]


def test_names_that_begin_alike_are_told_apart(world):
    world.make("home/f", "home/f\1", "home/fo")
    world.remove("home/f", "home/f\1", "home/fo")
    assert len(world.find("home/f")) == 1
    assert world.machine.ask(FindTrash(world.home, b"f\0x", 0, 0, 9)) == ()


def test_the_owner_of_a_file_gives_it_back_and_nobody_else_but_root(world, fails):
    world.make("home/f", cred=ALICE)
    world.remove("home/f", cred=BOB)
    (listed,) = world.find("home/f")
    assert (listed.uid, listed.entry.by) == (1001, 1002)
    assert world.find("home/f", uid=1002) == ()
    assert world.trash(uid=1002) == []
    with fails(Fault.NOT_PERMITTED):
        world.undelete("home/f", cred=BOB)
    with fails(Fault.NOT_PERMITTED):
        world.undelete("home/f", cred=Cred(1002, 1002, (), True))
    assert world.machine.do(EmptyTrash(((listed.entry.until, listed.entry.order),), BOB)) == 0
    world.undelete("home/f", cred=ALICE)
    assert world.paths("home") == {"home/f"}


def test_who_gives_back_has_to_be_allowed_to_write_there(world, fails):
    world.make("home/f", cred=ALICE)
    world.machine.make("closed/", mode=0o755)
    world.remove("home/f")
    with fails(Fault.DENIED):
        world.undelete("home/f", to="closed/f", cred=ALICE)
    world.undelete("home/f", to="closed/f")


def test_of_a_tree_the_files_of_others_stay_in_the_trash(world):
    world.make("home/t/", cred=ALICE)
    world.make("home/t/hers", cred=ALICE)
    world.make("home/t/his", cred=BOB)
    world.remove("home/t", cred=ALICE)
    restored = world.undelete("home/t", cred=ALICE)
    assert (len(restored.names), restored.skipped) == (2, 1)
    assert world.paths("home") == {"home/t/", "home/t/hers"}
    world.undelete("home/t/his", cred=BOB)


def test_nothing_is_made_in_a_directory_in_the_trash(world, fails):
    world.make("home/t/", "home/t/f")
    ino = world.machine.ino("home/t")
    world.remove("home/t")
    with fails(Fault.NOT_FOUND):
        world.machine.do(Make(ino, b"new", 0o100644, 0, 0, True, SUPERUSER))
    entry = world.machine.ask(FindTrash(ino, b"f", 0, 0, 1))[0].entry
    with fails(Fault.NOT_FOUND):
        world.machine.do(Undelete(ino, b"f", entry.order, ino, b"f", SUPERUSER))


# -- the end of it


def test_it_goes_when_its_time_is_over_and_not_before(world, fails):
    ino = world.make("home/f", size=20_000)
    world.remove("home/f")
    assert world.empty() == 0
    world.machine.proven = NOW + 7 * DAY_NS - 1
    assert world.empty() == 0
    assert world.machine.ask(DueTrash(NOW + 7 * DAY_NS - 1, 9)) == ()
    world.machine.proven = NOW + 7 * DAY_NS
    assert len(world.machine.ask(DueTrash(NOW + 7 * DAY_NS, 9))) == 1
    assert world.empty() == 1
    with fails(Fault.STALE):
        world.machine.ask(GetAttr(ino))
    assert world.machine.state.tree.counters.allocated == 0


def test_a_clock_that_is_set_forward_removes_nothing(world):
    world.make("home/f")
    world.remove("home/f")
    world.let_pass(1_000 * DAY_NS)  # says one leader's clock
    assert world.empty() == 0
    assert world.names() == ["f"]


def test_where_no_time_is_proven_it_is_kept_for_longer_and_not_for_less(world):
    world.machine.proven = None
    world.make("home/f")
    world.remove("home/f")
    (listed,) = world.trash()
    assert listed.entry.until >= max(listed.entry.time, NOW) + 7 * DAY_NS


def test_a_tree_goes_from_the_leaves_on(world):
    world.make(*TREE)
    world.remove("home/t")
    world.machine.proven = NOW + 8 * DAY_NS
    due = world.machine.ask(DueTrash(NOW + 8 * DAY_NS, 99))
    for one in reversed(due):
        world.machine.do(EmptyTrash((one,)))
        assert world.machine.violations() == []
    assert len(world.trash()) < 7
    while world.trash():
        world.empty()
    assert world.machine.state.tree.counters.inodes == 3


def test_it_is_emptied_by_hand(world):
    world.make("home/hers", cred=ALICE)
    world.make("home/f")
    world.remove("home/hers", "home/f")
    assert world.empty(ALICE) == 1
    assert world.names() == ["f"]
    assert world.empty(SUPERUSER) == 1
    assert world.names() == []


# -- quotas


def limit(world, **limits):
    world.machine.do(SetQuota(Kind.TREE, world.home, Limits(**limits)))


def test_what_is_in_the_trash_counts_for_quotas(world, fails):
    limit(world, hard_inodes=2)
    world.make("home/a", "home/b")
    world.remove("home/a")
    with fails(Fault.OVER_QUOTA):
        world.make("home/c")
    assert world.machine.ask(Below(world.home)) == (2 * BLOCK_BYTES, 2, 0)
    world.empty(SUPERUSER)
    world.make("home/c")


def test_or_it_does_not_and_then_giving_back_is_held_against_them(uncounted, fails):
    world = uncounted
    limit(world, hard_inodes=2)
    world.make("home/a", "home/b")
    world.remove("home/a")
    assert world.machine.ask(Below(world.home)) == (BLOCK_BYTES, 1, 0)
    assert world.machine.state.tree.accounts.use(Kind.USER, 0) == (BLOCK_BYTES, 4)
    world.make("home/c")
    before = world.machine.files()
    with fails(Fault.OVER_QUOTA):
        world.undelete("home/a")
    assert world.machine.files() == before
    world.undelete("home/a", to="tmp/a")
    assert world.machine.ask(Below(world.tmp)) == (BLOCK_BYTES, 1, 0)


def test_a_tree_that_is_too_much_is_not_given_back_at_all(uncounted, fails):
    world = uncounted
    world.make(*TREE)
    world.remove("home/t")
    assert world.machine.ask(Below(world.home)) == (0, 0, 0)
    limit(world, hard_inodes=6)
    before = world.machine.files()
    with fails(Fault.OVER_QUOTA):
        world.undelete("home/t")
    assert world.machine.files() == before
    limit(world, hard_inodes=7)
    world.undelete("home/t")
    assert world.machine.ask(Below(world.home)) == (3 * BLOCK_BYTES, 3, 4)


def test_what_does_not_count_goes_without_a_trace(uncounted):
    world = uncounted
    world.make(*TREE)
    world.remove("home/t")
    world.machine.write(world.find("home/t")[0].entry.ino and world.make("tmp/x"), (0, b"y"))
    world.machine.proven = NOW + 8 * DAY_NS
    assert world.empty() == 7
    assert world.machine.state.tree.accounts.use(Kind.USER, 0) == (BLOCK_BYTES, 4)


@pytest.mark.parametrize("counts", [(True, True), (False, False), (True, False), (False, True)])
@pytest.mark.parametrize("order", [1, -1])
def test_what_has_left_the_trash_goes_in_any_order(machine, counts, order):
    world = World(machine, counts=counts[0])
    world.make(*TREE)
    world.remove("home/t/a/1", "home/t/b/c", "home/t/3")
    machine.do(SetTrash(world.home, Setting(7, counts[1]), SUPERUSER))
    world.remove("home/t")
    entries = tuple((one.entry.until, one.entry.order) for one in world.trash())
    assert machine.do(EmptyTrash(tuple(sorted(entries)), SUPERUSER)) == 7
    for _, ino in machine.ask(Orphans(NOBODYS, 99))[::order]:
        machine.do(Reap(NOBODYS, (ino,)))
        assert machine.violations() == []
    assert machine.state.tree.counters.inodes == 3
    assert machine.ask(Below(ROOT)) == (0, 0, 2)
