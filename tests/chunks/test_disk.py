"""The store of volumes: what was appended is read, survives, or is missed aloud."""

import errno
import os
import random
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mountfs.chunks.config import ChunkConfig
from mountfs.chunks.disk import DiskStore
from mountfs.errors import Fault, FsError
from mountfs.kv.memory import MemoryStore
from mountfs.types import KIB, MIB, SliceId, VolumeId

ONE = VolumeId(1)


def payload(slice_id: int, size: int | None = None) -> bytes:
    """What this test writes under a name."""
    source = random.Random(slice_id)
    return source.randbytes(source.randrange(1, 3000) if size is None else size)


def fill(store: DiskStore, *slices: int, size: int | None = None) -> dict[int, VolumeId]:
    return {one: store.append(SliceId(one), [payload(one, size)]) for one in slices}


def content(store: DiskStore, volume: VolumeId, slice_id: int, size: int | None = None) -> bytes:
    length = len(payload(slice_id, size))
    return bytes(store.read(volume, SliceId(slice_id), 0, length))


def fault_of(call, *args) -> FsError:
    with pytest.raises(FsError) as caught:
        call(*args)
    return caught.value


def volume_path(tmp_path: Path, number: int = 1) -> Path:
    return tmp_path / "volumes" / f"{number:08}.vol"


def forgotten(store: DiskStore, volume: VolumeId, slice_id: int) -> bool:
    try:
        store.read(volume, SliceId(slice_id), 0, 1)
    except FsError as error:
        assert error.fault is Fault.CORRUPT
        return not store.has(volume, SliceId(slice_id))
    return False


def flip(path: Path, at: int) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))


def offset_of(path: Path, data: bytes) -> int:
    at = path.read_bytes().find(data)
    assert at > 0
    return at


# -- appending and reading


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(
    size=st.integers(1, 300_000), cuts=st.lists(st.integers(0, 300_000), max_size=4), data=st.data()
)
def test_what_was_appended_is_read(store, size, cuts, data):
    whole = random.Random(size).randbytes(size)
    bounds = [0, *sorted(min(cut, size) for cut in cuts), size]
    parts = [bytearray(whole[a:b]) for a, b in pairwise(bounds)]
    slice_id = SliceId(data.draw(st.integers(1, 2**63)))
    volume = store.append(slice_id, parts)
    start = data.draw(st.integers(0, size - 1))
    stop = data.draw(st.integers(start + 1, size))
    assert store.read(volume, slice_id, start, stop) == whole[start:stop]
    now = store.read_now(volume, slice_id, start, stop)
    assert now is None or now == whole[start:stop]
    assert store.has(volume, slice_id)


def test_a_slice_in_very_many_parts_is_written_whole(store):
    parts = [bytes([number % 256]) * 100 for number in range(2_500)]
    volume = store.append(SliceId(1), [b"", *parts, b""])
    assert store.read(volume, SliceId(1), 0, 250_000) == b"".join(parts)


def test_the_largest_slice_fits(tmp_path):
    with_room = ChunkConfig(volume_bytes=8 * MIB, preallocate_bytes=MIB, reserve_bytes=0)
    store = DiskStore(tmp_path, MemoryStore(), config=with_room)
    whole = random.Random(1).randbytes(4 * MIB)
    volume = store.append(SliceId(1), [whole])
    assert store.read(volume, SliceId(1), 0, 4 * MIB) == whole
    assert store.read(volume, SliceId(1), 4 * MIB - 3, 4 * MIB) == whole[-3:]


def test_a_full_volume_is_sealed_and_the_next_one_begun(store, tmp_path):
    volumes = fill(store, *range(1, 31), size=100_000)
    assert sorted(set(volumes.values())) == [1, 2, 3]
    for one, volume in volumes.items():
        assert content(store, volume, one, 100_000) == payload(one, 100_000)
    for path in (tmp_path / "volumes").iterdir():
        assert path.stat().st_size <= store.config.volume_bytes
    assert len(os.listdir("/proc/self/fd")) < 100


