"""The trash on real mounts: what rm -rf took comes back, for who owns it and for nobody else."""

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from mounted import Node
from nodes import MOUNTFS, Nodes

ALICE: Final = 1_001
BOB: Final = 1_002
END_S: Final = 60
AS: Final = """
import os, sys
from mountfs.cli.main import main, parser
parser()
os.chdir("/")
os.setgroups([])
os.setgid(int(sys.argv[1]))
os.setuid(int(sys.argv[1]))
sys.exit(main(sys.argv[2:]))
"""
"""All commands, and only then the user: the checkout often lies in a closed directory of root."""


def ask(*words: str | Path, uid: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", AS, str(uid)] if uid else [*MOUNTFS]
    return subprocess.run(
        [*command, *map(str, words), "--json"], capture_output=True, text=True, timeout=END_S
    )


def told(*words: str | Path, uid: int = 0) -> Any:
    done = ask(*words, uid=uid)
    assert done.returncode == 0, done
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def said(*words: str | Path, uid: int = 0) -> Any:
    done = ask(*words, uid=uid)
    assert done.returncode == 0, done
    return json.loads(done.stdout)


def below(top: Path) -> dict[str, Any]:
    """All that can be seen of a tree."""
    found: dict[str, Any] = {}
    for path in (top, *sorted(top.rglob("*"))):
        seen = path.lstat()
        content = None
        if path.is_symlink():
            content = os.readlink(path)
        elif path.is_file():
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        facts = (seen.st_ino, seen.st_mode, seen.st_uid, seen.st_nlink, seen.st_size, content)
        found[str(path.relative_to(top))] = facts
    return found


def remove(path: Path, uid: int = 0) -> None:
    subprocess.run(["rm", "-rf", path], check=True, timeout=END_S, cwd="/", user=uid, group=uid)


@contextmanager
def standing_in(directory: Path) -> Iterator[None]:
    """As somebody does whose working directory it is: the kernel cannot forget it meanwhile."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield
    finally:
        os.close(fd)


def grow(top: Path, uid: int) -> None:
    (top / "a" / "b").mkdir(parents=True)
    for number in range(3):
        (top / "a" / f"small{number}").write_text(f"{number}")
        (top / "a" / "b" / f"large{number}").write_bytes(os.urandom(300_000))
    (top / "a" / "link").symlink_to("small1")
    for path in (top, *top.rglob("*")):
        os.chown(path, uid, uid, follow_symlinks=False)


@pytest.mark.parametrize("binding", ["native", "pyfuse3"])
def test_a_tree_comes_back_also_to_who_stands_in_it(node: Node, binding: str) -> None:
    if binding == "pyfuse3" and importlib.util.find_spec("pyfuse3") is None:
        pytest.skip("needs pyfuse3")
    node.mount(f"binding={binding}")
    tree = node.point / "tree"
    said("trash", "set", node.point, "--days", "7")
    grow(tree, ALICE)
    before = below(tree)
    with standing_in(tree / "a" / "b"):
        remove(tree)
        assert said("undelete", tree)["restored"] == len(before)
        assert below(tree) == before
        (tree / "a" / "b" / "new").touch()
    assert os.listdir(node.point) == ["tree"]
    assert "new" in os.listdir(tree / "a" / "b")


def test_what_was_deleted_is_for_who_owns_it_and_nobody_else(node: Node) -> None:
    node.mount()
    node.top.chmod(0o755)
    home = node.point / "home"
    home.mkdir()
    home.chmod(0o1777)
    assert said("trash", "set", home, "--days", "7")["days"] == 7
    tree = home / "tree"
    grow(tree, ALICE)
    before = below(tree)
    remove(tree, ALICE)
    assert list(home.iterdir()) == []
    assert not tree.exists()

    listed = told("trash", "list", home)
    assert {one["path"] for one in listed} == {os.path.normpath(tree / name) for name in before}
    (top,) = [one for one in listed if not one["directory_deleted"]]
    assert (top["path"], top["deleted_by"], top["owner"]) == (str(tree), ALICE, ALICE)
    assert told("trash", "list", home, uid=BOB) == []
    refused = ask("undelete", tree, uid=BOB)
    assert refused.returncode == 1
    assert not tree.exists()
    assert ask("trash", "set", home, "--days", "1", uid=ALICE).returncode == 1

    assert said("undelete", tree, "--dry-run")["files"] == 7
    assert said("undelete", tree, uid=ALICE)["restored"] == len(before)
    assert below(tree) == before
    assert os.listdir(home) == ["tree"]
    taken = ask("undelete", tree)
    assert taken.returncode == 1
    assert "--to" in taken.stderr or "nothing is in the trash" in taken.stderr

    (tree / "a" / "small0").write_text("new")
    (tree / "a" / "small0").unlink()
    (tree / "a" / "small0").write_text("newer")
    taken = ask("undelete", tree / "a" / "small0")
    assert "--to" in taken.stderr
    assert said("undelete", tree / "a" / "small0", "--to", home / "older")["restored"] == 1
    assert (home / "older").read_text() == "new"

    remove(tree / "a")
    said("undelete", tree, "--contents")
    assert (tree / "a" / "small0").read_text() == "newer"
    remove(tree)
    assert said("quota", "check", node.point)["differences"] == []
    assert said("trash", "empty", home, "--dry-run")["entries"] == len(before)
    assert said("trash", "empty", home)["removed"] == len(before)
    assert said("trash", "get", home)["entries"] == 0
    node.unmount()
    done = subprocess.run([*MOUNTFS, "fsck", node.home], capture_output=True, timeout=END_S)
    assert done.returncode == 0, done


def test_what_one_mount_deletes_another_gives_back(shared_cluster: Nodes) -> None:
    one, other = shared_cluster.mount("one"), shared_cluster.mount("other")
    home, there = one.point / "trash", other.point / "trash"
    home.mkdir()
    said("trash", "set", home, "--days", "7", "--counts", "no")
    grow(home / "tree", ALICE)
    before = below(there / "tree")
    with standing_in(home / "tree" / "a"):
        remove(home / "tree")
        assert not (there / "tree").exists()
        assert not (home / "tree").exists()
        assert int(os.getxattr(home, "mountfs.dir.rbytes")) == 0
        assert said("undelete", there / "tree")["restored"] == len(before)
        assert below(home / "tree") == before
        (home / "tree" / "a" / "new").touch()
        (there / "tree" / "a" / "new").unlink()
    assert below(there / "tree") == before
    assert int(os.getxattr(home, "mountfs.dir.rbytes")) > 900_000
    assert said("quota", "check", one.point)["differences"] == []
    remove(there / "tree")
    assert said("trash", "empty", home)["removed"] == len(before) + 1
    assert said("trash", "get", there)["entries"] == 0
