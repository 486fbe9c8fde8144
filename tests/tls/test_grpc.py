"""gRPC with an identity: mutual, and following a renewal without a restart."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from mountfs.tls.authority import Kind
from mountfs.tls.identity import Identity, peer_of
from mountfs.tls.reload import Identities
from tests.tls.conftest import Cluster, now

grpc = pytest.importorskip("grpc")
NAME = "/test.Test/Who"


class Server:
    """Answers with who has called, as the certificate of the caller says."""

    def __init__(self, identities: Identities) -> None:
        def configuration(identity: Identity) -> Any:
            pairs = [(identity.key_pem, identity.certificate_pem)]
            return grpc.ssl_server_certificate_configuration(pairs, identity.authorities_pem)

        credentials = grpc.dynamic_ssl_server_credentials(
            configuration(identities.current()),
            identities.fetcher(configuration),
            require_client_authentication=True,
        )

        def who(request: bytes, context: Any) -> bytes:
            shown = context.auth_context()["x509_pem_cert"][0]
            return str(peer_of(shown, identities.current().cluster)).encode()

        handler = grpc.method_handlers_generic_handler(
            "test.Test", {"Who": grpc.unary_unary_rpc_method_handler(who)}
        )
        self.server = grpc.server(ThreadPoolExecutor(2))
        self.server.add_generic_rpc_handlers((handler,))
        self.port = self.server.add_secure_port("127.0.0.1:0", credentials)
        self.server.start()


@pytest.fixture
def identities(ours: Cluster) -> Identities:
    return Identities(ours.directory(Kind.NODE, "n1"), kind=Kind.NODE)


@pytest.fixture
def server(identities: Identities) -> Iterator[Server]:
    made = Server(identities)
    yield made
    made.server.stop(None).wait()


def ask(
    server: Server, key: bytes | None, certificate: bytes | None, trust: bytes, name: str
) -> str:
    credentials = grpc.ssl_channel_credentials(trust, key, certificate)
    options = [("grpc.ssl_target_name_override", name), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.secure_channel(f"127.0.0.1:{server.port}", credentials, options) as channel:
        said: bytes = channel.unary_unary(NAME)(b"", timeout=5)
        return said.decode()


def call(server: Server, identity: Identity) -> str:
    pem = identity.key_pem, identity.certificate_pem, identity.authorities_pem
    return ask(server, *pem, identity.server_name)


def test_a_client_gets_through_and_is_known(server: Server, ours: Cluster) -> None:
    said = call(server, ours.identity(Kind.CLIENT, "alice"))
    assert said == f"client alice of cluster {ours.id}"


def test_without_a_certificate_nobody_gets_through(server: Server, ours: Cluster) -> None:
    alice = ours.identity(Kind.CLIENT, "alice")
    with pytest.raises(grpc.RpcError) as caught:
        ask(server, None, None, alice.authorities_pem, alice.server_name)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_certificate_of_another_authority_does_not_get_through(
    server: Server, ours: Cluster, theirs: Cluster
) -> None:
    mallory = theirs.identity(Kind.NODE, "n1")
    trust = ours.identity(Kind.CLIENT, "alice")
    with pytest.raises(grpc.RpcError) as caught:
        ask(
            server,
            mallory.key_pem,
            mallory.certificate_pem,
            trust.authorities_pem,
            trust.server_name,
        )
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_it_follows_a_new_authority_without_a_restart(
    server: Server, ours: Cluster, identities: Identities
) -> None:
    """Certificates of the new authority get through as soon as the server's files know it."""
    ours.store.renew_authority(now())
    ours.store.renew(ours.store.find("n1", now()), now())
    identities._looked = 0.0  # as if a second had passed
    bob = ours.identity(Kind.CLIENT, "bob")
    assert call(server, bob) == f"client bob of cluster {ours.id}"
