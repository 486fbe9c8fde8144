"""Every way a request can fail, as one table.

`FsError(Fault.X, detail)` is the only exception that is expected to cross a layer.  A door
translates it once, by the row.  Anything else that is raised is a bug in mountfs and is never
caught and answered as if it were the caller's fault.  A row is added only if some caller reacts
differently to it.
"""

import contextlib
import enum
import errno
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, eq=False)  # eq=False: equal rows must stay members of their own
class _Row:
    errno: int
    grpc: str
    s3: str
    http: int


class Fault(enum.Enum):
    """What went wrong, in the caller's terms."""

    #                     errno               gRPC                   S3 code                HTTP
    NOT_FOUND = _Row(errno.ENOENT, "NOT_FOUND", "NoSuchKey", 404)
    EXISTS = _Row(errno.EEXIST, "ALREADY_EXISTS", "OperationAborted", 409)
    NOT_DIRECTORY = _Row(errno.ENOTDIR, "FAILED_PRECONDITION", "InvalidRequest", 400)
    IS_DIRECTORY = _Row(errno.EISDIR, "FAILED_PRECONDITION", "InvalidRequest", 400)
    NOT_EMPTY = _Row(errno.ENOTEMPTY, "FAILED_PRECONDITION", "BucketNotEmpty", 409)
    DENIED = _Row(errno.EACCES, "PERMISSION_DENIED", "AccessDenied", 403)
    NOT_PERMITTED = _Row(errno.EPERM, "PERMISSION_DENIED", "AccessDenied", 403)
    INVALID = _Row(errno.EINVAL, "INVALID_ARGUMENT", "InvalidArgument", 400)
    NAME_TOO_LONG = _Row(errno.ENAMETOOLONG, "INVALID_ARGUMENT", "KeyTooLongError", 400)
    TOO_MANY_LINKS = _Row(errno.EMLINK, "RESOURCE_EXHAUSTED", "InternalError", 500)
    CROSS_DEVICE = _Row(errno.EXDEV, "FAILED_PRECONDITION", "InvalidRequest", 400)
    FILE_TOO_LARGE = _Row(errno.EFBIG, "OUT_OF_RANGE", "EntityTooLarge", 400)
    NO_SPACE = _Row(errno.ENOSPC, "RESOURCE_EXHAUSTED", "InsufficientCapacity", 507)
    OVER_QUOTA = _Row(errno.EDQUOT, "RESOURCE_EXHAUSTED", "QuotaExceeded", 403)
    READ_ONLY = _Row(errno.EROFS, "FAILED_PRECONDITION", "MethodNotAllowed", 405)
    STALE = _Row(errno.ESTALE, "NOT_FOUND", "NoSuchKey", 404)
    BAD_HANDLE = _Row(errno.EBADF, "FAILED_PRECONDITION", "InternalError", 500)
    NO_ATTRIBUTE = _Row(errno.ENODATA, "NOT_FOUND", "NoSuchTagSet", 404)
    TOO_SMALL = _Row(errno.ERANGE, "OUT_OF_RANGE", "InvalidArgument", 400)
    TOO_BIG = _Row(errno.E2BIG, "INVALID_ARGUMENT", "MetadataTooLarge", 400)
    UNSUPPORTED = _Row(errno.EOPNOTSUPP, "UNIMPLEMENTED", "NotImplemented", 501)
    NOT_IMPLEMENTED = _Row(errno.ENOSYS, "UNIMPLEMENTED", "NotImplemented", 501)
    PAST_END = _Row(errno.ENXIO, "OUT_OF_RANGE", "InvalidRange", 416)
    WOULD_BLOCK = _Row(errno.EAGAIN, "ABORTED", "OperationAborted", 409)
    DEADLOCK = _Row(errno.EDEADLK, "ABORTED", "OperationAborted", 409)
    NO_LOCKS = _Row(errno.ENOLCK, "RESOURCE_EXHAUSTED", "SlowDown", 503)
    INTERRUPTED = _Row(errno.EINTR, "CANCELLED", "RequestTimeout", 400)
    BUSY = _Row(errno.EBUSY, "FAILED_PRECONDITION", "OperationAborted", 409)
    TIMED_OUT = _Row(errno.ETIMEDOUT, "DEADLINE_EXCEEDED", "RequestTimeout", 504)
    CORRUPT = _Row(errno.EIO, "DATA_LOSS", "InternalError", 500)
    DEVICE = _Row(errno.EIO, "INTERNAL", "InternalError", 500)
    NOT_LEADER = _Row(errno.EAGAIN, "UNAVAILABLE", "ServiceUnavailable", 503)
    UNAVAILABLE = _Row(errno.EAGAIN, "UNAVAILABLE", "SlowDown", 503)
    VOLUME_CLOSED = _Row(errno.EIO, "FAILED_PRECONDITION", "InternalError", 500)
    SLICE_EXPIRED = _Row(errno.EIO, "FAILED_PRECONDITION", "InternalError", 500)
    SESSION_ENDED = _Row(errno.EIO, "ABORTED", "ServiceUnavailable", 503)
    LOST = _Row(errno.EIO, "DATA_LOSS", "InternalError", 500)
    BAD_HOME = _Row(errno.EINVAL, "FAILED_PRECONDITION", "InternalError", 500)


class FsError(Exception):
    """An expected failure.  `detail` is for people: what, where, and what to do next."""

    def __init__(self, fault: Fault, detail: str = "") -> None:
        super().__init__(fault, detail)
        self.fault = fault
        self.detail = detail

    def __str__(self) -> str:
        return self.detail or self.fault.name.lower().replace("_", " ")


def only_fault(group: BaseExceptionGroup[BaseException]) -> FsError | None:
    """The expected failure in a group that holds nothing else: nurseries wrap what ends them."""
    errors: list[BaseException] = list(group.exceptions)
    while len(errors) == 1 and isinstance(errors[0], BaseExceptionGroup):
        errors = list(errors[0].exceptions)
    return errors[0] if len(errors) == 1 and isinstance(errors[0], FsError) else None


@contextlib.contextmanager
def unwrapped() -> Iterator[None]:
    """An expected failure that is alone in a group is raised as it is: for where Trio is run."""
    try:
        yield
    except BaseExceptionGroup as group:
        fault = only_fault(group)
        if fault is None:
            raise
        raise fault from None


_DISK_FAULTS = {
    errno.ENOSPC: Fault.NO_SPACE,
    errno.EDQUOT: Fault.NO_SPACE,
    errno.EROFS: Fault.READ_ONLY,
    errno.EFBIG: Fault.NO_SPACE,
}


def disk_error(error: OSError, what: str) -> FsError:
    """What an error of the disk under us is to our caller.  `what` names the file and the step."""
    fault = _DISK_FAULTS.get(error.errno or 0, Fault.DEVICE)
    return FsError(fault, f"{what}: {error.strerror or error}")
