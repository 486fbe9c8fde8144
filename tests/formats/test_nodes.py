"""What nodes and clients of a cluster say to each other, byte for byte.

Nodes of two versions talk to each other while a cluster is upgraded: a change here is a change of
the protocol.
"""

from typing import Any

import msgspec
import pytest
from crc32c import crc32c

from mountfs.chunks import protocol as chunks
from mountfs.chunks.protocol import READ, READ_HEAD, SPACE, WRITE_HEAD
from mountfs.chunks.term_file import encode_term
from mountfs.kv.memory import MemoryStore
from mountfs.meta import protocol as meta
from mountfs.meta.leases import Item
from mountfs.meta.locks import POSIX, Lock, Owner
from mountfs.meta.ops.mkdir import Mkdir
from mountfs.meta.ops.nodes import AddNode, LeaveNode, MoveNode, NodeRecord
from mountfs.meta.ops.read import Lookup
from mountfs.meta.protocol import (
    AwaitLock,
    Begin,
    Changed,
    Cluster,
    Hold,
    Holder,
    KeepBack,
    LocksTold,
    Opened,
    Propose,
    Read,
    Recalled,
    decode_propose,
    decode_read,
    encode,
)
from mountfs.meta.reports import VolumeReport
from mountfs.meta.snapshot import Source
from mountfs.raft.envelope import open_, seal
from mountfs.raft.links import MESSAGES, Links
from mountfs.raft.log_record import GroupId
from mountfs.raft.messages import (
    Append,
    AppendReply,
    Entry,
    EntryKind,
    Heartbeat,
    HeartbeatReply,
    InstallSnapshot,
    Membership,
    Message,
    NodeId,
    ReadIndex,
    ReadIndexReply,
    SnapshotHead,
    Term,
    TimeoutNow,
    Vote,
    VoteReply,
    decode_membership,
    encode_membership,
)
from mountfs.raft.snapshots import Fetch, Offer
from mountfs.types import ROOT, SUPERUSER, Ino, LogIndex, SliceId, VolumeId
from mountfs.wire.frames import Hello

ONE, TWO, TERM = NodeId(1), NodeId(2), Term(3)
MEMBERS = Membership((ONE, TWO), (ONE,), (NodeId(3),))
HEAD = SnapshotHead(LogIndex(9), Term(4), MEMBERS)
ENTRY = Entry(LogIndex(5), TERM, EntryKind.COMMAND, b"ab")
FOUR, LAST = LogIndex(4), Term(2)

MESSAGE: list[tuple[Message, str]] = [
    (Vote(ONE, TWO, TERM, FOUR, LAST, True, False), "98 a4566f7465 01 02 03 04 02 c3 c2"),
    (VoteReply(ONE, TWO, TERM, True, False), "96 a9566f74655265706c79 01 02 03 c3 c2"),
    (
        Append(ONE, TWO, TERM, FOUR, LAST, (ENTRY,), FOUR),
        "98 a6417070656e64 01 02 03 04 02 91 94 05 03 00 c4026162 04",
    ),
    (
        AppendReply(ONE, TWO, TERM, FOUR, True, LogIndex(3), LAST),
        "98 ab417070656e645265706c79 01 02 03 04 c3 03 02",
    ),
    (Heartbeat(ONE, TWO, TERM, FOUR, 7, True), "97 a9486561727462656174 01 02 03 04 07 c3"),
    (HeartbeatReply(ONE, TWO, TERM, 7), "95 ae4865617274626561745265706c79 01 02 03 07"),
    (
        InstallSnapshot(ONE, TWO, TERM, HEAD),
        "95 af496e7374616c6c536e617073686f74 01 02 03 93 09 04 93 920102 9101 9103",
    ),
    (TimeoutNow(ONE, TWO, TERM), "94 aa54696d656f75744e6f77 01 02 03"),
    (ReadIndex(ONE, TWO, TERM, 7), "95 a952656164496e646578 01 02 03 07"),
    (ReadIndexReply(ONE, TWO, TERM, 7, FOUR), "96 ae52656164496e6465785265706c79 01 02 03 07 04"),
]


@pytest.mark.parametrize(("message", "golden"), MESSAGE, ids=lambda one: type(one).__name__)
def test_a_message_in_its_envelope(message: Message, golden: str) -> None:
    body = bytes.fromhex("92 01 91 92 01" + golden)  # version 1; one message, of group 1
    assert seal([(GroupId(1), message)]) == body
    assert open_(body) == [(GroupId(1), message)]


def test_a_message_may_lack_what_was_added_later_or_have_more() -> None:
    beat = Heartbeat(ONE, TWO, TERM, FOUR, 7)
    for golden in (
        "96 a9486561727462656174 01 02 03 04 07",
        "98 a9486561727462656174 01 02 03 04 07 c2 c3",
    ):
        assert open_(bytes.fromhex("92 01 91 92 01" + golden)) == [(GroupId(1), beat)]


