"""Inodes that the kernel was told of, and may not have yet."""

from mountfs.fuse.coming import KEPT_S, Coming
from mountfs.types import Ino

ONE, OTHER = Ino(2), Ino(3)


def test_an_inode_is_kept_for_a_while_and_not_for_ever() -> None:
    now = 10.0
    coming = Coming(lambda: now)
    coming.add(ONE)
    now += KEPT_S * 0.9
    coming.add(OTHER)
    assert ONE in coming
    now += KEPT_S * 0.2
    coming.add(OTHER)
    assert ONE in coming
    now += KEPT_S * 1.1
    coming.add(OTHER)
    assert ONE not in coming
    assert OTHER in coming


def test_what_the_kernel_has_forgotten_is_not_coming() -> None:
    coming = Coming(lambda: 10.0)
    coming.add(ONE)
    coming.add(OTHER)
    coming.discard([ONE])
    assert ONE not in coming
    assert OTHER in coming
