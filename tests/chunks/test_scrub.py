"""All that a disk holds is read once in a while, and what is damaged is noted."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from mountfs.chunks import scrub
from mountfs.chunks.config import ChunkConfig
from mountfs.chunks.disk import DiskStore
from mountfs.chunks.scrub import Scrub
from mountfs.kv.memory import MemoryStore
from mountfs.types import KIB, MIB, SliceId, VolumeId

END_S = 30.0
ONE, TWO = VolumeId(1 << 31), VolumeId((1 << 31) + 1)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DiskStore]:
    config = ChunkConfig(volume_bytes=8 * MIB, preallocate_bytes=256 * KIB, reserve_bytes=0)
    found = DiskStore(tmp_path, MemoryStore(), home=b"home" * 4, config=config)
    for volume in (ONE, TWO):
        found.open_volume(volume, 1)
        for name in range(1, 9):
            data = random.Random(name).randbytes(40 * KIB)
            found.append(SliceId(name), [data], volume_id=volume, epoch=1)
    found.sync()
    yield found
    found.close()


@pytest.fixture
def scrubbing(store: DiskStore, tmp_path: Path) -> Callable[[], Scrub]:
    return lambda: Scrub(store, tmp_path, period_s=1_000.0, clock=lambda: 5_000.0 + clock[0])


clock = [0.0]


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrub, "STEP_BYTES", 100 * KIB)
    clock[0] = 0.0


def damage(store: DiskStore, volume: VolumeId, slice_id: SliceId) -> None:
    found = store.place(volume, slice_id)
    assert found is not None
    path, place = found
    with Path(path).open("r+b") as file:
        file.seek(place.offset + 20 * KIB)
        file.write(b"rot")


def to_its_end(one: Scrub, steps_max: int = 100) -> int:
    for step in range(1, steps_max):
        one.step()
        if one.state.now is None:
            return step
    raise AssertionError("it does not end")


def test_what_is_well_is_read_once_and_counted(
    store: DiskStore, scrubbing: Callable[[], Scrub]
) -> None:
    one = scrubbing()
    assert one.share == 0.0
    one.step()
    assert 0 < one.share < 1
    to_its_end(one)
    assert one.share == 1.0
    last = one.state.last
    assert last is not None
    assert (last.needles, last.damaged) == (16, 0)
    assert last.bytes == sum(stats.living_bytes for stats in store.volumes())
    assert not store.troubles()


def test_damage_is_noted_where_it_is_and_nowhere_else(
    store: DiskStore, scrubbing: Callable[[], Scrub]
) -> None:
    damage(store, TWO, SliceId(3))
    one = scrubbing()
    to_its_end(one)
    assert one.state.last is not None
    assert one.state.last.damaged == 1
    assert store.damaged(TWO, SliceId(0), 9) == [(SliceId(3), 40 * KIB)]
    assert store.damaged(ONE, SliceId(0), 9) == []
    stats = store.stats(TWO)
    assert stats is not None
    assert "0x3" in stats.failed


def test_a_restart_goes_on_where_it_stopped(
    store: DiskStore, scrubbing: Callable[[], Scrub], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scrub, "KEEP_S", 0.0)
    one = scrubbing()
    steps = to_its_end(one)
    clock[0] = 2_000.0
    one.step()
    for _ in range(3):
        one = scrubbing()
        one.step()
    assert one.state.now is not None
    assert one.state.now.needles > 8
    assert to_its_end(one) == steps - 4
    assert one.state.last is not None
    assert one.state.last.needles == 16


def test_what_is_kept_may_be_damaged(scrubbing: Callable[[], Scrub], tmp_path: Path) -> None:
    (tmp_path / scrub.NAME).write_bytes(b"{")
    to_its_end(scrubbing())


def test_a_volume_that_goes_meanwhile_is_passed_over(
    store: DiskStore, scrubbing: Callable[[], Scrub]
) -> None:
    one = scrubbing()
    one.step()
    store.drop(ONE)
    to_its_end(one)
    assert one.state.last is not None
    assert one.state.last.damaged == 0


def test_it_is_due_once_in_a_period(scrubbing: Callable[[], Scrub]) -> None:
    one = scrubbing()
    assert one.state.is_due(5_000.0, 1_000.0)
    to_its_end(one)
    assert not one.state.is_due(5_999.0, 1_000.0)
    assert one.state.is_due(6_000.0, 1_000.0)
    assert one.state.is_due(4_000.0, 1_000.0), "a clock that was set back"


async def test_it_runs_by_itself_and_rests(
    scrubbing: Callable[[], Scrub], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scrub, "RATE_MIN", 1 << 40)
    monkeypatch.setattr(scrub, "IDLE_S", 0.001)
    one = scrubbing()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.run)
        with trio.fail_after(END_S):
            while one.state.last is None:  # noqa: ASYNC110
                await trio.sleep(0.005)
        for _ in range(20):
            await trio.sleep(0.002)
            assert one.state.now is None
        nursery.cancel_scope.cancel()
