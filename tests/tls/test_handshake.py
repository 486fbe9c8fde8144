"""Real handshakes: who gets through, who does not, and what each side is told.

In both directions: a bad certificate on the side that listens, and on the side that connects.
"""

import os
import ssl
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from mountfs.errors import Fault, FsError
from mountfs.tls import authority, pem
from mountfs.tls.authority import Kind
from mountfs.tls.identity import Identity, peer_of
from mountfs.tls.refusals import refused
from tests.tls.conftest import A, B, Cluster, Shake, now


def raw(context: ssl.SSLContext, own: Path | None, trusted: Path) -> ssl.SSLContext:
    """What a program without our checks would show."""
    context.load_verify_locations(trusted)
    if own is not None:
        context.load_cert_chain(own)
    return context


def raw_client(own: Path | None, trusted: Path) -> ssl.SSLContext:
    return raw(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), own, trusted)


def raw_server(own: Path, trusted: Path) -> ssl.SSLContext:
    context = raw(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), own, trusted)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


@pytest.mark.parametrize("kind", [Kind.NODE, Kind.CLIENT])
def test_those_of_one_cluster_get_through_and_know_each_other(
    ours: Cluster, shake: Shake, kind: Kind
) -> None:
    node, other = ours.identity(Kind.NODE, "n1"), ours.identity(kind, "other")
    both = shake(node.server_context(), other.client_context(), other.server_name)
    assert (both.server_error, both.client_error) == (None, None)
    assert both.server.version() == "TLSv1.3"
    assert (node.peer_of(both.server).kind, node.peer_of(both.server).name) == (kind, "other")
    assert (other.peer_of(both.client, Kind.NODE).name) == "n1"


def test_a_client_without_a_certificate_is_told_that_one_is_needed(
    ours: Cluster, shake: Shake
) -> None:
    node = ours.identity(Kind.NODE, "n1")
    client = raw_client(None, ours.store.directory / "ca.crt")
    both = shake(node.server_context(), client, node.server_name)
    assert _said(both.server_error) == "no TLS with them: it has shown no certificate"
    assert "it wants a certificate, and we have shown none" in _said(both.client_error)


def test_a_client_of_another_authority_is_refused(
    ours: Cluster, theirs: Cluster, shake: Shake
) -> None:
    node = ours.identity(Kind.NODE, "n1")
    own = theirs.directory(Kind.CLIENT, "c1") / "own.pem"
    client = raw_client(own, ours.store.directory / "ca.crt")
    both = shake(node.server_context(), client, node.server_name)
    assert "was not issued by an authority of ours: it is of another" in _said(both.server_error)
    assert "does not know the authority of our certificate" in _said(both.client_error)


def test_a_client_of_an_authority_that_took_our_id_is_refused(
    ours: Cluster, tmp_path: Path, shake: Shake
) -> None:
    node = ours.identity(Kind.NODE, "n1")
    made = authority.issue(authority.new_authority(A, now()), Kind.CLIENT, "c1", now())
    pem.write(tmp_path / "own.pem", pem.encode_pair(made), secret=True)
    client = raw_client(tmp_path / "own.pem", ours.store.directory / "ca.crt")
    both = shake(node.server_context(), client, node.server_name)
    assert both.server_error is not None
    assert both.client_error is not None


def test_a_server_of_another_cluster_is_refused(
    ours: Cluster, theirs: Cluster, shake: Shake
) -> None:
    server = theirs.identity(Kind.NODE, "n1")
    client = ours.identity(Kind.CLIENT, "c1")
    both = shake(server.server_context(), client.client_context(), client.server_name)
    assert "was not issued by an authority of ours: it is of another" in _said(both.client_error)
    assert "does not know the authority of our certificate" in _said(both.server_error)


def test_a_server_that_is_not_a_node_of_the_cluster_by_name_is_refused(
    ours: Cluster, theirs: Cluster, shake: Shake
) -> None:
    node, client = ours.identity(Kind.NODE, "n1"), ours.identity(Kind.CLIENT, "c1")
    both = shake(node.server_context(), client.client_context(), f"{B}.mountfs")
    assert "is not that of a node of this cluster" in _said(both.client_error)


def test_another_cluster_under_the_same_authority_is_refused_once_it_is_known(
    ours: Cluster, shake: Shake
) -> None:
    """What TLS lets through is looked at again: by either side."""
    stray = ours.forged_directory(B, "node", "n1") / "own.pem"
    trusted = ours.store.directory / "ca.crt"
    node = ours.identity(Kind.NODE, "n1")

    both = shake(node.server_context(), raw_client(stray, trusted), node.server_name)
    assert both.server_error is None
    with pytest.raises(FsError, match=f"is node n1 of cluster {B}, and this is cluster {A}"):
        node.peer_of(both.server)

    both = shake(raw_server(stray, trusted), node.client_context(), node.server_name)
    assert both.client_error is None
    with pytest.raises(FsError, match=f"is node n1 of cluster {B}, and this is cluster {A}"):
        node.peer_of(both.client)


def test_a_client_whose_certificate_has_expired_is_told(ours: Cluster, shake: Shake) -> None:
    node, client = ours.identity(Kind.NODE, "n1"), ours.expired(Kind.CLIENT, "c1")
    both = shake(node.server_context(), client.client_context(), client.server_name)
    assert "its certificate has expired: renew it" in _said(both.server_error)
    assert "it says that our certificate has expired: renew" in _said(both.client_error)


