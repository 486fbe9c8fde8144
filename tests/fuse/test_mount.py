"""Mounting for real, as root and as nobody, and what is said when it cannot be."""

import contextlib
import ctypes
import os
import shutil
import signal
import stat
import struct
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mountfs.errors import Fault, FsError
from mountfs.fuse import mount as mounting
from mountfs.fuse import wire
from mountfs.fuse.mount import MountInfo, check_mountpoint, find_mount, mount, unmount
from mountfs.fuse.options import MountOptions, parse_options
from mountfs.fuse.wire import InitFlag, Opcode

NOBODY = 65_534
SOURCE = "/home of, a\\test"  # every character that must be escaped somewhere

needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists(mounting.DEVICE),
    reason=f"mounts by mount(2): needs root and {mounting.DEVICE}",
)
needs_helper = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("fusermount3") or not os.path.exists(mounting.DEVICE),
    reason=f"becomes another user and mounts: needs root, fusermount3 and {mounting.DEVICE}",
)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A directory to mount on; whatever is mounted there afterwards is detached."""
    directory = tmp_path / "mount point"
    directory.mkdir()
    yield directory
    while find_mount(directory) is not None:
        unmount(directory, lazy=True)


@contextlib.contextmanager
def mounted(place: Path, text: str = "") -> Iterator[int]:
    """A mount whose daemon says nothing."""
    fd = mount(place, SOURCE, parse_options(text))
    try:
        yield fd
    finally:
        os.close(fd)


def fails(fault: Fault, words: str) -> "pytest.RaisesExc[FsError]":
    return pytest.raises(FsError, match=words, check=lambda error: error.fault is fault)


# -- the mount table


def test_mountinfo_is_unescaped() -> None:
    table = (
        b"22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
        b"36 35 0:31 / /mnt/a\\040b\\011\\134\\012c ro master:1 shared:2"
        b" - fuse.mountfs /h\\040x rw\n"
        b"40 22 0:40 / /tmp rw - tmpfs tmpfs rw\n"
    )
    root, ours, last = mounting.parse_mountinfo(table)
    assert ours == MountInfo(36, "0:31", "/mnt/a b\t\\\nc", "ro", "fuse.mountfs", "/h x")
    assert ours.ours
    assert (root.mountpoint, root.fstype, root.ours) == ("/", "ext4", False)
    assert last.source == "tmpfs"


def test_the_root_is_a_mount() -> None:
    found = find_mount("/")
    assert found is not None
    assert found.mountpoint == "/"


def test_a_plain_directory_is_no_mount(tmp_path: Path) -> None:
    assert find_mount(tmp_path) is None


# -- what is no mount point


def test_a_directory_is_a_mount_point_by_its_real_path(tmp_path: Path) -> None:
    (tmp_path / "real" / "dir").mkdir(parents=True)
    (tmp_path / "real" / "dir" / "file").touch()  # not empty, as mount(8) allows
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "last").symlink_to("link/dir/")
    real = str(tmp_path.resolve() / "real" / "dir")
    assert check_mountpoint(tmp_path / "link" / "dir") == real
    assert check_mountpoint(tmp_path / "last") == real
    assert check_mountpoint(f"{tmp_path}/real/../last/") == real
    assert check_mountpoint(f"{tmp_path}/last/.") == real


def test_a_missing_mount_point_is_told_with_the_next_step(tmp_path: Path) -> None:
    with fails(Fault.NOT_FOUND, f"mkdir -p {tmp_path}/none"):
        mount(tmp_path / "none", SOURCE, MountOptions())


def test_a_file_is_no_mount_point(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with fails(Fault.NOT_DIRECTORY, "file is not a directory"):
        mount(tmp_path / "file", SOURCE, MountOptions())


def test_links_in_a_circle_are_no_mount_point(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(FsError, match="symbolic links"):
        check_mountpoint(tmp_path / "a")


def test_no_device_is_told_with_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(mounting, "DEVICE", str(tmp_path / "fuse"))
    with fails(Fault.UNSUPPORTED, "fuse is missing: .* modprobe fuse"):
        mount(tmp_path, SOURCE, MountOptions())


def test_no_fusermount_is_told_with_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: NOBODY)
    monkeypatch.setenv("PATH", str(tmp_path))
    with fails(Fault.UNSUPPORTED, "apt install fuse3"):
        mount(tmp_path, SOURCE, MountOptions())


# -- as root


@needs_root
def test_mount_gives_a_connection_that_says_init(place: Path) -> None:
    with mounted(place) as fd:
        request = os.read(fd, wire.READ_BUFFER_BYTES_MIN)
        assert wire.IN_HEADER.unpack_from(request)[1] == Opcode.INIT
        asked = wire.parse_init(memoryview(request)[wire.IN_HEADER.size :])
        assert asked.major == wire.MAJOR
        assert asked.minor >= wire.MINOR_MIN
        assert not os.get_inheritable(fd)
        with pytest.raises(BlockingIOError):
            os.read(fd, wire.READ_BUFFER_BYTES_MIN)


@needs_root
def test_the_mount_table_shows_the_home(place: Path) -> None:
    with mounted(place):
        found = find_mount(place)
        assert found is not None
        assert (found.mountpoint, found.source) == (str(place), SOURCE)
        assert (found.fstype, found.ours) == ("fuse.mountfs", True)
        assert find_mount(place, source=SOURCE) == found
        assert find_mount(place, source="/another") is None


@needs_root
@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("ro,nosuid,nodev,noexec,noatime", {"ro", "nosuid", "nodev", "noexec", "noatime"}),
        ("strictatime,nodiratime,nosymfollow", {"rw", "nodiratime", "nosymfollow"}),
        ("sync,dirsync,lazytime,silent", {"rw", "relatime"}),
    ],
)
def test_options_reach_the_kernel(place: Path, text: str, shown: set[str]) -> None:
    with mounted(place, text):
        found = find_mount(place)
        assert found is not None
        assert set(found.options.split(",")) == shown


@needs_root
def test_read_ahead_can_be_set(place: Path) -> None:
    with mounted(place):
        found = find_mount(place)
        assert found is not None
        assert mounting.set_readahead(place, 1024)
        assert Path(f"/sys/class/bdi/{found.device}/read_ahead_kb").read_text() == "1024\n"


def test_read_ahead_of_no_mount_cannot_be_set(tmp_path: Path) -> None:
    assert not mounting.set_readahead(tmp_path, 1024)


@needs_root
def test_unmount_removes_it_from_the_table(place: Path) -> None:
    with mounted(place):
        unmount(place, lazy=True)
        assert find_mount(place) is None


@needs_root
def test_unmounting_nothing_is_told(place: Path) -> None:
    with fails(Fault.INVALID, "nothing is mounted on"):
        unmount(place)


@needs_root
def test_a_failed_mount_leaves_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_before = os.listdir("/proc/self/fd")
    monkeypatch.setattr(mounting, "FSTYPE", "no-such-type")
    with fails(Fault.UNSUPPORTED, "modprobe fuse"):
        mount(place, SOURCE, MountOptions())
    assert os.listdir("/proc/self/fd") == open_before
    assert find_mount(place) is None


@needs_root
def test_a_daemon_that_hangs_is_told_in_time(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounting, "ANSWER_S", 0.2)
    with mounted(place), fails(Fault.BUSY, "already a mount of .* umount"):
        mount(place, SOURCE, MountOptions())


@needs_root
def test_a_mount_without_its_daemon_is_replaced(place: Path) -> None:
    with mounted(place):
        pass
    assert find_mount(place) is not None
    with mounted(place, "ro"):
        found = find_mount(place)
    assert found is not None
    assert found.options.startswith("ro")
    unmount(place, lazy=True)
    assert find_mount(place) is None  # the dead one is not under it


@needs_root
def test_a_dead_mount_of_another_kind_is_left_alone(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(mounting, "FSTYPE", "fuse.other")
        with mounted(place):
            pass
    with fails(Fault.BUSY, "of type fuse.other that is dead; .* umount -l"):
        mount(place, SOURCE, MountOptions())
    assert find_mount(place) is not None


# -- with a daemon that answers


DIRECTORY = struct.pack("<QQQqqqIIIIIIIIII", 1, *[0] * 8, 0o40755, 2, 0, 0, 0, 4096, 0)
FOR_EVER = wire.Timeouts(3600.0, 3600.0)


def answer(fd: int) -> None:
    """Be an empty directory, until unmounted or told to end."""
    init = wire.init_out(
        InitFlag(0),
        max_readahead=0,
        max_background=1,
        congestion_threshold=1,
        max_write=4096,
        max_pages=1,
    )
    statfs = wire.statfs_out(
        blocks=0, bfree=0, bavail=0, files=0, ffree=0, bsize=512, namelen=255, frsize=512
    )
    answers = {
        Opcode.INIT: init,
        Opcode.GETATTR: wire.attr_out(FOR_EVER, DIRECTORY),
        Opcode.STATFS: statfs,
        Opcode.OPENDIR: wire.open_out(1, 0),
        Opcode.RELEASEDIR: b"",
    }
    while True:
        try:
            request = os.read(fd, 1 << 17)
        except OSError:
            return  # ENODEV: unmounted
        _, opcode, unique, *_ = wire.IN_HEADER.unpack_from(request)
        payload = answers.get(opcode)
        with contextlib.suppress(FileNotFoundError):  # whoever asked has gone
            os.write(
                fd, wire.reply_error(unique, 38) if payload is None else wire.reply(unique, payload)
            )


@contextlib.contextmanager
def answered(place: Path) -> Iterator[None]:
    fd = mount(place, SOURCE, MountOptions())
    os.set_blocking(fd, True)
    daemon = threading.Thread(target=answer, args=(fd,))
    daemon.start()
    try:
        yield
    finally:
        while find_mount(place) is not None:
            unmount(place, lazy=True)
        daemon.join()
        os.close(fd)


@needs_root
def test_a_mount_that_works_is_busy_and_stays(place: Path) -> None:
    with answered(place):
        with fails(Fault.BUSY, "already a mount of /home of, a"):
            mount(place, "/another", MountOptions())
        assert os.stat(place).st_nlink == 2
        assert os.statvfs(place).f_namemax == 255


@needs_root
def test_unmounting_what_is_in_use_is_told_with_the_next_step(place: Path) -> None:
    with answered(place):
        used = os.open(place, os.O_RDONLY)
        with fails(Fault.BUSY, "in use; .* fuser -vm"):
            unmount(place)
        os.close(used)
        unmount(place)
        assert find_mount(place) is None


@needs_root
def test_remembered_attributes_do_not_hide_that_the_daemon_is_gone(place: Path) -> None:
    fd = mount(place, SOURCE, MountOptions())
    os.set_blocking(fd, True)
    daemon = os.fork()
    if daemon == 0:
        answer(fd)
        os._exit(0)
    os.close(fd)
    try:
        os.stat(place)
    finally:
        os.kill(daemon, signal.SIGKILL)
        os.waitpid(daemon, 0)
    os.stat(place)  # the kernel knows it for an hour
    with mounted(place):
        pass


# -- as another user


@pytest.fixture
def place_of_nobody() -> Iterator[Path]:
    # pytest's own directories are closed to other users.
    with tempfile.TemporaryDirectory() as base:
        os.chmod(base, 0o755)
        directory = Path(base) / "mount point"
        directory.mkdir()
        os.chown(directory, NOBODY, NOBODY)
        yield directory
        while find_mount(directory) is not None:
            unmount(directory, lazy=True)


def as_nobody(act: Callable[[], str]) -> str:
    """What `act` returns in a process of another user, or the error that it raises."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            let_users_open_the_device()
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            said = act()
        except FsError as error:
            said = f"{error.fault.name}: {error}"
        except BaseException:
            said = traceback.format_exc()
        os.write(send, said.encode())
        os._exit(0)
    os.close(send)
    with os.fdopen(receive) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said


