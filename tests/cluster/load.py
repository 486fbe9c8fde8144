"""A program that works in a directory until its filesystem dies under it, and knows exactly what
has to be there afterwards.

    load.py SEED DIRECTORY JOURNAL

It ends between two calls at SIGTERM, too, and then has closed everything.
It begins with the worlds in the JOURNAL, if there is one, and leaves there: what it knows for sure
(`before`), the same with the call that was under way when the filesystem died (`after`), and what
went wrong before that.  The journal is on another filesystem.
"""

import contextlib
import copy
import ctypes
import errno
import os
import pickle
import random
import signal
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

DEAD: Final = (errno.ENOTCONN, errno.ECONNABORTED)
"""What a mount answers whose daemon is gone."""
FILES_MAX: Final = 60
HANDLES_MAX: Final = 6
ATTRIBUTE: Final = "user.load"
REQUEST_BYTES_MIN: Final = 128 << 10
"""A smaller write is one request."""
_AT_FDCWD: Final = -100
_EXCHANGE: Final = 2
_PUNCH: Final = 1 | 2
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


@dataclass
class Thing:
    """An inode.  What its bytes may be: `sure`, with any of `maybe` laid over it in their order."""

    kind: int = stat.S_IFREG
    mode: int = 0o644
    target: str = ""
    attribute: bytes | None = None
    mtime: int | None = None
    """Nanoseconds; None: not known."""
    sure: bytearray = field(default_factory=bytearray)
    maybe: list[tuple[int, bytes]] = field(default_factory=list)
    """Writes whose calls have returned, but which nobody has closed, synced or renamed since."""

    def view(self) -> bytearray:
        """What a read gives as long as nobody dies."""
        data = bytearray(self.sure)
        for offset, new in self.maybe:
            _lay(data, offset, new)
        return data

    def settle(self) -> None:
        self.sure, self.maybe = self.view(), []

    def truncate(self, size: int) -> None:
        del self.sure[size:]
        self.sure.extend(bytes(size - len(self.sure)))
        self.maybe = [(offset, new[: size - offset]) for offset, new in self.maybe if offset < size]

    def allows(self, found: bytes) -> str:
        """Why these bytes cannot be; empty if they can."""
        size = len(self.sure)
        if len(found) != size and not any(
            size < len(found) and _may_end(offset, offset + len(new), len(found))
            for offset, new in self.maybe
        ):
            ends = [offset + len(new) for offset, new in self.maybe]
            return f"has {len(found)} bytes, should have {size} (or one of {ends})"
        base = self.sure.ljust(len(found), b"\0")
        if found == base:
            return ""
        wrong = [at for at in _differences(found, base) if not self._maybe_at(at, found[at])]
        if not wrong:
            return ""
        return (
            f"{len(wrong)} wrong bytes from {wrong[0]} to {wrong[-1]} of {len(found)}: "
            f"{found[wrong[0] :][:8].hex()} instead of {bytes(base[wrong[0] :][:8]).hex()}"
        )

    def _maybe_at(self, at: int, byte: int) -> bool:
        return any(
            offset <= at < offset + len(new) and new[at - offset] == byte
            for offset, new in self.maybe
        )


def _may_end(start: int, stop: int, at: int) -> bool:
    """Whether a write may be there up to `at` only: the kernel splits large ones."""
    return at == stop or (start < at < stop and stop - start > REQUEST_BYTES_MIN)


def _lay(data: bytearray, offset: int, new: bytes) -> None:
    data.extend(bytes(max(offset + len(new) - len(data), 0)))
    data[offset : offset + len(new)] = new


def _differences(one: bytes, other: bytes | bytearray) -> list[int]:
    step = 4096
    return [
        at
        for low in range(0, len(one), step)
        if one[low : low + step] != other[low : low + step]
        for at in range(low, min(low + step, len(one)))
        if one[at] != other[at]
    ]


