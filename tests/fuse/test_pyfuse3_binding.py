"""The pyfuse3 binding: its bookkeeping on a stand-in, and everything else through a real mount.

The mount's daemon is a process of its own: this file run as a program.
"""

import contextlib
import ctypes
import errno
import importlib.util
import json
import mmap
import os
import signal
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from mountfs.errors import Fault, FsError
from mountfs.fuse import mount as mounting
from mountfs.fuse.mount import find_mount
from mountfs.fuse.options import MountOptions, parse_options
from mountfs.fuse.pyfuse3_binding import Handlers, pyfuse3_binding
from mountfs.meta.records import Attributes
from mountfs.types import Ino
from mountfs.vfs.embedded import embedded_node

START_S = 30
NOBODY = 65_534
ENTRIES = 3_000

needs_mount = pytest.mark.skipif(
    os.geteuid() != 0
    or not os.path.exists(mounting.DEVICE)
    or importlib.util.find_spec("pyfuse3") is None,
    reason=f"mounts through pyfuse3: needs pyfuse3, root and {mounting.DEVICE}",
)


# -- the daemon


async def serve(home: str, mountpoint: str, options: str) -> None:
    """Mount until unmounted, or until there is no more standard input.  Says on standard output
    what is left.
    """
    async with embedded_node(Path(home), mountpoint=mountpoint, kernel=True) as node:
        with pyfuse3_binding(node.filesystem, mountpoint, home, parse_options(options)) as binding:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_cancel_at_end_of_input, nursery.cancel_scope)
                await binding.serve()
                nursery.cancel_scope.cancel()
        await node.filesystem.flush_all()
        _, _, inodes, _ = await node.filesystem.statfs()
        status, handlers = binding.status(), binding.handlers  # type: ignore[attr-defined]
        print(
            json.dumps(
                {
                    "bugs": status["bugs"],
                    "inodes": inodes,
                    "known": sorted(handlers._lookups),
                    "initialized": binding.initialized.is_set(),
                    "operations": sorted(binding.stats()["operations"]),
                }
            )
        )


async def _cancel_at_end_of_input(scope: trio.CancelScope) -> None:
    async with trio.lowlevel.FdStream(os.dup(0)) as stream:
        while await stream.receive_some():
            pass
    scope.cancel()


class Daemon:
    def __init__(self, home: Path, place: Path, options: str = "") -> None:
        self.place = place
        self.home = home
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(home), str(place), options],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        deadline = time.monotonic() + START_S
        while find_mount(place, source=home) is None:
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._process.kill()
                pytest.fail(f"the daemon did not mount: {self._process.communicate()[1]}")
            time.sleep(0.02)

    def end(self) -> dict[str, Any]:
        """What it said when it ended, by itself or because its input did."""
        out, err = self._process.communicate(timeout=START_S)
        assert self._process.returncode == 0, err
        said: dict[str, Any] = json.loads(out)
        return said

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()
        while find_mount(self.place) is not None:
            mounting.unmount(self.place, lazy=True)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    place = tmp_path / "mount point"
    place.mkdir()
    running = Daemon(tmp_path / "home", place)
    try:
        yield running
    finally:
        running.kill()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A mount that the tests share.  Afterwards nothing of what they did may be left in it."""
    top = tmp_path_factory.mktemp("pyfuse3")
    top.parent.chmod(0o755)  # the tests enter it as nobody, too
    top.parent.parent.chmod(0o755)
    top.chmod(0o755)
    (top / "mnt").mkdir()
    running = Daemon(top / "home", top / "mnt", "allow_other")
    try:
        yield running.place
        assert os.listdir(running.place) == []
        mounting.unmount(running.place)
        said = running.end()
        assert said["bugs"] == 0
        assert said["inodes"] == 1
        assert said["known"] == [1]
    finally:
        running.kill()


@pytest.fixture
def here(place: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    directory = place / request.node.name[:200]
    directory.mkdir()
    umask = os.umask(0o022)
    try:
        yield directory
    finally:
        os.umask(umask)
        subprocess.run(["rm", "-rf", "--", directory], check=True)


def as_nobody(act: Callable[[], None]) -> None:
    """Do it in a process of user and group nobody."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            act()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


