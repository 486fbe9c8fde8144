"""Keys, records and log entries of the metadata, byte for byte as docs/formats.md has them.

A change here is a change of the format.
"""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mountfs.meta import keys
from mountfs.meta.limited import quota_row
from mountfs.meta.locks import POSIX, Lock, Owner
from mountfs.meta.ops.lock import TakeLock, locks_of
from mountfs.meta.ops.make import Make
from mountfs.meta.ops.quota import DeleteQuota, SetQuota
from mountfs.meta.ops.setattr import SetAttr
from mountfs.meta.ops.slices import Rewrite, Settle
from mountfs.meta.ops.write import Run, Write
from mountfs.meta.quota import Kind, Limits, Quota
from mountfs.meta.records import (
    ATTRIBUTES_BYTES,
    NS,
    Counters,
    Inode,
    Replies,
    Slice,
    blocks_mask,
    ino_of,
    mode_of,
    owner_of,
    pack_blocks,
    pack_dentry,
    pack_entry,
    pack_garbage,
    pack_slice,
    pack_used,
    size_of,
    unpack_attributes,
    unpack_blocks,
    unpack_dentry,
    unpack_entry,
    unpack_garbage,
    unpack_inode,
    unpack_slice,
    unpack_used,
)
from mountfs.meta.retention import (
    Below,
    Default,
    Mode,
    Retention,
    pack_below,
    pack_default,
    pack_retention,
    unpack_below,
    unpack_default,
    unpack_retention,
)
from mountfs.meta.state_machine import COMMANDS, Refused, decode_entry, encode_entry
from mountfs.meta.sums import Sums, Use, unpack_sums, unpack_use
from mountfs.meta.trash import (
    Entry,
    Setting,
    pack_place,
    pack_setting,
    unpack_place,
    unpack_setting,
)
from mountfs.meta.trash import (
    pack_entry as pack_trash,
)
from mountfs.meta.trash import (
    unpack_entry as unpack_trash,
)
from mountfs.types import BLOCK_BYTES, CHUNK_BYTES, ROOT, SUPERUSER, Cred, Ino, SliceId, VolumeId

INO = Ino(0x0102030405060708)
HEX = "0102030405060708"
EIGHT = "00000000000000"  # and one byte more


@pytest.mark.parametrize(
    ("key", "golden"),
    [
        (keys.inode(INO), HEX + "10"),
        (keys.sums(INO), HEX + "11"),
        (keys.dentry(INO, b"name"), HEX + "20" + b"name".hex()),
        (keys.entry(INO, 5), HEX + "21" + EIGHT + "05"),
        (keys.place(INO, Ino(5)), HEX + "22" + EIGHT + "05"),
        (keys.content(INO), HEX + "30"),
        (keys.blocks(INO, 5), HEX + "31" + EIGHT + "05"),
        (keys.slice_(INO, 5, 6, 7), HEX + "32" + EIGHT + "05" + EIGHT + "06" + "00000007"),
        (keys.piece(INO, 5), HEX + "33" + EIGHT + "05"),
        (keys.target(INO), HEX + "34"),
        (keys.xattr(INO, b"user.a"), HEX + "40" + b"user.a".hex()),
        (keys.locks(INO), HEX + "50"),
        (keys.COUNTERS, EIGHT + "00" + "01"),
        (keys.orphan(5, INO), EIGHT + "00" + "02" + EIGHT + "05" + HEX),
        (keys.session(5), EIGHT + "00" + "03" + EIGHT + "05"),
        (keys.garbage(SliceId(5)), EIGHT + "00" + "04" + EIGHT + "05"),
        (keys.shared(SliceId(5)), EIGHT + "00" + "05" + EIGHT + "05"),
        (keys.tangled(INO, 5), EIGHT + "00" + "06" + HEX + EIGHT + "05"),
        (keys.locked(5, INO), EIGHT + "00" + "07" + EIGHT + "05" + HEX),
        (keys.node(5), EIGHT + "00" + "09" + EIGHT + "05"),
        (keys.volume(VolumeId(5)), EIGHT + "00" + "0a" + EIGHT + "05"),
        (keys.retention(INO), HEX + "60"),
        (keys.default_retention(INO), HEX + "62"),
        (keys.retained_below(INO), HEX + "64"),
        (keys.trash_setting(INO), HEX + "63"),
        (keys.trash(INO, b"a", 5), HEX + "66" + "61" + "00" + "ff" * 7 + "fa"),
        (keys.trash_until(5, 6), EIGHT + "00" + "67" + EIGHT + "05" + EIGHT + "06"),
        (keys.deletion_run(5), EIGHT + "00" + "68" + EIGHT + "05"),
        (keys.uncommitted(INO), EIGHT + "00" + "65" + HEX),
        (keys.used(VolumeId(5), SliceId(6)), EIGHT + "00" + "0b" + EIGHT + "05" + EIGHT + "06"),
        (keys.use_of_user(5), EIGHT + "00" + "0c" + EIGHT + "05"),
        (keys.use_of_group(5), EIGHT + "00" + "0d" + EIGHT + "05"),
        (keys.quota(3, 5), EIGHT + "00" + "0e" + EIGHT + "03" + EIGHT + "05"),
    ],
)
def test_a_key_is_inode_kind_rest(key, golden):
    assert key.hex() == golden


