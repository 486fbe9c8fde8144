"""The trash as doors see it: questions from people, and an embedded node that sees to its end."""

import json
import os
from typing import Any

import pytest

from mountfs.meta.ops.read import Usage
from mountfs.meta.ops.trash import SetTrash
from mountfs.meta.records import ino_of
from mountfs.meta.trash import DAY_NS, Setting
from mountfs.types import ROOT, SUPERUSER, Cred, Ino
from mountfs.vfs.asking import groups_of
from mountfs.vfs.embedded import EmbeddedNode, embedded_node
from mountfs.vfs.filesystem import Filesystem

ALICE, BOB = Cred(1_001, 1_001), Cred(1_002, 1_002)


class Person:
    """Who asks by ioctl(2) on the root directory."""

    def __init__(self, fs: Filesystem, cred: Cred) -> None:
        self.fs = fs
        self.cred = cred

    async def ask(self, question: str, ino: Ino = ROOT, **args: Any) -> Any:
        asked = json.dumps({"ask": question, "args": args}).encode()
        answer = json.loads(await self.fs.trash.answer(ino, self.cred, asked))
        return answer["answer"] if "answer" in answer else answer["fault"]


async def delete(fs: Filesystem, name: bytes, cred: Cred = ALICE, data: bytes = b"hello") -> Ino:
    cred = Cred(cred.uid, cred.gid, (), True)  # as the kernel has checked it
    attributes, handle = await fs.create(ROOT, name, os.O_RDWR, 0o644, 0, cred)
    await fs.write(handle, 0, memoryview(data))
    await fs.unlink(ROOT, name, cred)
    await fs.flush(handle, 0)
    await fs.release(handle)
    return ino_of(attributes)


@pytest.fixture
async def node(tmp_path: Any) -> Any:
    async with embedded_node(tmp_path / "home") as node:
        await node.meta.propose(SetTrash(ROOT, Setting(7), SUPERUSER))
        yield node


async def test_bytes_that_were_not_written_yet_are_in_the_trash_too(node: EmbeddedNode) -> None:
    fs = node.filesystem
    ino = await delete(fs, b"file", data=b"never flushed")
    came: list[Any] = []

    async def names(some: Any) -> None:
        came.extend(some)

    fs.trash.on_names = names
    alice = Person(fs, ALICE)
    found = await alice.ask("trash_find", names=[b"file".hex()])
    assert (found["ino"], found["size"]) == (ino, 13)
    place = {name: found[name] for name in ("directory", "name", "order")}
    assert await alice.ask("undelete", to_name=b"again".hex(), **place) == "DENIED"
    root = Person(fs, SUPERUSER)
    assert (await root.ask("undelete", to_name=b"again".hex(), **place))["restored"] == 1
    assert came == [(ROOT, b"again")]
    handle = await fs.open(ino, os.O_RDONLY)
    assert bytes(await fs.read(handle, 0, 100)) == b"never flushed"
    await fs.release(handle)


async def test_everybody_sees_and_gets_what_is_his(node: EmbeddedNode) -> None:
    fs = node.filesystem
    await delete(fs, b"hers", ALICE)
    await delete(fs, b"his", BOB)
    seen = {
        cred.uid: [one["name"] for one in (await Person(fs, cred).ask("trash_list"))["found"]]
        for cred in (ALICE, BOB, SUPERUSER)
    }
    hers, his = b"hers".hex(), b"his".hex()
    assert seen == {1_001: [hers], 1_002: [his], 0: [hers, his]}
    bob = Person(fs, BOB)
    assert await bob.ask("trash_find", names=[hers]) == "NOT_FOUND"
    assert (await bob.ask("trash_path", directory=1, name=hers))["path"] is None
    entries = [
        [one["until_ns"], one["order"]]
        for one in (await Person(fs, SUPERUSER).ask("trash_list"))["found"]
    ]
    assert await bob.ask("trash_empty", entries=entries) == {"removed": 1}
    assert await bob.ask("trash_set", days=1) == "NOT_PERMITTED"


@pytest.mark.parametrize(
    ("question", "args"),
    [
        ("nonsense", {}),
        ("trash_list", {"limit": "x"}),
        ("trash_list", {"after": [-1, 2]}),
        ("trash_list", {"after": [1 << 70, 2]}),
        ("trash_find", {"names": ["xyz"]}),
        ("trash_find", {"names": 5}),
        ("trash_within", {"way": [[-5, ""]], "run": 1}),
        ("trash_within", {"way": 3, "run": 1}),
        ("undelete", {"directory": -1, "name": "61", "order": 1, "to_name": "61"}),
        ("undelete", {"directory": 1, "name": "", "order": 1, "to_name": "61"}),
        ("undelete_in", {"way": [[1 << 70, ""]], "run": 1}),
        ("trash_empty", {"entries": [[1]]}),
        ("trash_path", {"directory": -1, "name": "61"}),
    ],
)
async def test_nonsense_is_refused(node: EmbeddedNode, question: str, args: Any) -> None:
    assert await Person(node.filesystem, ALICE).ask(question, **args) == "INVALID"


async def test_what_is_no_json_is_refused(node: EmbeddedNode) -> None:
    for question in (b"", b"{", b"[]", b'{"ask": "trash_list", "args": 3}'):
        answer = json.loads(await node.filesystem.trash.answer(ROOT, ALICE, question))
        assert answer["fault"] == "INVALID"


async def test_an_embedded_node_removes_what_has_been_there_for_long_enough(
    node: EmbeddedNode,
) -> None:
    fs = node.filesystem
    for number in range(3):
        await delete(fs, b"%d" % number, data=b"x" * 100_000)
    before = await node.meta.read(Usage())
    await node.remove_trash()
    assert await node.meta.read(Usage()) == before
    now = node.meta.proven()
    node.meta.proven = lambda: now + 7 * DAY_NS  # type: ignore[method-assign]
    await node.remove_trash()
    assert await node.meta.read(Usage()) == (1, 0)


async def test_a_home_that_was_closed_has_it_still(tmp_path: Any) -> None:
    async with embedded_node(tmp_path / "home") as node:
        await node.meta.propose(SetTrash(ROOT, Setting(7), SUPERUSER))
        await delete(node.filesystem, b"file", data=b"x" * 100_000)
    async with embedded_node(tmp_path / "home") as node:
        root = Person(node.filesystem, SUPERUSER)
        found = await root.ask("trash_find", names=[b"file".hex()])
        place = {name: found[name] for name in ("directory", "name", "order")}
        assert (await root.ask("undelete", to_name=b"file".hex(), **place))["bytes"] > 100_000
        handle = await node.filesystem.open(Ino(found["ino"]), os.O_RDONLY)
        assert bytes(await node.filesystem.read(handle, 0, 1 << 20)) == b"x" * 100_000
        await node.filesystem.release(handle)


def test_the_groups_of_a_process() -> None:
    assert groups_of(os.getpid()) == tuple(os.getgroups())
    assert groups_of(0) == ()
