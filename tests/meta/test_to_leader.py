"""Reports come to whoever leads, by either way, and only those of nodes of the cluster."""

from pathlib import Path

import msgspec
import pytest
import trio
import trio.lowlevel
from servers import CLUSTER, END_S, Servers, servers

from mountfs.errors import Fault, FsError
from mountfs.meta.admin import Join, Joined
from mountfs.meta.client import Options, Router
from mountfs.meta.hearing import Told
from mountfs.meta.reports import Report, ReportReply
from mountfs.meta.to_leader import ByAsking, ByGroup
from mountfs.raft.messages import NodeId
from mountfs.rpc.client import Client


async def joined(found: Servers) -> int:
    """A node that keeps slices only, as far as the cluster knows."""
    asked = Join("c1", "127.0.0.1:1", "127.0.0.1:2", "disk of c1", ("chunk",), "/r/c1")
    answer = await found.ask_raw("Join", asked)
    return msgspec.msgpack.decode(answer, type=Joined).number


def report(node: int) -> Report:
    return Report(node, 1, (), ())


def listen(found: Servers) -> list[tuple[int, int]]:
    """(who heard, of whom), from now on."""
    heard: list[tuple[int, int]] = []

    def listening(number: int) -> None:
        def take(report: Report) -> ReportReply:
            heard.append((number, report.node))
            return ReportReply(wants_whole=True)

        found[number].meta.hearing.on_report = take

    for number in found.all:
        listening(number)
    return heard


async def test_a_node_with_slices_only_joins_without_the_log(tmp_path: Path) -> None:
    async with servers(tmp_path) as found:
        number = NodeId(await joined(found))
        leader = (await found.leader()).meta
        await found.ask("Nodes")  # the leader's duties had their turn
        assert number not in leader.group.raft.log.membership.everyone
        assert not leader.is_alive(number)
        assert await found.ask("Report", Told("disk of c1", report(number))) == {
            "wants_whole": False
        }
        assert leader.is_alive(number)
        (told,) = (node for node in await found.ask("Nodes") if node["name"] == "c1")  # type: ignore[attr-defined]
        assert (told["alive"], told["role"], told["location"]) == (True, "no member", "/r/c1")


@pytest.mark.parametrize(("node", "fault"), [(4, Fault.DENIED), (9, Fault.NOT_FOUND)])
async def test_a_report_of_somebody_else_is_refused(
    tmp_path: Path, node: int, fault: Fault
) -> None:
    async with servers(tmp_path) as found:
        assert await joined(found) == 4
        with pytest.raises(FsError) as caught:
            await found.ask("Report", Told("another disk", report(node)))
        assert caught.value.fault is fault
        assert not (await found.leader()).meta.is_alive(NodeId(node))


async def test_servers_report_by_what_the_group_knows(tmp_path: Path) -> None:
    async with servers(tmp_path) as found:
        leader = (await found.leader()).number
        heard = listen(found)
        for number in (1, 2, 3):
            way = ByGroup(found[number].meta, found.client)
            assert (await way.find()).startswith(f"node {leader} ")
            assert (await way.report(report(number))).wants_whole
        assert heard == [(leader, 1), (leader, 2), (leader, 3)]


async def test_others_ask_who_leads_and_ask_again_when_that_has_gone(tmp_path: Path) -> None:
    async with servers(tmp_path) as found, trio.open_nursery() as nursery:
        number = await joined(found)
        heard = listen(found)
        router = Router(nursery, found.seeds, Options(cluster=CLUSTER, about="c1"))
        way = ByAsking(router, found.client, "disk of c1")
        before = (await found.leader()).number
        first = await way.find()
        assert (await way.report(report(number))).wants_whole
        await found.kill(before)
        with pytest.raises(FsError):
            await way.report(report(number))
        after = (await found.leader(other_than=before)).number
        with trio.fail_after(END_S):
            assert await until_reported(way, report(number)) != first
        assert heard == [(before, number), (after, number)]
        nursery.cancel_scope.cancel()


async def until_reported(way: ByAsking, report: Report) -> str:
    """To whom it was."""
    while True:
        try:
            found = await way.find()
            await way.report(report)
        except FsError:
            await trio.sleep(0.02)
        else:
            return found


async def test_a_leader_that_does_not_answer_is_not_asked_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is there for clients, but what is reported to it is not answered."""

    async def silent(self: Client, *arguments: object, deadline_s: float) -> bytes:
        await trio.lowlevel.checkpoint()
        raise FsError(Fault.TIMED_OUT, "no answer")

    async with servers(tmp_path, 1) as found, trio.open_nursery() as nursery:
        router = Router(nursery, found.seeds, Options(cluster=CLUSTER, about="c1"))
        way = ByAsking(router, found.client, "disk of c1")
        await way.find()
        assert router.leader_now() is not None
        monkeypatch.setattr(Client, "call", silent)
        with pytest.raises(FsError):
            await way.report(report(4))
        assert router.leader_now() is None
        monkeypatch.undo()
        nursery.cancel_scope.cancel()
