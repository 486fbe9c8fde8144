"""Writing slices to all replicas, while nodes are down, slow, full, or answer rubbish."""

import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from crc32c import crc32c
from trio.testing import MockClock

from mountfs.chunks.protocol import Allot, Method
from mountfs.chunks.remote import ATTEMPT_S, STRAGGLER_S, RemoteChunks
from mountfs.errors import Fault, FsError
from mountfs.meta.ops.volumes import VolumeRecord
from mountfs.types import KIB, MIB, SliceId
from tests.chunks.nodes import Leader, Node, Nodes, inline_threads

END_S = 300.0
"""Of a clock that jumps: nothing here takes as long, unless it hangs."""
ONE, TWO = SliceId(1), SliceId(2)


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


def payload(slice_id: int, size: int = 10_000) -> bytes:
    return random.Random(slice_id).randbytes(size)


async def write(
    chunks: RemoteChunks, slice_id: SliceId = ONE, *, data: bytes | None = None, copies: int = 0
) -> Any:
    data = payload(slice_id) if data is None else data
    with trio.fail_after(END_S):
        return await chunks.write(slice_id, [data[:100], memoryview(data)[100:]], copies)


def record_of(leader: Leader, stored: Any) -> VolumeRecord:
    return leader.records[stored.volume]


def check(leader: Leader, stored: Any, slice_id: SliceId = ONE, data: bytes | None = None) -> None:
    """All replicas have it."""
    data = payload(slice_id) if data is None else data
    assert stored.crc == crc32c(data)
    for node in record_of(leader, stored).replicas:
        assert leader.nodes[node].content(stored.volume, slice_id) == data, node


def last(leader: Leader) -> Allot:
    return leader.asked[-1]


async def ready(leader: Leader) -> tuple[RemoteChunks, VolumeRecord]:
    """A client, and the volume that its next slice goes to."""
    chunks = leader.client()
    stored = await write(chunks, SliceId(1_000))
    return chunks, record_of(leader, stored)


async def fails(fault: Fault, work: Any, match: str = ".") -> None:
    with pytest.raises(FsError, match=match) as caught, trio.fail_after(END_S):
        await work
    assert caught.value.fault is fault, caught.value


@pytest.mark.parametrize("copies", [1, 2, 3])
async def test_what_is_written_is_on_all_replicas(
    leader: Leader, autojump_clock: MockClock, copies: int
) -> None:
    chunks = leader.client()
    stored = await write(chunks, copies=copies)
    assert len(record_of(leader, stored).replicas) == copies
    check(leader, stored)
    assert chunks.rewrites == 0
    assert not leader.nodes.under_way


async def test_slices_share_the_volumes_that_are_open(
    leader: Leader, autojump_clock: MockClock
) -> None:
    chunks = leader.client()
    async with trio.open_nursery() as nursery:
        for one in range(1, 31):
            nursery.start_soon(write, chunks, SliceId(one))
    assert len(leader.asked) == 1
    names = {number: leader.nodes[1].names(number) for number in leader.records}
    assert sum(map(len, names.values())) < 30, "some went to volumes that are elsewhere"


async def test_two_clients_write_to_volumes_of_their_own(
    leader: Leader, autojump_clock: MockClock
) -> None:
    one = await write(leader.client(session=7))
    other = await write(leader.client(session=8), TWO)
    assert one.volume != other.volume


BAD = ["down", "device", "full", "corrupt", "hangs", "slow", "breaks off", "rubbish", "unknown"]


def spoil(node: Node, how: str) -> None:
    if how == "down":
        node.down = True
    elif how == "device":
        node.refuse(Method.WRITE, Fault.DEVICE)
    elif how == "full":
        node.refuse(Method.WRITE, Fault.NO_SPACE)
    elif how == "corrupt":
        node.refuse(Method.WRITE, Fault.CORRUPT)
    elif how == "unknown":
        node.refuse(Method.WRITE, Fault.NOT_IMPLEMENTED)
    elif how == "hangs":
        node.hang(Method.WRITE)
    elif how == "slow":
        node.slow(Method.WRITE, 3 * STRAGGLER_S)
    elif how == "breaks off":
        node.lose_answers(Method.WRITE)
    else:
        node.answer(Method.WRITE, b"\0\0\0\0")


