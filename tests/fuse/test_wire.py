"""The kernel protocol against the C structs of <linux/fuse.h>, ABI 7.45.

The golden bytes were written by a C compiler from the kernel's header, with the values that the
tests name: a field of wrong width, order or sign shows, even if it is read as it was written.
"""

import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mountfs.errors import Fault, FsError
from mountfs.fuse import wire
from mountfs.fuse.wire import InitFlag, NotifyCode, Opcode, Timeouts


def golden(text: str) -> bytes:
    return bytes.fromhex(text)


def body(text: str, rest: bytes = b"") -> memoryview:
    return memoryview(golden(text) + rest)


ATTRIBUTES = golden(
    "887766554433221108070605040302010900000000000000feffffffffffffff00f153650000000001f15365"
    "000000000a0000000b000000ffc99a3ba481000003000000e8030000e9030000452301000010000000000000"
)
"""ino 0x1122334455667788, size 0x0102030405060708, 9 blocks; atime -2 s + 10 ns, mtime 1.7e9 s
+ 11 ns, ctime 1.7e9 + 1 s + 999,999,999 ns; mode 0100644, 3 links, uid 1000, gid 1001, rdev
0x12345, blksize 4096."""
INO = 0x1122334455667788
TIMEOUTS = Timeouts(entry_s=1.5, attr_s=2.25, negative_s=3.125)


def test_header_of_a_request() -> None:
    data = golden(
        "000100001000000002000000000000800700000000000000e8030000e90300009210000003000000"
    )
    fields = (0x100, Opcode.WRITE, wire.UNIQUE_RESEND | 2, 7, 1000, 1001, 4242, 3, 0)
    assert wire.IN_HEADER.unpack(data) == fields


REQUESTS: list[tuple[Callable[[memoryview], Any], str, Any]] = [
    (wire.parse_getattr, "01000000000000000500000000000000", (wire.GETATTR_FH, 5)),
    (wire.parse_statx, "0100000000000000050000000000000000010000ff0f0000", (1, 5, 0x100, 0xFFF)),
    (
        wire.parse_setattr,
        "090800000000000001000000000000000200000000000000030000000000000"
        "0fcffffffffffffff0500000000000000060000000000000007000000080000"
        "000900000080010000000000000b0000000c00000000000000",
        (
            wire.FATTR_MODE | wire.FATTR_SIZE | wire.FATTR_KILL_SUIDGID,
            *(1, 2, 3, -4, 5, 6, 7, 8, 9, 0o600, 11, 12),
        ),
    ),
    (wire.parse_open, "0200000001000000", (2, wire.OPEN_KILL_SUIDGID)),
    (
        wire.parse_read,
        "01000000000000000200000000000000030000000400000005000000000000000600000000000000",
        (1, 2, 3, 4, 5, 6),
    ),
    (wire.parse_flush, "010000000000000000000000000000000200000000000000", (1, 2)),
    (
        wire.parse_release,
        "010000000000000002000000020000000400000000000000",
        (1, 2, wire.RELEASE_FLOCK_UNLOCK, 4),
    ),
    (wire.parse_fsync, "01000000000000000100000000000000", (1, wire.FSYNC_FDATASYNC)),
    (wire.parse_access, "0400000000000000", 4),
    (
        wire.parse_lk,
        "010000000000000002000000000000000300000000000000"
        "ffffffffffffff7f01000000060000000100000000000000",
        (1, 2, 3, (1 << 63) - 1, wire.F_WRLCK, 6, wire.LK_FLOCK),
    ),
    (
        wire.parse_fallocate,
        "0100000000000000020000000000000003000000000000000400000000000000",
        (1, 2, 3, 4),
    ),
    (wire.parse_lseek, "0100000000000000feffffffffffffff0300000000000000", (1, -2, 3)),
    (
        wire.parse_copy_file_range,
        "01000000000000000200000000000000030000000000000004000000000000000500000000000000"
        "06000000000000000700000000000000",
        (1, 2, 3, 4, 5, 6, 7),
    ),
    (
        wire.parse_poll,
        "010000000000000002000000000000000100000004000000",
        (1, 2, wire.POLL_SCHEDULE_NOTIFY, 4),
    ),
    (wire.parse_interrupt, "9078563412000000", 0x1234567890),
    (wire.parse_forget, "0900000000000000", 9),
    (wire.parse_listxattr, "0000010000000000", 65536),
    (
        wire.parse_batch_forget,
        "02000000000000000500000000000000010000000000000006000000000000000200000000000000",
        [(5, 1), (6, 2)],
    ),
    # Those that names follow.
    (wire.parse_mknod, "802100000501000012000000000000006100", ((0o20600, 0x105, 0o22), b"a")),
    (wire.parse_mkdir, "ed010000120000006100", ((0o755, 0o22), b"a")),
    (
        wire.parse_create,
        "42000000a481000012000000010000006100",
        ((0o102, 0o100644, 0o22, 1), b"a"),
    ),
    (wire.parse_link, "4d000000000000006100", (77, b"a")),
    (wire.parse_rename, "4d0000000000000061006200", (77, b"a", b"b")),
    (wire.parse_rename2, "4d00000000000000020000000000000061006200", (77, 2, b"a", b"b")),
    (wire.parse_getxattr, "00000100000000006100", (65536, b"a")),
    (
        wire.parse_ioctl,
        "0100000000000000020000000300000004000000000000000300000005000000616200",
        ((1, 2, 3, 4, 3, 5), b"ab\0"),
    ),
    (
        wire.parse_setxattr,
        "030000000200000001000000000000006100780079",
        ((3, 2, wire.SETXATTR_ACL_KILL_SGID), b"a", b"x\0y"),
    ),
    (
        wire.parse_write,
        "0100000000000000020000000000000003000000040000000500000000000000060000000000000078797a",
        ((1, 2, 3, wire.WRITE_KILL_SUIDGID, 5, 6), b"xyz"),
    ),
    (wire.parse_name, "616200", b"ab"),
    (wire.parse_two_names, "61620063646500", (b"ab", b"cde")),
]


