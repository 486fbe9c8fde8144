"""What mount.dfs does with right and wrong calls, and what the end of a mount leaves behind."""

import contextlib
import importlib.util
import json
import mmap
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mounted import MOUNT_DFS, Node, fresh_node, is_mounted
from offline import troubles

from mountfs.vfs.home import FORMAT

IDLE_END_S = 3.0
"""How long SIGTERM may take when files are open and nobody does anything with them."""


def refused(node: Node, *words: str, options: str = "") -> str:
    """mount.dfs fails as mount(8) documents, and says all of `words` in one line."""
    done = node.try_mount(options)
    assert done.returncode == 32, (done.returncode, done.stderr)
    assert done.stderr.startswith("mount.dfs: "), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    for word in words:
        assert word in done.stderr, done.stderr
    assert not node.is_mounted
    return done.stderr


def files_of(home: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(home)): path.read_bytes()
        for path in sorted(home.rglob("*"))
        if path.is_file() and path.name not in ("log", "LOG", "LOG.old", "lock")
    }


# -- what works


def test_what_was_written_is_there_after_umount_and_mount(node):
    node.mount()
    (node.point / "directory").mkdir()
    (node.point / "directory" / "small").write_bytes(b"small")
    (node.point / "large").write_bytes(b"large" * 1_000_000)
    node.unmount()
    assert os.listdir(node.point) == []
    node.mount()
    assert (node.point / "directory" / "small").read_bytes() == b"small"
    assert (node.point / "large").read_bytes() == b"large" * 1_000_000


@pytest.mark.parametrize("binding", ["native", "pyfuse3"])
def test_strictatime_sees_each_reading_of_what_the_kernel_could_keep(node, binding):
    if binding == "pyfuse3":
        pytest.importorskip("pyfuse3")
    node.mount(f"strictatime,binding={binding}")
    file, directory = node.point / "file", node.point / "directory"
    file.write_bytes(b"read again and again")
    directory.mkdir()
    for _ in range(3):
        before = file.stat().st_atime_ns, directory.stat().st_atime_ns
        file.read_bytes()
        os.listdir(directory)
        assert file.stat().st_atime_ns > before[0]
        assert directory.stat().st_atime_ns > before[1] or binding == "pyfuse3"


def test_a_new_filesystem_survives_the_death_of_its_daemon(node):
    node.mount()
    (node.point / "file").write_bytes(b"bytes")
    node.kill()
    node.detach()
    node.mount()
    assert (node.point / "file").read_bytes() == b"bytes"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_flushes_everything_and_unmounts(node, number):
    node.mount()
    with open(node.point / "file", "wb") as file:
        file.write(b"x" * 3_000_000)
        file.flush()
        os.fsync(file.fileno())
    (node.point / "closed").write_bytes(b"y" * 300_000)
    node.signal(number)
    node.wait()
    assert not node.is_mounted
    node.mount()
    assert (node.point / "file").read_bytes() == b"x" * 3_000_000
    assert (node.point / "closed").read_bytes() == b"y" * 300_000


needs_pyfuse3 = pytest.mark.skipif(
    importlib.util.find_spec("pyfuse3") is None, reason="pyfuse3 is not installed"
)
both_bindings = pytest.mark.parametrize(
    "binding", ["native", pytest.param("pyfuse3", marks=needs_pyfuse3)]
)


@both_bindings
def test_a_signal_while_a_file_is_open_flushes_what_was_written_to_it(node, binding):
    node.mount(f"binding={binding}")
    fd = os.open(node.point / "file", os.O_CREAT | os.O_WRONLY)
    os.write(fd, b"x" * 1_000_000)
    begun = time.monotonic()
    node.signal(signal.SIGTERM)
    node.wait()
    took = time.monotonic() - begun
    assert not node.is_mounted
    with pytest.raises(OSError, match="not connected"):
        os.write(fd, b"more")
    with contextlib.suppress(OSError):  # its daemon is gone
        os.close(fd)
    node.mount()
    assert (node.point / "file").read_bytes() == b"x" * 1_000_000
    assert took < IDLE_END_S


