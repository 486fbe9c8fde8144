"""An identity is good, or one sentence says what is wrong with it."""

import os
import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.name import _ASN1Type
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from mountfs.errors import Fault, FsError
from mountfs.tls import authority, pem
from mountfs.tls.authority import Kind, Pair
from mountfs.tls.identity import Identity, peer_of
from tests.tls.conftest import A, B, Cluster, now


def test_an_identity_says_who_it_is_and_until_when(ours: Cluster) -> None:
    identity = ours.identity(Kind.NODE, "n1")
    assert (identity.cluster, identity.kind, identity.name) == (A, Kind.NODE, "n1")
    assert identity.server_name == f"{A}.mountfs"
    assert timedelta(days=364) < identity.expires_at - now() < timedelta(days=366)


def test_it_ends_with_its_authority(ours: Cluster) -> None:
    end = ours.store.authority.certificate.not_valid_after_utc
    made = authority.issue(ours.store.authority, Kind.CLIENT, "c", now())
    own = ours.forged(made, A, "client", "c", stop=end + timedelta(days=1))
    directory = ours.directory(Kind.CLIENT, "c")
    pem.write(directory / "own.pem", pem.encode_pair(own), secret=True)
    assert Identity.load(directory).expires_at == end


def _missing_own(ours: Cluster, theirs: Cluster) -> Path:
    directory = ours.directory(Kind.NODE, "n1")
    (directory / "own.pem").unlink()
    return directory


def _missing_ca(ours: Cluster, theirs: Cluster) -> Path:
    directory = ours.directory(Kind.NODE, "n1")
    (directory / "ca.crt").unlink()
    return directory


def _no_directory(ours: Cluster, theirs: Cluster) -> Path:
    return ours.store.directory / "nowhere"


def _foreign(ours: Cluster, theirs: Cluster) -> Path:
    directory = ours.directory(Kind.NODE, "n1")
    (directory / "ca.crt").write_bytes((theirs.store.directory / "ca.crt").read_bytes())
    return directory


def _self_signed_by_a_namesake(ours: Cluster, theirs: Cluster) -> Path:
    """Another authority that gives itself our cluster's id: only the signature tells."""
    directory = ours.directory(Kind.NODE, "n1")
    namesake = authority.new_authority(A, now())
    own = authority.issue(namesake, Kind.NODE, "n1", now())
    pem.write(directory / "own.pem", pem.encode_pair(own), secret=True)
    return directory


def _trusts_another_too(ours: Cluster, theirs: Cluster) -> Path:
    directory = ours.directory(Kind.NODE, "n1")
    both = [(one.store.directory / "ca.crt").read_bytes() for one in (ours, theirs)]
    (directory / "ca.crt").write_bytes(b"".join(both))
    return directory


def _other_cluster(ours: Cluster, theirs: Cluster) -> Path:
    return theirs.directory(Kind.NODE, "n1")


def _other_cluster_signed_by_us(ours: Cluster, theirs: Cluster) -> Path:
    return ours.forged_directory(B, "node", "n1")


def _expired(ours: Cluster, theirs: Cluster) -> Path:
    return ours.directory(Kind.NODE, "n1", days_ago=30, lifetime=timedelta(days=1))


def _too_early(ours: Cluster, theirs: Cluster) -> Path:
    return ours.directory(Kind.NODE, "n1", days_ago=-30)


def _a_clients(ours: Cluster, theirs: Cluster) -> Path:
    return ours.directory(Kind.CLIENT, "c1")


def _the_authoritys(ours: Cluster, theirs: Cluster) -> Path:
    directory = ours.directory(Kind.NODE, "n1")
    own = (ours.store.directory / "authority.pem").read_bytes()
    pem.write(directory / "own.pem", own, secret=True)
    return directory


def _no_mountfs_certificate(ours: Cluster, theirs: Cluster) -> Path:
    return ours.forged_directory("Some Company", "node", "n1")


def _key_of_another(ours: Cluster, theirs: Cluster) -> Path:
    directory = ours.directory(Kind.NODE, "n1")
    other = authority.issue(ours.store.authority, Kind.NODE, "n1", now())
    own = authority.issue(ours.store.authority, Kind.NODE, "n1", now())
    mixed = Pair(own.certificate, other.key)
    pem.write(directory / "own.pem", pem.encode_pair(mixed), secret=True)
    return directory


def _no_key(ours: Cluster, theirs: Cluster) -> Path:
    directory = ours.directory(Kind.NODE, "n1")
    own = authority.issue(ours.store.authority, Kind.NODE, "n1", now())
    pem.write(directory / "own.pem", pem.encode_certificate(own.certificate), secret=True)
    return directory


