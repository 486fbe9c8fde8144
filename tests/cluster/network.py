"""A network of its own: a namespace for each machine, all on one bridge, and links that can be cut.

The namespaces have no names: each lasts as long as the process that holds it, so nothing is left
behind even if a test is killed.
"""

import contextlib
import ctypes
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest

_NOBODY: Final = "02:00:00:00:ff:ff"
_NEW_NETWORK: Final = 0x4000_0000
_libc = ctypes.CDLL(None, use_errno=True)


class Network:
    def __init__(self) -> None:
        self._holders: dict[str, subprocess.Popen[bytes]] = {}
        self._numbers: dict[str, int] = {}
        self._hold("switch")
        self._ip("switch", "link", "add", "bridge", "type", "bridge")
        self._ip("switch", "link", "set", "bridge", "up")

    def add(self, name: str) -> str:
        """A machine.  Returns its address."""
        number = self._numbers[name] = len(self._numbers) + 1
        self._hold(name)
        switch, machine = self._pid("switch"), self._pid(name)
        _run(
            "ip", "link", "add", "eth0", "netns", machine, "type", "veth",
            "peer", "name", f"port{number}", "netns", switch,
        )  # fmt: skip
        self._ip("switch", "link", "set", f"port{number}", "master", "bridge", "up")
        self._ip(name, "link", "set", "lo", "up")
        self._ip(name, "link", "set", "eth0", "address", _mac(number), "up")
        self._ip(name, "addr", "add", f"{_address(number)}/24", "dev", "eth0")
        for other in self._numbers:
            if other != name:
                self.heal(name, other)
        return _address(number)

    def cut(self, source: str, target: str) -> None:
        """What `source` sends to `target` is lost from now on, but not the other way round."""
        self._neighbour(source, target, _NOBODY)

    def cut_both(self, one: str, other: str) -> None:
        self.cut(one, other)
        self.cut(other, one)

    def heal(self, one: str, other: str) -> None:
        self._neighbour(one, other, _mac(self._numbers[other]))
        self._neighbour(other, one, _mac(self._numbers[one]))

    def heal_all(self) -> None:
        for one in self._numbers:
            for other in self._numbers:
                if one != other:
                    self._neighbour(one, other, _mac(self._numbers[other]))

    def enter(self, name: str) -> list[str]:
        """What to put before a command that is to run on that machine."""
        return ["nsenter", f"--net={self._namespace(name)}"]

    def inside(self, name: str, work: Callable[[], Any]) -> Any:
        """The result of `work`, whose sockets are on that machine."""
        found: list[Any] = []

        def enter_and_work() -> None:
            fd = os.open(self._namespace(name), os.O_RDONLY)
            try:
                if _libc.setns(fd, _NEW_NETWORK):
                    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            finally:
                os.close(fd)
            found.append(work())

        # A namespace is a thread's own: ours stays where it is.
        thread = threading.Thread(target=enter_and_work)
        thread.start()
        thread.join()
        return found[0]

    def destroy(self) -> None:
        for holder in self._holders.values():
            holder.kill()
            holder.wait()
            assert holder.stdout is not None
            holder.stdout.close()

    def _hold(self, name: str) -> None:
        command = ["unshare", "--net", "sh", "-c", "echo; exec sleep infinity"]
        holder = self._holders[name] = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert holder.stdout is not None
        assert holder.stdout.readline(), "no namespace was made"

    def _pid(self, name: str) -> str:
        return str(self._holders[name].pid)

    def _namespace(self, name: str) -> str:
        return f"/proc/{self._pid(name)}/ns/net"

    def _ip(self, name: str, *words: str) -> None:
        _run(*self.enter(name), "ip", *words)

    def _neighbour(self, source: str, target: str, mac: str) -> None:
        address = _address(self._numbers[target])
        self._ip(
            source, "neigh", "replace", address, "lladdr", mac, "dev", "eth0", "nud", "permanent"
        )


def _address(number: int) -> str:
    return f"10.7.7.{number}"


def _mac(number: int) -> str:
    return f"02:00:00:00:00:{number:02x}"


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, f"{command}: {done.stderr}"


def why_none() -> str:
    """Why there can be no such network here; empty if there can."""
    for program in ("ip", "nsenter", "unshare"):
        if shutil.which(program) is None:
            return f"network namespaces need {program}"
    done = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True)
    return done.stderr.strip()


@contextlib.contextmanager
def fresh_network() -> Iterator[Network]:
    if why := why_none():
        pytest.skip(why)
    network = Network()
    try:
        yield network
    finally:
        network.destroy()
