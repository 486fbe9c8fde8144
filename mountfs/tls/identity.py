"""Who this process is to the others of its cluster, read from a directory and checked.

    ca.crt    the authorities whose certificates are accepted (PEM, one or more)
    own.pem   our certificate and its private key (PEM, mode 0600)

An `Identity` that exists is one that works: whatever is wrong with the files is said when they are
loaded, in one sentence that names the file and the next step, and not by a handshake later.

`ca.crt` is read last.  Writers put it in place first, and only ever add to it before they use what
is new in it; so a reader that comes between finds too much trust, never too little.
"""

import os
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Protocol

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from mountfs.errors import Fault, FsError
from mountfs.tls import pem
from mountfs.tls.authority import Kind, Subject, check_cluster, moment, server_name, subject_of


@dataclass(frozen=True, eq=False)
class Identity:
    """A certificate with its key, and whom to trust.  Never changes; `Identities` does."""

    directory: Path
    subject: Subject
    valid_from: datetime
    expires_at: datetime
    """When the certificate ends, or before it the authority that has signed it."""
    authorities_pem: bytes = field(repr=False)
    certificate_pem: bytes = field(repr=False)
    key_pem: bytes = field(repr=False)
    """For grpcio, which wants it so.  Never to be logged."""
    _server: ssl.SSLContext = field(repr=False)
    _client: ssl.SSLContext = field(repr=False)

    @classmethod
    def load(
        cls,
        directory: Path,
        *,
        cluster: str | None = None,
        kind: Kind | None = None,
        now: datetime | None = None,
    ) -> "Identity":
        """Read and check the files.  `cluster`, `kind`: what it must be; None: whatever it is.

        Raises NOT_FOUND: a file is missing; INVALID: it is not what it should be; DENIED: others
        would not accept it, or others can read the key.
        """
        own, trusted = directory / pem.OWN_FILE, directory / pem.CA_FILE
        text = _read(own, secret=True)
        ours = pem.own_in(text, own)
        certificate, key_pem = ours.certificate, ours.key_pem
        authorities = pem.certificates_in(_read(trusted, secret=False), trusted)
        issuer = _issuer_of(certificate, authorities)
        if issuer is None:
            raise FsError(
                Fault.DENIED,
                f"{own} was not issued by an authority in {trusted}: the two are of different "
                "clusters, or one of them was not renewed; copy both from one place",
            )
        subject = _subject_in(own, certificate)
        _check_authorities(authorities, subject.cluster, trusted)
        _check_subject(subject, own, cluster, kind)
        now = now or datetime.now(UTC)
        _check_period(
            issuer, now, f"the authority in {trusted}", "mountfs pki renew DIR --authority"
        )
        _check_period(certificate, now, str(own), f"mountfs pki renew DIR {subject.name}")
        certificate_pem = pem.encode_certificate(certificate)
        authorities_pem = b"".join(map(pem.encode_certificate, authorities))
        try:
            server, client = _contexts(certificate_pem + key_pem, authorities_pem)
        except ssl.SSLError as error:
            raise FsError(Fault.INVALID, f"TLS does not take {own}: {error.reason}") from None
        return cls(
            directory,
            subject,
            certificate.not_valid_before_utc,
            min(certificate.not_valid_after_utc, issuer.not_valid_after_utc),
            authorities_pem,
            certificate_pem,
            key_pem,
            server,
            client,
        )

    @property
    def cluster(self) -> str:
        return self.subject.cluster

    @property
    def kind(self) -> Kind:
        return self.subject.kind

    @property
    def name(self) -> str:
        return self.subject.name

    @property
    def server_name(self) -> str:
        """What to give as `server_hostname` to TLS, whatever the address is; for gRPC, as
        `grpc.ssl_target_name_override`.
        """
        return server_name(self.cluster)

    def server_context(self) -> ssl.SSLContext:
        """For who listens.  Nobody without a certificate of the cluster gets through."""
        assert self.kind is Kind.NODE, self.subject
        return self._server

    def client_context(self) -> ssl.SSLContext:
        """For who connects.  To be used with `server_name`."""
        return self._client

    def peer_of(self, connection: "Connection | bytes | None", kind: Kind | None = None) -> Subject:
        """Who is at the other end; see `peer_of`."""
        return peer_of(connection, self.cluster, kind)


class Connection(Protocol):
    """What TLS connections have in common: `ssl.SSLSocket`, `ssl.SSLObject`, `trio.SSLStream`."""

    def getpeercert(self, binary_form: Literal[True]) -> bytes | None: ...