def test_a_key_can_be_taken_apart():
    assert keys.slice_place(keys.slice_(INO, 5, 6, 7)) == (5, 6, 7)
    assert keys.session_ino(keys.orphan(5, INO)) == (5, INO)
    assert keys.tangle_place(keys.tangled(INO, 5)) == (INO, 5)
    assert keys.last_64(keys.entry(INO, 5)) == 5
    assert keys.quota_of(keys.quota(3, INO)) == (3, INO)
    assert keys.trash_place(keys.trash(INO, b"a", 5)) == (INO, b"a", 5)
    assert keys.until_and_order(keys.trash_until(5, 6)) == (5, 6)


@pytest.mark.parametrize(
    ("span", "inside", "outside"),
    [
        (keys.dentries(INO), [keys.dentry(INO, b"\0"), keys.dentry(INO, b"\xff" * 255)],
         [keys.inode(INO), keys.entry(INO, 0)]),
        (keys.dentries(INO, b"a"), [keys.dentry(INO, b"a\0"), keys.dentry(INO, b"b")],
         [keys.dentry(INO, b"a")]),
        (keys.entries(INO, 5), [keys.entry(INO, 6), keys.entry(INO, 1 << 63)],
         [keys.entry(INO, 5), keys.content(INO)]),
        (keys.slices_of(INO, 5), [keys.slice_(INO, 5, 0, 0), keys.slice_(INO, 5, 1 << 63, 9)],
         [keys.slice_(INO, 4, 9, 9), keys.slice_(INO, 6, 0, 0)]),
        (keys.slices_from(INO, 5), [keys.slice_(INO, 5, 0, 0), keys.slice_(INO, 1 << 40, 0, 0)],
         [keys.slice_(INO, 4, 9, 9), keys.piece(INO, 0)]),
        (keys.trash_of(INO, b"a"), [keys.trash(INO, b"a", 0), keys.trash(INO, b"a", 1 << 63)],
         [keys.trash(INO, b"", 5), keys.trash(INO, b"a\1", 5), keys.trash(INO, b"ab", 5)]),
        (keys.trash_in(INO), [keys.trash(INO, b"\1", 0), keys.trash(INO, b"\xff" * 255, 5)],
         [keys.retained_below(INO)]),
        (keys.trash_in(INO, keys.trash(INO, b"a", 5)[9:]), [keys.trash(INO, b"a", 4)],
         [keys.trash(INO, b"a", 5), keys.trash(INO, b"a", 6)]),
        (keys.places(INO), [keys.place(INO, ROOT), keys.place(INO, INO)],
         [keys.entry(INO, 5), keys.content(INO)]),
        (keys.uses_of_users(), [keys.use_of_user(0), keys.use_of_user(1 << 32)],
         [keys.use_of_group(0)]),
        (keys.uses_of_groups(), [keys.use_of_group(0)], [keys.quota(1, 0), keys.use_of_user(9)]),
        (keys.quotas(), [keys.quota(1, INO), keys.quota(3, 0)], [keys.use_of_group(9)]),
        (keys.xattrs(INO), [keys.xattr(INO, b"user.a")], [keys.target(INO), keys.locks(INO)]),
        (keys.everything_of(INO), [keys.inode(INO), keys.locks(INO)],
         [keys.locks(Ino(INO - 1)), keys.inode(Ino(INO + 1))]),
        (keys.orphans(), [keys.orphan(0, INO), keys.orphan(1 << 63, INO)],
         [keys.session(0), keys.COUNTERS]),
        (keys.orphans(5), [keys.orphan(5, ROOT), keys.orphan(5, INO)],
         [keys.orphan(4, INO), keys.orphan(6, ROOT)]),
        (keys.lockeds(), [keys.locked(0, INO), keys.locked(1 << 63, INO)], [keys.tangled(INO, 9)]),
        (keys.garbages(), [keys.garbage(SliceId(9))], [keys.shared(SliceId(0)), keys.session(9)]),
        (keys.volumes(5), [keys.volume(VolumeId(6)), keys.volume(VolumeId(1 << 31))],
         [keys.volume(VolumeId(5)), keys.node(9), keys.used(VolumeId(6), SliceId(1))]),
        (keys.useds(VolumeId(5), 6), [keys.used(VolumeId(5), SliceId(7))],
         [keys.used(VolumeId(5), SliceId(6)), keys.used(VolumeId(6), SliceId(7))]),
        (keys.uncommitteds(5), [keys.uncommitted(Ino(6)), keys.uncommitted(INO)],
         [keys.uncommitted(Ino(5)), keys.locked(9, INO)]),
        (keys.tangles(INO), [keys.tangled(INO, 9)], [keys.tangled(Ino(INO + 1), 0)]),
    ],
)  # fmt: skip
def test_a_range_holds_what_it_says_and_no_more(span, inside, outside):
    start, stop = span
    assert all(start <= key < stop for key in inside)
    assert not any(start <= key < stop for key in outside)