@pytest.mark.parametrize(
    ("parse", "text", "expected"), REQUESTS, ids=[str(row[1])[:40] for row in REQUESTS]
)
def test_request(parse: Callable[[memoryview], Any], text: str, expected: Any) -> None:
    assert parse(body(text)) == expected
    assert parse(body(text, b"appended by a newer kernel")) == expected


@pytest.mark.parametrize(
    ("parse", "text", "expected"), REQUESTS, ids=[str(row[1])[:40] for row in REQUESTS]
)
def test_request_cut_off_is_invalid(
    parse: Callable[[memoryview], Any], text: str, expected: Any
) -> None:
    whole = body(text)
    for size in range(len(whole)):
        with pytest.raises(FsError, match="cut off") as caught:
            parse(whole[:size])
        assert caught.value.fault is Fault.INVALID


def test_names_are_any_bytes() -> None:
    assert wire.parse_name(memoryview(b"\xff\n\x01\0")) == b"\xff\n\x01"
    assert wire.parse_two_names(memoryview(b"a\0\0")) == (b"a", b"")


def test_data_of_a_write_is_not_copied() -> None:
    buffer = bytearray(40) + bytearray(b"xyz")
    struct.pack_into("<I", buffer, 16, 3)
    _, data = wire.parse_write(memoryview(buffer))
    buffer[40] = ord("X")
    assert bytes(data) == b"Xyz"


INIT = (
    "070000002d00000000000200010040402004000000000000000000000000000000000000000000000000000000"
    "00000000000000000000000000000000000000"
)


def test_init() -> None:
    flags = (
        InitFlag.INIT_EXT
        | InitFlag.ASYNC_READ
        | InitFlag.MAX_PAGES
        | InitFlag.PASSTHROUGH
        | InitFlag.REQUEST_TIMEOUT
    )
    assert wire.parse_init(body(INIT)) == (7, 45, 131072, flags)


def test_init_of_a_kernel_without_flags2() -> None:
    old = golden("070000002100000000000200") + struct.pack("<I", InitFlag.ASYNC_READ)
    assert wire.parse_init(memoryview(old)) == (7, 33, 131072, InitFlag.ASYNC_READ)


def test_init_keeps_flags_of_newer_kernels() -> None:
    text = bytearray(golden(INIT))
    struct.pack_into("<I", text, 16, 1 << 31)
    assert wire.parse_init(memoryview(text)).flags & (1 << 63)


@pytest.mark.parametrize("size", [0, 15, 16, 19])
def test_init_cut_off_is_invalid(size: int) -> None:
    with pytest.raises(FsError, match="cut off"):
        wire.parse_init(body(INIT)[:size])


# -- extensions

GROUPS = struct.pack("<IIII", 16, wire.EXT_GROUPS, 1, 1001)
LABEL = struct.pack("<IIII", 48, 1, 6, 0) + b"security.selinux\0label\0" + bytes(9)


