"""rename(2) and renameat2(2).

Sources: POSIX.1-2024 rename(), Linux man page rename(2).
"""

import os
from errno import EBUSY, EEXIST, EINVAL, EISDIR, ENOENT, ENOTDIR, ENOTEMPTY
from pathlib import Path

import pytest
from calls import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    fails,
    let_time_pass,
    make,
    opened,
    rename2,
)


def names(directory: Path) -> set[str]:
    return set(os.listdir(directory))


def test_rename_moves_the_name_and_keeps_the_file(here: Path) -> None:
    ino = make(here / "a", b"text").stat().st_ino
    os.rename(here / "a", here / "b")
    assert names(here) == {"b"}
    assert (here / "b").stat().st_ino == ino
    assert (here / "b").read_bytes() == b"text"


def test_rename_replaces_a_file_which_then_has_no_links(here: Path) -> None:
    make(here / "a", b"new")
    with opened(make(here / "b", b"old")) as replaced:
        os.rename(here / "a", here / "b")
        assert os.fstat(replaced).st_nlink == 0
        assert os.read(replaced, 10) == b"old"
    assert (here / "b").read_bytes() == b"new"
    assert names(here) == {"b"}


def test_rename_over_one_of_several_links_takes_only_that_name(here: Path) -> None:
    make(here / "a", b"new")
    make(here / "b", b"old")
    os.link(here / "b", here / "c")
    os.rename(here / "a", here / "b")
    assert (here / "c").read_bytes() == b"old"
    assert (here / "c").stat().st_nlink == 1


def test_rename_to_the_same_name_changes_nothing(here: Path) -> None:
    make(here / "a", b"text")
    os.rename(here / "a", here / "a")
    assert (here / "a").read_bytes() == b"text"


def test_rename_between_two_links_of_a_file_leaves_both(here: Path) -> None:
    make(here / "a")
    os.link(here / "a", here / "b")
    os.rename(here / "a", here / "b")
    assert names(here) == {"a", "b"}
    assert (here / "a").stat().st_nlink == 2


def test_rename_replaces_an_empty_directory(here: Path) -> None:
    (here / "a").mkdir()
    make(here / "a" / "file")
    (here / "b").mkdir()
    os.rename(here / "a", here / "b")
    assert names(here) == {"b"}
    assert names(here / "b") == {"file"}


def test_rename_over_a_non_empty_directory_is_refused(here: Path) -> None:
    (here / "a").mkdir()
    (here / "b").mkdir()
    make(here / "b" / "file")
    with fails(ENOTEMPTY, EEXIST):
        os.rename(here / "a", here / "b")
    assert names(here) == {"a", "b"}
    assert names(here / "b") == {"file"}


@pytest.mark.parametrize(
    ("source", "target", "errors"),
    [
        ("missing", "new", (ENOENT,)),
        ("file", "missing/new", (ENOENT,)),
        ("file", "directory", (EISDIR,)),
        ("directory", "file", (ENOTDIR,)),
        ("file", "file/below", (ENOTDIR,)),
        ("file/below", "new", (ENOTDIR,)),
        ("file", "new/", (ENOTDIR,)),
        ("file/", "new", (ENOTDIR,)),
        ("directory", "directory/below", (EINVAL,)),
        ("directory", "directory/sub/below", (EINVAL,)),
        ("directory/sub", "directory", (ENOTEMPTY, EEXIST)),
        ("directory/.", "new", (EBUSY, EINVAL)),
        ("directory/..", "new", (EBUSY, EINVAL)),
        ("directory", ".", (EBUSY, EINVAL)),
        ("file", "", (ENOENT,)),
    ],
)
def test_a_refused_rename_says_why_and_changes_nothing(
    here: Path, source: str, target: str, errors: tuple[int, ...]
) -> None:
    make(here / "file")
    (here / "directory" / "sub").mkdir(parents=True)
    os.chdir(here)
    with fails(*errors):
        os.rename(source, target)
    assert names(here) == {"file", "directory"}
    assert names(here / "directory") == {"sub"}


def test_a_directory_may_be_renamed_with_trailing_slashes(here: Path) -> None:
    (here / "a").mkdir()
    os.rename(f"{here}/a/", f"{here}/b/")
    assert names(here) == {"b"}


def test_a_symlink_is_renamed_and_not_its_target(here: Path) -> None:
    make(here / "target")
    (here / "a").symlink_to("target")
    os.rename(here / "a", here / "b")
    assert names(here) == {"b", "target"}
    assert os.readlink(here / "b") == "target"


def test_rename_onto_a_symlink_replaces_the_link(here: Path) -> None:
    make(here / "target", b"kept")
    (here / "link").symlink_to("target")
    make(here / "file", b"new")
    os.rename(here / "file", here / "link")
    assert not (here / "link").is_symlink()
    assert (here / "target").read_bytes() == b"kept"


