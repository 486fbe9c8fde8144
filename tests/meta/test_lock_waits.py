"""Whose turn it is, and who would wait for himself: with plain data."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mountfs.errors import Fault, FsError
from mountfs.meta import lock_waits
from mountfs.meta.lock_waits import KEEP_MS, YIELD_MS, LockWaits, Waiter
from mountfs.meta.locks import EOF, FLOCK, POSIX, Lock, Locks, Owner, acquire, conflict, release
from mountfs.types import Ino

A, B = Ino(1), Ino(2)


def lock(
    who: int, *, exclusive: bool = True, start: int = 0, stop: int = EOF, flavor: int = POSIX,
    session: int = 0, pid: int = 0,
) -> Lock:  # fmt: skip
    """Of owner `who`, whose session and process are his alone unless they are named."""
    return Lock(flavor, Owner(session or who, who), start, stop, exclusive, pid or 100 + who)


class Files:
    """What is held, and who waits."""

    def __init__(self) -> None:
        self.held: dict[Ino, Locks] = {}
        self.waits = LockWaits(lambda ino: self.held.get(ino, ()))
        self.now = 0.0

    def take(self, ino: Ino, wanted: Lock) -> bool:
        """As the command does."""
        held = self.held.get(ino, ())
        if conflict(held, wanted) is not None:
            return False
        self.held[ino] = acquire(held, wanted)
        self.waits.taken(ino, wanted)
        self.waits.changed(ino, self.now)
        return True

    def release(self, ino: Ino, wanted: Lock) -> list[Lock]:
        """Returns whose turn it is for that."""
        self.held[ino] = release(self.held.get(ino, ()), wanted.flavor, wanted.owner)
        return [waiter.lock for waiter in self.waits.changed(ino, self.now)]

    def ask(self, ino: Ino, wanted: Lock) -> Waiter:
        return self.waits.ask(ino, wanted, self.now)

    def turn_of_another(self, ino: Ino, wanted: Lock) -> Lock | None:
        return self.waits.turn_of_another(ino, wanted, self.now)


@pytest.fixture
def files() -> Files:
    return Files()


def test_who_waits_is_called_when_the_lock_is_free(files: Files) -> None:
    assert files.take(A, lock(1))
    waiter = files.ask(A, lock(2))
    assert waiter.waits
    assert files.release(A, lock(1)) == [lock(2)]
    assert waiter.called
    assert files.take(A, lock(2))
    assert len(files.waits) == 0


def test_who_asks_for_what_is_free_is_called_at_once(files: Files) -> None:
    assert files.ask(A, lock(1)).called


def test_what_is_released_elsewhere_calls_nobody(files: Files) -> None:
    files.take(A, lock(1))
    files.take(B, lock(1))
    waiter = files.ask(A, lock(2))
    assert files.release(B, lock(1)) == []
    assert waiter.waits


def test_those_who_exclude_one_another_go_one_after_the_other_as_they_came(files: Files) -> None:
    files.take(A, lock(1))
    for who in (2, 3, 4):
        files.ask(A, lock(who))
    for who in (2, 3, 4):
        assert files.release(A, lock(who - 1)) == [lock(who)]
        assert files.take(A, lock(who))


def test_readers_go_together(files: Files) -> None:
    files.take(A, lock(1))
    readers = [lock(who, exclusive=False) for who in (2, 3)]
    for reader in readers:
        files.ask(A, reader)
    assert files.release(A, lock(1)) == readers


def test_those_who_do_not_meet_do_not_wait_for_one_another(files: Files) -> None:
    files.take(A, lock(1))
    files.ask(A, lock(2, stop=10))
    files.ask(A, lock(3, start=10))
    assert files.release(A, lock(1)) == [lock(2, stop=10), lock(3, start=10)]


def test_flock_and_record_locks_do_not_meet(files: Files) -> None:
    files.take(A, lock(1))
    files.ask(A, lock(2))
    assert files.ask(A, lock(3, flavor=FLOCK)).called


def test_readers_that_come_later_let_a_writer_go_first(files: Files) -> None:
    files.take(A, lock(1, exclusive=False))
    files.ask(A, lock(2))
    late = lock(3, exclusive=False)
    assert files.turn_of_another(A, late) == lock(2)
    waiter = files.ask(A, late)
    assert waiter.waits
    assert files.release(A, lock(1)) == [lock(2)]
    files.take(A, lock(2))
    assert files.release(A, lock(2)) == [late]


def test_but_not_for_ever(files: Files) -> None:
    """Who holds the lock may wait for the late one in another way, of which we know nothing."""
    files.take(A, lock(1, exclusive=False))
    files.ask(A, lock(2))
    late = files.ask(A, lock(3, exclusive=False))
    files.now = YIELD_MS - 1
    files.waits.changed(A, files.now)
    assert late.waits
    files.now = YIELD_MS
    files.waits.changed(A, files.now)
    assert late.called
    assert files.turn_of_another(A, late.lock) is None
    assert files.take(A, late.lock)


def test_time_behind_a_lock_that_is_held_is_no_reason_to_go_first(files: Files) -> None:
    files.take(A, lock(1))
    for who in (2, 3):
        files.ask(A, lock(who))
    files.now = 10 * YIELD_MS
    assert files.release(A, lock(1)) == [lock(2)]


def test_patience_begins_anew_when_the_lock_was_held_again(files: Files) -> None:
    files.take(A, lock(1, exclusive=False))
    for waiter in (lock(2), lock(3), lock(4, exclusive=False)):
        files.ask(A, waiter)
    files.now = YIELD_MS - 1
    assert files.release(A, lock(1)) == [lock(2)]
    files.take(A, lock(2))
    files.now = YIELD_MS + 1
    assert files.release(A, lock(2)) == [lock(3)]


@pytest.mark.parametrize("same", ["owner", "process"])
def test_who_has_a_share_already_gets_another_one(files: Files, same: str) -> None:
    files.take(A, lock(1, exclusive=False, stop=10, session=7))
    files.ask(A, lock(2))
    more = lock(1, exclusive=False, start=20, session=7)
    if same == "process":
        more = lock(3, exclusive=False, start=20, session=7, pid=101)
    assert files.turn_of_another(A, more) is None
    assert files.ask(A, more).called


def test_a_process_of_another_mount_with_the_same_number_is_another(files: Files) -> None:
    files.take(A, lock(1, exclusive=False, session=7, pid=5))
    files.ask(A, lock(2))
    assert files.turn_of_another(A, lock(3, exclusive=False, session=8, pid=5)) == lock(2)


def test_nobody_goes_first_who_waits_for_the_one_who_asks(files: Files) -> None:
    """He would wait for himself, for the sake of order alone."""
    files.take(A, lock(1, exclusive=False))
    files.take(B, lock(3))
    files.take(A, lock(4, exclusive=False))
    files.ask(B, lock(4))
    files.ask(A, lock(2))  # for 1, and for 4, who waits for 3
    assert files.turn_of_another(A, lock(3, exclusive=False)) is None
    assert files.ask(A, lock(3, exclusive=False)).called
    assert files.turn_of_another(A, lock(5, exclusive=False)) == lock(2)


# -- places


def test_a_place_is_kept_for_who_asks_again(files: Files) -> None:
    files.take(A, lock(1))
    first, second = files.ask(A, lock(2)), files.ask(A, lock(3))
    for waiter in (first, second):
        files.waits.leave(waiter, files.now)
    files.now = KEEP_MS
    assert files.ask(A, lock(3)) is second
    assert files.ask(A, lock(2)) is first
    assert files.release(A, lock(1)) == [lock(2)]


def test_but_not_for_ever_either(files: Files) -> None:
    files.take(A, lock(1))
    files.waits.leave(files.ask(A, lock(2)), files.now)
    files.ask(A, lock(3))
    files.now = KEEP_MS + 1
    assert files.release(A, lock(1)) == [lock(3)]
    assert len(files.waits) == 1


def test_who_was_called_and_finds_the_lock_taken_keeps_his_place(files: Files) -> None:
    files.take(A, lock(1))
    first = files.ask(A, lock(2))
    files.ask(A, lock(3))
    files.release(A, lock(1))
    files.waits.leave(first, files.now)
    assert files.take(A, lock(9))  # who does not wait need not queue
    assert files.ask(A, lock(2)) is first
    assert first.waits
    assert files.release(A, lock(9)) == [lock(2)]


def test_two_threads_that_want_the_same_have_two_places(files: Files) -> None:
    files.take(A, lock(1))
    one, other = files.ask(A, lock(2)), files.ask(A, lock(2))
    assert one is not other
    assert files.release(A, lock(1)) == [lock(2), lock(2)]


def test_a_place_belongs_to_one_until_he_has_heard_that_he_is_called(files: Files) -> None:
    files.take(A, lock(1))
    one = files.ask(A, lock(2))
    files.release(A, lock(1))
    assert one.called
    assert files.ask(A, lock(2)) is not one


def test_who_gives_up_is_in_nobodys_way(files: Files) -> None:
    files.take(A, lock(1, exclusive=False))
    writer = files.ask(A, lock(2))
    reader = files.ask(A, lock(3, exclusive=False))
    assert files.waits.give_up(writer, files.now) == [reader]
    assert files.waits.give_up(writer, files.now) == []


def test_the_end_of_a_session_takes_its_waiters_and_calls_others(files: Files) -> None:
    files.take(A, lock(1, session=5))
    theirs = files.ask(B, lock(2, session=5))
    files.waits.leave(theirs, files.now)
    waiting = files.ask(A, lock(3, session=6))
    files.held[A] = ()
    assert files.waits.session_ended(5, files.now) == ([theirs], [waiting])
    assert files.waits.count(5) == 0
    assert files.waits.count(6) == 1


def test_the_number_of_waiters_is_bounded(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_waits, "SESSION_WAITERS_MAX", 2)
    monkeypatch.setattr(lock_waits, "WAITERS_MAX", 3)
    files.take(A, lock(1))
    for who in (2, 3):
        files.ask(A, lock(who, session=1))
    with pytest.raises(FsError) as refused:
        files.ask(A, lock(4, session=1))
    assert refused.value.fault is Fault.NO_LOCKS
    fourth = files.ask(A, lock(4, session=2))
    with pytest.raises(FsError) as refused:
        files.ask(A, lock(5, session=3))
    assert refused.value.fault is Fault.NO_LOCKS
    files.waits.give_up(fourth, files.now)
    files.ask(A, lock(5, session=3))


# -- circles


def deadlock(files: Files, ino: Ino, wanted: Lock) -> bool:
    try:
        files.ask(ino, wanted)
    except FsError as error:
        assert error.fault is Fault.DEADLOCK
        return True
    return False


def test_two_that_wait_for_each_other_are_a_deadlock(files: Files) -> None:
    files.take(A, lock(1))
    files.take(B, lock(2))
    assert not deadlock(files, B, lock(1))
    assert deadlock(files, A, lock(2))
    assert not deadlock(files, A, lock(3))


def test_a_circle_of_three_is_found(files: Files) -> None:
    for who, ino in ((1, A), (2, B), (3, Ino(3))):
        files.take(ino, lock(who))
    assert not deadlock(files, B, lock(1))
    assert not deadlock(files, Ino(3), lock(2))
    assert deadlock(files, A, lock(3))


def test_a_circle_is_found_behind_any_of_those_who_are_in_the_way(files: Files) -> None:
    files.take(A, lock(1, exclusive=False))
    files.take(A, lock(2, exclusive=False))
    files.take(B, lock(3))
    files.ask(B, lock(2))
    assert deadlock(files, A, lock(3))


def test_two_readers_that_both_want_to_write_are_a_deadlock(files: Files) -> None:
    for who in (1, 2):
        files.take(A, lock(who, exclusive=False))
    assert not deadlock(files, A, lock(1))
    assert deadlock(files, A, lock(2))


def test_flock_knows_no_deadlocks(files: Files) -> None:
    files.take(A, lock(1, flavor=FLOCK))
    files.take(B, lock(2, flavor=FLOCK))
    assert not deadlock(files, B, lock(1, flavor=FLOCK))
    assert not deadlock(files, A, lock(2, flavor=FLOCK))


def test_who_has_given_up_waits_for_nobody(files: Files) -> None:
    files.take(A, lock(1))
    files.take(B, lock(2))
    files.waits.give_up(files.ask(B, lock(1)), files.now)
    assert not deadlock(files, A, lock(2))


def test_a_circle_is_found_again_by_another_leader(files: Files) -> None:
    files.take(A, lock(1))
    files.take(B, lock(2))
    files.ask(B, lock(1))
    files.waits = LockWaits(lambda ino: files.held.get(ino, ()))
    assert not deadlock(files, A, lock(2))
    assert deadlock(files, B, lock(1))


# -- whatever happens

WHO = st.integers(1, 4)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["take", "wait", "wait", "release", "give up", "later"]),
        st.sampled_from([A, B]),
        WHO,
        st.booleans(),
        st.sampled_from([(0, 5), (5, EOF), (0, EOF)]),
    ),
    max_size=40,
)


def waits_for(files: Files, waiting: dict[int, tuple[Ino, Lock]], who: int) -> Iterator[int]:
    if who in waiting:
        ino, wanted = waiting[who]
        for held in files.held.get(ino, ()):
            if conflict((held,), wanted):
                yield held.owner.number


def is_in_a_circle(files: Files, waiting: dict[int, tuple[Ino, Lock]], who: int) -> bool:
    reached: set[int] = set()
    more = set(waits_for(files, waiting, who))
    while more - reached:
        reached |= more
        more = {two for one in reached for two in waits_for(files, waiting, one)}
    return who in reached


@given(STEPS)
def test_nobody_waits_for_nothing_and_nobody_for_himself(steps: list[tuple[str, Ino, int, bool, tuple[int, int]]]) -> None:  # fmt: skip # noqa: E501
    files = Files()
    waiters: dict[int, Waiter] = {}
    for what, ino, who, exclusive, (start, stop) in steps:
        wanted = lock(who, exclusive=exclusive, start=start, stop=stop)
        asleep = who in waiters
        if what == "later":
            files.now += YIELD_MS / 2
            for each in (A, B):
                files.waits.changed(each, files.now)
        elif what == "give up" and asleep:
            files.waits.give_up(waiters.pop(who), files.now)
        elif what == "take" and not asleep:
            files.take(ino, wanted)
        elif what == "release" and not asleep:
            files.release(ino, wanted)
        elif what == "wait" and not asleep:
            waiting = {one: (waiter.ino, waiter.lock) for one, waiter in waiters.items()}
            closes = is_in_a_circle(files, {**waiting, who: (ino, wanted)}, who)
            try:
                waiters[who] = files.ask(ino, wanted)
            except FsError as error:
                assert error.fault is Fault.DEADLOCK
                assert closes
                continue
            assert not closes or waiters[who].called
        # Those who were called take what they wanted, or wait on.
        for one, waiter in list(waiters.items()):
            if waiter.called:
                assert conflict(files.held.get(waiter.ino, ()), waiter.lock) is None or (
                    what == "take" and ino == waiter.ino
                )
                files.waits.leave(waiter, files.now)
                if files.take(waiter.ino, waiter.lock):
                    del waiters[one]
                else:
                    try:
                        assert files.ask(waiter.ino, waiter.lock) is waiter
                    except FsError:
                        del waiters[one]
        # Whoever waits has somebody in his way, or somebody who goes first.
        waiting = {one: (waiter.ino, waiter.lock) for one, waiter in waiters.items()}
        for one, waiter in waiters.items():
            if waiter.called:
                continue
            assert not is_in_a_circle(files, waiting, one)
            blocked = conflict(files.held.get(waiter.ino, ()), waiter.lock)
            before = [
                other
                for other in files.waits.of(waiter.ino)
                if other is not waiter and conflict((other.lock,), waiter.lock)
            ]
            assert blocked or before
    assert len(files.waits) == len(waiters)
