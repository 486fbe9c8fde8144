"""What doors ask."""

import pytest

from mountfs.errors import Fault
from mountfs.meta.ops.make import Make
from mountfs.meta.ops.read import Birth, GetAttr, GetPiece, Lookup, NextChunk, ReadDir, Usage
from mountfs.meta.ops.rename import Rename
from mountfs.meta.ops.unlink import Unlink
from mountfs.meta.records import ino_of
from mountfs.types import BLOCK_BYTES, CHUNK_BYTES, ROOT, SUPERUSER, Cred, Ino, SliceId


@pytest.fixture
def names(machine):
    """Names of the root after a position: (last position, names)."""

    def names(after, limit):
        listing = machine.ask(ReadDir(ROOT, after, limit, False))
        return (listing[-1][0] if listing else after), [entry[3] for entry in listing]

    return names


def test_a_name_leads_to_an_inode_and_dots_do_too(machine):
    machine.make("d/", "d/a")
    directory = machine.ino("d")
    for name, ino in [(b"a", machine.ino("d/a")), (b".", directory), (b"..", ROOT)]:
        assert ino_of(machine.ask(Lookup(directory, name, SUPERUSER))) == ino
    assert ino_of(machine.ask(Lookup(ROOT, b"..", SUPERUSER))) == ROOT


def test_lookup_says_why_not(machine, fails):
    machine.make("a", "closed/", mode=0o700)
    for parent, name, fault in [
        (ROOT, b"b", Fault.NOT_FOUND),
        (ROOT, b"x" * 256, Fault.NAME_TOO_LONG),
        (machine.ino("a"), b"b", Fault.NOT_DIRECTORY),
        (machine.ino("closed"), b"b", Fault.DENIED),
        (Ino(99), b"b", Fault.STALE),
    ]:
        with fails(fault):
            machine.ask(Lookup(parent, name, Cred(5, 5)))


def test_a_directory_is_listed_in_steps(machine, names):
    machine.make("a", "b", "c", "d")
    found = []
    after, batch = names(0, 2)
    while batch:
        found += batch
        after, batch = names(after, 2)
    assert found == [b".", b"..", b"d", b"c", b"b", b"a"]


def test_who_renames_while_listing_sees_every_name_once_and_comes_to_an_end(machine, names):
    machine.make(*"abcdefgh")
    seen = []
    after, batch = names(2, 2)
    while batch:
        seen += batch
        for name in batch:
            machine.do(Rename(ROOT, name, ROOT, name * 2, 0, SUPERUSER))
        after, batch = names(after, 2)
    assert sorted(seen) == [bytes([letter]) for letter in b"abcdefgh"]


def test_names_that_go_while_listing_do_not_hide_others(machine, names):
    machine.make(*"abcd")
    after, batch = names(2, 2)
    assert batch == [b"d", b"c"]
    machine.do(Unlink(ROOT, b"c", SUPERUSER))
    machine.do(Unlink(ROOT, b"b", SUPERUSER))
    assert names(after, 9)[1] == [b"a"]


def test_attributes_come_with_a_listing_as_stat_tells_them(machine):
    ino = machine.make("a")
    machine.write(ino, (0, b"hello"))
    listing = machine.ask(ReadDir(ROOT, 2, 9, True))
    assert listing[0][4] == machine.ask(GetAttr(ino))


def test_only_directories_are_listed(machine, fails):
    with fails(Fault.NOT_DIRECTORY):
        machine.ask(ReadDir(machine.make("a"), 0, 9, False))


def test_chunks_with_bytes_are_found_over_a_hole(machine):
    ino = machine.make("a")
    assert machine.ask(NextChunk(ino, 0)) is None
    machine.write(ino, (0, b"small"))
    assert machine.ask(NextChunk(ino, 0)) == 0
    machine.write(ino, (CHUNK_BYTES * 1000, b"far"))
    assert machine.ask(NextChunk(ino, 1)) == 1000
    assert machine.ask(NextChunk(ino, 1001)) is None


def test_a_piece_that_is_gone_is_stale(machine, fails):
    with fails(Fault.STALE):
        machine.ask(GetPiece(machine.make("a"), SliceId(5)))


def test_birth_stays_and_usage_counts(machine):
    ino = machine.make("a")
    birth = machine.ask(Birth(ino))
    machine.write(ino, (0, b"a"))
    assert machine.ask(Birth(ino)) == birth
    assert machine.ask(Usage()) == (2, BLOCK_BYTES)


def test_an_existing_file_is_told_only_to_who_may_search(machine, fails):
    machine.make("closed/", "closed/a", mode=0o700)
    with fails(Fault.DENIED):
        machine.do(Make(machine.ino("closed"), b"a", 0o100600, 0, 0, False, Cred(5, 5)))
