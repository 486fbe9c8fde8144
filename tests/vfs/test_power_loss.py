"""The embedded node on a disk that loses power: whatever was not synced may be there or not, page
by page, name by name.  What was promised is there, and the rest is a prefix of what was done.

Everything is the real thing but the two LevelDB stores, whose place a `MemoryStore` takes (LevelDB
syncs where nobody sees it), the threads and the clock.  So a seed says all that happens.
"""

import copy
import dataclasses
import os
import random
import shutil
import stat
import sys
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import trio
import trio.testing

from mountfs.chunks.config import ChunkConfig
from mountfs.kv.memory import MemoryStore
from mountfs.meta import keys
from mountfs.meta.invariants import violations
from mountfs.meta.ops.setattr import SetAttr
from mountfs.meta.records import ino_of, mode_of, unpack_slice
from mountfs.types import KIB, MIB, ROOT, Cred, Ino
from mountfs.vfs.embedded import EmbeddedNode, embedded_node
from mountfs.vfs.filesystem import Filesystem
from mountfs.vfs.handles import Handle

sys.path.insert(0, str(Path(__file__).parent.parent / "cluster"))  # where the model of files is

from load import Thing, World, void

PAGE = 4096
CRED = Cred(0, 0, (), True)
SEEDS = int(os.environ.get("MOUNTFS_POWER_SEEDS", "12"))
LIVES = 4
"""Losses of power one after the other."""
SMALL = dataclasses.replace(
    ChunkConfig(), volume_bytes=256 * KIB, preallocate_bytes=32 * KIB, garbage_ratio=0.2,
    pending_needles_max=64, pending_needles_min=4, heads_max=16, open_files_max=4,
)  # fmt: skip


# -- the disk


@dataclasses.dataclass
class Image:
    """What a disk has when the power is back."""

    directories: list[str]
    files: dict[str, bytes]
    stores: dict[str, MemoryStore]

    def write(self, top: Path) -> None:
        for name in self.directories:
            (top / name).mkdir(exist_ok=True, mode=0o700)
        for name, data in self.files.items():
            (top / name).write_bytes(data)


