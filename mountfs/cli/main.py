"""The `mountfs` command: one module for each subcommand, one table of them here.

Only the module of the command that is asked for is imported: all of them take most of a second.
"""

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import Final, NoReturn

from mountfs import __version__
from mountfs.cli.show import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE
from mountfs.errors import FsError

COMMANDS: Final = (
    "status",
    "info",
    "stats",
    "fsck",
    "doctor",
    "bench",
    "cluster",
    "node",
    "health",
    "gc",
    "balance",
    "safemode",
    "session",
    "locks",
    "replication",
    "quota",
    "trash",
    "undelete",
    "worm",
    "pki",
    "sim",
)
"""In the order in which help shows them."""

_DESCRIPTION = """\
Look at, check and measure filesystems of mountfs.  To mount one, use mount.dfs.
"""

_EXAMPLES = """\
examples:
  mount.dfs /mnt/data              mount the default home, which is made if there is none
  mountfs status                   what is mounted, how full it is, what is not well
  mountfs info /mnt/data/file      one file, down to where its bytes are
  mountfs stats /mnt/data          what goes on in a mount, live
  umount /mnt/data                 unmount; data stays in the home
  mountfs fsck /var/lib/mountfs/default    check a home that is not mounted
  mountfs quota set /mnt/data/project --bytes 10GiB   how much a directory may have
  mountfs undelete /mnt/data/file  have back what was deleted; see: mountfs trash --help
  mountfs doctor /mnt/data         something hangs or fails: what, and what to do
  mountfs pki init /root/pki       the authority of a new cluster; see: mountfs pki --help
  mountfs sim --seeds 0-99         simulate clusters in which everything goes wrong

exit status: 0 well, 1 not well or failed (why is on stderr), 2 wrong call, 130 interrupted;
fsck has its own, see: mountfs fsck --help
"""


class _Parser(argparse.ArgumentParser):
    usage_status = EXIT_USAGE

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(self.usage_status, f"{self.prog}: {message}; see: {self.prog} --help\n")


def parser(argv: Sequence[str] = ()) -> argparse.ArgumentParser:
    """One that understands `argv`: the command with which it begins, or all."""
    wanted = argv[:1] if argv and argv[0] in COMMANDS else COMMANDS
    whole = _Parser(
        prog="mountfs",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    whole.add_argument("--version", action="version", version=f"mountfs {__version__}")
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in wanted:
        module = importlib.import_module(f"mountfs.cli.{name}")
        one = commands.add_parser(
            name,
            help=module.SUMMARY,
            description=module.DESCRIPTION,
            epilog=module.EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(one)
        one.set_defaults(
            run=module.run, parser=one, failed=getattr(module, "EXIT_COULD_NOT", EXIT_FAILED)
        )
        one.usage_status = getattr(module, "EXIT_USAGE", EXIT_USAGE)
    return whole


def main(argv: list[str] | None = None) -> int:
    asked = sys.argv[1:] if argv is None else argv
    arguments, unknown = parser(asked).parse_known_args(asked)
    if unknown:  # told by the command's own parser, which knows its exit status
        arguments.parser.error(f"unknown arguments: {' '.join(unknown)}")
    try:
        status_: int = arguments.run(arguments)
        sys.stdout.flush()
        return status_
    except FsError as error:
        print(f"mountfs {arguments.command}: {error}", file=sys.stderr)
        return int(arguments.failed)
    except PermissionError as error:
        print(
            f"mountfs {arguments.command}: {error.filename or error}: permission denied; "
            "run it as root or as the owner of the home",
            file=sys.stderr,
        )
        return int(arguments.failed)
    except BrokenPipeError:
        # Who read our output went away.  Python would complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