def test_space_is_taken_in_steps_and_given_back_when_sealed(store, tmp_path):
    fill(store, 1, size=1000)
    path = volume_path(tmp_path)
    assert path.stat().st_size < 8 * KIB
    assert path.stat().st_blocks * 512 >= 256 * KIB
    store.close()
    assert path.stat().st_blocks * 512 <= 16 * KIB


def test_the_same_slice_again_replaces_the_first(store, reopen):
    store.append(SliceId(1), [b"first"])
    store.append(SliceId(1), [b"again"])
    assert store.volumes()[0].needles == 1
    assert store.read(ONE, SliceId(1), 0, 5) == b"again"
    store = reopen()
    assert store.volumes()[0].needles == 1
    assert store.read(ONE, SliceId(1), 0, 5) == b"again"


def test_what_is_not_there_is_missed_aloud(store):
    fill(store, 1)
    error = fault_of(store.read, ONE, SliceId(2), 0, 1)
    assert error.fault is Fault.CORRUPT
    assert "00000001.vol" in error.detail
    assert "0x2" in error.detail
    assert fault_of(store.read, VolumeId(9), SliceId(1), 0, 1).fault is Fault.CORRUPT
    assert fault_of(store.read, ONE, SliceId(1), 0, 10**6).fault is Fault.CORRUPT
    assert not store.has(ONE, SliceId(2))
    assert not store.has(VolumeId(9), SliceId(1))


def test_volumes_of_another_home_are_refused(store, reopen):
    fill(store, 1)
    store.close()
    assert fault_of(lambda: reopen(home=b"x" * 16)).fault is Fault.BAD_HOME
    assert content(reopen(home=None), ONE, 1) == payload(1)


def test_many_threads_append_at_once(store, reopen):
    def work(thread: int) -> dict[int, VolumeId]:
        mine = fill(store, *range(thread * 1000 + 1, thread * 1000 + 40))
        store.sync()
        for one, volume in mine.items():
            assert content(store, volume, one) == payload(one)
        return mine

    with ThreadPoolExecutor(6) as pool:
        written = [pool.submit(work, thread) for thread in range(6)]
    volumes = {one: volume for future in written for one, volume in future.result().items()}
    for again in (store, reopen()):
        assert list(again.verify()) == []
        assert sum(stats.needles for stats in again.volumes()) == len(volumes) == 6 * 39
        for one, volume in volumes.items():
            assert content(again, volume, one) == payload(one)


def test_memory_has_its_bounds(store):
    fill(store, *range(1, 400), size=40)
    for one in range(1, 400):
        store.read(ONE, SliceId(one), 0, 40)
    assert len(store._reader) <= store.config.heads_max
    assert store._index.pending <= store.config.pending_needles_max


# -- durability


def test_after_a_sync_nothing_is_unsynced(store):
    assert not store.unsynced
    fill(store, 1)
    assert store.unsynced
    store.sync()
    assert not store.unsynced
    store.delete({ONE: [SliceId(1)]})
    assert store.unsynced


def test_a_closed_store_opens_without_a_scan(store, reopen, monkeypatch):
    volumes = fill(store, *range(1, 50))
    store.sync()
    store.close()
    monkeypatch.setattr("mountfs.chunks.rewrite.recover_file", None)
    store = reopen()
    for one, volume in volumes.items():
        assert content(store, volume, one) == payload(one)


