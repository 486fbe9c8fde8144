"""gRPC with an identity, as nodes use it: mutual, and following a renewal without a restart."""

from collections.abc import AsyncIterator

import pytest
import trio

from mountfs.cli.trust import Trust
from mountfs.errors import Fault, FsError
from mountfs.rpc.client import open_client
from mountfs.rpc.identity import Credentials, Pems
from mountfs.rpc.server import Call, Server, open_server
from mountfs.tls.authority import Kind
from tests.tls.conftest import Cluster, now

import grpc  # isort: skip  after mountfs.rpc, which keeps it from writing to stderr

SERVICE, METHOD = "test.Test", "Who"


async def who(body: bytes, call: Call) -> bytes:
    """Who has called, as the certificate of the caller says."""
    assert call.identity is not None
    return " ".join(call.identity).encode()


@pytest.fixture
def trust(ours: Cluster) -> Trust:
    return Trust(ours.directory(Kind.NODE, "n1"))


@pytest.fixture
async def server(ours: Cluster, trust: Trust) -> AsyncIterator[Server]:
    async with open_server("127.0.0.1:0", ours.id, trust.credentials) as server:
        server.register(SERVICE, METHOD, who)
        yield server


async def ask(server: Server, cluster: str, credentials: Credentials | None) -> str:
    async with open_client(cluster, credentials) as client:
        said = await client.call(server.address, SERVICE, METHOD, b"", deadline_s=5)
    return said.decode()


async def test_a_client_gets_through_and_is_known(server: Server, ours: Cluster) -> None:
    alice = Trust(ours.directory(Kind.CLIENT, "alice"), kind=None)
    assert await ask(server, ours.id, alice.credentials) == f"client {ours.id} alice"


async def test_without_a_certificate_nobody_gets_through(server: Server, ours: Cluster) -> None:
    alice = ours.identity(Kind.CLIENT, "alice")

    def ask_without() -> grpc.StatusCode:
        credentials = grpc.ssl_channel_credentials(alice.authorities_pem)
        options = [("grpc.ssl_target_name_override", alice.server_name)]
        with grpc.secure_channel(server.address, credentials, options) as channel:
            try:
                channel.unary_unary(f"/{SERVICE}/{METHOD}")(b"", timeout=5)
            except grpc.RpcError as error:
                return error.code()
        return grpc.StatusCode.OK

    assert await trio.to_thread.run_sync(ask_without) is grpc.StatusCode.UNAVAILABLE


async def test_a_certificate_of_another_authority_does_not_get_through(
    server: Server, ours: Cluster, theirs: Cluster
) -> None:
    mallory = theirs.identity(Kind.NODE, "n1")
    trusts = ours.identity(Kind.CLIENT, "alice").authorities_pem
    pems = Pems(trusts, mallory.certificate_pem, mallory.key_pem)
    with pytest.raises(FsError) as caught:
        await ask(server, ours.id, lambda: pems)
    assert caught.value.fault is Fault.NOT_LEADER


async def test_it_follows_a_new_authority_without_a_restart(
    server: Server, ours: Cluster, trust: Trust
) -> None:
    """Certificates of the new authority get through as soon as the server's files know it."""
    ours.store.renew_authority(now())
    bob = Trust(ours.directory(Kind.CLIENT, "bob"), kind=None)
    with pytest.raises(FsError):
        await ask(server, ours.id, bob.credentials)
    ours.store.renew(ours.store.find("n1", now()), now())
    assert trust.identities is not None
    trust.identities._looked = 0.0  # as if a second had passed
    assert await ask(server, ours.id, bob.credentials) == f"client {ours.id} bob"
