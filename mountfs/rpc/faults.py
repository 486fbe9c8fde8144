"""Faults as gRPC statuses and back.

The status is the row's gRPC column, for tools that know no better.  Two trailing metadata carry the
fault's name and the detail whole, so that the caller gets the same `FsError`; a status without them
came from gRPC itself, or from somebody else.
"""

from collections.abc import Iterable

import grpc

from mountfs.errors import Fault, FsError

FAULT_KEY = "mountfs-fault"
DETAIL_KEY = "mountfs-detail-bin"
"""-bin: any bytes, as gRPC transports them."""
DETAIL_CHARS_MAX = 500
SENTENCE_CHARS_MAX = 200
"""Metadata of more than 8 KiB are refused on the way; base64 makes up to 6 bytes of a character of
the detail, and gRPC 12 of one of the status's sentence.
"""

_BARE = {
    grpc.StatusCode.CANCELLED: Fault.INTERRUPTED,
    grpc.StatusCode.UNKNOWN: Fault.DEVICE,
    grpc.StatusCode.INVALID_ARGUMENT: Fault.INVALID,
    grpc.StatusCode.DEADLINE_EXCEEDED: Fault.TIMED_OUT,
    grpc.StatusCode.NOT_FOUND: Fault.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS: Fault.EXISTS,
    grpc.StatusCode.PERMISSION_DENIED: Fault.DENIED,
    grpc.StatusCode.UNAUTHENTICATED: Fault.DENIED,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Fault.BUSY,
    grpc.StatusCode.FAILED_PRECONDITION: Fault.INVALID,
    grpc.StatusCode.ABORTED: Fault.WOULD_BLOCK,
    grpc.StatusCode.OUT_OF_RANGE: Fault.INVALID,
    grpc.StatusCode.UNIMPLEMENTED: Fault.UNSUPPORTED,
    grpc.StatusCode.INTERNAL: Fault.DEVICE,
    # Who is not there leads nobody: the caller asks another one.
    grpc.StatusCode.UNAVAILABLE: Fault.NOT_LEADER,
    grpc.StatusCode.DATA_LOSS: Fault.CORRUPT,
}
"""What a status says that carries no fault."""

Metadata = tuple[tuple[str, str | bytes], ...]


def status_of(fault: Fault) -> grpc.StatusCode:
    return grpc.StatusCode[fault.value.grpc]


def to_metadata(error: FsError) -> Metadata:
    detail = error.detail[:DETAIL_CHARS_MAX].encode("utf-8", "surrogateescape")
    return ((FAULT_KEY, error.fault.name), (DETAIL_KEY, detail))


def sentence_of(error: FsError) -> str:
    """For the status, which tools show."""
    return str(error)[:SENTENCE_CHARS_MAX].encode("utf-8", "replace").decode()


def from_status(
    code: grpc.StatusCode, details: str, trailing: Iterable[tuple[str, str | bytes]], address: str
) -> FsError:
    """What a call to `address` that ended with this status raises."""
    carried = dict(trailing)
    fault = Fault.__members__.get(str(carried.get(FAULT_KEY)))
    if fault is None:
        return FsError(_BARE.get(code, Fault.DEVICE), f"{address}: {details or code.name}")
    detail = carried.get(DETAIL_KEY, b"")
    if isinstance(detail, str):
        return FsError(fault, detail)
    return FsError(fault, detail.decode("utf-8", "surrogateescape"))