@pytest.mark.parametrize("synced", [0, 7, 20])
def test_without_its_index_a_store_is_the_same(store, reopen, synced):
    fill(store, *range(1, synced + 1))
    store.sync()
    fill(store, *range(synced + 1, 21))
    store.delete({ONE: [SliceId(3), SliceId(20)]})
    living = store.volumes()[0]
    store = reopen(index=MemoryStore())
    again = store.volumes()[0]
    assert (again.living_bytes, again.needles) == (living.living_bytes, living.needles)
    assert again.digest == living.digest
    assert again.total_bytes == living.total_bytes
    for one in range(1, 21):
        if one in (3, 20):
            assert forgotten(store, ONE, one)
        else:
            assert content(store, ONE, one) == payload(one)


def crashed(tmp_path: Path, size: int) -> Path:
    """A copy of the first volume as a crash could leave it."""
    copy = tmp_path / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(tmp_path / "volumes", copy / "volumes")
    os.truncate(volume_path(copy), size)
    return copy


@pytest.mark.parametrize("lost_index", [False, True])
def test_a_crash_at_any_byte_keeps_every_needle_before_it(tmp_path, index, lost_index):
    config = ChunkConfig(
        volume_bytes=MIB, preallocate_bytes=0, reserve_bytes=0, pending_needles_min=1
    )
    store = DiskStore(tmp_path, index, config=config)
    ends = {}
    for one in range(1, 6):
        fill(store, one, size=60 * one)
        ends[one] = store.volumes()[0].total_bytes
        if one == 2:
            store.sync()
    end = ends[5]
    for size in range(ends[2], end + 1, 3):
        copy = crashed(tmp_path, size)
        table = MemoryStore()
        if not lost_index:
            table.write(dict(index.scan(b"", b"\xff")), sync=True)
        again = DiskStore(copy, table, config=config)
        for one, after in ends.items():
            if after <= size:
                assert content(again, ONE, one, 60 * one) == payload(one, 60 * one)
            else:
                assert forgotten(again, ONE, one)
        new = again.append(SliceId(99), [b"more"])
        again.sync()
        again.close()
        again = DiskStore(copy, table, config=config)
        assert bytes(again.read(new, SliceId(99), 0, 4)) == b"more"
        assert list(again.verify()) == []


