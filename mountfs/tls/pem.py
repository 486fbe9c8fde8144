"""Certificates and keys as text, and files that are whole or not there.

A certificate and its key are in ONE file.  So a reader can never see a key beside a certificate
that it does not belong to: the file is replaced by a rename, which is all or nothing.
"""

import contextlib
import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from mountfs.errors import Fault, FsError, disk_error
from mountfs.tls.authority import Pair

CA_FILE: Final = "ca.crt"
"""In every directory: the authorities that are trusted; of the cluster, so one or two."""
OWN_FILE: Final = "own.pem"
"""In an identity: the certificate, and its private key."""
AUTHORITY_FILE: Final = "authority.pem"
"""In the directory of an authority: its certificate, and its private key."""
FILE_BYTES_MAX: Final = 1 << 20

_BLOCK: Final = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----\s.*?-----END \1-----\n?", re.DOTALL)


@dataclass(frozen=True)
class Own:
    """A certificate with the key that belongs to it, of whatever type."""

    certificate: x509.Certificate
    key: PrivateKeyTypes = field(repr=False)
    key_pem: bytes = field(repr=False)


def encode_certificate(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def encode_key(pair: Pair) -> bytes:
    return pair.key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def encode_pair(pair: Pair) -> bytes:
    """The certificate first: that is what a person wants to see of it."""
    return encode_certificate(pair.certificate) + encode_key(pair)


def certificates_in(text: bytes, file: Path) -> list[x509.Certificate]:
    """All certificates of a file, at least one."""
    blocks = [block for label, block in _blocks(text) if label == b"CERTIFICATE"]
    try:
        found = [x509.load_pem_x509_certificate(block) for block in blocks]
    except (ValueError, x509.InvalidVersion):
        raise FsError(Fault.INVALID, f"{file} is damaged: its certificate cannot be read") from None
    if not found:
        raise FsError(Fault.INVALID, f"{file} has no whole certificate in it")
    return found


def own_in(text: bytes, file: Path) -> Own:
    """The certificate of a file and the private key that belongs to it.

    What is wrong with a key is not repeated: the reason could have a part of it.
    """
    certificate = certificates_in(text, file)[0]
    blocks = [block for label, block in _blocks(text) if label.endswith(b"PRIVATE KEY")]
    if len(blocks) != 1:
        what = "no whole private key" if not blocks else "more than one private key"
        raise FsError(Fault.INVALID, f"{file} has {what} in it")
    try:
        key = serialization.load_pem_private_key(blocks[0], password=None)
        belongs = _public(key) == _public(certificate)
    except TypeError:
        raise FsError(
            Fault.INVALID,
            f"the private key in {file} has a password, and nobody here to ask for it",
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise FsError(Fault.INVALID, f"{file} is damaged: its key cannot be read") from None
    if not belongs:
        raise FsError(
            Fault.INVALID,
            f"the private key in {file} does not belong to the certificate in it: "
            "copy the file again, whole, from where it was issued",
        )
    return Own(certificate, key, blocks[0])


def _public(of: PrivateKeyTypes | x509.Certificate) -> bytes:
    return of.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _blocks(text: bytes) -> list[tuple[bytes, bytes]]:
    return [(match[1], match[0]) for match in _BLOCK.finditer(text)]


def read(file: Path, *, secret: bool) -> bytes:
    """A file's bytes.  A secret that others can read is refused: who knows who has read it."""
    try:
        with open(file, "rb") as opened:
            mode = stat.S_IMODE(os.fstat(opened.fileno()).st_mode)
            if secret and mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise FsError(
                    Fault.DENIED,
                    f"{file} has a private key, and its mode {mode:04o} lets others at it: "
                    f"chmod 600 {file}",
                )
            return opened.read(FILE_BYTES_MAX)
    except (FileNotFoundError, NotADirectoryError):
        raise FsError(Fault.NOT_FOUND, f"{file} is missing") from None
    except PermissionError:
        raise FsError(
            Fault.DENIED,
            f"{file} cannot be read by user {os.geteuid()}: run this as its owner, "
            "or give it to this user with chown",
        ) from None
    except OSError as error:
        raise disk_error(error, f"cannot read {file}") from error


def write(file: Path, text: bytes, *, secret: bool) -> None:
    """Put a file in place, or replace it: at any moment, also of a crash, it is whole."""
    new = file.with_name(f".{file.name}.new")
    try:
        with contextlib.suppress(FileNotFoundError):
            new.unlink()  # of a writer that was killed
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if secret else 0o644)
        with open(fd, "wb") as opened:
            opened.write(text)
            opened.flush()
            os.fsync(fd)
        os.replace(new, file)
        sync_directory(file.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            new.unlink()
        raise disk_error(error, f"cannot write {file}") from error


def sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