@both_bindings
def test_a_signal_flushes_what_was_written_through_a_mapping(node, binding):
    """The kernel alone has it: nobody has told us."""
    node.mount(f"binding={binding}")
    size = 3_000_000
    fd = os.open(node.point / "file", os.O_CREAT | os.O_RDWR)
    os.ftruncate(fd, size)
    with mmap.mmap(fd, size) as mapping:
        mapping[:] = b"m" * size
        node.signal(signal.SIGTERM)
        node.wait()
    with contextlib.suppress(OSError):
        os.close(fd)
    node.mount()
    assert (node.point / "file").read_bytes() == b"m" * size


@both_bindings
def test_a_program_at_work_when_the_signal_comes_can_end_its_work(node, binding):
    node.mount(f"binding={binding}")
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, node.point / "file"], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    writer.stdout.readline()  # it is in the middle of it
    node.signal(signal.SIGTERM)
    rest, _ = writer.communicate(timeout=30)
    assert rest == "done\n"
    node.wait()
    node.mount()
    assert (node.point / "file").read_bytes() == b"".join(b"%08d" % n * 1_000 for n in range(40))


WRITER = """
import os, sys, time
fd = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)
for number in range(40):
    os.write(fd, b"%08d" % number * 1_000)
    if number == 3:
        print("begun", flush=True)
    time.sleep(0.05)
os.fsync(fd)
os.close(fd)
print("done")
"""


def test_more_signals_do_not_interrupt_the_flush(node):
    node.mount()
    contents = {f"file-{number}": os.urandom(60_000) for number in range(300)}
    fds = []
    for name, content in contents.items():
        fds.append(os.open(node.point / name, os.O_CREAT | os.O_WRONLY))
        os.write(fds[-1], content)
    with contextlib.suppress(ProcessLookupError):
        for _ in range(5_000):
            node.signal(signal.SIGTERM)
            time.sleep(0.001)
    node.wait()
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
    node.mount()
    assert {name: (node.point / name).read_bytes() for name in contents} == contents
    node.unmount()


def test_signals_while_it_is_unmounted_do_not_interrupt_the_flush(node):
    node.mount("dirty=256MiB")
    contents = {f"file-{number}": os.urandom(60_000) for number in range(300)}
    for name, content in contents.items():
        (node.point / name).write_bytes(content)
    subprocess.run(["umount", node.point], check=True)
    with contextlib.suppress(ProcessLookupError):
        for _ in range(5_000):
            node.signal(signal.SIGTERM)
            node.signal(signal.SIGINT)
            time.sleep(0.001)
    node.wait()
    node.mount()
    assert {name: (node.point / name).read_bytes() for name in contents} == contents
    assert "0 entries replayed" in node.said().splitlines()[-2]  # it got to its checkpoint


def test_bytes_of_a_file_that_stays_open_are_lost_for_a_few_seconds_only(node):
    node.mount()
    fd = os.open(node.point / "file", os.O_CREAT | os.O_WRONLY)
    os.write(fd, b"x" * 100_000)
    time.sleep(7)
    node.kill()
    with contextlib.suppress(OSError):
        os.close(fd)
    node.mount()
    assert (node.point / "file").read_bytes() == b"x" * 100_000


def test_umount_is_refused_while_a_file_is_open_and_works_afterwards(node):
    node.mount()
    with open(node.point / "file", "w") as file:
        done = subprocess.run(["umount", node.point], capture_output=True, text=True)
        assert done.returncode != 0
        assert "busy" in done.stderr
        file.write("still works")
    node.unmount()
    node.mount()
    assert (node.point / "file").read_text() == "still works"


def test_a_mount_can_follow_umount_at_once(node):
    node.mount()
    for number in range(3):
        (node.point / f"file-{number}").write_bytes(os.urandom(8_000_000))
        subprocess.run(["umount", node.point], check=True)
        node.mount()  # waits for the daemon that is still writing
    assert len(os.listdir(node.point)) == 3