@dataclass
class World:
    """Names, relative to the directory, and what they lead to."""

    names: dict[str, int] = field(default_factory=dict)
    things: dict[int, Thing] = field(default_factory=dict)
    next: int = 1

    def add(self, name: str, thing: Thing) -> int:
        number = self.next
        self.next += 1
        self.things[number] = thing
        self.names[name] = number
        return number

    def of(self, kind: int) -> list[str]:
        return [name for name, number in self.names.items() if self.things[number].kind == kind]

    def below(self, name: str) -> list[str]:
        return [other for other in self.names if other.startswith(f"{name}/")]

    def rename(self, old: str, new: str) -> None:
        self.names.pop(new, None)
        number = self.names[new] = self.names.pop(old)
        for name in self.below(old):
            self.names[new + name.removeprefix(old)] = self.names.pop(name)
        self.things[number].settle()

    def exchange(self, one: str, other: str) -> None:
        self.names[one], self.names[other] = self.names[other], self.names[one]

    def forget_nameless(self) -> None:
        used = set(self.names.values())
        self.things = {number: thing for number, thing in self.things.items() if number in used}


@dataclass
class Journal:
    before: World
    after: World
    troubles: list[str]
    calls: int = 0
    last: str = ""


class Handle(NamedTuple):
    fd: int
    number: int


class Died(Exception):
    pass


