"""Golden bytes: what records of groups are, and stay."""

import pytest

from mountfs.errors import Fault, FsError
from mountfs.raft.log_record import (
    Base,
    Cut,
    Entries,
    Gone,
    GroupId,
    Hard,
    Item,
    decode,
    encode_base,
    encode_cut,
    encode_entries,
    encode_gone,
    encode_hard,
    one_command,
)
from mountfs.raft.messages import (
    Entry,
    EntryKind,
    HardState,
    Membership,
    NodeId,
    SnapshotHead,
    Term,
)
from mountfs.types import LogIndex

GROUP = GroupId(0x01020304)
HEAD = SnapshotHead(
    LogIndex(9), Term(4), Membership((NodeId(1), NodeId(2)), (NodeId(1),), (NodeId(3),))
)


def entry(index: int, term: int, data: bytes, kind: EntryKind = EntryKind.COMMAND) -> Entry:
    return Entry(LogIndex(index), Term(term), kind, data)


GOLDEN: list[tuple[bytes, Item, str]] = [
    (
        encode_entries(GROUP, [entry(5, 2, b"ab"), entry(6, 2, b"", EntryKind.EMPTY)]),
        Entries(GROUP, (entry(5, 2, b"ab"), entry(6, 2, b"", EntryKind.EMPTY))),
        "01 04030201 0200000000000000 0500000000000000 02000000 00 02000000 6162 01 00000000",
    ),
    (
        encode_hard(GROUP, HardState(Term(7), NodeId(3), LogIndex(5))),
        Hard(GROUP, HardState(Term(7), NodeId(3), LogIndex(5))),
        "02 04030201 0700000000000000 0300000000000000 0500000000000000",
    ),
    (
        encode_base(GROUP, HEAD, restored=False),
        Base(GROUP, HEAD, False),
        "03 04030201 0900000000000000 0400000000000000 08000000 93 92 01 02 91 01 91 03",
    ),
    (
        encode_base(GROUP, HEAD, restored=True),
        Base(GROUP, HEAD, True),
        "04 04030201 0900000000000000 0400000000000000 08000000 93 92 01 02 91 01 91 03",
    ),
    (encode_gone(GROUP), Gone(GROUP), "05 04030201"),
    (encode_cut(GROUP, LogIndex(8)), Cut(GROUP, LogIndex(8)), "06 04030201 0800000000000000"),
]


@pytest.mark.parametrize(("encoded", "item", "golden"), GOLDEN)
def test_items(encoded: bytes, item: Item, golden: str) -> None:
    assert encoded == bytes.fromhex(golden)
    assert list(decode(encoded)) == [item]


def test_one_command_is_an_entry_like_any_other() -> None:
    one = entry(5, 2, b"command")
    assert one_command(GROUP, Term(2), LogIndex(5), b"command") == encode_entries(GROUP, [one])


def test_items_one_behind_the_other() -> None:
    record = b"".join(encoded for encoded, _, _ in GOLDEN)
    assert list(decode(record)) == [item for _, item, _ in GOLDEN]


def test_entries_of_several_terms_are_several_items() -> None:
    entries = (entry(5, 2, b"a"), entry(6, 4, b"b"), entry(7, 4, b"c"))
    found = list(decode(encode_entries(GROUP, entries)))
    assert found == [Entries(GROUP, entries[:1]), Entries(GROUP, entries[1:])]


@pytest.mark.parametrize("encoded", [encoded for encoded, _, _ in GOLDEN])
def test_what_is_cut_short_is_refused(encoded: bytes) -> None:
    for length in range(1, len(encoded)):
        with pytest.raises(FsError) as caught:
            list(decode(encoded[:length]))
        assert caught.value.fault is Fault.CORRUPT


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(FsError, match="byte 5"):
        list(decode(encode_gone(GROUP) + b"\x63\0\0\0\0"))