def test_a_dead_mount_point_is_replaced_by_mounting_again(node):
    node.mount()
    (node.point / "file").write_bytes(b"bytes")
    for _ in range(3):
        node.kill()
        with pytest.raises(OSError, match="not connected"):
            os.listdir(node.point / "nowhere")
        node.mount()
        assert (node.point / "file").read_bytes() == b"bytes"
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    assert sum(str(node.point) in line for line in lines) == 1


def test_a_read_only_mount_reads_and_changes_nothing(node):
    node.mount()
    (node.point / "file").write_bytes(b"bytes" * 100_000)
    node.unmount()
    node.mount("ro")
    assert (node.point / "file").read_bytes() == b"bytes" * 100_000
    for change in (
        lambda: (node.point / "new").write_bytes(b""),
        lambda: (node.point / "file").unlink(),
        lambda: os.truncate(node.point / "file", 0),
        lambda: (node.point / "new").mkdir(),
    ):
        with pytest.raises(OSError, match="Read-only"):
            change()
    node.unmount()
    node.mount()
    assert os.listdir(node.point) == ["file"]


def test_a_read_only_mount_of_a_home_that_was_killed_shows_what_was_done(node):
    node.mount()
    (node.point / "first").write_bytes(b"bytes")
    node.unmount()
    node.mount()
    (node.point / "file").write_bytes(b"bytes" * 100_000)
    node.kill()
    node.mount("ro")
    assert (node.point / "file").read_bytes() == b"bytes" * 100_000


def test_options_of_fstab_are_taken(node):
    node.mount(
        "defaults,nofail,_netdev,x-systemd.automount,comment=a b,noatime,nosuid,nodev,noexec"
    )
    line = next(
        line for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if str(node.point) in line
    )  # fmt: skip
    for option in ("nosuid", "nodev", "noexec", "noatime"):
        assert option in line


def test_mount_8_finds_the_helper(node):
    helper = Path("/sbin/mount.dfs")
    if helper.exists() or helper.is_symlink():
        pytest.skip(f"{helper} is there already: not ours to replace")
    script = node.top / "mount.dfs"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m mountfs.cli.mount_dfs "$@"\n')
    script.chmod(0o755)
    helper.symlink_to(script)
    try:
        command = ["mount", "-t", "dfs", "-o", "noatime,nofail", node.home, node.point]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    finally:
        helper.unlink()
    assert done.returncode == 0, done.stderr
    pid = int((node.home / "pid").read_text())
    pidfd = os.pidfd_open(pid)
    node._pidfd, node.pid = pidfd, pid
    assert node.is_mounted
    node.unmount()


def test_a_mount_point_and_a_home_with_odd_names(tmp_path):
    with fresh_node(home=tmp_path / "ho me,with\\odd \u00fcnames") as node:
        node.point.rmdir()
        node.point = node.top / "mo unt,p\\oint"
        node.point.mkdir()
        done = node.try_mount()
        assert done.returncode == 0, done.stderr
        (node.point / "file").write_text("x")
        subprocess.run(["umount", node.point], check=True)
        node.wait()


# -- what is refused


