"""Quotas on real mounts: what programs are told, and what is left when they race to a limit."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest
from mounted import Node
from nodes import MOUNTFS, Nodes, wait_for

from mountfs.types import KIB, MIB

BLOCK: Final = 4 * KIB
END_S: Final = 120

WRITER: Final = """
import errno, os, sys
path, size = sys.argv[1], int(sys.argv[2])
fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
written = 0
try:
    while True:
        try:
            written += os.write(fd, bytes(size))
        except OSError as error:
            assert error.errno == errno.EDQUOT, error
            if size == 4096:
                break
            size //= 2
    os.fsync(fd)
finally:
    os.close(fd)
print(written)
"""


def quota(*words: str | Path) -> Any:
    done = subprocess.run(
        [*MOUNTFS, "quota", *map(str, words), "--json"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done
    return json.loads(done.stdout)


def test_a_program_hears_of_a_quota_when_it_writes(node: Node) -> None:
    node.mount()
    tree = node.point / "tree"
    (tree / "sub").mkdir(parents=True)
    quota("set", tree, "--bytes", "1MiB", "--inodes", "3")
    file = tree / "sub" / "file"
    with open(file, "wb", buffering=0) as out:
        for _ in range(MIB // BLOCK):
            out.write(bytes(BLOCK))
        with pytest.raises(OSError) as caught:
            out.write(b"x")
        assert caught.value.errno == errno.EDQUOT
    assert file.stat().st_size == MIB
    (tree / "last").touch()
    with pytest.raises(OSError) as caught:
        (tree / "more").mkdir()
    assert caught.value.errno == errno.EDQUOT

    shown = os.statvfs(tree / "sub")
    assert (shown.f_blocks * shown.f_bsize, shown.f_bavail, shown.f_ffree) == (MIB, 0, 0)
    assert os.statvfs(node.point).f_bavail > 0
    assert os.getxattr(tree, "mountfs.dir.rbytes") == b"%d" % MIB
    assert os.getxattr(tree, "mountfs.dir.rfiles") == b"2"
    assert os.getxattr(tree, "mountfs.dir.rsubdirs") == b"1"
    assert os.getxattr(tree, "mountfs.quota.hard_inodes") == b"3"
    assert os.listxattr(tree) == []

    (told,) = quota("list", node.point)
    assert (told["path"], told["bytes"], told["inodes"]) == ("/tree", MIB, 3)
    assert quota("check", node.point)["differences"] == []
    assert quota("check", tree)["files"] == 2
    quota("set", node.point, "--user", "12345", "--inodes", "none", "--soft-bytes", "5MiB")
    assert len(quota("list", node.point)) == 2
    assert quota("delete", tree) == {}
    (tree / "more").mkdir()
    assert quota("get", tree)["limits"] is None


def test_what_was_deleted_makes_room_at_once(node: Node) -> None:
    node.mount()
    quota("set", node.point, "--bytes", "4MiB", "--inodes", "1")
    for number in range(20):
        file = node.point / f"{number}"
        file.write_bytes(bytes(4 * MIB))
        file.unlink()


@pytest.mark.parametrize("size", [BLOCK, 128 * KIB])
def test_writers_on_two_mounts_use_all_of_a_quota_and_no_more(
    shared_cluster: Nodes, size: int
) -> None:
    one, other = shared_cluster.mount("one"), shared_cluster.mount("other")
    tree = one.point / f"race{size}"
    tree.mkdir()
    quota("set", tree, "--bytes", "8MiB")
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(node.point / tree.name / f"{number}"), str(size)],
            stdout=subprocess.PIPE,
        )
        for number, node in enumerate([one, other] * 4)
    ]
    written = 0
    try:
        for writer in writers:
            assert wait_for(writer, END_S, "a writer") == 0
            assert writer.stdout is not None
            written += int(writer.stdout.read())
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()
    assert written == 8 * MIB
    assert quota("get", tree)["bytes"] == 8 * MIB
    assert int(os.getxattr(other.point / tree.name, "mountfs.dir.rbytes")) == 8 * MIB
    assert quota("check", tree)["differences"] == []
    assert os.statvfs(other.point / tree.name).f_bavail == 0
