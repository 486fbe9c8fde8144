"""Clusters with certificates, and TLS connections without a network."""

import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import NameOID

from mountfs.tls import authority, pem
from mountfs.tls.authority import LEAF_LIFETIME, Kind, Pair
from mountfs.tls.identity import Identity
from mountfs.tls.store import Store


def now() -> datetime:
    return datetime.now(UTC)


class Cluster:
    """An authority and what it has issued.  It is a year old, so that things can have expired."""

    def __init__(self, directory: Path, cluster: str) -> None:
        self.id = cluster
        self.store = Store.create(directory / cluster[:4], cluster, now() - timedelta(days=365))

    def directory(
        self, kind: Kind, name: str, days_ago: int = 0, lifetime: timedelta = LEAF_LIFETIME
    ) -> Path:
        when = now() - timedelta(days=days_ago)
        return self.store.issue(kind, name, when, lifetime=lifetime).directory

    def identity(self, kind: Kind, name: str) -> Identity:
        return Identity.load(self.directory(kind, name))

    def expired(self, kind: Kind, name: str) -> Identity:
        """It was good when it was loaded."""
        made = self.directory(kind, name, days_ago=30, lifetime=timedelta(days=1))
        return Identity.load(made, now=now() - timedelta(days=30))

    def forged(
        self, like: Pair, cluster: str, kind: str, name: str, stop: datetime | None = None
    ) -> Pair:
        """Signed by this authority, with a subject or an end that it would not sign."""
        certificate = like.certificate
        said = (
            (NameOID.ORGANIZATION_NAME, cluster),
            (NameOID.ORGANIZATIONAL_UNIT_NAME, kind),
            (NameOID.COMMON_NAME, name),
        )
        builder = x509.CertificateBuilder(
            issuer_name=certificate.issuer,
            subject_name=x509.Name([x509.NameAttribute(oid, value) for oid, value in said]),
            public_key=certificate.public_key(),  # type: ignore[arg-type]
            serial_number=certificate.serial_number,
            not_valid_before=certificate.not_valid_before_utc,
            not_valid_after=stop or certificate.not_valid_after_utc,
            extensions=list(certificate.extensions),
        )
        return Pair(builder.sign(self.store.authority.key, hashes.SHA256()), like.key)

    def forged_directory(self, cluster: str, kind: str, name: str) -> Path:
        like = authority.issue(self.store.authority, Kind.NODE, "like", now())
        directory = self.store.directory / "forged" / cluster / kind / name
        directory.mkdir(parents=True)
        pem.write(
            directory / "own.pem",
            pem.encode_pair(self.forged(like, cluster, kind, name)),
            secret=True,
        )
        pem.write(
            directory / "ca.crt", (self.store.directory / "ca.crt").read_bytes(), secret=False
        )
        return directory


A = "aaaa" + 28 * "0"
B = "bbbb" + 28 * "0"


@pytest.fixture
def ours(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path, A)


@pytest.fixture
def theirs(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path, B)


@dataclass
class Shaken:
    """A connection after both sides have said something."""

    server: ssl.SSLObject
    client: ssl.SSLObject
    server_error: ssl.SSLError | None = None
    client_error: ssl.SSLError | None = None


Shake = Callable[[ssl.SSLContext, ssl.SSLContext, str], Shaken]


@pytest.fixture
def shake() -> Shake:
    """Connect two sides, and have each send the other a byte."""

    def connect(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> Shaken:
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        both = Shaken(
            server.wrap_bio(to_server, to_client, server_side=True),
            client.wrap_bio(to_client, to_server, server_hostname=name),
        )
        for act in (
            ssl.SSLObject.do_handshake,
            lambda side: side.write(b"x"),
            lambda side: side.read(1),
        ):
            for _ in range(3):
                for which in ("client", "server"):
                    if getattr(both, f"{which}_error") is None:
                        try:
                            with suppress(ssl.SSLWantReadError):
                                act(getattr(both, which))
                        except ssl.SSLError as error:
                            setattr(both, f"{which}_error", error)
        return both

    return connect
