"""How many volumes are on a node is counted as records change."""

from hypothesis import given
from hypothesis import strategies as st

from mountfs.meta.assigned import Assigned
from mountfs.meta.ops.volumes import VolumeRecord
from mountfs.types import VolumeId

RECORDS = st.builds(
    lambda number, replicas: VolumeRecord(VolumeId(number), tuple(replicas), 3),
    st.integers(1, 6),
    st.lists(st.integers(1, 5), min_size=1, max_size=4, unique=True),
)


def test_a_copy_that_moves_is_counted_where_it_is() -> None:
    assigned = Assigned()
    one = VolumeRecord(VolumeId(7), (1, 2), 2, sealed=True)
    assigned.take([one, VolumeRecord(VolumeId(8), (2, 3), 2)])
    assert [assigned.count(node) for node in (1, 2, 3, 4)] == [1, 2, 1, 0]
    assigned.take([VolumeRecord(VolumeId(7), (3, 4), 2)])
    assert [assigned.count(node) for node in (1, 2, 3, 4)] == [0, 1, 2, 1]
    assigned.forget(VolumeId(8))
    assert VolumeId(8) not in assigned
    assert VolumeId(7) in assigned
    assert [assigned.count(node) for node in (1, 2, 3, 4)] == [0, 0, 1, 1]


@given(st.lists(st.one_of(RECORDS, st.integers(1, 6))))
def test_the_counts_are_right_whatever_happens(steps: list[VolumeRecord | int]) -> None:
    assigned = Assigned()
    for step in steps:
        if isinstance(step, int):
            assigned.forget(VolumeId(step))
        else:
            assigned.take([step])
        assigned.check()
