"""Mount and unmount: mount(2) as root, `fusermount3` for everybody else.

A mount is known as ours by its type, `fuse.mountfs`; its source is the home.  What is in the way of
a new mount is found out and told; only a mount of ours whose daemon is gone is cleared away without
asking.  All functions block, `unmount` for as long as the daemon takes to write what the kernel
still holds: so the daemon itself calls it in a thread.
"""

import ctypes
import errno
import os
import re
import shutil
import socket
import stat
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mountfs.errors import Fault, FsError, disk_error
from mountfs.fuse import options as flags
from mountfs.fuse.options import MountOptions

DEVICE: Final = "/dev/fuse"
SUBTYPE: Final = "mountfs"
FSTYPE: Final = f"fuse.{SUBTYPE}"
ANSWER_S: Final = 5.0
"""A mount point that does not say for so long what it is has a daemon that hangs."""
_LINKS_MAX = 40
"""The kernel follows no more symbolic links in one path."""
_MNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8
_HELPER = "fusermount3"
_CONFIGURATION = "/etc/fuse.conf"
_HELPER_S = 30.0
"""fusermount3 takes milliseconds; something is broken if it takes so long."""

StrPath = str | os.PathLike[str]


@dataclass(frozen=True)
class MountInfo:
    """A line of the mount table, as proc_pid_mountinfo(5) describes it."""

    mount_id: int
    device: str
    """MAJOR:MINOR."""
    mountpoint: str
    options: str
    fstype: str
    source: str

    @property
    def ours(self) -> bool:
        return self.fstype == FSTYPE


def mount(mountpoint: StrPath, source: StrPath, options: MountOptions) -> int:
    """Mount on the directory `mountpoint`; `source` is what the mount table shows, the home.

    Returns the connection to the kernel: a non-blocking file descriptor, not inherited by other
    programs.  The kernel's first request on it is INIT.  Raises what `check_mountpoint` raises,
    UNSUPPORTED where the machine has no FUSE, DENIED or NOT_PERMITTED; then nothing is mounted.
    """
    path = check_mountpoint(mountpoint)
    if os.geteuid() == 0:
        return _mount_as_root(path, os.fspath(source), options)
    return _mount_by_helper(path, os.fspath(source), options)


def unmount(mountpoint: StrPath, lazy: bool = False) -> None:
    """Unmount what is mounted on `mountpoint`.

    `lazy`: it disappears at once, and is unmounted when its last user is done.  Otherwise BUSY
    while it is in use.  INVALID if nothing is mounted there.
    """
    path = _resolve(mountpoint)
    if os.geteuid() == 0:
        _umount2(path, lazy)
    else:
        _helper(path, ["-u", "-z"] if lazy else ["-u"])


def detach(mountpoint: StrPath) -> None:
    """Unmount lazily what is in use, and have the kernel send all that it has not written yet.

    Only the end of the last user would make it do so, and the daemon may not live to see that.
    """
    try:
        fd = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:  # as where a user has closed the directory to all: it must do without
        unmount(mountpoint, lazy=True)
        return
    try:
        unmount(mountpoint, lazy=True)
        if _libc.syncfs(fd):
            number = ctypes.get_errno()
            raise disk_error(OSError(number, os.strerror(number)), f"flushing {mountpoint}")
    finally:
        os.close(fd)


def check_mountpoint(mountpoint: StrPath) -> str:
    """The real path of a directory that can be mounted on.

    It need not be empty.  Raises NOT_FOUND, NOT_DIRECTORY or DENIED, and BUSY if a mount of ours is
    there.  One whose daemon is gone is detached first, as if it had been unmounted.
    """
    path = _resolve(mountpoint)
    error = _error_of(path)
    there = find_mount(path)
    if there is not None and there.ours:
        if error is None or error.errno != errno.ENOTCONN:
            raise FsError(Fault.BUSY, _held(there))
        unmount(path, lazy=True)
        return check_mountpoint(path)
    if error is not None:
        raise _unusable(path, error, there)
    return path