@pytest.mark.parametrize("call", [[], ["a", "b", "c"], ["--bogus"], ["-o"]])
def test_a_wrong_call_is_told_as_mount_8_documents(call):
    done = subprocess.run([*MOUNT_DFS, *call], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("usage: mount.dfs [HOME|NODES:] MOUNTPOINT")
    assert done.stderr.endswith("see: mount.dfs --help\n")


def test_a_second_mount_of_the_same_home_is_refused_and_disturbs_nothing(node):
    node.mount()
    (node.point / "file").write_text("before")
    with fresh_node(home=node.home) as second:
        refused(second, str(node.home), str(node.pid), str(node.point))
    assert (node.point / "file").read_text() == "before"
    assert int((node.home / "pid").read_text()) == node.pid
    (node.point / "file").write_text("after")
    node.unmount()


def test_a_second_mount_at_the_same_place_is_refused(node, tmp_path):
    node.mount()
    done = subprocess.run(
        [*MOUNT_DFS, str(tmp_path / "other"), str(node.point)], capture_output=True, text=True
    )
    assert done.returncode == 32
    assert f"{node.point} is already a mount of {node.home}" in done.stderr
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("options", ["bogus", "ro,bogus=1", "dirty=lots", "binding=other"])
def test_a_wrong_option_is_refused_by_name_before_anything_is_made(node, options):
    refused(node, options.split(",")[-1].split("=")[0], options=options)
    assert not node.home.exists()


def test_a_mount_point_that_is_missing(node):
    node.point.rmdir()
    refused(node, str(node.point), "does not exist", "mkdir")
    assert not node.home.exists()
    node.point.mkdir()


def test_a_mount_point_that_is_a_file(node):
    node.point.rmdir()
    node.point.touch()
    refused(node, "not a directory")


def test_a_home_that_is_something_else(node):
    node.home.mkdir()
    (node.home / "letters").write_text("mine")
    refused(node, str(node.home), "not a mountfs home", "letters")
    assert os.listdir(node.home) == ["letters"]


def test_a_home_that_is_a_file(node):
    node.home.write_text("mine")
    refused(node, str(node.home), "not a directory")
    assert node.home.read_text() == "mine"


@pytest.fixture
def used(node):
    """A home with something in it, not mounted."""
    node.mount()
    (node.point / "file").write_text("content" * 10_000)
    node.unmount()
    return node


def test_a_home_of_a_newer_format(used):
    path = used.home / "format.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": FORMAT + 1}))
    before = files_of(used.home)
    refused(used, f"format {FORMAT + 1}", f"reads format {FORMAT}")
    assert files_of(used.home) == before


@pytest.mark.parametrize(
    "text", ["", "{", '{"format": "one"}', '{"format": 1, "id": "short"}', "\0"]
)
def test_a_damaged_format(used, text):
    (used.home / "format.json").write_text(text)
    before = files_of(used.home)
    refused(used, "format.json is damaged")
    assert files_of(used.home) == before


def test_a_format_that_is_not_text(used):
    (used.home / "format.json").write_bytes(os.urandom(100))
    refused(used, "format.json is damaged")


def test_a_missing_format(used):
    (used.home / "format.json").unlink()
    before = files_of(used.home)
    refused(used, "format.json", "missing")
    assert files_of(used.home) == before


@pytest.mark.parametrize("part", ["meta/log", "meta/store", "meta", "chunks/volumes"])
def test_a_home_with_a_missing_part(used, part):
    shutil.rmtree(used.home / part)
    done = used.try_mount()
    if done.returncode == 0:  # then what is there must be right, or an error
        with pytest.raises(OSError, match="Input/output error"):
            (used.point / "file").read_text()
    assert "Traceback" not in done.stderr
    assert str(used.home) in done.stderr or done.returncode == 0
    assert done.stderr.count("\n") <= 1


