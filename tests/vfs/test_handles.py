"""What is known of an open file, as answers come and leases come and go."""

from mountfs.types import Ino
from mountfs.vfs.handles import File


def test_what_came_with_a_lease_is_so_as_long_as_that_lease_lasts() -> None:
    file = File(Ino(2), 0)
    assert file.is_news(file.ask(), lease=3)
    assert file.is_current(3)
    assert not file.is_current(0)
    assert not file.is_current(4)  # in between, others may have changed it


def test_what_came_without_a_lease_is_not_so_when_there_is_one_later() -> None:
    file = File(Ino(2), 0)
    assert file.is_news(file.ask(), lease=0)
    assert not file.is_current(0)
    assert not file.is_current(1)


def test_what_others_have_touched_is_asked_for_again() -> None:
    file = File(Ino(2), 0)
    assert file.is_news(file.ask(), lease=1)
    file.touched += 1
    assert not file.is_current(1)
    assert file.is_news(file.ask(), lease=1)
    assert file.is_current(1)


def test_answers_in_any_order_leave_what_was_asked_last() -> None:
    file = File(Ino(2), 0)
    first, second = file.ask(), file.ask()
    assert file.is_news(second, lease=0)
    assert not file.is_news(first, lease=0)


def test_an_answer_with_a_lease_is_newer_than_all_that_were_asked_for() -> None:
    file = File(Ino(2), 0)
    first, second = file.ask(), file.ask()
    assert file.is_news(first, lease=1)
    assert not file.is_news(second, lease=0)
    assert file.is_current(1)


def test_an_answer_that_a_command_of_ours_has_overtaken_is_asked_for_again() -> None:
    file = File(Ino(2), 0)
    ask = file.ask()
    file.acted += 1
    assert not file.is_news(ask, lease=0)
    assert file.is_stale
    assert file.is_news(file.ask(), lease=0)
    assert not file.is_stale
