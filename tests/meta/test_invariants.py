"""Whatever is wrong in the metadata is found, and named."""

import msgspec
import pytest

from mountfs.meta import acl, keys
from mountfs.meta.accounts import Accounts
from mountfs.meta.invariants import violations
from mountfs.meta.locks import EOF, POSIX, Lock, Owner
from mountfs.meta.ops.copy_range import CopyRange
from mountfs.meta.ops.default_retention import SetDefault
from mountfs.meta.ops.legal_hold import SetLegalHold
from mountfs.meta.ops.link import Link
from mountfs.meta.ops.lock import TakeLock
from mountfs.meta.ops.quota import SetQuota
from mountfs.meta.ops.retention import SetRetention
from mountfs.meta.ops.symlink import Symlink
from mountfs.meta.ops.trash import FindTrash, SetTrash
from mountfs.meta.ops.unlink import Unlink
from mountfs.meta.ops.xattr import SetXattr
from mountfs.meta.quota import Kind, Limits
from mountfs.meta.records import (
    HAS_ACL,
    HAS_CONTENT,
    HAS_LOCKS,
    HAS_SLICES,
    HAS_XATTRS,
    RETAINED,
    TRASHED,
    UNCOMMITTED,
    UNCOUNTED,
    ino_of,
    pack_blocks,
    pack_dentry,
    pack_entry,
    pack_garbage,
    pack_slice,
    unpack_inode,
    unpack_slice,
)
from mountfs.meta.retention import (
    Below,
    Default,
    Mode,
    Retention,
    pack_below,
    pack_retention,
    unpack_below,
)
from mountfs.meta.sums import Sums, Use
from mountfs.meta.trash import Setting
from mountfs.meta.trash import pack_entry as pack_trash
from mountfs.types import CHUNK_BYTES, ROOT, SUPERUSER, Ino, VolumeId


class Sound:
    """A filesystem with one of everything, and ways to damage it."""

    def __init__(self, machine) -> None:
        self.machine = machine
        self.directory = machine.make("d/")
        self.inner = machine.make("d/e/")
        self.small = machine.make("d/small")
        self.large = machine.make("large")
        self.copy = machine.make("copy")
        self.linked = machine.make("linked")
        self.orphan = machine.make("orphan")
        self.symlink = ino_of(machine.do(Symlink(ROOT, b"s", b"there", SUPERUSER)))
        machine.do(Link(self.linked, self.directory, b"again", SUPERUSER))
        machine.do(Unlink(ROOT, b"orphan", SUPERUSER))
        machine.write(self.small, (0, b"hello"))
        machine.write(self.large, (0, b"a" * 10_000), slices=True)
        machine.write(self.large, (CHUNK_BYTES, b"b" * 10_000), slices=True)
        machine.write(self.large, (0, b"piece"))
        machine.do(CopyRange(self.large, CHUNK_BYTES, self.copy, 0, 10_000, False))
        machine.do(SetXattr(self.small, b"user.a", b"1", 0, False, SUPERUSER))
        default = acl.pack(
            (acl.Entry(acl.USER_OBJ, 7), acl.Entry(acl.GROUP_OBJ, 5), acl.Entry(acl.OTHER, 0))
        )
        machine.do(SetXattr(self.directory, acl.DEFAULT, default, 0, False, SUPERUSER))
        lock = Lock(POSIX, Owner(machine.session, 1), 0, EOF, True, 1)
        machine.do(TakeLock(self.small, lock))
        self.kept = machine.make("d/e/kept")
        keep = SetRetention(ino=self.kept, mode=Mode.COMPLIANCE, duration=1 << 50, cred=SUPERUSER)
        machine.do(keep)
        machine.do(SetLegalHold(self.kept, True, SUPERUSER))
        machine.do(SetDefault(self.inner, Default(Mode.GOVERNANCE, 1 << 50), SUPERUSER))
        self.waiting = machine.make("d/e/waiting")
        machine.write(self.waiting, (0, b"hello"))
        machine.do(SetQuota(Kind.TREE, self.directory, Limits(hard_inodes=100)))
        bin = machine.make("bin/")
        machine.do(SetTrash(bin, Setting(7, counts=False), SUPERUSER))
        self.deleted = machine.make("bin/deleted")
        machine.write(self.deleted, (0, b"hello"))
        machine.do(Unlink(bin, b"deleted", SUPERUSER))
        self.entry = machine.ask(FindTrash(bin, b"deleted", 0, 0, 1))[0].entry
        machine.checkpoint()  # or sums would only be in memory
        assert self.violations() == []

    def violations(self) -> list[str]:
        return list(violations(self.machine.state.tree))

    def get(self, key: bytes) -> bytes:
        value = self.machine.overlay.get(key)
        assert value is not None
        return value

    def put(self, key: bytes, value: bytes | None) -> None:
        self.machine.overlay.apply({key: value})
        tree = self.machine.state.tree
        tree._inodes.clear()
        tree.accounts = Accounts(self.machine.overlay)

    def drop(self, key: bytes) -> None:
        self.get(key)
        self.put(key, None)

    def edit(self, ino: Ino, **fields) -> None:
        inode = unpack_inode(self.get(keys.inode(ino)))
        for name, value in fields.items():
            setattr(inode, name, value(getattr(inode, name)) if callable(value) else value)
        self.put(keys.inode(ino), inode.pack())

    def unmark(self, ino: Ino, mark: int) -> None:
        self.edit(ino, marks=lambda marks: marks & ~mark)

    def slice_row(self, ino: Ino, chunk: int):
        ((key, value),) = list(self.machine.overlay.scan(*keys.slices_of(ino, chunk)))
        return key, unpack_slice(value)


