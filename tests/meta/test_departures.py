"""When nodes may be emptied, leave and be given up; and how many copies a cluster can give."""

import pytest

from mountfs.meta.departures import Holdings, take_stock, why_not_to_empty, why_not_to_give_up
from mountfs.meta.diagnosis import Member
from mountfs.meta.ops.nodes import NodeRecord
from mountfs.meta.ops.volumes import VolumeRecord
from mountfs.meta.possible import possible
from mountfs.types import VolumeId


def volume(number: int, *replicas: int, copies: int = 3) -> VolumeRecord:
    return VolumeRecord(VolumeId(number), replicas, copies)


def node(number: int, location: str = "", draining: bool = False) -> NodeRecord:
    return NodeRecord(
        number, f"n{number}", "", "", 0, "", ("chunk",), location=location, draining=draining
    )


def stock(node: int, *records: VolumeRecord, there: set[int]) -> Holdings:
    found = Holdings()
    take_stock(node, records, lambda volume, one: one in there, found)
    return found


def test_what_nobody_else_has_is_counted() -> None:
    records = (volume(1, 1, 2), volume(2, 2, 3), volume(3, 3, 1), volume(4, 3, copies=1))
    found = stock(3, *records, there={1, 3})
    assert found == Holdings(volumes=3, several=2, only=2, some_only=(VolumeId(2), VolumeId(4)))
    why_not = why_not_to_give_up(found)
    assert why_not is not None
    assert "(2, 4)" in why_not
    assert "--yes" in why_not
    assert why_not_to_give_up(stock(3, *records[:3], there={1, 2, 3})) is None


def test_copies_need_two_hosts_that_stay() -> None:
    keeps = Holdings(volumes=4, several=4)
    assert why_not_to_empty(1, [node(1), node(2), node(3)], keeps) is None
    for others in (
        [node(2)],
        [node(2, "/r/h"), node(3, "/r/h")],
        [node(2), node(3, draining=True)],
    ):
        why_not = why_not_to_empty(1, [node(1), *others], keeps)
        assert why_not is not None
        assert "add a node first" in why_not


def test_who_keeps_nothing_may_always_go() -> None:
    assert why_not_to_empty(1, [node(1)], Holdings()) is None
    single = Holdings(volumes=1)
    assert why_not_to_empty(1, [node(1)], single) is not None
    assert why_not_to_empty(1, [node(1), node(2)], single) is None


@pytest.mark.parametrize(
    ("locations", "copies", "words"),
    [
        (["/r1/a", "/r2/b", "/r3/c"], 3, ""),
        (["", "", "", ""], 3, ""),
        (["/r1/a", "/r2/b"], 2, "2 nodes can keep slices: add 1 on another host"),
        (["/r1/a"], 1, "1 node can keep slices: add 2 on other hosts"),
        (["/r1/a", "/r1/a", "/r2/b"], 2, "3 nodes on 2 hosts"),
    ],
)
def test_what_a_cluster_lacks_for_three_copies(
    locations: list[str], copies: int, words: str
) -> None:
    found = possible([Member(number, one) for number, one in enumerate(locations, 1)], 3)
    assert found.copies == copies
    assert words in found.lacking
    assert bool(words) == bool(found.lacking)


def test_one_that_drains_does_not_count_and_one_rack_is_a_risk() -> None:
    three = [Member(1, "/r/a"), Member(2, "/r/b"), Member(3, "/r/c", draining=True)]
    found = possible(three, 3)
    assert found.copies == 2
    assert "r)" in found.risk
    assert possible([Member(1, "/r/a"), Member(2, "/s/b")], 2).risk == ""
