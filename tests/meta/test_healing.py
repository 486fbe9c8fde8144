"""The healer, one thing that is wrong at a time."""

from itertools import pairwise
from typing import TypeVar

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_cluster import FLEET, HEALING, Toy

from mountfs.meta.diagnosis import Case, Cause, Cluster, Member, is_well
from mountfs.meta.fleet import Fleet
from mountfs.meta.healing_tasks import (
    Adopt,
    CopyVolume,
    Reconcile,
    Remove,
    Repair,
    Rescue,
    Seal,
    Shrink,
    Task,
)
from mountfs.meta.health import RATE_MS, Rate
from mountfs.meta.ops.volumes import VolumeRecord
from mountfs.meta.reports import DiskReport, Report, VolumeReport
from mountfs.types import FIRST_REPLICATED, MIB, VolumeId

T = TypeVar("T", bound=Task)

GRACE_S = int(FLEET.grace_ms) // 1_000
SETTLE_S = HEALING.settle_ms // 1_000
DIFFER_S = HEALING.differ_ms // 1_000


def toy(*locations: str) -> Toy:
    """Four nodes in two racks, unless others are named; all were heard."""
    found = Toy(1, locations or ("/r1/a", "/r1/b", "/r2/c", "/r2/d"))
    found.hear()
    return found


def only(tasks: list[Task], kind: type[T]) -> T:
    assert len(tasks) == 1, tasks
    (task,) = tasks
    assert isinstance(task, kind), task
    return task


def test_where_nothing_is_wrong_nothing_is_done() -> None:
    cluster = toy()
    cluster.put(1, 3)
    cluster.put(1, 4, sealed=False)
    assert cluster.look(100) == []
    assert cluster.healer.health().is_well


def test_a_silent_node_is_replaced_after_its_time_of_grace() -> None:
    cluster = toy()
    number = cluster.put(1, 3)
    cluster.nodes[3].up = False
    assert cluster.look(GRACE_S) == []
    assert cluster.healer.health().causes == {
        "one copy left": 1,
        "too few copies until a silent node is back": 1,
    }
    task = only(cluster.look(3), CopyVolume)
    assert (task.volume, task.source, task.target, task.replacing) == (number, 1, 4, 3)
    assert (task.before, task.replicas, task.copies) == ((1, 3), (1, 4), 2)
    assert task.bytes == 2 * MIB
    assert "too few copies" in task.why


def test_a_node_that_comes_back_in_time_costs_nothing() -> None:
    cluster = toy()
    cluster.put(1, 3)
    cluster.nodes[3].up = False
    assert cluster.look(GRACE_S - 2) == []
    cluster.nodes[3].start()
    assert cluster.look(100) == []


def test_those_with_the_fewest_copies_left_come_first() -> None:
    cluster = toy("/1", "/2", "/3", "/4", "/5", "/6")
    cluster.put(3, 4, 1, copies=3)
    cluster.put(1, 2, 5, copies=3)
    urgent = cluster.put(1, 2, 6, copies=3)
    cluster.nodes[1].up = cluster.nodes[2].up = False
    cluster.nodes[5].copies.clear()
    tasks = cluster.look(GRACE_S + 10)
    assert tasks[0].volume == urgent
    assert len({task.volume for task in tasks}) == 2, "and of the other nothing is left"
    assert cluster.healer.health().unreadable == (urgent - 1,)


def test_an_open_volume_with_a_failed_replica_is_sealed_and_then_copied() -> None:
    cluster = toy()
    number = cluster.put(1, 3, sealed=False)
    cluster.nodes[3].up = False
    task = only(cluster.look(GRACE_S + 3), Seal)
    assert (task.volume, task.to) == (number, (1,))
    assert "node 3 is dead" in task.why
    cluster.seal(number)
    assert only(cluster.look(3), CopyVolume).replacing == 3


