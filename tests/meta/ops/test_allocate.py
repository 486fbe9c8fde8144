"""fallocate(2)."""

import pytest

from mountfs.errors import Fault
from mountfs.meta import keys
from mountfs.meta.ops.allocate import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE, Allocate
from mountfs.meta.ops.reap import Reap
from mountfs.meta.ops.setattr import SetAttr
from mountfs.meta.ops.slices import Rewrite, Tangles
from mountfs.meta.ops.unlink import Unlink
from mountfs.types import BLOCK_BYTES, CHUNK_BYTES, FILE_BYTES_MAX, ROOT, SUPERUSER

PUNCH = PUNCH_HOLE | KEEP_SIZE


@pytest.fixture
def ino(machine):
    return machine.make("a")


@pytest.fixture
def allocate(machine, ino):
    def allocate(mode, offset, length):
        machine.do(Allocate(ino, mode, offset, length, False))
        return machine.stat(ino)

    return allocate


def test_a_hole_reads_as_zeros_and_frees_the_blocks_that_lie_in_it(machine, ino, allocate):
    machine.write(ino, (0, b"a" * 4 * BLOCK_BYTES), slices=True)
    found = allocate(PUNCH, BLOCK_BYTES - 1, 2 * BLOCK_BYTES + 1)
    assert found.blocks * 512 == 2 * BLOCK_BYTES
    assert found.size == 4 * BLOCK_BYTES
    hole = bytes(2 * BLOCK_BYTES + 1)
    assert machine.read(ino) == b"a" * (BLOCK_BYTES - 1) + hole + b"a" * BLOCK_BYTES


def test_a_hole_within_a_block_frees_nothing(machine, ino, allocate):
    machine.write(ino, (0, b"a" * BLOCK_BYTES), slices=True)
    assert allocate(PUNCH, 1, BLOCK_BYTES - 1).blocks * 512 == BLOCK_BYTES
    assert machine.read(ino) == b"a" + bytes(BLOCK_BYTES - 1)


def test_a_hole_over_a_chunk_border(machine, ino, allocate):
    machine.write(ino, (CHUNK_BYTES - 8, b"a" * 8), slices=True)
    machine.write(ino, (CHUNK_BYTES, b"b" * 8), slices=True)
    allocate(PUNCH, CHUNK_BYTES - 4, 8)
    assert machine.read(ino, CHUNK_BYTES - 8) == b"aaaa" + bytes(8) + b"bbbb"


def test_a_hole_in_a_small_file(machine, ino, allocate):
    machine.write(ino, (0, b"abcdef"))
    allocate(PUNCH, 2, 2)
    assert machine.read(ino) == b"ab\0\0ef"
    assert allocate(PUNCH, 0, 6).blocks == 0
    assert machine.read(ino) == bytes(6)


def test_zeroing_may_grow_the_file(machine, ino, allocate):
    machine.write(ino, (0, b"abcd"))
    assert allocate(ZERO_RANGE | KEEP_SIZE, 2, 10).size == 4
    assert allocate(ZERO_RANGE, 2, 10).size == 12
    assert machine.read(ino) == b"ab" + bytes(10)


def test_reserved_blocks_count_and_read_as_zeros(machine, ino, allocate):
    machine.write(ino, (0, b"ab"))
    found = allocate(0, 1, 2 * BLOCK_BYTES)
    assert (found.size, found.blocks * 512) == (2 * BLOCK_BYTES + 1, 3 * BLOCK_BYTES)
    assert machine.read(ino) == b"ab" + bytes(2 * BLOCK_BYTES - 1)
    machine.write(ino, (BLOCK_BYTES, b"c"))
    assert machine.stat(ino).blocks * 512 == 3 * BLOCK_BYTES


def test_reserved_blocks_behind_the_end_go_with_the_file(machine, ino, allocate):
    assert allocate(KEEP_SIZE, 0, 3 * BLOCK_BYTES).size == 0
    machine.do(SetAttr(ino=ino, cred=SUPERUSER, size=0))
    machine.do(Unlink(ROOT, b"a", SUPERUSER))
    assert machine.do(Reap(machine.session, (ino,))) == ()
    assert machine.state.tree.counters.allocated == 0


def test_a_block_that_was_punched_bit_by_bit_goes_with_the_file(machine, ino, allocate):
    machine.write(ino, (0, b"a" * BLOCK_BYTES), slices=True)
    allocate(PUNCH, 0, 100)
    allocate(PUNCH, 100, BLOCK_BYTES - 100)
    rows = [keys.slice_place(key)[1:] for key, _ in machine.state.tree.slice_rows(ino, 0)]
    machine.do(Rewrite(ino, 0, tuple(rows), ()))  # nothing is visible
    assert machine.ask(Tangles(10)) == ()
    machine.do(Unlink(ROOT, b"a", SUPERUSER))
    assert machine.do(Reap(machine.session, (ino,))) == ()


def test_impossible_requests_are_refused(fails, ino):
    for mode, offset, length, fault in [
        (0x08, 0, 1, Fault.UNSUPPORTED),  # FALLOC_FL_COLLAPSE_RANGE
        (PUNCH_HOLE, 0, 1, Fault.UNSUPPORTED),  # without KEEP_SIZE
        (0, -1, 1, Fault.INVALID),
        (0, 0, 0, Fault.INVALID),
        (0, FILE_BYTES_MAX, 1, Fault.FILE_TOO_LARGE),
    ]:
        with fails(fault):
            Allocate(ino, mode, offset, length, False).check()
