"""Three metaservers in one process, and clients that see of their troubles nothing but time."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from servers import CLUSTER, CONFIG, END_S, Servers, faults, servers

from mountfs.errors import Fault, FsError
from mountfs.kv.leveldb import LevelStore
from mountfs.meta import client, safe_mode
from mountfs.meta.client import RemoteMeta
from mountfs.meta.machine import MetaMachine
from mountfs.meta.ops.mkdir import Mkdir
from mountfs.meta.ops.nodes import RemoveNode
from mountfs.meta.ops.read import GetAttr, Lookup, ReadDir
from mountfs.meta.ops.session import OpenSession
from mountfs.meta.ops.slices import Discard, Reclaimed
from mountfs.meta.protocol import (
    ROLE,
    Begin,
    Hold,
    KeepBack,
    Method,
    Opened,
    Propose,
    Read,
    encode,
)
from mountfs.meta.records import ino_of
from mountfs.meta.safe_mode import SafeMode
from mountfs.raft.messages import InstallSnapshot, Membership, NodeId, SnapshotHead, Term
from mountfs.types import ROOT, SUPERUSER, LogIndex, SliceId, VolumeId
from mountfs.wire.frames import Hello
from mountfs.wire.stream import Client, connect


def open_store(path: Path) -> LevelStore:
    return LevelStore(path, create=True)


async def mkdir(meta: RemoteMeta, name: str) -> None:
    """Were it done twice, the second would be refused."""
    with trio.fail_after(END_S):
        await meta.propose(Mkdir(ROOT, name.encode(), 0o777, 0, SUPERUSER))


async def names(meta: RemoteMeta) -> set[str]:
    with trio.fail_after(END_S):
        rows = await meta.read(ReadDir(ROOT, 0, 1 << 16, False))
    return {row[3].decode() for row in rows} - {".", ".."}


async def raw(nursery: trio.Nursery, port: int) -> Client:
    return await connect(nursery, ("127.0.0.1", port), Hello(cluster=CLUSTER, role=ROLE, name="t"))


async def test_what_one_client_does_another_sees(tmp_path: Path) -> None:
    async with servers(tmp_path) as found, found.mount() as one, found.mount() as two:
        await mkdir(one, "a")
        assert await names(two) == {"a"}
        assert one.session != two.session
        await found.voters(1, 2, 3)
        for each in found.up:
            tree = each.meta.machine.replica.machine.tree
            assert ino_of(Lookup(ROOT, b"a", SUPERUSER).read(tree))


async def test_commands_act_once_though_leaders_change(tmp_path: Path) -> None:
    async with servers(tmp_path) as found, found.mount() as meta:
        done: set[str] = set()

        async def work(worker: int) -> None:
            for number in range(12):
                await mkdir(meta, f"{worker}.{number}")
                done.add(f"{worker}.{number}")

        async with trio.open_nursery() as nursery:
            for worker in range(4):
                nursery.start_soon(work, worker)
            for _ in range(3):
                leader = await found.leader()
                await found.ask("Transfer", {"node": str(leader.number % 3 + 1)})
        assert len(done) == 48
        assert await names(meta) == done


async def test_commands_act_once_though_the_leader_dies(tmp_path: Path) -> None:
    async with servers(tmp_path) as found, found.mount() as meta:
        done: set[str] = set()

        async def work(worker: int) -> None:
            for number in range(10):
                await mkdir(meta, f"{worker}.{number}")
                done.add(f"{worker}.{number}")

        async with trio.open_nursery() as nursery:
            for worker in range(4):
                nursery.start_soon(work, worker)
            await found.until(lambda: len(done) >= 8)
            leader = await found.leader()
            await found.kill(leader.number)
            await found.leader(other_than=leader.number)
            await found.until(lambda: len(done) >= 20)
            await found.start(leader.number)
        assert len(done) == 40
        assert await names(meta) == done
        await found.voters(1, 2, 3)


async def test_a_command_whose_answer_is_lost_acts_once(tmp_path: Path) -> None:
    async with servers(tmp_path) as found, found.mount() as meta:
        leader = await found.leader()
        await mkdir(meta, "first")
        for number in range(5):
            before = meta.attempts
            leader.proxy.lose_answers = 1
            await mkdir(meta, f"{number}")
            assert meta.attempts > before + 1
            assert leader.proxy.lose_answers == 0
        assert await names(meta) == {"first", "0", "1", "2", "3", "4"}


async def test_a_refusal_whose_answer_is_lost_is_the_same_again(tmp_path: Path) -> None:
    async with servers(tmp_path) as found, found.mount() as meta:
        leader = await found.leader()
        await mkdir(meta, "a")
        leader.proxy.lose_answers = 1
        with pytest.raises(FsError) as caught:
            await mkdir(meta, "a")
        assert caught.value.fault is Fault.EXISTS


async def test_a_call_that_waits_may_be_cancelled_and_acts_at_most_once(tmp_path: Path) -> None:
    async with servers(tmp_path) as found, found.mount() as meta:
        leader = await found.leader()
        for other in found.up:
            if other is not leader:
                await found.kill(other.number)
        with trio.move_on_after(0.2) as scope:
            await meta.propose(Mkdir(ROOT, b"cancelled", 0o777, 0, SUPERUSER))
        assert scope.cancelled_caught
        for other in found.all.values():
            if not other.up:
                await found.start(other.number)
        await mkdir(meta, "after")
        assert await names(meta) in ({"after"}, {"cancelled", "after"})
        assert meta.ended is None


@pytest.mark.parametrize("how", ["killed", "silent"])
async def test_a_soft_client_gives_up_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(client, "WATCH_S", 2 * END_S)  # nobody else gives up
    async with servers(tmp_path, 1) as found, found.mount(soft_s=0.5) as meta:
        await mkdir(meta, "a")
        if how == "killed":
            await found.kill(1)
        else:
            found[1].proxy.swallow = True
        begun = trio.current_time()
        with pytest.raises(FsError) as caught:
            await mkdir(meta, "b")
        assert caught.value.fault is Fault.TIMED_OUT
        assert trio.current_time() - begun < 5
        found[1].proxy.swallow = False
        found[1].proxy.cut()


async def test_a_client_that_reaches_nobody_says_so_without_a_group(tmp_path: Path) -> None:
    async with servers(tmp_path, 1) as found:
        await found.kill(1)
        with pytest.raises(BaseException) as caught:
            async with found.mount(soft_s=0.3):
                raise AssertionError("it was mounted")
        assert [error.fault for error in faults(caught.value)] == [Fault.TIMED_OUT]


async def test_a_session_that_falls_silent_is_ended(tmp_path: Path) -> None:
    async with (
        servers(tmp_path, 1, session_ttl_ms=400) as found,
        found.mount() as lively,
        trio.open_nursery() as nursery,
    ):  # fmt: skip
        link = await raw(nursery, found[1].proxy.port)
        opened = msgspec.msgpack.decode(
            await link.call(Method.OPEN_SESSION, encode(("silent", False))), type=Opened
        )
        sessions = found[1].meta.machine.replica.machine.sessions
        assert opened.session in sessions
        await found.until(lambda: opened.session not in sessions)
        command = Mkdir(ROOT, b"late", 0o777, 0, SUPERUSER)
        for method, body in (
            (Method.PROPOSE, encode(Propose(opened.session, 1, 1, command))),
            (Method.RENEW, encode(opened.session)),
            (Method.READ, encode(Read(opened.session, Lookup(ROOT, b"x", SUPERUSER)))),
        ):
            with pytest.raises(FsError) as caught:
                await link.call(method, body)
            assert caught.value.fault is Fault.SESSION_ENDED
        await mkdir(lively, "a")  # it has been heard of
        assert await names(lively) == {"a"}
        nursery.cancel_scope.cancel()


async def test_a_client_whose_session_was_ended_goes_on_in_another_one(tmp_path: Path) -> None:
    async with servers(tmp_path, 1) as found, found.mount() as meta:
        await mkdir(meta, "a")
        before = meta.session
        told: list[int] = []
        meta.on_new_session.append(told.append)
        async with trio.open_nursery() as nursery:
            link = await raw(nursery, found[1].proxy.port)
            await link.call(Method.END_SESSION, encode(before))
            await link.call(Method.END_SESSION, encode(before))  # its answer may be lost
            await mkdir(meta, "b")
            command = Mkdir(ROOT, b"late", 0o777, 0, SUPERUSER)
            with pytest.raises(FsError) as caught:
                await link.call(Method.PROPOSE, encode(Propose(before, 2, 2, command)))
            assert caught.value.fault is Fault.SESSION_ENDED
            nursery.cancel_scope.cancel()
        assert meta.ended is None
        assert meta.session != before
        assert told == [before]
        assert await names(meta) == {"a", "b"}


async def test_a_client_that_was_cut_off_for_longer_than_its_session_comes_back(
    tmp_path: Path,
) -> None:
    async with servers(tmp_path, 1, session_ttl_ms=400) as found, found.mount() as meta:
        await mkdir(meta, "a")
        before = meta.session
        sessions = found[1].meta.machine.replica.machine.sessions
        found[1].proxy.swallow = True
        await found.until(lambda: before not in sessions)
        found[1].proxy.swallow = False
        found[1].proxy.cut()
        await found.until(lambda: meta.session != before)
        await mkdir(meta, "b")
        assert await names(meta) == {"a", "b"}


BAD = [b"", b"\xc1", b"GET / HTTP/1.1\r\n\r\n", encode(["x"])]
BAD_COMMAND = encode([1, 1, 1, ["mkdir", "x"]])
"""What is shorter may have more behind it: that would be a good HOLD."""


async def test_bad_requests_are_refused_and_the_server_goes_on(tmp_path: Path) -> None:
    async with (
        servers(tmp_path) as found, found.mount() as meta, trio.open_nursery() as nursery,
    ):  # fmt: skip
        await mkdir(meta, "a")
        leader = await found.leader()
        link = await raw(nursery, leader.proxy.port)
        for method in Method:
            if method in (Method.CLUSTER, Method.RECALL):  # it takes no body; it is for clients
                continue
            short = method in (Method.HOLD, Method.KEEP_BACK)
            for body in BAD if short else [*BAD, BAD_COMMAND]:
                with pytest.raises(FsError) as caught:
                    await link.call(method, body)
                assert caught.value.fault is Fault.INVALID, (method, body)
        refused: list[tuple[object, Fault]] = [
            (OpenSession("me"), Fault.NOT_PERMITTED),
            (RemoveNode(1), Fault.NOT_PERMITTED),
            (Reclaimed((SliceId(1),)), Fault.NOT_PERMITTED),
            (Discard(((SliceId(-1), VolumeId(1), 1),)), Fault.INVALID),
            (Mkdir(ROOT, b"a/b", 0o777, 0, SUPERUSER), Fault.INVALID),
        ]
        for sequence, (command, fault) in enumerate(refused, 1):
            body = encode([meta.session, sequence + 100, 1, command])
            with pytest.raises(FsError) as caught:
                await link.call(Method.PROPOSE, body)
            assert caught.value.fault is fault, command
        with pytest.raises(FsError) as caught:
            await link.call(77, b"")
        assert caught.value.fault is Fault.NOT_IMPLEMENTED
        await mkdir(meta, "b")
        await found.voters(1, 2, 3)
        assert len(found.up) == 3
        nursery.cancel_scope.cancel()


async def test_a_command_that_is_too_large_is_refused(tmp_path: Path) -> None:
    """It would fit into a frame, but into no record of the log."""
    async with servers(tmp_path, 1) as found, found.mount() as meta:
        command = Discard(
            tuple((SliceId((1 << 63) + number), VolumeId(1), 1) for number in range(1_500_000))
        )
        with pytest.raises(FsError) as caught:
            await meta.propose(command)
        assert caught.value.fault is Fault.TOO_BIG
        await mkdir(meta, "a")


async def test_who_does_not_lead_says_so(tmp_path: Path) -> None:
    async with servers(tmp_path) as found, trio.open_nursery() as nursery:
        leader = await found.leader()
        other = found[leader.number % 3 + 1]
        link = await raw(nursery, other.proxy.port)
        for method, body in (
            (Method.OPEN_SESSION, encode(("x", False))),
            (Method.RENEW, encode(1)),
            (Method.END_SESSION, encode(1)),
            (Method.READ, encode(Read(0, GetAttr(ROOT)))),
            (Method.LEASED_READ, encode(Read(1, GetAttr(ROOT)))),
            (Method.BEGIN, encode(Begin(1))),
            (Method.HOLD, encode(Hold(1, 0))),
            (Method.KEEP_BACK, encode(KeepBack(1, ROOT))),
            (
                Method.PROPOSE,
                encode(Propose(1, 1, 1, Mkdir(ROOT, b"x", 0o777, 0, SUPERUSER))),
            ),
        ):
            with pytest.raises(FsError) as caught:
                await link.call(method, body)
            assert caught.value.fault is Fault.NOT_LEADER
        nursery.cancel_scope.cancel()


# -- members


async def members(found: Servers) -> dict[str, Any]:
    nodes: Any = await found.ask("Nodes")
    return {node["name"]: node["role"] for node in nodes}


async def test_two_are_one_voter_and_one_that_follows(tmp_path: Path) -> None:
    async with servers(tmp_path, 2) as found:
        assert await members(found) == {"n1": "voter", "n2": "learner"}


async def test_a_node_leaves_and_its_number_is_never_used_again(tmp_path: Path) -> None:
    async with servers(tmp_path) as found, found.mount() as meta:
        await mkdir(meta, "a")
        await found.ask("Remove", {"node": "n3"})
        await found.until(lambda: not any(one.number == 3 for one in nodes_of(found)))
        await found.kill(3)
        assert set(await members(found)) == {"n1", "n2"}
        new = await found.add()
        assert new.number == 4
        await found.voters(1, 2, 4)
        await mkdir(meta, "b")
        assert await names(meta) == {"a", "b"}


async def test_the_leader_may_leave(tmp_path: Path) -> None:
    async with servers(tmp_path) as found, found.mount() as meta:
        leader = await found.leader()
        await mkdir(meta, "a")
        await found.ask("Remove", {"node": str(leader.number)})
        new = await found.leader(other_than=leader.number)
        await found.until(lambda: leader.number not in new.meta.group.raft.log.membership.everyone)
        await found.kill(leader.number)
        await mkdir(meta, "b")
        assert await names(meta) == {"a", "b"}


async def test_the_last_node_is_not_removed(tmp_path: Path) -> None:
    async with servers(tmp_path, 1) as found:
        with pytest.raises(FsError, match="last voter") as caught:
            await found.ask("Remove", {"node": "n1"})
        assert caught.value.fault is Fault.BUSY


async def test_nodes_that_leave_already_are_not_counted_on(tmp_path: Path) -> None:
    """Each of them could go; all of them cannot."""
    async with servers(tmp_path) as found:
        leader = await found.leader()
        others = [one.number for one in found.up if one is not leader]
        for meta in (leader.meta,):
            meta._tend_members = trio.lowlevel.checkpoint  # type: ignore[method-assign]
        for number in others:
            await found.ask("Remove", {"node": str(number)})
        with pytest.raises(FsError, match="last voter") as caught:
            await found.ask("Remove", {"node": str(leader.number)})
        assert caught.value.fault is Fault.BUSY


async def test_what_concerns_nobody_is_refused(tmp_path: Path) -> None:
    async with servers(tmp_path, 1) as found:
        for method in ("Remove", "Transfer"):
            with pytest.raises(FsError, match="there are: n1") as caught:
                await found.ask(method, {"node": "n7"})
            assert caught.value.fault is Fault.NOT_FOUND
            with pytest.raises(FsError) as caught:
                await found.ask(method, {"nobody": 1})
            assert caught.value.fault is Fault.INVALID


async def test_status_says_who_leads_and_who_is_silent(tmp_path: Path) -> None:
    async with servers(tmp_path) as found:
        leader = await found.leader()
        silent = found[leader.number % 3 + 1]
        await found.kill(silent.number)
        await found.until(lambda: not leader.meta.is_alive(silent.meta.place.number))
        for one in found.up:
            status: Any = msgspec.msgpack.decode(
                await found.client.call(
                    one.rpc, "mountfs.Admin", "Status", encode(None), deadline_s=10
                )
            )
            assert status["leader"] == leader.number
            assert status["voters"] == [1, 2, 3]
            if one is leader:
                assert status["health"] == "degraded"
                assert str(silent.number) in status["why"]


# -- checkpoints


async def test_a_leader_that_reads_a_damaged_row_gives_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others have it whole: nobody is told EIO."""
    async with servers(tmp_path) as found, found.mount() as meta:
        await mkdir(meta, "a")
        await found.voters(1, 2, 3)
        old = await found.leader()
        read = Lookup.read

        def damaged(query: Lookup, tree: Any) -> Any:
            if tree is old.meta.machine.replica.machine.tree:
                raise FsError(Fault.CORRUPT, "a table is damaged")
            return read(query, tree)

        monkeypatch.setattr(Lookup, "read", damaged)
        with trio.fail_after(END_S):
            assert ino_of(await meta.read(Lookup(ROOT, b"a", SUPERUSER)))
        assert old.meta.damaged.is_set()
        assert not old.meta.group.is_leader


