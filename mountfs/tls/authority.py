"""Certificates, made and read: what each of them says, and for how long.

Plain functions without a clock and without files.  Everything that a certificate means to mountfs
is in its `Subject`; the rest is what TLS asks for.
"""

import enum
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mountfs.errors import Fault, FsError

AUTHORITY_LIFETIME: Final = timedelta(days=3650)
LEAF_LIFETIME: Final = timedelta(days=365)
BACKDATED: Final = timedelta(hours=1)
"""Certificates begin this long before they are made: clocks of other machines may be behind."""
NAME_PATTERN: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"  # 64: what X.509 allows a common name
SERVER_DOMAIN: Final = "mountfs"


class Kind(enum.Enum):
    """What a certificate is for (OU)."""

    AUTHORITY = "authority"
    NODE = "node"
    CLIENT = "client"


@dataclass(frozen=True)
class Subject:
    """What a certificate says about its holder."""

    cluster: str
    """32 hex digits."""
    kind: Kind
    name: str

    def __str__(self) -> str:
        return f"{self.kind.value} {self.name} of cluster {self.cluster}"


@dataclass(frozen=True)
class Pair:
    """A certificate and the private key that belongs to it."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)


def new_authority(cluster: str, now: datetime) -> Pair:
    """The authority of a cluster: its certificate is signed by its own key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = Subject(check_cluster(cluster), Kind.AUTHORITY, "mountfs")
    name = _as_name(subject)
    builder = (
        _begun(name, name, key, now - BACKDATED, now + AUTHORITY_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
    )
    return Pair(builder.sign(key, hashes.SHA256()), key)


def issue(
    authority: Pair,
    kind: Kind,
    name: str,
    now: datetime,
    *,
    hosts: Sequence[str] = (),
    lifetime: timedelta = LEAF_LIFETIME,
) -> Pair:
    """A new certificate with a new key.  It ends with its authority's at the latest.

    `hosts`: names and addresses of a node, for programs that check those.  Ours do not: they check
    `server_name`.
    """
    assert kind is not Kind.AUTHORITY
    assert kind is Kind.NODE or not hosts, "nobody connects to a client"
    above = authority.certificate
    if now >= above.not_valid_after_utc:
        raise FsError(
            Fault.DENIED,
            f"the authority expired on {moment(above.not_valid_after_utc)}: nothing that it issues "
            "would be accepted; make a new one: mountfs pki renew DIR --authority",
        )
    subject = Subject(subject_of(above).cluster, kind, check_name(name))
    key = ec.generate_private_key(ec.SECP256R1())
    stop = min(now + lifetime, above.not_valid_after_utc)
    usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
    builder = _begun(_as_name(subject), above.subject, key, now - BACKDATED, stop)
    if kind is Kind.NODE:
        usages.insert(0, ExtendedKeyUsageOID.SERVER_AUTH)
        names = [x509.DNSName(server_name(subject.cluster)), *map(_as_general_name, hosts)]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    builder = (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(issuer_key, critical=False)
    )
    return Pair(builder.sign(authority.key, hashes.SHA256()), key)


def renewed(
    authority: Pair, old: x509.Certificate, now: datetime, lifetime: timedelta | None = None
) -> Pair:
    """A certificate that says what `old` says, with a new key, for as long as `old` had."""
    subject = subject_of(old)
    if lifetime is None:
        lifetime = old.not_valid_after_utc - old.not_valid_before_utc - BACKDATED
    hosts = hosts_of(old)
    return issue(authority, subject.kind, subject.name, now, hosts=hosts, lifetime=lifetime)


def server_name(cluster: str) -> str:
    """What clients check instead of a host name: a name that only nodes of this cluster have."""
    return f"{cluster}.{SERVER_DOMAIN}"


def subject_of(certificate: x509.Certificate) -> Subject:
    """Who it is about.  Raises INVALID: it was not made by mountfs."""
    try:
        parts = list(certificate.subject)
        said = {one.oid: str(one.value) for one in parts}
        if len(parts) != len(said):
            raise ValueError("who is two things is none of them")
        cluster = check_cluster(said[NameOID.ORGANIZATION_NAME])
        kind = Kind(said[NameOID.ORGANIZATIONAL_UNIT_NAME])
        return Subject(cluster, kind, check_name(said[NameOID.COMMON_NAME]))
    except (KeyError, TypeError, ValueError, FsError):  # TypeError: a value that is no text
        raise FsError(
            Fault.INVALID, "it is not a certificate of mountfs: its subject names no cluster"
        ) from None


def kind_of(certificate: x509.Certificate) -> Kind | None:
    """None: it was not made by mountfs."""
    try:
        return subject_of(certificate).kind
    except FsError:
        return None


def hosts_of(certificate: x509.Certificate) -> list[str]:
    """The names and addresses of a node, without the fixed one."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    fixed = server_name(subject_of(certificate).cluster)
    return [str(one.value) for one in names if one.value != fixed]


def check_cluster(cluster: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{32}", cluster):
        raise FsError(Fault.INVALID, f"{cluster!r} is no cluster id: that is 32 hex digits")
    return cluster


def check_name(name: str) -> str:
    if not re.fullmatch(NAME_PATTERN, name):
        raise FsError(
            Fault.INVALID,
            f"{name!r} cannot be the name of a certificate: 1 to 64 of A-Z a-z 0-9 . _ -, "
            "beginning with a letter or digit",
        )
    return name


def check_host(host: str) -> str:
    _as_general_name(host)
    return host


def moment(when: datetime) -> str:
    """
    >>> from datetime import UTC
    >>> moment(datetime(2027, 1, 2, 3, 4, 5, tzinfo=UTC))
    '2027-01-02 03:04:05 UTC'
    """
    return when.strftime("%Y-%m-%d %H:%M:%S UTC")


def _begun(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    start: datetime,
    stop: datetime,
) -> x509.CertificateBuilder:
    """What every certificate has.  Times are in whole seconds: X.509 knows no other."""
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start.replace(microsecond=0))
        .not_valid_after(stop.replace(microsecond=0))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _as_name(subject: Subject) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, subject.cluster),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, subject.kind.value),
            x509.NameAttribute(NameOID.COMMON_NAME, subject.name),
        ]
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


_LABEL: Final = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"


def _as_general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if len(host) > 253 or not re.fullmatch(rf"{_LABEL}(\.{_LABEL})*", host):
        raise FsError(Fault.INVALID, f"{host!r} is neither a host name nor an IP address")
    return x509.DNSName(host)