def let_users_open_the_device() -> None:
    """In a mount table of this process alone, /dev/fuse is one that udev would have made."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_mounts, private, bind = 0x20000, 1 << 18 | 1 << 14, 1 << 12
    device = f"{tempfile.gettempdir()}/fuse-{os.getpid()}"
    os.mknod(device, stat.S_IFCHR | 0o666, os.stat(mounting.DEVICE).st_rdev)
    os.chmod(device, 0o666)
    try:
        assert libc.unshare(new_mounts) == 0
        assert libc.mount(b"none", b"/", None, private, None) == 0
        assert libc.mount(device.encode(), mounting.DEVICE.encode(), None, bind, None) == 0
    finally:
        os.unlink(device)


@needs_helper
def test_a_user_mounts_by_fusermount(place_of_nobody: Path) -> None:
    place, options = place_of_nobody, parse_options("ro,noexec,noatime")

    def act() -> str:
        fd = mount(place, SOURCE, options)
        assert not os.get_blocking(fd)
        assert not os.get_inheritable(fd)
        request = os.read(fd, wire.READ_BUFFER_BYTES_MIN)
        assert wire.IN_HEADER.unpack_from(request)[1] == Opcode.INIT
        found = find_mount(place, source=SOURCE)
        assert found is not None
        assert not mounting.set_readahead(place, 1024)
        os.close(fd)
        os.close(mount(place, SOURCE, options))  # in place of the dead one
        unmount(place, lazy=True)
        assert find_mount(place) is None
        return found.options

    shown = set(as_nobody(act).split(","))
    assert shown == {"ro", "nosuid", "nodev", "noexec", "noatime"}


@needs_helper
def test_a_user_who_unmounts_nothing_is_told(place_of_nobody: Path) -> None:
    def act() -> str:
        unmount(place_of_nobody)
        return "unmounted"

    assert as_nobody(act).startswith("INVALID: fusermount3: entry for")


@needs_helper
def test_what_fusermount_refuses_is_told(place_of_nobody: Path) -> None:
    os.chown(place_of_nobody, 0, 0)

    def act() -> str:
        return str(mount(place_of_nobody, SOURCE, MountOptions()))

    assert as_nobody(act).startswith("NOT_PERMITTED: fusermount3: user has no write access")