class Load:
    def __init__(self, seed: int, directory: Path, world: World) -> None:
        self.random = random.Random(seed)
        self.top = directory
        self.world = world
        self.after = world
        self.handles: list[Handle] = []
        self.troubles: list[str] = []
        self.calls = 0
        self.last = ""
        self.ended = False

    def run(self) -> None:
        with contextlib.suppress(Died):
            while not self.ended:
                self.step()
            for handle in list(self.handles):
                self.close_one(handle)

    def end(self) -> None:
        self.ended = True

    def step(self) -> None:
        steps: list[tuple[int, Callable[[], None]]] = [
            (14, self.create), (4, self.open), (30, self.write), (6, self.append), (12, self.close),
            (4, self.fsync), (2, self.truncate), (3, self.mkdir), (1, self.rmdir), (5, self.rename),
            (1, self.exchange), (5, self.unlink), (2, self.link), (1, self.symlink),
            (2, self.chmod), (2, self.set_attribute), (1, self.set_mtime), (2, self.punch),
            (2, self.copy), (3, self.read), (1, self.sync_directory), (1, self.rename_directory),
        ]  # fmt: skip
        weights = [weight for weight, _ in steps]
        self.random.choices([step for _, step in steps], weights)[0]()

    def call(self, what: str, act: Callable[[], Any], effect: Callable[[World], None]) -> Any:
        """Do something; its effect is in `before` once it has returned."""
        self.calls += 1
        self.last = what
        try:
            result = act()
        except OSError as error:
            if error.errno not in DEAD:
                self.troubles.append(f"{what}: {error}")
            self.after = copy.deepcopy(self.world)
            effect(self.after)
            raise Died from error
        effect(self.world)
        return result

    # -- choices

    def path(self, name: str) -> str:
        return str(self.top / name)

    def new_name(self) -> str:
        directory = self.random.choice(["", *self.world.of(stat.S_IFDIR)])
        name = f"{self.random.choice('abcdefgh')}{self.random.randrange(1000)}"
        full = f"{directory}/{name}" if directory else name
        return full if full not in self.world.names else self.new_name()

    def some(self, kind: int = stat.S_IFREG) -> str | None:
        names = self.world.of(kind)
        return self.random.choice(names) if names else None

    def handle(self) -> Handle | None:
        return self.random.choice(self.handles) if self.handles else None

    def data(self) -> bytes:
        largest = self.random.choices(
            [200, 4096, 5000, 70_000, 300_000, 5 << 20], [30, 30, 15, 15, 9, 1]
        )
        return self.random.randbytes(self.random.randint(1, largest[0]))

    # -- calls

    def create(self) -> None:
        if len(self.world.names) > FILES_MAX:
            self.unlink()
            return
        name, mode = self.new_name(), self.random.choice([0o600, 0o644, 0o640])
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR
        fd = self.call(
            f"create {name}",
            lambda: os.open(self.path(name), flags, mode),
            lambda world: void(world.add(name, Thing(mode=mode))),
        )
        self.handles.append(Handle(fd, self.world.names[name]))
        if self.random.random() < 0.8:
            self.write_to(self.handles[-1], 0, self.data())
        if self.random.random() < 0.6 or len(self.handles) > HANDLES_MAX:
            self.close_one(self.handles[-1])

    def open(self) -> None:
        name = self.some()
        if name is None or len(self.handles) > HANDLES_MAX:
            self.close()
            return
        fd = self.call(f"open {name}", lambda: os.open(self.path(name), os.O_RDWR), lambda _: None)
        self.handles.append(Handle(fd, self.world.names[name]))

    def write(self) -> None:
        handle = self.handle()
        if handle is None:
            self.open()
            return
        size = len(self.world.things[handle.number].view())
        offset = self.random.randint(0, min(size + 10_000, 6 << 20))
        self.write_to(handle, offset, self.data())

    def append(self) -> None:
        handle = self.handle()
        if handle is not None:
            size = len(self.world.things[handle.number].view())
            if size < 6 << 20:
                self.write_to(handle, size, self.data())

    def write_to(self, handle: Handle, offset: int, data: bytes) -> None:
        def effect(world: World) -> None:
            thing = world.things[handle.number]
            thing.maybe.append((offset, data))
            thing.mtime = None

        def act() -> None:
            written = 0
            while written < len(data):  # fewer are written if the daemon dies in between
                written += os.pwrite(handle.fd, data[written:], offset + written)

        self.call(f"write {handle.number} {offset}+{len(data)}", act, effect)

    def close(self) -> None:
        handle = self.handle()
        if handle is not None:
            self.close_one(handle)

    def close_one(self, handle: Handle) -> None:
        self.handles.remove(handle)
        self.call(
            f"close {handle.number}",
            lambda: os.close(handle.fd),
            lambda world: world.things[handle.number].settle(),
        )

    def fsync(self) -> None:
        handle = self.handle()
        if handle is not None:
            self.call(
                f"fsync {handle.number}",
                lambda: self.random.choice([os.fsync, os.fdatasync])(handle.fd),
                lambda world: world.things[handle.number].settle(),
            )

    def sync_directory(self) -> None:
        def act() -> None:
            fd = os.open(self.top, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

        self.call("fsync .", act, lambda _: None)

    def truncate(self) -> None:
        name = self.some()
        if name is None:
            return
        size = self.random.choice(
            [0, self.random.randrange(20_000), self.random.randrange(400_000)]
        )

        def effect(world: World) -> None:
            thing = world.things[world.names[name]]
            thing.truncate(size)
            thing.mtime = None

        self.call(f"truncate {name} {size}", lambda: os.truncate(self.path(name), size), effect)

    def mkdir(self) -> None:
        if len(self.world.of(stat.S_IFDIR)) < 12:
            name = self.new_name()
            self.call(
                f"mkdir {name}",
                lambda: os.mkdir(self.path(name), 0o755),
                lambda world: void(world.add(name, Thing(stat.S_IFDIR, 0o755))),
            )

    def rmdir(self) -> None:
        empty = [name for name in self.world.of(stat.S_IFDIR) if not self.world.below(name)]
        if empty:
            name = self.random.choice(empty)
            self.call(
                f"rmdir {name}",
                lambda: os.rmdir(self.path(name)),
                lambda world: void(world.names.pop(name)),
            )

    def rename(self) -> None:
        old = self.some()
        if old is None:
            return
        over = self.some() if self.random.random() < 0.4 else None
        new = over or self.new_name()
        if self.world.names.get(new) != self.world.names[old]:  # of two links nothing is renamed
            self.call(
                f"rename {old} {new}",
                lambda: os.rename(self.path(old), self.path(new)),
                lambda world: world.rename(old, new),
            )

    def rename_directory(self) -> None:
        old = self.some(stat.S_IFDIR)
        new = self.new_name()
        if old is not None and not f"{new}/".startswith(f"{old}/"):
            self.call(
                f"rename {old} {new}",
                lambda: os.rename(self.path(old), self.path(new)),
                lambda world: world.rename(old, new),
            )

    def exchange(self) -> None:
        one, other = self.some(), self.some()
        if one is None or other is None or self.world.names[one] == self.world.names[other]:
            return
        names = os.fsencode(self.path(one)), os.fsencode(self.path(other))

        def act() -> None:
            if _libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _EXCHANGE):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

        self.call(f"exchange {one} {other}", act, lambda world: world.exchange(one, other))

    def unlink(self) -> None:
        name = self.some(self.random.choice([stat.S_IFREG] * 5 + [stat.S_IFLNK]))
        if name is not None:
            self.call(
                f"unlink {name}",
                lambda: os.unlink(self.path(name)),
                lambda world: void(world.names.pop(name)),
            )

    def link(self) -> None:
        old, new = self.some(), self.new_name()
        if old is None or len(self.world.names) > FILES_MAX:
            return

        def effect(world: World) -> None:
            world.names[new] = world.names[old]

        self.call(f"link {old} {new}", lambda: os.link(self.path(old), self.path(new)), effect)

    def symlink(self) -> None:
        if len(self.world.names) <= FILES_MAX:
            name, target = self.new_name(), "x" * self.random.randint(1, 300)
            self.call(
                f"symlink {name}",
                lambda: os.symlink(target, self.path(name)),
                lambda world: void(world.add(name, Thing(stat.S_IFLNK, 0o777, target=target))),
            )

    def change(self, what: str, act: Callable[[str], None], **fields: Any) -> None:
        name = self.some()
        if name is None:
            return

        def effect(world: World) -> None:
            for key, value in fields.items():
                setattr(world.things[world.names[name]], key, value)

        self.call(f"{what} {name}", lambda: act(self.path(name)), effect)

    def chmod(self) -> None:
        mode = self.random.choice([0o600, 0o644, 0o755, 0o700])
        self.change("chmod", lambda path: os.chmod(path, mode), mode=mode)

    def set_attribute(self) -> None:
        value = self.random.randbytes(self.random.choice([1, 20, 3000]))
        self.change("xattr", lambda path: os.setxattr(path, ATTRIBUTE, value), attribute=value)

    def set_mtime(self) -> None:
        when = self.random.randrange(10**18)
        self.change("utime", lambda path: os.utime(path, ns=(when, when)), mtime=when)

    def punch(self) -> None:
        handle = self.handle()
        if handle is None:
            return
        size = len(self.world.things[handle.number].view())
        if size < 2:
            return
        start = self.random.randrange(size - 1)
        length = self.random.randint(1, size - start)

        def act() -> None:
            if _libc.fallocate(handle.fd, _PUNCH, start, length):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

        def effect(world: World) -> None:
            thing = world.things[handle.number]
            thing.maybe.append((start, bytes(length)))
            thing.mtime = None

        self.call(f"punch {handle.number} {start}+{length}", act, effect)

    def copy(self) -> None:
        source, target = self.handle(), self.handle()
        if source is None or target is None or source.number == target.number:
            return
        have = self.world.things[source.number].view()
        if not have:
            return
        start = self.random.randrange(len(have))
        length = self.random.randint(1, len(have) - start)
        to = self.random.choice([start, self.random.randrange(100_000)])
        done = [length]

        def act() -> None:
            done[0] = os.copy_file_range(source.fd, target.fd, length, start, to)

        def effect(world: World) -> None:
            thing = world.things[target.number]
            thing.maybe.append((to, bytes(have[start : start + done[0]])))
            thing.mtime = None

        self.call(f"copy {source.number} {start}+{length} {target.number} {to}", act, effect)

    def read(self) -> None:
        handle = self.handle()
        if handle is not None:
            expected = self.world.things[handle.number].view()
            found = self.call(
                f"read {handle.number}",
                lambda: _read(handle.fd, len(expected)),
                lambda _: None,
            )
            if found != expected:
                self.troubles.append(
                    f"read of {handle.number}: {Thing(sure=expected).allows(found)}"
                )