@pytest.mark.parametrize("how", BAD)
async def test_a_node_that_does_not_take_a_slice_is_left_out_and_the_writer_sees_nothing(
    leader: Leader, autojump_clock: MockClock, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    chunks, before = await ready(leader)
    bad = before.replicas[1]
    spoil(leader.nodes[bad], how)
    with caplog.at_level(logging.WARNING):
        for one in range(1, 5):
            stored = await write(chunks, SliceId(one))
            check(leader, stored, SliceId(one))
            assert bad not in record_of(leader, stored).replicas
    assert f"node {bad}" in caplog.text
    assert last(leader).avoid == (bad,)
    assert (before.number, before.epoch) in last(leader).failed
    assert leader.records[before.number].sealed
    assert len(leader.asked) == 2, "whoever is left out once is not asked again"
    assert chunks.rewrites == 1
    assert not chunks.problem
    assert not leader.nodes.under_way


async def test_a_node_that_was_left_out_comes_back_after_a_while(
    leader: Leader, autojump_clock: MockClock
) -> None:
    chunks, before = await ready(leader)
    bad = leader.nodes[before.replicas[0]]
    bad.down = True
    stored = await write(chunks)
    bad.down = False
    other = leader.nodes[record_of(leader, stored).replicas[0]]
    for wait_s, avoided in ((10, {bad.number, other.number}), (100, {other.number})):
        await trio.sleep(wait_s)
        other.down = True
        pool = chunks._open._pool
        while volume := pool.one(0):  # until a new set is asked for
            pool.failed(volume, {other.number: FsError(Fault.DEVICE)}, 7, trio.current_time())
        await write(chunks, TWO)
        assert set(last(leader).avoid) == avoided


async def test_who_is_a_little_slower_than_another_is_waited_for(
    leader: Leader, autojump_clock: MockClock
) -> None:
    chunks, before = await ready(leader)
    one, other = (leader.nodes[number] for number in before.replicas)
    other.slow(Method.WRITE, STRAGGLER_S - 0.5)
    assert (await write(chunks)).volume == before.number
    one.slow(Method.WRITE, 1.0)  # then the other one may take longer
    other.slow(Method.WRITE, 5.5)
    chunks.rewrites = 0
    stored = await write(chunks, TWO)
    assert (stored.volume, chunks.rewrites) == (before.number, 0)
    check(leader, stored, TWO)


async def test_a_node_with_too_much_to_do_is_asked_again_and_keeps_its_volume(
    leader: Leader,
    autojump_clock: MockClock,
) -> None:
    chunks, before = await ready(leader)
    leader.nodes[before.replicas[0]].refuse(Method.WRITE, Fault.UNAVAILABLE, times=3)
    stored = await write(chunks)
    check(leader, stored)
    assert (stored.volume, len(leader.asked)) == (before.number, 1)
    leader.nodes[before.replicas[0]].refuse(Method.WRITE, Fault.UNAVAILABLE)
    stored = await write(chunks, TWO)  # but not for ever
    check(leader, stored, TWO)
    assert stored.volume != before.number


async def test_nobody_waits_for_a_node_that_another_has_shown_to_be_slow(
    leader: Leader, autojump_clock: MockClock
) -> None:
    chunks, before = await ready(leader)
    leader.nodes[before.replicas[0]].hang(Method.WRITE)
    begun = trio.current_time()
    await write(chunks)
    assert trio.current_time() - begun < 2 * STRAGGLER_S


async def test_all_volumes_with_a_node_that_fails_are_given_up_at_once(
    leader: Leader, autojump_clock: MockClock
) -> None:
    leader.copies = 4  # so that it is in all of them
    chunks, before = await ready(leader)
    leader.nodes[3].hang(Method.WRITE)
    leader.copies = 2
    begun = trio.current_time()
    stored = await write(chunks)
    check(leader, stored)
    assert trio.current_time() - begun < 2 * STRAGGLER_S
    assert last(leader).failed == ((before.number, 1),), "the others are as good as they were"
    assert last(leader).held == ()


async def test_when_one_replica_fails_the_others_are_not_waited_for(
    leader: Leader, autojump_clock: MockClock
) -> None:
    chunks, before = await ready(leader)
    one, other = (leader.nodes[number] for number in before.replicas)
    one.slow(Method.WRITE, 1.0)
    other.refuse(Method.WRITE, Fault.DEVICE)
    begun = trio.current_time()
    await write(chunks)
    assert trio.current_time() - begun < 1.5, "one attempt of `one`, not two"
    assert one.cancelled == [Method.WRITE], "it is told that nobody waits"
    assert last(leader).avoid == (other.number,)


async def test_a_volume_that_a_node_has_closed_is_given_back_and_not_sealed(
    leader: Leader,
    autojump_clock: MockClock,
) -> None:
    chunks, before = await ready(leader)
    for node in before.replicas:
        leader.nodes[node].restart()
    for one in range(1, 6):
        stored = await write(chunks, SliceId(one))
        check(leader, stored, SliceId(one))
    await write(chunks, TWO)
    given = [volume for asked in leader.returned for volume in asked.volumes]
    assert (before.number, before.epoch) in given
    assert not any(asked.full for asked in leader.returned)
    assert not any(asked.failed or asked.avoid for asked in leader.asked)
    assert not any(record.sealed for record in leader.records.values())


async def test_one_that_has_restarted_does_not_excuse_one_that_fails(
    leader: Leader, autojump_clock: MockClock
) -> None:
    """Slices in flight tell different things of one volume."""
    leader.copies = 3
    chunks, before = await ready(leader)
    restarted, bad, _ = before.replicas
    leader.nodes[restarted].slow(Method.WRITE, 1.0)
    leader.nodes[bad].slow(Method.WRITE, 1.5)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(write, chunks, ONE)
        await trio.sleep(0.1)
        leader.nodes[restarted].restart()
        leader.nodes[restarted].well()
        await write(chunks, TWO)  # this one finds it closed
        leader.nodes[bad].refuse(Method.WRITE, Fault.DEVICE)
        leader.nodes[restarted].hang(Method.WRITE)
    for number, node in leader.nodes.all.items():
        if number != bad:
            node.well()
    await write(chunks, SliceId(3))
    assert bad in last(leader).avoid


async def test_a_full_volume_is_given_back(leader: Leader, autojump_clock: MockClock) -> None:
    chunks = leader.client()
    for one in range(1, 24):  # each volume has room for 7
        stored = await write(chunks, SliceId(one), data=payload(one, MIB))
        check(leader, stored, SliceId(one), payload(one, MIB))
    assert leader.returned
    assert not any(asked.failed or asked.avoid for asked in leader.asked)


async def test_a_volume_that_takes_nothing_from_the_beginning_is_not_given_out_for_ever(
    leader: Leader,
    autojump_clock: MockClock,
) -> None:
    await leader.client().write(ONE, [b"x"])
    await ready(leader)
    chunks = leader.client(session=9)
    for node in leader.nodes.all.values():
        node.refuse(Method.WRITE, Fault.VOLUME_CLOSED, times=3)
    await write(chunks, TWO)
    full = {number for asked in leader.returned for number in asked.full}
    assert full, "the leader is told that it has no room"
    assert all(leader.records[number].epoch > 1 for number in full), "a new one has room"


async def test_when_there_is_no_space_the_writer_is_told(
    leader: Leader, autojump_clock: MockClock
) -> None:
    leader.refusal = FsError(Fault.NO_SPACE, "all nodes are full")
    chunks = leader.client()
    await fails(Fault.NO_SPACE, chunks.write(ONE, [b"x"]), "all nodes are full")
    leader.refusal = None
    check(leader, await write(chunks))


async def test_many_who_wait_for_a_volume_share_the_answer_that_there_is_none(
    leader: Leader,
    autojump_clock: MockClock,
) -> None:
    leader.refusal = FsError(Fault.NO_SPACE, "full")
    chunks = leader.client()
    told: list[Fault] = []

    async def one(name: int) -> None:
        try:
            await chunks.write(SliceId(name), [b"x"])
        except FsError as error:
            told.append(error.fault)

    async with trio.open_nursery() as nursery:
        for name in range(1, 51):
            nursery.start_soon(one, name)
    assert told == [Fault.NO_SPACE] * 50
    assert len(leader.asked) == 1


async def test_what_the_leader_cannot_give_now_is_waited_for(
    leader: Leader, autojump_clock: MockClock
) -> None:
    leader.refusal = FsError(Fault.UNAVAILABLE, "too few nodes are there")
    chunks = leader.client()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(write, chunks)
        await trio.sleep(20)
        assert chunks.problem == "too few nodes are there"
        assert 10 < len(leader.asked) < 40
        leader.refusal = None
    assert not chunks.problem


async def test_a_soft_mount_gives_up(leader: Leader, autojump_clock: MockClock) -> None:
    chunks = leader.client(soft_s=5)
    await write(chunks)
    for node in leader.nodes.all.values():
        node.down = True
    leader.before = trio.sleep_forever
    begun = trio.current_time()
    await fails(Fault.TIMED_OUT, chunks.write(TWO, [b"x"]), "5 s: .*node")
    assert trio.current_time() - begun == 5
    assert not leader.nodes.under_way


async def never(node: int) -> Any:
    await trio.sleep_forever()


@pytest.mark.parametrize("where", ["leader", "node", "link"])
async def test_who_is_cancelled_leaves_nothing_running(
    leader: Leader, autojump_clock: MockClock, where: str
) -> None:
    chunks, before = await ready(leader)
    if where == "leader":
        chunks = leader.client()
        leader.before = trio.sleep_forever
    elif where == "node":
        leader.nodes[before.replicas[0]].hang(Method.WRITE)
    else:
        chunks._link = never
    with trio.move_on_after(1) as scope:
        await chunks.write(ONE, [b"x"])
    assert scope.cancelled_caught
    assert not leader.nodes.under_way
    leader.before = trio.lowlevel.checkpoint
    chunks._link = leader.nodes.link
    for node in leader.nodes.all.values():
        node.well()
    check(leader, await write(chunks, TWO), TWO)


async def test_many_slices_in_flight_when_a_node_dies_need_one_new_set_of_volumes(
    leader: Leader,
    autojump_clock: MockClock,
) -> None:
    leader.copies = 3
    chunks, _ = await ready(leader)
    for node in leader.nodes.all.values():
        node.slow(Method.WRITE, 1.0)
    async with trio.open_nursery() as nursery:
        stored: dict[SliceId, Any] = {}

        async def one(name: SliceId) -> None:
            stored[name] = await write(chunks, name)

        for name in range(1, 41):
            nursery.start_soon(one, SliceId(name))
        await trio.sleep(0.5)
        leader.nodes[2].down = True
    assert len(leader.asked) == 2
    for name, found in stored.items():
        check(leader, found, name)
        assert 2 not in record_of(leader, found).replicas


async def test_an_answer_of_the_leader_that_is_lost_gives_nothing_away_for_long(
    leader: Leader,
    autojump_clock: MockClock,
) -> None:
    """What it gave is not named when it is asked again: so it knows that we have not got it."""
    chunks = leader.client()
    lost: list[Any] = []
    allot = leader.allot

    async def losing(asked: Allot) -> Any:
        found = await allot(asked)
        if len(lost) < 2:
            lost.append(found)
            raise FsError(Fault.UNAVAILABLE, "the answer was lost")
        return found

    chunks._open._allot = losing
    stored = await write(chunks)
    check(leader, stored)
    assert [asked.held for asked in leader.asked] == [(), (), ()]
    assert stored.volume not in {record.number for found in lost for record in found}
    stored = await write(chunks, TWO, copies=3)
    held = {number for number, _ in last(leader).held}
    assert len(held) == 2
    assert held.isdisjoint(record.number for found in lost for record in found)


async def test_who_stops_gives_its_volumes_back(leader: Leader, autojump_clock: MockClock) -> None:
    chunks, _ = await ready(leader)
    await write(chunks, copies=1)
    await chunks.close()
    assert all(not record.owner and not record.sealed for record in leader.records.values())
    leader.refusal = FsError(Fault.SESSION_ENDED, "it has ended")
    chunks, other = leader.client(), leader.client()
    await other.close()  # and nothing happens
    await fails(Fault.SESSION_ENDED, chunks.write(ONE, [b"x"]))


@pytest.mark.parametrize("seed", range(12))
async def test_no_slice_is_acknowledged_that_a_replica_lacks(
    leader: Leader, autojump_clock: MockClock, seed: int
) -> None:
    """Whatever two of four nodes do, and whenever they do it."""
    dice = random.Random(seed)
    leader.copies = dice.choice([2, 2, 3])
    chunks = leader.client()
    stored: dict[SliceId, Any] = {}

    async def one(name: SliceId) -> None:
        await trio.sleep(dice.random() * 20)
        stored[name] = await write(chunks, name)

    async def misbehave(node: Node) -> None:
        while True:
            how = dice.choice([*BAD, "restart", "restart", "well"])
            node.well()
            if how == "restart":
                node.restart()
            elif how != "well":
                spoil(node, how)
            await trio.sleep(dice.random() * 10)

    async with trio.open_nursery() as nursery:
        for number in dice.sample(range(1, 5), 2):
            nursery.start_soon(misbehave, leader.nodes[number])
        async with trio.open_nursery() as writers:
            for name in range(1, 61):
                writers.start_soon(one, SliceId(name))
        nursery.cancel_scope.cancel()
    assert len(stored) == 60
    for name, found in stored.items():
        check(leader, found, name)
    assert not leader.nodes.under_way


# -- room


async def test_room_is_that_of_all_who_answer_in_as_many_copies_as_there_are(
    leader: Leader,
    autojump_clock: MockClock,
) -> None:
    nodes, chunks = leader.nodes, leader.client()
    assert chunks.has_room(1 << 50)  # nobody knows yet
    nodes[2].down = True
    nodes[3].hang(Method.SPACE)
    nodes[4].answer(Method.SPACE, b"\0" * 9)
    begun = trio.current_time()
    await chunks.ask_for_room()
    assert trio.current_time() - begun < ATTEMPT_S
    total, free = chunks.space()
    assert total == nodes[1].disks.space()[0] // 3
    assert 0 < free <= total
    assert not chunks.has_room(free + 1)
    for node in nodes.all.values():
        node.down = True
    await chunks.ask_for_room()
    assert chunks.space() == (total, free)  # as it was last
    assert not nodes.under_way


async def test_what_was_written_is_not_free_any_more(
    leader: Leader, autojump_clock: MockClock
) -> None:
    chunks = leader.client()
    await chunks.ask_for_room()
    before = chunks.space()[1]
    await write(chunks, data=bytes(256 * KIB))
    assert chunks.space()[1] < before
