"""copy_file_range(2)."""

import pytest

from mountfs.errors import Fault
from mountfs.meta.ops.allocate import KEEP_SIZE, PUNCH_HOLE, Allocate
from mountfs.meta.ops.copy_range import COPY_BYTES_MAX, CopyRange
from mountfs.meta.ops.read import GetLayout
from mountfs.meta.ops.reap import Reap
from mountfs.meta.ops.setattr import SetAttr
from mountfs.meta.ops.slices import Garbage
from mountfs.meta.ops.unlink import Unlink
from mountfs.types import BLOCK_BYTES, CHUNK_BYTES, FILE_BYTES_MAX, KIB, ROOT, SUPERUSER


@pytest.fixture
def copy(machine):
    def copy(source, start, target, at, length):
        """Copy from and to names.  Returns how many bytes were copied."""
        source, target = machine.ino(source), machine.ino(target)
        return machine.do(CopyRange(source, start, target, at, length, False))[1]

    return copy


@pytest.fixture
def files(machine):
    """Two files: a is to be copied to b."""
    machine.make("a", "b")
    return machine.ino("a"), machine.ino("b")


def remove(machine, name):
    ino = machine.do(Unlink(ROOT, name, SUPERUSER))
    assert machine.do(Reap(machine.session, (ino,))) == ()


def test_slices_are_shared_until_the_last_file_lets_go(machine, copy, files):
    machine.write(files[0], (0, b"a" * 10_000), slices=True)
    assert copy("a", 0, "b", 0, 10_000) == 10_000
    (piece,) = machine.ask(GetLayout(files[1], 0)).slices
    assert machine.ask(GetLayout(files[0], 0)).slices == (piece,)
    remove(machine, b"a")
    assert machine.ask(Garbage(10)) == ()
    assert machine.read(files[1]) == b"a" * 10_000
    remove(machine, b"b")
    assert machine.ask(Garbage(10)) == ((piece.slice_id, piece.volume, 10_000),)


def test_a_slice_that_is_copied_in_parts_counts_each_part(machine, copy, files):
    machine.write(files[0], (0, bytes(range(100))), slices=True)
    for part in range(4):
        copy("a", part * 25, "b", (3 - part) * 25, 25)
    a, b = machine.read(files[0]), machine.read(files[1])
    assert b == a[75:] + a[50:75] + a[25:50] + a[:25]
    remove(machine, b"a")
    assert machine.read(files[1]) == b


def test_pieces_are_copied_as_bytes(machine, copy, files):
    machine.write(files[0], (0, b"a" * 5000))
    copy("a", 100, "b", 3, 4000)
    remove(machine, b"a")
    assert machine.read(files[1]) == bytes(3) + b"a" * 4000


def test_small_contents_stay_small(machine, copy, files):
    machine.write(files[0], (0, b"hello world"))
    machine.write(files[1], (0, b"0123456789"))
    copy("a", 6, "b", 2, 5)
    assert machine.read(files[1]) == b"01world789"
    assert machine.ask(GetLayout(files[1], 0)).content is not None


def test_a_small_target_keeps_its_bytes_beside_a_large_copy(machine, copy, files):
    machine.write(files[0], (0, b"a" * 10_000), slices=True)
    machine.write(files[1], (0, b"0123456789"))
    copy("a", 0, "b", 4, 10_000)
    assert machine.read(files[1]) == b"0123" + b"a" * 10_000


def test_a_small_source_with_a_huge_size_is_copied_as_what_it_is(machine, copy, files):
    machine.write(files[0], (0, b"hello"))
    machine.do(SetAttr(ino=files[0], cred=SUPERUSER, size=1 << 50))
    assert copy("a", 2, "b", 0, 4) == 4
    assert machine.read(files[1]) == b"llo\0"
    assert copy("a", 0, "b", 0, 1 << 50) == COPY_BYTES_MAX
    assert machine.read(files[1], 0, 10) == b"hello" + bytes(5)
    assert machine.stat(files[1]).blocks * 512 == BLOCK_BYTES


def test_holes_are_copied_as_holes(machine, copy, files):
    machine.write(files[0], (0, b"a" * 4 * BLOCK_BYTES), slices=True)
    machine.do(Allocate(files[0], PUNCH_HOLE | KEEP_SIZE, BLOCK_BYTES, BLOCK_BYTES, False))
    machine.write(files[1], (0, b"b" * 4 * BLOCK_BYTES), slices=True)
    copy("a", 0, "b", 0, 3 * BLOCK_BYTES)
    parts = [b"a" * BLOCK_BYTES, bytes(BLOCK_BYTES), b"a" * BLOCK_BYTES, b"b" * BLOCK_BYTES]
    assert machine.read(files[1]) == b"".join(parts)
    assert machine.stat(files[1]).blocks * 512 == 3 * BLOCK_BYTES


def test_chunk_borders_may_lie_anywhere_in_source_and_target(machine, copy, files):
    first, second = b"a" * 10 * KIB, b"b" * 10 * KIB
    machine.write(files[0], (CHUNK_BYTES - len(first), first), slices=True)
    machine.write(files[0], (CHUNK_BYTES, second), slices=True)
    copy("a", CHUNK_BYTES - 8 * KIB, "b", CHUNK_BYTES - 3 * KIB, 16 * KIB)
    found = machine.read(files[1], CHUNK_BYTES - 3 * KIB)
    assert found == first[: 8 * KIB] + second[: 8 * KIB]


def test_within_one_file(machine, copy, files, fails):
    machine.write(files[0], (0, b"abcdefgh" * 1024), slices=True)
    assert copy("a", 4, "a", 8192, 8188) == 8188
    assert machine.read(files[0]) == b"abcdefgh" * 1024 + (b"abcdefgh" * 1024)[4:]
    with fails(Fault.INVALID):
        copy("a", 0, "a", 10, 11)


def test_at_the_end_there_is_nothing_to_copy(machine, copy, files):
    machine.write(files[0], (0, b"abc"))
    assert copy("a", 3, "b", 0, 10) == 0
    assert copy("a", 1, "b", 0, 10) == 2
    assert machine.stat(files[1]).size == 2


def test_one_command_copies_a_chunks_worth(machine, copy, files):
    machine.do(SetAttr(ino=files[0], cred=SUPERUSER, size=3 * COPY_BYTES_MAX))
    assert copy("a", 0, "b", 0, 3 * COPY_BYTES_MAX) == COPY_BYTES_MAX


def test_only_files_and_only_possible_ranges(machine, copy, files, fails):
    machine.make("d/")
    with fails(Fault.INVALID):
        copy("d", 0, "b", 0, 1)
    with fails(Fault.INVALID):
        CopyRange(files[0], -1, files[1], 0, 1, False).check()
    with fails(Fault.FILE_TOO_LARGE):
        CopyRange(files[0], 0, files[1], FILE_BYTES_MAX, 1, False).check()