def test_nothing_changes_until_every_replica_knows_that_the_volume_is_sealed() -> None:
    cluster = toy()
    number = cluster.put(1, 3, sealed=False)
    cluster.hear()
    cluster.seal(number, reach=False)
    cluster.nodes[3].up = False
    task = only(cluster.look(SETTLE_S + 1), Seal)
    assert (task.volume, task.to) == (number, (1,))
    assert [type(one) for one in cluster.look(2 * GRACE_S)] == [Seal]
    cluster.nodes[1].copies[number].epoch = 0
    assert isinstance(cluster.look(GRACE_S + 3)[0], CopyVolume)


def test_a_copy_that_a_node_has_lost_is_made_again() -> None:
    cluster = toy("/1", "/2")
    number = cluster.put(1, 2)
    cluster.look(1)
    del cluster.nodes[2].copies[number]
    assert cluster.look(SETTLE_S) == [], "its report may be late"
    task = only(cluster.look(2), CopyVolume)
    assert (task.source, task.target, task.replacing) == (1, 2, 0)
    assert task.before == task.replicas == (1, 2)


def test_a_damaged_copy_is_repaired_from_a_good_one() -> None:
    cluster = toy()
    number = cluster.put(1, 3)
    cluster.nodes[3].copies[number].damaged = {1}
    task = only(cluster.look(1), Repair)
    assert (task.volume, task.node, task.sources) == (number, 3, (1,))
    assert "1 slices are damaged" in task.why


def test_copies_that_are_all_damaged_are_repaired_from_each_other() -> None:
    cluster = toy()
    number = cluster.put(1, 3)
    cluster.nodes[1].copies[number].damaged = {1}
    cluster.nodes[3].copies[number].damaged = {2}
    cluster.run(20)
    assert cluster.unfinished() == []
    assert cluster.done["Repair"] == 2