@pytest.fixture
def sound(new_machine):
    return Sound(new_machine())


DAMAGES = []


def damage(act):
    DAMAGES.append(act)
    return act


@damage
def drop_a_name(sound):
    sound.drop(keys.dentry(sound.directory, b"small"))


@damage
def drop_an_entry(sound):
    sound.drop(keys.entry(ROOT, (1 << 62) - 1))


@damage
def name_a_missing_inode(sound):
    sound.put(keys.dentry(ROOT, b"x"), pack_dentry(Ino(99), 5, 8))


@damage
def name_a_file_twice(sound):
    sound.put(keys.dentry(ROOT, b"x"), pack_dentry(sound.small, 5, 8))
    sound.put(keys.entry(ROOT, 5), pack_entry(sound.small, 8, b"x"))
    sound.edit(ROOT, entries=lambda entries: entries + 1)


@damage
def name_an_orphan(sound):
    sound.put(keys.dentry(ROOT, b"x"), pack_dentry(sound.orphan, 5, 8))


@damage
def mistake_a_type(sound):
    sound.put(keys.dentry(ROOT, b"x"), pack_dentry(sound.small, 5, 4))


@damage
def lie_about_a_parent(sound):
    sound.edit(sound.inner, parent=ROOT)


@damage
def make_a_circle(sound):
    sound.edit(sound.directory, parent=sound.inner)


@damage
def count_entries_wrong(sound):
    sound.edit(sound.directory, entries=7)


@damage
def count_links_wrong(sound):
    sound.edit(sound.linked, nlink=3)


@damage
def count_subdirectories_wrong(sound):
    sound.edit(sound.directory, nlink=2)


@damage
def give_out_a_position_again(sound):
    sound.edit(ROOT, next_position=1 << 62)


@damage
def forget_an_orphan(sound):
    sound.drop(keys.orphan(sound.machine.session, sound.orphan))


@damage
def have_two_orphans(sound):
    sound.put(keys.orphan(77, sound.orphan), b"")


@damage
def have_an_orphan_with_a_name(sound):
    sound.put(keys.orphan(sound.machine.session, sound.small), b"")


@damage
def have_an_orphan_that_is_gone(sound):
    sound.put(keys.orphan(sound.machine.session, Ino(99)), b"")


@damage
def drop_an_inode(sound):
    sound.drop(keys.inode(sound.large))


@damage
def count_inodes_wrong(sound):
    sound.machine.state.tree.counters.inodes += 1


@damage
def count_space_wrong(sound):
    sound.machine.state.tree.counters.allocated += 4096


@damage
def allocate_wrong(sound):
    sound.edit(sound.large, allocated=lambda allocated: allocated + 4096)


@damage
def give_out_an_inode_again(sound):
    sound.machine.state.tree.counters.next_ino = 3


@damage
def drop_a_content(sound):
    sound.drop(keys.content(sound.small))


@damage
def lengthen_a_content(sound):
    sound.put(keys.content(sound.small), b"hello world")


@damage
def have_content_and_slices(sound):
    sound.edit(sound.small, marks=lambda marks: marks | HAS_SLICES)


@damage
def unmark_content(sound):
    sound.unmark(sound.small, HAS_CONTENT)


@damage
def unmark_slices(sound):
    sound.unmark(sound.large, HAS_SLICES)


@damage
def unmark_xattrs(sound):
    sound.unmark(sound.small, HAS_XATTRS)


@damage
def unmark_an_acl(sound):
    sound.unmark(sound.directory, HAS_ACL)


def damage_an_acl(sound):
    sound.put(keys.xattr(sound.directory, acl.DEFAULT), b"nonsense")