def test_an_envelope_says_from_whom_and_to_whom() -> None:
    assert MESSAGES == 50
    got: list[tuple[int, bytes]] = []
    links = Links(TWO, Hello(cluster=bytes(16), role="meta", name="n2"))
    links.received = lambda source, bodies: got.extend((source, bytes(one)) for one in bodies)
    links.take(bytes.fromhex("0100000000000000 0200000000000000") + b"envelope")
    links.deliver()
    assert got == [(1, b"envelope")]


def test_a_membership_in_an_entry() -> None:
    golden = bytes.fromhex("93 92 01 02 91 01 91 03")
    assert encode_membership(MEMBERS) == golden
    assert decode_membership(golden) == MEMBERS


NODE = NodeRecord(2, "n2", "h:1", "h:2", 5, "d2", ("meta", "chunk"), True, "/r/h", True, False)
NODE_GOLDEN = (
    "9b 02 a26e32 a3683a31 a3683a32 05 a26432 92 a46d657461 a56368756e6b c3 a42f722f68 c3 c2"
)
OLD_NODE_GOLDEN = "98 02 a26e32 a3683a31 a3683a32 05 a26432 92 a46d657461 a56368756e6b c3"
"""From before nodes had locations."""

LOCK = Lock(POSIX, Owner(7, 3), 1, 10, True, 77)
LOCK_GOLDEN = "96 00 92 07 03 01 0a c3 4d"

STRUCTS: list[tuple[Any, str]] = [
    (NODE, NODE_GOLDEN),
    (Cluster(2, (NODE,)), "94 02 91" + NODE_GOLDEN + "c2 c2"),
    (Opened(7, 60_000, 5), "93 07 cdea60 05"),
    (AwaitLock(7, Ino(9), LOCK, 4_000), "94 07 09" + LOCK_GOLDEN + "cd0fa0"),
    (LocksTold((Holder(LOCK, "a", 0),), ()), "92 91 93" + LOCK_GOLDEN + "a161 00 90"),
    (Begin(7, (Ino(9),)), "92 07 91 09"),
    (Hold(7, 3), "92 07 03"),
    (KeepBack(7, Ino(9)), "92 07 09"),
    (
        Recalled((Item(Ino(9), (b"a",), False), Item(Ino(8), (), True, True, True))),
        "91 92 95 09 91 c40161 c2 c2 c2 95 08 90 c3 c3 c3",
    ),
    (Changed(3, (Ino(9),), msgspec.Raw(b"\xc0")), "93 03 91 09 c0"),
    (Fetch(GroupId(1), 9, b"key"), "93 01 09 c403 6b6579"),
    (
        Offer(bytes(range(16)), GroupId(1), ONE, "h:1", TERM, HEAD),
        "96 c410 000102030405060708090a0b0c0d0e0f 01 01 a3683a31 03 93 09 04 93 920102 9101 9103",
    ),
]


@pytest.mark.parametrize(("value", "golden"), STRUCTS, ids=lambda one: type(one).__name__)
def test_records_and_answers(value: Any, golden: str) -> None:
    assert encode(value) == bytes.fromhex(golden)
    assert msgspec.msgpack.decode(bytes.fromhex(golden), type=type(value)) == value


def test_a_node_that_has_never_said_where_it_is() -> None:
    found = msgspec.msgpack.decode(bytes.fromhex(OLD_NODE_GOLDEN), type=NodeRecord)
    assert found == msgspec.structs.replace(NODE, location="", draining=False)


def test_commands_about_nodes_of_before_can_be_read() -> None:
    place = "a26e32 a3683a31 a3683a32 a26432 91 a46d657461"
    for golden, command in (
        ("96 a86164645f6e6f6465" + place, AddNode("n2", "h:1", "h:2", "d2", ("meta",))),
        ("97 a96d6f76655f6e6f6465 02" + place, MoveNode(2, "n2", "h:1", "h:2", "d2", ("meta",))),
        ("92 aa6c656176655f6e6f6465 02", LeaveNode(2)),
    ):
        assert msgspec.msgpack.decode(bytes.fromhex(golden), type=type(command)) == command


def test_a_command_and_a_query() -> None:
    command = Propose(7, 2, 1, Mkdir(ROOT, b"a", 0o755, 0o22, SUPERUSER))
    golden = bytes.fromhex("94 07 02 01 96 a56d6b646972 01 c40161 cd01ed 12 94 00 00 90 c2")
    assert encode(command) == golden
    assert decode_propose(golden) == command
    query = Read(7, Lookup(ROOT, b"a", SUPERUSER))
    golden = bytes.fromhex("92 07 94 a66c6f6f6b7570 01 c40161 94 00 00 90 c2")
    assert encode(query) == golden
    assert decode_read(golden) == query


