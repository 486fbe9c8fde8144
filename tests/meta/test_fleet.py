"""What the leader makes of reports, of silence, and of two servers with one number."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mountfs.errors import Fault, FsError
from mountfs.meta.fleet import Fleet, FleetConfig, Standing
from mountfs.meta.reports import DiskReport, Report, VolumeReport
from mountfs.types import MIB, VolumeId

CONFIG = FleetConfig(silent_ms=5_000, grace_ms=60_000, steady_ms=20_000, slow_ms=30_000)
DISK = DiskReport("/disk", "ssd", 1000 * MIB, 500 * MIB, 0)


def volume(number: int, needles: int = 1, epoch: int = 0, trouble: str = "") -> VolumeReport:
    return VolumeReport(VolumeId(number), 1000, 1000, needles, epoch, trouble)


class Server:
    """Tells a fleet what a chunkserver would."""

    def __init__(self, fleet: Fleet, node: int, incarnation: int = 1) -> None:
        self.fleet = fleet
        self.node = node
        self.incarnation = incarnation
        self.sequence = 0
        self.disks = (DISK,)

    def tell(self, now: float, *volumes: VolumeReport, gone: tuple[int, ...] = ()) -> bool:
        """Changes; returns whether the leader wants everything."""
        return self._send(now, volumes, gone, False)

    def tell_all(self, now: float, *volumes: VolumeReport) -> bool:
        return self._send(now, volumes, (), True)

    def _send(
        self, now: float, volumes: tuple[VolumeReport, ...], gone: tuple[int, ...], whole: bool
    ) -> bool:
        self.sequence += 1
        report = Report(
            self.node, self.incarnation, self.disks, volumes,
            tuple(VolumeId(one) for one in gone), whole, self.sequence,
        )  # fmt: skip
        return self.fleet.hear(report, now).wants_whole


@pytest.fixture
def fleet() -> Fleet:
    found = Fleet(CONFIG)
    found.began_to_lead(0)
    return found


def wait(fleet: Fleet, start: float, stop: float, *steady: Server) -> float:
    """Somebody looks once a second, and these servers report."""
    now = start
    while now < stop:
        now += 1_000
        for server in steady:
            server.tell(now)
        fleet.look(now)
    return now


def test_a_whole_report_says_which_volumes_a_node_has(fleet: Fleet) -> None:
    one, two = Server(fleet, 1), Server(fleet, 2)
    assert not one.tell_all(0, volume(7), volume(8, epoch=3))
    assert not two.tell_all(0, volume(8, needles=5))
    assert fleet.reported(VolumeId(8)) == {1: volume(8, epoch=3), 2: volume(8, needles=5)}
    assert fleet.reported(VolumeId(9)) == {}
    assert not one.tell_all(1, volume(9))
    assert fleet.reported(VolumeId(7)) == {}
    fleet.check()


def test_later_reports_say_what_has_changed(fleet: Fleet) -> None:
    one = Server(fleet, 1)
    one.tell_all(0, volume(7), volume(8))
    assert not one.tell(1_000, volume(9), volume(8, needles=2), gone=(7,))
    assert fleet.of_node(1) == {8: volume(8, needles=2), 9: volume(9)}
    assert fleet.is_complete(1)


def test_after_a_gap_the_leader_wants_everything(fleet: Fleet) -> None:
    one = Server(fleet, 1)
    one.tell_all(0, volume(7))
    one.sequence += 1  # one was lost
    assert one.tell(1_000, volume(8))
    assert not fleet.is_complete(1)
    assert one.tell(2_000), "until it has it"
    assert not one.tell_all(3_000, volume(8))
    assert fleet.of_node(1) == {8: volume(8)}


def test_a_report_that_comes_twice_or_late_says_nothing(fleet: Fleet) -> None:
    one = Server(fleet, 1)
    one.tell_all(0, volume(7))
    late = Report(1, 1, (DISK,), (), (VolumeId(7),), False, 1)
    assert not fleet.hear(late, 1_000).wants_whole
    assert fleet.of_node(1) == {7: volume(7)}


def test_a_server_that_has_started_again_tells_everything(fleet: Fleet) -> None:
    Server(fleet, 1).tell_all(0, volume(7))
    assert Server(fleet, 1, incarnation=2).tell(1_000)
    assert not Server(fleet, 1, incarnation=3).tell_all(2_000, volume(8))
    assert fleet.of_node(1) == {8: volume(8)}


def test_a_new_leader_wants_everything(fleet: Fleet) -> None:
    one = Server(fleet, 1)
    one.tell_all(0, volume(7))
    fleet.clear()
    assert fleet.reported(VolumeId(7)) == {}
    fleet.began_to_lead(1_000)
    assert one.tell(1_000)


def test_silence_is_death_after_a_time_of_grace(fleet: Fleet) -> None:
    one = Server(fleet, 1)
    one.tell_all(0)
    assert fleet.standing(1, 2_000) is Standing.ALIVE
    wait(fleet, 0, 5_000)
    assert fleet.standing(1, 5_000) is Standing.SILENT
    wait(fleet, 5_000, 60_000)
    assert fleet.standing(1, 60_000) is Standing.SILENT
    assert fleet.standing(1, 61_000) is Standing.DEAD


def test_the_grace_can_be_changed_at_any_time(fleet: Fleet) -> None:
    Server(fleet, 1).tell_all(0)
    now = wait(fleet, 0, 20_000)
    fleet.config = FleetConfig(silent_ms=5_000, grace_ms=10_000)
    assert fleet.standing(1, now) is Standing.DEAD


def test_who_never_reports_to_a_new_leader_has_the_whole_grace(fleet: Fleet) -> None:
    now = wait(fleet, 0, 60_000)
    assert fleet.standing(9, now) is Standing.SILENT
    assert fleet.standing(9, now + 1_000) is Standing.DEAD


def test_a_node_that_comes_late_is_as_good_as_any(fleet: Fleet) -> None:
    now = wait(fleet, 0, 100_000)
    Server(fleet, 9).tell_all(now)
    assert fleet.standing(9, now) is Standing.ALIVE
    assert not fleet.candidate(9, "", False, now).slow


def test_a_leader_that_has_slept_declares_nobody_dead(fleet: Fleet) -> None:
    one = Server(fleet, 1)
    one.tell_all(0)
    assert fleet.standing(1, 1_000_000) is Standing.ALIVE
    assert fleet.standing(1, 2_000_000) is Standing.SILENT, "not even now: it looks every second"


def test_silences_add_up_until_a_node_was_steady(fleet: Fleet) -> None:
    """Ten seconds away, five seconds there, and so on: six times that is a minute away."""
    one = Server(fleet, 1)
    one.tell_all(0)
    now = 0.0
    seen = []
    for _ in range(8):
        now = wait(fleet, now, now + 9_000)
        seen.append(fleet.standing(1, now))
        one.tell(now + 1_000)
        now = wait(fleet, now + 1_000, now + 6_000, one)
        seen.append(fleet.standing(1, now))
    assert seen[:11] == [Standing.SILENT, Standing.ALIVE] * 5 + [Standing.SILENT]
    assert seen[12:] == [Standing.DEAD, Standing.UNSTEADY] * 2
    assert fleet.candidate(1, "", False, now).slow, "it gets no volume if there is anybody else"


def test_a_node_that_is_steady_again_has_its_whole_grace(fleet: Fleet) -> None:
    one = Server(fleet, 1)
    one.tell_all(0)
    now = wait(fleet, 0, 100_000)
    one.tell(now)
    assert fleet.standing(1, now) is Standing.UNSTEADY
    now = wait(fleet, now, now + 19_000, one)
    assert fleet.standing(1, now) is Standing.UNSTEADY
    now = wait(fleet, now, now + 1_000, one)
    assert fleet.standing(1, now) is Standing.ALIVE
    now = wait(fleet, now, now + 60_000)
    assert fleet.standing(1, now) is Standing.SILENT


def test_a_node_that_stays_does_not_die_of_an_old_silence(fleet: Fleet) -> None:
    one = Server(fleet, 1)
    one.tell_all(0)
    now = wait(fleet, 0, 58_000)
    one.tell(now)
    for _ in range(30):
        now = wait(fleet, now, now + 1_000, one)
        assert fleet.standing(1, now) is Standing.ALIVE


def test_two_servers_with_one_number_the_first_stays(fleet: Fleet) -> None:
    first, second = Server(fleet, 1, incarnation=1), Server(fleet, 1, incarnation=2)
    first.tell_all(0, volume(7))
    second.tell_all(100, volume(8))  # it could be the first one, started again
    first.tell_all(1_000, volume(7))  # it is not
    for now in range(1_100, 9_000, 1_000):
        with pytest.raises(FsError, match="two servers say that they are node 1") as refused:
            second.tell_all(now, volume(8))
        assert refused.value.fault is Fault.BUSY
        first.tell(now + 900)
        assert fleet.of_node(1) == {7: volume(7)}
    assert any("two servers" in one for one in fleet.view(1, 9_000).troubles)


def test_the_second_server_is_heard_once_the_first_is_silent(fleet: Fleet) -> None:
    first, second = Server(fleet, 1, incarnation=1), Server(fleet, 1, incarnation=2)
    first.tell_all(0, volume(7))
    second.tell_all(100, volume(8))
    first.tell_all(1_000, volume(7))
    with pytest.raises(FsError):
        second.tell_all(1_100, volume(8))
    wait(fleet, 1_100, 6_100)
    assert not second.tell_all(6_100, volume(8))
    assert fleet.of_node(1) == {8: volume(8)}
    with pytest.raises(FsError, match="two servers"):
        first.tell_all(6_500, volume(7))


def test_the_second_server_does_not_get_in_by_starting_again(fleet: Fleet) -> None:
    first = Server(fleet, 1, incarnation=1)
    first.tell_all(0, volume(7))
    for number in range(2, 30):
        now = number * 1_000
        Server(fleet, 1, incarnation=number).tell(now)
        first.tell_all(now + 500, volume(7))
    assert fleet.of_node(1) == {7: volume(7)}


def test_a_server_may_start_again_and_again(fleet: Fleet) -> None:
    for number in range(1, 30):
        Server(fleet, 1, incarnation=number).tell_all(number * 100, volume(number))
    assert list(fleet.of_node(1)) == [29]


def test_a_slow_node_is_avoided_for_a_while(fleet: Fleet) -> None:
    one = Server(fleet, 1)
    one.tell_all(0)
    fleet.slow(1, 0)
    fleet.slow(99, 0)  # nobody knows it: that is no news
    assert fleet.candidate(1, "", False, 1_000).slow
    now = wait(fleet, 0, 29_000, one)
    assert fleet.candidate(1, "", False, now).slow
    now = wait(fleet, now, now + 2_000, one)
    assert not fleet.candidate(1, "", False, now).slow


def test_a_candidate_has_what_its_disks_say(fleet: Fleet) -> None:
    one = Server(fleet, 1)
    ill = DiskReport("/ill", "hdd", 1000 * MIB, 0, 3, "input/output error")
    one.disks = (DISK, ill)
    one.tell_all(0, volume(7), volume(8, epoch=2), volume(9, epoch=1))
    found = fleet.candidate(1, "/r/h", True, 0)
    assert (found.location, found.draining, found.alive, found.full) == ("/r/h", True, True, False)
    assert (found.free_bytes, found.room_bytes) == (500 * MIB, 500 * MIB)
    assert found.writing == 2
    assert fleet.view(1, 0).troubles == ("disk /ill takes nothing more: input/output error",)
    one.disks = (ill,)
    one.tell(1_000, volume(8))
    found = fleet.candidate(1, "", False, 1_000)
    assert found.full
    assert found.writing == 1
    assert not fleet.candidate(2, "", False, 1_000).alive, "it was never heard"


def test_safe_mode_knows_how_many_volumes_were_reported(fleet: Fleet) -> None:
    fleet.expect([VolumeId(one) for one in (7, 8, 9)])
    assert fleet.count() == (3, 0)
    one, two = Server(fleet, 1), Server(fleet, 2)
    one.tell_all(0, volume(7), volume(100))
    two.tell_all(0, volume(7), volume(8))
    assert fleet.count() == (3, 2)
    fleet.expect([VolumeId(100), VolumeId(7)])
    assert fleet.count() == (4, 3)
    fleet.expect_no_more(VolumeId(8))
    fleet.expect_no_more(VolumeId(1_000))
    assert fleet.count() == (3, 2)
    one.tell(1_000, gone=(7,))
    assert fleet.count() == (3, 2), "the other still has it"
    fleet.forget_node(2)
    assert fleet.count() == (3, 1)


VOLUMES = st.lists(st.builds(volume, st.integers(1, 6), epoch=st.integers(0, 1)), max_size=4)
STEPS = st.lists(
    st.tuples(
        st.integers(1, 3), st.integers(1, 2), st.booleans(), VOLUMES, st.lists(st.integers(1, 6)),
        st.integers(0, 2), st.sampled_from([100.0, 1_000.0, 20_000.0]),
    )
)  # fmt: skip


@given(STEPS, st.lists(st.integers(1, 6)))
def test_the_counts_are_right_whatever_is_reported(
    steps: list[tuple[int, int, bool, list[VolumeReport], list[int], int, float]],
    known: list[int],
) -> None:
    """(node, incarnation, whole, volumes, gone, how much the sequence grows, time since)"""
    fleet = Fleet(CONFIG)
    fleet.expect([VolumeId(one) for one in known])
    now, sequence = 0.0, 0
    for node, incarnation, whole, volumes, gone, more, time in steps:
        now += time
        sequence += more
        numbers = tuple(VolumeId(one) for one in gone)
        report = Report(node, incarnation, (), tuple(volumes), numbers, whole, sequence)
        try:
            fleet.hear(report, now)
        except FsError as error:
            assert error.fault is Fault.BUSY
        fleet.check()
    fleet.forget_node(1)
    fleet.check()


@given(st.lists(st.tuples(st.sets(st.integers(1, 9)), st.booleans()), min_size=1))
def test_a_server_that_is_heard_with_losses_is_known_as_it_is(
    states: list[tuple[set[int], bool]],
) -> None:
    """It tells what has changed, or everything when it is asked to; some reports get lost."""
    fleet = Fleet(CONFIG)
    told: set[int] = set()
    whole = True
    for sequence, (has, arrives) in enumerate([*states, (states[-1][0], True)]):
        new = has if whole else has - told
        report = Report(
            1, 1, (), tuple(volume(one) for one in sorted(new)),
            tuple(VolumeId(one) for one in told - has), whole, sequence,
        )  # fmt: skip
        told = has
        if arrives:
            whole = fleet.hear(report, sequence * 1_000.0).wants_whole
            assert whole or fleet.of_node(1).keys() == has
