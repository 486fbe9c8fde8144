"""The home directory of an embedded node: where everything that it keeps is, and who holds it.

HOME/format.json    what made it, and its format; written last when a home is made
HOME/lock           locked by the process that has the home open, which also writes who it is
HOME/pid            the number of that process
HOME/control        a socket: status and statistics of the running node
HOME/meta/store/    LevelDB: the metadata as of the last checkpoint
HOME/meta/log/      the commands since
HOME/chunks/        volumes, and the index of their needles
"""

import errno
import fcntl
import hashlib
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

import msgspec

from mountfs.errors import Fault, FsError, disk_error

FORMAT = 4
NODE_MARK = "node"
"""A file that says that a node had the home last, and no mount: what a mount leaves in the log has
to be judged by the bytes that are there.
"""
JOINING = "joining"
"""A file with the name of a disk that is to be a node's."""
BEFORE = 1
"""The format that is brought to FORMAT when a home is mounted."""
LACKING_ROWS = (2, 3)
"""The formats before it was kept which slices are used, and before there were accounts.  The
metadata sees to it when it is opened; from then on programs that do not know of it must not touch
the home.
"""


class Format(msgspec.Struct, frozen=True):
    """What format.json says."""

    format: int
    id: str
    """32 hex digits that name this filesystem."""
    node: int = 1
    """Which of its machines this is the home of; 1 where there is one only."""
    disk: str = ""
    """Names this home, of all that the filesystem has; where it is empty, `id` does."""
    generation: int = 0
    """How often the cluster was recovered without a majority.  Who was left behind then is not of
    this cluster any more, whatever it believes.
    """
    roles: tuple[str, ...] = ("meta", "chunk")
    """What its node does, if it is the home of one; without the first, there is no metadata in it.
    """

    def require_metadata(self, path: Path) -> None:
        """Raises BAD_HOME for a home that has slices only."""
        if "meta" not in self.roles:
            raise FsError(
                Fault.BAD_HOME,
                f"{path} is the home of node {self.node} of cluster {self.id}, which keeps slices "
                "and has no metadata: only its cluster knows what they belong to.  Start it with: "
                f"mountfs node --home {path} --listen HOST",
            )

    @property
    def cluster(self) -> bytes:
        """What the machines of one generation call their cluster."""
        if not self.generation:
            return bytes.fromhex(self.id)
        name = f"{self.id} {self.generation}".encode()
        return hashlib.blake2b(name, digest_size=16).digest()


class Holder(msgspec.Struct, frozen=True):
    """Who has a home open."""

    pid: int
    mountpoint: str
    """Where it is mounted; or what has it open, if that is no mount, in words."""


class Home:
    """A home that is open and locked; use `open_home`."""

    def __init__(self, path: Path, lock_fd: int, format: Format) -> None:
        self.path = path
        self.format = format
        self._lock_fd = lock_fd

    @property
    def id(self) -> bytes:
        return bytes.fromhex(self.format.id)

    @property
    def disk(self) -> str:
        return self.format.disk or self.format.id

    @property
    def cluster(self) -> bytes:
        return self.format.cluster

    @property
    def is_new(self) -> bool:
        """Nothing was ever stored in it."""
        return not os.listdir(self.store) and not os.listdir(self.log)

    @property
    def store(self) -> Path:
        return self.path / "meta" / "store"

    @property
    def log(self) -> Path:
        return self.path / "meta" / "log"

    @property
    def chunks(self) -> Path:
        return self.path / "chunks"

    def hold(self, mountpoint: str) -> None:
        """Write down who we are, for those who find the home locked.  Raises NO_SPACE."""
        holder = msgspec.json.encode(Holder(os.getpid(), mountpoint))
        try:
            os.ftruncate(self._lock_fd, 0)
            os.pwrite(self._lock_fd, holder, 0)
            (self.path / "pid").write_text(f"{os.getpid()}\n")
        except OSError as error:
            raise _unopened(self.path, error) from error

    @property
    def is_of_before(self) -> bool:
        """Its log has to be brought to FORMAT; then call `brought_further`."""
        return self.format.format == BEFORE

    def brought_further(self) -> None:
        """What is in it is of FORMAT now.  Raises OSError."""
        self.write_format(msgspec.structs.replace(self.format, format=FORMAT))

    def write_format(self, format: Format) -> None:
        """Durably.  Raises OSError."""
        self.format = format
        _write_format(self.path, format)

    def close(self) -> None:
        """Let others have it."""
        os.ftruncate(self._lock_fd, 0)
        (self.path / "pid").unlink(missing_ok=True)
        os.close(self._lock_fd)


def open_home(path: Path, *, create: bool) -> Home:
    """Open and lock a home, which is made first if `create` and it is empty or missing.

    Raises FsError: BAD_HOME (not a home, newer or damaged format), NOT_FOUND, BUSY (with who holds
    it), DENIED, READ_ONLY, NO_SPACE.  Nothing is changed then.
    """
    try:
        return _open(path, create)
    except OSError as error:
        raise _unopened(path, error) from error


