"""The certificates of a process, as the layers want them; or none."""

import ssl
from collections.abc import Callable
from pathlib import Path

from mountfs.errors import Fault, FsError
from mountfs.meta.client import Options
from mountfs.rpc.identity import Credentials, Pems
from mountfs.tls.authority import Kind
from mountfs.tls.reload import Identities
from mountfs.wire.service import Peer


class Trust:
    """`directory`: of `mountfs pki`; None: no TLS.  `cluster`, `kind`: what the certificate must be
    for; None: whatever it is for.
    """

    def __init__(
        self, directory: Path | None, cluster: str | None = None, kind: Kind | None = Kind.NODE
    ) -> None:
        self.identities = (
            None if directory is None else Identities(directory, cluster=cluster, kind=kind)
        )

    @property
    def cluster(self) -> str:
        """Of the certificate; empty: without TLS, any."""
        return self.identities.current().cluster if self.identities else ""

    @property
    def problem(self) -> str | None:
        """What somebody should do something about."""
        return self.identities.problem if self.identities else None

    def require_node(self, peer: Peer) -> None:
        """With TLS, only nodes may delete.  Raises DENIED."""
        if self.identities is not None and peer.state is not Kind.NODE:
            certificate = peer.certificate
            if certificate is None:
                raise FsError(Fault.DENIED, f"{peer.address} has shown no certificate")
            self.identities.current().peer_of(certificate, Kind.NODE)
            peer.state = Kind.NODE

    @property
    def server_context(self) -> Callable[[], ssl.SSLContext] | None:
        identities = self.identities
        return None if identities is None else lambda: identities.current().server_context()

    def client_options(self, cluster: bytes, name: str) -> Options:
        """How we connect to others as a client does."""
        identities = self.identities
        if identities is None:
            return Options(cluster=cluster, about=name)
        return Options(
            cluster=cluster,
            ssl_context=lambda: identities.current().client_context(),
            server_hostname=identities.current().server_name,
            about=name,
        )

    @property
    def credentials(self) -> Credentials | None:
        identities = self.identities
        if identities is None:
            return None

        def pems() -> Pems:
            now = identities.current()
            return Pems(now.authorities_pem, now.certificate_pem, now.key_pem)

        return pems