async def test_one_that_is_alone_says_what_it_cannot_read_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with servers(tmp_path, 1) as found, found.mount() as meta:
        await mkdir(meta, "a")

        def damaged(query: Lookup, tree: Any) -> Any:
            raise FsError(Fault.CORRUPT, "a table is damaged")

        monkeypatch.setattr(Lookup, "read", damaged)
        with trio.fail_after(END_S):
            with pytest.raises(FsError, match="a table is damaged"):
                await meta.read(Lookup(ROOT, b"a", SUPERUSER))
            assert await names(meta) == {"a"}


async def test_nodes_of_a_group_that_rests_are_not_taken_for_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("servers.CONFIG", msgspec.structs.replace(CONFIG, rest_ms=200))
    async with servers(tmp_path) as found:
        await found.voters(1, 2, 3)
        leader = await found.leader()
        await found.until(lambda: leader.meta.group.raft.state.resting)
        await trio.sleep(3 * CONFIG.election_ms / 1000)
        assert leader.meta.group.raft.state.resting
        assert all(leader.meta.is_alive(NodeId(number)) for number in (1, 2, 3))
        lost = next(n for n in (1, 2, 3) if n != leader.meta.place.number)
        await found.kill(lost)
        await found.until(lambda: not leader.meta.is_alive(NodeId(lost)))


