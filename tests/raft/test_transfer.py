"""Snapshots on their way between nodes: broken off, damaged, offered twice, offered too late."""

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from driven import CONFIG, END_S, ONE, Cluster, Commands, Here, a_cluster

from mountfs.errors import Fault, FsError
from mountfs.raft import driver, snapshots
from mountfs.raft.driver import Group
from mountfs.raft.log_record import GroupId
from mountfs.raft.messages import Membership, NodeId, SnapshotHead, Term
from mountfs.raft.snapshots import FETCH, OFFER, SERVICE, Fetch, Offer, Snapshots
from mountfs.rpc.server import Call
from mountfs.types import LogIndex

PIECE_ROWS = 10
CLUSTER = bytes(range(16))
CALL = Call(None)


@pytest.fixture(autouse=True)
def in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """No threads: the clock would jump while they are at it."""

    async def run_sync(work: Callable[..., Any], *arguments: Any, **_: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return work(*arguments)

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)
    monkeypatch.setattr(driver, "QUICK_SYNC_S", float("inf"))


class Calls:
    """What a `Server` and a `Client` of `rpc` do, without a network."""

    def __init__(self) -> None:
        self.handlers: dict[tuple[str, str], Any] = {}
        self.calls: list[str] = []
        """What was called, in order."""
        self.fetched: list[bytes] = []
        """Behind which keys pieces were asked for."""
        self.on_piece: Callable[[int, bytes], bytes] = lambda number, piece: piece
        """May damage a piece, or raise what breaks the transfer off."""
        self.pieces = 0

    def at(self, address: str) -> Any:
        calls = self

        class Side:
            def register(self, service: str, method: str, handler: Any) -> None:
                calls.handlers[address, method] = handler

            register_source = register

            async def call(
                self, target: str, service: str, method: str, body: bytes, *, deadline_s: float
            ) -> Any:
                await trio.lowlevel.checkpoint()
                calls.calls.append(method)
                return await calls.handlers[target, method](body, CALL)

            @contextlib.asynccontextmanager
            async def stream(
                self, target: str, service: str, method: str, body: bytes, *, deadline_s: float
            ) -> AsyncIterator[AsyncIterator[bytes]]:
                await trio.lowlevel.checkpoint()
                calls.fetched.append(msgspec.msgpack.decode(body, type=Fetch).after)
                async with (
                    contextlib.aclosing(calls.handlers[target, method](body, CALL)) as found,
                    contextlib.aclosing(calls._pieces(found)) as pieces,
                ):
                    yield pieces

        return Side()

    async def _pieces(self, pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        async for piece in pieces:
            self.pieces += 1
            yield self.on_piece(self.pieces, piece)


class Copy:
    """A `Source`."""

    def __init__(self, head: SnapshotHead, commands: list[bytes]) -> None:
        self.head = head
        self.commands = list(commands)
        self.closed = False

    def piece(self, after: bytes) -> tuple[bytes, bytes]:
        assert not self.closed
        start = int(after) + 1 if after else 0
        rows = self.commands[start : start + PIECE_ROWS]
        last = b"%d" % (start + len(rows) - 1) if rows else b""
        return msgspec.msgpack.encode((rows, last)), last

    def close(self) -> None:
        assert not self.closed
        self.closed = True


class Arriving:
    """A `Sink`."""

    def __init__(self, machine: Commands, head: SnapshotHead) -> None:
        self.head = head
        self.last_key = b""
        self.is_whole = False
        self.abandoned = False
        self.rows: list[bytes] = []
        self.failure: FsError | None = None
        self._machine = machine

    def take(self, encoded: bytes) -> bool:
        assert not self.abandoned
        if self.failure is not None:
            raise self.failure
        try:
            rows, last = msgspec.msgpack.decode(encoded, type=tuple[list[bytes], bytes])
        except msgspec.MsgspecError as error:
            raise FsError(Fault.CORRUPT, str(error)) from None
        if not rows:
            self.is_whole = True
            self._machine.snapshots[self.head.index] = self.rows
            return True
        self.rows += rows
        self.last_key = last
        return False

    def abandon(self) -> None:
        assert not self.abandoned
        self.abandoned = True


class Transfers:
    """A cluster with `Snapshots` on each node; node 3 has missed what the log no longer has."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.calls = Calls()
        self.snapshots: dict[int, Snapshots] = {}
        self.sources: list[Copy] = []
        self.sinks: list[Arriving] = []
        self.make_sink: Callable[[Group, SnapshotHead], Arriving] = self._sink
        self.before_source: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
        for number, here in cluster.here.items():
            side = self.calls.at(str(number))
            self.snapshots[number] = Snapshots(
                here.node,
                side,
                side,
                str(number),
                cluster=CLUSTER,
                address_of=str,
                make_source=self._source,
                make_sink=lambda group, head: self.make_sink(group, head),
                bytes_per_s=1 << 30,
            )

    async def _source(self, group: Group) -> Copy:
        await self.before_source()
        machine = group.machine
        assert isinstance(machine, Commands)
        copy = Copy(group.raft.log.head_at(machine.applied), machine.commands)
        self.sources.append(copy)
        return copy

    def _sink(self, group: Group, head: SnapshotHead) -> Arriving:
        machine = group.machine
        assert isinstance(machine, Commands)
        sink = Arriving(machine, head)
        self.sinks.append(sink)
        return sink

    @property
    def behind(self) -> Here:
        return self.cluster[3]

    async def fall_behind(self, commands: int = 100) -> Here:
        """Node 3 misses entries that the others forget.  Returns who leads."""
        leader = await self.cluster.lead(1)
        await self.cluster.agree()
        self.cluster.isolate(3)
        for number in range(commands):
            await leader[ONE].wait_propose(b"%d" % number)
        for here in (self.cluster[1], self.cluster[2]):
            await self.cluster.until(lambda here=here: here.machine().commands == told(commands))
            applied = here.machine().applied
            here.node.storage.compact(ONE, here[ONE].raft.log.head_at(applied))
            here[ONE].raft.compacted(applied)
        return leader

    async def caught_up(self, commands: int = 100) -> None:
        await self.cluster.until(lambda: self.behind.machine().commands == told(commands))

    def offer(self, head: SnapshotHead, *, source: int = 1, term: int | None = None) -> bytes:
        found = Term(self.cluster[source][ONE].raft.term if term is None else term)
        return msgspec.msgpack.encode(Offer(CLUSTER, ONE, NodeId(source), str(source), found, head))

    async def on_offer(self, body: bytes) -> None:
        await self.calls.handlers["3", OFFER](body, CALL)


def told(commands: int) -> list[bytes]:
    return [b"%d" % number for number in range(commands)]


@contextlib.asynccontextmanager
async def transfers(path: Path) -> AsyncIterator[Transfers]:
    async with a_cluster(path) as cluster, trio.open_nursery() as nursery:
        found = Transfers(cluster)
        for each in found.snapshots.values():
            nursery.start_soon(each.run)
        yield found
        nursery.cancel_scope.cancel()


@contextlib.contextmanager
def fails(fault: Fault) -> Iterator[None]:
    with pytest.raises(FsError) as caught:
        yield
    assert caught.value.fault is fault, caught.value


async def test_who_lacks_what_the_log_forgot_gets_a_snapshot(
    tmp_path: Path, autojump_clock: Any
) -> None:
    async with transfers(tmp_path) as found:
        leader = await found.fall_behind()
        found.cluster.heal()
        await found.caught_up()
        assert found.calls.fetched == [b""]
        assert len(found.sources) == 1
        assert await leader[ONE].wait_propose(b"more") == 100
        assert await found.cluster.agree() == [*told(100), b"more"]
        mine = found.snapshots[3]
        assert not mine.received and not mine._sinks and not mine._receiving
        assert not found.snapshots[1].sending


async def test_a_transfer_that_breaks_off_goes_on_where_it_was(
    tmp_path: Path, autojump_clock: Any
) -> None:
    async with transfers(tmp_path) as found:
        await found.fall_behind()

        def break_off(number: int, piece: bytes) -> bytes:
            if number % 3 == 0:
                raise FsError(Fault.UNAVAILABLE, "the connection broke")
            return piece

        found.calls.on_piece = break_off
        found.cluster.heal()
        await found.caught_up()
        assert found.calls.fetched[:3] == [b"", b"19", b"39"]
        assert len(found.sinks) == 1


async def test_a_damaged_piece_is_asked_for_again(tmp_path: Path, autojump_clock: Any) -> None:
    async with transfers(tmp_path) as found:
        await found.fall_behind()
        found.calls.on_piece = lambda number, piece: b"\xc1" if number == 4 else piece
        found.cluster.heal()
        await found.caught_up()
        assert found.calls.fetched == [b"", b"29"]


async def test_a_transfer_whose_offer_was_cancelled_goes_on_with_the_next(
    tmp_path: Path, autojump_clock: Any
) -> None:
    async with transfers(tmp_path) as found:
        leader = await found.fall_behind()
        copy = await found._source(leader[ONE])
        found.snapshots[1]._kept[ONE] = snapshots._Kept(copy)
        offer = found.offer(copy.head)
        with trio.CancelScope() as scope:

            def cancel(number: int, piece: bytes) -> bytes:
                if number == 3:
                    scope.cancel()
                return piece

            found.calls.on_piece = cancel
            await found.on_offer(offer)
        assert scope.cancelled_caught
        assert not found.snapshots[3]._receiving
        with trio.fail_after(END_S):
            await found.on_offer(offer)
        assert len(found.sinks) == 1 and len(found.calls.fetched) == 2
        assert found.calls.fetched[1] > b""
        await found.caught_up()


async def test_a_full_disk_gives_the_transfer_up_and_it_begins_again_later(
    tmp_path: Path, autojump_clock: Any
) -> None:
    async with transfers(tmp_path) as found:
        await found.fall_behind()
        make = found.make_sink

        def full_at_first(group: Group, head: SnapshotHead) -> Arriving:
            sink = make(group, head)
            if len(found.sinks) == 1:
                sink.failure = FsError(Fault.NO_SPACE, "the disk is full")
            return sink

        found.make_sink = full_at_first
        found.cluster.heal()
        await found.caught_up()
        assert [sink.abandoned for sink in found.sinks] == [True, False]
        assert not found.snapshots[3].received


async def test_a_disk_that_takes_no_snapshot_at_all_leaves_nothing_behind(
    tmp_path: Path, autojump_clock: Any
) -> None:
    """The one before is given up, and then there is no room for the new one."""
    async with transfers(tmp_path) as found:
        leader = await found.fall_behind()
        make = found.make_sink
        copy = await found._source(leader[ONE])
        found.snapshots[1]._kept[ONE] = snapshots._Kept(copy)

        def break_off(number: int, piece: bytes) -> bytes:
            if number < 3:
                return piece
            raise FsError(Fault.UNAVAILABLE, "the connection broke")

        old = found.offer(copy.head)
        with trio.move_on_after(0.1):  # broken off in the middle
            found.calls.on_piece = break_off
            await found.on_offer(old)
        found.calls.on_piece = lambda number, piece: piece

        def no_room(group: Group, head: SnapshotHead) -> Arriving:
            raise FsError(Fault.NO_SPACE, "the disk is full")

        found.make_sink = no_room
        head = msgspec.structs.replace(copy.head, index=LogIndex(copy.head.index + 7))
        with fails(Fault.NO_SPACE):
            await found.on_offer(found.offer(head))
        found.make_sink = make
        await found.on_offer(old)
        await found.caught_up()


async def test_two_offers_at_once_are_one_transfer(tmp_path: Path, autojump_clock: Any) -> None:
    async with transfers(tmp_path) as found:
        leader = await found.fall_behind()
        copy = await found._source(leader[ONE])
        found.snapshots[1]._kept[ONE] = snapshots._Kept(copy)
        offer = found.offer(copy.head)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(found.on_offer, offer)
            await trio.testing.wait_all_tasks_blocked()
            await trio.lowlevel.checkpoint()
            if not found.behind.machine().snapshots:
                with fails(Fault.BUSY):
                    await found.on_offer(offer)
        await found.caught_up()
        assert len(found.sinks) == 1


async def test_no_new_transfer_begins_before_the_last_one_has_taken_its_place(
    tmp_path: Path, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would write where the other one lies."""
    async with transfers(tmp_path) as found:
        leader = await found.fall_behind()
        copy = await found._source(leader[ONE])
        found.snapshots[1]._kept[ONE] = snapshots._Kept(copy)
        append = found.behind.journal.append

        def full(index: int, record: bytes) -> None:
            raise FsError(Fault.NO_SPACE, "the disk is full")

        monkeypatch.setattr(found.behind.journal, "append", full)
        await found.on_offer(found.offer(copy.head))
        head = msgspec.structs.replace(copy.head, index=LogIndex(copy.head.index + 7))
        with fails(Fault.BUSY):
            await found.on_offer(found.offer(head))
        assert len(found.sinks) == 1
        monkeypatch.setattr(found.behind.journal, "append", append)
        await found.caught_up()


async def test_the_offer_of_a_leader_of_the_past_is_refused_before_anything_is_sent(
    tmp_path: Path, autojump_clock: Any
) -> None:
    async with transfers(tmp_path) as found:
        leader = await found.fall_behind()
        copy = await found._source(leader[ONE])
        found.snapshots[1]._kept[ONE] = snapshots._Kept(copy)
        term = found.behind[ONE].raft.term
        with fails(Fault.NOT_LEADER):
            await found.on_offer(found.offer(copy.head, term=term - 1))
        assert not found.sinks


async def test_an_offer_has_the_term_in_which_it_was_wanted(
    tmp_path: Path, autojump_clock: Any
) -> None:
    """Who has lost the lead while the copy was made must not speak in its successor's term."""
    async with transfers(tmp_path) as found:
        await found.fall_behind()
        terms: list[tuple[int, int]] = []

        async def lose_the_lead() -> None:
            found.before_source = trio.lowlevel.checkpoint
            wanted = found.cluster[1][ONE].raft.term
            found.cluster.isolate(1)
            new = await found.cluster.leader(other_than=1)
            found.cluster.heal()
            await found.cluster.until(lambda: found.cluster[1][ONE].raft.term >= new[ONE].raft.term)
            terms.append((wanted, found.cluster[1][ONE].raft.term))

        found.before_source = lose_the_lead
        offers: list[Offer] = []
        handler = found.calls.handlers["3", OFFER]

        async def note(body: bytes, call: Call) -> bytes:
            offers.append(msgspec.msgpack.decode(body, type=Offer))
            return await handler(body, call)  # type: ignore[no-any-return]

        found.calls.handlers["3", OFFER] = note
        found.cluster.heal()
        await found.caught_up()
        await found.cluster.until(lambda: any(offer.source == 1 for offer in offers))
        ((wanted, later),) = terms
        assert later > wanted
        assert all(offer.term == wanted for offer in offers if offer.source == 1)


async def test_copies_that_nobody_needs_are_closed(
    tmp_path: Path, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that was replaced while somebody read it."""
    monkeypatch.setattr(snapshots, "KEPT_S", 5.0)
    async with transfers(tmp_path) as found:
        leader = await found.fall_behind()
        mine = found.snapshots[1]
        first = await mine._source(leader[ONE], leader[ONE].raft.log.base)
        asked = msgspec.msgpack.encode(Fetch(ONE, first.head.index, b""))
        reading = found.calls.handlers["1", FETCH](asked, CALL)
        await anext(reading)
        await leader[ONE].wait_propose(b"100")
        second = await mine._source(leader[ONE], leader[ONE].raft.log.last_index)
        assert second is not first
        await anext(reading)  # goes on
        await reading.aclose()
        assert found.sources[0].closed and not found.sources[1].closed
        await trio.sleep(snapshots.KEPT_S * 2)
        assert found.sources[1].closed


async def test_two_who_want_a_copy_at_once_share_one(tmp_path: Path, autojump_clock: Any) -> None:
    async with transfers(tmp_path) as found:
        leader = await found.fall_behind()
        mine, base = found.snapshots[1], leader[ONE].raft.log.base
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mine._source, leader[ONE], base)
            nursery.start_soon(mine._source, leader[ONE], base)
        assert len(found.sources) == 1


async def test_pieces_are_paced(tmp_path: Path, autojump_clock: Any) -> None:
    async with transfers(tmp_path) as found:
        await found.fall_behind()
        mine = found.snapshots[1]
        mine._bytes_per_s = 100
        sent = 0

        def count(number: int, piece: bytes) -> bytes:
            nonlocal sent
            sent += len(piece)
            return piece

        found.calls.on_piece = count
        begun = trio.current_time()
        found.cluster.heal()
        await found.caught_up()
        assert sent > 200
        assert trio.current_time() - begun >= (sent - 60) / 100


@pytest.mark.parametrize("body", [b"", b"\xc1", msgspec.msgpack.encode([1, 2])])
async def test_what_is_no_offer_is_refused(
    tmp_path: Path, autojump_clock: Any, body: bytes
) -> None:
    async with transfers(tmp_path) as found:
        with fails(Fault.INVALID):
            await found.on_offer(body)
        with fails(Fault.INVALID):
            await anext(found.calls.handlers["1", FETCH](body, CALL))


async def test_the_offer_of_another_cluster_is_refused(tmp_path: Path, autojump_clock: Any) -> None:
    async with transfers(tmp_path) as found:
        head = SnapshotHead(LogIndex(99), Term(1), Membership((NodeId(1),)))
        body = msgspec.msgpack.encode(Offer(bytes(16), ONE, NodeId(1), "1", Term(1), head))
        with fails(Fault.INVALID):
            await found.on_offer(body)


async def test_offers_of_groups_and_copies_that_are_not_here_are_refused(
    tmp_path: Path, autojump_clock: Any
) -> None:
    async with transfers(tmp_path) as found:
        head = SnapshotHead(LogIndex(9), Term(1), Membership((NodeId(1),)))
        body = msgspec.msgpack.encode(Offer(CLUSTER, GroupId(9), NodeId(1), "1", Term(1), head))
        with fails(Fault.NOT_FOUND):
            await found.on_offer(body)
        with fails(Fault.NOT_FOUND):
            asked = msgspec.msgpack.encode(Fetch(ONE, 12, b""))
            await anext(found.calls.handlers["1", FETCH](asked, CALL))


def test_names_that_others_rely_on() -> None:
    assert (SERVICE, OFFER, FETCH) == ("mountfs.Snapshots", "Offer", "Fetch")
    assert CONFIG.snapshot_retry_ms < 1_000
