"""Which home and mount is meant, from the mount table alone."""

from pathlib import Path

import pytest

from mountfs.cli.places import Place, default_home, mounts_in, place_of
from mountfs.errors import Fault, FsError
from mountfs.fuse.mount import MountInfo


def line(mountpoint: str, fstype: str = "fuse.mountfs", source: str = "/home/x") -> MountInfo:
    return MountInfo(1, "0:50", mountpoint, "rw", fstype, source)


def test_only_mounts_of_ours_are_listed() -> None:
    table = [line("/", "ext4", "/dev/sda"), line("/mnt/a"), line("/mnt/b", "fuse.sshfs", "h:")]
    assert mounts_in(table) == [Place(Path("/home/x"), "/mnt/a")]


def test_of_two_mounts_at_one_place_the_upper_counts() -> None:
    table = [line("/mnt/a"), line("/mnt/a", source="/home/y"), line("/mnt/b")]
    assert mounts_in(table) == [
        Place(Path("/home/y"), "/mnt/a"),
        Place(Path("/home/x"), "/mnt/b"),
    ]
    assert mounts_in([line("/mnt/a"), line("/mnt/a", "tmpfs", "tmpfs")]) == []


def test_a_home_is_found_with_its_mount(home: Path) -> None:
    assert place_of(str(home), []) == Place(home, None)
    assert place_of(str(home), [line("/mnt/a", source=str(home))]) == Place(home, "/mnt/a")


def test_a_damaged_home_is_one_nevertheless(home: Path) -> None:
    (home / "format.json").unlink()
    assert place_of(str(home), []).home == home


def test_any_other_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FsError) as refused:
        place_of(str(tmp_path), [])
    assert refused.value.fault is Fault.NOT_FOUND


def test_the_default_home_of_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert default_home() == Path("/data/mountfs/default")