def test_a_server_whose_certificate_has_expired_is_told(ours: Cluster, shake: Shake) -> None:
    node, client = ours.expired(Kind.NODE, "n1"), ours.identity(Kind.CLIENT, "c1")
    both = shake(node.server_context(), client.client_context(), client.server_name)
    assert "its certificate has expired: renew it" in _said(both.client_error)
    assert "it says that our certificate has expired: renew" in _said(both.server_error)


def test_a_certificate_that_is_not_valid_yet_is_refused(ours: Cluster, shake: Shake) -> None:
    node = ours.identity(Kind.NODE, "n1")
    early = ours.directory(Kind.CLIENT, "c1", days_ago=-30) / "own.pem"
    client = raw_client(early, ours.store.directory / "ca.crt")
    both = shake(node.server_context(), client, node.server_name)
    assert "its certificate is not valid yet" in _said(both.server_error)


def test_a_client_cannot_play_a_server(ours: Cluster, shake: Shake) -> None:
    own = ours.directory(Kind.CLIENT, "c1") / "own.pem"
    server = raw_server(own, ours.store.directory / "ca.crt")
    victim = ours.identity(Kind.CLIENT, "c2")
    both = shake(server, victim.client_context(), victim.server_name)
    assert both.client_error is not None
    assert "the certificate of a client, and only a node may serve" in _said(both.client_error)
    with pytest.raises(AssertionError):
        Identity.load(own.parent).server_context()


def test_an_older_tls_is_refused(ours: Cluster, shake: Shake) -> None:
    node = ours.identity(Kind.NODE, "n1")
    client = raw_client(node.directory / "own.pem", node.directory / "ca.crt")
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    both = shake(node.server_context(), client, node.server_name)
    assert "it speaks an older TLS only; 1.3 is needed" in _said(both.server_error)
    assert "1.3 is needed" in _said(both.client_error)


def test_a_side_that_speaks_no_tls_is_said_to(ours: Cluster) -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ours.identity(Kind.NODE, "n1").server_context()
    server = context.wrap_bio(incoming, outgoing, server_side=True)
    incoming.write(b"\x00\x00\x00\x20 a frame of the plain protocol ....")
    with pytest.raises(ssl.SSLError) as caught:
        server.do_handshake()
    assert "it does not speak TLS" in _said(caught.value)


def test_old_and_new_authority_get_through_to_each_other(ours: Cluster, shake: Shake) -> None:
    old = ours.directory(Kind.NODE, "old")
    ours.store.renew_authority(now())
    new = ours.directory(Kind.NODE, "new")
    for one, other in ((old, new), (new, old)):
        server, client = Identity.load(one), Identity.load(other)
        both = shake(server.server_context(), client.client_context(), client.server_name)
        assert (both.server_error, both.client_error) == (None, None)


def test_no_session_is_resumed_without_looking_at_certificates(ours: Cluster, shake: Shake) -> None:
    node = ours.identity(Kind.NODE, "n1")
    both = shake(node.server_context(), node.client_context(), node.server_name)
    assert both.client.session is None or not both.client.session.has_ticket


def test_the_key_goes_to_openssl_without_a_file_that_stays_open(ours: Cluster) -> None:
    directory = ours.directory(Kind.NODE, "n1")
    before = len(os.listdir("/proc/self/fd"))
    Identity.load(directory)
    assert len(os.listdir("/proc/self/fd")) == before


async def test_over_trio_both_sides_know_each_other(ours: Cluster) -> None:
    node, client = ours.identity(Kind.NODE, "n1"), ours.identity(Kind.CLIENT, "c1")
    near, far = trio.testing.memory_stream_pair()
    server = trio.SSLStream(near, node.server_context(), server_side=True)
    caller = trio.SSLStream(far, client.client_context(), server_hostname=client.server_name)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.do_handshake)
        nursery.start_soon(caller.do_handshake)
    assert peer_of(server.getpeercert(True), A).name == "c1"
    assert peer_of(caller.getpeercert(True), A, Kind.NODE).name == "n1"


async def test_over_trio_a_refusal_is_a_sentence_too(ours: Cluster, theirs: Cluster) -> None:
    node, client = ours.identity(Kind.NODE, "n1"), theirs.identity(Kind.CLIENT, "c1")
    near, far = trio.testing.memory_stream_pair()
    server = trio.SSLStream(near, node.server_context(), server_side=True)
    caller = trio.SSLStream(far, client.client_context(), server_hostname=client.server_name)
    said = {}

    async def shake_hands(name: str, stream: "trio.SSLStream[trio.StapledStream]") -> None:
        try:
            await stream.do_handshake()
        except trio.BrokenResourceError as error:
            said[name] = refused(error, name)
            await trio.aclose_forcefully(stream)  # what the other side sees of it, with Trio

    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(shake_hands, "10.0.0.1", caller))
        nursery.start_soon(partial(shake_hands, "a caller", server))
    assert "no TLS with 10.0.0.1: its certificate was not issued" in str(said["10.0.0.1"])
    assert "it has ended the connection without a word" in str(said["a caller"])
    assert {error.fault for error in said.values()} == {Fault.DENIED}


def test_what_is_no_error_of_tls_is_passed_on() -> None:
    assert str(refused(ConnectionResetError("reset"), "n1")) == "no TLS with n1: reset"


def _said(error: ssl.SSLError | None) -> str:
    assert error is not None, "got through"
    said = str(refused(error, "them"))
    assert "TLS says" not in said, error
    return said
