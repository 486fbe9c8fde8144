"""When a read is worth a new access time."""

import pytest

from mountfs.vfs.access_time import AccessTime, due

DAY = 86_400 * 10**9


@pytest.mark.parametrize(
    ("atime", "mtime", "ctime", "now", "wanted"),
    [
        (10, 5, 5, 20, False),  # read since the last change
        (5, 10, 5, 20, True),
        (5, 5, 10, 20, True),
        (10, 10, 5, 20, True),  # at the same moment: who knows which was first
        (10, 5, 5, 10 + DAY - 1, False),
        (10, 5, 5, 10 + DAY, True),
        (30, 5, 5, 20, False),  # the clock went back
    ],
)
def test_relatime_is_due_after_a_change_and_once_a_day(atime, mtime, ctime, now, wanted):
    assert due(AccessTime.RELATIVE, atime, mtime, ctime, now) == wanted


def test_strictatime_is_always_due_and_noatime_never():
    assert due(AccessTime.STRICT, 10, 5, 5, 20)
    assert not due(AccessTime.NEVER, 5, 10, 10, 5 + 2 * DAY)


def test_the_rules_are_called_as_mount_calls_them():
    assert {rule.value for rule in AccessTime} == {"relatime", "noatime", "strictatime"}
