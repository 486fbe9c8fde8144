"""A cluster with certificates: it works as others do, and only its nodes speak as nodes."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import trio
from nodes import CLIENT, PORT, Member, Nodes, fresh_cluster, pki

from mountfs.cli.trust import Trust
from mountfs.errors import Fault, FsError
from mountfs.meta import admin
from mountfs.meta.protocol import ROLE
from mountfs.raft import snapshots
from mountfs.raft.links import Links
from mountfs.raft.messages import NodeId
from mountfs.rpc.client import open_client
from mountfs.wire.frames import Hello

SOON_S = 60
ANSWER_S = 10.0
NOT_YET = "not connected yet"
UNDERSTANDS_NOT = "node 9: not a message between nodes"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    """Three nodes that all vote, for all tests here."""
    with fresh_cluster(with_certificates=True) as cluster:
        yield cluster


def issued(cluster: Nodes, name: str) -> Path:
    assert cluster.pki is not None
    return cluster.pki / "issued" / name


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a node of another cluster shows."""
    other = tmp_path_factory.mktemp("other") / "pki"
    pki("init", other)
    pki("issue", other, "node", "n1")
    return other / "issued" / "n1"


def test_a_mount_with_a_certificate_works_and_goes_on_without_the_leader(cluster: Nodes) -> None:
    node = cluster.mount(options=f"tls={issued(cluster, CLIENT)}")
    (node.point / "small").write_bytes(b"x" * 100)
    (node.point / "large").write_bytes(b"y" * 10_000_000)
    leader = cluster.wait_for_leader()
    leader.kill()
    (node.point / "later").write_bytes(b"z")
    cluster.restart(leader)
    cluster.wait_for_voters(3)
    assert (node.point / "small").read_bytes() == b"x" * 100
    assert (node.point / "large").read_bytes() == b"y" * 10_000_000
    assert (node.point / "later").read_bytes() == b"z"
    cluster.calm()


async def answer_to_rubbish(member: Member, tls: Path | None) -> str:
    """To what only a node may say: why it is not listened to, or that it is not understood."""
    options = Trust(tls, kind=None).client_options(bytes(16), "test")
    links = Links(
        NodeId(9),
        Hello(cluster=options.cluster, role=ROLE, name="test"),
        ssl_context=options.ssl_context,
        server_hostname=options.server_hostname,
    )
    target = NodeId(int(member.name[1:]))
    links.set_peers({target: (member.host, PORT + 1)})
    before = len(member.said())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(links.run)
        with trio.fail_after(SOON_S):
            while True:
                links.send(target, b"rubbish")
                await trio.sleep(0.05)
                if (problem := links.problems.get(target, NOT_YET)) != NOT_YET:
                    break
                if UNDERSTANDS_NOT in member.said()[before:]:
                    problem = UNDERSTANDS_NOT
                    break
        nursery.cancel_scope.cancel()
    return problem


def test_a_node_is_listened_to(cluster: Nodes) -> None:
    said = trio.run(answer_to_rubbish, cluster["n1"], issued(cluster, "n2"))
    assert said == UNDERSTANDS_NOT


def test_a_client_may_not_speak_as_a_node(cluster: Nodes) -> None:
    said = trio.run(answer_to_rubbish, cluster["n1"], issued(cluster, CLIENT))
    assert f"client {CLIENT}, and a node is needed here" in said


def test_nobody_without_a_certificate_of_the_cluster_speaks_as_a_node(
    cluster: Nodes, stranger: Path
) -> None:
    assert "does it want TLS?" in trio.run(answer_to_rubbish, cluster["n1"], None)
    said = trio.run(answer_to_rubbish, cluster["n1"], stranger)
    assert "TLS: the certificate is not good" in said


async def answer_to(member: Member, tls: Path | None, service: str, method: str) -> FsError:
    trust = Trust(tls, kind=None)
    async with open_client(trust.cluster, trust.credentials) as client:
        try:
            body = msgspec.msgpack.encode(None)
            await client.call(member.rpc, service, method, body, deadline_s=ANSWER_S)
        except FsError as error:
            return error
    raise AssertionError("it was answered")


@pytest.mark.parametrize(
    ("service", "method"), [(admin.SERVICE, "Join"), (snapshots.SERVICE, snapshots.OFFER)]
)
def test_a_client_may_not_join_or_offer_snapshots(
    cluster: Nodes, service: str, method: str
) -> None:
    error = trio.run(answer_to, cluster["n1"], issued(cluster, CLIENT), service, method)
    assert error.fault is Fault.DENIED
    assert f"{CLIENT} shows a client's certificate, a node's is needed" in error.detail


def test_who_has_no_certificate_of_the_cluster_is_told_nothing(
    cluster: Nodes, stranger: Path
) -> None:
    for tls in (None, stranger):
        error = trio.run(answer_to, cluster["n1"], tls, admin.SERVICE, "Nodes")
        assert error.fault is Fault.NOT_LEADER


def test_nobody_says_a_key_in_its_log(cluster: Nodes) -> None:
    for name in ("n1", "n2", "n3"):
        key = (issued(cluster, name) / "own.pem").read_text()
        secret = key.partition("PRIVATE KEY-----\n")[2].partition("-----END")[0].split()
        said = cluster[name].said()
        assert secret and said
        assert "PRIVATE KEY" not in said
        assert not any(line in said for line in secret)