def peer_of(
    connection: Connection | bytes | None, cluster: str, kind: Kind | None = None
) -> Subject:
    """Who is at the other end of a connection whose handshake is done.  `kind`: what it must be.

    `connection`: TLS itself, or the certificate (DER, or PEM, which is what gRPC gives), or None
    if there is none.  That an
    authority of ours has signed it is what the handshake has checked; this looks at what it says.
    Raises DENIED.
    """
    if connection is not None and not isinstance(connection, bytes):
        connection = connection.getpeercert(True)
    shown = connection
    if not shown:
        raise FsError(Fault.DENIED, "the other side has shown no certificate")
    try:
        parse = (
            x509.load_pem_x509_certificate
            if shown.startswith(b"-----BEGIN")
            else x509.load_der_x509_certificate
        )
        subject = subject_of(parse(shown))
    except (ValueError, x509.InvalidVersion):
        raise FsError(Fault.DENIED, "the certificate of the other side cannot be read") from None
    except FsError as error:
        raise FsError(Fault.DENIED, f"the certificate of the other side: {error}") from None
    if subject.cluster != cluster:
        raise FsError(
            Fault.DENIED,
            f"the other side is {subject}, and this is cluster {cluster}: check the address, "
            "and which identity each side was given",
        )
    if subject.kind is Kind.AUTHORITY or (kind is not None and subject.kind is not kind):
        wanted = f"a {kind.value}" if kind is not None else "a node or client"
        raise FsError(
            Fault.DENIED,
            f"the other side is {subject.kind.value} {subject.name}, and {wanted} is needed here",
        )
    return subject


def _read(file: Path, *, secret: bool) -> bytes:
    try:
        return pem.read(file, secret=secret)
    except FsError as error:
        if error.fault is not Fault.NOT_FOUND:
            raise
        raise FsError(
            Fault.NOT_FOUND,
            f"{error}: copy it here from what this made: mountfs pki issue DIR node|client NAME",
        ) from None


def _issuer_of(
    certificate: x509.Certificate, authorities: Sequence[x509.Certificate]
) -> x509.Certificate | None:
    for authority in authorities:
        try:
            certificate.verify_directly_issued_by(authority)
        except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
            continue
        return authority
    return None


def _subject_in(file: Path, certificate: x509.Certificate) -> Subject:
    try:
        return subject_of(certificate)
    except FsError as error:
        raise FsError(error.fault, f"{file}: {error}") from None


def _check_authorities(authorities: Sequence[x509.Certificate], cluster: str, file: Path) -> None:
    """Whoever is trusted could issue anything: all of them must be ours."""
    for authority in authorities:
        subject = _subject_in(file, authority)
        if subject.kind is not Kind.AUTHORITY:
            raise FsError(
                Fault.INVALID, f"{file} has the certificate of {subject} in it: remove that"
            )
        if subject.cluster != cluster:
            raise FsError(
                Fault.DENIED,
                f"{file} trusts the authority of cluster {subject.cluster}, and this certificate "
                f"is of cluster {cluster}: copy {pem.CA_FILE} again from where it was issued",
            )


def _check_subject(subject: Subject, file: Path, cluster: str | None, kind: Kind | None) -> None:
    if cluster is not None and subject.cluster != check_cluster(cluster):
        raise FsError(
            Fault.DENIED,
            f"{file} is for {subject}, and this is cluster {cluster}: "
            "use a certificate that its own authority has issued",
        )
    if subject.kind is Kind.AUTHORITY:
        raise FsError(
            Fault.DENIED,
            f"{file} is the authority itself, whose key should stay where it is: "
            "mountfs pki issue DIR node|client NAME",
        )
    if kind is not None and subject.kind is not kind:
        raise FsError(
            Fault.DENIED,
            f"{file} is the certificate of {subject.kind.value} {subject.name}, and a "
            f"{kind.value}'s is needed here: mountfs pki issue DIR {kind.value} NAME",
        )


def _check_period(certificate: x509.Certificate, now: datetime, what: str, cure: str) -> None:
    if now < certificate.not_valid_before_utc:
        raise FsError(
            Fault.DENIED,
            f"{what} is not valid before {moment(certificate.not_valid_before_utc)}, and the clock "
            f"of this machine says {moment(now)}: is it right?",
        )
    if now >= certificate.not_valid_after_utc:
        raise FsError(
            Fault.DENIED,
            f"{what} expired on {moment(certificate.not_valid_after_utc)}: {cure}, "
            "and copy the result here",
        )


def _contexts(own: bytes, authorities: bytes) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # A resumed session would skip the certificates, which may have ended meanwhile.
    server.num_tickets = 0
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    assert client.check_hostname
    for context in (server, client):
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        context.load_verify_locations(cadata=authorities.decode("ascii"))
        _load_own(context, own)
    return server, client


def _load_own(context: ssl.SSLContext, own: bytes) -> None:
    """Python's ssl takes a key from a file only.  Not from the one that was read, which may be
    another by now: from a file that has no name.
    """
    fd = os.memfd_create("mountfs-tls", os.MFD_CLOEXEC)
    try:
        os.write(fd, own)
        context.load_cert_chain(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
