"""Reports go to whoever leads; a leader that hangs holds nothing up for long."""

import logging
from collections.abc import Callable

import pytest
import trio
from trio.testing import MockClock

from mountfs.chunks import reporter as reporter_module
from mountfs.chunks.reporter import Gathered, Reporter
from mountfs.errors import Fault, FsError
from mountfs.meta.reports import Report, ReportReply, VolumeReport
from mountfs.types import VolumeId

VOLUME = VolumeReport(VolumeId(1), 100, 50, 1)


async def gather() -> Gathered:
    return Gathered((), [VOLUME])


class Leader:
    """Whoever leads, as a test wants it."""

    def __init__(self) -> None:
        self.name = "n1"
        self.hangs = False
        self.heard: list[tuple[float, str, Report]] = []
        self.answer: Callable[[Report], ReportReply] = lambda report: ReportReply(False)

    async def find(self) -> str:
        await trio.lowlevel.checkpoint()
        if not self.name:
            raise FsError(Fault.NOT_LEADER, "nobody leads")
        return self.name

    async def report(self, report: Report) -> ReportReply:
        if self.hangs:
            await trio.sleep_forever()
        self.heard.append((trio.current_time(), self.name, report))
        return self.answer(report)


async def run_for(
    seconds: float, leader: Leader, then: Callable[[], None] = lambda: None
) -> Reporter:
    reporter = Reporter(4, gather, leader)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reporter.run)
        await trio.sleep(seconds)
        then()
        await trio.sleep(seconds)
        nursery.cancel_scope.cancel()
    return reporter


async def test_once_a_second_and_all_at_first(autojump_clock: MockClock) -> None:
    leader = Leader()
    reporter = await run_for(2.75, leader)
    assert [report.whole for _, _, report in leader.heard] == [True] + [False] * 5
    assert [report.sequence for _, _, report in leader.heard] == [1, 2, 3, 4, 5, 6]
    assert reporter.problem == ""


async def test_a_leader_that_wants_all_gets_it_at_once(autojump_clock: MockClock) -> None:
    leader = Leader()
    times = iter([False, True, False])
    leader.answer = lambda report: ReportReply(next(times, False))
    await run_for(0.75, leader)
    assert [report.whole for _, _, report in leader.heard] == [True, False, True]
    assert leader.heard[2][0] - leader.heard[1][0] < 0.1


async def test_a_leader_that_wants_all_again_and_again_is_not_stormed(
    autojump_clock: MockClock,
) -> None:
    leader = Leader()
    leader.answer = lambda report: ReportReply(True)
    await run_for(5.25, leader)
    assert len(leader.heard) == 11
    assert all(report.whole for _, _, report in leader.heard)


async def test_a_leader_that_hangs_is_given_up_for_the_next(autojump_clock: MockClock) -> None:
    leader = Leader()
    leader.hangs = True
    turned = 0.0

    def another() -> None:
        nonlocal turned
        leader.hangs, leader.name, turned = False, "n2", trio.current_time()

    await run_for(6.1, leader, another)
    when, name, report = leader.heard[0]
    assert (name, report.whole) == ("n2", True)
    assert when - turned <= 3


async def test_what_hinders_is_said_once_and_so_is_its_end(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    leader = Leader()
    leader.name = ""
    caplog.set_level(logging.INFO, reporter_module.__name__)

    def again() -> None:
        leader.name = "n1"

    reporter = await run_for(20, leader, again)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "nobody leads" in caplog.text
    assert reporter.problem == ""


async def test_an_election_is_not_worth_a_word(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    leader = Leader()
    leader.name = ""
    caplog.set_level(logging.INFO, reporter_module.__name__)

    def again() -> None:
        leader.name = "n1"

    await run_for(3, leader, again)
    assert not caplog.records
