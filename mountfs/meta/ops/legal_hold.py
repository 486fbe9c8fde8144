"""A legal hold: the file stays as it is until the hold is taken away."""

from mountfs.meta.command import Command, Stamp
from mountfs.meta.ops.retention import require_file
from mountfs.meta.retention import (
    Retention,
    Right,
    require_right,
    retention_of,
    set_retention,
)
from mountfs.meta.tree import Tree
from mountfs.types import Cred, Ino


class SetLegalHold(Command[Retention], frozen=True, tag="set_legal_hold"):
    """Reply: what holds now.  Raises INVALID for what is no file with a name, NOT_PERMITTED."""

    ino: Ino
    on: bool
    cred: Cred
    rights: tuple[str, ...] = ()

    def apply(self, tree: Tree, stamp: Stamp) -> Retention:
        inode = require_file(tree, self.ino)
        require_right(self.cred, self.rights, Right.LEGAL_HOLD, "a legal hold")
        before = retention_of(tree, inode)
        after = Retention(before.mode, before.until, self.on)
        set_retention(tree, self.ino, before, after)
        return after
