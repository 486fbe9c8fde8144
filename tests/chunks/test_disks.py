"""Several disks of one node: which takes what, whose they are, and what is told of them."""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mountfs.chunks import disks as disks_module
from mountfs.chunks import needle
from mountfs.chunks.config import ChunkConfig
from mountfs.chunks.disk import DiskStore
from mountfs.chunks.disk_identity import Owner, kind_of
from mountfs.chunks.disks import Disks
from mountfs.errors import Fault, FsError
from mountfs.kv.base import Store
from mountfs.kv.memory import MemoryStore
from mountfs.meta.reports import with_name
from mountfs.types import FIRST_REPLICATED, KIB, MIB, SliceId, VolumeId
from tests.chunks.conftest import FailingWrites

OWNER = Owner(b"home" * 4, 2, b"cluster1" * 2)
V, W, X = (VolumeId(FIRST_REPLICATED + one) for one in range(3))
ONE = SliceId(1)
CONFIG = ChunkConfig(volume_bytes=MIB, preallocate_bytes=256 * KIB, reserve_bytes=0)


class Machine:
    """A node with disks `a` and `b`; the indexes live as long as it does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.indexes: dict[Path, MemoryStore] = {}
        self.free: dict[str, int] = {}
        """What a disk says that is free, where it is not what there really is."""
        self.disks: Disks | None = None

    def index(self, path: Path) -> tuple[Store, str]:
        store = self.indexes.setdefault(path, MemoryStore())
        store.crash(keep=1 << 30)
        return store, ""

    def open(self, *names: str, owner: Owner = OWNER) -> Disks:
        self.disks = Disks(
            [self.path / name for name in names or ("a", "b")],
            owner,
            config=CONFIG,
            open_index=self.index,
        )
        return self.disks


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    found = Machine(tmp_path)
    real = DiskStore.space

    def space(store: DiskStore) -> tuple[int, int]:
        name = store.directory.parent.name
        return (1 << 40, found.free[name]) if name in found.free else real(store)

    monkeypatch.setattr(DiskStore, "space", space)
    yield found
    if found.disks is not None:
        found.disks.close()


def add(disks: Disks, volume: VolumeId, *slices: int) -> None:
    disk = disks.disk_of(volume)
    assert disk is not None
    for one in slices:
        disk.store.append(SliceId(one), [b"slice %d" % one], None, volume)
    disk.store.sync()


def where(disks: Disks, volume: VolumeId) -> str:
    disk = disks.disk_of(volume)
    return "" if disk is None else disk.path.name


def refused(fault: Fault, work: Callable[[], object], match: str) -> None:
    with pytest.raises(FsError, match=match) as caught:
        work()
    assert caught.value.fault is fault


def test_a_new_volume_goes_where_most_room_is(machine):
    machine.free = {"a": 50 * MIB, "b": 60 * MIB}
    disks = machine.open()
    disks.open_volume(V, 1)
    assert where(disks, V) == "b"
    machine.free["b"] = 20 * MIB
    disks.open_volume(W, 1)
    assert where(disks, W) == "a"
    disks.open_volume(V, 2)  # it stays where it is
    assert where(disks, V) == "b"
    disks = machine.open("b", "a")
    assert (where(disks, V), where(disks, W)) == ("b", "a")


def test_volumes_that_are_open_are_reckoned_to_become_full(machine):
    machine.free = {"a": 50 * MIB, "b": 50 * MIB + 4 * KIB}
    disks = machine.open()
    for volume in (V, W):
        disks.open_volume(volume, 1)
    assert {where(disks, V), where(disks, W)} == {"a", "b"}


def test_a_full_disk_takes_no_new_volume(machine):
    machine.free = {"a": MIB, "b": 0}
    disks = machine.open()
    refused(Fault.NO_SPACE, lambda: disks.open_volume(V, 1), "full")
    machine.free["a"] = 50 * MIB
    disks.open_volume(V, 1)
    assert where(disks, V) == "a"


def test_a_disk_that_fails_takes_nothing_new_and_the_other_does(machine, writes: FailingWrites):
    machine.free = {"a": 60 * MIB, "b": 50 * MIB}
    disks = machine.open()
    disks.open_volume(V, 1)
    add(disks, V, 1)
    writes.error = errno.EIO
    refused(Fault.DEVICE, lambda: add(disks, V, 2), "Input/output")
    writes.error = None
    refused(Fault.VOLUME_CLOSED, lambda: add(disks, V, 2), "Input/output")
    disks.open_volume(W, 1)
    assert where(disks, W) == "b"
    first, second = disks.report(whole=True).disks
    assert (first.free_bytes, second.free_bytes) == (0, 50 * MIB)
    assert "Input/output" in first.trouble and second.trouble == ""
    disk = disks.disk_of(V)
    assert disk is not None and disk.store.read(V, ONE, 0, 5) == b"slice"
    assert disks.seal(V).needles == 1


def test_a_disk_that_fails_when_a_volume_is_made_is_passed_over(machine, writes):
    machine.free = {"a": 60 * MIB, "b": 50 * MIB}
    disks = machine.open()
    made = []
    real = os.pwritev

    def write(fd: int, parts: list, offset: int) -> int:  # type: ignore[type-arg]
        made.append(fd)
        if len(made) == 1:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real(fd, parts, offset)

    os.pwritev, before = write, os.pwritev
    try:
        disks.open_volume(V, 1)
    finally:
        os.pwritev = before
    assert where(disks, V) == "b"
    assert "Read-only" in disks.report(whole=True).disks[0].trouble


def test_when_all_disks_fail_it_is_told_why(machine):
    disks = machine.open()
    for disk in disks.disks:
        disk.store.failure = f"{disk.path.name}: broken"
    refused(Fault.DEVICE, lambda: disks.open_volume(V, 1), "a: broken; b: broken")


def test_a_directory_that_cannot_be_used_is_reported_and_the_others_serve(machine):
    (machine.path / "b").write_text("no directory")
    disks = machine.open("a", "b", "none/at/all")
    disks.open_volume(V, 1)
    assert where(disks, V) == "a"
    reports = disks.report(whole=True).disks
    assert [bool(one.trouble) for one in reports] == [False, True, True]
    assert [one.total_bytes > 0 for one in reports] == [True, False, False]
    assert str(machine.path / "b") in disks.troubles()


def test_a_disk_whose_index_cannot_be_opened_is_reported(machine, monkeypatch):
    real = machine.index

    def broken(path: Path) -> tuple[Store, str]:
        if path.name == "a":
            raise FsError(Fault.BAD_HOME, f"{path}: Input/output error")
        return real(path)

    machine.index = broken
    disks = machine.open()
    disks.open_volume(V, 1)
    assert where(disks, V) == "b"
    assert "Input/output" in disks.report(whole=True).disks[1].trouble


def identity(path: Path) -> dict[str, object]:
    return json.loads((path / "disk.json").read_text())


def test_a_disk_knows_whose_it_is(machine):
    machine.open()
    a, b = (identity(machine.path / name) for name in "ab")
    assert a["disk"] != b["disk"]
    assert (a["format"], a["home"], a["node"]) == (1, OWNER.home.hex(), 2)
    machine.open()
    assert identity(machine.path / "a") == a


@pytest.mark.parametrize(
    ("owner", "match"),
    [
        (OWNER._replace(home=b"else" * 4), "belongs to the filesystem"),
        (OWNER._replace(node=3), "belongs to node 2 of this cluster, not to this one .node 3"),
    ],
)
def test_a_disk_of_somebody_else_is_refused(machine, owner, match):
    machine.open()
    refused(Fault.BAD_HOME, lambda: machine.open("c", "b", owner=owner), match)


def test_the_same_disk_twice_is_refused(machine):
    machine.open("a")
    shutil.copytree(machine.path / "a", machine.path / "copy")
    (machine.path / "link").symlink_to(machine.path / "a")
    for other in ("copy", "link"):
        refused(Fault.BAD_HOME, lambda other=other: machine.open("a", other), "same disk")


@pytest.mark.parametrize("bad", ["", "{", "[]", '{"format": 1}'])
def test_a_damaged_identity_is_refused(machine, bad):
    machine.open()
    (machine.path / "b" / "disk.json").write_text(bad)
    refused(Fault.BAD_HOME, machine.open, "damaged")


def test_a_later_format_is_refused(machine):
    machine.open()
    found = identity(machine.path / "b") | {"format": 2}
    (machine.path / "b" / "disk.json").write_text(json.dumps(found))
    refused(Fault.BAD_HOME, machine.open, "format 2")


def test_only_a_home_may_have_volumes_without_an_identity(machine):
    disks = machine.open()
    for volume in (V, W, X):
        disks.open_volume(volume, 1)
    for name in "ab":
        (machine.path / name / "disk.json").unlink()
    with_volumes = where(disks, V)
    machine.open(with_volumes)
    (machine.path / with_volumes / "disk.json").unlink()
    refused(Fault.BAD_HOME, lambda: machine.open("c", with_volumes), "no disk.json")


def test_volumes_of_another_home_are_refused(machine):
    disks = machine.open("a")
    disks.open_volume(V, 1)
    (machine.path / "a" / "disk.json").unlink()
    other = OWNER._replace(home=b"else" * 4)
    refused(Fault.BAD_HOME, lambda: machine.open("a", owner=other), "belongs to the home")


def test_of_two_copies_of_a_volume_the_fuller_one_serves(machine):
    disks = machine.open()
    machine.free = {"a": 60 * MIB, "b": 50 * MIB}
    disks.open_volume(V, 1)
    add(disks, V, 1, 2, 3)
    disks.seal(V)
    disks.close()
    machine.indexes.clear()
    name = f"{V}.vol"
    shutil.copy(machine.path / "a" / "volumes" / name, machine.path / "b" / "volumes" / name)
    disks = machine.open()
    disks.delete({V: [ONE]})
    disks.close()
    disks = machine.open("a", "b")
    assert where(disks, V) == "b"
    found = disks.report(whole=True)
    assert [one.needles for one in found.volumes] == [3]
    assert found.volumes[0].trouble == ""
    assert "copy of volume" in found.disks[0].trouble and found.disks[1].trouble == ""
    assert disks.disks[0].store.debt().volumes == ()
    disks.drop(V)
    assert not (machine.path / "b" / "volumes" / name).exists()
    assert (machine.path / "a" / "volumes" / name).exists()  # it is never deleted


def test_a_volume_that_cannot_be_opened_is_reported_and_can_be_had_anew(machine):
    machine.free = {"a": 60 * MIB, "b": 50 * MIB}
    disks = machine.open()
    disks.open_volume(V, 1)
    add(disks, V, 1)
    disks.close()
    (machine.path / "a" / "volumes" / f"{V}.vol").write_bytes(b"noise")
    disks = machine.open()
    (report,) = disks.report(whole=True).volumes
    assert report.number == V and report.trouble
    assert disks.seal(V).trouble
    refused(Fault.CORRUPT, lambda: disks.sealed(V), "cannot be opened")
    disks.drop(V)
    assert disks.report(whole=False).gone == (V,)
    disk = disks.sealed(V)
    disk.store.put(V, ONE, [b"x"], needle.checksums([b"x"]))
    assert disks.report(whole=False).volumes[0].needles == 1


def test_reports_tell_what_has_changed(machine):
    disks = machine.open()
    assert disks.report(whole=False).volumes == ()
    for volume in (V, W):
        disks.open_volume(volume, 3)
    found = disks.report(whole=False)
    assert [(one.number, one.epoch, one.needles) for one in found.volumes] == [(V, 3, 0), (W, 3, 0)]
    assert sum(one.volumes for one in found.disks) == 2
    assert disks.report(whole=False) == found._replace(
        volumes=(), disks=disks.report(whole=False).disks
    )
    add(disks, W, 1, 2)
    (changed,) = disks.report(whole=False).volumes
    assert (changed.number, changed.needles) == (W, 2)
    assert changed.living_bytes == 2 * needle.needle_bytes(7)
    assert changed.digest == with_name(with_name(0, SliceId(1)), SliceId(2))
    sealed = disks.seal(W)
    assert disks.report(whole=False).volumes == (sealed,)
    disks.drop(V)
    found = disks.report(whole=False)
    assert (found.volumes, found.gone) == ((), (V,))
    found = disks.report(whole=True)
    assert (found.volumes, found.gone) == ((sealed,), ())


def test_a_damaged_slice_is_a_trouble_of_its_volume(machine):
    disks = machine.open()
    disks.open_volume(V, 1)
    add(disks, V, 1)
    disks.disk_of(V).store.note_bad(V, ONE, "slice 0x1 at offset 4096: bad")
    assert disks.report(whole=False).volumes[0].trouble == "slice 0x1 at offset 4096: bad"


def test_space_counts_a_file_system_once(machine):
    disks = machine.open()
    alone = Disks([machine.path / "c"], OWNER, config=CONFIG, open_index=machine.index)
    try:
        assert disks.space()[0] == alone.space()[0]
    finally:
        alone.close()


def test_deleting_goes_on_when_one_disk_fails(machine, monkeypatch):
    machine.free = {"a": 60 * MIB, "b": 50 * MIB}
    disks = machine.open()
    disks.open_volume(V, 1)
    machine.free["a"] = 10 * MIB
    disks.open_volume(W, 1)
    assert where(disks, V) != where(disks, W)
    add(disks, V, 1)
    add(disks, W, 1)
    broken = disks.disk_of(V).store

    def fail(slices: object) -> None:
        raise FsError(Fault.DEVICE, "broken")

    monkeypatch.setattr(broken, "delete", fail)
    refused(Fault.DEVICE, lambda: disks.delete({V: [ONE], W: [ONE], X: [ONE]}), "broken")
    assert disks.disk_of(W).store.stats(W).needles == 0


async def test_volumes_of_all_disks_are_compacted(machine):
    disks = machine.open()
    for volume in (V, W):
        disks.open_volume(volume, 1)
        add(disks, volume, 1, 2, 3)
        disks.delete({volume: [SliceId(2), SliceId(3)]})
    assert not await disks.compact_one()  # they are open
    for volume in (V, W):
        disks.seal(volume)
    while await disks.compact_one():
        pass
    for volume in (V, W):
        stats = disks.disk_of(volume).store.stats(volume)
        assert (stats.needles, stats.garbage_bytes) == (1, 0)


def test_the_latest_term_is_kept_on_every_disk(machine):
    disks = machine.open()
    assert disks.read_term() == 0
    for term in (1, 2, 7):
        disks.keep_term(term)
        assert machine.open().read_term() == term
    (machine.path / "a" / "term").unlink()
    assert machine.open().read_term() == 7
    recovered = OWNER._replace(cluster=b"cluster2" * 2)
    disks = machine.open(owner=recovered)
    assert disks.read_term() == 0  # its leaders begin anew
    disks.keep_term(1)
    assert machine.open(owner=recovered).read_term() == 1


@pytest.mark.parametrize("torn", range(0, 36, 5))
def test_a_term_that_was_torn_leaves_the_one_before(machine, torn):
    disks = machine.open("a")
    disks.keep_term(5)
    before = (machine.path / "a" / "term").read_bytes()
    disks.keep_term(6)
    after = (machine.path / "a" / "term").read_bytes()
    at = next(
        place for place in (0, 2048) if before[place : place + 36] != after[place : place + 36]
    )
    mixed = before[:at] + after[at : at + torn] + before[at + torn :]
    (machine.path / "a" / "term").write_bytes(mixed)
    assert disks.read_term() == 5


def test_a_term_that_no_disk_keeps_is_not_kept(machine, monkeypatch):
    disks = machine.open()

    def full(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(disks_module, "write_term", full)
    refused(Fault.READ_ONLY, lambda: disks.keep_term(3), "Read-only")


def test_the_kind_of_a_disk_is_known_or_not(tmp_path):
    assert kind_of(tmp_path) in ("", "ssd", "hdd")
    assert kind_of(tmp_path / "none") == ""
    assert kind_of(Path("/proc")) == ""
