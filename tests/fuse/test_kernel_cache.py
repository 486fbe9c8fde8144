"""What the kernel is to forget, it does not know later either."""

import errno
from typing import Any
from unittest import mock

import pytest

from mountfs.fuse import kernel_cache
from mountfs.fuse.kernel_cache import KernelCache
from mountfs.meta.leases import Item
from mountfs.types import Ino

INO = Ino(2)


@pytest.mark.parametrize("is_coming", [False, True])
async def test_an_inode_that_the_kernel_does_not_know_yet_is_forgotten_when_it_does(
    is_coming: bool, autojump_clock: Any
) -> None:
    cache = KernelCache(0, lambda inos: set(), lambda inos: set())
    if is_coming:
        cache.coming.add(INO)
    errors = [errno.ENOENT] * 3

    def write(fd: int, notification: bytes) -> int:
        if errors:
            raise OSError(errors.pop(), "")
        return len(notification)

    with mock.patch.object(kernel_cache.os, "write", write):
        await cache.recall([Item(INO, (), is_whole=False, is_own=True)])
    assert len(errors) == (0 if is_coming else 2)


async def test_an_inode_that_the_kernel_never_knows_is_given_up(autojump_clock: Any) -> None:
    cache = KernelCache(0, lambda inos: set(), lambda inos: set())
    cache.coming.add(INO)
    with mock.patch.object(kernel_cache.os, "write", side_effect=OSError(errno.ENOENT, "")):
        await cache.recall([Item(INO, (), is_whole=False, is_own=True)])