@pytest.mark.parametrize(
    ("tail", "groups", "security"),
    [
        (b"", (), None),
        (GROUPS, (1001,), None),
        (LABEL, (), (b"security.selinux", b"label\0")),
        (LABEL + GROUPS, (1001,), (b"security.selinux", b"label\0")),
        (struct.pack("<II", 8, 0) + GROUPS, (1001,), None),  # no label
        (struct.pack("<II8x", 16, 99) + GROUPS, (1001,), None),  # of a newer kernel
    ],
)
def test_extensions_stand_at_the_end(
    tail: bytes, groups: tuple[int, ...], security: tuple[bytes, bytes] | None
) -> None:
    mkdir = struct.pack("<II", 0o755, 0o22) + b"odd\0"
    found = wire.parse_extensions(memoryview(mkdir + tail), len(tail) // 8)
    assert found == (groups, security)


@pytest.mark.parametrize(
    "tail",
    [
        struct.pack("<II", 4, wire.EXT_GROUPS),  # smaller than its own header
        struct.pack("<II", 16, wire.EXT_GROUPS),  # larger than what there is
        struct.pack("<IIII", 16, wire.EXT_GROUPS, 9, 1001),  # more groups than fit
        struct.pack("<IIII", 24, 1, 7, 0) + b"a\0label",  # a label that ends too soon
    ],
)
def test_damaged_extensions_are_invalid(tail: bytes) -> None:
    tail += bytes(-len(tail) % 8)
    with pytest.raises(FsError, match="cut off"):
        wire.parse_extensions(memoryview(tail), len(tail) // 8)


# -- answers


def test_reply_is_header_and_payload() -> None:
    assert wire.reply(99) == golden("10000000000000006300000000000000")
    assert wire.reply(99, b"abc") == golden("13000000000000006300000000000000616263")
    assert b"".join(wire.reply_parts(99, b"abc")) == wire.reply(99, b"abc")


def test_reply_error_carries_the_negative_errno() -> None:
    assert wire.reply_error(99, 2) == golden("10000000feffffff6300000000000000")


VALID = "010000000000000002000000000000000065cd1d80b2e60e"
ATTR_VALID = "020000000000000080b2e60e00000000"

ANSWERS: list[tuple[str, bytes, str]] = [
    (
        "entry_out",
        wire.entry_out(TIMEOUTS, ATTRIBUTES, INO, 4),
        "88776655443322110400000000000000" + VALID + ATTRIBUTES.hex(),
    ),
    (
        "negative entry",
        TIMEOUTS.negative,
        "00" * 16 + "030000000000000000000000000000004059730700000000" + "00" * 88,
    ),
    ("attr_out", wire.attr_out(TIMEOUTS, ATTRIBUTES), ATTR_VALID + ATTRIBUTES.hex()),
    (
        "statx_out",
        wire.statx_out(TIMEOUTS, ATTRIBUTES, 1_600_000_000_000_000_005),
        ATTR_VALID + "00" * 16 + "ff0f000000100000000000000000000003000000e8030000e9030000a4810000"
        "887766554433221108070605040302010900000000000000000000000000000"
        "0feffffffffffffff0a0000000000000000105e5f000000000500000000000000"
        "01f1536500000000ffc99a3b0000000000f15365000000000b00000000000000"
        "23010000450000000000000000000000" + "00" * 112,
    ),
    (
        "open_out",
        wire.open_out(8, wire.FOPEN_KEEP_CACHE | wire.FOPEN_NOFLUSH, -1),
        "080000000000000022000000ffffffff",
    ),
    ("write_out", wire.write_out(4096), "0010000000000000"),
    ("ioctl_out", wire.ioctl_out(b"ab"), "000000000000000000000000000000006162"),
    ("copy_file_range_out", wire.copy_file_range_out(1 << 40), "0000000000010000"),
    ("lseek_out", wire.lseek_out(1 << 40), "0000000000010000"),
    ("getxattr_out", wire.getxattr_out(17), "1100000000000000"),
    ("poll_out", wire.poll_out(5), "0500000000000000"),
    (
        "statfs_out",
        wire.statfs_out(
            blocks=1, bfree=2, bavail=3, files=4, ffree=5, bsize=4096, namelen=255, frsize=512
        ),
        "01000000000000000200000000000000030000000000000004000000000000000500000000000000"
        "00100000ff00000000020000" + "00" * 28,
    ),
    (
        "lk_out",
        wire.lk_out(1, 2, wire.F_WRLCK, 4),
        "010000000000000002000000000000000100000004000000",
    ),
    (
        "init_out",  # INIT_EXT comes by itself
        wire.init_out(
            InitFlag.ASYNC_READ | InitFlag.PASSTHROUGH,
            max_readahead=131072,
            max_background=64,
            congestion_threshold=48,
            max_write=1 << 20,
            max_pages=256,
            max_stack_depth=2,
            request_timeout=60,
        ),
        "070000002d0000000000020001000040400030000000100001000000000100002000000002000000"
        "3c00" + "00" * 22,
    ),
    (
        "dirent",
        wire.dirent(5, 6, b"abc", 8),
        "0500000000000000060000000000000003000000080000006162630000000000",
    ),
    (
        "dirent without padding",
        wire.dirent(5, 6, b"abcdefgh", 4),
        "0500000000000000060000000000000008000000040000006162636465666768",
    ),
    (
        "direntplus",
        wire.direntplus(TIMEOUTS, ATTRIBUTES, INO, 6, b"abcde", 8),
        "88776655443322110000000000000000" + VALID + ATTRIBUTES.hex() + "8877665544332211"
        "060000000000000005000000080000006162636465000000",
    ),
    (
        "direntplus of a name alone",
        wire.direntplus(TIMEOUTS, b"", 5, 6, b"..", 4),
        "00" * 128 + "0500000000000000060000000000000002000000040000002e2e000000000000",
    ),
    (
        "notify_inval_inode",
        wire.notify_inval_inode(5, -1, 4096),
        "280000000200000000000000000000000500000000000000ffffffffffffffff0010000000000000",
    ),
    (
        "notify_inval_entry",
        wire.notify_inval_entry(1, b"abc", wire.EXPIRE_ONLY),
        "240000000300000000000000000000000100000000000000030000000100000061626300",
    ),
    (
        "notify_delete",
        wire.notify_delete(1, 9, b"abc"),
        "2c00000006000000000000000000000001000000000000000900000000000000030000000000000061626300",
    ),
    (
        "notify_store",
        wire.notify_store(9, 4096, b"xyz"),
        "2b00000004000000000000000000000009000000000000000010000000000000030000000000000078797a",
    ),
    ("notify_poll", wire.notify_poll(77), "180000000100000000000000000000004d00000000000000"),
    ("notify", wire.notify(NotifyCode.INC_EPOCH), "10000000080000000000000000000000"),
]


@pytest.mark.parametrize(
    ("packed", "text"), [row[1:] for row in ANSWERS], ids=[row[0] for row in ANSWERS]
)
def test_answer(packed: bytes, text: str) -> None:
    assert packed.hex() == text


def test_flags2_is_announced() -> None:
    """A kernel does not look at flags2 unless INIT_EXT is set in flags."""
    answer = wire.init_out(
        InitFlag.PASSTHROUGH,
        max_readahead=0,
        max_background=0,
        congestion_threshold=0,
        max_write=4096,
        max_pages=1,
    )
    _, _, _, flags = struct.unpack_from("<IIII", answer)
    assert flags == InitFlag.INIT_EXT


@given(st.integers(0, 10**9), st.integers(0, 999_999_999))
def test_timeouts_are_seconds_and_nanoseconds(seconds: int, nanoseconds: int) -> None:
    timeouts = Timeouts(0, seconds + nanoseconds / 1e9)
    valid, valid_ns = struct.unpack_from("<QI", timeouts.attr)
    assert valid_ns < 1_000_000_000
    assert valid + valid_ns / 1e9 == pytest.approx(seconds + nanoseconds / 1e9)


names = st.binary(min_size=1, max_size=255).filter(lambda name: 0 not in name)


@given(
    st.lists(st.tuples(st.integers(1, 2**64 - 1), st.integers(1, 2**63), names, st.integers(0, 15)))
)
def test_a_listing_can_be_walked_as_the_kernel_does(
    entries: list[tuple[int, int, bytes, int]],
) -> None:
    listing = b"".join(wire.dirent(*entry) for entry in entries)
    offset, found = 0, []
    while offset < len(listing):
        ino, position, length, type = struct.unpack_from("<QQII", listing, offset)
        found.append((ino, position, listing[offset + 24 : offset + 24 + length], type))
        offset += (24 + length + 7) // 8 * 8
    assert offset == len(listing)
    assert found == entries


@given(st.binary(max_size=100), st.integers(0, 20))
def test_any_bytes_parse_or_are_invalid(data: bytes, total_extlen: int) -> None:
    """Nothing but FsError leaves the codec, whatever a kernel sends."""
    parsers = {row[0] for row in REQUESTS} | {wire.parse_init}
    for parse in parsers:
        _parses_or_is_invalid(lambda parse=parse: parse(memoryview(data)))  # type: ignore[misc]
    if 8 * total_extlen <= len(data):
        _parses_or_is_invalid(lambda: wire.parse_extensions(memoryview(data), total_extlen))


def _parses_or_is_invalid(parse: Callable[[], Any]) -> None:
    try:
        parse()
    except FsError as error:
        assert error.fault is Fault.INVALID


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), names, names)
def test_renames_come_back(new_parent: int, flags: int, name: bytes, new_name: bytes) -> None:
    flags &= 0xFFFF_FFFF
    packed = struct.pack("<QI4x", new_parent, flags) + name + b"\0" + new_name + b"\0"
    assert wire.parse_rename2(memoryview(packed)) == (new_parent, flags, name, new_name)