@pytest.mark.parametrize("options", ["", "ro"])
def test_a_home_on_a_read_only_filesystem(used, options):
    before = files_of(used.home)
    place = used.top / "bound"
    place.mkdir()
    subprocess.run(["mount", "--bind", used.home, place], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", place], check=True)
        with fresh_node(home=place) as other:
            refused(other, str(place), "Read-only", "-o ro", "remount,rw", options=options)
    finally:
        subprocess.run(["umount", place], check=True)
    assert files_of(used.home) == before


def test_a_full_home_is_refused_with_a_sentence(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", small], check=True)
    try:
        with fresh_node(home=small / "home") as node:
            refused(node, str(node.home), "No space left", "make room")
            subprocess.run(["mount", "-o", "remount,size=64m", small], check=True)
            node.mount()  # what was begun is in nobody's way
            (node.point / "file").write_bytes(b"bytes")
            node.unmount()
    finally:
        subprocess.run(["umount", "-l", small], check=True)


@pytest.mark.parametrize("left_kib", [0, 4, 8, 16, 64, 256, 1024])
def test_a_home_whose_disk_is_full_is_mounted_or_refused_with_a_sentence(tmp_path, left_kib):
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", small], check=True)
    try:
        with fresh_node(home=small / "home") as node:
            node.mount()
            (node.point / "small").write_bytes(b"bytes")
            (node.point / "large").write_bytes(b"large" * 100_000)
            node.unmount()
            with open(small / "of others", "wb", buffering=0) as file:
                with contextlib.suppress(OSError):
                    while file.write(bytes(4096)):
                        pass
                file.truncate(file.tell() - left_kib * 1024)
            done = node.try_mount()
            if done.returncode == 0:
                assert (node.point / "large").read_bytes() == b"large" * 100_000
                node.unmount()
            else:
                assert done.returncode == 32
                assert "No space left on device; a mount needs" in done.stderr
                assert done.stderr.count("\n") == 1
            (small / "of others").unlink()
            node.mount()
            assert (node.point / "small").read_bytes() == b"bytes"
            assert (node.point / "large").read_bytes() == b"large" * 100_000
            node.unmount()
    finally:
        subprocess.run(["umount", "-l", small], check=True)


LONG = "n" * 256
DEEP = "deep/" * 1_000


@pytest.mark.parametrize("name", [LONG, DEEP])
def test_names_that_are_too_long(node, name):
    for home, point in ((node.home, node.top / name), (node.top / name, node.point)):
        done = subprocess.run([*MOUNT_DFS, home, point], capture_output=True, text=True)
        assert done.returncode == 32
        assert "the name is too long; choose" in done.stderr
        assert done.stderr.count("\n") == 1
    assert sorted(os.listdir(node.top)) == ["mnt"]


def test_without_a_device(node):
    """Before a home is made."""
    hide = "mount -t tmpfs none /dev && mknod /dev/null c 1 3 && exec"
    call = shlex.join([*MOUNT_DFS, str(node.home), str(node.point)])
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", f"{hide} {call}"], capture_output=True, text=True
    )
    assert done.returncode == 32
    assert "/dev/fuse is missing" in done.stderr
    assert "modprobe fuse" in done.stderr
    assert os.listdir(node.top) == ["mnt"]


YESTERDAY = """
import sys, time
now = time.time_ns
time.time_ns = lambda: now() - 86_400 * 10**9
from mountfs.cli import mount_dfs
sys.exit(mount_dfs.main())
"""


def test_a_clock_that_went_back(node):
    node.mount()
    (node.point / "before").write_text("text")
    (node.point / "directory").mkdir()
    node.unmount()
    node.mount(command=[sys.executable, "-c", YESTERDAY])
    (node.point / "after").write_text("text")
    (node.point / "directory" / "file").write_text("text")
    before, after = os.stat(node.point / "before"), os.stat(node.point / "after")
    assert after.st_mtime_ns > before.st_ctime_ns
    assert os.stat(node.point / "directory").st_mtime_ns > before.st_ctime_ns
    (node.point / "before").unlink()
    node.unmount()
    node.mount()
    assert sorted(os.listdir(node.point)) == ["after", "directory"]
    assert os.stat(node.point / "after").st_mtime_ns == after.st_mtime_ns
    node.unmount()
    assert list(troubles(node.home)) == []


def test_a_foreground_mount_ends_with_its_mount(node):
    command = [*MOUNT_DFS, "--foreground", str(node.home), str(node.point)]
    daemon = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        until = time.monotonic() + 30
        while not is_mounted(node.point) and time.monotonic() < until:
            time.sleep(0.02)
        (node.point / "file").write_text("x")
        subprocess.run(["umount", node.point], check=True)
        assert daemon.wait(30) == 0
    finally:
        daemon.kill()
        daemon.communicate()
