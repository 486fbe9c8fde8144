"""Who may do what."""

import pytest

from mountfs.errors import Fault
from mountfs.meta import acl
from mountfs.meta.ops.setattr import SetAttr
from mountfs.meta.ops.xattr import SetXattr
from mountfs.meta.permission import (
    READ,
    SEARCH,
    WRITE,
    permit,
    permit_owner,
    permit_removal,
)
from mountfs.types import SUPERUSER, Cred

OWNER, MEMBER, GUEST, OTHER = Cred(1, 5), Cred(2, 10), Cred(3, 5, (9, 10)), Cred(4, 5)


@pytest.fixture
def inode(machine):
    """A file of user 1 and group 10, with a mode."""

    def inode(mode):
        ino = machine.make("a")
        machine.do(SetAttr(ino=ino, cred=SUPERUSER, uid=1, gid=10, mode=mode))
        return machine.state.tree.inode(ino)

    return inode


@pytest.mark.parametrize(
    ("mode", "cred", "allowed"),
    [
        (0o700, OWNER, READ | WRITE | SEARCH),
        (0o077, OWNER, 0),  # the owner's bits are the only ones that count for the owner
        (0o650, MEMBER, READ | SEARCH),
        (0o650, GUEST, READ | SEARCH),  # by a supplementary group
        (0o707, MEMBER, 0),
        (0o774, OTHER, READ),
        (0o000, SUPERUSER, READ | WRITE | SEARCH),
        (0o000, Cred(4, 5, (), True), READ | WRITE | SEARCH),  # the door has checked
    ],
)
def test_the_first_class_that_fits_decides(machine, inode, mode, cred, allowed, fails):
    file = inode(mode)
    for want in range(1, 8):
        if want & ~allowed:
            with fails(Fault.DENIED):
                permit(machine.state.tree, file, cred, want)
        else:
            permit(machine.state.tree, file, cred, want)


def test_an_acl_lets_a_named_user_in(machine, inode, fails):
    file = inode(0o700)
    value = acl.pack(
        (
            acl.Entry(acl.USER_OBJ, 7),
            acl.Entry(acl.USER, 6, 4),
            acl.Entry(acl.GROUP_OBJ, 0),
            acl.Entry(acl.MASK, 4),
            acl.Entry(acl.OTHER, 0),
        )
    )
    machine.do(SetXattr(file.ino, acl.ACCESS, value, 0, False, SUPERUSER))
    tree = machine.state.tree
    permit(tree, tree.inode(file.ino), OTHER, READ)
    with fails(Fault.DENIED):
        permit(tree, tree.inode(file.ino), OTHER, WRITE)  # the mask takes it away
    with fails(Fault.DENIED):
        permit(tree, tree.inode(file.ino), MEMBER, READ)


def test_the_sticky_bit_leaves_names_to_their_owners(machine, inode, fails):
    file = inode(0o644)
    tree = machine.state.tree
    directory = machine.make("tmp/", mode=0o1777)
    machine.do(SetAttr(ino=directory, cred=SUPERUSER, uid=7))
    sticky = tree.inode(directory)
    for cred in (OWNER, Cred(7, 7), SUPERUSER):
        permit_removal(sticky, file, cred)
    with fails(Fault.NOT_PERMITTED):
        permit_removal(sticky, file, MEMBER)


def test_only_the_owner_and_the_superuser_own(inode, fails):
    file = inode(0o777)
    permit_owner(file, OWNER)
    permit_owner(file, SUPERUSER)
    with fails(Fault.NOT_PERMITTED):
        permit_owner(file, MEMBER)
