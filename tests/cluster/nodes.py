"""A cluster in a directory: nodes in processes of their own, and mounts of it.

On loopback each cluster has addresses that no other has; or its machines are in a `Network`.
Whatever a test did to it, `destroy` leaves no process, mount or file behind.
"""

import contextlib
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import trio
from mounted import Node, users_of
from network import Network

from mountfs.cli.places import mount_directory
from mountfs.cli.trust import Trust
from mountfs.errors import FsError
from mountfs.meta.protocol import ROLE, Cluster, Method
from mountfs.wire.connection import Disconnected
from mountfs.wire.frames import Hello
from mountfs.wire.stream import connect

TTL_S: Final = 3
"""What a cluster that is impatient gives a silent mount."""
PORT: Final = 7410
START_S_MAX: Final = 60
END_S_MAX: Final = 60
LEADER_S_MAX: Final = 60
"""Generous: the machine may be busy with other things."""
ANSWER_S_MAX: Final = 2
LOOK_S: Final = 0.05
CLIENT: Final = "client"
MOUNTFS: Final = [sys.executable, "-m", "mountfs.cli.main"]


class Member:
    """A node: its home, its place, and its process if it runs."""

    def __init__(
        self, cluster: "Nodes", name: str, host: str, home: Path, options: Sequence[str] = ()
    ) -> None:
        self.cluster = cluster
        self.options = list(options)
        """Those that it is always started with."""
        self.name = name
        self.host = host
        self.home = home
        self.log = cluster.top / f"{name}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.stopped = False

    @property
    def rpc(self) -> str:
        return f"{self.host}:{PORT}"

    @property
    def door(self) -> str:
        return f"{self.host}:{PORT + 1}"

    @property
    def runs(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self, *options: str) -> None:
        """Begin; `wait_until_up` says when it is there."""
        assert not self.runs, f"{self.name} runs already"
        self.before = len(self.said())
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                self.command(*options), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def command(self, *options: str) -> list[str]:
        network = self.cluster.network
        return [
            *(network.enter(self.name) if network else []),
            *(*MOUNTFS, "node", "--home", str(self.home), "--listen", self.rpc),
            *("--name", self.name, *self.cluster.options, *self.cluster.identity(self.name)),
            *self.options,
            *options,
        ]

    def wait_until_up(self) -> None:
        def up() -> bool:
            if " listens at " in self.said()[self.before :]:
                return True
            assert self.runs, f"{self.name} has ended: {self.said()[-3000:]}"
            return False

        until(up, START_S_MAX, lambda: f"{self.name} does not start: {self.said()[-3000:]}")

    def try_start(self, *options: str, seconds: float = START_S_MAX) -> tuple[int, str]:
        """Run it when it is expected to refuse.  (exit status, what it said)"""
        done = subprocess.run(
            self.command(*options), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, timeout=seconds,
        )  # fmt: skip
        return done.returncode, done.stdout

    def kill(self) -> None:
        """kill -9"""
        if self.process is not None:
            self.process.kill()
            self.process.wait(END_S_MAX)
            self.process, self.stopped = None, False

    def end(self) -> int:
        """SIGTERM, and wait."""
        assert self.process is not None, self.name
        self.process.terminate()
        try:
            return self.process.wait(END_S_MAX)
        finally:
            self.kill()

    def stop(self) -> None:
        """SIGSTOP"""
        assert self.process is not None, self.name
        self.process.send_signal(signal.SIGSTOP)
        self.stopped = True

    def go_on(self) -> None:
        """SIGCONT"""
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
        self.stopped = False

    def said(self) -> str:
        try:
            return self.log.read_text(errors="replace")
        except FileNotFoundError:
            return ""