def test_the_numbers_of_methods() -> None:
    assert {method.name: int(method) for method in meta.Method} == {
        "CLUSTER": 1, "OPEN_SESSION": 2, "PROPOSE": 3, "READ": 4, "RENEW": 5, "END_SESSION": 6,
        "BEGIN": 7, "HOLD": 8, "LEASED_READ": 9, "LEASED_PROPOSE": 10, "RECALL": 11,
        "AWAIT_LOCK": 12, "LOCKS": 13, "KEEP_BACK": 14,
    }  # fmt: skip
    assert {method.name: int(method) for method in chunks.Method} == {
        "WRITE": 100, "READ": 101, "DELETE": 102, "SPACE": 103, "OPEN": 104, "SEAL": 105,
        "LIST": 106, "COPY": 107, "DROP": 108, "LEND": 109, "PLACE": 110, "VERIFY": 111,
        "ALLOT": 20, "RETURN": 21,
    }  # fmt: skip


def test_slices_over_the_network() -> None:
    golden = bytes.fromhex("0100000000000000 02000000 03000080 04000000")
    assert WRITE_HEAD.pack(1, 2, 0x8000_0003, 4) == golden
    assert READ.pack(3, 1, 4, 8) == bytes.fromhex("03000000 0100000000000000 04000000 08000000")
    assert READ_HEAD.pack(2) == bytes.fromhex("02000000")
    assert SPACE.pack(5, 4) == bytes.fromhex("0500000000000000 0400000000000000")


VOLUME = VolumeId(0x8000_0003)
ABOUT_VOLUMES: list[tuple[Any, str]] = [
    (chunks.Open(TERM, VOLUME, 4), "93 03 ce80000003 04"),
    (chunks.Seal(TERM, VOLUME), "92 03 ce80000003"),
    (VolumeReport(VOLUME, 9, 8, 7, 4, "bad", 6), "97 ce80000003 09 08 07 04 a3626164 06"),
    (chunks.List(VOLUME, SliceId(5), 9, True), "94 ce80000003 05 09 c3"),
    (
        chunks.Copy(TERM, VOLUME, 2, SliceId(5), 9, (SliceId(6),)),
        "96 03 ce80000003 02 05 09 91 06",
    ),
    (chunks.Copied(SliceId(6), 1, 9, True), "94 06 01 09 c3"),
    (
        chunks.Delete(TERM, {VOLUME: [SliceId(1), SliceId(2)]}),
        "92 03 81 ce80000003 92 01 02",
    ),
    (chunks.Drop(TERM, VOLUME), "92 03 ce80000003"),
    (
        chunks.Allot(7, 3, 2, ((VOLUME, 4),), (2,), ((VOLUME, 5),)),
        "96 07 03 02 91 92 ce80000003 04 91 02 91 92 ce80000003 05",
    ),
    (chunks.Return(7, ((VOLUME, 4),), (VOLUME,)), "93 07 91 92 ce80000003 04 91 ce80000003"),
]


@pytest.mark.parametrize(("value", "golden"), ABOUT_VOLUMES, ids=lambda one: type(one).__name__)
def test_orders_about_volumes(value: Any, golden: str) -> None:
    assert msgspec.msgpack.encode(value) == bytes.fromhex(golden)
    assert msgspec.msgpack.decode(bytes.fromhex(golden), type=type(value)) == value


def test_the_latest_term_on_disk() -> None:
    golden = b"mfsterm\n" + bytes(range(16)) + bytes.fromhex("0700000000000000")
    packed = encode_term(bytes(range(16)), 7)
    assert packed == golden + crc32c(golden).to_bytes(4, "little")


def test_whose_volume_it_is() -> None:
    assert [chunks.first_volume_of(node) for node in (1, 2, 7)] == [1, 0x20_0001, 0x70_0001]
    volumes = (1, 0xF_FFFF, 0x20_0001, 0x2F_FFFF, 0x70_0001)
    assert [chunks.node_of(VolumeId(one)) for one in volumes] == [1, 1, 2, 2, 7]


def test_pieces_of_a_snapshot() -> None:
    store = MemoryStore()
    store.write({b"k1": b"v1", b"k2": b"v2"}, sync=True)
    source = Source(HEAD, store.view())
    rows = bytes.fromhex("92 92 c4026b31 c4027631 92 c4026b32 c4027632")
    golden = bytes.fromhex("92 ce") + crc32c(rows).to_bytes(4, "big") + rows
    assert source.piece(b"") == (golden, b"k2")
    assert golden.hex().startswith("92ce")
    end = bytes.fromhex("90")
    assert source.piece(b"k2")[0] == msgspec.msgpack.encode([crc32c(end), []])