async def test_no_checkpoint_is_made_of_a_state_that_is_about_to_be_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A snapshot has arrived, the log begins behind it, but the state is still the old one."""
    async with servers(tmp_path, 2) as found:
        meta = found[2].meta
        monkeypatch.setattr(meta.machine, "install", lambda head: None)
        raft = meta.group.raft
        await found.until(lambda: raft.leader and raft.log.committed)
        head = SnapshotHead(LogIndex(raft.log.committed + 1_000), raft.term, raft.log.membership)
        message = InstallSnapshot(raft.leader, meta.place.number, raft.term, head)
        meta.node.arrived(meta.group, message)
        before = meta.machine.stored
        await meta.checkpoint()
        assert meta.machine.stored == before


async def test_a_checkpoint_that_a_snapshot_has_overtaken_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with servers(tmp_path, 1) as found, found.mount() as mount:
        await mkdir(mount, "a")
        meta = found[1].meta
        old = meta.machine.replica
        other = MetaMachine(
            tmp_path, SnapshotHead(LogIndex(0), Term(0), Membership(())), open_store
        )

        def write(checkpoint: object) -> None:
            meta.machine.replica = other.replica
            raise AssertionError("the store is closed")

        async def at_once(work: Any, *args: Any) -> Any:
            """What is ordered meanwhile would be applied to the other state."""
            return work(*args)

        monkeypatch.setattr(old, "write_checkpoint", write)
        with monkeypatch.context() as patched:
            patched.setattr(trio.to_thread, "run_sync", at_once)
            await meta.checkpoint()
            meta.machine.replica = old
        old.abandon_checkpoint()
        other.close()


# -- safe mode


async def test_in_safe_mode_there_are_reads_but_no_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safe_mode, "HOLD_MS", 0)
    reported = 0
    async with servers(tmp_path, 1) as found, found.mount() as meta:
        await mkdir(meta, "a")

        def cold(server: Any) -> None:
            server.safe_mode._volumes = lambda: (10, reported)

        found.on_start = cold
        await found.kill(1)
        await found.start(1)
        cold_mode: SafeMode = found[1].meta.safe_mode
        await found.leader()
        cold_mode.began_to_lead()
        with pytest.raises(FsError, match="0 of 10 volumes") as caught:
            await mkdir(meta, "b")
        assert caught.value.fault is Fault.READ_ONLY
        assert await names(meta) == {"a"}
        answer: Any = await found.ask("SafeMode")
        assert answer["on"]
        reported = 10
        await mkdir(meta, "b")
        answer = await found.ask("SafeMode")
        assert not answer["on"]


async def test_safe_mode_that_has_just_begun_is_waited_for(tmp_path: Path) -> None:
    asked = 0

    def volumes() -> tuple[int, int]:
        nonlocal asked
        asked += 1
        return 10, 0 if asked < 20 else 10  # reports come while somebody waits

    async with servers(tmp_path, 1) as found, found.mount() as meta:
        found.on_start = lambda server: setattr(server.safe_mode, "_volumes", volumes)
        await found.kill(1)
        await found.start(1)
        await found.leader()
        found[1].meta.safe_mode.began_to_lead()
        assert found[1].meta.safe_mode.is_on
        await mkdir(meta, "a")
        assert not found[1].meta.safe_mode.is_on
        assert await names(meta) == {"a"}


def nodes_of(found: Servers) -> list[Any]:
    leading = [one for one in found.up if found.leads(one)]
    if not leading:
        return []
    return list(leading[0].meta.service.cluster().nodes)


async def test_what_the_leader_cannot_do_now_is_told_to_who_asks_for_more_than_metadata(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It knows best how long to wait, and has to say what it waits for."""
    async with servers(tmp_path, 1) as found, found.mount() as meta:
        service = found[1].meta.service
        handle, refused = service.handle, [Fault.NOT_LEADER, Fault.UNAVAILABLE]

        async def asked(peer: Any, method: int, body: Any) -> Any:
            if method != 20:
                return await handle(peer, method, body)
            raise FsError(refused.pop(0), "as the test wants it")

        monkeypatch.setattr(service, "handle", asked)
        with trio.fail_after(END_S), pytest.raises(FsError) as caught:
            await meta.ask_leader(20, b"")
        assert caught.value.fault is Fault.UNAVAILABLE
        assert not refused, "and a node that does not lead is no answer"