@damage
def unmark_locks(sound):
    sound.unmark(sound.small, HAS_LOCKS)


@damage
def drop_locks(sound):
    sound.drop(keys.locks(sound.small))


@damage
def forget_a_holder(sound):
    sound.drop(keys.locked(sound.machine.session, sound.small))


@damage
def hold_locks_in_a_dead_session(sound):
    sound.drop(keys.session(sound.machine.session))


@damage
def hold_locks_on_nothing(sound):
    sound.put(keys.locked(sound.machine.session, sound.large), b"")


@damage
def drop_a_target(sound):
    sound.drop(keys.target(sound.symlink))


@damage
def shorten_a_target(sound):
    sound.put(keys.target(sound.symlink), b"the")


@damage
def drop_blocks(sound):
    sound.drop(keys.blocks(sound.large, 0))


@damage
def count_fewer_blocks(sound):
    sound.put(keys.blocks(sound.large, 1), pack_blocks(1))


@damage
def drop_a_slice(sound):
    key, _ = sound.slice_row(sound.large, 1)
    sound.drop(key)


@damage
def drop_a_piece(sound):
    rows = list(sound.machine.overlay.scan(*keys.everything_of(sound.large)))
    sound.drop(next(key for key, _ in rows if key[8] == keys.PIECE))


@damage
def leave_a_piece(sound):
    sound.put(keys.piece(sound.large, 5), b"x")


@damage
def shorten_a_slice(sound):
    key, piece = sound.slice_row(sound.copy, 0)
    sound.put(key, pack_slice(msgspec.structs.replace(piece, length=5)))


@damage
def cut_the_size(sound):
    sound.edit(sound.copy, size=100)


@damage
def forget_a_sharing(sound):
    _, piece = sound.slice_row(sound.copy, 0)
    sound.drop(keys.shared(piece.slice_id))


@damage
def share_more(sound):
    _, piece = sound.slice_row(sound.copy, 0)
    sound.put(keys.shared(piece.slice_id), (3).to_bytes(4, "little"))


@damage
def call_a_slice_garbage(sound):
    rows = list(sound.machine.overlay.scan(*keys.slices_of(sound.large, 0)))
    sound.put(keys.garbage(unpack_slice(rows[0][1]).slice_id), pack_garbage(VolumeId(7), 10_000))


@damage
def share_what_is_gone(sound):
    sound.put(keys.shared(1), (2).to_bytes(4, "little"))


@damage
def give_out_a_slice_again(sound):
    sound.machine.state.tree.counters.next_slice = 1


@damage
def mark_a_chunk_that_is_not_there(sound):
    sound.put(keys.tangled(sound.small, 3), b"")


@damage
def leave_a_row_of_unknown_kind(sound):
    sound.put(keys.inode(sound.large)[:8] + b"\x7f", b"")


@damage
def give_a_file_names(sound):
    sound.put(keys.dentry(sound.large, b"x"), pack_dentry(sound.small, 5, 8))


@damage
def forget_the_sums_of_a_directory(sound):
    sound.drop(keys.sums(sound.inner))


@damage
def count_bytes_wrong(sound):
    sound.put(keys.sums(sound.directory), Sums(ROOT, 0, 1, 1).pack())


@damage
def hang_sums_elsewhere(sound):
    sound.put(keys.sums(sound.inner), Sums(ROOT).pack())


@damage
def give_a_file_sums(sound):
    sound.put(keys.sums(sound.small), Sums(ROOT).pack())


@damage
def leave_sums_of_nothing(sound):
    sound.put(keys.sums(Ino(99)), Sums(ROOT).pack())


@damage
def charge_what_is_gone(sound):
    sound.put(keys.sums(Ino(99)), Sums(ROOT, 4_096, 1).pack())


@damage
def forget_the_places_of_a_file(sound):
    sound.drop(keys.place(sound.linked, ROOT))


@damage
def count_places_wrong(sound):
    sound.put(keys.place(sound.linked, ROOT), (2).to_bytes(4, "little"))


@damage
def swap_places(sound):
    sound.drop(keys.place(sound.linked, ROOT))
    sound.put(keys.place(sound.linked, sound.inner), (1).to_bytes(4, "little"))
    sound.edit(sound.linked, parent=sound.directory)


@damage
def be_at_home_elsewhere(sound):
    sound.edit(sound.small, parent=ROOT)


@damage
def count_a_user_wrong(sound):
    sound.put(keys.use_of_user(0), Use(4_096, 1).pack())


@damage
def count_a_group_that_has_nothing(sound):
    sound.put(keys.use_of_group(77), Use(0, 1).pack())