def _read(fd: int, size: int) -> bytes:
    """All of a file that should have so many bytes."""
    data = os.pread(fd, size + 1, 0)
    while size - len(data) > 0:  # fewer are read if the daemon dies in between
        more = os.pread(fd, size + 1 - len(data), len(data))
        if not more:
            break
        data += more
    return data


def void(_: Any) -> None:
    """An effect that has a value nobody wants."""


# -- afterwards


def check(world: World, top: Path) -> list[str]:
    """What is not as it has to be below `top`."""
    troubles = []
    found = {}
    for directory, directories, files in os.walk(top):
        for name in (*directories, *files):
            path = Path(directory, name)
            found[str(path.relative_to(top))] = path
    for name in world.names.keys() - found.keys():
        troubles.append(f"{name} is missing")
    for name in found.keys() - world.names.keys():
        troubles.append(f"{name} should not be there")
    links: dict[int, list[os.stat_result]] = {}
    for name in sorted(world.names.keys() & found.keys()):
        number = world.names[name]
        thing = world.things[number]
        have = found[name].lstat()
        links.setdefault(number, []).append(have)
        troubles += [f"{name}: {trouble}" for trouble in _compare(thing, have, found[name])]
    for number, stats in links.items():
        if len({have.st_ino for have in stats}) != 1:
            troubles.append(f"names of file {number} lead to different inodes")
        if world.things[number].kind == stat.S_IFREG and stats[0].st_nlink != len(stats):
            troubles.append(f"file {number}: nlink {stats[0].st_nlink}, has {len(stats)} names")
    return troubles


