"""Fifos, sockets and devices do their work in the filesystem.

Sources: POSIX.1-2024 open() (FIFOs), bind(), connect(); Linux man pages fifo(7), unix(7),
mknod(2), null(4).
"""

import os
import socket
import stat
from errno import EACCES, EADDRINUSE, ECONNREFUSED, ENXIO
from pathlib import Path

import pytest
from calls import fails, make, opened
from people import ALICE, Link, Other, as_user

NODEV = 4  # ST_NODEV of statvfs(3)


def test_a_fifo_carries_bytes_between_processes(here: Path) -> None:
    os.mkfifo(here / "fifo")

    def send(_: Link) -> None:
        with opened(here / "fifo", os.O_WRONLY) as fd:
            os.write(fd, b"text")

    with Other(send) as child, opened(here / "fifo") as fd:
        assert os.read(fd, 10) == b"text"
        assert os.read(fd, 10) == b""
        child.result()
    assert (here / "fifo").stat().st_size == 0


def test_a_fifo_without_a_reader_refuses_a_writer_that_does_not_wait(here: Path) -> None:
    os.mkfifo(here / "fifo")
    with fails(ENXIO):
        os.open(here / "fifo", os.O_WRONLY | os.O_NONBLOCK)
    with opened(here / "fifo", os.O_RDONLY | os.O_NONBLOCK) as fd:
        assert os.read(fd, 10) == b""
        os.close(os.open(here / "fifo", os.O_WRONLY | os.O_NONBLOCK))


def test_a_fifo_is_the_same_by_all_its_names_and_after_unlinking(here: Path) -> None:
    os.mkfifo(here / "a")
    os.link(here / "a", here / "b")
    with opened(here / "a", os.O_RDWR) as one, opened(here / "b", os.O_RDWR) as two:
        os.unlink(here / "a")
        os.unlink(here / "b")
        os.write(one, b"text")
        assert os.read(two, 10) == b"text"


def test_a_fifo_follows_permissions(here: Path) -> None:
    os.mkfifo(here / "fifo", 0o600)
    with fails(EACCES):
        as_user(lambda: os.open(here / "fifo", os.O_RDONLY | os.O_NONBLOCK), ALICE)


def test_a_socket_is_bound_connected_and_unlinked(here: Path) -> None:
    os.chdir(here)  # the address of a socket is short
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind("socket")
        assert stat.S_ISSOCK(os.stat("socket").st_mode)
        listener.listen()
        client.connect("socket")
        served, _ = listener.accept()
        with served:
            client.sendall(b"text")
            assert served.recv(10) == b"text"
    os.unlink("socket")
    assert os.listdir(here) == []


def test_a_socket_is_found_under_its_new_name(here: Path) -> None:
    os.chdir(here)
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind("old")
        listener.listen()
        os.rename("old", "new")
        client.connect("new")


def test_a_socket_takes_only_a_free_name_and_stays_after_its_process(here: Path) -> None:
    os.chdir(here)
    make(here / "file")
    with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
        with fails(EADDRINUSE):
            first.bind("file")
        first.bind("socket")
        with fails(EADDRINUSE):
            second.bind("socket")
    assert (here / "socket").is_socket()
    with socket.socket(socket.AF_UNIX) as client:
        with fails(ECONNREFUSED):
            client.connect("socket")
        with fails(ECONNREFUSED):
            client.connect("file")


def test_connecting_needs_write_permission_on_the_socket(here: Path) -> None:
    os.chdir(here)

    def connect() -> None:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect("socket")

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        listener.listen()
        os.chmod("socket", 0o755)
        with fails(EACCES):
            as_user(connect, ALICE)
        os.chmod("socket", 0o777)
        as_user(connect, ALICE)


def test_a_socket_cannot_be_opened(here: Path) -> None:
    os.mknod(here / "socket", stat.S_IFSOCK | 0o600)
    with fails(ENXIO):
        os.open(here / "socket", os.O_RDWR)


def test_a_device_node_is_the_device(here: Path) -> None:
    if os.statvfs(here).f_flag & NODEV:
        pytest.skip("mounted with nodev")
    os.mknod(here / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(here / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    with opened(here / "null", os.O_RDWR) as null, opened(here / "zero") as zero:
        assert os.write(null, b"text") == 4
        assert os.read(null, 10) == b""
        assert os.read(zero, 10) == bytes(10)
    assert (here / "null").stat().st_size == 0


def test_a_device_node_without_a_device_cannot_be_opened(here: Path) -> None:
    if os.statvfs(here).f_flag & NODEV:
        pytest.skip("mounted with nodev")
    os.mknod(here / "none", stat.S_IFCHR | 0o666, os.makedev(4000, 4000))
    with fails(ENXIO):
        os.open(here / "none", os.O_RDONLY)