class Nodes:
    """A cluster; use `fresh_cluster`."""

    def __init__(self, top: Path, network: Network | None, options: Sequence[str] = ()) -> None:
        self.top = top
        self.network = network
        self.options = list(options)
        self.pki: Path | None = None
        """Of the certificates: whoever is named has one of its own."""
        self.members: dict[str, Member] = {}
        self.mounts: list[Node] = []
        self.workers: list[subprocess.Popen[bytes]] = []
        self._prefix = f"127.{random.randrange(1, 250)}.{random.randrange(250)}"
        self._hosts = 0
        self._places = 0
        if network is not None:
            network.add(CLIENT)
            self.options.append("--insecure")

    # -- nodes

    def identity(self, name: str) -> list[str]:
        """Options; none if there are no certificates."""
        return [] if self.pki is None else ["--tls", str(self.pki / "issued" / name)]

    def member(
        self,
        name: str,
        *,
        home: Path | None = None,
        roles: str = "",
        location: str = "",
        data: Sequence[Path] = (),
    ) -> Member:
        """A node that does not run yet; `data`: directories for volumes beside its home."""
        options = ["--roles", roles] if roles else []
        options += ["--location", location] if location else []
        options += [f"--data={directory}" for directory in data]
        self._hosts += 1
        host = f"{self._prefix}.{self._hosts}"
        if self.network is not None:
            host = self.network.add(name)
        found = Member(self, name, host, home or self.top / name, options)
        self.members[name] = found
        return found

    def found(self, name: str, *, home: Path | None = None, location: str = "") -> Member:
        """The first node of the cluster."""
        first = self.member(name, home=home, location=location)
        if not first.home.exists():
            done = self.run(*MOUNTFS, "cluster", "init", str(first.home), *self.identity(name))
            assert done.returncode == 0, done.stderr
        first.start()
        first.wait_until_up()
        self.wait_for_leader()
        return first

    def join(self, *names: str, **options: Any) -> list[Member]:
        """More nodes, all at once.  They may not be voters yet when this returns."""
        joining = self.begin_join(*names, **options)
        for member in joining:
            member.wait_until_up()
        return joining

    def begin_join(self, *names: str, **options: Any) -> list[Member]:
        """The same, without waiting for them."""
        known = ",".join(member.rpc for member in self.members.values() if member.runs)
        joining = [self.member(name, **options) for name in names]
        for member in joining:
            member.start("--join", known)
        return joining

    def restart(self, *members: Member) -> None:
        for member in members:
            member.start()
        for member in members:
            member.wait_until_up()

    def __getitem__(self, name: str) -> Member:
        return self.members[name]

    @property
    def running(self) -> list[Member]:
        return [member for member in self.members.values() if member.runs and not member.stopped]

    def wait_for_voters(self, count: int) -> None:
        """Until so many vote, and all of them follow closely."""
        told: list[Any] = []

        def all_vote() -> bool:
            told[:] = self.listed()
            votes = [node for node in told if node["role"] == "voter" and node["alive"]]
            return len(votes) == count and len(told) == count and not self._lags(told)

        until(all_vote, START_S_MAX, lambda: f"not {count} voters: {told}")

    def _lags(self, told: list[Any]) -> bool:
        return any((node["lag"] or 0) > 1000 for node in told)

    def listed(self) -> list[Any]:
        """mountfs node list"""
        done = self.ask("list", "--json")
        return json.loads(done.stdout) if done.stdout.startswith("[") else []

    def ask(
        self, *words: str, at: Iterable[Member] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """mountfs node WORDS --at all that run"""
        places = ",".join(member.rpc for member in (self.running if at is None else at))
        return self.run(*MOUNTFS, "node", *words, "--at", places, *self.identity(CLIENT))

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A command, on the machine of clients."""
        before = self.network.enter(CLIENT) if self.network else []
        return subprocess.run(
            [*before, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=START_S_MAX,
        )  # fmt: skip

    def leader(self, among: Iterable[Member] | None = None) -> Member | None:
        """Who says of itself that it leads."""
        members = list(self.running if among is None else among)
        for member in members:
            told = self._cluster_at(member)
            if told is None or not told.leader:
                continue
            for node in told.nodes:
                if node.number == told.leader and node.name == member.name:
                    return member
        return None

    def wait_for_leader(self, among: Iterable[Member] | None = None) -> Member:
        members = list(self.running if among is None else among)
        found: list[Member] = []

        def somebody_leads() -> bool:
            leader = self.leader(members)
            if leader is not None:
                found.append(leader)
            return bool(found)

        until(somebody_leads, LEADER_S_MAX, lambda: f"nobody leads\n{self.said()}")
        return found[0]

    def followers(self) -> list[Member]:
        leader = self.wait_for_leader()
        return [member for member in self.running if member is not leader]

    def _cluster_at(self, member: Member) -> Cluster | None:
        """What it knows, asked on its own machine, so that no cut link is in the way."""
        tls = None if self.pki is None else self.pki / "issued" / CLIENT
        ask: Callable[[], Cluster | None] = partial(trio.run, _ask, member.host, tls)
        return self.network.inside(member.name, ask) if self.network else ask()

    def said(self) -> str:
        """The end of what each has said."""
        return "\n".join(
            f"-- {member.name}:\n{member.said()[-2000:]}" for member in self.members.values()
        )

    # -- mounts

    @property
    def source(self) -> str:
        return ",".join(member.door for member in self.members.values()) + ":"

    def node_of_mount(self, name: str = "one", *, source: str | None = None) -> Node:
        """A place to mount the cluster, not mounted yet."""
        self._places += 1
        top = self.top / f"mount-{self._places}-{name}"
        top.mkdir()
        node = Node(
            top,
            home=mount_directory(str(top / "mnt")),
            source=source or self.source,
            before=self.network.enter(CLIENT) if self.network else (),
        )
        self.mounts.append(node)
        return node

    def mount(self, name: str = "one", options: str = "") -> Node:
        node = self.node_of_mount(name)
        node.mount(options)
        return node

    # -- the end of it

    def calm(self) -> None:
        """Nobody works, nothing is mounted: the nodes are as they are."""
        for worker in self.workers:
            worker.kill()
        for node in self.mounts:
            node.destroy()
            shutil.rmtree(node.home, ignore_errors=True)
        for worker in self.workers:  # only now: one that waited for a dead cluster goes on
            worker.wait(END_S_MAX)
        self.workers, self.mounts = [], []

    def destroy(self) -> None:
        for member in self.members.values():
            member.kill()
        self.calm()


async def _ask(host: str, tls: Path | None) -> Cluster | None:
    options = Trust(tls, kind=None).client_options(bytes(16), "test")
    with trio.move_on_after(ANSWER_S_MAX):
        async with trio.open_nursery() as nursery:
            try:
                hello = Hello(cluster=bytes(16), role=ROLE, name="test")
                link = await connect(
                    nursery, (host, PORT + 1), hello,
                    ssl_context=options.ssl_context and options.ssl_context(),
                    server_hostname=options.server_hostname,
                )  # fmt: skip
                return msgspec.msgpack.decode(await link.call(Method.CLUSTER), type=Cluster)
            except (Disconnected, FsError):
                return None
            finally:
                nursery.cancel_scope.cancel()
    return None


@contextlib.contextmanager
def fresh_cluster(
    count: int = 3,
    *,
    network: Network | None = None,
    options: Sequence[str] = (),
    with_certificates: bool = False,
) -> Iterator[Nodes]:
    """So many nodes n1, n2, ..., all of which vote if they are odd in number; 0: none yet."""
    top = Path(tempfile.mkdtemp(prefix="mountfs-nodes-"))
    top.chmod(0o755)
    cluster = Nodes(top, network, options)
    try:
        if with_certificates:
            cluster.pki = top / "pki"
            pki("init", cluster.pki)
            pki("issue", cluster.pki, "client", CLIENT)
            for number in range(1, count + 1):
                pki("issue", cluster.pki, "node", f"n{number}")
        if count:
            cluster.found("n1")
            cluster.join(*(f"n{number}" for number in range(2, count + 1)))
            if count % 2:
                cluster.wait_for_voters(count)
        yield cluster
    finally:
        cluster.destroy()
        shutil.rmtree(top)


def pki(*words: str | Path) -> None:
    """mountfs pki WORDS"""
    command = [*MOUNTFS, "pki", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=START_S_MAX)
    assert done.returncode == 0, done.stderr


def until(holds: Callable[[], Any], seconds: float, otherwise: Callable[[], str]) -> None:
    """Wait for something that nobody tells us of."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"not within {seconds} s: {otherwise()}"
        time.sleep(LOOK_S)


def wait_for(process: subprocess.Popen[Any], seconds: float, what: str) -> int:
    """Its exit status; says where it hangs if it does."""
    fd = os.pidfd_open(process.pid)
    try:
        ready, _, _ = select.select([fd], [], [], seconds)
    finally:
        os.close(fd)
    if not ready:
        with contextlib.suppress(OSError):
            what += " " + Path(f"/proc/{process.pid}/stack").read_text()
    assert ready, f"{what}: process {process.pid} still runs after {seconds} s"
    return process.wait()


__all__ = ["Member", "Nodes", "fresh_cluster", "pki", "until", "users_of", "wait_for"]
