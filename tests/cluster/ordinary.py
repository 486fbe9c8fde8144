"""An ordinary user, in a mount table and a process table of its own.

Whatever is mounted, started or changed there ends with the commands.  What a test machine may lack
is made there too: a /dev/fuse that users can open, as udev makes it, and a way to this checkout and
its Python, which often lie in the closed directory of root.

Run as a program (as root, in namespaces of its own), this file sets that up and becomes the user.
"""

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

USER: Final = 65_534
"""nobody: the one user besides root that every machine has."""
SECONDS_MAX: Final = 100
CHECKOUT: Final = Path(__file__).resolve().parents[2]
ALONE: Final = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
COMMANDS: Final = """
mount_dfs() { "$PYTHON" -m mountfs.cli.mount_dfs "$@"; }
mountfs() { "$PYTHON" -m mountfs.cli.main "$@"; }
gone() { while grep -qs '^State:.*[^Z] (.*)$' /proc/$1/status; do sleep 0.02; done; }
"""


class Person:
    """Who has a home directory, `home`, and may write nowhere else."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.home = top / "person"
        self.fuse_conf = ""
        """What /etc/fuse.conf says."""
        self.device_mode = 0o666
        """Of /dev/fuse; 0: there is none."""
        self.without: list[str] = []
        """Programs that are not to be found."""
        self.home.mkdir(mode=0o700)
        os.chown(self.home, USER, USER)

    def does(self, script: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run shell commands in the person's home directory; the first that fails ends them.

        They also have `mount_dfs`, `mountfs`, and `gone PID`, which waits for the end of a process.
        """
        conf = self.top / "fuse.conf"
        conf.write_text(self.fuse_conf)
        conf.chmod(0o644)
        environment = {
            "HOME": str(self.home),
            "TMPDIR": str(self.home),
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "PYTHONPATH": str(CHECKOUT),
            "LC_ALL": "C.UTF-8",
            "CHECKOUT": str(CHECKOUT),
            "PYTHON": sys.executable,
            **environment,
        }
        setup = [*ALONE, sys.executable, __file__, str(conf), f"{self.device_mode:o}", script]
        setup += [path for name in self.without if (path := shutil.which(name))]
        return subprocess.run(
            setup,
            env=environment,
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS_MAX,
        )


@contextmanager
def ordinary_person() -> Iterator[Person]:
    top = Path(tempfile.mkdtemp(prefix="mountfs-person-"))
    top.chmod(0o755)
    try:
        yield Person(top)
    finally:
        shutil.rmtree(top)


# -- in the namespaces


def main(conf: str, device_mode: str, script: str, *hidden: str) -> None:
    _let_pass(CHECKOUT, Path(sys.base_prefix), Path(sys.prefix).resolve())
    if Path("/etc/fuse.conf").exists():
        _mount("--bind", conf, "/etc/fuse.conf")
    for program in hidden:
        _mount("--bind", conf, program)  # a file that cannot be executed
    _replace_device(int(device_mode, 8))
    os.setgroups([])
    os.setgid(USER)
    os.setuid(USER)
    os.execvp("sh", ["sh", "-euc", COMMANDS + script])


def _let_pass(*places: Path) -> None:
    """Where users cannot pass a directory above a place, they see one with nothing but it."""
    below: dict[Path, dict[Path, int]] = {}
    for place in places:
        closed = [above for above in place.parents if not above.stat().st_mode & stat.S_IXOTH]
        if closed:
            below.setdefault(closed[-1], {})[place] = os.open(place, os.O_PATH)
    for directory, inside in below.items():
        _mount("-t", "tmpfs", "-o", "mode=755", "none", str(directory))
        for place, fd in sorted(inside.items()):
            if not place.exists():  # not in one that is there already
                place.mkdir(parents=True)
                _mount("-c", "--bind", f"/proc/self/fd/{fd}", str(place), keep=fd)


def _replace_device(mode: int) -> None:
    device = os.stat("/dev/fuse").st_rdev
    if not mode:
        _mount("-t", "tmpfs", "-o", "mode=755", "none", "/dev")
        os.mknod("/dev/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.chmod("/dev/null", 0o666)
        return
    with tempfile.TemporaryDirectory() as place:
        node = os.path.join(place, "fuse")
        os.mknod(node, stat.S_IFCHR, device)
        os.chmod(node, mode)
        _mount("--bind", node, "/dev/fuse")


def _mount(*arguments: str, keep: int | None = None) -> None:
    fds = () if keep is None else (keep,)
    subprocess.run(["mount", *arguments], check=True, pass_fds=fds)


if __name__ == "__main__":
    main(*sys.argv[1:])