def test_pages_that_a_crash_lost_cost_only_their_needle(store, reopen, tmp_path):
    fill(store, 1)
    store.sync()
    fill(store, 2, 3, 4, size=9000)
    with open(volume_path(tmp_path), "r+b") as file:
        file.seek(offset_of(volume_path(tmp_path), payload(3, 9000)) // 4096 * 4096 + 4096)
        file.write(bytes(4096))
    store = reopen()
    assert forgotten(store, ONE, 3)
    assert content(store, ONE, 2, 9000) == payload(2, 9000)
    assert content(store, ONE, 4, 9000) == payload(4, 9000)
    assert list(store.verify()) == []  # a crash may do that: it is not damage
    fill(store, 5)
    store.sync()
    assert list(reopen(index=MemoryStore()).verify()) == []


def test_fdatasync_that_failed_is_never_forgotten(store, monkeypatch, reopen):
    fill(store, 1, 2)
    store.sync()
    fill(store, 3, 4)

    def fail(fd: int) -> None:
        fill(store, 6)  # which makes a later sync look at this volume again
        raise OSError(errno.EIO, "the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        error = fault_of(store.sync)
        assert error.fault is Fault.DEVICE
        assert "3 slices" in error.detail
    for _ in range(3):  # the kernel says success now, and that is the trap
        assert store.unsynced
        assert fault_of(store.sync).fault is Fault.DEVICE
    assert "fdatasync" in store.volumes()[0].failed
    assert fill(store, 5) == {5: 2}, "the failed volume takes nothing more"
    assert content(store, ONE, 1) == payload(1)
    store.delete({ONE: [SliceId(3), SliceId(1)]})
    assert fault_of(store.sync).fault is Fault.DEVICE
    store.delete({ONE: [SliceId(4), SliceId(6)]})
    store.sync()  # nobody wants the bytes any more
    assert content(store, ONE, 2) == payload(2)
    assert store.debt().volumes == ()


def test_what_is_appended_while_a_sync_runs_is_not_taken_for_synced(store, monkeypatch):
    fill(store, 1)
    real = os.fdatasync

    def slow(fd: int) -> None:
        real(fd)
        fill(store, 2)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", slow)
        store.sync()
    assert store.unsynced


def test_a_sync_that_still_runs_has_not_synced(store, monkeypatch):
    fill(store, 1)
    seen = []
    monkeypatch.setattr(os, "fdatasync", lambda fd: seen.append(store.unsynced))
    store.sync()
    assert seen == [True], "who asks meanwhile must wait for it"
    assert not store.unsynced


def test_what_is_still_being_written_is_scanned_after_a_crash(store, writes, tmp_path, index):
    fill(store, 1)
    at = store.volumes()[0].total_bytes

    def others_sync(offset: int) -> bool:
        if offset == at:
            fill(store, 3)
            store.sync()
            store._write_table()
        return False

    writes.error, writes.when = errno.EIO, others_sync
    fill(store, 2)  # on its way when the others sync, whole when the machine stops
    table = MemoryStore()
    table.write(dict(index.scan(b"", b"\xff")), sync=True)
    again = DiskStore(crashed(tmp_path, volume_path(tmp_path).stat().st_size), table)
    for one in (1, 2, 3):
        assert content(again, ONE, one) == payload(one)


def test_what_a_killed_process_left_is_on_disk_before_it_counts(store, monkeypatch, reopen):
    fill(store, 1)

    def fail(fd: int) -> None:
        raise OSError(errno.EIO, "gone")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        patch.setattr("mountfs.chunks.rewrite.recover", None)  # it does not come so far
        assert fault_of(reopen).fault is Fault.DEVICE
    assert content(reopen(), ONE, 1) == payload(1)


def test_a_crash_while_the_index_is_rebuilt_loses_nothing(store, reopen):
    fill(store, *range(1, 60), size=50)
    store.delete({ONE: [SliceId(one) for one in range(1, 60, 4)]})
    tables = []

    class Recorded(MemoryStore):
        def write(self, changes, *, sync):
            super().write(changes, sync=sync)
            table = MemoryStore()
            table.write(dict(self.scan(b"", b"\xff")), sync=True)
            tables.append(table)

    reopen(index=Recorded())
    assert len(tables) > 3
    for table in tables:
        again = reopen(index=table)
        assert again.volumes()[0].needles == 59 - 15
        for one in range(1, 60):
            assert again.has(ONE, SliceId(one)) == (one % 4 != 1)


# -- failing disks


@pytest.mark.parametrize(
    ("code", "fault"), [(errno.ENOSPC, Fault.NO_SPACE), (errno.EIO, Fault.DEVICE)]
)
@pytest.mark.parametrize("after", [0, 1, 48, 700])
def test_an_append_that_fails_leaves_nothing(store, writes, tmp_path, code, fault, after, reopen):
    fill(store, 1)
    size = volume_path(tmp_path).stat().st_size
    # A short write first, then the error: that is how a disk fills up.
    writes.error, writes.after = code, after
    writes.when = lambda offset: writes.after > 0 or offset > size or after == 0
    error = fault_of(store.append, SliceId(2), [payload(2, 3000)])
    assert error.fault is fault
    assert "00000001.vol" in error.detail
    assert volume_path(tmp_path).stat().st_size == size
    writes.error = None
    assert forgotten(store, ONE, 2)
    fill(store, 3)
    store.sync()
    store = reopen(index=MemoryStore())
    assert content(store, ONE, 1) == payload(1)
    assert content(store, ONE, 3) == payload(3)
    assert list(store.verify()) == []


def failed_in_the_middle(store: DiskStore, writes) -> None:
    """Append slices 1 to 3; 2 fails, but only after 3 has reserved its range behind it."""
    error, writes.error = writes.error, None
    fill(store, 1, size=500)
    writes.error = error
    behind = threading.Event()
    failing = store.volumes()[0].total_bytes

    def when(offset: int) -> bool:
        if offset == failing and not behind.is_set():
            behind.set()
            helper.start()
            helper.join()
            return True
        return offset == failing and writes.error == errno.EROFS  # not even the mark goes through

    helper = threading.Thread(target=fill, args=(store, 3), kwargs={"size": 500})
    writes.when = when
    assert fault_of(store.append, SliceId(2), [payload(2, 500)]).fault is not Fault.CORRUPT


def test_a_failed_append_between_others_leaves_a_marked_hole(store, writes, reopen):
    writes.error = errno.EIO
    failed_in_the_middle(store, writes)
    writes.error = None
    store.sync()
    for again in (store, reopen(), reopen(index=MemoryStore())):
        assert content(again, ONE, 1, 500) == payload(1, 500)
        assert content(again, ONE, 3, 500) == payload(3, 500)
        assert forgotten(again, ONE, 2)
        assert list(again.verify()) == []


def test_a_hole_that_cannot_be_marked_is_marked_by_a_later_sync(store, writes, tmp_path):
    writes.error = errno.EROFS
    failed_in_the_middle(store, writes)
    assert store.volumes()[0].sealed
    writes.error = None
    size = volume_path(tmp_path).stat().st_size
    crash = DiskStore(crashed(tmp_path, size), MemoryStore())
    assert content(crash, ONE, 3, 500) == payload(3, 500)
    assert list(crash.verify()) == []
    store.sync()
    assert list(store.verify()) == []
    assert not store.unsynced
    assert content(store, ONE, 3, 500) == payload(3, 500)


def test_the_reserve_is_for_deleting(tmp_path, index, monkeypatch):
    config = ChunkConfig(volume_bytes=MIB, preallocate_bytes=64 * KIB, reserve_bytes=MIB)
    store = DiskStore(tmp_path, index, config=config)
    fill(store, 1, 2, size=1000)
    stat = os.statvfs(tmp_path)
    fields = list(stat)
    fields[4] = (MIB + 8 * KIB) // stat.f_frsize  # f_bavail
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result(fields))
    store._space = (0.0, 0, 0)
    total, free = store.space()
    assert total == stat.f_blocks * stat.f_frsize
    assert free <= 64 * KIB + 8 * KIB
    written = 0
    with pytest.raises(FsError) as caught:
        for number in range(3, 1000):
            fill(store, number, size=4000)
            written += 1
            fields[4] = MIB // stat.f_frsize  # what was free is taken now
    assert caught.value.fault is Fault.NO_SPACE
    assert 10 < written < 20
    store.delete({ONE: [SliceId(1), SliceId(2)]})
    assert forgotten(store, ONE, 1)


def test_without_fallocate_it_works_all_the_same(store, monkeypatch):
    monkeypatch.setattr("mountfs.chunks.file.VolumeFile.allocate", lambda *args: False)
    volumes = fill(store, *range(1, 20), size=100_000)
    assert all(
        content(store, v, one, 100_000) == payload(one, 100_000) for one, v in volumes.items()
    )


# -- deleting


def test_what_was_deleted_stays_deleted(store, reopen):
    fill(store, 1, 2, 3)
    before = store.volumes()[0]
    store.delete({ONE: [SliceId(2), SliceId(2), SliceId(77)], VolumeId(5): [SliceId(1)]})
    after = store.volumes()[0]
    assert after.needles == 2
    assert after.garbage_bytes == before.living_bytes - after.living_bytes + 48
    store.delete({ONE: [SliceId(2)]})
    assert store.volumes()[0] == after
    store.sync()
    for again in (store, reopen(), reopen(index=MemoryStore())):
        assert forgotten(again, ONE, 2)
        assert content(again, ONE, 3) == payload(3)
        assert again.volumes()[0].garbage_bytes == after.garbage_bytes


def test_a_sealed_volume_in_which_nothing_lives_is_gone_at_once(store, reopen, tmp_path):
    volumes = fill(store, *range(1, 15), size=100_000)
    dead = [SliceId(one) for one, volume in volumes.items() if volume == 1]
    store.delete({ONE: dead[:-1]})
    assert volume_path(tmp_path).exists()
    store.delete({ONE: dead})
    assert not volume_path(tmp_path).exists()
    assert [stats.volume for stats in store.volumes()] == [2]
    assert fault_of(store.read, ONE, dead[0], 0, 1).fault is Fault.CORRUPT
    store = reopen()
    assert list(store.verify()) == []
    assert content(store, VolumeId(2), 14, 100_000) == payload(14, 100_000)


def test_a_removed_volume_does_not_come_back(store, monkeypatch, tmp_path):
    """Without its index everything in it would live again, and nobody would delete it."""
    fill(store, 1)
    store._seal(store._active)
    synced = []
    monkeypatch.setattr(
        "mountfs.chunks.disk.sync_directory",
        lambda path: synced.append((path, volume_path(tmp_path).exists())),
    )
    store.delete({ONE: [SliceId(1)]})
    assert synced == [(tmp_path / "volumes", False)]


def test_a_volume_that_is_being_removed_takes_no_needles(store, monkeypatch):
    fill(store, 1, size=100_000)
    store._seal(store._active)
    real = store._index.drop

    def drop(volume: VolumeId) -> None:
        assert fill(store, 2) == {2: 2}, "it is small enough to be filled again, but for that"
        real(volume)

    monkeypatch.setattr(store._index, "drop", drop)
    store.delete({ONE: [SliceId(1)]})
    assert content(store, VolumeId(2), 2) == payload(2)


def test_deleting_on_a_failing_disk_deletes_nothing(store, writes, reopen):
    fill(store, 1, 2)
    before = store.volumes()
    writes.error = errno.EIO
    assert fault_of(store.delete, {ONE: [SliceId(1)]}).fault is Fault.DEVICE
    writes.error = None
    assert store.volumes() == before
    assert content(store, ONE, 1) == payload(1)
    assert content(reopen(), ONE, 1) == payload(1)


# -- damage


def test_a_flipped_bit_is_named_and_costs_32_kib(store, tmp_path):
    whole = payload(1, 300_000)
    store.append(SliceId(1), [whole])
    fill(store, 2)
    store.sync()
    at = offset_of(volume_path(tmp_path), whole) + 100_000
    flip(volume_path(tmp_path), at)
    error = fault_of(store.read, ONE, SliceId(1), 98_304, 98_305)
    assert error.fault is Fault.CORRUPT
    piece = at - 100_000 + 98_304
    for word in ("00000001.vol", "slice 0x1", f"offset {piece}"):
        assert word in error.detail
    assert fault_of(store.read_now, ONE, SliceId(1), 0, 300_000).fault is Fault.CORRUPT
    assert store.read(ONE, SliceId(1), 0, 98_304) == whole[:98_304]
    assert store.read(ONE, SliceId(1), 131_072, 300_000) == whole[131_072:]
    (damage,) = store.verify()
    assert (damage.volume, damage.slice_id, damage.offset) == (1, 1, piece)
    assert damage.path == str(volume_path(tmp_path))


def test_a_bad_header_in_the_middle_is_damage_and_is_not_cut(store, reopen, tmp_path):
    fill(store, 1, 2, 3, size=500)
    store.sync()
    fill(store, 4, size=500)
    store.sync()
    flip(volume_path(tmp_path), offset_of(volume_path(tmp_path), payload(2, 500)) - 30)
    size = volume_path(tmp_path).stat().st_size
    store = reopen(index=MemoryStore())
    assert volume_path(tmp_path).stat().st_size == size
    assert content(store, ONE, 3, 500) == payload(3, 500)
    assert forgotten(store, ONE, 2)
    (damage,) = store.verify()
    assert (damage.volume, damage.slice_id) == (1, 0)
    assert "558" not in damage.detail
    assert "552 bytes cannot be read" in damage.detail or "560 bytes" in damage.detail
    assert fill(store, 5) == {5: 2}, "a damaged volume takes nothing more"
    store.delete({ONE: [SliceId(1)]})
    assert store.debt().volumes == ()


def test_bytes_that_were_synced_and_are_cut_off_are_damage(store, reopen, tmp_path):
    fill(store, 1, 2, size=500)
    store.sync()
    store.close()
    os.truncate(volume_path(tmp_path), volume_path(tmp_path).stat().st_size - 300)
    store = reopen()
    assert fault_of(store.read, ONE, SliceId(2), 0, 500).fault is Fault.CORRUPT
    assert content(store, ONE, 1, 500) == payload(1, 500)
    assert [damage.slice_id for damage in store.verify()] == [2]
    assert fill(store, 3) == {3: 2}


@pytest.mark.parametrize("how", ["missing", "noise"])
def test_a_volume_that_cannot_be_opened_is_damage(store, reopen, tmp_path, how):
    volumes = fill(store, *range(1, 15), size=100_000)
    store.sync()
    store.close()
    if how == "missing":
        volume_path(tmp_path).unlink()
    else:
        volume_path(tmp_path).write_bytes(b"noise" * 2000)
    store = reopen()
    error = fault_of(store.read, ONE, SliceId(1), 0, 1)
    assert error.fault is Fault.CORRUPT
    assert "00000001.vol" in error.detail
    assert [damage.volume for damage in store.verify()] == [1]
    assert content(store, volumes[14], 14, 100_000) == payload(14, 100_000)
    store.delete({ONE: [SliceId(1)]})
    assert 1 not in fill(store, *range(20, 40), size=100_000).values()


def test_verification_tells_how_far_it_is(store):
    fill(store, *range(1, 30))
    seen = []
    assert list(store.verify(lambda done, total: seen.append((done, total)))) == []
    assert len(seen) == 29
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1] == store.volumes()[0].living_bytes


