"""Every system call that could change a retained file, on real mounts: EPERM, and afterwards the
file is what it was; and when its time is over, none of them is refused.
"""

import contextlib
import ctypes
import errno
import json
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
import trio
from mounted import Node
from nodes import PORT, Nodes, until

from mountfs.chunks.protocol import Delete, Drop, List
from mountfs.chunks.protocol import Method as Orders
from mountfs.cli.trust import Trust
from mountfs.errors import Fault, FsError
from mountfs.meta import admin
from mountfs.meta.client import Options, remote_meta
from mountfs.meta.ops.make import Make
from mountfs.meta.ops.retention import SetRetention
from mountfs.meta.ops.slices import Discard, Rewrite
from mountfs.meta.ops.unlink import Unlink
from mountfs.meta.ops.write import Run, Write
from mountfs.meta.protocol import ROLE
from mountfs.meta.records import ino_of
from mountfs.meta.retention import Mode
from mountfs.rpc.client import open_client
from mountfs.types import ROOT, Cred, Ino, SliceId, VolumeId
from mountfs.wire.frames import Hello
from mountfs.wire.stream import connect

MOUNTFS: Final = [sys.executable, "-m", "mountfs.cli.main"]
OVER_S_MAX: Final = 30
BYTES: Final = b"what must not change\n" * 10_000
XATTRS: Final = ("mountfs.worm.mode", "mountfs.worm.until", "mountfs.worm.hold")
libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture(params=["native", "pyfuse3", "cluster"])
def point(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A directory on a mount."""
    if request.param == "cluster":
        cluster: Nodes = request.getfixturevalue("shared_cluster")
        yield cluster.mount("one").point
        cluster.calm()
        return
    if request.param == "pyfuse3":
        pytest.importorskip("pyfuse3")
    node: Node = request.getfixturevalue("node")
    node.mount(f"binding={request.param}")
    yield node.point


def worm(*words: object, code: int = 0) -> Any:
    done = subprocess.run(
        [*MOUNTFS, "worm", *map(str, words), "--json"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == code, (words, done.stdout, done.stderr)
    return (
        [json.loads(line) for line in done.stdout.splitlines()]
        if words[0] == "list"
        else (json.loads(done.stdout) if code == 0 else done.stderr)
    )


def call(name: str, *arguments: Any) -> int:
    """A system call that Python does not have.  Raises OSError."""
    result: int = getattr(libc, name)(*arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result


def fallocate(fd: int, mode: int) -> None:
    call("fallocate", fd, mode, ctypes.c_long(0), ctypes.c_long(4096))


def exchange(one: Path, other: Path) -> None:
    call("renameat2", -100, os.fsencode(one), -100, os.fsencode(other), 2)


def opened(path: Path, flags: int) -> None:
    os.close(os.open(path, flags))


def run(*command: object) -> None:
    done = subprocess.run([str(one) for one in command], capture_output=True, text=True)
    if done.returncode:
        assert "not permitted" in done.stderr, done.stderr
        raise OSError(errno.EPERM, done.stderr)


PYFUSE3_LACKS = ("fallocate", "keep size", "punch a hole", "zero", "copy_file_range")
"""That binding is not asked for them: the kernel refuses them, or copies by reading and writing."""


def ways(top: Path, fd: int) -> dict[str, Callable[[], object]]:
    """What is tried with top/dir/file; `fd` was open for writing before."""
    file, other, outside = top / "dir" / "file", top / "dir" / "other", top.parent / "outside"
    with open(other, "wb") as source:
        source.write(b"other")
    (top.parent / "away").mkdir(exist_ok=True)
    outside.write_bytes(b"outside")
    source_fd = os.open(outside, os.O_RDONLY)

    def copy_into() -> None:
        os.copy_file_range(source_fd, fd, 5, 0, 0)

    tries: dict[str, Callable[[], object]] = {
        "open O_WRONLY": lambda: opened(file, os.O_WRONLY),
        "open O_RDWR": lambda: opened(file, os.O_RDWR),
        "open O_TRUNC": lambda: opened(file, os.O_WRONLY | os.O_TRUNC),
        "open O_APPEND": lambda: opened(file, os.O_WRONLY | os.O_APPEND),
        "open O_CREAT": lambda: opened(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
        "truncate": lambda: os.truncate(file, 0),
        "grow": lambda: os.truncate(file, 10**7),
        "ftruncate": lambda: os.ftruncate(fd, 5),
        "fallocate": lambda: fallocate(fd, 0),
        "keep size": lambda: fallocate(fd, 1),
        "punch a hole": lambda: fallocate(fd, 3),
        "zero": lambda: fallocate(fd, 16),
        "copy_file_range": copy_into,
        "chmod": lambda: os.chmod(file, 0o777),
        "fchmod": lambda: os.fchmod(fd, 0o777),
        "chown": lambda: os.chown(file, 7, 7),
        "utimes": lambda: os.utime(file, (5, 5)),
        "utimes now": lambda: os.utime(file),
        "setxattr": lambda: os.setxattr(file, "user.new", b"1"),
        "replace xattr": lambda: os.setxattr(file, "user.old", b"2"),
        "removexattr": lambda: os.removexattr(file, "user.old"),
        "setfacl": lambda: run("setfacl", "-m", "u:7:rwx", file),
        "link": lambda: os.link(file, top / "again"),
        "unlink": lambda: os.unlink(file),
        "rename": lambda: os.rename(file, top / "dir" / "moved"),
        "rename away": lambda: os.rename(file, top.parent / "moved"),
        "rename over": lambda: os.rename(outside, file),
        "exchange": lambda: exchange(file, outside),
        "exchange the other way": lambda: exchange(outside, file),
        "mv of the directory": lambda: os.rename(top / "dir", top / "moved"),
        "mv of what is above": lambda: os.rename(top, top.parent / "moved"),
        "mv away": lambda: os.rename(top / "dir", top.parent / "away" / "dir"),
        "exchange of the directory": lambda: exchange(top / "dir", top.parent / "away"),
        "rm -rf": lambda: run("rm", "-rf", file),
    }
    if "pyfuse3" in str(top):
        for name in PYFUSE3_LACKS:
            del tries[name]
    return tries


def seen(file: Path) -> Any:
    """All but the access time."""
    found = file.stat()
    attributes = {
        name: os.getxattr(file, name) for name in os.listxattr(file) if name not in XATTRS
    }
    names = [name for name in dir(found) if name.startswith("st_")]
    fields = [getattr(found, name) for name in names if not name.startswith(("st_atime", "st_dev"))]
    return fields, attributes, file.read_bytes()


@pytest.fixture
def top(point: Path, request: pytest.FixtureRequest) -> Path:
    top = point / "".join(filter(str.isalnum, request.node.name)) / "top"
    (top / "dir").mkdir(parents=True)
    (top / "dir" / "file").write_bytes(BYTES)
    os.setxattr(top / "dir" / "file", "user.old", b"1")
    return top


def attacked(top: Path, fd: int) -> None:
    file = top / "dir" / "file"
    tries = ways(top, fd)
    before = seen(file)
    for name, attack in tries.items():
        with pytest.raises(OSError) as caught:
            attack()
        assert caught.value.errno == errno.EPERM, (name, caught.value)
        assert seen(file) == before, name


@pytest.mark.parametrize("mode", ["governance", "compliance", "hold"])
def test_nothing_changes_a_retained_file(top: Path, mode: str) -> None:
    file = top / "dir" / "file"
    fd = os.open(file, os.O_RDWR)
    try:
        if mode == "hold":
            worm("hold", file, "on")
        else:
            worm("set", file, "--mode", mode, "--for", "1d", "--yes")
            assert os.getxattr(file, "mountfs.worm.mode").decode() == mode
        attacked(top, fd)
        less = ("set", file, "--mode", "none")
        if mode == "governance":
            assert "governance until" in worm(*less, code=1)
            worm(*less, "--bypass-governance")
        elif mode == "compliance":
            assert "nobody" in worm(*less, "--bypass-governance", code=1)
            os.close(fd)
            fd = -1
            assert [one["path"] for one in worm("list", top)] == [str(file)]
            return
        else:
            worm("hold", file, "off")
        assert worm("get", file)["mode"] == "none"
    finally:
        if fd >= 0:
            os.close(fd)
    file.write_bytes(b"changed")
    file.unlink()


def test_bytes_that_come_through_an_old_descriptor_are_told_to_be_lost(top: Path) -> None:
    file = top / "dir" / "file"
    before = file.read_bytes()
    fd = os.open(file, os.O_RDWR)
    with mmap.mmap(fd, len(before)) as memory:
        worm("set", file, "--mode", "compliance", "--for", "1d", "--yes")
        memory[:5] = b"evil!"
        with pytest.raises(OSError):
            memory.flush()
            os.fsync(fd)
    with pytest.raises(OSError) as caught:
        os.pwrite(fd, b"evil!", 0)
        os.fsync(fd)
    assert caught.value.errno == errno.EPERM
    with pytest.raises(OSError) as caught:
        os.close(fd)
    assert caught.value.errno == errno.EPERM
    assert file.read_bytes() == before


def test_when_its_time_is_over_nothing_is_refused(top: Path) -> None:
    file = top / "dir" / "file"
    fd = os.open(file, os.O_RDWR)
    try:
        worm("set", file, "--mode", "compliance", "--for", "2s", "--yes")
        tries = ways(top, fd)
        with pytest.raises(PermissionError):
            tries["unlink"]()
        deadline = time.monotonic() + OVER_S_MAX
        while True:
            try:
                opened(file, os.O_WRONLY)
                break
            except PermissionError:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        names = {"unlink", "rm -rf"}
        for name, attack in tries.items():
            if name.startswith(("mv", "rename", "exchange")) or name in names:
                continue
            attack()
        tries["mv of the directory"]()
        (top / "moved" / "file").unlink()
        (top / "again").unlink()
    finally:
        os.close(fd)


def test_files_of_a_tree_are_retained_when_they_are_closed(top: Path) -> None:
    archive = top / "archive"
    archive.mkdir()
    words = ("default", archive, "--mode", "compliance", "--for", "1d", "--idle", "2s")
    assert "--yes" in worm(*words, code=1)
    assert worm(*words, "--dry-run")["dry_run"]
    assert worm("default", archive)["mode"] == "none"
    worm(*words, "--yes")
    assert worm("default", archive)["mode"] == "compliance"
    (archive / "sub").mkdir()
    empty, file = archive / "empty", archive / "sub" / "file"
    empty.touch()
    empty.write_bytes(b"first bytes")
    file.write_bytes(BYTES)
    for one in (empty, file):
        for attack in (one.unlink, lambda one=one: opened(one, os.O_WRONLY)):
            with pytest.raises(PermissionError):
                attack()
    kept_open = archive / "kept open"
    begun = time.monotonic()
    with open(kept_open, "wb", buffering=0) as writer:
        writer.write(b"and left alone")
        os.fsync(writer.fileno())
        early = worm("get", kept_open)["mode"] != "none"
        assert not early or time.monotonic() - begun > 2, "it was not left alone for so long"
        deadline = time.monotonic() + OVER_S_MAX
        while worm("get", kept_open)["mode"] == "none":
            assert time.monotonic() < deadline
            time.sleep(0.1)
        with pytest.raises(OSError):
            writer.write(b"too late")
            os.fsync(writer.fileno())
        with pytest.raises(OSError):
            writer.close()
    assert kept_open.read_bytes() == b"and left alone"
    assert {one["path"] for one in worm("list", top)} == set(map(str, (empty, file, kept_open)))


def test_nor_does_who_speaks_the_protocols_of_the_cluster(shared_cluster: Nodes) -> None:
    """As a client that leaves out what a mount checks, and as a node that gives orders."""
    point = shared_cluster.mount("one").point
    file = point / "spoken of"
    file.write_bytes(BYTES)
    worm("set", file, "--mode", "compliance", "--for", "1d", "--yes")
    ino, before = file.stat().st_ino, seen(file)
    said = shared_cluster.run(*MOUNTFS, "info", str(file), "--json")
    slices = [
        (SliceId(one["slice"]), VolumeId(one["volume"]), one["length"], one["crc32c"])
        for one in json.loads(said.stdout)["slices"]
    ]
    assert slices
    hosts = [member.host for member in shared_cluster.running]

    async def attack() -> None:
        async with remote_meta([(host, PORT + 1) for host in hosts], Options()) as meta:
            for command in (
                Unlink(ROOT, b"spoken of", Cred(0, 0, (), True)),
                SetRetention(ino=Ino(ino), mode=Mode.NONE, cred=Cred(0, 0), bypass=True),
                Write(Ino(ino), (Run(0, 1, 0, data=b"x"),), 0, False),
                Rewrite(Ino(ino), 0, ((1, 0),), ()),
            ):
                await denied(meta.propose(command))
            await meta.propose(
                Discard(tuple((name, volume, size) for name, volume, size, _ in slices))
            )
            made, _ = await meta.propose(
                Make(ROOT, b"thief", 0o100644, 0, 0, True, Cred(0, 0, (), True))
            )
            for name, volume, size, crc in slices:
                stolen = Write(ino_of(made), (Run(0, size, crc, name, volume),), 0, False)
                with pytest.raises(FsError) as caught:
                    await meta.propose(stolen)
                assert caught.value.fault is Fault.INVALID
        for member in shared_cluster.running:
            async with trio.open_nursery() as nursery:
                term = await term_at(member.rpc)
                hello = Hello(cluster=bytes(16), role=ROLE, name="a rogue")
                link = await connect(nursery, (member.host, PORT + 1), hello)
                for name, volume, _, _ in slices:
                    for method, order in (
                        (Orders.DELETE, Delete(term, {volume: [name]})),
                        (Orders.DROP, Drop(term, volume)),
                    ):
                        await denied(link.call(method, msgspec.msgpack.encode(order)))
                nursery.cancel_scope.cancel()

    try:
        trio.run(attack)
        assert seen(file) == before
    finally:
        shared_cluster.calm()
    again = shared_cluster.mount("other")
    assert seen(again.point / "spoken of") == before  # nothing of it was in a cache
    for member in shared_cluster.running:
        assert "needed" in member.said() or "not dropped" in member.said()
    shared_cluster.calm()


def test_what_was_released_is_deleted_by_the_chunkservers(shared_cluster: Nodes) -> None:
    point = shared_cluster.mount("one").point
    file = point / "short"
    file.write_bytes(BYTES)
    worm("set", file, "--mode", "compliance", "--for", "1s", "--yes")
    said = shared_cluster.run(*MOUNTFS, "info", str(file), "--json")
    (slice_,) = json.loads(said.stdout)["slices"]

    def is_removed() -> bool:
        with contextlib.suppress(PermissionError):
            file.unlink()
        return not file.exists()

    def has_it(host: str) -> bool:
        listed = trio.run(listing, host, VolumeId(slice_["volume"]))
        return any(name == slice_["slice"] for name, _ in listed)

    hosts = [member.host for member in shared_cluster.running]
    try:
        assert all(map(has_it, hosts))
        until(is_removed, OVER_S_MAX, lambda: "the file is not released")
        until(lambda: not any(map(has_it, hosts)), OVER_S_MAX, lambda: "it is not deleted")
    finally:
        shared_cluster.calm()


async def listing(host: str, volume: VolumeId) -> list[tuple[int, int]]:
    async with trio.open_nursery() as nursery:
        hello = Hello(cluster=bytes(16), role=ROLE, name="who looks")
        link = await connect(nursery, (host, PORT + 1), hello)
        body = msgspec.msgpack.encode(List(volume, SliceId(0), 1_000))
        listed = msgspec.msgpack.decode(await link.call(Orders.LIST, body))
        nursery.cancel_scope.cancel()
    return [(one[0], one[1]) for one in listed]


async def term_at(rpc: str) -> int:
    trust = Trust(None, kind=None)
    async with open_client(trust.cluster, trust.credentials) as client:
        said = await admin.ask(client, [rpc], "Status", None, deadline_s=10)
    return int(said["term"])


async def denied(asked: Awaitable[object]) -> None:
    with trio.fail_after(OVER_S_MAX), pytest.raises(FsError) as caught:
        await asked
    assert caught.value.fault is Fault.NOT_PERMITTED, caught.value
