"""The directory of an authority: where certificates come from.

    authority.pem         the certificate of the authority and its private key (mode 0600)
    ca.crt                what everybody trusts: the authority, and the one before it
    issued/NAME/ca.crt    an identity, whole: copy the directory to where it is used
    issued/NAME/own.pem

Who has this directory can become anybody in the cluster: it belongs on a machine apart, or on a
medium in a drawer.  The order of writing is the contract: trust first, then what needs it.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from mountfs.errors import Fault, FsError, disk_error
from mountfs.tls import authority, pem
from mountfs.tls.authority import LEAF_LIFETIME, Kind, Pair
from mountfs.tls.identity import Identity

ISSUED: Final = "issued"


@dataclass(frozen=True)
class Issued:
    """A certificate that was issued, as it is on the disk."""

    name: str
    directory: Path
    certificate: x509.Certificate | None
    """None: it cannot be read."""
    problem: str | None
    """Why others would not accept it."""


class Store:
    """An authority that is there.  To change anything, `locked`."""

    def __init__(self, directory: Path) -> None:
        """Raises NOT_FOUND: there is none; INVALID, DENIED: it cannot be used."""
        self.directory = directory
        file = directory / pem.AUTHORITY_FILE
        try:
            own = pem.own_in(pem.read(file, secret=True), file)
        except FsError as error:
            if error.fault is not Fault.NOT_FOUND:
                raise
            raise FsError(
                Fault.NOT_FOUND, f"{error}: to make an authority: mountfs pki init {directory}"
            ) from None
        if authority.kind_of(own.certificate) is not Kind.AUTHORITY or not isinstance(
            own.key, ec.EllipticCurvePrivateKey
        ):
            raise FsError(Fault.INVALID, f"{file} is not an authority that mountfs has made")
        self.authority = Pair(own.certificate, own.key)
        self.cluster = authority.subject_of(own.certificate).cluster
        self._trusted = directory / pem.CA_FILE

    @classmethod
    def create(cls, directory: Path, cluster: str, now: datetime) -> "Store":
        """A new authority.  Raises EXISTS: there is one, which is never replaced."""
        made = authority.new_authority(cluster, now)
        _make_directory(directory)
        with _locked(directory):
            for name in (pem.AUTHORITY_FILE, pem.CA_FILE, pem.OWN_FILE):
                if os.path.lexists(directory / name):
                    raise FsError(
                        Fault.EXISTS,
                        f"{directory / name} is there already, and an authority is never "
                        f"overwritten: see mountfs pki show {directory}, or name another directory",
                    )
            pem.write(directory / pem.CA_FILE, _text([made.certificate]), secret=False)
            pem.write(directory / pem.AUTHORITY_FILE, pem.encode_pair(made), secret=True)
        return cls(directory)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else issues or renews meanwhile."""
        with _locked(self.directory):
            yield

    def issue(
        self,
        kind: Kind,
        name: str,
        now: datetime,
        *,
        hosts: Sequence[str] = (),
        lifetime: timedelta = LEAF_LIFETIME,
        out: Path | None = None,
    ) -> Issued:
        """A first certificate for a name, and a copy of it in `out`.  Raises EXISTS."""
        made = authority.issue(self.authority, kind, name, now, hosts=hosts, lifetime=lifetime)
        place = self.directory / ISSUED / name
        for directory, cure in ((place, f"mountfs pki renew {self.directory} {name}"), (out, "")):
            if directory is not None and os.path.lexists(directory / pem.OWN_FILE):
                raise FsError(
                    Fault.EXISTS,
                    f"{directory / pem.OWN_FILE} is there already: "
                    + (f"to renew it: {cure}" if cure else "name another directory with --out"),
                )
        self._put(made, place, out)
        return issued_in(place, now)

    def renew(
        self,
        old: Issued,
        now: datetime,
        *,
        lifetime: timedelta | None = None,
        out: Path | None = None,
    ) -> Issued:
        """A new key and certificate in place of the old ones, which are used until the rename."""
        if old.certificate is None:
            raise FsError(Fault.INVALID, f"{old.name} cannot be renewed: {old.problem}")
        made = authority.renewed(self.authority, old.certificate, now, lifetime)
        self._put(made, old.directory, out)
        return issued_in(old.directory, now)

    def renew_authority(self, now: datetime) -> None:
        """A new authority, which signs from now on.  The old one stays trusted until it ends."""
        made = authority.new_authority(self.cluster, now)
        before = [one for one in self.trusted() if one.not_valid_after_utc > now]
        text = _text([made.certificate, *before])
        for one in issued(self.directory, now):
            pem.write(one.directory / pem.CA_FILE, text, secret=False)
        pem.write(self._trusted, text, secret=False)
        pem.write(self.directory / pem.AUTHORITY_FILE, pem.encode_pair(made), secret=True)
        self.authority = made

    def trusted(self) -> list[x509.Certificate]:
        return pem.certificates_in(pem.read(self._trusted, secret=False), self._trusted)

    def find(self, name: str, now: datetime) -> Issued:
        place = self.directory / ISSUED / authority.check_name(name)
        if not place.is_dir():
            raise FsError(
                Fault.NOT_FOUND,
                f"nothing was issued to {name}; see: mountfs pki show {self.directory}",
            )
        return issued_in(place, now)

    def _put(self, made: Pair, *directories: Path | None) -> None:
        text = _text(self.trusted())
        for directory in directories:
            if directory is not None:
                _make_directory(directory)
                pem.write(directory / pem.CA_FILE, text, secret=False)
                pem.write(directory / pem.OWN_FILE, pem.encode_pair(made), secret=True)


def issued(directory: Path, now: datetime) -> list[Issued]:
    """What the authority in `directory` has issued, by name.  Needs no key of the authority."""
    try:
        found = sorted(one for one in (directory / ISSUED).iterdir() if one.is_dir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise disk_error(error, f"cannot read {directory / ISSUED}") from error
    return [issued_in(place, now) for place in found]


def issued_in(place: Path, now: datetime) -> Issued:
    """An identity as it is, good or not."""
    file = place / pem.OWN_FILE
    problem = certificate = None
    try:
        Identity.load(place, now=now)
    except FsError as error:
        problem = str(error)
    try:
        certificate = pem.certificates_in(pem.read(file, secret=False), file)[0]
        if authority.kind_of(certificate) not in (Kind.NODE, Kind.CLIENT):
            problem = problem or f"{file} is not the certificate of a node or client"
            certificate = None
    except FsError as error:
        problem = problem or str(error)
    return Issued(place.name, place, certificate, problem)


def _text(certificates: Sequence[x509.Certificate]) -> bytes:
    return b"".join(map(pem.encode_certificate, certificates))


def _make_directory(directory: Path) -> None:
    """For its owner only, if it is made here."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        pem.sync_directory(directory.parent)
    except OSError as error:
        raise disk_error(error, f"cannot make {directory}") from error


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise disk_error(error, f"cannot open {directory}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
