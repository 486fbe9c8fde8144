"""Damage is found, named by file and offset, and nothing is changed unless that was asked for."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from mountfs.chunks.needle import HEADER_BYTES, needle_bytes
from mountfs.chunks.volume import SUPERBLOCK_BYTES
from mountfs.cli.examine import in_chunk, joined
from mountfs.cli.fsck import (
    EXIT_CLEAN,
    EXIT_COULD_NOT,
    EXIT_ERRORS_LEFT,
    EXIT_REPAIRED,
    EXIT_USAGE,
)
from mountfs.kv.leveldb import LevelStore
from mountfs.meta import keys
from mountfs.meta.ops.read import Lookup
from mountfs.meta.records import Counters, Slice, ino_of
from mountfs.types import CHECKSUM_BYTES, KIB, MIB, ROOT, SUPERUSER, SliceId, VolumeId
from mountfs.vfs.embedded import embedded_node
from mountfs.vfs.home import open_home

Run = Callable[..., tuple[int, str, str]]
Flip = Callable[..., None]


def everything(home: Path) -> dict[str, str]:
    """A checksum of each file that lasts."""
    return {
        str(path.relative_to(home)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(home.rglob("*"))
        if path.is_file()
    }


def checked(run: Run, home: Path, *options: str) -> tuple[int, dict[str, Any]]:
    status, out, err = run("fsck", home, "--json", *options)
    assert err == ""
    return status, json.loads(out)


def errors(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [finding for finding in report["findings"] if finding["level"] == "error"]


def content(home: Path, *names: bytes) -> bytes:
    """A file, read through the layers."""

    async def read() -> bytes:
        async with embedded_node(home, create=False) as node:
            ino = ROOT
            for name in names:
                ino = ino_of(await node.meta.read(Lookup(ino, name, SUPERUSER)))
            handle = await node.filesystem.open(ino, os.O_RDONLY)
            try:
                return bytes(await node.filesystem.read(handle, 0, 64 * MIB))
            finally:
                await node.filesystem.release(handle)

    return trio.run(read)


def test_a_sound_home_is_clean_and_unchanged(home: Path, run: Run) -> None:
    before = everything(home)
    status, out, _ = run("fsck", home)
    assert status == EXIT_CLEAN
    assert "5 inodes, 3 needles" in out
    assert "clean" in out
    assert everything(home) == before


def test_a_flipped_byte_is_told_by_the_path_of_its_file(
    home: Path, volume: Path, damage: Flip, run: Run
) -> None:
    damage(volume, SUPERBLOCK_BYTES + needle_bytes(4 * MIB) + 200_000)
    before = everything(home)
    status, report = checked(run, home)
    assert status == EXIT_ERRORS_LEFT
    (error,) = errors(report)
    assert error["file"] == "/dir/large"
    assert str(volume) in error["what"]
    (lost,) = error["ranges"]
    assert lost[1] - lost[0] == CHECKSUM_BYTES  # what one checksum covers, and no more
    assert 4 * MIB <= lost[0] <= 4 * MIB + 200_000 <= lost[1]
    assert everything(home) == before


def test_repair_alone_does_not_give_up_bytes(
    home: Path, volume: Path, damage: Flip, run: Run
) -> None:
    damage(volume, SUPERBLOCK_BYTES + 100_000)
    before = everything(home)
    status, out, _ = run("fsck", home, "--repair")
    assert status == EXIT_ERRORS_LEFT
    assert "--drop-damaged" in out
    assert everything(home) == before


def test_drop_damaged_puts_zeros_where_bytes_are_lost_and_nowhere_else(
    home: Path, volume: Path, damage: Flip, run: Run
) -> None:
    good = content(home, b"dir", b"large")
    damage(volume, SUPERBLOCK_BYTES + 100_000)
    _, report = checked(run, home)
    ((start, stop),) = errors(report)[0]["ranges"]
    status, report = checked(run, home, "--repair", "--drop-damaged")
    assert status == EXIT_REPAIRED
    assert report["clean"]
    expected = good[:start] + bytes(stop - start) + good[stop:]
    assert content(home, b"dir", b"large") == expected
    assert checked(run, home)[0] == EXIT_CLEAN


def test_drop_damaged_needs_repair(home: Path, run: Run) -> None:
    status, _, err = run("fsck", home, "--drop-damaged")
    assert status == EXIT_COULD_NOT
    assert "--repair" in err


def test_a_damaged_header_loses_the_slice_behind_it(
    home: Path, volume: Path, damage: Flip, run: Run
) -> None:
    damage(volume, SUPERBLOCK_BYTES + 10)
    status, report = checked(run, home)
    assert status == EXIT_ERRORS_LEFT
    (error,) = errors(report)
    assert error["file"] == "/dir/large"
    assert error["ranges"] == [[0, 4 * MIB]]
    notes = [finding for finding in report["findings"] if finding["level"] == "note"]
    assert [note["where"] for note in notes] == [f"{volume} at offset {SUPERBLOCK_BYTES}"]


def test_damaged_checksums_are_damage_though_the_bytes_are_good(
    home: Path, volume: Path, damage: Flip, run: Run
) -> None:
    damage(volume, SUPERBLOCK_BYTES + HEADER_BYTES)
    _, report = checked(run, home)
    assert "its checksums are damaged" in errors(report)[0]["what"]


def test_a_missing_volume_is_named_with_the_files_in_it(home: Path, volume: Path, run: Run) -> None:
    volume.unlink()
    status, report = checked(run, home)
    assert status == EXIT_ERRORS_LEFT
    found = errors(report)
    assert found[0]["where"] == str(volume)
    assert "missing" in found[0]["what"]
    assert {error["file"] for error in found[1:]} == {"/dir/large", "/dir/middle"}
    status, report = checked(run, home, "--repair", "--drop-damaged")
    assert status == EXIT_REPAIRED
    assert checked(run, home)[0] == EXIT_CLEAN
    assert content(home, b"dir", b"middle") == bytes(200 * KIB)
    assert content(home, b"small") == b"kept with its inode"


def test_a_damaged_table_is_named_with_its_offset(home: Path, damage: Flip, run: Run) -> None:
    trio.run(_open_and_close, home)  # what was logged is in a table after that
    table = max((home / "meta" / "store").glob("*.ldb"))
    damage(table, 20)
    before = everything(home)
    status, report = checked(run, home)
    assert status == EXIT_ERRORS_LEFT
    assert f"{table} at offset 0" in [error["where"] for error in errors(report)]
    assert everything(home) == before


def test_a_damaged_log_is_named_with_its_offset(home: Path, damage: Flip, run: Run) -> None:
    segment = min((home / "meta" / "log").glob("*.seg"))
    damage(segment, 4096 + 60)
    before = everything(home)
    status, report = checked(run, home)
    assert status == EXIT_ERRORS_LEFT
    assert f"{segment}: at offset" in errors(report)[0]["what"]
    assert everything(home) == before


def test_a_damaged_index_is_made_anew(home: Path, run: Run, damage: Flip) -> None:
    trio.run(_open_and_close, home)
    table = max((home / "chunks" / "index").glob("*.ldb"))
    damage(table, 20)
    status, report = checked(run, home)
    assert status == EXIT_ERRORS_LEFT
    assert {error["kind"] for error in errors(report)} == {"index"}
    status, report = checked(run, home, "--repair")
    assert (status, report["clean"]) == (EXIT_REPAIRED, True)


def test_an_index_that_says_something_else_is_made_anew(home: Path, run: Run) -> None:
    store = LevelStore(home / "chunks" / "index")
    (key, _), *_ = store.scan(b"n", b"o")
    store.write({key: None}, sync=True)
    store.close()
    status, report = checked(run, home)
    assert status == EXIT_ERRORS_LEFT
    assert "1 are not in it" in errors(report)[0]["what"]
    assert checked(run, home, "--repair")[0] == EXIT_REPAIRED
    assert checked(run, home)[0] == EXIT_CLEAN


def test_a_missing_index_is_no_damage(home: Path, run: Run) -> None:
    shutil.rmtree(home / "chunks" / "index")
    assert checked(run, home)[0] == EXIT_CLEAN


def test_needles_of_nobody_are_noted_and_deleted_on_request(home: Path, run: Run) -> None:
    _put_needle(home, SliceId(1 << 40))
    status, report = checked(run, home)
    assert status == EXIT_CLEAN  # a crash leaves them: nothing is wrong
    (note,) = report["findings"]
    assert note["kind"] == "space"
    status, report = checked(run, home, "--repair")
    assert status == EXIT_REPAIRED
    assert (report["left"], report["needles"]) == ([], 3)


def test_wrong_counters_are_counted_anew(home: Path, run: Run) -> None:
    _change_counters(home, inodes=7)
    status, report = checked(run, home)
    assert status == EXIT_ERRORS_LEFT
    assert "there are 5 inodes, but 12 are counted" in errors(report)[0]["what"]
    assert checked(run, home, "--repair")[0] == EXIT_REPAIRED
    assert checked(run, home)[0] == EXIT_CLEAN


def test_a_broken_rule_is_told_by_the_path(home: Path, run: Run) -> None:
    store = LevelStore(home / "meta" / "store")
    store.write({keys.content(_ino_of(store, b"middle")): b"too much"}, sync=True)
    store.close()
    status, report = checked(run, home, "--repair")
    assert status == EXIT_ERRORS_LEFT  # nobody knows which of the two is right
    assert "/dir/middle" in {error["file"] for error in errors(report)}


def test_needles_are_kept_where_the_metadata_has_lost_something(home: Path, run: Run) -> None:
    store = LevelStore(home / "meta" / "store")
    store.write({keys.inode(_ino_of(store, b"middle")): None}, sync=True)
    for key, _ in list(store.scan(*keys.slices_from(_ino_of(store, b"middle"), 0))):
        store.write({key: None}, sync=True)
    store.close()
    before = everything(home)
    status, report = checked(run, home, "--repair")
    assert status == EXIT_ERRORS_LEFT
    assert any("no file refers to" in finding["what"] for finding in report["findings"])
    assert everything(home) == before


def test_a_home_in_use_is_refused_with_who_has_it(home: Path, run: Run) -> None:
    held = open_home(home, create=False)
    held.hold("/mnt/there")
    try:
        status, _, err = run("fsck", home)
    finally:
        held.close()
    assert status == EXIT_COULD_NOT
    assert f"mounted at /mnt/there by process {os.getpid()}" in err
    assert "umount /mnt/there" in err


def test_nobody_opens_the_home_meanwhile(
    home: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def look(*_: object) -> None:
        with pytest.raises(Exception, match="in use"):
            open_home(home, create=False)
        tried.append(True)
        raise KeyboardInterrupt

    monkeypatch.setattr("mountfs.cli.fsck.examine", look)
    assert run("fsck", home)[0] == 130
    assert tried


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"format": 99, "id": "' + "0" * 32 + '"}', "format 99"),
        ("{", "damaged"),
        (None, "not a mountfs home"),
    ],
)
def test_what_is_not_a_home_of_ours_is_refused(
    home: Path, run: Run, text: str | None, says: str
) -> None:
    (home / "format.json").unlink()
    if text is not None:
        (home / "format.json").write_text(text)
    before = everything(home)
    status, _, err = run("fsck", home, "--repair")
    assert status == EXIT_COULD_NOT
    assert says in err
    assert everything(home) == before


def test_a_wrong_call_has_the_status_of_fsck(run: Run) -> None:
    assert run("fsck", "--no-such-option")[0] == EXIT_USAGE


def test_lost_bytes_of_a_slice_are_seen_where_it_is_seen() -> None:
    piece = Slice(1000, 1500, SliceId(1), 200, VolumeId(1), 4096, 0)
    assert list(in_chunk(piece, [(0, 100), (0, 300), (650, 4096)])) == [(1000, 1100), (1450, 1500)]


def test_ranges_are_joined() -> None:
    assert joined([(8, 9), (0, 4), (2, 6), (6, 8), (20, 21)]) == [(0, 9), (20, 21)]


async def _open_and_close(home: Path) -> None:
    async with embedded_node(home, create=False) as node:
        await node.filesystem.mkdir(ROOT, b"another", 0o755, 0, SUPERUSER)


def _put_needle(home: Path, slice_id: SliceId) -> None:
    async def put() -> None:
        async with embedded_node(home, create=False) as node:
            await node.chunks.write(slice_id, [b"nobody's" * 1000])

    trio.run(put)


def _change_counters(home: Path, *, inodes: int) -> None:
    store = LevelStore(home / "meta" / "store")
    row = store.get(keys.COUNTERS)
    assert row is not None
    counters = msgspec.msgpack.decode(row, type=Counters)
    counters.inodes += inodes
    store.write({keys.COUNTERS: msgspec.msgpack.encode(counters)}, sync=True)
    store.close()


def _ino_of(store: LevelStore, name: bytes) -> Any:
    for key, value in store.scan(b"", b"\xff" * 9):
        if key[8:] == bytes([keys.DENTRY]) + name:
            return int.from_bytes(value[:8], "little")
    raise AssertionError(name)
