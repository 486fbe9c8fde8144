"""mknod(2) and mkfifo(3): making what is neither file nor directory.

Sources: POSIX.1-2024 mknod(), mkfifo(); Linux man pages mknod(2), mkfifo(3), inode(7).
"""

import os
import stat
from errno import EACCES, EEXIST, ENOENT, ENOTDIR, EPERM
from pathlib import Path

import pytest
from calls import fails, let_time_pass, make
from people import ALICE, BOB, as_user

KINDS = {
    "fifo": stat.S_IFIFO,
    "socket": stat.S_IFSOCK,
    "char": stat.S_IFCHR,
    "block": stat.S_IFBLK,
    "regular": stat.S_IFREG,
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_node_has_the_type_and_mode_asked_for(here: Path, kind: str) -> None:
    os.mknod(here / "node", KINDS[kind] | 0o666, os.makedev(1, 3))
    status = (here / "node").lstat()
    assert stat.S_IFMT(status.st_mode) == KINDS[kind]
    assert stat.S_IMODE(status.st_mode) == 0o644
    assert (status.st_nlink, status.st_size) == (1, 0)


@pytest.mark.parametrize("kind", [stat.S_IFCHR, stat.S_IFBLK], ids=["char", "block"])
@pytest.mark.parametrize("device", [(0, 0), (1, 3), (8, 17), (255, 255), (259, 65_537)])
def test_a_device_keeps_its_number(here: Path, kind: int, device: tuple[int, int]) -> None:
    os.mknod(here / "node", kind | 0o600, os.makedev(*device))
    number = (here / "node").stat().st_rdev
    assert (os.major(number), os.minor(number)) == device


@pytest.mark.parametrize("kind", ["fifo", "regular", "socket"])
def test_anyone_may_make_what_is_no_device(here: Path, kind: str) -> None:
    here.chmod(0o777)
    as_user(lambda: os.mknod(here / "node", KINDS[kind] | 0o600), ALICE, BOB)
    assert ((here / "node").lstat().st_uid, (here / "node").lstat().st_gid) == (ALICE, BOB)


@pytest.mark.parametrize("kind", ["char", "block"])
def test_only_the_superuser_makes_devices(here: Path, kind: str) -> None:
    here.chmod(0o777)
    with fails(EPERM):
        as_user(lambda: os.mknod(here / "node", KINDS[kind] | 0o600, os.makedev(1, 3)), ALICE)
    assert os.listdir(here) == []


@pytest.mark.parametrize("kind", KINDS)
def test_mknod_refuses_any_existing_name(here: Path, kind: str) -> None:
    make(here / "file")
    (here / "dangling").symlink_to("nowhere")
    for name in ("file", "dangling"):
        with fails(EEXIST):
            os.mknod(here / name, KINDS[kind] | 0o600)


@pytest.mark.parametrize(("path", "error"), [("missing/new", ENOENT), ("file/new", ENOTDIR)])
def test_a_refused_mkfifo_says_why(here: Path, path: str, error: int) -> None:
    make(here / "file")
    with fails(error):
        os.mkfifo(here / path)


def test_mkfifo_needs_write_permission_in_the_directory(here: Path) -> None:
    with fails(EACCES):
        as_user(lambda: os.mkfifo(here / "fifo"), ALICE)


def test_mkfifo_stamps_the_directory(here: Path) -> None:
    before = here.stat().st_mtime_ns
    let_time_pass()
    os.mkfifo(here / "fifo")
    assert here.stat().st_mtime_ns > before
    assert (here / "fifo").stat().st_ctime_ns > before


def test_nodes_are_renamed_chmodded_and_unlinked_like_files(here: Path) -> None:
    for kind, bits in KINDS.items():
        os.mknod(here / kind, bits | 0o600, os.makedev(1, 3))
        os.rename(here / kind, here / "moved")
        os.chmod(here / "moved", 0o640)
        assert (here / "moved").lstat().st_mode == bits | 0o640
        os.unlink(here / "moved")
    assert os.listdir(here) == []
