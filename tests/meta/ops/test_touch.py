"""Access times, many at once."""

from mountfs.meta.ops.touch import Touch
from mountfs.types import Ino


def test_only_the_access_time_changes_and_what_is_gone_is_passed_over(machine):
    ino = machine.make("a")
    before = machine.stat(ino)
    machine.do(Touch(((Ino(99), 1), (ino, 5_000_000_007))))
    after = machine.stat(ino)
    assert (after.atime_s, after.atime_ns) == (5, 7)
    assert (after.mtime_s, after.ctime_s, after.ctime_ns) == (
        before.mtime_s,
        before.ctime_s,
        before.ctime_ns,
    )