_ACL_TAGS = {"owner": 0x01, "group": 0x04, "mask": 0x10, "others": 0x20}


def acl(**rights: int) -> bytes:
    """An ACL as xattr(7) has it: version 2; tag, rights and no qualifier for each entry."""
    return struct.pack("<I", 2) + b"".join(
        struct.pack("<HHI", _ACL_TAGS[who], right, 0xFFFF_FFFF) for who, right in rights.items()
    )


# -- without a mount


def test_a_missing_pyfuse3_is_told_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "pyfuse3", None)
    filesystem: Any = None
    with (
        pytest.raises(FsError, match=r"pip install 'mountfs\[pyfuse3\]'.*libfuse3-dev") as raised,
        pyfuse3_binding(filesystem, tmp_path, tmp_path, MountOptions()),
    ):
        pass
    assert raised.value.fault is Fault.NOT_IMPLEMENTED
    assert find_mount(tmp_path) is None


class FuseError(Exception):
    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.errno = number


class Recorder:
    """In place of a `Filesystem`: takes notes, and answers every question with one inode."""

    def __init__(self) -> None:
        self.forgotten: list[list[Ino]] = []
        self.error: Exception | None = None

    async def lookup(self, *_: object) -> Attributes:
        if self.error is not None:
            raise self.error
        return Attributes((5).to_bytes(8, "little") + bytes(80))

    def generation(self, attributes: Attributes) -> int:
        return 0

    async def forget(self, inos: list[Ino]) -> None:
        if self.error is not None:
            raise self.error
        self.forgotten.append(inos)

    async def readdir(
        self, ino: Ino, after: int, limit: int, *, with_attributes: bool
    ) -> list[tuple[int, Ino, int, bytes, Attributes]]:
        names = [(1, Ino(2), 4, b".", Attributes(b"")), (2, Ino(1), 4, b"..", Attributes(b""))]
        names += [
            (n, Ino(n), 8, b"%d" % n, Attributes(n.to_bytes(8, "little") + bytes(80)))
            for n in range(10, 100)
        ]
        return [entry for entry in names if entry[0] > after][:limit]


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def told() -> list[bytes]:
    """Names that the stand-in for pyfuse3 has put into an answer; 50 are all that it takes."""
    return []


@pytest.fixture
def handlers(recorder: Recorder, told: list[bytes]) -> Handlers:
    def readdir_reply(token: object, name: bytes, entry: object, position: int) -> bool:
        if len(told) == 50:
            return False
        told.append(name)
        return True

    pyfuse3 = SimpleNamespace(
        EntryAttributes=SimpleNamespace, FUSEError=FuseError, readdir_reply=readdir_reply
    )
    return Handlers(
        pyfuse3,
        recorder,  # type: ignore[arg-type]
        entry_timeout_s=60,
        attr_timeout_s=30,
        initialized=trio.Event(),
    )


CALLER = SimpleNamespace(uid=7, gid=7, pid=1, umask=0)


async def test_an_inode_is_forgotten_when_the_kernel_has_counted_it_down(
    handlers: Handlers, recorder: Recorder
) -> None:
    for _ in range(3):
        await handlers.lookup(1, b"five", CALLER)
    await handlers.forget([(5, 2)])
    assert recorder.forgotten == [[]]
    await handlers.forget([(5, 1)])
    assert recorder.forgotten == [[], [5]]
    assert 5 not in handlers._lookups


async def test_a_listing_counts_what_the_answer_holds(
    handlers: Handlers, told: list[bytes]
) -> None:
    await handlers.readdir(1, 0, None)
    assert told == [b".", b".."] + [b"%d" % n for n in range(10, 58)]
    assert handlers._lookups == {1: 1} | dict.fromkeys(range(10, 58), 1)


