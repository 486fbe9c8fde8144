"""chmod(2), chown(2), truncate(2), utimensat(2)."""

import pytest

from mountfs.errors import Fault
from mountfs.meta import acl
from mountfs.meta.ops.read import GetLayout
from mountfs.meta.ops.setattr import SetAttr
from mountfs.meta.ops.slices import Garbage
from mountfs.meta.ops.xattr import GetXattr, SetXattr
from mountfs.types import BLOCK_BYTES, CHUNK_BYTES, FILE_BYTES_MAX, SUPERUSER, Cred

ALICE, BOB = Cred(1, 10), Cred(2, 20, (21,))


@pytest.fixture
def ino(machine):
    return machine.make("a")


@pytest.fixture
def change(machine, ino):
    def change(cred=SUPERUSER, **fields):
        machine.do(SetAttr(ino=ino, cred=cred, **fields))
        return machine.stat(ino)

    return change


@pytest.mark.parametrize("slices", [False, True])
@pytest.mark.parametrize("offset", [0, CHUNK_BYTES - 50])
def test_what_was_cut_off_is_zeros_when_the_file_grows_again(machine, ino, change, slices, offset):
    machine.write(ino, (offset, b"a" * 50), slices=slices)
    change(size=offset + 30)
    change(size=offset + 40)
    assert machine.read(ino, offset) == b"a" * 30 + bytes(10)


def test_truncation_frees_whole_blocks(machine, ino, change):
    machine.write(ino, (0, b"a" * 5 * BLOCK_BYTES), slices=True)
    assert change(size=2 * BLOCK_BYTES + 1).blocks * 512 == 3 * BLOCK_BYTES
    assert change(size=2 * BLOCK_BYTES).blocks * 512 == 2 * BLOCK_BYTES
    assert change(size=0).blocks == 0


def test_chunks_behind_the_end_are_garbage_at_once(machine, ino, change):
    machine.write(ino, (CHUNK_BYTES - 10, b"a" * 10), slices=True)
    machine.write(ino, (CHUNK_BYTES, b"b" * 7), slices=True)
    change(size=CHUNK_BYTES)
    assert [length for _, _, length in machine.ask(Garbage(10))] == [7]
    assert machine.ask(GetLayout(ino, 1)).slices == ()


def test_a_file_grows_to_the_largest_size_without_taking_space(machine, change, ino):
    machine.write(ino, (0, b"a"))
    found = change(size=FILE_BYTES_MAX)
    assert (found.size, found.blocks * 512) == (FILE_BYTES_MAX, BLOCK_BYTES)
    assert machine.read(ino, 0, 3) == b"a\0\0"


def test_sizes_have_limits(fails, ino):
    for size in (-1, FILE_BYTES_MAX + 1):
        with fails(Fault.FILE_TOO_LARGE):
            SetAttr(ino=ino, cred=SUPERUSER, size=size).check()


def test_a_directory_has_no_size_to_set(machine, fails):
    with fails(Fault.IS_DIRECTORY):
        machine.do(SetAttr(ino=machine.make("d/"), cred=SUPERUSER, size=0))


def test_times_are_what_was_asked_for_or_now(change):
    found = change(atime=-1, mtime=(1 << 33) * 10**9 + 1)
    assert (found.atime_s, found.atime_ns) == (-1, 999_999_999)
    assert (found.mtime_s, found.mtime_ns) == (1 << 33, 1)
    now = change(mtime_now=True)
    assert (now.mtime_s, now.mtime_ns) == (now.ctime_s, now.ctime_ns)
    assert now.atime_s == -1


def test_only_the_owner_changes_the_mode(machine, change, fails):
    change(uid=1, gid=10)
    with fails(Fault.NOT_PERMITTED):
        change(BOB, mode=0o777)
    assert change(ALICE, mode=0o600).mode == 0o100600


def test_an_owner_outside_the_group_cannot_set_its_set_group_id(change):
    change(uid=1, gid=99)
    assert change(ALICE, mode=0o2755).mode == 0o100755
    change(gid=10)
    assert change(ALICE, mode=0o2755).mode == 0o102755


def test_an_owner_gives_the_file_to_groups_of_their_own_only(change, fails):
    change(uid=2, gid=20)
    assert change(BOB, gid=21).gid == 21
    with fails(Fault.NOT_PERMITTED):
        change(BOB, gid=22)
    with fails(Fault.NOT_PERMITTED):
        change(BOB, uid=1)


def test_who_may_write_may_set_the_times_to_now_but_not_to_others(change, fails):
    change(mode=0o666)
    change(BOB, atime_now=True, mtime_now=True)
    with fails(Fault.NOT_PERMITTED):
        change(BOB, mtime=5)


def test_a_new_owner_means_the_end_of_set_user_id(change):
    change(mode=0o6755)
    assert change(uid=1, drop_privileges=True).mode == 0o100755


def test_chmod_sets_the_mask_of_an_acl(machine, ino, change):
    entries = acl.pack(
        (
            acl.Entry(acl.USER_OBJ, 7),
            acl.Entry(acl.USER, 7, 5),
            acl.Entry(acl.GROUP_OBJ, 5),
            acl.Entry(acl.MASK, 7),
            acl.Entry(acl.OTHER, 0),
        )
    )
    machine.do(SetXattr(ino, acl.ACCESS, entries, 0, False, SUPERUSER))
    change(mode=0o640)
    found = {
        entry.tag: entry.permissions for entry in acl.parse(machine.ask(GetXattr(ino, acl.ACCESS)))
    }
    assert found == {
        acl.USER_OBJ: 6,
        acl.USER: 7,
        acl.GROUP_OBJ: 5,
        acl.MASK: 4,
        acl.OTHER: 0,
    }