def test_deleting_gives_space_back_without_compaction(tmp_path: Path) -> None:
    store = DiskStore(tmp_path, MemoryStore(), config=ChunkConfig(preallocate_bytes=64 * KIB))
    fill(store, *range(1, 9), size=MIB)
    store.sync()
    before = volume_path(tmp_path).stat().st_blocks * 512
    store.delete({ONE: [SliceId(one) for one in range(2, 8)]})
    store.give_back()
    assert before - volume_path(tmp_path).stat().st_blocks * 512 > 5 * MIB
    assert content(store, ONE, 1, MIB) == payload(1, MIB)
    assert content(store, ONE, 8, MIB) == payload(8, MIB)
    assert list(store.verify()) == []
    store.close()
    again = DiskStore(tmp_path, MemoryStore())  # the index is lost: it is made anew
    assert content(again, ONE, 8, MIB) == payload(8, MIB)
    assert forgotten(again, ONE, 2)
    assert list(again.verify()) == []
    again.close()


def test_a_needle_whose_deletion_is_lost_in_a_crash_is_whole_again(tmp_path: Path) -> None:
    store = DiskStore(tmp_path, MemoryStore(), home=bytes(16))
    fill(store, 1, 2, size=100 * KIB)
    store.sync()
    size = volume_path(tmp_path).stat().st_size
    store.delete({ONE: [SliceId(1)]})
    os.truncate(volume_path(tmp_path), size)  # the tombstone was in memory only
    again = DiskStore(tmp_path, MemoryStore(), home=bytes(16))
    assert content(again, ONE, 1, 100 * KIB) == payload(1, 100 * KIB)
    assert list(again.verify()) == []