async def test_failures_become_errnos(handlers: Handlers, recorder: Recorder) -> None:
    recorder.error = FsError(Fault.OVER_QUOTA)
    with pytest.raises(FuseError, check=lambda error: error.errno == errno.EDQUOT):
        await handlers.lookup(1, b"a", CALLER)
    await handlers.forget([(5, 1)])  # has no answer
    assert handlers.bugs == 0
    assert handlers.counts["lookup"].errors == 1


async def test_a_bug_is_counted_and_answered_eio(
    handlers: Handlers, recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    recorder.error = KeyError("a bug")
    with pytest.raises(FuseError, check=lambda error: error.errno == errno.EIO):
        await handlers.lookup(1, b"a", CALLER)
    assert handlers.bugs == 1
    assert "bug in lookup" in caplog.text


async def test_a_name_that_is_absent_may_be_remembered(
    handlers: Handlers, recorder: Recorder
) -> None:
    recorder.error = FsError(Fault.NOT_FOUND)
    entry = await handlers.lookup(1, b"a", CALLER)
    assert (entry.st_ino, entry.entry_timeout) == (0, 60)
    assert handlers._lookups == {1: 1}


# -- mounted


@needs_mount
def test_the_mount_table_shows_our_type_and_the_home(daemon: Daemon) -> None:
    found = find_mount(daemon.place)
    assert found is not None
    assert (found.fstype, found.source) == ("fuse.mountfs", str(daemon.home))


@needs_mount
def test_unmounting_ends_it_and_leaves_nothing_behind(daemon: Daemon) -> None:
    file = daemon.place / "file"
    file.write_bytes(b"kept")
    mounting.unmount(daemon.place)
    said = daemon.end()
    assert find_mount(daemon.place) is None
    assert os.listdir(daemon.place) == []
    assert said["inodes"] == 2
    assert said["bugs"] == 0
    assert said["initialized"]
    assert {"create", "write", "flush"} <= set(said["operations"])

    again = Daemon(daemon.home, daemon.place)
    try:
        assert file.read_bytes() == b"kept"
    finally:
        again.kill()


@needs_mount
def test_ending_the_daemon_unmounts(daemon: Daemon) -> None:
    (daemon.place / "file").write_bytes(b"kept")
    fd = os.open(daemon.place / "file", os.O_RDONLY)  # in use: it is detached
    try:
        assert daemon.end()["bugs"] == 0
        assert find_mount(daemon.place) is None
    finally:
        with contextlib.suppress(OSError):
            os.close(fd)  # nobody is there to be told


@needs_mount
def test_ordinary_files(here: Path) -> None:
    data = os.urandom(3_000_000)
    file = here / "file"
    file.write_bytes(data)
    assert file.read_bytes() == data
    with file.open("r+b") as opened:
        opened.seek(1_000_000)
        opened.write(b"changed")
        opened.flush()
        os.fsync(opened.fileno())
        with mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            assert (
                mapped[999_999:1_000_008]
                == data[999_999:1_000_000] + b"changed" + data[1_000_007:1_000_008]
            )
    os.truncate(file, 1_000_003)
    assert file.read_bytes() == data[:1_000_000] + b"cha"
    with file.open("ab") as appended:
        appended.write(b"end")
    assert file.stat().st_size == 1_000_006
    with pytest.raises(FileExistsError):
        os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    os.link(file, here / "link")
    assert file.stat().st_nlink == 2
    (here / "symlink").symlink_to("link")
    assert (here / "symlink").stat().st_ino == file.stat().st_ino
    with pytest.raises(FileNotFoundError):
        (here / "none").stat()
    (here / "none").mkdir()  # though its absence was remembered
    assert sorted(os.listdir(here)) == ["file", "link", "none", "symlink"]


@needs_mount
def test_attributes(here: Path) -> None:
    file = here / "file"
    file.write_bytes(b"x" * 10_000)
    os.chmod(file, 0o4711)
    os.utime(file, ns=(-1_500_000_001, 4_000_000_000_123_456_789))
    os.chown(here, 12, 34)
    seen = file.stat()
    assert stat.S_IMODE(seen.st_mode) == 0o4711
    assert (seen.st_atime_ns, seen.st_mtime_ns) == (-1_500_000_001, 4_000_000_000_123_456_789)
    assert seen.st_blocks >= 20
    assert (here.stat().st_uid, here.stat().st_gid) == (12, 34)
    os.utime(file)
    assert abs(file.stat().st_mtime - time.time()) < 60
    os.mknod(here / "null", stat.S_IFCHR | 0o600, os.makedev(0x123, 0x45678))
    assert (here / "null").stat().st_rdev == os.makedev(0x123, 0x45678)
    os.mkfifo(here / "fifo")
    assert stat.S_ISFIFO((here / "fifo").stat().st_mode)
    space = os.statvfs(here)
    assert space.f_namemax == 255
    assert 0 < space.f_bavail <= space.f_blocks


@needs_mount
def test_extended_attributes(here: Path) -> None:
    os.setxattr(here, "user.a", b"1", os.XATTR_CREATE)
    with pytest.raises(FileExistsError):
        os.setxattr(here, "user.a", b"2", os.XATTR_CREATE)
    with pytest.raises(OSError, match="No data available"):
        os.setxattr(here, "user.b", b"2", os.XATTR_REPLACE)
    os.setxattr(here, "trusted.c", b"\0" * 5_000)
    os.setxattr(here, "security.d", b"")
    assert sorted(os.listxattr(here)) == ["security.d", "trusted.c", "user.a"]
    assert os.getxattr(here, "trusted.c") == b"\0" * 5_000
    os.removexattr(here, "user.a")
    with pytest.raises(OSError, match="No data available"):
        os.getxattr(here, "user.a")

    def only_what_is_for_all() -> None:
        assert os.listxattr(here) == ["security.d"]

    as_nobody(only_what_is_for_all)


@needs_mount
def test_the_umask_is_applied_except_where_there_is_a_default_acl(here: Path) -> None:
    os.umask(0o077)
    (here / "plain").touch(0o666)
    (here / "directory").mkdir(0o777)
    os.mknod(here / "fifo", stat.S_IFIFO | 0o666)
    os.setxattr(
        here / "directory", "system.posix_acl_default", acl(owner=7, group=7, mask=7, others=5)
    )
    (here / "directory" / "inherits").touch(0o666)
    modes = {
        name: stat.S_IMODE((here / name).stat().st_mode)
        for name in ("plain", "directory", "fifo", "directory/inherits")
    }
    assert modes == {
        "plain": 0o600,
        "directory": 0o700,
        "fifo": 0o600,
        "directory/inherits": 0o664,
    }


def write(file: Path) -> None:
    fd = os.open(file, os.O_WRONLY)
    assert os.write(fd, b"more") == 4
    os.close(fd)


def open_truncating(file: Path) -> None:
    os.close(os.open(file, os.O_WRONLY | os.O_TRUNC))


def truncate(file: Path) -> None:
    os.truncate(file, 2)


@needs_mount
@pytest.mark.parametrize("change", [write, open_truncating, truncate])
def test_what_nobody_changes_loses_set_user_id(here: Path, change: Callable[[Path], None]) -> None:
    file = here / "file"
    file.write_bytes(b"data")
    os.chmod(file, 0o6777)
    as_nobody(lambda: change(file))
    assert stat.S_IMODE(file.stat().st_mode) == 0o777
    os.chmod(file, 0o6777)
    change(file)  # root may keep it
    assert stat.S_IMODE(file.stat().st_mode) == 0o6777


@needs_mount
def test_a_new_owner_gets_no_set_user_id(here: Path) -> None:
    file = here / "file"
    file.touch()
    os.chmod(file, 0o6755)
    os.chown(file, 12, -1)
    assert stat.S_IMODE(file.stat().st_mode) == 0o755


@needs_mount
def test_who_is_outside_the_group_sets_no_set_group_id_by_acl(here: Path) -> None:
    file = here / "file"
    file.touch()
    os.chown(file, NOBODY, 12)
    os.chmod(file, 0o2755)
    entries = acl(owner=7, group=5, others=5)
    as_nobody(lambda: os.setxattr(file, "system.posix_acl_access", entries))
    assert stat.S_IMODE(file.stat().st_mode) == 0o755


@needs_mount
def test_a_listing_of_a_directory_that_is_being_emptied_misses_nothing(here: Path) -> None:
    names = {f"entry {number}" for number in range(ENTRIES)}
    for name in names:
        (here / name).touch()
    seen = []
    with os.scandir(here) as entries:
        for entry in entries:
            seen.append(entry.name)
            assert entry.inode() == entry.stat().st_ino
            os.unlink(entry.path)
    assert len(seen) == ENTRIES
    assert set(seen) == names
    assert os.listdir(here) == []


@needs_mount
def test_a_file_that_is_renamed_over_lives_until_it_is_closed(here: Path) -> None:
    old, new = here / "old", here / "new"
    old.write_bytes(b"old")
    new.write_bytes(b"new")
    with old.open("r+b") as opened:
        new.rename(old)
        assert old.read_bytes() == b"new"
        opened.seek(3)
        opened.write(b"er")
        opened.flush()
        opened.seek(0)
        assert opened.read() == b"older"
        assert os.fstat(opened.fileno()).st_nlink == 0
    assert os.listdir(here) == ["old"]


@needs_mount
def test_rename_flags(here: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)

    def rename(old: Path, new: Path, flags: int) -> int:
        if libc.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags) == 0:
            return 0
        return ctypes.get_errno()

    one, two = here / "one", here / "two"
    one.write_bytes(b"1")
    two.write_bytes(b"2")
    noreplace, exchange = 1, 2
    assert rename(one, two, noreplace) == errno.EEXIST
    assert rename(one, two, exchange) == 0
    assert (one.read_bytes(), two.read_bytes()) == (b"2", b"1")


