"""mkdir(2), and directories as such.

Sources: POSIX.1-2024 mkdir(), Linux man pages mkdir(2), inode(7), path_resolution(7).
"""

import os
import stat
from errno import EACCES, EEXIST, ENOENT, ENOTDIR
from pathlib import Path

import pytest
from calls import fails, let_time_pass, make, mode_of, opened
from people import ALICE, BOB, as_user


@pytest.mark.parametrize(
    ("asked", "umask", "given"),
    [(0o777, 0o022, 0o755), (0o700, 0o000, 0o700), (0o1777, 0o022, 0o1755), (0o777, 0o777, 0)],
)
def test_a_new_directory_has_the_mode_asked_for_less_the_umask(
    here: Path, asked: int, umask: int, given: int
) -> None:
    os.umask(umask)
    os.mkdir(here / "new", asked)
    assert mode_of(here / "new") == given


def test_a_new_directory_is_empty_with_links_from_name_and_dot(here: Path) -> None:
    links = here.stat().st_nlink
    os.mkdir(here / "new")
    assert os.listdir(here / "new") == []
    assert stat.S_ISDIR((here / "new").stat().st_mode)
    assert (here / "new").stat().st_nlink == 2
    assert here.stat().st_nlink == links + 1


def test_dot_and_dotdot_lead_where_they_should(here: Path) -> None:
    os.makedirs(here / "up" / "down")
    assert os.path.samefile(here / "up" / "down" / ".", here / "up" / "down")
    assert os.path.samefile(f"{here}/up/down/..", here / "up")
    assert os.path.samefile(f"{here}/up/../up/./down/../../up", here / "up")


def test_a_new_directory_belongs_to_the_effective_user_and_group(here: Path) -> None:
    here.chmod(0o777)
    as_user(lambda: os.mkdir(here / "new"), ALICE, BOB)
    assert ((here / "new").stat().st_uid, (here / "new").stat().st_gid) == (ALICE, BOB)


@pytest.mark.parametrize("kind", ["file", "directory", "symlink", "dangling", "dot"])
def test_mkdir_refuses_any_existing_name(here: Path, kind: str) -> None:
    make(here / "file")
    (here / "directory").mkdir()
    (here / "symlink").symlink_to("directory")
    (here / "dangling").symlink_to("nowhere")
    with fails(EEXIST):
        os.mkdir(f"{here}/{'.' if kind == 'dot' else kind}")
    assert not (here / "nowhere").exists()


@pytest.mark.parametrize(
    ("path", "error"), [("missing/new", ENOENT), ("file/new", ENOTDIR), ("", ENOENT)]
)
def test_a_refused_mkdir_says_why(here: Path, path: str, error: int) -> None:
    make(here / "file")
    os.chdir(here)
    with fails(error):
        os.mkdir(path)


def test_mkdir_accepts_a_trailing_slash(here: Path) -> None:
    os.mkdir(f"{here}/new/")
    assert (here / "new").is_dir()


def test_mkdir_needs_write_permission_in_the_parent(here: Path) -> None:
    with fails(EACCES):
        as_user(lambda: os.mkdir(here / "new"), ALICE)
    assert os.listdir(here) == []


def test_mkdir_stamps_the_parent_and_the_child(here: Path) -> None:
    before = here.stat()
    let_time_pass()
    os.mkdir(here / "new")
    new = (here / "new").stat()
    assert here.stat().st_mtime_ns > before.st_mtime_ns
    assert here.stat().st_ctime_ns > before.st_ctime_ns
    assert min(new.st_atime_ns, new.st_mtime_ns, new.st_ctime_ns) > before.st_mtime_ns


def test_a_deep_chain_of_directories_can_be_walked_up_again(here: Path) -> None:
    depth = 100
    deepest = here.joinpath(*["d"] * depth)
    os.makedirs(deepest)
    os.chdir(deepest)
    os.chdir("/".join([".."] * depth))
    assert os.path.samefile(".", here)


def test_the_working_directory_is_known_by_its_current_name(here: Path) -> None:
    os.makedirs(here / "old" / "sub")
    os.chdir(here / "old" / "sub")
    os.rename(here / "old", here / "new")
    assert os.getcwd() == str(here / "new" / "sub")


def test_mkdirat_makes_it_below_an_open_directory(here: Path) -> None:
    os.mkdir(here / "sub")
    with opened(here / "sub", os.O_PATH | os.O_DIRECTORY) as directory:
        os.mkdir("new", dir_fd=directory)
    assert (here / "sub" / "new").is_dir()
