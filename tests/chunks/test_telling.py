"""What a leader is told of volumes: all at first, then what has changed, and all when in doubt."""

from mountfs.chunks.telling import Telling
from mountfs.meta.reports import ASYNC, FSYNC, Report, ReportReply, VolumeReport
from mountfs.types import VolumeId

HEARD = ReportReply(wants_whole=False)
NODE, INCARNATION = 4, 77


def volume(number: int, needles: int = 1) -> VolumeReport:
    return VolumeReport(VolumeId(number), 100, 50, needles)


class Told:
    """A leader, and what it knows when it takes in what it hears."""

    def __init__(self) -> None:
        self.known: dict[int, VolumeReport] = {}

    def hear(self, report: Report) -> None:
        if report.whole:
            self.known = {}
        for number in report.gone:
            del self.known[number]
        self.known |= {one.number: one for one in report.volumes}


def test_the_first_report_is_whole_and_later_ones_have_what_has_changed() -> None:
    telling, leader = Telling(NODE, INCARNATION), Told()
    first = telling.next("n1", (), [volume(1), volume(2), volume(3)])
    assert (first.node, first.incarnation, first.sequence, first.whole) == (4, 77, 1, True)
    telling.answered(HEARD)
    leader.hear(first)
    second = telling.next("n1", (), [volume(1), volume(3, needles=2), volume(4)])
    assert not second.whole
    assert second.volumes == (volume(3, needles=2), volume(4))
    assert second.gone == (2,)
    assert second.sequence == 2
    telling.answered(HEARD)
    leader.hear(second)
    assert set(leader.known.values()) == {volume(1), volume(3, needles=2), volume(4)}
    third = telling.next("n1", (), [volume(1), volume(3, needles=2), volume(4)])
    assert (third.whole, third.volumes, third.gone) == (False, (), ())


def test_a_report_says_what_it_means_that_a_slice_was_taken() -> None:
    assert Telling(NODE, INCARNATION).next("n1", (), []).durability == FSYNC
    assert Telling(NODE, INCARNATION, ASYNC).next("n1", (), []).durability == ASYNC


def test_another_leader_is_told_all() -> None:
    telling = Telling(NODE, INCARNATION)
    telling.next("n1", (), [volume(1)])
    telling.answered(HEARD)
    assert telling.next("n2", (), [volume(1)]).whole
    telling.answered(HEARD)
    assert not telling.next("n2", (), [volume(1)]).whole


def test_a_leader_that_wants_all_is_told_all() -> None:
    telling = Telling(NODE, INCARNATION)
    telling.next("n1", (), [volume(1)])
    telling.answered(ReportReply(wants_whole=True))
    assert telling.next("n1", (), [volume(1)]).volumes == (volume(1),)


def test_what_was_perhaps_not_heard_is_told_again() -> None:
    telling, leader = Telling(NODE, INCARNATION), Told()
    leader.hear(telling.next("n1", (), [volume(1)]))
    telling.answered(HEARD)
    telling.next("n1", (), [volume(2)])
    telling.failed()
    report = telling.next("n1", (), [volume(3)])
    leader.hear(report)
    assert report.whole
    assert set(leader.known.values()) == {volume(3)}
