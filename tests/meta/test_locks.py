"""Locks against a model that says of every byte who holds it."""

from hypothesis import given
from hypothesis import strategies as st

from mountfs.meta.locks import (
    EOF,
    FLOCK,
    POSIX,
    Lock,
    Owner,
    acquire,
    conflict,
    release,
)

BYTES = 8  # the model looks at these, and the last stands for all up to the end
OWNERS = [Owner(1, 1), Owner(1, 2), Owner(2, 1)]

RANGES = (
    st.tuples(st.integers(0, BYTES - 1), st.integers(1, BYTES))
    .filter(lambda ends: ends[0] < ends[1])
    .map(lambda ends: (ends[0], EOF if ends[1] == BYTES else ends[1]))
)
STEPS = st.lists(
    st.tuples(
        st.sampled_from([POSIX, FLOCK]),
        st.sampled_from(OWNERS),
        RANGES,
        st.sampled_from(["release", "shared", "exclusive"]),
    ),
    max_size=20,
)


@given(STEPS)
def test_every_byte_is_held_as_it_was_locked_last(steps):
    held = ()
    cells = {}  # (flavor, owner, byte) -> exclusive
    for flavor, owner, (start, stop), what in steps:
        span = range(start, min(stop, BYTES))
        if what == "release":
            held = release(held, flavor, owner, start, stop)
            for byte in span:
                cells.pop((flavor, owner, byte), None)
        else:
            exclusive = what == "exclusive"
            wanted = Lock(flavor, owner, start, stop, exclusive, 7)
            blocked = any(
                exclusive or cells.get((flavor, other, byte))
                for other in OWNERS
                for byte in span
                if other != owner and (flavor, other, byte) in cells
            )
            in_the_way = conflict(held, wanted)
            assert (in_the_way is not None) == blocked
            if blocked:
                assert in_the_way in held
                continue
            held = acquire(held, wanted)
            cells.update({(flavor, owner, byte): exclusive for byte in span})

        found = {}
        for lock in held:
            assert 0 <= lock.start < lock.stop <= EOF
            for byte in range(lock.start, min(lock.stop, BYTES)):
                assert (lock.flavor, lock.owner, byte) not in found, "two locks of one owner"
                found[lock.flavor, lock.owner, byte] = lock.exclusive
        assert found == cells


@given(STEPS)
def test_neighbours_that_are_alike_are_one_lock(steps):
    held = ()
    for flavor, owner, (start, stop), what in steps:
        wanted = Lock(flavor, owner, start, stop, what == "exclusive", 7)
        if what == "release":
            held = release(held, flavor, owner, start, stop)
        elif conflict(held, wanted) is None:
            held = acquire(held, wanted)
        ends = {(lock.flavor, lock.owner, lock.exclusive, lock.stop) for lock in held}
        starts = {(lock.flavor, lock.owner, lock.exclusive, lock.start) for lock in held}
        assert not ends & starts


def test_the_first_lock_in_the_way_is_told():
    one = Lock(POSIX, OWNERS[0], 10, 20, True, 1)
    two = Lock(POSIX, OWNERS[0], 0, 5, True, 1)
    assert conflict((one, two), Lock(POSIX, OWNERS[1], 0, EOF, False, 2)) == two


def test_a_lock_to_the_end_is_met_at_the_largest_offset():
    held = (Lock(POSIX, OWNERS[0], 0, EOF, True, 1),)
    last_byte = Lock(POSIX, OWNERS[1], (1 << 63) - 1, 1 << 63, True, 2)
    assert conflict(held, last_byte) is not None