def example() -> Inode:
    inode = Inode()
    inode.ino, inode.size, inode.allocated = INO, 2, 2 * BLOCK_BYTES
    inode.atime, inode.mtime, inode.ctime = -1, 2 * NS + 3, 5
    inode.mode, inode.nlink, inode.uid, inode.gid, inode.rdev = 0o100644, 7, 8, 9, 10
    inode.parent, inode.next_position, inode.entries = Ino(11), 12, 13
    inode.version, inode.btime, inode.marks = 14, 15, 16
    return inode


INODE_GOLDEN = (
    "0807060504030201"  # ino
    "0200000000000000"  # size
    "1000000000000000"  # blocks of 512 bytes
    "ffffffffffffffff"  # atime: one nanosecond before 1970
    "0200000000000000"  # mtime
    "0000000000000000"  # ctime
    "ffc99a3b" "03000000" "05000000"  # their nanoseconds
    "a4810000" "07000000" "08000000" "09000000" "0a000000"  # mode, nlink, uid, gid, rdev
    "00100000" "00000000"  # blksize, flags
    "0b00000000000000"  # parent
    "0c00000000000000"  # next position
    "0d00000000000000"  # entries
    "0e00000000000000"  # version
    "0f00000000000000"  # birth
    "10000000"  # marks
)  # fmt: skip


def test_an_inode():
    inode = example()
    assert inode.pack().hex() == INODE_GOLDEN
    again = unpack_inode(bytes.fromhex(INODE_GOLDEN))
    assert again.record() == inode.record()
    assert all(getattr(again, name) == getattr(inode, name) for name in Inode.__slots__)


def test_the_attributes_of_an_inode_are_what_its_record_begins_with():
    attributes = example().attributes()
    assert attributes.hex() == INODE_GOLDEN[: 2 * ATTRIBUTES_BYTES]
    found = unpack_attributes(attributes)
    assert (ino_of(attributes), size_of(attributes), mode_of(attributes)) == (INO, 2, 0o100644)
    assert owner_of(attributes) == (8, 9)
    assert (found.ino, found.size, found.blocks, found.mode) == (INO, 2, 16, 0o100644)
    assert (found.atime_s, found.atime_ns, found.blksize) == (-1, NS - 1, 4096)


SLICE = Slice(1, 2, SliceId(3), 4, VolumeId(5), 6, 7)


@pytest.mark.parametrize(
    ("pack", "unpack", "fields", "golden"),
    [
        (pack_dentry, unpack_dentry, (INO, 5, 8), "0807060504030201" "0500000000000000" "08"),
        (pack_entry, unpack_entry, (INO, 8, b"name"), "0807060504030201" "08" "6e616d65"),
        (pack_garbage, unpack_garbage, (VolumeId(5), 6), "05000000" "06000000"),
        (pack_used, unpack_used, (5, 6), "05000000" "06000000"),
        (lambda *slices: pack_slice(*slices), lambda value: (unpack_slice(value),), (SLICE,),
         "01000000" "02000000" "0300000000000000" "04000000" "05000000" "06000000" "07000000"),
        (pack_blocks, lambda value: (unpack_blocks(value),), (0b111,), "03000000"),
        (pack_blocks, lambda value: (unpack_blocks(value),), (0b101,), "ffffffff" "05"),
    ],
)  # fmt: skip
def test_a_record(pack, unpack, fields, golden):
    assert pack(*fields).hex() == golden
    assert tuple(unpack(bytes.fromhex(golden))) == fields


