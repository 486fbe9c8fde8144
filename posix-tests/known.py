"""What a binding cannot carry: for each binding, patterns of test ids and the reason.

A test id is `test_file.py::test_name[parameters]`; patterns are those of `fnmatch`, except that
`[` stands for itself.  A case named here is skipped with that reason, so an entry needs one that a
user would accept.
"""

from fnmatch import fnmatchcase
from typing import Final

_NO_FALLOCATE: Final = "pyfuse3 has no handler for fallocate: the kernel answers EOPNOTSUPP"
_NO_LSEEK: Final = "pyfuse3 has no handler for lseek: to the kernel every file is one run of data"
_NO_TMPFILE: Final = "pyfuse3 has no handler for tmpfile: O_TMPFILE is EOPNOTSUPP"

KNOWN: Final[dict[str, dict[str, str]]] = {
    "native": {},
    "pyfuse3": {
        "test_sparse.py::*allocat*": _NO_FALLOCATE,
        "test_sparse.py::*punch*": _NO_FALLOCATE,
        "test_sparse.py::*zero_range*": _NO_FALLOCATE,
        "test_sparse.py::*keep_size*": _NO_FALLOCATE,
        "test_sparse.py::*seek_hole*": _NO_LSEEK,
        "test_sparse.py::*seek_data*": _NO_LSEEK,
        "test_tmpfile.py::*": _NO_TMPFILE,
        "test_setuid.py::*[tmpfile]": _NO_TMPFILE,
    },
}


def reason_to_skip(binding: str, test_id: str) -> str | None:
    """Why `test_id` cannot pass on `binding`, or None if it must."""
    for pattern, reason in KNOWN[binding].items():
        if fnmatchcase(test_id, pattern.replace("[", "[[]")):
            return reason
    return None