def check_machine(mountpoint: StrPath, options: MountOptions) -> None:
    """Whether this machine lets this user mount so: what can be known before anything is made.

    Raises UNSUPPORTED, DENIED or NOT_PERMITTED, as `mount` would.
    """
    if os.geteuid() == 0:
        os.close(_open_device())
        return
    path = _resolve(mountpoint)
    _find_helper()
    if not os.path.exists(DEVICE):
        raise FsError(Fault.UNSUPPORTED, _no_fuse(f"{DEVICE} is missing"))
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        raise FsError(
            Fault.DENIED,
            f"no permission to open {DEVICE}; let users open it with: chmod 666 {DEVICE}",
        )
    if not os.access(path, os.W_OK):
        raise FsError(
            Fault.NOT_PERMITTED,
            f"no write access to {path}, which {_HELPER} asks for: mount on a directory of yours",
        )
    if options.allow_other and not _others_allowed():
        raise FsError(
            Fault.NOT_PERMITTED,
            f"allow_other is not allowed to users on this machine: mount without it, or let root "
            f"add the line user_allow_other to {_CONFIGURATION}",
        )


def find_mount(mountpoint: StrPath, source: StrPath | None = None) -> MountInfo | None:
    """What is mounted exactly on `mountpoint`, the topmost if there are several.

    With `source`: the topmost mount of ours with that source.  Never asks the mounted filesystem,
    so it works when that hangs.
    """
    path = _resolve(mountpoint)
    table = parse_mountinfo(Path("/proc/self/mountinfo").read_bytes())
    for info in reversed(table):
        if info.mountpoint != path:
            continue
        if source is None or (info.ours and info.source == os.fspath(source)):
            return info
    return None


def set_readahead(mountpoint: StrPath, kib: int) -> bool:
    """Say how far the kernel reads ahead on this mount.  False: not possible, as without root."""
    info = find_mount(mountpoint)
    if info is None:
        return False
    try:
        Path(f"/sys/class/bdi/{info.device}/read_ahead_kb").write_text(str(kib))
    except OSError:
        return False
    return True


# -- what is there


def parse_mountinfo(table: bytes) -> list[MountInfo]:
    """The mount table from the text of /proc/self/mountinfo.

    >>> line = rb"36 35 0:31 / /mnt/my\\040data rw,relatime shared:1 - fuse.mountfs /home/x rw"
    >>> parse_mountinfo(line)[0].mountpoint
    '/mnt/my data'
    """
    return [_parse_line(line) for line in table.splitlines()]


def _parse_line(line: bytes) -> MountInfo:
    # Between the options and "-" stand any number of fields of the form tag[:value].
    before, _, after = line.partition(b" - ")
    mount_id, _, device, _, mountpoint, options = before.split(b" ")[:6]
    fstype, source = after.split(b" ")[:2]
    return MountInfo(
        mount_id=int(mount_id),
        device=device.decode(),
        mountpoint=_unescape(mountpoint),
        options=_unescape(options),
        fstype=_unescape(fstype),
        source=_unescape(source),
    )


def _unescape(field: bytes) -> str:
    r"""The kernel writes blank, tab, newline and backslash as \ooo."""
    plain = re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), field)
    return os.fsdecode(plain)


def _resolve(mountpoint: StrPath) -> str:
    """The path as the mount table has it, without asking what is mounted there: it may hang."""
    path = os.path.join(os.getcwd(), os.fspath(mountpoint).rstrip("/") or "/")
    for _ in range(_LINKS_MAX):
        parent, name = os.path.split(path)
        if name in ("", ".", ".."):
            break
        path = os.path.join(os.path.realpath(parent), name)
        try:
            target = os.readlink(path)  # the kernel knows that the root of a mount is no link
        except OSError:
            return path
        path = os.path.join(os.path.dirname(path), target.rstrip("/") or "/")
    return os.path.realpath(path)


def _error_of(path: str) -> OSError | None:
    """Why `path` cannot be mounted on, or None.  Asks in a thread: a stuck daemon would hang it."""
    found: list[OSError | None] = []

    def ask() -> None:
        try:
            mode = os.stat(path).st_mode
            os.statvfs(path)  # the kernel may remember attributes of a daemon that is gone
        except OSError as error:
            found.append(error)
        else:
            found.append(None if stat.S_ISDIR(mode) else NotADirectoryError(errno.ENOTDIR, path))

    thread = threading.Thread(target=ask, name="what is there", daemon=True)
    thread.start()
    thread.join(ANSWER_S)
    return found[0] if found else TimeoutError(errno.ETIMEDOUT, path)