class Disk:
    """Knows what below `top` has been synced, and what of the rest is left when the power goes."""

    def __init__(self, top: Path, image: Image, chance: random.Random) -> None:
        self.top = top
        self.chance = chance
        self.stores = image.stores
        image.write(top)
        self.synced: dict[int, bytes] = {}
        """Content of files as of their last sync, by inode."""
        self.names: dict[str, dict[str, int]] = {}
        """Entries of directories as of their last sync."""
        for directory, _, files in os.walk(top):
            self._sync_directory(Path(directory))
            for name in files:
                path = Path(directory, name)
                self.synced[path.stat().st_ino] = path.read_bytes()
        self.countdown = -1
        """The power goes when this many more things have happened to the disk; negative: never."""
        self.on_loss: Callable[[], None] = lambda: None
        self.lost: Image | None = None
        self.last = ""

    def event(self, what: str) -> None:
        self.last = what
        if self.countdown == 0 and self.lost is None:
            self.lose_power()
        self.countdown -= 1

    def lose_power(self) -> None:
        """From here on nothing that happens counts."""
        keep = self.chance.choice([0.0, 0.1, 0.5, 0.9, 1.0])
        self.on_loss()
        self.lost = self._left(lambda: self.chance.random() < keep)

    def _left(self, keep: Callable[[], bool]) -> Image:
        files: dict[str, bytes] = {}
        directories = []
        open_now: dict[int, bytes] = {}
        for directory, _, names in os.walk(self.top):
            for name in names:
                path = Path(directory, name)
                if stat.S_ISREG(path.stat().st_mode):
                    open_now[path.stat().st_ino] = path.read_bytes()
        for directory, _, _ in os.walk(self.top):
            relative = str(Path(directory).relative_to(self.top))
            directories.append(relative)
            now = {entry.name: entry.inode() for entry in os.scandir(directory) if entry.is_file()}
            before = self.names.get(relative, {})
            for name in sorted(now.keys() | before.keys()):
                inode = now.get(name) if keep() else before.get(name)
                if inode is not None:
                    old = self.synced.get(inode, b"")
                    data = self._pages(old, open_now.get(inode, old), keep)
                    files[f"{relative}/{name}"] = data
        stores = {}
        for name, store in self.stores.items():
            stores[name] = copy.deepcopy(store)
            stores[name].crash(self.chance.randint(0, store.unsynced_batches))
        return Image(directories, files, stores)

    def _pages(self, old: bytes, new: bytes, keep: Callable[[], bool]) -> bytes:
        if len(new) != len(old) and not keep():
            new = new[: len(old)].ljust(len(old), b"\0")  # the size did not make it
        pages = []
        for start in range(0, len(new), PAGE):
            before, after = old[start : start + PAGE], new[start : start + PAGE]
            before = before[: len(after)].ljust(len(after), b"\0")
            pages.append(after if before == after or keep() else before)
        return b"".join(pages)

    def _sync(self, fd: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        self.event(f"before sync of {path.name}")
        if path.is_dir():
            self._sync_directory(path)
        elif path.is_relative_to(self.top):
            self.synced[path.stat().st_ino] = path.read_bytes()
        self.event(f"after sync of {path.name}")

    def _sync_directory(self, path: Path) -> None:
        self.names[str(path.relative_to(self.top))] = {
            entry.name: entry.inode() for entry in os.scandir(path) if entry.is_file()
        }

    def store(self, path: Path, **_: Any) -> MemoryStore:
        """In place of LevelStore."""
        return self.stores.setdefault(str(path.relative_to(self.top)), _Store(self))

    @contextmanager
    def watch(self) -> Iterator[None]:
        with ExitStack() as stack:
            for name in ("fsync", "fdatasync"):
                stack.enter_context(mock.patch.object(os, name, self._sync))
            for name in ("pwrite", "pwritev", "rename", "unlink", "ftruncate"):
                stack.enter_context(mock.patch.object(os, name, self._watched(name)))
            yield

    def _watched(self, name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self.event(f"before {name}")
            return real(*args, **kwargs)

        return call


class _Store(MemoryStore):
    def __init__(self, disk: Disk) -> None:
        super().__init__()
        self.disk = disk

    def __deepcopy__(self, memo: Any) -> "_Store":
        other = _Store(self.disk)
        other._rows, other._keys = dict(self._rows), list(self._keys)
        other._undo = [dict(undo) for undo in self._undo]
        return other

    def write(self, changes: Any, *, sync: bool) -> None:
        self.disk.event("before a batch")
        super().write(changes, sync=sync)
        self.disk.event("after a batch")


# -- what is done


class Life:
    """From one opening of the home to the next loss of power."""

    def __init__(self, node: EmbeddedNode, world: World, chance: random.Random) -> None:
        self.fs: Filesystem = node.filesystem
        self.first = world
        self.world = copy.deepcopy(world)
        self.chance = chance
        self.done: list[tuple[str, Callable[[World], None]]] = []
        """What was begun, in its order, and its effect."""
        self.durable = 0
        """So many of it are known to be durable."""
        self.open: list[tuple[Handle, int]] = []
        self.taken = (0, 0)
        """When the power went: (durable, begun) of what was done."""

    async def step(self) -> None:
        steps = [
            (8, self.create), (10, self.write), (6, self.close), (4, self.fsync), (3, self.rename),
            (4, self.unlink), (1, self.mkdir), (1, self.truncate), (2, self.copy), (4, self.wait),
            (1, self.reopen), (1, self.link),
        ]  # fmt: skip
        weights = [weight for weight, _ in steps]
        await self.chance.choices([step for _, step in steps], weights)[0]()

    async def call(
        self, what: str, act: Callable[[], Awaitable[Any]], effect: Callable[[World], None]
    ) -> Any:
        self.done.append((what, effect))
        result = await act()
        effect(self.world)
        return result

    def some(self, kind: int = stat.S_IFREG) -> str | None:
        names = self.world.of(kind)
        return self.chance.choice(names) if names else None

    async def place(self, name: str) -> tuple[Ino, bytes]:
        *directories, last = name.split("/")
        parent = ROOT
        for directory in directories:
            parent = ino_of(await self.fs.lookup(parent, directory.encode(), CRED))
        return parent, last.encode()

    def new_name(self) -> str:
        directory = self.chance.choice(["", *self.world.of(stat.S_IFDIR)])
        name = f"f{self.chance.randrange(100_000)}"
        return f"{directory}/{name}" if directory else name

    async def create(self) -> None:
        if len(self.world.names) > 20:
            await self.unlink()
            return
        name = self.new_name()
        parent, last = await self.place(name)
        _, handle = await self.call(
            f"create {name}",
            lambda: self.fs.create(parent, last, os.O_RDWR, 0o644, 0, CRED),
            lambda world: void(world.add(name, Thing())),
        )
        self.open.append((handle, self.world.names[name]))
        await self.write()

    async def reopen(self) -> None:
        name = self.some()
        if name is not None:
            parent, last = await self.place(name)
            ino = ino_of(await self.fs.lookup(parent, last, CRED))
            self.open.append((await self.fs.open(ino, os.O_RDWR), self.world.names[name]))

    async def write(self) -> None:
        if not self.open:
            return
        handle, number = self.chance.choice(self.open)
        size = len(self.world.things[number].view())
        offset = self.chance.choice([0, size, self.chance.randint(0, size + 5000)])
        offset = min(offset, 60_000)
        data = self.chance.randbytes(self.chance.choice([100, 3000, 5000, 20_000, 70_000]))
        await self.call(
            f"write {number} {offset}+{len(data)}",
            lambda: self.fs.write(handle, offset, memoryview(data)),
            lambda world: world.things[number].maybe.append((offset, data)),
        )

    async def close(self) -> None:
        if self.open:
            handle, number = self.open.pop(self.chance.randrange(len(self.open)))

            async def act() -> None:
                await self.fs.flush(handle, 0)
                await self.fs.release(handle)

            await self.call(f"close {number}", act, lambda world: world.things[number].settle())

    async def fsync(self) -> None:
        if self.open:
            handle, number = self.chance.choice(self.open)
            await self.call(
                f"fsync {number}",
                lambda: self.fs.fsync(handle),
                lambda world: world.things[number].settle(),
            )
            self.durable = len(self.done)

    async def rename(self) -> None:
        old = self.some()
        if old is None:
            return
        new = (self.chance.random() < 0.4 and self.some()) or self.new_name()
        if self.world.names[old] == self.world.names.get(new):
            return
        source, target = await self.place(old), await self.place(new)
        await self.call(
            f"rename {old} {new}",
            lambda: self.fs.rename(*source, *target, 0, CRED),
            lambda world: world.rename(old, new),
        )

    async def link(self) -> None:
        old, new = self.some(), self.new_name()
        if old is None:
            return
        parent, last = await self.place(old)
        ino = ino_of(await self.fs.lookup(parent, last, CRED))
        target = await self.place(new)

        def effect(world: World) -> None:
            world.names[new] = world.names[old]

        await self.call(f"link {old} {new}", lambda: self.fs.link(ino, *target, CRED), effect)

    async def unlink(self) -> None:
        name = self.some()
        if name is not None:
            place = await self.place(name)
            await self.call(
                f"unlink {name}",
                lambda: self.fs.unlink(*place, CRED),
                lambda world: void(world.names.pop(name)),
            )

    async def mkdir(self) -> None:
        if len(self.world.of(stat.S_IFDIR)) < 5:
            name = self.new_name()
            place = await self.place(name)
            await self.call(
                f"mkdir {name}",
                lambda: self.fs.mkdir(*place, 0o755, 0, CRED),
                lambda world: void(world.add(name, Thing(stat.S_IFDIR, 0o755))),
            )

    async def truncate(self) -> None:
        name = self.some()
        if name is None:
            return
        size = self.chance.choice([0, 1000, 30_000])
        parent, last = await self.place(name)
        ino = ino_of(await self.fs.lookup(parent, last, CRED))
        await self.call(
            f"truncate {name} {size}",
            lambda: self.fs.setattr(SetAttr(ino=ino, cred=CRED, size=size)),
            lambda world: world.things[world.names[name]].truncate(size),
        )

    async def copy(self) -> None:
        if len(self.open) < 2:
            return
        (source, number), (target, other) = self.chance.sample(self.open, 2)
        have = bytes(self.world.things[number].view())
        if not have or number == other:
            return
        done = [0]

        async def act() -> None:
            done[0] = await self.fs.copy_range(source, 0, target, 0, len(have))

        def effect(world: World) -> None:
            world.things[other].maybe.append((0, have[: done[0] or len(have)]))

        await self.call(f"copy {number} {other} {len(have)}", act, effect)

    async def wait(self) -> None:
        await trio.sleep(self.chance.choice([0.1, 1.0, 3.0, 6.0]))


# -- what is left


async def troubles(node: EmbeddedNode) -> list[str]:
    """What is wrong with the metadata, by itself and against the volumes."""
    tree = node.meta._machine.tree
    wrong = list(violations(tree))
    for key, value in tree.everything():
        if key[:8] != bytes(8) and key[8] == keys.SLICES:
            piece = unpack_slice(value)
            if piece.volume and not node.disk.has(piece.volume, piece.slice_id):
                wrong.append(f"slice {piece.slice_id} is not in volume {piece.volume}")
    return wrong


async def found(fs: Filesystem) -> dict[str, bytes | None]:
    """Names of all files with their bytes, and of directories with None."""
    result: dict[str, bytes | None] = {}
    waiting: list[tuple[str, Ino]] = [("", ROOT)]
    while waiting:
        prefix, directory = waiting.pop()
        for _, _, _, raw, _ in await fs.readdir(directory, 0, 10_000, with_attributes=False):
            if raw in (b".", b".."):
                continue
            name = prefix + raw.decode()
            attributes = await fs.lookup(directory, raw, CRED)
            ino = ino_of(attributes)
            if stat.S_ISDIR(mode_of(attributes)):
                result[name] = None
                waiting.append((f"{name}/", ino))
                continue
            handle = await fs.open(ino, os.O_RDONLY)
            result[name] = bytes(await fs.read(handle, 0, MIB))
            await fs.release(handle)
    return result


def judged(life: Life, durable: int, begun: int, left: dict[str, bytes | None]) -> World:
    """The world after so many of the things done that it is what is left; asserts that there is
    one, and that what was durable is in it.
    """
    world = copy.deepcopy(life.first)
    near = []
    for count in range(begun + 1):
        if count:
            life.done[count - 1][1](world)
        if count < durable:
            continue
        wrong = differences(world, left)
        if not wrong:
            world.forget_nameless()
            for name, number in world.names.items():
                if (data := left[name]) is not None:
                    world.things[number].sure, world.things[number].maybe = bytearray(data), []
            return world
        near.append((len(wrong), count, wrong))
    _, count, wrong = min(near)
    done = [f"{number + 1} {what}" for number, (what, _) in enumerate(life.done[:begun])]
    done.insert(durable, "--- up to here it is durable")
    raise AssertionError("\n".join([*done[-60:], f"nearest: after {count}:", *wrong[:10]]))


def differences(world: World, left: dict[str, bytes | None]) -> list[str]:
    wrong = [f"{name} is missing" for name in sorted(world.names.keys() - left.keys())]
    wrong += [f"{name} should not be there" for name in sorted(left.keys() - world.names.keys())]
    for name in sorted(world.names.keys() & left.keys()):
        thing, data = world.things[world.names[name]], left[name]
        if data is None or thing.kind == stat.S_IFDIR:
            wrong += [] if data is None and thing.kind == stat.S_IFDIR else [f"{name}: its type"]
        elif why := thing.allows(data):
            wrong.append(f"{name} (file {world.names[name]}): {why}")
    return wrong


# -- the test


async def at_once(function: Callable[..., Any], *args: Any, **_: Any) -> Any:
    """In place of a thread."""
    await trio.lowlevel.checkpoint()
    return function(*args)


@contextmanager
def small_node(disk: Disk, chance: random.Random) -> Iterator[None]:
    with ExitStack() as stack:
        for name, value in {
            "mountfs.vfs.embedded.LevelStore": disk.store,
            "mountfs.chunks.index_store.LevelStore": disk.store,
            "mountfs.chunks.index_store._damage": lambda path: "",
            "mountfs.vfs.embedded.LOG_SEGMENT_BYTES": 256 * KIB,
            "mountfs.vfs.embedded.QUICK_SYNC_S": chance.choice([0.0, 1e9]),
            "mountfs.meta.replica.CHECKPOINT_ROWS": 60,
            "mountfs.vfs.writer.SLICES_RESERVED": 4,
            "mountfs.chunks.disk.ChunkConfig": lambda: SMALL,
            "trio.to_thread.run_sync": at_once,
            "trio._core._run._ALLOW_DETERMINISTIC_SCHEDULING": True,
        }.items():
            stack.enter_context(mock.patch(name, value))
        trio._core._run._r.seed(chance.random())  # type: ignore[attr-defined]
        stack.enter_context(disk.watch())
        yield


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_power_loss_takes_nothing_durable_and_leaves_a_prefix(seed: int) -> None:
    chance = random.Random(seed)
    image = Image([], {}, {})
    world = World()
    lives: list[Life] = []
    for number in range(LIVES + 1):
        top = Path(tempfile.mkdtemp(prefix="mountfs-power-"))
        try:
            disk = Disk(top, image, chance)
            disk.stores = {name: _adopted(store, disk) for name, store in disk.stores.items()}
            last = number == LIVES
            with small_node(disk, chance):
                world = trio.run(
                    _live, disk, world, lives, chance, last,
                    clock=trio.testing.MockClock(autojump_threshold=0),
                )  # fmt: skip
            if last:
                return
            assert disk.lost is not None
            image = disk.lost
        finally:
            shutil.rmtree(top)


def _adopted(store: MemoryStore, disk: Disk) -> MemoryStore:
    assert isinstance(store, _Store)
    store.disk = disk
    return store


async def _live(
    disk: Disk, world: World, lives: list[Life], chance: random.Random, last: bool
) -> World:
    """Open the home, check what is left from the last life, and do things until the power goes."""
    life: Life | None = None
    taken: list[tuple[int, int]] = []

    def on_loss() -> None:
        taken.append((life.durable, len(life.done)) if life else (0, 0))

    disk.on_loss = on_loss
    disk.countdown = -1
    async with embedded_node(disk.top) as node:
        assert await troubles(node) == []
        if lives:
            world = judged(lives[-1], *lives[-1].taken, await found(node.filesystem))
        life = Life(node, world, chance)
        if last:
            return world
        disk.countdown = chance.randrange(chance.choice([30, 300, 1000]))
        while disk.lost is None:
            await life.step()
            assert not node.troubles, node.troubles
    life.taken = taken[0]
    lives.append(life)
    return world


# -- moments that chance seldom finds


async def stored(fs: Filesystem, name: bytes, data: bytes) -> Handle:
    """A file whose bytes are in a volume, not synced."""
    _, handle = await fs.create(ROOT, name, os.O_RDWR, 0o644, 0, CRED)
    await fs.write(handle, 0, memoryview(data))
    await fs.flush(handle, 0)
    return handle


async def test_an_fsync_waits_for_bytes_that_a_checkpoint_is_just_syncing(tmp_path: Path) -> None:
    real, stuck, go_on = os.fdatasync, threading.Event(), threading.Event()

    def fdatasync(fd: int) -> None:
        if os.readlink(f"/proc/self/fd/{fd}").endswith(".vol"):
            stuck.set()
            go_on.wait(30)
        real(fd)

    returned: list[bool] = []

    async def fsync(fs: Filesystem, handle: Handle) -> None:
        await fs.fsync(handle)
        returned.append(True)

    async with embedded_node(tmp_path / "home") as node:
        handle = await stored(node.filesystem, b"file", bytes(100_000))
        with mock.patch.object(os, "fdatasync", fdatasync):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(node.checkpoint)
                await trio.to_thread.run_sync(stuck.wait, 30)
                nursery.start_soon(fsync, node.filesystem, handle)
                await trio.sleep(0.3)
                early = bool(returned)
                go_on.set()
    assert returned
    assert not early, "fsync returned before the bytes were on disk"


async def test_what_came_while_bytes_were_synced_is_looked_for_after_a_crash(
    tmp_path: Path,
) -> None:
    """It is in the log that is synced next, and its bytes are not in the volume yet."""
    home, left = tmp_path / "home", tmp_path / "left"
    real, stuck, go_on = os.fdatasync, threading.Event(), threading.Event()
    synced: list[tuple[Path, bytes]] = []

    def fdatasync(fd: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        if path.suffix == ".vol":
            synced.append((path.relative_to(home), path.read_bytes()))
            stuck.set()
            go_on.wait(30)
        real(fd)

    async with embedded_node(home) as node:
        fs = node.filesystem
        first = await stored(fs, b"first", b"1" * 100_000)
        with mock.patch.object(os, "fdatasync", fdatasync), trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fs.fsync, first)
                await trio.to_thread.run_sync(stuck.wait, 30)
                await stored(fs, b"second", b"2" * 100_000)
                go_on.set()
            await fs.create(ROOT, b"third", os.O_RDWR, 0o644, 0, CRED)
        shutil.copytree(
            home, left, ignore=shutil.ignore_patterns("control", "lock", "*.new", "new.*")
        )
    volume, data = synced[0]
    (left / volume).write_bytes(data)
    async with embedded_node(left) as node:
        assert await troubles(node) == []
        assert (await found(node.filesystem))["first"] == b"1" * 100_000


async def test_a_crash_while_slices_are_reclaimed_takes_nothing(tmp_path: Path) -> None:
    """Their tombstones may be there when the command that says so is not."""
    home, left = tmp_path / "home", tmp_path / "left"
    async with embedded_node(home) as node:
        fs = node.filesystem
        await node.checkpoint()
        await fs.fsync(await stored(fs, b"first", bytes(10)))
        gone = await stored(fs, b"gone", bytes(100_000))
        await fs.release(gone)
        await fs.unlink(ROOT, b"gone", CRED)
        kept = await stored(fs, b"kept", b"k" * 100_000)
        await fs.fsync(kept)
        delete, copied = node.disk.delete, trio.Event()

        def deleting(volumes: Any) -> None:
            delete(volumes)
            if not left.exists():
                shutil.copytree(home, left, ignore=shutil.ignore_patterns("control"))
                trio.from_thread.run_sync(copied.set)

        with mock.patch.object(node.disk, "delete", deleting), trio.fail_after(30):
            await copied.wait()
    (left / "lock").unlink()
    async with embedded_node(left) as node:
        assert node.meta.cut == 0
        assert sorted(await found(node.filesystem)) == ["first", "kept"]
        assert (await found(node.filesystem))["kept"] == b"k" * 100_000
