"""Reading slices of replicas that are damaged, silent, slow, or elsewhere now."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from mountfs.chunks.config import HedgeConfig
from mountfs.chunks.protocol import Method, first_volume_of
from mountfs.chunks.remote import RemoteChunks
from mountfs.errors import Fault, FsError
from mountfs.meta.ops.volumes import VolumeRecord
from mountfs.types import SliceId, VolumeId
from tests.chunks.nodes import Leader, Nodes, inline_threads

END_S = 300.0
ONE, TWO = SliceId(1), SliceId(2)
DATA = random.Random(1).randbytes(200_000)
HEDGING = HedgeConfig(floor_ms=100, ceiling_ms=1_000)


@pytest.fixture
def nodes(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Nodes]:
    inline_threads(monkeypatch)
    found = Nodes(tmp_path, range(1, 5))
    yield found
    found.close()


@pytest.fixture
def leader(nodes: Nodes) -> Leader:
    return Leader(nodes)


async def written(leader: Leader, copies: int = 3, slice_id: SliceId = ONE) -> VolumeRecord:
    """A slice, written by somebody else."""
    with trio.fail_after(END_S):
        stored = await leader.client(session=99).write(slice_id, [DATA], copies)
    return leader.records[stored.volume]


async def read(
    chunks: RemoteChunks,
    volume: VolumeId,
    slice_id: SliceId = ONE,
    start: int = 5,
    stop: int = 90_000,
) -> bytes:
    with trio.fail_after(END_S):
        return bytes(await chunks.read(volume, slice_id, start, stop))


async def fails(fault: Fault, work: Any, match: str = ".") -> None:
    with pytest.raises(FsError, match=match) as caught:
        await work
    assert caught.value.fault is fault, caught.value


def asked(leader: Leader) -> list[int]:
    """Who was asked for bytes, and forget it."""
    found = []
    for number, node in leader.nodes.all.items():
        found += [number] * node.calls.count(Method.READ)
        node.calls.clear()
    return found


@pytest.mark.parametrize("copies", [1, 3])
async def test_what_was_written_can_be_read_in_parts(
    leader: Leader, autojump_clock: MockClock, copies: int
) -> None:
    volume = (await written(leader, copies)).number
    chunks = leader.client()
    for start, stop in ((0, 1), (0, len(DATA)), (70_000, 70_001), (65_536, 131_072)):
        assert await read(chunks, volume, ONE, start, stop) == DATA[start:stop]
    found = await chunks.read(volume, ONE, 0, 5)
    found[:] = b"owned"  # the memory is the caller's own
    assert await read(chunks, volume, ONE, 0, 5) == DATA[:5]
    assert len(leader.questions) == 1


async def test_who_has_written_it_knows_where_it_is(
    leader: Leader, autojump_clock: MockClock
) -> None:
    chunks = leader.client()
    stored = await chunks.write(ONE, [DATA])
    assert await read(chunks, stored.volume) == DATA[5:90_000]
    assert not leader.questions


async def test_reads_of_different_slices_go_to_different_replicas(
    leader: Leader, autojump_clock: MockClock
) -> None:
    client = leader.client(session=99)
    volumes = {name: (await client.write(SliceId(name), [DATA], 3)).volume for name in range(1, 13)}
    chunks = leader.client()
    for name, volume in volumes.items():
        await read(chunks, volume, SliceId(name))
    counts = leader.nodes.calls(Method.READ)
    assert max(counts.values()) <= 6, counts


SPOILT = ["damaged", "lost", "device", "rubbish", "bit", "breaks off", "down", "no such method"]


def spoil(leader: Leader, number: int, how: str, volume: VolumeId) -> None:
    node = leader.nodes[number]
    if how == "damaged":
        node.damage(volume, ONE)
    elif how == "lost":
        node.lose(volume, ONE)
    elif how == "device":
        node.refuse(Method.READ, Fault.DEVICE)
    elif how == "no such method":
        node.refuse(Method.READ, Fault.NOT_IMPLEMENTED)
    elif how == "rubbish":
        node.answer(Method.READ, b"\1\2\3")
    elif how == "bit":
        node.after = lambda method, answer: answer[:-1] + bytes(one ^ 4 for one in answer[-1:])
    elif how == "breaks off":
        node.lose_answers(Method.READ)
    else:
        node.down = True


@pytest.mark.parametrize("how", SPOILT)
async def test_what_one_replica_cannot_give_another_one_gives_and_nobody_is_told(
    leader: Leader, autojump_clock: MockClock, how: str
) -> None:
    record = await written(leader)
    for bad in record.replicas:
        before = trio.current_time()
        spoil(leader, bad, how, record.number)
        chunks = leader.client()
        assert await read(chunks, record.number) == DATA[5:90_000]
        assert not chunks.problem
        assert trio.current_time() - before < 1, "it is tried at once"
        if how in ("damaged", "lost"):
            return  # it stays so
        leader.nodes[bad].well()


@pytest.mark.parametrize("how", ["damaged", "lost", "rubbish", "bit"])
async def test_what_no_replica_has_whole_is_corrupt(
    leader: Leader, autojump_clock: MockClock, how: str
) -> None:
    record = await written(leader)
    for bad in record.replicas:
        spoil(leader, bad, how, record.number)
    with trio.fail_after(END_S):
        await fails(Fault.CORRUPT, leader.client().read(record.number, ONE, 0, 5))


async def test_a_failure_that_makes_no_sense_to_who_reads_is_one_of_the_disk(
    leader: Leader,
    autojump_clock: MockClock,
) -> None:
    record = await written(leader)
    for number in record.replicas:
        leader.nodes[number].refuse(Method.READ, Fault.NOT_IMPLEMENTED)
    await fails(Fault.DEVICE, leader.client().read(record.number, ONE, 0, 5), "node 2")
    leader.nodes[record.replicas[2]].well()
    leader.nodes[record.replicas[2]].damage(record.number, ONE)
    await fails(Fault.CORRUPT, leader.client().read(record.number, ONE, 0, 5))


async def test_as_long_as_somebody_may_have_it_whole_it_is_waited_for(
    leader: Leader, autojump_clock: MockClock
) -> None:
    record = await written(leader)
    one, two, three = record.replicas
    leader.nodes[one].damage(record.number, ONE)
    leader.nodes[two].lose(record.number, ONE)
    leader.nodes[three].down = True
    chunks = leader.client()
    async with trio.open_nursery() as nursery:
        found: list[bytes] = []

        async def work() -> None:
            found.append(await read(chunks, record.number))

        nursery.start_soon(work)
        await trio.sleep(30)
        assert not found
        assert f"node {three}" in chunks.problem
        leader.nodes[three].down = False
    assert found == [DATA[5:90_000]]
    assert not chunks.problem


async def test_reads_wait_while_all_replicas_are_down_and_go_on_when_one_is_back(
    leader: Leader,
    autojump_clock: MockClock,
) -> None:
    record = await written(leader)
    for number in record.replicas:
        leader.nodes[number].down = True
    chunks = leader.client()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read, chunks, record.number)
        await trio.sleep(100)
        leader.nodes[record.replicas[1]].down = False
    for number in record.replicas:
        leader.nodes[number].down = True
    begun = trio.current_time()
    await fails(Fault.TIMED_OUT, leader.client(soft_s=5).read(record.number, ONE, 0, 5), "node")
    assert trio.current_time() - begun == 5


async def test_a_node_that_is_too_busy_is_asked_again_later(
    leader: Leader, autojump_clock: MockClock
) -> None:
    record = await written(leader, copies=1)
    leader.nodes[record.replicas[0]].refuse(Method.READ, Fault.UNAVAILABLE, times=5)
    assert await read(leader.client(), record.number) == DATA[5:90_000]


async def test_a_connection_that_a_node_refuses_for_now_is_tried_again(
    leader: Leader, autojump_clock: MockClock
) -> None:
    record = await written(leader, copies=1)
    chunks = leader.client()
    link, times = chunks._link, 0

    async def refusing(node: int) -> Any:
        nonlocal times
        times += 1
        if times < 4:
            raise FsError(Fault.BUSY, "it has 1000 connections")
        return await link(node)

    chunks._link = refusing
    assert await read(chunks, record.number) == DATA[5:90_000]


# -- elsewhere


async def move(leader: Leader, record: VolumeRecord, *replicas: int) -> None:
    """The copies are at other nodes now, and the old ones have gone."""
    disk = leader.nodes[record.replicas[0]].disks.disk_of(record.number)
    assert disk is not None
    for node in replicas:
        if node not in record.replicas:
            leader.nodes[node].disks.open_volume(record.number, 9)
            other = leader.nodes[node].disks.disk_of(record.number)
            assert other is not None
            other.store.append(ONE, [DATA], None, record.number)
    leader.move(record.number, *replicas)
    for node in record.replicas:
        if node not in replicas:
            leader.nodes[node].disks.drop(record.number)


async def test_a_volume_that_has_moved_is_asked_for_again(
    leader: Leader, autojump_clock: MockClock
) -> None:
    record = await written(leader, copies=2)
    chunks = leader.client()
    await read(chunks, record.number)
    first, others = record.replicas[0], set(range(1, 5)) - set(record.replicas)
    await move(leader, record, *sorted(others))
    begun = trio.current_time()
    assert await read(chunks, record.number) == DATA[5:90_000]
    assert trio.current_time() == begun, "nothing is waited for"
    # And again, while who had it last is silent.
    leader.nodes[min(others)].down = leader.nodes[max(others)].down = True
    leader.nodes[first].disks.open_volume(record.number, 9)
    disk = leader.nodes[first].disks.disk_of(record.number)
    assert disk is not None
    disk.store.append(ONE, [DATA], None, record.number)
    leader.move(record.number, first)
    assert await read(chunks, record.number) == DATA[5:90_000]


async def test_who_asks_where_a_volume_is_gets_no_answer_to_an_earlier_question(
    leader: Leader,
    autojump_clock: MockClock,
) -> None:
    """One has asked, and the volume moves before the answer comes.  Another one, who has not found
    it where it was, must not take that answer for one to its own question.
    """
    record = await written(leader, copies=1)
    chunks = leader.client()
    await read(chunks, record.number)
    (other,) = sorted(set(range(1, 5)) - set(record.replicas))[:1]
    where = leader.where
    slow: list[trio.Event] = []

    async def delayed(numbers: tuple[VolumeId, ...]) -> Any:
        answer = await where(numbers)
        if len(slow) < 1:
            slow.append(trio.Event())
            await trio.sleep(5)
        return answer

    chunks.volumes._ask = delayed
    leader.nodes[record.replicas[0]].slow(Method.READ, 3)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read, chunks, record.number)  # fails in 3 s
        await trio.sleep(1)
        chunks.volumes.forget(record.number)
        nursery.start_soon(read, chunks, record.number)  # asks now, and hears it in 5 s
        await trio.sleep(1)
        await move(leader, record, other)


async def test_a_volume_that_there_is_not_is_corrupt(
    leader: Leader, autojump_clock: MockClock
) -> None:
    record = await written(leader)
    chunks = leader.client()
    await fails(Fault.CORRUPT, chunks.read(VolumeId(record.number + 50), ONE, 0, 5), "no volume")
    await fails(Fault.CORRUPT, chunks.read(record.number, TWO, 0, 5))


async def test_a_volume_without_a_record_is_where_its_number_says(
    leader: Leader, autojump_clock: MockClock
) -> None:
    own = first_volume_of(3)
    leader.nodes[3].disks.open_volume(VolumeId(own), 1)
    disk = leader.nodes[3].disks.disk_of(VolumeId(own))
    assert disk is not None
    disk.store.append(ONE, [DATA], None, VolumeId(own))
    chunks = leader.client()
    assert await read(chunks, VolumeId(own)) == DATA[5:90_000]
    # It is adopted, and moves.
    leader.records[VolumeId(own)] = VolumeRecord(VolumeId(own), (3,), 1, sealed=True)
    await move(leader, leader.records[VolumeId(own)], 2)
    assert await read(chunks, VolumeId(own)) == DATA[5:90_000]


async def test_many_who_ask_share_the_questions(leader: Leader, autojump_clock: MockClock) -> None:
    client = leader.client(session=99)
    volumes = [(await client.write(SliceId(n), [DATA], n % 3 + 1)).volume for n in range(1, 10)]
    chunks = leader.client()

    async def slowly() -> None:
        await trio.sleep(1)

    leader.before = slowly
    async with trio.open_nursery() as nursery:
        for name, volume in enumerate(volumes, 1):
            for _ in range(5):
                nursery.start_soon(read, chunks, volume, SliceId(name))
    assert len(leader.questions) <= 2


# -- hedging


async def test_another_replica_is_asked_when_the_first_is_late_and_the_loser_is_cancelled(
    leader: Leader,
    autojump_clock: MockClock,
) -> None:
    record = await written(leader)
    chunks = leader.client(hedging=HEDGING)
    for number in record.replicas:
        leader.nodes[number].slow(Method.READ, 0.01)
    for _ in range(30):
        await read(chunks, record.number)
    (first,) = set(asked(leader))
    leader.nodes[first].hang(Method.READ)
    begun = trio.current_time()
    assert await read(chunks, record.number) == DATA[5:90_000]
    assert 0.1 <= trio.current_time() - begun < 1
    assert len(asked(leader)) == 2
    assert leader.nodes[first].cancelled == [Method.READ]
    assert chunks.hedges.hedges == chunks.hedges.won == 1
    assert not leader.nodes.under_way


async def test_a_late_answer_that_is_bad_does_not_end_the_race(
    leader: Leader, autojump_clock: MockClock
) -> None:
    record = await written(leader)
    chunks = leader.client(hedging=HEDGING)
    order = [record.replicas[(ONE + turn) % 3] for turn in range(3)]
    leader.nodes[order[0]].slow(Method.READ, 2)
    leader.nodes[order[1]].damage(record.number, ONE)
    leader.nodes[order[2]].slow(Method.READ, 20)
    begun = trio.current_time()
    assert await read(chunks, record.number) == DATA[5:90_000]
    assert trio.current_time() - begun == 2


async def test_who_is_asked_instead_of_one_that_failed_is_not_waited_for_longer_than_others(
    leader: Leader,
    autojump_clock: MockClock,
) -> None:
    """The first one would have been waited for longer, as it takes longer now and then."""
    record = await written(leader)
    chunks = leader.client(hedging=HEDGING)
    first, second, third = (record.replicas[(ONE + turn) % 3] for turn in range(3))
    for turn in range(50):
        for number in (first, second, third):
            took_ms = 200 if number != first else 300 if turn % 10 else 900
            now = trio.current_time() * 1000
            chunks.hedges.read([number], 80_000, {}, now).answered(number, now + took_ms)
    leader.nodes[first].refuse(Method.READ, Fault.DEVICE)
    leader.nodes[second].hang(Method.READ)
    begun = trio.current_time()
    assert await read(chunks, record.number) == DATA[5:90_000]
    assert len(asked(leader)) == 3
    assert trio.current_time() - begun < 0.3


async def test_who_is_cancelled_leaves_nothing_running_and_nothing_counted(
    leader: Leader, autojump_clock: MockClock
) -> None:
    record = await written(leader)
    chunks = leader.client(hedging=HEDGING)
    for number in record.replicas:
        leader.nodes[number].hang(Method.READ)
    with trio.move_on_after(3) as scope:
        await chunks.read(record.number, ONE, 0, 5)
    assert scope.cancelled_caught
    assert not leader.nodes.under_way
    assert all(
        not lane.under_way
        for lane in (*chunks.hedges.health.small.values(), *chunks.hedges.health.large.values())
    )


async def test_without_hedging_a_node_that_hangs_is_given_up_in_the_end(
    leader: Leader, autojump_clock: MockClock
) -> None:
    record = await written(leader)
    chunks = leader.client(hedging=HedgeConfig(enabled=False))
    leader.nodes[record.replicas[ONE % 3]].hang(Method.READ)
    assert await read(chunks, record.number) == DATA[5:90_000]
    assert chunks.hedges.hedges == 0


@pytest.mark.parametrize("seed", range(12))
async def test_whatever_the_others_do_one_good_replica_is_enough(
    leader: Leader, autojump_clock: MockClock, seed: int
) -> None:
    dice = random.Random(seed)
    record = await written(leader, copies=dice.choice([2, 3]))
    good, *bad = dice.sample(record.replicas, len(record.replicas))
    if dice.random() < 0.5:
        leader.nodes[good].slow(Method.READ, dice.random() * 3)
    for number in bad:
        how = dice.choice([*SPOILT, "hangs", "late"])
        if how == "hangs":
            leader.nodes[number].hang(Method.READ)
        elif how == "late":
            leader.nodes[number].slow(Method.READ, dice.random() * 30)
        else:
            spoil(leader, number, how, record.number)
    chunks = leader.client(hedging=HEDGING)

    async def some() -> None:
        for _ in range(10):
            start = dice.randrange(len(DATA) - 1)
            stop = dice.randrange(start + 1, len(DATA))
            assert await read(chunks, record.number, ONE, start, stop) == DATA[start:stop]

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(some)
    assert not leader.nodes.under_way
    lanes = (*chunks.hedges.health.small.values(), *chunks.hedges.health.large.values())
    assert not any(lane.under_way for lane in lanes)


async def test_a_node_whose_bytes_do_not_match_is_asked_to_look_at_them(
    leader: Leader, autojump_clock: MockClock
) -> None:
    """It may have sent them without, and what is damaged there has to be known."""
    record = await written(leader)
    for number in record.replicas:
        spoil(leader, number, "bit", record.number)
    with pytest.raises(FsError):
        await read(leader.client(), record.number)
    calls = leader.nodes.calls(Method.VERIFY)
    assert [calls[number] for number in record.replicas] == [1] * len(record.replicas)