def _held(info: MountInfo) -> str:
    return (
        f"{info.mountpoint} is already a mount of {info.source}; "
        f"to mount it anew, unmount it first: umount {info.mountpoint}"
    )


def _unusable(path: str, error: OSError, there: MountInfo | None) -> FsError:
    if isinstance(error, FileNotFoundError):
        return FsError(
            Fault.NOT_FOUND, f"mount point {path} does not exist; create it with: mkdir -p {path}"
        )
    if isinstance(error, NotADirectoryError):
        return FsError(Fault.NOT_DIRECTORY, f"mount point {path} is not a directory")
    if isinstance(error, PermissionError):
        return FsError(Fault.DENIED, f"no permission to look at the mount point {path}")
    if there is not None and error.errno in (errno.ENOTCONN, errno.ETIMEDOUT):
        state = "dead" if error.errno == errno.ENOTCONN else "not answering"
        return FsError(
            Fault.BUSY,
            f"{path} is a mount of type {there.fstype} that is {state}; "
            f"detach it first with: umount -l {path}",
        )
    if error.errno == errno.ENAMETOOLONG:
        return FsError(
            Fault.NAME_TOO_LONG, f"mount point {path}: the name is too long; choose a shorter one"
        )
    return disk_error(error, f"looking at the mount point {path}")


# -- as root


_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p,) * 3 + (ctypes.c_ulong, ctypes.c_char_p)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)


def _mount_as_root(path: str, source: str, options: MountOptions) -> int:
    fd = _open_device()
    others = options.allow_other is not False  # root's mounts are for all, as on a local disk
    data = [
        f"fd={fd}",
        f"rootmode={stat.S_IFDIR:o}",
        f"user_id={os.getuid()}",
        f"group_id={os.getgid()}",
        "default_permissions",
        *(["allow_other"] if others else []),
    ]
    failed = _libc.mount(
        os.fsencode(source),
        os.fsencode(path),
        FSTYPE.encode(),
        options.ms_flags,
        ",".join(data).encode(),
    )
    if failed:
        number = ctypes.get_errno()
        os.close(fd)
        raise _mount_error(path, number)
    return fd


def _open_device() -> int:
    try:
        return os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise FsError(Fault.UNSUPPORTED, _no_fuse(f"{DEVICE} is missing")) from None
    except OSError as error:
        if error.errno in (errno.ENODEV, errno.ENXIO):
            raise FsError(Fault.UNSUPPORTED, _no_fuse("the kernel has no FUSE")) from None
        if isinstance(error, PermissionError):
            raise FsError(
                Fault.NOT_PERMITTED,
                f"no permission to open {DEVICE}; in a container, it needs --device {DEVICE}",
            ) from None
        raise disk_error(error, f"opening {DEVICE}") from error


def _no_fuse(what: str) -> str:
    return (
        f"{what}: load the kernel's module with: modprobe fuse "
        f"(in a container, start it with --device {DEVICE})"
    )


def _mount_error(path: str, number: int) -> FsError:
    if number == errno.EPERM:
        return FsError(
            Fault.NOT_PERMITTED,
            f"mounting {path} is not permitted; in a container, it needs --cap-add SYS_ADMIN",
        )
    if number == errno.ENODEV:
        return FsError(Fault.UNSUPPORTED, _no_fuse("the kernel has no FUSE"))
    return disk_error(OSError(number, os.strerror(number)), f"mounting {path}")


def _umount2(path: str, lazy: bool) -> None:
    how = _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0)
    if _libc.umount2(os.fsencode(path), how) == 0:
        return
    number = ctypes.get_errno()
    if number == errno.EBUSY:
        raise FsError(Fault.BUSY, f"{path} is in use; see by whom with: fuser -vm {path}")
    if number in (errno.EINVAL, errno.ENOENT):
        raise FsError(Fault.INVALID, f"nothing is mounted on {path}")
    if number == errno.EPERM:
        raise FsError(Fault.NOT_PERMITTED, f"unmounting {path} is not permitted")
    raise disk_error(OSError(number, os.strerror(number)), f"unmounting {path}")


