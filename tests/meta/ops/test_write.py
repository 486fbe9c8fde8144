"""write(2), as it reaches the metadata."""

import pytest

from mountfs.errors import Fault
from mountfs.meta.ops.read import GetLayout
from mountfs.meta.ops.setattr import SetAttr
from mountfs.meta.ops.slices import Garbage, Tangles
from mountfs.meta.ops.write import INLINE_BYTES_MAX, Run, Write
from mountfs.meta.ops.xattr import ListXattr, SetXattr
from mountfs.types import BLOCK_BYTES, CHUNK_BYTES, FILE_BYTES_MAX, ROOT, SUPERUSER


@pytest.fixture
def ino(machine):
    return machine.make("a")


def kept_inline(machine, ino):
    return machine.ask(GetLayout(ino, 0)).content is not None


def test_a_small_file_is_kept_with_its_inode_and_counts_one_block(machine, ino):
    machine.write(ino, (0, b"hello"))
    assert kept_inline(machine, ino)
    assert machine.read(ino) == b"hello"
    assert machine.stat(ino).blocks * 512 == BLOCK_BYTES


def test_a_gap_in_a_small_file_reads_as_zeros(machine, ino):
    machine.write(ino, (3, b"b"), (0, b"a"))
    assert machine.read(ino) == b"a\0\0b"


def test_a_file_that_grows_over_the_limit_moves_out_of_its_inode(machine, ino):
    machine.write(ino, (0, b"a" * INLINE_BYTES_MAX))
    assert kept_inline(machine, ino)
    machine.write(ino, (INLINE_BYTES_MAX, b"b"))
    assert not kept_inline(machine, ino)
    assert machine.read(ino) == b"a" * INLINE_BYTES_MAX + b"b"
    assert machine.stat(ino).blocks * 512 == 2 * BLOCK_BYTES


def test_a_file_that_was_emptied_is_small_again(machine, ino):
    machine.write(ino, (0, b"a" * 10_000), slices=True)
    machine.do(SetAttr(ino=ino, cred=SUPERUSER, size=0))
    machine.write(ino, (0, b"b"))
    assert kept_inline(machine, ino)
    assert machine.read(ino) == b"b"


def test_the_newest_slice_wins_and_the_chunk_wants_compaction(machine, ino):
    machine.write(ino, (0, b"a" * 8), slices=True)
    assert machine.ask(Tangles(10)) == ()
    machine.write(ino, (2, b"b" * 4), slices=True)
    assert machine.read(ino) == b"aabbbbaa"
    assert machine.ask(Tangles(10)) == ((ino, 0),)


def test_a_chunk_that_is_far_out_leaves_a_hole(machine, ino):
    machine.write(ino, (CHUNK_BYTES * 1000 + 5, b"a"), slices=True)
    assert machine.stat(ino).size == CHUNK_BYTES * 1000 + 6
    assert machine.stat(ino).blocks * 512 == BLOCK_BYTES
    assert machine.read(ino, CHUNK_BYTES * 1000) == b"\0" * 5 + b"a"


def test_a_write_keeps_the_time_at_which_it_was_made(machine, ino):
    machine.do(Write(ino, (Run(0, 1, 0, data=b"a"),), 5_000_000_007, False))
    found = machine.stat(ino)
    assert (found.mtime_s, found.mtime_ns) == (5, 7)
    assert found.ctime_s > 5  # the change of the inode does not go back


def test_a_write_takes_set_user_id_and_capabilities_away(machine, ino):
    machine.do(SetAttr(ino=ino, cred=SUPERUSER, mode=0o6755))
    machine.do(SetXattr(ino, b"security.capability", b"x", 0, False, SUPERUSER))
    machine.do(Write(ino, (Run(0, 1, 0, data=b"a"),), 5, True))
    assert machine.stat(ino).mode == 0o100755
    assert machine.ask(ListXattr(ino)) == ()


def test_set_group_id_without_group_execution_means_locking_and_stays(machine, ino):
    machine.do(SetAttr(ino=ino, cred=SUPERUSER, mode=0o2745))
    machine.do(Write(ino, (Run(0, 1, 0, data=b"a"),), 5, True))
    assert machine.stat(ino).mode == 0o102745


def test_only_files_are_written(machine, fails):
    with fails(Fault.INVALID):
        machine.write(ROOT, (0, b"a"))


def test_nothing_lies_beyond_the_largest_offset(fails):
    with fails(Fault.FILE_TOO_LARGE):
        Write(ROOT, (Run(FILE_BYTES_MAX, 1, 0, data=b"a"),), 0, False).check()


def test_overwritten_slices_are_no_garbage_before_compaction(machine, ino):
    machine.write(ino, (0, b"a" * 8), slices=True)
    machine.write(ino, (0, b"b" * 8), slices=True)
    assert machine.ask(Garbage(10)) == ()