@damage
def leave_a_quota_of_nothing(sound):
    row = sound.get(keys.quota(Kind.TREE, sound.directory))
    sound.put(keys.quota(Kind.TREE, 99), row)


@damage
def forget_what_is_in_the_trash(sound):
    sound.drop(keys.trash(*trash_place(sound)))


def trash_place(sound):
    return sound.entry.directory, sound.entry.name, sound.entry.order


@damage
def forget_until_when_it_is_in_the_trash(sound):
    sound.drop(keys.trash_until(sound.entry.until, sound.entry.order))


@damage
def keep_it_in_the_trash_until_another_time(sound):
    later = msgspec.structs.replace(sound.entry, until=sound.entry.until + 1)
    sound.put(keys.trash(*trash_place(sound)), pack_trash(later))


@damage
def have_something_else_in_the_trash(sound):
    other = msgspec.structs.replace(sound.entry, ino=sound.orphan)
    sound.put(keys.trash(*trash_place(sound)), pack_trash(other))


@damage
def have_something_in_the_trash_that_is_not_there(sound):
    other = msgspec.structs.replace(sound.entry, ino=Ino(99))
    sound.put(keys.trash(*trash_place(sound)), pack_trash(other))


@damage
def have_something_in_the_trash_that_somebody_uses(sound):
    sound.put(keys.orphan(sound.machine.session, sound.deleted), b"")


@damage
def unmark_what_is_in_the_trash(sound):
    sound.unmark(sound.deleted, TRASHED)


@damage
def count_what_is_in_the_trash(sound):
    sound.unmark(sound.deleted, UNCOUNTED)


@damage
def give_a_name_to_what_is_in_the_trash(sound):
    sound.edit(sound.deleted, nlink=1)


@damage
def be_at_home_elsewhere_in_the_trash(sound):
    sound.edit(sound.deleted, parent=ROOT)


@damage
def forget_what_becomes_of_what_is_deleted(sound):
    sound.drop(keys.trash_setting(sound.entry.directory))


@damage
def delete_something_in_a_file(sound):
    sound.drop(keys.trash(*trash_place(sound)))
    sound.put(keys.trash(sound.small, b"deleted", sound.entry.order), pack_trash(sound.entry))


@damage
def forget_what_is_retained(sound):
    sound.drop(keys.retention(sound.kept))


@damage
def unmark_what_is_retained(sound):
    sound.unmark(sound.kept, RETAINED)


@damage
def retain_a_directory(sound):
    sound.put(keys.retention(sound.inner), pack_retention(Retention(hold=True)))


@damage
def forget_that_something_below_is_retained(sound):
    sound.drop(keys.retained_below(sound.directory))
    sound.unmark(sound.directory, RETAINED)


@damage
def count_fewer_holds(sound):
    found = unpack_below(sound.get(keys.retained_below(ROOT)))
    sound.put(keys.retained_below(ROOT), pack_below(Below(0, found.until)))


@damage
def count_more_holds(sound):
    found = unpack_below(sound.get(keys.retained_below(ROOT)))
    sound.put(keys.retained_below(ROOT), pack_below(Below(2, found.until)))


@damage
def let_a_directory_go_too_early(sound):
    found = unpack_below(sound.get(keys.retained_below(sound.directory)))
    early = pack_below(Below(found.holds, found.until - 1))
    sound.put(keys.retained_below(sound.directory), early)


@damage
def forget_a_default(sound):
    sound.drop(keys.default_retention(sound.inner))


@damage
def forget_who_waits(sound):
    sound.drop(keys.uncommitted(sound.waiting))


@damage
def unmark_who_waits(sound):
    sound.unmark(sound.waiting, UNCOMMITTED)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_every_damage_is_found(sound, damage):
    damage(sound)
    assert sound.violations() != []


def test_a_sound_filesystem_has_no_violations_before_and_after_a_checkpoint(sound):
    sound.machine.checkpoint()
    assert sound.violations() == []
    sound.machine.restart()
    assert sound.violations() == []


def test_what_is_found_does_not_depend_on_how_much_is_counted_at_a_time(sound):
    name_a_file_twice(sound)
    share_more(sound)
    forget_an_orphan(sound)
    tree = sound.machine.state.tree
    whole = sorted(violations(tree))
    assert len(whole) == 5
    for window in (1, 2, 8):
        assert sorted(violations(tree, window=window, directories=window)) == whole


def test_a_violation_names_what_it_is_about(sound):
    name_a_missing_inode(sound)
    assert any(
        f"inode {ROOT}: b'x' is inode 99, which does not exist" in trouble
        for trouble in sound.violations()
    )