@given(st.integers(0, (1 << (CHUNK_BYTES // BLOCK_BYTES)) - 1))
def test_any_set_of_blocks_comes_back(mask):
    assert unpack_blocks(pack_blocks(mask)) == mask


def test_the_blocks_that_bytes_touch():
    assert blocks_mask(0, 1) == 0b1
    assert blocks_mask(BLOCK_BYTES - 1, BLOCK_BYTES + 1) == 0b11
    assert blocks_mask(BLOCK_BYTES, 2 * BLOCK_BYTES) == 0b10
    assert blocks_mask(0, CHUNK_BYTES).bit_count() == CHUNK_BYTES // BLOCK_BYTES


@pytest.mark.parametrize(
    ("value", "golden"),
    [
        (
            Counters(next_ino=9, applied=300),
            "de0011a6666f726d617404a86e6578745f696e6f09aa6e6578745f736c69636501ac6e6578745f7365737369"
            "6f6e01a6696e6f64657300a9616c6c6f636174656400a76170706c696564cd012ca96c6173745f74696d"
            "6500a96e6578745f6e6f646502ab6e6578745f766f6c756d65ce80000000ad636c6f7365645f736c69"
            "63657300aa6f776e5f636f70696573c2a7636f756e746564c2"
            "a9726574656e74696f6ec2" "b164656661756c745f726574656e74696f6ec2"
            "ae70726f7465637465645f74696d6500" "a57472617368c2",
        ),
        (
            Replies(4, {4: b"x", 5: None}, "me", True),
            "94" "04" "82" "04c40178" "05c0" "a26d65" "c3",
        ),
        (
            Replies(4, {4: Refused("EXISTS", "")}),
            "940481" "0483" "a474797065a772656675736564" "a56661756c74a6455849535453"
            "a664657461696ca0" "a0" "c2",
        ),
    ],
)  # fmt: skip
def test_counters_and_replies(value, golden):
    assert msgspec.msgpack.encode(value).hex() == golden


def test_replies_that_say_nothing_of_whose_they_are():
    stored = bytes.fromhex("92048204c4017805c0")
    assert msgspec.msgpack.decode(stored, type=Replies) == Replies(4, {4: b"x", 5: None})


LOCK = Lock(POSIX, Owner(3, 1), 0, 10, True, 77)

ENTRIES = [
    (
        Make(ROOT, b"a", 0o100644, 0o022, 0, True, Cred(1, 2, (3,))),
        "98a46d616b65" "01" "c40161" "cd81a4" "12" "00" "c3" "9401029103c2",
    ),
    (
        Write(
            Ino(9),
            (Run(5, 2, 0, data=b"hi"), Run(7, 3, 99, SliceId(8), VolumeId(7))),
            6,
            False,
        ),
        "95a57772697465" "09" "92" "960502000000c4026869" "960703630807c400" "06" "c2",
    ),
    (
        SetAttr(ino=Ino(9), cred=SUPERUSER, size=10),
        "9ca773657461747472" "09" "94000090c2" "c0c0c0" "0a" "c0c0" "c2c2c2",
    ),
    (TakeLock(Ino(9), LOCK), "94a974616b655f6c6f636b" "09" "9600920301000ac34d" "c2"),
    (
        Rewrite(Ino(9), 1, ((4, 0), (5, 1)), (Slice(0, 10, SliceId(8), 1, VolumeId(7), 11, 99),)),
        "95a772657772697465" "09" "01" "92" "920400" "920501" "91" "97000a0801070b63",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("command", "golden"), ENTRIES)
def test_an_entry_of_the_log(command, golden):
    record = encode_entry(3, 5, 4, 17, command)
    assert record.hex() == "95" "03" "05" "04" "11" + golden  # fmt: skip
    entry = decode_entry(record)
    assert entry.command == command
    assert (entry.session, entry.sequence, entry.answered, entry.time) == (3, 5, 4, 17)


def test_an_entry_says_what_time_is_known_for_certain_where_there_is_one():
    command = Settle(Ino(2), 0, 5)
    record = encode_entry(3, 5, 4, 17, command, 300)
    assert record.hex() == "96" "03" "05" "04" "11" "95a6736574746c65020005c0" "cd012c"  # fmt: skip
    assert decode_entry(record).proven == 300
    assert decode_entry(encode_entry(3, 5, 4, 17, command)).proven == 0


def test_retention():
    assert pack_retention(Retention(Mode.COMPLIANCE, 5, True)).hex() == "020105" + EIGHT
    assert pack_default(Default(Mode.GOVERNANCE, 5, 6, False)).hex() == (
        "01" "00" "05" + EIGHT + "06" + EIGHT
    )  # fmt: skip
    assert pack_below(Below(5, 6)).hex() == "05" + EIGHT + "06" + EIGHT


def test_trash():
    assert pack_setting(Setting(7, True)).hex() == "0700000001"
    entry = Entry(Ino(3), b"name", 4, INO, 5, 6, 7, 8)
    ino = INO.to_bytes(8, "little").hex()
    packed = pack_trash(entry)
    assert packed.hex() == ino + "05" + EIGHT + "06" + EIGHT + "07000000" + "08" + EIGHT
    assert pack_place(entry).hex() == "03" + EIGHT + b"name".hex()
    assert unpack_trash(keys.trash(Ino(3), b"name", 4), packed) == entry
    assert unpack_place(pack_place(entry)) == (3, b"name")
    assert unpack_setting(pack_setting(Setting(9, False))) == Setting(9, False)


@given(st.sampled_from(Mode), st.integers(0, (1 << 63) - 1), st.booleans())
def test_retention_comes_back_as_it_was(mode, until, flag):
    retention = Retention(mode, until, flag)
    assert unpack_retention(pack_retention(retention)) == retention
    default = Default(mode, until, until // 2, flag)
    assert unpack_default(pack_default(default)) == default
    assert unpack_below(pack_below(Below(until, until))) == Below(until, until)


def test_every_command_that_was_ever_logged_can_still_be_read():
    assert {command.__struct_config__.tag for command in COMMANDS} >= {
        "allocate", "copy_range", "discard", "end_session", "link", "make", "mkdir",
        "open_session", "reap", "reclaimed", "release_lock", "removexattr", "rename",
        "reserve_slices", "rewrite", "rmdir", "setattr", "setxattr", "settle", "symlink",
        "take_lock", "tmpfile", "touch", "unlink", "write", "set_retention", "set_legal_hold",
        "set_default_retention", "commit_retention", "require_free", "set_trash", "undelete",
        "undelete_in", "empty_trash",
    }  # fmt: skip


def test_a_settle_without_a_checksum_can_still_be_read():
    command = msgspec.msgpack.encode(["settle", 2, 0, 5])
    entry = decode_entry(bytes.fromhex("9503050411") + command)
    assert entry.command == Settle(Ino(2), 0, 5)
    assert decode_entry(encode_entry(3, 5, 4, 17, Settle(Ino(2), 0, 5, 9))).command.crc == 9


def test_a_lock_that_does_not_say_whether_it_is_waited_for_can_still_be_read():
    command = bytes.fromhex("93a974616b655f6c6f636b" "09" "9600920301000ac34d")  # fmt: skip
    assert decode_entry(bytes.fromhex("9503050411") + command).command == TakeLock(Ino(9), LOCK)


def test_the_locks_of_a_file_are_a_list_of_locks():
    class Rows:
        """A tree with one file, which is locked."""

        def inode(self, ino):
            inode = example()
            inode.marks = 16
            return inode

        def get(self, key):
            return bytes.fromhex("91" "9600920301000ac34d")  # fmt: skip

    assert locks_of(Rows(), INO) == (LOCK,)


def test_what_is_counted():
    sums = Sums(Ino(0x0102), 0x3000, 7, 8)
    golden = "0201000000000000" + "0030000000000000" + "07" + EIGHT + "08" + EIGHT
    assert sums.pack().hex() == golden
    assert unpack_sums(bytes.fromhex(golden)).pack() == sums.pack()
    use = Use(0x3000, 7)
    assert use.pack().hex() == "0030000000000000" + "07" + EIGHT
    assert unpack_use(use.pack()).pack() == use.pack()
    assert Use().pack() is None


def test_a_quota():
    quota = Quota(Limits(5, 4, 3, 2, 60), 7, 8)
    assert quota_row(quota).hex() == "93" + "95" + "05" + "04" + "03" + "02" + "3c" + "07" + "08"


def test_commands_about_quotas():
    command = SetQuota(Kind.USER, 5, Limits(hard_bytes=6))
    row = encode_entry(1, 2, 3, 4, command)
    assert decode_entry(row).command == command
    assert msgspec.msgpack.decode(row)[4] == ["set_quota", 2, 5, [6, 0, 0, 0, 604_800]]
    assert msgspec.msgpack.encode(DeleteQuota(Kind.TREE, 5)).hex() == (
        "93" + "ac" + b"delete_quota".hex() + "01" + "05"
    )
