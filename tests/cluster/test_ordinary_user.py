"""What a user does who is not root: mounting through fusermount3, working, unmounting."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from ordinary import CHECKOUT, USER, Person, ordinary_person

from mountfs.meta.records import unpack_attributes
from mountfs.types import ROOT, SUPERUSER
from mountfs.vfs.embedded import embedded_node

pytestmark = pytest.mark.skipif(
    shutil.which("fusermount3") is None, reason="fusermount3 is not installed"
)


def _scripts_fit() -> bool:
    """Whether the scripts find their .venv as it should be, and so leave it alone."""
    stamp = CHECKOUT / ".venv" / "mountfs-setup"
    return (
        Path(sys.prefix) == CHECKOUT / ".venv"
        and stamp.exists()
        and stamp.read_text().startswith(f"{CHECKOUT} ")
    )


needs_scripts = pytest.mark.skipif(
    not _scripts_fit(), reason="this is not the .venv that the scripts set up"
)


@pytest.fixture
def person() -> Iterator[Person]:
    with ordinary_person() as person:
        yield person


def well(person: Person, script: str) -> str:
    """What the commands say, which all succeed."""
    done = person.does(script)
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def refused(person: Person, script: str, *words: str) -> None:
    """The last command is mount.dfs, which fails in one line that has all of `words`; what it was
    to mount was not made.
    """
    done = person.does(f"mkdir -p data; {script}")
    assert done.returncode == 32, (done.returncode, done.stderr)
    assert done.stderr.startswith("mount.dfs: "), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    for word in words:
        assert word in done.stderr, done.stderr
    assert os.listdir(person.home) == ["data"]


# -- what works


def test_a_user_mounts_works_and_unmounts(person):
    said = well(
        person,
        """
        mkdir data copy
        mount_dfs home data
        stat -c %U:%a data
        cp -r "$CHECKOUT/docs" data/
        echo secret > data/private
        chmod 600 data/private
        ln -s docs data/link
        mv data/docs/formats.md data/
        diff "$CHECKOUT/docs/formats.md" data/formats.md
        daemon=$(cat home/pid)
        fusermount3 -u data
        gone $daemon
        ls -A data
        mount_dfs home data
        cp -a data/. copy
        diff -r data copy
        stat -c %a data/private
        readlink data/link
        mountfs status data
        fusermount3 -u data
        """,
    )
    assert said.startswith("nobody:755\n600\ndocs\n"), said
    assert "native binding" in said


def test_what_a_user_made_is_there_for_root_and_belongs_to_the_user(person):
    well(
        person,
        """
        mkdir data
        mount_dfs home data
        echo text > data/file
        daemon=$(cat home/pid)
        fusermount3 -u data
        gone $daemon
        """,
    )

    async def owners() -> list[int]:
        async with embedded_node(person.home / "home") as node:
            root = await node.filesystem.getattr(ROOT)
            file = await node.filesystem.lookup(ROOT, b"file", SUPERUSER)
            return [unpack_attributes(root).uid, unpack_attributes(file).uid]

    assert trio.run(owners) == [USER, USER]


def test_the_default_home_of_a_user_is_below_the_home_directory(person):
    well(person, "mkdir data; mount_dfs data; echo text > data/file; fusermount3 -u data")
    assert (person.home / ".local/share/mountfs/default/format.json").exists()


def test_a_killed_daemon_is_cured_by_mounting_again(person):
    said = well(
        person,
        """
        mkdir data
        mount_dfs home data
        echo kept > data/file
        kill -9 $(cat home/pid)
        gone $(cat home/pid)
        mount_dfs home data
        cat data/file
        fusermount3 -u data
        """,
    )
    assert said == "kept\n"


def test_sigterm_unmounts_for_a_user_too(person):
    said = well(
        person,
        """
        mkdir data
        mount_dfs home data
        echo kept > data/file
        daemon=$(cat home/pid)
        kill $daemon
        gone $daemon
        ls -A data
        mount_dfs home data
        cat data/file
        fusermount3 -u data
        """,
    )
    assert said == "kept\n"


def test_sigterm_flushes_what_is_open_below_a_directory_that_is_closed(person):
    said = well(
        person,
        """
        mkdir data
        mount_dfs home data
        exec 3>data/file
        echo kept >&3
        chmod 0 data
        daemon=$(cat home/pid)
        kill $daemon
        begun=$(date +%s)
        gone $daemon  # whose children have the file open as well, and end
        expr $(date +%s) - $begun || true
        mount_dfs home data
        chmod 700 data
        cat data/file
        fusermount3 -u data
        """,
    )
    seconds, kept = said.splitlines()
    assert kept == "kept"
    assert int(seconds) < 5


def test_options_reach_the_kernel(person):
    said = well(
        person,
        """
        mkdir data
        mount_dfs home data -o ro,noexec,noatime
        grep " $HOME/data " /proc/self/mountinfo
        fusermount3 -u data
        """,
    )
    assert {"ro", "nosuid", "nodev", "noexec", "noatime"} <= set(said.split(" ")[5].split(","))


def test_allow_other_works_where_root_allows_it(person):
    person.fuse_conf = "# users\n user_allow_other # all of them\n"
    said = well(
        person,
        """
        mkdir data
        mount_dfs home data -o allow_other
        grep " $HOME/data " /proc/self/mountinfo
        fusermount3 -u data
        """,
    )
    assert "allow_other" in said


@needs_scripts
def test_up_and_down(person):
    said = well(
        person,
        """
        "$CHECKOUT/scripts/up" data
        echo kept > data/file
        "$CHECKOUT/scripts/up" data
        "$CHECKOUT/scripts/down" data
        ls -A data
        "$CHECKOUT/scripts/up" data
        cat data/file
        kill -9 $(cat .local/share/mountfs/default/pid)
        gone $(cat .local/share/mountfs/default/pid)
        "$CHECKOUT/scripts/up" data
        cat data/file
        (cd data; "$CHECKOUT/scripts/down" . 2>&1 || echo down $?)
        "$CHECKOUT/scripts/down" data
        """,
    )
    here = f"{person.home}/data"
    assert said.count(f"Mounted: {here} is a mountfs.") == 3
    assert f"Already mounted: {here}" in said
    assert f"The daemon behind {here} has died." in said
    assert said.count("kept\n") == 2
    assert f"{here} is busy" in said
    assert "down 1\n" in said
    assert said.count(f"Unmounted {here}, and its daemon has stopped.") == 2


# -- what is refused


def test_allow_other_is_refused_where_root_does_not_allow_it(person):
    person.fuse_conf = "#user_allow_other\n"
    refused(
        person, "mount_dfs home data -o allow_other", "allow_other", "user_allow_other", "fuse.conf"
    )


def test_without_fusermount(person):
    person.without = ["fusermount3"]
    refused(person, "mount_dfs home data", "fusermount3 is missing", "apt install fuse3")


@needs_scripts
def test_up_without_fusermount(person):
    person.without = ["fusermount3"]
    done = person.does('mkdir data; "$CHECKOUT/scripts/up" data')
    assert done.returncode == 1
    assert "needs fusermount3, and it is missing" in done.stderr
    assert "apt-get install -y fuse3" in done.stderr
    assert os.listdir(person.home) == ["data"]


def test_without_a_device(person):
    person.device_mode = 0
    refused(person, "mount_dfs home data", "/dev/fuse is missing", "modprobe fuse", "--device")


def test_a_device_that_users_cannot_open(person):
    person.device_mode = 0o600
    refused(person, "mount_dfs home data", "no permission to open /dev/fuse", "chmod 666")


def test_a_mount_point_of_somebody_else(person):
    refused(person, "mount_dfs home /mnt", "no write access to /mnt", "directory of yours")


def test_a_home_where_the_user_may_not_write(person):
    refused(person, "mount_dfs /usr/home data", "/usr/home", "permission denied", "another home")
    assert not os.path.exists("/usr/home")


def test_a_home_of_somebody_else(person):
    closed = person.top / "closed"
    closed.mkdir(mode=0o700)
    refused(person, f"mount_dfs {closed} data", str(closed), "permission denied", "another home")
    assert os.listdir(closed) == []


def test_status_of_a_mount_of_somebody_else(person, node):
    node.mount("allow_other")
    said = well(person, "mountfs status")
    assert str(node.point) in said
    assert "another user's" in said
    done = person.does(f"mountfs status {node.point}")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "ask as that user, or as root" in done.stdout
