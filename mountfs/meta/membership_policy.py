"""Who should vote, decided from what the leader sees.  No I/O.

Voters come in odd numbers: an even number tolerates no more failures than one voter less, and has
one more to fail.  So a second machine follows as a learner until there is a third.
"""

from collections.abc import Callable, Collection

from mountfs.meta.ops.nodes import NodeRecord
from mountfs.raft.messages import Membership, NodeId

VOTERS_MAX = 5


def wanted(
    now: Membership,
    nodes: Collection[NodeRecord],
    is_ready: Callable[[NodeId], bool],
    voters_max: int = VOTERS_MAX,
    *,
    keeping: Collection[int] = (),
) -> tuple[tuple[NodeId, ...], tuple[NodeId, ...]] | None:
    """(voters, learners) as they should become, of those that have the metadata; None: as they are.

    `is_ready` says of a learner that it is there and lacks next to nothing.  Those that leave
    follow as learners while they are among `keeping`: who leads hears from them what they keep.
    """
    if now.is_joint:
        return None
    staying = {NodeId(node.number) for node in nodes if node.has_metadata and not node.leaving}
    voters = [node for node in now.voters if node in staying]
    if not voters:
        return None  # the last one cannot leave
    lingering = {
        NodeId(node.number)
        for node in nodes
        if node.has_metadata and node.leaving and node.number in keeping
    }
    learners = sorted(staying.difference(voters))
    ready = [node for node in learners if node in now.learners and is_ready(node)]
    more = _odd(min(voters_max, len(voters) + len(ready))) - len(voters)
    if more > 0:
        voters += ready[:more]
    learners = sorted(lingering.union(learners).difference(voters))
    found = (tuple(sorted(voters)), tuple(learners))
    return None if found == (now.voters, now.learners) else found


def _odd(count: int) -> int:
    """The largest odd number up to that."""
    return count - 1 + count % 2


def why_not_to_remove(
    node: NodeId,
    now: Membership,
    is_alive: Callable[[NodeId], bool],
    leaving: Collection[int] = (),
) -> str | None:
    """Why removing a node would do harm, in a sentence; None: it would not.  Those who are
    `leaving` will not be there then.
    """
    if node not in now.voters:
        return None
    rest = [voter for voter in now.voters if voter != node and voter not in leaving]
    if not rest:
        return "it is the last voter: there would be nobody left to have the metadata"
    alive = [voter for voter in rest if is_alive(voter)]
    if len(alive) <= len(rest) // 2:
        dead = ", ".join(str(voter) for voter in rest if voter not in alive)
        return (
            f"of the {len(rest)} voters that would be left only {len(alive)} answer (not: {dead}), "
            "which is no majority; bring them back first"
        )
    return None