@needs_mount
def test_an_unlinked_file_lives_until_it_is_closed(here: Path) -> None:
    with (here / "file").open("w+b") as opened:
        opened.write(b"before")
        os.unlink(here / "file")
        opened.write(b" and after")
        opened.seek(0)
        assert opened.read() == b"before and after"
        with pytest.raises(FileNotFoundError):
            (here / "file").stat()
    assert os.listdir(here) == []


@needs_mount
def test_what_it_cannot_carry_is_refused(here: Path) -> None:
    with pytest.raises(OSError, check=lambda error: error.errno == errno.EOPNOTSUPP):
        os.open(here, os.O_TMPFILE | os.O_RDWR)
    with (here / "file").open("w+b") as opened:
        os.truncate(opened.fileno(), 1 << 20)
        libc = ctypes.CDLL(None, use_errno=True)
        libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
        assert libc.fallocate(opened.fileno(), 0, 0, 1 << 21) == -1
        assert ctypes.get_errno() == errno.EOPNOTSUPP
        assert os.lseek(opened.fileno(), 0, os.SEEK_DATA) == 0  # a hole from end to end
        assert os.lseek(opened.fileno(), 0, os.SEEK_HOLE) == 1 << 20


@needs_mount
def test_a_read_only_mount_refuses_changes(tmp_path: Path) -> None:
    place = tmp_path / "mnt"
    place.mkdir()
    daemon = Daemon(tmp_path / "home", place, "ro")
    try:
        with pytest.raises(OSError, check=lambda error: error.errno == errno.EROFS):
            (place / "file").touch()
        mounting.unmount(place)
        assert daemon.end()["bugs"] == 0
    finally:
        daemon.kill()


@needs_mount
def test_programs_that_are_killed_while_they_wait_disturb_nobody(here: Path) -> None:
    for _ in range(20):
        pid = os.fork()
        if pid == 0:
            number = 0
            while True:
                number += 1
                fd = os.open(here / f"{number % 7}", os.O_CREAT | os.O_RDWR)
                os.write(fd, b"x" * 5_000)
                os.fsync(fd)
                os.close(fd)
        time.sleep(0.01)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    (here / "after").write_bytes(b"all is well")
    assert (here / "after").read_bytes() == b"all is well"


if __name__ == "__main__":
    _, home, mountpoint, options = sys.argv
    trio.run(serve, home, mountpoint, options)
