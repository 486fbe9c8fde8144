"""mountfs: a distributed POSIX filesystem that you mount.

Reading order for a newcomer: README.md, then docs/architecture.md, which follows one write(2) from
the kernel to the disk and back, then the docstring of each package on that way.
"""

__version__ = "0.1.0"

if not __debug__:
    raise SystemExit(
        "mountfs: refusing to run under python -O: its assertions guard your data. "
        "Run it without -O."
    )
