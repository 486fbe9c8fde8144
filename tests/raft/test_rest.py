"""A group in which nothing happens falls silent, and whatever happens wakes it."""

import msgspec
import pytest
from group import CONFIG, Group

from mountfs.raft.messages import Heartbeat, NodeId
from mountfs.raft.state import NEVER

RESTS = msgspec.structs.replace(CONFIG, rest_ms=1_000)


def resting() -> Group:
    group = Group(1, 2, 3, config=RESTS)
    group.elect(1)
    group.propose(1, b"x")
    group.settle()
    group.run(2_000)
    assert all(group[node].state.resting for node in (1, 2, 3))
    return group


def test_a_group_that_is_left_alone_sends_nothing_and_needs_no_clock() -> None:
    group = resting()
    assert [group[node].wakes_at for node in (1, 2, 3)] == [NEVER] * 3
    group.run(100_000)
    assert group.find() == []
    assert group.leader == 1
    assert group[1].term == group[2].term == group[3].term == 1


def test_a_group_never_rests_if_it_is_told_not_to() -> None:
    group = Group(1, 2, 3, config=msgspec.structs.replace(CONFIG, rest_ms=0))
    group.elect(1)
    group.run(60_000)
    assert not any(group[node].state.resting for node in (1, 2, 3))


def test_a_proposal_wakes_it() -> None:
    group = resting()
    group.propose(1, b"y")
    group.settle()
    assert [group.servers[node].commands[-1] for node in (1,)] == [b"y"]
    group.run(200)
    assert group.servers[2].commands[-1] == group.servers[3].commands[-1] == b"y"
    group.run(2_000)
    assert group[1].state.resting, "and it rests again"


@pytest.mark.parametrize("node", [1, 2])
def test_a_read_is_answered_after_a_round(node: int) -> None:
    """The lease has ended long ago: resting is no proof of leading."""
    group = resting()
    assert group[1].read_now(group.now) is None
    group.read(node, 1_000 + node)
    assert group.servers[node].answers == {}
    group.settle()
    assert group.servers[node].answers == {1_000 + node: [group[1].log.committed]}


def test_a_leader_that_was_replaced_while_it_rested_answers_no_read() -> None:
    group = resting()
    group.isolate(1)
    for node in (2, 3):
        group[node].unreachable(NodeId(1), group.now)
    group.run(5_000)
    assert group.leader in (2, 3)
    group.propose(group.leader, b"newer")
    group.settle()
    assert group[1].state.resting, "it does not know"
    group.read(1, 77)
    group.run(5_000)
    assert group.servers[1].answers.get(77, []) == []


def test_who_lacks_something_is_not_left_alone() -> None:
    group = Group(1, 2, 3, config=RESTS)
    group.elect(1)
    group.isolate(3)
    group.propose(1, b"x")
    group.run(10_000)
    assert not group[1].state.resting
    group.heal()
    group.run(3_000)
    assert group.servers[3].commands == [b"x"]
    assert group[1].state.resting


def test_a_dead_leader_is_replaced_when_the_shell_says_that_it_is_gone() -> None:
    group = resting()
    group.crash(1)
    group.run(60_000)
    assert group.leader == 0, "nobody has noticed"
    group[2].unreachable(NodeId(1), group.now)
    group[3].unreachable(NodeId(1), group.now)
    group.run(3 * RESTS.election_ms)
    assert group.leader in (2, 3)


def test_a_follower_that_alone_has_lost_the_leader_replaces_nobody() -> None:
    """Its question wakes the leader, and the third hears that one."""
    group = resting()
    group[2].unreachable(NodeId(1), group.now)
    group.run(4 * RESTS.election_ms)
    assert group.leader == 1
    assert group[1].term == 1


def test_a_lost_follower_wakes_the_leader_and_another_peer_nobody() -> None:
    group = resting()
    group[2].unreachable(NodeId(3), group.now)
    assert group[2].state.resting
    group[1].unreachable(NodeId(3), group.now)
    assert not group[1].state.resting


def test_a_server_that_starts_again_finds_the_leader() -> None:
    group = resting()
    group.crash(2)
    group.start(2)
    group.run(5_000)
    assert group[2].leader == 1
    assert group[1].term == 1


def test_who_misses_the_last_heartbeat_asks_and_rests_later() -> None:
    group = Group(1, 2, 3, config=RESTS)
    group.elect(1)
    for _ in range(100):
        group.pass_time(50)
        if last := [m for m in group.messages(Heartbeat) if isinstance(m, Heartbeat) and m.rest]:
            assert len(last) == 2
            group.drop(Heartbeat, target=3)
            break
        group.settle()
    else:
        pytest.fail("it never rests")
    group.settle()
    assert not group[3].state.resting
    group.run(10_000)
    assert all(group[node].state.resting for node in (1, 2, 3))
    assert group[1].term == 1


def test_the_heartbeats_of_all_groups_of_a_node_fall_on_one_beat() -> None:
    beats = set()
    for start in (0, 30, 70):
        group = Group(1, 2, 3, config=CONFIG)
        group.now = start
        group.elect(1)
        group.run(1_000, step=10)
        beats.add(group[1].wakes_at % CONFIG.heartbeat_ms)
    assert beats == {0}
