"""Handshakes that failed, as sentences.

OpenSSL says what it saw in words of its own, and of what the other side saw it has one byte.  The
first table is what we did not like about the other side; the second, what either side said about
the other or could not understand.
"""

import ssl
from typing import Final

from mountfs.errors import Fault, FsError

_CLOCK: Final = "renew it there (mountfs pki renew), and check the clocks of both machines"
_FOREIGN: Final = "it is of another cluster, or one side lacks a renewed ca.crt"

# `trio.SSLStream` does not send what OpenSSL has to say when it refuses: the end is all one sees.
_NO_WORD: Final = (
    "it has ended the connection without a word: it may not accept our certificate, or not be of "
    "this cluster; its log says why"
)

_VERIFY: Final = {
    # X509_V_ERR_...
    2: f"its certificate was not issued by an authority of ours: {_FOREIGN}",
    7: f"its certificate was not issued by an authority of ours: {_FOREIGN}",
    9: f"its certificate is not valid yet: {_CLOCK}",
    10: f"its certificate has expired: {_CLOCK}",
    18: "it shows a certificate that nobody has signed: it is not a node of mountfs",
    19: f"its certificate was not issued by an authority of ours: {_FOREIGN}",
    20: f"its certificate was not issued by an authority of ours: {_FOREIGN}",
    21: f"its certificate was not issued by an authority of ours: {_FOREIGN}",
    26: "it shows the certificate of a client, and only a node may serve",
    62: "its certificate is not that of a node of this cluster: check the address",
}

_REASON: Final = {
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "it wants a certificate, and we have shown none",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "it has shown no certificate",
    "TLSV1_ALERT_UNKNOWN_CA": f"it does not know the authority of our certificate: {_FOREIGN}",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": f"it says that our certificate has expired: {_CLOCK}",
    "SSLV3_ALERT_BAD_CERTIFICATE": f"it does not accept our certificate: {_FOREIGN}",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "it does not accept our certificate",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": "it says that our certificate is of the wrong kind",
    "TLSV1_ALERT_DECRYPT_ERROR": f"it cannot verify our certificate: {_FOREIGN}",
    "WRONG_VERSION_NUMBER": "it does not speak TLS: one side has certificates, the other has not",
    "HTTP_REQUEST": "it speaks HTTP, not TLS",
    "UNSUPPORTED_PROTOCOL": "it speaks an older TLS only; 1.3 is needed",
    "TLSV1_ALERT_PROTOCOL_VERSION": "it speaks an older TLS only; 1.3 is needed",
}


def refused(error: BaseException, who: str) -> FsError:
    """What to tell of a handshake that failed.  `who`: the other side, as the caller knows it.

    `error` may be wrapped, as Trio wraps the errors of TLS.  In TLS 1.3 a client is done before the
    server has looked at its certificate: the refusal then comes with the first read.
    """
    found: BaseException | None = error
    while found is not None and not isinstance(found, ssl.SSLError):
        found = found.__cause__ or found.__context__
    if found is None:
        return FsError(Fault.DENIED, f"no TLS with {who}: {error}")
    if isinstance(found, ssl.SSLCertVerificationError):
        said = _VERIFY.get(found.verify_code) or f"its certificate: {found.verify_message}"
    elif isinstance(found, ssl.SSLEOFError):
        said = _NO_WORD
    else:
        said = _REASON.get(found.reason or "") or f"TLS says {found.reason or found}"
    return FsError(Fault.DENIED, f"no TLS with {who}: {said}")
