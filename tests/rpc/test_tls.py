"""Certificates: who gets in, what the others hear, and that they are renewed while we run."""

import contextlib

import grpc
import pytest
import trio

pytest.importorskip("cryptography")

from rpc_rig import ADMIN, ANYWHERE, CLUSTER, Authority

from mountfs.errors import Fault, FsError
from mountfs.rpc.client import open_client
from mountfs.rpc.identity import Identity, Pems
from mountfs.rpc.server import Call, Server, open_server


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
async def showing(pems: Pems | None):
    async with open_server(ANYWHERE, CLUSTER, pems and (lambda: pems)) as server:
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
        # gRPC lets a caller know no more than this when the other side does not like it.
        assert f"{server.address}: Socket closed" in caught.value.detail
        assert (await who_am_i(server, authority.issue("client"))).kind == "client"


async def test_a_certificate_of_another_cluster_is_refused_with_a_sentence(authority):
    async with showing(authority.issue()) as server:
        with pytest.raises(FsError, match="of cluster 'red'") as caught:
            await who_am_i(server, authority.issue(cluster="red"))
        assert caught.value.fault is Fault.NOT_PERMITTED


@pytest.mark.parametrize(
    ("who", "words"),
    [
        ("of another cluster", "Hostname Verification Check failed"),
        ("foreign", "CERTIFICATE_VERIFY_FAILED: unable to get local issuer certificate"),
        ("expired", "certificate has expired"),
        ("without TLS", "WRONG_VERSION_NUMBER"),
    ],
)
async def test_a_client_does_not_talk_to_a_wrong_server_and_says_what_is_wrong(
    authority, who, words
):
    pems = {
        "of another cluster": authority.issue(cluster="red"),
        "foreign": Authority("other").issue(trusts=authority),
        "expired": authority.issue(days=-1),
        "without TLS": None,
    }[who]
    async with showing(pems) as server:
        with pytest.raises(FsError) as caught:
            await who_am_i(server, authority.issue("client"))
        assert caught.value.fault is Fault.NOT_LEADER
        assert server.address in caught.value.detail
        assert words in caught.value.detail


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


async def test_nodes_call_each_other_both_ways_with_certificates(authority):
    mine, its = authority.issue(name="n1"), authority.issue(name="n2")

    async def echo(body: bytes, call: Call) -> bytes:
        assert call.identity is not None
        return call.identity.name.encode() + body

    async with (
        open_server(ANYWHERE, CLUSTER, lambda: mine) as a,
        open_server(ANYWHERE, CLUSTER, lambda: its) as b,
        open_client(CLUSTER, lambda: mine) as from_a,
        open_client(CLUSTER, lambda: its) as from_b,
    ):
        a.register(ADMIN, "Echo", echo)
        b.register(ADMIN, "Echo", echo)
        body = b"x" * 1_000_000
        with trio.fail_after(10):
            assert await from_a.call(b.address, ADMIN, "Echo", body, deadline_s=9) == b"n1" + body
            assert await from_b.call(a.address, ADMIN, "Echo", body, deadline_s=9) == b"n2" + body


@pytest.mark.parametrize("whose", ["the client's", "the server's"])
async def test_an_expired_certificate_is_forgotten_when_there_is_a_new_one(authority, whose):
    expired, good = authority.issue(days=-1), authority.issue(name="good")
    mine, its = (expired, good) if whose == "the client's" else (good, expired)
    async with (
        open_server(ANYWHERE, CLUSTER, lambda: its) as server,
        open_client(CLUSTER, lambda: mine) as client,
    ):
        server.register(ADMIN, "Show", show)

        async def name() -> bytes:
            return await client.call(server.address, ADMIN, "Show", b"", deadline_s=5)

        with trio.fail_after(20):
            for _ in range(3):
                with pytest.raises(FsError) as caught:
                    await name()
                assert caught.value.fault is Fault.NOT_LEADER
            mine = its = good
            while True:  # a client waits a little before it tries an address again
                try:
                    assert b"good" in await name()
                    return
                except FsError as error:
                    assert error.fault is Fault.NOT_LEADER
                    await trio.sleep(0.01)