def _compare(thing: Thing, have: os.stat_result, path: Path) -> list[str]:
    if stat.S_IFMT(have.st_mode) != thing.kind:
        return [f"has type {stat.S_IFMT(have.st_mode):o}"]
    if thing.kind == stat.S_IFLNK:
        return [] if os.readlink(path) == thing.target else ["has another target"]
    troubles = []
    if stat.S_IMODE(have.st_mode) != thing.mode:
        troubles.append(f"has mode {have.st_mode:o}, should have {thing.mode:o}")
    if thing.kind != stat.S_IFREG:
        return troubles
    try:
        attribute: bytes | None = os.getxattr(path, ATTRIBUTE)
    except OSError as error:
        attribute = None
        if error.errno != errno.ENODATA:
            troubles.append(f"its attribute: {error}")
    if attribute != thing.attribute:
        troubles.append("has another attribute")
    if thing.mtime is not None and have.st_mtime_ns != thing.mtime:
        troubles.append(f"has mtime {have.st_mtime_ns}, should have {thing.mtime}")
    try:
        data = path.read_bytes()
    except OSError as error:
        return [*troubles, f"cannot be read: {error}"]
    if len(data) != have.st_size:
        troubles.append(f"has size {have.st_size}, but {len(data)} bytes")
    wrong = thing.allows(data)
    return [*troubles, wrong] if wrong else troubles


def adopt(world: World, top: Path) -> None:
    """What was uncertain is certain now: it is what was found."""
    world.forget_nameless()
    for name, number in world.names.items():
        thing = world.things[number]
        if thing.kind == stat.S_IFREG and thing.maybe:
            thing.sure, thing.maybe = bytearray((top / name).read_bytes()), []


def read_journal(path: Path) -> Journal:
    journal = pickle.loads(path.read_bytes())
    assert isinstance(journal, Journal)
    return journal


def main(seed: int, directory: Path, path: Path) -> None:
    world = read_journal(path).before if path.exists() else World()
    load = Load(seed, directory, world)
    signal.signal(signal.SIGTERM, lambda *_: load.end())
    load.run()
    journal = Journal(load.world, load.after, load.troubles, load.calls, load.last)
    path.write_bytes(pickle.dumps(journal))


if __name__ == "__main__":
    sys.modules["load"] = sys.modules["__main__"]  # what is pickled is `load.World`
    World.__module__ = Thing.__module__ = Journal.__module__ = "load"
    main(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
