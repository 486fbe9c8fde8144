"""mountfs quota: what it understands, and what it finds when it counts anew.  (On real mounts it is
tested with the clusters.)
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from mountfs.cli import quota_check
from mountfs.cli.quota import _seconds
from mountfs.errors import Fault, FsError
from mountfs.meta import keys
from mountfs.meta.ops.link import Link
from mountfs.meta.ops.trash import SetTrash
from mountfs.meta.sums import Sums, Use
from mountfs.meta.trash import Setting
from mountfs.types import ROOT, SUPERUSER
from mountfs.vfs.embedded import EmbeddedNode, embedded_node
from mountfs.vfs.quota_answers import quota_answers

from .conftest import put

Run = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    "words",
    [
        ["set", "/mnt"],
        ["get", "/mnt", "--bytes", "1GiB"],
        ["get"],
        ["list", "--user", "1"],
        ["check"],
        ["set", "/mnt", "--bytes", "many"],
        ["set", "/mnt", "--grace", "soon"],
        ["set", "/mnt", "--user", "1", "--group", "1", "--inodes", "5"],
    ],
)
def test_a_wrong_call_is_told_so(run: Run, words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        _exit(run("quota", *words))
    assert ended.value.code == 2


def _exit(done: tuple[int, str, str]) -> None:
    raise SystemExit(done[0])


def test_what_is_in_no_mount_has_no_quota(run: Run, tmp_path: Path) -> None:
    status, _, err = run("quota", "get", tmp_path)
    assert status == 1
    assert "is not in a mount of mountfs" in err


@pytest.mark.parametrize(
    ("text", "seconds"), [("0", 0), ("90", 90), ("90s", 90), ("12h", 43_200), ("7d", 604_800)]
)
def test_times_have_units(text: str, seconds: int) -> None:
    assert _seconds(text) == seconds


def asking(monkeypatch: pytest.MonkeyPatch, node: EmbeddedNode) -> None:
    """Let the command ask this node, without a socket."""
    answerers = {**quota_answers(node.meta), **node.filesystem.trash.answers()}

    def ask(_: Path, question: str, **args: Any) -> Any:
        if question == "info":
            return {"uid": os.geteuid(), "gid": os.getegid()}
        return trio.from_thread.run(answerers[question], args)

    monkeypatch.setattr(quota_check.control, "ask", ask)


async def count(ino: int) -> tuple[quota_check.Found, list[quota_check.Difference]]:
    return await trio.to_thread.run_sync(quota_check.count, Path("control"), ino)


async def test_a_count_finds_what_there_is_and_what_is_counted_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with embedded_node(tmp_path / "home") as node:
        fs = node.filesystem
        file = await put(fs, b"dir/one", bytes(20_000))
        await put(fs, b"dir/two", b"x")
        await node.meta.propose(Link(file, ROOT, b"again", SUPERUSER))
        asking(monkeypatch, node)
        found, differences = await count(ROOT)
        assert differences == []
        assert (found.bytes, found.files, found.directories) == (5 * 4096 + 4096, 2, 1)

        accounts = node.meta._machine.tree.accounts
        directory = node.meta._machine.tree.dentry(ROOT, b"dir")[0]  # type: ignore[index]
        accounts._sums.put(directory, Sums(ROOT, 4096, 7, 0))
        accounts._users.put(os.geteuid(), Use(1, 4))
        _, differences = await count(directory)
        assert [(one.what, one.found, one.counted) for one in differences] == [("files", 1, 7)]
        _, differences = await count(ROOT)
        assert [(one.what, one.found, one.counted) for one in differences] == [("bytes", 24_576, 1)]
        accounts._sums.put(directory, Sums(ROOT, 4096, 1, 0))
        accounts._users.put(os.geteuid(), Use(24_576, 4))
        assert keys.sums(directory) in accounts.loose_rows()


@pytest.mark.parametrize("counts", [True, False])
async def test_a_count_knows_what_is_in_the_trash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counts: bool
) -> None:
    async with embedded_node(tmp_path / "home") as node:
        fs = node.filesystem
        await put(fs, b"dir/one", bytes(20_000))
        directory = node.meta._machine.tree.dentry(ROOT, b"dir")[0]  # type: ignore[index]
        await node.meta.propose(SetTrash(ROOT, Setting(7, counts), SUPERUSER))
        await fs.unlink(directory, b"one", SUPERUSER)
        await fs.rmdir(ROOT, b"dir", SUPERUSER)
        asking(monkeypatch, node)
        found, differences = await count(ROOT)
        assert differences == []
        assert (found.files, found.directories) == ((1, 1) if counts else (0, 0))


async def test_what_changes_meanwhile_is_not_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with embedded_node(tmp_path / "home") as node:
        await put(node.filesystem, b"dir/one", b"x")
        asking(monkeypatch, node)
        ask, made = quota_check.control.ask, 0

        def busy(place: Path, question: str, **args: Any) -> Any:
            nonlocal made
            if question == "quota_count":
                made += 1
                trio.from_thread.run(put, node.filesystem, b"new%d" % made, b"x")
            return ask(place, question, **args)

        monkeypatch.setattr(quota_check.control, "ask", busy)
        with pytest.raises(FsError) as caught:
            await count(ROOT)
        assert caught.value.fault is Fault.BUSY