# -- by fusermount3


_HELPER_FLAGS: Final = {
    flags.MS_RDONLY: "ro",
    flags.MS_NOEXEC: "noexec",
    flags.MS_SYNCHRONOUS: "sync",
    flags.MS_DIRSYNC: "dirsync",
    flags.MS_NOATIME: "noatime",
}
"""The flags that every fusermount3 knows.  It sets nosuid and nodev by itself."""


def _mount_by_helper(path: str, source: str, options: MountOptions) -> int:
    asked = [
        "fsname=" + re.sub(r"([\\,])", r"\\\1", source),
        f"subtype={SUBTYPE}",
        "default_permissions",
        *(["allow_other"] if options.allow_other else []),
        *(name for flag, name in _HELPER_FLAGS.items() if options.ms_flags & flag),
    ]
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, its:
        _helper(path, ["-o", ",".join(asked)], its)
        its.close()  # so that there is an end to read if it sent nothing
        _, fds, _, _ = socket.recv_fds(ours, 1, 1)
    if not fds:
        raise FsError(
            Fault.DEVICE, f"{_HELPER} mounted {path} but sent no connection to the kernel"
        )
    os.set_inheritable(fds[0], False)
    os.set_blocking(fds[0], False)
    return fds[0]


def _helper(path: str, arguments: list[str], channel: socket.socket | None = None) -> None:
    """Run fusermount3; it sends the connection through `channel`."""
    program = _find_helper()
    environment = dict(os.environ, LC_ALL="C")
    fds = []
    if channel is not None:
        environment["_FUSE_COMMFD"] = str(channel.fileno())
        fds = [channel.fileno()]
    try:
        done = subprocess.run(
            [_HELPER, *arguments, "--", path],
            executable=program,
            env=environment,
            pass_fds=fds,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_HELPER_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise FsError(Fault.TIMED_OUT, f"{_HELPER} did not end within {_HELPER_S} s") from None
    if done.returncode != 0:
        raise _helper_error(path, done.stderr.decode(errors="replace").strip())


def _find_helper() -> str:
    program = shutil.which(_HELPER)
    if program is None:
        raise FsError(
            Fault.UNSUPPORTED,
            f"{_HELPER} is missing, which mounts for users that are not root; "
            "install it (on Debian and Ubuntu: apt install fuse3)",
        )
    return program


def _others_allowed() -> bool:
    """Whether users may mount with allow_other; if that cannot be read, fusermount3 will tell."""
    try:
        text = Path(_CONFIGURATION).read_text(errors="replace")
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return any(line.partition("#")[0].strip() == "user_allow_other" for line in text.splitlines())


_HELPER_SAYS: Final = (
    ("modprobe fuse", Fault.UNSUPPORTED),
    ("user_allow_other", Fault.NOT_PERMITTED),
    ("not owned by user", Fault.NOT_PERMITTED),
    ("no write access", Fault.NOT_PERMITTED),
    ("not permitted", Fault.NOT_PERMITTED),
    ("Permission denied", Fault.DENIED),
    ("busy", Fault.BUSY),
    ("too many FUSE", Fault.BUSY),
    ("not found in", Fault.INVALID),
    ("not mounted", Fault.INVALID),
)
"""fusermount3 has one exit status for everything, so its words tell."""


def _helper_error(path: str, said: str) -> FsError:
    sentence = said.splitlines()[-1] if said else f"{_HELPER} failed on {path} without saying why"
    if f"open {DEVICE}: Permission denied" in sentence:
        sentence += f"; let users open it with: chmod 666 {DEVICE}"
    if "open /etc/mtab: No such file" in sentence:  # as in a bare container
        sentence += "; make it with: ln -s ../proc/self/mounts /etc/mtab"
    faults = (fault for words, fault in _HELPER_SAYS if words in sentence)
    return FsError(next(faults, Fault.DEVICE), sentence)