def test_a_moved_directory_has_the_new_parent_as_its_dotdot(here: Path) -> None:
    for name in ("one", "two", "one/moved"):
        (here / name).mkdir()
    links = (here / "one").stat().st_nlink, (here / "two").stat().st_nlink
    os.rename(here / "one" / "moved", here / "two" / "moved")
    assert os.stat(here / "two/moved/..").st_ino == (here / "two").stat().st_ino
    after = (here / "one").stat().st_nlink, (here / "two").stat().st_nlink
    assert after == (links[0] - 1, links[1] + 1)


def test_rename_stamps_both_directories(here: Path) -> None:
    for name in ("one", "two"):
        (here / name).mkdir()
    make(here / "one" / "file")
    before = (here / "one").stat().st_mtime_ns, (here / "two").stat().st_mtime_ns
    let_time_pass()
    os.rename(here / "one" / "file", here / "two" / "file")
    assert (here / "one").stat().st_mtime_ns > before[0]
    assert (here / "two").stat().st_mtime_ns > before[1]
    assert (here / "one").stat().st_ctime_ns > before[0]
    assert (here / "two").stat().st_ctime_ns > before[1]


def test_rename_does_not_touch_the_files_modification_time(here: Path) -> None:
    before = make(here / "a", b"text").stat().st_mtime_ns
    let_time_pass()
    os.rename(here / "a", here / "b")
    assert (here / "b").stat().st_mtime_ns == before


def test_an_open_file_goes_on_under_its_new_name(here: Path) -> None:
    with opened(make(here / "a"), os.O_RDWR) as fd:
        os.rename(here / "a", here / "b")
        os.write(fd, b"text")
    assert (here / "b").read_bytes() == b"text"


def test_noreplace_moves_to_a_free_name(here: Path) -> None:
    make(here / "a", b"text")
    rename2(here / "a", here / "b", RENAME_NOREPLACE)
    assert names(here) == {"b"}


@pytest.mark.parametrize("target", ["file", "directory", "dangling", "a"])
def test_noreplace_refuses_any_existing_name(here: Path, target: str) -> None:
    make(here / "a", b"text")
    make(here / "file", b"kept")
    (here / "directory").mkdir()
    (here / "dangling").symlink_to("nowhere")
    with fails(EEXIST):
        rename2(here / "a", here / target, RENAME_NOREPLACE)
    assert names(here) == {"a", "file", "directory", "dangling"}
    assert (here / "file").read_bytes() == b"kept"


def test_exchange_swaps_two_files(here: Path) -> None:
    inos = make(here / "a", b"A").stat().st_ino, make(here / "b", b"B").stat().st_ino
    rename2(here / "a", here / "b", RENAME_EXCHANGE)
    assert ((here / "b").stat().st_ino, (here / "a").stat().st_ino) == inos
    assert (here / "a").read_bytes() == b"B"


def test_exchange_swaps_a_file_with_a_full_directory_elsewhere(here: Path) -> None:
    (here / "one").mkdir()
    (here / "two" / "full").mkdir(parents=True)
    make(here / "two" / "full" / "inner")
    make(here / "one" / "file", b"text")
    rename2(here / "one" / "file", here / "two" / "full", RENAME_EXCHANGE)
    assert names(here / "one" / "file") == {"inner"}
    assert (here / "two" / "full").read_bytes() == b"text"
    assert os.stat(here / "one/file/..").st_ino == (here / "one").stat().st_ino


def test_exchange_needs_both_names(here: Path) -> None:
    make(here / "a")
    with fails(ENOENT):
        rename2(here / "a", here / "missing", RENAME_EXCHANGE)
    assert names(here) == {"a"}


def test_exchange_with_a_directory_above_is_refused(here: Path) -> None:
    (here / "up" / "down").mkdir(parents=True)
    for source, target in ((here / "up", here / "up/down"), (here / "up/down", here / "up")):
        with fails(EINVAL):
            rename2(source, target, RENAME_EXCHANGE)
    assert names(here / "up") == {"down"}


def test_exchange_with_noreplace_makes_no_sense(here: Path) -> None:
    make(here / "a")
    make(here / "b")
    with fails(EINVAL):
        rename2(here / "a", here / "b", RENAME_EXCHANGE | RENAME_NOREPLACE)


def test_a_name_is_never_missing_while_it_is_replaced(here: Path) -> None:
    make(here / "name", b"0")
    for number in range(1, 100):
        with opened(here / "name") as fd:
            make(here / "next", b"%d" % number)
            os.rename(here / "next", here / "name")
            assert os.read(fd, 10) == b"%d" % (number - 1)
    assert names(here) == {"name"}
