"""mountfs trash and mountfs undelete, as far as no mount is needed."""

from typing import Any

import pytest

from mountfs.cli.trash import Listing


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["trash", "set", "d"], "set takes --days"),
        (["trash", "get", "d", "--days", "3"], "set takes --days"),
        (["trash", "set", "d", "--days", "0"], "mountfs trash off"),
        (["trash", "list", "d", "--counts", "no"], "--counts is for set"),
        (["trash", "set", "d", "--days", "3", "--inherit"], "--inherit is for off"),
        (["trash", "off", "d", "--older-than", "3"], "--older-than is for empty"),
        (["trash", "get", "d", "--all"], "--all is for list"),
        (["trash", "list", "d", "--dry-run"], "changes nothing"),
        (["undelete", "d", "--contents", "--to", "e"], "no --to"),
    ],
)
def test_a_wrong_call_is_told_what_is_missing(run: Any, words: list[str], hint: str) -> None:
    code, _, err = run(*words)
    assert code == 2
    assert hint in err
    assert f"mountfs {words[0]} --help" in err


def test_a_path_that_is_in_no_mount(run: Any, tmp_path: Any) -> None:
    for words in (("trash", "list", tmp_path), ("undelete", tmp_path / "f")):
        code, _, err = run(*words)
        assert code == 1
        assert "not in a mount of mountfs" in err


def test_a_time_that_is_none_is_said_before_anything_is_done(run: Any, tmp_path: Any) -> None:
    code, _, err = run("undelete", tmp_path / "f", "--at", "yesterday")
    assert (code, "yesterday" in err) == (1, True)


class _Asking:
    """A mount that says what is in the trash."""

    path = "/m/home"

    def __init__(self, *entries: tuple[int, str, int, int, int]) -> None:
        self._entries = entries

    def entries(self) -> Any:
        for order, (directory, name, ino, mode, size) in enumerate(self._entries):
            yield {
                "directory": directory, "name": name.encode().hex(), "ino": ino, "mode": mode,
                "size": size, "order": order,
            }  # fmt: skip

    def __call__(self, question: str, **args: Any) -> Any:
        assert question == "trash_path"
        return {"path": {5: b"sub".hex(), 6: None}[args["directory"]]}


def test_a_deleted_tree_is_listed_once_with_what_is_in_it() -> None:
    asking: Any = _Asking(
        (9, "f", 10, 0o100644, 30), (9, "g", 11, 0o100644, 12), (8, "t", 9, 0o40755, 0),
        (5, "d", 8, 0o40755, 0), (5, "lone", 12, 0o100644, 7), (6, "lost", 13, 0o100644, 1),
    )  # fmt: skip
    found = Listing(asking)
    tops = {found.path(one): found.with_what_is_in_it(one) for one in found.tops()}
    assert tops == {
        "/m/home/sub/d": (42, 3),
        "/m/home/sub/lone": (7, 0),
        "(directory inode 6)/lost": (1, 0),
    }
    assert found.path(found.entries[0]) == "/m/home/sub/d/t/f"