def test_a_copy_that_nothing_repairs_is_replaced() -> None:
    cluster = toy()
    number = cluster.put(1, 3)
    cluster.nodes[3].copies[number].damaged = {1}
    first = only(cluster.look(1), Repair)
    for _ in range(HEALING.repair_ms // 1_000):
        cluster.healer.ended(first, cluster.now, "the disk does not take it")
        cluster.hear()
        cluster.healer.plan(cluster.members, (), VolumeId(cluster.next_volume), cluster.now)
    assert cluster.healer.health().stuck == {"the disk does not take it": 1}
    task = only(cluster.look(100), CopyVolume)
    assert (task.source, task.target, task.replacing) == (1, 4, 3)


def test_copies_that_differ_get_what_each_other_has() -> None:
    cluster = toy()
    number = cluster.put(1, 3)
    cluster.give(3, number, (1,))
    assert cluster.look(DIFFER_S) == [], "a deletion may be on its way"
    task = only(cluster.look(1), Reconcile)
    assert (task.volume, task.among) == (number, (1, 3))
    cluster.run(10)
    assert cluster.unfinished() == []


def test_copies_with_as_many_slices_but_other_ones_differ() -> None:
    cluster = toy()
    number = cluster.put(1, 3, slices=(1, 2, 3))
    cluster.give(1, number, (1, 2))
    cluster.give(3, number, (2, 3))
    cluster.run(DIFFER_S + 10)
    assert cluster.unfinished() == []


def test_of_too_many_copies_the_fullest_node_gives_up_its_own() -> None:
    cluster = toy("/1", "/2", "/3")
    for _ in range(3):
        cluster.put(2, copies=1)
    number = cluster.put(1, 2, 3)
    task = only(cluster.look(1), Shrink)
    assert (task.volume, task.node, task.replicas) == (number, 2, (1, 3))
    cluster.run(20)
    assert number not in cluster.nodes[2].copies


def test_of_too_many_copies_one_is_given_up_without_which_the_rule_is_kept() -> None:
    cluster = toy("/r1/a", "/r1/b", "/r2/c")
    for _ in range(3):
        cluster.put(3, copies=1)  # it is the fullest
    cluster.put(1, 2, 3)
    assert only(cluster.look(1), Shrink).node in (1, 2)


def test_no_copy_is_given_up_while_copies_differ() -> None:
    cluster = toy("/1", "/2", "/3")
    number = cluster.put(1, 2, 3)
    cluster.give(3, number, (1,))
    assert only(cluster.look(DIFFER_S + 1), Reconcile).among == (1, 2, 3)


def test_copies_in_one_rack_are_spread_when_there_is_another() -> None:
    cluster = toy("/r1/a", "/r1/b", "/r2/c")
    number = cluster.put(1, 2)
    task = only(cluster.look(1), CopyVolume)
    assert (task.volume, task.target) == (number, 3)
    assert task.replacing in (1, 2)
    cluster.run(20)
    assert cluster.unfinished() == []


def test_copies_stay_in_one_rack_when_the_other_has_no_room() -> None:
    cluster = toy("/r1/a", "/r1/b", "/r2/c")
    cluster.put(1, 2)
    cluster.nodes[3].draining = True
    assert cluster.look(20) == []
    assert cluster.healer.health().is_well


def test_a_draining_node_is_replaced_and_then_empty() -> None:
    cluster = toy()
    number = cluster.put(1, 3)
    cluster.nodes[3].draining = True
    task = only(cluster.look(1), CopyVolume)
    assert (task.target, task.replacing) == (4, 3)
    cluster.run(20)
    assert cluster.records[number].replicas == (1, 4)
    assert not cluster.nodes[3].copies


def test_a_draining_node_may_be_the_only_one_that_has_it() -> None:
    cluster = toy()
    number = cluster.put(3, copies=1)
    cluster.nodes[3].draining = True
    task = only(cluster.look(1), CopyVolume)
    assert (task.volume, task.source, task.replacing) == (number, 3, 3)
    cluster.run(20)
    assert cluster.unfinished() == []


def test_a_draining_node_waits_for_a_place() -> None:
    cluster = toy("/1", "/2", "/3")
    cluster.put(1, 2, 3, copies=3)
    cluster.nodes[3].draining = True
    cluster.run(10)
    health = cluster.healer.health()
    assert health.causes == {"a copy is on a node that is draining": 1}
    ((why, count),) = health.stuck.items()
    assert count == 1
    assert "add some" in why


def test_a_draining_node_is_left_out_when_no_cluster_without_it_has_as_many_nodes() -> None:
    cluster = toy("/1", "/2", "/3")
    number = cluster.put(1, 2, copies=3)
    cluster.nodes[2].draining = True
    cluster.run(20)
    assert set(cluster.records[number].replicas) == {1, 3}


def test_a_copy_that_no_record_names_is_removed() -> None:
    cluster = toy()
    number = cluster.put(1, 3)
    cluster.give(2, number, (1,))
    assert cluster.look(SETTLE_S) == []
    task = only(cluster.look(1), Remove)
    assert (task.volume, task.strays, task.replicas) == (number, (2,), (1, 3))


@pytest.mark.parametrize("what", ["silent", "lost", "damaged", "differs", "open"])
def test_it_is_not_removed_while_a_replica_is_not_well(what: str) -> None:
    cluster = toy("/1", "/2", "/3")
    number = cluster.put(1, 3)
    cluster.give(2, number)
    copy = cluster.nodes[3].copies[number]
    if what == "silent":
        cluster.look(1)
        cluster.nodes[3].up = False
        cluster.hear(), cluster.hear()
    elif what == "lost":
        del cluster.nodes[3].copies[number]
    elif what == "damaged":
        copy.damaged = {1}
    elif what == "differs":
        copy.slices = {1}
    else:
        copy.epoch = 1
    for _ in range(GRACE_S - 5):
        assert not [task for task in cluster.look(1) if isinstance(task, Remove)]


def test_a_copy_that_is_there_already_becomes_a_replica() -> None:
    """That of a node that was dead, for instance, or half of one: it is topped up."""
    cluster = toy("/1", "/2", "/3", "/4", "/5")
    cluster.put(1, 2)
    number = cluster.put(1, 2)
    cluster.give(4, number, (1,))
    cluster.nodes[2].up = False
    tasks = cluster.look(GRACE_S + 3)
    (task,) = [one for one in tasks if one.volume == number]
    assert isinstance(task, CopyVolume)
    assert (task.target, task.bytes) == (4, 0)


def test_a_volume_without_a_record_is_removed_after_a_while() -> None:
    cluster = toy()
    number = cluster.put(1, 3)
    cluster.forget(number)
    assert cluster.look(HEALING.forgotten_ms // 1_000) == []
    assert cluster.healer.health().causes == {Cause.STRAY.value: 1}
    task = only(cluster.look(1), Remove)
    assert (task.volume, task.strays, task.replicas) == (number, (1, 3), ())


def test_a_volume_that_the_metadata_has_never_heard_of_is_not_touched() -> None:
    """The metadata was brought back from a backup, perhaps."""
    cluster = toy()
    cluster.give(1, VolumeId(FIRST_REPLICATED + 1_000))
    assert cluster.look(HEALING.forgotten_ms // 100) == []
    assert cluster.healer.health().causes == {Cause.UNKNOWN.value: 1}


def test_a_volume_that_a_node_has_made_when_it_was_alone_is_adopted() -> None:
    cluster = toy()
    cluster.give(3, VolumeId(7))
    task = only(cluster.look(1), Adopt)
    assert (task.volume, task.node, task.copies) == (7, 3, HEALING.adopt_copies)
    cluster.run(40)
    assert len(cluster.records[VolumeId(7)].replicas) == 3
    assert cluster.healer.health().is_well


def test_the_last_copy_is_found_where_no_record_says_that_it_is() -> None:
    cluster = toy()
    number = cluster.put(1, 3)
    cluster.give(2, number)
    cluster.nodes[1].up = cluster.nodes[3].up = False
    assert cluster.look(GRACE_S) == [], "they may come back"
    task = only(cluster.look(3), Rescue)
    assert (task.node, task.others, task.before, task.replicas) == (2, (), (1, 3), (1, 3, 2))
    cluster.run(40)
    assert set(cluster.records[number].replicas) == {2, 4}


def test_half_a_copy_is_no_replica() -> None:
    cluster = toy()
    number = cluster.put(1, 3)
    cluster.give(2, number, (1,))
    cluster.nodes[1].up = cluster.nodes[3].up = False
    cluster.run(GRACE_S + 30)
    assert cluster.records[number].replicas == (1, 3)
    assert cluster.healer.health().unreadable == (number,)
    cluster.nodes[1].start()
    cluster.run(40)
    assert 1 in cluster.records[number].replicas
    assert cluster.unfinished() == []


def test_nothing_is_done_in_safe_mode_but_it_is_told_what_is_wrong() -> None:
    cluster = toy()
    cluster.put(1, 3)
    cluster.nodes[3].up = False
    cluster.safe_mode = "safe mode: 3 of 9 volumes have been reported"
    assert cluster.look(2 * GRACE_S) == []
    health = cluster.healer.health()
    assert health.held_up == cluster.safe_mode
    assert health.causes == {"one copy left": 1, "too few copies": 1}
    cluster.safe_mode = ""
    only(cluster.look(1), CopyVolume)


def test_a_node_that_comes_and_goes_is_no_place_for_a_copy() -> None:
    cluster = toy("/1", "/2", "/3")
    cluster.put(1, 2)
    cluster.nodes[3].up = False
    cluster.look(GRACE_S + 10)
    cluster.nodes[3].start()
    cluster.nodes[2].copies.clear()
    cluster.nodes[2].draining = True  # what it has lost goes to node 3, or nowhere
    steady_s = int(FLEET.steady_ms) // 1_000
    assert cluster.look(steady_s) == []
    assert only(cluster.look(SETTLE_S), CopyVolume).target == 3


def test_a_damaged_copy_that_no_record_names_does_not_become_a_replica() -> None:
    cluster = toy("/1", "/2", "/3", "/4")
    number = cluster.put(1, 2)
    cluster.give(3, number)
    cluster.nodes[3].copies[number].damaged = {1}
    cluster.hear()
    cluster.nodes[2].copies.clear()
    cluster.nodes[2].draining = True
    assert only(cluster.look(SETTLE_S + 2), CopyVolume).target == 4


def test_a_damaged_copy_that_no_record_names_is_repaired_where_there_is_no_other_place() -> None:
    cluster = toy("/1", "/2", "/3")
    number = cluster.put(1, 2)
    cluster.give(3, number)
    cluster.nodes[3].copies[number].damaged = {1}
    cluster.hear()
    cluster.nodes[2].copies.clear()
    cluster.nodes[2].draining = True
    assert only(cluster.look(SETTLE_S + 2), Repair).node == 3
    cluster.run(30)
    assert set(cluster.records[number].replicas) == {1, 3}


def test_of_copies_that_share_a_host_one_is_moved() -> None:
    cluster = toy("/r1/a", "/r1/a", "/r2/b", "/r2/c")
    for _ in range(3):
        cluster.put(3, copies=1)  # it is the fullest, but moving that one helps nobody
    cluster.put(1, 2, 3, copies=3)
    task = only(cluster.look(1), CopyVolume)
    assert task.replacing in (1, 2)
    assert task.target == 4


def test_a_volume_has_one_task_even_if_it_needs_another_one_than_when_it_was_looked_at() -> None:
    cluster = toy("/1", "/2", "/3")
    cluster.healer.config = msgspec.structs.replace(HEALING, orders_max=0)
    number = cluster.put(1, 2, 3)
    for _ in range(HEALING.looked_max):
        cluster.put(1, 2)
    assert cluster.look(1) == [], "it has one copy too many, but there is no time for that"
    cluster.healer.config = HEALING
    cluster.nodes[2].copies[number].damaged = {1}
    cluster.nodes[3].copies[number].damaged = {1}
    assert only(cluster.look(1), Repair).volume == number


def test_no_node_has_more_to_do_than_it_may() -> None:
    cluster = toy("/1", "/2", "/3", "/4")
    for _ in range(20):
        cluster.put(1, 2)
    cluster.nodes[2].up = False
    tasks = cluster.look(GRACE_S + 3)
    assert len(tasks) == HEALING.copies_per_node_max, "all have node 1 as their source"
    assert cluster.look(5, tasks) == [], "they run still"
    assert len(cluster.look(1, tasks[:1])) == 1
    assert cluster.look(1, tasks[:1])[0].volume != tasks[0].volume


def test_no_more_is_under_way_than_may_be() -> None:
    cluster = toy(*(f"/{number}" for number in range(30)))
    for number in range(2, 30):
        cluster.put(1, number)
    cluster.nodes[1].up = False
    assert len(cluster.look(GRACE_S + 5)) == HEALING.copies_max


def test_what_fails_is_tried_again_after_longer_and_longer_times() -> None:
    cluster = toy()
    cluster.put(1, 3)
    cluster.nodes[3].up = False
    cluster.nodes[2].draining = True  # so that there is one place only
    cluster.look(GRACE_S)
    tries = []
    for _ in range(200):
        for task in cluster.look(1):
            tries.append(cluster.now)
            cluster.healer.ended(task, cluster.now, "no way")
    gaps = [(b - a) / 1_000 for a, b in pairwise(tries)]
    assert gaps[:5] == [2, 4, 8, 16, 16]
    assert set(gaps[5:]) == {16}


def test_what_does_not_help_is_not_done_again_and_again() -> None:
    cluster = toy()
    number = cluster.put(1, 3)
    cluster.give(3, number, (1,))
    done = 0
    for _ in range(200):
        for task in cluster.look(1):
            done += 1
            cluster.healer.ended(task, cluster.now)
    assert 5 < done < 20


def test_a_node_that_comes_and_goes_causes_one_copy_of_each_volume() -> None:
    cluster = toy("/1", "/2", "/3", "/4")
    for _ in range(10):
        cluster.put(1, 2)
    for _ in range(40):
        cluster.nodes[2].up = False
        cluster.run(11)
        cluster.nodes[2].start()
        cluster.run(4)
    assert cluster.done["CopyVolume"] == 10
    cluster.run(60)
    assert cluster.unfinished() == []
    assert cluster.done["CopyVolume"] == 10, "nor is anything moved back"


def test_a_node_that_comes_and_goes_slowly_is_not_given_new_copies_at_once() -> None:
    """Up for longer than it takes to be steady: it dies each time, but has next to nothing."""
    cluster = toy("/1", "/2", "/3", "/4")
    for _ in range(10):
        cluster.put(1, 2)
    for _ in range(10):
        cluster.nodes[2].up = False
        cluster.run(GRACE_S + 20)
        cluster.nodes[2].start()
        cluster.run(30)
    assert cluster.done["CopyVolume"] == 10


def test_an_open_volume_that_is_short_is_sealed_only_after_a_while() -> None:
    cluster = toy("/1", "/2", "/3")
    number = cluster.put(1, 2, copies=3, sealed=False)
    wait = HEALING.open_short_ms // 1_000
    assert cluster.look(wait) == []
    assert only(cluster.look(2), Seal).volume == number


def test_an_open_volume_that_is_short_stays_open_while_the_other_node_is_slow() -> None:
    cluster = toy("/1", "/2", "/3")
    cluster.put(1, 2, copies=3, sealed=False)
    cluster.fleet.slow(3, cluster.now)
    assert cluster.look(FLEET.slow_ms // 1_000 - 1) == []


def test_an_open_volume_is_sealed_when_a_node_drains() -> None:
    cluster = toy()
    cluster.put(1, 3, sealed=False)
    cluster.nodes[3].draining = True
    assert only(cluster.look(1), Seal).to == (1, 3)


def test_a_node_that_was_forgotten_does_not_come_back() -> None:
    cluster = toy()
    cluster.put(1, 3)
    cluster.look(1)
    del cluster.nodes[3]
    cluster.fleet.forget_node(3)
    task = only(cluster.look(1), CopyVolume)
    assert task.replacing == 3


def test_all_volumes_are_looked_at_in_turn() -> None:
    cluster = toy()
    numbers = [cluster.put(1, 3) for _ in range(10 * HEALING.looked_max)]
    seen = set()
    for number in numbers:
        cluster.nodes[3].copies[number].damaged = {1}
    for _ in range(400):
        for task in cluster.look(1):
            seen.add(task.volume)
            cluster.nodes[3].copies[task.volume].damaged.clear()
    assert seen == set(numbers)
    health = cluster.healer.health()
    assert (health.volumes, health.is_well) == (len(numbers), True)


def test_a_volume_that_has_gone_is_not_told_of_any_more() -> None:
    cluster = toy()
    number = cluster.put(1, 3)
    cluster.nodes[3].copies[number].damaged = {1}
    cluster.look(1)
    assert cluster.healer.health().causes == {"a copy is damaged": 1, "one copy left": 1}
    cluster.forget(number)
    for node in cluster.nodes.values():
        node.copies.clear()
    cluster.look(2)
    assert cluster.healer.health().is_well


def test_health_tells_how_much_is_to_be_copied_and_until_when() -> None:
    cluster = toy("/1", "/2", "/3")
    numbers = [cluster.put(1, 2, slices=range(10)) for _ in range(6)]
    assert not cluster.healer.health().looked
    cluster.nodes[2].up = False
    tasks = cluster.look(GRACE_S + 5)
    cluster.look(2, tasks)
    health = cluster.healer.health()
    assert health.bytes_to_copy == len(numbers) * 10 * MIB
    assert health.bytes_per_second == 0
    assert health.seconds_left is None
    assert len(health.under_way) == len(tasks)
    assert f"volume {tasks[0].volume}: copy (nodes 1, 3): one copy left" in health.under_way[0]
    for _ in range(5):
        for task in tasks:
            cluster.healer.copied(task.volume, MIB)
        cluster.look(1, tasks)
    health = cluster.healer.health()
    left = (60 - 5 * len(tasks)) * MIB
    assert health.bytes_to_copy == left
    assert health.seconds_left == pytest.approx(left / health.bytes_per_second)
    assert health.bytes_per_second == pytest.approx(len(tasks) * MIB, rel=0.5)


def test_a_new_leader_begins_with_nothing() -> None:
    cluster = toy()
    cluster.put(1, 3)
    cluster.nodes[3].up = False
    cluster.look(GRACE_S + 3)
    cluster.lead_anew()
    assert not cluster.healer.health().causes
    assert cluster.look(GRACE_S - 1) == [], "it gives everybody their time"


def test_a_rate_is_that_of_the_time_in_which_something_was_copied() -> None:
    rate = Rate()
    assert rate.per_second == 0
    for second in range(10):
        rate.is_working(second * 1_000.0, True)
        rate.add(100)
    rate.is_working(10_000, True)
    assert rate.per_second == pytest.approx(100, rel=0.01)
    rate.is_working(10_000_000, False)
    assert rate.per_second == pytest.approx(100, rel=0.01)
    now = 10_000_000.0
    for _ in range(4 * int(RATE_MS) // 1_000):
        now += 1_000
        rate.is_working(now, True)
        rate.add(700)
    assert rate.per_second == pytest.approx(700, rel=0.05), "what is old does not count"


REPORTS = st.dictionaries(
    st.integers(1, 4),
    st.builds(
        VolumeReport,
        st.just(VolumeId(FIRST_REPLICATED)),
        st.just(100),
        st.sampled_from([100, 100, 100, 50]),
        st.sampled_from([2, 2, 2, 1]),
        st.sampled_from([0, 0, 0, 1]),
        st.sampled_from(["", "", "", "damage"]),
        st.sampled_from([0, 5, 5, 6]),
    ),
)


@given(
    REPORTS,
    st.permutations([1, 2, 3, 4]),
    st.integers(1, 3),
    st.integers(1, 3),
    st.booleans(),
    st.sets(st.integers(1, 4), max_size=1),
    st.sets(st.integers(1, 4), max_size=1),
)
def test_what_is_well_has_nothing_wrong(
    reports: dict[int, VolumeReport],
    order: list[int],
    count: int,
    copies: int,
    sealed: bool,
    draining: set[int],
    silent: set[int],
) -> None:
    """The quick look at a volume, and the thorough one."""
    fleet = Fleet(FLEET)
    fleet.began_to_lead(0)
    disk = DiskReport("/", "", 1 << 40, 1 << 39, 0)
    for node in {1, 2, 3, 4} - silent:
        volumes = (reports[node],) if node in reports else ()
        fleet.hear(Report(node, 1, (disk,), volumes), 0)
    members = [Member(one, f"/r{one % 2}/h{one}", one in draining) for one in (1, 2, 3, 4)]
    cluster = Cluster(fleet, members, 0)
    number = VolumeId(FIRST_REPLICATED)
    record = VolumeRecord(number, tuple(order[:count]), copies, 1, sealed=sealed)
    heard = fleet.reported(number)
    case = Case(record, heard, cluster, HEALING, lambda what, node: 1e9)
    nothing = not case.causes() and next(case.steps(), None) is None
    assert is_well(record, heard, cluster) <= nothing
    fresh = Case(record, heard, cluster, HEALING, lambda what, node: 0.0)
    if nothing and not draining and len(heard) == count == copies and not fresh.strays:
        assert is_well(record, heard, cluster)


def test_the_config_can_be_replaced_at_any_time() -> None:
    cluster = toy("/1", "/2", "/3", "/4")
    for _ in range(20):
        cluster.put(1, 2)
    cluster.nodes[2].up = False
    assert len(cluster.look(GRACE_S + 3)) == 2
    cluster.healer.config = msgspec.structs.replace(HEALING, copies_per_node_max=5)
    assert len(cluster.look(1)) == 5