def _key_with_password(ours: Cluster, theirs: Cluster) -> Path:
    directory = ours.directory(Kind.NODE, "n1")
    own = authority.issue(ours.store.authority, Kind.NODE, "n1", now())
    key = own.key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    text = pem.encode_certificate(own.certificate) + key
    pem.write(directory / "own.pem", text, secret=True)
    return directory


def _half_written(ours: Cluster, theirs: Cluster) -> Path:
    directory = ours.directory(Kind.NODE, "n1")
    text = (directory / "own.pem").read_bytes()
    os.truncate(directory / "own.pem", len(text) // 3)
    return directory


def _empty_ca(ours: Cluster, theirs: Cluster) -> Path:
    directory = ours.directory(Kind.NODE, "n1")
    os.truncate(directory / "ca.crt", 0)
    return directory


def _leaf_as_ca(ours: Cluster, theirs: Cluster) -> Path:
    directory = ours.directory(Kind.NODE, "n1")
    with open(directory / "ca.crt", "ab") as file:
        own = authority.issue(ours.store.authority, Kind.NODE, "n2", now())
        file.write(pem.encode_certificate(own.certificate))
    return directory


def _readable(ours: Cluster, theirs: Cluster) -> Path:
    directory = ours.directory(Kind.NODE, "n1")
    (directory / "own.pem").chmod(0o640)
    return directory


Prepare = Callable[[Cluster, Cluster], Path]
BAD: dict[Prepare, tuple[Fault, str]] = {
    _missing_own: (Fault.NOT_FOUND, "{}/own.pem is missing: .*mountfs pki issue"),
    _missing_ca: (Fault.NOT_FOUND, "{}/ca.crt is missing: .*mountfs pki issue"),
    _no_directory: (Fault.NOT_FOUND, "{}/own.pem is missing: .*mountfs pki issue"),
    _foreign: (Fault.DENIED, "{}/own.pem was not issued by an authority in {}/ca.crt"),
    _self_signed_by_a_namesake: (Fault.DENIED, "{}/own.pem was not issued by an authority in"),
    _trusts_another_too: (Fault.DENIED, f"{{}}/ca.crt trusts the authority of cluster {B}"),
    _other_cluster: (Fault.DENIED, f"{{}}/own.pem is for node n1 of cluster {B}, .*cluster {A}"),
    _other_cluster_signed_by_us: (Fault.DENIED, f"authority of cluster {A}, .* is of cluster {B}"),
    _expired: (Fault.DENIED, "{}/own.pem expired on 20.* UTC: mountfs pki renew DIR n1"),
    _too_early: (Fault.DENIED, "{}/own.pem is not valid before 20.* UTC.*clock.*right"),
    _a_clients: (Fault.DENIED, "the certificate of client c1.*a node's .*mountfs pki issue"),
    _the_authoritys: (Fault.DENIED, "{}/own.pem is the authority itself"),
    _no_mountfs_certificate: (Fault.INVALID, "{}/own.pem: it is not a certificate of mountfs"),
    _key_of_another: (Fault.INVALID, "key in {}/own.pem does not belong to the certificate"),
    _no_key: (Fault.INVALID, "{}/own.pem has no whole private key"),
    _key_with_password: (Fault.INVALID, "the private key in {}/own.pem has a password"),
    _half_written: (Fault.INVALID, "{}/own.pem has no whole certificate"),
    _empty_ca: (Fault.INVALID, "{}/ca.crt has no whole certificate"),
    _leaf_as_ca: (Fault.INVALID, "{}/ca.crt has the certificate of node n2.*remove"),
    _readable: (Fault.DENIED, "{}/own.pem .*mode 0640 .*: chmod 600 {}/own.pem"),
}


@pytest.mark.parametrize("prepare", BAD, ids=lambda prepare: prepare.__name__.strip("_"))
def test_what_is_wrong_is_one_sentence(ours: Cluster, theirs: Cluster, prepare: Prepare) -> None:
    fault, sentence = BAD[prepare]
    directory = prepare(ours, theirs)
    with pytest.raises(FsError) as caught:
        Identity.load(directory, cluster=A, kind=Kind.NODE)
    said = str(caught.value)
    assert re.search(sentence.replace("{}", re.escape(str(directory))), said), said
    assert caught.value.fault is fault
    assert "\n" not in said


def test_an_expired_authority_is_said_to_be_what_expired(ours: Cluster) -> None:
    directory = ours.directory(Kind.NODE, "n1")
    later = ours.store.authority.certificate.not_valid_after_utc
    with pytest.raises(FsError, match=r"the authority in .*ca.crt expired on .* --authority"):
        Identity.load(directory, now=later)


def test_a_file_of_another_user_is_said_to_be_that(
    ours: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = ours.directory(Kind.NODE, "n1")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(FsError, match=rf"own.pem cannot be read by user {os.geteuid()}: .*chown"):
        Identity.load(directory)


def test_both_authorities_are_trusted_while_one_replaces_the_other(ours: Cluster) -> None:
    old = ours.directory(Kind.NODE, "old")
    ours.store.renew_authority(now())
    new = ours.directory(Kind.NODE, "new")
    assert Identity.load(old).name == "old"
    assert Identity.load(new).name == "new"
    assert Identity.load(old).authorities_pem == Identity.load(new).authorities_pem


def test_no_key_is_shown(ours: Cluster) -> None:
    identity = ours.identity(Kind.NODE, "n1")
    secret = identity.key_pem.decode().splitlines()[1]
    for shown in (repr(identity), str(identity.__dict__ | {"key_pem": b""})):
        assert "PRIVATE" not in shown
        assert secret not in shown


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a good identity, which each example damages anew."""
    return Cluster(tmp_path_factory.mktemp("whole"), A).directory(Kind.NODE, "n1")


@given(data=st.data())
def test_a_damaged_file_is_a_sentence_without_a_piece_of_the_key(
    whole: Path, data: st.DataObject
) -> None:
    file = whole / data.draw(st.sampled_from(["own.pem", "ca.crt"]))
    before = file.read_bytes()
    at = data.draw(st.integers(0, len(before) - 1))
    damaged = data.draw(
        st.one_of(
            st.just(before[:at]),
            st.just(before[:at] + before[at + 1 :]),
            st.binary(min_size=1, max_size=3).map(lambda new: before[:at] + new + before[at + 1 :]),
        )
    )
    secret = (whole / "own.pem").read_text().split("-----BEGIN PRIVATE KEY-----\n")[1][:40]
    try:
        file.write_bytes(damaged)
        Identity.load(whole)
    except FsError as error:
        assert error.fault in (Fault.INVALID, Fault.DENIED)
        assert secret not in str(error)
        assert error.__cause__ is None
    finally:
        file.write_bytes(before)


# --- the other side


def test_a_peer_is_who_its_certificate_says(ours: Cluster) -> None:
    made = authority.issue(ours.store.authority, Kind.CLIENT, "alice", now()).certificate
    in_der = made.public_bytes(serialization.Encoding.DER)
    for shown in (in_der, pem.encode_certificate(made)):
        peer = peer_of(shown, A)
        assert (peer.cluster, peer.kind, peer.name) == (A, Kind.CLIENT, "alice")


def test_a_peer_of_another_cluster_is_refused(theirs: Cluster) -> None:
    made = authority.issue(theirs.store.authority, Kind.NODE, "n1", now()).certificate
    with pytest.raises(FsError, match=f"the other side is node n1 of cluster {B}.*cluster {A}"):
        peer_of(pem.encode_certificate(made), A)


def test_a_client_where_a_node_is_needed_is_refused(ours: Cluster) -> None:
    made = authority.issue(ours.store.authority, Kind.CLIENT, "alice", now()).certificate
    with pytest.raises(FsError, match="the other side is client alice, and a node is needed"):
        peer_of(pem.encode_certificate(made), A, Kind.NODE)


def test_an_authority_is_nobodys_peer(ours: Cluster) -> None:
    with pytest.raises(FsError, match="a node or client is needed"):
        peer_of(pem.encode_certificate(ours.store.authority.certificate), A)


@pytest.mark.parametrize("shown", [None, b""])
def test_a_peer_without_a_certificate_is_refused(shown: bytes | None) -> None:
    with pytest.raises(FsError, match="has shown no certificate"):
        peer_of(shown, A)


@given(st.binary())
def test_a_peer_that_shows_noise_is_refused(shown: bytes) -> None:
    with pytest.raises(FsError) as caught:
        peer_of(shown, A)
    assert caught.value.fault is Fault.DENIED


def test_a_peer_that_says_two_things_of_itself_is_refused(ours: Cluster) -> None:
    key = ours.store.authority.key
    said = [
        x509.NameAttribute(NameOID.ORGANIZATION_NAME, A),
        x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "client"),
        x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "node"),
        x509.NameAttribute(NameOID.COMMON_NAME, "n1"),
    ]
    name = x509.Name(said)
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, now(), now())
    with pytest.raises(FsError, match="it is not a certificate of mountfs"):
        peer_of(pem.encode_certificate(made.sign(key, hashes.SHA256())), A)


def test_a_peer_whose_subject_is_no_text_is_refused(ours: Cluster) -> None:
    key = ours.store.authority.key
    odd = x509.NameAttribute(NameOID.X500_UNIQUE_IDENTIFIER, b"\0", _ASN1Type.BitString)
    name = x509.Name([odd])
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, now(), now())
    shown = made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)
    unique_identifier, organization = b"\x55\x04\x2d", b"\x55\x04\x0a"
    with pytest.raises(FsError, match="it is not a certificate of mountfs"):
        peer_of(shown.replace(unique_identifier, organization), A)