def make_home(path: Path, ask: Callable[[str], Format], fill: Callable[[Path], None]) -> None:
    """Make a home of a filesystem that exists elsewhere.

    `ask` is told a name for the disk, the same one again if it is interrupted, and says what the
    home is to be; `fill` puts into it what it must have from the start.  Raises as `open_home`, and
    EXISTS if it is a home already.
    """
    try:
        if (path / "format.json").exists():
            raise FsError(Fault.EXISTS, f"{path} is a home already")
        _refuse_unless_fresh(path, create=True)
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        joining = path / JOINING
        if not joining.exists():
            joining.write_text(uuid.uuid4().hex)
            sync_directory(path)
        format = ask(joining.read_text())
        for part in ("meta", "chunks"):
            shutil.rmtree(path / part, ignore_errors=True)
        _make(path)
        fill(path)
        _write_format(path, format)
        joining.unlink()
    except OSError as error:
        raise _unopened(path, error) from error


def read_format(path: Path) -> Format:
    """What kind of home this is.  Raises NOT_FOUND or BAD_HOME."""
    file = path / "format.json"
    try:
        format = msgspec.json.decode(file.read_bytes(), type=Format)
    except FileNotFoundError:
        raise FsError(Fault.NOT_FOUND, f"{path} is not a mountfs home: no format.json") from None
    except msgspec.DecodeError as error:
        raise FsError(
            Fault.BAD_HOME, f"{file} is damaged ({error}); restore it from a backup"
        ) from None
    if format.format not in (FORMAT, *LACKING_ROWS, BEFORE):
        raise FsError(
            Fault.BAD_HOME,
            f"{path} has format {format.format}, this mountfs reads format {FORMAT}: "
            "use the version of mountfs that wrote it, or a newer one",
        )
    if len(format.id) != 32:
        raise FsError(Fault.BAD_HOME, f"{file} is damaged: its id has not 32 digits")
    return format


def holder_of(path: Path) -> Holder | None:
    """Who has the home open now, if anybody."""
    try:
        fd = os.open(path / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read_holder(fd)
    else:
        return None
    finally:
        os.close(fd)


def _unopened(path: Path, error: OSError) -> FsError:
    if error.errno in (errno.EACCES, errno.EPERM):
        return FsError(
            Fault.DENIED, f"{path}: permission denied; run as its owner, or choose another home"
        )
    if error.errno == errno.ENAMETOOLONG:
        return FsError(
            Fault.NAME_TOO_LONG,
            f"{path}: the name is too long; choose a home with a shorter one: "
            "255 bytes at most between two slashes, and 4,000 in all",
        )
    return disk_error(error, str(path))


def _open(path: Path, create: bool) -> Home:
    if not (path / "format.json").exists():
        _refuse_unless_fresh(path, create)
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock_fd = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _busy(path, _read_holder(lock_fd)) from None
        if not (path / "format.json").exists():
            _make(path)
            _write_format(path, Format(FORMAT, uuid.uuid4().hex))
        home = Home(path, lock_fd, read_format(path))
        if home.format.format in LACKING_ROWS:
            home.brought_further()
        return home
    except BaseException:
        os.close(lock_fd)
        raise


def _refuse_unless_fresh(path: Path, create: bool) -> None:
    if path.exists() and not path.is_dir():
        raise FsError(Fault.BAD_HOME, f"{path} is not a directory")
    if path.exists() and (path / "meta" / "store" / "CURRENT").exists():
        raise FsError(
            Fault.BAD_HOME,
            f"{path}/format.json is missing, but there is metadata: restore the file",
        )
    # A lock file alone: somebody else is just making it, or was interrupted then.
    unfinished = {"lock", "meta", "chunks", "format.json.new", "pid", JOINING}
    if path.exists() and (found := sorted(set(os.listdir(path)) - unfinished)):
        raise FsError(
            Fault.BAD_HOME,
            f"{path} is not a mountfs home, and not empty (it has {found[0]!r}): "
            "name another directory",
        )
    if not create:
        raise FsError(Fault.NOT_FOUND, f"{path}: there is no home")


def _make(path: Path) -> None:
    """Make the directories of an empty home; `_write_format`, which makes it one, comes last."""
    for part in ("meta/store", "meta/log", "chunks/volumes", "chunks/index"):
        (path / part).mkdir(parents=True, exist_ok=True, mode=0o700)
    for part in ("meta", "chunks", "."):
        sync_directory(path / part)


def _write_format(path: Path, format: Format) -> None:
    """Durably, and in one step."""
    new = path / "format.json.new"
    with open(new, "wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(format)) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    os.rename(new, path / "format.json")
    sync_directory(path)


def sync_directory(path: Path) -> None:
    """What was made, renamed and removed in it is on disk.  Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _read_holder(fd: int) -> Holder | None:
    try:
        return msgspec.json.decode(os.pread(fd, 4096, 0), type=Holder)
    except msgspec.DecodeError:
        return None


def _busy(path: Path, holder: Holder | None) -> FsError:
    who = "another process that is just starting"
    if holder is not None:
        who = f"process {holder.pid}"
        if holder.mountpoint.startswith("/"):
            who += f", mounted at {holder.mountpoint}"
        elif holder.mountpoint:
            who += f", {holder.mountpoint}"
    return FsError(Fault.BUSY, f"{path} is in use by {who}; end that first, or use another home")
