"""Certificates: who gets in, what the others hear, and that they are renewed while we run."""

import contextlib

import grpc
import pytest
import trio

pytest.importorskip("cryptography")

from rpc_rig import ANYWHERE, CLUSTER, Authority, a_node, smaller, two_nodes

from mountfs.errors import Fault, FsError
from mountfs.rpc.client import open_client
from mountfs.rpc.identity import Identity, Pems
from mountfs.rpc.server import Call, Server, open_server

ADMIN = "mountfs.Admin"


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


async def show(body: bytes, call: Call) -> bytes:
    assert call.identity is not None
    return repr(tuple(call.identity)).encode()


async def who_am_i(server: Server, pems: Pems | None, cluster: str = CLUSTER) -> Identity:
    async with open_client(cluster, pems and (lambda: pems)) as client:
        with trio.fail_after(10):
            answer = await client.call(server.address, ADMIN, "Show", b"", deadline_s=5)
    return Identity(*eval(answer))


@contextlib.asynccontextmanager
async def showing(pems: Pems):
    async with open_server(ANYWHERE, CLUSTER, lambda: pems) as server:
        server.register(ADMIN, "Show", show)
        yield server


async def test_a_handler_sees_who_calls(authority):
    async with showing(authority.issue(name="n1")) as server:
        client = authority.issue("client", name="ann, OU=node")
        assert await who_am_i(server, client) == ("client", CLUSTER, "ann, OU=node")


@pytest.mark.parametrize("who", ["nobody", "foreign", "expired"])
async def test_without_a_good_certificate_nobody_gets_in(authority, who):
    pems = {
        "nobody": None,
        "foreign": Authority("other").issue(trusts=authority),
        "expired": authority.issue(days=-1),
    }[who]
    async with showing(authority.issue()) as server:
        with pytest.raises(FsError) as caught:
            await who_am_i(server, pems)
        assert caught.value.fault is Fault.NOT_LEADER
        assert server.address in caught.value.detail
        assert (await who_am_i(server, authority.issue("client"))).kind == "client"


async def test_a_certificate_of_another_cluster_is_refused_with_a_sentence(authority):
    async with showing(authority.issue()) as server:
        with pytest.raises(FsError, match="of cluster 'red'") as caught:
            await who_am_i(server, authority.issue(cluster="red"))
        assert caught.value.fault is Fault.NOT_PERMITTED


@pytest.mark.parametrize("who", ["of another cluster", "foreign", "expired"])
async def test_a_client_does_not_talk_to_a_wrong_server(authority, who):
    pems = {
        "of another cluster": authority.issue(cluster="red"),
        "foreign": Authority("other").issue(trusts=authority),
        "expired": authority.issue(days=-1),
    }[who]
    async with showing(pems) as server:
        with pytest.raises(FsError) as caught:
            await who_am_i(server, authority.issue("client"))
        assert caught.value.fault is Fault.NOT_LEADER


async def test_health_is_not_for_everybody(authority):
    async with showing(authority.issue()) as server:

        def probe() -> grpc.StatusCode:
            with grpc.insecure_channel(server.address) as channel:
                try:
                    channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=5)
                except grpc.RpcError as error:
                    return error.code()
            return grpc.StatusCode.OK

        assert await trio.to_thread.run_sync(probe) is grpc.StatusCode.UNAVAILABLE


async def test_a_server_takes_a_new_certificate_while_it_runs(authority):
    later = Authority("later")
    current = authority.issue(name="old")
    async with open_server(ANYWHERE, CLUSTER, lambda: current) as server:
        server.register(ADMIN, "Show", show)
        old = authority.issue("client", name="old")
        new = later.issue("client", name="new")
        assert (await who_am_i(server, old)).name == "old"
        with pytest.raises(FsError):
            await who_am_i(server, new)
        current = later.issue(name="new")
        assert (await who_am_i(server, new)).name == "new"
        with pytest.raises(FsError):
            await who_am_i(server, old)


async def test_a_client_takes_a_new_certificate_for_its_next_call(authority):
    async with showing(authority.issue()) as server:
        pems = authority.issue("client", name="old")
        async with open_client(CLUSTER, lambda: pems) as client:

            async def name() -> bytes:
                with trio.fail_after(10):
                    return await client.call(server.address, ADMIN, "Show", b"", deadline_s=5)

            assert b"old" in await name()
            pems = authority.issue("client", name="new")
            assert b"new" in await name()


async def test_nodes_talk_with_certificates(authority):
    mine, its = authority.issue(name="n1"), authority.issue(name="n2")
    async with two_nodes(credentials=(lambda: mine, lambda: its)) as (a, b):
        a.peers.send(2, b"x" * 1_000_000)
        await b.until(lambda: b.of(1) == [b"x" * 1_000_000])
        b.peers.send(1, b"y")
        await a.until(lambda: a.of(2) == [b"y"])


async def test_messages_of_who_is_no_node_are_refused_and_both_sides_say_so(authority):
    mine, its = authority.issue("client", name="ann"), authority.issue()
    async with a_node(1, credentials=lambda: mine) as a, a_node(2, credentials=lambda: its) as b:
        a.peers.set_peers({2: b.address})
        words = "the certificate of ann is that of a client"
        await a.until(lambda: words in a.peers.problems[2])
        assert words in b.peers.problems[1]
        a.peers.send(2, b"x")
        await trio.sleep(0.1)
        assert not b.batches


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("foreign", "its certificate is not from our authority"),
        ("expired", "its certificate has expired"),
        ("red", "its certificate is not made out for a node of our cluster"),
        ("plain", "it does not speak TLS"),
    ],
)
async def test_a_wrong_peer_is_told_by_a_sentence(authority, how, words):
    mine = authority.issue()
    its = {
        "foreign": Authority("other").issue(trusts=authority),
        "expired": authority.issue(days=-1),
        "red": authority.issue(cluster="red"),
        "plain": None,
    }[how]
    async with (
        a_node(1, credentials=lambda: mine) as a,
        a_node(2, credentials=its and (lambda: its)) as b,
    ):
        a.peers.set_peers({2: b.address})
        await a.until(lambda: words in a.peers.problems[2])


@pytest.mark.parametrize("how", ["foreign", "expired", "nobody"])
async def test_who_is_wrong_hears_what_may_be_wrong_with_it(authority, how):
    """gRPC says no more than that the connection was closed."""
    mine = {
        "foreign": Authority("other").issue(trusts=authority),
        "expired": authority.issue(days=-1),
        "nobody": None,
    }[how]
    its = authority.issue()
    async with (
        a_node(1, credentials=mine and (lambda: mine)) as a,
        a_node(2, credentials=lambda: its) as b,
    ):
        a.peers.set_peers({2: b.address})
        await a.until(lambda: "refuses our certificate, or wants one" in a.peers.problems[2])


async def test_a_node_with_an_expired_certificate_is_back_when_it_has_a_new_one(authority):
    quick = smaller(refused_retry_ms=200)
    mine, its = authority.issue(days=-1), authority.issue()
    async with (
        a_node(1, credentials=lambda: mine, config=quick) as a,
        a_node(2, credentials=lambda: its) as b,
    ):
        a.peers.set_peers({2: b.address})
        await a.until(lambda: a.lost == [2])
        mine = authority.issue()
        await a.until(lambda: not a.peers.problems, 3)
        a.peers.send(2, b"x")
        await b.until(lambda: b.of(1) == [b"x"])
